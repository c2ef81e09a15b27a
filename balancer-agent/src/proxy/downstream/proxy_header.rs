//! The PROXY protocol's header, versions 1 and 2, in front of everything else.
//!
//! Only what belongs to the header is read from the socket: what has come is looked at
//! first (MSG_PEEK), so that TLS finds its bytes where it expects them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// First bytes of version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, its line end included.
const LONGEST_V1: usize = 107;
/// Version 2's fixed part: signature, version and command, family, length.
const FIXED_V2: usize = 16;
/// Longest header of version 2 that is taken: addresses and a fair lot of TLVs.
const LONGEST_V2: usize = FIXED_V2 + 4096;

/// What the header says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxied {
    /// It is the proxy's own (health checks), or what it is is not told.
    Itself,
    /// It comes from a client.
    For {
        /// The client.
        client: SocketAddr,
        /// Where the client connected to.
        local: SocketAddr,
    },
}

/// Why a header is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The socket.
    #[error("the connection ended within it: {0}")]
    Io(#[from] io::Error),
    /// It is none.
    #[error("there is none")]
    Missing,
    /// It is malformed or too long.
    #[error("it is malformed")]
    Malformed,
}

/// How much of a header there is.
#[derive(Debug, PartialEq, Eq)]
enum Extent {
    /// It ends here.
    Whole(usize),
    /// All of the bytes belong to it, and so do the next, this many at least.
    More(usize),
}

/// Where the header that begins with `bytes` ends.
fn extent(bytes: &[u8]) -> Result<Extent, HeaderError> {
    let n = bytes.len().min(SIGNATURE.len());
    if bytes[..n] == SIGNATURE[..n] {
        let Some(length) = bytes.get(14..16) else {
            return Ok(Extent::More(FIXED_V2 - bytes.len()));
        };
        let whole = FIXED_V2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
        return match bytes.len() {
            _ if whole > LONGEST_V2 => Err(HeaderError::Malformed),
            have if have < whole => Ok(Extent::More(whole - have)),
            _ => Ok(Extent::Whole(whole)),
        };
    }
    let start = b"PROXY ";
    let n = bytes.len().min(start.len());
    if bytes[..n] != start[..n] {
        return Err(HeaderError::Missing);
    }
    match memchr::memchr(b'\n', &bytes[..bytes.len().min(LONGEST_V1)]) {
        Some(i) => Ok(Extent::Whole(i + 1)),
        None if bytes.len() >= LONGEST_V1 => Err(HeaderError::Malformed),
        None => Ok(Extent::More(1)),
    }
}

/// Reads a whole header, and nothing after it.
pub(super) async fn read(stream: &mut TcpStream) -> Result<Proxied, HeaderError> {
    let mut header = Vec::new();
    let mut wanted = FIXED_V2;
    let mut peeked = [0; 256];
    loop {
        // At least one byte is taken each time round, so that this ends.
        let place = wanted.clamp(LONGEST_V1, peeked.len());
        let n = stream.peek(&mut peeked[..place]).await?;
        if n == 0 {
            return Err(HeaderError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let had = header.len();
        header.extend_from_slice(&peeked[..n]);
        let (end, whole) = match extent(&header)? {
            Extent::Whole(end) => (end, true),
            Extent::More(more) => {
                wanted = more;
                (header.len(), false)
            }
        };
        // They are there already.
        stream.read_exact(&mut peeked[..end - had]).await?;
        header.truncate(end);
        if whole {
            return parse(&header);
        }
    }
}

/// Reads what a whole header says.
fn parse(header: &[u8]) -> Result<Proxied, HeaderError> {
    use ppp::v2;
    if !header.starts_with(SIGNATURE) {
        return parse_v1(header);
    }
    let header = v2::Header::try_from(header).map_err(|_| HeaderError::Malformed)?;
    if header.command == v2::Command::Local {
        return Ok(Proxied::Itself);
    }
    Ok(match header.addresses {
        v2::Addresses::IPv4(a) => Proxied::For {
            client: SocketAddr::new(IpAddr::V4(a.source_address), a.source_port),
            local: SocketAddr::new(IpAddr::V4(a.destination_address), a.destination_port),
        },
        v2::Addresses::IPv6(a) => Proxied::For {
            client: SocketAddr::new(IpAddr::V6(a.source_address), a.source_port),
            local: SocketAddr::new(IpAddr::V6(a.destination_address), a.destination_port),
        },
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => Proxied::Itself,
    })
}

fn parse_v1(header: &[u8]) -> Result<Proxied, HeaderError> {
    use ppp::v1;
    let text = std::str::from_utf8(header).map_err(|_| HeaderError::Malformed)?;
    let header = v1::Header::try_from(text).map_err(|_| HeaderError::Malformed)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(a) => Proxied::For {
            client: SocketAddr::new(IpAddr::V4(a.source_address), a.source_port),
            local: SocketAddr::new(IpAddr::V4(a.destination_address), a.destination_port),
        },
        v1::Addresses::Tcp6(a) => Proxied::For {
            client: SocketAddr::new(IpAddr::V6(a.source_address), a.source_port),
            local: SocketAddr::new(IpAddr::V6(a.destination_address), a.destination_port),
        },
        v1::Addresses::Unknown => Proxied::Itself,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn four(tlvs: &[u8]) -> Vec<u8> {
        let mut body = vec![10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 0, 80];
        body.extend(tlvs);
        v2(1, 0x11, &body)
    }

    fn expected() -> Proxied {
        Proxied::For {
            client: "10.0.0.1:4660".parse().unwrap(),
            local: "10.0.0.2:80".parse().unwrap(),
        }
    }

    /// Sends the header in pieces, followed by other bytes that have to stay.
    async fn send(header: &[u8], piece: usize) -> Result<Proxied, HeaderError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        client.set_nodelay(true).unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut all = header.to_vec();
        all.extend(b"GET /");
        let send = async {
            for piece in all.chunks(piece) {
                if client.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            client.shutdown().await.ok();
        };
        let read = async {
            let result = read(&mut server).await;
            if result.is_ok() {
                let mut rest = String::new();
                server.read_to_string(&mut rest).await.unwrap();
                assert_eq!(rest, "GET /");
            }
            drop(server);
            result
        };
        tokio::join!(send, read).1
    }

    #[tokio::test]
    async fn both_versions_in_pieces_of_any_size() {
        let six = {
            let mut body = [0; 36];
            body[15] = 1;
            body[31] = 2;
            body[33] = 9;
            body[35] = 8;
            v2(1, 0x21, &body)
        };
        let cases = [
            (
                b"PROXY TCP4 10.0.0.1 10.0.0.2 4660 80\r\n".to_vec(),
                expected(),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Proxied::Itself),
            (
                b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(),
                Proxied::Itself,
            ),
            (
                b"PROXY TCP6 ::1 ::2 9 8\r\n".to_vec(),
                Proxied::For {
                    client: "[::1]:9".parse().unwrap(),
                    local: "[::2]:8".parse().unwrap(),
                },
            ),
            (four(&[]), expected()),
            (four(&[0x04, 0, 3, 1, 2, 3]), expected()),
            (
                four(&{
                    let mut tlv = vec![0x04, 0x02, 0xbc];
                    tlv.extend([7; 700]);
                    tlv
                }),
                expected(),
            ),
            (
                six,
                Proxied::For {
                    client: "[::1]:9".parse().unwrap(),
                    local: "[::2]:8".parse().unwrap(),
                },
            ),
            (v2(0, 0, &[]), Proxied::Itself),
            (v2(1, 0, &[]), Proxied::Itself),
            (v2(1, 0x31, &[0; 216]), Proxied::Itself),
        ];
        for (header, expected) in cases {
            for piece in [1, 2, 5, 13, 16, 17, 1000] {
                assert_eq!(
                    send(&header, piece).await.unwrap(),
                    expected,
                    "{:?} by {piece}",
                    header.escape_ascii().to_string()
                );
            }
        }
    }

    #[tokio::test]
    async fn others_are_refused() {
        let mut long = b"PROXY TCP4 10.0.0.1 10.0.0.2 4660 80".to_vec();
        long.extend([b' '; 100]);
        let mut version_3 = four(&[]);
        version_3[12] = 0x31;
        let mut huge = four(&[]);
        huge[14] = 0xff;
        for header in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 4660\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 4660 80\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 ::1 4660 80\r\n".to_vec(),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 4660 800000\r\n".to_vec(),
            b"PROXY \xff\xff\r\n".to_vec(),
            b"\x16\x03\x01\x02\x00".to_vec(),
            b"\r\n\r\nGET".to_vec(),
            long,
            version_3,
            huge,
            v2(1, 0x11, &[1, 2, 3]),
            v2(2, 0x11, &[0; 12]),
        ] {
            for piece in [1, 1000] {
                let result = send(&header, piece).await;
                assert!(
                    matches!(result, Err(HeaderError::Missing | HeaderError::Malformed)),
                    "{:?} by {piece}: {result:?}",
                    header.escape_ascii().to_string()
                );
            }
        }
    }
}
