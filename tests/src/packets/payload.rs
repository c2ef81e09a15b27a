//! What IP packets carry: TCP, UDP, ICMP, with their checksums.

use std::net::IpAddr;

use super::{ICMP, ICMPV6, TCP, UDP, internet_checksum, pseudo_header};

/// What stands in a checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Check {
    /// The right value.
    #[default]
    Right,
    /// Zero: not computed (IPv4 UDP).
    Zero,
}

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub enum Payload {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP or ICMPv6, by the packet's family.
    Icmp(Icmp),
    /// Anything else, by protocol number.
    Raw(u8, Vec<u8>),
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// See [`tcp_flags`].
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
}

/// A UDP datagram.
#[derive(Clone, Debug)]
pub struct Udp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// The checksum field.
    pub check: Check,
    /// Data.
    pub data: Vec<u8>,
}

/// An ICMP or ICMPv6 message.
#[derive(Clone, Debug)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Bytes 4 to 7: identifier and sequence number, MTU, pointer, gateway.
    pub rest: [u8; 4],
    /// What follows the first eight bytes.
    pub body: Vec<u8>,
}

impl Payload {
    /// The IP protocol number, given the family of the packet.
    pub fn proto(&self, v4: bool) -> u8 {
        match self {
            Payload::Tcp(_) => TCP,
            Payload::Udp(_) => UDP,
            Payload::Icmp(_) if v4 => ICMP,
            Payload::Icmp(_) => ICMPV6,
            Payload::Raw(proto, _) => *proto,
        }
    }

    pub(super) fn bytes(&self, src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let (mut b, at) = match self {
            Payload::Tcp(t) => (t.bytes(), 16),
            Payload::Udp(u) => (u.bytes(), 6),
            Payload::Icmp(i) => {
                let mut b = vec![i.kind, i.code, 0, 0];
                b.extend(i.rest);
                b.extend(&i.body);
                (b, 2)
            }
            Payload::Raw(_, bytes) => return bytes.clone(),
        };
        let proto = self.proto(src.is_ipv4());
        let pseudo = pseudo_header(src, dst, proto, b.len());
        let check = match self {
            Payload::Udp(u) if u.check == Check::Zero => 0,
            Payload::Udp(_) => match internet_checksum(&[&pseudo, &b]) {
                0 => 0xffff,
                check => check,
            },
            Payload::Icmp(_) if src.is_ipv4() => internet_checksum(&[&b]),
            _ => internet_checksum(&[&pseudo, &b]),
        };
        b[at..at + 2].copy_from_slice(&check.to_be_bytes());
        b
    }
}

impl Tcp {
    fn bytes(&self) -> Vec<u8> {
        assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
        let mut b = Vec::new();
        b.extend(self.sport.to_be_bytes());
        b.extend(self.dport.to_be_bytes());
        b.extend(self.seq.to_be_bytes());
        b.extend(self.ack.to_be_bytes());
        b.extend([((20 + self.options.len()) / 4 * 16) as u8, self.flags]);
        b.extend(self.window.to_be_bytes());
        b.extend([0, 0, 0, 0]);
        b.extend(&self.options);
        b.extend(&self.data);
        b
    }
}

impl Udp {
    fn bytes(&self) -> Vec<u8> {
        let mut b = Vec::new();
        b.extend(self.sport.to_be_bytes());
        b.extend(self.dport.to_be_bytes());
        b.extend(((8 + self.data.len()) as u16).to_be_bytes());
        b.extend([0, 0]);
        b.extend(&self.data);
        b
    }
}
