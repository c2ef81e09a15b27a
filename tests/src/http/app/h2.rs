//! HTTP/2 by hyper, for the behaviours that make sense there; the others get 501.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use super::behave::{self, Act, Payload};
use super::wire::Wire;
use super::{About, Seen, State, h1};

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Answers requests until the connection ends.
pub(super) async fn serve<S>(state: &Rc<State>, wire: Wire<S>, about: About) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(|request| {
        let (state, about) = (Rc::clone(state), about.clone());
        async move { Ok::<_, Infallible>(answer(state, about, request).await) }
    });
    let result = hyper::server::conn::http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .serve_connection(TokioIo::new(wire), service)
        .await;
    result.map_err(|error| io::Error::other(error.to_string()))
}

async fn answer(state: Rc<State>, about: About, request: Request<Incoming>) -> Response<Pieces> {
    let (parts, mut body) = request.into_parts();
    let text = |map: &HeaderMap| {
        let pairs = map.iter();
        let pairs =
            pairs.map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into()));
        pairs.collect::<Vec<(String, String)>>()
    };
    let mut seen = Seen {
        server: state.name.clone(),
        method: parts.method.to_string(),
        target: parts
            .uri
            .path_and_query()
            .map_or("*".into(), ToString::to_string),
        version: "HTTP/2".to_owned(),
        headers: text(&parts.headers),
        framing: "h2".to_owned(),
        peer: about.peer,
        proxied: about.proxied,
        connection: about.number,
        server_name: about.server_name,
        ..Seen::default()
    };
    if let Some(authority) = parts.uri.authority() {
        seen.headers
            .insert(0, (":authority".into(), authority.to_string()));
    }
    let running = state.begin(&seen);
    let mut sum = digest::Context::new(&digest::SHA256);
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => {
                sum.update(&data);
                seen.body += data.len() as u64;
            }
            Ok(Err(frame)) => {
                if let Ok(trailers) = frame.into_trailers() {
                    seen.trailers = text(&trailers);
                }
            }
            Err(_) => {
                seen.cut = true;
                break;
            }
        }
    }
    seen.digest = h1::hex(sum.finish().as_ref());
    state.note(seen.clone());
    let mut pieces = Pieces::default();
    let mut status = 501;
    let mut headers = Vec::new();
    match behave::act(&seen.target) {
        Act::Hang => std::future::pending().await,
        Act::Cut { announced, sent } => {
            status = 200;
            headers.push(("content-length".to_owned(), announced.to_string()));
            pieces.left = sent as u64;
            pieces.cut = true;
        }
        Act::CutChunk | Act::Abort => {
            status = 200;
            pieces.cut = true;
        }
        Act::Reply => {
            let reply = behave::reply(&state, &seen).await;
            status = reply.status;
            headers = reply.headers;
            let hop = ["connection", "keep-alive", "proxy-authenticate"];
            headers.retain(|(name, _)| !hop.contains(&name.as_str()));
            match reply.body {
                Payload::Whole(body) => {
                    headers.push(("content-length".into(), body.len().to_string()));
                    pieces.left = body.len() as u64;
                    pieces.piece = body.into();
                }
                Payload::Length(length) => {
                    headers.push(("content-length".into(), length.to_string()));
                    pieces.left = length;
                    pieces.piece = vec![b'x'; 16 * 1024].into();
                }
                Payload::Pieces {
                    piece,
                    count,
                    pause,
                    trailers,
                } => {
                    pieces.left = (piece.len() * count) as u64;
                    pieces.piece = piece.into();
                    pieces.pause = pause;
                    pieces.trailers = trailers;
                }
            }
            if seen.method == "HEAD" {
                pieces.left = 0;
            }
        }
        _ => {}
    }
    drop(running);
    let mut response = Response::new(pieces);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    *response.headers_mut() = map(&headers);
    response
}

fn map(pairs: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            map.append(name, value);
        }
    }
    map
}

/// A body of pieces, maybe with pauses, trailers, or an early end.
#[derive(Default)]
struct Pieces {
    piece: Bytes,
    left: u64,
    pause: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    trailers: Vec<(String, String)>,
    cut: bool,
    ended: Cell<bool>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Some(sleep) = &mut this.sleep {
            std::task::ready!(sleep.as_mut().poll(cx));
            this.sleep = None;
        }
        if this.left > 0 {
            if this.piece.is_empty() {
                this.piece = vec![b'x'; this.left as usize].into();
            }
            let n = this.left.min(this.piece.len() as u64);
            this.left -= n;
            if !this.pause.is_zero() {
                this.sleep = Some(Box::pin(tokio::time::sleep(this.pause)));
            }
            return Poll::Ready(Some(Ok(Frame::data(this.piece.slice(..n as usize)))));
        }
        if this.cut {
            return Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into())));
        }
        if !this.trailers.is_empty() && !this.ended.replace(true) {
            return Poll::Ready(Some(Ok(Frame::trailers(map(&this.trailers)))));
        }
        Poll::Ready(None)
    }
}
