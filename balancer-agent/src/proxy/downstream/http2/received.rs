//! The body of a request of HTTP/2: limited in size, rate and silence. What has been taken
//! from it makes room for more; what nobody wants is not asked for.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::super::body::Ended;
use super::super::guard::Refusal;
use super::super::state::{RATE_WINDOW, State, slow};
use super::exchange::Exchange;
use crate::proxy::timer::{Timer, ticks};
use crate::proxy::types::BodyError;

/// A body on its way in.
pub(super) struct Received {
    body: RecvStream,
    /// The data have ended; trailers may follow.
    ended: bool,
    /// Bytes that its length still promises.
    rest: Option<u64>,
    /// The client waits to be told to go on.
    waits: bool,
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
    exchange: Rc<Exchange>,
}

impl Received {
    /// With the limits of now. Of this length, if it is told; h2 sees to it that it is true.
    pub fn new(
        body: RecvStream,
        length: Option<u64>,
        waits: bool,
        state: Rc<State>,
        exchange: Rc<Exchange>,
    ) -> Self {
        let left = state.settings().frontend.limits.body_bytes;
        Self {
            body,
            ended: false,
            rest: length,
            waits,
            left: left.unwrap_or(u64::MAX),
            timer: Timer::never(),
            waiting: None,
            waited: 0,
            bytes: 0,
            state,
            exchange,
        }
    }

    fn refuse(&self, refusal: Refusal) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.exchange.refuse(refusal);
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
        let rate = self.state.settings().frontend.timeouts.body_rate;
        slow(bytes, waited, rate)
    }

    /// The next piece as h2 has it.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        while !self.ended {
            match ready!(self.body.poll_data(cx)) {
                // How many of these come is h2's to bound.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    let freed = self.body.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(freed.map(|()| Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(cut(error)),
                None => self.ended = true,
            }
        }
        match ready!(self.body.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(cut(error)),
        }
    }
}

/// A reset with NO_ERROR means that no more of it comes (RFC 9113, 8.1).
fn cut(error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
    (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(error))
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this.poll_piece(cx) {
            Poll::Pending => {
                if std::mem::take(&mut this.waits) {
                    this.exchange
                        .inform(StatusCode::CONTINUE, &HeaderMap::new());
                }
                this.timer.register(cx);
                match this.late() {
                    true => this.refuse(Refusal::BODY_LATE),
                    false => Poll::Pending,
                }
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.waits = false;
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let Some(left) = this.left.checked_sub(bytes as u64) else {
                    return this.refuse(Refusal::BODY);
                };
                this.left = left;
                if let Some(rest) = &mut this.rest {
                    *rest = rest.saturating_sub(bytes as u64);
                }
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
        match self.rest {
            Some(rest) => SizeHint::with_exact(rest),
            None => SizeHint::new(),
        }
    }
}
