//! Who gets which connection: exact round robin, weights, both families, UDP, source
//! translation, and what the checks find.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use balancer_tests::bed::{
    Bed, NOT_PASSIVE, QUICK_CHECK, SMALL, backends4, backends6, frontend, pool, vip4, vip6,
};
use balancer_tests::load::{Ask, sequential, udp};
use balancer_tests::process::BOUND;
use balancer_tests::server::{ECHO, HTTP, Mode};
use balancer_tests::topology::{Lab, Options};

const EVEN: [u32; 3] = [1, 1, 1];

fn checked() -> String {
    format!("{QUICK_CHECK}{NOT_PASSIVE}")
}

fn echo4(lab: &Lab, weights: &[u32]) -> String {
    frontend("echo", vip4(lab, 1, 7), "tcp", "echo")
        + &pool("echo", &checked(), &backends4(lab, ECHO, weights))
}

fn echo6(lab: &Lab, weights: &[u32]) -> String {
    frontend("echo6", vip6(lab, 1, 7), "tcp", "echo6")
        + &pool("echo6", &checked(), &backends6(lab, ECHO, weights))
}

/// Every run of answers as long as the weights' sum has each server as often as its
/// weight says.
#[track_caller]
fn assert_exact(order: &[&str], weights: &[u32]) {
    let cycle = weights.iter().sum::<u32>() as usize;
    for (at, window) in order.windows(cycle).enumerate() {
        for (i, &weight) in weights.iter().enumerate() {
            let name = format!("s{i}");
            let got = window.iter().filter(|have| ***have == *name).count();
            assert_eq!(got, weight as usize, "{name} from answer {at}: {window:?}");
        }
    }
}

#[test]
fn nine_thousand_connections_are_split_evenly() {
    let bed = Bed::new(3, |lab| echo4(lab, &EVEN));
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 7), &Ask::Name, 9000);
    println!("{:?}, {:?}", report.distribution(), report.failures());
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert!(report.spread(&bed.names()) <= 1);
    assert_exact(&report.order(), &EVEN);
}

#[test]
fn ports_that_come_round_start_new_flows() {
    let bed = Bed::new(3, |lab| {
        frontend("web", vip4(lab, 1, 80), "tcp", "web")
            + &pool("web", &checked(), &backends4(lab, HTTP, &EVEN))
    });
    // The server closes first, so that the client's port is free at once.
    let client = &bed.lab.client;
    client.sysctl("net.ipv4.ip_local_port_range", "40000 40199");
    let ask = Ask::Http("/".into());
    let report = sequential(client, vip4(&bed.lab, 1, 80), &ask, 1200);
    println!("{:?}, {:?}", report.distribution(), report.failures());
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert_exact(&report.order(), &EVEN);
    let mut uses = BTreeMap::new();
    for attempt in &report.attempts {
        *uses.entry(attempt.local).or_insert(0) += 1;
    }
    assert!(uses.len() <= 200 && uses.values().any(|&n| n >= 6));
}

#[test]
fn weights_are_exact_over_each_cycle_and_interleaved() {
    let weights = [5, 1, 1];
    let bed = Bed::new(3, |lab| echo4(lab, &weights) + &echo6(lab, &weights));
    for at in [vip4(&bed.lab, 1, 7), vip6(&bed.lab, 1, 7)] {
        let report = sequential(&bed.lab.client, at, &Ask::Name, 700);
        println!("{at}: {:?}", report.distribution());
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        let order = report.order();
        assert_exact(&order, &weights);
        let light = |name: &str| name != "s0";
        let beside = order.windows(2).find(|w| light(w[0]) && light(w[1]));
        assert_eq!(beside, None, "the light ones are apart");
    }
}

#[test]
fn ipv6_is_split_evenly() {
    let bed = Bed::new(3, |lab| echo6(lab, &EVEN));
    let report = sequential(&bed.lab.client, vip6(&bed.lab, 1, 7), &Ask::Name, 1500);
    println!("{:?}", report.distribution());
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert_exact(&report.order(), &EVEN);
}

#[test]
fn udp_flows_stay_with_one_server() {
    let bed = Bed::new(3, |lab| {
        let keys = format!("{QUICK_CHECK}type = \"tcp\"\nport = {ECHO}\n");
        frontend("dns", vip4(lab, 1, 53), "udp", "dns")
            + &pool("dns", &keys, &backends4(lab, ECHO, &EVEN))
            + &frontend("dns6", vip6(lab, 1, 53), "udp", "dns6")
            + &pool("dns6", &keys, &backends6(lab, ECHO, &EVEN))
    });
    for at in [vip4(&bed.lab, 1, 53), vip6(&bed.lab, 1, 53)] {
        // Connected sockets: an answer from anywhere else than the frontend is lost.
        let flows = udp::flows(&bed.lab.client, at, 300, 4, BOUND);
        let counts = udp::distribution(&flows);
        println!("{at}: {counts:?}");
        assert_eq!(counts, EVEN_OF_300.map(|(n, c)| (n.to_owned(), c)).into());
        let order: Vec<&str> = flows.iter().filter_map(udp::Flow::server).collect();
        assert_exact(&order, &EVEN);
    }
}

const EVEN_OF_300: [(&str, usize); 3] = [("s0", 100), ("s1", 100), ("s2", 100)];

#[test]
fn snat_serves_those_without_a_way_back() {
    let options = Options {
        snat: true,
        ..Options::default()
    };
    let bed = Bed::with(&options, SMALL, |lab| {
        let keys = |snat: IpAddr| format!("snat = [\"{snat}\"]\n{}", checked());
        let udp_keys = |snat: IpAddr| {
            format!("snat = [\"{snat}\"]\n{QUICK_CHECK}type = \"tcp\"\nport = {ECHO}\n")
        };
        let (snat4, snat6) = (IpAddr::from(lab.snat4(1)), IpAddr::from(lab.snat6(1)));
        frontend("echo", vip4(lab, 1, 7), "tcp", "echo")
            + &pool("echo", &keys(snat4), &backends4(lab, ECHO, &EVEN))
            + &frontend("echo6", vip6(lab, 1, 7), "tcp", "echo6")
            + &pool("echo6", &keys(snat6), &backends6(lab, ECHO, &EVEN))
            + &frontend("dns", vip4(lab, 1, 53), "udp", "dns")
            + &pool("dns", &udp_keys(snat4), &backends4(lab, ECHO, &EVEN))
            + &frontend("dns6", vip6(lab, 1, 53), "udp", "dns6")
            + &pool("dns6", &udp_keys(snat6), &backends6(lab, ECHO, &EVEN))
    });
    let (lab, client) = (&bed.lab, &bed.lab.client);
    for at in [vip4(lab, 1, 7), vip6(lab, 1, 7)] {
        let report = sequential(client, at, &Ask::Name, 900);
        println!("{at}: {:?}", report.distribution());
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        assert_exact(&report.order(), &EVEN);
    }
    for at in [vip4(lab, 1, 53), vip6(lab, 1, 53)] {
        let flows = udp::flows(client, at, 300, 3, BOUND);
        let counts = udp::distribution(&flows);
        println!("{at}: {counts:?}");
        assert_eq!(counts, EVEN_OF_300.map(|(n, c)| (n.to_owned(), c)).into());
    }
    for server in &bed.servers {
        let sources = server.stats().sources;
        assert_eq!(sources.get(&lab.snat4(1).into()), Some(&300), "{sources:?}");
        assert_eq!(sources.get(&lab.snat6(1).into()), Some(&300), "{sources:?}");
        assert!(!sources.contains_key(&lab.client4().into()));
        assert!(!sources.contains_key(&lab.client6().into()));
    }
}

#[test]
fn servers_see_the_client_without_snat() {
    let bed = Bed::new(3, |lab| echo4(lab, &EVEN));
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 7), &Ask::Name, 30);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    for server in &bed.servers {
        let sources = server.stats().sources;
        let from_client = sources.get(&bed.lab.client4().into());
        assert_eq!(from_client, Some(&10), "{sources:?}");
    }
}

#[test]
fn one_segment_is_enough() {
    let options = Options {
        shared_segment: true,
        ..Options::default()
    };
    let bed = Bed::with(&options, SMALL, |lab| {
        echo4(lab, &EVEN) + &echo6(lab, &EVEN)
    });
    for at in [vip4(&bed.lab, 1, 7), vip6(&bed.lab, 1, 7)] {
        let report = sequential(&bed.lab.client, at, &Ask::Name, 300);
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        assert_exact(&report.order(), &EVEN);
    }
}

#[test]
fn http_checks_believe_the_status_and_tcp_checks_the_connection() {
    let bed = Bed::new(3, |lab| {
        let check = "type = \"http\"\npath = \"/health\"\n";
        let keys = format!("{QUICK_CHECK}{check}{NOT_PASSIVE}");
        echo4(lab, &EVEN)
            + &frontend("web", vip4(lab, 1, 80), "tcp", "web")
            + &pool("web", &keys, &backends4(lab, HTTP, &EVEN))
            + &frontend("web6", vip6(lab, 1, 80), "tcp", "web6")
            + &pool("web6", &keys, &backends6(lab, HTTP, &EVEN))
    });
    let client = &bed.lab.client;
    let http = Ask::Http("/".into());
    let web = [vip4(&bed.lab, 1, 80), vip6(&bed.lab, 1, 80)];
    let echo = vip4(&bed.lab, 1, 7);

    bed.servers[1].health(503);
    for pool in ["web", "web6"] {
        bed.agent.wait_health(pool, "s1", "down");
    }
    for at in web {
        let counts = sequential(client, at, &http, 40).distribution();
        assert_eq!(
            counts,
            [("s0".into(), 20), ("s2".into(), 20)].into(),
            "{at}"
        );
    }
    let report = sequential(client, echo, &Ask::Name, 30);
    assert_eq!(report.distribution()["s1"], 10, "its TCP port is well");

    bed.servers[1].health(200);
    bed.servers[2].mode(Mode::Refuse);
    bed.agent.wait_health("echo", "s2", "down");
    bed.agent.wait_health("web", "s2", "down");
    bed.agent.wait_health("web", "s1", "up");
    for (at, ask) in [(echo, &Ask::Name), (web[0], &http)] {
        let counts = sequential(client, at, ask, 40).distribution();
        assert_eq!(
            counts,
            [("s0".into(), 20), ("s1".into(), 20)].into(),
            "{at}"
        );
    }
    bed.servers[2].mode(Mode::Normal);
    bed.agent.wait_all_up();
    let patience = Duration::from_secs(5);
    assert!(balancer_tests::process::came_true(patience, || {
        let report = sequential(client, echo, &Ask::Name, 9);
        report.spread(&bed.names()) == 0
    }));
}
