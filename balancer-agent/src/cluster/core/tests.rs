//! Several cores in memory: who finds whom, who is given up, and who is let in.

mod net;

use std::collections::BTreeSet;

use rand::Rng as _;

use super::*;
use crate::cluster::message::NAME_MAX;
use crate::cluster::seal::Rejected;
use net::*;

#[test]
fn nodes_find_each_other_from_one_seed() {
    let mut net = Net::cluster(1, 5);
    let took = net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3, 4, 5]));
    println!("together after {took:?}");
    // Nobody is suspected without a reason, and nobody is called any more.
    for host in net.hosts.values_mut() {
        host.outputs.clear();
    }
    net.run(60 * SECOND);
    assert!(net.together(&[1, 2, 3, 4, 5]));
    for host in net.hosts.values() {
        assert!(host.outputs.is_empty(), "{:?}", host.outputs);
    }
    for (_, member) in net.hosts[&1].core.members() {
        let took = member.round_trip.unwrap();
        assert!((2 * MS..=40 * MS).contains(&took), "{took:?}");
    }
}

#[test]
fn the_order_of_starts_does_not_matter() {
    // The seed comes last, and is its own seed.
    let mut net = Net::new(2);
    (2..=5).for_each(|host| net.start(host, &[1], 1));
    net.run(10 * SECOND);
    assert!((2..=5).all(|host| net.hosts[&host].core.members().count() == 0));
    net.start(1, &[1], 1);
    net.wait("all together", 10 * SECOND, |n| {
        n.together(&[1, 2, 3, 4, 5])
    });
}

#[test]
fn a_crash_is_noticed_by_all_in_time() {
    for seed in 0..20 {
        let mut net = Net::cluster(seed, 5);
        net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3, 4, 5]));
        net.run(MS * (seed as u32 * 137));
        net.kill(3);
        let others = [1, 2, 4, 5];
        net.wait("suspicion", detection(5), |n| {
            n.state(3, 1) == Some(State::Suspect)
        });
        let took = net.wait("down", detection(5), |n| n.all_see(&others, 3, State::Down));
        println!("down at all {took:?} later");
        assert!(net.together(&others), "{}", net.show());
        // It comes back as another.
        let former = net.hosts[&1].core.members().find(|(i, _)| *i == id(3));
        let former = former.unwrap().1.record.incarnation;
        net.start(3, &[1], 1);
        net.wait("the return", 5 * SECOND, |n| n.together(&[1, 2, 3, 4, 5]));
        assert!(net.hosts[&3].core.own().incarnation > former);
        assert!(!net.hosts[&3].outputs.contains(&"renewed"));
    }
}

#[test]
fn a_quick_restart_is_a_new_life_without_being_down() {
    let mut net = Net::cluster(3, 3);
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3]));
    net.kill(1);
    net.start(1, &[], 1);
    // It has no seeds: the others probe it, and it learns of them.
    net.wait("all together", 10 * SECOND, |n| n.together(&[1, 2, 3]));
    assert_eq!(net.hosts[&1].core.own().incarnation.count(), 2);
}

#[test]
fn a_lost_disk_does_not_bring_back_a_former_life() {
    let mut net = Net::cluster(4, 3);
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3]));
    for _ in 0..3 {
        net.kill(3);
        net.start(3, &[1], 1);
        net.wait("all together", 10 * SECOND, |n| n.together(&[1, 2, 3]));
    }
    let former = net.hosts[&3].core.own().incarnation;
    assert_eq!(former.count(), 4);
    net.kill(3);
    net.lives.clear();
    net.start(3, &[1], 1);
    assert_eq!(net.hosts[&3].core.own().incarnation.count(), 1);
    net.wait("all together", 10 * SECOND, |n| n.together(&[1, 2, 3]));
    assert!(net.hosts[&3].core.own().incarnation > former);
    // Also when it knows nobody, and the others have given it up.
    let former = net.hosts[&3].core.own().incarnation;
    net.kill(3);
    net.lives.clear();
    net.wait("down", detection(3), |n| n.all_see(&[1, 2], 3, State::Down));
    net.start(3, &[], 1);
    net.wait("all together", 10 * SECOND, |n| n.together(&[1, 2, 3]));
    assert!(net.hosts[&3].core.own().incarnation > former);
    assert_eq!(
        net.hosts[&3]
            .outputs
            .iter()
            .filter(|o| **o == "renewed")
            .count(),
        1
    );
}

#[test]
fn a_partition_heals_and_the_lost_begin_new_lives() {
    for seed in 0..10 {
        let mut net = Net::cluster(seed, 5);
        let all = [1, 2, 3, 4, 5];
        net.wait("all together", 5 * SECOND, |n| n.together(&all));
        let before: Vec<_> = all.map(|h| net.hosts[&h].core.own().incarnation).into();
        net.part(&[1, 2], &[3, 4, 5]);
        net.wait("two sides", detection(5), |n| {
            (3..=5).all(|of| n.all_see(&[1, 2], of, State::Down))
                && (1..=2).all(|of| n.all_see(&[3, 4, 5], of, State::Down))
        });
        assert!(net.together(&[1, 2]) && net.together(&[3, 4, 5]));
        net.cut.clear();
        let took = net.wait("one side", 20 * SECOND, |n| n.together(&all));
        println!("healed after {took:?}");
        for (host, before) in all.iter().zip(before) {
            assert!(net.hosts[host].core.own().incarnation > before);
        }
        // And then there is peace.
        net.run(10 * SECOND);
        for host in net.hosts.values_mut() {
            host.outputs.clear();
        }
        net.run(60 * SECOND);
        for host in net.hosts.values() {
            assert!(host.outputs.is_empty(), "{:?}", host.outputs);
        }
    }
}

#[test]
fn a_broken_path_between_two_is_no_death() {
    let mut net = Net::cluster(5, 5);
    let all = [1, 2, 3, 4, 5];
    net.wait("all together", 5 * SECOND, |n| n.together(&all));
    net.part(&[2], &[4]);
    for _ in 0..600 {
        net.run(100 * MS);
        // Others answer for them: they are not even suspected.
        assert_eq!(net.state(4, 2), Some(State::Alive));
        assert_eq!(net.state(2, 4), Some(State::Alive));
    }
}

#[test]
fn loss_and_repetition_kill_nobody() {
    let mut net = Net::cluster(6, 5);
    let all = [1, 2, 3, 4, 5];
    (net.loss, net.repeat) = (0.1, 0.2);
    net.wait("all together", 10 * SECOND, |n| n.together(&all));
    for _ in 0..1200 {
        net.run(100 * MS);
        for host in all {
            assert!(!net.all_see(&all, host, State::Down));
        }
    }
    assert!(net.hosts.values().all(|h| !h.outputs.contains(&"renewed")));
    let repeated = |h: &Host| h.rejected.contains(&Rejected::Repeated);
    assert!(net.hosts.values().all(repeated));
}

#[test]
fn who_slept_blames_nobody() {
    let mut net = Net::cluster(7, 4);
    let all = [1, 2, 3, 4];
    net.wait("all together", 5 * SECOND, |n| n.together(&all));
    // It falls asleep when it has just begun to suspect somebody.
    net.part(&[2], &[1, 3, 4]);
    net.wait("suspicion", detection(4), |n| {
        [1, 3, 4]
            .iter()
            .any(|of| n.state(*of, 2) == Some(State::Suspect))
    });
    net.hosts.get_mut(&2).unwrap().asleep = true;
    net.cut.clear();
    let others = [1, 3, 4];
    net.wait("down", detection(4), |n| n.all_see(&others, 2, State::Down));
    net.run(30 * SECOND);
    net.hosts.get_mut(&2).unwrap().asleep = false;
    // The sleeper suspects nobody to death, and comes back as a new life.
    let before = net.hosts[&2].core.own().incarnation;
    let deadline = net.now + 20 * SECOND;
    while !(net.together(&all) && net.hosts[&2].core.own().incarnation > before) {
        assert!(net.now < deadline, "{}", net.show());
        let until = net.now + 10 * MS;
        while net.step(until) {}
    }
    // Whom it had given up would have begun a new life.
    for of in others {
        assert!(!net.hosts[&of].outputs.contains(&"renewed"), "{of}");
    }
}

#[test]
fn another_secret_learns_and_changes_nothing() {
    let mut net = Net::cluster(8, 3);
    net.start(9, &[1, 2, 3], 2);
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3]));
    net.run(30 * SECOND);
    assert_eq!(net.hosts[&9].core.members().count(), 0);
    for host in 1..=3 {
        let host = &net.hosts[&host];
        assert_eq!(host.core.members().count(), 2);
        assert!(host.rejected.contains(&Rejected::Secret));
        assert!(host.rejected.iter().all(|r| *r == Rejected::Secret));
    }
}

#[test]
fn what_was_recorded_is_of_no_use() {
    let mut net = Net::new(9);
    net.recorded = Some(Vec::new());
    (1..=3).for_each(|host| net.start(host, &[1], 1));
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3]));
    net.kill(3);
    net.wait("down", detection(3), |n| n.all_see(&[1, 2], 3, State::Down));
    // A new process at the same address knows nobody, and is told of the past only.
    net.kill(1);
    net.kill(2);
    net.wire.clear();
    net.start(1, &[], 1);
    net.run(SECOND);
    let recorded = net.recorded.take().unwrap();
    assert!(recorded.len() > 50);
    for _ in 0..3 {
        for (_, bytes) in &recorded {
            net.deliver(1, bytes.clone());
            net.run(MS);
        }
    }
    let host = &net.hosts[&1];
    assert_eq!(host.core.members().count(), 0);
    assert!(!host.outputs.contains(&"renewed"), "{:?}", host.outputs);
}

#[test]
fn a_goodbye_is_heard_at_once() {
    let mut net = Net::cluster(10, 4);
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3, 4]));
    net.input(2, Input::Leave);
    assert_eq!(net.hosts[&2].core.poll_timeout(), None);
    net.wait("the goodbye", 100 * MS, |n| {
        n.all_see(&[1, 3, 4], 2, State::Left)
    });
    net.kill(2);
    net.start(2, &[1], 1);
    net.wait("the return", 5 * SECOND, |n| n.together(&[1, 2, 3, 4]));
}

#[test]
fn syncing_is_told() {
    let mut net = Net::cluster(11, 3);
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3]));
    net.input(3, Input::Syncing(true));
    net.wait("syncing", SECOND, |n| {
        n.all_see(&[1, 2, 3], 3, State::Syncing)
    });
    net.input(3, Input::Syncing(false));
    net.wait("alive", SECOND, |n| n.together(&[1, 2, 3]));
    net.input(3, Input::About(b"groups".to_vec()));
    net.wait("what it says", SECOND, |n| {
        (1..=3).all(|at| {
            let nodes = n.hosts[&at].core.nodes();
            nodes
                .iter()
                .any(|node| node.id == id(3) && &*node.about == b"groups")
        })
    });
    // Too much is not said at all.
    net.input(3, Input::About(vec![0; ABOUT_MAX + 1]));
    net.run(SECOND);
    assert_eq!(net.hosts[&3].core.own().about, b"groups");
}

#[test]
fn a_lost_link_speeds_things_up() {
    let mut net = Net::cluster(12, 5);
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3, 4, 5]));
    net.kill(5);
    for host in 1..=4 {
        net.input(host, Input::LinkLost(id(5)));
    }
    let timing = timing();
    let most = timing.probe_interval + timing.suspect_timeout + 100 * MS;
    net.wait("down", most, |n| n.all_see(&[1, 2, 3, 4], 5, State::Down));
    // A link that breaks for another reason harms nobody.
    net.input(1, Input::LinkLost(id(2)));
    net.run(5 * SECOND);
    assert!(net.together(&[1, 2, 3, 4]));
}

#[test]
fn two_nodes_of_one_name_are_told_and_slow_down() {
    let mut net = Net::cluster(13, 3);
    net.wait("all together", 5 * SECOND, |n| n.together(&[1, 2, 3]));
    net.start_as(4, "n3", &[1], 1);
    net.run(120 * SECOND);
    let conflicts = |h: usize| {
        let outputs = &net.hosts[&h].outputs;
        outputs.iter().filter(|o| **o == "conflict").count()
    };
    assert!(conflicts(3) + conflicts(4) > 0);
    let renewals = |h: usize| {
        let outputs = &net.hosts[&h].outputs;
        outputs.iter().filter(|o| **o == "renewed").count()
    };
    assert!(
        renewals(3) + renewals(4) < 30,
        "{} {}",
        renewals(3),
        renewals(4)
    );
}

#[test]
fn the_longest_names_fit() {
    let mut net = Net::new(14);
    for host in 1..=20 {
        let name = format!("{host:0>width$}", width = NAME_MAX);
        net.start_as(host, &name, &[1], 1);
    }
    net.wait("all together", 30 * SECOND, |n| {
        n.hosts.values().all(|h| {
            let live = h.core.members().filter(|(_, m)| m.live());
            live.count() == 19
        })
    });
}

#[test]
fn a_run_can_be_repeated() {
    let run = || {
        let mut net = Net::cluster(15, 5);
        (net.loss, net.repeat) = (0.05, 0.05);
        net.run(5 * SECOND);
        net.kill(2);
        net.run(20 * SECOND);
        (net.sent, net.show())
    };
    assert_eq!(run(), run());
}

#[test]
fn tables_agree_after_chaos() {
    for seed in 0..40 {
        // With fewer seeds, two that are left may never have heard of each other.
        const ALL: [usize; 5] = [1, 2, 3, 4, 5];
        let mut net = Net::new(seed);
        ALL.iter().for_each(|host| net.start(*host, &ALL, 1));
        let mut up: BTreeSet<usize> = (1..=5).collect();
        (net.loss, net.repeat) = (0.1, 0.1);
        for _ in 0..40 {
            let host = net.rng.random_range(1..=5);
            match net.rng.random_range(0..4) {
                0 if up.len() > 2 && up.remove(&host) => net.kill(host),
                1 if up.insert(host) => net.start(host, &ALL, 1),
                2 => {
                    let other = net.rng.random_range(1..=5);
                    net.part(&[host], &[other]);
                }
                _ => net.cut.clear(),
            }
            let time = MS * net.rng.random_range(0..4_000);
            net.run(time);
        }
        net.cut.clear();
        (net.loss, net.repeat) = (0.0, 0.0);
        let up: Vec<usize> = up.into_iter().collect();
        net.wait("agreement", 120 * SECOND, |n| {
            n.together(&up)
                && (1..=5).filter(|of| !up.contains(of)).all(|of| {
                    up.iter()
                        .all(|at| !matches!(n.state(of, *at), Some(State::Alive)))
                })
        });
    }
}
