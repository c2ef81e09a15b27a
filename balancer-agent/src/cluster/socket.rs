//! The sockets: one address for TCP and UDP, and one for the multicast group.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::net::if_::if_nametoindex;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use super::ClusterError;
use crate::model::cluster::{Cluster, Multicast};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// A burst of datagrams of a whole cluster fits, in bytes.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What a node listens on.
pub(super) struct Sockets {
    pub(super) tcp: TcpListener,
    pub(super) udp: UdpSocket,
    pub(super) multicast: Option<(UdpSocket, SocketAddr)>,
}

impl Sockets {
    pub(super) fn bind(config: &Cluster) -> Result<Self, ClusterError> {
        let address = config.listen;
        let cannot = |protocol| {
            move |error| ClusterError::Listen {
                address,
                protocol,
                error,
            }
        };
        let tcp = tcp(address).map_err(cannot("TCP"))?;
        let udp = udp(address).map_err(cannot("UDP"))?;
        let multicast = config.multicast.as_ref().map(|multicast| {
            group(&udp, multicast).map_err(|error| ClusterError::Multicast {
                group: multicast.group,
                interface: multicast.interface.clone(),
                error,
            })
        });
        Ok(Self {
            tcp,
            multicast: multicast.transpose()?,
            udp,
        })
    }
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // The configuration says that `[::]` is both families.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // Connections of a former process may still be on their way out.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&address.into())?;
    // As far as the system lets it.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    UdpSocket::from_std(socket.into())
}

/// A socket that hears the group. Announcements are sent by `sender`, so that they come
/// from the node's own address.
fn group(sender: &UdpSocket, multicast: &Multicast) -> io::Result<(UdpSocket, SocketAddr)> {
    let group = multicast.group;
    let index = if_nametoindex(multicast.interface.as_str())?;
    let socket = socket(group, Type::DGRAM, Protocol::UDP)?;
    // Several agents of one host may listen to one group.
    socket.set_reuse_address(true)?;
    let sending = socket2::SockRef::from(sender);
    match group.ip() {
        IpAddr::V4(ip) => {
            let interface = InterfaceIndexOrAddress::Index(index);
            socket.join_multicast_v4_n(&ip, &interface)?;
            sending.set_multicast_ttl_v4(1)?;
            set_interface_v4(sender, index)?;
            sending.set_multicast_loop_v4(true)?;
        }
        IpAddr::V6(ip) => {
            socket.join_multicast_v6(&ip, index)?;
            sending.set_multicast_if_v6(index)?;
            sending.set_multicast_hops_v6(1)?;
            sending.set_multicast_loop_v6(true)?;
        }
    }
    // Bound to the group, it hears nothing else.
    let at = match group {
        SocketAddr::V6(mut group) => {
            group.set_scope_id(index);
            SocketAddr::V6(group)
        }
        group => group,
    };
    socket.bind(&at.into())?;
    Ok((UdpSocket::from_std(socket.into())?, at))
}

/// The interface that multicast goes out on, by its index (ip(7), `IP_MULTICAST_IF`).
fn set_interface_v4(socket: &UdpSocket, index: u32) -> io::Result<()> {
    let request = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: 0 },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    // SAFETY: the pointer and the length are of one whole `ip_mreqn`, which the kernel
    // only reads during the call, and the descriptor is open.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MULTICAST_IF,
            (&raw const request).cast(),
            size_of_val(&request) as libc::socklen_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
