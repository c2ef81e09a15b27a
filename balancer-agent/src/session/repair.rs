//! Comparing buckets with other members, and fetching what differs.
//!
//! One mechanism serves a joining node, a new placement, and anti-entropy. For a peer and
//! a list of buckets: send digests; the peer says which differ; pull those in bounded
//! parts. The puller drives, resends and resumes; the answering side keeps no state. Copies
//! that the peer lacks go back as plain writes.
//!
//! After each change of the view a node compares every bucket that it should hold with
//! every member. An answer counts only if the member has the same view: from then on that
//! member sends its writes here, so nothing can fall between. A bucket compared with all
//! members is *settled*: reads of it need no one else.
//!
//! A bucket that a node holds and should not (a *stray*) is offered to its holders, and
//! dropped when each has confirmed that it wants the bucket and holds exactly this digest.
//! The confirmation names the view generation it answers. So of all nodes that drop a
//! copy, the one that confirmed last has not dropped it: a copy is never lost by moving.

use std::collections::{BTreeMap, BTreeSet};

use super::codec::Record;
use super::placement::Set;
use super::store::Store;
use super::types::{NodeId, Time};

/// All comparisons that are planned or under way.
#[derive(Debug, Default)]
pub(super) struct Repair {
    pub plans: BTreeMap<NodeId, Plan>,
    pub pulls: BTreeMap<u64, Pull>,
    /// Buckets with a pull under way.
    pub busy: BTreeSet<(u16, u16)>,
    pub nonce: u64,
    /// Start of the running round of anti-entropy.
    pub round: i64,
    /// Buckets that this node should hold and that are not settled.
    pub unsettled: usize,
    /// When [`Store::run_repair`] has something to do again.
    pub wake: Option<Time>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub todo: BTreeSet<(u16, u16)>,
    pub query: Option<Query>,
    /// Not before.
    pub after: Time,
}

#[derive(Debug)]
pub(super) struct Query {
    nonce: u64,
    group: u16,
    items: Vec<(u16, u64)>,
    deadline: Time,
}

#[derive(Debug)]
pub(super) struct Pull {
    pub peer: NodeId,
    pub group: u16,
    pub bucket: u16,
    pub from: u64,
    /// View generation and digest of the peer when the first part came.
    pub first: Option<(u64, u64)>,
    pub tries: u32,
    pub deadline: Time,
}

/// Most buckets in one message of digests.
const QUERY: usize = 256;
/// A pull without an answer is given up after this many messages, and planned anew.
const TRIES: u32 = 4;

impl Repair {
    pub fn view_changed(&mut self, now: Time) {
        self.plans.clear();
        self.pulls.clear();
        self.busy.clear();
        self.wake = Some(now);
    }

    pub fn plan(&mut self, peer: NodeId, group: u16, bucket: u16) {
        let plan = self.plans.entry(peer).or_default();
        plan.todo.insert((group, bucket));
        self.wake = Some(Time(0));
    }

    /// The peer has taken a new view: what it refused before may go now.
    pub fn hurry(&mut self, peer: NodeId) {
        if let Some(plan) = self.plans.get_mut(&peer) {
            plan.after = Time(0);
            self.wake = Some(Time(0));
        }
    }

    pub fn next_nonce(&mut self) -> u64 {
        self.nonce += 1;
        self.nonce
    }
}

impl Store {
    /// Begins a round of anti-entropy with every co-holder.
    pub(super) fn begin_round(&mut self) {
        self.repair.round = self.now.signed();
        for (g, group) in (0_u16..).zip(&mut self.groups) {
            let me = group.me;
            for (b, bucket) in (0_u16..).zip(&mut group.buckets) {
                if group.members.is_empty() || !bucket.holders.has(me) {
                    continue;
                }
                bucket.equal = Set::default();
                let others = bucket.holders.without(me);
                if others.is_empty() {
                    bucket.agreed = self.repair.round;
                }
                for index in others.iter() {
                    self.repair.plan(group.members[index], g, b);
                }
            }
        }
    }

    /// Sends what is due: queries, and pulls without an answer.
    pub(super) fn run_repair(&mut self) {
        if !self.admitted() || self.repair.wake.is_none_or(|wake| self.now < wake) {
            return;
        }
        let now = self.now;
        let retry = self.config.timing.retry;
        let late: Vec<u64> = self
            .repair
            .pulls
            .iter()
            .filter(|(_, pull)| pull.deadline <= now)
            .map(|(&nonce, _)| nonce)
            .collect();
        for nonce in late {
            match self.repair.pulls.get_mut(&nonce) {
                Some(pull) if pull.tries < TRIES => {
                    pull.tries += 1;
                    pull.deadline = now.plus(retry);
                    self.send_pull(nonce);
                }
                _ => self.end_pull(nonce),
            }
        }
        let peers: Vec<NodeId> = self.repair.plans.keys().copied().collect();
        for peer in peers {
            self.query(peer);
        }
        self.repair
            .plans
            .retain(|_, plan| !plan.todo.is_empty() || plan.query.is_some());
        let pulls = self.repair.pulls.values().map(|pull| pull.deadline);
        let plans = self
            .repair
            .plans
            .values()
            .filter_map(|plan| match &plan.query {
                Some(query) => Some(query.deadline),
                None if plan.after > now => Some(plan.after),
                None => None, // It waits for a pull to end.
            });
        self.repair.wake = pulls.chain(plans).min();
    }

    fn query(&mut self, peer: NodeId) {
        let now = self.now;
        let free = self
            .config
            .limits
            .pulls
            .saturating_sub(self.repair.pulls.len());
        let Some(plan) = self.repair.plans.get_mut(&peer) else {
            return;
        };
        match &plan.query {
            Some(query) if now < query.deadline => return,
            Some(_) => plan.query = None,
            None => {}
        }
        // With few pulls free most of an answer would be of no use.
        if now < plan.after || free * 2 < self.config.limits.pulls {
            return;
        }
        let groups = &self.groups;
        let mine = |&(g, b): &(u16, u16)| {
            let group = &groups[usize::from(g)];
            group.mine(&group.buckets[usize::from(b)])
        };
        plan.todo.retain(mine);
        let busy = &self.repair.busy;
        let mut items = Vec::new();
        let mut group = None;
        for &(g, b) in plan.todo.iter().filter(|item| !busy.contains(item)) {
            if *group.get_or_insert(g) != g || items.len() == QUERY {
                break;
            }
            items.push((b, groups[usize::from(g)].buckets[usize::from(b)].digest));
        }
        let Some(g) = group else {
            return;
        };
        self.repair.nonce += 1;
        let nonce = self.repair.nonce;
        let record = Record::Digests {
            view: self.view.id,
            group: groups[usize::from(g)].key,
            nonce,
            items: items.clone(),
        };
        plan.query = Some(Query {
            nonce,
            group: g,
            items,
            deadline: now.plus(self.config.timing.retry),
        });
        self.send(peer, &record);
    }

    pub(super) fn take_repair(&mut self, from: NodeId, record: Record<'_>) {
        match record {
            Record::Digests {
                group,
                nonce,
                items,
                ..
            } => self.take_digests(from, group, nonce, &items),
            Record::Differ {
                view,
                nonce,
                admitted,
                generation,
                items,
            } => self.take_differ(from, view, nonce, admitted, generation, &items),
            Record::Pull {
                nonce,
                group,
                bucket,
                from: low,
                to,
                items,
            } => self.take_pull(from, nonce, group, bucket, (low, to), &items),
            Record::Part {
                nonce,
                view,
                generation,
                digest,
                to,
                entries,
                wants,
            } => self.take_part(
                from,
                nonce,
                view,
                (generation, digest),
                to,
                &entries,
                &wants,
            ),
            Record::Offer { group, buckets } => {
                if let Some(g) = self.group_of(group) {
                    for bucket in buckets {
                        let held = self.groups[g].buckets.get(usize::from(bucket));
                        if held.is_some_and(|held| self.groups[g].mine(held)) {
                            self.repair.plan(from, g as u16, bucket);
                        }
                    }
                }
            }
            Record::Confirm {
                group,
                bucket,
                generation,
                digest,
            } => self.take_confirm(from, group, bucket, generation, digest),
            _ => {}
        }
    }

    fn take_digests(&mut self, from: NodeId, key: u32, nonce: u64, items: &[(u16, u64)]) {
        // Only an admitted node compares. Its report of that may be late or lost, and from
        // here on its acknowledgements count.
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.flags.get_or_insert_default().admitted = true;
            self.note_seen(from);
        }
        if !self.would_know() {
            return; // It asks again.
        }
        let group = self.group_of(key).map(|g| &self.groups[g]);
        let differ = |&(bucket, digest): &(u16, u64)| {
            let ours = group.and_then(|group| group.buckets.get(usize::from(bucket)));
            match ours {
                Some(ours) if ours.digest == digest => None,
                Some(ours) => Some((bucket, ours.table.is_empty())),
                None => Some((bucket, true)),
            }
        };
        let items = items.iter().filter_map(differ).collect();
        let record = Record::Differ {
            view: self.view.id,
            nonce,
            admitted: self.admitted(),
            generation: self.view.generation,
            items,
        };
        self.send(from, &record);
    }

    fn take_differ(
        &mut self,
        from: NodeId,
        view: u64,
        nonce: u64,
        admitted: bool,
        generation: u64,
        items: &[(u16, bool)],
    ) {
        let Some(plan) = self.repair.plans.get_mut(&from) else {
            return;
        };
        let Some(query) = plan.query.take_if(|query| query.nonce == nonce) else {
            return;
        };
        self.repair.wake = Some(Time(0));
        if !admitted || view != self.view.id {
            plan.after = self.now.plus(self.config.timing.retry);
            return;
        }
        let items: BTreeMap<u16, bool> = items.iter().copied().collect();
        for (bucket, digest) in query.items {
            match items.get(&bucket) {
                None => {
                    self.note_equal(from, query.group, bucket);
                    self.settle(from, query.group, bucket, Some((generation, digest)));
                }
                Some(true) => self.settle(from, query.group, bucket, None),
                Some(false) => self.start_pull(from, query.group, bucket),
            }
        }
        self.try_ready();
    }

    /// A co-holder has the same as this node.
    fn note_equal(&mut self, peer: NodeId, g: u16, b: u16) {
        let group = &mut self.groups[usize::from(g)];
        let (me, index) = (group.me, group.index_of(peer));
        let bucket = &mut group.buckets[usize::from(b)];
        if let Some(index) = index {
            bucket.equal = bucket.equal.with(index);
        }
        if bucket.equal.covers(bucket.holders.without(me)) {
            bucket.agreed = self.repair.round;
        }
    }

    /// This node has all that the peer has of the bucket.
    pub(super) fn settle(&mut self, peer: NodeId, g: u16, b: u16, theirs: Option<(u64, u64)>) {
        if let Some(plan) = self.repair.plans.get_mut(&peer) {
            plan.todo.remove(&(g, b));
        }
        let group = &mut self.groups[usize::from(g)];
        let Some(index) = group.index_of(peer) else {
            return;
        };
        let bucket = &group.buckets[usize::from(b)];
        if !group.mine(bucket) {
            return;
        }
        let before = group.settled(bucket);
        let stray = !bucket.holders.has(index);
        let bucket = &mut group.buckets[usize::from(b)];
        bucket.synced = bucket.synced.with(index);
        if !before && group.settled(&group.buckets[usize::from(b)]) {
            self.repair.unsettled = self.repair.unsettled.saturating_sub(1);
        }
        if let Some((generation, digest)) = theirs
            && stray
            && digest != 0
        {
            self.confirm(peer, usize::from(g), b, (generation, digest));
        }
    }

    /// Offers a peer all buckets that it shares, because copies for it were dropped: it
    /// fetches at its own pace, where pushing would fill its outbox again.
    pub(super) fn offer_shared(&mut self, to: NodeId) {
        let mut offers: Vec<(u32, Vec<u16>)> = Vec::new();
        for group in &self.groups {
            let Some(index) = group.index_of(to) else {
                continue;
            };
            let shared = (0_u16..)
                .zip(&group.buckets)
                .filter(|(_, bucket)| !bucket.table.is_empty() && bucket.holders.has(index));
            let shared: Vec<u16> = shared.map(|(b, _)| b).collect();
            offers.extend(shared.chunks(QUERY).map(|part| (group.key, part.to_vec())));
        }
        for (group, buckets) in offers {
            self.send(to, &Record::Offer { group, buckets });
        }
    }

    /// Offers strays to those who should hold them.
    pub(super) fn offer_strays(&mut self) {
        let mut offers: BTreeMap<(NodeId, u32), Vec<u16>> = BTreeMap::new();
        for (g, b) in self.strays() {
            let group = &self.groups[usize::from(g)];
            let bucket = &group.buckets[usize::from(b)];
            let confirmed = match bucket.confirmed_digest == bucket.digest {
                true => bucket.confirmed,
                false => Set::default(),
            };
            for index in bucket.holders.minus(confirmed).iter() {
                let list = offers.entry((group.members[index], group.key)).or_default();
                if list.len() < QUERY {
                    list.push(b);
                }
            }
        }
        for ((node, group), buckets) in offers {
            self.send(node, &Record::Offer { group, buckets });
        }
    }

    fn take_confirm(&mut self, from: NodeId, key: u32, b: u16, generation: u64, digest: u64) {
        let Some(g) = self.group_of(key) else {
            return;
        };
        let group = &mut self.groups[g];
        let Some(index) = group.index_of(from) else {
            return;
        };
        let Some(bucket) = group.buckets.get(usize::from(b)) else {
            return;
        };
        let current = generation == self.view.generation && bucket.digest == digest;
        if !current || group.mine(bucket) || bucket.table.is_empty() {
            return;
        }
        let bucket = &mut group.buckets[usize::from(b)];
        if bucket.confirmed_digest != digest {
            bucket.confirmed = Set::default();
            bucket.confirmed_digest = digest;
        }
        bucket.confirmed = bucket.confirmed.with(index);
        if !bucket.holders.is_empty() && bucket.confirmed.covers(bucket.holders) {
            group.clear(b);
            self.counters.handed_over += 1;
            self.log_bucket(g, b);
        }
    }
}
