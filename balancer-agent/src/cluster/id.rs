//! Who a node is, and which of its lives is meant.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// A node, over all its restarts. Derived from its name: the same on every node, and
/// short enough to stand in every message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The node of that name: the first eight bytes of the name's SHA-256.
    pub fn of(name: &str) -> Self {
        let digest = digest(&SHA256, name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_ref()[..8]);
        Self(u64::from_be_bytes(first))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

const RANDOM_BITS: u32 = 40;
/// A node that began a life every minute would get there in thirty years.
const COUNT_MAX: u32 = (1 << 24) - 1;

/// One life of a node. It begins with a start, or when the others had given the node up.
/// A later life has a larger number.
///
/// The upper 24 bits count lives and are kept on disk. The lower 40 are random: no two
/// lives of any nodes are alike, and a node whose disk was lost counts from the beginning,
/// and is still not taken for its former self until its peers have told it how far it had
/// come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The life of that number, at most 16,777,215. Only the lower 40 bits of `random` count.
    pub fn new(count: u32, random: u64) -> Self {
        let count = u64::from(count.min(COUNT_MAX));
        Self(count << RANDOM_BITS | random & ((1 << RANDOM_BITS) - 1))
    }

    /// The number of the life.
    pub fn count(self) -> u32 {
        (self.0 >> RANDOM_BITS) as u32
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let random = self.0 & ((1 << RANDOM_BITS) - 1);
        write!(f, "{}-{random:010x}", self.count())
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_never_change() {
        // From `printf node1 | sha256sum`: other builds must find the same.
        assert_eq!(NodeId::of("node1").to_string(), NODE1);
        assert_ne!(NodeId::of("node1"), NodeId::of("node2"));
    }

    const NODE1: &str = "ca12f31b8cbf5f29";

    #[test]
    fn later_lives_are_larger() {
        let first = Incarnation::new(1, u64::MAX);
        let second = Incarnation::new(2, 0);
        assert!(first < second);
        assert_eq!(
            (second.count(), second.to_string()),
            (2, "2-0000000000".into())
        );
    }
}
