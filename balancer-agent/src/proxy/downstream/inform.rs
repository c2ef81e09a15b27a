//! Interim responses (1xx) that a handler sends before its response.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use http::{HeaderMap, StatusCode};

use super::http2::Exchange;

/// Most bytes of interim responses that wait for the socket of HTTP/1.1, or are sent for a
/// request of HTTP/2.
pub(super) const MOST: usize = 16 << 10;

/// Sends interim responses to the client of a request.
///
/// They leave when the connection's task next flushes, which is right after the handler
/// returns `Pending`; they never come between the parts of another response.
#[derive(Clone)]
pub struct Inform(Way);

#[derive(Clone)]
enum Way {
    /// A connection of HTTP/1.1, whose requests come one after the other.
    Http1(Rc<RefCell<Queue>>),
    /// A stream.
    Http2(Rc<Exchange>),
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// A part of what was there is gone already; the rest has to follow.
    begun: bool,
}

impl Inform {
    /// For a connection of HTTP/1.1.
    pub(super) fn new() -> Self {
        Self(Way::Http1(Rc::default()))
    }

    /// For a stream of HTTP/2.
    pub(super) fn on(exchange: Rc<Exchange>) -> Self {
        Self(Way::Http2(exchange))
    }

    /// Queues an interim response; call it only before the response itself is returned.
    ///
    /// Returns whether it will be sent: not for a status other than 102 and 103, when too
    /// much waits already, or when the client is gone. To clients of HTTP/1.0 none may be
    /// sent (RFC 9110, 15.2): the caller knows the request's version.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if !matches!(status.as_u16(), 102 | 103) {
            return false;
        }
        match &self.0 {
            Way::Http1(queue) => queue.borrow_mut().put(status, headers),
            Way::Http2(exchange) => exchange.inform(status, headers),
        }
    }

    fn queue(&self) -> Option<&RefCell<Queue>> {
        match &self.0 {
            Way::Http1(queue) => Some(queue),
            Way::Http2(_) => None,
        }
    }

    /// Whether something waits.
    pub(super) fn waits(&self) -> bool {
        let queue = self.queue();
        queue.is_some_and(|q| !q.borrow().bytes.is_empty())
    }

    /// Whether a part of what waits is out already.
    pub(super) fn begun(&self) -> bool {
        self.queue().is_some_and(|q| q.borrow().begun)
    }

    /// Shows what waits to `write`, which says how much of it is gone.
    pub(super) fn drain<E>(
        &self,
        write: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let Some(queue) = self.queue() else {
            return Ok(0);
        };
        let mut queue = queue.borrow_mut();
        let gone = write(&queue.bytes)?;
        queue.bytes.drain(..gone);
        queue.begun = !queue.bytes.is_empty();
        if !queue.begun {
            // Rare, and an idle connection is to own nothing.
            queue.bytes = Vec::new();
        }
        Ok(gone)
    }

    /// Forgets what waits and has not begun: the response itself comes.
    pub(super) fn clear(&self) {
        if let Some(queue) = self.queue() {
            let mut queue = queue.borrow_mut();
            if !queue.begun {
                queue.bytes.clear();
            }
        }
    }
}

impl Queue {
    /// Whether there is room for it.
    fn put(&mut self, status: StatusCode, headers: &HeaderMap) -> bool {
        let queue = &mut self.bytes;
        let before = queue.len();
        queue.extend_from_slice(b"HTTP/1.1 ");
        queue.extend_from_slice(status.as_str().as_bytes());
        queue.push(b' ');
        queue.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        queue.extend_from_slice(b"\r\n");
        for (name, value) in headers {
            queue.extend_from_slice(name.as_str().as_bytes());
            queue.extend_from_slice(b": ");
            queue.extend_from_slice(value.as_bytes());
            queue.extend_from_slice(b"\r\n");
        }
        queue.extend_from_slice(b"\r\n");
        if queue.len() > MOST {
            queue.truncate(before);
            return false;
        }
        true
    }
}

impl fmt::Debug for Inform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Way::Http1(_) => "Inform(HTTP/1.1)",
            Way::Http2(_) => "Inform(HTTP/2)",
        })
    }
}
