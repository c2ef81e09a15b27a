//! Coarse time: one timer wheel per thread, in ticks of 100 ms.
//!
//! Every connection has one [`Timer`]. Moving its deadline further away, which is what
//! nearly every request does, is one store: the timer stays where it hangs and is hung up
//! again when that place comes by. A timer costs 40 bytes, and nothing after it is dropped.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// Resolution: a timer fires up to one tick late.
pub const TICK: Duration = Duration::from_millis(100);

/// Slots; a timer further away than this many ticks comes by more than once.
const SLOTS: usize = 1024;

/// No index.
const NONE: u32 = u32::MAX;

/// No deadline, and the place of a timer that hangs nowhere.
const NEVER: u64 = u64::MAX;

/// Ticks that surely last at least as long as `time`.
pub fn ticks(time: Duration) -> u64 {
    let ticks = time.as_nanos().div_ceil(TICK.as_nanos());
    // The present tick has partly passed.
    u64::try_from(ticks).unwrap_or(NEVER / 2).min(NEVER / 2) + 1
}

/// The timers of a thread. Clones are the same wheel.
#[derive(Clone)]
pub struct Wheel(Rc<RefCell<Inner>>);

struct Inner {
    start: Instant,
    now: u64,
    /// First entry of each slot.
    slots: Box<[u32; SLOTS]>,
    entries: Vec<Entry>,
    /// First of the free entries, which are chained by `next`.
    free: u32,
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
    /// An empty wheel.
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new(Inner {
            start: Instant::now(),
            now: 0,
            slots: Box::new([NONE; SLOTS]),
            entries: Vec::new(),
            free: NONE,
        })))
    }

    /// The present tick, as of the last turn.
    pub fn now(&self) -> u64 {
        self.0.borrow().now
    }

    /// A new timer without deadline.
    pub fn timer(&self) -> Timer {
        let mut inner = self.0.borrow_mut();
        let entry = Entry {
            deadline: NEVER,
            hangs: NEVER,
            previous: NONE,
            next: NONE,
            waker: None,
        };
        let index = match inner.free {
            NONE => {
                inner.entries.push(entry);
                // Bounded by the connections of a process.
                (inner.entries.len() - 1) as u32
            }
            index => {
                inner.free = inner.entries[index as usize].next;
                inner.entries[index as usize] = entry;
                index
            }
        };
        drop(inner);
        Timer {
            wheel: self.clone(),
            index,
        }
    }

    /// Turns the wheel for ever.
    pub async fn run(self) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            interval.tick().await;
            let start = self.0.borrow().start;
            let now = start.elapsed().as_nanos() / TICK.as_nanos();
            self.turn(u64::try_from(now).unwrap_or(NEVER / 2));
        }
    }

    /// Turns the wheel to `now` and wakes whose deadline has come.
    fn turn(&self, now: u64) {
        let mut inner = self.0.borrow_mut();
        // After a long standstill every slot is looked at once.
        let first = (inner.now + 1).max(now.saturating_sub(SLOTS as u64 - 1));
        if now <= inner.now {
            return;
        }
        inner.now = now;
        for tick in first..=now {
            let slot = (tick % SLOTS as u64) as usize;
            let mut index = std::mem::replace(&mut inner.slots[slot], NONE);
            while index != NONE {
                let entry = &mut inner.entries[index as usize];
                let next = entry.next;
                entry.hangs = NEVER;
                (entry.previous, entry.next) = (NONE, NONE);
                if entry.deadline <= now {
                    // Taken by reference: waking does not run the task here.
                    if let Some(waker) = &entry.waker {
                        waker.wake_by_ref();
                    }
                } else if entry.deadline != NEVER {
                    inner.hang(index);
                }
                index = next;
            }
        }
    }

    /// Wakes everyone who has a timer, whatever its deadline: something has changed that
    /// all have to look at.
    pub fn wake_all(&self) {
        for entry in &self.0.borrow().entries {
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    }
}

impl Inner {
    /// Hangs a loose entry at its deadline, or as far away as the wheel reaches.
    fn hang(&mut self, index: u32) {
        let deadline = self.entries[index as usize].deadline;
        let tick = deadline.clamp(self.now + 1, self.now + SLOTS as u64 - 1);
        let slot = (tick % SLOTS as u64) as usize;
        let next = std::mem::replace(&mut self.slots[slot], index);
        let entry = &mut self.entries[index as usize];
        entry.hangs = tick;
        entry.previous = NONE;
        entry.next = next;
        if next != NONE {
            self.entries[next as usize].previous = index;
        }
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
            NONE => self.slots[(hangs % SLOTS as u64) as usize] = next,
            p => self.entries[p as usize].next = next,
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
    }
}

/// A deadline and who is woken at it.
pub struct Timer {
    wheel: Wheel,
    index: u32,
}

impl Timer {
    /// The present tick.
    pub fn now(&self) -> u64 {
        self.wheel.now()
    }

    /// Sets the deadline.
    pub fn set(&self, deadline: u64) {
        let mut inner = self.wheel.0.borrow_mut();
        let entry = &mut inner.entries[self.index as usize];
        entry.deadline = deadline;
        if entry.hangs > deadline {
            inner.unhang(self.index);
            inner.hang(self.index);
        }
    }

    /// Moves the deadline to `deadline` unless it is sooner already.
    pub fn set_at_latest(&self, deadline: u64) {
        let sooner = self.wheel.0.borrow().entries[self.index as usize].deadline <= deadline;
        if !sooner {
            self.set(deadline);
        }
    }

    /// Takes the deadline away.
    pub fn clear(&self) {
        self.wheel.0.borrow_mut().entries[self.index as usize].deadline = NEVER;
    }

    /// Whether the deadline has come.
    pub fn due(&self) -> bool {
        let inner = self.wheel.0.borrow();
        inner.entries[self.index as usize].deadline <= inner.now
    }

    /// Who is woken.
    pub fn register(&self, cx: &Context<'_>) {
        let mut inner = self.wheel.0.borrow_mut();
        let waker = &mut inner.entries[self.index as usize].waker;
        match waker {
            Some(w) if w.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    /// Waits for the deadline, which is `time` from now.
    pub async fn sleep(&self, time: Duration) {
        self.set(self.now() + ticks(time));
        std::future::poll_fn(|cx| {
            self.register(cx);
            match self.due() {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut inner = self.wheel.0.borrow_mut();
        inner.unhang(self.index);
        let free = inner.free;
        let entry = &mut inner.entries[self.index as usize];
        entry.deadline = NEVER;
        entry.next = free;
        let waker = entry.waker.take();
        inner.free = self.index;
        drop(inner);
        // Dropped last: the waker may hold the last reference to a task, whose drop would
        // come back to this wheel.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn watched(timer: &Timer) -> Arc<Count> {
        let count = Arc::new(Count::default());
        timer.register(&Context::from_waker(&Waker::from(Arc::clone(&count))));
        count
    }

    #[test]
    fn fires_at_the_deadline_and_not_before() {
        let wheel = Wheel::new();
        for deadline in [1, 2, 700, 1023, 1024, 1025, 5000] {
            let timer = wheel.timer();
            let count = watched(&timer);
            let start = wheel.now();
            timer.set(start + deadline);
            for tick in 1..deadline {
                wheel.turn(start + tick);
                assert!(!timer.due());
                assert_eq!(count.0.load(Relaxed), 0, "{tick} of {deadline}");
            }
            wheel.turn(start + deadline);
            assert!(timer.due());
            assert_eq!(count.0.load(Relaxed), 1);
        }
    }

    #[test]
    fn later_sooner_cleared_and_dropped() {
        let wheel = Wheel::new();
        let timers: Vec<_> = (0..50).map(|_| wheel.timer()).collect();
        let counts: Vec<_> = timers.iter().map(watched).collect();
        for (i, timer) in timers.iter().enumerate() {
            timer.set(10);
            match i % 5 {
                0 => timer.set(20),
                1 => timer.set(5),
                2 => timer.clear(),
                3 => timer.set_at_latest(30),
                _ => timer.set_at_latest(3),
            }
        }
        for tick in 1..=20 {
            wheel.turn(tick);
            for (i, count) in counts.iter().enumerate() {
                let at = [20, 5, u64::MAX, 10, 3][i % 5];
                assert_eq!(
                    count.0.load(Relaxed),
                    usize::from(tick >= at),
                    "{i} at {tick}"
                );
            }
        }
        drop(timers);
        let again: Vec<_> = (0..50).map(|_| wheel.timer()).collect();
        assert_eq!(wheel.0.borrow().entries.len(), 50, "entries are used again");
        drop(again);
    }

    #[test]
    fn a_standstill_loses_nobody() {
        let wheel = Wheel::new();
        let timers: Vec<_> = (1..3000).map(|_| wheel.timer()).collect();
        let counts: Vec<_> = timers.iter().map(watched).collect();
        for (i, timer) in timers.iter().enumerate() {
            timer.set(i as u64 + 1);
        }
        wheel.turn(1_000_000);
        // Those beyond the wheel's reach hang at its end, which has passed as well.
        assert!(counts.iter().all(|c| c.0.load(Relaxed) == 1));
    }
}
