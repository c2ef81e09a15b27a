//! Who of a group is next: round robin, least connections, power of two choices.
//!
//! All of them take the place in the same step, so that a limit is never passed.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rand::Rng;

use super::choose::{Lenience, Usable};
use super::lease::{Place, take};
use super::view::{Group, PoolView};
use crate::model::http::HttpBalance;

/// Slots of the ring that are walked before it is asked whether there is a point in it.
const PATIENCE: usize = 16;

/// Takes a place at one of the group. `None` when all who are usable are full.
pub(super) fn pick(
    view: &PoolView,
    usable: &Usable<'_>,
    group: &Group,
    lenience: Lenience,
) -> Option<Place> {
    let one = Pick {
        view,
        usable,
        group,
        lenience,
        shares: warm(view),
    };
    match view.pool.http.balance {
        HttpBalance::LeastConnections => one.least(),
        HttpBalance::PowerOfTwo => one.better_of_two(),
        // The source policy comes here without a key only; there is none without a client.
        HttpBalance::RoundRobin | HttpBalance::Source => one.next_turn(),
    }
}

/// Now, if somebody's share is still growing. Almost always `None`: views are made anew
/// when health changes, and a time in the past needs no clock once it was seen to be past.
fn warm(view: &PoolView) -> Option<Instant> {
    let until = view.warm_at?;
    let now = Instant::now();
    (now < until).then_some(now)
}

struct Pick<'a> {
    view: &'a PoolView,
    usable: &'a Usable<'a>,
    group: &'a Group,
    lenience: Lenience,
    /// When shares are growing: now.
    shares: Option<Instant>,
}

impl Pick<'_> {
    fn take(&self, index: usize) -> Option<Place> {
        if !self.usable.fresh(index, self.lenience) {
            return None;
        }
        take(self.view, self.usable, index)
    }

    fn has_place(&self, index: usize) -> bool {
        let backend = &self.view.backends[index];
        self.usable.fresh(index, self.lenience)
            && backend.live.has_place(backend.http.max_connections)
            && (backend.http.max_connections.is_none() || self.view.live.queue.is_empty())
    }

    /// Smooth weighted round robin over all threads: every slot of the ring is handed out
    /// once, by one shared counter; one that can't be used is passed over, and its turn is
    /// lost to nobody in particular, as the next slot goes to whoever asks.
    fn next_turn(&self) -> Option<Place> {
        let ring = &self.group.ring;
        let whole = self.shares.map(|now| self.largest_share(now));
        for walked in 0..ring
            .len()
            .saturating_mul(if whole.is_some() { 2 } else { 1 })
        {
            if walked == PATIENCE {
                let mut members = self.group.members.iter();
                if !members.any(|&i| self.has_place(i as usize)) {
                    return None;
                }
            }
            let slot = self.view.live.cursor.fetch_add(1, Relaxed) % ring.len() as u64;
            let index = ring[slot as usize] as usize;
            if let (Some(now), Some(whole)) = (self.shares, whole)
                && !self.is_warm_enough(index, now, whole)
            {
                continue;
            }
            if let Some(place) = self.take(index) {
                return Some(place);
            }
        }
        let mut members = self.group.members.iter();
        members.find_map(|&i| self.take(i as usize))
    }

    /// The largest share among the usable: when all are new, nobody has to be spared.
    fn largest_share(&self, now: Instant) -> u32 {
        let members = self.group.members.iter().map(|&i| i as usize);
        members
            .filter(|&i| self.usable.fresh(i, self.lenience))
            .map(|i| self.view.share(i, now))
            .max()
            .unwrap_or(1024)
    }

    /// Lets a growing backend take its part of its turns, evenly: each turn saves up the
    /// share, and a turn is taken when a whole one is saved.
    fn is_warm_enough(&self, index: usize, now: Instant, whole: u32) -> bool {
        let share = self.view.share(index, now);
        if share >= whole {
            return true;
        }
        let saved = &self.view.backends[index].live.warmth;
        let before = saved.fetch_add(share, Relaxed);
        if before.saturating_add(share) < whole {
            return false;
        }
        // Another thread may take the same turn; it then starts with a debt of this one's.
        saved.fetch_sub(whole.min(before.saturating_add(share)), Relaxed);
        true
    }

    /// Weight times share.
    fn worth(&self, index: usize) -> u64 {
        let weight = u64::from(self.view.backends[index].weight);
        match self.shares {
            Some(now) => weight * u64::from(self.view.share(index, now)),
            None => weight,
        }
    }

    /// Whether `a` would have fewer in flight for its worth than `b`, with the new one.
    fn is_less(&self, a: usize, b: usize) -> bool {
        let load = |i: usize| u64::from(self.view.backends[i].live.in_flight()) + 1;
        load(a) * self.worth(b) < load(b) * self.worth(a)
    }

    /// Fewest in flight per weight; of equals the next in order, as everywhere else the
    /// first of the file would get all at low load. Looks at every member: some
    /// nanoseconds each; `power-of-two` is for very large pools.
    fn least(&self) -> Option<Place> {
        let members = &self.group.members;
        // A place may be gone again before it is taken; somebody has it then.
        for _ in 0..4 {
            let start = self.view.live.cursor.fetch_add(1, Relaxed) % members.len() as u64;
            let (late, early) = members.split_at(start as usize);
            let best = early
                .iter()
                .chain(late)
                .map(|&i| i as usize)
                .filter(|&i| self.has_place(i))
                .reduce(|best, i| if self.is_less(i, best) { i } else { best })?;
            if let Some(place) = self.take(best) {
                return Some(place);
            }
        }
        members.iter().find_map(|&i| self.take(i as usize))
    }

    /// Two slots of the ring at random, hence backends by their weight; the one with fewer
    /// in flight per weight.
    fn better_of_two(&self) -> Option<Place> {
        let mut random = rand::rng();
        let ring = &self.group.ring;
        let mut first = None;
        for _ in 0..8 {
            let index = ring[random.random_range(0..ring.len())] as usize;
            if !self.has_place(index) {
                continue;
            }
            match first {
                None => first = Some(index),
                Some(first) if first == index && self.group.members.len() > 1 => {}
                Some(first) => {
                    let best = if self.is_less(index, first) {
                        index
                    } else {
                        first
                    };
                    match self.take(best) {
                        Some(place) => return Some(place),
                        None => break,
                    }
                }
            }
        }
        // Few have room, or luck was against it.
        self.least()
    }
}
