//! The harness itself: namespaces come and go, servers answer across a veth pair, and
//! the load clients count what really happened. No balancer is involved.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use balancer_tests::counters::Counters;
use balancer_tests::load::held::Held;
use balancer_tests::load::{self, Ask, Failure, Stream, sequential, udp};
use balancer_tests::netns::{self, Netns, mac_of};
use balancer_tests::process::{BOUND, Process, came_true, wait_until};
use balancer_tests::server::{ECHO, HTTP, Mode, Server};
use balancer_tests::topology::{Lab, Options};

fn exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

#[test]
fn a_namespace_is_made_entered_and_removed() {
    let ns = Netns::new();
    let name = ns.name().to_owned();
    assert!(exists(&name));
    assert!(netns::own().contains(&name));

    let devices = ns.enter(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    assert_eq!(devices.lines().count(), 3, "only lo: {devices}");
    let in_child = ns.run("cat /proc/net/dev");
    assert_eq!(in_child.lines().count(), 3, "only lo: {in_child}");
    let identify = ns.run("ip netns identify");
    assert_eq!(identify.trim(), name);

    let clone = ns.clone();
    assert!(ns.same(&clone));
    drop(ns);
    assert!(exists(&name), "a clone still holds it");
    drop(clone);
    assert!(!exists(&name));
}

#[test]
fn a_namespace_is_removed_when_a_test_panics() {
    let mut name = String::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let ns = Netns::new();
        name = ns.name().to_owned();
        ns.enter(|| panic!("as a failing assertion does"));
    }));
    let panic = result.expect_err("the panic goes on in the caller");
    assert_eq!(
        *panic.downcast_ref::<&str>().unwrap(),
        "as a failing assertion does"
    );
    assert!(!exists(&name));
}

#[test]
fn what_a_killed_process_left_is_swept() {
    // A pid that is dead for sure: a child's that has been waited for.
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let name = format!("bal-{}-7", child.id());
    let made = Command::new("ip").args(["netns", "add", &name]).status();
    assert!(made.unwrap().success());
    let mut sleeper = Command::new("ip")
        .args(["netns", "exec", &name, "sleep", "600"])
        .spawn()
        .unwrap();
    let inside = |id| {
        let exe = fs::read_link(format!("/proc/{id}/exe"));
        exe.is_ok_and(|exe| exe.ends_with("sleep") || exe.ends_with("coreutils"))
    };
    wait_until("sleep to run", BOUND, || inside(sleeper.id()));

    let alive = Netns::new();
    netns::sweep();
    assert!(!exists(&name));
    assert!(exists(alive.name()), "of a living process");
    wait_until("the process inside to be killed", BOUND, || {
        sleeper.try_wait().unwrap().is_some()
    });
}

#[test]
fn a_process_is_killed_when_dropped() {
    let ns = Netns::new();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut command = ns.command("sh");
    command.args(["-c", "echo said; exec sleep 600"]);
    let mut process = Process::spawn("sleep", command, &log);
    wait_until("its output", BOUND, || process.log() == "said\n");
    assert!(process.running());
    let id = process.id();
    drop(process);
    assert!(!Path::new(&format!("/proc/{id}")).exists());
    assert!(!came_true(Duration::from_millis(20), || false));
}

#[test]
fn servers_answer_across_the_lab() {
    for shared_segment in [false, true] {
        let lab = Lab::with(&Options {
            servers: 2,
            shared_segment,
            ..Options::default()
        });
        let interfaces = if shared_segment { 2 } else { 3 };
        assert_eq!(lab.interfaces().len(), interfaces);
        for (i, place) in lab.servers.iter().enumerate() {
            let name = format!("s{i}");
            let server = Server::at(place, &name);
            for at in [place.at4(ECHO), place.at6(ECHO)] {
                let report = sequential(&lab.client, at, &Ask::Name, 5);
                assert_eq!(report.distribution(), [(name.clone(), 5)].into(), "{at}");
                let flows = udp::flows(&lab.client, at, 3, 2, BOUND);
                assert_eq!(
                    udp::distribution(&flows),
                    [(name.clone(), 3)].into(),
                    "{at}"
                );
            }
            server.body(3000);
            for at in [place.at4(HTTP), place.at6(HTTP)] {
                let report = sequential(&lab.client, at, &Ask::Http("/".into()), 5);
                assert_eq!(report.distribution(), [(name.clone(), 5)].into(), "{at}");
            }
            let stats = server.stats();
            assert_eq!((stats.tcp, stats.http, stats.udp), (10, 10, 12));
            let sources: Vec<IpAddr> = stats.sources.keys().copied().collect();
            assert_eq!(
                sources,
                [IpAddr::V4(lab.client4()), IpAddr::V6(lab.client6())]
            );
        }
    }
}

#[test]
fn links_are_as_asked_for() {
    let lab = Lab::with(&Options {
        servers: 1,
        mtu: 1400,
        queues: 3,
        ..Options::default()
    });
    for (ns, device) in [
        (&lab.client, "eth0"),
        (&lab.balancer, "client0"),
        (&lab.balancer, "server0"),
        (&lab.servers[0].ns, "eth0"),
    ] {
        let output = ns.run(&format!("ip -d -j link show {device}"));
        let json: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert_eq!(json[0]["mtu"], 1400);
        assert_eq!(json[0]["num_tx_queues"], 3);
        assert_eq!(json[0]["num_rx_queues"], 3);
        let features = ns.run(&format!("ethtool -k {device}"));
        assert!(features.contains("tx-checksumming: off"), "{features}");
    }
    let gro = lab.client.run("ethtool -k eth0");
    assert!(gro.contains("generic-receive-offload: on"), "{gro}");
    assert_eq!(mac_of(&lab.client, "eth0"), [2, 0xba, 1, 0, 0, 2]);
    assert_eq!(mac_of(&lab.balancer, "server0"), [2, 0xba, 2, 0, 0, 1]);
}

#[test]
fn a_server_without_a_route_back_knows_only_the_snat_addresses() {
    let lab = Lab::with(&Options {
        servers: 1,
        snat: true,
        ..Options::default()
    });
    let server = &lab.servers[0].ns;
    assert!(
        server
            .try_run(&format!("ip route get {}", lab.client4()))
            .is_err()
    );
    let way = server.run(&format!("ip route get {}", lab.snat4(1)));
    assert!(way.contains("via 10.2.0.1"), "{way}");
    let way = server.run(&format!("ip route get {}", lab.snat6(1)));
    assert!(way.contains("via fd02::1"), "{way}");
    let way = lab.client.run(&format!("ip route get {}", lab.vip6(1)));
    assert!(way.contains("via fd01::1"), "{way}");
}

#[test]
fn the_router_asks_for_smaller_packets() {
    let lab = Lab::with(&Options {
        servers: 1,
        router_mtu: Some(1300),
        ..Options::default()
    });
    let server = Server::at(&lab.servers[0], "s0");
    server.body(100_000);
    for at in [lab.servers[0].at4(HTTP), lab.servers[0].at6(HTTP)] {
        let report = sequential(&lab.client, at, &Ask::Http("/".into()), 1);
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
    }
    let counters = Counters::of(&lab.servers[0].ns);
    assert!(counters.value("Icmp", "InDestUnreachs") >= 1);
}

#[test]
fn failures_are_told_apart() {
    let lab = Lab::new(1);
    let place = &lab.servers[0];
    let mut server = Server::at(place, "s0");
    let one = |at: SocketAddr, ask: &Ask| {
        let mut report = sequential(&lab.client, at, ask, 1);
        report.attempts.remove(0).outcome
    };
    let http = Ask::Http("/health".into());
    assert_eq!(one(place.at4(HTTP), &http), Ok("s0".into()));
    server.health(503);
    assert_eq!(one(place.at4(HTTP), &http), Err(Failure::BadAnswer));
    server.health(200);

    server.mode(Mode::Refuse);
    assert_eq!(one(place.at4(ECHO), &Ask::Name), Err(Failure::Refused));
    server.mode(Mode::Hang);
    assert_eq!(one(place.at4(ECHO), &Ask::Name), Err(Failure::NotAnswered));
    server.mode(Mode::Normal);
    assert_eq!(one(place.at4(ECHO), &Ask::Name), Ok("s0".into()));

    server.pause();
    assert_eq!(one(place.at4(ECHO), &Ask::Name), Err(Failure::NotAnswered));
    server.resume();
    server.kill9();
    assert_eq!(one(place.at4(ECHO), &Ask::Name), Err(Failure::Refused));
    server.restart();
    assert_eq!(one(place.at6(ECHO), &Ask::Name), Ok("s0".into()));
    place.ns.nft(
        "table inet t { chain c { type filter hook input priority 0; tcp dport 7000 drop; }; }",
    );
    assert_eq!(one(place.at4(ECHO), &Ask::Name), Err(Failure::NotConnected));
}

#[test]
fn a_stream_keeps_its_rate_and_counts_what_fails() {
    let lab = Lab::new(1);
    let place = &lab.servers[0];
    let mut server = Server::at(place, "s0");
    let before = Counters::of(&lab.client);
    let begin = Instant::now();
    let stream = Stream::start(&lab.client, place.at4(ECHO), Ask::Name, 500);
    stream.wait_for(250);
    wait_until("answers", BOUND, || stream.answered() > 200);
    assert!(
        begin.elapsed() >= Duration::from_millis(490),
        "500 a second"
    );
    let killed = Instant::now();
    server.kill9();
    stream.wait_for(100);
    server.restart();
    let back = Instant::now();
    stream.wait_for(100);
    let report = stream.stop();

    assert!(report.attempts.is_sorted_by_key(|a| a.started));
    let answered: usize = report.distribution().values().sum();
    assert_eq!(answered + report.failed(), report.attempts.len());
    assert!(report.attempts.len() >= 450);
    assert!(report.failed() >= 1);
    assert_eq!(report.since(back).failed(), 0);
    let last = report.last_failure(killed).expect("failures");
    assert!(last <= back - killed);
    assert!(report.last_reached("s0", killed).expect("answers") >= last);
    assert!(report.last_reached("s1", back).is_none());
    assert_eq!(report.order().len(), answered);
    assert_eq!(report.spread(&["s0"]), 0);
    assert_eq!(report.spread(&["s0", "s1"]), answered);
    let after = Counters::of(&lab.client);
    assert!(after.retransmitted() >= before.retransmitted());
    let opened = after.value("Tcp", "ActiveOpens") - before.value("Tcp", "ActiveOpens");
    assert_eq!(opened, report.attempts.len() as i64);
}

#[test]
fn held_connections_show_whether_they_were_touched() {
    let lab = Lab::new(2);
    let mut servers: Vec<Server> = lab
        .servers
        .iter()
        .enumerate()
        .map(|(i, place)| Server::at(place, &format!("s{i}")))
        .collect();
    let every = Duration::from_millis(10);
    let doomed = Held::open(&lab.client, lab.servers[0].at4(ECHO), 20, every);
    let safe = Held::open(&lab.client, lab.servers[1].at6(ECHO), 20, every);
    assert_eq!(doomed.distribution(), [("s0".to_owned(), 20)].into());
    assert_eq!(servers[0].stats().open, 20);

    servers[0].kill9();
    doomed.wait_broken(20);
    assert_eq!(safe.broken(), 0);
    assert!(doomed.finish().iter().all(|kept| kept.failure.is_some()));
    let safe = safe.finish();
    assert_eq!(safe.len(), 20);
    for kept in &safe {
        assert_eq!(kept.failure, None);
        assert_eq!(kept.server.as_deref(), Some("s1"));
        assert!(kept.exchanges >= 1);
    }
    wait_until("the server to see them close", BOUND, || {
        servers[1].stats().open == 0
    });

    let closed = Held::open(&lab.client, lab.servers[1].at4(ECHO), 5, every);
    servers[1].close_connections();
    closed.wait_broken(5);
    drop(closed);
    servers.clear();
}

#[test]
fn a_missing_udp_answer_is_seen() {
    let lab = Lab::new(1);
    let server = Server::at(&lab.servers[0], "s0");
    server.mode(Mode::Refuse);
    let patience = Duration::from_millis(50);
    let flows = udp::flows(&lab.client, lab.servers[0].at4(ECHO), 2, 2, patience);
    assert!(flows.iter().all(|flow| flow.server().is_none()));
    wait_until("the server to see all datagrams", BOUND, || {
        server.stats().udp == 4
    });
    assert!(load::PATIENCE > patience);
}
