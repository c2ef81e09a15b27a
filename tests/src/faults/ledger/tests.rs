//! Planted losses and returns, each of which the ledger must see, or excuse.

use super::*;

const ALL: Option<Kept> = Some(Kept::Nodes {
    nodes: NODES as u8,
    all: true,
});

fn told(server: u8, kept: Option<Kept>) -> Seen {
    Seen::Answered { server, kept }
}

/// A ledger with one session at server 0, as the response said.
fn made(kept: Option<Kept>) -> Ledger {
    let mut ledger = Ledger::new(Kind::Delta, 10);
    let job = ledger.next(&mut Rng::new(1), str::to_owned);
    assert_eq!((job.act, job.session), (Act::Make, 0));
    ledger.done(job, told(0, kept));
    ledger
}

fn act(ledger: &mut Ledger, act: Act, seen: Seen) {
    ledger.idle.retain(|&n| n != 0);
    ledger.busy += 1;
    let job = Job {
        session: 0,
        act,
        lives: ledger.lives,
        weather: ledger.weather,
    };
    ledger.done(job, seen);
}

fn held(nodes: usize, route: u8) -> Vec<HashMap<u32, u8>> {
    let node = |node| match node < nodes {
        true => HashMap::from([(0, route)]),
        false => HashMap::new(),
    };
    (0..NODES).map(node).collect()
}

#[test]
fn headers_are_read() {
    let nodes = |nodes, all| Some(Kept::Nodes { nodes, all });
    assert_eq!(Kept::parse("nodes=5"), nodes(5, true));
    assert_eq!(Kept::parse("nodes=0, degraded"), nodes(0, false));
    assert_eq!(Kept::parse("absent"), Some(Kept::Absent));
    assert_eq!(Kept::parse("nodes=5, better"), None);
}

#[test]
fn what_all_had_may_not_go() {
    assert!(made(ALL).judge(&held(NODES, 0)).broken.is_empty());
    let lost = |verdict: Verdict| matches!(verdict.broken[..], [Broken::Lost(_)]);
    assert!(lost(made(ALL).judge(&held(0, 0))));
    assert!(lost(made(ALL).judge(&held(NODES, 1))), "it was never there");
    let differs = made(ALL).judge(&held(NODES - 1, 0));
    assert!(matches!(differs.broken[..], [Broken::Differs(_)]));
}

#[test]
fn what_two_had_may_go_with_these_two() {
    let two = Some(Kept::Nodes {
        nodes: 2,
        all: false,
    });
    let mut ledger = made(two);
    ledger.killed(3);
    ledger.killed(3);
    assert_eq!(made(two).judge(&held(0, 0)).broken.len(), 1);
    ledger.killed(1);
    let verdict = ledger.judge(&held(0, 0));
    assert_eq!((verdict.broken.len(), verdict.excused), (0, 1));
    // Found once, all have it: the same losses are no excuse any more.
    let mut ledger = made(two);
    ledger.killed(3);
    assert!(ledger.judge(&held(NODES, 0)).broken.is_empty());
    ledger.killed(1);
    assert_eq!(ledger.judge(&held(0, 0)).broken.len(), 1);
}

#[test]
fn what_has_gone_with_its_nodes_is_not_visited() {
    // A node that was alone: all that it knew of had it.
    let one = Some(Kept::Nodes {
        nodes: 1,
        all: true,
    });
    let mut ledger = made(one);
    let visited = |ledger: &Ledger| ledger.some_live(&mut Rng::new(1), 1);
    assert_eq!(visited(&ledger), [(0, 0)]);
    ledger.killed(3);
    assert!(visited(&ledger).is_empty());
}

#[test]
fn what_nobody_acknowledged_may_be_or_not() {
    for kept in [
        None,
        Some(Kept::Nodes {
            nodes: 0,
            all: false,
        }),
    ] {
        assert!(made(kept).judge(&held(0, 0)).broken.is_empty());
        assert!(made(kept).judge(&held(NODES, 0)).broken.is_empty());
    }
}

#[test]
fn the_last_move_wins_where_it_surely_came_later() {
    let mut ledger = made(ALL);
    act(&mut ledger, Act::Visit, told(1, ALL));
    assert_eq!(ledger.judge(&held(NODES, 0)).broken.len(), 1);
    let part = Some(Kept::Nodes {
        nodes: 2,
        all: true,
    });
    let mut ledger = made(part);
    act(&mut ledger, Act::Visit, told(1, part));
    assert!(
        ledger.judge(&held(NODES, 0)).broken.is_empty(),
        "on two sides"
    );
    act(&mut ledger, Act::Visit, told(2, part));
    assert_eq!(ledger.judge(&held(NODES, 0)).broken.len(), 1);
}

#[test]
fn what_has_ended_stays_away() {
    let mut ledger = made(ALL);
    act(&mut ledger, Act::End, told(0, ALL));
    assert!(ledger.judge(&held(0, 0)).broken.is_empty());
    for _ in 0..2 {
        let verdict = ledger.judge(&held(1, 0));
        assert!(
            matches!(verdict.broken[..], [Broken::Returned(_)]),
            "even on one node"
        );
    }
    // An end that one node knew of may go with it; the session then is as good as any.
    let one = Some(Kept::Nodes {
        nodes: 1,
        all: true,
    });
    let mut ledger = made(ALL);
    act(&mut ledger, Act::End, told(0, one));
    ledger.killed(2);
    let verdict = ledger.judge(&held(NODES, 0));
    assert_eq!((verdict.broken.len(), verdict.excused), (0, 1));
    let verdict = ledger.judge(&held(NODES, 0));
    assert_eq!((verdict.broken.len(), verdict.excused), (0, 0), "once");
    assert_eq!(ledger.judge(&held(0, 0)).broken.len(), 1);
    // An end that nobody acknowledged promises nothing.
    for seen in [Seen::Failed, told(0, Some(Kept::Absent))] {
        let mut ledger = made(ALL);
        act(&mut ledger, Act::End, seen);
        assert!(ledger.judge(&held(NODES, 0)).broken.is_empty());
        assert!(ledger.judge(&held(0, 0)).broken.is_empty());
    }
}
