//! The nodes that belong together: who is there, and a way to talk to each.
//!
//! ```text
//!            UDP  <-->  seal  <-->  core (SWIM)  -->  members
//! multicast  -->  ^                  ^    |
//!                                    |    v
//!            TCP  <-->  door, TLS  <-->  links (one task per peer)  <-->  send, events
//! ```
//! - `id`, `life`: nodes and their lives; `keys`: what is derived from the secret;
//! - `message`, `seal`: datagrams; `members`, `core`: membership, without input or output;
//! - `door`, `tls`, `frame`, `queue`, `link`: connections;
//! - `socket`, `driver`: the sockets, and the loop that connects everything.
//!
//! Described for operators in `docs/cluster.md`.

mod core;
mod door;
mod driver;
mod frame;
mod id;
mod keys;
mod life;
mod link;
mod members;
mod message;
mod queue;
mod seal;
mod socket;
pub mod status;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::model::cluster as config;
use link::Links;
use status::Counters;

pub use self::core::{Core, Initial, Input, Node, Output, Settings, State};
pub use driver::Driver;
pub use frame::MESSAGE_MAX;
pub use id::{Incarnation, NodeId};
pub use members::{Member, NODES_MAX};
pub use message::{ABOUT_MAX, Kind, Malformed, Message, Record, Standing};
pub use seal::Life;

/// How long the last words may take.
const GOODBYE: Duration = Duration::from_millis(500);
/// Batches of messages that wait for the one who reads events. Each is about one read of a
/// connection (64 KiB), or one message of the longest kind.
const EVENTS: usize = 16;

/// What keeps a node from taking part.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// An address can't be listened on.
    #[error("cannot listen for peers on {address} ({protocol}): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The multicast group can't be joined.
    #[error("cannot join the multicast group {group} on {interface}: {error}")]
    Multicast {
        /// The group.
        group: SocketAddr,
        /// The interface.
        interface: String,
        /// What the system says.
        error: io::Error,
    },
    /// No random numbers, or something that should always work.
    #[error("cluster: {0}")]
    Crypto(&'static str),
    /// TLS can't be set up.
    #[error("cluster: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a message was not taken. It is not kept: who sent it has to make up for it when
/// the link is there (again) or has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too much waits for that node already.
    #[error("the queue to the node is full")]
    Full,
    /// There is no link to that node.
    #[error("there is no link to the node")]
    Unknown,
    /// It is longer than allowed.
    #[error("the message is too long")]
    TooLong,
}

/// What comes from other nodes. For one node, everything comes in order: `LinkUp`, what it
/// sent over that link in the order it sent it, `LinkDown`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is a link: messages can be sent from now on. What was sent over an earlier
    /// link and not answered may be lost.
    LinkUp {
        /// The other end.
        node: NodeId,
        /// Which of its lives.
        incarnation: Incarnation,
    },
    /// The link is gone, and with it what was waiting for it.
    LinkDown {
        /// The other end.
        node: NodeId,
        /// Which of its lives.
        incarnation: Incarnation,
    },
    /// A message.
    Message {
        /// The sender.
        node: NodeId,
        /// Which of its lives.
        incarnation: Incarnation,
        /// Shares its memory with others of the same read: copy what is kept.
        content: Bytes,
    },
}

/// Events as they come from links.
#[derive(Debug)]
enum Arrival {
    Event(Event),
    Messages(NodeId, Incarnation, Vec<Bytes>),
}

/// The receiving end. While nobody reads, senders are held up.
pub struct Events {
    arrivals: mpsc::Receiver<Arrival>,
    batch: Option<(NodeId, Incarnation, std::vec::IntoIter<Bytes>)>,
}

impl Events {
    /// The next event; nothing when the cluster has ended. Loses nothing when it is
    /// dropped half way.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.next_of_batch() {
                return Some(event);
            }
            match self.arrivals.recv().await? {
                Arrival::Event(event) => return Some(event),
                Arrival::Messages(node, incarnation, batch) => {
                    self.batch = Some((node, incarnation, batch.into_iter()));
                }
            }
        }
    }

    /// The next event, when one is there.
    pub fn try_recv(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.next_of_batch() {
                return Some(event);
            }
            match self.arrivals.try_recv().ok()? {
                Arrival::Event(event) => return Some(event),
                Arrival::Messages(node, incarnation, batch) => {
                    self.batch = Some((node, incarnation, batch.into_iter()));
                }
            }
        }
    }

    fn next_of_batch(&mut self) -> Option<Event> {
        let (node, incarnation, batch) = self.batch.as_mut()?;
        let (node, incarnation) = (*node, *incarnation);
        let Some(content) = batch.next() else {
            self.batch = None;
            return None;
        };
        Some(Event::Message {
            node,
            incarnation,
            content,
        })
    }
}

/// What a user of the cluster tells the driver.
enum Command {
    Configure(Arc<config::Cluster>),
    Syncing(bool),
    About(Vec<u8>),
    Leave(oneshot::Sender<()>),
}

/// The cluster, for those who use it. Clones are the same cluster.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

struct Shared {
    id: NodeId,
    name: Arc<str>,
    started: Instant,
    nodes: watch::Receiver<Arc<Vec<Node>>>,
    links: Arc<Links>,
    counters: Arc<Counters>,
    commands: mpsc::Sender<Command>,
}

impl Cluster {
    /// Takes the addresses and makes the keys; nothing is sent or answered before the
    /// driver runs.
    ///
    /// # Errors
    /// An address is taken or not of this host, the multicast group can't be joined, or
    /// the system has no random numbers.
    pub fn bind(
        config: &Arc<config::Cluster>,
        start: Initial,
    ) -> Result<(Self, Events, Driver), ClusterError> {
        driver::bind(config, start)
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// A node's name; its id when it is not known.
    pub fn name_of(&self, node: NodeId) -> String {
        let nodes = self.0.nodes.borrow();
        let known = nodes.iter().find(|known| known.id == node);
        known.map_or_else(|| node.to_string(), |known| known.name.to_string())
    }

    /// All nodes that are known, this one too, sorted by id; and whenever that changes.
    pub fn members(&self) -> watch::Receiver<Arc<Vec<Node>>> {
        self.0.nodes.clone()
    }

    /// Puts a message (at most [`MESSAGE_MAX`] bytes) behind those that wait for a node.
    /// Never waits.
    ///
    /// # Errors
    /// There is no link to the node, or no room.
    pub fn send(&self, node: NodeId, message: &[u8]) -> Result<(), SendError> {
        let links = self.0.links.open.load();
        let queue = links.get(&node).ok_or(SendError::Unknown)?;
        let sent = queue.push(message);
        if sent == Err(SendError::Full) {
            Counters::add(&self.0.counters.queue_full);
        }
        sent
    }

    /// Closes the link to a node, because what came over it can't be read. Like any that
    /// broke it is made anew, later and later while it breaks soon.
    pub fn refuse(&self, node: NodeId, why: &str) {
        if let Some(queue) = self.0.links.open.load().get(&node) {
            Counters::add(&self.0.counters.refused);
            queue.refuse(why);
        }
    }

    /// Says that this node has (not) caught up with the others' sessions.
    pub async fn set_syncing(&self, syncing: bool) {
        // After the driver's end nobody is interested.
        let _ = self.0.commands.send(Command::Syncing(syncing)).await;
    }

    /// Changes what is told of this node: see [`Node::about`].
    ///
    /// # Errors
    /// It is longer than [`ABOUT_MAX`].
    pub async fn set_about(&self, about: &[u8]) -> Result<(), SendError> {
        if about.len() > ABOUT_MAX {
            return Err(SendError::TooLong);
        }
        let _ = self.0.commands.send(Command::About(about.into())).await;
        Ok(())
    }

    /// Takes new seeds, timings and bounds of queues; the rest has to be the same: see
    /// [`differences`].
    pub async fn configure(&self, config: Arc<config::Cluster>) {
        let _ = self.0.commands.send(Command::Configure(config)).await;
    }

    /// Says goodbye and closes all links. Returns when that is done, or half a second has
    /// passed.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.0.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = tokio::time::timeout(GOODBYE, left).await;
        }
    }

    /// For operators.
    pub fn status(&self) -> status::ClusterStatus {
        status::status(&self.0)
    }
}

/// The keys of the session store, the same on every node: for the placement of sessions,
/// and for hashes of their ids.
///
/// # Errors
/// Something that should always work does not.
pub fn session_keys(secret: &config::Secret) -> Result<([u64; 2], [u64; 2]), ClusterError> {
    keys::Keys::new(secret).sessions()
}

/// Keys of `[cluster]` that differ and that a running node can't follow.
pub fn differences(
    old: Option<&config::Cluster>,
    new: Option<&config::Cluster>,
) -> Vec<&'static str> {
    let (old, new) = match (old, new) {
        (None, None) => return Vec::new(),
        (Some(old), Some(new)) => (old, new),
        _ => return vec!["[cluster] (there or not)"],
    };
    let mut differ = Vec::new();
    let mut compare = |key, same: bool| {
        if !same {
            differ.push(key);
        }
    };
    compare("[cluster] name", old.name == new.name);
    compare("[cluster] listen", old.listen == new.listen);
    compare("[cluster] advertise", old.advertise == new.advertise);
    compare(
        "[cluster] secret_file (its content)",
        old.secret == new.secret,
    );
    compare("[cluster] state_dir", old.state_dir == new.state_dir);
    compare(
        "[cluster] multicast, interface",
        old.multicast == new.multicast,
    );
    differ
}
