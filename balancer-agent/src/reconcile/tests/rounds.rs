//! Rounds over small configurations: order of steps, lingering, resting, hops.

use super::*;
use crate::dataplane::flows;
use crate::model::Activation;
use crate::reconcile::{LingeringKind, REST, Reading, take_out};
use common::Be16;
use common::flow::{Flow4, Meta, flags, key4};
use std::cell::Cell;

fn two_servers() -> Config {
    config(
        vec![frontend("web", "192.0.2.1:80", Protocol::Tcp, "p")],
        vec![pool(
            "p",
            vec![
                backend("a", "10.0.0.1:8080", 1),
                backend("b", "10.0.0.2:8080", 1),
            ],
        )],
    )
}

/// What the steps are about, in order.
fn kinds(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .map(|step| {
            step.to_string()
                .split(['0', '1', ':'])
                .next()
                .unwrap()
                .trim()
                .into()
        })
        .collect()
}

fn put_flow(tables: &Tables, client: u8, frontend: u16, backend: u16) {
    let generation = (state_of(tables, backend) >> state::GENERATION_SHIFT) as u8;
    let mut bucket = tables.flows4.buckets.read(0);
    let free = bucket.0.iter().position(|e| e.meta == Meta::FREE).unwrap();
    bucket.0[free] = Flow4 {
        key: key4(u32::from(client), Be16::new(1000), frontend),
        meta: Meta::new(backend, generation, flags::VALID | flags::ANSWERED, 0),
        ..Flow4::default()
    };
    tables.flows4.buckets.write(0, bucket);
}

#[test]
fn the_first_plan_in_order() {
    let config = two_servers();
    let desired = Desired::new(&config, &up(&config));
    let tables = tables();
    let r = Reconciler::new();
    let plan = r.dry_run(desired.clone(), &tables, &no_flows, secs(0));
    let text = plan.to_string();
    let text: Vec<_> = text.lines().filter(|l| !l.contains("index")).collect();
    assert_eq!(
        text,
        [
            "endpoint 0: 10.0.0.1:8080 tcp",
            "backend 0: 10.0.0.1:8080 tcp endpoint 0",
            "backend 0: state present usable watched hop 0 generation 1",
            "endpoint 1: 10.0.0.2:8080 tcp",
            "backend 1: 10.0.0.2:8080 tcp endpoint 1",
            "backend 1: state present usable watched hop 0 generation 1",
            "ring at chunk 0: backends 0 1",
            "frontend 0: 192.0.2.1:0 echo",
            "frontend 0: present, unavailable pass",
            "frontend 1: 192.0.2.1:80 tcp",
            "frontend 1: ring at chunk 0, 2 slots",
            "frontend 1: present, unavailable reset",
        ]
    );
    assert!(
        present_backends(&tables).is_empty(),
        "a dry run does nothing"
    );
    assert_eq!(plan.next_wakeup, None);
}

#[test]
fn a_bad_verdict_comes_first_and_a_second_round_is_empty() {
    let config = two_servers();
    let mut seen = up(&config);
    let tables = tables();
    let mut r = Reconciler::new();
    let report = round(&mut r, &Desired::new(&config, &seen), &tables, secs(0));
    assert_eq!((report.generation, report.next_wakeup), (1, None));
    let slot = r.slot_of(&name("p", "a"), Protocol::Tcp).unwrap();
    assert_eq!(r.backend_at(slot), Some((&name("p", "a"), Protocol::Tcp)));
    let frontend = r.frontend_slot("web").unwrap();
    assert_eq!(r.frontend_at(frontend).map(|n| &**n), Some("web"));

    seen.health.insert(name("p", "a"), Health::Down);
    let desired = Desired::new(&config, &seen);
    let plan = r.dry_run(desired.clone(), &tables, &no_flows, secs(1));
    assert_eq!(
        kinds(&plan.steps),
        ["backend", "ring at chunk", "frontend"],
        "{plan}"
    );
    round(&mut r, &desired, &tables, secs(1));
    check_desired(&tables, &desired, true);
    let again = round(&mut r, &desired, &tables, secs(1));
    assert_eq!((again.steps, again.generation), (0, 2));
}

#[test]
fn the_fast_path_needs_no_plan_and_is_found_by_the_next() {
    let config = two_servers();
    let desired = Desired::new(&config, &up(&config));
    let tables = tables();
    let mut r = Reconciler::new();
    round(&mut r, &desired, &tables, secs(0));
    assert!(take_out(&tables, 1));
    assert!(!take_out(&tables, 1));
    assert_eq!(state_of(&tables, 1) & state::USABLE, 0);
    // The verdict was taken back before the round: the word must be as desired.
    assert_eq!(round(&mut r, &desired, &tables, secs(0)).steps, 1);
    check_desired(&tables, &desired, true);
}

#[test]
fn a_removed_backend_stays_for_its_flows_and_comes_back_to_its_slot() {
    let whole = two_servers();
    let mut less = whole.clone();
    Arc::make_mut(&mut less.pools[0]).backends.remove(0);
    let with = Desired::new(&whole, &up(&whole));
    let without = Desired::new(&less, &up(&less));
    let tables = tables();
    let mut r = Reconciler::new();
    round(&mut r, &with, &tables, secs(0));
    put_flow(&tables, 9, r.frontend_slot("web").unwrap(), 0);
    let flows = counted(&tables);
    let go = |r: &mut Reconciler, d: &Desired, now| {
        r.reconcile(d.clone(), &tables, &flows, secs(now)).unwrap()
    };
    let report = go(&mut r, &without, 10);
    assert_eq!(report.next_wakeup, Some(REST));
    assert_eq!(
        state_of(&tables, 0) & (state::PRESENT | state::USABLE),
        state::PRESENT
    );
    check_desired(&tables, &without, false);
    let kept = LingeringKind::Backend(Some((name("p", "a"), Protocol::Tcp)));
    assert_eq!(r.lingering().len(), 1);
    assert_eq!(r.lingering()[0].what, kept);
    assert_eq!(r.backend_at(0), Some((&name("p", "a"), Protocol::Tcp)));
    assert_eq!(r.slot_of(&name("p", "a"), Protocol::Tcp), None);

    // Still in use; then wanted again, with the same generation.
    assert_eq!(go(&mut r, &without, 12).steps, 0);
    go(&mut r, &with, 13);
    assert_eq!(state_of(&tables, 0) >> state::GENERATION_SHIFT, 1);
    assert_eq!(r.slot_of(&name("p", "a"), Protocol::Tcp), Some(0));
    assert!(r.lingering().is_empty());

    // Removed again: after the timeout the flow goes, and the slot.
    go(&mut r, &without, 20);
    go(&mut r, &without, 24);
    assert_ne!(state_of(&tables, 0) & state::PRESENT, 0);
    go(&mut r, &without, 25);
    assert_eq!(state_of(&tables, 0) & state::PRESENT, 0);
    assert_eq!(counted(&tables)().total().live(), 0);
    let mut left = 0;
    flows::for_each(&tables, 0, |_| left += 1);
    assert_eq!(left, 0);
    check_desired(&tables, &without, true);

    // Within a second of rest the name gets another slot; later its generation rises.
    go(&mut r, &with, 25);
    assert_eq!(r.slot_of(&name("p", "a"), Protocol::Tcp), Some(2));
    let third = two_servers();
    let mut third = third;
    Arc::make_mut(&mut third.pools[0])
        .backends
        .push(backend("c", "10.0.0.3:1", 1));
    go(&mut r, &Desired::new(&third, &up(&third)), 27);
    assert_eq!(r.slot_of(&name("p", "c"), Protocol::Tcp), Some(0));
    assert_eq!(state_of(&tables, 0) >> state::GENERATION_SHIFT, 2);
}

#[test]
fn a_removed_frontend_closes_and_can_open_again() {
    let whole = two_servers();
    let mut none = whole.clone();
    none.frontends.clear();
    let with = Desired::new(&whole, &up(&whole));
    let without = Desired::new(&none, &up(&none));
    let tables = tables();
    let mut r = Reconciler::new();
    round(&mut r, &with, &tables, secs(0));
    let slot = r.frontend_slot("web").unwrap();
    put_flow(&tables, 9, slot, 1);
    let flows = counted(&tables);
    let go = |r: &mut Reconciler, d: &Desired, now| {
        r.reconcile(d.clone(), &tables, &flows, secs(now)).unwrap()
    };
    go(&mut r, &without, 1);
    let closed = tables.frontends.read(u32::from(slot));
    assert_eq!(
        closed.flags,
        frontend_flags::PRESENT | frontend_flags::CLOSING
    );
    let service = service("192.0.2.1:80".parse().unwrap(), 6);
    assert_eq!(lookup(&tables, Index::Frontends, service), Some(slot));
    assert_eq!(r.frontend_at(slot).map(|n| &**n), Some("web"));
    go(&mut r, &without, 3);
    // The echo entry and the server without flows are gone by now.
    assert_eq!(present_frontends(&tables).len(), 1);
    assert_eq!(present_backends(&tables).len(), 1);
    go(&mut r, &with, 4);
    assert_eq!(r.frontend_slot("web"), Some(slot));
    check_desired(&tables, &with, true);
    flows::purge_frontend(&tables, slot);
    go(&mut r, &without, 5);
    let report = go(&mut r, &without, 6);
    assert_eq!(report.next_wakeup, None);
    check_desired(&tables, &without, true);
    assert_eq!(lookup(&tables, Index::Frontends, service), None);
}

#[test]
fn a_restarted_agent_adopts_and_lets_go() {
    let whole = two_servers();
    let mut less = whole.clone();
    Arc::make_mut(&mut less.pools[0]).backends.remove(0);
    let tables = tables();
    round(
        &mut Reconciler::new(),
        &Desired::new(&whole, &up(&whole)),
        &tables,
        secs(0),
    );
    let mut r = Reconciler::new();
    let same = Desired::new(&whole, &up(&whole));
    assert_eq!(round(&mut r, &same, &tables, secs(0)).steps, 0);

    let desired = Desired::new(&less, &up(&less));
    let mut r = Reconciler::new();
    round(&mut r, &desired, &tables, secs(0));
    assert_eq!(r.slot_of(&name("p", "b"), Protocol::Tcp), Some(1));
    assert_eq!(r.lingering()[0].what, LingeringKind::Backend(None));
    let mut now = secs(0);
    settle(&mut r, &desired, &tables, &mut now);
    assert_eq!(now, REST);
    check_desired(&tables, &desired, true);
}

#[test]
fn a_hop_is_written_aside_and_not_twice_in_a_second() {
    let config = two_servers();
    let mut seen = up(&config);
    let tables = tables();
    let mut r = Reconciler::new();
    round(&mut r, &Desired::new(&config, &seen), &tables, secs(0));
    let ip = "10.0.0.1".parse().unwrap();
    let mut change = |r: &mut Reconciler, last: Option<u8>, ms| {
        match last {
            Some(last) => seen.hops.insert(ip, hop(last)),
            None => seen.hops.remove(&ip),
        };
        let desired = Desired::new(&config, &seen);
        let report = round(r, &desired, &tables, Duration::from_millis(ms));
        (report, tables.backends.read(0))
    };
    let bits = state::HOP_VALID | state::HOP_SLOT;
    let (report, entry) = change(&mut r, Some(2), 0);
    assert_eq!((report.steps, entry.hops), (2, [hop(1), hop(2)]));
    assert_eq!(entry.state & bits, bits);
    // Too soon for a third: none holds until the first has rested.
    let (report, entry) = change(&mut r, Some(3), 400);
    assert_eq!((report.steps, entry.hops), (1, [hop(1), hop(2)]));
    assert_eq!(entry.state & bits, state::HOP_SLOT);
    assert_eq!(report.next_wakeup, Some(Duration::from_millis(600)));
    let (report, entry) = change(&mut r, Some(3), 1000);
    assert_eq!((report.steps, entry.hops), (2, [hop(3), hop(2)]));
    assert_eq!(entry.state & bits, state::HOP_VALID);
    // Back to one that is still there: one store.
    let (report, entry) = change(&mut r, Some(2), 1001);
    assert_eq!((report.steps, entry.state & bits), (1, bits));
    let (report, entry) = change(&mut r, None, 1002);
    assert_eq!((report.steps, entry.state & bits), (1, state::HOP_SLOT));
    let (report, entry) = change(&mut r, Some(2), 1003);
    assert_eq!((report.steps, entry.state & bits), (1, bits));
}

#[test]
fn stopped_cuts_and_drain_does_not() {
    let config = two_servers();
    let mut seen = up(&config);
    let tables = tables();
    let mut r = Reconciler::new();
    round(&mut r, &Desired::new(&config, &seen), &tables, secs(0));
    for (activation, stopped) in [
        (Activation::Drain, false),
        (Activation::Stopped, true),
        (Activation::Drain, false),
    ] {
        seen.activation.insert(name("p", "b"), activation);
        let desired = Desired::new(&config, &seen);
        round(&mut r, &desired, &tables, secs(1));
        let word = state_of(&tables, 1);
        assert_eq!(word & state::STOPPED != 0, stopped);
        assert_eq!(word & state::USABLE, 0);
        check_desired(&tables, &desired, true);
    }
}

#[test]
fn frontends_of_one_pool_share_a_ring_and_lone_ones_keep_theirs() {
    let mut config = two_servers();
    let p = &config.pools[0];
    let mut q = model::Pool::clone(p);
    q.name = "q".into();
    config.pools.push(Arc::new(q));
    for (n, address, of) in [("w2", "192.0.2.2:80", "p"), ("w3", "192.0.2.3:80", "q")] {
        config
            .frontends
            .push(frontend(n, address, Protocol::Tcp, of));
    }
    let mut seen = up(&config);
    let tables = tables();
    let mut r = Reconciler::new();
    round(&mut r, &Desired::new(&config, &seen), &tables, secs(0));
    let rings = |r: &Reconciler| {
        ["web", "w2", "w3"].map(|n| {
            let slot = r.frontend_slot(n).unwrap();
            tables.frontends.read(u32::from(slot)).ring
        })
    };
    let [a, b, c] = rings(&r);
    assert_eq!(a, b);
    assert_ne!(a, c);
    seen.health.insert(name("p", "a"), Health::Down);
    round(&mut r, &Desired::new(&config, &seen), &tables, secs(1));
    let [a2, b2, c2] = rings(&r);
    assert_eq!(a2, b2);
    assert_ne!(a2, a);
    assert_eq!(c2, c);
}

#[test]
fn flows_are_counted_only_when_something_has_lingered() {
    let whole = two_servers();
    let mut less = whole.clone();
    Arc::make_mut(&mut less.pools[0]).backends.remove(0);
    let tables = tables();
    let mut r = Reconciler::new();
    let asked = Cell::new(0);
    let count = || {
        asked.set(asked.get() + 1);
        no_flows()
    };
    let mut go = |config: &Config, now| {
        let desired = Desired::new(config, &up(config));
        r.reconcile(desired, &tables, &count, secs(now)).unwrap();
        asked.get()
    };
    assert_eq!(go(&whole, 0), 0);
    assert_eq!(go(&whole, 5), 0);
    assert_eq!(go(&less, 6), 0);
    assert_eq!(go(&less, 7), 1);
    assert_eq!(go(&less, 8), 1);
}

#[test]
fn a_renamed_frontend_keeps_its_slot() {
    let mut config = two_servers();
    let tables = tables();
    let mut r = Reconciler::new();
    round(
        &mut r,
        &Desired::new(&config, &up(&config)),
        &tables,
        secs(0),
    );
    let slot = r.frontend_slot("web").unwrap();
    config.frontends[0].name = "www".into();
    let desired = Desired::new(&config, &up(&config));
    assert_eq!(round(&mut r, &desired, &tables, secs(1)).steps, 1);
    assert_eq!(r.frontend_slot("www"), Some(slot));
    check_desired(&tables, &desired, true);
}

#[test]
fn what_came_back_is_not_let_go_later() {
    let mut whole = two_servers();
    Arc::make_mut(&mut whole.pools[0]).snat = vec!["192.0.2.10".parse().unwrap()];
    let mut none = whole.clone();
    none.frontends.clear();
    let with = Desired::new(&whole, &up(&whole));
    let without = Desired::new(&none, &up(&none));
    let tables = tables();
    let mut r = Reconciler::new();
    round(&mut r, &with, &tables, secs(0));
    round(&mut r, &without, &tables, secs(10));
    // Two frontends (one for echo), two backends, a snat address.
    assert_eq!(r.lingering().len(), 5);
    let report = round(&mut r, &with, &tables, secs(10));
    assert_eq!((r.lingering(), report.next_wakeup), (vec![], None));
    assert_eq!(round(&mut r, &with, &tables, secs(30)).steps, 0);
    check_desired(&tables, &with, true);
}

#[test]
fn a_backend_that_is_taken_out_while_the_tables_are_read_stays_out() {
    let config = two_servers();
    let up = up(&config);
    let mut down = up.clone();
    down.health.insert(name("p", "a"), Health::Down);
    let (up, down) = (Desired::new(&config, &up), Desired::new(&config, &down));
    let tables = tables();
    let mut r = Reconciler::new();
    settle(&mut r, &up, &tables, &mut secs(0));
    let slot = r.slot_of(&name("p", "a"), Protocol::Tcp).unwrap();
    // At one pause, and at a later one with each reading.
    for at in (0..).step_by(29) {
        r.resync();
        assert!(r.must_read());
        let mut pauses = 0;
        let reading = Reading::of(&tables, &mut || {
            if pauses == at {
                take_out(&tables, slot);
            }
            pauses += 1;
        });
        r.start_from(reading);
        assert!(!r.must_read());
        if pauses <= at {
            assert!(pauses > 100, "{pauses} pauses are too few");
            assert_eq!(round(&mut r, &up, &tables, secs(0)).steps, 0);
            return;
        }
        assert_eq!(state_of(&tables, slot) & state::USABLE, 0);
        round(&mut r, &down, &tables, secs(0));
        check_desired(&tables, &down, false);
        round(&mut r, &up, &tables, secs(0));
        check_desired(&tables, &up, false);
    }
}
