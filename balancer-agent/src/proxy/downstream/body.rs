//! Bodies on their way: a response's end is noticed, a request's size and time are limited.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::Body;
use super::guard::Refusal;
use super::http2::{self, Streams};
use super::state::{RATE_WINDOW, State, slow};
use crate::proxy::timer::{Timer, ticks};
use crate::proxy::types::{BodyError, Cause};

/// The body of a response of HTTP/1. Dropping it ends the request in the connection's
/// account, whether hyper took all of it or not.
pub(super) struct Sent {
    body: Body,
    state: Rc<State>,
}

impl Sent {
    /// Without body yet.
    pub fn new(state: Rc<State>) -> Self {
        Self {
            body: Body::Empty,
            state,
        }
    }

    /// With its body.
    pub fn with(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.state.door.live().in_flight.fetch_sub(1, Relaxed);
        self.state.finish();
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response of HTTP/2: as [`Sent`], and it tells when the client has to take
/// something before more is asked for.
pub(super) struct SentStream {
    body: Body,
    state: Rc<State>,
    streams: Rc<Streams>,
    /// Counted among [`Streams::held`].
    held: bool,
}

impl SentStream {
    /// Of a stream that was counted as active until now.
    pub fn new(body: Body, state: Rc<State>, streams: Rc<Streams>) -> Self {
        Self {
            body,
            state,
            streams,
            held: false,
        }
    }

    fn release(&mut self) {
        self.streams.progress.set(self.state.timer.now());
        if std::mem::take(&mut self.held) {
            self.streams.held.set(self.streams.held.get() - 1);
        }
    }
}

impl Drop for SentStream {
    fn drop(&mut self) {
        self.release();
        http2::end(&self.state, &self.streams);
    }
}

impl HttpBody for SentStream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        this.release();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            this.held = true;
            this.streams.held.set(this.streams.held.get() + 1);
            let send = this.state.settings().frontend.timeouts.send;
            let timer = &this.state.timer;
            timer.set_at_latest(timer.now() + ticks(send));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body was refused: it is an error of the body, or the source of one.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Ended {
    /// What the client is answered, if it has no response yet.
    pub status: u16,
    /// For the log.
    pub cause: Cause,
    reason: &'static str,
}

impl Ended {
    /// By a refusal.
    pub(super) fn by(refusal: &Refusal) -> Self {
        Self {
            status: refusal.status,
            cause: refusal.cause.cause(),
            reason: refusal.reason,
        }
    }

    /// The refusal that an error of a body tells of; without one the client went away.
    pub fn of<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        loop {
            if let Some(ended) = error.downcast_ref() {
                return Some(ended);
            }
            // An error of input and output does not have what it carries as its source.
            let carried = error
                .downcast_ref::<std::io::Error>()
                .and_then(|e| e.get_ref());
            error = match carried {
                Some(carried) => carried,
                None => error.source()?,
            };
        }
    }
}

/// The body of a request of HTTP/2: limited in size, rate and silence.
pub(super) struct Received {
    body: Incoming,
    /// Bytes that may still come.
    left: u64,
    timer: Timer,
    /// Since when it is waited for.
    waiting: Option<u64>,
    /// Ticks waited, and bytes that came, in the present window.
    waited: u64,
    bytes: u64,
    state: Rc<State>,
    /// Where the reason goes.
    refusal: Rc<Cell<Option<Refusal>>>,
}

impl Received {
    /// With the limits of now.
    pub fn new(body: Incoming, state: Rc<State>, refusal: Rc<Cell<Option<Refusal>>>) -> Self {
        let left = state.settings().frontend.limits.body_bytes;
        Self {
            body,
            left: left.unwrap_or(u64::MAX),
            timer: Timer::never(),
            waiting: None,
            waited: 0,
            bytes: 0,
            state,
            refusal,
        }
    }

    fn refuse(&self, refusal: Refusal) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.refusal.set(Some(refusal));
        Poll::Ready(Some(Err(Ended::by(&refusal).into())))
    }

    /// Nothing is there: has it been so for too long?
    fn late(&mut self) -> bool {
        let now = self.timer.now();
        let since = *self.waiting.get_or_insert(now);
        let settings = self.state.settings();
        let timeouts = &settings.frontend.timeouts;
        let idle = since + ticks(timeouts.body_idle);
        let waited = self.waited + (now - since);
        self.timer.set(idle.min(now + RATE_WINDOW));
        idle <= now || slow(self.bytes, waited, timeouts.body_rate)
    }

    /// Something has come: slow nevertheless?
    fn came(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if let Some(since) = self.waiting.take() {
            self.waited += self.timer.now() - since;
        }
        if self.waited < RATE_WINDOW {
            return false;
        }
        let (bytes, waited) = (
            std::mem::take(&mut self.bytes),
            std::mem::take(&mut self.waited),
        );
        slow(
            bytes,
            waited,
            self.state.settings().frontend.timeouts.body_rate,
        )
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => {
                this.timer.register(cx);
                match this.late() {
                    true => this.refuse(Refusal::BODY_LATE),
                    false => Poll::Pending,
                }
            }
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let Some(left) = this.left.checked_sub(bytes as u64) else {
                    return this.refuse(Refusal::BODY);
                };
                this.left = left;
                match this.came(bytes) {
                    true => this.refuse(Refusal::BODY_LATE),
                    false => Poll::Ready(Some(Ok(frame))),
                }
            }
            Poll::Ready(end) => Poll::Ready(end.map(|e| e.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
