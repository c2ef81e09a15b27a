//! Time, network, disks and clocks around the simulated nodes. What goes wrong: `faults`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use balancer_agent::session::{
    Config, GroupConfig, Input, Manager, Output, Replication, Store, Time, Version,
};

use super::client::{Client, GROUP};
use super::membership::{Believer, agreed, index_of, members, node_id, refresh};
use super::oracle::Broken;
use super::report::{Options, Report};
use super::rng::Rng;

#[derive(Debug)]
pub(super) enum Event {
    Deliver {
        from: usize,
        to: usize,
        bytes: Rc<Vec<u8>>,
    },
    Sent {
        node: usize,
        run: u64,
        to: usize,
    },
    Wake {
        node: usize,
        run: u64,
    },
    Disk {
        node: usize,
        run: u64,
    },
    View {
        node: usize,
    },
    Restart {
        node: usize,
    },
    Reborn {
        node: usize,
    },
    Client,
    Fault,
    Heal,
}

/// A node's own clock: monotonic, at its own rate, from its own zero.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    pub base: u64,
    pub started: u64,
    /// Microseconds of this clock per second of true time.
    pub rate: u64,
}

impl Clock {
    pub fn read(&self, now: u64) -> Time {
        Time(self.base + (now - self.started) * self.rate / 1_000_000_000)
    }

    /// The true time at which this clock shows `time`.
    fn when(&self, time: Time) -> u64 {
        let ahead = time.0.saturating_sub(self.base);
        self.started + (ahead.min(1 << 30) * 1_000_000_000).div_ceil(self.rate)
    }
}

/// A disk: what is safe on it, and what is on its way.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub safe: Vec<Vec<u8>>,
    pub on_the_way: VecDeque<(u64, Vec<u8>)>,
    pub slow: bool,
}

pub(super) struct Node {
    pub store: Store,
    pub run: u64,
    pub ready: bool,
    pub paused_until: u64,
    pub(super) clock: Clock,
    pub(super) wake: Option<u64>,
    pub(super) disk: Disk,
    pub(super) slow_sender: bool,
    pub(super) wipes: u64,
}

/// The whole of a run.
pub(super) struct World {
    pub rng: Rng,
    /// True time in microseconds.
    pub now: u64,
    pub nodes: Vec<Node>,
    pub beliefs: Vec<Believer>,
    pub client: Client,
    pub(super) config: Config,
    pub(super) queue: BTreeMap<(u64, u64), Event>,
    pub(super) sequence: u64,
    /// Which way between two nodes is cut.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// Whether a cut in one direction is enough to be declared down.
    pub(super) strict: bool,
    pub(super) loss: u64,
    pub(super) doubling: u64,
    pub(super) stray_delay: u64,
    /// Faults are this many times rarer: tombstones go only when it is calm for long.
    lull: u64,
    pub(super) incarnations: u64,
    /// When the second last had word of the first, while that served.
    met: BTreeMap<(usize, usize), u64>,
    /// Counts the times at which the calm was broken.
    pub storms: u64,
    pub calm: bool,
    pub(super) quiet: bool,
    pub report: Report,
    pub(super) persistent: bool,
    pub(super) verbose: bool,
    /// The one session of which everything is printed.
    pub(super) session: Option<usize>,
    /// Copies that a group has when all is well.
    pub copies: usize,
}

pub(super) const MILLI: u64 = 1_000;

/// Runs one simulation to its end.
///
/// # Errors
/// A promise was broken; the text says which, and with which seed.
pub fn run(options: &Options) -> Result<Report, String> {
    let mut world = World::new(options);
    match world.play(options.steps) {
        Ok(()) => Ok(world.report),
        Err(Broken(message)) => Err(format!(
            "seed {} ({:?}, persistent {}, {} steps), at {} ms: {message}",
            options.seed,
            options.manager,
            options.persistent,
            options.steps,
            world.now / MILLI,
        )),
    }
}

fn configure(options: &Options, rng: &mut Rng) -> Config {
    let replication = options.replication.unwrap_or(match rng.chance(75) {
        true => Replication::Sync,
        false => Replication::Async,
    });
    let group = GroupConfig {
        name: "users".into(),
        manager: options.manager,
        replication,
        persistent: options.persistent,
    };
    let mut config = Config::new(node_id(0), [rng.word(), rng.word()], vec![group]);
    config.sabotage = options.sabotage;
    config.timing.retry = rng.range(30, 100);
    config.timing.operation = rng.range(600, 1500);
    config.timing.sync = rng.range(200, 800);
    config.timing.status = rng.range(150, 300);
    config.timing.anti_entropy = rng.range(500, 1100);
    config.timing.sweep = rng.range(600, 2000);
    config.timing.tombstone_min = 2500;
    config.timing.absence = 5_000;
    config.timing.tombstone_max = 9_000;
    config.timing.alone = 1_000;
    config.limits.buckets = 1 << rng.below(5);
    config.limits.data = 512;
    if rng.chance(30) {
        // Everything is small: parts, windows, queues.
        config.limits.chunk = 1 + rng.below(4) as usize;
        config.limits.pulls = 1 + rng.below(3) as usize;
        config.limits.credit = 1;
        config.limits.frame = 512;
        config.limits.outbox = 4096;
        config.limits.disk_backlog = 2048;
        config.limits.disk_waits = 8;
    }
    if rng.chance(10) {
        config.limits.sessions = 6;
        config.limits.tombstones = 8;
    }
    config
}

impl World {
    fn new(options: &Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let count = rng.range(2, 7) as usize;
        let config = configure(options, &mut rng);
        let copies = match options.manager {
            Manager::Backup { copies } => usize::from(copies) + 1,
            _ => usize::MAX,
        };
        let evicting = config.limits.sessions < 100;
        let client = Client::new(&mut rng, evicting, &config);
        let mut world = Self {
            nodes: Vec::new(),
            beliefs: vec![Believer::default(); count],
            client,
            config,
            queue: BTreeMap::new(),
            sequence: 0,
            now: 0,
            cut: BTreeSet::new(),
            strict: rng.chance(30),
            loss: if rng.chance(50) { rng.below(15) } else { 0 },
            doubling: if rng.chance(50) { rng.below(15) } else { 0 },
            stray_delay: if rng.chance(60) { rng.below(12) } else { 0 },
            lull: if rng.chance(25) { 6 } else { 1 },
            incarnations: 0,
            met: BTreeMap::new(),
            storms: 0,
            calm: false,
            quiet: false,
            report: Report::default(),
            persistent: options.persistent,
            verbose: options.verbose,
            session: options.session,
            copies,
            rng,
        };
        for index in 0..count {
            let store = world.fresh_store(index);
            world.nodes.push(Node {
                store,
                run: 0,
                ready: false,
                paused_until: 0,
                clock: Clock::default(),
                wake: None,
                disk: Disk::default(),
                slow_sender: false,
                wipes: 0,
            });
            world.new_clock(index);
        }
        let absent = world.rng.below(2) as usize;
        for index in 0..count.saturating_sub(absent) {
            let at = world.rng.below(300 * MILLI);
            world.push(at, Event::Restart { node: index });
        }
        let first = world.rng.range(500, 1500) * MILLI;
        world.push(first, Event::Fault);
        world.push(400 * MILLI, Event::Client);
        world
    }

    pub(super) fn fresh_store(&self, index: usize) -> Store {
        let mut config = self.config.clone();
        config.node = node_id(index);
        Store::new(config).expect("the simulator's configuration is sound")
    }

    pub(super) fn new_clock(&mut self, index: usize) {
        let clock = Clock {
            base: if self.rng.chance(50) {
                0
            } else {
                self.rng.below(1 << 40)
            },
            started: self.now,
            rate: self.rng.range(950_000, 1_050_000),
        };
        self.nodes[index].clock = clock;
    }

    pub(super) fn push(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), event);
    }

    fn play(&mut self, steps: u64) -> Result<(), Broken> {
        while self.report.steps < steps {
            self.step()?;
        }
        self.settle()
    }

    pub(super) fn step(&mut self) -> Result<(), Broken> {
        let Some(((time, _), event)) = self.queue.pop_first() else {
            return Err(Broken("nothing will ever happen again".into()));
        };
        self.now = self.now.max(time);
        self.report.steps += 1;
        self.report.millis = self.now / MILLI;
        match event {
            Event::Deliver { from, to, bytes } => {
                if !self.later(to, |bytes| Event::Deliver { from, to, bytes }, &bytes) {
                    let input = Input::Frame {
                        from: node_id(from),
                        bytes: &bytes,
                    };
                    let taken = |world: &Self| world.nodes[to].store.counters().frames_received;
                    let before = taken(self);
                    self.handle(to, input)?;
                    if taken(self) > before && self.nodes[from].ready {
                        self.met.insert((from, to), self.now);
                    }
                }
            }
            Event::Sent { node, run, to } => {
                if self.nodes[node].run == run {
                    self.handle(node, Input::Sent { to: node_id(to) })?;
                }
            }
            Event::Wake { node, run } => {
                if self.nodes[node].run == run && self.nodes[node].wake == Some(time) {
                    self.nodes[node].wake = None;
                    let paused = self.nodes[node].paused_until;
                    if paused > self.now {
                        self.nodes[node].wake = Some(paused);
                        self.push(paused - self.now, Event::Wake { node, run });
                    } else {
                        self.handle(node, Input::Tick)?;
                    }
                }
            }
            Event::Disk { node, run } => {
                if self.nodes[node].run == run
                    && let Some((seq, batch)) = self.nodes[node].disk.on_the_way.pop_front()
                {
                    self.nodes[node].disk.safe.push(batch);
                    self.handle(node, Input::Persisted { seq })?;
                }
            }
            Event::View { node } => {
                if self.beliefs[node].up {
                    self.tell(node)?;
                }
            }
            Event::Restart { node } => self.restart(node)?,
            Event::Reborn { node } => self.reborn(node)?,
            Event::Client => {
                if !self.quiet {
                    super::client::act(self)?;
                    let mean = self.client.pause;
                    let after = self.rng.range(mean / 4, mean * 2);
                    self.push(after, Event::Client);
                }
            }
            Event::Fault => {
                if !self.quiet {
                    self.fault()?;
                    let after = self.rng.range(100, 1800) * self.lull * MILLI;
                    self.push(after, Event::Fault);
                }
            }
            Event::Heal => self.heal(),
        }
        Ok(())
    }

    /// Puts a delivery off while the node is paused; drops it if the node is down.
    fn later(
        &mut self,
        to: usize,
        event: impl FnOnce(Rc<Vec<u8>>) -> Event,
        bytes: &Rc<Vec<u8>>,
    ) -> bool {
        if !self.beliefs[to].up {
            return true;
        }
        let paused = self.nodes[to].paused_until;
        if paused > self.now {
            self.push(paused - self.now, event(Rc::clone(bytes)));
            return true;
        }
        false
    }

    /// Gives a node an input, and does what it then wants done.
    pub fn handle(&mut self, index: usize, input: Input<'_>) -> Result<(), Broken> {
        if !self.beliefs[index].up {
            return Ok(());
        }
        let time = self.nodes[index].clock.read(self.now);
        let before = self.traced(index);
        let cause = self.cause(&input);
        let result = self.nodes[index].store.handle(input, time);
        let after = self.traced(index);
        if before != after {
            let name = |version: Option<Version>| version.map_or("nothing".into(), brief);
            self.say(|| format!("node {index} has {} by {cause}", name(after)));
        }
        // Before any answer goes out: what is acknowledged now began before.
        self.client.look(&self.nodes[index].store);
        if let Err(error) = result {
            return Err(Broken(format!("a message that cannot be read: {error}")));
        }
        while let Some(output) = self.nodes[index].store.poll_output() {
            self.output(index, output)?;
        }
        self.after(index)
    }

    fn output(&mut self, index: usize, output: Output) -> Result<(), Broken> {
        match output {
            Output::Send { to, frame } => {
                self.note(frame.len() as u64 ^ (to.0 << 20));
                let to = index_of(to);
                let bytes = Rc::new(frame);
                self.transmit(index, to, &bytes);
                if self.rng.chance(self.doubling) {
                    self.transmit(index, to, &bytes);
                }
                let after = match self.nodes[index].slow_sender {
                    true => self.rng.range(20, 150) * MILLI,
                    false => self.rng.below(MILLI),
                };
                let run = self.nodes[index].run;
                self.push(
                    after,
                    Event::Sent {
                        node: index,
                        run,
                        to,
                    },
                );
            }
            Output::Reply { token, outcome } => {
                self.note(token.0);
                super::client::answered(self, index, token, &outcome)?;
            }
            Output::Persist { seq, batch } => {
                let node = &mut self.nodes[index];
                node.disk.on_the_way.push_back((seq, batch));
                let run = node.run;
                let after = match node.disk.slow {
                    true => self.rng.range(50, 500) * MILLI,
                    false => self.rng.range(100, 3000),
                };
                // One head: batches end in order.
                self.push(after, Event::Disk { node: index, run });
            }
            Output::Ready(ready) => {
                self.say(|| format!("node {index} ready: {ready}"));
                self.nodes[index].ready = ready;
                if !ready {
                    super::client::hide(self);
                }
                self.note(u64::from(ready));
            }
            Output::External { .. } => {
                return Err(Broken("an external request of an internal group".into()));
            }
        }
        Ok(())
    }

    fn transmit(&mut self, from: usize, to: usize, bytes: &Rc<Vec<u8>>) {
        if self.cut.contains(&(from, to)) || self.rng.chance(self.loss) {
            return;
        }
        let delay = match self.rng.chance(self.stray_delay) {
            true => self.rng.range(10, 700) * MILLI,
            false => self.rng.range(100, 3000),
        };
        let bytes = Rc::clone(bytes);
        self.push(delay, Event::Deliver { from, to, bytes });
    }

    /// What has to be looked at after every input: bounds, wipes, the next wake-up.
    fn after(&mut self, index: usize) -> Result<(), Broken> {
        let counters = self.nodes[index].store.counters();
        let limits = &self.config.limits;
        let room = limits.data + 4096;
        if counters.outbox > (limits.outbox + room) as u64
            || counters.disk_backlog > (limits.disk_backlog + room) as u64
            || counters.pending > limits.pending as u64
            || counters.malformed > 0
        {
            return Err(Broken(format!("a bound is passed: {counters:?}")));
        }
        if counters.wipes > self.nodes[index].wipes {
            self.say(|| format!("node {index} forgets everything"));
            self.may_forget(index)?;
            self.nodes[index].wipes = counters.wipes;
            self.lost(index)?;
        }
        let node = &mut self.nodes[index];
        if let Some(time) = node.store.poll_timeout() {
            if time <= node.clock.read(self.now) {
                return Err(Broken(format!(
                    "node {index} asks to be woken at once, for ever"
                )));
            }
            let at = node.clock.when(time).max(self.now + 1);
            if node.wake.is_none_or(|wake| at < wake || wake < self.now) {
                node.wake = Some(at);
                let run = node.run;
                self.push(at - self.now, Event::Wake { node: index, run });
            }
        }
        Ok(())
    }

    /// A node that was seen by all that are up, within the longest allowed absence, has no
    /// reason to forget.
    fn may_forget(&self, index: usize) -> Result<(), Broken> {
        // Clocks differ by a tenth and jump, and what was sent is not what was heard.
        let lately = self.config.timing.absence * MILLI / 10 * 4;
        let others = self.up().into_iter().filter(|&other| other != index);
        let seen = |other| {
            let met = self.met.get(&(index, other));
            met.is_some_and(|&at| self.now - at < lately)
        };
        match others.clone().count() > 0 && others.clone().all(seen) {
            false => Ok(()),
            true => Err(Broken(format!(
                "node {index} forgets everything, though {:?} have all seen it lately",
                others.collect::<Vec<_>>()
            ))),
        }
    }

    /// What a node has of the session that is traced.
    fn traced(&self, index: usize) -> Option<Version> {
        let id = &self.client.sessions.get(self.session?)?.id;
        self.nodes[index].store.version_of(GROUP, id)
    }

    /// An input in a few words, for a run that traces a session.
    fn cause(&self, input: &Input<'_>) -> String {
        match input {
            _ if self.session.is_none() => String::new(),
            Input::Tick => "itself".into(),
            Input::Members { .. } => "a change of the members".into(),
            Input::Frame { from, .. } => format!("word of node {}", index_of(*from)),
            Input::Request { token, op, .. } | Input::Again { token, op, .. } => {
                format!("request {} ({op:?})", token.0)
            }
            other => format!("{other:?}"),
        }
    }

    /// Prints a line of the course of events, if that is wanted.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>9.3} ms  {}", self.now as f64 / 1e3, line());
        }
    }

    fn note(&mut self, what: u64) {
        let mixed = (self.report.trace ^ what ^ self.now).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.report.trace = mixed ^ (mixed >> 29);
    }

    /// The greatest version of a session on any node, on disks that will come back too;
    /// or only on nodes that serve.
    pub fn best(&self, id: &[u8], serving: bool) -> Option<Version> {
        let nodes = self.nodes.iter().zip(&self.beliefs);
        let nodes = nodes.filter(|(node, belief)| belief.up && node.ready || !serving);
        nodes
            .filter_map(|(node, _)| node.store.version_of(GROUP, id))
            .max()
    }

    /// What each node has of a session, for the report of a broken promise.
    pub fn who_has(&self, id: &[u8]) -> String {
        let mut text = String::new();
        for (index, (node, belief)) in self.nodes.iter().zip(&self.beliefs).enumerate() {
            let version = node.store.version_of(GROUP, id);
            let stamp = version.map(|version| (version.stamp, version.deleted));
            let holders = node.store.holders(GROUP, id);
            text += &format!(
                "node {index} (up {}, ready {}) has {stamp:?} and sees the holders {holders:?}; ",
                belief.up, node.ready
            );
        }
        text
    }

    /// A node has lost what it held.
    pub(super) fn lost(&mut self, index: usize) -> Result<(), Broken> {
        self.report.lost_nodes += 1;
        self.client.node_lost(index);
        for number in 0..self.client.sessions.len() {
            let best = self.best(&self.client.sessions[number].id, false);
            self.client.sessions[number].node_lost(index, best)?;
        }
        Ok(())
    }

    /// A node kept its disk, and lost what was not on it yet.
    pub(super) fn torn(&mut self, index: usize) -> Result<(), Broken> {
        self.client.node_torn(index);
        for number in 0..self.client.sessions.len() {
            let best = self.best(&self.client.sessions[number].id, false);
            self.client.sessions[number].node_torn(index, best)?;
        }
        Ok(())
    }

    /// Membership or network have changed.
    pub(super) fn weather(&mut self) {
        let calm = self.cut.is_empty() && agreed(&self.beliefs);
        if !calm && self.calm {
            self.storm();
        }
        self.calm = calm;
    }

    pub(super) fn storm(&mut self) {
        self.storms += 1;
        for session in &mut self.client.sessions {
            session.gone = None;
        }
    }

    pub(super) fn tell(&mut self, index: usize) -> Result<(), Broken> {
        let (cut, strict) = (&self.cut, self.strict);
        refresh(&mut self.beliefs, index, |other| {
            let out = cut.contains(&(index, other));
            let back = cut.contains(&(other, index));
            !(out && back || strict && (out || back))
        });
        let view = members(&self.beliefs[index].view);
        let incarnation = self.beliefs[index].incarnation;
        self.weather();
        self.say(|| {
            let view = &self.beliefs[index].view;
            format!("node {index} sees {view:x?}, calm: {}", self.calm)
        });
        self.handle(
            index,
            Input::Members {
                incarnation,
                members: &view,
            },
        )
    }

    /// Everyone hears of a change, each at its own time.
    pub(super) fn gossip(&mut self, least: u64, most: u64) {
        for node in 0..self.beliefs.len() {
            let after = self.rng.range(least, most) * MILLI;
            self.push(after, Event::View { node });
        }
    }

    pub(super) fn new_incarnation(&mut self, index: usize) {
        self.incarnations += 1;
        // Far apart, and not in the order of time: nothing may depend on it.
        let mut scatter = Rng::new(self.incarnations);
        self.beliefs[index].incarnation = scatter.word();
        self.beliefs[index].suspected = false;
    }

    pub(super) fn restart(&mut self, index: usize) -> Result<(), Broken> {
        if self.beliefs[index].up {
            return Ok(());
        }
        self.beliefs[index].up = true;
        self.beliefs[index].down.clear();
        self.new_incarnation(index);
        let node = &mut self.nodes[index];
        node.clock.started = self.now;
        node.paused_until = 0;
        self.tell(index)?;
        self.gossip(1, 500);
        Ok(())
    }

    pub(super) fn local_time(&self, index: usize) -> Time {
        self.nodes[index].clock.read(self.now)
    }
}

/// A version in a few words.
fn brief(version: Version) -> String {
    let Version {
        epoch,
        deleted,
        stamp,
        writer,
    } = version;
    let what = if deleted { "end" } else { "write" };
    format!("{what} {epoch}/{stamp} of {writer:x}")
}
