//! The store, for the rest of the agent: a handle whose calls never block.
//!
//! Whatever is asked goes through one bounded queue to the task that owns the store (see
//! [`super::driver`]). When that is full, what was asked is dropped and counted: a request
//! of a client must not wait for bookkeeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::store::Store;
use super::types::{Expect, GroupId, Op, Outcome, Session, Time};

/// Requests that wait for the store's task.
pub const QUEUE: usize = 32_768;

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
    pub ready: AtomicBool,
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

/// A write whose copies a response waits for.
#[derive(Debug)]
#[must_use = "the response has to be held"]
pub struct Held {
    sessions: Sessions,
    group: GroupId,
    bound: Duration,
    done: oneshot::Receiver<Outcome>,
}

impl Held {
    /// Waits until the copies are acknowledged, or the time bound is hit, which is counted.
    /// Says which.
    pub async fn wait(self) -> bool {
        let acknowledged = matches!(
            timeout(self.bound, self.done).await,
            Ok(Ok(Outcome::Done {
                degraded: false,
                ..
            }))
        );
        if !acknowledged && let Some(group) = self.sessions.group(self.group) {
            Counts::add(&group.counts.sync_timeouts);
        }
        acknowledged
    }
}

impl Sessions {
    pub(super) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
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
        self.0.ready.load(Relaxed)
    }

    /// The key for hashes of ids: the same on every node of the cluster, known to no other.
    pub fn id_key(&self) -> [u64; 2] {
        self.0.id_key
    }

    /// Binds a new session to a backend, by the backend's route. With `sync` the response
    /// that creates the session has to be [`Held`].
    pub fn bind(&self, group: GroupId, id: &[u8], route: &str, ttl: Duration) -> Option<Held> {
        let counts = &self.group(group)?.counts;
        Counts::add(&counts.bound);
        let op = Op::Put {
            route: route.into(),
            ttl: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
            data: None,
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

    /// Ends a session.
    pub fn delete(&self, group: GroupId, id: &[u8]) {
        if let Some(known) = self.group(group) {
            Counts::add(&known.counts.ended);
            self.push(group, id, Op::Delete, None);
        }
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
    /// # Errors
    /// No answer within `bound`.
    pub async fn find(
        &self,
        group: GroupId,
        id: &[u8],
        bound: Duration,
    ) -> Result<Option<Session>, NoAnswer> {
        let counts = &self.group(group).ok_or(NoAnswer)?.counts;
        Counts::add(&counts.asked);
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
            done: outcome,
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
        self.0.ready.store(ready, Relaxed);
    }
}
