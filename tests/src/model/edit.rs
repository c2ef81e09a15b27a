//! The model's way to change packets: write the fields, then compute every
//! checksum anew over all that it covers.
//!
//! A packet that came with a wrong checksum must leave with one that is wrong by
//! the same amount, or the balancer would vouch for damaged data. So the
//! difference between the field and the right value is carried over, in ones'
//! complement arithmetic; for a right checksum it is zero.

use std::net::IpAddr;

use super::parse::{Parsed, be16};
use crate::packets::{ICMPV6, Tag, UDP, address_bytes, ones_sum, pseudo_header};

/// The field that goes with bytes that sum to `after`, when `field` came with
/// bytes that summed to `before`.
pub fn carry(field: u16, before: u16, after: u16) -> u16 {
    const ONES: u32 = 0xffff;
    let sum = (u32::from(!field) + (ONES - u32::from(before) % ONES) + u32::from(after)) % ONES;
    // Zero and all ones are one number; sums of real packets are written as all
    // ones, whose complement is zero.
    !(if sum == 0 { 0xffff } else { sum as u16 })
}

/// An IP packet within a buffer: where it starts, its payload, its end.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the payload.
    pub l4: usize,
    /// Offset behind the last byte.
    pub end: usize,
    /// IPv4.
    pub v4: bool,
    /// Protocol of the payload.
    pub proto: u8,
}

impl From<&Parsed> for Place {
    fn from(p: &Parsed) -> Self {
        Self {
            l3: p.l3,
            l4: p.l4,
            end: p.end,
            v4: p.v4,
            proto: p.proto,
        }
    }
}

/// New addresses and ports; `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Source address, and port where the packet's are known to be there.
    pub src: Option<(IpAddr, u16)>,
    /// Destination.
    pub dst: Option<(IpAddr, u16)>,
    /// Time to live.
    pub ttl: Option<u8>,
    /// Leave the transport header alone: the packet is a later fragment.
    pub addresses_only: bool,
}

/// Applies a change to a TCP or UDP packet and keeps its checksums right.
pub fn rewrite(bytes: &mut [u8], at: Place, change: Change) {
    let old = bytes.to_vec();
    set_network(bytes, at, change);
    if change.addresses_only {
        return;
    }
    if let Some((_, port)) = change.src {
        bytes[at.l4..at.l4 + 2].copy_from_slice(&port.to_be_bytes());
    }
    if let Some((_, port)) = change.dst {
        bytes[at.l4 + 2..at.l4 + 4].copy_from_slice(&port.to_be_bytes());
    }
    let field = at.l4 + if at.proto == UDP { 6 } else { 16 };
    if field + 2 > at.end {
        return;
    }
    let came = be16(&old, field);
    if at.proto == UDP && came == 0 {
        return;
    }
    let mut check = carry(came, covered(&old, at, field), covered(bytes, at, field));
    if at.proto == UDP && check == 0 {
        check = 0xffff;
    }
    bytes[field..field + 2].copy_from_slice(&check.to_be_bytes());
}

/// Applies a change to the addresses and TTL, and keeps the IPv4 header's
/// checksum right.
pub fn set_network(bytes: &mut [u8], at: Place, change: Change) {
    let old = bytes.to_vec();
    let (src, dst, ttl) = if at.v4 { (12, 16, 8) } else { (8, 24, 7) };
    for (offset, to) in [(src, change.src), (dst, change.dst)] {
        if let Some((ip, _)) = to {
            let octets = address_bytes(ip);
            let offset = at.l3 + offset;
            bytes[offset..offset + octets.len()].copy_from_slice(&octets);
        }
    }
    if let Some(value) = change.ttl {
        bytes[at.l3 + ttl] = value;
    }
    if at.v4 {
        let field = at.l3 + 10;
        let sum = |b: &[u8]| ones_sum(&[&b[at.l3..field], &b[field + 2..header_end(b, at)]]);
        let check = carry(be16(&old, field), sum(&old), sum(bytes));
        bytes[field..field + 2].copy_from_slice(&check.to_be_bytes());
    }
}

/// Keeps an ICMP message's checksum right after `bytes` was made of `old`.
pub fn icmp_checksum(bytes: &mut [u8], old: &[u8], at: Place) {
    let field = at.l4 + 2;
    let check = carry(
        be16(old, field),
        covered(old, at, field),
        covered(bytes, at, field),
    );
    bytes[field..field + 2].copy_from_slice(&check.to_be_bytes());
}

/// The frame with other hardware addresses and, when given, other tags.
pub fn link(frame: &[u8], p: &Parsed, macs: [u8; 12], tags: Option<&[Tag]>) -> Vec<u8> {
    let mut out = macs.to_vec();
    for tag in tags.unwrap_or(&p.tags) {
        out.extend(tag.tpid.to_be_bytes());
        out.extend(tag.tci.to_be_bytes());
    }
    out.extend(&frame[p.l3 - 2..]);
    out
}

fn header_end(bytes: &[u8], at: Place) -> usize {
    at.l3 + usize::from(bytes[at.l3] & 0x0f) * 4
}

/// Sum over everything that a transport checksum covers, the field itself as 0.
fn covered(bytes: &[u8], at: Place, field: usize) -> u16 {
    let mut payload = bytes[at.l4..at.end].to_vec();
    payload[field - at.l4..field - at.l4 + 2].fill(0);
    if at.v4 && at.proto == crate::packets::ICMP {
        return ones_sum(&[&payload]);
    }
    let (src, dst) = if at.v4 {
        (
            super::parse::v4_at(bytes, at.l3 + 12),
            super::parse::v4_at(bytes, at.l3 + 16),
        )
    } else {
        (
            super::parse::v6_at(bytes, at.l3 + 8),
            super::parse::v6_at(bytes, at.l3 + 24),
        )
    };
    debug_assert!(at.proto != ICMPV6 || !at.v4);
    ones_sum(&[&pseudo_header(src, dst, at.proto, payload.len()), &payload])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::internet_checksum;

    #[test]
    fn a_right_checksum_stays_right() {
        for n in 0..2_000u32 {
            let before: Vec<u8> = (0..20)
                .map(|i| (n.wrapping_mul(2_654_435_761) >> (i % 25)) as u8 | 1)
                .collect();
            let mut after = before.clone();
            after[4..8].copy_from_slice(&n.to_be_bytes());
            let field = internet_checksum(&[&before]);
            assert_eq!(
                carry(field, ones_sum(&[&before]), ones_sum(&[&after])),
                internet_checksum(&[&after])
            );
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong_by_as_much() {
        let (before, after) = ([1u8, 2, 3, 4], [9u8, 9, 3, 4]);
        let right = internet_checksum(&[&after]);
        let off = internet_checksum(&[&before]) - 5;
        assert_eq!(
            carry(off, ones_sum(&[&before]), ones_sum(&[&after])),
            right - 5
        );
    }
}
