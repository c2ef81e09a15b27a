//! The few netlink messages that next hops need, from and to bytes.
//!
//! Only the attributes that matter are read, each for itself: one that is
//! unknown or longer than expected can't hide a whole link or route. Sources:
//! rtnetlink(7), linux/rtnetlink.h, linux/neighbour.h, linux/if_link.h.

use super::HopProblem;
use super::table::{LinkEntry, Route, Vlan};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a message says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Link(LinkEntry),
    LinkGone(u32),
    Neighbour {
        key: (u32, IpAddr),
        state: u16,
        mac: Option<[u8; 6]>,
    },
    NeighbourGone((u32, IpAddr)),
    /// A route to this prefix has come, changed or gone.
    RouteChanged(Prefix),
    /// Something that any route may depend on: addresses, rules, next hop objects.
    RoutingChanged,
    /// Of no interest.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl Prefix {
    /// The first and the last address of the prefix.
    pub fn bounds(&self) -> (IpAddr, IpAddr) {
        let length = u32::from(self.length);
        match self.address {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(length).unwrap_or(0);
                let first = ip.to_bits() & !host;
                let bound = |bits| IpAddr::V4(Ipv4Addr::from_bits(bits));
                (bound(first), bound(first | host))
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(length).unwrap_or(0);
                let first = ip.to_bits() & !host;
                let bound = |bits| IpAddr::V6(Ipv6Addr::from_bits(bits));
                (bound(first), bound(first | host))
            }
        }
    }
}

const HEADER: usize = 16;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const NTF_USE: u8 = 1;
const NTF_PROXY: u8 = 8;
/// The kind of a message that ends a dump, and of an error or acknowledgement.
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
/// The dump is not of one moment: it must be repeated.
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

/// The messages of a datagram; ends at the first that is not whole.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let raw = Raw {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(raw)
    })
}

impl Raw<'_> {
    /// What the message says; `Other` also when it can't be understood.
    pub fn decode(&self) -> Message {
        let decoded = match self.kind {
            libc::RTM_NEWLINK => link(self.body).map(Message::Link),
            libc::RTM_DELLINK => link(self.body).map(|l| Message::LinkGone(l.ifindex)),
            libc::RTM_NEWNEIGH => neighbour(self.body),
            libc::RTM_DELNEIGH => neighbour(self.body).and_then(|m| match m {
                Message::Neighbour { key, .. } => Some(Message::NeighbourGone(key)),
                _ => None,
            }),
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => prefix(self.body).map(Message::RouteChanged),
            libc::RTM_NEWADDR
            | libc::RTM_DELADDR
            | libc::RTM_NEWRULE
            | libc::RTM_DELRULE
            | RTM_NEWNEXTHOP
            | RTM_DELNEXTHOP => Some(Message::RoutingChanged),
            _ => None,
        };
        decoded.unwrap_or(Message::Other)
    }

    /// The error number of an error message; 0 for an acknowledgement.
    pub fn error(&self) -> Option<i32> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        u32_at(self.body, 0).map(|code| (code as i32).wrapping_neg())
    }

    /// The answer to [`route_request`].
    pub fn route(&self) -> Result<Route, HopProblem> {
        if let Some(code) = self.error() {
            return Err(HopProblem::NoRoute { errno: code });
        }
        route(self.body).unwrap_or(Err(HopProblem::NoRoute { errno: 0 }))
    }
}

/// Only whole link messages: a bridge sends ones of its own family about its
/// ports, and a "link gone" of that family only means that a port has left.
fn link(body: &[u8]) -> Option<LinkEntry> {
    if *body.first()? != libc::AF_UNSPEC as u8 {
        return None;
    }
    let flags = u32_at(body, 8)?;
    let running = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
    let mut entry = LinkEntry {
        ifindex: u32_at(body, 4)?,
        name: "".into(),
        mac: None,
        up: flags & running == running,
        mtu: 0,
        vlan: None,
        veth: false,
    };
    let ethernet = u16_at(body, 2)? == libc::ARPHRD_ETHER;
    let (mut parent, mut elsewhere, mut info) = (0, false, &[][..]);
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            libc::IFLA_ADDRESS if ethernet => entry.mac = value.try_into().ok(),
            libc::IFLA_IFNAME => entry.name = text(value).into(),
            libc::IFLA_MTU => entry.mtu = u32_at(value, 0)?,
            libc::IFLA_LINK => parent = u32_at(value, 0)?,
            libc::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_LINKINFO => info = value,
            _ => {}
        }
    }
    let (mut is_vlan, mut id, mut protocol) = (false, 0, libc::ETH_P_8021Q as u16);
    for (kind, value) in attributes(info) {
        match kind {
            IFLA_INFO_KIND => {
                is_vlan = text(value) == "vlan";
                entry.veth = text(value) == "veth";
            }
            IFLA_INFO_DATA if is_vlan => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_VLAN_ID => id = u16_at(value, 0)?,
                        IFLA_VLAN_PROTOCOL => protocol = u16::from_be(u16_at(value, 0)?),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if is_vlan {
        entry.vlan = Some(Vlan {
            // A parent in another namespace has an index that means nothing here.
            parent: if elsewhere { 0 } else { parent },
            id,
            service: protocol == libc::ETH_P_8021AD as u16,
        });
    }
    Some(entry)
}

fn neighbour(body: &[u8]) -> Option<Message> {
    let family = *body.first()?;
    let ifindex = u32_at(body, 4)?;
    let state = u16_at(body, 8)?;
    if body.get(10)? & NTF_PROXY != 0 {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            libc::NDA_DST => ip = address(family, value),
            libc::NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    Some(Message::Neighbour {
        key: (ifindex, ip?),
        state,
        mac,
    })
}

fn prefix(body: &[u8]) -> Option<Prefix> {
    let family = *body.first()?;
    let length = *body.get(1)?;
    let mut prefix = Prefix {
        address: match i32::from(family) {
            libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        },
        length,
    };
    for (kind, value) in attributes(body.get(12..)?) {
        if kind == libc::RTA_DST {
            prefix.address = address(family, value)?;
        }
    }
    Some(prefix)
}

fn route(body: &[u8]) -> Option<Result<Route, HopProblem>> {
    let family = *body.first()?;
    let kind = *body.get(7)?;
    let (mut oif, mut gateway, mut encapsulated) = (None, None, false);
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            libc::RTA_OIF => oif = u32_at(value, 0),
            libc::RTA_GATEWAY => gateway = address(family, value),
            // A gateway of the other family (RFC 5549).
            RTA_VIA => gateway = address(u16_at(value, 0)? as u8, value.get(2..)?),
            RTA_ENCAP_TYPE => encapsulated = u16_at(value, 0)? != 0,
            _ => {}
        }
    }
    Some(match kind {
        libc::RTN_LOCAL => Err(HopProblem::Local),
        libc::RTN_UNICAST if encapsulated => Err(HopProblem::Encapsulated),
        libc::RTN_UNICAST => match oif {
            Some(ifindex) => Ok(Route { ifindex, gateway }),
            None => Err(HopProblem::NoRoute { errno: 0 }),
        },
        kind => Err(HopProblem::NotUnicast { kind }),
    })
}

/// Asks for everything of one kind.
pub(super) fn dump_request(sequence: u32, kind: u16) -> Vec<u8> {
    // The longest of the fixed headers, all zero: every family, no filter.
    let body = match kind {
        libc::RTM_GETLINK => &[0; 16][..],
        _ => &[0; 12][..],
    };
    let mut bytes = Vec::new();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    message(&mut bytes, kind, flags as u16, sequence, body, &[]);
    bytes
}

/// Appends a question for the route that packets to `destination` take.
pub(super) fn route_request(bytes: &mut Vec<u8>, sequence: u32, destination: IpAddr) {
    let mut body = [0; 12];
    let octets = octets(destination);
    body[0] = family(destination);
    body[1] = (octets.len() * 8) as u8;
    message(
        bytes,
        libc::RTM_GETROUTE,
        libc::NLM_F_REQUEST as u16,
        sequence,
        &body,
        &[(libc::RTA_DST, &octets)],
    );
}

/// Appends the wish that the kernel resolve or confirm a neighbour, as if a packet
/// had been sent to it.
pub(super) fn use_request(bytes: &mut Vec<u8>, sequence: u32, (ifindex, ip): (u32, IpAddr)) {
    let mut body = [0; 12];
    body[0] = family(ip);
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[10] = NTF_USE;
    message(
        bytes,
        libc::RTM_NEWNEIGH,
        (libc::NLM_F_REQUEST | libc::NLM_F_CREATE | libc::NLM_F_ACK) as u16,
        sequence,
        &body,
        &[(libc::NDA_DST, &octets(ip))],
    );
}

fn message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &[u8],
    attributes: &[(u16, &[u8])],
) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    for (kind, value) in attributes {
        bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*value);
        bytes.resize(start + align(bytes.len() - start), 0);
    }
    let length = (bytes.len() - start) as u32;
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// The attributes of a message; ends at the first that is not whole.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        // The two high bits say "nested" and "network byte order".
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}

fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(<[u8; 4]>::try_from(value).ok()?.into()),
        libc::AF_INET6 => Some(<[u8; 16]>::try_from(value).ok()?.into()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
