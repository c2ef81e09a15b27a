//! Opening a connection: the TCP check, and the first part of the HTTP check.

use super::probe::{ProbeError, is_ours};
use std::io;
use std::net::SocketAddr;
use tokio::net::{TcpSocket, TcpStream};

/// Opens a connection and closes it.
pub(super) async fn check(address: SocketAddr) -> Result<(), ProbeError> {
    connect(address).await.map(drop)
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
