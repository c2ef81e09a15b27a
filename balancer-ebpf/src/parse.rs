//! From bytes to a [`Packet`]: Ethernet, VLAN tags, IPv4 with options, IPv6 with
//! extension headers, and the ports. Checks lengths against each other and
//! against the frame; says by [`Reason`] what is wrong.

use crate::frame::{Frame, load};
use common::counters::Reason;
use common::flow::flags;
use common::{Addr, Be16};

/// Ethertype of IPv4, as loaded.
pub const ETH_IPV4: u16 = 0x0800_u16.to_be();
/// Ethertype of IPv6, as loaded.
pub const ETH_IPV6: u16 = 0x86dd_u16.to_be();
/// Ethertype of an 802.1Q tag, as loaded.
pub const ETH_VLAN: u16 = 0x8100_u16.to_be();
/// Ethertype of an 802.1ad tag, as loaded.
pub const ETH_VLAN_AD: u16 = 0x88a8_u16.to_be();

/// IP protocol numbers.
pub mod proto {
    #![allow(missing_docs, reason = "the names say it")]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DEST_OPTIONS: u8 = 60;
}

/// TCP flags, RFC 9293 section 3.1.
pub mod tcp {
    #![allow(missing_docs, reason = "the names say it")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
    /// The flags that decide a connection's state.
    pub const STATE: u8 = FIN | SYN | RST | ACK;
}

/// IPv6 extension headers that are followed.
const EXTENSIONS_MAX: usize = 6;

/// Whether a packet is a fragment, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// A whole packet.
    Whole = 0,
    /// The one with the transport header.
    First = 1,
    /// One of the others: no ports.
    Later = 2,
}

/// What is known about a packet. Offsets count from the frame's start.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port; for ICMP the type and code as loaded.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// VLAN tags of the frame, outer first.
    pub tci: [Be16; 2],
    /// How many tags: bits of [`flags::VLAN_MASK`].
    pub vlan: u16,
    /// Offset of the IP header: 14, 18 or 22.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Offset behind the IP packet's last byte.
    pub end: u32,
    /// IP protocol number of the transport header.
    pub proto: u8,
    /// TCP flags; 0 for others.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Fragments: the identification, as loaded.
    pub fragment_id: u32,
    /// Interface that it came in by.
    pub ingress: u32,
}

/// The frame up to its IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Ethertype behind the tags.
    pub ethertype: u16,
    /// Offset behind the Ethernet header and its tags.
    pub l3: usize,
    /// [`flags::VLAN_MASK`] bits.
    pub vlan: u16,
    /// Tag control information, outer first.
    pub tci: [Be16; 2],
}

/// Ethernet and up to two VLAN tags.
#[inline(always)]
pub fn link(frame: &Frame) -> Result<Link, Reason> {
    let Some(eth) = frame.at(0, 14) else {
        return Err(Reason::TruncatedEthernet);
    };
    // SAFETY: within the 14 bytes.
    let outer: u16 = unsafe { load(eth + 12) };
    let mut link = Link {
        ethertype: outer,
        l3: 14,
        vlan: 0,
        tci: [Be16(0); 2],
    };
    if outer != ETH_VLAN && outer != ETH_VLAN_AD {
        return Ok(link);
    }
    let Some(tag) = frame.at(14, 4) else {
        return Err(Reason::TruncatedEthernet);
    };
    // SAFETY: within the 4 bytes.
    unsafe {
        link.tci[0] = Be16(load(tag));
        link.ethertype = load(tag + 2);
    }
    link.l3 = 18;
    link.vlan = flags::VLAN_1;
    if outer == ETH_VLAN_AD {
        link.vlan |= flags::VLAN_OUTER_AD;
    }
    if link.ethertype != ETH_VLAN && link.ethertype != ETH_VLAN_AD {
        return Ok(link);
    }
    let Some(tag) = frame.at(18, 4) else {
        return Err(Reason::TruncatedEthernet);
    };
    // SAFETY: within the 4 bytes.
    unsafe {
        link.tci[1] = Be16(load(tag));
        link.ethertype = load(tag + 2);
    }
    link.l3 = 22;
    link.vlan |= flags::VLAN_2;
    if link.ethertype == ETH_VLAN || link.ethertype == ETH_VLAN_AD {
        return Err(Reason::TooManyVlanTags);
    }
    Ok(link)
}

impl Packet {
    /// A packet of which only the frame is known.
    #[inline(always)]
    pub fn new(link: &Link, ingress: u32) -> Self {
        Self {
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            sport: Be16(0),
            dport: Be16(0),
            tci: link.tci,
            vlan: link.vlan,
            l3: link.l3 as u32,
            l4: 0,
            end: 0,
            proto: 0,
            tcp_flags: 0,
            ttl: 0,
            fragment: Fragment::Whole,
            fragment_id: 0,
            ingress,
        }
    }

    /// IPv4 header, RFC 791.
    #[inline(always)]
    pub fn ipv4(&mut self, frame: &Frame, l3: usize) -> Result<(), Reason> {
        let Some(ip) = frame.at(l3, 20) else {
            return Err(Reason::TruncatedIp);
        };
        // SAFETY: all within the 20 bytes.
        let (version, length, fragment, src, dst) = unsafe {
            self.ttl = load(ip + 8);
            self.proto = load(ip + 9);
            self.fragment_id = load::<u16>(ip + 4) as u32;
            (
                load::<u8>(ip),
                u16::from_be(load(ip + 2)) as usize,
                u16::from_be(load(ip + 6)),
                load::<u32>(ip + 12),
                load::<u32>(ip + 16),
            )
        };
        let header = ((version & 0x0f) as usize) * 4;
        if version >> 4 != 4 || header < 20 {
            return Err(Reason::BadIpHeader);
        }
        if header > 20 && frame.at(l3, header).is_none() {
            return Err(Reason::TruncatedIp);
        }
        if length < header || l3 + length > frame.len() {
            return Err(Reason::BadIpLength);
        }
        self.src = Addr::from_v4_word(src);
        self.dst = Addr::from_v4_word(dst);
        self.l4 = (l3 + header) as u32;
        self.end = (l3 + length) as u32;
        if fragment & 0x3fff != 0 {
            let later = fragment & 0x1fff != 0;
            self.fragment = if later {
                Fragment::Later
            } else {
                Fragment::First
            };
        }
        Ok(())
    }

    /// IPv6 header, RFC 8200 section 3. What follows may be an extension header:
    /// see [`Packet::extensions`].
    #[inline(always)]
    pub fn ipv6(&mut self, frame: &Frame, l3: usize) -> Result<(), Reason> {
        let Some(ip) = frame.at(l3, 40) else {
            return Err(Reason::TruncatedIp);
        };
        // SAFETY: all within the 40 bytes.
        let (version, length, next) = unsafe {
            self.ttl = load(ip + 7);
            self.src = Addr([load(ip + 8), load(ip + 16)]);
            self.dst = Addr([load(ip + 24), load(ip + 32)]);
            (
                load::<u8>(ip),
                u16::from_be(load(ip + 4)) as usize,
                load::<u8>(ip + 6),
            )
        };
        if version >> 4 != 6 {
            return Err(Reason::BadIpHeader);
        }
        if l3 + 40 + length > frame.len() {
            return Err(Reason::BadIpLength);
        }
        // A mapped address on the wire would pass for IPv4 in the tables.
        if self.src.is_v4() || self.dst.is_v4() {
            return Err(Reason::BadSource);
        }
        self.end = (l3 + 40 + length) as u32;
        self.l4 = (l3 + 40) as u32;
        self.proto = next;
        Ok(())
    }

    /// Whether an extension header follows.
    #[inline(always)]
    pub fn is_extension(&self) -> bool {
        matches!(
            self.proto,
            proto::HOP_BY_HOP
                | proto::DEST_OPTIONS
                | proto::ROUTING
                | proto::AUTH
                | proto::FRAGMENT
        )
    }

    /// Follows the extension headers of an IPv6 packet, RFC 8200 section 4.
    #[inline(always)]
    pub fn extensions(&mut self, frame: &Frame) -> Result<(), Reason> {
        let (mut at, mut next) = (self.l4 as usize, self.proto);
        let end = self.end as usize;
        for followed in 0..=EXTENSIONS_MAX {
            self.proto = next;
            self.l4 = at as u32;
            if !self.is_extension() {
                return Ok(());
            }
            if followed == EXTENSIONS_MAX {
                break;
            }
            if at + 8 > end {
                return Err(Reason::TruncatedIp);
            }
            let Some(header) = frame.at(at, 8) else {
                return Err(Reason::TruncatedIp);
            };
            // SAFETY: all within the 8 bytes.
            let (following, len, third, word, id) = unsafe {
                (
                    load::<u8>(header),
                    load::<u8>(header + 1) as usize,
                    load::<u8>(header + 3),
                    u16::from_be(load(header + 2)),
                    load::<u32>(header + 4),
                )
            };
            let size = if next == proto::FRAGMENT {
                if word & 0xfff9 != 0 {
                    let later = word & 0xfff8 != 0;
                    self.fragment = if later {
                        Fragment::Later
                    } else {
                        Fragment::First
                    };
                    self.fragment_id = id;
                }
                8
            } else if next == proto::AUTH {
                (len + 2) * 4
            } else {
                (len + 1) * 8
            };
            if next == proto::ROUTING && third != 0 {
                return Err(Reason::BadExtensionHeaders);
            }
            at += size;
            if at > end {
                return Err(Reason::TruncatedIp);
            }
            next = following;
            if let Fragment::Later = self.fragment {
                // What follows is data: its first header lies in the first fragment.
                self.proto = next;
                self.l4 = at as u32;
                return Ok(());
            }
        }
        Err(Reason::BadExtensionHeaders)
    }

    /// Ports and flags of TCP and UDP; for ICMP only that there are 8 bytes.
    /// Other protocols are left alone.
    #[inline(always)]
    pub fn transport(&mut self, frame: &Frame) -> Result<(), Reason> {
        if let Fragment::Later = self.fragment {
            return Ok(());
        }
        let (l4, end) = (self.l4 as usize, self.end as usize);
        let whole = matches!(self.fragment, Fragment::Whole);
        if self.proto == proto::TCP {
            let Some(t) = frame.at(l4, 20) else {
                return Err(Reason::TruncatedTransport);
            };
            if l4 + 20 > end {
                return Err(Reason::TruncatedTransport);
            }
            // SAFETY: all within the 20 bytes.
            let offset = unsafe {
                self.sport = Be16(load(t));
                self.dport = Be16(load(t + 2));
                self.tcp_flags = load(t + 13);
                (load::<u8>(t + 12) >> 4) as usize * 4
            };
            if offset < 20 || (whole && l4 + offset > end) {
                return Err(Reason::BadTransportLength);
            }
        } else if self.proto == proto::UDP {
            let Some(u) = frame.at(l4, 8) else {
                return Err(Reason::TruncatedTransport);
            };
            if l4 + 8 > end {
                return Err(Reason::TruncatedTransport);
            }
            // SAFETY: all within the 8 bytes.
            let length = unsafe {
                self.sport = Be16(load(u));
                self.dport = Be16(load(u + 2));
                u16::from_be(load(u + 4)) as usize
            };
            if length < 8 || (whole && l4 + length > end) {
                return Err(Reason::BadTransportLength);
            }
        } else if self.proto == proto::ICMP || self.proto == proto::ICMPV6 {
            let Some(i) = frame.at(l4, 8) else {
                return Err(Reason::TruncatedTransport);
            };
            if l4 + 8 > end {
                return Err(Reason::TruncatedTransport);
            }
            // SAFETY: within the 8 bytes.
            self.sport = Be16(unsafe { load(i) });
        }
        Ok(())
    }

    /// Whether the frame carries IPv4.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.src.is_v4()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Frame {
        let data = bytes.as_ptr() as usize;
        Frame {
            data,
            end: data + bytes.len(),
        }
    }

    fn tcp_over_v4() -> Vec<u8> {
        let mut f = vec![0; 14 + 20 + 20];
        f[12..14].copy_from_slice(&[0x08, 0x00]);
        f[14] = 0x45;
        f[17] = 40;
        f[22] = 64;
        f[23] = proto::TCP;
        f[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        f[34..38].copy_from_slice(&[0x12, 0x34, 0, 80]);
        f[46] = 5 << 4;
        f[47] = tcp::SYN;
        f
    }

    fn parse(bytes: &[u8]) -> Result<Packet, Reason> {
        let frame = frame(bytes);
        let link = link(&frame)?;
        let mut p = Packet::new(&link, 1);
        if link.ethertype == ETH_IPV4 {
            p.ipv4(&frame, link.l3)?;
        } else {
            p.ipv6(&frame, link.l3)?;
            if p.is_extension() {
                p.extensions(&frame)?;
            }
        }
        p.transport(&frame)?;
        Ok(p)
    }

    #[test]
    fn a_plain_segment() {
        let p = parse(&tcp_over_v4()).unwrap();
        assert_eq!((p.l3, p.l4, p.end), (14, 34, 54));
        assert_eq!(
            (p.sport.host(), p.dport.host(), p.tcp_flags),
            (0x1234, 80, tcp::SYN)
        );
        assert_eq!(p.fragment, Fragment::Whole);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let f = tcp_over_v4();
        for len in 0..f.len() {
            assert!(parse(&f[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn two_tags_are_read_and_a_third_refused() {
        let f = tcp_over_v4();
        let tag = |n: usize| {
            let mut t = f[..12].to_vec();
            for i in 0..n {
                t.extend([
                    if i == 0 { 0x88 } else { 0x81 },
                    if i == 0 { 0xa8 } else { 0 },
                ]);
                t.extend([0, 7 + i as u8]);
            }
            t.extend(&f[12..]);
            t
        };
        let p = parse(&tag(2)).unwrap();
        assert_eq!(p.vlan, flags::VLAN_1 | flags::VLAN_2 | flags::VLAN_OUTER_AD);
        assert_eq!((p.tci[0].host(), p.tci[1].host(), p.l3), (7, 8, 22));
        assert_eq!(parse(&tag(3)).unwrap_err(), Reason::TooManyVlanTags);
    }

    #[test]
    fn contradicting_lengths_have_their_reasons() {
        let with = |at: usize, value: u8| {
            let mut f = tcp_over_v4();
            f[at] = value;
            parse(&f).unwrap_err()
        };
        assert_eq!(with(14, 0x55), Reason::BadIpHeader);
        assert_eq!(with(14, 0x44), Reason::BadIpHeader);
        assert_eq!(with(17, 19), Reason::BadIpLength);
        assert_eq!(with(17, 41), Reason::BadIpLength);
        assert_eq!(with(17, 39), Reason::TruncatedTransport);
        assert_eq!(with(46, 4 << 4), Reason::BadTransportLength);
        assert_eq!(with(46, 6 << 4), Reason::BadTransportLength);
    }
}
