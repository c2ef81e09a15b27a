//! Reads the flow tables through memory, and removes what is over.
//!
//! The kernel makes and changes entries at any moment. An entry is read like the
//! kernel reads it: state, content, content and state again, and used when nothing
//! moved. It is removed by claiming it, which fails when a packet came in between, and
//! zeroing tag and state.
//!
//! Times are nanoseconds of the monotonic clock, as the kernel program has them. It
//! may have written a time a little later than the `now` that the caller read before;
//! such an entry has been idle for no time, not for the length of the clock's circle.

mod expire;
#[cfg(test)]
mod tests;

use std::fmt;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use common::flow::{
    BORN_SHIFT, Entry, Flow4, Flow6, Meta, SEEN_MASK, SEEN_SHIFT, SEEN_STEP, flags,
};
use common::limits::FLOW_BUCKET_ENTRIES;
use common::tables::{Backend, state};

use super::{FlowTable, Tables};
use crate::model::{FlowTimeouts, Protocol};

pub use expire::{Cursor, Expired, expire, purge, purge_backend, purge_frontend, recover};

/// One flow, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// The client.
    pub client: SocketAddr,
    /// Slot of the frontend.
    pub frontend: u16,
    /// Slot of the backend.
    pub backend: u16,
    /// The backend slot's generation when the flow was made. When the slot has
    /// another by now, the flow is stale.
    pub generation: u8,
    /// Protocol.
    pub protocol: Protocol,
    /// How far it is.
    pub state: FlowState,
    /// Since the last packet; exact to about a second.
    pub idle: Duration,
    /// Slot of the snat address and the translated source port.
    pub snat: Option<(u8, u16)>,
    /// Whether it is in the half-open table.
    pub half_open: bool,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowState {
    /// TCP: the backend has not answered the SYN.
    SynSent,
    /// TCP: the backend has, the client's ACK is missing.
    Answered,
    /// TCP: open.
    Established,
    /// TCP: FIN from one side.
    Closing,
    /// RST, or FIN from both sides.
    Closed,
    /// UDP: no answer yet.
    OneWay,
    /// UDP: datagrams both ways.
    BothWays,
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SynSent => "syn-sent",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::OneWay => "one-way",
            Self::BothWays => "both-ways",
        })
    }
}

/// How many flows there are that are neither closed nor timed out nor stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// In the tables of established flows.
    pub established: u32,
    /// In the half-open table.
    pub half_open: u32,
}

impl FlowCount {
    /// Both together.
    pub fn live(&self) -> u32 {
        self.established + self.half_open
    }
}

/// [`FlowCount`]s by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    backends: Vec<FlowCount>,
    frontends: Vec<FlowCount>,
    snat: [u32; 8],
}

impl FlowCounts {
    /// Of a backend slot.
    pub fn backend(&self, slot: u16) -> FlowCount {
        let count = self.backends.get(usize::from(slot));
        count.copied().unwrap_or_default()
    }

    /// Of a frontend slot.
    pub fn frontend(&self, slot: u16) -> FlowCount {
        let count = self.frontends.get(usize::from(slot));
        count.copied().unwrap_or_default()
    }

    /// Flows with that slot's snat address.
    pub fn snat(&self, slot: u8) -> u32 {
        self.snat.get(usize::from(slot)).copied().unwrap_or(0)
    }

    /// All flows.
    pub fn total(&self) -> FlowCount {
        let zero = FlowCount::default();
        self.backends.iter().fold(zero, |sum, count| FlowCount {
            established: sum.established + count.established,
            half_open: sum.half_open + count.half_open,
        })
    }
}

/// SYNs that a backend left unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Slot of the backend.
    pub backend: u16,
    /// How many.
    pub syns: u32,
}

/// Calls `f` for every flow, closed and timed out ones too.
pub fn for_each(tables: &Tables, now: u64, mut f: impl FnMut(FlowView)) {
    let now = Now::new(now);
    each(&tables.flows4, |e| f(view(&e, false, now)));
    each(&tables.flows6, |e| f(view(&e, false, now)));
    each(&tables.half_open, |e| f(view(&e, true, now)));
}

/// Counts the flows of every backend, frontend and snat address.
pub fn count_by_backend(tables: &Tables, timeouts: &FlowTimeouts, now: u64) -> FlowCounts {
    let mut counts = FlowCounts {
        backends: vec![FlowCount::default(); tables.backends.len() as usize],
        frontends: vec![FlowCount::default(); tables.frontends.len() as usize],
        snat: [0; 8],
    };
    let generations: Vec<Option<u8>> = (0..tables.backends.len())
        .map(|slot| generation(tables, slot as u16))
        .collect();
    let limits = Limits::new(timeouts, Now::new(now));
    count(&tables.flows4, false, &limits, &generations, &mut counts);
    count(&tables.flows6, false, &limits, &generations, &mut counts);
    count(&tables.half_open, true, &limits, &generations, &mut counts);
    counts
}

/// TCP handshakes that their backend has left without an answer for longer than
/// `threshold` gives for its slot, and had not at the time `previous` of the scan
/// before: each is counted by exactly one of a row of scans. By rising slot.
pub fn unanswered(
    tables: &Tables,
    threshold: impl Fn(u16) -> Option<Duration>,
    previous: u64,
    now: u64,
) -> Vec<Unanswered> {
    let mut syns = vec![0u32; tables.backends.len() as usize];
    let (now, before) = (Now::new(now), Now::new(previous));
    each(&tables.half_open, |e: Flow6| {
        let meta = e.meta;
        if meta.flags() & (flags::ANSWERED | flags::UDP) != 0
            || meta.is_closed()
            || generation(tables, meta.backend()) != Some(meta.generation())
        {
            return;
        }
        let Some(after) = threshold(meta.backend()) else {
            return;
        };
        // Signed, as the flow may be younger than the scan before.
        let after = i64::try_from(units(after, BORN_SHIFT)).unwrap_or(i64::MAX);
        let age = |at: Now| i64::from(at.born.wrapping_sub(e.born).cast_signed());
        if age(now) >= after && age(before) < after {
            syns[usize::from(meta.backend())] += 1;
        }
    });
    (0..)
        .zip(syns)
        .filter(|(_, syns)| *syns > 0)
        .map(|(backend, syns)| Unanswered { backend, syns })
        .collect()
}

/// The present time in the units of the entries.
#[derive(Clone, Copy, Debug)]
struct Now {
    seen: u32,
    born: u32,
}

impl Now {
    fn new(nanoseconds: u64) -> Self {
        Self {
            seen: (nanoseconds >> SEEN_SHIFT) as u32 & SEEN_MASK,
            born: (nanoseconds >> BORN_SHIFT) as u32,
        }
    }

    /// Units of `seen` since the last packet.
    fn idle(self, meta: Meta) -> u32 {
        meta.idle(self.seen)
    }

    /// Units of `born` since the flow was made.
    fn age(self, born: u32) -> u32 {
        let age = self.born.wrapping_sub(born);
        if age > u32::MAX / 2 { 0 } else { age }
    }
}

/// Timeouts in the units of the entries. An entry's unit is cut off, and a packet's time
/// is noted only in steps of [`SEEN_STEP`] units: a flow whose difference is `n` units has
/// been idle for more than `n - SEEN_STEP`. It is over when it has been so for longer
/// than the timeout.
struct Limits {
    tcp_idle: u64,
    udp_idle: u64,
    half_open: u64,
    closed: u64,
    now: Now,
}

impl Limits {
    fn new(timeouts: &FlowTimeouts, now: Now) -> Self {
        Self {
            tcp_idle: units(timeouts.tcp_idle, SEEN_SHIFT) + u64::from(SEEN_STEP) - 1,
            udp_idle: units(timeouts.udp_idle, SEEN_SHIFT) + u64::from(SEEN_STEP) - 1,
            half_open: units(timeouts.half_open, BORN_SHIFT),
            closed: units(timeouts.closed, SEEN_SHIFT),
            now,
        }
    }

    /// Whether an open flow has timed out. `born` is only asked for half-open ones.
    fn is_idle(&self, meta: Meta, half_open: bool, born: impl FnOnce() -> u32) -> bool {
        if meta.flags() & flags::UDP != 0 {
            u64::from(self.now.idle(meta)) > self.udp_idle
        } else if half_open {
            u64::from(self.now.age(born())) > self.half_open
        } else {
            u64::from(self.now.idle(meta)) > self.tcp_idle
        }
    }

    /// Whether a closed flow has rested long enough.
    fn is_over(&self, meta: Meta) -> bool {
        u64::from(self.now.idle(meta)) > self.closed
    }
}

fn units(time: Duration, shift: u32) -> u64 {
    let units = time.as_nanos().div_ceil(1 << shift);
    u64::try_from(units).unwrap_or(u64::MAX)
}

/// Entries of the flow tables, with the places of the words that are read apart.
trait Stored: Entry {
    const KEY: usize;
    const META: usize;
    const BORN: Option<usize>;
}

impl Stored for Flow4 {
    const KEY: usize = offset_of!(Flow4, key);
    const META: usize = offset_of!(Flow4, meta);
    const BORN: Option<usize> = None;
}

impl Stored for Flow6 {
    const KEY: usize = offset_of!(Flow6, key);
    const META: usize = offset_of!(Flow6, meta);
    const BORN: Option<usize> = Some(offset_of!(Flow6, born));
}

/// One entry's place.
struct Place<'a, E: Copy> {
    table: &'a FlowTable<E>,
    bucket: u32,
    entry: usize,
}

impl<'a, E: Stored> Place<'a, E> {
    fn new(table: &'a FlowTable<E>, bucket: u32, entry: usize) -> Self {
        Self {
            table,
            bucket,
            entry,
        }
    }

    fn at(&self, offset: usize) -> &'a AtomicU64 {
        let offset = self.entry * size_of::<E>() + offset;
        self.table.buckets.atomic_u64(self.bucket, offset)
    }

    fn word(&self, offset: usize) -> u64 {
        self.at(offset).load(Ordering::Relaxed)
    }

    fn meta(&self) -> Meta {
        Meta(self.at(E::META).load(Ordering::Acquire))
    }

    fn born(&self) -> u32 {
        E::BORN.map_or(0, |offset| {
            let offset = self.entry * size_of::<E>() + offset;
            let born = self.table.buckets.atomic_u32(self.bucket, offset);
            born.load(Ordering::Relaxed)
        })
    }

    /// The frontend, of the key alone.
    fn frontend(&self) -> u16 {
        let mut entry = E::new_zeroed();
        let bytes = entry.as_mut_bytes();
        bytes[E::KEY..E::KEY + 8].copy_from_slice(&self.word(E::KEY).to_ne_bytes());
        entry.frontend()
    }

    /// The entry, if it is live and was not being written just now.
    fn read(&self) -> Option<E> {
        // A busy entry settles at once; one that still moves will be met next time.
        for _ in 0..4 {
            let before = self.meta();
            if !before.is_live() {
                return None;
            }
            let mut entry = E::new_zeroed();
            for (i, bytes) in entry.as_mut_bytes().chunks_exact_mut(8).enumerate() {
                bytes.copy_from_slice(&self.word(i * 8).to_ne_bytes());
            }
            fence(Ordering::Acquire);
            let key = &entry.as_bytes()[E::KEY..E::KEY + 8];
            if entry.meta() == before
                && self.word(E::KEY).to_ne_bytes() == key
                && self.meta() == before
            {
                return Some(entry);
            }
        }
        None
    }

    /// Frees the entry unless it has changed since `meta` was read.
    fn remove(&self, meta: Meta) -> bool {
        let claimed = self.at(E::META).compare_exchange(
            meta.0,
            Meta::AGENT.0,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if claimed.is_ok() {
            self.free();
        }
        claimed.is_ok()
    }

    /// Frees the entry that the agent has claimed: the tag first, as from the moment
    /// that the state is zero both may be the program's again.
    fn free(&self) {
        let tag = self.table.tags.atomic_u16(self.bucket, self.entry * 2);
        tag.store(0, Ordering::Release);
        self.at(E::META).store(Meta::FREE.0, Ordering::Release);
    }
}

fn each<E: Stored>(table: &FlowTable<E>, mut f: impl FnMut(E)) {
    for bucket in 0..table.buckets.len() {
        for entry in 0..FLOW_BUCKET_ENTRIES {
            if let Some(entry) = Place::new(table, bucket, entry).read() {
                f(entry);
            }
        }
    }
}

fn count<E: Stored>(
    table: &FlowTable<E>,
    half_open: bool,
    limits: &Limits,
    generations: &[Option<u8>],
    counts: &mut FlowCounts,
) {
    for bucket in 0..table.buckets.len() {
        for entry in 0..FLOW_BUCKET_ENTRIES {
            let place = Place::new(table, bucket, entry);
            let meta = place.meta();
            if meta == Meta::FREE || !meta.is_live() || meta.is_closed() {
                continue;
            }
            // Two words are enough here: who has the entry and what for.
            let frontend = usize::from(place.frontend());
            let idle = limits.is_idle(meta, half_open, || place.born());
            let now = place.meta();
            let same = (now.backend(), now.generation()) == (meta.backend(), meta.generation());
            if idle || !same {
                continue;
            }
            let backend = usize::from(meta.backend());
            if generations.get(backend).copied().flatten() != Some(meta.generation()) {
                continue;
            }
            let add = |count: &mut FlowCount| match half_open {
                true => count.half_open += 1,
                false => count.established += 1,
            };
            add(&mut counts.backends[backend]);
            if let Some(count) = counts.frontends.get_mut(frontend) {
                add(count);
            }
            if meta.flags() & flags::SNAT != 0 {
                counts.snat[usize::from(meta.snat_slot())] += 1;
            }
        }
    }
}

fn view<E: Stored>(entry: &E, half_open: bool, now: Now) -> FlowView {
    let meta = entry.meta();
    let has = |bits: u16| meta.flags() & bits != 0;
    let udp = has(flags::UDP);
    let state = if meta.is_closed() {
        FlowState::Closed
    } else if udp {
        match half_open {
            true => FlowState::OneWay,
            false => FlowState::BothWays,
        }
    } else if has(flags::CLIENT_FIN | flags::SERVER_FIN) {
        FlowState::Closing
    } else if !half_open {
        FlowState::Established
    } else if has(flags::ANSWERED) {
        FlowState::Answered
    } else {
        FlowState::SynSent
    };
    FlowView {
        client: SocketAddr::new(IpAddr::from(entry.client()), entry.port().host()),
        frontend: entry.frontend(),
        backend: meta.backend(),
        generation: meta.generation(),
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        state,
        idle: Duration::from_nanos(u64::from(now.idle(meta)) << SEEN_SHIFT),
        snat: has(flags::SNAT).then(|| (meta.snat_slot(), entry.snat_port().host())),
        half_open,
    }
}

/// The generation of a backend slot that is present.
fn generation(tables: &Tables, slot: u16) -> Option<u8> {
    if u32::from(slot) >= tables.backends.len() {
        return None;
    }
    let word = tables
        .backends
        .atomic_u32(u32::from(slot), offset_of!(Backend, state))
        .load(Ordering::Acquire);
    (word & state::PRESENT != 0).then_some((word >> state::GENERATION_SHIFT) as u8)
}
