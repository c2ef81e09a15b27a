//! Limits on connections and requests, and PROXY headers.

use std::io::{Read, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::server::*;
use crate::model::http::HttpFrontend;
use crate::proxy::downstream::Refused;
use crate::proxy::types::Cause;

#[test]
fn too_many_connections_are_told_503() {
    let mut front = frontend(free());
    front.limits.connections = 2;
    let server = Server::run(http(vec![front]));
    let live = server.live();
    let mut two = [server.connect(), server.connect()];
    for stream in &mut two {
        assert_eq!(get(stream, "/x").status, 200);
    }
    for _ in 0..3 {
        let mut third = server.connect();
        let answer = get(&mut third, "/x");
        assert_eq!(answer.status, 503);
        assert!(answer.head.contains("\r\nRetry-After: 1\r\n"));
        assert!(at_end(&mut third));
    }
    assert_eq!(live.refused(Refused::Connections), 3);
    assert_eq!(live.connections_most.load(Relaxed), 2);
    drop(two);
    until("closed", || live.connections.load(Relaxed) == 0);
    assert_eq!(get(&mut server.connect(), "/x").status, 200);
}

#[test]
fn the_limit_over_all_frontends_holds_and_follows_a_reload() {
    let mut one = frontend(free());
    one.name = "one".into();
    let other = frontend(free());
    let address = other.address;
    let mut all = http(vec![one, other]);
    all.max_connections = 1;
    let mut server = Server::run(all);
    let mut first = server.connect();
    assert_eq!(get(&mut first, "/x").status, 200);
    assert_eq!(get(&mut connect(address), "/x").status, 503);
    server.reload(|http| http.max_connections = 2);
    assert_eq!(get(&mut connect(address), "/x").status, 200);
}

#[test]
fn one_source_does_not_get_all_connections() {
    let server = Server::start(|f| f.limits.connections_per_source = Some(3));
    let mut three: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for stream in &mut three {
        assert_eq!(get(stream, "/x").status, 200);
    }
    assert_eq!(get(&mut server.connect(), "/x").status, 503);
    let live = server.live();
    assert_eq!(live.refused(Refused::SourceConnections), 1);
    drop(three.pop());
    until("closed", || live.connections.load(Relaxed) == 2);
    assert_eq!(get(&mut server.connect(), "/x").status, 200);
}

#[test]
fn one_source_does_not_get_all_requests() {
    let server = Server::start(|f| f.limits.requests_per_source = Some(5));
    let mut stream = server.connect();
    for _ in 0..5 {
        assert_eq!(get(&mut stream, "/x").status, 200);
    }
    let mut refused = 0;
    for _ in 0..5 {
        let answer = get(&mut stream, "/x");
        if answer.status == 429 {
            assert!(answer.closes());
            assert!(answer.head.contains("\r\nRetry-After: "));
            refused += 1;
            stream = server.connect();
        }
    }
    // The machine may be slow; two were certainly too many.
    assert!(refused > 0);
    let live = server.live();
    assert_eq!(live.refused(Refused::SourceRequests), refused);
    let log = server.log.refused.lock().unwrap();
    assert!(log.iter().all(|r| r.0 == 429 && r.2 == Cause::Overload));
    assert!(log[0].1.starts_with(b"GET /x HTTP/1.1\r\n"));
}

#[test]
fn a_connection_has_so_many_requests() {
    let server = Server::start(|f| f.limits.requests_per_connection = Some(3));
    let mut stream = server.connect();
    assert!(!get(&mut stream, "/x").closes());
    assert!(!get(&mut stream, "/x").closes());
    assert!(get(&mut stream, "/x").closes());
    assert!(at_end(&mut stream));
}

#[test]
fn a_proxy_header_names_the_client() {
    let start = |change: &dyn Fn(&mut HttpFrontend)| {
        Server::start(|f| {
            f.proxy_protocol_from = vec!["127.0.0.0/8".parse().unwrap()];
            change(f);
        })
    };
    let server = start(&|_| {});
    let v1 = "PROXY TCP4 192.0.2.7 192.0.2.8 1234 80\r\n";
    let mut stream = server.connect();
    stream.write_all(v1.as_bytes()).unwrap();
    let who = get(&mut stream, "/who");
    assert_eq!(who.text(), "192.0.2.7:1234 192.0.2.8:80 127.0.0.1 None");
    let mut stream = server.connect();
    stream.write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").unwrap();
    let who = get(&mut stream, "/who");
    let own = stream.local_addr().unwrap();
    assert!(who.text().starts_with(&format!("{own} {}", server.address)));
    let is_refused = |server: &Server, bytes: &str| {
        let mut stream = server.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    };
    // None, a wrong one, and one that never ends.
    is_refused(&server, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    is_refused(&server, "PROXY x\r\n");
    let live = server.live();
    until("counted", || live.refused(Refused::ProxyHeader) == 2);
    let server = start(&|f| f.timeouts.handshake = Duration::from_millis(300));
    is_refused(&server, "PROXY TCP4");
    let live = server.live();
    until("counted", || live.refused(Refused::ProxyHeader) == 1);
}

#[test]
fn a_proxy_header_is_not_taken_from_everybody() {
    let server = Server::start(|f| f.proxy_protocol_from = vec!["192.0.2.0/24".parse().unwrap()]);
    let mut stream = server.connect();
    let _ = stream.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 80\r\nGET / HTTP/1.1\r\n\r\n");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    let live = server.live();
    until("counted", || live.refused(Refused::ProxyHeader) == 1);
}

#[test]
fn sources_behind_a_proxy_are_limited_each() {
    let server = Server::start(|f| {
        f.proxy_protocol_from = vec!["127.0.0.1/32".parse().unwrap()];
        f.limits.connections_per_source = Some(1);
    });
    let open = |client: &str| {
        let mut stream = server.connect();
        write!(stream, "PROXY TCP4 {client} 192.0.2.8 1234 80\r\n").unwrap();
        let answer = get(&mut stream, "/x");
        (answer.status, stream)
    };
    let a = open("192.0.2.1");
    let b = open("192.0.2.2");
    let c = open("192.0.2.1");
    assert_eq!((a.0, b.0, c.0), (200, 200, 503));
    let live = server.live();
    until("counted", || live.refused(Refused::SourceConnections) == 1);
}
