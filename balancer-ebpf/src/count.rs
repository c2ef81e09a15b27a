//! Counters and events: one increment per packet and reason, without a lock,
//! because each CPU has its own.

use crate::maps::{EVENTS, counters};
use crate::verdict::Verdict;
use common::counters::{Reason, Traffic};
use common::limits;
use common::tables::{Counters, Event};

/// Counts a reason.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counters) = counters() {
        // SAFETY: this CPU's own value.
        unsafe { (*counters).reasons[reason as usize] += 1 };
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
    on_both(frontend, backend, [], |t| {
        t.packets_in += 1;
        t.bytes_in += bytes;
    });
}

/// Counts a packet to a client.
#[inline(always)]
pub fn traffic_out(frontend: u32, backend: u32, bytes: u64) {
    on_both(frontend, backend, [], |t| {
        t.packets_out += 1;
        t.bytes_out += bytes;
    });
}

/// Changes this CPU's counts of a frontend and a backend, and adds to reasons.
#[inline(always)]
pub fn on_both<const N: usize>(
    frontend: u32,
    backend: u32,
    reasons: [(Reason, u64); N],
    change: impl Fn(&mut Traffic),
) {
    if let Some(counters) = counters() {
        // SAFETY: this CPU's own values.
        unsafe {
            for (reason, n) in reasons {
                (*counters).reasons[reason as usize] += n;
            }
            change(&mut *frontend_of(counters, frontend));
            change(&mut *backend_of(counters, backend));
        }
    }
}

/// Changes this CPU's counts of a frontend.
#[inline(always)]
pub fn on_frontend(slot: u32, change: impl FnOnce(&mut Traffic)) {
    if let Some(counters) = counters() {
        // SAFETY: this CPU's own value.
        change(unsafe { &mut *frontend_of(counters, slot) });
    }
}

/// Changes this CPU's counts of a backend.
#[inline(always)]
pub fn on_backend(slot: u32, change: impl FnOnce(&mut Traffic)) {
    if let Some(counters) = counters() {
        // SAFETY: this CPU's own value.
        change(unsafe { &mut *backend_of(counters, slot) });
    }
}

#[inline(always)]
fn frontend_of(counters: *mut Counters, slot: u32) -> *mut Traffic {
    let slot = (slot & (limits::FRONTENDS - 1)) as usize;
    // SAFETY: the field lies in the map's value, and the slot in the field.
    unsafe {
        (&raw mut (*counters).frontends)
            .cast::<Traffic>()
            .wrapping_add(slot)
    }
}

#[inline(always)]
fn backend_of(counters: *mut Counters, slot: u32) -> *mut Traffic {
    let slot = (slot & (limits::BACKENDS - 1)) as usize;
    // SAFETY: as above.
    unsafe {
        (&raw mut (*counters).backends)
            .cast::<Traffic>()
            .wrapping_add(slot)
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
