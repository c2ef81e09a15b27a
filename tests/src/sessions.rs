//! Agents that keep sessions together, with their servers and clients on one segment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::http::apps::App;
use crate::http::raw::{Answer, Raw};
use crate::http::web::CHECK;
use crate::netns::{End, Link, Netns, veth};
use crate::process::{BOUND, wait_until};
use crate::scratch;

/// A pool that learns its sessions, which are of the group `user`.
pub const LEARN: &str = "type = \"learn\"\ncookie = \"SID\"\ngroup = \"user\"\n";
/// Servers of the pool `app`: `s0` and so on.
pub const SERVERS: usize = 3;

/// Agents, servers and clients on one segment; dropped after their agents.
pub struct Site {
    /// By their number.
    pub agents: Vec<Agent>,
    /// The servers.
    pub apps: Vec<App>,
    /// Where clients and servers are.
    pub clients: Netns,
    disks: Option<PathBuf>,
    /// Where each agent is.
    pub hosts: Vec<Netns>,
    _segment: Netns,
    _dir: TempDir,
}

/// Where an agent answers.
pub fn frontend(agent: usize) -> SocketAddr {
    SocketAddr::from(([10, 7, 0, agent as u8 + 1], 8080))
}

fn server(i: usize) -> SocketAddr {
    SocketAddr::from(([10, 7, 0, 100], 9000 + i as u16))
}

impl Site {
    /// So many agents that are together, and serve. `group` has further keys of their
    /// group of sessions.
    #[track_caller]
    pub fn new(agents: usize, group: &str, sticky: &str) -> Self {
        Self::build(agents, None, group, sticky)
    }

    /// Like [`new`](Self::new); each has its sessions in a directory of its own below that
    /// one.
    #[track_caller]
    pub fn on_disk(agents: usize, disks: &Path, group: &str) -> Self {
        let group = format!("manager = \"persistent\"\n{group}");
        Self::build(agents, Some(disks.to_owned()), &group, LEARN)
    }

    #[track_caller]
    fn build(agents: usize, disks: Option<PathBuf>, group: &str, sticky: &str) -> Self {
        let dir = scratch::dir("sessions");
        let secret = dir.path().join("secret");
        fs::write(&secret, "0123456789abcdefghijklmnopqrstuvwxyz0123").expect("a secret");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("its mode");
        let segment = Netns::new();
        segment.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n");
        let attach = |ns: &Netns, port: &str, addresses: &[&str]| {
            veth(
                &End::new(ns, "eth0", addresses),
                &End::new(&segment, port, &[]),
                Link::default(),
            );
            segment.ip(&format!("link set {port} master br0"));
        };
        let clients = Netns::new();
        attach(
            &clients,
            "clients",
            &["10.7.0.100/24", "10.7.0.101/24", "10.7.0.102/24"],
        );
        let apps = (0..SERVERS).map(|i| App::at(&clients, &format!("s{i}"), server(i)));
        let apps = apps.collect();
        let mut hosts = Vec::new();
        let mut running = Vec::new();
        for i in 0..agents {
            let ns = Netns::new();
            attach(&ns, &format!("node{i}"), &[&format!("10.7.0.{}/24", i + 1)]);
            let cluster = match agents {
                1 => String::new(),
                _ => format!(
                    "[cluster]\nname = \"n{i}\"\nlisten = \"10.7.0.{}:7946\"\n\
                     seeds = [\"10.7.0.1:7946\"]\nsecret_file = {secret:?}\nstate_dir = {:?}\n\
                     probe_interval = \"200ms\"\nprobe_timeout = \"80ms\"\n\
                     suspect_timeout = \"1s\"\n",
                    i + 1,
                    dir.path().join(format!("state{i}")),
                ),
            };
            let mut agent = Agent::prepare_plain(
                &ns,
                &(cluster + &config(i, disks.as_deref(), group, sticky)),
            );
            agent.run();
            running.push(agent);
            hosts.push(ns);
        }
        let site = Self {
            agents: running,
            apps,
            clients,
            disks,
            hosts,
            _segment: segment,
            _dir: dir,
        };
        site.agents.iter().for_each(Agent::wait_all_up);
        site.wait_ready(&(0..agents).collect::<Vec<_>>());
        site
    }

    /// Waits until these know each other and have each other's sessions.
    #[track_caller]
    pub fn wait_ready(&self, agents: &[usize]) {
        wait_until("the stores to be ready", BOUND, || {
            agents.iter().all(|at| {
                let status = self.agents[*at].status();
                let others = status["cluster"]["nodes"].as_array();
                let alive = others.map_or(1, |nodes| {
                    let alive = nodes.iter().filter(|node| node["state"] == "alive");
                    alive.count()
                });
                status["sessions"]["ready"] == true
                    && status["sessions"]["unsettled"] == 0
                    && alive >= agents.len()
            })
        });
    }

    /// Where an agent's sessions are on disk.
    #[track_caller]
    pub fn disk(&self, agent: usize) -> PathBuf {
        let disks = self.disks.as_ref().expect("agents with disks");
        disks.join(format!("n{agent}"))
    }

    /// Connected to an agent.
    #[track_caller]
    pub fn client(&self, agent: usize) -> Raw {
        Raw::connect(&self.clients, frontend(agent))
    }

    /// A session made through an agent; its server.
    #[track_caller]
    pub fn bind(&self, agent: usize, session: &str) -> String {
        let answer = self.client(agent).get(&format!("/cookie?SID={session}"));
        assert_eq!(answer.cookie("SID"), Some(session), "{answer:?}");
        answer.server().to_owned()
    }

    /// The server of a client that comes with its session to an agent.
    #[track_caller]
    pub fn ask(&self, agent: usize, session: &str) -> String {
        let answer: Answer = self
            .client(agent)
            .get_with("/", &[("Cookie", &format!("SID={session}"))]);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.server().to_owned()
    }

    /// So many sessions made through the first agent, with their servers.
    #[track_caller]
    pub fn bind_many(&self, count: usize) -> BTreeMap<String, String> {
        (0..count)
            .map(|i| {
                let session = format!("secret-session-{i}");
                let server = self.bind(0, &session);
                (session, server)
            })
            .collect()
    }

    /// Every session leads to its server at an agent.
    #[track_caller]
    pub fn all_at(&self, agent: usize, bound: &BTreeMap<String, String>) {
        for (session, server) in bound {
            assert_eq!(
                self.ask(agent, session),
                *server,
                "{session} at agent {agent}"
            );
        }
    }

    /// What a `sessions` command of an agent says as JSON.
    #[track_caller]
    pub fn sessions(&self, agent: usize, words: &[&str]) -> Value {
        let words = [&["sessions"], words, &["--json"]].concat();
        serde_json::from_str(&self.agents[agent].order(&words)).expect("JSON")
    }

    /// The same, once nobody's sessions are missing in it: on a machine that stalls, nodes
    /// are suspected now and then.
    #[track_caller]
    pub fn whole(&self, agent: usize, words: &[&str]) -> Value {
        let mut said = Value::Null;
        wait_until("an answer of all nodes", BOUND, || {
            said = self.sessions(agent, words);
            said["unheard"] == Value::Array(vec![])
        });
        said
    }

    /// What a drain says, once nobody's sessions are missing in it.
    #[track_caller]
    pub fn drain(&self, agent: usize, server: &str) -> String {
        let mut said = String::new();
        wait_until("a drain that knows all sessions", BOUND, || {
            said = self.agents[agent].order(&["drain", server]);
            !said.contains("not complete")
        });
        said
    }

    /// The group's part of an agent's status.
    #[track_caller]
    pub fn group(&self, agent: usize) -> Value {
        self.agents[agent].status()["sessions"]["groups"][0].clone()
    }

    /// Sessions that an agent holds.
    #[track_caller]
    pub fn held(&self, agent: usize) -> u64 {
        let held = self.group(agent)["sessions"].as_u64();
        held.expect("a number")
    }

    /// Waits until each of these agents holds so many.
    #[track_caller]
    pub fn wait_held(&self, agents: &[usize], count: u64) {
        wait_until(&format!("{count} sessions at {agents:?}"), BOUND, || {
            agents.iter().all(|at| self.held(*at) == count)
        });
    }

    /// `kill -9`; every agent sees it.
    #[track_caller]
    pub fn kill_server(&mut self, name: &str) {
        let app = self.apps.iter_mut().find(|app| app.name() == name);
        app.expect("a server of that name").kill9();
        for agent in &mut self.agents {
            if agent.running() {
                agent.wait_health("app", name, "down");
            }
        }
    }

    /// Starts it again; every agent sees it.
    #[track_caller]
    pub fn restart_server(&mut self, name: &str) {
        let app = self.apps.iter_mut().find(|app| app.name() == name);
        app.expect("a server of that name").restart();
        for agent in &mut self.agents {
            if agent.running() {
                agent.wait_health("app", name, "up");
            }
        }
    }
}

/// An agent's configuration, without the cluster.
pub fn config(agent: usize, disks: Option<&Path>, group: &str, sticky: &str) -> String {
    let session = disks.map_or_else(String::new, |disks| {
        format!(
            "[session]\ndirectory = {:?}\n",
            disks.join(format!("n{agent}"))
        )
    });
    let mut text = format!(
        "{session}[[session.group]]\nname = \"user\"\n{group}\n\
         [[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"{}\"\npool = \"app\"\n\
         [[pool]]\nname = \"app\"\n{CHECK}[pool.sticky]\n{sticky}",
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
