//! The agent end to end, as operators see it: it starts, shows what it does, obeys,
//! takes new configurations, and leaves what it should when it ends.

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use balancer_tests::agent::{Agent, backends};
use balancer_tests::load::held::Held;
use balancer_tests::load::{Ask, Report, Stream, sequential};
use balancer_tests::process::{BOUND, came_true, wait_until};
use balancer_tests::server::{ECHO, HTTP, Server};
use balancer_tests::topology::Lab;
use nix::sys::signal::Signal;
use serde_json::Value;

const NAMES: [&str; 3] = ["s0", "s1", "s2"];

/// Dropped in this order: the agent before what it balances.
struct Scene {
    agent: Agent,
    servers: Vec<Server>,
    lab: Lab,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new(NAMES.len());
        let places = lab.servers.iter().zip(NAMES);
        let servers = places
            .map(|(place, name)| Server::at(place, name))
            .collect();
        let agent = Agent::start(&lab, &config(&lab, [1, 1, 1], ""));
        agent.wait_all_up();
        Self {
            agent,
            servers,
            lab,
        }
    }

    fn web(&self) -> SocketAddr {
        SocketAddr::new(self.lab.vip4(1).into(), 80)
    }

    fn echo(&self) -> SocketAddr {
        SocketAddr::new(self.lab.vip4(1).into(), 7)
    }

    fn requests(&self, count: usize) -> Report {
        sequential(&self.lab.client, self.web(), &Ask::Http("/".into()), count)
    }

    /// Connections that stay open, through the pool `echo`.
    fn hold(&self, count: usize) -> Held {
        let every = Duration::from_millis(20);
        Held::open(&self.lab.client, self.echo(), count, every)
    }
}

/// Pools `web` (HTTP) and `echo` (TCP) over all servers of the lab. `more` goes into
/// the first backend of `web`.
fn config(lab: &Lab, weights: [u32; 3], more: &str) -> String {
    let vip = lab.vip4(1);
    let mut text = String::new();
    for (pool, port, to, check) in [
        ("web", 80, HTTP, "type = \"http\"\npath = \"/health\""),
        ("echo", 7, ECHO, "type = \"tcp\""),
    ] {
        text += &format!(
            "[[frontend]]\nname = \"{pool}\"\naddress = \"{vip}:{port}\"\npool = \"{pool}\"\n\
             [[pool]]\nname = \"{pool}\"\n\
             [pool.check]\n{check}\ninterval = \"100ms\"\ntimeout = \"90ms\"\n"
        );
        for (i, (place, name)) in lab.servers.iter().zip(NAMES).enumerate() {
            let more = if (pool, i) == ("web", 0) { more } else { "" };
            text += &format!(
                "[[pool.backend]]\nname = \"{name}\"\naddress = \"{}\"\nweight = {}\n{more}\n",
                place.at4(to),
                weights[i]
            );
        }
    }
    text
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn requests_are_spread_and_shown() {
    let scene = Scene::new();
    let report = scene.requests(99);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert!(report.spread(&NAMES) <= 1, "{:?}", report.distribution());

    let status = scene.agent.status();
    assert_eq!(status["ready"], true);
    let node = &status["node"];
    assert_eq!(number(&node["pid"]), u64::from(scene.agent.id()));
    assert!(number(&node["program_id"]) > 0);
    assert!(number(&node["memory_bytes"]) > 1 << 20);
    assert_eq!(node["generation_desired"], node["generation_applied"]);
    assert_eq!(node["last_error"], Value::Null);
    assert_eq!(
        node["interfaces"].as_array().unwrap().len(),
        scene.lab.interfaces().len()
    );
    let frontend = &status["frontends"][0];
    assert_eq!(frontend["name"], "web");
    assert_eq!(number(&frontend["connections_total"]), 99);
    assert!(number(&frontend["packets_in"]) > 99 * 3);
    assert!(number(&frontend["bytes_out"]) > 99 * 100);
    for backend in status["pools"][0]["backends"].as_array().unwrap() {
        assert_eq!(number(&backend["connections_total"]), 33, "{backend}");
        assert_eq!(backend["health"], "up");
        assert_eq!(backend["activation"], "active");
        assert_eq!(backend["usable"], true);
        assert_eq!(backend["weight"], 1);
        assert!(number(&backend["checks"]) > 0);
    }
    let reasons = status["reasons"].as_array().unwrap();
    let new = reasons.iter().find(|r| r["reason"] == "flow_new").unwrap();
    assert_eq!(number(&new["count"]), 99);

    let table = scene.agent.order(&["status"]);
    for word in [
        "web",
        "s0",
        "s2",
        "10.9.0.1:80",
        "flow_new",
        "client0",
        "native",
    ] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
}

#[test]
fn operators_are_obeyed() {
    let scene = Scene::new();
    let held = scene.hold(9);
    assert_eq!(held.distribution(), NAMES.map(|n| (n.to_owned(), 3)).into());

    // Flows are listed and counted.
    let count = |arguments: &[&str]| -> u64 {
        let all = [&["flows", "--count"], arguments].concat();
        scene.agent.order(&all).trim().parse().unwrap()
    };
    assert_eq!(count(&["--frontend", "echo"]), 9);
    assert_eq!(count(&["--backend", "echo/s1"]), 3);
    assert_eq!(count(&["--client", "10.1.0.3"]), 0);
    let client = scene.lab.client4().to_string();
    assert_eq!(count(&["--client", &client, "--frontend", "echo"]), 9);
    let json = scene
        .agent
        .order(&["flows", "--json", "--limit", "2", "--frontend", "echo"]);
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (
            number(&list["total"]),
            list["flows"].as_array().unwrap().len()
        ),
        (9, 2)
    );
    assert_eq!(list["flows"][0]["state"], "established");
    let table = scene.agent.order(&["flows", "--backend", "echo/s1"]);
    assert!(
        table.contains("echo/s1") && table.contains(&client),
        "{table}"
    );

    // Names that can't be meant.
    for (name, said) in [
        ("s1", "web/s1, echo/s1"),
        ("web/s9", "web/s0, web/s1, web/s2"),
        ("nowhere", "web/s0"),
    ] {
        let refused = scene.agent.command(&["drain", name]);
        assert_eq!(refused.code, Some(1));
        assert!(refused.err.contains(said), "{}", refused.err);
    }

    // Drain: what is there goes on, nothing new comes.
    let said = scene.agent.order(&["drain", "echo/s1"]);
    assert!(
        said.contains("echo/s1") && said.contains("3 flows left"),
        "{said}"
    );
    scene.agent.order(&["drain", "web/s1"]);
    assert!(!scene.requests(10).distribution().contains_key("s1"));
    let backend = scene.agent.backend("echo", "s1");
    assert_eq!(
        (number(&backend["flows"]), &backend["usable"]),
        (3, &Value::Bool(false))
    );
    assert_eq!(backend["activation"], "drain");
    assert_eq!(backend["overridden"], true);
    assert_eq!(backend["health"], "up");
    let waiting = scene
        .agent
        .command(&["drain", "--wait", "--timeout", "300ms", "echo/s1"]);
    assert_eq!(waiting.code, Some(1), "{waiting:?}");
    let kept = held.finish();
    assert!(kept.iter().all(|k| k.failure.is_none()), "{kept:?}");
    let waited = scene
        .agent
        .order(&["drain", "--wait", "--timeout", "20s", "echo/s1"]);
    assert!(waited.contains("0 flows left"), "{waited}");

    // Back again.
    scene.agent.order(&["activate", "echo/s1"]);
    scene.agent.order(&["activate", "web/s1"]);
    assert!(scene.requests(9).spread(&NAMES) <= 1);

    // Stop: what is there is cut.
    let held = scene.hold(6);
    let said = scene.agent.order(&["stop", "echo/s2"]);
    assert!(said.contains("2 flows cut"), "{said}");
    held.wait_broken(2);
    let kept = held.finish();
    for kept in kept {
        let cut = kept.server.as_deref() == Some("s2");
        assert_eq!(kept.failure.is_some(), cut, "{kept:?}");
    }
}

#[test]
fn a_reload_applies_the_file_or_nothing() {
    let scene = Scene::new();
    let held = scene.hold(6);
    scene.agent.reconfigure(&config(&scene.lab, [5, 1, 1], ""));
    let counts = scene.requests(70).distribution();
    assert_eq!(
        counts,
        [("s0", 50), ("s1", 10), ("s2", 10)]
            .map(|(n, c)| (n.to_owned(), c))
            .into()
    );

    // A mistake: said with its place, and nothing changes.
    scene
        .agent
        .write_config(&config(&scene.lab, [1, 1, 1], "wieght = 3"));
    let bad = scene.agent.command(&["reload"]);
    assert_eq!(bad.code, Some(1));
    assert!(
        bad.err.contains("wieght") && bad.err.contains("balancer.toml:"),
        "{}",
        bad.err
    );
    assert_eq!(scene.requests(7).distribution()["s0"], 5);

    // What needs a restart.
    let text = format!(
        "[timeouts]\ntcp_idle = \"1h\"\n{}",
        config(&scene.lab, [1, 1, 1], "")
    );
    scene.agent.write_config(&text);
    let file = std::fs::read_to_string(scene.agent.config_path()).unwrap();
    let resized = file.replace("[xdp]\n", "[xdp]\nflows_ipv4 = 2000000\n");
    std::fs::write(scene.agent.config_path(), resized).unwrap();
    let refused = scene.agent.command(&["reload"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("flows_ipv4") && refused.err.contains("restart"),
        "{}",
        refused.err
    );
    assert_eq!(scene.requests(7).distribution()["s0"], 5);

    // A signal does the same.
    scene.agent.write_config(&config(&scene.lab, [0, 1, 1], ""));
    let mut scene = scene;
    scene.agent.signal(Signal::SIGHUP);
    wait_until("the reload", BOUND, || {
        number(&scene.agent.backend("web", "s0")["weight"]) == 0
    });
    assert!(!scene.requests(10).distribution().contains_key("s0"));
    scene.agent.write_config("nonsense");
    scene.agent.signal(Signal::SIGHUP);
    wait_until("the refusal in the log", BOUND, || {
        scene.agent.log().contains("nonsense")
    });

    let kept = held.finish();
    assert!(kept.iter().all(|k| k.failure.is_none()), "{kept:?}");
}

#[test]
fn a_backend_that_is_removed_lingers_for_its_flows() {
    let scene = Scene::new();
    let held = scene.hold(3);
    let whole = config(&scene.lab, [1, 1, 1], "");
    let cut = whole.rfind("[[pool.backend]]").unwrap();
    scene.agent.reconfigure(&whole[..cut]);
    let status = scene.agent.status();
    let lingering = &status["lingering"][0];
    assert_eq!(
        (&lingering["kind"], &lingering["name"]),
        (&"backend".into(), &"echo/s2".into())
    );
    wait_until("its flow to be counted", BOUND, || {
        number(&scene.agent.status()["lingering"][0]["flows"]) == 1
    });
    assert_eq!(backends(&status).count(), 5);
    let kept = held.finish();
    assert!(kept.iter().all(|k| k.failure.is_none()), "{kept:?}");
    wait_until("it to be let go", BOUND, || {
        scene.agent.status()["lingering"]
            .as_array()
            .unwrap()
            .is_empty()
    });
    // Its slot's next owner counts from nothing.
    scene.agent.reconfigure(&whole);
    scene.agent.wait_health("echo", "s2", "up");
    assert_eq!(
        number(&scene.agent.backend("echo", "s2")["connections_total"]),
        0
    );
}

#[test]
fn a_dead_server_is_taken_out_and_comes_back() {
    let mut scene = Scene::new();
    scene.servers[1].kill9();
    scene.agent.wait_health("web", "s1", "down");
    let report = scene.requests(20);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    assert!(!report.distribution().contains_key("s1"));
    scene.servers[1].restart();
    scene.agent.wait_health("web", "s1", "up");
    assert!(scene.requests(9).spread(&NAMES) <= 1);
}

#[test]
fn refused_connections_are_a_sign() {
    let lab = Lab::new(2);
    let places = lab.servers.iter().zip(NAMES);
    let servers: Vec<Server> = places
        .map(|(place, name)| Server::at(place, name))
        .collect();
    let vip = SocketAddr::new(lab.vip4(1).into(), 80);
    // Without a check, signs alone decide: nobody listens on the second's port.
    let agent = Agent::start(
        &lab,
        &format!(
            "[[frontend]]\nname = \"web\"\naddress = \"{vip}\"\npool = \"web\"\n\
             [[pool]]\nname = \"web\"\n[pool.check]\ntype = \"none\"\n\
             [[pool.backend]]\nname = \"s0\"\naddress = \"{}\"\n\
             [[pool.backend]]\nname = \"s1\"\naddress = \"{}\"\n",
            lab.servers[0].at4(HTTP),
            lab.servers[1].at4(9),
        ),
    );
    agent.wait_all_up();
    let down = came_true(BOUND, || {
        sequential(&lab.client, vip, &Ask::Http("/".into()), 4);
        agent.backend("web", "s1")["health"] == "down"
    });
    assert!(down, "{}", agent.backend("web", "s1"));
    assert!(number(&agent.backend("web", "s1")["refused"]) >= 3);
    drop(agent);
    drop(servers);
}

#[test]
fn unanswered_connections_are_a_sign() {
    let lab = Lab::new(2);
    let places = lab.servers.iter().zip(NAMES);
    let servers: Vec<Server> = places
        .map(|(place, name)| Server::at(place, name))
        .collect();
    let vip = SocketAddr::new(lab.vip4(1).into(), 80);
    let agent = Agent::start(
        &lab,
        &format!(
            "[[frontend]]\nname = \"web\"\naddress = \"{vip}\"\npool = \"web\"\n\
             [[pool]]\nname = \"web\"\n[pool.check]\ntype = \"none\"\nfall = 2\n\
             [pool.passive]\nunanswered = \"100ms\"\n\
             [[pool.backend]]\nname = \"s0\"\naddress = \"{}\"\n\
             [[pool.backend]]\nname = \"s1\"\naddress = \"{}\"\n",
            lab.servers[0].at4(HTTP),
            lab.servers[1].at4(HTTP),
        ),
    );
    agent.wait_all_up();
    lab.servers[1].ns.nft(
        "table ip silence {\nchain in {\ntype filter hook input priority 0\n\
         tcp dport 8000 drop\n}\n}\n",
    );
    let ask = Ask::Http("/".into());
    let stream = Stream::start(&lab.client, vip, ask, 50);
    // Without a check it is tried again after a while: the log has what has been.
    let said = |backend: &str| {
        let log = agent.log();
        let line = format!("backend=web/{backend} health=down");
        log.lines().find(|l| l.contains(&line)).map(str::to_owned)
    };
    assert!(came_true(BOUND, || said("s1").is_some()), "{}", agent.log());
    let line = said("s1").unwrap();
    assert!(line.contains("unanswered"), "{line}");
    assert_eq!(said("s0"), None);
    drop(stream);
    drop(agent);
    drop(servers);
}

#[test]
fn an_agent_ends_and_another_takes_over() {
    let mut scene = Scene::new();
    scene.agent.order(&["drain", "web/s2"]);
    let held = scene.hold(3);

    // There can be one only.
    let second = scene.agent.command(&[
        "run".as_ref(),
        "--config".as_ref(),
        scene.agent.config_path().as_os_str(),
    ]);
    assert_eq!(second.code, Some(1));
    assert!(second.err.contains("another agent"), "{}", second.err);
    let pins = scene.agent.pin_dir().as_os_str().to_owned();
    let unload = ["unload".as_ref(), "--pin-dir".as_ref(), pins.as_os_str()];
    let refused = scene.agent.command(&unload);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("another agent is running"),
        "{}",
        refused.err
    );
    // With a socket of its own it still is one too many.
    let file = std::fs::read_to_string(scene.agent.config_path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.toml");
    let socket = format!("socket = {:?}", dir.path().join("s"));
    let line = file.lines().find(|l| l.starts_with("socket")).unwrap();
    std::fs::write(&other, file.replace(line, &socket)).unwrap();
    let second = scene
        .agent
        .command(&["run".as_ref(), "--config".as_ref(), other.as_os_str()]);
    assert_eq!(second.code, Some(1));
    assert!(
        second.err.contains("another agent is running"),
        "{}",
        second.err
    );
    assert!(!dir.path().join("s").exists(), "its socket goes with it");

    // Killed: what it had goes on, and the next one has it back.
    scene.agent.kill9();
    assert!(scene.agent.socket().exists());
    let gone = scene.agent.command(&["status"]);
    assert_eq!(gone.code, Some(3));
    assert!(gone.err.contains("admin.sock"), "{}", gone.err);
    assert_eq!(scene.requests(10).failed(), 0);
    scene.agent.run();
    assert_eq!(scene.requests(10).failed(), 0);
    let drained = scene.agent.backend("web", "s2");
    assert_eq!(drained["activation"], "drain", "an operator's word holds");
    for name in ["s0", "s1"] {
        let backend = scene.agent.backend("web", name);
        assert_eq!(backend["health"], "up", "was up all the time: {backend}");
    }

    // Ended: likewise, and the socket goes.
    assert_eq!(scene.agent.terminate(), Some(0));
    assert!(!scene.agent.socket().exists());
    assert!(
        scene.agent.log().contains("steers on"),
        "{}",
        scene.agent.log()
    );
    assert_eq!(scene.requests(10).failed(), 0);
    let kept = held.finish();
    assert!(kept.iter().all(|k| k.failure.is_none()), "{kept:?}");

    // What an agent would change now: nothing.
    let dry = scene.agent.command(&[
        "run".as_ref(),
        "--dry-run".as_ref(),
        "--config".as_ref(),
        scene.agent.config_path().as_os_str(),
    ]);
    assert_eq!(
        (dry.code, dry.out.trim()),
        (Some(0), "nothing to do"),
        "{dry:?}"
    );

    // Unloaded: nothing is left.
    let said = scene.agent.command(&unload);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("4 interfaces"), "{}", said.out);
    assert!(!Path::new(&pins).exists());
    assert_eq!(scene.requests(2).failed(), 2);
}

#[test]
fn a_dead_agents_socket_is_replaced() {
    let lab = Lab::new(1);
    let mut agent = Agent::prepare(&lab.balancer, lab.interfaces(), "");
    drop(UnixListener::bind(agent.socket()).unwrap());
    assert!(agent.socket().exists());
    agent.run();
    assert_eq!(agent.status()["frontends"], Value::Array(Vec::new()));
}
