//! The web tier beside HAProxy and nginx, on one responder of 1 KiB: requests per second,
//! processor time per request, latency, memory. Every figure of a round is taken of all
//! three in turn.
//!
//! Processor time is the scheduler's count of all threads of a proxy, the kernel's work
//! for them included. Client, proxy and responder share the machine's cores: requests per
//! second say how the three share them, processor time what a proxy costs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::clock::Samples;
use super::figure::{Figure, Report, Target};
use super::idle::{self, Idle};
use super::rivals::{BODY, Field, Rival, cores};
use crate::http::h2once;
use crate::http::proc;
use crate::netns::Netns;

/// Connections at any time.
pub(super) const CONNECTIONS: usize = 64;

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Http1Kept,
    Http1Each,
    Http2Kept,
    Http2Each,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Http1Kept, "HTTP/1.1, keep-alive"),
    (Way::Http1Each, "HTTP/1.1, a connection per request"),
    (Way::Http2Kept, "HTTP/2, keep-alive"),
    (Way::Http2Each, "HTTP/2, a connection per request"),
];

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Requests by HTTP/1.1.
    Http1,
    /// Requests by HTTP/2.
    Http2,
    /// Idle connections.
    Memory,
}

impl Part {
    fn has(self, way: Way) -> bool {
        match self {
            Self::Http1 => matches!(way, Way::Http1Kept | Way::Http1Each),
            Self::Http2 => matches!(way, Way::Http2Kept | Way::Http2Each),
            Self::Memory => false,
        }
    }
}

/// What one run showed. Times in milliseconds.
pub(super) struct Run {
    /// Answered.
    pub requests: f64,
    /// In this time.
    pub seconds: f64,
    /// Half of them within.
    pub p50: f64,
    /// 99 of 100 of them within.
    pub p99: f64,
}

/// Samples of one proxy in one way.
#[derive(Default)]
pub(super) struct Series {
    /// Requests per second.
    pub rate: Samples,
    /// Seconds of processor time per 100,000 requests.
    pub cpu: Samples,
    /// Milliseconds.
    pub p50: Samples,
    /// Milliseconds.
    pub p99: Samples,
}

impl Series {
    /// Notes a run that cost so many seconds of processor time.
    pub fn add(&mut self, run: &Run, cpu: f64) {
        self.rate.add(run.requests / run.seconds);
        self.cpu.add(cpu / run.requests * 1e5);
        self.p50.add(run.p50);
        self.p99.add(run.p99);
    }
}

/// Measures and reports; all of it, without a `part`.
///
/// # Errors
/// When a program is missing, or a request failed.
pub fn run(report: &mut Report, quick: bool, part: Option<Part>) -> Result<()> {
    let (rounds, window, held) = match quick {
        true => (2, Duration::from_millis(1_200), 2_000),
        false => (6, Duration::from_millis(2_500), 10_000),
    };
    idle::raise_files(held as u64 + 4_000)?;
    let field = Field::start()?;
    for rival in &field.rivals {
        if let Some(version) = rival.version() {
            println!("{} {version}", rival.name);
        }
    }
    let ways = WAYS.into_iter();
    let ways: Vec<_> = ways
        .filter(|(way, _)| part.is_none_or(|part| part.has(*way)))
        .collect();
    let mut all: BTreeMap<(Way, usize), Series> = BTreeMap::new();
    for round in 0..=rounds {
        for &(way, name) in &ways {
            // The first is for all to warm up.
            let window = if round == 0 { window / 4 } else { window };
            for turn in 0..field.rivals.len() {
                // Nobody always follows the same one.
                let number = (turn + round) % field.rivals.len();
                let rival = &field.rivals[number];
                let pids = rival.pids();
                let before = proc::run_seconds(&pids);
                let run = once(&field.ns, rival, way, window);
                let run = run.with_context(|| format!("{}, {name}", rival.name))?;
                let cpu = proc::run_seconds(&pids) - before;
                ensure!(
                    run.requests > 0.0,
                    "{}, {name}: not one request",
                    rival.name
                );
                if round > 0 {
                    all.entry((way, number)).or_default().add(&run, cpu);
                }
            }
        }
    }
    for (way, name) in ways {
        let series: Vec<&Series> = (0..3).filter_map(|n| all.get(&(way, n))).collect();
        section(report, &field, way, name, &series, rounds)?;
    }
    match part {
        None | Some(Part::Memory) => memory(report, &field, held),
        Some(_) => Ok(()),
    }
}

fn section(
    report: &mut Report,
    field: &Field,
    way: Way,
    name: &str,
    series: &[&Series],
    rounds: usize,
) -> Result<()> {
    let kept = matches!(way, Way::Http1Kept | Way::Http2Kept);
    let mut figures = Vec::new();
    for (what, unit, of) in [
        (
            "requests/s",
            "req/s",
            (|s| &s.rate) as fn(&Series) -> &Samples,
        ),
        ("CPU per 100,000 requests", "s", |s| &s.cpu),
        ("latency, half", "ms", |s| &s.p50),
        ("latency, 99 of 100", "ms", |s| &s.p99),
    ] {
        let mut each = Vec::new();
        for (rival, series) in field.rivals.iter().zip(series) {
            let middle = of(series).median()?;
            each.push(Figure::new(
                format!("{}: {what}", rival.name),
                middle,
                middle,
                unit,
            ));
        }
        let [ours, haproxy, nginx] = each.try_into().map_err(|_| anyhow::anyhow!("three"))?;
        let paired = |theirs: usize, figure: &Figure| {
            ours.clone()
                .paired(figure, of(series[0]), of(series[theirs]))
        };
        let against_haproxy = paired(1, &haproxy)?;
        let against_nginx = paired(2, &nginx)?;
        match what {
            "CPU per 100,000 requests" => {
                figures.push(against_haproxy.target(Target::AtMost(1.0)));
                figures.push(match kept {
                    true => against_nginx.target(Target::AtMost(1.0)),
                    false => against_nginx,
                });
            }
            "latency, 99 of 100" => {
                figures.push(against_haproxy.target(Target::AtMost(1.0)));
                figures.push(against_nginx);
            }
            _ => figures.extend([against_haproxy, against_nginx]),
        }
        figures.extend([haproxy, nginx]);
    }
    let title = format!(
        "{name}: {BODY} bytes, {CONNECTIONS} connections, {} threads, median of {rounds}",
        cores()
    );
    report.section(&title, figures);
    Ok(())
}

/// What an idle connection costs each, and what each has resident in all.
fn memory(report: &mut Report, field: &Field, held: usize) -> Result<()> {
    let mut figures = Vec::new();
    for rival in &field.rivals {
        let pids = rival.pids();
        let before = idle::settled(&pids);
        let idle = Idle::open(&field.ns, rival.http1, held);
        let mut idle = idle.with_context(|| format!("{}: idle connections", rival.name))?;
        let after = idle::settled(&pids);
        let served = idle.ask_again();
        ensure!(
            served == held,
            "{}: {served} of {held} idle ones served",
            rival.name
        );
        drop(idle);
        let each = after.saturating_sub(before) as f64 / held as f64;
        let name = format!("{}: an idle connection", rival.name);
        let figure = Figure::new(name, each, each, "bytes");
        figures.push(match rival.name {
            "balancer" => figure.target(Target::Below(4096.0)),
            _ => figure,
        });
        let whole = before as f64 / f64::from(1 << 20);
        let name = format!("{}: resident after the load", rival.name);
        figures.push(Figure::new(name, whole, whole, "MiB"));
    }
    report.section(&format!("Memory, {held} idle connections"), figures);
    Ok(())
}

fn once(ns: &Netns, rival: &Rival, way: Way, window: Duration) -> Result<Run> {
    match way {
        Way::Http1Kept => wrk(ns, rival.http1, "/", window, false),
        Way::Http1Each => wrk(ns, rival.http1, "/", window, true),
        Way::Http2Kept => h2load(ns, rival.http2, window),
        Way::Http2Each => {
            let begin = Instant::now();
            let mut times = h2once::load(ns, rival.http2, CONNECTIONS, window)?;
            let seconds = begin.elapsed().as_secs_f64();
            times.sort_unstable();
            let at = |share: f64| times[(times.len() as f64 * share) as usize].as_secs_f64() * 1e3;
            Ok(Run {
                requests: times.len() as f64,
                seconds,
                p50: at(0.5),
                p99: at(0.99),
            })
        }
    }
}

fn output(mut command: Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}: {text}{error}",
        output.status
    );
    Ok(text)
}

/// A run of wrk for so long, with [`CONNECTIONS`] at any time; `each` request has one of
/// its own.
pub(super) fn wrk(
    ns: &Netns,
    to: SocketAddr,
    path: &str,
    window: Duration,
    each: bool,
) -> Result<Run> {
    // wrk knows whole seconds only; it is stopped by a signal, which it takes as the end.
    let mut command = ns.command("timeout");
    let seconds = window.as_secs_f64();
    command.args(["--signal=INT", "--preserve-status", &format!("{seconds}")]);
    command.args(["wrk", "--latency", "-t", &cores().to_string()]);
    command.args(["-c", &CONNECTIONS.to_string(), "-d", "60s"]);
    if each {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{to}{path}"));
    read_wrk(&output(command)?)
}

/// `  99%    1.23ms`, `123 requests in 1.20s, 1.0MB read`; with errors there are lines
/// `Socket errors: ...` and `Non-2xx or 3xx responses: ...`.
fn read_wrk(text: &str) -> Result<Run> {
    let quantile = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        line.and_then(milliseconds)
            .with_context(|| format!("no {name} in {text}"))
    };
    let line = text.lines().find(|line| line.contains(" requests in "));
    let line = line.with_context(|| format!("no sum in {text}"))?;
    let mut words = line.split_whitespace();
    let requests = words
        .next()
        .and_then(|n| n.parse().ok())
        .context("requests")?;
    let time = words.nth(2).map(|word| word.trim_end_matches(','));
    let seconds = time.and_then(milliseconds).context("a time")? / 1e3;
    ensure!(
        !text.contains("Non-2xx"),
        "not all answers were good: {text}"
    );
    if let Some(errors) = text.lines().find(|line| line.contains("Socket errors")) {
        // The end of the run cuts what is under way; that counts as read errors.
        let clean = errors.contains("connect 0,") && errors.contains("timeout 0");
        ensure!(clean, "{errors}");
    }
    Ok(Run {
        requests,
        seconds,
        p50: quantile("50%")?,
        p99: quantile("99%")?,
    })
}

/// `1.23ms`, `345.00us`, `1.20s`, `1.00m`.
fn milliseconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..at].parse().ok()?;
    Some(match &text[at..] {
        "us" => number / 1e3,
        "ms" => number,
        "s" => number * 1e3,
        "m" => number * 6e4,
        _ => return None,
    })
}

fn h2load(ns: &Netns, to: SocketAddr, window: Duration) -> Result<Run> {
    let log = tempfile::NamedTempFile::new()?;
    let mut command = ns.command("h2load");
    let connections = CONNECTIONS.to_string();
    command.args(["-c", &connections, "-m", "1", "-t", &cores().to_string()]);
    command.arg("-D").arg(format!("{}ms", window.as_millis()));
    // It refuses to append to a file that is there.
    let path = log.path().with_extension("log");
    command.arg(format!("--log-file={}", path.display()));
    command.arg(format!("http://{to}/"));
    let begin = Instant::now();
    let text = output(command);
    let seconds = begin.elapsed().as_secs_f64();
    let lines = std::fs::read_to_string(&path);
    let _ = std::fs::remove_file(&path);
    read_h2load(&text?, &lines?, window.as_secs_f64().min(seconds))
}

/// Lines of `start TAB status TAB microseconds`.
fn read_h2load(text: &str, log: &str, seconds: f64) -> Result<Run> {
    let mut times = Vec::new();
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        let (status, time) = (fields.next(), fields.next());
        // What was under way at the end has no status.
        if status == Some("-1") {
            continue;
        }
        ensure!(status == Some("200"), "{line:?}: {text}");
        times.push(time.and_then(|t| t.parse::<u64>().ok()).context("a time")?);
    }
    ensure!(!times.is_empty(), "nothing was answered: {text}");
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize] as f64 / 1e3;
    Ok(Run {
        requests: times.len() as f64,
        seconds,
        p50: at(0.5),
        p99: at(0.99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let text = "Running 1m test @ http://127.0.0.1:8001/\n  2 threads and 64 connections\n\
            \x20 Latency Distribution\n     50%  634.00us\n     75%    0.92ms\n     90%    1.44ms\n\
            \x20    99%    1.20s \n  116389 requests in 1.21s, 139.86MB read\n\
            \x20 Socket errors: connect 0, read 12, write 0, timeout 0\n\
            Requests/sec:  96190.08\n";
        let run = read_wrk(text).unwrap();
        assert_eq!(
            (run.requests, run.seconds, run.p50, run.p99),
            (116_389.0, 1.21, 0.634, 1200.0)
        );
        assert!(read_wrk(&text.replace("timeout 0", "timeout 3")).is_err());
        assert!(read_wrk(&format!("{text}  Non-2xx or 3xx responses: 5\n")).is_err());
    }

    #[test]
    fn h2load_is_understood() {
        let log = "1\t200\t100\n2\t200\t300\n3\t200\t200\n4\t-1\t5\n";
        let run = read_h2load("", log, 2.0).unwrap();
        assert_eq!((run.requests, run.p50, run.p99), (3.0, 0.2, 0.3));
        assert!(read_h2load("", "1\t503\t100\n", 1.0).is_err());
        assert!(read_h2load("", "", 1.0).is_err());
    }
}
