//! One group's table: merging in any order, digests, accounts, ends.

use proptest::prelude::*;

use crate::session::codec::EntryRef;
use crate::session::config::{GroupConfig, group_key};
use crate::session::table::{Entry, Group};
use crate::session::types::{Manager, Replication, Version};

const MAX_AGE: u64 = 10_000;

fn group() -> Group {
    let config = GroupConfig {
        name: "users".into(),
        manager: Manager::Delta,
        replication: Replication::Sync,
        persistent: false,
    };
    Group::new(&config, group_key("users"), [1, 2], 8, MAX_AGE)
}

/// A copy of one of a few sessions, in one of a few versions.
fn copy((id, epoch, stamp, deleted, seq, idle): (u8, u64, u64, bool, u32, u64)) -> Copy {
    Copy {
        id: [b'a' + id; 12],
        version: Version {
            epoch,
            deleted,
            stamp: epoch + stamp,
            writer: 3,
        },
        seq,
        idle,
    }
}

#[derive(Clone, Debug)]
struct Copy {
    id: [u8; 12],
    version: Version,
    seq: u32,
    idle: u64,
}

impl Copy {
    fn entry(&self) -> EntryRef<'_> {
        let live = !self.version.deleted;
        // The content follows from the version, as it does in truth.
        let route = ["a", "b", "c"][self.version.stamp as usize % 3];
        EntryRef {
            group: group_key("users"),
            id: &self.id,
            version: self.version,
            seq: self.seq,
            idle: self.idle,
            age: if live { 50 } else { 0 },
            ttl: if live { 1000 } else { 0 },
            route: if live { route } else { "" },
            data: (live && self.version.stamp.is_multiple_of(2)).then_some(b"data"),
        }
    }
}

fn copies() -> impl Strategy<Value = Vec<Copy>> {
    let one = (
        0..3_u8,
        1..4_u64,
        0..4_u64,
        prop::bool::weighted(0.2),
        0..4_u32,
        0..900_u64,
    );
    prop::collection::vec(one.prop_map(copy), 1..24)
}

fn merge_all<'a>(copies: impl IntoIterator<Item = &'a Copy>) -> Group {
    let mut group = group();
    for copy in copies {
        let entry = copy.entry();
        let hash = group.hash(entry.id);
        group.merge(&entry, hash, 5_000).unwrap();
    }
    group
}

fn state(group: &Group) -> Vec<String> {
    let buckets = 0..group.buckets.len() as u16;
    let entries = buckets.flat_map(|b| group.sorted(b, 0));
    entries
        .map(|entry| {
            format!(
                "{:?}",
                EntryRef {
                    age: 0,
                    ..group.wire(entry, 5_000)
                }
            )
        })
        .collect()
}

proptest! {
    #[test]
    fn copies_merge_in_any_order(copies in copies(), twist in any::<u64>()) {
        let straight = merge_all(&copies);
        let mut shuffled = copies.clone();
        let len = shuffled.len();
        for i in 0..len {
            shuffled.swap(i, (twist.rotate_left(i as u32 * 7) % len as u64) as usize);
        }
        let twice: Vec<_> = shuffled.iter().chain(&copies).cloned().collect();
        let other = merge_all(&twice);
        prop_assert_eq!(state(&straight), state(&other));
        let digests = |group: &Group| -> Vec<u64> {
            group.buckets.iter().map(|bucket| bucket.digest).collect()
        };
        prop_assert_eq!(digests(&straight), digests(&other));
        prop_assert_eq!(straight.bytes, other.bytes);
    }

    #[test]
    fn accounts_are_right_after_everything(copies in copies()) {
        let mut group = merge_all(&copies);
        let count = |group: &Group, deleted| {
            let entries = group.buckets.iter().flat_map(|bucket| bucket.table.iter());
            entries.filter(|entry| entry.deleted == deleted).count()
        };
        prop_assert_eq!(group.live, count(&group, false));
        prop_assert_eq!(group.tombstones, count(&group, true));
        for bucket in &group.buckets {
            let sum = bucket.table.iter().fold(0_u64, |sum, e| sum.wrapping_add(e.print()));
            prop_assert_eq!(bucket.digest, sum);
        }
        let named: usize = group.routes.iter().map(|(_, users)| users).sum();
        prop_assert_eq!(named, group.live);
        for copy in &copies {
            group.remove(group.hash(&copy.id), &copy.id);
        }
        prop_assert_eq!((group.live, group.tombstones, group.bytes), (0, 0, 0));
        prop_assert!(group.buckets.iter().all(|bucket| bucket.digest == 0));
        prop_assert_eq!(group.routes.iter().count(), 0);
    }
}

#[test]
fn a_deletion_beats_every_write_of_its_epoch_and_no_later_one() {
    let live = copy((0, 5, 90, false, 1, 0));
    let dead = copy((0, 5, 3, true, 0, 0));
    let anew = copy((0, 6, 0, false, 1, 0));
    let group = merge_all([&live, &dead]);
    assert_eq!((group.live, group.tombstones), (0, 1));
    let group = merge_all([&anew, &dead, &live]);
    assert_eq!((group.live, group.tombstones), (1, 0));
}

#[test]
fn a_tombstone_past_its_age_is_not_taken_but_still_ends_a_session() {
    let live = copy((0, 5, 0, false, 1, 0));
    let mut old = copy((0, 5, 1, true, 0, 0));
    old.idle = MAX_AGE;
    assert_eq!(merge_all([&old]).tombstones, 0);
    assert_eq!(merge_all([&live, &old]).live, 0);
}

#[test]
fn an_access_keeps_alive_for_the_time_to_live_and_its_slack() {
    let group = merge_all([&copy((0, 5, 0, false, 1, 0))]);
    let entry = group
        .buckets
        .iter()
        .find_map(|b| b.table.iter().next())
        .unwrap();
    assert_eq!(entry.slack(), 125);
    assert!(!entry.expired(5_000 + 1_125));
    assert!(entry.expired(5_000 + 1_126));
}

#[test]
fn ages_may_reach_back_before_the_clock_began() {
    let mut group = group();
    let copy = copy((0, 5, 0, false, 1, 900));
    let entry = copy.entry();
    let hash = group.hash(entry.id);
    group.merge(&entry, hash, 100).unwrap();
    let held = group.find(hash, entry.id).unwrap();
    assert_eq!(group.wire(held, 100).idle, 900);
    assert_eq!(group.wire(held, 150).idle, 950);
}

#[test]
fn an_entry_is_small() {
    assert!(size_of::<Entry>() <= 96, "{}", size_of::<Entry>());
}
