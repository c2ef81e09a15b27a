//! The scheduler with simulated checks, in simulated time.

use super::probe::Report;
use super::schedule::Schedule;
use super::*;
use crate::model::CheckKind;
use futures::FutureExt;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const MS: Duration = Duration::from_millis(1);

/// What the simulated servers do and what was asked of them.
#[derive(Default)]
struct World {
    broken: Mutex<HashSet<BackendName>>,
    takes: Mutex<Duration>,
    asked: Mutex<HashMap<BackendName, Vec<tokio::time::Instant>>>,
    running: Mutex<(usize, usize)>,
}

impl World {
    fn count(&self, name: &BackendName) -> usize {
        self.asked.lock().unwrap().get(name).map_or(0, Vec::len)
    }

    fn set_broken(&self, name: &BackendName, broken: bool) {
        let mut set = self.broken.lock().unwrap();
        if broken {
            set.insert(name.clone());
        } else {
            set.remove(name);
        }
    }
}

struct Running(Arc<World>);

impl Running {
    fn new(world: &Arc<World>) -> Self {
        let mut running = world.running.lock().unwrap();
        running.0 += 1;
        running.1 = running.1.max(running.0);
        Self(Arc::clone(world))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.lock().unwrap().0 -= 1;
    }
}

fn start(running: usize) -> (Arc<World>, ProberHandle, Verdicts) {
    let world = Arc::new(World::default());
    let (prober, handle, verdicts) = Prober::new(Limits { running });
    let theirs = Arc::clone(&world);
    let probe = Box::new(move |target: Arc<Target>| {
        let world = Arc::clone(&theirs);
        async move {
            let _running = Running::new(&world);
            let now = tokio::time::Instant::now();
            let takes = *world.takes.lock().unwrap();
            world
                .asked
                .lock()
                .unwrap()
                .entry(target.name.clone())
                .or_default()
                .push(now);
            sleep(takes).await;
            let broken = world.broken.lock().unwrap().contains(&target.name);
            Report {
                outcome: if broken {
                    Outcome::Failure
                } else {
                    Outcome::Success
                },
                text: if broken { "broken" } else { "fine" }.into(),
                duration: takes,
            }
        }
        .boxed()
    });
    tokio::spawn(Schedule::new(prober.shared, prober.limits, probe).run());
    (world, handle, verdicts)
}

fn name(n: usize) -> BackendName {
    BackendName {
        pool: "web".into(),
        backend: format!("s{n}").into(),
    }
}

fn target(n: usize) -> Target {
    Target {
        name: name(n),
        address: SocketAddr::from(([192, 0, 2, 1], n as u16)),
        check: Check {
            kind: CheckKind::Tcp,
            interval: 1000 * MS,
            fast_interval: 100 * MS,
            timeout: 500 * MS,
            fall: 3,
            rise: 2,
            port: None,
            tls: false,
            as_requests: true,
        },
        passive: Passive {
            refused: true,
            unanswered: Some(1000 * MS),
        },
        wire: Wire::default(),
    }
}

fn unchecked(n: usize) -> Target {
    let mut target = target(n);
    target.check.kind = CheckKind::None;
    target
}

/// Reads verdicts until `name` has that health.
async fn until(verdicts: &mut Verdicts, name: &BackendName, health: Health) -> Verdict {
    let wait = async {
        loop {
            let found = verdicts.recv().await;
            if let Some(v) = found
                .into_iter()
                .find(|v| v.name == *name && v.health == health)
            {
                return v;
            }
        }
    };
    timeout(Duration::from_secs(600), wait)
        .await
        .expect("no such verdict")
}

#[tokio::test(start_paused = true)]
async fn a_start_takes_one_check_and_a_death_three() {
    let (world, handle, mut verdicts) = start(10);
    let begin = tokio::time::Instant::now();
    handle.configure(vec![target(1), target(2)]);
    assert_eq!(handle.status(&name(1)), None);
    let up = until(&mut verdicts, &name(1), Health::Up).await;
    assert_eq!(&*up.reason, "fine");
    assert!(begin.elapsed() <= 5 * MS, "{:?}", begin.elapsed());

    sleep(5000 * MS).await;
    world.set_broken(&name(1), true);
    let died = tokio::time::Instant::now();
    let down = until(&mut verdicts, &name(1), Health::Down).await;
    assert_eq!(&*down.reason, "broken (3 checks in a row)");
    assert!(died.elapsed() <= 1210 * MS, "{:?}", died.elapsed());

    sleep(5000 * MS).await;
    world.set_broken(&name(1), false);
    let fixed = tokio::time::Instant::now();
    until(&mut verdicts, &name(1), Health::Up).await;
    assert!(fixed.elapsed() <= 1110 * MS, "{:?}", fixed.elapsed());

    let status = &handle.snapshot()[&name(1)];
    assert_eq!(status.health, Health::Up);
    assert_eq!(status.last.as_deref(), Some("fine"));
    assert_eq!(status.checks, world.count(&name(1)) as u64);
    assert!(status.failed_checks >= 3 && status.failed_checks < status.checks);
}

#[tokio::test(start_paused = true)]
async fn settled_backends_are_checked_once_per_interval() {
    let (world, handle, _verdicts) = start(10);
    handle.configure(vec![target(1)]);
    sleep(100_000 * MS).await;
    let count = world.count(&name(1));
    assert!((100..=110).contains(&count), "{count} checks in 100 s");
}

#[tokio::test(start_paused = true)]
async fn refused_connections_take_it_down_at_once() {
    let (world, handle, mut verdicts) = start(10);
    handle.configure(vec![target(1)]);
    until(&mut verdicts, &name(1), Health::Up).await;
    sleep(3500 * MS).await;
    let before = world.count(&name(1));
    handle.sign(&name(1), Sign::Refused, 1);
    sleep(2 * MS).await;
    assert_eq!(world.count(&name(1)), before + 1, "checked at once");
    handle.sign(&name(1), Sign::Refused, 1);
    handle.sign(&name(1), Sign::Refused, 1);
    handle.sign(&name(9), Sign::Refused, 1);
    let down = until(&mut verdicts, &name(1), Health::Down).await;
    assert!(down.reason.contains("3 refused"), "{}", down.reason);
    let started = tokio::time::Instant::now();
    until(&mut verdicts, &name(1), Health::Up).await;
    assert!(started.elapsed() <= 210 * MS, "{:?}", started.elapsed());
    assert_eq!(handle.status(&name(1)).unwrap().refused, 3);
    assert_eq!(handle.status(&name(9)), None);
}

#[tokio::test(start_paused = true)]
async fn a_dead_server_is_found_by_the_checks_that_signs_set_off() {
    let (world, handle, mut verdicts) = start(10);
    handle.configure(vec![target(1)]);
    until(&mut verdicts, &name(1), Health::Up).await;
    sleep(3500 * MS).await;
    world.set_broken(&name(1), true);
    handle.sign(&name(1), Sign::Unanswered, 5);
    let began = tokio::time::Instant::now();
    let down = until(&mut verdicts, &name(1), Health::Down).await;
    assert!(began.elapsed() <= 2 * MS, "{:?}", began.elapsed());
    assert!(
        down.reason.contains("5 real connections"),
        "{}",
        down.reason
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_check_signs_and_time_decide() {
    let (world, handle, mut verdicts) = start(10);
    handle.configure(vec![unchecked(1)]);
    let up = until(&mut verdicts, &name(1), Health::Up).await;
    assert_eq!(&*up.reason, "no check");
    handle.sign(&name(1), Sign::Refused, 3);
    until(&mut verdicts, &name(1), Health::Down).await;
    let began = tokio::time::Instant::now();
    until(&mut verdicts, &name(1), Health::Up).await;
    let took = began.elapsed();
    assert!(took >= health::FIRST_HOLD - 2 * MS && took <= health::FIRST_HOLD + 5 * MS);
    assert_eq!(world.count(&name(1)), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_what_the_tables_say() {
    let (world, handle, mut verdicts) = start(10);
    world.set_broken(&name(1), true);
    handle.seed(&name(1), Health::Up);
    handle.seed(&name(2), Health::Down);
    handle.configure(vec![target(1), target(2), target(3)]);
    let first: BTreeMap<_, _> = verdicts
        .recv()
        .await
        .into_iter()
        .map(|v| (v.name, v.health))
        .collect();
    assert_eq!(first[&name(1)], Health::Up);
    assert_eq!(first[&name(2)], Health::Down);
    assert_eq!(first[&name(3)], Health::Down);
    until(&mut verdicts, &name(1), Health::Down).await;
    assert_eq!(handle.status(&name(1)).unwrap().failed_checks, 3);
}

#[tokio::test(start_paused = true)]
async fn a_reload_touches_only_what_changed() {
    let (world, handle, mut verdicts) = start(10);
    handle.configure(vec![target(1), target(2), target(3), target(4)]);
    sleep(5000 * MS).await;
    verdicts.take();
    let since = handle.status(&name(1)).unwrap().since;
    let mut other_check = target(2);
    other_check.check.interval = 5000 * MS;
    let mut other_server = target(3);
    other_server.address = "198.51.100.1:80".parse().unwrap();
    world.set_broken(&name(3), true);
    let removed = world.count(&name(4));
    handle.configure(vec![target(1), other_check, other_server, unchecked(5)]);
    sleep(20 * MS).await;
    let told: BTreeMap<_, _> = verdicts
        .take()
        .into_iter()
        .map(|v| (v.name, v.health))
        .collect();
    assert_eq!(
        told,
        BTreeMap::from([(name(3), Health::Down), (name(5), Health::Up)])
    );
    let snapshot = handle.snapshot();
    assert_eq!(
        snapshot.keys().cloned().collect::<Vec<_>>(),
        [name(1), name(2), name(3), name(5)]
    );
    assert_eq!(snapshot[&name(1)].since, since);
    assert_eq!(snapshot[&name(2)].health, Health::Up);
    let before = world.count(&name(2));
    sleep(20_000 * MS).await;
    let checks = world.count(&name(2)) - before;
    assert!((4..=5).contains(&checks), "{checks} checks in 20 s");
    assert_eq!(world.count(&name(4)), removed, "checked after its removal");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_is_replaced_while_it_runs_does_not_count() {
    let (world, handle, mut verdicts) = start(10);
    *world.takes.lock().unwrap() = 50 * MS;
    handle.configure(vec![target(1)]);
    sleep(10 * MS).await;
    let mut changed = target(1);
    changed.check.port = Some(81);
    handle.configure(vec![changed]);
    until(&mut verdicts, &name(1), Health::Up).await;
    assert_eq!(world.count(&name(1)), 2);
    assert_eq!(handle.status(&name(1)).unwrap().checks, 1);
    handle.configure(vec![]);
    sleep(2000 * MS).await;
    assert_eq!(world.running.lock().unwrap().0, 0);
    assert!(handle.snapshot().is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_checks_run_than_allowed_and_none_starves() {
    let (world, handle, _verdicts) = start(5);
    *world.takes.lock().unwrap() = 10 * MS;
    handle.configure((0..50).map(target).collect());
    sleep(20_000 * MS).await;
    assert_eq!(world.running.lock().unwrap().1, 5);
    for n in 0..50 {
        let count = world.count(&name(n));
        assert!(count >= 19, "{count} checks of {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_backends() {
    let (world, handle, mut verdicts) = start(4096);
    *world.takes.lock().unwrap() = 5 * MS;
    let targets: Vec<_> = (0..10_000).map(target).collect();
    handle.configure(targets.clone());
    sleep(1100 * MS).await;
    let up = verdicts.take();
    assert_eq!(up.len(), 10_000);
    assert!(up.iter().all(|v| v.health == Health::Up));
    sleep(5000 * MS).await;
    let mut starts: Vec<_> = world
        .asked
        .lock()
        .unwrap()
        .values()
        .flat_map(|v| v.iter().copied())
        .collect();
    starts.sort();
    let end = tokio::time::Instant::now();
    let recent: Vec<_> = starts
        .into_iter()
        .filter(|at| end - *at < 1000 * MS)
        .collect();
    assert!((9_000..13_000).contains(&recent.len()), "{}", recent.len());
    let most = recent
        .iter()
        .step_by(100)
        .map(|at| {
            recent
                .iter()
                .filter(|b| **b >= *at && **b - *at < 10 * MS)
                .count()
        })
        .max();
    assert!(most < Some(400), "a burst of {most:?} checks in 10 ms");
    world.set_broken(&name(77), true);
    until(&mut verdicts, &name(77), Health::Down).await;
    assert!(verdicts.take().is_empty(), "only the broken one changed");
}
