//! The model's reading of a frame: offsets and fields, or the reason why not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::counters::Reason;

use crate::packets::{ICMP, ICMPV6, TCP, Tag, UDP};

/// What was found in a frame.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// VLAN tags, outer first.
    pub tags: Vec<Tag>,
    /// Offset of the IP header.
    pub l3: usize,
    /// IPv4; IPv6 otherwise.
    pub v4: bool,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Protocol of the payload.
    pub proto: u8,
    /// Offset of the payload.
    pub l4: usize,
    /// Offset behind the packet; what follows is padding.
    pub end: usize,
    /// Whether this is a part, and of what.
    pub part: Part,
}

/// Fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Not fragmented.
    Whole,
    /// The first, with the datagram's identification.
    First(u32),
    /// A later one.
    Later(u32),
}

/// Ports and what else a transport header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
}

pub(super) fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

pub(super) fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub(super) fn v4_at(b: &[u8], at: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(b[at], b[at + 1], b[at + 2], b[at + 3]))
}

pub(super) fn v6_at(b: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&b[at..at + 16]);
    IpAddr::V6(Ipv6Addr::from(octets))
}

/// Steps 1 to 3 of the page, up to the offset of the payload.
pub fn network(frame: &[u8]) -> Result<Parsed, Reason> {
    let mut tags = Vec::new();
    let mut at = 12;
    loop {
        if at + 2 > frame.len() {
            return Err(Reason::TruncatedEthernet);
        }
        let kind = be16(frame, at);
        match kind {
            0x8100 | 0x88a8 if tags.len() == 2 => return Err(Reason::TooManyVlanTags),
            0x8100 | 0x88a8 => {
                if at + 4 > frame.len() {
                    return Err(Reason::TruncatedEthernet);
                }
                tags.push(Tag {
                    tpid: kind,
                    tci: be16(frame, at + 2),
                });
                at += 4;
            }
            0x0800 => return ipv4(frame, at + 2, tags),
            0x86dd => return ipv6(frame, at + 2, tags),
            _ => return Err(Reason::NotIp),
        }
    }
}

fn ipv4(frame: &[u8], l3: usize, tags: Vec<Tag>) -> Result<Parsed, Reason> {
    if frame.len() < l3 + 20 {
        return Err(Reason::TruncatedIp);
    }
    let header = usize::from(frame[l3] & 0x0f) * 4;
    if frame[l3] >> 4 != 4 || header < 20 {
        return Err(Reason::BadIpHeader);
    }
    if frame.len() < l3 + header {
        return Err(Reason::TruncatedIp);
    }
    let total = usize::from(be16(frame, l3 + 2));
    if total < header || l3 + total > frame.len() {
        return Err(Reason::BadIpLength);
    }
    let id = u32::from(be16(frame, l3 + 4));
    let field = be16(frame, l3 + 6);
    Ok(Parsed {
        tags,
        l3,
        v4: true,
        src: v4_at(frame, l3 + 12),
        dst: v4_at(frame, l3 + 16),
        ttl: frame[l3 + 8],
        proto: frame[l3 + 9],
        l4: l3 + header,
        end: l3 + total,
        part: part(field & 0x1fff, field & 0x2000 != 0, id),
    })
}

fn part(offset: u16, more: bool, id: u32) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First(id),
        _ => Part::Later(id),
    }
}

fn ipv6(frame: &[u8], l3: usize, tags: Vec<Tag>) -> Result<Parsed, Reason> {
    if frame.len() < l3 + 40 {
        return Err(Reason::TruncatedIp);
    }
    if frame[l3] >> 4 != 6 {
        return Err(Reason::BadIpHeader);
    }
    let end = l3 + 40 + usize::from(be16(frame, l3 + 4));
    if end > frame.len() {
        return Err(Reason::BadIpLength);
    }
    let (src, dst) = (v6_at(frame, l3 + 8), v6_at(frame, l3 + 24));
    if mapped(src) || mapped(dst) {
        return Err(Reason::BadSource);
    }
    let (mut next, mut at, mut count) = (frame[l3 + 6], l3 + 40, 0);
    let mut state = Part::Whole;
    while matches!(next, 0 | 43 | 44 | 51 | 60) {
        if count == 6 {
            return Err(Reason::BadExtensionHeaders);
        }
        count += 1;
        if at + 8 > end {
            return Err(Reason::TruncatedIp);
        }
        if next == 43 && frame[at + 3] != 0 {
            return Err(Reason::BadExtensionHeaders);
        }
        let units = usize::from(frame[at + 1]);
        let size = match next {
            44 => 8,
            51 => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        if at + size > end {
            return Err(Reason::TruncatedIp);
        }
        if next == 44 {
            let field = be16(frame, at + 2);
            // An atomic one behind a real one changes nothing.
            match part(field >> 3, field & 1 != 0, be32(frame, at + 4)) {
                Part::Whole => {}
                other => state = other,
            }
        }
        next = frame[at];
        at += size;
        if matches!(state, Part::Later(_)) {
            break;
        }
    }
    Ok(Parsed {
        tags,
        l3,
        v4: false,
        src,
        dst,
        ttl: frame[l3 + 7],
        proto: next,
        l4: at,
        end,
        part: state,
    })
}

/// IPv4 as an IPv6 address, which nobody may use on the wire.
fn mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Step 4: checks the transport header; ports for TCP and UDP.
pub fn transport(frame: &[u8], p: &Parsed) -> Result<Option<Ports>, Reason> {
    let room = p.end - p.l4;
    let first = matches!(p.part, Part::First(_));
    let ports = |at: usize| Ports {
        src: be16(frame, at),
        dst: be16(frame, at + 2),
    };
    match (p.proto, p.v4) {
        (TCP, _) => {
            if room < 20 {
                return Err(Reason::TruncatedTransport);
            }
            let header = usize::from(frame[p.l4 + 12] >> 4) * 4;
            if header < 20 || (!first && header > room) {
                return Err(Reason::BadTransportLength);
            }
            Ok(Some(ports(p.l4)))
        }
        (UDP, _) => {
            if room < 8 {
                return Err(Reason::TruncatedTransport);
            }
            let len = usize::from(be16(frame, p.l4 + 4));
            if len < 8 || (!first && len > room) {
                return Err(Reason::BadTransportLength);
            }
            Ok(Some(ports(p.l4)))
        }
        (ICMP, true) | (ICMPV6, false) => {
            if room < 8 {
                return Err(Reason::TruncatedTransport);
            }
            Ok(None)
        }
        _ => Err(Reason::NotBalanced),
    }
}
