//! Coarse deadlines: one list per thread, looked through twenty times a second.
//!
//! A request sets several deadlines and nearly always drops them unused. A timer of the
//! runtime is made for few that fire exactly; here setting one is a store into a slab, and
//! the clock is read by whoever sets it and once per tick. Deadlines fire late by up to
//! [`TICK`], never early.

use std::cell::RefCell;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Longest delay of a deadline.
pub const TICK: Duration = Duration::from_millis(50);

/// Ticks without a deadline after which the ticking task ends.
const IDLE_TICKS: u32 = 40;

thread_local! {
    static TICKER: RefCell<Ticker> = const { RefCell::new(Ticker::new()) };
}

struct Ticker {
    /// The time of the last tick.
    now: Option<Instant>,
    entries: Vec<Entry>,
    free: Vec<usize>,
    running: bool,
}

struct Entry {
    due: Instant,
    waker: Option<Waker>,
}

impl Ticker {
    const fn new() -> Self {
        Self {
            now: None,
            entries: Vec::new(),
            free: Vec::new(),
            running: false,
        }
    }

    fn pending(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

/// A deadline on the thread that made it. Costs nothing until it is polled.
#[derive(Debug)]
pub struct Timer {
    due: Option<Instant>,
    slot: Option<usize>,
    // A slot means nothing on another thread.
    _local: std::marker::PhantomData<*const ()>,
}

impl Timer {
    /// Due after this time; never, when the clock can't tell such a time.
    pub fn after(time: Duration) -> Self {
        Self::at(Instant::now().checked_add(time))
    }

    /// Due at this time; `None` is never.
    pub const fn at(due: Option<Instant>) -> Self {
        Self {
            due,
            slot: None,
            _local: std::marker::PhantomData,
        }
    }

    /// One that never fires.
    pub const fn never() -> Self {
        Self::at(None)
    }

    /// Due after this time from now.
    pub fn restart(&mut self, time: Duration) {
        self.due = Instant::now().checked_add(time);
        if let (Some(due), Some(slot)) = (self.due, self.slot) {
            TICKER.with_borrow_mut(|ticker| ticker.entries[slot].due = due);
        }
        if self.due.is_none() {
            self.stop();
        }
    }

    /// Never due, until it is started again.
    pub fn stop(&mut self) {
        self.due = None;
        self.release();
    }

    /// Whether it has been started.
    pub fn is_running(&self) -> bool {
        self.due.is_some()
    }

    /// Ready when the deadline has passed; the task is woken then. Has to be called on a
    /// tokio `LocalSet`.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else {
            return Poll::Pending;
        };
        let start = TICKER.with_borrow_mut(|ticker| {
            if ticker.now.is_some_and(|now| now >= due) {
                return None;
            }
            match self.slot {
                Some(slot) => match &mut ticker.entries[slot].waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                },
                None => {
                    let entry = Entry {
                        due,
                        waker: Some(cx.waker().clone()),
                    };
                    self.slot = Some(match ticker.free.pop() {
                        Some(slot) => {
                            ticker.entries[slot] = entry;
                            slot
                        }
                        None => {
                            ticker.entries.push(entry);
                            ticker.entries.len() - 1
                        }
                    });
                }
            }
            Some(!std::mem::replace(&mut ticker.running, true))
        });
        match start {
            None => return Poll::Ready(()),
            Some(true) => _ = tokio::task::spawn_local(tick(Running)),
            Some(false) => {}
        }
        Poll::Pending
    }

    fn release(&mut self) {
        if let Some(slot) = self.slot.take() {
            // At the end of the thread there is nothing left to release.
            let _ = TICKER.try_with(|ticker| {
                if let Ok(mut ticker) = ticker.try_borrow_mut() {
                    ticker.entries[slot].waker = None;
                    ticker.free.push(slot);
                }
            });
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.release();
    }
}

/// Says that the ticking task is gone, in whatever way it goes.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        let _ = TICKER.try_with(|ticker| {
            if let Ok(mut ticker) = ticker.try_borrow_mut() {
                ticker.running = false;
            }
        });
    }
}

async fn tick(_running: Running) {
    let mut idle = 0;
    let mut expired = Vec::new();
    while idle < IDLE_TICKS {
        tokio::time::sleep(TICK).await;
        let now = Instant::now();
        TICKER.with_borrow_mut(|ticker| {
            ticker.now = Some(now);
            idle = match ticker.pending() {
                0 => idle + 1,
                _ => 0,
            };
            for entry in &mut ticker.entries {
                if entry.due <= now
                    && let Some(waker) = entry.waker.take()
                {
                    expired.push(waker);
                }
            }
            // A burst's memory goes when the burst has gone.
            if idle == IDLE_TICKS {
                ticker.entries = Vec::new();
                ticker.free = Vec::new();
            }
        });
        // Outside: a woken task may run drop code of its own.
        for waker in expired.drain(..) {
            waker.wake();
        }
    }
}

/// Runs a future for at most this time.
///
/// # Errors
/// The time has passed.
pub async fn within<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut timer = Timer::after(time);
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        timer.poll_expired(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// A time has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too late")]
pub struct Elapsed;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::testing::local;

    #[test]
    fn fires_late_but_never_early() {
        local(async {
            let began = Instant::now();
            let time = Duration::from_millis(120);
            assert_eq!(
                within(time, std::future::pending::<()>()).await,
                Err(Elapsed)
            );
            assert!(began.elapsed() >= time);
            assert_eq!(within(time, async { 7 }).await, Ok(7));
        });
        // What the first runtime left does not keep a second one from ticking.
        local(async {
            let mut timer = Timer::after(Duration::from_millis(10));
            std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
        });
    }

    #[test]
    fn a_restart_puts_it_off_and_slots_are_used_again() {
        local(async {
            let mut timer = Timer::after(Duration::from_millis(60));
            let mut rounds = 0;
            let began = Instant::now();
            std::future::poll_fn(|cx| {
                rounds += 1;
                if rounds == 1 {
                    assert!(timer.poll_expired(cx).is_pending());
                    timer.restart(Duration::from_millis(200));
                }
                timer.poll_expired(cx)
            })
            .await;
            assert!(began.elapsed() >= Duration::from_millis(200));
            drop(timer);
            for _ in 0..100 {
                let mut timer = Timer::after(Duration::from_secs(5));
                std::future::poll_fn(|cx| {
                    assert!(timer.poll_expired(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            TICKER.with_borrow(|ticker| assert!(ticker.entries.len() <= 2));
        });
    }
}
