//! Addresses, reload and drain.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::server::*;
use crate::proxy::downstream::Listeners;

#[test]
fn an_address_that_is_taken_is_told() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let error = Listeners::prepare(&http(vec![frontend(address)]), vec![None], None)
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("frontend \"web\": can't listen on {address}: ")),
        "{text}"
    );
    assert!(text.contains("another program listens there"), "{text}");
    let nowhere = "192.0.2.1:80".parse().unwrap();
    let error = Listeners::prepare(&http(vec![frontend(nowhere)]), vec![None], None)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("no interface has this address"),
        "{error}"
    );
}

#[test]
fn a_failed_prepare_leaves_no_sockets() {
    let good = frontend(free());
    let mut bad = frontend("192.0.2.1:80".parse().unwrap());
    bad.name = "bad".into();
    assert!(Listeners::prepare(&http(vec![good.clone(), bad]), vec![None, None], None).is_err());
    assert!(TcpStream::connect(good.address).is_err());
}

#[test]
fn several_threads_share_the_connections() {
    let mut all = http(vec![frontend(free())]);
    all.threads = 3;
    let server = Server::run(all);
    let mut streams: Vec<_> = (0..60).map(|_| server.connect()).collect();
    for stream in &mut streams {
        assert_eq!(get(stream, "/x").status, 200);
    }
    assert_eq!(server.live().connections.load(Relaxed), 60);
}

#[test]
fn a_reload_keeps_connections_and_they_take_the_new_settings() {
    let mut server = Server::start(|_| {});
    let mut stream = server.connect();
    assert_eq!(get(&mut stream, "/x").status, 200);
    let before = server.live();
    server.reload(|http| {
        let mut front = (*http.frontends[0]).clone();
        front.limits.target_bytes = 5;
        http.frontends = vec![Arc::new(front)];
    });
    assert_eq!(get(&mut stream, "/abcd").status, 200);
    assert_eq!(get(&mut stream, "/abcde").status, 414);
    assert!(Arc::ptr_eq(&before, &server.live()));
    assert_eq!(before.connections_total.load(Relaxed), 1);
}

#[test]
fn a_removed_frontend_drains_and_a_new_one_serves() {
    let mut server = Server::start(|_| {});
    let old = server.address;
    let mut idle = server.connect();
    assert_eq!(get(&mut idle, "/x").status, 200);
    let mut busy = server.connect();
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let live = server.live();
    until("begun", || live.in_flight.load(Relaxed) == 1);
    let new = free();
    server.reload(|http| http.frontends = vec![Arc::new(frontend(new))]);
    assert_eq!(get(&mut connect(new), "/x").status, 200);
    let last = answer(&mut busy);
    assert_eq!(last.text(), "slow");
    assert!(last.closes());
    assert!(at_end(&mut busy));
    assert!(at_end(&mut idle));
    until("not listened on", || TcpStream::connect(old).is_err());
    until("closed", || live.connections.load(Relaxed) == 0);
}

#[test]
fn a_renamed_frontend_takes_its_address_over() {
    let mut server = Server::start(|_| {});
    for i in 0..5 {
        server.reload(|http| {
            let mut front = (*http.frontends[0]).clone();
            front.name = format!("web{i}").into();
            http.frontends = vec![Arc::new(front)];
        });
        // Both listen for a moment, and both answer.
        for _ in 0..10 {
            assert_eq!(get(&mut server.connect(), "/x").status, 200);
        }
    }
}

#[test]
fn a_drain_finishes_what_runs_and_resets_nobody() {
    let mut server = Server::start(|_| {});
    let address = server.address;
    let mut slow: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for stream in &mut slow {
        stream
            .write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
    }
    let live = server.live();
    until("begun", || live.in_flight.load(Relaxed) == 10);
    // Others connect all the time: each is answered in full, or not accepted.
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut answered = 0;
                while !stop.load(Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(address) else {
                        break;
                    };
                    if stream
                        .write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
                        .is_err()
                    {
                        break;
                    }
                    match try_answer(&mut stream) {
                        Ok(answer) => {
                            assert_eq!(answer.status, 200);
                            answered += 1;
                        }
                        // The kernel had it, but nobody accepted it any more.
                        Err(_) => break,
                    }
                }
                answered
            })
        })
        .collect();
    until("traffic", || live.requests.load(Relaxed) > 50);
    server.listeners.drain();
    for stream in &mut slow {
        let last = answer(stream);
        assert_eq!(last.text(), "slow");
        assert!(last.closes());
        assert!(at_end(stream));
    }
    server.join();
    stop.store(true, Relaxed);
    for client in clients {
        assert!(client.join().unwrap() > 0);
    }
    assert_eq!(server.listeners.connections(), 0);
    assert_eq!(live.drain_cut.load(Relaxed), 0);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_drain_has_an_end() {
    let mut all = http(vec![frontend(free())]);
    all.drain_timeout = Duration::from_millis(500);
    let mut server = Server::run(all);
    let mut never = server.connect();
    never
        .write_all(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut tunnel = server.connect();
    tunnel
        .write_all(
            b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        )
        .unwrap();
    read_head(&mut tunnel).unwrap();
    let live = server.live();
    until("begun", || live.in_flight.load(Relaxed) == 1);
    let start = Instant::now();
    server.listeners.drain();
    server.join();
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(live.drain_cut.load(Relaxed), 2);
    assert_eq!(server.listeners.connections(), 0);
    assert!(matches!(tunnel.read(&mut [0]), Ok(0) | Err(_)));
}
