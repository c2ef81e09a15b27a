//! What HTTP/1's guard does, as far as h2 leaves something to be done; and how a refusal is
//! answered and shown.

use std::sync::atomic::Ordering::Relaxed;

use h2::RecvStream;
use http::{HeaderMap, Method, Request, Response, header, request};

use super::super::extended;
use super::super::guard::{self, Refusal};
use super::super::http1::refused;
use super::super::source::Allowed;
use super::super::state::State;
use crate::proxy::types::Body;

/// Longest head that is shown of a refused request.
const SHOWN: usize = 4096;

/// Checks a request's head.
pub(super) fn check(request: &Request<RecvStream>, state: &State) -> Result<(), Refusal> {
    let settings = state.settings();
    let limits = &settings.frontend.limits;
    if let Some(rate) = limits.requests_per_source {
        let source = state.connection.client.ip();
        match state.door.bound.sources.request(source, rate) {
            Allowed::Yes => {}
            Allowed::No => return Err(Refusal::RATE),
            Allowed::Untracked => {
                let live = state.door.live();
                live.sources_untracked.fetch_add(1, Relaxed);
            }
        }
    }
    let method = match request.method() {
        &Method::CONNECT if extended::is_asked(request) => &Method::GET,
        &Method::CONNECT => return Err(guard::CONNECT),
        method => method,
    };
    let headers = request.headers();
    if headers.len() > limits.headers {
        return Err(guard::FIELDS);
    }
    let uri = request.uri();
    let target = uri.path_and_query().map_or("", |p| p.as_str());
    if target.len() > limits.target_bytes {
        return Err(guard::TARGET_LONG);
    }
    guard::check_target(
        method,
        target,
        uri.authority().map(|a| a.as_str()),
        one(headers)?,
    )?;
    let most = limits.body_bytes.unwrap_or(u64::MAX);
    if length(headers).is_some_and(|length| length > most) {
        return Err(Refusal::BODY);
    }
    Ok(())
}

/// The length that a request tells. h2 has looked at it: it is a number, the same in all
/// fields, and what comes is neither more nor less.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// Whether the client waits for a 100 before it sends the body.
pub(super) fn waits(headers: &HeaderMap) -> bool {
    let expect = headers.get(header::EXPECT);
    expect.is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The only `Host`, if there is one.
fn one(headers: &HeaderMap) -> Result<Option<&[u8]>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (host, None) => Ok(host.map(|h| h.as_bytes())),
        (_, Some(_)) => Err(guard::HOSTS),
    }
}

/// A refusal ends its stream, not the connection.
pub(super) fn answer_refused(refusal: &Refusal) -> Response<Body> {
    let mut response = refused(refusal);
    response.headers_mut().remove(header::CONNECTION);
    response
}

/// As much of a head as is worth a line in a log.
pub(super) fn shown(parts: &request::Parts) -> Vec<u8> {
    let target = parts.uri.path_and_query().map_or("*", |p| p.as_str());
    let mut head = format!("{} {target} HTTP/2.0\r\n", parts.method).into_bytes();
    head.truncate(SHOWN);
    if let Some(host) = parts.uri.authority() {
        head.extend_from_slice(b"host: ");
        head.extend_from_slice(host.as_str().as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.truncate(2 * SHOWN);
    head
}
