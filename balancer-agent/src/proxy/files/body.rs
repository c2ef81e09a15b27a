//! Files as bodies: read in pieces, as the client takes them.
//!
//! What is in the page cache is read right on the request's thread (`preadv2` with
//! `RWF_NOWAIT`): a copy of 64 KiB takes a few microseconds, a hop to another thread and
//! back two wake-ups, which cost more than that. What would have to wait for the disk is
//! read by a thread that may block, so that no other request of this core waits with it.
//! The same goes for file systems that can't tell.
//!
//! A file that has become shorter than its head said ends the body with an error, so that
//! the connection is cut: the client must not take what it got for the whole.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::range::Span;

/// Largest piece, in bytes, and largest file that is read before its head is sent. One piece
/// per response is in memory, besides what the connection has not written yet.
pub const CHUNK: usize = 64 << 10;

/// One part of a body.
#[derive(Debug)]
pub(super) enum Part {
    /// Between ranges.
    Text(Bytes),
    /// Of the file.
    File(Span),
}

/// Parts of a file, and texts between them.
#[derive(Debug)]
pub(super) struct FileBody {
    file: Arc<File>,
    parts: VecDeque<Part>,
    /// Bytes still to come.
    left: u64,
    /// Where pieces come from; its room is used again once they were written.
    buffer: BytesMut,
    /// A piece that has to wait for the disk.
    reading: Option<JoinHandle<io::Result<BytesMut>>>,
}

impl FileBody {
    pub(super) fn new(file: Arc<File>, parts: VecDeque<Part>) -> Self {
        let left = parts.iter().map(Part::len).sum();
        Self {
            file,
            parts,
            left,
            buffer: BytesMut::new(),
            reading: None,
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(reading) = &mut self.reading {
            let piece = ready!(Pin::new(reading).poll(cx));
            self.reading = None;
            let piece = piece.map_err(io::Error::other).flatten()?;
            return Poll::Ready(Some(self.took(piece.freeze())));
        }
        let span = match self.parts.front() {
            None => return Poll::Ready(None),
            Some(Part::File(span)) => *span,
            Some(Part::Text(_)) => {
                let Some(Part::Text(text)) = self.parts.pop_front() else {
                    return Poll::Ready(None);
                };
                self.left -= text.len() as u64;
                return Poll::Ready(Some(Ok(text)));
            }
        };
        let length = span.len().min(CHUNK as u64) as usize;
        self.buffer.clear();
        self.buffer.reserve(length);
        if read_cached(&self.file, &mut self.buffer, length, span.first)? {
            let piece = self.buffer.split().freeze();
            return Poll::Ready(Some(self.took(piece)));
        }
        let file = Arc::clone(&self.file);
        let buffer = std::mem::take(&mut self.buffer);
        let read = move || read_waiting(&file, buffer, length, span.first);
        self.reading = Some(tokio::task::spawn_blocking(read));
        self.poll_piece(cx)
    }

    /// Goes on behind a piece of the file.
    fn took(&mut self, piece: Bytes) -> io::Result<Bytes> {
        let length = piece.len() as u64;
        if length == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file was cut while it was sent",
            ));
        }
        if let Some(Part::File(span)) = self.parts.front_mut() {
            match length < span.len() {
                true => span.first += length,
                false => drop(self.parts.pop_front()),
            }
        }
        self.left -= length;
        Ok(piece)
    }
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::File(span) => span.len(),
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = ready!(self.poll_piece(cx));
        if matches!(piece, Some(Err(_))) {
            // Nothing comes after an error.
            self.parts.clear();
            self.left = 0;
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Reads a whole small part of a file. `None` when the file has become too short for it.
pub(super) async fn read_whole(file: &Arc<File>, span: Span) -> io::Result<Option<Bytes>> {
    let length = span.len() as usize;
    let mut buffer = BytesMut::with_capacity(length);
    while buffer.len() < length {
        let (offset, wanted) = (span.first + buffer.len() as u64, length - buffer.len());
        let before = buffer.len();
        if !read_cached(file, &mut buffer, wanted, offset)? {
            let file = Arc::clone(file);
            let read = move || read_waiting(&file, buffer, wanted, offset);
            let read = tokio::task::spawn_blocking(read).await;
            buffer = read.map_err(io::Error::other).flatten()?;
        }
        if buffer.len() == before {
            return Ok(None);
        }
    }
    Ok(Some(buffer.freeze()))
}

/// Appends up to `length` bytes, if the kernel has them at hand; `false` if it would have to
/// wait for them.
fn read_cached(file: &File, buffer: &mut BytesMut, length: usize, offset: u64) -> io::Result<bool> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let spare = buffer.spare_capacity_mut();
    let vector = libc::iovec {
        iov_base: spare.as_mut_ptr().cast(),
        iov_len: length.min(spare.len()),
    };
    loop {
        // SAFETY: the vector describes memory of the buffer that is ours to write to, and
        // that lives through the call; the descriptor is open.
        let read = unsafe { libc::preadv2(file.as_raw_fd(), &vector, 1, offset, libc::RWF_NOWAIT) };
        if let Ok(read) = usize::try_from(read) {
            // SAFETY: the kernel has written that many bytes behind those that were there,
            // no more than the vector has room for.
            unsafe { buffer.set_len(buffer.len() + read) };
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(false),
            _ => return Err(error),
        }
    }
}

/// Appends up to `length` bytes; on a thread that may block.
fn read_waiting(
    file: &File,
    mut buffer: BytesMut,
    length: usize,
    offset: u64,
) -> io::Result<BytesMut> {
    let start = buffer.len();
    buffer.resize(start + length, 0);
    loop {
        match file.read_at(&mut buffer[start..], offset) {
            Ok(read) => {
                buffer.truncate(start + read);
                return Ok(buffer);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
