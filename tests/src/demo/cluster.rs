//! The third part of the demonstration: three agents that keep sessions together. The
//! application servers give out cookies of their own, which name no server, so that only
//! the agents know where a session belongs. One application server and the agent that
//! routed to it are killed at the same moment.
//!
//! ```text
//! browsers -- XDP frontend -+- node0 (agent, HTTP) -+- s0  s1
//!                           +- node1      ^ cluster +- s2  s3
//!                           +- node2      v         +
//! ```
//!
//! What the agents keep is the binding: which server a session belongs to. What an
//! application has in its memory dies with it; here that is the number of visits, which
//! begins anew and is shown.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::show::{Show, milliseconds};
use super::tier::{Browser, Plan, Tier, counts, homes};
use super::{Options, TAKEN_OUT};
use crate::agent::Agent;
use crate::http::apps::App;
use crate::process::{BOUND, came_true};
use crate::scratch;
use crate::topology::Place;

const NODES: usize = 3;
const APPS: usize = 4;
/// The application server that is killed.
const VICTIM: usize = 1;
/// The servers choose the cookie's value; the group tells all agents, before the browser
/// has the answer.
const STICKY: &str = "type = \"learn\"\ncookie = \"JSESSIONID\"\ngroup = \"user\"\n";
const GROUP: &str =
    "[[session.group]]\nname = \"user\"\nmanager = \"delta\"\nreplication = \"sync\"\n\n";

/// Plays the acts of the cluster.
pub fn play(show: &mut Show, options: &Options) {
    show.act("Three agents keep sessions together");
    show.say("An XDP frontend spreads connections over three nodes. The application's cookies");
    show.say("name no server: the agents learn them and tell each other, over encrypted links");
    show.say("that only holders of the cluster's secret can make.");
    let spinner = show.spinner("building");
    let dir = scratch::dir("demo");
    let secret = dir.path().join("secret");
    fs::write(&secret, random_secret()).expect("write the secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("protect the secret");
    let mut stage = Tier::build(&Plan {
        nodes: NODES,
        apps: APPS,
        plain_sessions: true,
        sticky: STICKY,
        more: &|i, place| node_config(dir.path(), &secret, i, place),
    });
    let together = came_true(BOUND, || stage.nodes.iter().all(|node| ready(node, NODES)));
    spinner.finish_and_clear();
    let mut browsers = vec![Browser::default(); options.sessions as usize];

    log_in(&stage, show, &mut browsers, together);
    kill_both(&mut stage, show, &mut browsers);
    drop(stage);
}

fn random_secret() -> String {
    (0..8)
        .map(|_| format!("{:08x}", rand::random::<u32>()))
        .collect()
}

fn node_config(dir: &Path, secret: &Path, node: usize, place: &Place) -> String {
    // The first place is everybody's seed.
    let seed = SocketAddr::from(([10, 2, 0, 2], 7946));
    format!(
        "[cluster]\nname = \"node{node}\"\nlisten = \"{}\"\nseeds = [\"{seed}\"]\n\
         secret_file = {secret:?}\nstate_dir = {:?}\nprobe_interval = \"200ms\"\n\
         probe_timeout = \"80ms\"\nsuspect_timeout = \"1s\"\n\n{GROUP}",
        place.at4(7946),
        dir.join(format!("state{node}")),
    )
}

/// Whether a node has caught up, and sees so many alive.
fn ready(node: &Agent, alive: usize) -> bool {
    let status = node.status();
    let nodes = status["cluster"]["nodes"].as_array();
    let seen = nodes.map_or(0, |nodes| {
        nodes.iter().filter(|node| node["state"] == "alive").count()
    });
    let store = &status["sessions"];
    seen >= alive && store["ready"] == true && store["unsettled"] == 0
}

/// Sessions that a node holds.
fn held(node: &Agent) -> u64 {
    let status = node.status();
    status["sessions"]["groups"][0]["sessions"]
        .as_u64()
        .unwrap_or(0)
}

/// The server that a node's store has for a session.
fn route(node: &Agent, browser: &Browser) -> Option<String> {
    let cookie = browser.cookie.as_deref()?;
    let said = node.command(&["sessions", "show", cookie, "--json"]);
    let shown: Value = serde_json::from_str(&said.out).ok()?;
    shown["route"].as_str().map(str::to_owned)
}

fn log_in(stage: &Tier, show: &mut Show, browsers: &mut [Browser], together: bool) {
    let (mut failed, _) = stage.round(browsers);
    let first = homes(browsers);
    let held: Vec<u64> = stage.nodes.iter().map(held).collect();
    let mut strayed = 0;
    for _ in 0..3 {
        let (more, visits) = stage.round(browsers);
        failed.extend(more);
        strayed += strays(visits.iter().map(|visit| &visit.server), &first);
    }
    let remembered = browsers
        .iter()
        .filter(|browser| browser.visits == 4)
        .count();
    let nodes = stage.by_node();
    let counts = counts(&first);
    show.table(
        ["application server", "sessions"],
        counts
            .iter()
            .map(|(server, count)| [(*server).to_owned(), count.to_string()]),
    );
    show.table(
        ["agent", "requests", "sessions it holds"],
        (0..NODES).map(|i| {
            [
                format!("node{i}"),
                nodes[i].to_string(),
                held[i].to_string(),
            ]
        }),
    );
    let all = browsers.len() as u64;
    show.promise(
        "the agents find each other, and every one holds every session once it is answered",
        together && failed.is_empty() && held.iter().all(|&count| count == all),
        format!("{all} sessions, held: {held:?}, failed: {failed:?}"),
    );
    show.promise(
        "a session stays at its server, whichever agent it comes by",
        strayed == 0 && remembered == browsers.len() && nodes.iter().all(|&count| count > 0),
        format!("{strayed} strayed; by agent: {nodes:?}"),
    );
}

fn strays<'a>(now: impl Iterator<Item = &'a String>, before: &[String]) -> usize {
    now.zip(before)
        .filter(|(now, before)| now != before)
        .count()
}

/// What became of sessions, by where they were.
struct Fate {
    /// Of the dead server's: those that are at one other server since.
    moved: usize,
    lost: usize,
    /// Of the others': those that never left.
    stayed: usize,
    others: usize,
}

fn fate(before: &[String], since: &[BTreeSet<String>], victim: &str) -> Fate {
    let of = |theirs: bool| {
        let all = before.iter().zip(since);
        all.filter(move |(home, _)| (**home == victim) == theirs)
    };
    let at_one = |since: &BTreeSet<String>| since.len() == 1;
    Fate {
        moved: of(true)
            .filter(|(home, since)| at_one(since) && !since.contains(*home))
            .count(),
        lost: of(true).count(),
        stayed: of(false)
            .filter(|(home, since)| at_one(since) && since.contains(*home))
            .count(),
        others: of(false).count(),
    }
}

fn kill_both(stage: &mut Tier, show: &mut Show, browsers: &mut [Browser]) {
    let victim = format!("s{VICTIM}");
    let agent = last_agent(stage);
    show.act("An application server and the agent that routed to it die together");
    show.say(format!(
        "`kill -9` hits {victim} and the agent of node{agent} at the same moment; browsers that"
    ));
    show.say("fail try again, as people do.");
    let spinner = show.spinner("browsing");
    let before = homes(browsers);
    let killed = Instant::now();
    stage.nodes[agent].signal(Signal::SIGKILL);
    stage.apps[VICTIM].kill9();
    let mut last_failure = None;
    let (mut asked, mut failures) = (0_u64, 0_u64);
    let mut since: Vec<BTreeSet<String>> = vec![BTreeSet::new(); browsers.len()];
    let mut begun_anew = 0;
    // At least one round after the dead agent is out.
    let mut rounds_after = 0;
    while rounds_after < 2 {
        rounds_after += usize::from(killed.elapsed() > TAKEN_OUT);
        for (browser, since) in browsers.iter_mut().zip(&mut since) {
            let begin = killed.elapsed();
            asked += 1;
            let visits = browser.visits;
            match browser.visit(&stage.lab.client, stage.web) {
                Ok(visit) => {
                    since.insert(visit.server);
                    begun_anew += u64::from(browser.visits <= visits);
                }
                Err(_) => {
                    failures += 1;
                    last_failure = Some(begin);
                }
            }
        }
    }
    let survivors: Vec<usize> = (0..NODES).filter(|&i| i != agent).collect();
    // Each of the agents is asked by itself, and its store as well.
    let mut unlike = 0;
    for &i in &survivors {
        let (more, visits) = stage.round_at(i, browsers);
        unlike += more.len();
        for (visit, since) in visits.iter().zip(&mut since) {
            since.insert(visit.server.clone());
        }
    }
    let after = homes(browsers);
    let known = |i: usize| {
        let all = browsers.iter().zip(&after);
        let same =
            all.filter(|(browser, home)| route(&stage.nodes[i], browser).as_ref() == Some(*home));
        same.count()
    };
    let stores: Vec<usize> = survivors.iter().map(|&i| known(i)).collect();
    spinner.finish_and_clear();
    let fate = fate(&before, &since, &victim);
    show.table(
        ["", "value"],
        [
            ["requests".into(), asked.to_string()],
            ["failed, and made again".into(), failures.to_string()],
            [
                "last one that met the dead agent".into(),
                milliseconds(last_failure),
            ],
            [format!("sessions that {victim} had"), fate.lost.to_string()],
            [
                "of these, at one other server since".into(),
                fate.moved.to_string(),
            ],
            [
                "sessions of the other servers".into(),
                fate.others.to_string(),
            ],
            ["of these, where they were".into(), fate.stayed.to_string()],
            [
                format!("visits counted from one again (they were in {victim}'s memory)"),
                begun_anew.to_string(),
            ],
        ],
    );
    show.promise(
        format!(
            "no new connection meets the dead agent after {} ms",
            TAKEN_OUT.as_millis()
        ),
        last_failure.is_none_or(|last| last <= TAKEN_OUT),
        milliseconds(last_failure),
    );
    show.promise(
        "the dead server's sessions go on, each at one other server, by both agents",
        fate.lost > 0 && fate.moved == fate.lost && unlike == 0,
        format!("{} of {} moved", fate.moved, fate.lost),
    );
    show.promise(
        "nobody else's session moves",
        fate.stayed == fate.others && begun_anew == fate.lost as u64,
        format!("{} of {} stayed", fate.stayed, fate.others),
    );
    show.promise(
        "both agents know every session, and its present server",
        stores.iter().all(|&known| known == browsers.len()),
        format!("known: {stores:?} of {}", browsers.len()),
    );
    come_back(stage, show, browsers, agent, &victim);
}

/// The agent that brought the victim its last request.
fn last_agent(stage: &Tier) -> usize {
    let log = stage.apps[VICTIM].log();
    let last = log.last().map(|seen| seen.peer.clone()).unwrap_or_default();
    let place = |i: &usize| last.starts_with(&format!("{}:", stage.lab.servers[*i].v4));
    (0..NODES).find(place).unwrap_or(0)
}

fn come_back(
    stage: &mut Tier,
    show: &mut Show,
    browsers: &mut [Browser],
    agent: usize,
    victim: &str,
) {
    show.act("Both come back");
    show.say(format!(
        "The agent of node{agent} starts with nothing, and is given the sessions before it serves;"
    ));
    show.say(format!("then {victim} is started as well."));
    let spinner = show.spinner("catching up");
    let began = Instant::now();
    let mut phases: Vec<String> = Vec::new();
    stage.nodes[agent].launch();
    let caught_up = came_true(BOUND, || {
        let node = &stage.nodes[agent];
        let said = node.command(&["status", "--json"]);
        let status: Value = serde_json::from_str(&said.out).unwrap_or_default();
        if let Some(phase) = status["sessions"]["phase"].as_str()
            && phases.last().is_none_or(|last| last != phase)
        {
            phases.push(phase.to_owned());
        }
        phases.last().is_some_and(|last| last == "ready")
    });
    let took = began.elapsed();
    let held = held(&stage.nodes[agent]);
    let everywhere = came_true(BOUND, || {
        stage.nodes.iter().all(|node| ready(node, NODES))
            && stage.front.backend("nodes", &format!("node{agent}"))["health"] == "up"
            && stage.apps.iter().all(|app| {
                let seen = stage.nodes[agent].backend("app", app.name());
                app.name() == victim || seen["health"] == "up"
            })
    });
    let home = homes(browsers);
    let (failed, visits) = stage.round_at(agent, browsers);
    let strayed = strays(visits.iter().map(|visit| &visit.server), &home);
    spinner.finish_and_clear();
    show.say(format!(
        "Phases of its store: {}; the last after {}.",
        phases.join(", "),
        milliseconds(Some(took))
    ));
    show.promise(
        "the agent serves once it has every session again",
        caught_up && everywhere && held == browsers.len() as u64,
        format!("{held} of {} held when it was ready", browsers.len()),
    );
    show.promise(
        "it routes as the others do, though it was away when sessions moved",
        failed.is_empty() && strayed == 0,
        format!(
            "{strayed} of {} strayed, failed: {failed:?}",
            browsers.len()
        ),
    );
    stage.apps[VICTIM].restart();
    let back = came_true(BOUND, || {
        let up = |node: &Agent| node.backend("app", victim)["health"] == "up";
        stage.nodes.iter().all(up)
    });
    stage.apps.iter().for_each(App::clear);
    let (mut failed, mut strayed) = (Vec::new(), 0);
    for i in 0..NODES {
        let (more, visits) = stage.round_at(i, browsers);
        failed.extend(more);
        strayed += strays(visits.iter().map(|visit| &visit.server), &home);
    }
    show.promise(
        format!("when {victim} is back, sessions stay where they went, by every agent"),
        back && strayed == 0 && failed.is_empty(),
        format!("{strayed} strayed, failed: {failed:?}"),
    );
}
