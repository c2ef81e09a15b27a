//! Next hops from links, routes and neighbours.

use super::*;

const SERVER: [u8; 6] = [2, 0, 0, 0, 1, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 1, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 0, ifindex as u8]
}

fn link(ifindex: u32) -> LinkEntry {
    LinkEntry {
        ifindex,
        name: format!("eth{ifindex}").into(),
        mac: Some(mac(ifindex)),
        up: true,
        mtu: 1500,
        vlan: None,
        veth: false,
    }
}

fn vlan(ifindex: u32, parent: u32, id: u16, service: bool) -> LinkEntry {
    LinkEntry {
        vlan: Some(Vlan {
            parent,
            id,
            service,
        }),
        ..link(ifindex)
    }
}

fn neighbour(ifindex: u32, to: &str, state: u16, mac: Option<[u8; 6]>) -> Message {
    Message::Neighbour {
        key: (ifindex, ip(to)),
        state,
        mac,
    }
}

/// A destination that is on a link.
fn on_link(links: Vec<LinkEntry>, oif: u32) -> Table {
    let mut table = Table::default();
    table.set_destinations(&[ip("192.0.2.1")]);
    table.replace(links.into_iter().map(Message::Link).collect());
    assert_eq!(table.take_unresolved(), [ip("192.0.2.1")]);
    table.answer(
        ip("192.0.2.1"),
        Ok(Route {
            ifindex: oif,
            gateway: None,
        }),
    );
    table
}

fn hop(table: &Table) -> Result<Hop, HopProblem> {
    table.next_hops().hops[&ip("192.0.2.1")].clone()
}

fn resolved(links: Vec<LinkEntry>, oif: u32) -> Result<Hop, HopProblem> {
    let mut table = on_link(links, oif);
    table.apply(neighbour(
        oif,
        "192.0.2.1",
        libc::NUD_REACHABLE,
        Some(SERVER),
    ));
    hop(&table)
}

#[test]
fn a_plain_device_keeps_tags() {
    let hop = resolved(vec![link(1)], 1).unwrap();
    assert_eq!((hop.ifindex, hop.vlan_count), (1, VLAN_KEEP));
    assert_eq!(hop.macs[..6], SERVER);
    assert_eq!(hop.macs[6..], mac(1));
}

#[test]
fn a_device_with_vlans_on_top_sends_untagged() {
    let hop = resolved(vec![link(1), vlan(2, 1, 10, false)], 1).unwrap();
    assert_eq!((hop.ifindex, hop.vlan_count), (1, 0));
}

#[test]
fn a_vlan_device_gives_its_parent_and_tag() {
    let hop = resolved(vec![link(1), vlan(2, 1, 10, false)], 2).unwrap();
    assert_eq!((hop.ifindex, hop.vlan_count, hop.vlan_outer_ad), (1, 1, 0));
    assert_eq!(hop.tci, [Be16::new(10), Be16::default()]);
    assert_eq!(hop.macs[6..], mac(2), "the VLAN device's own address");
}

#[test]
fn stacked_vlan_devices_give_two_tags() {
    let links = vec![link(1), vlan(2, 1, 10, true), vlan(3, 2, 20, false)];
    let hop = resolved(links, 3).unwrap();
    assert_eq!((hop.ifindex, hop.vlan_count, hop.vlan_outer_ad), (1, 2, 1));
    assert_eq!(hop.tci, [Be16::new(10), Be16::new(20)]);
}

#[test]
fn tags_that_cannot_be_written_are_a_problem() {
    let unsupported = |links, oif| {
        matches!(
            resolved(links, oif),
            Err(HopProblem::UnsupportedTags { .. })
        )
    };
    assert!(unsupported(vec![link(1), vlan(2, 1, 10, true)], 2));
    assert!(unsupported(
        vec![link(1), vlan(2, 1, 10, false), vlan(3, 2, 20, true)],
        3
    ));
    assert!(unsupported(
        vec![
            link(1),
            vlan(2, 1, 1, false),
            vlan(3, 2, 2, false),
            vlan(4, 3, 3, false)
        ],
        4
    ));
    // A circle can't be, and must not hang.
    assert!(unsupported(
        vec![vlan(2, 3, 1, false), vlan(3, 2, 2, false)],
        2
    ));
}

#[test]
fn problems_are_named() {
    let down = LinkEntry {
        up: false,
        ..link(1)
    };
    let tunnel = LinkEntry {
        mac: None,
        ..link(1)
    };
    let text = |r: Result<Hop, HopProblem>| r.unwrap_err().to_string();
    assert_eq!(text(resolved(vec![down.clone()], 1)), "eth1 is down");
    assert_eq!(
        text(resolved(vec![tunnel], 1)),
        "eth1 is not an Ethernet device"
    );
    assert_eq!(
        text(resolved(vec![link(1)], 8)),
        "device 8 is not in this network namespace"
    );
    assert_eq!(
        text(resolved(vec![down, vlan(2, 1, 10, false)], 2)),
        "eth1 is down"
    );
    let mut table = on_link(vec![link(1)], 1);
    assert_eq!(text(hop(&table)), "192.0.2.1 on eth1 is being resolved");
    table.answer(ip("192.0.2.1"), Err(HopProblem::Local));
    assert_eq!(text(hop(&table)), "the address is this host's own");
}

#[test]
fn the_gateway_is_the_neighbour() {
    let mut table = on_link(vec![link(1)], 1);
    let gateway = Some(ip("fe80::1"));
    table.answer(
        ip("192.0.2.1"),
        Ok(Route {
            ifindex: 1,
            gateway,
        }),
    );
    assert_eq!(table.wanted().collect::<Vec<_>>(), [(1, ip("fe80::1"))]);
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_REACHABLE, Some(OTHER)));
    assert!(hop(&table).is_err());
    table.apply(neighbour(1, "fe80::1", libc::NUD_REACHABLE, Some(SERVER)));
    assert_eq!(hop(&table).unwrap().macs[..6], SERVER);
}

#[test]
fn a_neighbour_holds_until_it_has_really_failed() {
    let mut table = on_link(vec![link(1)], 1);
    let key = (1, ip("192.0.2.1"));
    assert_eq!(table.need(key), Need::Resolve);
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_REACHABLE, Some(SERVER)));
    assert_eq!(table.need(key), Need::Nothing);
    for state in [libc::NUD_STALE, libc::NUD_DELAY, libc::NUD_PROBE] {
        table.apply(neighbour(1, "192.0.2.1", state, Some(SERVER)));
        assert_eq!(table.need(key), Need::Confirm);
        assert!(hop(&table).is_ok());
    }
    table.apply(Message::NeighbourGone(key));
    assert_eq!(table.need(key), Need::Resolve);
    assert!(hop(&table).is_ok(), "thrown out is not failed");
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_INCOMPLETE, None));
    assert!(hop(&table).is_ok(), "being resolved is not failed");
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_FAILED, None));
    assert!(matches!(
        hop(&table),
        Err(HopProblem::NeighbourFailed { .. })
    ));
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_INCOMPLETE, None));
    assert!(hop(&table).is_err(), "not recovered yet");
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_REACHABLE, Some(OTHER)));
    assert_eq!(hop(&table).unwrap().macs[..6], OTHER);
}

#[test]
fn confirmations_change_nothing() {
    let mut table = on_link(vec![link(1)], 1);
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_REACHABLE, Some(SERVER)));
    assert!(table.take_changed());
    for state in [libc::NUD_STALE, libc::NUD_PROBE, libc::NUD_REACHABLE] {
        table.apply(neighbour(1, "192.0.2.1", state, Some(SERVER)));
    }
    table.apply(neighbour(1, "192.0.2.77", libc::NUD_REACHABLE, Some(OTHER)));
    table.apply(Message::Link(link(1)));
    assert!(!table.pending());
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_REACHABLE, Some(OTHER)));
    assert!(table.take_changed());
}

#[test]
fn what_may_change_a_route_asks_for_it_again() {
    let mut table = on_link(vec![link(1)], 1);
    let prefix = |text: &str, length| {
        Message::RouteChanged(Prefix {
            address: ip(text),
            length,
        })
    };
    let asked = |table: &mut Table, message| {
        table.apply(message);
        !table.take_unresolved().is_empty()
    };
    assert!(asked(&mut table, prefix("192.0.2.0", 24)));
    assert!(!asked(&mut table, prefix("198.51.100.0", 24)));
    assert!(!asked(&mut table, prefix("::", 0)));
    assert!(asked(&mut table, Message::RoutingChanged));
    let down = LinkEntry {
        up: false,
        ..link(1)
    };
    assert!(asked(&mut table, Message::Link(down.clone())));
    assert!(!asked(&mut table, Message::Link(down)));
    assert!(asked(&mut table, Message::LinkGone(1)));
}

#[test]
fn destinations_come_and_go() {
    let mut table = on_link(vec![link(1)], 1);
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_REACHABLE, Some(SERVER)));
    table.apply(Message::NeighbourGone((1, ip("192.0.2.1"))));
    table.set_destinations(&[ip("192.0.2.1"), ip("192.0.2.2"), ip("192.0.2.2")]);
    assert_eq!(table.take_unresolved(), [ip("192.0.2.2")]);
    assert!(hop(&table).is_ok());
    assert_eq!(table.next_hops().hops.len(), 1, "not asked for yet");
    table.set_destinations(&[]);
    assert_eq!(table.wanted().count(), 0);
    assert!(table.next_hops().hops.is_empty());
    assert!(table.neighbours.is_empty(), "nobody needs it any more");
    let late = Route {
        ifindex: 1,
        gateway: None,
    };
    table.answer(ip("192.0.2.2"), Ok(late));
    assert!(table.next_hops().hops.is_empty());
}

#[test]
fn a_full_read_ends_what_is_not_in_it() {
    let mut table = on_link(vec![link(1), link(2)], 1);
    table.apply(neighbour(1, "192.0.2.1", libc::NUD_REACHABLE, Some(SERVER)));
    table.apply(neighbour(1, "192.0.2.9", libc::NUD_REACHABLE, Some(SERVER)));
    table.replace(vec![Message::Link(link(1))]);
    assert_eq!(table.next_hops().links.len(), 1);
    assert!(hop(&table).is_ok());
    assert_eq!(table.need((1, ip("192.0.2.1"))), Need::Resolve);
    assert_eq!(table.neighbours.len(), 1);
    assert_eq!(table.take_unresolved(), [ip("192.0.2.1")]);
}
