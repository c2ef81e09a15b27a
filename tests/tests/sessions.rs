//! Sessions that several agents keep together: a client that lands on another agent gets
//! its backend, whoever dies.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use balancer_tests::http::raw::Raw;
use balancer_tests::process::{BOUND, wait_until};
use balancer_tests::sessions::{LEARN, Site, config, frontend};
use nix::sys::signal::Signal;
use serde_json::Value;

const ROUTE: &str = "type = \"route\"\ngroup = \"user\"\n";

/// Sum over all groups and routes of what `sessions count --json` says.
fn sum(counts: &Value, what: &str) -> u64 {
    let counts = counts["counts"].as_array().expect("counts").iter();
    counts.map(|count| count[what].as_u64().unwrap()).sum()
}

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

    // It comes back empty, and knows them again before it says so. Its only seed is itself:
    // it has to wait for the others' word.
    site.agents[0].launch();
    let mut phases = Vec::new();
    wait_until("the store to be ready", BOUND, || {
        let said = site.agents[0].command(&["status", "--json"]);
        let status: Value = serde_json::from_str(&said.out).unwrap_or_default();
        let store = &status["sessions"];
        phases.extend(store["phase"].as_str().map(str::to_owned));
        let ready = store["ready"] == true;
        assert!(
            !ready || store["groups"][0]["sessions"] == 12,
            "ready without the sessions: {store:#}"
        );
        ready
    });
    phases.dedup();
    println!("phases of its store: {phases:?}");
    site.agents[0].wait_all_up();
    site.wait_ready(&[0, 1, 2]);
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
        for what in ["copies", "sessions"] {
            assert_eq!(sum(&counts, what), 3, "{counts:#}");
        }
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

const SHARED_OUT: &str = "manager = \"backup\"\nreplication = \"sync\"\n";

#[test]
fn every_agent_counts_and_lists_the_whole_cluster() {
    let site = Site::new(3, SHARED_OUT, LEARN);
    let bound = site.bind_many(24);
    let mut by_server: BTreeMap<&str, u64> = BTreeMap::new();
    for server in bound.values() {
        *by_server.entry(server).or_default() += 1;
    }
    let (one, server) = bound.iter().next().unwrap();
    let mut copies = 0;
    for agent in 0..3 {
        assert!(site.held(agent) < 24, "nobody holds all");
        let counts = site.whole(agent, &["count"]);
        for count in counts["counts"].as_array().unwrap() {
            let route = count["route"].as_str().unwrap();
            assert_eq!(count["sessions"], by_server[route], "{counts:#}");
            let ends = count["last_ends_ms"].as_u64().unwrap();
            assert!((1_600_000..=1_800_000).contains(&ends), "{ends}");
        }
        assert_eq!(sum(&counts, "sessions"), 24);
        copies += sum(&counts, "copies");

        let list = site.whole(agent, &[]);
        let ids = list["sessions"].as_array().unwrap().iter();
        let mut ids: Vec<&str> = ids.map(|s| s["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), &list["more"]), (24, &Value::Bool(false)));
        let some = site.whole(agent, &["list", "--limit", "10"]);
        assert_eq!(some["sessions"].as_array().unwrap().len(), 10);
        assert_eq!(some["more"], true);
        let of_one = site.whole(agent, &["list", "--route", server]);
        let of_one = of_one["sessions"].as_array().unwrap();
        assert_eq!(of_one.len() as u64, by_server[&**server]);
        assert!(
            of_one
                .iter()
                .all(|s| s["route"] == **server && s["pool"] == "app")
        );

        // By what the client has, and by the beginning of its id, wherever it is held.
        let shown = site.sessions(agent, &["show", one]);
        let id = shown["id"].as_str().unwrap();
        assert!(ids.contains(&id), "{id}");
        assert_eq!(site.sessions(agent, &["show", &id[..20]])["id"], id);
        let replicas = shown["replicas"].as_array().unwrap();
        let roles: Vec<&str> = replicas
            .iter()
            .map(|r| r["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["primary", "copy"], "{shown:#}");
        for (replica, holder) in replicas.iter().zip(shown["holders"].as_array().unwrap()) {
            assert_eq!(replica["node"], *holder);
            assert_eq!(replica["state"], "held");
            assert_eq!(replica["newest"], true);
            assert_eq!(replica["version"], replicas[0]["version"]);
            assert_eq!(replica["route"], **server);
        }
    }
    assert_eq!(copies, 48);
    let table = site.agents[0].order(&["sessions", "show", one]);
    assert!(
        table.contains("primary") && table.contains("held"),
        "{table}"
    );
    // A drain counts those that only others hold, and so does every other agent's.
    for agent in [1, 0] {
        let said = site.drain(agent, server);
        let n = by_server[&**server];
        let wanted = format!("and {n} sessions, the last of which ends in");
        assert!(said.contains(&wanted), "{said}");
    }
}

#[test]
fn a_count_without_a_node_says_so_and_is_whole_once_it_is_down() {
    let mut site = Site::new(3, SHARED_OUT, LEARN);
    let bound = site.bind_many(24);
    let (_, server) = bound.iter().next().unwrap();
    let theirs = bound.values().filter(|name| *name == server).count();
    // It is alive for all that datagrams tell, and its link is silent.
    site.hosts[2].nft(
        "table inet part {
           chain in { type filter hook input priority 0; tcp dport 7946 drop; tcp sport 7946 drop
           }
         }",
    );
    for agent in 0..2 {
        let began = Instant::now();
        let counts = site.sessions(agent, &["count"]);
        // It is waited for once, not for each part of the count.
        assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
        assert_eq!(counts["unheard"][0]["node"], "n2", "{counts:#}");
        assert_eq!(counts["unheard"][0]["why"], "no answer");
        let sessions = sum(&counts, "sessions");
        assert!((1..24).contains(&sessions), "{sessions}");
    }
    let table = site.agents[0].order(&["sessions", "count"]);
    assert!(table.contains("not complete: n2: no answer"), "{table}");
    let table = site.agents[0].order(&["sessions"]);
    assert!(table.contains("not complete: n2: no answer"), "{table}");
    let said = site.agents[0].order(&["drain", server]);
    assert!(said.contains("(not complete: n2: no answer)"), "{said}");
    site.agents[0].order(&["activate", server]);

    // When it is gone for good, others are primaries for what it was.
    site.agents[2].kill9();
    wait_until("the survivors to have all sessions", BOUND, || {
        let counts = site.sessions(0, &["count"]);
        sum(&counts, "sessions") == 24 && counts["unheard"] == Value::Array(vec![])
    });
    let said = site.drain(1, server);
    assert!(
        said.contains(&format!("and {theirs} sessions, the last")),
        "{said}"
    );
    // And it is counted again when it is back.
    site.hosts[2].run("nft delete table inet part");
    site.agents[2].run();
    site.agents[2].wait_all_up();
    site.wait_ready(&[0, 1, 2]);
    for agent in 0..3 {
        let counts = site.whole(agent, &["count"]);
        assert_eq!(sum(&counts, "sessions"), 24, "{counts:#}");
    }
}

/// A browser with a Tomcat session, and what the server that answered last saw of it.
struct Browser<'a> {
    site: &'a Site,
    id: String,
}

impl<'a> Browser<'a> {
    #[track_caller]
    fn log_in(site: &'a Site, agent: usize) -> Self {
        let answer = site.client(agent).get("/session");
        let id = answer.cookie("JSESSIONID").expect("a session").to_owned();
        assert_eq!(id.split_once('.').unwrap().1, answer.server());
        Self { site, id }
    }

    /// A visit: who answered, and the id that it saw. The browser takes a new cookie.
    #[track_caller]
    fn visit(&mut self, agent: usize) -> (String, String) {
        let cookie = format!("JSESSIONID={}", self.id);
        let answer = self
            .site
            .client(agent)
            .get_with("/session", &[("Cookie", &cookie)]);
        assert_eq!(answer.status, 200, "{answer:?}");
        if let Some(id) = answer.cookie("JSESSIONID") {
            self.id = id.to_owned();
        }
        let server = answer.server().to_owned();
        let app = self.site.apps.iter().find(|app| app.name() == server);
        let log = app.expect("a server").log();
        let cookie = log.last().and_then(|seen| seen.one("cookie"));
        let cookie = cookie.expect("a cookie");
        (server, cookie.trim_start_matches("JSESSIONID=").to_owned())
    }
}

/// A session by `route` fails over at one agent; `keys` are the group's.
fn routes_are_kept_by(agents: usize, keys: &str) {
    let mut site = Site::new(agents, keys, ROUTE);
    let issued = Browser::log_in(&site, 0).id;
    let (base, old) = issued.split_once('.').unwrap();
    let (base, old) = (base.to_owned(), old.to_owned());
    site.kill_server(&old);
    let (new, renamed) = {
        let mut browser = Browser {
            site: &site,
            id: issued.clone(),
        };
        let (new, seen) = browser.visit(0);
        assert_eq!(seen, issued);
        (new, browser.id)
    };
    assert_ne!(new, old);
    assert_eq!(renamed, format!("{base}.{new}"));
    site.restart_server(&old);
    // The others saw none of it. By either id they find the server, which sees the id that
    // was issued first; a browser that still has that one hears of the other.
    for agent in (0..agents).rev() {
        for id in [&renamed, &issued] {
            let mut browser = Browser {
                site: &site,
                id: id.clone(),
            };
            let (server, seen) = browser.visit(agent);
            assert_eq!((&server, &seen), (&new, &issued), "{id} at agent {agent}");
            assert_eq!(browser.id, renamed, "at agent {agent}");
        }
    }
    // An agent that comes back knows it, too.
    site.agents[agents - 1].kill9();
    site.agents[agents - 1].run();
    site.agents[agents - 1].wait_all_up();
    site.wait_ready(&(0..agents).collect::<Vec<_>>());
    let mut browser = Browser {
        site: &site,
        id: issued.clone(),
    };
    assert_eq!(browser.visit(agents - 1), (new.clone(), issued.clone()));
    // It is a session like others: shown by what the browser has, and counted in a drain.
    let shown = site.sessions(0, &["show", &renamed]);
    assert_eq!(
        (&shown["route"], &shown["pool"]),
        (&Value::from(&*new), &Value::from("app"))
    );
    let said = site.drain(agents - 1, &new);
    assert!(said.contains("and 1 session, which ends in"), "{said}");
    assert_eq!(browser.visit(0), (new.clone(), issued.clone()));
    // Its end is told to all.
    let cookie = format!("JSESSIONID={renamed}");
    let gone = "/cookie?JSESSIONID=gone;Max-Age=0";
    let answer = site.client(0).get_with(gone, &[("Cookie", &cookie)]);
    assert_eq!(answer.server(), new);
    wait_until("the end to be known", BOUND, || {
        (0..agents).all(|agent| {
            let counts = site.sessions(agent, &["count"]);
            sum(&counts, "sessions") == 0
        })
    });
}

#[test]
fn a_route_that_failed_over_is_known_to_both_agents() {
    routes_are_kept_by(2, "replication = \"sync\"\n");
}

#[test]
fn a_route_that_failed_over_is_found_by_those_who_do_not_hold_it() {
    routes_are_kept_by(3, SHARED_OUT);
}
