//! HTTP/2 by the h2 crate, for the behaviours that make sense there; the others get 501.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ::h2::ext::Protocol;
use ::h2::server::SendResponse;
use ::h2::{Reason, RecvStream, SendStream};
use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::spawn_local;

use super::behave::{self, Act, Payload, Reply};
use super::wire::Wire;
use super::{About, Running, Seen, State, h1};

/// Bytes of a request's body that may come ahead.
const WINDOW: u32 = 1 << 20;

/// Answers requests until the connection ends.
pub(super) async fn serve<S>(state: &Rc<State>, wire: Wire<S>, about: About) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = ::h2::server::Builder::new();
    builder
        .max_concurrent_streams(1000)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    if state.protocols {
        builder.enable_connect_protocol();
    }
    let handshake = builder.handshake::<_, Bytes>(wire);
    let mut connection = handshake.await.map_err(io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted.map_err(io::Error::other)?;
        let (state, about) = (Rc::clone(state), about.clone());
        spawn_local(async move {
            // A stream that is reset ends alone.
            if answer(&state, about, request, &mut respond).await.is_err() {
                respond.send_reset(Reason::INTERNAL_ERROR);
            }
        });
    }
    Ok(())
}

/// The client has reset the stream, or is gone.
async fn reset(respond: &mut SendResponse<Bytes>) -> ::h2::Error {
    match poll_fn(|cx| respond.poll_reset(cx)).await {
        Ok(reason) => reason.into(),
        Err(error) => error,
    }
}

async fn answer(
    state: &Rc<State>,
    about: About,
    mut request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), ::h2::Error> {
    let mut seen = head(state, about, &request);
    let running: Running = state.begin(&seen);
    let act = behave::act(&seen.target);
    let protocol = request.extensions().get::<Protocol>();
    if protocol.is_some_and(|protocol| protocol.as_str() == "websocket") {
        state.note(seen);
        drop(running);
        return match act {
            Act::WebSocket => websocket(state, request.into_body(), respond).await,
            _ => respond.send_response(response(404, &[]), true).map(drop),
        };
    }
    if seen.all("expect").contains(&"100-continue") {
        respond.send_informational(response(100, &[]))?;
    }
    tokio::select! {
        () = read(&mut seen, request.body_mut()) => {}
        error = reset(respond) => return Err(error),
    }
    state.note(seen.clone());
    let reply = match act {
        Act::Hang => return Err(reset(respond).await),
        Act::Reply | Act::Early => {
            if act == Act::Early {
                let link = ("link".to_owned(), "</a.css>; rel=preload".to_owned());
                respond.send_informational(response(103, &[link]))?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::select! {
                reply = behave::reply(state, &seen) => reply,
                error = reset(respond) => return Err(error),
            }
        }
        Act::WebSocket => Reply {
            status: 426,
            ..Reply::default()
        },
        Act::Cut { .. } | Act::CutChunk | Act::Abort => {
            let (length, sent) = match act {
                Act::Cut { announced, sent } => (Some(announced), sent),
                _ => (None, 0),
            };
            let length = length.map(|length| ("content-length".to_owned(), length.to_string()));
            let head = response(200, length.as_slice());
            let mut stream = respond.send_response(head, false)?;
            put(&mut stream, vec![b'x'; sent].into()).await?;
            // Lets what has been sent go first.
            tokio::time::sleep(Duration::from_millis(10)).await;
            stream.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        _ => Reply {
            status: 501,
            ..Reply::default()
        },
    };
    drop(running);
    send(reply, seen.method == "HEAD", respond).await
}

fn head(state: &State, about: About, request: &Request<RecvStream>) -> Seen {
    let uri = request.uri();
    let mut seen = Seen {
        server: state.name.clone(),
        method: request.method().to_string(),
        target: uri.path_and_query().map_or("*".into(), ToString::to_string),
        version: "HTTP/2".to_owned(),
        headers: text(request.headers()),
        framing: "h2".to_owned(),
        peer: about.peer,
        proxied: about.proxied,
        connection: about.number,
        server_name: about.server_name,
        ..Seen::default()
    };
    let protocol = request.extensions().get::<Protocol>();
    if let Some(protocol) = protocol {
        let protocol = protocol.as_str().to_owned();
        seen.headers.insert(0, (":protocol".into(), protocol));
    }
    if let Some(authority) = uri.authority() {
        seen.headers
            .insert(0, (":authority".into(), authority.to_string()));
    }
    seen
}

fn text(map: &HeaderMap) -> Vec<(String, String)> {
    let pairs = map.iter();
    let pairs = pairs.map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into()));
    pairs.collect()
}

async fn read(seen: &mut Seen, body: &mut RecvStream) {
    let mut sum = digest::Context::new(&digest::SHA256);
    while let Some(data) = body.data().await {
        let Ok(data) = data else {
            seen.cut = true;
            break;
        };
        sum.update(&data);
        seen.body += data.len() as u64;
        let _ = body.flow_control().release_capacity(data.len());
    }
    if let Ok(Some(trailers)) = body.trailers().await {
        seen.trailers = text(&trailers);
    }
    seen.digest = h1::hex(sum.finish().as_ref());
}

async fn send(
    reply: Reply,
    of_head: bool,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), ::h2::Error> {
    let mut headers = reply.headers;
    let hop = ["connection", "keep-alive", "proxy-authenticate"];
    headers.retain(|(name, _)| !hop.contains(&name.as_str()));
    let length = match &reply.body {
        Payload::Whole(body) => Some(body.len() as u64),
        Payload::Length(length) => Some(*length),
        Payload::Pieces { .. } => None,
    };
    if let Some(length) = length {
        headers.push(("content-length".into(), length.to_string()));
    }
    let head = response(reply.status, &headers);
    let ended = of_head || length == Some(0);
    let mut stream = respond.send_response(head, ended)?;
    if ended {
        return Ok(());
    }
    match reply.body {
        Payload::Whole(body) => put(&mut stream, body.into()).await?,
        Payload::Length(mut left) => {
            let piece = Bytes::from(vec![b'x'; 16 * 1024]);
            while left > 0 {
                let n = left.min(piece.len() as u64);
                put(&mut stream, piece.slice(..n as usize)).await?;
                left -= n;
            }
        }
        Payload::Pieces {
            piece,
            count,
            pause,
            trailers,
        } => {
            for _ in 0..count {
                put(&mut stream, piece.clone().into()).await?;
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
            if !trailers.is_empty() {
                return stream.send_trailers(map(&trailers));
            }
        }
    }
    stream.send_data(Bytes::new(), true)
}

/// Sends as much at a time as the client takes.
async fn put(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), ::h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(capacity) => capacity?,
                None => return Err(Reason::CANCEL.into()),
            };
        }
        let n = stream.capacity().min(data.len());
        stream.send_data(data.split_to(n), false)?;
    }
    Ok(())
}

/// Grants the tunnel and echoes frames in it (RFC 8441, 5).
async fn websocket(
    state: &Rc<State>,
    mut body: RecvStream,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), ::h2::Error> {
    let server = ("x-server".to_owned(), state.name.clone());
    let mut stream = respond.send_response(response(200, &[server]), false)?;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    spawn_local(async move {
        // Its end is the stream's.
        let _ = h1::echo(Wire::new(theirs)).await;
    });
    let (mut reader, mut writer) = tokio::io::split(ours);
    spawn_local(async move {
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            if writer.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    let mut buffer = BytesMut::with_capacity(16 << 10);
    while matches!(reader.read_buf(&mut buffer).await, Ok(n) if n > 0) {
        put(&mut stream, buffer.split().freeze()).await?;
        buffer.reserve(16 << 10);
    }
    stream.send_data(Bytes::new(), true)
}

fn response(status: u16, headers: &[(String, String)]) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    *response.headers_mut() = map(headers);
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
