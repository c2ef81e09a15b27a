//! One node of the benchmark of sessions: cluster, links and session store of an agent in
//! a process of its own, which does what it is told on standard input.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use balancer_agent::app;
use balancer_agent::app::sessions::SessionNode;
use balancer_agent::config;
use balancer_agent::session::Change;
use balancer_agent::session::driver::Watch;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};

use super::load::{self, Prepared};
use super::memory;
use super::words::{Order, Status, Sums, Times};
use crate::http::proc;

/// Times that are kept at most.
const KEPT: usize = 4 << 20;

/// Nanoseconds of the clock that all processes of a host share.
///
/// # Errors
/// What the kernel says.
pub fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// How late writes that carry their time become visible on this node: when each was
/// issued, and how long that is ago.
#[derive(Clone, Default)]
struct Lag(Arc<Mutex<Vec<(u64, u64)>>>);

impl Lag {
    /// Those so far. A forwarded write whose answer is late is done again, and seen again:
    /// the first time counts.
    fn take(&self) -> Vec<u64> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = std::mem::take(&mut *kept);
        drop(kept);
        seen.sort_unstable();
        seen.dedup_by_key(|(sent, _)| *sent);
        seen.into_iter().map(|(_, late)| late).collect()
    }
}

impl Watch for Lag {
    fn changed(&self, change: &Change) {
        let (Some(sent), Ok(now)) = (load::stamp_of(&change.id), monotonic()) else {
            return;
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push((sent, now.saturating_sub(sent)));
        }
    }
}

/// Runs a node until standard input ends.
///
/// # Errors
/// It can't be started, an order is not understood, or it could not be done.
pub fn run(path: &Path) -> Result<()> {
    let config = config::load(path).map_err(|error| anyhow::anyhow!("{}", error.report(false)))?;
    let runtime = app::runtime()?;
    let lag = Lag::default();
    let guard = runtime.enter();
    let node = SessionNode::start(&config, lag.clone())?;
    drop(guard);
    let mut prepared = None;
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?).context("an order")?;
        let answer = match order {
            Order::Status => serde_json::to_string(&runtime.block_on(status(&node))?)?,
            Order::Prepare(load) => {
                let ready = Prepared::new(load, &node.sessions, runtime.handle())?;
                let ids = serde_json::to_string(&ready.ids())?;
                prepared = Some(ready);
                ids
            }
            Order::Go => {
                let ready = prepared.as_ref().context("no load was prepared")?;
                serde_json::to_string(&ready.run(&node.sessions, runtime.handle())?)?
            }
            Order::Lag => serde_json::to_string(&Times::of(lag.take()))?,
            Order::Memory { id } => serde_json::to_string(&memory::measure(id)?)?,
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    runtime.block_on(node.end());
    Ok(())
}

async fn status(node: &SessionNode) -> Result<Status> {
    let seen = node
        .sessions
        .look(|store, _| (store.standing(), store.counters()));
    let (standing, counters) = seen.await.context("the store does not answer")?;
    let links = node.cluster.status();
    let links = links.nodes.iter().filter_map(|node| node.link.as_ref());
    let (link_writes, link_bytes) = links.fold((0, 0), |(writes, bytes), link| {
        (writes + link.writes, bytes + link.bytes_out)
    });
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let pid = std::process::id();
    let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    let lost = counters.outbox_full + counters.degraded + counters.thin + counters.unavailable;
    Ok(Status {
        ready: standing.phase == "ready",
        peers: standing
            .peers
            .iter()
            .filter(|(_, ready, same)| *ready && *same)
            .count(),
        unsettled: counters.unsettled,
        sessions: counters.sessions,
        sums: Sums {
            cpu: cpu as f64 / 1e6,
            writes: counters.writes as f64,
            copies: counters.copies as f64,
            forwards: counters.forwards as f64,
            records: counters.records_sent as f64,
            frames: counters.frames_sent as f64,
            link_writes: link_writes as f64,
            link_bytes: link_bytes as f64,
            switches: usage.voluntary_context_switches() as f64,
            lost: lost as f64,
        },
        resident: proc::resident(&[pid]),
        resident_most: proc::resident_most(pid),
    })
}
