//! One simulated node: its store, its clock and its disk.

use std::collections::VecDeque;

use balancer_agent::session::{Store, Time};

/// A node's own clock: monotonic, at its own rate, from its own zero.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    pub base: u64,
    pub started: u64,
    /// Microseconds of this clock per second of true time.
    pub rate: u64,
}

impl Clock {
    pub fn read(&self, now: u64) -> Time {
        Time(self.base + (now - self.started) * self.rate / 1_000_000_000)
    }

    /// The true time at which this clock shows `time`.
    pub fn when(&self, time: Time) -> u64 {
        let ahead = time.0.saturating_sub(self.base);
        self.started + (ahead.min(1 << 30) * 1_000_000_000).div_ceil(self.rate)
    }
}

/// A disk: what is safe on it, and what is on its way.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub safe: Vec<Vec<u8>>,
    pub on_the_way: VecDeque<(u64, Vec<u8>)>,
    pub slow: bool,
}

/// A node: what it is made of, and what the world knows of it.
pub(super) struct Node {
    pub store: Store,
    pub run: u64,
    pub ready: bool,
    pub paused_until: u64,
    pub clock: Clock,
    pub wake: Option<u64>,
    pub disk: Disk,
    pub slow_sender: bool,
    pub wipes: u64,
}
