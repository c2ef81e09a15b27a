//! Lookup and replacement in a bucket of the flow table; `common::flow` has the
//! layout and the protocol between writers and readers.
//!
//! Plain memory work over raw pointers: the buckets are shared with other CPUs
//! and with the agent, so nothing here makes a reference into them.

use crate::atomic;
use common::flow::{
    CLOSED_REST, Flow4, Flow6, KEY4_CLIENT, KEY6_CLIENT, Meta, ReturnPath, SEEN_MASK, flags, key4,
    key6,
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
    /// Whether key and frontend are this flow's.
    unsafe fn is_flow(entry: *mut Self, key: &Key) -> bool;
    /// Whether client and endpoint are this flow's.
    unsafe fn is_reply(entry: *mut Self, key: &Key, endpoint: u16) -> bool;
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
    unsafe fn is_flow(entry: *mut Self, key: &Key) -> bool {
        // SAFETY: in the entry.
        let have = unsafe { (&raw const (*entry).key).read_volatile() };
        have == key4(key.addr.v4_word(), key.port, key.frontend)
    }
    #[inline(always)]
    unsafe fn is_reply(entry: *mut Self, key: &Key, endpoint: u16) -> bool {
        // SAFETY: in the entry.
        let have = unsafe { (&raw const (*entry).key).read_volatile() };
        have & KEY4_CLIENT == key4(key.addr.v4_word(), key.port, 0)
            // SAFETY: in the entry.
            && unsafe { Self::endpoint(entry) } == endpoint
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
    unsafe fn is_flow(entry: *mut Self, key: &Key) -> bool {
        // SAFETY: in the entry.
        unsafe {
            (&raw const (*entry).key).read_volatile() == key6(key.port, key.frontend)
                && (&raw const (*entry).addr.0[1]).read_volatile() == key.addr.0[1]
                && (&raw const (*entry).addr.0[0]).read_volatile() == key.addr.0[0]
        }
    }
    #[inline(always)]
    unsafe fn is_reply(entry: *mut Self, key: &Key, endpoint: u16) -> bool {
        // SAFETY: in the entry.
        unsafe {
            (&raw const (*entry).key).read_volatile() & KEY6_CLIENT == key6(key.port, 0)
                && (&raw const (*entry).addr.0[1]).read_volatile() == key.addr.0[1]
                && (&raw const (*entry).addr.0[0]).read_volatile() == key.addr.0[0]
                && Self::endpoint(entry) == endpoint
        }
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

/// A flow that was found: where, and its state at that moment.
#[derive(Clone, Copy)]
pub struct Found<E> {
    /// The entry.
    pub entry: *mut E,
    /// Its state.
    pub meta: Meta,
}

/// The entry at the `k`th position from `home`. The mask also tells the verifier
/// that the result lies in the bucket, whichever position it is: one state to
/// check instead of eight.
#[inline(always)]
fn position<E>(bucket: *mut E, home: usize, k: usize) -> *mut E {
    bucket.wrapping_add((home + k) & (FLOW_BUCKET_ENTRIES - 1))
}

/// The flow of a packet from the client.
///
/// # Safety
/// `bucket` must point to [`FLOW_BUCKET_ENTRIES`] entries.
#[inline(always)]
pub unsafe fn find<E: Entry>(bucket: *mut E, home: usize, key: &Key) -> Option<Found<E>> {
    let mut k = 0;
    while k < FLOW_BUCKET_ENTRIES {
        let entry = position(bucket, home, k);
        // SAFETY: an entry of the bucket.
        unsafe {
            if E::is_flow(entry, key) {
                let meta = meta(entry);
                // The key again: the entry may have changed hands in between.
                if meta.is_live() && E::is_flow(entry, key) {
                    return Some(Found { entry, meta });
                }
            }
        }
        k += 1;
    }
    None
}

/// The flow of a packet from a backend: `key` names the client. Flows with a
/// translated source are not found by their client.
///
/// # Safety
/// `bucket` must point to [`FLOW_BUCKET_ENTRIES`] entries.
#[inline(always)]
pub unsafe fn find_reply<E: Entry>(
    bucket: *mut E,
    home: usize,
    key: &Key,
    endpoint: u16,
) -> Option<Found<E>> {
    let mut k = 0;
    while k < FLOW_BUCKET_ENTRIES {
        let entry = position(bucket, home, k);
        // SAFETY: an entry of the bucket.
        unsafe {
            if E::is_reply(entry, key, endpoint) {
                let meta = meta(entry);
                if meta.is_live()
                    && meta.flags() & flags::SNAT == 0
                    && E::is_reply(entry, key, endpoint)
                {
                    return Some(Found { entry, meta });
                }
            }
        }
        k += 1;
    }
    None
}

/// How soon the entries of a table may be taken from their flows.
#[derive(Clone, Copy)]
pub struct Rest {
    /// Idle units after which a closed flow's entry counts as reusable.
    pub closed: u32,
    /// Idle units after which any entry does.
    pub idle: u32,
}

/// For established flows: a closed one rests, any other stays while there is room.
pub const REST_ESTABLISHED: Rest = Rest {
    closed: CLOSED_REST,
    idle: SEEN_MASK,
};
/// For half-open flows: a closed one goes at once, any after 60 s.
pub const REST_HALF_OPEN: Rest = Rest {
    closed: 0,
    idle: 56,
};

/// The entry of a bucket that a new flow would take.
#[derive(Clone, Copy)]
pub struct Place<E> {
    bucket: *mut E,
    /// The score, and below it the position in the bucket.
    rank: u32,
    /// Free entries in the bucket.
    free: u32,
    now: u32,
    rest: Rest,
}

/// Score of a free entry; those nearer to home rank higher.
const FREE: u32 = 1 << 26;
/// Added to the idle time of an entry that may be taken.
const REUSABLE: u32 = 1 << 25;

/// How willingly an entry is taken: free above reusable above the longest idle;
/// 0 for one that another CPU is writing.
#[inline(always)]
fn score(meta: Meta, k: usize, now: u32, rest: Rest) -> u32 {
    if meta.0 == 0 {
        return FREE + (FLOW_BUCKET_ENTRIES - k) as u32;
    }
    if meta.flags() & flags::CLAIMED != 0 {
        return 0;
    }
    let idle = meta.idle(now);
    let reusable = idle >= rest.idle || (meta.is_closed() && idle >= rest.closed);
    idle + 1 + if reusable { REUSABLE } else { 0 }
}

impl<E> Place<E> {
    #[inline(always)]
    fn score(&self) -> u32 {
        self.rank / FLOW_BUCKET_ENTRIES as u32
    }

    /// Whether the bucket has two free entries: then the second need not be seen.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.free >= 2
    }

    /// Whether taking it throws out a flow that is still in use.
    #[inline(always)]
    pub fn evicts(&self) -> bool {
        self.score() < REUSABLE
    }
}

/// Looks for the best entry to take in one bucket.
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
pub unsafe fn place<E: Entry>(
    bucket: *mut E,
    home: usize,
    now: u32,
    rest: Rest,
    cell: *mut u64,
) -> Place<E> {
    let (mut rank, mut free) = (0, 0);
    let mut k = 0;
    while k < FLOW_BUCKET_ENTRIES {
        let at = (home + k) & (FLOW_BUCKET_ENTRIES - 1);
        // SAFETY: an entry of the bucket; the cell is ours.
        let number = unsafe {
            let meta = meta(bucket.wrapping_add(at));
            let score = score(meta, k, now, rest) as u64;
            let is_free = (meta.0 == 0) as u64;
            cell.write_volatile((is_free << 32) | (score * FLOW_BUCKET_ENTRIES as u64 + at as u64));
            cell.read_volatile()
        };
        free += (number >> 32) as u32;
        rank = if number as u32 > rank {
            number as u32
        } else {
            rank
        };
        k += 1;
    }
    Place {
        bucket,
        rank,
        free,
        now,
        rest,
    }
}

/// Chooses between the places that a flow's two buckets offer: the first bucket
/// while it has two free entries, else the emptier one, else the better place.
/// Preferring the first keeps most lookups at one bucket; the second choice keeps
/// any bucket from overflowing.
#[inline(always)]
pub fn second_is_better<E>(first: &Place<E>, second: &Place<E>) -> bool {
    if first.has_room() {
        false
    } else if first.free + second.free > 0 {
        second.free > first.free
    } else {
        second.score() > first.score()
    }
}

/// Writes a flow into the place that was found. False when other CPUs were
/// quicker, or are writing every entry of the bucket.
///
/// # Safety
/// `place` must be of a bucket that still is one.
#[inline(always)]
pub unsafe fn take<E: Entry>(place: &Place<E>, fields: &Fields, state: Meta) -> bool {
    let at = place.rank as usize & (FLOW_BUCKET_ENTRIES - 1);
    let entry = place.bucket.wrapping_add(at);
    let claimed = Meta::new(0, 0, flags::CLAIMED, 0);
    // SAFETY: an entry of the bucket; once claimed, nobody else writes it.
    unsafe {
        let old = meta(entry);
        // It may have found another owner since it was looked at.
        let now = score(old, 0, place.now, place.rest);
        if now == 0 || (now < REUSABLE) != place.evicts() || !exchange(entry, old, claimed) {
            return false;
        }
        E::fill(entry, fields);
        // An exchange, not a store: it orders the fields before the state.
        exchange(entry, claimed, state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::flow::Bucket;

    fn bucket() -> Bucket<Flow4> {
        Bucket([Flow4::default(); FLOW_BUCKET_ENTRIES])
    }

    fn key(n: u16) -> Key {
        Key {
            addr: Addr::from_v4_word(0x0102_0304),
            port: Be16(n),
            frontend: 7,
        }
    }

    fn fields(n: u16, endpoint: u16) -> Fields {
        Fields {
            key: key(n),
            path: ReturnPath::default(),
            snat_port: Be16(0),
            endpoint,
            born: 0,
        }
    }

    fn insert(b: &mut Bucket<Flow4>, home: usize, n: u16, set: u16, now: u32) -> (bool, bool) {
        let mut cell = 0;
        // SAFETY: a whole bucket.
        unsafe {
            let place = place(b.0.as_mut_ptr(), home, now, REST_ESTABLISHED, &raw mut cell);
            let meta = Meta::new(n, 1, flags::VALID | set, now);
            (take(&place, &fields(n, n), meta), place.evicts())
        }
    }

    #[test]
    fn found_from_both_directions_and_from_home() {
        for home in 0..FLOW_BUCKET_ENTRIES {
            let mut b = bucket();
            assert_eq!(insert(&mut b, home, 9, 0, 5), (true, false));
            assert!(
                b.0[home].meta.is_live(),
                "the free entry nearest to home is taken"
            );
            let entries = b.0.as_mut_ptr();
            // SAFETY: a whole bucket.
            unsafe {
                assert_eq!(
                    find(entries, home, &key(9)).map(|f| f.meta.backend()),
                    Some(9)
                );
                assert!(
                    find(
                        entries,
                        home,
                        &Key {
                            frontend: 8,
                            ..key(9)
                        }
                    )
                    .is_none()
                );
                assert!(find(entries, home, &key(10)).is_none());
                assert!(find_reply(entries, home, &key(9), 9).is_some());
                assert!(find_reply(entries, home, &key(9), 10).is_none());
            }
        }
    }

    #[test]
    fn a_translated_flow_is_no_reply_by_its_client() {
        let mut b = bucket();
        insert(&mut b, 0, 9, flags::SNAT, 5);
        // SAFETY: a whole bucket.
        assert!(unsafe { find_reply(b.0.as_mut_ptr(), 0, &key(9), 9) }.is_none());
    }

    #[test]
    fn the_longest_idle_gives_way_and_the_closed_before_it() {
        let mut b = bucket();
        for n in 0..8 {
            assert_eq!(insert(&mut b, 3, n, 0, 100 + n as u32), (true, false));
        }
        assert_eq!(insert(&mut b, 3, 50, 0, 200), (true, true));
        assert!(
            !b.0.iter().any(|e| e.meta.backend() == 0),
            "flow 0 was idle longest"
        );
        let closed = b.0.iter().position(|e| e.meta.backend() == 6).unwrap();
        b.0[closed].meta = b.0[closed].meta.with_flags(flags::RESET);
        assert_eq!(
            insert(&mut b, 3, 51, 0, 201),
            (true, false),
            "a closed flow is no loss"
        );
        assert_eq!(b.0[closed].meta.backend(), 51);
    }

    #[test]
    fn a_bucket_that_others_write_is_left_alone() {
        let mut b = bucket();
        for e in &mut b.0 {
            e.meta = Meta::new(0, 0, flags::CLAIMED, 0);
        }
        assert!(!insert(&mut b, 0, 1, 0, 5).0);
        // SAFETY: a whole bucket.
        assert!(unsafe { find(b.0.as_mut_ptr(), 0, &key(0)) }.is_none());
    }

    #[test]
    fn the_emptier_bucket_is_chosen_once_the_first_is_nearly_full() {
        let (mut a, mut b) = (bucket(), bucket());
        let mut cell = 0;
        let mut look = |x: &mut Bucket<Flow4>| {
            // SAFETY: a whole bucket.
            unsafe { place(x.0.as_mut_ptr(), 0, 9, REST_ESTABLISHED, &raw mut cell) }
        };
        for n in 0..7 {
            assert!(!second_is_better(&look(&mut a), &look(&mut b)) || n == 7);
            insert(&mut a, 0, n, 0, 5);
        }
        assert!(second_is_better(&look(&mut a), &look(&mut b)));
        for n in 0..8 {
            insert(&mut b, 0, 100 + n, 0, 5);
        }
        assert!(!second_is_better(&look(&mut a), &look(&mut b)));
    }
}
