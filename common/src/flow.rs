//! The flow table's entries: one per connection, found from both directions.
//!
//! A table is an array of buckets of [`FLOW_BUCKET_ENTRIES`] entries. A flow
//! hashes by its client's address and port alone and lives in one of two
//! buckets, so the packet from the client (source) and the reply from the
//! backend (destination) meet the same entry. Within the bucket the forward
//! direction compares the frontend's slot, the reply the endpoint's.
//!
//! A new flow takes the entry at its home (`hash::home`) if that is free, else the next
//! that is near (`hash::near`), else any.
//! Beside every bucket lie the [`Tags`] of its entries: that a flow is not there is
//! known from one short line, which is what a new connection has to know.
//!
//! An entry is owned by whoever moves [`Meta`] from what it read to
//! [`flags::CLAIMED`] by compare-exchange; the owner writes the tag, the key and the
//! rest, then stores the final `Meta`: zero, with a tag of zero, to free it. Readers
//! compare the key, read `Meta` and compare the key again. The agent reads the tables
//! through a memory mapping and frees entries in the same way, as [`Meta::AGENT`].
//!
//! Three tables use this: established IPv4 flows ([`Flow4`]), established IPv6
//! flows and half-open flows of both families ([`Flow6`], IPv4 as mapped
//! addresses).

use crate::limits::FLOW_BUCKET_ENTRIES;
use crate::{Addr, Be16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bits of [`Meta::flags`].
pub mod flags {
    /// The entry is in use.
    pub const VALID: u16 = 1 << 0;
    /// Somebody is writing the entry; readers pass it by.
    pub const CLAIMED: u16 = 1 << 1;
    /// The backend has answered (SYN+ACK, or its first datagram).
    pub const ANSWERED: u16 = 1 << 2;
    /// FIN seen from the client.
    pub const CLIENT_FIN: u16 = 1 << 3;
    /// FIN seen from the backend.
    pub const SERVER_FIN: u16 = 1 << 4;
    /// RST seen from either side.
    pub const RESET: u16 = 1 << 5;
    /// The client's frames carry at least one VLAN tag.
    pub const VLAN_1: u16 = 1 << 6;
    /// The client's frames carry two VLAN tags.
    pub const VLAN_2: u16 = 1 << 7;
    /// The client's outer tag is 802.1ad (0x88a8), not 802.1Q (0x8100).
    pub const VLAN_OUTER_AD: u16 = 1 << 8;
    /// The flow's source is translated; `snat_port` and the address slot hold.
    pub const SNAT: u16 = 1 << 9;
    /// First bit of the three that hold the slot of the snat address.
    pub const SNAT_SLOT_SHIFT: u32 = 10;
    /// The three bits of the snat address' slot.
    pub const SNAT_SLOT_MASK: u16 = 7 << SNAT_SLOT_SHIFT;
    /// A UDP flow; TCP otherwise.
    pub const UDP: u16 = 1 << 13;
    /// A half-open flow that one CPU is moving to the table of established ones: no other
    /// changes it.
    pub const MOVING: u16 = 1 << 14;
    /// The three bits that describe the client's VLAN tags.
    pub const VLAN_MASK: u16 = VLAN_1 | VLAN_2 | VLAN_OUTER_AD;
}

/// Unit of [`Meta::seen`]: 2^30 ns, about 1.07 s.
pub const SEEN_SHIFT: u32 = 30;
/// Unit of [`Flow6::born`]: 2^20 ns, about 1.05 ms.
pub const BORN_SHIFT: u32 = 20;
/// A packet's time is noted when the one noted before is this many units old: writing
/// it with every unit would dirty a cache line for most packets of a million flows.
pub const SEEN_STEP: u32 = 4;
/// `seen` counts modulo 2^24 units, about 208 days.
pub const SEEN_MASK: u32 = 0x00ff_ffff;
/// Units after which a closed flow's entry may be taken by another.
pub const CLOSED_REST: u32 = 2;

/// Everything about a flow that is decided or changes, in one word that is read
/// and replaced whole: backend slot (16 bits), that slot's generation (8),
/// [`flags`] (16), and when a packet was last seen (24). Zero is a free entry.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Meta(pub u64);

impl Meta {
    /// A free entry.
    pub const FREE: Self = Self(0);
    /// Claimed by the program.
    pub const PROGRAM: Self = Self::new(0, 0, flags::CLAIMED, 0);
    /// Claimed by the agent: one that was killed with it in hand leaves it behind.
    pub const AGENT: Self = Self::new(u16::MAX, 0, flags::CLAIMED, 0);

    /// Puts the word together.
    #[inline(always)]
    pub const fn new(backend: u16, generation: u8, flags: u16, seen: u32) -> Self {
        Self(
            backend as u64
                | (generation as u64) << 16
                | (flags as u64) << 24
                | ((seen & SEEN_MASK) as u64) << 40,
        )
    }

    /// Slot of the backend.
    #[inline(always)]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    /// Generation of the backend's slot when the flow was made.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The [`flags`].
    #[inline(always)]
    pub const fn flags(self) -> u16 {
        (self.0 >> 24) as u16
    }

    /// When a packet was last seen, in units of 2^[`SEEN_SHIFT`] ns of the
    /// monotonic clock, modulo 2^24.
    #[inline(always)]
    pub const fn seen(self) -> u32 {
        (self.0 >> 40) as u32
    }

    /// The same with `flags` added.
    #[inline(always)]
    pub const fn with_flags(self, flags: u16) -> Self {
        Self(self.0 | (flags as u64) << 24)
    }

    /// The same with the time of the last packet replaced.
    #[inline(always)]
    pub const fn with_seen(self, seen: u32) -> Self {
        Self((self.0 & 0x00_ff_ff_ff_ff_ff) | ((seen & SEEN_MASK) as u64) << 40)
    }

    /// Units since the last packet, given the present time in the same unit: none when
    /// that packet came after the time was taken, on another CPU.
    #[inline(always)]
    pub const fn idle(self, now: u32) -> u32 {
        let idle = now.wrapping_sub(self.seen()) & SEEN_MASK;
        if idle > SEEN_MASK / 2 { 0 } else { idle }
    }

    /// Whether the entry holds a flow that readers may use.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.flags() & (flags::VALID | flags::CLAIMED) == flags::VALID
    }

    /// Whether the connection is over: RST, or FIN from both sides.
    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        let f = self.flags();
        f & flags::RESET != 0
            || f & (flags::CLIENT_FIN | flags::SERVER_FIN) == flags::CLIENT_FIN | flags::SERVER_FIN
    }

    /// Slot of the snat address.
    #[inline(always)]
    pub const fn snat_slot(self) -> u8 {
        ((self.flags() & flags::SNAT_SLOT_MASK) >> flags::SNAT_SLOT_SHIFT) as u8
    }
}

/// Where the client's frames come from, so that replies can go back that way
/// without a route lookup.
#[repr(C, align(4))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ReturnPath {
    /// Source address of the client's frames: the client or its router.
    pub mac: [u8; 6],
    /// Slot of the receiving device in the device table.
    pub device: u16,
    /// Tag control information of the client's VLAN tags, outer first; how many
    /// there are is in [`flags`].
    pub tci: [Be16; 2],
}

/// An established IPv4 flow.
#[repr(C, align(32))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Flow4 {
    /// Client address and port and frontend slot: [`key4`].
    pub key: u64,
    /// State; see [`Meta`].
    pub meta: Meta,
    /// The way back to the client.
    pub path: ReturnPath,
    /// Translated source port, where [`flags::SNAT`] is set.
    pub snat_port: Be16,
    /// Slot of the backend's endpoint.
    pub endpoint: u16,
}

/// An established IPv6 flow, or a half-open flow of either family.
#[repr(C, align(64))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Flow6 {
    /// Client port and frontend slot: [`key6`].
    pub key: u64,
    /// State; see [`Meta`].
    pub meta: Meta,
    /// Client address.
    pub addr: Addr,
    /// The way back to the client.
    pub path: ReturnPath,
    /// Translated source port, where [`flags::SNAT`] is set.
    pub snat_port: Be16,
    /// Slot of the backend's endpoint.
    pub endpoint: u16,
    /// When the flow was made, in units of 2^[`BORN_SHIFT`] ns of the monotonic
    /// clock, modulo 2^32.
    pub born: u32,
    /// Half-open TCP: the sequence number that the client's ACK must
    /// acknowledge, in host order; set when the backend's SYN+ACK was seen.
    pub expected_ack: u32,
    /// Zero.
    pub reserved: u64,
}

/// Mask over [`key4`] that leaves the client's address and port.
pub const KEY4_CLIENT: u64 = 0x0000_ffff_ffff_ffff;
/// Mask over [`key6`] that leaves the client's port.
pub const KEY6_CLIENT: u64 = 0x0000_0000_0000_ffff;

/// Client address (as loaded), client port and frontend slot in one word.
#[inline(always)]
pub const fn key4(client: u32, port: Be16, frontend: u16) -> u64 {
    client as u64 | (port.0 as u64) << 32 | (frontend as u64) << 48
}

/// Client port and frontend slot in one word.
#[inline(always)]
pub const fn key6(port: Be16, frontend: u16) -> u64 {
    port.0 as u64 | (frontend as u64) << 16
}

/// What a reader outside the kernel program wants to know of any entry.
pub trait Entry: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// State; see [`Meta`].
    fn meta(&self) -> Meta;
    /// Client address.
    fn client(&self) -> Addr;
    /// Client port.
    fn port(&self) -> Be16;
    /// Slot of the frontend.
    fn frontend(&self) -> u16;
    /// The way back to the client.
    fn path(&self) -> ReturnPath;
    /// Translated source port.
    fn snat_port(&self) -> Be16;
}

impl Entry for Flow4 {
    fn meta(&self) -> Meta {
        self.meta
    }
    fn client(&self) -> Addr {
        Addr::from_v4_word(self.key as u32)
    }
    fn port(&self) -> Be16 {
        Be16((self.key >> 32) as u16)
    }
    fn frontend(&self) -> u16 {
        (self.key >> 48) as u16
    }
    fn path(&self) -> ReturnPath {
        self.path
    }
    fn snat_port(&self) -> Be16 {
        self.snat_port
    }
}

impl Entry for Flow6 {
    fn meta(&self) -> Meta {
        self.meta
    }
    fn client(&self) -> Addr {
        self.addr
    }
    fn port(&self) -> Be16 {
        Be16(self.key as u16)
    }
    fn frontend(&self) -> u16 {
        (self.key >> 16) as u16
    }
    fn path(&self) -> ReturnPath {
        self.path
    }
    fn snat_port(&self) -> Be16 {
        self.snat_port
    }
}

/// One bucket: the map value of a flow table.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bucket<E: Copy>(pub [E; FLOW_BUCKET_ENTRIES]);

/// The tags of a bucket's entries, two bytes of each flow's hash: zero where free,
/// never zero where not.
#[repr(C, align(16))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Tags(pub [u16; FLOW_BUCKET_ENTRIES]);

/// Which of a bucket's tags have a property: bit `k` for entry `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(pub u32);

/// The high bit of each tag in a word of four.
const HIGH: u64 = 0x8000_8000_8000_8000;

impl Lanes {
    /// Those equal to `tag`. Takes the tags as their two words.
    #[inline(always)]
    pub const fn equal(words: [u64; 2], tag: u16) -> Self {
        let splat = tag as u64 * 0x0001_0001_0001_0001;
        Self::of([Self::zero(words[0] ^ splat), Self::zero(words[1] ^ splat)])
    }

    /// Those that are free. A tag has its high bit set (`hash::tag`).
    #[inline(always)]
    pub const fn free(words: [u64; 2]) -> Self {
        Self::of([!words[0] & HIGH, !words[1] & HIGH])
    }

    /// The high bit of each tag that is zero, exactly: no carry leaves a tag.
    #[inline(always)]
    const fn zero(word: u64) -> u64 {
        !(((word & !HIGH) + !HIGH) | word | !HIGH)
    }

    /// Gathers the high bits: the multiplication moves bits 0, 16, 32 and 48 to 48 and
    /// following, each by a term of its own.
    #[inline(always)]
    const fn of(high: [u64; 2]) -> Self {
        const GATHER: u64 = 1 << 48 | 1 << 33 | 1 << 18 | 1 << 3;
        let low = (high[0] >> 15).wrapping_mul(GATHER) >> 48 & 0xf;
        let top = (high[1] >> 15).wrapping_mul(GATHER) >> 48 & 0xf;
        Self((low | top << 4) as u32)
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        // Of a byte: what `count_ones` does for a whole word costs BPF twice as much.
        let pairs = self.0 - (self.0 >> 1 & 0x55);
        let fours = (pairs & 0x33) + (pairs >> 2 & 0x33);
        (fours + (fours >> 4)) & 0xf
    }

    /// The first; 0 when there is none. By a de Bruijn sequence and not by comparisons:
    /// those would be as many ways for the verifier to walk.
    #[inline(always)]
    pub const fn first(self) -> usize {
        let bit = self.0 & self.0.wrapping_neg();
        let at = ((bit * 0x1d) & 0xff) >> 5;
        (0x3457_2610_u32 >> (at * 4) & 7) as usize
    }

    /// All but the first.
    #[inline(always)]
    pub const fn rest(self) -> Self {
        Self(self.0 & self.0.wrapping_sub(1))
    }

    /// The one that is nearest to `home`, in the order of [`hash::near`], else the first.
    ///
    /// [`hash::near`]: crate::hash::near
    #[inline(always)]
    pub const fn nearest(self, home: usize) -> usize {
        let here = self.0 >> (home & !1) & 3;
        let neighbours = self.0 >> (home & !1 ^ 2) & 3;
        // In a pair to choose from, the other one only when that of home's side is not free.
        let other = (here >> (home & 1) & 1) ^ 1;
        let another = (neighbours >> (home & 1) & 1) ^ 1;
        let far = if neighbours != 0 {
            home ^ 2 ^ another as usize
        } else {
            self.first()
        };
        if here != 0 {
            home ^ other as usize
        } else {
            far
        }
    }
}

/// A flow goes to its first bucket while that has this many free entries, else to the
/// emptier one. With two, one flow in a million finds both full at half load; with three,
/// none in many millions, and nineteen of twenty are still in the first.
pub const ROOMY: u32 = 3;

/// Buckets that hold `flows` flows with no eviction to be expected: twice as
/// many entries as flows, rounded up to a power of two. With eight entries to a
/// bucket and a second choice, overflow at that load is out of sight
/// (Azar, Broder, Karlin, Upfal: Balanced Allocations, 1994).
pub const fn buckets_for(flows: u32) -> u32 {
    let buckets = (flows as u64 * 2).div_ceil(FLOW_BUCKET_ENTRIES as u64);
    let buckets = if buckets < 2 { 2 } else { buckets };
    buckets.next_power_of_two() as u32
}

/// Buckets of the half-open table for `flows` flows: no more entries than flows, rounded
/// up to a power of two. Its flows come and go in a moment, and a flood of them, which is
/// what fills it, is the quicker the less memory it touches. From about nine tenths on
/// the oldest give way.
pub const fn half_open_buckets_for(flows: u32) -> u32 {
    let buckets = flows.div_ceil(FLOW_BUCKET_ENTRIES as u32);
    let buckets = if buckets < 2 { 2 } else { buckets };
    buckets.next_power_of_two()
}

const _: () = assert!(size_of::<Flow4>() == 32 && size_of::<Flow6>() == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash;

    #[test]
    fn meta_fields_do_not_overlap() {
        let m = Meta::new(0xffff, 0, 0, 0).0
            & Meta::new(0, 0xff, 0, 0).0
            & Meta::new(0, 0, 0xffff, 0).0
            & Meta::new(0, 0, 0, SEEN_MASK).0;
        assert_eq!(m, 0);
        let m = Meta::new(0xabcd, 0x12, flags::VALID | flags::SNAT, 77).with_flags(flags::RESET);
        assert_eq!((m.backend(), m.generation(), m.seen()), (0xabcd, 0x12, 77));
        assert!(m.is_live() && m.is_closed());
        let m = m.with_seen(SEEN_MASK);
        assert_eq!((m.backend(), m.seen()), (0xabcd, SEEN_MASK));
        assert_eq!(m.idle(2), 3);
        assert_eq!(m.with_seen(5).idle(4), 0);
    }

    #[test]
    fn lanes_are_exact() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut tags = [0u16; 8];
            for tag in &mut tags {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *tag = match state >> 60 {
                    0..4 => 0,
                    4..8 => 0x8001,
                    8..10 => 0x8000,
                    _ => (state >> 40) as u16 | 0x8000,
                };
            }
            let words: [u64; 2] = zerocopy::transmute!(tags);
            let lanes = |f: &dyn Fn(u16) -> bool| {
                (0..8).filter(|k| f(tags[*k])).map(|k| 1 << k).sum::<u32>()
            };
            assert_eq!(Lanes::free(words).0, lanes(&|t| t == 0), "{tags:x?}");
            for tag in [0x8000, 0x8001, tags[5] | 0x8000] {
                let equal = Lanes::equal(words, tag);
                assert_eq!(equal.0, lanes(&|t| t == tag), "{tag:x} in {tags:x?}");
            }
            let free = Lanes::free(words);
            assert_eq!(free.count(), free.0.count_ones());
            for home in 0..8 {
                let near = (0..hash::NEAR).map(|step| hash::near(home, step));
                let want = near.chain(0..8).find(|k| tags[*k] == 0);
                if let Some(want) = want {
                    assert_eq!(free.nearest(home), want, "{home} in {tags:x?}");
                    assert_eq!(free.first(), free.0.trailing_zeros() as usize);
                    assert_eq!(free.rest().0.count_ones() + 1, free.0.count_ones());
                }
            }
        }
    }

    #[test]
    fn keys_round_trip() {
        let ip = u32::from_ne_bytes([10, 1, 2, 3]);
        let f = Flow4 {
            key: key4(ip, Be16::new(4711), 513),
            ..Flow4::default()
        };
        assert_eq!(
            (f.client().v4_word(), f.port().host(), f.frontend()),
            (ip, 4711, 513)
        );
        let f = Flow6 {
            key: key6(Be16::new(4711), 513),
            ..Flow6::default()
        };
        assert_eq!((f.port().host(), f.frontend()), (4711, 513));
    }

    #[test]
    fn a_million_flows_take_64_mib() {
        assert_eq!(
            buckets_for(1_000_000) as usize * size_of::<Bucket<Flow4>>(),
            64 << 20
        );
    }
}
