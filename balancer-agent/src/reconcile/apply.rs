//! Carries out steps on the tables. Every step stores absolute values, so repeating
//! one changes nothing, and cannot fail: what could not be done was found out when
//! the plan was made.

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use common::tables::{Backend, Frontend, Hop, RingRef, SnatAddress, state};
use zerocopy::IntoBytes;

use super::step::{Index, Step};
use crate::dataplane::{Tables, flows};

/// Carries out one step.
pub fn apply(step: &Step, tables: &Tables) {
    match step {
        Step::Device { slot, device } => tables.devices.write(*slot, *device),
        Step::Snat { slot, address } => snat(tables, *slot, address),
        Step::Endpoint { slot, endpoint } => tables.endpoints.write(u32::from(*slot), *endpoint),
        Step::Index {
            index,
            bucket,
            position,
            entry,
        } => {
            let table = match index {
                Index::Frontends => &tables.frontend_index,
                Index::Endpoints => &tables.endpoint_index,
            };
            table.put(*bucket, *position, *entry);
        }
        Step::Backend { slot, entry } => tables.backends.write(u32::from(*slot), **entry),
        Step::Hop { slot, which, hop } => {
            let offset = offset_of!(Backend, hops) + usize::from(*which) * size_of::<Hop>();
            words(hop.as_bytes(), |at, word| {
                tables
                    .backends
                    .store_u64(u32::from(*slot), offset + at, word);
            });
        }
        Step::State { slot, state } => put_state(tables, *slot, *state),
        Step::Ring { region, turns } => ring(tables, *region, turns),
        Step::Frontend { slot, entry } => {
            tables.cursors.store_u64(u32::from(*slot), 0, 0);
            tables.frontends.write(u32::from(*slot), *entry);
        }
        Step::FrontendRing { slot, ring } => {
            let offset = offset_of!(Frontend, ring);
            let word = ring.to_word();
            tables.frontends.store_u64(u32::from(*slot), offset, word);
        }
        Step::FrontendFlags {
            slot,
            unavailable,
            flags,
        } => frontend_flags(tables, *slot, *unavailable, *flags),
        Step::FrontendSnat { slot, count, slots } => {
            let slot = u32::from(*slot);
            if *count > 0 {
                let word = u64::from_ne_bytes(*slots);
                tables
                    .frontends
                    .store_u64(slot, offset_of!(Frontend, snat), word);
            }
            let offset = offset_of!(Frontend, snat_count);
            tables.frontends.store_u32(slot, offset, u32::from(*count));
        }
        Step::FrontendId { slot, id } => {
            let offset = offset_of!(Frontend, id);
            tables.frontends.store_u64(u32::from(*slot), offset, *id);
        }
        Step::Purge {
            backends,
            frontends,
            snat,
        } => {
            flows::purge(tables, backends, frontends, snat);
        }
    }
    // A step is seen before the next one by a reader that sees the next one. Free on
    // machines that keep stores in order.
    fence(Ordering::Release);
}

/// The fast path of a bad verdict: takes a backend out with one store, before any
/// plan is made. The next round finds the word as it is. Returns whether the slot
/// was present and usable.
pub fn take_out(tables: &Tables, slot: u16) -> bool {
    let word = tables
        .backends
        .atomic_u32(u32::from(slot), offset_of!(Backend, state));
    let before = word.fetch_and(!state::USABLE, Ordering::AcqRel);
    before & (state::PRESENT | state::USABLE) == state::PRESENT | state::USABLE
}

/// Stores a backend's whole state word.
pub fn put_state(tables: &Tables, slot: u16, state: u32) {
    let offset = offset_of!(Backend, state);
    tables.backends.store_u32(u32::from(slot), offset, state);
}

/// A backend's state word as it is.
pub fn state_of(tables: &Tables, slot: u16) -> u32 {
    let offset = offset_of!(Backend, state);
    tables
        .backends
        .atomic_u32(u32::from(slot), offset)
        .load(Ordering::Acquire)
}

fn snat(tables: &Tables, slot: u8, address: &SnatAddress) {
    const PORTS: usize = offset_of!(SnatAddress, first_port);
    const { assert!(PORTS + 8 == offset_of!(SnatAddress, cursor)) };
    let bytes = &address.as_bytes()[..PORTS + 8];
    // The ports' word first: an address that is being written is in no frontend, and
    // of one that is in use only that word changes.
    let slot = u32::from(slot);
    for at in [PORTS, 0, 8] {
        words(&bytes[at..at + 8], |_, word| {
            tables.snat_addresses.store_u64(slot, at, word);
        });
    }
}

fn ring(tables: &Tables, region: RingRef, turns: &[u32]) {
    debug_assert_eq!(region.len as usize, turns.len());
    // Before any frontend has it: the next agent lets the chunks rest that are below.
    tables.raise_ring_end(super::observed::region(region).end);
    let chunks = turns.chunks(common::limits::RING_CHUNK_SLOTS as usize);
    for (chunk, turns) in (region.chunk..).zip(chunks) {
        let mut slots = common::tables::RingChunk::default();
        slots.0[..turns.len()].copy_from_slice(turns);
        tables.rings.write(chunk, slots);
    }
}

fn frontend_flags(tables: &Tables, slot: u16, unavailable: u8, flags: u32) {
    const WORD: usize = offset_of!(Frontend, port);
    const { assert!(WORD.is_multiple_of(8) && offset_of!(Frontend, flags) == WORD + 4) };
    let mut entry = tables.frontends.read(u32::from(slot));
    entry.unavailable = unavailable;
    entry.flags = flags;
    words(&entry.as_bytes()[WORD..WORD + 8], |_, word| {
        tables.frontends.store_u64(u32::from(slot), WORD, word);
    });
}

/// The words of an entry's bytes, with their offsets.
fn words(bytes: &[u8], mut store: impl FnMut(usize, u64)) {
    for (i, word) in bytes.chunks_exact(8).enumerate() {
        let mut w = [0; 8];
        w.copy_from_slice(word);
        store(i * 8, u64::from_ne_bytes(w));
    }
}

const _: () =
    assert!(offset_of!(Backend, hops).is_multiple_of(8) && size_of::<Hop>().is_multiple_of(8));
