//! What a client gets when no server is usable, by the pool's policy; and datagrams
//! that come in pieces.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use balancer_tests::agent::Agent;
use balancer_tests::bed::{
    Bed, QUICK_CHECK, SMALL, backends4, backends6, frontend, pool, vip4, vip6,
};
use balancer_tests::icmp::exchange;
use balancer_tests::load::{Ask, Failure, PATIENCE, sequential};
use balancer_tests::process::BOUND;
use balancer_tests::server::{ECHO, Ports, Server};
use balancer_tests::topology::Lab;

const EVEN: [u32; 3] = [1, 1, 1];

/// TCP on port 7 and UDP on port 53 of both families, with nobody behind them.
fn nobody(policy: &str) -> (Agent, Lab) {
    let lab = Lab::new(3);
    let keys = format!("unavailable = \"{policy}\"\n{QUICK_CHECK}type = \"tcp\"\nport = {ECHO}\n");
    let config = frontend("echo", vip4(&lab, 1, 7), "tcp", "four")
        + &frontend("dns", vip4(&lab, 1, 53), "udp", "four")
        + &pool("four", &keys, &backends4(&lab, ECHO, &EVEN))
        + &frontend("echo6", vip6(&lab, 1, 7), "tcp", "six")
        + &frontend("dns6", vip6(&lab, 1, 53), "udp", "six")
        + &pool("six", &keys, &backends6(&lab, ECHO, &EVEN));
    (Agent::start_with(&lab, SMALL, &config), lab)
}

fn targets(lab: &Lab, port: u16) -> [SocketAddr; 2] {
    [vip4(lab, 1, port), vip6(lab, 1, port)]
}

#[test]
fn reset_refuses_at_once() {
    let (agent, lab) = nobody("reset");
    for at in targets(&lab, 7) {
        let report = sequential(&lab.client, at, &Ask::Name, 20);
        assert_eq!(report.failures(), [(Failure::Refused, 20)].into(), "{at}");
        assert!(report.attempts.iter().all(|a| a.took < PATIENCE));
    }
    for at in targets(&lab, 53) {
        let error = exchange(&lab.client, at, b"anybody?", BOUND).expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{at}: {error}");
    }
    let status = agent.status();
    let refused: u64 = status["frontends"]
        .as_array()
        .expect("frontends")
        .iter()
        .map(|frontend| frontend["refused"].as_u64().expect("a count"))
        .sum();
    assert_eq!(refused, 42, "{status:#}");
}

#[test]
fn drop_says_nothing() {
    let (_agent, lab) = nobody("drop");
    for at in targets(&lab, 7) {
        let report = sequential(&lab.client, at, &Ask::Name, 1);
        assert_eq!(
            report.failures(),
            [(Failure::NotConnected, 1)].into(),
            "{at}"
        );
    }
    for at in targets(&lab, 53) {
        let patience = Duration::from_millis(300);
        let error = exchange(&lab.client, at, b"anybody?", patience).expect_err("nobody");
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{at}: {error}");
    }
}

#[test]
fn pass_leaves_it_to_the_host() {
    let (_agent, lab) = nobody("pass");
    lab.balancer.ip(&format!(
        "address add {}/32 dev lo\naddress add {}/128 dev lo nodad\n",
        lab.vip4(1),
        lab.vip6(1)
    ));
    let ports = Ports {
        tcp: targets(&lab, 7).to_vec(),
        http: Vec::new(),
        udp: targets(&lab, 53).to_vec(),
    };
    let _host = Server::start(&lab.balancer, "host", ports);
    for at in targets(&lab, 7) {
        let report = sequential(&lab.client, at, &Ask::Name, 5);
        assert_eq!(report.distribution(), [("host".into(), 5)].into(), "{at}");
    }
    for at in targets(&lab, 53) {
        let answer = exchange(&lab.client, at, b"anybody?", BOUND).expect("an answer");
        assert_eq!(answer, b"host:anybody?");
    }
}

#[test]
fn large_datagrams_come_back_whole() {
    let bed = Bed::new(3, |lab| {
        let keys = format!("{QUICK_CHECK}type = \"tcp\"\nport = {ECHO}\n");
        frontend("dns", vip4(lab, 1, 53), "udp", "four")
            + &pool("four", &keys, &backends4(lab, ECHO, &EVEN))
            + &frontend("dns6", vip6(lab, 1, 53), "udp", "six")
            + &pool("six", &keys, &backends6(lab, ECHO, &EVEN))
    });
    for at in targets(&bed.lab, 53) {
        for number in 0..30u32 {
            let length = 4000 + number as usize * 7;
            let datagram: Vec<u8> = (0..length)
                .map(|i| (i as u32 * 31 + number) as u8)
                .collect();
            let answer = exchange(&bed.lab.client, at, &datagram, BOUND)
                .unwrap_or_else(|error| panic!("{at}, {length} bytes: {error}"));
            let (name, echoed) = answer.split_at(3);
            assert!(
                [b"s0:", b"s1:", b"s2:"].iter().any(|n| &name == n),
                "{name:?}"
            );
            assert!(
                echoed == datagram,
                "{at}: {length} bytes came back otherwise"
            );
        }
    }
    println!("{} later fragments", bed.reason("fragment_forwarded"));
    // Two later fragments each way.
    assert!(bed.reason("fragment_forwarded") >= 2 * 30 * 4);
    assert_eq!(bed.reason("fragment_unknown"), 0);
}
