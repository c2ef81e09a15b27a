//! Sessions under faults: nothing that was acknowledged may be lost, nothing that has ended
//! may return; and what `async` loses.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::figure::{Figure, Report, Target};
use crate::faults::play::{Outcome, Plan, play, seed};
use crate::faults::site::Kind;
use crate::faults::window::{Loss, measure};

/// Writes per second.
const RATE: u64 = 1_000;
/// Visits that write nothing are among the requests, so a little more are sent.
const MARGIN: u64 = RATE / 10;

/// Plays for ten minutes, or so many seconds, with every node holding all sessions; then
/// for a quarter of that with two backups. Then measures what `async` loses.
///
/// # Errors
/// When something was not as promised.
pub fn run(report: &mut Report, quick: bool, seconds: Option<u64>) -> Result<()> {
    let seconds = seconds.unwrap_or(if quick { 30 } else { 600 });
    let seed = seed();
    let parts = [
        ("every node holds all", Kind::Delta, seconds),
        ("a primary and two backups", Kind::Backup(2), seconds / 4),
    ];
    let mut outcomes = Vec::new();
    for (name, kind, seconds) in parts {
        let outcome = play(&Plan {
            kind,
            time: Duration::from_secs(seconds),
            per_second: RATE + MARGIN,
            clients: 1_200,
            sessions: 6_000,
            seed,
        });
        println!("{outcome}");
        let title = format!("Sessions with `sync` under faults for {seconds} s: {name}");
        report.section(&title, figures(&outcome));
        outcomes.push(outcome);
    }
    let losses = measure(if quick { 3 } else { 20 }, RATE, 50);
    report.section(
        "What `async` loses when the agent dies that took the writes",
        loss_figures(&losses),
    );
    ensure!(
        losses.iter().all(|loss| loss.answered > 100),
        "hardly anything was written before a kill"
    );
    outcomes.iter().try_for_each(Outcome::judge)
}

fn figures(outcome: &Outcome) -> Vec<Figure> {
    let number = |name: &str, value: f64, unit| Figure::new(name, value, value, unit);
    let count = |name: &str, value: u64| number(name, value as f64, "writes");
    let none = |name: &str, value: usize| count(name, value as u64).target(Target::Below(0.0));
    let counts = &outcome.counts;
    vec![
        none("acknowledged writes lost", outcome.lost()),
        none("ended sessions returned", outcome.returned()),
        none("held differently", outcome.differing()),
        count("acknowledged by all holders", counts.acknowledged),
        count("acknowledged by fewer", counts.degraded),
        count("answered, kept by nobody for certain", counts.unknown),
        count("failed", counts.failed),
        count("gone with all nodes that had them", outcome.excused),
        number("asked for per second", outcome.rates().0, "writes"),
        number("acknowledged per second", outcome.rates().1, "writes"),
        number("rounds of faults", outcome.rounds as f64, "rounds"),
        number("agents killed", f64::from(outcome.kills), "agents"),
        number(
            "without service",
            outcome.service.without.as_secs_f64(),
            "s",
        ),
        number(
            "longest without service",
            outcome.service.longest.as_secs_f64(),
            "s",
        ),
        number("longest until all ready", outcome.ready.as_secs_f64(), "s"),
    ]
}

fn loss_figures(losses: &[Loss]) -> Vec<Figure> {
    let figure = |name: &str, unit, of: fn(&Loss) -> f64| {
        let mut all: Vec<f64> = losses.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let worst = all.last().copied().unwrap_or_default();
        Figure::new(name, worst, all[all.len() / 2], unit)
    };
    vec![
        figure("writes lost in one kill: most, median", "writes", |loss| {
            loss.lost as f64
        }),
        figure(
            "age of the oldest lost at the kill: most, median",
            "ms",
            |loss| loss.oldest.as_secs_f64() * 1e3,
        ),
        figure(
            "writes answered before a kill: most, median",
            "writes",
            |loss| loss.answered as f64,
        ),
    ]
}
