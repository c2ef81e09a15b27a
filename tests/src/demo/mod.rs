//! The demonstration: real requests from a client through the balancer to three
//! servers, and what happens to them when things go wrong; then sessions through two agents
//! to four application servers, and through three agents that keep them together. Each act
//! ends in promises, kept or broken; the verdict is over all of them.

mod acts;
mod cluster;
mod show;
mod stage;
mod tier;
mod web;

use std::time::{Duration, Instant};

use crate::{agent, netns};
use show::Show;
use stage::Stage;

/// What a demonstration is made of.
#[derive(Clone, Copy, Debug, clap::Parser)]
#[command(
    name = "demo",
    about = "Shows the balancer at work, in namespaces of its own"
)]
pub struct Options {
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

/// How soon after its death no new connection may reach a server: three checks, one
/// every 100 ms, and one more for the phase of the first.
const TAKEN_OUT: Duration = Duration::from_millis(400);

/// Plays all acts; says whether every promise was kept.
pub fn run(options: &Options) -> bool {
    let begin = Instant::now();
    let mut show = Show::default();
    let mut stage = Stage::build(&mut show);
    acts::distribution(&mut stage, &mut show, options);
    acts::weights(&mut stage, &mut show, options);
    acts::kill_a_server(&mut stage, &mut show, options);
    acts::drain(&mut stage, &mut show, options);
    acts::restart_the_agent(&mut stage, &mut show, options);

    let pins = stage.agent.pin_dir().to_owned();
    drop(stage);
    web::play(&mut show, options);
    cluster::play(&mut show, options);
    show.promise(
        "nothing is left behind",
        netns::own().is_empty() && !pins.exists(),
        "namespaces, processes and pinned programs are removed",
    );
    show.summary(begin.elapsed())
}

/// Takes everything down that the process has made: for when a signal ends it.
pub fn clean_up() {
    netns::remove_own();
    agent::remove_own();
}
