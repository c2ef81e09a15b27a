//! Abuse, and more load than there is room for: bounded, answered, and no burden to
//! others.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use balancer_tests::http::frames::{self, END_HEADERS, END_STREAM, Framed, kind};
use balancer_tests::http::proc;
use balancer_tests::http::raw::{Raw, Trouble};
use balancer_tests::http::web::{CHECK, HTTP, Web, frontend, pool};
use balancer_tests::process::{BOUND, wait_until};

fn limited(keys: &str) -> Web {
    Web::new(1, |_| frontend(keys) + &pool(1, CHECK))
}

fn from(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, host))
}

#[test]
fn a_head_has_to_come_in_time() {
    let web = limited("[frontend.timeouts]\nheaders = \"600ms\"\nkeep_alive = \"5s\"\n");
    let begin = Instant::now();
    let mut slow = web.client();
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n");
    // A byte now and then does not help.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(100));
        slow.send("X-A: b\r\n");
    }
    match slow.try_answer(false) {
        Ok(answer) => assert_eq!(answer.status, 408, "{answer:?}"),
        Err(trouble) => assert_eq!(trouble, Trouble::Closed),
    }
    assert!(slow.closes(BOUND));
    let took = begin.elapsed();
    assert!(
        (Duration::from_millis(500)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    assert!(web.log().is_empty());
    // The same on a connection that has had a request before.
    let mut kept = web.client();
    assert_eq!(kept.get("/").status, 200);
    kept.send("GET / HT");
    let begin = Instant::now();
    assert!(kept.closes(BOUND));
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    let web = limited("[frontend.timeouts]\nkeep_alive = \"500ms\"\nheaders = \"500ms\"\n");
    let mut client = web.client();
    assert_eq!(client.get("/").status, 200);
    let begin = Instant::now();
    assert!(client.closes(BOUND));
    let took = begin.elapsed();
    assert!(
        (Duration::from_millis(400)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    assert!(client.rest().is_empty(), "closed in silence");
    // One that never says anything.
    let mut silent = web.client();
    assert!(silent.closes(BOUND));
}

#[test]
fn a_body_has_to_keep_coming() {
    let web = limited("[frontend.timeouts]\nbody_idle = \"500ms\"\n");
    let mut stopped = web.client();
    stopped.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello");
    let begin = Instant::now();
    if let Ok(answer) = stopped.try_answer(false) {
        assert_eq!(answer.status, 408, "{answer:?}");
    }
    assert!(stopped.closes(BOUND));
    assert!(begin.elapsed() < Duration::from_secs(4));
    wait_until("the server to notice", BOUND, || {
        web.apps[0].stats().running == 0
    });
    assert!(web.apps[0].log().iter().all(|seen| seen.cut));
}

#[test]
fn a_body_that_trickles_is_cut_off() {
    let web = limited("[frontend.timeouts]\nbody_rate = 1000\nbody_idle = \"20s\"\n");
    let mut slow = web.client();
    slow.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
    let begin = Instant::now();
    let mut quick = web.client();
    while begin.elapsed() < Duration::from_secs(20) {
        if slow.try_send(b"xx").is_err() || slow.closes(Duration::from_millis(100)) {
            break;
        }
        assert_eq!(quick.get("/").status, 200);
    }
    let took = begin.elapsed();
    // Windows are of five seconds.
    assert!(
        (Duration::from_secs(4)..Duration::from_secs(14)).contains(&took),
        "{took:?}"
    );
}

#[test]
fn a_body_has_a_largest_size() {
    let web = limited("[frontend.limits]\nbody_bytes = 1000\n");
    let mut client = web.client();
    assert_eq!(client.request("POST", "/", &[], &[b'x'; 1000]).status, 200);
    assert_eq!(client.request("POST", "/", &[], &[b'x'; 1001]).status, 413);
    assert!(client.closes(BOUND));
    let mut client = web.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        client.send(format!("200\r\n{}\r\n", "x".repeat(512)));
    }
    match client.try_answer(false) {
        Ok(answer) => assert_eq!(answer.status, 413),
        Err(trouble) => assert_eq!(trouble, Trouble::Closed),
    }
    let said = web.curl(&[
        "--http2-prior-knowledge",
        "--data-binary",
        &"x".repeat(2000),
        "http://127.0.0.1:8080/",
    ]);
    assert!(said.status == 413 || said.code == 92, "{said:?}");
    assert!(
        web.log().iter().all(|seen| seen.body <= 1000 || seen.cut),
        "{:?}",
        web.log()
    );
}

#[test]
fn a_source_has_its_share_of_connections() {
    let web = limited("[frontend.limits]\nconnections_per_source = 3\n");
    let mut held: Vec<Raw> = (0..3)
        .map(|_| {
            let mut raw = Raw::connect_from(&web.ns, from(2), HTTP).expect("a connection");
            assert_eq!(raw.get("/").status, 200);
            raw
        })
        .collect();
    let mut fourth = Raw::connect_from(&web.ns, from(2), HTTP).expect("a connection");
    match fourth.try_request("GET", "/", &[], b"") {
        Ok(answer) => assert!(matches!(answer.status, 429 | 503), "{answer:?}"),
        Err(trouble) => assert_eq!(trouble, Trouble::Closed),
    }
    // Others are not concerned, nor are those who are in.
    let mut other = Raw::connect_from(&web.ns, from(3), HTTP).expect("a connection");
    assert_eq!(other.get("/").status, 200);
    assert!(held.iter_mut().all(|raw| raw.get("/").status == 200));
    held.pop();
    wait_until("a place to be free", BOUND, || {
        let mut again = Raw::connect_from(&web.ns, from(2), HTTP).expect("a connection");
        matches!(again.try_request("GET", "/", &[], b""), Ok(answer) if answer.status == 200)
    });
}

#[test]
fn a_source_has_its_share_of_requests() {
    let web = limited("[frontend.limits]\nrequests_per_source = 20\n");
    let burst = |host: u8, count: usize| {
        let mut statuses = std::collections::BTreeMap::new();
        for _ in 0..count {
            let mut raw = Raw::connect_from(&web.ns, from(host), HTTP).expect("a connection");
            let answer = raw.get("/");
            if answer.status != 200 {
                assert!(answer.one("retry-after").is_some(), "{answer:?}");
            }
            *statuses.entry(answer.status).or_insert(0) += 1;
        }
        statuses
    };
    let begin = Instant::now();
    let statuses = burst(2, 80);
    let good = statuses.get(&200).copied().unwrap_or(0) as u128;
    let most = 20 + 20 * begin.elapsed().as_millis() / 1000 + 2;
    assert!(
        (20..=most).contains(&good),
        "{statuses:?} in {:?}",
        begin.elapsed()
    );
    assert!(statuses.contains_key(&429), "{statuses:?}");
    assert_eq!(
        burst(3, 10).get(&200),
        Some(&10),
        "others have their own share"
    );
    wait_until("the share to grow again", BOUND, || {
        burst(2, 1).contains_key(&200)
    });
}

#[test]
fn a_connection_ends_after_its_requests() {
    let web = limited("[frontend.limits]\nrequests_per_connection = 3\n");
    let mut client = web.client();
    for n in 1..=3 {
        let answer = client.get("/");
        let close = answer
            .one("connection")
            .is_some_and(|c| c.eq_ignore_ascii_case("close"));
        assert_eq!((answer.status, close), (200, n == 3));
    }
    assert!(client.closes(BOUND));
}

#[test]
fn too_many_connections_are_refused_early() {
    let web = limited("[frontend.limits]\nconnections = 10\n");
    let mut held: Vec<Raw> = (0..10)
        .map(|_| {
            let mut raw = web.client();
            assert_eq!(raw.get("/").status, 200);
            raw
        })
        .collect();
    let begin = Instant::now();
    let mut refused = 0;
    for _ in 0..10 {
        let mut more = web.client();
        match more.try_request("GET", "/", &[], b"") {
            Ok(answer) if answer.status == 503 => {
                assert!(answer.one("retry-after").is_some(), "{answer:?}");
                refused += 1;
            }
            Ok(answer) => assert_eq!(answer.status, 200),
            Err(trouble) => panic!("refused without a word: {trouble}"),
        }
    }
    assert!(refused >= 8, "{refused} of 10");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(
        held.iter_mut()
            .all(|raw| raw.try_request("GET", "/", &[], b"").is_ok())
    );
    drop(held);
    wait_until(
        "places to be free",
        BOUND,
        || matches!(web.client().try_request("GET", "/", &[], b""), Ok(answer) if answer.status == 200),
    );
}

/// Requests of another client meanwhile, and the longest that one took.
fn others_are_served(web: &Web, client: &mut Raw) -> Duration {
    let begin = Instant::now();
    assert_eq!(client.get("/").status, 200);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(web.client().get("/").status, 200);
    took
}

#[test]
fn streams_that_are_reset_at_once_end_the_connection() {
    let web = limited("[frontend.limits]\nh2_resets = 100\n");
    let mut other = web.client();
    let before = proc::resident(&[web.agent.id()]);
    let mut flood = Framed::connect(&web.ns, HTTP);
    let block = frames::get("/delay/50");
    let mut sent = 0u32;
    for n in 0..20_000u32 {
        let stream = 1 + 2 * n;
        let open = flood.send(kind::HEADERS, END_HEADERS | END_STREAM, stream, &block)
            && flood.send(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes());
        if !open {
            break;
        }
        sent = n;
        if n % 500 == 0 {
            others_are_served(&web, &mut other);
        }
    }
    let code = flood
        .ended(Duration::from_secs(5))
        .expect("the connection to end");
    // ENHANCE_YOUR_CALM, or cut off.
    assert!(matches!(code, Some(11) | None), "{code:?} after {sent}");
    others_are_served(&web, &mut other);
    let after = proc::resident(&[web.agent.id()]);
    assert!(after < before + (32 << 20), "{before} grew to {after}");
    // What was reset was not all handed on.
    let seen = web.apps[0].stats().requests;
    assert!(seen < 5000, "{seen} requests reached the server");
}

#[test]
fn endless_continuations_end_the_connection() {
    let web = limited("");
    let mut other = web.client();
    let before = proc::resident(&[web.agent.id()]);
    for with_fields in [true, false] {
        let mut flood = Framed::connect(&web.ns, HTTP);
        flood.send(kind::HEADERS, END_STREAM, 1, &frames::get("/"));
        let field = match with_fields {
            true => frames::literal("x-padding", &"p".repeat(100)).repeat(100),
            // Empty frames cost as much to take.
            false => Vec::new(),
        };
        let mut frames = 0;
        while frames < 200_000 && flood.send(kind::CONTINUATION, 0, 1, &field) {
            frames += 1;
            if frames % 5000 == 0 {
                others_are_served(&web, &mut other);
            }
        }
        let code = flood
            .ended(Duration::from_secs(5))
            .expect("the connection to end");
        assert!(code != Some(0), "after {frames}");
        let after = proc::resident(&[web.agent.id()]);
        assert!(after < before + (32 << 20), "{before} grew to {after}");
    }
    others_are_served(&web, &mut other);
    assert!(web.log().iter().all(|seen| seen.version == "HTTP/1.1"));
}

#[test]
fn floods_of_small_frames_grow_nothing() {
    let web = limited("");
    let mut other = web.client();
    let before = proc::resident(&[web.agent.id()]);
    for (kind, payload) in [
        (kind::PING, vec![0; 8]),
        (kind::SETTINGS, vec![0, 3, 0, 0, 0, 100]),
    ] {
        // The answers are not read.
        let mut flood = Framed::connect(&web.ns, HTTP);
        for n in 0..50_000 {
            if !flood.send(kind, 0, 0, &payload) {
                break;
            }
            if n % 10_000 == 0 {
                others_are_served(&web, &mut other);
            }
        }
        let after = proc::resident(&[web.agent.id()]);
        assert!(after < before + (32 << 20), "{before} grew to {after}");
    }
    others_are_served(&web, &mut other);
}

#[test]
fn headers_of_http2_are_limited_alike() {
    let web = limited("");
    let mut client = Framed::connect(&web.ns, HTTP);
    let mut block = frames::get("/");
    for i in 0..150 {
        block.extend(frames::literal(&format!("x-{i}"), "v"));
    }
    client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block);
    let mut refused = false;
    while let Some(frame) = client.next(Duration::from_secs(3)) {
        if frame.kind == kind::HEADERS {
            // :status 431, 400, or any literal of them.
            refused = true;
            break;
        }
        if matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY) {
            refused = true;
            break;
        }
    }
    assert!(refused);
    assert!(web.log().is_empty(), "{:?}", web.log());
    // Names that HTTP/1 could read differently never get there.
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("x-a\r\nx-b", "1"),
        ("x-a", "1\r\nx-b: 2"),
        ("x a", "1"),
        ("X-Upper", "1"),
        (":path", "/other"),
        ("content-length", "5"),
    ] {
        web.clear();
        let mut client = Framed::connect(&web.ns, HTTP);
        let block = [frames::get("/"), frames::literal(name, value)].concat();
        client.send(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block);
        let mut answered = false;
        while let Some(frame) = client.next(Duration::from_secs(3)) {
            if matches!(frame.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY) {
                answered = true;
                break;
            }
        }
        assert!(answered, "{name:?}");
        assert!(
            web.log().is_empty(),
            "{name:?} reached the server: {:?}",
            web.log()
        );
    }
}

#[test]
fn slow_clients_cost_others_nothing() {
    let web = limited("[frontend.timeouts]\nheaders = \"30s\"\nbody_idle = \"30s\"\n");
    let slow: Vec<Raw> = (0..300)
        .map(|i| {
            let mut raw = web.client();
            match i % 3 {
                0 => raw.send("GET / HTTP/1.1\r\nHo"),
                1 => raw.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx"),
                _ => raw.send("GET /bytes/10000000 HTTP/1.1\r\nHost: a\r\n\r\n"),
            }
            raw
        })
        .collect();
    let mut client = web.client();
    let mut times: Vec<Duration> = (0..300)
        .map(|_| others_are_served(&web, &mut client))
        .collect();
    times.sort_unstable();
    assert!(times[150] < Duration::from_millis(100), "{:?}", times[150]);
    drop(slow);
}
