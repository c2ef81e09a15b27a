//! The two netlink sockets: one that listens, one that asks.
//!
//! The kernel answers a question while it is sent, so asking does not wait for
//! anybody and needs no asynchronous socket.

use super::table::{NeighbourKey, Route};
use super::wire::{self, Message, NLM_F_DUMP_INTR, NLMSG_DONE};
use super::{HopProblem, NextHopError};
use rtnetlink::MulticastGroup as Group;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const GROUPS: [Group; 9] = [
    Group::Link,
    Group::Neigh,
    Group::Ipv4Ifaddr,
    Group::Ipv4Route,
    Group::Ipv4Rule,
    Group::Ipv6Ifaddr,
    Group::Ipv6Route,
    Group::Ipv6Rule,
    Group::Nexthop,
];
/// Larger than any datagram that the kernel builds.
const DATAGRAM: usize = 256 * 1024;
/// Room for bursts of notifications, in bytes.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// Questions per datagram: their answers must fit into the receive buffer.
const BATCH: usize = 32;
/// Attempts to read a list in one piece.
const TRIES: u32 = 10;
const ANSWER: Duration = Duration::from_secs(1);

/// Hears of changes.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: AsyncFd<Netlink>,
    buffer: Vec<u8>,
}

/// What a monitor heard.
pub(super) enum Heard {
    Messages(Vec<Message>),
    /// Messages were lost: everything has to be read anew.
    Overrun,
}

impl Monitor {
    pub fn open() -> io::Result<Self> {
        let socket = Netlink::open()?;
        for group in GROUPS {
            socket.0.add_membership(group as u32)?;
        }
        socket.0.set_non_blocking(true)?;
        // SAFETY: the socket owns its one descriptor and closes it when it is dropped,
        // which is after the registration ends.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Waits for the next datagram. Safe to cancel.
    pub async fn hear(&mut self) -> io::Result<Heard> {
        loop {
            let mut guard = self.socket.readable().await?;
            self.buffer.clear();
            let buffer = &mut self.buffer;
            match guard.try_io(|socket| socket.get_ref().receive(buffer)) {
                Err(_not_ready) => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Heard::Overrun);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(())) => {
                    let messages = wire::messages(&self.buffer).map(|m| m.decode());
                    return Ok(Heard::Messages(messages.collect()));
                }
            }
        }
    }
}

/// Asks.
#[derive(Debug)]
pub(super) struct Asker {
    socket: Netlink,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Asker {
    pub fn open() -> io::Result<Self> {
        let socket = Netlink::open()?;
        socket.0.connect(&SocketAddr::new(0, 0))?;
        // An answer that does not come would be a bug of the kernel or ours; it
        // must not stop the agent.
        socket2::SockRef::from(&socket).set_read_timeout(Some(ANSWER))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// All links and neighbours.
    pub fn read_all(&mut self) -> Result<Vec<Message>, NextHopError> {
        let mut all = self.dump("links", libc::RTM_GETLINK)?;
        all.extend(self.dump("neighbours", libc::RTM_GETNEIGH)?);
        Ok(all)
    }

    /// The routes that packets to these destinations take.
    pub fn routes(
        &mut self,
        destinations: &[IpAddr],
    ) -> io::Result<Vec<(IpAddr, Result<Route, HopProblem>)>> {
        let mut routes = Vec::with_capacity(destinations.len());
        self.batch(destinations, wire::route_request, |ip, answer| {
            routes.push((ip, answer.route()));
        })?;
        Ok(routes)
    }

    /// Has the kernel resolve or confirm these neighbours; returns the last error,
    /// and how many were refused.
    pub fn resolve(&mut self, neighbours: &[NeighbourKey]) -> io::Result<Option<(io::Error, u32)>> {
        let mut refused: Option<(io::Error, u32)> = None;
        self.batch(neighbours, wire::use_request, |_, answer| {
            if let Some(code) = answer.error().filter(|code| *code != 0) {
                let count = refused.as_ref().map_or(0, |r| r.1);
                refused = Some((io::Error::from_raw_os_error(code), count + 1));
            }
        })?;
        Ok(refused)
    }

    /// Sends one request per item and hands each its one answer.
    fn batch<T: Copy>(
        &mut self,
        items: &[T],
        request: impl Fn(&mut Vec<u8>, u32, T),
        mut answered: impl FnMut(T, wire::Raw<'_>),
    ) -> io::Result<()> {
        for items in items.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            self.sequence = self.sequence.wrapping_add(items.len() as u32);
            let mut bytes = Vec::new();
            for (sequence, item) in (0..).map(|i| first.wrapping_add(i)).zip(items) {
                request(&mut bytes, sequence, *item);
            }
            self.socket.0.send(&bytes, 0)?;
            let mut missing = items.len();
            while missing > 0 {
                self.receive()?;
                for answer in wire::messages(&self.buffer) {
                    let index = answer.sequence.wrapping_sub(first) as usize;
                    if let Some(item) = items.get(index) {
                        answered(*item, answer);
                        missing = missing.saturating_sub(1);
                    }
                }
            }
        }
        Ok(())
    }

    fn dump(&mut self, what: &'static str, kind: u16) -> Result<Vec<Message>, NextHopError> {
        for _ in 0..TRIES {
            self.sequence = self.sequence.wrapping_add(1);
            self.socket
                .0
                .send(&wire::dump_request(self.sequence, kind), 0)?;
            let mut found = Vec::new();
            let mut torn = false;
            let mut done = false;
            while !done {
                self.receive()?;
                for message in wire::messages(&self.buffer) {
                    if message.sequence != self.sequence {
                        continue;
                    }
                    torn |= message.flags & NLM_F_DUMP_INTR != 0;
                    if let Some(code) = message.error().filter(|code| *code != 0) {
                        let source = io::Error::from_raw_os_error(code);
                        return Err(NextHopError::Refused { what, source });
                    }
                    if message.kind == NLMSG_DONE {
                        done = true;
                    } else {
                        found.push(message.decode());
                    }
                }
            }
            if !torn {
                return Ok(found);
            }
        }
        Err(NextHopError::Restless { what, tries: TRIES })
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.receive(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// A socket that lends its descriptor.
#[derive(Debug)]
struct Netlink(Socket);

impl Netlink {
    /// Bound, in the calling thread's network namespace.
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        let socket = Self(socket);
        socket.grow();
        Ok(socket)
    }

    /// Makes the receive buffer large: beyond the system's limit where that is
    /// allowed, up to it otherwise.
    fn grow(&self) {
        let size = RECEIVE_BUFFER;
        // SAFETY: the option takes a C int, of which pointer and size are given; the
        // socket is open while it is borrowed.
        let forced = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if forced != 0 {
            // A small buffer only means more full reads.
            let _ = self.0.set_rx_buf_sz(size);
        }
    }

    /// One datagram into an empty buffer.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.0.recv(buffer, 0).map(drop)
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
