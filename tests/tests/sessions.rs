//! Sessions that several agents keep together: a client that lands on another agent gets
//! its backend, whoever dies.

use std::time::{Duration, Instant};

use balancer_tests::http::raw::Raw;
use balancer_tests::process::{BOUND, wait_until};
use balancer_tests::sessions::{LEARN, Site, config, frontend};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn every_agent_knows_what_one_has_learned_and_that_one_may_die() {
    let mut site = Site::new(3, "", LEARN);
    let bound = site.bind_many(12);
    site.wait_held(&[0, 1, 2], 12);
    site.all_at(1, &bound);
    // A rendezvous alone would not have led there.
    assert_eq!(site.group(1)["asked"], 0, "the cache knew them all");

    site.agents[0].kill9();
    site.all_at(2, &bound);

    // It comes back empty, and knows them again before it says so.
    site.agents[0].run();
    site.agents[0].wait_all_up();
    site.wait_ready(&[0, 1, 2]);
    assert_eq!(site.held(0), 12);
    site.all_at(0, &bound);
    for agent in 0..3 {
        let log = site.agents[agent].log();
        assert!(!log.contains("secret-session"), "an id in the log:\n{log}");
    }
}

#[test]
fn a_session_that_failed_over_stays_there_at_every_agent() {
    let mut site = Site::new(3, "", LEARN);
    let bound = site.bind_many(9);
    site.wait_held(&[0, 1, 2], 9);
    let (session, old) = bound.iter().next().unwrap();
    site.kill_server(old);
    let new = site.ask(1, session);
    assert_ne!(new, *old);
    wait_until("the others to know", BOUND, || {
        let args = ["sessions", "show", session.as_str(), "--json"];
        [0, 2].iter().all(|at| {
            let shown = site.agents[*at].order(&args);
            let shown: Value = serde_json::from_str(&shown).unwrap();
            shown["route"] == *new
        })
    });
    site.restart_server(old);
    for agent in 0..3 {
        assert_eq!(site.ask(agent, session), new, "at agent {agent}");
    }
    assert_eq!(site.group(1)["rebound"], 1);
}

#[test]
fn two_copies_are_found_from_every_agent_and_outlive_one() {
    let mut site = Site::new(3, "manager = \"backup\"\nreplication = \"sync\"\n", LEARN);
    let bound = site.bind_many(24);
    let copies: u64 = (0..3).map(|agent| site.held(agent)).sum();
    assert_eq!(copies, 48, "each is held twice");
    assert!(
        (0..3).all(|agent| site.held(agent) < 24),
        "nobody holds all"
    );
    site.all_at(1, &bound);
    let (asked, found) = (
        site.group(1)["asked"].clone(),
        site.group(1)["found"].clone(),
    );
    assert_eq!(asked, found);
    assert_ne!(asked, 0, "what it does not hold it had to ask for");

    site.agents[0].kill9();
    site.all_at(2, &bound);
    let (session, _) = bound.iter().next().unwrap();
    let shown = site.agents[2].order(&["sessions", "show", session, "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["pool"], "app");
    assert_eq!(shown["group"], "user");
}

#[test]
fn with_sync_a_response_is_held_until_the_others_have_it() {
    let keys = "replication = \"sync\"\nsync_timeout = \"700ms\"\n";
    let mut site = Site::new(3, keys, LEARN);
    // Acknowledged: there is nothing to wait for afterwards.
    for i in 0..10 {
        let session = format!("secret-{i}");
        let server = site.bind(0, &session);
        assert_eq!(site.held(1 + i % 2), i as u64 + 1);
        assert_eq!(site.ask(1 + i % 2, &session), server);
    }
    assert_eq!(site.group(0)["held"], 10);
    assert_eq!(site.group(0)["sync_timeouts"], 0);

    // One that does not answer holds up what it should have, for as long as was said.
    site.agents[2].signal(Signal::SIGSTOP);
    let began = Instant::now();
    site.bind(0, "secret-late");
    let waited = began.elapsed();
    site.agents[2].signal(Signal::SIGCONT);
    println!("held for {waited:?}");
    assert!(waited >= Duration::from_millis(600), "{waited:?}");
    assert!(waited < Duration::from_secs(3), "{waited:?}");
    assert_eq!(site.group(0)["sync_timeouts"], 1);
    let table = site.agents[0].order(&["status"]);
    assert!(
        table.contains("Sessions") && table.contains("user"),
        "{table}"
    );
    // It gets it all the same.
    site.wait_ready(&[0, 1, 2]);
    site.wait_held(&[0, 1, 2], 11);
}

#[test]
fn what_has_ended_does_not_return() {
    let mut site = Site::new(3, "", LEARN);
    let bound = site.bind_many(4);
    site.wait_held(&[0, 1, 2], 4);
    // One is away while its session is ended elsewhere.
    site.agents[0].kill9();
    let (session, _) = bound.iter().next().unwrap();
    let said = site.agents[1].order(&["sessions", "expire", session]);
    assert!(
        said.starts_with("user: ") && said.ends_with(" ended\n"),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
    site.wait_held(&[1, 2], 3);
    site.agents[0].run();
    site.agents[0].wait_all_up();
    site.wait_ready(&[0, 1, 2]);
    site.wait_held(&[0, 1, 2], 3);
    for agent in &site.agents {
        let shown = agent.command(&["sessions", "show", session]);
        assert_eq!(shown.code, Some(1), "{shown:?}");
        assert!(shown.err.contains("no such session"), "{shown:?}");
        let list: Value =
            serde_json::from_str(&agent.order(&["sessions", "--json"])).expect("JSON");
        assert_eq!(list["sessions"].as_array().unwrap().len(), 3);
        let counts: Value =
            serde_json::from_str(&agent.order(&["sessions", "count", "--json"])).expect("JSON");
        let copies = counts.as_array().unwrap().iter();
        let copies: u64 = copies.map(|count| count["copies"].as_u64().unwrap()).sum();
        assert_eq!(copies, 3);
    }
}

#[test]
fn sessions_end_when_nobody_comes_and_live_while_somebody_does() {
    let site = Site::new(3, "ttl = \"3s\"\n", LEARN);
    let kept = site.bind(0, "secret-kept");
    site.bind(0, "secret-left");
    site.wait_held(&[0, 1, 2], 2);
    // Visits at one agent keep it alive at all.
    wait_until("the one nobody visits to end", BOUND, || {
        assert_eq!(site.ask(1, "secret-kept"), kept);
        (0..3).all(|agent| {
            let shown = site.agents[agent].command(&["sessions", "show", "secret-left"]);
            shown.code == Some(1)
        })
    });
    assert_eq!(site.ask(2, "secret-kept"), kept);
    wait_until("the other to end as well", BOUND, || {
        let shown = site.agents[0].command(&["sessions", "show", "secret-kept"]);
        shown.code == Some(1)
    });
}

#[test]
fn a_clients_address_is_a_session_of_its_own() {
    let mut site = Site::new(2, "", "type = \"source\"\ngroup = \"user\"\n");
    let visit = |site: &Site, agent: usize| {
        let from = "10.7.0.101".parse().unwrap();
        let mut client = Raw::connect_from(&site.clients, from, frontend(agent)).unwrap();
        client.get("/").server().to_owned()
    };
    let old = visit(&site, 0);
    site.wait_held(&[0, 1], 1);
    assert_eq!(visit(&site, 1), old);
    site.kill_server(&old);
    let new = visit(&site, 0);
    assert_ne!(new, old);
    site.restart_server(&old);
    // Without a group it would go back by itself.
    wait_until("the other agent to know", BOUND, || {
        let shown = site.agents[1].order(&["sessions", "show", "10.7.0.101", "--json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown["route"] == *new
    });
    assert_eq!(visit(&site, 0), new);
    assert_eq!(visit(&site, 1), new);
}

#[test]
fn a_node_of_its_own_keeps_sessions_too() {
    let mut site = Site::new(1, "ttl = \"1h\"\n", LEARN);
    let bound = site.bind_many(3);
    site.wait_held(&[0], 3);
    site.all_at(0, &bound);
    // A reload does not end them; one that changes the groups is refused.
    site.agents[0].order(&["reload"]);
    site.all_at(0, &bound);
    site.agents[0].write_config(&config(0, None, "ttl = \"2h\"\n", LEARN));
    let said = site.agents[0].command(&["reload"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("can't change [session]"), "{said:?}");
    let shown = site.agents[0].order(&["sessions", "show", "secret-session-0"]);
    assert!(shown.contains("held by   this node"), "{shown}");
    let server = bound["secret-session-0"].clone();
    site.kill_server(&server);
    assert_ne!(site.ask(0, "secret-session-0"), server);
}

#[test]
fn a_drained_server_shows_its_sessions_and_gives_them_up_at_the_deadline() {
    let site = Site::new(2, "", LEARN);
    let bound = site.bind_many(9);
    site.wait_held(&[0, 1], 9);
    let (session, server) = bound.iter().next().unwrap();
    let theirs = bound.values().filter(|name| *name == server).count();
    let said = site.agents[1].order(&["drain", server]);
    let wanted = format!("and {theirs} sessions, the last of which ends in");
    assert!(said.contains(&wanted), "{said}");
    // They go on there, at this agent as at the other.
    assert_eq!(site.ask(1, session), *server);
    let said = site.agents[1].order(&["drain", server, "--deadline", "300ms"]);
    assert!(said.contains("stopped"), "{said}");
    let moved = site.ask(1, session);
    assert_ne!(moved, *server);
    // Moved for all, though the other agent's operator has said nothing.
    wait_until("the other agent to know", BOUND, || {
        site.ask(0, session) == moved
    });
}
