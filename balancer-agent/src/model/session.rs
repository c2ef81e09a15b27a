//! What `[session]` says.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

/// `[session]`: sessions that are kept by this node and others together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    /// In the order of the file; at least one, names are unique.
    pub groups: Vec<SessionGroup>,
    /// Sessions of one group that this node keeps at most.
    pub sessions_max: usize,
    /// Bytes of one group that this node keeps at most.
    pub bytes_max: usize,
    /// Where sessions of persistent groups are on disk.
    pub directory: PathBuf,
}

impl Sessions {
    /// Whether a group's sessions are on disk.
    pub fn persistent(&self) -> bool {
        let mut groups = self.groups.iter();
        groups.any(|group| matches!(group.manager, SessionManager::Persistent(_)))
    }
}

/// One group: a replication domain of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionGroup {
    /// Its name, the same on every node.
    pub name: Arc<str>,
    /// Who holds its sessions.
    pub manager: SessionManager,
    /// How long a response is held for the copies of the session that it creates; `None`:
    /// not at all (`replication = "async"`).
    pub sync_timeout: Option<Duration>,
    /// Header of the held responses that says how many nodes have the session.
    pub sync_header: Option<HeaderName>,
    /// Life of a session after its last access, unless a pool says otherwise.
    pub ttl: Duration,
}

/// Who holds a group's sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionManager {
    /// Every node of the group.
    Delta,
    /// A primary and so many backups.
    Backup(u8),
    /// As with `Backup`, and each of them has it on disk.
    Persistent(u8),
}

/// What of a pool's stickiness is kept as sessions of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSessions {
    /// The group's name; it is one of [`Sessions::groups`].
    pub group: Arc<str>,
    /// Life of its sessions after the last access.
    pub ttl: Duration,
    /// The group's [`SessionGroup::sync_header`].
    pub sync_header: Option<HeaderName>,
}
