//! Load from inside the client's namespace, with a record of every connection: who
//! answered, what failed, when it began and how long it took.
//!
//! [`sequential`] makes one connection after the other; [`Stream`] opens them at a
//! steady rate whatever becomes of the earlier ones; [`held::Held`] keeps connections
//! open and proves that nothing is lost on them; [`udp::flows`] speaks UDP.

pub mod held;
pub mod udp;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

use crate::netns::Netns;

/// How long a client waits for a connection or an answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How long one waits who wants to know what is lost, not what is late: time for three
/// repetitions of a SYN.
pub const LONG_PATIENCE: Duration = Duration::from_secs(10);

/// What a connection asks for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// The name that a TCP echo server says first; then both sides close.
    Name,
    /// An HTTP/1.1 request for a path; the answer's status must be 200.
    Http(String),
}

/// What went wrong with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// RST in answer to SYN.
    Refused,
    /// RST later.
    Reset,
    /// No connection within [`PATIENCE`].
    NotConnected,
    /// A connection, but no whole answer within [`PATIENCE`].
    NotAnswered,
    /// The server closed before its answer was whole.
    Closed,
    /// The answer was not what the protocol says.
    BadAnswer,
    /// The network said that there is no way.
    Unreachable,
    /// Another error, by its number.
    Other(i32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::NotConnected => "not connected in time",
            Self::NotAnswered => "not answered in time",
            Self::Closed => "closed early",
            Self::BadAnswer => "bad answer",
            Self::Unreachable => "unreachable",
            Self::Other(number) => return write!(f, "{}", io::Error::from_raw_os_error(*number)),
        })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused,
            Kind::ConnectionReset | Kind::BrokenPipe => Self::Reset,
            Kind::TimedOut => Self::NotConnected,
            Kind::UnexpectedEof => Self::Closed,
            Kind::InvalidData => Self::BadAnswer,
            Kind::HostUnreachable | Kind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other(error.raw_os_error().unwrap_or(0)),
        }
    }
}

/// One connection's story.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// When the client began to connect.
    pub started: Instant,
    /// Until the end, good or bad.
    pub took: Duration,
    /// The client's address, once connected.
    pub local: Option<SocketAddr>,
    /// Who answered, or what failed.
    pub outcome: Result<String, Failure>,
}

/// All connections of a load, in the order of their beginning.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The connections.
    pub attempts: Vec<Attempt>,
}

impl Report {
    /// How many connections each server answered.
    pub fn distribution(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for name in self.attempts.iter().filter_map(|a| a.outcome.as_ref().ok()) {
            *counts.entry(name.clone()).or_default() += 1;
        }
        counts
    }

    /// How often each failure was seen.
    pub fn failures(&self) -> BTreeMap<Failure, usize> {
        let mut counts = BTreeMap::new();
        for &failure in self
            .attempts
            .iter()
            .filter_map(|a| a.outcome.as_ref().err())
        {
            *counts.entry(failure).or_default() += 1;
        }
        counts
    }

    /// The number of failed connections.
    pub fn failed(&self) -> usize {
        self.attempts.iter().filter(|a| a.outcome.is_err()).count()
    }

    /// The servers in the order in which they answered.
    pub fn order(&self) -> Vec<&str> {
        let answered = self.attempts.iter().filter_map(|a| a.outcome.as_ref().ok());
        answered.map(String::as_str).collect()
    }

    /// The difference between the most and the least used of these servers.
    pub fn spread(&self, servers: &[&str]) -> usize {
        let counts = self.distribution();
        let of = |name: &&str| counts.get(*name).copied().unwrap_or(0);
        let most = servers.iter().map(of).max().unwrap_or(0);
        most - servers.iter().map(of).min().unwrap_or(0)
    }

    /// The connections that began at or after a moment.
    pub fn since(&self, moment: Instant) -> Report {
        let attempts = self.attempts.iter().filter(|a| a.started >= moment);
        Report {
            attempts: attempts.cloned().collect(),
        }
    }

    /// From a moment until the beginning of the last connection that failed; nothing
    /// when none did.
    pub fn last_failure(&self, since: Instant) -> Option<Duration> {
        self.last(since, |outcome| outcome.is_err())
    }

    /// From a moment until the beginning of the last connection that this server
    /// answered or that failed (it may have gone to that server): after that, no new
    /// connection reached it.
    pub fn last_reached(&self, server: &str, since: Instant) -> Option<Duration> {
        self.last(since, |outcome| {
            outcome.as_ref().map_or(true, |name| name == server)
        })
    }

    fn last(
        &self,
        since: Instant,
        counts: impl Fn(&Result<String, Failure>) -> bool,
    ) -> Option<Duration> {
        self.since(since)
            .attempts
            .iter()
            .filter(|a| counts(&a.outcome))
            .map(|a| a.started - since)
            .max()
    }
}

/// Makes `count` connections, one after the other has ended.
pub fn sequential(ns: &Netns, target: SocketAddr, ask: &Ask, count: usize) -> Report {
    sequential_with(ns, target, ask, count, |_| {})
}

/// Like [`sequential`]; `progress` is told how many are done.
pub fn sequential_with(
    ns: &Netns,
    target: SocketAddr,
    ask: &Ask,
    count: usize,
    progress: impl Fn(usize) + Sync,
) -> Report {
    ns.enter(|| {
        block_on(async {
            let mut report = Report::default();
            for done in 1..=count {
                report.attempts.push(attempt(target, ask, PATIENCE).await);
                progress(done);
            }
            report
        })
    })
}

/// Connections opened at a steady rate in the background, until stopped.
pub struct Stream {
    stop: Arc<AtomicBool>,
    started: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Report>>,
}

impl Stream {
    /// Starts to open `rate` connections per second.
    pub fn start(ns: &Netns, target: SocketAddr, ask: Ask, rate: u32) -> Self {
        Self::with(ns, target, ask, rate, PATIENCE)
    }

    /// Like [`start`](Self::start), with another patience than [`PATIENCE`].
    pub fn with(ns: &Netns, target: SocketAddr, ask: Ask, rate: u32, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Arc::new(AtomicU64::new(0));
        let answered = Arc::new(AtomicU64::new(0));
        let (stopped, begun, done) = (stop.clone(), started.clone(), answered.clone());
        let thread = ns.spawn("load", move || {
            block_on(async {
                let (sender, mut receiver) = mpsc::unbounded_channel();
                let ask = Arc::new(ask);
                let begin = tokio::time::Instant::now();
                let interval = Duration::from_secs(1) / rate.max(1);
                let mut number = 0;
                while !stopped.load(Ordering::Relaxed) {
                    sleep_until(begin + interval * number).await;
                    number += 1;
                    begun.fetch_add(1, Ordering::Relaxed);
                    let (sender, ask, done) = (sender.clone(), ask.clone(), done.clone());
                    tokio::spawn(async move {
                        let attempt = attempt(target, &ask, patience).await;
                        if attempt.outcome.is_ok() {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        // The receiver waits until the last sender is gone.
                        let _ = sender.send(attempt);
                    });
                }
                drop(sender);
                let mut report = Report::default();
                while let Some(attempt) = receiver.recv().await {
                    report.attempts.push(attempt);
                }
                report.attempts.sort_by_key(|a| a.started);
                report
            })
        });
        Self {
            stop,
            started,
            answered,
            thread: Some(thread),
        }
    }

    /// How many connections it has begun.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// How many connections have been answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `more` further connections have begun: load as a clock.
    pub fn wait_for(&self, more: u64) {
        let goal = self.started() + more;
        crate::process::wait_until("connections to begin", Duration::from_secs(120), || {
            self.started() >= goal
        });
    }

    /// Opens no more, waits for those under way, and returns the record.
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Report::default(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would be the second one.
            let _ = thread.join();
        }
    }
}

/// Makes one connection.
pub async fn attempt(target: SocketAddr, ask: &Ask, patience: Duration) -> Attempt {
    let started = Instant::now();
    let mut local = None;
    let outcome = converse(target, ask, patience, &mut local).await;
    Attempt {
        started,
        took: started.elapsed(),
        local,
        outcome,
    }
}

async fn converse(
    target: SocketAddr,
    ask: &Ask,
    patience: Duration,
    local: &mut Option<SocketAddr>,
) -> Result<String, Failure> {
    let mut stream = timeout(patience, TcpStream::connect(target))
        .await
        .map_err(|_| Failure::NotConnected)??;
    *local = stream.local_addr().ok();
    let answer = async {
        match ask {
            Ask::Name => name(&mut stream).await,
            Ask::Http(path) => http(&mut stream, target, path).await,
        }
    };
    let answer = timeout(patience, answer).await;
    Ok(answer.map_err(|_| Failure::NotAnswered)??)
}

async fn name(stream: &mut TcpStream) -> io::Result<String> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let Some(name) = line.strip_suffix('\n') else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let stream = reader.get_mut();
    stream.shutdown().await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    if !rest.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(name.to_owned())
}

async fn http(stream: &mut TcpStream, target: SocketAddr, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| io::ErrorKind::InvalidData)?;
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(have, _)| *have == name)
            .map(|(_, value)| value)
    };
    let length: usize = field("content-length")
        .and_then(|length| length.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    if answer.len() - (end + 4) < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let good = head.starts_with("HTTP/1.1 200 ");
    match field("x-server") {
        Some(name) if good => Ok(name.to_owned()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Runs a future on this thread, so that its sockets are made in this thread's
/// namespace.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}
