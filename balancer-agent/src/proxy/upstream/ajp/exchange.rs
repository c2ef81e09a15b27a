//! A request and its response on one connection, driven by the task of the client's
//! connection.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body::Frame;

use super::decode::{Decoder, Head, Piece, Violation};
use super::upload::Upload;
use crate::proxy::timer::Timer;
use crate::proxy::upstream::body::{Extent, RequestBody};
use crate::proxy::upstream::head::{self, Framing, Incoming, Listed};
use crate::proxy::upstream::pool::Connections;
use crate::proxy::upstream::wait::{ResponseTimer, Waits};
use crate::proxy::upstream::wire::Wire;
use crate::proxy::upstream::{BodyFault, Deadlines, Failure, SendError};

/// How long the end of a response is waited for whose body is complete already: the client
/// has it all, only the connection could serve others.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What of a request matters once its head is written.
pub(super) struct Request<'a> {
    pub method: &'a Method,
    pub body: RequestBody,
    pub extent: Extent,
    pub packet_size: usize,
}

/// A connection in an exchange.
struct Link {
    wire: Box<Wire>,
    decoder: Decoder,
    /// Where it goes when it can be used again.
    home: Option<Rc<Connections>>,
}

/// Sends a request, whose head waits in `wire`, and waits for the response's head.
///
/// # Errors
/// With the body, for another attempt.
pub(super) async fn exchange(
    mut wire: Box<Wire>,
    home: Option<Rc<Connections>>,
    request: Request<'_>,
    deadlines: Deadlines,
) -> Result<(Box<Incoming>, AjpBody), Failure> {
    wire.sent = false;
    wire.received = false;
    let Request {
        method,
        body,
        extent,
        packet_size,
    } = request;
    let mut upload = Upload::new(body, extent, packet_size);
    let mut decoder = Decoder::new(packet_size);
    let head = first(&mut wire, &mut decoder, &mut upload, &deadlines).await;
    let head = head.and_then(|head| Ok(incoming(head, method)?));
    let head = match head {
        Ok(head) => Box::new(head),
        Err(error) => {
            return Err(Failure {
                error,
                sent: wire.sent,
                body: upload.into_body(),
            });
        }
    };
    let bytes = upload.bytes();
    let over = upload.is_over() && wire.out.is_empty();
    let mut body = AjpBody {
        link: Some(Link {
            wire,
            decoder,
            home,
        }),
        upload: (!over).then(|| Box::new(upload)),
        request_bytes: bytes,
        rest: match head.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            _ => None,
        },
        timer: None,
        idle: deadlines.idle,
        total: deadlines.total,
    };
    body.look_ahead();
    Ok((head, body))
}

/// Waits for the response's head.
async fn first(
    wire: &mut Wire,
    decoder: &mut Decoder,
    upload: &mut Upload,
    deadlines: &Deadlines,
) -> Result<Head, SendError> {
    let timer = ResponseTimer::new();
    std::future::poll_fn(|cx| {
        let before = (upload.mark(), wire.out.len());
        let mut came = false;
        let waits = loop {
            let waits = match upload.poll(wire, cx) {
                Ok(waits) => waits,
                Err(error) => return Poll::Ready(Err(SendError::Client(error))),
            };
            match decoder.next(&mut wire.read)? {
                Some(Piece::Head(head)) => return Poll::Ready(Ok(head)),
                Some(Piece::Wanted(bytes)) => {
                    upload.want(bytes)?;
                    continue;
                }
                Some(piece) => return Poll::Ready(Err(out_of_turn(&piece).into())),
                None => {}
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(closed(wire, upload, None))),
                Poll::Ready(Ok(_)) => came = true,
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(closed(wire, upload, Some(error))));
                }
                Poll::Pending => break waits,
            }
        };
        let moved = came || before != (upload.mark(), wire.out.len());
        timer.poll(cx, waits, moved, deadlines).map(Err)
    })
    .await
}

/// The connection has ended before the response's head.
fn closed(wire: &Wire, upload: &mut Upload, error: Option<io::Error>) -> SendError {
    let error = error.or_else(|| upload.take_broken());
    match (wire.received, wire.fresh) {
        (true, _) => SendError::Cut(error.unwrap_or(io::ErrorKind::UnexpectedEof.into())),
        (false, false) => SendError::Stale,
        (false, true) => SendError::Closed(error),
    }
}

/// What can't come where it came.
fn out_of_turn(piece: &Piece) -> Violation {
    Violation::Order(match piece {
        Piece::Head(_) => "SEND_HEADERS",
        Piece::Data(_) => "SEND_BODY_CHUNK",
        Piece::End { .. } => "END_RESPONSE",
        Piece::Wanted(_) => "GET_BODY_CHUNK",
        Piece::Pong => "CPONG",
    })
}

/// A response's head without what is of this connection only.
fn incoming(head: Head, method: &Method) -> Result<Incoming, head::Malformed> {
    let Head {
        status,
        mut headers,
    } = head;
    let length = head::length(&headers)?;
    if headers.contains_key(header::CONNECTION) {
        for name in Listed::of(&headers).names() {
            if *name != header::CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    head::strip(status, &mut headers);
    let framing = match status {
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Framing::None,
        _ if *method == Method::HEAD => Framing::None,
        _ => length.map_or(Framing::Close, Framing::Length),
    };
    Ok(Incoming {
        status,
        headers,
        framing,
        keep: true,
        upgrade: None,
    })
}

/// The body of a response; it has the connection until its end.
pub struct AjpBody {
    /// Until the end.
    link: Option<Link>,
    /// While the request's body may still be under way. Boxed: most requests have none, or
    /// it is over by now, and this is handed on by each step of a response.
    upload: Option<Box<Upload>>,
    /// What came of it before that.
    request_bytes: u64,
    /// Bytes left, where they are known.
    rest: Option<u64>,
    timer: Option<Timer>,
    idle: Duration,
    total: Timer,
}

impl AjpBody {
    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        self.link.is_none()
    }

    /// Bytes left, where they are known.
    pub fn rest(&self) -> Option<u64> {
        self.rest
    }

    /// Bytes of the request's body that came from the client.
    pub fn request_bytes(&self) -> u64 {
        let upload = self.upload.as_ref();
        upload.map_or(self.request_bytes, |upload| upload.bytes())
    }

    /// The next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let piece = ready!(self.poll_piece(cx));
        // The next wait begins anew.
        self.timer = None;
        Poll::Ready(match piece {
            Some(Ok(data)) => {
                self.look_ahead();
                Some(Ok(Frame::data(data)))
            }
            Some(Err(fault)) => {
                // Never used again.
                self.end(None);
                Some(Err(fault))
            }
            None => None,
        })
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFault>>> {
        let Some(link) = &mut self.link else {
            return Poll::Ready(None);
        };
        let waits = loop {
            let waits = match &mut self.upload {
                None => Waits::Backend,
                Some(upload) => match upload.poll(&mut link.wire, cx) {
                    Ok(waits) => waits,
                    Err(error) => return Poll::Ready(Some(Err(BodyFault::Client(error)))),
                },
            };
            match link.next(&mut self.upload, self.request_bytes, &mut self.rest) {
                Ok(Next::Data(data)) => return Poll::Ready(Some(Ok(data))),
                Ok(Next::End { reuse }) => {
                    self.end(Some(reuse));
                    return Poll::Ready(None);
                }
                Ok(Next::Asked) => continue,
                Ok(Next::More) => {}
                Err(violation) => return Poll::Ready(Some(Err(violation.into()))),
            }
            match link.wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Some(Err(BodyFault::Cut(error))));
                }
                // Whatever comes, it is alive.
                Poll::Ready(Ok(_)) => self.timer = None,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(BodyFault::Cut(error)))),
                Poll::Pending => break waits,
            }
        };
        if self.total.poll_expired(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyFault::Timeout)));
        }
        if waits == Waits::Client {
            // The container waits for the client as well, whose limits hold.
            self.timer = None;
            return Poll::Pending;
        }
        let idle = self.idle;
        let timer = self.timer.get_or_insert_with(|| Timer::after(idle));
        timer
            .poll_expired(cx)
            .map(|()| Some(Err(BodyFault::Timeout)))
    }

    /// After a piece: when no more data can come, or the end has come along, the response is
    /// over without another look.
    fn look_ahead(&mut self) {
        let Some(link) = &mut self.link else {
            return;
        };
        if self.rest.is_none_or(|rest| rest == 0)
            && let Some(reuse) = link.decoder.take_end(&mut link.wire.read)
        {
            return self.end(Some(reuse));
        }
        if self.rest != Some(0) {
            return;
        }
        // The client has all of it. The container may take its time to say so.
        self.request_bytes = self.request_bytes();
        let (link, upload) = (self.link.take(), self.upload.take());
        let idle = upload.as_ref().is_none_or(|upload| upload.is_taken());
        if let Some(link) = link.filter(|link| idle && link.home.is_some()) {
            tokio::task::spawn_local(wait_for_end(link, upload));
        }
        self.total.clear();
    }

    /// The end, with the container's word on the connection; without it the connection is
    /// closed.
    fn end(&mut self, reuse: Option<bool>) {
        self.rest = Some(0);
        self.timer = None;
        self.total.clear();
        if let (Some(link), Some(true)) = (self.link.take(), reuse) {
            link.go_home(self.upload.as_deref());
        }
    }
}

/// What a connection has to say in the middle of a response.
enum Next {
    Data(Bytes),
    End {
        reuse: bool,
    },
    /// For more of the request's body.
    Asked,
    /// Nothing yet.
    More,
}

impl Link {
    /// `bytes` came of a body that is over.
    fn next(
        &mut self,
        upload: &mut Option<Box<Upload>>,
        bytes: u64,
        rest: &mut Option<u64>,
    ) -> Result<Next, Violation> {
        Ok(match self.decoder.next(&mut self.wire.read)? {
            Some(Piece::Data(data)) => {
                if let Some(rest) = rest {
                    *rest = (rest.checked_sub(data.len() as u64)).ok_or(Violation::TooMuch)?;
                }
                Next::Data(data)
            }
            Some(Piece::End { .. }) if rest.is_some_and(|rest| rest > 0) => {
                return Err(Violation::TooLittle);
            }
            Some(Piece::End { reuse }) => Next::End { reuse },
            Some(Piece::Wanted(wanted)) => {
                let upload = upload.get_or_insert_with(|| Box::new(Upload::spent(bytes)));
                upload.want(wanted)?;
                Next::Asked
            }
            Some(piece @ (Piece::Head(_) | Piece::Pong)) => return Err(out_of_turn(&piece)),
            None => Next::More,
        })
    }

    /// To rest, if nothing is left over.
    fn go_home(mut self, upload: Option<&Upload>) {
        let settled = upload.is_none_or(Upload::is_settled);
        let clean = settled && self.wire.out.is_empty() && self.wire.read.is_empty();
        if let (true, Some(home)) = (clean, self.home.take()) {
            self.wire.rest();
            home.keep(self.wire);
        }
    }
}

/// Waits for the end of a response whose body is complete, for the connection's sake.
async fn wait_for_end(mut link: Link, mut upload: Option<Box<Upload>>) {
    let timer = Timer::after(END_PATIENCE);
    let mut rest = Some(0);
    let reuse = std::future::poll_fn(|cx| {
        loop {
            // Only the end of the request's body can be left to send.
            if let Some(upload) = &mut upload
                && upload.poll(&mut link.wire, cx).is_err()
            {
                return Poll::Ready(false);
            }
            match link.next(&mut upload, 0, &mut rest) {
                Ok(Next::End { reuse }) => return Poll::Ready(reuse),
                Ok(Next::Asked) => continue,
                Ok(Next::More) => {}
                Ok(Next::Data(_)) => return Poll::Ready(false),
                Err(violation) => {
                    tracing::debug!(%violation, "AJP13: behind a complete response");
                    return Poll::Ready(false);
                }
            }
            match link.wire.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return timer.poll_expired(cx).map(|()| false),
            }
        }
    })
    .await;
    if reuse {
        link.go_home(upload.as_deref());
    }
}
