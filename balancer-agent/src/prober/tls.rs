//! TLS of checks: the handshake, and in words what is wrong with it.

use super::probe::{Phase, ProbeError, Progress};
use rustls::client::Resumption;
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How the backends of a pool are checked over TLS.
#[derive(Clone, Debug)]
pub struct CheckTls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl CheckTls {
    /// With verification, own certificate and ALPN of `config`. The name is asked for (SNI)
    /// and verified; without one the backend's address is verified.
    ///
    /// Every check makes a whole handshake: a resumed session would not show that the
    /// certificate has expired meanwhile.
    pub fn new(config: &ClientConfig, server_name: Option<ServerName<'static>>) -> Self {
        let mut config = config.clone();
        config.resumption = Resumption::disabled();
        Self {
            config: Arc::new(config),
            server_name,
        }
    }

    /// The name that is asked for, as a host.
    pub(super) fn host(&self) -> Option<String> {
        match self.server_name.as_ref()? {
            ServerName::DnsName(name) => Some(name.as_ref().to_owned()),
            // Of an address, requests name the port as well.
            _ => None,
        }
    }

    pub(super) async fn handshake(
        &self,
        server: IpAddr,
        stream: TcpStream,
        progress: &Progress,
    ) -> Result<TlsStream<TcpStream>, ProbeError> {
        progress.reached(Phase::Handshaking);
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::IpAddress(server.into()),
        };
        TlsConnector::from(Arc::clone(&self.config))
            .connect(name, stream)
            .await
            .map_err(|error| match error.kind() {
                _ if reason(&error).is_some() => failed(&error),
                io::ErrorKind::UnexpectedEof => {
                    ProbeError::Tls("connection closed in the handshake".into())
                }
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                    ProbeError::Tls("connection reset in the handshake".into())
                }
                _ => ProbeError::Tls(error.to_string()),
            })
    }
}

impl PartialEq for CheckTls {
    /// Made from one reading of the files. What was read again may say something else
    /// under the same names, so that a reload has it tried at once.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.server_name == other.server_name
    }
}

impl Eq for CheckTls {}

/// What TLS has to say about an error, if it is one of TLS: in the handshake or, since a
/// server of TLS 1.3 looks at the client's certificate later, after it.
pub(super) fn alert(error: &io::Error) -> Option<ProbeError> {
    reason(error).map(|_| failed(error))
}

fn failed(error: &io::Error) -> ProbeError {
    ProbeError::Tls(reason(error).map_or_else(|| error.to_string(), explain))
}

fn reason(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::AlertReceived(alert) => format!("the server refuses: {alert:?}"),
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS".into(),
        rustls::Error::NoApplicationProtocol => {
            "the server speaks none of the protocols offered (ALPN)".into()
        }
        other => other.to_string(),
    }
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "certificate expired".into(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("certificate expired on {}", date(not_after.as_secs()))
        }
        CertificateError::NotValidYet => "certificate not valid yet".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!(
                "certificate not valid before {}",
                date(not_before.as_secs())
            )
        }
        CertificateError::UnknownIssuer => "certificate of an unknown issuer".into(),
        // Of the same name, but with another key.
        CertificateError::BadSignature => {
            "certificate not signed by the authority that it names".into()
        }
        CertificateError::NotValidForName => "certificate for another name".into(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            match presented.is_empty() {
                true => format!("certificate for no name, not for {expected}"),
                false => format!("certificate for {}, not for {expected}", names(presented)),
            }
        }
        CertificateError::Revoked => "certificate revoked".into(),
        other => format!("certificate not usable: {other}"),
    }
}

/// Names that a message lists; more are only counted.
const NAMES: usize = 3;
/// Longest part of all names, in characters: a server decides what is in them.
const NAMES_LENGTH: usize = 200;

fn names(presented: &[String]) -> String {
    let mut list: Vec<String> = presented
        .iter()
        .take(NAMES)
        .map(|name| plain(name))
        .collect();
    if let more @ 1.. = presented.len().saturating_sub(NAMES) {
        list.push(format!("{more} more"));
    }
    let text = list.join(", ");
    match text.char_indices().nth(NAMES_LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A presented name without the type that webpki puts around it, and on one line.
fn plain(name: &str) -> String {
    let inner = name
        .split_once("(\"")
        .and_then(|(_, rest)| rest.split_once("\")"))
        .map_or(name, |(inner, _)| inner);
    inner.escape_debug().to_string()
}

/// A moment since 1970 as a date and time, UTC.
fn date(seconds: u64) -> String {
    let moment = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds));
    moment.map_or_else(
        || format!("{seconds} s after 1970"),
        |moment| httpdate::HttpDate::from(moment).to_string(),
    )
}
