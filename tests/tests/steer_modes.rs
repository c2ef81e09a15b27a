//! Ways to run: two agents on one machine, a start by `ip netns exec`, and XDP in the
//! network stack instead of the driver.

use balancer_tests::agent::Agent;
use balancer_tests::bed::{
    Bed, NOT_PASSIVE, QUICK_CHECK, SMALL, backends4, backends6, frontend, name, pool, vip4, vip6,
};
use balancer_tests::bench::tcp::soak;
use balancer_tests::load::held::Held;
use balancer_tests::load::{Ask, Stream, sequential, udp};
use balancer_tests::process::BOUND;
use balancer_tests::server::{ECHO, Server};
use balancer_tests::topology::{Lab, Options};
use std::time::Duration;

const EVEN: [u32; 3] = [1, 1, 1];

fn config(lab: &Lab) -> String {
    let keys = format!("{QUICK_CHECK}type = \"tcp\"\nport = {ECHO}\n{NOT_PASSIVE}");
    frontend("echo", vip4(lab, 1, 7), "tcp", "four")
        + &frontend("dns", vip4(lab, 1, 53), "udp", "four")
        + &pool("four", &keys, &backends4(lab, ECHO, &EVEN))
        + &frontend("echo6", vip6(lab, 1, 7), "tcp", "six")
        + &frontend("dns6", vip6(lab, 1, 53), "udp", "six")
        + &pool("six", &keys, &backends6(lab, ECHO, &EVEN))
}

#[track_caller]
fn assert_steers(lab: &Lab) {
    for at in [vip4(lab, 1, 7), vip6(lab, 1, 7)] {
        let report = sequential(&lab.client, at, &Ask::Name, 90);
        assert_eq!(report.failed(), 0, "{at}: {:?}", report.failures());
        assert_eq!(report.spread(&["s0", "s1", "s2"]), 0, "{at}");
    }
    for at in [vip4(lab, 1, 53), vip6(lab, 1, 53)] {
        let flows = udp::flows(&lab.client, at, 30, 3, BOUND);
        let counts: Vec<usize> = udp::distribution(&flows).into_values().collect();
        assert_eq!(counts, [10, 10, 10], "{at}");
    }
}

#[test]
fn two_agents_do_not_disturb_each_other() {
    let one = Bed::new(3, config);
    let mut two = Bed::new(3, config);
    let at = vip4(&one.lab, 1, 7);
    let held = Held::open(&one.lab.client, at, 30, Duration::from_millis(20));
    let stream = Stream::start(&one.lab.client, at, Ask::Name, 300);
    stream.wait_for(100);
    assert_steers(&two.lab);
    two.servers[0].kill9();
    two.agent.wait_health("four", "s0", "down");
    assert_eq!(one.agent.backend("four", "s0")["health"], "up");
    two.agent.kill9();
    stream.wait_for(100);
    two.agent.run();
    stream.wait_for(100);
    drop(two);
    stream.wait_for(100);
    let report = stream.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert!(
        report.spread(&one.names()) <= 1,
        "{:?}",
        report.distribution()
    );
    let kept = held.finish();
    assert!(kept.iter().all(|kept| kept.failure.is_none()), "{kept:?}");
    assert_steers(&one.lab);
}

#[test]
fn a_start_in_a_private_sys_outlives_its_agent() {
    let lab = Lab::new(3);
    let servers: Vec<Server> = (0..3)
        .map(|i| Server::at(&lab.servers[i], &name(i)))
        .collect();
    let mut agent = Agent::prepare_with(&lab.balancer, lab.interfaces(), SMALL, &config(&lab));
    agent.with_private_mounts();
    agent.run();
    agent.wait_all_up();
    assert_steers(&lab);
    let at = vip4(&lab, 1, 7);
    let held = Held::open(&lab.client, at, 30, Duration::from_millis(20));
    agent.kill9();
    assert_steers(&lab);
    agent.run();
    agent.wait_all_up();
    assert_steers(&lab);
    let kept = held.finish();
    assert!(kept.iter().all(|kept| kept.failure.is_none()), "{kept:?}");
    drop(servers);
}

#[test]
fn generic_mode_steers_too() {
    let xdp = format!("mode = \"generic\"\n{SMALL}");
    let mut bed = Bed::with(&Options::default(), &xdp, config);
    let status = bed.agent.status();
    let interfaces = status["node"]["interfaces"].as_array().expect("a list");
    assert_eq!(interfaces.len(), bed.lab.interfaces().len());
    assert!(
        interfaces.iter().all(|i| i["mode"] == "generic"),
        "{status:#}"
    );
    assert_steers(&bed.lab);
    bed.servers[1].kill9();
    bed.agent.wait_health("four", "s1", "down");
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 7), &Ask::Name, 20);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    bed.servers[1].restart();
    bed.agent.wait_all_up();
    bed.agent.kill9();
    assert_steers(&bed.lab);
}

/// Packets of one connection are on two cores at once: the ACK that moves a flow from one
/// table to the other, and the request behind it.
#[test]
fn flows_are_not_lost_between_two_cores() {
    for mode in ["generic", "native"] {
        let rate = soak(
            &format!("mode = \"{mode}\"\n{SMALL}"),
            Duration::from_secs(4),
        );
        let rate = rate.unwrap_or_else(|error| panic!("{mode}: {error:#}"));
        assert!(rate > 0.0, "{mode}: not one connection");
    }
}
