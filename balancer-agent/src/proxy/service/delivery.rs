//! A response's body on its way to the client: counted, and at its end, in whatever way it
//! comes, noted; the backend's place is given back then.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::journal::Journal;
use crate::proxy::balance::{Lease, Outcome};
use crate::proxy::types::{Body, BodyError, Cause};
use crate::proxy::upstream::{BodyFault, ResponseBody};

/// A body and its journal.
pub struct Delivery {
    body: Body,
    journal: Journal,
}

impl Delivery {
    /// Around a body of our own.
    pub fn new(body: Body, journal: Journal) -> Self {
        Self { body, journal }
    }

    /// As a body for hyper.
    pub fn boxed(self) -> Body {
        Body::Boxed(Box::pin(self))
    }
}

impl HttpBody for Delivery {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.journal.sent(frame.data_ref().map_or(0, Bytes::len));
            }
            Poll::Ready(Some(Err(error))) => {
                let fault = error.downcast_ref::<BodyFault>();
                this.journal
                    .end(fault.map_or(Cause::Internal, BodyFault::cause));
            }
            Poll::Ready(None) => this.journal.end(Cause::Done),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.journal.end(Cause::Done);
        }
    }
}

/// A backend's body as it is, with its journal: what nearly all responses have.
pub struct Direct {
    body: ResponseBody,
    lease: Option<Lease>,
    journal: Option<Journal>,
}

impl Direct {
    /// Around a backend's body. Without a journal another wrapper keeps it.
    pub fn new(body: ResponseBody, lease: Lease, journal: Option<Journal>) -> Self {
        let mut direct = Self {
            body,
            lease: Some(lease),
            journal,
        };
        if direct.body.is_end() {
            // The place is another request's while this response is written.
            direct.lease = None;
        }
        direct
    }

    /// As a body for hyper.
    pub fn boxed(self) -> Body {
        Body::Boxed(Box::pin(self))
    }

    fn end(&mut self, cause: Cause) {
        self.lease = None;
        if let Some(journal) = &mut self.journal {
            journal.bytes_in(self.body.request_bytes());
            journal.end(cause);
        }
    }
}

impl HttpBody for Direct {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this.body.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(journal) = &mut this.journal {
                    journal.sent(frame.data_ref().map_or(0, Bytes::len));
                }
                if this.body.is_end() {
                    this.lease = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(fault))) => {
                let outcome = match fault.cause() {
                    Cause::BackendTimeout => Outcome::TimedOut,
                    Cause::BackendAborted => Outcome::Broken,
                    _ => Outcome::ClientAborted,
                };
                if let Some(lease) = &this.lease {
                    lease.report(outcome);
                }
                this.end(fault.cause());
                Poll::Ready(Some(Err(Box::new(fault))))
            }
            Poll::Ready(None) => {
                this.end(Cause::Done);
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match self.body.rest() {
            Some(rest) => SizeHint::with_exact(rest),
            None => SizeHint::new(),
        }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let cause = match self.body.is_end() {
            true => Cause::Done,
            false => Cause::ClientAborted,
        };
        if cause == Cause::ClientAborted
            && let Some(lease) = &self.lease
        {
            lease.report(Outcome::ClientAborted);
        }
        self.end(cause);
    }
}
