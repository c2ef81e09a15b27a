//! Requests that wait for a place at a backend with `max_connections`: one queue per pool,
//! first come first served, over all threads.
//!
//! ```text
//! no place ------> waiting (by number) --- a place is free, first who can use it ---> granted
//!                     |        ^                                                        |
//!      gave up (drop) |        | again (a backend was ejected)      taken by its future | or dropped:
//!                     v        |                                                        v the place goes on
//! ```
//!
//! Who leaves a backend gives its place back first and looks for waiting ones then; who
//! comes announces itself first and looks for places then, both sequentially consistent: no
//! place stays free while somebody waits for it. Places are given out under the lock, in
//! order; while anybody waits, those who come go through the queue as well, so that nobody
//! overtakes. A granted place belongs to the waiter: when its future is dropped before it
//! saw the grant, the place goes on to the next.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use smallvec::SmallVec;

use super::lease::release;
use super::live::BackendLive;
use super::view::PoolView;

/// The queue of one pool.
#[derive(Debug, Default)]
pub struct Queue {
    /// Length of [`State::waiting`]; what the common path looks at instead of the lock.
    waiting: AtomicUsize,
    state: Mutex<State>,
    /// Most that ever waited at once.
    pub most: AtomicU64,
    /// Requests that had to wait.
    pub waited: AtomicU64,
    /// Requests that found it full.
    pub full: AtomicU64,
    /// Requests that waited too long.
    pub timeouts: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the next to come.
    next: u64,
    waiting: BTreeMap<u64, Entry>,
    /// By number: place of the backend in the waiter's own view.
    granted: BTreeMap<u64, usize>,
}

#[derive(Debug)]
struct Entry {
    view: Arc<PoolView>,
    want: Want,
    waker: Option<Waker>,
    /// What it wants should be decided anew.
    again: bool,
}

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// This backend.
    One(usize),
    /// Any of these.
    Any(Box<[u32]>),
}

/// Why a waiter was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// It has a place at this backend, counted already.
    Granted(usize),
    /// What it wants is to be decided anew, as a backend was ejected.
    Again,
}

/// A place in the queue; dropping it leaves the queue.
#[derive(Debug)]
pub(super) struct Waiter {
    view: Arc<PoolView>,
    number: u64,
    done: bool,
}

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Wakers to be called without the lock.
type Wakers = SmallVec<[Waker; 4]>;

impl Queue {
    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places that were granted and not taken yet.
    #[cfg(test)]
    pub(super) fn granted(&self) -> usize {
        self.lock().granted.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the queue of the view's pool. Places that are free already are given out at
    /// once, to whoever is first.
    pub(super) fn join(view: &Arc<PoolView>, want: Want) -> Result<Waiter, Full> {
        let queue = &view.live.queue;
        let mut state = queue.lock();
        let number = state.next;
        state.next += 1;
        let entry = Entry {
            view: Arc::clone(view),
            want: want.clone(),
            waker: None,
            again: false,
        };
        state.waiting.insert(number, entry);
        let waiting = queue.waiting.fetch_add(1, SeqCst) + 1;
        let wakers = queue.serve_wanted(&mut state, view, &want);
        let full = waiting > view.pool.http.queue.length && state.waiting.contains_key(&number);
        if full {
            state.waiting.remove(&number);
            queue.waiting.fetch_sub(1, SeqCst);
            queue.full.fetch_add(1, Relaxed);
        } else if state.waiting.contains_key(&number) {
            queue.waited.fetch_add(1, Relaxed);
            queue.most.fetch_max(waiting as u64, Relaxed);
        }
        drop(state);
        wake(wakers);
        match full {
            true => Err(Full),
            false => Ok(Waiter {
                view: Arc::clone(view),
                number,
                done: false,
            }),
        }
    }

    /// Gives free places of `backend` to those who wait for them.
    pub(super) fn serve(&self, backend: &Arc<BackendLive>) {
        let mut state = self.lock();
        let wakers = self.serve_locked(&mut state, backend);
        drop(state);
        wake(wakers);
    }

    fn serve_wanted(&self, state: &mut State, view: &PoolView, want: &Want) -> Wakers {
        let mut wakers = Wakers::new();
        let mut one = |index: usize| {
            let backend = &view.backends[index];
            if backend.live.has_place(backend.http.max_connections) {
                wakers.extend(self.serve_locked(state, &backend.live));
            }
        };
        match want {
            Want::One(index) => one(*index),
            Want::Any(indices) => indices.iter().for_each(|&index| one(index as usize)),
        }
        wakers
    }

    fn serve_locked(&self, state: &mut State, backend: &Arc<BackendLive>) -> Wakers {
        let mut wakers = Wakers::new();
        loop {
            let first = state
                .waiting
                .iter()
                .find_map(|(&number, entry)| Some((number, entry.place_of(backend)?)));
            let Some((number, index)) = first else { break };
            let max = state.waiting[&number].view.backends[index]
                .http
                .max_connections;
            if !backend.enter(max) {
                break;
            }
            let entry = state.waiting.remove(&number);
            self.waiting.fetch_sub(1, SeqCst);
            state.granted.insert(number, index);
            wakers.extend(entry.and_then(|e| e.waker));
        }
        wakers
    }

    /// Has everybody decide anew what it waits for.
    pub fn reconsider(&self) {
        if self.is_empty() {
            return;
        }
        let mut wakers = Wakers::new();
        for entry in self.lock().waiting.values_mut() {
            entry.again = true;
            wakers.extend(entry.waker.take());
        }
        wake(wakers);
    }
}

fn wake(wakers: Wakers) {
    wakers.into_iter().for_each(Waker::wake);
}

impl Entry {
    /// Where `backend` is in the entry's view, if it would do.
    fn place_of(&self, backend: &Arc<BackendLive>) -> Option<usize> {
        let is = |index: usize| Arc::ptr_eq(&self.view.backends[index].live, backend);
        match &self.want {
            Want::One(index) => is(*index).then_some(*index),
            Want::Any(indices) => indices
                .iter()
                .map(|&index| index as usize)
                .find(|&index| is(index)),
        }
    }
}

impl Waiter {
    /// Waits for a place, or for a reason to decide anew.
    pub(super) async fn woken(&mut self) -> Woken {
        poll_fn(|context| {
            let mut state = self.view.live.queue.lock();
            if let Some(index) = state.granted.remove(&self.number) {
                self.done = true;
                return Poll::Ready(Woken::Granted(index));
            }
            let Some(entry) = state.waiting.get_mut(&self.number) else {
                // Polled after it was granted; there is nothing to wait for any more.
                return Poll::Pending;
            };
            if std::mem::take(&mut entry.again) {
                return Poll::Ready(Woken::Again);
            }
            match &mut entry.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for something else from now on, without losing its turn.
    pub(super) fn want(&self, want: Want) {
        let queue = &self.view.live.queue;
        let mut state = queue.lock();
        let Some(entry) = state.waiting.get_mut(&self.number) else {
            return; // Granted meanwhile.
        };
        entry.want = want.clone();
        let wakers = queue.serve_wanted(&mut state, &self.view, &want);
        drop(state);
        wake(wakers);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let queue = &self.view.live.queue;
        let mut state = queue.lock();
        if state.waiting.remove(&self.number).is_some() {
            queue.waiting.fetch_sub(1, SeqCst);
            return;
        }
        let granted = state.granted.remove(&self.number);
        drop(state);
        if let Some(index) = granted {
            release(&self.view, index);
        }
    }
}
