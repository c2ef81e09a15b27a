//! Interim responses (RFC 9110, 15.2) on their way to clients that speak HTTP/2.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use balancer_tests::http::app::Seen;
use balancer_tests::http::web::{CHECK, HTTP, NO_CHECK, Web, frontend, pool};
use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::net::TcpStream;

/// A pool's server by protocol.
fn scene(protocol: &str) -> Web {
    Web::new(1, |_| {
        frontend("") + &pool(1, &format!("protocol = \"{protocol}\"\n{CHECK}"))
    })
}

async fn client() -> SendRequest<Bytes> {
    let socket = TcpStream::connect(HTTP).await.expect("connect");
    let (sender, connection) = h2::client::handshake(socket).await.expect("a preface");
    tokio::spawn(connection);
    sender
}

fn ask(
    sender: &mut SendRequest<Bytes>,
    method: Method,
    path: &str,
    fields: &[(&str, &str)],
    ended: bool,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://test.example{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("a request");
    sender.send_request(request, ended).expect("sent")
}

/// What comes for a request.
#[derive(Debug)]
enum Came {
    Interim(Response<()>),
    Last(Box<Response<RecvStream>>),
}

async fn next(response: &mut ResponseFuture) -> Came {
    poll_fn(|cx| {
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            return Poll::Ready(Came::Interim(interim.expect("an interim response")));
        }
        let polled = Pin::new(&mut *response).poll(cx);
        polled.map(|last| Came::Last(Box::new(last.expect("a response"))))
    })
    .await
}

async fn body(mut body: RecvStream) -> Vec<u8> {
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        let freed = body.flow_control().release_capacity(data.len());
        freed.expect("room");
        all.extend_from_slice(&data);
    }
    all.to_vec()
}

/// What came for a request: interim responses, the final one's status and body.
async fn all(mut response: ResponseFuture) -> (Vec<(u16, HeaderMap)>, u16, Vec<u8>) {
    let mut interims = Vec::new();
    loop {
        match next(&mut response).await {
            Came::Interim(interim) => {
                let (parts, ()) = interim.into_parts();
                assert!(!parts.headers.contains_key("date"), "{parts:?}");
                interims.push((parts.status.as_u16(), parts.headers));
            }
            Came::Last(last) => {
                let status = last.status().as_u16();
                return (interims, status, body(last.into_body()).await);
            }
        }
    }
}

#[test]
fn hints_reach_clients_of_http2() {
    for protocol in ["http1", "http2"] {
        let web = scene(protocol);
        web.inside(async {
            let mut sender = client().await;
            // One after the other, then side by side: each stream has its own.
            for at_once in [1, 1, 5] {
                let mut streams = Vec::new();
                for number in 0..at_once {
                    poll_fn(|cx| sender.poll_ready(cx)).await.expect("room");
                    let path = if number % 2 == 0 {
                        "/early"
                    } else {
                        "/bytes/10"
                    };
                    let (response, _) = ask(&mut sender, Method::GET, path, &[], true);
                    streams.push((number, response));
                }
                for (number, response) in streams {
                    let (interims, status, body) = all(response).await;
                    assert_eq!(status, 200, "{protocol}");
                    if number % 2 == 0 {
                        let [(status, fields)] = &interims[..] else {
                            panic!("{protocol}: {interims:?}");
                        };
                        assert_eq!(*status, 103, "{protocol}");
                        assert_eq!(fields.len(), 1, "{protocol}: {fields:?}");
                        assert_eq!(fields["link"], "</a.css>; rel=preload");
                    } else {
                        assert!(interims.is_empty(), "{protocol}: {interims:?}");
                        assert_eq!(body.len(), 10);
                    }
                }
            }
        });
    }
}

#[test]
fn a_100_is_the_servers_to_give() {
    for protocol in ["http1", "http2"] {
        let web = scene(protocol);
        web.inside(async {
            let mut sender = client().await;
            let fields = [("expect", "100-continue"), ("content-length", "5")];
            let (mut response, mut stream) =
                ask(&mut sender, Method::POST, "/echo", &fields, false);
            let Came::Interim(interim) = next(&mut response).await else {
                panic!("{protocol}: the final response");
            };
            assert_eq!(interim.status(), StatusCode::CONTINUE, "{protocol}");
            assert!(interim.headers().is_empty(), "{interim:?}");
            stream
                .send_data(Bytes::from_static(b"hello"), true)
                .expect("sent");
            let (interims, status, body) = all(response).await;
            assert_eq!((interims.len(), status), (0, 200), "{protocol}");
            let seen: Seen = serde_json::from_slice(&body).expect("an echo");
            assert_eq!((seen.body, seen.one("expect")), (5, Some("100-continue")));

            // Nobody is told to go on who does not wait for it.
            let (response, mut stream) = ask(&mut sender, Method::POST, "/echo", &[], false);
            stream
                .send_data(Bytes::from_static(b"hello"), true)
                .expect("sent");
            let (interims, status, _) = all(response).await;
            assert_eq!((interims.len(), status), (0, 200), "{protocol}");
        });
    }
}

#[test]
fn an_answer_without_a_100_leaves_the_body_where_it_is() {
    let web = Web::new(1, |_| frontend("") + &pool(1, NO_CHECK));
    web.inside(async {
        let mut sender = client().await;
        let fields = [("expect", "100-continue"), ("content-length", "1000000")];
        let (response, _stream) = ask(&mut sender, Method::POST, "/answerfirst", &fields, false);
        let (interims, status, body) = all(response).await;
        assert!(interims.is_empty(), "{interims:?}");
        assert_eq!((status, &body[..]), (200, &b"early"[..]));
    });
}
