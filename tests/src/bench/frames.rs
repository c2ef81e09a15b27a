//! The frames that the wrappers fill in, and the plans that say how.

use balancer_ebpf::plan::{FIRST_PORT, Plan};
use common::checksum;

use super::world::{OURS, ROUTER, SERVER, Side};

/// Which way a packet goes, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ACK from a client to the frontend.
    Forward,
    /// An ACK from a backend to a client.
    Reply,
    /// A SYN from a client to the frontend.
    Syn,
    /// A backend's SYN+ACK to a client.
    SynAck,
    /// An ACK from a client to an address that is not balanced.
    Stranger,
}

impl Kind {
    /// The wrapper that makes such packets.
    pub fn wrapper(self, v4: bool) -> &'static str {
        match (self.is_reply(), v4) {
            (false, true) => "forward4",
            (false, false) => "forward6",
            (true, true) => "reply4",
            (true, false) => "reply6",
        }
    }

    fn is_reply(self) -> bool {
        matches!(self, Self::Reply | Self::SynAck)
    }

    fn tcp_flags(self) -> u8 {
        match self {
            Self::Forward | Self::Reply | Self::Stranger => ACK,
            Self::Syn => SYN,
            Self::SynAck => SYN | ACK,
        }
    }
}

const TTL: u8 = 64;
const ACK: u8 = 16;
const SYN: u8 = 2;

/// Bytes behind the TCP header, so that the IPv4 frame has the least length.
const PAYLOAD: usize = 6;

/// The plan for `flows` flows, a power of two, and the first one's packet.
///
/// The flows are visited at a distance that no prefetcher follows, each once per
/// round; those of SYNs just count up, so that each is new.
pub fn plan(side: &Side, kind: Kind, flows: u64) -> (Plan, Vec<u8>) {
    let (peer, port) = match kind {
        Kind::Forward | Kind::Syn => side.service,
        Kind::Reply | Kind::SynAck => side.server(0),
        Kind::Stranger => side.stranger,
    };
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&OURS);
    macs[6..].copy_from_slice(if kind == Kind::Reply {
        &SERVER
    } else {
        &ROUTER
    });
    let mut plan = Plan {
        next: 0,
        step: if kind == Kind::Syn {
            1
        } else {
            0x9e37_79b9_7f4a_7c15
        },
        mask: flows - 1,
        client: side.client,
        peer,
        port,
        ip_check: 0,
        l4_check: 0x1234,
        ttl: [TTL, 0],
        macs,
        sink_port: side.server(0).1,
        out: 0,
    };
    let frame = frame(side, kind, &plan);
    if side.v4 {
        plan.ip_check = u16::from_ne_bytes([frame[24], frame[25]]);
    }
    (plan, frame)
}

/// The same flows in another order, to fill the floors' maps in. The kernel lays new
/// elements one behind the other: looked up in the order that they were made in, they
/// would lie in a row, and come with the prefetcher. Packets of real clients do not come
/// in the order that the clients did.
pub fn another_order(plan: Plan) -> Plan {
    Plan {
        step: 0xd134_2543_de82_ef95,
        ..plan
    }
}

fn frame(side: &Side, kind: Kind, plan: &Plan) -> Vec<u8> {
    let mut frame = plan.macs.to_vec();
    let client = (side.client, FIRST_PORT);
    let peer = (plan.peer, plan.port.host());
    let (src, dst) = if kind.is_reply() {
        (peer, client)
    } else {
        (client, peer)
    };
    let tcp = 20 + PAYLOAD;
    if side.v4 {
        frame.extend([0x08, 0x00, 0x45, 0, 0, (20 + tcp) as u8, 0, 0, 0x40, 0]);
        frame.extend([TTL, 6, 0, 0]);
        frame.extend(&src.0.octets()[12..]);
        frame.extend(&dst.0.octets()[12..]);
        let check = !checksum::fold(checksum::sum_bytes(&frame[14..34]));
        frame[24..26].copy_from_slice(&check.to_ne_bytes());
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, tcp as u8, 6, TTL]);
        frame.extend(src.0.octets());
        frame.extend(dst.0.octets());
    }
    frame.extend(src.1.to_be_bytes());
    frame.extend(dst.1.to_be_bytes());
    // Everybody's sequence number is 1, and an acknowledgement is of a SYN.
    frame.extend([0, 0, 0, 1, 0, 0, 0, 2]);
    frame.extend([0x50, kind.tcp_flags(), 0xff, 0xff]);
    frame.extend(plan.l4_check.to_ne_bytes());
    frame.extend([0; 2 + PAYLOAD]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::SlicedPacket;

    #[test]
    fn frames_are_whole_packets() {
        for v4 in [true, false] {
            for kind in [
                Kind::Forward,
                Kind::Reply,
                Kind::Syn,
                Kind::SynAck,
                Kind::Stranger,
            ] {
                let (_, frame) = plan(&Side::of(v4), kind, 1);
                assert_eq!(frame.len(), if v4 { 60 } else { 80 });
                let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else {
                    panic!("no TCP");
                };
                assert_eq!(tcp.syn(), matches!(kind, Kind::Syn | Kind::SynAck));
                assert_eq!(tcp.ack(), kind != Kind::Syn);
                assert_eq!(tcp.payload().len(), PAYLOAD);
            }
        }
    }

    #[test]
    fn a_round_visits_every_flow() {
        let (plan, _) = plan(&Side::of(true), Kind::Forward, 1024);
        for mut plan in [plan, another_order(plan)] {
            let mut seen = std::collections::HashSet::new();
            for _ in 0..1024 {
                seen.insert(plan.client_of(plan.next));
                plan.next = plan.next.wrapping_add(plan.step) & plan.mask;
            }
            assert_eq!(seen.len(), 1024);
        }
    }
}
