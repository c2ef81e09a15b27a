//! What a run begins with: how the stores are set up, and how kind the world is.

use std::collections::{BTreeMap, BTreeSet};

use balancer_agent::session::{Config, GroupConfig, Manager, Replication, Store};

use super::client::Client;
use super::membership::{Believer, node_id};
use super::node::{Clock, Disk, Node};
use super::report::{Options, Report};
use super::rng::Rng;
use super::world::{Event, MILLI, World};

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
    pub(super) fn new(options: &Options) -> Self {
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
        // Only of what is on disks anything is left then. A source of its own: the other
        // faults of a seed stay what they are.
        let mut fate = Rng::new(!options.seed);
        if options.persistent && fate.chance(40) {
            let at = match fate.chance(40) {
                true => fate.range(50, 1_000), // Before all know each other.
                false => fate.range(1_000, 15_000),
            };
            let again = fate.range(1, 3) as u32;
            world.push(at * MILLI, Event::Collapse { again });
        }
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
}
