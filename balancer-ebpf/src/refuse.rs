//! Saying no: RST (RFC 9293 section 3.10.7.1), ICMP and ICMPv6 port unreachable
//! (RFC 792, RFC 4443), silence, or the host's own stack.

use crate::count::{count, pass};
use crate::forward::frame;
use crate::frame::{Frame, load, store};
use crate::parse::{Fragment, Packet, proto, tcp};
use crate::report::note;
use crate::steer::Family;
use crate::verdict::Verdict;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use common::checksum;
use common::counters::Reason;
use common::tables::Unavailable;

/// TTL and hop limit of what we send of our own.
const TTL: u8 = 64;
/// Bytes of the offending datagram behind its IP header that an error carries.
const QUOTED: usize = 8;

/// Refuses a packet, which is still as it came, by a pool's policy.
#[inline(never)]
pub fn packet<F: Family>(ctx: &XdpContext, p: &Packet, policy: u8) -> Verdict {
    if policy == Unavailable::Pass as u8 {
        return pass(Reason::RefusedPass);
    }
    if policy == Unavailable::Drop as u8 {
        count(Reason::RefusedDrop);
        return Verdict::DROP;
    }
    // A RST is never answered, and a later fragment has nothing to answer to.
    if p.tcp_flags & tcp::RST != 0 || matches!(p.fragment, Fragment::Later) {
        count(Reason::RefusedDrop);
        return Verdict::DROP;
    }
    let sent = if p.proto == proto::TCP {
        reset::<F>(ctx, p)
    } else {
        unreachable::<F>(ctx, p)
    };
    if sent {
        count(Reason::RefusedReset);
        Verdict::TX
    } else {
        note(Reason::AdjustFailed);
        Verdict::DROP
    }
}

/// Swaps the frame's hardware addresses.
#[inline(always)]
pub fn swap_macs(frame: &Frame) -> bool {
    let Some(eth) = frame.at(0, 14) else {
        return false;
    };
    // SAFETY: within the 14 bytes.
    unsafe {
        let (d0, d1) = (load::<u32>(eth), load::<u16>(eth + 4));
        let (s0, s1) = (load::<u32>(eth + 6), load::<u16>(eth + 10));
        store(eth, s0);
        store(eth + 4, s1);
        store(eth + 6, d0);
        store(eth + 10, d1);
    }
    true
}

/// Writes an IP header without options from the packet's destination to its
/// source: 20 or 40 bytes at `ip`, with `payload` bytes to follow.
///
/// # Safety
/// The bytes at `ip` must be writable.
#[inline(always)]
unsafe fn ip_header<F: Family>(ip: usize, p: &Packet, payload: u16, protocol: u8) {
    // SAFETY: by the caller.
    unsafe {
        if F::V4 {
            store(ip, 0x4500_u16.to_be());
            store(ip + 2, (20 + payload).to_be());
            store(ip + 4, 0_u16);
            store(ip + 6, 0x4000_u16.to_be());
            store(ip + 8, TTL);
            store(ip + 9, protocol);
            store(ip + 12, p.dst.v4_word());
            store(ip + 16, p.src.v4_word());
            let sum = 0x4500_u16.to_be() as u64
                + (20 + payload).to_be() as u64
                + 0x4000_u16.to_be() as u64
                + u16::from_ne_bytes([TTL, protocol]) as u64
                + p.dst.v4_word() as u64
                + p.src.v4_word() as u64;
            store(ip + 10, !checksum::fold(sum));
        } else {
            store(ip, 0x6000_0000_u32.to_be());
            store(ip + 4, payload.to_be());
            store(ip + 6, protocol);
            store(ip + 7, TTL);
            store(ip + 8, p.dst.0[0]);
            store(ip + 16, p.dst.0[1]);
            store(ip + 24, p.src.0[0]);
            store(ip + 32, p.src.0[1]);
        }
    }
}

#[inline(always)]
fn header_len<F: Family>() -> usize {
    if F::V4 { 20 } else { 40 }
}

/// Cuts the frame to `len` bytes.
#[inline(always)]
fn cut(ctx: &XdpContext, frame: &Frame, len: usize) -> bool {
    let delta = len as i32 - frame.len() as i32;
    // SAFETY: the context is the kernel's.
    delta == 0 || unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } == 0
}

/// Turns a TCP segment into the RST that answers it.
#[inline(always)]
fn reset<F: Family>(ctx: &XdpContext, p: &Packet) -> bool {
    let frame = frame(ctx);
    let Some(t) = frame.at(p.l4 as usize, 20) else {
        return false;
    };
    // SAFETY: within the 20 bytes.
    let (seq, ack, offset) = unsafe {
        let offset = (load::<u8>(t + 12) >> 4) as u32 * 4;
        (u32::from_be(load(t + 4)), load::<u32>(t + 8), offset)
    };
    let (seq, ack, set) = if p.tcp_flags & tcp::ACK != 0 {
        (ack, 0, tcp::RST)
    } else {
        let mut len = p.end.wrapping_sub(p.l4).wrapping_sub(offset);
        if p.tcp_flags & tcp::SYN != 0 {
            len = len.wrapping_add(1);
        }
        if p.tcp_flags & tcp::FIN != 0 {
            len = len.wrapping_add(1);
        }
        (0, seq.wrapping_add(len).to_be(), tcp::RST | tcp::ACK)
    };
    let header = header_len::<F>();
    let Some(ip) = frame.at(p.l3 as usize, header + 20) else {
        return false;
    };
    let t = ip + header;
    // SAFETY: within the bytes of both headers.
    unsafe {
        ip_header::<F>(ip, p, 20, proto::TCP);
        let control = u16::from_ne_bytes([5 << 4, set]);
        store(t, p.dport.0);
        store(t + 2, p.sport.0);
        store(t + 4, seq);
        store(t + 8, ack);
        store(t + 12, control);
        store(t + 14, 0_u16);
        store(t + 18, 0_u16);
        let sum = pseudo_header(p, 20, proto::TCP)
            + p.sport.0 as u64
            + p.dport.0 as u64
            + seq as u64
            + ack as u64
            + control as u64;
        store(t + 16, !checksum::fold(sum));
    }
    swap_macs(&frame) && cut(ctx, &frame, p.l3 as usize + header + 20)
}

/// Sum over the pseudo-header of a packet between the two ends of `p`.
#[inline(always)]
fn pseudo_header(p: &Packet, len: u16, protocol: u8) -> u64 {
    checksum::sum_addr(&p.src)
        + checksum::sum_addr(&p.dst)
        + len.to_be() as u64
        + (protocol as u16).to_be() as u64
}

/// Turns a datagram into the port unreachable message that answers it.
#[inline(always)]
fn unreachable<F: Family>(ctx: &XdpContext, p: &Packet) -> bool {
    let header = header_len::<F>();
    let room = header + 8;
    let l3 = p.l3 as usize;
    // The offending packet's own header: for IPv4 with its options.
    let quoted = if F::V4 {
        p.l4.wrapping_sub(p.l3) as usize
    } else {
        40
    } + QUOTED;
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(room as i32)) } != 0 {
        return false;
    }
    // The Ethernet header and its tags move to the new front, swapped.
    let frame_now = frame(ctx);
    if !move_link(&frame_now, room, l3) {
        return false;
    }
    if !cut(ctx, &frame_now, l3 + room + quoted) {
        return false;
    }
    let frame = frame(ctx);
    let Some(ip) = frame.at(l3, room) else {
        return false;
    };
    let icmp = ip + header;
    let message = (8 + quoted) as u16;
    // SAFETY: within the new headers.
    let mut sum = unsafe {
        let (protocol, kind) = if F::V4 {
            (proto::ICMP, u16::from_ne_bytes([3, 3]))
        } else {
            (proto::ICMPV6, u16::from_ne_bytes([1, 4]))
        };
        ip_header::<F>(ip, p, message, protocol);
        store(icmp, kind);
        store(icmp + 4, 0_u32);
        kind as u64
            + if F::V4 {
                0
            } else {
                pseudo_header(p, message, protocol)
            }
    };
    // At most 60 bytes of IPv4 header and the 8 behind it, in words of 4.
    let mut i = 0;
    while i < 17 {
        if i * 4 >= quoted {
            break;
        }
        let Some(word) = frame.at(l3 + room + i * 4, 4) else {
            return false;
        };
        // SAFETY: within the 4 bytes.
        sum += unsafe { load::<u32>(word) } as u64;
        i += 1;
    }
    let Some(icmp) = frame.at(l3 + header, 8) else {
        return false;
    };
    // SAFETY: within the 8 bytes.
    unsafe { store(icmp + 2, !checksum::fold(sum)) };
    true
}

/// Copies the Ethernet header and tags (`len` bytes) from offset `from` to the
/// front, hardware addresses swapped.
#[inline(always)]
fn move_link(frame: &Frame, from: usize, len: usize) -> bool {
    let (Some(new), Some(old)) = (frame.at(0, 22), frame.at(from, 22)) else {
        return false;
    };
    // SAFETY: within the 22 bytes each.
    unsafe {
        let (d0, d1) = (load::<u32>(old), load::<u16>(old + 4));
        let (s0, s1) = (load::<u32>(old + 6), load::<u16>(old + 10));
        store(new, s0);
        store(new + 4, s1);
        store(new + 6, d0);
        store(new + 10, d1);
        store(new + 12, load::<u16>(old + 12));
        if len >= 18 {
            store(new + 14, load::<u32>(old + 14));
        }
        if len >= 22 {
            store(new + 18, load::<u32>(old + 18));
        }
    }
    true
}
