//! A server dies or its host vanishes while connections come in, and comes back.

use std::time::{Duration, Instant};

use balancer_tests::bed::{Bed, NOT_PASSIVE, QUICK_CHECK, backends4, frontend, pool, vip4};
use balancer_tests::load::held::{Held, Kept};
use balancer_tests::load::{Ask, PATIENCE, Report, Stream};
use balancer_tests::process::{BOUND, came_true};
use balancer_tests::server::ECHO;

const RATE: u32 = 500;
const EVERY: Duration = Duration::from_millis(20);
const VICTIM: &str = "s1";
/// The promise is 400 ms; the rest is for a machine that has other things to do.
const TAKEN_OUT: Duration = Duration::from_millis(1500);
/// No check comes before the test is over, so that only signs can have told.
const RARE_CHECK: &str = "[pool.check]\ninterval = \"1m\"\nfast_interval = \"1m\"\n\
     timeout = \"5s\"\nfall = 3\nrise = 1\n";

fn bed(keys: &str) -> Bed {
    Bed::new(3, |lab| {
        frontend("echo", vip4(lab, 1, 7), "tcp", "echo")
            + &pool("echo", keys, &backends4(lab, ECHO, &[1, 1, 1]))
    })
}

fn hold(bed: &Bed) -> Held {
    let held = Held::open(&bed.lab.client, vip4(&bed.lab, 1, 7), 60, EVERY);
    let even = bed.names().iter().map(|&n| (n.to_owned(), 20)).collect();
    assert_eq!(held.distribution(), even);
    held
}

fn load(bed: &Bed) -> Stream {
    let stream = Stream::start(&bed.lab.client, vip4(&bed.lab, 1, 7), Ask::Name, RATE);
    stream.wait_for(u64::from(RATE) / 2);
    stream
}

#[track_caller]
fn assert_others_untouched(kept: &[Kept]) {
    let others = kept.iter().filter(|k| k.server.as_deref() != Some(VICTIM));
    for kept in others {
        assert_eq!(kept.failure, None, "{kept:?}");
        assert!(kept.exchanges >= 1);
    }
}

fn between(report: &Report, from: Instant, to: Instant) -> Report {
    let mut part = report.since(from);
    part.attempts.retain(|attempt| attempt.started < to);
    part
}

#[test]
fn checks_take_a_killed_server_out_and_bring_it_back() {
    let mut bed = bed(&format!("{QUICK_CHECK}{NOT_PASSIVE}"));
    let held = hold(&bed);
    let stream = load(&bed);
    let killed = Instant::now();
    bed.servers[1].kill9();
    held.wait_broken(20);
    bed.agent.wait_health("echo", VICTIM, "down");
    let down = Instant::now();
    stream.wait_for(u64::from(RATE));
    let restarted = Instant::now();
    bed.servers[1].restart();
    bed.agent.wait_health("echo", VICTIM, "up");
    let up = Instant::now();
    stream.wait_for(u64::from(RATE) / 2);
    assert_eq!(held.broken(), 20, "only those of the dead server");
    let report = stream.stop();
    let kept = held.finish();

    let dead = between(&report, killed, restarted);
    let last = dead.last_reached(VICTIM, killed);
    println!(
        "{} connections; of {} since the kill {} failed; the last reached it {last:?} after; \
         status said so within {:?}; up {:?} after its start",
        report.attempts.len(),
        dead.attempts.len(),
        dead.failed(),
        down - killed,
        up - restarted,
    );
    assert!(last.is_none_or(|last| last < TAKEN_OUT), "{last:?}");
    assert_eq!(between(&report, down, restarted).failed(), 0);
    let after = report.since(up);
    assert_eq!(after.failed(), 0, "{:?}", after.failures());
    assert!(after.distribution()[VICTIM] > 0);
    assert_others_untouched(&kept);
}

#[test]
fn refused_connections_tell_without_any_check() {
    let keys = format!("{RARE_CHECK}[pool.passive]\nrefused = true\nunanswered = false\n");
    let mut bed = bed(&keys);
    let held = hold(&bed);
    let stream = load(&bed);
    let killed = Instant::now();
    bed.servers[1].kill9();
    bed.agent.wait_health("echo", VICTIM, "down");
    let down = Instant::now();
    stream.wait_for(u64::from(RATE) / 2);
    let report = stream.stop();
    let kept = held.finish();
    let since = report.since(killed);
    println!(
        "{} of {} failed since the kill; the last reached it {:?} after; {}",
        since.failed(),
        since.attempts.len(),
        since.last_reached(VICTIM, killed),
        bed.agent.backend("echo", VICTIM)["health_reason"],
    );
    // Three signs are enough; what else fails was on its way when they were read.
    assert!(since.failed() >= 3, "{:?}", since.failures());
    assert!(since.failed() <= 100, "{:?}", since.failures());
    let after = report.since(down);
    assert_eq!(after.failed(), 0, "{:?}", after.failures());
    assert!(!after.distribution().contains_key(VICTIM));
    assert!(bed.reason("syn_refused") >= 3);
    assert_others_untouched(&kept);
}

#[test]
fn unanswered_connections_tell_that_a_host_vanished() {
    let keys = format!("{RARE_CHECK}[pool.passive]\nrefused = true\nunanswered = \"200ms\"\n");
    let bed = bed(&keys);
    let held = hold(&bed);
    let stream = load(&bed);
    let vanished = Instant::now();
    bed.lab.servers[1].ns.nft(
        "table inet gone { chain c { type filter hook input priority 0; meta l4proto tcp drop; }; }",
    );
    bed.agent.wait_health("echo", VICTIM, "down");
    let down = Instant::now();
    stream.wait_for(u64::from(RATE) / 2);
    let report = stream.stop();
    let since = report.since(vanished);
    println!(
        "down {:?} after; {} of {} failed since; {}",
        down - vanished,
        since.failed(),
        since.attempts.len(),
        bed.agent.backend("echo", VICTIM)["health_reason"],
    );
    let after = report.since(down);
    assert_eq!(after.failed(), 0, "{:?}", after.failures());
    assert!(!after.distribution().contains_key(VICTIM));
    // Whose first SYN was lost is steered to another server when he repeats it.
    let late = since.attempts.iter().filter(|a| {
        a.started < down
            && a.outcome.as_ref().is_ok_and(|name| name != VICTIM)
            && a.took > PATIENCE / 4
    });
    println!("{} were steered anew", late.count());
    assert_others_untouched(&held.finish());
}

#[test]
fn checks_notice_a_host_that_vanished_and_came_back() {
    let keys = "[pool.check]\ninterval = \"100ms\"\ntimeout = \"300ms\"\nfall = 3\nrise = 2\n";
    let mut bed = bed(&format!("{keys}{NOT_PASSIVE}"));
    let place = bed.lab.servers[1].ns.clone();
    place.run("ip link set eth0 down");
    bed.agent.wait_health("echo", VICTIM, "down");
    let stream = load(&bed);
    let report = stream.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert!(!report.distribution().contains_key(VICTIM));
    place.ip("link set eth0 up\nroute replace default via 10.2.1.1\n");
    bed.agent.wait_health("echo", VICTIM, "up");
    let stream = load(&bed);
    assert!(came_true(BOUND, || bed.servers[1].stats().tcp > 0));
    let report = stream.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert!(report.distribution()[VICTIM] > 0);
    bed.servers.clear();
}
