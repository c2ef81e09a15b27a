//! Operations that the store is at, and writes that wait until they can be done.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::handle::{Counts, Id};
use super::super::store::Input;
use super::super::types::{GroupId, Op, Outcome, Session, Time, Token};
use super::{Driver, Network, Watch};

/// Pause before a write that could not be done is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Tries of a write that could not be done.
const TRIES: u8 = 5;
/// Writes that wait until the store serves, or for another try.
const PARKED: usize = 65_536;

/// An operation that the store is at.
pub(super) struct Waiting {
    pub group: GroupId,
    pub id: Id,
    /// Of group and id.
    pub hash: u64,
    /// To be done again if it could not be done; nothing for reads.
    pub again: Option<Op>,
    /// Counts the writes: only the last one to a session is done again.
    pub number: u64,
    pub tries: u8,
    /// When it was asked for.
    pub asked: Time,
    pub done: Option<oneshot::Sender<Outcome>>,
    /// Nobody waits for it: its outcome is for the caches.
    pub for_watch: bool,
}

impl<N: Network> Driver<N> {
    pub(super) fn begin(&mut self, waiting: Waiting, op: Op) {
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
    pub(super) fn unpark(&mut self) {
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

    pub(super) fn reply(&mut self, token: Token, outcome: Outcome, watch: &impl Watch) {
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
}
