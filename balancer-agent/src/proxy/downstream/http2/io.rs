//! The socket as h2 sees it.
//!
//! What h2 says in small pieces is gathered, and goes out when nobody of the connection has
//! anything to do any more: the responses of all streams that were ready take one call. The
//! first SETTINGS and the acknowledgement of the client's wait for the first answer if the
//! client has asked already and the answer does not take long: a client that sent its preface
//! and a request in one piece is woken once.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::door::Ticket;
use super::super::stream::Stream;
use super::streams::Streams;

/// Most bytes that are gathered.
const GATHERED: usize = 16 << 10;
/// A larger piece is written from where it is.
const PIECE: usize = 4096;

/// A socket, and what was read from it before its protocol was known.
#[derive(Clone)]
pub(super) struct Io(Rc<RefCell<Inner>>);

struct Inner {
    stream: Stream,
    /// Read first.
    prefix: Vec<u8>,
    /// What has been said and is not written.
    said: Vec<u8>,
    /// The client has closed its side.
    ended: bool,
    streams: Rc<Streams>,
    _ticket: Ticket,
}

impl Io {
    /// `prefix` was read already.
    pub fn new(stream: Stream, prefix: Vec<u8>, streams: &Rc<Streams>, ticket: Ticket) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            stream,
            prefix,
            said: Vec::new(),
            ended: false,
            streams: Rc::clone(streams),
            _ticket: ticket,
        })))
    }

    /// Writes what was gathered; not while the first words wait for the first answer.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        if inner.streams.opening.get() && inner.streams.active.get() > 0 {
            return Poll::Ready(Ok(()));
        }
        inner.poll_send(cx)
    }

    /// Lets go of memory that is not needed now.
    pub fn shrink(&self) {
        let said = &mut self.0.borrow_mut().said;
        if said.is_empty() {
            *said = Vec::new();
        }
    }
}

impl Inner {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let state = &self.streams.state;
        match &polled {
            Poll::Ready(Ok(n)) => {
                state.write_wait.set(None);
                let out = &state.bytes_out;
                out.set(out.get() + *n as u64);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => state.wait_for_write(),
        }
        polled
    }

    /// Whether these bytes are gathered; how many they are.
    fn gather(&mut self, bufs: &[IoSlice<'_>]) -> Option<usize> {
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if length > PIECE || self.said.len() + length > GATHERED {
            return None;
        }
        bufs.iter().for_each(|buf| self.said.extend_from_slice(buf));
        Some(length)
    }

    /// Writes what was gathered, and `bufs` behind it; says how much of `bufs` is gone.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.streams.opening.set(false);
        while !self.said.is_empty() {
            let mut all = SmallVec::<[IoSlice<'_>; 8]>::new();
            all.push(IoSlice::new(&self.said));
            all.extend(bufs.iter().copied());
            let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, &all);
            drop(all);
            let n = match ready!(self.wrote(polled))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => n,
            };
            match n.checked_sub(self.said.len()) {
                None => drop(self.said.drain(..n)),
                Some(further) => {
                    self.said.clear();
                    if further > 0 {
                        return Poll::Ready(Ok(further));
                    }
                }
            }
        }
        if bufs.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx, &[]))?;
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if polled.is_pending() {
            self.streams.state.wait_for_write();
        }
        polled
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self.0.borrow_mut();
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(buffer.remaining());
            buffer.put_slice(&this.prefix[..n]);
            this.prefix.drain(..n);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let n = buffer.filled().len() - before;
        this.ended = n == 0;
        let state = &this.streams.state;
        state.bytes_in.set(state.bytes_in.get() + n as u64);
        this.streams.heard.set(state.timer.now());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self.0.borrow_mut();
        if let Some(gathered) = this.gather(bufs) {
            return Poll::Ready(Ok(gathered));
        }
        this.poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    /// What was gathered goes with [`Io::poll_send`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self.0.borrow_mut();
        ready!(this.poll_send(cx))?;
        if this.ended && matches!(this.stream, Stream::Plain(_)) {
            // The close that follows says the same.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
