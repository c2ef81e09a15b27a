//! Connections to backends: made, kept and used by the thread that a request is on.
//!
//! - `endpoint.rs`: what is known of a backend before the first connection, made while a
//!   configuration is prepared: TLS, protocol, times;
//! - `connect.rs`, `stream.rs`: a fresh connection;
//! - `pool.rs`: those that rest;
//! - `wire.rs`: one with its buffers; `wait.rs`: the wait for a response;
//! - `h1.rs`, `head.rs`, `chunked.rs`: HTTP/1.1; `h2/`: HTTP/2; `ajp/`: AJP13;
//! - `body.rs`: a request's body that can be sent again.

pub mod ajp;
pub mod body;
mod chunked;
pub mod connect;
pub mod endpoint;
mod h1;
mod h2;
pub mod head;
pub mod pool;
pub mod stream;
mod wait;
mod wire;

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;

use crate::proxy::downstream::Ended;
use crate::proxy::timer::Timer;
use crate::proxy::types::{BodyError, Cause};
use ajp::Violation;
use body::RequestBody;
use head::Malformed;

pub use pool::{Connections, Sent, Tunnel, Upstreams};

/// Where informational responses of a backend go.
pub trait Inform {
    /// One other than 100 and 101.
    fn inform(&mut self, status: StatusCode, headers: &HeaderMap);
}

/// Times of an exchange.
pub struct Deadlines {
    /// From the request's last byte (or from the backend's taking the last bytes of it) to
    /// the response's head.
    pub response: Duration,
    /// Longest gap in the response's body.
    pub idle: Duration,
    /// The end of all.
    pub total: Timer,
}

/// Why an attempt has failed.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection. The backend's fault.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// No TLS: the certificate above all. The backend's fault.
    #[error("no TLS: {0}")]
    Tls(io::Error),
    /// No connection in time. The backend's fault.
    #[error("no connection in time")]
    ConnectTimeout,
    /// No socket, descriptor or port is left. Ours.
    #[error("cannot make a connection: {0}")]
    Local(io::Error),
    /// A kept connection had been closed by the backend. Nobody's fault.
    #[error("the kept connection was closed")]
    Stale,
    /// A fresh connection was closed without a byte. The backend's fault.
    #[error("closed without a response{}", .0.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Closed(Option<io::Error>),
    /// Closed within a response's head. The backend's fault.
    #[error("cut within a response's head: {0}")]
    Cut(io::Error),
    /// No response in time. The backend's fault.
    #[error("no response in time")]
    Timeout,
    /// Not a response we trust. The backend's fault.
    #[error("malformed response: {0}")]
    Malformed(#[from] Malformed),
    /// HTTP/2 failed. The backend's fault.
    #[error("HTTP/2: {0}")]
    Http2(::h2::Error),
    /// A fresh connection of AJP13 on which CPING was not answered. The backend's fault.
    #[error("no answer to CPING: {0}")]
    NoPong(io::Error),
    /// Not AJP13, or not as agreed. The backend's fault.
    #[error("AJP13: {0}")]
    Ajp(#[from] Violation),
    /// A WebSocket was asked for that the backend has no way for. The client's fault, or
    /// the configuration's.
    #[error("the backend takes no WebSockets: {0}")]
    NoUpgrade(&'static str),
    /// The request's head is larger than the backend's protocol can carry. The client's
    /// fault, or the configuration's.
    #[error("the request's head does not fit into one packet of AJP13")]
    TooLarge,
    /// The client's body failed. The client's fault.
    #[error("the request's body: {0}")]
    Client(BodyError),
}

impl SendError {
    /// For the log.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Connect(_) | Self::Tls(_) | Self::NoPong(_) => Cause::ConnectFailed,
            Self::ConnectTimeout => Cause::ConnectTimeout,
            Self::Local(_) => Cause::Overload,
            Self::Timeout => Cause::BackendTimeout,
            Self::Stale
            | Self::Closed(_)
            | Self::Cut(_)
            | Self::Malformed(_)
            | Self::Http2(_)
            | Self::Ajp(_) => Cause::BackendAborted,
            Self::NoUpgrade(_) | Self::TooLarge => Cause::Refused,
            Self::Client(error) => client_cause(error),
        }
    }

    /// Whether it was a matter of the connection alone.
    pub fn is_connect(&self) -> bool {
        matches!(
            self,
            Self::Connect(_)
                | Self::Tls(_)
                | Self::ConnectTimeout
                | Self::NoPong(_)
                | Self::Local(_)
        )
    }

    /// Whether the backend was not there: asking another one costs it nothing.
    pub fn is_refused(&self) -> bool {
        matches!(
            self,
            Self::Connect(_) | Self::Tls(_) | Self::ConnectTimeout | Self::NoPong(_)
        )
    }

    /// Whether the backend went away before it answered: to ask another one moves load,
    /// where repeating what was too slow or failed would add to it.
    pub fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::Stale | Self::Closed(_) | Self::Cut(_) | Self::Http2(_)
        )
    }
}

/// How a request ended whose body failed.
fn client_cause(error: &BodyError) -> Cause {
    Ended::of(&**error).map_or(Cause::ClientAborted, |ended| ended.cause)
}

/// An attempt that failed.
pub struct Failure {
    /// Why.
    pub error: SendError,
    /// Whether a byte of the request was given to the network.
    pub sent: bool,
    /// The request's body, for another attempt.
    pub body: RequestBody,
}

/// Why a response's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyFault {
    /// The backend's end.
    #[error("the backend cut the response: {0}")]
    Cut(io::Error),
    /// A gap that was too long, or the end of the request's time.
    #[error("the backend's response came to a halt")]
    Timeout,
    /// Chunks that are none.
    #[error("malformed response: {0}")]
    Malformed(#[from] Malformed),
    /// HTTP/2 failed.
    #[error("HTTP/2: {0}")]
    Http2(::h2::Error),
    /// Not AJP13, or not as agreed.
    #[error("AJP13: {0}")]
    Ajp(#[from] Violation),
    /// The request's body failed while the response was on its way.
    #[error("the request's body: {0}")]
    Client(BodyError),
}

impl BodyFault {
    /// For the log.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Cut(_) | Self::Malformed(_) | Self::Http2(_) | Self::Ajp(_) => {
                Cause::BackendAborted
            }
            Self::Timeout => Cause::BackendTimeout,
            Self::Client(error) => client_cause(error),
        }
    }
}

/// A response's body.
pub enum ResponseBody {
    /// Of HTTP/1.1.
    Http1(h1::H1Body),
    /// Of HTTP/2.
    Http2(h2::H2Body),
    /// Of AJP13.
    Ajp(ajp::AjpBody),
}

impl ResponseBody {
    /// The next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self {
            Self::Http1(body) => body.poll_frame(cx),
            Self::Http2(body) => body.poll_frame(cx),
            Self::Ajp(body) => body.poll_frame(cx),
        }
    }

    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end(),
            Self::Http2(body) => body.is_end(),
            Self::Ajp(body) => body.is_end(),
        }
    }

    /// Bytes left, where they are known.
    pub fn rest(&self) -> Option<u64> {
        match self {
            Self::Http1(body) => body.rest(),
            Self::Http2(body) => body.rest(),
            Self::Ajp(body) => body.rest(),
        }
    }

    /// Bytes of the request's body that came from the client.
    pub fn request_bytes(&self) -> u64 {
        match self {
            Self::Http1(body) => body.request_bytes(),
            Self::Http2(body) => body.request_bytes(),
            Self::Ajp(body) => body.request_bytes(),
        }
    }
}

#[cfg(test)]
mod tests;
