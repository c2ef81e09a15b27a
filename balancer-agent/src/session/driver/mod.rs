//! Connects a store to the cluster, the clock and those who use it: one task that owns it.
//!
//! ```text
//! requests, operators --> handle --> queue --+
//! cluster: members, frames, links -----------+--> Store --> frames --> cluster
//! clock -------------------------------------+        +---> changes --> caches of routes
//!                                                      +---> batches --> disk
//! ```
//!
//! - `prepare`: a store with what the disk had, before it is connected;
//! - `waiting`: operations that the store is at, and writes that wait to be done;
//! - `outgoing`: frames on their way to the links.

mod outgoing;
mod prepare;
#[cfg(test)]
pub(super) mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::database::{Link, Report};
use super::handle::{Command, Sessions};
use super::store::{Input, Output, Store};
use super::survey::{Note, Surveys};
use super::types::{NodeId, Op, Outcome, Session, Time};
use super::watch::Change;
use waiting::Waiting;

pub use super::network::{Alone, Event, Network, Peers, Refused, about};
pub use prepare::{GroupSetup, Prepared, Setup, StartError, prepare, start};

/// Commands, and events, that are taken in one go.
const BATCH: usize = 64;
/// So often more is looked for before what there is to send goes out.
const TURNS: usize = 8;

/// Whoever keeps a cache of this node's sessions.
pub trait Watch: Send + 'static {
    /// A session was made, changed, or ended, on this or another node. Must not block.
    fn changed(&self, change: &Change);
}

/// Nobody does.
impl Watch for () {
    fn changed(&self, _: &Change) {}
}

/// The task that owns the store.
pub struct Driver<N> {
    store: Store,
    network: N,
    sessions: Sessions,
    commands: mpsc::Receiver<Command>,
    waiting: HashMap<u64, Waiting>,
    next_token: u64,
    /// The last write to each session that has a write waiting, by the hash of group and
    /// id: two sessions of one hash, which would be a wonder, cost a write its second try.
    last: HashMap<u64, u64>,
    hashes: RandomState,
    next_number: u64,
    /// Writes that wait until the store serves, or for another try.
    parked: VecDeque<Waiting>,
    parked_until: Option<Instant>,
    /// Frames that found no room. The store gives few for one peer at a time.
    stuck: BTreeMap<NodeId, VecDeque<Vec<u8>>>,
    stuck_until: Option<Instant>,
    started: Instant,
    /// Peers that have sent what can't be read: nothing more is taken from them before their
    /// link was made anew.
    refused: BTreeSet<NodeId>,
    surveys: Surveys,
    disk: Option<Link>,
    /// Files that the disk's thread has begun so far.
    begun: u64,
}

/// The next report of the disk's thread; none without one.
async fn report(disk: &mut Option<Link>) -> Report {
    match disk {
        Some(link) => link.report().await,
        None => std::future::pending().await,
    }
}

impl<N> Drop for Driver<N> {
    /// Leaves to the disk's thread what it has not got yet.
    fn drop(&mut self) {
        let Some(link) = &self.disk else { return };
        while let Some((seq, batch)) = self.store.last_batch() {
            link.leave(seq, batch);
        }
    }
}

impl<N: Network> Driver<N> {
    /// Works for ever; whoever runs it ends it.
    pub async fn run(mut self, watch: impl Watch) {
        let mut batch = Vec::with_capacity(BATCH);
        // One timer for all times: made anew for each turn, it would cost more than most
        // turns do.
        let alarm = sleep_until(self.started);
        tokio::pin!(alarm);
        loop {
            self.settle(&watch).await;
            let wake = self.wake();
            if wake < alarm.deadline() || alarm.is_elapsed() {
                alarm.as_mut().reset(wake);
            }
            tokio::select! {
                taken = self.commands.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        // Cannot be: this task has a handle itself.
                        return;
                    }
                    self.do_commands(&mut batch, &watch);
                }
                event = self.network.event() => {
                    self.event(event);
                    self.tell_changes(&watch);
                }
                report = report(&mut self.disk) => self.reported(report),
                // Perhaps earlier than need be: the timer was set for something that has
                // come to its end.
                () = alarm.as_mut() => self.tick(),
            }
            self.gather(&mut batch, &watch).await;
        }
    }

    /// Takes in what else has come, so that the answers share frames: a frame costs as much
    /// as ten messages in it. Nothing waits for what is not there yet.
    async fn gather(&mut self, batch: &mut Vec<Command>, watch: &impl Watch) {
        for _ in 0..TURNS {
            // The tasks of links have their turn: what they have read comes to the queue.
            tokio::task::yield_now().await;
            let mut taken = 0;
            while taken < BATCH
                && let Some(event) = self.network.try_event()
            {
                taken += 1;
                self.event(event);
                self.tell_changes(watch);
            }
            while batch.len() < BATCH
                && let Ok(command) = self.commands.try_recv()
            {
                batch.push(command);
            }
            taken += batch.len();
            self.do_commands(batch, watch);
            if taken == 0 {
                return;
            }
        }
    }

    fn do_commands(&mut self, batch: &mut Vec<Command>, watch: &impl Watch) {
        for command in batch.drain(..) {
            self.command(command);
            self.tell_changes(watch);
        }
    }

    fn reported(&mut self, report: Report) {
        if report.begun != self.begun {
            self.begun = report.begun;
            self.store.rewrite();
        }
        self.handle(Input::Persisted { seq: report.done });
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn wake(&self) -> Instant {
        // Far enough to be never, and still a time.
        let never = Instant::now() + Duration::from_secs(3_600);
        let store = self.store.poll_timeout().map(|time| {
            let at = self.started.checked_add(Duration::from_millis(time.0));
            at.unwrap_or(never)
        });
        let all = [store, self.parked_until, self.stuck_until];
        all.into_iter()
            .flatten()
            .min()
            .map_or(never, |at| at.min(never))
    }

    fn handle(&mut self, input: Input<'_>) {
        let now = self.now();
        // Only frames can be wrong, and they have a way of their own.
        let _ = self.store.handle(input, now);
    }

    /// Takes a message. One that can't be read ends the link that it came over: what the
    /// sender takes to be known here is not, and a new link begins with a comparison.
    fn frame(&mut self, from: NodeId, bytes: &[u8]) {
        if self.refused.contains(&from) {
            // Of the link that is being closed.
            return;
        }
        let now = self.now();
        let error = match self.surveys.take(&self.store, now, from, bytes) {
            None => match self.store.handle(Input::Frame { from, bytes }, now) {
                Ok(()) => return,
                Err(error) => error.to_string(),
            },
            Some(Ok(Note::Taken)) => return,
            Some(Ok(Note::Answer(answer))) => {
                // One that is lost is an answer that did not come.
                let _ = self.network.send(from, &answer);
                return;
            }
            Some(Err(error)) => error.to_string(),
        };
        self.refused.insert(from);
        self.network.refuse(from, &error);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Look(look) => look(&self.store, self.now()),
            Command::Survey(question, skip, reply) => {
                let (now, network) = (self.now(), &self.network);
                let send = |node: NodeId, message: &[u8]| network.send(node, message).is_ok();
                self.surveys
                    .ask(&self.store, now, &question, &skip, send, reply);
            }
            Command::Do {
                group,
                id,
                op,
                done,
            } => {
                let read = matches!(op, Op::Get { .. } | Op::Touch);
                let hash = self.hashes.hash_one((group, &*id));
                if !read {
                    self.next_number += 1;
                    self.last.insert(hash, self.next_number);
                }
                let waiting = Waiting {
                    group,
                    id,
                    hash,
                    again: (!read).then(|| op.clone()),
                    number: self.next_number,
                    tries: 0,
                    asked: self.now(),
                    for_watch: read && done.is_none(),
                    done,
                };
                self.begin(waiting, op);
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Members {
                incarnation,
                members,
            } => self.handle(Input::Members {
                incarnation,
                members: &members,
            }),
            Event::Frame { from, bytes } => self.frame(from, &bytes),
            Event::Link { node } => {
                self.refused.remove(&node);
                self.stuck.remove(&node);
                self.handle(Input::Reset { peer: node });
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.parked_until.is_some_and(|at| at <= now) {
            self.unpark();
        }
        if self.stuck_until.is_some_and(|at| at <= now) {
            self.stuck_until = None;
            self.unstick();
        }
        self.handle(Input::Tick);
    }

    /// Does everything that the store wants done.
    async fn settle(&mut self, watch: &impl Watch) {
        self.tell_changes(watch);
        while let Some(output) = self.store.poll_output() {
            match output {
                Output::Send { to, frame } => self.send(to, frame),
                Output::Reply { token, outcome } => self.reply(token, outcome, watch),
                Output::Ready(ready) => {
                    self.sessions.set_ready(ready);
                    self.network.ready(ready).await;
                    if ready && !self.parked.is_empty() {
                        self.unpark();
                    }
                }
                Output::Persist { seq, batch } => {
                    if let Some(link) = &self.disk {
                        link.write(seq, batch);
                    }
                }
                // No group of this driver is held elsewhere.
                Output::External { token, .. } => self.handle(Input::External {
                    token,
                    outcome: Outcome::Unavailable,
                }),
            }
            self.tell_changes(watch);
        }
    }

    /// Tells how a session is that was just looked at. It may have changed since, and that
    /// have been told already: where there is a copy, it counts as it is now.
    fn tell(&self, about: &Waiting, seen: Option<Session>, watch: &impl Watch) {
        let (group, id) = (about.group, about.id.as_slice());
        let session = match self.store.version_of(group, id) {
            Some(_) => self.store.peek(group, id, self.now()),
            None => seen,
        };
        watch.changed(&Change {
            group,
            id: id.into(),
            session,
        });
    }

    fn tell_changes(&mut self, watch: &impl Watch) {
        while let Some(change) = self.store.poll_change() {
            watch.changed(&change);
        }
    }
}
