//! The table of nodes, and what of it goes into the next message.

use std::collections::BTreeMap;
use std::time::Duration;

use super::id::NodeId;
use super::message::{Record, Standing, record_size};
use super::seal::Life;

/// Most nodes that are remembered, this one and gone ones included. Well above what a
/// cluster of balancers has; with it, the table and all that hangs on it is bounded.
pub const NODES_MAX: usize = 64;
/// In how many messages a change is told before everything that is old.
const AHEAD: u32 = 8;
/// How long a node that is down is remembered: operators want to see what is missing, and
/// it is called now and then until it comes back.
const FORGET_DOWN: Duration = Duration::from_secs(24 * 3_600);
/// How long one that left is: until nobody talks of it any more.
const FORGET_LEFT: Duration = Duration::from_secs(600);

/// A node as this one sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// What is told of it.
    pub record: Record,
    /// Since when it stands so, on the core's clock.
    pub since: Duration,
    /// From a probe to its answer, smoothed; nothing before the first.
    pub round_trip: Option<Duration>,
    /// The process it last was.
    pub(super) life: Option<Life>,
    /// When it is given up, while it is suspected.
    pub(super) suspected_until: Option<Duration>,
    /// Messages that it will be told in before the old.
    news: u32,
    /// Counts the messages it was told in.
    told: u64,
}

impl Member {
    /// Answers, or may do so yet.
    pub fn live(&self) -> bool {
        matches!(self.record.standing, Standing::Alive | Standing::Suspect)
    }
}

/// What hearing a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing new.
    Nothing,
    /// Something changed.
    Changed,
    /// A node, or a new life of it, is there.
    Appeared,
    /// The node is suspected now.
    Suspected,
    /// There is no room for it.
    Full,
}

/// All nodes but this one.
#[derive(Default)]
pub(super) struct Members {
    all: BTreeMap<NodeId, Member>,
}

impl Members {
    pub(super) fn get(&self, id: NodeId) -> Option<&Member> {
        self.all.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Member> {
        self.all.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.all.iter().map(|(id, member)| (*id, member))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut Member)> {
        self.all.iter_mut().map(|(id, member)| (*id, member))
    }

    /// Takes a record of another node in, when it is news.
    pub(super) fn hear(&mut self, record: &Record, now: Duration) -> Heard {
        let id = record.id();
        let Some(member) = self.all.get_mut(&id) else {
            // That an unknown node is gone is nothing to remember.
            if record.standing >= Standing::Down {
                return Heard::Nothing;
            }
            if self.all.len() >= NODES_MAX - 1 && !self.make_room() {
                return Heard::Full;
            }
            let member = Member {
                record: record.clone(),
                since: now,
                round_trip: None,
                life: None,
                suspected_until: None,
                news: AHEAD,
                told: self.least_told(),
            };
            self.all.insert(id, member);
            return match record.standing {
                Standing::Suspect => Heard::Suspected,
                _ => Heard::Appeared,
            };
        };
        if !record.supersedes(&member.record) {
            return Heard::Nothing;
        }
        let new_life = record.incarnation > member.record.incarnation;
        if new_life || record.standing != member.record.standing {
            member.since = now;
        }
        if new_life {
            member.round_trip = None;
        }
        member.record = record.clone();
        member.news = AHEAD;
        match record.standing {
            Standing::Suspect => Heard::Suspected,
            standing => {
                member.suspected_until = None;
                match new_life && standing == Standing::Alive {
                    true => Heard::Appeared,
                    false => Heard::Changed,
                }
            }
        }
    }

    /// Records for a message of limited size: that of `first`, which the receiver should
    /// see in any case, then those that were told least.
    pub(super) fn tell(&mut self, first: Option<NodeId>, mut room: usize) -> Vec<Record> {
        let mut order: Vec<_> = self
            .all
            .iter()
            .map(|(id, member)| (Some(*id) != first, member.news == 0, member.told, *id))
            .collect();
        order.sort_unstable();
        let mut records = Vec::new();
        for (_, _, _, id) in order {
            let Some(member) = self.all.get_mut(&id) else {
                continue;
            };
            let size = record_size(&member.record);
            if size > room {
                break;
            }
            room -= size;
            member.told += 1;
            member.news = member.news.saturating_sub(1);
            records.push(member.record.clone());
        }
        records
    }

    /// Forgets who has been gone for long. Whether anything changed.
    pub(super) fn forget(&mut self, now: Duration) -> bool {
        let before = self.all.len();
        self.all.retain(|_, member| {
            let gone = now.saturating_sub(member.since);
            match member.record.standing {
                Standing::Down => gone < FORGET_DOWN,
                Standing::Left => gone < FORGET_LEFT,
                _ => true,
            }
        });
        self.all.len() != before
    }

    /// What a new one begins with, so that it does not hold up the others for long.
    fn least_told(&self) -> u64 {
        let told = self.all.values().map(|member| member.told);
        told.min().unwrap_or_default()
    }

    /// Forgets the node that has been gone for longest.
    fn make_room(&mut self) -> bool {
        let gone = self.all.iter().filter(|(_, member)| !member.live());
        let oldest = gone.min_by_key(|(_, member)| member.since);
        match oldest.map(|(id, _)| *id) {
            Some(id) => self.all.remove(&id).is_some(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::id::Incarnation;

    fn record(node: usize, standing: Standing, version: u32) -> Record {
        Record {
            name: format!("n{node}"),
            incarnation: Incarnation::new(1, 0),
            version,
            standing,
            syncing: false,
            about: Vec::new(),
            address: "10.0.0.1:1".parse().unwrap(),
        }
    }

    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn only_news_changes_anything() {
        let mut members = Members::default();
        let mut hear = |standing, version| members.hear(&record(1, standing, version), NOW);
        assert_eq!(hear(Standing::Down, 0), Heard::Nothing);
        assert_eq!(hear(Standing::Alive, 1), Heard::Appeared);
        assert_eq!(hear(Standing::Alive, 1), Heard::Nothing);
        assert_eq!(hear(Standing::Suspect, 0), Heard::Nothing);
        assert_eq!(hear(Standing::Suspect, 1), Heard::Suspected);
        assert_eq!(hear(Standing::Alive, 1), Heard::Nothing);
        assert_eq!(hear(Standing::Alive, 2), Heard::Changed);
        assert_eq!(hear(Standing::Down, 0), Heard::Changed);
        assert_eq!(hear(Standing::Alive, 9), Heard::Nothing);
        assert_eq!(hear(Standing::Left, 0), Heard::Changed);
        let mut later = record(1, Standing::Alive, 0);
        later.incarnation = Incarnation::new(2, 0);
        assert_eq!(members.hear(&later, NOW), Heard::Appeared);
    }

    #[test]
    fn the_table_is_bounded_and_the_gone_give_way() {
        let mut members = Members::default();
        for n in 0..NODES_MAX - 1 {
            let heard = members.hear(&record(n, Standing::Alive, 0), NOW);
            assert_eq!(heard, Heard::Appeared);
        }
        let one_more = record(NODES_MAX, Standing::Alive, 0);
        assert_eq!(members.hear(&one_more, NOW), Heard::Full);
        members.hear(&record(3, Standing::Down, 0), NOW);
        assert_eq!(members.hear(&one_more, NOW), Heard::Appeared);
        assert_eq!(members.iter().count(), NODES_MAX - 1);
        assert!(members.get(NodeId::of("n3")).is_none());
    }

    #[test]
    fn everything_is_told_in_turn_and_news_first() {
        let mut members = Members::default();
        for n in 0..60 {
            members.hear(&record(n, Standing::Alive, 0), NOW);
        }
        let room = 10 * record_size(&record(99, Standing::Alive, 0));
        let mut told = std::collections::BTreeSet::new();
        for _ in 0..100 {
            for record in members.tell(None, room) {
                told.insert(record.name);
            }
        }
        assert_eq!(told.len(), 60);
        members.hear(&record(42, Standing::Suspect, 0), NOW);
        for _ in 0..AHEAD {
            assert_eq!(members.tell(None, room)[0].name, "n42");
        }
        let first = members.tell(Some(NodeId::of("n7")), room);
        assert_eq!(first[0].name, "n7");
    }

    #[test]
    fn the_gone_are_forgotten_in_the_end() {
        let mut members = Members::default();
        for (n, standing) in [
            (0, Standing::Alive),
            (1, Standing::Down),
            (2, Standing::Left),
        ] {
            members.hear(&record(n, Standing::Alive, 0), NOW);
            members.hear(&record(n, standing, 0), NOW);
        }
        assert!(!members.forget(NOW + FORGET_LEFT / 2));
        assert!(members.forget(NOW + FORGET_LEFT));
        assert!(members.forget(NOW + FORGET_DOWN));
        assert_eq!(members.iter().count(), 1);
    }
}
