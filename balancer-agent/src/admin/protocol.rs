//! The language of the admin socket: one JSON object on a line asks, one answers.
//! Described for other programs in `docs/admin.md`.
//!
//! Fields may be added to answers without a new [`VERSION`]; readers ignore what
//! they do not know.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::sessions::{
    SessionCounts, SessionFilter, SessionList, SessionName, SessionStatus, SessionsStatus,
};
use super::survey::Unheard;
use crate::cluster::status::ClusterStatus;
use crate::dataplane::kernel::Attached;
use crate::model::http::StatsFormat;
use crate::model::{Activation, Health};
use crate::proxy::stats::{HttpStatus, Reopened, View};

/// Version of the protocol; a request of another one is refused.
pub const VERSION: u32 = 1;

/// Longest line of a request, in bytes.
pub const REQUEST_MAX: usize = 64 << 10;

/// Longest line of an answer that a client reads, in bytes.
pub const ANSWER_MAX: u64 = 256 << 20;

/// A request as it stands on the line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

impl Asked {
    /// In this build's version.
    pub fn new(request: Request) -> Self {
        Self {
            version: VERSION,
            request,
        }
    }
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Everything; answered by [`Answer::Status`].
    Status,
    /// The statistics as another balancer's; answered by [`Answer::View`].
    View {
        /// Whose.
        format: StatsFormat,
        /// A variant, as in the query of a URL: `mime=xml`.
        #[serde(default)]
        query: String,
    },
    /// One backend; answered by [`Answer::Backend`].
    Backend {
        /// `pool/backend`, or the backend alone when only one pool has it.
        backend: String,
    },
    /// Changes a backend's activation; answered by [`Answer::Backend`] once the
    /// kernel has it.
    Activation {
        /// As in [`Request::Backend`].
        backend: String,
        /// From now on, over restarts of the agent too.
        activation: Activation,
    },
    /// Flows; answered by [`Answer::Flows`].
    Flows(FlowFilter),
    /// Reads the configuration file again; answered by [`Answer::Reloaded`] once the
    /// kernel has it.
    Reload,
    /// Opens the files of all access logs again; answered by [`Answer::LogsReopened`].
    ReopenLogs,
    /// Sessions of the cluster; answered by [`Answer::Sessions`].
    Sessions(SessionFilter),
    /// How many there are, by group and route; answered by [`Answer::SessionCounts`].
    SessionCounts {
        /// Of this group only.
        group: Option<String>,
    },
    /// One session, wherever it is held; answered by [`Answer::Session`].
    Session(SessionName),
    /// Ends one; answered by [`Answer::SessionEnded`].
    ExpireSession(SessionName),
}

/// Which flows are asked for; all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowFilter {
    /// Of this backend, as in [`Request::Backend`].
    pub backend: Option<String>,
    /// Of this frontend.
    pub frontend: Option<String>,
    /// Of this client.
    pub client: Option<IpAddr>,
    /// At most so many are listed; all are counted.
    pub limit: u32,
}

/// An answer as it stands on the line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// The answer, or why there is none.
    #[serde(flatten)]
    pub result: Outcome,
}

impl Answered {
    /// In this build's version.
    pub fn new(result: Result<Answer, Refusal>) -> Self {
        let result = match result {
            Ok(answer) => Outcome::Ok(answer),
            Err(refusal) => Outcome::Error(refusal),
        };
        Self {
            version: VERSION,
            result,
        }
    }
}

/// `{"ok": ...}` or `{"error": ...}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Ok(Answer),
    /// Not done.
    Error(Refusal),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Everything.
    Status(Box<Status>),
    /// Statistics as text.
    View(View),
    /// One backend, and its pool's name.
    Backend {
        /// The pool.
        pool: String,
        /// The backend.
        backend: Box<BackendStatus>,
    },
    /// Flows.
    Flows(FlowList),
    /// The new file is in force.
    Reloaded {
        /// What is odd in it, for people; empty when nothing is.
        warnings: String,
    },
    /// Sessions.
    Sessions(SessionList),
    /// How many there are.
    SessionCounts(SessionCounts),
    /// One session.
    Session(Box<SessionStatus>),
    /// A session was ended.
    SessionEnded {
        /// Its group.
        group: String,
        /// Its id, as lists show it.
        id: String,
    },
    /// The access logs were opened again, as far as they could be.
    LogsReopened {
        /// One entry per file, in the order of their names.
        files: Vec<Reopened>,
    },
}

/// Whose fault it is that something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request's: it can't be understood, or names what is not there.
    Request,
    /// The configuration file's.
    Config,
    /// The kernel's tables do not have all of it.
    Kernel,
    /// The agent's.
    Agent,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whose fault it is.
    pub fault: Fault,
    /// For people; may have several lines.
    pub message: String,
}

impl Refusal {
    /// With a message for people.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self {
            fault,
            message: message.into(),
        }
    }
}

/// Everything about the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The configuration is in the kernel: a first round is done.
    pub ready: bool,
    /// The node itself.
    pub node: NodeStatus,
    /// In the order of the file.
    pub frontends: Vec<FrontendStatus>,
    /// In the order of the file.
    pub pools: Vec<PoolStatus>,
    /// Removed from the file, and kept for their flows.
    pub lingering: Vec<LingeringStatus>,
    /// The kernel program's counters that are not zero, in their order.
    pub reasons: Vec<ReasonCount>,
    /// The web tier; absent in an agent that has none.
    pub http: Option<Box<HttpStatus>>,
    /// The cluster; absent in a node of its own.
    pub cluster: Option<Box<ClusterStatus>>,
    /// The session store; absent in a node without groups.
    pub sessions: Option<Box<SessionsStatus>>,
}

/// The node itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The agent's build.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// How long the agent has run, in milliseconds.
    pub uptime_ms: u64,
    /// The kernel's number of the program; absent without one.
    pub program_id: Option<u32>,
    /// Where program and tables are pinned.
    pub pin_dir: Option<String>,
    /// Where the program runs.
    pub interfaces: Vec<Attached>,
    /// Interfaces where it should run and does not, and why.
    pub not_attached: Vec<String>,
    /// Counts the states that were wanted.
    pub generation_desired: u64,
    /// The newest of them that the kernel has.
    pub generation_applied: u64,
    /// What kept the last round from doing everything.
    pub last_error: Option<String>,
    /// Bytes of kernel memory behind the tables.
    pub memory_bytes: u64,
    /// Flows in the tables of established flows.
    pub flows: u32,
    /// Flows in the half-open table.
    pub half_open: u32,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontendStatus {
    /// Its name.
    pub name: String,
    /// Where clients connect to.
    pub address: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its pool.
    pub pool: String,
    /// Flows now, established.
    pub flows: u32,
    /// Flows now, half open.
    pub half_open: u32,
    /// Flows since the frontend was made in the kernel.
    pub connections_total: u64,
    /// Flows of these that were established.
    pub established_total: u64,
    /// New flows that found no usable backend.
    pub refused: u64,
    /// Packets and bytes.
    #[serde(flatten)]
    pub traffic: TrafficStatus,
}

/// Packets and bytes; `in` is from clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficStatus {
    /// Packets from clients.
    pub packets_in: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// In the order of the file.
    pub backends: Vec<BackendStatus>,
}

/// One backend; sums over TCP and UDP where the pool has both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// The server.
    pub address: SocketAddr,
    /// What checks and signs found.
    pub health: Health,
    /// Why.
    pub health_reason: String,
    /// For how long, in milliseconds.
    pub health_for_ms: u64,
    /// What the last check found; absent before the first.
    pub last_check: Option<String>,
    /// Checks made, and failed ones among them.
    pub checks: u64,
    /// Checks that failed.
    pub checks_failed: u64,
    /// What holds: an operator's word, or the file's.
    pub activation: Activation,
    /// Whether an operator's word overrides the file.
    pub overridden: bool,
    /// From the file.
    pub weight: u16,
    /// Whether new flows are steered to it.
    pub usable: bool,
    /// Why frames to it are routed by the kernel, when its next hop is not known.
    pub hop_problem: Option<String>,
    /// Flows now, established.
    pub flows: u32,
    /// Flows now, half open.
    pub half_open: u32,
    /// Flows since the backend was made in the kernel.
    pub connections_total: u64,
    /// Flows of these that were established.
    pub established_total: u64,
    /// SYNs that it answered with RST.
    pub refused: u64,
    /// Requests of HTTP frontends that it has not answered whole.
    #[serde(default)]
    pub requests_in_flight: u64,
    /// Sessions bound to it, over the cluster; absent when its pool has no group, and in the
    /// whole status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// When the last of these ends if nobody comes back, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_session_ends_ms: Option<u64>,
    /// Nodes whose sessions are missing in these two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions_unheard: Vec<Unheard>,
    /// Packets and bytes.
    #[serde(flatten)]
    pub traffic: TrafficStatus,
}

/// Something that was removed from the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LingeringStatus {
    /// `frontend`, `backend` or `snat`.
    pub kind: String,
    /// Its name; absent when it was removed before the agent's start.
    pub name: Option<String>,
    /// How long ago it was found to be removed, in milliseconds.
    pub for_ms: u64,
    /// Flows that still use it.
    pub flows: u32,
}

/// One of the kernel program's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// See [`common::counters::Reason`].
    pub reason: String,
    /// Packets.
    pub count: u64,
}

/// Flows that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowList {
    /// How many there are.
    pub total: u64,
    /// As many as were asked for.
    pub flows: Vec<FlowStatus>,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client.
    pub client: SocketAddr,
    /// The frontend; absent when it was removed before the agent's start.
    pub frontend: Option<String>,
    /// Its `pool/backend`; likewise.
    pub backend: Option<String>,
    /// How far it is.
    pub state: String,
    /// Since its last packet, in milliseconds; exact to about a second.
    pub idle_ms: u64,
    /// Port that its source is translated to.
    pub snat_port: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_look_as_documented() {
        let asked = Asked::new(Request::Activation {
            backend: "web/s1".into(),
            activation: Activation::Drain,
        });
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"request":"activation","backend":"web/s1","activation":"drain"}"#
        );
        assert_eq!(serde_json::from_str::<Asked>(&text).unwrap(), asked);
        let flows = r#"{"version":1,"request":"flows","limit":5}"#;
        let Request::Flows(filter) = serde_json::from_str::<Asked>(flows).unwrap().request else {
            panic!("not a request for flows");
        };
        assert_eq!((filter.limit, filter.backend), (5, None));
        let reopen = r#"{"version":1,"request":"reopen_logs"}"#;
        let reopen = serde_json::from_str::<Asked>(reopen).unwrap();
        assert_eq!(reopen.request, Request::ReopenLogs);
    }

    #[test]
    fn answers_look_as_documented() {
        let text = serde_json::to_string(&Answered::new(Err(Refusal::new(Fault::Config, "no"))));
        assert_eq!(
            text.unwrap(),
            r#"{"version":1,"error":{"fault":"config","message":"no"}}"#
        );
        let answer = Answered::new(Ok(Answer::Reloaded {
            warnings: String::new(),
        }));
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(text, r#"{"version":1,"ok":{"reloaded":{"warnings":""}}}"#);
        assert_eq!(serde_json::from_str::<Answered>(&text).unwrap(), answer);
        let answer = Answered::new(Ok(Answer::LogsReopened {
            files: vec![Reopened {
                file: "/a".into(),
                error: None,
            }],
        }));
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"version":1,"ok":{"logs_reopened":{"files":[{"file":"/a","error":null}]}}}"#
        );
    }

    /// An agent of before the web tier says nothing of it, and a reader of then ignores it.
    #[test]
    fn a_status_may_lack_what_came_later() {
        let old = r#"{"version":1,"ok":{"status":{"ready":true}}}"#;
        let Outcome::Ok(Answer::Status(status)) =
            serde_json::from_str::<Answered>(old).unwrap().result
        else {
            panic!("not a status");
        };
        assert_eq!((status.ready, status.http), (true, None));
    }
}
