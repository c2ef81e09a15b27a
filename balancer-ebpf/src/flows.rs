//! Entries of the flow tables, and taking one from its flow; `common::flow` has the
//! layout and the protocol between writers and readers.
//!
//! Plain memory work over raw pointers: the buckets are shared with other CPUs
//! and with the agent, so nothing here makes a reference into them.

use crate::atomic;
use common::flow::{
    CLOSED_REST, Flow4, Flow6, KEY4_CLIENT, KEY6_CLIENT, Meta, ReturnPath, flags, key4, key6,
};
use common::limits::FLOW_BUCKET_ENTRIES;
use common::{Addr, Be16};

/// What names a flow.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Client address.
    pub addr: Addr,
    /// Client port.
    pub port: Be16,
    /// Frontend slot; not looked at for replies.
    pub frontend: u16,
}

/// How a flow is looked for.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct By(u32);

impl By {
    /// By client and frontend.
    pub const FRONTEND: Self = Self(u32::MAX);

    /// By client and endpoint. Flows with a translated source are not found so.
    #[inline(always)]
    pub fn endpoint(slot: u16) -> Self {
        Self(slot as u32)
    }

    /// All bits when the frontend counts, else none.
    #[inline(always)]
    fn frontend(self) -> u64 {
        ((self.0 >> 31) as u64).wrapping_neg()
    }

    /// Zero when this is the endpoint, or the frontend counts.
    #[inline(always)]
    fn other_endpoint(self, endpoint: u16) -> u64 {
        (endpoint as u64 ^ self.0 as u64) & !self.frontend()
    }

    /// The state's flags that decide, as bits of the state: a flow with a translated
    /// source is not found by its client and endpoint.
    #[inline(always)]
    fn flags(self) -> u64 {
        const LIVE: u64 = ((flags::VALID | flags::CLAIMED) as u64) << 24;
        const SNAT: u64 = (flags::SNAT as u64) << 24;
        LIVE | (SNAT & !self.frontend())
    }
}

/// The state of an entry if it holds the flow that is looked for.
///
/// # Safety
/// `entry` must point to an entry.
#[inline(always)]
pub unsafe fn holds<E: Entry>(entry: *mut E, key: &Key, by: By) -> Option<Meta> {
    const VALID: u64 = (flags::VALID as u64) << 24;
    // SAFETY: by the caller.
    unsafe {
        let other = E::differs(entry, key, by);
        let meta = meta(entry);
        // The key again: the entry may have changed hands in between.
        let other = other | (meta.0 & by.flags() ^ VALID) | E::differs(entry, key, by);
        if other == 0 { Some(meta) } else { None }
    }
}

/// Everything of a new flow but its state.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    /// What names it.
    pub key: Key,
    /// The way back to the client.
    pub path: ReturnPath,
    /// Translated source port.
    pub snat_port: Be16,
    /// Endpoint slot.
    pub endpoint: u16,
    /// When it was made (half-open table).
    pub born: u32,
}

/// An entry type of a flow table, behind a raw pointer.
///
/// # Safety
/// All methods need `entry` to point to an entry that can be read and written.
#[allow(clippy::missing_safety_doc, reason = "said once, above")]
pub unsafe trait Entry: Copy {
    /// Address of the state word.
    unsafe fn meta(entry: *mut Self) -> *mut u64;
    /// Zero when the entry holds the client's flow that is looked for. One number and no
    /// comparisons: each would be another way for the verifier to walk.
    unsafe fn differs(entry: *mut Self, key: &Key, by: By) -> u64;
    /// Frontend slot.
    unsafe fn frontend(entry: *mut Self) -> u16;
    /// Endpoint slot.
    unsafe fn endpoint(entry: *mut Self) -> u16;
    /// Translated source port.
    unsafe fn snat_port(entry: *mut Self) -> Be16;
    /// The way back to the client.
    unsafe fn path(entry: *mut Self) -> *mut ReturnPath;
    /// Writes everything but the state.
    unsafe fn fill(entry: *mut Self, fields: &Fields);
}

// SAFETY: only fields of the entry are touched.
unsafe impl Entry for Flow4 {
    #[inline(always)]
    unsafe fn meta(entry: *mut Self) -> *mut u64 {
        // SAFETY: in the entry.
        unsafe { (&raw mut (*entry).meta).cast() }
    }
    #[inline(always)]
    unsafe fn differs(entry: *mut Self, key: &Key, by: By) -> u64 {
        let want = key4(key.addr.v4_word(), key.port, key.frontend);
        // SAFETY: in the entry.
        let (have, endpoint) = unsafe {
            (
                (&raw const (*entry).key).read_volatile(),
                Self::endpoint(entry),
            )
        };
        ((have ^ want) & (KEY4_CLIENT | by.frontend())) | by.other_endpoint(endpoint)
    }
    #[inline(always)]
    unsafe fn frontend(entry: *mut Self) -> u16 {
        // SAFETY: in the entry.
        unsafe { ((&raw const (*entry).key).read_volatile() >> 48) as u16 }
    }
    #[inline(always)]
    unsafe fn endpoint(entry: *mut Self) -> u16 {
        // SAFETY: in the entry.
        unsafe { (&raw const (*entry).endpoint).read_volatile() }
    }
    #[inline(always)]
    unsafe fn snat_port(entry: *mut Self) -> Be16 {
        // SAFETY: in the entry.
        unsafe { (&raw const (*entry).snat_port).read_volatile() }
    }
    #[inline(always)]
    unsafe fn path(entry: *mut Self) -> *mut ReturnPath {
        // SAFETY: in the entry.
        unsafe { &raw mut (*entry).path }
    }
    #[inline(always)]
    unsafe fn fill(entry: *mut Self, fields: &Fields) {
        let k = &fields.key;
        // SAFETY: in the entry.
        unsafe {
            (&raw mut (*entry).key).write_volatile(key4(k.addr.v4_word(), k.port, k.frontend));
            (*entry).path = fields.path;
            (*entry).snat_port = fields.snat_port;
            (*entry).endpoint = fields.endpoint;
        }
    }
}

// SAFETY: only fields of the entry are touched.
unsafe impl Entry for Flow6 {
    #[inline(always)]
    unsafe fn meta(entry: *mut Self) -> *mut u64 {
        // SAFETY: in the entry.
        unsafe { (&raw mut (*entry).meta).cast() }
    }
    #[inline(always)]
    unsafe fn differs(entry: *mut Self, key: &Key, by: By) -> u64 {
        let want = key6(key.port, key.frontend);
        // SAFETY: in the entry.
        let (have, high, low, endpoint) = unsafe {
            (
                (&raw const (*entry).key).read_volatile(),
                (&raw const (*entry).addr.0[0]).read_volatile(),
                (&raw const (*entry).addr.0[1]).read_volatile(),
                Self::endpoint(entry),
            )
        };
        ((have ^ want) & (KEY6_CLIENT | by.frontend()))
            | (high ^ key.addr.0[0])
            | (low ^ key.addr.0[1])
            | by.other_endpoint(endpoint)
    }
    #[inline(always)]
    unsafe fn frontend(entry: *mut Self) -> u16 {
        // SAFETY: in the entry.
        unsafe { ((&raw const (*entry).key).read_volatile() >> 16) as u16 }
    }
    #[inline(always)]
    unsafe fn endpoint(entry: *mut Self) -> u16 {
        // SAFETY: in the entry.
        unsafe { (&raw const (*entry).endpoint).read_volatile() }
    }
    #[inline(always)]
    unsafe fn snat_port(entry: *mut Self) -> Be16 {
        // SAFETY: in the entry.
        unsafe { (&raw const (*entry).snat_port).read_volatile() }
    }
    #[inline(always)]
    unsafe fn path(entry: *mut Self) -> *mut ReturnPath {
        // SAFETY: in the entry.
        unsafe { &raw mut (*entry).path }
    }
    #[inline(always)]
    unsafe fn fill(entry: *mut Self, fields: &Fields) {
        let k = &fields.key;
        // SAFETY: in the entry.
        unsafe {
            (&raw mut (*entry).key).write_volatile(key6(k.port, k.frontend));
            (*entry).addr = k.addr;
            (*entry).path = fields.path;
            (*entry).snat_port = fields.snat_port;
            (*entry).endpoint = fields.endpoint;
            (*entry).born = fields.born;
            (*entry).expected_ack = 0;
        }
    }
}

/// Reads the state word.
///
/// # Safety
/// `entry` must point to an entry.
#[inline(always)]
pub unsafe fn meta<E: Entry>(entry: *mut E) -> Meta {
    // SAFETY: by the caller.
    Meta(unsafe { E::meta(entry).read_volatile() })
}

/// Replaces the state word if it still is `old`.
///
/// # Safety
/// `entry` must point to an entry.
#[inline(always)]
pub unsafe fn exchange<E: Entry>(entry: *mut E, old: Meta, new: Meta) -> bool {
    // SAFETY: aligned to 8 by the entry's layout; shared by atomics only.
    unsafe { atomic::compare_exchange(E::meta(entry), old.0, new.0) }
}

/// How soon an established flow's entry may be taken: a closed one rests, any other
/// stays while there is room.
const REST: u32 = CLOSED_REST;

/// Added to the idle time of an entry that may be taken.
const REUSABLE: u32 = 1 << 25;

/// How willingly an entry is taken from its flow: one that is over above the longest
/// idle; 0 for one that another CPU is writing.
#[inline(always)]
fn score(meta: Meta, now: u32) -> u32 {
    if meta.flags() & flags::CLAIMED != 0 {
        return 0;
    }
    let idle = meta.idle(now);
    let reusable = meta.0 == 0 || (meta.is_closed() && idle >= REST);
    idle + 1 + if reusable { REUSABLE } else { 0 }
}

/// The entry of a full bucket that has to give way to a new flow.
///
/// The best is kept as one number, position and all: as a pointer it would be
/// another state for the verifier at every entry. For the same reason each
/// entry's number goes through `cell`, eight bytes in a map: what comes back is
/// any number to the verifier, so that the ways through the loop meet again
/// instead of multiplying.
///
/// # Safety
/// `bucket` must point to [`FLOW_BUCKET_ENTRIES`] entries, `cell` to a number
/// that nobody else uses.
#[inline(always)]
pub unsafe fn victim<E: Entry>(bucket: *mut E, now: u32, cell: *mut u64) -> usize {
    let mut best = 0;
    let mut k = 0;
    while k < FLOW_BUCKET_ENTRIES {
        // SAFETY: an entry of the bucket; the cell is ours.
        let rank = unsafe {
            let score = score(meta(bucket.wrapping_add(k)), now);
            cell.write_volatile((score as usize * FLOW_BUCKET_ENTRIES + k) as u64);
            cell.read_volatile() as u32
        };
        best = if rank > best { rank } else { best };
        k += 1;
    }
    best as usize & (FLOW_BUCKET_ENTRIES - 1)
}

/// Takes an entry from the flow that it was seen with, for the program alone.
///
/// # Safety
/// `entry` must point to an entry.
#[inline(always)]
pub unsafe fn claim<E: Entry>(entry: *mut E, old: Meta) -> bool {
    // SAFETY: by the caller.
    old.flags() & flags::CLAIMED == 0 && unsafe { exchange(entry, old, Meta::PROGRAM) }
}

/// Gives a claimed entry its new state, zero to free it. What was written to the
/// entry and its tag before is seen before: the exchange is a barrier.
///
/// # Safety
/// `entry` must point to an entry that this program has claimed.
#[inline(always)]
pub unsafe fn publish<E: Entry>(entry: *mut E, state: Meta) -> bool {
    // SAFETY: by the caller.
    unsafe { exchange(entry, Meta::PROGRAM, state) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::flow::Bucket;

    fn key(n: u16) -> Key {
        Key {
            addr: Addr::from_v4_word(0x0102_0304),
            port: Be16(n),
            frontend: 7,
        }
    }

    fn fields(n: u16) -> Fields {
        Fields {
            key: key(n),
            path: ReturnPath::default(),
            snat_port: Be16(0),
            endpoint: n,
            born: 0,
        }
    }

    fn full() -> Bucket<Flow4> {
        let mut b = Bucket([Flow4::default(); FLOW_BUCKET_ENTRIES]);
        for n in 0..8 {
            let meta = Meta::new(n, 1, flags::VALID, 100 + u32::from(n));
            assert!(put(&mut b, n as usize, n, meta));
        }
        b
    }

    fn put(b: &mut Bucket<Flow4>, at: usize, n: u16, state: Meta) -> bool {
        let entry = &raw mut b.0[at];
        // SAFETY: an entry of the bucket.
        unsafe {
            if !claim(entry, meta(entry)) {
                return false;
            }
            Flow4::fill(entry, &fields(n));
            publish(entry, state)
        }
    }

    fn victim_of(b: &mut Bucket<Flow4>, now: u32) -> usize {
        let mut cell = 0;
        // SAFETY: a whole bucket.
        unsafe { victim(b.0.as_mut_ptr(), now, &raw mut cell) }
    }

    #[test]
    fn a_flow_is_met_from_both_directions() {
        let mut b = full();
        let entry = &raw mut b.0[5];
        // SAFETY: an entry of the bucket.
        unsafe {
            let is = |key: &Key, by| holds(entry, key, by).is_some();
            assert!(is(&key(5), By::FRONTEND));
            assert!(!is(&key(6), By::FRONTEND));
            let other = Key {
                frontend: 8,
                ..key(5)
            };
            assert!(!is(&other, By::FRONTEND));
            assert!(is(&other, By::endpoint(5)));
            assert!(!is(&other, By::endpoint(6)));
        }
        for (set, reply, ask) in [
            (flags::SNAT, false, true),
            (flags::CLAIMED, false, false),
            (flags::RESET, true, true),
        ] {
            let mut b = full();
            b.0[5].meta = b.0[5].meta.with_flags(set);
            // SAFETY: an entry of the bucket.
            let mut is = |by| unsafe { holds(&raw mut b.0[5], &key(5), by) }.is_some();
            assert_eq!((is(By::endpoint(5)), is(By::FRONTEND)), (reply, ask));
        }
    }

    #[test]
    fn the_longest_idle_gives_way_and_the_closed_before_it() {
        let mut b = full();
        assert_eq!(victim_of(&mut b, 200), 0);
        b.0[6].meta = b.0[6].meta.with_flags(flags::RESET);
        assert_eq!(victim_of(&mut b, 106 + CLOSED_REST), 6);
        assert_eq!(victim_of(&mut b, 106), 0, "a closed one rests first");
    }

    #[test]
    fn an_entry_that_others_write_is_left_alone() {
        let mut b = full();
        for claimed in [Meta::PROGRAM, Meta::AGENT] {
            b.0[0].meta = claimed;
            assert_eq!(victim_of(&mut b, 200), 1);
            assert!(!put(&mut b, 0, 9, Meta::FREE));
        }
    }
}
