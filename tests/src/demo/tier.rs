//! What the acts about sessions play on: agents that speak HTTP stand behind an XDP
//! frontend, application servers behind them, and browsers that have sessions.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::agent::{AUTO, Agent};
use crate::bed::SMALL;
use crate::http::apps::{App, Setup};
use crate::http::raw::{self, Raw};
use crate::netns::Netns;
use crate::topology::{Lab, Options as Topology, Place};

/// Checks that find a dead server within 300 ms.
pub const CHECK: &str = "interval = \"100ms\"\nfast_interval = \"100ms\"\ntimeout = \"1s\"\nfall = 3\n\
                         rise = 2\n";

/// Dropped in this order: agents before what they balance.
pub struct Tier {
    /// Steers connections to the nodes.
    pub front: Agent,
    /// The agents that speak HTTP, each in its place.
    pub nodes: Vec<Agent>,
    /// The application servers.
    pub apps: Vec<App>,
    /// The first places are the nodes', then come the application servers'; the last one is
    /// for clients that ask one node by itself.
    pub lab: Lab,
    /// Where browsers go.
    pub web: SocketAddr,
}

/// What a tier is made of.
pub struct Plan<'a> {
    /// Agents.
    pub nodes: usize,
    /// Application servers, `s0` and so on.
    pub apps: usize,
    /// Whether these leave their sessions' ids without a route.
    pub plain_sessions: bool,
    /// `[pool.sticky]` of every node.
    pub sticky: &'a str,
    /// What else a node's configuration has, by its number and its place.
    pub more: &'a dyn Fn(usize, &Place) -> String,
}

impl Tier {
    /// Starts everything, and waits until all that is checked is up.
    pub fn build(plan: &Plan<'_>) -> Self {
        let lab = Lab::with(&Topology {
            servers: plan.nodes + plan.apps + 1,
            shared_segment: true,
            ..Topology::default()
        });
        let apps: Vec<App> = (0..plan.apps)
            .map(|i| {
                let place = &lab.servers[plan.nodes + i];
                let setup = Setup {
                    name: format!("s{i}"),
                    plain_sessions: plan.plain_sessions,
                    listen: vec![place.at4(8080)],
                    ..Setup::default()
                };
                App::start(&place.ns, setup)
            })
            .collect();
        let nodes: Vec<Agent> = (0..plan.nodes)
            .map(|i| {
                let place = &lab.servers[i];
                let mut text = format!(
                    "{}[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"{}\"\npool = \"app\"\n\n\
                     [[pool]]\nname = \"app\"\n[pool.check]\ntype = \"http\"\npath = \"/health\"\n{CHECK}\
                     [pool.sticky]\n{}",
                    (plan.more)(i, place),
                    place.at4(80),
                    plan.sticky
                );
                for app in &apps {
                    text += &format!(
                        "[[pool.backend]]\nname = \"{}\"\naddress = \"{}\"\n",
                        app.name(),
                        app.address()
                    );
                }
                let mut node = Agent::prepare_plain(&place.ns, &text);
                node.run();
                node
            })
            .collect();
        nodes.iter().for_each(Agent::wait_all_up);
        let web = SocketAddr::new(lab.vip4(1).into(), 80);
        let mut text = format!(
            "[[frontend]]\nname = \"web\"\naddress = \"{web}\"\nprotocol = \"tcp\"\npool = \"nodes\"\n\n\
             [[pool]]\nname = \"nodes\"\n[pool.check]\ntype = \"tcp\"\n{CHECK}[pool.passive]\nrefused = true\n"
        );
        for i in 0..plan.nodes {
            let address = lab.servers[i].at4(80);
            text += &format!("[[pool.backend]]\nname = \"node{i}\"\naddress = \"{address}\"\n");
        }
        let front = Agent::start_with(&lab, &format!("{AUTO}{SMALL}"), &text);
        front.wait_all_up();
        Self {
            front,
            nodes,
            apps,
            lab,
            web,
        }
    }

    /// One visit of everybody to one node, past the frontend; those that failed, and what
    /// they saw. They stand beside the nodes: for the frontend's program, an answer to the
    /// usual client could be one of a connection that it steers.
    pub fn round_at(&self, node: usize, browsers: &mut [Browser]) -> (Vec<String>, Vec<Visit>) {
        let beside = self.lab.servers.last().expect("a place for clients");
        Self::visits(&beside.ns, self.lab.servers[node].at4(80), browsers)
    }

    fn visits(from: &Netns, at: SocketAddr, browsers: &mut [Browser]) -> (Vec<String>, Vec<Visit>) {
        let (mut failed, mut visits) = (Vec::new(), Vec::new());
        for browser in browsers {
            match browser.visit(from, at) {
                Ok(visit) => visits.push(visit),
                Err(why) => failed.push(why),
            }
        }
        (failed, visits)
    }

    /// One visit of everybody by way of the XDP frontend.
    pub fn round(&self, browsers: &mut [Browser]) -> (Vec<String>, Vec<Visit>) {
        Self::visits(&self.lab.client, self.web, browsers)
    }

    /// Requests of each node that the application servers have logged: they know nodes by
    /// their addresses.
    pub fn by_node(&self) -> Vec<usize> {
        let seen: Vec<_> = self.apps.iter().flat_map(App::log).collect();
        let from = |i: usize| {
            let address = format!("{}:", self.lab.servers[i].v4);
            seen.iter()
                .filter(|seen| seen.peer.starts_with(&address))
                .count()
        };
        (0..self.nodes.len()).map(from).collect()
    }
}

/// Somebody with a session.
#[derive(Clone, Default)]
pub struct Browser {
    /// What it sends as `JSESSIONID`.
    pub cookie: Option<String>,
    /// The server that answered last.
    pub server: String,
    /// How many visits that server has counted.
    pub visits: u64,
}

/// What a visit showed.
pub struct Visit {
    /// The server that answered.
    pub server: String,
    /// Whether the cookie was renamed.
    pub renamed: bool,
}

impl Browser {
    /// A request on a connection of its own.
    pub fn visit(&mut self, ns: &Netns, web: SocketAddr) -> Result<Visit, String> {
        let tcp = raw::tcp(ns, None, web).map_err(|error| error.to_string())?;
        let cookie = self.cookie.as_ref().map(|id| format!("JSESSIONID={id}"));
        let mut fields = vec![("Connection", "close")];
        fields.extend(cookie.as_deref().map(|cookie| ("Cookie", cookie)));
        let answer = Raw::plain(tcp).try_request("GET", "/session", &fields, b"");
        let answer = answer.map_err(|trouble| trouble.to_string())?;
        if answer.status != 200 {
            return Err(format!("status {}", answer.status));
        }
        let renamed = answer.cookie("JSESSIONID").is_some() && self.cookie.is_some();
        if let Some(id) = answer.cookie("JSESSIONID") {
            self.cookie = Some(id.to_owned());
        }
        self.server = answer.server().to_owned();
        self.visits = answer
            .one("x-visits")
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        Ok(Visit {
            server: self.server.clone(),
            renamed,
        })
    }

    /// What follows the `.` of its cookie.
    pub fn route(&self) -> &str {
        let id = self.cookie.as_deref().unwrap_or_default();
        id.split_once('.').map_or("", |(_, route)| route)
    }
}

/// The server of each.
pub fn homes(browsers: &[Browser]) -> Vec<String> {
    browsers
        .iter()
        .map(|browser| browser.server.clone())
        .collect()
}

/// How many are at each server.
pub fn counts(homes: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for home in homes {
        *counts.entry(home.as_str()).or_default() += 1;
    }
    counts
}
