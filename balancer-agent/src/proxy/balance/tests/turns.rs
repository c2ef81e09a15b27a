//! Policies: exactness, weights, limits, slow start.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::testing::{Spec, at};
use super::*;
use crate::model::http::HttpBalance;

fn with(balance: HttpBalance) -> PoolHttp {
    PoolHttp { balance, ..http() }
}

fn counts(view: &Arc<PoolView>, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let lease = now(view, &[]).unwrap();
        *counts.entry(lease.backend().name.to_string()).or_default() += 1;
    }
    counts
}

fn pairs(counts: &BTreeMap<String, usize>) -> Vec<(&str, usize)> {
    counts.iter().map(|(k, v)| (&**k, *v)).collect()
}

#[test]
fn round_robin_is_interleaved_by_weight() {
    let view = Spec("a:w=5 b c").view(http());
    let order: String = (0..7)
        .map(|_| now(&view, &[]).unwrap().backend().name.to_string())
        .collect();
    assert_eq!(order, "aabacaa");
    assert_eq!(
        pairs(&counts(&view, 700)),
        [("a", 500), ("b", 100), ("c", 100)]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// All threads together: whole cycles are exact to the request.
    #[test]
    fn round_robin_is_exact_over_threads(
        weights in prop::collection::vec(0u16..8, 1..7), threads in 1usize..6, cycles in 1usize..30,
    ) {
        prop_assume!(weights.iter().any(|&w| w > 0));
        let spec: Vec<String> =
            weights.iter().enumerate().map(|(i, w)| format!("b{i}:w={w}")).collect();
        let view = Spec(&spec.join(" ")).view(http());
        let slots = crate::reconcile::ring::len(&weights) as usize;
        let barrier = std::sync::Barrier::new(threads);
        let totals: Vec<BTreeMap<String, usize>> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| {
                barrier.wait();
                counts(&view, slots * cycles)
            })).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let divisor = weights.iter().map(|&w| usize::from(w)).sum::<usize>() / slots;
        for (i, &w) in weights.iter().enumerate() {
            let name = format!("b{i}");
            let had: usize = totals.iter().filter_map(|t| t.get(&name)).sum();
            prop_assert_eq!(had, threads * cycles * usize::from(w) / divisor);
        }
        prop_assert!(view.backends.iter().all(|b| b.live.in_flight() == 0));
    }
}

#[test]
fn thousand_requests_differ_by_one() {
    for n in 1..=9 {
        let spec: Vec<String> = (0..n).map(|i| format!("b{i}")).collect();
        let counts = counts(&Spec(&spec.join(" ")).view(http()), 1000);
        let (least, most) = (
            counts.values().min().unwrap(),
            counts.values().max().unwrap(),
        );
        assert_eq!(counts.len(), n);
        assert!(most - least <= 1, "{counts:?}");
    }
}

#[test]
fn who_is_out_gets_nothing_and_the_rest_stay_even() {
    let view = Spec("a b:down c d:drain e:stopped f:w=0").view(http());
    assert_eq!(pairs(&counts(&view, 100)), [("a", 50), ("c", 50)]);
}

#[test]
fn a_lower_group_waits_for_its_hour() {
    let spec = "a:p=1 b c:p=2";
    assert_eq!(pairs(&counts(&Spec(spec).view(http()), 4)), [("b", 4)]);
    let spec = "a:p=1 b:down c:p=2";
    assert_eq!(pairs(&counts(&Spec(spec).view(http()), 4)), [("a", 4)]);
    let view = Spec("a:p=1,drain b:down c:p=2").view(http());
    assert_eq!(pairs(&counts(&view, 4)), [("c", 4)]);
}

#[test]
fn full_ones_are_passed_over() {
    let view = Spec("a:max=1 b").view(http());
    let first = now(&view, &[]).unwrap();
    assert_eq!(&*first.backend().name, "a");
    assert_eq!(pairs(&counts(&view, 5)), [("b", 5)]);
    drop(first);
    assert_eq!(pairs(&counts(&view, 4)), [("a", 2), ("b", 2)]);
}

#[test]
fn what_was_tried_comes_last() {
    let view = Spec("a b c").view(http());
    for _ in 0..6 {
        assert_eq!(now(&view, &[0, 2]).unwrap().index(), 1);
    }
    assert!(now(&view, &[0, 1, 2]).is_ok());
    let view = Spec("a b:p=1").view(http());
    assert_eq!(now(&view, &[0]).unwrap().index(), 1, "rather a backup");
    let live = &view.backends[1].live;
    assert_eq!(live.retries.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn least_connections_evens_out() {
    let view = Spec("a:w=2 b c").view(with(HttpBalance::LeastConnections));
    let held: Vec<_> = (0..40).map(|_| now(&view, &[]).unwrap()).collect();
    let at_each: Vec<_> = view.backends.iter().map(|b| b.live.in_flight()).collect();
    assert_eq!(at_each, [20, 10, 10]);
    drop(held);
    let idle = counts(&Spec("a b c").view(with(HttpBalance::LeastConnections)), 30);
    assert_eq!(
        pairs(&idle),
        [("a", 10), ("b", 10), ("c", 10)],
        "no load: in turn"
    );
}

#[test]
fn least_connections_keeps_limits() {
    let view = Spec("a:w=100,max=3 b").view(with(HttpBalance::LeastConnections));
    let held: Vec<_> = (0..10).map(|_| now(&view, &[]).unwrap()).collect();
    assert_eq!(view.backends[0].live.in_flight(), 3);
    assert_eq!(view.backends[1].live.in_flight(), 7);
    drop(held);
}

#[test]
fn two_choices_stay_near_even_by_weight() {
    let view = Spec("a:w=2 b c d:down e:max=5").view(with(HttpBalance::PowerOfTwo));
    let held: Vec<_> = (0..405).map(|_| now(&view, &[]).unwrap()).collect();
    let at = |name| view.backends[at(&view, name)].live.in_flight();
    assert_eq!((at("d"), at("e")), (0, 5));
    for (name, want) in [("a", 200), ("b", 100), ("c", 100)] {
        assert!(at(name).abs_diff(want) < 20, "{name} has {}", at(name));
    }
    drop(held);
    let one = Spec("a").view(with(HttpBalance::PowerOfTwo));
    assert_eq!(pairs(&counts(&one, 3)), [("a", 3)]);
}

#[test]
fn source_is_the_same_for_the_same_client() {
    use futures::FutureExt;
    let view = Spec("a b c d").view(with(HttpBalance::Source));
    let of = |view: &Arc<PoolView>, last| {
        let affinity = Affinity::default();
        let lease = acquire(view, &affinity, client(last), &[]).now_or_never();
        lease.unwrap().unwrap().backend().name.to_string()
    };
    let all: Vec<_> = (0..=255).map(|i| of(&view, i)).collect();
    for (i, name) in all.iter().enumerate() {
        assert_eq!(of(&view, i as u8), *name);
    }
    let without = Spec("a b:down c d").view(with(HttpBalance::Source));
    for (i, name) in all.iter().enumerate() {
        let now = of(&without, i as u8);
        assert!(now == *name || name == "b");
    }
    assert!(
        ["a", "b", "c", "d"]
            .iter()
            .all(|n| all.iter().filter(|a| a == n).count() > 30)
    );
}

fn slow() -> PoolHttp {
    PoolHttp {
        slow_start: Duration::from_secs(1000),
        ..http()
    }
}

#[test]
fn a_share_grows_linearly() {
    let now = Instant::now();
    let before = Spec("a b:down").view_after(slow(), None, now);
    for (gone, want) in [(100, 100), (500, 500), (900, 900), (1000, 1000)] {
        // As if the view had been made when the backend came up, so long ago.
        let Some(then) = now.checked_sub(Duration::from_secs(gone)) else {
            continue; // The machine is younger than that.
        };
        let view = Spec("a b").view_after(slow(), Some(&before), then);
        assert_eq!(view.backends[1].up_since, Some(then));
        let counts = counts(&view, 4000);
        // a's share is 1, b's is gone/1000 of that.
        let b = counts.get("b").copied().unwrap_or(0) as f64;
        let want = 4000.0 * f64::from(want) / (1000.0 + f64::from(want));
        assert!(
            (b - want).abs() < 20.0,
            "{b} after {gone} s, {want} is right"
        );
    }
}

#[test]
fn a_share_grows_for_the_other_policies_too() {
    let now = Instant::now();
    let before = Spec("a b:down").view_after(slow(), None, now);
    let http = PoolHttp {
        balance: HttpBalance::LeastConnections,
        ..slow()
    };
    let view = Spec("a b").view_after(http, Some(&before), now);
    let held: Vec<_> = (0..50).map(|_| super::now(&view, &[]).unwrap()).collect();
    assert_eq!(view.backends[1].live.in_flight(), 0);
    drop(held);
}

#[test]
fn when_all_are_new_nobody_is_spared() {
    let now = Instant::now();
    let down = Spec("a:down b:down").view_after(slow(), None, now);
    let view = Spec("a b").view_after(slow(), Some(&down), now);
    assert_eq!(pairs(&counts(&view, 10)), [("a", 5), ("b", 5)]);
    // At the very start of the agent likewise.
    let view = Spec("a b").view_after(slow(), None, now);
    assert_eq!(view.backends[0].up_since, None);
    assert_eq!(pairs(&counts(&view, 10)), [("a", 5), ("b", 5)]);
}

#[test]
fn a_new_view_takes_over_what_lives() {
    let first = Spec("a b").view(http());
    let lease = now(&first, &[]).unwrap();
    let second = Spec("b a c").view_after(http(), Some(&first), Instant::now());
    assert!(Arc::ptr_eq(&first.live, &second.live));
    assert!(Arc::ptr_eq(
        &first.backends[0].live,
        &second.backends[1].live
    ));
    assert_eq!(second.backends[at(&second, "a")].live.in_flight(), 1);
    assert_eq!(second.backends[at(&second, "c")].live.in_flight(), 0);
    drop(lease);
    assert_eq!(second.backends[at(&second, "a")].live.in_flight(), 0);
    // Another address under the same name is another server.
    let (pool, _) = Spec("a b").pool(http());
    let mut pool = Pool::clone(&pool);
    pool.backends[0].address = "127.0.0.2:1".parse().unwrap();
    let state = |_: &str| (Health::Up, Activation::Active);
    let third = PoolView::new(&Arc::new(pool), Some(&first), 0, &state, Instant::now());
    assert!(!Arc::ptr_eq(
        &first.backends[0].live,
        &third.backends[0].live
    ));
    assert!(Arc::ptr_eq(
        &first.backends[1].live,
        &third.backends[1].live
    ));
}

use crate::model::{Activation, Health, Pool};
