//! Random histories: configurations, verdicts, hops, flows and crashes, with the
//! invariants checked after every single step.

use super::*;
use crate::dataplane::flows;
use crate::model::Activation;
use crate::reconcile::REST;
use common::Be16;
use common::flow::{Flow4, Meta, flags, key4};
use proptest::prelude::*;

const SERVERS: [&str; 5] = [
    "10.0.0.1:80",
    "10.0.0.2:80",
    "10.0.0.3:80",
    "10.0.0.3:81",
    "[2001:db8::4]:80",
];
const FRONTENDS: [(&str, Protocol); 4] = [
    ("192.0.2.1:80", Protocol::Tcp),
    ("192.0.2.1:80", Protocol::Udp),
    ("192.0.2.2:80", Protocol::Tcp),
    ("[2001:db8::1]:80", Protocol::Tcp),
];
const SNAT: [&str; 3] = ["192.0.2.10", "192.0.2.11", "2001:db8::10"];

#[derive(Clone, Debug)]
enum Change {
    Frontend {
        which: usize,
        pool: Option<usize>,
        name: u8,
    },
    Backend {
        pool: usize,
        which: usize,
        server: Option<usize>,
        weight: u16,
    },
    Health {
        pool: usize,
        which: usize,
        up: bool,
    },
    Activation {
        pool: usize,
        which: usize,
        activation: Activation,
    },
    Hop {
        server: usize,
        last: Option<u8>,
    },
    Policy {
        pool: usize,
        unavailable: Unavailable,
        snat: Vec<usize>,
    },
    Device {
        which: u32,
        mac: Option<u8>,
    },
    Wait {
        ms: u64,
    },
    Flow {
        turn: usize,
    },
    EndFlows,
}

fn change() -> impl Strategy<Value = Change> {
    let activation = prop_oneof![
        Just(Activation::Active),
        Just(Activation::Drain),
        Just(Activation::Stopped)
    ];
    let policy = prop_oneof![
        Just(Unavailable::Reset),
        Just(Unavailable::Drop),
        Just(Unavailable::Pass)
    ];
    prop_oneof![
        3 => (0..4usize, prop::option::of(0..2usize), 0..2u8)
            .prop_map(|(which, pool, name)| Change::Frontend { which, pool, name }),
        4 => (0..2usize, 0..4usize, prop::option::weighted(0.7, 0..5usize), 0..6u16)
            .prop_map(|(pool, which, server, weight)| Change::Backend { pool, which, server, weight }),
        4 => (0..2usize, 0..4usize, any::<bool>())
            .prop_map(|(pool, which, up)| Change::Health { pool, which, up }),
        2 => (0..2usize, 0..4usize, activation)
            .prop_map(|(pool, which, activation)| Change::Activation { pool, which, activation }),
        2 => (0..5usize, prop::option::of(0..4u8))
            .prop_map(|(server, last)| Change::Hop { server, last }),
        1 => (0..2usize, policy, prop::sample::subsequence(vec![0, 1, 2], 0..=3))
            .prop_map(|(pool, unavailable, snat)| Change::Policy { pool, unavailable, snat }),
        1 => (1..4u32, prop::option::of(0..3u8)).prop_map(|(which, mac)| Change::Device { which, mac }),
        3 => (0..2500u64).prop_map(|ms| Change::Wait { ms }),
        2 => (0..16usize).prop_map(|turn| Change::Flow { turn }),
        1 => Just(Change::EndFlows),
    ]
}

/// One change, then a round; with a number, the agent dies after so many steps.
fn history() -> impl Strategy<Value = Vec<(Change, Option<usize>)>> {
    prop::collection::vec((change(), prop::option::weighted(0.15, 0..12usize)), 1..30)
}

/// The whole world outside of the reconciler.
struct World {
    config: Config,
    seen: Seen,
    tables: Tables,
    now: Duration,
    clients: u32,
    universe: BTreeSet<(SocketAddr, u8)>,
}

impl World {
    fn new() -> Self {
        let config = config(vec![], vec![pool("p0", vec![]), pool("p1", vec![])]);
        let mut seen = Seen::default();
        for (pool, which) in (0..2).flat_map(|pool| (0..4).map(move |which| (pool, which))) {
            let name = name(&format!("p{pool}"), &format!("b{which}"));
            seen.health.insert(name, Health::Up);
        }
        let mut universe = BTreeSet::new();
        for proto in [6, 17] {
            universe.extend(SERVERS.map(|s| (s.parse().unwrap(), proto)));
        }
        for (address, protocol) in FRONTENDS {
            let address: SocketAddr = address.parse().unwrap();
            universe.insert((address, protocol.number()));
            universe.insert((SocketAddr::new(address.ip(), 0), 1));
        }
        Self {
            config,
            seen,
            tables: tables(),
            now: secs(0),
            clients: 0,
            universe,
        }
    }

    /// Two frontends on a pool each, and some servers: so that a change mostly means
    /// something.
    fn populated() -> Self {
        let mut world = Self::new();
        for which in 0..2 {
            let pool = Some(which);
            world.change(&Change::Frontend {
                which: 2 * which,
                pool,
                name: 0,
            });
            for server in 0..3 {
                world.change(&Change::Backend {
                    pool: which,
                    which: server,
                    server: Some(server),
                    weight: 1,
                });
            }
        }
        world
    }

    fn change(&mut self, change: &Change) {
        let who = |pool: &usize, which: &usize| name(&format!("p{pool}"), &format!("b{which}"));
        match change {
            Change::Frontend { which, pool, name } => {
                let (address, protocol) = FRONTENDS[*which];
                let socket: SocketAddr = address.parse().unwrap();
                let frontends = &mut self.config.frontends;
                frontends.retain(|f| (f.address, f.protocol) != (socket, protocol));
                if let Some(pool) = pool {
                    let (name, pool) = (format!("f{which}{name}"), format!("p{pool}"));
                    frontends.push(frontend(&name, address, protocol, &pool));
                }
            }
            Change::Backend {
                pool,
                which,
                server,
                weight,
            } => {
                let backends = &mut Arc::make_mut(&mut self.config.pools[*pool]).backends;
                let name = format!("b{which}");
                backends.retain(|b| *b.name != *name);
                if let Some(server) = server {
                    backends.push(backend(&name, SERVERS[*server], *weight));
                }
            }
            Change::Health { pool, which, up } => {
                let health = if *up { Health::Up } else { Health::Down };
                self.seen.health.insert(who(pool, which), health);
            }
            Change::Activation {
                pool,
                which,
                activation,
            } => {
                self.seen.activation.insert(who(pool, which), *activation);
            }
            Change::Hop { server, last } => {
                let ip = SERVERS[*server].parse::<SocketAddr>().unwrap().ip();
                match last {
                    Some(last) => self.seen.hops.insert(ip, hop(*last)),
                    None => self.seen.hops.remove(&ip),
                };
            }
            Change::Policy {
                pool,
                unavailable,
                snat,
            } => {
                let pool = Arc::make_mut(&mut self.config.pools[*pool]);
                pool.unavailable = *unavailable;
                pool.snat = snat.iter().map(|&i| SNAT[i].parse().unwrap()).collect();
            }
            Change::Device { which, mac } => {
                self.seen.devices.retain(|d| d.ifindex != *which);
                if let Some(last) = mac {
                    self.seen.devices.push(crate::reconcile::DeviceWanted {
                        ifindex: *which,
                        mac: [2, 0, 0, 0, 0, *last],
                        no_tx: false,
                    });
                }
            }
            Change::Wait { ms } => self.now += Duration::from_millis(*ms),
            Change::Flow { turn } => self.add_flow(*turn),
            Change::EndFlows => {
                for bucket in 0..self.tables.flows4.buckets.len() {
                    let empty = common::flow::Bucket([Flow4::default(); 8]);
                    self.tables.flows4.buckets.write(bucket, empty);
                }
            }
        }
    }

    /// What the kernel does with a new connection to some open frontend.
    fn add_flow(&mut self, turn: usize) {
        let open: Vec<_> = present_frontends(&self.tables)
            .into_iter()
            .filter(|(_, f)| f.flags & frontend_flags::CLOSING == 0 && f.ring != 0)
            .collect();
        let Some((slot, frontend)) = open.get(turn % open.len().max(1)) else {
            return;
        };
        let ring = turns(&self.tables, frontend.ring);
        let backend = ring[turn % ring.len()] as u16;
        let word = state_of(&self.tables, backend);
        let mut bucket = self.tables.flows4.buckets.read(0);
        let free = bucket.0.iter().position(|e| e.meta == Meta::FREE);
        let (Some(free), true) = (free, word & state::USABLE != 0) else {
            return;
        };
        self.clients += 1;
        let generation = (word >> state::GENERATION_SHIFT) as u8;
        bucket.0[free] = Flow4 {
            key: key4(self.clients, Be16::new(1), *slot),
            meta: Meta::new(backend, generation, flags::VALID, 0),
            ..Flow4::default()
        };
        self.tables.flows4.buckets.write(0, bucket);
    }

    fn desired(&self) -> Desired {
        Desired::new(&self.config, &self.seen)
    }
}

/// Slots and regions that were let go, and when: none may be used again in a second.
#[derive(Default)]
struct Rests {
    backends: BTreeMap<u16, (u32, Duration)>,
    regions: Vec<(Range<u32>, Duration)>,
}

impl Rests {
    /// Before a round: what is in use now.
    fn mark(&mut self, tables: &Tables, now: Duration) {
        for (slot, b) in present_backends(tables) {
            self.backends
                .insert(slot, (b.state >> state::GENERATION_SHIFT, now));
        }
        for (_, f) in present_frontends(tables) {
            self.regions.push((region(RingRef::from_word(f.ring)), now));
        }
    }

    fn check(&self, steps: &[Step], now: Duration) {
        for step in steps {
            match step {
                Step::Backend { slot, entry } => {
                    let Some((generation, used)) = self.backends.get(slot) else {
                        continue;
                    };
                    assert!(
                        *used + REST <= now,
                        "{step} was in use at {used:?}, now {now:?}"
                    );
                    assert_ne!(entry.state >> state::GENERATION_SHIFT, *generation);
                }
                Step::Ring { region: ring, .. } => {
                    let new = region(*ring);
                    for (old, used) in &self.regions {
                        let apart = new.end <= old.start || old.end <= new.start;
                        assert!(
                            apart || *used + REST <= now,
                            "{step} was in use at {used:?}"
                        );
                    }
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_sound_at_every_step(history in history()) {
        let mut world = World::populated();
        let mut r = Reconciler::new();
        let mut rests = Rests::default();
        let mut wanted_before: BTreeSet<(SocketAddr, u8, u64)> = BTreeSet::new();
        for (change, crash) in history {
            world.change(&change);
            let desired = world.desired();
            let before = slots_by_key(&world.tables);
            rests.mark(&world.tables, world.now);
            let plan = r.plan(desired.clone(), &world.tables, &counted(&world.tables), world.now);
            prop_assert_eq!(&plan.problems, &[]);
            rests.check(&plan.steps, world.now);
            let limit = crash.unwrap_or(usize::MAX);
            apply_checked(&world.tables, &plan.steps, limit, &world.universe);
            let after = slots_by_key(&world.tables);
            let wanted: BTreeSet<_> = desired
                .backends
                .iter()
                .map(|b| (b.address, b.protocol.number(), b.id))
                .collect();
            for key in wanted.intersection(&wanted_before) {
                if let Some(slot) = before.get(key) {
                    prop_assert_eq!(after.get(key), Some(slot));
                }
            }
            if crash.is_some() {
                r = Reconciler::new();
                wanted_before.clear();
                continue;
            }
            wanted_before = wanted;
            check_desired(&world.tables, &desired, false);
            let again = r.plan(desired, &world.tables, &counted(&world.tables), world.now);
            prop_assert!(again.steps.is_empty(), "not empty: {again}");
            flows::for_each(&world.tables, 0, |flow| {
                let generation = state_of(&world.tables, flow.backend) >> state::GENERATION_SHIFT;
                let there = present_frontends(&world.tables).iter().any(|f| f.0 == flow.frontend);
                assert!(there && generation == u32::from(flow.generation), "stale: {flow:?}");
            });
        }
        let desired = world.desired();
        settle(&mut r, &desired, &world.tables, &mut world.now);
        check(&world.tables, &world.universe);
        check_desired(&world.tables, &desired, true);
    }
}

/// A change that touches everything, interrupted after each of its steps in turn.
#[test]
fn a_crash_after_any_step_leads_to_the_same_end() {
    let changes = |changes: &[Change], world: &mut World| {
        for change in changes {
            world.change(change);
        }
    };
    let first = [
        Change::Frontend {
            which: 0,
            pool: Some(0),
            name: 0,
        },
        Change::Frontend {
            which: 2,
            pool: Some(0),
            name: 0,
        },
        Change::Frontend {
            which: 3,
            pool: Some(1),
            name: 0,
        },
        Change::Backend {
            pool: 0,
            which: 0,
            server: Some(0),
            weight: 1,
        },
        Change::Backend {
            pool: 0,
            which: 1,
            server: Some(1),
            weight: 5,
        },
        Change::Backend {
            pool: 0,
            which: 2,
            server: Some(2),
            weight: 1,
        },
        Change::Backend {
            pool: 1,
            which: 0,
            server: Some(4),
            weight: 1,
        },
        Change::Health {
            pool: 0,
            which: 0,
            up: true,
        },
        Change::Health {
            pool: 0,
            which: 1,
            up: true,
        },
        Change::Hop {
            server: 0,
            last: Some(1),
        },
        Change::Hop {
            server: 1,
            last: Some(1),
        },
        Change::Policy {
            pool: 0,
            unavailable: Unavailable::Drop,
            snat: vec![0],
        },
    ];
    let second = [
        Change::Frontend {
            which: 0,
            pool: Some(1),
            name: 1,
        },
        Change::Frontend {
            which: 2,
            pool: None,
            name: 0,
        },
        Change::Frontend {
            which: 1,
            pool: Some(0),
            name: 0,
        },
        Change::Backend {
            pool: 0,
            which: 0,
            server: None,
            weight: 1,
        },
        Change::Backend {
            pool: 0,
            which: 1,
            server: Some(1),
            weight: 2,
        },
        Change::Backend {
            pool: 0,
            which: 3,
            server: Some(3),
            weight: 1,
        },
        Change::Health {
            pool: 0,
            which: 1,
            up: false,
        },
        Change::Health {
            pool: 0,
            which: 2,
            up: true,
        },
        Change::Health {
            pool: 1,
            which: 0,
            up: true,
        },
        Change::Hop {
            server: 1,
            last: Some(2),
        },
        Change::Policy {
            pool: 0,
            unavailable: Unavailable::Pass,
            snat: vec![],
        },
        Change::Policy {
            pool: 1,
            unavailable: Unavailable::Drop,
            snat: vec![1, 2],
        },
        Change::Device {
            which: 2,
            mac: Some(1),
        },
    ];
    // The second change in two rounds: made, and let go of what it left.
    for wait in [0, 1500] {
        let mut steps = 1;
        let mut crash = 0;
        while crash < steps {
            let mut world = World::new();
            changes(&first, &mut world);
            let mut r = Reconciler::new();
            let mut now = world.now;
            settle(&mut r, &world.desired(), &world.tables, &mut now);
            world.now = now;
            changes(&second, &mut world);
            let desired = world.desired();
            if wait > 0 {
                round(&mut r, &desired, &world.tables, world.now);
                world.now += Duration::from_millis(wait);
            }
            let plan = r.plan(desired.clone(), &world.tables, &no_flows, world.now);
            steps = plan.steps.len();
            apply_checked(&world.tables, &plan.steps, crash, &world.universe);
            // Repeating the last step changes nothing.
            if let Some(last) = plan.steps.get(crash.wrapping_sub(1)) {
                apply(last, &world.tables);
            }
            drop(r);
            let mut r = Reconciler::new();
            let plan = r.plan(desired.clone(), &world.tables, &no_flows, world.now);
            apply_checked(&world.tables, &plan.steps, usize::MAX, &world.universe);
            let mut now = world.now;
            settle(&mut r, &desired, &world.tables, &mut now);
            check(&world.tables, &world.universe);
            check_desired(&world.tables, &desired, true);
            crash += 1;
        }
        assert!(steps > 5, "{steps} steps are too few to mean anything");
    }
}
