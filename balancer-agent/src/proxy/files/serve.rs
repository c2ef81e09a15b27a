//! From a request to the file that answers it.
//!
//! GET and HEAD only. A directory is answered by its index file; without one, or without
//! the `/` at its end, by 404 or a redirect: nothing lists directories. Names that begin
//! with a dot (`.git`, `.htpasswd`) do not exist, except `.well-known` (RFC 8615).
//!
//! Precompressed variants are taken as they lie beside the file, whatever their age, like
//! nginx does: whoever makes them keeps them up to date.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, LAST_MODIFIED, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use super::body::{CHUNK, FileBody, Part, read_whole};
use super::condition::{self, Verdict, Version};
use super::encoding::{self, Accepted, Coding};
use super::kind;
use super::range::{self, Asked, Span};
use super::root::{Documents, Opened, Refused};
use crate::model::http::Rewrite;
use crate::proxy::route::path::NormalPath;
use crate::proxy::route::reply::{located, push_query, status_page};
use crate::proxy::types::Body;

/// What of a request matters for files.
#[derive(Clone, Copy, Debug)]
pub struct FileRequest<'r> {
    /// Its method.
    pub method: &'r Method,
    /// Its headers.
    pub headers: &'r HeaderMap,
    /// Its path.
    pub path: &'r NormalPath<'r>,
    /// Its query, which only redirects to directories take along.
    pub query: Option<&'r str>,
    /// The route's: prefixes are taken off and put on before a file is looked for.
    pub rewrite: &'r Rewrite,
}

/// A file and how it is sent.
struct Chosen {
    file: Arc<File>,
    version: Version,
    coding: Option<Coding>,
    kind: HeaderValue,
}

/// Answers a request by a file. Errors are answers too: 304, 403, 404, 405, 412, 416, and
/// 500 or 503 when the file system fails or descriptors are short.
pub async fn serve(documents: &Documents, request: &FileRequest<'_>) -> Response<Body> {
    if !matches!(*request.method, Method::GET | Method::HEAD) {
        let mut response = status_page(StatusCode::METHOD_NOT_ALLOWED);
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allow);
        return response;
    }
    // A file may be cut between being measured and being read; then once more.
    for _ in 0..2 {
        let chosen = match choose(documents, request).await {
            Ok(chosen) => chosen,
            Err(answer) => return *answer,
        };
        if let Some(response) = send(documents, request, chosen).await {
            return response;
        }
    }
    status_page(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Finds the file, or the answer in place of one.
async fn choose(
    documents: &Documents,
    request: &FileRequest<'_>,
) -> Result<Chosen, Box<Response<Body>>> {
    let local = request.path.local(request.rewrite);
    let absent = || Box::new(status_page(StatusCode::NOT_FOUND));
    if is_hidden(&local) {
        return Err(absent());
    }
    let name = &local[1..];
    if !local.ends_with(b"/") {
        return match documents.find(name).await {
            Ok(Opened::File(file, version)) => {
                Ok(variant(documents, request, name, file, version).await)
            }
            Ok(Opened::Directory) => Err(Box::new(to_directory(request))),
            Err(refused) => Err(Box::new(refused.answer())),
        };
    }
    if !request.path.decoded().ends_with(b"/") {
        // The prefix that was taken off was all of it.
        return Err(Box::new(to_directory(request)));
    }
    for index in &documents.files.index {
        let name = [name, index.as_bytes()].concat();
        match documents.find(&name).await {
            Ok(Opened::File(file, version)) => {
                return Ok(variant(documents, request, &name, file, version).await);
            }
            Ok(Opened::Directory) | Err(Refused::Absent) => {}
            Err(refused) => return Err(Box::new(refused.answer())),
        }
    }
    Err(absent())
}

/// The precompressed variant that the client likes best, or the file itself.
async fn variant(
    documents: &Documents,
    request: &FileRequest<'_>,
    name: &[u8],
    file: Arc<File>,
    version: Version,
) -> Chosen {
    let kind = kind::of_name(name);
    if documents.files.precompressed {
        for coding in Accepted::read(request.headers).ranked(&Coding::ALL) {
            let name = [name, coding.suffix().as_bytes()].concat();
            if let Ok(Opened::File(file, version)) = documents.find(&name).await {
                return Chosen {
                    file,
                    version,
                    coding: Some(coding),
                    kind,
                };
            }
        }
    }
    Chosen {
        file,
        version,
        coding: None,
        kind,
    }
}

/// The response; `None` if the file is no longer what it was.
async fn send(
    documents: &Documents,
    request: &FileRequest<'_>,
    chosen: Chosen,
) -> Option<Response<Body>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "RFC 9110, 8.8.2.1 compares Last-Modified with the time of day"
    )]
    let now = SystemTime::now();
    let size = chosen.version.size;
    let tag = chosen.version.tag(chosen.coding.map(Coding::name));
    let modified = chosen.version.modified(now);
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.reserve(10);
    if let Some(cache_control) = &documents.files.cache_control {
        headers.insert(CACHE_CONTROL, cache_control.clone());
    }
    if documents.files.precompressed {
        encoding::vary(headers);
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    if let Some(modified) = modified
        && let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(modified))
    {
        headers.insert(LAST_MODIFIED, date);
    }
    match condition::evaluate(request.headers, &tag, modified) {
        Verdict::Proceed => {}
        Verdict::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Some(response);
        }
        Verdict::Failed => return Some(status_page(StatusCode::PRECONDITION_FAILED)),
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Ranges are defined for GET only (RFC 9110, 14.2).
    let asked = match *request.method == Method::GET
        && condition::range_counts(request.headers, &tag, modified, now)
    {
        true => range::read(request.headers, size),
        false => Asked::Whole,
    };
    if asked == Asked::Unsatisfiable {
        let mut response = status_page(StatusCode::RANGE_NOT_SATISFIABLE);
        let range = HeaderValue::from_str(&format!("bytes */{size}")).ok()?;
        response.headers_mut().insert(CONTENT_RANGE, range);
        return Some(response);
    }
    if let Some(coding) = chosen.coding {
        headers.insert(CONTENT_ENCODING, coding.value());
    }
    let length = match asked {
        Asked::Whole | Asked::Unsatisfiable => {
            headers.insert(CONTENT_TYPE, chosen.kind);
            let whole = size.checked_sub(1).map(|last| Span { first: 0, last });
            if let (Some(span), &Method::GET) = (whole, request.method) {
                *response.body_mut() = body(chosen.file, span).await?;
            }
            size
        }
        Asked::Parts(spans) if spans.len() == 1 => {
            headers.insert(CONTENT_TYPE, chosen.kind);
            let range = HeaderValue::from_str(&spans[0].content_range(size)).ok()?;
            headers.insert(CONTENT_RANGE, range);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            *response.body_mut() = body(chosen.file, spans[0]).await?;
            spans[0].len()
        }
        Asked::Parts(spans) => {
            let boundary = format!("{:032x}", rand::random::<u128>());
            let kind = format!("multipart/byteranges; boundary={boundary}");
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(&kind).ok()?);
            let (parts, length) = multipart(&spans, &chosen.kind, &boundary, size);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            *response.body_mut() = Body::boxed(FileBody::new(chosen.file, parts));
            length
        }
    };
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
    Some(response)
}

/// One part of a file: read at once if it is small. `None` if it is no longer there.
async fn body(file: Arc<File>, span: Span) -> Option<Body> {
    if span.len() > CHUNK as u64 {
        let parts = VecDeque::from([Part::File(span)]);
        return Some(Body::boxed(FileBody::new(file, parts)));
    }
    match read_whole(&file, span).await {
        Ok(Some(bytes)) => Some(Body::full(bytes)),
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(%error, "reading a file to serve failed");
            None
        }
    }
}

/// Several parts (RFC 9110, 14.6), and their length in bytes.
fn multipart(
    spans: &[Span],
    kind: &HeaderValue,
    boundary: &str,
    size: u64,
) -> (VecDeque<Part>, u64) {
    let kind = kind.to_str().unwrap_or("application/octet-stream");
    let mut parts = VecDeque::with_capacity(2 * spans.len() + 1);
    let mut length = 0;
    let mut push_text = |parts: &mut VecDeque<Part>, text: String| {
        length += text.len() as u64;
        parts.push_back(Part::Text(Bytes::from(text)));
    };
    for (place, span) in spans.iter().enumerate() {
        let before = if place == 0 { "" } else { "\r\n" };
        let range = span.content_range(size);
        let head = format!(
            "{before}--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: {range}\r\n\r\n"
        );
        push_text(&mut parts, head);
        parts.push_back(Part::File(*span));
    }
    push_text(&mut parts, format!("\r\n--{boundary}--\r\n"));
    let bytes: u64 = spans.iter().map(Span::len).sum();
    (parts, length + bytes)
}

/// Whether a segment begins with a dot.
fn is_hidden(path: &[u8]) -> bool {
    memchr::memmem::find_iter(path, b"/.").any(|at| {
        let segment = &path[at + 1..];
        let end = memchr::memchr(b'/', segment).unwrap_or(segment.len());
        &segment[..end] != b".well-known"
    })
}

/// The same place with a `/` at its end, so that relative links in the index work.
fn to_directory(request: &FileRequest<'_>) -> Response<Body> {
    let path = request.path;
    let mut location = format!("{}/{}", path.encoded(), path.parameters());
    push_query(&mut location, request.query);
    located(StatusCode::MOVED_PERMANENTLY, &location)
}

impl Refused {
    fn answer(self) -> Response<Body> {
        status_page(match self {
            Self::Absent => StatusCode::NOT_FOUND,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        })
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
