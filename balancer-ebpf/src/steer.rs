//! The way of every packet: the fast path, or the steps of the slow one; and what
//! both share.

use crate::count::{count, pass};
use crate::flows::{self, Entry, Found, Key};
use crate::forward::{self, Replacement};
use crate::fragment;
use crate::frame::{Frame, load};
use crate::maps::{self, FLOWS4, FLOWS6, HALF_OPEN, SCRATCH, Tables, half_open_mask};
use crate::parse::{self, ETH_IPV4, ETH_IPV6, Fragment, Packet, proto};
use crate::verdict::Verdict;
use crate::{fast, icmp, open, report};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::XdpContext;
use common::counters::Reason;
use common::flow::{Flow4, Flow6, ReturnPath, SEEN_MASK, SEEN_SHIFT};
use common::limits;
use common::tables::{Backend, Frontend, state};
use common::{Be16, hash};

/// What differs between the two IP versions beyond the headers.
pub trait Family {
    /// IPv4.
    const V4: bool;
    /// Entry of the established table.
    type Entry: Entry;
    /// First entry of the bucket.
    fn bucket(index: u32) -> Option<*mut Self::Entry>;
    /// Buckets less one.
    fn mask() -> u32;
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

impl Family for V4 {
    const V4: bool = true;
    type Entry = Flow4;
    #[inline(always)]
    fn bucket(index: u32) -> Option<*mut Flow4> {
        Some(FLOWS4.get_ptr_mut(index)?.cast())
    }
    #[inline(always)]
    fn mask() -> u32 {
        maps::flow4_mask()
    }
}

impl Family for V6 {
    const V4: bool = false;
    type Entry = Flow6;
    #[inline(always)]
    fn bucket(index: u32) -> Option<*mut Flow6> {
        Some(FLOWS6.get_ptr_mut(index)?.cast())
    }
    #[inline(always)]
    fn mask() -> u32 {
        maps::flow6_mask()
    }
}

/// Nanoseconds of the monotonic clock, as of the last tick: the exact clock costs
/// several times as much, and nothing here needs better than milliseconds.
#[inline(always)]
pub fn clock() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
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
    let mut verdict = fast(ctx.ctx);
    if verdict == Verdict::UNDECIDED {
        verdict = slow(ctx.ctx);
        report::rare(ctx.ctx);
        if verdict == Verdict::BY_FIB {
            verdict = forward::by_fib(ctx.ctx);
        }
    }
    if verdict == Verdict::TX {
        back(ctx)
    } else {
        verdict
    }
}

/// Out of the device that it came in by. A veth device sends XDP_TX frames only
/// while its peer has an XDP program of its own, redirected ones always.
#[inline(always)]
fn back(ctx: &XdpContext) -> Verdict {
    // SAFETY: the context is the kernel's.
    let ingress = unsafe { (*ctx.ctx).ingress_ifindex };
    match Tables::new().map(|t| t.device(ingress)) {
        Some(device) if device.no_tx != 0 && device.ifindex == ingress => {
            Verdict::redirect(ingress)
        }
        _ => Verdict::TX,
    }
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

/// How a flow is looked for.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct By(u32);

impl By {
    /// By client and frontend.
    pub const FRONTEND: Self = Self(u32::MAX);

    /// By client and endpoint.
    #[inline(always)]
    pub fn endpoint(slot: u16) -> Self {
        Self(slot as u32)
    }
}

/// Looks in one bucket.
///
/// # Safety
/// `bucket` must be one of a map.
#[inline(always)]
unsafe fn look<E: Entry>(bucket: *mut E, home: usize, key: &Key, by: By) -> Option<Found<E>> {
    // SAFETY: by the caller.
    unsafe {
        if by.0 == By::FRONTEND.0 {
            flows::find(bucket, home, key)
        } else {
            flows::find_reply(bucket, home, key, by.0 as u16)
        }
    }
}

/// Looks in both buckets of the established table.
#[inline(always)]
pub fn established<F: Family>(hash: u64, key: &Key, by: By) -> Option<Found<F::Entry>> {
    let (mask, home) = (F::mask(), hash::home(hash));
    // SAFETY: buckets of the map.
    unsafe {
        let found = look(F::bucket(hash::first_bucket(hash, mask))?, home, key, by);
        if found.is_some() {
            return found;
        }
        look(F::bucket(hash::second_bucket(hash, mask))?, home, key, by)
    }
}

/// The same as a call, for all but the fast path: null where there is none.
#[inline(never)]
pub fn find_established<F: Family>(hash: u64, key: &Key, by: By) -> *mut F::Entry {
    match established::<F>(hash, key, by) {
        Some(found) => found.entry,
        None => core::ptr::null_mut(),
    }
}

/// Looks in both buckets of the half-open table; null where there is none.
#[inline(never)]
pub fn find_half_open(hash: u64, key: &Key, by: By) -> *mut Flow6 {
    let (mask, home) = (half_open_mask(), hash::home(hash));
    let first = HALF_OPEN.get_ptr_mut(hash::first_bucket(hash, mask));
    let second = HALF_OPEN.get_ptr_mut(hash::second_bucket(hash, mask));
    let (Some(first), Some(second)) = (first, second) else {
        return core::ptr::null_mut();
    };
    // SAFETY: buckets of the map.
    let found = unsafe {
        look(first.cast::<Flow6>(), home, key, by)
            .or_else(|| look(second.cast::<Flow6>(), home, key, by))
    };
    match found {
        Some(found) => found.entry,
        None => core::ptr::null_mut(),
    }
}

/// An entry that one of the calls above gave, with its state now.
#[inline(always)]
pub fn found<E: Entry>(entry: *mut E) -> Option<Found<E>> {
    if entry.is_null() {
        return None;
    }
    // SAFETY: an entry of a map.
    Some(Found {
        entry,
        meta: unsafe { flows::meta(entry) },
    })
}

/// The backend of a flow with its state word, if the slot is still the one that
/// the flow was made for.
#[inline(always)]
pub fn owner(meta: common::flow::Meta) -> Option<(*const Backend, u32)> {
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
