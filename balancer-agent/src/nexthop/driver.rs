//! The loop around the table: hear, ask, resolve, publish.

use super::socket::{Asker, Heard, Monitor};
use super::table::{Need, NeighbourKey, Table};
use super::{NextHopError, NextHopHandle, NextHops};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How long notifications are gathered before they are acted on.
const GATHER: Duration = Duration::from_millis(3);
/// The beat of confirmations and of new attempts.
const TICK: Duration = Duration::from_secs(1);
/// Beats in which every neighbour has its turn once.
const ROUND: u64 = 30;
/// Longest pause between attempts to resolve a neighbour, in beats.
const LONGEST_PAUSE: u64 = 30;
/// Questions asked before others get a turn on this thread.
const SHARE: usize = 256;

/// Watches the kernel's tables, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Watcher {
    monitor: Monitor,
    asker: Asker,
    table: Table,
    destinations: watch::Receiver<Arc<[IpAddr]>>,
    output: watch::Sender<Arc<NextHops>>,
    /// Neighbours that are being resolved: the beat of the next attempt, and the
    /// pause after it.
    attempts: HashMap<NeighbourKey, (u64, u64)>,
    beat: u64,
}

impl Watcher {
    /// Opens the sockets in the calling thread's network namespace, and subscribes
    /// before anything is read. Must be called within a tokio runtime.
    pub fn new() -> Result<(Self, NextHopHandle, watch::Receiver<Arc<NextHops>>), NextHopError> {
        let (set_destinations, destinations) = watch::channel(Arc::from([]));
        let (output, hops) = watch::channel(Arc::new(NextHops::default()));
        let watcher = Self {
            monitor: Monitor::open().map_err(NextHopError::Open)?,
            asker: Asker::open().map_err(NextHopError::Open)?,
            table: Table::default(),
            destinations,
            output,
            attempts: HashMap::new(),
            beat: 0,
        };
        let handle = NextHopHandle {
            destinations: set_destinations,
        };
        Ok((watcher, handle, hops))
    }

    /// Watches until the handle is dropped, or a socket breaks.
    pub async fn run(mut self) -> Result<(), NextHopError> {
        self.take_destinations();
        self.read_all()?;
        self.act().await?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut act_at: Option<Instant> = None;
        loop {
            let mut again = false;
            tokio::select! {
                changed = self.destinations.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.take_destinations();
                    self.act().await?;
                }
                heard = self.monitor.hear() => match heard? {
                    Heard::Messages(messages) => {
                        for message in messages {
                            self.table.apply(message);
                        }
                    }
                    Heard::Overrun => again = true,
                },
                () = sleep_until(act_at), if act_at.is_some() => {
                    act_at = None;
                    self.act().await?;
                }
                _ = ticks.tick() => self.tick()?,
            }
            if again {
                tracing::warn!("netlink notifications were lost: reading everything anew");
                self.read_all()?;
            }
            if act_at.is_none() && self.table.pending() {
                act_at = Some(Instant::now() + GATHER);
            }
        }
    }

    fn take_destinations(&mut self) {
        let destinations = Arc::clone(&self.destinations.borrow_and_update());
        self.table.set_destinations(&destinations);
    }

    fn read_all(&mut self) -> Result<(), NextHopError> {
        let messages = self.asker.read_all()?;
        self.table.replace(messages);
        Ok(())
    }

    /// Asks what has to be asked, and publishes what has changed.
    async fn act(&mut self) -> Result<(), NextHopError> {
        for share in self.table.take_unresolved().chunks(SHARE) {
            for (destination, route) in self.asker.routes(share)? {
                self.table.answer(destination, route);
            }
            tokio::task::yield_now().await;
        }
        if !self.table.take_changed() {
            return Ok(());
        }
        self.resolve_missing()?;
        let hops = self.table.next_hops();
        self.output.send_if_modified(|current| {
            let differs = **current != hops;
            if differs {
                *current = Arc::new(hops);
            }
            differs
        });
        Ok(())
    }

    /// Starts to resolve neighbours that have come to be missing, and forgets the
    /// attempts of those that no longer are.
    fn resolve_missing(&mut self) -> Result<(), NextHopError> {
        let table = &self.table;
        self.attempts
            .retain(|key, _| table.need(*key) == Need::Resolve);
        let missing: Vec<_> = table
            .wanted()
            .filter(|key| !self.attempts.contains_key(key) && table.need(*key) == Need::Resolve)
            .collect();
        for key in &missing {
            self.attempts.insert(*key, (self.beat + 1, 1));
        }
        self.resolve(&missing)
    }

    fn tick(&mut self) -> Result<(), NextHopError> {
        self.beat += 1;
        let turn = |key: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            key(&mut hasher);
            hasher.finish() % ROUND == self.beat % ROUND
        };
        let table = &self.table;
        let mut keys: Vec<_> = table
            .wanted()
            .filter(|key| table.need(*key) == Need::Confirm && turn(&|h| key.hash(h)))
            .collect();
        for (key, (at, pause)) in &mut self.attempts {
            if *at <= self.beat && table.need(*key) == Need::Resolve {
                keys.push(*key);
                *pause = (*pause * 2).min(LONGEST_PAUSE);
                *at = self.beat + *pause;
            }
        }
        let destinations: Vec<_> = table
            .destinations()
            .filter(|ip| turn(&|h| ip.hash(h)))
            .collect();
        for (destination, route) in self.asker.routes(&destinations)? {
            self.table.answer(destination, route);
        }
        self.resolve(&keys)
    }

    fn resolve(&mut self, neighbours: &[NeighbourKey]) -> Result<(), NextHopError> {
        if let Some((error, count)) = self.asker.resolve(neighbours)? {
            tracing::warn!(%error, count, "the kernel does not resolve some neighbours");
        }
        Ok(())
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
