//! Messages as the kernel sends them, built by hand.

use super::*;
use proptest::prelude::*;

fn built(kind: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(&mut bytes, kind, 0, 7, body, attributes);
    bytes
}

fn decoded(kind: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Message {
    let bytes = built(kind, body, attributes);
    let all: Vec<_> = messages(&bytes).map(|m| m.decode()).collect();
    assert_eq!(all.len(), 1);
    all[0].clone()
}

fn nested(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    built(0, &[], attributes)[HEADER..].to_vec()
}

fn link_body(family: u8, ifindex: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(libc::ARPHRD_ETHER.to_ne_bytes());
    body.extend(ifindex.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend([0; 4]);
    body
}

const UP: u32 = (libc::IFF_UP | libc::IFF_RUNNING) as u32;

#[test]
fn a_vlan_link() {
    let info = nested(&[
        (IFLA_INFO_KIND, b"vlan\0"),
        (
            IFLA_INFO_DATA | 0x8000,
            &nested(&[
                (IFLA_VLAN_ID, &100u16.to_ne_bytes()),
                (IFLA_VLAN_PROTOCOL, &0x88a8u16.to_be_bytes()),
            ]),
        ),
    ]);
    let entry = LinkEntry {
        ifindex: 9,
        name: "eth0.100".into(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        up: true,
        mtu: 1500,
        vlan: Some(Vlan {
            parent: 3,
            id: 100,
            service: true,
        }),
        veth: false,
    };
    let attributes: &[(u16, &[u8])] = &[
        (libc::IFLA_IFNAME, b"eth0.100\0"),
        (libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
        (libc::IFLA_MTU, &1500u32.to_ne_bytes()),
        (libc::IFLA_LINK, &3u32.to_ne_bytes()),
        (libc::IFLA_LINKINFO, &info),
        (999, &[1, 2, 3]),
    ];
    let body = link_body(0, 9, UP);
    assert_eq!(
        decoded(libc::RTM_NEWLINK, &body, attributes),
        Message::Link(entry)
    );
    assert_eq!(
        decoded(libc::RTM_DELLINK, &body, attributes),
        Message::LinkGone(9)
    );
}

#[test]
fn a_veth_peer_is_no_parent() {
    let info = nested(&[(IFLA_INFO_KIND, b"veth\0")]);
    let attributes: &[(u16, &[u8])] = &[
        (libc::IFLA_IFNAME, b"v0\0"),
        (libc::IFLA_LINK, &3u32.to_ne_bytes()),
        (libc::IFLA_LINKINFO, &info),
    ];
    let body = link_body(0, 9, libc::IFF_UP as u32);
    let Message::Link(entry) = decoded(libc::RTM_NEWLINK, &body, attributes) else {
        panic!("not a link");
    };
    assert_eq!((entry.vlan, entry.up, entry.mac), (None, false, None));
}

#[test]
fn a_bridge_port_that_leaves_is_no_link_that_goes() {
    let body = link_body(libc::AF_BRIDGE as u8, 9, UP);
    assert_eq!(decoded(libc::RTM_DELLINK, &body, &[]), Message::Other);
    assert_eq!(decoded(libc::RTM_NEWLINK, &body, &[]), Message::Other);
}

#[test]
fn neighbours() {
    let mut body = vec![libc::AF_INET as u8, 0, 0, 0];
    body.extend(5u32.to_ne_bytes());
    body.extend(libc::NUD_STALE.to_ne_bytes());
    body.extend([0, 0]);
    let attributes: &[(u16, &[u8])] = &[
        (libc::NDA_DST, &[192, 0, 2, 1]),
        (libc::NDA_LLADDR, &[2, 0, 0, 0, 0, 1]),
    ];
    let key = (5, IpAddr::from([192, 0, 2, 1]));
    assert_eq!(
        decoded(libc::RTM_NEWNEIGH, &body, attributes),
        Message::Neighbour {
            key,
            state: libc::NUD_STALE,
            mac: Some([2, 0, 0, 0, 0, 1]),
        }
    );
    assert_eq!(
        decoded(libc::RTM_DELNEIGH, &body, attributes),
        Message::NeighbourGone(key)
    );
    body[0] = libc::AF_BRIDGE as u8;
    assert_eq!(
        decoded(libc::RTM_NEWNEIGH, &body, attributes),
        Message::Other
    );
}

fn answer(kind: u8, family: i32, attributes: &[(u16, &[u8])]) -> Result<Route, HopProblem> {
    let mut body = [0; 12];
    body[0] = family as u8;
    body[7] = kind;
    let bytes = built(libc::RTM_NEWROUTE, &body, attributes);
    messages(&bytes).next().unwrap().route()
}

#[test]
fn routes() {
    let oif = 4u32.to_ne_bytes();
    let via6: IpAddr = "fe80::1".parse().unwrap();
    let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
    via.extend(octets(via6));
    assert_eq!(
        answer(libc::RTN_UNICAST, libc::AF_INET, &[(libc::RTA_OIF, &oif)]),
        Ok(Route {
            ifindex: 4,
            gateway: None
        })
    );
    let attributes: &[(u16, &[u8])] = &[(libc::RTA_OIF, &oif), (RTA_VIA, &via)];
    assert_eq!(
        answer(libc::RTN_UNICAST, libc::AF_INET, attributes),
        Ok(Route {
            ifindex: 4,
            gateway: Some(via6)
        })
    );
    assert_eq!(
        answer(libc::RTN_LOCAL, libc::AF_INET, attributes),
        Err(HopProblem::Local)
    );
    assert!(matches!(
        answer(libc::RTN_BLACKHOLE, libc::AF_INET6, attributes),
        Err(HopProblem::NotUnicast { .. })
    ));
    let attributes: &[(u16, &[u8])] = &[(libc::RTA_OIF, &oif), (RTA_ENCAP_TYPE, &[1, 0])];
    assert_eq!(
        answer(libc::RTN_UNICAST, libc::AF_INET, attributes),
        Err(HopProblem::Encapsulated)
    );
    let code = (-libc::ENETUNREACH).to_ne_bytes();
    let bytes = built(NLMSG_ERROR, &code, &[]);
    assert_eq!(
        messages(&bytes).next().unwrap().route(),
        Err(HopProblem::NoRoute {
            errno: libc::ENETUNREACH
        })
    );
}

#[test]
fn route_changes_name_their_prefix() {
    let mut body = [0; 12];
    body[..2].copy_from_slice(&[libc::AF_INET as u8, 24]);
    let attributes: &[(u16, &[u8])] = &[(libc::RTA_DST, &[192, 0, 2, 0])];
    let Message::RouteChanged(prefix) = decoded(libc::RTM_DELROUTE, &body, attributes) else {
        panic!("not a route");
    };
    let bounds = |first: &str, last: &str| (first.parse().unwrap(), last.parse().unwrap());
    assert_eq!(prefix.bounds(), bounds("192.0.2.0", "192.0.2.255"));
    body[..2].copy_from_slice(&[libc::AF_INET6 as u8, 0]);
    let Message::RouteChanged(prefix) = decoded(libc::RTM_NEWROUTE, &body, &[]) else {
        panic!("not a route");
    };
    let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    assert_eq!(prefix.bounds(), bounds("::", last));
    let host = Prefix {
        address: "2001:db8::1".parse().unwrap(),
        length: 128,
    };
    assert_eq!(host.bounds(), bounds("2001:db8::1", "2001:db8::1"));
}

#[test]
fn requests_come_in_one_datagram() {
    let mut bytes = Vec::new();
    route_request(&mut bytes, 1, "192.0.2.1".parse().unwrap());
    route_request(&mut bytes, 2, "2001:db8::1".parse().unwrap());
    use_request(&mut bytes, 3, (4, "192.0.2.1".parse().unwrap()));
    let all: Vec<_> = messages(&bytes).collect();
    assert_eq!(
        all.iter().map(|m| m.sequence).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(all[0].kind, libc::RTM_GETROUTE);
    assert_eq!(
        prefix(all[1].body).unwrap().address,
        "2001:db8::1".parse::<IpAddr>().unwrap()
    );
    assert!(matches!(
        all[2].decode(),
        Message::Neighbour {
            key: (4, _),
            state: 0,
            ..
        }
    ));
}

proptest! {
    #[test]
    fn no_bytes_break_it(
        kind in prop_oneof![Just(16u16), Just(17), Just(24), Just(28), Just(29), Just(2), any::<u16>()],
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = messages(&bytes).count();
        let raw = Raw { kind, flags: 0, sequence: 0, body: &bytes };
        let _ = (raw.decode(), raw.route(), raw.error());
        if bytes.len() > 40 {
            // Small lengths, so that attributes are found.
            for at in (12..bytes.len() - 1).step_by(8) {
                bytes[at + 1] = 0;
                bytes[at] %= 24;
            }
            if let Some(family) = bytes.first_mut() { *family = [0, 2, 10][usize::from(*family) % 3]; }
            let raw = Raw { kind, flags: 0, sequence: 0, body: &bytes };
            let _ = (raw.decode(), raw.route(), raw.error());
        }
    }
}
