//! What goes wrong: agents killed with `kill -9`, agents stopped, the network parted, and
//! servers killed so that sessions move.

use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::ledger::Ledger;
use super::site::Site;
use super::{NODES, SERVERS};
use crate::sim::rng::Rng;

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`; started again after so long, or when the round ends.
    Kill(Vec<usize>, Option<Duration>),
    /// SIGSTOP; SIGCONT when the round ends.
    Pause(Vec<usize>),
    /// These do not hear the others, nor the others them unless it is one-way.
    Part {
        /// One side.
        side: Vec<usize>,
        /// The other side hears on.
        one_way: bool,
    },
    /// A server is killed; started again when the round ends.
    Server(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(nodes, None) => write!(f, "kill {nodes:?}"),
            Self::Kill(nodes, Some(away)) => {
                write!(f, "kill {nodes:?} for {} ms", away.as_millis())
            }
            Self::Pause(nodes) => write!(f, "pause {nodes:?}"),
            Self::Part { side, one_way } => {
                let way = if *one_way { "deafen" } else { "part" };
                write!(f, "{way} {side:?}")
            }
            Self::Server(server) => write!(f, "server {server} killed"),
        }
    }
}

/// What goes wrong in a round, and when after its begin.
#[derive(Clone, Debug)]
pub struct Round {
    /// How long all goes well before.
    pub before: Duration,
    /// In order of their time.
    pub faults: Vec<(Duration, Fault)>,
    /// When all ends.
    pub end: Duration,
}

fn some(rng: &mut Rng, count: usize) -> Vec<usize> {
    let mut nodes: Vec<usize> = (0..NODES).collect();
    while nodes.len() > count {
        nodes.swap_remove(rng.below(nodes.len() as u64) as usize);
    }
    nodes.sort_unstable();
    nodes
}

fn millis(rng: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.range(low, high))
}

impl Round {
    /// By chance. At most so many agents are killed.
    pub fn new(rng: &mut Rng, most_killed: usize) -> Self {
        let before = millis(rng, 500, 2_000);
        let end = match rng.below(4) {
            // Shorter than it takes to notice.
            0 => millis(rng, 200, 1_200),
            _ => millis(rng, 2_000, 7_000),
        };
        let count = rng.range(1, 3);
        let (mut faults, mut killed, mut servers) = (Vec::new(), 0, 0);
        for number in 0..count {
            let at = match number {
                0 => Duration::ZERO,
                _ => millis(rng, 0, end.as_millis() as u64),
            };
            let room = most_killed - killed;
            let fault = match rng.below(100) {
                0..35 if room > 0 => {
                    let most = match rng.below(10) {
                        0 => room,
                        1..4 => room.min(2),
                        _ => 1,
                    };
                    killed += most;
                    let away = rng.chance(60).then(|| millis(rng, 0, 3_000));
                    Fault::Kill(some(rng, most), away)
                }
                0..55 => {
                    let count = if rng.chance(25) { 2 } else { 1 };
                    Fault::Pause(some(rng, count))
                }
                55..85 => {
                    let count = rng.range(1, NODES as u64 - 1) as usize;
                    let one_way = rng.chance(35);
                    Fault::Part {
                        side: some(rng, count),
                        one_way,
                    }
                }
                _ if servers + 1 < SERVERS => {
                    servers += 1;
                    Fault::Server(rng.below(SERVERS as u64) as usize)
                }
                _ => Fault::Pause(some(rng, 1)),
            };
            faults.push((at, fault));
        }
        faults.sort_by_key(|(at, _)| *at);
        Self {
            before,
            faults,
            end,
        }
    }

    /// Plays it. Afterwards everything runs again, and nothing is cut.
    ///
    /// # Panics
    /// When an agent has ended by itself.
    pub fn play<'a, L>(&self, site: &mut Site, ledger: impl Fn() -> L)
    where
        L: std::ops::DerefMut<Target = Ledger> + 'a,
    {
        std::thread::sleep(self.before);
        ledger().weather(true);
        let begin = Instant::now();
        let mut back: Vec<(Duration, usize)> = Vec::new();
        let mut paused: Vec<usize> = Vec::new();
        let mut deaf: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut faults = self.faults.iter().peekable();
        while begin.elapsed() < self.end {
            let now = begin.elapsed();
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= now) {
                match fault {
                    Fault::Kill(nodes, away) => {
                        for &node in nodes {
                            // One that was killed before is not up yet, and has nothing.
                            back.retain(|(_, other)| *other != node);
                            paused.retain(|other| *other != node);
                            site.agents[node].kill9();
                            ledger().killed(node);
                            back.push((now + away.unwrap_or(self.end), node));
                        }
                    }
                    Fault::Pause(nodes) => {
                        for &node in nodes {
                            if site.agents[node].running() && !paused.contains(&node) {
                                site.agents[node].signal(Signal::SIGSTOP);
                                paused.push(node);
                            }
                        }
                    }
                    Fault::Part { side, one_way } => {
                        // The later one counts: they do not add up.
                        site.mend();
                        let other = (0..NODES).filter(|node| !side.contains(node));
                        let other: Vec<usize> = other.collect();
                        deaf = side.iter().map(|&node| (node, other.clone())).collect();
                        if !one_way {
                            deaf.extend(other.iter().map(|&node| (node, side.clone())));
                        }
                        for (node, others) in &deaf {
                            site.deafen(*node, others);
                        }
                    }
                    Fault::Server(server) => {
                        site.apps[*server].kill9();
                        ledger().moving(true);
                    }
                }
            }
            back.retain(|(at, node)| {
                let due = *at <= now;
                if due {
                    site.agents[*node].launch();
                }
                !due
            });
            std::thread::sleep(Duration::from_millis(5));
        }
        if !deaf.is_empty() {
            site.mend();
        }
        for node in paused {
            site.agents[node].signal(Signal::SIGCONT);
        }
        for (_, node) in back {
            site.agents[node].launch();
        }
        for (_, fault) in &self.faults {
            if let Fault::Server(server) = fault {
                site.apps[*server].restart();
            }
        }
        ledger().moving(false);
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in &self.faults {
            write!(f, "{:.1} s {fault}; ", at.as_secs_f64())?;
        }
        write!(f, "{:.1} s all well", self.end.as_secs_f64())
    }
}
