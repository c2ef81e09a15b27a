//! A stream of HTTP/2 that carries a tunnel (RFC 8441, 5): DATA frames are its bytes,
//! END_STREAM its end in one direction, a reset its end by force.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::h2::{Reason, RecvStream, SendStream};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The two directions of a stream, ours or a backend's. `G` says that it is there.
pub struct H2Tunnel<G> {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received and not read yet; at most a frame.
    read: Bytes,
    ended: bool,
    _guard: G,
}

impl<G> H2Tunnel<G> {
    /// After the response that has granted it.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream, guard: G) -> Self {
        Self {
            send,
            recv,
            read: Bytes::new(),
            ended: false,
            _guard: guard,
        }
    }
}

impl<G: Unpin> AsyncRead for H2Tunnel<G> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        // Small frames are put together: whoever gets them has to pay for each.
        while buffer.remaining() > 0 {
            if this.read.is_empty() {
                match this.recv.poll_data(cx) {
                    Poll::Ready(Some(Ok(data))) => {
                        let freed = this.recv.flow_control().release_capacity(data.len());
                        freed.map_err(io::Error::other)?;
                        this.read = data;
                        continue;
                    }
                    // What has come goes first; the rest is told again.
                    _ if buffer.filled().len() > before => break,
                    Poll::Ready(Some(Err(error))) if error.reason() != Some(Reason::NO_ERROR) => {
                        return Poll::Ready(Err(io::Error::other(error)));
                    }
                    Poll::Ready(_) => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            let n = this.read.len().min(buffer.remaining());
            buffer.put_slice(&this.read[..n]);
            this.read.advance(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<G: Unpin> AsyncWrite for H2Tunnel<G> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(bytes.len());
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let n = this.send.capacity().min(bytes.len());
        let data = Bytes::copy_from_slice(&bytes[..n]);
        let sent = this.send.send_data(data, false);
        Poll::Ready(sent.map(|()| n).map_err(io::Error::other))
    }

    /// The connection's task writes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::replace(&mut this.ended, true) {
            return Poll::Ready(Ok(()));
        }
        let ended = this.send.send_data(Bytes::new(), true);
        Poll::Ready(ended.map_err(io::Error::other))
    }
}
