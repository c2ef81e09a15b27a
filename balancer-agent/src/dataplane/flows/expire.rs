//! Removes flows that are over, and frees the snat ports that nobody uses.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use common::flow::{CLOSED_REST, Meta, flags};
use common::limits::{FLOW_BUCKET_ENTRIES, SNAT_PORTS};
use common::tables::SnatPort;
use common::{Addr, hash};

use super::{Limits, Now, Place, Stored, generation};
use crate::dataplane::{FlowTable, Tables};
use crate::model::FlowTimeouts;

/// Units of `seen` for which a port whose flow is not found is left alone: the
/// kernel takes the port before it makes the flow.
const PORT_REST: u32 = 2;

/// How far [`expire`] has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    table: u8,
    /// Bucket, or port of the table of ports.
    at: u32,
}

/// What [`expire`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Flows removed.
    pub flows: u32,
    /// Ports freed that no flow had any more; those of removed flows are not counted.
    pub snat_ports: u32,
    /// Whether the end of the last table was reached; the next call starts over.
    pub finished: bool,
}

/// Removes flows that are idle or half open for too long, closed for long enough, or
/// of a backend slot that is gone or has a new owner, and frees snat ports without a
/// flow. Looks at about `budget` entries and goes on from there at the next call.
pub fn expire(
    tables: &Tables,
    timeouts: &FlowTimeouts,
    now: u64,
    cursor: &mut Cursor,
    budget: u32,
) -> Expired {
    let now = Now::new(now);
    let limits = Limits::new(timeouts, now);
    let mut done = Expired::default();
    let mut left = budget.max(1);
    while left > 0 && !done.finished {
        let (count, end) = match cursor.table {
            0 => expire_table(
                tables,
                &tables.flows4,
                false,
                &limits,
                cursor.at,
                left,
                &mut done,
            ),
            1 => expire_table(
                tables,
                &tables.flows6,
                false,
                &limits,
                cursor.at,
                left,
                &mut done,
            ),
            2 => expire_table(
                tables,
                &tables.half_open,
                true,
                &limits,
                cursor.at,
                left,
                &mut done,
            ),
            _ => expire_ports(tables, now, cursor.at, left, &mut done),
        };
        left = left.saturating_sub(count);
        match end {
            Some(at) => cursor.at = at,
            None if cursor.table < 3 => {
                cursor.table += 1;
                cursor.at = 0;
            }
            None => {
                *cursor = Cursor::default();
                done.finished = true;
            }
        }
    }
    done
}

/// Frees the entries that an agent which was killed had claimed. To be called before
/// anything else here: whoever has an entry claimed later is alive.
pub fn recover(tables: &Tables) -> u32 {
    recover_table(&tables.flows4) + recover_table(&tables.flows6) + recover_table(&tables.half_open)
}

fn recover_table<E: Stored>(table: &FlowTable<E>) -> u32 {
    let mut freed = 0;
    for bucket in 0..table.buckets.len() {
        for entry in 0..FLOW_BUCKET_ENTRIES {
            let place = Place::new(table, bucket, entry);
            if place.meta() == Meta::AGENT {
                place.free();
                freed += 1;
            }
        }
    }
    freed
}

/// Removes every flow of these slots, of backends, frontends and snat addresses, and
/// frees their ports. Returns the number of flows.
pub fn purge(tables: &Tables, backends: &[u16], frontends: &[u16], snat: &[u8]) -> u32 {
    let of = |slots: &[u16]| {
        let mut set = vec![false; 1 << 16];
        for &slot in slots {
            set[usize::from(slot)] = true;
        }
        set
    };
    let (backends, frontends) = (of(backends), of(frontends));
    let is_meant = |meta: Meta, frontend: u16| {
        backends[usize::from(meta.backend())]
            || frontends[usize::from(frontend)]
            || (meta.flags() & flags::SNAT != 0 && snat.contains(&meta.snat_slot()))
    };
    let flows = purge_table(&tables.flows4, &is_meant)
        + purge_table(&tables.flows6, &is_meant)
        + purge_table(&tables.half_open, &is_meant);
    for slot in 0..tables.snat_addresses.len() {
        if tables.snat_addresses.read(slot).addr == Addr::UNSPECIFIED {
            continue;
        }
        for port in slot * SNAT_PORTS..(slot + 1) * SNAT_PORTS {
            let meta = port_meta(tables, port);
            if meta.is_live() {
                let entry = tables.snat_ports.read(port);
                if snat.contains(&(slot as u8)) || is_meant(meta, entry.frontend) {
                    free_port(tables, port, meta);
                }
            }
        }
    }
    flows
}

/// Removes every flow of a backend slot. Returns how many.
pub fn purge_backend(tables: &Tables, slot: u16) -> u32 {
    purge(tables, &[slot], &[], &[])
}

/// Removes every flow of a frontend slot. Returns how many.
pub fn purge_frontend(tables: &Tables, slot: u16) -> u32 {
    purge(tables, &[], &[slot], &[])
}

/// Looks at the buckets from `from` on; entries looked at, and where it stopped
/// unless that was the end.
fn expire_table<E: Stored>(
    tables: &Tables,
    table: &FlowTable<E>,
    half_open: bool,
    limits: &Limits,
    from: u32,
    budget: u32,
    done: &mut Expired,
) -> (u32, Option<u32>) {
    let entries = FLOW_BUCKET_ENTRIES as u32;
    let end = from
        .saturating_add(budget.div_ceil(entries))
        .min(table.buckets.len());
    for bucket in from..end {
        for entry in 0..FLOW_BUCKET_ENTRIES {
            let place = Place::new(table, bucket, entry);
            let meta = place.meta();
            if !meta.is_live() {
                continue;
            }
            let over = match meta.is_closed() {
                true => limits.is_over(meta),
                false => limits.is_idle(meta, half_open, || place.born()),
            };
            let stale = || generation(tables, meta.backend()) != Some(meta.generation());
            if (over || stale()) && remove(tables, &place, meta) {
                done.flows += 1;
            }
        }
    }
    let looked = (end.saturating_sub(from)) * entries;
    (looked.max(1), (end < table.buckets.len()).then_some(end))
}

fn purge_table<E: Stored>(table: &FlowTable<E>, is_meant: &impl Fn(Meta, u16) -> bool) -> u32 {
    let mut removed = 0;
    for bucket in 0..table.buckets.len() {
        for entry in 0..FLOW_BUCKET_ENTRIES {
            let place = Place::new(table, bucket, entry);
            // A packet that comes in between changes the time in `meta`: again.
            loop {
                let meta = place.meta();
                if !meta.is_live() || !is_meant(meta, place.frontend()) {
                    break;
                }
                if place.remove(meta) {
                    removed += 1;
                    break;
                }
            }
        }
    }
    removed
}

/// Removes an entry that was seen with `meta`, and frees its port.
fn remove<E: Stored>(tables: &Tables, place: &Place<'_, E>, meta: Meta) -> bool {
    let Some(entry) = place.read().filter(|entry| entry.meta() == meta) else {
        return false;
    };
    if !place.remove(meta) {
        return false;
    }
    if meta.flags() & flags::SNAT != 0 {
        let port = u32::from(meta.snat_slot()) * SNAT_PORTS + u32::from(entry.snat_port().host());
        let owner = tables.snat_ports.read(port);
        let same = owner.client == entry.client()
            && owner.port == entry.port()
            && owner.frontend == entry.frontend();
        if same && owner.meta.is_live() {
            free_port(tables, port, owner.meta);
        }
    }
    true
}

fn expire_ports(
    tables: &Tables,
    now: Now,
    from: u32,
    budget: u32,
    done: &mut Expired,
) -> (u32, Option<u32>) {
    let mut at = from;
    let mut looked = 0;
    while at < tables.snat_ports.len() && looked < budget {
        if tables.snat_addresses.read(at / SNAT_PORTS).addr == Addr::UNSPECIFIED {
            at = (at / SNAT_PORTS + 1) * SNAT_PORTS;
            continue;
        }
        let meta = port_meta(tables, at);
        if meta.is_live() && now.idle(meta) >= PORT_REST {
            let owner = tables.snat_ports.read(at);
            if !has_flow(tables, &owner, at, now) && free_port(tables, at, meta) {
                done.snat_ports += 1;
            }
        }
        at += 1;
        looked += 1;
    }
    (looked.max(1), (at < tables.snat_ports.len()).then_some(at))
}

/// Whether the flow of a port is still there. A closed one counts until its entry may
/// be taken by another.
fn has_flow(tables: &Tables, owner: &SnatPort, port: u32, now: Now) -> bool {
    // The half-open table first: a flow that moves is in the other before it leaves
    // this one.
    is_in(tables, &tables.half_open, owner, port, now)
        || match owner.client.is_v4() {
            true => is_in(tables, &tables.flows4, owner, port, now),
            false => is_in(tables, &tables.flows6, owner, port, now),
        }
}

fn is_in<E: Stored>(
    tables: &Tables,
    table: &FlowTable<E>,
    owner: &SnatPort,
    port: u32,
    now: Now,
) -> bool {
    let hash = hash::client(&owner.client, owner.port, tables.settings().seed);
    let mask = table.buckets.len() - 1;
    [
        hash::first_bucket(hash, mask),
        hash::second_bucket(hash, mask),
    ]
    .into_iter()
    .any(|bucket| {
        (0..FLOW_BUCKET_ENTRIES).any(|entry| {
            let Some(entry) = Place::new(table, bucket, entry).read() else {
                return false;
            };
            let meta = entry.meta();
            let rested = meta.is_closed() && now.idle(meta) >= CLOSED_REST;
            entry.client() == owner.client
                && entry.port() == owner.port
                && entry.frontend() == owner.frontend
                && meta.flags() & flags::SNAT != 0
                && u32::from(meta.snat_slot()) == port / SNAT_PORTS
                && u32::from(entry.snat_port().host()) == port % SNAT_PORTS
                && !rested
        })
    })
}

fn port_meta(tables: &Tables, port: u32) -> Meta {
    let word = tables
        .snat_ports
        .atomic_u64(port, offset_of!(SnatPort, meta));
    Meta(word.load(Ordering::Acquire))
}

fn free_port(tables: &Tables, port: u32, meta: Meta) -> bool {
    tables
        .snat_ports
        .atomic_u64(port, offset_of!(SnatPort, meta))
        .compare_exchange(meta.0, Meta::FREE.0, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}
