//! What happens by itself: copies and accesses from peers, timers, the end of sessions and
//! of tombstones, and the memory bound.

use super::codec::{EntryRef, Record};
use super::config::Sabotage;
use super::store::{Store, push, push_all};
use super::table::Merged;
use super::types::{NodeId, Outcome, Token};

/// The sweep goes through all buckets in at most this many steps: a step is short, since
/// requests wait meanwhile.
const SWEEP_STEPS: u32 = 128;
/// Entries that are looked at for one eviction.
const SAMPLE: usize = 16;
/// Evictions after one input: a memory bound that was passed by more is reached in steps.
const MOST_EVICTIONS: usize = 64;

impl Store {
    pub(super) fn take_write(&mut self, from: NodeId, op: u64, entry: &EntryRef<'_>) {
        let Some(g) = self.group_of(entry.group) else {
            return;
        };
        if !self.admitted() {
            return; // What it has may have to be forgotten: it must not say that it holds.
        }
        self.counters.copies += 1;
        let Some((merged, batch)) = self.take_in(g, entry) else {
            return;
        };
        if merged.behind {
            // Ours is newer: the writer has lost a race, and should know.
            let group = &self.groups[g];
            let hash = group.hash(entry.id);
            let holder = group.index_of(from);
            if let Some(ours) = group.find(hash, entry.id)
                && holder.is_some_and(|index| group.bucket(hash).holders.has(index))
            {
                let record = Record::Write {
                    op: 0,
                    entry: group.wire(ours, self.now.signed()),
                };
                push(
                    &mut self.peers,
                    &self.config,
                    &mut self.counters,
                    from,
                    &record,
                );
            }
        }
        if op != 0 {
            let hash = self.groups[g].hash(entry.id);
            self.acknowledge((g, hash), from, op, batch);
        }
    }

    /// Takes in a copy that nobody waits for.
    pub(super) fn take_copy(&mut self, entry: &EntryRef<'_>) -> Merged {
        let taken = self
            .group_of(entry.group)
            .and_then(|g| self.take_in(g, entry));
        taken.map_or(
            Merged {
                changed: false,
                behind: false,
            },
            |(merged, _)| merged,
        )
    }

    /// `None`: it could not be taken. Otherwise what became of it, and the batch for the
    /// disk that has it if it changed anything.
    fn take_in(&mut self, g: usize, entry: &EntryRef<'_>) -> Option<(Merged, Option<u64>)> {
        let now = self.now.signed();
        self.lamport = self.lamport.max(entry.version.stamp);
        let group = &mut self.groups[g];
        let hash = group.hash(entry.id);
        if entry.version.deleted && self.config.sabotage == Sabotage::LostTombstone {
            group.remove(hash, entry.id);
            return Some((
                Merged {
                    changed: false,
                    behind: false,
                },
                None,
            ));
        }
        let Some(merged) = group.merge(entry, hash, now) else {
            self.counters.routes_full += 1;
            return None;
        };
        let mut batch = None;
        if merged.changed {
            let mine = group.mine(group.bucket(hash));
            batch = self.persist(g, hash, entry.id);
            if !mine {
                // The writer has another view than this node: those who should hold it by
                // this node's view must not wait for the next comparison.
                self.spread(g, hash, entry.id);
            }
            self.evict(g);
        }
        Some((merged, batch))
    }

    /// Counts an access to a session that this node holds, and tells the other holders if
    /// the last that they know of is long ago.
    pub(super) fn touch(&mut self, g: usize, hash: u64, id: &[u8]) {
        let now = self.now.signed();
        let mut tell = None;
        self.groups[g].amend(hash, id, |entry| {
            entry.access = now;
            if now.saturating_sub(entry.shared) > entry.slack() {
                entry.shared = now;
                entry.seq = entry.seq.saturating_add(1);
                tell = Some((entry.version().epoch, entry.seq));
            }
        });
        let Some((epoch, seq)) = tell else {
            return;
        };
        self.counters.touches += 1;
        self.persist(g, hash, id);
        let group = &self.groups[g];
        let record = Record::Touch {
            group: group.key,
            id,
            epoch,
            seq,
            idle: 0,
        };
        let holders = group.bucket(hash).holders.iter();
        push_all(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            holders.map(|index| group.members[index]),
            &record,
        );
    }

    pub(super) fn take_touch(&mut self, key: u32, id: &[u8], epoch: u64, seq: u32, idle: u64) {
        let Some(g) = self.group_of(key) else {
            return;
        };
        if !self.admitted() {
            return;
        }
        let shared = self.now.signed().saturating_sub_unsigned(idle);
        let group = &mut self.groups[g];
        let hash = group.hash(id);
        let mut changed = false;
        group.amend(hash, id, |entry| {
            if !entry.deleted && entry.version().epoch == epoch && entry.seq < seq {
                entry.seq = seq;
                entry.shared = shared;
                entry.access = entry.access.max(shared);
                changed = true;
            }
        });
        if changed {
            self.persist(g, hash, id);
        }
    }

    /// Ends a session whose life is over.
    pub(super) fn expire(&mut self, g: usize, hash: u64, id: &[u8]) {
        let epoch = match self.groups[g].find(hash, id) {
            Some(entry) if !entry.deleted => entry.version().epoch,
            _ => return,
        };
        self.counters.expired += 1;
        self.end_session(g, hash, id, epoch);
    }

    fn end_session(&mut self, g: usize, hash: u64, id: &[u8], epoch: u64) {
        self.bury(g, hash, id, epoch);
        self.persist(g, hash, id);
        self.spread(g, hash, id);
    }

    pub(super) fn run_timers(&mut self) {
        while let Some(&(time, number)) = self.timers.first()
            && time <= self.now
        {
            self.timers.pop_first();
            self.wake_op(number);
        }
        self.end_external();
        if self.phase == super::view::Phase::Waiting {
            return;
        }
        if self.join_wake().is_some_and(|time| time <= self.now) {
            self.try_admit();
        }
        let timing = self.config.timing;
        if self.now >= self.next_status {
            self.next_status = self.now.plus(timing.status);
            self.counters.status_rounds += 1;
            self.log.note_progress(self.now.signed());
            self.review_peers();
            self.send_status();
            if self.admitted() {
                self.offer_strays();
            }
            if self.counters.status_rounds.is_multiple_of(32) {
                self.log_meta();
            }
        }
        if self.now >= self.next_round {
            self.next_round = self.now.plus(timing.anti_entropy);
            if self.admitted() {
                self.begin_round();
            }
        }
        if self.now >= self.next_sweep {
            let steps = u64::from(self.config.limits.buckets).min(u64::from(SWEEP_STEPS));
            self.next_sweep = self.now.plus((timing.sweep / steps).max(1));
            self.sweep();
        }
    }

    fn end_external(&mut self) {
        let late: Vec<Token> = match self.external.values().min() {
            Some(&first) if first <= self.now => {
                let late = self.external.iter().filter(|(_, time)| **time <= self.now);
                late.map(|(&token, _)| token).collect()
            }
            _ => return,
        };
        for token in late {
            self.external.remove(&token);
            self.counters.unavailable += 1;
            self.reply(token, Outcome::Unavailable);
        }
    }

    /// Looks through the next buckets for sessions and tombstones whose time is over.
    fn sweep(&mut self) {
        let buckets = u32::from(self.config.limits.buckets);
        let count = buckets.div_ceil(SWEEP_STEPS);
        for step in 0..count {
            let bucket = (self.sweep_at + step) % buckets;
            for g in 0..self.groups.len() {
                self.sweep_bucket(g, bucket as usize);
            }
        }
        self.sweep_at = (self.sweep_at + count) % buckets;
    }

    fn sweep_bucket(&mut self, g: usize, index: usize) {
        let now = self.now.signed();
        let timing = &self.config.timing;
        let group = &self.groups[g];
        let bucket = &group.buckets[index];
        if bucket.table.is_empty() {
            return;
        }
        let settled = group.settled(bucket) && self.phase == super::view::Phase::Ready;
        let primary = settled && usize::from(bucket.primary) == group.me;
        // Everyone that could hold an older copy has been here and clean for so long that
        // nothing from before is on its way any more.
        let min = timing.tombstone_min as i64;
        let calm = settled
            && self
                .clean_since
                .is_some_and(|since| now.saturating_sub(since) >= min);
        let max = timing.tombstone_max as i64;
        let mut ended: Vec<(u64, Box<[u8]>)> = Vec::new();
        // All holders had these tombstones; after as long again their disks have, too.
        let mut agreed: Vec<(u64, Box<[u8]>)> = Vec::new();
        let mut gone: Vec<(u64, Box<[u8]>, bool)> = Vec::new();
        for entry in &bucket.table {
            if !entry.deleted {
                if primary && entry.expired(now) {
                    ended.push((entry.hash, entry.id().into()));
                }
                continue;
            }
            let age = now.saturating_sub(entry.access);
            let marked = now.saturating_sub(entry.agreed());
            if age >= max || (calm && marked >= min) {
                gone.push((entry.hash, entry.id().into(), age < max));
            } else if calm && age >= min && bucket.agreed >= entry.access {
                agreed.push((entry.hash, entry.id().into()));
            }
        }
        for (hash, id) in agreed {
            self.groups[g].amend(hash, &id, |entry| entry.mark_agreed(now));
        }
        // In the order of ids: the order of a table must not show.
        ended.sort_unstable();
        gone.sort_unstable();
        for (hash, id) in ended {
            self.expire(g, hash, &id);
        }
        for (hash, id, agreed) in gone {
            self.groups[g].remove(hash, &id);
            self.persist(g, hash, &id);
            match agreed {
                true => self.counters.tombstones_agreed += 1,
                false => self.counters.tombstones_aged += 1,
            }
        }
    }

    /// Keeps a group inside its memory bound. The victim is, of a sample that a hand moving
    /// through the buckets takes, the session that was idle for the longest. Its end is a
    /// deletion like any other, so that all holders agree. A node ends sessions of which
    /// it is the primary; only when the bound is passed by an eighth, any.
    pub(super) fn evict(&mut self, g: usize) {
        let limits = self.config.limits;
        for _ in 0..MOST_EVICTIONS {
            let group = &self.groups[g];
            let over = |used: usize, most: usize| used > most;
            let full = over(group.live, limits.sessions) || over(group.bytes, limits.bytes);
            if !full || group.live == 0 {
                break;
            }
            let hard = over(group.live, limits.sessions + limits.sessions / 8)
                || over(group.bytes, limits.bytes + limits.bytes / 8);
            let Some((hash, id, epoch)) = self.victim(g, false, !hard) else {
                break;
            };
            self.counters.evicted += 1;
            self.end_session(g, hash, &id, epoch);
        }
        for _ in 0..MOST_EVICTIONS {
            let group = &self.groups[g];
            let most = limits.tombstones;
            // Bytes of which no session is left to give are those of tombstones.
            if group.tombstones <= most && (group.bytes <= limits.bytes || group.live > 0) {
                break;
            }
            let Some((hash, id, _)) = self.victim(g, true, false) else {
                break;
            };
            self.counters.tombstones_forced += 1;
            self.groups[g].remove(hash, &id);
            self.persist(g, hash, &id);
        }
    }

    fn victim(&mut self, g: usize, deleted: bool, own: bool) -> Option<(u64, Box<[u8]>, u64)> {
        let group = &mut self.groups[g];
        let count = group.buckets.len();
        let mut best: Option<(i64, u64, Box<[u8]>, u64)> = None;
        let mut seen = 0;
        for _ in 0..count {
            let bucket = &group.buckets[group.hand % count];
            group.hand = (group.hand + 1) % count;
            if own && (usize::from(bucket.primary) != group.me || group.members.is_empty()) {
                continue;
            }
            for entry in bucket.table.iter().filter(|entry| entry.deleted == deleted) {
                seen += 1;
                let better = best
                    .as_ref()
                    .is_none_or(|(access, hash, ..)| (entry.access, entry.hash) < (*access, *hash));
                if better {
                    let epoch = entry.version().epoch;
                    best = Some((entry.access, entry.hash, entry.id().into(), epoch));
                }
            }
            if seen >= SAMPLE {
                break;
            }
        }
        best.map(|(_, hash, id, epoch)| (hash, id, epoch))
    }
}
