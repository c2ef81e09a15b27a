//! ICMP and ICMPv6: echo to a frontend's address is answered, errors about a
//! balanced flow are translated and go to the end that they concern.

use crate::count::{count, pass};
use crate::flows::{By, Entry, Key};
use crate::forward::{self, frame};
use crate::frame::{Frame, load, store};
use crate::index;
use crate::maps::{Tables, seed};
use crate::parse::{Packet, proto};
use crate::refuse::swap_macs;
use crate::report::inconsistent;
use crate::snat;
use crate::steer::{Family, clock, owner, seen};
use crate::table::{self, Found, HalfOpen, Table};
use crate::verdict::Verdict;
use aya_ebpf::programs::XdpContext;
use common::checksum;
use common::counters::Reason;
use common::flow::{Meta, ReturnPath, flags};
use common::{Addr, Be16, hash};

const TTL: u8 = 64;

/// An ICMP packet of the family's own kind.
#[inline(never)]
pub fn packet<F: Family>(ctx: &XdpContext, p: &Packet) -> Verdict {
    let kind = p.sport.0.to_ne_bytes()[0];
    let echo = if F::V4 { 8 } else { 128 };
    if kind == echo {
        return answer_echo::<F>(ctx, p);
    }
    let error = if F::V4 {
        matches!(kind, 3 | 4 | 11 | 12)
    } else {
        matches!(kind, 1..=4)
    };
    if error {
        translate::<F>(ctx, p)
    } else {
        pass(Reason::NotBalanced)
    }
}

#[inline(always)]
fn answer_echo<F: Family>(ctx: &XdpContext, p: &Packet) -> Verdict {
    let Some(tables) = Tables::new() else {
        return inconsistent();
    };
    if index::frontend(tables, &p.dst, Be16(0), proto::ICMP, seed()).is_none() {
        return pass(Reason::NotBalanced);
    }
    let frame = frame(ctx);
    let Some(icmp) = frame.at(p.l4 as usize, 8) else {
        return pass(Reason::TruncatedTransport);
    };
    // SAFETY: within the 8 bytes.
    unsafe {
        let old: u16 = load(icmp);
        let new = u16::from_ne_bytes([if F::V4 { 0 } else { 129 }, old.to_ne_bytes()[1]]);
        store(icmp, new);
        let check: u16 = load(icmp + 2);
        store(icmp + 2, checksum::update(check, old, new));
    }
    // Swapping the addresses changes no sum.
    if F::V4 {
        let Some(ip) = frame.at(p.l3 as usize, 20) else {
            return Verdict::DROP;
        };
        // SAFETY: within the 20 bytes.
        unsafe {
            store(ip + 12, p.dst.v4_word());
            store(ip + 16, p.src.v4_word());
            let old: u16 = load(ip + 8);
            let new = u16::from_ne_bytes([TTL, old.to_ne_bytes()[1]]);
            store(ip + 8, new);
            let check: u16 = load(ip + 10);
            store(ip + 10, checksum::update(check, old, new));
        }
    } else {
        let Some(ip) = frame.at(p.l3 as usize, 40) else {
            return Verdict::DROP;
        };
        // SAFETY: within the 40 bytes.
        unsafe {
            store(ip + 7, TTL);
            store(ip + 8, p.dst.0[0]);
            store(ip + 16, p.dst.0[1]);
            store(ip + 24, p.src.0[0]);
            store(ip + 32, p.src.0[1]);
        }
    }
    if !swap_macs(&frame) {
        return Verdict::DROP;
    }
    count(Reason::EchoAnswered);
    Verdict::TX
}

/// The packet that an error is about, as far as it is there.
#[derive(Clone, Copy)]
struct Inner {
    src: Addr,
    dst: Addr,
    sport: Be16,
    dport: Be16,
    proto: u8,
    /// Offset of its IP header.
    l3: u32,
    /// Offset of its transport header.
    l4: u32,
}

#[inline(always)]
fn inner<F: Family>(frame: &Frame, p: &Packet) -> Option<Inner> {
    let l3 = p.l4 as usize + 8;
    let (src, dst, proto, l4) = if F::V4 {
        let ip = frame.at(l3, 20)?;
        // SAFETY: within the 20 bytes.
        unsafe {
            let version: u8 = load(ip);
            let header = (version & 0x0f) as usize * 4;
            if version >> 4 != 4 || header < 20 || u16::from_be(load(ip + 6)) & 0x1fff != 0 {
                return None;
            }
            let (src, dst) = (load(ip + 12), load(ip + 16));
            (
                Addr::from_v4_word(src),
                Addr::from_v4_word(dst),
                load(ip + 9),
                l3 + header,
            )
        }
    } else {
        let ip = frame.at(l3, 40)?;
        // SAFETY: within the 40 bytes.
        unsafe {
            if load::<u8>(ip) >> 4 != 6 {
                return None;
            }
            let src = Addr([load(ip + 8), load(ip + 16)]);
            let dst = Addr([load(ip + 24), load(ip + 32)]);
            // Half-open flows of both families share a table.
            if src.is_v4() || dst.is_v4() {
                return None;
            }
            (src, dst, load(ip + 6), l3 + 40)
        }
    };
    if (proto != proto::TCP && proto != proto::UDP) || l4 + 8 > p.end as usize {
        return None;
    }
    let ports = frame.at(l4, 8)?;
    // SAFETY: within the 8 bytes.
    let (sport, dport) = unsafe { (Be16(load(ports)), Be16(load(ports + 2))) };
    Some(Inner {
        src,
        dst,
        sport,
        dport,
        proto,
        l3: l3 as u32,
        l4: l4 as u32,
    })
}

/// What a flow says about where an error goes.
#[derive(Clone, Copy)]
struct Flow {
    meta: Meta,
    snat_port: Be16,
    frontend: u16,
    path: ReturnPath,
}

#[inline(always)]
fn flow<T: Table>(found: &Found<T>) -> Flow {
    // SAFETY: the flow was found in the map.
    unsafe {
        Flow {
            meta: found.meta,
            snat_port: T::Entry::snat_port(found.entry),
            frontend: T::Entry::frontend(found.entry),
            path: *T::Entry::path(found.entry),
        }
    }
}

/// The flow of a client: by frontend when `exact`, else by endpoint.
#[inline(never)]
fn look_up<F: Family>(key: &Key, endpoint: u16, exact: bool, out: &mut Flow) -> bool {
    let hash = hash::client(&key.addr, key.port, seed());
    let by = if exact {
        By::FRONTEND
    } else {
        By::endpoint(endpoint)
    };
    if let Some(found) = table::find::<F::Established>(hash, key, by) {
        *out = flow(&found);
        return true;
    }
    if let Some(found) = table::find::<HalfOpen>(hash, key, by) {
        *out = flow(&found);
        return true;
    }
    false
}

const NO_FLOW: Flow = Flow {
    meta: Meta::FREE,
    snat_port: Be16(0),
    frontend: 0,
    path: ReturnPath {
        mac: [0; 6],
        device: 0,
        tci: [Be16(0); 2],
    },
};

#[inline(always)]
fn translate<F: Family>(ctx: &XdpContext, p: &Packet) -> Verdict {
    let Some(inner) = inner::<F>(&frame(ctx), p) else {
        return pass(Reason::IcmpErrorUnknown);
    };
    let Some(tables) = Tables::new() else {
        return inconsistent();
    };
    let seed = seed();
    let mut flow = NO_FLOW;
    if let Some((slot, _)) = index::frontend(tables, &inner.src, inner.sport, inner.proto, seed) {
        let key = Key {
            addr: inner.dst,
            port: inner.dport,
            frontend: slot as u16,
        };
        if look_up::<F>(&key, 0, true, &mut flow) {
            return to_backend::<F>(ctx, p, &inner, &flow);
        }
    } else if let Some(slot) = index::endpoint(tables, &inner.dst, inner.dport, inner.proto, seed) {
        let owner = snat::owner(&inner.src, inner.sport, slot as u16, seen(clock()));
        let key = match &owner {
            Some(key) => *key,
            None => Key {
                addr: inner.src,
                port: inner.sport,
                frontend: 0,
            },
        };
        // The client may have begun a new flow since the port was its own.
        if look_up::<F>(&key, slot as u16, owner.is_some(), &mut flow)
            && (owner.is_none()
                || (flow.meta.flags() & flags::SNAT != 0 && flow.snat_port == inner.sport))
        {
            return to_client::<F>(ctx, p, &inner, &flow, &key);
        }
    }
    pass(Reason::IcmpErrorUnknown)
}

/// An error about a reply: for the backend that sent it.
#[inline(never)]
fn to_backend<F: Family>(ctx: &XdpContext, p: &Packet, inner: &Inner, flow: &Flow) -> Verdict {
    let Some((backend, word)) = owner(flow.meta) else {
        return pass(Reason::IcmpErrorUnknown);
    };
    if p.ttl <= 1 {
        return pass(Reason::TtlExpired);
    }
    // SAFETY: in the map's value.
    let (addr, port) = unsafe { ((*backend).addr, (*backend).port) };
    let mut new = Ends {
        inner_src: addr,
        inner_sport: port,
        inner_dst: inner.dst,
        inner_dport: inner.dport,
        outer_src: p.src,
        outer_dst: addr,
    };
    if flow.meta.flags() & flags::SNAT != 0 {
        let Some(addr) = snat::address(flow.meta.snat_slot()) else {
            return inconsistent();
        };
        new.inner_dst = addr;
        new.inner_dport = flow.snat_port;
    }
    if !rewrite::<F>(&frame(ctx), p, inner, &new) {
        return pass(Reason::IcmpErrorUnknown);
    }
    count(Reason::IcmpErrorForwarded);
    forward::to_backend(ctx, p, backend, word)
}

/// An error about a forwarded packet: for the client that sent it.
#[inline(never)]
fn to_client<F: Family>(
    ctx: &XdpContext,
    p: &Packet,
    inner: &Inner,
    flow: &Flow,
    client: &Key,
) -> Verdict {
    let Some(frontend) = Tables::new().map(|t| t.frontend(flow.frontend as u32)) else {
        return inconsistent();
    };
    if p.ttl <= 1 {
        return pass(Reason::TtlExpired);
    }
    let new = Ends {
        inner_src: client.addr,
        inner_sport: client.port,
        inner_dst: frontend.addr,
        inner_dport: frontend.port,
        // Sent by the backend itself, it must come from the address that the
        // client knows; a router on the way keeps its own.
        outer_src: if p.src == inner.dst {
            frontend.addr
        } else {
            p.src
        },
        outer_dst: client.addr,
    };
    if !rewrite::<F>(&frame(ctx), p, inner, &new) {
        return pass(Reason::IcmpErrorUnknown);
    }
    count(Reason::IcmpErrorForwarded);
    forward::to_client(ctx, p, &flow.path, flow.meta)
}

/// All addresses and ports of the translated error.
struct Ends {
    inner_src: Addr,
    inner_dst: Addr,
    inner_sport: Be16,
    inner_dport: Be16,
    outer_src: Addr,
    outer_dst: Addr,
}

#[inline(always)]
fn sum(addr: &Addr) -> u32 {
    checksum::fold(checksum::sum_addr(addr)) as u32
}

/// Writes the new ends into both headers. The ICMP checksum covers everything
/// inside it: all words that change are summed, before and after, and it is
/// updated once.
#[inline(always)]
fn rewrite<F: Family>(frame: &Frame, p: &Packet, inner: &Inner, new: &Ends) -> bool {
    let (mut before, mut after) = (0u32, 0u32);
    let inner_old = sum(&inner.src) + sum(&inner.dst);
    let inner_new = sum(&new.inner_src) + sum(&new.inner_dst);
    let ports_old = inner.sport.0 as u32 + inner.dport.0 as u32;
    let ports_new = new.inner_sport.0 as u32 + new.inner_dport.0 as u32;
    before += inner_old + ports_old;
    after += inner_new + ports_new;

    // The inner transport header: ports, and its checksum where it is there.
    let Some(t) = frame.at(inner.l4 as usize, 8) else {
        return false;
    };
    // SAFETY: within the 8 bytes, and the 2 below.
    unsafe {
        store(t, new.inner_sport.0);
        store(t + 2, new.inner_dport.0);
        let at = if inner.proto == proto::TCP { 16 } else { 6 };
        let inside = inner.l4 as usize + at + 2 <= p.end as usize;
        if inside && let Some(field) = frame.at(inner.l4 as usize + at, 2) {
            let check: u16 = load(field);
            if check != 0 || inner.proto == proto::TCP {
                let mut new =
                    checksum::update_wide(check, inner_old + ports_old, inner_new + ports_new);
                if new == 0 && inner.proto == proto::UDP {
                    new = 0xffff;
                }
                store(field, new);
                before += check as u32;
                after += new as u32;
            }
        }
    }
    // The inner IP header.
    if F::V4 {
        let Some(ip) = frame.at(inner.l3 as usize, 20) else {
            return false;
        };
        // SAFETY: within the 20 bytes.
        unsafe {
            store(ip + 12, new.inner_src.v4_word());
            store(ip + 16, new.inner_dst.v4_word());
            let check: u16 = load(ip + 10);
            let new = checksum::update_wide(check, inner_old, inner_new);
            store(ip + 10, new);
            before += check as u32;
            after += new as u32;
        }
    } else {
        let Some(ip) = frame.at(inner.l3 as usize, 40) else {
            return false;
        };
        // SAFETY: within the 40 bytes.
        unsafe {
            store(ip + 8, new.inner_src.0[0]);
            store(ip + 16, new.inner_src.0[1]);
            store(ip + 24, new.inner_dst.0[0]);
            store(ip + 32, new.inner_dst.0[1]);
        }
    }
    // The outer IP header.
    let outer_old = sum(&p.src) + sum(&p.dst);
    let outer_new = sum(&new.outer_src) + sum(&new.outer_dst);
    if F::V4 {
        let Some(ip) = frame.at(p.l3 as usize, 20) else {
            return false;
        };
        // SAFETY: within the 20 bytes.
        unsafe {
            store(ip + 12, new.outer_src.v4_word());
            store(ip + 16, new.outer_dst.v4_word());
            store(ip + 8, p.ttl - 1);
            let lowered = u16::from_ne_bytes([1, 0]) as u32;
            let check: u16 = load(ip + 10);
            store(
                ip + 10,
                checksum::update_wide(check, outer_old + lowered, outer_new),
            );
        }
    } else {
        let Some(ip) = frame.at(p.l3 as usize, 40) else {
            return false;
        };
        // SAFETY: within the 40 bytes.
        unsafe {
            store(ip + 8, new.outer_src.0[0]);
            store(ip + 16, new.outer_src.0[1]);
            store(ip + 24, new.outer_dst.0[0]);
            store(ip + 32, new.outer_dst.0[1]);
            store(ip + 7, p.ttl - 1);
        }
        // The pseudo-header counts for ICMPv6.
        before += outer_old;
        after += outer_new;
    }
    let Some(icmp) = frame.at(p.l4 as usize, 8) else {
        return false;
    };
    // SAFETY: within the 8 bytes.
    unsafe {
        let check: u16 = load(icmp + 2);
        store(icmp + 2, checksum::update_wide(check, before, after));
    }
    true
}
