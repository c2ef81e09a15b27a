//! Source ports for pools with `snat`: a table with one owner per address and
//! port, taken in order, so that a port rests as long as possible before it is
//! used again (the backend may still hold it in TIME-WAIT).

use crate::atomic;
use crate::flows::Key;
use crate::maps::{SNAT_PORTS, Tables};
use common::flow::{CLOSED_REST, Meta, flags};
use common::limits::{SNAT_ADDRESSES as ADDRESSES, SNAT_PORTS as PORTS, SNAT_TRIES};
use common::tables::{Frontend, SnatPort};
use common::{Addr, Be16};

/// No port was free.
pub const EXHAUSTED: u32 = u32::MAX;

/// Who asks for a port.
pub struct Owner {
    /// Client and frontend.
    pub key: Key,
    /// Backend slot.
    pub backend: u16,
    /// Its generation.
    pub generation: u8,
    /// Endpoint slot.
    pub endpoint: u16,
    /// Time, in units of `seen`.
    pub now: u32,
}

/// The address at a slot, if there is one.
#[inline(always)]
pub fn address(slot: u8) -> Option<Addr> {
    // SAFETY: in the map's value; a slot that a flow names is not written to.
    let addr = unsafe { (*Tables::new()?.snat(slot as u32)).addr };
    if addr == Addr::UNSPECIFIED {
        None
    } else {
        Some(addr)
    }
}

#[inline(always)]
fn port(slot: u32, port: u32) -> Option<*mut SnatPort> {
    SNAT_PORTS.get_ptr_mut((slot & (ADDRESSES - 1)) * PORTS + (port & (PORTS - 1)))
}

/// # Safety
/// `entry` must point to an entry of the map.
#[inline(always)]
unsafe fn exchange(entry: *mut SnatPort, old: Meta, new: Meta) -> bool {
    // SAFETY: aligned by its layout; shared by atomics only.
    unsafe { atomic::compare_exchange((&raw mut (*entry).meta).cast(), old.0, new.0) }
}

/// Takes the next free port of the frontend's addresses: the address' slot in the
/// high half, the port as on the wire in the low one, or [`EXHAUSTED`].
#[inline(never)]
pub fn claim(frontend: &Frontend, owner: &Owner) -> u32 {
    let count = frontend.snat_count;
    if count == 0 || count > ADDRESSES {
        return EXHAUSTED;
    }
    // Which address: by the client, so that a client's flows share one.
    let at = (owner.key.addr.v4_word() ^ owner.key.port.0 as u32) % count;
    // By shifting, since the verifier does not follow a remainder as an index.
    let slot = (u64::from_le_bytes(frontend.snat) >> (at * 8)) as u32 & (ADDRESSES - 1);
    let Some(address) = Tables::new().map(|t| t.snat(slot)) else {
        return EXHAUSTED;
    };
    // SAFETY: in the map's value.
    let (first, range) = unsafe {
        let (first, last) = ((*address).first_port as u32, (*address).last_port as u32);
        (first, last.wrapping_sub(first).wrapping_add(1) & 0xffff)
    };
    if range == 0 {
        return EXHAUSTED;
    }
    let mut tries = 0;
    while tries < SNAT_TRIES {
        tries += 1;
        // SAFETY: in the map's value, and only used by atomics here.
        let position = unsafe { atomic::count_up(&raw mut (*address).cursor) };
        let number = first + (position % range as u64) as u32;
        let Some(entry) = port(slot, number) else {
            return EXHAUSTED;
        };
        // SAFETY: an entry of the map; written only once claimed.
        unsafe {
            let old = (&raw const (*entry).meta).read_volatile();
            let free = old == Meta::FREE
                || (old.is_live() && old.is_closed() && old.idle(owner.now) >= CLOSED_REST);
            let claimed = Meta::new(0, 0, flags::CLAIMED, owner.now);
            if !free || !exchange(entry, old, claimed) {
                continue;
            }
            (*entry).client = owner.key.addr;
            (*entry).port = owner.key.port;
            (*entry).frontend = owner.key.frontend;
            (*entry).endpoint = owner.endpoint;
            let meta = Meta::new(owner.backend, owner.generation, flags::VALID, owner.now);
            exchange(entry, claimed, meta);
        }
        return slot << 16 | (number as u16).to_be() as u32;
    }
    EXHAUSTED
}

/// The client behind an address and port that a reply of `endpoint` goes to.
#[inline(always)]
pub fn owner(addr: &Addr, to: Be16, endpoint: u16, now: u32) -> Option<Key> {
    let mut slot = 0;
    while slot < ADDRESSES {
        // SAFETY: in the map's value.
        if unsafe { (*Tables::new()?.snat(slot)).addr } == *addr {
            return owner_at(slot, to, endpoint, now);
        }
        slot += 1;
    }
    None
}

#[inline(always)]
fn owner_at(slot: u32, to: Be16, endpoint: u16, now: u32) -> Option<Key> {
    let entry = port(slot, to.host() as u32)?;
    // SAFETY: an entry of the map; the state is read before and after the rest.
    unsafe {
        let meta = (&raw const (*entry).meta).read_volatile();
        if !meta.is_live() || (&raw const (*entry).endpoint).read_volatile() != endpoint {
            return None;
        }
        let key = Key {
            addr: (*entry).client,
            port: (*entry).port,
            frontend: (*entry).frontend,
        };
        if meta.seen() != now {
            exchange(entry, meta, meta.with_seen(now));
        }
        if (&raw const (*entry).endpoint).read_volatile() != endpoint {
            return None;
        }
        Some(key)
    }
}

/// The flow of state `meta` is over: its port may be used again after a rest.
#[inline(always)]
pub fn close(meta: Meta, number: Be16) {
    let Some(entry) = port(meta.snat_slot() as u32, number.host() as u32) else {
        return;
    };
    // SAFETY: an entry of the map.
    unsafe {
        let old = (&raw const (*entry).meta).read_volatile();
        if old.is_live() {
            exchange(
                entry,
                old,
                old.with_flags(flags::RESET).with_seen(meta.seen()),
            );
        }
    }
}
