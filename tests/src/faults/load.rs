//! The client: so many writes of sessions per second, by HTTP over connections that are
//! kept, through agents taken at random.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::ledger::{Act, Job, Kept, Ledger, Seen};
use super::site::{KEPT, Site, frontend};
use super::{NODES, SERVERS};
use crate::sim::rng::Rng;

/// How long a request may take: longer than a response is held for copies.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an agent that did not answer is left alone, as whoever spreads clients over
/// agents would.
const AVOID: Duration = Duration::from_millis(300);
/// A moment without an acknowledged write that is longer counts as time without service.
const GAP: Duration = Duration::from_millis(500);

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Requests per second; nearly all of them are writes.
    pub per_second: u64,
    /// Clients at once, each with a connection to each agent.
    pub clients: usize,
    /// Source of chance.
    pub seed: u64,
}

/// When acknowledged writes came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Service {
    last: Option<Instant>,
    /// Longest time without an acknowledged write.
    pub longest: Duration,
    /// Sum of all such times of more than half a second.
    pub without: Duration,
}

impl Service {
    fn now(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let gap = now - last;
            self.longest = self.longest.max(gap);
            if gap > GAP {
                self.without += gap;
            }
        }
    }
}

struct Shared {
    stop: AtomicBool,
    paused: AtomicBool,
    running: AtomicU64,
    ledger: Mutex<Ledger>,
    service: Mutex<Service>,
}

/// Load under way.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    begun: Option<std::time::Instant>,
    /// How long load was on.
    pub time: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Ready to send, once it is let.
    pub fn start(site: &Site, ledger: Ledger, rate: Rate) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            paused: AtomicBool::new(true),
            running: AtomicU64::new(0),
            ledger: Mutex::new(ledger),
            service: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let store_id = site.id_maker();
        let thread = site.clients.spawn("sessions", move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, send(theirs, rate, Rc::new(store_id)));
        });
        Self {
            shared,
            thread: Some(thread),
            begun: None,
            time: Duration::ZERO,
        }
    }

    /// What the client knows.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.shared.ledger)
    }

    /// Times without service.
    pub fn service(&self) -> Service {
        *lock(&self.shared.service)
    }

    /// Goes on.
    pub fn resume(&mut self) {
        // While nothing is sent, nothing is missed.
        lock(&self.shared.service).last = None;
        self.begun = Some(std::time::Instant::now());
        self.shared.paused.store(false, Relaxed);
    }

    /// Sends no more, and waits until every request has ended.
    #[track_caller]
    pub fn pause(&mut self) {
        self.shared.paused.store(true, Relaxed);
        if let Some(begun) = self.begun.take() {
            self.time += begun.elapsed();
        }
        crate::process::wait_until("requests to end", 10 * PATIENCE, || {
            self.shared.running.load(Relaxed) == 0 && self.ledger().busy() == 0
        });
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would be the second one.
            let _ = thread.join();
        }
    }
}

/// What all clients share.
struct Clients {
    shared: Arc<Shared>,
    /// When the next request is due.
    next: Instant,
    step: Duration,
    rng: Rng,
    /// Until when an agent is left alone.
    avoid: [Option<Instant>; NODES],
    /// Requests at each agent.
    at: [usize; NODES],
    most: usize,
}

impl Clients {
    /// An agent that seems to be there, and is not stuck with what it has.
    fn agent(&mut self) -> usize {
        let now = Instant::now();
        let good = |at: &usize| {
            self.avoid[*at].is_none_or(|until| until <= now) && self.at[*at] < self.most
        };
        let all: Vec<usize> = (0..NODES).filter(good).collect();
        let any = self.rng.below(NODES as u64) as usize;
        self.rng.pick(&all).unwrap_or(any)
    }

    /// When the next request may be sent. What was missed while all clients waited is not
    /// made up for.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        self.next = (self.next + self.step).max(now - Duration::from_millis(100));
        self.next
    }
}

async fn send<F: Fn(&str) -> String + 'static>(shared: Arc<Shared>, rate: Rate, store_id: Rc<F>) {
    let clients = Rc::new(RefCell::new(Clients {
        shared: Arc::clone(&shared),
        next: Instant::now(),
        step: Duration::from_secs(1) / rate.per_second as u32,
        rng: Rng::new(rate.seed),
        avoid: [None; NODES],
        at: [0; NODES],
        most: rate.clients / 3,
    }));
    let tasks: Vec<_> = (0..rate.clients)
        .map(|_| {
            let (clients, store_id) = (Rc::clone(&clients), Rc::clone(&store_id));
            tokio::task::spawn_local(client(clients, store_id))
        })
        .collect();
    for task in tasks {
        task.await.expect("a client");
    }
}

async fn client<F: Fn(&str) -> String>(clients: Rc<RefCell<Clients>>, store_id: Rc<F>) {
    let shared = Arc::clone(&clients.borrow().shared);
    let mut connections: [Option<Connection>; NODES] = Default::default();
    while !shared.stop.load(Relaxed) {
        if shared.paused.load(Relaxed) {
            sleep(Duration::from_millis(5)).await;
            continue;
        }
        shared.running.fetch_add(1, Relaxed);
        let turn = clients.borrow_mut().turn();
        sleep_until(turn).await;
        if !shared.paused.load(Relaxed) {
            one(&clients, &shared, &mut connections, &*store_id).await;
        }
        shared.running.fetch_sub(1, Relaxed);
    }
}

async fn one(
    clients: &RefCell<Clients>,
    shared: &Shared,
    connections: &mut [Option<Connection>; NODES],
    store_id: impl Fn(&str) -> String,
) {
    let (job, agent) = {
        let mut clients = clients.borrow_mut();
        let job = lock(&shared.ledger).next(&mut clients.rng, store_id);
        let agent = clients.agent();
        clients.at[agent] += 1;
        (job, agent)
    };
    let seen = ask(&mut connections[agent], agent, job).await;
    let mut clients = clients.borrow_mut();
    clients.at[agent] -= 1;
    let seen = seen.unwrap_or_else(|_| {
        connections[agent] = None;
        clients.avoid[agent] = Some(Instant::now() + AVOID);
        Seen::Failed
    });
    lock(&shared.ledger).done(job, seen);
    if matches!(
        seen,
        Seen::Answered {
            kept: Some(Kept::Nodes { nodes: 1.., .. }),
            ..
        }
    ) {
        lock(&shared.service).now();
    }
}

/// One to an agent.
pub struct Connection(SendRequest<Empty<Bytes>>);

/// Why there is no answer. Nobody asks for more.
pub struct NoAnswer;

impl Connection {
    async fn open(agent: usize) -> Result<Self, NoAnswer> {
        let stream = TcpStream::connect(frontend(agent)).await;
        let stream = stream.map_err(|_| NoAnswer)?;
        let _ = stream.set_nodelay(true);
        let shaken = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|_| NoAnswer)?;
        tokio::task::spawn_local(connection);
        Ok(Self(sender))
    }

    /// Asks for a path, with the cookie of a session if it has one.
    async fn get(
        &mut self,
        path: &str,
        cookie: Option<&str>,
    ) -> Result<http::Response<hyper::body::Incoming>, NoAnswer> {
        let mut request = Request::get(path).header(header::HOST, "test.example");
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, format!("SID={cookie}"));
        }
        let request = request.body(Empty::new()).expect("a request");
        self.0.ready().await.map_err(|_| NoAnswer)?;
        self.0.send_request(request).await.map_err(|_| NoAnswer)
    }
}

async fn ask(
    connection: &mut Option<Connection>,
    agent: usize,
    job: Job,
) -> Result<Seen, NoAnswer> {
    let cookie = Ledger::cookie(job.session);
    let (path, cookie) = match job.act {
        Act::Make => (format!("/cookie?SID={cookie}"), None),
        Act::Visit => ("/status/200".to_owned(), Some(cookie)),
        Act::End => ("/cookie?SID=;Max-Age=0".to_owned(), Some(cookie)),
    };
    timeout(
        PATIENCE,
        exchange(connection, agent, &path, cookie.as_deref()),
    )
    .await
    .unwrap_or(Err(NoAnswer))
}

/// One request, on the connection that there is, or a new one.
pub async fn exchange(
    connection: &mut Option<Connection>,
    agent: usize,
    path: &str,
    cookie: Option<&str>,
) -> Result<Seen, NoAnswer> {
    if connection.as_ref().is_none_or(|c| c.0.is_closed()) {
        *connection = Some(Connection::open(agent).await?);
    }
    let Some(open) = connection else {
        return Err(NoAnswer);
    };
    let answer = open.get(path, cookie).await?;
    let (parts, body) = answer.into_parts();
    body.collect().await.map_err(|_| NoAnswer)?;
    if parts.status != StatusCode::OK {
        return Ok(Seen::Failed);
    }
    let text = |name: &str| parts.headers.get(name)?.to_str().ok();
    let server = text("x-server").and_then(|name| name.strip_prefix('s')?.parse().ok());
    let server = server.filter(|server| usize::from(*server) < SERVERS);
    let kept = text(KEPT).map(|text| Kept::parse(text).unwrap_or_else(|| panic!("{KEPT}: {text}")));
    match server {
        Some(server) => Ok(Seen::Answered { server, kept }),
        None => Err(NoAnswer),
    }
}
