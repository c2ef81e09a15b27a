//! The framing guard of HTTP/1: decides where each request begins and ends, strictly by RFC
//! 9112 and 9110, before hyper sees a byte. What two readers could read differently is
//! refused, and the connection closed.
//!
//! Sans-IO and incremental: splitting the same bytes elsewhere changes nothing. Nothing is
//! allocated.
//!
//! ```text
//!            head complete                 body complete
//!   Head ----------------------> Body ----------------------> Head
//!     |        (no body: stays Head)  |
//!     +------------ Refusal ----------+    the status that is answered; then close
//! ```
//!
//! Where the RFCs leave a choice, or more is accepted in the field than they say:
//!
//! | case | here |
//! |---|---|
//! | empty lines before a request | one CRLF is skipped |
//! | line ends | CRLF alone; bare CR and bare LF: 400 |
//! | obs-fold, whitespace before the colon | 400 |
//! | more than one `Content-Length`, even equal; `5, 5` | 400 |
//! | `Content-Length` with `Transfer-Encoding` | 400 |
//! | `Transfer-Encoding` in HTTP/1.0; on several lines; `chunked` not last | 400 |
//! | well-formed transfer codings other than `chunked` | 501 |
//! | `Content_Length` and the like, which CGI reads as the real name | 400 |
//! | absolute-form with another authority than `Host` | 400 (the default port may be left out) |
//! | CONNECT | 501 |
//! | versions other than 1.0 and 1.1 | 505 |
//! | trailer fields about framing, routing and authentication | 400 |
//! | `Expect` other than `100-continue` | 417 |
//! | characters of a target beyond RFC 3986 | `"[]^{}|` as browsers send them; in the query also the backslash and backtick |

mod body;
mod chars;
mod head;
#[cfg(test)]
mod tests;

use super::live::Refused;
use crate::model::http::Limits;
use body::Framed;
pub(super) use head::Head;
use head::Scan;

/// What is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Fields.
    pub headers: usize,
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Bytes of a target.
    pub target_bytes: usize,
    /// Bytes of a body.
    pub body_bytes: u64,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            headers: limits.headers,
            head_bytes: limits.head_bytes,
            target_bytes: limits.target_bytes,
            body_bytes: limits.body_bytes.unwrap_or(u64::MAX),
        }
    }
}

/// Why a request is refused, and what is answered. The connection is closed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Status.
    pub status: u16,
    /// Its counter.
    pub cause: Refused,
    /// In words, for the client; never contains anything of the request.
    pub reason: &'static str,
}

impl Refusal {
    const fn malformed(reason: &'static str) -> Self {
        Self {
            status: 400,
            cause: Refused::Malformed,
            reason,
        }
    }

    const fn unsupported(status: u16, reason: &'static str) -> Self {
        Self {
            status,
            cause: Refused::Unsupported,
            reason,
        }
    }

    const fn large(status: u16, reason: &'static str) -> Self {
        Self {
            status,
            cause: Refused::HeadTooLarge,
            reason,
        }
    }

    /// The body is over the limit.
    pub const BODY: Self = Self {
        status: 413,
        cause: Refused::BodyTooLarge,
        reason: "the body is larger than allowed",
    };
    /// The head took too long.
    pub const HEAD_LATE: Self = Self {
        status: 408,
        cause: Refused::Timeout,
        reason: "the request's head took too long",
    };
    /// The body stood still, or was too slow.
    pub const BODY_LATE: Self = Self {
        status: 408,
        cause: Refused::Timeout,
        reason: "the request's body came too slowly",
    };
    /// Too many connections.
    pub const CONNECTIONS: Self = Self {
        status: 503,
        cause: Refused::Connections,
        reason: "too many connections",
    };
    /// Over the rate of its source.
    pub const RATE: Self = Self {
        status: 429,
        cause: Refused::SourceRequests,
        reason: "too many requests from this address",
    };
    /// Another protocol than the frontend speaks.
    pub const VERSION: Self = Self::unsupported(505, "this version of HTTP is not spoken here");

    /// The whole response, after which the connection is closed.
    pub fn response(&self) -> Vec<u8> {
        let status = http::StatusCode::from_u16(self.status).unwrap_or_default();
        let retry = match self.retry() {
            true => "Retry-After: 1\r\n",
            false => "",
        };
        format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{retry}Connection: close\r\n\r\n{}\n",
            self.status,
            status.canonical_reason().unwrap_or_default(),
            self.reason.len() + 1,
            self.reason,
        )
        .into_bytes()
    }

    /// Whether it may be tried again.
    pub const fn retry(&self) -> bool {
        matches!(self.status, 429 | 503)
    }
}

/// CONNECT is asked for.
pub(super) const CONNECT: Refusal = Refusal::unsupported(501, "CONNECT is not offered");
/// Too many fields.
pub(super) const FIELDS: Refusal = Refusal::large(431, "the request has too many fields");
/// The target is over the limit.
pub(super) const TARGET_LONG: Refusal = Refusal::large(414, "the request's target is too long");
/// More than one `Host`.
pub(super) const HOSTS: Refusal = Refusal::malformed("there is more than one Host");

/// Checks of HTTP/2's pseudo fields what h2 does not: characters, and that `:authority` and
/// `Host` are the same (RFC 9113, 8.3.1).
pub(super) fn check_target(
    method: &http::Method,
    target: &str,
    authority: Option<&str>,
    host: Option<&[u8]>,
) -> Result<(), Refusal> {
    let asterisk = target == "*" && method == http::Method::OPTIONS;
    if !asterisk && !(target.starts_with('/') && chars::path_and_query(target.as_bytes())) {
        return Err(Refusal::malformed(
            "the target contains a character that it may not",
        ));
    }
    let authority = authority.map(str::as_bytes);
    let Some(named) = authority.or(host) else {
        return Err(Refusal::malformed("there is no authority"));
    };
    if !chars::authority(named) {
        return Err(Refusal::malformed("the authority is malformed"));
    }
    match host {
        Some(host) if !host.eq_ignore_ascii_case(named) => {
            Err(Refusal::malformed("Host is not the authority"))
        }
        _ => Ok(()),
    }
}

/// Follows one connection.
#[derive(Debug, Default)]
pub(super) struct Guard {
    scan: Scan,
    body: Framed,
}

impl Guard {
    /// Whether the next bytes belong to a body.
    pub fn in_body(&self) -> bool {
        !matches!(self.body, Framed::None)
    }

    /// Looks at the bytes of a head: all that came since the end of the request before it,
    /// each time. `None`: not complete yet. Otherwise the head's extent is told, and the
    /// guard expects its body (if it has one), then the next head.
    ///
    /// # Errors
    /// Why the request is refused; the guard must not be used any more.
    pub fn head(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Option<Head>, Refusal> {
        debug_assert!(!self.in_body());
        let head = self.scan.advance(bytes, bounds)?;
        if let Some(head) = &head {
            self.body = head.framed;
            self.scan = Scan::default();
        }
        Ok(head)
    }

    /// Looks at further bytes of a body; returns how many of them belong to it. Less than
    /// all only when it has ended.
    ///
    /// # Errors
    /// Why the request is refused; the guard must not be used any more.
    pub fn body(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<usize, Refusal> {
        self.body.advance(bytes, bounds)
    }

    /// Bytes that are sure to belong to the present body, if that can be told.
    pub fn sure(&self) -> Option<u64> {
        match self.body {
            Framed::Length(n) => Some(n),
            _ => None,
        }
    }
}
