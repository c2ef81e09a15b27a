//! Opening a connection: the TCP check, and the first part of the HTTP check.

use super::Wire;
use super::probe::{ProbeError, Progress, is_ours};
use crate::model::http::ProxyVersion;
use std::io;
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// Opens a connection, makes the handshake of TLS if it is to be, and closes it.
pub(super) async fn check(
    address: SocketAddr,
    wire: &Wire,
    progress: &Progress,
) -> Result<(), ProbeError> {
    let Some(tls) = &wire.tls else {
        return connect(address).await.map(drop);
    };
    let stream = open(address, wire).await?;
    let mut stream = tls.handshake(address.ip(), stream, progress).await?;
    // So that the server does not log a connection that was cut. It has proved what it
    // had to: how it takes the end does not matter.
    let _ = stream.shutdown().await;
    Ok(())
}

/// Opens a connection, and sends what goes before all else.
pub(super) async fn open(address: SocketAddr, wire: &Wire) -> Result<TcpStream, ProbeError> {
    let mut stream = connect(address).await?;
    if let Some(version) = wire.proxy {
        let header = proxy_header(version);
        stream
            .write_all(header)
            .await
            .map_err(ProbeError::Connect)?;
    }
    Ok(stream)
}

/// A PROXY header (proxy-protocol.txt, 2.1 and 2.2) of a connection that is made for
/// nobody: the server goes by the addresses that it sees.
fn proxy_header(version: ProxyVersion) -> &'static [u8] {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n",
        // LOCAL, without addresses.
        ProxyVersion::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

/// Opens a connection that is reset, not shut down, when it is closed: the side
/// that shuts down first keeps the address pair for a minute (TIME_WAIT), and
/// thousands of checks per second would pile these up.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, ProbeError> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(ProbeError::Ours)?;
    socket.set_zero_linger().map_err(ProbeError::Ours)?;
    socket.connect(address).await.map_err(|error| {
        if is_ours(&error) {
            ProbeError::Ours(error)
        } else if error.kind() == io::ErrorKind::ConnectionRefused {
            ProbeError::Refused
        } else {
            ProbeError::Connect(error)
        }
    })
}
