//! The demonstration: real requests from a client through the balancer to three
//! servers, and what happens to them when things go wrong; then sessions through two agents
//! to four application servers, and through three agents that keep them together; at last
//! the site that began this, with real Tomcats. Each act ends in promises, kept or broken;
//! the verdict is over all of them.

mod acts;
mod cluster;
mod show;
mod stage;
mod tier;
mod tomcat;
mod web;

use std::time::{Duration, Instant};

use crate::{agent, netns, process, scratch};
use show::Show;
use stage::Stage;

/// What a demonstration is made of.
#[derive(Clone, Copy, Debug, clap::Parser)]
#[command(
    name = "demo",
    about = "Shows the balancer at work, in namespaces of its own"
)]
pub struct Options {
    /// Only this part.
    #[arg(value_enum)]
    pub part: Option<Part>,
    /// Sequential requests of the act about distribution.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(7..))]
    pub requests: u32,
    /// Requests per second of the acts under load.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Connections that stay open through the acts under load.
    #[arg(long, default_value_t = 60)]
    pub held: u32,
    /// Browsers with sessions in the acts about the web tier and the cluster.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(8..))]
    pub sessions: u32,
}

/// A part of the demonstration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Connections steered in the kernel: weights, a server's death, draining, restarts.
    Steering,
    /// Two agents that speak HTTP, with sessions in cookies.
    Web,
    /// Three agents that keep sessions together.
    Cluster,
    /// Two hosts with real Tomcats, configured by importing other balancers' files.
    Tomcat,
}

/// How soon after its death no new connection may reach a server: three checks, one
/// every 100 ms, and one more for the phase of the first.
const TAKEN_OUT: Duration = Duration::from_millis(400);

/// Plays all acts; says whether every promise was kept.
pub fn run(options: &Options) -> bool {
    let begin = Instant::now();
    let mut show = Show::default();
    let plays = |part| options.part.is_none_or(|only| only == part);
    if plays(Part::Steering) {
        steer(&mut show, options);
    }
    if plays(Part::Web) {
        web::play(&mut show, options);
    }
    if plays(Part::Cluster) {
        cluster::play(&mut show, options);
    }
    if plays(Part::Tomcat) {
        tomcat::play(&mut show);
    }
    show.promise(
        "nothing is left behind",
        netns::own().is_empty() && agent::own().is_empty() && scratch::own().is_empty(),
        "namespaces with their processes, pinned programs and files are removed",
    );
    show.summary(begin.elapsed())
}

/// The acts about the kernel's part.
fn steer(show: &mut Show, options: &Options) {
    let mut stage = Stage::build(show);
    acts::distribution(&mut stage, show, options);
    acts::weights(&mut stage, show, options);
    acts::kill_a_server(&mut stage, show, options);
    acts::drain(&mut stage, show, options);
    acts::restart_the_agent(&mut stage, show, options);
}

/// Takes everything down that the process has made: for when a signal ends it.
pub fn clean_up() {
    process::close();
    netns::remove_own();
    agent::remove_own();
    scratch::remove_own();
}
