//! The part of the plan that makes endpoints and backends, and keeps their hops and
//! states.

use common::checksum;
use common::tables::{Backend, Endpoint, state};

use super::desired::BackendWanted;
use super::memory::REST;
use super::observed::Service;
use super::plan::{Planner, Problem, backend_key, flags, service};
use super::step::{Index, Step};

impl Planner<'_> {
    /// Makes backends that are missing and brings the others up to date.
    pub fn backends(&mut self) {
        let desired = self.desired;
        for (i, wanted) in desired.backends.iter().enumerate() {
            // One that is there has its endpoint, and that is in the index, unless an
            // agent was killed in between.
            if let (Some(slot), false) = (self.assigned.backends[i], self.just_read) {
                self.update_backend(slot, wanted);
                continue;
            }
            let service = service(wanted.address, wanted.protocol.number());
            let Some(endpoint) = self.endpoint(service, wanted) else {
                continue;
            };
            match self.assigned.backends[i] {
                Some(slot) => self.update_backend(slot, wanted),
                // Two of the same identity can only be the same name twice; they share.
                None => match self.have.backends.get(&backend_key(wanted)) {
                    Some(&slot) => self.assigned.backends[i] = Some(slot),
                    None => self.assigned.backends[i] = self.make_backend(i, wanted, endpoint),
                },
            }
        }
    }

    /// The endpoint of that address, port and protocol, made when it is missing, and
    /// found by its index.
    fn endpoint(&mut self, service: Service, wanted: &BackendWanted) -> Option<u16> {
        if let Some(&slot) = self.have.endpoints.get(&service) {
            // In the index unless an agent was killed here, or its bucket was full.
            let indexed = self.ensure_indexed(Index::Endpoints, service, slot);
            return indexed.then_some(slot);
        }
        let Some(slot) = self.free_endpoint() else {
            let limit = self.have.image.endpoints.len();
            let resting = self.memory.resting_endpoints.len();
            self.problem(Problem::NoSlot {
                what: "endpoint",
                name: wanted.address.to_string(),
                limit,
                resting,
            });
            return None;
        };
        let (addr, port, proto) = service;
        self.step(Step::Endpoint {
            slot,
            endpoint: Endpoint {
                addr,
                port,
                proto,
                sum_endpoint: checksum::sum_endpoint(&addr, port),
                sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                ..Endpoint::default()
            },
        });
        self.have.endpoints.insert(service, slot);
        let indexed = self.ensure_indexed(Index::Endpoints, service, slot);
        if !indexed {
            self.memory.collect_endpoints = true;
        }
        indexed.then_some(slot)
    }

    fn make_backend(&mut self, i: usize, wanted: &BackendWanted, endpoint: u16) -> Option<u16> {
        let Some(slot) = self.free_backend() else {
            let limit = self.have.image.backends.len();
            let resting = self.memory.resting_backends.len();
            self.problem(Problem::NoSlot {
                what: "backend",
                name: format!("{} ({})", wanted.name, wanted.protocol),
                limit,
                resting,
            });
            self.memory.collect_endpoints = true;
            return None;
        };
        let key = backend_key(wanted);
        let (addr, port, proto) = key.service;
        let before = self.have.backend(slot).state >> state::GENERATION_SHIFT;
        // Never 0: the word of a slot that was used once is not that of a fresh one.
        let generation = (before % 0xff + 1) << state::GENERATION_SHIFT;
        let entry = Backend {
            addr,
            port,
            proto,
            state: generation,
            sum_endpoint: checksum::sum_endpoint(&addr, port),
            sum_addr: checksum::fold(checksum::sum_addr(&addr)),
            endpoint,
            id: wanted.id,
            hops: [wanted.hop.unwrap_or_default(); 2],
            ..Backend::default()
        };
        self.step(Step::Backend {
            slot,
            entry: Box::new(entry),
        });
        let hop = wanted.hop.map_or(0, |hop| hop.bits());
        let state = generation | flags(wanted) | hop;
        self.step(Step::State { slot, state });
        self.have.backends.insert(key, slot);
        self.assigned.backend_owners[usize::from(slot)] = i as u32;
        self.memory.resting_hops.remove(&slot);
        Some(slot)
    }

    fn update_backend(&mut self, slot: u16, wanted: &BackendWanted) {
        let before = self.have.backend(slot).state;
        let hop = self.hop(slot, wanted);
        let generation = before & (0xff << state::GENERATION_SHIFT);
        let state = generation | flags(wanted) | hop;
        if state != before {
            self.step(Step::State { slot, state });
        }
    }

    /// Sees to it that one of the two hops is the wanted one; which, as state bits.
    ///
    /// The one that is not in use is written and then switched to. Until the last
    /// switch is a second old a packet may still read that one; the kernel then asks
    /// its routing table for so long, which knows the new way already.
    fn hop(&mut self, slot: u16, wanted: &BackendWanted) -> u32 {
        let entry = self.have.backend(slot);
        let now = entry.state & state::HOP_SLOT;
        let Some(hop) = wanted.hop else {
            return now;
        };
        let which = usize::from(now != 0);
        let (now_bits, other_bits) = (hop.bits() | now, hop.bits() | now ^ state::HOP_SLOT);
        if entry.hops[which] == hop {
            return now_bits;
        }
        if entry.hops[1 - which] != hop {
            if let Some(&until) = self.memory.resting_hops.get(&slot) {
                self.wake_at(until);
                return now;
            }
            let which = (1 - which) as u8;
            self.step(Step::Hop { slot, which, hop });
        }
        self.memory.resting_hops.insert(slot, self.now + REST);
        other_bits
    }
}
