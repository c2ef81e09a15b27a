//! From what is wanted and what is there to the steps between.
//!
//! The order is such that after every single step nothing refers to something that
//! is missing: what is referred to is made first (endpoints, their index, backends,
//! rings in free space, frontends, their index) and removed last. Before all of it
//! come the stores that take backends out.
//!
//! The plan is made on an image of the tables, which each step changes as it is
//! decided. One thing that cannot be done (a [`Problem`]) does not keep the rest
//! from being done.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::checksum;
use common::tables::{Device, RingRef, SnatAddress, frontend_flags, state};
use common::{Addr, Be16};

use super::apply::{apply, state_of};
use super::desired::{BackendWanted, Desired, FrontendWanted};
use super::memory::{Assigned, Lingering, Memory, NOBODY, REST, Regions, referenced};
use super::observed::{BackendKey, Observed, Service, region};
use super::step::{Index, Step};
use crate::dataplane::flows::FlowCounts;

/// How often it is looked whether something that lingers still has flows, and how
/// soon a round that met a problem is repeated.
pub const RETRY: Duration = Duration::from_secs(1);

/// Something that was wanted and cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A table has no slot left.
    #[error(
        "{what} {name}: all {limit} slots are in use ({resting} of them rest and will be free)"
    )]
    NoSlot {
        /// What it is for.
        what: &'static str,
        /// Which one.
        name: String,
        /// Slots of the table.
        limit: u32,
        /// Slots that will be free within a second.
        resting: usize,
    },
    /// The ring table has no room in one piece.
    #[error(
        "ring of pool {pool} ({protocol}) needs {chunks} chunks in one piece; \
         {free} of {limit} are free, {largest} of them in one piece"
    )]
    NoRingSpace {
        /// The pool.
        pool: String,
        /// The protocol.
        protocol: crate::model::Protocol,
        /// Chunks needed.
        chunks: u32,
        /// Chunks free.
        free: u32,
        /// Most free chunks side by side.
        largest: u32,
        /// Chunks of the table.
        limit: u32,
    },
    /// A ring would have too many slots.
    #[error(
        "ring of pool {pool}: the weights over their common divisor add up to {slots}; \
         at most {limit} are possible"
    )]
    RingTooLong {
        /// The pool.
        pool: String,
        /// The sum.
        slots: u64,
        /// The most that is possible.
        limit: u32,
    },
    /// The bucket of an index is full.
    #[error("{index}: no room for {service}: its bucket {bucket} has {limit} entries already")]
    IndexFull {
        /// Which index.
        index: Index,
        /// Address, port and protocol.
        service: String,
        /// The bucket.
        bucket: u32,
        /// Entries of a bucket.
        limit: usize,
    },
    /// Two pools want different ports of one snat address.
    #[error("snat address {address}: two pools give it different ports; the first pool's hold")]
    SnatPorts {
        /// The address.
        address: std::net::IpAddr,
    },
    /// Two attached devices have the same slot.
    #[error("interface {ifindex}: its device slot {slot} is that of interface {other}")]
    DeviceSlot {
        /// The interface left out.
        ifindex: u32,
        /// Their slot.
        slot: u32,
        /// The interface that has it.
        other: u32,
    },
}

/// Steps in order. Its text is one step to a line.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to do.
    pub steps: Vec<Step>,
    /// What cannot be done.
    pub problems: Vec<Problem>,
    /// When to plan again though nothing has changed, from now.
    pub next_wakeup: Option<Duration>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        Ok(())
    }
}

/// Plans the way from `have` to `desired`. Afterwards `have` is what the tables are
/// once the steps are carried out. `flow_counts` is asked at most once, and only
/// when something lingers.
pub(super) fn plan(
    desired: Desired,
    have: &mut Observed,
    memory: &mut Memory,
    flow_counts: &dyn Fn() -> FlowCounts,
    now: Duration,
) -> Plan {
    memory.wake(now);
    let before = referenced(have);
    let repairs = have.repairs.take();
    let mut planner = Planner {
        now,
        just_read: repairs.is_some(),
        assigned: Assigned {
            backends: vec![None; desired.backends.len()],
            frontends: vec![None; desired.frontends.len()],
            backend_owners: vec![NOBODY; have.image.backends.len() as usize],
            frontend_owners: vec![NOBODY; have.image.frontends.len() as usize],
            desired: Desired::default(),
        },
        desired: &desired,
        have,
        memory,
        plan: Plan::default(),
        wakeup: None,
        free_backend: 0,
        free_endpoint: 0,
        free_frontend: 0,
    };
    planner.take_out();
    planner.repair(repairs);
    planner.devices();
    planner.snat_addresses();
    planner.backends();
    let rings = planner.rings();
    planner.frontends(&rings);
    planner.close_frontends();
    planner.remove(flow_counts);
    planner.rest_regions(before);
    let Planner {
        mut assigned, plan, ..
    } = planner.finish();
    assigned.desired = desired;
    memory.assigned = Arc::new(assigned);
    plan
}

pub(super) struct Planner<'a> {
    pub now: Duration,
    pub desired: &'a Desired,
    pub have: &'a mut Observed,
    pub memory: &'a mut Memory,
    pub assigned: Assigned,
    pub plan: Plan,
    /// The tables were read for this round: an index may lack what it should have.
    pub just_read: bool,
    wakeup: Option<Duration>,
    /// No slot below is free.
    free_backend: u32,
    free_endpoint: u32,
    pub free_frontend: u32,
}

impl Planner<'_> {
    /// Decides a step: it is done on the image at once.
    pub fn step(&mut self, step: Step) {
        if !matches!(step, Step::Purge { .. }) {
            apply(&step, &self.have.image);
        }
        self.plan.steps.push(step);
    }

    pub fn problem(&mut self, problem: Problem) {
        self.plan.problems.push(problem);
    }

    /// Asks for a round at that time, or sooner.
    pub fn wake_at(&mut self, at: Duration) {
        self.wakeup = Some(self.wakeup.map_or(at, |earlier| earlier.min(at)));
    }

    fn finish(mut self) -> Self {
        if !self.plan.problems.is_empty() {
            self.wake_at(self.now + RETRY);
        }
        self.plan.next_wakeup = self.wakeup.map(|at| at.saturating_sub(self.now));
        self
    }

    /// Finds the slot of every wanted thing that has one, and takes out what must get
    /// no more flows: one store each, before anything else.
    fn take_out(&mut self) {
        for (i, wanted) in self.desired.backends.iter().enumerate() {
            if let Some(slot) = self.find_backend(i, wanted) {
                self.assigned.backends[i] = Some(slot);
                self.assigned.backend_owners[usize::from(slot)] = i as u32;
            }
        }
        for (i, wanted) in self.desired.frontends.iter().enumerate() {
            let service = service(wanted.address, wanted.proto);
            if let Some(&slot) = self.have.frontends.get(&service) {
                self.assigned.frontends[i] = Some(slot);
                self.assigned.frontend_owners[usize::from(slot)] = i as u32;
            }
        }
        let present: Vec<_> = self.have.present_backends().collect();
        // Slots that lingered may be gone when the tables were read again.
        let (have, memory) = (&*self.have, &mut *self.memory);
        let here = |slot: u16| state_of(&have.image, slot) & state::PRESENT != 0;
        memory.lingering_backends.retain(|slot, _| here(*slot));
        let here = |slot: u16| have.frontend(slot).flags & frontend_flags::PRESENT != 0;
        memory.lingering_frontends.retain(|slot, _| here(*slot));
        for (slot, word) in present {
            let owner = self.assigned.backend_owners[usize::from(slot)];
            let without = match self.desired.backends.get(owner as usize) {
                Some(wanted) => {
                    self.memory.lingering_backends.remove(&slot);
                    let out = word & state::USABLE != 0 && !wanted.usable;
                    let cut = word & state::STOPPED == 0 && wanted.stopped;
                    if !out && !cut {
                        continue;
                    }
                    let kept = !(state::USABLE | state::STOPPED | state::WATCHED);
                    word & kept | flags(wanted) & !state::USABLE
                }
                None => {
                    self.linger_backend(slot);
                    word & !(state::USABLE | state::WATCHED)
                }
            };
            if without != word {
                let state = without;
                self.step(Step::State { slot, state });
            }
        }
    }

    /// The slot of a backend: mostly the one that the same place in the list had in
    /// the round before, so that is looked at first.
    fn find_backend(&self, i: usize, wanted: &BackendWanted) -> Option<u16> {
        let key = backend_key(wanted);
        let last = self.memory.assigned.backends.get(i).copied().flatten();
        let is_same = |slot: &u16| {
            let entry = self.have.backend(*slot);
            entry.state & state::PRESENT != 0 && super::observed::key(&entry) == key
        };
        last.filter(is_same)
            .or_else(|| self.have.backends.get(&key).copied())
    }

    fn linger_backend(&mut self, slot: u16) {
        let last = Arc::clone(&self.memory.assigned);
        let since = self.now;
        let lingering = self.memory.lingering_backends.entry(slot);
        lingering.or_insert_with(|| Lingering {
            since,
            name: last
                .backend_at(slot)
                .map(|(name, protocol)| (name.clone(), protocol)),
        });
    }

    /// Once after the tables were read.
    fn repair(&mut self, repairs: Option<Vec<Step>>) {
        for step in repairs.into_iter().flatten() {
            self.step(step);
        }
    }

    fn devices(&mut self) {
        let slots = self.have.image.devices.len();
        let mut wanted = vec![Device::default(); slots as usize];
        for device in &self.desired.devices {
            let slot = device.ifindex % slots;
            let place = &mut wanted[slot as usize];
            if place.ifindex != 0 {
                let other = place.ifindex;
                self.problem(Problem::DeviceSlot {
                    ifindex: device.ifindex,
                    slot,
                    other,
                });
                continue;
            }
            place.ifindex = device.ifindex;
            place.mac = device.mac;
            place.no_tx = device.no_tx.into();
        }
        for (slot, device) in (0..slots).zip(wanted) {
            if self.have.image.devices.read(slot) != device {
                self.step(Step::Device { slot, device });
            }
        }
    }

    fn snat_addresses(&mut self) {
        for &address in &self.desired.snat_conflicts {
            self.problem(Problem::SnatPorts { address });
        }
        for (&ip, &(first_port, last_port)) in &self.desired.snat {
            let addr = Addr::from(ip);
            let found = self.have.snat_addresses().find(|(_, a)| a.addr == addr);
            let slot = match found {
                Some((slot, _)) => slot,
                None => {
                    let limit = self.have.image.snat_addresses.len();
                    let free = (0..limit as u8).find(|slot| {
                        let entry = self.have.image.snat_addresses.read(u32::from(*slot));
                        entry.addr == Addr::UNSPECIFIED
                            && !self.memory.resting_snat.contains_key(slot)
                    });
                    let Some(slot) = free else {
                        let resting = self.memory.resting_snat.len();
                        self.problem(Problem::NoSlot {
                            what: "snat address",
                            name: ip.to_string(),
                            limit,
                            resting,
                        });
                        continue;
                    };
                    slot
                }
            };
            self.memory.lingering_snat.remove(&slot);
            let address = SnatAddress {
                addr,
                first_port,
                last_port,
                sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                ..SnatAddress::default()
            };
            let same = found.is_some_and(|(_, a)| SnatAddress { cursor: 0, ..a } == address);
            if !same {
                self.step(Step::Snat { slot, address });
            }
        }
    }

    /// Writes rings that no frontend has yet. By position: where the ring lies, or
    /// nothing when it could not be written.
    fn rings(&mut self) -> Vec<Option<RingRef>> {
        let desired = self.desired;
        let mut users: Vec<Vec<RingRef>> = vec![Vec::new(); desired.rings.len()];
        let mut used = vec![false; desired.rings.len()];
        for (wanted, slot) in desired.frontends.iter().zip(&self.assigned.frontends) {
            let Some(ring) = wanted.ring else { continue };
            used[ring as usize] = true;
            if let Some(slot) = slot {
                let word = RingRef::from_word(self.have.frontend(*slot).ring);
                if !users[ring as usize].contains(&word) {
                    users[ring as usize].push(word);
                }
            }
        }
        let mut taken = referenced(self.have);
        let resting = self.memory.resting_regions.iter();
        taken.extend(resting.map(|(range, _)| range.clone()));
        let limit = self.have.image.rings.len();
        let mut regions = Regions::new(taken, limit);
        let mut placed = vec![None; desired.rings.len()];
        for (i, wanted) in desired.rings.iter().enumerate().filter(|(i, _)| used[*i]) {
            let turns = match &wanted.turns {
                Ok(turns) => turns,
                Err(slots) => {
                    self.problem(Problem::RingTooLong {
                        pool: wanted.pool.to_string(),
                        slots: *slots,
                        limit: common::limits::RING_SLOTS_MAX,
                    });
                    continue;
                }
            };
            // A backend that found no slot has its own problem; the others take turns.
            let slot_of = |&i: &u32| self.assigned.backends[i as usize].map(u32::from);
            let turns: Vec<u32> = turns.iter().filter_map(slot_of).collect();
            let len = turns.len() as u32;
            let same = users[i]
                .iter()
                .copied()
                .find(|&ring| ring.len == len && self.have.turns(ring).eq(turns.iter().copied()));
            placed[i] = match same {
                Some(ring) => Some(ring),
                None if len == 0 => Some(RingRef::default()),
                None => {
                    let chunks = RingRef::chunks(len);
                    let Some(chunk) = regions.take(chunks) else {
                        let (free, largest) = regions.room();
                        self.problem(Problem::NoRingSpace {
                            pool: wanted.pool.to_string(),
                            protocol: wanted.protocol,
                            chunks,
                            free,
                            largest,
                            limit,
                        });
                        continue;
                    };
                    let region = RingRef { chunk, len };
                    self.step(Step::Ring { region, turns });
                    Some(region)
                }
            };
        }
        placed
    }

    /// Regions that frontends' rings have left rest.
    fn rest_regions(&mut self, before: Vec<std::ops::Range<u32>>) {
        let after = referenced(self.have);
        let until = self.now + REST;
        for range in before {
            // Two rings never overlap, so a region is left or it is not.
            let found = after.binary_search_by_key(&range.start, |range| range.start);
            if found.is_err() {
                self.memory.resting_regions.push((range, until));
            }
        }
    }

    /// The first slot from `from` on that is free by `is_free`.
    pub fn free_slot(from: &mut u32, limit: u32, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        while *from < limit {
            let slot = *from as u16;
            *from += 1;
            if is_free(slot) {
                return Some(slot);
            }
        }
        None
    }

    pub fn free_backend(&mut self) -> Option<u16> {
        let limit = self.have.image.backends.len();
        let slot = Self::free_slot(&mut self.free_backend, limit, |slot| {
            state_of(&self.have.image, slot) & state::PRESENT == 0
                && !self.memory.resting_backends.contains_key(&slot)
        })?;
        self.have.backend_end = self.have.backend_end.max(u32::from(slot) + 1);
        Some(slot)
    }

    pub fn free_endpoint(&mut self) -> Option<u16> {
        let limit = self.have.image.endpoints.len();
        let slot = Self::free_slot(&mut self.free_endpoint, limit, |slot| {
            self.have.image.endpoints.read(u32::from(slot)).proto == 0
                && !self.memory.resting_endpoints.contains_key(&slot)
        })?;
        self.have.endpoint_end = self.have.endpoint_end.max(u32::from(slot) + 1);
        Some(slot)
    }

    /// Puts a slot into its index unless it is there. Returns whether it is there.
    pub fn ensure_indexed(&mut self, index: Index, service: Service, slot: u16) -> bool {
        let (bucket, entry) = self.have.place(index, service, slot);
        let entries = self.have.bucket(index, bucket);
        if entries.contains(&entry) {
            return true;
        }
        let Some(position) = entries.iter().position(|&entry| entry == 0) else {
            let (address, proto) = (super::step::socket(service.0, service.1), service.2);
            self.problem(Problem::IndexFull {
                index,
                service: format!("{address} {}", super::step::protocol(proto)),
                bucket,
                limit: entries.len(),
            });
            return false;
        };
        self.step(Step::Index {
            index,
            bucket,
            position: position as u8,
            entry,
        });
        true
    }

    /// Takes a slot out of its index.
    pub fn unindex(&mut self, index: Index, service: Service, slot: u16) {
        let (bucket, entry) = self.have.place(index, service, slot);
        let mut entries = self.have.bucket(index, bucket);
        while let Some(at) = entries.iter().position(|&e| e == entry) {
            for step in super::observed::removal(index, bucket, &mut entries, at) {
                self.step(step);
            }
        }
    }

    /// Chunks as the frontends refer to them now.
    pub fn ring_members(&self) -> std::collections::BTreeSet<u32> {
        let mut seen = std::collections::BTreeSet::new();
        let mut members = std::collections::BTreeSet::new();
        for (_, frontend) in self.have.present_frontends() {
            let ring = RingRef::from_word(frontend.ring);
            if !region(ring).is_empty() && seen.insert(frontend.ring) {
                members.extend(self.have.turns(ring));
            }
        }
        members
    }
}

/// State bits that follow from what is wanted.
pub(super) fn flags(wanted: &BackendWanted) -> u32 {
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    state::PRESENT
        | bit(wanted.usable, state::USABLE)
        | bit(wanted.stopped, state::STOPPED)
        | bit(wanted.watched, state::WATCHED)
        | bit(wanted.local, state::LOCAL)
}

/// Flags that follow from what is wanted.
pub(super) fn frontend_bits(wanted: &FrontendWanted) -> u32 {
    match wanted.local {
        true => frontend_flags::PRESENT | frontend_flags::LOCAL,
        false => frontend_flags::PRESENT,
    }
}

pub(super) fn service(address: std::net::SocketAddr, proto: u8) -> Service {
    (Addr::from(address.ip()), Be16::new(address.port()), proto)
}

pub(super) fn backend_key(wanted: &BackendWanted) -> BackendKey {
    BackendKey {
        service: service(wanted.address, wanted.protocol.number()),
        id: wanted.id,
    }
}
