//! Links: one connection for each pair of nodes, and one task for each peer.
//!
//! The node with the smaller id connects, the other one accepts. So there are never two
//! connections of one pair to choose from, what one node sends to another stays in order,
//! and both see a break at once. A link is up when the first frame has come in: whoever
//! accepts sends one only after it has found the other among the members.
//!
//! ```text
//! wait (for the other, or to try again) -> door -> TLS -> first frame -> up -> down -+
//!   ^--------------------------------------------------------------------------------+
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use rand::Rng as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsStream;

use super::door::Door;
use super::frame::{self, Frame, FrameError};
use super::id::{Incarnation, NodeId};
use super::queue::Queue;
use super::tls::{self, Identity};
use super::{Arrival, ClusterError, Event};

/// For a connection and its handshake.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);
/// From one ping to the next.
const PING: Duration = Duration::from_secs(1);
/// A link on which nothing comes in, or goes out, for so many pings is broken.
const SILENT: u32 = 10;
/// Pauses between attempts to connect; they double.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A link that lived for so long was a good one.
const GOOD: Duration = Duration::from_secs(10);
/// Bytes that are read at once, about.
const READ: usize = 64 << 10;

/// What is known of all links, for senders and for operators.
pub(super) struct Links {
    /// The queues of links that are up.
    pub(super) open: ArcSwap<BTreeMap<NodeId, Arc<Queue>>>,
    /// One for each peer that there should be a link to.
    pub(super) stats: Mutex<BTreeMap<NodeId, Arc<Stats>>>,
    /// Bounds of queues that are made from now on.
    pub(super) queue_bytes: AtomicUsize,
    pub(super) queue_messages: AtomicUsize,
}

impl Links {
    pub(super) fn new(queue_bytes: usize, queue_messages: usize) -> Self {
        Self {
            open: ArcSwap::default(),
            stats: Mutex::default(),
            queue_bytes: queue_bytes.into(),
            queue_messages: queue_messages.into(),
        }
    }

    fn queue(&self) -> Arc<Queue> {
        let bytes = self.queue_bytes.load(Relaxed);
        Arc::new(Queue::new(bytes, self.queue_messages.load(Relaxed)))
    }

    fn set_open(&self, node: NodeId, queue: &Arc<Queue>, up: bool) {
        // Rare, and the map is small: senders read it without a lock.
        self.open.rcu(|open| {
            let mut open = BTreeMap::clone(open);
            match up {
                true => _ = open.insert(node, Arc::clone(queue)),
                // Another link may have taken its place.
                false if open.get(&node).is_some_and(|q| Arc::ptr_eq(q, queue)) => {
                    open.remove(&node);
                }
                false => {}
            }
            open
        });
    }
}

/// What happened on the links to one peer.
#[derive(Default)]
pub(super) struct Stats {
    pub(super) up: AtomicBool,
    /// When `up` last changed, in milliseconds on the core's clock.
    pub(super) since: AtomicU64,
    /// Of the last ping, in microseconds; zero before the first.
    pub(super) round_trip: AtomicU64,
    pub(super) times_up: AtomicU64,
    pub(super) messages_out: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) messages_in: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) last_error: Mutex<Option<String>>,
}

impl Stats {
    pub(super) fn last_error(&self) -> Option<String> {
        let last = self.last_error.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_error(&self, error: &LinkError) {
        let mut last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(error.to_string());
    }
}

/// Why there is no link (any more).
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the handshake failed: {0}")]
    Handshake(io::Error),
    #[error("no answer in time")]
    Time,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("closed by the other node")]
    Closed,
    #[error("nothing came for {SILENT} s")]
    Silent,
    #[error("nothing could be sent for {SILENT} s")]
    Stuck,
    #[error("not understood: {0}")]
    Frame(#[from] FrameError),
    #[error("what came can't be read: {0}")]
    Refused(String),
    #[error("the node is gone, or has begun a new life")]
    Membership,
    #[error("this node has begun a new life")]
    Renewed,
    #[error("replaced by a newer connection")]
    Replaced,
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("the agent ends")]
    Ending,
}

/// Whom a link should lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) incarnation: Incarnation,
    pub(super) address: SocketAddr,
}

/// A connection that was accepted, and is of a member.
pub(super) struct Accepted {
    pub(super) incarnation: Incarnation,
    pub(super) stream: TlsStream<TcpStream>,
}

/// What all links need.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) own: NodeId,
    pub(super) started: Instant,
    pub(super) identity: watch::Receiver<Arc<Identity>>,
    pub(super) door: Arc<Door>,
    pub(super) links: Arc<Links>,
    pub(super) arrivals: mpsc::Sender<Arrival>,
    /// Nodes whose link broke.
    pub(super) lost: mpsc::Sender<NodeId>,
}

/// The task of one peer.
pub(super) struct Peer {
    pub(super) context: Context,
    pub(super) node: NodeId,
    pub(super) name: Arc<str>,
    /// Nothing: there should be no link now. The task ends with the sender.
    pub(super) target: watch::Receiver<Option<Target>>,
    pub(super) accepted: mpsc::Receiver<Accepted>,
    pub(super) stats: Arc<Stats>,
}

impl Peer {
    /// Keeps a link as long as there should be one.
    pub(super) async fn run(self) {
        let Self {
            context,
            node,
            name,
            mut target,
            mut accepted,
            stats,
        } = self;
        let dials = context.own < node;
        let mut identities = context.identity.clone();
        let mut pause = Pause::default();
        let mut next = None;
        loop {
            let Some(wanted) = *target.borrow_and_update() else {
                match target.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            };
            let identity = Arc::clone(&identities.borrow_and_update());
            let finding = async {
                match dials {
                    true => {
                        pause.wait().await;
                        let dialing = dial(node, wanted, &identity, &context.door);
                        let dialed = timeout(HANDSHAKE, dialing).await;
                        dialed.unwrap_or(Err(LinkError::Time))
                    }
                    false => wait_for(wanted, &mut accepted, &mut next).await,
                }
            };
            let found = tokio::select! {
                found = finding => found,
                changed = target.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                changed = identities.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let stream = match found {
                Ok(stream) => stream,
                Err(LinkError::Ending) => return,
                Err(error) => {
                    tracing::debug!(node = %name, %error, "no link");
                    stats.set_error(&error);
                    continue;
                }
            };
            let link = Link {
                node,
                incarnation: wanted.incarnation,
                queue: context.links.queue(),
                links: &context.links,
                arrivals: &context.arrivals,
                stats: &stats,
                started: context.started,
            };
            let born = Instant::now();
            let error = tokio::select! {
                error = link.run(stream) => error,
                changed = target.changed() => match changed {
                    Ok(()) => LinkError::Membership,
                    Err(_) => LinkError::Ending,
                },
                changed = identities.changed() => match changed {
                    Ok(()) => LinkError::Renewed,
                    Err(_) => LinkError::Ending,
                },
                newer = accepted.recv() => match newer {
                    Some(newer) => {
                        next = Some(newer);
                        LinkError::Replaced
                    }
                    None => LinkError::Ending,
                },
            };
            let was_up = link.end().await;
            if born.elapsed() >= GOOD {
                pause.reset();
            }
            if matches!(
                error,
                LinkError::Broken(_) | LinkError::Closed | LinkError::Silent | LinkError::Stuck
            ) {
                // Its membership may have the same reason: better to ask at once. When
                // many ask, one question less is no loss.
                let _ = context.lost.try_send(node);
            }
            tracing::debug!(node = %name, %error, was_up, "no link");
            stats.set_error(&error);
        }
    }
}

/// The time before the next attempt: longer and longer, and never the same for two nodes.
#[derive(Default)]
struct Pause(Option<Duration>);

impl Pause {
    fn reset(&mut self) {
        self.0 = None;
    }

    async fn wait(&mut self) {
        let Some(pause) = self.0 else {
            self.0 = Some(PAUSE);
            return;
        };
        self.0 = Some((pause * 2).min(PAUSE_MAX));
        let jitter = rand::rng().random_range(0.75..1.25);
        sleep(pause.mul_f64(jitter)).await;
    }
}

/// A connection of that life of a node.
async fn wait_for(
    target: Target,
    accepted: &mut mpsc::Receiver<Accepted>,
    next: &mut Option<Accepted>,
) -> Result<TlsStream<TcpStream>, LinkError> {
    loop {
        let found = match next.take() {
            Some(next) => next,
            None => accepted.recv().await.ok_or(LinkError::Ending)?,
        };
        if found.incarnation == target.incarnation {
            return Ok(found.stream);
        }
    }
}

/// A connection to that life of a node.
async fn dial(
    node: NodeId,
    target: Target,
    identity: &Identity,
    door: &Door,
) -> Result<TlsStream<TcpStream>, LinkError> {
    let mut stream = TcpStream::connect(target.address)
        .await
        .map_err(LinkError::Connect)?;
    // Small messages must not wait for acknowledgements.
    stream.set_nodelay(true).map_err(LinkError::Connect)?;
    door.answer(&mut stream, node, target.incarnation)
        .await
        .map_err(LinkError::Handshake)?;
    let name = tls::server_name(node, target.incarnation)?;
    let stream = identity.connector.connect(name, stream).await;
    Ok(stream.map_err(LinkError::Handshake)?.into())
}

/// One connection.
struct Link<'a> {
    node: NodeId,
    incarnation: Incarnation,
    queue: Arc<Queue>,
    links: &'a Links,
    arrivals: &'a mpsc::Sender<Arrival>,
    stats: &'a Stats,
    started: Instant,
}

impl Link<'_> {
    async fn run<S: AsyncRead + AsyncWrite>(&self, stream: S) -> LinkError {
        let (reader, writer) = tokio::io::split(stream);
        let watch = Liveness::default();
        let ended = tokio::select! {
            ended = self.read(reader, &watch) => ended,
            ended = self.write(writer, &watch) => ended,
            ended = self.ping(&watch) => ended,
            why = self.queue.refused() => Err(LinkError::Refused(why)),
        };
        match ended {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn read(
        &self,
        reader: tokio::io::ReadHalf<impl AsyncRead>,
        watch: &Liveness,
    ) -> Result<Never, LinkError> {
        tokio::pin!(reader);
        let mut input = BytesMut::with_capacity(READ);
        let mut first = true;
        loop {
            // Gives back the memory of messages that are done with.
            input.reserve(READ / 4);
            watch.reads.store(true, Relaxed);
            let count = match reader.read_buf(&mut input).await {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(LinkError::Broken(error)),
            };
            if count == 0 {
                return Err(LinkError::Closed);
            }
            watch.came.store(true, Relaxed);
            watch.reads.store(false, Relaxed);
            let mut messages = Vec::new();
            while let Some(frame) = frame::next(&mut input)? {
                if first {
                    first = false;
                    self.begin().await?;
                }
                match frame {
                    Frame::Data(content) => messages.push(content),
                    Frame::Ping(number) => {
                        self.queue.control(|out| frame::put_pong(out, number));
                    }
                    Frame::Pong(sent) => {
                        let took = self.microseconds().saturating_sub(sent);
                        self.stats.round_trip.store(took.max(1), Relaxed);
                    }
                }
            }
            self.stats.bytes_in.fetch_add(count as u64, Relaxed);
            if !messages.is_empty() {
                let count = messages.len() as u64;
                self.stats.messages_in.fetch_add(count, Relaxed);
                // While there is no room nothing is read: TCP holds the sender up.
                let batch = Arrival::Messages(self.node, self.incarnation, messages);
                self.tell(batch).await?;
            }
        }
    }

    async fn write(
        &self,
        writer: tokio::io::WriteHalf<impl AsyncWrite>,
        watch: &Liveness,
    ) -> Result<Never, LinkError> {
        tokio::pin!(writer);
        let mut buffer = BytesMut::new();
        loop {
            let messages;
            (buffer, messages) = self.queue.take(buffer).await;
            watch.writes.store(true, Relaxed);
            // In parts: one part that goes out is a sign of life.
            for part in buffer.chunks(READ) {
                writer.write_all(part).await.map_err(LinkError::Broken)?;
                watch.went.store(true, Relaxed);
            }
            writer.flush().await.map_err(LinkError::Broken)?;
            watch.went.store(true, Relaxed);
            watch.writes.store(false, Relaxed);
            self.stats.writes.fetch_add(1, Relaxed);
            self.stats.messages_out.fetch_add(messages as u64, Relaxed);
            self.stats.bytes_out.fetch_add(buffer.len() as u64, Relaxed);
        }
    }

    /// The first ping is at once: it brings the link up at the other side. Looks after the
    /// link by the way, so that reads and writes need no timers of their own.
    async fn ping(&self, watch: &Liveness) -> Result<Never, LinkError> {
        // Counted in pings, not in time: a process that was stopped has not listened.
        let (mut silent, mut stuck) = (0, 0);
        loop {
            let now = self.microseconds();
            self.queue.control(|out| frame::put_ping(out, now));
            sleep(PING).await;
            // While what was read finds no room, nothing can be said of the other side.
            silent = match watch.came.swap(false, Relaxed) || !watch.reads.load(Relaxed) {
                true => 0,
                false => silent + 1,
            };
            stuck = match watch.went.swap(false, Relaxed) || !watch.writes.load(Relaxed) {
                true => 0,
                false => stuck + 1,
            };
            if silent >= SILENT {
                return Err(LinkError::Silent);
            }
            if stuck >= SILENT {
                return Err(LinkError::Stuck);
            }
        }
    }

    async fn begin(&self) -> Result<(), LinkError> {
        // Before it is told, so that whoever hears of it can send.
        self.links.set_open(self.node, &self.queue, true);
        self.stats.times_up.fetch_add(1, Relaxed);
        self.stats.since.store(self.microseconds() / 1000, Relaxed);
        self.stats.up.store(true, Relaxed);
        self.tell(Arrival::Event(Event::LinkUp {
            node: self.node,
            incarnation: self.incarnation,
        }))
        .await
    }

    /// Whether it had been up.
    async fn end(&self) -> bool {
        self.queue.close();
        if !self.stats.up.swap(false, Relaxed) {
            return false;
        }
        self.links.set_open(self.node, &self.queue, false);
        self.stats.since.store(self.microseconds() / 1000, Relaxed);
        self.stats.round_trip.store(0, Relaxed);
        let event = Arrival::Event(Event::LinkDown {
            node: self.node,
            incarnation: self.incarnation,
        });
        // Whoever does not listen any more need not know.
        let _ = self.tell(event).await;
        true
    }

    async fn tell(&self, arrival: Arrival) -> Result<(), LinkError> {
        let told = self.arrivals.send(arrival).await;
        told.map_err(|_| LinkError::Ending)
    }

    fn microseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Signs of life of a link since they were last asked for, and what it is at.
#[derive(Default)]
struct Liveness {
    came: AtomicBool,
    went: AtomicBool,
    reads: AtomicBool,
    writes: AtomicBool,
}

/// What a loop without an end comes to.
enum Never {}
