//! What threads share about a pool while it works: counters, places in flight, observed
//! failures. Outlives the views; a new view of the same pool takes it over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::budget::Budget;
use super::clock;
use super::queue::Queue;
use crate::model::http::Observe;
use crate::proxy::sticky::{Memory, Style};

/// Of one backend. On cache lines of its own: every request writes here.
#[derive(Debug)]
#[repr(align(128))]
pub struct BackendLive {
    /// Name; with the address it says whether a new view's backend is this one.
    pub name: Arc<str>,
    /// Address.
    pub address: SocketAddr,
    in_flight: AtomicU32,
    /// Failures in a row.
    row: AtomicU32,
    /// 0: in. Otherwise ejected until then (microseconds of [`clock`]), and after that
    /// waiting for a trial.
    out_until: AtomicU64,
    /// Doublings of the last ejection's time.
    level: AtomicU32,
    /// When the last ejection ended well.
    back_since: AtomicU64,
    /// Part of slow start: what the backend has saved up for its next turn, 1024 a turn.
    pub(super) warmth: AtomicU32,
    /// Requests sent to it, retries included.
    pub requests: AtomicU64,
    /// Those that were another backend's first.
    pub retries: AtomicU64,
    /// Connections that failed.
    pub connect_failures: AtomicU64,
    /// Responses that broke off.
    pub broken: AtomicU64,
    /// Responses that did not come in time.
    pub timeouts: AtomicU64,
    /// Clients that went away.
    pub aborted: AtomicU64,
    /// Responses by the first digit of their status; the first counts what has none.
    pub statuses: [AtomicU64; 6],
    /// Times that observed failures ejected it.
    pub ejections: AtomicU64,
    /// How it issues session ids.
    pub style: Style,
}

/// How a request to a backend went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response's head with this status came.
    Answered(u16),
    /// No connection, TLS included; in time or at all.
    ConnectFailed,
    /// The connection broke before or within the response, or what came is not HTTP.
    Broken,
    /// No response in time, or a gap in it that was too long.
    TimedOut,
    /// The client went away; says nothing about the backend.
    ClientAborted,
}

/// What a report changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The backend is out from now on.
    Ejected,
    /// It is back.
    Returned,
}

impl BackendLive {
    /// Fresh, with all at zero.
    pub fn new(name: Arc<str>, address: SocketAddr) -> Self {
        Self {
            name,
            address,
            in_flight: AtomicU32::new(0),
            row: AtomicU32::new(0),
            out_until: AtomicU64::new(0),
            level: AtomicU32::new(0),
            back_since: AtomicU64::new(0),
            warmth: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            statuses: Default::default(),
            ejections: AtomicU64::new(0),
            style: Style::default(),
        }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Failures of every kind that [`Observe`] may count.
    pub fn failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
            + self.broken.load(Relaxed)
            + self.timeouts.load(Relaxed)
    }

    /// Takes a place if there are fewer than `max` in flight.
    ///
    /// `SeqCst` here and in [`Self::leave`]: together with the queue's counter of those who
    /// wait it makes sure that either the leaving one sees the waiting one or the waiting
    /// one sees the free place.
    pub(super) fn enter(&self, max: Option<u32>) -> bool {
        match max {
            None => {
                self.in_flight.fetch_add(1, SeqCst);
                true
            }
            Some(max) => self
                .in_flight
                .fetch_update(SeqCst, SeqCst, |n| (n < max).then_some(n + 1))
                .is_ok(),
        }
    }

    /// Gives a place back.
    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
    }

    /// Whether there is a place; only a hint while others come and go.
    pub(super) fn has_place(&self, max: Option<u32>) -> bool {
        max.is_none_or(|max| self.in_flight.load(SeqCst) < max)
    }

    /// 0, or until when the backend is ejected (microseconds of [`clock`]); a moment in the
    /// past means that it waits for a trial.
    pub fn ejected_until(&self) -> u64 {
        self.out_until.load(Relaxed)
    }

    /// Whether a request may be the trial that decides about the return; at most one is at
    /// a time. It has to be answered for by [`Self::report`] with `trial`; one that never
    /// is blocks further trials for the first ejection's time only.
    pub(super) fn claim_trial(&self, observe: &Observe, now: u64) -> bool {
        let until = self.out_until.load(Relaxed);
        until != 0
            && now >= until
            && self
                .out_until
                .compare_exchange(
                    until,
                    now + clock::micros(observe.ejection).max(1),
                    Relaxed,
                    Relaxed,
                )
                .is_ok()
    }

    /// Counts what happened and decides about ejection and return.
    pub(super) fn report(
        &self,
        outcome: Outcome,
        observe: Option<&Observe>,
        trial: bool,
        now: impl FnOnce() -> u64,
    ) -> Change {
        let failed = match outcome {
            Outcome::Answered(status) => {
                let class = usize::from(status / 100);
                let class = if class < self.statuses.len() {
                    class
                } else {
                    0
                };
                self.statuses[class].fetch_add(1, Relaxed);
                Some(status >= 500 && observe.is_some_and(|o| o.status))
            }
            Outcome::ConnectFailed => {
                self.connect_failures.fetch_add(1, Relaxed);
                Some(true)
            }
            Outcome::Broken => {
                self.broken.fetch_add(1, Relaxed);
                Some(true)
            }
            Outcome::TimedOut => {
                self.timeouts.fetch_add(1, Relaxed);
                Some(true)
            }
            Outcome::ClientAborted => {
                self.aborted.fetch_add(1, Relaxed);
                None
            }
        };
        let Some(observe) = observe else {
            return Change::None;
        };
        match failed {
            None => {
                if trial {
                    // Nothing was learned: the next request is the trial.
                    self.out_until.store(1, Relaxed);
                }
                Change::None
            }
            Some(false) => {
                // A look before the write, as this is the common case.
                if self.row.load(Relaxed) != 0 {
                    self.row.store(0, Relaxed);
                }
                if !trial {
                    return Change::None;
                }
                self.back_since.store(now(), Relaxed);
                self.out_until.store(0, Relaxed);
                Change::Returned
            }
            Some(true) => {
                let row = self.row.fetch_add(1, Relaxed) + 1;
                if !trial && row < observe.failures.max(1) {
                    return Change::None;
                }
                self.eject(observe, trial, now())
            }
        }
    }

    fn eject(&self, observe: &Observe, trial: bool, now: u64) -> Change {
        let until = self.out_until.load(Relaxed);
        if until != 0 && !trial {
            // Sent before the ejection; it knows nothing new.
            return Change::None;
        }
        let longest = clock::micros(observe.max_ejection);
        let back = self.back_since.load(Relaxed);
        let soon = trial || (back != 0 && now.saturating_sub(back) <= longest);
        let level = match soon {
            true => self.level.load(Relaxed).saturating_add(1),
            false => 0,
        };
        let time = clock::micros(observe.ejection)
            .saturating_mul(1 << level.min(32))
            .min(longest)
            .max(1);
        // Of several threads that get here at once, one decides.
        let decided =
            self.out_until
                .compare_exchange(until, now.saturating_add(time), Relaxed, Relaxed);
        if decided.is_err() {
            return Change::None;
        }
        self.level.store(level, Relaxed);
        self.row.store(0, Relaxed);
        self.ejections.fetch_add(1, Relaxed);
        Change::Ejected
    }
}

/// Of one pool.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PoolLive {
    /// Next slot of the ring.
    pub(super) cursor: AtomicU64,
    /// Requests that wait for a backend with room.
    pub queue: Queue,
    /// What retries may cost.
    pub(super) budget: Budget,
    /// What stickiness remembers.
    pub sticky: Memory,
    /// Requests that no backend was usable for.
    pub none_usable: AtomicU64,
    /// Requests whose session's backend was not usable, and no other was allowed.
    pub forced: AtomicU64,
    /// Retries that the budget refused.
    pub retries_refused: AtomicU64,
}

impl PoolLive {
    /// Whether a request may be repeated; takes its price from the budget.
    pub fn may_retry(&self) -> bool {
        let may = self.budget.withdraw(clock::now());
        if !may {
            self.retries_refused.fetch_add(1, Relaxed);
        }
        may
    }
}
