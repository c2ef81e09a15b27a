//! The session store from outside: what several nodes do together when all goes well, and
//! in the plain cases when it does not. The wild cases are the simulator's.

#[path = "session/late.rs"]
mod late;
#[path = "session/measure.rs"]
mod measure;
#[path = "session/net.rs"]
mod net;

use balancer_agent::session::survey::{Question, What};
use balancer_agent::session::{
    Config, ConfigError, Expect, GroupConfig, Input, Manager, NodeId, Op, Outcome, Replication,
    Store, Time, Token, group_key,
};
use net::{GROUP, HOUR, Net, config, put};

const BACKUP: Manager = Manager::Backup { copies: 1 };

fn done(outcome: &Outcome) -> (u8, bool) {
    match outcome {
        Outcome::Done {
            copies, degraded, ..
        } => (*copies, *degraded),
        other => panic!("a write ended with {other:?}"),
    }
}

fn conditional(expect: Expect) -> Op {
    Op::Put {
        route: "c".into(),
        ttl: HOUR,
        data: Some(b"cart".to_vec().into()),
        expect,
    }
}

#[test]
fn any_node_finds_any_session() {
    for (manager, copies) in [
        (Manager::Delta, 4),
        (BACKUP, 1),
        (Manager::Backup { copies: 2 }, 2),
    ] {
        let mut net = Net::new(5, &config(manager, Replication::Sync, false));
        for n in 0..50_u64 {
            let id = format!("session-{n}");
            let outcome = net.op(n % 5 + 1, &id, put("a", HOUR));
            assert_eq!(done(&outcome), (copies, false), "{manager:?}");
            for node in 1..=5 {
                assert_eq!(&*net.get(node, &id).unwrap().route, "a");
            }
        }
        let held = net.sum(|counters| counters.sessions);
        assert_eq!(held, 50 * (u64::from(copies) + 1));
    }
}

#[test]
fn a_session_goes_through_its_life() {
    for manager in [Manager::Delta, BACKUP] {
        let mut net = Net::new(4, &config(manager, Replication::Sync, false));
        let id = "session-of-one";
        assert_eq!(net.op(1, id, Op::Touch), Outcome::NotFound);
        assert_eq!(
            net.op(1, id, Op::Bind { route: "b".into() }),
            Outcome::NotFound
        );
        net.op(1, id, put("a", HOUR));
        net.op(2, id, Op::Bind { route: "b".into() });
        let session = net.get(3, id).unwrap();
        assert_eq!(&*session.route, "b");

        let conflict = net.op(4, id, conditional(Expect::Absent));
        assert_eq!(conflict, Outcome::Conflict(Some(session.version)));
        let outcome = net.op(4, id, conditional(Expect::Version(session.version)));
        assert!(!done(&outcome).1);
        let outcome = net.op(3, id, conditional(Expect::Version(session.version)));
        assert!(matches!(outcome, Outcome::Conflict(Some(_))), "{outcome:?}");
        let session = net.get(1, id).unwrap();
        assert_eq!(session.data.as_deref(), Some(&b"cart"[..]));

        net.op(2, id, Op::Delete);
        for node in 1..=4 {
            assert_eq!(net.get(node, id), None);
        }
        // The same id again is another session: nothing of the old one shows.
        net.op(3, id, put("d", HOUR));
        let anew = net.get(1, id).unwrap();
        assert!(anew.version.epoch > session.version.epoch);
        assert_eq!((&*anew.route, anew.data), ("d", None));
    }
}

#[test]
fn wrong_requests_are_refused_with_a_reason() {
    let mut net = Net::new(1, &config(Manager::Delta, Replication::Async, false));
    for (id, op) in [
        ("short", Op::Touch),
        (&*"x".repeat(129), Op::Touch),
        ("session-1", put("a", 0)),
        ("session-1", put(&"r".repeat(65), HOUR)),
    ] {
        let outcome = net.op(1, id, op);
        assert!(matches!(outcome, Outcome::Invalid(_)), "{outcome:?}");
    }
}

#[test]
fn contradicting_configurations_are_refused() {
    let good = config(BACKUP, Replication::Sync, false);
    assert!(Store::new(good.clone()).is_ok());
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = good.clone();
        change(&mut config);
        Store::new(config).map(drop).unwrap_err()
    };
    let twice = refused(&|c| c.groups.push(c.groups[0].clone()));
    assert_eq!(twice, ConfigError::SameKey("users".into(), "users".into()));
    let none = refused(&|c| c.groups[0].manager = Manager::Backup { copies: 0 });
    assert_eq!(
        none.to_string(),
        "group `users`: manager `backup` needs 1 to 63 copies, found 0"
    );
    for change in [
        (&|c: &mut Config| c.limits.buckets = 1000) as &dyn Fn(&mut Config),
        &|c| c.timing.absence = c.timing.tombstone_max,
        &|c| c.limits.data = 2 << 20,
        &|c| c.limits.outbox = 10,
    ] {
        assert!(matches!(refused(change), ConfigError::Bound(_)));
    }
}

#[test]
fn a_joining_node_serves_only_what_is_whole() {
    for manager in [Manager::Delta, Manager::Backup { copies: 2 }] {
        let config = config(manager, Replication::Async, false);
        let mut net = Net::new(3, &config);
        for n in 0..3_000 {
            net.ask(1, &format!("session-{n}"), put("a", HOUR));
            net.run();
        }
        net.add(NodeId(4), &config);
        let everyone: Vec<NodeId> = (1..=4).map(NodeId).collect();
        net.tell_one(NodeId(4), &everyone);
        assert!(!net.store(4).ready());
        assert_eq!(net.op(4, "session-7", Op::Touch), Outcome::NotReady);
        net.tell();
        net.pass(3_000);
        assert!(net.all_ready());
        let outbox = config.limits.outbox as u64;
        assert!(
            net.nodes
                .values()
                .all(|store| store.counters().outbox < outbox / 2)
        );
        for n in (0..3_000).step_by(97) {
            assert!(net.get(4, &format!("session-{n}")).is_some());
        }
        // Exactly the holders hold.
        let copies = if manager == Manager::Delta { 4 } else { 3 };
        assert_eq!(net.sum(|counters| counters.sessions), 3_000 * copies);
        assert_eq!(net.sum(|counters| counters.strays), 0);
    }
}

#[test]
fn a_session_survives_its_primary() {
    let mut net = Net::new(4, &config(BACKUP, Replication::Sync, false));
    for n in 0..200 {
        net.op(1, &format!("session-{n}"), put("a", HOUR));
    }
    net.remove(NodeId(2));
    net.tell();
    net.pass(2_000);
    for n in 0..200 {
        assert!(
            net.get(3, &format!("session-{n}")).is_some(),
            "session {n} is lost"
        );
    }
    assert_eq!(
        net.sum(|counters| counters.sessions),
        400,
        "there are two copies again"
    );
}

#[test]
fn sessions_end_when_nobody_comes_back() {
    for manager in [Manager::Delta, BACKUP] {
        let mut net = Net::new(3, &config(manager, Replication::Sync, false));
        net.op(1, "session-left", put("a", 60_000));
        net.op(1, "session-used", put("a", 60_000));
        for _ in 0..6 {
            net.pass(20_000);
            // Accesses on another node count.
            assert_eq!(net.op(2, "session-used", Op::Touch), Outcome::Touched);
        }
        assert!(net.get(3, "session-used").is_some());
        assert_eq!(net.get(3, "session-left"), None);
        assert_eq!(
            net.sum(|counters| counters.expired),
            1,
            "one node ends it for all"
        );
        net.pass(90_000);
        assert_eq!(net.sum(|counters| counters.sessions), 0);
    }
}

#[test]
fn reads_do_not_each_cost_a_message() {
    let mut net = Net::new(3, &config(Manager::Delta, Replication::Sync, false));
    net.op(1, "session-read", put("a", HOUR));
    let frames = net.frames;
    for _ in 0..1_000 {
        net.op(1, "session-read", Op::Get { touch: true });
    }
    assert_eq!(net.frames, frames);
}

#[test]
fn tombstones_go_when_all_have_seen_them() {
    let mut net = Net::new(3, &config(BACKUP, Replication::Sync, false));
    for n in 0..100 {
        net.op(1, &format!("session-{n}"), put("a", HOUR));
        net.op(2, &format!("session-{n}"), Op::Delete);
    }
    assert_eq!(net.sum(|counters| counters.tombstones), 200);
    net.pass(100_000);
    assert_eq!(
        net.sum(|counters| counters.tombstones),
        200,
        "not before their least age"
    );
    net.pass(240_000);
    assert_eq!(net.sum(|counters| counters.tombstones), 0);
    assert_eq!(net.sum(|counters| counters.tombstones_agreed), 200);
    assert_eq!(net.sum(|counters| counters.tombstones_aged), 0);
}

#[test]
fn tombstones_wait_for_a_node_that_is_away() {
    let config = config(Manager::Delta, Replication::Sync, true);
    let mut net = Net::new(3, &config);
    net.pass(1_000);
    net.op(1, "session-gone", put("a", HOUR));
    net.remove(NodeId(3));
    net.tell();
    net.op(1, "session-gone", Op::Delete);
    net.pass(600_000);
    assert!(net.store(1).counters().tombstones > 0);
    // It returns with the session on its disk, and the deletion is still known.
    let disk = net.disks[&NodeId(3)].clone();
    net.add(NodeId(3), &config);
    let now = net.now;
    for batch in &disk {
        net.nodes
            .get_mut(&NodeId(3))
            .unwrap()
            .load(batch, now)
            .unwrap();
    }
    assert!(net.store(3).peek(GROUP, b"session-gone", now).is_some());
    net.tell();
    net.pass(2_000);
    assert!(net.all_ready());
    assert_eq!(net.store(3).counters().wipes, 0);
    assert_eq!(net.get(3, "session-gone"), None);
}

#[test]
fn a_node_that_was_away_for_too_long_comes_back_empty() {
    let config = config(Manager::Delta, Replication::Sync, true);
    let mut net = Net::new(2, &config);
    net.pass(1_000);
    net.op(1, "session-dead", put("a", HOUR));
    net.op(1, "session-alive", put("a", 10 * HOUR));
    net.remove(NodeId(2));
    net.tell();
    net.op(1, "session-dead", Op::Delete);
    net.pass(config.timing.tombstone_max + 60_000);
    assert_eq!(net.store(1).counters().tombstones, 0);
    let disk = net.disks[&NodeId(2)].clone();
    net.add(NodeId(2), &config);
    let now = net.now;
    for batch in &disk {
        net.nodes
            .get_mut(&NodeId(2))
            .unwrap()
            .load(batch, now)
            .unwrap();
    }
    net.tell();
    net.pass(2_000);
    assert_eq!(net.store(2).counters().wipes, 1);
    for node in [1, 2] {
        assert_eq!(net.get(node, "session-dead"), None);
        assert!(net.get(node, "session-alive").is_some());
    }
}

#[test]
fn a_silent_peer_holds_a_write_for_a_bounded_time() {
    let config = config(Manager::Delta, Replication::Sync, false);
    let mut net = Net::new(2, &config);
    net.deaf.push(NodeId(2));
    let began = net.now;
    let outcome = net.op(1, "session-slow", put("a", HOUR));
    assert_eq!(done(&outcome), (0, true));
    assert!(net.now <= began.plus(config.timing.sync + 100));
    assert_eq!(net.store(1).counters().degraded, 1);
    // Anti-entropy brings the peer up to date once it hears again.
    net.deaf.clear();
    net.pass(2 * config.timing.anti_entropy);
    assert!(net.store(2).peek(GROUP, b"session-slow", net.now).is_some());
}

#[test]
fn a_full_outbox_is_mended_afterwards() {
    let mut config = config(Manager::Delta, Replication::Async, false);
    config.limits.frame = 1024;
    config.limits.data = 1024;
    config.limits.outbox = 8192;
    config.limits.credit = 1;
    let mut net = Net::new(2, &config);
    // The network takes nothing while these are written.
    for n in 0..2_000 {
        net.ask(1, &format!("session-{n}"), put("a", HOUR));
    }
    let counters = net.store(1).counters();
    assert!(
        counters.outbox_full > 0 && counters.outbox < 8192 + 1024,
        "{counters:?}"
    );
    net.run();
    net.pass(2_000);
    assert_eq!(net.store(2).counters().sessions, 2_000);
}

#[test]
fn the_memory_bound_holds_and_all_nodes_agree() {
    let mut config = config(BACKUP, Replication::Sync, false);
    config.limits.sessions = 300;
    config.limits.tombstones = 200;
    let mut net = Net::new(3, &config);
    for n in 0..2_000 {
        net.op(n % 3 + 1, &format!("session-{n}"), put("a", HOUR));
        for store in net.nodes.values() {
            let counters = store.counters();
            assert!(counters.sessions <= 300 + 300 / 8 + 1, "{counters:?}");
            assert!(counters.tombstones <= 200, "{counters:?}");
        }
        net.pass(1);
    }
    assert!(net.sum(|counters| counters.evicted) > 0);
    assert!(net.get(1, "session-1999").is_some(), "the newest stay");
}

#[test]
fn a_whole_cluster_comes_back_from_its_disks() {
    let config = config(BACKUP, Replication::Sync, true);
    let mut net = Net::new(3, &config);
    net.pass(1_000);
    for n in 0..100 {
        net.op(n % 3 + 1, &format!("session-{n}"), put("a", HOUR));
    }
    net.op(2, "session-50", Op::Delete);
    let mut disks = std::mem::take(&mut net.disks);
    let mut net = Net::new(0, &config);
    for node in (1..=3).map(NodeId) {
        net.add(node, &config);
        let now = net.now;
        for batch in disks.remove(&node).unwrap() {
            net.nodes.get_mut(&node).unwrap().load(&batch, now).unwrap();
        }
    }
    net.tell();
    net.pass(7_000);
    assert!(net.all_ready());
    assert_eq!(net.sum(|counters| counters.wipes), 0);
    for n in 0..100 {
        assert_eq!(net.get(1, &format!("session-{n}")).is_some(), n != 50);
    }
}

#[test]
fn a_copy_counts_once_it_is_on_disk() {
    let mut net = Net::new(2, &config(Manager::Delta, Replication::Sync, true));
    net.deaf.push(NodeId(1));
    // Node 1 hears nothing, and its disk is stuck: node 2 waits for it in vain.
    let outcome = net.op(2, "session-disk", put("a", HOUR));
    assert_eq!(done(&outcome), (0, true));
}

#[test]
fn a_damaged_batch_is_refused_whole() {
    let config = config(Manager::Delta, Replication::Sync, true);
    let mut net = Net::new(1, &config);
    net.op(1, "session-good", put("a", HOUR));
    let batch = net.disks[&NodeId(1)].last().unwrap().clone();
    let mut fresh = Store::new(config).unwrap();
    assert!(fresh.load(&batch[..batch.len() - 1], Time(5)).is_err());
    assert_eq!(fresh.counters().sessions, 0);
    fresh.load(&batch, Time(5)).unwrap();
    assert_eq!(fresh.counters().sessions, 1);
}

#[test]
fn an_external_group_passes_through() {
    let mut config = config(Manager::Delta, Replication::Sync, false);
    config.groups.push(GroupConfig {
        name: "outside".into(),
        manager: Manager::External,
        replication: Replication::Sync,
        persistent: false,
    });
    let outside = config.group("outside").unwrap();
    let mut net = Net::new(1, &config);
    for token in [Token(901), Token(902)] {
        net.input(
            NodeId(1),
            Input::Request {
                token,
                group: outside,
                id: b"session-out",
                op: Op::Touch,
            },
        );
    }
    assert_eq!(
        net.external,
        [(NodeId(1), Token(901)), (NodeId(1), Token(902))]
    );
    net.input(
        NodeId(1),
        Input::External {
            token: Token(901),
            outcome: Outcome::Touched,
        },
    );
    assert_eq!(net.replies[&Token(901)], Outcome::Touched);
    net.pass(config.timing.operation);
    assert_eq!(net.replies[&Token(902)], Outcome::Unavailable);
}

#[test]
fn draining_counts_by_route() {
    let mut net = Net::new(3, &config(BACKUP, Replication::Sync, false));
    for n in 0..60 {
        let route = if n % 3 == 0 { "old" } else { "new" };
        net.op(1, &format!("session-{n}"), put(route, HOUR));
    }
    let mut old = (0, 0);
    for store in net.nodes.values() {
        let mut next = Some(0);
        while let Some(from) = next {
            let answer = store.survey(
                &Question {
                    group: group_key("users"),
                    route: Some("old".into()),
                    prefix: None,
                    what: What::Count { from },
                },
                net.now,
            );
            assert!(answer.known && answer.ready);
            let counted = answer.counts.get("old").copied().unwrap_or_default();
            old = (old.0 + counted.sessions, counted.last_ends.max(old.1));
            next = answer.next.map(|next| next as u16);
        }
    }
    assert_eq!(old.0, 20);
    assert!(old.1 <= HOUR && old.1 > HOUR - 60_000);
    // A list shows each once, in pieces.
    let mut seen = 0;
    for store in net.nodes.values() {
        let mut cursor = 0;
        loop {
            let part = store.list(GROUP, cursor, 7, net.now);
            let Some(last) = part.last() else {
                break;
            };
            seen += part.iter().filter(|listed| listed.primary).count();
            cursor = last.cursor + 1;
        }
    }
    assert_eq!(seen, 60);
}

#[test]
fn frames_of_strangers_and_of_other_lives_change_nothing() {
    let config = config(Manager::Delta, Replication::Async, false);
    let mut net = Net::new(2, &config);
    let mut other = Net::new(2, &config);
    other.deaf.push(NodeId(2));
    other.op(1, "session-fake", put("a", HOUR));
    let frame = |incarnation: u64| {
        let mut frame = vec![0; 25];
        let header = balancer_agent::session::codec::Header {
            incarnation,
            to: 2_000,
            lamport: 5,
        };
        header.write(&mut frame);
        frame
    };
    let fenced = net.store(2).counters().frames_fenced;
    for (from, life) in [(NodeId(9), 1_000), (NodeId(1), 999)] {
        let bytes = &frame(life);
        net.input(NodeId(2), Input::Frame { from, bytes });
    }
    assert_eq!(net.store(2).counters().frames_fenced, fenced + 2);
    // What cannot be read is an error, and counted.
    let mut bytes = frame(1_000);
    bytes.push(200);
    let store = net.nodes.get_mut(&NodeId(2)).unwrap();
    let input = Input::Frame {
        from: NodeId(1),
        bytes: &bytes,
    };
    assert!(store.handle(input, net.now).is_err());
    assert_eq!(store.counters().malformed, 1);
}
