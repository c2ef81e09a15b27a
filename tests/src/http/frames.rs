//! HTTP/2 by the frame (RFC 9113), for what no proper client does: floods.

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::raw;
use crate::netns::Netns;

/// Types of frames.
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// END_STREAM.
pub const END_STREAM: u8 = 1;
/// END_HEADERS.
pub const END_HEADERS: u8 = 4;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// Of that type.
    pub flags: u8,
    /// Stream.
    pub stream: u32,
    /// Without the head.
    pub payload: Vec<u8>,
}

/// A connection that has sent its preface and empty settings.
pub struct Framed {
    tcp: std::net::TcpStream,
    buffer: Vec<u8>,
}

impl Framed {
    /// Connects with prior knowledge.
    #[track_caller]
    pub fn connect(ns: &Netns, to: SocketAddr) -> Self {
        let tcp = raw::tcp(ns, None, to).unwrap_or_else(|error| panic!("connect: {error}"));
        let mut this = Self {
            tcp,
            buffer: Vec::new(),
        };
        this.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        this.send(kind::SETTINGS, 0, 0, &[]);
        this
    }

    /// Sends a frame; whether the connection still takes it.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.write(&frame)
    }

    /// Sends bytes as they are; whether the connection still takes them.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        use std::io::Write as _;
        self.tcp.write_all(bytes).is_ok()
    }

    /// The next frame within this time; nothing at the end of the connection or the time.
    pub fn next(&mut self, within: Duration) -> Option<Frame> {
        let end = Instant::now() + within;
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.tcp.set_read_timeout(Some(left)).expect("a timeout");
            let mut bytes = [0; 16 * 1024];
            match self.tcp.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.buffer.extend_from_slice(&bytes[..n]),
            }
        }
    }

    /// Reads until a GOAWAY comes or the connection ends; the error code of the GOAWAY.
    /// Fails when neither happens in time.
    ///
    /// # Errors
    /// When the connection is still open at the end.
    pub fn ended(&mut self, within: Duration) -> Result<Option<u32>, String> {
        let end = Instant::now() + within;
        let mut code = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return match code {
                    Some(_) => Ok(code),
                    None => Err("the connection is still open".into()),
                };
            }
            match self.next(left) {
                Some(frame) if frame.kind == kind::GOAWAY => {
                    let bytes = frame.payload.get(4..8);
                    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
                    code = bytes.map(u32::from_be_bytes);
                    // GOAWAY(NO_ERROR) announces; others end.
                    if code != Some(0) {
                        return Ok(code);
                    }
                }
                Some(_) => {}
                None if end > Instant::now() => return Ok(code),
                None => {}
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.buffer.get(..9)?.try_into().ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
            payload,
        })
    }
}

/// A header block (HPACK without the dynamic table): `GET` of a path.
pub fn get(path: &str) -> Vec<u8> {
    // Indexed: :method GET, :scheme http.
    let mut block = vec![0x82, 0x86];
    // Literal without indexing, names by index: :path (4), :authority (1).
    for (index, value) in [(4u8, path), (1, "a.example")] {
        block.push(index);
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// A literal field without indexing; lengths below 127.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
    }
    block
}
