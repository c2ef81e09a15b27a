//! One check from connect to verdict, and the words for what went wrong.

use super::Wire;
use super::health::Outcome;
use super::http::{self, HEAD_BYTES};
use super::{ajp, tcp};
use crate::model::{Check, CheckKind};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// What a check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The verdict on the server.
    pub outcome: Outcome,
    /// For people: "connected", "TLS handshake done", "status 200", or what went wrong.
    pub text: Arc<str>,
    /// From the start to the verdict.
    pub duration: Duration,
}

/// Why a check did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The server answered with RST.
    #[error("connection refused")]
    Refused,
    /// The connection could not be opened.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// The whole check took too long.
    #[error("timeout after {} while {phase}", Milliseconds(*after))]
    Timeout {
        /// The limit.
        after: Duration,
        /// What was going on.
        phase: Phase,
    },
    /// A status that was not expected.
    #[error("status {got}, expected {}", Ranges(expected))]
    Status {
        /// The response's.
        got: u16,
        /// Inclusive ranges.
        expected: Box<[(u16, u16)]>,
    },
    /// Not HTTP of the version that is spoken.
    #[error("malformed response: {0}")]
    Malformed(String),
    /// The head of the response has no end within bounds.
    #[error("malformed response: head larger than {HEAD_BYTES} bytes or too many headers")]
    TooLarge,
    /// The server closed before the head of the response was complete.
    #[error("connection closed before a complete response")]
    Closed,
    /// The server reset the connection while a response was awaited.
    #[error("connection reset before a complete response")]
    Reset,
    /// Path or host can't be put into a request: the configuration's fault.
    #[error("cannot make the request: {0}")]
    Request(String),
    /// This host lacks something (descriptors, ports, memory): our own fault.
    #[error("cannot check: {0}")]
    Ours(io::Error),
}

impl ProbeError {
    /// Whether the server is to blame. A check may always be repeated.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Ours(_) => Outcome::Inconclusive,
            _ => Outcome::Failure,
        }
    }
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Until the connection is open.
    Connecting = 0,
    /// Until the TLS handshake is complete.
    Handshaking = 1,
    /// Until the head of the response is there.
    Responding = 2,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Handshaking => "waiting for the TLS handshake",
            Self::Responding => "waiting for the response",
        })
    }
}

/// Where the running check says how far it has come.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    pub fn reached(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Connecting,
            1 => Phase::Handshaking,
            _ => Phase::Responding,
        }
    }
}

/// Makes one check; ends within `check.timeout`.
pub async fn run(backend: SocketAddr, check: &Check, wire: &Wire) -> Report {
    let address = match check.port {
        Some(port) => SocketAddr::new(backend.ip(), port),
        None => backend,
    };
    let started = Instant::now();
    let progress = Progress::default();
    let attempt = attempt(address, &check.kind, wire, &progress);
    let result = tokio::time::timeout(check.timeout, attempt)
        .await
        .unwrap_or_else(|_| {
            Err(ProbeError::Timeout {
                after: check.timeout,
                phase: progress.phase(),
            })
        });
    let duration = started.elapsed();
    match result {
        Ok(text) => Report {
            outcome: Outcome::Success,
            text,
            duration,
        },
        Err(error) => Report {
            outcome: error.outcome(),
            text: error.to_string().into(),
            duration,
        },
    }
}

async fn attempt(
    address: SocketAddr,
    kind: &CheckKind,
    wire: &Wire,
    progress: &Progress,
) -> Result<Arc<str>, ProbeError> {
    match kind {
        CheckKind::None => Ok("no check".into()),
        CheckKind::Tcp => {
            tcp::check(address, wire, progress).await?;
            Ok(match wire.tls {
                Some(_) => "TLS handshake done".into(),
                None => "connected".into(),
            })
        }
        CheckKind::Http { path, host, expect } => {
            let ask = http::Ask {
                path,
                host: host.as_deref(),
                expect,
            };
            let status = http::check(address, ask, wire, progress).await?;
            Ok(format!("status {status}").into())
        }
        CheckKind::Ajp => {
            ajp::check(address, wire, progress).await?;
            Ok("answers CPING".into())
        }
    }
}

/// Whether an error speaks of this host and not of the server.
pub(super) fn is_ours(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EPERM
                | libc::EACCES
                | libc::EAFNOSUPPORT
        )
    )
}

struct Milliseconds(Duration);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

struct Ranges<'a>(&'a [(u16, u16)]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            if first == last {
                write!(f, "{first}")?;
            } else {
                write!(f, "{first}-{last}")?;
            }
        }
        Ok(())
    }
}
