//! AJP13 with a server that does all that one may do, and all that none may.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use balancer_tests::agent::Agent;
use balancer_tests::http::ajp::AjpServer;
use balancer_tests::http::apps::App;
use balancer_tests::http::raw::{Raw, Trouble};
use balancer_tests::http::web::{HTTP, NO_CHECK, frontend, scene_dir};
use balancer_tests::netns::Netns;
use balancer_tests::process::{BOUND, wait_until};

#[path = "ajp/connections.rs"]
mod connections;

/// Where the server listens.
const AJP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8009);
/// One attempt, and nothing learned from it.
const ONCE: &str = "[pool.retries]\nattempts = 0\n[pool.observe]\nenabled = false\n";
/// No CPING.
const QUIET: &str = "[pool.ping]\nconnect = false\nreuse = false\n";

struct Scene {
    agent: Agent,
    server: AjpServer,
    ns: Netns,
    dir: tempfile::TempDir,
}

impl Scene {
    /// With further keys and tables for the pool.
    #[track_caller]
    fn new(keys: &str) -> Self {
        Self::with(keys, "", "")
    }

    /// And for the frontend, and the backend.
    #[track_caller]
    fn with(keys: &str, front: &str, backend: &str) -> Self {
        let (ns, dir) = (Netns::new(), scene_dir());
        let server = AjpServer::start(&ns, AJP);
        let file = dir.path().join("access.log");
        let log = format!("{front}[frontend.log]\nfile = {file:?}\nformat = \"json\"\n");
        let config = format!(
            "[http]\nthreads = 1\n{}[[pool]]\nname = \"app\"\nprotocol = \"ajp\"\n{keys}\
             [[pool.backend]]\nname = \"s0\"\naddress = \"{AJP}\"\nroute = \"r0\"\n{backend}",
            frontend(&log)
        );
        let mut agent = Agent::prepare_plain(&ns, &config);
        agent.run();
        agent.wait_all_up();
        Self {
            agent,
            server,
            ns,
            dir,
        }
    }

    fn client(&self) -> Raw {
        Raw::connect(&self.ns, HTTP)
    }

    /// A request on a connection of its own; the status, and the body or how it was cut.
    fn get(&self, path: &str) -> (u16, Result<String, Trouble>) {
        let mut client = self.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        match client.try_answer(false) {
            Ok(answer) => (answer.status, Ok(answer.text())),
            Err(trouble) => (0, Err(trouble)),
        }
    }

    /// The last line of the access log.
    fn logged(&self, count: usize) -> serde_json::Value {
        let path = self.dir.path().join("access.log");
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        wait_until("lines in the log", BOUND, || {
            read().lines().count() >= count
        });
        let text = read();
        assert_eq!(text.lines().count(), count, "{text}");
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
    }
}

#[test]
fn what_a_server_may_do() {
    let scene = Scene::new(&format!("secret = \"word\"\n{NO_CHECK}{QUIET}"));
    for (path, status, body) in [
        ("/ok", 200, "ok"),
        ("/unknown", 200, "abcd"),
        ("/flush", 200, "ab"),
        ("/bytes", 200, "abcd"),
        ("/more", 200, "ok"),
        ("/hop", 200, "ok"),
        ("/status/204", 204, ""),
        ("/status/304", 304, ""),
        ("/status/404", 404, ""),
        ("/status/999", 999, ""),
    ] {
        assert_eq!(scene.get(path), (status, Ok(body.into())), "{path}");
    }
    // All on one connection, which is one of the protocol's merits.
    assert_eq!(scene.server.counts(), (1, 0));
    let seen = scene.server.take();
    for seen in &seen {
        assert_eq!(seen.attributes["0c"], "word");
        assert_eq!(seen.attributes["06"], "r0");
        assert_eq!(seen.attributes["JK_LB_ACTIVATION"], "ACT");
        assert_eq!(seen.header("content-length"), Some("0"));
    }
    let mut client = scene.client();
    let answer = client.get("/hop");
    let names: Vec<&str> = answer.headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"]);
    for name in ["x-hop", "keep-alive", "connection"] {
        assert!(!names.contains(&name), "{names:?}");
    }
    // Without reuse the next request has another connection.
    scene.server.take();
    for connections in 1..4 {
        assert_eq!(scene.get("/close-flag"), (200, Ok("ok".into())));
        assert_eq!(scene.server.counts().0, connections);
    }
    // An end that comes late keeps nobody waiting, and the connection is used again.
    for path in ["/late-end", "/late-ask"] {
        scene.server.take();
        let begin = Instant::now();
        assert_eq!(scene.get(path), (200, Ok("ok".into())), "{path}");
        let took = begin.elapsed();
        wait_until("the end to be heard", BOUND, || {
            scene.server.counts().0 == 1 && !scene.server.take().is_empty()
        });
        assert!(took < BOUND, "{took:?}");
        let mut used = Vec::new();
        wait_until("the connection to be used again", BOUND, || {
            assert_eq!(scene.get("/ok").0, 200);
            used.extend(scene.server.take().iter().map(|seen| seen.connection));
            used.len() > 1 && used[used.len() - 1] == used[used.len() - 2]
        });
    }
}

#[test]
fn bodies_go_out_as_they_are_asked_for() {
    let scene = Scene::new(&format!("{NO_CHECK}{QUIET}"));
    let body: Vec<u8> = (0..30_000u32).map(|i| (i * 7) as u8).collect();
    let mut client = scene.client();
    for (path, most) in [
        ("/ok", 8186),
        ("/ok/1000", 1000),
        ("/ok/65535", 8186),
        ("/more/10000", 8186),
    ] {
        for length in [0, 1, 8185, 8186, 8187, 30_000] {
            let answer = client.request("POST", path, &[], &body[..length]);
            assert_eq!(answer.text(), "ok");
            let seen = scene.server.only();
            assert!(seen.body == body[..length], "{path} {length}");
            let (first, rest) = match &seen.packets[..] {
                [] => (0, &[][..]),
                [first, rest @ ..] => (*first, rest),
            };
            // The first one comes unasked, and none is larger than what was asked for.
            assert!(
                first <= 8186 && rest.iter().all(|n| *n <= most),
                "{:?}",
                seen.packets
            );
            let ends = seen.packets.iter().filter(|n| **n == 0).count();
            assert_eq!(ends, if path.starts_with("/more") { 2 } else { 0 });
            assert_eq!(seen.header("content-length"), Some(&*length.to_string()));
        }
        // Chunks have no length; nothing comes before it is asked for.
        let head = format!("PUT {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut bytes = head.into_bytes();
        for part in body.chunks(7000) {
            bytes.extend(format!("{:x}\r\n", part.len()).bytes());
            bytes.extend(part);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
        client.send(&bytes);
        assert_eq!(client.answer().text(), "ok");
        let seen = scene.server.only();
        assert!(seen.body == body, "{path}");
        assert!(
            seen.packets.iter().all(|n| *n <= most),
            "{:?}",
            seen.packets
        );
        assert_eq!(seen.header("content-length"), None);
        assert_eq!(seen.header("transfer-encoding"), None);
        // The server asks until the end comes.
        let at = seen.packets.iter().position(|n| *n == 0).expect("an end");
        let ends = if path.starts_with("/more") { 3 } else { 1 };
        assert_eq!(seen.packets[at..], vec![0; ends]);
    }
    // As it comes, not when it is complete.
    client.send("POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n");
    for part in ["ab", "cd", "ef"] {
        std::thread::sleep(Duration::from_millis(30));
        client.send(part);
    }
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(scene.server.only().body, b"abcdef");
    assert_eq!(scene.server.counts().0, 0);
}

#[test]
fn an_upload_that_was_not_taken_ends_the_connection() {
    let scene = Scene::new(&format!("{NO_CHECK}{QUIET}"));
    // Of this one the server has all.
    for _ in 0..2 {
        assert_eq!(
            scene
                .client()
                .request("POST", "/unread", &[], b"body")
                .text(),
            "ok"
        );
    }
    assert_eq!(scene.server.counts().0, 1);
    // Of this one a part, and of the chunks nobody knows.
    scene.server.take();
    for _ in 0..2 {
        let answer = scene.client().request("POST", "/unread", &[], &[7; 20_000]);
        assert_eq!(answer.text(), "ok");
        let mut client = scene.client();
        client.send("POST /unread HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
        assert_eq!(client.answer().text(), "ok");
    }
    let connections: Vec<usize> = scene.server.take().iter().map(|s| s.connection).collect();
    assert!(
        connections.windows(2).filter(|w| w[0] == w[1]).count() == 0,
        "{connections:?}"
    );
}

#[test]
fn what_no_server_may_do() {
    let times = "[pool.timeouts]\nresponse = \"500ms\"\nidle = \"500ms\"\n";
    let scene = Scene::new(&format!("{NO_CHECK}{QUIET}{ONCE}{times}"));
    // How much of it comes to the client before that, is a matter of time.
    let cut = || Err(Trouble::Closed);
    let page = |text: &str| Ok(text.to_owned());
    let bad = (502, page("502 Bad Gateway\n"));
    let late = (504, page("504 Gateway Timeout\n"));
    let mut lines = 0;
    for (path, want, cause) in [
        ("/close", bad.clone(), "backend-aborted"),
        ("/close-head", bad.clone(), "backend-aborted"),
        ("/close-body", (0, cut()), "backend-aborted"),
        ("/close-chunk", (0, cut()), "backend-aborted"),
        ("/close-end", (200, page("ok")), "done"),
        ("/garbage", bad.clone(), "backend-aborted"),
        ("/kind", bad.clone(), "backend-aborted"),
        ("/empty", bad.clone(), "backend-aborted"),
        ("/large", bad.clone(), "backend-aborted"),
        ("/lengths", (0, cut()), "backend-aborted"),
        ("/string", bad.clone(), "backend-aborted"),
        ("/short", (0, cut()), "backend-aborted"),
        ("/long", (0, cut()), "backend-aborted"),
        ("/two-lengths", bad.clone(), "backend-aborted"),
        ("/no-length", bad.clone(), "backend-aborted"),
        ("/end-first", bad.clone(), "backend-aborted"),
        ("/body-first", bad.clone(), "backend-aborted"),
        ("/two-heads", (0, cut()), "backend-aborted"),
        ("/pong", bad.clone(), "backend-aborted"),
        ("/interim", bad.clone(), "backend-aborted"),
        ("/split", bad.clone(), "backend-aborted"),
        ("/name", bad.clone(), "backend-aborted"),
        ("/ask-nothing", bad.clone(), "backend-aborted"),
        ("/silent", late, "backend-timeout"),
        ("/stalls", (0, cut()), "backend-timeout"),
        ("/surplus", (200, page("ok")), "done"),
    ] {
        scene.server.take();
        let (status, body) = scene.get(path);
        let body = body.map_err(|trouble| match trouble {
            Trouble::Cut(n) if n <= 2 => Trouble::Closed,
            other => other,
        });
        assert_eq!((status, body), want, "{path}");
        // It is never used again: what follows is served on another, and right.
        assert_eq!(scene.get("/unknown"), (200, page("abcd")), "after {path}");
        let seen = scene.server.take();
        let connections: Vec<usize> = seen.iter().map(|s| s.connection).collect();
        assert_eq!(connections.len(), 2, "{path}: {seen:?}");
        assert_ne!(connections[0], connections[1], "{path}");
        lines += 2;
        let path = scene.dir.path().join("access.log");
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        wait_until("lines in the log", BOUND, || {
            read().lines().count() >= lines
        });
        let text = read();
        let line = text.lines().nth(lines - 2).expect("a line");
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["cause"], cause, "{line}");
    }
    // Each of those that were the server's fault is counted.
    let status = scene.agent.status().to_string();
    assert!(status.contains("\"broken\":22,"), "{status}");
    assert!(status.contains("\"timed_out\":2}"), "{status}");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_sent() {
    let scene = Scene::new(&format!("{NO_CHECK}{QUIET}"));
    let mut client = scene.client();
    let long = "x".repeat(8_200);
    let answer = client.get_with("/ok", &[("X-Long", &long)]);
    assert_eq!(answer.status, 431, "{answer:?}");
    let line = scene.logged(1);
    assert_eq!(
        (&line["cause"], &line["retries"]),
        (&"refused".into(), &0.into()),
        "{line}"
    );
    assert_eq!(scene.server.take().len(), 0);
    // It says nothing about the backend, and the connection to the client goes on.
    assert_eq!(client.get("/ok").status, 200);
    // With larger packets on both sides it does fit.
    let scene = Scene::new(&format!("packet_size = 65536\n{NO_CHECK}{QUIET}"));
    assert_eq!(
        scene.client().get_with("/ok", &[("X-Long", &long)]).status,
        200
    );
    assert_eq!(scene.server.only().header("x-long"), Some(&*long));
}

#[test]
fn nothing_of_a_client_is_taken_for_the_balancers_word() {
    let trusted = "trusted_proxies = [\"127.0.0.1\"]\n";
    for (front, address, port, ssl) in [
        ("", "127.0.0.1", "80", "0"),
        (trusted, "192.0.2.7", "443", "1"),
    ] {
        let scene = Scene::with(&format!("secret = \"word\"\n{NO_CHECK}{QUIET}"), front, "");
        let mut client = scene.client();
        let own = client.socket().local_addr().expect("an address").port();
        let fields = [
            ("AJP_REMOTE_PORT", "1"),
            ("ajp_ssl_protocol", "TLSv1.3"),
            ("JK_LB_ACTIVATION", "STP"),
            ("X-Forwarded-For", "192.0.2.7"),
            ("X-Forwarded-Proto", "https"),
            ("Connection", "close, x-hop"),
            ("X-Hop", "1"),
            ("Cookie", "a=1"),
        ];
        assert_eq!(
            client
                .get_with("/a;b=c/../d%20e?secret=guess", &fields)
                .status,
            200
        );
        let seen = scene.server.only();
        let names: Vec<&str> = seen.attributes.keys().map(|name| &**name).collect();
        let want = [
            "05",
            "06",
            "0c",
            "AJP_LOCAL_ADDR",
            "AJP_REMOTE_PORT",
            "JK_LB_ACTIVATION",
            "port",
            "protocol",
            "remote_addr",
            "remote_host",
            "server_name",
            "ssl",
        ];
        assert_eq!(names, want);
        let known = if front.is_empty() {
            own.to_string()
        } else {
            "0".into()
        };
        for (name, value) in [
            ("remote_addr", address),
            ("remote_host", address),
            ("AJP_REMOTE_PORT", &known),
            ("AJP_LOCAL_ADDR", "127.0.0.1"),
            ("JK_LB_ACTIVATION", "ACT"),
            ("port", port),
            ("ssl", ssl),
            ("server_name", "test.example"),
            ("protocol", "HTTP/1.1"),
            ("05", "secret=guess"),
            ("0c", "word"),
        ] {
            assert_eq!(seen.attributes[name], value, "{name}");
        }
        for name in [
            "ajp_remote_port",
            "ajp_ssl_protocol",
            "jk_lb_activation",
            "x-hop",
            "connection",
        ] {
            assert_eq!(seen.header(name), None, "{name}");
        }
        // One path is matched and forwarded; parameters follow at its end.
        assert_eq!(seen.path, "/d%20e;b=c");
        let chain = if front.is_empty() {
            "127.0.0.1"
        } else {
            "192.0.2.7, 127.0.0.1"
        };
        assert_eq!(seen.header("x-forwarded-for"), Some(chain));
    }
}

#[test]
fn websockets_need_http() {
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let scene = Scene::with(&format!("{NO_CHECK}{QUIET}"), "", "http_port = 9000\n");
    let _app = App::at(&scene.ns, "s0", balancer_tests::http::web::app_address(0));
    let mut client = scene.client();
    assert_eq!(client.get_with("/ws", &upgrade).status, 101);
    assert_eq!(scene.server.take().len(), 0);
    drop(client);
    // Everything else goes by AJP13.
    assert_eq!(scene.client().get("/ok").text(), "ok");
    assert_eq!(scene.server.only().path, "/ok");
    let scene = Scene::new(&format!("{NO_CHECK}{QUIET}"));
    for _ in 0..3 {
        assert_eq!(scene.client().get_with("/ws", &upgrade).status, 501);
    }
    assert_eq!(scene.server.take().len(), 0);
    let line = scene.logged(3);
    assert_eq!(
        (&line["cause"], &line["status"]),
        (&"refused".into(), &501.into()),
        "{line}"
    );
    let said = scene
        .agent
        .log()
        .matches("a WebSocket was refused with 501")
        .count();
    assert_eq!(said, 1);
}
