//! Rounds of faults under load, each with a check at its end; and what came out.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::check;
use super::ledger::{Broken, Counts, Ledger};
use super::load::{Load, Rate, Service};
use super::site::{Kind, Site};
use super::weather::Round;
use crate::sim::rng::Rng;

/// What is played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Who holds the sessions.
    pub kind: Kind,
    /// Rounds begin until this has passed.
    pub time: Duration,
    /// Requests per second.
    pub per_second: u64,
    /// Clients at once.
    pub clients: usize,
    /// Sessions at a time.
    pub sessions: usize,
    /// Of everything that chance decides.
    pub seed: u64,
}

/// The seed from `FAULTS_SEED`, or one of this moment.
pub fn seed() -> u64 {
    match std::env::var("FAULTS_SEED") {
        Ok(text) => text.parse().expect("FAULTS_SEED: a number"),
        Err(_) => u64::from(rand::random::<u32>()),
    }
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Rounds.
    pub rounds: usize,
    /// Agents killed.
    pub kills: u32,
    /// How long load was on.
    pub load: Duration,
    /// What the client was told.
    pub counts: Counts,
    /// When it was told nothing.
    pub service: Service,
    /// Acknowledged writes that went with all nodes that had them.
    pub excused: u64,
    /// Checks that had to be made again because the agents did not stay together.
    pub repeated: usize,
    /// Longest time from the end of a round's faults until all were ready.
    pub ready: Duration,
    /// Longest time from readiness until all held the same.
    pub agreed: Duration,
    /// Broken promises.
    pub broken: Vec<Broken>,
}

impl Outcome {
    /// Acknowledged writes that are gone.
    pub fn lost(&self) -> usize {
        let lost = self.broken.iter();
        lost.filter(|b| matches!(b, Broken::Lost(_))).count()
    }

    /// Sessions that have come back.
    pub fn returned(&self) -> usize {
        let returned = self.broken.iter();
        returned
            .filter(|b| matches!(b, Broken::Returned(_)))
            .count()
    }

    /// Sessions that are not held alike.
    pub fn differing(&self) -> usize {
        self.broken.len() - self.lost() - self.returned()
    }

    /// Writes asked for, and acknowledged by at least one node, per second of load.
    pub fn rates(&self) -> (f64, f64) {
        let per_second = |count: u64| count as f64 / self.load.as_secs_f64().max(0.001);
        (
            per_second(self.counts.asked()),
            per_second(self.counts.writes()),
        )
    }

    /// Says what was not as promised.
    ///
    /// # Errors
    /// That.
    pub fn judge(&self) -> Result<()> {
        ensure!(self.rounds > 0, "not a single round");
        ensure!(
            self.counts.acknowledged > 100,
            "hardly anything was written"
        );
        ensure!(
            self.counts.unmarked == 0,
            "{} responses did not say how well their session is kept",
            self.counts.unmarked
        );
        let few: Vec<String> = self
            .broken
            .iter()
            .take(5)
            .map(ToString::to_string)
            .collect();
        ensure!(
            self.broken.is_empty(),
            "{} broken promises with FAULTS_SEED={}, among them:\n{}",
            self.broken.len(),
            self.seed,
            few.join("\n")
        );
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (c, s) = (&self.counts, |time: Duration| time.as_secs_f64());
        let rows: [(&str, String); 16] = [
            ("seed", self.seed.to_string()),
            (
                "rounds, agents killed",
                format!("{}, {}", self.rounds, self.kills),
            ),
            ("seconds under load", format!("{:.0}", s(self.load))),
            (
                "writes acknowledged by all holders",
                c.acknowledged.to_string(),
            ),
            (
                "writes acknowledged by fewer (degraded)",
                c.degraded.to_string(),
            ),
            (
                "  made, moved, ended",
                format!("{}, {}, {}", c.made, c.moved, c.ended),
            ),
            (
                "writes per second: asked for, acknowledged",
                format!("{:.0}, {:.0}", self.rates().0, self.rates().1),
            ),
            (
                "answered, kept by nobody for certain",
                c.unknown.to_string(),
            ),
            ("failed", c.failed.to_string()),
            ("LOST", self.lost().to_string()),
            ("RETURNED", self.returned().to_string()),
            ("held differently", self.differing().to_string()),
            (
                "gone with all nodes that had them",
                self.excused.to_string(),
            ),
            (
                "seconds without service: sum, longest",
                format!(
                    "{:.1}, {:.1}",
                    s(self.service.without),
                    s(self.service.longest)
                ),
            ),
            (
                "seconds to readiness, then to agreement: longest",
                format!("{:.1}, {:.1}", s(self.ready), s(self.agreed)),
            ),
            ("checks repeated", self.repeated.to_string()),
        ];
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
        for (name, value) in rows {
            table.add_row([name.to_owned(), value]);
        }
        writeln!(f, "{table}")
    }
}

/// Plays.
///
/// # Panics
/// When an agent ends by itself, or agents do not find together again.
pub fn play(plan: &Plan) -> Outcome {
    println!("FAULTS_SEED={} {:?}", plan.seed, plan.kind);
    let mut rng = Rng::new(plan.seed);
    let mut site = Site::new(plan.kind, true);
    let most_killed = match plan.kind {
        Kind::Delta => super::NODES - 1,
        Kind::Backup(copies) => copies,
    };
    let rate = Rate {
        per_second: plan.per_second,
        clients: plan.clients,
        seed: rng.word(),
    };
    let ledger = Ledger::new(plan.kind, plan.sessions);
    let mut load = Load::start(&site, ledger, rate);
    let all: Vec<usize> = (0..super::NODES).collect();
    let begin = Instant::now();
    let mut outcome = Outcome {
        seed: plan.seed,
        rounds: 0,
        kills: 0,
        load: Duration::ZERO,
        counts: Counts::default(),
        service: Service::default(),
        excused: 0,
        repeated: 0,
        ready: Duration::ZERO,
        agreed: Duration::ZERO,
        broken: Vec::new(),
    };
    while begin.elapsed() < plan.time {
        let round = Round::new(&mut rng, most_killed);
        println!("{:6.1} s: {round}", begin.elapsed().as_secs_f64());
        load.resume();
        round.play(&mut site, || load.ledger());
        let mut ready = site.wait_together(&all);
        load.ledger().weather(false);
        outcome.ready = outcome.ready.max(ready);
        load.pause();
        let found = loop {
            ready += site.wait_together(&all);
            crate::process::wait_until("the stores to be quiet", Duration::from_secs(60), || {
                site.quiet(&all)
            });
            let mut chance = rng.clone();
            let found = check::check(&mut site, plan.kind, &mut load.ledger(), &mut chance);
            match found {
                Some(found) => break found,
                None => outcome.repeated += 1,
            }
        };
        println!(
            "          ready after {:.1} s, alike after {:.1} s; {} live, {} excused, {} broken",
            ready.as_secs_f64(),
            found.agreed.as_secs_f64(),
            found.verdict.live,
            found.verdict.excused,
            found.verdict.broken.len(),
        );
        for broken in found.verdict.broken.iter().take(10) {
            println!("          {broken}");
        }
        outcome.rounds += 1;
        outcome.agreed = outcome.agreed.max(found.agreed);
        outcome.excused += found.verdict.excused;
        outcome.broken.extend(found.verdict.broken);
    }
    outcome.load = load.time;
    outcome.counts = load.ledger().counts;
    outcome.service = load.service();
    outcome.kills = load.ledger().kills();
    if !outcome.broken.is_empty() && std::env::var_os("FAULTS_LOGS").is_some() {
        for (node, agent) in site.agents.iter().enumerate() {
            println!("--- n{node}\n{}", agent.log());
        }
    }
    outcome
}
