//! Active health checks and passive signs: which backends are up.
//!
//! One task schedules all checks from one heap of due times and runs each check
//! as a task of its own, so many at a time as there are descriptors for. What a
//! result means is decided in [`health`], which has no clock and no socket.
//!
//! Life of a check: due (heap) -> waiting, when too many run -> running -> result
//! -> due. A sign moves the due time to now.

mod ajp;
pub mod health;
pub mod http;
pub mod probe;
mod schedule;
mod shared;
mod tcp;
pub mod tls;

pub use health::{Outcome, Points, Sign};
pub use shared::{ProbeStatus, ProberHandle, Verdicts};
pub use tls::CheckTls;

use crate::model::http::ProxyVersion;
use crate::model::{BackendName, Check, Health, Passive};
use futures::FutureExt;
use schedule::Schedule;
use shared::Shared;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// A backend to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Pool and backend.
    pub name: BackendName,
    /// The server.
    pub address: SocketAddr,
    /// How to check it.
    pub check: Check,
    /// Which signs count.
    pub passive: Passive,
    /// What its checks are spoken over.
    pub wire: Wire,
}

/// What checks are spoken over. The default is TCP, and HTTP/1.1 on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// A PROXY header of this version goes first, before TLS; it says that the connection
    /// is the balancer's own. A check that only connects has none.
    pub proxy: Option<ProxyVersion>,
    /// TLS; which version of HTTP is spoken is then agreed on by ALPN.
    pub tls: Option<CheckTls>,
    /// Without TLS: HTTP/2 by prior knowledge (RFC 9113, 3.3).
    pub http2: bool,
}

/// A backend's health has changed (or the backend is new).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The backend.
    pub name: BackendName,
    /// Its health from now on.
    pub health: Health,
    /// For people.
    pub reason: Arc<str>,
    /// When it was decided.
    pub at: Instant,
}

/// Limits of the prober.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most checks at a time; each holds one descriptor.
    pub running: usize,
}

impl Default for Limits {
    /// 4,096 checks at a time, or half of the descriptors that the process may
    /// have, if that is less.
    fn default() -> Self {
        let files = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .map_or(1024, |(soft, _)| soft);
        Self {
            running: usize::try_from(files / 2).map_or(4096, |half| half.clamp(1, 4096)),
        }
    }
}

/// The task that checks. Made by [`Prober::new`], alive while [`Prober::run`] runs.
#[derive(Debug)]
pub struct Prober {
    shared: Arc<Shared>,
    limits: Limits,
}

impl Prober {
    /// A prober without targets, the handle to speak to it, and its verdicts.
    pub fn new(limits: Limits) -> (Self, ProberHandle, Verdicts) {
        let shared = Arc::new(Shared::default());
        let handle = ProberHandle {
            shared: Arc::clone(&shared),
        };
        let verdicts = Verdicts {
            shared: Arc::clone(&shared),
        };
        (Self { shared, limits }, handle, verdicts)
    }

    /// Checks until the future is dropped, which also ends all running checks.
    pub async fn run(self) -> Infallible {
        let probe = Box::new(|target: Arc<Target>| {
            async move { probe::run(target.address, &target.check, &target.wire).await }.boxed()
        });
        Schedule::new(self.shared, self.limits, probe).run().await
    }
}

#[cfg(test)]
mod probe_tests;
#[cfg(test)]
mod schedule_tests;
#[cfg(test)]
mod tls_tests;
