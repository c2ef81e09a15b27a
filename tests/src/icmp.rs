//! What a client sees and says beside TCP: echo requests, and UDP with whole control
//! over the datagrams.

use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// Sends an echo request with `data` and waits at most `patience` for its answer.
/// Returns whether one came from that address with the same data.
#[track_caller]
pub fn ping(ns: &Netns, target: IpAddr, data: &[u8], patience: Duration) -> bool {
    ns.enter(|| {
        let (domain, protocol, request, reply) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket");
        // A connected raw socket hears its peer only.
        let peer = SocketAddr::new(target, 0);
        socket.connect(&peer.into()).expect("a route");
        let mut message = vec![request, 0, 0, 0, 0x12, 0x34, 0, 1];
        message.extend_from_slice(data);
        if target.is_ipv4() {
            let sum = internet_checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        socket.send(&message).expect("send an echo request");
        let begin = Instant::now();
        let mut buffer = vec![0; 64 * 1024];
        while let Some(left) = patience
            .checked_sub(begin.elapsed())
            .filter(|d| !d.is_zero())
        {
            socket.set_read_timeout(Some(left)).expect("a timeout");
            let Ok(length) = (&socket).read(&mut buffer) else {
                return false;
            };
            let header = if target.is_ipv4() {
                usize::from(buffer[0] & 15) * 4
            } else {
                0
            };
            let Some(answer) = buffer[..length].get(header..) else {
                continue;
            };
            if answer.len() == message.len() && answer[0] == reply && answer[4..] == message[4..] {
                return true;
            }
        }
        false
    })
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends one datagram from a connected socket and waits at most `patience` for an
/// answer, which can only come from the target.
///
/// # Errors
/// What the socket said; `ConnectionRefused` is an ICMP port unreachable.
pub fn exchange(
    ns: &Netns,
    target: SocketAddr,
    datagram: &[u8],
    patience: Duration,
) -> io::Result<Vec<u8>> {
    ns.enter(|| {
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(datagram)?;
        let mut buffer = vec![0; 64 * 1024];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })
}

/// The ICMP errors that reach a namespace, with the address that they come from: an
/// open ear, to be made before what causes them.
pub struct Errors {
    socket: Socket,
    v6: bool,
}

impl Errors {
    /// Listens for errors of one address family.
    #[track_caller]
    pub fn listen(ns: &Netns, v6: bool) -> Self {
        let socket = ns.enter(|| {
            let (domain, protocol) = match v6 {
                false => (Domain::IPV4, Protocol::ICMPV4),
                true => (Domain::IPV6, Protocol::ICMPV6),
            };
            Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket")
        });
        Self { socket, v6 }
    }

    /// The next error's source, type and code, if one comes within `patience`.
    pub fn next(&self, patience: Duration) -> Option<(IpAddr, u8, u8)> {
        let begin = Instant::now();
        let mut buffer = [MaybeUninit::uninit(); 2048];
        loop {
            let left = patience.checked_sub(begin.elapsed())?;
            let left = left.max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).ok()?;
            let (length, from) = self.socket.recv_from(&mut buffer).ok()?;
            // SAFETY: the kernel has filled the first `length` bytes.
            let bytes: Vec<u8> = buffer[..length]
                .iter()
                .map(|byte| unsafe { byte.assume_init() })
                .collect();
            let header = match self.v6 {
                true => 0,
                false => usize::from(*bytes.first()? & 15) * 4,
            };
            let (kind, code) = (*bytes.get(header)?, *bytes.get(header + 1)?);
            let is_error = match self.v6 {
                true => kind < 128,
                false => matches!(kind, 3 | 4 | 5 | 11 | 12),
            };
            if is_error {
                return Some((from.as_socket()?.ip(), kind, code));
            }
        }
    }
}
