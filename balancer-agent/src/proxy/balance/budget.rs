//! The retry budget of a pool: retries may add a percentage to the load, not multiply it.
//!
//! Each request pays in its percentage, each retry takes out 100. What is saved is bounded,
//! so that a quiet hour does not buy a storm. Beside it a small allowance refills with time:
//! where there is little traffic, the percentage alone would forbid every retry.
//!
//! A server that dies takes all its requests with it in one moment, which may be more than
//! any percentage: to ask others is to move load, not to add to it. So the budget is not
//! touched by as many broken exchanges a second as requests are under way. A request that
//! kills every server that it meets does not profit: it is under way once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A retry's price, in percent of a request.
const PRICE: u64 = 100;
/// Most that is saved: this many retries.
const SAVED_MAX: u64 = 100 * PRICE;
/// Retries per second that are allowed always, and at most at once.
const ALWAYS: u64 = 10;
/// Microseconds that refill one of [`ALWAYS`].
const REFILL: u64 = 1_000_000 / ALWAYS;

/// The budget. All of it is atomic: threads share it.
#[derive(Debug, Default)]
pub struct Budget {
    saved: AtomicU64,
    /// The allowance as a time: when it would have been empty, refilling since. It is
    /// full when this is [`ALWAYS`] refills ago or longer.
    empty_at: AtomicU64,
    /// Seconds of the clock, and beneath them how many retries have moved load in this one.
    moved: AtomicU64,
}

/// Bits of [`Budget::moved`] that count.
const MOVED_BITS: u32 = 32;
/// Retries that move load, per request under way and second.
const MOVES: u64 = 2;

impl Budget {
    /// A first attempt is made.
    pub fn deposit(&self, percent: u32) {
        // A look before the write: in the steady state the budget is full, and the cache
        // line stays shared between the cores. Passing the bound by a few does no harm.
        if percent > 0 && self.saved.load(Relaxed) < SAVED_MAX {
            self.saved.fetch_add(u64::from(percent), Relaxed);
        }
    }

    /// Whether a retry only moves load off a server that went away, with so many requests
    /// under way in the pool. `now` in microseconds.
    pub fn moves(&self, now: u64, in_flight: u64) -> bool {
        let second = now / 1_000_000;
        let most = in_flight.saturating_mul(MOVES).min(u64::from(u32::MAX));
        self.moved
            .fetch_update(Relaxed, Relaxed, |moved| {
                let count = match moved >> MOVED_BITS == second {
                    true => moved & u64::from(u32::MAX),
                    false => 0,
                };
                (count < most).then_some(second << MOVED_BITS | (count + 1))
            })
            .is_ok()
    }

    /// Takes the price of one retry; false when there is nothing left. `now` in
    /// microseconds.
    pub fn withdraw(&self, now: u64) -> bool {
        let paid = self
            .saved
            .fetch_update(Relaxed, Relaxed, |saved| saved.checked_sub(PRICE));
        if paid.is_ok() {
            return true;
        }
        // Shifted, so that the allowance is full at the origin of the clock as well.
        let now = now.saturating_add(ALWAYS * REFILL);
        self.empty_at
            .fetch_update(Relaxed, Relaxed, |empty_at| {
                let since = empty_at.max(now - ALWAYS * REFILL);
                (since + REFILL <= now).then_some(since + REFILL)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(budget: &Budget, now: u64) -> usize {
        (0..10_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn what_dies_at_once_is_moved_once() {
        let budget = Budget::default();
        let moved = |now, in_flight| {
            (0..10_000)
                .take_while(|_| budget.moves(now, in_flight))
                .count()
        };
        assert_eq!(moved(5_000_000, 300), 600);
        assert_eq!(moved(5_999_999, 300), 0);
        assert_eq!(moved(6_000_000, 1), 2);
        assert_eq!(moved(6_500_000, 2), 2, "more under way, more may move");
        assert_eq!(moved(7_000_000, 0), 0);
        assert_eq!(drain(&budget, 1), 10, "the budget itself is whole");
    }

    #[test]
    fn a_few_are_always_allowed_and_come_back_with_time() {
        let budget = Budget::default();
        assert_eq!(drain(&budget, 1), 10);
        assert_eq!(drain(&budget, 99_999), 0);
        assert_eq!(drain(&budget, 100_001), 1);
        assert_eq!(drain(&budget, 500_001), 4);
        assert_eq!(
            drain(&budget, 3_600_000_000),
            10,
            "never more than a second's"
        );
    }

    #[test]
    fn requests_pay_their_percentage() {
        let budget = Budget::default();
        let _ = drain(&budget, 1);
        (0..50).for_each(|_| budget.deposit(20));
        assert_eq!(drain(&budget, 1), 10);
        (0..50).for_each(|_| budget.deposit(0));
        assert_eq!(drain(&budget, 1), 0);
    }

    #[test]
    fn savings_are_bounded() {
        let budget = Budget::default();
        (0..100_000).for_each(|_| budget.deposit(20));
        assert_eq!(drain(&budget, 1), 100 + 10);
    }

    #[test]
    fn threads_never_overdraw() {
        let budget = Budget::default();
        (0..250).for_each(|_| budget.deposit(20));
        let taken: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4).map(|_| scope.spawn(|| drain(&budget, 1))).collect();
            takers.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(taken, 50 + 10);
    }
}
