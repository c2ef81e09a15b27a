//! One request, from its head to the response's: who asks, where it goes, which backend
//! gets it, and again where that is safe.
//!
//! - `service/forwarded.rs`: the client's address, and what backends are told;
//! - `service/pool.rs`: a request that goes to a pool;
//! - `service/tunnel.rs`: upgraded connections;
//! - `service/delivery.rs`: the response's body; `service/journal.rs`: what is noted.

mod delivery;
pub mod forwarded;
mod journal;
mod pool;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::uri::Uri;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request};

use super::downstream::{Handler, Inform, OverHttp2};
use super::files::{self, FileRequest};
use super::route::path::NormalPath;
use super::route::{reply, rewrite};
use super::types::{Body, Cause, Connection};
use super::upstream::{Connections, Upstreams};
use super::world::{FrontendWorld, PoolWorld, Publisher, World};
use crate::model::http::{Action, Rewrite, Route};
use delivery::Delivery;
use journal::Journal;

/// What `OPTIONS *` is told.
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// What the requests of one thread share.
pub struct Thread {
    publisher: Arc<Publisher>,
    local: RefCell<Rc<Local>>,
    /// Connections to backends.
    pub upstreams: Upstreams,
}

/// A snapshot as a thread sees it: with its own connections.
pub struct Local {
    world: Arc<World>,
    pools: Vec<Rc<LocalPool>>,
}

/// A pool as a thread sees it.
struct LocalPool {
    world: PoolWorld,
    /// In the order of the view's backends.
    backends: Vec<Rc<Connections>>,
}

impl Thread {
    /// Without connections yet.
    pub fn new(publisher: &Arc<Publisher>) -> Self {
        let thread = Self {
            publisher: Arc::clone(publisher),
            local: RefCell::new(Rc::new(Local {
                world: publisher.world().load_full(),
                pools: Vec::new(),
            })),
            upstreams: Upstreams::default(),
        };
        let world = publisher.world().load_full();
        thread.local.replace(thread.localise(world));
        thread
    }

    /// The snapshot of this moment.
    fn local(&self) -> Rc<Local> {
        let world = self.publisher.world().load();
        {
            let local = self.local.borrow();
            if Arc::ptr_eq(&world, &local.world) {
                return Rc::clone(&local);
            }
        }
        let local = self.localise(Arc::clone(&world));
        self.local.replace(Rc::clone(&local));
        local
    }

    /// Takes over the newest snapshot, when no request has done so.
    pub fn refresh(&self) {
        self.local();
    }

    fn localise(&self, world: Arc<World>) -> Rc<Local> {
        let old = Rc::clone(&self.local.borrow());
        let reloaded = !Arc::ptr_eq(&old.world.config, &world.config);
        let pools = world.pools.iter().enumerate().map(|(at, pool)| {
            // Only what has changed is looked up again.
            if !reloaded
                && let Some(known) = old.pools.get(at)
                && Arc::ptr_eq(&known.world.view, &pool.view)
            {
                return Rc::clone(known);
            }
            let name = &pool.view.pool.name;
            let backends = pool.view.backends.iter().map(|backend| {
                let (upstreams, speech) = (&self.upstreams, &pool.speech);
                upstreams.backend(name, &backend.name, backend.address, speech, &backend.http)
            });
            Rc::new(LocalPool {
                backends: backends.collect(),
                world: pool.clone(),
            })
        });
        let pools = pools.collect();
        if reloaded {
            self.upstreams.retain(|pool, backend| {
                let pool = world.pool(pool).map(|at| &world.pools[at].view);
                pool.is_some_and(|view| view.backends.iter().any(|b| *b.name == *backend))
            });
        }
        Rc::new(Local { world, pools })
    }
}

/// Answers the requests of one frontend on one thread.
pub struct Service {
    thread: Rc<Thread>,
    name: Arc<str>,
    /// Where the frontend was found last; it usually is there still.
    place: Cell<usize>,
    /// The frontend itself: requests may come while it is being removed.
    last: RefCell<Option<Arc<FrontendWorld>>>,
}

impl Service {
    /// For the frontend of this name.
    pub fn new(thread: &Rc<Thread>, name: &Arc<str>) -> Self {
        let service = Self {
            thread: Rc::clone(thread),
            name: Arc::clone(name),
            place: Cell::new(0),
            last: RefCell::new(None),
        };
        service.frontend(&service.thread.local());
        service
    }

    fn frontend(&self, local: &Local) -> Option<Arc<FrontendWorld>> {
        let frontends = &local.world.frontends;
        let known = frontends.get(self.place.get());
        let found = match known.filter(|f| f.model.name == self.name) {
            Some(known) => Some(known),
            None => local.world.frontend(&self.name).map(|at| {
                self.place.set(at);
                &frontends[at]
            }),
        };
        let mut last = self.last.borrow_mut();
        if let Some(found) = found
            && !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, found))
        {
            *last = Some(Arc::clone(found));
        }
        last.clone()
    }
}

/// A request, as far as it is understood.
struct Asked<'a> {
    frontend: &'a FrontendWorld,
    connection: &'a Connection,
    inform: &'a Inform,
    /// The target, taken out of `parts`.
    uri: &'a Uri,
    parts: request::Parts,
    path: NormalPath<'a>,
    /// What the client asked for.
    host: Option<&'a str>,
    /// Whether the peer's word on the client is believed.
    trusted: bool,
    client: IpAddr,
    request_id: Option<String>,
}

impl Handler for Service {
    async fn handle(
        self: Rc<Self>,
        request: Request<Body>,
        connection: Rc<Connection>,
        inform: Inform,
    ) -> Response<Body> {
        let local = self.thread.local();
        let Some(frontend) = self.frontend(&local) else {
            return reply::status_page(StatusCode::SERVICE_UNAVAILABLE);
        };
        let (mut parts, body) = request.into_parts();
        let uri = std::mem::take(&mut parts.uri);
        let host = host_of(&uri, &parts);
        let model = &frontend.model;
        let peer = connection.client.ip();
        let trusted = forwarded::within(&model.trusted_proxies, peer);
        let client = match trusted {
            true => forwarded::client(&model.trusted_proxies, peer, &parts.headers),
            false => peer,
        };
        let mut journal = Journal::begin(
            &frontend,
            &parts,
            &uri,
            host.as_deref(),
            client,
            &connection,
        );
        let request_id = model.request_id.as_ref().map(|name| {
            let id = forwarded::request_id(name, &parts.headers, trusted);
            journal.request_id(&id);
            id
        });
        if let Some(response) = before_routing(&parts, &uri, &connection) {
            return finish(response, &frontend, &connection, None, journal);
        }
        let path = match NormalPath::parse(uri.path()) {
            Ok(path) => path,
            Err(error) => {
                tracing::debug!(%error, frontend = %model.name, "bad path");
                let response = reply::status_page(StatusCode::BAD_REQUEST);
                return refuse(response, &frontend, &connection, journal, Cause::Refused);
            }
        };
        if let (Some(port), None) = (model.redirect_https, &connection.tls)
            && !already_https(trusted, &parts)
        {
            let query = uri.query();
            let response = reply::to_https(&parts.method, host.as_deref(), port, &path, query);
            return finish(response, &frontend, &connection, None, journal);
        }
        let found = frontend.router.find(host.as_deref(), &path);
        let Some(route) = found.route else {
            let response = reply::status_page(StatusCode::NOT_FOUND);
            return finish(response, &frontend, &connection, None, journal);
        };
        let mut asked = Asked {
            frontend: &frontend,
            connection: &connection,
            inform: &inform,
            uri: &uri,
            parts,
            path,
            host: host.as_deref(),
            trusted,
            client,
            request_id,
        };
        let over_http2 = asked.parts.extensions.get::<OverHttp2>().is_some();
        let response = match &route.action {
            Action::Pool(name) => {
                return pool::serve(&local, name, route, &mut asked, body, journal).await;
            }
            Action::Files(_) => match found.documents {
                Some(documents) => {
                    let request = FileRequest {
                        method: &asked.parts.method,
                        headers: &asked.parts.headers,
                        path: &asked.path,
                        query: uri.query(),
                        rewrite: &route.rewrite,
                    };
                    files::serve(documents, &request).await
                }
                // Roots are opened while a configuration is prepared.
                None => reply::status_page(StatusCode::INTERNAL_SERVER_ERROR),
            },
            Action::Redirect { status, location } => {
                reply::redirect(*status, location, host.as_deref(), &asked.path, uri.query())
            }
            Action::Respond {
                status,
                content_type,
                body,
            } => reply::respond(*status, content_type, body),
            Action::Stats(stats) => self.thread.publisher.view(stats, client, uri.query()).await,
        };
        let mut response = rewritten(response, &route.rewrite);
        if over_http2 && response.status().is_success() {
            // It would grant a WebSocket that nobody serves.
            response = reply::status_page(StatusCode::NOT_IMPLEMENTED);
        }
        let compress = Some((&**route, &asked.parts));
        finish(response, &frontend, &connection, compress, journal)
    }

    fn refused(&self, connection: &Connection, head: &[u8], status: u16, cause: Cause) {
        let local = self.thread.local();
        if let Some(frontend) = self.frontend(&local) {
            journal::refused(&frontend, connection, head, status, cause);
        }
    }
}

/// The host that a request asks for. An absolute target's wins over the field (RFC 9112,
/// 3.2.2); with HTTP/2 it is `:authority`.
fn host_of(uri: &Uri, parts: &request::Parts) -> Option<Box<str>> {
    if let Some(authority) = uri.authority() {
        let host = authority.as_str();
        // Nobody needs a name or a password that stands before the host.
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        return Some(host.into());
    }
    let host = parts.headers.get(header::HOST)?.to_str().ok()?;
    Some(host.into())
}

/// Answers to what is no request for a resource.
fn before_routing(
    parts: &request::Parts,
    uri: &Uri,
    _connection: &Connection,
) -> Option<Response<Body>> {
    let refused = match parts.method {
        // RFC 9110, 9.3.6 and 9.3.8: a gateway is no tunnel, and an echo of a request would
        // show a script what it must not see.
        Method::CONNECT | Method::TRACE => true,
        Method::OPTIONS => {
            // For us, or for whom it would reach with its last hop (RFC 9110, 7.6.2).
            let hops = parts.headers.get(header::MAX_FORWARDS);
            if uri.path() != "*" && hops.is_none_or(|hops| hops != "0") {
                return None;
            }
            false
        }
        _ => return None,
    };
    let mut response = match refused {
        true => reply::status_page(StatusCode::METHOD_NOT_ALLOWED),
        false => reply::status_page(StatusCode::NO_CONTENT),
    };
    response.headers_mut().insert(header::ALLOW, ALLOW);
    Some(response)
}

/// Whether a trusted proxy has taken the TLS off already.
fn already_https(trusted: bool, parts: &request::Parts) -> bool {
    trusted
        && parts
            .headers
            .get("x-forwarded-proto")
            .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

fn rewritten(response: Response<Body>, rewrite: &Rewrite) -> Response<Body> {
    if rewrite.response_headers.is_empty() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    rewrite::rewrite_response(rewrite, &mut parts);
    Response::from_parts(parts, body)
}

/// The last steps of every response of our own: compression, what the frontend adds, and
/// the journal along with the body.
fn finish(
    mut response: Response<Body>,
    frontend: &FrontendWorld,
    connection: &Connection,
    compress: Option<(&Route, &request::Parts)>,
    mut journal: Journal,
) -> Response<Body> {
    if let Some((route, request)) = compress
        && let Some(settings) = &route.compress
    {
        response = files::compress(settings, &request.method, &request.headers, response);
    }
    dress(&mut response, frontend, connection);
    journal.status(response.status().as_u16());
    response.map(|body| Delivery::new(body, journal).boxed())
}

/// As [`finish`], for a request that did not end well.
fn refuse(
    mut response: Response<Body>,
    frontend: &FrontendWorld,
    connection: &Connection,
    mut journal: Journal,
    cause: Cause,
) -> Response<Body> {
    dress(&mut response, frontend, connection);
    journal.status(response.status().as_u16());
    // Ended at once: this says what went wrong, not whether the client heard of it.
    let bytes = http_body::Body::size_hint(response.body())
        .exact()
        .unwrap_or(0);
    journal.sent(usize::try_from(bytes).unwrap_or(0));
    journal.end(cause);
    response
}

/// What a frontend adds to every response.
fn dress(response: &mut Response<Body>, frontend: &FrontendWorld, connection: &Connection) {
    if let (Some(hsts), Some(_)) = (&frontend.model.hsts, &connection.tls) {
        let headers = response.headers_mut();
        headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
}

/// As AJP13 has it.
fn protocol_word(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// As `Via` has it.
fn version_word(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    }
}
