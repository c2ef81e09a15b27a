//! Connections to a server: what ends them, when they are asked whether they still live, and
//! what becomes of requests whose connection has failed.

use std::time::{Duration, Instant};

use balancer_tests::http::ajp::Pongs;

use super::*;

#[test]
fn bytes_between_two_requests_are_nobodys_response() {
    // CPONG has to be the next that comes.
    let scene = Scene::new(&format!("{NO_CHECK}[pool.ping]\nconnect = false\n{ONCE}"));
    for _ in 0..10 {
        assert_eq!(scene.get("/late-surplus"), (200, Ok("ok".into())));
        // The server has said all of it.
        let first = scene.server.only();
        let mut client = scene.client();
        assert_eq!(client.request("POST", "/ok", &[], b"body").text(), "ok");
        assert_ne!(scene.server.only().connection, first.connection);
    }
}

#[test]
fn questions_are_answered_one_by_one() {
    let scene = Scene::new(&format!("{NO_CHECK}{QUIET}{ONCE}"));
    let head = "POST /ask-twice HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = scene.client();
    client.send(format!("{head}c\r\nhello, world\r\n0\r\n\r\n"));
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(scene.server.only().packets, [9, 3]);
    // A second one before the first can be answered is out of turn.
    client.send(head);
    assert_eq!(client.answer().status, 502);
}

#[test]
fn connections_are_asked_before_they_are_used() {
    let ping = "[pool.ping]\ntimeout = \"300ms\"\n";
    let scene = Scene::new(&format!("{NO_CHECK}{ping}{ONCE}"));
    assert_eq!(scene.get("/ok").0, 200);
    assert_eq!(scene.server.counts(), (1, 1));
    assert_eq!(scene.get("/ok").0, 200);
    assert_eq!(scene.server.counts(), (1, 2));
    // A kept connection that has been closed meanwhile costs nothing, POST neither.
    for _ in 0..5 {
        scene.server.close_connections();
        let answer = scene.client().request("POST", "/ok", &[], b"body");
        assert_eq!(answer.status, 200);
    }
    for pongs in [Pongs::None, Pongs::Wrong, Pongs::Surplus, Pongs::Close] {
        assert_eq!(scene.get("/ok").0, 200);
        scene.server.take();
        scene.server.pongs(pongs);
        // Neither the kept one nor a fresh one is any good.
        let (status, body) = scene.get("/ok");
        assert_eq!(status, 502, "{pongs:?}: {body:?}");
        // Nobody has seen the request.
        assert_eq!(scene.server.take().len(), 0, "{pongs:?}");
        scene.server.pongs(Pongs::Right);
        assert_eq!(scene.get("/ok").0, 200, "{pongs:?}");
    }
    let status = scene.agent.status().to_string();
    assert!(status.contains("\"connect_failed\":4"), "{status}");
}

#[test]
fn a_connection_is_asked_when_it_has_rested() {
    let ping = "[pool.ping]\nconnect = false\nreuse = \"400ms\"\n";
    let scene = Scene::new(&format!("{NO_CHECK}{ping}"));
    // However slow the machine is: who rested for less was not asked.
    let mut asked = 0;
    wait_until("a connection to have rested", BOUND, || {
        let begin = Instant::now();
        assert_eq!(scene.get("/ok").0, 200);
        assert_eq!(scene.get("/ok").0, 200);
        let pings = scene.server.counts().1;
        if begin.elapsed() < Duration::from_millis(400) {
            assert!(pings <= asked + 1);
        }
        asked = pings;
        std::thread::sleep(Duration::from_millis(450));
        asked > 1
    });
}

#[test]
fn checks_are_cpings() {
    let check =
        "[pool.check]\ninterval = \"100ms\"\nfast_interval = \"50ms\"\ntimeout = \"100ms\"\n";
    let scene = Scene::new(check);
    let said = |what: &str| {
        wait_until(what, BOUND, || {
            let backend = scene.agent.backend("app", "s0");
            backend["last_check"].to_string().contains(what)
        });
    };
    said("answers CPING");
    for (pongs, what) in [
        (
            Pongs::None,
            "timeout after 100ms while waiting for the response",
        ),
        (Pongs::Wrong, "in answer to CPING: not AJP13"),
        (Pongs::Close, "connection closed before a complete response"),
    ] {
        scene.server.pongs(pongs);
        scene.agent.wait_health("app", "s0", "down");
        said(what);
        scene.server.pongs(Pongs::Right);
        scene.agent.wait_health("app", "s0", "up");
    }
}

#[test]
fn a_client_that_goes_away_takes_its_connection_along() {
    let scene = Scene::new(&format!("{NO_CHECK}{QUIET}"));
    let mut client = scene.client();
    client.send("GET /silent HTTP/1.1\r\nHost: a\r\n\r\n");
    // The server waits for the connection's end, and notes the request then.
    wait_until("the request to arrive", BOUND, || {
        scene.agent.status().to_string().contains("\"in_flight\":1")
    });
    drop(client);
    wait_until("the connection to end", BOUND, || {
        !scene.server.take().is_empty()
    });
    assert_eq!(scene.get("/ok").0, 200);
    // In the middle of an upload.
    let mut client = scene.client();
    client.send("POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    wait_until("the request to arrive", BOUND, || {
        scene.agent.status().to_string().contains("\"in_flight\":1")
    });
    drop(client);
    wait_until("the connection to end", BOUND, || {
        scene.server.take().iter().any(|seen| seen.body == b"abc")
    });
}

#[test]
fn what_failed_is_tried_elsewhere_where_that_is_safe() {
    let ns = Netns::new();
    let server = AjpServer::start(&ns, AJP);
    let config = format!(
        "[http]\nthreads = 1\n{}[[pool]]\nname = \"app\"\nprotocol = \"ajp\"\n{NO_CHECK}\
         [pool.observe]\nenabled = false\n\
         [[pool.backend]]\nname = \"s0\"\naddress = \"127.0.0.1:9\"\n\
         [[pool.backend]]\nname = \"s1\"\naddress = \"{AJP}\"\n",
        frontend("")
    );
    let mut agent = Agent::prepare_plain(&ns, &config);
    agent.run();
    agent.wait_all_up();
    let mut client = Raw::connect(&ns, HTTP);
    // The first has no listener.
    for _ in 0..4 {
        assert_eq!(client.get("/ok").status, 200);
        assert_eq!(client.request("POST", "/ok", &[], b"body").status, 200);
    }
    server.take();
    // A request that was sent is repeated only if that does no harm.
    assert_eq!(client.get("/close").status, 502);
    assert!(!server.take().is_empty());
    let mut sent = 0;
    for _ in 0..2 {
        let answer = Raw::connect(&ns, HTTP).request("POST", "/close", &[], b"body");
        assert_eq!(answer.status, 502);
        let seen = server.take();
        assert!(seen.len() <= 1, "{seen:?}");
        sent += seen.len();
    }
    assert_eq!(sent, 2);
}
