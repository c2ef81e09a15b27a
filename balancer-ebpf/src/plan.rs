//! What a benchmark tells the wrapper programs: which packet to make, for which
//! flow next. Shared between the benchmark object and its loader; the balancer
//! itself knows nothing of it.

use common::{Addr, Be16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the map that holds one [`Plan`].
pub const PLAN: &str = "PLAN";
/// Name of the map that holds the program under test, at index 0.
pub const TARGET: &str = "TARGET";
/// Name of the map that counts packets which a floor did not find: one `u64`.
pub const MISSES: &str = "MISSES";
/// Name of the map that counts what reached the sink: one [`Sunk`].
pub const SUNK: &str = "SUNK";
/// Maps of the floors that look a flow up.
pub const LRU: [&str; 2] = ["LRU4", "LRU6"];
/// Maps of the floors that insert a flow.
pub const LRU_NEW: [&str; 2] = ["LRU_NEW4", "LRU_NEW6"];

/// Flows that share a client address: each has a port of its own.
pub const PORTS: u64 = 256;
/// Port of an address' first flow: among those that clients take.
pub const FIRST_PORT: u16 = 40_000;

/// The packet to restore, and the flows to walk over.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Plan {
    /// The flow that the next packet belongs to.
    pub next: u64,
    /// From one packet's flow to the next one's: odd, so that all are visited.
    pub step: u64,
    /// Number of flows less one; the number is a power of two.
    pub mask: u64,
    /// Address of flow 0's client; the last four bytes count up.
    pub client: Addr,
    /// Address of the other end.
    pub peer: Addr,
    /// Port of the other end.
    pub port: Be16,
    /// IPv4 header checksum to restore.
    pub ip_check: u16,
    /// TCP checksum to restore.
    pub l4_check: u16,
    /// TTL or hop limit to restore, and zero.
    pub ttl: [u8; 2],
    /// Destination and source hardware address to restore.
    pub macs: [u8; 12],
    /// Destination port of packets that have been translated.
    pub sink_port: Be16,
    /// Interface that `through` sends everything out of.
    pub out: u16,
}

/// What reached the sink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sunk {
    /// Packets to [`Plan::sink_port`].
    pub translated: u64,
    /// All others.
    pub strange: u64,
}

impl Plan {
    /// The client of a flow.
    #[inline(always)]
    pub fn client_of(&self, flow: u64) -> (Addr, Be16) {
        let [high, low] = self.client.0;
        let octets = low.to_be() as u32;
        let low = (low.to_be() & 0xffff_ffff_0000_0000)
            | octets.wrapping_add((flow / PORTS) as u32) as u64;
        let port = FIRST_PORT + (flow % PORTS) as u16;
        (Addr([high, low.to_be()]), Be16::new(port))
    }
}

const _: () = assert!(size_of::<Plan>() == 80);
