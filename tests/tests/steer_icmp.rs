//! ICMP in both directions: errors about a flow reach whom they concern, as from the
//! one that he talks to; echo requests are answered.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use balancer_tests::bed::{
    Bed, NOT_PASSIVE, QUICK_CHECK, SMALL, backends4, backends6, frontend, pool, vip4, vip6,
};
use balancer_tests::icmp::{Errors, exchange, ping};
use balancer_tests::load::{Ask, sequential};
use balancer_tests::process::BOUND;
use balancer_tests::server::HTTP;
use balancer_tests::topology::{Lab, Options};

const EVEN: [u32; 3] = [1, 1, 1];
const CLOSED: u16 = 9;

fn web(lab: &Lab, snat: bool) -> String {
    let keys = |address: IpAddr| {
        let snat = match snat {
            true => format!("snat = [\"{address}\"]\n"),
            false => String::new(),
        };
        format!("{snat}{QUICK_CHECK}{NOT_PASSIVE}")
    };
    frontend("web", vip4(lab, 1, 80), "tcp", "web")
        + &pool(
            "web",
            &keys(lab.snat4(1).into()),
            &backends4(lab, HTTP, &EVEN),
        )
        + &frontend("web6", vip6(lab, 1, 80), "tcp", "web6")
        + &pool(
            "web6",
            &keys(lab.snat6(1).into()),
            &backends6(lab, HTTP, &EVEN),
        )
}

/// The path MTU that a server's kernel remembers towards an address.
fn remembered_mtu(bed: &Bed, server: usize, towards: IpAddr) -> Option<String> {
    let route = bed.lab.servers[server]
        .ns
        .run(&format!("ip route get {towards}"));
    let mut words = route.split_whitespace();
    words.by_ref().find(|word| *word == "mtu")?;
    words.next().map(str::to_owned)
}

fn path_mtu(snat: bool) {
    let options = Options {
        router_mtu: Some(1300),
        snat,
        ..Options::default()
    };
    let bed = Bed::with(&options, SMALL, |lab| web(lab, snat));
    let lab = &bed.lab;
    for server in &bed.servers {
        server.body(200_000);
    }
    let seen: [IpAddr; 2] = match snat {
        true => [lab.snat4(1).into(), lab.snat6(1).into()],
        false => [lab.client4().into(), lab.client6().into()],
    };
    for (at, towards) in [(vip4(lab, 1, 80), seen[0]), (vip6(lab, 1, 80), seen[1])] {
        let errors = bed.reason("icmp_error_forwarded");
        let report = sequential(&lab.client, at, &Ask::Http("/".into()), 1);
        assert_eq!(report.failed(), 0, "{at}: {:?}", report.failures());
        let first = report.order()[0].to_owned();
        let learned = bed.reason("icmp_error_forwarded") - errors;
        println!(
            "{at}: {first} took {:?}, {learned} errors",
            report.attempts[0].took
        );
        assert!(learned >= 1);
        for (i, name) in bed.names().into_iter().enumerate() {
            let mtu = remembered_mtu(&bed, i, towards);
            let wanted = (name == first).then(|| "1300".to_owned());
            assert_eq!(mtu, wanted, "{name} towards {towards}, {first} was asked");
        }
        let report = sequential(&lab.client, at, &Ask::Http("/".into()), 5);
        assert_eq!(report.failed(), 0, "{at}: {:?}", report.failures());
    }
    assert_eq!(bed.reason("icmp_error_unknown"), 0);
}

#[test]
fn path_mtu_is_learned_by_the_right_server() {
    path_mtu(false);
}

#[test]
fn path_mtu_is_learned_through_snat() {
    path_mtu(true);
}

#[test]
fn echo_requests_are_answered() {
    let bed = Bed::new(3, |lab| web(lab, false));
    let before = bed.reason("echo_answered");
    let targets: [IpAddr; 2] = [bed.lab.vip4(1).into(), bed.lab.vip6(1).into()];
    for target in targets {
        for length in [0, 1, 56, 57, 1400] {
            let data: Vec<u8> = (0..length).map(|i| i as u8).collect();
            assert!(
                ping(&bed.lab.client, target, &data, BOUND),
                "{target}, {length} bytes"
            );
        }
    }
    assert_eq!(bed.reason("echo_answered") - before, 10);
    let nobody = bed.lab.vip4(200).into();
    assert!(!ping(
        &bed.lab.client,
        nobody,
        b"x",
        Duration::from_millis(200)
    ));
}

#[test]
fn a_closed_udp_port_is_told_as_from_the_frontend() {
    let bed = Bed::new(3, |lab| {
        frontend("closed", vip4(lab, 1, 53), "udp", "closed")
            + &pool("closed", "", &backends4(lab, CLOSED, &EVEN))
            + &frontend("closed6", vip6(lab, 1, 53), "udp", "closed6")
            + &pool("closed6", "", &backends6(lab, CLOSED, &EVEN))
    });
    let check = |at: SocketAddr, unreachable: (u8, u8)| {
        for _ in 0..3 {
            let errors = Errors::listen(&bed.lab.client, at.is_ipv6());
            let error = exchange(&bed.lab.client, at, b"anybody?", BOUND).expect_err("closed");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{at}: {error}");
            let (from, kind, code) = errors.next(BOUND).expect("the error");
            assert_eq!((from, (kind, code)), (at.ip(), unreachable));
        }
    };
    let before = bed.reason("icmp_error_forwarded");
    check(vip4(&bed.lab, 1, 53), (3, 3));
    check(vip6(&bed.lab, 1, 53), (1, 4));
    assert_eq!(bed.reason("icmp_error_forwarded") - before, 6);
}
