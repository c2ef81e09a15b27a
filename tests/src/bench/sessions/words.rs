//! What the benchmark and its nodes say to each other: one line of JSON each way.

use serde::{Deserialize, Serialize};

/// Group with `async` replication in the nodes' configuration.
pub const ASYNC: &str = "async";
/// Group with `sync` replication.
pub const SYNC: &str = "sync";

/// What a node is told. Each order has one answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Answered by [`Status`].
    Status,
    /// Gets ready for writes; answered by how many ids there are.
    Prepare(Load),
    /// Does them; answered by [`Loaded`] at the end.
    Go,
    /// From now on keeps how late writes of other nodes' [`Load::stamped`] become visible
    /// here; answered by the [`Times`] of those before.
    Lag,
    /// Answered by [`Memory`]: of a store of its own, not the node's.
    Memory {
        /// Length of the ids.
        id: usize,
    },
}

/// Where a write begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Where {
    /// At any node, whoever holds the session.
    Any,
    /// At its primary.
    Primary,
    /// At a node that is not its primary.
    Elsewhere,
}

/// Some seconds of writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// The group.
    pub group: String,
    /// Tells the ids of this node from others'.
    pub node: u64,
    /// Where they begin.
    pub at: Where,
    /// Writes per second, at random moments (a Poisson process); flat out without.
    pub rate: Option<f64>,
    /// Writes that may wait for their acknowledgement; flat out only.
    pub window: usize,
    /// For how long.
    pub seconds: f64,
    /// Different ids: they are gone through again and again.
    pub ids: u64,
    /// Ends when each id was written once.
    pub once: bool,
    /// Instead of the same ids again, each write is to an id of its own that carries the
    /// time of its issue.
    pub stamped: bool,
}

/// What became of a [`Load`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Loaded {
    /// Writes that were issued.
    pub writes: u64,
    /// Those whose copies were acknowledged in time; 0 with `async`.
    pub acknowledged: u64,
    /// Seconds from the first issue to the last acknowledgement.
    pub seconds: f64,
    /// From issue to acknowledgement; with a rate and `sync` only.
    pub times: Times,
}

/// A distribution of times.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// The middle one, in microseconds.
    pub p50: f64,
    /// 99 of 100 are shorter, in microseconds.
    pub p99: f64,
    /// The longest, in microseconds.
    pub max: f64,
}

impl Times {
    /// Of all these, in nanoseconds.
    pub fn of(mut all: Vec<u64>) -> Self {
        all.sort_unstable();
        let at = |part: f64| {
            let index = (all.len() as f64 * part) as usize;
            let found = all.get(index.min(all.len().saturating_sub(1)));
            found.map_or(0.0, |&time| time as f64 / 1e3)
        };
        Self {
            count: all.len() as u64,
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// Where a node stands, and what it has used so far.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// It serves.
    pub ready: bool,
    /// Members that serve and have the same view.
    pub peers: usize,
    /// Buckets that are still to be compared.
    pub unsettled: u64,
    /// Sessions that it has.
    pub sessions: u64,
    /// What adds up; over all nodes too.
    pub sums: Sums,
    /// Resident memory in bytes.
    pub resident: u64,
    /// The most that it ever had.
    pub resident_most: u64,
}

/// What adds up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Processor time in seconds, in the kernel too.
    pub cpu: f64,
    /// Writes that it coordinated.
    pub writes: f64,
    /// Copies that it took.
    pub copies: f64,
    /// Writes that it handed to their primary.
    pub forwards: f64,
    /// Messages of the store.
    pub records: f64,
    /// Frames of the store, with some messages each.
    pub frames: f64,
    /// Writes of the links, with some frames each.
    pub link_writes: f64,
    /// Bytes over links, before encryption.
    pub link_bytes: f64,
    /// Times that it gave up a processor.
    pub switches: f64,
    /// What must not be: copies dropped for want of room, writes with fewer copies than
    /// wanted or without an answer.
    pub lost: f64,
}

impl Sums {
    fn with(self, other: Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            cpu: of(self.cpu, other.cpu),
            writes: of(self.writes, other.writes),
            copies: of(self.copies, other.copies),
            forwards: of(self.forwards, other.forwards),
            records: of(self.records, other.records),
            frames: of(self.frames, other.frames),
            link_writes: of(self.link_writes, other.link_writes),
            link_bytes: of(self.link_bytes, other.link_bytes),
            switches: of(self.switches, other.switches),
            lost: of(self.lost, other.lost),
        }
    }

    /// Of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    /// Since then.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        self.with(before, |a, b| a - b)
    }

    /// All of it so many times.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        self.with(self, |a, _| a * factor)
    }
}

/// What a session without data takes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes for each, when the tables are as full as they get.
    pub least: f64,
    /// When they have just grown.
    pub most: f64,
    /// With a million.
    pub million: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_sorted_and_scaled() {
        let times = Times::of((0..1000).rev().map(|n| n * 1000).collect());
        assert_eq!(times.count, 1000);
        assert_eq!((times.p50, times.p99, times.max), (500.0, 990.0, 999.0));
        assert_eq!(Times::of(Vec::new()).max, 0.0);
    }

    #[test]
    fn sums_add_up() {
        let one = Sums {
            cpu: 1.0,
            lost: 2.0,
            ..Sums::default()
        };
        let more = one.plus(one.times(2.0)).since(one);
        assert_eq!((more.cpu, more.lost), (2.0, 4.0));
    }
}
