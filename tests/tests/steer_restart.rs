//! The agent goes away and comes back under load: killed, ended in good order, and as
//! another build. The kernel program steers on alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use balancer_tests::bed::{Bed, NOT_PASSIVE, QUICK_CHECK, backends4, backends6, frontend, pool};
use balancer_tests::bed::{vip4, vip6};
use balancer_tests::load::held::Held;
use balancer_tests::load::{Ask, LONG_PATIENCE, Stream, sequential};
use balancer_tests::process::Stalls;
use balancer_tests::server::ECHO;

const RATE: u32 = 500;
/// Half of TCP's shortest timeout.
const STALLED: Duration = Duration::from_millis(100);
const EVERY: Duration = Duration::from_millis(20);

fn bed() -> Bed {
    Bed::new(3, |lab| {
        let keys = format!("{QUICK_CHECK}{NOT_PASSIVE}");
        frontend("echo", vip4(lab, 1, 7), "tcp", "echo")
            + &pool("echo", &keys, &backends4(lab, ECHO, &[1, 1, 1]))
            + &frontend("echo6", vip6(lab, 1, 7), "tcp", "echo6")
            + &pool("echo6", &keys, &backends6(lab, ECHO, &[1, 1, 1]))
    })
}

/// Runs `work` under load, beside connections that stay open, and asserts that none
/// of them noticed. Returns how many segments were sent again without a reason: 0 when
/// the machine stood still for so long that nothing can be said.
#[track_caller]
fn undisturbed(bed: &mut Bed, what: &str, work: impl FnOnce(&mut Bed, &Stream)) -> i64 {
    let (at4, at6) = (vip4(&bed.lab, 1, 7), vip6(&bed.lab, 1, 7));
    let held4 = Held::open(&bed.lab.client, at4, 60, EVERY);
    let held6 = Held::open(&bed.lab.client, at6, 60, EVERY);
    let before = (bed.retransmitted(), bed.dropped());
    let begin = Instant::now();
    let stalls = Stalls::watch();
    let stream = Stream::with(&bed.lab.client, at4, Ask::Name, RATE, LONG_PATIENCE);
    stream.wait_for(u64::from(RATE) / 4);
    work(bed, &stream);
    stream.wait_for(u64::from(RATE) / 4);
    let report = stream.stop();
    let stall = stalls.worst();
    let again = bed.retransmitted() - before.0;
    let dropped = bed.dropped() - before.1;
    let counts = report.distribution();
    println!(
        "{what}: {} connections in {:?}, {} failed, {again} segments sent again, \
         {dropped} packets dropped by devices, the machine late by {stall:?}, {counts:?}",
        report.attempts.len(),
        begin.elapsed(),
        report.failed(),
    );
    assert_eq!(report.failed(), 0, "{what}: {:?}", report.failures());
    assert!(report.spread(&bed.names()) <= 2, "{what}: {counts:?}");
    for kept in held4.finish().iter().chain(&held6.finish()) {
        assert_eq!(kept.failure, None, "{what}: {kept:?}");
        assert!(kept.exchanges > 1, "{what}: {kept:?}");
    }
    match stall < STALLED {
        true => (again - dropped).max(0),
        false => 0,
    }
}

/// A quiet phase before and after tells what this machine does without any restart.
#[track_caller]
fn assert_none_sent_again(quiet: [i64; 2], again: i64) {
    let noise = quiet[0] + quiet[1];
    assert!(
        again <= noise,
        "{again} segments sent again, {noise} without restarts"
    );
}

fn quiet(bed: &mut Bed, connections: u64) -> i64 {
    undisturbed(bed, "quiet", |_, stream| stream.wait_for(connections))
}

#[test]
fn ten_kills_lose_nothing() {
    let mut bed = bed();
    let before = quiet(&mut bed, 2500);
    let mut gone = Duration::ZERO;
    let again = undisturbed(&mut bed, "ten kills", |bed, stream| {
        for _ in 0..10 {
            let killed = Instant::now();
            bed.agent.kill9();
            stream.wait_for(u64::from(RATE) / 4);
            bed.agent.run();
            gone += killed.elapsed();
            stream.wait_for(u64::from(RATE) / 4);
        }
    });
    println!("without an agent for {gone:?} in all");
    let after = quiet(&mut bed, 2500);
    assert_none_sent_again([before, after], again);
    bed.agent.wait_all_up();
}

#[test]
fn ends_in_good_order_lose_nothing() {
    let mut bed = bed();
    let before = quiet(&mut bed, 500);
    let again = undisturbed(&mut bed, "three SIGTERMs", |bed, stream| {
        for _ in 0..3 {
            assert_eq!(bed.agent.terminate(), Some(0));
            stream.wait_for(u64::from(RATE) / 4);
            bed.agent.run();
            stream.wait_for(u64::from(RATE) / 4);
        }
    });
    let after = quiet(&mut bed, 500);
    assert_none_sent_again([before, after], again);
}

#[test]
fn an_upgrade_loses_nothing() {
    let mut bed = bed();
    let dir = tempfile::tempdir().expect("a directory");
    let other = dir.path().join("balancer-next");
    fs::copy(bed.agent.binary(), &other).expect("copy the binary");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).expect("make it run");
    let program = bed.agent.status()["node"]["program_id"].clone();
    let before = quiet(&mut bed, 500);
    let again = undisturbed(&mut bed, "upgrade", |bed, stream| {
        bed.agent.upgrade(&other);
        bed.agent.kill9();
        stream.wait_for(u64::from(RATE) / 4);
        bed.agent.run();
        stream.wait_for(u64::from(RATE) / 4);
    });
    let after = quiet(&mut bed, 500);
    assert_none_sent_again([before, after], again);
    println!(
        "program {program}, then {}",
        bed.agent.status()["node"]["program_id"]
    );
}

#[test]
fn what_happened_without_an_agent_is_found() {
    let mut bed = bed();
    bed.agent.kill9();
    bed.servers[1].kill9();
    bed.agent.run();
    bed.agent.wait_health("echo", "s1", "down");
    bed.agent.wait_health("echo6", "s1", "down");
    for at in [vip4(&bed.lab, 1, 7), vip6(&bed.lab, 1, 7)] {
        let report = sequential(&bed.lab.client, at, &Ask::Name, 20);
        assert_eq!(report.failed(), 0, "{:?}", report.failures());
        assert_eq!(
            report.spread(&["s0", "s2"]),
            0,
            "{:?}",
            report.distribution()
        );
    }
}

#[test]
fn a_changed_file_is_applied_by_the_next_start() {
    let mut bed = bed();
    let held = Held::open(&bed.lab.client, vip4(&bed.lab, 1, 7), 30, EVERY);
    bed.agent.kill9();
    let keys = format!("{QUICK_CHECK}{NOT_PASSIVE}");
    let lab = &bed.lab;
    let mut backends = backends4(lab, ECHO, &[3, 1, 1]);
    backends.remove(1);
    bed.agent.write_config(
        &(frontend("echo", vip4(lab, 1, 7), "tcp", "echo") + &pool("echo", &keys, &backends)),
    );
    bed.agent.run();
    bed.agent.wait_all_up();
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 7), &Ask::Name, 40);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert_eq!(
        report.distribution(),
        [("s0".into(), 30), ("s2".into(), 10)].into()
    );
    let gone = sequential(&bed.lab.client, vip6(&bed.lab, 1, 7), &Ask::Name, 1);
    assert_eq!(gone.failed(), 1, "its frontend is no more");
    let kept = held.finish();
    assert!(kept.iter().all(|kept| kept.failure.is_none()), "{kept:?}");
}

#[test]
fn a_second_agent_of_the_same_place_is_refused() {
    let bed = bed();
    let mut command = bed.lab.balancer.command(bed.agent.binary());
    command
        .args(["run", "--config"])
        .arg(bed.agent.config_path());
    let output = command.output().expect("run it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 7), &Ask::Name, 30);
    assert_eq!(report.spread(&bed.names()), 0);
}
