//! The rare and surprising, told to the agent's log: each kind at most once in
//! about a second and CPU, whatever the packets do.

use crate::count::count;
use crate::maps::{NOTED, REPORTED};
use crate::steer::{clock, seen};
use crate::verdict::Verdict;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::{error, warn};
use common::counters::Reason;

/// Counts a reason and notes it for [`rare`]: the macros of the log need more
/// stack than is left where such a thing is found.
#[inline(always)]
pub fn note(reason: Reason) {
    count(reason);
    if let Some(noted) = NOTED.get_ptr_mut(0) {
        // SAFETY: this CPU's own value. One more, so that zero is none.
        unsafe { *noted = reason as u32 + 1 };
    }
}

/// Leaves a packet to the stack because the tables contradict themselves.
#[inline(always)]
pub fn inconsistent() -> Verdict {
    note(Reason::TableInconsistent);
    Verdict::PASS
}

/// Logs what was noted for this packet, unless it was logged just now.
#[inline(never)]
pub fn rare(ctx: *mut xdp_md) {
    let Some(noted) = NOTED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own value.
    let reason = unsafe {
        let reason = *noted;
        if reason == 0 {
            return;
        }
        *noted = 0;
        reason - 1
    };
    let ctx = &XdpContext::new(ctx);
    let now = seen(clock());
    let Some(last) = REPORTED.get_ptr_mut(reason) else {
        return;
    };
    // SAFETY: this CPU's own value.
    unsafe {
        // One more than the time, so that zero is never.
        if *last == now + 1 {
            return;
        }
        *last = now + 1;
    }
    if reason == Reason::TableInconsistent as u32 {
        error!(
            ctx,
            "a table entry that another refers to is missing; the agent's next round mends it"
        );
    } else if reason == Reason::SnatExhausted as u32 {
        warn!(
            ctx,
            "no free source port was found: the pool's snat addresses are exhausted"
        );
    } else if reason == Reason::FlowEvicted as u32 {
        warn!(
            ctx,
            "the flow table is full: a flow in use made room for another"
        );
    } else if reason == Reason::FlowTableBusy as u32 {
        warn!(
            ctx,
            "a flow found no place because other processors were writing its buckets"
        );
    } else if reason == Reason::AdjustFailed as u32 {
        warn!(
            ctx,
            "a packet was lost: the driver gave no room for its headers"
        );
    }
}
