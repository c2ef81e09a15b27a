//! The thread of the reconcile loop.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use common::limits;
use common::tables::{Event, event, state};
use tokio::sync::oneshot;

use super::flowkeeper::{Watched, monotonic};
use super::overrides::Store;
use super::view::World;
use super::{Input, Look, SteeringError};
use crate::dataplane::Tables;
use crate::dataplane::flows::{Unanswered, count_by_backend};
use crate::dataplane::kernel::Kernel;
use crate::model::{Activation, BackendName, Config, Health, Protocol};
use crate::prober::{ProberHandle, Sign, Verdict};
use crate::reconcile::{
    Desired, LingeringKind, LingeringSlot, Reading, ReconcileError, Reconciler, state_of, take_out,
};

/// How often the tables are read again, in case somebody else has written there.
pub const RESYNC: Duration = Duration::from_secs(30);

/// How long a new configuration may wait for room in the tables, which what was freed
/// a moment ago gives after a second, before it counts as incomplete.
const PATIENCE: Duration = Duration::from_secs(3);

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// What the worker needs.
pub struct Setup {
    /// What is known at the start.
    pub world: World,
    /// `None` when nothing is steered: the worker then only keeps the books.
    pub tables: Option<Arc<Tables>>,
    /// Zeroes the counters of slots that get new owners.
    pub counters: Option<Arc<Kernel>>,
    /// Where signs go.
    pub prober: ProberHandle,
    /// Where the words of operators are kept.
    pub store: Store,
    /// Which backends are watched for unanswered SYNs.
    pub watched: Arc<ArcSwap<Watched>>,
}

/// See [`super`].
pub struct Worker {
    world: World,
    tables: Option<Arc<Tables>>,
    counters: Option<Arc<Kernel>>,
    prober: ProberHandle,
    store: Store,
    watched: Arc<ArcSwap<Watched>>,
    reconciler: Reconciler,
    epoch: Instant,
    desired: u64,
    applied: u64,
    ready: bool,
    last_error: Option<ReconcileError>,
    /// Who has which slot may have changed since `watched` was written.
    owners_changed: bool,
    changed: Changed,
    wakeup: Option<Instant>,
    resync: Instant,
    waiting: Vec<Waiting>,
    /// Who asks how things stand; told after the round, if there is one.
    looks: Vec<oneshot::Sender<Look>>,
    lingering: HashSet<Slot>,
    stopped: bool,
}

/// What a round has to look at.
enum Changed {
    /// Health and activation in these pools.
    Pools(BTreeSet<Arc<str>>),
    /// Anything.
    All,
}

impl Changed {
    fn pool(&mut self, pool: &Arc<str>) {
        if let Self::Pools(pools) = self
            && !pools.contains(pool)
        {
            pools.insert(Arc::clone(pool));
        }
    }
}

/// Somebody who waits until the tables follow.
struct Waiting {
    generation: u64,
    until: Instant,
    reply: oneshot::Sender<Result<(), SteeringError>>,
}

/// A slot with counters of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slot {
    Backend(u16),
    Frontend(u16),
}

impl Worker {
    /// One that has done nothing yet.
    pub fn new(setup: Setup) -> Self {
        let now = Instant::now();
        Self {
            world: setup.world,
            tables: setup.tables,
            counters: setup.counters,
            prober: setup.prober,
            store: setup.store,
            watched: setup.watched,
            reconciler: Reconciler::new(),
            epoch: now,
            desired: 1,
            applied: 0,
            ready: false,
            last_error: None,
            owners_changed: true,
            changed: Changed::All,
            wakeup: None,
            resync: now + RESYNC,
            waiting: Vec::new(),
            looks: Vec::new(),
            lingering: HashSet::new(),
            stopped: false,
        }
    }

    /// Works until it is told to stop or nobody is left who could tell it.
    pub fn run(mut self, inputs: &Receiver<Input>) {
        self.zero_free_slots();
        self.round();
        loop {
            let now = Instant::now();
            let due = self.wakeup.map_or(self.resync, |at| at.min(self.resync));
            let first = match inputs.recv_timeout(due.saturating_duration_since(now)) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let before = self.desired;
            for input in first.into_iter().chain(inputs.try_iter()) {
                self.take(input);
            }
            if self.stopped {
                return;
            }
            let now = Instant::now();
            let resync = now >= self.resync;
            if resync {
                self.reconciler.resync();
                self.changed = Changed::All;
                self.resync = now + RESYNC;
            }
            if resync || self.desired != before || self.wakeup.is_some_and(|at| at <= now) {
                self.read(inputs);
                self.round();
            }
            for reply in std::mem::take(&mut self.looks) {
                let _ = reply.send(self.look());
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Verdicts(verdicts) => self.verdicts(&verdicts),
            Input::Hops(hops) => {
                self.world.set_hops(hops);
                self.changed = Changed::All;
                self.desired += 1;
            }
            Input::Attached(attached) => {
                self.world.set_attached(attached);
                self.changed = Changed::All;
                self.desired += 1;
            }
            Input::Config(config, reply) => self.config(config, reply),
            Input::Activation(name, activation, reply) => self.activation(name, activation, reply),
            Input::Events(events) => self.events(&events),
            Input::Unanswered(unanswered) => self.unanswered(&unanswered),
            Input::Look(reply) => self.looks.push(reply),
            Input::Stop => self.stopped = true,
        }
    }

    /// Reads the tables, where the next round starts from that. It takes its time, in
    /// which verdicts must not wait: what is told meanwhile is noted as ever.
    fn read(&mut self, inputs: &Receiver<Input>) {
        if let Some(tables) = self.tables.clone()
            && self.reconciler.must_read()
        {
            let reading = Reading::of(&tables, &mut || {
                for input in inputs.try_iter() {
                    self.take(input);
                }
            });
            self.reconciler.start_from(reading);
        }
    }

    /// A backend that goes down is out of the kernel's choice when this returns;
    /// everything else is the next round's.
    fn verdicts(&mut self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            if !self.world.set_health(&verdict.name, verdict.health) {
                continue;
            }
            self.desired += 1;
            self.changed.pool(&verdict.name.pool);
            if verdict.health == Health::Down {
                self.take_out(&verdict.name);
            }
            tracing::debug!(
                backend = %verdict.name,
                health = %verdict.health,
                reason = %verdict.reason,
                after_us = verdict.at.elapsed().as_micros() as u64,
                "verdict noted"
            );
        }
    }

    fn take_out(&self, name: &BackendName) {
        let Some(tables) = &self.tables else { return };
        for protocol in PROTOCOLS {
            if let Some(slot) = self.reconciler.slot_of(name, protocol) {
                take_out(tables, slot);
            }
        }
    }

    fn config(&mut self, config: Arc<Config>, reply: oneshot::Sender<Result<(), SteeringError>>) {
        if !self.world.set_config(config) {
            self.save();
        }
        self.owners_changed = true;
        self.changed = Changed::All;
        self.wanted(reply);
    }

    fn activation(
        &mut self,
        name: BackendName,
        activation: Activation,
        reply: oneshot::Sender<Result<(), SteeringError>>,
    ) {
        let Some(configured) = configured(self.world.config(), &name) else {
            let _ = reply.send(Err(SteeringError::NoBackend(name)));
            return;
        };
        let word = (activation != configured).then_some(activation);
        self.world.set_activation(&name, word);
        self.changed.pool(&name.pool);
        self.save();
        if activation != Activation::Active {
            self.take_out(&name);
        }
        tracing::info!(backend = %name, %activation, "an operator's word");
        self.wanted(reply);
    }

    /// Something new is wanted, and somebody waits for it.
    fn wanted(&mut self, reply: oneshot::Sender<Result<(), SteeringError>>) {
        self.desired += 1;
        self.waiting.push(Waiting {
            generation: self.desired,
            until: Instant::now() + PATIENCE,
            reply,
        });
    }

    fn save(&self) {
        if let Err(error) = self.store.save(self.world.overrides()) {
            let path = self.store.path().display();
            tracing::warn!(%path, %error, "operators' words can't be saved: a restart forgets them");
        }
    }

    /// The kernel tells of every refused SYN. Of unanswered ones it tells when the
    /// client repeats them; those are found in the half-open table, each once.
    fn events(&self, events: &[Event]) {
        let Some(tables) = &self.tables else { return };
        for told in events.iter().filter(|e| e.kind == event::SYN_REFUSED) {
            let Ok(slot) = u16::try_from(told.backend) else {
                continue;
            };
            if u32::from(slot) >= tables.backends.len() {
                continue;
            }
            let generation = state_of(tables, slot) >> state::GENERATION_SHIFT;
            if generation != told.generation & 0xff {
                continue;
            }
            if let Some((name, _)) = self.reconciler.backend_at(slot) {
                self.prober.sign(name, Sign::Refused, 1);
            }
        }
    }

    fn unanswered(&self, unanswered: &[Unanswered]) {
        for told in unanswered {
            if let Some((name, _)) = self.reconciler.backend_at(told.backend) {
                self.prober.sign(name, Sign::Unanswered, told.syns);
            }
        }
    }

    fn round(&mut self) {
        let began = Instant::now();
        let result = match self.tables.clone() {
            Some(tables) => {
                let desired = self.want();
                let timeouts = self.world.config().timeouts;
                let counts = || count_by_backend(&tables, &timeouts, monotonic());
                let now = self.epoch.elapsed();
                self.reconciler.reconcile(desired, &tables, &counts, now)
            }
            None => Ok(Default::default()),
        };
        let report = match &result {
            Ok(report) => *report,
            Err(error) => error.report,
        };
        self.wakeup = report.next_wakeup.map(|after| Instant::now() + after);
        self.ready = true;
        match result {
            Ok(_) => {
                if self.last_error.take().is_some() {
                    tracing::info!("the kernel tables have everything now");
                }
                self.applied = self.desired;
            }
            Err(error) => {
                // A problem that stays is told once.
                let known = self.last_error.as_ref().map(|e| &e.problems);
                if known != Some(&error.problems) {
                    for problem in &error.problems {
                        tracing::error!(%problem, "not in the kernel");
                    }
                }
                self.last_error = Some(error);
            }
        }
        if report.steps > 0 {
            let took_us = began.elapsed().as_micros() as u64;
            tracing::debug!(steps = report.steps, took_us, "round");
        }
        self.answer();
        self.let_go();
        if self.owners_changed {
            // Slots that could not be had come with a later round.
            self.owners_changed = self.last_error.is_some();
            self.watch();
        }
    }

    /// What the tables should say: the pools in which something has changed are looked
    /// at again, or all of it.
    fn want(&mut self) -> Desired {
        let config = self.world.config();
        let changed = std::mem::replace(&mut self.changed, Changed::Pools(BTreeSet::new()));
        if let Changed::Pools(names) = changed
            && let Some(mut desired) = self.reconciler.take_desired()
        {
            for pool in config.pools.iter().filter(|p| names.contains(&p.name)) {
                desired.refresh(pool, &self.world);
            }
            debug_assert_eq!(desired, Desired::new(config, &self.world));
            return desired;
        }
        Desired::new(config, &self.world)
    }

    fn answer(&mut self) {
        let now = Instant::now();
        let applied = self.applied;
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.generation <= applied {
                let _ = waiting.reply.send(Ok(()));
                continue;
            }
            match &self.last_error {
                Some(error) if waiting.until <= now => {
                    let _ = waiting.reply.send(Err(error.clone().into()));
                }
                _ => self.waiting.push(waiting),
            }
        }
    }

    /// Zeroes the counters of slots that were freed just now: their next owners
    /// begin at nothing.
    fn let_go(&mut self) {
        let lingering: HashSet<Slot> = slots(&self.reconciler.lingering()).collect();
        let gone: Vec<Slot> = self.lingering.difference(&lingering).copied().collect();
        if gone.is_empty() && lingering == self.lingering {
            return;
        }
        for slot in gone {
            let owned = match slot {
                Slot::Backend(slot) => self.reconciler.backend_at(slot).is_some(),
                Slot::Frontend(slot) => self.reconciler.frontend_at(slot).is_some(),
            };
            if !owned {
                self.zero(slot);
            }
        }
        self.lingering = lingering;
    }

    /// An agent that was killed may have freed slots without zeroing their counters.
    fn zero_free_slots(&self) {
        let Some(tables) = &self.tables else { return };
        for slot in 0..limits::BACKENDS as u16 {
            let word = state_of(tables, slot);
            if word != 0 && word & state::PRESENT == 0 {
                self.zero(Slot::Backend(slot));
            }
        }
        for slot in 0..limits::FRONTENDS as u16 {
            let entry = tables.frontends.read(u32::from(slot));
            if entry != Default::default() && entry.flags == 0 {
                self.zero(Slot::Frontend(slot));
            }
        }
    }

    fn zero(&self, slot: Slot) {
        let Some(kernel) = &self.counters else {
            return;
        };
        let counters = &kernel.tables().counters;
        match slot {
            Slot::Backend(slot) => counters.reset_backend(u32::from(slot)),
            Slot::Frontend(slot) => counters.reset_frontend(u32::from(slot)),
        }
    }

    /// Writes down which slots are watched for unanswered SYNs, and for how long.
    fn watch(&self) {
        let pools: HashMap<&str, Duration> = self
            .world
            .config()
            .pools
            .iter()
            .filter_map(|pool| Some((&*pool.name, pool.passive.unanswered?)))
            .collect();
        let threshold = |slot: u16| {
            let (name, protocol) = self.reconciler.backend_at(slot)?;
            let after = pools.get(&*name.pool)?;
            (protocol == Protocol::Tcp).then_some(*after)
        };
        let slots = (0..limits::BACKENDS as u16).map(threshold);
        let timeouts = self.world.config().timeouts;
        self.watched.store(Arc::new(Watched::new(slots, timeouts)));
    }

    fn look(&self) -> Look {
        let backends = (0..limits::BACKENDS as u16).filter_map(|slot| {
            let (name, protocol) = self.reconciler.backend_at(slot)?;
            Some((slot, name.clone(), protocol))
        });
        let frontends = (0..limits::FRONTENDS as u16)
            .filter_map(|slot| Some((slot, Arc::clone(self.reconciler.frontend_at(slot)?))));
        Look {
            config: Arc::clone(self.world.config()),
            overrides: self.world.overrides().clone(),
            ready: self.ready,
            desired: self.desired,
            applied: self.applied,
            last_error: self.last_error.clone(),
            backends: backends.collect(),
            frontends: frontends.collect(),
            lingering: self.reconciler.lingering(),
            now: self.epoch.elapsed(),
        }
    }
}

fn configured(config: &Config, name: &BackendName) -> Option<Activation> {
    let mut backends = config.pool(&name.pool)?.backends.iter();
    Some(backends.find(|b| b.name == name.backend)?.activation)
}

fn slots(lingering: &[LingeringSlot]) -> impl Iterator<Item = Slot> {
    lingering.iter().filter_map(|l| match l.what {
        LingeringKind::Backend(_) => Some(Slot::Backend(l.slot)),
        LingeringKind::Frontend(_) => Some(Slot::Frontend(l.slot)),
        LingeringKind::Snat => None,
    })
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
