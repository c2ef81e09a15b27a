//! The resolved model of the web tier: HTTP frontends with their sites, mounts and TLS,
//! and what pools and backends say for HTTP.
//!
//! As in [`super`], nothing here can be half right. Sizes are bytes, times are
//! [`Duration`]s, and a limit that is `None` is switched off.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;

/// The whole web tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Runtimes, each on a thread of its own: `[http] threads`; never 0 in a checked file
    /// (the default is one per core that the process may use).
    pub threads: usize,
    /// Bindings that `learn` keeps per pool, and translated session ids that `route` keeps;
    /// the least recently used give way (`[http] learned_max`).
    pub learned_max: usize,
    /// Connections from clients, over all HTTP frontends (`[http] max_connections`).
    pub max_connections: usize,
    /// How long running requests may go on after a stop or after their frontend was
    /// removed (`[http] drain_timeout`).
    pub drain_timeout: Duration,
    /// In the order of the file; names are unique, among [`super::Config::frontends`] too.
    pub frontends: Vec<Arc<HttpFrontend>>,
}

/// `[[frontend]]` with `mode = "http"`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFrontend {
    /// Unique name.
    pub name: Arc<str>,
    /// Where the agent listens; port 0 never. An unspecified address is every address.
    pub address: SocketAddr,
    /// TLS; `None` for plain HTTP.
    pub tls: Option<Tls>,
    /// Protocol versions that clients may speak.
    pub versions: Versions,
    /// A PROXY protocol header (version 1 or 2) has to come first; from these sources only.
    /// Empty: none is expected.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` are believed and extended; from others
    /// these headers are removed.
    pub trusted_proxies: Vec<IpNet>,
    /// What is told to backends.
    pub forwarded: Forwarded,
    /// `Via` in both directions (RFC 9110, 7.6.3), under this pseudonym.
    pub via: Option<Arc<str>>,
    /// Header that carries the request id: taken from a trusted proxy, made otherwise.
    pub request_id: Option<HeaderName>,
    /// `Strict-Transport-Security` on responses over TLS.
    pub hsts: Option<HeaderValue>,
    /// Plain HTTP is answered by a redirect to HTTPS on this port.
    pub redirect_https: Option<u16>,
    /// Limits against abuse.
    pub limits: Limits,
    /// Times that clients are given.
    pub timeouts: ClientTimeouts,
    /// Access log.
    pub log: Option<AccessLog>,
    /// Sites in the order of the file. A request belongs to the site with the most exact
    /// host: exact, then the longest wildcard, then the one without hosts.
    pub sites: Vec<Arc<Site>>,
}

/// `[frontend.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// In the order of the file; the first is for clients whose name fits none.
    pub certificates: Vec<CertificateFiles>,
    /// Oldest version that is spoken.
    pub minimum: TlsVersion,
    /// Whether and how clients show certificates.
    pub client_auth: ClientAuth,
}

/// A certificate chain and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// Leaf first.
    pub certificate: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// Certificates of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Not asked for.
    #[default]
    Off,
    /// Asked for, checked against these authorities when shown.
    Optional(PathBuf),
    /// Needed.
    Required(PathBuf),
}

/// Protocol versions of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// HTTP/1.0 and HTTP/1.1.
    pub http1: bool,
    /// HTTP/2: by ALPN over TLS, by prior knowledge (RFC 9113, 3.3) without.
    pub http2: bool,
}

/// Headers about the client that backends get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port`.
    pub x_forwarded: bool,
    /// `Forwarded` (RFC 7239).
    pub rfc7239: bool,
}

/// `[frontend.limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Fields of a request's header section.
    pub headers: usize,
    /// Bytes of a request's head: request line and fields.
    pub head_bytes: usize,
    /// Bytes of a request's target.
    pub target_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: Option<u64>,
    /// Connections of this frontend.
    pub connections: usize,
    /// Connections of one source address.
    pub connections_per_source: Option<u32>,
    /// Requests of one source address per second; a burst of as many is allowed.
    pub requests_per_source: Option<u32>,
    /// Requests of one connection; the last one is answered with `Connection: close`.
    pub requests_per_connection: Option<u64>,
    /// Streams of one HTTP/2 connection at once.
    pub h2_streams: u32,
    /// Streams of one HTTP/2 connection that clients may reset before they were answered;
    /// more end the connection (CVE-2023-44487).
    pub h2_resets: usize,
}

/// `[frontend.timeouts]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// TLS handshake, and a PROXY header before it.
    pub handshake: Duration,
    /// From a request's first byte to the end of its head.
    pub headers: Duration,
    /// Between requests of a kept connection.
    pub keep_alive: Duration,
    /// Longest gap without a byte of the request's body.
    pub body_idle: Duration,
    /// Fewest bytes per second of a request's body, over windows of 5 seconds.
    pub body_rate: Option<u64>,
    /// Longest time that a client takes none of the response's bytes.
    pub send: Duration,
}

/// `[frontend.log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// File that is appended to; re-opened on SIGUSR1 and `balancer reopen-logs`.
    pub file: PathBuf,
    /// How a line looks.
    pub format: LogFormat,
    /// Lines of the common and combined formats end in what only a balancer knows: backend,
    /// route, retries, times by phase and the cause of the end. JSON has it always.
    pub details: bool,
}

/// Formats of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Common Log Format.
    Common,
    /// Combined: with Referer and User-Agent.
    #[default]
    Combined,
    /// One JSON object per line.
    Json,
}

/// `[[frontend.site]]`: one or more host names and what is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Lower case, without port. Empty: every host.
    pub hosts: Vec<HostPattern>,
    /// Mounts, in the order of the file. See [`Mount::pattern`] for which one is taken.
    pub mounts: Vec<Arc<Mount>>,
    /// What mounts do not serve, as mod_jk's `JkUnMount`.
    pub exclusions: Vec<Exclusion>,
    /// What becomes of requests that no mount takes or that an exclusion gave back:
    /// usually [`Action::Files`]; 404 when absent.
    pub fallback: Option<Arc<Route>>,
}

/// A host name of a site.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This name.
    Exact(Box<str>),
    /// `*.example.org`: every name that ends in this, which begins with a dot.
    Suffix(Box<str>),
}

/// `[[frontend.site.mount]]`: mod_jk's `JkMount`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    /// Begins with `/`. `*` is any characters, `/` included; `?` is one. Compared with
    /// case, against the normalised path. Patterns with more `/` first, then longer ones,
    /// then the order of the file.
    pub pattern: Box<str>,
    /// What is done.
    pub route: Arc<Route>,
}

/// `[[frontend.site.exclude]]`: mod_jk's `JkUnMount`. Applied after a mount has matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// As [`Mount::pattern`].
    pub pattern: Box<str>,
    /// Only requests for this pool; `None` is `*`.
    pub pool: Option<Arc<str>>,
}

/// An action with its rewriting.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// What is done.
    pub action: Action,
    /// What is changed on the way.
    pub rewrite: Rewrite,
    /// Compresses text responses for clients that accept it.
    pub compress: Option<Compress>,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Goes to a pool; it exists and has [`PoolHttp`].
    Pool(Arc<str>),
    /// Files of a document root.
    Files(Files),
    /// A redirect. `{host}`, `{path}` (normalised, encoded) and `{query}` (with its `?`, or
    /// nothing) in the location are replaced.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: StatusCode,
        /// Absolute or beginning with `/`.
        location: Box<str>,
    },
    /// A fixed response.
    Respond {
        /// Not 1xx.
        status: StatusCode,
        /// `Content-Type`.
        content_type: HeaderValue,
        /// Read from a file or from the configuration, when the configuration was loaded.
        body: bytes::Bytes,
    },
}

/// Static files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Document root; nothing outside it is ever served, by symbolic links neither.
    pub root: PathBuf,
    /// Names tried in a directory, in order.
    pub index: Vec<Box<str>>,
    /// `file.br`, `file.gz` and `file.zst` beside `file` are served to those who accept them.
    pub precompressed: bool,
    /// `Cache-Control` of the files.
    pub cache_control: Option<HeaderValue>,
}

/// On-the-fly compression of responses with text types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compress {
    /// Smallest body, in bytes, that is worth it; one of unknown length is.
    pub min_bytes: u64,
}

/// Changes of requests and responses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    /// Removed from the beginning of the path, when it stands there as whole segments.
    pub strip_prefix: Option<Box<str>>,
    /// Put before the path after that; begins with `/` and does not end with it.
    pub add_prefix: Option<Box<str>>,
    /// Replaces the request's host. `None` keeps the client's.
    pub host: Option<HeaderValue>,
    /// Applied to the request in this order.
    pub request_headers: Vec<HeaderChange>,
    /// Applied to the response in this order.
    pub response_headers: Vec<HeaderChange>,
}

/// A change of one header. Hop-by-hop and framing headers are refused by the configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderChange {
    /// In place of all of that name.
    Set(HeaderName, HeaderValue),
    /// Beside those of that name.
    Add(HeaderName, HeaderValue),
    /// All of that name.
    Remove(HeaderName),
}

/// What a pool says for HTTP. Pools that no HTTP frontend names have the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolHttp {
    /// How a backend is chosen for a request without binding.
    pub balance: HttpBalance,
    /// Stickiness.
    pub sticky: Option<Sticky>,
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

impl Default for Http {
    /// A web tier without frontends.
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            learned_max: 100_000,
            max_connections: 200_000,
            drain_timeout: Duration::from_secs(30),
            frontends: Vec::new(),
        }
    }
}

impl Default for Versions {
    /// All of them.
    fn default() -> Self {
        Self {
            http1: true,
            http2: true,
        }
    }
}

impl Default for Forwarded {
    /// What every application server understands.
    fn default() -> Self {
        Self {
            x_forwarded: true,
            rfc7239: false,
        }
    }
}

impl Default for Compress {
    /// Less than a packet is not worth it.
    fn default() -> Self {
        Self { min_bytes: 1024 }
    }
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

impl Default for Limits {
    /// On without a word in the file.
    fn default() -> Self {
        Self {
            headers: 100,
            head_bytes: 32 << 10,
            target_bytes: 8 << 10,
            body_bytes: Some(100 << 20),
            connections: 100_000,
            connections_per_source: Some(16_384),
            requests_per_source: None,
            requests_per_connection: None,
            h2_streams: 128,
            h2_resets: 200,
        }
    }
}

impl Default for ClientTimeouts {
    /// On without a word in the file.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            handshake: seconds(10),
            headers: seconds(10),
            keep_alive: seconds(75),
            body_idle: seconds(30),
            body_rate: Some(256),
            send: seconds(60),
        }
    }
}
