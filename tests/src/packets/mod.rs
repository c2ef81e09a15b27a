//! Frames for packet tests: built from their parts, every checksum computed
//! whole over the bytes that it covers.
//!
//! A [`Frame`] is the description; [`Frame::bytes`] is what goes over the wire.
//! What a packet should have become is written as a changed copy of what it was.

mod payload;

use std::net::IpAddr;

pub use payload::{Check, Icmp, Payload, Tcp, Udp};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// TCP flag bits.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// The Internet checksum of `parts` laid end to end (RFC 1071). Every part but
/// the last must have an even length.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    !ones_sum(parts)
}

/// The sum that [`internet_checksum`] complements: big-endian words, end-around
/// carry.
pub fn ones_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The pseudo-header of RFC 9293 (IPv4) or RFC 8200 section 8.1.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut bytes = address_bytes(src);
    bytes.extend(address_bytes(dst));
    if src.is_ipv4() {
        bytes.extend([0, proto]);
        bytes.extend((len as u16).to_be_bytes());
    } else {
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend([0, 0, 0, proto]);
    }
    bytes
}

/// The four or sixteen bytes of an address.
pub fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// One VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Tag control information.
    pub tci: u16,
}

/// An 802.1Q tag.
pub const fn q(tci: u16) -> Tag {
    Tag { tpid: 0x8100, tci }
}

/// An 802.1ad tag.
pub const fn ad(tci: u16) -> Tag {
    Tag { tpid: 0x88a8, tci }
}

/// A whole Ethernet frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Destination hardware address.
    pub dst: [u8; 6],
    /// Source hardware address.
    pub src: [u8; 6],
    /// VLAN tags, outer first; any number.
    pub tags: Vec<Tag>,
    /// The packet.
    pub ip: Packet,
    /// Bytes behind the packet.
    pub padding: Vec<u8>,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source address; its family is the packet's.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4 identification; the flow label of IPv6.
    pub id: u16,
    /// IPv4: don't fragment.
    pub df: bool,
    /// IPv4 options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers in front of the payload.
    pub extensions: Vec<Extension>,
    /// Which part of the payload this is; whole when `None`.
    pub fragment: Option<Fragment>,
    /// What it carries.
    pub payload: Payload,
}

/// An IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Next-header number of this header.
    pub kind: u8,
    /// Everything behind the two leading bytes (next header, length).
    pub body: Vec<u8>,
}

impl Extension {
    /// A hop-by-hop (0) or destination (60) options header of `units` times
    /// eight bytes, filled with one PadN option.
    pub fn options(kind: u8, units: u8) -> Self {
        let len = usize::from(units) * 8 - 2;
        let mut body = vec![0; len];
        body[0] = 1;
        body[1] = (len - 2) as u8;
        Self { kind, body }
    }

    /// A routing header (43) with this many segments left.
    pub fn routing(segments_left: u8) -> Self {
        Self {
            kind: 43,
            body: vec![4, segments_left, 0, 0, 0, 0],
        }
    }

    /// An authentication header (51) with a check value of twelve bytes.
    pub fn authentication() -> Self {
        Self {
            kind: 51,
            body: vec![0xa5; 22],
        }
    }

    /// A fragment header (44) that says offset 0 and no more.
    pub fn atomic_fragment(id: u32) -> Self {
        let mut body = vec![0, 0];
        body.extend(id.to_be_bytes());
        Self { kind: 44, body }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        let whole = self.body.len() + 2;
        let len = match self.kind {
            44 => 0,
            51 => whole / 4 - 2,
            _ => whole / 8 - 1,
        };
        let mut bytes = vec![next, len as u8];
        bytes.extend(&self.body);
        bytes
    }
}

/// A part of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification (IPv4 takes the low 16 bits).
    pub id: u32,
    /// First byte, a multiple of eight.
    pub offset: usize,
    /// Bytes; up to the payload's end when larger.
    pub len: usize,
    /// More follow.
    pub more: bool,
}

impl Frame {
    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.dst);
        bytes.extend(self.src);
        for tag in &self.tags {
            bytes.extend(tag.tpid.to_be_bytes());
            bytes.extend(tag.tci.to_be_bytes());
        }
        let kind: u16 = if self.ip.src.is_ipv4() {
            0x0800
        } else {
            0x86dd
        };
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.ip.bytes());
        bytes.extend(&self.padding);
        bytes
    }

    /// Hardware addresses replaced.
    pub fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.dst = dst;
        self.src = src;
        self
    }

    /// VLAN tags replaced.
    pub fn tagged(mut self, tags: &[Tag]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// Destination address and port replaced.
    pub fn to(mut self, to: (IpAddr, u16)) -> Self {
        self.ip.dst = to.0;
        *self.ip.ports_mut().1 = to.1;
        self
    }

    /// Source address and port replaced.
    pub fn from(mut self, from: (IpAddr, u16)) -> Self {
        self.ip.src = from.0;
        *self.ip.ports_mut().0 = from.1;
        self
    }

    /// Time to live replaced.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ip.ttl = ttl;
        self
    }

    /// TCP flags replaced.
    ///
    /// # Panics
    /// When this is not TCP, as for the two below.
    pub fn flags(mut self, flags: u8) -> Self {
        self.ip.tcp_mut().flags = flags;
        self
    }

    /// TCP sequence and acknowledgement numbers replaced.
    pub fn seq(mut self, seq: u32, ack: u32) -> Self {
        let tcp = self.ip.tcp_mut();
        tcp.seq = seq;
        tcp.ack = ack;
        self
    }

    /// Data replaced (TCP or UDP).
    pub fn data(mut self, data: &[u8]) -> Self {
        match &mut self.ip.payload {
            Payload::Tcp(tcp) => tcp.data = data.to_vec(),
            Payload::Udp(udp) => udp.data = data.to_vec(),
            _ => panic!("neither TCP nor UDP"),
        }
        self
    }

    /// Bytes behind the packet replaced.
    pub fn padded(mut self, padding: &[u8]) -> Self {
        self.padding = padding.to_vec();
        self
    }

    /// IPv4 options replaced.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.ip.options = options.to_vec();
        self
    }

    /// IPv6 extension headers replaced.
    pub fn extensions(mut self, extensions: &[Extension]) -> Self {
        self.ip.extensions = extensions.to_vec();
        self
    }

    /// Made a part of itself.
    pub fn fragment(mut self, id: u32, offset: usize, len: usize, more: bool) -> Self {
        self.ip.fragment = Some(Fragment {
            id,
            offset,
            len,
            more,
        });
        self
    }
}

impl Packet {
    /// A packet with nothing unusual about it.
    pub fn new(src: IpAddr, dst: IpAddr, payload: Payload) -> Self {
        Self {
            src,
            dst,
            ttl: 64,
            tos: 0,
            id: 0x1234,
            df: true,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            payload,
        }
    }

    /// The packet's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut payload = self.payload.bytes(self.src, self.dst);
        if let Some(f) = self.fragment {
            let end = (f.offset + f.len).min(payload.len());
            payload = payload[f.offset..end].to_vec();
        }
        if self.src.is_ipv4() {
            self.v4(&payload)
        } else {
            self.v6(&payload)
        }
    }

    /// The first `len` bytes behind the IP header, and that header: what an ICMP
    /// error carries.
    pub fn head(&self, len: usize) -> Vec<u8> {
        let mut bytes = self.bytes();
        let header = if self.src.is_ipv4() {
            20 + self.options.len()
        } else {
            40 + self
                .extensions
                .iter()
                .map(|e| e.body.len() + 2)
                .sum::<usize>()
        };
        bytes.truncate(header + len);
        bytes
    }

    fn v4(&self, payload: &[u8]) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
        let header = 20 + self.options.len();
        let mut b = vec![0x40 | (header / 4) as u8, self.tos];
        b.extend(((header + payload.len()) as u16).to_be_bytes());
        let (id, flags) = match self.fragment {
            Some(f) => (
                f.id as u16,
                (u16::from(f.more) << 13) | (f.offset / 8) as u16,
            ),
            None => (self.id, u16::from(self.df) << 14),
        };
        b.extend(id.to_be_bytes());
        b.extend(flags.to_be_bytes());
        b.extend([self.ttl, self.payload.proto(true), 0, 0]);
        b.extend(address_bytes(self.src));
        b.extend(address_bytes(self.dst));
        b.extend(&self.options);
        let check = internet_checksum(&[&b]);
        b[10..12].copy_from_slice(&check.to_be_bytes());
        b.extend(payload);
        b
    }

    fn v6(&self, payload: &[u8]) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some(f) = self.fragment {
            let mut body = (((f.offset as u16) & !7) | u16::from(f.more))
                .to_be_bytes()
                .to_vec();
            body.extend(f.id.to_be_bytes());
            extensions.push(Extension { kind: 44, body });
        }
        let mut next = self.payload.proto(false);
        let mut headers = Vec::new();
        for e in extensions.iter().rev() {
            let mut bytes = e.bytes(next);
            bytes.extend(headers);
            headers = bytes;
            next = e.kind;
        }
        let mut b = vec![0x60 | self.tos >> 4, self.tos << 4];
        b.extend(self.id.to_be_bytes());
        b.extend(((headers.len() + payload.len()) as u16).to_be_bytes());
        b.extend([next, self.ttl]);
        b.extend(address_bytes(self.src));
        b.extend(address_bytes(self.dst));
        b.extend(headers);
        b.extend(payload);
        b
    }

    fn ports_mut(&mut self) -> (&mut u16, &mut u16) {
        match &mut self.payload {
            Payload::Tcp(t) => (&mut t.sport, &mut t.dport),
            Payload::Udp(u) => (&mut u.sport, &mut u.dport),
            _ => panic!("neither TCP nor UDP"),
        }
    }

    fn tcp_mut(&mut self) -> &mut Tcp {
        match &mut self.payload {
            Payload::Tcp(tcp) => tcp,
            _ => panic!("not TCP"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    fn check(frame: &Frame) {
        let bytes = frame.bytes();
        let parsed = PacketHeaders::from_ethernet_slice(&bytes).expect("parses");
        let transport = parsed.transport.expect("a transport header");
        let payload = parsed.payload.slice();
        match (parsed.net.expect("an IP header"), transport) {
            (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload).unwrap());
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
                assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, payload).unwrap());
            }
            (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
                assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, payload).unwrap());
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
                assert_eq!(udp.checksum, udp.calc_checksum_ipv6(&ip, payload).unwrap());
            }
            (_, TransportHeader::Icmpv4(icmp)) => {
                assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(payload));
            }
            (NetHeaders::Ipv6(ip, _), TransportHeader::Icmpv6(icmp)) => {
                assert_eq!(
                    icmp.checksum,
                    icmp.icmp_type
                        .calc_checksum(ip.source, ip.destination, payload)
                        .unwrap()
                );
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// The builder's own checksums against another implementation's.
    #[test]
    fn checksums_agree_with_etherparse() {
        let pairs: [(IpAddr, IpAddr); 2] = [
            (
                "192.0.2.1".parse().unwrap(),
                "198.51.100.9".parse().unwrap(),
            ),
            (
                "2001:db8::1".parse().unwrap(),
                "2001:db8:1::9".parse().unwrap(),
            ),
        ];
        for (src, dst) in pairs {
            for len in [0, 1, 7, 64, 1001] {
                let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
                let payloads = [
                    Payload::Tcp(Tcp {
                        sport: 4711,
                        dport: 80,
                        seq: 0x0102_0304,
                        ack: 0xa0b0_c0d0,
                        flags: tcp_flags::ACK,
                        window: 512,
                        options: vec![1, 1, 1, 0],
                        data: data.clone(),
                    }),
                    Payload::Udp(Udp {
                        sport: 53,
                        dport: 5353,
                        check: Check::Right,
                        data: data.clone(),
                    }),
                    Payload::Icmp(Icmp {
                        kind: if src.is_ipv4() { 8 } else { 128 },
                        code: 0,
                        rest: [1, 2, 3, 4],
                        body: data.clone(),
                    }),
                ];
                for payload in payloads {
                    let mut ip = Packet::new(src, dst, payload);
                    if src.is_ipv4() {
                        ip.options = vec![1, 1, 1, 0];
                    } else {
                        ip.extensions = vec![Extension::options(60, 2)];
                    }
                    check(&Frame {
                        dst: [2; 6],
                        src: [4; 6],
                        tags: vec![ad(7), q(9)],
                        ip,
                        padding: Vec::new(),
                    });
                }
            }
        }
    }
}
