//! What is wanted and cannot be had, and tables that somebody left half written.

use super::*;
use crate::reconcile::{DeviceWanted, Problem, ReconcileError};
use common::limits;
use std::net::Ipv4Addr;

fn fails(r: &mut Reconciler, desired: &Desired, tables: &Tables, now: Duration) -> ReconcileError {
    let result = r.reconcile(desired.clone(), tables, &no_flows, now);
    let error = result.expect_err("something cannot be had");
    assert!(error.report.next_wakeup.is_some(), "it is tried again");
    error
}

/// Frontends `f0`, `f1`, ... on port 80 of these addresses.
fn frontends(addresses: impl Iterator<Item = Ipv4Addr>, pool: &str) -> Vec<model::Frontend> {
    addresses
        .enumerate()
        .map(|(i, ip)| frontend(&format!("f{i}"), &format!("{ip}:80"), Protocol::Tcp, pool))
        .collect()
}

#[test]
fn nine_snat_addresses() {
    let mut p = pool("p", vec![backend("a", "10.0.0.1:80", 1)]);
    p.snat = (1..=9).map(|i| Ipv4Addr::new(10, 9, 0, i).into()).collect();
    let web = frontend("web", "192.0.2.1:80", Protocol::Tcp, "p");
    let mut config = config(vec![web], vec![p]);
    let (tables, mut r) = (tables(), Reconciler::new());
    let error = fails(
        &mut r,
        &Desired::new(&config, &up(&config)),
        &tables,
        secs(0),
    );
    assert_eq!(
        error.to_string(),
        "snat address 10.9.0.9: all 8 slots are in use (0 of them rest and will be free)"
    );
    // The frontend serves with those that there are.
    let slot = r.frontend_slot("web").unwrap();
    assert_eq!(tables.frontends.read(u32::from(slot)).snat_count, 8);
    Arc::make_mut(&mut config.pools[0]).snat.remove(0);
    let desired = Desired::new(&config, &up(&config));
    let mut now = secs(1);
    while let Err(error) = r.reconcile(desired.clone(), &tables, &no_flows, now) {
        assert!(now < secs(10), "{error}");
        now += error.report.next_wakeup.unwrap();
    }
    settle(&mut r, &desired, &tables, &mut now);
    check_desired(&tables, &desired, true);
}

#[test]
fn two_ports_for_one_snat_address_and_two_devices_in_one_slot() {
    let mut p = pool("p", vec![]);
    p.snat = vec!["10.9.0.1".parse().unwrap()];
    let mut q = p.clone();
    q.name = "q".into();
    q.snat_ports = (2000, 3000);
    let config = config(
        vec![
            frontend("a", "192.0.2.1:80", Protocol::Tcp, "p"),
            frontend("b", "192.0.2.2:80", Protocol::Tcp, "q"),
        ],
        vec![p, q],
    );
    let device = |ifindex| DeviceWanted {
        ifindex,
        mac: [2, 0, 0, 0, 0, 1],
        no_tx: false,
    };
    let seen = Seen {
        devices: vec![device(2), device(2 + limits::DEVICES), device(3)],
        ..Seen::default()
    };
    let (tables, mut r) = (tables(), Reconciler::new());
    let error = fails(&mut r, &Desired::new(&config, &seen), &tables, secs(0));
    assert_eq!(
        error.problems,
        [
            Problem::DeviceSlot {
                ifindex: 258,
                slot: 2,
                other: 2
            },
            Problem::SnatPorts {
                address: "10.9.0.1".parse().unwrap()
            }
        ]
    );
    assert!(error.to_string().ends_with("(and 1 more)"));
    assert_eq!(tables.devices.read(3).ifindex, 3);
    assert_eq!(tables.snat_addresses.read(0).first_port, 1024);
}

#[test]
fn a_ring_beyond_the_limit_keeps_the_rest_going() {
    let name = |i| format!("b{i:03}");
    let address = |i| format!("10.0.{}.{}:80", i / 250, 1 + i % 250);
    let mut backends: Vec<_> = (0..257)
        .map(|i| backend(&name(i), &address(i), 256))
        .collect();
    backends[0].weight = 255;
    let mut fronts = frontends([Ipv4Addr::new(192, 0, 2, 1)].into_iter(), "long");
    fronts.push(frontend("g", "192.0.2.2:80", Protocol::Tcp, "short"));
    let config = config(
        fronts,
        vec![
            pool("long", backends),
            pool("short", vec![backend("a", "10.9.0.1:80", 1)]),
        ],
    );
    let (tables, mut r) = (tables(), Reconciler::new());
    let error = fails(
        &mut r,
        &Desired::new(&config, &up(&config)),
        &tables,
        secs(0),
    );
    assert_eq!(
        error.problems,
        [Problem::RingTooLong {
            pool: "long".into(),
            slots: 65_791,
            limit: 65_536
        }]
    );
    let ring_of = |name| {
        tables
            .frontends
            .read(r.frontend_slot(name).unwrap().into())
            .ring
    };
    assert_eq!(ring_of("f0"), 0);
    assert_eq!(turns(&tables, ring_of("g")).len(), 1);
}

/// Seventeen rings of 4,096 chunks do not go into 65,536.
#[test]
fn no_room_for_one_more_ring() {
    let heavy = |i: usize| {
        let mut backends: Vec<_> = (0..256)
            .map(|b| backend(&format!("b{b}"), &format!("10.0.{i}.{b}:80"), 256))
            .collect();
        backends[0].weight = 255;
        backends[255].weight = 1;
        pool(&format!("p{i:02}"), backends)
    };
    let fronts = (0..17).map(|i| {
        let address = format!("192.0.2.{i}:80");
        frontend(
            &format!("f{i}"),
            &address,
            Protocol::Tcp,
            &format!("p{i:02}"),
        )
    });
    let mut config = config(fronts.collect(), (0..17).map(heavy).collect());
    let (tables, mut r) = (tables(), Reconciler::new());
    let error = fails(
        &mut r,
        &Desired::new(&config, &up(&config)),
        &tables,
        secs(0),
    );
    assert_eq!(
        error.problems,
        [Problem::NoRingSpace {
            pool: "p16".into(),
            protocol: Protocol::Tcp,
            chunks: 4_080,
            free: 65_536 - 16 * 4_080,
            largest: 65_536 - 16 * 4_080,
            limit: 65_536
        }]
    );
    // One frontend less makes room, once its ring has rested.
    config.frontends.remove(3);
    let desired = Desired::new(&config, &up(&config));
    fails(&mut r, &desired, &tables, secs(5));
    round(&mut r, &desired, &tables, secs(6));
    let slot = r.frontend_slot("f16").unwrap();
    assert_eq!(
        RingRef::from_word(tables.frontends.read(slot.into()).ring).len,
        65_280
    );
}

#[test]
fn all_frontend_slots_in_use() {
    let pool = pool("p", vec![backend("a", "10.0.0.1:80", 1)]);
    // One echo entry takes a slot, too: 8,192 ports of one address are one too many.
    let fronts = (0..limits::FRONTENDS).map(|i| {
        let address = format!("192.0.2.1:{}", 1000 + i);
        frontend(&format!("f{i}"), &address, Protocol::Tcp, "p")
    });
    let mut config = config(fronts.collect(), vec![pool]);
    // A bucket may overflow at this load; that is another problem, with its own test.
    let (tables, mut r) = (tables(), Reconciler::new());
    let error = fails(
        &mut r,
        &Desired::new(&config, &up(&config)),
        &tables,
        secs(0),
    );
    let slots = |error: &ReconcileError| {
        let problems = error.problems.iter();
        problems
            .filter(|p| {
                matches!(
                    p,
                    Problem::NoSlot {
                        what: "frontend",
                        ..
                    }
                )
            })
            .count()
    };
    assert_eq!(slots(&error), 1);
    assert_eq!(r.frontend_slot("f8191"), None);
    config.frontends.remove(7);
    let mut now = secs(1);
    for _ in 0..3 {
        let desired = Desired::new(&config, &up(&config));
        match r.reconcile(desired, &tables, &no_flows, now) {
            Ok(_) => {}
            Err(error) => assert!(now < secs(3) || slots(&error) == 0, "{error}"),
        }
        now += secs(1);
    }
    assert!(r.frontend_slot("f8191").is_some());
}

/// Addresses whose frontends on port 80 share one bucket.
fn one_bucket(tables: &Tables, count: usize) -> Vec<Ipv4Addr> {
    let bucket_of = |ip: Ipv4Addr| {
        let hash = hash::service(
            &Addr::from(IpAddr::from(ip)),
            common::Be16::new(80),
            6,
            tables.settings().seed,
        );
        hash::index_slot(hash, tables.frontend_index.len()).0
    };
    (0u32..)
        .map(|i| Ipv4Addr::from(0x0a00_0000 + i))
        .filter(|&ip| bucket_of(ip) == 77)
        .take(count)
        .collect()
}

#[test]
fn nine_frontends_in_one_bucket() {
    let (tables, mut r) = (tables(), Reconciler::new());
    let addresses = one_bucket(&tables, 9);
    let p = pool("p", vec![backend("a", "10.200.0.1:80", 1)]);
    let mut config = config(frontends(addresses.into_iter(), "p"), vec![p]);
    let error = fails(
        &mut r,
        &Desired::new(&config, &up(&config)),
        &tables,
        secs(0),
    );
    assert_eq!(error.problems.len(), 1);
    let Problem::IndexFull { bucket, limit, .. } = error.problems[0] else {
        panic!("{error}");
    };
    assert_eq!((bucket, limit), (77, 8));
    // Any of the others may go instead; what is left keeps together.
    config.frontends.remove(2);
    let desired = Desired::new(&config, &up(&config));
    let mut now = secs(1);
    while let Err(error) = r.reconcile(desired.clone(), &tables, &no_flows, now) {
        assert!(now < secs(10), "{error}");
        now += secs(1);
    }
    settle(&mut r, &desired, &tables, &mut now);
    check_desired(&tables, &desired, true);
    assert!(tables.frontend_index.read(77).0.iter().all(|&e| e != 0));
}

#[test]
fn an_index_left_half_written_is_put_right() {
    let (tables, mut r) = (tables(), Reconciler::new());
    let addresses = one_bucket(&tables, 3);
    let p = pool("p", vec![backend("a", "10.200.0.1:80", 1)]);
    let config = config(frontends(addresses.into_iter(), "p"), vec![p]);
    let desired = Desired::new(&config, &up(&config));
    round(&mut r, &desired, &tables, secs(0));
    let good = tables.frontend_index.read(77);
    for spoilt in [
        // The last copied over the first, and not yet freed.
        [good.0[2], good.0[1], good.0[2], 0, 0, 0, 0, 0],
        // Entries of slots that are free, of another bucket, or no slot at all.
        [
            4000,
            good.0[0],
            5 << 16,
            good.0[1],
            1 << 31 | 1,
            good.0[2],
            0,
            0,
        ],
        // A gap.
        [good.0[0], 0, 0, good.0[1], good.0[2], 0, 0, 0],
        [0xffff_ffff; 8],
    ] {
        tables
            .frontend_index
            .write(77, common::tables::IndexBucket(spoilt));
        let mut r = Reconciler::new();
        round(&mut r, &desired, &tables, secs(1));
        check_desired(&tables, &desired, true);
        let entries = tables.frontend_index.read(77).0;
        assert_eq!(
            entries.iter().filter(|&&e| e != 0).count(),
            3,
            "{entries:x?}"
        );
        let address = desired.frontends.last().unwrap();
        check_bucket(
            &tables,
            Index::Frontends,
            service(address.address, address.proto),
        );
    }
}

#[test]
fn tables_that_were_changed_behind_its_back_are_read_again_on_resync() {
    let p = pool("p", vec![backend("a", "10.0.0.1:80", 1)]);
    let web = frontend("web", "192.0.2.1:80", Protocol::Tcp, "p");
    let config = config(vec![web], vec![p]);
    let desired = Desired::new(&config, &up(&config));
    let (tables, mut r) = (tables(), Reconciler::new());
    round(&mut r, &desired, &tables, secs(0));
    let slot = u32::from(r.frontend_slot("web").unwrap());
    let mut entry = tables.frontends.read(slot);
    entry.ring = 0;
    tables.frontends.write(slot, entry);
    assert_eq!(round(&mut r, &desired, &tables, secs(1)).steps, 0);
    r.resync();
    assert!(round(&mut r, &desired, &tables, secs(2)).steps > 0);
    check_desired(&tables, &desired, true);
}
