//! Exchanges with servers that say exactly what a test wants them to say.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::ajp::Origin;
use super::connect::Parties;
use super::endpoint::Speech;
use super::head::{Listed, Outgoing};
use super::pool::{Handed, Terms};
use super::*;
use crate::model::Activation;
use crate::model::http::{PoolHttp, ProxyVersion};
use crate::proxy::testing::local;
use crate::proxy::types::Body;

mod http2;

fn speech(change: impl FnOnce(&mut PoolHttp)) -> Arc<Speech> {
    let mut http = PoolHttp::default();
    http.timeouts.response = Duration::from_secs(5);
    http.timeouts.idle = Duration::from_secs(5);
    change(&mut http);
    Arc::new(Speech {
        tls: None,
        protocol: http.protocol,
        ajp: http.ajp,
        send_proxy: http.send_proxy,
        timeouts: http.timeouts,
        keep_alive: http.keep_alive_connections,
    })
}

/// A server's side of one connection.
struct Talk {
    socket: TcpStream,
    number: usize,
}

impl Talk {
    /// Reads until the end of a head.
    async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.socket.read_u8().await.ok()?);
        }
        Some(String::from_utf8(head).unwrap())
    }

    async fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.unwrap();
    }

    async fn exact(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.socket.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Waits for the other side's end.
    async fn ended(&mut self) {
        let mut rest = Vec::new();
        let _ = self.socket.read_to_end(&mut rest).await;
    }
}

/// Serves every connection by `talk`; counts them.
async fn server<F, T>(talk: F) -> (SocketAddr, Rc<Cell<usize>>)
where
    F: Fn(Talk) -> T + 'static,
    T: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Rc::new(Cell::new(0));
    let counted = Rc::clone(&count);
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let number = counted.get();
            counted.set(number + 1);
            tokio::task::spawn_local(talk(Talk { socket, number }));
        }
    });
    (address, count)
}

#[derive(Default)]
struct Told(Vec<(u16, usize)>);

impl Inform for Told {
    fn inform(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.0.push((status.as_u16(), headers.len()));
    }
}

struct Ask {
    method: Method,
    headers: HeaderMap,
    body: RequestBody,
    upgrade: Option<HeaderValue>,
    expects: bool,
    until: Option<Instant>,
}

impl Ask {
    fn new(method: Method) -> Self {
        Self {
            method,
            headers: HeaderMap::new(),
            body: RequestBody::default(),
            upgrade: None,
            expects: false,
            until: None,
        }
    }

    fn body(method: Method, body: Body) -> Self {
        Self {
            body: RequestBody::new(body),
            ..Self::new(method)
        }
    }

    async fn send(self, to: &Rc<Connections>) -> (Result<Sent, Failure>, Told, Option<Handed>) {
        let listed = Listed::of(&self.headers);
        let mut outgoing = Outgoing {
            method: &self.method,
            target: "/x",
            host: b"test",
            headers: &self.headers,
            listed: &listed,
            drop: &|_| false,
            lines: b"",
            upgrade: self.upgrade.as_ref(),
            expects: self.expects,
            trailers: true,
            keep: true,
        };
        let mut told = Told::default();
        let mut handed = None;
        let mut terms = Terms {
            parties: Parties {
                client: "192.0.2.1:1000".parse().unwrap(),
                local: "192.0.2.2:80".parse().unwrap(),
            },
            idempotent: self.method.is_idempotent(),
            until: self.until,
            inform: &mut told,
            origin: Origin {
                protocol: "HTTP/1.1",
                client: "192.0.2.1:1000".parse().unwrap(),
                local: "192.0.2.2:80".parse().unwrap(),
                secure: false,
                tls: None,
                route: "s1",
                activation: Activation::Active,
            },
            handed: &mut handed,
            timed: true,
        };
        let result = to.send(&mut outgoing, self.body, &mut terms).await;
        (result, told, handed)
    }

    /// Status and body, or what failed.
    async fn text(self, to: &Rc<Connections>) -> Result<(u16, String), String> {
        match self.send(to).await.0 {
            Ok(Sent::Response(head, body)) => {
                let (text, fault, _) = read(body).await;
                match fault {
                    None => Ok((head.status.as_u16(), text)),
                    Some(fault) => Err(fault.to_string()),
                }
            }
            Ok(Sent::Switched(..)) => Err("switched".into()),
            Err(failure) => Err(failure.error.to_string()),
        }
    }
}

async fn read(mut body: ResponseBody) -> (String, Option<BodyFault>, Option<HeaderMap>) {
    let mut text = Vec::new();
    let mut trailers = None;
    loop {
        match poll_fn(|cx| body.poll_frame(cx)).await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => text.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Some(Err(fault)) => return (String::from_utf8(text).unwrap(), Some(fault), trailers),
            None => return (String::from_utf8(text).unwrap(), None, trailers),
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn connections_are_kept_and_used_again() {
    local(async {
        let (address, count) = server(async |mut talk: Talk| {
            while talk.head().await.is_some() {
                talk.say(OK).await;
            }
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        for _ in 0..20 {
            let answer = Ask::new(Method::GET).text(&to).await;
            assert_eq!(answer, Ok((200, "ok".into())));
        }
        assert_eq!((count.get(), to.idle()), (1, 1));
        // Two at once need two; then both rest.
        let two = futures::join!(
            Ask::new(Method::GET).text(&to),
            Ask::new(Method::GET).text(&to)
        );
        assert!(two.0.is_ok() && two.1.is_ok());
        assert_eq!((count.get(), to.idle()), (2, 2));
    });
}

#[test]
fn no_more_are_kept_than_allowed_and_none_for_the_proxy_protocol() {
    local(async {
        let (address, count) = server(async |mut talk: Talk| {
            while let Some(head) = talk.head().await {
                // A PROXY header comes first, once.
                assert!(!head.contains("PROXY") || head.starts_with("PROXY TCP4 192.0.2.1 "));
                talk.say(OK).await;
            }
        })
        .await;
        let to = Rc::new(Connections::new(
            address,
            speech(|http| http.keep_alive_connections = 1),
        ));
        let ask = || Ask::new(Method::GET).text(&to);
        let all = futures::join!(ask(), ask(), ask());
        assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok());
        assert_eq!((count.get(), to.idle()), (3, 1));
        let to = Rc::new(Connections::new(
            address,
            speech(|http| http.send_proxy = Some(ProxyVersion::V1)),
        ));
        for _ in 0..2 {
            assert!(Ask::new(Method::GET).text(&to).await.is_ok());
        }
        assert_eq!((count.get(), to.idle()), (5, 0));
    });
}

/// A server that answers once per connection and closes at the next request's first byte.
async fn closing() -> (SocketAddr, Rc<Cell<usize>>, Rc<Cell<usize>>) {
    let seen = Rc::new(Cell::new(0));
    let counted = Rc::clone(&seen);
    let (address, count) = server(move |mut talk: Talk| {
        let seen = Rc::clone(&counted);
        async move {
            if talk.head().await.is_some() {
                seen.set(seen.get() + 1);
                talk.say(OK).await;
            }
            // The request is taken, and nothing is said about it.
            if talk.socket.read_u8().await.is_ok() {
                seen.set(seen.get() + 1);
            }
        }
    })
    .await;
    (address, count, seen)
}

#[test]
fn a_kept_connection_that_was_closed_is_replaced_when_that_is_safe() {
    local(async {
        let (address, count, _) = closing().await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        assert!(Ask::new(Method::GET).text(&to).await.is_ok());
        let again = Ask::new(Method::GET).text(&to).await;
        assert_eq!(again, Ok((200, "ok".into())));
        assert_eq!(count.get(), 2);
        // PUT is idempotent, and its body was kept.
        let put = Ask::body(Method::PUT, Body::full("abc")).text(&to).await;
        assert_eq!(put, Ok((200, "ok".into())));
    });
}

#[test]
fn the_response_is_timed_from_the_connection_that_gave_it() {
    local(async {
        let closed = Rc::new(Cell::new(None));
        let noted = Rc::clone(&closed);
        let (address, _) = server(move |mut talk: Talk| {
            let closed = Rc::clone(&noted);
            async move {
                assert!(talk.head().await.is_some());
                talk.say(OK).await;
                // Takes the next request as well, and closes after a while without a word.
                if talk.number == 0 && talk.head().await.is_some() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    closed.set(Some(Instant::now()));
                } else {
                    talk.ended().await;
                }
            }
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        let (result, _, handed) = Ask::new(Method::GET).send(&to).await;
        let Ok(Sent::Response(_, body)) = result else {
            panic!("no response");
        };
        assert_eq!(read(body).await.0, "ok");
        assert!(handed.unwrap().connect > Duration::ZERO);
        let (result, _, handed) = Ask::new(Method::GET).send(&to).await;
        assert!(result.is_ok());
        let (handed, closed) = (handed.unwrap(), closed.get().unwrap());
        // Neither the connection that was closed nor the connecting is in it.
        assert!(handed.connect > Duration::ZERO);
        assert!(handed.at.expect("a time") >= closed + handed.connect);
    });
}

#[test]
fn what_is_not_idempotent_is_never_sent_twice() {
    local(async {
        let (address, _, seen) = closing().await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        assert!(Ask::new(Method::GET).text(&to).await.is_ok());
        let (result, ..) = Ask::body(Method::POST, Body::full("abc")).send(&to).await;
        let Err(failure) = result else {
            panic!("a response from nowhere");
        };
        assert!(matches!(failure.error, SendError::Stale) && failure.sent);
        assert_eq!(seen.get(), 2);
    });
}

#[test]
fn one_that_was_closed_while_it_rested_is_not_even_tried() {
    local(async {
        let (address, count) = server(async |mut talk: Talk| {
            if talk.head().await.is_some() {
                talk.say(OK).await;
            }
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        assert!(Ask::new(Method::GET).text(&to).await.is_ok());
        // Lets the server's task end, which closes its socket.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let post = Ask::body(Method::POST, Body::full("abc")).text(&to).await;
        assert_eq!(post, Ok((200, "ok".into())));
        assert_eq!(count.get(), 2);
    });
}

#[test]
fn bad_responses_are_faults_and_their_connections_are_dropped() {
    for (answer, status) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            0,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
            0,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            0,
        ),
        ("HTTP/1.1 200 OK\r\nbad header: x\r\n\r\n", 0),
        ("SSH-2.0-OpenSSH_9\r\n\r\n", 0),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", 0),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", 200),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
            200,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            200,
        ),
        ("HTTP/1.1 200 OK\r\ncont", 0),
        ("", 0),
    ] {
        local(async move {
            let (address, _) = server(async move |mut talk: Talk| {
                if talk.head().await.is_some() {
                    talk.say(answer).await;
                }
            })
            .await;
            let to = Rc::new(Connections::new(address, speech(|_| {})));
            match Ask::new(Method::GET).send(&to).await.0 {
                Ok(Sent::Response(head, body)) => {
                    assert_eq!(head.status.as_u16(), status, "{answer:?}");
                    assert!(read(body).await.1.is_some(), "{answer:?}");
                }
                Ok(Sent::Switched(..)) => panic!("{answer:?}"),
                Err(failure) => {
                    assert_eq!(status, 0, "{answer:?}: {}", failure.error);
                    assert_eq!(failure.error.cause(), Cause::BackendAborted, "{answer:?}");
                }
            }
            assert_eq!(to.idle(), 0, "{answer:?}");
        });
    }
}

#[test]
fn bytes_after_a_response_are_nobodys() {
    local(async {
        let (address, count) = server(async |mut talk: Talk| {
            while talk.head().await.is_some() {
                talk.say(&format!(
                    "{OK}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
                ))
                .await;
            }
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        for _ in 0..3 {
            let answer = Ask::new(Method::GET).text(&to).await;
            assert_eq!(answer, Ok((200, "ok".into())));
        }
        assert_eq!(count.get(), 3);
    });
}

#[test]
fn responses_without_a_body_end_at_their_head() {
    local(async {
        let (address, count) = server(async |mut talk: Talk| {
            while let Some(head) = talk.head().await {
                let answer = match &head[..4] {
                    "HEAD" => "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n",
                    "PUT " => "HTTP/1.1 204 No Content\r\n\r\n",
                    _ => "HTTP/1.1 304 Not Modified\r\ncontent-length: 500\r\n\r\n",
                };
                talk.say(answer).await;
            }
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        for (method, status) in [(Method::HEAD, 200), (Method::PUT, 204), (Method::GET, 304)] {
            let answer = Ask::new(method).text(&to).await;
            assert_eq!(answer, Ok((status, String::new())));
        }
        assert_eq!(count.get(), 1);
    });
}

#[test]
fn times_run_out() {
    local(async {
        const SHORT: Duration = Duration::from_millis(150);
        let (address, _) = server(async |mut talk: Talk| {
            let head = talk.head().await.unwrap_or_default();
            if head.starts_with("PUT") {
                talk.say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab")
                    .await;
            }
            talk.ended().await;
        })
        .await;
        let to = Rc::new(Connections::new(
            address,
            speech(|http| http.timeouts.response = SHORT),
        ));
        let (result, ..) = Ask::new(Method::GET).send(&to).await;
        let failure = result.err().unwrap();
        assert!(matches!(failure.error, SendError::Timeout) && failure.sent);

        let to = Rc::new(Connections::new(
            address,
            speech(|http| http.timeouts.idle = SHORT),
        ));
        let Ok(Sent::Response(_, body)) = Ask::new(Method::PUT).send(&to).await.0 else {
            panic!("no response");
        };
        let (text, fault, _) = read(body).await;
        assert_eq!(text, "ab");
        assert_eq!(fault.map(|f| f.cause()), Some(Cause::BackendTimeout));

        // The time of the whole request counts, whatever happens within.
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        let until = Some(Instant::now() + Duration::from_millis(150));
        let ask = Ask {
            until,
            ..Ask::new(Method::GET)
        };
        let failure = ask.send(&to).await.0.err().unwrap();
        assert!(matches!(failure.error, SendError::Timeout));

        // A full backlog takes no connection.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(1).unwrap();
        let address = full.local_addr().unwrap();
        let mut taken = Vec::new();
        for _ in 0..4 {
            let connect = TcpStream::connect(address);
            taken.push(tokio::time::timeout(Duration::from_millis(100), connect).await);
        }
        let to = Rc::new(Connections::new(
            address,
            speech(|http| http.timeouts.connect = Duration::from_millis(150)),
        ));
        let failure = Ask::new(Method::GET).send(&to).await.0.err().unwrap();
        assert!(matches!(failure.error, SendError::ConnectTimeout));
        assert!(!failure.sent);
    });
}

#[test]
fn nobody_listens() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        let ask = Ask::body(Method::POST, Body::full("abc"));
        let failure = ask.send(&to).await.0.err().unwrap();
        assert!(failure.error.is_connect() && !failure.sent);
        assert!(!failure.body.is_touched());
    });
}

#[test]
fn interim_responses_are_told_and_100_opens_the_body() {
    local(async {
        let (address, _) = server(async |mut talk: Talk| {
            let head = talk.head().await.unwrap();
            assert!(head.contains("expect: 100-continue\r\n"));
            talk.say("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
                .await;
            // The body must not have come.
            let early = tokio::time::timeout(Duration::from_millis(50), talk.socket.read_u8());
            assert!(early.await.is_err());
            talk.say("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(talk.exact(3).await, b"abc");
            talk.say(OK).await;
            talk.ended().await;
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        let ask = Ask {
            expects: true,
            ..Ask::body(Method::POST, Body::full("abc"))
        };
        let (result, told, _) = ask.send(&to).await;
        let Ok(Sent::Response(_, body)) = result else {
            panic!("no response");
        };
        assert_eq!(read(body).await.0, "ok");
        assert_eq!(told.0, [(103, 1)]);
    });
}

fn endless(piece: usize, pieces: Rc<Cell<usize>>) -> Body {
    let frames = futures::stream::unfold(pieces, move |pieces| async move {
        pieces.set(pieces.get() + 1);
        let data: Result<_, BodyError> = Ok(Frame::data(Bytes::from(vec![7; piece])));
        Some((data, pieces))
    });
    Body::boxed(StreamBody::new(frames))
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    local(async {
        let (address, _) = server(async |mut talk: Talk| {
            talk.head().await;
            talk.say("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
                .await;
            talk.ended().await;
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        let pieces = Rc::new(Cell::new(0));
        let ask = Ask::body(Method::POST, endless(1000, pieces));
        assert_eq!(ask.text(&to).await, Ok((413, "no".into())));
        // Nobody knows what the rest of the request would be taken for.
        assert_eq!(to.idle(), 0);
    });
}

#[test]
fn a_backend_that_reads_slowly_slows_the_client() {
    local(async {
        let (address, _) = server(async |mut talk: Talk| {
            talk.head().await;
            // Reads nothing.
            std::future::pending::<()>().await;
        })
        .await;
        let to = Rc::new(Connections::new(
            address,
            speech(|http| http.timeouts.response = Duration::from_millis(300)),
        ));
        let pieces = Rc::new(Cell::new(0));
        let ask = Ask::body(Method::POST, endless(64 << 10, Rc::clone(&pieces)));
        let failure = ask.send(&to).await.0.err().unwrap();
        assert!(matches!(failure.error, SendError::Timeout));
        // What the sockets hold, and no more: some megabytes.
        assert!(pieces.get() < 300, "{} pieces were taken", pieces.get());
    });
}

#[test]
fn trailers_go_both_ways() {
    local(async {
        let (address, _) = server(async |mut talk: Talk| {
            let head = talk.head().await.unwrap();
            assert!(head.contains("transfer-encoding: chunked\r\n"));
            let end = "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n";
            assert_eq!(talk.exact(end.len()).await, end.as_bytes());
            talk.say(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: \
                 2\r\nset-cookie: a=b\r\n\r\n",
            )
            .await;
            talk.ended().await;
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let frames: [Result<_, BodyError>; 2] = [
            Ok(Frame::data(Bytes::from("abc"))),
            Ok(Frame::trailers(trailers)),
        ];
        let body = Body::boxed(StreamBody::new(futures::stream::iter(frames)));
        let Ok(Sent::Response(_, body)) = Ask::body(Method::POST, body).send(&to).await.0 else {
            panic!("no response");
        };
        let (text, fault, trailers) = read(body).await;
        assert!(fault.is_none());
        assert_eq!(text, "ok");
        let trailers = trailers.unwrap();
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["x-sum"], "2");
        assert_eq!(to.idle(), 1);
    });
}

#[test]
fn an_upgrade_gives_the_connection_away() {
    local(async {
        let (address, _) = server(async |mut talk: Talk| {
            let head = talk.head().await.unwrap();
            assert!(head.contains("connection: upgrade\r\nupgrade: websocket\r\n"));
            talk.say("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\nfirst")
                .await;
            talk.ended().await;
        })
        .await;
        let to = Rc::new(Connections::new(address, speech(|_| {})));
        let ask = Ask {
            upgrade: Some(HeaderValue::from_static("websocket")),
            ..Ask::new(Method::GET)
        };
        let Ok(Sent::Switched(head, Tunnel::Http1(wire))) = ask.send(&to).await.0 else {
            panic!("not switched");
        };
        assert_eq!(head.upgrade.unwrap(), "websocket");
        let (mut stream, mut first) = wire.into_parts();
        let mut text = std::mem::take(&mut first).to_vec();
        while text.len() < 5 {
            text.push(stream.read_u8().await.unwrap());
        }
        assert_eq!(text, b"first");
    });
}
