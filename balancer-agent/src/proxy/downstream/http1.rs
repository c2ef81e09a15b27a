//! The life of an HTTP/1 connection.
//!
//! ```text
//!          first byte .. head complete          idle for 100 ms and more
//!  parked ----------------------------> hyper --------------------------> parked
//!  (socket, guard,                        |  next head asks for an upgrade
//!   what came of a head)                  +--> parked --> hyper that can upgrade --> tunnel
//! ```
//!
//! A parked connection owns its socket, some hundred bytes of state and a timer: hyper and
//! its buffers are dropped, and made again when the next head is complete. Clients that send
//! heads byte by byte cost no more.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection as Hyper, UpgradeableConnection};
use hyper::service::service_fn;

use super::body::Sent;
use super::guard::Refusal;
use super::io::{Arrived, GuardIo};
use super::own_thread::OwnThread;
use super::state::{State, Verdict};
use super::{Body, Handler};
use crate::model::http::Limits;

/// hyper's least buffer.
const LEAST_BUFFER: usize = 8192;
/// Response bytes that are gathered before they are written; request bodies come in pieces
/// of up to this.
const BUFFER: usize = 64 << 10;

/// What becomes of a connection after hyper.
enum After {
    /// Nothing.
    Over,
    /// Parked, or hyper made anew.
    Park(Box<GuardIo>),
}

/// Serves a connection to its end; or gives the socket back when the client speaks HTTP/2.
pub(super) async fn serve<H: Handler>(
    mut io: Box<GuardIo>,
    state: Rc<State>,
    handler: Rc<H>,
    versions: (bool, bool),
) -> Option<Box<GuardIo>> {
    let mut first = Some(versions);
    loop {
        let upgrade = match arrive(&mut io, &state, first).await {
            Arrived::Closed => return None,
            Arrived::Http2 => return Some(io),
            Arrived::Head { upgrade } => upgrade,
        };
        first = None;
        // Boxed, so that the task of a parked connection is small.
        let answering: Pin<Box<dyn Future<Output = After>>> = match upgrade {
            false => Box::pin(with_hyper(io, Rc::clone(&state), Rc::clone(&handler))),
            true => Box::pin(with_upgrades(io, Rc::clone(&state), Rc::clone(&handler))),
        };
        match answering.await {
            After::Over => return None,
            After::Park(back) => io = back,
        }
    }
}

/// Waits for a head without hyper.
async fn arrive(io: &mut GuardIo, state: &State, first: Option<(bool, bool)>) -> Arrived {
    let mut parked = false;
    let arrived = poll_fn(|cx| {
        state.timer.register(cx);
        if state.door.cut.get() {
            return Poll::Ready(Arrived::Closed);
        }
        let polled = io.poll_arrive(cx, first);
        if polled.is_pending() && !parked {
            parked = true;
            state.door.live().parked.fetch_add(1, Relaxed);
        }
        polled
    })
    .await;
    if parked {
        state.door.live().parked.fetch_sub(1, Relaxed);
    }
    // The deadline of the head is none of what follows.
    state.timer.clear();
    arrived
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    // The guard keeps the time.
    builder.header_read_timeout(None);
    builder.max_buf_size((limits.head_bytes + LEAST_BUFFER).max(BUFFER));
    // hyper takes 100 without being told, and is slower when it is told.
    if limits.headers > 100 {
        builder.max_headers(limits.headers);
    }
    builder
}

async fn with_hyper<H: Handler>(io: Box<GuardIo>, state: Rc<State>, handler: Rc<H>) -> After {
    let builder = builder(&state.settings().frontend.limits);
    let service = service_fn(|request| answer(request, Rc::clone(&state), Rc::clone(&handler)));
    let mut hyper: Hyper<_, _> = builder.serve_connection(io, service);
    let parked = poll_fn(|cx| drive(&mut hyper, &state, cx, Hyper::graceful_shutdown)).await;
    match parked {
        false => After::Over,
        true => {
            let parts = hyper.into_parts();
            let mut io = parts.io;
            if !parts.read_buf.is_empty() {
                io.unread(&parts.read_buf);
            }
            After::Park(io)
        }
    }
}

async fn with_upgrades<H: Handler>(io: Box<GuardIo>, state: Rc<State>, handler: Rc<H>) -> After {
    let builder = builder(&state.settings().frontend.limits);
    let service = service_fn(|request| answer(request, Rc::clone(&state), Rc::clone(&handler)));
    let io = OwnThread::new(io);
    let mut hyper = builder.serve_connection(io, service).with_upgrades();
    state.upgradable.set(true);
    // The socket does not come back from this one: an idle connection is not parked, it only
    // keeps its time.
    poll_fn(|cx| {
        match drive(
            &mut hyper,
            &state,
            cx,
            UpgradeableConnection::graceful_shutdown,
        ) {
            Poll::Ready(true) => {
                let deadline = state.head_deadline();
                state.timer.set(deadline);
                match deadline <= state.timer.now() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            }
            Poll::Ready(false) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    After::Over
}

/// Polls hyper and minds the time. Ready with whether the connection is to be parked.
fn drive<C, E>(
    hyper: &mut C,
    state: &State,
    cx: &mut Context<'_>,
    graceful: impl Fn(Pin<&mut C>),
) -> Poll<bool>
where
    C: Future<Output = Result<(), E>> + Unpin,
    E: std::fmt::Display,
{
    state.timer.register(cx);
    if state.door.cut.get() {
        return Poll::Ready(false);
    }
    let mut told = false;
    let mut again = true;
    loop {
        match Pin::new(&mut *hyper).poll(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(false),
            Poll::Ready(Err(error)) => {
                tracing::debug!(client = %state.connection.client, %error, "connection ended");
                return Poll::Ready(false);
            }
            Poll::Pending => {}
        }
        // Not before hyper was polled: it would close without having read what is there.
        if state.door.closing.get() && !told {
            told = true;
            graceful(Pin::new(&mut *hyper));
            continue;
        }
        if state.rebuild.get() && state.between() {
            return Poll::Ready(true);
        }
        // hyper sleeps between requests; it has to read once more to meet the refusal.
        if again && state.refusal.get().is_some() && state.between() {
            again = false;
            continue;
        }
        if !state.timer.due() {
            return Poll::Pending;
        }
        match state.look() {
            Verdict::Fine => return Poll::Pending,
            Verdict::Body => {}
            Verdict::Abort => return Poll::Ready(false),
            Verdict::Park => return Poll::Ready(true),
        }
    }
}

/// One request: handed to the handler, its response made ready for the client.
async fn answer<H: Handler>(
    request: Request<Incoming>,
    state: Rc<State>,
    handler: Rc<H>,
) -> Result<Response<Sent>, Infallible> {
    state.started.set(state.started.get() + 1);
    let live = state.door.live();
    live.requests.fetch_add(1, Relaxed);
    live.in_flight.fetch_add(1, Relaxed);
    // Made first: it counts the request's end, in whatever way that comes.
    let sent = Sent::new(Rc::clone(&state));
    let connection = Rc::clone(&state.connection);
    let mut response = handler
        .handle(
            request.map(Body::Incoming),
            connection,
            state.inform.clone(),
        )
        .await;
    state.inform.clear();
    if let Some(refusal) = state.body_refusal.get() {
        live.refuse(refusal.cause);
        response = refused(&refusal);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if state.suspended.take() {
            state.tunnel.set(true);
        }
    } else if state.suspended.take()
        && let Some(waker) = state.waker.take()
    {
        waker.wake();
    }
    let most = state.settings().frontend.limits.requests_per_connection;
    if most.is_some_and(|most| state.started.get() >= most) {
        close(&mut response);
    }
    Ok(response.map(|body| sent.with(body)))
}

fn close(response: &mut Response<Body>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// A refusal as hyper sends it.
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = Response::new(Body::full(format!("{}\n", refusal.reason)));
    *response.status_mut() = StatusCode::from_u16(refusal.status).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if refusal.retry() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    close(&mut response);
    response
}
