//! HTTP/2 to a backend: few connections, shared by the requests of a thread.
//!
//! - `connection.rs`: a connection and the task that drives it;
//! - `upload.rs`: a request's body.
//!
//! The h2 crate itself, not hyper's client: that keeps informational responses to itself,
//! and hands a request's body to a task of its own, from where it does not come back for
//! another attempt. Here the task of the client's connection does all but the sockets' work.

mod connection;
mod upload;

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::h2::client::ResponseFuture;
use ::h2::ext::Protocol;
use ::h2::{Reason, RecvStream};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Frame;

use super::body::{Extent, RequestBody};
use super::h1::{EXPECT_PATIENCE, INFORMATIONAL};
use super::head::{self, Framing, Incoming, Malformed, Outgoing};
use super::pool::{Sent, Tunnel};
use super::wait::ResponseTimer;
use super::{BodyFault, Deadlines, Failure, Inform, ResponseBody, SendError};
use crate::proxy::h2_tunnel::H2Tunnel;
use crate::proxy::timer::Timer;
use crate::proxy::websocket;
use connection::Streaming;
use upload::Upload;

pub use connection::H2Connection;

/// A WebSocket's stream.
pub type BackendTunnel = H2Tunnel<Streaming>;

/// Sends a request and waits for the response's head. A WebSocket is asked for by CONNECT;
/// the backend has to take that.
///
/// # Errors
/// With the body, for another attempt. [`SendError::Stale`] when the backend has told that
/// it did not look at the request.
pub async fn exchange(
    connection: Rc<H2Connection>,
    outgoing: &Outgoing<'_>,
    body: RequestBody,
    deadlines: Deadlines,
    inform: &mut dyn Inform,
) -> Result<Sent, Failure> {
    let extent = body.extent();
    let unsent = |error, body| Failure {
        error,
        sent: false,
        body,
    };
    let websocket = outgoing.is_websocket(extent);
    let Some(mut request) = request(outgoing, connection.scheme(), extent) else {
        let error = SendError::Client("the request can't be put into HTTP/2".into());
        return Err(unsent(error, body));
    };
    let Some(mut sender) = connection.sender() else {
        return Err(unsent(SendError::Stale, body));
    };
    if websocket {
        // RFC 8441, 5: there is no key; whom it is from has its answer from us.
        *request.method_mut() = Method::CONNECT;
        let protocol = Protocol::from_static(websocket::NAME);
        request.extensions_mut().insert(protocol);
        request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
    }
    let ended = extent == Extent::None && !websocket;
    let (mut response, stream) = match sender.send_request(request, ended) {
        Ok(sent) => sent,
        Err(error) => {
            tracing::debug!(%error, "the request can't be put into HTTP/2");
            let error = SendError::Client("the request can't be put into HTTP/2".into());
            return Err(unsent(error, body));
        }
    };
    let streaming = Streaming::new(&connection);
    let held = outgoing.expects && extent != Extent::None;
    let held = held.then(|| Timer::after(EXPECT_PATIENCE));
    let mut upload = Upload::new(stream, body, extent, held);
    let result = answer(&mut response, &mut upload, &deadlines, inform).await;
    let taken = result.and_then(|response| Ok((head::length(response.headers())?, response)));
    let (length, response) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            let untouched = matches!(&error, SendError::Http2(error) if is_untouched(error));
            return Err(Failure {
                error: if untouched { SendError::Stale } else { error },
                sent: !untouched,
                body: upload.into_body(),
            });
        }
    };
    upload.answered();
    let (parts, incoming) = response.into_parts();
    let mut headers = parts.headers;
    head::strip(parts.status, &mut headers);
    if websocket && parts.status.is_success() {
        let tunnel = H2Tunnel::new(upload.into_stream(), incoming, streaming);
        let head = switched(outgoing, headers);
        return Ok(Sent::Switched(
            Box::new(head),
            Tunnel::Http2(Box::new(tunnel)),
        ));
    }
    let framing = match length {
        _ if *outgoing.method == Method::HEAD || incoming.is_end_stream() => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    };
    let head = Incoming {
        status: parts.status,
        headers,
        framing,
        keep: true,
        upgrade: None,
    };
    let mut body = H2Body {
        rest: length,
        open: Some((incoming, streaming)),
        upload,
        timer: None,
        idle: deadlines.idle,
        total: deadlines.total,
    };
    if framing == Framing::None {
        body.end();
    }
    Ok(Sent::Response(Box::new(head), ResponseBody::Http2(body)))
}

/// Sends the body, passes informational responses on, and waits for the final one.
async fn answer(
    response: &mut ResponseFuture,
    upload: &mut Upload,
    deadlines: &Deadlines,
    inform: &mut dyn Inform,
) -> Result<Response<RecvStream>, SendError> {
    let timer = ResponseTimer::new();
    let mut informed = 0;
    std::future::poll_fn(|cx| {
        let left = (upload.is_done(), upload.bytes());
        let waits = upload.poll(cx).map_err(SendError::Client)?;
        let moved = left != (upload.is_done(), upload.bytes());
        while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let (parts, ()) = interim.map_err(SendError::Http2)?.into_parts();
            informed += 1;
            if informed > INFORMATIONAL {
                return Poll::Ready(Err(Malformed::Informational.into()));
            }
            match parts.status {
                // RFC 9113, 8.6: HTTP/2 has none.
                StatusCode::SWITCHING_PROTOCOLS => {
                    return Poll::Ready(Err(Malformed::Unasked.into()));
                }
                StatusCode::CONTINUE => {
                    if upload.go_on() {
                        cx.waker().wake_by_ref();
                    }
                }
                status => {
                    let mut headers = parts.headers;
                    head::strip(status, &mut headers);
                    inform.inform(status, &headers);
                }
            }
        }
        if let Poll::Ready(result) = Pin::new(&mut *response).poll(cx) {
            return Poll::Ready(result.map_err(SendError::Http2));
        }
        timer.poll(cx, waits, moved, deadlines).map(Err)
    })
    .await
}

/// A granted tunnel as HTTP/1.1 has it.
fn switched(outgoing: &Outgoing<'_>, mut headers: HeaderMap) -> Incoming {
    headers.remove(header::CONTENT_LENGTH);
    if let Some(key) = outgoing.headers.get(header::SEC_WEBSOCKET_KEY) {
        let accept = websocket::accept(key.as_bytes());
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Incoming {
        status: StatusCode::SWITCHING_PROTOCOLS,
        headers,
        framing: Framing::None,
        keep: false,
        upgrade: Some(HeaderValue::from_static(websocket::NAME)),
    }
}

/// Whether the backend has promised that the request was not looked at (RFC 9113, 8.7).
fn is_untouched(error: &::h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

fn request(outgoing: &Outgoing<'_>, scheme: &Scheme, extent: Extent) -> Option<Request<()>> {
    let uri = Uri::builder()
        .scheme(scheme.clone())
        .authority(outgoing.host)
        .path_and_query(PathAndQuery::try_from(outgoing.target).ok()?)
        .build()
        .ok()?;
    let mut request = Request::new(());
    *request.method_mut() = outgoing.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    let headers = request.headers_mut();
    for (name, value) in outgoing.headers {
        if outgoing.passes(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    for line in outgoing.lines.split(|b| *b == b'\n') {
        let line = line.trim_ascii();
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        headers.append(name, value);
    }
    match extent {
        Extent::Length(length) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        // RFC 9110, 8.6: where a body would have a meaning, its absence is told.
        Extent::None if matches!(*outgoing.method, Method::POST | Method::PUT | Method::PATCH) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        Extent::None | Extent::Unknown => {}
    }
    if outgoing.expects && extent != Extent::None {
        let expect = HeaderValue::from_static("100-continue");
        headers.insert(header::EXPECT, expect);
    }
    if outgoing.trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Some(request)
}

/// The body of a response.
pub struct H2Body {
    /// Until the end.
    open: Option<(RecvStream, Streaming)>,
    /// Bytes left, where they are known.
    rest: Option<u64>,
    /// The request's body may still be under way.
    upload: Upload,
    timer: Option<Timer>,
    idle: Duration,
    total: Timer,
}

impl H2Body {
    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        self.open.is_none()
    }

    /// Bytes left, where they are known.
    pub fn rest(&self) -> Option<u64> {
        self.rest
    }

    /// Bytes of the request's body that came from the client.
    pub fn request_bytes(&self) -> u64 {
        self.upload.bytes()
    }

    /// The next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let polled = self.poll_piece(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                // The next wait begins anew.
                self.timer = None;
                if let (Some(rest), Some(data)) = (&mut self.rest, frame.data_ref()) {
                    // h2 refuses what is longer or shorter than it says.
                    *rest = rest.saturating_sub(data.len() as u64);
                }
                let over = |(incoming, _): &(RecvStream, _)| incoming.is_end_stream();
                if frame.is_trailers() || self.open.as_ref().is_some_and(over) {
                    self.end();
                }
            }
            Poll::Ready(_) => self.end(),
            Poll::Pending => {}
        }
        polled
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let Some((incoming, _)) = &mut self.open else {
            return Poll::Ready(None);
        };
        if let Err(error) = self.upload.poll(cx) {
            return Poll::Ready(Some(Err(BodyFault::Client(error))));
        }
        let fault = |error| Poll::Ready(Some(Err(BodyFault::Http2(error))));
        let mut ended = false;
        while let Poll::Ready(data) = incoming.poll_data(cx) {
            match data {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    // It is asked for when the client wants it: its room is free again.
                    if let Err(error) = incoming.flow_control().release_capacity(data.len()) {
                        return fault(error);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return fault(error),
                None => {
                    ended = true;
                    break;
                }
            }
        }
        if ended && let Poll::Ready(trailers) = incoming.poll_trailers(cx) {
            return match trailers {
                Ok(Some(trailers)) => {
                    Poll::Ready(Some(Ok(Frame::trailers(upload::allowed(trailers)))))
                }
                Ok(None) => Poll::Ready(None),
                Err(error) => fault(error),
            };
        }
        let idle = self.idle;
        let timer = self.timer.get_or_insert_with(|| Timer::after(idle));
        if timer.poll_expired(cx).is_ready() || self.total.poll_expired(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyFault::Timeout)));
        }
        Poll::Pending
    }

    /// The stream is let go of; h2 resets it, if it has not ended.
    fn end(&mut self) {
        self.open = None;
        self.rest = Some(0);
        self.timer = None;
        self.total.clear();
    }
}
