//! The sessions of one group on this node: buckets, entries, and how two copies merge.
//!
//! Memory per session without data: one [`Entry`] in its bucket's table (between a half
//! and seven eighths full) and one allocation for the id (and the data, if there is any).
//! A bucket has its own small table, so that growth never stops the world.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashTable;

use super::codec::EntryRef;
use super::config::GroupConfig;
use super::placement::{Set, bucket_of, hash_id, mix};
use super::types::{Manager, NodeId, Replication, Session, Version};

/// One session or tombstone. Times are on this node's clock and may lie before its zero.
#[derive(Debug)]
pub(super) struct Entry {
    /// The id, then the data.
    blob: Box<[u8]>,
    pub hash: u64,
    epoch: u64,
    stamp: u64,
    writer: u64,
    /// Creation; of a tombstone, see [`Entry::agreed`].
    pub created: i64,
    /// Last access that this node knows of; of a tombstone, the deletion.
    pub access: i64,
    /// The access that others were told of, number `seq`.
    pub shared: i64,
    pub ttl: u64,
    pub seq: u32,
    pub route: u16,
    id_length: u8,
    pub deleted: bool,
    has_data: bool,
}

impl Entry {
    pub fn id(&self) -> &[u8] {
        &self.blob[..usize::from(self.id_length)]
    }

    pub fn data(&self) -> Option<&[u8]> {
        self.has_data
            .then(|| &self.blob[usize::from(self.id_length)..])
    }

    pub fn version(&self) -> Version {
        Version {
            epoch: self.epoch,
            deleted: self.deleted,
            stamp: self.stamp,
            writer: self.writer,
        }
    }

    /// Stands for the copy in digests: two copies with equal fingerprints are the same.
    pub fn print(&self) -> u64 {
        print(self.hash, self.version(), self.seq)
    }

    /// When this node found that every holder has this tombstone; far ahead until then.
    pub fn agreed(&self) -> i64 {
        self.created
    }

    /// Notes, of a tombstone, that every holder has it; the first time counts.
    pub fn mark_agreed(&mut self, now: i64) {
        if self.deleted {
            self.created = self.created.min(now);
        }
    }

    /// Bytes that the entry takes, without the free room of its table.
    fn cost(&self) -> usize {
        size_of::<Self>() + self.blob.len() + ALLOCATOR
    }

    /// Accesses within this long are not told to others, and for this long after its time
    /// to live a session is kept for an access that another node may know of.
    pub fn slack(&self) -> i64 {
        slack(self.ttl)
    }

    /// Whether the session has outlived its time to live by more than the slack.
    pub fn expired(&self, now: i64) -> bool {
        !self.deleted && now.saturating_sub(self.access) > self.ttl as i64 + self.slack()
    }
}

/// What an allocation costs besides its bytes: the allocator's header and rounding.
const ALLOCATOR: usize = 16;

pub(super) fn slack(ttl: u64) -> i64 {
    (ttl / 8) as i64
}

pub(super) fn print(hash: u64, version: Version, seq: u32) -> u64 {
    let seq = if version.deleted { 0 } else { seq };
    let mut print = mix(hash ^ version.epoch.rotate_left(32));
    print = mix(print ^ version.stamp ^ (u64::from(version.deleted) << 63));
    mix(print ^ version.writer ^ u64::from(seq).rotate_left(40))
}

/// The unit of placement and of repair.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub table: HashTable<Entry>,
    /// Sum of the fingerprints of all entries.
    pub digest: u64,
    pub primary: u8,
    /// The nodes that should hold the bucket, this node perhaps among them.
    pub holders: Set,
    /// The members of whom this node has all that they had when they took this view.
    pub synced: Set,
    /// Co-holders that were found equal in the running round of anti-entropy.
    pub equal: Set,
    /// Start of the last round in which every co-holder was found equal.
    pub agreed: i64,
    /// Of a stray bucket: the holders that have confirmed `confirmed_digest`.
    pub confirmed: Set,
    pub confirmed_digest: u64,
}

/// Names of backends, told apart by a small number. Names without a session are reused.
#[derive(Debug, Default)]
pub(super) struct Routes {
    names: Vec<(Arc<str>, usize)>,
    index: BTreeMap<Arc<str>, u16>,
    free: Vec<u16>,
}

impl Routes {
    fn take(&mut self, name: &str) -> Option<u16> {
        if let Some(&route) = self.index.get(name) {
            self.names[usize::from(route)].1 += 1;
            return Some(route);
        }
        let arc: Arc<str> = name.into();
        let route = match self.free.pop() {
            Some(route) => {
                self.names[usize::from(route)] = (Arc::clone(&arc), 1);
                route
            }
            None => {
                let route = u16::try_from(self.names.len()).ok()?;
                self.names.push((Arc::clone(&arc), 1));
                route
            }
        };
        self.index.insert(arc, route);
        Some(route)
    }

    fn release(&mut self, route: u16) {
        let (name, users) = &mut self.names[usize::from(route)];
        *users -= 1;
        if *users == 0 {
            self.index.remove(name);
            self.free.push(route);
        }
    }

    pub fn name(&self, route: u16) -> &Arc<str> {
        &self.names[usize::from(route)].0
    }

    /// Names with the number of entries on this node that bear them.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        let used = self.names.iter().filter(|(_, users)| *users > 0);
        used.map(|(name, users)| (&**name, *users))
    }
}

/// What became of a copy from elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Merged {
    /// Our copy is now another.
    pub changed: bool,
    /// Our copy is newer than theirs in some way.
    pub behind: bool,
}

/// The sessions of one group.
#[derive(Debug)]
pub(super) struct Group {
    pub key: u32,
    pub manager: Manager,
    pub replication: Replication,
    pub persistent: bool,
    hash_key: [u64; 2],
    /// The nodes of the group in the present view, sorted; this node among them.
    pub members: Vec<NodeId>,
    /// This node's place in `members`.
    pub me: usize,
    pub buckets: Vec<Bucket>,
    pub routes: Routes,
    pub live: usize,
    pub tombstones: usize,
    pub bytes: usize,
    /// Where the search for something to evict goes on.
    pub hand: usize,
    /// How long a tombstone lives at most, in milliseconds.
    tombstone_max: u64,
}

impl Group {
    pub fn new(config: &GroupConfig, key: u32, hash_key: [u64; 2], buckets: u16, max: u64) -> Self {
        let fresh = || Bucket {
            agreed: i64::MIN,
            ..Bucket::default()
        };
        Self {
            key,
            manager: config.manager,
            replication: config.replication,
            persistent: config.persistent,
            hash_key,
            members: Vec::new(),
            me: 0,
            buckets: (0..buckets).map(|_| fresh()).collect(),
            routes: Routes::default(),
            live: 0,
            tombstones: 0,
            bytes: 0,
            hand: 0,
            tombstone_max: max,
        }
    }

    pub fn hash(&self, id: &[u8]) -> u64 {
        hash_id(self.hash_key, self.key, id)
    }

    pub fn bucket_index(&self, hash: u64) -> u16 {
        bucket_of(hash, self.buckets.len() as u16)
    }

    pub fn bucket(&self, hash: u64) -> &Bucket {
        &self.buckets[usize::from(self.bucket_index(hash))]
    }

    /// Whether this node should hold the bucket.
    pub fn mine(&self, bucket: &Bucket) -> bool {
        !self.members.is_empty() && bucket.holders.has(self.me)
    }

    /// The members other than this node.
    pub fn others(&self) -> Set {
        Set::first(self.members.len()).without(self.me)
    }

    /// Whether this node holds all that any member has of the bucket.
    pub fn settled(&self, bucket: &Bucket) -> bool {
        self.mine(bucket) && bucket.synced.covers(self.others())
    }

    pub fn index_of(&self, node: NodeId) -> Option<usize> {
        self.members.binary_search(&node).ok()
    }

    pub fn find(&self, hash: u64, id: &[u8]) -> Option<&Entry> {
        self.bucket(hash).table.find(hash, |entry| entry.id() == id)
    }

    /// The entry in the form that travels.
    pub fn wire<'a>(&'a self, entry: &'a Entry, now: i64) -> EntryRef<'a> {
        let since = |then: i64| now.saturating_sub(then).max(0) as u64;
        EntryRef {
            group: self.key,
            id: entry.id(),
            version: entry.version(),
            seq: entry.seq,
            idle: since(entry.shared),
            age: if entry.deleted {
                0
            } else {
                since(entry.created)
            },
            ttl: entry.ttl,
            route: if entry.deleted {
                ""
            } else {
                self.routes.name(entry.route)
            },
            data: entry.data(),
        }
    }

    /// The entry in the form that callers get.
    pub fn session(&self, entry: &Entry, now: i64) -> Session {
        let since = |then: i64| now.saturating_sub(then).max(0) as u64;
        Session {
            version: entry.version(),
            route: Arc::clone(self.routes.name(entry.route)),
            age: since(entry.created),
            idle: since(entry.access),
            ttl: entry.ttl,
            data: entry.data().map(Into::into),
        }
    }

    /// Takes in a copy. Whatever the order in which copies come, and however often, the
    /// result is the same: the greatest version, with the last access of its epoch.
    ///
    /// `None`: the table of routes is full, and nothing was changed.
    pub fn merge(&mut self, theirs: &EntryRef<'_>, hash: u64, now: i64) -> Option<Merged> {
        let index = usize::from(self.bucket_index(hash));
        let bucket = &mut self.buckets[index];
        let their_print = print(hash, theirs.version, theirs.seq);
        let shared = now.saturating_sub_unsigned(theirs.idle);
        let Some(ours) = bucket.table.find_mut(hash, |entry| entry.id() == theirs.id) else {
            if theirs.version.deleted && theirs.idle >= self.tombstone_max {
                return Some(Merged {
                    changed: false,
                    behind: false,
                });
            }
            let route = match theirs.version.deleted {
                true => 0,
                false => self.routes.take(theirs.route)?,
            };
            let entry = Entry {
                blob: blob(theirs),
                hash,
                epoch: theirs.version.epoch,
                stamp: theirs.version.stamp,
                writer: theirs.version.writer,
                created: match theirs.version.deleted {
                    true => i64::MAX,
                    false => now.saturating_sub_unsigned(theirs.age),
                },
                access: shared,
                shared,
                ttl: theirs.ttl,
                seq: if theirs.version.deleted {
                    0
                } else {
                    theirs.seq
                },
                route,
                id_length: theirs.id.len() as u8,
                deleted: theirs.version.deleted,
                has_data: theirs.data.is_some(),
            };
            self.bytes += entry.cost();
            match entry.deleted {
                true => self.tombstones += 1,
                false => self.live += 1,
            }
            bucket.digest = bucket.digest.wrapping_add(their_print);
            bucket.table.insert_unique(hash, entry, |entry| entry.hash);
            return Some(Merged {
                changed: true,
                behind: false,
            });
        };
        let before = ours.print();
        let same_life =
            ours.epoch == theirs.version.epoch && !ours.deleted && !theirs.version.deleted;
        if theirs.version > ours.version() {
            // The new route first: it can fail, and then nothing has changed.
            let route = match theirs.version.deleted {
                true => 0,
                false => self.routes.take(theirs.route)?,
            };
            if !ours.deleted {
                self.routes.release(ours.route);
            }
            self.bytes -= ours.cost();
            match (ours.deleted, theirs.version.deleted) {
                (false, true) => {
                    self.live -= 1;
                    self.tombstones += 1;
                }
                (true, false) => {
                    self.live += 1;
                    self.tombstones -= 1;
                }
                _ => {}
            }
            ours.route = route;
            ours.blob = blob(theirs);
            ours.has_data = theirs.data.is_some();
            ours.epoch = theirs.version.epoch;
            ours.stamp = theirs.version.stamp;
            ours.writer = theirs.version.writer;
            ours.deleted = theirs.version.deleted;
            ours.ttl = theirs.ttl;
            if !same_life {
                ours.created = match theirs.version.deleted {
                    true => i64::MAX,
                    false => now.saturating_sub_unsigned(theirs.age),
                };
                ours.access = shared;
                ours.shared = shared;
                ours.seq = if theirs.version.deleted {
                    0
                } else {
                    theirs.seq
                };
            }
            self.bytes += ours.cost();
        } else if theirs.version == ours.version() && ours.deleted {
            // The oldest age is the true one: on its way a copy only loses age.
            ours.shared = ours.shared.min(shared);
            ours.access = ours.shared;
        }
        if same_life && theirs.seq >= ours.seq {
            let newer = theirs.seq > ours.seq;
            let told = if newer {
                shared
            } else {
                ours.shared.min(shared)
            };
            ours.access = match ours.access > ours.shared {
                true => ours.access.max(told),
                false => told,
            };
            ours.shared = told;
            ours.seq = theirs.seq;
        }
        let after = ours.print();
        bucket.digest = bucket.digest.wrapping_sub(before).wrapping_add(after);
        Some(Merged {
            changed: before != after,
            behind: after != their_print,
        })
    }

    /// Applies `change` to an entry and keeps the digest right.
    pub fn amend(&mut self, hash: u64, id: &[u8], change: impl FnOnce(&mut Entry)) {
        let index = usize::from(self.bucket_index(hash));
        let bucket = &mut self.buckets[index];
        if let Some(entry) = bucket.table.find_mut(hash, |entry| entry.id() == id) {
            let before = entry.print();
            change(entry);
            bucket.digest = bucket
                .digest
                .wrapping_sub(before)
                .wrapping_add(entry.print());
        }
    }

    /// Changes the route of a live session. `false`: there is none, or the table of
    /// routes is full.
    pub fn rebind(&mut self, hash: u64, id: &[u8], route: &str, version: Version) -> bool {
        let Some(old) = self.find(hash, id).filter(|entry| !entry.deleted) else {
            return false;
        };
        let old = old.route;
        let Some(route) = self.routes.take(route) else {
            return false;
        };
        self.routes.release(old);
        self.amend(hash, id, |entry| {
            entry.route = route;
            entry.stamp = version.stamp;
            entry.writer = version.writer;
        });
        true
    }

    /// Forgets an entry without a trace.
    pub fn remove(&mut self, hash: u64, id: &[u8]) {
        let index = usize::from(self.bucket_index(hash));
        let bucket = &mut self.buckets[index];
        if let Ok(found) = bucket.table.find_entry(hash, |entry| entry.id() == id) {
            let (entry, _) = found.remove();
            bucket.digest = bucket.digest.wrapping_sub(entry.print());
            self.forget(&entry);
        }
        self.shrink(index);
    }

    /// Forgets a whole bucket.
    pub fn clear(&mut self, index: u16) {
        let bucket = &mut self.buckets[usize::from(index)];
        let table = std::mem::take(&mut bucket.table);
        bucket.digest = 0;
        bucket.confirmed = Set::default();
        for entry in table {
            self.forget(&entry);
        }
    }

    fn forget(&mut self, entry: &Entry) {
        self.bytes -= entry.cost();
        if entry.deleted {
            self.tombstones -= 1;
        } else {
            self.live -= 1;
            self.routes.release(entry.route);
        }
    }

    /// Gives memory back when a table has become much too large.
    fn shrink(&mut self, index: usize) {
        let table = &mut self.buckets[index].table;
        if table.capacity() > 64 && table.len() * 4 < table.capacity() {
            table.shrink_to(table.len() * 2, |entry| entry.hash);
        }
    }

    /// Entries of a bucket from hash `from` on, in the order of their hashes.
    pub fn sorted(&self, bucket: u16, from: u64) -> Vec<&Entry> {
        let table = &self.buckets[usize::from(bucket)].table;
        let mut entries: Vec<_> = table.iter().filter(|entry| entry.hash >= from).collect();
        // Order by id too: a table's own order must never show.
        entries.sort_unstable_by(|a, b| (a.hash, a.id()).cmp(&(b.hash, b.id())));
        entries
    }
}

fn blob(entry: &EntryRef<'_>) -> Box<[u8]> {
    let data = entry.data.unwrap_or_default();
    let mut blob = Vec::with_capacity(entry.id.len() + data.len());
    blob.extend_from_slice(entry.id);
    blob.extend_from_slice(data);
    blob.into_boxed_slice()
}
