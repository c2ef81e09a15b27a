//! TLS towards clients: certificates from files, one [`ServerConfig`] per frontend and
//! configuration.
//!
//! Everything is read and checked when a configuration is prepared. A reload makes a new
//! store; handshakes that begin afterwards use it, connections go on with the old one.
//! Tickets of the old store stay good as long as clients' certificates are not a matter.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::model::http::{CertificateFiles, ClientAuth, Tls, TlsVersion, Versions};

/// Why a frontend's TLS can't be set up. Each names the file and says what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file can't be read.
    #[error("{}: can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not PEM, or nothing in it that was looked for.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// The key is not that of the certificate.
    #[error("{}: is not the key of the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// File of the key.
        key: PathBuf,
        /// File of the certificate.
        certificate: PathBuf,
    },
    /// rustls refuses the combination.
    #[error("TLS can't be set up: {0}")]
    Setup(String),
}

/// The certificates of a frontend, ready for handshakes.
pub struct TlsStore {
    config: Arc<ServerConfig>,
    warnings: Vec<String>,
    client_auth: ClientAuth,
    minimum: TlsVersion,
}

impl TlsStore {
    /// Reads and checks all files of `tls`. Tickets that `previous` gave out stay valid
    /// when the conditions for clients are the same.
    ///
    /// # Errors
    /// A file that can't be read, is not what it should be, or does not fit its partner.
    pub fn load(tls: &Tls, versions: Versions, previous: Option<&Self>) -> Result<Self, TlsError> {
        let mut warnings = Vec::new();
        let mut names = Names::default();
        for files in &tls.certificates {
            let certified = Arc::new(certified_key(files)?);
            names.add(files, certified, &mut warnings)?;
        }
        if names.default.is_none() {
            return Err(TlsError::Setup("no certificate is given".into()));
        }
        let protocol_versions: &[_] = match tls.minimum {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(protocol_versions)
            .map_err(|e| TlsError::Setup(e.to_string()))?;
        let builder = match client_verifier(&tls.client_auth)? {
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
            _ => ticketer()?,
        };
        Ok(Self {
            config: Arc::new(config),
            warnings,
            client_auth: tls.client_auth.clone(),
            minimum: tls.minimum,
        })
    }

    /// What is odd but usable: expired certificates, names that are given twice.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// For a new handshake.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

fn ticketer() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    rustls::crypto::aws_lc_rs::Ticketer::new()
        .map_err(|e| TlsError::Setup(format!("no key for session tickets: {e}")))
}

/// Says what a PEM reader did not like.
fn pem_error(path: &Path, wanted: &str, error: pem::Error) -> TlsError {
    match error {
        pem::Error::Io(source) => TlsError::Read {
            path: path.into(),
            source,
        },
        pem::Error::NoItemsFound => TlsError::Content {
            path: path.into(),
            reason: format!("holds no {wanted} in PEM form"),
        },
        other => TlsError::Content {
            path: path.into(),
            reason: format!("is not PEM: {other}"),
        },
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| pem_error(path, "certificate", e))?;
    match certificates.is_empty() {
        true => Err(pem_error(path, "certificate", pem::Error::NoItemsFound)),
        false => Ok(certificates),
    }
}

/// A chain and its key, checked against each other.
fn certified_key(files: &CertificateFiles) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| {
        pem_error(
            &files.key,
            "private key (PKCS#8, PKCS#1 or SEC1, not encrypted)",
            e,
        )
    })?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|e| {
        TlsError::Content {
            path: files.key.clone(),
            reason: format!("the key can't be used: {e}; RSA, ECDSA or Ed25519 are"),
        }
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(TlsError::Mismatch {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
            })
        }
        // Keys that can't tell their public half can't be compared.
        Err(rustls::Error::InconsistentKeys(_)) => Ok(certified),
        Err(e) => Err(TlsError::Content {
            path: files.certificate.clone(),
            reason: format!("the certificate can't be used: {e}"),
        }),
    }
}

fn client_verifier(auth: &ClientAuth) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let (path, required) = match auth {
        ClientAuth::Off => return Ok(None),
        ClientAuth::Optional(path) => (path, false),
        ClientAuth::Required(path) => (path, true),
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| TlsError::Content {
            path: path.clone(),
            reason: format!("a certificate in it can't be an authority: {e}"),
        })?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match required {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    builder.build().map(Some).map_err(|e| TlsError::Content {
        path: path.clone(),
        reason: format!("its authorities can't be used: {e}"),
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
        warnings: &mut Vec<String>,
    ) -> Result<(), TlsError> {
        let path = files.certificate.display();
        let content = |reason: String| TlsError::Content {
            path: files.certificate.clone(),
            reason,
        };
        let leaf = certified
            .cert
            .first()
            .ok_or_else(|| content("holds no certificate".into()))?;
        let (_, leaf) = X509Certificate::from_der(leaf)
            .map_err(|e| content(format!("the first certificate is not X.509: {e}")))?;
        // Certificates are about the calendar: the wall clock is what they go by.
        let validity = leaf.validity();
        let now = x509_parser::time::ASN1Time::now();
        if validity.not_after < now {
            warnings.push(format!(
                "{path}: the certificate expired on {}",
                validity.not_after
            ));
        } else if validity.not_before > now {
            warnings.push(format!(
                "{path}: the certificate is not valid before {}",
                validity.not_before
            ));
        }
        let mut found = false;
        if let Ok(Some(names)) = leaf.subject_alternative_name() {
            for name in &names.value.general_names {
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
                    true => warnings.push(format!(
                        "{path}: another certificate is already used for {name}"
                    )),
                    false => {
                        map.insert(key.into(), Arc::clone(&certified));
                    }
                }
            }
        }
        if !found && self.default.is_some() {
            warnings.push(format!(
                "{path}: the certificate names no host, so it is never used (only the first one is a default)"
            ));
        }
        self.default.get_or_insert(certified);
        Ok(())
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
