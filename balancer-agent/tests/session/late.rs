//! What comes late, or from a node that knows little: it must not undo what came after it.

use balancer_agent::session::{Input, Manager, NodeId, Op, Outcome, Replication, Token};

use super::net::{GROUP, HOUR, Net, config, put};

/// Nodes 1 and 2 were parted from node 3, which was killed, and serves alone since.
#[test]
fn a_node_that_has_just_started_makes_nobody_forget() {
    let config = config(Manager::Delta, Replication::Sync, false);
    let mut net = Net::new(3, &config);
    for n in 0..20 {
        net.op(1, &format!("session-{n}"), put("a", HOUR));
    }
    let (small, side) = (NodeId(3), [NodeId(1), NodeId(2)]);
    net.remove(small);
    for node in side {
        net.tell_one(node, &side);
    }
    net.run();
    net.add(small, &config);
    net.tell_one(small, &[small]);
    net.run();
    assert!(net.store(3).ready(), "it is alone");
    net.op(3, "session-alone", put("b", HOUR));
    // Together again. Both of the others had been given up by somebody.
    side.iter().for_each(|node| net.reborn(*node));
    net.tell();
    net.pass(5_000);
    assert!(net.all_ready());
    assert_eq!(net.sum(|counters| counters.wipes), 0);
    for node in 1..=3 {
        for n in 0..20 {
            assert!(
                net.get(node, &format!("session-{n}")).is_some(),
                "{n} at {node}"
            );
        }
        assert!(net.get(node, "session-alone").is_some());
    }
}

/// A write that was handed to a node that then stood still, and done by another.
#[test]
fn a_write_that_is_done_twice_is_one_write() {
    let backup = Manager::Backup { copies: 1 };
    let mut net = Net::new(4, &config(backup, Replication::Sync, false));
    let all: Vec<NodeId> = net.nodes.keys().copied().collect();
    let mut tried = 0;
    for n in 0..40 {
        let id = format!("session-{n}");
        let (holders, _) = net.store(1).holders(GROUP, id.as_bytes()).unwrap();
        let (primary, origin) = (holders[0], NodeId(1));
        if holders.contains(&origin) {
            continue;
        }
        tried += 1;
        net.stopped = Some(primary);
        let asked = net.ask(origin.0, &id, put("a", HOUR));
        net.pass(300);
        // It is given up, and the other holder can do it.
        let rest: Vec<NodeId> = all
            .iter()
            .copied()
            .filter(|node| *node != primary)
            .collect();
        for &node in &rest {
            net.tell_one(node, &rest);
        }
        net.pass(300);
        let outcome = net.replies.remove(&asked);
        assert!(matches!(outcome, Some(Outcome::Done { .. })), "{outcome:?}");
        let outcome = net.op(origin.0, &id, Op::Delete);
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
        // It goes on where it was, and hears that it was given up.
        net.release();
        net.reborn(primary);
        net.tell();
        net.pass(5_000);
        for node in &all {
            assert_eq!(net.get(node.0, &id), None, "{id} at {node:?} has returned");
        }
    }
    assert!(tried > 5, "{tried}");
}

/// A write that waited until nobody waited for it any more, and was tried again then.
#[test]
fn a_late_write_does_not_undo_what_came_after_it() {
    let config = config(Manager::Delta, Replication::Sync, false);
    let mut net = Net::new(2, &config);
    let again = |net: &mut Net, number: u64, op, asked| {
        let token = Token(900 + number);
        net.input(
            NodeId(1),
            Input::Again {
                token,
                group: GROUP,
                id: b"session-late",
                op,
                asked,
            },
        );
        net.run();
        net.replies.remove(&token)
    };
    net.op(2, "session-late", put("a", HOUR));
    let asked = net.now;
    net.pass(10);
    net.op(2, "session-late", Op::Delete);
    net.pass(config.timing.sync + 10);
    let late = again(&mut net, 1, put("b", HOUR), asked);
    assert_eq!(late, Some(Outcome::NotFound));
    assert_eq!(net.get(2, "session-late"), None);
    // One that was asked for afterwards makes a session of its own,
    net.op(2, "session-late", put("c", HOUR));
    // which an end from before does not end.
    let late = again(&mut net, 2, Op::Delete, asked);
    assert_eq!(late, Some(Outcome::NotFound));
    let found = net.get(1, "session-late").map(|session| session.route);
    assert_eq!(found.as_deref(), Some("c"));
}
