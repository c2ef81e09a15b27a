//! A new flow: the next slot of the frontend's ring, and an entry in the
//! half-open table.

use crate::atomic;
use crate::count::{count, on_both, on_frontend};
use crate::flows::{By, Fields, Key};
use crate::forward;
use crate::local;
use crate::maps::Tables;
use crate::open::send;
use crate::parse::{Packet, proto};
use crate::refuse;
use crate::report::{inconsistent, note};
use crate::snat;
use crate::steer::{self, Family, clock, seen};
use crate::table::{self, HalfOpen, Table};
use crate::verdict::Verdict;
use aya_ebpf::programs::XdpContext;
use common::Be16;
use common::counters::Reason;
use common::flow::{BORN_SHIFT, Meta, flags};
use common::limits::{RING_CHUNK_SLOTS, RING_TRIES};
use common::tables::{Frontend, RingRef, state};

/// Steers the first packet of a flow to the backend that was chosen.
#[inline(never)]
pub fn new_flow<F: Family>(
    ctx: &XdpContext,
    p: &Packet,
    slot: u32,
    hash: u64,
    chosen: u32,
) -> Verdict {
    let Some(tables) = Tables::new() else {
        return inconsistent();
    };
    let frontend = tables.frontend(slot);
    let key = Key {
        addr: p.src,
        port: p.sport,
        frontend: slot as u16,
    };
    if chosen == NONE {
        count(Reason::NoBackend);
        return refused::<F>(ctx, p, slot, frontend);
    }
    let backend = tables.backend(chosen);
    // SAFETY: in the map's value.
    let (word, endpoint) = unsafe {
        (
            (&raw const (*backend).state).read_volatile(),
            (*backend).endpoint,
        )
    };
    if word & state::LOCAL != 0 {
        return local::begin(ctx, slot, chosen);
    }
    let generation = (word >> state::GENERATION_SHIFT) as u8;
    let ns = clock();
    let now = seen(ns);

    let mut set = flags::VALID | p.vlan;
    if p.proto == proto::UDP {
        set |= flags::UDP;
    }
    let mut snat_port = Be16(0);
    if frontend.snat_count != 0 {
        let owner = snat::Owner {
            key,
            backend: chosen as u16,
            generation,
            endpoint,
            now,
        };
        let claimed = snat::claim(frontend, &owner);
        if claimed == snat::EXHAUSTED {
            note(Reason::SnatExhausted);
            return refused::<F>(ctx, p, slot, frontend);
        }
        snat_port = Be16(claimed as u16);
        set |= flags::SNAT | ((claimed >> 16) as u16) << flags::SNAT_SLOT_SHIFT;
    }
    let Some(path) = steer::path(&forward::frame(ctx), p) else {
        return Verdict::DROP;
    };
    let fields = Fields {
        key,
        path,
        snat_port,
        endpoint,
        born: (ns >> BORN_SHIFT) as u32,
    };
    let meta = Meta::new(chosen as u16, generation, set, now);
    if !insert(hash, &fields, meta) {
        // The peer repeats its packet, and finds the table at rest.
        note(Reason::FlowTableBusy);
        return Verdict::DROP;
    }
    on_both(slot, chosen, [(Reason::FlowNew, 1)], |t| t.flows += 1);
    send::<F>(ctx, p, slot, meta, snat_port)
}

#[inline(always)]
fn refused<F: Family>(ctx: &XdpContext, p: &Packet, slot: u32, frontend: &Frontend) -> Verdict {
    on_frontend(slot, |t| t.refused += 1);
    refuse::packet::<F>(ctx, p, frontend.unavailable)
}

const NONE: u32 = u32::MAX;

/// The backend whose turn it is, for [`new_flow`]; [`NONE`] when no usable one was met.
/// A call beside that one and not in it: each has the stack for itself.
#[inline(never)]
pub fn choose<F: Family>(slot: u32, frontend: &Frontend, key: &Key, hash: u64) -> u32 {
    // SAFETY: in the map's value; one load, so that the ring is of one piece.
    let ring = RingRef::from_word(unsafe { (&raw const frontend.ring).read_volatile() });
    let Some(tables) = Tables::new() else {
        return NONE;
    };
    let cursor = tables.cursor(slot);
    if ring.len == 0 {
        return NONE;
    }
    let mut tries = 0;
    while tries < RING_TRIES {
        tries += 1;
        // One position per try, for all CPUs together: this is what makes the
        // round robin exact, and only new flows pay for it.
        // SAFETY: in the map's value, and only used by atomics here.
        let position = unsafe { atomic::count_up(&raw mut (*cursor).position) };
        let at = ring.at(position);
        let chunk = tables.chunk(ring.chunk + at / RING_CHUNK_SLOTS);
        // SAFETY: within the chunk.
        let chosen = unsafe {
            let slots = (&raw const (*chunk).0).cast::<u32>();
            slots.add((at % RING_CHUNK_SLOTS) as usize).read_volatile()
        };
        let backend = tables.backend(chosen);
        // SAFETY: in the map's value.
        let (word, endpoint) = unsafe {
            (
                (&raw const (*backend).state).read_volatile(),
                (*backend).endpoint,
            )
        };
        if word & (state::PRESENT | state::USABLE) != state::PRESENT | state::USABLE {
            count(Reason::BackendSkipped);
        } else if word & state::LOCAL != 0 {
            return chosen;
        } else if frontend.snat_count == 0 && taken::<F>(key, hash, endpoint) {
            count(Reason::TupleConflict);
        } else {
            return chosen;
        }
    }
    NONE
}

/// Whether the endpoint already has a flow of this client's address and port.
/// One that is over makes way.
#[inline(always)]
fn taken<F: Family>(key: &Key, hash: u64, endpoint: u16) -> bool {
    let by = By::endpoint(endpoint);
    if let Some(f) = table::find::<F::Established>(hash, key, by) {
        return !(f.meta.is_closed() && table::free(&f));
    }
    if let Some(f) = table::find::<HalfOpen>(hash, key, by) {
        return !(f.meta.is_closed() && table::free(&f));
    }
    false
}

/// Puts a new flow into the half-open table.
#[inline(never)]
fn insert(hash: u64, fields: &Fields, meta: Meta) -> bool {
    put::<HalfOpen>(hash, fields, meta)
}

/// Puts a flow into a table. False when other CPUs were in the way.
#[inline(always)]
pub fn put<T: Table>(hash: u64, fields: &Fields, meta: Meta) -> bool {
    match table::choose::<T>(hash, meta.seen()).and_then(|chosen| chosen.claim()) {
        Some(claimed) => {
            if claimed.fill(hash, fields, meta) {
                T::evicted();
            }
            true
        }
        None => false,
    }
}
