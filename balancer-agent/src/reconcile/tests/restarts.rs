//! Agents that are killed at any step, and those that start after them: these know
//! nothing but the tables, and must let rest what was in use a moment ago.

use std::mem::offset_of;

use super::random::{Change, World, play};
use super::*;
use crate::model::Activation;
use crate::reconcile::REST;
use common::tables::SnatAddress;

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

/// A ring of backend slot 0 alone is all zeros, as a chunk is that no ring ever had.
#[test]
fn a_ring_of_all_zeros_rests_over_a_crash() {
    let no_frontend = || Change::Frontend {
        which: 0,
        pool: None,
        name: 0,
    };
    play(vec![
        (
            Change::Activation {
                pool: 0,
                which: 1,
                activation: Activation::Drain,
            },
            None,
        ),
        (
            Change::Health {
                pool: 0,
                which: 2,
                up: false,
            },
            None,
        ),
        (no_frontend(), None),
        (
            Change::Backend {
                pool: 1,
                which: 2,
                server: None,
                weight: 0,
            },
            Some(0),
        ),
        (no_frontend(), None),
    ]);
}

/// One backend, with a hop, behind one frontend.
fn one_server() -> Config {
    let pool = pool("p", vec![backend("a", "10.0.0.1:80", 1)]);
    config(
        vec![frontend("web", "192.0.2.1:80", Protocol::Tcp, "p")],
        vec![pool],
    )
}

#[test]
fn a_hop_rests_over_a_restart() {
    let config = one_server();
    let mut seen = up(&config);
    let tables = tables();
    let ip = "10.0.0.1".parse().unwrap();
    let mut change = |r: &mut Reconciler, last, ms| {
        seen.hops.insert(ip, hop(last));
        let desired = Desired::new(&config, &seen);
        let report = round(r, &desired, &tables, Duration::from_millis(ms));
        let entry = tables.backends.read(0);
        (report.next_wakeup, entry.hops, entry.state)
    };
    let mut r = Reconciler::new();
    change(&mut r, 1, 0);
    // No packet has ever read the other place: the next agent writes it at once.
    let mut r = Reconciler::new();
    let (wakeup, hops, word) = change(&mut r, 2, 0);
    assert_eq!((wakeup, hops), (None, [hop(1), hop(2)]));
    assert_ne!(word & state::HOP_VALID, 0);
    // When the first was left, the agent after that does not know.
    let mut r = Reconciler::new();
    let (wakeup, hops, word) = change(&mut r, 3, 100);
    assert_eq!((wakeup, hops), (Some(REST), [hop(1), hop(2)]));
    assert_eq!(word & state::HOP_VALID, 0);
    let (wakeup, hops, word) = change(&mut r, 3, 1100);
    assert_eq!((wakeup, hops), (None, [hop(3), hop(2)]));
    assert_ne!(word & state::HOP_VALID, 0);
}

#[test]
fn a_snat_address_rests_over_a_restart() {
    let with = |snat: &str| {
        let mut config = one_server();
        let pool = Arc::make_mut(&mut config.pools[0]);
        pool.snat = snat
            .split_whitespace()
            .map(|s| s.parse().unwrap())
            .collect();
        Desired::new(&config, &up(&config))
    };
    let tables = tables();
    let mut now = secs(0);
    let mut r = Reconciler::new();
    settle(&mut r, &with("192.0.2.10"), &tables, &mut now);
    // The program gives out a port.
    let cursor = offset_of!(SnatAddress, cursor);
    tables.snat_addresses.store_u64(0, cursor, 1);
    settle(&mut r, &with(""), &tables, &mut now);
    let addr = |slot| tables.snat_addresses.read(slot).addr;
    assert_eq!(addr(0), Addr::UNSPECIFIED);
    let mut r = Reconciler::new();
    round(&mut r, &with("192.0.2.11"), &tables, now);
    let ip = |s: &str| Addr::from(s.parse::<IpAddr>().unwrap());
    assert_eq!([addr(0), addr(1)], [Addr::UNSPECIFIED, ip("192.0.2.11")]);
    let both = with("192.0.2.11 192.0.2.12");
    round(&mut r, &both, &tables, now + REST);
    assert_eq!([addr(0), addr(1)], [ip("192.0.2.12"), ip("192.0.2.11")]);
}

/// Also after as many owners as there are generations a slot is known to have been used.
#[test]
fn a_backend_rests_over_a_restart_whatever_its_generation() {
    let with = |server: Option<&str>| {
        let mut config = one_server();
        let backends = &mut Arc::make_mut(&mut config.pools[0]).backends;
        *backends = server.map(|s| backend("a", s, 1)).into_iter().collect();
        Desired::new(&config, &up(&config))
    };
    let tables = tables();
    let mut now = secs(0);
    let mut r = Reconciler::new();
    for generation in (1..=255).chain([1]) {
        settle(&mut r, &with(Some("10.0.0.1:80")), &tables, &mut now);
        let word = state_of(&tables, 0);
        assert_eq!(word >> state::GENERATION_SHIFT, generation);
        settle(&mut r, &with(None), &tables, &mut now);
        assert_eq!(state_of(&tables, 0) & state::PRESENT, 0);
        assert_ne!(state_of(&tables, 0), 0);
        if generation < 255 {
            now += REST;
            continue;
        }
        let mut next = Reconciler::new();
        round(&mut next, &with(Some("10.0.0.2:80")), &tables, now);
        assert_eq!(next.slot_of(&name("p", "a"), Protocol::Tcp), Some(1));
        settle(&mut next, &with(None), &tables, &mut now);
        now += REST;
        r = next;
    }
}
