//! What the program has counted, summed over CPUs.
//!
//! Each CPU adds to numbers of its own with no lock and no atomic, so a sum may
//! lack what is being counted at this moment, never more.

use std::mem::offset_of;
use std::sync::Arc;

use common::counters::{Reason, Traffic};
use common::{limits, tables};

use super::mapped::{Mapped, Memory};

/// The counters of all CPUs. Values only rise, except that a slot's traffic is
/// zeroed when the slot gets a new owner.
#[derive(Debug)]
pub struct Counters(Vec<Cpu>);

#[derive(Debug)]
struct Cpu {
    reasons: Mapped<u64>,
    frontends: Mapped<Traffic>,
    backends: Mapped<Traffic>,
}

impl Counters {
    pub(super) fn new(memory: &Arc<Memory>, cpus: usize) -> Self {
        let cpu = |cpu| {
            let at = cpu * size_of::<tables::Counters>();
            Cpu {
                reasons: Mapped::part(
                    memory,
                    at + offset_of!(tables::Counters, reasons),
                    Reason::ALL.len() as u32,
                ),
                frontends: Mapped::part(
                    memory,
                    at + offset_of!(tables::Counters, frontends),
                    limits::FRONTENDS,
                ),
                backends: Mapped::part(
                    memory,
                    at + offset_of!(tables::Counters, backends),
                    limits::BACKENDS,
                ),
            }
        };
        Self((0..cpus).map(cpu).collect())
    }

    /// Packets by [`Reason`], in the order of [`Reason::ALL`].
    pub fn reasons(&self) -> Vec<u64> {
        let reasons = Reason::ALL.iter();
        reasons.map(|reason| self.reason(*reason)).collect()
    }

    /// Packets of one [`Reason`].
    pub fn reason(&self, reason: Reason) -> u64 {
        let cpus = self.0.iter();
        cpus.fold(0, |sum, cpu| {
            sum.wrapping_add(cpu.reasons.read(reason as u32))
        })
    }

    /// Traffic of a frontend slot.
    ///
    /// # Panics
    /// When the slot is beyond the table, as for all methods here.
    pub fn frontend(&self, slot: u32) -> Traffic {
        sum(self.0.iter().map(|cpu| &cpu.frontends), slot)
    }

    /// Traffic of a backend slot.
    pub fn backend(&self, slot: u32) -> Traffic {
        sum(self.0.iter().map(|cpu| &cpu.backends), slot)
    }

    /// Zeroes a frontend slot that gets a new owner.
    pub fn reset_frontend(&self, slot: u32) {
        for cpu in &self.0 {
            cpu.frontends.write(slot, Traffic::default());
        }
    }

    /// Zeroes a backend slot that gets a new owner.
    pub fn reset_backend(&self, slot: u32) {
        for cpu in &self.0 {
            cpu.backends.write(slot, Traffic::default());
        }
    }
}

fn sum<'a>(cpus: impl Iterator<Item = &'a Mapped<Traffic>>, slot: u32) -> Traffic {
    let mut sum = Traffic::default();
    for traffic in cpus {
        sum.add(&traffic.read(slot));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_summed_and_slots_reset() {
        let memory = Arc::new(Memory::heap(2 * size_of::<tables::Counters>()));
        let counters = Counters::new(&memory, 2);
        for (n, cpu) in (1..).zip(&counters.0) {
            let traffic = Traffic {
                packets_in: n,
                bytes_in: 100 * n,
                ..Traffic::default()
            };
            cpu.reasons.write(Reason::FlowNew as u32, n);
            cpu.frontends.write(7, traffic);
            cpu.backends.write(limits::BACKENDS - 1, traffic);
        }
        assert_eq!(counters.reason(Reason::FlowNew), 3);
        assert_eq!(counters.reasons().iter().sum::<u64>(), 3);
        assert_eq!(counters.frontend(7).bytes_in, 300);
        assert_eq!(counters.frontend(8), Traffic::default());
        assert_eq!(counters.backend(limits::BACKENDS - 1).packets_in, 3);
        counters.reset_frontend(7);
        assert_eq!(counters.frontend(7), Traffic::default());
        assert_eq!(counters.backend(limits::BACKENDS - 1).packets_in, 3);
    }
}
