//! The end of a connection: what is said last, and that it arrives.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::guard::Refusal;
use super::super::state::State;
use super::{BUFFER, GuardIo};
use crate::proxy::timer::ticks;

/// Bytes and time for which a connection is read from after its end, so that a client that
/// is still sending gets the response rather than a reset (RFC 9112, 9.6).
const LINGER_BYTES: usize = 256 << 10;
const LINGER_TIME: std::time::Duration = std::time::Duration::from_secs(2);
/// Connections of a frontend and thread that linger at once; more are closed at once.
const LINGERING: usize = 1024;

/// A connection that is read from after its end.
pub(super) struct Closing {
    left: usize,
    deadline: u64,
    state: Rc<State>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let lingering = &self.state.door.lingering;
        lingering.set(lingering.get() - 1);
    }
}

impl GuardIo {
    /// Makes the response of the refusal that the state has, if it has one.
    pub(super) fn answer_refusal(&mut self) {
        if let Some(refusal) = self.state.refusal.take() {
            self.refuse(refusal);
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.state
            .door
            .refuse(&self.state.connection, &self.kept, &refusal);
        self.answer = refusal.response();
        self.answered = 0;
        self.update();
    }

    /// Writes what is to be said last, says that it was the last, and lingers.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.answered < self.answer.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.answer[self.answered..]) {
                Poll::Ready(Ok(n)) if n > 0 => self.answered += n,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    self.state.wait_for_write();
                    return Poll::Pending;
                }
            }
        }
        self.state.write_wait.set(None);
        let unread = !self.answer.is_empty() || !self.kept.is_empty() || self.guard.in_body();
        if self.closing.is_none() {
            if ready!(Pin::new(&mut self.stream).poll_shutdown(cx)).is_err() || !unread {
                return Poll::Ready(());
            }
            let lingering = &self.state.door.lingering;
            if lingering.get() >= LINGERING {
                return Poll::Ready(());
            }
            lingering.set(lingering.get() + 1);
            self.kept = Vec::new();
            self.clean = 0;
            let deadline = self.state.timer.now() + ticks(LINGER_TIME);
            self.state.timer.set(deadline);
            self.closing = Some(Closing {
                left: LINGER_BYTES,
                deadline,
                state: Rc::clone(&self.state),
            });
        }
        let Some(closing) = &mut self.closing else {
            return Poll::Ready(());
        };
        BUFFER.with_borrow_mut(|scratch| {
            loop {
                if closing.left == 0 || self.state.timer.now() >= closing.deadline {
                    return Poll::Ready(());
                }
                let mut buf = ReadBuf::new(&mut scratch[..]);
                match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                        closing.left = closing.left.saturating_sub(buf.filled().len());
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => {
                        self.state.timer.set(closing.deadline);
                        return Poll::Pending;
                    }
                }
            }
        })
    }
}
