//! The second half of the demonstration: the web tier. Two agents that speak HTTP stand
//! behind an XDP frontend, four application servers behind them; sixty browsers have
//! sessions; an application server dies, then an agent.
//!
//! ```text
//! browsers -- XDP frontend -+- node0 (agent, HTTP) -+- s0  s1
//!                           +- node1 (agent, HTTP) -+- s2  s3
//! ```

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::show::{Show, milliseconds};
use super::tier::{Browser, Plan, Tier, counts, homes};
use super::{Options, TAKEN_OUT};
use crate::agent::Agent;
use crate::http::apps::App;
use crate::process::{BOUND, came_true};

const NODES: usize = 2;
const APPS: usize = 4;
/// The application server that is killed.
const VICTIM: usize = 1;

/// Plays the acts of the web tier.
pub fn play(show: &mut Show, options: &Options) {
    show.act("Two agents as web tier, four application servers");
    show.say("An XDP frontend spreads connections over two nodes; an agent on each speaks HTTP");
    show.say("and keeps sessions by the route at the end of JSESSIONID, as mod_jk does.");
    let spinner = show.spinner("building");
    let mut stage = Tier::build(&Plan {
        nodes: NODES,
        apps: APPS,
        plain_sessions: false,
        sticky: "type = \"route\"\n",
        more: &|_, _| String::new(),
    });
    spinner.finish_and_clear();
    show.say(format!(
        "Browsers ask {}, one connection per request.",
        stage.web
    ));
    let mut browsers: Vec<Browser> = Vec::new();
    browsers.resize_with(options.sessions as usize, Browser::default);

    stick(&stage, show, &mut browsers);
    kill_a_server(&mut stage, show, &mut browsers);
    kill_an_agent(&mut stage, show, &mut browsers);
    drop(stage.front);
}

fn stick(stage: &Tier, show: &mut Show, browsers: &mut [Browser]) {
    let (mut failed, _) = stage.round(browsers);
    let first = homes(browsers);
    let mut strayed = 0;
    for _ in 0..4 {
        let (more, visits) = stage.round(browsers);
        failed.extend(more);
        let strays = visits
            .iter()
            .zip(&first)
            .filter(|(visit, home)| visit.server != **home);
        strayed += strays.count();
    }
    let nodes = stage.by_node();
    let counts = counts(&first);
    show.table(
        ["application server", "sessions"],
        counts
            .iter()
            .map(|(server, count)| [(*server).to_owned(), count.to_string()]),
    );
    show.promise(
        "sessions begin on all servers, and no request fails",
        counts.len() == APPS && failed.is_empty(),
        format!("{} servers, failed: {failed:?}", counts.len()),
    );
    show.promise(
        "a session stays at its server, whichever node it comes by",
        strayed == 0 && nodes.iter().all(|&count| count > 0),
        format!("{strayed} strayed; by node: {nodes:?}"),
    );
}

fn kill_a_server(stage: &mut Tier, show: &mut Show, browsers: &mut [Browser]) {
    let victim = format!("s{VICTIM}");
    show.act("An application server dies");
    show.say(format!("`kill -9` hits {victim} while browsers go on."));
    let spinner = show.spinner("browsing");
    let before = homes(browsers);
    stage.apps[VICTIM].kill9();
    let mut failed = Vec::new();
    let mut renamed = 0;
    let mut targets: Vec<BTreeSet<String>> = vec![BTreeSet::new(); browsers.len()];
    for _ in 0..5 {
        let (more, visits) = stage.round(browsers);
        failed.extend(more);
        renamed += visits.iter().filter(|visit| visit.renamed).count();
        for (browser, targets) in browsers.iter().zip(&mut targets) {
            targets.insert(browser.server.clone());
        }
    }
    spinner.finish_and_clear();
    let lost = before.iter().filter(|home| **home == victim).count();
    let stayed = before
        .iter()
        .zip(&targets)
        .filter(|(home, targets)| **home != victim && targets.len() == 1 && targets.contains(*home))
        .count();
    let moved = before
        .iter()
        .zip(&targets)
        .filter(|(home, targets)| {
            **home == victim && targets.len() == 1 && !targets.contains(*home)
        })
        .count();
    let named = browsers
        .iter()
        .filter(|browser| browser.route() == browser.server)
        .count();
    show.table(
        ["", "sessions"],
        [
            ["in all".into(), browsers.len().to_string()],
            [format!("that {victim} had"), lost.to_string()],
            [
                "of these, at one other server since".into(),
                moved.to_string(),
            ],
            ["of the others, where they were".into(), stayed.to_string()],
            ["whose cookie was renamed".into(), renamed.to_string()],
        ],
    );
    show.promise(
        "no request fails: what met the dead server was repeated elsewhere",
        failed.is_empty(),
        format!("{} failed {failed:?}", failed.len()),
    );
    show.promise(
        "its sessions move, each to one other server, and nobody else's do",
        lost > 0 && moved == lost && stayed == browsers.len() - lost,
        format!(
            "{moved} of {lost} moved, {stayed} of {} stayed",
            browsers.len() - lost
        ),
    );
    show.promise(
        "every cookie names the server that has the session",
        named == browsers.len() && renamed >= lost,
        format!("{named} of {}", browsers.len()),
    );
    stage.apps[VICTIM].restart();
    let back = came_true(BOUND, || {
        let up = |node: &Agent| node.backend("app", &victim)["health"] == "up";
        stage.nodes.iter().all(up)
    });
    let after = homes(browsers);
    let (failed, visits) = stage.round(browsers);
    let strays = visits
        .iter()
        .zip(&after)
        .filter(|(visit, home)| visit.server != **home);
    let strayed = strays.count();
    show.promise(
        "when it is back, sessions stay where they went",
        back && strayed == 0 && failed.is_empty(),
        format!("{strayed} strayed, failed: {failed:?}"),
    );
}

fn kill_an_agent(stage: &mut Tier, show: &mut Show, browsers: &mut [Browser]) {
    show.act("An agent dies");
    show.say("`kill -9` hits the agent of node1; browsers that fail try again, as people do.");
    let spinner = show.spinner("browsing");
    let before = homes(browsers);
    let killed = Instant::now();
    stage.nodes[1].kill9();
    let mut last_failure: Option<Duration> = None;
    let mut failures = 0u64;
    let mut strayed = 0;
    let mut asked = 0u64;
    while killed.elapsed() < TAKEN_OUT * 4 {
        for (browser, home) in browsers.iter_mut().zip(&before) {
            let begin = killed.elapsed();
            asked += 1;
            match browser.visit(&stage.lab.client, stage.web) {
                Ok(visit) => strayed += u64::from(visit.server != *home),
                Err(_) => {
                    failures += 1;
                    last_failure = Some(begin);
                }
            }
        }
    }
    spinner.finish_and_clear();
    show.table(
        ["", "value"],
        [
            ["requests".into(), asked.to_string()],
            ["failed".into(), failures.to_string()],
            [
                "last one that met the dead agent".into(),
                milliseconds(last_failure),
            ],
            [
                "sessions that changed their server".into(),
                strayed.to_string(),
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
        "sessions stay at their servers: the other agent reads the same cookies",
        strayed == 0,
        format!("{strayed} of {} strayed", browsers.len()),
    );
    stage.nodes[1].run();
    let back = came_true(BOUND, || {
        stage.front.backend("nodes", "node1")["health"] == "up"
    });
    stage.apps.iter().for_each(App::clear);
    let (failed, visits) = stage.round(browsers);
    let strays = visits
        .iter()
        .zip(&before)
        .filter(|(visit, home)| visit.server != **home);
    let strayed = strays.count();
    let nodes = stage.by_node();
    show.promise(
        "started again, it gets its share, and sessions are where they were",
        back && failed.is_empty() && strayed == 0 && nodes.iter().all(|&count| count > 0),
        format!("by node: {nodes:?}, {strayed} strayed, failed: {failed:?}"),
    );
}
