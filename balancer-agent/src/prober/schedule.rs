//! The scheduler: one heap of due times, a bounded set of running checks.

use super::health::{Machine, Outcome, Rules, Sign};
use super::probe::Report;
use super::shared::{ProbeStatus, Shared, StatusCell, lock};
use super::{Limits, Target, Verdict};
use crate::model::{BackendName, Health};
use futures::future::BoxFuture;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::{AbortHandle, JoinError, JoinSet};

/// Between the first checks of backends that are added together.
const PACE: Duration = Duration::from_micros(100);

/// Names an entry; never used twice.
type Key = u64;

/// Makes one check. The real one is [`super::probe::run`]; tests of the schedule
/// have others.
pub(super) type Probe = dyn Fn(Arc<Target>) -> BoxFuture<'static, Report> + Send + Sync;

pub(super) struct Schedule {
    probe: Box<Probe>,
    shared: Arc<Shared>,
    limits: Limits,
    names: HashMap<BackendName, Key>,
    entries: HashMap<Key, Entry>,
    next_key: Key,
    /// Due times. An item whose number is not its entry's `turn` is void.
    heap: BinaryHeap<Reverse<(Instant, Key, u64)>>,
    /// Due, but too many checks run.
    waiting: VecDeque<Key>,
    running: JoinSet<Report>,
    tasks: HashMap<tokio::task::Id, Key>,
}

struct Entry {
    target: Arc<Target>,
    machine: Machine,
    cell: StatusCell,
    turn: u64,
    due: Option<Instant>,
    started: Option<Instant>,
    state: State,
}

enum State {
    Idle,
    Waiting,
    Running(AbortHandle),
}

impl Schedule {
    pub fn new(shared: Arc<Shared>, limits: Limits, probe: Box<Probe>) -> Self {
        Self {
            probe,
            shared,
            limits,
            names: HashMap::new(),
            entries: HashMap::new(),
            next_key: 0,
            heap: BinaryHeap::new(),
            waiting: VecDeque::new(),
            running: JoinSet::new(),
            tasks: HashMap::new(),
        }
    }

    pub async fn run(mut self) -> Infallible {
        let shared = Arc::clone(&self.shared);
        loop {
            self.read_inbox();
            while let Some(result) = self.running.try_join_next_with_id() {
                self.finish(result);
            }
            self.start_due();
            let due = self.heap.peek().map(|Reverse((at, ..))| *at);
            tokio::select! {
                () = shared.wake.notified() => {}
                Some(result) = self.running.join_next_with_id() => self.finish(result),
                () = sleep_until(due), if due.is_some() => {}
            }
        }
    }

    fn read_inbox(&mut self) {
        let mut inbox = self.shared.inbox();
        if let Some(targets) = inbox.targets {
            self.configure(targets, &mut inbox.seeds);
        }
        for (name, health) in inbox.seeds {
            self.seed(&name, health);
        }
        for ((name, sign), count) in inbox.signs {
            self.sign(&name, sign, count);
        }
    }

    fn configure(&mut self, targets: Vec<Target>, seeds: &mut HashMap<BackendName, Health>) {
        let mut wanted: BTreeMap<BackendName, Target> = BTreeMap::new();
        let mut order = Vec::with_capacity(targets.len());
        for target in targets {
            let name = target.name.clone();
            if wanted.insert(name.clone(), target).is_none() {
                order.push(name);
            }
        }
        let gone: Vec<_> = self
            .names
            .keys()
            .filter(|name| !wanted.contains_key(name))
            .cloned()
            .collect();
        for name in gone {
            self.remove(&name);
            self.shared.forget(&name);
        }
        let mut first = now();
        for name in order {
            let Some(target) = wanted.remove(&name) else {
                continue;
            };
            match self.names.get(&name).and_then(|k| self.entries.get(k)) {
                Some(entry) if *entry.target == target => {}
                Some(entry) if entry.target.address == target.address => {
                    self.change(&name, target);
                }
                _ => {
                    self.remove(&name);
                    self.add(target, seeds.remove(&name), first);
                    first += PACE;
                }
            }
        }
        let statuses = self
            .names
            .iter()
            .filter_map(|(name, key)| {
                Some((name.clone(), Arc::clone(&self.entries.get(key)?.cell)))
            })
            .collect();
        self.shared.statuses.store(Arc::new(statuses));
    }

    fn add(&mut self, target: Target, seed: Option<Health>, first: Instant) {
        let rules = Rules::new(&target.check, &target.passive);
        let mut hasher = DefaultHasher::new();
        target.name.hash(&mut hasher);
        let mut machine = Machine::new(rules, hasher.finish());
        if let Some(health) = seed {
            machine.seed(health);
        }
        let reason: Arc<str> = match (rules.active, seed) {
            (false, _) => "no check".into(),
            (true, Some(health)) => format!("was {health} before the restart").into(),
            (true, None) => "not checked yet".into(),
        };
        let at = now();
        let cell = Arc::new(Mutex::new(ProbeStatus {
            health: machine.health(),
            since: at,
            reason: Arc::clone(&reason),
            last: None,
            last_duration: None,
            failures: 0,
            successes: 0,
            checks: 0,
            failed_checks: 0,
            refused: 0,
            unanswered: 0,
            down_by: machine.down_by(),
        }));
        self.shared.tell(Verdict {
            name: target.name.clone(),
            health: machine.health(),
            reason,
            at,
        });
        let key = self.next_key;
        self.next_key += 1;
        self.names.insert(target.name.clone(), key);
        self.entries.insert(
            key,
            Entry {
                target: Arc::new(target),
                machine,
                cell,
                turn: 0,
                due: None,
                started: None,
                state: State::Idle,
            },
        );
        if rules.active {
            self.plan(key, Some(first));
        }
    }

    fn remove(&mut self, name: &BackendName) {
        let Some(entry) = self
            .names
            .remove(name)
            .and_then(|k| self.entries.remove(&k))
        else {
            return;
        };
        if let State::Running(task) = entry.state {
            self.tasks.remove(&task.id());
            task.abort();
        }
    }

    fn change(&mut self, name: &BackendName, target: Target) {
        let Some((&key, entry)) = self
            .names
            .get(name)
            .and_then(|key| Some((key, self.entries.get_mut(key)?)))
        else {
            return;
        };
        let rules = Rules::new(&target.check, &target.passive);
        let other_check = target.check != entry.target.check || target.wire != entry.target.wire;
        entry.target = Arc::new(target);
        let change = entry.machine.reconfigure(rules);
        if other_check && let State::Running(task) = &entry.state {
            // What the old check finds no longer counts.
            self.tasks.remove(&task.id());
            task.abort();
            entry.state = State::Idle;
        }
        if let Some(health) = change {
            self.publish(key, Some(health), "no check".into());
        }
        if other_check {
            let at = self.entries.get(&key).and_then(|e| match e.state {
                State::Idle => e.machine.urgent_check(now(), e.started),
                _ => None,
            });
            self.plan(key, at);
        }
    }

    fn seed(&mut self, name: &BackendName, health: Health) {
        let Some(&key) = self.names.get(name) else {
            return;
        };
        let change = self
            .entries
            .get_mut(&key)
            .and_then(|entry| entry.machine.seed(health));
        if change.is_some() {
            let reason = format!("was {health} before the restart");
            self.publish(key, change, reason.into());
        }
    }

    fn sign(&mut self, name: &BackendName, sign: Sign, count: u32) {
        let Some(&key) = self.names.get(name) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let at = now();
        {
            let mut status = lock(&entry.cell);
            let total = match sign {
                Sign::Refused => &mut status.refused,
                Sign::Unanswered => &mut status.unanswered,
            };
            *total += u64::from(count);
        }
        let counts = entry.machine.counts(sign) && entry.machine.health() == Health::Up;
        if !counts {
            return;
        }
        let change = entry.machine.on_sign(at, sign, count);
        let timer = entry.machine.timer();
        let sooner = entry
            .machine
            .urgent_check(at, entry.started)
            .filter(|_| matches!(entry.state, State::Idle))
            .filter(|urgent| entry.due.is_none_or(|due| *urgent < due));
        if change.is_some() {
            let points = entry.machine.down_by();
            let reason = format!(
                "real connections failed: {} refused, {} unanswered, and {} failed checks",
                points.refused, points.unanswered, points.checks
            );
            self.publish(key, change, reason.into());
        }
        if let Some(at) = sooner.or(timer) {
            self.plan(key, Some(at));
        }
    }

    /// Sets the one moment at which an entry has something to do.
    fn plan(&mut self, key: Key, at: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.turn += 1;
        entry.due = at;
        if let Some(at) = at {
            self.heap.push(Reverse((at, key, entry.turn)));
        }
        // Void items are few, unless signs keep moving a due time.
        if self.heap.len() > 1024 + 4 * self.entries.len() {
            let entries = &self.entries;
            self.heap.retain(|Reverse((_, key, turn))| {
                entries.get(key).is_some_and(|entry| entry.turn == *turn)
            });
        }
    }

    fn start_due(&mut self) {
        let at = now();
        while self.running.len() < self.limits.running
            && let Some(key) = self.waiting.pop_front()
        {
            self.start(key, at);
        }
        while let Some(Reverse((due, key, turn))) = self.heap.peek().copied()
            && due <= at
        {
            self.heap.pop();
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            if entry.turn != turn {
                continue;
            }
            entry.due = None;
            if let Some(health) = entry.machine.on_timer(at) {
                self.publish(key, Some(health), "tried again: nothing checks it".into());
            } else if entry.machine.period(at).is_some() && matches!(entry.state, State::Idle) {
                if self.running.len() < self.limits.running {
                    self.start(key, at);
                } else {
                    entry.state = State::Waiting;
                    self.waiting.push_back(key);
                }
            }
        }
    }

    fn start(&mut self, key: Key, at: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.state = State::Idle;
        if entry.machine.period(at).is_none() {
            return;
        }
        let check = (self.probe)(Arc::clone(&entry.target));
        let task = self.running.spawn(check);
        self.tasks.insert(task.id(), key);
        entry.started = Some(at);
        entry.state = State::Running(task);
    }

    fn finish(&mut self, result: Result<(tokio::task::Id, Report), JoinError>) {
        let (id, report) = match result {
            Ok((id, report)) => (id, report),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a health check panicked");
                }
                let report = Report {
                    outcome: Outcome::Inconclusive,
                    text: "the check broke off".into(),
                    duration: Duration::ZERO,
                };
                (error.id(), report)
            }
        };
        // A task that was replaced or whose backend is gone is not in the list.
        let Some(key) = self.tasks.remove(&id) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.state = State::Idle;
        let at = now();
        let change = entry.machine.on_result(at, report.outcome);
        let reason = match change {
            Some(Health::Down) => {
                let points = entry.machine.down_by();
                let signs = points.refused.saturating_add(points.unanswered);
                let with = match signs {
                    0 => String::new(),
                    n => format!(", and {n} real connections failed"),
                };
                format!("{} ({} checks in a row){with}", report.text, points.checks).into()
            }
            _ => Arc::clone(&report.text),
        };
        {
            let failed = report.outcome == Outcome::Failure;
            let mut status = lock(&entry.cell);
            if failed && status.checks == 0 && entry.machine.health() == Health::Down {
                // It was down for want of a check; from now on it is for this.
                status.reason = Arc::clone(&report.text);
            }
            status.checks += 1;
            status.failed_checks += u64::from(failed);
            status.last = Some(report.text);
            status.last_duration = Some(report.duration);
        }
        self.publish(key, change, reason);
        let next = self.entries.get_mut(&key).and_then(|entry| {
            let started = entry.started.unwrap_or(at);
            entry.machine.next_check(at, started)
        });
        self.plan(key, next);
    }

    /// Brings the status up to date, and tells of a change.
    fn publish(&mut self, key: Key, change: Option<Health>, reason: Arc<str>) {
        let Some(entry) = self.entries.get(&key) else {
            return;
        };
        let at = now();
        let mut status = lock(&entry.cell);
        status.failures = entry.machine.failures();
        status.successes = entry.machine.successes();
        let Some(health) = change else {
            return;
        };
        status.health = health;
        status.since = at;
        status.reason = Arc::clone(&reason);
        status.down_by = entry.machine.down_by();
        drop(status);
        let name = entry.target.name.clone();
        tracing::info!(backend = %name, %health, %reason, "health changed");
        self.shared.tell(Verdict {
            name,
            health,
            reason,
            at,
        });
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
