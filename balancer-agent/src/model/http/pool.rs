//! What pools and backends say for HTTP: balancing, stickiness, queues, retries, times.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use ipnet::IpNet;

use super::CertificateFiles;
use crate::model::session::PoolSessions;

/// What a pool says for HTTP. Pools that no HTTP frontend names have the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolHttp {
    /// How a backend is chosen for a request without binding.
    pub balance: HttpBalance,
    /// Stickiness.
    pub sticky: Option<Sticky>,
    /// The group that its bindings are sessions of; `None`: they are this node's alone.
    pub sessions: Option<PoolSessions>,
    /// Requests that wait for a backend with room.
    pub queue: Queue,
    /// Repeating.
    pub retries: Retries,
    /// Passive health from responses.
    pub observe: Option<Observe>,
    /// Percentage of backends of a pool that have to be usable (observed failures aside);
    /// with fewer, observed failures are disregarded. 0 switches it off.
    pub panic_threshold: u8,
    /// A backend that came up gets a share that grows to its own over this time.
    pub slow_start: Duration,
    /// How backends are spoken to.
    pub protocol: BackendProtocol,
    /// What only [`BackendProtocol::Ajp`] goes by.
    pub ajp: Ajp,
    /// TLS to backends.
    pub tls: Option<BackendTls>,
    /// A PROXY protocol header of this version goes first; connections are then not shared
    /// between clients.
    pub send_proxy: Option<ProxyVersion>,
    /// Times.
    pub timeouts: BackendTimeouts,
    /// Idle connections that each thread keeps to each backend.
    pub keep_alive_connections: usize,
    /// What clients get while no backend is usable; a plain 503 when absent.
    pub maintenance: Option<MaintenancePage>,
}

/// Balancing of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HttpBalance {
    /// Smooth weighted round robin, over all threads together.
    #[default]
    RoundRobin,
    /// Fewest requests in flight per weight.
    LeastConnections,
    /// The better of two chosen at random, by requests in flight per weight.
    PowerOfTwo,
    /// Rendezvous hash of the client's address.
    Source,
}

/// Stickiness of a pool.
#[derive(Clone, Debug, PartialEq)]
pub enum Sticky {
    /// The text after the first `.` of the session id names a backend by its route.
    Route(StickyRoute),
    /// A cookie of the balancer's own.
    Cookie(StickyCookie),
    /// A cookie that the application sets.
    Learn(StickyLearn),
    /// The client's address.
    Source {
        /// IPv4 addresses are taken by this many leading bits.
        ipv4_prefix: u8,
        /// IPv6 addresses are taken by this many leading bits.
        ipv6_prefix: u8,
    },
}

/// mod_jk's stickiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickyRoute {
    /// Name of the session cookie.
    pub cookie: Box<str>,
    /// Name of the path parameter, without `;` and `=`; empty for none.
    pub parameter: Box<str>,
    /// 503 instead of another backend (`sticky_session_force`).
    pub force: bool,
}

/// Attributes of a cookie (RFC 6265bis).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieAttributes {
    /// `Path`.
    pub path: Box<str>,
    /// `Domain`.
    pub domain: Option<Box<str>>,
    /// `Max-Age`; a session cookie when absent.
    pub max_age: Option<Duration>,
    /// `Secure`.
    pub secure: bool,
    /// `HttpOnly`.
    pub http_only: bool,
    /// `SameSite`.
    pub same_site: Option<SameSite>,
    /// `Partitioned`.
    pub partitioned: bool,
}

/// `SameSite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Also from other sites' navigation.
    Lax,
    /// From the same site only.
    Strict,
    /// Always; asks for `Secure`.
    None,
}

/// An inserted cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickyCookie {
    /// Its name.
    pub name: Box<str>,
    /// What its value shows.
    pub value: CookieValue,
    /// Its attributes.
    pub attributes: CookieAttributes,
    /// 503 instead of another backend.
    pub force: bool,
}

/// Value of an inserted cookie. Keys have been read from their file; 32 bytes or more.
#[derive(Clone, PartialEq, Eq)]
pub enum CookieValue {
    /// Route and HMAC-SHA256, both readable.
    Signed(Arc<[u8]>),
    /// Nothing about the backend can be read from it (AES-256-GCM or a keyed hash).
    Opaque(Arc<[u8]>),
}

impl std::fmt::Debug for CookieValue {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Signed(_) => "Signed(..)",
            Self::Opaque(_) => "Opaque(..)",
        })
    }
}

/// A cookie of the application, remembered when a backend sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickyLearn {
    /// Its name.
    pub cookie: Box<str>,
    /// A binding that was not used for this long is forgotten.
    pub idle: Duration,
    /// 503 instead of another backend.
    pub force: bool,
}

/// `[pool.queue]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Most requests that wait; more get 503 with `Retry-After` at once.
    pub length: usize,
    /// Longest wait; then 503.
    pub timeout: Duration,
}

/// `[pool.retries]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Attempts after the first, on other backends while there are some.
    pub attempts: u32,
    /// Retries as a percentage of requests; a few are always allowed.
    pub budget_percent: u32,
    /// Also requests that are not idempotent, after they were sent (mod_jk's behaviour).
    pub non_idempotent: bool,
    /// Idempotent requests are repeated when a backend answers with one of these.
    pub on_status: [bool; 3],
}

/// Places of [`Retries::on_status`].
pub const RETRY_STATUS: [u16; 3] = [502, 503, 504];

/// `[pool.observe]`: passive health from real requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observe {
    /// Failures in a row (connect, cut response, 500..=599 if [`Self::status`]) that eject.
    pub failures: u32,
    /// Whether statuses from 500 count.
    pub status: bool,
    /// First time out; doubles with each ejection that follows soon, up to `max`.
    pub ejection: Duration,
    /// Longest time out.
    pub max_ejection: Duration,
}

/// Protocol to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2: ALPN with TLS, prior knowledge without.
    Http2,
    /// AJP13, without TLS and PROXY header, which its servers do not know.
    Ajp,
}

/// What AJP13 needs beside addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ajp {
    /// What the backends' connectors want to see with every request.
    pub secret: Option<Secret>,
    /// Bytes of a packet at most, its header included; as the backends' connectors have it.
    pub packet_size: usize,
    /// Questions whether a backend answers, CPING and CPONG.
    pub ping: Ping,
}

/// The least bytes of [`Ajp::packet_size`]; also what connectors have unless told otherwise.
pub const PACKET_LEAST: usize = 8192;
/// The most.
pub const PACKET_MOST: usize = 65_536;

/// `[pool.ping]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// On each fresh connection, before its first request.
    pub connect: bool,
    /// Before a request, on a connection that rested so long; `None`: never.
    pub reuse: Option<Duration>,
    /// Longest wait for the answer.
    pub timeout: Duration,
}

/// A word that only those who may know it get to see.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Arc<str>);

impl std::fmt::Debug for Secret {
    /// Without the word.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `[pool.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// What vouches for backends.
    pub verify: Verify,
    /// Name that is asked for (SNI) and verified; the backend's address when absent.
    pub server_name: Option<Box<str>>,
    /// Certificate of the balancer.
    pub certificate: Option<CertificateFiles>,
}

/// Verification of backends' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// By the system's authorities.
    System,
    /// By the authorities in a PEM file.
    Authorities(PathBuf),
    /// Not at all.
    Off,
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// `[pool.timeouts]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendTimeouts {
    /// TCP (and TLS) connection.
    pub connect: Duration,
    /// From the request's last byte to the response's head; 504 then.
    pub response: Duration,
    /// Longest gap within a response's body.
    pub idle: Duration,
    /// Longest time for a whole request.
    pub request: Option<Duration>,
    /// Longest silence of an upgraded connection.
    pub tunnel: Duration,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
}

/// A page for when nothing else can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct MaintenancePage {
    /// Usually 503.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: HeaderValue,
    /// Read when the configuration was loaded.
    pub body: bytes::Bytes,
}

/// What `[[pool.backend]]` says for HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendHttp {
    /// Route: what follows the first `.` of a session id. The backend's name by default.
    /// Unique in its pool.
    pub route: Arc<str>,
    /// mod_jk's domain: members whose routes begin with it and a `.` stand in for each other.
    pub domain: Option<Arc<str>>,
    /// Route of the backend that takes over (mod_jk's `redirect`); it exists.
    pub redirect: Option<Arc<str>>,
    /// Priority group; a group is used only while no lower one has a usable backend. 0 first,
    /// backup servers 1 and more. mod_jk's `distance`.
    pub priority: u8,
    /// Requests in flight at most.
    pub max_connections: Option<u32>,
    /// In a pool of [`BackendProtocol::Ajp`]: where it speaks HTTP, for WebSockets.
    pub http_port: Option<u16>,
    /// In place of [`Ajp::secret`].
    pub secret: Option<Secret>,
}

/// The prefix of an address.
pub fn masked(address: IpAddr, ipv4_prefix: u8, ipv6_prefix: u8) -> IpAddr {
    let prefix = match address {
        IpAddr::V4(_) => ipv4_prefix,
        IpAddr::V6(_) => ipv6_prefix,
    };
    // Prefixes were checked; a longer one could only mean the whole address.
    IpNet::new(address, prefix).map_or(address, |net| net.trunc().addr())
}

impl Default for StickyRoute {
    /// Where servlet containers put the session id.
    fn default() -> Self {
        Self {
            cookie: "JSESSIONID".into(),
            parameter: "jsessionid".into(),
            force: false,
        }
    }
}

impl Default for CookieAttributes {
    /// A session cookie for the whole host, out of reach of scripts.
    fn default() -> Self {
        Self {
            path: "/".into(),
            domain: None,
            max_age: None,
            secure: false,
            http_only: true,
            same_site: Some(SameSite::Lax),
            partitioned: false,
        }
    }
}

impl Default for PoolHttp {
    /// What a pool has that says nothing for HTTP.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            balance: HttpBalance::RoundRobin,
            sticky: None,
            sessions: None,
            queue: Queue {
                length: 1024,
                timeout: seconds(10),
            },
            retries: Retries {
                attempts: 2,
                budget_percent: 20,
                non_idempotent: false,
                on_status: [false; 3],
            },
            observe: Some(Observe {
                failures: 5,
                status: false,
                ejection: seconds(5),
                max_ejection: seconds(60),
            }),
            panic_threshold: 50,
            slow_start: Duration::ZERO,
            protocol: BackendProtocol::Http1,
            ajp: Ajp {
                secret: None,
                packet_size: PACKET_LEAST,
                ping: Ping {
                    connect: true,
                    reuse: Some(Duration::ZERO),
                    timeout: seconds(2),
                },
            },
            tls: None,
            send_proxy: None,
            timeouts: BackendTimeouts {
                connect: seconds(3),
                response: seconds(60),
                idle: seconds(60),
                request: None,
                tunnel: seconds(3600),
                keep_alive: seconds(30),
            },
            keep_alive_connections: 128,
            maintenance: None,
        }
    }
}
