//! Requests and answers on their way: what is kept, what is changed, what streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use balancer_tests::http::app::Seen;
use balancer_tests::http::apps::App;
use balancer_tests::http::apps::Setup;
use balancer_tests::http::proc;
use balancer_tests::http::raw::{Raw, Trouble};
use balancer_tests::http::web::{
    CHECK, HTTP, NO_CHECK, Web, app_address, frontend, pool, scene_dir,
};
use balancer_tests::netns::Netns;
use balancer_tests::process::{BOUND, came_true};

const URL: &str = "http://127.0.0.1:8080";

fn plain(apps: usize) -> Web {
    Web::new(apps, |_| frontend("") + &pool(apps, CHECK))
}

fn sha256(bytes: &[u8]) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    sum.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn a_request_arrives_as_it_was_sent() {
    let web = plain(1);
    let body: Vec<u8> = (0..300_000u32).map(|i| (i * 7) as u8).collect();
    let fields = [
        ("Accept", "*/*"),
        ("X-Case-Kept", "Value, With  Two Blanks"),
        ("Cookie", "a=1; b=2"),
        ("Authorization", "Basic eDp5"),
        ("Content-Type", "application/octet-stream"),
    ];
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"] {
        web.clear();
        let answer = web
            .client()
            .request(method, "/a/b%20c?q=%2F&r", &fields, &body);
        assert_eq!(answer.status, 200, "{method}");
        let seen = web.apps[0].only();
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str()),
            (method, "/a/b%20c?q=%2F&r")
        );
        assert_eq!(
            (seen.body, seen.digest.as_str()),
            (300_000, sha256(&body).as_str())
        );
        assert_eq!(seen.framing, "length");
        for (name, value) in fields {
            assert_eq!(seen.one(name), Some(value));
        }
        assert_eq!(seen.one("host"), Some("test.example"));
    }
}

#[test]
fn the_same_over_every_pair_of_versions() {
    for backend in ["http1", "http2"] {
        let web = Web::new(1, |_| {
            frontend("") + &pool(1, &format!("protocol = \"{backend}\"\n{CHECK}"))
        });
        let file = web.dir.path().join("body");
        let body = vec![b'y'; 1 << 20];
        std::fs::write(&file, &body).expect("write");
        let data = format!("@{}", file.display());
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            web.clear();
            let url = format!("{URL}/echo?x=1");
            let said = web.curl(&[version, "-H", "X-A: b", "--data-binary", &data, &url]);
            assert_eq!(said.status, 200, "{backend} {version}: {said:?}");
            assert_eq!(
                said.version,
                if version == "--http1.1" { "1.1" } else { "2" }
            );
            let seen: Seen = serde_json::from_str(&said.body).expect("an echo");
            assert_eq!(
                seen.version,
                if backend == "http1" {
                    "HTTP/1.1"
                } else {
                    "HTTP/2"
                }
            );
            assert_eq!(
                (seen.method.as_str(), seen.target.as_str()),
                ("POST", "/echo?x=1")
            );
            assert_eq!(
                (seen.body, seen.digest.as_str()),
                (1 << 20, sha256(&body).as_str())
            );
            assert_eq!(
                seen.headers
                    .iter()
                    .filter(|(n, v)| n == "x-a" && v == "b")
                    .count(),
                1
            );
            let host = match backend {
                "http1" => "host",
                _ => ":authority",
            };
            assert_eq!(seen.one(host), Some("127.0.0.1:8080"));
            // Big answers, answers without a length, and none.
            for (path, length) in [
                ("/bytes/3000000", 3_000_000),
                ("/chunked/50/1000", 50_000),
                ("/status/204", 0),
            ] {
                let said = web.curl(&[version, &format!("{URL}{path}")]);
                assert_eq!(
                    said.body.len(),
                    length,
                    "{backend} {version} {path}: {:?}",
                    said.error
                );
            }
            let head = web.curl(&[version, "--head", &format!("{URL}/bytes/5000")]);
            assert!(
                head.body
                    .to_ascii_lowercase()
                    .contains("content-length: 5000"),
                "{head:?}"
            );
        }
    }
}

#[test]
fn cookies_of_http2_are_joined_for_http1() {
    let web = plain(1);
    let url = format!("{URL}/");
    let said = web.curl(&[
        "--http2-prior-knowledge",
        "-H",
        "cookie: a=1",
        "-H",
        "cookie: b=2",
        &url,
    ]);
    assert_eq!(said.status, 200);
    assert_eq!(web.apps[0].only().all("cookie"), ["a=1; b=2"]);
}

#[test]
fn hints_of_http2_servers_are_handed_on() {
    let web = Web::new(1, |_| {
        frontend("") + &pool(1, &format!("protocol = \"http2\"\n{CHECK}"))
    });
    let mut client = web.client();
    // Twice on one connection: the second answer is not mistaken for the first's.
    for _ in 0..2 {
        let answer = client.get("/early");
        assert_eq!(answer.status, 200);
        let link = ("link".to_owned(), "</a.css>; rel=preload".to_owned());
        assert_eq!(answer.interim, [(103, vec![link])]);
    }
    // Clients that speak HTTP/1.0 get the answer alone.
    let url = format!("{URL}/early");
    for (version, hinted) in [("--http2-prior-knowledge", true), ("--http1.0", false)] {
        let said = web.curl(&[version, "--include", &url]);
        assert_eq!(said.status, 200, "{version}: {said:?}");
        let hint = said.body.starts_with("HTTP/2 103");
        assert_eq!(hint, hinted, "{version}: {said:?}");
    }
    // What is expected is the server's to grant.
    client.send(
        "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(client.head().expect("an answer").1, 100);
    client.send("hello");
    let answer = client.answer();
    let seen: Seen = serde_json::from_str(&answer.text()).expect("an echo");
    assert_eq!((seen.body, seen.one("expect")), (5, Some("100-continue")));
}

#[test]
fn answers_are_handed_on_with_their_trailers_and_hints() {
    let web = plain(1);
    let mut client = web.client();
    let answer = client.get_with("/trailers", &[("TE", "trailers")]);
    assert_eq!(answer.text(), "hellohello");
    assert_eq!(
        answer.trailers,
        [("x-checksum".to_owned(), "abc123".to_owned())]
    );
    assert_eq!(answer.one("trailer"), Some("x-checksum"));

    let answer = client.get("/early");
    assert_eq!(answer.status, 200);
    let hints: Vec<u16> = answer.interim.iter().map(|(status, _)| *status).collect();
    assert_eq!(hints, [103]);
    assert_eq!(
        answer.interim[0].1,
        [("link".to_owned(), "</a.css>; rel=preload".to_owned())]
    );

    // Trailers of a request, too.
    web.clear();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    assert_eq!(client.answer().status, 200);
    let seen = web.apps[0].only();
    assert_eq!(seen.body, 5);
    let sums: Vec<&str> = seen
        .trailers
        .iter()
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(sums, ["7"]);
}

#[test]
fn hop_by_hop_fields_of_answers_stay_where_they_are() {
    let web = plain(1);
    let answer = web.client().get("/hop");
    for name in ["x-secret", "keep-alive", "proxy-authenticate"] {
        assert_eq!(answer.one(name), None, "{answer:?}");
    }
    assert_eq!(answer.one("x-open"), Some("yes"));
}

#[test]
fn an_answer_streams_as_it_comes() {
    let web = plain(1);
    let mut client = web.client();
    let begin = Instant::now();
    client.send("GET /sse/5/300 HTTP/1.1\r\nHost: a\r\n\r\n");
    let (_, status, _) = client.head().expect("a head");
    assert_eq!(status, 200);
    assert_eq!(client.chunk().expect("a chunk"), b"data: tick\n\n");
    let first = begin.elapsed();
    for _ in 1..5 {
        assert_eq!(client.chunk().expect("a chunk"), b"data: tick\n\n");
    }
    assert_eq!(client.chunk().expect("the last"), b"");
    let all = begin.elapsed();
    assert!(all >= Duration::from_millis(1200), "{all:?}");
    assert!(
        first < all / 3,
        "the first event came after {first:?} of {all:?}"
    );
}

#[test]
fn a_request_streams_as_it_comes() {
    let web = plain(1);
    let mut client = web.client();
    client
        .send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    // The server has the request while its body is not yet there.
    assert!(came_true(BOUND, || web.apps[0].stats().running == 1));
    client.send("5\r\nworld\r\n0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert_eq!(web.apps[0].only().body, 10);
}

/// Resident memory of the agent may grow by this much over what streams.
const ROOM: u64 = 24 << 20;

#[test]
fn a_slow_reader_holds_the_server_back() {
    let web = plain(1);
    let pid = [web.agent.id()];
    let before = proc::resident(&pid);
    let mut client = web.client();
    client.send("GET /bytes/200000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut worst = 0;
    let mut left = 200_000_000usize;
    client.head().expect("a head");
    while left > 0 {
        let take = left.min(4 << 20);
        client.exactly(take, 0).expect("bytes");
        left -= take;
        worst = worst.max(proc::resident(&pid));
    }
    assert!(worst < before + ROOM, "{before} grew to {worst}");
}

#[test]
fn a_slow_server_holds_the_sender_back() {
    let web = Web::new(1, |_| {
        frontend("[frontend.limits]\nbody_bytes = 1000000000\n") + &pool(1, CHECK)
    });
    let pid = [web.agent.id()];
    let before = proc::resident(&pid);
    let mut client = web.client();
    client.patience(Duration::from_millis(500));
    client.send("POST /noread/3000 HTTP/1.1\r\nHost: a\r\nContent-Length: 400000000\r\n\r\n");
    let piece = vec![b'z'; 1 << 20];
    let mut sent = 0;
    while sent < 400 && client.try_send(&piece).is_ok() {
        sent += 1;
    }
    let after = proc::resident(&pid);
    assert!(sent < 100, "{sent} MiB went where nobody reads");
    assert!(after < before + ROOM, "{before} grew to {after}");
}

#[test]
fn a_cut_answer_is_seen_to_be_cut() {
    let web = Web::new(1, |_| {
        frontend("") + &pool(1, &format!("{NO_CHECK}[pool.observe]\nenabled = false\n"))
    });
    for (path, seen) in [("/cut/1000/10", 10), ("/cutchunk", 5)] {
        let result = web.client().try_request("GET", path, &[], b"");
        assert!(
            matches!(result, Err(Trouble::Cut(n)) if n <= seen)
                || matches!(result, Err(Trouble::Closed))
                || matches!(&result, Ok(a) if a.status == 502),
            "{path}: {result:?}"
        );
        // Over HTTP/2 the stream is reset.
        let said = web.curl(&["--http2-prior-knowledge", &format!("{URL}{path}")]);
        assert!(
            said.code == 92 || said.code == 18 || said.status == 502,
            "{path}: {said:?}"
        );
    }
    assert_eq!(web.client().get("/").status, 200);
}

#[test]
fn answers_that_could_be_read_differently_are_not_handed_on() {
    let web = Web::new(1, |_| {
        frontend("") + &pool(1, &format!("{NO_CHECK}[pool.observe]\nenabled = false\n"))
    });
    let ask = |name: &str| {
        web.client()
            .try_request("GET", &format!("/raw/{name}"), &[], b"")
    };
    for name in [
        "two-lengths",
        "length-and-chunked",
        "bad-length",
        "negative-length",
        "no-http",
        "space-before-colon",
        "nul",
        "bad-status",
        "switching-unasked",
    ] {
        let result = ask(name);
        assert!(
            matches!(&result, Ok(answer) if answer.status == 502),
            "{name}: {result:?}"
        );
    }
    for name in ["bad-chunk", "huge-chunk"] {
        let result = ask(name);
        let cut = matches!(&result, Err(Trouble::Cut(_) | Trouble::Closed));
        assert!(
            cut || matches!(&result, Ok(answer) if answer.status == 502),
            "{name}: {result:?}"
        );
    }
    for (name, status, body) in [
        ("until-close", 200, "until the end"),
        ("old", 200, "until the end"),
        ("no-reason", 200, "hello"),
        ("not-modified", 304, ""),
        ("no-content", 204, ""),
        ("extra-bytes", 200, "hello"),
    ] {
        let answer = ask(name).unwrap_or_else(|trouble| panic!("{name}: {trouble}"));
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, body),
            "{name}"
        );
    }
    // What came after the answer is nobody's.
    let mut client = web.client();
    for _ in 0..20 {
        assert_eq!(client.get("/raw/extra-bytes").text(), "hello");
        assert_eq!(client.get("/status/200").text(), "status 200\n");
    }
}

#[test]
fn connect_is_refused() {
    let web = plain(1);
    for target in ["127.0.0.1:9000", "/"] {
        let answer = web.client().request("CONNECT", target, &[], b"");
        assert!(matches!(answer.status, 400 | 405 | 501), "{answer:?}");
    }
    assert!(web.log().is_empty());
}

#[test]
fn servers_are_told_about_the_client() {
    let web = Web::new(1, |_| {
        frontend(
            "forwarded = true\ntrusted_proxies = [\"127.0.0.9/32\"]\nvia = \"edge\"\nrequest_id = \"X-Request-Id\"\n",
        ) + &pool(1, CHECK)
    });
    let fields = [
        ("Host", "www.example.org:8080"),
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Port", "1"),
        ("Forwarded", "for=203.0.113.7;proto=https"),
        ("X-Request-Id", "given"),
    ];
    // From somebody, whose word counts for nothing.
    let answer = web.client().get_with("/", &fields);
    assert!(answer.all("via").join(",").contains("edge"), "{answer:?}");
    let seen = web.apps[0].only();
    assert_eq!(seen.one("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.one("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.one("x-forwarded-host"), Some("www.example.org:8080"));
    assert_eq!(seen.one("x-forwarded-port"), Some("8080"));
    let forwarded = seen
        .one("forwarded")
        .expect("RFC 7239")
        .to_ascii_lowercase();
    assert!(
        forwarded.contains("for=127.0.0.1") && !forwarded.contains("203.0.113.7"),
        "{forwarded}"
    );
    assert!(forwarded.contains("proto=http"), "{forwarded}");
    assert!(seen.one("via").is_some_and(|via| via.contains("1.1 edge")));
    let id = seen.one("x-request-id").expect("an id");
    assert!(id.len() >= 16 && id != "given", "{id}");
    // From a trusted proxy: believed, and extended.
    web.clear();
    let from = "127.0.0.9".parse().expect("an address");
    let mut proxy = Raw::connect_from(&web.ns, from, HTTP).expect("a connection");
    proxy.get_with("/", &fields);
    let seen = web.apps[0].only();
    assert_eq!(
        seen.all("x-forwarded-for").join(", "),
        "203.0.113.7, 127.0.0.9"
    );
    assert_eq!(seen.one("x-forwarded-proto"), Some("https"));
    let forwarded = seen.all("forwarded").join(", ").to_ascii_lowercase();
    assert!(
        forwarded.contains("203.0.113.7") && forwarded.contains("127.0.0.9"),
        "{forwarded}"
    );
    assert_eq!(seen.one("x-request-id"), Some("given"));
}

#[test]
fn the_proxy_protocol_comes_in() {
    let web = Web::new(1, |_| {
        frontend(
            "proxy_protocol_from = [\"127.0.0.0/29\"]\n[frontend.timeouts]\nhandshake = \"1s\"\n",
        ) + &pool(1, CHECK)
    });
    let seen_by = |head: &[u8]| {
        web.clear();
        let mut client = web.client();
        client.send([head, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        client.try_answer(false).map(|_| web.apps[0].only())
    };
    let client = |seen: &Seen| seen.one("x-forwarded-for").map(str::to_owned);
    let seen = seen_by(b"PROXY TCP4 203.0.113.7 198.51.100.1 5000 443\r\n").expect("an answer");
    assert_eq!(client(&seen).as_deref(), Some("203.0.113.7"));
    assert_eq!(seen.one("x-forwarded-port"), Some("443"));
    let seen = seen_by(b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 443\r\n").expect("an answer");
    assert_eq!(client(&seen).as_deref(), Some("2001:db8::7"));
    let seen = seen_by(b"PROXY UNKNOWN\r\n").expect("an answer");
    assert_eq!(client(&seen).as_deref(), Some("127.0.0.1"));
    let v2 = |command: u8, family: u8, rest: &[u8]| {
        let mut head = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        head.extend_from_slice(&[command, family]);
        head.extend_from_slice(&(rest.len() as u16).to_be_bytes());
        head.extend_from_slice(rest);
        head
    };
    let v4 = [203, 0, 113, 8, 198, 51, 100, 1, 0x13, 0x88, 1, 0xbb];
    let seen = seen_by(&v2(0x21, 0x11, &v4)).expect("an answer");
    assert_eq!(client(&seen).as_deref(), Some("203.0.113.8"));
    // Fields after the addresses are passed over.
    let more = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
    let seen = seen_by(&v2(0x21, 0x11, &more)).expect("an answer");
    assert_eq!(client(&seen).as_deref(), Some("203.0.113.8"));
    let seen = seen_by(&v2(0x20, 0x00, &[])).expect("an answer");
    assert_eq!(client(&seen).as_deref(), Some("127.0.0.1"));
    for bad in [
        b"".to_vec(),
        b"PROXY TCP4 203.0.113.7 198.51.100.1 5000\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::7 198.51.100.1 1 2\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 198.51.100.1 70000 443\r\n".to_vec(),
        v2(0x11, 0x11, &v4),
        v2(0x21, 0x11, &v4[..6]),
        [b"PROXY ".to_vec(), vec![b'x'; 200]].concat(),
    ] {
        let mut client = web.client();
        client.send([&bad[..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        let shut = client.closes(BOUND) && !client.rest().starts_with(b"HTTP/1.1 200");
        assert!(
            shut,
            "{:?}: {:?}",
            String::from_utf8_lossy(&bad),
            client.rest()
        );
    }
    // Nobody else may say who they are: the header is no request.
    let from = "127.0.0.200".parse().expect("an address");
    let mut stranger = Raw::connect_from(&web.ns, from, HTTP).expect("a connection");
    stranger
        .send("PROXY TCP4 203.0.113.7 198.51.100.1 5000 443\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(stranger.closes(BOUND));
    assert!(!stranger.rest().starts_with(b"HTTP/1.1 200"));
    let silent = web.client();
    let mut silent = silent;
    assert!(silent.closes(BOUND), "nothing said within the time for it");
}

#[test]
fn the_proxy_protocol_goes_out() {
    for (version, number) in [("v1", '1'), ("v2", '2')] {
        let (ns, dir) = (Netns::new(), scene_dir());
        let setup = Setup {
            name: "s0".into(),
            listen: vec![app_address(0)],
            options: vec!["--proxy-protocol".into()],
            ..Setup::default()
        };
        let apps = vec![App::start(&ns, setup)];
        let config = frontend("") + &pool(1, &format!("send_proxy = \"{version}\"\n{NO_CHECK}"));
        let web = Web::around(ns, dir, apps, &config);
        let mut clients: Vec<(SocketAddr, Raw)> = [2, 3, 2]
            .map(|host| {
                let from = std::net::Ipv4Addr::new(127, 0, 0, host).into();
                let raw = Raw::connect_from(&web.ns, from, HTTP).expect("a connection");
                (raw.socket().local_addr().expect("an address"), raw)
            })
            .into();
        for _ in 0..3 {
            for (address, client) in &mut clients {
                web.clear();
                assert_eq!(client.get("/").status, 200);
                let seen = web.apps[0].only();
                let wanted = format!("{number} TCP4 {address} {HTTP}");
                assert_eq!(seen.proxied, Some(wanted), "{version}");
            }
        }
    }
}

#[test]
fn expectations_are_met_or_handed_on() {
    let web = plain(1);
    let mut client = web.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let (_, status, _) = client.head().expect("100 before the body");
    assert_eq!(status, 100);
    client.send("hello");
    assert_eq!(client.answer().status, 200);
    assert_eq!(web.apps[0].only().body, 5);
    // One who does not wait is served as well.
    let answer = client.request("POST", "/", &[("Expect", "100-continue")], b"hello");
    assert_eq!(answer.status, 200);
}

#[test]
fn an_answer_before_the_end_of_the_request() {
    let web = Web::new(1, |_| frontend("") + &pool(1, NO_CHECK));
    let mut client = web.client();
    client.send("POST /answerfirst HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "early"));
}

#[test]
fn clients_side_by_side_get_their_own() {
    let web = Arc::new(plain(3));
    let threads: Vec<_> = (0..8)
        .map(|t| {
            let web = Arc::clone(&web);
            thread::spawn(move || {
                let mut client = web.client();
                for i in 0..150 {
                    let nonce = format!("{t}-{i}");
                    let answer = client.get_with("/echo", &[("X-Nonce", &nonce)]);
                    assert_eq!(answer.one("x-nonce"), Some(nonce.as_str()));
                    assert!(answer.text().contains(&format!("\"{nonce}\"")));
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().expect("a client"));
}
