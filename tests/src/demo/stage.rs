//! What the acts play on: the lab with three servers, and the agent with two
//! frontends (web for requests, echo for connections that stay open).

use std::net::SocketAddr;

use super::show::Show;
use crate::agent::{AUTO, Agent, backends};
use crate::server::{ECHO, HTTP, Server};
use crate::topology::Lab;

/// The servers' names.
pub const NAMES: [&str; 3] = ["s0", "s1", "s2"];

/// Dropped in this order: the agent before what it balances.
pub struct Stage {
    pub agent: Agent,
    pub servers: Vec<Server>,
    pub lab: Lab,
    /// Where requests go.
    pub web: SocketAddr,
    /// Where connections that stay open go.
    pub echo: SocketAddr,
}

impl Stage {
    /// The first act: builds everything and waits until all servers are up.
    pub fn build(show: &mut Show) -> Self {
        show.act("A client, a balancer and three servers");
        show.say("Each gets a network namespace of its own; veth pairs connect them.");
        let spinner = show.spinner("building");
        let lab = Lab::new(NAMES.len());
        let servers: Vec<Server> = lab
            .servers
            .iter()
            .zip(NAMES)
            .map(|(place, name)| Server::at(place, name))
            .collect();
        let web = SocketAddr::new(lab.vip4(1).into(), 80);
        let echo = SocketAddr::new(lab.vip4(1).into(), 7);
        let agent = Agent::start_with(&lab, AUTO, &config(&lab, web, echo, [1, 1, 1]));
        agent.wait_all_up();
        spinner.finish_and_clear();
        show.say(format!(
            "The client is {}. It asks {web} (web) and {echo} (echo), which nobody owns:",
            lab.client4()
        ));
        show.say("the XDP program on the balancer's devices answers for them.");
        show.table(
            ["server", "web", "echo", "health"],
            lab.servers.iter().zip(NAMES).map(|(place, name)| {
                let health = agent.backend("web", name)["health"].clone();
                [
                    name.to_owned(),
                    place.at4(HTTP).to_string(),
                    place.at4(ECHO).to_string(),
                    health.as_str().unwrap_or("?").to_owned(),
                ]
            }),
        );
        show.promise(
            "the agent loads its program and finds all servers up",
            backends(&agent.status()).all(|backend| backend["health"] == "up"),
            format!(
                "process {}, devices {}",
                agent.id(),
                lab.interfaces().join(", ")
            ),
        );
        Self {
            agent,
            servers,
            lab,
            web,
            echo,
        }
    }

    /// Has the agent apply other weights.
    pub fn reweigh(&self, weights: [u32; 3]) {
        self.agent
            .reconfigure(&config(&self.lab, self.web, self.echo, weights));
    }
}

fn config(lab: &Lab, web: SocketAddr, echo: SocketAddr, weights: [u32; 3]) -> String {
    let pool = |name: &str, address: SocketAddr, check: &str, port: u16| {
        let mut text = format!(
            "[[frontend]]\nname = \"{name}\"\naddress = \"{address}\"\nprotocol = \"tcp\"\n\
             pool = \"{name}\"\n\n\
             [[pool]]\nname = \"{name}\"\n\
             [pool.check]\n{check}\ninterval = \"100ms\"\nfast_interval = \"100ms\"\n\
             timeout = \"90ms\"\nfall = 3\nrise = 2\n\
             [pool.passive]\nrefused = true\n"
        );
        for ((place, server), weight) in lab.servers.iter().zip(NAMES).zip(weights) {
            text += &format!(
                "[[pool.backend]]\nname = \"{server}\"\naddress = \"{}\"\nweight = {weight}\n",
                place.at4(port)
            );
        }
        text
    };
    format!(
        "{}\n{}",
        pool("web", web, "type = \"http\"\npath = \"/health\"", HTTP),
        pool("echo", echo, "type = \"tcp\"", ECHO)
    )
}
