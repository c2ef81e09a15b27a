//! A thousand frontends and ten thousand backends in the real kernel tables: how long
//! from a verdict until the kernel program can see it, and until a whole round is done.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use balancer_agent::config;
use balancer_agent::dataplane::flows::FlowCounts;
use balancer_agent::model::{BackendName, Config, Health, Protocol};
use balancer_agent::reconcile::{Desired, Reconciler, Seen, take_out};
use common::tables::{Hop, state};
use rand::seq::IndexedRandom as _;

use super::clock::{self, Samples};
use super::figure::{Figure, Report, Target};
use super::rig::Balancer;
use super::world::{INGRESS, OURS, SERVER};

const FRONTENDS: usize = 1000;
const BACKENDS_EACH: usize = 10;
const VERDICTS: usize = 100;
/// The longest that a verdict may take to hold.
const TARGET_MS: f64 = 10.0;

/// Configures, changes and reports.
///
/// # Errors
/// When the kernel's map does not say what it must.
pub fn run(report: &mut Report) -> Result<()> {
    clock::pin()?;
    let balancer = Balancer::load()?;
    let tables = &balancer.tables;

    let text = configuration();
    let begin = Instant::now();
    let config = config::parse("scale.toml", &text).map_err(|e| anyhow::anyhow!("{e}"))?;
    let parsed = milliseconds(begin.elapsed());

    let mut seen = everything_up(&config);
    let mut reconciler = Reconciler::new();
    let start = Instant::now();
    let steps = round(&mut reconciler, &config, &seen, &balancer, start)?;
    let first = milliseconds(start.elapsed());
    ensure!(
        steps > FRONTENDS * (1 + BACKENDS_EACH),
        "the first round took {steps} steps only"
    );

    let names: Vec<BackendName> = seen.health.keys().cloned().collect();
    let mut rng = rand::rng();
    let (mut visible, mut applied) = (Samples::default(), Samples::default());
    for _ in 0..VERDICTS {
        let name = names.choose(&mut rng).context("no backends")?.clone();
        let slot = reconciler
            .slot_of(&name, Protocol::Tcp)
            .with_context(|| format!("{name} has no slot"))?;
        ensure!(usable(&balancer, slot)?, "{name} is down to begin with");

        let verdict = Instant::now();
        take_out(tables, slot);
        ensure!(
            !usable(&balancer, slot)?,
            "{name} is still up in the kernel"
        );
        visible.add(milliseconds(verdict.elapsed()));

        seen.health.insert(name.clone(), Health::Down);
        round(&mut reconciler, &config, &seen, &balancer, start)?;
        applied.add(milliseconds(verdict.elapsed()));

        seen.health.insert(name.clone(), Health::Up);
        let verdict = Instant::now();
        round(&mut reconciler, &config, &seen, &balancer, start)?;
        applied.add(milliseconds(verdict.elapsed()));
        ensure!(usable(&balancer, slot)?, "{name} did not come back");
    }

    let single = |name: &str, value| Figure::new(name, value, value, "ms");
    let worst = |name: &str, samples: &Samples| -> Result<Figure> {
        let figure = Figure::new(name, samples.max()?, samples.median()?, "ms");
        Ok(figure.target(Target::Below(TARGET_MS)))
    };
    let figures = vec![
        single("read and check the configuration", parsed),
        single("first round: all tables written", first),
        worst("verdict until the kernel's map says so, worst", &visible)?,
        worst("verdict until the whole round is done, worst", &applied)?,
    ];
    let title = format!(
        "{FRONTENDS} frontends, {} backends, {VERDICTS} verdicts",
        FRONTENDS * BACKENDS_EACH
    );
    report.section(&title, figures);
    Ok(())
}

fn configuration() -> String {
    let mut text = String::from("[xdp]\ninterfaces = [\"lo\"]\n");
    for n in 0..FRONTENDS {
        let (high, low) = (n / 250, n % 250 + 1);
        let _ = write!(
            text,
            "\n[[frontend]]\nname = \"f{n}\"\naddress = \"10.9.{high}.{low}:80\"\npool = \"p{n}\"\n\
             \n[[pool]]\nname = \"p{n}\"\n"
        );
        for b in 0..BACKENDS_EACH {
            let at = n * BACKENDS_EACH + b;
            let (high, low) = (at / 250, at % 250 + 1);
            let _ = write!(
                text,
                "[[pool.backend]]\nname = \"b{b}\"\naddress = \"10.8.{high}.{low}:8080\"\n"
            );
        }
    }
    text
}

fn everything_up(config: &Config) -> Seen {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&SERVER);
    macs[6..].copy_from_slice(&OURS);
    let hop = Hop {
        ifindex: INGRESS,
        macs,
        ..Hop::default()
    };
    let mut seen = Seen::default();
    for pool in &config.pools {
        for backend in &pool.backends {
            let name = BackendName {
                pool: pool.name.clone(),
                backend: backend.name.clone(),
            };
            seen.health.insert(name, Health::Up);
            seen.hops.insert(backend.address.ip(), hop);
        }
    }
    seen
}

/// One round of the agent's loop, as it follows every change.
fn round(
    reconciler: &mut Reconciler,
    config: &Config,
    seen: &Seen,
    balancer: &Balancer,
    start: Instant,
) -> Result<usize> {
    let desired = Desired::new(config, seen);
    let done = reconciler.reconcile(
        desired,
        &balancer.tables,
        &FlowCounts::default,
        start.elapsed(),
    )?;
    Ok(done.steps)
}

fn usable(balancer: &Balancer, slot: u16) -> Result<bool> {
    Ok(balancer.state_in_kernel(slot)? & state::USABLE != 0)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
