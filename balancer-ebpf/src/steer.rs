//! The way of every packet, and the fast path of established flows: one index
//! lookup that says whose the packet is, one flow lookup, no helper call but the
//! clock's and the redirect's. Whatever would change more than the time of the
//! last packet is left to `open`.

use crate::count::{count, pass, traffic_in, traffic_out};
use crate::flows::{self, Entry, Found, Key};
use crate::forward::{self, Replacement};
use crate::fragment;
use crate::frame::{Frame, load};
use crate::maps::{BACKENDS, FLOWS4, FLOWS6, FRONTENDS, HALF_OPEN, SCRATCH, SETTINGS};
use crate::parse::{self, ETH_IPV4, ETH_IPV6, Fragment, Packet, proto, tcp};
use crate::verdict::Verdict;
use crate::{icmp, index, open, report};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::XdpContext;
use common::counters::Reason;
use common::flow::{Flow4, Flow6, ReturnPath, SEEN_MASK, SEEN_SHIFT, flags};
use common::limits::DEVICES;
use common::tables::{Backend, Frontend, Settings, VLAN_KEEP, state};
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
    fn mask(settings: &Settings) -> u32;
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
    fn mask(settings: &Settings) -> u32 {
        settings.flow4_mask
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
    fn mask(settings: &Settings) -> u32 {
        settings.flow6_mask
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

/// Where a packet goes on that the fast path leaves.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Slow {
    /// A fragment, or an IPv6 packet with extension headers.
    Unread,
    /// ICMP of the packet's own family.
    Icmp,
    /// To the frontend at the slot.
    Forward,
    /// From the endpoint at the slot.
    Reply,
}

/// Decides over one packet. Fast and slow path are calls side by side, not one in
/// the other: the stack's 512 bytes are for the longest chain of calls.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> Verdict {
    let verdict = fast(ctx.ctx);
    let Some((kind, slot)) = verdict.undecided() else {
        return verdict;
    };
    let verdict = slow(ctx.ctx, kind, slot);
    report::rare(ctx.ctx);
    if verdict == Verdict::BY_FIB {
        forward::by_fib(ctx.ctx)
    } else {
        verdict
    }
}

#[inline(never)]
fn fast(ctx: *mut xdp_md) -> Verdict {
    let ctx = &XdpContext::new(ctx);
    let frame = forward::frame(ctx);
    let link = match parse::link(&frame) {
        Ok(link) => link,
        Err(reason) => return pass(reason),
    };
    // SAFETY: the context is the kernel's.
    let mut p = Packet::new(&link, unsafe { (*ctx.ctx).ingress_ifindex });
    let verdict = if link.ethertype == ETH_IPV4 {
        if let Err(reason) = p.ipv4(&frame, link.l3) {
            return pass(reason);
        }
        ip::<V4>(&frame, &mut p)
    } else if link.ethertype == ETH_IPV6 {
        if let Err(reason) = p.ipv6(&frame, link.l3) {
            return pass(reason);
        }
        ip::<V6>(&frame, &mut p)
    } else {
        return pass(Reason::NotIp);
    };
    if verdict.undecided().is_some() {
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
            return Verdict::PASS;
        };
        // SAFETY: this CPU's own value.
        unsafe { *scratch = p };
    }
    verdict
}

/// One call for everything slow, so that the verifier walks it once.
#[inline(never)]
fn slow(ctx: *mut xdp_md, kind: u32, slot: u32) -> Verdict {
    let ctx = &XdpContext::new(ctx);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Verdict::PASS;
    };
    // SAFETY: this CPU's own value, filled just now.
    let p = unsafe { &mut *scratch };
    if p.is_v4() {
        slow_as::<V4>(ctx, p, kind, slot)
    } else {
        slow_as::<V6>(ctx, p, kind, slot)
    }
}

#[inline(always)]
fn slow_as<F: Family>(ctx: &XdpContext, p: &mut Packet, kind: u32, slot: u32) -> Verdict {
    let (mut kind, mut slot) = (kind, slot);
    if kind == Slow::Unread as u32 {
        let verdict = fragment::whose::<F>(ctx, p);
        match verdict.undecided() {
            Some(it) => (kind, slot) = it,
            None => return verdict,
        }
    }
    if kind == Slow::Icmp as u32 {
        return icmp::packet::<F>(ctx, p);
    }
    let verdict = if kind == Slow::Forward as u32 {
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

/// Number of the family's own ICMP.
#[inline(always)]
pub fn icmp_proto<F: Family>() -> u8 {
    if F::V4 { proto::ICMP } else { proto::ICMPV6 }
}

#[inline(always)]
fn ip<F: Family>(frame: &Frame, p: &mut Packet) -> Verdict {
    if !matches!(p.fragment, Fragment::Whole) || (!F::V4 && p.is_extension()) {
        return Verdict::slow(Slow::Unread as u32, 0);
    }
    if let Err(reason) = p.transport(frame) {
        return pass(reason);
    }
    if p.proto == icmp_proto::<F>() {
        return Verdict::slow(Slow::Icmp as u32, 0);
    }
    if p.proto != proto::TCP && p.proto != proto::UDP {
        return pass(Reason::NotBalanced);
    }
    let seed = SETTINGS.load().seed;
    if let Some((slot, entry)) = index::frontend(&p.dst, p.dport, p.proto, seed) {
        return match forward::<F>(frame, p, slot, entry, seed) {
            Some(verdict) => verdict,
            None => Verdict::slow(Slow::Forward as u32, slot),
        };
    }
    if let Some((slot, _)) = index::endpoint(&p.src, p.sport, p.proto, seed) {
        return match reply::<F>(frame, p, slot, seed) {
            Some(verdict) => verdict,
            None => Verdict::slow(Slow::Reply as u32, slot),
        };
    }
    pass(Reason::NotBalanced)
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
fn established<F: Family>(hash: u64, key: &Key, by: By) -> Option<Found<F::Entry>> {
    let (mask, home) = (F::mask(&SETTINGS.load()), hash::home(hash));
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
    let (mask, home) = (SETTINGS.load().half_open_mask, hash::home(hash));
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
    let backend = BACKENDS.get_ptr(meta.backend() as u32)?;
    // SAFETY: in the map's value.
    let word = unsafe { (&raw const (*backend).state).read_volatile() };
    let current =
        word & state::PRESENT != 0 && (word >> state::GENERATION_SHIFT) as u8 == meta.generation();
    if current { Some((backend, word)) } else { None }
}

/// Whether a packet changes no more than the time of its flow's last packet.
#[inline(always)]
fn is_plain(p: &Packet) -> bool {
    p.ttl > 1 && (p.proto == proto::UDP || p.tcp_flags & tcp::STATE == tcp::ACK)
}

/// `None` leaves the packet, unchanged, to `open`.
#[inline(always)]
fn forward<F: Family>(
    frame: &Frame,
    p: &Packet,
    slot: u32,
    frontend: &Frontend,
    seed: u64,
) -> Option<Verdict> {
    if !is_plain(p) {
        return None;
    }
    let key = Key {
        addr: p.src,
        port: p.sport,
        frontend: slot as u16,
    };
    let hash = hash::client(&p.src, p.sport, seed);
    let found = established::<F>(hash, &key, By::FRONTEND)?;
    forward_found::<F>(frame, p, slot, frontend, found)
}

#[inline(always)]
fn forward_found<F: Family>(
    frame: &Frame,
    p: &Packet,
    slot: u32,
    frontend: &Frontend,
    found: Found<F::Entry>,
) -> Option<Verdict> {
    let (backend, word) = owner(found.meta)?;
    let needed = state::HOP_VALID
        | if p.proto == proto::UDP {
            state::USABLE
        } else {
            0
        };
    if word & (needed | state::STOPPED) != needed || found.meta.flags() & flags::SNAT != 0 {
        return None;
    }
    // SAFETY: backend and hop are in the map's value.
    let (r, macs, ifindex) = unsafe {
        let hop = forward::hop(backend, word);
        let count = (*hop).vlan_count;
        if count != VLAN_KEEP && (count != 0 || p.vlan != 0) {
            return None;
        }
        (
            to_backend(frontend, backend),
            forward::hop_macs(hop),
            (*hop).ifindex,
        )
    };
    touch(&found, seen(clock()));
    learn(frame, p, &found);
    if !forward::rewrite::<F, true, true>(frame, p, &r) {
        return None;
    }
    if !forward::write_macs(frame, macs) {
        return None;
    }
    traffic_in(slot, found.meta.backend() as u32, frame.len() as u64);
    Some(forward::out(p, ifindex))
}

/// `None` leaves the packet, unchanged, to `open`.
#[inline(always)]
fn reply<F: Family>(frame: &Frame, p: &Packet, endpoint: u32, seed: u64) -> Option<Verdict> {
    if !is_plain(p) {
        return None;
    }
    let key = Key {
        addr: p.dst,
        port: p.dport,
        frontend: 0,
    };
    let hash = hash::client(&p.dst, p.dport, seed);
    let found = established::<F>(hash, &key, By::endpoint(endpoint as u16))?;
    reply_found::<F>(frame, p, found)
}

#[inline(always)]
fn reply_found<F: Family>(frame: &Frame, p: &Packet, found: Found<F::Entry>) -> Option<Verdict> {
    let (backend, word) = owner(found.meta)?;
    // SAFETY: the flow was found in the map.
    let (slot, path) = unsafe {
        (
            F::Entry::frontend(found.entry),
            *F::Entry::path(found.entry),
        )
    };
    if word & state::STOPPED != 0 || (found.meta.flags() & flags::VLAN_MASK) | p.vlan != 0 {
        return None;
    }
    let (ifindex, macs) = forward::return_macs(&path)?;
    let frontend = FRONTENDS.get(slot as u32)?;
    // SAFETY: in the map's value.
    let r = unsafe { to_frontend(backend, frontend) };
    touch(&found, seen(clock()));
    if !forward::rewrite::<F, false, true>(frame, p, &r) {
        return None;
    }
    if !forward::write_macs(frame, macs) {
        return None;
    }
    traffic_out(slot as u32, found.meta.backend() as u32, frame.len() as u64);
    Some(forward::out(p, ifindex))
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

/// Notes the time of a packet, about once a second and flow.
#[inline(always)]
pub fn touch<E: Entry>(found: &Found<E>, now: u32) {
    if found.meta.seen() != now {
        // Lost to another CPU, the next packet notes it.
        // SAFETY: the flow was found in the map.
        unsafe { flows::exchange(found.entry, found.meta, found.meta.with_seen(now)) };
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
        device: (p.ingress % DEVICES) as u16,
        tci: p.tci,
    })
}

/// Takes a new return path when the client's packets come another way.
#[inline(always)]
fn learn<E: Entry>(frame: &Frame, p: &Packet, found: &Found<E>) {
    let Some(eth) = frame.at(0, 14) else { return };
    // SAFETY: within the 14 bytes; the flow was found in the map. Compared as
    // words: byte by byte it would be twelve loads.
    unsafe {
        let at = E::path(found.entry) as usize;
        let device = p.ingress % DEVICES;
        let same = load::<u32>(eth + 6) == load::<u32>(at)
            && (load::<u16>(eth + 10) as u32 | device << 16) == load::<u32>(at + 4)
            && p.vlan == found.meta.flags() & flags::VLAN_MASK
            && (p.vlan == 0 || (p.tci[0].0 as u32 | (p.tci[1].0 as u32) << 16) == load(at + 8));
        if !same {
            open::relearn(frame, p, found);
        }
    }
}

const _: () = assert!(size_of::<ReturnPath>() == 12 && size_of::<Be16>() == 2);
