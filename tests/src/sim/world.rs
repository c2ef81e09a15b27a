//! The queue of events, and the network and the disks that it drives.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use balancer_agent::session::{Config, Input, Output, Version};

use super::client::Client;
use super::membership::{Believer, index_of, node_id};
use super::node::Node;
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
    /// The whole cluster goes down, and does so as often again.
    Collapse {
        again: u32,
    },
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
    pub(super) lull: u64,
    pub(super) incarnations: u64,
    /// When the second last had word of the first, while that served.
    pub(super) met: BTreeMap<(usize, usize), u64>,
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

impl World {
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
            Event::Collapse { again } => self.collapse(again)?,
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
            let name =
                |version: Option<Version>| version.map_or("nothing".into(), super::look::brief);
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
}
