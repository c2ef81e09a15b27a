//! Questions of operators that are about the whole cluster: every node that has the group
//! answers for the sessions of which it is the primary, so each session is met once.
//!
//! They are no part of the store's protocol: they change nothing, nothing waits for them but
//! an operator, and one that gets lost is reported as a node that did not answer. They
//! travel between the store's frames, and are told from them by their first byte. What they
//! say is JSON, so that nodes of different builds understand each other's: fields may be
//! added, and unknown ones are ignored.
//!
//! A node looks at a bounded part of its sessions for one question, so that its store is
//! never held up for long; whoever asks goes on where the answer ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::codec::FORMAT;
use super::store::Store;
use super::types::{GroupId, Manager, NodeId, Time, Version};

/// First byte of a question, and of an answer.
const QUESTION: u8 = b'?';
const ANSWER: u8 = b'!';
const _: () = assert!(FORMAT != QUESTION && FORMAT != ANSWER);
/// First byte, and the asker's number.
const HEAD: usize = 1 + 8;
/// Parts of a group that one question looks at.
const BUCKETS: u16 = 64;
/// Sessions that one question lists at most, and looks at for it.
const LIST: u32 = 1_000;
/// Questions of this node that are waiting for answers.
const ASKED: usize = 64;

/// What is asked, of a group by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// [`super::group_key`].
    pub group: u32,
    /// Only sessions bound to this route.
    #[serde(default)]
    pub route: Option<String>,
    /// Only sessions whose id begins so, in hexadecimal digits.
    #[serde(default)]
    pub prefix: Option<String>,
    /// What is wanted of them.
    pub what: What,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// How many there are by route, in the parts of the group from this one on.
    Count {
        /// The first part.
        from: u16,
    },
    /// Them, in the order of their places, from this one on.
    List {
        /// The first place.
        from: u64,
        /// At most so many.
        most: u32,
    },
    /// All copies of this node, whoever is their primary; nobody else is asked.
    Held {
        /// The first place.
        from: u64,
        /// At most so many.
        most: u32,
    },
    /// The copy of the session whose whole id the prefix is, as it is on each node.
    Copy,
}

/// What a node answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// It has caught up with the others' sessions.
    pub ready: bool,
    /// Equal for two nodes that see the same members.
    pub view: u64,
    /// It has the group.
    pub known: bool,
    /// By route.
    pub counts: BTreeMap<String, Count>,
    /// Sessions.
    pub list: Vec<Listed>,
    /// Its copy, of [`What::Copy`].
    pub copy: Option<Replica>,
    /// Where the next question goes on: a part, or a place. Nothing: this was all.
    pub next: Option<u64>,
}

/// Sessions with one route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    /// Of which the node is the primary; in a group that it holds whole, all.
    pub sessions: u64,
    /// That it holds.
    pub copies: u64,
    /// Until the last of `sessions` ends if nobody comes back, in milliseconds.
    pub last_ends: u64,
}

/// A session of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listed {
    /// Its place: a hash of its id.
    pub place: u64,
    /// Its id in hexadecimal digits.
    pub id: String,
    /// The backend.
    pub route: String,
    /// Since it was made, since the last access, and its life after that, in milliseconds.
    pub age: u64,
    /// Likewise.
    pub idle: u64,
    /// Likewise.
    pub ttl: u64,
}

/// A node's copy of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Replica {
    /// It is a tombstone: the session has ended.
    pub deleted: bool,
    /// Its version: stamp of the creation, stamp of the write, and who wrote.
    pub epoch: u64,
    /// Likewise.
    pub stamp: u64,
    /// Likewise.
    pub writer: u64,
    /// The backend.
    pub route: String,
    /// Since the last access that the node knows of, in milliseconds.
    pub idle: u64,
}

impl Replica {
    /// Its version.
    pub fn version(&self) -> Version {
        Version {
            epoch: self.epoch,
            deleted: self.deleted,
            stamp: self.stamp,
            writer: self.writer,
        }
    }
}

/// An id as it is written everywhere.
pub fn hex(id: &[u8]) -> String {
    use std::fmt::Write as _;
    id.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of an id; nothing for what is no even number of hexadecimal digits.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.is_empty() || !text.len().is_multiple_of(2) || !hex {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

impl Question {
    fn of(&self, id: &[u8], route: &str) -> bool {
        self.route.as_deref().is_none_or(|wanted| wanted == route)
            && (self.prefix.as_deref()).is_none_or(|prefix| begins(id, prefix))
    }
}

/// Whether an id begins with these hexadecimal digits; makes no text of it, as it is asked
/// of every session.
fn begins(id: &[u8], prefix: &str) -> bool {
    let digits = id.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let mut digits = digits.map(|digit| b"0123456789abcdef"[usize::from(digit)]);
    prefix
        .bytes()
        .all(|wanted| digits.next() == Some(wanted.to_ascii_lowercase()))
}

impl Store {
    /// Answers for this node.
    pub fn survey(&self, question: &Question, now: Time) -> Answer {
        let mut answer = Answer {
            ready: self.ready(),
            view: self.view.id,
            ..Answer::default()
        };
        let Some(&index) = self.by_key.get(&question.group) else {
            return answer;
        };
        let id = GroupId(index);
        answer.known = true;
        match question.what {
            What::Count { from } => self.count_part(id, from, question, now, &mut answer),
            What::List { from, most } | What::Held { from, most } => {
                let most = most.clamp(1, LIST) as usize;
                let page = self.list(id, from, most, now);
                if page.len() >= most {
                    answer.next = page.last().and_then(|last| last.cursor.checked_add(1));
                }
                let whole = self.holds_whole(id) || matches!(question.what, What::Held { .. });
                let wanted = page.into_iter().filter(|listed| {
                    (whole || listed.primary) && question.of(&listed.id, &listed.session.route)
                });
                answer.list = wanted
                    .map(|listed| Listed {
                        place: listed.cursor,
                        id: hex(&listed.id),
                        route: listed.session.route.to_string(),
                        age: listed.session.age,
                        idle: listed.session.idle,
                        ttl: listed.session.ttl,
                    })
                    .collect();
            }
            What::Copy => {
                let session = question.prefix.as_deref().and_then(unhex);
                answer.copy = session.and_then(|session| self.copy_of(id, &session, now));
            }
        }
        answer
    }

    fn copy_of(&self, group: GroupId, id: &[u8], now: Time) -> Option<Replica> {
        let version = self.version_of(group, id)?;
        let session = self.peek(group, id, now);
        Some(Replica {
            deleted: version.deleted,
            epoch: version.epoch,
            stamp: version.stamp,
            writer: version.writer,
            route: session
                .as_ref()
                .map_or(String::new(), |s| s.route.to_string()),
            idle: session.map_or(0, |session| session.idle),
        })
    }

    /// Every node of such a group holds all of it.
    fn holds_whole(&self, group: GroupId) -> bool {
        let group = &self.groups[usize::from(group.0)];
        !matches!(group.manager, Manager::Backup { .. })
    }

    fn count_part(
        &self,
        id: GroupId,
        from: u16,
        question: &Question,
        now: Time,
        answer: &mut Answer,
    ) {
        let group = &self.groups[usize::from(id.0)];
        let (whole, now) = (self.holds_whole(id), now.signed());
        let to = from.saturating_add(BUCKETS);
        if usize::from(to) < group.buckets.len() {
            answer.next = Some(u64::from(to));
        }
        // By the table's own numbers for routes first: a text for each session would cost
        // more than all the rest.
        let mut counts: BTreeMap<Arc<str>, Count> = BTreeMap::new();
        let part = group.buckets.iter().skip(usize::from(from));
        for bucket in part.take(usize::from(BUCKETS)) {
            if !group.mine(bucket) {
                continue;
            }
            let counted = whole || usize::from(bucket.primary) == group.me;
            for entry in bucket.table.iter() {
                let route = group.routes.name(entry.route);
                if entry.deleted || entry.expired(now) || !question.of(entry.id(), route) {
                    continue;
                }
                let count = counts.entry(Arc::clone(route)).or_default();
                count.copies += 1;
                if counted {
                    let idle = now.saturating_sub(entry.access).max(0) as u64;
                    count.sessions += 1;
                    count.last_ends = count.last_ends.max(entry.ttl.saturating_sub(idle));
                }
            }
        }
        let counts = counts.into_iter();
        answer.counts = counts
            .map(|(route, count)| (route.to_string(), count))
            .collect();
    }

    /// The other nodes that have to be asked as well.
    fn to_ask(&self, question: &Question) -> Vec<NodeId> {
        let Some(&index) = self.by_key.get(&question.group) else {
            return Vec::new();
        };
        match question.what {
            What::Held { .. } => return Vec::new(),
            What::Copy => {}
            What::Count { .. } | What::List { .. } if self.holds_whole(GroupId(index)) => {
                return Vec::new();
            }
            What::Count { .. } | What::List { .. } => {}
        }
        let members = &self.groups[usize::from(index)].members;
        let others = members.iter().filter(|node| **node != self.config.node);
        others.copied().collect()
    }
}

/// What became of a question: this node's answer, and those that are on their way.
#[derive(Debug)]
pub(super) struct Asked {
    /// This node, and its answer.
    pub own: (NodeId, Answer),
    /// Nodes that were asked.
    pub nodes: Vec<NodeId>,
    /// Nodes that should have been, and can't be reached.
    pub unreached: Vec<NodeId>,
    /// What they answer, in any order.
    pub answers: mpsc::Receiver<(NodeId, Answer)>,
}

/// Questions of this node that wait for answers; kept by the store's driver.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    next: u64,
    asked: BTreeMap<u64, mpsc::Sender<(NodeId, Answer)>>,
}

/// What came instead of a frame of the store's.
pub(super) enum Note {
    /// A question, and the answer to send back.
    Answer(Vec<u8>),
    /// An answer; whoever waited has it.
    Taken,
}

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoteError {
    #[error("a question or an answer without a number")]
    Short,
    #[error("a question or an answer that can't be read: {0}")]
    Content(#[from] serde_json::Error),
}

impl Surveys {
    /// Asks this node, and all others that have to be asked; `send` says whether a message
    /// is on its way. Nothing: too many questions wait already.
    pub(super) fn ask(
        &mut self,
        store: &Store,
        now: Time,
        question: &Question,
        skip: &[NodeId],
        send: impl Fn(NodeId, &[u8]) -> bool,
        reply: oneshot::Sender<Asked>,
    ) {
        // Those who have gone need no answers.
        self.asked.retain(|_, answers| !answers.is_closed());
        if self.asked.len() >= ASKED {
            return;
        }
        let mut nodes = store.to_ask(question);
        nodes.retain(|node| !skip.contains(node));
        let (answers, incoming) = mpsc::channel(nodes.len().max(1));
        let message = note(QUESTION, self.next, question);
        let sent = |node: &NodeId| send(*node, &message);
        let (nodes, unreached): (Vec<_>, Vec<_>) = nodes.into_iter().partition(sent);
        if !nodes.is_empty() {
            self.asked.insert(self.next, answers);
        }
        self.next += 1;
        // Whoever asked may have gone.
        let _ = reply.send(Asked {
            own: (store.config.node, store.survey(question, now)),
            nodes,
            unreached,
            answers: incoming,
        });
    }

    /// Takes a message that is none of the store's; gives back nothing when it is one.
    pub(super) fn take(
        &self,
        store: &Store,
        now: Time,
        from: NodeId,
        message: &[u8],
    ) -> Option<Result<Note, NoteError>> {
        let &kind = message.first()?;
        if kind != QUESTION && kind != ANSWER {
            return None;
        }
        let read = || {
            let (head, content) = message.split_at_checked(HEAD).ok_or(NoteError::Short)?;
            let mut number = [0; 8];
            number.copy_from_slice(&head[1..]);
            let number = u64::from_le_bytes(number);
            if kind == QUESTION {
                let question = serde_json::from_slice(content)?;
                let answer = store.survey(&question, now);
                return Ok(Note::Answer(note(ANSWER, number, &answer)));
            }
            let answer = serde_json::from_slice(content)?;
            if let Some(answers) = self.asked.get(&number) {
                // One that comes twice, or too late, is one too many.
                let _ = answers.try_send((from, answer));
            }
            Ok(Note::Taken)
        };
        Some(read())
    }
}

fn note(kind: u8, number: u64, content: &impl Serialize) -> Vec<u8> {
    let mut note = vec![kind];
    note.extend_from_slice(&number.to_le_bytes());
    serde_json::to_writer(&mut note, content).expect("plain data can be written to memory");
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shown_and_read() {
        for (prefix, is) in [
            ("", true),
            ("0", true),
            ("00aB1", true),
            ("00ab10", true),
            ("00ab100", false),
            ("1", false),
            ("x", false),
        ] {
            assert_eq!(begins(&[0, 0xab, 0x10], prefix), is, "{prefix}");
        }
        assert_eq!(hex(&[0, 0xab, 0x10]), "00ab10");
        assert_eq!(unhex("00Ab10"), Some(vec![0, 0xab, 0x10]));
        for wrong in ["", "0", "0g", "ä0", "+1"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_question_of_a_later_build_is_understood() {
        let later = r#"{"group":7,"what":{"count":{"from":3}},"colour":"red"}"#;
        let question: Question = serde_json::from_str(later).unwrap();
        assert_eq!(question.what, What::Count { from: 3 });
        let answer: Answer = serde_json::from_str(r#"{"ready":true,"more":1}"#).unwrap();
        assert!(answer.ready && !answer.known);
    }
}
