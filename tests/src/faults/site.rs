//! Agents, servers and clients on one segment, each agent in a namespace of its own.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use balancer_agent::cluster::session_keys;
use balancer_agent::model::cluster::Secret;
use balancer_agent::proxy::sticky::id_of_value;
use serde_json::Value;
use tempfile::TempDir;

use super::{NODES, SERVERS};
use crate::agent::Agent;
use crate::http::apps::App;
use crate::http::web::CHECK;
use crate::netns::{End, Link, Netns, veth};
use crate::scratch;

const SECRET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz0123";
const POOL: &str = "app";
/// A server that is taken out for a while after it came back would have its sessions moved:
/// right, but not what the ledger expects of servers that are up.
const OBSERVE: &str = "[pool.observe]\nenabled = false\n";
/// How long agents may take to be together again. Much more than they need, on a machine
/// that does other things too.
const TOGETHER: Duration = Duration::from_secs(90);

/// Who holds the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every node.
    Delta,
    /// A primary and so many backups.
    Backup(usize),
}

impl Kind {
    /// Nodes that hold a session.
    pub fn holders(self) -> usize {
        match self {
            Self::Delta => NODES,
            Self::Backup(copies) => copies + 1,
        }
    }

    fn keys(self) -> String {
        match self {
            Self::Delta => "manager = \"delta\"\n".into(),
            Self::Backup(copies) => format!("manager = \"backup\"\ncopies = {copies}\n"),
        }
    }
}

/// The machines; dropped after their agents.
pub struct Site {
    /// `n0` to `n4`.
    pub agents: Vec<Agent>,
    /// `s0` to `s2`.
    pub apps: Vec<App>,
    /// Where the client lives, and the servers.
    pub clients: Netns,
    id_key: [u64; 2],
    hosts: Vec<Netns>,
    _segment: Netns,
    _dir: TempDir,
}

/// Where an agent takes requests.
pub fn frontend(agent: usize) -> SocketAddr {
    SocketAddr::from(([10, 7, 0, agent as u8 + 1], 8080))
}

fn server(i: usize) -> SocketAddr {
    SocketAddr::from(([10, 7, 0, 100], 9000 + i as u16))
}

/// The header in which agents say how well a session is kept.
pub const KEPT: &str = "x-session-kept";

impl Site {
    /// Agents that are together, and serve.
    #[track_caller]
    pub fn new(kind: Kind, sync: bool) -> Self {
        let dir = scratch::dir("faults");
        let secret = dir.path().join("secret");
        fs::write(&secret, SECRET).expect("write the secret");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("permissions");
        let segment = Netns::new();
        segment.ip(
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n",
        );
        let attach = |ns: &Netns, port: &str, address: &str| {
            veth(
                &End::new(ns, "eth0", &[address]),
                &End::new(&segment, port, &[]),
                Link::default(),
            );
            segment.ip(&format!("link set {port} master br0"));
        };
        let clients = Netns::new();
        attach(&clients, "clients", "10.7.0.100/24");
        let apps = (0..SERVERS)
            .map(|i| App::at(&clients, &format!("s{i}"), server(i)))
            .collect();
        let mut hosts = Vec::new();
        let mut agents = Vec::new();
        for i in 0..NODES {
            let ns = Netns::new();
            attach(&ns, &format!("node{i}"), &format!("10.7.0.{}/24", i + 1));
            // Any node must find the others whoever else is down.
            let seeds: Vec<String> = (1..=NODES)
                .map(|i| format!("\"10.7.0.{i}:7946\""))
                .collect();
            let cluster = format!(
                "[cluster]\nname = \"n{i}\"\nlisten = \"10.7.0.{}:7946\"\nseeds = [{}]\n\
                 secret_file = {secret:?}\nstate_dir = {:?}\nprobe_interval = \"200ms\"\n\
                 probe_timeout = \"100ms\"\nsuspect_timeout = \"1s\"\n",
                i + 1,
                seeds.join(", "),
                dir.path().join(format!("state{i}")),
            );
            let agent = Agent::prepare_plain(&ns, &(cluster + &config(i, kind, sync)));
            agents.push(agent);
            hosts.push(ns);
        }
        let (_, id_key) = session_keys(&Secret::new(SECRET)).expect("the keys of a secret");
        let mut site = Self {
            agents,
            apps,
            clients,
            id_key,
            hosts,
            _segment: segment,
            _dir: dir,
        };
        site.agents.iter_mut().for_each(Agent::launch);
        site.agents.iter_mut().for_each(Agent::wait_ready);
        site.wait_together(&(0..NODES).collect::<Vec<_>>());
        site
    }

    /// Waits until these agents are the whole cluster to each other, have each other's
    /// sessions, and all servers. How long that took.
    #[track_caller]
    pub fn wait_together(&mut self, agents: &[usize]) -> Duration {
        let begin = Instant::now();
        let mut apart = String::new();
        while begin.elapsed() < TOGETHER {
            let found = agents.iter().find_map(|&at| {
                assert!(
                    self.agents[at].running(),
                    "n{at} ended:\n{}",
                    self.agents[at].log()
                );
                let problem = self.agents[at]
                    .look()
                    .map_or(Some("no answer".into()), |status| {
                        apart_from(&status, agents.len())
                    });
                problem.map(|problem| format!("n{at}: {problem}"))
            });
            match found {
                None => return begin.elapsed(),
                Some(problem) => apart = problem,
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the agents {agents:?} are not together after {TOGETHER:?}: {apart}");
    }

    /// Whether nothing waits in these agents' stores.
    pub fn quiet(&self, agents: &[usize]) -> bool {
        agents.iter().all(|&at| {
            self.agents[at].look().is_some_and(|status| {
                let sessions = &status["sessions"];
                sessions["pending"] == 0 && sessions["outbox_bytes"] == 0
            })
        })
    }

    /// Says what the store has a session under, by its cookie, as lists show it.
    pub fn id_maker(&self) -> impl Fn(&str) -> String + Send + 'static {
        let key = self.id_key;
        move |cookie| {
            let id = id_of_value(key, POOL, cookie.as_bytes());
            id.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        }
    }

    /// Live copies that a node holds, with their routes.
    #[track_caller]
    pub fn held(&self, agent: usize) -> HashMap<String, String> {
        let request = r#"{"version":1,"request":"sessions","limit":100000,"held":true}"#;
        let answer = self.agents[agent].ask(request);
        let answer = answer.unwrap_or_else(|| panic!("n{agent} does not list its sessions"));
        let list = &answer["ok"]["sessions"];
        assert_eq!(list["more"], false, "n{agent} holds more than is asked for");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let sessions = list["sessions"].as_array().into_iter().flatten();
        sessions
            .map(|session| (text(&session["id"]), text(&session["route"])))
            .collect()
    }

    /// Has an agent hear nothing from these others.
    pub fn deafen(&self, agent: usize, others: &[usize]) {
        let list: Vec<String> = others.iter().map(|i| format!("10.7.0.{}", i + 1)).collect();
        if list.is_empty() {
            return;
        }
        self.hosts[agent].nft(&format!(
            "table inet faults {{\nchain input {{\ntype filter hook input priority -10\n\
             ip saddr {{ {} }} drop\n}}\n}}\n",
            list.join(", ")
        ));
    }

    /// Has every agent hear everybody.
    pub fn mend(&self) {
        // Made first, so that there is something to remove.
        let lines = "table inet faults {}\ndelete table inet faults\n";
        self.hosts.iter().for_each(|ns| ns.nft(lines));
    }
}

/// Why an agent is not one of `count` that are together.
fn apart_from(status: &Value, count: usize) -> Option<String> {
    let sessions = &status["sessions"];
    if sessions["ready"] != true || sessions["unsettled"] != 0 {
        return Some(format!(
            "its store is {} ({} unsettled)",
            sessions["phase"], sessions["unsettled"]
        ));
    }
    let nodes = status["cluster"]["nodes"].as_array()?;
    let alive = nodes.iter().filter(|node| node["state"] == "alive").count();
    let linked = nodes
        .iter()
        .filter(|node| node["link"]["up"] == true)
        .count();
    if alive != count || linked + 1 != count {
        return Some(format!("it sees {alive} alive, and has {linked} links"));
    }
    let up = |backend: &Value| backend["health"] == "up";
    let web = &status["http"];
    let all = crate::agent::backends(status).all(up) && crate::agent::backends(web).all(up);
    (!all).then(|| "a server is down for it".to_owned())
}

fn config(agent: usize, kind: Kind, sync: bool) -> String {
    let replication = match sync {
        true => {
            "replication = \"sync\"\nsync_timeout = \"700ms\"\nsync_header = \"X-Session-Kept\"\n"
        }
        false => "replication = \"async\"\n",
    };
    let mut text = format!(
        "[[session.group]]\nname = \"user\"\nttl = \"2h\"\n{}{replication}\
         [[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"{}\"\npool = \"{POOL}\"\n\
         [[pool]]\nname = \"{POOL}\"\n{CHECK}{OBSERVE}[pool.sticky]\ntype = \"learn\"\ncookie = \"SID\"\n\
         group = \"user\"\n",
        kind.keys(),
        frontend(agent)
    );
    for i in 0..SERVERS {
        let _ = write!(
            text,
            "[[pool.backend]]\nname = \"s{i}\"\naddress = \"{}\"\n",
            server(i)
        );
    }
    text
}
