//! Servers that are killed and started again while requests of all kinds go on; and what
//! became of every one of them.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::figure::{Figure, Report, Target};
use crate::http::chaos::{Chaos, Mix, Tally, sent_twice};
use crate::http::web::{CHECK, HTTP, Web, frontend, pool};

const APPS: usize = 3;

/// What became of the requests.
#[derive(Debug)]
pub struct Outcome {
    /// Servers killed.
    pub kills: usize,
    /// By kind of load.
    pub tallies: Vec<(&'static str, Tally)>,
    /// Requests that are not idempotent and were sent to servers more than once.
    pub twice: Vec<String>,
}

impl Outcome {
    fn sum(&self, of: impl Fn(&Tally) -> u64) -> u64 {
        self.tallies.iter().map(|(_, tally)| of(tally)).sum()
    }

    /// Answers that belonged to another request.
    pub fn mixed(&self) -> u64 {
        self.sum(|tally| tally.mixed)
    }

    /// Idempotent requests that failed.
    pub fn failed(&self) -> u64 {
        self.sum(Tally::failed)
    }

    /// Says what was not as promised.
    ///
    /// # Errors
    /// That.
    pub fn judge(&self) -> Result<()> {
        ensure!(self.kills > 1, "nobody was killed");
        for (kind, tally) in &self.tallies {
            ensure!(tally.good > 50, "hardly a request of {kind} was answered");
            ensure!(
                tally.servers.len() == APPS,
                "{kind}: not all servers answered"
            );
        }
        ensure!(self.mixed() == 0, "{} answers were mixed up", self.mixed());
        ensure!(self.twice.is_empty(), "sent twice: {:?}", self.twice);
        ensure!(
            self.failed() == 0,
            "{} idempotent requests failed",
            self.failed()
        );
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} kills; POSTs sent twice: {}",
            self.kills,
            self.twice.len()
        )?;
        for (kind, tally) in &self.tallies {
            writeln!(
                f,
                "{kind}: {} answered {:?}, {} mixed up, idempotent failed {:?} {:?}, POSTs failed \
                 {:?} {:?}, slowest {:.0} ms",
                tally.good,
                tally.servers,
                tally.mixed,
                tally.idempotent,
                tally.lost,
                tally.posts,
                tally.lost_posts,
                tally.slowest.as_secs_f64() * 1e3,
            )?;
            for example in &tally.examples {
                writeln!(f, "    {example}")?;
            }
        }
        Ok(())
    }
}

/// Plays for so long; every `period` a server is killed, and started again half a period
/// later.
///
/// # Panics
/// When agent or servers can't be started.
pub fn play(time: Duration, period: Duration) -> Outcome {
    let mut web = Web::with(APPS, &["--journal", "DIR/journal"], |_| {
        frontend("") + &pool(APPS, CHECK)
    });
    let mixes = [
        (
            "HTTP/1.1, kept",
            Mix {
                connections: 12,
                post_every: 4,
                ..Mix::default()
            },
        ),
        (
            "HTTP/1.1, a connection each",
            Mix {
                connections: 6,
                post_every: 4,
                per_connection: 1,
                ..Mix::default()
            },
        ),
        (
            "HTTP/2",
            Mix {
                connections: 4,
                http2: Some(4),
                post_every: 4,
                ..Mix::default()
            },
        ),
        (
            "slow answers",
            Mix {
                connections: 8,
                path: "/delay/30".into(),
                ..Mix::default()
            },
        ),
    ];
    // Nonces of the loads must not meet in the journal.
    let loads: Vec<(&str, Chaos)> = mixes
        .into_iter()
        .enumerate()
        .map(|(i, (kind, mut mix))| {
            mix.first = i * 1000;
            (kind, Chaos::start(&web.ns, HTTP, mix))
        })
        .collect();
    let begin = Instant::now();
    let mut kills = 0;
    while begin.elapsed() + period < time {
        loads[0].1.wait_for(20);
        std::thread::sleep(period / 2);
        let victim = kills % APPS;
        web.apps[victim].kill9();
        kills += 1;
        std::thread::sleep(period / 2);
        web.apps[victim].restart();
        let name = format!("s{victim}");
        web.wait_health(&name, "up");
    }
    let tallies = loads
        .into_iter()
        .map(|(kind, load)| (kind, load.stop()))
        .collect();
    let twice = sent_twice(&web.dir.path().join("journal"));
    Outcome {
        kills,
        tallies,
        twice: twice
            .into_iter()
            .map(|(nonce, times)| format!("{nonce}: {times:?}"))
            .collect(),
    }
}

/// Plays for a minute (less when quick) and reports.
///
/// # Errors
/// When something was not as promised.
pub fn run(report: &mut Report, quick: bool) -> Result<()> {
    let time = Duration::from_secs(if quick { 20 } else { 60 });
    let outcome = play(time, Duration::from_secs(5));
    println!("{outcome}");
    let count = |name: &str, value: u64| Figure::new(name, value as f64, value as f64, "requests");
    let none = |name: &str, value: u64| count(name, value).target(Target::Below(0.0));
    report.section(
        &format!(
            "A server of three killed and restarted every 5 s for {} s",
            time.as_secs()
        ),
        vec![
            count("answered", outcome.sum(|tally| tally.good)),
            none("answers mixed up", outcome.mixed()),
            none("idempotent requests failed", outcome.failed()),
            none("POSTs sent twice", outcome.twice.len() as u64),
            count(
                "POSTs failed",
                outcome.sum(|t| t.posts.values().sum::<u64>() + t.lost_posts.values().sum::<u64>()),
            ),
        ],
    );
    outcome.judge()
}
