//! What the prober's task shares with the rest of the agent: the inbox for
//! commands and signs, the outbox for verdicts, the table of statuses.
//!
//! All three are bounded by the number of backends, whatever the rate: signs of
//! one backend are summed up until the task takes them, and of verdicts on one
//! backend only the newest is kept.

use super::health::{Points, Sign};
use super::{Target, Verdict};
use crate::model::{BackendName, Health};
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What `balancer status` shows of one backend's checks.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeStatus {
    /// Up or down.
    pub health: Health,
    /// Since when.
    pub since: Instant,
    /// Why.
    pub reason: Arc<str>,
    /// What the last check found; `None` before the first.
    pub last: Option<Arc<str>>,
    /// How long the last check took.
    pub last_duration: Option<Duration>,
    /// Failed checks in a row.
    pub failures: u32,
    /// Successful checks in a row.
    pub successes: u32,
    /// Checks made.
    pub checks: u64,
    /// Failed checks among them.
    pub failed_checks: u64,
    /// Refused SYNs told of, counted or not.
    pub refused: u64,
    /// Unanswered SYNs told of, counted or not.
    pub unanswered: u64,
    /// What took it down the last time.
    pub down_by: Points,
}

pub(super) type StatusCell = Arc<Mutex<ProbeStatus>>;

#[derive(Debug, Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    pub wake: Notify,
    pub statuses: ArcSwap<BTreeMap<BackendName, StatusCell>>,
    outbox: Mutex<Outbox>,
    told: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The wanted targets, when they have changed; only the newest list counts.
    pub targets: Option<Vec<Target>>,
    /// Newest per backend.
    pub seeds: HashMap<BackendName, Health>,
    /// Sums per backend and kind.
    pub signs: HashMap<(BackendName, Sign), u32>,
}

#[derive(Debug, Default)]
struct Outbox {
    order: Vec<BackendName>,
    newest: HashMap<BackendName, Verdict>,
}

impl Shared {
    pub fn inbox(&self) -> Inbox {
        std::mem::take(&mut *lock(&self.inbox))
    }

    pub fn tell(&self, verdict: Verdict) {
        let mut outbox = lock(&self.outbox);
        if outbox
            .newest
            .insert(verdict.name.clone(), verdict.clone())
            .is_none()
        {
            outbox.order.push(verdict.name);
        }
        drop(outbox);
        self.told.notify_one();
    }

    /// No verdict on a backend that is gone.
    pub fn forget(&self, name: &BackendName) {
        let mut outbox = lock(&self.outbox);
        if outbox.newest.remove(name).is_some() {
            outbox.order.retain(|n| n != name);
        }
    }
}

/// Speaks to the prober, from any thread; cheap to clone.
#[derive(Clone, Debug)]
pub struct ProberHandle {
    pub(super) shared: Arc<Shared>,
}

impl ProberHandle {
    /// Makes `targets` the backends that are watched. Unchanged ones keep their
    /// state and schedule; ones with a new check, wire or passive rule keep their
    /// health; ones with a new address are other servers and start anew; all
    /// others stop. Of equal names the last counts.
    pub fn configure(&self, targets: Vec<Target>) {
        lock(&self.shared.inbox).targets = Some(targets);
        self.shared.wake.notify_one();
    }

    /// Tells of `count` real connections to a backend that failed. Unknown names
    /// are ignored.
    pub fn sign(&self, name: &BackendName, sign: Sign, count: u32) {
        let mut inbox = lock(&self.shared.inbox);
        let sum = inbox.signs.entry((name.clone(), sign)).or_default();
        *sum = sum.saturating_add(count);
        drop(inbox);
        self.shared.wake.notify_one();
    }

    /// Says what the kernel tables have of a backend, when an agent takes them
    /// over: an up backend stays up until proved down. To be called before the
    /// [`Self::configure`] that names the backend; without effect on a backend
    /// that has results already.
    pub fn seed(&self, name: &BackendName, health: Health) {
        lock(&self.shared.inbox).seeds.insert(name.clone(), health);
        self.shared.wake.notify_one();
    }

    /// The status of every backend, copied without stopping the prober.
    pub fn snapshot(&self) -> BTreeMap<BackendName, ProbeStatus> {
        let statuses = self.shared.statuses.load_full();
        statuses
            .iter()
            .map(|(name, cell)| (name.clone(), lock(cell).clone()))
            .collect()
    }

    /// The status of one backend.
    pub fn status(&self, name: &BackendName) -> Option<ProbeStatus> {
        self.shared
            .statuses
            .load()
            .get(name)
            .map(|c| lock(c).clone())
    }
}

/// Where verdicts come out.
#[derive(Debug)]
pub struct Verdicts {
    pub(super) shared: Arc<Shared>,
}

impl Verdicts {
    /// All verdicts since the last call, oldest backend first, of each backend
    /// only the newest; waits until there is one. Safe to cancel.
    ///
    /// Every backend gets a verdict when it is added, and at every change.
    pub async fn recv(&mut self) -> Vec<Verdict> {
        loop {
            let verdicts = self.take();
            if !verdicts.is_empty() {
                return verdicts;
            }
            self.shared.told.notified().await;
        }
    }

    /// The same without waiting; may be empty.
    pub fn take(&mut self) -> Vec<Verdict> {
        let Outbox { order, mut newest } = std::mem::take(&mut *lock(&self.shared.outbox));
        order
            .iter()
            .filter_map(|name| newest.remove(name))
            .collect()
    }
}

/// A panic elsewhere leaves nothing half done here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
