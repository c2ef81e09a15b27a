//! The site of the article that this balancer stands in for: HAProxy in front, behind it two
//! hosts with httpd, mod_jk and a Tomcat with two services each, whose sessions Tomcat itself
//! replicates. Here a balancer in the kernel stands for HAProxy, and an agent on each host for
//! httpd with mod_jk; their configurations are what `balancer import` makes of the article's
//! own files. Nothing but addresses and document roots is adapted, and how long checks wait.
//!
//! What its visitors do, and see, is in [`visit`] and [`others`]; where paths lead, in
//! [`paths`].

pub mod others;
pub mod paths;
pub mod visit;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::raw::{self, Raw};
use super::tomcat::{self, Tomcat};
use crate::agent::Agent;
use crate::process::{sibling, wait_until};
use crate::scratch;
use crate::topology::{Lab, Options};

const IMPORTED: [(&str, &str); 4] = [
    (
        "haproxy.cfg",
        include_str!("../../../../balancer-agent/tests/import/article/haproxy.cfg"),
    ),
    (
        "workers.properties",
        include_str!("../../../../balancer-agent/tests/import/article/workers.properties"),
    ),
    (
        "httpd.conf",
        include_str!("../../../../balancer-agent/tests/import/article/httpd.conf"),
    ),
    (
        "mod_jk.conf",
        include_str!("../../../../balancer-agent/tests/import/article/mod_jk.conf"),
    ),
];

/// Where the article has its two hosts.
const THERE: [&str; 2] = ["172.18.0.12", "172.18.0.13"];

/// Hosts, and Tomcats.
pub const HOSTS: usize = THERE.len();

/// What [`Plan::start`] does one after the other: each Tomcat, their cluster, the agents, the
/// balancer.
pub const STEPS: usize = HOSTS + 3;

/// Folders that `JkUnMount` leaves to httpd.
pub const STATIC: [&str; 5] = ["images", "js", "css", "externlib", "sample"];

/// A service of the article: each Tomcat has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Of the pool; its members are this with 1 and 2.
    pub name: &'static str,
    /// Where clients ask for it.
    pub port: u16,
    engine: &'static str,
    ajp: u16,
    redirect: u16,
    multicast: &'static str,
    members: u16,
    receiver: u16,
}

/// On port 80.
pub const USER: Service = Service {
    name: "user",
    port: 80,
    engine: "Catalina2",
    ajp: 8029,
    redirect: 8447,
    multicast: "228.0.0.5",
    members: 45565,
    receiver: 4100,
};

/// On port 9090.
pub const ADMIN: Service = Service {
    name: "admin",
    port: 9090,
    engine: "Catalina",
    ajp: 8019,
    redirect: 8446,
    multicast: "228.0.0.4",
    members: 45564,
    receiver: 4000,
};

/// What `balancer import` made of some of the files.
#[derive(Clone, Debug)]
pub struct Import {
    /// The command, as typed.
    pub command: String,
    /// The configuration.
    pub config: String,
    /// What it said besides: a line for each directive that is not in it, and notes.
    pub said: Vec<String>,
}

/// The hosts are there, and the files imported; nothing runs yet.
pub struct Plan {
    /// For the balancer: HAProxy's.
    pub front: Import,
    /// For the agents: mod_jk's and httpd's.
    pub back: Import,
    lab: Lab,
    dir: TempDir,
}

/// All of it, running. Dropped in this order.
pub struct Article {
    /// The balancer, in the kernel.
    pub balancer: Agent,
    /// The agents of the two hosts.
    pub agents: Vec<Agent>,
    /// Their Tomcats; nothing where one was killed.
    pub tomcats: Vec<Option<Tomcat>>,
    /// The namespaces: the hosts are the lab's servers.
    pub lab: Lab,
    /// The document roots, which both hosts share.
    _dir: TempDir,
}

impl Plan {
    /// Makes the namespaces, writes the files and imports them.
    #[track_caller]
    pub fn new() -> Self {
        let lab = Lab::with(&Options {
            servers: HOSTS,
            // Tomcats find each other by multicast.
            shared_segment: true,
            ..Options::default()
        });
        let dir = scratch::dir("article");
        files(&lab, dir.path());
        let address = vip(&lab).to_string();
        let front = import(
            dir.path(),
            &[
                "haproxy",
                "haproxy.cfg",
                "--interface",
                "client0",
                "--address",
                &address,
            ],
        );
        let back = import(
            dir.path(),
            &["workers", "workers.properties", "--httpd", "httpd.conf"],
        );
        Self {
            front,
            back,
            lab,
            dir,
        }
    }

    /// Starts everything, and waits until all of it is up. Each of [`STEPS`] steps is told
    /// of before it begins.
    #[track_caller]
    pub fn start(self, mut tell: impl FnMut(&str)) -> Article {
        let Self {
            front,
            back,
            lab,
            dir,
        } = self;
        // One after the other: the second asks the first for its sessions, and would wait
        // a minute for one that is not ready to answer.
        let tomcats: Vec<_> = (0..HOSTS)
            .map(|host| {
                tell(&format!("the Tomcat of host{} starts", host + 1));
                Some(start_tomcat(&lab, host))
            })
            .collect();
        // What a Tomcat does before it knows the other is never told to it.
        tell("the Tomcats find each other");
        wait_until("the Tomcats to know each other", tomcat::START, || {
            let knows = |log: String| log.matches("Replication member added").count() >= 2;
            tomcats
                .iter()
                .flatten()
                .all(|tomcat: &Tomcat| knows(tomcat.log()))
        });
        tell("the agents start, and check the Tomcats");
        let mut agents = Vec::new();
        let config = patient(&back.config);
        for place in &lab.servers {
            let mut agent = Agent::prepare_plain(&place.ns, &config);
            agent.run();
            agents.push(agent);
        }
        agents.iter().for_each(Agent::wait_all_up);
        tell("the balancer loads its program, and checks the agents");
        // The harness has this section of its own, with pins and both interfaces.
        let section = "[xdp]\ninterfaces = [\"client0\"]\n";
        assert!(front.config.contains(section), "{}", front.config);
        let balancer = Agent::start(&lab, &front.config.replace(section, ""));
        balancer.wait_all_up();
        Article {
            balancer,
            agents,
            tomcats,
            lab,
            _dir: dir,
        }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

impl Article {
    /// Starts everything, and waits until all of it is up.
    #[track_caller]
    pub fn start() -> Self {
        Plan::new().start(|_| ())
    }

    /// Where clients ask for a service.
    pub fn address(&self, service: Service) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(vip(&self.lab)), service.port)
    }

    /// A connection to a service.
    ///
    /// # Errors
    /// When there is none.
    pub fn client(&self, service: Service) -> Result<Raw, String> {
        let address = self.address(service);
        let tcp = raw::tcp(&self.lab.client, None, address);
        let client = Raw::plain(tcp.map_err(|error| format!("connect to {address}: {error}"))?);
        client.patience(tomcat::START);
        Ok(client)
    }

    /// Starts a host's Tomcat again; its agents find it by themselves.
    #[track_caller]
    pub fn restart_tomcat(&mut self, host: usize) {
        self.tomcats[host] = Some(start_tomcat(&self.lab, host));
    }
}

fn vip(lab: &Lab) -> Ipv4Addr {
    lab.vip4(1)
}

/// The article's files with this lab's addresses, and what its document roots have.
fn files(lab: &Lab, dir: &Path) {
    let www = dir.join("www").display().to_string();
    for (name, text) in IMPORTED {
        let mut text = text.replace("/var/www", &www);
        for (there, place) in THERE.iter().zip(&lab.servers) {
            text = text.replace(there, &place.v4.to_string());
        }
        // A balancer in the kernel knows no HTTP. The article shows frontends and backends
        // alone; they name no mode.
        text = text.replace("  mode http\n", "  mode tcp\n");
        fs::write(dir.join(name), text).expect("write a file");
    }
    for service in [USER, ADMIN] {
        let root = dir.join(format!("www/mago3d-{}", service.name));
        for folder in STATIC {
            let folder_path = root.join(folder);
            fs::create_dir_all(folder_path.join("deep")).expect("a folder");
            for file in ["a.txt", "deep/b.txt", "with space.txt", "é.txt"] {
                let text = format!("static {} {folder}/{file}\n", service.name);
                fs::write(folder_path.join(file), text).expect("write a file");
            }
        }
        // Below the root, but of no excluded folder: never to be seen.
        fs::write(root.join("secret.txt"), "static secret\n").expect("write a file");
    }
}

/// What `balancer import` makes of them.
#[track_caller]
fn import(dir: &Path, arguments: &[&str]) -> Import {
    let binary = std::env::var_os("BALANCER_BIN").map_or_else(|| sibling("balancer"), Into::into);
    let mut command = Command::new(binary);
    command.arg("import").args(arguments).current_dir(dir);
    let output = command.output().expect("run balancer import");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    Import {
        command: format!("balancer import {}", arguments.join(" ")),
        config: String::from_utf8(output.stdout).expect("TOML"),
        said: said.lines().map(str::to_owned).collect(),
    }
}

/// Lets Tomcats take their time over checks, of which the article's files say nothing: one
/// that a busy machine keeps waiting is not dead. One that is refuses connections.
#[track_caller]
fn patient(config: &str) -> String {
    let sticky = "[pool.sticky]\n";
    let check = format!("[pool.check]\ntimeout = \"5s\"\n\n{sticky}");
    assert_eq!(config.matches(sticky).count(), 2, "{config}");
    config.replace(sticky, &check)
}

#[track_caller]
fn start_tomcat(lab: &Lab, host: usize) -> Tomcat {
    let place = &lab.servers[host];
    let dir = Tomcat::base();
    let base = dir.path();
    let mut services = String::new();
    for service in [ADMIN, USER] {
        let source = base.join(format!("source/mago3d-{}", service.name));
        fs::create_dir_all(source.join("WEB-INF")).expect("a folder");
        for (name, text) in [
            ("web.xml", include_str!("../tomcat/article/web.xml")),
            ("app.jsp", include_str!("../tomcat/article/app.jsp")),
        ] {
            fs::write(source.join("WEB-INF").join(name), text).expect("write a file");
        }
        services += &include_str!("../tomcat/article/service.xml")
            .replace("ENGINE", service.engine)
            .replace("NODE", &format!("{}{}", service.name, host + 1))
            .replace("\"AJP\"", &format!("\"{}\"", service.ajp))
            .replace("REDIRECT", &service.redirect.to_string())
            .replace("MULTICAST", service.multicast)
            .replace("MEMBERS", &service.members.to_string())
            .replace("RECEIVER", &service.receiver.to_string())
            .replace("ADDRESS", &place.v4.to_string())
            .replace("DOCBASE", &source.display().to_string());
    }
    let server = include_str!("../tomcat/article/server.xml").replace("SERVICES", &services);
    fs::write(base.join("conf/server.xml"), server).expect("write a file");
    let ports = [place.at4(ADMIN.ajp), place.at4(USER.ajp)];
    // Java sends no multicast of IPv4 from a socket of IPv6.
    let options = [&tomcat::QUICK[..], &["-Djava.net.preferIPv4Stack=true"]].concat();
    let mut tomcat = Tomcat::launch(&place.ns, dir, &options, &ports);
    tomcat.wait_started();
    tomcat
}
