//! A connection without hyper: new, or parked.

use std::task::{Context, Poll, ready};

use super::super::guard::Refusal;
use super::GuardIo;
use crate::proxy::timer::ticks;

/// How long a connection that was accepted just before its frontend closed may take to
/// send its first byte.
pub(in super::super) const LAST_CALL: std::time::Duration = std::time::Duration::from_secs(1);

/// First bytes of HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection without hyper came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Arrived {
    /// A head is there.
    Head {
        /// It asks for an upgrade.
        upgrade: bool,
    },
    /// The client speaks HTTP/2.
    Http2,
    /// The connection is over.
    Closed,
}

impl GuardIo {
    /// Waits, without hyper, until there is a complete head. `first`: the connection is new,
    /// so that HTTP/2 may come; versions are `(http1, http2)`.
    pub(in super::super) fn poll_arrive(
        &mut self,
        cx: &mut Context<'_>,
        first: Option<(bool, bool)>,
    ) -> Poll<Arrived> {
        loop {
            if !self.answer.is_empty() || self.closing.is_some() {
                ready!(self.poll_close(cx));
                return Poll::Ready(Arrived::Closed);
            }
            if self.clean > 0 {
                let upgrade = self.state.rebuild.take();
                if upgrade {
                    self.state.delivered.set(self.state.delivered.get() + 1);
                    self.state.suspended.set(true);
                }
                return Poll::Ready(Arrived::Head { upgrade });
            }
            if !self.kept.is_empty() {
                match first.map(|versions| self.sniff(versions)) {
                    Some(Sniffed::Http2) => return Poll::Ready(Arrived::Http2),
                    Some(Sniffed::More) => {}
                    Some(Sniffed::Other) => {
                        self.refuse(Refusal::VERSION);
                        continue;
                    }
                    Some(Sniffed::Http1) | None => {
                        self.examine();
                        if self.state.refusal.get().is_some() || self.clean > 0 {
                            self.answer_refusal();
                            continue;
                        }
                    }
                }
            }
            match self.poll_more(cx) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => {
                    return Poll::Ready(Arrived::Closed);
                }
                Poll::Ready(Ok(_)) => self.update(),
                Poll::Pending => {
                    let closing = self.state.door.closing.get();
                    if closing && self.kept.is_empty() && first.is_none() {
                        return Poll::Ready(Arrived::Closed);
                    }
                    let mut deadline = self.state.head_deadline();
                    let timer = &self.state.timer;
                    if closing && !self.state.partial.get() {
                        deadline = deadline.min(self.state.since.get() + ticks(LAST_CALL));
                    }
                    if deadline > timer.now() {
                        timer.set(deadline);
                        return Poll::Pending;
                    }
                    if self.kept.is_empty() {
                        return Poll::Ready(Arrived::Closed);
                    }
                    self.refuse(Refusal::HEAD_LATE);
                }
            }
        }
    }

    fn sniff(&self, (http1, http2): (bool, bool)) -> Sniffed {
        let n = self.kept.len().min(PREFACE.len());
        match self.kept[..n] == PREFACE[..n] {
            // An HTTP/1 server is not to wait for bytes that make no difference to it.
            true if n == PREFACE.len() && http2 => Sniffed::Http2,
            true if n < PREFACE.len() && (http2 || n < 4) => Sniffed::More,
            true => Sniffed::Other,
            false if http1 => Sniffed::Http1,
            false => Sniffed::Other,
        }
    }
}

enum Sniffed {
    Http1,
    Http2,
    /// A version that is not spoken here.
    Other,
    /// Not to be told yet.
    More,
}
