//! The resolved model: what a configuration means once it has been checked.
//!
//! Nothing here can be half right: a value of these types was built by
//! [`crate::config`] from a file that passed every check. Names are shared
//! (`Arc<str>`), lists keep the order of the file, and the whole [`Config`] is
//! immutable: a reload makes a new one.

pub mod cluster;
pub mod http;
mod named;
pub mod session;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use named::{Misfit, Named};

/// A whole, checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The kernel side.
    pub xdp: Xdp,
    /// The operators' socket.
    pub admin: Admin,
    /// When the agent forgets flows.
    pub timeouts: FlowTimeouts,
    /// Frontends that are steered in the kernel, in the order of the file; names are
    /// unique, among those of [`Self::http`] too.
    pub frontends: Vec<Frontend>,
    /// Frontends that the agent answers itself.
    pub http: http::Http,
    /// The nodes that belong together; `None` for a node of its own.
    pub cluster: Option<Arc<cluster::Cluster>>,
    /// Sessions that nodes keep together; `None` without a group.
    pub sessions: Option<session::Sessions>,
    /// In the order of the file; names are unique.
    pub pools: Vec<Arc<Pool>>,
}

impl Config {
    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|p| &*p.name == name)
    }
}

/// `[xdp]`: where and how the program is attached, and how large its tables are.
/// The sizes and the pin directory hold from the first start on; a reload that
/// changes them is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Names of the interfaces that packets arrive on: the clients' side and the
    /// servers' side. Empty when no frontend is steered in the kernel.
    pub interfaces: Vec<String>,
    /// How to attach.
    pub mode: XdpMode,
    /// Established IPv4 flows to have room for.
    pub flows_ipv4: u32,
    /// Established IPv6 flows to have room for.
    pub flows_ipv6: u32,
    /// Half-open flows to have room for.
    pub half_open: u32,
    /// Directory under a bpf file system where program and maps are pinned;
    /// `None` lets the agent choose one for its network namespace.
    pub pin_dir: Option<PathBuf>,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver can, generic otherwise.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the stack's receive path.
    Generic,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Path of the Unix socket.
    pub socket: PathBuf,
}

/// `[timeouts]`: when an idle flow is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// Established TCP without a packet.
    pub tcp_idle: Duration,
    /// UDP without a packet.
    pub udp_idle: Duration,
    /// TCP handshake not completed.
    pub half_open: Duration,
    /// TCP after RST or FIN from both sides.
    pub closed: Duration,
    /// How long flows of a backend or frontend that was removed from the
    /// configuration may go on.
    pub removed: Duration,
}

/// Transport protocol of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP (6).
    Tcp,
    /// UDP (17).
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `[[frontend]]` with `mode = "xdp"`: an address, port and protocol that is steered in the
/// kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Unique name.
    pub name: Arc<str>,
    /// Address and port.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Name of the pool; it exists.
    pub pool: Arc<str>,
}

/// `[[pool]]`: backends with one policy and one check.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Unique name.
    pub name: Arc<str>,
    /// How a backend is chosen.
    pub balance: Balance,
    /// How packets reach the backend.
    pub forward: Forward,
    /// Source addresses to translate to; empty keeps the client's address.
    pub snat: Vec<IpAddr>,
    /// First and last source port to translate to.
    pub snat_ports: (u16, u16),
    /// What a new flow gets when no backend is usable.
    pub unavailable: common::tables::Unavailable,
    /// Active health check.
    pub check: Check,
    /// Passive signs from the kernel.
    pub passive: Passive,
    /// In the order of the file; names are unique in the pool.
    pub backends: Vec<Backend>,
    /// What it says for requests of HTTP frontends.
    pub http: Arc<http::PoolHttp>,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// Smooth weighted round robin, exact over each cycle.
    #[default]
    RoundRobin,
}

/// How packets reach the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forward {
    /// Both directions through the balancer, destination translated.
    #[default]
    Nat,
}

/// `[[pool.backend]]`: one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique in its pool.
    pub name: Arc<str>,
    /// Address and port.
    pub address: SocketAddr,
    /// 0 to 256; 0 gets no new flows.
    pub weight: u16,
    /// What the configuration says; an operator may override it at run time.
    pub activation: Activation,
    /// What it says for HTTP.
    pub http: http::BackendHttp,
}

/// What an operator wants of a backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// New flows and existing ones.
    #[default]
    Active,
    /// Existing flows only.
    Drain,
    /// Nothing; existing flows are cut.
    Stopped,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Drain => "drain",
            Self::Stopped => "stopped",
        })
    }
}

/// What the checks found.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Takes new flows.
    Up,
    /// Takes none; also the state before the first check has passed.
    #[default]
    Down,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// `[pool.check]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is tried.
    pub kind: CheckKind,
    /// Time between checks in a settled state.
    pub interval: Duration,
    /// Time between checks while the last results disagree with the state.
    pub fast_interval: Duration,
    /// Longest time for one check, connect to verdict.
    pub timeout: Duration,
    /// Failures in a row that take an up backend down.
    pub fall: u32,
    /// Successes in a row that bring a down backend up.
    pub rise: u32,
    /// Port to check instead of the backend's.
    pub port: Option<u16>,
    /// TLS, as the pool's [`http::PoolHttp::tls`] says, which is there then.
    pub tls: bool,
    /// It goes where requests of HTTP frontends go, and is spoken as they are: HTTP/2 or a
    /// PROXY header first, where the pool says so.
    pub as_requests: bool,
}

/// What a check tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// No check: always up.
    None,
    /// A TCP connection opens; with TLS, its handshake is completed.
    Tcp,
    /// A GET is answered with an expected status.
    Http {
        /// Path and query, beginning with `/`.
        path: String,
        /// Host; when absent, the name that TLS asks for, or the address and port.
        host: Option<String>,
        /// Inclusive ranges of expected status codes.
        expect: Vec<(u16, u16)>,
    },
    /// A CPING of AJP13 is answered by CPONG.
    Ajp,
}

/// `[pool.passive]`: signs from real connections, counted as failed checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// A SYN answered by RST counts.
    pub refused: bool,
    /// A SYN not answered within this time counts; `None` switches it off.
    pub unanswered: Option<Duration>,
}

/// Names a backend: pool and name within it. Shown as `pool/backend`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendName {
    /// The pool.
    pub pool: Arc<str>,
    /// The backend.
    pub backend: Arc<str>,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.backend)
    }
}
