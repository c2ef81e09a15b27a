//! What operators say about a server: drain, activate, stop.

use std::time::{Duration, Instant};

use balancer_tests::bed::{Bed, NOT_PASSIVE, QUICK_CHECK, backends4, frontend, pool, vip4};
use balancer_tests::load::held::Held;
use balancer_tests::load::{Ask, Failure, Stream, sequential};
use balancer_tests::process::{BOUND, wait_until};
use balancer_tests::server::ECHO;

const RATE: u32 = 500;
const EVERY: Duration = Duration::from_millis(20);

fn bed() -> Bed {
    Bed::new(3, |lab| {
        let keys = format!("{QUICK_CHECK}{NOT_PASSIVE}");
        "[timeouts]\nclosed = \"1s\"\n\n".to_owned()
            + &frontend("echo", vip4(lab, 1, 7), "tcp", "echo")
            + &pool("echo", &keys, &backends4(lab, ECHO, &[1, 1, 1]))
            + &frontend("held", vip4(lab, 1, 8), "tcp", "held")
            + &pool("held", &keys, &backends4(lab, ECHO, &[1, 1, 1]))
    })
}

fn hold(bed: &Bed, count: usize) -> Held {
    Held::open(&bed.lab.client, vip4(&bed.lab, 1, 8), count, EVERY)
}

fn load(bed: &Bed) -> Stream {
    let stream = Stream::start(&bed.lab.client, vip4(&bed.lab, 1, 7), Ask::Name, RATE);
    stream.wait_for(u64::from(RATE) / 4);
    stream
}

#[test]
fn a_drain_fails_nothing_and_counts_down_to_zero() {
    let bed = bed();
    let held = hold(&bed, 36);
    assert_eq!(held.distribution()["s1"], 12);
    let stream = load(&bed);
    bed.agent.order(&["drain", "held/s1"]);
    bed.agent.order(&["drain", "echo/s1"]);
    let drained = Instant::now();
    stream.wait_for(u64::from(RATE));
    let status = bed.agent.backend("held", "s1");
    assert_eq!(status["activation"], "drain", "{status:#}");
    assert_eq!(status["health"], "up", "checks go on");
    assert_eq!(bed.flows("held", "s1"), 12, "{status:#}");
    let said = bed.agent.order(&["drain", "held/s1"]);
    assert!(said.contains("12"), "says how many are left: {said}");
    assert_eq!(
        bed.agent
            .order(&["flows", "--count", "--backend", "held/s1"])
            .trim(),
        "12"
    );

    let later = hold(&bed, 10);
    assert!(!later.distribution().contains_key("s1"));
    let kept = held.finish();
    assert!(kept.iter().all(|kept| kept.failure.is_none()), "{kept:?}");
    wait_until("no flow to be left", BOUND, || bed.flows("held", "s1") == 0);
    let waited = bed
        .agent
        .order(&["drain", "held/s1", "--wait", "--timeout", "10s"]);
    println!("{waited}");
    wait_until("no request to be left", BOUND, || {
        bed.flows("echo", "s1") == 0
    });

    // Over before the activation, of which nobody can say when it holds.
    let report = stream.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    let while_drained = report.since(drained);
    println!("while drained {:?}", while_drained.distribution());
    let still = while_drained.last_reached("s1", drained);
    assert_eq!(still, None, "a connection that began after the drain");

    let stream = load(&bed);
    bed.agent.order(&["activate", "echo/s1"]);
    let active = Instant::now();
    stream.wait_for(u64::from(RATE) / 4);
    let report = stream.stop();
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    let back = report.since(active).distribution();
    println!("then {back:?}");
    assert!(back["s1"] > 0);
    assert!(later.finish().iter().all(|kept| kept.failure.is_none()));
}

#[test]
fn a_stop_cuts_what_is_open_and_nothing_else() {
    let bed = bed();
    let held = hold(&bed, 36);
    let stream = load(&bed);
    bed.agent.order(&["stop", "held/s1"]);
    held.wait_broken(12);
    let later = hold(&bed, 10);
    assert!(!later.distribution().contains_key("s1"));
    assert_eq!(held.broken(), 12);
    let kept = held.finish();
    for kept in &kept {
        match kept.server.as_deref() {
            Some("s1") => assert_eq!(kept.failure, Some(Failure::Reset), "{kept:?}"),
            _ => assert_eq!(kept.failure, None, "{kept:?}"),
        }
    }
    assert!(later.finish().iter().all(|kept| kept.failure.is_none()));
    let report = stream.stop();
    assert_eq!(
        report.failed(),
        0,
        "the other pool: {:?}",
        report.failures()
    );

    bed.agent.order(&["activate", "held/s1"]);
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 8), &Ask::Name, 30);
    assert_eq!(
        report.spread(&bed.names()),
        0,
        "{:?}",
        report.distribution()
    );
}

#[test]
fn an_operators_word_outlives_the_agent() {
    let mut bed = bed();
    bed.agent.order(&["drain", "echo/s2"]);
    bed.agent.kill9();
    bed.agent.run();
    bed.agent.wait_all_up();
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 7), &Ask::Name, 30);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert!(
        !report.distribution().contains_key("s2"),
        "{:?}",
        report.distribution()
    );
    let status = bed.agent.backend("echo", "s2");
    assert_eq!(status["activation"], "drain");
    assert_eq!(status["overridden"], true);
}

#[test]
fn a_backend_that_is_not_there_is_refused() {
    let bed = bed();
    let said = bed.agent.command(&["drain", "echo/s9"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("s9"), "{said:?}");
    let said = bed.agent.command(&["drain", "s1"]);
    assert_eq!(said.code, Some(1), "in two pools: {said:?}");
}
