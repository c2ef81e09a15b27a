//! The connections of one thread to one backend: those that rest, and which one a request
//! gets.
//!
//! ```text
//! take: the one that rested last, if it is quiet -- else the next -- else a fresh one
//! keep: at the end of a response, at most so many; the one that rested longest gives way
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::time::{ClockId, clock_gettime};

use super::ajp::{self, Origin, Own};
use super::body::RequestBody;
use super::connect::{Connected, Parties, connect, connect_http1};
use super::endpoint::Speech;
use super::h1::{self, Answer};
use super::h2::{self, BackendTunnel, H2Connection};
use super::head::{Incoming, Outgoing};
use super::wire::Wire;
use super::{Deadlines, Failure, Inform, ResponseBody, SendError};
use crate::model::http::{BackendHttp, BackendProtocol};
use crate::proxy::timer::{Timer, within};

/// Streams that one HTTP/2 connection gets before another is opened.
const STREAMS: usize = 100;
/// Time between complaints of a thread about a backend.
const COMPLAINTS: Duration = Duration::from_secs(60);
/// HTTP/2 connections of a thread to a backend.
const HTTP2_CONNECTIONS: usize = 4;

/// What a request gets from a backend.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a box would be an allocation for each request"
)]
pub enum Sent {
    /// A response.
    Response(Box<Incoming>, ResponseBody),
    /// 101: a tunnel between the client and the backend.
    Switched(Box<Incoming>, Tunnel),
}

/// The backend's side of a tunnel.
pub enum Tunnel {
    /// A connection of its own.
    Http1(Box<Wire>),
    /// A stream.
    Http2(Box<BackendTunnel>),
}

/// What a request brings along beside its head and body.
pub struct Terms<'a> {
    /// For the PROXY header.
    pub parties: Parties,
    /// Whether it may be sent twice.
    pub idempotent: bool,
    /// The end of all.
    pub until: Option<Instant>,
    /// Where informational responses go.
    pub inform: &'a mut dyn Inform,
    /// What AJP13 tells beside the head.
    pub origin: Origin<'a>,
    /// Set once there is a connection.
    pub handed: &'a mut Option<Handed>,
    /// Whether anybody wants to know when that was: reading a clock costs a little.
    pub timed: bool,
}

/// When a request was handed to a connection. With another connection in place of one that
/// was closed, the last counts.
#[derive(Clone, Copy, Debug)]
pub struct Handed {
    /// How long the connection took; zero for a kept one.
    pub connect: Duration,
    /// When that was, if somebody wants to know.
    pub at: Option<Instant>,
}

impl Handed {
    pub(super) fn now(connect: Duration, timed: bool) -> Option<Self> {
        let at = timed.then(Instant::now);
        Some(Self { connect, at })
    }

    /// How long ago that was.
    pub fn elapsed(&self) -> Duration {
        self.at.map_or(Duration::ZERO, |at| at.elapsed())
    }
}

/// One thread's connections to one backend.
pub struct Connections {
    address: SocketAddr,
    #[expect(
        clippy::redundant_allocation,
        reason = "every request holds it: the count that all threads share would go from one \
                  processor to the other with each of them"
    )]
    speech: RefCell<Rc<Arc<Speech>>>,
    /// The one that rested last is at the back.
    idle: RefCell<VecDeque<Idle>>,
    http2: RefCell<Vec<Rc<H2Connection>>>,
    /// Held by the one request that opens an HTTP/2 connection.
    opening: tokio::sync::Mutex<()>,
    failed: Cell<Option<(Instant, bool)>>,
    /// TLS did not agree on HTTP/2.
    http1_only: Cell<bool>,
    /// For AJP13.
    own: RefCell<Rc<Own>>,
    /// Where heads of AJP13 are written before there is a connection.
    scratch: Cell<BytesMut>,
    complained: Cell<Option<Instant>>,
    closed: Cell<bool>,
}

struct Idle {
    wire: Box<Wire>,
    /// On [`resting_clock`].
    since: Duration,
}

/// Time to some milliseconds, for how long connections rest: every request asks twice, and
/// this clock costs a fraction of the exact one (clock_gettime(2), `CLOCK_MONOTONIC_COARSE`).
fn resting_clock() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

impl Connections {
    /// None yet.
    pub fn new(address: SocketAddr, speech: Arc<Speech>) -> Self {
        Self {
            address,
            speech: RefCell::new(Rc::new(speech)),
            idle: RefCell::default(),
            http2: RefCell::default(),
            opening: tokio::sync::Mutex::new(()),
            failed: Cell::new(None),
            http1_only: Cell::new(false),
            own: RefCell::default(),
            scratch: Cell::default(),
            complained: Cell::new(None),
            closed: Cell::new(false),
        }
    }

    /// Sends a request; a kept connection that turns out to be closed is replaced by a
    /// fresh one where that is safe.
    ///
    /// # Errors
    /// With the body, for another attempt.
    pub async fn send(
        self: &Rc<Self>,
        request: &mut Outgoing<'_>,
        mut body: RequestBody,
        terms: &mut Terms<'_>,
    ) -> Result<Sent, Failure> {
        let speech = Rc::clone(&self.speech.borrow());
        if speech.protocol == BackendProtocol::Ajp {
            return ajp::send(self, &speech, request, body, terms).await;
        }
        let mut fresh = speech.send_proxy.is_some();
        request.keep = !fresh && speech.keep_alive > 0;
        let deadlines = || Deadlines {
            response: speech.timeouts.response,
            idle: speech.timeouts.idle,
            total: Timer::at(terms.until),
        };
        loop {
            let kept = match fresh {
                true => None,
                false => self.take(!terms.idempotent, speech.timeouts.keep_alive),
            };
            let wire = match kept {
                Some((wire, _)) => {
                    *terms.handed = Handed::now(Duration::ZERO, terms.timed);
                    wire
                }
                None if speech.protocol == BackendProtocol::Http2 && !self.http1_only.get() => {
                    let websocket = request.is_websocket(body.extent());
                    match self.http2(&speech, terms.parties, fresh, websocket).await {
                        Ok(Spoken::Http2(connection, took)) => {
                            *terms.handed = Handed::now(took, terms.timed);
                            match h2::exchange(connection, request, body, deadlines(), terms.inform)
                                .await
                            {
                                Err(failure)
                                    if matches!(failure.error, SendError::Stale) && !fresh =>
                                {
                                    body = failure.body;
                                    if !body.rewind() {
                                        return Err(Failure { body, ..failure });
                                    }
                                    fresh = true;
                                    continue;
                                }
                                result => return result,
                            }
                        }
                        Ok(Spoken::Http1(wire, took)) => {
                            *terms.handed = Handed::now(took, terms.timed);
                            // For this request alone, when the backend speaks HTTP/2 as well.
                            request.keep &= self.http1_only.get();
                            wire
                        }
                        Err(error) => {
                            return Err(Failure {
                                error,
                                sent: false,
                                body,
                            });
                        }
                    }
                }
                None => {
                    let began = Instant::now();
                    match connect(self.address, &speech, terms.parties).await {
                        Ok(connected) => {
                            *terms.handed = Handed::now(began.elapsed(), terms.timed);
                            Box::new(Wire::new(connected.stream))
                        }
                        Err(error) => {
                            return Err(Failure {
                                error,
                                sent: false,
                                body,
                            });
                        }
                    }
                }
            };
            let home = request.keep.then(|| Rc::clone(self));
            let answer = h1::exchange(wire, home, request, body, deadlines(), terms.inform).await;
            match answer {
                Ok(Answer::Response(head, body)) => {
                    return Ok(Sent::Response(head, ResponseBody::Http1(body)));
                }
                Ok(Answer::Switched(head, wire)) => {
                    return Ok(Sent::Switched(head, Tunnel::Http1(wire)));
                }
                Err(failure)
                    if matches!(failure.error, SendError::Stale)
                        && (terms.idempotent || !failure.sent) =>
                {
                    body = failure.body;
                    if !body.rewind() {
                        return Err(Failure {
                            error: failure.error,
                            sent: failure.sent,
                            body,
                        });
                    }
                    fresh = true;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Where the backend listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the backend has of its own.
    pub(super) fn own(&self) -> Rc<Own> {
        Rc::clone(&self.own.borrow())
    }

    /// Takes over what the configuration says of the backend alone.
    pub fn set_own(&self, http: &BackendHttp) {
        self.own.replace(Rc::new(Own::from(http)));
    }

    /// An empty buffer; the one that [`Self::give_scratch`] got, if nobody has it.
    pub(super) fn scratch(&self) -> BytesMut {
        let mut scratch = self.scratch.take();
        scratch.clear();
        scratch
    }

    /// Takes a buffer back.
    pub(super) fn give_scratch(&self, scratch: BytesMut) {
        self.scratch.set(scratch);
    }

    /// Whether something may be said in the log that every request could cause.
    pub fn may_complain(&self) -> bool {
        let now = Instant::now();
        let may = (self.complained.get()).is_none_or(|last| now - last >= COMPLAINTS);
        if may {
            self.complained.set(Some(now));
        }
        may
    }

    /// Closes all that rest.
    pub(super) fn forget_idle(&self) {
        self.idle.borrow_mut().clear();
    }

    /// The connection that rested last, if one is quiet, and how long it rested; `asked`
    /// has the kernel asked.
    pub(super) fn take(&self, asked: bool, keep_alive: Duration) -> Option<(Box<Wire>, Duration)> {
        let mut idle = self.idle.borrow_mut();
        let now = resting_clock();
        while let Some(Idle { mut wire, since }) = idle.pop_back() {
            let rested = now.saturating_sub(since);
            if rested >= keep_alive {
                // All others have rested longer.
                idle.clear();
                return None;
            }
            if wire.is_quiet(asked) {
                return Some((wire, rested));
            }
        }
        None
    }

    /// Takes a connection back.
    pub(super) fn keep(&self, wire: Box<Wire>) {
        let most = self.speech.borrow().keep_alive;
        if self.closed.get() || most == 0 {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= most {
            idle.pop_front();
        }
        idle.push_back(Idle {
            wire,
            since: resting_clock(),
        });
    }

    /// A connection to a backend of HTTP/2: of HTTP/1.1 when it does not speak the other, or
    /// has no way for a WebSocket in it.
    async fn http2(
        &self,
        speech: &Arc<Speech>,
        parties: Parties,
        fresh: bool,
        websocket: bool,
    ) -> Result<Spoken, SendError> {
        let began = Instant::now();
        let spoken = self.shared(speech, parties, fresh).await?;
        let Spoken::Http2(connection, _) = &spoken else {
            return Ok(spoken);
        };
        if !websocket {
            return Ok(spoken);
        }
        // On a fresh connection the backend's settings are an answer away.
        let takes = within(speech.timeouts.connect, connection.takes_protocols());
        if takes.await.map_err(|_| SendError::ConnectTimeout)? {
            return Ok(spoken);
        }
        let stream = connect_http1(self.address, speech, parties).await?;
        let wire = Box::new(Wire::new(stream));
        Ok(Spoken::Http1(wire, began.elapsed()))
    }

    /// An HTTP/2 connection with room, or a fresh one.
    async fn shared(
        &self,
        speech: &Arc<Speech>,
        parties: Parties,
        fresh: bool,
    ) -> Result<Spoken, SendError> {
        if !fresh && let Some(connection) = self.roomy() {
            return Ok(Spoken::Http2(connection, Duration::ZERO));
        }
        let began = Instant::now();
        let _opening = self.opening.lock().await;
        // Another may have opened one meanwhile, or may have tried to.
        if let Some(connection) = self.roomy().filter(|_| speech.send_proxy.is_none()) {
            return Ok(Spoken::Http2(connection, began.elapsed()));
        }
        if let Some((at, late)) = self.failed.get()
            && at > began
        {
            return Err(match late {
                true => SendError::ConnectTimeout,
                false => SendError::Connect(io::ErrorKind::ConnectionRefused.into()),
            });
        }
        let connected = connect(self.address, speech, parties).await;
        let Connected { stream, http2 } = connected.inspect_err(|error| {
            let late = matches!(error, SendError::ConnectTimeout);
            self.failed.set(Some((Instant::now(), late)));
        })?;
        let took = began.elapsed();
        if !http2 {
            self.http1_only.set(true);
            return Ok(Spoken::Http1(Box::new(Wire::new(stream)), took));
        }
        let connection = Rc::new(H2Connection::open(stream).await?);
        if speech.send_proxy.is_none() && !self.closed.get() {
            let mut connections = self.http2.borrow_mut();
            connections.retain(|c| !c.is_closed());
            connections.push(Rc::clone(&connection));
        }
        Ok(Spoken::Http2(connection, took))
    }

    fn roomy(&self) -> Option<Rc<H2Connection>> {
        let connections = self.http2.borrow();
        let open = connections.iter().filter(|c| !c.is_closed());
        let least = open.min_by_key(|c| c.streams())?;
        let full = least.streams() >= STREAMS && connections.len() < HTTP2_CONNECTIONS;
        (!full).then(|| Rc::clone(least))
    }

    /// Lets go of what has ended or rested for too long.
    fn sweep(&self, now: Instant) {
        let keep_alive = self.speech.borrow().timeouts.keep_alive;
        let rested = |since: Instant| now.saturating_duration_since(since) >= keep_alive;
        let mut idle = self.idle.borrow_mut();
        let coarse = resting_clock();
        idle.retain_mut(|idle| {
            coarse.saturating_sub(idle.since) < keep_alive && idle.wire.is_quiet(false)
        });
        if idle.is_empty() {
            idle.shrink_to_fit();
        }
        drop(idle);
        let mut connections = self.http2.borrow_mut();
        connections.retain(|c| !c.is_closed() && !c.rests_since().is_some_and(rested));
    }

    /// Nothing is kept any more.
    fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
        self.http2.borrow_mut().clear();
    }

    /// Connections that rest.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }
}

enum Spoken {
    Http2(Rc<H2Connection>, Duration),
    Http1(Box<Wire>, Duration),
}

/// Pool and backend.
type Key = (Arc<str>, Arc<str>);

/// All connections of one thread to backends.
#[derive(Default)]
pub struct Upstreams {
    backends: RefCell<HashMap<Key, Rc<Connections>>>,
}

impl Upstreams {
    /// The connections to a backend: those that there are, unless it has moved or is spoken
    /// to in another way.
    pub fn backend(
        &self,
        pool: &Arc<str>,
        name: &Arc<str>,
        address: SocketAddr,
        speech: &Arc<Speech>,
        http: &BackendHttp,
    ) -> Rc<Connections> {
        let mut backends = self.backends.borrow_mut();
        let key = (Arc::clone(pool), Arc::clone(name));
        if let Some(known) = backends.get(&key) {
            let current = Rc::clone(&known.speech.borrow());
            if known.address == address
                && (Arc::ptr_eq(&current, speech) || current.is_same(speech))
            {
                *known.speech.borrow_mut() = Rc::new(Arc::clone(speech));
                known.set_own(http);
                return Rc::clone(known);
            }
            known.close();
        }
        let made = Rc::new(Connections::new(address, Arc::clone(speech)));
        made.set_own(http);
        backends.insert(key, Rc::clone(&made));
        made
    }

    /// Closes the connections to backends that are no more.
    pub fn retain(&self, keep: impl Fn(&str, &str) -> bool) {
        self.backends.borrow_mut().retain(|(pool, name), known| {
            let kept = keep(pool, name);
            if !kept {
                known.close();
            }
            kept
        });
    }

    /// Lets go of connections that have ended or rested for too long; to be called every
    /// second or so.
    pub fn sweep(&self) {
        let now = Instant::now();
        for connections in self.backends.borrow().values() {
            connections.sweep(now);
        }
    }

    /// Connections that rest, over all backends.
    pub fn idle(&self) -> usize {
        self.backends.borrow().values().map(|c| c.idle()).sum()
    }
}
