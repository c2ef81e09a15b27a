//! Persistence: batches of records for a log or an embedded database, and back.
//!
//! A batch is written whole or not at all; the driver sees to that (a checksum, or a
//! transaction). Loading all batches in order gives back every copy whose batch was
//! reported [`super::Input::Persisted`]. When the disk cannot keep up, single records are
//! dropped and their buckets are marked, to be written whole once it has caught up.

use std::collections::{BTreeSet, VecDeque};

use super::codec::{EntryRef, FORMAT, MAX_LIST, MAX_STAMP, Record};
use super::store::{Store, push};
use super::types::{MAX_ID, MIN_ID, NodeId, Time};
use super::view::Phase;
use super::wire::{DecodeError, Reader, put_short, put_varint};

/// What waits for the disk, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Log {
    open: Vec<u8>,
    /// Batches handed out.
    issued: u64,
    /// Batches known to be on disk.
    done: u64,
    /// Buckets to be written whole.
    dirty: BTreeSet<(u16, u16)>,
    /// Acknowledgements to peers, in the order of the batches they wait for.
    acks: VecDeque<(u64, NodeId, u64, u64)>,
    /// Operations of this node, likewise.
    ops: VecDeque<(u64, u64)>,
    /// Confirmations of strays, likewise.
    confirms: VecDeque<Confirm>,
    /// A batch, and when it was the last: once it is done, the disk has all from before.
    mark: Option<(u64, i64)>,
    /// The disk has all from before this time.
    flushed: i64,
    /// The batch that has the latest [`Change::Cluster`], and when it was appended.
    meta: Option<(u64, i64)>,
}

/// "I hold what you had of this bucket", to be said when the disk holds it too.
#[derive(Debug)]
struct Confirm {
    batch: u64,
    to: NodeId,
    group: usize,
    bucket: u16,
    generation: u64,
    digest: u64,
}

/// Batches on their way to the disk at one time: one is written, and one is there when that
/// is done. What comes meanwhile shares the batch after these.
pub(super) const IN_FLIGHT: u64 = 2;

impl Log {
    pub fn backlog(&self) -> usize {
        self.open.len()
    }

    pub fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// The batch that will hold what is appended now.
    fn next(&self) -> u64 {
        self.issued + 1
    }

    /// The batch that must be done for all that was appended so far.
    pub fn last(&self) -> u64 {
        if self.open.is_empty() {
            self.issued
        } else {
            self.next()
        }
    }

    fn idle(&self) -> bool {
        self.open.is_empty() && self.issued == self.done && self.dirty.is_empty()
    }

    /// Moves the mark on; called now and then.
    pub fn note_progress(&mut self, now: i64) {
        if self.idle() {
            self.flushed = now;
            self.mark = None;
            return;
        }
        if let Some((batch, time)) = self.mark
            && self.done >= batch
        {
            self.flushed = self.flushed.max(time);
            self.mark = None;
        }
        if self.mark.is_none() && self.dirty.is_empty() {
            self.mark = Some((self.last(), now));
        }
    }

    /// The disk has all from before this time.
    pub fn flushed(&self) -> i64 {
        self.flushed
    }

    /// A new view: what was to be confirmed may belong elsewhere now.
    pub fn view_changed(&mut self) {
        self.confirms.clear();
    }

    fn begin(&mut self) -> &mut Vec<u8> {
        if self.open.is_empty() {
            self.open.push(FORMAT);
        }
        &mut self.open
    }
}

impl Store {
    pub(super) fn persistent(&self) -> bool {
        self.groups.iter().any(|group| group.persistent)
    }

    /// Appends the present copy of a session, or the fact that there is none. Returns the
    /// batch that it will be in; of a disk that is too far behind, one that never comes.
    pub(super) fn persist(&mut self, g: usize, hash: u64, id: &[u8]) -> Option<u64> {
        self.note_change(g, hash, id);
        let group = &self.groups[g];
        if !group.persistent {
            return None;
        }
        if self.log.open.len() >= self.config.limits.disk_backlog {
            self.counters.disk_behind += 1;
            self.log.dirty.insert((g as u16, group.bucket_index(hash)));
            return Some(u64::MAX);
        }
        let out = self.log.begin();
        match group.find(hash, id) {
            Some(entry) => {
                out.push(1);
                group.wire(entry, self.now.signed()).encode(out);
            }
            None => {
                out.push(2);
                out.extend_from_slice(&group.key.to_le_bytes());
                put_short(out, id);
            }
        }
        Some(self.log.next())
    }

    /// Writes a bucket as it is now, in place of all that was written of it.
    pub(super) fn log_bucket(&mut self, g: usize, bucket: u16) {
        if self.groups[g].persistent {
            self.log.dirty.insert((g as u16, bucket));
        }
    }

    pub(super) fn log_wipe(&mut self) {
        if self.persistent() {
            self.log.dirty.clear();
            self.log.begin().push(3);
            self.log_meta();
        }
    }

    /// Writes what this node must know of the cluster when it returns.
    pub(super) fn log_meta(&mut self) {
        if !self.persistent() {
            return;
        }
        let now = self.now.signed();
        let age = |seen: i64| now.saturating_sub(seen).max(0) as u64;
        let known = self.known.iter().map(|(&node, &seen)| (node, age(seen)));
        let cluster = Remembered {
            lamport: self.lamport,
            weight: self.weight,
            memory: self.memory(),
        };
        put_cluster(self.log.begin(), cluster, known);
        self.log.meta = Some((self.log.next(), now));
    }

    /// Whether whom this node knows is on its disk, or the disk has been waited for long
    /// enough: one that fails must not keep others from serving.
    pub(super) fn meta_is_safe(&self) -> bool {
        let Some((batch, at)) = self.log.meta.filter(|_| self.persistent()) else {
            return true;
        };
        let waited = self.now.signed().saturating_sub(at);
        batch <= self.log.done || waited > self.config.timing.operation as i64
    }

    /// The next batch for the disk, if it may have one.
    pub(super) fn next_batch(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.log.issued - self.log.done >= IN_FLIGHT {
            return None;
        }
        self.last_batch()
    }

    /// The next batch, however many are on their way: for a driver that ends, and would
    /// leave nothing behind.
    pub(super) fn last_batch(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.log.open.is_empty() {
            let (g, bucket) = self.log.dirty.pop_first()?;
            let group = &self.groups[usize::from(g)];
            let out = self.log.begin();
            out.push(5);
            out.extend_from_slice(&group.key.to_le_bytes());
            put_varint(out, u64::from(bucket));
            put_varint(out, group.buckets.len() as u64);
            for entry in group.sorted(bucket, 0) {
                out.push(1);
                group.wire(entry, self.now.signed()).encode(out);
            }
        }
        self.log.issued += 1;
        Some((self.log.issued, std::mem::take(&mut self.log.open)))
    }

    /// Acknowledges a copy, of a persistent group once it is on disk.
    pub(super) fn acknowledge(
        &mut self,
        (g, hash): (usize, u64),
        to: NodeId,
        op: u64,
        batch: Option<u64>,
    ) {
        let group = &self.groups[g];
        let last = match (group.persistent, batch) {
            (false, _) => 0,
            (true, Some(batch)) => batch,
            (true, None)
                if self
                    .log
                    .dirty
                    .contains(&(g as u16, group.bucket_index(hash))) =>
            {
                u64::MAX
            }
            (true, None) => self.log.last(),
        };
        if last <= self.log.done {
            self.send(to, &Record::Ack { op });
        } else if last == u64::MAX || self.log.acks.len() >= self.config.limits.disk_waits {
            // The writer sends again, or goes on without this copy.
            self.counters.disk_waits_full += 1;
        } else if let Some(peer) = self.peers.get(&to) {
            self.log.acks.push_back((last, to, peer.incarnation, op));
        }
    }

    /// Notes that an operation of this node waits for a batch.
    pub(super) fn wait_for_disk(&mut self, op: u64, batch: u64) {
        if batch != u64::MAX {
            self.log.ops.push_back((batch, op));
        }
    }

    /// Confirms a stray bucket to the node that has it, of a persistent group once all that
    /// was pulled is on disk.
    pub(super) fn confirm(&mut self, to: NodeId, g: usize, bucket: u16, theirs: (u64, u64)) {
        let (generation, digest) = theirs;
        if self.groups[g].persistent && !self.log.idle() {
            let dirty = self.log.dirty.contains(&(g as u16, bucket));
            if !dirty && self.log.confirms.len() < self.config.limits.disk_waits {
                self.log.confirms.push_back(Confirm {
                    batch: self.log.last(),
                    to,
                    group: g,
                    bucket,
                    generation,
                    digest,
                });
            }
            return; // If it is not said now, the bucket is offered again.
        }
        let record = Record::Confirm {
            group: self.groups[g].key,
            bucket,
            generation,
            digest,
        };
        self.send(to, &record);
    }

    pub(super) fn persisted(&mut self, seq: u64) {
        let seq = seq.min(self.log.issued);
        self.log.done = self.log.done.max(seq);
        if let Phase::Forgetting { batch } = self.phase
            && batch <= seq
        {
            self.admit();
        }
        while let Some(&(batch, node, incarnation, op)) = self.log.acks.front()
            && batch <= seq
        {
            self.log.acks.pop_front();
            let peer = self.peers.get(&node);
            if peer.is_some_and(|peer| peer.incarnation == incarnation) {
                let record = Record::Ack { op };
                push(
                    &mut self.peers,
                    &self.config,
                    &mut self.counters,
                    node,
                    &record,
                );
            }
        }
        while let Some(confirm) = self.log.confirms.pop_front_if(|c| c.batch <= seq) {
            let group = &self.groups[confirm.group];
            if group.mine(&group.buckets[usize::from(confirm.bucket)]) {
                let record = Record::Confirm {
                    group: group.key,
                    bucket: confirm.bucket,
                    generation: confirm.generation,
                    digest: confirm.digest,
                };
                self.send(confirm.to, &record);
            }
        }
        while let Some(&(batch, op)) = self.log.ops.front()
            && batch <= seq
        {
            self.log.ops.pop_front();
            self.disk_done(op);
        }
    }

    /// Takes in a batch of an earlier life. To be called for every batch, in order, before
    /// the first [`super::Input::Members`].
    ///
    /// # Errors
    /// The batch cannot be read; nothing of it was taken in.
    pub fn load(&mut self, batch: &[u8], now: Time) -> Result<(), DecodeError> {
        if self.phase != Phase::Waiting {
            return Err(DecodeError::Bound("loading after the start"));
        }
        self.now = self.now.max(now);
        self.replay(batch, false)?;
        self.replay(batch, true)
    }

    /// Reads a batch, and applies it if asked to.
    fn replay(&mut self, batch: &[u8], apply: bool) -> Result<(), DecodeError> {
        let now = self.now.signed();
        for change in changes(batch)? {
            let change = change?;
            if !apply {
                continue;
            }
            match change {
                Change::Put { entry, .. } => {
                    if let Some(&g) = self.by_key.get(&entry.group) {
                        let group = &mut self.groups[usize::from(g)];
                        let hash = group.hash(entry.id);
                        group.merge(&entry, hash, now);
                        self.lamport = self.lamport.max(entry.version.stamp);
                    }
                }
                Change::Remove { group, id } => {
                    if let Some(&g) = self.by_key.get(&group) {
                        let group = &mut self.groups[usize::from(g)];
                        group.remove(group.hash(id), id);
                    }
                }
                Change::Wipe => {
                    for group in &mut self.groups {
                        (0..group.buckets.len() as u16).for_each(|b| group.clear(b));
                    }
                }
                Change::Cluster { cluster, known, .. } => {
                    self.lamport = self.lamport.max(cluster.lamport);
                    self.weight = cluster.weight;
                    let seen = |(node, age)| (node, now.saturating_sub_unsigned(age));
                    self.known = known.into_iter().map(seen).collect();
                    self.memory = Some(now.saturating_sub_unsigned(cluster.memory));
                }
                Change::Bucket {
                    group,
                    bucket,
                    buckets,
                } => {
                    if let Some(&g) = self.by_key.get(&group) {
                        let group = &mut self.groups[usize::from(g)];
                        if group.buckets.len() == buckets && usize::from(bucket) < buckets {
                            group.clear(bucket);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Marks every bucket of the persistent groups to be written anew: for a driver that
    /// begins a new log, to leave the old one behind.
    pub fn rewrite(&mut self) {
        for g in 0..self.groups.len() {
            for bucket in 0..self.groups[g].buckets.len() as u16 {
                if !self.groups[g].buckets[usize::from(bucket)].table.is_empty() {
                    self.log_bucket(g, bucket);
                }
            }
        }
        self.log_meta();
    }
}

/// Appends [`Change::Cluster`].
pub(super) fn put_cluster(
    out: &mut Vec<u8>,
    cluster: Remembered,
    known: impl ExactSizeIterator<Item = (NodeId, u64)>,
) {
    out.push(4);
    put_varint(out, cluster.lamport);
    put_varint(out, u64::from(cluster.weight));
    put_varint(out, cluster.memory);
    put_varint(out, known.len() as u64);
    for (node, age) in known {
        out.extend_from_slice(&node.0.to_le_bytes());
        put_varint(out, age);
    }
}

/// What a node has to know of itself and its cluster when it returns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Remembered {
    pub lamport: u64,
    /// Members of the last view in which it served.
    pub weight: u32,
    /// For how many milliseconds it had known who was a member.
    pub memory: u64,
}

/// What one record of a batch says.
#[derive(Debug)]
pub(super) enum Change<'a> {
    /// This is the copy of a session now.
    Put {
        entry: EntryRef<'a>,
        record: &'a [u8],
    },
    /// There is no copy of it any more.
    Remove { group: u32, id: &'a [u8] },
    /// There is nothing any more.
    Wipe,
    /// What this node knows of the cluster.
    Cluster {
        cluster: Remembered,
        /// Nodes, and how long ago each was seen, in milliseconds.
        known: Vec<(NodeId, u64)>,
        record: &'a [u8],
    },
    /// This bucket is empty; what it has now follows.
    Bucket {
        group: u32,
        bucket: u16,
        buckets: usize,
    },
}

/// The records of a batch, in order.
///
/// # Errors
/// The batch is of another format. After a record that cannot be read nothing follows.
pub(super) fn changes(
    batch: &[u8],
) -> Result<impl Iterator<Item = Result<Change<'_>, DecodeError>>, DecodeError> {
    let mut reader = Reader::new(batch);
    let format = reader.byte()?;
    if format != FORMAT {
        return Err(DecodeError::Format(format));
    }
    Ok(std::iter::from_fn(move || {
        if reader.left() == 0 {
            return None;
        }
        let change = change(&mut reader);
        if change.is_err() {
            reader = Reader::new(&[]);
        }
        Some(change)
    }))
}

fn change<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, DecodeError> {
    let whole = reader.rest();
    Ok(match reader.byte()? {
        1 => {
            let entry = EntryRef::decode(reader)?;
            let record = &whole[..whole.len() - reader.left()];
            Change::Put { entry, record }
        }
        2 => Change::Remove {
            group: reader.u32()?,
            id: reader.short(MIN_ID, MAX_ID)?,
        },
        3 => Change::Wipe,
        4 => {
            let cluster = Remembered {
                lamport: reader.varint_to(MAX_STAMP)?,
                weight: reader.varint_to(u64::from(u32::MAX))? as u32,
                memory: reader.varint()?,
            };
            let count = reader.varint_to(MAX_LIST as u64)?;
            let node = |_| Ok((NodeId(reader.u64()?), reader.varint()?));
            let known = (0..count).map(node).collect::<Result<_, DecodeError>>()?;
            Change::Cluster {
                cluster,
                known,
                record: &whole[..whole.len() - reader.left()],
            }
        }
        5 => Change::Bucket {
            group: reader.u32()?,
            bucket: reader.bucket()?,
            buckets: reader.varint_to(16_384)? as usize,
        },
        _ => return Err(DecodeError::Tag("record on disk")),
    })
}
