//! What is not understood or not ours goes to the host's stack unchanged, each
//! under its own reason; nothing that is cut short is ever forwarded.

use anyhow::Result;
use balancer_tests::case::{Rig, Want, client, from_client, icmp, tcp, udp};
use balancer_tests::packets::{Extension, Frame, Packet, Payload, ad, q, tcp_flags};
use balancer_tests::setup::{CLIENTS, SERVERS, frontend, ip};
use balancer_tests::xdp::Action;
use common::counters::Reason;
use tcp_flags::{ACK, FIN, PSH, RST, SYN};

const ETH: usize = 14;

/// The bytes of a frame with one of them replaced.
fn with(frame: &Frame, at: usize, value: u8) -> Vec<u8> {
    let mut bytes = frame.bytes();
    bytes[at] = value;
    bytes
}

fn cut(frame: &Frame, len: usize) -> Vec<u8> {
    let mut bytes = frame.bytes();
    bytes.truncate(len);
    bytes
}

#[test]
fn every_malformed_frame_has_its_reason() -> Result<()> {
    let mut rig = Rig::start()?;
    let syn4 = rig.first((client(true, 1), 11_000), frontend::TCP4);
    let syn6 = rig.first((client(false, 1), 11_000), frontend::TCP6);
    let ask4 = rig.first((client(true, 1), 11_000), frontend::UDP4);
    let ask6 = rig.first((client(false, 1), 11_000), frontend::UDP6);
    let echo4 = icmp(client(true, 1), syn4.ip.dst, 8, 0, [0; 4], b"");
    let seven = vec![Extension::options(60, 1); 7];
    let routed = syn6.clone().extensions(&[Extension::routing(1)]);
    let long = syn6.clone().extensions(&[Extension::options(60, 1)]);
    let not_ip = |kind: [u8; 2]| {
        let mut bytes = syn4.bytes();
        bytes[12..14].copy_from_slice(&kind);
        bytes
    };
    let short4 = |frame: &Frame, len: u8| {
        // The IP length says so much; the frame is cut there too.
        let mut bytes = cut(frame, ETH + usize::from(len));
        bytes[ETH + 3] = len;
        bytes
    };
    let short6 = |frame: &Frame, len: u8| {
        let mut bytes = cut(frame, ETH + 40 + usize::from(len));
        bytes[ETH + 5] = len;
        bytes
    };
    use Reason::*;
    let one = syn4.clone().tagged(&[q(1)]);
    let two = syn4.clone().tagged(&[ad(1), q(2)]);
    let three = syn4.clone().tagged(&[ad(1), q(2), q(3)]);
    let cases: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("ARP", not_ip([8, 6]), NotIp),
        ("an 802.3 length", not_ip([0, 100]), NotIp),
        (
            "ends behind the first tag's type",
            cut(&one, 14),
            TruncatedEthernet,
        ),
        (
            "ends within the first tag",
            cut(&one, 17),
            TruncatedEthernet,
        ),
        (
            "ends within the second tag",
            cut(&two, 21),
            TruncatedEthernet,
        ),
        ("three tags", three.bytes(), TooManyVlanTags),
        ("no IPv4 header", cut(&syn4, ETH), TruncatedIp),
        ("19 bytes of IPv4 header", cut(&syn4, ETH + 19), TruncatedIp),
        ("version 5", with(&syn4, ETH, 0x55), BadIpHeader),
        (
            "IPv4 header of 16 bytes",
            with(&syn4, ETH, 0x44),
            BadIpHeader,
        ),
        (
            "options beyond the frame",
            with(&short_of(&syn4), ETH, 0x4f),
            TruncatedIp,
        ),
        (
            "IPv4 length below the header",
            with(&syn4, ETH + 3, 19),
            BadIpLength,
        ),
        (
            "IPv4 length beyond the frame",
            with(&syn4, ETH + 3, 41),
            BadIpLength,
        ),
        ("39 bytes of IPv6 header", cut(&syn6, ETH + 39), TruncatedIp),
        ("version 4 of IPv6", with(&syn6, ETH, 0x40), BadIpHeader),
        (
            "IPv6 length beyond the frame",
            with(&syn6, ETH + 5, 21),
            BadIpLength,
        ),
        (
            "seven extension headers",
            syn6.clone().extensions(&seven).bytes(),
            BadExtensionHeaders,
        ),
        ("a waypoint left", routed.bytes(), BadExtensionHeaders),
        (
            "extension header beyond the packet",
            with(&long, ETH + 41, 9),
            TruncatedIp,
        ),
        ("6 bytes of extension header", short6(&long, 6), TruncatedIp),
        (
            "19 bytes of TCP, IPv4",
            short4(&syn4, 39),
            TruncatedTransport,
        ),
        ("no TCP, IPv4", short4(&syn4, 20), TruncatedTransport),
        (
            "19 bytes of TCP, IPv6",
            short6(&syn6, 19),
            TruncatedTransport,
        ),
        (
            "data offset of 16",
            with(&syn4, ETH + 32, 0x40),
            BadTransportLength,
        ),
        (
            "data offset beyond the packet",
            with(&syn4, ETH + 32, 0x60),
            BadTransportLength,
        ),
        (
            "data offset of 0, IPv6",
            with(&syn6, ETH + 52, 0),
            BadTransportLength,
        ),
        (
            "7 bytes of UDP, IPv4",
            short4(&ask4, 27),
            TruncatedTransport,
        ),
        ("7 bytes of UDP, IPv6", short6(&ask6, 7), TruncatedTransport),
        (
            "UDP length of 7",
            with(&ask4, ETH + 25, 7),
            BadTransportLength,
        ),
        (
            "UDP length beyond the packet",
            with(&ask4, ETH + 25, 17),
            BadTransportLength,
        ),
        (
            "UDP length of 0, IPv6",
            with(&ask6, ETH + 45, 0),
            BadTransportLength,
        ),
        ("7 bytes of ICMP", short4(&echo4, 27), TruncatedTransport),
        (
            "first fragment without its whole TCP header",
            syn4.clone().fragment(1, 0, 16, true).bytes(),
            TruncatedTransport,
        ),
        (
            "a later fragment of nothing known",
            syn4.clone()
                .data(&[1; 64])
                .fragment(1, 32, 16, true)
                .bytes(),
            FragmentUnknown,
        ),
        (
            "a later fragment of nothing known, IPv6",
            syn6.clone()
                .data(&[1; 64])
                .fragment(1, 32, 999, false)
                .bytes(),
            FragmentUnknown,
        ),
        ("no flags", syn4.clone().flags(0).bytes(), BadTcpFlags),
        ("only PSH", syn4.clone().flags(PSH).bytes(), BadTcpFlags),
        (
            "SYN and FIN",
            syn4.clone().flags(SYN | FIN).bytes(),
            BadTcpFlags,
        ),
        (
            "SYN and RST",
            syn6.clone().flags(SYN | RST).bytes(),
            BadTcpFlags,
        ),
        (
            "FIN and RST",
            syn4.clone().flags(FIN | RST | ACK).bytes(),
            BadTcpFlags,
        ),
        ("all flags", syn6.clone().flags(0xff).bytes(), BadTcpFlags),
    ];
    for (what, bytes, reason) in cases {
        rig.expect_bytes(what, &bytes, CLIENTS, Want::Pass, &[reason]);
    }
    rig.finish();
    Ok(())
}

/// The frame without anything behind 30 bytes of IP.
fn short_of(frame: &Frame) -> Frame {
    let bytes = frame.ip.bytes()[20..30].to_vec();
    let mut short = frame.clone();
    short.ip.payload = Payload::Raw(6, bytes);
    short
}

#[test]
fn sources_that_no_client_can_have() -> Result<()> {
    let mut rig = Rig::start()?;
    for (v4, sources) in [
        (
            true,
            &[
                "0.0.0.0",
                "127.0.0.1",
                "127.255.255.255",
                "224.0.0.1",
                "239.1.2.3",
                "255.255.255.255",
            ][..],
        ),
        (false, &["::", "::1", "ff02::1", "ff0e::1:2:3"][..]),
    ] {
        let (t, u) = if v4 {
            (frontend::TCP4, frontend::UDP4)
        } else {
            (frontend::TCP6, frontend::UDP6)
        };
        for source in sources {
            for slot in [t, u] {
                let first = rig.first((ip(source), 11_100), slot);
                let reasons = [Reason::BadSource];
                rig.expect(source, &first, CLIENTS, Want::Pass, &reasons);
            }
        }
        for slot in [t, u] {
            let first = rig.first((client(v4, 1), 0), slot);
            let reasons = [Reason::BadSource];
            rig.expect("port 0", &first, CLIENTS, Want::Pass, &reasons);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn what_is_not_ours_is_left_alone() -> Result<()> {
    let mut rig = Rig::start()?;
    let mut frames: Vec<(&str, Frame)> = Vec::new();
    for v4 in [true, false] {
        let (t, u) = if v4 {
            (frontend::TCP4, frontend::UDP4)
        } else {
            (frontend::TCP6, frontend::UDP6)
        };
        let who = (client(v4, 2), 11_200);
        let (service, _) = rig.world().service(t);
        let server = rig
            .world()
            .server(rig.world().frontends[usize::from(t)].ring[0]);
        frames.extend([
            ("another port", tcp(who, (service, 81), SYN)),
            (
                "another protocol's port",
                tcp(who, rig.world().service(u), SYN),
            ),
            ("another protocol's port", udp(who, rig.world().service(t))),
            ("another address", tcp(who, (client(v4, 3), 80), SYN)),
            ("odd flags elsewhere", tcp(who, (client(v4, 3), 80), 0)),
            ("straight to a server", tcp(who, server, SYN)),
            ("a server's other port", tcp((server.0, 22), who, ACK)),
            ("port 0", tcp(who, (service, 0), SYN)),
            (
                "last hop elsewhere",
                tcp(who, (client(v4, 3), 80), SYN).ttl(1),
            ),
            (
                "another protocol",
                from_client(Packet::new(who.0, service, Payload::Raw(132, vec![0; 24]))),
            ),
            (
                "ICMP of the other family",
                from_client(Packet::new(
                    who.0,
                    service,
                    Payload::Raw(if v4 { 58 } else { 1 }, vec![if v4 { 128 } else { 8 }; 16]),
                )),
            ),
        ]);
    }
    for (what, frame) in frames {
        rig.expect(what, &frame, CLIENTS, Want::Pass, &[Reason::NotBalanced]);
    }
    rig.finish();
    Ok(())
}

#[test]
fn replies_of_no_flow_pass() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [
        frontend::TCP4,
        frontend::TCP6,
        frontend::UDP4,
        frontend::UDP6,
        frontend::SNAT_TCP4,
        frontend::SNAT_UDP6,
    ] {
        let v4 = slot.is_multiple_of(2);
        let talk = rig.open((client(v4, 4), 11_300), slot);
        let mut stray = talk;
        stray.client.1 += 1;
        stray.snat = talk.snat.map(|(addr, port)| (addr, port + 100));
        let answer = rig.answer(&stray);
        let reasons = [Reason::ReplyUnknown];
        rig.expect("another port", &answer, SERVERS, Want::Pass, &reasons);
        let mut stray = talk;
        let ring = &rig.world().frontends[usize::from(slot)].ring;
        stray.backend = *ring.iter().find(|b| **b != talk.backend).expect("another");
        let answer = rig.answer(&stray);
        rig.expect("another server", &answer, SERVERS, Want::Pass, &reasons);
    }
    rig.finish();
    Ok(())
}

/// An IPv6 packet whose addresses look like mapped IPv4 ones is no IPv4 packet.
#[test]
fn mapped_addresses_on_the_wire() -> Result<()> {
    let mut rig = Rig::start()?;
    rig.open((client(true, 7), 11_600), frontend::TCP4);
    let who = (client(false, 7), 11_600);
    let from = (ip("::ffff:198.51.100.7"), 11_600);
    let to = (ip("::ffff:203.0.113.1"), 80);
    let server = (ip("::ffff:10.1.0.1"), 8080);
    let service = rig.world().service(frontend::TCP6);
    for (what, frame) in [
        ("destination", tcp(who, to, SYN)),
        ("both", tcp(from, to, SYN)),
        ("both, of a flow", tcp(from, to, ACK)),
        ("a server", tcp(server, who, ACK)),
        ("a server to a client", tcp(server, from, ACK)),
        ("source", tcp(from, service, SYN)),
    ] {
        rig.expect(what, &frame, CLIENTS, Want::Pass, &[Reason::BadSource]);
    }
    rig.finish();
    Ok(())
}

/// Every kind of packet that would be forwarded or answered, cut at every
/// length: never an error, never sent on unless the packet is still whole.
#[test]
fn truncated_at_every_length() -> Result<()> {
    let mut rig = Rig::start()?;
    let mut kinds: Vec<(String, Frame, u32)> = Vec::new();
    for slot in 0..8u16 {
        let v4 = slot.is_multiple_of(2);
        let talk = rig.open((client(v4, 5), 11_400), slot);
        let dress = |frame: Frame| {
            let frame = frame.tagged(&[ad(1), q(2)]);
            if v4 {
                frame.options(&[1; 8])
            } else {
                frame.extensions(&[Extension::options(0, 1), Extension::options(60, 2)])
            }
        };
        for (name, frame, device) in [
            ("ask", rig.ask(&talk).data(b"data"), CLIENTS),
            ("answer", rig.answer(&talk).data(b"data"), SERVERS),
            ("first", rig.first((client(v4, 5), 11_401), slot), CLIENTS),
            (
                "stray",
                rig.ask(&balancer_tests::case::Talk {
                    client: (client(v4, 5), 11_402),
                    ..talk
                }),
                CLIENTS,
            ),
        ] {
            kinds.push((format!("{name} {slot}"), frame.clone(), device));
            kinds.push((format!("{name} {slot}, dressed"), dress(frame), device));
        }
        let service = rig.world().service(slot).0;
        let about = rig.asked(&talk, &rig.ask(&talk).data(b"data")).ip.bytes();
        let (kind, from) = (if v4 { 3 } else { 1 }, rig.world().server(talk.backend).0);
        let to = talk.snat.unwrap_or(talk.client).0;
        kinds.push((
            format!("error {slot}"),
            icmp(from, to, kind, 1, [0; 4], &about),
            SERVERS,
        ));
        let request = if v4 { 8 } else { 128 };
        let echo = icmp(client(v4, 5), service, request, 0, [0; 4], b"data");
        kinds.push((format!("echo {slot}"), echo, CLIENTS));
    }
    for (what, frame, device) in kinds {
        let bytes = frame.bytes();
        for len in 14..=bytes.len() {
            let what = format!("{what}, {len} of {}", bytes.len());
            let (got, reasons) = rig.both(&what, &bytes[..len], device);
            let sent = matches!(got.action, Action::Tx | Action::Redirect);
            // The IP length names the end of the packet, so only the whole one is valid.
            rig.check(
                !sent || len == bytes.len(),
                &format!("{what}: sent on, {reasons:?}"),
            );
            let untouched = got.frame == bytes[..len];
            let passed = got.action == Action::Pass && untouched && !reasons.is_empty();
            rig.check(
                len == bytes.len() || passed,
                &format!("{what}: {:?}, counted {reasons:?}", got.action),
            );
        }
    }
    rig.finish();
    Ok(())
}

/// As above, but with the IP length (and UDP's) cut along, so that the packet
/// ends early rather than the frame.
#[test]
fn shortened_to_every_length() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in 0..8u16 {
        let v4 = slot.is_multiple_of(2);
        let talk = rig.open((client(v4, 6), 11_500), slot);
        for (name, frame, device) in [
            ("ask", rig.ask(&talk).data(b"data"), CLIENTS),
            ("answer", rig.answer(&talk).data(b"data"), SERVERS),
        ] {
            let bytes = frame.bytes();
            let header = if v4 { 20 } else { 40 };
            for len in header..=bytes.len() - ETH {
                let mut bytes = bytes.clone();
                let (at, value) = if v4 { (16, len) } else { (18, len - 40) };
                bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
                let what = format!("{name} {slot}, IP length {len}");
                let (got, _) = rig.both(&what, &bytes, device);
                let sent = matches!(got.action, Action::Tx | Action::Redirect);
                rig.check(!sent || len >= header + 8, &format!("{what}: sent on"));
            }
        }
    }
    rig.finish();
    Ok(())
}
