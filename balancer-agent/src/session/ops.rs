//! Operations: from a caller's request, or a forwarded one, to its outcome.
//!
//! ```text
//! request --> do I hold it (and is it mine to decide)? --no--> Forward to the primary
//!                 | yes                                          | no answer: next holder
//!             have I compared the bucket with all members? --no--> Gather their copies
//!                 | yes                                          |
//!             execute <------------------------------------------+
//!                 | a write with `sync`
//!             Copies: wait for acknowledgements (and the disk) --> outcome
//! ```

use smallvec::SmallVec;

use super::codec::{EntryRef, OpRef, Record, ResultRef};
use super::execute::End;
use super::placement::order;
use super::store::{Output, Store, push, push_all};
use super::types::{
    Expect, GroupId, MAX_ID, MAX_ROUTE, MAX_TTL, MIN_ID, Manager, NodeId, Op, Outcome, Session,
    Time, Token, Version,
};
use super::view::writer_of;

/// Who waits for an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    Local(Token),
    /// Another node, in this life: its numbers begin anew with each.
    Remote {
        node: NodeId,
        life: u64,
        req: u64,
    },
}

/// An operation that could not be done at once.
#[derive(Debug)]
pub(super) struct Pending {
    pub origin: Origin,
    pub group: usize,
    pub hash: u64,
    pub id: Box<[u8]>,
    pub op: Op,
    pub stage: Stage,
    pub deadline: Time,
    /// Lamport clock when it was issued.
    pub issued: u64,
    /// The stamp of a write that is or was handed to another node, and who gives it: it
    /// may be done there and here, and must be the same write then.
    pub stamped: Option<(u64, u64)>,
    /// When it was asked for, by this node's clock.
    pub asked: i64,
    /// Do it here even if another node would be preferred.
    pub forced: bool,
    pub wake: Time,
    /// How often its messages have been sent again.
    pub resent: u32,
}

/// What it waits for.
#[derive(Debug)]
pub(super) enum Stage {
    /// The copies of these nodes.
    Gather { waiting: SmallVec<[NodeId; 4]> },
    /// The primary, or the next holder that answers.
    Forward { to: NodeId, tries: usize },
    /// Acknowledgements.
    Copies {
        version: Version,
        waiting: SmallVec<[NodeId; 4]>,
        /// Who has acknowledged, and in which life.
        acked: SmallVec<[(NodeId, u64); 4]>,
        /// The batch that must be on this node's disk first.
        disk: Option<u64>,
    },
}

/// The wait for an answer doubles as often as this.
const MOST_DOUBLINGS: u32 = 3;

fn invalid(id: &[u8], op: &Op, most_data: usize) -> Option<&'static str> {
    if !(MIN_ID..=MAX_ID).contains(&id.len()) {
        return Some("a session id must have 8 to 128 bytes");
    }
    let long = |route: &str| {
        (route.len() > MAX_ROUTE).then_some("the name of a backend must have at most 64 bytes")
    };
    match op {
        Op::Put { ttl, .. } if !(1..=MAX_TTL).contains(ttl) => {
            Some("the time to live must be 1 ms to 10 years")
        }
        Op::Put {
            data: Some(data), ..
        } if data.len() > most_data => Some("the data is longer than this group allows"),
        Op::Put { route, .. } | Op::Bind { route } => long(route),
        _ => None,
    }
}

impl Store {
    pub(super) fn request(&mut self, token: Token, group: GroupId, id: &[u8], op: Op, asked: Time) {
        let Some(g) = self.groups.get(usize::from(group.0)) else {
            return self.reply(token, Outcome::Invalid("there is no such group"));
        };
        if let Some(reason) = invalid(id, &op, self.config.limits.data) {
            return self.reply(token, Outcome::Invalid(reason));
        }
        if self.ops.len() + self.external.len() >= self.config.limits.pending {
            self.counters.busy += 1;
            return self.reply(token, Outcome::Busy);
        }
        let deadline = self.now.plus(self.config.timing.operation);
        if g.manager == Manager::External {
            self.external.insert(token, deadline);
            let id = id.into();
            return self.outputs.push_back(Output::External {
                token,
                group,
                id,
                op,
            });
        }
        if !self.ready() {
            self.counters.not_ready += 1;
            return self.reply(token, Outcome::NotReady);
        }
        let hash = g.hash(id);
        let pending = Pending {
            origin: Origin::Local(token),
            group: usize::from(group.0),
            hash,
            id: id.into(),
            op,
            stage: Stage::Gather {
                waiting: SmallVec::new(),
            },
            deadline,
            issued: self.lamport,
            stamped: None,
            asked: asked.signed(),
            forced: false,
            wake: deadline,
            resent: 0,
        };
        if self.decides_here(&pending) {
            self.coordinate(pending);
        } else {
            self.forward(pending, 0);
        }
    }

    /// Reads are answered by any holder. Writes of a `backup` group, and conditional ones,
    /// are put in order by the primary; other writes of a `delta` group begin here.
    fn decides_here(&self, pending: &Pending) -> bool {
        let group = &self.groups[pending.group];
        let bucket = group.bucket(pending.hash);
        if !group.mine(bucket) {
            return false;
        }
        if usize::from(bucket.primary) == group.me {
            return true;
        }
        let entry = group.find(pending.hash, &pending.id);
        if entry.is_some_and(|entry| entry.expired(self.now.signed())) {
            // The primary may know of an access that this node does not.
            return false;
        }
        match &pending.op {
            Op::Get { .. } | Op::Touch => true,
            Op::Put { expect, .. } if *expect != Expect::Any => false,
            Op::Put { .. } | Op::Bind { .. } | Op::Delete => group.manager == Manager::Delta,
        }
    }

    /// Makes sure that this node knows the newest copy, then executes.
    pub(super) fn coordinate(&mut self, mut pending: Pending) {
        let group = &self.groups[pending.group];
        let missing = group.others().minus(group.bucket(pending.hash).synced);
        if missing.is_empty() {
            return self.execute(pending);
        }
        self.counters.gathers += 1;
        let waiting = missing.iter().map(|index| group.members[index]).collect();
        pending.stage = Stage::Gather { waiting };
        let wait = self.patience(pending.resent);
        let number = self.park(pending, wait);
        self.ask_again(number);
    }

    /// How long to wait for an answer to a message that was sent so often again. Longer and
    /// longer: a node that is slow because it has too much to do must not be given more.
    fn patience(&self, resent: u32) -> u64 {
        self.config.timing.retry << resent.min(MOST_DOUBLINGS)
    }

    /// Puts an operation aside until something happens, at the latest after `wait`.
    pub(super) fn park(&mut self, pending: Pending, wait: u64) -> u64 {
        let number = self.next_op;
        self.next_op += 1;
        if let Origin::Remote { life, req, .. } = pending.origin {
            self.remote.insert((life, req), number);
        }
        self.ops.insert(number, pending);
        self.set_wake(number, wait);
        number
    }

    pub(super) fn set_wake(&mut self, number: u64, wait: u64) {
        if let Some(pending) = self.ops.get_mut(&number) {
            self.timers.remove(&(pending.wake, number));
            pending.wake = self.now.plus(wait).min(pending.deadline);
            self.timers.insert((pending.wake, number));
        }
    }

    pub(super) fn unpark(&mut self, number: u64) -> Option<Pending> {
        let pending = self.ops.remove(&number)?;
        self.timers.remove(&(pending.wake, number));
        if let Origin::Remote { life, req, .. } = pending.origin {
            self.remote.remove(&(life, req));
        }
        Some(pending)
    }

    fn ask_again(&mut self, number: u64) {
        let Some(pending) = self.ops.get(&number) else {
            return;
        };
        let Stage::Gather { waiting } = &pending.stage else {
            return;
        };
        let record = Record::Ask {
            req: number,
            group: self.groups[pending.group].key,
            id: &pending.id,
        };
        push_all(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            waiting.iter().copied(),
            &record,
        );
    }

    /// Drops from a gathering the nodes that need no longer be asked, and asks the others
    /// again; after a change of the view (`anew`), all members that count then.
    pub(super) fn review_gather(&mut self, number: u64, anew: bool) {
        let Some(pending) = self.ops.get_mut(&number) else {
            return;
        };
        let group = &self.groups[pending.group];
        let bucket = group.bucket(pending.hash);
        let Stage::Gather { waiting } = &mut pending.stage else {
            return;
        };
        if !group.mine(bucket) {
            // Another node decides now.
            if let Some(pending) = self.unpark(number) {
                match pending.origin {
                    Origin::Local(_) => self.forward(pending, 0),
                    Origin::Remote { node, life, req } => {
                        self.outcome((node, life), req, ResultRef::NotMine);
                    }
                }
            }
            return;
        }
        let missing = group.others().minus(bucket.synced);
        let mut missing = missing.iter().map(|index| group.members[index]);
        if anew {
            *waiting = missing.collect();
        } else {
            let still: SmallVec<[NodeId; 4]> = missing.by_ref().collect();
            waiting.retain(|node| still.contains(node));
        }
        if waiting.is_empty() {
            if let Some(pending) = self.unpark(number) {
                self.execute(pending);
            }
        } else {
            self.ask_again(number);
        }
    }

    pub(super) fn take_ask(&mut self, from: NodeId, req: u64, key: u32, id: &[u8]) {
        let Some(g) = self.group_of(key) else {
            return;
        };
        let group = &self.groups[g];
        let found = match self.admitted() {
            true => group.find(group.hash(id), id),
            false => None,
        };
        let now = self.now.signed();
        let record = Record::Answer {
            req,
            entry: found.map(|entry| group.wire(entry, now)),
        };
        push(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            from,
            &record,
        );
    }

    pub(super) fn take_answer(&mut self, from: NodeId, req: u64, entry: Option<&EntryRef<'_>>) {
        let Some(pending) = self.ops.get_mut(&req) else {
            return;
        };
        let Stage::Gather { waiting } = &mut pending.stage else {
            return;
        };
        let Some(index) = waiting.iter().position(|&node| node == from) else {
            return;
        };
        waiting.remove(index);
        let done = waiting.is_empty();
        if let Some(entry) = entry {
            self.take_copy(entry);
        }
        if done && let Some(pending) = self.unpark(req) {
            self.execute(pending);
        }
    }

    /// Hands an operation to the holder that is `tries / 2`-th in the order of preference.
    pub(super) fn forward(&mut self, mut pending: Pending, tries: usize) {
        let group = &self.groups[pending.group];
        let bucket = group.bucket_index(pending.hash);
        let holders = match group.manager {
            Manager::Backup { copies } => usize::from(copies) + 1,
            _ => group.members.len(),
        };
        let order = order(group.key, bucket, &group.members);
        let holders = holders.min(order.len()).max(1);
        let target = order.get((tries / 2) % holders).map(|&i| group.members[i]);
        let to = target.unwrap_or(self.config.node);
        if to == self.config.node {
            pending.forced = true;
            return self.coordinate(pending);
        }
        self.counters.forwards += 1;
        if pending.stamped.is_none() && pending.op.writes() {
            pending.issued = self.stamp();
            pending.stamped = Some((pending.issued, self.writer));
        }
        pending.stage = Stage::Forward { to, tries };
        let wait = self.patience(pending.resent);
        let number = self.park(pending, wait);
        self.send_forward(number);
    }

    fn send_forward(&mut self, number: u64) {
        let Some(pending) = self.ops.get(&number) else {
            return;
        };
        let Stage::Forward { to, .. } = pending.stage else {
            return;
        };
        let record = Record::Forward {
            req: number,
            group: self.groups[pending.group].key,
            issued: pending.issued,
            age: self.now.signed().saturating_sub(pending.asked).max(0) as u64,
            id: &pending.id,
            op: borrow_op(&pending.op),
        };
        push(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            to,
            &record,
        );
    }

    /// Tries the next holder.
    pub(super) fn forward_again(&mut self, number: u64) {
        let Some(pending) = self.unpark(number) else {
            return;
        };
        let tries = match pending.stage {
            Stage::Forward { tries, .. } => tries + 1,
            _ => 0,
        };
        self.forward(pending, tries);
    }

    pub(super) fn take_forward(
        &mut self,
        (from, req): (NodeId, u64),
        key: u32,
        (issued, age): (u64, u64),
        id: &[u8],
        op: OpRef<'_>,
    ) {
        let Some(life) = self.peers.get(&from).map(|peer| peer.incarnation) else {
            return;
        };
        let Some(g) = self.group_of(key) else {
            return self.outcome((from, life), req, ResultRef::NotMine);
        };
        if self.remote.contains_key(&(life, req)) {
            return self.outcome((from, life), req, ResultRef::Working);
        }
        if !self.ready() {
            return self.outcome((from, life), req, ResultRef::NotReady);
        }
        let op = own_op(op);
        if self.ops.len() >= self.config.limits.pending
            || invalid(id, &op, self.config.limits.data).is_some()
        {
            self.counters.busy += 1;
            return self.outcome((from, life), req, ResultRef::Busy);
        }
        let group = &self.groups[g];
        let hash = group.hash(id);
        if !group.mine(group.bucket(hash)) {
            return self.outcome((from, life), req, ResultRef::NotMine);
        }
        // A little earlier than the asker's own bound, so that it hears of the end.
        let deadline = self.now.plus(self.config.timing.operation / 2);
        self.coordinate(Pending {
            origin: Origin::Remote {
                node: from,
                life,
                req,
            },
            group: g,
            hash,
            id: id.into(),
            stage: Stage::Gather {
                waiting: SmallVec::new(),
            },
            deadline,
            issued,
            stamped: op.writes().then(|| (issued, writer_of(from, life))),
            asked: self.now.signed().saturating_sub_unsigned(age),
            op,
            forced: true,
            wake: deadline,
            resent: 0,
        });
    }

    /// Tells another node how its operation ended, if it still is in the life that asked.
    pub(super) fn outcome(&mut self, to: (NodeId, u64), req: u64, result: ResultRef<'_>) {
        let (node, life) = to;
        if self
            .peers
            .get(&node)
            .is_some_and(|peer| peer.incarnation == life)
        {
            self.send(node, &Record::Outcome { req, result });
        }
    }

    pub(super) fn take_outcome(&mut self, from: NodeId, req: u64, result: ResultRef<'_>) {
        let Some(pending) = self.ops.get_mut(&req) else {
            return;
        };
        let (Stage::Forward { to, tries }, Origin::Local(token)) =
            (&mut pending.stage, pending.origin)
        else {
            return;
        };
        let outcome = match result {
            ResultRef::NotReady | ResultRef::NotMine | ResultRef::Unavailable | ResultRef::Busy => {
                if *to == from {
                    // The next one, a little later: views may be about to agree.
                    *tries |= 1;
                    let wait = self.config.timing.retry / 4;
                    self.set_wake(req, wait.max(1));
                }
                return;
            }
            ResultRef::Working => {
                if *to == from {
                    *tries &= !1; // Stay with this one.
                }
                return;
            }
            ResultRef::Stale => {
                if *to == from {
                    // The header of this frame has brought the clock forward.
                    if pending.stamped.is_some() {
                        self.lamport += 1;
                        pending.stamped = Some((self.lamport, self.writer));
                    }
                    pending.issued = self.lamport;
                    self.counters.stale_forwards += 1;
                    self.send_forward(req);
                }
                return;
            }
            ResultRef::Found(entry) => Outcome::Found(Box::new(Session {
                version: entry.version,
                route: entry.route.into(),
                age: entry.age,
                idle: entry.idle,
                ttl: entry.ttl,
                data: entry.data.map(Into::into),
            })),
            ResultRef::Done(version, copies, degraded) => Outcome::Done {
                version,
                copies,
                degraded,
            },
            ResultRef::Touched => Outcome::Touched,
            ResultRef::NotFound => Outcome::NotFound,
            ResultRef::Conflict(version) => Outcome::Conflict(version),
        };
        self.unpark(req);
        self.reply(token, outcome);
    }

    /// An operation of this node, or of a peer, whose time has come.
    pub(super) fn wake_op(&mut self, number: u64) {
        let Some(pending) = self.ops.get_mut(&number) else {
            return;
        };
        if self.now < pending.deadline {
            pending.resent += 1;
            let resent = pending.resent;
            let wait = self.patience(resent);
            self.set_wake(number, wait);
            match self.ops[&number].stage {
                Stage::Gather { .. } => self.review_gather(number, false),
                Stage::Copies { .. } => self.review_copies(number, true),
                Stage::Forward { .. } => self.forward_again(number),
            }
            return;
        }
        let Some(pending) = self.unpark(number) else {
            return;
        };
        let end = match &pending.stage {
            Stage::Copies { version, acked, .. } => {
                self.counters.degraded += 1;
                End::Done(*version, acked.len() as u8, true)
            }
            Stage::Gather { .. } if matches!(pending.op, Op::Get { .. }) => {
                // What is here may be old, but it is something.
                let group = &self.groups[pending.group];
                let now = self.now.signed();
                let found = group.find(pending.hash, &pending.id);
                match found.is_some_and(|entry| !entry.deleted && !entry.expired(now)) {
                    true => {
                        self.counters.partial_reads += 1;
                        End::Found
                    }
                    false => End::Unavailable,
                }
            }
            _ => End::Unavailable,
        };
        self.finish(&pending, end);
    }

    /// The life in which an operation began is over.
    pub(super) fn fail(&mut self, origin: Origin) {
        if let Origin::Local(token) = origin {
            self.counters.unavailable += 1;
            self.reply(token, Outcome::Unavailable);
        }
    }
}

fn borrow_op(op: &Op) -> OpRef<'_> {
    match op {
        Op::Get { touch } => OpRef::Get(*touch),
        Op::Put {
            route,
            ttl,
            data,
            expect,
        } => OpRef::Put {
            route,
            ttl: *ttl,
            data: data.as_deref(),
            expect: match expect {
                Expect::Any => None,
                Expect::Absent => Some(None),
                Expect::Version(version) => Some(Some(*version)),
            },
        },
        Op::Bind { route } => OpRef::Bind(route),
        Op::Touch => OpRef::Touch,
        Op::Delete => OpRef::Delete,
    }
}

fn own_op(op: OpRef<'_>) -> Op {
    match op {
        OpRef::Get(touch) => Op::Get { touch },
        OpRef::Put {
            route,
            ttl,
            data,
            expect,
        } => Op::Put {
            route: route.into(),
            ttl,
            data: data.map(Into::into),
            expect: match expect {
                None => Expect::Any,
                Some(None) => Expect::Absent,
                Some(Some(version)) => Expect::Version(version),
            },
        },
        OpRef::Bind(route) => Op::Bind {
            route: route.into(),
        },
        OpRef::Touch => Op::Touch,
        OpRef::Delete => Op::Delete,
    }
}
