//! The part of the plan that lets go: what is not wanted any more lingers while flows
//! use it, then is freed, and rests.

use std::sync::Arc;
use std::time::Duration;

use common::tables::{Endpoint, RingRef, SnatAddress, frontend_flags, state};

use super::memory::{Lingering, NOBODY, REST};
use super::observed::key;
use super::plan::{Planner, RETRY};
use super::step::{Index, Step};
use crate::dataplane::flows::FlowCounts;

impl Planner<'_> {
    /// Closes frontends that are not wanted: no new flows, and no ring, so that its
    /// backends can go.
    pub fn close_frontends(&mut self) {
        let present: Vec<_> = self.have.present_frontends().collect();
        for (slot, entry) in present {
            if self.assigned.frontend_owners[usize::from(slot)] != NOBODY {
                continue;
            }
            let last = Arc::clone(&self.memory.assigned);
            let since = self.now;
            let lingering = self.memory.lingering_frontends.entry(slot);
            lingering.or_insert_with(|| Lingering {
                since,
                name: last.frontend_at(slot).cloned(),
            });
            let flags = frontend_flags::PRESENT | frontend_flags::CLOSING;
            if entry.flags != flags {
                self.step(Step::FrontendFlags {
                    slot,
                    unavailable: entry.unavailable,
                    flags,
                });
            }
            if entry.ring != 0 {
                let ring = RingRef::default();
                self.step(Step::FrontendRing { slot, ring });
            }
        }
        for (slot, address) in self.have.snat_addresses().collect::<Vec<_>>() {
            let ip = std::net::IpAddr::from(address.addr);
            if !self.desired.snat.contains_key(&ip) {
                self.memory.lingering_snat.entry(slot).or_insert(self.now);
            }
        }
    }

    /// Frees what has lingered long enough, in an order that leaves nothing referred
    /// to: frontends out of their index, backends not present (their flows are stale
    /// from then on), the flows, the frontends, snat addresses, endpoints.
    pub fn remove(&mut self, flow_counts: &dyn Fn() -> FlowCounts) {
        let (frontends, backends, snat) = self.due(flow_counts);
        for &slot in &frontends {
            let entry = self.have.frontend(slot);
            let service = (entry.addr, entry.port, entry.proto);
            self.unindex(Index::Frontends, service, slot);
        }
        for &slot in &backends {
            let entry = self.have.backend(slot);
            // The generation stays, for the next owner to count on.
            let state = entry.state & (0xff << state::GENERATION_SHIFT);
            self.step(Step::State { slot, state });
            if self.have.backends.get(&key(&entry)) == Some(&slot) {
                self.have.backends.remove(&key(&entry));
            }
            self.memory.lingering_backends.remove(&slot);
            self.memory.resting_backends.insert(slot, self.now + REST);
            self.memory.collect_endpoints = true;
        }
        if !(frontends.is_empty() && backends.is_empty() && snat.is_empty()) {
            self.step(Step::Purge {
                backends: backends.clone(),
                frontends: frontends.clone(),
                snat: snat.clone(),
            });
        }
        for &slot in &frontends {
            let entry = self.have.frontend(slot);
            let unavailable = entry.unavailable;
            let flags = 0;
            self.step(Step::FrontendFlags {
                slot,
                unavailable,
                flags,
            });
            let service = (entry.addr, entry.port, entry.proto);
            if self.have.frontends.get(&service) == Some(&slot) {
                self.have.frontends.remove(&service);
            }
            self.memory.lingering_frontends.remove(&slot);
            self.memory.resting_frontends.insert(slot, self.now + REST);
        }
        for &slot in &snat {
            let address = SnatAddress::default();
            self.step(Step::Snat { slot, address });
            self.memory.lingering_snat.remove(&slot);
            self.memory.resting_snat.insert(slot, self.now + REST);
        }
        self.collect_endpoints();
    }

    /// Slots of frontends, backends and snat addresses that have no flows any more, or
    /// whose time is up.
    fn due(&mut self, flow_counts: &dyn Fn() -> FlowCounts) -> (Vec<u16>, Vec<u16>, Vec<u8>) {
        let now = self.now;
        let since: Vec<Duration> = {
            let memory = &*self.memory;
            let backends = memory.lingering_backends.values().map(|l| l.since);
            let frontends = memory.lingering_frontends.values().map(|l| l.since);
            let snat = memory.lingering_snat.values().copied();
            backends.chain(frontends).chain(snat).collect()
        };
        // A packet that met the old state may still be making a flow until then.
        if !since.iter().any(|&since| since + REST <= now) {
            if let Some(&first) = since.iter().min() {
                self.wake_at(first + REST);
            }
            return Default::default();
        }
        let counts = flow_counts();
        let removed = self.desired.removed;
        let is_due = |since: Duration, flows: u32| {
            since + REST <= now && (flows == 0 || since + removed <= now)
        };
        let members = self.ring_members();
        let used_snat: Vec<u8> = self
            .have
            .present_frontends()
            .filter(|(_, f)| f.flags & frontend_flags::CLOSING == 0)
            .flat_map(|(_, f)| f.snat.into_iter().take(f.snat_count as usize))
            .collect();
        let memory = &*self.memory;
        let frontends: Vec<u16> = memory
            .lingering_frontends
            .iter()
            .filter(|(slot, l)| is_due(l.since, counts.frontend(**slot).live()))
            .map(|(slot, _)| *slot)
            .collect();
        let backends: Vec<u16> = memory
            .lingering_backends
            .iter()
            .filter(|(slot, l)| {
                is_due(l.since, counts.backend(**slot).live())
                    && !members.contains(&u32::from(**slot))
            })
            .map(|(slot, _)| *slot)
            .collect();
        let snat: Vec<u8> = memory
            .lingering_snat
            .iter()
            .filter(|(slot, since)| {
                is_due(**since, counts.snat(**slot)) && !used_snat.contains(slot)
            })
            .map(|(slot, _)| *slot)
            .collect();
        if since.len() > frontends.len() + backends.len() + snat.len() {
            self.wake_at(now + RETRY);
        }
        (frontends, backends, snat)
    }

    /// Frees endpoints that no backend has any more.
    fn collect_endpoints(&mut self) {
        if !std::mem::take(&mut self.memory.collect_endpoints) {
            return;
        }
        let mut used = vec![false; self.have.image.endpoints.len() as usize];
        for (slot, _) in self.have.present_backends() {
            if let Some(used) = used.get_mut(usize::from(self.have.backend(slot).endpoint)) {
                *used = true;
            }
        }
        for slot in 0..self.have.endpoint_end as u16 {
            let endpoint = self.have.image.endpoints.read(u32::from(slot));
            if endpoint.proto == 0 || used[usize::from(slot)] {
                continue;
            }
            let service = (endpoint.addr, endpoint.port, endpoint.proto);
            self.unindex(Index::Endpoints, service, slot);
            let endpoint = Endpoint {
                proto: 0,
                ..endpoint
            };
            self.step(Step::Endpoint { slot, endpoint });
            if self.have.endpoints.get(&service) == Some(&slot) {
                self.have.endpoints.remove(&service);
            }
            self.memory.resting_endpoints.insert(slot, self.now + REST);
        }
    }
}
