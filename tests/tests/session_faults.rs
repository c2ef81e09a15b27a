//! Sessions survive agents that are killed, stopped and parted at random: what was
//! acknowledged is there afterwards, and what has ended is not.
//! `cargo xtask bench session-faults` does the same for ten minutes, and faster.

use std::time::Duration;

use balancer_tests::faults::play::{Plan, play, seed};
use balancer_tests::faults::site::Kind;

fn survives(kind: Kind) {
    let outcome = play(&Plan {
        kind,
        time: Duration::from_secs(14),
        per_second: 150,
        clients: 90,
        sessions: 600,
        seed: seed(),
    });
    println!("{outcome}");
    outcome
        .judge()
        .unwrap_or_else(|what| panic!("{what}\n{outcome}"));
}

#[test]
fn sessions_of_all_nodes_survive() {
    survives(Kind::Delta);
}

#[test]
fn sessions_with_two_backups_survive() {
    survives(Kind::Backup(2));
}
