//! Load that proves what became of every request: each carries a nonce that comes back in
//! its answer, so an answer to another's request is seen; and the servers' journal says
//! how often each nonce was served.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::app::NONCE;
use super::apps;
use crate::netns::Netns;

/// How long a request may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is sent.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Number of the first client: part of its nonces.
    pub first: usize,
    /// Connections at once.
    pub connections: usize,
    /// Every so many-th request is a POST; 0 for none.
    pub post_every: u64,
    /// Speaks HTTP/2, with as many streams per connection.
    pub http2: Option<usize>,
    /// Where requests go.
    pub path: String,
    /// A new connection after so many requests; 0 for never.
    pub per_connection: u64,
    /// Pause between the requests of a connection.
    pub pause: Duration,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            first: 0,
            connections: 16,
            post_every: 0,
            http2: None,
            path: "/echo".to_owned(),
            per_connection: 0,
            pause: Duration::ZERO,
        }
    }
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answered with what belongs to them.
    pub good: u64,
    /// Of these, answers per server.
    pub servers: BTreeMap<String, u64>,
    /// Answers that belong to another request.
    pub mixed: u64,
    /// Statuses of idempotent requests that were no success.
    pub idempotent: BTreeMap<u16, u64>,
    /// Statuses of POSTs that were no success.
    pub posts: BTreeMap<u16, u64>,
    /// Idempotent requests without an answer, by what happened.
    pub lost: BTreeMap<String, u64>,
    /// POSTs without an answer.
    pub lost_posts: BTreeMap<String, u64>,
    /// Longest time that an answer took.
    pub slowest: Duration,
    /// Some answers that were no success, as they came.
    pub examples: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        fn sum<K: Ord>(into: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
            for (key, count) in from {
                *into.entry(key).or_default() += count;
            }
        }
        self.good += other.good;
        self.mixed += other.mixed;
        self.slowest = self.slowest.max(other.slowest);
        sum(&mut self.servers, other.servers);
        sum(&mut self.idempotent, other.idempotent);
        sum(&mut self.posts, other.posts);
        sum(&mut self.lost, other.lost);
        sum(&mut self.lost_posts, other.lost_posts);
        self.examples.extend(other.examples);
        self.examples.truncate(8);
    }

    /// Idempotent requests that failed in whatever way.
    pub fn failed(&self) -> u64 {
        self.idempotent.values().sum::<u64>() + self.lost.values().sum::<u64>()
    }
}

/// Load under way.
pub struct Chaos {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<Tally>>,
}

impl Chaos {
    /// Starts to send.
    pub fn start(ns: &Netns, to: SocketAddr, mix: Mix) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = ns.spawn("chaos", move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let clients: Vec<_> = (0..mix.connections)
                    .map(|i| {
                        let client = Client {
                            number: mix.first + i,
                            to,
                            mix: mix.clone(),
                            stop: Arc::clone(&stopped),
                            done: Arc::clone(&counted),
                            sent: 0,
                            tally: Tally::default(),
                        };
                        tokio::task::spawn_local(client.run())
                    })
                    .collect();
                let mut tally = Tally::default();
                for client in clients {
                    tally.add(client.await.expect("a client"));
                }
                tally
            })
        });
        Self {
            stop,
            done,
            thread: Some(thread),
        }
    }

    /// Requests that have ended, in whatever way.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until so many more have ended.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let goal = self.done() + more;
        crate::process::wait_until("requests to end", Duration::from_secs(120), || {
            self.done() >= goal
        });
    }

    /// Sends no more, waits for what is under way, and returns the tally.
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(tally)) => tally,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Tally::default(),
        }
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would be the second one.
            let _ = thread.join();
        }
    }
}

enum Sender {
    One(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Two(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

struct Client {
    number: usize,
    to: SocketAddr,
    mix: Mix,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    sent: u64,
    tally: Tally,
}

impl Client {
    async fn run(mut self) -> Tally {
        while !self.stop.load(Ordering::Relaxed) {
            match self.connect().await {
                Ok(sender) => self.use_up(sender).await,
                Err(error) => {
                    // A frontend that listens takes connections.
                    *self
                        .tally
                        .lost
                        .entry(format!("connect: {error}"))
                        .or_default() += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        self.tally
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = TcpStream::connect(self.to)
            .await
            .map_err(|e| e.to_string())?;
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(stream);
        if self.mix.http2.is_some() {
            let shake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
            let (sender, connection) = shake.await.map_err(|e| e.to_string())?;
            tokio::task::spawn_local(connection);
            return Ok(Sender::Two(sender));
        }
        let shake = hyper::client::conn::http1::handshake(io);
        let (sender, connection) = shake.await.map_err(|e| e.to_string())?;
        tokio::task::spawn_local(connection);
        Ok(Sender::One(sender))
    }

    /// Sends on a connection until it ends or has had its requests.
    async fn use_up(&mut self, mut sender: Sender) {
        let mut count = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.mix.per_connection > 0 && count >= self.mix.per_connection {
                return;
            }
            // A connection that the balancer has closed meanwhile is no failure.
            let ready = match &mut sender {
                Sender::One(sender) => sender.ready().await.is_ok(),
                Sender::Two(sender) => sender.ready().await.is_ok(),
            };
            if !ready {
                return;
            }
            count += 1;
            let streams = self.mix.http2.unwrap_or(1);
            let good = match &mut sender {
                Sender::One(sender) => {
                    let (nonce, method, request) = self.request();
                    let answer = sender.send_request(request);
                    self.judge(nonce, method, answer).await
                }
                Sender::Two(sender) => {
                    let mut all = Vec::new();
                    for _ in 0..streams {
                        let (nonce, method, request) = self.request();
                        all.push((nonce, method, sender.send_request(request)));
                    }
                    let mut good = true;
                    for (nonce, method, answer) in all {
                        good &= self.judge(nonce, method, answer).await;
                    }
                    good
                }
            };
            if !good {
                return;
            }
            if !self.mix.pause.is_zero() {
                tokio::time::sleep(self.mix.pause).await;
            }
        }
    }

    fn request(&mut self) -> (String, Method, Request<Full<Bytes>>) {
        self.sent += 1;
        let nonce = format!("{}-{}", self.number, self.sent);
        let post = self.mix.post_every > 0 && self.sent.is_multiple_of(self.mix.post_every);
        let (method, body) = match post {
            true => (Method::POST, Bytes::from_static(b"a body")),
            false => (Method::GET, Bytes::new()),
        };
        let uri = match self.mix.http2 {
            Some(_) => format!("http://test.example{}", self.mix.path),
            None => self.mix.path.clone(),
        };
        let mut request = Request::builder()
            .method(&method)
            .uri(uri)
            .header(NONCE, &nonce);
        if self.mix.http2.is_none() {
            request = request.header("host", "test.example");
        }
        let request = request.body(Full::new(body)).expect("a request");
        (nonce, method, request)
    }

    /// Whether the connection may go on.
    async fn judge(
        &mut self,
        nonce: String,
        method: Method,
        answer: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
    ) -> bool {
        let begin = tokio::time::Instant::now();
        let whole = async {
            let (parts, body) = answer.await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>((parts, body))
        };
        let result = timeout(PATIENCE, whole).await;
        self.done.fetch_add(1, Ordering::Relaxed);
        let idempotent = method != Method::POST;
        let what = match result {
            Ok(Ok((parts, body))) => {
                self.tally.slowest = self.tally.slowest.max(begin.elapsed());
                let field = |name: &str| parts.headers.get(name)?.to_str().ok();
                if parts.status != StatusCode::OK {
                    let counts = match idempotent {
                        true => &mut self.tally.idempotent,
                        false => &mut self.tally.posts,
                    };
                    *counts.entry(parts.status.as_u16()).or_default() += 1;
                    if self.tally.examples.len() < 8 {
                        let text = String::from_utf8_lossy(&body).into_owned();
                        self.tally
                            .examples
                            .push(format!("{method} {nonce}: {parts:?} {text}"));
                    }
                    // HTTP/1 answers to failures may close; `ready` will say so.
                    return true;
                }
                // The answer's own word, and the request as the server printed it.
                let theirs = field(NONCE) == Some(&nonce)
                    && (self.mix.path != "/echo"
                        || String::from_utf8_lossy(&body).contains(&format!("\"{nonce}\"")));
                if !theirs {
                    self.tally.mixed += 1;
                    return false;
                }
                self.tally.good += 1;
                let server = field("x-server").unwrap_or_default().to_owned();
                *self.tally.servers.entry(server).or_default() += 1;
                return true;
            }
            Ok(Err(error)) => {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(inner) = source {
                    text += &format!(": {inner}");
                    source = inner.source();
                }
                text
            }
            Err(_) => "no answer in time".to_owned(),
        };
        let counts = match idempotent {
            true => &mut self.tally.lost,
            false => &mut self.tally.lost_posts,
        };
        *counts.entry(what).or_default() += 1;
        false
    }
}

/// Nonces of POSTs that the servers were sent more than once, with the servers.
pub fn sent_twice(journal: &Path) -> Vec<(String, Vec<(String, String)>)> {
    let all = apps::journal(journal).into_iter();
    all.filter(|(_, times)| times.len() > 1 && times.iter().any(|(method, _)| method == "POST"))
        .collect()
}
