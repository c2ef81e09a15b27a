//! WebSockets between every pair of versions, and where there is no way for them.

use std::future::poll_fn;

use balancer_tests::http::apps::{App, Setup};
use balancer_tests::http::certs::Authority;
use balancer_tests::http::raw::Raw;
use balancer_tests::http::web::{HTTP, NO_CHECK, Web, app_address, frontend, pool, scene_dir};
use balancer_tests::netns::Netns;
use balancer_tests::process::{BOUND, wait_until};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request};
use tokio::net::TcpStream;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What a pool's servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Servers {
    Http1,
    /// HTTP/2 that takes CONNECT with a protocol.
    Http2,
    /// TLS and both versions, but no such CONNECT.
    Either,
    /// In the clear, without such a CONNECT.
    Neither,
}

/// Two of them, and a frontend with further keys.
fn scene(servers: Servers, keys: &str) -> Web {
    let (ns, dir) = (Netns::new(), scene_dir());
    let authority = Authority::new(dir.path(), "backends");
    let pair = authority.sign("server", &["server.example"], 7);
    let path = |path: &std::path::Path| path.display().to_string();
    let mut options = Vec::new();
    let mut pool_keys = match servers {
        Servers::Http1 => NO_CHECK.to_owned(),
        _ => format!("protocol = \"http2\"\n{NO_CHECK}"),
    };
    if matches!(servers, Servers::Either | Servers::Neither) {
        options.push("--no-protocols".to_owned());
    }
    if servers == Servers::Either {
        options.extend(["--certificate".to_owned(), path(&pair.certificate)]);
        options.extend(["--key".to_owned(), path(&pair.key)]);
        pool_keys += "[pool.tls]\nverify = false\n";
    }
    let apps = (0..2).map(|i| {
        let setup = Setup {
            name: format!("s{i}"),
            listen: vec![app_address(i)],
            options: options.clone(),
            ..Setup::default()
        };
        App::start(&ns, setup)
    });
    let apps = apps.collect();
    let file = dir.path().join("access.log");
    let log = format!("[frontend.log]\nfile = {file:?}\nformat = \"json\"\n");
    let config = frontend(&format!("{keys}{log}")) + &pool(2, &pool_keys);
    Web::around(ns, dir, apps, &config)
}

fn log(web: &Web) -> String {
    std::fs::read_to_string(web.dir.path().join("access.log")).unwrap_or_default()
}

fn ask(client: &mut Raw, path: &str) -> balancer_tests::http::raw::Answer {
    client.get_with(
        path,
        &[
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ],
    )
}

/// A masked frame (up to 64 KiB).
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(n) if n < 126 => frame.push(0x80 | n),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    let masked = payload.iter().enumerate();
    frame.extend(masked.map(|(i, byte)| byte ^ mask[i % 4]));
    frame
}

/// The frame that answers it.
fn echo(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(n) if n < 126 => frame.push(n),
        _ => {
            frame.push(126);
            frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

fn exchange(socket: &mut Raw, opcode: u8, payload: &[u8]) {
    socket.send(frame(opcode, payload));
    let wanted = echo(opcode, payload);
    let got = socket.exactly(wanted.len(), 0).expect("a frame");
    assert_eq!(got, wanted);
}

#[test]
fn they_are_tunnelled() {
    for servers in [Servers::Http1, Servers::Http2, Servers::Either] {
        let web = scene(servers, "");
        let mut sockets: Vec<Raw> = (0..6)
            .map(|_| {
                let mut client = web.client();
                let answer = ask(&mut client, "/ws");
                assert_eq!(answer.status, 101, "{servers:?}: {answer:?}");
                assert_eq!(answer.one("sec-websocket-accept"), Some(ACCEPT));
                let upgrade = answer.one("upgrade");
                assert!(upgrade.is_some_and(|u| u.eq_ignore_ascii_case("websocket")));
                client
            })
            .collect();
        for round in 0..20usize {
            for (i, socket) in sockets.iter_mut().enumerate() {
                let text = format!("{i}:{round}:{}", "x".repeat(round * 20));
                exchange(socket, 1, text.as_bytes());
            }
        }
        // A reload leaves them alone.
        web.agent.order(&["reload"]);
        for socket in &mut sockets {
            exchange(socket, 2, b"still here");
            exchange(socket, 2, &[7; 60_000]);
            exchange(socket, 8, b"");
            assert!(socket.closes(BOUND), "{servers:?}");
        }
        drop(sockets);
        let seen = web.log();
        assert_eq!(seen.len(), 6);
        let (method, version) = match servers {
            Servers::Http2 => ("CONNECT", "HTTP/2"),
            _ => ("GET", "HTTP/1.1"),
        };
        for seen in &seen {
            let saw = (seen.method.as_str(), seen.version.as_str());
            assert_eq!(saw, (method, version), "{servers:?}");
            let key = (servers != Servers::Http2).then_some(KEY);
            assert_eq!(seen.one("sec-websocket-key"), key);
            assert_eq!(seen.one("sec-websocket-version"), Some("13"));
        }
        // What is no WebSocket takes the usual way, also after these.
        web.clear();
        let answer = web.client().get("/status/200");
        assert_eq!(answer.status, 200);
        let version = match servers {
            Servers::Http1 => "HTTP/1.1",
            _ => "HTTP/2",
        };
        assert_eq!(web.log()[0].version, version);
        wait_until("lines in the log", BOUND, || log(&web).lines().count() == 7);
        assert_eq!(log(&web).matches("\"status\":101").count(), 6);
    }
}

#[test]
fn what_the_server_refuses_is_an_answer_like_others() {
    for servers in [Servers::Http1, Servers::Http2] {
        let web = scene(servers, "");
        let other = [("Connection", "Upgrade"), ("Upgrade", "other")];
        assert_eq!(web.client().get_with("/ws", &other).status, 426);
    }
    let web = scene(Servers::Http2, "");
    assert_eq!(ask(&mut web.client(), "/no-such-thing").status, 404);
}

#[test]
fn without_a_way_they_are_refused_and_the_server_is_not_blamed() {
    let web = scene(Servers::Neither, "");
    for _ in 0..20 {
        assert_eq!(ask(&mut web.client(), "/ws").status, 501);
    }
    wait_until("lines in the log", BOUND, || {
        log(&web).lines().count() == 20
    });
    let log = log(&web);
    assert_eq!(log.matches("\"cause\":\"refused\"").count(), 20, "{log}");
    assert!(web.log().is_empty());
    assert_eq!(web.client().get("/status/200").status, 200);
}

/// A client that speaks HTTP/2.
struct Client {
    sender: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    /// Knows the settings when it is there.
    async fn connect() -> Self {
        let socket = TcpStream::connect(HTTP).await.expect("connect");
        let (sender, connection) = h2::client::handshake(socket).await.expect("a preface");
        let driver = tokio::spawn(connection);
        let mut client = Self { sender, driver };
        let request = Request::get("http://test.example/status/200");
        let (status, ..) = client
            .request(request.body(()).expect("a request"), true)
            .await;
        assert_eq!(status, 200);
        assert!(client.sender.is_extended_connect_protocol_enabled());
        client
    }

    async fn request(
        &mut self,
        request: Request<()>,
        ended: bool,
    ) -> (u16, SendStream<Bytes>, RecvStream) {
        poll_fn(|cx| self.sender.poll_ready(cx))
            .await
            .expect("room");
        let (response, stream) = self.sender.send_request(request, ended).expect("sent");
        let response = response.await.expect("a response");
        let headers = response.headers();
        assert!(!headers.contains_key("sec-websocket-accept"));
        assert!(!headers.contains_key("upgrade"));
        (response.status().as_u16(), stream, response.into_body())
    }

    async fn websocket(&mut self, path: &str) -> (u16, SendStream<Bytes>, RecvStream) {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://test.example{path}"))
            .header("sec-websocket-version", "13")
            .extension(Protocol::from_static("websocket"));
        self.request(request.body(()).expect("a request"), false)
            .await
    }
}

/// Sends a frame and reads one back.
async fn exchange_over(
    send: &mut SendStream<Bytes>,
    recv: &mut RecvStream,
    opcode: u8,
    payload: &[u8],
) {
    send.send_data(frame(opcode, payload).into(), false)
        .expect("sent");
    let wanted = echo(opcode, payload);
    let mut got = BytesMut::new();
    while got.len() < wanted.len() {
        let data = recv.data().await.expect("more").expect("data");
        recv.flow_control()
            .release_capacity(data.len())
            .expect("room");
        got.extend_from_slice(&data);
    }
    assert_eq!(got, wanted);
}

#[test]
fn http2_clients_have_them_too() {
    for servers in [Servers::Http1, Servers::Http2, Servers::Either] {
        let web = scene(servers, "[frontend.timeouts]\nkeep_alive = \"1s\"\n");
        web.inside(async {
            let mut client = Client::connect().await;
            let mut tunnels = Vec::new();
            for _ in 0..4 {
                let (status, send, recv) = client.websocket("/ws").await;
                assert_eq!(status, 200, "{servers:?}");
                tunnels.push((send, recv));
            }
            for round in 0..20usize {
                for (i, (send, recv)) in tunnels.iter_mut().enumerate() {
                    let text = format!("{i}:{round}:{}", "x".repeat(round * 20));
                    exchange_over(send, recv, 1, text.as_bytes()).await;
                }
            }
            // A connection with nothing in it ends in this time; this one has something.
            let idle = Client::connect().await;
            let _ = idle.driver.await;
            assert!(!client.driver.is_finished());
            for (mut send, mut recv) in tunnels {
                exchange_over(&mut send, &mut recv, 2, &[7; 60_000]).await;
                exchange_over(&mut send, &mut recv, 8, b"").await;
                // The end may come with a frame of its own.
                while let Some(data) = recv.data().await {
                    assert_eq!(data.expect("an end"), "", "{servers:?}");
                }
                send.send_data(Bytes::new(), true).expect("sent");
            }
            // Nothing is left of them.
            let _ = client.driver.await;
        });
        wait_until("lines in the log", BOUND, || log(&web).lines().count() == 6);
        let log = log(&web);
        assert_eq!(log.matches("\"method\":\"GET\"").count(), 6, "{log}");
        assert_eq!(log.matches("\"cause\":\"done\"").count(), 6, "{log}");
        for seen in web.log().iter().filter(|seen| seen.target == "/ws") {
            assert_eq!(seen.one("sec-websocket-version"), Some("13"));
            let key = seen.one("sec-websocket-key");
            assert_eq!(key.is_none(), servers == Servers::Http2, "{key:?}");
        }
    }
}

#[test]
fn http2_clients_are_refused_what_is_no_websocket() {
    let web = scene(Servers::Http1, "");
    web.inside(async {
        let mut client = Client::connect().await;
        // The server answers 200 to what it does not take for an upgrade.
        let (status, ..) = client.websocket("/status/200").await;
        assert_eq!(status, 502);
        let (status, ..) = client.websocket("/status/403").await;
        assert_eq!(status, 403);
        for protocol in [None, Some("connect-udp")] {
            let mut request = Request::builder().method(Method::CONNECT);
            request = match protocol {
                Some(name) => request
                    .uri("http://test.example/ws")
                    .extension(Protocol::from(name)),
                None => request.uri("test.example:80"),
            };
            let request = request.body(()).expect("a request");
            let (status, ..) = client.request(request, false).await;
            assert_eq!(status, 501, "{protocol:?}");
        }
        // The connection is none the worse for it.
        let (status, mut send, mut recv) = client.websocket("/ws").await;
        assert_eq!(status, 200);
        exchange_over(&mut send, &mut recv, 1, b"hello").await;
    });
    let web = scene(Servers::Neither, "");
    web.inside(async {
        let mut client = Client::connect().await;
        let (status, ..) = client.websocket("/ws").await;
        assert_eq!(status, 501);
    });
}

#[test]
fn a_client_that_goes_away_frees_the_server() {
    for servers in [Servers::Http1, Servers::Http2] {
        let web = scene(servers, "");
        web.inside(async {
            let mut client = Client::connect().await;
            let (status, mut send, mut recv) = client.websocket("/ws").await;
            assert_eq!(status, 200);
            exchange_over(&mut send, &mut recv, 1, b"hello").await;
        });
        wait_until("lines in the log", BOUND, || log(&web).lines().count() == 2);
        let log = log(&web);
        assert!(log.contains("\"cause\":\"client-aborted\""), "{log}");
    }
}
