use super::*;
use crate::proxy::testing::local;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Wake;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn watched(timer: &Timer) -> Arc<Count> {
    let count = Arc::new(Count::default());
    timer.register(&Context::from_waker(&Waker::from(Arc::clone(&count))));
    count
}

/// With a wheel of its own, that nobody turns but the test.
fn by_hand(test: fn()) {
    let test = move || {
        WHEEL.with(|wheel| wheel.turning.set(true));
        test();
    };
    std::thread::spawn(test)
        .join()
        .expect("the test has failed");
}

fn turn(now: u64) {
    WHEEL.with(|wheel| wheel.turn(now));
}

fn entries() -> usize {
    WHEEL.with(|wheel| wheel.inner.borrow().entries.len())
}

#[test]
fn fires_at_the_deadline_and_not_before() {
    by_hand(|| {
        for deadline in [1, 2, 700, 1023, 1024, 1025, 5000] {
            let timer = Timer::never();
            let count = watched(&timer);
            let start = now();
            timer.set(start + deadline);
            for tick in 1..deadline {
                turn(start + tick);
                assert!(!timer.due());
                assert_eq!(count.0.load(Relaxed), 0, "{tick} of {deadline}");
            }
            turn(start + deadline);
            assert!(timer.due());
            assert_eq!(count.0.load(Relaxed), 1);
        }
    });
}

#[test]
fn later_sooner_cleared_and_dropped() {
    by_hand(|| {
        let timers: Vec<_> = (0..50).map(|_| Timer::never()).collect();
        let counts: Vec<_> = timers.iter().map(watched).collect();
        for (i, timer) in timers.iter().enumerate() {
            timer.set(10);
            match i % 5 {
                0 => timer.set(20),
                1 => timer.set(5),
                2 => timer.clear(),
                3 => timer.set_at_latest(30),
                _ => timer.set_at_latest(3),
            }
        }
        for tick in 1..=20 {
            turn(tick);
            for (i, count) in counts.iter().enumerate() {
                let at = [20, 5, NEVER, 10, 3][i % 5];
                assert_eq!(
                    count.0.load(Relaxed),
                    usize::from(tick >= at),
                    "{i} at {tick}"
                );
            }
        }
        drop(timers);
        let again: Vec<_> = (0..50).map(|_| Timer::after(TICK)).collect();
        let _counts: Vec<_> = again.iter().map(watched).collect();
        assert_eq!(entries(), 50, "entries are used again");
        drop(again);
        WHEEL.with(|wheel| {
            let inner = wheel.inner.borrow();
            assert_eq!((inner.used, inner.hung), (0, 0));
        });
    });
}

#[test]
fn a_standstill_loses_nobody() {
    by_hand(|| {
        let timers: Vec<_> = (1..3000).map(|_| Timer::never()).collect();
        let counts: Vec<_> = timers.iter().map(watched).collect();
        for (i, timer) in timers.iter().enumerate() {
            timer.set(i as u64 + 1);
        }
        turn(1_000_000);
        // Those beyond the wheel's reach hang at its end, which has passed as well.
        assert!(counts.iter().all(|c| c.0.load(Relaxed) == 1));
    });
}

#[test]
fn what_is_not_waited_for_takes_no_entry() {
    by_hand(|| {
        let timer = Timer::after(TICK);
        timer.restart(TICK * 3);
        timer.clear();
        let cx = Context::from_waker(Waker::noop());
        assert!(timer.poll_expired(&cx).is_pending());
        assert!(Timer::at(None).poll_expired(&cx).is_pending());
        assert!(Timer::at(Some(Instant::now())).is_set());
        assert_eq!(entries(), 0);
    });
}

#[test]
fn times_are_rounded_up() {
    for (millis, wanted) in [
        (0, 0),
        (1, 1),
        (49, 1),
        (50, 1),
        (51, 2),
        (1000, 20),
        (1001, 21),
    ] {
        let time = Duration::from_millis(millis);
        assert_eq!(whole(time), wanted, "{millis}");
        assert_eq!(ticks(time), wanted + 2, "{millis}");
    }
    assert_eq!(ticks(Duration::MAX), NEVER / 2);
}

#[test]
fn fires_late_but_never_early() {
    local(async {
        for millis in [1, 50, 100, 120] {
            let began = Instant::now();
            let time = Duration::from_millis(millis);
            assert_eq!(
                within(time, std::future::pending::<()>()).await,
                Err(Elapsed)
            );
            assert!(began.elapsed() >= time, "{millis}");
            let timer = Timer::at(Some(began + 2 * time));
            std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
            assert!(began.elapsed() >= 2 * time, "{millis}");
        }
        assert_eq!(within(TICK, async { 7 }).await, Ok(7));
    });
    // What the first runtime left does not keep a second one from turning.
    local(async {
        let timer = Timer::after(Duration::from_millis(10));
        std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
    });
}

#[test]
fn a_restart_puts_it_off_and_entries_are_used_again() {
    local(async {
        let timer = Timer::after(Duration::from_millis(60));
        let mut rounds = 0;
        let began = Instant::now();
        std::future::poll_fn(|cx| {
            rounds += 1;
            if rounds == 1 {
                assert!(timer.poll_expired(cx).is_pending());
                timer.restart(Duration::from_millis(200));
            }
            timer.poll_expired(cx)
        })
        .await;
        assert!(began.elapsed() >= Duration::from_millis(200));
        drop(timer);
        for _ in 0..100 {
            let timer = Timer::after(Duration::from_secs(5));
            std::future::poll_fn(|cx| {
                assert!(timer.poll_expired(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        assert!(entries() <= 2, "{}", entries());
    });
}

#[test]
fn an_idle_wheel_stands_still_and_turns_again() {
    local(async {
        let turning = || WHEEL.with(|wheel| wheel.turning.get());
        assert_eq!(
            within(TICK, std::future::pending::<()>()).await,
            Err(Elapsed)
        );
        while turning() {
            tokio::time::sleep(TICK).await;
        }
        assert_eq!(entries(), 0);
        let (began, before) = (Instant::now(), now());
        assert_eq!(
            within(TICK, std::future::pending::<()>()).await,
            Err(Elapsed)
        );
        assert!(began.elapsed() >= TICK);
        assert!(now() > before);
    });
}
