//! Random packets for the comparison with the reference model: conversations
//! with random interleavings, then damage.
//!
//! Everything follows from the seed: nothing here iterates over a hash map.

use std::net::IpAddr;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::case::{client, icmp, tcp, udp};
use crate::model::{Flow, Model};
use crate::packets::{Check, Extension, Frame, Payload, Tag, ad, q, tcp_flags};
use crate::setup::{
    CLIENTS, CLIENTS_MAC, SERVERS, SERVERS_MAC, STRANGER, World, hop, hop_keep, ip, server_mac,
};

/// A client's address and port, and the frontend's slot.
type Key = (IpAddr, u16, u16);

/// Makes frames and changes of the world.
pub struct Generator {
    rng: StdRng,
    known: Vec<Key>,
    /// The connection that was chosen last.
    last: Option<Key>,
}

/// What happens next.
#[derive(Clone, Debug)]
pub enum Event {
    /// A frame comes in on a device.
    Frame {
        /// What it was meant to be.
        what: String,
        /// Its bytes.
        bytes: Vec<u8>,
        /// The device.
        ifindex: u32,
    },
    /// A backend's entry was changed in the world and must be written.
    Backend(u16),
    /// A frontend's entry and ring were changed and must be written.
    Frontend(u16),
}

impl Generator {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            known: Vec::new(),
            last: None,
        }
    }

    /// The next event; `model` tells what is going on.
    pub fn next(&mut self, model: &mut Model) -> Event {
        if self.rng.random_ratio(1, 60) {
            return self.change(&mut model.world);
        }
        let (what, frame, ifindex) = self.frame(model);
        let ifindex = if self.rng.random_ratio(1, 50) {
            *[CLIENTS, SERVERS, STRANGER]
                .choose(&mut self.rng)
                .expect("three")
        } else {
            ifindex
        };
        let mut bytes = frame;
        let mut what = what.to_owned();
        if self.rng.random_ratio(1, 4) {
            for _ in 0..self.rng.random_range(1..=3) {
                what += ", ";
                what += self.damage(&mut bytes);
            }
        }
        if bytes.len() < 14 {
            bytes.resize(14, 0);
        }
        Event::Frame {
            what,
            bytes,
            ifindex,
        }
    }

    fn frame(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        match self.rng.random_range(0..100) {
            0..12 => self.first(model),
            12..46 => self.client_sends(model),
            46..76 => self.server_sends(model),
            76..84 => self.error(model),
            84..87 => self.echo(model),
            87..93 => self.fragment(model),
            93..97 => self.elsewhere(model),
            _ => {
                let len = self.rng.random_range(14..200);
                let mut bytes: Vec<u8> = (0..len).map(|_| self.rng.random()).collect();
                if self.rng.random() && len >= 16 {
                    let kind = *[0x0800u16, 0x86dd, 0x8100, 0x88a8]
                        .choose(&mut self.rng)
                        .expect("four");
                    bytes[12..14].copy_from_slice(&kind.to_be_bytes());
                    bytes[14] = if kind == 0x86dd { 0x60 } else { 0x45 };
                }
                ("noise", bytes, CLIENTS)
            }
        }
    }

    fn first(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        let frontend = self.rng.random_range(0..14u16);
        let spec = &model.world.frontends[usize::from(frontend)];
        let who = client(spec.addr.is_ipv4(), self.rng.random_range(1..=12));
        let port = 20_000 + self.rng.random_range(0..8);
        let key = (who, port, frontend);
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let frame = if spec.proto == crate::packets::TCP {
            tcp((who, port), (spec.addr, spec.port), tcp_flags::SYN).seq(self.rng.random(), 0)
        } else {
            udp((who, port), (spec.addr, spec.port))
        };
        ("first packet", self.dress(frame).bytes(), CLIENTS)
    }

    /// Some connection that was begun once, and its flow if there is one.
    fn some(&mut self, model: &Model) -> Option<(Key, Option<Flow>)> {
        let key = *self.known.choose(&mut self.rng)?;
        self.last = Some(key);
        let flow = model.established.get(&key);
        let flow = flow.or_else(|| model.half_open.get(&key)).cloned();
        Some((key, flow))
    }

    fn ask(&mut self, model: &Model) -> Option<Frame> {
        let (key, flow) = self.some(model)?;
        let service = model.world.service(key.2);
        let proto = model.world.frontends[usize::from(key.2)].proto;
        if proto != crate::packets::TCP {
            return Some(udp((key.0, key.1), service));
        }
        use tcp_flags::{ACK, FIN, PSH, RST, SYN};
        let confirms = model.half_open.contains_key(&key) && self.rng.random_ratio(3, 4);
        let flags: &[u8] = if confirms {
            &[ACK, ACK | PSH]
        } else {
            &[
                ACK,
                ACK,
                ACK | PSH,
                ACK | PSH,
                ACK | FIN,
                RST,
                RST | ACK,
                SYN,
                SYN | ACK,
                FIN,
            ]
        };
        let flags = *flags.choose(&mut self.rng).expect("some");
        let expected = flow.and_then(|f| f.expected_ack);
        let ack = match expected {
            Some(ack) if self.rng.random_ratio(4, 5) => ack,
            Some(ack) => ack
                .wrapping_add(self.rng.random_range(0..3))
                .wrapping_sub(1),
            None => self.rng.random(),
        };
        Some(tcp((key.0, key.1), service, flags).seq(self.rng.random(), ack))
    }

    fn client_sends(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        match self.ask(model) {
            Some(frame) => ("from a client", self.dress(frame).bytes(), CLIENTS),
            None => self.first(model),
        }
    }

    fn answer(&mut self, model: &Model) -> Option<Frame> {
        use tcp_flags::{ACK, FIN, PSH, RST, SYN};
        let (key, flow) = self.some(model)?;
        let half_open = model.half_open.contains_key(&key);
        let flow = flow?;
        let to = match flow.snat {
            Some((slot, port)) => (model.world.snat[usize::from(slot)].addr, port),
            None => (key.0, key.1),
        };
        let from = model.world.server(flow.backend);
        let frame = if model.world.frontends[usize::from(key.2)].proto != crate::packets::TCP {
            udp(from, to)
        } else {
            let flags: &[u8] = if half_open {
                &[SYN | ACK, SYN | ACK, SYN | ACK, RST | ACK, ACK]
            } else {
                &[ACK, ACK | PSH, ACK, FIN | ACK, RST, SYN | ACK]
            };
            let flags = *flags.choose(&mut self.rng).expect("some");
            tcp(from, to, flags).seq(self.rng.random(), self.rng.random())
        };
        Some(frame.macs(SERVERS_MAC, server_mac(1)))
    }

    fn server_sends(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        match self.answer(model) {
            Some(frame) => ("from a server", self.dress(frame).bytes(), SERVERS),
            None => self.client_sends(model),
        }
    }

    fn error(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        let to_backend = self.rng.random();
        let sent = if to_backend {
            self.answer(model)
        } else {
            self.ask(model)
        };
        let (Some(sent), Some(key)) = (sent, self.last) else {
            return self.first(model);
        };
        // What the packet looked like behind the balancer: ask the model.
        let device = if to_backend { SERVERS } else { CLIENTS };
        let bytes = sent.bytes();
        let seen = model.alone(key).step(&bytes, device, None).run.frame;
        let Some(inner) = seen.get(14..) else {
            return self.first(model);
        };
        let v4 = sent.ip.src.is_ipv4();
        let cut = self
            .rng
            .random_range(20..=inner.len().max(21))
            .min(inner.len());
        let outer_to = if v4 {
            IpAddr::from(<[u8; 4]>::try_from(&inner[12..16]).expect("4"))
        } else {
            IpAddr::from(<[u8; 16]>::try_from(&inner[8..24]).expect("16"))
        };
        let kind = if v4 {
            *[3, 3, 4, 5, 11, 12].choose(&mut self.rng).expect("some")
        } else {
            self.rng.random_range(1..=4)
        };
        let from = match self.rng.random_range(0..3) {
            0 if v4 => ip("10.1.0.1"),
            0 => ip("fd00:1::1"),
            _ if v4 => ip("192.0.2.77"),
            _ => ip("2001:db8:77::1"),
        };
        let rest = self.rng.random();
        let error = icmp(
            from,
            outer_to,
            kind,
            self.rng.random_range(0..5),
            rest,
            &inner[..cut],
        );
        let (frame, device) = if to_backend {
            (error, CLIENTS)
        } else {
            (error.macs(SERVERS_MAC, server_mac(2)), SERVERS)
        };
        ("error", self.dress(frame).bytes(), device)
    }

    fn echo(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        let frontend = self.rng.random_range(0..14u16);
        let (service, _) = model.world.service(frontend);
        let v4 = service.is_ipv4();
        let kind = if v4 { 8 } else { 128 };
        let rest = self.rng.random();
        let data = vec![0x5a; self.rng.random_range(0..40)];
        let who = client(v4, self.rng.random_range(1..=12));
        let frame = icmp(who, service, kind, 0, rest, &data);
        ("echo", self.dress(frame).bytes(), CLIENTS)
    }

    fn fragment(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        let (frame, device) = match (self.rng.random(), self.answer(model), self.ask(model)) {
            (true, Some(frame), _) => (frame, SERVERS),
            (_, _, Some(frame)) => (frame, CLIENTS),
            _ => return self.first(model),
        };
        let frame = self.dress(frame).data(&[0x33; 100]);
        let id = self.rng.random_range(0..4);
        let offset = 8 * self.rng.random_range(0..8usize);
        let offset = if self.rng.random() { 0 } else { offset };
        let frame = frame.fragment(id, offset, 48, true);
        ("fragment", frame.bytes(), device)
    }

    fn elsewhere(&mut self, model: &Model) -> (&'static str, Vec<u8>, u32) {
        let Some(frame) = self.ask(model) else {
            return self.first(model);
        };
        let v4 = frame.ip.src.is_ipv4();
        let other = client(v4, 200);
        let port = self.rng.random();
        let frame = match self.rng.random_range(0..4) {
            0 => frame.to((other, 80)),
            1 => frame.from((other, 80)).to((client(v4, 201), 90)),
            2 => {
                let service = frame.ip.dst;
                frame.to((service, port))
            }
            _ => {
                let server = model.world.server(self.rng.random_range(0..26));
                if server.0.is_ipv4() != v4 {
                    return ("elsewhere", frame.to((other, 1)).bytes(), CLIENTS);
                }
                frame.from(server)
            }
        };
        ("elsewhere", self.dress(frame).bytes(), CLIENTS)
    }

    /// Random but valid variations.
    fn dress(&mut self, frame: Frame) -> Frame {
        let rng = &mut self.rng;
        let tags: Vec<Tag> = match rng.random_range(0..8) {
            0 => vec![q(rng.random())],
            1 => vec![ad(rng.random()), q(rng.random())],
            2 => vec![q(5), q(6)],
            _ => vec![],
        };
        let mut frame = frame.tagged(&tags);
        if rng.random_ratio(1, 10) {
            frame.src[5] = rng.random_range(0..4);
        }
        frame.ip.ttl = match rng.random_range(0..20) {
            0 => rng.random_range(0..4),
            _ => rng.random_range(2..=255),
        };
        frame.ip.tos = rng.random();
        frame.ip.id = rng.random();
        if rng.random_ratio(1, 5) {
            if frame.ip.src.is_ipv4() {
                frame.ip.options = vec![1; 4 * rng.random_range(1..=10usize)];
            } else {
                let choices = [
                    Extension::options(0, 1),
                    Extension::options(60, 2),
                    Extension::routing(0),
                    Extension::routing(1),
                    Extension::authentication(),
                    Extension::atomic_fragment(3),
                ];
                frame.ip.extensions = (0..rng.random_range(1..=7))
                    .map(|_| choices.choose(rng).expect("some").clone())
                    .collect();
            }
        }
        if rng.random_ratio(1, 5) {
            frame.padding = vec![0xee; rng.random_range(1..30)];
        }
        let data: Vec<u8> = (0..rng.random_range(0..60)).map(|_| rng.random()).collect();
        match &mut frame.ip.payload {
            Payload::Tcp(tcp) => {
                tcp.data = data;
                if rng.random_ratio(1, 5) {
                    tcp.options = vec![1; 4 * rng.random_range(1..=10usize)];
                }
            }
            Payload::Udp(udp) => {
                udp.data = data;
                if frame.ip.src.is_ipv4() && rng.random_ratio(1, 5) {
                    udp.check = Check::Zero;
                }
            }
            _ => {}
        }
        frame
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) -> &'static str {
        let rng = &mut self.rng;
        if bytes.len() < 15 {
            bytes.resize(20, 0);
        }
        let len = bytes.len();
        match rng.random_range(0..8) {
            0 => {
                bytes[rng.random_range(0..len)] ^= 1 << rng.random_range(0..8);
                "a bit flipped"
            }
            1 => {
                // The headers are where it matters.
                bytes[rng.random_range(12..len.min(70))] ^= 1 << rng.random_range(0..8);
                "a header bit flipped"
            }
            2 => {
                bytes.truncate(rng.random_range(14..=len));
                "cut"
            }
            3 => {
                bytes.extend(std::iter::repeat_n(0x77, rng.random_range(1..20)));
                "lengthened"
            }
            4 => {
                let value = *[0, 1, 0x0f, 0x7f, 0x80, 0xff].choose(rng).expect("some");
                bytes[rng.random_range(12..len.min(90))] = value;
                "an odd byte"
            }
            5 => {
                let at = rng.random_range(12..len - 1);
                bytes.swap(at, at + 1);
                "two bytes swapped"
            }
            6 if len > 40 => {
                // Source and destination change places.
                let (a, b, n) = *[(0, 6, 6), (26, 30, 4), (34, 36, 2), (22, 38, 16)]
                    .choose(rng)
                    .expect("some");
                for i in 0..n {
                    if b + i < len {
                        bytes.swap(a + i, b + i);
                    }
                }
                "fields swapped"
            }
            _ => {
                let tag = [0x81, 0, 0, rng.random()];
                bytes.splice(12..12, tag);
                "one more tag"
            }
        }
    }

    fn change(&mut self, world: &mut World) -> Event {
        let rng = &mut self.rng;
        if rng.random_ratio(1, 4) {
            let slot = rng.random_range(0..14u16);
            let spec = &mut world.frontends[usize::from(slot)];
            match rng.random_range(0..8) {
                0 => spec.closing = true,
                1..3 => spec.closing = false,
                3 => spec.local = spec.proto == crate::packets::TCP && !spec.local,
                _ if spec.ring.is_empty() => {
                    // The standard ring, some slots several times.
                    spec.ring = World::standard().frontends[usize::from(slot)].ring.clone();
                }
                4 if rng.random() => spec.ring.clear(),
                _ => {
                    let of = spec.ring.clone();
                    let len = rng.random_range(1..40);
                    spec.ring = (0..len).map(|_| *of.choose(rng).expect("some")).collect();
                }
            }
            return Event::Frontend(slot);
        }
        let slot = rng.random_range(0..world.backends.len() as u16);
        let spec = &mut world.backends[usize::from(slot)];
        let server = 1 + (slot % 6) as u8;
        match rng.random_range(0..24) {
            0 => spec.usable = false,
            1 => spec.local = spec.proto == crate::packets::TCP && !spec.local,
            2 => {
                spec.stopped = true;
                spec.usable = false;
            }
            3 => spec.generation = spec.generation.wrapping_add(1),
            4 => spec.watched = !spec.watched,
            5 => {
                let tci = [rng.random(), rng.random()];
                let count = rng.random_range(0..=2);
                let mut hop = hop(server, count, rng.random(), tci);
                if rng.random_ratio(1, 4) {
                    hop.ifindex = CLIENTS;
                    hop.macs[6..].copy_from_slice(&CLIENTS_MAC);
                }
                spec.hop = Some(hop);
            }
            6 => spec.hop = None,
            7..12 => spec.hop = Some(hop_keep(server)),
            _ => {
                spec.stopped = false;
                spec.usable = true;
                spec.present = true;
            }
        }
        if rng.random_ratio(1, 30) {
            spec.present = false;
            spec.usable = false;
        }
        Event::Backend(slot)
    }
}
