//! Nodes as those see them who use the cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::cluster::id::{Incarnation, NodeId};
use crate::cluster::message::{Record, Standing};

/// A node, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers.
    Alive,
    /// It answers, and has not caught up with the others' sessions.
    Syncing,
    /// It did not answer, and may object.
    Suspect,
    /// It is gone.
    Down,
    /// It said goodbye.
    Left,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Syncing => "syncing",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        })
    }
}

/// One node, for those who use the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// It.
    pub id: NodeId,
    /// Its name.
    pub name: Arc<str>,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// How it stands.
    pub state: State,
    /// Where it is reached.
    pub address: SocketAddr,
    /// What its user tells.
    pub about: Arc<[u8]>,
    /// Whether it is this node.
    pub own: bool,
    /// Since when it stands so, on the core's clock.
    pub since: Duration,
}

impl Core {
    /// All nodes with this one, by id.
    pub fn nodes(&self) -> Vec<Node> {
        let node = |record: &Record, own| Node {
            id: record.id(),
            name: record.name.as_str().into(),
            incarnation: record.incarnation,
            state: match record.standing {
                Standing::Alive if record.syncing => State::Syncing,
                Standing::Alive => State::Alive,
                Standing::Suspect => State::Suspect,
                Standing::Down => State::Down,
                Standing::Left => State::Left,
            },
            address: record.address,
            about: record.about.as_slice().into(),
            own,
            since: self.renewed.filter(|_| own).unwrap_or_default(),
        };
        let members = self.members.iter().map(|(_, member)| Node {
            since: member.since,
            ..node(&member.record, false)
        });
        let mut all: Vec<Node> = members.chain([node(&self.own, true)]).collect();
        all.sort_by_key(|node| node.id);
        all
    }
}
