//! What is remembered by session: a bounded table that threads share.
//!
//! Keys are fingerprints ([`Fingerprints`]), so no session id is kept. A full part of it
//! gives up what was not used since the hand of a clock came by last, which is nearly the
//! least recently used, and costs no list to keep in order.
//!
//! `get`, `put` and `remove` are all that the rest knows of it: a table that is replicated
//! between nodes can stand here.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Parts with a lock of their own.
const SHARDS: usize = 16;
/// Entries that the hand passes at most to find one that may go.
const PATIENCE: usize = 32;

/// Makes fingerprints of ids: SipHash with a key that only this process knows, so nobody
/// outside can make two ids that collide.
#[derive(Debug, Default)]
pub struct Fingerprints(RandomState);

/// A keyed hash of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

impl Fingerprints {
    /// Of this id.
    pub fn of(&self, id: &[u8]) -> Fingerprint {
        Fingerprint(self.0.hash_one(id))
    }
}

impl Fingerprint {
    /// One that is a keyed hash already.
    pub fn of_hash(hash: u64) -> Self {
        Self(hash)
    }

    /// The hash.
    pub fn hash(self) -> u64 {
        self.0
    }
}

/// Passes on what is a hash already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        // Not used by `u64`; still a hash, if a poor one.
        bytes
            .iter()
            .for_each(|&b| self.0 = self.0.rotate_left(8) ^ u64::from(b));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A bounded table.
#[derive(Debug)]
pub struct Table<V> {
    shards: [Mutex<Shard<V>>; SHARDS],
    /// Entries of all shards; what the common path looks at first.
    len: AtomicUsize,
    /// Entries that gave way although they were still good.
    pub evicted: AtomicU64,
}

#[derive(Debug)]
struct Shard<V> {
    places: HashMap<u64, u32, BuildHasherDefault<Same>>,
    entries: Vec<Entry<V>>,
    hand: usize,
}

#[derive(Debug)]
struct Entry<V> {
    key: u64,
    value: V,
    /// Seconds of the caller's clock.
    used: u32,
    /// Since the hand came by.
    touched: bool,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| {
                Mutex::new(Shard {
                    places: HashMap::default(),
                    entries: Vec::new(),
                    hand: 0,
                })
            }),
            len: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
        }
    }
}

/// How long entries live and how many there may be; the configuration's, so it may change
/// from call to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries at most; rounded up to a multiple of 16.
    pub entries: usize,
    /// Seconds without use after which an entry is gone.
    pub idle: Option<u32>,
}

impl<V: Clone> Table<V> {
    /// Entries, with those that are expired and not yet found so.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known; counts as a use. `now` in seconds of a clock that never goes back.
    pub fn get(&self, key: Fingerprint, bounds: Bounds, now: u32) -> Option<V> {
        self.visit(key, bounds, now, |value| value.clone())
    }

    /// [`Self::get`] in place; what `visit` does has to be short.
    pub fn visit<R>(
        &self,
        key: Fingerprint,
        bounds: Bounds,
        now: u32,
        visit: impl FnOnce(&mut V) -> R,
    ) -> Option<R> {
        if self.is_empty() {
            return None;
        }
        let mut shard = self.shard(key);
        let place = *shard.places.get(&key.0)? as usize;
        if shard.entries[place].expired(bounds, now) {
            shard.remove(place);
            self.len.fetch_sub(1, Relaxed);
            return None;
        }
        let entry = &mut shard.entries[place];
        entry.used = now;
        entry.touched = true;
        Some(visit(&mut entry.value))
    }

    /// Remembers; another entry may have to go for it.
    pub fn put(&self, key: Fingerprint, value: V, bounds: Bounds, now: u32) {
        let most = bounds.entries.div_ceil(SHARDS);
        let mut shard = self.shard(key);
        if let Some(&place) = shard.places.get(&key.0) {
            let entry = &mut shard.entries[place as usize];
            entry.value = value;
            // What another node tells may be older.
            entry.used = entry.used.max(now);
            entry.touched = true;
            return;
        }
        // More than one goes when the bound was lowered.
        while shard.entries.len() >= most.max(1) {
            let place = shard.victim(bounds, now);
            if !shard.entries[place].expired(bounds, now) {
                self.evicted.fetch_add(1, Relaxed);
            }
            shard.remove(place);
            self.len.fetch_sub(1, Relaxed);
        }
        if most == 0 {
            return;
        }
        let place = shard.entries.len() as u32;
        shard.entries.push(Entry {
            key: key.0,
            value,
            used: now,
            // A newcomer has to be used once to outlive the next round.
            touched: false,
        });
        shard.places.insert(key.0, place);
        self.len.fetch_add(1, Relaxed);
    }

    /// Shows every value, with those that are expired and not yet found so. Holds a part of
    /// the table locked at a time, for some microseconds per thousand.
    pub fn for_each(&self, mut show: impl FnMut(&V)) {
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.entries.iter().for_each(|entry| show(&entry.value));
        }
    }

    /// Forgets.
    pub fn remove(&self, key: Fingerprint) {
        if self.is_empty() {
            return;
        }
        let mut shard = self.shard(key);
        if let Some(&place) = shard.places.get(&key.0) {
            shard.remove(place as usize);
            self.len.fetch_sub(1, Relaxed);
        }
    }

    fn shard(&self, key: Fingerprint) -> MutexGuard<'_, Shard<V>> {
        // The maps inside use the low bits.
        let shard = &self.shards[(key.0 >> 60) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> Entry<V> {
    fn expired(&self, bounds: Bounds, now: u32) -> bool {
        bounds
            .idle
            .is_some_and(|idle| now.saturating_sub(self.used) > idle)
    }
}

impl<V> Shard<V> {
    /// Place of the one that has to go; there is at least one.
    fn victim(&mut self, bounds: Bounds, now: u32) -> usize {
        for _ in 0..PATIENCE {
            self.hand = (self.hand + 1) % self.entries.len();
            let entry = &mut self.entries[self.hand];
            if entry.expired(bounds, now) || !std::mem::take(&mut entry.touched) {
                break;
            }
        }
        self.hand
    }

    fn remove(&mut self, place: usize) {
        let gone = self.entries.swap_remove(place);
        self.places.remove(&gone.key);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.key, place as u32);
        }
        if self.hand >= self.entries.len() {
            self.hand = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const BOUNDS: Bounds = Bounds {
        entries: 64,
        idle: Some(10),
    };

    #[test]
    fn remembers_forgets_and_expires() {
        let (prints, table) = (Fingerprints::default(), Table::default());
        let key = prints.of(b"one");
        assert_eq!(table.get(key, BOUNDS, 0), None);
        table.put(key, 1, BOUNDS, 0);
        table.put(key, 2, BOUNDS, 5);
        assert_eq!(table.get(key, BOUNDS, 15), Some(2), "used 10 s ago");
        assert_eq!(table.get(key, BOUNDS, 25), Some(2), "which was a use");
        assert_eq!(table.get(key, BOUNDS, 36), None);
        assert!(table.is_empty());
        table.put(key, 3, BOUNDS, 36);
        table.remove(key);
        table.remove(key);
        assert_eq!((table.get(key, BOUNDS, 36), table.len()), (None, 0));
    }

    #[test]
    fn is_bounded_and_keeps_what_is_used() {
        let (prints, table) = (Fingerprints::default(), Table::default());
        let bounds = Bounds {
            entries: 1600,
            idle: None,
        };
        let hot: Vec<_> = (0..100u32).map(|i| prints.of(&i.to_be_bytes())).collect();
        for &key in &hot {
            table.put(key, 0, bounds, 0);
        }
        for i in 0..50_000u32 {
            table.put(prints.of(&(1000 + i).to_be_bytes()), 1, bounds, 0);
            if i % 8 == 0 {
                hot.iter().for_each(|&key| {
                    let _ = table.get(key, bounds, 0);
                });
            }
        }
        assert!(table.len() <= 1600, "{}", table.len());
        let kept = hot.iter().filter(|&&k| table.get(k, bounds, 0).is_some());
        assert_eq!(kept.count(), 100);
        // A lower bound holds after the next of each shard.
        let fewer = Bounds {
            entries: 160,
            ..bounds
        };
        for i in 0..2_000u32 {
            table.put(prints.of(&(100_000 + i).to_be_bytes()), 1, fewer, 0);
        }
        assert!(table.len() <= 160, "{}", table.len());
        let none = Bounds {
            entries: 0,
            ..bounds
        };
        for i in 0..2_000u32 {
            table.put(prints.of(&(200_000 + i).to_be_bytes()), 1, none, 0);
        }
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn threads_share_it() {
        let (prints, table) = (&Fingerprints::default(), &Table::default());
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                scope.spawn(move || {
                    for i in 0..5_000u32 {
                        let key = prints.of(&(i % 97).to_be_bytes());
                        match (i + thread) % 3 {
                            0 => table.put(key, i % 97, BOUNDS, 0),
                            1 => table.remove(key),
                            _ => {
                                let found = table.get(key, BOUNDS, 0);
                                assert!(found.is_none_or(|v| v == i % 97));
                            }
                        }
                    }
                });
            }
        });
        let counted: usize = (0..97u32)
            .filter(|i| {
                let key = prints.of(&i.to_be_bytes());
                table.get(key, BOUNDS, 0).is_some()
            })
            .count();
        assert_eq!(table.len(), counted);
    }

    proptest! {
        /// As long as it is not full it is a map.
        #[test]
        fn is_a_map(steps in prop::collection::vec((0u8..3, 0u8..20, any::<u16>()), 0..200)) {
            let (prints, table) = (Fingerprints::default(), Table::default());
            let bounds = Bounds { entries: 16 * 20, idle: None };
            let mut plain = BTreeMap::new();
            for (what, key, value) in steps {
                let print = prints.of(&[key]);
                match what {
                    0 => {
                        table.put(print, value, bounds, 0);
                        plain.insert(key, value);
                    }
                    1 => {
                        table.remove(print);
                        plain.remove(&key);
                    }
                    _ => prop_assert_eq!(table.get(print, bounds, 0), plain.get(&key).copied()),
                }
                prop_assert_eq!(table.len(), plain.len());
            }
        }
    }
}
