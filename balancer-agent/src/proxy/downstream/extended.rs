//! WebSockets over HTTP/2 (RFC 8441): CONNECT with a protocol is handled as the GET that
//! HTTP/1.1 would have, whose 101 becomes the stream's 200.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode, header};
use hyper::ext::Protocol;

use super::Body;
use super::http2::{self, Streams};
use super::own_thread::OwnThread;
use super::state::State;
use crate::proxy::websocket;

/// Among the extensions of a request for a WebSocket over HTTP/2. Whoever grants it keeps
/// this until the tunnel's end: so long the stream counts as a running request, and its
/// connection is not idle.
#[derive(Clone)]
pub struct OverHttp2 {
    _tunnel: Arc<Mutex<OwnThread<Tunnel>>>,
}

struct Tunnel {
    state: Rc<State>,
    streams: Rc<Streams>,
}

impl Tunnel {
    fn new(state: Rc<State>, streams: Rc<Streams>) -> Self {
        state.door.live().in_flight.fetch_add(1, Relaxed);
        streams.active.set(streams.active.get() + 1);
        Self { state, streams }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        http2::end(&self.state, &self.streams);
    }
}

/// Whether a request is CONNECT for a WebSocket.
pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    *request.method() == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str() == websocket::NAME)
}

/// Makes it a GET with a key of ours.
pub(super) fn ask(request: &mut Request<Body>, state: &Rc<State>, streams: &Rc<Streams>) {
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_KEY, websocket::key());
    let tunnel = Tunnel::new(Rc::clone(state), Rc::clone(streams));
    request.extensions_mut().insert(OverHttp2 {
        _tunnel: Arc::new(Mutex::new(OwnThread::new(tunnel))),
    });
}

/// The response as HTTP/2 has it.
pub(super) fn answer(mut response: Response<Body>) -> Response<Body> {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            *response.status_mut() = StatusCode::OK;
            let headers = response.headers_mut();
            for name in [
                header::CONNECTION,
                header::UPGRADE,
                header::SEC_WEBSOCKET_ACCEPT,
            ] {
                headers.remove(name);
            }
        }
        // It would grant what nobody is at the other end of.
        status if status.is_success() => *response.status_mut() = StatusCode::NOT_IMPLEMENTED,
        _ => {}
    }
    response
}
