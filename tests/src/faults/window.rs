//! What `async` loses: the agent that took all writes is killed under load, and the others
//! are asked what they have of what it had answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::NODES;
use super::ledger::{Ledger, Seen};
use super::load::{Connection, exchange};
use super::site::{Kind, Site};

/// What one kill cost.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Answered writes before.
    pub answered: usize,
    /// Those that nobody has any more.
    pub lost: usize,
    /// How long before the kill the oldest of these was answered.
    pub oldest: Duration,
}

/// Kills the agent that takes the writes so many times.
///
/// # Panics
/// When an agent ends by itself, or agents do not find together again.
pub fn measure(times: usize, per_second: u64, clients: usize) -> Vec<Loss> {
    let mut site = Site::new(Kind::Delta, false);
    let id_of = site.id_maker();
    let all: Vec<usize> = (0..NODES).collect();
    let mut losses = Vec::new();
    for number in 0..times {
        let victim = number % NODES;
        let first = number as u32 * 1_000_000;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let load = site.clients.spawn("writes", move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, write(victim, first, per_second, clients, stopped))
        });
        // Some variety: the kill must not fall into step with anything.
        std::thread::sleep(Duration::from_millis(900 + 37 * number as u64));
        let killed = Instant::now();
        site.agents[victim].kill9();
        stop.store(true, Relaxed);
        let answered = load.join().expect("the client");
        let others: Vec<usize> = all.iter().copied().filter(|node| *node != victim).collect();
        wait_rid(&mut site, &others);
        let held = site.held(others[0]);
        let lost: Vec<&(u32, Instant)> = answered
            .iter()
            .filter(|(session, _)| !held.contains_key(&id_of(&Ledger::cookie(*session))))
            .collect();
        let ages = lost
            .iter()
            .map(|(_, at)| killed.saturating_duration_since(*at));
        losses.push(Loss {
            answered: answered.len(),
            lost: lost.len(),
            oldest: ages.max().unwrap_or_default(),
        });
        site.agents[victim].launch();
        site.agents[victim].wait_ready();
        site.wait_together(&all);
    }
    losses
}

/// Waits until these agents have given up the one that is gone, and hold the same.
#[track_caller]
fn wait_rid(site: &mut Site, others: &[usize]) {
    site.wait_together(others);
    crate::process::wait_until("the survivors to agree", Duration::from_secs(60), || {
        let first = site.held(others[0]);
        others[1..].iter().all(|&node| site.held(node) == first)
    });
}

/// Makes sessions through one agent; those that were answered, and when.
async fn write(
    agent: usize,
    first: u32,
    per_second: u64,
    clients: usize,
    stop: Arc<AtomicBool>,
) -> Vec<(u32, Instant)> {
    let pause = Duration::from_secs(1) * clients as u32 / per_second as u32;
    let tasks: Vec<_> = (0..clients as u32)
        .map(|client| {
            let stop = Arc::clone(&stop);
            tokio::task::spawn_local(async move {
                let mut connection: Option<Connection> = None;
                let mut answered = Vec::new();
                let mut turn = tokio::time::interval(pause);
                for number in 0..10_000 {
                    turn.tick().await;
                    if stop.load(Relaxed) {
                        break;
                    }
                    let session = first + client * 10_000 + number;
                    let path = format!("/cookie?SID={}", Ledger::cookie(session));
                    let seen = exchange(&mut connection, agent, &path, None).await;
                    match seen {
                        Ok(Seen::Answered { .. }) => answered.push((session, Instant::now())),
                        _ => connection = None,
                    }
                }
                answered
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("a client"));
    }
    all
}
