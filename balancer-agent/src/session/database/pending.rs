//! Batches that wait, as changes of rows: the last word on each session, in the order of
//! the rows, which is what the database takes fastest.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use super::super::disk::{Change, changes};
use super::super::placement::{bucket_of, hash_id};
use super::super::wire::DecodeError;

/// Group and bucket, big endian: the beginning of a row's key. The id follows.
pub(super) const PREFIX: usize = 6;
/// The ids of the web tier have 20 bytes.
type Key = SmallVec<[u8; 32]>;

/// What is to be done to the rows.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    key: [u64; 2],
    buckets: u16,
    /// Everything that is there goes first.
    pub wipe: bool,
    /// So do all rows of these buckets.
    pub cleared: BTreeSet<[u8; PREFIX]>,
    /// Then rows are written or removed.
    pub rows: BTreeMap<Key, Option<&'a [u8]>>,
    /// What the node knows of the cluster.
    pub cluster: Option<&'a [u8]>,
    /// The greatest stamp that was met.
    pub stamp: u64,
    /// Records that were taken in.
    pub records: u64,
}

/// First bytes of the rows of a bucket.
pub(super) fn prefix(group: u32, bucket: u16) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    prefix[..4].copy_from_slice(&group.to_be_bytes());
    prefix[4..].copy_from_slice(&bucket.to_be_bytes());
    prefix
}

impl<'a> Pending<'a> {
    /// Nothing yet, of a store with this key and so many buckets.
    pub fn new(key: [u64; 2], buckets: u16) -> Self {
        Self {
            key,
            buckets,
            wipe: false,
            cleared: BTreeSet::new(),
            rows: BTreeMap::new(),
            cluster: None,
            stamp: 0,
            records: 0,
        }
    }

    /// Adds a batch that is later than all before.
    ///
    /// # Errors
    /// It can't be read.
    pub fn add(&mut self, batch: &'a [u8]) -> Result<(), DecodeError> {
        for change in changes(batch)? {
            self.records += 1;
            match change? {
                Change::Put { entry, record } => {
                    self.stamp = self.stamp.max(entry.version.stamp);
                    let key = self.row(entry.group, entry.id);
                    self.rows.insert(key, Some(record));
                }
                Change::Remove { group, id } => {
                    let key = self.row(group, id);
                    self.rows.insert(key, None);
                }
                Change::Wipe => {
                    self.wipe = true;
                    self.cleared.clear();
                    self.rows.clear();
                }
                Change::Bucket {
                    group,
                    bucket,
                    buckets,
                } => {
                    if buckets != usize::from(self.buckets) {
                        return Err(DecodeError::Bound("another number of buckets"));
                    }
                    let prefix = prefix(group, bucket);
                    self.rows.retain(|key, _| !key.starts_with(&prefix));
                    self.cleared.insert(prefix);
                }
                Change::Cluster {
                    record, cluster, ..
                } => {
                    self.stamp = self.stamp.max(cluster.lamport);
                    self.cluster = Some(record);
                }
            }
        }
        Ok(())
    }

    fn row(&self, group: u32, id: &[u8]) -> Key {
        let bucket = bucket_of(hash_id(self.key, group, id), self.buckets);
        let mut key = Key::from_slice(&prefix(group, bucket));
        key.extend_from_slice(id);
        key
    }
}
