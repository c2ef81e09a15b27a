//! The same with HTTP/2: hyper's server where it will do, h2's where a test wants more.

use std::cell::RefCell;

use ::h2::server::SendResponse;
use ::h2::{Reason, RecvStream};
use http::{Request, Response};

use super::*;
use crate::model::http::{BackendHttp, BackendProtocol};

fn connections(address: SocketAddr) -> Rc<Connections> {
    let http2 = |http: &mut PoolHttp| http.protocol = BackendProtocol::Http2;
    Rc::new(Connections::new(address, speech(http2)))
}

#[derive(Clone)]
struct Here;

impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// hyper's own HTTP/2 server, which answers with what it was sent.
async fn http2_server(requests: Rc<RefCell<Vec<String>>>) -> (SocketAddr, Rc<Cell<usize>>) {
    server(move |talk: Talk| {
        let requests = Rc::clone(&requests);
        async move {
            let _ = talk.number;
            let service =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let requests = Rc::clone(&requests);
                    async move {
                        use http_body_util::BodyExt;
                        let line = format!("{} {}", request.method(), request.uri());
                        requests.borrow_mut().push(line);
                        let body = request.into_body().collect().await?.to_bytes();
                        Ok::<_, hyper::Error>(http::Response::new(http_body_util::Full::new(body)))
                    }
                });
            let _ = hyper::server::conn::http2::Builder::new(Here)
                .serve_connection(hyper_util::rt::TokioIo::new(talk.socket), service)
                .await;
        }
    })
    .await
}

#[test]
fn http2_shares_one_connection() {
    local(async {
        let requests = Rc::default();
        let (address, count) = http2_server(Rc::clone(&requests)).await;
        let to = connections(address);
        let asks = (0..20).map(|i| {
            let body = Body::full(format!("body {i}"));
            let to = &to;
            async move { (i, Ask::body(Method::POST, body).text(to).await) }
        });
        for (i, answer) in futures::future::join_all(asks).await {
            assert_eq!(answer, Ok((200, format!("body {i}"))));
        }
        assert_eq!(count.get(), 1);
        assert_eq!(requests.borrow().len(), 20);
        assert_eq!(requests.borrow()[0], "POST http://test/x");
        let answer = Ask::new(Method::HEAD).text(&to).await;
        assert_eq!(answer, Ok((200, String::new())));
    });
}

/// Serves every request by `serve`, as it says.
async fn h2_server<F, T>(serve: F) -> (SocketAddr, Rc<Cell<usize>>)
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> T + Clone + 'static,
    T: Future<Output = ()> + 'static,
{
    server(move |talk: Talk| {
        let serve = serve.clone();
        async move {
            let mut connection = ::h2::server::handshake(talk.socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::task::spawn_local(serve(request, respond));
            }
        }
    })
    .await
}

fn status(status: u16) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// Reads a request's body, and gives its room free.
async fn collect(body: &mut RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    all
}

#[test]
fn informational_responses_are_passed_on() {
    local(async {
        let (address, _) = h2_server(async |request, mut respond| {
            assert!(!request.headers().contains_key("expect"));
            for code in [103, 102] {
                let mut interim = status(code);
                let link = HeaderValue::from_static("</a.css>; rel=preload");
                interim.headers_mut().insert("link", link);
                interim
                    .headers_mut()
                    .insert("http2-settings", HeaderValue::from_static("x"));
                respond.send_informational(interim).unwrap();
            }
            respond.send_informational(status(100)).unwrap();
            let mut stream = respond.send_response(status(200), false).unwrap();
            stream.send_data(Bytes::from("ok"), true).unwrap();
        })
        .await;
        let to = connections(address);
        let (result, told, _) = Ask::new(Method::GET).send(&to).await;
        let Ok(Sent::Response(head, body)) = result else {
            panic!("no response");
        };
        assert_eq!(head.status, 200);
        assert_eq!(told.0, [(103, 1), (102, 1)]);
        assert_eq!(read(body).await.0, "ok");
    });
}

#[test]
fn too_many_informational_responses_and_101_are_refused() {
    local(async {
        let (address, _) = h2_server(async |request, mut respond| {
            let (code, count) = match *request.method() {
                Method::GET => (103, 100),
                _ => (101, 1),
            };
            for _ in 0..count {
                respond.send_informational(status(code)).unwrap();
            }
            let _ = respond.send_response(status(200), true);
        })
        .await;
        let to = connections(address);
        for method in [Method::GET, Method::DELETE] {
            let failure = Ask::new(method).send(&to).await.0.err().unwrap();
            assert!(
                matches!(failure.error, SendError::Malformed(_)),
                "{}",
                failure.error
            );
        }
    });
}

#[test]
fn a_body_waits_for_the_100() {
    local(async {
        let (address, _) = h2_server(async |mut request, mut respond| {
            assert_eq!(request.headers()["expect"], "100-continue");
            assert_eq!(request.headers()["content-length"], "3");
            if request.method() == Method::PUT {
                // It is not wanted.
                respond.send_response(status(417), true).unwrap();
                return;
            }
            // Nothing comes unasked.
            let early =
                tokio::time::timeout(Duration::from_millis(100), collect(request.body_mut()));
            assert!(early.await.is_err());
            respond.send_informational(status(100)).unwrap();
            let body = collect(request.body_mut()).await;
            let mut stream = respond.send_response(status(200), false).unwrap();
            stream.send_data(body.into(), true).unwrap();
        })
        .await;
        let to = connections(address);
        let ask = |method| Ask {
            expects: true,
            ..Ask::body(method, Body::full("abc"))
        };
        assert_eq!(ask(Method::POST).text(&to).await, Ok((200, "abc".into())));
        let (result, told, _) = ask(Method::PUT).send(&to).await;
        let Ok(Sent::Response(head, body)) = result else {
            panic!("no response");
        };
        assert_eq!((head.status.as_u16(), body.request_bytes()), (417, 0));
        assert!(told.0.is_empty());
    });
}

#[test]
fn large_bodies_and_trailers_go_both_ways() {
    local(async {
        let (address, _) = h2_server(async |mut request, mut respond| {
            let body = collect(request.body_mut()).await;
            let trailers = request.body_mut().trailers().await.unwrap();
            let mut stream = respond.send_response(status(200), false).unwrap();
            stream.send_data(body.into(), false).unwrap();
            let mut trailers = trailers.unwrap();
            trailers.insert("set-cookie", HeaderValue::from_static("a=b"));
            stream.send_trailers(trailers).unwrap();
        })
        .await;
        let to = connections(address);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let mut frames: Vec<Result<_, BodyError>> = Vec::new();
        for _ in 0..40 {
            frames.push(Ok(Frame::data(Bytes::from(vec![b'x'; 50_000]))));
        }
        frames.push(Ok(Frame::trailers(trailers)));
        let body = Body::boxed(StreamBody::new(futures::stream::iter(frames)));
        let Ok(Sent::Response(_, body)) = Ask::body(Method::POST, body).send(&to).await.0 else {
            panic!("no response");
        };
        let (text, fault, trailers) = read(body).await;
        assert!(fault.is_none(), "{fault:?}");
        assert_eq!(text.len(), 2_000_000);
        let trailers = trailers.unwrap();
        assert_eq!(
            (trailers.len(), &trailers["x-sum"]),
            (1, &HeaderValue::from_static("1"))
        );
    });
}

#[test]
fn what_the_backend_did_not_look_at_is_sent_again() {
    local(async {
        let first = Rc::new(Cell::new(true));
        let (address, count) = h2_server(move |mut request: Request<RecvStream>, mut respond| {
            let refuse = first.replace(false);
            async move {
                if refuse {
                    return respond.send_reset(Reason::REFUSED_STREAM);
                }
                let body = collect(request.body_mut()).await;
                let mut stream = respond.send_response(status(200), false).unwrap();
                stream.send_data(body.into(), true).unwrap();
            }
        })
        .await;
        let to = connections(address);
        let answer = Ask::body(Method::POST, Body::full("abc")).text(&to).await;
        assert_eq!(answer, Ok((200, "abc".into())));
        assert_eq!(count.get(), 1);
    });
}

#[test]
fn what_breaks_off_is_a_fault() {
    local(async {
        let (address, _) = h2_server(async |request, mut respond| {
            let reason = match *request.method() {
                Method::GET => Reason::NO_ERROR,
                _ => Reason::CANCEL,
            };
            let mut stream = respond.send_response(status(200), false).unwrap();
            stream.send_data(Bytes::from("some"), false).unwrap();
            tokio::task::yield_now().await;
            stream.send_reset(reason);
        })
        .await;
        let to = connections(address);
        for method in [Method::GET, Method::DELETE] {
            let answer = Ask::new(method).text(&to).await;
            assert!(answer.is_err(), "{answer:?}");
        }
    });
}

#[test]
fn two_lengths_are_refused() {
    local(async {
        let (address, _) = h2_server(async |_, mut respond| {
            let mut response = status(200);
            for _ in 0..2 {
                let length = HeaderValue::from_static("2");
                response.headers_mut().append("content-length", length);
            }
            let mut stream = respond.send_response(response, false).unwrap();
            let _ = stream.send_data(Bytes::from("ok"), true);
        })
        .await;
        let to = connections(address);
        let failure = Ask::new(Method::GET).send(&to).await.0.err().unwrap();
        assert!(
            matches!(failure.error, SendError::Malformed(Malformed::Lengths)),
            "{}",
            failure.error
        );
    });
}

#[test]
fn silence_is_a_timeout_and_a_closed_connection_is_replaced() {
    local(async {
        let (address, count) = h2_server(async |request, mut respond| {
            match *request.method() {
                // Held for ever.
                Method::GET => std::future::pending().await,
                _ => drop(respond.send_response(status(204), true)),
            }
        })
        .await;
        let short = |http: &mut PoolHttp| {
            http.protocol = BackendProtocol::Http2;
            http.timeouts.response = Duration::from_millis(100);
        };
        let to = Rc::new(Connections::new(address, speech(short)));
        let failure = Ask::new(Method::GET).send(&to).await.0.err().unwrap();
        assert!(matches!(failure.error, SendError::Timeout) && failure.sent);
        let answer = Ask::new(Method::DELETE).text(&to).await;
        assert_eq!(answer, Ok((204, String::new())));
        assert_eq!(count.get(), 1, "a stream that was given up is reset alone");
    });
}

/// As [`h2_server`], but CONNECT may name a protocol.
async fn tunnels<F, T>(serve: F) -> SocketAddr
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> T + Clone + 'static,
    T: Future<Output = ()> + 'static,
{
    let (address, _) = server(move |talk: Talk| {
        let serve = serve.clone();
        async move {
            let mut builder = ::h2::server::Builder::new();
            builder.enable_connect_protocol();
            let mut connection = builder.handshake::<_, Bytes>(talk.socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::task::spawn_local(serve(request, respond));
            }
        }
    })
    .await;
    address
}

fn websocket() -> Ask {
    let mut ask = Ask::new(Method::GET);
    ask.upgrade = Some(HeaderValue::from_static("WebSocket"));
    let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
    ask.headers.insert("sec-websocket-key", key);
    ask.headers
        .insert("sec-websocket-version", HeaderValue::from_static("13"));
    ask
}

#[test]
fn a_websocket_is_a_stream() {
    local(async {
        let address = tunnels(async |mut request, mut respond| {
            assert_eq!(request.method(), Method::CONNECT);
            let protocol = request.extensions().get::<::h2::ext::Protocol>().unwrap();
            assert_eq!(protocol.as_str(), "websocket");
            assert_eq!(request.uri(), "http://test/x");
            let headers = request.headers();
            assert_eq!(headers["sec-websocket-version"], "13");
            assert!(!headers.contains_key("sec-websocket-key"));
            let mut stream = respond.send_response(status(200), false).unwrap();
            while let Some(Ok(data)) = request.body_mut().data().await {
                let room = request.body_mut().flow_control();
                room.release_capacity(data.len()).unwrap();
                stream.send_data(data, false).unwrap();
            }
            stream.send_data(Bytes::new(), true).unwrap();
        })
        .await;
        let to = connections(address);
        let Ok(Sent::Switched(head, Tunnel::Http2(tunnel))) = websocket().send(&to).await.0 else {
            panic!("not switched");
        };
        assert_eq!(head.status, 101);
        assert_eq!(head.upgrade.unwrap(), "websocket");
        let accept = &head.headers["sec-websocket-accept"];
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (mut reader, mut writer) = tokio::io::split(*tunnel);
        // More than the windows take at once.
        let sent = vec![7; 1_000_000];
        let mut got = vec![0; sent.len()];
        let (written, read) = futures::join!(writer.write_all(&sent), reader.read_exact(&mut got));
        written.unwrap();
        read.unwrap();
        assert_eq!(sent, got);
        writer.shutdown().await.unwrap();
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    });
}

#[test]
fn a_websocket_that_is_refused_has_a_response() {
    local(async {
        let address = tunnels(async |_, mut respond| {
            let mut stream = respond.send_response(status(403), false).unwrap();
            stream.send_data(Bytes::from("no"), true).unwrap();
        })
        .await;
        let to = connections(address);
        let answer = websocket().text(&to).await;
        assert_eq!(answer, Ok((403, "no".into())));
    });
}

#[test]
fn without_a_way_for_it_a_websocket_is_not_sent() {
    local(async {
        let asked = Rc::new(Cell::new(0));
        let counted = Rc::clone(&asked);
        let (address, _) = h2_server(move |request: Request<RecvStream>, mut respond| {
            counted.set(counted.get() + 1);
            assert_eq!(request.method(), Method::GET);
            assert!(!request.headers().contains_key("upgrade"));
            drop(respond.send_response(status(204), true));
            async {}
        })
        .await;
        let to = connections(address);
        let failure = websocket().send(&to).await.0.err().unwrap();
        assert!(matches!(failure.error, SendError::NoUpgrade(_)) && !failure.sent);
        assert_eq!(failure.error.cause().word(), "refused");
        assert_eq!(asked.get(), 0);
        // Any other upgrade may be passed over (RFC 9110, 7.8).
        let mut other = Ask::new(Method::GET);
        other.upgrade = Some(HeaderValue::from_static("other"));
        assert_eq!(other.text(&to).await, Ok((204, String::new())));
        assert_eq!(asked.get(), 1);
    });
}

#[test]
fn what_is_let_go_of_is_closed() {
    local(async {
        let closed = Rc::new(Cell::new(0));
        let counted = Rc::clone(&closed);
        let (address, _) = server(move |talk: Talk| {
            let closed = Rc::clone(&counted);
            async move {
                let mut connection = ::h2::server::handshake(talk.socket).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    drop(respond.send_response(status(204), true));
                }
                closed.set(closed.get() + 1);
            }
        })
        .await;
        let upstreams = Upstreams::default();
        let names = (Arc::from("pool"), Arc::from("one"));
        let short = |http: &mut PoolHttp| {
            http.protocol = BackendProtocol::Http2;
            http.timeouts.keep_alive = Duration::from_millis(1);
        };
        let speech = speech(short);
        for closings in 1..3 {
            let to = upstreams.backend(
                &names.0,
                &names.1,
                address,
                &speech,
                &BackendHttp::default(),
            );
            let answer = Ask::new(Method::GET).text(&to).await;
            assert_eq!(answer, Ok((204, String::new())));
            assert_eq!(closed.get(), closings - 1);
            while closed.get() < closings {
                match closings {
                    1 => upstreams.sweep(),
                    _ => upstreams.retain(|_, _| false),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
}
