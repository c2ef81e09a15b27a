//! What flows remember: handshakes, ends, reuse, the round robin, health.

use anyhow::Result;
use balancer_tests::case::{
    CLIENT_SEQ, Rig, SERVER_SEQ, Talk, Want, client, redirect, reset_for, tx,
};
use balancer_tests::packets::{Frame, q, tcp_flags};
use balancer_tests::setup::{CLIENTS, CLIENTS_MAC, SERVERS, frontend};
use common::counters::Reason;
use tcp_flags::{ACK, FIN, PSH, RST, SYN};

const TCPS: [u16; 4] = [
    frontend::TCP4,
    frontend::TCP6,
    frontend::SNAT_TCP4,
    frontend::SNAT_TCP6,
];
const UDPS: [u16; 4] = [
    frontend::UDP4,
    frontend::UDP6,
    frontend::SNAT_UDP4,
    frontend::SNAT_UDP6,
];

fn is_v4(slot: u16) -> bool {
    slot.is_multiple_of(2)
}

/// A segment from the client that must be forwarded.
fn asks(rig: &mut Rig, what: &str, talk: &Talk, frame: &Frame, reasons: &[Reason]) {
    let want = redirect(&rig.asked(talk, frame));
    rig.expect(what, frame, CLIENTS, want, reasons);
}

/// A segment from the backend that must be returned.
fn answers(rig: &mut Rig, what: &str, talk: &Talk, frame: &Frame, reasons: &[Reason]) {
    let want = redirect(&rig.answered(talk, frame));
    rig.expect(what, frame, SERVERS, want, reasons);
}

#[test]
fn handshake_step_by_step() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS {
        let talk = rig.begin((client(is_v4(slot), 1), 5_000), slot);
        let ask = |rig: &Rig, flags, ack| rig.ask(&talk).flags(flags).seq(CLIENT_SEQ + 1, ack);
        let expected = SERVER_SEQ.wrapping_add(1);

        let early = ask(&rig, ACK, expected);
        asks(&mut rig, "ACK before any answer", &talk, &early, &[]);
        let syn = rig.first(talk.client, slot);
        asks(&mut rig, "SYN again", &talk, &syn, &[]);
        let syn_ack = rig.answer(&talk).flags(SYN | ACK);
        let syn_ack = syn_ack.seq(SERVER_SEQ, CLIENT_SEQ + 1);
        answers(&mut rig, "SYN+ACK", &talk, &syn_ack, &[]);
        asks(&mut rig, "SYN after the answer", &talk, &syn, &[]);
        let beyond = expected.wrapping_add(1 << 20);
        for wrong in [beyond.wrapping_add(77), expected.wrapping_sub(1), beyond] {
            let ack = ask(&rig, ACK, wrong);
            asks(&mut rig, "ACK with another number", &talk, &ack, &[]);
        }
        let ack = ask(&rig, ACK, expected);
        asks(&mut rig, "ACK", &talk, &ack, &[Reason::FlowEstablished]);
        asks(&mut rig, "ACK again", &talk, &ack, &[]);
        answers(&mut rig, "late SYN+ACK", &talk, &syn_ack, &[]);
        let data = ask(&rig, ACK | PSH, expected).data(b"GET / HTTP/1.1\r\n\r\n");
        asks(&mut rig, "data", &talk, &data, &[]);
        asks(&mut rig, "SYN within the connection", &talk, &syn, &[]);
    }
    rig.finish();
    Ok(())
}

/// When the first ACK was lost, a later one acknowledges data too.
#[test]
fn later_ack_can_confirm_a_connection() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS {
        for (n, beyond) in [1, 1_448, (1 << 20) - 1].into_iter().enumerate() {
            let talk = rig.begin((client(is_v4(slot), 2), 5_010 + n as u16), slot);
            let syn_ack = rig.answer(&talk).flags(SYN | ACK);
            let syn_ack = syn_ack.seq(SERVER_SEQ - 5, CLIENT_SEQ + 1);
            answers(&mut rig, "SYN+ACK", &talk, &syn_ack, &[]);
            let ack = (SERVER_SEQ - 4).wrapping_add(beyond);
            let both = rig.ask(&talk).flags(SYN | ACK).seq(CLIENT_SEQ, ack);
            asks(&mut rig, "SYN+ACK confirms nothing", &talk, &both, &[]);
            let ack = rig.ask(&talk).seq(CLIENT_SEQ + 1, ack);
            asks(&mut rig, "ACK", &talk, &ack, &[Reason::FlowEstablished]);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn first_data_can_confirm_a_connection() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS {
        let talk = rig.begin((client(is_v4(slot), 2), 5_001), slot);
        let syn_ack = rig.answer(&talk).flags(SYN | ACK).seq(41, CLIENT_SEQ + 1);
        answers(&mut rig, "SYN+ACK", &talk, &syn_ack, &[]);
        let data = rig.ask(&talk).flags(ACK | PSH).data(b"hello");
        let data = data.seq(CLIENT_SEQ + 1, 42);
        asks(&mut rig, "data", &talk, &data, &[Reason::FlowEstablished]);
    }
    rig.finish();
    Ok(())
}

#[test]
fn a_closed_port_can_be_used_again() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS {
        for (n, ending) in [
            "both FIN",
            "client FIN",
            "server FIN",
            "client RST",
            "server RST",
        ]
        .iter()
        .enumerate()
        {
            let who = (client(is_v4(slot), 3), 5_100 + n as u16);
            let talk = rig.open(who, slot);
            if matches!(*ending, "both FIN" | "client FIN") {
                let fin = rig.ask(&talk).flags(FIN | ACK);
                asks(&mut rig, ending, &talk, &fin, &[]);
            }
            if matches!(*ending, "both FIN" | "server FIN") {
                let fin = rig.answer(&talk).flags(FIN | ACK);
                answers(&mut rig, ending, &talk, &fin, &[]);
                let last = rig.ask(&talk);
                asks(&mut rig, "last ACK", &talk, &last, &[]);
            }
            if *ending == "client RST" {
                let rst = rig.ask(&talk).flags(RST);
                asks(&mut rig, ending, &talk, &rst, &[]);
            }
            if *ending == "server RST" {
                let rst = rig.answer(&talk).flags(RST | ACK);
                answers(&mut rig, ending, &talk, &rst, &[]);
            }
            let syn = rig.first(who, slot).seq(90_000, 0);
            let bytes = syn.bytes();
            let got = rig.both(ending, &bytes, CLIENTS);
            let again = rig.talk(who, slot);
            let want = redirect(&rig.asked(&again, &syn));
            rig.compare(ending, &bytes, CLIENTS, &got, want, &[Reason::FlowNew]);
            rig.check(
                again.backend != talk.backend,
                &format!("{ending}: the round robin has not moved on"),
            );
            // The new connection's answer must not be taken for the old one's.
            let syn_ack = rig.answer(&again).flags(SYN | ACK).seq(7, 90_001);
            answers(&mut rig, "SYN+ACK of the new one", &again, &syn_ack, &[]);
            let ack = rig.ask(&again).seq(90_001, 8);
            asks(
                &mut rig,
                "ACK of the new one",
                &again,
                &ack,
                &[Reason::FlowEstablished],
            );
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn client_reset_frees_a_half_open_flow() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS {
        let talk = rig.begin((client(is_v4(slot), 4), 5_200), slot);
        let rst = rig.ask(&talk).flags(RST);
        asks(&mut rig, "RST", &talk, &rst, &[]);
        let stray = rig.ask(&talk);
        let want = tx(&reset_for(&stray));
        let reasons = [Reason::FlowUnknown, Reason::RefusedReset];
        rig.expect("segment after it", &stray, CLIENTS, want, &reasons);
        let answer = rig.answer(&talk).flags(SYN | ACK);
        rig.expect(
            "answer after it",
            &answer,
            SERVERS,
            Want::Pass,
            &[Reason::ReplyUnknown],
        );
    }
    rig.finish();
    Ok(())
}

#[test]
fn backend_that_refuses_is_told() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS {
        for watched in [false, true] {
            let talk = rig.begin((client(is_v4(slot), 5), 5_300 + u16::from(watched)), slot);
            rig.backend(talk.backend, |b| b.watched = watched);
            // Program and model agree on the events: `expect` compares them.
            let syn = rig.first(talk.client, slot);
            asks(&mut rig, "SYN unanswered", &talk, &syn, &[]);
            let rst = rig.answer(&talk).flags(RST | ACK).seq(0, CLIENT_SEQ + 1);
            let before = rig.xdp.backend_traffic(talk.backend);
            answers(&mut rig, "RST", &talk, &rst, &[Reason::SynRefused]);
            let after = rig.xdp.backend_traffic(talk.backend);
            rig.check(after[6] == before[6] + 1, "the backend's refused count");
            rig.backend(talk.backend, |b| b.watched = false);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn events_name_backend_and_generation() -> Result<()> {
    use common::tables::{Event, event};
    let mut rig = Rig::start()?;
    let talk = rig.begin((client(true, 6), 5_400), frontend::TCP4);
    rig.backend(talk.backend, |b| {
        b.watched = true;
        b.generation = 1;
    });
    let syn = rig.first(talk.client, talk.frontend);
    rig.xdp.run(&syn.bytes(), CLIENTS)?;
    let rst = rig.answer(&talk).flags(RST | ACK);
    rig.xdp.run(&rst.bytes(), SERVERS)?;
    let told = |kind| Event {
        kind,
        backend: u32::from(talk.backend),
        generation: 1,
        reserved: 0,
    };
    let events = rig.xdp.events();
    rig.check(
        events == [told(event::SYN_UNANSWERED), told(event::SYN_REFUSED)],
        &format!("{events:?}"),
    );
    rig.finish();
    Ok(())
}

#[test]
fn datagrams_are_promoted_by_an_answer() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in UDPS {
        let talk = rig.begin((client(is_v4(slot), 7), 5_500), slot);
        let ask = rig.ask(&talk);
        asks(&mut rig, "a second question", &talk, &ask, &[]);
        let answer = rig.answer(&talk);
        let promoted = [Reason::FlowEstablished];
        answers(&mut rig, "answer", &talk, &answer, &promoted);
        answers(&mut rig, "answer", &talk, &answer, &[]);
        asks(&mut rig, "a third question", &talk, &ask, &[]);
    }
    rig.finish();
    Ok(())
}

#[test]
fn round_robin_is_exact() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS.into_iter().chain(UDPS) {
        let ring = rig.world().frontends[usize::from(slot)].ring.clone();
        for n in 0..30u16 {
            let talk = rig.begin((client(is_v4(slot), 8), 6_000 + n), slot);
            let want = ring[usize::from(n) % ring.len()];
            rig.check(
                talk.backend == want,
                &format!("flow {n} of frontend {slot}: {} not {want}", talk.backend),
            );
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn weights_are_the_ring() -> Result<()> {
    let mut rig = Rig::start()?;
    // 5:1:1, smoothly interleaved, and a ring of more than one chunk.
    let weighted = vec![0, 0, 1, 0, 2, 0, 0];
    let long: Vec<u16> = (0..100).map(|n| [0, 1, 2][n % 3 * (n % 2)]).collect();
    for ring in [weighted, long] {
        rig.reset();
        rig.frontend(frontend::TCP4, |f| f.ring.clone_from(&ring));
        for n in 0..ring.len() * 2 + 3 {
            let talk = rig.begin((client(true, 9), 7_000 + n as u16), frontend::TCP4);
            rig.check(
                talk.backend == ring[n % ring.len()],
                &format!("flow {n}: backend {}", talk.backend),
            );
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn unusable_backends_are_skipped() -> Result<()> {
    let mut rig = Rig::start()?;
    let slot = frontend::TCP4;
    for (n, taken_out) in ["not usable", "not present"].iter().enumerate() {
        rig.reset();
        rig.backend(0, |b| match n {
            0 => b.usable = false,
            _ => b.present = false,
        });
        for (port, (want, skipped)) in (8_000..).zip([(1, 1), (2, 0), (1, 1), (2, 0)]) {
            let who = (client(true, 10), port);
            let syn = rig.first(who, slot);
            let bytes = syn.bytes();
            let got = rig.both(taken_out, &bytes, CLIENTS);
            let talk = rig.talk(who, slot);
            rig.check(
                talk.backend == want,
                &format!("{taken_out}: {}", talk.backend),
            );
            let mut reasons = vec![Reason::BackendSkipped; skipped];
            reasons.push(Reason::FlowNew);
            let want = redirect(&rig.asked(&talk, &syn));
            rig.compare(taken_out, &bytes, CLIENTS, &got, want, &reasons);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn flows_of_a_dead_backend_start_anew() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS.into_iter().chain(UDPS) {
        for established in [false, true] {
            let who = (client(is_v4(slot), 11), 8_100 + u16::from(established));
            let talk = if established {
                rig.open(who, slot)
            } else {
                rig.begin(who, slot)
            };
            rig.backend(talk.backend, |b| b.usable = false);
            if TCPS.contains(&slot) {
                // Drained, not stopped: what runs goes on.
                let ask = rig.ask(&talk).data(b"more");
                asks(&mut rig, "segment", &talk, &ask, &[]);
            }
            let first = rig.first(who, slot);
            let bytes = first.bytes();
            let what = format!("frontend {slot}, established {established}: first packet again");
            let got = rig.both(&what, &bytes, CLIENTS);
            let again = rig.talk(who, slot);
            rig.check(again.backend != talk.backend, &what);
            let skipped = got.1.get(&Reason::BackendSkipped).copied().unwrap_or(0);
            let mut reasons = vec![Reason::BackendSkipped; skipped as usize];
            reasons.push(Reason::FlowNew);
            let want = redirect(&rig.asked(&again, &first));
            rig.compare(&what, &bytes, CLIENTS, &got, want, &reasons);
            rig.backend(talk.backend, |b| b.usable = true);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn a_slot_with_a_new_owner_is_no_backend_of_old_flows() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS.into_iter().chain(UDPS) {
        let talk = rig.open((client(is_v4(slot), 12), 8_200), slot);
        rig.backend(talk.backend, |b| {
            b.generation = b.generation.wrapping_add(1)
        });
        if TCPS.contains(&slot) {
            let ask = rig.ask(&talk);
            let want = tx(&reset_for(&ask));
            rig.expect(
                "segment",
                &ask,
                CLIENTS,
                want,
                &[Reason::FlowStale, Reason::FlowUnknown, Reason::RefusedReset],
            );
            let want = tx(&reset_for(&ask));
            rig.expect(
                "and again",
                &ask,
                CLIENTS,
                want,
                &[Reason::FlowUnknown, Reason::RefusedReset],
            );
        }
        let talk = rig.open((client(is_v4(slot), 12), 8_201), slot);
        rig.backend(talk.backend, |b| {
            b.generation = b.generation.wrapping_add(1)
        });
        let first = rig.first(talk.client, slot);
        let bytes = first.bytes();
        let got = rig.both("first packet", &bytes, CLIENTS);
        let again = rig.talk(talk.client, slot);
        let want = redirect(&rig.asked(&again, &first));
        let reasons = [Reason::FlowStale, Reason::FlowNew];
        rig.compare("first packet", &bytes, CLIENTS, &got, want, &reasons);
    }
    rig.finish();
    Ok(())
}

#[test]
fn servers_with_a_twin_flow_are_skipped() -> Result<()> {
    let mut rig = Rig::start()?;
    for (one, twin) in [
        (frontend::TCP4, frontend::TWIN4),
        (frontend::TCP6, frontend::TWIN6),
    ] {
        for established in [false, true] {
            let who = (client(is_v4(one), 13), 8_300 + u16::from(established));
            // Aligns the two round robins: the twin's next server is this one's.
            rig.reset();
            let talk = if established {
                rig.open(who, one)
            } else {
                rig.begin(who, one)
            };
            let syn = rig.first(who, twin);
            let bytes = syn.bytes();
            let got = rig.both("twin", &bytes, CLIENTS);
            let other = rig.talk(who, twin);
            rig.check(
                rig.world().server(other.backend) != rig.world().server(talk.backend),
                "the same 4-tuple twice",
            );
            let want = redirect(&rig.asked(&other, &syn));
            let reasons = [Reason::TupleConflict, Reason::FlowNew];
            rig.compare("twin", &bytes, CLIENTS, &got, want, &reasons);
            for talk in [talk, other] {
                let answer = rig.answer(&talk).flags(SYN | ACK);
                answers(&mut rig, "each answer to its own", &talk, &answer, &[]);
            }
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn closing_frontend_keeps_its_flows() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS.into_iter().chain(UDPS) {
        let talk = rig.open((client(is_v4(slot), 14), 8_400), slot);
        rig.frontend(slot, |f| f.closing = true);
        let ask = rig.ask(&talk);
        asks(&mut rig, "an old flow", &talk, &ask, &[]);
        let answer = rig.answer(&talk);
        answers(&mut rig, "its answer", &talk, &answer, &[]);
        let first = rig.first((client(is_v4(slot), 14), 8_401), slot);
        let reasons = [Reason::NotBalanced];
        rig.expect("a new one", &first, CLIENTS, Want::Pass, &reasons);
    }
    rig.finish();
    Ok(())
}

#[test]
fn confirming_segment_may_come_by_a_new_way() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in TCPS {
        let talk = rig.begin((client(is_v4(slot), 15), 8_500), slot);
        let syn_ack = rig.answer(&talk).flags(SYN | ACK).seq(9, CLIENT_SEQ + 1);
        answers(&mut rig, "SYN+ACK", &talk, &syn_ack, &[]);
        let other = [2, 8, 8, 8, 8, 8];
        let ack = rig.ask(&talk).seq(CLIENT_SEQ + 1, 10);
        let ack = ack.macs(CLIENTS_MAC, other).tagged(&[q(7)]);
        asks(&mut rig, "ACK", &talk, &ack, &[Reason::FlowEstablished]);
        let answer = rig.answer(&talk);
        let want = rig.answered(&talk, &answer).macs(other, CLIENTS_MAC);
        let want = redirect(&want.tagged(&[q(7)]));
        rig.expect("answer", &answer, SERVERS, want, &[]);
    }
    rig.finish();
    Ok(())
}

/// A server that still speaks to the last connection's snat port must not reach
/// the next connection of the same client and port.
#[test]
fn an_old_snat_port_is_not_the_new_flows() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [frontend::SNAT_TCP4, frontend::SNAT_TCP6] {
        for same_server in [false, true] {
            let who = (client(is_v4(slot), 16), 8_600 + u16::from(same_server));
            let old = rig.open(who, slot);
            let fin = rig.ask(&old).flags(RST | ACK);
            asks(&mut rig, "the end", &old, &fin, &[]);
            let other = rig.world().frontends[usize::from(slot)].ring.clone();
            let other = *other.iter().find(|b| **b != old.backend).expect("two");
            rig.backend(other, |b| b.usable = !same_server);
            let new = rig.open(who, slot);
            rig.backend(other, |b| b.usable = true);
            rig.check(
                (new.backend == old.backend) == same_server,
                "another server",
            );
            rig.check(new.snat != old.snat, "the same port at once");
            let late = rig.answer(&old).flags(RST | ACK);
            let unknown = [Reason::ReplyUnknown];
            rig.expect("late reply", &late, SERVERS, Want::Pass, &unknown);
            let seen = rig.asked(&old, &rig.ask(&old)).ip.head(20);
            let server = rig.world().server(old.backend).0;
            let to = old.snat.expect("snat").0;
            let kind = if is_v4(slot) { 3 } else { 1 };
            let error = balancer_tests::case::icmp(server, to, kind, 1, [0; 4], &seen);
            let unknown = [Reason::IcmpErrorUnknown];
            rig.expect("late error", &error, SERVERS, Want::Pass, &unknown);
            let answer = rig.answer(&new);
            answers(&mut rig, "the new flow's", &new, &answer, &[]);
            let syn = rig.first(who, slot);
            asks(&mut rig, "still open", &new, &syn, &[]);
        }
    }
    rig.finish();
    Ok(())
}
