//! Bodies on their way: a response's end is noticed, a request's error says whose it is.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::Body;
use super::guard::Refusal;
use super::state::State;
use crate::proxy::types::{BodyError, Cause};

/// The body of a response of HTTP/1. Dropping it ends the request in the connection's
/// account, whether hyper took all of it or not.
pub(super) struct Sent {
    body: Body,
    state: Rc<State>,
}

impl Sent {
    /// Without body yet.
    pub fn new(state: Rc<State>) -> Self {
        Self {
            body: Body::Empty,
            state,
        }
    }

    /// With its body.
    pub fn with(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.state.door.live().in_flight.fetch_sub(1, Relaxed);
        self.state.finish();
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body was refused: it is an error of the body, or the source of one.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Ended {
    /// What the client is answered, if it has no response yet.
    pub status: u16,
    /// For the log.
    pub cause: Cause,
    reason: &'static str,
}

impl Ended {
    /// By a refusal.
    pub(super) fn by(refusal: &Refusal) -> Self {
        Self {
            status: refusal.status,
            cause: refusal.cause.cause(),
            reason: refusal.reason,
        }
    }

    /// The refusal that an error of a body tells of; without one the client went away.
    pub fn of<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        loop {
            if let Some(ended) = error.downcast_ref() {
                return Some(ended);
            }
            // An error of input and output does not have what it carries as its source.
            let carried = error
                .downcast_ref::<std::io::Error>()
                .and_then(|e| e.get_ref());
            error = match carried {
                Some(carried) => carried,
                None => error.source()?,
            };
        }
    }
}
