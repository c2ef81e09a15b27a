//! The fast path: plain packets of established flows, and everybody else's
//! traffic.
//!
//! One index lookup says whose the packet is, one flow lookup finds its flow; no
//! helper is called but the clock's and the redirect's. It reads only what it
//! decides by, from the frame itself, and keeps little in registers, of which
//! there are ten. A packet that is anything but plain (tags, options, extension
//! headers, fragments, short or odd lengths, flags that change a flow's state)
//! is left, unchanged, to `steer`, which reads it again and in full.

use crate::count::{pass, traffic_in, traffic_out};
use crate::flows::{self, Entry, Found, Key};
use crate::forward;
use crate::frame::{Frame, load, store};
use crate::index;
use crate::maps::{Tables, seed};
use crate::parse::{ETH_IPV4, ETH_IPV6, proto, tcp};
use crate::steer::{By, Family, V4, V6, clock, established, owner, seen};
use crate::verdict::Verdict;
use aya_ebpf::programs::XdpContext;
use common::counters::Reason;
use common::flow::flags;
use common::limits::DEVICES;
use common::tables::{Backend, Frontend, VLAN_KEEP, state};
use common::{Addr, Be16, checksum, hash};

/// Bytes of the Ethernet header.
const ETH: usize = 14;

/// Decides over a plain packet; `None` leaves it to `steer`.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> Option<Verdict> {
    let frame = forward::frame(ctx);
    let eth = frame.at(0, ETH)?;
    // SAFETY: within the 14 bytes.
    match unsafe { load::<u16>(eth + 12) } {
        ETH_IPV4 => plain::<V4>(ctx, &frame, eth),
        ETH_IPV6 => plain::<V6>(ctx, &frame, eth),
        _ => None,
    }
}

/// Bytes of the IP header.
#[inline(always)]
const fn header<F: Family>() -> usize {
    if F::V4 { 20 } else { 40 }
}

#[inline(always)]
unsafe fn src<F: Family>(ip: usize) -> Addr {
    // SAFETY: by the caller.
    unsafe {
        if F::V4 {
            Addr::from_v4_word(load(ip + 12))
        } else {
            Addr([load(ip + 8), load(ip + 16)])
        }
    }
}

#[inline(always)]
unsafe fn dst<F: Family>(ip: usize) -> Addr {
    // SAFETY: by the caller.
    unsafe {
        if F::V4 {
            Addr::from_v4_word(load(ip + 16))
        } else {
            Addr([load(ip + 24), load(ip + 32)])
        }
    }
}

#[inline(always)]
unsafe fn ttl_at<F: Family>(ip: usize) -> usize {
    if F::V4 { ip + 8 } else { ip + 7 }
}

#[inline(always)]
fn plain<F: Family>(ctx: &XdpContext, frame: &Frame, eth: usize) -> Option<Verdict> {
    // Room for a TCP header behind it. Datagrams shorter than that are rare, and
    // padded by most drivers.
    let ip = frame.at(ETH, header::<F>() + 20)?;
    let l4 = ip + header::<F>();
    // SAFETY: all within the bytes of the two headers.
    unsafe {
        let (length, proto) = if F::V4 {
            let fragment = load::<u16>(ip + 6) & 0x3fff_u16.to_be();
            if load::<u8>(ip) != 0x45 || fragment != 0 {
                return None;
            }
            (u16::from_be(load(ip + 2)) as usize, load::<u8>(ip + 9))
        } else {
            if load::<u8>(ip) >> 4 != 6 {
                return None;
            }
            let (src, dst) = (src::<F>(ip), dst::<F>(ip));
            if src.0[0] == 0 && src.is_v4() || dst.0[0] == 0 && dst.is_v4() {
                return None;
            }
            (u16::from_be(load(ip + 4)) as usize + 40, load::<u8>(ip + 6))
        };
        if ETH + length > frame.len() {
            return None;
        }
        let mut is_plain = load::<u8>(ttl_at::<F>(ip)) > 1;
        let needed = if proto == proto::TCP {
            let offset = (load::<u8>(l4 + 12) >> 4) as usize * 4;
            if offset < 20 {
                return None;
            }
            is_plain &= load::<u8>(l4 + 13) & tcp::STATE == tcp::ACK;
            offset
        } else if proto == proto::UDP {
            let size = u16::from_be(load(l4 + 4)) as usize;
            if size < 8 {
                return None;
            }
            size
        } else {
            return None;
        };
        if header::<F>() + needed > length {
            return None;
        }
        let tables = Tables::new()?;
        let seed = seed();
        let dport = Be16(load(l4 + 2));
        if let Some((slot, frontend)) = index::frontend(tables, &dst::<F>(ip), dport, proto, seed) {
            if !is_plain {
                return None;
            }
            return forward::<F>(ctx, frame, eth, ip, proto, slot, frontend);
        }
        let sport = Be16(load(l4));
        if let Some(slot) = index::endpoint(tables, &src::<F>(ip), sport, proto, seed) {
            if !is_plain {
                return None;
            }
            return reply::<F>(ctx, frame, eth, ip, proto, slot as u16);
        }
    }
    Some(pass(Reason::NotBalanced))
}

/// # Safety
/// `eth` and `ip` must be of checked headers, as all here.
#[inline(always)]
unsafe fn forward<F: Family>(
    ctx: &XdpContext,
    frame: &Frame,
    eth: usize,
    ip: usize,
    proto: u8,
    slot: u32,
    frontend: &Frontend,
) -> Option<Verdict> {
    // SAFETY: by the caller; tables' entries are in maps.
    unsafe {
        let port = Be16(load(ip + header::<F>()));
        let key = Key {
            addr: src::<F>(ip),
            port,
            frontend: slot as u16,
        };
        let hash = hash::client(&key.addr, port, seed());
        let found = established::<F>(hash, &key, By::FRONTEND)?;
        let (backend, word) = owner(found.meta)?;
        let needed = state::HOP_VALID
            | if proto == proto::UDP {
                state::USABLE
            } else {
                0
            };
        if word & (needed | state::STOPPED) != needed || found.meta.flags() & flags::SNAT != 0 {
            return None;
        }
        let hop = forward::hop(backend, word);
        if (*hop).vlan_count != VLAN_KEEP && (*hop).vlan_count != 0 {
            return None;
        }
        // The same way as the flow's packets before?
        let ingress = (*ctx.ctx).ingress_ifindex;
        let path = F::Entry::path(found.entry) as usize;
        if load::<u32>(eth + 6) != load::<u32>(path)
            || (load::<u16>(eth + 10) as u32 | (ingress % DEVICES) << 16) != load::<u32>(path + 4)
            || found.meta.flags() & flags::VLAN_MASK != 0
        {
            return None;
        }
        touch(&found);
        rewrite::<F, true>(ip, proto, backend, frontend);
        let [a, b, c] = forward::hop_macs(hop);
        store(eth, a);
        store(eth + 4, b);
        store(eth + 8, c);
        traffic_in(slot, found.meta.backend() as u32, frame.len() as u64);
        Some(out(ingress, (*hop).ifindex))
    }
}

/// # Safety
/// As for [`forward`].
#[inline(always)]
unsafe fn reply<F: Family>(
    ctx: &XdpContext,
    frame: &Frame,
    eth: usize,
    ip: usize,
    proto: u8,
    endpoint: u16,
) -> Option<Verdict> {
    // SAFETY: by the caller; tables' entries are in maps.
    unsafe {
        let port = Be16(load(ip + header::<F>() + 2));
        let key = Key {
            addr: dst::<F>(ip),
            port,
            frontend: 0,
        };
        let hash = hash::client(&key.addr, port, seed());
        let found = established::<F>(hash, &key, By::endpoint(endpoint))?;
        let (backend, word) = owner(found.meta)?;
        if word & state::STOPPED != 0 || found.meta.flags() & flags::VLAN_MASK != 0 {
            return None;
        }
        let slot = F::Entry::frontend(found.entry) as u32;
        let frontend = Tables::new()?.frontend(slot);
        let (ifindex, [a, b, c]) = forward::return_macs(F::Entry::path(found.entry))?;
        touch(&found);
        rewrite::<F, false>(ip, proto, backend, frontend);
        store(eth, a);
        store(eth + 4, b);
        store(eth + 8, c);
        traffic_out(slot, found.meta.backend() as u32, frame.len() as u64);
        Some(out((*ctx.ctx).ingress_ifindex, ifindex))
    }
}

#[inline(always)]
fn out(ingress: u32, ifindex: u32) -> Verdict {
    if ifindex == ingress {
        Verdict::TX
    } else {
        Verdict::redirect(ifindex)
    }
}

/// Notes the time of a packet, about once a second and flow. Lost to another CPU,
/// the next packet notes it.
#[inline(always)]
unsafe fn touch<E: Entry>(found: &Found<E>) {
    let now = seen(clock());
    if found.meta.seen() != now {
        // SAFETY: the flow was found in the map.
        unsafe { flows::exchange(found.entry, found.meta, found.meta.with_seen(now)) };
    }
}

/// Frontend to backend in the destination (`IN`), or backend to frontend in the
/// source; TTL lowered; checksums updated (RFC 1624).
#[inline(always)]
unsafe fn rewrite<F: Family, const IN: bool>(
    ip: usize,
    proto: u8,
    backend: *const Backend,
    frontend: &Frontend,
) {
    // SAFETY: checked headers, and entries of maps.
    unsafe {
        let (addr, port) = if IN {
            ((*backend).addr, (*backend).port)
        } else {
            (frontend.addr, frontend.port)
        };
        if F::V4 {
            let (old, new) = if IN {
                (frontend.sum_addr, (*backend).sum_addr)
            } else {
                ((*backend).sum_addr, frontend.sum_addr)
            };
            store(ip + if IN { 16 } else { 12 }, addr.v4_word());
            let check: u16 = load(ip + 10);
            // The TTL is the first byte of its word.
            let old = old as u32 + u16::from_ne_bytes([1, 0]) as u32;
            store(ip + 10, checksum::update_wide(check, old, new as u32));
        } else {
            let at = ip + if IN { 24 } else { 8 };
            store(at, addr.0[0]);
            store(at + 8, addr.0[1]);
        }
        let ttl = ttl_at::<F>(ip);
        store(ttl, load::<u8>(ttl) - 1);
        let l4 = ip + header::<F>();
        store(l4 + if IN { 2 } else { 0 }, port.0);
        let (old, new) = if IN {
            (frontend.sum_endpoint, (*backend).sum_endpoint)
        } else {
            ((*backend).sum_endpoint, frontend.sum_endpoint)
        };
        if proto == proto::TCP {
            let check: u16 = load(l4 + 16);
            store(l4 + 16, checksum::update(check, old, new));
        } else {
            let check: u16 = load(l4 + 6);
            // RFC 768: no checksum stays none, and a sum of 0 is sent as ffff.
            if check != 0 {
                let check = checksum::update(check, old, new);
                store(l4 + 6, if check == 0 { 0xffff } else { check });
            }
        }
    }
}
