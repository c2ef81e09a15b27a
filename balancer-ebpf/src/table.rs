//! The three flow tables: finding, inserting and freeing, by the tags beside the
//! buckets.

use crate::count::count;
use crate::flows::{self, By, Entry, Fields, Key};
use crate::maps::{self, CELL, FLOWS4, FLOWS6, HALF_OPEN, HANDS, TAGS_HALF_OPEN, TAGS4, TAGS6};
use crate::report::note;
use crate::snat;
use aya_ebpf::maps::Array;
use common::counters::Reason;
use common::flow::{Bucket, Flow4, Flow6, Lanes, Meta, ROOMY, Tags, flags};
use common::hash;
use common::limits::FLOW_BUCKET_ENTRIES;
use common::tables::HANDS_IN_WORD;

/// One of the tables.
pub trait Table {
    /// Its entries.
    type Entry: Entry;
    /// First entry of a bucket.
    fn bucket(index: u32) -> Option<*mut Self::Entry>;
    /// The tags beside a bucket, as two words.
    fn tags(index: u32) -> Option<*mut u64>;
    /// Buckets less one.
    fn mask() -> u32;
    /// Which entry of a full bucket has to give way.
    fn victim(index: u32, bucket: *mut Self::Entry, now: u32) -> usize;
    /// Counts that a flow which is still in use gave way.
    fn evicted();
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident, $entry:ty, $flows:ident, $tags:ident, $mask:ident,
     $victim:expr, $evicted:expr) => {
        $(#[$doc])*
        pub struct $name;

        impl Table for $name {
            type Entry = $entry;
            #[inline(always)]
            fn bucket(index: u32) -> Option<*mut $entry> {
                let flows: &Array<Bucket<$entry>> = &$flows;
                Some(flows.get_ptr_mut(index)?.cast())
            }
            #[inline(always)]
            fn tags(index: u32) -> Option<*mut u64> {
                let tags: &Array<Tags> = &$tags;
                Some(tags.get_ptr_mut(index)?.cast())
            }
            #[inline(always)]
            fn mask() -> u32 {
                maps::$mask()
            }
            #[inline(always)]
            fn victim(index: u32, bucket: *mut $entry, now: u32) -> usize {
                $victim(index, bucket, now)
            }
            #[inline(always)]
            fn evicted() {
                $evicted
            }
        }
    };
}

table!(
    /// Established IPv4 flows.
    Established4, Flow4, FLOWS4, TAGS4, flow4_mask, longest_idle, note(Reason::FlowEvicted)
);
table!(
    /// Established IPv6 flows.
    Established6, Flow6, FLOWS6, TAGS6, flow6_mask, longest_idle, note(Reason::FlowEvicted)
);
table!(
    /// Half-open flows of both families: IPv4 as mapped addresses.
    HalfOpen, Flow6, HALF_OPEN, TAGS_HALF_OPEN, half_open_mask, turn,
    count(Reason::HalfOpenEvicted)
);

#[inline(always)]
fn longest_idle<E: Entry>(_: u32, bucket: *mut E, now: u32) -> usize {
    match CELL.get_ptr_mut(0) {
        // SAFETY: a bucket of the map; this CPU's own cell.
        Some(cell) => unsafe { flows::victim(bucket, now, cell) },
        None => 0,
    }
}

/// In turn: the oldest, at a cost that does not grow with the flood that fills the
/// table. Two CPUs at once may get the same turn, and one finds it taken.
#[inline(always)]
fn turn(index: u32, _: *mut Flow6, _: u32) -> usize {
    let Some(hands) = HANDS.get_ptr_mut(index / HANDS_IN_WORD) else {
        return 0;
    };
    // SAFETY: in the map's value.
    unsafe {
        let hand = hands
            .cast::<u8>()
            .wrapping_add((index % HANDS_IN_WORD) as usize);
        let at = hand.read_volatile();
        hand.write_volatile(at.wrapping_add(1));
        at as usize & (FLOW_BUCKET_ENTRIES - 1)
    }
}

/// Where an entry is: bucket and position, in one number.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct At(u32);

impl At {
    /// Nowhere.
    pub const NONE: Self = Self(0);

    #[inline(always)]
    fn new(bucket: u32, position: usize) -> Self {
        Self(bucket * FLOW_BUCKET_ENTRIES as u32 + position as u32)
    }

    #[inline(always)]
    fn bucket(self) -> u32 {
        self.0 / FLOW_BUCKET_ENTRIES as u32
    }

    #[inline(always)]
    fn position(self) -> usize {
        self.0 as usize & (FLOW_BUCKET_ENTRIES - 1)
    }
}

/// A flow that was found: where, and its state at that moment.
pub struct Found<T: Table> {
    /// The entry.
    pub entry: *mut T::Entry,
    /// Its state.
    pub meta: Meta,
    at: At,
}

/// The flow near its home in its first bucket, where nearly all are: mostly for the
/// price of one cache line, and without the tags.
#[inline(always)]
pub fn near_home<T: Table>(hash: u64, key: &Key, by: By) -> Option<Found<T>> {
    let index = hash::first_bucket(hash, T::mask());
    let bucket = T::bucket(index)?;
    let home = hash::home(hash);
    let mut step = 0;
    while step < hash::NEAR {
        let position = hash::near(home, step);
        let entry = bucket.wrapping_add(position);
        // SAFETY: an entry of the bucket.
        if let Some(meta) = unsafe { flows::holds(entry, key, by) } {
            let at = At::new(index, position);
            return Some(Found { entry, meta, at });
        }
        step += 1;
    }
    None
}

#[inline(always)]
fn in_bucket<T: Table>(index: u32, tag: u16, key: &Key, by: By, at: &mut At) -> *mut T::Entry {
    let (Some(tags), Some(bucket)) = (T::tags(index), T::bucket(index)) else {
        return core::ptr::null_mut();
    };
    let mut lanes = Lanes::equal(words(tags), tag);
    let mut n = 0;
    while n < FLOW_BUCKET_ENTRIES {
        n += 1;
        if lanes.is_empty() {
            break;
        }
        let position = lanes.first();
        lanes = lanes.rest();
        let entry = bucket.wrapping_add(position);
        // SAFETY: an entry of the bucket.
        if unsafe { flows::holds(entry, key, by) }.is_some() {
            *at = At::new(index, position);
            return entry;
        }
    }
    core::ptr::null_mut()
}

#[inline(always)]
fn words(tags: *mut u64) -> [u64; 2] {
    // SAFETY: the two words of a bucket's tags.
    unsafe { [tags.read_volatile(), tags.wrapping_add(1).read_volatile()] }
}

/// Looks in both buckets; null where there is none.
#[inline(never)]
fn search<T: Table>(hash: u64, key: &Key, by: By, at: &mut At) -> *mut T::Entry {
    let (mask, tag) = (T::mask(), hash::tag(hash));
    let entry = in_bucket::<T>(hash::first_bucket(hash, mask), tag, key, by, at);
    if !entry.is_null() {
        return entry;
    }
    in_bucket::<T>(hash::second_bucket(hash, mask), tag, key, by, at)
}

/// The flow that is looked for, with its state now.
#[inline(always)]
pub fn find<T: Table>(hash: u64, key: &Key, by: By) -> Option<Found<T>> {
    let mut at = At::NONE;
    let entry = search::<T>(hash, key, by, &mut at);
    if entry.is_null() {
        return None;
    }
    // Looked at once more, and not only read: another CPU may have freed it since.
    // SAFETY: an entry of a map.
    let meta = unsafe { flows::holds(entry, key, by) }?;
    Some(Found { entry, meta, at })
}

/// Whether neither bucket can have a flow of this client's address and port: all that
/// a new connection needs to know.
#[inline(always)]
pub fn lacks<T: Table>(hash: u64) -> bool {
    let (mask, tag) = (T::mask(), hash::tag(hash));
    let first = T::tags(hash::first_bucket(hash, mask));
    let second = T::tags(hash::second_bucket(hash, mask));
    let (Some(first), Some(second)) = (first, second) else {
        return false;
    };
    // Both are loaded before either is judged: the waits overlap.
    let (first, second) = (words(first), words(second));
    Lanes::equal(first, tag).is_empty() && Lanes::equal(second, tag).is_empty()
}

/// Marks a half-open flow as on its way to the established table; `None` when another
/// CPU is moving it, or its state has changed.
#[inline(always)]
pub fn begin_move(found: &Found<HalfOpen>) -> Option<Found<HalfOpen>> {
    let meta = found.meta.with_flags(flags::MOVING);
    // SAFETY: the flow was found in the map.
    let ours = found.meta.flags() & flags::MOVING == 0
        && unsafe { flows::exchange(found.entry, found.meta, meta) };
    let (entry, at) = (found.entry, found.at);
    ours.then_some(Found { entry, meta, at })
}

/// Frees a flow's entry unless its state has changed; whether it was freed.
#[inline(always)]
pub fn free<T: Table>(found: &Found<T>) -> bool {
    // SAFETY: the flow was found in the map; its tag is at the same place.
    unsafe {
        if !flows::claim(found.entry, found.meta) {
            return false;
        }
        if let Some(tags) = T::tags(found.at.bucket()) {
            let tag = tags.cast::<u16>().wrapping_add(found.at.position());
            tag.write_volatile(0);
        }
        flows::publish(found.entry, Meta::FREE)
    }
}

/// The entry that a new flow is to take.
pub struct Chosen<T: Table> {
    entry: *mut T::Entry,
    /// The last flow's state; zero when it was free.
    old: Meta,
    tag: *mut u16,
}

/// An entry that was claimed, with the last flow's fields still in it.
pub struct Claimed<T: Table>(Chosen<T>);

/// Chooses the entry that a new flow is to take, and reads its state: the first bucket's
/// while that is [`ROOMY`], else the emptier bucket's. Preferring the first keeps most
/// lookups at one bucket; the second choice keeps any bucket from overflowing.
#[inline(always)]
pub fn choose<T: Table>(hash: u64, now: u32) -> Option<Chosen<T>> {
    let mask = T::mask();
    let mut index = hash::first_bucket(hash, mask);
    let mut tags = T::tags(index)?;
    let mut free = Lanes::free(words(tags));
    if free.count() < ROOMY {
        let second = hash::second_bucket(hash, mask);
        let others = T::tags(second)?;
        let lanes = Lanes::free(words(others));
        if lanes.count() > free.count() {
            (index, tags, free) = (second, others, lanes);
        }
    }
    let bucket = T::bucket(index)?;
    let position = if free.is_empty() {
        T::victim(index, bucket, now)
    } else {
        free.nearest(hash::home(hash))
    };
    let entry = bucket.wrapping_add(position & (FLOW_BUCKET_ENTRIES - 1));
    let tag = tags
        .cast::<u16>()
        .wrapping_add(position & (FLOW_BUCKET_ENTRIES - 1));
    // SAFETY: an entry of the bucket.
    let old = unsafe { flows::meta(entry) };
    Some(Chosen { entry, old, tag })
}

impl<T: Table> Chosen<T> {
    /// Claims the entry. `None` when another CPU has it.
    #[inline(always)]
    pub fn claim(self) -> Option<Claimed<T>> {
        // SAFETY: an entry of a bucket.
        if unsafe { flows::claim(self.entry, self.old) } {
            Some(Claimed(self))
        } else {
            None
        }
    }

    /// Whether the last flow has a port of its own that has to be freed.
    #[inline(always)]
    pub fn holds_port(&self) -> bool {
        self.old.flags() & flags::SNAT != 0 && !self.old.is_closed()
    }
}

impl<T: Table> Claimed<T> {
    /// Gives the entry back as it was.
    #[inline(always)]
    pub fn give_back(self) {
        // SAFETY: claimed by us.
        unsafe { flows::publish(self.0.entry, self.0.old) };
    }

    /// Writes the new flow; whether one that is still in use had to give way.
    #[inline(always)]
    pub fn fill(self, hash: u64, fields: &Fields, state: Meta) -> bool {
        let Chosen { entry, old, tag } = self.0;
        // SAFETY: claimed by us: nobody else writes entry and tag.
        unsafe {
            let port = T::Entry::snat_port(entry);
            tag.write_volatile(hash::tag(hash));
            T::Entry::fill(entry, fields);
            flows::publish(entry, state);
            if self.0.holds_port() {
                snat::close(old, port);
            }
        }
        old.is_live() && !old.is_closed()
    }
}
