//! The acts, from the distribution to the agent's restart.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::show::{Show, milliseconds};
use super::stage::{NAMES, Stage};
use super::{Options, TAKEN_OUT};
use crate::counters::Counters;
use crate::load::held::{Held, Kept};
use crate::load::{Ask, Report, Stream, sequential_with};
use crate::process::{BOUND, came_true};

/// The server that is killed.
const VICTIM: usize = 1;
/// The server that is drained.
const DRAINED: &str = "s2";
/// How often an open connection exchanges a message.
const EVERY: Duration = Duration::from_millis(20);

pub fn distribution(stage: &mut Stage, show: &mut Show, options: &Options) {
    show.act("Round robin");
    show.say(format!(
        "{} requests, one after the other, each on a connection of its own.",
        options.requests
    ));
    let report = requests(stage, show, options.requests);
    table(show, &report.distribution(), [1, 1, 1]);
    show.promise("no request fails", report.failed() == 0, failures(&report));
    let spread = report.spread(&NAMES);
    show.promise(
        "servers of equal weight get equally many, at most 1 apart",
        spread <= 1,
        format!("{spread} apart"),
    );
}

pub fn weights(stage: &mut Stage, show: &mut Show, options: &Options) {
    let weights = [5, 1, 1];
    let cycle: u32 = weights.iter().sum();
    let count = options.requests / 3 / cycle * cycle;
    show.act("Weights by a reload");
    show.say("The configuration file changes to weights 5:1:1; `balancer reload` applies it.");
    stage.reweigh(weights);
    let report = requests(stage, show, count.max(cycle));
    let counts = report.distribution();
    table(show, &counts, weights);
    let share = report.attempts.len() / cycle as usize;
    let exact = NAMES.iter().zip(weights).all(|(name, weight)| {
        let got = counts.get(*name).copied().unwrap_or(0);
        got.abs_diff(share * weight as usize) <= 1
    });
    show.promise(
        "weights are honoured, at most 1 off",
        exact && report.failed() == 0,
        format!(
            "{} : {} : {}",
            of(&counts, 0),
            of(&counts, 1),
            of(&counts, 2)
        ),
    );
    stage.reweigh([1, 1, 1]);
}

pub fn kill_a_server(stage: &mut Stage, show: &mut Show, options: &Options) {
    let victim = NAMES[VICTIM];
    show.act("A server dies under load");
    show.say(format!(
        "{} requests a second, {} connections that stay open, checks every 100 ms; then",
        options.rate, options.held
    ));
    show.say(format!(
        "`kill -9` hits {victim}, and a while later it is started again."
    ));
    let spinner = show.spinner("load");
    let held = hold(stage, options);
    let stream = load(stage, options);
    stream.wait_for(u64::from(options.rate));
    let killed = Instant::now();
    stage.servers[VICTIM].kill9();
    stream.wait_for(u64::from(options.rate) * 2);
    stage.servers[VICTIM].restart();
    let back = Instant::now();
    let returned = came_true(BOUND, || {
        ["web", "echo"]
            .iter()
            .all(|pool| stage.agent.backend(pool, victim)["health"] == "up")
    });
    let up = Instant::now();
    stream.wait_for(u64::from(options.rate) / 2);
    let report = stream.stop();
    let kept = held.finish();
    spinner.finish_and_clear();

    let dead = Report {
        attempts: report
            .since(killed)
            .attempts
            .into_iter()
            .filter(|a| a.started < back)
            .collect(),
    };
    let last = dead.last_reached(victim, killed);
    let (theirs, others): (Vec<&Kept>, Vec<&Kept>) = kept
        .iter()
        .partition(|kept| kept.server.as_deref() == Some(victim));
    let touched = others.iter().filter(|kept| kept.failure.is_some()).count();
    let in_flight = report.failed() - report.since(killed).failed();
    let exchanges: u64 = others.iter().map(|kept| kept.exchanges).sum();
    show.table(
        ["", "value"],
        [
            ["requests".into(), report.attempts.len().to_string()],
            [
                "failed, begun before the kill".into(),
                in_flight.to_string(),
            ],
            [
                "failed, begun after the kill".into(),
                dead.failed().to_string(),
            ],
            [
                "last new connection that reached the dead server".into(),
                milliseconds(last),
            ],
            [
                format!("open connections to {victim}, lost with it"),
                theirs.len().to_string(),
            ],
            [
                "open connections to the others".into(),
                others.len().to_string(),
            ],
            [
                "messages on them, all answered".into(),
                exchanges.to_string(),
            ],
        ],
    );
    show.promise(
        format!(
            "no new connection reaches it after {} ms",
            TAKEN_OUT.as_millis()
        ),
        last.is_none_or(|last| last <= TAKEN_OUT),
        milliseconds(last),
    );
    show.promise(
        "connections open to the others are untouched",
        touched == 0 && !others.is_empty(),
        format!("{touched} of {} touched", others.len()),
    );
    let again = report
        .since(up)
        .distribution()
        .get(victim)
        .copied()
        .unwrap_or(0);
    show.promise(
        "the server gets requests again once it is back, and none fails",
        returned && again > 0 && report.since(back).failed() == 0,
        format!(
            "up after {}, {again} requests since",
            milliseconds(Some(up - back))
        ),
    );
}

pub fn drain(stage: &mut Stage, show: &mut Show, options: &Options) {
    show.act("A server is drained under load");
    show.say(format!(
        "`balancer drain web/{DRAINED}` and `echo/{DRAINED}`: open connections go on, new ones"
    ));
    show.say("go to the others.");
    let spinner = show.spinner("load");
    let held = hold(stage, options);
    let there = held.distribution().get(DRAINED).copied().unwrap_or(0);
    let stream = load(stage, options);
    stream.wait_for(u64::from(options.rate) / 2);
    for pool in ["web", "echo"] {
        stage.agent.order(&["drain", &format!("{pool}/{DRAINED}")]);
    }
    let drained = Instant::now();
    stream.wait_for(u64::from(options.rate));
    let status = stage.agent.backend("echo", DRAINED);
    let report = stream.stop();
    let kept = held.finish();
    for pool in ["web", "echo"] {
        stage
            .agent
            .order(&["activate", &format!("{pool}/{DRAINED}")]);
    }
    spinner.finish_and_clear();

    let since = report.since(drained);
    let reached = since.distribution().get(DRAINED).copied().unwrap_or(0);
    let lost = kept.iter().filter(|kept| kept.failure.is_some()).count();
    let flows = status["flows"].as_u64();
    show.table(
        ["", "value"],
        [
            ["requests".into(), report.attempts.len().to_string()],
            [
                "of them since the drain".into(),
                since.attempts.len().to_string(),
            ],
            [format!("of these to {DRAINED}"), reached.to_string()],
            ["failed".into(), failures(&report)],
            [format!("open connections to {DRAINED}"), there.to_string()],
            [
                format!("flows left on {DRAINED}, as `balancer status` says"),
                flows.map_or("?".into(), |flows| flows.to_string()),
            ],
        ],
    );
    show.promise(
        "a drain fails no request and breaks no open connection",
        report.failed() == 0 && lost == 0,
        format!(
            "{} failed, {lost} of {} broken",
            report.failed(),
            kept.len()
        ),
    );
    show.promise(
        "the drained server gets no new connection",
        reached == 0,
        format!("{reached} of {}", since.attempts.len()),
    );
    show.promise(
        "the status counts the flows that are left",
        flows.is_some_and(|flows| flows >= there as u64),
        format!("{} for {there} open", status["flows"]),
    );
}

pub fn restart_the_agent(stage: &mut Stage, show: &mut Show, options: &Options) {
    show.act("The agent is killed and started again under load");
    show.say("`kill -9` hits the agent. The kernel program steers on alone; the next agent");
    show.say("takes over what it finds.");
    let spinner = show.spinner("load");
    let held = hold(stage, options);
    let before = retransmitted(stage);
    let stream = load(stage, options);
    stream.wait_for(u64::from(options.rate) / 2);
    let killed = Instant::now();
    let old = stage.agent.id();
    stage.agent.kill9();
    stream.wait_for(u64::from(options.rate));
    stage.agent.run();
    let without = killed.elapsed();
    stream.wait_for(u64::from(options.rate) / 2);
    let report = stream.stop();
    let again = retransmitted(stage) - before;
    let kept = held.finish();
    spinner.finish_and_clear();

    let lost = kept.iter().filter(|kept| kept.failure.is_some()).count();
    show.table(
        ["", "value"],
        [
            [
                "agent's process, before and after".into(),
                format!("{old}, {}", stage.agent.id()),
            ],
            ["time without an agent".into(), milliseconds(Some(without))],
            ["requests".into(), report.attempts.len().to_string()],
            ["failed".into(), failures(&report)],
            [
                "TCP segments sent again, by anybody".into(),
                again.to_string(),
            ],
            ["open connections".into(), kept.len().to_string()],
            ["of them broken".into(), lost.to_string()],
        ],
    );
    show.promise(
        "without an agent no request fails and no connection breaks",
        report.failed() == 0 && lost == 0,
        format!("{} failed, {lost} broken", report.failed()),
    );
    let counts = report.distribution();
    show.promise(
        "all servers get requests throughout",
        NAMES.iter().all(|name| counts.contains_key(*name)),
        format!(
            "{} : {} : {}",
            of(&counts, 0),
            of(&counts, 1),
            of(&counts, 2)
        ),
    );
}

fn requests(stage: &Stage, show: &Show, count: u32) -> Report {
    let bar = show.bar("requests", u64::from(count));
    let ask = Ask::Http("/".to_owned());
    let report = sequential_with(&stage.lab.client, stage.web, &ask, count as usize, |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    report
}

fn load(stage: &Stage, options: &Options) -> Stream {
    let ask = Ask::Http("/".to_owned());
    Stream::start(&stage.lab.client, stage.web, ask, options.rate)
}

fn hold(stage: &Stage, options: &Options) -> Held {
    Held::open(&stage.lab.client, stage.echo, options.held as usize, EVERY)
}

fn retransmitted(stage: &Stage) -> i64 {
    let servers = stage.lab.servers.iter().map(|place| &place.ns);
    let all = servers.chain([&stage.lab.client]);
    all.map(|ns| Counters::of(ns).retransmitted()).sum()
}

fn table(show: &Show, counts: &BTreeMap<String, usize>, weights: [u32; 3]) {
    let total: usize = counts.values().sum();
    show.table(
        ["server", "weight", "requests", "share"],
        NAMES.iter().enumerate().map(|(i, name)| {
            let share = 100.0 * of(counts, i) as f64 / total.max(1) as f64;
            [
                (*name).to_owned(),
                weights[i].to_string(),
                of(counts, i).to_string(),
                format!("{share:.2} %"),
            ]
        }),
    );
}

fn of(counts: &BTreeMap<String, usize>, server: usize) -> usize {
    counts.get(NAMES[server]).copied().unwrap_or(0)
}

fn failures(report: &Report) -> String {
    let kinds: Vec<String> = report
        .failures()
        .iter()
        .map(|(failure, count)| format!("{count} {failure}"))
        .collect();
    match kinds.is_empty() {
        true => format!("0 of {}", report.attempts.len()),
        false => format!("{} of {}", kinds.join(", "), report.attempts.len()),
    }
}
