//! Membership: the view, what it places where, and the way of a node from its start until
//! it serves.
//!
//! ```text
//!            members come            may keep what it has,          holds all that it
//!                                    or has forgotten it            should hold
//! Waiting -------------------> Joining -----------------> Syncing ------------------> Ready
//!                                 ^  (skipped by a node that has nothing)               |
//!                                 +-------------- a new incarnation of its own ---------+
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::codec::{Flags, Record};
use super::ops::Stage;
use super::outbox::Peer;
use super::placement::{Set, mix, place};
use super::store::{Output, Store};
use super::types::{MAX_NODES, Member, NodeId, Time};

/// The members as this node knows them.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Equal on two nodes exactly when their members are.
    pub id: u64,
    /// Counts the changes on this node.
    pub generation: u64,
    pub incarnation: u64,
    pub members: Vec<Member>,
}

/// Where a node stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// It knows no members.
    Waiting,
    /// It asks whether it may keep what it has from an earlier life.
    Joining {
        replies: BTreeMap<NodeId, JoinReply>,
        since: Time,
        ask: Time,
    },
    /// It has forgotten everything, and its disk has not yet: until then it must not count
    /// as seen, or it could come back once more with what it had.
    Forgetting { batch: u64 },
    /// It fetches what it should hold.
    Syncing,
    /// It serves.
    Ready,
}

/// What a member says to a node that comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct JoinReply {
    pub ready: bool,
    pub known: bool,
    pub sure: bool,
    pub weight: u32,
}

impl JoinReply {
    /// The asker was away for longer than is allowed, for all that this member knows. That a
    /// member does not know it says nothing if it has no memory of that time: it may have
    /// been started a moment ago, and serve because it was alone.
    fn refuses(&self) -> bool {
        self.sure && !self.known
    }
}

/// More stamps than a node can issue before its peers hear of its clock.
const STRIDE: u64 = 1 << 20;

/// Most nodes that are remembered after they have gone.
const MAX_KNOWN: usize = 4 * MAX_NODES;

/// Stands for a life of a node in versions.
pub(super) fn writer_of(node: NodeId, incarnation: u64) -> u64 {
    mix(incarnation ^ mix(node.0))
}

impl Store {
    pub(super) fn admitted(&self) -> bool {
        matches!(self.phase, Phase::Syncing | Phase::Ready)
    }

    pub(super) fn change_view(&mut self, incarnation: u64, members: &[Member]) {
        let me = self.config.node;
        let mut members: Vec<Member> = members.iter().filter(|m| m.node != me).cloned().collect();
        members.sort_by_key(|member| member.node);
        members.dedup_by_key(|member| member.node);
        if members.len() >= MAX_NODES {
            self.counters.members_refused += (members.len() - (MAX_NODES - 1)) as u64;
            members.truncate(MAX_NODES - 1);
        }
        let mut groups: Vec<u32> = self.by_key.keys().copied().collect();
        groups.sort_unstable();
        let myself = Member {
            node: me,
            incarnation,
            groups: Some(groups.into()),
        };
        let at = members.partition_point(|member| member.node < me);
        members.insert(at, myself);

        // A node without a list of groups counts as one that holds all of them, so the
        // lists themselves are not part of what makes two views equal.
        let id = members.iter().fold(0, |id, member| {
            mix(id ^ mix(member.node.0 ^ mix(member.incarnation)))
        });
        if self.phase != Phase::Waiting && id == self.view.id {
            return;
        }
        let reborn = self.phase == Phase::Waiting || incarnation != self.view.incarnation;
        let stays = |old: &Member| {
            let same = |new: &Member| new.node == old.node && new.incarnation == old.incarnation;
            members.iter().any(same)
        };
        if !self.view.members.iter().all(stays) {
            // Who has gone may come back with writes whose stamps nobody here has seen.
            // What is written here from now on is later, and shall win.
            self.lamport += STRIDE;
        }
        self.view = View {
            id,
            generation: self.view.generation + 1,
            incarnation,
            members,
        };
        self.counters.views += 1;
        self.clean_since = None;
        self.make_peers();
        self.place_all();
        if reborn {
            self.begin_life();
        }
        self.repair.view_changed(self.now);
        self.log.view_changed();
        self.plan_comparison();
        self.ops_after_view();
        self.send_status();
        self.try_admit();
        self.try_ready();
    }

    fn make_peers(&mut self) {
        let mut old = std::mem::take(&mut self.peers);
        for member in &self.view.members {
            if member.node == self.config.node {
                continue;
            }
            let peer = match old.remove(&member.node) {
                Some(peer) if peer.incarnation == member.incarnation => peer,
                _ => Peer::new(member.incarnation),
            };
            self.peers.insert(member.node, peer);
        }
    }

    fn place_all(&mut self) {
        for group in &mut self.groups {
            let holds = |member: &&Member| match &member.groups {
                None => true,
                Some(keys) => keys.binary_search(&group.key).is_ok(),
            };
            let members = self.view.members.iter().filter(holds);
            group.members = members.map(|member| member.node).collect();
            group.me = group.index_of(self.config.node).unwrap_or(0);
            for (index, bucket) in (0_u16..).zip(&mut group.buckets) {
                let (primary, holders) =
                    place(group.manager, group.key, index, &group.members).unwrap_or_default();
                bucket.primary = primary as u8;
                bucket.holders = holders;
                bucket.synced = Set::default();
                bucket.equal = Set::default();
                bucket.confirmed = Set::default();
            }
        }
    }

    /// A start, or a return after others had given this node up.
    fn begin_life(&mut self) {
        if self.phase == Phase::Ready {
            self.outputs.push_back(Output::Ready(false));
        }
        self.set_writer();
        self.memory.get_or_insert(self.now.signed());
        self.abandon_ops();
        self.next_status = self.now.plus(self.config.timing.status);
        self.next_round = self.now.plus(self.config.timing.anti_entropy);
        self.next_sweep = self.now.plus(1);
        let empty = self.groups.iter().all(|g| g.live + g.tombstones == 0);
        self.phase = match (empty, &self.phase) {
            (true, Phase::Forgetting { batch }) => Phase::Forgetting { batch: *batch },
            (true, _) => Phase::Syncing,
            (false, _) => Phase::Joining {
                replies: BTreeMap::new(),
                since: self.now,
                ask: self.now,
            },
        };
        if self.config.sabotage == super::config::Sabotage::StaleCopy {
            self.phase = Phase::Ready;
            self.outputs.push_back(Output::Ready(true));
            for group in &mut self.groups {
                let others = group.others();
                group
                    .buckets
                    .iter_mut()
                    .for_each(|bucket| bucket.synced = others);
            }
        }
    }

    /// Marks everything that this node should hold for comparison with every member.
    fn plan_comparison(&mut self) {
        self.repair.unsettled = 0;
        for (g, group) in (0_u16..).zip(&self.groups) {
            let others = group.others();
            for (b, bucket) in (0_u16..).zip(&group.buckets) {
                if !group.mine(bucket) || bucket.synced.covers(others) {
                    continue;
                }
                self.repair.unsettled += 1;
                for index in others.iter() {
                    self.repair.plan(group.members[index], g, b);
                }
            }
        }
    }

    /// Compares all that is shared with one peer, because copies may be missing there.
    pub(super) fn compare_with(&mut self, peer: NodeId) {
        for (g, group) in (0_u16..).zip(&self.groups) {
            let Some(index) = group.index_of(peer) else {
                continue;
            };
            for (b, bucket) in (0_u16..).zip(&group.buckets) {
                if group.mine(bucket) && bucket.holders.has(index) {
                    self.repair.plan(peer, g, b);
                }
            }
        }
    }

    /// Asks again, or decides whether this node may keep what it has.
    pub(super) fn try_admit(&mut self) {
        let Phase::Joining {
            replies,
            since,
            ask,
        } = &mut self.phase
        else {
            return;
        };
        replies.retain(|node, _| self.peers.contains_key(node));
        let missing: Vec<NodeId> = self
            .peers
            .keys()
            .filter(|node| !replies.contains_key(node))
            .copied()
            .collect();
        let alone = self.peers.is_empty();
        if !missing.is_empty() {
            if self.now >= *ask {
                *ask = self.now.plus(self.config.timing.retry);
                for node in missing {
                    self.send(node, &Record::Join);
                }
            }
            return;
        }
        if alone && self.now < since.plus(self.config.timing.alone) {
            return;
        }
        let replies = std::mem::take(replies);
        if self.must_forget(&replies) {
            self.wipe();
            if self.persistent() {
                self.phase = Phase::Forgetting {
                    batch: self.log.last(),
                };
                return;
            }
        }
        self.admit();
    }

    /// What this node holds counts from now on.
    pub(super) fn admit(&mut self) {
        self.phase = Phase::Syncing;
        self.send_status();
        self.repair.view_changed(self.now);
        self.plan_comparison();
        self.try_ready();
    }

    /// A node keeps what it has if a member has seen it within the longest allowed
    /// absence: until then every deletion is remembered somewhere; and if nobody remembers
    /// that time. The word of members that serve counts; where nobody serves (all have
    /// restarted, or a long partition has ended), the side that was larger is believed.
    fn must_forget(&self, replies: &BTreeMap<NodeId, JoinReply>) -> bool {
        if replies.values().any(|reply| reply.ready) {
            let mut serving = replies.values().filter(|reply| reply.ready);
            return serving.clone().any(JoinReply::refuses) && !serving.any(|reply| reply.known);
        }
        let me = self.config.node;
        replies.iter().any(|(node, reply)| {
            let served = reply.weight > 0;
            let mutual = !self.seen_lately(*node);
            let they_win =
                (reply.weight, std::cmp::Reverse(*node)) > (self.weight, std::cmp::Reverse(me));
            served && reply.refuses() && (!mutual || they_win)
        })
    }

    fn wipe(&mut self) {
        for group in &mut self.groups {
            for index in 0..group.buckets.len() as u16 {
                group.clear(index);
            }
        }
        self.counters.wipes += 1;
        self.log_wipe();
    }

    /// Serves, if everything has been fetched.
    pub(super) fn try_ready(&mut self) {
        if self.phase == Phase::Syncing && self.repair.unsettled == 0 {
            self.phase = Phase::Ready;
            self.outputs.push_back(Output::Ready(true));
            self.send_status();
        }
        let weight = self.view.members.len() as u32;
        if self.phase == Phase::Ready && self.weight != weight {
            self.weight = weight;
            self.log_meta();
        }
    }

    pub(super) fn seen_lately(&self, node: NodeId) -> bool {
        self.known.get(&node).is_some_and(|&seen| {
            self.now.signed().saturating_sub(seen) <= self.config.timing.absence as i64
        })
    }

    pub(super) fn take_join(&mut self, from: NodeId) {
        let reply = Record::JoinReply {
            ready: self.ready(),
            known: self.seen_lately(from),
            sure: self.sure(),
            weight: self.weight,
        };
        self.send(from, &reply);
    }

    /// For how many milliseconds this node has known who was a member.
    pub(super) fn memory(&self) -> u64 {
        let now = self.now.signed();
        let since = self.memory.unwrap_or(now);
        now.saturating_sub(since).max(0) as u64
    }

    pub(super) fn take_join_reply(&mut self, from: NodeId, reply: JoinReply) {
        if let Phase::Joining { replies, .. } = &mut self.phase {
            replies.insert(from, reply);
            self.try_admit();
        }
    }

    /// When [`Store::try_admit`] has to be called again.
    pub(super) fn join_wake(&self) -> Option<Time> {
        match &self.phase {
            Phase::Joining { since, ask, .. } if self.peers.is_empty() => {
                Some(since.plus(self.config.timing.alone).max(*ask))
            }
            Phase::Joining { ask, .. } => Some(*ask),
            _ => None,
        }
    }

    pub(super) fn flags(&self) -> Flags {
        Flags {
            admitted: self.admitted(),
            ready: self.ready(),
            clean: self.ready()
                && self.repair.unsettled == 0
                && self.strays().next().is_none()
                && self.disk_keeps_up(),
        }
    }

    /// Whether the disk has all that is older than half the least life of a tombstone:
    /// until then a restart could bring back what others have long forgotten.
    fn disk_keeps_up(&self) -> bool {
        let lag = self.now.signed().saturating_sub(self.log.flushed());
        !self.persistent() || lag <= self.config.timing.tombstone_min as i64 / 2
    }

    /// Tells every peer where this node stands.
    pub(super) fn send_status(&mut self) {
        let now = self.now.signed();
        // Members too: who takes over this node's memory has to know of all in it.
        let known = self.known.iter();
        self.reports += 1;
        let status = Record::Status {
            round: self.reports,
            view: self.view.id,
            flags: self.flags(),
            memory: self.memory(),
            known: known
                .map(|(&node, &seen)| (node, now.saturating_sub(seen).max(0) as u64))
                .collect(),
        };
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            self.send(node, &status);
        }
    }

    pub(super) fn take_status(
        &mut self,
        from: NodeId,
        round: u64,
        (view, flags): (u64, Flags),
        memory: u64,
        known: &[(NodeId, u64)],
    ) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        if round <= peer.round {
            return;
        }
        peer.round = round;
        // Once admitted, a node stays so for this life, and may have shown it otherwise.
        let admitted = flags.admitted || peer.flags.is_some_and(|old| old.admitted);
        peer.flags = Some(Flags { admitted, ..flags });
        peer.view = view;
        peer.heard = now;
        if flags.admitted {
            // With this report comes whom it has known all that time.
            let since = now.signed().saturating_sub_unsigned(memory);
            self.memory = self.memory.map(|own| own.min(since));
            self.note_seen(from);
            if view == self.view.id {
                self.repair.hurry(from);
            }
        }
        // Only what is new here and well inside the limit: an age loses a little on every
        // way, and passed to and fro it would never reach the limit.
        let fresh = self.config.timing.absence / 10 * 9;
        let mut new = false;
        for &(node, age) in known {
            let room = self.known.len() < MAX_KNOWN;
            if age < fresh && room && node != self.config.node {
                let seen = now.signed().saturating_sub_unsigned(age);
                new |= !self.known.contains_key(&node);
                self.known.entry(node).or_insert(seen);
            }
        }
        if new {
            self.log_meta();
        }
    }

    /// A node that may keep what it has was heard of just now.
    pub(super) fn note_seen(&mut self, node: NodeId) {
        let now = self.now.signed();
        // What is on disk of it is older by up to the time between two regular writings.
        let old = self.config.timing.absence as i64 / 8;
        let before = self.known.insert(node, now);
        if before.is_none_or(|before| now.saturating_sub(before) > old) {
            self.log_meta();
        }
    }

    /// Whether a node that this one does not know was away for too long, for all that this
    /// one knows.
    pub(super) fn sure(&self) -> bool {
        self.memory() >= self.config.timing.absence
    }

    /// Whether this node would still know whom it knows after it was killed now. Until then
    /// it must not help another one to serve: that one might be refused when it returns,
    /// and forget what it has acknowledged.
    pub(super) fn would_know(&self) -> bool {
        !self.sure() || self.meta_is_safe()
    }

    /// Forgets nodes that would have to come back empty anyway, and notes whether all
    /// that are known are here and clean.
    pub(super) fn review_peers(&mut self) {
        let now = self.now.signed();
        let absence = self.config.timing.absence as i64;
        self.known
            .retain(|_, seen| now.saturating_sub(*seen) <= absence);
        let stale = self.config.timing.status * 4;
        let clean = self.flags().clean
            && self.known.keys().all(|node| self.peers.contains_key(node))
            && self.peers.values().all(|peer| {
                peer.view == self.view.id
                    && peer.flags.is_some_and(|flags| flags.clean)
                    && self.now < peer.heard.plus(stale)
            });
        self.clean_since = match (clean, self.clean_since) {
            (true, None) => Some(now),
            (true, since) => since,
            (false, _) => None,
        };
    }

    /// Buckets that this node holds and should not.
    pub(super) fn strays(&self) -> impl Iterator<Item = (u16, u16)> {
        (0_u16..).zip(&self.groups).flat_map(|(g, group)| {
            let buckets = (0_u16..).zip(&group.buckets);
            buckets
                .filter(|(_, bucket)| !bucket.table.is_empty() && !group.mine(bucket))
                .map(move |(b, _)| (g, b))
        })
    }

    /// Ends every operation: the life in which they began is over.
    fn abandon_ops(&mut self) {
        self.remote.clear();
        self.timers.clear();
        for (_, pending) in std::mem::take(&mut self.ops) {
            self.fail(pending.origin);
        }
    }

    /// The nodes that an operation waits for may have gone, and others be wanted.
    fn ops_after_view(&mut self) {
        let numbers: BTreeSet<u64> = self.ops.keys().copied().collect();
        for number in numbers {
            let Some(pending) = self.ops.get(&number) else {
                continue;
            };
            match pending.stage {
                Stage::Gather { .. } => self.review_gather(number, true),
                Stage::Copies { .. } => self.review_copies(number, true),
                Stage::Forward { to, .. } => {
                    if !self.peers.contains_key(&to) {
                        self.forward_again(number);
                    }
                }
            }
        }
    }
}
