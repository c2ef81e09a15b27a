//! The order in which a pool's backends take turns: smooth weighted round robin.
//!
//! The rule is the one that nginx made known: in every turn each backend gains its
//! weight, the one with the most is chosen (the first of equals) and pays the sum
//! of all weights. Weights are divided by their greatest common divisor first.
//!
//! What it promises, for `n` backends with sum of weights `W`:
//! - a cycle has `W` slots, and each backend exactly its weight of them;
//! - after `t` slots a backend has had less than `t*w/W + 1` turns (only a backend
//!   with more than nothing is chosen) and at least `t*w/W - (H(n) - 1)`, where
//!   `H(n) = 1 + 1/2 + ... + 1/n`. Proof of the latter: let `m(k)` be the mean of the
//!   `k` largest debts to backends after a turn. `m(n)` is 0. When the chosen one is
//!   not among the `k`, it had the most before, so the `k` had at most `k` of the
//!   `k + 1` parts of what these had together: `m(k) <= m(k+1) + 1/(k+1)`. When it is,
//!   their sum has not grown. So `m(1) <= 1/2 + ... + 1/n`;
//! - hence any window of `k` consecutive slots, also across the end of the cycle,
//!   differs from the share `k*w/W` by less than `H(n)`.

use std::ops::Range;

use common::limits::RING_SLOTS_MAX;

/// Backends of one weight. Among them the choice goes round in order, so only the
/// first of the queue need be compared with the other groups.
struct Group {
    /// The weight, in the high half.
    weight: i64,
    /// What the next in turn has gained in the high half, and in the low half the
    /// more the earlier it is in the list: one comparison finds the first of those
    /// with the most.
    claim: i64,
    /// Where in the order the next in turn is.
    turn: u32,
    /// Where the group's members are in the order, rising.
    members: Range<u32>,
}

/// Slots of the ring for these weights: their sum over their common divisor.
pub fn len(weights: &[u16]) -> u64 {
    let divisor = u64::from(divisor(weights));
    weights.iter().map(|&w| u64::from(w)).sum::<u64>() / divisor
}

/// One cycle: positions in `weights`, each as often as its weight over the common
/// divisor. A weight of 0 does not occur. `None` when the cycle has more slots than
/// [`RING_SLOTS_MAX`].
///
/// Takes time in proportion to the slots times the number of different weights.
pub fn sequence(weights: &[u16]) -> Option<Vec<u32>> {
    let slots = len(weights);
    if slots > u64::from(RING_SLOTS_MAX) {
        return None;
    }
    // By weight, those of one weight in the order of the list.
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    order.retain(|&i| weights[i as usize] > 0);
    order.sort_by_key(|&i| weights[i as usize]);
    let mut groups = groups(weights, &order);
    if groups.len() == 1 {
        return Some(order);
    }
    let total = (slots as i64) << 32;
    let mut ring = Vec::with_capacity(slots as usize);
    for _ in 0..slots {
        let mut best = 0;
        let mut most = i64::MIN;
        for (i, group) in groups.iter_mut().enumerate() {
            group.claim += group.weight;
            if group.claim > most {
                most = group.claim;
                best = i;
            }
        }
        let group = &mut groups[best];
        ring.push(order[group.turn as usize]);
        group.turn += 1;
        if group.turn == group.members.end {
            // All have paid once more, and the first is next again.
            group.turn = group.members.start;
            group.claim -= total;
        }
        group.claim = (group.claim >> 32 << 32) + earliness(order[group.turn as usize]);
    }
    Some(ring)
}

fn divisor(weights: &[u16]) -> u16 {
    let gcd = |a: u16, b: u16| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    weights.iter().copied().fold(0, gcd).max(1)
}

fn earliness(position: u32) -> i64 {
    i64::from(u32::MAX - position)
}

fn groups(weights: &[u16], order: &[u32]) -> Vec<Group> {
    let divisor = divisor(weights);
    let mut at = 0;
    order
        .chunk_by(|&a, &b| weights[a as usize] == weights[b as usize])
        .map(|members| {
            let start = at;
            at += members.len() as u32;
            Group {
                weight: i64::from(weights[members[0] as usize] / divisor) << 32,
                claim: earliness(members[0]),
                turn: start,
                members: start..at,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule word for word, one addition per backend and slot.
    fn plain(weights: &[u16]) -> Vec<u32> {
        let d = divisor(weights);
        let w: Vec<i64> = weights.iter().map(|&w| i64::from(w / d)).collect();
        let total: i64 = w.iter().sum();
        let mut gained = vec![0; w.len()];
        (0..total)
            .map(|_| {
                let mut best: Option<usize> = None;
                for i in (0..w.len()).filter(|&i| w[i] > 0) {
                    gained[i] += w[i];
                    if best.is_none_or(|b| gained[i] > gained[b]) {
                        best = Some(i);
                    }
                }
                let best = best.expect("a positive total has a positive weight");
                gained[best] -= total;
                best as u32
            })
            .collect()
    }

    #[test]
    fn five_one_one_is_interleaved() {
        assert_eq!(sequence(&[5, 1, 1]).unwrap(), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(sequence(&[10, 2, 2]).unwrap(), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn edges() {
        assert_eq!(sequence(&[]).unwrap(), [0u32; 0]);
        assert_eq!(sequence(&[0, 0]).unwrap(), [0u32; 0]);
        assert_eq!(sequence(&[0, 256, 0]).unwrap(), [1]);
        assert_eq!(sequence(&[7; 4]).unwrap(), [0, 1, 2, 3]);
        assert_eq!(sequence(&[1, 0, 1]).unwrap(), [0, 2]);
        assert_eq!(len(&[0, 6, 4]), 5);
        assert_eq!(len(&[]), 0);
    }

    #[test]
    fn too_long_is_refused() {
        let mut weights = vec![256; 256];
        assert_eq!(sequence(&weights).unwrap().len(), 256);
        weights[0] = 255;
        assert_eq!(sequence(&weights).unwrap().len(), 65_535);
        weights.extend([1, 1]);
        assert_eq!(sequence(&weights), None);
    }

    #[test]
    fn ten_thousand_equal_go_in_order() {
        let ring = sequence(&vec![3; 10_000]).unwrap();
        assert!(ring.iter().copied().eq(0..10_000));
    }

    proptest! {
        #[test]
        fn is_the_plain_rule(weights in prop::collection::vec(0u16..12, 0..24)) {
            prop_assert_eq!(sequence(&weights).unwrap(), plain(&weights));
        }

        #[test]
        fn is_the_plain_rule_for_large_weights(weights in prop::collection::vec(0u16..=256, 1..8)) {
            prop_assert_eq!(sequence(&weights).unwrap(), plain(&weights));
        }

        #[test]
        fn counts_are_exact_and_windows_fair(weights in prop::collection::vec(0u16..9, 1..10)) {
            let ring = sequence(&weights).unwrap();
            let d = divisor(&weights);
            let n = weights.iter().filter(|&&w| w > 0).count();
            let harmonic: f64 = (1..=n).map(|i| 1.0 / i as f64).sum();
            for (i, &w) in weights.iter().enumerate() {
                let is = |slot: usize| f64::from(u8::from(ring[slot % ring.len()] == i as u32));
                let count: f64 = (0..ring.len()).map(is).sum();
                prop_assert_eq!(count, f64::from(w / d));
                // Every window from every start: a rotated ring is as good.
                for start in 0..ring.len() {
                    let mut had = 0.0;
                    for k in 1..=ring.len() {
                        had += is(start + k - 1);
                        let share = k as f64 * f64::from(w / d) / ring.len() as f64;
                        prop_assert!((had - share).abs() < harmonic + 1e-9,
                            "{had} of {k} slots from {start}, share {share}");
                        if start == 0 {
                            prop_assert!(had < share + 1.0 + 1e-9);
                        }
                    }
                }
            }
        }
    }
}
