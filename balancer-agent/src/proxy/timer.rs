//! Coarse time: one timer wheel per thread, in ticks of 50 ms.
//!
//! Requests and connections set many deadlines and nearly always drop them unused, or move
//! them further away. Making a [`Timer`], setting it before it is waited for, and putting it
//! off afterwards are single stores: a timer that was put off stays where it hangs and is
//! hung up again when that place comes by. No clock is read: the wheel knows the time of its
//! last turn, and [`ticks`] rounds up by what may have passed since.
//!
//! ```text
//! made -- nothing but a deadline --> waited for: an entry, hung into its slot --> due: woken
//!                                     ^    |                                       |
//!                                     +----+ put off                  dropped: the entry is free
//! ```
//!
//! The wheel turns, on a task of its own, while something hangs in it; an idle thread sleeps.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

/// Resolution.
pub const TICK: Duration = Duration::from_millis(50);

/// Slots; a timer further away than this many ticks comes by more than once.
const SLOTS: usize = 1024;

/// Turns without a timer after which the wheel stands still.
const IDLE_TURNS: u32 = 40;

/// No index.
const NONE: u32 = u32::MAX;

/// No deadline, and the place of a timer that hangs nowhere.
const NEVER: u64 = u64::MAX;

/// Nanoseconds of a tick; a second is a whole number of them.
const NANOS: u64 = TICK.as_nanos() as u64;
const PER_SECOND: u64 = 1_000_000_000 / NANOS;
const _: () = assert!(NANOS * PER_SECOND == 1_000_000_000);

thread_local! {
    static WHEEL: Wheel = const { Wheel::new() };
}

/// Ticks from [`now`] that surely last at least as long as `time`, and at most two ticks
/// longer than `time` in whole ticks.
pub fn ticks(time: Duration) -> u64 {
    // One for the present tick, of which a part has passed, and one for a turn that comes
    // late: the tasks that the thread has to see to before it may take that long.
    whole(time).saturating_add(2).min(NEVER / 2)
}

/// `time` in ticks, rounded up.
fn whole(time: Duration) -> u64 {
    let rest = u64::from(time.subsec_nanos()).div_ceil(NANOS);
    time.as_secs()
        .saturating_mul(PER_SECOND)
        .saturating_add(rest)
}

/// The present tick of this thread, as of the wheel's last turn.
pub fn now() -> u64 {
    WHEEL.with(Wheel::now)
}

/// Wakes everyone on this thread who waits for a timer, or has: something has changed that
/// all have to look at.
pub fn wake_all() {
    WHEEL.with(|wheel| {
        for entry in &wheel.inner.borrow().entries {
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    });
}

struct Wheel {
    /// When tick 0 began.
    start: Cell<Option<Instant>>,
    now: Cell<u64>,
    /// Whether the task that turns it is there.
    turning: Cell<bool>,
    inner: RefCell<Inner>,
}

struct Inner {
    /// First entry of each slot; none before the first timer.
    slots: Vec<u32>,
    entries: Vec<Entry>,
    /// First of the free entries, which are chained by `next`.
    free: u32,
    /// Entries that are not free, and those of them that hang.
    used: usize,
    hung: usize,
}

struct Entry {
    deadline: u64,
    /// Tick of the slot that the entry hangs in.
    hangs: u64,
    previous: u32,
    next: u32,
    waker: Option<Waker>,
}

impl Wheel {
    const fn new() -> Self {
        Self {
            start: Cell::new(None),
            now: Cell::new(0),
            turning: Cell::new(false),
            inner: RefCell::new(Inner {
                slots: Vec::new(),
                entries: Vec::new(),
                free: NONE,
                used: 0,
                hung: 0,
            }),
        }
    }

    fn now(&self) -> u64 {
        if !self.turning.get() {
            self.catch_up();
        }
        self.now.get()
    }

    fn start(&self) -> Instant {
        let start = self.start.get().unwrap_or_else(Instant::now);
        self.start.set(Some(start));
        start
    }

    /// Turns the wheel to the present, by the clock.
    #[cold]
    fn catch_up(&self) {
        let passed = self.start().elapsed();
        self.turn(passed.as_secs() * PER_SECOND + u64::from(passed.subsec_nanos()) / NANOS);
    }

    /// Has the wheel turned while something hangs in it.
    fn keep_turning(&self) {
        if !self.turning.replace(true) {
            self.catch_up();
            tokio::task::spawn_local(run(Turning));
        }
    }

    /// Turns the wheel to `now` and wakes whose deadline has come.
    fn turn(&self, now: u64) {
        let before = self.now.get();
        if now <= before {
            return;
        }
        self.now.set(now);
        let mut inner = self.inner.borrow_mut();
        if inner.hung == 0 {
            return;
        }
        // After a long standstill every slot is looked at once.
        let first = (before + 1).max(now.saturating_sub(SLOTS as u64 - 1));
        for tick in first..=now {
            let slot = slot(tick);
            let mut index = std::mem::replace(&mut inner.slots[slot], NONE);
            while index != NONE {
                let entry = &mut inner.entries[index as usize];
                let next = entry.next;
                let deadline = entry.deadline;
                entry.hangs = NEVER;
                (entry.previous, entry.next) = (NONE, NONE);
                if deadline <= now {
                    // Taken by reference: waking does not run the task here, nor drop it.
                    if let Some(waker) = &entry.waker {
                        waker.wake_by_ref();
                    }
                }
                inner.hung -= 1;
                if deadline > now && deadline != NEVER {
                    inner.hang(index, now);
                }
                index = next;
            }
        }
    }
}

fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

impl Inner {
    /// A loose entry.
    fn entry(&mut self, deadline: u64) -> u32 {
        let entry = Entry {
            deadline,
            hangs: NEVER,
            previous: NONE,
            next: NONE,
            waker: None,
        };
        self.used += 1;
        match self.free {
            NONE => {
                self.entries.push(entry);
                // Bounded by the connections and requests of a process.
                (self.entries.len() - 1) as u32
            }
            index => {
                self.free = self.entries[index as usize].next;
                self.entries[index as usize] = entry;
                index
            }
        }
    }

    /// Hangs a loose entry at its deadline, or as far away as the wheel reaches.
    fn hang(&mut self, index: u32, now: u64) {
        if self.slots.is_empty() {
            self.slots = vec![NONE; SLOTS];
        }
        let deadline = self.entries[index as usize].deadline;
        let tick = deadline.clamp(now + 1, now + SLOTS as u64 - 1);
        let next = std::mem::replace(&mut self.slots[slot(tick)], index);
        let entry = &mut self.entries[index as usize];
        entry.hangs = tick;
        entry.previous = NONE;
        entry.next = next;
        if next != NONE {
            self.entries[next as usize].previous = index;
        }
        self.hung += 1;
    }

    fn unhang(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let (hangs, previous, next) = (entry.hangs, entry.previous, entry.next);
        if hangs == NEVER {
            return;
        }
        entry.hangs = NEVER;
        (entry.previous, entry.next) = (NONE, NONE);
        match previous {
            NONE => self.slots[slot(hangs)] = next,
            p => self.entries[p as usize].next = next,
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        self.hung -= 1;
    }
}

/// Says that the task which turns the wheel is gone, in whatever way it goes.
struct Turning;

impl Drop for Turning {
    fn drop(&mut self) {
        let _ = WHEEL.try_with(|wheel| wheel.turning.set(false));
    }
}

async fn run(_turning: Turning) {
    // The next tick's begin; later ones follow from that.
    let next = WHEEL.with(|wheel| {
        let ticks = u32::try_from(wheel.now.get() + 1).unwrap_or(u32::MAX);
        wheel.start() + TICK.saturating_mul(ticks)
    });
    let mut interval = tokio::time::interval_at(next.into(), TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut idle = 0;
    while idle < IDLE_TURNS {
        interval.tick().await;
        idle = WHEEL.with(|wheel| {
            wheel.catch_up();
            match wheel.inner.borrow().hung {
                0 => idle + 1,
                _ => 0,
            }
        });
    }
    // A burst's memory goes when the burst has gone.
    WHEEL.with(|wheel| {
        let mut inner = wheel.inner.borrow_mut();
        if inner.used == 0 {
            inner.entries = Vec::new();
            inner.free = NONE;
        }
    });
}

/// A deadline, and who is woken at it. On the thread that made it.
#[derive(Debug)]
pub struct Timer {
    deadline: Cell<u64>,
    /// Once it is waited for.
    entry: Cell<u32>,
    // An entry means nothing on another thread.
    _local: PhantomData<*const ()>,
}

impl Timer {
    /// One that never fires, until it is set.
    pub const fn never() -> Self {
        Self {
            deadline: Cell::new(NEVER),
            entry: Cell::new(NONE),
            _local: PhantomData,
        }
    }

    /// Due after this time.
    pub fn after(time: Duration) -> Self {
        let timer = Self::never();
        timer.deadline.set(now() + ticks(time));
        timer
    }

    /// Due at this time; `None` is never.
    pub fn at(time: Option<Instant>) -> Self {
        let timer = Self::never();
        if let Some(time) = time {
            let start = WHEEL.with(Wheel::start);
            let deadline = whole(time.saturating_duration_since(start));
            timer.deadline.set(deadline.min(NEVER / 2));
        }
        timer
    }

    /// The present tick.
    pub fn now(&self) -> u64 {
        now()
    }

    /// Due after this time from now.
    pub fn restart(&self, time: Duration) {
        self.set(now() + ticks(time));
    }

    /// Sets the deadline.
    pub fn set(&self, deadline: u64) {
        self.deadline.set(deadline);
        let index = self.entry.get();
        if index == NONE {
            return;
        }
        WHEEL.with(|wheel| {
            let mut inner = wheel.inner.borrow_mut();
            let entry = &mut inner.entries[index as usize];
            entry.deadline = deadline;
            if entry.hangs > deadline {
                inner.unhang(index);
                inner.hang(index, wheel.now.get());
                drop(inner);
                wheel.keep_turning();
            }
        });
    }

    /// Moves the deadline to `deadline` unless it is sooner already.
    pub fn set_at_latest(&self, deadline: u64) {
        if self.deadline.get() > deadline {
            self.set(deadline);
        }
    }

    /// Takes the deadline away.
    pub fn clear(&self) {
        self.set(NEVER);
    }

    /// Whether it has a deadline.
    pub fn is_set(&self) -> bool {
        self.deadline.get() != NEVER
    }

    /// Whether the deadline has come.
    pub fn due(&self) -> bool {
        // Without a deadline the time need not be known.
        self.is_set() && self.deadline.get() <= now()
    }

    /// Who is woken, also by [`wake_all`]. Has to be called on a tokio `LocalSet`.
    pub fn register(&self, cx: &Context<'_>) {
        WHEEL.with(|wheel| {
            let mut inner = wheel.inner.borrow_mut();
            let mut index = self.entry.get();
            let mut hung = false;
            if index == NONE {
                let deadline = self.deadline.get();
                index = inner.entry(deadline);
                self.entry.set(index);
                if deadline != NEVER {
                    inner.hang(index, wheel.now.get());
                    hung = true;
                }
            }
            let waker = &mut inner.entries[index as usize].waker;
            let old = match waker {
                Some(waker) if waker.will_wake(cx.waker()) => None,
                waker => waker.replace(cx.waker().clone()),
            };
            drop(inner);
            // Outside: it may hold the last reference to a task, whose drop would come back.
            drop(old);
            if hung {
                wheel.keep_turning();
            }
        });
    }

    /// Ready when the deadline has come; the task is woken then. Has to be called on a tokio
    /// `LocalSet`.
    pub fn poll_expired(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_set() {
            return Poll::Pending;
        }
        if self.due() {
            return Poll::Ready(());
        }
        self.register(cx);
        Poll::Pending
    }

    /// Waits for the deadline, which is `time` from now.
    pub async fn sleep(&self, time: Duration) {
        self.restart(time);
        std::future::poll_fn(|cx| self.poll_expired(cx)).await;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let index = self.entry.get();
        if index == NONE {
            return;
        }
        // At the end of the thread there is nothing left to release.
        let waker = WHEEL.try_with(|wheel| {
            let mut inner = wheel.inner.borrow_mut();
            inner.unhang(index);
            inner.used -= 1;
            let free = std::mem::replace(&mut inner.free, index);
            let entry = &mut inner.entries[index as usize];
            entry.deadline = NEVER;
            entry.next = free;
            entry.waker.take()
        });
        // Outside, as above.
        drop(waker);
    }
}

/// Runs a future for at most this time.
///
/// # Errors
/// The time has passed.
pub async fn within<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let timer = Timer::after(time);
    let mut future = pin!(future);
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
mod tests;
