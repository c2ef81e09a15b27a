//! The part of the plan that makes and changes frontends.

use std::collections::HashMap;

use common::checksum;
use common::tables::{Frontend, RingRef, frontend_flags};

use super::desired::FrontendWanted;
use super::plan::{Planner, Problem, frontend_bits, service};
use super::step::{Index, Step};

/// A frontend's snat slots, as many as hold, and repeated to the end.
type SnatSlots = (u8, [u8; 8]);

impl Planner<'_> {
    /// Makes frontends that are missing and brings the others up to date. `rings` is
    /// where each desired ring lies.
    pub fn frontends(&mut self, rings: &[Option<RingRef>]) {
        let desired = self.desired;
        let snat: HashMap<_, _> = self
            .have
            .snat_addresses()
            .map(|(slot, a)| (std::net::IpAddr::from(a.addr), slot))
            .collect();
        for (i, wanted) in desired.frontends.iter().enumerate() {
            let ring = match wanted.ring {
                Some(ring) => rings[ring as usize],
                None => Some(RingRef::default()),
            };
            // An address without a slot is a problem already told.
            let mut slots = (0, [0; 8]);
            for slot in wanted.snat.iter().filter_map(|ip| snat.get(ip)).take(8) {
                slots.1[usize::from(slots.0)] = *slot;
                slots.0 += 1;
            }
            for at in usize::from(slots.0)..8 {
                slots.1[at] = slots.1[at % usize::from(slots.0.max(1))];
            }
            match self.assigned.frontends[i] {
                Some(slot) => self.update_frontend(slot, wanted, ring, slots),
                None => self.make_frontend(i, wanted, ring.unwrap_or_default(), slots),
            }
        }
    }

    fn make_frontend(
        &mut self,
        i: usize,
        wanted: &FrontendWanted,
        ring: RingRef,
        (count, slots): SnatSlots,
    ) {
        let limit = self.have.image.frontends.len();
        let mut from = self.free_frontend;
        let free = Self::free_slot(&mut from, limit, |slot| {
            self.have.frontend(slot).flags & frontend_flags::PRESENT == 0
                && !self.memory.resting_frontends.contains_key(&slot)
        });
        self.free_frontend = from;
        let Some(slot) = free else {
            let resting = self.memory.resting_frontends.len();
            self.problem(Problem::NoSlot {
                what: "frontend",
                name: match &wanted.name {
                    Some(name) => name.to_string(),
                    None => format!("echo {}", wanted.address.ip()),
                },
                limit,
                resting,
            });
            return;
        };
        let key = service(wanted.address, wanted.proto);
        let (addr, port, proto) = key;
        let unavailable = wanted.unavailable as u8;
        self.step(Step::Frontend {
            slot,
            entry: Frontend {
                addr,
                port,
                proto,
                unavailable,
                sum_endpoint: checksum::sum_endpoint(&addr, port),
                sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                snat_count: u32::from(count),
                snat: slots,
                id: wanted.id,
                ..Frontend::default()
            },
        });
        if ring.len > 0 {
            self.step(Step::FrontendRing { slot, ring });
        }
        self.step(Step::FrontendFlags {
            slot,
            unavailable,
            flags: frontend_bits(wanted),
        });
        self.have.frontend_end = self.have.frontend_end.max(u32::from(slot) + 1);
        self.have.frontends.insert(key, slot);
        self.assigned.frontends[i] = Some(slot);
        self.assigned.frontend_owners[usize::from(slot)] = i as u32;
        self.ensure_indexed(Index::Frontends, key, slot);
    }

    /// Changes a frontend while packets flow. Each store leaves it whole:
    /// - new snat addresses are set before the ring when there are some, and taken
    ///   away after it when there are none any more: at no time does a flow go out
    ///   untranslated to a backend whose pool wants translation;
    /// - ring, then policy and flags in one word, each by one store. A packet that is
    ///   refused in between is refused by the old policy, which it might have met a
    ///   moment before as well;
    /// - the index last, for one that was on its way out.
    fn update_frontend(
        &mut self,
        slot: u16,
        wanted: &FrontendWanted,
        ring: Option<RingRef>,
        (count, slots): SnatSlots,
    ) {
        self.memory.lingering_frontends.remove(&slot);
        let entry = self.have.frontend(slot);
        if entry.id != wanted.id {
            self.step(Step::FrontendId {
                slot,
                id: wanted.id,
            });
        }
        let snat_differs =
            entry.snat_count != u32::from(count) || (count > 0 && entry.snat != slots);
        let snat = Step::FrontendSnat { slot, count, slots };
        if snat_differs && count > 0 {
            self.step(snat.clone());
        }
        // Without a place for its new ring it keeps the old one, whose backends are
        // there as long as it refers to them.
        let ring = ring.filter(|ring| ring.to_word() != entry.ring);
        if let Some(ring) = ring {
            self.step(Step::FrontendRing { slot, ring });
        }
        if snat_differs && count == 0 {
            self.step(snat);
        }
        let unavailable = wanted.unavailable as u8;
        let flags = frontend_bits(wanted);
        if (entry.unavailable, entry.flags) != (unavailable, flags) {
            self.step(Step::FrontendFlags {
                slot,
                unavailable,
                flags,
            });
        }
        let key = service(wanted.address, wanted.proto);
        self.ensure_indexed(Index::Frontends, key, slot);
    }
}
