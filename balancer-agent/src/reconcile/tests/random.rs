//! Random histories: configurations, verdicts, hops, flows and crashes, with the
//! invariants checked after every single step.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use super::*;
use crate::dataplane::flows;
use crate::model::Activation;
use crate::reconcile::REST;
use common::Be16;
use common::flow::{Flow4, Meta, flags, key4};
use common::tables::SnatAddress;
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
pub enum Change {
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
pub struct World {
    pub config: Config,
    pub seen: Seen,
    pub tables: Tables,
    pub now: Duration,
    clients: u32,
    pub universe: BTreeSet<(SocketAddr, u8)>,
}

impl World {
    pub fn new() -> Self {
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
    pub fn populated() -> Self {
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

    pub fn change(&mut self, change: &Change) {
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
        if frontend.snat_count > 0 {
            let (snat, cursor) = (u32::from(frontend.snat[0]), offset_of!(SnatAddress, cursor));
            let cursor = self.tables.snat_addresses.atomic_u64(snat, cursor);
            cursor.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn desired(&self) -> Desired {
        Desired::new(&self.config, &self.seen)
    }
}

/// What new packets read, and when they last did: none of it may be written again within
/// a second.
#[derive(Default)]
struct Rests {
    backends: BTreeMap<u16, (u32, Duration)>,
    regions: Vec<(Range<u32>, Duration)>,
    /// By backend slot and place.
    hops: BTreeMap<(u16, u8), Duration>,
    /// Those with flows, by slot.
    snat: BTreeMap<u8, (Addr, Duration)>,
}

impl Rests {
    /// Before a round: what is in use now.
    fn mark(&mut self, tables: &Tables, now: Duration) {
        for (slot, b) in present_backends(tables) {
            self.backends
                .insert(slot, (b.state >> state::GENERATION_SHIFT, now));
            if b.state & state::HOP_VALID != 0 {
                let which = u8::from(b.state & state::HOP_SLOT != 0);
                self.hops.insert((slot, which), now);
            }
        }
        for (_, f) in present_frontends(tables) {
            self.regions.push((region(RingRef::from_word(f.ring)), now));
        }
        for slot in 0..tables.snat_addresses.len() {
            let address = tables.snat_addresses.read(slot);
            if address.addr != Addr::UNSPECIFIED && address.cursor != 0 {
                self.snat.insert(slot as u8, (address.addr, now));
            }
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
                            "{step} was in use at {used:?}, now {now:?}"
                        );
                    }
                }
                Step::Hop { slot, which, .. } => {
                    let used = self.hops.get(&(*slot, *which));
                    assert!(
                        used.is_none_or(|used| *used + REST <= now),
                        "{step} was in use at {used:?}, now {now:?}"
                    );
                }
                Step::Snat { slot, address } if address.addr != Addr::UNSPECIFIED => {
                    let used = self.snat.get(slot);
                    assert!(
                        used.is_none_or(|(old, used)| *old == address.addr || *used + REST <= now),
                        "{step} was in use at {used:?}, now {now:?}"
                    );
                }
                _ => {}
            }
        }
    }
}

/// Plays a history through, with all checks.
pub fn play(history: Vec<(Change, Option<usize>)>) {
    let mut world = World::populated();
    let mut r = Reconciler::new();
    let mut rests = Rests::default();
    let mut wanted_before: BTreeSet<(SocketAddr, u8, u64)> = BTreeSet::new();
    for (change, crash) in history {
        world.change(&change);
        let desired = world.desired();
        let before = slots_by_key(&world.tables);
        rests.mark(&world.tables, world.now);
        let plan = r.plan(
            desired.clone(),
            &world.tables,
            &counted(&world.tables),
            world.now,
        );
        assert_eq!(plan.problems, []);
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
                assert_eq!(after.get(key), Some(slot));
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
        assert!(again.steps.is_empty(), "not empty: {again}");
        flows::for_each(&world.tables, 0, |flow| {
            let generation = state_of(&world.tables, flow.backend) >> state::GENERATION_SHIFT;
            let there = present_frontends(&world.tables)
                .iter()
                .any(|f| f.0 == flow.frontend);
            assert!(
                there && generation == u32::from(flow.generation),
                "stale: {flow:?}"
            );
        });
    }
    let desired = world.desired();
    settle(&mut r, &desired, &world.tables, &mut world.now);
    check(&world.tables, &world.universe);
    check_desired(&world.tables, &desired, true);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_sound_at_every_step(history in history()) {
        play(history);
    }
}
