//! Connects a store to the cluster, the clock and those who use it: one task that owns it.
//!
//! ```text
//! requests, operators --> handle --> queue --+
//! cluster: members, frames, links -----------+--> Store --> frames --> cluster
//! clock -------------------------------------+        +---> changes --> caches of routes
//!                                                      +---> batches --> disk
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::config::{Config, ConfigError, GroupConfig, Limits, Timing, group_key};
use super::database::{self, DiskState, Link, Opened, Pace, Refusal, Report};
use super::handle::{Command, Counts, Group, Id, QUEUE, Sessions, Shared};
use super::store::{Input, Output, Store};
use super::survey::{Note, Surveys};
use super::types::{GroupId, Manager, NodeId, Op, Outcome, Replication, Session, Time, Token};
use super::watch::Change;

pub use super::network::{Alone, Event, Network, Peers, Refused, about};

/// Commands, and events, that are taken in one go.
const BATCH: usize = 64;
/// So often more is looked for before what there is to send goes out.
const TURNS: usize = 8;
/// Pause before a frame that found the queue to a peer full is offered again.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// Pause before a write that could not be done is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Tries of a write that could not be done.
const TRIES: u8 = 5;
/// How long before the bound of a held response the store gives up waiting for copies, in
/// milliseconds at most.
const SAID_BEFORE: u64 = 50;
/// Between two transactions of a disk for whose confirmation nobody waits: so old may what
/// is on disk be, and as long as a transaction takes.
const DISK_PAUSE: Duration = Duration::from_millis(100);
/// Writes that wait until the store serves, or for another try.
const PARKED: usize = 65_536;

/// What a store's driver is made of.
pub struct Setup {
    /// This node.
    pub node: NodeId,
    /// Key that places sessions; the same on every node.
    pub key: [u64; 2],
    /// Key for hashes of ids; the same on every node.
    pub id_key: [u64; 2],
    /// The groups.
    pub groups: Vec<GroupSetup>,
    /// Memory bounds.
    pub limits: Limits,
    /// The file of the persistent groups; needed with one of these.
    pub disk: Option<Opened>,
    /// There will never be another node: none is waited for.
    pub alone: bool,
}

/// Why a store can't be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The groups contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file can't be read.
    #[error(transparent)]
    Disk(#[from] Refusal),
    /// There is no thread for the disk.
    #[error("cannot start the thread that writes sessions to disk: {0}")]
    Thread(#[from] std::io::Error),
}

/// One group.
#[derive(Clone, Debug)]
pub struct GroupSetup {
    /// Its name.
    pub name: Arc<str>,
    /// Who holds its sessions.
    pub manager: Manager,
    /// Whether its sessions are on disk too.
    pub persistent: bool,
    /// When writers are answered.
    pub replication: Replication,
    /// Bound of that, with `sync`.
    pub sync_timeout: Duration,
    /// Life of sessions after the last access.
    pub ttl: Duration,
}

/// Whoever keeps a cache of this node's sessions.
pub trait Watch: Send + 'static {
    /// A session was made, changed, or ended, on this or another node. Must not block.
    fn changed(&self, change: &Change);
}

/// Nobody does.
impl Watch for () {
    fn changed(&self, _: &Change) {}
}

/// An operation that the store is at.
struct Waiting {
    group: GroupId,
    id: Id,
    /// Of group and id.
    hash: u64,
    /// To be done again if it could not be done; nothing for reads.
    again: Option<Op>,
    /// Counts the writes: only the last one to a session is done again.
    number: u64,
    tries: u8,
    /// When it was asked for.
    asked: Time,
    done: Option<oneshot::Sender<Outcome>>,
    /// Nobody waits for it: its outcome is for the caches.
    for_watch: bool,
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

/// A store with all that the disk had, not yet connected to anything.
pub struct Prepared {
    store: Store,
    sessions: Sessions,
    commands: mpsc::Receiver<Command>,
    started: Instant,
    disk: Option<Link>,
    thread: Option<JoinHandle<()>>,
}

/// [`prepare`], connected at once.
///
/// # Errors
/// As there.
pub fn start<N: Network>(setup: Setup, network: N) -> Result<(Sessions, Driver<N>), StartError> {
    Ok(prepare(setup)?.connect(network))
}

/// Makes a store, and reads its sessions from disk. Nothing else happens before
/// [`Driver::run`].
///
/// # Errors
/// [`StartError`].
pub fn prepare(setup: Setup) -> Result<Prepared, StartError> {
    let groups = setup.groups.iter();
    let config = groups.clone().map(|group| GroupConfig {
        name: group.name.to_string(),
        manager: group.manager,
        replication: group.replication,
        persistent: group.persistent && setup.disk.is_some(),
    });
    let mut config = Config::new(setup.node, setup.key, config.collect());
    let holds = groups
        .clone()
        .filter(|group| group.replication == Replication::Sync)
        .map(|group| group.sync_timeout);
    // The store has one bound for all groups; each response has its own. Just before that,
    // the store says how far it has come.
    let early = |bound: u64| bound - (bound / 20).min(SAID_BEFORE);
    let sync = holds.max().map(|bound| early(bound.as_millis() as u64));
    config.timing = Timing {
        sync: sync.unwrap_or(config.timing.sync).max(1),
        alone: match setup.alone {
            true => 0,
            false => config.timing.alone,
        },
        ..config.timing
    };
    config.limits = setup.limits;
    let started = Instant::now();
    let mut store = Store::new(config.clone())?;
    let (mut disk, mut thread) = (None, None);
    if let Some(mut file) = setup.disk {
        let state = load(&mut file, &mut store, &config, started)?;
        let state = Arc::new(state);
        let waited = config.groups.iter().any(|group| {
            // Somebody waits until it is safe.
            group.persistent && group.replication == Replication::Sync
        });
        let pace = match waited {
            true => Pace::Fast,
            false => Pace::Slow(DISK_PAUSE),
        };
        let (link, running) = database::start(file, state, pace)?;
        (disk, thread) = (Some(link), Some(running));
    }
    store.watch();
    let (commands, queue) = mpsc::channel(QUEUE);
    let sessions = Sessions::new(Shared {
        commands,
        groups: groups
            .map(|group| Group {
                name: Arc::clone(&group.name),
                ttl: group.ttl,
                hold: (group.replication == Replication::Sync).then_some(group.sync_timeout),
                counts: Counts::default(),
            })
            .collect(),
        ready: watch::Sender::new(false),
        patience: Sessions::patience(),
        disk: disk.as_ref().map(|link| Arc::clone(link.state())),
        id_key: setup.id_key,
    });
    Ok(Prepared {
        store,
        sessions,
        commands: queue,
        started,
        disk,
        thread,
    })
}

/// Reads the file into the store. A file that turns out to be damaged is set aside, and the
/// store stays empty.
fn load(
    file: &mut Opened,
    store: &mut Store,
    config: &Config,
    started: Instant,
) -> Result<DiskState, StartError> {
    let persistent = config.groups.iter().filter(|group| group.persistent);
    let keys: Vec<u32> = persistent.map(|group| group_key(&group.name)).collect();
    let began = Instant::now();
    let now = || Time(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    let (state, whole) = file.read(&keys, |batch| store.load(batch, now()))?;
    if !whole {
        *store = Store::new(config.clone())?;
    }
    tracing::info!(
        file = %state.path().display(),
        sessions = store.counters().sessions,
        ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "sessions read from disk",
    );
    Ok(state)
}

impl Prepared {
    /// The thread that writes to disk: it ends after the driver has, when it has written
    /// what was left.
    pub fn take_thread(&mut self) -> Option<JoinHandle<()>> {
        self.thread.take()
    }

    /// Connects the store to a network.
    pub fn connect<N: Network>(self, network: N) -> (Sessions, Driver<N>) {
        let driver = Driver {
            store: self.store,
            network,
            sessions: self.sessions.clone(),
            commands: self.commands,
            waiting: HashMap::new(),
            next_token: 0,
            last: HashMap::new(),
            hashes: RandomState::new(),
            next_number: 0,
            parked: VecDeque::new(),
            parked_until: None,
            stuck: BTreeMap::new(),
            stuck_until: None,
            started: self.started,
            refused: BTreeSet::new(),
            surveys: Surveys::default(),
            disk: self.disk,
            begun: 0,
        };
        (self.sessions, driver)
    }
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

    fn begin(&mut self, waiting: Waiting, op: Op) {
        if !self.store.ready() && waiting.again.is_some() {
            return self.park(waiting);
        }
        let token = self.next_token;
        self.next_token += 1;
        let (group, id, asked) = (waiting.group, waiting.id.clone(), waiting.asked);
        self.waiting.insert(token, waiting);
        self.handle(Input::Again {
            token: Token(token),
            group,
            id: &id,
            op,
            asked,
        });
    }

    fn park(&mut self, waiting: Waiting) {
        if self.parked.len() >= PARKED {
            self.fail(waiting, Outcome::Busy);
            return;
        }
        self.parked.push_back(waiting);
        self.parked_until
            .get_or_insert_with(|| Instant::now() + AGAIN);
    }

    /// A write waits no more.
    fn forget(&mut self, waiting: &Waiting) {
        if waiting.again.is_some() && self.last.get(&waiting.hash) == Some(&waiting.number) {
            self.last.remove(&waiting.hash);
        }
    }

    fn superseded(&self, waiting: &Waiting) -> bool {
        self.last.get(&waiting.hash) != Some(&waiting.number)
    }

    fn fail(&mut self, waiting: Waiting, outcome: Outcome) {
        self.forget(&waiting);
        if let Some(group) = self.sessions.group(waiting.group) {
            Counts::add(&group.counts.failed);
        }
        if let Some(done) = waiting.done {
            // Whoever waited may have gone.
            let _ = done.send(outcome);
        }
    }

    /// Tries again what was parked, once the store serves.
    fn unpark(&mut self) {
        if !self.store.ready() {
            self.parked_until = Some(Instant::now() + AGAIN);
            return;
        }
        self.parked_until = None;
        // What is parked again meanwhile waits for the next time.
        for _ in 0..self.parked.len() {
            let Some(mut waiting) = self.parked.pop_front() else {
                return;
            };
            if self.superseded(&waiting) {
                // Done late, it would undo what came after it.
                self.fail(waiting, Outcome::Unavailable);
            } else if let Some(op) = waiting.again.clone() {
                waiting.tries += 1;
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

    fn send(&mut self, to: NodeId, frame: Vec<u8>) {
        // Frames of one peer stay in order.
        if let Some(stuck) = self.stuck.get_mut(&to) {
            stuck.push_back(frame);
            return;
        }
        match self.network.send(to, &frame) {
            Ok(()) => self.handle(Input::Sent { to }),
            Err(Refused::Full) => {
                self.stuck.insert(to, VecDeque::from([frame]));
                self.stuck_until = Some(Instant::now() + FULL_PAUSE);
            }
            // Lost. The store gives no more than its credit until the link is made, and
            // compares then.
            Err(Refused::NoLink) => {}
        }
    }

    fn unstick(&mut self) {
        let mut sent = Vec::new();
        self.stuck.retain(|to, frames| {
            while let Some(frame) = frames.front() {
                match self.network.send(*to, frame) {
                    Ok(()) => sent.push(*to),
                    Err(Refused::Full) => return true,
                    Err(Refused::NoLink) => {}
                }
                frames.pop_front();
            }
            false
        });
        if !self.stuck.is_empty() {
            self.stuck_until = Some(Instant::now() + FULL_PAUSE);
        }
        for to in sent {
            self.handle(Input::Sent { to });
        }
    }

    fn reply(&mut self, token: Token, outcome: Outcome, watch: &impl Watch) {
        let Some(mut waiting) = self.waiting.remove(&token.0) else {
            return;
        };
        let undone = matches!(
            outcome,
            Outcome::NotReady | Outcome::Unavailable | Outcome::Busy
        );
        if undone && waiting.again.is_some() {
            return match waiting.tries < TRIES {
                true => self.park(waiting),
                false => self.fail(waiting, outcome),
            };
        }
        self.forget(&waiting);
        if waiting.for_watch {
            let session: Option<Session> = match outcome {
                Outcome::Found(session) => Some(*session),
                Outcome::NotFound => None,
                // The cache stays as it is.
                _ => return,
            };
            return self.tell(&waiting, session, watch);
        }
        let deleted = waiting.again == Some(Op::Delete) && matches!(outcome, Outcome::Done { .. });
        let ended = deleted || (waiting.again.is_some() && outcome == Outcome::NotFound);
        if ended {
            // Here, which a node without a copy would not be told; or, before a write to it,
            // elsewhere.
            self.tell(&waiting, None, watch);
        }
        if let Some(done) = waiting.done.take() {
            // Whoever waited may have gone.
            let _ = done.send(outcome);
        } else if matches!(outcome, Outcome::Invalid(_)) {
            self.fail(waiting, outcome);
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
