//! Interim responses (1xx) that a handler sends before its response.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use http::{HeaderMap, StatusCode};

/// Most bytes of interim responses that wait for the socket.
const MOST: usize = 16 << 10;

/// Sends interim responses on an HTTP/1.1 connection; elsewhere it does nothing.
///
/// The bytes leave when the connection's task next flushes, which is right after the
/// handler returns `Pending`; they never come between the parts of another response.
#[derive(Clone, Default)]
pub struct Inform(Option<Rc<RefCell<Queue>>>);

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// A part of what was there is gone already; the rest has to follow.
    begun: bool,
}

impl Inform {
    /// For a connection that can carry them.
    pub(super) fn new() -> Self {
        Self(Some(Rc::default()))
    }

    /// Queues an interim response; call it only before the response itself is returned.
    ///
    /// Returns whether it will be sent: not with HTTP/2, for a status other than 102 and
    /// 103, or when too much waits already. To clients of HTTP/1.0 none may be sent (RFC
    /// 9110, 15.2): the caller knows the request's version.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let Some(queue) = &self.0 else {
            return false;
        };
        if !matches!(status.as_u16(), 102 | 103) {
            return false;
        }
        let queue = &mut queue.borrow_mut().bytes;
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

    /// Whether something waits.
    pub(super) fn waits(&self) -> bool {
        let queue = self.0.as_ref();
        queue.is_some_and(|q| !q.borrow().bytes.is_empty())
    }

    /// Whether a part of what waits is out already.
    pub(super) fn begun(&self) -> bool {
        self.0.as_ref().is_some_and(|q| q.borrow().begun)
    }

    /// Shows what waits to `write`, which says how much of it is gone.
    pub(super) fn drain<E>(
        &self,
        write: impl FnOnce(&[u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let Some(queue) = &self.0 else {
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
        if let Some(queue) = &self.0 {
            let mut queue = queue.borrow_mut();
            if !queue.begun {
                queue.bytes.clear();
            }
        }
    }
}

impl fmt::Debug for Inform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "Inform(..)",
            None => "Inform(off)",
        })
    }
}
