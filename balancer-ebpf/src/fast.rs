//! The fast path: plain packets of established flows, plain first packets (`syn`), and
//! everybody else's traffic.
//!
//! One index lookup says whose the packet is, one flow lookup finds its flow; no
//! helper is called but the redirect's, and the clock's once in a tick. It reads only what it
//! decides by, from the frame itself, and keeps little in registers, of which
//! there are ten. A packet that is anything but plain (tags, options, extension
//! headers, fragments, short or odd lengths, flags that change a flow's state)
//! is left, unchanged, to `steer`, which reads it again and in full.

use crate::count::{pass, traffic_in, traffic_out};
use crate::flows::{self, By, Entry, Key};
use crate::forward;
use crate::frame::{Frame, load, store};
use crate::index;
use crate::maps::{Tables, seed};
use crate::parse::{ETH_IPV4, ETH_IPV6, proto, tcp};
use crate::steer::{self, Family, V4, V6, clock, seen};
use crate::syn;
use crate::table::{self, Found, Table};
use crate::verdict::Verdict;
use aya_ebpf::programs::XdpContext;
use common::counters::Reason;
use common::flow::{Meta, SEEN_STEP, flags};
use common::limits::DEVICES;
use common::tables::{Backend, Frontend, Hop, state};
use common::{Addr, Be16, checksum, hash};

/// Bytes of the Ethernet header.
const ETH: usize = 14;

/// Decides over a plain packet; `None` leaves it to `steer`. There must be room for a TCP
/// header: datagrams shorter than that are rare, and padded by most drivers.
#[inline(always)]
pub fn packet(ctx: &XdpContext) -> Option<Verdict> {
    let frame = forward::frame(ctx);
    let eth = frame.at(0, ETH + 20 + 20)?;
    // SAFETY: within the 14 bytes.
    match unsafe { load::<u16>(eth + 12) } {
        ETH_IPV4 => plain::<V4>(ctx, &frame, eth),
        ETH_IPV6 => plain::<V6>(ctx, &frame, frame.at(0, ETH + 40 + 20)?),
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

/// A packet whose headers have been checked.
pub struct Plain<'a> {
    /// The context.
    pub ctx: &'a XdpContext,
    /// The fixed tables.
    pub tables: Tables,
    /// The frame.
    pub frame: &'a Frame,
    /// The Ethernet header.
    pub eth: usize,
    /// The IP header, with no options.
    pub ip: usize,
    /// TCP or UDP.
    pub proto: u8,
}

#[inline(always)]
fn plain<F: Family>(ctx: &XdpContext, frame: &Frame, eth: usize) -> Option<Verdict> {
    let ip = eth + ETH;
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
        let needed = if proto == proto::TCP {
            let offset = (load::<u8>(l4 + 12) >> 4) as usize * 4;
            if offset < 20 {
                return None;
            }
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
        let p = Plain {
            ctx,
            tables,
            frame,
            eth,
            ip,
            proto,
        };
        let (sport, dport) = (Be16(load(l4)), Be16(load(l4 + 2)));
        // From the lower port: a reply, most likely, and one that has a flow is one even
        // when it goes to a frontend. It is spared the other index.
        if sport.host() < dport.host()
            && p.kind::<F>() == tcp::ACK
            && let Some(slot) = index::endpoint(tables, &src::<F>(ip), sport, proto, seed())
            && let Some(verdict) = reply::<F>(&p, slot as u16)
        {
            return Some(verdict);
        }
        if let Some((slot, frontend)) = index::frontend(tables, &dst::<F>(ip), dport, proto, seed())
        {
            return match p.kind::<F>() {
                tcp::ACK => forward::<F>(&p, slot, frontend),
                tcp::SYN => syn::packet::<F>(&p, slot, frontend),
                _ => None,
            };
        }
        if let Some(slot) = index::endpoint(tables, &src::<F>(ip), sport, proto, seed()) {
            return match p.kind::<F>() {
                tcp::ACK => reply::<F>(&p, slot as u16),
                _ => None,
            };
        }
    }
    Some(pass(Reason::NotBalanced))
}

impl Plain<'_> {
    /// TCP's flags that change a flow's state, ACK alone for a datagram; none for a
    /// packet at the end of its hops.
    ///
    /// # Safety
    /// As for all here: the headers have been checked.
    #[inline(always)]
    unsafe fn kind<F: Family>(&self) -> u8 {
        // SAFETY: by the caller.
        unsafe {
            if load::<u8>(ttl_at::<F>(self.ip)) <= 1 {
                0
            } else if self.proto == proto::TCP {
                load::<u8>(self.ip + header::<F>() + 13) & tcp::STATE
            } else {
                tcp::ACK
            }
        }
    }

    /// The client's end of a packet to a frontend.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    pub unsafe fn client<F: Family>(&self, slot: u32) -> Key {
        // SAFETY: by the caller.
        unsafe {
            Key {
                addr: src::<F>(self.ip),
                port: Be16(load(self.ip + header::<F>())),
                frontend: slot as u16,
            }
        }
    }

    /// Where the packet came in: three loads, one behind the other.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.ctx.ctx).ingress_ifindex }
    }

    /// Sends the packet on to its backend.
    ///
    /// # Safety
    /// As above; `backend` and `hop` must be of the tables.
    #[inline(always)]
    pub unsafe fn send<F: Family>(
        &self,
        frontend: &Frontend,
        backend: *const Backend,
        hop: *const Hop,
        ingress: u32,
    ) -> Verdict {
        // SAFETY: by the caller.
        unsafe {
            rewrite::<F, true>(self.ip, self.proto, backend, frontend);
            write_macs(self.eth, forward::hop_macs(hop));
            steer::out(self.tables, ingress, (*hop).ifindex)
        }
    }
}

/// # Safety
/// The headers must have been checked, as all here.
#[inline(always)]
unsafe fn write_macs(eth: usize, words: [u32; 3]) {
    // SAFETY: by the caller.
    unsafe {
        store(eth, words[0]);
        store(eth + 4, words[1]);
        store(eth + 8, words[2]);
    }
}

/// The backend of a flow, with its state: still the one that the flow was made for, with
/// what is `needed`, and not stopped.
#[inline(always)]
fn owner(tables: Tables, meta: Meta, needed: u32) -> Option<(*const Backend, u32)> {
    const GENERATION: u32 = 0xff << state::GENERATION_SHIFT;
    let backend = tables.backend(meta.backend() as u32);
    // SAFETY: in the map's value.
    let word = unsafe { (&raw const (*backend).state).read_volatile() };
    let needed = needed | state::PRESENT;
    // The generation is the third byte of a flow's state, and the fourth of a backend's.
    let want = needed | ((meta.0 << 8) as u32 & GENERATION);
    if word & (GENERATION | state::STOPPED | needed) == want {
        Some((backend, word))
    } else {
        None
    }
}

/// Near its home, or else by the tags.
#[inline(always)]
fn find<T: Table>(hash: u64, key: &Key, by: By) -> Option<Found<T>> {
    match table::near_home::<T>(hash, key, by) {
        Some(found) => Some(found),
        None => table::find::<T>(hash, key, by),
    }
}

/// # Safety
/// As above.
#[inline(always)]
unsafe fn forward<F: Family>(p: &Plain<'_>, slot: u32, frontend: &Frontend) -> Option<Verdict> {
    // SAFETY: by the caller; tables' entries are in maps.
    unsafe {
        let key = p.client::<F>(slot);
        let hash = hash::client(&key.addr, key.port, seed());
        let found = find::<F::Established>(hash, &key, By::FRONTEND)?;
        let usable = (p.proto == proto::UDP) as u32 * state::USABLE;
        let (backend, word) = owner(p.tables, found.meta, state::HOP_PLAIN | usable)?;
        if found.meta.flags() & (flags::SNAT | flags::VLAN_MASK) != 0 {
            return None;
        }
        let hop = forward::hop(backend, word);
        // The same way as the flow's packets before?
        let path = <F::Established as Table>::Entry::path(found.entry) as usize;
        let ingress = p.ingress();
        let device = (load::<u16>(p.eth + 10) as u32) | (ingress % DEVICES) << 16;
        if load::<u32>(p.eth + 6) != load::<u32>(path) || device != load::<u32>(path + 4) {
            return None;
        }
        touch(&found);
        traffic_in(slot, found.meta.backend() as u32, p.frame.len() as u64);
        Some(p.send::<F>(frontend, backend, hop, ingress))
    }
}

/// # Safety
/// As above.
#[inline(always)]
unsafe fn reply<F: Family>(p: &Plain<'_>, endpoint: u16) -> Option<Verdict> {
    // SAFETY: by the caller; tables' entries are in maps.
    unsafe {
        let key = Key {
            addr: dst::<F>(p.ip),
            port: Be16(load(p.ip + header::<F>() + 2)),
            frontend: 0,
        };
        let hash = hash::client(&key.addr, key.port, seed());
        let found = find::<F::Established>(hash, &key, By::endpoint(endpoint))?;
        let (backend, _) = owner(p.tables, found.meta, 0)?;
        if found.meta.flags() & flags::VLAN_MASK != 0 {
            return None;
        }
        let slot = <F::Established as Table>::Entry::frontend(found.entry) as u32;
        let frontend = p.tables.frontend(slot);
        let path = <F::Established as Table>::Entry::path(found.entry);
        let (ifindex, macs) = forward::return_macs(p.tables, path)?;
        touch(&found);
        traffic_out(slot, found.meta.backend() as u32, p.frame.len() as u64);
        rewrite::<F, false>(p.ip, p.proto, backend, frontend);
        write_macs(p.eth, macs);
        Some(steer::out(p.tables, p.ingress(), ifindex))
    }
}

/// Notes the time of a packet, at most once in [`SEEN_STEP`] and flow. Lost to another
/// CPU, the next packet notes it.
#[inline(always)]
unsafe fn touch<T: Table>(found: &Found<T>) {
    let now = seen(clock());
    if found.meta.idle(now) >= SEEN_STEP {
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
