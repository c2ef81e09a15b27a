//! What comes from the container: read as it comes, in bounds, and believed only as far as
//! every length in it agrees with every other.
//!
//! ```text
//! 'A' 'B' | length | 3 | length, data, 0                        a part of the body
//!                  | 4 | status, message, count, (name, value)* the response's head
//!                  | 5 | reuse                                  its end
//!                  | 6 | length                                 more of the request's body
//!                  | 9 |                                        CPONG
//! ```
//!
//! A part of the body is handed on as it comes; of all else a packet has to be complete. An
//! empty part asks that what came before goes on at once, as it does anyway.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::status::StatusCode;

use super::codes::{self, from_container};
use super::encode::HEAD;
use crate::proxy::upstream::head::FIELDS;

/// How a packet from the container begins.
pub const MAGIC: [u8; 2] = [b'A', b'B'];
/// The answer to CPING.
pub const CPONG: [u8; 5] = [MAGIC[0], MAGIC[1], 0, 1, from_container::CPONG];
/// Bytes of a body's packet before its data: head, code, length.
const DATA_HEAD: usize = HEAD + 3;
/// The length of a string that is not there.
const NULL: u16 = 0xFFFF;

/// What is wrong with what came. The container's fault; the connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not AJP13 at all.
    #[error("a packet does not begin with \"AB\"")]
    Magic,
    /// Larger than agreed.
    #[error("a packet of {0} bytes is larger than `packet_size`")]
    TooLarge(usize),
    /// Nothing in it.
    #[error("an empty packet")]
    Empty,
    /// Of a kind that does not exist.
    #[error("a packet of the unknown kind {0}")]
    Kind(u8),
    /// Lengths that contradict each other.
    #[error("a packet of kind {0} with lengths that do not fit")]
    Length(u8),
    /// A string that does not end where it should.
    #[error("a string without its end")]
    Unended,
    /// Not a status of a final response.
    #[error("{0} is no status of a response")]
    Status(u16),
    /// A header's name or value.
    #[error("a header that is none")]
    Header,
    /// More than we read.
    #[error("a response with more than {FIELDS} headers")]
    TooManyHeaders,
    /// Something that can't come now.
    #[error("{0} out of turn")]
    Order(&'static str),
    /// More body than its length said.
    #[error("more of a body than its length said")]
    TooMuch,
    /// The end before that.
    #[error("less of a body than its length said")]
    TooLittle,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A response's head.
    Head(Head),
    /// A part of its body; not empty.
    Data(Bytes),
    /// Its end, and whether the container keeps the connection.
    End {
        /// It does.
        reuse: bool,
    },
    /// So many bytes of the request's body are wanted.
    Wanted(u16),
    /// The answer to CPING.
    Pong,
}

/// A response's head, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Status of a final response.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
}

/// Reads packets.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Bytes of a packet at most.
    most: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between packets, or within one that is not complete.
    Packet,
    /// Within a part of the body; so many bytes are left of it, at least 1.
    Data(usize),
    /// At the zero that ends it.
    Zero,
}

impl Decoder {
    /// For packets of at most so many bytes.
    pub fn new(packet_size: usize) -> Self {
        Self {
            most: packet_size,
            state: State::Packet,
        }
    }

    /// Takes the next piece off the front of `buffer`; `None` when more has to come. A
    /// buffer of the size of a packet is always enough for one.
    ///
    /// # Errors
    /// [`Violation`]; after it nothing more may be read.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Piece>, Violation> {
        loop {
            match self.state {
                State::Packet => {}
                State::Data(_) if buffer.is_empty() => return Ok(None),
                State::Data(left) => {
                    let data = match buffer.len() <= left {
                        true => buffer.split(),
                        false => buffer.split_to(left),
                    };
                    self.state = match left - data.len() {
                        0 => State::Zero,
                        left => State::Data(left),
                    };
                    return Ok(Some(Piece::Data(data.freeze())));
                }
                State::Zero => {
                    match buffer.first() {
                        None => return Ok(None),
                        Some(0) => buffer.advance(1),
                        Some(_) => return Err(Violation::Unended),
                    }
                    self.state = State::Packet;
                }
            }
            // What is wrong is said before more is waited for.
            if buffer.iter().zip(MAGIC).any(|(came, known)| *came != known) {
                return Err(Violation::Magic);
            }
            let Some(&[high, low]) = buffer.get(2..HEAD).and_then(|b| b.first_chunk()) else {
                return Ok(None);
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length == 0 {
                return Err(Violation::Empty);
            }
            if HEAD + length > self.most {
                return Err(Violation::TooLarge(HEAD + length));
            }
            let Some(&kind) = buffer.get(HEAD) else {
                return Ok(None);
            };
            let fixed = match kind {
                from_container::SEND_BODY_CHUNK => {
                    if self.data(length, buffer)? {
                        continue;
                    }
                    return Ok(None);
                }
                from_container::SEND_HEADERS => None,
                from_container::END_RESPONSE => Some(2),
                from_container::GET_BODY_CHUNK => Some(3),
                from_container::CPONG => Some(1),
                kind => return Err(Violation::Kind(kind)),
            };
            if fixed.is_some_and(|fixed| fixed != length) {
                return Err(Violation::Length(kind));
            }
            if buffer.len() < HEAD + length {
                return Ok(None);
            }
            let piece = match (kind, &buffer[HEAD + 1..HEAD + length]) {
                (from_container::SEND_HEADERS, _) => {
                    let packet = buffer.split_to(HEAD + length).freeze();
                    return Ok(Some(Piece::Head(head(&packet)?)));
                }
                (from_container::END_RESPONSE, [reuse]) => Piece::End { reuse: *reuse == 1 },
                (from_container::GET_BODY_CHUNK, [high, low]) => {
                    Piece::Wanted(u16::from_be_bytes([*high, *low]))
                }
                (from_container::CPONG, []) => Piece::Pong,
                // The lengths have been looked at.
                (kind, _) => return Err(Violation::Length(kind)),
            };
            buffer.advance(HEAD + length);
            return Ok(Some(piece));
        }
    }

    /// Takes the response's end off the front of `buffer`, if it is there already: what it
    /// says of the connection.
    pub fn take_end(&mut self, buffer: &mut BytesMut) -> Option<bool> {
        const END: [u8; 5] = [MAGIC[0], MAGIC[1], 0, 2, from_container::END_RESPONSE];
        let zero = match (self.state, buffer.first()) {
            (State::Packet, _) => 0,
            (State::Zero, Some(0)) => 1,
            (State::Zero | State::Data(_), _) => return None,
        };
        let [end @ .., reuse]: [u8; 6] = *buffer.get(zero..)?.first_chunk()?;
        if end != END {
            return None;
        }
        buffer.advance(zero + END.len() + 1);
        self.state = State::Packet;
        Some(reuse == 1)
    }

    /// Begins a part of the body; `false` when more has to come.
    fn data(&mut self, length: usize, buffer: &mut BytesMut) -> Result<bool, Violation> {
        let wrong = Violation::Length(from_container::SEND_BODY_CHUNK);
        // Code, length, zero.
        let data = length.checked_sub(4).ok_or(wrong)?;
        let Some(&[high, low]) = buffer
            .get(HEAD + 1..DATA_HEAD)
            .and_then(|b| b.first_chunk())
        else {
            return Ok(false);
        };
        if usize::from(u16::from_be_bytes([high, low])) != data {
            return Err(wrong);
        }
        buffer.advance(DATA_HEAD);
        self.state = match data {
            0 => State::Zero,
            data => State::Data(data),
        };
        Ok(true)
    }
}

/// Reads SEND_HEADERS; the packet is complete.
fn head(packet: &Bytes) -> Result<Head, Violation> {
    let mut rest = Rest {
        packet,
        at: HEAD + 1,
    };
    let status = rest.number()?;
    let status = match status {
        // Interim responses do not exist here.
        200..=999 => StatusCode::from_u16(status).map_err(|_| Violation::Status(status))?,
        _ => return Err(Violation::Status(status)),
    };
    // The message: nobody needs it.
    rest.string()?;
    let count = usize::from(rest.number()?);
    if count > FIELDS {
        return Err(Violation::TooManyHeaders);
    }
    let mut headers = HeaderMap::with_capacity(count);
    for _ in 0..count {
        let name = rest.name()?;
        let value = rest.string()?.ok_or(Violation::Header)?;
        let value = trimmed(packet, value);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Violation::Header)?;
        headers
            .try_append(name, value)
            .map_err(|_| Violation::TooManyHeaders)?;
    }
    match rest.at == packet.len() {
        true => Ok(Head { status, headers }),
        false => Err(Violation::Length(from_container::SEND_HEADERS)),
    }
}

/// A value without the spaces around it, which mean nothing (RFC 9110, 5.5).
fn trimmed(packet: &Bytes, (from, to): (usize, usize)) -> Bytes {
    let value = &packet[from..to];
    let from = from + (value.len() - value.trim_ascii_start().len());
    let to = from + value.trim_ascii().len();
    packet.slice(from..to)
}

/// What is left of a packet.
struct Rest<'a> {
    packet: &'a [u8],
    at: usize,
}

impl Rest<'_> {
    fn number(&mut self) -> Result<u16, Violation> {
        let rest = self.packet.get(self.at..).and_then(|b| b.first_chunk());
        let bytes = rest.ok_or(Violation::Length(from_container::SEND_HEADERS))?;
        self.at += bytes.len();
        Ok(u16::from_be_bytes(*bytes))
    }

    /// From where to where it goes.
    fn string(&mut self) -> Result<Option<(usize, usize)>, Violation> {
        match self.number()? {
            NULL => Ok(None),
            length => self.rest_of_string(length).map(Some),
        }
    }

    fn rest_of_string(&mut self, length: u16) -> Result<(usize, usize), Violation> {
        let from = self.at;
        let to = from + usize::from(length);
        match self.packet.get(to) {
            None => Err(Violation::Length(from_container::SEND_HEADERS)),
            Some(0) => {
                self.at = to + 1;
                Ok((from, to))
            }
            Some(_) => Err(Violation::Unended),
        }
    }

    fn name(&mut self) -> Result<HeaderName, Violation> {
        match self.number()? {
            NULL => Err(Violation::Header),
            code if code.to_be_bytes()[0] == codes::CODED => {
                codes::response_header(code).ok_or(Violation::Header)
            }
            length => {
                let (from, to) = self.rest_of_string(length)?;
                HeaderName::from_bytes(&self.packet[from..to]).map_err(|_| Violation::Header)
            }
        }
    }
}
