//! Limits and the queue: order, length, timeout, and that no place is ever lost.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::{Spec, at};
use super::*;
use crate::model::http::{HttpBalance, Observe, Queue as QueueLimits};

fn limits(length: usize, timeout: Duration) -> PoolHttp {
    PoolHttp {
        queue: QueueLimits { length, timeout },
        ..http()
    }
}

/// A session that is bound to a backend.
fn to(view: &PoolView, name: &str) -> Affinity {
    Affinity::of(Wish::Session(Session {
        targets: [Target::Backend(at(view, name) as u32)]
            .into_iter()
            .collect(),
        key: SessionKey::Number(1),
        force: false,
    }))
}

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Lease, NoBackend>> + 'a>>;

fn poll(future: &mut Waiting<'_>) -> Poll<Result<Lease, NoBackend>> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

fn start<'a>(view: &'a Arc<PoolView>, affinity: &'a Affinity) -> Waiting<'a> {
    let mut future: Waiting<'a> = Box::pin(acquire(view, affinity, client(1), &[]));
    assert!(poll(&mut future).is_pending());
    future
}

fn ready(future: &mut Waiting<'_>) -> Option<Result<Lease, NoBackend>> {
    match poll(future) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn first_come_first_served() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let view = Spec("a:max=2").view(limits(10, Duration::from_secs(9)));
    let anybody = Affinity::default();
    let (one, two) = (now(&view, &[]).unwrap(), now(&view, &[]).unwrap());
    let mut waiting: Vec<_> = (0..4).map(|_| start(&view, &anybody)).collect();
    assert_eq!(view.live.queue.len(), 4);
    assert!(waiting.iter_mut().all(|w| ready(w).is_none()));
    drop(one);
    assert!(ready(&mut waiting[1]).is_none());
    let first = ready(&mut waiting[0]).unwrap().unwrap();
    assert!(first.queued().is_some());
    assert_eq!(two.queued(), None);
    // The third gives up, and comes no more into it.
    drop(waiting.remove(2));
    drop(first);
    assert!(ready(&mut waiting[2]).is_none());
    drop(ready(&mut waiting[1]).unwrap().unwrap());
    drop(ready(&mut waiting[2]).unwrap().unwrap());
    drop(two);
    drop(waiting);
    assert_eq!(view.backends[0].live.in_flight(), 0);
    assert_eq!(view.live.queue.waited.load(Relaxed), 4);
}

#[test]
fn who_was_granted_and_gives_up_passes_it_on() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let view = Spec("a:max=1").view(limits(10, Duration::from_secs(9)));
    let anybody = Affinity::default();
    let held = now(&view, &[]).unwrap();
    let granted = start(&view, &anybody);
    let mut next = start(&view, &anybody);
    drop(held);
    assert_eq!(view.backends[0].live.in_flight(), 1, "it has it, unseen");
    drop(granted);
    assert!(ready(&mut next).unwrap().is_ok());
    drop(next);
    assert_eq!(view.backends[0].live.in_flight(), 0);
    assert!(view.live.queue.is_empty());
}

#[test]
fn nobody_overtakes_and_nobody_waits_for_others() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let view = Spec("a:max=1 b:max=1 c:max=1,drain").view(limits(10, Duration::from_secs(9)));
    let (to_a, to_b, to_c) = (to(&view, "a"), to(&view, "b"), to(&view, "c"));
    let a = bound(&view, &to_a, &[]).unwrap();
    let mut waits_for_a = start(&view, &to_a);
    // Others go on as long as their backend is not the one.
    let b = bound(&view, &to_b, &[]).unwrap();
    let c = bound(&view, &to_c, &[]).unwrap();
    let unbound = Affinity::default();
    let mut anybody = start(&view, &unbound);
    let mut waits_for_b = start(&view, &to_b);
    drop(c);
    assert!(ready(&mut anybody).is_none(), "c is for its own sessions");
    drop(b);
    assert!(ready(&mut waits_for_b).is_none(), "anybody came first");
    let b = ready(&mut anybody).unwrap().unwrap();
    assert_eq!(&*b.backend().name, "b");
    drop(a);
    assert_eq!(ready(&mut waits_for_a).unwrap().unwrap().index(), 0);
    drop(b);
    assert_eq!(ready(&mut waits_for_b).unwrap().unwrap().index(), 1);
}

#[test]
fn its_length_is_bounded() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let view = Spec("a:max=1 b:max=1,drain").view(limits(2, Duration::from_secs(9)));
    let held = now(&view, &[]).unwrap();
    let anybody = Affinity::default();
    let waiting: Vec<_> = (0..2).map(|_| start(&view, &anybody)).collect();
    assert_eq!(now(&view, &[]).unwrap_err(), NoBackend::QueueFull);
    // Who needs no queue is not kept out by a full one.
    assert!(bound(&view, &to(&view, "b"), &[]).is_ok());
    assert_eq!(view.live.queue.len(), 2);
    assert_eq!(view.live.queue.full.load(Relaxed), 1);
    drop((waiting, held));
    assert_eq!(view.backends[0].live.in_flight(), 0);
    let none = Spec("a:max=0").view(limits(0, Duration::from_secs(9)));
    assert_eq!(now(&none, &[]).unwrap_err(), NoBackend::QueueFull);
}

#[test]
fn its_time_is_bounded() {
    let view = Spec("a:max=1").view(limits(10, Duration::from_secs(3)));
    let held = now(&view, &[]).unwrap();
    runtime().block_on(async {
        let since = tokio::time::Instant::now();
        let result = acquire(&view, &Affinity::default(), client(1), &[]).await;
        assert_eq!(result.unwrap_err(), NoBackend::QueueTimeout);
        let waited = since.elapsed();
        assert!(waited >= Duration::from_secs(3) && waited < Duration::from_secs(4));
    });
    assert_eq!(view.live.queue.timeouts.load(Relaxed), 1);
    assert!(view.live.queue.is_empty());
    drop(held);
    assert!(now(&view, &[]).is_ok());
}

#[test]
fn an_ejection_sends_those_who_wait_elsewhere() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let view = Spec("a:max=1 b:p=1").view(PoolHttp {
        observe: Some(Observe {
            failures: 1,
            status: false,
            ejection: Duration::from_secs(60),
            max_ejection: Duration::from_secs(60),
        }),
        ..limits(10, Duration::from_secs(9))
    });
    let held = now(&view, &[]).unwrap();
    let (anybody, to_a) = (Affinity::default(), to(&view, "a"));
    let (mut one, mut two) = (start(&view, &anybody), start(&view, &to_a));
    held.report(Outcome::Broken);
    for waiting in [&mut one, &mut two] {
        assert_eq!(ready(waiting).unwrap().unwrap().index(), 1);
    }
    drop((one, two, held));
    assert!(view.live.queue.is_empty());
    assert!(view.backends.iter().all(|b| b.live.in_flight() == 0));
}

#[test]
fn a_new_view_shares_the_queue() {
    let runtime = runtime();
    let _inside = runtime.enter();
    let http = limits(10, Duration::from_secs(9));
    let old = Spec("a b:max=1").view(http.clone());
    let to_b = to(&old, "b");
    let held = bound(&old, &to_b, &[]).unwrap();
    let mut early = start(&old, &to_b);
    // In another order, and with another limit.
    let instant = std::time::Instant::now();
    let new = Spec("b:max=2 a").view_after(http, Some(&old), instant);
    let to_b = to(&new, "b");
    // There is a place by the new limit, and by the old one none: the one that came first
    // stays first by its own view, and does not keep the new one from its place for ever.
    let mut late: Waiting<'_> = Box::pin(acquire(&new, &to_b, client(1), &[]));
    let _ = poll(&mut late);
    drop(held);
    let first = ready(&mut early).unwrap().unwrap();
    assert_eq!(first.index(), 1);
    drop(first);
    assert_eq!(ready(&mut late).unwrap().unwrap().index(), 0);
    drop(late);
    assert_eq!(new.backends[0].live.in_flight(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Come(Option<usize>),
    Look(prop::sample::Index),
    GiveUp(prop::sample::Index),
    Leave(prop::sample::Index),
    Fail(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::option::of(0usize..3).prop_map(Step::Come),
        3 => any::<prop::sample::Index>().prop_map(Step::Look),
        2 => any::<prop::sample::Index>().prop_map(Step::GiveUp),
        3 => any::<prop::sample::Index>().prop_map(Step::Leave),
        1 => any::<prop::sample::Index>().prop_map(Step::Fail),
    ]
}

proptest! {
    /// Whatever comes, looks, gives up and leaves in whatever order: limits hold, no place
    /// is free while somebody waits for it, and at the end everything is as it was.
    #[test]
    fn places_are_never_lost(
        steps in prop::collection::vec(step(), 0..120), limit in prop::collection::vec(0u32..3, 3),
        balance in prop::sample::select(vec![HttpBalance::RoundRobin, HttpBalance::LeastConnections, HttpBalance::PowerOfTwo]),
    ) {
        let runtime = runtime();
        let _inside = runtime.enter();
        let spec = format!("a:max={} b:max={} c:max={}", limit[0], limit[1], limit[2]);
        let view = Spec(&spec).view(PoolHttp { balance, ..limits(6, Duration::from_secs(9)) });
        let affinities: Vec<Affinity> = ["a", "b", "c"].iter().map(|n| to(&view, n)).collect();
        let anybody = Affinity::default();
        let mut waiting: Vec<(Option<usize>, Waiting<'_>)> = Vec::new();
        let mut held: Vec<Lease> = Vec::new();
        for step in steps {
            match step {
                Step::Come(whom) => {
                    let affinity = whom.map_or(&anybody, |i| &affinities[i]);
                    let mut future: Waiting<'_> = Box::pin(acquire(&view, affinity, client(1), &[]));
                    match ready(&mut future) {
                        Some(Ok(lease)) => held.push(lease),
                        Some(Err(error)) => prop_assert_eq!(error, NoBackend::QueueFull),
                        None => waiting.push((whom, future)),
                    }
                }
                Step::Look(i) if !waiting.is_empty() => {
                    let i = i.index(waiting.len());
                    if let Some(result) = ready(&mut waiting[i].1) {
                        let (whom, _) = waiting.remove(i);
                        let lease = result.unwrap();
                        prop_assert!(whom.is_none_or(|w| w == lease.index()));
                        held.push(lease);
                    }
                }
                Step::GiveUp(i) if !waiting.is_empty() => {
                    drop(waiting.remove(i.index(waiting.len())));
                }
                Step::Leave(i) if !held.is_empty() => {
                    drop(held.remove(i.index(held.len())));
                }
                Step::Fail(i) if !held.is_empty() => {
                    held[i.index(held.len())].report(Outcome::ClientAborted);
                    view.live.queue.reconsider();
                }
                _ => {}
            }
            let in_flight: Vec<u32> = view.backends.iter().map(|b| b.live.in_flight()).collect();
            prop_assert!(in_flight.iter().zip(&limit).all(|(n, max)| n <= max));
            let granted = in_flight.iter().sum::<u32>() as usize - held.len();
            prop_assert_eq!(view.live.queue.len() + granted, waiting.len());
            // Nobody is left waiting for what is free.
            let free = |i: usize| in_flight[i] < limit[i];
            let any_free = (0..3).any(free);
            let mut could = 0;
            for (whom, _) in &waiting {
                could += usize::from(whom.map_or(any_free, free));
            }
            prop_assert!(could <= granted, "{} could, {} granted", could, granted);
        }
        drop(waiting);
        drop(held);
        prop_assert!(view.live.queue.is_empty());
        prop_assert!(view.backends.iter().all(|b| b.live.in_flight() == 0));
        // And the queue remembers nobody.
        prop_assert_eq!(view.live.queue.granted(), 0);
    }
}

/// Threads with runtimes of their own, tasks that mostly give up at random, and every fourth
/// time do not: no limit is passed, no place is lost, nobody is forgotten. How many of those
/// with little patience get a place is the scheduler's affair.
#[test]
fn threads_share_places() {
    use rand::{Rng, SeedableRng};
    const TASKS: usize = 4 * 24;
    const TURNS: usize = 100;
    const PATIENT: usize = 4;
    let view = &Spec("a:max=3 b:max=2 c:max=1,drain").view(limits(1000, Duration::from_secs(60)));
    static MOST: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    static IN_USE: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    static SERVED: AtomicUsize = AtomicUsize::new(0);
    static GAVE_UP: AtomicUsize = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .unwrap();
                let local = tokio::task::LocalSet::new();
                for task in 0..24 {
                    let view = Arc::clone(view);
                    let mut random = rand::rngs::SmallRng::seed_from_u64(thread * 100 + task);
                    local.spawn_local(async move {
                        for turn in 0..TURNS {
                            let affinity = match random.random_range(0..4) {
                                0 => to(&view, "c"),
                                1 => to(&view, "a"),
                                _ => Affinity::default(),
                            };
                            let acquiring = acquire(&view, &affinity, client(1), &[]);
                            let patience = match turn % PATIENT {
                                0 => None,
                                _ => Some(random.random_range(0..40)),
                            };
                            let lease = tokio::select! {
                                biased;
                                lease = acquiring => lease.unwrap(),
                                () = patience_ends(patience) => {
                                    GAVE_UP.fetch_add(1, SeqCst);
                                    continue;
                                }
                            };
                            let now = IN_USE[lease.index()].fetch_add(1, SeqCst) + 1;
                            MOST[lease.index()].fetch_max(now, SeqCst);
                            yields(random.random_range(0..4)).await;
                            IN_USE[lease.index()].fetch_sub(1, SeqCst);
                            SERVED.fetch_add(1, SeqCst);
                        }
                    });
                }
                runtime.block_on(local);
            });
        }
    });
    for (i, max) in [3, 2, 1].into_iter().enumerate() {
        assert!(MOST[i].load(SeqCst) <= max);
        assert_eq!(view.backends[i].live.in_flight(), 0);
    }
    let (served, gave_up) = (SERVED.load(SeqCst), GAVE_UP.load(SeqCst));
    assert_eq!(served + gave_up, TASKS * TURNS);
    // Who is patient is served in the end: a forgotten one would have met the timeout.
    assert!(
        served >= TASKS * TURNS / PATIENT && gave_up > 0,
        "{served} served, {gave_up} gave up"
    );
    assert!(view.live.queue.is_empty());
    assert_eq!(view.live.queue.granted(), 0);
}

/// After so many yields, or never.
async fn patience_ends(after: Option<usize>) {
    match after {
        Some(times) => yields(times).await,
        None => std::future::pending().await,
    }
}

async fn yields(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}
