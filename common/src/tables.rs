//! The values of the kernel tables that the agent writes.
//!
//! All of them are memory-mappable arrays: the agent changes one field with one
//! store and no system call, and the program reads them with no helper call.
//! Fields that change while packets flow are single words (`state`, `ring`);
//! everything else is written before an index or a ring first names the slot.

use crate::counters::{Reason, Traffic};
use crate::limits::{self, INDEX_BUCKET_ENTRIES, RING_CHUNK_SLOTS};
use crate::{Addr, Be16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Names of the maps, shared by program, agent and tests.
pub mod names {
    /// `Array<Header>`, one entry.
    pub const HEADER: &str = "HEADER";
    /// `Array<Forwarding>`, one entry: a single lookup gives the program all of it.
    pub const FORWARDING: &str = "FORWARDING";
    /// `Array<SnatPort>`: address slot times 65,536 plus port.
    pub const SNAT_PORTS: &str = "SNAT_PORTS";
    /// `Array<Bucket<Flow4>>`: established IPv4 flows.
    pub const FLOWS4: &str = "FLOWS4";
    /// `Array<Bucket<Flow6>>`: established IPv6 flows.
    pub const FLOWS6: &str = "FLOWS6";
    /// `Array<Bucket<Flow6>>`: half-open flows.
    pub const HALF_OPEN: &str = "HALF_OPEN";
    /// `Array<Tags>`, beside the buckets of `FLOWS4`.
    pub const TAGS4: &str = "TAGS4";
    /// `Array<Tags>`, beside the buckets of `FLOWS6`.
    pub const TAGS6: &str = "TAGS6";
    /// `Array<Tags>`, beside the buckets of `HALF_OPEN`.
    pub const TAGS_HALF_OPEN: &str = "TAGS_HALF_OPEN";
    /// `Array<u64>`: for each bucket of `HALF_OPEN` a byte, [`super::HANDS_IN_WORD`] to a
    /// word, whose turn it is to give way. The program's own: not pinned.
    pub const HANDS: &str = "HANDS";
    /// `LruHash<FragmentKey, u32>`: ports of fragmented datagrams.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// `Array<Counters>`, one entry for each CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// `RingBuf` of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";

    /// All maps that are pinned and outlive the agent.
    pub const PINNED: &[&str] = &[
        HEADER,
        FORWARDING,
        SNAT_PORTS,
        FLOWS4,
        FLOWS6,
        HALF_OPEN,
        TAGS4,
        TAGS6,
        TAGS_HALF_OPEN,
        FRAGMENTS,
        COUNTERS,
        EVENTS,
    ];
    /// The XDP program.
    pub const PROGRAM: &str = "balancer";
    /// The read-only global that holds [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
}

/// Hands in a word of `HANDS`: small enough together to stay in a near cache.
pub const HANDS_IN_WORD: u32 = 8;

/// Everything that the agent writes and the program reads at fixed sizes: the value
/// of one map, so that a packet finds all of it by one lookup and additions.
#[repr(C, align(64))]
pub struct Forwarding {
    /// By interface index modulo the number of slots.
    pub devices: [Device; limits::DEVICES as usize],
    /// By slot.
    pub snat_addresses: [SnatAddress; limits::SNAT_ADDRESSES as usize],
    /// Which buckets of `frontend_index` have entries, a bit for each: small enough to
    /// stay in the first cache, where the index is not. Most packets that ask it are
    /// somebody else's.
    pub frontend_used: [u64; limits::FRONTEND_INDEX_BUCKETS as usize / 64],
    /// Likewise of `endpoint_index`.
    pub endpoint_used: [u64; limits::ENDPOINT_INDEX_BUCKETS as usize / 64],
    /// Address, port and protocol to frontend slot.
    pub frontend_index: [IndexBucket; limits::FRONTEND_INDEX_BUCKETS as usize],
    /// By slot.
    pub frontends: [Frontend; limits::FRONTENDS as usize],
    /// The round-robin position of each frontend.
    pub cursors: [Cursor; limits::FRONTENDS as usize],
    /// All rings.
    pub rings: [RingChunk; limits::RING_CHUNKS as usize],
    /// By slot.
    pub backends: [Backend; limits::BACKENDS as usize],
    /// Address, port and protocol to endpoint slot.
    pub endpoint_index: [IndexBucket; limits::ENDPOINT_INDEX_BUCKETS as usize],
    /// By slot.
    pub endpoints: [Endpoint; limits::ENDPOINTS as usize],
}

/// What one CPU has counted: written by that CPU alone, without atomics. An array
/// with an entry for each CPU, unlike a per-CPU array, takes one lookup for all of it,
/// and can be read from mapped memory.
#[repr(C, align(64))]
pub struct Counters {
    /// By [`Reason`].
    pub reasons: [u64; Reason::ALL.len().next_multiple_of(8)],
    /// By frontend slot.
    pub frontends: [Traffic; limits::FRONTENDS as usize],
    /// Nothing. A processor takes a load for one of what was just stored when both lie
    /// at the same place of their pages: so the first slots of the two tables do not.
    pub apart: [u64; 256],
    /// By backend slot.
    pub backends: [Traffic; limits::BACKENDS as usize],
}

/// What the agent tells the program when it loads it: constants to the verifier.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Settings {
    /// Secret seed of every hash; the same for all programs that share the maps.
    pub seed: u64,
    /// Buckets of `FLOWS4` less one.
    pub flow4_mask: u32,
    /// Buckets of `FLOWS6` less one.
    pub flow6_mask: u32,
    /// Buckets of `HALF_OPEN` less one.
    pub half_open_mask: u32,
    /// Zero.
    pub reserved: u32,
}

/// Describes the pinned maps to the next agent.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Header {
    /// [`crate::ABI_VERSION`] of the agent that made the maps.
    pub abi_version: u32,
    /// One more than the highest chunk of `rings` that a ring was ever written to. Only
    /// an agent reads it: the chunks do not tell, as a ring may be all zeros.
    pub ring_end: u32,
    /// The settings that the maps were sized and seeded with.
    pub settings: Settings,
    /// Cookie of the network namespace that the maps serve.
    pub netns_cookie: u64,
}

/// What happens to a new flow when no backend is usable.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unavailable {
    /// TCP: RST; UDP: ICMP port unreachable.
    #[default]
    Reset = 0,
    /// Dropped in silence.
    Drop = 1,
    /// Left to the host's own stack.
    Pass = 2,
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flags {
    /// The slot is in use.
    pub const PRESENT: u32 = 1;
    /// Removed from the configuration: flows that exist go on, new packets pass
    /// to the stack as if the address were not balanced.
    pub const CLOSING: u32 = 2;
    /// A backend of its is this host itself ([`super::state::LOCAL`]): what belongs to no
    /// flow may belong to a connection of the host's own stack.
    pub const LOCAL: u32 = 4;
}

/// One frontend.
#[repr(C, align(64))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Frontend {
    /// Address that clients connect to.
    pub addr: Addr,
    /// Port that clients connect to; 0 with protocol ICMP (1) for an entry that
    /// only says that echo to this address is answered.
    pub port: Be16,
    /// IP protocol number: 6 TCP, 17 UDP, 1 for echo (both families).
    pub proto: u8,
    /// [`Unavailable`] as a number.
    pub unavailable: u8,
    /// [`frontend_flags`]; one store.
    pub flags: u32,
    /// [`RingRef`]; one store swaps the whole ring.
    pub ring: u64,
    /// `checksum::sum_endpoint(addr, port)`.
    pub sum_endpoint: u16,
    /// `checksum::fold(checksum::sum_addr(addr))`.
    pub sum_addr: u16,
    /// How many of `snat` hold; 0 leaves the client's address in place.
    pub snat_count: u32,
    /// Slots of snat addresses.
    pub snat: [u8; 8],
    /// The agent's identity of the frontend: a hash of its name.
    pub id: u64,
    /// Zero.
    pub reserved: u64,
}

/// Where a ring lies: first chunk and number of slots, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingRef {
    /// First [`RingChunk`] of the ring.
    pub chunk: u32,
    /// Slots in the ring; 0 when the pool has no usable backend.
    pub len: u32,
}

impl RingRef {
    /// As one word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.chunk as u64 | (self.len as u64) << 32
    }

    /// From one word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            chunk: word as u32,
            len: (word >> 32) as u32,
        }
    }

    /// The slot at a position: its remainder. `len` must not be 0. A division of 32 bits
    /// is the quicker by tens of nanoseconds, and good for four thousand million flows.
    #[inline(always)]
    pub const fn at(self, position: u64) -> u32 {
        if position >> 32 == 0 {
            position as u32 % self.len
        } else {
            (position % self.len as u64) as u32
        }
    }

    /// Chunks that a ring of `len` slots takes.
    #[inline(always)]
    pub const fn chunks(len: u32) -> u32 {
        len.div_ceil(RING_CHUNK_SLOTS)
    }
}

/// Sixteen consecutive slots of a ring: backend slot numbers.
#[repr(C, align(64))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RingChunk(pub [u32; RING_CHUNK_SLOTS as usize]);

/// A counter that shares its cache line with nothing.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cursor {
    /// The position; taken modulo the ring's length.
    pub position: u64,
    /// Zero.
    pub reserved: [u64; 7],
}

/// Bits of [`Backend::state`].
pub mod state {
    /// The slot is in use.
    pub const PRESENT: u32 = 1 << 0;
    /// New flows may be steered here. The one bit that takes a server out.
    pub const USABLE: u32 = 1 << 1;
    /// Flows that exist are cut (activation `stopped`).
    pub const STOPPED: u32 = 1 << 2;
    /// `hops[HOP_SLOT]` can be used.
    pub const HOP_VALID: u32 = 1 << 3;
    /// Which of the two hops holds.
    pub const HOP_SLOT: u32 = 1 << 4;
    /// Passive signs are wanted as events.
    pub const WATCHED: u32 = 1 << 5;
    /// That hop sends an untagged frame without a tag, as most do.
    pub const HOP_PLAIN: u32 = 1 << 6;
    /// The backend is this host itself: its packets are left to the stack as they came,
    /// and no flow is kept, as the stack knows its connections.
    pub const LOCAL: u32 = 1 << 7;
    /// First bit of the slot's generation (8 bits).
    pub const GENERATION_SHIFT: u32 = 24;
}

/// [`Hop::vlan_count`] that leaves the frame's tags as they came.
pub const VLAN_KEEP: u8 = 0xff;

/// How a frame reaches its next hop.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Hop {
    /// Interface to send on.
    pub ifindex: u32,
    /// VLAN tags to send with: 0, 1, 2 or [`VLAN_KEEP`].
    pub vlan_count: u8,
    /// 1 when the outer of two tags is 802.1ad.
    pub vlan_outer_ad: u8,
    /// Zero.
    pub reserved: u16,
    /// Tag control information, outer first.
    pub tci: [Be16; 2],
    /// Destination and source address in the order of the Ethernet header.
    pub macs: [u8; 12],
}

impl Hop {
    /// The bits of [`Backend::state`] that say that there is this hop.
    pub const fn bits(&self) -> u32 {
        match self.vlan_count {
            0 | VLAN_KEEP => state::HOP_VALID | state::HOP_PLAIN,
            _ => state::HOP_VALID,
        }
    }
}

/// One backend.
#[repr(C, align(128))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Backend {
    /// Address of the server.
    pub addr: Addr,
    /// Port of the server.
    pub port: Be16,
    /// IP protocol number: 6 TCP, 17 UDP.
    pub proto: u8,
    /// Zero.
    pub reserved0: u8,
    /// [`state`]; one store.
    pub state: u32,
    /// `checksum::sum_endpoint(addr, port)`.
    pub sum_endpoint: u16,
    /// `checksum::fold(checksum::sum_addr(addr))`.
    pub sum_addr: u16,
    /// Slot of the endpoint with this address, port and protocol.
    pub endpoint: u16,
    /// Zero.
    pub reserved1: u16,
    /// The agent's identity of the backend: a hash of the pool's and its name.
    pub id: u64,
    /// Two hops, so that one store of `state` changes from one to the other.
    pub hops: [Hop; 2],
    /// Zero.
    pub reserved2: [u64; 5],
}

/// An address, port and protocol that replies come from. Several backends (of
/// several pools) can share one.
#[repr(C, align(32))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Endpoint {
    /// Address of the server.
    pub addr: Addr,
    /// Port of the server.
    pub port: Be16,
    /// IP protocol number: 6 TCP, 17 UDP; 0 for a free slot.
    pub proto: u8,
    /// Zero.
    pub reserved0: u8,
    /// `checksum::sum_endpoint(addr, port)`.
    pub sum_endpoint: u16,
    /// `checksum::fold(checksum::sum_addr(addr))`.
    pub sum_addr: u16,
    /// Zero.
    pub reserved1: u64,
}

/// One bucket of an index: entries of [`index_entry`], 0 where free. Entries are
/// kept without gaps: the first free one ends the search.
#[repr(C, align(32))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IndexBucket(pub [u32; INDEX_BUCKET_ENTRIES]);

/// An index entry: the hash's tag in the high half, the slot plus one in the low.
#[inline(always)]
pub const fn index_entry(tag: u16, slot: u16) -> u32 {
    (tag as u32) << 16 | (slot as u32 + 1)
}

/// A device that the program is attached to.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Device {
    /// Interface index; 0 for a free slot. The slot is `ifindex % DEVICES`.
    pub ifindex: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// 1 for a device that may leave XDP_TX frames lying: they go out by a
    /// redirect to the device itself.
    pub no_tx: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// A source address for `snat`.
#[repr(C, align(32))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SnatAddress {
    /// The address; unspecified for a free slot.
    pub addr: Addr,
    /// First port, in host order.
    pub first_port: u16,
    /// Last port, in host order.
    pub last_port: u16,
    /// `checksum::fold(checksum::sum_addr(addr))`.
    pub sum_addr: u16,
    /// Zero.
    pub reserved: u16,
    /// The next port to probe, less `first_port`; the program counts it up.
    pub cursor: u64,
}

/// The owner of one snat port.
#[repr(C, align(32))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SnatPort {
    /// Backend, generation, flags, last packet; as in a flow. Zero when free.
    pub meta: crate::flow::Meta,
    /// The client behind it.
    pub client: Addr,
    /// The client's port.
    pub port: Be16,
    /// Slot of the frontend.
    pub frontend: u16,
    /// Slot of the backend's endpoint.
    pub endpoint: u16,
    /// Zero.
    pub reserved: u16,
}

/// Names a fragmented datagram (RFC 791, RFC 8200 section 4.5).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification, as loaded.
    pub id: u32,
    /// IP protocol number.
    pub proto: u32,
}

/// Kinds of [`Event`].
pub mod event {
    /// A backend answered a SYN with RST.
    pub const SYN_REFUSED: u32 = 1;
    /// A client repeated a SYN that the backend has not answered.
    pub const SYN_UNANSWERED: u32 = 2;
}

/// A passive sign, told at once.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Event {
    /// One of [`event`].
    pub kind: u32,
    /// Slot of the backend.
    pub backend: u32,
    /// Generation of that slot.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(
    size_of::<Frontend>() == 64
        && size_of::<Backend>() == 128
        && size_of::<Endpoint>() == 32
        && size_of::<SnatPort>() == 32
        && size_of::<SnatAddress>() == 32
        && size_of::<Hop>() == 24
        // The program cuts slots to size by a mask.
        && limits::DEVICES.is_power_of_two()
        && limits::SNAT_ADDRESSES.is_power_of_two()
        && limits::FRONTENDS.is_power_of_two()
        && limits::RING_CHUNKS.is_power_of_two()
        && limits::BACKENDS.is_power_of_two()
        && limits::ENDPOINTS.is_power_of_two()
);
