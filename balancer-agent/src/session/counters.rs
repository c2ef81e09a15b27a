//! What a store counts.

/// Counts since the start, and (the first few) how much of each bound is in use now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Live sessions on this node. Bound: `Limits::sessions` per group, and an eighth.
    pub sessions: u64,
    /// Tombstones on this node. Bound: `Limits::tombstones` per group.
    pub tombstones: u64,
    /// Bytes of entries. Bound: `Limits::bytes` per group, and an eighth.
    pub bytes: u64,
    /// Operations that wait. Bound: `Limits::pending`.
    pub pending: u64,
    /// Bytes that wait for the slowest peer. Bound: `Limits::outbox` and one record.
    pub outbox: u64,
    /// Buckets that this node should hold and has not compared with every member.
    pub unsettled: u64,
    /// Buckets that this node holds and should not: they wait for their holders.
    pub strays: u64,
    /// Bytes that wait for the disk.
    pub disk_backlog: u64,
    /// Buckets that are still to be written whole.
    pub disk_buckets: u64,

    /// Writes that this node coordinated.
    pub writes: u64,
    /// Copies of writes taken from peers.
    pub copies: u64,
    /// Synchronous writes answered at the time bound, with fewer copies than wanted.
    pub degraded: u64,
    /// Synchronous writes answered with fewer copies than wanted because holders had not
    /// caught up far enough to count.
    pub thin: u64,
    /// Operations answered `Unavailable`.
    pub unavailable: u64,
    /// Operations refused because too many waited.
    pub busy: u64,
    /// Operations refused because this node had not caught up.
    pub not_ready: u64,
    /// Reads answered although not every node that was asked had answered.
    pub partial_reads: u64,
    /// Operations that asked other nodes for their copies first.
    pub gathers: u64,
    /// Operations handed to the primary.
    pub forwards: u64,
    /// Forwarded operations that had to be issued again because the session had changed.
    pub stale_forwards: u64,
    /// Accesses told to other holders.
    pub touches: u64,
    /// Sessions ended at the end of their life.
    pub expired: u64,
    /// Sessions ended to stay inside the memory bound.
    pub evicted: u64,
    /// Tombstones forgotten because every node had seen them.
    pub tombstones_agreed: u64,
    /// Tombstones forgotten at their greatest age.
    pub tombstones_aged: u64,
    /// Tombstones forgotten early to stay inside the memory bound: what they ended could
    /// return.
    pub tombstones_forced: u64,
    /// Copies that anti-entropy found missing or old here, and mended.
    pub mended: u64,
    /// Buckets handed over to their holders and dropped here.
    pub handed_over: u64,
    /// Times that this node forgot everything because it had been away for too long.
    pub wipes: u64,
    /// Reports of this node's state.
    pub status_rounds: u64,
    /// Changes of the view.
    pub views: u64,
    /// Members beyond the greatest number of nodes, which are not used.
    pub members_refused: u64,
    /// Records dropped because a peer's outbox was full.
    pub outbox_full: u64,
    /// Acknowledgements not given because too many waited for the disk.
    pub disk_waits_full: u64,
    /// Times that the disk fell behind, so that whole buckets are written again.
    pub disk_behind: u64,
    /// Copies not taken because all names of routes are in use.
    pub routes_full: u64,
    /// Frames handed to the driver.
    pub frames_sent: u64,
    /// Bytes of these.
    pub bytes_sent: u64,
    /// Records put into frames: the messages of the protocol.
    pub records_sent: u64,
    /// Frames taken in.
    pub frames_received: u64,
    /// Frames ignored because they belong to another life of a node.
    pub frames_fenced: u64,
    /// Frames that could not be read.
    pub malformed: u64,
    /// Records about groups that are not held here.
    pub strange_group: u64,
}
