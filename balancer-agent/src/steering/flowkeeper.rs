//! The thread that looks through the flow tables: it removes what is over, and finds
//! the SYNs that backends leave unanswered.
//!
//! Both go through the same memory that the kernel program uses, in small pieces and
//! with pauses, so that an idle balancer is idle and a busy one keeps its caches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use common::counters::Reason;
use nix::time::{ClockId, clock_gettime};

use super::{Input, SteeringHandle};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::{Tables, flows};
use crate::model::FlowTimeouts;

/// Pause between slices of expiry.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest time that a slice should take.
const SLICE: Duration = Duration::from_millis(5);
/// Slices in which every entry is looked at once, when they are short enough.
const SLICES: u32 = 100;
/// Most entries of a slice, until its time has been taken.
const FIRST_BUDGET: u32 = 4096;
/// Shortest and longest time between two looks for unanswered SYNs.
const SCAN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// A look for unanswered SYNs may take one part in this of the time.
const SCAN_SHARE: u32 = 10;

/// The time by the monotonic clock, as flows have it, in nanoseconds.
pub fn monotonic() -> u64 {
    // The kernel has had this clock from the beginning; without it flows seem young.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| Duration::from(t).as_nanos() as u64)
}

/// Which backends are watched for unanswered SYNs.
#[derive(Debug, Default)]
pub struct Watched {
    /// By backend slot.
    thresholds: Vec<Option<Duration>>,
    shortest: Option<Duration>,
    longest: Duration,
    timeouts: Option<FlowTimeouts>,
}

impl Watched {
    /// From the thresholds of all slots, in their order, and the timeouts in force.
    pub fn new(slots: impl Iterator<Item = Option<Duration>>, timeouts: FlowTimeouts) -> Self {
        let thresholds: Vec<_> = slots.collect();
        let all = thresholds.iter().flatten();
        Self {
            shortest: all.clone().min().copied(),
            longest: all.max().copied().unwrap_or_default(),
            timeouts: Some(timeouts),
            thresholds,
        }
    }

    fn threshold(&self, slot: u16) -> Option<Duration> {
        self.thresholds.get(usize::from(slot)).copied().flatten()
    }
}

/// See [`self`].
pub struct FlowKeeper {
    kernel: Arc<Kernel>,
    steering: SteeringHandle,
    watched: Arc<ArcSwap<Watched>>,
    stop: Arc<AtomicBool>,
    cursor: flows::Cursor,
    budget: u32,
    entries: u32,
    /// The kernel program's count of new flows, and when it was last seen to rise.
    new_flows: u64,
    rose: Instant,
    scanned: u64,
}

impl FlowKeeper {
    /// Works until `stop` is set.
    pub fn new(
        kernel: Arc<Kernel>,
        steering: SteeringHandle,
        watched: Arc<ArcSwap<Watched>>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let entries = entries(kernel.tables());
        Self {
            kernel,
            steering,
            watched,
            stop,
            cursor: flows::Cursor::default(),
            budget: FIRST_BUDGET,
            entries,
            new_flows: u64::MAX,
            rose: Instant::now(),
            scanned: monotonic(),
        }
    }

    /// See [`Self::new`].
    pub fn run(mut self) {
        let now = Instant::now();
        let (mut expire_at, mut scan_at) = (now, now);
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= expire_at {
                self.expire();
                expire_at = Instant::now() + PAUSE;
            }
            if now >= scan_at {
                let pause = self.scan();
                scan_at = Instant::now() + pause;
            }
            let next = expire_at.min(scan_at);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn expire(&mut self) {
        let watched = self.watched.load();
        let Some(timeouts) = watched.timeouts else {
            return;
        };
        let began = Instant::now();
        let done = flows::expire(
            self.kernel.tables(),
            &timeouts,
            monotonic(),
            &mut self.cursor,
            self.budget,
        );
        if done.flows + done.snat_ports > 0 {
            let (flows, snat_ports) = (done.flows, done.snat_ports);
            tracing::trace!(flows, snat_ports, "expired");
        }
        // Towards a slice's share, as fast as its time allows.
        let share = (self.entries / SLICES).max(FIRST_BUDGET);
        let took = began.elapsed();
        self.budget = if took > SLICE {
            (self.budget / 2).max(256)
        } else if took < SLICE / 4 {
            (self.budget * 2).min(share)
        } else {
            self.budget
        };
    }

    /// Looks for unanswered SYNs, when there can be some; returns the pause until the
    /// next look.
    fn scan(&mut self) -> Duration {
        let watched = self.watched.load_full();
        let Some(shortest) = watched.shortest else {
            self.scanned = monotonic();
            return SCAN.1;
        };
        let pause = (shortest / 4).clamp(SCAN.0, SCAN.1);
        let began = Instant::now();
        let count = self.kernel.tables().counters.reason(Reason::FlowNew);
        if count != self.new_flows {
            self.new_flows = count;
            self.rose = began;
        }
        let previous = std::mem::replace(&mut self.scanned, monotonic());
        // A flow that could count now was made within the longest threshold.
        if began.duration_since(self.rose) > watched.longest + SCAN.1 * 2 {
            return pause;
        }
        let threshold = |slot| watched.threshold(slot);
        let found = flows::unanswered(self.kernel.tables(), threshold, previous, self.scanned);
        if !found.is_empty() {
            // Without a worker the agent is ending.
            let _ = self.steering.tell(Input::Unanswered(found));
        }
        pause.max(began.elapsed() * SCAN_SHARE)
    }
}

fn entries(tables: &Tables) -> u32 {
    let buckets = [
        tables.flows4.buckets.len(),
        tables.flows6.buckets.len(),
        tables.half_open.buckets.len(),
    ];
    let flows: u32 = buckets.iter().sum::<u32>() * common::limits::FLOW_BUCKET_ENTRIES as u32;
    flows + tables.snat_ports.len()
}
