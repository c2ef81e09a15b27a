//! Taking a place at a backend, and giving it back: [`acquire`] and [`Lease`].

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::choose::{Aim, Usable};
use super::clock;
use super::hash;
use super::live::{Change, Outcome};
use super::policy;
use super::queue::{Queue, Waiter, Want, Woken};
use super::view::{BackendView, PoolView};
use super::wish::Wish;
use crate::model::http::HttpBalance;
use crate::proxy::sticky::Affinity;

/// Why a request gets no backend. All of them are answered with 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    /// Nobody is usable.
    #[error("no backend of the pool is usable")]
    NoneUsable,
    /// Whom the session names is not usable, and the pool allows no other.
    #[error("the backend of the session is not usable, and force allows no other")]
    Forced,
    /// All are at their limit, and as many wait as may.
    #[error("all usable backends are at their limit and the queue is full")]
    QueueFull,
    /// Waited as long as one may.
    #[error("no backend had room within the queue's timeout")]
    QueueTimeout,
}

/// A request's place at a backend. In flight until it is dropped.
#[derive(Debug)]
pub struct Lease {
    view: Arc<PoolView>,
    index: usize,
    queued: Option<Duration>,
    /// The outcome decides whether the backend returns; until it was told.
    trial: Cell<bool>,
}

/// A place that was taken and is not yet a [`Lease`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub index: usize,
    pub trial: bool,
}

/// Takes a place at `index`. `None` when it is full, or when others wait for it.
pub(super) fn take(view: &PoolView, usable: &Usable<'_>, index: usize) -> Option<Place> {
    let backend = &view.backends[index];
    let max = backend.http.max_connections;
    if max.is_some() && !view.live.queue.is_empty() {
        return None;
    }
    if !backend.live.enter(max) {
        return None;
    }
    Some(Place {
        index,
        trial: is_trial(view, index, || usable.now()),
    })
}

/// Whether this request is the one that decides about an ejected backend's return. Others
/// that come at the same moment go there as well: they were allowed to before.
fn is_trial(view: &PoolView, index: usize, now: impl FnOnce() -> u64) -> bool {
    let live = &view.backends[index].live;
    match view.observe() {
        Some(observe) if live.ejected_until() != 0 => live.claim_trial(observe, now()),
        _ => false,
    }
}

/// Gives a place back, to the next who waits if there is one.
pub(super) fn release(view: &PoolView, index: usize) {
    let live = &view.backends[index].live;
    live.leave();
    if !view.live.queue.is_empty() {
        view.live.queue.serve(live);
    }
}

/// Takes a place at the backend that the session asks for, or that the pool's policy chooses.
/// Waits in the pool's queue while all who would do are at their limit. `tried` are those
/// that failed this request; they are chosen again only when there is no other.
///
/// May be dropped at any time: neither a place nor a turn is lost.
///
/// # Errors
/// [`NoBackend`].
pub async fn acquire(
    view: &Arc<PoolView>,
    affinity: &Affinity,
    client: IpAddr,
    tried: &[usize],
) -> Result<Lease, NoBackend> {
    let wish = affinity.wish();
    if tried.is_empty() {
        let percent = view.pool.http.retries.budget_percent;
        view.live.budget.deposit(percent);
    }
    let source = (view.pool.http.balance == HttpBalance::Source).then(|| hash::address(client));
    let want = match attempt(view, wish, source, tried).inspect_err(|e| count(view, *e))? {
        Ok(place) => return Ok(Lease::new(view, place, None, tried)),
        Err(want) => want,
    };
    // From here on the request waits; allocations and locks are paid for by that.
    let since = tokio::time::Instant::now();
    let mut waiter = Queue::join(view, want).map_err(|_| NoBackend::QueueFull)?;
    let place = tokio::time::timeout(
        view.pool.http.queue.timeout,
        wait(view, &mut waiter, wish, source, tried),
    );
    match place.await {
        Ok(Ok(place)) => Ok(Lease::new(view, place, Some(since.elapsed()), tried)),
        Ok(Err(error)) => {
            count(view, error);
            Err(error)
        }
        Err(_) => {
            view.live.queue.timeouts.fetch_add(1, Relaxed);
            Err(NoBackend::QueueTimeout)
        }
    }
}

fn count(view: &PoolView, error: NoBackend) {
    match error {
        NoBackend::NoneUsable => view.live.none_usable.fetch_add(1, Relaxed),
        NoBackend::Forced => view.live.forced.fetch_add(1, Relaxed),
        // Counted where they happen.
        NoBackend::QueueFull | NoBackend::QueueTimeout => return,
    };
}

/// Takes a place at once, or says what to wait for.
fn attempt(
    view: &PoolView,
    wish: &Wish,
    source: Option<u64>,
    tried: &[usize],
) -> Result<Result<Place, Want>, NoBackend> {
    let usable = Usable::new(view, tried);
    let aim = usable.aim(wish, source)?;
    let place = match aim {
        Aim::One(index) => take(view, &usable, index),
        Aim::Group(group, lenience) => policy::pick(view, &usable, group, lenience),
    };
    Ok(place.ok_or_else(|| want(&usable, aim)))
}

fn want(usable: &Usable<'_>, aim: Aim<'_>) -> Want {
    match aim {
        Aim::One(index) => Want::One(index),
        Aim::Group(group, lenience) => {
            let members = group.members.iter().copied();
            Want::Any(
                members
                    .filter(|&i| usable.fresh(i as usize, lenience))
                    .collect(),
            )
        }
    }
}

async fn wait(
    view: &Arc<PoolView>,
    waiter: &mut Waiter,
    wish: &Wish,
    source: Option<u64>,
    tried: &[usize],
) -> Result<Place, NoBackend> {
    loop {
        match waiter.woken().await {
            Woken::Granted(index) => {
                let trial = is_trial(view, index, clock::now);
                return Ok(Place { index, trial });
            }
            Woken::Again => {
                let usable = Usable::new(view, tried);
                let aim = usable.aim(wish, source)?;
                waiter.want(want(&usable, aim));
            }
        }
    }
}

impl Lease {
    fn new(view: &Arc<PoolView>, place: Place, queued: Option<Duration>, tried: &[usize]) -> Self {
        let live = &view.backends[place.index].live;
        live.requests.fetch_add(1, Relaxed);
        if !tried.is_empty() {
            live.retries.fetch_add(1, Relaxed);
        }
        Self {
            view: Arc::clone(view),
            index: place.index,
            queued,
            trial: Cell::new(place.trial),
        }
    }

    /// Place of the backend in the view.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The backend.
    pub fn backend(&self) -> &BackendView {
        &self.view.backends[self.index]
    }

    /// The view that the place was taken in.
    pub fn view(&self) -> &Arc<PoolView> {
        &self.view
    }

    /// How long it took to get the place, if there was a queue.
    pub fn queued(&self) -> Option<Duration> {
        self.queued
    }

    /// Tells how it went. May be told more than once: `Answered` when the head came, and
    /// `Broken` when the body then broke off.
    pub fn report(&self, outcome: Outcome) {
        let change =
            self.backend()
                .live
                .report(outcome, self.view.observe(), self.trial.take(), clock::now);
        if change != Change::None {
            // Who waits for this backend, or for others because of it, chooses anew.
            self.view.live.queue.reconsider();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.trial.get() {
            self.report(Outcome::ClientAborted);
        }
        release(&self.view, self.index);
    }
}
