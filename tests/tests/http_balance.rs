//! Which server gets a request, and what happens when it does not answer as it should.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use balancer_tests::http::app::NONCE;
use balancer_tests::http::apps::{self, App};
use balancer_tests::http::raw::{Answer, Raw};
use balancer_tests::http::web::{
    CHECK, HTTP, NO_CHECK, Web, app_address, frontend, pool, pool_with,
};
use balancer_tests::process::{BOUND, wait_until};

/// Nothing is learned from real requests.
const NOT_OBSERVED: &str = "[pool.observe]\nenabled = false\n";

fn balanced(apps: usize, keys: &str, weights: &[u32]) -> Web {
    let weight = |i: usize| {
        weights
            .get(i)
            .map_or(String::new(), |w| format!("weight = {w}\n"))
    };
    Web::new(apps, |_| frontend("") + &pool_with(apps, keys, weight))
}

/// Who answers so many requests, over a few connections in turn.
fn spread(web: &Web, requests: usize) -> BTreeMap<String, usize> {
    let mut clients: Vec<Raw> = (0..4).map(|_| web.client()).collect();
    let mut counts = BTreeMap::new();
    for i in 0..requests {
        let server = clients[i % 4].get("/").server().to_owned();
        *counts.entry(server).or_default() += 1;
    }
    counts
}

fn counts(wanted: &[usize]) -> BTreeMap<String, usize> {
    let all = wanted.iter().enumerate();
    all.filter(|(_, n)| **n > 0)
        .map(|(i, n)| (format!("s{i}"), *n))
        .collect()
}

/// So many requests at once; their answers in the order of beginning.
fn at_once(web: &Web, requests: usize, path: &str) -> Vec<(Answer, Duration)> {
    let mut clients: Vec<Raw> = (0..requests).map(|_| web.client()).collect();
    let begin = Instant::now();
    for client in &mut clients {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    let threads: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                let answer = client.answer();
                (answer, begin.elapsed())
            })
        })
        .collect();
    threads
        .into_iter()
        .map(|thread| thread.join().expect("an answer"))
        .collect()
}

#[test]
fn round_robin_is_exact_over_all_connections_and_threads() {
    let web = balanced(3, CHECK, &[]);
    assert_eq!(spread(&web, 300), counts(&[100, 100, 100]));
    let web = balanced(3, CHECK, &[5, 1, 1]);
    assert_eq!(spread(&web, 350), counts(&[250, 50, 50]));
    // Interleaved, not in runs.
    let mut client = web.client();
    let order: Vec<String> = (0..14)
        .map(|_| client.get("/").server().to_owned())
        .collect();
    let longest = order.chunk_by(|a, b| a == b).map(<[String]>::len).max();
    // A cycle ends and the next begins with two of the first.
    assert!(longest <= Some(4), "{order:?}");
    let web = balanced(3, CHECK, &[1, 0, 2]);
    assert_eq!(spread(&web, 90), counts(&[30, 0, 60]));
}

#[test]
fn fewest_requests_in_flight_win() {
    for policy in ["least-connections", "power-of-two"] {
        let web = balanced(2, &format!("balance = \"{policy}\"\n{CHECK}"), &[]);
        // One server is busy with slow ones.
        let mut slow: Vec<Raw> = Vec::new();
        while web.apps[0].stats().running < 4 {
            let mut client = web.client();
            let before = web.apps[0].stats().running + web.apps[1].stats().running;
            client.send("GET /delay/20000 HTTP/1.1\r\nHost: a\r\n\r\n");
            wait_until("the request to arrive", BOUND, || {
                web.apps[0].stats().running + web.apps[1].stats().running > before
            });
            slow.push(client);
        }
        web.apps[1].close_connections();
        wait_until("the other to be free", BOUND, || {
            web.apps[1].stats().running == 0
        });
        let seen = spread(&web, 40);
        assert_eq!(seen.get("s1"), Some(&40), "{policy}: {seen:?}");
    }
}

#[test]
fn weights_hold_for_least_connections_too() {
    let web = balanced(
        2,
        &format!("balance = \"least-connections\"\n{CHECK}"),
        &[3, 1],
    );
    let answers = at_once(&web, 40, "/delay/400");
    let first = answers
        .iter()
        .filter(|(answer, _)| answer.server() == "s0")
        .count();
    assert!((27..=33).contains(&first), "{first} of 40");
}

#[test]
fn the_source_policy_keeps_clients_apart() {
    let web = balanced(3, &format!("balance = \"source\"\n{CHECK}"), &[]);
    let mut all = BTreeMap::new();
    for host in 2..20 {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
        let mut servers: Vec<String> = (0..3)
            .map(|_| {
                Raw::connect_from(&web.ns, from, HTTP)
                    .expect("a connection")
                    .get("/")
                    .server()
                    .to_owned()
            })
            .collect();
        servers.dedup();
        assert_eq!(servers.len(), 1, "{servers:?}");
        *all.entry(servers.remove(0)).or_insert(0) += 1;
    }
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn a_full_server_makes_requests_wait() {
    let keys = format!("{CHECK}[pool.queue]\nlength = 4\ntimeout = \"5s\"\n");
    let web = Web::new(1, |_| {
        frontend("") + &pool_with(1, &keys, |_| "max_connections = 2\n".into())
    });
    let answers = at_once(&web, 6, "/delay/300");
    assert!(answers.iter().all(|(answer, _)| answer.status == 200));
    assert!(
        web.apps[0].stats().most_running <= 2 + 1,
        "{:?}",
        web.apps[0].stats()
    );
    let last = answers.iter().map(|(_, took)| *took).max().expect("some");
    assert!(last >= Duration::from_millis(850), "{last:?}");
    // More than have room to wait are refused at once.
    let answers = at_once(&web, 12, "/delay/500");
    let refused: Vec<_> = answers
        .iter()
        .filter(|(answer, _)| answer.status == 503)
        .collect();
    assert_eq!(refused.len(), 6, "{answers:?}");
    for (answer, took) in refused {
        assert!(answer.one("retry-after").is_some(), "{answer:?}");
        assert!(*took < Duration::from_millis(450), "{took:?}");
    }
}

#[test]
fn waiting_ends_after_its_time() {
    let keys = format!("{CHECK}[pool.queue]\nlength = 10\ntimeout = \"300ms\"\n");
    let web = Web::new(1, |_| {
        frontend("") + &pool_with(1, &keys, |_| "max_connections = 1\n".into())
    });
    let answers = at_once(&web, 3, "/delay/1500");
    let late: Vec<_> = answers
        .iter()
        .filter(|(answer, _)| answer.status == 503)
        .collect();
    assert_eq!(late.len(), 2, "{answers:?}");
    for (answer, took) in late {
        assert!(answer.one("retry-after").is_some());
        assert!(
            (Duration::from_millis(250)..Duration::from_millis(1400)).contains(took),
            "{took:?}"
        );
    }
    // A client that leaves the queue leaves its place to others.
    let mut first = web.client();
    first.send("GET /delay/1000 HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the first to arrive", BOUND, || {
        web.apps[0].stats().running == 1
    });
    for _ in 0..30 {
        web.client().send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    assert_eq!(first.answer().status, 200);
    assert_eq!(web.client().get("/").status, 200);
}

#[test]
fn a_server_that_came_back_starts_slowly() {
    let mut web = balanced(2, &format!("slow_start = \"6s\"\n{CHECK}"), &[]);
    web.app("s1").kill9();
    web.wait_health("s1", "down");
    web.app("s1").restart();
    web.wait_health("s1", "up");
    let early = spread(&web, 100);
    let share = early.get("s1").copied().unwrap_or(0);
    assert!(share < 35, "at once: {early:?}");
    wait_until("the share to be whole", Duration::from_secs(20), || {
        let now = spread(&web, 20);
        now.get("s1").copied().unwrap_or(0) == 10
    });
}

/// An address where connections are refused.
fn refuse(web: &mut Web, server: &str) {
    web.app(server).kill9();
}

#[test]
fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let mut web = balanced(
        3,
        &format!("{NO_CHECK}{NOT_OBSERVED}[pool.retries]\nbudget_percent = 100\n"),
        &[],
    );
    refuse(&mut web, "s1");
    for i in 0..12 {
        let method = if i % 2 == 0 { "GET" } else { "POST" };
        let answer = web.client().request(method, "/", &[], b"body");
        assert_eq!(answer.status, 200, "{method}: {answer:?}");
    }
    let seen = web
        .apps
        .iter()
        .filter(|app| app.name() != "s1")
        .map(|app| app.log().len());
    assert_eq!(seen.sum::<usize>(), 12);
}

/// Two servers that note what they get.
fn with_journal(keys: &str) -> Web {
    Web::with(2, &["--journal", "DIR/journal"], |_| {
        frontend("") + &pool(2, keys)
    })
}

fn times(web: &Web, nonce: &str) -> usize {
    let all = apps::journal(&web.dir.path().join("journal"));
    all.get(nonce).map_or(0, Vec::len)
}

#[test]
fn what_may_have_been_done_is_not_done_again() {
    let retries = "[pool.retries]\nattempts = 3\nbudget_percent = 100\n";
    let web = with_journal(&format!("{NO_CHECK}{NOT_OBSERVED}{retries}"));
    let ask = |method: &str, path: &str, nonce: &str| {
        web.client().request(method, path, &[(NONCE, nonce)], b"")
    };
    // Cut before the answer: both servers do it, so the client learns of it in the end.
    for (method, most) in [
        ("GET", 2..=4),
        ("HEAD", 2..=4),
        ("PUT", 2..=4),
        ("DELETE", 2..=4),
        ("POST", 1..=1),
        ("PATCH", 1..=1),
    ] {
        let answer = ask(method, "/abort", method);
        assert_eq!(answer.status, 502, "{method}");
        let times = times(&web, method);
        assert!(most.contains(&times), "{method} was sent {times} times");
    }
    // Never after the answer has begun.
    let _ = web
        .client()
        .try_request("GET", "/cut/100/10", &[(NONCE, "begun")], b"");
    assert_eq!(times(&web, "begun"), 1);
    // Never by status, unless told to.
    assert_eq!(ask("GET", "/fail/1/503", "status").status, 503);
    assert_eq!(times(&web, "status"), 1);
}

#[test]
fn statuses_are_repeated_where_told_to() {
    let retries = "[pool.retries]\nattempts = 2\nbudget_percent = 100\non_status = [503]\n";
    let web = with_journal(&format!("{NO_CHECK}{NOT_OBSERVED}{retries}"));
    // Each server fails a nonce once.
    let ask = |method: &str, status: u16, nonce: &str| {
        let path = format!("/fail/1/{status}");
        web.client()
            .request(method, &path, &[(NONCE, nonce)], b"")
            .status
    };
    assert_eq!(ask("GET", 503, "a"), 200);
    assert_eq!(times(&web, "a"), 3);
    assert_eq!(ask("POST", 503, "b"), 503);
    assert_eq!(times(&web, "b"), 1);
    assert_eq!(ask("GET", 500, "c"), 500);
    assert_eq!(times(&web, "c"), 1);
}

#[test]
fn mod_jks_way_is_there_for_those_who_ask() {
    let retries = "[pool.retries]\nattempts = 1\nbudget_percent = 100\nnon_idempotent = true\n";
    let web = with_journal(&format!("{NO_CHECK}{NOT_OBSERVED}{retries}"));
    let answer = web.client().request("POST", "/abort", &[(NONCE, "p")], b"");
    assert_eq!(answer.status, 502);
    assert_eq!(times(&web, "p"), 2);
}

#[test]
fn the_budget_bounds_repetition() {
    let retries = "[pool.retries]\nattempts = 3\nbudget_percent = 10\n";
    let web = with_journal(&format!("{NO_CHECK}{NOT_OBSERVED}{retries}"));
    let mut sent = 0;
    for i in 0..200 {
        let nonce = format!("n{i}");
        assert_eq!(
            web.client().get_with("/abort", &[(NONCE, &nonce)]).status,
            502
        );
        sent += times(&web, &nonce);
    }
    // 200 and their tenth, and the few that are always allowed.
    assert!(
        (205..=260).contains(&sent),
        "{sent} attempts for 200 requests"
    );
}

/// How often backends were taken out, as the status says.
fn ejections(web: &Web) -> u64 {
    let status = web.agent.status();
    let pools = status["http"]["pools"].as_array().into_iter().flatten();
    let backends = pools.flat_map(|pool| pool["backends"].as_array().into_iter().flatten());
    backends
        .filter_map(|backend| backend["ejections"].as_u64())
        .sum()
}

#[test]
fn failures_of_real_requests_take_a_server_out() {
    let observe =
        "[pool.observe]\nfailures = 3\nstatus = true\nejection = \"1s\"\nmax_ejection = \"2s\"\n";
    let web = balanced(
        3,
        &format!("panic_threshold = 0\n{NO_CHECK}{observe}[pool.retries]\nattempts = 0\n"),
        &[],
    );
    // Only this server fails.
    web.apps[1].health(503);
    let fails = |web: &Web| web.client().get("/health").status == 503;
    wait_until("the server to be taken out", BOUND, || {
        fails(&web);
        ejections(&web) > 0 && (0..9).all(|_| !fails(&web))
    });
    web.apps[1].health(200);
    wait_until("it to come back", BOUND, || {
        spread(&web, 6).contains_key("s1")
    });
}

#[test]
fn with_most_of_them_failing_nobody_is_taken_out() {
    let observe =
        "[pool.observe]\nfailures = 2\nstatus = true\nejection = \"20s\"\nmax_ejection = \"20s\"\n";
    let web = balanced(
        3,
        &format!("panic_threshold = 50\n{NO_CHECK}{observe}[pool.retries]\nattempts = 0\n"),
        &[],
    );
    web.apps[0].health(500);
    web.apps[1].health(500);
    for _ in 0..40 {
        web.client().get("/health");
    }
    // One of three could be out, two of three are panic: all get requests.
    let seen = spread(&web, 60);
    assert!(seen.len() == 3, "{seen:?}");
}

#[test]
fn checks_take_a_server_out_and_bring_it_back() {
    let mut web = balanced(3, CHECK, &[]);
    web.apps[2].health(500);
    web.wait_health("s2", "down");
    assert_eq!(spread(&web, 20), counts(&[10, 10, 0]));
    web.apps[2].health(200);
    web.wait_health("s2", "up");
    assert_eq!(spread(&web, 30), counts(&[10, 10, 10]));
    for server in ["s0", "s1", "s2"] {
        web.app(server).kill9();
        web.wait_health(server, "down");
    }
    let answer = web.client().get("/");
    assert_eq!(answer.status, 503);
    assert!(answer.one("retry-after").is_some(), "{answer:?}");
}

#[test]
fn a_drain_lets_requests_finish() {
    let web = balanced(2, CHECK, &[]);
    let mut slow: Vec<Raw> = (0..4).map(|_| web.client()).collect();
    for client in &mut slow {
        client.send("GET /delay/800 HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    wait_until("the requests to arrive", BOUND, || {
        web.apps.iter().map(|app| app.stats().running).sum::<u64>() == 4
    });
    web.agent.order(&["drain", "app/s1"]);
    assert_eq!(spread(&web, 12), counts(&[12]));
    for client in &mut slow {
        assert_eq!(client.answer().status, 200);
    }
    web.agent.order(&["activate", "app/s1"]);
    assert_eq!(spread(&web, 12), counts(&[6, 6]));
}

#[test]
fn groups_stand_in_for_each_other_in_their_order() {
    let mut web = Web::new(4, |_| {
        frontend("") + &pool_with(4, CHECK, |i| format!("priority = {}\n", [0, 0, 1, 2][i]))
    });
    assert_eq!(spread(&web, 20), counts(&[10, 10]));
    web.app("s0").kill9();
    web.wait_health("s0", "down");
    assert_eq!(spread(&web, 10), counts(&[0, 10]));
    web.app("s1").kill9();
    web.wait_health("s1", "down");
    assert_eq!(spread(&web, 10), counts(&[0, 0, 10]));
    web.app("s2").kill9();
    web.wait_health("s2", "down");
    assert_eq!(spread(&web, 10), counts(&[0, 0, 0, 10]));
    web.app("s0").restart();
    web.wait_health("s0", "up");
    assert_eq!(spread(&web, 10), counts(&[10]));
}

#[test]
fn time_is_up_for_servers_that_are_silent() {
    let timeouts = "[pool.timeouts]\nresponse = \"400ms\"\nidle = \"400ms\"\nconnect = \"300ms\"\n";
    let retries = "[pool.retries]\nattempts = 0\n";
    let web = balanced(
        1,
        &format!("{NO_CHECK}{NOT_OBSERVED}{timeouts}{retries}"),
        &[],
    );
    let begin = Instant::now();
    let answer = web.client().get("/hang");
    assert_eq!(answer.status, 504);
    let took = begin.elapsed();
    assert!(
        (Duration::from_millis(350)..Duration::from_secs(3)).contains(&took),
        "{took:?}"
    );
    // A gap in the answer: cut, not ended.
    let result = web.client().try_request("GET", "/sse/3/2000", &[], b"");
    assert!(result.is_err(), "{result:?}");
    // Slow but steady is fine.
    assert_eq!(web.client().get("/sse/10/100").status, 200);
}

#[test]
fn a_whole_request_can_have_a_limit() {
    let timeouts = "[pool.timeouts]\nrequest = \"500ms\"\n";
    let web = balanced(1, &format!("{NO_CHECK}{NOT_OBSERVED}{timeouts}"), &[]);
    let begin = Instant::now();
    let result = web.client().try_request("GET", "/sse/100/50", &[], b"");
    assert!(result.is_err(), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(3));
    assert_eq!(web.client().get("/delay/3000").status, 504);
}

#[test]
fn a_server_that_does_not_accept_runs_out_of_time() {
    let timeouts = "[pool.timeouts]\nconnect = \"300ms\"\n";
    let ns = balancer_tests::netns::Netns::new();
    // A full backlog: what comes is not answered.
    let full = ns.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("a socket");
        socket.bind(&app_address(0).into()).expect("bind");
        socket.listen(0).expect("listen");
        let listener = TcpListener::from(socket);
        let mut held = Vec::new();
        for _ in 0..4 {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            let _ = socket.connect(&app_address(0).into());
            held.push(socket);
        }
        (listener, held)
    });
    let apps = vec![App::at(&ns, "s1", app_address(1))];
    let config = frontend("") + &pool(2, &format!("{NO_CHECK}{NOT_OBSERVED}{timeouts}"));
    let web = Web::around(ns, balancer_tests::http::web::scene_dir(), apps, &config);
    for _ in 0..4 {
        let begin = Instant::now();
        let answer = web.client().request("POST", "/", &[], b"once");
        assert_eq!((answer.status, answer.server()), (200, "s1"));
        assert!(begin.elapsed() < Duration::from_secs(3));
    }
    assert_eq!(web.apps[0].log().len(), 4);
    drop(full);
}

#[test]
fn connections_to_servers_are_kept_and_shared() {
    let web = balanced(1, CHECK, &[]);
    web.clear();
    for _ in 0..60 {
        assert_eq!(web.client().get("/").status, 200);
    }
    let seen = web.apps[0].log();
    let mut connections: Vec<u64> = seen.iter().map(|seen| seen.connection).collect();
    connections.sort_unstable();
    connections.dedup();
    // One per thread of the balancer, and no more.
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    assert!(connections.len() <= cores, "{connections:?}");
    // One that the server has closed meanwhile costs nobody an answer.
    for _ in 0..10 {
        web.apps[0].close_connections();
        assert_eq!(web.client().request("POST", "/", &[], b"x").status, 200);
    }
}

#[test]
fn a_client_that_goes_away_frees_its_server() {
    let web = Arc::new(balanced(1, CHECK, &[]));
    let clients: Vec<Raw> = (0..8)
        .map(|_| {
            let mut client = web.client();
            client.send("GET /sse/1000/20 HTTP/1.1\r\nHost: a\r\n\r\n");
            client.head().expect("a head");
            client
        })
        .collect();
    assert!(web.apps[0].stats().running >= 8);
    drop(clients);
    wait_until("the server to be free", BOUND, || {
        web.apps[0].stats().running == 0
    });
}
