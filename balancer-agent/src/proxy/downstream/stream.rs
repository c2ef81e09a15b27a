//! A client's socket, with or without TLS.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A socket.
pub(super) enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Inside TLS; boxed, because it is large and many connections do without.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => match Pin::new(s).poll_read(cx, buf) {
                // Clients that close without close_notify are many, and HTTP's framing
                // tells whether something is missing.
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                other => other,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => {
                // A small response is copied together: that is cheaper than to have the
                // kernel walk a list.
                let mut small = [const { MaybeUninit::uninit() }; SMALL];
                match gathered(bufs, &mut small) {
                    Some(whole) => Pin::new(s).poll_write(cx, whole),
                    None => Pin::new(s).poll_write_vectored(cx, bufs),
                }
            }
            Self::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

/// What is written with one plain call, in bytes.
const SMALL: usize = 4096;

/// All pieces as one, when they fit.
fn gathered<'b>(bufs: &[IoSlice<'_>], into: &'b mut [MaybeUninit<u8>; SMALL]) -> Option<&'b [u8]> {
    let mut length = 0;
    for buf in bufs {
        let end = length + buf.len();
        into.get_mut(length..end)?.write_copy_of_slice(buf);
        length = end;
    }
    // SAFETY: so many bytes have just been written.
    Some(unsafe { into[..length].assume_init_ref() })
}
