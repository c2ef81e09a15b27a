//! The store, for the rest of the agent: a handle whose calls never block.
//!
//! Whatever is asked goes through one bounded queue to the task that owns the store (see
//! [`super::driver`]). When that is full, what was asked is dropped and counted: a request
//! of a client must not wait for bookkeeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::database::DiskState;
use super::store::Store;
use super::survey::{Answer, Asked, Question};
use super::types::{Expect, GroupId, NodeId, Op, Outcome, Session, Time};

/// Requests that wait for the store's task.
pub const QUEUE: usize = 32_768;
/// So long after its start a store that has not caught up yet is waited for by those who
/// look for a session: it needs a moment for its peers, and clients come at once.
const STARTING: Duration = Duration::from_secs(10);

/// A session's id as the store has it. Those of Tomcat, with a route, need no allocation.
pub type Id = SmallVec<[u8; 48]>;

/// A look at the store.
pub(super) type Look = Box<dyn FnOnce(&Store, Time) + Send>;

/// What is asked of the store's task.
pub(super) enum Command {
    /// An operation.
    Do {
        group: GroupId,
        id: Id,
        op: Op,
        done: Option<oneshot::Sender<Outcome>>,
    },
    /// A look at the store, for operators.
    Look(Look),
    /// A question to all nodes but these, for operators.
    Survey(Question, Vec<NodeId>, oneshot::Sender<Asked>),
}

/// What nodes answered to a question.
#[derive(Debug)]
pub struct Heard {
    /// This node first, the others in any order.
    pub answers: Vec<(NodeId, Answer)>,
    /// Nodes that should have answered and did not.
    pub silent: Vec<NodeId>,
}

/// One group, for those who use it.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// Life of a session after its last access.
    pub ttl: Duration,
    /// How long a response is held for the copies of what it created; `None` with `async`.
    pub hold: Option<Duration>,
    /// What was asked of it.
    pub counts: Counts,
}

/// What was asked of a group on this node, and how it ended.
#[derive(Debug, Default)]
pub struct Counts {
    /// Sessions bound to a backend.
    pub bound: AtomicU64,
    /// Sessions bound to another backend than before.
    pub rebound: AtomicU64,
    /// Sessions ended by their application or by an operator.
    pub ended: AtomicU64,
    /// Accesses told to the store.
    pub touched: AtomicU64,
    /// Sessions asked for because this node's cache did not know them.
    pub asked: AtomicU64,
    /// Those of them that were found.
    pub found: AtomicU64,
    /// Those of them that got no answer in time.
    pub unanswered: AtomicU64,
    /// Responses held for acknowledgements.
    pub held: AtomicU64,
    /// Those of them that were let go without all acknowledgements.
    pub sync_timeouts: AtomicU64,
    /// Dropped because too much waited.
    pub overflow: AtomicU64,
    /// Writes that the store did not do, after some tries.
    pub failed: AtomicU64,
}

/// [`Counts`] at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CountsStatus {
    /// Sessions bound to a backend.
    pub bound: u64,
    /// Sessions bound to another backend than before.
    pub rebound: u64,
    /// Sessions ended by their application or by an operator.
    pub ended: u64,
    /// Accesses told to the store.
    pub touched: u64,
    /// Sessions asked for because this node's cache did not know them.
    pub asked: u64,
    /// Those of them that were found.
    pub found: u64,
    /// Those of them that got no answer in time.
    pub unanswered: u64,
    /// Responses held for acknowledgements.
    pub held: u64,
    /// Those of them that were let go without all acknowledgements.
    pub sync_timeouts: u64,
    /// Dropped because too much waited.
    pub overflow: u64,
    /// Writes that the store did not do, after some tries.
    pub failed: u64,
}

impl Counts {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// As they are now.
    pub fn status(&self) -> CountsStatus {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        CountsStatus {
            bound: read(&self.bound),
            rebound: read(&self.rebound),
            ended: read(&self.ended),
            touched: read(&self.touched),
            asked: read(&self.asked),
            found: read(&self.found),
            unanswered: read(&self.unanswered),
            held: read(&self.held),
            sync_timeouts: read(&self.sync_timeouts),
            overflow: read(&self.overflow),
            failed: read(&self.failed),
        }
    }
}

/// The session store of this node. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Sessions(Arc<Shared>);

pub(super) struct Shared {
    pub commands: mpsc::Sender<Command>,
    /// By their [`GroupId`].
    pub groups: Vec<Group>,
    pub ready: watch::Sender<bool>,
    /// Until then, what is looked for waits for the store to be ready.
    pub patience: Instant,
    /// How the writing to disk goes, where there is one.
    pub disk: Option<Arc<DiskState>>,
    /// Key for [`Sessions::id_of`].
    pub id_key: [u64; 2],
}

impl std::fmt::Debug for Shared {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let groups = self.groups.iter().map(|group| &group.name);
        f.debug_list().entries(groups).finish()
    }
}

/// The store could not say whether it knows a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session store did not answer in time")]
pub struct NoAnswer;

/// Writes whose copies a response waits for.
#[derive(Debug)]
#[must_use = "the response has to be held"]
pub struct Held {
    sessions: Sessions,
    group: GroupId,
    bound: Duration,
    /// One for each write; nearly always there is one.
    done: SmallVec<[oneshot::Receiver<Outcome>; 1]>,
}

/// What is known of a write when its response goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// So many nodes hold it, this one or its primary among them; all that should do.
    All(u8),
    /// So many nodes are known to hold it when the time bound was hit. With 0 it may not
    /// have been done at all, or be done later.
    Some(u8),
    /// There was nothing to write: the session had ended.
    Absent,
}

impl Kept {
    /// The lesser of two: what is known of both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Absent, other) | (other, Self::Absent) => other,
            (Self::All(a), Self::All(b)) => Self::All(a.min(b)),
            (Self::All(a) | Self::Some(a), Self::All(b) | Self::Some(b)) => Self::Some(a.min(b)),
        }
    }
}

impl From<Outcome> for Kept {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done {
                copies, degraded, ..
            } => {
                let nodes = copies.saturating_add(1);
                match degraded {
                    true => Self::Some(nodes),
                    false => Self::All(nodes),
                }
            }
            Outcome::NotFound => Self::Absent,
            _ => Self::Some(0),
        }
    }
}

impl Held {
    /// Both: the response waits for all of their writes, no longer than for one.
    pub fn with(mut self, other: Option<Self>) -> Self {
        self.done.extend(other.into_iter().flat_map(|o| o.done));
        self
    }

    /// Waits until the copies are acknowledged, or the time bound is hit, which is counted.
    /// Says which.
    pub async fn wait(self) -> Kept {
        let until = Instant::now() + self.bound;
        let mut kept = Kept::Absent;
        for done in self.done {
            kept = kept.and(match timeout_at(until, done).await {
                Ok(Ok(outcome)) => outcome.into(),
                _ => Kept::Some(0),
            });
        }
        if matches!(kept, Kept::Some(_))
            && let Some(group) = self.sessions.group(self.group)
        {
            Counts::add(&group.counts.sync_timeouts);
        }
        kept
    }
}

impl Sessions {
    pub(super) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Until when a store that starts now is waited for.
    pub(super) fn patience() -> Instant {
        Instant::now() + STARTING
    }

    /// How the writing to disk goes; nothing without persistent groups.
    pub fn disk(&self) -> Option<&DiskState> {
        self.0.disk.as_deref()
    }

    /// All groups, in the order of the configuration.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &Group)> + Clone {
        (0..).map(GroupId).zip(&self.0.groups)
    }

    /// A group.
    pub fn group(&self, group: GroupId) -> Option<&Group> {
        self.0.groups.get(usize::from(group.0))
    }

    /// The group of this name.
    pub fn by_name(&self, name: &str) -> Option<GroupId> {
        let mut all = self.groups();
        all.find(|(_, group)| *group.name == *name)
            .map(|(id, _)| id)
    }

    /// Whether the store has caught up and serves.
    pub fn ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// Waits until the store serves; for the start of those who use it.
    pub async fn caught_up(&self) {
        // The sender is here: it does not go while somebody waits.
        let _ = self.0.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The key for hashes of ids: the same on every node of the cluster, known to no other.
    pub fn id_key(&self) -> [u64; 2] {
        self.0.id_key
    }

    /// Binds a new session to a backend, by the backend's route. With `sync` the response
    /// that creates the session has to be [`Held`].
    pub fn bind(&self, group: GroupId, id: &[u8], route: &str, ttl: Duration) -> Option<Held> {
        self.put(group, id, route, ttl, None)
    }

    /// [`Self::bind`], with data.
    pub fn put(
        &self,
        group: GroupId,
        id: &[u8],
        route: &str,
        ttl: Duration,
        data: Option<Box<[u8]>>,
    ) -> Option<Held> {
        let counts = &self.group(group)?.counts;
        Counts::add(&counts.bound);
        let op = Op::Put {
            route: route.into(),
            ttl: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            data,
            expect: Expect::Any,
        };
        self.write(group, id, op)
    }

    /// Binds a session that there is to another backend. One that has ended meanwhile does
    /// not come back by it.
    pub fn rebind(&self, group: GroupId, id: &[u8], route: &str) -> Option<Held> {
        let counts = &self.group(group)?.counts;
        Counts::add(&counts.rebound);
        let op = Op::Bind {
            route: route.into(),
        };
        self.write(group, id, op)
    }

    /// Ends a session. With `sync` the response that ends it has to be [`Held`]: whoever is
    /// told that a session has ended must not find it again after a node has died.
    pub fn delete(&self, group: GroupId, id: &[u8]) -> Option<Held> {
        Counts::add(&self.group(group)?.counts.ended);
        self.write(group, id, Op::Delete)
    }

    /// Counts an access. What the store knows of the session is told to those who watch
    /// changes, so that an old cache is mended.
    pub fn touch(&self, group: GroupId, id: &[u8]) {
        if let Some(known) = self.group(group) {
            Counts::add(&known.counts.touched);
            self.push(group, id, Op::Get { touch: true }, None);
        }
    }

    /// Asks for a session, and counts that as an access. `None`: there is none.
    ///
    /// Just after the start it waits until the store is ready, at most until ten seconds
    /// after: a client whose session is still on its way from disk or peers would be sent
    /// elsewhere, and lose it.
    ///
    /// # Errors
    /// No answer within `bound`, from when the store was ready.
    pub async fn find(
        &self,
        group: GroupId,
        id: &[u8],
        bound: Duration,
    ) -> Result<Option<Session>, NoAnswer> {
        let counts = &self.group(group).ok_or(NoAnswer)?.counts;
        Counts::add(&counts.asked);
        if !self.ready() {
            let mut ready = self.0.ready.subscribe();
            // Not ready by then: the store says so itself.
            let _ = timeout_at(self.0.patience, ready.wait_for(|ready| *ready)).await;
        }
        let (done, outcome) = oneshot::channel();
        if !self.push(group, id, Op::Get { touch: true }, Some(done)) {
            return Err(NoAnswer);
        }
        match timeout(bound, outcome).await {
            Ok(Ok(Outcome::Found(session))) => {
                Counts::add(&counts.found);
                Ok(Some(*session))
            }
            // The store refuses ids that it would never have taken.
            Ok(Ok(Outcome::NotFound | Outcome::Invalid(_))) => Ok(None),
            _ => {
                Counts::add(&counts.unanswered);
                Err(NoAnswer)
            }
        }
    }

    /// Does an operation and waits for its end; for operators. `Busy` when too much waits.
    pub async fn request(&self, group: GroupId, id: &[u8], op: Op) -> Outcome {
        let (done, outcome) = oneshot::channel();
        if !self.push(group, id, op, Some(done)) {
            return Outcome::Busy;
        }
        outcome.await.unwrap_or(Outcome::Unavailable)
    }

    /// Looks at the store, which does nothing else meanwhile; for operators. Nothing when
    /// too much waits, or the store's task has ended.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Store, Time) -> T + Send + 'static,
    ) -> Option<T> {
        let (seen, answer) = oneshot::channel();
        let look: Look = Box::new(move |store, now| {
            // Whoever asked may have gone.
            let _ = seen.send(look(store, now));
        });
        self.0.commands.try_send(Command::Look(look)).ok()?;
        answer.await.ok()
    }

    /// Asks this node, and those others that have to be asked except `skip`, and waits for
    /// them at most `bound`; for operators. Nothing when too much waits, or the store's task
    /// has ended.
    pub async fn survey(
        &self,
        question: Question,
        skip: &[NodeId],
        bound: Duration,
    ) -> Option<Heard> {
        let (reply, asked) = oneshot::channel();
        let command = Command::Survey(question, skip.to_vec(), reply);
        self.0.commands.try_send(command).ok()?;
        let mut asked = asked.await.ok()?;
        let mut heard = Heard {
            answers: vec![asked.own],
            silent: asked.unreached,
        };
        let until = Instant::now() + bound;
        let mut missing = asked.nodes;
        while !missing.is_empty() {
            let Ok(Some((node, answer))) = timeout_at(until, asked.answers.recv()).await else {
                break;
            };
            if let Some(at) = missing.iter().position(|waited| *waited == node) {
                missing.swap_remove(at);
                heard.answers.push((node, answer));
            }
        }
        heard.silent.extend(missing);
        heard.silent.sort_unstable();
        Some(heard)
    }

    fn write(&self, group: GroupId, id: &[u8], op: Op) -> Option<Held> {
        let known = self.group(group)?;
        let Some(bound) = known.hold else {
            self.push(group, id, op, None);
            return None;
        };
        Counts::add(&known.counts.held);
        let (done, outcome) = oneshot::channel();
        // When it is full, the sender is dropped: the response is let go, and counted.
        self.push(group, id, op, Some(done));
        Some(Held {
            sessions: self.clone(),
            group,
            bound,
            done: smallvec![outcome],
        })
    }

    fn push(
        &self,
        group: GroupId,
        id: &[u8],
        op: Op,
        done: Option<oneshot::Sender<Outcome>>,
    ) -> bool {
        let id = Id::from_slice(id);
        let command = Command::Do {
            group,
            id,
            op,
            done,
        };
        let pushed = self.0.commands.try_send(command).is_ok();
        if !pushed && let Some(known) = self.group(group) {
            Counts::add(&known.counts.overflow);
        }
        pushed
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.0.ready.send_replace(ready);
    }
}
