//! ICMP and ICMPv6: echo, and errors about flows in both directions.

use std::net::IpAddr;

use anyhow::Result;
use balancer_tests::case::{Rig, Talk, Want, client, icmp, redirect, tx};
use balancer_tests::packets::{Extension, Frame, Tag, ad, q};
use balancer_tests::setup::{
    CLIENTS, CLIENTS_MAC, ROUTER_MAC, SERVERS, SERVERS_MAC, frontend, ip, server_mac,
};
use common::counters::Reason;

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

fn tag_sets() -> [Vec<Tag>; 4] {
    [vec![], vec![q(7)], vec![q(7), q(8)], vec![ad(7), q(8)]]
}

fn is_v4(slot: u16) -> bool {
    slot.is_multiple_of(2)
}

#[test]
fn echo_is_answered() -> Result<()> {
    let mut rig = Rig::start()?;
    for v4 in [true, false] {
        let service = rig
            .world()
            .service(if v4 { frontend::TCP4 } else { frontend::TCP6 })
            .0;
        let (request, reply) = if v4 { (8, 0) } else { (128, 129) };
        for tags in tag_sets() {
            for data in [&b""[..], b"odd", b"ping ping ping ping"] {
                for ttl in [2, 64, 255] {
                    let echo = icmp(client(v4, 1), service, request, 0, [0x12, 0x34, 0, 9], data)
                        .tagged(&tags)
                        .ttl(ttl)
                        .padded(&[0; 7]);
                    let mut want = icmp(service, client(v4, 1), reply, 0, [0x12, 0x34, 0, 9], data)
                        .tagged(&tags)
                        .padded(&[0; 7])
                        .macs(ROUTER_MAC, CLIENTS_MAC);
                    want.ip.id = echo.ip.id;
                    rig.expect("echo", &echo, CLIENTS, tx(&want), &[Reason::EchoAnswered]);
                }
            }
        }
        let pass = [Reason::NotBalanced];
        let elsewhere = client(v4, 2);
        let echo = icmp(client(v4, 1), elsewhere, request, 0, [0; 4], b"data");
        rig.expect("echo to another address", &echo, CLIENTS, Want::Pass, &pass);
        let answer = icmp(client(v4, 1), service, reply, 0, [0; 4], b"data");
        rig.expect("an echo reply", &answer, CLIENTS, Want::Pass, &pass);
        let part = icmp(client(v4, 1), service, request, 0, [0; 4], &[0; 64]);
        let part = part.fragment(9, 0, 32, true);
        rig.expect("fragmented echo", &part, CLIENTS, Want::Pass, &pass);
    }
    rig.finish();
    Ok(())
}

#[test]
fn echo_with_options_or_extensions() -> Result<()> {
    let mut rig = Rig::start()?;
    for v4 in [true, false] {
        let service = rig
            .world()
            .service(if v4 { frontend::TCP4 } else { frontend::TCP6 })
            .0;
        let (request, reply) = if v4 { (8, 0) } else { (128, 129) };
        let dress = |frame: Frame| {
            if v4 {
                frame.options(&[1, 1, 1, 0])
            } else {
                frame.extensions(&[Extension::options(0, 1)])
            }
        };
        let echo = dress(icmp(client(v4, 1), service, request, 0, [1; 4], b"x"));
        let want = dress(icmp(service, client(v4, 1), reply, 0, [1; 4], b"x"));
        let want = tx(&want.macs(ROUTER_MAC, CLIENTS_MAC));
        rig.expect("echo", &echo, CLIENTS, want, &[Reason::EchoAnswered]);
    }
    rig.finish();
    Ok(())
}

/// Types and codes of errors about a packet, with the four bytes of each.
fn errors(v4: bool) -> Vec<(u8, u8, [u8; 4])> {
    if v4 {
        vec![
            (3, 1, [0; 4]),
            (3, 4, [0, 0, 0x05, 0x14]),
            (4, 0, [0; 4]),
            (11, 0, [0; 4]),
            (12, 0, [9, 0, 0, 0]),
        ]
    } else {
        vec![
            (1, 0, [0; 4]),
            (2, 0, [0, 0, 0x05, 0x00]),
            (3, 1, [0; 4]),
            (4, 0, [0, 0, 0, 40]),
        ]
    }
}

/// What an error carries: the packet's header and so many bytes more.
const CARRIED: [usize; 5] = [8, 20, 28, 29, 10_000];

/// An error from a router on the clients' side about a reply, and what the
/// backend must get.
fn about_reply(
    rig: &Rig,
    talk: &Talk,
    carried: usize,
    (kind, code, rest): (u8, u8, [u8; 4]),
    router: IpAddr,
) -> (Frame, Frame) {
    let sent = rig.answer(talk).data(b"a long answer from the server");
    let seen = rig.answered(talk, &sent).ttl(60).ip;
    let known = sent.ttl(60).ip;
    let service = rig.world().service(talk.frontend).0;
    let error = icmp(router, service, kind, code, rest, &seen.head(carried));
    let server = rig.world().server(talk.backend).0;
    let mut want = icmp(router, server, kind, code, rest, &known.head(carried)).ttl(63);
    let (dst, src) = rig.world().hop_macs(talk.backend);
    want.ip.id = error.ip.id;
    (error, want.macs(dst, src))
}

/// An error from the servers' side about a client's packet, and what the client
/// must get. `from` is the backend itself or a router.
fn about_forwarded(
    rig: &Rig,
    talk: &Talk,
    carried: usize,
    (kind, code, rest): (u8, u8, [u8; 4]),
    from: IpAddr,
) -> (Frame, Frame) {
    let sent = rig.ask(talk).data(b"a long question of the client");
    let seen = rig.asked(talk, &sent).ttl(60).ip;
    let known = sent.ttl(60).ip;
    let to = talk.snat.unwrap_or(talk.client).0;
    let error =
        icmp(from, to, kind, code, rest, &seen.head(carried)).macs(SERVERS_MAC, server_mac(1));
    let server = rig.world().server(talk.backend).0;
    let service = rig.world().service(talk.frontend).0;
    let from = if from == server { service } else { from };
    let want = icmp(from, talk.client.0, kind, code, rest, &known.head(carried))
        .ttl(63)
        .macs(ROUTER_MAC, CLIENTS_MAC);
    (error, want)
}

#[test]
fn errors_reach_whom_they_concern() -> Result<()> {
    let mut rig = Rig::start()?;
    let forwarded = [Reason::IcmpErrorForwarded];
    for slot in ALL {
        let v4 = is_v4(slot);
        for half_open in [false, true] {
            let who = (client(v4, 3), 10_000 + u16::from(half_open));
            let talk = if half_open {
                rig.begin(who, slot)
            } else {
                rig.open(who, slot)
            };
            let server = rig.world().server(talk.backend).0;
            let router = ip(if v4 { "10.9.9.9" } else { "fd00:9::9" });
            for error in errors(v4) {
                for carried in CARRIED {
                    for tags in tag_sets() {
                        let what = format!(
                            "frontend {slot}, error {error:?}, {carried} bytes, tags {tags:x?}"
                        );
                        let (frame, want) = about_reply(&rig, &talk, carried, error, router);
                        let (frame, want) = (frame.tagged(&tags), want.tagged(&tags));
                        rig.expect(&what, &frame, CLIENTS, redirect(&want), &forwarded);
                        for from in [server, router] {
                            let (frame, want) = about_forwarded(&rig, &talk, carried, error, from);
                            let frame = frame.tagged(&tags);
                            rig.expect(&what, &frame, SERVERS, redirect(&want), &forwarded);
                        }
                    }
                }
            }
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn inner_options_are_followed() -> Result<()> {
    let mut rig = Rig::start()?;
    let forwarded = [Reason::IcmpErrorForwarded];
    for slot in [frontend::TCP4, frontend::UDP4, frontend::SNAT_TCP4] {
        let talk = rig.open((client(true, 4), 10_100), slot);
        for carried in CARRIED {
            let options = [1, 1, 1, 1, 1, 1, 1, 0];
            let sent = rig.answer(&talk).data(b"with options").options(&options);
            let seen = rig.answered(&talk, &sent).ip.head(carried);
            let known = sent.clone().ttl(63).ip.head(carried);
            let service = rig.world().service(slot).0;
            let server = rig.world().server(talk.backend).0;
            let rest = [0, 0, 2, 0];
            let error = icmp(client(true, 9), service, 3, 4, rest, &seen).options(&[1, 1, 1, 0]);
            let (dst, src) = rig.world().hop_macs(talk.backend);
            let want = icmp(client(true, 9), server, 3, 4, rest, &known)
                .options(&[1, 1, 1, 0])
                .ttl(63)
                .macs(dst, src);
            rig.expect("options", &error, CLIENTS, redirect(&want), &forwarded);
        }
    }
    rig.finish();
    Ok(())
}

#[test]
fn errors_about_nothing_known_pass() -> Result<()> {
    let mut rig = Rig::start()?;
    let unknown = [Reason::IcmpErrorUnknown];
    for slot in ALL {
        let v4 = is_v4(slot);
        let error = errors(v4)[0];
        let router = ip(if v4 { "10.9.9.9" } else { "fd00:9::9" });
        let talk = rig.open((client(v4, 5), 10_200), slot);
        let stranger = Talk {
            client: (client(v4, 5), 10_201),
            snat: talk.snat.map(|(addr, port)| (addr, port + 500)),
            ..talk
        };
        let (frame, _) = about_reply(&rig, &stranger, 20, error, router);
        rig.expect("no flow, reply", &frame, CLIENTS, Want::Pass, &unknown);
        let (frame, _) = about_forwarded(&rig, &stranger, 20, error, router);
        rig.expect("no flow, forward", &frame, SERVERS, Want::Pass, &unknown);
        let elsewhere = icmp(router, client(v4, 6), error.0, error.1, error.2, &{
            rig.ask(&talk).to((client(v4, 7), 99)).ip.head(8)
        });
        rig.expect("neither end", &elsewhere, CLIENTS, Want::Pass, &unknown);
        let (frame, _) = about_reply(&rig, &talk, 20, error, router);
        let frame = frame.ttl(1);
        rig.expect(
            "last hop",
            &frame,
            CLIENTS,
            Want::Pass,
            &[Reason::TtlExpired],
        );
    }
    let talk = rig.open((client(true, 5), 10_202), frontend::TCP4);
    let (redirect, _) = about_reply(&rig, &talk, 20, (5, 1, [10, 0, 0, 1]), ip("10.9.9.9"));
    let pass = [Reason::NotBalanced];
    rig.expect("a redirect", &redirect, CLIENTS, Want::Pass, &pass);
    rig.finish();
    Ok(())
}
