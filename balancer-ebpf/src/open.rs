//! Packets that change a flow's state: handshakes, closing, new flows, stale and
//! stopped ones, and all that the fast path leaves. `docs/kernel.md`, "Forward"
//! and "Reply".

use crate::count::{count, event, on_backend, on_both, pass, traffic_in, traffic_out};
use crate::flows::{self, By, Entry, Fields, Key};
use crate::forward::{self, Replacement};
use crate::frame::{Frame, load};
use crate::local;
use crate::maps::{Tables, seed};
use crate::parse::{Fragment, Packet, proto, tcp};
use crate::refuse;
use crate::report::{inconsistent, note};
use crate::select;
use crate::snat;
use crate::steer::{self, Family, clock, owner, seen};
use crate::table::{self, Found, HalfOpen, Table};
use crate::verdict::Verdict;
use aya_ebpf::programs::XdpContext;
use common::counters::Reason;
use common::flow::{Flow6, Meta, ReturnPath, flags};
use common::tables::{Unavailable, event as sign, frontend_flags, state};
use common::{Addr, Be16, hash};

/// How far beyond the backend's sequence number a client's acknowledgement may
/// lie and still complete the handshake: when its first ACK was lost, a later one
/// acknowledges data too. Small enough that guessing it is no way in.
const ACK_WINDOW: u32 = 1 << 20;

/// What to do with a packet once its flow was looked for.
enum Next {
    /// Send it along a flow of this state and translated source port.
    Send(Meta, Be16),
    /// Begin a new flow.
    Open,
    /// It belongs to no flow.
    Unknown,
    /// Its backend was stopped.
    Cut,
}

/// A packet from a client, to the frontend at `slot`.
#[inline(never)]
pub fn forward<F: Family>(ctx: &XdpContext, p: &Packet, slot: u32) -> Verdict {
    let frame = forward::frame(ctx);
    let later = matches!(p.fragment, Fragment::Later);
    if p.proto == proto::TCP && !later && bad_flags(p.tcp_flags) {
        return pass(Reason::BadTcpFlags);
    }
    if bad_source::<F>(&p.src) || p.sport.0 == 0 {
        return pass(Reason::BadSource);
    }
    if p.ttl <= 1 {
        return pass(Reason::TtlExpired);
    }
    let Some(frontend) = Tables::new().map(|t| t.frontend(slot)) else {
        return inconsistent();
    };
    let key = Key {
        addr: p.src,
        port: p.sport,
        frontend: slot as u16,
    };
    let hash = hash::client(&p.src, p.sport, seed());
    let now = seen(clock());

    let next = match table::find::<F::Established>(hash, &key, By::FRONTEND) {
        Some(found) => along_established(&frame, p, &found, now),
        None => match table::find::<HalfOpen>(hash, &key, By::FRONTEND) {
            Some(found) => along_half_open::<F>(&frame, p, &found, now, hash, &key),
            None if is_opener(p) => Next::Unknown,
            // Between the two looks another CPU may have moved it, with the ACK that came
            // before this packet.
            None => match table::find::<F::Established>(hash, &key, By::FRONTEND) {
                Some(found) => along_established(&frame, p, &found, now),
                None => Next::Unknown,
            },
        },
    };
    match next {
        Next::Send(meta, snat_port) => send::<F>(ctx, p, slot, meta, snat_port),
        Next::Cut => {
            count(Reason::BackendStopped);
            refuse::packet::<F>(ctx, p, Unavailable::Reset as u8)
        }
        Next::Unknown if later => pass(Reason::FragmentUnknown),
        Next::Unknown
            if frontend.flags & frontend_flags::LOCAL != 0 && local::owns::<F>(ctx, p) =>
        {
            pass(Reason::LocalDelivered)
        }
        Next::Unknown if !is_opener(p) && frontend.flags & frontend_flags::CLOSING == 0 => {
            count(Reason::FlowUnknown);
            refuse::packet::<F>(ctx, p, frontend.unavailable)
        }
        // A frontend on its way out takes no new flows: to new packets its
        // address is not balanced any more.
        _ if frontend.flags & frontend_flags::CLOSING != 0 => pass(Reason::NotBalanced),
        _ => {
            let chosen = select::choose::<F>(slot, frontend, &key, hash);
            select::new_flow::<F>(ctx, p, slot, hash, chosen)
        }
    }
}

/// Whether a packet begins a flow where there is none.
#[inline(always)]
fn is_opener(p: &Packet) -> bool {
    (p.proto == proto::UDP && !matches!(p.fragment, Fragment::Later)) || is_syn(p)
}

#[inline(always)]
fn is_syn(p: &Packet) -> bool {
    p.proto == proto::TCP && p.tcp_flags & tcp::STATE == tcp::SYN
}

/// Flags that no state of RFC 9293 sends.
#[inline(always)]
fn bad_flags(f: u8) -> bool {
    let state = f & tcp::STATE;
    state == 0
        || state & (tcp::SYN | tcp::FIN) == tcp::SYN | tcp::FIN
        || state & (tcp::SYN | tcp::RST) == tcp::SYN | tcp::RST
        || state & (tcp::FIN | tcp::RST) == tcp::FIN | tcp::RST
}

/// Addresses that no client can have.
#[inline(always)]
pub fn bad_source<F: Family>(addr: &Addr) -> bool {
    if F::V4 {
        let first = addr.v4_word().to_ne_bytes()[0];
        // 0.0.0.0, 127/8, 224/4 and above with the limited broadcast.
        addr.v4_word() == 0 || first == 127 || first >= 224
    } else {
        let first = addr.0[0].to_ne_bytes()[0];
        // ::, ::1, ff00::/8.
        (addr.0[0] == 0 && addr.0[1] & !1u64.to_be() == 0) || first == 0xff
    }
}

/// Flags that a packet's FIN or RST adds to its flow.
#[inline(always)]
fn closing(p: &Packet, fin: u16) -> u16 {
    let mut add = 0;
    if p.proto == proto::TCP {
        if p.tcp_flags & tcp::FIN != 0 {
            add |= fin;
        }
        if p.tcp_flags & tcp::RST != 0 {
            add |= flags::RESET;
        }
    }
    add
}

/// Writes a flow's new state and, where that closes it, frees its snat port.
#[inline(always)]
fn advance<T: Table>(found: &Found<T>, new: Meta) -> Meta {
    if new != found.meta {
        // SAFETY: the flow was found in the map. Lost to another CPU, the flag is
        // lost too; the peer repeats its FIN, and a RST is followed by nothing.
        unsafe { flows::exchange(found.entry, found.meta, new) };
        if new.is_closed() && new.flags() & flags::SNAT != 0 {
            // SAFETY: as above.
            snat::close(new, unsafe { T::Entry::snat_port(found.entry) });
        }
    }
    new
}

/// Takes the return path that a packet from the client shows, where it is new;
/// the flow's state with the packet's tags, time and closing flags.
#[inline(always)]
fn follow<T: Table>(frame: &Frame, p: &Packet, found: &Found<T>, now: u32) -> Meta {
    if let Some(path) = steer::path(frame, p) {
        // SAFETY: the flow was found in the map. A reply that reads the path at this
        // moment may see half of it, and is repeated by its sender if it is lost.
        unsafe {
            let at = T::Entry::path(found.entry);
            if (*at).mac != path.mac || (*at).device != path.device || (*at).tci != path.tci {
                *at = path;
            }
        }
    }
    let untagged = found.meta.0 & !((flags::VLAN_MASK as u64) << 24);
    Meta(untagged)
        .with_flags(p.vlan | closing(p, flags::CLIENT_FIN))
        .with_seen(now)
}

/// Frees a flow's entry, and its snat port.
#[inline(always)]
fn free<T: Table>(found: &Found<T>) {
    // SAFETY: the flow was found in the map.
    let port = unsafe { T::Entry::snat_port(found.entry) };
    if table::free(found) && found.meta.flags() & flags::SNAT != 0 {
        snat::close(found.meta, port);
    }
}

#[inline(always)]
fn along_established<T: Table>(frame: &Frame, p: &Packet, found: &Found<T>, now: u32) -> Next {
    let Some((_, word)) = owner(found.meta) else {
        count(Reason::FlowStale);
        free(found);
        return Next::Unknown;
    };
    if word & state::STOPPED != 0 {
        advance(found, found.meta.with_flags(flags::RESET).with_seen(now));
        return Next::Cut;
    }
    let usable = word & state::USABLE != 0;
    let fins = flags::CLIENT_FIN | flags::SERVER_FIN | flags::RESET;
    let over = found.meta.flags() & fins != 0;
    if is_opener(p) && (!usable || (is_syn(p) && over)) {
        free(found);
        return Next::Open;
    }
    let meta = advance(found, follow(frame, p, found, now));
    // SAFETY: the flow was found in the map.
    Next::Send(meta, unsafe { T::Entry::snat_port(found.entry) })
}

#[inline(always)]
fn along_half_open<F: Family>(
    frame: &Frame,
    p: &Packet,
    found: &Found<HalfOpen>,
    now: u32,
    hash: u64,
    key: &Key,
) -> Next {
    let Some((_, word)) = owner(found.meta) else {
        count(Reason::FlowStale);
        free(found);
        return Next::Unknown;
    };
    if word & state::STOPPED != 0 {
        advance(found, found.meta.with_flags(flags::RESET).with_seen(now));
        return Next::Cut;
    }
    let have = found.meta.flags();
    // SAFETY: the flow was found in the map.
    let snat_port = unsafe { Flow6::snat_port(found.entry) };
    if have & flags::MOVING != 0 {
        // Another CPU is busy with the entry; the packet only needs to know where to.
        return Next::Send(found.meta, snat_port);
    }
    if is_opener(p) {
        if word & state::USABLE == 0 || found.meta.is_closed() {
            free(found);
            return Next::Open;
        }
        if p.proto == proto::TCP && have & flags::ANSWERED == 0 && word & state::WATCHED != 0 {
            event(
                sign::SYN_UNANSWERED,
                found.meta.backend() as u32,
                found.meta.generation() as u32,
            );
        }
    } else if p.proto == proto::TCP && !matches!(p.fragment, Fragment::Later) {
        if p.tcp_flags & tcp::RST != 0 {
            free(found);
            return Next::Send(found.meta, snat_port);
        }
        if p.tcp_flags & (tcp::ACK | tcp::SYN) == tcp::ACK && have & flags::ANSWERED != 0 {
            let Some(t) = frame.at(p.l4 as usize, 20) else {
                return Next::Unknown;
            };
            // SAFETY: within the 20 bytes; the flow was found in the map.
            let (ack, expected) = unsafe {
                let entry = found.entry;
                (
                    u32::from_be(load(t + 8)),
                    (&raw const (*entry).expected_ack).read_volatile(),
                )
            };
            if ack.wrapping_sub(expected) < ACK_WINDOW {
                let state = follow(frame, p, found, now);
                establish::<F>(found, key, hash, state);
                return Next::Send(state, snat_port);
            }
        }
    }
    let meta = advance(found, follow(frame, p, found, now));
    Next::Send(meta, snat_port)
}

/// Moves a flow from the half-open table to the established one: by one CPU, and so
/// that it is in one of them at any time. Where the new table's entry is in another
/// CPU's hands the flow stays half-open, which carries it as well, and the next packet
/// tries again.
#[inline(never)]
fn establish<F: Family>(found: &Found<HalfOpen>, key: &Key, hash: u64, state: Meta) {
    let Some(moving) = table::begin_move(found) else {
        return;
    };
    // SAFETY: the flow was found in the map.
    let fields = unsafe {
        Fields {
            key: *key,
            path: *Flow6::path(found.entry),
            snat_port: Flow6::snat_port(found.entry),
            endpoint: Flow6::endpoint(found.entry),
            born: (&raw const (*found.entry).born).read_volatile(),
        }
    };
    if !select::put::<F::Established>(hash, &fields, state) {
        // SAFETY: the flow was found in the map. Nobody else changes a flow that moves.
        unsafe { flows::exchange(moving.entry, moving.meta, found.meta) };
        note(Reason::FlowTableBusy);
        return;
    }
    table::free(&moving);
    let reason = [(Reason::FlowEstablished, 1)];
    on_both(key.frontend as u32, state.backend() as u32, reason, |t| {
        t.established += 1;
    });
}

/// Rewrites a packet from a client for the backend of its flow and sends it.
#[inline(never)]
pub fn send<F: Family>(
    ctx: &XdpContext,
    p: &Packet,
    slot: u32,
    meta: Meta,
    snat_port: Be16,
) -> Verdict {
    let Some(frontend) = Tables::new().map(|t| t.frontend(slot)) else {
        return inconsistent();
    };
    let frame = forward::frame(ctx);
    let Some((backend, word)) = owner(meta) else {
        return pass(Reason::FlowStale);
    };
    // SAFETY: in the map's value.
    let r = unsafe { steer::to_backend(frontend, backend) };
    if !forward::rewrite::<F, true, true>(&frame, p, &r) {
        return Verdict::DROP;
    }
    if meta.flags() & flags::SNAT != 0 {
        let Some(addr) = snat::address(meta.snat_slot()) else {
            return inconsistent();
        };
        let r = Replacement::between(&p.src, p.sport, addr, snat_port);
        if !forward::rewrite::<F, false, false>(&frame, p, &r) {
            return Verdict::DROP;
        }
    }
    traffic_in(slot, meta.backend() as u32, frame.len() as u64);
    forward::to_backend(ctx, p, backend, word)
}

/// A packet from the endpoint at `endpoint`.
#[inline(never)]
pub fn reply<F: Family>(ctx: &XdpContext, p: &Packet, endpoint: u32) -> Verdict {
    if p.ttl <= 1 {
        return pass(Reason::TtlExpired);
    }
    let frame = forward::frame(ctx);
    let now = seen(clock());
    let snat = snat::owner(&p.dst, p.dport, endpoint as u16, now);
    let key = match &snat {
        Some(key) => *key,
        None => Key {
            addr: p.dst,
            port: p.dport,
            frontend: 0,
        },
    };
    let exact = snat.is_some();
    let by = if exact {
        By::FRONTEND
    } else {
        By::endpoint(endpoint as u16)
    };
    let hash = hash::client(&key.addr, key.port, seed());

    let established = established_for::<F>(p, hash, &key, by, exact);
    let half_open = match &established {
        Some(_) => None,
        None => table::find::<HalfOpen>(hash, &key, by).filter(|f| !exact || holds(f, p)),
    };
    if let Some(found) = half_open {
        return match answer_half_open::<F>(&frame, p, &found, now, hash, &key) {
            Some(meta) => return_to::<F>(ctx, p, &Back::along(&found, meta, key, exact)),
            None => refused_reply(&found),
        };
    }
    // Between the two looks another CPU may have moved it.
    let established = established.or_else(|| established_for::<F>(p, hash, &key, by, exact));
    let Some(found) = established else {
        return pass(Reason::ReplyUnknown);
    };
    match answer_established(p, &found, now) {
        Some(meta) => return_to::<F>(ctx, p, &Back::along(&found, meta, key, exact)),
        None => refused_reply(&found),
    }
}

/// The established flow that a reply belongs to.
#[inline(always)]
fn established_for<F: Family>(
    p: &Packet,
    hash: u64,
    key: &Key,
    by: By,
    exact: bool,
) -> Option<Found<F::Established>> {
    table::find::<F::Established>(hash, key, by).filter(|found| !exact || holds(found, p))
}

/// Whether the flow's source is translated to where the reply goes: the client
/// may have begun a new flow since the port was its own.
#[inline(always)]
fn holds<T: Table>(found: &Found<T>, p: &Packet) -> bool {
    // SAFETY: the flow was found in the map.
    found.meta.flags() & flags::SNAT != 0
        && unsafe { T::Entry::snat_port(found.entry) } == p.dport
        && snat::address(found.meta.snat_slot()) == Some(p.dst)
}

/// A reply along a flow whose backend is gone, or stopped.
#[inline(always)]
fn refused_reply<T: Table>(found: &Found<T>) -> Verdict {
    if owner(found.meta).is_some() {
        count(Reason::BackendStopped);
        return Verdict::DROP;
    }
    count(Reason::FlowStale);
    free(found);
    pass(Reason::ReplyUnknown)
}

#[inline(always)]
fn may_answer(meta: Meta) -> Option<u32> {
    let (_, word) = owner(meta)?;
    if word & state::STOPPED != 0 {
        None
    } else {
        Some(word)
    }
}

#[inline(always)]
fn answer_established<T: Table>(p: &Packet, found: &Found<T>, now: u32) -> Option<Meta> {
    may_answer(found.meta)?;
    let add = closing(p, flags::SERVER_FIN);
    Some(advance(found, found.meta.with_flags(add).with_seen(now)))
}

#[inline(always)]
fn answer_half_open<F: Family>(
    frame: &Frame,
    p: &Packet,
    found: &Found<HalfOpen>,
    now: u32,
    hash: u64,
    key: &Key,
) -> Option<Meta> {
    let word = may_answer(found.meta)?;
    let have = found.meta.flags();
    if have & flags::MOVING != 0 {
        return Some(found.meta);
    }
    let mut add = closing(p, flags::SERVER_FIN);
    if p.proto == proto::UDP {
        let state = found.meta.with_flags(flags::ANSWERED).with_seen(now);
        // SAFETY: the flow was found in the map.
        let frontend = unsafe { Flow6::frontend(found.entry) };
        let key = Key { frontend, ..*key };
        establish::<F>(found, &key, hash, state);
        return Some(state);
    }
    if !matches!(p.fragment, Fragment::Later) {
        if p.tcp_flags & tcp::STATE == tcp::SYN | tcp::ACK {
            let t = frame.at(p.l4 as usize, 20)?;
            // SAFETY: within the 20 bytes; the flow was found in the map.
            unsafe {
                let seq = u32::from_be(load(t + 4));
                (&raw mut (*found.entry).expected_ack).write_volatile(seq.wrapping_add(1));
            }
            add |= flags::ANSWERED;
        } else if p.tcp_flags & tcp::RST != 0 && have & (flags::ANSWERED | flags::RESET) == 0 {
            count(Reason::SynRefused);
            on_backend(found.meta.backend() as u32, |t| t.refused += 1);
            if word & state::WATCHED != 0 {
                let generation = found.meta.generation() as u32;
                event(sign::SYN_REFUSED, found.meta.backend() as u32, generation);
            }
        }
    }
    Some(advance(found, found.meta.with_flags(add).with_seen(now)))
}

/// The way back of one reply.
struct Back {
    /// Frontend slot.
    slot: u16,
    meta: Meta,
    path: ReturnPath,
    /// The client, where its address was translated.
    client: Key,
    snat: bool,
}

impl Back {
    /// The way back along a flow.
    #[inline(always)]
    fn along<T: Table>(found: &Found<T>, meta: Meta, client: Key, snat: bool) -> Self {
        // SAFETY: the flow was found in the map.
        let (slot, path) = unsafe {
            (
                T::Entry::frontend(found.entry),
                *T::Entry::path(found.entry),
            )
        };
        Self {
            slot,
            meta,
            path,
            client,
            snat,
        }
    }
}

/// Rewrites a packet from a backend for the client of its flow and sends it.
#[inline(never)]
fn return_to<F: Family>(ctx: &XdpContext, p: &Packet, back: &Back) -> Verdict {
    let frame = forward::frame(ctx);
    let slot = back.slot as u32;
    let Some(frontend) = Tables::new().map(|t| t.frontend(slot)) else {
        return inconsistent();
    };
    let Some((backend, _)) = owner(back.meta) else {
        return pass(Reason::FlowStale);
    };
    // SAFETY: in the map's value.
    let r = unsafe { steer::to_frontend(backend, frontend) };
    if !forward::rewrite::<F, false, true>(&frame, p, &r) {
        return Verdict::DROP;
    }
    if back.snat {
        let client = &back.client;
        let r = Replacement::between(&p.dst, p.dport, client.addr, client.port);
        if !forward::rewrite::<F, true, false>(&frame, p, &r) {
            return Verdict::DROP;
        }
    }
    traffic_out(slot, back.meta.backend() as u32, frame.len() as u64);
    forward::to_client(ctx, p, &back.path, back.meta)
}
