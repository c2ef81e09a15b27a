//! Writes for a node's store, through the handle that the web tier has: from a thread of
//! its own, as the web tier's are.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_agent::session::handle::{Held, Kept, Sessions};
use balancer_agent::session::{Expect, GroupId, Op, Outcome};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::node::monotonic;
use super::words::{Load, Loaded, Times, Where};

/// Backend of all sessions.
const ROUTE: &str = "tomcat-a";
const TTL: Duration = Duration::from_secs(3600);
/// Ids that are looked at in one go: the store does nothing else meanwhile.
const CHUNK: u64 = 2048;
/// For the last acknowledgements.
const PATIENCE: Duration = Duration::from_secs(20);
/// First letter of ids that carry a time; the others begin with a hexadecimal digit.
const STAMPED: u8 = b't';

/// As long as those of Tomcat.
type Id = [u8; 32];

fn id(node: u64, number: u64) -> Id {
    // Mixed, so that they come in no order of the store's; no two numbers become one.
    let mixed = (node << 40 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    text(format!("{mixed:016X}{number:016X}"))
}

fn stamped(node: u64, now: u64, number: u64) -> Id {
    text(format!("t{now:016X}{node:03X}{number:012X}"))
}

fn text(text: String) -> Id {
    let mut id = [b'0'; 32];
    id.copy_from_slice(&text.as_bytes()[..32]);
    id
}

/// When a write was issued, by its id; nothing for ids that do not say.
pub fn stamp_of(id: &[u8]) -> Option<u64> {
    let digits = id.strip_prefix(&[STAMPED])?.get(..16)?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A load and the ids that it is for.
pub struct Prepared {
    load: Load,
    group: GroupId,
    ids: Vec<Id>,
}

impl Prepared {
    /// Looks for ids that begin where they should.
    ///
    /// # Errors
    /// There is no such group, or no such id.
    pub fn new(load: Load, sessions: &Sessions, handle: &Handle) -> Result<Self> {
        let group = sessions.by_name(&load.group).context("no such group")?;
        let ids = match load.stamped {
            true => Vec::new(),
            false => handle.block_on(ids(&load, sessions, group))?,
        };
        Ok(Self { load, group, ids })
    }

    /// How many ids there are.
    pub fn ids(&self) -> usize {
        self.ids.len()
    }

    /// Puts the load on the store.
    ///
    /// # Errors
    /// The store takes no writes, or nothing like the rate can be kept.
    pub fn run(&self, sessions: &Sessions, handle: &Handle) -> Result<Loaded> {
        let Self { load, group, ids } = self;
        if let Some(rate) = load.rate {
            return paced(load, sessions, handle, *group, ids, rate);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let known = sessions.group(*group);
        match known.is_some_and(|group| group.hold.is_some()) {
            true => runtime.block_on(flat_out(load, sessions, *group, ids)),
            false => runtime.block_on(flat_out_async(load, sessions, *group, ids)),
        }
    }
}

/// Ids whose writes begin here as they should.
async fn ids(load: &Load, sessions: &Sessions, group: GroupId) -> Result<Vec<Id>> {
    let (node, at) = (load.node, load.at);
    let mut ids = Vec::with_capacity(load.ids as usize);
    let mut next = 0;
    while ids.len() < load.ids as usize {
        let all: Vec<Id> = (next..next + CHUNK).map(|n| id(node, n)).collect();
        next += CHUNK;
        ensure!(next < 1 << 32, "no id begins {at:?}");
        if at == Where::Any {
            ids.extend(all);
            continue;
        }
        let some = sessions.look(move |store, _| {
            let right = |id: &Id| {
                let primary = store
                    .holders(group, id)
                    .and_then(|(nodes, _)| nodes.first().copied());
                (primary == Some(store.node())) == (at == Where::Primary)
            };
            all.into_iter().filter(right).collect::<Vec<Id>>()
        });
        ids.extend(some.await.context("the store does not answer")?);
    }
    ids.truncate(load.ids as usize);
    Ok(ids)
}

/// At random moments, so many in a second.
fn paced(
    load: &Load,
    sessions: &Sessions,
    handle: &Handle,
    group: GroupId,
    ids: &[Id],
    rate: f64,
) -> Result<Loaded> {
    let mut random = SmallRng::seed_from_u64(load.node);
    let times = Arc::new(Mutex::new(Vec::new()));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut waiting = JoinSet::new();
    let begin = Instant::now();
    let (mut due, mut writes) = (0.0, 0);
    loop {
        due += -(1.0 - random.random::<f64>()).ln() / rate;
        if due >= load.seconds {
            break;
        }
        let pause = due - begin.elapsed().as_secs_f64();
        if pause > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(pause));
        }
        let sent = monotonic()?;
        let id = match load.stamped {
            true => stamped(load.node, sent, writes),
            false => ids[writes as usize % ids.len()],
        };
        writes += 1;
        let Some(held) = sessions.bind(group, &id, ROUTE, TTL) else {
            continue;
        };
        let (times, acknowledged) = (Arc::clone(&times), Arc::clone(&acknowledged));
        let wait = async move {
            if is_whole(held.wait().await) {
                acknowledged.fetch_add(1, Relaxed);
                let took = monotonic().unwrap_or(sent) - sent;
                times
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(took);
            }
        };
        waiting.spawn_on(wait, handle);
        // Those that have ended are let go.
        while waiting.try_join_next().is_some() {}
    }
    let late = begin.elapsed().as_secs_f64() - load.seconds;
    ensure!(
        late < load.seconds / 4.0 + 0.1,
        "the rate can't be kept: {late:.2} s late"
    );
    handle.block_on(async {
        let all = async { while waiting.join_next().await.is_some() {} };
        tokio::time::timeout(PATIENCE, all).await
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Loaded {
        writes,
        acknowledged: acknowledged.load(Relaxed),
        seconds,
        times: Times::of(times),
    })
}

/// As many as are acknowledged, with a bound on those that wait.
async fn flat_out(load: &Load, sessions: &Sessions, group: GroupId, ids: &[Id]) -> Result<Loaded> {
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(load.seconds);
    let mut waiting: VecDeque<Held> = VecDeque::with_capacity(load.window);
    let mut loaded = Loaded::default();
    let mut ids = ids.iter().cycle();
    while Instant::now() < end {
        while waiting.len() < load.window {
            let id = ids.next().context("no ids")?;
            let Some(held) = sessions.bind(group, id, ROUTE, TTL) else {
                bail!("the group is not `sync`");
            };
            loaded.writes += 1;
            waiting.push_back(held);
        }
        // They end about in this order: many are done when the first is.
        for held in waiting.drain(..load.window.div_ceil(8)) {
            loaded.acknowledged += u64::from(is_whole(held.wait().await));
        }
    }
    for held in waiting {
        loaded.acknowledged += u64::from(is_whole(held.wait().await));
    }
    loaded.seconds = begin.elapsed().as_secs_f64();
    Ok(loaded)
}

/// As many as the store says are done; the copies follow.
async fn flat_out_async(
    load: &Load,
    sessions: &Sessions,
    group: GroupId,
    ids: &[Id],
) -> Result<Loaded> {
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(load.seconds);
    let mut loaded = Loaded::default();
    let mut ids = ids.iter().cycle();
    let one = |id: Id| {
        let sessions = sessions.clone();
        async move {
            let op = Op::Put {
                route: ROUTE.into(),
                ttl: TTL.as_millis() as u64,
                data: None,
                expect: Expect::Any,
            };
            sessions.request(group, &id, op).await
        }
    };
    let mut waiting = JoinSet::new();
    loop {
        let more = |writes| (!load.once || writes < load.ids) && Instant::now() < end;
        while waiting.len() < load.window && more(loaded.writes) {
            waiting.spawn(one(*ids.next().context("no ids")?));
            loaded.writes += 1;
        }
        let Some(outcome) = waiting.join_next().await else {
            break;
        };
        let outcome = outcome?;
        ensure!(
            matches!(outcome, Outcome::Done { .. }),
            "a write ended with {outcome:?}"
        );
    }
    loaded.seconds = begin.elapsed().as_secs_f64();
    Ok(loaded)
}

/// Whether all that should have a write have it.
fn is_whole(kept: Kept) -> bool {
    matches!(kept, Kept::All(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_their_time() {
        assert_eq!(stamp_of(&stamped(3, 0x0123_4567, 9)), Some(0x0123_4567));
        assert_eq!(stamp_of(&id(3, 9)), None);
        assert_ne!(id(1, 2), id(2, 1));
    }
}
