//! A backend that is the balancer's own host: the stack gets its packets as they came,
//! and answers from the frontend's address by itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use balancer_tests::agent::Agent;
use balancer_tests::bed::{
    NOT_PASSIVE, QUICK_CHECK, SMALL, backends4, backends6, frontend, pool, vip4, vip6,
};
use balancer_tests::load::{Ask, sequential};
use balancer_tests::server::{ECHO, Ports, Server};
use balancer_tests::topology::Lab;

const HERE: &str = "here";

/// Two servers elsewhere and one beside the agent, which listens on the frontends'
/// addresses too.
struct Beside {
    agent: Agent,
    here: Server,
    servers: Vec<Server>,
    lab: Lab,
}

impl Beside {
    fn new() -> Self {
        let lab = Lab::new(2);
        let own = [here4(&lab), here6(&lab)];
        let (v4, v6) = (vip4(&lab, 1, 7), vip6(&lab, 1, 7));
        lab.balancer.ip(&format!(
            "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad",
            v4.ip(),
            v6.ip()
        ));
        let servers = (0..2)
            .map(|i| Server::at(&lab.servers[i], &format!("s{i}")))
            .collect();
        let ports = Ports {
            tcp: vec![own[0], own[1], v4, v6],
            http: Vec::new(),
            udp: Vec::new(),
        };
        let here = Server::start(&lab.balancer, HERE, ports);
        let checked = format!("{QUICK_CHECK}{NOT_PASSIVE}");
        let member = |own| format!("[[pool.backend]]\nname = \"{HERE}\"\naddress = \"{own}\"\n");
        let config = frontend("echo", v4, "tcp", "echo")
            + &pool("echo", &checked, &backends4(&lab, ECHO, &[1, 1]))
            + &member(own[0])
            + &frontend("echo6", v6, "tcp", "echo6")
            + &pool("echo6", &checked, &backends6(&lab, ECHO, &[1, 1]))
            + &member(own[1]);
        let agent = Agent::start_with(&lab, SMALL, &config);
        agent.wait_all_up();
        Self {
            agent,
            here,
            servers,
            lab,
        }
    }

    fn frontends(&self) -> [SocketAddr; 2] {
        [vip4(&self.lab, 1, 7), vip6(&self.lab, 1, 7)]
    }
}

fn here4(_: &Lab) -> SocketAddr {
    SocketAddr::new("10.2.0.1".parse().expect("an address"), ECHO)
}

fn here6(_: &Lab) -> SocketAddr {
    SocketAddr::new("fd02::1".parse().expect("an address"), ECHO)
}

fn even(each: usize) -> BTreeMap<String, usize> {
    ["here", "s0", "s1"]
        .map(|name| (name.to_owned(), each))
        .into()
}

#[test]
fn the_host_itself_takes_its_turn() {
    let beside = Beside::new();
    for at in beside.frontends() {
        let report = sequential(&beside.lab.client, at, &Ask::Name, 900);
        println!("{at}: {:?}, {:?}", report.distribution(), report.failures());
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        assert_eq!(report.distribution(), even(300));
    }
    for pool in ["echo", "echo6"] {
        assert_eq!(
            beside.agent.backend(pool, HERE)["hop_problem"],
            "the address is this host's own"
        );
    }
}

/// A client repeats its SYN when the answer is lost. The stack has half a connection
/// then, and must get the SYN again, though it is the next server's turn.
#[test]
fn a_repeated_syn_goes_where_the_first_one_went() {
    let beside = Beside::new();
    beside.lab.balancer.nft(
        "add table inet lose\n\
         add chain inet lose out { type filter hook output priority 0; }\n\
         add rule inet lose out tcp sport 7 tcp flags & (syn | ack) == (syn | ack) \
         numgen inc mod 2 == 0 drop\n",
    );
    for at in beside.frontends() {
        let report = sequential(&beside.lab.client, at, &Ask::Name, 6);
        println!("{at}: {:?}, {:?}", report.distribution(), report.failures());
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        assert_eq!(report.distribution(), even(2));
    }
}

#[test]
fn the_others_take_over_and_it_comes_back() {
    let mut beside = Beside::new();
    let at = beside.frontends()[0];
    beside.here.kill9();
    beside.agent.wait_health("echo", HERE, "down");
    let report = sequential(&beside.lab.client, at, &Ask::Name, 100);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert_eq!(report.distribution().get(HERE), None);
    beside.here.restart();
    beside.agent.wait_health("echo", HERE, "up");
    beside.servers.iter_mut().for_each(Server::kill9);
    for name in ["s0", "s1"] {
        beside.agent.wait_health("echo", name, "down");
    }
    let report = sequential(&beside.lab.client, at, &Ask::Name, 100);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert_eq!(report.distribution().get(HERE), Some(&100));
}
