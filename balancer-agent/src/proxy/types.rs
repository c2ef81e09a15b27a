//! What travels between the parts of the web tier: bodies, what is known of a client's
//! connection, faults, and the record of a request for the access log.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// Why a body ended early. It reaches hyper, which then cuts the connection: the other
/// side must not take the part for the whole.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or response's body.
///
/// Not `Send`: a request stays on the thread that accepted it.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All at once; `None` when it has been taken.
    Full(Option<Bytes>),
    /// As it comes from a connection.
    Incoming(Incoming),
    /// Anything else: files, compressed, counted, limited.
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>),
}

impl Body {
    /// A body of one piece.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        match bytes.is_empty() {
            true => Self::Empty,
            false => Self::Full(Some(bytes)),
        }
    }

    /// Any other body.
    pub fn boxed<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + 'static,
        B::Error: Into<BodyError>,
    {
        use http_body_util::BodyExt;
        Self::Boxed(Box::pin(body.map_err(Into::into)))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Incoming(body) => body.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Incoming(body) => body.size_hint(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}

/// The address with IPv4 as IPv4, also where a socket of both families says it as IPv6
/// (RFC 4291, 2.5.5.2).
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What is known of the connection that a request came on.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The client: the peer, or whom its PROXY header names.
    pub client: SocketAddr,
    /// Where the client connected to: the socket's own address, or the PROXY header's.
    pub local: SocketAddr,
    /// The peer of the TCP connection itself; [`Self::client`] unless a PROXY header came.
    pub peer: IpAddr,
    /// What TLS agreed on.
    pub tls: Option<TlsInfo>,
}

/// What a TLS handshake agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// `TLSv1.2`, `TLSv1.3`.
    pub version: &'static str,
    /// IANA's name of the cipher suite.
    pub cipher: &'static str,
    /// Name that the client asked for.
    pub server_name: Option<Arc<str>>,
    /// The client's verified certificate, DER.
    pub client_certificate: Option<Arc<[u8]>>,
}

/// Whose fault it is that a request was not answered by a backend as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The client's: 4xx, or it went away.
    Client,
    /// A backend's: 502, 504.
    Backend,
    /// Ours, or of the configuration: 500, 503.
    Balancer,
}

/// How a request ended: HAProxy's termination state in words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Cause {
    /// As it should.
    #[default]
    Done,
    /// The client's request was refused: malformed, too large, over a limit.
    Refused,
    /// The client went away, before or in the middle of the response.
    ClientAborted,
    /// The client was too slow.
    ClientTimeout,
    /// No connection to a backend.
    ConnectFailed,
    /// No connection in time.
    ConnectTimeout,
    /// The backend broke the connection before or within its response, or answered what
    /// is not HTTP.
    BackendAborted,
    /// No response in time, or a gap in it that was too long.
    BackendTimeout,
    /// The queue was full.
    QueueFull,
    /// Waited too long in the queue.
    QueueTimeout,
    /// No backend is usable.
    NoBackend,
    /// Too many connections or requests: overload.
    Overload,
    /// Ended with the balancer.
    Shutdown,
    /// A mistake of ours.
    Internal,
}

impl Cause {
    /// All of them, in the order of [`Self::index`].
    pub const ALL: [Self; 14] = [
        Self::Done,
        Self::Refused,
        Self::ClientAborted,
        Self::ClientTimeout,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::BackendAborted,
        Self::BackendTimeout,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::NoBackend,
        Self::Overload,
        Self::Shutdown,
        Self::Internal,
    ];

    /// Its place among counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Short word for logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::ClientAborted => "client-aborted",
            Self::ClientTimeout => "client-timeout",
            Self::ConnectFailed => "connect-failed",
            Self::ConnectTimeout => "connect-timeout",
            Self::BackendAborted => "backend-aborted",
            Self::BackendTimeout => "backend-timeout",
            Self::QueueFull => "queue-full",
            Self::QueueTimeout => "queue-timeout",
            Self::NoBackend => "no-backend",
            Self::Overload => "overload",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }

    /// Whose fault it is; `None` for [`Self::Done`].
    pub const fn fault(self) -> Option<Fault> {
        match self {
            Self::Done => None,
            Self::Refused | Self::ClientAborted | Self::ClientTimeout => Some(Fault::Client),
            Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::BackendAborted
            | Self::BackendTimeout => Some(Fault::Backend),
            Self::QueueFull
            | Self::QueueTimeout
            | Self::NoBackend
            | Self::Overload
            | Self::Shutdown
            | Self::Internal => Some(Fault::Balancer),
        }
    }
}

/// Times of a request by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waited for a backend with room.
    pub queue: Option<Duration>,
    /// Connected, TLS included; zero for a kept connection.
    pub connect: Option<Duration>,
    /// From the request's being handed to a connection, fresh or kept, to the response's
    /// head; or to the attempt's end without one.
    pub response: Option<Duration>,
    /// From the request's head to the response's last byte.
    pub total: Duration,
}

/// One request, for the access log.
#[derive(Clone, Debug)]
pub struct Record {
    /// When its head was complete.
    pub time: SystemTime,
    /// The client (a trusted proxy's word for it, where there is one).
    pub client: IpAddr,
    /// Frontend.
    pub frontend: Arc<str>,
    /// Method; `-` when the request could not be read.
    pub method: http::Method,
    /// Target as received; the log takes session ids out.
    pub target: Box<str>,
    /// Version.
    pub version: http::Version,
    /// Host that was asked for.
    pub host: Option<Box<str>>,
    /// `Referer`.
    pub referer: Option<Box<str>>,
    /// `User-Agent`.
    pub user_agent: Option<Box<str>>,
    /// Status that the client got; 0 when it got none.
    pub status: u16,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// Pool.
    pub pool: Option<Arc<str>>,
    /// Backend that answered, or was tried last.
    pub backend: Option<Arc<str>>,
    /// Route that the request asked for by its session.
    pub route: Option<Box<str>>,
    /// Attempts beyond the first.
    pub retries: u32,
    /// Request id.
    pub request_id: Option<Box<str>>,
    /// `TLSv1.3`.
    pub tls: Option<&'static str>,
    /// By phase.
    pub timings: Timings,
    /// How it ended.
    pub cause: Cause,
}
