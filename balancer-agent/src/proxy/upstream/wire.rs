//! A connection to a backend with what was read from it and what waits to be written, for
//! protocols with one exchange at a time.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::stream::Stream;

/// Bytes that are asked for at first; more while they come in full.
const READ: usize = 4 << 10;
/// Bytes that are asked for at most.
const READ_MOST: usize = 64 << 10;
/// Bytes of a request's body that wait for the socket before the client is asked for more.
pub(super) const WRITE_MOST: usize = 64 << 10;

thread_local! {
    /// Where small reads of all connections of a thread go: what came is copied to its
    /// connection, in a buffer of just that size. A request that waits holds none, and the
    /// processor has this one at hand.
    static SMALL: RefCell<[u8; READ]> = const { RefCell::new([0; READ]) };
}

/// A connection to a backend, at rest or in an exchange.
pub struct Wire {
    io: Stream,
    /// Read and not used.
    pub(super) read: BytesMut,
    /// Not written yet.
    pub(super) out: BytesMut,
    want: usize,
    /// Of the running exchange: a byte was given to the network.
    pub(super) sent: bool,
    /// Of the running exchange: a byte came.
    pub(super) received: bool,
    /// Known to have been open when the exchange began.
    pub(super) fresh: bool,
}

impl Wire {
    /// Around a fresh connection.
    pub fn new(io: Stream) -> Self {
        Self {
            io,
            read: BytesMut::new(),
            out: BytesMut::new(),
            want: READ,
            sent: false,
            received: false,
            fresh: true,
        }
    }

    /// Whether it can take another exchange; `asked` has the kernel asked, too.
    pub fn is_quiet(&mut self, asked: bool) -> bool {
        match asked {
            false => self.io.is_quiet(),
            true => self.io.is_quiet_now(),
        }
    }

    /// The socket, and what has been read from it already.
    pub fn into_parts(self) -> (Stream, Bytes) {
        (self.io, self.read.freeze())
    }

    /// Reads what has come; 0 is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let polled = match self.want {
            READ => self.poll_small(cx),
            want => {
                self.read.reserve(want);
                poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read)
            }
        };
        if let Poll::Ready(Ok(n)) = &polled {
            self.received |= *n > 0;
            self.want = match *n {
                // It came in full: there is more than a small response.
                n if n >= self.want => (self.want * 2).min(READ_MOST),
                n if n < READ => READ,
                _ => self.want,
            };
        }
        polled
    }

    fn poll_small(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SMALL.with_borrow_mut(|small| {
            let mut buffer = ReadBuf::new(small);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            self.read.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Writes what waits; ready when nothing is left.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent = true;
            match n == self.out.len() {
                // The next head begins where this one did, without being moved there.
                true => self.out.clear(),
                false => self.out.advance(n),
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Gets ready to rest: an idle connection holds no memory beside the socket's.
    pub(super) fn rest(&mut self) {
        self.fresh = false;
        self.read = BytesMut::new();
        if self.out.capacity() > READ {
            self.out = BytesMut::new();
        }
    }
}
