//! What a node remembers of the others: by it they decide whether what they bring back counts.

use super::super::super::codec::Record;
use super::*;

const OTHER: NodeId = NodeId(8);

/// What an agent that starts now has.
fn restarted(place: &Place) -> Node {
    let mut node = Node::empty();
    assert!(node.load(&mut place.open()));
    node
}

/// It lives on until then.
fn live_until(node: &mut Node, now: u64) {
    while node.now.0 < now {
        node.now = Time(now.min(node.now.0 + 500));
        node.handle(Input::Tick);
        node.poll();
    }
}

/// Frames that it has for the other.
fn frames(node: &mut Node) -> usize {
    let mut frames = 0;
    while let Some(output) = node.store.poll_output() {
        match output {
            Output::Send { to, .. } => {
                frames += usize::from(to == OTHER);
                node.handle(Input::Sent { to });
            }
            Output::Persist { seq, batch } => node.batches.push((seq, batch)),
            _ => {}
        }
    }
    frames
}

#[test]
fn a_short_life_says_nothing_about_those_it_never_met() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    node.put(&id(1), "s1");
    live_until(&mut node, 20_000);
    node.write(&mut file);
    drop(file);
    let mut again = restarted(&place);
    assert!(!again.store.sure());
    // Lives count together: what one knew is there in the next.
    let absence = config().timing.absence;
    again.serve();
    live_until(&mut again, absence - 21_000);
    assert!(!again.store.sure());
    live_until(&mut again, absence);
    assert!(again.store.sure());
    live_until(&mut again, absence + 20_000);
    again.write(&mut place.open());
    assert!(restarted(&place).store.sure());
}

#[test]
fn who_is_helped_to_serve_is_known_after_a_crash() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    live_until(&mut node, config().timing.absence + 20_000);
    node.write(&mut file);
    assert!(node.store.sure());
    let member = |node| Member {
        node,
        incarnation: 1,
        groups: None,
    };
    node.handle(Input::Members {
        incarnation: 1,
        members: &[member(IDENTITY.node), member(OTHER)],
    });
    node.write(&mut file);
    frames(&mut node);
    let question = || Record::Digests {
        view: 0,
        group: keys()[0],
        nonce: 1,
        items: vec![(0, 0)],
    };
    for _ in 0..2 {
        node.store.take_repair(OTHER, question());
        assert_eq!(frames(&mut node), 0, "not before the disk knows it");
    }
    node.write(&mut file);
    node.store.take_repair(OTHER, question());
    assert_eq!(frames(&mut node), 1);
    drop(file);
    assert!(restarted(&place).store.seen_lately(OTHER));
}

#[test]
fn a_disk_that_fails_keeps_nobody_from_serving() {
    let place = Place::new();
    let mut file = place.open();
    let mut node = Node::ready();
    live_until(&mut node, config().timing.absence + 20_000);
    node.write(&mut file);
    node.store.note_seen(OTHER);
    assert!(!node.store.would_know());
    node.now = Time(node.now.0 + config().timing.operation + 1);
    node.handle(Input::Tick);
    assert!(node.store.would_know());
}
