//! Counters and events: one increment per packet and reason, without a lock,
//! because each CPU has its own.

use crate::maps::{BACKEND_TRAFFIC, EVENTS, FRONTEND_TRAFFIC, REASONS};
use crate::verdict::Verdict;
use common::counters::{Reason, Traffic};
use common::tables::Event;

/// Counts a reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(n) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own value; XDP programs do not preempt each other.
        unsafe { *n += 1 };
    }
}

/// Counts why a packet is left to the stack.
#[inline(always)]
pub fn pass(reason: Reason) -> Verdict {
    count(reason);
    Verdict::PASS
}

/// Counts a packet from a client.
#[inline(always)]
pub fn traffic_in(frontend: u32, backend: u32, bytes: u64) {
    on_frontend(frontend, |t| {
        t.packets_in += 1;
        t.bytes_in += bytes;
    });
    on_backend(backend, |t| {
        t.packets_in += 1;
        t.bytes_in += bytes;
    });
}

/// Counts a packet to a client.
#[inline(always)]
pub fn traffic_out(frontend: u32, backend: u32, bytes: u64) {
    on_frontend(frontend, |t| {
        t.packets_out += 1;
        t.bytes_out += bytes;
    });
    on_backend(backend, |t| {
        t.packets_out += 1;
        t.bytes_out += bytes;
    });
}

/// Changes this CPU's counts of a frontend.
#[inline(always)]
pub fn on_frontend(slot: u32, change: impl FnOnce(&mut Traffic)) {
    if let Some(t) = FRONTEND_TRAFFIC.get_ptr_mut(slot) {
        // SAFETY: this CPU's own value.
        change(unsafe { &mut *t });
    }
}

/// Changes this CPU's counts of a backend.
#[inline(always)]
pub fn on_backend(slot: u32, change: impl FnOnce(&mut Traffic)) {
    if let Some(t) = BACKEND_TRAFFIC.get_ptr_mut(slot) {
        // SAFETY: this CPU's own value.
        change(unsafe { &mut *t });
    }
}

/// Tells the agent of a passive sign. A full ring loses it, and counts that: the
/// agent needs only a few.
#[inline(always)]
pub fn event(kind: u32, backend: u32, generation: u32) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(Event {
                kind,
                backend,
                generation,
                reserved: 0,
            });
            entry.submit(0);
        }
        None => count(Reason::EventLost),
    }
}
