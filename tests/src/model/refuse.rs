//! The model's refusals: RST, port unreachable, silence, or the host's stack.

use common::counters::Reason;
use common::tables::Unavailable;

use super::Step;
use super::parse::{Parsed, be16, be32};
use crate::packets::{
    ICMP, ICMPV6, TCP, address_bytes, internet_checksum, pseudo_header, tcp_flags,
};
use crate::xdp::{Action, Run};

impl Step<'_> {
    pub(super) fn refuse(&mut self, p: &Parsed, policy: Unavailable) -> Run {
        match policy {
            Unavailable::Pass => self.pass(Reason::RefusedPass),
            Unavailable::Drop => self.drop(Reason::RefusedDrop),
            // There is no header to answer.
            Unavailable::Reset if self.later(p) => self.drop(Reason::RefusedDrop),
            Unavailable::Reset if p.proto == TCP => {
                if self.frame[p.l4 + 13] & tcp_flags::RST != 0 {
                    return self.drop(Reason::RefusedDrop);
                }
                let segment = self.reset_segment(p);
                self.answer(p, TCP, segment)
            }
            Unavailable::Reset => {
                let header = if p.v4 { p.l4 - p.l3 } else { 40 };
                let carried = (p.l3 + header + 8).min(p.end);
                let (kind, code) = if p.v4 { (3, 3) } else { (1, 4) };
                let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
                message.extend(&self.frame[p.l3..carried]);
                self.answer(p, if p.v4 { ICMP } else { ICMPV6 }, message)
            }
        }
    }

    fn drop(&mut self, reason: Reason) -> Run {
        self.count(reason);
        Run {
            action: Action::Drop,
            frame: self.frame.to_vec(),
        }
    }

    /// RFC 9293 section 3.10.7.1, without its checksum.
    fn reset_segment(&self, p: &Parsed) -> Vec<u8> {
        let b = &self.frame[p.l4..p.end];
        let flags = b[13];
        let (seq, ack, out) = if flags & tcp_flags::ACK != 0 {
            (be32(b, 8), 0, tcp_flags::RST)
        } else {
            // A first fragment can end within its options.
            let data = b.len().saturating_sub(usize::from(b[12] >> 4) * 4);
            let phantom =
                u32::from(flags & tcp_flags::SYN != 0) + u32::from(flags & tcp_flags::FIN != 0);
            let ack = be32(b, 4).wrapping_add(data as u32).wrapping_add(phantom);
            (0, ack, tcp_flags::RST | tcp_flags::ACK)
        };
        let mut segment = Vec::new();
        segment.extend(be16(b, 2).to_be_bytes());
        segment.extend(be16(b, 0).to_be_bytes());
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([0x50, out, 0, 0, 0, 0, 0, 0]);
        segment
    }

    /// Sends `payload` from the frontend to the client, back where the frame came
    /// from.
    fn answer(&mut self, p: &Parsed, proto: u8, mut payload: Vec<u8>) -> Run {
        self.count(Reason::RefusedReset);
        let (src, dst) = (p.dst, p.src);
        let pseudo = pseudo_header(src, dst, proto, payload.len());
        let check = match proto {
            ICMP => internet_checksum(&[&payload]),
            _ => internet_checksum(&[&pseudo, &payload]),
        };
        let at = if proto == TCP { 16 } else { 2 };
        payload[at..at + 2].copy_from_slice(&check.to_be_bytes());
        let mut frame = self.frame[6..12].to_vec();
        frame.extend(&self.frame[..6]);
        frame.extend(&self.frame[12..p.l3]);
        if p.v4 {
            let mut header = vec![0x45, 0];
            header.extend(((20 + payload.len()) as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
            header.extend(address_bytes(src));
            header.extend(address_bytes(dst));
            let check = internet_checksum(&[&header]);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            frame.extend(header);
        } else {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([proto, 64]);
            frame.extend(address_bytes(src));
            frame.extend(address_bytes(dst));
        }
        frame.extend(payload);
        Run {
            action: Action::Tx,
            frame,
        }
    }
}
