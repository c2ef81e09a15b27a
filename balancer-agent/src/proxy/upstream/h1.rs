//! HTTP/1.1 to a backend: one exchange at a time on one connection, driven by the task of
//! the client's connection.
//!
//! ```text
//! kept or fresh -> head and body go out -> (1xx) -> head comes in -> body comes in -> kept
//!                     |                                |                 |
//!                  Stale, Closed, Timeout           Malformed         Cut, Timeout: dropped
//! ```
//!
//! Not hyper's client: that hands a request to the connection's own task through channels,
//! takes the header map with it, and can't say whether a byte of it was sent. Here nothing
//! is woken but the one task that waits anyway, the map stays with the caller for another
//! attempt, and "sent" is known. What is left to do is small, since requests are written
//! by us and responses are refused unless their framing is plain (`head.rs`).

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body::Frame;

use super::body::{Extent, RequestBody};
use super::chunked::{self, Chunks};
use super::head::{self, Framing, Incoming, Malformed, Outgoing};
use super::pool::Connections;
use super::wait::{ResponseTimer, Waits};
use super::wire::{WRITE_MOST, Wire};
use super::{BodyFault, Deadlines, Failure, Inform, SendError};
use crate::proxy::timer::Timer;

/// Informational responses before a final one.
pub const INFORMATIONAL: usize = 32;
/// How long a body waits for the backend's 100 (RFC 9110, 10.1.1: not for ever).
pub const EXPECT_PATIENCE: Duration = Duration::from_secs(1);

/// The request's side of an exchange.
struct Sending {
    body: RequestBody,
    extent: Extent,
    /// Bytes that the length still promises.
    rest: u64,
    /// The body waits for a 100.
    held: Option<Timer>,
    done: bool,
    /// The backend takes no more; its response may still come.
    broken: Option<io::Error>,
}

impl Sending {
    /// Sends as much as goes now. `Err` is the client's.
    fn poll(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Result<Waits, crate::proxy::types::BodyError> {
        if self.broken.is_some() || self.done && wire.out.is_empty() {
            return Ok(Waits::Backend);
        }
        if let Some(timer) = &self.held
            && timer.poll_expired(cx).is_ready()
        {
            self.held = None;
        }
        loop {
            let mut client = false;
            while !self.done && self.held.is_none() && wire.out.len() < WRITE_MOST {
                match self.body.poll_frame(cx) {
                    Poll::Ready(Some(frame)) => self.put(frame?, wire)?,
                    Poll::Ready(None) => self.end(None, wire)?,
                    Poll::Pending => {
                        client = true;
                        break;
                    }
                }
            }
            match wire.poll_flush(cx) {
                Poll::Ready(Ok(())) if self.done => return Ok(Waits::Backend),
                Poll::Ready(Ok(())) if client => return Ok(Waits::Client),
                Poll::Ready(Ok(())) if self.held.is_some() => return Ok(Waits::Backend),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    wire.out.clear();
                    return Ok(Waits::Backend);
                }
                Poll::Pending => return Ok(Waits::Backend),
            }
        }
    }

    fn put(
        &mut self,
        frame: Frame<Bytes>,
        wire: &mut Wire,
    ) -> Result<(), crate::proxy::types::BodyError> {
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) if self.extent == Extent::Unknown => chunked::write(&data, &mut wire.out),
            Ok(data) => {
                self.rest = (self.rest.checked_sub(data.len() as u64))
                    .ok_or("more body than its length said")?;
                wire.out.extend_from_slice(&data);
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.end(Some(&trailers), wire)?;
                }
            }
        }
        Ok(())
    }

    fn end(
        &mut self,
        trailers: Option<&HeaderMap>,
        wire: &mut Wire,
    ) -> Result<(), crate::proxy::types::BodyError> {
        if self.extent == Extent::Unknown {
            chunked::write_end(trailers, &mut wire.out);
        } else if self.rest > 0 {
            return Err("less body than its length said".into());
        }
        self.done = true;
        Ok(())
    }
}

/// What an exchange gives.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a box would be an allocation for each request"
)]
pub enum Answer {
    /// A response.
    Response(Box<Incoming>, H1Body),
    /// 101: the connection is the client's and the backend's from here on.
    Switched(Box<Incoming>, Box<Wire>),
}

/// Sends a request and waits for the response's head.
///
/// # Errors
/// With the body, for another attempt.
pub async fn exchange(
    mut wire: Box<Wire>,
    home: Option<Rc<Connections>>,
    request: &Outgoing<'_>,
    body: RequestBody,
    deadlines: Deadlines,
    inform: &mut dyn Inform,
) -> Result<Answer, Failure> {
    let extent = body.extent();
    wire.sent = false;
    wire.received = false;
    request.write(extent, &mut wire.out);
    let mut sending = Sending {
        rest: match extent {
            Extent::Length(length) => length,
            _ => 0,
        },
        held: (request.expects && extent != Extent::None).then(|| Timer::after(EXPECT_PATIENCE)),
        done: extent == Extent::None,
        body,
        extent,
        broken: None,
    };
    let timer = ResponseTimer::new();
    let mut informed = 0;
    let result = std::future::poll_fn(|cx| {
        let left = (sending.done, wire.out.len(), sending.body.bytes());
        let waits = match sending.poll(&mut wire, cx) {
            Ok(waits) => waits,
            Err(error) => return Poll::Ready(Err(SendError::Client(error))),
        };
        let moved = left != (sending.done, wire.out.len(), sending.body.bytes());
        loop {
            if !wire.read.is_empty() {
                match head::read(&mut wire.read, request.method) {
                    Ok(Some(head)) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                        return Poll::Ready(match request.upgrade {
                            Some(_) => Ok(head),
                            None => Err(SendError::Malformed(Malformed::Unasked)),
                        });
                    }
                    Ok(Some(head)) if head.status.is_informational() => {
                        informed += 1;
                        if informed > INFORMATIONAL {
                            return Poll::Ready(Err(SendError::Malformed(
                                Malformed::Informational,
                            )));
                        }
                        if head.status == StatusCode::CONTINUE {
                            if sending.held.take().is_some() {
                                cx.waker().wake_by_ref();
                            }
                        } else {
                            inform.inform(head.status, &head.headers);
                        }
                        continue;
                    }
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(error) => return Poll::Ready(Err(SendError::Malformed(error))),
                }
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(match (wire.received, wire.fresh) {
                        (true, _) => SendError::Cut(io::ErrorKind::UnexpectedEof.into()),
                        (false, false) => SendError::Stale,
                        (false, true) => SendError::Closed(sending.broken.take()),
                    }));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(match (wire.received, wire.fresh) {
                        (true, _) => SendError::Cut(error),
                        (false, false) => SendError::Stale,
                        (false, true) => SendError::Closed(Some(error)),
                    }));
                }
                Poll::Pending => break,
            }
        }
        timer.poll(cx, waits, moved, &deadlines).map(Err)
    })
    .await;
    let head = match result {
        Ok(head) => Box::new(head),
        Err(error) => {
            return Err(Failure {
                error,
                sent: wire.sent,
                body: sending.body,
            });
        }
    };
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer::Switched(head, wire));
    }
    let ends = Ends::of(head.framing);
    let mut body = H1Body {
        keep: head.keep && request.keep,
        method_head: *request.method == Method::HEAD,
        wire: Some(wire),
        home,
        sending,
        ends,
        timer: None,
        idle: deadlines.idle,
        total: deadlines.total,
    };
    if body.is_end() {
        body.finish();
    }
    Ok(Answer::Response(head, body))
}

/// Where a body ends.
enum Ends {
    /// It has.
    Ended,
    After(u64),
    Chunks(Chunks),
    Close,
}

impl Ends {
    fn of(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Ended,
            Framing::Length(length) => Self::After(length),
            Framing::Chunked => Self::Chunks(Chunks::default()),
            Framing::Close => Self::Close,
        }
    }
}

/// The body of a response; it has the connection until its end.
pub struct H1Body {
    wire: Option<Box<Wire>>,
    home: Option<Rc<Connections>>,
    /// The request's body may still be under way.
    sending: Sending,
    ends: Ends,
    keep: bool,
    method_head: bool,
    timer: Option<Timer>,
    idle: Duration,
    total: Timer,
}

impl H1Body {
    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        matches!(self.ends, Ends::Ended)
    }

    /// Whether it was the response to HEAD.
    pub fn is_of_head(&self) -> bool {
        self.method_head
    }

    /// Bytes left, where they are known.
    pub fn rest(&self) -> Option<u64> {
        match &self.ends {
            Ends::Ended => Some(0),
            Ends::After(rest) => Some(*rest),
            Ends::Chunks(_) | Ends::Close => None,
        }
    }

    /// Bytes of the request's body that came from the client.
    pub fn request_bytes(&self) -> u64 {
        self.sending.body.bytes()
    }

    /// The next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let polled = self.poll_piece(cx);
        match &polled {
            Poll::Ready(Some(Ok(_))) => {
                // The next wait begins anew.
                self.timer = None;
                if self.is_end() {
                    self.finish();
                }
            }
            Poll::Ready(None) => self.finish(),
            // Never used again.
            Poll::Ready(Some(Err(_))) => {
                self.ends = Ends::Ended;
                self.wire = None;
            }
            Poll::Pending => {}
        }
        polled
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let Some(wire) = &mut self.wire else {
            return Poll::Ready(None);
        };
        // A body that waited for its 100 is not wanted: this is a final response.
        if self.sending.held.is_none()
            && (!self.sending.done || !wire.out.is_empty())
            && let Err(error) = self.sending.poll(wire, cx)
        {
            return Poll::Ready(Some(Err(BodyFault::Client(error))));
        }
        loop {
            if !wire.read.is_empty() {
                match &mut self.ends {
                    Ends::Ended => return Poll::Ready(None),
                    Ends::After(rest) => {
                        let n = wire.read.len() as u64;
                        let data = match n <= *rest {
                            true => wire.read.split(),
                            false => wire.read.split_to(*rest as usize),
                        };
                        *rest -= data.len() as u64;
                        if *rest == 0 {
                            self.ends = Ends::Ended;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data.freeze()))));
                    }
                    Ends::Chunks(chunks) => match chunks.next(&mut wire.read) {
                        Ok(chunked::Piece::Data(data)) => {
                            // A last chunk that came along need not be asked for.
                            if chunks.take_end(&mut wire.read) {
                                self.ends = Ends::Ended;
                            }
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        Ok(chunked::Piece::End(trailers)) => {
                            self.ends = Ends::Ended;
                            return Poll::Ready(
                                trailers.map(|trailers| Ok(Frame::trailers(*trailers))),
                            );
                        }
                        Ok(chunked::Piece::More) => {}
                        Err(error) => {
                            return Poll::Ready(Some(Err(BodyFault::Malformed(error))));
                        }
                    },
                    Ends::Close => {
                        return Poll::Ready(Some(Ok(Frame::data(wire.read.split().freeze()))));
                    }
                }
            } else if matches!(self.ends, Ends::Ended) {
                return Poll::Ready(None);
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) if matches!(self.ends, Ends::Close) => {
                    self.ends = Ends::Ended;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Some(Err(BodyFault::Cut(error))));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(Err(BodyFault::Cut(error))));
                }
                Poll::Pending => break,
            }
        }
        let idle = self.idle;
        let timer = self.timer.get_or_insert_with(|| Timer::after(idle));
        if timer.poll_expired(cx).is_ready() || self.total.poll_expired(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyFault::Timeout)));
        }
        Poll::Pending
    }

    /// The connection goes home, if it can be used again.
    fn finish(&mut self) {
        self.ends = Ends::Ended;
        self.timer = None;
        self.total.clear();
        let Some(mut wire) = self.wire.take() else {
            return;
        };
        let clean = self.sending.done
            && self.sending.broken.is_none()
            && wire.out.is_empty()
            && wire.read.is_empty();
        if clean
            && self.keep
            && let Some(home) = self.home.take()
        {
            wire.rest();
            home.keep(wire);
        }
    }
}
