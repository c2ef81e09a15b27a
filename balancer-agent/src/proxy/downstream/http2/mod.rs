//! The life of an HTTP/2 connection: h2, with bounds on everything that a client can make it
//! keep, and time kept over what it does not look at.
//!
//! ```text
//!             frames            requests                    responses
//! io <-----> h2 (Speaking) ---> begin: check ---> Stream: handler, body ---> h2
//!                 ^                                  ^
//!                 +------------- board --------------+   who has something to do
//! ```
//!
//! One task for all of it: streams are polled where the connection is, those alone that have
//! been woken; then what all of them have said is written, at once.
//!
//! - `board.rs`: wakers; `streams.rs`: what all streams have in common;
//! - `check.rs`: requests; `received.rs`: their bodies;
//! - `stream.rs`: one stream; `exchange.rs`: its answering side;
//! - `watch.rs`: time; `io.rs`: the socket.

mod board;
mod check;
mod exchange;
mod io;
mod received;
mod stream;
mod streams;
mod watch;

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection as H2, Handshake, SendResponse};
use http::{Method, Request};

use super::door::Ticket;
use super::inform::Inform;
use super::live::Refused;
use super::state::State;
use super::stream::Stream as Socket;
use super::{Body, Handler, extended};
use crate::model::http::Limits;
use board::Board;
use io::Io;
use received::Received;
use stream::{Answer, Stream};
use watch::{Look, Watch};

pub(super) use exchange::Exchange;
pub(super) use streams::{Running, Streams};

/// Request bytes that a client may send ahead, per stream and per connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Longest frame that is taken, the least that RFC 9113 allows.
const FRAME: u32 = 16 << 10;
/// How often streams and h2 may wake each other before others have their turn.
const ROUNDS: usize = 8;
/// Streams whose places are kept while none runs.
const KEPT: usize = 4;

/// Serves a connection to its end. `prefix` was read from it already.
pub(super) async fn serve<H: Handler>(
    socket: Socket,
    prefix: Vec<u8>,
    state: Rc<State>,
    ticket: Ticket,
    handler: Rc<H>,
) {
    state.timer.set(state.timer.now() + 1);
    let streams = Streams::new(Rc::clone(&state));
    let io = Io::new(socket, prefix, &streams, ticket);
    let handshake = builder(&state.settings().frontend.limits).handshake(io.clone());
    let mut connection = Connection {
        places: Places::default(),
        speaking: Speaking::Opening(handshake, false),
        io,
        watch: Watch::default(),
        streams,
        handler,
    };
    let live = state.door.live();
    live.http2.fetch_add(1, Relaxed);
    poll_fn(|cx| connection.poll(cx)).await;
    drop(connection);
    live.http2.fetch_sub(1, Relaxed);
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(limits.h2_streams)
        .max_frame_size(FRAME)
        // Also bounds CONTINUATION frames, which h2 counts against it.
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.h2_resets.min(64))
        .max_local_error_reset_streams(Some(limits.h2_resets))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(stream::SEND_BUFFER);
    builder
}

/// h2's side.
enum Speaking {
    /// The client's preface has not come. What comes is the last, if that is so.
    Opening(Handshake<Io, Bytes>, bool),
    Open(H2<Io, Bytes>),
}

impl Speaking {
    /// The next request. `None` at the end.
    #[expect(clippy::type_complexity, reason = "it is h2's")]
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>>> {
        loop {
            match self {
                Self::Open(h2) => return h2.poll_accept(cx),
                Self::Opening(handshake, last) => match ready!(Pin::new(handshake).poll(cx)) {
                    Ok(mut h2) => {
                        if *last {
                            h2.graceful_shutdown();
                        }
                        *self = Self::Open(h2);
                    }
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }
}

/// The streams of a connection and their wakers, by number.
struct Places {
    board: Board,
    places: Vec<Place>,
    free: Vec<usize>,
}

struct Place {
    waker: Waker,
    /// Kept for the next stream.
    exchange: Option<Rc<Exchange>>,
    stream: Option<Stream>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            board: Board::new(),
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl Places {
    /// A free one.
    fn take(&mut self) -> usize {
        if let Some(number) = self.free.pop() {
            return number;
        }
        let number = self.places.len();
        self.places.push(Place {
            waker: self.board.waker(number),
            exchange: None,
            stream: None,
        });
        number
    }

    /// Polls the streams that have been woken.
    fn poll(&mut self) {
        for group in 0..self.board.groups() {
            for number in self.board.take(group) {
                // What was woken late may be gone.
                let Some(place) = self.places.get_mut(number) else {
                    continue;
                };
                if let Some(stream) = &mut place.stream
                    && stream
                        .poll(&mut Context::from_waker(&place.waker))
                        .is_ready()
                {
                    place.stream = None;
                    self.free.push(number);
                }
            }
        }
    }

    /// Lets go of what no stream needs now. For when none has run for a while.
    fn shrink(&mut self) {
        if self.free.len() == self.places.len() {
            self.places.truncate(KEPT);
            self.free = (0..self.places.len()).rev().collect();
        }
    }
}

struct Connection<H> {
    /// First: what they have in h2 goes before it.
    places: Places,
    speaking: Speaking,
    io: Io,
    watch: Watch,
    streams: Rc<Streams>,
    handler: Rc<H>,
}

impl<H: Handler> Connection<H> {
    /// Ready at the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let state = Rc::clone(&self.streams.state);
        state.timer.register(cx);
        if state.door.cut.get() {
            return Poll::Ready(());
        }
        self.places.board.enter(cx.waker());
        for _ in 0..ROUNDS {
            if self.places.board.take_side() && self.poll_side().is_ready() {
                return Poll::Ready(());
            }
            self.places.poll();
            if self.watch(&state).is_ready() {
                return Poll::Ready(());
            }
            if self.places.board.leave() {
                return self.send();
            }
        }
        self.places.board.pause();
        self.send()
    }

    /// Writes what has been said. Ready at the end.
    fn send(&self) -> Poll<()> {
        let mut cx = Context::from_waker(self.places.board.side());
        match self.io.poll_send(&mut cx) {
            Poll::Ready(Err(error)) => {
                let client = self.streams.state.connection.client;
                tracing::debug!(%client, %error, "connection ended");
                Poll::Ready(())
            }
            _ => Poll::Pending,
        }
    }

    /// Has h2 read, and say what is to be said. Ready at the end.
    fn poll_side(&mut self) -> Poll<()> {
        loop {
            let mut cx = Context::from_waker(self.places.board.side());
            match ready!(self.speaking.poll_request(&mut cx)) {
                Some(Ok((request, respond))) => self.begin(request, respond),
                None => return Poll::Ready(()),
                Some(Err(error)) => {
                    let state = &self.streams.state;
                    tracing::debug!(client = %state.connection.client, %error, "connection ended");
                    if !error.is_io() {
                        // The client has broken the protocol, rather than gone away.
                        state.door.live().refuse(Refused::Http2);
                    }
                    return Poll::Ready(());
                }
            }
        }
    }

    /// One request: checked, handed to the handler.
    fn begin(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let state = &self.streams.state;
        let number = self.places.take();
        let place = &mut self.places.places[number];
        let exchange = exchange::renew(&mut place.exchange, Exchange::new(respond, &self.streams));
        let running = Running::new(&self.streams);
        let head = request.method() == Method::HEAD;
        let mut grant = None;
        let answer: Answer = match check::check(&request, state) {
            Err(early) => {
                let (parts, _body) = request.into_parts();
                let shown = check::shown(&parts);
                state.door.refuse(&state.connection, &shown, &early);
                Box::pin(std::future::ready(check::answer_refused(&early)))
            }
            Ok(()) => {
                state.door.live().requests.fetch_add(1, Relaxed);
                let websocket = extended::is_asked(&request);
                let (parts, recv) = request.into_parts();
                let request = if websocket {
                    self.streams.opening.set(false);
                    let mut request = Request::from_parts(parts, Body::Empty);
                    grant = Some(extended::ask(&mut request, recv, &self.streams));
                    request
                } else if recv.is_end_stream() {
                    Request::from_parts(parts, Body::Empty)
                } else {
                    self.streams.opening.set(false);
                    let length = check::length(&parts.headers);
                    let waits = check::waits(&parts.headers);
                    let exchange = Rc::clone(&exchange);
                    let body = Received::new(recv, length, waits, Rc::clone(state), exchange);
                    Request::from_parts(parts, Body::Boxed(Box::pin(body)))
                };
                let connection = Rc::clone(&state.connection);
                let inform = Inform::on(Rc::clone(&exchange));
                let handler = Rc::clone(&self.handler);
                stream::in_place(|| handler.handle(request, connection, inform))
            }
        };
        place.stream = Some(Stream::new(answer, head, grant, exchange, running));
        place.waker.wake_by_ref();
    }

    /// Minds the frontend's end, resets and the time. Ready when the connection has to go.
    fn watch(&mut self, state: &State) -> Poll<()> {
        let streams = Rc::clone(&self.streams);
        let resets = streams.resets.get();
        if resets > 0 && resets > state.settings().frontend.limits.h2_resets {
            // CVE-2023-44487: it only wants us to work.
            tracing::debug!(client = %state.connection.client, "too many reset streams");
            state.door.live().refuse(Refused::Http2);
            return Poll::Ready(());
        }
        if state.door.closing.get() && self.watch.may_say_goodbye(state, &streams) {
            self.goodbye(state);
        }
        if !state.timer.due() {
            return Poll::Pending;
        }
        if streams.active.get() == 0 && state.since.get() < state.timer.now() {
            self.places.shrink();
            self.io.shrink();
        }
        match self.watch.look(state, &streams, &mut self.speaking) {
            Look::Fine => {}
            Look::Over => return Poll::Ready(()),
            Look::Goodbye => self.goodbye(state),
            Look::Speak => self.places.board.mark_side(),
        }
        Poll::Pending
    }

    /// No further requests, and the end after those that run.
    fn goodbye(&mut self, state: &State) {
        self.watch.said_goodbye(state);
        match &mut self.speaking {
            Speaking::Open(h2) => h2.graceful_shutdown(),
            Speaking::Opening(_, last) => *last = true,
        }
        self.places.board.mark_side();
    }
}
