//! Compression of responses on the fly: gzip and brotli, of texts, for clients that accept.
//!
//! Whatever the body has ready is compressed together; when it has to wait for more, what
//! there is goes out, so that server-sent events and pages built bit by bit arrive as they
//! are made. Nothing is collected: a piece in, a piece out.
//!
//! An encoder takes some hundred KiB, so there are [`MAX_ENCODERS`] of them at most; a
//! response beyond that is sent as it is.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use async_compression::Level;
use async_compression::brotli::EncoderParams;
use async_compression::tokio::write::{BrotliEncoder, GzipEncoder};
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, HeaderName, HeaderValue,
};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use tokio::io::AsyncWrite;

use super::encoding::{self, Accepted, Coding};
use super::kind;
use crate::model::http::Compress;
use crate::proxy::types::{Body, BodyError};

/// Most responses that are being compressed at one time.
pub const MAX_ENCODERS: usize = 1024;

/// Encoders at work, over all threads.
static ENCODERS: AtomicUsize = AtomicUsize::new(0);

/// What is done on the fly, the better first.
const CODINGS: [Coding; 2] = [Coding::Brotli, Coding::Gzip];

/// Digests of the content or of the representation with its coding (RFC 9530, RFC 3230).
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Compresses a response if that is worth it and allowed: text, at least `min_bytes` or of
/// unknown length, not encoded already, whole, without `no-transform`, not for HEAD.
///
/// Its entity tag becomes weak, as the bytes are no longer those that the tag was made for;
/// ranges are not offered; `Vary` is told with any response that might have been compressed.
pub fn compress(
    settings: &Compress,
    method: &Method,
    request_headers: &HeaderMap,
    response: Response<Body>,
) -> Response<Body> {
    if !is_candidate(settings, method, &response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    encoding::vary(&mut parts.headers);
    let accepted = Accepted::read(request_headers);
    let best = accepted.ranked(&CODINGS).next();
    // HEAD has no body; what GET would say of its length is not known.
    let (Some(coding), true) = (best, *method != Method::HEAD) else {
        return Response::from_parts(parts, body);
    };
    let Some(permit) = Permit::take() else {
        return Response::from_parts(parts, body);
    };
    let headers = &mut parts.headers;
    headers.insert(CONTENT_ENCODING, coding.value());
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    for digest in &DIGESTS {
        headers.remove(digest);
    }
    if let Some(weak) = headers.get(ETAG).and_then(weak) {
        headers.insert(ETAG, weak);
    }
    let body = Compressed {
        body: Some(body),
        encoder: Encoder::new(coding),
        dirty: false,
        trailers: None,
        _permit: permit,
    };
    Response::from_parts(parts, Body::boxed(body))
}

/// Everything but what the client accepts.
fn is_candidate(settings: &Compress, method: &Method, response: &Response<Body>) -> bool {
    let status = response.status();
    let bodyless = status.is_informational()
        || matches!(
            status,
            StatusCode::NO_CONTENT
                | StatusCode::RESET_CONTENT
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::NOT_MODIFIED
        );
    let headers = response.headers();
    if bodyless
        || headers.contains_key(CONTENT_ENCODING)
        || headers.contains_key(CONTENT_RANGE)
        || (*method == Method::CONNECT && status.is_success())
    {
        return false;
    }
    let Some(content_type) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    if !kind::is_text(content_type.as_bytes()) {
        return false;
    }
    let told = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    let length = match method {
        &Method::HEAD => told,
        _ => response.body().size_hint().exact().or(told),
    };
    if length.is_some_and(|length: u64| length < settings.min_bytes.max(1)) {
        return false;
    }
    !headers.get_all(CACHE_CONTROL).iter().any(|value| {
        let mut directives = value
            .as_bytes()
            .split(|&b| b == b',')
            .map(<[u8]>::trim_ascii);
        directives.any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
    })
}

/// A strong tag made weak.
fn weak(tag: &HeaderValue) -> Option<HeaderValue> {
    if !tag.as_bytes().starts_with(b"\"") {
        return None;
    }
    HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok()
}

/// Leave to have an encoder.
struct Permit;

impl Permit {
    fn take() -> Option<Self> {
        // A count and nothing else: no other memory depends on it.
        let taken = ENCODERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
            (n < MAX_ENCODERS).then_some(n + 1)
        });
        // Made only when it was taken: what drops gives one back.
        taken.is_ok().then(|| Self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        ENCODERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An encoder that writes into memory, and hence never waits.
enum Encoder {
    Brotli(Box<BrotliEncoder<Vec<u8>>>),
    Gzip(GzipEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> Self {
        match coding {
            // Quality 4 and a window of 256 KiB: about the time of gzip, results some 10 to
            // 15 % smaller, and a bounded encoder (with its defaults, quality 11 and 4 MiB,
            // brotli is for files).
            Coding::Brotli => Self::Brotli(Box::new(BrotliEncoder::with_params(
                Vec::new(),
                EncoderParams::default()
                    .quality(Level::Precise(4))
                    .window_size(18)
                    .text_mode(),
            ))),
            _ => Self::Gzip(GzipEncoder::with_quality(Vec::new(), Level::Precise(5))),
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        match self {
            Self::Brotli(encoder) => Pin::new(encoder),
            Self::Gzip(encoder) => Pin::new(encoder),
        }
    }

    fn take(&mut self) -> Bytes {
        let output = match self {
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        };
        Bytes::from(std::mem::take(output))
    }

    fn poll_write_all(&mut self, cx: &mut Context<'_>, mut data: &[u8]) -> Poll<io::Result<()>> {
        while !data.is_empty() {
            let written = ready!(self.writer().poll_write(cx, data))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            data = &data[written..];
        }
        Poll::Ready(Ok(()))
    }
}

/// A body on its way through an encoder.
struct Compressed {
    /// `None` at its end.
    body: Option<Body>,
    encoder: Encoder,
    /// The encoder holds something that has not been flushed.
    dirty: bool,
    trailers: Option<HeaderMap>,
    _permit: Permit,
}

impl HttpBody for Compressed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let Some(body) = &mut this.body else {
                return Poll::Ready(this.trailers.take().map(|t| Ok(Frame::trailers(t))));
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let data = match frame.into_data() {
                        Ok(data) => data,
                        Err(frame) => {
                            this.trailers = frame.into_trailers().ok();
                            continue;
                        }
                    };
                    if data.is_empty() {
                        continue;
                    }
                    ready!(this.encoder.poll_write_all(cx, &data))?;
                    this.dirty = true;
                }
                Poll::Ready(Some(Err(error))) => {
                    // Without its end a stream is known to be broken.
                    this.body = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    ready!(this.encoder.writer().poll_shutdown(cx))?;
                    this.body = None;
                }
                Poll::Pending if this.dirty => {
                    ready!(this.encoder.writer().poll_flush(cx))?;
                    this.dirty = false;
                }
                Poll::Pending => return Poll::Pending,
            }
            let output = this.encoder.take();
            if !output.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(output))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none() && self.trailers.is_none()
    }
}

#[cfg(test)]
#[path = "compress_tests.rs"]
mod tests;
