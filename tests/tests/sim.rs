//! Sweeps of the session store's simulator: see `balancer_tests::sim`.
//!
//! The small sweep runs always. The large one runs on request, in release:
//!
//! ```text
//! SIM_SEEDS=2000 SIM_STEPS=5000 cargo test --release -p balancer-tests --test sim -- \
//!     large_sweep --ignored --nocapture
//! SIM_SEED=42 SIM_MANAGER=backup1 cargo test -p balancer-tests --test sim -- \
//!     one_seed --ignored --nocapture
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use balancer_agent::session::{Manager, Sabotage};
use balancer_tests::sim::{Counts, Options, Report, run};

/// The managers by name, and whether they are on disk.
const MANAGERS: [(&str, Manager, bool); 5] = [
    ("delta", Manager::Delta, false),
    ("backup1", Manager::Backup { copies: 1 }, false),
    ("backup2", Manager::Backup { copies: 2 }, false),
    ("persistent-delta", Manager::Delta, true),
    ("persistent-backup1", Manager::Backup { copies: 1 }, true),
];

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, found `{text}`")),
        Err(_) => default,
    }
}

fn managers() -> Vec<(&'static str, Manager, bool)> {
    match std::env::var("SIM_MANAGER") {
        Ok(name) => {
            let found: Vec<_> = MANAGERS.into_iter().filter(|m| m.0 == name).collect();
            assert!(!found.is_empty(), "SIM_MANAGER must be one of {MANAGERS:?}");
            found
        }
        Err(_) => MANAGERS.to_vec(),
    }
}

fn options(seed: u64, steps: u64, (_, manager, persistent): (&str, Manager, bool)) -> Options {
    Options {
        seed,
        steps,
        manager,
        persistent,
        replication: None,
        sabotage: Sabotage::None,
        verbose: number("SIM_VERBOSE", 0) != 0,
        session: std::env::var("SIM_SESSION")
            .is_ok()
            .then(|| number("SIM_SESSION", 0) as usize),
    }
}

/// Runs seeds on all cores and prints one line; panics with the first broken promise.
fn sweep(first: u64, seeds: u64, steps: u64, manager: (&'static str, Manager, bool)) -> Report {
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let results: Vec<Result<Report, String>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut sum = Report::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + seeds {
                            return Ok(sum);
                        }
                        let report = run(&options(seed, steps, manager)).inspect_err(|_| {
                            next.store(first + seeds, Ordering::Relaxed);
                        })?;
                        add(&mut sum, &report);
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    let mut sum = Report::default();
    for result in results {
        let report = result.unwrap_or_else(|message| panic!("{}: {message}", manager.0));
        add(&mut sum, &report);
    }
    println!(
        "{:<20} {seeds} seeds from {first}, {} events, {} s simulated, {:.1} s; {} writes \
         acknowledged, {} reads checked, {} nodes lost; {:?}",
        manager.0,
        sum.steps,
        sum.millis / 1000,
        began.elapsed().as_secs_f64(),
        sum.acknowledged,
        sum.checked_reads,
        sum.lost_nodes,
        sum.counts,
    );
    sum
}

fn add(sum: &mut Report, report: &Report) {
    sum.steps += report.steps;
    sum.millis += report.millis;
    sum.acknowledged += report.acknowledged;
    sum.checked_reads += report.checked_reads;
    sum.lost_nodes += report.lost_nodes;
    sum.counts.add(&report.counts);
}

#[test]
fn small_sweep() {
    let mut counts = Counts::default();
    for manager in MANAGERS {
        let sum = sweep(1, 24, 2500, manager);
        assert!(
            sum.acknowledged > 100 && sum.checked_reads > 100 && sum.lost_nodes > 0,
            "{sum:?}"
        );
        counts.add(&sum.counts);
    }
    // A sweep that never gets there shows nothing.
    assert!(
        counts.mended > 0 && counts.handed_over > 0 && counts.gathers > 0 && counts.expired > 0,
        "{counts:?}"
    );
}

#[test]
fn one_seed_is_one_run() {
    for manager in MANAGERS {
        let options = options(7, 1200, manager);
        assert_eq!(run(&options), run(&options));
    }
}

#[test]
#[ignore = "on request: SIM_SEEDS, SIM_STEPS, SIM_FIRST, SIM_MANAGER; in release"]
fn large_sweep() {
    let (seeds, steps) = (number("SIM_SEEDS", 2000), number("SIM_STEPS", 5000));
    for manager in managers() {
        sweep(number("SIM_FIRST", 1), seeds, steps, manager);
    }
}

#[test]
#[ignore = "on request: SIM_SEED, SIM_STEPS, SIM_MANAGER"]
fn one_seed() {
    let (seed, steps) = (number("SIM_SEED", 1), number("SIM_STEPS", 5000));
    for manager in managers() {
        match run(&options(seed, steps, manager)) {
            Ok(report) => println!("{}: {report:?}", manager.0),
            Err(message) => panic!("{}: {message}", manager.0),
        }
    }
}

/// The first of the seeds that finds a planted fault, and how.
fn find(sabotage: Sabotage, seeds: u64, manager: (&str, Manager, bool)) -> Option<(u64, String)> {
    (1..=seeds).find_map(|seed| {
        let mut options = options(seed, 3000, manager);
        options.sabotage = sabotage;
        run(&options).err().map(|message| (seed, message))
    })
}

#[test]
fn planted_faults_are_found() {
    for (sabotage, signs) in [
        (
            Sabotage::SkippedAck,
            &["acknowledged write lost", "stale read"][..],
        ),
        (
            Sabotage::LostTombstone,
            // Where no copy came back, nothing is left of a session that was made and ended.
            &[
                "deleted session returned",
                "not settled",
                "acknowledged write lost",
            ],
        ),
        (
            Sabotage::StaleCopy,
            &["stale read", "deleted session returned"],
        ),
    ] {
        for manager in [MANAGERS[0], MANAGERS[1]] {
            let (seed, message) = find(sabotage, 400, manager)
                .unwrap_or_else(|| panic!("{sabotage:?} was not found with {}", manager.0));
            println!("{sabotage:?} with {}: {message}", manager.0);
            assert!(
                signs.iter().any(|sign| message.contains(sign)),
                "{sabotage:?} was found by seed {seed} for another reason: {message}"
            );
        }
    }
}
