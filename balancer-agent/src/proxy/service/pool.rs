//! A request that goes to a pool: attempts until one gives a response, or none may be made
//! any more.
//!
//! ```text
//! session -> place at a backend -> connection -> send --+--> response
//!              ^                                        |
//!              +-- the next backend, if that is safe <--+
//! ```
//!
//! Safe is: nothing was sent yet, or the method is idempotent (RFC 9110, 9.2.2), or the
//! configuration says so. Never safe is what of the body cannot be said again.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header, response};
use smallvec::SmallVec;

use super::delivery::Direct;
use super::forwarded::About;
use super::journal::Journal;
use super::tunnel::{Ended, Upgrading};
use super::{Asked, Local, LocalPool, already_https, dress, protocol_word, refuse, version_word};
use crate::model::http::{BackendProtocol, RETRY_STATUS, Retries, Route};
use crate::proxy::balance::{Lease, NoBackend, Outcome, acquire};
use crate::proxy::downstream;
use crate::proxy::files;
use crate::proxy::route::{reply, rewrite};
use crate::proxy::sticky::{self, Affinity};
use crate::proxy::types::{Body, Cause};
use crate::proxy::upstream::ajp::Origin;
use crate::proxy::upstream::body::RequestBody;
use crate::proxy::upstream::connect::Parties;
use crate::proxy::upstream::head::{Incoming, Listed, Outgoing};
use crate::proxy::upstream::pool::Terms;
use crate::proxy::upstream::{Failure, Inform, ResponseBody, SendError, Sent};
use crate::proxy::websocket;
use crate::session::handle::Kept;

/// What clients are told to wait before they come again, when nothing else is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Interim responses, to clients that know them.
struct ToClient<'a> {
    inform: &'a downstream::Inform,
    version: Version,
}

impl Inform for ToClient<'_> {
    fn inform(&mut self, status: StatusCode, headers: &HeaderMap) {
        if self.version != Version::HTTP_10 {
            self.inform.send(status, headers);
        }
    }
}

/// Serves a request from the pool of this name.
pub(super) async fn serve(
    local: &Rc<Local>,
    name: &str,
    route: &Arc<Route>,
    asked: &mut Asked<'_>,
    body: Body,
    mut journal: Journal,
) -> Response<Body> {
    let frontend = asked.frontend;
    let connection = asked.connection;
    let Some(at) = local.world.pool(name) else {
        // A frontend that is being removed, and its pool is gone.
        let response = reply::maintenance(None, RETRY_AFTER);
        return refuse(response, frontend, connection, journal, Cause::NoBackend);
    };
    let pool = &local.pools[at];
    let view = &pool.world.view;
    let http = &view.pool.http;
    let mut affinity = sticky::read(view, &asked.parts.headers, &asked.path, asked.client);
    if affinity.asks(view) {
        // Another node may know this session: worth a short wait.
        sticky::ask(view, &mut affinity).await;
    }
    journal.pool(&view.pool.name, affinity.route(view));

    let listed = Listed::of(&asked.parts.headers);
    let mut upgrading = Upgrading::of(&mut asked.parts.extensions);
    let over_http2 = matches!(upgrading, Some(Upgrading::Http2(_)));
    let upgrade = match &upgrading {
        Some(Upgrading::Http2(_)) => Some(HeaderValue::from_static(websocket::NAME)),
        Some(Upgrading::Http1(_)) => upgrade_of(asked, &listed),
        None => None,
    };
    let trailers = (asked.parts.headers.get_all(header::TE).iter())
        .any(|te| te.as_bytes().trim_ascii().eq_ignore_ascii_case(b"trailers"));
    let expects = (asked.parts.headers.get(header::EXPECT))
        .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    count_down_hops(&mut asked.parts.headers);

    // What is told about the client: written beside the client's own fields, or, when the
    // route changes fields after that, put among them.
    let mut lines = Vec::with_capacity(192);
    let about = About {
        frontend: &frontend.model,
        connection,
        trusted: asked.trusted,
        host: asked.host,
        version: version_word(asked.parts.version),
        request_id: asked.request_id.as_deref(),
    };
    let changes = &route.rewrite;
    let beside = changes.request_headers.is_empty();
    if beside {
        about.write(&asked.parts.headers, &mut lines);
    } else {
        about.put(&mut asked.parts.headers);
    }
    asked.parts.headers.remove(header::HOST);
    if !beside || changes.host.is_some() {
        rewrite::rewrite_request(changes, &mut asked.parts);
    }
    let rewritten_host = asked.parts.headers.remove(header::HOST);

    // For AJP13; where a proxy speaks for the client, its port is not known.
    let same = asked.client == connection.client.ip();
    let client_port = if same { connection.client.port() } else { 0 };
    let secure = connection.tls.is_some() || already_https(asked.trusted, &asked.parts);

    let mut body = RequestBody::new(body);
    let idempotent = asked.parts.method.is_idempotent();
    let until = http.timeouts.request.map(|time| journal.began() + time);
    let mut tried: SmallVec<[usize; 4]> = SmallVec::new();
    loop {
        let lease = match acquire(view, &affinity, asked.client, &tried).await {
            Ok(lease) => lease,
            Err(none) => {
                journal.bytes_in(body.bytes());
                return unavailable(none, pool, asked, journal);
            }
        };
        let chosen = lease.index();
        let backend = lease.backend();
        journal.attempt(&backend.name, tried.len() as u32, lease.queued());
        let parameter = sticky::rewrite_request(view, &affinity, chosen, &mut asked.parts.headers);
        let replace = parameter_name(view).zip(parameter.as_deref());
        let Ok(target) = asked.path.target(asked.uri, replace, changes) else {
            let response = reply::status_page(StatusCode::URI_TOO_LONG);
            return refuse(response, frontend, connection, journal, Cause::Refused);
        };
        let address;
        let host = match (&rewritten_host, asked.host) {
            (Some(host), _) => host.as_bytes(),
            (None, Some(host)) => host.as_bytes(),
            // HTTP/1.0 may ask for none. By AJP13 the port would be taken for the client's.
            (None, None) => {
                address = match http.protocol {
                    BackendProtocol::Ajp => connection.local.to_string(),
                    _ => backend.address.to_string(),
                };
                address.as_bytes()
            }
        };
        let mut handed = None;
        let mut inform = ToClient {
            inform: asked.inform,
            version: asked.parts.version,
        };
        let drop = |name: &http::HeaderName| beside && about.replaces(name);
        let mut outgoing = Outgoing {
            method: &asked.parts.method,
            target: target.as_str(),
            host,
            headers: &asked.parts.headers,
            listed: &listed,
            drop: &drop,
            lines: &lines,
            upgrade: upgrade.as_ref(),
            expects,
            trailers,
            keep: true,
        };
        let mut terms = Terms {
            parties: Parties {
                client: connection.client,
                local: connection.local,
            },
            idempotent,
            until,
            inform: &mut inform,
            origin: Origin {
                protocol: protocol_word(asked.parts.version),
                client: SocketAddr::new(asked.client, client_port),
                local: connection.local,
                secure,
                tls: connection.tls.as_ref(),
                route: &backend.http.route,
                activation: backend.activation,
            },
            handed: &mut handed,
            timed: journal.is_timed(),
        };
        let sent = pool.backends[chosen]
            .send(&mut outgoing, body, &mut terms)
            .await;
        journal.answered(handed.map(|handed| (handed.connect, handed.elapsed())));
        match sent {
            Ok(Sent::Switched(head, tunnel)) => {
                lease.report(Outcome::Answered(101));
                // HTTP/1.1's clients look at the answer to their key themselves.
                let good = !over_http2 || websocket::answers(&head.headers, &asked.parts.headers);
                let asked_for = upgrade.is_some() && good;
                let Some(upgrading) = upgrading.take().filter(|_| asked_for) else {
                    // Not asked for, or not so.
                    let response = reply::status_page(StatusCode::BAD_GATEWAY);
                    return refuse(
                        response,
                        frontend,
                        connection,
                        journal,
                        Cause::BackendAborted,
                    );
                };
                let idle = http.timeouts.tunnel;
                let response = switched(*head);
                journal.status(if over_http2 { 200 } else { 101 });
                tokio::task::spawn_local(async move {
                    let Some((through, ended)) = upgrading.carry(tunnel, idle).await else {
                        return journal.end(Cause::ClientAborted);
                    };
                    std::mem::drop(lease);
                    journal.tunnelled(through.from_client, through.to_client);
                    journal.end(match ended {
                        Ended::Both => Cause::Done,
                        Ended::Idle => Cause::ClientTimeout,
                        Ended::Client => Cause::ClientAborted,
                        Ended::Backend => Cause::BackendAborted,
                    });
                });
                return response;
            }
            Ok(Sent::Response(head, answer)) => {
                let status = head.status.as_u16();
                lease.report(Outcome::Answered(status));
                let again = idempotent
                    && (tried.len() as u32) < http.retries.attempts
                    && is_retried(&http.retries, status)
                    && answer.request_bytes() == 0
                    && view.live.may_retry();
                if again {
                    body = RequestBody::default();
                    tried.push(chosen);
                    continue;
                }
                if over_http2 && head.status.is_success() {
                    // To the client it would grant a tunnel.
                    let response = reply::status_page(StatusCode::BAD_GATEWAY);
                    return refuse(
                        response,
                        frontend,
                        connection,
                        journal,
                        Cause::BackendAborted,
                    );
                }
                return answered(head, answer, lease, &affinity, route, asked, journal).await;
            }
            Err(failure) => {
                lease.report(outcome_of(&failure.error));
                let Failure {
                    error,
                    sent,
                    body: rest,
                } = failure;
                body = rest;
                journal.bytes_in(body.bytes());
                let cause = error.cause();
                tracing::debug!(
                    backend = %backend.name, pool = %view.pool.name, %error, sent, "attempt failed"
                );
                let safe = match &error {
                    SendError::Client(_) | SendError::NoUpgrade(_) | SendError::TooLarge => false,
                    error if error.is_connect() => true,
                    _ => !sent || idempotent || http.retries.non_idempotent,
                };
                let late = until.is_some_and(|until| Instant::now() >= until);
                if safe
                    && !late
                    && (tried.len() as u32) < http.retries.attempts
                    && body.rewind()
                    && match &error {
                        error if error.is_refused() => true,
                        error if error.is_gone() => view.may_move(),
                        _ => view.live.may_retry(),
                    }
                {
                    tried.push(chosen);
                    continue;
                }
                let response = match &error {
                    SendError::Timeout | SendError::ConnectTimeout => {
                        reply::status_page(StatusCode::GATEWAY_TIMEOUT)
                    }
                    SendError::Local(_) => reply::maintenance(None, RETRY_AFTER),
                    SendError::NoUpgrade(why) => {
                        if pool.backends[chosen].may_complain() {
                            tracing::warn!(
                                backend = %backend.name, pool = %view.pool.name, why,
                                "a WebSocket was refused with 501: the backend takes none (said \
                                 at most once a minute)"
                            );
                        }
                        reply::status_page(StatusCode::NOT_IMPLEMENTED)
                    }
                    SendError::TooLarge => {
                        reply::status_page(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
                    }
                    // The client's connection answers itself what it has refused; the log is
                    // to say the same.
                    SendError::Client(error) => {
                        let status = downstream::Ended::of(&**error).map(|ended| ended.status);
                        let status = status.and_then(|s| StatusCode::from_u16(s).ok());
                        reply::status_page(status.unwrap_or(StatusCode::BAD_REQUEST))
                    }
                    _ => reply::status_page(StatusCode::BAD_GATEWAY),
                };
                return refuse(response, frontend, connection, journal, cause);
            }
        }
    }
}

/// `Upgrade`, when the request asks for it in a way that can be granted.
fn upgrade_of(asked: &Asked<'_>, listed: &Listed) -> Option<HeaderValue> {
    if asked.parts.version != Version::HTTP_11 || !listed.contains(&header::UPGRADE) {
        return None;
    }
    let upgrade = asked.parts.headers.get(header::UPGRADE)?;
    // `h2c` would take the backend's connection out of our hands: its requests would pass
    // unseen.
    let h2c = (upgrade.as_bytes().split(|b| *b == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    (!h2c).then(|| upgrade.clone())
}

/// RFC 9110, 7.6.2, for OPTIONS; a zero has been answered before.
fn count_down_hops(headers: &mut HeaderMap) {
    if let Some(hops) = headers.get_mut(header::MAX_FORWARDS)
        && let Some(left) = hops.to_str().ok().and_then(|hops| hops.parse::<u32>().ok())
    {
        *hops = HeaderValue::from(left.saturating_sub(1));
    }
}

/// Name of the path parameter that may be replaced.
fn parameter_name(view: &crate::proxy::balance::PoolView) -> Option<&str> {
    match view.stickiness() {
        Some(crate::model::http::Sticky::Route(route)) => Some(&route.parameter),
        _ => None,
    }
}

fn is_retried(retries: &Retries, status: u16) -> bool {
    let place = RETRY_STATUS.iter().position(|s| *s == status);
    place.is_some_and(|place| retries.on_status[place])
}

fn outcome_of(error: &SendError) -> Outcome {
    match error {
        SendError::Connect(_)
        | SendError::Tls(_)
        | SendError::ConnectTimeout
        | SendError::NoPong(_) => Outcome::ConnectFailed,
        SendError::Timeout => Outcome::TimedOut,
        // Neither says anything about the backend's health.
        SendError::Client(_)
        | SendError::Local(_)
        | SendError::NoUpgrade(_)
        | SendError::TooLarge
        | SendError::Stale => Outcome::ClientAborted,
        SendError::Closed(_)
        | SendError::Cut(_)
        | SendError::Malformed(_)
        | SendError::Http2(_)
        | SendError::Ajp(_) => Outcome::Broken,
    }
}

/// No backend.
fn unavailable(
    none: NoBackend,
    pool: &LocalPool,
    asked: &Asked<'_>,
    journal: Journal,
) -> Response<Body> {
    let page = pool.world.view.pool.http.maintenance.as_ref();
    let (page, cause) = match none {
        NoBackend::NoneUsable | NoBackend::Forced => (page, Cause::NoBackend),
        NoBackend::QueueFull => (None, Cause::QueueFull),
        NoBackend::QueueTimeout => (None, Cause::QueueTimeout),
    };
    let response = reply::maintenance(page, RETRY_AFTER);
    refuse(response, asked.frontend, asked.connection, journal, cause)
}

/// The response to the client.
async fn answered(
    head: Box<Incoming>,
    body: ResponseBody,
    lease: Lease,
    affinity: &Affinity,
    route: &Route,
    asked: &Asked<'_>,
    mut journal: Journal,
) -> Response<Body> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    let (mut parts, ()) = response.into_parts();
    let secure = asked.connection.tls.is_some();
    let view = Arc::clone(lease.view());
    let held = sticky::rewrite_response(&view, affinity, lease.index(), secure, &mut parts);
    if let Some(held) = held {
        // Nobody may know of the session before another node has it.
        let kept = held.wait().await;
        let sessions = view.pool.http.sessions.as_ref();
        if let Some(name) = sessions.and_then(|sessions| sessions.sync_header.as_ref()) {
            parts.headers.insert(name, said(kept));
        }
    }
    if !route.rewrite.response_headers.is_empty() {
        rewrite::rewrite_response(&route.rewrite, &mut parts);
    }
    via(&mut parts, asked);
    journal.status(parts.status.as_u16());
    let mut response = match &route.compress {
        None => Response::from_parts(parts, Direct::new(body, lease, Some(journal)).boxed()),
        Some(settings) => {
            let body = Direct::new(body, lease, None).boxed();
            let response = Response::from_parts(parts, body);
            let (method, headers) = (&asked.parts.method, &asked.parts.headers);
            files::compress(settings, method, headers, response)
                .map(|body| super::Delivery::new(body, journal).boxed())
        }
    };
    dress(&mut response, asked.frontend, asked.connection);
    response
}

/// For who asks how well a session is kept: a dictionary (RFC 9651, 3.2).
fn said(kept: Kept) -> HeaderValue {
    match kept {
        Kept::Absent => HeaderValue::from_static("absent"),
        Kept::All(nodes) | Kept::Some(nodes) => {
            let degraded = matches!(kept, Kept::Some(_));
            let text = format!("nodes={nodes}{}", if degraded { ", degraded" } else { "" });
            HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("degraded"))
        }
    }
}

fn via(parts: &mut response::Parts, asked: &Asked<'_>) {
    if let Some(via) = &asked.frontend.model.via
        && let Ok(value) = HeaderValue::try_from(format!("1.1 {via}"))
    {
        parts.headers.append(header::VIA, value);
    }
}

/// 101, to the client.
fn switched(head: Incoming) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = head.headers;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(upgrade) = head.upgrade {
        headers.insert(header::UPGRADE, upgrade);
    }
    response
}
