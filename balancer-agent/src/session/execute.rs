//! Doing an operation on what this node holds, and waiting for the copies of a write.

use smallvec::SmallVec;

use super::codec::{EntryRef, Record, ResultRef};
use super::config::Sabotage;
use super::ops::{Origin, Pending, Stage};
use super::store::{Store, push, push_all};
use super::table::Entry;
use super::types::{Expect, NodeId, Op, Outcome, Replication, Version};

/// How an operation ended, before it is told whether the caller is here or elsewhere.
pub(super) enum End {
    Found,
    Done(Version, u8, bool),
    Touched,
    NotFound,
    Conflict(Option<Version>),
    Unavailable,
    Busy,
}

impl Store {
    /// Does the operation on what this node holds.
    pub(super) fn execute(&mut self, mut pending: Pending) {
        let (g, hash) = (pending.group, pending.hash);
        let now = self.now.signed();
        let primary = {
            let group = &self.groups[g];
            usize::from(group.bucket(hash).primary) == group.me
        };
        let found = self.groups[g].find(hash, &pending.id);
        if found.is_some_and(|entry| entry.expired(now)) {
            if !primary && !pending.forced {
                return self.forward(pending, 0);
            }
            self.expire(g, hash, &pending.id);
        }
        let found = self.groups[g].find(hash, &pending.id);
        if let (Some(by), Some(entry)) = (pending.stamped, found)
            && entry.version().stamp >= by.0
        {
            let version = entry.version();
            if (version.stamp, version.writer) == by {
                // It has been done, here or where this copy comes from.
                return self.publish(pending, version);
            }
            match pending.origin {
                // It may have been issued before that write, and be long answered: only its
                // origin knows, and issues it again if it still waits.
                Origin::Remote { node, life, req } => {
                    return self.outcome((node, life), req, ResultRef::Stale);
                }
                Origin::Local(_) => pending.stamped = None,
            }
        }
        if let Some(entry) = found
            && self.comes_late(&pending, entry)
        {
            return self.finish(&pending, End::NotFound);
        }
        let live = found.filter(|entry| !entry.deleted);
        let before = live.map(|entry| (entry.version(), entry.seq));
        let age = live.map_or(0, |entry| self.groups[g].wire(entry, now).age);
        let end = match (&pending.op, before) {
            (Op::Get { touch }, Some(_)) => {
                if *touch {
                    self.touch(g, hash, &pending.id);
                }
                End::Found
            }
            (Op::Touch, Some(_)) => {
                self.touch(g, hash, &pending.id);
                End::Touched
            }
            (Op::Get { .. } | Op::Touch | Op::Bind { .. } | Op::Delete, None) => End::NotFound,
            (
                Op::Put {
                    route,
                    ttl,
                    data,
                    expect,
                },
                _,
            ) => {
                let met = match (expect, before) {
                    (Expect::Any, _) | (Expect::Absent, None) => true,
                    (Expect::Version(wanted), Some((version, _))) => *wanted == version,
                    _ => false,
                };
                if met {
                    let (stamp, writer) = self.stamp_of(&pending);
                    let version = Version {
                        epoch: before.map_or(stamp, |(version, _)| version.epoch),
                        deleted: false,
                        stamp,
                        writer,
                    };
                    let entry = EntryRef {
                        group: self.groups[g].key,
                        id: &pending.id,
                        version,
                        seq: before.map_or(1, |(_, seq)| seq.saturating_add(1)),
                        idle: 0,
                        age,
                        ttl: *ttl,
                        route,
                        data: data.as_deref(),
                    };
                    match self.groups[g].merge(&entry, hash, now) {
                        Some(_) => return self.publish(pending, version),
                        None => {
                            self.counters.routes_full += 1;
                            End::Busy
                        }
                    }
                } else {
                    End::Conflict(before.map(|(version, _)| version))
                }
            }
            (Op::Bind { route }, Some((version, _))) => {
                // Done on another copy it makes another content: it is not the same write
                // wherever it is done.
                let version = Version {
                    stamp: self.stamp(),
                    writer: self.writer,
                    ..version
                };
                if self.groups[g].rebind(hash, &pending.id, route, version) {
                    return self.publish(pending, version);
                }
                self.counters.routes_full += 1;
                End::Busy
            }
            (Op::Delete, Some((version, _))) => {
                let by = self.stamp_of(&pending);
                let version = self.bury_by(g, hash, &pending.id, version.epoch, by);
                return self.publish(pending, version);
            }
        };
        self.finish(&pending, end);
    }

    /// The stamp of a write that says all that there is to it, and who gives it.
    fn stamp_of(&mut self, pending: &Pending) -> (u64, u64) {
        pending
            .stamped
            .unwrap_or_else(|| (self.stamp(), self.writer))
    }

    /// Whether a write comes so late that its caller has long been told that nobody knows
    /// what became of it, and the session has ended since it was asked for (or, of an end,
    /// begun): it must not bring back what ended, nor end what is new.
    fn comes_late(&self, pending: &Pending, entry: &Entry) -> bool {
        let since = match (&pending.op, entry.deleted) {
            (Op::Put { .. }, true) => entry.access,
            (Op::Delete, false) => entry.created,
            _ => return false,
        };
        let waited = self.now.signed().saturating_sub(pending.asked);
        waited > self.config.timing.sync as i64 && since >= pending.asked
    }

    /// Puts a tombstone in the place of a session.
    pub(super) fn bury(&mut self, g: usize, hash: u64, id: &[u8], epoch: u64) -> Version {
        let by = (self.stamp(), self.writer);
        self.bury_by(g, hash, id, epoch, by)
    }

    fn bury_by(
        &mut self,
        g: usize,
        hash: u64,
        id: &[u8],
        epoch: u64,
        (stamp, writer): (u64, u64),
    ) -> Version {
        let version = Version {
            epoch,
            deleted: true,
            stamp,
            writer,
        };
        let tombstone = EntryRef {
            group: self.groups[g].key,
            id,
            version,
            seq: 0,
            idle: 0,
            age: 0,
            ttl: 0,
            route: "",
            data: None,
        };
        self.groups[g].merge(&tombstone, hash, self.now.signed());
        version
    }

    /// Sends a write of this node to the other holders, and waits for them with `sync`.
    fn publish(&mut self, mut pending: Pending, version: Version) {
        self.counters.writes += 1;
        let (g, hash) = (pending.group, pending.hash);
        let disk = self.persist(g, hash, &pending.id);
        let sync = self.groups[g].replication == Replication::Sync;
        if !sync || self.config.sabotage == Sabotage::SkippedAck {
            self.spread(g, hash, &pending.id);
            let group = &self.groups[g];
            let copies = match sync {
                true => group.bucket(hash).holders.without(group.me).0.count_ones() as u8,
                false => 0,
            };
            return self.finish(&pending, End::Done(version, copies, false));
        }
        pending.deadline = self.now.plus(self.config.timing.sync);
        pending.resent = 0;
        pending.stage = Stage::Copies {
            version,
            waiting: SmallVec::new(),
            acked: SmallVec::new(),
            disk: if self.groups[g].persistent {
                disk
            } else {
                None
            },
        };
        let durable = self.groups[g].persistent;
        let number = self.park(pending, self.config.timing.retry);
        if let (true, Some(batch)) = (durable, disk) {
            self.wait_for_disk(number, batch);
        }
        self.review_copies(number, true);
    }

    /// What an operation of this node wrote is on this node's disk.
    pub(super) fn disk_done(&mut self, number: u64) {
        if let Some(pending) = self.ops.get_mut(&number)
            && let Stage::Copies { disk, .. } = &mut pending.stage
        {
            *disk = None;
            self.review_copies(number, false);
        }
    }

    /// Sends the present copy of a session to all other holders, without waiting.
    pub(super) fn spread(&mut self, g: usize, hash: u64, id: &[u8]) {
        let group = &self.groups[g];
        let Some(entry) = group.find(hash, id) else {
            return;
        };
        let record = Record::Write {
            op: 0,
            entry: group.wire(entry, self.now.signed()),
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

    /// Works out anew whose acknowledgement a write still needs, and ends it if nobody's.
    /// With `resend`, those are sent the copy (again).
    pub(super) fn review_copies(&mut self, number: u64, resend: bool) {
        let Some(pending) = self.ops.get_mut(&number) else {
            return;
        };
        let group = &self.groups[pending.group];
        let Stage::Copies {
            version,
            waiting,
            acked,
            disk,
        } = &mut pending.stage
        else {
            return;
        };
        acked.retain(|(node, life)| {
            let peer = self.peers.get(node);
            peer.is_some_and(|peer| peer.incarnation == *life)
        });
        let holders = group.bucket(pending.hash).holders.iter();
        let holders = holders.map(|index| group.members[index]);
        *waiting = holders
            .filter(|&node| {
                // A node that may yet have to forget everything holds nothing that counts.
                let counts = self
                    .peers
                    .get(&node)
                    .is_some_and(|peer| peer.flags.is_none_or(|flags| flags.admitted));
                counts && !acked.iter().any(|(other, _)| *other == node)
            })
            .collect();
        if waiting.is_empty() && disk.is_none() {
            let (version, copies) = (*version, acked.len() as u8);
            if let Some(pending) = self.unpark(number) {
                self.finish(&pending, End::Done(version, copies, false));
            }
            return;
        }
        if !resend {
            return;
        }
        let Some(entry) = group.find(pending.hash, &pending.id) else {
            return;
        };
        let record = Record::Write {
            op: number,
            entry: group.wire(entry, self.now.signed()),
        };
        push_all(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            waiting.iter().copied(),
            &record,
        );
    }

    pub(super) fn take_ack(&mut self, from: NodeId, op: u64) {
        let Some(pending) = self.ops.get_mut(&op) else {
            return;
        };
        let Stage::Copies {
            version,
            waiting,
            acked,
            disk,
        } = &mut pending.stage
        else {
            return;
        };
        let (Some(index), Some(peer)) = (
            waiting.iter().position(|&node| node == from),
            self.peers.get(&from),
        ) else {
            return;
        };
        waiting.remove(index);
        acked.push((from, peer.incarnation));
        if waiting.is_empty() && disk.is_none() {
            let (version, copies) = (*version, acked.len() as u8);
            if let Some(pending) = self.unpark(op) {
                self.finish(&pending, End::Done(version, copies, false));
            }
        }
    }

    pub(super) fn finish(&mut self, pending: &Pending, end: End) {
        let now = self.now.signed();
        let group = &self.groups[pending.group];
        let entry = match end {
            End::Found => group.find(pending.hash, &pending.id),
            _ => None,
        };
        if let End::Done(_, copies, false) = end
            && group.replication == Replication::Sync
        {
            let others = group.bucket(pending.hash).holders.without(group.me);
            self.counters.thin += u64::from(u32::from(copies) < others.0.count_ones());
        }
        if matches!(end, End::Unavailable) {
            self.counters.unavailable += 1;
        }
        match pending.origin {
            Origin::Local(token) => {
                let outcome = match end {
                    End::Found => match entry {
                        Some(entry) => Outcome::Found(Box::new(group.session(entry, now))),
                        None => Outcome::NotFound,
                    },
                    End::Done(version, copies, degraded) => Outcome::Done {
                        version,
                        copies,
                        degraded,
                    },
                    End::Touched => Outcome::Touched,
                    End::NotFound => Outcome::NotFound,
                    End::Conflict(version) => Outcome::Conflict(version),
                    End::Unavailable => Outcome::Unavailable,
                    End::Busy => Outcome::Busy,
                };
                self.reply(token, outcome);
            }
            Origin::Remote { node, life, req } => {
                if self
                    .peers
                    .get(&node)
                    .is_none_or(|peer| peer.incarnation != life)
                {
                    return;
                }
                let result = match end {
                    End::Found => match entry {
                        Some(entry) => ResultRef::Found(group.wire(entry, now)),
                        None => ResultRef::NotFound,
                    },
                    End::Done(version, copies, degraded) => {
                        ResultRef::Done(version, copies, degraded)
                    }
                    End::Touched => ResultRef::Touched,
                    End::NotFound => ResultRef::NotFound,
                    End::Conflict(version) => ResultRef::Conflict(version),
                    End::Unavailable => ResultRef::Unavailable,
                    End::Busy => ResultRef::Busy,
                };
                let record = Record::Outcome { req, result };
                push(
                    &mut self.peers,
                    &self.config,
                    &mut self.counters,
                    node,
                    &record,
                );
            }
        }
    }
}
