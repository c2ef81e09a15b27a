//! What most steering tests stand on: the lab, a server in every place, and an agent
//! in front of them; and the words that configurations are put together from.

use std::net::SocketAddr;

use serde_json::Value;

use crate::agent::Agent;
use crate::counters::{self, Counters};
use crate::server::Server;
use crate::topology::{Lab, Options};

/// Room for the flows of a test: tables of the usual size take longer to make than
/// most tests run.
pub const SMALL: &str = "flows_ipv4 = 50_000\nflows_ipv6 = 50_000\nhalf_open = 20_000\n";

/// Checks that find a dead server within 300 ms, as the promise about it says. The
/// timeout is long: a dead server refuses, a busy one must not be taken for dead.
pub const QUICK_CHECK: &str = "[pool.check]\ninterval = \"100ms\"\nfast_interval = \"100ms\"\n\
     timeout = \"2s\"\nfall = 3\nrise = 2\n";

/// No signs from real connections.
pub const NOT_PASSIVE: &str = "[pool.passive]\nrefused = false\nunanswered = false\n";

/// Dropped in this order: the agent before what it balances.
pub struct Bed {
    /// The agent.
    pub agent: Agent,
    /// The servers `s0`, `s1` and so on, in their places.
    pub servers: Vec<Server>,
    /// The namespaces.
    pub lab: Lab,
}

impl Bed {
    /// A lab with as many servers, all found up by an agent with this configuration.
    #[track_caller]
    pub fn new(servers: usize, config: impl FnOnce(&Lab) -> String) -> Self {
        let options = Options {
            servers,
            ..Options::default()
        };
        Self::with(&options, SMALL, config)
    }

    /// The same in a lab as the options say, and with further keys for `[xdp]`.
    #[track_caller]
    pub fn with(options: &Options, xdp: &str, config: impl FnOnce(&Lab) -> String) -> Self {
        let lab = Lab::with(options);
        let servers: Vec<Server> = (0..lab.servers.len())
            .map(|i| Server::at(&lab.servers[i], &name(i)))
            .collect();
        let agent = Agent::start_with(&lab, xdp, &config(&lab));
        agent.wait_all_up();
        Self {
            agent,
            servers,
            lab,
        }
    }

    /// The servers' names.
    pub fn names(&self) -> Vec<&str> {
        self.servers.iter().map(Server::name).collect()
    }

    /// The kernel program's counter of a reason.
    #[track_caller]
    pub fn reason(&self, reason: &str) -> u64 {
        let status = self.agent.status();
        let all = status["reasons"].as_array().into_iter().flatten();
        let mut counts = all.filter(|entry| entry["reason"] == reason);
        counts
            .next()
            .map_or(0, |entry| entry["count"].as_u64().unwrap_or(0))
    }

    /// Flows that a backend has now, established and half open.
    #[track_caller]
    pub fn flows(&self, pool: &str, backend: &str) -> u64 {
        let backend = self.agent.backend(pool, backend);
        let count = |key: &str| backend[key].as_u64().unwrap_or(0);
        count("flows") + count("half_open")
    }

    /// Packets that devices have dropped so far, see [`counters::dropped`].
    pub fn dropped(&self) -> i64 {
        let servers = self.lab.servers.iter().map(|place| &place.ns);
        let all = servers.chain([&self.lab.client, &self.lab.balancer]);
        all.map(counters::dropped).sum()
    }

    /// TCP segments that client and servers have sent again so far.
    pub fn retransmitted(&self) -> i64 {
        let servers = self.lab.servers.iter().map(|place| &place.ns);
        let all = servers.chain([&self.lab.client]);
        all.map(|ns| Counters::of(ns).retransmitted()).sum()
    }
}

/// The name of the i-th server and backend.
pub fn name(i: usize) -> String {
    format!("s{i}")
}

/// A frontend's section.
pub fn frontend(name: &str, address: SocketAddr, protocol: &str, pool: &str) -> String {
    format!(
        "[[frontend]]\nname = \"{name}\"\naddress = \"{address}\"\nprotocol = \"{protocol}\"\n\
         pool = \"{pool}\"\n\n"
    )
}

/// A pool's section: `keys` are its further keys and tables.
pub fn pool(name: &str, keys: &str, backends: &[(String, SocketAddr, u32)]) -> String {
    let mut text = format!("[[pool]]\nname = \"{name}\"\n{keys}");
    for (backend, address, weight) in backends {
        text += &format!(
            "[[pool.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\nweight = {weight}\n"
        );
    }
    text + "\n"
}

/// The lab's servers as backends, IPv4, of these weights.
pub fn backends4(lab: &Lab, port: u16, weights: &[u32]) -> Vec<(String, SocketAddr, u32)> {
    let places = lab.servers.iter().zip(weights).enumerate();
    places
        .map(|(i, (place, &weight))| (name(i), place.at4(port), weight))
        .collect()
}

/// The lab's servers as backends, IPv6, of these weights.
pub fn backends6(lab: &Lab, port: u16, weights: &[u32]) -> Vec<(String, SocketAddr, u32)> {
    let places = lab.servers.iter().zip(weights).enumerate();
    places
        .map(|(i, (place, &weight))| (name(i), place.at6(port), weight))
        .collect()
}

/// The n-th IPv4 frontend address with a port.
pub fn vip4(lab: &Lab, n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(lab.vip4(n).into(), port)
}

/// The n-th IPv6 frontend address with a port.
pub fn vip6(lab: &Lab, n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(lab.vip6(n.into()).into(), port)
}

/// A number in a status, by its keys.
#[track_caller]
pub fn number(status: &Value, key: &str) -> u64 {
    status[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no number `{key}` in {status:#}"))
}
