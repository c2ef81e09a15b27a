//! Time, network, disks, clocks and faults around the simulated nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use balancer_agent::session::{
    Config, Counters, GroupConfig, Input, Manager, Output, Replication, Sabotage, Store, Time,
    Version,
};

use super::client::{Client, GROUP};
use super::membership::{Believer, agreed, index_of, members, node_id, refresh, truth};
use super::oracle::Broken;
use super::rng::Rng;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything that chance decides.
    pub seed: u64,
    /// Events under faults and load; the quiet end comes on top.
    pub steps: u64,
    /// Who holds the sessions.
    pub manager: Manager,
    /// Whether they are on disk too.
    pub persistent: bool,
    /// When writers are answered; `None`: by the seed, mostly `sync`.
    pub replication: Option<Replication>,
    /// A planted fault.
    pub sabotage: Sabotage,
    /// Print what happens to the membership and to requests.
    pub verbose: bool,
}

/// What a run did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Events, those of the quiet end too.
    pub steps: u64,
    /// Simulated time in milliseconds.
    pub millis: u64,
    /// Stands for the whole course: two runs of one seed have the same.
    pub trace: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Reads that were checked against an acknowledged write.
    pub checked_reads: u64,
    /// Nodes that lost what they held.
    pub lost_nodes: u64,
    /// Some of the nodes' own counts, added up over all lives.
    pub counts: Counts,
}

/// Sums of [`Counters`], to see that a sweep reaches what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// [`Counters::degraded`]
    pub degraded: u64,
    /// [`Counters::wipes`]
    pub wipes: u64,
    /// [`Counters::mended`]
    pub mended: u64,
    /// [`Counters::handed_over`]
    pub handed_over: u64,
    /// [`Counters::gathers`]
    pub gathers: u64,
    /// [`Counters::tombstones_agreed`]
    pub agreed: u64,
    /// [`Counters::expired`]
    pub expired: u64,
    /// [`Counters::evicted`]
    pub evicted: u64,
    /// [`Counters::outbox_full`]
    pub outbox_full: u64,
    /// [`Counters::frames_fenced`]
    pub fenced: u64,
}

impl Counts {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.degraded += other.degraded;
        self.wipes += other.wipes;
        self.mended += other.mended;
        self.handed_over += other.handed_over;
        self.gathers += other.gathers;
        self.agreed += other.agreed;
        self.expired += other.expired;
        self.evicted += other.evicted;
        self.outbox_full += other.outbox_full;
        self.fenced += other.fenced;
    }

    fn take(&mut self, counters: &Counters) {
        self.add(&Self {
            degraded: counters.degraded,
            wipes: counters.wipes,
            mended: counters.mended,
            handed_over: counters.handed_over,
            gathers: counters.gathers,
            agreed: counters.tombstones_agreed,
            expired: counters.expired,
            evicted: counters.evicted,
            outbox_full: counters.outbox_full,
            fenced: counters.frames_fenced,
        });
    }
}

#[derive(Debug)]
enum Event {
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
struct Clock {
    base: u64,
    started: u64,
    /// Microseconds of this clock per second of true time.
    rate: u64,
}

impl Clock {
    fn read(&self, now: u64) -> Time {
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
struct Disk {
    safe: Vec<Vec<u8>>,
    on_the_way: VecDeque<(u64, Vec<u8>)>,
    slow: bool,
}

pub(super) struct Node {
    pub store: Store,
    pub run: u64,
    pub ready: bool,
    pub paused_until: u64,
    clock: Clock,
    wake: Option<u64>,
    disk: Disk,
    slow_sender: bool,
    wipes: u64,
}

/// The whole of a run.
pub(super) struct World {
    pub rng: Rng,
    /// True time in microseconds.
    pub now: u64,
    pub nodes: Vec<Node>,
    pub beliefs: Vec<Believer>,
    pub client: Client,
    config: Config,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    /// Which way between two nodes is cut.
    cut: BTreeSet<(usize, usize)>,
    /// Whether a cut in one direction is enough to be declared down.
    strict: bool,
    loss: u64,
    doubling: u64,
    stray_delay: u64,
    incarnations: u64,
    /// Counts the times at which the calm was broken.
    pub storms: u64,
    pub calm: bool,
    quiet: bool,
    pub report: Report,
    persistent: bool,
    verbose: bool,
    /// Copies that a group has when all is well.
    pub copies: usize,
}

const MILLI: u64 = 1_000;

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
    let mut config = Config::new(node_id(0), [rng.next(), rng.next()], vec![group]);
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
            incarnations: 0,
            storms: 0,
            calm: false,
            quiet: false,
            report: Report::default(),
            persistent: options.persistent,
            verbose: options.verbose,
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

    fn fresh_store(&self, index: usize) -> Store {
        let mut config = self.config.clone();
        config.node = node_id(index);
        Store::new(config).expect("the simulator's configuration is sound")
    }

    fn new_clock(&mut self, index: usize) {
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

    fn push(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), event);
    }

    fn play(&mut self, steps: u64) -> Result<(), Broken> {
        while self.report.steps < steps {
            self.step()?;
        }
        self.settle()
    }

    fn step(&mut self) -> Result<(), Broken> {
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
                    self.handle(to, input)?;
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
                    let after = self.rng.range(100, 1800) * MILLI;
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
        let result = self.nodes[index].store.handle(input, time);
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
    fn lost(&mut self, index: usize) -> Result<(), Broken> {
        self.report.lost_nodes += 1;
        self.client.node_lost(index);
        for number in 0..self.client.sessions.len() {
            let best = self.best(&self.client.sessions[number].id, false);
            self.client.sessions[number].node_lost(index, best)?;
        }
        Ok(())
    }

    /// A node kept its disk, and lost what was not on it yet.
    fn torn(&mut self, index: usize) -> Result<(), Broken> {
        for number in 0..self.client.sessions.len() {
            let best = self.best(&self.client.sessions[number].id, false);
            self.client.sessions[number].node_torn(index, best)?;
        }
        Ok(())
    }

    /// Membership or network have changed.
    fn weather(&mut self) {
        let calm = self.cut.is_empty() && agreed(&self.beliefs);
        if !calm && self.calm {
            self.storm();
        }
        self.calm = calm;
    }

    fn storm(&mut self) {
        self.storms += 1;
        for session in &mut self.client.sessions {
            session.gone = None;
        }
    }

    fn tell(&mut self, index: usize) -> Result<(), Broken> {
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
    fn gossip(&mut self, least: u64, most: u64) {
        for node in 0..self.beliefs.len() {
            let after = self.rng.range(least, most) * MILLI;
            self.push(after, Event::View { node });
        }
    }

    fn new_incarnation(&mut self, index: usize) {
        self.incarnations += 1;
        // Far apart, and not in the order of time: nothing may depend on it.
        let mut scatter = Rng::new(self.incarnations);
        self.beliefs[index].incarnation = scatter.next();
        self.beliefs[index].suspected = false;
    }

    fn restart(&mut self, index: usize) -> Result<(), Broken> {
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

    /// A node that was declared down comes back in a new life, with what it has.
    fn reborn(&mut self, index: usize) -> Result<(), Broken> {
        if !self.beliefs[index].up || !self.beliefs[index].suspected {
            return Ok(());
        }
        if self.cut.iter().any(|&(a, b)| a == index || b == index) {
            let after = self.rng.range(100, 400) * MILLI;
            self.push(after, Event::Reborn { node: index });
            return Ok(());
        }
        self.new_incarnation(index);
        self.tell(index)?;
        self.gossip(1, 500);
        Ok(())
    }

    fn up(&self) -> Vec<usize> {
        truth(&self.beliefs)
            .iter()
            .map(|&(index, _)| index)
            .collect()
    }

    fn fault(&mut self) -> Result<(), Broken> {
        let up = self.up();
        let down: Vec<usize> = (0..self.nodes.len())
            .filter(|i| !self.beliefs[*i].up)
            .collect();
        let Some(victim) = self.rng.pick(&up) else {
            let node = self.rng.below(self.nodes.len() as u64) as usize;
            return self.restart(node);
        };
        match self.rng.below(100) {
            0..35 => {
                if up.len() > 1 || self.rng.chance(15) {
                    self.crash(victim)?;
                }
                if self.rng.chance(10) {
                    // A second one at once.
                    let up = self.up();
                    if let (true, Some(other)) = (up.len() > 1, self.rng.pick(&up)) {
                        self.crash(other)?;
                    }
                }
            }
            35..55 => self.partition(victim),
            55..65 => {
                self.beliefs[victim].suspected = true;
                let life = self.beliefs[victim].incarnation;
                for node in (0..self.beliefs.len()).filter(|&node| node != victim) {
                    self.beliefs[node].down.insert(life);
                }
                self.gossip(1, 400);
                let after = self.rng.range(50, 800) * MILLI;
                self.push(after, Event::Reborn { node: victim });
            }
            65..75 => {
                let length = self.rng.range(20, 600) * MILLI;
                self.nodes[victim].paused_until = self.now + length;
            }
            75..82 => {
                self.nodes[victim].clock.base += self.rng.range(50, 1200);
                self.storm();
            }
            82..90 => {
                let node = &mut self.nodes[victim];
                match self.rng.chance(50) {
                    true => node.slow_sender = !node.slow_sender,
                    false => node.disk.slow = !node.disk.slow,
                }
            }
            90..94 => {
                if let Some(other) = self.rng.pick(&up) {
                    let peer = node_id(other);
                    self.handle(victim, Input::Reset { peer })?;
                }
            }
            _ => {
                if let Some(node) = self.rng.pick(&down) {
                    self.restart(node)?;
                }
            }
        }
        Ok(())
    }

    fn crash(&mut self, index: usize) -> Result<(), Broken> {
        let counters = self.nodes[index].store.counters();
        self.report.counts.take(&counters);
        self.beliefs[index].up = false;
        self.say(|| format!("node {index} crashes"));
        self.client.crashed(index, self.nodes[index].run);
        let torn = self.rng.chance(60);
        let disk_lost = self.rng.chance(20);
        let node = &mut self.nodes[index];
        let on_the_way = std::mem::take(&mut node.disk.on_the_way);
        if self.persistent {
            let survive = match torn {
                true => self.rng.below(on_the_way.len() as u64 + 1) as usize,
                false => on_the_way.len(),
            };
            let node = &mut self.nodes[index];
            let kept = on_the_way.into_iter().take(survive);
            node.disk.safe.extend(kept.map(|(_, batch)| batch));
            if disk_lost {
                node.disk.safe.clear();
            }
        }
        self.new_clock(index);
        let mut store = self.fresh_store(index);
        let node = &mut self.nodes[index];
        let time = node.clock.read(self.now);
        for batch in &node.disk.safe {
            if let Err(error) = store.load(batch, time) {
                return Err(Broken(format!("the disk cannot be read: {error}")));
            }
        }
        node.store = store;
        node.run += 1;
        node.ready = false;
        node.wake = None;
        node.wipes = 0;
        self.storm();
        self.weather();
        match self.persistent && !disk_lost {
            true => self.torn(index)?,
            false => self.lost(index)?,
        }
        super::client::hide(self);
        self.gossip(200, 1200);
        let away = match self.rng.below(10) {
            0 => self.rng.range(5_500, 9_000),
            1..4 => self.rng.range(10, 150), // Back before anyone noticed.
            _ => self.rng.range(150, 3_000),
        };
        if self.rng.chance(90) {
            self.push(away * MILLI, Event::Restart { node: index });
        }
        Ok(())
    }

    fn partition(&mut self, victim: usize) {
        let count = self.nodes.len();
        let one_way = self.rng.chance(40);
        let side: Vec<bool> = match self.rng.chance(50) {
            true => (0..count).map(|node| node == victim).collect(),
            false => (0..count).map(|_| self.rng.chance(50)).collect(),
        };
        for a in 0..count {
            for b in 0..count {
                if side[a] && !side[b] {
                    self.cut.insert((a, b));
                    if !one_way {
                        self.cut.insert((b, a));
                    }
                }
            }
        }
        self.say(|| format!("cut: {:?}", self.cut));
        self.weather();
        self.gossip(300, 1500);
        let length = match self.rng.below(10) {
            0 => self.rng.range(5_500, 8_000),
            1..5 => self.rng.range(20, 400),
            _ => self.rng.range(400, 3_000),
        };
        self.push(length * MILLI, Event::Heal);
    }

    fn heal(&mut self) {
        self.cut.clear();
        for node in 0..self.nodes.len() {
            let after = self.rng.range(20, 500) * MILLI;
            self.push(after, Event::Reborn { node });
        }
        self.weather();
        self.gossip(100, 700);
    }

    /// Faults and load end; in bounded time all must be equal.
    fn settle(&mut self) -> Result<(), Broken> {
        self.quiet = true;
        self.loss = 0;
        self.stray_delay = 0;
        for node in &mut self.nodes {
            node.slow_sender = false;
            node.disk.slow = false;
        }
        self.heal();
        for node in 0..self.nodes.len() {
            if !self.beliefs[node].up && (self.rng.chance(70) || self.persistent) {
                let after = self.rng.range(1, 300) * MILLI;
                self.push(after, Event::Restart { node });
            }
        }
        let bound = self.now + 40_000 * MILLI;
        let mut next = self.now + 1_500 * MILLI;
        let mut trouble = String::from("nobody has looked yet");
        while self.now < bound {
            self.step()?;
            if self.now >= next {
                next = self.now + 300 * MILLI;
                match self.trouble() {
                    None => {
                        trouble.clear();
                        break;
                    }
                    Some(found) => trouble = found,
                }
            }
        }
        if !trouble.is_empty() {
            return Err(Broken(format!(
                "not settled after 40 s of quiet: {trouble}"
            )));
        }
        super::client::final_check(self)?;
        let end = self.now + self.client.brief_end() * MILLI;
        while self.now < end {
            self.step()?;
        }
        super::client::brief_check(self)?;
        for index in 0..self.nodes.len() {
            let counters = self.nodes[index].store.counters();
            self.report.counts.take(&counters);
        }
        Ok(())
    }

    /// What is not yet as it should be.
    fn trouble(&self) -> Option<String> {
        if !self.calm {
            return Some("the membership is not agreed".into());
        }
        for index in self.up() {
            let node = &self.nodes[index];
            let counters = node.store.counters();
            if !node.ready || counters.unsettled + counters.strays + counters.pending > 0 {
                return Some(format!(
                    "node {index}: {:?}, strays {}, pending {}",
                    node.store.standing(),
                    counters.strays,
                    counters.pending
                ));
            }
        }
        super::client::differing(self)
    }

    pub(super) fn up_nodes(&self) -> Vec<usize> {
        self.up()
    }

    pub(super) fn local_time(&self, index: usize) -> Time {
        self.nodes[index].clock.read(self.now)
    }
}
