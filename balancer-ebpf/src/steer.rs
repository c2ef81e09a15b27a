//! The way of every packet: the fast path, or the steps of the slow one; and what
//! both share.

use crate::count::{count, pass};
use crate::forward::{self, Replacement};
use crate::fragment;
use crate::frame::{Frame, load};
use crate::maps::{CLOCK, SCRATCH, Tables};
use crate::parse::{self, ETH_IPV4, ETH_IPV6, Fragment, Packet, proto};
use crate::table::{Established4, Established6, Table};
use crate::verdict::Verdict;
use crate::{fast, icmp, open, report};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::XdpContext;
use common::Be16;
use common::counters::Reason;
use common::flow::{Meta, ReturnPath, SEEN_MASK, SEEN_SHIFT};
use common::limits;
use common::tables::{Backend, Frontend, state};

/// What differs between the two IP versions beyond the headers.
pub trait Family {
    /// IPv4.
    const V4: bool;
    /// The table of established flows.
    type Established: Table;
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

impl Family for V4 {
    const V4: bool = true;
    type Established = Established4;
}

impl Family for V6 {
    const V4: bool = false;
    type Established = Established6;
}

/// Nanoseconds of the monotonic clock, as of the last tick: the exact clock costs
/// several times as much, and nothing here needs better than milliseconds. That clock
/// stands still between two ticks, and the verifier makes one load of the question for
/// the tick: so the clock is called once in a tick and CPU, and not for every packet.
#[inline(always)]
pub fn clock() -> u64 {
    let Some(last) = CLOCK.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: no arguments; this CPU's own value.
    unsafe {
        let tick = bpf_jiffies64();
        if (*last).tick != tick {
            (*last).tick = tick;
            (*last).ns = bpf_ktime_get_coarse_ns();
        }
        (*last).ns
    }
}

/// The unit of `seen`.
#[inline(always)]
pub fn seen(ns: u64) -> u32 {
    (ns >> SEEN_SHIFT) as u32 & SEEN_MASK
}

/// What is to be done with a packet that was parsed.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Kind {
    /// ICMP of the packet's own family.
    Icmp,
    /// To the frontend at the slot.
    Forward,
    /// From the endpoint at the slot.
    Reply,
}

/// Decides over one packet. The steps are calls side by side, not one in the
/// other: the stack's 512 bytes are for the longest chain of calls.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> Verdict {
    let verdict = fast(ctx.ctx);
    if verdict != Verdict::UNDECIDED {
        return verdict;
    }
    let mut verdict = slow(ctx.ctx);
    report::rare(ctx.ctx);
    if verdict == Verdict::BY_FIB {
        verdict = forward::by_fib(ctx.ctx);
    }
    // SAFETY: the context is the kernel's.
    let ingress = unsafe { (*ctx.ctx).ingress_ifindex };
    match Tables::new() {
        Some(tables) if verdict == Verdict::TX => out(tables, ingress, ingress),
        _ => verdict,
    }
}

/// Out of a device, which may be the one that the packet came in by: then by XDP_TX,
/// unless that is a veth device. Such a one sends XDP_TX frames only while its peer
/// has an XDP program of its own, redirected ones always.
#[inline(always)]
pub fn out(tables: Tables, ingress: u32, ifindex: u32) -> Verdict {
    if ifindex == ingress {
        let device = tables.device(ingress);
        if device.no_tx == 0 || device.ifindex != ingress {
            return Verdict::TX;
        }
    }
    Verdict::redirect(ifindex)
}

#[inline(never)]
fn fast(ctx: *mut xdp_md) -> Verdict {
    fast::packet(&XdpContext::new(ctx)).unwrap_or(Verdict::UNDECIDED)
}

#[inline(never)]
fn slow(ctx: *mut xdp_md) -> Verdict {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Verdict::PASS;
    };
    // SAFETY: this CPU's own value.
    let p = unsafe { &mut *scratch };
    let ctx = &XdpContext::new(ctx);
    let verdict = read(ctx, p);
    let Some((kind, slot)) = verdict.step() else {
        return verdict;
    };
    if p.is_v4() {
        go::<V4>(ctx, p, kind, slot)
    } else {
        go::<V6>(ctx, p, kind, slot)
    }
}

#[inline(always)]
fn go<F: Family>(ctx: &XdpContext, p: &mut Packet, kind: u32, slot: u32) -> Verdict {
    if kind == Kind::Icmp as u32 {
        return icmp::packet::<F>(ctx, p);
    }
    let verdict = if kind == Kind::Forward as u32 {
        open::forward::<F>(ctx, p, slot)
    } else {
        open::reply::<F>(ctx, p, slot)
    };
    let later = matches!(p.fragment, Fragment::Later);
    if later && verdict != Verdict::PASS && verdict != Verdict::DROP {
        count(Reason::FragmentForwarded);
    }
    verdict
}

/// Parses the frame into `p`; says what to do with it, or decides.
#[inline(never)]
fn read(ctx: &XdpContext, p: &mut Packet) -> Verdict {
    let frame = forward::frame(ctx);
    let link = match parse::link(&frame) {
        Ok(link) => link,
        Err(reason) => return pass(reason),
    };
    // SAFETY: the context is the kernel's.
    *p = Packet::new(&link, unsafe { (*ctx.ctx).ingress_ifindex });
    let parsed = if link.ethertype == ETH_IPV4 {
        p.ipv4(&frame, link.l3)
    } else if link.ethertype == ETH_IPV6 {
        p.ipv6(&frame, link.l3)
    } else {
        Err(Reason::NotIp)
    };
    if let Err(reason) = parsed {
        return pass(reason);
    }
    if p.is_v4() {
        fragment::whose::<V4>(ctx, p)
    } else {
        fragment::whose::<V6>(ctx, p)
    }
}

/// Number of the family's own ICMP.
#[inline(always)]
pub fn icmp_proto<F: Family>() -> u8 {
    if F::V4 { proto::ICMP } else { proto::ICMPV6 }
}

/// The backend of a flow with its state word, if the slot is still the one that
/// the flow was made for.
#[inline(always)]
pub fn owner(meta: Meta) -> Option<(*const Backend, u32)> {
    let backend = Tables::new()?.backend(meta.backend() as u32);
    // SAFETY: in the map's value.
    let word = unsafe { (&raw const (*backend).state).read_volatile() };
    let current =
        word & state::PRESENT != 0 && (word >> state::GENERATION_SHIFT) as u8 == meta.generation();
    if current { Some((backend, word)) } else { None }
}

/// From the frontend's address to the backend's.
///
/// # Safety
/// `backend` must point to a backend in a map's value.
#[inline(always)]
pub unsafe fn to_backend(frontend: &Frontend, backend: *const Backend) -> Replacement {
    // SAFETY: by the caller.
    unsafe {
        Replacement {
            addr: (*backend).addr,
            port: (*backend).port,
            old_endpoint: frontend.sum_endpoint,
            new_endpoint: (*backend).sum_endpoint,
            old_addr: frontend.sum_addr,
            new_addr: (*backend).sum_addr,
        }
    }
}

/// From the backend's address to the frontend's.
///
/// # Safety
/// `backend` must point to a backend in a map's value.
#[inline(always)]
pub unsafe fn to_frontend(backend: *const Backend, frontend: &Frontend) -> Replacement {
    // SAFETY: by the caller.
    unsafe {
        Replacement {
            addr: frontend.addr,
            port: frontend.port,
            old_endpoint: (*backend).sum_endpoint,
            new_endpoint: frontend.sum_endpoint,
            old_addr: (*backend).sum_addr,
            new_addr: frontend.sum_addr,
        }
    }
}

/// The return path that a packet from a client shows.
#[inline(always)]
pub fn path(frame: &Frame, p: &Packet) -> Option<ReturnPath> {
    let eth = frame.at(0, 14)?;
    // SAFETY: within the 14 bytes.
    let mac = unsafe { load::<[u8; 6]>(eth + 6) };
    Some(ReturnPath {
        mac,
        device: (p.ingress % limits::DEVICES) as u16,
        tci: p.tci,
    })
}

const _: () = assert!(size_of::<ReturnPath>() == 12 && size_of::<Be16>() == 2);
