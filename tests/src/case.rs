//! Declarative packet cases: a description, a frame in, and what must become of
//! it, byte for byte, with the reasons counted.
//!
//! Every case runs through the program and through the reference model, and both
//! must agree with what the case says.

use std::net::IpAddr;

use anyhow::Result;
use common::counters::Reason;
use common::tables::Settings;

use crate::decode::{decode, difference};
use crate::model::{Flow, Model};
use crate::packets::{Check, Frame, Icmp, Packet, Payload, TCP, Tcp, Udp, tcp_flags};
use crate::setup::{CLIENTS, CLIENTS_MAC, ROUTER_MAC, SERVERS, SERVERS_MAC, World, ip, server_mac};
use crate::xdp::{Action, Loaded, Reasons, Run, delta};

/// Program, model and world side by side.
pub struct Rig {
    /// The program.
    pub xdp: Loaded,
    /// The model; its `world` is the present one.
    pub model: Model,
    /// Failures so far.
    failures: Vec<String>,
    cases: usize,
}

/// What must become of a frame.
#[derive(Clone, Debug)]
pub enum Want {
    /// Passed, byte-identical.
    Pass,
    /// Dropped.
    Drop,
    /// Passed, but changed into this.
    PassAs(Vec<u8>),
    /// Sent back out of the same device as this.
    Tx(Vec<u8>),
    /// Sent out of another device as this.
    Redirect(Vec<u8>),
}

/// Sent back as this.
pub fn tx(frame: &Frame) -> Want {
    Want::Tx(frame.bytes())
}

/// Sent out of another device as this.
pub fn redirect(frame: &Frame) -> Want {
    Want::Redirect(frame.bytes())
}

/// One connection as a test sees it.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// The client.
    pub client: (IpAddr, u16),
    /// Slot of the frontend.
    pub frontend: u16,
    /// Slot of the backend.
    pub backend: u16,
    /// The source that the backend sees instead of the client.
    pub snat: Option<(IpAddr, u16)>,
}

/// Sequence number of the client's SYN in [`Rig::open`].
pub const CLIENT_SEQ: u32 = 1_000;
/// Sequence number of the backend's SYN+ACK in [`Rig::open`].
pub const SERVER_SEQ: u32 = 0xffff_ffff;

impl Rig {
    /// The standard world in the program that all tests of the process share.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn start() -> Result<Self> {
        let world = World::standard();
        Ok(Self::of(Loaded::shared(&world)?, &world))
    }

    /// The standard world in a program and a network namespace of its own.
    ///
    /// # Errors
    /// As above.
    pub fn alone(settings: Settings) -> Result<Self> {
        let world = World::standard();
        Ok(Self::of(Loaded::alone(&world, settings)?, &world))
    }

    fn of(xdp: Loaded, world: &World) -> Self {
        Self {
            xdp,
            model: Model::new(world),
            failures: Vec::new(),
            cases: 0,
        }
    }

    /// Forgets all flows and goes back to the standard world.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn reset(&mut self) {
        let world = World::standard();
        self.xdp.reset(&world).expect("reset");
        self.model = Model::new(&world);
    }

    /// What the tables say.
    pub fn world(&self) -> &World {
        &self.model.world
    }

    /// Changes a backend for both sides.
    pub fn backend(&mut self, slot: u16, change: impl FnOnce(&mut crate::setup::BackendSpec)) {
        change(&mut self.model.world.backends[usize::from(slot)]);
        self.model.world.write_backend(&self.xdp.tables, slot);
    }

    /// Changes a frontend and its ring for both sides.
    pub fn frontend(&mut self, slot: u16, change: impl FnOnce(&mut crate::setup::FrontendSpec)) {
        change(&mut self.model.world.frontends[usize::from(slot)]);
        self.model.world.write_ring(&self.xdp.tables, slot);
        self.model.world.write_frontend(&self.xdp.tables, slot);
    }

    /// One case.
    pub fn expect(
        &mut self,
        what: &str,
        frame: &Frame,
        ifindex: u32,
        want: Want,
        reasons: &[Reason],
    ) {
        self.expect_bytes(what, &frame.bytes(), ifindex, want, reasons);
    }

    /// One case from raw bytes.
    pub fn expect_bytes(
        &mut self,
        what: &str,
        frame: &[u8],
        ifindex: u32,
        want: Want,
        reasons: &[Reason],
    ) {
        let (got, counted) = self.both(what, frame, ifindex);
        self.compare(what, frame, ifindex, &(got, counted), want, reasons);
    }

    /// Compares what became of a frame with what must have.
    pub fn compare(
        &mut self,
        what: &str,
        frame: &[u8],
        ifindex: u32,
        (got, got_counted): &(Run, Reasons),
        want: Want,
        reasons: &[Reason],
    ) {
        let want = match want {
            Want::Pass => run(Action::Pass, frame),
            Want::Drop => run(Action::Drop, frame),
            Want::PassAs(bytes) => run(Action::Pass, &bytes),
            Want::Tx(bytes) => run(Action::Tx, &bytes),
            Want::Redirect(bytes) => run(Action::Redirect, &bytes),
        };
        let mut counted = Reasons::new();
        for reason in reasons {
            *counted.entry(*reason).or_default() += 1;
        }
        if !agree(&want, got) || *got_counted != counted {
            self.failures.push(mismatch(
                what,
                frame,
                ifindex,
                ("case", &want, &counted),
                ("program", got, got_counted),
            ));
        }
    }

    /// Runs a frame through program and model, which must agree.
    ///
    /// # Panics
    /// When the kernel refuses to run it.
    pub fn both(&mut self, what: &str, frame: &[u8], ifindex: u32) -> (Run, Reasons) {
        self.cases += 1;
        let before = self.xdp.reasons();
        let got = self.xdp.run(frame, ifindex).expect("test run");
        let counted = delta(&before, &self.xdp.reasons());
        let verdict = self.model.step(frame, ifindex, Some(&got.frame));
        if !agree(&verdict.run, &got) || verdict.reasons != counted {
            self.failures.push(mismatch(
                what,
                frame,
                ifindex,
                ("model", &verdict.run, &verdict.reasons),
                ("program", &got, &counted),
            ));
        }
        let events: Vec<_> = self
            .xdp
            .events()
            .iter()
            .map(|e| (e.kind, e.backend as u16, e.generation as u8))
            .collect();
        self.check(
            events == verdict.events,
            &format!("{what}: events: want {:?}, got {events:?}", verdict.events),
        );
        (got, counted)
    }

    /// A condition that must hold beside the packets.
    pub fn check(&mut self, holds: bool, what: &str) {
        if !holds {
            self.failures.push(what.to_owned());
        }
    }

    /// Ends the test.
    ///
    /// # Panics
    /// With every failure, when there were any.
    pub fn finish(mut self) {
        let failures = std::mem::take(&mut self.failures);
        assert!(
            failures.is_empty(),
            "{} failures in {} cases:\n\n{}",
            failures.len(),
            self.cases,
            failures[..failures.len().min(8)].join("\n")
        );
        assert!(self.cases > 0, "no case was run");
    }

    /// Makes a connection (TCP: handshake; UDP: a datagram and its answer).
    ///
    /// # Panics
    /// When no flow comes of it.
    pub fn open(&mut self, client: (IpAddr, u16), frontend: u16) -> Talk {
        let talk = self.begin(client, frontend);
        if self.is_tcp(frontend) {
            let answer = self
                .answer(&talk)
                .flags(tcp_flags::SYN | tcp_flags::ACK)
                .seq(SERVER_SEQ, CLIENT_SEQ + 1);
            self.both("open: SYN+ACK", &answer.bytes(), SERVERS);
            let ack = self
                .ask(&talk)
                .flags(tcp_flags::ACK)
                .seq(CLIENT_SEQ + 1, SERVER_SEQ.wrapping_add(1));
            self.both("open: ACK", &ack.bytes(), CLIENTS);
        } else {
            self.both("open: answer", &self.answer(&talk).bytes(), SERVERS);
        }
        let key = (client.0, client.1, frontend);
        assert!(self.model.established.contains_key(&key), "not established");
        talk
    }

    /// Sends the first packet of a connection.
    ///
    /// # Panics
    /// When no flow comes of it.
    pub fn begin(&mut self, client: (IpAddr, u16), frontend: u16) -> Talk {
        let first = self.first(client, frontend);
        self.both("first packet", &first.bytes(), CLIENTS);
        self.talk(client, frontend)
    }

    /// The connection that a first packet made.
    ///
    /// # Panics
    /// When there is none.
    pub fn talk(&self, client: (IpAddr, u16), frontend: u16) -> Talk {
        let flow = self.flow(client, frontend).expect("a flow");
        Talk {
            client,
            frontend,
            backend: flow.backend,
            snat: flow
                .snat
                .map(|(slot, port)| (self.world().snat[usize::from(slot)].addr, port)),
        }
    }

    /// The model's flow, half-open or established.
    pub fn flow(&self, client: (IpAddr, u16), frontend: u16) -> Option<Flow> {
        let key = (client.0, client.1, frontend);
        let model = &self.model;
        model
            .established
            .get(&key)
            .or_else(|| model.half_open.get(&key))
            .cloned()
    }

    /// The first packet of a connection: SYN, or a datagram.
    pub fn first(&self, client: (IpAddr, u16), frontend: u16) -> Frame {
        let service = self.world().service(frontend);
        if self.is_tcp(frontend) {
            tcp(client, service, tcp_flags::SYN).seq(CLIENT_SEQ, 0)
        } else {
            udp(client, service)
        }
    }

    /// A packet from the client of a connection.
    pub fn ask(&self, talk: &Talk) -> Frame {
        let service = self.world().service(talk.frontend);
        if self.is_tcp(talk.frontend) {
            tcp(talk.client, service, tcp_flags::ACK).seq(CLIENT_SEQ + 1, 0)
        } else {
            udp(talk.client, service)
        }
    }

    /// A packet from the backend of a connection.
    pub fn answer(&self, talk: &Talk) -> Frame {
        let to = talk.snat.unwrap_or(talk.client);
        let server = self.world().server(talk.backend);
        let frame = if self.is_tcp(talk.frontend) {
            tcp(server, to, tcp_flags::ACK).seq(1, CLIENT_SEQ + 1)
        } else {
            udp(server, to)
        };
        frame.macs(SERVERS_MAC, server_mac(1))
    }

    /// What a packet from the client must be when it reaches the backend.
    pub fn asked(&self, talk: &Talk, frame: &Frame) -> Frame {
        let (dst, src) = self.world().hop_macs(talk.backend);
        let mut out = frame.clone().to(self.world().server(talk.backend));
        if let Some(snat) = talk.snat {
            out = out.from(snat);
        }
        out.ttl(frame.ip.ttl - 1).macs(dst, src)
    }

    /// What a packet from the backend must be when it reaches the client.
    pub fn answered(&self, talk: &Talk, frame: &Frame) -> Frame {
        let out = frame.clone().from(self.world().service(talk.frontend));
        out.to(talk.client)
            .ttl(frame.ip.ttl - 1)
            .macs(ROUTER_MAC, CLIENTS_MAC)
    }

    fn is_tcp(&self, frontend: u16) -> bool {
        self.world().frontends[usize::from(frontend)].proto == TCP
    }
}

/// A TCP segment as it comes from the clients' router.
pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Frame {
    from_client(Packet::new(
        from.0,
        to.0,
        Payload::Tcp(Tcp {
            sport: from.1,
            dport: to.1,
            seq: 7,
            ack: 0,
            flags,
            window: 4_096,
            options: Vec::new(),
            data: Vec::new(),
        }),
    ))
}

/// The RST that must answer a segment (RFC 9293 section 3.10.7.1).
///
/// # Panics
/// When it is none.
pub fn reset_for(frame: &Frame) -> Frame {
    use tcp_flags::{ACK, FIN, RST, SYN};
    let Payload::Tcp(segment) = &frame.ip.payload else {
        panic!("not TCP");
    };
    let len = segment.data.len() as u32
        + u32::from(segment.flags & SYN != 0)
        + u32::from(segment.flags & FIN != 0);
    let (seq, ack, flags) = if segment.flags & ACK != 0 {
        (segment.ack, 0, RST)
    } else {
        (0, segment.seq.wrapping_add(len), RST | ACK)
    };
    let service = (frame.ip.dst, segment.dport);
    let mut out = tcp(service, (frame.ip.src, segment.sport), flags).seq(seq, ack);
    out.ip.id = 0;
    if let Payload::Tcp(reset) = &mut out.ip.payload {
        reset.window = 0;
    }
    out.macs(frame.src, frame.dst).tagged(&frame.tags)
}

/// The port unreachable that must answer a datagram.
pub fn unreachable_for(frame: &Frame) -> Frame {
    let v4 = frame.ip.src.is_ipv4();
    let about = if v4 {
        frame.ip.head(8)
    } else {
        frame.ip.bytes()[..48].to_vec()
    };
    let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
    let mut out = icmp(frame.ip.dst, frame.ip.src, kind, code, [0; 4], &about);
    out.ip.id = 0;
    out.macs(frame.src, frame.dst).tagged(&frame.tags)
}

/// A UDP datagram as it comes from the clients' router.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16)) -> Frame {
    from_client(Packet::new(
        from.0,
        to.0,
        Payload::Udp(Udp {
            sport: from.1,
            dport: to.1,
            check: Check::Right,
            data: b"question".to_vec(),
        }),
    ))
}

/// An ICMP or ICMPv6 message as it comes from the clients' router.
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Frame {
    from_client(Packet::new(
        from,
        to,
        Payload::Icmp(Icmp {
            kind,
            code,
            rest,
            body: body.to_vec(),
        }),
    ))
}

/// A packet as it comes from the clients' router.
pub fn from_client(packet: Packet) -> Frame {
    Frame {
        dst: CLIENTS_MAC,
        src: ROUTER_MAC,
        tags: Vec::new(),
        ip: packet,
        padding: Vec::new(),
    }
}

/// Address of the `n`th client of a family.
pub fn client(v4: bool, n: u16) -> IpAddr {
    if v4 {
        ip(&format!("198.51.100.{n}"))
    } else {
        ip(&format!("2001:db8:c::{n:x}"))
    }
}

fn run(action: Action, frame: &[u8]) -> Run {
    Run {
        action,
        frame: frame.to_vec(),
    }
}

/// Whether both did the same; what is dropped has no bytes to compare.
pub fn agree(want: &Run, got: &Run) -> bool {
    want.action == got.action && (want.action == Action::Drop || want.frame == got.frame)
}

/// Both results of a frame, readable.
pub fn mismatch(
    what: &str,
    frame: &[u8],
    ifindex: u32,
    want: (&str, &Run, &Reasons),
    got: (&str, &Run, &Reasons),
) -> String {
    format!(
        "=== {what}\nin on {ifindex}: {}\n{}: {:?} {:?}\n{}\n{}: {:?} {:?}\n{}\n{}",
        decode(frame),
        want.0,
        want.1.action,
        want.2,
        decode(&want.1.frame),
        got.0,
        got.1.action,
        got.2,
        decode(&got.1.frame),
        difference(&want.1.frame, &got.1.frame),
    )
}
