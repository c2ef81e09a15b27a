//! What a store is set up with: groups, time bounds and limits.

use super::types::{GroupId, MAX_DATA, Manager, NodeId, Replication};

/// Everything that a [`super::Store`] is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Key of the hash that places sessions. The same on every node, and secret: whoever
    /// knows it can choose ids that crowd into one bucket.
    pub key: [u64; 2],
    /// The groups that this node holds.
    pub groups: Vec<GroupConfig>,
    /// Time bounds.
    pub timing: Timing,
    /// Memory bounds.
    pub limits: Limits,
    /// Faults planted by the simulator's own test. Never set elsewhere.
    #[doc(hidden)]
    pub sabotage: Sabotage,
}

/// One group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Its name, the same on every node.
    pub name: String,
    /// Who holds its sessions.
    pub manager: Manager,
    /// When a writer is answered.
    pub replication: Replication,
    /// Whether copies are also written to disk, through [`super::Output::Persist`]. With
    /// `sync`, a copy is acknowledged only once it is on disk.
    pub persistent: bool,
}

/// Time bounds, all in milliseconds of this node's clock.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A message without an answer is sent again after this long.
    pub retry: u64,
    /// An operation that could not be done by then is answered `Unavailable`.
    pub operation: u64,
    /// A synchronous write is answered, degraded, at the latest after this long.
    pub sync: u64,
    /// Between two reports of this node's state to its peers.
    pub status: u64,
    /// Between two comparisons with every co-holder.
    pub anti_entropy: u64,
    /// Every bucket is searched for expired sessions once in this long.
    pub sweep: u64,
    /// A tombstone lives at least this long. Must exceed the longest time that a message
    /// can stay on its way, and several rounds of anti-entropy.
    pub tombstone_min: u64,
    /// A tombstone goes after this long, even if someone has not seen it. Must exceed
    /// `absence`.
    pub tombstone_max: u64,
    /// A node that was away for longer than this comes back empty.
    pub absence: u64,
    /// A node that starts with sessions from its disk waits this long for others before
    /// it believes that it is alone.
    pub alone: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            retry: 100,
            operation: 2_000,
            sync: 1_000,
            status: 500,
            anti_entropy: 10_000,
            sweep: 10_000,
            tombstone_min: 120_000,
            tombstone_max: 3_600_000,
            absence: 1_800_000,
            alone: 5_000,
        }
    }
}

/// Memory bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Buckets of a group: the unit of placement and of repair. A power of two, at most
    /// 16384, the same on every node.
    pub buckets: u16,
    /// Live sessions of one group on this node; beyond, the longest idle of a sample is
    /// ended.
    pub sessions: usize,
    /// Tombstones of one group on this node; beyond, the oldest of a sample goes early.
    pub tombstones: usize,
    /// Bytes of one group on this node, data included.
    pub bytes: usize,
    /// Data of one session, in bytes, at most [`MAX_DATA`].
    pub data: usize,
    /// Operations that wait at one time.
    pub pending: usize,
    /// Bytes that wait for one peer; beyond, the peer is mended by anti-entropy.
    pub outbox: usize,
    /// A frame is closed when it has reached this size, in bytes.
    pub frame: usize,
    /// Frames handed to the driver for one peer and not yet reported sent.
    pub credit: u8,
    /// Acknowledgements that wait for the disk.
    pub disk_waits: usize,
    /// Bytes that wait for the disk; beyond, whole buckets are written once it has caught
    /// up.
    pub disk_backlog: usize,
    /// Buckets that are pulled from peers at one time.
    pub pulls: usize,
    /// Entries in one answer to a pull.
    pub chunk: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            buckets: 1024,
            sessions: 4_000_000,
            tombstones: 4_000_000,
            bytes: 2 << 30,
            data: 64 << 10,
            pending: 65_536,
            outbox: 8 << 20,
            frame: 48 << 10,
            credit: 4,
            disk_waits: 262_144,
            disk_backlog: 64 << 20,
            pulls: 64,
            chunk: 256,
        }
    }
}

/// Bugs that can be planted, to show that the simulator finds them.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// A synchronous write is answered before its copies are acknowledged.
    SkippedAck,
    /// A copy that learns of a deletion forgets the session and the deletion.
    LostTombstone,
    /// A returning node serves what it has before it has caught up.
    StaleCopy,
}

/// Why a configuration is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two groups that peers could not tell apart.
    #[error("the groups `{0}` and `{1}` have the same name or key: rename one")]
    SameKey(String, String),
    /// A backup group without backups.
    #[error("group `{0}`: manager `backup` needs 1 to 63 copies, found {1}")]
    Copies(String, u8),
    /// A bound that contradicts another.
    #[error("{0}")]
    Bound(&'static str),
}

/// The key that stands for a group in messages: FNV-1a, folded to 32 bits.
pub fn group_key(name: &str) -> u32 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    (hash ^ (hash >> 32)) as u32
}

impl Config {
    /// A configuration of one node with default bounds.
    pub fn new(node: NodeId, key: [u64; 2], groups: Vec<GroupConfig>) -> Self {
        Self {
            node,
            key,
            groups,
            timing: Timing::default(),
            limits: Limits::default(),
            sabotage: Sabotage::None,
        }
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<GroupId> {
        let index = self.groups.iter().position(|group| group.name == name)?;
        u16::try_from(index).ok().map(GroupId)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (index, group) in self.groups.iter().enumerate() {
            let same = self.groups[..index]
                .iter()
                .find(|other| group_key(&other.name) == group_key(&group.name));
            if let Some(other) = same {
                return Err(ConfigError::SameKey(other.name.clone(), group.name.clone()));
            }
            if let Manager::Backup { copies } = group.manager
                && !(1..64).contains(&copies)
            {
                return Err(ConfigError::Copies(group.name.clone(), copies));
            }
        }
        let (limits, timing) = (&self.limits, &self.timing);
        let checks = [
            (
                self.groups.len() <= 1024,
                "at most 1024 groups can be configured",
            ),
            (
                limits.buckets.is_power_of_two() && limits.buckets <= 16_384,
                "`buckets` must be a power of two from 1 to 16384",
            ),
            (
                limits.data <= MAX_DATA,
                "`data` must be at most 1 MiB per session",
            ),
            (
                limits.outbox > 2 * limits.data && limits.outbox > limits.frame,
                "`outbox` must hold at least two sessions and one frame",
            ),
            (
                (512..=256 << 10).contains(&limits.frame),
                "`frame` must be 512 bytes to 256 KiB",
            ),
            (
                limits.credit > 0 && limits.pulls > 0 && limits.pending > 0,
                "`credit`, `pulls` and `pending` must be at least 1",
            ),
            (
                limits.sessions > 0 && limits.tombstones > 0 && limits.disk_waits > 0,
                "`sessions`, `tombstones` and `disk_waits` must be at least 1",
            ),
            (
                (1..=1024).contains(&limits.chunk),
                "`chunk` must be 1 to 1024 entries",
            ),
            (
                timing.retry > 0 && timing.status > 0 && timing.sweep > 0,
                "`retry`, `status` and `sweep` must be at least 1 ms",
            ),
            (
                timing.tombstone_max > timing.absence,
                "`tombstone_max` must exceed `absence`: a node that returns in time must \
                 still meet the tombstones that it missed",
            ),
            (
                timing.tombstone_min > 2 * timing.anti_entropy,
                "`tombstone_min` must exceed two rounds of `anti_entropy`",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, message)) => Err(ConfigError::Bound(message)),
            None => Ok(()),
        }
    }
}
