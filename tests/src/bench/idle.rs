//! Connections that are only held, and clients that are slow: what they cost, and what
//! others notice of them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::figure::{Figure, Report, Target};
use crate::http::chaos::{Chaos, Mix};
use crate::http::proc;
use crate::http::web::{HTTP, NO_CHECK, Web, frontend, pool};
use crate::netns::Netns;

const REQUEST: &[u8] = b"GET /status/200 HTTP/1.1\r\nHost: idle.example\r\n\r\n";
/// Connections from one source address.
const PER_SOURCE: usize = 2_000;
/// Two looks at the memory that differ by no more than this are of one that has settled.
const SETTLED: u64 = 64 << 10;

/// What was seen.
#[derive(Debug)]
pub struct Outcome {
    /// Idle connections held.
    pub idle: usize,
    /// Slow clients.
    pub slow: usize,
    /// Resident memory that each idle connection added, in bytes.
    pub per_idle: u64,
    /// Requests per second without them.
    pub alone: f64,
    /// Requests per second beside them.
    pub beside: f64,
    /// Requests of the others that failed.
    pub failed: u64,
    /// Idle connections that were served again at the end.
    pub idle_left: usize,
    /// Slow clients that were still being served, or were done, at the end.
    pub slow_left: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} idle connections: {} bytes of resident memory each; {:.0} requests/s alone, {:.0} \
             beside them and {} slow clients ({} failed); then {} idle ones served again, {} slow \
             ones still there",
            self.idle,
            self.per_idle,
            self.alone,
            self.beside,
            self.slow,
            self.failed,
            self.idle_left,
            self.slow_left
        )
    }
}

/// Raises the limit of open files to what is allowed.
///
/// # Errors
/// When it stays below what is needed.
pub fn raise_files(needed: u64) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = most.max(needed);
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted);
    let (now, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        now >= needed,
        "{needed} open files are needed, {now} allowed ({raised:?})"
    );
    Ok(())
}

/// Connections that have had one request each, and are idle.
pub struct Idle {
    runtime: tokio::runtime::Runtime,
    streams: Vec<TcpStream>,
}

impl Idle {
    /// Opens so many, a few at a time.
    ///
    /// # Errors
    /// When one is not served.
    pub fn open(ns: &Netns, to: SocketAddr, count: usize) -> Result<Self> {
        ns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let mut streams = Vec::with_capacity(count);
            runtime.block_on(async {
                let mut open = tokio::task::JoinSet::new();
                for i in 0..count {
                    let host = 2 + (i / PER_SOURCE) as u8;
                    open.spawn(async move {
                        let socket = TcpSocket::new_v4()?;
                        socket.bind(SocketAddr::new(Ipv4Addr::new(127, 0, 0, host).into(), 0))?;
                        let mut stream = socket.connect(to).await?;
                        ask(&mut stream).await?;
                        Ok::<_, anyhow::Error>(stream)
                    });
                    if open.len() >= 64 {
                        streams.push(joined(&mut open).await?);
                    }
                }
                while !open.is_empty() {
                    streams.push(joined(&mut open).await?);
                }
                Ok::<_, anyhow::Error>(())
            })?;
            Ok(Self { runtime, streams })
        })
    }

    /// Sends a request on each again; how many were answered.
    pub fn ask_again(&mut self) -> usize {
        let streams = &mut self.streams;
        self.runtime.block_on(async {
            let mut good = 0;
            for stream in streams {
                good += usize::from(ask(stream).await.is_ok());
            }
            good
        })
    }
}

async fn joined(open: &mut tokio::task::JoinSet<Result<TcpStream>>) -> Result<TcpStream> {
    open.join_next().await.context("a connection")??
}

async fn ask(stream: &mut TcpStream) -> Result<()> {
    let talk = async {
        stream.write_all(REQUEST).await?;
        let mut answer = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            let n = stream.read(&mut bytes).await?;
            ensure!(n > 0, "closed");
            answer.extend_from_slice(&bytes[..n]);
            let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
            let Some(end) = end else { continue };
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "not 200");
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1);
            let length: usize = length
                .and_then(|rest| rest.split("\r\n").next())
                .and_then(|digits| digits.parse().ok())
                .context("a length")?;
            if answer.len() >= end + 4 + length {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), talk)
        .await
        .context("no answer in time")?
}

/// Resident memory once it does not change any more, in bytes.
pub fn settled(pids: &[u32]) -> u64 {
    let mut last = proc::resident(pids);
    let begin = Instant::now();
    // Idle connections are put by at once, and what they leave is given back within a second.
    std::thread::sleep(Duration::from_millis(2500));
    while begin.elapsed() < Duration::from_secs(10) {
        let now = proc::resident(pids);
        if now.abs_diff(last) <= SETTLED {
            return now;
        }
        last = now;
        std::thread::sleep(Duration::from_millis(500));
    }
    last
}

/// Plays with so many; each measurement of speed takes `time`.
///
/// # Errors
/// When connections can't be held.
pub fn play(idle: usize, slow: usize, time: Duration) -> Result<Outcome> {
    // Each process has one end of each; the agent its connections to servers too.
    raise_files((idle + slow) as u64 + 4_000)?;
    let limits = "[frontend.timeouts]\nkeep_alive = \"10m\"\nheaders = \"2m\"\nbody_idle = \"2m\"\n\
                  body_rate = 1\nsend = \"2m\"\n";
    let web = Web::new(2, |_| frontend(limits) + &pool(2, NO_CHECK));
    let pid = [web.agent.id()];
    let rate = |web: &Web| {
        let load = Chaos::start(&web.ns, HTTP, Mix::default());
        let begin = Instant::now();
        std::thread::sleep(time);
        let tally = load.stop();
        (
            tally.good as f64 / begin.elapsed().as_secs_f64(),
            tally.failed() + tally.mixed,
        )
    };
    let (alone, failed_alone) = rate(&web);
    let before = settled(&pid);
    let mut held = Idle::open(&web.ns, HTTP, idle)?;
    let after = settled(&pid);
    let slow_clients = Slow::start(&web.ns, slow);
    slow_clients.wait_begun()?;
    let (beside, failed) = rate(&web);
    let slow_left = slow_clients.stop();
    Ok(Outcome {
        idle,
        slow,
        per_idle: after.saturating_sub(before) / idle as u64,
        alone,
        beside,
        failed: failed + failed_alone,
        idle_left: held.ask_again(),
        slow_left,
    })
}

/// Clients that say, send or take a byte now and then.
struct Slow {
    stop: tokio::sync::watch::Sender<bool>,
    begun: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    count: usize,
    thread: std::thread::JoinHandle<usize>,
}

impl Slow {
    fn start(ns: &Netns, count: usize) -> Self {
        use std::sync::atomic::Ordering;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let begun = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&begun);
        let thread = ns.spawn("slow", move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async move {
                let mut clients = tokio::task::JoinSet::new();
                for i in 0..count {
                    let mut stopped = stopped.clone();
                    let counter = std::sync::Arc::clone(&counter);
                    clients.spawn(async move {
                        let Ok(mut stream) = TcpStream::connect(HTTP).await else {
                            return false;
                        };
                        let _ = stream.set_nodelay(true);
                        counter.fetch_add(1, Ordering::Relaxed);
                        let talk = creep(&mut stream, i);
                        tokio::select! {
                            _ = talk => false,
                            _ = stopped.changed() => true,
                        }
                    });
                    if i % 50 == 0 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                let mut left = 0;
                while let Some(client) = clients.join_next().await {
                    left += usize::from(client.unwrap_or(false));
                }
                left
            })
        });
        Self {
            stop,
            begun,
            count,
            thread,
        }
    }

    fn wait_begun(&self) -> Result<()> {
        let begun = || self.begun.load(std::sync::atomic::Ordering::Relaxed);
        match crate::process::came_true(Duration::from_secs(30), || begun() == self.count) {
            true => Ok(()),
            false => bail!("{} of {} slow clients have begun", begun(), self.count),
        }
    }

    fn stop(self) -> usize {
        let _ = self.stop.send(true);
        self.thread.join().unwrap_or(0)
    }
}

/// Ends only when the balancer ends it.
async fn creep(stream: &mut TcpStream, i: usize) -> std::io::Result<()> {
    let tick = Duration::from_millis(300);
    match i % 3 {
        0 => {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ")
                .await?;
            loop {
                tokio::time::sleep(tick).await;
                stream.write_all(b"b").await?;
            }
        }
        1 => {
            stream
                .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
                .await?;
            loop {
                tokio::time::sleep(tick).await;
                stream.write_all(b"b").await?;
            }
        }
        _ => {
            stream
                .write_all(b"GET /bytes/20000000 HTTP/1.1\r\nHost: a\r\n\r\n")
                .await?;
            let mut byte = [0; 16];
            loop {
                tokio::time::sleep(tick).await;
                if stream.read(&mut byte).await? == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// Ten thousand idle and a thousand slow ones (fewer when quick), and reports.
///
/// # Errors
/// When something failed.
pub fn run(report: &mut Report, quick: bool) -> Result<()> {
    let (idle, slow, time) = match quick {
        true => (2_000, 200, Duration::from_secs(3)),
        false => (10_000, 1_000, Duration::from_secs(8)),
    };
    let outcome = play(idle, slow, time)?;
    println!("{outcome}");
    let alone = Figure::new("requests/s alone", outcome.alone, outcome.alone, "req/s");
    let beside = Figure::new(
        "requests/s beside them",
        outcome.beside,
        outcome.beside,
        "req/s",
    )
    .against(&alone)
    .target(Target::AtLeast(0.9));
    let bytes = outcome.per_idle as f64;
    let memory = Figure::new(
        "resident memory of an idle connection",
        bytes,
        bytes,
        "bytes",
    )
    .target(Target::Below(4096.0));
    let failed = outcome.failed as f64;
    let failed =
        Figure::new("requests failed", failed, failed, "requests").target(Target::Below(0.0));
    let title = format!("{idle} idle connections and {slow} slow clients");
    report.section(&title, vec![alone, beside, memory, failed]);
    ensure!(outcome.failed == 0, "{} requests failed", outcome.failed);
    ensure!(
        outcome.idle_left == idle,
        "{} idle connections were served again",
        outcome.idle_left
    );
    Ok(())
}
