//! What the tables hold afterwards: traffic, times, room, fragments.

use anyhow::Result;
use balancer_tests::case::{Rig, Want, client, redirect, reset_for, tx};
use balancer_tests::packets::{Frame, q, tcp_flags};
use balancer_tests::setup::{CLIENTS, SERVERS, frontend, ip};
use balancer_tests::xdp::{Action, delta, settings_for};
use common::counters::Reason;
use common::flow::{Entry, Meta, SEEN_MASK, SEEN_SHIFT};
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use tcp_flags::{ACK, SYN};

#[test]
fn traffic_is_counted_by_frontend_and_backend() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [
        frontend::TCP4,
        frontend::UDP6,
        frontend::SNAT_TCP6,
        frontend::SNAT_UDP4,
    ] {
        let v4 = slot.is_multiple_of(2);
        let service = rig.xdp.frontend_traffic(slot);
        let first = rig.world().frontends[usize::from(slot)].ring[0];
        let server = rig.xdp.backend_traffic(first);
        let talk = rig.open((client(v4, 1), 12_000), slot);
        let mut packets_in = if rig.first(talk.client, slot).ip.payload.proto(v4) == 6 {
            vec![rig.first(talk.client, slot), rig.ask(&talk)]
        } else {
            vec![rig.first(talk.client, slot)]
        };
        let mut packets_out = vec![rig.answer(&talk)];
        for len in [0, 1, 1_000] {
            let ask = rig.ask(&talk).data(&vec![1; len]).padded(&[0; 5]);
            rig.both("ask", &ask.bytes(), CLIENTS);
            packets_in.push(ask);
            let answer = rig.answer(&talk).data(&vec![2; len]);
            rig.both("answer", &answer.bytes(), SERVERS);
            packets_out.push(answer);
        }
        let bytes = |frames: &[Frame]| frames.iter().map(|f| f.bytes().len() as u64).sum::<u64>();
        let want = [
            packets_in.len() as u64,
            bytes(&packets_in),
            packets_out.len() as u64,
            bytes(&packets_out),
            1,
            1,
            0,
            0,
        ];
        for (what, before, after) in [
            ("frontend", service, rig.xdp.frontend_traffic(slot)),
            ("backend", server, rig.xdp.backend_traffic(talk.backend)),
        ] {
            let got: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
            rig.check(
                got == want,
                &format!("{what} of frontend {slot}: want {want:?}, got {got:?}"),
            );
        }
    }
    rig.finish();
    Ok(())
}

/// The present time in the unit of `seen`.
fn now() -> u32 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    let ns = time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
    (ns >> SEEN_SHIFT) as u32 & SEEN_MASK
}

#[test]
fn seen_follows_the_clock_in_both_directions() -> Result<()> {
    let mut rig = Rig::start()?;
    let talk = rig.open((client(true, 2), 12_100), frontend::TCP4);
    let (ask, answer) = (rig.ask(&talk).bytes(), rig.answer(&talk).bytes());
    // The flow's entry: the only one in the table.
    let flows = &rig.xdp.tables.flows4.buckets;
    let (bucket, entry) = (0..flows.len())
        .find_map(|at| {
            let entry = flows.read(at).0.iter().position(|e| e.meta.is_live())?;
            Some((at, entry))
        })
        .expect("the flow");
    let found = flows.read(bucket).0[entry];
    assert_eq!(found.client(), talk.client.0.into());
    assert_eq!(
        (found.port().host(), found.frontend()),
        (12_100, talk.frontend)
    );
    assert_eq!(found.meta.backend(), talk.backend);
    let at = entry * size_of_val(&found) + offset_of!(common::flow::Flow4, meta);
    for (frame, device) in [(&ask, CLIENTS), (&answer, SERVERS)] {
        // The program asks the clock only once in a tick: what it knew two units ago is
        // not to be noted now.
        let begun = now();
        while now().wrapping_sub(begun) & SEEN_MASK < 2 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let word = rig.xdp.tables.flows4.buckets.atomic_u64(bucket, at);
        let old = Meta(word.load(Ordering::Acquire));
        let before = now();
        word.store(old.with_seen(before.wrapping_sub(500)).0, Ordering::Release);
        rig.xdp.run(frame, device)?;
        let word = rig.xdp.tables.flows4.buckets.atomic_u64(bucket, at);
        let new = Meta(word.load(Ordering::Acquire));
        // The coarse clock may lag by a tick, just across a unit.
        let passed = new.seen().wrapping_sub(before.wrapping_sub(1)) & SEEN_MASK;
        assert!(
            passed <= now().wrapping_sub(before).wrapping_add(1),
            "seen {} at {before}",
            new.seen()
        );
        assert_eq!(new.with_seen(0), old.with_seen(0), "only the time changes");
    }
    rig.finish();
    Ok(())
}

/// Live entries in each of the three tables: IPv4, IPv6, half-open.
fn held(rig: &Rig) -> (usize, usize, usize) {
    let t = &rig.xdp.tables;
    let live = |metas: &mut dyn Iterator<Item = Meta>| metas.filter(|m| m.is_live()).count();
    (
        live(
            &mut (0..t.flows4.buckets.len())
                .flat_map(|b| t.flows4.buckets.read(b).0.map(|e| e.meta)),
        ),
        live(
            &mut (0..t.flows6.buckets.len())
                .flat_map(|b| t.flows6.buckets.read(b).0.map(|e| e.meta)),
        ),
        live(
            &mut (0..t.half_open.buckets.len())
                .flat_map(|b| t.half_open.buckets.read(b).0.map(|e| e.meta)),
        ),
    )
}

#[test]
fn syn_flood_leaves_established_flows_alone() -> Result<()> {
    let mut rig = Rig::alone(settings_for(512))?;
    let mut talks = Vec::new();
    for n in 0..200 {
        for slot in [frontend::TCP4, frontend::TCP6] {
            talks.push(rig.open((client(slot == frontend::TCP4, 3), 12_200 + n), slot));
        }
    }
    let before = rig.xdp.reasons();
    for n in 0..20_000u32 {
        let addr = ip(&format!("198.18.{}.{}", n >> 8 & 0xff, n & 0xff));
        let syn = rig.first((addr, 1_024 + (n >> 8) as u16), frontend::TCP4);
        let run = rig.xdp.run(&syn.bytes(), CLIENTS)?;
        assert_eq!(run.action, Action::Redirect, "SYN {n} of the flood");
    }
    let counted = delta(&before, &rig.xdp.reasons());
    rig.check(
        counted.get(&Reason::FlowNew) == Some(&20_000)
            && counted
                .get(&Reason::HalfOpenEvicted)
                .is_some_and(|n| *n > 0)
            && !counted.contains_key(&Reason::FlowEvicted),
        &format!("the flood counted {counted:?}"),
    );
    let (v4, v6, _) = held(&rig);
    rig.check((v4, v6) == (200, 200), &format!("{v4} and {v6} flows left"));
    for talk in talks {
        let ask = rig.ask(&talk);
        let want = redirect(&rig.asked(&talk, &ask));
        rig.expect("an old connection", &ask, CLIENTS, want, &[]);
        let answer = rig.answer(&talk);
        let want = redirect(&rig.answered(&talk, &answer));
        rig.expect("an old connection", &answer, SERVERS, want, &[]);
    }
    rig.finish();
    Ok(())
}

#[test]
fn tables_hold_their_rated_number_of_flows() -> Result<()> {
    const FLOWS: u32 = 20_000;
    let mut rig = Rig::alone(settings_for(FLOWS))?;
    let before = rig.xdp.reasons();
    for (slot, net) in [(frontend::TCP4, "198.18"), (frontend::TCP6, "2001:db8:5")] {
        for n in 0..FLOWS {
            let (a, b, port) = (n / 100 / 100, n / 100 % 100, 20_000 + (n % 100) as u16);
            let addr = if slot == frontend::TCP4 {
                ip(&format!("{net}.{a}.{b}"))
            } else {
                ip(&format!("{net}::{a}:{b}"))
            };
            let syn = rig.first((addr, port), slot);
            rig.xdp.run(&syn.bytes(), CLIENTS)?;
            // The round robin is exact: the backend follows from the count.
            let ring = &rig.world().frontends[usize::from(slot)].ring;
            let talk = balancer_tests::case::Talk {
                client: (addr, port),
                frontend: slot,
                backend: ring[n as usize % ring.len()],
                snat: None,
            };
            let answer = rig.answer(&talk).flags(SYN | ACK).seq(99, 1_001);
            rig.xdp.run(&answer.bytes(), SERVERS)?;
            let ack = rig.ask(&talk).seq(1_001, 100);
            rig.xdp.run(&ack.bytes(), CLIENTS)?;
        }
    }
    let counted = delta(&before, &rig.xdp.reasons());
    let twice = u64::from(FLOWS) * 2;
    rig.check(
        counted == [(Reason::FlowNew, twice), (Reason::FlowEstablished, twice)].into(),
        &format!("counted {counted:?}"),
    );
    let all = FLOWS as usize;
    let got = held(&rig);
    rig.check(got == (all, all, 0), &format!("{got:?} entries"));
    // One packet through the model, so that the case count is not empty.
    rig.both("unrelated", &[0; 60], CLIENTS);
    rig.finish();
    Ok(())
}

#[test]
fn overfull_tables_evict_and_say_so() -> Result<()> {
    let mut rig = Rig::alone(settings_for(64))?;
    for n in 0..2_000 {
        let talk = rig.begin((client(true, 4), 13_000 + n), frontend::UDP4);
        let answer = rig.answer(&talk).bytes();
        rig.xdp.run(&answer, SERVERS)?;
        // The model's tables are never full: it forgets here.
        rig.model.half_open.clear();
    }
    let counted = rig.xdp.reasons();
    let (v4, _, _) = held(&rig);
    let evicted = counted.get(&Reason::FlowEvicted).copied().unwrap_or(0);
    rig.check(
        v4 as u64 + evicted == 2_000 && v4 <= 128 && evicted > 0,
        &format!("{v4} flows held, {evicted} evicted"),
    );
    rig.finish();
    Ok(())
}

/// A datagram cut into parts of `size` bytes.
fn parts(frame: &Frame, id: u32, total: usize, size: usize) -> Vec<Frame> {
    (0..total)
        .step_by(size)
        .map(|at| frame.clone().fragment(id, at, size, at + size < total))
        .collect()
}

#[test]
fn fragments_follow_their_first() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in 0..8u16 {
        let v4 = slot.is_multiple_of(2);
        let tcp = matches!(slot % 4, 0 | 1);
        let talk = rig.open((client(v4, 5), 12_300), slot);
        let data: Vec<u8> = (0..200u8).collect();
        let total = 200 + if tcp { 20 } else { 8 };
        for tags in [vec![], vec![q(5)]] {
            let id = 0x4_0000 + u32::from(slot) * 16 + tags.len() as u32;
            let id = if v4 { id & 0xffff } else { id };
            let ask = rig.ask(&talk).data(&data).tagged(&tags);
            let out = rig.asked(&talk, &ask);
            let pieces = parts(&ask, id, total, 64);
            let want = parts(&out, id, total, 64);
            let later = &pieces[1];
            let unknown = [Reason::FragmentUnknown];
            rig.expect("later before first", later, CLIENTS, Want::Pass, &unknown);
            for (n, (piece, want)) in pieces.iter().zip(&want).enumerate() {
                let what = format!("fragment {n} of frontend {slot}");
                let reasons: &[Reason] = match n {
                    0 => &[],
                    _ => &[Reason::FragmentForwarded],
                };
                rig.expect(&what, piece, CLIENTS, redirect(want), reasons);
            }
            let answer = rig.answer(&talk).data(&data);
            let out = rig.answered(&talk, &answer).tagged(&tags);
            let want = parts(&out, id, total, 64);
            for (n, (piece, want)) in parts(&answer, id, total, 64).iter().zip(&want).enumerate() {
                let what = format!("reply fragment {n} of frontend {slot}");
                let reasons: &[Reason] = match n {
                    0 => &[],
                    _ => &[Reason::FragmentForwarded],
                };
                rig.expect(&what, piece, SERVERS, redirect(want), reasons);
            }
        }
    }
    rig.finish();
    Ok(())
}

/// The server that a datagram's first fragment went to gets the rest, even when
/// it was taken out in between.
#[test]
fn later_fragments_open_nothing() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [frontend::UDP4, frontend::UDP6, frontend::SNAT_UDP4] {
        for established in [false, true] {
            let v4 = slot != frontend::UDP6;
            let who = (client(v4, 6), 12_400 + u16::from(established));
            let talk = if established {
                rig.open(who, slot)
            } else {
                rig.begin(who, slot)
            };
            let ask = rig.ask(&talk).data(&[7; 200]);
            let id = 500 + u32::from(established);
            let pieces = parts(&ask, id, 208, 64);
            let want = parts(&rig.asked(&talk, &ask), id, 208, 64);
            rig.expect("first", &pieces[0], CLIENTS, redirect(&want[0]), &[]);
            rig.backend(talk.backend, |b| b.usable = false);
            let forwarded = [Reason::FragmentForwarded];
            rig.expect("later", &pieces[1], CLIENTS, redirect(&want[1]), &forwarded);
            rig.backend(talk.backend, |b| b.usable = true);
        }
    }
    rig.finish();
    Ok(())
}

/// A flood of half-open flows with snat must not use up the ports for good: the
/// port of a flow that was thrown out is free again after its rest.
#[test]
fn evicted_flows_give_their_snat_ports_back() -> Result<()> {
    let mut rig = Rig::alone(settings_for(64))?;
    for n in 0..1_000u32 {
        let who = (ip(&format!("198.18.{}.{}", n >> 8, n & 0xff)), 1_024);
        let syn = rig.first(who, frontend::SNAT_TCP4);
        rig.xdp.run(&syn.bytes(), CLIENTS)?;
    }
    let (_, _, half_open) = held(&rig);
    let table = &rig.xdp.tables.snat_ports;
    let metas = || (40_000..41_000).map(|port| table.read(port).meta);
    let owned = metas().filter(|m| m.is_live() && !m.is_closed()).count();
    let closed = metas().filter(|m| m.is_live() && m.is_closed()).count();
    let evicted = rig.xdp.reasons().get(&Reason::HalfOpenEvicted).copied();
    rig.check(evicted.is_some_and(|n| n > 0), "nothing was evicted");
    rig.check(
        (owned, closed) == (half_open, 1_000 - half_open),
        &format!("{half_open} flows, {owned} ports owned, {closed} at rest"),
    );
    rig.both("unrelated", &[0; 60], CLIENTS);
    rig.finish();
    Ok(())
}

#[test]
fn without_a_free_snat_port_flows_are_refused() -> Result<()> {
    let mut rig = Rig::start()?;
    let slot = frontend::SNAT_TCP4;
    rig.model.world.snat[0].last_port = 40_002;
    rig.model.world.install(&rig.xdp.tables);
    for n in 0..3 {
        rig.open((client(true, 7), 12_500 + n), slot);
    }
    let syn = rig.first((client(true, 7), 12_503), slot);
    let reasons = [Reason::SnatExhausted, Reason::RefusedReset];
    rig.expect("a fourth", &syn, CLIENTS, tx(&reset_for(&syn)), &reasons);
    rig.finish();
    Ok(())
}
