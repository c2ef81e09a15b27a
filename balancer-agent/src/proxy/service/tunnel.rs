//! Upgraded connections: bytes both ways until both sides have ended or neither has said
//! anything for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Extensions;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::downstream::OverHttp2;
use crate::proxy::timer::Timer;
use crate::proxy::upstream::Tunnel;

/// Bytes that one direction holds at most.
const BUFFER: usize = 16 << 10;

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Through {
    /// From client to backend.
    pub from_client: u64,
    /// From backend to client.
    pub to_client: u64,
}

/// Why a tunnel ended.
#[derive(Debug)]
pub enum Ended {
    /// Both sides said so.
    Both,
    /// Silence.
    Idle,
    /// The client's side broke.
    Client,
    /// The backend's side broke.
    Backend,
}

/// A client's side that becomes a tunnel with the response that grants it.
pub enum Upgrading {
    /// A connection of HTTP/1.1.
    Http1(OnUpgrade),
    /// A stream.
    Http2(OverHttp2),
}

impl Upgrading {
    /// Takes it from a request that could be granted one.
    pub fn of(extensions: &mut Extensions) -> Option<Self> {
        let over = extensions.remove::<OverHttp2>().map(Self::Http2);
        over.or_else(|| extensions.remove().map(Self::Http1))
    }

    /// Waits for the response to be on its way, then carries bytes until the end. `None`
    /// when the client was gone before.
    pub async fn carry(self, backend: Tunnel, idle: Duration) -> Option<(Through, Ended)> {
        Some(match self {
            Self::Http1(on) => {
                let client = TokioIo::new(on.await.ok()?);
                between(client, backend, idle).await
            }
            Self::Http2(over) => between(over.granted().await?, backend, idle).await,
        })
    }
}

async fn between<C>(client: C, backend: Tunnel, idle: Duration) -> (Through, Ended)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    match backend {
        Tunnel::Http1(wire) => {
            let (stream, first) = wire.into_parts();
            run(client, stream, &first, idle).await
        }
        Tunnel::Http2(stream) => run(client, *stream, b"", idle).await,
    }
}

enum Side {
    Reader,
    Writer,
}

/// One direction.
struct Half {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
    bytes: u64,
    state: State,
}

enum State {
    Open,
    /// The reader has ended; the writer is to be told.
    Ending,
    Done,
}

impl Half {
    fn new(first: &[u8]) -> Self {
        let mut buffer = vec![0; BUFFER.max(first.len())].into_boxed_slice();
        buffer[..first.len()].copy_from_slice(first);
        Self {
            buffer,
            from: 0,
            to: first.len(),
            bytes: 0,
            state: State::Open,
        }
    }

    /// Moves what can be moved; says whether something was. Ready at the end.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut bool,
    ) -> Poll<Result<(), (Side, io::Error)>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.from < self.to {
                let piece = &self.buffer[self.from..self.to];
                let n = match ready!(Pin::new(&mut *writer).poll_write(cx, piece)) {
                    Ok(0) => {
                        return Poll::Ready(Err((Side::Writer, io::ErrorKind::WriteZero.into())));
                    }
                    Ok(n) => n,
                    Err(error) => return Poll::Ready(Err((Side::Writer, error))),
                };
                *moved = true;
                self.from += n;
                self.bytes += n as u64;
            }
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    let ended = ready!(Pin::new(&mut *writer).poll_shutdown(cx));
                    self.state = State::Done;
                    *moved = true;
                    // Whoever is gone already needs not be told.
                    let _ = ended;
                    return Poll::Ready(Ok(()));
                }
                State::Open => {}
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    let n = buffer.filled().len();
                    (self.from, self.to) = (0, n);
                    *moved = true;
                    if n == 0 {
                        self.state = State::Ending;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err((Side::Reader, error))),
                Poll::Pending => {
                    // What TLS holds back must go before we wait.
                    return match Pin::new(&mut *writer).poll_flush(cx) {
                        Poll::Ready(Err(error)) => Poll::Ready(Err((Side::Writer, error))),
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }
}

/// Carries bytes until the end; `first` has come from the backend already.
pub async fn run<C, B>(
    mut client: C,
    mut backend: B,
    first: &[u8],
    idle: Duration,
) -> (Through, Ended)
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Half::new(&[]);
    let mut down = Half::new(first);
    let timer = Timer::after(idle);
    let ended = std::future::poll_fn(|cx| {
        let mut moved = false;
        let up_done = match up.poll(cx, &mut client, &mut backend, &mut moved) {
            Poll::Ready(Err((Side::Reader, _))) => return Poll::Ready(Ended::Client),
            Poll::Ready(Err((Side::Writer, _))) => return Poll::Ready(Ended::Backend),
            polled => polled.is_ready(),
        };
        let down_done = match down.poll(cx, &mut backend, &mut client, &mut moved) {
            Poll::Ready(Err((Side::Reader, _))) => return Poll::Ready(Ended::Backend),
            Poll::Ready(Err((Side::Writer, _))) => return Poll::Ready(Ended::Client),
            polled => polled.is_ready(),
        };
        if up_done && down_done {
            return Poll::Ready(Ended::Both);
        }
        if moved {
            timer.restart(idle);
        }
        timer.poll_expired(cx).map(|()| Ended::Idle)
    })
    .await;
    let through = Through {
        from_client: up.bytes,
        to_client: down.bytes,
    };
    (through, ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::testing::local;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[test]
    fn each_half_ends_on_its_own() {
        local(async {
            let (mut client, ours) = duplex(64);
            let (theirs, mut backend) = duplex(64);
            let tunnel =
                tokio::task::spawn_local(run(ours, theirs, b"hello", Duration::from_secs(9)));
            let mut seen = [0; 5];
            client.read_exact(&mut seen).await.unwrap();
            assert_eq!(&seen, b"hello");
            let mut got = vec![0; 1000];
            // More than the pipes hold: it has to be read while it is written.
            let (written, read) =
                tokio::join!(client.write_all(&[7; 1000]), backend.read_exact(&mut got));
            written.unwrap();
            read.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(backend.read(&mut got).await.unwrap(), 0);
            backend.write_all(b"bye").await.unwrap();
            drop(backend);
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"bye");
            let (through, ended) = tunnel.await.unwrap();
            assert!(matches!(ended, Ended::Both), "{ended:?}");
            assert_eq!((through.from_client, through.to_client), (1000, 8));
        });
    }

    #[test]
    fn silence_ends_it() {
        local(async {
            let (_client, ours) = duplex(64);
            let (theirs, _backend) = duplex(64);
            let (_, ended) = run(ours, theirs, b"", Duration::from_millis(100)).await;
            assert!(matches!(ended, Ended::Idle), "{ended:?}");
        });
    }
}
