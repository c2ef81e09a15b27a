//! The ABI between the kernel program and the agent.
//!
//! Everything that both sides must agree on lives here and nowhere else: the
//! layout of every map value, the hash that places a flow in its bucket, the
//! incremental checksum, and the names of the counters. The crate is `no_std`,
//! depends on nothing of ours, and compiles for BPF and for the host alike.
//!
//! Byte order: an address is the words that a load of the packet's bytes gives
//! ([`Addr`]), a port is [`Be16`]; neither is swapped on the way from packet to
//! map. Everything else is in host order.
#![no_std]

pub mod addr;
pub mod checksum;
pub mod counters;
pub mod flow;
pub mod hash;
pub mod limits;
pub mod tables;

pub use addr::{Addr, Be16};

/// Version of the map layouts in this crate. Raised on every change that a
/// program of an older build could not read; an agent that finds another
/// version pinned refuses to adopt the maps and says so.
pub const ABI_VERSION: u32 = 3;
