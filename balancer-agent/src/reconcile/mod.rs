//! Brings the kernel tables to what configuration, health and operators want.
//!
//! ```text
//! model + View -> Desired ---+
//!                            +-> plan (steps in a safe order) -> apply
//! tables -> Observed --------+
//! ```
//!
//! All of it is deterministic and free of clocks; [`Reconciler`] is the only part
//! with a memory, and can lose it at any moment. The life of a backend slot:
//!
//! ```text
//! free --(wanted)--> present <--> usable
//!  ^                    |  ^
//!  | 1 s                |  | (wanted again, same address and name)
//! resting <--(no flows  v  |
//!            or timeout)-- lingering
//! ```
//!
//! Frontend slots and snat addresses go the same way.

mod apply;
mod backends;
mod desired;
mod frontends;
mod memory;
mod observed;
mod plan;
mod removal;
pub(crate) mod ring;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use memory::Memory;
use observed::Observed;

pub use apply::{apply, put_state, state_of, take_out};
pub use desired::{
    BackendWanted, Desired, DeviceWanted, ECHO, FrontendWanted, RingWanted, Seen, View, backend_id,
    frontend_id,
};
pub use memory::REST;
pub use plan::{Plan, Problem, RETRY};
pub use ring::{len as ring_len, sequence as ring_sequence};
pub use step::{Index, Step};

use crate::dataplane::Tables;
use crate::dataplane::flows::FlowCounts;
use crate::model::{BackendName, Protocol};

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Steps carried out.
    pub steps: usize,
    /// Counts the rounds of this reconciler that changed something.
    pub generation: u64,
    /// When to call again though nothing has changed, from now.
    pub next_wakeup: Option<Duration>,
}

/// A round that could not do everything. The rest was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", .problems[0], more(.problems.len()))]
pub struct ReconcileError {
    /// What could not be done; at least one.
    pub problems: Vec<Problem>,
    /// What was done.
    pub report: Report,
}

fn more(problems: usize) -> String {
    match problems {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    }
}

/// Something removed from the configuration that still has its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LingeringSlot {
    /// What it is, and its name unless it was removed before the agent's start.
    pub what: LingeringKind,
    /// Its slot.
    pub slot: u16,
    /// When it was found to be removed, by the caller's clock.
    pub since: Duration,
}

/// See [`LingeringSlot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LingeringKind {
    /// A backend.
    Backend(Option<(BackendName, Protocol)>),
    /// A frontend (without a name also the echo entry of an address).
    Frontend(Option<Arc<str>>),
    /// A snat address.
    Snat,
}

/// The tables' content.
#[derive(Debug)]
pub struct Reading(Observed);

impl Reading {
    /// Reads all tables, which may take tens of milliseconds; `pause` is called many
    /// times in between, and may take backends out.
    pub fn of(tables: &Tables, pause: &mut dyn FnMut()) -> Self {
        Self(Observed::read(tables, pause))
    }
}

/// Keeps the tables as desired, round by round.
#[derive(Debug, Default)]
pub struct Reconciler {
    memory: Memory,
    have: Option<Observed>,
    adopted: bool,
    generation: u64,
}

impl Reconciler {
    /// One that knows nothing yet: the first round reads the tables and adopts what
    /// an earlier agent left there.
    pub fn new() -> Self {
        Self::default()
    }

    /// One round: plans and carries out. `flow_counts` counts the flows there are at
    /// the moment of the call; it is called at most once, and only when something
    /// lingers. `now` is any clock that never goes back.
    ///
    /// # Errors
    /// When something desired cannot be had; everything else is done nevertheless,
    /// and the next round tries again.
    pub fn reconcile(
        &mut self,
        desired: Desired,
        tables: &Tables,
        flow_counts: &dyn Fn() -> FlowCounts,
        now: Duration,
    ) -> Result<Report, ReconcileError> {
        let plan = self.plan(desired, tables, flow_counts, now);
        for step in &plan.steps {
            apply(step, tables);
        }
        if !plan.steps.is_empty() {
            self.generation += 1;
        }
        let report = Report {
            steps: plan.steps.len(),
            generation: self.generation,
            next_wakeup: plan.next_wakeup,
        };
        if plan.problems.is_empty() {
            return Ok(report);
        }
        // Whatever the reason: the next round starts from what is really there.
        self.resync();
        Err(ReconcileError {
            problems: plan.problems,
            report,
        })
    }

    /// What the last round was about, to be changed by [`Desired::refresh`] and given to
    /// the next one. Until then names and slots can't be asked for. `None` before the
    /// first. What the next round finds to be no longer wanted lingers without a name,
    /// so nothing may be taken out of it.
    pub fn take_desired(&mut self) -> Option<Desired> {
        let assigned = Arc::get_mut(&mut self.memory.assigned)?;
        let desired = std::mem::take(&mut assigned.desired);
        self.adopted.then_some(desired)
    }

    /// What [`Self::reconcile`] would do now, without doing it.
    pub fn dry_run(
        &self,
        desired: Desired,
        tables: &Tables,
        flow_counts: &dyn Fn() -> FlowCounts,
        now: Duration,
    ) -> Plan {
        let mut trial = Self {
            memory: self.memory.clone(),
            have: self.have.as_ref().map(Observed::copy),
            adopted: self.adopted,
            generation: self.generation,
        };
        trial.plan(desired, tables, flow_counts, now)
    }

    /// Reads all tables again in the next round, unless it is given a [`Reading`]
    /// before. For the resync tick.
    pub fn resync(&mut self) {
        self.have = None;
    }

    /// Whether the next round has to read all tables.
    pub fn must_read(&self) -> bool {
        self.have.is_none()
    }

    /// What the next round starts from. Since it was read nothing but state words may
    /// have been written to the tables.
    pub fn start_from(&mut self, reading: Reading) {
        self.have = Some(reading.0);
    }

    /// Plans a round, which the caller must then carry out whole.
    fn plan(
        &mut self,
        desired: Desired,
        tables: &Tables,
        flow_counts: &dyn Fn() -> FlowCounts,
        now: Duration,
    ) -> Plan {
        let have = match &mut self.have {
            Some(have) => have,
            none => none.insert(Reading::of(tables, &mut || {}).0),
        };
        have.refresh_states(tables);
        if !self.adopted {
            self.memory.adopt(have, now);
            self.adopted = true;
        }
        plan::plan(desired, have, &mut self.memory, flow_counts, now)
    }

    /// The slot of a backend that is desired, for counters, flows and the fast path.
    pub fn slot_of(&self, name: &BackendName, protocol: Protocol) -> Option<u16> {
        let assigned = &self.memory.assigned;
        assigned.backends[assigned.desired.backend(name, protocol)?]
    }

    /// Who has that backend slot: desired, or lingering with a name that is known.
    pub fn backend_at(&self, slot: u16) -> Option<(&BackendName, Protocol)> {
        let lingering = || {
            let lingering = self.memory.lingering_backends.get(&slot)?;
            let (name, protocol) = lingering.name.as_ref()?;
            Some((name, *protocol))
        };
        self.memory.assigned.backend_at(slot).or_else(lingering)
    }

    /// The slot of a frontend that is desired.
    pub fn frontend_slot(&self, name: &str) -> Option<u16> {
        let assigned = &self.memory.assigned;
        let frontends = &assigned.desired.frontends;
        let at = frontends
            .iter()
            .position(|f| f.name.as_deref() == Some(name))?;
        assigned.frontends[at]
    }

    /// Who has that frontend slot: desired, or lingering with a name that is known.
    pub fn frontend_at(&self, slot: u16) -> Option<&Arc<str>> {
        let lingering = || self.memory.lingering_frontends.get(&slot)?.name.as_ref();
        self.memory.assigned.frontend_at(slot).or_else(lingering)
    }

    /// What was removed from the configuration and is kept for its flows.
    pub fn lingering(&self) -> Vec<LingeringSlot> {
        let memory = &self.memory;
        let frontends = memory.lingering_frontends.iter().map(|(slot, l)| {
            let what = LingeringKind::Frontend(l.name.clone());
            (what, *slot, l.since)
        });
        let backends = memory.lingering_backends.iter().map(|(slot, l)| {
            let what = LingeringKind::Backend(l.name.clone());
            (what, *slot, l.since)
        });
        let snat = memory.lingering_snat.iter();
        let snat = snat.map(|(slot, since)| (LingeringKind::Snat, u16::from(*slot), *since));
        frontends
            .chain(backends)
            .chain(snat)
            .map(|(what, slot, since)| LingeringSlot { what, slot, since })
            .collect()
    }
}
