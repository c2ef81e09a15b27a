//! The request's side of a stream: its body, as fast as the backend takes it.

use std::task::{Context, Poll};

use ::h2::{Reason, SendStream};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::super::body::{Extent, RequestBody};
use super::super::head::is_forbidden_trailer;
use super::super::wait::Waits;
use crate::proxy::timer::Timer;
use crate::proxy::types::BodyError;

/// A request's body under way.
pub struct Upload {
    stream: SendStream<Bytes>,
    body: RequestBody,
    /// Bytes that the length still promises.
    rest: Option<u64>,
    /// The body waits for a 100.
    held: Option<Timer>,
    done: bool,
}

impl Upload {
    /// Of this extent. A stream without a body has been ended with its head.
    pub fn new(
        stream: SendStream<Bytes>,
        body: RequestBody,
        extent: Extent,
        held: Option<Timer>,
    ) -> Self {
        Self {
            stream,
            body,
            rest: match extent {
                Extent::Length(length) => Some(length),
                Extent::None | Extent::Unknown => None,
            },
            held,
            done: extent == Extent::None,
        }
    }

    /// Whether all of it is sent, or no more of it is wanted.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes that came from the client.
    pub fn bytes(&self) -> u64 {
        self.body.bytes()
    }

    /// The backend has said 100. Whether that was waited for.
    pub fn go_on(&mut self) -> bool {
        self.held.take().is_some()
    }

    /// The final response has come before the 100: the body is not wanted.
    pub fn answered(&mut self) {
        if self.held.take().is_some() {
            self.done = true;
        }
    }

    /// The stream, when there is no body.
    pub fn into_stream(self) -> SendStream<Bytes> {
        self.stream
    }

    /// The body, for another attempt.
    pub fn into_body(self) -> RequestBody {
        self.body
    }

    /// Sends as much as goes now. `Err` is the client's.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Result<Waits, BodyError> {
        if let Some(timer) = &self.held {
            if timer.poll_expired(cx).is_pending() {
                return Ok(Waits::Backend);
            }
            self.held = None;
        }
        while !self.done {
            // A piece is asked for when some of it can go; all of it is h2's then.
            self.stream.reserve_capacity(1);
            while self.stream.capacity() == 0 {
                match self.stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Ok(self.unwanted()),
                    Poll::Pending => return Ok(Waits::Backend),
                }
            }
            if self.stream.poll_reset(cx).is_ready() {
                return Ok(self.unwanted());
            }
            let put = match self.body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.put(frame, cx),
                Poll::Ready(Some(Err(error))) => Err(error),
                Poll::Ready(None) => self.end(None),
                Poll::Pending => return Ok(Waits::Client),
            };
            if let Err(error) = put {
                // The backend must not take the part for the whole.
                self.stream.send_reset(Reason::CANCEL);
                self.done = true;
                return Err(error);
            }
        }
        Ok(Waits::Backend)
    }

    /// The backend takes no more; its response may still come.
    fn unwanted(&mut self) -> Waits {
        self.done = true;
        Waits::Backend
    }

    fn put(&mut self, frame: Frame<Bytes>, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(frame.into_trailers().ok()),
        };
        if data.is_empty() {
            return Ok(());
        }
        if let Some(rest) = &mut self.rest {
            *rest =
                (rest.checked_sub(data.len() as u64)).ok_or("more body than its length said")?;
        }
        let last = self.rest == Some(0);
        self.done = last;
        if self.stream.send_data(data, last).is_err() {
            self.unwanted();
        }
        if last {
            // So that the body sees its own end; nothing can follow.
            let _ = self.body.poll_frame(cx);
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), BodyError> {
        if self.rest.is_some_and(|rest| rest > 0) {
            return Err("less body than its length said".into());
        }
        self.done = true;
        let trailers = trailers.map(allowed).filter(|t| !t.is_empty());
        // An error is the backend's, and comes with the response.
        let _ = match trailers {
            Some(trailers) => self.stream.send_trailers(trailers),
            None => self.stream.send_data(Bytes::new(), true),
        };
        Ok(())
    }
}

/// Without what a trailer must not say, as RFC 9110, 6.5.1 lets us.
pub fn allowed(mut trailers: HeaderMap) -> HeaderMap {
    let forbidden = trailers.keys().filter(|name| is_forbidden_trailer(name));
    let forbidden: Vec<_> = forbidden.cloned().collect();
    for name in &forbidden {
        trailers.remove(name);
    }
    trailers
}
