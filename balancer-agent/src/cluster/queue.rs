//! What waits to be sent to one peer: framed bytes in one buffer, with a bound.
//!
//! To send is to copy the message behind the others under a short lock; a task takes
//! everything that is there and writes it at once. So many small messages share a TLS
//! record and a system call without being held back for it.

use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::SendError;
use super::frame::{self, HEADER, MESSAGE_MAX};

/// A larger buffer is given back after a burst, in bytes.
const KEEP: usize = 1 << 20;

pub(super) struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
    /// What the other side sends can't be read: `Inner::refused` says why.
    refused: Notify,
    bytes_max: usize,
    messages_max: usize,
}

#[derive(Default)]
struct Inner {
    waiting: BytesMut,
    messages: usize,
    /// Of those that are being written: they take room as well.
    writing: usize,
    closed: bool,
    refused: Option<String>,
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fill {
    pub(super) bytes: usize,
    pub(super) messages: usize,
}

impl Queue {
    pub(super) fn new(bytes_max: usize, messages_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            filled: Notify::new(),
            refused: Notify::new(),
            bytes_max,
            messages_max,
        }
    }

    /// Puts a message behind the others.
    pub(super) fn push(&self, message: &[u8]) -> Result<(), SendError> {
        if message.len() > MESSAGE_MAX {
            return Err(SendError::TooLong);
        }
        let mut inner = self.lock();
        if inner.closed {
            return Err(SendError::Unknown);
        }
        let bytes = inner.waiting.len() + inner.writing + HEADER + message.len();
        if bytes > self.bytes_max || inner.messages >= self.messages_max {
            return Err(SendError::Full);
        }
        let first = inner.waiting.is_empty();
        frame::put_data(&mut inner.waiting, message);
        inner.messages += 1;
        drop(inner);
        // The others have been announced by the first.
        if first {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Puts a ping or pong behind the messages; when too many wait, it is left out.
    pub(super) fn control(&self, put: impl FnOnce(&mut BytesMut)) {
        let mut inner = self.lock();
        if !inner.closed && inner.waiting.len() <= self.bytes_max {
            put(&mut inner.waiting);
            drop(inner);
            self.filled.notify_one();
        }
    }

    /// Waits until something is there, and takes all of it. `written` is the buffer that
    /// was taken before. Also says how many messages it is.
    pub(super) async fn take(&self, mut written: BytesMut) -> (BytesMut, usize) {
        match written.capacity() > KEEP {
            true => written = BytesMut::new(),
            false => written.clear(),
        }
        self.lock().writing = 0;
        loop {
            {
                let mut inner = self.lock();
                if !inner.waiting.is_empty() {
                    let taken = std::mem::replace(&mut inner.waiting, written);
                    inner.writing = taken.len();
                    return (taken, std::mem::take(&mut inner.messages));
                }
            }
            self.filled.notified().await;
        }
    }

    /// Has the link end that this queue is of.
    pub(super) fn refuse(&self, why: &str) {
        self.lock().refused.get_or_insert_with(|| why.to_owned());
        self.refused.notify_one();
    }

    /// Waits until the link has to end, and says why.
    pub(super) async fn refused(&self) -> String {
        loop {
            if let Some(why) = self.lock().refused.take() {
                return why;
            }
            self.refused.notified().await;
        }
    }

    /// Refuses everything from now on.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        *inner = Inner {
            closed: true,
            ..Inner::default()
        };
    }

    pub(super) fn fill(&self) -> Fill {
        let inner = self.lock();
        Fill {
            bytes: inner.waiting.len() + inner.writing,
            messages: inner.messages,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_waits_is_taken_at_once() {
        let queue = Queue::new(1000, 10);
        queue.push(b"one").unwrap();
        queue.push(b"two").unwrap();
        let (mut bytes, messages) = queue.take(BytesMut::new()).await;
        assert_eq!(messages, 2);
        for word in ["one", "two"] {
            let frame = frame::next(&mut bytes).unwrap();
            assert_eq!(frame, Some(frame::Frame::Data(word.into())));
        }
        let taking = queue.take(bytes);
        let pushing = async {
            tokio::task::yield_now().await;
            queue.push(b"three").unwrap();
        };
        let ((_, messages), ()) = tokio::join!(taking, pushing);
        assert_eq!(messages, 1);
    }

    #[tokio::test]
    async fn the_bounds_hold() {
        let queue = Queue::new(3 * (HEADER + 10), 1000);
        for _ in 0..3 {
            queue.push(&[0; 10]).unwrap();
        }
        assert_eq!(queue.push(&[0; 1]), Err(SendError::Full));
        let full = Fill {
            bytes: 3 * (HEADER + 10),
            messages: 3,
        };
        assert_eq!(queue.fill(), full);
        // What is being written takes room until it is done.
        let (bytes, _) = queue.take(BytesMut::new()).await;
        assert_eq!(queue.push(&[0; 10]), Err(SendError::Full));
        queue.control(|out| frame::put_ping(out, 1));
        let (bytes, messages) = queue.take(bytes).await;
        assert_eq!((bytes.len(), messages), (HEADER + 8, 0));
        queue.push(&[0; 10]).unwrap();

        let few = Queue::new(1000, 2);
        few.push(b"").unwrap();
        few.push(b"").unwrap();
        assert_eq!(few.push(b""), Err(SendError::Full));
    }

    #[test]
    fn what_cannot_go_is_refused() {
        let queue = Queue::new(2 * MESSAGE_MAX, 10);
        let long = vec![0; MESSAGE_MAX + 1];
        assert_eq!(queue.push(&long), Err(SendError::TooLong));
        queue.push(&long[1..]).unwrap();
        queue.close();
        assert_eq!(queue.push(b"x"), Err(SendError::Unknown));
        assert_eq!(queue.fill(), Fill::default());
    }
}
