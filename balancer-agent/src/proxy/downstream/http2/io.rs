//! The socket as h2 sees it.
//!
//! The first SETTINGS and the acknowledgement of the client's go out together, as soon as
//! there is nothing left to read; and if the client has asked already, with the first
//! answer, when that does not take long: a client that sent its preface and a request in one
//! piece is woken once, and calls are spared.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::door::Ticket;
use super::super::stream::Stream;
use super::streams::Streams;

/// What is said before the client's first words have all been read is held back up to so
/// much.
const HELD: usize = 512;

/// A socket, and what was read from it before its protocol was known.
pub(super) struct Io {
    stream: Stream,
    /// Read first.
    prefix: Vec<u8>,
    held: Vec<u8>,
    /// The client has closed its side.
    ended: bool,
    streams: Rc<Streams>,
    _ticket: Ticket,
}

impl Io {
    /// `prefix` was read already.
    pub fn new(stream: Stream, prefix: Vec<u8>, streams: &Rc<Streams>, ticket: Ticket) -> Self {
        Self {
            stream,
            prefix,
            held: Vec::new(),
            ended: false,
            streams: Rc::clone(streams),
            _ticket: ticket,
        }
    }

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

    /// Whether these bytes are held back.
    fn hold(&mut self, bufs: &[IoSlice<'_>]) -> Option<usize> {
        if !self.streams.opening.get() {
            return None;
        }
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.held.len() + length > HELD {
            return None;
        }
        bufs.iter().for_each(|buf| self.held.extend_from_slice(buf));
        Some(length)
    }

    /// Writes what was held back, and `bufs` behind it; says how much of `bufs` is gone.
    /// Nothing is held back from here on.
    fn poll_with_held(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.streams.opening.set(false);
        while !self.held.is_empty() {
            let mut all = SmallVec::<[IoSlice<'_>; 8]>::new();
            all.push(IoSlice::new(&self.held));
            all.extend(bufs.iter().copied());
            let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, &all);
            drop(all);
            let n = match ready!(self.wrote(polled))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => n,
            };
            match n.checked_sub(self.held.len()) {
                None => drop(self.held.drain(..n)),
                Some(further) => {
                    self.held = Vec::new();
                    if further > 0 || bufs.is_empty() {
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
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let streams = &this.streams;
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(buffer.remaining());
            buffer.put_slice(&this.prefix[..n]);
            this.prefix.drain(..n);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if polled.is_pending() && streams.opening.get() && streams.active.get() == 0 {
            // What does not go now goes with the next flush.
            if let Poll::Ready(Err(error)) = this.poll_with_held(cx, &[]) {
                return Poll::Ready(Err(error));
            }
        }
        ready!(polled)?;
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
        let this = self.get_mut();
        if let Some(held) = this.hold(bufs) {
            return Poll::Ready(Ok(held));
        }
        this.poll_with_held(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.streams.opening.get() {
            return Poll::Ready(Ok(()));
        }
        if !this.held.is_empty() {
            ready!(this.poll_with_held(cx, &[]))?;
        }
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        if polled.is_pending() {
            this.streams.state.wait_for_write();
        }
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_with_held(cx, &[]))?;
        if this.ended && matches!(this.stream, Stream::Plain(_)) {
            // The close that follows says the same.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
