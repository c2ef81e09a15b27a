//! A fresh connection to a backend: TCP, the PROXY header, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::AlertDescription;
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::SendError;
use super::endpoint::Speech;
use super::stream::Stream;
use crate::model::http::{BackendProtocol, ProxyVersion};
use crate::proxy::timer::within;
use crate::proxy::types::canonical;

/// A fresh connection, and what is spoken on it.
pub struct Connected {
    /// The connection.
    pub stream: Stream,
    /// HTTP/2.
    pub http2: bool,
}

/// Who speaks to whom, for the PROXY header.
#[derive(Clone, Copy, Debug)]
pub struct Parties {
    /// The client.
    pub client: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
}

/// Connects.
///
/// # Errors
/// [`SendError::Connect`], [`SendError::Tls`], [`SendError::ConnectTimeout`],
/// [`SendError::Local`]
pub async fn connect(
    address: SocketAddr,
    speech: &Speech,
    parties: Parties,
) -> Result<Connected, SendError> {
    within(speech.timeouts.connect, open(address, speech, parties))
        .await
        .unwrap_or(Err(SendError::ConnectTimeout))
}

/// Why there are no WebSockets.
const HTTP2_ALONE: &str = "no CONNECT with a protocol, no HTTP/1.1 by TLS";

/// Connects to a backend of HTTP/2, but for HTTP/1.1, which only TLS can agree on.
///
/// # Errors
/// As [`connect`]; [`SendError::NoUpgrade`] when the backend speaks HTTP/2 alone.
pub async fn connect_http1(
    address: SocketAddr,
    speech: &Speech,
    parties: Parties,
) -> Result<Stream, SendError> {
    let mut speech = speech.clone();
    speech.protocol = BackendProtocol::Http1;
    let tls = speech
        .tls
        .as_mut()
        .ok_or(SendError::NoUpgrade(HTTP2_ALONE))?;
    // Once per upgrade, and most of it is shared.
    Arc::make_mut(&mut tls.config).alpn_protocols = vec![b"http/1.1".to_vec()];
    match connect(address, &speech, parties).await {
        Ok(connected) => Ok(connected.stream),
        Err(SendError::Tls(error)) if is_no_protocol(&error) => {
            Err(SendError::NoUpgrade(HTTP2_ALONE))
        }
        Err(error) => Err(error),
    }
}

/// Whether the server has said that it speaks nothing of what it was offered (RFC 7301, 3.2).
fn is_no_protocol(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(
        error,
        Some(rustls::Error::AlertReceived(
            AlertDescription::NoApplicationProtocol
        ))
    )
}

async fn open(
    address: SocketAddr,
    speech: &Speech,
    parties: Parties,
) -> Result<Connected, SendError> {
    let mut socket = TcpStream::connect(address).await.map_err(told)?;
    // Heads and small bodies go out in one piece anyway.
    socket.set_nodelay(true).map_err(SendError::Connect)?;
    if let Some(version) = speech.send_proxy {
        let header = proxy_header(version, parties);
        socket
            .write_all(&header)
            .await
            .map_err(SendError::Connect)?;
    }
    let Some(tls) = &speech.tls else {
        return Ok(Connected {
            stream: Stream::Plain(socket),
            http2: speech.protocol == BackendProtocol::Http2,
        });
    };
    let name = match &tls.server_name {
        Some(name) => name.clone(),
        None => ServerName::IpAddress(address.ip().into()),
    };
    let stream = TlsConnector::from(Arc::clone(&tls.config))
        .connect(name, socket)
        .await
        .map_err(SendError::Tls)?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Connected {
        stream: Stream::Tls(Box::new(stream)),
        http2,
    })
}

fn told(error: io::Error) -> SendError {
    match error.raw_os_error() {
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EADDRNOTAVAIL
            | libc::EACCES
            | libc::EPERM,
        ) => SendError::Local(error),
        _ => SendError::Connect(error),
    }
}

/// The header of the PROXY protocol, both addresses of one family.
fn proxy_header(version: ProxyVersion, parties: Parties) -> Vec<u8> {
    let (client, local) = match (canonical(parties.client), canonical(parties.local)) {
        (client, local) if client.is_ipv4() == local.is_ipv4() => (client, local),
        (client, local) => (mapped(client), mapped(local)),
    };
    match version {
        ProxyVersion::V1 => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            format!(
                "PROXY {family} {} {} {} {}\r\n",
                client.ip(),
                local.ip(),
                client.port(),
                local.port()
            )
            .into_bytes()
        }
        ProxyVersion::V2 => {
            use ppp::v2::{Builder, Command, Protocol, Version};
            Builder::with_addresses(
                Version::Two | Command::Proxy,
                Protocol::Stream,
                (client, local),
            )
            .build()
            // It can only fail for want of room that addresses do not need.
            .unwrap_or_default()
        }
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_headers() {
        let parties = |client: &str, local: &str| Parties {
            client: client.parse().unwrap(),
            local: local.parse().unwrap(),
        };
        let v1 = |p| String::from_utf8(proxy_header(ProxyVersion::V1, p)).unwrap();
        assert_eq!(
            v1(parties("192.0.2.1:5", "198.51.100.2:80")),
            "PROXY TCP4 192.0.2.1 198.51.100.2 5 80\r\n"
        );
        assert_eq!(
            v1(parties("[::ffff:192.0.2.1]:5", "198.51.100.2:80")),
            "PROXY TCP4 192.0.2.1 198.51.100.2 5 80\r\n"
        );
        assert_eq!(
            v1(parties("192.0.2.1:5", "[2001:db8::1]:80")),
            "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 5 80\r\n"
        );
        let v2 = proxy_header(ProxyVersion::V2, parties("192.0.2.1:5", "198.51.100.2:80"));
        let read = ppp::v2::Header::try_from(&v2[..]).unwrap();
        assert_eq!(
            read.addresses,
            ppp::v2::IPv4::new([192, 0, 2, 1], [198, 51, 100, 2], 5, 80).into()
        );
    }
}
