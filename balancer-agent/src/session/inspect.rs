//! Looking in: lists, counts, and where a session lives, for operators and tests.

use super::store::Store;
use super::types::{GroupId, NodeId, Session, Time, Version};
use super::view::Phase;

/// One session of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Where the list goes on after this session: give it to the next call, plus 1.
    pub cursor: u64,
    /// Its id.
    pub id: Box<[u8]>,
    /// The copy on this node.
    pub session: Session,
    /// Whether this node is its primary: counted over all nodes, each session is once.
    pub primary: bool,
}

/// Where a node stands, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// `waiting`, `joining`, `syncing` or `ready`.
    pub phase: &'static str,
    /// Buckets that are still to be compared with every member.
    pub unsettled: usize,
    /// Every other member: whether it serves, and whether it has the same view.
    pub peers: Vec<(NodeId, bool, bool)>,
}

impl Store {
    /// This node.
    pub fn node(&self) -> NodeId {
        self.config.node
    }

    /// This node's copy of a session, as it is, without asking anyone.
    pub fn peek(&self, group: GroupId, id: &[u8], now: Time) -> Option<Session> {
        let group = self.groups.get(usize::from(group.0))?;
        let entry = group.find(group.hash(id), id)?;
        let live = !entry.deleted && !entry.expired(now.signed());
        live.then(|| group.session(entry, now.signed()))
    }

    /// The version of this node's copy, a tombstone's too.
    pub fn version_of(&self, group: GroupId, id: &[u8]) -> Option<Version> {
        let group = self.groups.get(usize::from(group.0))?;
        let entry = group.find(group.hash(id), id)?;
        Some(entry.version())
    }

    /// Live copies on this node in the order of their hashes: at least `count` if there
    /// are as many, from the cursor on, and all of equal hash together. Start with 0.
    pub fn list(&self, group: GroupId, cursor: u64, count: usize, now: Time) -> Vec<Listed> {
        let mut list: Vec<Listed> = Vec::new();
        let Some(group) = self.groups.get(usize::from(group.0)) else {
            return list;
        };
        for index in group.bucket_index(cursor)..group.buckets.len() as u16 {
            let bucket = &group.buckets[usize::from(index)];
            let primary = usize::from(bucket.primary) == group.me && group.mine(bucket);
            for entry in group.sorted(index, cursor) {
                let last = list.last().map(|listed| listed.cursor);
                if list.len() >= count && last != Some(entry.hash) {
                    return list;
                }
                if !entry.deleted && !entry.expired(now.signed()) {
                    list.push(Listed {
                        cursor: entry.hash,
                        id: entry.id().into(),
                        session: group.session(entry, now.signed()),
                        primary,
                    });
                }
            }
        }
        list
    }

    /// The nodes that should hold a session, the primary first, and whether this node has
    /// compared the bucket with all members.
    pub fn holders(&self, group: GroupId, id: &[u8]) -> Option<(Vec<NodeId>, bool)> {
        let group = self.groups.get(usize::from(group.0))?;
        let bucket = group.bucket(group.hash(id));
        let mut nodes: Vec<NodeId> = bucket.holders.iter().map(|i| group.members[i]).collect();
        let primary = group.members.get(usize::from(bucket.primary));
        nodes.sort_by_key(|node| (Some(node) != primary, *node));
        Some((nodes, group.settled(bucket)))
    }

    /// Live copies, tombstones and bytes of a group on this node.
    pub fn size_of(&self, group: GroupId) -> (usize, usize, usize) {
        let group = self.groups.get(usize::from(group.0));
        group.map_or((0, 0, 0), |g| (g.live, g.tombstones, g.bytes))
    }

    /// Where this node stands.
    pub fn standing(&self) -> Standing {
        Standing {
            phase: match self.phase {
                Phase::Waiting => "waiting",
                Phase::Joining { .. } | Phase::Forgetting { .. } => "joining",
                Phase::Syncing => "syncing",
                Phase::Ready => "ready",
            },
            unsettled: self.repair.unsettled,
            peers: self
                .peers
                .iter()
                .map(|(&node, peer)| {
                    let ready = peer.flags.is_some_and(|flags| flags.ready);
                    (node, ready, peer.view == self.view.id)
                })
                .collect(),
        }
    }

    /// Bytes of one session's fixed part: for the measure of memory per session.
    pub const fn entry_size() -> usize {
        size_of::<super::table::Entry>()
    }
}
