//! HTTP/1 over sockets: framing, pipelining, parking, upgrades, times.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::server::*;
use crate::proxy::downstream::Refused;
use crate::proxy::types::Cause;

#[test]
fn requests_follow_each_other_on_a_connection() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    for i in 0..20 {
        let path = format!("/{i}");
        let answer = get(&mut stream, &path);
        assert_eq!(
            (answer.status, answer.text()),
            (200, &*format!("you asked for {path}"))
        );
        assert!(answer.head.to_lowercase().contains("\r\ndate: "));
    }
    let body = bytes(100_000);
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let answer = ask(&mut stream, [head.as_bytes(), &body].concat());
    assert_eq!(answer.body, body);
    assert_eq!(get(&mut stream, "/x").status, 200);
    drop(stream);
    let live = server.live();
    until("closed", || live.connections.load(Relaxed) == 0);
    assert_eq!(live.requests.load(Relaxed), 22);
    assert_eq!(live.in_flight.load(Relaxed), 0);
    assert!(live.bytes_in.load(Relaxed) > 100_000);
    assert!(live.bytes_out.load(Relaxed) > 100_000);
    assert_eq!(live.connections_total.load(Relaxed), 1);
    assert_eq!(live.refused_total(), 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    let mut all = Vec::new();
    for i in 0..100 {
        let path = if i % 10 == 3 {
            "/slow".into()
        } else {
            format!("/{i}")
        };
        all.extend(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").bytes());
        all.extend(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        );
    }
    all.extend(b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n");
    stream.write_all(&all).unwrap();
    for i in 0..100 {
        let text = if i % 10 == 3 {
            "slow".into()
        } else {
            format!("you asked for /{i}")
        };
        assert_eq!(answer(&mut stream).text(), text);
        assert_eq!(answer(&mut stream).text(), "ab");
    }
    let last = answer(&mut stream);
    assert_eq!(last.status, 400);
    assert!(last.closes());
    assert!(at_end(&mut stream));
    assert_eq!(server.live().refused(Refused::Malformed), 1);
}

#[test]
fn what_is_refused_is_answered_told_and_closed() {
    let server = Server::start(|f| {
        f.versions.http2 = false;
        f.limits.body_bytes = Some(10);
        f.limits.headers = 20;
        f.limits.target_bytes = 100;
    });
    let cases: &[(&str, u16)] = &[
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n",
            413,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n",
            413,
        ),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\nworld!\r\n0\r\n\r\n",
            413,
        ),
    ];
    for (request, status) in cases {
        for pause in [false, true] {
            let mut stream = server.connect();
            let answer = match pause {
                false => ask(&mut stream, request),
                true => {
                    // In two pieces, and after another request.
                    assert_eq!(get(&mut stream, "/x").status, 200);
                    let (a, b) = request.as_bytes().split_at(request.len() / 2);
                    stream.write_all(a).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                    let _ = stream.write_all(b);
                    answer(&mut stream)
                }
            };
            assert_eq!(answer.status, *status, "{request:?}");
            assert!(answer.closes(), "{request:?}: {}", answer.head);
            assert!(at_end(&mut stream), "{request:?}");
        }
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100));
    assert_eq!(ask(&mut server.connect(), long).status, 414);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(20));
    assert_eq!(ask(&mut server.connect(), many).status, 431);
    let refused = server.log.refused.lock().unwrap();
    // Bodies that break were handled already.
    assert_eq!(refused.len(), 2 * (cases.len() - 3) + 2);
    assert!(refused.iter().all(|r| r.2 == Cause::Refused));
    assert!(
        refused
            .iter()
            .any(|r| r.0 == 400 && r.1.starts_with(b"GET / HTTP/1.1\nHost"))
    );
    assert_eq!(*server.log.broken_bodies.lock().unwrap(), 6);
}

#[test]
fn nothing_is_answered_to_a_refused_head_before_earlier_requests_are() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    stream
        .write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        .unwrap();
    assert_eq!(answer(&mut stream).text(), "slow");
    assert_eq!(answer(&mut stream).status, 400);
    assert!(at_end(&mut stream));
}

#[test]
fn bodies_split_at_every_place() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    let request = b"POST /trailers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
        5;x=y\r\nhello\r\n00a\r\n0123456789\r\n0\r\nx-sum: 7\r\n\r\n";
    for i in 1..request.len() {
        let (a, b) = request.split_at(i);
        stream.write_all(a).unwrap();
        if i % 3 == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
        let answer = ask(&mut stream, b);
        assert_eq!(answer.status, 200);
        assert!(
            answer.text().contains(r#""x-sum": "7""#),
            "{}",
            answer.text()
        );
    }
    for byte in request.iter().chain(request) {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(answer(&mut stream).status, 200);
    assert_eq!(answer(&mut stream).status, 200);
}

#[test]
fn idle_connections_are_parked_and_go_on() {
    let server = Server::start(|_| {});
    let live = server.live();
    let mut streams: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for round in 0..3 {
        for stream in &mut streams {
            assert_eq!(get(stream, "/echo").status, 200);
        }
        until("parked", || live.parked.load(Relaxed) == streams.len());
        // The beginning of a head alone is no reason to leave.
        if round == 1 {
            for stream in &mut streams {
                stream.write_all(b"GET /half HTTP/1.1\r\nHo").unwrap();
            }
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(live.parked.load(Relaxed), streams.len());
            for stream in &mut streams {
                let answer = ask(stream, "st: a\r\n\r\n");
                assert_eq!(answer.text(), "you asked for /half");
            }
        }
    }
    drop(streams);
    until("closed", || live.connections.load(Relaxed) == 0);
    assert_eq!(live.parked.load(Relaxed), 0);
}

#[test]
fn a_head_that_comes_too_slowly_is_408() {
    let server = Server::start(|f| f.timeouts.headers = Duration::from_secs(1));
    for before in [false, true] {
        let mut stream = server.connect();
        if before {
            assert_eq!(get(&mut stream, "/x").status, 200);
        }
        // A byte now and then does not help: they go on for longer than an answer is
        // waited for.
        let mut sender = stream.try_clone().unwrap();
        let trickle = std::thread::spawn(move || {
            let head = b"GET / HTTP/1.1\r\nHost: a\r\nX: ";
            for byte in head.iter().chain(&[b'y'; 1000]) {
                if sender.write_all(&[*byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        let answer = answer(&mut stream);
        assert_eq!(answer.status, 408);
        assert!(answer.closes());
        drop(stream);
        trickle.join().unwrap();
    }
    let refused = server.log.refused.lock().unwrap();
    assert!(
        refused
            .iter()
            .all(|r| r.0 == 408 && r.2 == Cause::ClientTimeout)
    );
    assert_eq!(server.live().refused(Refused::Timeout), 2);
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    let server = Server::start(|f| f.timeouts.keep_alive = Duration::from_secs(1));
    let mut used = server.connect();
    assert_eq!(get(&mut used, "/x").status, 200);
    let mut unused = server.connect();
    assert!(at_end(&mut used));
    assert!(at_end(&mut unused));
    assert_eq!(server.live().refused_total(), 0);
}

#[test]
fn bodies_that_stand_still_or_trickle_are_408() {
    let server = Server::start(|f| {
        f.timeouts.body_idle = Duration::from_millis(300);
        f.timeouts.body_rate = None;
    });
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc";
    let mut stream = server.connect();
    let answer_ = ask(&mut stream, head);
    assert_eq!(answer_.status, 408);
    assert!(answer_.closes());
    assert!(at_end(&mut stream));
    assert_eq!(*server.log.broken_bodies.lock().unwrap(), 1);
    let server = Server::start(|f| f.timeouts.body_rate = Some(1000));
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let mut sender = stream.try_clone().unwrap();
    let start = Instant::now();
    let trickle = std::thread::spawn(move || {
        while start.elapsed() < Duration::from_secs(15) && sender.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    assert_eq!(answer(&mut stream).status, 408);
    assert!(start.elapsed() > Duration::from_secs(4));
    drop(stream);
    trickle.join().unwrap();
}

#[test]
fn a_slow_handler_is_nobodys_fault() {
    let server = Server::start(|f| {
        f.timeouts.body_idle = Duration::from_secs(1);
        f.timeouts.headers = Duration::from_secs(1);
        f.timeouts.keep_alive = Duration::from_secs(1);
        f.timeouts.send = Duration::from_secs(1);
    });
    assert_eq!(get(&mut server.connect(), "/slower").text(), "slower");
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let server = Server::start(|f| f.timeouts.send = Duration::from_millis(300));
    let mut stream = server.connect();
    stream
        .write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let live = server.live();
    until("cut", || live.send_timeouts.load(Relaxed) == 1);
    until("closed", || live.connections.load(Relaxed) == 0);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert!(all.len() < 64 << 20);
}

#[test]
fn a_client_that_goes_away_ends_its_request() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    stream
        .write_all(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let live = server.live();
    until("begun", || live.in_flight.load(Relaxed) == 1);
    drop(stream);
    until("ended", || live.in_flight.load(Relaxed) == 0);
    assert_eq!(*server.log.dropped.lock().unwrap(), 1);
}

#[test]
fn expect_head_options_and_http_1_0() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    stream
        .write_all(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    assert_eq!(
        read_head(&mut stream).unwrap(),
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    assert_eq!(ask(&mut stream, "hi").text(), "hi");
    stream
        .write_all(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let head = read_head(&mut stream).unwrap();
    assert!(head.to_lowercase().contains("content-length: 16"), "{head}");
    assert_eq!(
        ask(&mut stream, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").status,
        200
    );
    let answer = ask(&mut stream, "GET /x HTTP/1.0\r\n\r\n");
    assert_eq!(answer.status, 200);
    assert!(at_end(&mut stream));
    let mut stream = server.connect();
    let request = "GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert_eq!(ask(&mut stream, request).status, 200);
    assert_eq!(ask(&mut stream, request).status, 200);
}

#[test]
fn early_hints_come_before_the_response_they_belong_to() {
    let server = Server::start(|_| {});
    let mut stream = server.connect();
    let request = "GET /hints HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request.repeat(3).as_bytes()).unwrap();
    for _ in 0..3 {
        let hints = read_head(&mut stream).unwrap();
        assert_eq!(
            hints,
            "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n"
        );
        assert_eq!(answer(&mut stream).text(), "hinted");
    }
}

#[test]
fn upgrades_become_tunnels_with_every_byte() {
    let server = Server::start(|_| {});
    let upgrade =
        "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    for (before, early) in [(0, true), (0, false), (1, true), (2, false)] {
        let mut stream = server.connect();
        for _ in 0..before {
            assert_eq!(get(&mut stream, "/x").status, 200);
        }
        let mut request = upgrade.as_bytes().to_vec();
        if early {
            request.extend(b"not\nHTTP \0 at all");
        }
        stream.write_all(&request).unwrap();
        let head = read_head(&mut stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut place = [0; 17];
        if !early {
            stream.write_all(b"not\nHTTP \0 at all").unwrap();
        }
        stream.read_exact(&mut place).unwrap();
        assert_eq!(&place, b"not\nHTTP \0 at all");
        stream.write_all(b"more").unwrap();
        stream.read_exact(&mut place[..4]).unwrap();
        assert_eq!(&place[..4], b"more");
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(at_end(&mut stream));
    }
    // One that is not granted leaves the connection as it was.
    let mut stream = server.connect();
    for _ in 0..3 {
        let request = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
        let both = format!("{request}GET /y HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(ask(&mut stream, both).text(), "you asked for /x");
        assert_eq!(answer(&mut stream).text(), "you asked for /y");
    }
    assert_eq!(ask(&mut stream, "GET / HTTP/1.1\r\n\r\n").status, 400);
    assert!(at_end(&mut stream));
    let live = server.live();
    until("closed", || live.connections.load(Relaxed) == 0);
}

#[test]
fn a_body_that_nobody_reads_does_not_cost_the_response() {
    let server = Server::start(|_| {});
    for _ in 0..5 {
        let mut stream = server.connect();
        let head = "POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n";
        let mut sender = stream.try_clone().unwrap();
        sender.write_all(head.as_bytes()).unwrap();
        let sending = std::thread::spawn(move || {
            let _ = sender.write_all(&vec![b'x'; 200_000]);
        });
        let answer = answer(&mut stream);
        assert_eq!(answer.text(), "ignored");
        sending.join().unwrap();
    }
}
