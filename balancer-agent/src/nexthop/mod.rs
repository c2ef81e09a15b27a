//! Next hops: by which device, hardware address and VLAN tags each server is
//! reached. Read from the kernel's links, neighbours and routes over netlink, and
//! kept up to date by its notifications.
//!
//! - `wire.rs`: messages from and to bytes.
//! - `table.rs`: what is known and what follows from it; plain data.
//! - `socket.rs`, `driver.rs`: the sockets and the loop around them.
//!
//! # Rules
//! - The route is the kernel's own answer for each destination, policy routing
//!   included, except for rules that look at the source or the incoming device:
//!   those would need the packet.
//! - A neighbour's hardware address holds until the kernel says that resolution
//!   has failed. One that is merely thrown out of the neighbour table keeps its
//!   address and is resolved anew.
//! - Traffic in XDP does not keep neighbours fresh, so the kernel is asked to
//!   confirm those that it does not call reachable, each once in 30 s, and their
//!   routes with them (redirects and route exceptions are not announced).
//! - A route over a VLAN device gives the device below and the tags. Over any other
//!   device frames keep their tags, unless that device also carries VLAN devices:
//!   then they go untagged.
//! - A server on this host has no hop.
//!
//! The kernel's neighbour table must have room for all servers that are on a
//! link with this host (`net.ipv4.neigh.default.gc_thresh3`, 1,024 by default).

mod driver;
mod socket;
mod table;
mod wire;

pub use driver::Watcher;

use common::tables::Hop;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Everything known at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHops {
    /// False until the first full read: nothing is known yet.
    pub ready: bool,
    /// Of every destination that the kernel has been asked about.
    pub hops: BTreeMap<IpAddr, Result<Hop, HopProblem>>,
    /// The network namespace's devices, by interface index.
    pub links: BTreeMap<u32, Link>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: Arc<str>,
    /// Its hardware address; zero when it is not Ethernet.
    pub mac: [u8; 6],
    /// Switched on and with a carrier.
    pub up: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// One end of a veth pair.
    pub veth: bool,
}

/// Why a destination has no next hop. None of these is for ever: a change of the
/// kernel's tables brings a new answer by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HopProblem {
    /// The kernel has no route.
    #[error("no route: {}", errno_text(*errno))]
    NoRoute {
        /// Error number of the answer; 0 when the answer was not understood.
        errno: i32,
    },
    /// The address is one of this host's own.
    #[error("the address is this host's own")]
    Local,
    /// A route that does not lead to one host.
    #[error("the route is {}", route_text(*kind))]
    NotUnicast {
        /// `rtm_type`, see rtnetlink(7).
        kind: u8,
    },
    /// The route puts packets into a tunnel.
    #[error("the route encapsulates")]
    Encapsulated,
    /// The route's device is not known (any more).
    #[error("device {ifindex} is not in this network namespace")]
    LinkUnknown {
        /// Its interface index.
        ifindex: u32,
    },
    /// The device, or one below it, is down or without carrier.
    #[error("{link} is down")]
    LinkDown {
        /// Its name.
        link: Arc<str>,
    },
    /// The device has no Ethernet address.
    #[error("{link} is not an Ethernet device")]
    NotEthernet {
        /// Its name.
        link: Arc<str>,
    },
    /// More than two tags, or a service tag (802.1ad) that is not the outer of two.
    #[error("the VLAN tags of {link} are more than the kernel program can write")]
    UnsupportedTags {
        /// Name of the route's device.
        link: Arc<str>,
    },
    /// The neighbour's hardware address is not known yet. Whoever has a hop from
    /// before may go on using it.
    #[error("{neighbour} on {link} is being resolved")]
    Resolving {
        /// The server or its gateway.
        neighbour: IpAddr,
        /// Name of the route's device.
        link: Arc<str>,
    },
    /// The neighbour did not answer; it is asked again from time to time.
    #[error("{neighbour} does not answer on {link}")]
    NeighbourFailed {
        /// The server or its gateway.
        neighbour: IpAddr,
        /// Name of the route's device.
        link: Arc<str>,
    },
}

/// Why the watcher can't work. All are this host's fault; starting anew is safe.
#[derive(Debug, thiserror::Error)]
pub enum NextHopError {
    /// A socket could not be made.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// A socket broke.
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    /// The kernel refused a question.
    #[error("netlink: the kernel refused to list {what}: {source}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The tables change faster than they can be read.
    #[error("netlink: the list of {what} changed during each of {tries} reads")]
    Restless {
        /// What was asked for.
        what: &'static str,
        /// Attempts.
        tries: u32,
    },
}

/// Says which destinations matter; the watcher ends when it is dropped.
#[derive(Debug)]
pub struct NextHopHandle {
    destinations: watch::Sender<Arc<[IpAddr]>>,
}

impl NextHopHandle {
    /// Makes these the destinations; repeated ones do no harm.
    pub fn set_destinations(&self, destinations: Vec<IpAddr>) {
        self.destinations.send_replace(destinations.into());
    }
}

fn errno_text(errno: i32) -> String {
    match errno {
        0 => "an answer that was not understood".into(),
        n => io::Error::from_raw_os_error(n).to_string(),
    }
}

fn route_text(kind: u8) -> &'static str {
    match kind {
        libc::RTN_BROADCAST => "a broadcast",
        libc::RTN_ANYCAST => "to an anycast address of this host",
        libc::RTN_MULTICAST => "a multicast",
        libc::RTN_BLACKHOLE => "a black hole",
        libc::RTN_UNREACHABLE => "unreachable",
        libc::RTN_PROHIBIT => "prohibited",
        _ => "of an unknown kind",
    }
}
