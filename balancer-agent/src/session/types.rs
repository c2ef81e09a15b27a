//! The words of the session store: nodes, versions, operations and their outcomes.

use std::sync::Arc;

/// Shortest session id that the store takes, in bytes.
pub const MIN_ID: usize = 8;
/// Longest session id that the store takes, in bytes.
pub const MAX_ID: usize = 128;
/// Longest route (the name of a backend), in bytes.
pub const MAX_ROUTE: usize = 64;
/// Longest time to live: ten years, in milliseconds.
pub const MAX_TTL: u64 = 10 * 366 * 24 * 3600 * 1000;
/// Most data that one session may carry, in bytes. `Limits::data` may ask for less.
pub const MAX_DATA: usize = 1 << 20;
/// Most nodes in one cluster: a set of nodes is one machine word.
pub const MAX_NODES: usize = 64;

/// One host that runs an agent. The number is stable over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeId(pub u64);

/// A point on this node's own monotonic clock, in milliseconds. It never travels: what
/// goes to other nodes is an age or a remaining time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// This time, `millis` later.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// As a signed number, since ages can reach back to before the clock's zero.
    pub(super) fn signed(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

/// The version of a session's content. The order is total, and the greater one wins.
///
/// A deletion ends an *epoch*: it beats every write of the same epoch, whenever it was
/// made, and only a creation that knew of the deletion starts a greater epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Version {
    /// The stamp of the write that created the session.
    pub epoch: u64,
    /// Whether this is a tombstone.
    pub deleted: bool,
    /// Lamport clock of the write.
    pub stamp: u64,
    /// Which life of which node wrote: breaks ties between equal stamps.
    pub writer: u64,
}

/// A group by its place in [`super::Config::groups`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupId(pub u16);

/// One node of the membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// A number that no other life of any node has. A node that restarts, or that any
    /// other node has declared down, must come back with a new one.
    pub incarnation: u64,
    /// The groups that this node holds, by [`super::group_key`], sorted. `None`: the same
    /// as the node that is told.
    pub groups: Option<Arc<[u32]>>,
}

/// What a caller of this node wants done to one session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read it; with `touch`, also count it as an access.
    Get {
        /// Whether this read keeps the session alive.
        touch: bool,
    },
    /// Create or replace it.
    Put {
        /// Backend that serves the session; may be empty.
        route: Box<str>,
        /// Life after the last access, in milliseconds.
        ttl: u64,
        /// The application's data.
        data: Option<Box<[u8]>>,
        /// What must be there before.
        expect: Expect,
    },
    /// Change the route and nothing else.
    Bind {
        /// Backend that serves the session from now on.
        route: Box<str>,
    },
    /// Count an access.
    Touch,
    /// End it.
    Delete,
}

impl Op {
    /// Whether it changes what is stored, accesses aside.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Bind { .. } | Self::Delete)
    }
}

/// The condition of a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// None.
    Any,
    /// The session does not exist.
    Absent,
    /// The session exists in exactly this version.
    Version(Version),
}

/// The caller's own number for an operation; comes back with the outcome.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// A session as a caller sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Version of the content.
    pub version: Version,
    /// Backend that serves it; may be empty.
    pub route: Arc<str>,
    /// Since its creation, in milliseconds.
    pub age: u64,
    /// Since the last access that this node knows of, in milliseconds.
    pub idle: u64,
    /// Life after the last access, in milliseconds.
    pub ttl: u64,
    /// The application's data.
    pub data: Option<Box<[u8]>>,
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The session that was asked for.
    Found(Box<Session>),
    /// The write is done.
    Done {
        /// The version that it made.
        version: Version,
        /// Other nodes that have confirmed their copy so far (0 with `async`).
        copies: u8,
        /// Synchronous replication hit its time bound: fewer copies than wanted.
        degraded: bool,
    },
    /// The access is counted.
    Touched,
    /// There is no such session: it never was, has expired, or was deleted.
    NotFound,
    /// [`Expect`] was not met; the version that is there, if any.
    Conflict(Option<Version>),
    /// This node has not caught up yet, and serves nothing. Another node can.
    NotReady,
    /// The nodes that must be asked did not answer in time. The write may or may not
    /// have happened; trying again is safe.
    Unavailable,
    /// Too many operations wait already. Nothing was done.
    Busy,
    /// The request breaks a limit; nothing was done, and trying again will not help.
    Invalid(&'static str),
}

/// The manager of a group: who holds its sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manager {
    /// Every node of the group holds every session.
    Delta,
    /// A primary and this many backups hold a session.
    Backup {
        /// Number of backups, at least 1.
        copies: u8,
    },
    /// Something outside (Redis, Valkey) holds them: operations pass through as
    /// [`super::Output::External`] and their outcomes come back as input.
    External,
}

/// When the caller of a write is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replication {
    /// At once; the copies follow.
    Async,
    /// When every wanted copy is acknowledged, or the time bound is hit.
    Sync,
}
