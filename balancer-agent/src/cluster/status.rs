//! The cluster for operators: who is there, how the links are, and what was counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Shared;
use super::core::{Node, State};

/// How long a name that two nodes have is worth a word after it was noticed. While both
/// are there, it is noticed again within two minutes.
const CONFLICT: Duration = Duration::from_secs(300);

/// Counts what comes and goes.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) datagrams_in: AtomicU64,
    pub(super) datagrams_out: AtomicU64,
    pub(super) unsent: AtomicU64,
    pub(super) garbage: AtomicU64,
    pub(super) wrong_secret: AtomicU64,
    pub(super) repeated: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) unproven: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) strangers: AtomicU64,
    pub(super) too_many: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) no_room: AtomicU64,
    pub(super) renewals: AtomicU64,
    /// Another node that has this one's name, and when it was last noticed.
    pub(super) conflict: Mutex<Option<(SocketAddr, Instant)>>,
    /// Of probes, by node; refreshed with every probe.
    pub(super) round_trips: Mutex<Vec<(super::NodeId, Duration)>>,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

/// Everything about the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// This node's name.
    pub name: String,
    /// Another node seems to have the same name; where it is.
    pub conflict: Option<SocketAddr>,
    /// All nodes, this one too, by name.
    pub nodes: Vec<NodeStatus>,
    /// What was counted since the start.
    pub counters: CounterStatus,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its id, derived from the name.
    pub id: String,
    /// Whether it is the node that tells.
    pub own: bool,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Which of its lives.
    pub incarnation: String,
    /// How it stands.
    pub state: State,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// From a probe to its answer, in microseconds; absent before the first.
    pub round_trip_us: Option<u64>,
    /// The link to it; absent when there should be none.
    pub link: Option<LinkStatus>,
}

/// One link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkStatus {
    /// Whether messages can be sent.
    pub up: bool,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// From a ping to its answer, through what waits on both sides, in microseconds.
    pub round_trip_us: Option<u64>,
    /// Bytes that wait to be sent.
    pub queue_bytes: u64,
    /// Most bytes that may wait.
    pub queue_bytes_max: u64,
    /// Messages that wait to be sent.
    pub queue_messages: u64,
    /// How often it came up.
    pub times_up: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Bytes sent, before encryption.
    pub bytes_out: u64,
    /// Writes that they took.
    pub writes: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Bytes received, after decryption.
    pub bytes_in: u64,
    /// Why the last link ended, or none came about.
    pub last_error: Option<String>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CounterStatus {
    /// Datagrams that were received, of whatever kind.
    pub datagrams_in: u64,
    /// Datagrams that were sent.
    pub datagrams_out: u64,
    /// Datagrams that the system did not take.
    pub unsent: u64,
    /// Received datagrams that are nothing of ours.
    pub garbage: u64,
    /// Received datagrams that were made with another secret, or changed on their way.
    pub wrong_secret: u64,
    /// Received datagrams that had been received before.
    pub repeated: u64,
    /// Received datagrams with the secret, and content of another version.
    pub malformed: u64,
    /// Received datagrams without a proof that they are of now; first contacts, normally.
    pub unproven: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// Those whose handshake failed: no or another secret, or another protocol.
    pub handshakes_failed: u64,
    /// Those with the secret, of nodes that are no members (yet).
    pub strangers: u64,
    /// Those that were closed since too many were in their handshake.
    pub too_many: u64,
    /// Messages that found a full queue.
    pub queue_full: u64,
    /// Links that were closed since what came over them could not be read.
    pub refused: u64,
    /// Nodes that found no room in the table.
    pub no_room: u64,
    /// Lives that were begun without a start.
    pub renewals: u64,
}

pub(super) fn status(shared: &Shared) -> ClusterStatus {
    let now = shared.started.elapsed();
    let all = std::sync::Arc::clone(&shared.nodes.borrow());
    let mut nodes: Vec<NodeStatus> = all.iter().map(|node| of_node(shared, node, now)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let counters = &shared.counters;
    let conflict = counters.conflict.lock();
    ClusterStatus {
        name: shared.name.to_string(),
        conflict: conflict
            .unwrap_or_else(PoisonError::into_inner)
            .filter(|(_, noticed)| noticed.elapsed() < CONFLICT)
            .map(|(address, _)| address),
        nodes,
        counters: counters.shown(),
    }
}

fn of_node(shared: &Shared, node: &Node, now: Duration) -> NodeStatus {
    let round_trips = shared.counters.round_trips.lock();
    let round_trips = round_trips.unwrap_or_else(PoisonError::into_inner);
    let round_trip = round_trips.iter().find(|(id, _)| *id == node.id);
    NodeStatus {
        name: node.name.to_string(),
        id: node.id.to_string(),
        own: node.own,
        address: node.address,
        incarnation: node.incarnation.to_string(),
        state: node.state,
        for_ms: milliseconds(now.saturating_sub(node.since)),
        round_trip_us: round_trip.map(|(_, took)| took.as_micros() as u64),
        link: of_link(shared, node, now),
    }
}

fn of_link(shared: &Shared, node: &Node, now: Duration) -> Option<LinkStatus> {
    let links = &shared.links;
    let stats = links.stats.lock();
    let stats = stats.unwrap_or_else(PoisonError::into_inner);
    let stats = stats.get(&node.id)?;
    let open = links.open.load();
    let fill = open.get(&node.id).map(|queue| queue.fill());
    let fill = fill.unwrap_or_default();
    let since = Duration::from_millis(stats.since.load(Relaxed));
    let round_trip = stats.round_trip.load(Relaxed);
    Some(LinkStatus {
        up: stats.up.load(Relaxed),
        for_ms: milliseconds(now.saturating_sub(since)),
        round_trip_us: (round_trip > 0).then_some(round_trip),
        queue_bytes: fill.bytes as u64,
        queue_bytes_max: links.queue_bytes.load(Relaxed) as u64,
        queue_messages: fill.messages as u64,
        times_up: stats.times_up.load(Relaxed),
        messages_out: stats.messages_out.load(Relaxed),
        bytes_out: stats.bytes_out.load(Relaxed),
        writes: stats.writes.load(Relaxed),
        messages_in: stats.messages_in.load(Relaxed),
        bytes_in: stats.bytes_in.load(Relaxed),
        last_error: stats.last_error(),
    })
}

impl Counters {
    fn shown(&self) -> CounterStatus {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        CounterStatus {
            datagrams_in: count(&self.datagrams_in),
            datagrams_out: count(&self.datagrams_out),
            unsent: count(&self.unsent),
            garbage: count(&self.garbage),
            wrong_secret: count(&self.wrong_secret),
            repeated: count(&self.repeated),
            malformed: count(&self.malformed),
            unproven: count(&self.unproven),
            connections: count(&self.connections),
            handshakes_failed: count(&self.handshakes_failed),
            strangers: count(&self.strangers),
            too_many: count(&self.too_many),
            queue_full: count(&self.queue_full),
            refused: count(&self.refused),
            no_room: count(&self.no_room),
            renewals: count(&self.renewals),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
