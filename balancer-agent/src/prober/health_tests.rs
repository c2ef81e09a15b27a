//! The rules of `health.rs`, one by one, and against a model that keeps the whole
//! history and counts it anew each time.

use super::*;
use Health::{Down, Up};
use Outcome::{Failure, Inconclusive, Success};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

fn rules() -> Rules {
    Rules {
        active: true,
        interval: 1000 * MS,
        fast_interval: 100 * MS,
        fall: 3,
        rise: 2,
        refused: true,
        unanswered: true,
    }
}

fn up(rules: Rules, now: Instant) -> Machine {
    let mut machine = Machine::new(rules, 7);
    if rules.active {
        assert_eq!(machine.on_result(now, Success), Some(Up));
    }
    assert_eq!(machine.health(), Up);
    machine
}

#[test]
fn the_first_success_brings_it_up_and_later_ones_need_rise() {
    let now = Instant::now();
    let mut machine = up(rules(), now);
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_result(now, Failure), Some(Down));
    assert_eq!(machine.down_by().checks, 3);
    assert_eq!(machine.on_result(now, Success), None);
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_result(now, Success), None);
    assert_eq!(machine.on_result(now, Success), Some(Up));
}

#[test]
fn a_first_failure_is_the_first_verdict() {
    let now = Instant::now();
    let mut machine = Machine::new(rules(), 7);
    assert_eq!(machine.health(), Down);
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_result(now, Success), None);
    assert_eq!(machine.on_result(now, Success), Some(Up));
}

#[test]
fn a_success_ends_the_run_of_failures() {
    let now = Instant::now();
    let mut machine = up(rules(), now);
    for _ in 0..5 {
        assert_eq!(machine.on_result(now, Failure), None);
        assert_eq!(machine.on_result(now, Failure), None);
        assert_eq!(machine.on_result(now, Success), None);
    }
}

#[test]
fn what_says_nothing_changes_nothing() {
    let now = Instant::now();
    let mut machine = Machine::new(rules(), 7);
    assert_eq!(machine.on_result(now, Inconclusive), None);
    assert_eq!(machine.on_result(now, Success), Some(Up));
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_result(now, Inconclusive), None);
    assert_eq!(machine.on_result(now, Failure), Some(Down));
}

#[test]
fn a_seeded_backend_stays_up_until_proved_down() {
    let now = Instant::now();
    let mut machine = Machine::new(rules(), 7);
    assert_eq!(machine.seed(Up), Some(Up));
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.seed(Up), None);
    assert_eq!(machine.on_result(now, Failure), Some(Down));

    let mut machine = Machine::new(rules(), 7);
    assert_eq!(machine.seed(Down), None);
    assert_eq!(machine.on_result(now, Success), None, "down needs rise");
    assert_eq!(machine.on_result(now, Success), Some(Up));
}

#[test]
fn signs_and_failed_checks_add_up() {
    let now = Instant::now();
    let mut machine = up(rules(), now);
    assert_eq!(machine.on_sign(now, Sign::Refused, 1), None);
    assert_eq!(machine.on_result(now, Failure), None);
    assert_eq!(machine.on_sign(now, Sign::Refused, 1), Some(Down));
    let points = Points {
        checks: 1,
        refused: 2,
        unanswered: 0,
    };
    assert_eq!(machine.down_by(), points);
}

#[test]
fn a_successful_check_does_not_forgive_signs_but_time_does() {
    let start = Instant::now();
    let mut machine = up(rules(), start);
    assert_eq!(machine.on_sign(start, Sign::Refused, 2), None);
    assert_eq!(machine.on_result(start + 10 * MS, Success), None);
    let mut forgiven = machine.clone();
    assert_eq!(
        machine.on_sign(start + 2999 * MS, Sign::Refused, 1),
        Some(Down)
    );
    assert_eq!(
        forgiven.on_sign(start + 3000 * MS, Sign::Refused, 1),
        None,
        "the window is three intervals"
    );
}

#[test]
fn unanswered_syns_need_a_check_that_agrees() {
    let now = Instant::now();
    let mut machine = up(rules(), now);
    assert_eq!(machine.on_sign(now, Sign::Unanswered, 1000), None);
    assert_eq!(machine.on_result(now, Success), None);
    assert_eq!(machine.on_sign(now, Sign::Unanswered, 1000), None);
    assert_eq!(machine.on_result(now, Failure), Some(Down));

    let mut machine = up(
        Rules {
            active: false,
            ..rules()
        },
        now,
    );
    assert_eq!(machine.on_sign(now, Sign::Unanswered, 3), Some(Down));
}

#[test]
fn signs_that_are_switched_off_do_not_count() {
    let now = Instant::now();
    let mut machine = up(
        Rules {
            refused: false,
            ..rules()
        },
        now,
    );
    assert_eq!(machine.on_sign(now, Sign::Refused, 100), None);
    assert_eq!(machine.period(now), Some(1000 * MS));
}

#[test]
fn repeated_trouble_is_held_down_longer_each_time() {
    let mut now = Instant::now();
    let mut machine = up(rules(), now);
    let mut holds = Vec::new();
    for _ in 0..9 {
        assert_eq!(machine.on_sign(now, Sign::Refused, 3), Some(Down));
        let down = now;
        assert_eq!(machine.on_result(now, Success), None, "rise is 2");
        while machine.on_result(now, Success).is_none() {
            now += 100 * MS;
            assert!(now - down <= LONGEST_HOLD);
        }
        holds.push((now - down).as_millis());
    }
    assert_eq!(
        holds,
        [0, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
    );
    now += REPEAT;
    assert_eq!(machine.on_sign(now, Sign::Refused, 3), Some(Down));
    assert_eq!(machine.on_result(now, Success), None);
    assert_eq!(machine.on_result(now, Success), Some(Up), "forgotten");
}

#[test]
fn without_a_check_time_brings_it_back() {
    let rules = Rules {
        active: false,
        ..rules()
    };
    let mut now = Instant::now();
    let mut machine = up(rules, now);
    assert_eq!(machine.period(now), None);
    assert_eq!(machine.timer(), None);
    for hold in [1, 2, 4] {
        assert_eq!(machine.on_sign(now, Sign::Refused, 3), Some(Down));
        let until = now + Duration::from_secs(hold);
        assert_eq!(machine.timer(), Some(until));
        assert_eq!(machine.on_timer(until - MS), None);
        assert_eq!(machine.on_timer(until), Some(Up));
        now = until;
    }
}

#[test]
fn checks_are_fast_while_results_disagree_with_the_state() {
    let now = Instant::now();
    let (slow, fast) = (Some(1000 * MS), Some(100 * MS));
    let mut machine = Machine::new(rules(), 7);
    assert_eq!(machine.period(now), fast, "unknown");
    machine.on_result(now, Success);
    assert_eq!(machine.period(now), slow, "up");
    machine.on_result(now, Failure);
    assert_eq!(machine.period(now), fast, "failing");
    machine.on_result(now, Failure);
    machine.on_result(now, Failure);
    assert_eq!(machine.period(now), slow, "down");
    machine.on_result(now, Success);
    assert_eq!(machine.period(now), fast, "recovering");
    machine.on_result(now, Success);
    assert_eq!(machine.period(now), slow, "up again");
    machine.on_sign(now, Sign::Refused, 1);
    assert_eq!(machine.period(now), fast, "a sign");
    assert_eq!(machine.period(now + 3000 * MS), slow, "an old sign");
    machine.on_sign(now, Sign::Refused, 2);
    assert_eq!(machine.period(now), fast, "down by signs alone");
}

#[test]
fn checks_are_never_late_and_drift_apart() {
    let now = Instant::now();
    let mut first = Vec::new();
    for seed in 0..1000 {
        let mut machine = up(rules(), now);
        machine.jitter = Jitter::new(seed);
        let next = machine.next_check(now, now).unwrap() - now;
        assert!(next > 499 * MS && next <= 1000 * MS, "{next:?}");
        first.push(next);
        for _ in 0..100 {
            let next = machine.next_check(now, now).unwrap() - now;
            assert!(next > 937 * MS && next <= 1000 * MS, "{next:?}");
        }
        let late = now + 5000 * MS;
        assert_eq!(machine.next_check(late, now), Some(late));
    }
    let early = first.iter().filter(|t| **t < 750 * MS).count();
    assert!((400..600).contains(&early), "{early} of 1000");
}

#[test]
fn a_sign_sets_off_a_check_at_once_but_not_without_end() {
    let now = Instant::now();
    let machine = up(rules(), now);
    assert_eq!(machine.urgent_check(now, None), Some(now));
    let soon = now + 25 * MS;
    assert_eq!(machine.urgent_check(now, Some(now)), Some(soon));
    assert_eq!(machine.urgent_check(now + 60 * MS, Some(now)), {
        Some(now + 60 * MS)
    });
}

#[test]
fn new_rules_keep_the_health() {
    let now = Instant::now();
    let mut machine = up(rules(), now);
    machine.on_result(now, Failure);
    let stricter = Rules { fall: 2, ..rules() };
    assert_eq!(machine.reconfigure(stricter), None);
    assert_eq!(machine.on_result(now, Failure), Some(Down));
    let unchecked = Rules {
        active: false,
        ..rules()
    };
    assert_eq!(machine.reconfigure(unchecked), Some(Up));
    assert_eq!(machine.reconfigure(rules()), None);
    assert_eq!(machine.health(), Up);
    assert_eq!(machine.on_result(now, Failure), None);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Result(Outcome),
    Sign(Sign, u32),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Result(Success)),
        4 => Just(Step::Result(Failure)),
        1 => Just(Step::Result(Inconclusive)),
        3 => (1u32..3).prop_map(|n| Step::Sign(Sign::Refused, n)),
        2 => (1u32..3).prop_map(|n| Step::Sign(Sign::Unanswered, n)),
        4 => (1u64..4000).prop_map(Step::Wait),
    ]
}

/// Keeps everything since the last change, and counts it anew.
struct Model {
    rules: Rules,
    up: bool,
    results: Vec<bool>,
    signs: Vec<(u64, Sign, u32)>,
    ever: bool,
    hold: u64,
    hold_until: u64,
    by_signs: bool,
    recovered: Option<u64>,
}

impl Model {
    fn step(&mut self, now: u64, step: Step) {
        match step {
            Step::Wait(_) | Step::Result(Inconclusive) => return,
            Step::Result(outcome) => self.results.push(outcome == Success),
            Step::Sign(sign, n) if self.up => self.signs.push((now, sign, n)),
            Step::Sign(..) => return,
        }
        let run = |want: bool| {
            self.results
                .iter()
                .rev()
                .take_while(|r| **r == want)
                .count() as u32
        };
        if self.up {
            let of = |kind: Sign| -> u32 {
                let recent = |s: &&(u64, Sign, u32)| {
                    s.1 == kind && Duration::from_millis(now - s.0) < self.rules.window()
                };
                self.signs.iter().filter(recent).map(|s| s.2).sum()
            };
            let unanswered = of(Sign::Unanswered).min(self.rules.fall - 1);
            let failed = run(false);
            if failed + of(Sign::Refused) + unanswered >= self.rules.fall {
                self.up = false;
                self.by_signs = failed == 0;
                let again = self.recovered.is_some_and(|at| now - at < 60_000);
                self.hold = match (self.by_signs, again) {
                    (true, true) => (self.hold * 2).clamp(1000, 60_000),
                    _ => 0,
                };
                self.hold_until = now + self.hold;
                self.recovered = None;
                self.results.clear();
            }
        } else if let Step::Result(Success) = step {
            let need = if self.ever { self.rules.rise } else { 1 };
            if run(true) >= need && now >= self.hold_until {
                self.up = true;
                self.recovered = self.by_signs.then_some(now);
                self.by_signs = false;
                self.signs.clear();
            }
        }
        self.ever |= matches!(step, Step::Result(_));
    }
}

proptest! {
    #[test]
    fn agrees_with_the_model(
        fall in 1u32..5,
        rise in 1u32..5,
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let rules = Rules { fall, rise, ..rules() };
        let start = Instant::now();
        let mut machine = Machine::new(rules, 1);
        let mut model = Model {
            rules, up: false, results: Vec::new(), signs: Vec::new(), ever: false,
            hold: 0, hold_until: 0, by_signs: false, recovered: None,
        };
        let mut now = 0;
        for step in steps {
            let at = start + Duration::from_millis(now);
            let before = machine.health();
            let change = match step {
                Step::Result(outcome) => machine.on_result(at, outcome),
                Step::Sign(sign, n) => machine.on_sign(at, sign, n),
                Step::Wait(ms) => { now += ms; None }
            };
            model.step(now, step);
            prop_assert_eq!(machine.health() == Up, model.up, "after {:?}", step);
            prop_assert_eq!(change, (machine.health() != before).then_some(machine.health()));
        }
    }
}
