//! The wait for a response's head, the same for every protocol.

use std::task::{Context, Poll};

use super::{Deadlines, SendError};
use crate::proxy::timer::Timer;

/// Whom a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// The client, for more of the body.
    Client,
    /// The backend, to take more, to ask for more, or to answer.
    Backend,
}

/// How long a backend may take for a response's head. It runs while the backend is waited
/// for, and begins anew whenever something has moved; while the client is waited for it
/// stands still, since the client's own time limits are for a body that does not come.
pub(super) struct ResponseTimer(Timer);

impl ResponseTimer {
    /// One that does not run yet.
    pub const fn new() -> Self {
        Self(Timer::never())
    }

    /// To be polled when there is nothing to do but to wait. Ready when the time is up: this
    /// one, or that of all.
    pub fn poll(
        &self,
        cx: &Context<'_>,
        waits: Waits,
        moved: bool,
        deadlines: &Deadlines,
    ) -> Poll<SendError> {
        if deadlines.total.poll_expired(cx).is_ready() {
            return Poll::Ready(SendError::Timeout);
        }
        match waits {
            Waits::Client => self.0.clear(),
            Waits::Backend if moved || !self.0.is_set() => self.0.restart(deadlines.response),
            Waits::Backend => {}
        }
        self.0.poll_expired(cx).map(|()| SendError::Timeout)
    }
}
