//! What to simulate, and what a run did.

use balancer_agent::session::{Counters, Manager, Replication, Sabotage};

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything that chance decides.
    pub seed: u64,
    /// Events under faults and load; the quiet end comes on top.
    pub steps: u64,
    /// Who holds the sessions.
    pub manager: Manager,
    /// Whether they are on disk too.
    pub persistent: bool,
    /// When writers are answered; `None`: by the seed, mostly `sync`.
    pub replication: Option<Replication>,
    /// A planted fault.
    pub sabotage: Sabotage,
    /// Print what happens to the membership and to requests.
    pub verbose: bool,
    /// With `verbose`: of requests only those for this session, and whatever any node takes
    /// in or forgets of it.
    pub session: Option<usize>,
}

/// What a run did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Events, those of the quiet end too.
    pub steps: u64,
    /// Simulated time in milliseconds.
    pub millis: u64,
    /// Stands for the whole course: two runs of one seed have the same.
    pub trace: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Reads that were checked against an acknowledged write.
    pub checked_reads: u64,
    /// Nodes that lost what they held.
    pub lost_nodes: u64,
    /// Some of the nodes' own counts, added up over all lives.
    pub counts: Counts,
}

/// Sums of [`Counters`], to see that a sweep reaches what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// [`Counters::degraded`]
    pub degraded: u64,
    /// [`Counters::wipes`]
    pub wipes: u64,
    /// [`Counters::mended`]
    pub mended: u64,
    /// [`Counters::handed_over`]
    pub handed_over: u64,
    /// [`Counters::gathers`]
    pub gathers: u64,
    /// [`Counters::tombstones_agreed`]
    pub agreed: u64,
    /// [`Counters::expired`]
    pub expired: u64,
    /// [`Counters::evicted`]
    pub evicted: u64,
    /// [`Counters::outbox_full`]
    pub outbox_full: u64,
    /// [`Counters::frames_fenced`]
    pub fenced: u64,
}

impl Counts {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.degraded += other.degraded;
        self.wipes += other.wipes;
        self.mended += other.mended;
        self.handed_over += other.handed_over;
        self.gathers += other.gathers;
        self.agreed += other.agreed;
        self.expired += other.expired;
        self.evicted += other.evicted;
        self.outbox_full += other.outbox_full;
        self.fenced += other.fenced;
    }

    pub(super) fn take(&mut self, counters: &Counters) {
        self.add(&Self {
            degraded: counters.degraded,
            wipes: counters.wipes,
            mended: counters.mended,
            handed_over: counters.handed_over,
            gathers: counters.gathers,
            agreed: counters.tombstones_agreed,
            expired: counters.expired,
            evicted: counters.evicted,
            outbox_full: counters.outbox_full,
            fenced: counters.frames_fenced,
        });
    }
}
