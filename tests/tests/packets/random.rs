//! The program against the reference model: random conversations, damaged
//! packets, and changes of health and rings between them.
//!
//! `BALANCER_SEED` repeats a run; `BALANCER_PACKETS` changes its length.

use anyhow::{Context as _, Result};
use balancer_tests::case::{agree, mismatch};
use balancer_tests::generator::{Event, Generator};
use balancer_tests::model::Model;
use balancer_tests::setup::World;
use balancer_tests::xdp::{Loaded, Reasons, delta};

const PACKETS: u64 = 120_000;

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else {
        return Ok(None);
    };
    let number = text.parse().with_context(|| format!("{variable}={text}"))?;
    Ok(Some(number))
}

#[test]
fn program_agrees_with_the_model() -> Result<()> {
    let seed = number("BALANCER_SEED")?.unwrap_or_else(rand::random);
    let packets = number("BALANCER_PACKETS")?.unwrap_or(PACKETS);
    println!("BALANCER_SEED={seed}");
    let mut world = World::standard();
    for snat in &mut world.snat {
        (snat.first_port, snat.last_port) = (10_000, 65_535);
    }
    let mut xdp = Loaded::shared(&world)?;
    let mut model = Model::new(&world);
    let mut generator = Generator::new(seed);
    let start = xdp.reasons();
    let mut before = start.clone();
    let mut actions = std::collections::BTreeMap::<String, u64>::new();
    let mut packet = 0;
    while packet < packets {
        match generator.next(&mut model) {
            Event::Backend(slot) => model.world.write_backend(&xdp.tables, slot),
            Event::Frontend(slot) => {
                model.world.write_ring(&xdp.tables, slot);
                model.world.write_frontend(&xdp.tables, slot);
            }
            Event::Frame {
                what,
                bytes,
                ifindex,
            } => {
                let got = xdp.run(&bytes, ifindex)?;
                let after = xdp.reasons();
                let counted = delta(&before, &after);
                before = after;
                let want = model.step(&bytes, ifindex, Some(&got.frame));
                let events: Vec<_> = xdp
                    .events()
                    .iter()
                    .map(|e| (e.kind, e.backend as u16, e.generation as u8))
                    .collect();
                assert!(
                    agree(&want.run, &got) && want.reasons == counted && want.events == events,
                    "BALANCER_SEED={seed}, packet {packet}\n{}\nevents: want {:?}, got {events:?}",
                    mismatch(
                        &what,
                        &bytes,
                        ifindex,
                        ("model", &want.run, &want.reasons),
                        ("program", &got, &counted)
                    ),
                    want.events,
                );
                *actions.entry(format!("{:?}", got.action)).or_default() += 1;
                packet += 1;
            }
        }
    }
    let counted = delta(&start, &before);
    println!("{packets} packets: {actions:?}\n{counted:?}");
    covered(&counted);
    Ok(())
}

/// A generator that no longer reaches something would test nothing; a full run
/// meets every reason that a lone CPU with room in its tables can count.
fn covered(counted: &Reasons) {
    use common::counters::Reason::*;
    let out_of_reach = [
        FlowEvicted,
        HalfOpenEvicted,
        FlowTableBusy,
        SnatExhausted,
        AdjustFailed,
        EventLost,
        TableInconsistent,
    ];
    let total: u64 = counted.values().sum();
    if total < 50_000 {
        return;
    }
    for reason in common::counters::Reason::ALL {
        assert!(
            counted.contains_key(reason) || out_of_reach.contains(reason),
            "no packet was counted as {}",
            reason.name()
        );
    }
}
