//! The model's steering: whose a packet is, its flow, its backend, and the way
//! out.

use std::net::IpAddr;

use common::counters::Reason;
use common::limits::RING_TRIES;
use common::tables::{Unavailable, VLAN_KEEP, event};

use super::edit::{self, Change};
use super::parse::{self, Parsed, Part, Ports};
use super::{Flow, Key, Path, Step, Table};
use crate::packets::{TCP, Tag, UDP, tcp_flags};
use crate::xdp::{Action, Run};

impl Step<'_> {
    pub(super) fn decide(&mut self) -> Run {
        let parsed = match parse::network(self.frame) {
            Ok(parsed) => parsed,
            Err(reason) => return self.pass(reason),
        };
        let balanced = matches!(parsed.proto, TCP | UDP);
        if parsed.part != Part::Whole && !balanced {
            return self.pass(Reason::NotBalanced);
        }
        if let Part::Later(id) = parsed.part {
            let key = (parsed.src, parsed.dst, id, parsed.proto);
            let Some(ports) = self.model.fragments.get(&key).copied() else {
                return self.pass(Reason::FragmentUnknown);
            };
            return self.steer(&parsed, ports);
        }
        match parse::transport(self.frame, &parsed) {
            Err(reason) => self.pass(reason),
            Ok(Some(ports)) => self.steer(&parsed, ports),
            Ok(None) => self.icmp(&parsed),
        }
    }

    /// Steps 5 to 7.
    fn steer(&mut self, p: &Parsed, ports: Ports) -> Run {
        let frontend = self.model.frontend(p.dst, ports.dst, p.proto);
        let endpoint = self.model.endpoint(p.src, ports.src, p.proto);
        if frontend.is_none() && endpoint.is_none() {
            return self.pass(Reason::NotBalanced);
        }
        if let Part::First(id) = p.part {
            let key = (p.src, p.dst, id, p.proto);
            self.model.fragments.insert(key, ports);
        }
        if frontend.is_some() {
            if p.proto == TCP && !self.later(p) && !possible(self.tcp_flags(p)) {
                return self.pass(Reason::BadTcpFlags);
            }
            if !can_be_source(p.src) || ports.src == 0 {
                return self.pass(Reason::BadSource);
            }
        }
        if p.ttl <= 1 {
            return self.pass(Reason::TtlExpired);
        }
        match (frontend, endpoint) {
            (Some(frontend), _) => self.forward(p, ports, frontend),
            (None, Some(endpoint)) => self.reply(p, ports, endpoint),
            (None, None) => unreachable!("seen above"),
        }
    }

    fn forward(&mut self, p: &Parsed, ports: Ports, frontend: u16) -> Run {
        let key = (p.src, ports.src, frontend);
        let flags = self.tcp_flags(p);
        let later = self.later(p);
        let opens = !later
            && (p.proto == UDP || flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN);
        let syn = opens && p.proto == TCP;
        let Some((table, mut flow)) = self.model.find(key) else {
            return self.without_flow(p, ports, frontend, opens);
        };
        let backend = self.model.world.backends[usize::from(flow.backend)].clone();
        if !backend.present || backend.generation != flow.generation {
            self.count(Reason::FlowStale);
            self.model.table(table).remove(&key);
            return self.without_flow(p, ports, frontend, opens);
        }
        if backend.stopped {
            self.count(Reason::BackendStopped);
            flow.reset = true;
            self.model.table(table).insert(key, flow);
            return self.refuse(p, Unavailable::Reset);
        }
        let finishing = table == Table::Established && (flow.client_fin || flow.server_fin);
        // A flow that was cut while its backend was stopped.
        let cut = table == Table::HalfOpen && flow.reset;
        let again = syn && (flow.closed() || finishing || !backend.usable)
            || opens && p.proto == UDP && (!backend.usable || cut);
        if again {
            self.model.table(table).remove(&key);
            return self.new_flow(p, ports, frontend);
        }
        if table == Table::HalfOpen && p.proto == TCP && !later {
            if syn && !flow.answered && backend.watched {
                self.events
                    .push((event::SYN_UNANSWERED, flow.backend, flow.generation));
            }
            if flags & tcp_flags::RST != 0 {
                self.model.half_open.remove(&key);
                return self.send_forward(p, &flow);
            }
        }
        if p.proto == TCP && !later {
            flow.client_fin |= flags & tcp_flags::FIN != 0;
            flow.reset |= flags & tcp_flags::RST != 0;
        }
        flow.path = self.path(p);
        let confirms = table == Table::HalfOpen
            && p.proto == TCP
            && !later
            && flags & (tcp_flags::ACK | tcp_flags::SYN) == tcp_flags::ACK
            && flow.answered
            && flow.expected_ack.is_some_and(|expected| {
                let beyond = parse::be32(self.frame, p.l4 + 8).wrapping_sub(expected);
                beyond < 1 << 20
            });
        if confirms {
            self.establish(key, flow.clone());
        } else {
            self.model.table(table).insert(key, flow.clone());
        }
        self.send_forward(p, &flow)
    }

    fn without_flow(&mut self, p: &Parsed, ports: Ports, frontend: u16, opens: bool) -> Run {
        let spec = &self.model.world.frontends[usize::from(frontend)];
        let unavailable = spec.unavailable;
        if self.later(p) {
            return self.pass(Reason::FragmentUnknown);
        }
        // Where tests run, the stack has no connection of these addresses: a SYN is new.
        if spec.local && p.proto == TCP && !opens {
            return self.pass(Reason::LocalDelivered);
        }
        if spec.closing {
            return self.pass(Reason::NotBalanced);
        }
        if opens {
            return self.new_flow(p, ports, frontend);
        }
        self.count(Reason::FlowUnknown);
        self.refuse(p, unavailable)
    }

    fn new_flow(&mut self, p: &Parsed, ports: Ports, frontend: u16) -> Run {
        let spec = self.model.world.frontends[usize::from(frontend)].clone();
        if spec.closing {
            return self.pass(Reason::NotBalanced);
        }
        let Some(backend) = self.choose(p, ports, frontend) else {
            self.count(Reason::NoBackend);
            return self.refuse(p, spec.unavailable);
        };
        if self.model.world.backends[usize::from(backend)].local {
            self.count(Reason::FlowNew);
            return self.pass(Reason::LocalDelivered);
        }
        let snat = if spec.snat.is_empty() {
            None
        } else {
            let Some(source) = self.snat_source(&spec.snat, p.v4) else {
                self.count(Reason::SnatExhausted);
                return self.refuse(p, spec.unavailable);
            };
            Some(source)
        };
        let flow = Flow {
            backend,
            generation: self.model.world.backends[usize::from(backend)].generation,
            endpoint: self.model.endpoints[usize::from(backend)],
            snat,
            path: self.path(p),
            answered: false,
            client_fin: p.proto == TCP && self.tcp_flags(p) & tcp_flags::FIN != 0,
            server_fin: false,
            reset: false,
            expected_ack: None,
        };
        self.count(Reason::FlowNew);
        let key = (p.src, ports.src, frontend);
        self.model.half_open.insert(key, flow.clone());
        self.send_forward(p, &flow)
    }

    fn choose(&mut self, p: &Parsed, ports: Ports, frontend: u16) -> Option<u16> {
        let spec = self.model.world.frontends[usize::from(frontend)].clone();
        if spec.ring.is_empty() {
            return None;
        }
        for _ in 0..RING_TRIES {
            let cursor = &mut self.model.cursors[usize::from(frontend)];
            let slot = spec.ring[(*cursor % spec.ring.len() as u64) as usize];
            *cursor += 1;
            let backend = &self.model.world.backends[usize::from(slot)];
            if !backend.present || !backend.usable {
                self.count(Reason::BackendSkipped);
                continue;
            }
            let endpoint = self.model.endpoints[usize::from(slot)];
            if backend.local {
                return Some(slot);
            }
            if spec.snat.is_empty() && self.conflict((p.src, ports.src, frontend), endpoint) {
                self.count(Reason::TupleConflict);
                continue;
            }
            return Some(slot);
        }
        None
    }

    /// Whether the endpoint already has a flow of this client's address and port.
    /// One that is over makes way.
    fn conflict(&mut self, key: Key, endpoint: u16) -> bool {
        let same = |other: &Key, flow: &Flow| {
            (other.0, other.1) == (key.0, key.1) && flow.snat.is_none() && flow.endpoint == endpoint
        };
        for flows in [&mut self.model.established, &mut self.model.half_open] {
            flows.retain(|other, flow| !(same(other, flow) && flow.closed()));
            if flows.iter().any(|(other, flow)| same(other, flow)) {
                return true;
            }
        }
        false
    }

    /// The snat address and port of a new flow: what the program chose where that
    /// is allowed, else the first that is free.
    fn snat_source(&self, slots: &[u8], v4: bool) -> Option<(u8, u16)> {
        let world = &self.model.world;
        let free = |slot: u8, port: u16| {
            let taken = |f: &Flow| f.snat == Some((slot, port)) && !f.closed();
            !self.model.established.values().any(taken) && !self.model.half_open.values().any(taken)
        };
        let range = |slot: u8| {
            let spec = &world.snat[usize::from(slot)];
            spec.first_port..=spec.last_port
        };
        let observed = self.observed.and_then(|frame| {
            let p = parse::network(frame).ok().filter(|p| p.v4 == v4)?;
            let port = parse::be16(frame.get(p.l4..p.l4 + 2)?, 0);
            let slot = *slots
                .iter()
                .find(|slot| world.snat[usize::from(**slot)].addr == p.src)?;
            (range(slot).contains(&port) && free(slot, port)).then_some((slot, port))
        });
        observed.or_else(|| {
            let all = slots
                .iter()
                .flat_map(|slot| range(*slot).map(|p| (*slot, p)));
            all.into_iter().find(|(slot, port)| free(*slot, *port))
        })
    }

    fn establish(&mut self, key: Key, flow: Flow) {
        self.model.half_open.remove(&key);
        self.model.established.insert(key, flow);
        self.count(Reason::FlowEstablished);
    }

    fn send_forward(&mut self, p: &Parsed, flow: &Flow) -> Run {
        let backend = &self.model.world.backends[usize::from(flow.backend)];
        let change = Change {
            src: flow
                .snat
                .map(|(slot, port)| (self.model.world.snat[usize::from(slot)].addr, port)),
            dst: Some((backend.addr, backend.port)),
            ttl: Some(p.ttl - 1),
            addresses_only: self.later(p),
        };
        let mut out = self.frame.to_vec();
        edit::rewrite(&mut out, p.into(), change);
        if self.later(p) {
            self.count(Reason::FragmentForwarded);
        }
        self.by_hop(p, out, flow.backend)
    }

    /// Sends a rewritten frame to a backend.
    pub(super) fn by_hop(&mut self, p: &Parsed, out: Vec<u8>, backend: u16) -> Run {
        let Some(hop) = self.model.world.backends[usize::from(backend)].hop else {
            return self.by_route(out);
        };
        let outer = if hop.vlan_outer_ad != 0 {
            0x88a8
        } else {
            0x8100
        };
        let tags = [(outer, hop.tci[0]), (0x8100, hop.tci[1])].map(|(tpid, tci)| Tag {
            tpid,
            tci: tci.host(),
        });
        let tags = (hop.vlan_count != VLAN_KEEP).then(|| &tags[..usize::from(hop.vlan_count)]);
        let frame = edit::link(&out, p, hop.macs, tags);
        self.send(hop.ifindex, frame)
    }

    /// Sends a rewritten frame back to a client.
    pub(super) fn by_path(&mut self, p: &Parsed, out: Vec<u8>, path: &Path) -> Run {
        let devices = &self.model.world.devices;
        let Some((ifindex, mac)) = devices.iter().find(|d| d.0 == path.ifindex).copied() else {
            return self.by_route(out);
        };
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&path.mac);
        macs[6..].copy_from_slice(&mac);
        let frame = edit::link(&out, p, macs, Some(&path.tags));
        self.send(ifindex, frame)
    }

    /// Leaves a rewritten frame to the routing table, which is empty here.
    fn by_route(&mut self, out: Vec<u8>) -> Run {
        self.count(Reason::FibFallback);
        self.count(Reason::NoNextHop);
        Run {
            action: Action::Pass,
            frame: out,
        }
    }

    fn send(&self, ifindex: u32, frame: Vec<u8>) -> Run {
        let action = if ifindex == self.ifindex {
            Action::Tx
        } else {
            Action::Redirect
        };
        Run { action, frame }
    }

    fn reply(&mut self, p: &Parsed, ports: Ports, endpoint: u16) -> Run {
        let Some((table, key, mut flow)) = self.model.find_reply((p.dst, ports.dst), endpoint)
        else {
            return self.pass(Reason::ReplyUnknown);
        };
        let backend = self.model.world.backends[usize::from(flow.backend)].clone();
        if !backend.present || backend.generation != flow.generation {
            self.count(Reason::FlowStale);
            self.model.table(table).remove(&key);
            return self.pass(Reason::ReplyUnknown);
        }
        if backend.stopped {
            self.count(Reason::BackendStopped);
            return Run {
                action: Action::Drop,
                frame: self.frame.to_vec(),
            };
        }
        let whole = !self.later(p);
        let flags = self.tcp_flags(p);
        if whole && p.proto == TCP {
            let refuses = flags & tcp_flags::RST != 0 && !flow.answered && !flow.reset;
            if table == Table::HalfOpen && refuses {
                self.count(Reason::SynRefused);
                if backend.watched {
                    self.events
                        .push((event::SYN_REFUSED, flow.backend, flow.generation));
                }
            }
            let state = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::FIN | tcp_flags::RST;
            let syn_ack = flags & state == tcp_flags::SYN | tcp_flags::ACK;
            if table == Table::HalfOpen && syn_ack {
                flow.answered = true;
                flow.expected_ack = Some(parse::be32(self.frame, p.l4 + 4).wrapping_add(1));
            }
            flow.server_fin |= flags & tcp_flags::FIN != 0;
            flow.reset |= flags & tcp_flags::RST != 0;
        }
        if p.proto == UDP && table == Table::HalfOpen {
            flow.answered = true;
            self.establish(key, flow.clone());
        } else {
            self.model.table(table).insert(key, flow.clone());
        }
        let change = Change {
            src: Some(self.model.world.service(key.2)),
            dst: flow.snat.map(|_| (key.0, key.1)),
            ttl: Some(p.ttl - 1),
            addresses_only: !whole,
        };
        let mut out = self.frame.to_vec();
        edit::rewrite(&mut out, p.into(), change);
        if !whole {
            self.count(Reason::FragmentForwarded);
        }
        self.by_path(p, out, &flow.path)
    }

    fn path(&self, p: &Parsed) -> Path {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.frame[6..12]);
        let mut tags = p.tags.clone();
        if let [_, inner] = &mut tags[..] {
            // Only the outer tag's kind is remembered.
            inner.tpid = 0x8100;
        }
        Path {
            mac,
            ifindex: self.ifindex,
            tags,
        }
    }

    pub(super) fn later(&self, p: &Parsed) -> bool {
        matches!(p.part, Part::Later(_))
    }

    fn tcp_flags(&self, p: &Parsed) -> u8 {
        if p.proto == TCP && !self.later(p) {
            self.frame[p.l4 + 13]
        } else {
            0
        }
    }

    pub(super) fn pass(&mut self, reason: Reason) -> Run {
        self.count(reason);
        Run {
            action: Action::Pass,
            frame: self.frame.to_vec(),
        }
    }

    pub(super) fn count(&mut self, reason: Reason) {
        *self.reasons.entry(reason).or_default() += 1;
    }
}

/// Whether some state of a connection allows these flags.
fn possible(flags: u8) -> bool {
    use tcp_flags::{ACK, FIN, RST, SYN};
    let has = |bits: u8| flags & bits == bits;
    flags & (SYN | FIN | RST | ACK) != 0 && !has(SYN | FIN) && !has(SYN | RST) && !has(FIN | RST)
}

/// Whether a client can have this address.
fn can_be_source(ip: IpAddr) -> bool {
    let reserved = matches!(ip, IpAddr::V4(v4) if v4.octets()[0] >= 240);
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || reserved)
}
