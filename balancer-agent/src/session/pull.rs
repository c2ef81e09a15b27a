//! Pulling a bucket from a peer, part by part.

use std::collections::BTreeSet;

use super::codec::{EntryRef, MAX_LIST, Record};
use super::placement::range_of;
use super::repair::Pull;
use super::store::{Store, push};
use super::table::print;
use super::types::{NodeId, Time};

impl Store {
    pub(super) fn start_pull(&mut self, peer: NodeId, group: u16, bucket: u16) {
        let full = self.repair.pulls.len() >= self.config.limits.pulls;
        if full || !self.repair.busy.insert((group, bucket)) {
            return; // It stays planned.
        }
        let nonce = self.repair.next_nonce();
        let buckets = self.config.limits.buckets;
        let pull = Pull {
            peer,
            group,
            bucket,
            from: range_of(bucket, buckets).0,
            first: None,
            tries: 1,
            deadline: self.now.plus(self.config.timing.retry),
        };
        self.repair.pulls.insert(nonce, pull);
        self.send_pull(nonce);
    }

    pub(super) fn end_pull(&mut self, nonce: u64) {
        if let Some(pull) = self.repair.pulls.remove(&nonce) {
            self.repair.busy.remove(&(pull.group, pull.bucket));
            let after = self.now.plus(self.config.timing.retry);
            if let Some(plan) = self.repair.plans.get_mut(&pull.peer) {
                plan.after = after;
            }
            self.repair.wake = Some(Time(0));
        }
    }

    pub(super) fn send_pull(&mut self, nonce: u64) {
        let Some(pull) = self.repair.pulls.get(&nonce) else {
            return;
        };
        let group = &self.groups[usize::from(pull.group)];
        let entries = group.sorted(pull.bucket, pull.from);
        let mut to = range_of(pull.bucket, self.config.limits.buckets).1;
        let mut items = Vec::new();
        for entry in entries {
            // Equal hashes stay in one part: a part ends between hashes.
            if items.len() >= 4 * self.config.limits.chunk.min(512)
                && items.last().is_some_and(|&(hash, _)| hash != entry.hash)
            {
                to = entry.hash - 1;
                break;
            }
            items.push((entry.hash, entry.print()));
        }
        let record = Record::Pull {
            nonce,
            group: group.key,
            bucket: pull.bucket,
            from: pull.from,
            to,
            items,
        };
        push(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            pull.peer,
            &record,
        );
    }

    pub(super) fn take_pull(
        &mut self,
        from: NodeId,
        nonce: u64,
        key: u32,
        bucket: u16,
        (low, high): (u64, u64),
        items: &[(u64, u64)],
    ) {
        let Some(g) = self.group_of(key) else {
            return;
        };
        let group = &self.groups[g];
        let Some(held) = group.buckets.get(usize::from(bucket)) else {
            return;
        };
        if !self.admitted() {
            return;
        }
        let theirs: BTreeSet<(u64, u64)> = items.iter().copied().collect();
        let mut wanted: BTreeSet<u64> = items.iter().map(|&(hash, _)| hash).collect();
        let now = self.now.signed();
        let mut to = high;
        let mut entries: Vec<EntryRef<'_>> = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for entry in group.sorted(bucket, low) {
            if entry.hash > high {
                break;
            }
            let full = entries.len() >= self.config.limits.chunk
                || bytes >= self.config.limits.frame
                || entries.len() >= MAX_LIST;
            if full && last != Some(entry.hash) {
                to = entry.hash - 1;
                break;
            }
            last = Some(entry.hash);
            wanted.remove(&entry.hash);
            if !theirs.contains(&(entry.hash, entry.print())) {
                bytes += entry.id().len() + entry.data().map_or(0, <[u8]>::len) + 64;
                entries.push(group.wire(entry, now));
            }
        }
        let record = Record::Part {
            nonce,
            view: self.view.id,
            generation: self.view.generation,
            digest: held.digest,
            to,
            entries,
            wants: wanted.into_iter().filter(|&hash| hash <= to).collect(),
        };
        push(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            from,
            &record,
        );
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(super) fn take_part(
        &mut self,
        from: NodeId,
        nonce: u64,
        view: u64,
        theirs: (u64, u64),
        to: u64,
        entries: &[EntryRef<'_>],
        wants: &[u64],
    ) {
        let Some(pull) = self.repair.pulls.get_mut(&nonce) else {
            return;
        };
        if pull.peer != from || to < pull.from {
            return;
        }
        if view != self.view.id {
            return self.end_pull(nonce);
        }
        let (g, b, low) = (pull.group, pull.bucket, pull.from);
        let first = *pull.first.get_or_insert(theirs);
        let end = range_of(b, self.config.limits.buckets).1;
        let done = to >= end;
        if !done {
            pull.from = to + 1;
            pull.tries = 1;
            pull.deadline = self.now.plus(self.config.timing.retry);
        }
        for entry in entries {
            let merged = self.take_copy(entry);
            if merged.changed && self.ready() {
                self.counters.mended += 1;
            }
        }
        self.give_back(from, usize::from(g), (low, to), entries, wants);
        if !done {
            return self.send_pull(nonce);
        }
        self.repair.pulls.remove(&nonce);
        self.repair.busy.remove(&(g, b));
        self.repair.wake = Some(Time(0));
        self.settle(from, g, b, (first == theirs).then_some(theirs));
        self.try_ready();
        if self.config.limits.sessions < self.groups[usize::from(g)].live {
            self.evict(usize::from(g));
        }
    }

    /// Sends a co-holder the copies that it lacks or has in an older version.
    fn give_back(
        &mut self,
        to: NodeId,
        g: usize,
        (low, high): (u64, u64),
        entries: &[EntryRef<'_>],
        wants: &[u64],
    ) {
        let group = &self.groups[g];
        let now = self.now.signed();
        let newer = entries.iter().filter_map(|theirs| {
            let hash = group.hash(theirs.id);
            let ours = group.find(hash, theirs.id)?;
            (ours.print() != print(hash, theirs.version, theirs.seq)).then_some(ours)
        });
        let lacking = wants
            .iter()
            .filter(|hash| (low..=high).contains(*hash))
            .filter_map(|&hash| group.bucket(hash).table.find(hash, |e| e.hash == hash));
        for entry in newer.chain(lacking) {
            let holder = group.index_of(to);
            if holder.is_some_and(|index| group.bucket(entry.hash).holders.has(index)) {
                let record = Record::Write {
                    op: 0,
                    entry: group.wire(entry, now),
                };
                push(
                    &mut self.peers,
                    &self.config,
                    &mut self.counters,
                    to,
                    &record,
                );
            }
        }
    }
}
