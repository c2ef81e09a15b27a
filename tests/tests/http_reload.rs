//! Reloads under load: configuration and certificates a hundred times, and no request
//! fails; what a reload does not mention goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use balancer_tests::http::apps::App;
use balancer_tests::http::certs::{Authority, serial};
use balancer_tests::http::chaos::{Chaos, Mix};
use balancer_tests::http::proc;
use balancer_tests::http::raw::Raw;
use balancer_tests::http::web::{
    CHECK, HTTP, HTTPS, Web, app_address, frontend, pool_with, scene_dir,
};
use balancer_tests::netns::Netns;
use balancer_tests::process::{BOUND, wait_until};

const RELOADS: u64 = 100;

#[test]
fn a_hundred_reloads_with_certificates_fail_no_request() {
    let (ns, dir) = (Netns::new(), scene_dir());
    let authority = Authority::new(dir.path(), "ca");
    let pair = authority.sign("site", &["site.example"], 1);
    let place = dir.path().to_owned();
    let config = |round: u64| {
        let secure = format!(
            "[[frontend]]\nname = \"secure\"\nmode = \"http\"\naddress = \"{HTTPS}\"\npool = \"app\"\n\
             [frontend.tls]\n[[frontend.tls.certificate]]\ncertificate = {:?}\nkey = {:?}\n",
            pair.certificate, pair.key
        );
        let log = format!("[frontend.log]\nfile = {:?}\n", place.join("access.log"));
        // Something changes each time: weights, a backend, a header.
        let weight = |i: usize| format!("weight = {}\n", 1 + (round + i as u64) % 3);
        let apps = 2 + (round % 2) as usize;
        secure + &frontend(&format!("via = \"v{round}\"\n{log}")) + &pool_with(apps, CHECK, weight)
    };
    let apps = (0..3)
        .map(|i| App::at(&ns, &format!("s{i}"), app_address(i)))
        .collect();
    let first = config(0);
    let client = authority.client(&["http/1.1"]);
    let web = Web::around(ns, dir, apps, &first);
    let (h1, h2) = (
        Chaos::start(
            &web.ns,
            HTTP,
            Mix {
                post_every: 5,
                ..Mix::default()
            },
        ),
        Chaos::start(
            &web.ns,
            HTTP,
            Mix {
                connections: 4,
                http2: Some(4),
                ..Mix::default()
            },
        ),
    );
    let short = Chaos::start(
        &web.ns,
        HTTP,
        Mix {
            connections: 4,
            per_connection: 1,
            ..Mix::default()
        },
    );
    // Handshakes all the while; each certificate must be one of the last two.
    let current = Arc::new(AtomicU64::new(1));
    let stop = Arc::new(AtomicBool::new(false));
    let shaking = {
        let (ns, client) = (web.ns.clone(), Arc::clone(&client));
        let (current, stop) = (Arc::clone(&current), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let before = current.load(Ordering::SeqCst);
                let mut raw = Raw::tls(&ns, HTTPS, &client, "site.example").expect("TLS");
                let number = serial(raw.certificate.as_ref().expect("a certificate"));
                assert_eq!(raw.get("/").status, 200);
                let after = current.load(Ordering::SeqCst);
                let number = number.expect("a number");
                assert!(
                    (before..=after + 1).contains(&number),
                    "{number} while {before} to {after}"
                );
                count += 1;
            }
            count
        })
    };
    h1.wait_for(200);
    let open_before = proc::files(web.agent.id());
    for round in 1..=RELOADS {
        authority.sign("site", &["site.example"], round + 1);
        web.agent.reconfigure(&config(round));
        current.store(round + 1, Ordering::SeqCst);
    }
    h1.wait_for(200);
    stop.store(true, Ordering::Relaxed);
    let handshakes: u64 = shaking.join().expect("the handshakes");
    let tallies = [h1.stop(), h2.stop(), short.stop()];
    let good: u64 = tallies.iter().map(|tally| tally.good).sum();
    println!("{RELOADS} reloads, {good} requests and {handshakes} handshakes meanwhile");
    for tally in &tallies {
        assert_eq!((tally.failed(), tally.mixed), (0, 0), "{tally:#?}");
        assert!(
            tally.posts.is_empty() && tally.lost_posts.is_empty(),
            "{tally:#?}"
        );
        assert!(tally.good > 100, "{tally:#?}");
    }
    assert!(handshakes > 20);
    // Nothing of the hundred old ones is left open.
    wait_until("files to be closed", BOUND, || {
        proc::files(web.agent.id()) <= open_before + 20
    });
}

#[test]
fn a_frontend_comes_and_goes_while_the_other_serves() {
    let second: SocketAddr = "127.0.0.1:8081".parse().expect("an address");
    let both = |more: bool| {
        let mut text = frontend("");
        if more {
            text += &frontend("")
                .replace("\"web\"", "\"second\"")
                .replace("8080", "8081");
        }
        text + &pool_with(2, CHECK, |_| String::new())
    };
    let web = Web::new(2, |_| both(false));
    let load = Chaos::start(&web.ns, HTTP, Mix::default());
    for _ in 0..5 {
        web.agent.reconfigure(&both(true));
        let mut slow = Raw::connect(&web.ns, second);
        slow.send("GET /delay/300 HTTP/1.1\r\nHost: a\r\n\r\n");
        wait_until("it to arrive", BOUND, || {
            web.apps
                .iter()
                .any(|app| app.log().iter().any(|seen| seen.target == "/delay/300"))
        });
        web.clear();
        web.agent.reconfigure(&both(false));
        assert_eq!(slow.answer().status, 200, "what was under way is finished");
        wait_until("the address to be free", BOUND, || {
            balancer_tests::http::raw::tcp(&web.ns, None, second).is_err()
        });
    }
    let tally = load.stop();
    assert_eq!((tally.failed(), tally.mixed), (0, 0), "{tally:#?}");
}

#[test]
fn a_file_with_a_mistake_or_an_address_that_is_taken_changes_nothing() {
    let good = frontend("") + &pool_with(2, CHECK, |_| String::new());
    let web = Web::new(2, |_| good.clone());
    let taken = web
        .ns
        .enter(|| std::net::TcpListener::bind("127.0.0.1:8082"))
        .expect("bind");
    let load = Chaos::start(&web.ns, HTTP, Mix::default());
    load.wait_for(50);
    for (bad, names) in [
        (
            good.replace("mode = \"http\"", "mode = \"http\"\nnonsense = 1"),
            "nonsense",
        ),
        (
            good.clone()
                + &frontend("")
                    .replace("\"web\"", "\"x\"")
                    .replace("8080", "8082"),
            "8082",
        ),
        (
            good.replace("pool = \"app\"", "pool = \"nobody\""),
            "nobody",
        ),
    ] {
        web.agent.write_config(&bad);
        let said = web.agent.command(&["reload"]);
        assert_ne!(said.code, Some(0), "{said:?}");
        assert!(said.err.contains(names), "{said:?}");
        load.wait_for(50);
    }
    drop(taken);
    web.agent.reconfigure(&good);
    let tally = load.stop();
    assert_eq!((tally.failed(), tally.mixed), (0, 0), "{tally:#?}");
}

#[test]
fn a_stop_finishes_what_is_under_way() {
    let mut web = Web::new(1, |_| {
        "[http]\ndrain_timeout = \"5s\"\n".to_owned()
            + &frontend("")
            + &pool_with(1, CHECK, |_| String::new())
    });
    let mut idle = web.client();
    assert_eq!(idle.get("/").status, 200);
    let mut slow: Vec<Raw> = (0..5).map(|_| web.client()).collect();
    for client in &mut slow {
        client.send("GET /delay/700 HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    wait_until("them to arrive", BOUND, || web.apps[0].stats().running == 5);
    let begin = std::time::Instant::now();
    web.agent.signal(nix::sys::signal::Signal::SIGTERM);
    for client in &mut slow {
        assert_eq!(client.answer().status, 200);
    }
    assert!(idle.closes(BOUND));
    wait_until("the agent to end", BOUND, || !web.agent.running());
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}
