//! A network in memory: it delays, loses, repeats and parts. All messages go through codec
//! and seal; all hosts have one clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::cluster::core::{Core, Initial, Input, Output, Settings, State};
use crate::cluster::id::{Incarnation, NodeId};
use crate::cluster::keys::Keys;
use crate::cluster::message::Message;
use crate::cluster::seal::{Life, Opener, Rejected, Sealer};
use crate::model::cluster::{Secret, Timing};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn timing() -> Timing {
    Timing {
        probe_interval: 500 * MS,
        probe_timeout: 200 * MS,
        suspect_timeout: 2 * SECOND,
    }
}

/// The longest that a death may go unnoticed by anyone: everybody is probed in turn (twice
/// the others, as the order is shuffled anew), fails for an interval, and is suspected.
pub(super) fn detection(nodes: u32) -> Duration {
    let timing = timing();
    timing.probe_interval * (2 * nodes + 3) + timing.suspect_timeout + SECOND
}

pub(super) struct Host {
    pub(super) core: Core,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    pub(super) life: Life,
    pub(super) asleep: bool,
    pub(super) rejected: Vec<Rejected>,
    pub(super) outputs: Vec<&'static str>,
}

pub(super) struct Net {
    pub(super) rng: StdRng,
    pub(super) now: Duration,
    pub(super) hosts: BTreeMap<usize, Host>,
    pub(super) wire: BTreeMap<(Duration, u64), (usize, Vec<u8>)>,
    pub(super) sent: u64,
    /// Hosts that don't hear the second from the first.
    pub(super) cut: BTreeSet<(usize, usize)>,
    pub(super) loss: f64,
    pub(super) repeat: f64,
    /// Everything that was ever sent.
    pub(super) recorded: Option<Vec<(usize, Vec<u8>)>>,
    pub(super) lives: BTreeMap<usize, u32>,
}

pub(super) fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8], 7946))
}

pub(super) fn id(host: usize) -> NodeId {
    NodeId::of(&format!("n{host}"))
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            hosts: BTreeMap::new(),
            wire: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            loss: 0.0,
            repeat: 0.0,
            recorded: None,
            lives: BTreeMap::new(),
        }
    }

    /// Hosts 1 to `count`, all with host 1 as their seed.
    pub(super) fn cluster(seed: u64, count: usize) -> Self {
        let mut net = Self::new(seed);
        (1..=count).for_each(|host| net.start(host, &[1], 1));
        net
    }

    pub(super) fn start(&mut self, host: usize, seeds: &[usize], secret: u8) {
        let name = format!("n{host}");
        self.start_as(host, &name, seeds, secret);
    }

    pub(super) fn start_as(&mut self, host: usize, name: &str, seeds: &[usize], secret: u8) {
        let count = self.lives.entry(host).or_default();
        *count += 1;
        let keys = Keys::new(&Secret::new(&[secret; 32]));
        let life = Life(self.rng.random());
        let settings = Settings {
            seeds: seeds.iter().map(|seed| address(*seed)).collect(),
            multicast: false,
            timing: timing(),
        };
        let incarnation = Incarnation::new(*count, self.rng.random());
        let seed = self.rng.random();
        let at = address(host);
        let start = Initial::default();
        let core = Core::new(name, at, incarnation, start, settings, seed, self.now);
        let host_state = Host {
            core,
            sealer: Sealer::new(&keys, life).unwrap(),
            opener: Opener::new(keys, life),
            life,
            asleep: false,
            rejected: Vec::new(),
            outputs: Vec::new(),
        };
        self.hosts.insert(host, host_state);
    }

    pub(super) fn kill(&mut self, host: usize) {
        self.hosts.remove(&host).unwrap();
    }

    pub(super) fn part(&mut self, one: &[usize], other: &[usize]) {
        for a in one {
            for b in other {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }

    pub(super) fn input(&mut self, host: usize, input: Input) {
        let now = self.now;
        self.hosts.get_mut(&host).unwrap().core.handle(input, now);
        self.flush(host);
    }

    pub(super) fn flush(&mut self, host: usize) {
        let state = self.hosts.get_mut(&host).unwrap();
        while let Some(output) = state.core.poll_output() {
            match output {
                Output::Send { to, echo, message } => {
                    let bytes = state.sealer.seal(echo, &message.encode().unwrap()).unwrap();
                    let SocketAddr::V4(to) = to else { continue };
                    let to = usize::from(to.ip().octets()[3]);
                    if let Some(recorded) = &mut self.recorded {
                        recorded.push((to, bytes.clone()));
                    }
                    if self.cut.contains(&(host, to)) || self.rng.random_bool(self.loss) {
                        continue;
                    }
                    let copies = 1 + u32::from(self.rng.random_bool(self.repeat));
                    for _ in 0..copies {
                        let delay = MS * self.rng.random_range(1..20);
                        self.sent += 1;
                        let key = (self.now + delay, self.sent);
                        self.wire.insert(key, (to, bytes.clone()));
                    }
                }
                Output::Multicast(_) => state.outputs.push("multicast"),
                Output::Renewed(incarnation) => {
                    self.lives.insert(host, incarnation.count());
                    state.outputs.push("renewed");
                }
                Output::Changed => state.outputs.push("changed"),
                Output::Conflict(_) => state.outputs.push("conflict"),
                Output::Full => state.outputs.push("full"),
            }
        }
    }

    pub(super) fn deliver(&mut self, to: usize, mut bytes: Vec<u8>) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&to) else {
            return;
        };
        match host.opener.open(&mut bytes) {
            Ok(opened) => {
                let message = Message::decode(opened.message).unwrap();
                let input = match opened.life == host.life {
                    true => Input::Own(message),
                    false => Input::Message {
                        life: opened.life,
                        fresh: opened.fresh,
                        message,
                    },
                };
                host.core.handle(input, now);
            }
            Err(rejected) => host.rejected.push(rejected),
        }
        self.flush(to);
    }

    /// Goes on by one event; at most to `until`.
    pub(super) fn step(&mut self, until: Duration) -> bool {
        let wire = self.wire.keys().next().map(|(at, _)| *at);
        let awake = self.hosts.iter().filter(|(_, host)| !host.asleep);
        let timer = awake
            .filter_map(|(id, host)| Some((host.core.poll_timeout()?, *id)))
            .min();
        let next = wire.into_iter().chain(timer.map(|(at, _)| at)).min();
        let Some(next) = next.filter(|at| *at <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        if wire == Some(next) {
            let (_, (to, bytes)) = self.wire.pop_first().unwrap();
            match self.hosts.get(&to) {
                // As a socket's buffer does, for a process that is stopped.
                Some(host) if host.asleep => {
                    self.sent += 1;
                    let later = (self.now + 100 * MS, self.sent);
                    self.wire.insert(later, (to, bytes));
                }
                _ => self.deliver(to, bytes),
            }
        } else if let Some((_, host)) = timer {
            self.input(host, Input::Timeout);
        }
        true
    }

    pub(super) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until the condition holds, and says after what time it did.
    #[track_caller]
    pub(super) fn wait(
        &mut self,
        what: &str,
        most: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !holds(self) {
            assert!(
                self.now - start < most,
                "{most:?} in vain for {what}:\n{}",
                self.show()
            );
            let until = self.now + 10 * MS;
            while self.step(until) {}
        }
        self.now - start
    }

    pub(super) fn state(&self, of: usize, at: usize) -> Option<State> {
        let nodes = self.hosts[&at].core.nodes();
        nodes
            .iter()
            .find(|node| node.id == id(of))
            .map(|node| node.state)
    }

    /// All hosts of a group see each other alive, in their present lives.
    pub(super) fn together(&self, group: &[usize]) -> bool {
        group.iter().all(|at| {
            let nodes = self.hosts[at].core.nodes();
            group.iter().all(|of| {
                let own = self.hosts[of].core.own();
                nodes.iter().any(|node| {
                    node.id == id(*of)
                        && node.state == State::Alive
                        && node.incarnation == own.incarnation
                })
            })
        })
    }

    pub(super) fn all_see(&self, group: &[usize], of: usize, state: State) -> bool {
        group.iter().all(|at| self.state(of, *at) == Some(state))
    }

    pub(super) fn show(&self) -> String {
        let hosts = self.hosts.iter();
        hosts
            .map(|(id, host)| {
                let nodes: Vec<String> = host
                    .core
                    .nodes()
                    .iter()
                    .map(|n| format!("{} {} {}", n.name, n.incarnation, n.state))
                    .collect();
                format!("{id}: {}\n", nodes.join(", "))
            })
            .collect()
    }
}
