//! HTTP/2, by prior knowledge and by ALPN.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::frames::{PREFACE, frame};
use super::secure::{Authority, tls};
use super::server::*;
use crate::model::http::Versions;
use crate::proxy::downstream::Refused;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

fn empty() -> Body {
    Empty::new().map_err(|e| match e {}).boxed_unsync()
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|e| match e {})
        .boxed_unsync()
}

fn run<F: Future<Output = ()>>(future: F) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

async fn plain(server: &Server) -> SendRequest<Body> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    send
}

fn to(path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method("POST")
        .uri(format!("http://a.example{path}"))
        .body(body)
        .unwrap()
}

async fn text(response: Response<Incoming>) -> (u16, Vec<u8>) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap();
    (status, body.to_bytes().to_vec())
}

#[test]
fn streams_run_side_by_side() {
    let server = Server::start(|_| {});
    run(async {
        let send = plain(&server).await;
        let all = (0..50).map(|i| {
            let mut send = send.clone();
            async move {
                let body = bytes(1 + i * 1000);
                let path = if i % 10 == 0 { "/slow" } else { "/echo" };
                let response = send
                    .send_request(to(path, full(body.clone())))
                    .await
                    .unwrap();
                assert_eq!(response.version(), Version::HTTP_2);
                let (status, answer) = text(response).await;
                assert_eq!(status, 200);
                if i % 10 != 0 {
                    assert_eq!(answer, body);
                }
            }
        });
        futures::future::join_all(all).await;
        let live = server.live();
        assert_eq!(live.http2.load(Relaxed), 1);
        assert_eq!(live.requests.load(Relaxed), 50);
        drop(send);
        // The client's side runs on this thread.
        while live.connections.load(Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(live.in_flight.load(Relaxed), 0);
        assert_eq!(live.http2.load(Relaxed), 0);
        assert_eq!(live.refused_total(), 0);
    });
}

#[test]
fn alpn_chooses_the_version() {
    let ca = Authority::new();
    let files = ca.issue("a", &["a.example"]);
    for (http1, http2, alpn, agreed) in [
        (true, true, &[&b"h2"[..], b"http/1.1"][..], &b"h2"[..]),
        (true, false, &[&b"h2"[..], b"http/1.1"][..], b"http/1.1"),
        (false, true, &[&b"h2"[..]][..], b"h2"),
    ] {
        let server = Server::with_tls(tls(vec![files.clone()]), |f| {
            f.versions = Versions { http1, http2 };
        });
        let config = Arc::new(ca.client(alpn, false));
        run(async {
            let stream = TcpStream::connect(server.address).await.unwrap();
            let name = "a.example".try_into().unwrap();
            let stream = tokio_rustls::TlsConnector::from(config)
                .connect(name, stream)
                .await
                .unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(agreed));
            if agreed == b"h2" {
                let io = TokioIo::new(stream);
                let (mut send, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                        .await
                        .unwrap();
                tokio::spawn(connection);
                let (status, body) =
                    text(send.send_request(to("/who", empty())).await.unwrap()).await;
                assert_eq!(status, 200);
                assert!(String::from_utf8(body).unwrap().contains("a.example"));
            }
        });
    }
}

#[test]
fn only_http_2_where_only_that_is_spoken() {
    let server = Server::start(|f| f.versions.http1 = false);
    assert_eq!(get(&mut server.connect(), "/x").status, 505);
    run(async {
        let mut send = plain(&server).await;
        assert_eq!(
            text(send.send_request(to("/x", empty())).await.unwrap())
                .await
                .0,
            200
        );
    });
}

#[test]
fn limits_hold_for_streams() {
    let server = Server::start(|f| {
        f.limits.body_bytes = Some(1000);
        f.limits.headers = 5;
        f.limits.target_bytes = 50;
    });
    let impatient = Server::start(|f| f.timeouts.body_idle = Duration::from_millis(300));
    run(async {
        let mut send = plain(&server).await;
        // Told in advance, and found out.
        let response = send
            .send_request(to("/echo", full(bytes(1001))))
            .await
            .unwrap();
        assert_eq!(response.status(), 413);
        let pieces = (0..2).map(|_| Ok(Frame::data(bytes(600))));
        let body = StreamBody::new(futures::stream::iter(pieces)).boxed_unsync();
        let response = send.send_request(to("/echo", body)).await.unwrap();
        assert_eq!(response.status(), 413);
        let body = StreamBody::new(futures::stream::pending()).boxed_unsync();
        let mut to_impatient = plain(&impatient).await;
        let response = to_impatient.send_request(to("/echo", body)).await.unwrap();
        assert_eq!(response.status(), 408);
        let mut request = to("/x", empty());
        for i in 0..6 {
            let name = http::HeaderName::try_from(format!("x-{i}")).unwrap();
            request.headers_mut().insert(name, "y".parse().unwrap());
        }
        assert_eq!(send.send_request(request).await.unwrap().status(), 431);
        let long = format!("/{}", "a".repeat(50));
        let response = send.send_request(to(&long, empty())).await.unwrap();
        assert_eq!(response.status(), 414);
        let mut other = to("/x", empty());
        other
            .headers_mut()
            .insert("host", "b.example".parse().unwrap());
        assert_eq!(send.send_request(other).await.unwrap().status(), 400);
        let response = send
            .send_request(to("/echo", full(bytes(1000))))
            .await
            .unwrap();
        assert_eq!(text(response).await.0, 200);
    });
    let live = server.live();
    assert_eq!(live.refused(Refused::BodyTooLarge), 2);
    assert_eq!(live.refused(Refused::Timeout), 0);
    assert_eq!(impatient.live().refused(Refused::Timeout), 1);
    assert_eq!(live.refused(Refused::HeadTooLarge), 2);
    assert_eq!(live.refused(Refused::Malformed), 1);
    let refused = server.log.refused.lock().unwrap();
    assert!(
        refused
            .iter()
            .any(|r| r.1.starts_with(b"POST /x HTTP/2.0\r\nhost: a.example"))
    );
}

#[test]
fn streams_that_are_taken_back_end_their_requests() {
    let server = Server::start(|f| f.limits.h2_resets = 10_000);
    run(async {
        let mut send = plain(&server).await;
        let live = server.live();
        for i in 1..=5 {
            let request = tokio::spawn(send.send_request(to("/never", empty())));
            while live.requests.load(Relaxed) < i {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            request.abort();
        }
        while live.in_flight.load(Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(
            text(send.send_request(to("/x", empty())).await.unwrap())
                .await
                .0,
            200
        );
        assert_eq!(*server.log.dropped.lock().unwrap(), 5);
    });
}

/// GET, http, /never, authority a; HPACK without the dynamic table.
const NEVER: &[u8] = b"\x82\x86\x04\x06/never\x01\x01a";

/// Sends until the other side has had enough.
fn until_closed(mut stream: std::net::TcpStream, mut next: impl FnMut(u32) -> Vec<u8>) -> bool {
    let mut reader = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut place = [0; 4096];
        while !matches!(reader.read(&mut place), Ok(0) | Err(_)) {}
    });
    let closed = (0..100_000).any(|i| stream.write_all(&next(i)).is_err());
    let _ = stream.shutdown(std::net::Shutdown::Both);
    reading.join().unwrap();
    closed
}

#[test]
fn rapid_resets_end_the_connection() {
    let server = Server::start(|f| f.limits.h2_resets = 50);
    let mut stream = server.connect();
    stream.write_all(PREFACE).unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    let closed = until_closed(stream, |i| {
        let id = 2 * i + 1;
        [
            frame(1, 5, id, NEVER),
            frame(3, 0, id, &8_u32.to_be_bytes()),
        ]
        .concat()
    });
    assert!(closed, "a hundred thousand resets were taken");
    let live = server.live();
    until("gone", || live.connections.load(Relaxed) == 0);
    assert_eq!(live.in_flight.load(Relaxed), 0);
    assert_eq!(live.refused(Refused::Http2), 1);
    assert!(live.requests.load(Relaxed) < 1000);
    assert_eq!(get(&mut server.connect(), "/x").status, 200);
}

#[test]
fn endless_continuation_ends_the_connection() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    stream.write_all(PREFACE).unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).unwrap();
    stream.write_all(&frame(1, 1, 1, b"\x82\x86\x84")).unwrap();
    let field = [&b"\x00\x05x-abc\x7f\x81\x07"[..], &[b'y'; 1032]].concat();
    let closed = until_closed(stream, |_| frame(9, 0, 1, &field));
    assert!(closed, "a hundred megabytes of fields were taken");
    let live = server.live();
    until("gone", || live.connections.load(Relaxed) == 0);
    assert_eq!(live.requests.load(Relaxed), 0);
}

#[test]
fn times_hold_for_connections() {
    let server = Server::start(|f| {
        f.timeouts.keep_alive = Duration::from_millis(300);
    });
    let live = server.live();
    // Idle.
    let mut idle = server.connect();
    idle.write_all(PREFACE).unwrap();
    idle.write_all(&frame(4, 0, 0, &[])).unwrap();
    until("closed", || {
        live.connections_total.load(Relaxed) == 1 && live.connections.load(Relaxed) == 0
    });
    // It asks, but opens no window.
    let server = Server::start(|f| f.timeouts.send = Duration::from_millis(400));
    let live = server.live();
    let mut stuck = server.connect();
    stuck.write_all(PREFACE).unwrap();
    stuck
        .write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]))
        .unwrap();
    let big = b"\x82\x86\x04\x04/big\x01\x01a";
    stuck.write_all(&frame(1, 5, 1, big)).unwrap();
    until("cut", || live.send_timeouts.load(Relaxed) == 1);
    until("closed", || live.connections.load(Relaxed) == 0);
    // A preface that does not end is a head that does not.
    let server = Server::start(|f| f.timeouts.headers = Duration::from_millis(300));
    let mut slow = server.connect();
    slow.write_all(&PREFACE[..10]).unwrap();
    assert_eq!(answer(&mut slow).status, 408);
}
