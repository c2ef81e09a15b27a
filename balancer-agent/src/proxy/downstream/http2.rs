//! The life of an HTTP/2 connection: hyper, with bounds on everything that a client can make
//! it keep, and time kept over what hyper does not look at.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, header, request};
use hyper::body::{Body as _, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::{Received, SentStream};
use super::door::Ticket;
use super::guard::{self, Refusal};
use super::http1::refused;
use super::io::LAST_CALL;
use super::live::Refused;
use super::source::Allowed;
use super::state::State;
use super::stream::Stream;
use super::{Body, Handler, extended};
use crate::model::http::{ClientTimeouts, Limits};
use crate::proxy::timer::ticks;

/// Request bytes that a client may send ahead, per stream and per connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Response bytes that are kept per stream while the client opens no window.
const SEND_BUFFER: usize = 64 << 10;
/// How long a ping may go unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take to close after GOAWAY when nothing runs any more.
const FAREWELL: Duration = Duration::from_secs(2);
/// Longest head that is shown of a refused request.
const SHOWN: usize = 4096;

/// Runs hyper's tasks on this thread.
#[derive(Clone, Copy, Debug)]
struct Here;

impl<F> hyper::rt::Executor<F> for Here
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// What the streams of a connection have in common.
#[derive(Default)]
pub(super) struct Streams {
    /// Requests that are handled or answered.
    pub active: Cell<usize>,
    /// Requests that the client has taken back before they were answered.
    pub resets: Cell<usize>,
    /// Responses of which the client has to take something before more is made.
    pub held: Cell<usize>,
    /// When one of them was last taken from.
    pub progress: Cell<u64>,
}

/// Serves a connection to its end. `prefix` was read from it already.
pub(super) async fn serve<H: Handler>(
    stream: Stream,
    prefix: Vec<u8>,
    state: Rc<State>,
    ticket: Ticket,
    handler: Rc<H>,
) {
    let streams = Rc::new(Streams::default());
    let io = Io {
        stream,
        prefix,
        opening: true,
        held: Vec::new(),
        state: Rc::clone(&state),
        _ticket: ticket,
    };
    let service = service_fn(|request| {
        answer(
            request,
            Rc::clone(&state),
            Rc::clone(&streams),
            Rc::clone(&handler),
        )
    });
    let mut hyper = {
        let settings = state.settings();
        builder(&settings.frontend.limits, &settings.frontend.timeouts)
            .serve_connection(io, service)
    };
    let live = state.door.live();
    live.http2.fetch_add(1, Relaxed);
    let mut told = None;
    state.timer.set(state.timer.now() + 1);
    poll_fn(|cx| {
        state.timer.register(cx);
        if state.door.cut.get() {
            return Poll::Ready(());
        }
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut hyper).poll(cx) {
                if let Err(error) = ended {
                    tracing::debug!(client = %state.connection.client, %error, "connection ended");
                    if broken(&error) {
                        live.refuse(Refused::Http2);
                    }
                }
                return Poll::Ready(());
            }
            if state.door.closing.get() && told.is_none() && begun(&state, &streams) {
                told = Some(state.timer.now());
                Pin::new(&mut hyper).graceful_shutdown();
                continue;
            }
            if streams.resets.get() > state.settings().frontend.limits.h2_resets {
                // CVE-2023-44487: it only wants us to work.
                tracing::debug!(client = %state.connection.client, "too many reset streams");
                live.refuse(Refused::Http2);
                return Poll::Ready(());
            }
            if !state.timer.due() {
                return Poll::Pending;
            }
            match look(&state, &streams, told) {
                Look::Fine => return Poll::Pending,
                Look::Over => return Poll::Ready(()),
                Look::Goodbye => {
                    told = Some(state.timer.now());
                    state.timer.set(state.timer.now() + ticks(FAREWELL));
                    Pin::new(&mut hyper).graceful_shutdown();
                }
            }
        }
    })
    .await;
    live.http2.fetch_sub(1, Relaxed);
}

/// Whether the client has had the time to ask for something: hyper closes at once when it is
/// told to go while the connection begins.
fn begun(state: &State, streams: &Streams) -> bool {
    let deadline = state.since.get() + ticks(LAST_CALL);
    if streams.active.get() > 0 || state.finished.get() > 0 || deadline <= state.timer.now() {
        return true;
    }
    state.timer.set_at_latest(deadline);
    false
}

/// Whether the client has broken the protocol, rather than gone away.
fn broken(error: &hyper::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some() {
            return false;
        }
        source = error.source();
    }
    !error.is_closed() && !error.is_canceled() && !error.is_incomplete_message()
}

fn builder(limits: &Limits, timeouts: &ClientTimeouts) -> Builder<Here> {
    let mut builder = Builder::new(Here);
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(limits.h2_streams)
        // Also bounds CONTINUATION frames, which h2 counts against it.
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(limits.h2_resets.min(64))
        .max_local_error_reset_streams(limits.h2_resets)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Some((timeouts.keep_alive / 2).max(PING_TIMEOUT)))
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

enum Look {
    Fine,
    Over,
    Goodbye,
}

/// Looks at everything that is waited for, and sets the timer for what is next.
fn look(state: &State, streams: &Streams, told: Option<u64>) -> Look {
    let now = state.timer.now();
    let settings = state.settings();
    let timeouts = &settings.frontend.timeouts;
    let send = ticks(timeouts.send);
    let mut next = now + send;
    let mut stuck = state.write_wait.get();
    if streams.held.get() > 0 {
        let since = streams.progress.get();
        stuck = Some(stuck.map_or(since, |s| s.min(since)));
    }
    if let Some(since) = stuck {
        if since + send <= now {
            state.door.live().send_timeouts.fetch_add(1, Relaxed);
            return Look::Over;
        }
        next = since + send;
    }
    if streams.active.get() == 0 {
        let deadline = match told {
            Some(since) => since + ticks(FAREWELL),
            None => state.since.get() + ticks(timeouts.keep_alive),
        };
        match (deadline <= now, told) {
            (true, Some(_)) => return Look::Over,
            (true, None) => return Look::Goodbye,
            (false, _) => next = next.min(deadline),
        }
    }
    state.timer.set(next);
    Look::Fine
}

/// Counts a stream; when it ends without a response, the client has reset it.
struct Running {
    state: Rc<State>,
    streams: Rc<Streams>,
    answered: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.answered {
            self.streams.resets.set(self.streams.resets.get() + 1);
            self.state.timer.set_at_latest(self.state.timer.now() + 1);
            end(&self.state, &self.streams);
        }
    }
}

/// A stream has ended.
pub(super) fn end(state: &State, streams: &Streams) {
    state.door.live().in_flight.fetch_sub(1, Relaxed);
    streams.active.set(streams.active.get() - 1);
    state.finish();
}

/// One request: checked, handed to the handler.
async fn answer<H: Handler>(
    request: Request<Incoming>,
    state: Rc<State>,
    streams: Rc<Streams>,
    handler: Rc<H>,
) -> Result<Response<SentStream>, Infallible> {
    let live = state.door.live();
    live.in_flight.fetch_add(1, Relaxed);
    streams.active.set(streams.active.get() + 1);
    let mut running = Running {
        state: Rc::clone(&state),
        streams: Rc::clone(&streams),
        answered: false,
    };
    let refusal = Rc::new(Cell::new(None));
    let websocket = extended::is_asked(&request);
    let response = match check(&request, &state) {
        Err(early) => {
            let (parts, _body) = request.into_parts();
            state.door.refuse(&state.connection, &shown(&parts), &early);
            answer_refused(&early)
        }
        Ok(()) => {
            live.requests.fetch_add(1, Relaxed);
            let mut request = request.map(|body| match body.is_end_stream() {
                true => Body::Incoming(body),
                false => Body::boxed(Received::new(body, Rc::clone(&state), Rc::clone(&refusal))),
            });
            if websocket {
                extended::ask(&mut request, &state, &streams);
            }
            let connection = Rc::clone(&state.connection);
            let response = Rc::clone(&handler).handle(request, connection).await;
            match refusal.get() {
                None if websocket => extended::answer(response),
                None => response,
                Some(late) => {
                    live.refuse(late.cause);
                    answer_refused(&late)
                }
            }
        }
    };
    running.answered = true;
    drop(running);
    Ok(response.map(|body| SentStream::new(body, state, streams)))
}

/// A refusal ends its stream, not the connection.
fn answer_refused(refusal: &Refusal) -> Response<Body> {
    let mut response = refused(refusal);
    response.headers_mut().remove(header::CONNECTION);
    response
}

/// What HTTP/1's guard does, as far as h2 leaves something to be done.
fn check(request: &Request<Incoming>, state: &State) -> Result<(), Refusal> {
    let settings = state.settings();
    let limits = &settings.frontend.limits;
    if let Some(rate) = limits.requests_per_source {
        let source = state.connection.client.ip();
        match state.door.bound.sources.request(source, rate) {
            Allowed::Yes => {}
            Allowed::No => return Err(Refusal::RATE),
            Allowed::Untracked => {
                let live = state.door.live();
                live.sources_untracked.fetch_add(1, Relaxed);
            }
        }
    }
    let method = match request.method() {
        &Method::CONNECT if extended::is_asked(request) => &Method::GET,
        &Method::CONNECT => return Err(guard::CONNECT),
        method => method,
    };
    let headers = request.headers();
    if headers.len() > limits.headers {
        return Err(guard::FIELDS);
    }
    let uri = request.uri();
    let target = uri.path_and_query().map_or("", |p| p.as_str());
    if target.len() > limits.target_bytes {
        return Err(guard::TARGET_LONG);
    }
    guard::check_target(
        method,
        target,
        uri.authority().map(|a| a.as_str()),
        one(headers)?,
    )?;
    let most = limits.body_bytes.unwrap_or(u64::MAX);
    if request.body().size_hint().lower() > most {
        return Err(Refusal::BODY);
    }
    Ok(())
}

/// The only `Host`, if there is one.
fn one(headers: &HeaderMap) -> Result<Option<&[u8]>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (host, None) => Ok(host.map(|h| h.as_bytes())),
        (_, Some(_)) => Err(guard::HOSTS),
    }
}

/// As much of a head as is worth a line in a log.
fn shown(parts: &request::Parts) -> Vec<u8> {
    let target = parts.uri.path_and_query().map_or("*", |p| p.as_str());
    let mut head = format!("{} {target} HTTP/2.0\r\n", parts.method).into_bytes();
    head.truncate(SHOWN);
    if let Some(host) = parts.uri.authority() {
        head.extend_from_slice(b"host: ");
        head.extend_from_slice(host.as_str().as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.truncate(2 * SHOWN);
    head
}

/// What is said before the client's first words have all been read is held back up to so
/// much.
const HELD: usize = 512;

/// The socket as hyper's HTTP/2 server sees it.
///
/// The first SETTINGS and the acknowledgement of the client's go out together, as soon as
/// there is nothing left to read: a client that sent its preface and a request in one piece
/// is woken once less, and a call is spared.
struct Io {
    stream: Stream,
    /// Read first.
    prefix: Vec<u8>,
    opening: bool,
    held: Vec<u8>,
    state: Rc<State>,
    _ticket: Ticket,
}

impl Io {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(Ok(n)) => {
                self.state.write_wait.set(None);
                let out = &self.state.bytes_out;
                out.set(out.get() + *n as u64);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.wait_for_write(),
        }
        polled
    }

    /// Writes what was held back; nothing is from here on.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.opening = false;
        while !self.held.is_empty() {
            let polled = Pin::new(&mut self.stream).poll_write(cx, &self.held);
            match ready!(self.wrote(polled))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => drop(self.held.drain(..n)),
            }
        }
        self.held = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Whether these bytes are held back.
    fn hold(&mut self, bufs: &[IoSlice<'_>]) -> Option<usize> {
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if !self.opening || self.held.len() + length > HELD {
            return None;
        }
        bufs.iter().for_each(|buf| self.held.extend_from_slice(buf));
        Some(length)
    }
}

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(cursor.remaining());
            cursor.put_slice(&this.prefix[..n]);
            this.prefix.drain(..n);
            return Poll::Ready(Ok(()));
        }
        // SAFETY: nothing is written to it but by `ReadBuf`, which only initialises.
        let mut buf = ReadBuf::uninit(unsafe { cursor.as_mut() });
        let polled = Pin::new(&mut this.stream).poll_read(cx, &mut buf);
        if polled.is_pending() && this.opening {
            // What does not go now goes with the next flush.
            if let Poll::Ready(Err(error)) = this.poll_held(cx) {
                return Poll::Ready(Err(error));
            }
        }
        ready!(polled)?;
        let n = buf.filled().len();
        let in_all = &this.state.bytes_in;
        in_all.set(in_all.get() + n as u64);
        // SAFETY: so many bytes have been initialised.
        unsafe { cursor.advance(n) };
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(held) = this.hold(&[IoSlice::new(buf)]) {
            return Poll::Ready(Ok(held));
        }
        ready!(this.poll_held(cx))?;
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(held) = this.hold(bufs) {
            return Poll::Ready(Ok(held));
        }
        ready!(this.poll_held(cx))?;
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.opening {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_held(cx))?;
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        if polled.is_pending() {
            this.state.wait_for_write();
        }
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
