//! What has changed in this node's copies, for those on this node who keep a cache of them.

use std::sync::Arc;

use super::store::Store;
use super::table::Group;
use super::types::{GroupId, Session};

/// One session's new state on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Its group.
    pub group: GroupId,
    /// Its id.
    pub id: Box<[u8]>,
    /// As it is now; `None` when it has ended.
    pub session: Option<Session>,
}

/// Data up to this length, in bytes, are told with a change. Those of the balancer's own are
/// short; a cache of routes has no use for an application's, and pays for no copy of them.
pub const WATCHED_DATA: usize = 512;

impl Store {
    /// Keeps changes from now on, for [`Self::poll_change`]; whoever asks for them has to
    /// fetch them after every input.
    pub fn watch(&mut self) {
        self.watched = true;
    }

    /// The next change, if any. A session that changed twice is told as it is now.
    pub fn poll_change(&mut self) -> Option<Change> {
        let (g, hash, id) = self.changed.pop_front()?;
        let group: &Group = &self.groups[g];
        let now = self.now.signed();
        let entry = group.find(hash, &id);
        let live = entry.filter(|entry| !entry.deleted && !entry.expired(now));
        Some(Change {
            group: GroupId(g as u16),
            session: live.map(|entry| Session {
                version: entry.version(),
                route: Arc::clone(group.routes.name(entry.route)),
                age: now.saturating_sub(entry.created).max(0) as u64,
                idle: now.saturating_sub(entry.access).max(0) as u64,
                ttl: entry.ttl,
                data: entry
                    .data()
                    .filter(|data| data.len() <= WATCHED_DATA)
                    .map(Into::into),
            }),
            id,
        })
    }

    /// Notes that a copy was made, changed or ended.
    pub(super) fn note_change(&mut self, g: usize, hash: u64, id: &[u8]) {
        if self.watched {
            self.changed.push_back((g, hash, id.into()));
        }
    }
}
