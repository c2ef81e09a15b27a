//! A connection of HTTP/2 to a backend: driven by a task of its own, since its streams end at
//! different times, and asked for signs of life.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use ::h2::client::{Builder, Connection, SendRequest};
use ::h2::{Ping, Reason};
use bytes::Bytes;
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::super::SendError;
use super::super::head;
use super::super::stream::Stream;
use crate::proxy::timer::Timer;

/// Bytes of a response's body that a backend may send ahead of the client.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same over all streams of a connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a request's body that wait for the socket before the client is asked for more.
const SEND_BUFFER: usize = 64 << 10;
/// Streams before the backend has said how many it takes.
const STREAMS_AT_FIRST: usize = 100;
/// Silence after which a connection with running requests is asked for a sign of life.
const PING: Duration = Duration::from_secs(10);
/// How long that sign may take.
const PONG: Duration = Duration::from_secs(10);

/// A connection.
pub struct H2Connection {
    /// For clones only: a handle that has sent something may have to wait for that.
    sender: RefCell<SendRequest<Bytes>>,
    state: Rc<State>,
    scheme: Scheme,
}

struct State {
    streams: Cell<usize>,
    rests_since: Cell<Option<Instant>>,
    /// Something has come since that was looked at last.
    heard: Cell<bool>,
    /// The backend's settings are known, or never will be.
    settled: Cell<bool>,
    settling: Notify,
}

impl State {
    fn settle(&self) {
        if !self.settled.replace(true) {
            self.settling.notify_waiters();
        }
    }
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
        let state = Rc::new(State {
            streams: Cell::new(0),
            rests_since: Cell::new(Some(Instant::now())),
            heard: Cell::new(false),
            settled: Cell::new(false),
            settling: Notify::new(),
        });
        let io = Watched {
            stream,
            state: Rc::clone(&state),
        };
        let (sender, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .max_header_list_size(head::HEAD_BYTES as u32)
            .max_send_buffer_size(SEND_BUFFER)
            .handshake(io)
            .await
            .map_err(SendError::Http2)?;
        tokio::task::spawn_local(drive(connection, Rc::clone(&state)));
        Ok(Self {
            sender: RefCell::new(sender),
            state,
            scheme,
        })
    }

    /// What it is made of, for `:scheme`.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// A handle for one request; `None` when it takes no more of them.
    pub fn sender(&self) -> Option<SendRequest<Bytes>> {
        (!self.is_closed()).then(|| self.sender.borrow().clone())
    }

    /// Whether it takes no more requests.
    pub fn is_closed(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = self.sender.borrow_mut().poll_ready(&mut cx);
        !matches!(ready, Poll::Ready(Ok(())))
    }

    /// Running requests.
    pub fn streams(&self) -> usize {
        self.state.streams.get()
    }

    /// Since when it has none.
    pub fn rests_since(&self) -> Option<Instant> {
        self.state.rests_since.get()
    }

    /// Whether the backend takes CONNECT with a protocol (RFC 8441). Waits for its settings.
    pub async fn takes_protocols(&self) -> bool {
        // The thread is ours between the look and the wait.
        while !self.state.settled.get() {
            self.state.settling.notified().await;
        }
        self.sender.borrow().is_extended_connect_protocol_enabled()
    }
}

/// Drives a connection to its end. One that is silent although it was asked is dropped; its
/// requests learn of that.
async fn drive(mut connection: Connection<Watched, Bytes>, state: Rc<State>) {
    let mut pings = connection.ping_pong();
    // Asked at once: with the answer the backend's settings have come (RFC 9113, 3.4).
    let asked = pings.as_mut().map(|p| p.send_ping(Ping::opaque()).is_ok());
    let mut asked = asked.unwrap_or_default();
    let timer = Timer::after(PONG);
    let ended = std::future::poll_fn(|cx| {
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ended);
        }
        if asked
            && let Some(pings) = &mut pings
            && pings.poll_pong(cx).is_ready()
        {
            asked = false;
            state.settle();
            timer.restart(PING);
        }
        while timer.poll_expired(cx).is_ready() {
            let heard = state.heard.replace(false);
            if heard || state.streams.get() == 0 {
                timer.restart(PING);
            } else if asked {
                return Poll::Ready(Err(Reason::CANCEL.into()));
            } else if let Some(pings) = &mut pings {
                asked = pings.send_ping(Ping::opaque()).is_ok();
                timer.restart(PONG);
            } else {
                timer.clear();
            }
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP/2 connection to a backend has ended");
    }
    state.settle();
}

/// Counts a running request.
pub struct Streaming(Rc<State>);

impl Streaming {
    /// On this connection.
    pub fn new(connection: &H2Connection) -> Self {
        let state = Rc::clone(&connection.state);
        state.streams.set(state.streams.get() + 1);
        state.rests_since.set(None);
        Self(state)
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let left = self.0.streams.get() - 1;
        self.0.streams.set(left);
        if left == 0 {
            self.0.rests_since.set(Some(Instant::now()));
        }
    }
}

/// The socket; it notes that something has come.
struct Watched {
    stream: Stream,
    state: Rc<State>,
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.state.heard.set(true);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
