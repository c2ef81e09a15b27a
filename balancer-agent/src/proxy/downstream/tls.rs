//! TLS towards clients: certificates from files, one [`ServerConfig`] per frontend and
//! configuration.
//!
//! Everything is read and checked when a configuration is prepared. A reload makes a new
//! store; handshakes that begin afterwards use it, connections go on with the old one.
//! Tickets of the old store stay good as long as clients' certificates are not a matter.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use x509_parser::prelude::GeneralName;

use crate::model::http::{CertificateFiles, ClientAuth, Tls, TlsVersion, Versions};
use crate::model::{Misfit, Named};
use crate::proxy::pem;

/// The certificates of a frontend, ready for handshakes.
pub struct TlsStore {
    config: Arc<ServerConfig>,
    odd: Vec<Misfit>,
    client_auth: ClientAuth,
    minimum: TlsVersion,
}

impl TlsStore {
    /// Reads and checks all files of `tls`. Tickets that `previous` gave out stay valid
    /// when the conditions for clients are the same.
    ///
    /// # Errors
    /// Files that can't be read, are not what they should be, or do not fit their
    /// partners: all of them.
    pub fn load(
        tls: &Tls,
        versions: Versions,
        previous: Option<&Self>,
    ) -> Result<Self, Vec<Misfit>> {
        let (mut odd, mut misfits) = (Vec::new(), Vec::new());
        let mut names = Names::default();
        for files in &tls.certificates {
            match pem::certified_key(files) {
                Ok(certified) => names.add(files, Arc::new(certified), &mut odd),
                Err(found) => misfits.extend(found),
            }
        }
        let verifier = client_verifier(&tls.client_auth).unwrap_or_else(|misfit| {
            misfits.push(misfit);
            None
        });
        if !misfits.is_empty() {
            return Err(misfits);
        }
        // What is left to go wrong is no file's fault; the first one stands for all.
        let setup = |error: rustls::Error| {
            let pairs = tls.certificates.iter().take(1);
            let misfit = |files: &CertificateFiles| {
                let what = format!("can't be used: TLS can't be set up: {error}");
                Misfit::new(Named::Certificate(files.clone()), what, "a system that can")
            };
            pairs.map(misfit).collect::<Vec<_>>()
        };
        let protocol_versions: &[&SupportedProtocolVersion] = match tls.minimum {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(protocol_versions)
            .map_err(setup)?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(names));
        if versions.http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        if versions.http1 {
            config.alpn_protocols.push(b"http/1.1".to_vec());
        }
        config.ticketer = match previous {
            Some(p) if p.client_auth == tls.client_auth && p.minimum == tls.minimum => {
                Arc::clone(&p.config.ticketer)
            }
            _ => rustls::crypto::aws_lc_rs::Ticketer::new().map_err(setup)?,
        };
        Ok(Self {
            config: Arc::new(config),
            odd,
            client_auth: tls.client_auth.clone(),
            minimum: tls.minimum,
        })
    }

    /// What is odd but usable: expired certificates, names that are given twice.
    pub fn odd(&self) -> &[Misfit] {
        &self.odd
    }

    /// For a new handshake.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

fn client_verifier(auth: &ClientAuth) -> Result<Option<Arc<dyn ClientCertVerifier>>, Misfit> {
    let (path, required) = match auth {
        ClientAuth::Off => return Ok(None),
        ClientAuth::Optional(path) => (path, false),
        ClientAuth::Required(path) => (path, true),
    };
    let named = Named::ClientAuthorities(path.clone());
    let roots = pem::authorities(named.clone(), path)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match required {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    builder.build().map(Some).map_err(|error| {
        let what = format!("holds authorities that can't be used: {error}");
        Misfit::new(named, what, "the authorities that vouch for clients")
    })
}

/// Certificates by the names that they are for.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// `*.example.org` by `example.org`; stands for exactly one label (RFC 6125, 6.4.3).
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Names {
    /// Adds a certificate under all its names; the first one for a name keeps it.
    fn add(
        &mut self,
        files: &CertificateFiles,
        certified: Arc<CertifiedKey>,
        odd: &mut Vec<Misfit>,
    ) {
        let mut say = |what: String, expected: &str| {
            odd.push(Misfit::new(
                Named::Certificate(files.clone()),
                what,
                expected,
            ));
        };
        let mut found = false;
        // It was read when the pair was made.
        if let Ok(leaf) = pem::leaf(&certified.cert) {
            if let Some(Misfit { what, expected, .. }) = pem::validity(files, &leaf) {
                say(what, &expected);
            }
            let names = leaf.subject_alternative_name().ok().flatten();
            for name in names.iter().flat_map(|names| &names.value.general_names) {
                let GeneralName::DNSName(name) = name else {
                    continue;
                };
                found = true;
                let lower = name.to_ascii_lowercase();
                let (map, key) = match lower.strip_prefix("*.") {
                    Some(parent) => (&mut self.wildcard, parent),
                    None => (&mut self.exact, lower.as_str()),
                };
                match map.contains_key(key) {
                    true => say(
                        format!("is for {name}, for which one before it is already used"),
                        "one certificate for each name",
                    ),
                    false => {
                        map.insert(key.into(), Arc::clone(&certified));
                    }
                }
            }
        }
        if !found && self.default.is_some() {
            say(
                "names no host, so it is never used: only the first one is a default".into(),
                "a certificate with a subject alternative name",
            );
        }
        self.default.get_or_insert(certified);
    }

    fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        name.and_then(|name| {
            self.exact.get(name).or_else(|| {
                let (_, parent) = name.split_once('.')?;
                self.wildcard.get(parent)
            })
        })
        .or(self.default.as_ref())
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands the name on in lower case only if the client sent it so.
        match hello.server_name() {
            Some(name) if name.bytes().any(|b| b.is_ascii_uppercase()) => {
                self.find(Some(&name.to_ascii_lowercase()))
            }
            name => self.find(name),
        }
        .cloned()
    }
}
