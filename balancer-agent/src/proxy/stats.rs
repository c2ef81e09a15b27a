//! What the status shows of the web tier: counters that requests add to, and the types
//! that `balancer status --json` prints (described in `docs/admin.md`).
//!
//! Counting is cheap (relaxed atomics, padded per thread where requests add to them) and
//! never waits; a status that is put together while requests run need not add up exactly.

pub mod build;
mod counts;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::http::StatsFormat;
use crate::model::{Activation, BackendName, Health};
use crate::session::GroupId;

pub use build::{frontend_status, pool_status, threads_status};
pub use counts::{FrontendCounts, Sums, THREADS_MAX, enter, slot};

/// What operators want of the web tier.
pub trait Web: Send + Sync {
    /// Everything about it.
    fn status(&self) -> HttpStatus;

    /// Requests that a backend has not answered whole.
    fn in_flight(&self, backend: &BackendName) -> u64;

    /// An operator's word on a backend, once steering has taken it.
    fn activation(&self, backend: &BackendName, activation: Activation);

    /// Under which ids the store has what a client says, a cookie's value or an address: for
    /// each pool that has its bindings there.
    fn session_ids(&self, said: &str) -> Vec<SessionId>;

    /// The pool that an id of the store is of.
    fn pool_of_session(&self, id: &[u8]) -> Option<Arc<str>>;

    /// Has every access log open its file again; one entry per file, in the order of
    /// their names. Waits for the threads that write, a few seconds at most.
    fn reopen_logs(&self) -> Vec<Reopened>;
}

/// Statistics as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Status of the answer.
    pub status: u16,
    /// Its media type.
    #[serde(skip)]
    pub content_type: &'static str,
    /// Its body.
    pub text: String,
}

/// Who renders statistics of the whole node.
pub trait Views: Send + Sync {
    /// Those of this moment, in that form; `query` is what clients add to ask for a variant.
    fn view(
        self: Arc<Self>,
        format: StatsFormat,
        query: String,
    ) -> Pin<Box<dyn Future<Output = View> + Send>>;
}

/// What the session store has a client's session under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionId {
    /// The pool whose session it would be.
    pub pool: Arc<str>,
    /// The group.
    pub group: GroupId,
    /// The id in the store.
    pub id: Vec<u8>,
}

/// The whole web tier.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpStatus {
    /// Connections from clients now, over all frontends.
    pub connections: u64,
    /// Most that are accepted: `[http] max_connections`.
    pub connections_limit: u64,
    /// By thread.
    pub threads: Vec<ThreadStatus>,
    /// In the order of the file.
    pub frontends: Vec<HttpFrontendStatus>,
    /// Pools that HTTP frontends name, in the order of the file.
    pub pools: Vec<HttpPoolStatus>,
    /// Access logs, by file.
    pub logs: Vec<LogStatus>,
}

/// What one of the proxy's threads has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThreadStatus {
    /// Requests that have ended.
    pub requests: u64,
    /// Bytes of requests' bodies.
    pub bytes_in: u64,
    /// Bytes of responses' bodies.
    pub bytes_out: u64,
}

/// One HTTP frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpFrontendStatus {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: Option<SocketAddr>,
    /// Whether clients speak TLS.
    pub tls: bool,
    /// Clients' connections now.
    pub connections: u64,
    /// Of these, kept ones that wait for a request with nothing but their socket.
    pub parked: u64,
    /// Of these, those that speak HTTP/2.
    pub http2: u64,
    /// Most there ever were at once.
    pub connections_most: u64,
    /// Most that are accepted: `[frontend.limits] connections`.
    pub connections_limit: u64,
    /// Connections since the agent has this frontend, those included that were refused.
    pub connections_total: u64,
    /// TLS handshakes that succeeded.
    pub tls_handshakes: u64,
    /// Of these, those that went on with an earlier session.
    pub tls_resumed: u64,
    /// Requests now.
    pub in_flight: u64,
    /// Requests that have ended.
    pub requests: u64,
    /// By class of status: `1xx` to `5xx`; `none` for clients that got none.
    pub statuses: BTreeMap<String, u64>,
    /// Requests that did not end well, by [`Cause`]'s word; those that are zero are absent.
    ///
    /// [`Cause`]: super::types::Cause
    pub causes: BTreeMap<String, u64>,
    /// Clients that were turned away before anything was done for them, by the reason's
    /// word (failed TLS handshakes are `tls-handshake`); those that are zero are absent.
    pub refused: BTreeMap<String, u64>,
    /// Bytes of requests' bodies.
    pub bytes_in: u64,
    /// Bytes of responses' bodies.
    pub bytes_out: u64,
    /// Connections cut because the client took nothing of a response for too long.
    pub send_timeouts: u64,
    /// Times that accepting paused for want of descriptors or memory.
    pub accept_pauses: u64,
}

/// One pool, for HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpPoolStatus {
    /// Its name.
    pub name: String,
    /// Requests that wait for a backend with room.
    pub queue: u64,
    /// Most that ever waited at once.
    pub queue_most: u64,
    /// Most that may: `[pool.queue] length`.
    pub queue_limit: u64,
    /// Requests that found the queue full.
    pub queue_refused: u64,
    /// Requests that waited in it too long.
    pub queue_timeouts: u64,
    /// Requests that found no usable backend.
    pub none_usable: u64,
    /// Requests whose session's backend was not usable, and no other was allowed.
    pub forced: u64,
    /// Attempts beyond requests' first.
    pub retries: u64,
    /// Attempts that the budget did not allow.
    pub retries_refused: u64,
    /// Sessions that went to another backend than theirs.
    pub rebound: u64,
    /// Cookies of the balancer's own that were forged, damaged, or made with another key.
    pub invalid_cookies: u64,
    /// Tables of sessions.
    pub tables: Vec<TableStatus>,
    /// In the order of the file.
    pub backends: Vec<HttpBackendStatus>,
}

/// A table that remembers something of sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableStatus {
    /// `learned` (cookie to backend) or `translated` (session ids whose route the browser
    /// sees is not the one their backend issued).
    pub kind: String,
    /// What is in it.
    pub entries: u64,
    /// Most that can be: `[http] learned_max`; the least recently used give way.
    pub limit: u64,
    /// Entries that gave way although they were still good.
    pub evicted: u64,
}

/// One backend, for HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpBackendStatus {
    /// Its name.
    pub name: String,
    /// Its route.
    pub route: String,
    /// What checks found.
    pub health: Health,
    /// What operators want.
    pub activation: Activation,
    /// Requests in flight.
    pub in_flight: u64,
    /// Most that may be: `max_connections`.
    pub in_flight_limit: Option<u64>,
    /// Requests that it was sent, repeated ones included.
    pub requests: u64,
    /// Of these, those that another backend had failed before.
    pub retries: u64,
    /// Answers by class of status; those that are zero are absent.
    pub statuses: BTreeMap<String, u64>,
    /// Connections that failed, or took too long.
    pub connect_failed: u64,
    /// Responses that broke off, or did not come.
    pub broken: u64,
    /// Responses that took too long.
    pub timed_out: u64,
    /// Requests whose client went away.
    pub client_aborted: u64,
    /// For how much longer observed failures keep it out, in milliseconds.
    pub ejected_ms: Option<u64>,
    /// Times that observed failures put it out.
    pub ejections: u64,
    /// Sessions bound to it in the pool's tables, where these say so.
    pub sessions: Option<u64>,
}

/// One access log's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogStatus {
    /// The file.
    pub file: String,
    /// Bytes that were written to it.
    pub bytes: u64,
    /// Bytes that wait to be written.
    pub waiting: u64,
    /// Most that may; more are dropped.
    pub waiting_limit: u64,
    /// Lines that were dropped: the file could not be written as fast, or not at all.
    pub dropped: u64,
    /// Why nothing can be written now.
    pub error: Option<String>,
}

/// What became of re-opening a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reopened {
    /// The file.
    pub file: String,
    /// Why it could not be opened; the old one is written on.
    pub error: Option<String>,
}
