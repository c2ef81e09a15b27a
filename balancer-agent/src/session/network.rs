//! The way from a store's driver to other nodes: none, or the links of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::config::group_key;
use super::types::{Member, NodeId};
use crate::cluster::{self, Cluster, Events, SendError, State};

/// Version of what a node tells of its groups.
const ABOUT: u8 = 1;
/// For so long after its start a node does not believe that it is alone. Seeds, and nodes
/// that are missed, are called about once a second: that is two calls of which one may get
/// lost.
const COMPANY: Duration = Duration::from_secs(2);
/// That a node sends what can't be read is said once in so much time.
const QUIET: Duration = Duration::from_secs(60);

/// What comes from other nodes.
#[derive(Debug)]
pub enum Event {
    /// The members have changed.
    Members {
        /// This node's life.
        incarnation: u64,
        /// All that are believed alive.
        members: Vec<Member>,
    },
    /// A frame.
    Frame {
        /// Whose.
        from: NodeId,
        /// It.
        bytes: Bytes,
    },
    /// The link to a node was lost or made.
    Link {
        /// The node.
        node: NodeId,
    },
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room; later there may be.
    Full,
    /// There is no link; an [`Event::Link`] will come.
    NoLink,
}

/// The way to other nodes.
pub trait Network: Send + 'static {
    /// Takes a frame for a node; does not wait.
    ///
    /// # Errors
    /// [`Refused`].
    fn send(&self, to: NodeId, frame: &[u8]) -> Result<(), Refused>;
    /// Closes the link to a node that sent what can't be read; one is made anew, later and
    /// later. An [`Event::Link`] will come.
    fn refuse(&mut self, node: NodeId, error: &str);
    /// The next event; never ends. The first one is [`Event::Members`]. Loses nothing when
    /// it is dropped half way.
    fn event(&mut self) -> impl Future<Output = Event> + Send;
    /// The next event, if there is one.
    fn try_event(&mut self) -> Option<Event>;
    /// Tells the others whether this node has caught up.
    fn ready(&mut self, ready: bool) -> impl Future<Output = ()> + Send;
}

/// What a node tells the others of its groups.
pub fn about<'a>(groups: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut keys: Vec<u32> = groups.map(group_key).collect();
    keys.sort_unstable();
    let keys = keys.into_iter().flat_map(u32::to_le_bytes);
    std::iter::once(ABOUT).chain(keys).collect()
}

/// What [`about`] said. A node that says something else holds nothing.
pub(super) fn groups_of(about: &[u8]) -> Arc<[u32]> {
    let Some((&ABOUT, keys)) = about.split_first() else {
        return Arc::default();
    };
    let keys = keys.chunks_exact(4);
    let mut keys: Vec<u32> = keys
        .map(|key| u32::from_le_bytes([key[0], key[1], key[2], key[3]]))
        .collect();
    keys.sort_unstable();
    keys.into()
}

/// A node of its own.
pub struct Alone {
    node: NodeId,
    incarnation: u64,
    told: bool,
}

impl Alone {
    /// `incarnation` is a number that no other life of this node has.
    pub fn new(node: NodeId, incarnation: u64) -> Self {
        Self {
            node,
            incarnation,
            told: false,
        }
    }
}

impl Network for Alone {
    fn send(&self, _: NodeId, _: &[u8]) -> Result<(), Refused> {
        Err(Refused::NoLink)
    }

    fn refuse(&mut self, _: NodeId, _: &str) {}

    async fn event(&mut self) -> Event {
        if let Some(event) = self.try_event() {
            return event;
        }
        std::future::pending().await
    }

    fn try_event(&mut self) -> Option<Event> {
        let first = !std::mem::replace(&mut self.told, true);
        first.then(|| Event::Members {
            incarnation: self.incarnation,
            members: vec![Member {
                node: self.node,
                incarnation: self.incarnation,
                groups: None,
            }],
        })
    }

    async fn ready(&mut self, _: bool) {}
}

/// The nodes of a cluster.
pub struct Peers {
    cluster: Cluster,
    events: Events,
    nodes: watch::Receiver<Arc<Vec<cluster::Node>>>,
    told: bool,
    /// When it may be told that it is alone.
    alone_from: Instant,
    /// Nodes that sent what can't be read, and when that was said; for the last minute.
    warned: BTreeMap<NodeId, Instant>,
}

impl Peers {
    /// Takes over everything that comes over the cluster's links.
    pub fn new(cluster: Cluster, events: Events) -> Self {
        Self {
            nodes: cluster.members(),
            cluster,
            events,
            told: false,
            alone_from: Instant::now() + COMPANY,
            warned: BTreeMap::new(),
        }
    }

    fn members(&mut self) -> Event {
        self.told = true;
        let nodes = self.nodes.borrow_and_update();
        let live = nodes.iter().filter(|node| node.own || is_there(node));
        Event::Members {
            incarnation: nodes
                .iter()
                .find(|node| node.own)
                .map_or(0, |node| node.incarnation.0),
            members: live
                .map(|node| Member {
                    node: NodeId(node.id.0),
                    incarnation: node.incarnation.0,
                    groups: Some(groups_of(&node.about)),
                })
                .collect(),
        }
    }

    fn translate(&self, event: cluster::Event) -> Event {
        match event {
            cluster::Event::Message { node, content, .. } => Event::Frame {
                from: NodeId(node.0),
                bytes: content,
            },
            cluster::Event::LinkUp { node, .. } => {
                tracing::info!(node = %self.cluster.name_of(node), "link up");
                Event::Link {
                    node: NodeId(node.0),
                }
            }
            cluster::Event::LinkDown { node, .. } => {
                tracing::info!(node = %self.cluster.name_of(node), "link down");
                Event::Link {
                    node: NodeId(node.0),
                }
            }
        }
    }
}

/// Whether the membership counts a node in.
fn is_there(node: &cluster::Node) -> bool {
    !matches!(node.state, State::Down | State::Left)
}

fn has_company(nodes: &[cluster::Node]) -> bool {
    nodes.iter().any(|node| !node.own && is_there(node))
}

impl Network for Peers {
    fn send(&self, to: NodeId, frame: &[u8]) -> Result<(), Refused> {
        let sent = self.cluster.send(cluster::NodeId(to.0), frame);
        sent.map_err(|error| match error {
            SendError::Full => Refused::Full,
            // A frame is far shorter than a message may be.
            SendError::Unknown | SendError::TooLong => Refused::NoLink,
        })
    }

    fn refuse(&mut self, node: NodeId, error: &str) {
        let (now, id) = (Instant::now(), cluster::NodeId(node.0));
        self.warned.retain(|_, last| now - *last < QUIET);
        self.warned.entry(node).or_insert_with(|| {
            tracing::warn!(
                node = %self.cluster.name_of(id),
                error,
                "the node sent a message about sessions that can't be read: its link is closed, \
                 and will be tried again"
            );
            now
        });
        self.cluster.refuse(id, error);
    }

    async fn event(&mut self) -> Event {
        if !self.told {
            // A node that takes itself to be alone has caught up with everybody: one that
            // comes back would serve, for a moment, without the sessions it is about to get.
            let company = self.nodes.wait_for(|nodes| has_company(nodes));
            let _ = timeout_at(self.alone_from, company).await;
            return self.members();
        }
        tokio::select! {
            Ok(()) = self.nodes.changed() => self.members(),
            Some(event) = self.events.recv() => self.translate(event),
            // The cluster has ended, and so does the agent.
            else => std::future::pending().await,
        }
    }

    fn try_event(&mut self) -> Option<Event> {
        if !self.told {
            let told = has_company(&self.nodes.borrow()) || Instant::now() >= self.alone_from;
            return told.then(|| self.members());
        }
        if self.nodes.has_changed().unwrap_or(false) {
            return Some(self.members());
        }
        let event = self.events.try_recv()?;
        Some(self.translate(event))
    }

    async fn ready(&mut self, ready: bool) {
        self.cluster.set_syncing(!ready).await;
    }
}
