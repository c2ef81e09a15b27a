//! What `[cluster]` says.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `[cluster]`: how nodes find each other, watch each other and talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// This node; no other node of the cluster has this name.
    pub name: Arc<str>,
    /// Where peers are listened to, by TCP and UDP.
    pub listen: SocketAddr,
    /// Where peers reach this node; never unspecified.
    pub advertise: SocketAddr,
    /// Nodes to ask for others; this node may be among them.
    pub seeds: Vec<SocketAddr>,
    /// What all nodes share.
    pub secret: Secret,
    /// Where the number of starts is kept.
    pub state_dir: PathBuf,
    /// Discovery by multicast.
    pub multicast: Option<Multicast>,
    /// When nodes are suspected and given up.
    pub timing: Timing,
    /// Most bytes that wait for one peer.
    pub queue_bytes: usize,
    /// Most messages that wait for one peer.
    pub queue_messages: usize,
}

/// Discovery by multicast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multicast {
    /// A multicast address, of the same family as `listen`.
    pub group: SocketAddr,
    /// The interface it is sent and heard on.
    pub interface: String,
}

/// How fast a node that is gone is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From one probe to the next; each goes to another node.
    pub probe_interval: Duration,
    /// For an answer before others are asked to probe as well; shorter than the interval.
    pub probe_timeout: Duration,
    /// How long a suspected node may take to object.
    pub suspect_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(500),
            probe_timeout: Duration::from_millis(200),
            suspect_timeout: Duration::from_secs(2),
        }
    }
}

/// The cluster's secret. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// From the bytes of the file.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes, to derive keys from.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
