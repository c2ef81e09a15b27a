//! The resolved model of the web tier: HTTP frontends with their sites, mounts and TLS,
//! and what pools and backends say for HTTP.
//!
//! As in [`super`], nothing here can be half right. Sizes are bytes, times are
//! [`Duration`]s, and a limit that is `None` is switched off.

mod pool;

pub use pool::*;

use std::net::SocketAddr;
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
    /// Each thread stays on a core of its own, when there are as many of both
    /// (`[http] pin_threads`).
    pub pin_threads: bool,
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
    /// The node's statistics, in a form that scripts for other balancers read.
    Stats(Stats),
}

/// A view of the statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Whose form it has.
    pub format: StatsFormat,
    /// Clients that may see it; others get 403.
    pub allow: Vec<IpNet>,
}

/// Forms of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatsFormat {
    /// HAProxy's CSV (management guide, 9.1).
    HaproxyCsv,
    /// That of mod_jk's status worker.
    JkStatus,
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

impl Default for Http {
    /// A web tier without frontends.
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pin_threads: true,
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
