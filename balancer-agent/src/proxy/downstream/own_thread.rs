//! A value that may be called `Send` because it is only ever touched on its own thread.

use std::io;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

static NEXT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Number of the thread, never used again.
    static THREAD: u64 = NEXT.fetch_add(1, Relaxed);
}

/// hyper hands upgraded connections over in a type that is `Send`, so it asks for a socket
/// that is. Ours is not: its state is shared, without locks, with the connection's task. It
/// never leaves its thread either, and this type makes sure of that.
pub(super) struct OwnThread<T> {
    thread: u64,
    value: ManuallyDrop<T>,
}

// SAFETY: the value is only reached through `get_mut` and `drop`, and both do so
// on the thread that made it alone. `is_write_vectored` checks the same.
unsafe impl<T> Send for OwnThread<T> {}

impl<T> OwnThread<T> {
    /// Bound to the present thread.
    pub fn new(value: T) -> Self {
        Self {
            thread: THREAD.with(|t| *t),
            value: ManuallyDrop::new(value),
        }
    }

    fn here(&self) -> bool {
        THREAD.with(|t| *t) == self.thread
    }

    /// The value; `None` on another thread.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        match self.here() {
            true => Some(&mut self.value),
            false => None,
        }
    }
}

impl<T> Drop for OwnThread<T> {
    /// On another thread the value is leaked: dropping it there would not be sound.
    fn drop(&mut self) {
        if self.here() {
            // SAFETY: dropped once, here, and not reached afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

impl<T: hyper::rt::Read + Unpin> hyper::rt::Read for OwnThread<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut().get_mut() {
            Some(value) => Pin::new(value).poll_read(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }
}

impl<T: hyper::rt::Write + Unpin> hyper::rt::Write for OwnThread<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut().get_mut() {
            Some(value) => Pin::new(value).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().get_mut() {
            Some(value) => Pin::new(value).poll_flush(cx),
            None => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().get_mut() {
            Some(value) => Pin::new(value).poll_shutdown(cx),
            None => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.here() && self.value.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut().get_mut() {
            Some(value) => Pin::new(value).poll_write_vectored(cx, bufs),
            None => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn only_its_own_thread_sees_the_value() {
        let value = Rc::new(7);
        let mut own = OwnThread::new(Rc::clone(&value));
        assert_eq!(own.get_mut().map(|v| **v), Some(7));
        let own = std::thread::spawn(move || {
            let mut own = own;
            assert!(own.get_mut().is_none());
            own
        })
        .join()
        .unwrap();
        drop(own);
        assert_eq!(Rc::strong_count(&value), 1);
    }
}
