//! WebSockets over HTTP/2 (RFC 8441): CONNECT with a protocol is handled as the GET that
//! HTTP/1.1 would have, whose 101 becomes the stream's 200.

use std::rc::Rc;
use std::sync::{Arc, Mutex};

use ::h2::ext::Protocol;
use ::h2::{RecvStream, SendStream};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::Body;
use super::http2::{Running, Streams};
use super::own_thread::OwnThread;
use crate::proxy::h2_tunnel::H2Tunnel;
use crate::proxy::websocket;

/// Among the extensions of a request for a WebSocket over HTTP/2.
#[derive(Clone)]
pub struct OverHttp2(Arc<Mutex<OwnThread<Option<Waiting>>>>);

/// As long as somebody waits, and then until the tunnel's end, the stream counts as a
/// running request, and its connection is not idle.
struct Waiting {
    granted: oneshot::Receiver<(SendStream<Bytes>, RecvStream)>,
    running: Running,
}

impl OverHttp2 {
    /// The client's side of the tunnel, once a response with status 101 is on its way.
    /// `None` when none was, the client is gone, or this was asked before.
    pub async fn granted(self) -> Option<impl AsyncRead + AsyncWrite + Unpin> {
        let waiting = {
            let mut waiting = self.0.lock().ok()?;
            waiting.get_mut()?.take()?
        };
        let (send, recv) = waiting.granted.await.ok()?;
        Some(H2Tunnel::new(send, recv, waiting.running))
    }
}

/// The side of who answers: the request's stream, and who waits for the tunnel.
pub(super) struct Grant {
    recv: RecvStream,
    granted: oneshot::Sender<(SendStream<Bytes>, RecvStream)>,
}

impl Grant {
    /// The response is on its way.
    pub fn give(self, send: SendStream<Bytes>) {
        // Nobody may be there to take it: that resets the stream.
        let _ = self.granted.send((send, self.recv));
    }
}

/// Whether a request is CONNECT for a WebSocket.
pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    *request.method() == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str() == websocket::NAME)
}

/// Makes it a GET with a key of ours.
pub(super) fn ask(request: &mut Request<Body>, recv: RecvStream, streams: &Rc<Streams>) -> Grant {
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_KEY, websocket::key());
    let (sender, granted) = oneshot::channel();
    let waiting = Waiting {
        granted,
        running: Running::new(streams),
    };
    let waiting = OwnThread::new(Some(waiting));
    let over = OverHttp2(Arc::new(Mutex::new(waiting)));
    request.extensions_mut().insert(over);
    Grant {
        recv,
        granted: sender,
    }
}

/// The response as HTTP/2 has it.
pub(super) fn answer(mut response: Response<Body>) -> Response<Body> {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            *response.status_mut() = StatusCode::OK;
            let headers = response.headers_mut();
            for name in [
                header::CONNECTION,
                header::CONTENT_LENGTH,
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
