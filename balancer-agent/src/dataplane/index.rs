//! An index of services, by address, port and protocol, and the bits that say which of
//! its buckets have entries.

use common::tables::IndexBucket;

use super::mapped::Mapped;

/// Written by one thread. A bucket's bit is set before its first entry and cleared after
/// its last: the program may look into an empty bucket, and misses no full one.
#[derive(Debug)]
pub struct ServiceIndex {
    buckets: Mapped<IndexBucket>,
    used: Mapped<u64>,
}

impl ServiceIndex {
    /// `used` has a bit for each bucket.
    ///
    /// # Panics
    /// When it has not.
    pub fn new(buckets: Mapped<IndexBucket>, used: Mapped<u64>) -> Self {
        assert_eq!(buckets.len(), used.len() * 64);
        Self { buckets, used }
    }

    /// Number of buckets.
    pub fn len(&self) -> u32 {
        self.buckets.len()
    }

    /// Whether there are no buckets.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// The entries of a bucket.
    ///
    /// # Panics
    /// When the bucket is beyond the index, as for all methods here.
    pub fn read(&self, bucket: u32) -> IndexBucket {
        self.buckets.read(bucket)
    }

    /// Replaces a whole bucket.
    pub fn write(&self, bucket: u32, entries: IndexBucket) {
        if entries.0.iter().any(|&entry| entry != 0) {
            self.mark(bucket, true);
        }
        self.buckets.write(bucket, entries);
        self.mend_bucket(bucket);
    }

    /// Stores one entry, by one store; zero for none.
    pub fn put(&self, bucket: u32, position: u8, entry: u32) {
        if entry != 0 {
            self.mark(bucket, true);
        }
        let offset = usize::from(position) * size_of::<u32>();
        self.buckets.store_u32(bucket, offset, entry);
        self.mend_bucket(bucket);
    }

    /// Sets right what an agent that was killed between two stores has left.
    pub fn mend(&self) {
        (0..self.len()).for_each(|bucket| self.mend_bucket(bucket));
    }

    fn mend_bucket(&self, bucket: u32) {
        let used = self.read(bucket).0.iter().any(|&entry| entry != 0);
        self.mark(bucket, used);
    }

    fn mark(&self, bucket: u32, used: bool) {
        let (word, bit) = (bucket / 64, 1 << (bucket % 64));
        let old = self.used.read(word);
        let new = if used { old | bit } else { old & !bit };
        if new != old {
            self.used.store_u64(word, 0, new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_the_entries() {
        let index = ServiceIndex::new(Mapped::heap(128), Mapped::heap(2));
        let bits = || [index.used.read(0), index.used.read(1)];
        index.put(65, 0, 7);
        index.put(65, 1, 8);
        assert_eq!(bits(), [0, 2]);
        index.put(65, 0, 0);
        assert_eq!(bits(), [0, 2]);
        index.put(65, 1, 0);
        assert_eq!(bits(), [0, 0]);
        index.write(3, IndexBucket([1, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(bits(), [8, 0]);
        index.write(3, IndexBucket::default());
        assert_eq!(bits(), [0, 0]);
        // Killed between two stores.
        index.buckets.store_u32(5, 0, 1);
        index.used.store_u64(1, 0, 1);
        index.mend();
        assert_eq!(bits(), [32, 0]);
    }
}
