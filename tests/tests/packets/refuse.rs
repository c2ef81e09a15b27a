//! Refusals, byte for byte: no usable backend, strays, stopped backends.

use anyhow::Result;
use balancer_tests::case::{Rig, Want, client, redirect, reset_for, tcp, tx, udp, unreachable_for};
use balancer_tests::packets::{Extension, Frame, Tag, ad, q, tcp_flags};
use balancer_tests::setup::{CLIENTS, SERVERS, frontend};
use common::counters::Reason;
use tcp_flags::{ACK, FIN, PSH, RST, SYN};

fn tag_sets() -> [Vec<Tag>; 4] {
    [vec![], vec![q(7)], vec![q(7), q(8)], vec![ad(7), q(8)]]
}

/// Every frame with VLAN tags, IP options or extension headers, padding.
fn dressed(frame: &Frame) -> Vec<Frame> {
    let mut frames = Vec::new();
    for tags in tag_sets() {
        let frame = frame.clone().tagged(&tags);
        frames.push(frame.clone());
        frames.push(frame.clone().padded(&[0xee; 18]));
        if frame.ip.src.is_ipv4() {
            frames.push(frame.clone().options(&[1, 1, 1, 0]));
            frames.push(frame.options(&[1; 40]));
        } else {
            frames.push(frame.extensions(&[Extension::options(0, 1), Extension::options(60, 2)]));
        }
    }
    frames
}

/// Takes every backend of a frontend out.
fn take_out(rig: &mut Rig, slot: u16) -> usize {
    let ring = rig.world().frontends[usize::from(slot)].ring.clone();
    for backend in &ring {
        rig.backend(*backend, |b| b.usable = false);
    }
    32
}

#[test]
fn no_usable_backend_resets_tcp() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [
        frontend::TCP4,
        frontend::TCP6,
        frontend::SNAT_TCP4,
        frontend::SNAT_TCP6,
    ] {
        let tries = take_out(&mut rig, slot);
        let mut reasons = vec![Reason::BackendSkipped; tries];
        reasons.extend([Reason::NoBackend, Reason::RefusedReset]);
        let v4 = slot.is_multiple_of(2);
        let syn = tcp((client(v4, 1), 9_000), rig.world().service(slot), SYN);
        for data in [&b""[..], b"early", b"odd"] {
            for seq in [0, 0xffff_ffff, 0x1234_5678] {
                for syn in dressed(&syn.clone().data(data).seq(seq, 0)) {
                    rig.expect("SYN", &syn, CLIENTS, tx(&reset_for(&syn)), &reasons);
                }
            }
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn no_usable_backend_answers_datagrams_with_icmp() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [
        frontend::UDP4,
        frontend::UDP6,
        frontend::SNAT_UDP4,
        frontend::SNAT_UDP6,
    ] {
        let tries = take_out(&mut rig, slot);
        let mut reasons = vec![Reason::BackendSkipped; tries];
        reasons.extend([Reason::NoBackend, Reason::RefusedReset]);
        let v4 = slot.is_multiple_of(2);
        let ask = udp((client(v4, 2), 9_100), rig.world().service(slot));
        for data in [&b""[..], b"x", b"a longer question than the others"] {
            for ask in dressed(&ask.clone().data(data)) {
                let want = tx(&unreachable_for(&ask));
                rig.expect("datagram", &ask, CLIENTS, want, &reasons);
            }
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn empty_ring_is_refused_too() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [frontend::TCP4, frontend::UDP6] {
        rig.frontend(slot, |f| f.ring.clear());
        let v4 = slot.is_multiple_of(2);
        let first = rig.first((client(v4, 3), 9_200), slot);
        let want = if v4 {
            reset_for(&first)
        } else {
            unreachable_for(&first)
        };
        let before = rig.xdp.frontend_traffic(slot);
        let reasons = [Reason::NoBackend, Reason::RefusedReset];
        rig.expect("first packet", &first, CLIENTS, tx(&want), &reasons);
        let after = rig.xdp.frontend_traffic(slot);
        rig.check(after[6] == before[6] + 1, "the frontend's refused count");
    }
    rig.finish();
    Ok(())
}

#[test]
fn other_policies_keep_silence_or_pass() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [
        frontend::DROP4,
        frontend::PASS4,
        frontend::DROP6,
        frontend::PASS6,
    ] {
        let (want, refused) = match slot {
            frontend::DROP4 | frontend::DROP6 => (Want::Drop, Reason::RefusedDrop),
            _ => (Want::Pass, Reason::RefusedPass),
        };
        let v4 = rig.world().service(slot).0.is_ipv4();
        let stray = tcp((client(v4, 4), 9_300), rig.world().service(slot), ACK);
        let reasons = [Reason::FlowUnknown, refused];
        for stray in dressed(&stray) {
            rig.expect("stray", &stray, CLIENTS, want.clone(), &reasons);
        }
        let tries = take_out(&mut rig, slot);
        let mut reasons = vec![Reason::BackendSkipped; tries];
        reasons.extend([Reason::NoBackend, refused]);
        for syn in dressed(&stray.flags(SYN)) {
            rig.expect("SYN", &syn, CLIENTS, want.clone(), &reasons);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn stray_segments_are_reset() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [frontend::TCP4, frontend::TCP6] {
        let v4 = slot.is_multiple_of(2);
        let stray = tcp((client(v4, 5), 9_400), rig.world().service(slot), ACK)
            .seq(0xffff_fff0, 0x0bad_cafe);
        let reasons = [Reason::FlowUnknown, Reason::RefusedReset];
        for flags in [ACK, ACK | PSH, ACK | FIN, ACK | SYN, FIN] {
            for data in [&b""[..], b"some data that was on its way"] {
                for stray in dressed(&stray.clone().flags(flags).data(data)) {
                    let want = tx(&reset_for(&stray));
                    rig.expect("stray", &stray, CLIENTS, want, &reasons);
                }
            }
        }
        let reasons = [Reason::FlowUnknown, Reason::RefusedDrop];
        for flags in [RST, RST | ACK] {
            let rst = stray.clone().flags(flags);
            rig.expect("stray RST", &rst, CLIENTS, Want::Drop, &reasons);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn stopped_backend_cuts_its_flows() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [
        frontend::TCP4,
        frontend::TCP6,
        frontend::SNAT_TCP4,
        frontend::SNAT_TCP6,
        frontend::DROP4,
        frontend::PASS6,
    ] {
        let v4 = rig.world().service(slot).0.is_ipv4();
        let talk = rig.open((client(v4, 6), 9_500), slot);
        let other = rig.world().frontends[usize::from(slot)].ring.len() > 1;
        rig.backend(talk.backend, |b| {
            b.stopped = true;
            b.usable = false;
        });
        let answer = rig.answer(&talk);
        let stopped = [Reason::BackendStopped];
        rig.expect("reply", &answer, SERVERS, Want::Drop, &stopped);
        let ask = rig.ask(&talk).data(b"is anybody there");
        let reasons = [Reason::BackendStopped, Reason::RefusedReset];
        rig.expect("segment", &ask, CLIENTS, tx(&reset_for(&ask)), &reasons);
        let rst = rig.ask(&talk).flags(RST);
        let reasons = [Reason::BackendStopped, Reason::RefusedDrop];
        rig.expect("RST", &rst, CLIENTS, Want::Drop, &reasons);
        if other {
            rig.backend(talk.backend, |b| b.stopped = false);
            let syn = rig.first(talk.client, slot);
            let bytes = syn.bytes();
            let got = rig.both("SYN after it", &bytes, CLIENTS);
            let again = rig.talk(talk.client, slot);
            rig.check(again.backend != talk.backend, "steered to the stopped one");
            let want = redirect(&rig.asked(&again, &syn));
            rig.compare(
                "SYN after it",
                &bytes,
                CLIENTS,
                &got,
                want,
                &[Reason::FlowNew],
            );
        }
        rig.backend(talk.backend, |b| {
            b.stopped = false;
            b.usable = true;
        });
    }
    for slot in [frontend::UDP4, frontend::UDP6] {
        let talk = rig.open((client(slot == frontend::UDP4, 6), 9_501), slot);
        rig.backend(talk.backend, |b| {
            b.stopped = true;
            b.usable = false;
        });
        let ask = rig.ask(&talk);
        let reasons = [Reason::BackendStopped, Reason::RefusedReset];
        rig.expect(
            "datagram",
            &ask,
            CLIENTS,
            tx(&unreachable_for(&ask)),
            &reasons,
        );
    }
    rig.finish();
    Ok(())
}
