//! The model's ICMP: echo, and errors about flows.

use std::net::IpAddr;

use common::counters::Reason;

use super::Step;
use super::edit::{self, Change, Place};
use super::parse::{Parsed, Part, be16, v4_at, v6_at};
use crate::packets::{ICMP, ICMPV6, TCP, UDP};
use crate::xdp::{Action, Run};

/// The packet that an error is about.
struct Inner {
    at: Place,
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
}

impl Step<'_> {
    pub(super) fn icmp(&mut self, p: &Parsed) -> Run {
        if !is_icmp(p.proto, p.v4) || p.part != Part::Whole {
            return self.pass(Reason::NotBalanced);
        }
        match (p.v4, self.frame[p.l4]) {
            (true, 8) | (false, 128) => self.echo(p),
            (true, 3 | 4 | 11 | 12) | (false, 1..=4) => self.error(p),
            _ => self.pass(Reason::NotBalanced),
        }
    }

    fn echo(&mut self, p: &Parsed) -> Run {
        if self.model.frontend(p.dst, 0, ICMP).is_none() {
            return self.pass(Reason::NotBalanced);
        }
        self.count(Reason::EchoAnswered);
        let mut out = self.frame.to_vec();
        out[..6].copy_from_slice(&self.frame[6..12]);
        out[6..12].copy_from_slice(&self.frame[..6]);
        let change = Change {
            src: Some((p.dst, 0)),
            dst: Some((p.src, 0)),
            ttl: Some(64),
            ..Change::default()
        };
        edit::set_network(&mut out, p.into(), change);
        out[p.l4] = if p.v4 { 0 } else { 129 };
        edit::icmp_checksum(&mut out, self.frame, p.into());
        Run {
            action: Action::Tx,
            frame: out,
        }
    }

    fn error(&mut self, p: &Parsed) -> Run {
        let Some(inner) = inner(self.frame, p) else {
            return self.pass(Reason::IcmpErrorUnknown);
        };
        let proto = inner.at.proto;
        if let Some(frontend) = self.model.frontend(inner.src.0, inner.src.1, proto) {
            let key = (inner.dst.0, inner.dst.1, frontend);
            return self.about_reply(p, &inner, key);
        }
        match self.model.endpoint(inner.dst.0, inner.dst.1, proto) {
            Some(endpoint) => self.about_forwarded(p, &inner, endpoint),
            None => self.pass(Reason::IcmpErrorUnknown),
        }
    }

    /// A reply to a client met an obstacle: the backend must hear of it.
    fn about_reply(&mut self, p: &Parsed, inner: &Inner, key: super::Key) -> Run {
        let Some((_, flow)) = self.model.find(key) else {
            return self.pass(Reason::IcmpErrorUnknown);
        };
        let backend = &self.model.world.backends[usize::from(flow.backend)];
        if !backend.present || backend.generation != flow.generation {
            return self.pass(Reason::IcmpErrorUnknown);
        }
        if p.ttl <= 1 {
            return self.pass(Reason::TtlExpired);
        }
        let within = Change {
            src: Some((backend.addr, backend.port)),
            dst: flow
                .snat
                .map(|(slot, port)| (self.model.world.snat[usize::from(slot)].addr, port)),
            ..Change::default()
        };
        let around = Change {
            dst: Some((backend.addr, 0)),
            ttl: Some(p.ttl - 1),
            ..Change::default()
        };
        let out = self.translate(p, inner, within, around);
        self.by_hop(p, out, flow.backend)
    }

    /// A client's packet met an obstacle: the client must hear of it.
    fn about_forwarded(&mut self, p: &Parsed, inner: &Inner, endpoint: u16) -> Run {
        let Some((_, key, flow)) = self.model.find_reply(inner.src, endpoint) else {
            return self.pass(Reason::IcmpErrorUnknown);
        };
        if p.ttl <= 1 {
            return self.pass(Reason::TtlExpired);
        }
        let service = self.model.world.service(key.2);
        let server = self.model.world.server(flow.backend);
        let within = Change {
            src: flow.snat.map(|_| (key.0, key.1)),
            dst: Some(service),
            ..Change::default()
        };
        let around = Change {
            src: (p.src == server.0).then_some(service),
            dst: Some((key.0, 0)),
            ttl: Some(p.ttl - 1),
            ..Change::default()
        };
        let out = self.translate(p, inner, within, around);
        self.by_path(p, out, &flow.path)
    }

    fn translate(&mut self, p: &Parsed, inner: &Inner, within: Change, around: Change) -> Vec<u8> {
        self.count(Reason::IcmpErrorForwarded);
        let mut out = self.frame.to_vec();
        edit::rewrite(&mut out, inner.at, within);
        edit::set_network(&mut out, p.into(), around);
        edit::icmp_checksum(&mut out, self.frame, p.into());
        out
    }
}

/// The packet within an error, when it is a TCP or UDP one of the same family
/// with its header and the first eight bytes behind it.
fn inner(frame: &[u8], p: &Parsed) -> Option<Inner> {
    let l3 = p.l4 + 8;
    let b = &frame[..p.end];
    let (l4, proto, src, dst) = if p.v4 {
        if b.len() < l3 + 20 || b[l3] >> 4 != 4 || b[l3] & 0x0f < 5 {
            return None;
        }
        if be16(b, l3 + 6) & 0x1fff != 0 {
            return None;
        }
        let l4 = l3 + usize::from(b[l3] & 0x0f) * 4;
        (l4, b[l3 + 9], v4_at(b, l3 + 12), v4_at(b, l3 + 16))
    } else {
        if b.len() < l3 + 40 || b[l3] >> 4 != 6 {
            return None;
        }
        (l3 + 40, b[l3 + 6], v6_at(b, l3 + 8), v6_at(b, l3 + 24))
    };
    if b.len() < l4 + 8 || !matches!(proto, TCP | UDP) {
        return None;
    }
    Some(Inner {
        at: Place {
            l3,
            l4,
            end: p.end,
            v4: p.v4,
            proto,
        },
        src: (src, be16(b, l4)),
        dst: (dst, be16(b, l4 + 2)),
    })
}

/// Whether a protocol number is ICMP's of the family.
fn is_icmp(proto: u8, v4: bool) -> bool {
    proto == if v4 { ICMP } else { ICMPV6 }
}
