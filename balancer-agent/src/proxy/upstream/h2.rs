//! HTTP/2 to a backend, by hyper: few connections, shared by the requests of a thread.
//!
//! A connection is driven by a task of its own, since its streams end at different times.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Uri};
use http_body::{Body as _, Frame, SizeHint};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::{Extent, RequestBody};
use super::head::{self, Framing, Incoming, Outgoing};
use super::pool::Sent;
use super::stream::Stream;
use super::{BodyFault, Deadlines, Failure, ResponseBody, SendError};
use crate::proxy::timer::Timer;
use crate::proxy::types::BodyError;

/// Bytes of a response's body that a backend may send ahead of the client.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same over all streams of a connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Silence after which a connection with running requests is asked for a sign of life.
const PING: Duration = Duration::from_secs(10);
/// How long that sign may take.
const PONG: Duration = Duration::from_secs(10);

/// A connection.
pub struct H2Connection {
    sender: SendRequest<Shared>,
    streams: Rc<Cell<usize>>,
    rests_since: Rc<Cell<Option<Instant>>>,
    scheme: Scheme,
}

impl H2Connection {
    /// Says the preface on a fresh connection.
    ///
    /// # Errors
    /// [`SendError::Http2`]
    pub async fn open(stream: Stream) -> Result<Self, SendError> {
        let scheme = match stream {
            Stream::Plain(_) => Scheme::HTTP,
            Stream::Tls(_) => Scheme::HTTPS,
        };
        let (sender, connection) = hyper::client::conn::http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(head::HEAD_BYTES as u32)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(SendError::Http2)?;
        tokio::task::spawn_local(async move {
            // Its requests learn of an error.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            streams: Rc::default(),
            rests_since: Rc::new(Cell::new(Some(Instant::now()))),
            scheme,
        })
    }

    /// Whether it takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Running requests.
    pub fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Since when it has none.
    pub fn rests_since(&self) -> Option<Instant> {
        self.rests_since.get()
    }
}

/// Runs hyper's tasks on this thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Counts a running request.
struct Streaming {
    streams: Rc<Cell<usize>>,
    rests_since: Rc<Cell<Option<Instant>>>,
}

impl Streaming {
    fn new(connection: &H2Connection) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        connection.rests_since.set(None);
        Self {
            streams: Rc::clone(&connection.streams),
            rests_since: Rc::clone(&connection.rests_since),
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let left = self.streams.get() - 1;
        self.streams.set(left);
        if left == 0 {
            self.rests_since.set(Some(Instant::now()));
        }
    }
}

/// The request's body; hyper's task reads it, and we get it back.
struct Shared {
    state: Rc<RefCell<Upload>>,
    extent: Extent,
}

#[derive(Default)]
struct Upload {
    body: RequestBody,
    ended: bool,
    failed: Option<BodyError>,
}

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.state.borrow_mut();
        let polled = state.body.poll_frame(cx);
        match polled {
            Poll::Ready(Some(Err(error))) => {
                let told = error.to_string();
                state.failed = Some(error);
                Poll::Ready(Some(Err(told.into())))
            }
            Poll::Ready(None) => {
                state.ended = true;
                Poll::Ready(None)
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.extent == Extent::None
    }

    fn size_hint(&self) -> SizeHint {
        match self.extent {
            Extent::None => SizeHint::with_exact(0),
            Extent::Length(length) => SizeHint::with_exact(length),
            Extent::Unknown => SizeHint::new(),
        }
    }
}

/// Sends a request and waits for the response's head.
///
/// # Errors
/// With the body, for another attempt. [`SendError::Stale`] when the backend has told that
/// it did not look at the request.
pub async fn exchange(
    connection: Rc<H2Connection>,
    outgoing: &Outgoing<'_>,
    body: RequestBody,
    deadlines: Deadlines,
) -> Result<Sent, Failure> {
    let extent = body.extent();
    let state = Rc::new(RefCell::new(Upload {
        ended: extent == Extent::None,
        body,
        failed: None,
    }));
    let failure = |error, sent| {
        let upload = std::mem::take(&mut *state.borrow_mut());
        Failure {
            error: match upload.failed {
                Some(error) => SendError::Client(error),
                None => error,
            },
            sent,
            body: upload.body,
        }
    };
    let shared = Shared {
        state: Rc::clone(&state),
        extent,
    };
    let Some(request) = request(outgoing, &connection.scheme, shared) else {
        let error = SendError::Client("the request can't be put into HTTP/2".into());
        return Err(failure(error, false));
    };
    let streaming = Streaming::new(&connection);
    let mut sender = connection.sender.clone();
    let mut answer = std::pin::pin!(sender.send_request(request));
    let mut timer: Option<Timer> = None;
    let mut seen = 0;
    let result = std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = answer.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(SendError::Http2));
        }
        if deadlines.total.poll_expired(cx).is_ready() {
            return Poll::Ready(Err(SendError::Timeout));
        }
        let timer = timer.get_or_insert_with(|| Timer::after(deadlines.response));
        while timer.poll_expired(cx).is_ready() {
            let upload = state.borrow();
            // The client's time limits are for a body that does not come.
            if upload.ended && seen == upload.body.bytes() {
                return Poll::Ready(Err(SendError::Timeout));
            }
            seen = upload.body.bytes();
            timer.restart(deadlines.response);
        }
        Poll::Pending
    })
    .await;
    let response = match result {
        Ok(response) => response,
        Err(SendError::Http2(error)) if is_untouched(&error) => {
            return Err(failure(SendError::Stale, false));
        }
        Err(error) => return Err(failure(error, true)),
    };
    let (parts, incoming) = response.into_parts();
    let mut headers = parts.headers;
    head::strip(parts.status, &mut headers);
    let length = incoming.size_hint().exact();
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
    let body = H2Body {
        ended: framing == Framing::None,
        incoming,
        streaming: Some(streaming),
        state,
        timer: None,
        idle: deadlines.idle,
        total: deadlines.total,
    };
    Ok(Sent::Response(Box::new(head), ResponseBody::Http2(body)))
}

/// Whether the backend has promised that the request was not looked at (RFC 9113, 8.7).
fn is_untouched(error: &hyper::Error) -> bool {
    if error.is_canceled() || error.is_closed() {
        return true;
    }
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<::h2::Error>());
    source.is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.reason() == Some(::h2::Reason::REFUSED_STREAM))
    })
}

fn request(outgoing: &Outgoing<'_>, scheme: &Scheme, body: Shared) -> Option<Request<Shared>> {
    let uri = Uri::builder()
        .scheme(scheme.clone())
        .authority(outgoing.host)
        .path_and_query(PathAndQuery::try_from(outgoing.target).ok()?)
        .build()
        .ok()?;
    let mut request = Request::new(body);
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
    if outgoing.trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Some(request)
}

/// The body of a response.
pub struct H2Body {
    incoming: hyper::body::Incoming,
    streaming: Option<Streaming>,
    state: Rc<RefCell<Upload>>,
    ended: bool,
    timer: Option<Timer>,
    idle: Duration,
    total: Timer,
}

impl H2Body {
    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        self.ended
    }

    /// Bytes left, where they are known.
    pub fn rest(&self) -> Option<u64> {
        match self.ended {
            true => Some(0),
            false => self.incoming.size_hint().exact(),
        }
    }

    /// Bytes of the request's body that came from the client.
    pub fn request_bytes(&self) -> u64 {
        self.state.borrow().body.bytes()
    }

    /// The next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.end();
                let client = self.state.borrow_mut().failed.take();
                Poll::Ready(Some(Err(match client {
                    Some(error) => BodyFault::Client(error),
                    None => BodyFault::Http2(error),
                })))
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let idle = self.idle;
                let timer = self.timer.get_or_insert_with(|| Timer::after(idle));
                if timer.poll_expired(cx).is_ready() || self.total.poll_expired(cx).is_ready() {
                    self.end();
                    return Poll::Ready(Some(Err(BodyFault::Timeout)));
                }
                Poll::Pending
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.timer = None;
        self.total.clear();
        self.streaming = None;
    }
}
