//! A stream: its handler, then its response on the way.
//!
//! ```text
//! Handling --response--> Sending --last piece with h2--> over
//!    |                      |
//!    +---- client's reset --+---> over: what was dropped is cancelled
//! ```

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use h2::{Reason, SendStream};
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body as _, Frame};

use super::super::extended::{self, Grant};
use super::super::{Body, date};
use super::check::answer_refused;
use super::exchange::Exchange;
use super::streams::Running;

/// Response bytes that h2 keeps per stream while the client opens no window; a larger piece
/// is given to it in parts.
pub(super) const SEND_BUFFER: usize = 64 << 10;

/// What a request becomes.
pub(super) type Answer = Pin<Box<dyn Future<Output = Response<Body>>>>;

/// Has a handler's future made where it stays: it is large, and would be copied otherwise.
#[inline(always)]
pub(super) fn in_place<F>(make: impl FnOnce() -> F) -> Answer
where
    F: Future<Output = Response<Body>> + 'static,
{
    let place = Box::<F>::new_uninit();
    let future: Box<F> = Box::write(place, make());
    Box::into_pin(future)
}

/// A stream with a request.
pub(super) struct Stream {
    stage: Stage,
    exchange: Rc<Exchange>,
    running: Running,
}

enum Stage {
    Handling(Handling),
    Sending(Sending),
}

struct Handling {
    answer: Answer,
    /// A response to this has no body, whatever its handler made.
    head: bool,
    /// The request asks for a WebSocket.
    grant: Option<Grant>,
}

struct Sending {
    body: Body,
    stream: SendStream<Bytes>,
    /// What h2 has not got yet of the body's last piece.
    piece: Bytes,
    /// The piece is the body's last.
    last: bool,
    /// Counted among [`super::Streams::held`].
    held: bool,
}

/// How a stream went on.
enum Step {
    /// It waits.
    Waits,
    /// It has ended.
    Over,
    /// The response is to be sent.
    Sends(Sending),
}

impl Stream {
    /// Of a request that is handled from now on.
    pub fn new(
        answer: Answer,
        head: bool,
        grant: Option<Grant>,
        exchange: Rc<Exchange>,
        running: Running,
    ) -> Self {
        Self {
            stage: Stage::Handling(Handling {
                answer,
                head,
                grant,
            }),
            exchange,
            running,
        }
    }

    /// Goes on as far as it can. Ready at its end, when it is to be dropped.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let step = match &mut self.stage {
                Stage::Handling(handling) => handling.step(cx, &self.exchange, &self.running),
                Stage::Sending(sending) => sending.step(cx, &self.running),
            };
            match step {
                Step::Waits => return Poll::Pending,
                Step::Over => return Poll::Ready(()),
                Step::Sends(sending) => self.stage = Stage::Sending(sending),
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Stage::Sending(sending) = &mut self.stage {
            sending.release(&self.running);
        }
        // Others may have it still.
        self.exchange.close();
    }
}

impl Handling {
    fn step(&mut self, cx: &mut Context<'_>, exchange: &Exchange, running: &Running) -> Step {
        let Poll::Ready(response) = self.answer.as_mut().poll(cx) else {
            let reset = exchange.with(|respond| respond.poll_reset(cx).is_ready());
            return match reset {
                Some(false) => Step::Waits,
                _ => {
                    let resets = &running.streams().resets;
                    resets.set(resets.get() + 1);
                    Step::Over
                }
            };
        };
        let streams = running.streams();
        // Nothing is held back for it any longer.
        streams.opening.set(false);
        let response = match exchange.refusal() {
            None if self.grant.is_some() => extended::answer(response),
            None => response,
            Some(late) => {
                streams.state.door.live().refuse(late.cause);
                answer_refused(&late)
            }
        };
        let (mut parts, body) = response.into_parts();
        strip(&mut parts.headers);
        parts.headers.entry(header::DATE).or_insert_with(date::now);
        let granted = match self.grant.take() {
            Some(grant) if parts.status == StatusCode::OK => Some(grant),
            _ => None,
        };
        let ended = body.is_end_stream();
        // RFC 9110, 6.4.1
        let no_content = matches!(
            parts.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        if !ended
            && !no_content
            && let Some(length) = body.size_hint().exact()
        {
            let length_field = parts.headers.entry(header::CONTENT_LENGTH);
            length_field.or_insert_with(|| length.into());
        }
        let bodyless = self.head || ended || no_content;
        let end = bodyless && granted.is_none();
        let Some(stream) = exchange.respond(Response::from_parts(parts, ()), end) else {
            return Step::Over;
        };
        if let Some(grant) = granted {
            grant.give(stream);
            return Step::Over;
        }
        match end {
            true => Step::Over,
            false => Step::Sends(Sending {
                body,
                stream,
                piece: Bytes::new(),
                last: false,
                held: false,
            }),
        }
    }
}

/// Takes out what HTTP/2 does not have (RFC 9113, 8.2.2).
fn strip(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::HeaderName::from_static("keep-alive"),
        header::HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

impl Sending {
    fn step(&mut self, cx: &mut Context<'_>, running: &Running) -> Step {
        loop {
            while self.piece.has_remaining() {
                if !self.has_room(cx) {
                    // The client's reset wakes as room does.
                    return match self.stream.poll_reset(cx).is_ready() {
                        true => Step::Over,
                        false => {
                            self.hold(running);
                            Step::Waits
                        }
                    };
                }
                self.release(running);
                let part = self.piece.split_to(self.piece.len().min(SEND_BUFFER));
                let last = self.last && self.piece.is_empty();
                if self.stream.send_data(part, last).is_err() || last {
                    return Step::Over;
                }
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(over) = self.take(frame) {
                        return over;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    // The client must not take the part for the whole.
                    tracing::debug!(%error, "a response broke off");
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Step::Over;
                }
                Poll::Ready(None) => {
                    // It fails when the client has reset the stream.
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Step::Over;
                }
                Poll::Pending => {
                    return match self.stream.poll_reset(cx).is_ready() {
                        true => Step::Over,
                        false => Step::Waits,
                    };
                }
            }
        }
    }

    /// Takes the next piece, or what follows the last one.
    fn take(&mut self, frame: Frame<Bytes>) -> Option<Step> {
        match frame.into_data() {
            Ok(data) => {
                self.last = self.body.is_end_stream();
                if data.is_empty() {
                    // Says nothing, unless it is the end.
                    return self.last.then(|| {
                        let _ = self.stream.send_data(data, true);
                        Step::Over
                    });
                }
                self.piece = data;
                None
            }
            Err(frame) => {
                let trailers = frame.into_trailers().ok()?;
                // What was asked for and not needed is for other streams.
                self.stream.reserve_capacity(0);
                if let Err(error) = self.stream.send_trailers(trailers) {
                    tracing::debug!(%error, "trailers can't be sent");
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                }
                Some(Step::Over)
            }
        }
    }

    /// Whether h2 takes something. All of a part is its then: it sends as the client makes
    /// room. Asked for is one byte, so that streams that wait keep no room from others.
    fn has_room(&mut self, cx: &mut Context<'_>) -> bool {
        self.stream.reserve_capacity(1);
        while self.stream.capacity() == 0 {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) | Poll::Pending => return false,
            }
        }
        true
    }

    /// The client has to take something.
    fn hold(&mut self, running: &Running) {
        if !std::mem::replace(&mut self.held, true) {
            running.streams().hold();
        }
    }

    fn release(&mut self, running: &Running) {
        if std::mem::take(&mut self.held) {
            running.streams().release();
        }
    }
}
