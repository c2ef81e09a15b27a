//! Steering of whole packets in both directions, byte for byte: every
//! combination of family, protocol, VLAN tags, options, extension headers, snat.

use anyhow::Result;
use balancer_tests::case::{Rig, client, redirect, tx};
use balancer_tests::packets::{Check, Extension, Frame, Payload, Tag, ad, q, tcp_flags};
use balancer_tests::setup::{
    CLIENTS, CLIENTS_MAC, ROUTER_MAC, SERVERS, SERVERS_MAC, STRANGER, frontend, hop, hop_keep,
    server_mac,
};
use common::counters::Reason;

const PLAIN: [u16; 4] = [
    frontend::TCP4,
    frontend::TCP6,
    frontend::UDP4,
    frontend::UDP6,
];
const ALL: [u16; 8] = [
    frontend::TCP4,
    frontend::TCP6,
    frontend::UDP4,
    frontend::UDP6,
    frontend::SNAT_TCP4,
    frontend::SNAT_TCP6,
    frontend::SNAT_UDP4,
    frontend::SNAT_UDP6,
];

fn tag_sets() -> Vec<Vec<Tag>> {
    vec![
        vec![],
        vec![q(0x6064)],
        vec![ad(0x0007)],
        vec![q(10), q(20)],
        vec![ad(100), q(0xe0c8)],
    ]
}

/// Changes that IPv4 options or IPv6 extension headers make to a frame.
fn extras(v4: bool) -> Vec<(&'static str, Vec<u8>, Vec<Extension>)> {
    if v4 {
        return vec![
            ("no options", vec![], vec![]),
            ("one NOP word", vec![1, 1, 1, 0], vec![]),
            (
                "record route",
                [&[7u8, 39, 4][..], &[0; 37]].concat(),
                vec![],
            ),
        ];
    }
    let hop_by_hop = Extension::options(0, 1);
    let destination = Extension::options(60, 3);
    vec![
        ("no extensions", vec![], vec![]),
        ("hop-by-hop", vec![], vec![hop_by_hop.clone()]),
        (
            "hop-by-hop, destination, routing done, authentication",
            vec![],
            vec![
                hop_by_hop.clone(),
                destination.clone(),
                Extension::routing(0),
                Extension::authentication(),
            ],
        ),
        (
            "atomic fragment",
            vec![],
            vec![Extension::atomic_fragment(9)],
        ),
        (
            "six headers",
            vec![],
            vec![
                hop_by_hop,
                destination.clone(),
                Extension::routing(0),
                Extension::authentication(),
                Extension::atomic_fragment(77),
                destination,
            ],
        ),
    ]
}

fn is_tcp(slot: u16) -> bool {
    matches!(
        slot,
        frontend::TCP4 | frontend::TCP6 | frontend::SNAT_TCP4 | frontend::SNAT_TCP6
    )
}

fn is_v4(slot: u16) -> bool {
    slot.is_multiple_of(2)
}

#[test]
fn every_header_combination_in_both_directions() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in ALL {
        let ring = rig.world().frontends[usize::from(slot)].ring.clone();
        let mut opened = 0;
        for tags in tag_sets() {
            for (name, options, extensions) in extras(is_v4(slot)) {
                for len in [0, 1, 34] {
                    let what = format!("frontend {slot}, tags {tags:x?}, {name}, {len} bytes");
                    let who = (client(is_v4(slot), 1), 2_000 + opened);
                    let dress = |frame: Frame| {
                        frame
                            .tagged(&tags)
                            .options(&options)
                            .extensions(&extensions)
                            .data(&vec![0xa7; len])
                    };
                    let first = dress(rig.first(who, slot));
                    let bytes = first.bytes();
                    let got = rig.both(&what, &bytes, CLIENTS);
                    let talk = rig.talk(who, slot);
                    rig.check(
                        talk.backend == ring[usize::from(opened) % ring.len()],
                        &format!("{what}: backend {}", talk.backend),
                    );
                    let want = redirect(&rig.asked(&talk, &first));
                    rig.compare(&what, &bytes, CLIENTS, &got, want, &[Reason::FlowNew]);
                    opened += 1;

                    // The backend's frames have tags of their own; the client's return.
                    let answer = dress(rig.answer(&talk)).tagged(&[q(4_000)]);
                    let answer = if is_tcp(slot) {
                        answer
                            .flags(tcp_flags::SYN | tcp_flags::ACK)
                            .seq(500, 1_001)
                    } else {
                        answer
                    };
                    let want = redirect(&rig.answered(&talk, &answer).tagged(&tags));
                    let established: &[Reason] = if is_tcp(slot) {
                        &[]
                    } else {
                        &[Reason::FlowEstablished]
                    };
                    rig.expect(&what, &answer, SERVERS, want, established);

                    let next = dress(rig.ask(&talk));
                    let (next, established): (_, &[Reason]) = if is_tcp(slot) {
                        (next.seq(1_001, 501), &[Reason::FlowEstablished])
                    } else {
                        (next, &[])
                    };
                    let want = redirect(&rig.asked(&talk, &next));
                    rig.expect(&what, &next, CLIENTS, want, established);
                    let answer = dress(rig.answer(&talk));
                    let want = redirect(&rig.answered(&talk, &answer).tagged(&tags));
                    rig.expect(&what, &answer, SERVERS, want, &[]);
                }
            }
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn hop_sets_pops_and_keeps_tags() -> Result<()> {
    let mut rig = Rig::start()?;
    let hops: [(&str, _, Option<Vec<Tag>>); 5] = [
        ("keep", hop_keep(1), None),
        ("none", hop(1, 0, false, [0, 0]), Some(vec![])),
        ("one", hop(1, 1, false, [0x2005, 0]), Some(vec![q(0x2005)])),
        ("two", hop(1, 2, false, [33, 44]), Some(vec![q(33), q(44)])),
        (
            "two, outer 802.1ad",
            hop(1, 2, true, [33, 44]),
            Some(vec![ad(33), q(44)]),
        ),
    ];
    let mut port = 3_000;
    for slot in PLAIN {
        rig.frontend(slot, |f| f.ring.truncate(1));
        let backend = rig.world().frontends[usize::from(slot)].ring[0];
        for (name, hop, sent) in &hops {
            rig.backend(backend, |b| b.hop = Some(*hop));
            for tags in tag_sets() {
                port += 1;
                let what = format!("frontend {slot}, hop {name}, tags {tags:x?}");
                let talk = rig.open((client(is_v4(slot), 2), port), slot);
                let ask = rig.ask(&talk).data(b"tagged").tagged(&tags);
                let sent = sent.as_ref().unwrap_or(&tags);
                let want = redirect(&rig.asked(&talk, &ask).tagged(sent));
                rig.expect(&what, &ask, CLIENTS, want, &[]);
            }
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn one_device_for_both_sides_is_tx() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in ALL {
        let talk = rig.open((client(is_v4(slot), 3), 4_000), slot);
        let ask = rig.ask(&talk);
        let want = tx(&rig.asked(&talk, &ask));
        rig.expect(
            "client behind the servers' device",
            &ask,
            SERVERS,
            want,
            &[],
        );
        // The way back has been learned: the servers' device with its address.
        let answer = rig.answer(&talk);
        let want = tx(&rig.answered(&talk, &answer).macs(ROUTER_MAC, SERVERS_MAC));
        rig.expect("and back", &answer, SERVERS, want, &[]);
    }
    rig.finish();
    Ok(())
}

#[test]
fn return_path_follows_the_client() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in ALL {
        let talk = rig.open((client(is_v4(slot), 4), 4_100), slot);
        for (what, mac, tags) in [
            ("another router", [2, 9, 9, 9, 9, 9], vec![]),
            ("a tag appears", [2, 9, 9, 9, 9, 9], vec![q(5)]),
            ("its id changes", [2, 9, 9, 9, 9, 9], vec![q(6)]),
            ("its kind changes", [2, 9, 9, 9, 9, 9], vec![ad(6)]),
            ("a second tag", [2, 9, 9, 9, 9, 9], vec![ad(6), q(8)]),
            ("the first way again", ROUTER_MAC, vec![]),
        ] {
            let ask = rig.ask(&talk).macs(CLIENTS_MAC, mac).tagged(&tags);
            let want = redirect(&rig.asked(&talk, &ask));
            rig.expect(what, &ask, CLIENTS, want, &[]);
            let answer = rig.answer(&talk);
            let want = rig.answered(&talk, &answer).macs(mac, CLIENTS_MAC);
            rig.expect(what, &answer, SERVERS, redirect(&want.tagged(&tags)), &[]);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn ttl_that_would_reach_zero_is_left_to_the_stack() -> Result<()> {
    use balancer_tests::case::Want::Pass;
    let mut rig = Rig::start()?;
    for slot in ALL {
        let talk = rig.open((client(is_v4(slot), 5), 4_200), slot);
        for ttl in [0, 1] {
            let ask = rig.ask(&talk).ttl(ttl);
            rig.expect("forward", &ask, CLIENTS, Pass, &[Reason::TtlExpired]);
            let answer = rig.answer(&talk).ttl(ttl);
            rig.expect("reply", &answer, SERVERS, Pass, &[Reason::TtlExpired]);
        }
        for ttl in [2, 255] {
            let ask = rig.ask(&talk).ttl(ttl);
            let want = redirect(&rig.asked(&talk, &ask));
            rig.expect("forward", &ask, CLIENTS, want, &[]);
            let answer = rig.answer(&talk).ttl(ttl);
            let want = redirect(&rig.answered(&talk, &answer));
            rig.expect("reply", &answer, SERVERS, want, &[]);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn padding_stays() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in ALL {
        let talk = rig.open((client(is_v4(slot), 6), 4_300), slot);
        for padding in [&[0u8; 6][..], &[0xff; 1], &[0xa5; 100]] {
            let ask = rig.ask(&talk).padded(padding);
            let want = redirect(&rig.asked(&talk, &ask));
            rig.expect("forward", &ask, CLIENTS, want, &[]);
            let answer = rig.answer(&talk).padded(padding);
            let want = redirect(&rig.answered(&talk, &answer));
            rig.expect("reply", &answer, SERVERS, want, &[]);
        }
    }
    rig.finish();
    Ok(())
}

/// The frame with two bytes of data chosen so that the checksum is `want` once
/// `change` was made.
fn udp_data_for(frame: &Frame, change: impl Fn(&Frame) -> Frame, want: u16) -> Frame {
    let check = |data: u16| {
        let bytes = change(&frame.clone().data(&data.to_be_bytes())).bytes();
        u16::from_be_bytes([bytes[bytes.len() - 4], bytes[bytes.len() - 3]])
    };
    // The data enters the sum as it is; solve for it in ones' complement.
    let data = (u32::from(!want) + u32::from(check(0))) % 0xffff;
    let data = [data as u16, 0xffff]
        .into_iter()
        .find(|data| check(*data) == want)
        .expect("some data gives every checksum");
    frame.clone().data(&data.to_be_bytes())
}

#[test]
fn udp_checksum_zero_and_all_ones() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in [frontend::UDP4, frontend::SNAT_UDP4] {
        let talk = rig.open((client(true, 7), 4_400), slot);
        let without = |mut frame: Frame| {
            let Payload::Udp(udp) = &mut frame.ip.payload else {
                panic!("not UDP");
            };
            udp.check = Check::Zero;
            frame
        };
        let ask = without(rig.ask(&talk));
        let want = redirect(&rig.asked(&talk, &ask));
        rig.expect("no checksum, forward", &ask, CLIENTS, want, &[]);
        let answer = without(rig.answer(&talk));
        let want = redirect(&rig.answered(&talk, &answer));
        rig.expect("no checksum, reply", &answer, SERVERS, want, &[]);
    }
    for slot in [
        frontend::UDP4,
        frontend::UDP6,
        frontend::SNAT_UDP4,
        frontend::SNAT_UDP6,
    ] {
        let talk = rig.open((client(is_v4(slot), 7), 4_401), slot);
        for value in [0xffff, 0x0001, 0xfffe] {
            let ask = udp_data_for(&rig.ask(&talk), |f| rig.asked(&talk, f), value);
            let want = redirect(&rig.asked(&talk, &ask));
            rig.expect("comes out so, forward", &ask, CLIENTS, want, &[]);
            let answer = udp_data_for(&rig.answer(&talk), |f| rig.answered(&talk, f), value);
            let want = redirect(&rig.answered(&talk, &answer));
            rig.expect("comes out so, reply", &answer, SERVERS, want, &[]);
            let ask = udp_data_for(&rig.ask(&talk), Frame::clone, value);
            let want = redirect(&rig.asked(&talk, &ask));
            rig.expect("comes in so, forward", &ask, CLIENTS, want, &[]);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn wrong_checksums_stay_wrong() -> Result<()> {
    let mut rig = Rig::start()?;
    for slot in ALL {
        let talk = rig.open((client(is_v4(slot), 8), 4_500), slot);
        let ask = rig.ask(&talk).data(b"damaged");
        let mut bytes = ask.bytes();
        let last = bytes.len() - 1;
        bytes[last] ^= 0x10;
        let mut want = rig.asked(&talk, &ask).bytes();
        let last = want.len() - 1;
        want[last] ^= 0x10;
        let want = balancer_tests::case::Want::Redirect(want);
        rig.expect_bytes("data damaged on its way here", &bytes, CLIENTS, want, &[]);
    }
    rig.finish();
    Ok(())
}

#[test]
fn no_hop_and_no_route_goes_to_the_stack() -> Result<()> {
    use balancer_tests::case::Want::PassAs;
    let mut rig = Rig::start()?;
    let asked_route = [Reason::FibFallback, Reason::NoNextHop];
    for slot in PLAIN {
        let talk = rig.open((client(is_v4(slot), 9), 4_600), slot);
        let hop = rig.world().backends[usize::from(talk.backend)].hop;
        rig.backend(talk.backend, |b| b.hop = None);
        let ask = rig.ask(&talk);
        let bytes = ask
            .clone()
            .to(rig.world().server(talk.backend))
            .ttl(63)
            .bytes();
        rig.expect("forward", &ask, CLIENTS, PassAs(bytes), &asked_route);
        rig.backend(talk.backend, |b| b.hop = hop);

        let ask = rig.ask(&talk);
        let want = redirect(&rig.asked(&talk, &ask));
        rig.expect("by an unknown device", &ask, STRANGER, want, &[]);
        let answer = rig.answer(&talk);
        let bytes = rig
            .answered(&talk, &answer)
            .macs(SERVERS_MAC, server_mac(1))
            .bytes();
        rig.expect("reply", &answer, SERVERS, PassAs(bytes), &asked_route);
    }
    rig.finish();
    Ok(())
}
