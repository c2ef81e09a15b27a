//! The first packet of a TCP connection when nothing stands in its way: no flow of
//! this client's address and port anywhere, no translated source, a usable backend
//! next in the ring. All else is left, unchanged, to `select`.
//!
//! It has to be quick however full the tables are: this is what a flood of SYNs costs.
//! It reads the tags of four buckets, and writes one entry.

use crate::atomic;
use crate::count::on_both;
use crate::fast::Plain;
use crate::flows::Fields;
use crate::forward;
use crate::frame::load;
use crate::maps::{Tables, seed};
use crate::open::bad_source;
use crate::steer::{Family, clock, seen};
use crate::table::{self, HalfOpen};
use crate::verdict::Verdict;
use common::counters::Reason;
use common::flow::{BORN_SHIFT, Meta, ReturnPath, flags};
use common::limits::{DEVICES, RING_CHUNK_SLOTS};
use common::tables::{Backend, Frontend, RingRef, frontend_flags, state};
use common::{Be16, hash};

/// Steers the packet to the frontend at `slot`; `None` leaves it to the slow path.
///
/// # Safety
/// The headers must have been checked.
#[inline(always)]
pub unsafe fn packet<F: Family>(p: &Plain<'_>, slot: u32, frontend: &Frontend) -> Option<Verdict> {
    // SAFETY: by the caller; entries of maps.
    unsafe {
        let key = p.client::<F>(slot);
        if frontend.snat_count != 0
            || frontend.flags & (frontend_flags::CLOSING | frontend_flags::LOCAL) != 0
            || key.port.0 == 0
            || bad_source::<F>(&key.addr)
        {
            return None;
        }
        let hash = hash::client(&key.addr, key.port, seed());
        let ns = clock();
        let now = seen(ns);
        // First, though it may be for nothing: the entry is far away, and on its way
        // while the rest is looked at.
        let place = table::choose::<HalfOpen>(hash, now)?;
        if !table::lacks::<F::Established>(hash)
            || !table::lacks::<HalfOpen>(hash)
            || place.holds_port()
        {
            return None;
        }
        // Everything that can be known before, because atomics wait for the entry.
        let turn = turn(p.tables, slot, frontend)?;
        let Turn {
            chosen,
            backend,
            word,
            ..
        } = turn;
        let hop = forward::hop(backend, word);
        let ingress = p.ingress();
        let fields = Fields {
            key,
            path: ReturnPath {
                mac: load(p.eth + 6),
                device: (ingress % DEVICES) as u16,
                tci: [Be16(0); 2],
            },
            snat_port: Be16(0),
            endpoint: (*backend).endpoint,
            born: (ns >> BORN_SHIFT) as u32,
        };
        let generation = (word >> state::GENERATION_SHIFT) as u8;
        let claimed = place.claim()?;
        if !turn.take() {
            claimed.give_back();
            return None;
        }
        let evicted = claimed.fill(
            hash,
            &fields,
            Meta::new(chosen as u16, generation, flags::VALID, now),
        );
        let reasons = [
            (Reason::FlowNew, 1),
            (Reason::HalfOpenEvicted, evicted as u64),
        ];
        let bytes = p.frame.len() as u64;
        on_both(slot, chosen, reasons, |t| {
            t.flows += 1;
            t.packets_in += 1;
            t.bytes_in += bytes;
        });
        Some(p.send::<F>(frontend, backend, hop, ingress))
    }
}

/// The next turn of a frontend's ring, as long as nobody else takes it.
struct Turn {
    cursor: *mut u64,
    position: u64,
    /// Slot of the backend.
    chosen: u32,
    backend: *const Backend,
    /// The backend's state.
    word: u32,
}

/// The turn that is next, if its backend can take the packet at once: only then is it
/// used, so that the slow path finds it where it was.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn turn(tables: Tables, slot: u32, frontend: &Frontend) -> Option<Turn> {
    // SAFETY: entries of maps.
    unsafe {
        // One load, so that the ring is of one piece.
        let ring = RingRef::from_word((&raw const frontend.ring).read_volatile());
        if ring.len == 0 {
            return None;
        }
        let cursor = &raw mut (*tables.cursor(slot)).position;
        let position = cursor.read_volatile();
        let at = ring.at(position);
        let chunk = tables.chunk(ring.chunk + at / RING_CHUNK_SLOTS);
        let slots = (&raw const (*chunk).0).cast::<u32>();
        let chosen = slots.add((at % RING_CHUNK_SLOTS) as usize).read_volatile();
        let backend = tables.backend(chosen);
        let word = (&raw const (*backend).state).read_volatile();
        let needed = state::PRESENT | state::USABLE | state::HOP_PLAIN;
        if word & (needed | state::STOPPED | state::LOCAL) != needed {
            return None;
        }
        Some(Turn {
            cursor,
            position,
            chosen,
            backend,
            word,
        })
    }
}

impl Turn {
    /// Uses it. False when another CPU was quicker.
    #[inline(always)]
    unsafe fn take(&self) -> bool {
        // SAFETY: the cursor is in the map's value.
        unsafe { atomic::compare_exchange(self.cursor, self.position, self.position + 1) }
    }
}
