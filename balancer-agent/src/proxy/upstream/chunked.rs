//! The chunked coding (RFC 9112, 7.1), read strictly and written plainly.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::head::{Malformed, is_forbidden_trailer};
use crate::proxy::chunk_limits::{EXTENSION, SIZE_DIGITS, TRAILER_FIELDS, TRAILERS};

/// Most bytes of a chunk's head, extensions, line end and all.
const LINE: usize = SIZE_DIGITS + EXTENSION + 2;

/// Reads chunks.
#[derive(Default)]
pub struct Chunks {
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Head,
    Data(u64),
    /// The line end after a chunk's data.
    Rim,
    Trailers,
    Done,
}

/// What comes next.
pub enum Piece {
    /// Some of a chunk's data.
    Data(Bytes),
    /// The end, with trailers where there were some.
    End(Option<Box<HeaderMap>>),
    /// Not there yet.
    More,
}

impl Chunks {
    /// Takes the end, when a chunk has just ended and the buffer has nothing else.
    pub fn take_end(&mut self, buffer: &mut BytesMut) -> bool {
        let ended = matches!(self.state, State::Rim) && buffer[..] == *b"\r\n0\r\n\r\n";
        if ended {
            buffer.clear();
            self.state = State::Done;
        }
        ended
    }

    /// Takes the next piece off the front of `buffer`.
    ///
    /// # Errors
    /// [`Malformed::Chunk`], [`Malformed::Trailers`]
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(end) = memchr::memchr(b'\n', buffer) else {
                        return match buffer.len() >= LINE {
                            true => Err(Malformed::Chunk),
                            false => Ok(Piece::More),
                        };
                    };
                    let size = size(&buffer[..=end])?;
                    buffer.advance(end + 1);
                    self.state = match size {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(rest) => {
                    if buffer.is_empty() {
                        return Ok(Piece::More);
                    }
                    let data = match buffer.len() as u64 <= *rest {
                        true => buffer.split(),
                        false => buffer.split_to(*rest as usize),
                    };
                    *rest -= data.len() as u64;
                    if *rest == 0 {
                        self.state = State::Rim;
                    }
                    return Ok(Piece::Data(data.freeze()));
                }
                State::Rim => match buffer.get(..2) {
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        self.state = State::Head;
                    }
                    Some(_) => return Err(Malformed::Chunk),
                    None if matches!(buffer.first(), None | Some(b'\r')) => {
                        return Ok(Piece::More);
                    }
                    None => return Err(Malformed::Chunk),
                },
                State::Trailers => {
                    if buffer.starts_with(b"\r\n") {
                        buffer.advance(2);
                        self.state = State::Done;
                        return Ok(Piece::End(None));
                    }
                    let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
                    let (length, trailers) = match httparse::parse_headers(buffer, &mut fields) {
                        Ok(httparse::Status::Complete((length, fields))) => (length, map(fields)?),
                        Ok(httparse::Status::Partial) if buffer.len() <= TRAILERS => {
                            return Ok(Piece::More);
                        }
                        _ => return Err(Malformed::Trailers),
                    };
                    buffer.advance(length);
                    self.state = State::Done;
                    let trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
                    return Ok(Piece::End(trailers));
                }
                State::Done => return Ok(Piece::End(None)),
            }
        }
    }
}

/// The size that a chunk's first line tells: hexadecimal digits, then nothing or an
/// extension, then CRLF.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let line = line.strip_suffix(b"\r\n").ok_or(Malformed::Chunk)?;
    let digits = line
        .iter()
        .position(|b| !b.is_ascii_hexdigit())
        .unwrap_or(line.len());
    if digits == 0
        || digits > SIZE_DIGITS
        || line.len() - digits > EXTENSION
        || line.contains(&b'\r')
    {
        return Err(Malformed::Chunk);
    }
    let extension = line[digits..].trim_ascii_start();
    if !extension.is_empty() && extension[0] != b';' {
        return Err(Malformed::Chunk);
    }
    Ok(line[..digits].iter().fold(0, |size, digit| {
        size << 4 | u64::from((*digit as char).to_digit(16).unwrap_or_default())
    }))
}

fn map(fields: &[httparse::Header<'_>]) -> Result<HeaderMap, Malformed> {
    let mut trailers = HeaderMap::new();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Malformed::Trailers);
        };
        // What a trailer must not say is left out, as RFC 9110, 6.5.1 lets us.
        if !is_forbidden_trailer(&name) {
            trailers.append(name, value);
        }
    }
    Ok(trailers)
}

/// Writes one chunk; `data` is not empty.
pub fn write(data: &[u8], out: &mut BytesMut) {
    let mut head = [0; 18];
    let mut at = 16;
    head[16..].copy_from_slice(b"\r\n");
    let mut size = data.len();
    while size > 0 {
        at -= 1;
        head[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
    }
    out.reserve(data.len() + 20);
    out.extend_from_slice(&head[at..]);
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Writes the last chunk and trailers.
pub fn write_end(trailers: Option<&HeaderMap>, out: &mut BytesMut) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if !is_forbidden_trailer(name) {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All data, trailers and what is left; fed in pieces of `step` bytes.
    fn read(text: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize, usize)>, Malformed> {
        let mut chunks = Chunks::default();
        let mut buffer = BytesMut::new();
        let mut data = Vec::new();
        let mut fed = 0;
        loop {
            match chunks.next(&mut buffer)? {
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::End(trailers) => {
                    let trailers = trailers.map_or(0, |t| t.len());
                    return Ok(Some((data, trailers, buffer.len() + text.len() - fed)));
                }
                Piece::More if fed == text.len() => return Ok(None),
                Piece::More => {
                    let next = text.len().min(fed + step);
                    buffer.extend_from_slice(&text[fed..next]);
                    fed = next;
                }
            }
        }
    }

    #[test]
    fn good_ones_in_any_pieces() {
        let text = b"5\r\nhello\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nA: b\r\nContent-Length: 3\r\n\r\nnext";
        for step in [1, 2, 3, 7, 1000] {
            let (data, trailers, left) = read(text, step).unwrap().unwrap();
            assert_eq!(data, b"hello0123456789");
            assert_eq!(trailers, 1, "the length is left out");
            assert_eq!(left, 4);
        }
        assert_eq!(read(b"0\r\n\r\n", 1).unwrap(), Some((vec![], 0, 0)));
    }

    #[test]
    fn bad_ones() {
        for text in [
            &b"\r\n"[..],
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5 x\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"-1\r\n",
            b"5\r;\r\nhello\r\n",
            b"10000000000000000\r\n",
            b"1000000000000000\r\n",
            b"g\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
        ] {
            for step in [1, 1000] {
                assert!(read(text, step).is_err(), "{:?}", text.escape_ascii());
            }
        }
        let extended = |length| format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(length - 1));
        for step in [1, 100, 1000] {
            assert!(read(extended(EXTENSION).as_bytes(), step).is_ok());
            assert!(read(extended(EXTENSION + 1).as_bytes(), step).is_err());
        }
        // Without an end it is not waited for.
        let long = [b"5;".as_slice(), &[b'x'; LINE]].concat();
        assert!(read(&long, 100).is_err());
    }

    #[test]
    fn written_ones_can_be_read() {
        let mut out = BytesMut::new();
        write(b"hello", &mut out);
        write(&[7; 70_000], &mut out);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        trailers.insert("content-length", HeaderValue::from_static("1"));
        write_end(Some(&trailers), &mut out);
        let (data, trailers, left) = read(&out, 999).unwrap().unwrap();
        assert_eq!((data.len(), trailers, left), (70_005, 1, 0));
    }
}
