//! Connections and requests per source address, shared by all threads.
//!
//! A source is an IPv4 address or an IPv6 /64, which is what one customer has. The table is
//! cut into shards, so that threads seldom meet, and bounded: when a shard is full, a source
//! that has no connection gives way, of a few looked at the one that was quiet longest
//! (whose bucket is fullest, so it gains least). When there is none such, the newcomer is not
//! limited, and that is counted: refusing it would let one attacker lock out everybody.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const SHARDS: usize = 32;
/// Sources of a shard.
const SOURCES: usize = 4096;
/// Entries that are looked at for one to give way.
const LOOKED_AT: usize = 16;

/// Connections and requests by source.
pub(super) struct Sources {
    hash: RandomState,
    start: Instant,
    shards: [Mutex<HashMap<IpAddr, Source>>; SHARDS],
}

#[derive(Clone, Copy, Default)]
struct Source {
    connections: u32,
    /// Requests that may come at once, in thousandths; as of `stamp`.
    tokens: u32,
    /// Milliseconds since the table's begin.
    stamp: u64,
}

/// What a source may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Go on; counted.
    Yes,
    /// Too much.
    No,
    /// Go on; the table is full.
    Untracked,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            hash: RandomState::new(),
            start: Instant::now(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

/// What an address is counted as.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let prefix = u128::from(v6) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        other => other,
    }
}

impl Sources {
    fn with<R>(
        &self,
        address: IpAddr,
        f: impl FnOnce(&mut HashMap<IpAddr, Source>, IpAddr) -> R,
    ) -> R {
        let key = source(address);
        let shard = self.hash.hash_one(key) as usize % SHARDS;
        // A panic while it was held can't have left it half changed.
        let mut shard = self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        f(&mut shard, key)
    }

    /// A connection begins. After [`Allowed::Yes`], and only then, [`Self::disconnect`]
    /// has to follow.
    pub fn connect(&self, address: IpAddr, most: u32) -> Allowed {
        self.with(address, |shard, key| {
            let Some(source) = entry(shard, key) else {
                return Allowed::Untracked;
            };
            if source.connections >= most {
                return Allowed::No;
            }
            source.connections += 1;
            Allowed::Yes
        })
    }

    /// A connection is over.
    pub fn disconnect(&self, address: IpAddr) {
        self.with(address, |shard, key| {
            let Some(source) = shard.get_mut(&key) else {
                return;
            };
            source.connections = source.connections.saturating_sub(1);
            // Without connections and without a rate being kept it is of no use.
            if source.connections == 0 && source.stamp == 0 {
                shard.remove(&key);
            }
        });
    }

    /// A request comes; `rate` per second are allowed, and as many at once.
    pub fn request(&self, address: IpAddr, rate: u32) -> Allowed {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.request_at(address, rate, now.max(1))
    }

    fn request_at(&self, address: IpAddr, rate: u32, now: u64) -> Allowed {
        self.with(address, |shard, key| {
            let Some(source) = entry(shard, key) else {
                return Allowed::Untracked;
            };
            let full = rate.saturating_mul(1000);
            let gained = (now - source.stamp.min(now)).saturating_mul(u64::from(rate));
            let tokens = match source.stamp {
                0 => full,
                _ => u32::try_from(u64::from(source.tokens).saturating_add(gained))
                    .unwrap_or(full)
                    .min(full),
            };
            source.stamp = now;
            match tokens.checked_sub(1000) {
                Some(left) => {
                    source.tokens = left;
                    Allowed::Yes
                }
                None => {
                    source.tokens = tokens;
                    Allowed::No
                }
            }
        })
    }
}

/// The entry of a source, made if there is room.
fn entry(shard: &mut HashMap<IpAddr, Source>, key: IpAddr) -> Option<&mut Source> {
    if shard.len() >= SOURCES && !shard.contains_key(&key) {
        let looked_at = shard.iter().take(LOOKED_AT);
        let oldest = looked_at
            .filter(|(_, s)| s.connections == 0)
            .min_by_key(|(_, s)| s.stamp)
            .map(|(k, _)| *k)?;
        shard.remove(&oldest);
    }
    Some(shard.entry(key).or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(n))
    }

    #[test]
    fn connections_are_counted_up_and_down() {
        let sources = Sources::default();
        assert_eq!(sources.connect(ip(1), 2), Allowed::Yes);
        assert_eq!(sources.connect(ip(1), 2), Allowed::Yes);
        assert_eq!(sources.connect(ip(1), 2), Allowed::No);
        assert_eq!(sources.connect(ip(2), 2), Allowed::Yes);
        sources.disconnect(ip(1));
        assert_eq!(sources.connect(ip(1), 2), Allowed::Yes);
        for _ in 0..2 {
            sources.disconnect(ip(1));
        }
        sources.disconnect(ip(2));
        assert!(sources.shards.iter().all(|s| s.lock().unwrap().is_empty()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let sources = Sources::default();
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let b: IpAddr = "2001:db8::ffff:1".parse().unwrap();
        let c: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        assert_eq!(sources.connect(a, 1), Allowed::Yes);
        assert_eq!(sources.connect(b, 1), Allowed::No);
        assert_eq!(sources.connect(c, 1), Allowed::Yes);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(sources.connect(mapped, 1), Allowed::Yes);
        assert_eq!(sources.connect("10.0.0.1".parse().unwrap(), 1), Allowed::No);
    }

    #[test]
    fn a_rate_allows_a_burst_then_refills() {
        let sources = Sources::default();
        let at = |now| sources.request_at(ip(1), 10, now);
        assert!((0..10).all(|_| at(1) == Allowed::Yes));
        assert_eq!(at(1), Allowed::No);
        assert_eq!(at(100), Allowed::No);
        assert_eq!(
            at(101),
            Allowed::Yes,
            "one tenth of a second is one request"
        );
        assert_eq!(at(102), Allowed::No);
        assert!((0..10).all(|_| at(10_000) == Allowed::Yes));
        assert_eq!(at(10_000), Allowed::No);
    }

    #[test]
    fn the_table_is_bounded_and_busy_sources_stay() {
        let sources = Sources::default();
        let most = (SHARDS * SOURCES) as u32;
        assert!((0..100).all(|n| sources.connect(ip(n), 1) == Allowed::Yes));
        for n in 100..most * 2 {
            assert_eq!(sources.request_at(ip(n), 10, u64::from(n)), Allowed::Yes);
        }
        let entries: usize = sources.shards.iter().map(|s| s.lock().unwrap().len()).sum();
        assert!(entries <= SHARDS * SOURCES);
        assert!((0..100).all(|n| sources.connect(ip(n), 1) == Allowed::No));
    }
}
