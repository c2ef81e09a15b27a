//! Sessions that nodes keep together: the cost of a write from 2 to 16 nodes, writes per
//! second, how late they are seen, memory, and the transfer to a node that joins.
//!
//! Everything but the memory is measured on real nodes: processes of their own
//! (`sessionnode`) with the cluster, the links (TLS over TCP) and the driver of an agent, in
//! namespaces that veth connects. They have no web tier: writes come from a thread in the
//! process, through the handle that the web tier has. Processor time is that of the whole
//! process, the thread that writes and the kernel's work for it included.

mod load;
pub mod memory;
pub mod node;
mod report;
mod site;
pub mod words;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::figure::{Figure, Report, Target};
use report::{Cost, cost_figures, cost_table};
use site::Site;
use words::{ASYNC, Load, Loaded, Memory, Order, SYNC, Times, Where};

/// Numbers of nodes whose cost per write is measured.
pub const NODES: [usize; 5] = [2, 3, 4, 8, 16];
/// Writes per second on one node whose copies are watched.
const RATE: f64 = 10_000.0;
/// Writes per second of all nodes together, so few that nearly every message travels on its
/// own, whatever the number of nodes: what a write costs at most.
const SPARSE: f64 = 2_000.0;
/// Sessions that are written again and again.
const IDS: u64 = 64_000;
/// Writes of all nodes together that wait for their acknowledgement, flat out.
const WINDOW: usize = 4_096;

/// A part of this benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The cost of a write, by the number of nodes.
    Cost,
    /// Writes per second between two nodes.
    Flat,
    /// How late writes are seen and acknowledged.
    Lag,
    /// Memory per session.
    Memory,
    /// A million sessions to a node that joins.
    Transfer,
}

/// Measures all parts, or one.
///
/// # Errors
/// Something could not be measured, or went another way than its name says.
pub fn run(report: &mut Report, quick: bool, part: Option<Part>, nodes: &[usize]) -> Result<()> {
    let is = |this| part.is_none_or(|part| part == this);
    if is(Part::Flat) {
        flat(report, quick)?;
    }
    if is(Part::Lag) {
        lag(report, quick)?;
    }
    if is(Part::Transfer) {
        transfer(report, quick)?;
    }
    if is(Part::Memory) {
        memory(report)?;
    }
    if is(Part::Cost) {
        cost(report, quick, nodes)?;
    }
    Ok(())
}

fn load(node: usize, at: Where) -> Load {
    Load {
        group: SYNC.into(),
        node: node as u64,
        at,
        rate: None,
        window: 1,
        seconds: 1.0,
        ids: 1,
        once: false,
        stamped: false,
    }
}

/// Of all that was asked of some nodes.
fn all(loaded: &[Loaded]) -> Loaded {
    loaded.iter().fold(Loaded::default(), |sum, one| Loaded {
        writes: sum.writes + one.writes,
        acknowledged: sum.acknowledged + one.acknowledged,
        seconds: sum.seconds.max(one.seconds),
        times: sum.times,
    })
}

/// The cost of a write, by where it begins: flat out, when messages share frames, and at
/// [`SPARSE`], when they do not.
fn cost(report: &mut Report, quick: bool, nodes: &[usize]) -> Result<()> {
    let seconds = if quick { 1.0 } else { 2.0 };
    let mut costs = Vec::new();
    for &count in nodes {
        ensure!((2..=60).contains(&count), "2 to 60 nodes");
        let mut site = Site::together(count)?;
        let (begin, before) = (Instant::now(), site.sums()?);
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let idle = site.sums()?.since(before);
        let idle = idle.times(1.0 / begin.elapsed().as_secs_f64());
        for rate in [None, Some(SPARSE)] {
            for at in [Where::Primary, Where::Elsewhere, Where::Any] {
                let loads: Vec<Load> = (0..count)
                    .map(|node| Load {
                        rate: rate.map(|rate| rate / count as f64),
                        window: WINDOW / count,
                        seconds,
                        ids: IDS / count as u64,
                        ..load(node, at)
                    })
                    .collect();
                let (loaded, used) = site.load(&loads)?;
                let used = used.since(idle.times(seconds));
                let loaded = all(&loaded);
                ensure!(
                    loaded.acknowledged == loaded.writes && used.lost == 0.0,
                    "{count} nodes: {loaded:?} {used:?}"
                );
                costs.push(Cost {
                    nodes: count,
                    at,
                    sparse: rate.is_some(),
                    idle,
                    each: used.times(1.0 / loaded.writes as f64),
                    rate: loaded.writes as f64 / loaded.seconds,
                });
            }
        }
    }
    println!("{}", cost_table(&costs));
    report.section("cost of a write with one backup", cost_figures(&costs));
    Ok(())
}

/// Two nodes, as fast as they can.
fn flat(report: &mut Report, quick: bool) -> Result<()> {
    let seconds = if quick { 2.0 } else { 6.0 };
    let mut figures = Vec::new();
    for (name, group, at, writers) in [
        (
            "on both nodes, wherever the primary is",
            SYNC,
            Where::Any,
            2,
        ),
        (
            "on both nodes, each at its primary",
            SYNC,
            Where::Primary,
            2,
        ),
        ("on one node, wherever the primary is", SYNC, Where::Any, 1),
        (
            "async, on both nodes, wherever the primary is",
            ASYNC,
            Where::Any,
            2,
        ),
    ] {
        let mut site = Site::together(2)?;
        let loads: Vec<Load> = (0..writers)
            .map(|node| Load {
                group: group.into(),
                window: WINDOW / writers,
                seconds,
                // New sessions, all of them, at the speed that is expected.
                ids: 1_500_000 / writers as u64,
                ..load(node, at)
            })
            .collect();
        let (loaded, used) = site.load(&loads)?;
        let loaded = all(&loaded);
        // Copies that the other node has confirmed, or has.
        let replicated = match group {
            SYNC => loaded.acknowledged as f64,
            _ => used.copies,
        };
        ensure!(used.lost == 0.0, "copies were lost: {used:?}");
        ensure!(
            replicated >= loaded.writes as f64 * 0.99,
            "{replicated} copies of {} writes",
            loaded.writes
        );
        let rate = replicated / loaded.seconds;
        let rate = Figure::new(format!("writes {name}"), rate, rate, "writes/s");
        figures.push(match figures.is_empty() {
            true => rate.target(Target::Least(100_000.0)),
            false => rate,
        });
        let each = used.cpu * 1e6 / replicated;
        let name = "processor time of both nodes for each";
        figures.push(Figure::new(name, each, each, "us"));
    }
    report.section("replicated writes between two nodes, flat out", figures);
    Ok(())
}

/// How late a write is seen on the other node, and acknowledged.
fn lag(report: &mut Report, quick: bool) -> Result<()> {
    let seconds = if quick { 2.0 } else { 8.0 };
    let mut figures = Vec::new();
    let mut site = Site::together(2)?;
    for (name, group) in [
        ("until it is seen on the other node, async", ASYNC),
        ("until it is seen on the other node, sync", SYNC),
    ] {
        let paced = Load {
            group: group.into(),
            rate: Some(RATE),
            seconds,
            stamped: true,
            ..load(0, Where::Any)
        };
        site.node(1).ask::<Times>(&Order::Lag)?;
        let (loaded, used) = site.load(&[paced])?;
        // What is still on its way.
        std::thread::sleep(Duration::from_millis(200));
        let seen: Times = site.node(1).ask(&Order::Lag)?;
        let loaded = all(&loaded);
        ensure!(
            seen.count == loaded.writes && used.lost == 0.0,
            "{} of {} writes were seen: {used:?}",
            seen.count,
            loaded.writes
        );
        figures.extend(times(name, seen, Some(2_000.0)));
        if group == SYNC {
            ensure!(loaded.acknowledged == loaded.writes, "{loaded:?}");
        }
    }
    let paced = Load {
        rate: Some(RATE),
        seconds,
        ids: IDS,
        ..load(0, Where::Any)
    };
    let (loaded, _) = site.load(&[paced])?;
    let acknowledged = loaded.first().map(|one| one.times).unwrap_or_default();
    figures.extend(times("until it is acknowledged, sync", acknowledged, None));
    let title = format!("{RATE} writes per second on one of two nodes");
    report.section(&title, figures);
    Ok(())
}

fn times(name: &str, times: Times, target: Option<f64>) -> Vec<Figure> {
    let figure = |part, value| Figure::new(format!("{name}: {part}"), value, value, "us");
    let p99 = figure("99 of 100", times.p99);
    vec![
        figure("the middle", times.p50),
        match target {
            Some(most) => p99.target(Target::Below(most)),
            None => p99,
        },
        figure("the longest", times.max),
    ]
}

/// What a session takes.
fn memory(report: &mut Report) -> Result<()> {
    let mut figures = Vec::new();
    let mut site = Site::new(1)?;
    site.start()?;
    for (id, name) in [
        (32, "ids of 32 bytes"),
        (41, "ids of 41 bytes (32 and a route)"),
    ] {
        let memory: Memory = site.node(0).ask(&Order::Memory { id })?;
        let figure = |what, value| Figure::new(format!("{name}, {what}"), value, value, "bytes");
        figures.push(figure("at worst from 100,000 on", memory.most).target(Target::Below(400.0)));
        figures.push(figure("at best", memory.least));
        figures.push(figure("a million", memory.million));
    }
    report.section("memory of a session without data", figures);
    Ok(())
}

/// A node joins one that has a million sessions.
fn transfer(report: &mut Report, quick: bool) -> Result<()> {
    let count: u64 = if quick { 100_000 } else { 1_000_000 };
    let mut site = Site::new(2)?;
    site.start()?;
    site.wait_together()?;
    let empty = site.node(0).status()?;
    let fill = Load {
        group: ASYNC.into(),
        window: WINDOW,
        seconds: 60.0,
        ids: count,
        once: true,
        ..load(0, Where::Any)
    };
    site.load(&[fill])?;
    let filled = site.node(0).status()?.sessions;
    ensure!(filled == count, "{filled} sessions of {count} were made");
    let full = site.node(0).status()?;
    let (before, begin) = (site.sums()?, Instant::now());
    site.start()?;
    site.wait_together()?;
    let took = begin.elapsed();
    let (a, b) = (site.node(0).status()?, site.node(1).status()?);
    ensure!(
        b.sessions == count,
        "{} sessions of {count} came",
        b.sessions
    );
    let used = site.sums()?.since(before);
    let number = |name: &str, value: f64, unit| Figure::new(name, value, value, unit);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let figures = vec![
        number(
            "from the start of the process to ready",
            took.as_secs_f64(),
            "s",
        )
        .target(Target::Below(10.0)),
        number("processor time of both nodes", used.cpu, "s"),
        number(
            "bytes over the link for each session",
            used.link_bytes / count as f64,
            "bytes",
        ),
        number(
            "memory of the node that has them",
            mib(full.resident),
            "MiB",
        ),
        number("at most while it gave them", mib(a.resident_most), "MiB"),
        number("memory of the node that joined", mib(b.resident), "MiB"),
        number("at most while it took them", mib(b.resident_most), "MiB"),
        number(
            "memory of a node without sessions",
            mib(empty.resident),
            "MiB",
        ),
    ];
    report.section(&format!("{count} sessions to a node that joins"), figures);
    Ok(())
}
