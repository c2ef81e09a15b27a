//! What an idle connection costs. Run by hand, in a release build:
//! `cargo test --release -p balancer-agent --lib downstream::tests::memory -- --ignored --nocapture`

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustls::{ClientConnection, StreamOwned};

use super::secure::{Authority, tls};
use super::server::*;

/// Pages of this process that are in memory, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn many_descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    usize::try_from(hard).unwrap().saturating_sub(200) / 2
}

#[test]
#[ignore = "measures, and needs 20,000 descriptors"]
fn idle_connections() {
    let n = many_descriptors().min(10_000);
    let server = Server::start(|_| {});
    let live = server.live();
    let measure = |what: &str, prepare: &mut dyn FnMut(&mut std::net::TcpStream)| {
        let before = resident();
        let mut streams = Vec::with_capacity(n);
        for _ in 0..n {
            let mut stream = server.connect();
            prepare(&mut stream);
            streams.push(stream);
        }
        until("parked", || live.parked.load(Relaxed) == n);
        let each = (resident().saturating_sub(before)) / n;
        println!("{what}: {n} connections, {each} bytes of resident memory each");
        assert!(each <= 4096, "{what}: {each}");
        drop(streams);
        until("closed", || live.connections.load(Relaxed) == 0);
    };
    measure("never used", &mut |_| {});
    measure("used, idle", &mut |stream| {
        assert_eq!(get(stream, "/x").status, 200);
    });
    measure("half a head", &mut |stream| {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: y")
            .unwrap();
    });
}

#[test]
#[ignore = "measures, and needs 4,000 descriptors"]
fn idle_connections_over_tls() {
    let n = many_descriptors().min(2_000);
    let ca = Authority::new();
    let files = ca.issue("a", &["a.example"]);
    let server = Server::with_tls(tls(vec![files]), |_| {});
    let live = server.live();
    let config = Arc::new(ca.client(&[b"http/1.1"], false));
    let open = || {
        let session =
            ClientConnection::new(Arc::clone(&config), "a.example".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(session, server.connect());
        assert_eq!(get(&mut stream, "/x").status, 200);
        // The client's part of the memory is not what is measured.
        stream.sock
    };
    let warm: Vec<_> = (0..100).map(|_| open()).collect();
    let before = resident();
    let _streams: Vec<_> = (0..n).map(|_| open()).collect();
    until("parked", || live.parked.load(Relaxed) == n + warm.len());
    let each = (resident().saturating_sub(before)) / n;
    println!("TLS: {n} connections, {each} bytes of resident memory each");
}
