//! Reads the PROXY protocol header (haproxy's proxy-protocol.txt, versions 1 and 2) and
//! says in words what it tells.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::net::TcpStream;

use super::wire::Wire;

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// `1 TCP4 1.2.3.4:5 6.7.8.9:10`; the first number is the version.
pub(super) async fn read(wire: &mut Wire<TcpStream>) -> io::Result<String> {
    if wire.begins_with(b"PROXY ").await? {
        let line = wire.until(b"\r\n").await?.ok_or_else(|| bad("no end"))?;
        let text = std::str::from_utf8(&line).map_err(|_| bad("not text"))?;
        let words: Vec<&str> = text.trim_end_matches("\r\n").split(' ').collect();
        return match words[..] {
            ["PROXY", "UNKNOWN", ..] => Ok("1 UNKNOWN".to_owned()),
            ["PROXY", family, from, to, from_port, to_port] => {
                Ok(format!("1 {family} {from}:{from_port} {to}:{to_port}"))
            }
            _ => Err(bad(text)),
        };
    }
    if !wire.begins_with(V2).await? {
        return Err(bad("no PROXY header"));
    }
    let head = wire.exactly(16).await?;
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let rest = wire.exactly(length).await?;
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match (head[12], head[13]) {
        (0x20, _) => Ok("2 LOCAL".to_owned()),
        (0x21, 0x11) if length >= 12 => {
            let at = |from: usize| {
                Ipv4Addr::new(rest[from], rest[from + 1], rest[from + 2], rest[from + 3])
            };
            Ok(format!(
                "2 TCP4 {}:{} {}:{}",
                at(0),
                port(8),
                at(4),
                port(10)
            ))
        }
        (0x21, 0x21) if length >= 36 => {
            let at = |from: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&rest[from..from + 16]);
                Ipv6Addr::from(octets)
            };
            Ok(format!(
                "2 TCP6 {}:{} {}:{}",
                at(0),
                port(32),
                at(16),
                port(34)
            ))
        }
        (command, family) => Err(bad(&format!("command {command:#x}, family {family:#x}"))),
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("PROXY header: {what}"))
}
