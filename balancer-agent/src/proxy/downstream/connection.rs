//! A connection from its accept to the protocol that it speaks.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::door::{Door, Ticket};
use super::io::GuardIo;
use super::live::Refused;
use super::proxy_header::{self, Proxied};
use super::settings::Settings;
use super::state::State;
use super::stream::Stream;
use super::{Connection, Handler, accept, http1, http2};
use crate::model::http::Versions;
use crate::proxy::timer::Timer;
use crate::proxy::types::{TlsInfo, canonical};

/// What a connection is, once that is clear.
struct Opened {
    stream: Stream,
    client: SocketAddr,
    local: SocketAddr,
    tls: Option<TlsInfo>,
    /// `(http1, http2)` that the client may speak now.
    versions: (bool, bool),
    /// HTTP/2 was agreed on.
    http2: bool,
}

/// Begins to serve a connection, on a task of its own.
pub(super) fn begin<H: Handler>(
    stream: TcpStream,
    peer: SocketAddr,
    mut ticket: Ticket,
    door: Rc<Door>,
    handler: Rc<H>,
) {
    let settings = door.bound.settings.load_full();
    let frontend = &settings.frontend;
    // Peers of a dual-stack socket are told as mapped addresses.
    let peer = canonical(peer);
    // Who listens on one address need not ask for it.
    let bound = door.bound.address;
    let local = match bound.ip().is_unspecified() {
        true => stream.local_addr(),
        false => Ok(bound),
    };
    let Ok(local) = local.map(canonical) else {
        return;
    };
    let proxied = !frontend.proxy_protocol_from.is_empty();
    if !proxied && let Err(cause) = ticket.source(peer.ip()) {
        return accept::refuse(stream, &door, cause);
    }
    if settings.tls.is_none() && !proxied {
        let opened = Opened {
            stream: Stream::Plain(stream),
            client: peer,
            local,
            tls: None,
            versions: (frontend.versions.http1, frontend.versions.http2),
            http2: false,
        };
        // Nothing but this is in the task: most of its life it waits.
        let entered = enter(opened, peer, ticket, &door);
        tokio::task::spawn_local(run(entered, handler));
        return;
    }
    // Boxed: the state of a handshake is large, and gone when it is over.
    let opening = Box::pin(async move {
        let handshake = settings.frontend.timeouts.handshake;
        let opening = open(stream, peer, local, &settings, &door, &mut ticket);
        let cause = match within(&door, handshake, opening).await {
            Some(Ok(opened)) => return Some(enter(opened, peer, ticket, &door)),
            Some(Err(cause)) => cause,
            None if settings.tls.is_some() => Refused::TlsHandshake,
            None => Refused::ProxyHeader,
        };
        door.live().refuse(cause);
        None
    });
    tokio::task::spawn_local(async move {
        if let Some(entered) = opening.await {
            run(entered, handler).await;
        }
    });
}

/// A socket, what was read from it already, its place in the counts.
type Parts = (Stream, Vec<u8>, Ticket);

/// A connection whose protocol is known, or will be by its first bytes.
enum Entered {
    Http1(Box<GuardIo>, Rc<State>, (bool, bool)),
    Http2(Box<Parts>, Rc<State>),
}

fn enter(opened: Opened, peer: SocketAddr, ticket: Ticket, door: &Rc<Door>) -> Entered {
    let connection = Rc::new(Connection {
        client: opened.client,
        local: opened.local,
        peer: peer.ip(),
        tls: opened.tls,
    });
    let state = State::new(door, connection);
    match opened.http2 {
        true => Entered::Http2(Box::new((opened.stream, Vec::new(), ticket)), state),
        false => {
            let io = GuardIo::new(opened.stream, Rc::clone(&state), ticket);
            Entered::Http1(Box::new(io), state, opened.versions)
        }
    }
}

/// Serves a connection to its end.
async fn run<H: Handler>(entered: Entered, handler: Rc<H>) {
    let (parts, state) = match entered {
        Entered::Http2(parts, state) => (parts, state),
        Entered::Http1(io, state, versions) => {
            let served = http1::serve(io, Rc::clone(&state), Rc::clone(&handler), versions);
            match served.await {
                None => return,
                Some(io) => again(*io, &state),
            }
        }
    };
    let (stream, prefix, ticket) = *parts;
    Box::pin(http2::serve(stream, prefix, state, ticket, handler)).await;
}

/// What began as HTTP/1 speaks HTTP/2.
fn again(io: GuardIo, state: &State) -> (Box<Parts>, Rc<State>) {
    let state = State::new(&state.door, Rc::clone(&state.connection));
    (Box::new(io.into_parts()), state)
}

/// PROXY header and TLS handshake.
async fn open(
    mut stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    settings: &Settings,
    door: &Rc<Door>,
    ticket: &mut Ticket,
) -> Result<Opened, Refused> {
    let frontend = &settings.frontend;
    let (mut client, mut reached) = (peer, local);
    if !frontend.proxy_protocol_from.is_empty() {
        let from = &frontend.proxy_protocol_from;
        if !from.iter().any(|net| net.contains(&peer.ip())) {
            return Err(Refused::ProxyHeader);
        }
        match proxy_header::read(&mut stream).await {
            Ok(Proxied::Itself) => {}
            Ok(Proxied::For { client: c, local }) => {
                client = canonical(c);
                reached = canonical(local);
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "PROXY header refused");
                return Err(Refused::ProxyHeader);
            }
        }
        if let Err(cause) = ticket.source(client.ip()) {
            accept::turn_away(stream, door);
            return Err(cause);
        }
    }
    let Some(store) = &settings.tls else {
        return Ok(Opened {
            stream: Stream::Plain(stream),
            client,
            local: reached,
            tls: None,
            versions: (frontend.versions.http1, frontend.versions.http2),
            http2: false,
        });
    };
    let stream = match TlsAcceptor::from(store.config()).accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%client, %error, "TLS handshake failed");
            return Err(Refused::TlsHandshake);
        }
    };
    let live = door.live();
    live.tls_handshakes.fetch_add(1, Relaxed);
    if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
        live.tls_resumed.fetch_add(1, Relaxed);
    }
    let alpn = stream.get_ref().1.alpn_protocol();
    let Versions { http1, http2 } = frontend.versions;
    let agreed = alpn == Some(b"h2");
    Ok(Opened {
        client,
        local: reached,
        tls: Some(info(&stream)),
        // Without ALPN HTTP/1 is meant (RFC 9113, 3.2), unless there is only the other.
        versions: (http1, http2 && !http1),
        http2: agreed,
        stream: Stream::Tls(Box::new(stream)),
    })
}

/// What the handshake agreed on.
fn info(stream: &TlsStream<TcpStream>) -> TlsInfo {
    let session = stream.get_ref().1;
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    TlsInfo {
        version: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        cipher: session
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .map_or("-", iana),
        server_name: session.server_name().map(Arc::from),
        client_certificate: leaf.map(|leaf| leaf.as_ref().into()),
    }
}

/// IANA's name of a cipher suite; rustls has its own names for those of TLS 1.3.
fn iana(name: &'static str) -> &'static str {
    match name {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        name => name,
    }
}

/// Waits for a future for some time.
async fn within<F: Future>(door: &Door, time: Duration, future: F) -> Option<F::Output> {
    let timer = Timer::after(time);
    let mut future = pin!(future);
    poll_fn(|cx| {
        timer.register(cx);
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if timer.due() || door.cut.get() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
