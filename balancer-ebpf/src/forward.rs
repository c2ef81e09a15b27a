//! Rewriting a packet for its other end (`nat`), and sending it on.

use crate::count::count;
use crate::frame::{Frame, load, store};
use crate::maps::{SCRATCH, Tables};
use crate::parse::{ETH_IPV4, ETH_IPV6, ETH_VLAN, ETH_VLAN_AD, Fragment, Packet, proto};
use crate::report::note;
use crate::steer::Family;
use crate::verdict::Verdict;
use aya_ebpf::bindings::{bpf_fib_lookup as FibParams, xdp_md};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_xdp_adjust_head};
use aya_ebpf::programs::XdpContext;
use common::checksum;
use common::counters::Reason;
use common::flow::{Meta, ReturnPath, flags};
use common::tables::{Backend, Hop, VLAN_KEEP, state};
use common::{Addr, Be16};

/// The frame as the context has it now; again after every change of its room.
#[inline(always)]
pub fn frame(ctx: &XdpContext) -> Frame {
    // Volatile, so that no function is handed these 32-bit fields as plain numbers:
    // the verifier knows them as addresses only from the load on.
    // SAFETY: the context is the kernel's.
    unsafe {
        Frame {
            data: (&raw const (*ctx.ctx).data).read_volatile() as usize,
            end: (&raw const (*ctx.ctx).data_end).read_volatile() as usize,
        }
    }
}

/// One end of a packet to be replaced: the new address and port, and what old
/// and new contribute to the checksums (folded sums).
#[derive(Clone, Copy)]
pub struct Replacement {
    /// New address.
    pub addr: Addr,
    /// New port.
    pub port: Be16,
    /// Sum over the old address and port.
    pub old_endpoint: u16,
    /// Sum over the new address and port.
    pub new_endpoint: u16,
    /// Sum over the old address.
    pub old_addr: u16,
    /// Sum over the new address.
    pub new_addr: u16,
}

impl Replacement {
    /// Where the sums are not at hand already.
    #[inline(always)]
    pub fn between(old: &Addr, old_port: Be16, addr: Addr, port: Be16) -> Self {
        Self {
            addr,
            port,
            old_endpoint: checksum::sum_endpoint(old, old_port),
            new_endpoint: checksum::sum_endpoint(&addr, port),
            old_addr: checksum::fold(checksum::sum_addr(old)),
            new_addr: checksum::fold(checksum::sum_addr(&addr)),
        }
    }
}

/// Replaces the destination (`DST`) or the source of a TCP or UDP packet and
/// lowers the TTL when `LOWER`. Later fragments have no transport header: only
/// the IP header changes. False when the frame is not as it was parsed.
#[inline(always)]
pub fn rewrite<F: Family, const DST: bool, const LOWER: bool>(
    frame: &Frame,
    p: &Packet,
    r: &Replacement,
) -> bool {
    if F::V4 {
        let Some(ip) = frame.at(p.l3 as usize, 20) else {
            return false;
        };
        // SAFETY: all within the 20 bytes.
        unsafe {
            store(ip + if DST { 16 } else { 12 }, r.addr.v4_word());
            let mut old = r.old_addr as u32;
            if LOWER {
                store(ip + 8, p.ttl - 1);
                // The TTL is the first byte of its word, the protocol the second.
                old += u16::from_ne_bytes([1, 0]) as u32;
            }
            let check: u16 = load(ip + 10);
            store(
                ip + 10,
                checksum::update_wide(check, old, r.new_addr as u32),
            );
        }
    } else {
        let Some(ip) = frame.at(p.l3 as usize, 40) else {
            return false;
        };
        let at = ip + if DST { 24 } else { 8 };
        // SAFETY: all within the 40 bytes.
        unsafe {
            store(at, r.addr.0[0]);
            store(at + 8, r.addr.0[1]);
            if LOWER {
                store(ip + 7, p.ttl - 1);
            }
        }
    }
    if matches!(p.fragment, Fragment::Later) {
        return true;
    }
    let at = p.l4 as usize;
    if p.proto == proto::TCP {
        let Some(t) = frame.at(at, 18) else {
            return false;
        };
        // SAFETY: all within the 18 bytes.
        unsafe {
            store(t + if DST { 2 } else { 0 }, r.port.0);
            let check: u16 = load(t + 16);
            store(
                t + 16,
                checksum::update(check, r.old_endpoint, r.new_endpoint),
            );
        }
    } else {
        let Some(u) = frame.at(at, 8) else {
            return false;
        };
        // SAFETY: all within the 8 bytes.
        unsafe {
            store(u + if DST { 2 } else { 0 }, r.port.0);
            let check: u16 = load(u + 6);
            // RFC 768: no checksum stays no checksum, and a sum of 0 is sent as ffff.
            if check != 0 {
                let new = checksum::update(check, r.old_endpoint, r.new_endpoint);
                store(u + 6, if new == 0 { 0xffff } else { new });
            }
        }
    }
    true
}

/// Writes both hardware addresses, given as the header's three words.
#[inline(always)]
pub fn write_macs(frame: &Frame, words: [u32; 3]) -> bool {
    let Some(eth) = frame.at(0, 14) else {
        return false;
    };
    // SAFETY: within the 14 bytes.
    unsafe {
        store(eth, words[0]);
        store(eth + 4, words[1]);
        store(eth + 8, words[2]);
    }
    true
}

/// TX when it goes out by where it came in, else a redirect.
#[inline(always)]
pub fn out(p: &Packet, ifindex: u32) -> Verdict {
    if ifindex == p.ingress {
        Verdict::TX
    } else {
        Verdict::redirect(ifindex)
    }
}

/// The words of a hop's hardware addresses.
///
/// # Safety
/// `hop` must point to a hop in a map's value.
#[inline(always)]
pub unsafe fn hop_macs(hop: *const Hop) -> [u32; 3] {
    // SAFETY: the twelve bytes lie at an offset of 12.
    unsafe {
        let macs = (&raw const (*hop).macs) as usize;
        [load(macs), load(macs + 4), load(macs + 8)]
    }
}

/// The hop of a backend that its state word names.
///
/// # Safety
/// `backend` must point to a backend in a map's value.
#[inline(always)]
pub unsafe fn hop(backend: *const Backend, word: u32) -> *const Hop {
    // SAFETY: one of the two.
    unsafe {
        if word & state::HOP_SLOT != 0 {
            &raw const (*backend).hops[1]
        } else {
            &raw const (*backend).hops[0]
        }
    }
}

/// Sends a rewritten packet to its backend.
#[inline(always)]
pub fn to_backend(ctx: &XdpContext, p: &Packet, backend: *const Backend, word: u32) -> Verdict {
    if word & state::HOP_VALID == 0 {
        return Verdict::BY_FIB;
    }
    // SAFETY: the caller has it from the map.
    let (macs, ifindex, count, outer_ad, tci) = unsafe {
        let hop = hop(backend, word);
        (
            hop_macs(hop),
            (*hop).ifindex,
            (*hop).vlan_count,
            (*hop).vlan_outer_ad,
            (*hop).tci,
        )
    };
    if count == VLAN_KEEP {
        if !write_macs(&frame(ctx), macs) {
            return dropped();
        }
    } else {
        let mut want = 0;
        if count >= 1 {
            want |= flags::VLAN_1;
        }
        if count >= 2 {
            want |= flags::VLAN_2;
        }
        if outer_ad != 0 {
            want |= flags::VLAN_OUTER_AD;
        }
        if !tag(ctx, p, want, tci, macs) {
            return dropped();
        }
    }
    out(p, ifindex)
}

/// Sends a rewritten packet back the way the client's came.
#[inline(always)]
pub fn to_client(ctx: &XdpContext, p: &Packet, path: &ReturnPath, meta: Meta) -> Verdict {
    // SAFETY: a reference.
    let macs = Tables::new().and_then(|tables| unsafe { return_macs(tables, path) });
    let Some((ifindex, macs)) = macs else {
        return Verdict::BY_FIB;
    };
    if !tag(ctx, p, meta.flags() & flags::VLAN_MASK, path.tci, macs) {
        return dropped();
    }
    out(p, ifindex)
}

/// Device and hardware addresses of a return path; `None` when its device is no
/// longer ours.
///
/// # Safety
/// `path` must point to a return path.
#[inline(always)]
pub unsafe fn return_macs(tables: Tables, path: *const ReturnPath) -> Option<(u32, [u32; 3])> {
    // SAFETY: by the caller, and in the map's value.
    unsafe {
        let device = tables.device((*path).device as u32);
        let ifindex = (&raw const device.ifindex).read_volatile();
        if ifindex == 0 {
            return None;
        }
        let mac = (&raw const device.mac) as usize;
        let theirs = (&raw const (*path).mac) as usize;
        let high = load::<u16>(theirs + 4) as u32 | (load::<u16>(mac) as u32) << 16;
        Some((ifindex, [load(theirs), high, load(mac + 2)]))
    }
}

#[inline(always)]
fn dropped() -> Verdict {
    note(Reason::AdjustFailed);
    Verdict::DROP
}

/// Gives the frame the wanted tags and hardware addresses.
#[inline(always)]
fn tag(ctx: &XdpContext, p: &Packet, want: u16, tci: [Be16; 2], macs: [u32; 3]) -> bool {
    if want == 0 && p.vlan == 0 {
        return write_macs(&frame(ctx), macs);
    }
    retag(ctx, p, want, tci, macs)
}

#[inline(always)]
fn tags(vlan: u16) -> i32 {
    if vlan & flags::VLAN_2 != 0 {
        2
    } else if vlan & flags::VLAN_1 != 0 {
        1
    } else {
        0
    }
}

fn retag(ctx: &XdpContext, p: &Packet, want: u16, tci: [Be16; 2], macs: [u32; 3]) -> bool {
    let change = tags(p.vlan) - tags(want);
    // SAFETY: the context is the kernel's.
    if change != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, change * 4) } != 0 {
        return false;
    }
    let frame = frame(ctx);
    if !write_macs(&frame, macs) {
        return false;
    }
    let ethertype = if p.is_v4() { ETH_IPV4 } else { ETH_IPV6 };
    let outer = if want & flags::VLAN_OUTER_AD != 0 {
        ETH_VLAN_AD
    } else {
        ETH_VLAN
    };
    // SAFETY: each within the bytes that were asked for.
    unsafe {
        match tags(want) {
            0 => {
                let Some(at) = frame.at(12, 2) else {
                    return false;
                };
                store(at, ethertype);
            }
            1 => {
                let Some(at) = frame.at(12, 6) else {
                    return false;
                };
                store(at, outer);
                store(at + 2, tci[0].0);
                store(at + 4, ethertype);
            }
            _ => {
                let Some(at) = frame.at(12, 10) else {
                    return false;
                };
                store(at, outer);
                store(at + 2, tci[0].0);
                store(at + 4, ETH_VLAN);
                store(at + 6, tci[1].0);
                store(at + 8, ethertype);
            }
        }
    }
    true
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Sends a rewritten packet where the kernel's own routing table says, untagged
/// frames as untagged; without an answer the stack gets it, which can at least
/// resolve the neighbour.
#[inline(never)]
pub fn by_fib(ctx: *mut xdp_md) -> Verdict {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Verdict::PASS;
    };
    // SAFETY: this CPU's own value, filled for this packet.
    let p = unsafe { &*scratch };
    let ctx = &XdpContext::new(ctx);
    count(Reason::FibFallback);
    let frame = frame(ctx);
    // SAFETY: plain numbers, for which zero is a value.
    let mut params: FibParams = unsafe { core::mem::zeroed() };
    params.ifindex = p.ingress;
    params.l4_protocol = p.proto;
    params.__bindgen_anon_1.tot_len = (p.end - p.l3) as u16;
    // SAFETY: each within the bytes that were asked for.
    unsafe {
        if p.is_v4() {
            let Some(ip) = frame.at(p.l3 as usize, 20) else {
                return dropped();
            };
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = load(ip + 1);
            params.__bindgen_anon_3.ipv4_src = load(ip + 12);
            params.__bindgen_anon_4.ipv4_dst = load(ip + 16);
        } else {
            let Some(ip) = frame.at(p.l3 as usize, 40) else {
                return dropped();
            };
            params.family = AF_INET6;
            params.__bindgen_anon_3.ipv6_src =
                [load(ip + 8), load(ip + 12), load(ip + 16), load(ip + 20)];
            params.__bindgen_anon_4.ipv6_dst =
                [load(ip + 24), load(ip + 28), load(ip + 32), load(ip + 36)];
        }
        let size = size_of::<FibParams>() as i32;
        if bpf_fib_lookup(ctx.ctx.cast(), &raw mut params, size, 0) != 0 {
            count(Reason::NoNextHop);
            return Verdict::PASS;
        }
        let (d, s) = (&params.dmac, &params.smac);
        let macs = [
            u32::from_ne_bytes([d[0], d[1], d[2], d[3]]),
            u32::from_ne_bytes([d[4], d[5], s[0], s[1]]),
            u32::from_ne_bytes([s[2], s[3], s[4], s[5]]),
        ];
        if !write_macs(&frame, macs) {
            return dropped();
        }
    }
    out(p, params.ifindex)
}
