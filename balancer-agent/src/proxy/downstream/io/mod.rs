//! The socket as hyper's HTTP/1 server sees it: only clean bytes come out of it.
//!
//! In the usual case a request's head is read straight into hyper's buffer, checked there,
//! and nothing is copied. What is not complete yet is kept here, in a buffer that is as
//! large as what came; without hyper (a new or parked connection) it is all there is.

mod arrive;
mod close;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::Ended;
use super::door::Ticket;
use super::guard::{Bounds, Guard, Refusal};
use super::source::Allowed;
use super::state::State;
use super::stream::Stream;
pub(super) use arrive::{Arrived, LAST_CALL};
use close::Closing;

/// What is read at once without hyper.
const SCRATCH: usize = 16 << 10;
/// Bytes that are kept for an upgraded connection until it is decided.
const SUSPENDED: usize = 64 << 10;
thread_local! {
    /// One for all connections of a thread: what stays of it is copied to its connection.
    static BUFFER: RefCell<Box<[u8; SCRATCH]>> = RefCell::new(Box::new([0; SCRATCH]));
}

/// The guarded socket.
pub(super) struct GuardIo {
    stream: Stream,
    guard: Guard,
    /// Bytes that hyper has not got.
    kept: Vec<u8>,
    /// The first so many of them are clean.
    clean: usize,
    /// A refusal's response, as it is written.
    answer: Vec<u8>,
    answered: usize,
    closing: Option<Closing>,
    state: Rc<State>,
    _ticket: Ticket,
}

impl GuardIo {
    pub fn new(stream: Stream, state: Rc<State>, ticket: Ticket) -> Self {
        Self {
            stream,
            guard: Guard::default(),
            kept: Vec::new(),
            clean: 0,
            answer: Vec::new(),
            answered: 0,
            closing: None,
            state,
            _ticket: ticket,
        }
    }

    /// For HTTP/2: the socket, and what was read from it.
    pub fn into_parts(self) -> (Stream, Vec<u8>, Ticket) {
        (self.stream, self.kept, self._ticket)
    }

    /// What hyper had been given and gave back unread.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.kept.splice(..0, bytes.iter().copied());
        self.clean += bytes.len();
        self.update();
    }

    fn update(&self) {
        let quiet = self.clean == 0 && !self.guard.in_body() && self.answer.is_empty();
        self.state.quiet.set(quiet);
        let partial = !self.kept.is_empty();
        if partial && !self.state.partial.get() && self.state.idle() {
            self.state.since.set(self.state.timer.now());
        }
        self.state.partial.set(partial);
    }

    /// Reads by way of the thread's buffer.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        BUFFER.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(&mut scratch[..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            let came = buf.filled();
            let in_all = &self.state.bytes_in;
            in_all.set(in_all.get() + came.len() as u64);
            // No more than needed: slow heads are many and small.
            self.kept.reserve_exact(came.len());
            self.kept.extend_from_slice(came);
            Poll::Ready(Ok(came.len()))
        })
    }

    /// Looks at what is kept and not clean; afterwards some of it is, or the state says why
    /// not.
    fn examine(&mut self) {
        debug_assert_eq!(self.clean, 0);
        let bounds = Bounds::from(&self.state.settings().frontend.limits);
        match self.guard.in_body() {
            true => match self.guard.body(&self.kept, &bounds) {
                Ok(n) => {
                    self.state.body_came(n);
                    self.clean = n;
                }
                Err(refusal) => self.state.body_refusal.set(Some(refusal)),
            },
            false => match self.guard.head(&self.kept, &bounds) {
                Ok(None) => {}
                Ok(Some(head)) => {
                    self.kept.drain(..head.skip);
                    self.clean = head.end - head.skip;
                    self.state.rebuild.set(head.upgrade);
                    self.head_came();
                }
                Err(refusal) => self.state.refusal.set(Some(refusal)),
            },
        }
        self.update();
    }

    /// A clean head of `self.clean` bytes stands at the front of what is kept.
    fn head_came(&mut self) {
        self.state.body_begins();
        if !self.admitted() {
            self.clean = 0;
            return;
        }
        if self.state.upgradable.get() && self.state.rebuild.take() {
            self.state.suspended.set(true);
        }
        // The head of an upgrade is delivered once there is a hyper that can do it.
        if !self.state.rebuild.get() {
            self.state.delivered.set(self.state.delivered.get() + 1);
        }
    }

    /// Whether the source may ask for more just now.
    fn admitted(&self) -> bool {
        let settings = self.state.settings();
        let Some(rate) = settings.frontend.limits.requests_per_source else {
            return true;
        };
        let source = self.state.connection.client.ip();
        match self.state.door.bound.sources.request(source, rate) {
            Allowed::Yes => true,
            Allowed::No => {
                self.state.refusal.set(Some(Refusal::RATE));
                false
            }
            Allowed::Untracked => {
                self.state
                    .door
                    .live()
                    .sources_untracked
                    .fetch_add(1, Relaxed);
                true
            }
        }
    }

    /// [`Read`] for an upgraded connection.
    fn poll_tunnel(
        &mut self,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.kept.is_empty() {
            let n = self.kept.len().min(cursor.remaining());
            cursor.put_slice(&self.kept[..n]);
            self.kept.drain(..n);
            if self.kept.is_empty() {
                self.kept = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        // A drain that is out of time wakes all timers.
        self.state.timer.register(cx);
        if self.state.door.cut.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let n = ready!(self.poll_direct(cx, &mut cursor, usize::MAX))?;
        advance(&mut cursor, n);
        self.state.count();
        Poll::Ready(Ok(()))
    }

    /// Reads into hyper's buffer without handing it over yet; how much is there.
    fn poll_direct(
        &mut self,
        cx: &mut Context<'_>,
        cursor: &mut ReadBufCursor<'_>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        // SAFETY: nothing is written to it but by `ReadBuf`, which only initialises.
        let place = unsafe { cursor.as_mut() };
        let most = most.min(place.len());
        let mut buf = ReadBuf::uninit(&mut place[..most]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        let n = buf.filled().len();
        let in_all = &self.state.bytes_in;
        in_all.set(in_all.get() + n as u64);
        Poll::Ready(Ok(n))
    }

    /// Begins to read a head, or goes on with a body, in hyper's own buffer.
    fn poll_fresh(
        &mut self,
        cx: &mut Context<'_>,
        cursor: &mut ReadBufCursor<'_>,
    ) -> Poll<io::Result<Fresh>> {
        let most = self
            .guard
            .sure()
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let n = ready!(self.poll_direct(cx, cursor, most))?;
        if n == 0 {
            return Poll::Ready(Ok(Fresh::End));
        }
        // SAFETY: `poll_direct` has initialised so many bytes.
        let bytes = unsafe {
            let place = cursor.as_mut();
            std::slice::from_raw_parts_mut(place.as_mut_ptr().cast::<u8>(), n)
        };
        let bounds = Bounds::from(&self.state.settings().frontend.limits);
        let mut clean = 0;
        if !self.guard.in_body() {
            match self.guard.head(bytes, &bounds) {
                // hyper must have it, and nothing that follows, only once it can upgrade.
                Ok(Some(head)) if head.upgrade || head.skip > 0 => {
                    self.kept.extend_from_slice(&bytes[head.skip..]);
                    self.clean = head.end - head.skip;
                    self.state.rebuild.set(head.upgrade);
                    self.head_came();
                    self.update();
                    return Poll::Ready(Ok(Fresh::Kept));
                }
                Ok(Some(head)) => {
                    self.head_came_direct();
                    clean = head.end;
                }
                Ok(None) => {}
                Err(refusal) => self.state.refusal.set(Some(refusal)),
            }
            if self.state.refusal.get().is_some() {
                clean = 0;
            }
        }
        if self.guard.in_body() && self.state.refusal.get().is_none() {
            match self.guard.body(&bytes[clean..], &bounds) {
                Ok(n) => {
                    self.state.body_came(n);
                    clean += n;
                }
                // The head before it, if it is here, goes on: the handler has to see it
                // before it can see its body break.
                Err(refusal) => self.state.body_refusal.set(Some(refusal)),
            }
        }
        self.kept.extend_from_slice(&bytes[clean..]);
        advance(cursor, clean);
        self.update();
        Poll::Ready(Ok(match clean {
            0 => Fresh::Kept,
            _ => Fresh::Passed,
        }))
    }

    fn head_came_direct(&mut self) {
        self.state.body_begins();
        if self.admitted() {
            self.state.delivered.set(self.state.delivered.get() + 1);
        }
    }

    fn poll_guarded(
        &mut self,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.answer.is_empty() {
                // hyper sees the end; what is to be said is said in `poll_shutdown`. It is not
                // called after a request for an upgrade that was not granted.
                if self.state.upgradable.get() {
                    ready!(self.poll_close(cx));
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(refusal) = self.state.body_refusal.get() {
                let ended = Ended::by(&refusal);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, ended)));
            }
            if self.state.refusal.get().is_some() {
                // After the responses to the requests before.
                if !self.state.between() {
                    return Poll::Pending;
                }
                self.answer_refusal();
                continue;
            }
            if self.state.rebuild.get() {
                return Poll::Pending;
            }
            if self.clean > 0 {
                let n = self.clean.min(cursor.remaining());
                cursor.put_slice(&self.kept[..n]);
                self.kept.drain(..n);
                self.clean -= n;
                if self.kept.is_empty() {
                    self.kept = Vec::new();
                }
                self.update();
                return Poll::Ready(Ok(()));
            }
            if self.state.suspended.get() && !self.guard.in_body() {
                *self.state.waker.borrow_mut() = Some(cx.waker().clone());
                if self.kept.len() >= SUSPENDED {
                    return Poll::Pending;
                }
                if ready!(self.poll_more(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if self.kept.is_empty() {
                match self.poll_fresh(cx, &mut cursor) {
                    Poll::Ready(Ok(Fresh::End)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(Fresh::Passed)) => {
                        if self.guard.in_body() && self.state.body_too_slow() {
                            self.state.body_refusal.set(Some(Refusal::BODY_LATE));
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Ok(Fresh::Kept)) => continue,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => {
                        if self.guard.in_body() {
                            self.state.wait_for_body();
                        }
                        return Poll::Pending;
                    }
                }
            }
            let kept = self.kept.len();
            self.examine();
            let state = &self.state;
            let stuck = self.clean == 0
                && self.kept.len() == kept
                && state.refusal.get().is_none()
                && state.body_refusal.get().is_none();
            if stuck && ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
            self.update();
        }
    }

    /// Writes interim responses, where they have their place.
    fn poll_inform(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inform = self.state.inform.clone();
        while inform.waits() && (self.state.clean.get() || inform.begun()) {
            let wrote =
                inform.drain(
                    |bytes| match Pin::new(&mut self.stream).poll_write(cx, bytes) {
                        Poll::Ready(Ok(n)) => Ok(n),
                        Poll::Ready(Err(e)) => Err(Some(e)),
                        Poll::Pending => Err(None),
                    },
                );
            match wrote {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => self.wrote(n),
                Err(Some(e)) => return Poll::Ready(Err(e)),
                Err(None) => {
                    self.state.wait_for_write();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&self, n: usize) {
        self.state.write_wait.set(None);
        let out = &self.state.bytes_out;
        out.set(out.get() + n as u64);
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.state.inform.waits() {
            ready!(self.poll_inform(cx))?;
        }
        self.state.clean.set(false);
        match write(Pin::new(&mut self.stream), cx) {
            Poll::Ready(Ok(n)) => {
                self.wrote(n);
                Poll::Ready(Ok(n))
            }
            Poll::Pending => {
                self.state.wait_for_write();
                Poll::Pending
            }
            error => error,
        }
    }
}

/// What was read straight into hyper's buffer.
enum Fresh {
    /// The client has ended.
    End,
    /// hyper has got some of it.
    Passed,
    /// It is kept.
    Kept,
}

fn advance(cursor: &mut ReadBufCursor<'_>, n: usize) {
    // SAFETY: `poll_direct` has initialised at least so many bytes.
    unsafe { cursor.advance(n) }
}

impl Read for GuardIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.state.tunnel.get() {
            true => this.poll_tunnel(cx, cursor),
            false => this.poll_guarded(cx, cursor),
        }
    }
}

impl Write for GuardIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                this.state.clean.set(true);
                if this.state.inform.waits() {
                    ready!(this.poll_inform(cx))?;
                    return Pin::new(&mut this.stream).poll_flush(cx);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                this.state.wait_for_write();
                Poll::Pending
            }
            error => error,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx).map(Ok)
    }
}
