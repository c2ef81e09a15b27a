//! Frames as text, for the messages of tests that fail: every field that the
//! program may change, whether each checksum is right, and the bytes.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packets::{ICMP, ICMPV6, TCP, UDP, internet_checksum, pseudo_header};

/// One line per header, then the bytes.
pub fn decode(frame: &[u8]) -> String {
    let mut out = format!("{} bytes\n", frame.len());
    if ethernet(&mut out, frame).is_none() {
        out.push_str("  (ends here)\n");
    }
    for (i, line) in frame.chunks(16).enumerate() {
        let _ = write!(out, "  {:04x} ", i * 16);
        for byte in line {
            let _ = write!(out, " {byte:02x}");
        }
        out.push('\n');
    }
    out
}

/// Where two frames differ: a list of offsets with both bytes.
pub fn difference(want: &[u8], got: &[u8]) -> String {
    let mut out = String::new();
    if want.len() != got.len() {
        let _ = writeln!(out, "length: want {}, got {}", want.len(), got.len());
    }
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        if w != g {
            let _ = writeln!(out, "at {i} (0x{i:04x}): want {w:02x}, got {g:02x}");
        }
    }
    out
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn mac(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    hex.join(":")
}

fn ethernet(out: &mut String, frame: &[u8]) -> Option<()> {
    let _ = write!(
        out,
        "  eth {} > {}",
        mac(frame.get(6..12)?),
        mac(frame.get(..6)?)
    );
    let mut at = 12;
    let mut kind = be16(frame, at)?;
    while matches!(kind, 0x8100 | 0x88a8) {
        let _ = write!(out, " tag {kind:04x}/{:04x}", be16(frame, at + 2)?);
        at += 4;
        kind = be16(frame, at)?;
    }
    let _ = writeln!(out, " type {kind:04x}");
    match kind {
        0x0800 | 0x86dd => ip(out, &frame[at + 2..], 1),
        _ => Some(()),
    }
}

fn ip(out: &mut String, b: &[u8], depth: usize) -> Option<()> {
    if depth > 2 {
        return Some(());
    }
    let pad = "  ".repeat(depth);
    if b.first()? >> 4 == 4 {
        let header = usize::from(b[0] & 15) * 4;
        let (total, frag) = (usize::from(be16(b, 2)?), be16(b, 6)?);
        let src = IpAddr::from(Ipv4Addr::from(be32(b, 12)?));
        let dst = IpAddr::from(Ipv4Addr::from(be32(b, 16)?));
        let good = b
            .get(..header)
            .is_some_and(|h| internet_checksum(&[h]) == 0);
        let _ = writeln!(
            out,
            "{pad}ipv4 {src} > {dst} header {header} total {total} id {:04x} df {} mf {} offset {} ttl {} proto {} check {:04x} {}",
            be16(b, 4)?,
            frag >> 14 & 1,
            frag >> 13 & 1,
            (frag & 0x1fff) * 8,
            b[8],
            b[9],
            be16(b, 10)?,
            if good { "right" } else { "WRONG" }
        );
        if frag & 0x1fff != 0 {
            return Some(());
        }
        let end = total.min(b.len());
        let whole = frag & 0x2000 == 0 && end == total;
        transport(out, src, dst, b[9], b.get(header..end)?, whole, depth)
    } else {
        let len = usize::from(be16(b, 4)?);
        let src = IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(b.get(8..24)?).ok()?));
        let dst = IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(b.get(24..40)?).ok()?));
        let (mut next, mut at) = (b[6], 40);
        let _ = writeln!(
            out,
            "{pad}ipv6 {src} > {dst} payload {len} hops {} next {next}",
            b[7]
        );
        let end = (40 + len).min(b.len());
        let mut whole = end == 40 + len;
        while matches!(next, 0 | 43 | 44 | 51 | 60) {
            let h = b.get(at..end)?;
            let size = match next {
                44 => 8,
                51 => (usize::from(*h.get(1)?) + 2) * 4,
                _ => (usize::from(*h.get(1)?) + 1) * 8,
            };
            let _ = writeln!(
                out,
                "{pad}  extension {next}: {size} bytes {:02x?}",
                &h[..size.min(h.len())]
            );
            if next == 44 {
                let field = be16(h, 2)?;
                whole &= field & 0xfff9 == 0;
                if field & 0xfff8 != 0 {
                    return Some(());
                }
            }
            next = h[0];
            at += size;
        }
        transport(out, src, dst, next, b.get(at..end)?, whole, depth)
    }
}

fn transport(
    out: &mut String,
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    b: &[u8],
    whole: bool,
    depth: usize,
) -> Option<()> {
    let pad = "  ".repeat(depth);
    let pseudo = pseudo_header(src, dst, proto, b.len());
    let verdict = |check: u16| match (whole, check) {
        (false, _) => "(part)",
        (true, 0) => "right",
        (true, _) => "WRONG",
    };
    match proto {
        TCP => {
            let _ = writeln!(
                out,
                "{pad}tcp {} > {} seq {:08x} ack {:08x} header {} flags {:02x} check {:04x} {} data {}",
                be16(b, 0)?,
                be16(b, 2)?,
                be32(b, 4)?,
                be32(b, 8)?,
                (b.get(12)? >> 4) * 4,
                b.get(13)?,
                be16(b, 16)?,
                verdict(internet_checksum(&[&pseudo, b])),
                b.len() as isize - isize::from(b[12] >> 4) * 4
            );
        }
        UDP => {
            let field = be16(b, 6)?;
            let _ = writeln!(
                out,
                "{pad}udp {} > {} length {} check {field:04x} {}",
                be16(b, 0)?,
                be16(b, 2)?,
                be16(b, 4)?,
                if field == 0 {
                    "absent"
                } else {
                    verdict(internet_checksum(&[&pseudo, b]))
                }
            );
        }
        ICMP | ICMPV6 => {
            let check = if proto == ICMP {
                internet_checksum(&[b])
            } else {
                internet_checksum(&[&pseudo, b])
            };
            let _ = writeln!(
                out,
                "{pad}icmp type {} code {} rest {:08x} check {:04x} {}",
                b.first()?,
                b.get(1)?,
                be32(b, 4)?,
                be16(b, 2)?,
                verdict(check)
            );
            let error = match proto {
                ICMP => matches!(b[0], 3 | 4 | 5 | 11 | 12),
                _ => b[0] < 128,
            };
            if error {
                return ip(out, b.get(8..)?, depth + 1);
            }
        }
        _ => {
            let _ = writeln!(out, "{pad}protocol {proto}: {} bytes", b.len());
        }
    }
    Some(())
}
