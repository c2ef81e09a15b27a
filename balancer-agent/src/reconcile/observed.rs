//! What the kernel tables say, read back: how an agent that starts finds the slots
//! of the one before it, and how each round knows what to change.
//!
//! The image is made of the same tables on the heap, so that the plan can carry out
//! its steps on it as it goes, with the same code that carries them out for good.
//! Flow tables and snat ports are not read; the image has the least room for them.

use std::collections::HashMap;
use std::ops::Range;

use common::tables::{
    Backend, Endpoint, Frontend, RingRef, Settings, SnatAddress, frontend_flags, index_entry, state,
};
use common::{Addr, Be16, hash};

use super::apply::{put_state, state_of};
use super::step::{Index, Step};
use crate::dataplane::Tables;
use crate::dataplane::index::ServiceIndex;

/// Address, port and protocol number.
pub(super) type Service = (Addr, Be16, u8);

/// What makes two backends the same: what packets see of them, and the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BackendKey {
    pub service: Service,
    pub id: u64,
}

/// The tables' content and where things are in it.
#[derive(Debug)]
pub(super) struct Observed {
    /// A copy of the tables.
    pub image: Tables,
    /// Present backends.
    pub backends: HashMap<BackendKey, u16>,
    /// Endpoints.
    pub endpoints: HashMap<Service, u16>,
    /// Present frontends, closing ones too.
    pub frontends: HashMap<Service, u16>,
    /// One more than the highest backend slot that was ever used.
    pub backend_end: u32,
    /// One more than the highest frontend slot that was ever used.
    pub frontend_end: u32,
    /// One more than the highest endpoint slot that was ever used.
    pub endpoint_end: u32,
    /// What the indexes need, until the first plan after the reading takes it.
    pub repairs: Option<Vec<Step>>,
}

/// How many entries are read at a time.
const BREATH: u32 = 512;

impl Observed {
    /// Reads everything, and calls `pause` every now and then.
    pub fn read(tables: &Tables, pause: &mut dyn FnMut()) -> Self {
        let mut observed = Self {
            image: Tables::heap(Settings {
                seed: tables.settings().seed,
                ..Settings::default()
            }),
            backends: HashMap::new(),
            endpoints: HashMap::new(),
            frontends: HashMap::new(),
            backend_end: 0,
            frontend_end: 0,
            endpoint_end: 0,
            repairs: None,
        };
        observed.read_backends(tables, pause);
        observed.read_endpoints(tables, pause);
        observed.read_frontends(tables, pause);
        for (from, to) in [
            (&tables.frontend_index, &observed.image.frontend_index),
            (&tables.endpoint_index, &observed.image.endpoint_index),
        ] {
            for bucket in 0..from.len() {
                breathe(bucket, pause);
                let content = from.read(bucket);
                if content.0.iter().any(|&entry| entry != 0) {
                    to.write(bucket, content);
                }
            }
        }
        for slot in 0..tables.devices.len() {
            let device = tables.devices.read(slot);
            observed.image.devices.write(slot, device);
        }
        for slot in 0..tables.snat_addresses.len() {
            let address = tables.snat_addresses.read(slot);
            observed.image.snat_addresses.write(slot, address);
        }
        observed.repairs = Some(observed.repairs(pause));
        observed
    }

    /// A copy to make a plan on that is not carried out.
    pub fn copy(&self) -> Self {
        Self {
            repairs: self.repairs.clone(),
            ..Self::read(&self.image, &mut || {})
        }
    }

    /// Reads the state words again: a verdict may have changed one in between, past
    /// the plan.
    pub fn refresh_states(&self, tables: &Tables) {
        for slot in 0..self.backend_end as u16 {
            put_state(&self.image, slot, state_of(tables, slot));
        }
    }

    fn read_backends(&mut self, tables: &Tables, pause: &mut dyn FnMut()) {
        for slot in 0..tables.backends.len() as u16 {
            breathe(u32::from(slot), pause);
            let word = state_of(tables, slot);
            if word == 0 {
                continue;
            }
            let entry = tables.backends.read(u32::from(slot));
            self.image.backends.write(u32::from(slot), entry);
            self.backend_end = u32::from(slot) + 1;
            if word & state::PRESENT != 0 {
                self.backends.entry(key(&entry)).or_insert(slot);
            }
        }
    }

    fn read_endpoints(&mut self, tables: &Tables, pause: &mut dyn FnMut()) {
        for slot in 0..tables.endpoints.len() as u16 {
            breathe(u32::from(slot), pause);
            let entry = tables.endpoints.read(u32::from(slot));
            if entry == Endpoint::default() {
                continue;
            }
            self.image.endpoints.write(u32::from(slot), entry);
            self.endpoint_end = u32::from(slot) + 1;
            if entry.proto != 0 {
                let service = (entry.addr, entry.port, entry.proto);
                self.endpoints.entry(service).or_insert(slot);
            }
        }
    }

    fn read_frontends(&mut self, tables: &Tables, pause: &mut dyn FnMut()) {
        let mut ring_end = tables.ring_end();
        for slot in 0..tables.frontends.len() as u16 {
            breathe(u32::from(slot), pause);
            let entry = tables.frontends.read(u32::from(slot));
            if entry == Frontend::default() {
                continue;
            }
            self.image.frontends.write(u32::from(slot), entry);
            self.frontend_end = u32::from(slot) + 1;
            if entry.flags & frontend_flags::PRESENT != 0 {
                let service = (entry.addr, entry.port, entry.proto);
                self.frontends.entry(service).or_insert(slot);
                for chunk in region(RingRef::from_word(entry.ring)) {
                    if chunk < tables.rings.len() {
                        self.image.rings.write(chunk, tables.rings.read(chunk));
                        ring_end = ring_end.max(chunk + 1);
                    }
                }
            }
        }
        // The chunks say of themselves that they were used unless all their slots are
        // backend 0. This finds what was written before the header had the end.
        let mut is_used = |chunk: &u32| {
            breathe(*chunk, pause);
            tables.rings.read(*chunk).0.iter().any(|&slot| slot != 0)
        };
        let rest = (ring_end..tables.rings.len()).rev();
        if let Some(last) = { rest }.find(&mut is_used) {
            ring_end = last + 1;
        }
        self.image.raise_ring_end(ring_end);
    }

    /// A backend of the image.
    pub fn backend(&self, slot: u16) -> Backend {
        self.image.backends.read(u32::from(slot))
    }

    /// A frontend of the image.
    pub fn frontend(&self, slot: u16) -> Frontend {
        self.image.frontends.read(u32::from(slot))
    }

    /// Slots of the frontends that are present, rising.
    pub fn present_frontends(&self) -> impl Iterator<Item = (u16, Frontend)> + '_ {
        (0..self.frontend_end as u16)
            .map(|slot| (slot, self.frontend(slot)))
            .filter(|(_, f)| f.flags & frontend_flags::PRESENT != 0)
    }

    /// Slots of the backends that are present, rising, with their state words.
    pub fn present_backends(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        (0..self.backend_end as u16)
            .map(|slot| (slot, state_of(&self.image, slot)))
            .filter(|(_, word)| word & state::PRESENT != 0)
    }

    /// Slots of the snat addresses in use.
    pub fn snat_addresses(&self) -> impl Iterator<Item = (u8, SnatAddress)> + '_ {
        (0..self.image.snat_addresses.len())
            .map(|slot| (slot as u8, self.image.snat_addresses.read(slot)))
            .filter(|(_, a)| a.addr != Addr::UNSPECIFIED)
    }

    /// The ring's backend slots in turn.
    pub fn turns(&self, ring: RingRef) -> impl Iterator<Item = u32> + '_ {
        region(ring)
            .filter(|&chunk| chunk < self.image.rings.len())
            .flat_map(|chunk| self.image.rings.read(chunk).0)
            .take(ring.len as usize)
    }

    /// The bucket where a slot belongs, and its entry there.
    pub fn place(&self, index: Index, service: Service, slot: u16) -> (u32, u32) {
        let table = self.index(index);
        let hash = hash::service(&service.0, service.1, service.2, self.image.settings().seed);
        let (bucket, tag) = hash::index_slot(hash, table.len());
        (bucket, index_entry(tag, slot))
    }

    /// The entries of a bucket.
    pub fn bucket(&self, index: Index, bucket: u32) -> [u32; 8] {
        self.index(index).read(bucket).0
    }

    fn index(&self, index: Index) -> &ServiceIndex {
        match index {
            Index::Frontends => &self.image.frontend_index,
            Index::Endpoints => &self.image.endpoint_index,
        }
    }

    /// The stores that rid both indexes of entries that name nothing or occur twice,
    /// as an agent that was killed between two stores leaves them.
    fn repairs(&self, pause: &mut dyn FnMut()) -> Vec<Step> {
        let mut steps = Vec::new();
        for index in [Index::Frontends, Index::Endpoints] {
            for bucket in 0..self.index(index).len() {
                breathe(bucket, pause);
                let mut entries = self.bucket(index, bucket);
                while let Some(bad) = (0..entries.len()).find(|&i| {
                    let rest = &entries[i..];
                    rest.iter().any(|&e| e != 0)
                        && (entries[..i].contains(&entries[i])
                            || !self.is_sound(index, bucket, entries[i]))
                }) {
                    steps.extend(removal(index, bucket, &mut entries, bad));
                }
            }
        }
        steps
    }

    fn is_sound(&self, index: Index, bucket: u32, entry: u32) -> bool {
        let Some(slot) = (entry & 0xffff)
            .checked_sub(1)
            .and_then(|slot| u16::try_from(slot).ok())
        else {
            return false;
        };
        let service = match index {
            Index::Frontends if u32::from(slot) < self.image.frontends.len() => {
                let f = self.frontend(slot);
                (f.flags & frontend_flags::PRESENT != 0).then_some((f.addr, f.port, f.proto))
            }
            Index::Endpoints if u32::from(slot) < self.image.endpoints.len() => {
                let e = self.image.endpoints.read(u32::from(slot));
                (e.proto != 0).then_some((e.addr, e.port, e.proto))
            }
            _ => None,
        };
        service.is_some_and(|service| self.place(index, service, slot) == (bucket, entry))
    }
}

fn breathe(entry: u32, pause: &mut dyn FnMut()) {
    if entry.is_multiple_of(BREATH) {
        pause();
    }
}

/// The identity of a backend in the tables.
pub(super) fn key(entry: &Backend) -> BackendKey {
    BackendKey {
        service: (entry.addr, entry.port, entry.proto),
        id: entry.id,
    }
}

/// The chunks that a ring takes; none for an empty one.
pub(super) fn region(ring: RingRef) -> Range<u32> {
    ring.chunk..ring.chunk.saturating_add(RingRef::chunks(ring.len))
}

/// Takes one entry out of a bucket and leaves no gap: the last is copied over it,
/// then freed. In between it is there twice, which a reader does not mind.
pub(super) fn removal(index: Index, bucket: u32, entries: &mut [u32; 8], at: usize) -> Vec<Step> {
    let last = entries.iter().rposition(|&entry| entry != 0).unwrap_or(at);
    let mut stores = vec![(last, 0)];
    if at != last {
        stores.insert(0, (at, entries[last]));
    }
    stores
        .into_iter()
        .map(|(position, entry)| {
            entries[position] = entry;
            Step::Index {
                index,
                bucket,
                position: position as u8,
                entry,
            }
        })
        .collect()
}
