//! The health of one backend: which results and signs change it, and when the
//! next check is due. No clock, no socket, no task: `now` is an argument.
//!
//! # Rules
//! - A backend starts down and unproved. The first result is the first verdict:
//!   one success brings it up, so that a start takes one check, not `rise`.
//!   Every later recovery needs `rise` successes in a row.
//! - `fall` points take an up backend down. A failed check in a row is a point,
//!   and so is every passive sign of the last [`Rules::window`].
//! - A successful check ends the run of failed checks; it does not wipe out the
//!   signs, which only grow old. A check may ask another port than clients do,
//!   so its success says nothing against a connection that was refused.
//! - A client can repeat a SYN at will, but can't make a server refuse one. So
//!   where checks exist, unanswered SYNs give at most `fall - 1` points: the
//!   check that every sign sets off at once has the last word.
//! - A backend that signs alone took down comes back like any other, after `rise`
//!   successes. When signs take it down again within [`REPEAT`] of that, it is
//!   held down for [`FIRST_HOLD`] at least, and twice as long each time, up to
//!   [`LONGEST_HOLD`]: a server whose checks pass while it refuses its clients
//!   costs ever fewer connections.
//! - Without a check a backend is up. Signs can take it down, and since nothing
//!   can prove it, time brings it back: after the same hold, which here begins
//!   with the first time.
//! - A result that says nothing about the server (our own lack of sockets) changes
//!   nothing.

use crate::model::{Check, CheckKind, Health, Passive};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Signs that come back so soon after a recovery are the same trouble.
pub const REPEAT: Duration = Duration::from_secs(60);
/// The first time that a backend is held down.
pub const FIRST_HOLD: Duration = Duration::from_secs(1);
/// The longest time that a backend is held down.
pub const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// What a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered as it should.
    Success,
    /// It did not.
    Failure,
    /// The check could not be made, and the server is not to blame.
    Inconclusive,
}

/// What a real connection says; see [`common::tables::event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sign {
    /// A SYN was answered by RST.
    Refused,
    /// A SYN was not answered.
    Unanswered,
}

/// What of the configuration decides about health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// There is an active check.
    pub active: bool,
    /// Between checks in a settled state.
    pub interval: Duration,
    /// Between checks while results disagree with the state.
    pub fast_interval: Duration,
    /// Points that take an up backend down; at least 1.
    pub fall: u32,
    /// Successes in a row that bring a down backend up; at least 1.
    pub rise: u32,
    /// Refused SYNs count.
    pub refused: bool,
    /// Unanswered SYNs count.
    pub unanswered: bool,
}

impl Rules {
    /// From a pool's check and passive settings.
    pub fn new(check: &Check, passive: &Passive) -> Self {
        Self {
            active: check.kind != CheckKind::None,
            interval: check.interval,
            fast_interval: check.fast_interval.min(check.interval),
            fall: check.fall.max(1),
            rise: check.rise.max(1),
            refused: passive.refused,
            unanswered: passive.unanswered.is_some(),
        }
    }

    /// How long a sign counts: as long as `fall` checks take, 1 s at least and
    /// 60 s at most.
    pub fn window(&self) -> Duration {
        self.interval
            .saturating_mul(self.fall)
            .clamp(Duration::from_secs(1), Duration::from_secs(60))
    }
}

/// What took a backend down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Points {
    /// Failed checks in a row.
    pub checks: u32,
    /// Refused SYNs.
    pub refused: u32,
    /// Unanswered SYNs.
    pub unanswered: u32,
}

/// The state machine of one backend.
#[derive(Clone, Debug)]
pub struct Machine {
    rules: Rules,
    health: Health,
    proved: bool,
    failures: u32,
    successes: u32,
    refused: Window,
    unanswered: Window,
    down_by: Points,
    hold: Hold,
    jitter: Jitter,
}

impl Machine {
    /// A backend that nothing is known of. `seed` spreads its checks: different
    /// for each backend, the same at every start.
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            health: if rules.active {
                Health::Down
            } else {
                Health::Up
            },
            proved: false,
            failures: 0,
            successes: 0,
            refused: Window::default(),
            unanswered: Window::default(),
            down_by: Points::default(),
            hold: Hold::default(),
            jitter: Jitter::new(seed),
        }
    }

    /// Takes over the health that an earlier agent found, until this one has
    /// results of its own. It counts as proved: an up backend needs `fall` points
    /// to go down, a down one `rise` successes. Without effect once results exist,
    /// and on a backend without a check.
    ///
    /// Returns the new health if it differs.
    pub fn seed(&mut self, health: Health) -> Option<Health> {
        if self.proved || !self.rules.active {
            return None;
        }
        self.proved = true;
        (std::mem::replace(&mut self.health, health) != health).then_some(health)
    }

    /// The rules have changed: the health stays, counting goes on under the new ones.
    ///
    /// Returns the new health if it changes: without a check a backend is up.
    pub fn reconfigure(&mut self, rules: Rules) -> Option<Health> {
        let had_check = std::mem::replace(&mut self.rules, rules).active;
        if !rules.active && had_check && self.health == Health::Down {
            self.bring_up(None);
            return Some(Health::Up);
        }
        if rules.active && !had_check {
            self.proved = true;
            self.failures = 0;
            self.successes = 0;
        }
        None
    }

    /// A check has ended. Returns the new health if it changes.
    pub fn on_result(&mut self, now: Instant, outcome: Outcome) -> Option<Health> {
        match outcome {
            Outcome::Inconclusive => None,
            Outcome::Success => {
                let first = !std::mem::replace(&mut self.proved, true);
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                let enough = first || self.successes >= self.rules.rise;
                if self.health == Health::Up || !enough || self.hold.holds(now) {
                    return None;
                }
                self.bring_up(Some(now));
                Some(Health::Up)
            }
            Outcome::Failure => {
                self.proved = true;
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                self.judge(now)
            }
        }
    }

    /// `count` real connections failed. Returns the new health if it changes.
    ///
    /// A down backend gets no new connections: what is still told of it is of
    /// connections from before, and ignored.
    pub fn on_sign(&mut self, now: Instant, sign: Sign, count: u32) -> Option<Health> {
        if !self.counts(sign) || self.health == Health::Down {
            return None;
        }
        let window = self.rules.window();
        match sign {
            Sign::Refused => self.refused.add(now, window, count),
            Sign::Unanswered => self.unanswered.add(now, window, count),
        }
        self.judge(now)
    }

    /// Time has passed, see [`Self::timer`]. Returns the new health if it changes.
    pub fn on_timer(&mut self, now: Instant) -> Option<Health> {
        if self.timer()? > now {
            return None;
        }
        self.bring_up(Some(now));
        Some(Health::Up)
    }

    /// When [`Self::on_timer`] has something to do: a backend without a check is
    /// down, and its hold ends.
    pub fn timer(&self) -> Option<Instant> {
        if self.rules.active || self.health == Health::Up {
            return None;
        }
        self.hold.until
    }

    /// When the check after one that began at `started` and has ended by `now` is
    /// due; `None` without a check. Never later than the interval says, and up to
    /// a sixteenth earlier, so that checks that began together drift apart.
    pub fn next_check(&mut self, now: Instant, started: Instant) -> Option<Instant> {
        let period = self.period(now)?;
        Some((started + self.jitter.shorten(period)).max(now))
    }

    /// When the check that a sign sets off is due: now, but not sooner than a
    /// quarter of the fast interval after the one that began at `started`.
    pub fn urgent_check(&self, now: Instant, started: Option<Instant>) -> Option<Instant> {
        if !self.rules.active {
            return None;
        }
        let earliest = started.map(|at| at + self.rules.fast_interval / 4);
        Some(earliest.map_or(now, |at| at.max(now)))
    }

    /// Whether signs of this kind are counted.
    pub fn counts(&self, sign: Sign) -> bool {
        match sign {
            Sign::Refused => self.rules.refused,
            Sign::Unanswered => self.rules.unanswered,
        }
    }

    /// Up or down.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Failed checks in a row, up to the last result.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Successful checks in a row, up to the last result.
    pub fn successes(&self) -> u32 {
        self.successes
    }

    /// What took the backend down the last time.
    pub fn down_by(&self) -> Points {
        self.down_by
    }

    /// The time to the next check; `None` without a check.
    pub fn period(&self, now: Instant) -> Option<Duration> {
        if !self.rules.active {
            return None;
        }
        Some(if self.settled(now) {
            self.rules.interval
        } else {
            self.rules.fast_interval
        })
    }

    fn settled(&self, now: Instant) -> bool {
        match self.health {
            Health::Up => self.points(now) == Points::default(),
            Health::Down => self.failures > 0 || self.hold.holds(now),
        }
    }

    fn points(&self, now: Instant) -> Points {
        let window = self.rules.window();
        Points {
            checks: self.failures,
            refused: self.refused.count(now, window),
            unanswered: self.unanswered.count(now, window),
        }
    }

    fn judge(&mut self, now: Instant) -> Option<Health> {
        if self.health == Health::Down {
            return None;
        }
        let points = self.points(now);
        let unanswered = if self.rules.active {
            points.unanswered.min(self.rules.fall - 1)
        } else {
            points.unanswered
        };
        let sum = points
            .checks
            .saturating_add(points.refused)
            .saturating_add(unanswered);
        if sum < self.rules.fall {
            return None;
        }
        self.health = Health::Down;
        self.down_by = points;
        self.successes = 0;
        self.refused.clear();
        self.unanswered.clear();
        if points.checks == 0 {
            self.hold.begin(now, self.rules.active);
        } else {
            self.hold = Hold::default();
        }
        Some(Health::Down)
    }

    fn bring_up(&mut self, now: Option<Instant>) {
        self.health = Health::Up;
        self.failures = 0;
        self.refused.clear();
        self.unanswered.clear();
        self.hold.end(now);
    }
}

/// Keeps a backend down that signs alone took down again and again.
#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    until: Option<Instant>,
    length: Duration,
    ended: Option<Instant>,
}

impl Hold {
    fn begin(&mut self, now: Instant, active: bool) {
        let repeated = self
            .ended
            .is_some_and(|at| now.saturating_duration_since(at) < REPEAT);
        self.length = if repeated {
            (self.length * 2).clamp(FIRST_HOLD, LONGEST_HOLD)
        } else if active {
            Duration::ZERO
        } else {
            FIRST_HOLD
        };
        self.until = Some(now + self.length);
        self.ended = None;
    }

    fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn end(&mut self, now: Option<Instant>) {
        self.ended = self.until.take().and(now);
    }
}

/// Counts what happened within the last while.
#[derive(Clone, Debug, Default)]
struct Window {
    entries: VecDeque<(Instant, u32)>,
}

/// Moments that a window tells apart.
const MOMENTS: usize = 64;

impl Window {
    fn add(&mut self, now: Instant, length: Duration, count: u32) {
        while self.entries.front().is_some_and(|e| old(e.0, now, length)) {
            self.entries.pop_front();
        }
        // The newest moment takes the rest when there are too many: memory stays
        // bounded, and nothing that counts is lost.
        let full = self.entries.len() >= MOMENTS;
        match self.entries.back_mut() {
            Some(last) if full || last.0 == now => {
                last.0 = now;
                last.1 = last.1.saturating_add(count);
            }
            _ => self.entries.push_back((now, count)),
        }
    }

    fn count(&self, now: Instant, length: Duration) -> u32 {
        self.entries
            .iter()
            .filter(|e| !old(e.0, now, length))
            .fold(0, |sum, e| sum.saturating_add(e.1))
    }

    fn clear(&mut self) {
        self.entries.clear();
    }
}

fn old(at: Instant, now: Instant, length: Duration) -> bool {
    now.saturating_duration_since(at) >= length
}

/// A small generator (splitmix64) whose numbers shorten periods.
#[derive(Clone, Debug)]
struct Jitter {
    state: u64,
    first: bool,
}

impl Jitter {
    fn new(state: u64) -> Self {
        Self { state, first: true }
    }

    /// Up to a sixteenth off; the first time up to a half, so that backends that
    /// were added together part at once.
    fn shorten(&mut self, period: Duration) -> Duration {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let most = if std::mem::take(&mut self.first) {
            period / 2
        } else {
            period / 16
        };
        let part = (z >> 40) as u32;
        period - mul_fraction(most, part)
    }
}

/// `part` / 2^24 of a duration.
fn mul_fraction(whole: Duration, part: u32) -> Duration {
    let nanos = (whole.as_nanos().min(u128::from(u64::MAX)) * u128::from(part)) >> 24;
    Duration::from_nanos(nanos as u64)
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
