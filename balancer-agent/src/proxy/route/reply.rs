//! Answers that need no backend: redirects, fixed responses, maintenance and error pages.

use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};

use super::host;
use super::path::NormalPath;
use crate::model::http::MaintenancePage;
use crate::proxy::stats::View;
use crate::proxy::types::Body;

/// A redirect to `location`, in which `{host}`, `{path}` and `{query}` are replaced: by the
/// host name that was asked for (without a port), by the normalised path without its
/// parameters (they may hold a session id), and by the query with its `?`, or nothing.
///
/// Nothing that a client sends can end the header or lead to another host: the host is
/// checked, the query is escaped, and a location that begins with `/` begins with only one.
/// 400 when the location needs a host and the request has none that is fit.
pub fn redirect(
    status: StatusCode,
    location: &str,
    host: Option<&str>,
    path: &NormalPath<'_>,
    query: Option<&str>,
) -> Response<Body> {
    let mut out = String::with_capacity(location.len() + path.encoded().len() + 64);
    let mut rest = location;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{host}") {
            match host.map(host::name).filter(|name| host::is_plain(name)) {
                Some(name) => out.push_str(name),
                None => return status_page(StatusCode::BAD_REQUEST),
            }
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{path}") {
            out.push_str(path.encoded());
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{query}") {
            push_query(&mut out, query);
            rest = after;
        } else {
            out.push('{');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    // `//name` and `/\name` would name another host.
    if out.starts_with('/') && !location.starts_with("//") {
        let slashes = out
            .bytes()
            .take_while(|b| matches!(b, b'/' | b'\\'))
            .count();
        out.replace_range(..slashes, "/");
    }
    located(status, &out)
}

/// The redirect from plain HTTP to HTTPS: the same target (its parameters too) on `port`.
/// 301 for GET and HEAD; 308 for others, which keeps method and body. 400 without a fit host.
pub fn to_https(
    method: &Method,
    host: Option<&str>,
    port: u16,
    path: &NormalPath<'_>,
    query: Option<&str>,
) -> Response<Body> {
    let Some(name) = host.map(host::name).filter(|name| host::is_plain(name)) else {
        return status_page(StatusCode::BAD_REQUEST);
    };
    let mut out = format!("https://{name}");
    if port != 443 {
        out.push_str(&format!(":{port}"));
    }
    out.push_str(path.encoded());
    out.push_str(path.parameters());
    push_query(&mut out, query);
    let status = match *method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    located(status, &out)
}

/// A fixed response. HEAD gets the same: hyper sends its head only.
pub fn respond(
    status: StatusCode,
    content_type: &HeaderValue,
    body: &bytes::Bytes,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body.clone()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.clone());
    response
}

/// What a client gets while a pool has no usable backend: its page, or a plain 503; with
/// `Retry-After`, and never from a cache.
pub fn maintenance(page: Option<&MaintenancePage>, retry_after: Duration) -> Response<Body> {
    let mut response = match page {
        Some(page) => respond(page.status, &page.content_type, &page.body),
        None => status_page(StatusCode::SERVICE_UNAVAILABLE),
    };
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A short text that says no more than the status; empty where a status has no body.
pub fn status_page(status: StatusCode) -> Response<Body> {
    let bodyless = status.is_informational()
        || matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        );
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    if !bodyless {
        let reason = status.canonical_reason().unwrap_or("Error");
        *response.body_mut() = Body::full(format!("{} {reason}\n", status.as_u16()));
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
    }
    response
}

/// A view of the statistics; never from a cache.
pub fn view(view: View) -> Response<Body> {
    let status = StatusCode::from_u16(view.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(view.content_type);
    let mut response = respond(status, &content_type, &view.text.into());
    let no_cache = HeaderValue::from_static("no-cache");
    response.headers_mut().insert(CACHE_CONTROL, no_cache);
    response
}

/// A redirect without a body.
pub(crate) fn located(status: StatusCode, location: &str) -> Response<Body> {
    // All parts were checked or escaped; the configuration's own text was checked there.
    let Ok(location) = HeaderValue::from_str(location) else {
        return status_page(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    response
}

/// The query with its `?`; what may not stand in a URI (RFC 3986, 3.4) as an escape.
pub(crate) fn push_query(out: &mut String, query: Option<&str>) {
    let Some(query) = query else { return };
    out.push('?');
    for &b in query.as_bytes() {
        match b {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | b'#' => {
                out.push_str(&format!("%{b:02X}"));
            }
            0x21..=0x7e => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
