//! The client's request body on its way to a backend: counted, and kept as long as it is
//! small, so that an attempt that failed can be made again.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};

use crate::proxy::types::{Body, BodyError};

/// Most bytes of a body that are kept for another attempt.
pub const KEPT: usize = 64 << 10;

/// A request's body.
#[derive(Default)]
pub struct RequestBody {
    source: Body,
    /// What has been taken from the source so far; empty when it was too much.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// Boxed, as they are rare: a body is handed on by each step of its request.
    trailers: Option<Box<HeaderMap>>,
    ended: bool,
    /// Of `kept`, what this attempt has had.
    at: usize,
    trailers_given: bool,
    lost: bool,
    bytes: u64,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Until it ends.
    Unknown,
}

impl RequestBody {
    /// Around what comes from the client.
    pub fn new(source: Body) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }

    /// How long it is. Of the whole body, and to be asked before it is read.
    pub fn extent(&self) -> Extent {
        if self.source.is_end_stream() && self.kept.is_empty() && self.trailers.is_none() {
            return Extent::None;
        }
        match self.source.size_hint().exact() {
            // Trailers need chunks.
            _ if self.trailers.is_some() => Extent::Unknown,
            Some(rest) if !self.ended => Extent::Length(rest + self.kept_bytes as u64),
            _ if self.ended && !self.lost => Extent::Length(self.kept_bytes as u64),
            _ => Extent::Unknown,
        }
    }

    /// No body, of which so many bytes came from the client.
    pub fn spent(bytes: u64) -> Self {
        Self {
            bytes,
            lost: true,
            ended: true,
            ..Self::default()
        }
    }

    /// Bytes that came from the client.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether something has been taken from it.
    pub fn is_touched(&self) -> bool {
        self.bytes > 0 || self.ended || self.lost
    }

    /// Begins anew for another attempt; `false` when too much of it has gone.
    pub fn rewind(&mut self) -> bool {
        self.at = 0;
        self.trailers_given = false;
        !self.lost
    }

    /// The next piece.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(piece) = self.kept.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if !self.ended {
            match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.bytes += data.len() as u64;
                        self.keep(&data);
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => self.trailers = frame.into_trailers().ok().map(Box::new),
                },
                Some(Err(error)) => {
                    self.lost = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {}
            }
            self.ended = true;
        }
        match &self.trailers {
            Some(trailers) if !self.trailers_given => {
                self.trailers_given = true;
                Poll::Ready(Some(Ok(Frame::trailers((**trailers).clone()))))
            }
            _ => Poll::Ready(None),
        }
    }

    fn keep(&mut self, data: &Bytes) {
        if self.lost {
            return;
        }
        if self.kept_bytes + data.len() > KEPT {
            self.lost = true;
            self.kept = Vec::new();
            self.kept_bytes = 0;
            self.at = 0;
            return;
        }
        self.kept_bytes += data.len();
        self.kept.push(data.clone());
        self.at = self.kept.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use http_body_util::StreamBody;

    fn chunks(sizes: &[usize]) -> Body {
        let frames: Vec<Result<_, BodyError>> = sizes
            .iter()
            .map(|&size| Ok(Frame::data(Bytes::from(vec![7; size]))))
            .collect();
        Body::boxed(StreamBody::new(stream::iter(frames)))
    }

    fn read(body: &mut RequestBody) -> Vec<usize> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut sizes = Vec::new();
        while let Poll::Ready(Some(frame)) = body.poll_frame(&mut cx) {
            sizes.push(frame.unwrap().into_data().unwrap().len());
        }
        sizes
    }

    #[test]
    fn small_bodies_can_be_sent_again() {
        let mut body = RequestBody::new(chunks(&[10, 20]));
        assert_eq!(body.extent(), Extent::Unknown);
        assert!(!body.is_touched());
        assert_eq!(read(&mut body), [10, 20]);
        assert!(body.is_touched());
        assert!(body.rewind());
        assert_eq!(body.extent(), Extent::Length(30));
        assert_eq!(read(&mut body), [10, 20]);
        assert_eq!(body.bytes(), 30);
    }

    #[test]
    fn large_ones_can_not() {
        let mut body = RequestBody::new(chunks(&[KEPT, 1]));
        assert_eq!(read(&mut body), [KEPT, 1]);
        assert!(!body.rewind());
        assert_eq!(body.bytes(), KEPT as u64 + 1);
    }

    #[test]
    fn no_body_is_none() {
        assert_eq!(RequestBody::default().extent(), Extent::None);
        let full = RequestBody::new(Body::full("abc"));
        assert_eq!(full.extent(), Extent::Length(3));
    }
}
