//! What is known of a pool's backends before the first connection: made while a
//! configuration is prepared, so that a certificate that can't be read refuses it.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::model::http::{Ajp, BackendProtocol, BackendTimeouts, BackendTls, ProxyVersion, Verify};
use crate::model::{Misfit, Named, Pool};
use crate::proxy::pem;

/// How the backends of a pool are spoken to.
#[derive(Clone, Debug)]
pub struct Speech {
    /// TLS.
    pub tls: Option<TlsOut>,
    /// Protocol.
    pub protocol: BackendProtocol,
    /// What AJP13 goes by.
    pub ajp: Ajp,
    /// A PROXY header first.
    pub send_proxy: Option<ProxyVersion>,
    /// Times.
    pub timeouts: BackendTimeouts,
    /// Idle connections per thread and backend.
    pub keep_alive: usize,
}

/// TLS to backends.
#[derive(Clone, Debug)]
pub struct TlsOut {
    /// Verification, certificate, ALPN.
    pub config: Arc<ClientConfig>,
    /// Name to ask for and verify.
    pub server_name: Option<ServerName<'static>>,
}

impl Speech {
    /// Whether connections made for one serve the other. Not with TLS: its files may have
    /// been changed.
    pub fn is_same(&self, other: &Self) -> bool {
        let (Self { tls: None, .. }, Self { tls: None, .. }) = (self, other) else {
            return false;
        };
        self.protocol == other.protocol && self.send_proxy == other.send_proxy
    }

    /// Reads what a pool's TLS needs. What is odd but usable is added to `odd`.
    ///
    /// # Errors
    /// All that can't be used.
    pub fn prepare(pool: &Pool, odd: &mut Vec<Misfit>) -> Result<Self, Vec<Misfit>> {
        let http = &pool.http;
        let tls = http.tls.as_ref();
        Ok(Self {
            tls: tls
                .map(|tls| tls_out(&pool.name, tls, http.protocol, odd))
                .transpose()?,
            protocol: http.protocol,
            ajp: http.ajp.clone(),
            send_proxy: http.send_proxy,
            timeouts: http.timeouts,
            keep_alive: http.keep_alive_connections,
        })
    }
}

fn tls_out(
    pool: &Arc<str>,
    tls: &BackendTls,
    protocol: BackendProtocol,
    odd: &mut Vec<Misfit>,
) -> Result<TlsOut, Vec<Misfit>> {
    let of_pool = |what: String, expected: &str| {
        Misfit::new(Named::BackendTls(Arc::clone(pool)), what, expected)
    };
    let mut misfits = Vec::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = verifier(&tls.verify, &provider, of_pool);
    let verifier = verifier.map_err(|misfit| misfits.push(misfit)).ok();
    let own = tls.certificate.as_ref().map(pem::certified_key).transpose();
    let own = own.map_err(|found| misfits.extend(found)).ok().flatten();
    let name = |name: &str| {
        let what = format!("asks for \"{name}\", which is not a server name");
        ServerName::try_from(name.to_owned())
            .map_err(|_| misfits.push(of_pool(what, "a DNS name or an address")))
            .ok()
    };
    let server_name = tls.server_name.as_deref().and_then(name);
    let Some(verifier) = verifier.filter(|_| misfits.is_empty()) else {
        return Err(misfits);
    };
    if let (Some(files), Some(own)) = (&tls.certificate, &own)
        && let Ok(leaf) = pem::leaf(&own.cert)
    {
        odd.extend(pem::validity(files, &leaf));
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            vec![of_pool(
                format!("can't be set up: {error}"),
                "a system that can",
            )]
        })?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
    };
    config.alpn_protocols = match protocol {
        BackendProtocol::Http1 => vec![b"http/1.1".to_vec()],
        BackendProtocol::Http2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        // It has no TLS: configurations that say so are refused.
        BackendProtocol::Ajp => Vec::new(),
    };
    Ok(TlsOut {
        config: Arc::new(config),
        server_name,
    })
}

fn verifier(
    verify: &Verify,
    provider: &Arc<CryptoProvider>,
    of_pool: impl Fn(String, &str) -> Misfit,
) -> Result<Arc<dyn ServerCertVerifier>, Misfit> {
    let (roots, named) = match verify {
        Verify::Off => {
            let algorithms = provider.signature_verification_algorithms;
            return Ok(Arc::new(NoVerifier(algorithms)));
        }
        Verify::System => {
            let roots = system_roots().map_err(|why| {
                let what = format!("has no authorities, and the system's can't be used: {why}");
                of_pool(what, "`authorities`, or certificates in /etc/ssl/certs")
            })?;
            (roots, None)
        }
        Verify::Authorities(path) => {
            let named = Named::BackendAuthorities(path.clone());
            (pem::authorities(named.clone(), path)?, Some(named))
        }
    };
    let builder =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let verifier = builder.build().map_err(|error| {
        let what = format!("has authorities that can't be used: {error}");
        let expected = "the authorities that vouch for backends";
        match named {
            Some(named) => Misfit::new(named, what, expected),
            None => of_pool(what, expected),
        }
    })?;
    Ok(verifier)
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    match (store.is_empty(), found.errors.first()) {
        (false, _) => Ok(store),
        (true, Some(error)) => Err(error.to_string()),
        (true, None) => Err("there are none".into()),
    }
}

/// `verify = "off"`: any certificate does, but the server must hold its key.
#[derive(Debug)]
struct NoVerifier(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
