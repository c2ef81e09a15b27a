//! Which nodes hold a session.
//!
//! A group is cut into buckets by a keyed hash of the id, and each bucket has its holders
//! by rendezvous hashing (Thaler and Ravishankar, 1998) over the nodes of the group: all
//! nodes that know the same members choose alike, and when a node comes or goes only the
//! buckets that it gains or held move. Buckets, not sessions, are placed, so that a change
//! of membership costs the same with ten sessions and with ten million.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use super::types::{MAX_NODES, Manager, NodeId};

/// A set of nodes, by their place in the group's sorted list of members.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Set(pub u64);

impl Set {
    pub fn one(index: usize) -> Self {
        debug_assert!(index < MAX_NODES);
        Self(1 << (index as u64 & 63))
    }

    pub fn first(count: usize) -> Self {
        Self(if count >= 64 {
            u64::MAX
        } else {
            (1 << count) - 1
        })
    }

    pub fn has(self, index: usize) -> bool {
        self.0 & Self::one(index).0 != 0
    }

    pub fn with(self, index: usize) -> Self {
        Self(self.0 | Self::one(index).0)
    }

    pub fn without(self, index: usize) -> Self {
        Self(self.0 & !Self::one(index).0)
    }

    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let index = rest.trailing_zeros() as usize;
            (rest != 0).then(|| {
                rest &= rest - 1;
                index
            })
        })
    }
}

/// The keyed hash of a session id: SipHash-1-3, so that a client who chooses ids cannot
/// crowd a bucket.
pub(super) fn hash_id(key: [u64; 2], group: u32, id: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(key[0], key[1] ^ u64::from(group));
    hasher.write(id);
    hasher.finish()
}

/// The bucket of a hash: its top bits, so that a bucket is one range of hashes.
pub(super) fn bucket_of(hash: u64, buckets: u16) -> u16 {
    match buckets.trailing_zeros() {
        0 => 0,
        bits => (hash >> (64 - bits)) as u16,
    }
}

/// First and last hash of a bucket.
pub(super) fn range_of(bucket: u16, buckets: u16) -> (u64, u64) {
    match buckets.trailing_zeros() {
        0 => (0, u64::MAX),
        bits => {
            let low = u64::from(bucket) << (64 - bits);
            (low, low | (u64::MAX >> bits))
        }
    }
}

/// The finalizer of MurmurHash3: mixes the bits of one word.
pub(super) fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

fn weight(group: u32, bucket: u16, node: NodeId) -> u64 {
    mix(mix(node.0 ^ 0x9e37_79b9_7f4a_7c15) ^ ((u64::from(group) << 16) | u64::from(bucket)))
}

/// The members in the order of preference for a bucket, the primary first.
pub(super) fn order(group: u32, bucket: u16, members: &[NodeId]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..members.len().min(MAX_NODES)).collect();
    order.sort_by_key(|&index| {
        (
            std::cmp::Reverse(weight(group, bucket, members[index])),
            members[index],
        )
    });
    order
}

/// The primary of a bucket and all its holders, the primary included.
pub(super) fn place(
    manager: Manager,
    group: u32,
    bucket: u16,
    members: &[NodeId],
) -> Option<(usize, Set)> {
    let wanted = match manager {
        Manager::External => return None,
        Manager::Delta => members.len(),
        Manager::Backup { copies } => 1 + usize::from(copies),
    };
    let order = order(group, bucket, members);
    let primary = *order.first()?;
    let holders = order.iter().take(wanted);
    Some((primary, holders.fold(Set::default(), |set, &i| set.with(i))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> Vec<NodeId> {
        (1..=count).map(|n| NodeId(n * 1000 + 7)).collect()
    }

    #[test]
    fn a_bucket_is_one_range_of_hashes() {
        for buckets in [1, 2, 64, 16_384] {
            for bucket in [0, buckets / 2, buckets - 1] {
                let (low, high) = range_of(bucket, buckets);
                assert_eq!(bucket_of(low, buckets), bucket);
                assert_eq!(bucket_of(high, buckets), bucket);
                if high < u64::MAX {
                    assert_eq!(bucket_of(high + 1, buckets), bucket + 1);
                }
            }
        }
    }

    #[test]
    fn holders_are_spread_evenly() {
        let members = nodes(16);
        let mut held = [0_u32; 16];
        for bucket in 0..1024 {
            let (primary, holders) =
                place(Manager::Backup { copies: 1 }, 5, bucket, &members).unwrap();
            assert!(holders.has(primary));
            assert_eq!(holders.0.count_ones(), 2);
            holders.iter().for_each(|index| held[index] += 1);
        }
        // 128 each on average; a bad hash is far off.
        assert!(held.iter().all(|&n| (80..180).contains(&n)), "{held:?}");
    }

    #[test]
    fn a_node_that_goes_moves_only_its_own_buckets() {
        let before = nodes(8);
        let after: Vec<_> = before.iter().copied().filter(|&n| n != before[3]).collect();
        let manager = Manager::Backup { copies: 2 };
        for bucket in 0..1024 {
            let named = |members: &[NodeId]| -> Vec<NodeId> {
                let (_, set) = place(manager, 9, bucket, members).unwrap();
                set.iter().map(|index| members[index]).collect()
            };
            let (old, new) = (named(&before), named(&after));
            if !old.contains(&before[3]) {
                assert_eq!(old, new);
            } else {
                let kept = old.iter().filter(|node| new.contains(node)).count();
                assert_eq!(kept, 2, "exactly one holder is new");
            }
        }
    }

    #[test]
    fn few_nodes_hold_what_they_can() {
        let members = nodes(2);
        let (_, holders) = place(Manager::Backup { copies: 5 }, 1, 0, &members).unwrap();
        assert_eq!(holders, Set::first(2));
        assert_eq!(place(Manager::Delta, 1, 0, &[]), None);
    }

    #[test]
    fn sets_count_to_sixty_four() {
        assert_eq!(Set::first(64).iter().count(), 64);
        assert_eq!(Set::first(3).without(1).iter().collect::<Vec<_>>(), [0, 2]);
        assert!(Set::first(4).covers(Set::one(3)));
        assert!(!Set::first(3).covers(Set::one(3)));
    }
}
