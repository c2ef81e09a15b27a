//! Packets that take more reading: IPv6 extension headers, and fragments. Of
//! those, the first one is steered like a whole packet and leaves its ports
//! behind, by which the others follow it.

use crate::count::pass;
use crate::forward;
use crate::index;
use crate::maps::{FRAGMENTS, Tables, seed};
use crate::parse::{Fragment, Packet, proto};
use crate::report::inconsistent;
use crate::steer::{Family, Kind, icmp_proto};
use crate::verdict::Verdict;
use aya_ebpf::programs::XdpContext;
use common::Be16;
use common::counters::Reason;
use common::tables::FragmentKey;

/// Reads what the fast path has not: extension headers, then the ports, which a
/// later fragment has from its first. Says whose the packet is, as an
/// undecided verdict.
#[inline(never)]
pub fn whose<F: Family>(ctx: &XdpContext, p: &mut Packet) -> Verdict {
    let frame = forward::frame(ctx);
    if !F::V4
        && let Err(reason) = p.extensions(&frame)
    {
        return pass(reason);
    }
    let whole = matches!(p.fragment, Fragment::Whole);
    let first = matches!(p.fragment, Fragment::First);
    if p.proto == icmp_proto::<F>() && whole {
        return match p.transport(&frame) {
            Ok(()) => Verdict::next(Kind::Icmp as u32, 0),
            Err(reason) => pass(reason),
        };
    }
    if p.proto != proto::TCP && p.proto != proto::UDP {
        return pass(Reason::NotBalanced);
    }
    let key = FragmentKey {
        src: p.src,
        dst: p.dst,
        id: p.fragment_id,
        proto: p.proto as u32,
    };
    if whole || first {
        if let Err(reason) = p.transport(&frame) {
            return pass(reason);
        }
    } else {
        // SAFETY: the value is copied at once.
        let Some(ports) = (unsafe { FRAGMENTS.get(&key) }) else {
            return pass(Reason::FragmentUnknown);
        };
        p.sport = Be16(*ports as u16);
        p.dport = Be16((*ports >> 16) as u16);
    }
    let Some(tables) = Tables::new() else {
        return inconsistent();
    };
    let seed = seed();
    let whose = if let Some((slot, _)) = index::frontend(tables, &p.dst, p.dport, p.proto, seed) {
        Verdict::next(Kind::Forward as u32, slot)
    } else if let Some(slot) = index::endpoint(tables, &p.src, p.sport, p.proto, seed) {
        Verdict::next(Kind::Reply as u32, slot)
    } else {
        return pass(Reason::NotBalanced);
    };
    if first {
        let ports = p.sport.0 as u32 | (p.dport.0 as u32) << 16;
        // Without room the later ones are counted as unknown.
        let _ = FRAGMENTS.insert(&key, &ports, 0);
    }
    whose
}
