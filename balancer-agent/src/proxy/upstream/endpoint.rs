//! What is known of a pool's backends before the first connection: made while a
//! configuration is prepared, so that a certificate that can't be read refuses it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::model::Pool;
use crate::model::http::{
    BackendProtocol, BackendTimeouts, BackendTls, CertificateFiles, ProxyVersion, Verify,
};

/// How the backends of a pool are spoken to.
#[derive(Clone, Debug)]
pub struct Speech {
    /// TLS.
    pub tls: Option<TlsOut>,
    /// Protocol.
    pub protocol: BackendProtocol,
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

/// Why TLS to a pool's backends can't be had. The configuration's fault.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A file.
    #[error("pool `{pool}`: {path}: {reason}", path = .path.display())]
    File {
        /// The pool.
        pool: Arc<str>,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system has no authorities.
    #[error("pool `{pool}`: the system's certificate authorities can't be read: {reason}")]
    System {
        /// The pool.
        pool: Arc<str>,
        /// What is wrong.
        reason: String,
    },
    /// Not a name.
    #[error("pool `{pool}`: `{name}` is not a server name")]
    Name {
        /// The pool.
        pool: Arc<str>,
        /// The name.
        name: Box<str>,
    },
    /// rustls refuses.
    #[error("pool `{pool}`: TLS: {error}")]
    Tls {
        /// The pool.
        pool: Arc<str>,
        /// Why.
        error: rustls::Error,
    },
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

    /// Reads what a pool's TLS needs.
    ///
    /// # Errors
    /// [`EndpointError`]
    pub fn prepare(pool: &Pool) -> Result<Self, EndpointError> {
        let http = &pool.http;
        let tls = http.tls.as_ref();
        Ok(Self {
            tls: tls
                .map(|tls| tls_out(&pool.name, tls, http.protocol))
                .transpose()?,
            protocol: http.protocol,
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
) -> Result<TlsOut, EndpointError> {
    let refused = |error| EndpointError::Tls {
        pool: Arc::clone(pool),
        error,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(refused)?;
    let builder = match &tls.verify {
        Verify::Off => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerifier(
                provider.signature_verification_algorithms,
            ))),
        Verify::System => builder.with_root_certificates(system_roots(pool)?),
        Verify::Authorities(path) => builder.with_root_certificates(roots(pool, path)?),
    };
    let mut config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = own_certificate(pool, files)?;
            builder.with_client_auth_cert(chain, key).map_err(refused)?
        }
    };
    config.alpn_protocols = match protocol {
        BackendProtocol::Http1 => vec![b"http/1.1".to_vec()],
        BackendProtocol::Http2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    let name = |name: &str| {
        ServerName::try_from(name.to_owned()).map_err(|_| EndpointError::Name {
            pool: Arc::clone(pool),
            name: name.into(),
        })
    };
    Ok(TlsOut {
        config: Arc::new(config),
        server_name: tls.server_name.as_deref().map(name).transpose()?,
    })
}

fn system_roots(pool: &Arc<str>) -> Result<RootCertStore, EndpointError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let reason = match found.errors.first() {
            Some(error) => error.to_string(),
            None => "there are none".into(),
        };
        return Err(EndpointError::System {
            pool: Arc::clone(pool),
            reason,
        });
    }
    Ok(store)
}

fn roots(pool: &Arc<str>, path: &Path) -> Result<RootCertStore, EndpointError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pool, path)? {
        store
            .add(certificate)
            .map_err(|error| file(pool, path, error))?;
    }
    Ok(store)
}

fn own_certificate(
    pool: &Arc<str>,
    files: &CertificateFiles,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), EndpointError> {
    let chain = certificates(pool, &files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| file(pool, &files.key, error))?;
    Ok((chain, key))
}

fn certificates(
    pool: &Arc<str>,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, EndpointError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| file(pool, path, error))?;
    match found.is_empty() {
        true => Err(file(pool, path, "there is no certificate in it")),
        false => Ok(found),
    }
}

fn file(pool: &Arc<str>, path: &Path, reason: impl ToString) -> EndpointError {
    EndpointError::File {
        pool: Arc::clone(pool),
        path: path.into(),
        reason: reason.to_string(),
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
