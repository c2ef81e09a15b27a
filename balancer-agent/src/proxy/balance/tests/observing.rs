//! Observed failures: ejection, doubling, trial, return, panic.

use std::time::Duration;

use super::super::choose::{Lenience, Usable};
use super::super::live::Change;
use super::super::testing::Spec;
use super::*;
use crate::model::http::Observe;

const SECOND: u64 = 1_000_000;

fn observe() -> Observe {
    Observe {
        failures: 3,
        status: true,
        ejection: Duration::from_secs(5),
        max_ejection: Duration::from_secs(60),
    }
}

fn backend() -> BackendLive {
    BackendLive::new("a".into(), "127.0.0.1:1".parse().unwrap())
}

fn report(live: &BackendLive, outcome: Outcome, trial: bool, now: u64) -> Change {
    live.report(outcome, Some(&observe()), trial, || now)
}

fn fail(live: &BackendLive, now: u64) -> Change {
    report(live, Outcome::ConnectFailed, false, now)
}

#[test]
fn failures_in_a_row_eject() {
    let live = backend();
    assert_eq!(fail(&live, 1), Change::None);
    assert_eq!(report(&live, Outcome::Broken, false, 1), Change::None);
    assert_eq!(
        report(&live, Outcome::Answered(200), false, 1),
        Change::None
    );
    assert_eq!(fail(&live, 1), Change::None, "the row was broken");
    assert_eq!(
        report(&live, Outcome::ClientAborted, false, 1),
        Change::None
    );
    assert_eq!(
        report(&live, Outcome::Answered(500), false, 1),
        Change::None
    );
    assert_eq!(report(&live, Outcome::TimedOut, false, 1), Change::Ejected);
    assert_eq!(live.ejected_until(), 5 * SECOND + 1);
    assert_eq!(fail(&live, SECOND), Change::None);
    assert_eq!(
        live.ejected_until(),
        5 * SECOND + 1,
        "late ones change nothing"
    );
}

#[test]
fn statuses_count_only_where_wanted() {
    let live = backend();
    let without = Observe {
        status: false,
        failures: 1,
        ..observe()
    };
    let answer = |status| live.report(Outcome::Answered(status), Some(&without), false, || 1);
    for status in [100, 200, 404, 499, 500, 503, 599] {
        assert_eq!(answer(status), Change::None);
    }
    let counted: Vec<u64> = live
        .statuses
        .iter()
        .map(|s| s.load(std::sync::atomic::Ordering::Relaxed))
        .collect();
    assert_eq!(counted, [0, 1, 1, 0, 2, 3]);
    answer(999);
    answer(0);
    let other = live.statuses[0].load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(other, 2);
    assert_eq!(
        live.report(Outcome::ConnectFailed, None, false, || 1),
        Change::None,
        "nobody observes"
    );
    assert_eq!(live.failures(), 1);
}

#[test]
fn times_double_and_end_at_the_longest() {
    let live = backend();
    let mut now = 1;
    (0..3).for_each(|_| {
        fail(&live, now);
    });
    for seconds in [5, 10, 20, 40, 60, 60] {
        assert_eq!(live.ejected_until() - now, seconds * SECOND);
        assert!(
            !live.claim_trial(&observe(), live.ejected_until() - 1),
            "too early"
        );
        now = live.ejected_until();
        assert!(live.claim_trial(&observe(), now));
        assert!(!live.claim_trial(&observe(), now), "one at a time");
        assert_eq!(
            report(&live, Outcome::ConnectFailed, true, now),
            Change::Ejected
        );
    }
}

#[test]
fn a_good_trial_brings_it_back_and_a_bad_day_is_forgotten() {
    let live = backend();
    (0..3).for_each(|_| {
        fail(&live, 1);
    });
    let back = live.ejected_until();
    assert!(live.claim_trial(&observe(), back));
    assert_eq!(
        report(&live, Outcome::Answered(200), false, back),
        Change::None,
        "an old one"
    );
    assert_eq!(
        report(&live, Outcome::Answered(204), true, back),
        Change::Returned
    );
    assert_eq!(live.ejected_until(), 0);
    // Soon after: longer.
    let soon = back + 59 * SECOND;
    (0..3).for_each(|_| {
        fail(&live, soon);
    });
    assert_eq!(live.ejected_until() - soon, 10 * SECOND);
    let back = live.ejected_until();
    assert!(live.claim_trial(&observe(), back));
    assert_eq!(
        report(&live, Outcome::Answered(200), true, back),
        Change::Returned
    );
    // Long after: as the first time.
    let late = back + 61 * SECOND;
    (0..3).for_each(|_| {
        fail(&live, late);
    });
    assert_eq!(live.ejected_until() - late, 5 * SECOND);
}

#[test]
fn a_trial_that_says_nothing_is_made_again() {
    let live = backend();
    (0..3).for_each(|_| {
        fail(&live, 1);
    });
    let back = live.ejected_until();
    assert!(live.claim_trial(&observe(), back));
    assert_eq!(
        report(&live, Outcome::ClientAborted, true, back),
        Change::None
    );
    assert!(live.claim_trial(&observe(), back));
    // One that never reports blocks for the first ejection's time only.
    assert!(!live.claim_trial(&observe(), back + 5 * SECOND - 1));
    assert!(live.claim_trial(&observe(), back + 5 * SECOND));
}

#[test]
fn threads_eject_once() {
    let live = &backend();
    let ejected: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || (0..50).filter(|_| fail(live, 1) == Change::Ejected).count())
            })
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(ejected, 1);
}

fn with(panic_threshold: u8) -> PoolHttp {
    PoolHttp {
        observe: Some(Observe {
            failures: 1,
            ..observe()
        }),
        panic_threshold,
        ..http()
    }
}

fn eject(view: &PoolView, name: &str, now: u64) {
    let live = &view.backends[super::super::testing::at(view, name)].live;
    let change = live.report(Outcome::Broken, view.observe(), false, || now);
    assert_eq!(change, Change::Ejected);
}

#[test]
fn panic_sets_in_below_the_threshold() {
    // Backends, ejected, threshold, panic.
    for (n, out, threshold, panic) in [
        (4, 0, 50, false),
        (4, 2, 50, false),
        (4, 3, 50, true),
        (4, 3, 25, false),
        (4, 4, 25, true),
        (4, 4, 0, false),
        (1, 1, 1, true),
        (3, 1, 100, true),
        (3, 0, 100, false),
    ] {
        let names: Vec<String> = (0..n).map(|i| format!("b{i}")).collect();
        let view = Spec(&names.join(" ")).view(with(threshold));
        names[..out].iter().for_each(|name| eject(&view, name, 1));
        let usable = Usable::at(&view, &[], 2);
        assert_eq!(usable.panics(), panic, "{out} of {n} at {threshold}");
        let open = (0..n).filter(|&i| usable.fresh(i, Lenience::default()));
        assert_eq!(open.count(), if panic { n } else { n - out });
    }
}

#[test]
fn who_is_down_by_checks_does_not_count_for_panic() {
    let view = Spec("a b c:down d:down e:stopped f:drain").view(with(50));
    eject(&view, "a", 1);
    assert!(!Usable::at(&view, &[], 2).panics());
}

#[test]
fn an_ejected_one_is_left_out_until_its_trial() {
    let view = Spec("a b c").view(with(50));
    eject(&view, "b", clock::now());
    for _ in 0..9 {
        assert_ne!(&*now(&view, &[]).unwrap().backend().name, "b");
    }
}

#[test]
fn the_last_resort_is_an_ejected_one_once() {
    let view = Spec("a b:down").view(with(0));
    eject(&view, "a", clock::now());
    assert_eq!(now(&view, &[]).unwrap().index(), 0);
    assert_eq!(now(&view, &[0]).unwrap_err(), NoBackend::NoneUsable);
    // Backups come before.
    let view = Spec("a b:p=1").view(with(0));
    eject(&view, "a", clock::now());
    assert_eq!(now(&view, &[]).unwrap().index(), 1);
}

#[test]
fn a_lease_reports_and_its_trial_is_never_lost() {
    let view = Spec("a b").view(PoolHttp {
        observe: Some(Observe {
            failures: 1,
            ejection: Duration::from_micros(1),
            max_ejection: Duration::from_micros(1),
            status: false,
        }),
        ..http()
    });
    let lease = now(&view, &[1]).unwrap();
    lease.report(Outcome::ConnectFailed);
    drop(lease);
    let live = &view.backends[0].live;
    assert_ne!(live.ejected_until(), 0);
    // Its time passes at once; whoever comes next is the trial. This one says nothing.
    while clock::now() <= live.ejected_until() {}
    drop(now(&view, &[1]).unwrap());
    assert_eq!(live.ejected_until(), 1);
    let trial = now(&view, &[1]).unwrap();
    trial.report(Outcome::Answered(200));
    assert_eq!(live.ejected_until(), 0);
    trial.report(Outcome::Broken);
    assert_ne!(live.ejected_until(), 0, "the body broke off");
}

#[test]
fn retries_have_a_budget() {
    let view = Spec("a b").view(http());
    let few = (0..1000).take_while(|_| view.live.may_retry()).count();
    assert!((10..20).contains(&few), "{few}");
    for _ in 0..100 {
        drop(now(&view, &[]).unwrap());
    }
    let more = (0..1000).take_while(|_| view.live.may_retry()).count();
    assert!((20..30).contains(&more), "{more}");
    let refused = view
        .live
        .retries_refused
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(refused, 2);
}
