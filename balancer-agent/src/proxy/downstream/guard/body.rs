//! A request's body: where it ends, and whether its chunks are sound.

use super::chars;
use super::{Bounds, Refusal};
use crate::proxy::chunk_limits::{EXTENSION, EXTENSIONS, SIZE_DIGITS, TRAILER_FIELDS, TRAILERS};

/// Fields that have no business in a trailer section (RFC 9110, 6.5.1): they tell of framing,
/// routing, authentication, or how the content is to be handled.
const FORBIDDEN: [&[u8]; 22] = [
    b"authorization",
    b"cache-control",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"keep-alive",
    b"max-forwards",
    b"proxy-authorization",
    b"proxy-connection",
    b"range",
    b"set-cookie",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"via",
];

/// Longest of [`FORBIDDEN`].
const LONGEST: usize = 19;

/// How the rest of the present body is delimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framed {
    /// There is none.
    #[default]
    None,
    /// So many bytes.
    Length(u64),
    /// By chunks.
    Chunked(Chunked),
}

impl Framed {
    /// Looks at further bytes; how many of them belong to the body.
    pub fn advance(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<usize, Refusal> {
        match self {
            Self::None => Ok(0),
            Self::Length(left) => {
                let n = usize::try_from(*left).map_or(bytes.len(), |l| l.min(bytes.len()));
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::None;
                }
                Ok(n)
            }
            Self::Chunked(chunked) => {
                let (n, end) = chunked.advance(bytes, bounds)?;
                if end {
                    *self = Self::None;
                }
                Ok(n)
            }
        }
    }
}

/// What comes next in a chunked body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// First digit of a size.
    #[default]
    Size,
    /// Further digits, or what ends them.
    Digits,
    /// Whitespace before an extension.
    Space,
    /// An extension.
    Extension,
    /// LF after a size.
    SizeEnd,
    /// Data of a chunk.
    Data,
    /// CR after data.
    DataCr,
    /// LF after data.
    DataLf,
    /// Begin of a trailer field, or the end.
    Trailer,
    /// A trailer field's name.
    Name,
    /// A trailer field's value.
    Value,
    /// LF after a trailer field.
    ValueEnd,
    /// Last LF.
    End,
}

/// A chunked body (RFC 9112, 7.1), byte by byte but for the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunked {
    at: At,
    /// Size of the present chunk, then what is left of it.
    size: u64,
    /// Digits of the size; bytes of the extension.
    count: u16,
    extensions: u32,
    data: u64,
    fields: usize,
    trailer_bytes: usize,
    name: [u8; LONGEST],
    name_length: usize,
}

impl Chunked {
    fn advance(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<(usize, bool), Refusal> {
        const SIZE: Refusal = Refusal::malformed("a chunk's size is malformed");
        let mut i = 0;
        while let Some(&b) = bytes.get(i) {
            i += 1;
            self.at = match self.at {
                At::Size | At::Digits => match (char::from(b).to_digit(16), b) {
                    (Some(digit), _) => {
                        self.count += 1;
                        if usize::from(self.count) > SIZE_DIGITS {
                            return Err(Refusal::malformed("a chunk's size is too large"));
                        }
                        self.size = self.size << 4 | u64::from(digit);
                        At::Digits
                    }
                    _ if self.at == At::Size => return Err(SIZE),
                    (None, b'\r') => At::SizeEnd,
                    (None, b';') => self.extension()?,
                    (None, b' ' | b'\t') => {
                        self.extension()?;
                        At::Space
                    }
                    _ => return Err(SIZE),
                },
                At::Space => match b {
                    b' ' | b'\t' => {
                        self.extension()?;
                        At::Space
                    }
                    b';' => self.extension()?,
                    _ => return Err(SIZE),
                },
                At::Extension => match b {
                    b'\r' => At::SizeEnd,
                    b if chars::value_byte(b) => self.extension()?,
                    _ => {
                        return Err(Refusal::malformed(
                            "a chunk's extension contains a control character",
                        ));
                    }
                },
                At::SizeEnd if b == b'\n' => {
                    self.count = 0;
                    self.data = self.data.saturating_add(self.size);
                    if self.data > bounds.body_bytes {
                        return Err(Refusal::BODY);
                    }
                    match self.size {
                        0 => At::Trailer,
                        _ => At::Data,
                    }
                }
                At::Data => {
                    // The byte at hand is of the data too.
                    let here = (bytes.len() - i + 1) as u64;
                    let n = self.size.min(here);
                    self.size -= n;
                    // At most what is left of the slice.
                    i += n as usize - 1;
                    match self.size {
                        0 => At::DataCr,
                        _ => At::Data,
                    }
                }
                At::DataCr if b == b'\r' => At::DataLf,
                At::DataLf if b == b'\n' => At::Size,
                At::DataCr | At::DataLf => {
                    return Err(Refusal::malformed("a chunk is longer than its size"));
                }
                At::Trailer | At::Name | At::Value | At::ValueEnd | At::End => {
                    self.trailer_bytes += 1;
                    if self.trailer_bytes > TRAILERS.min(bounds.head_bytes) {
                        return Err(Refusal::large(431, "the trailer section is too large"));
                    }
                    match self.trailer(b, bounds)? {
                        Some(at) => at,
                        None => return Ok((i, true)),
                    }
                }
                At::SizeEnd => return Err(Refusal::malformed("CR without LF")),
            };
        }
        Ok((i, false))
    }

    fn extension(&mut self) -> Result<At, Refusal> {
        if self.at == At::Digits {
            self.count = 0;
        }
        self.count += 1;
        self.extensions += 1;
        match usize::from(self.count) > EXTENSION || self.extensions as usize > EXTENSIONS {
            true => Err(Refusal::malformed("a chunk's extensions are too long")),
            false => Ok(At::Extension),
        }
    }

    /// `None` at the end of the body.
    fn trailer(&mut self, b: u8, bounds: &Bounds) -> Result<Option<At>, Refusal> {
        Ok(Some(match self.at {
            At::Trailer if b == b'\r' => At::End,
            At::Trailer => {
                self.fields += 1;
                if self.fields > bounds.headers.min(TRAILER_FIELDS) {
                    return Err(Refusal::large(
                        431,
                        "the trailer section has too many fields",
                    ));
                }
                self.name_length = 0;
                self.name_byte(b)?
            }
            At::Name if b == b':' => {
                let name = self.name.get(..self.name_length).unwrap_or_default();
                if FORBIDDEN.contains(&name) {
                    return Err(Refusal::malformed(
                        "a field of the trailer section belongs into the head",
                    ));
                }
                At::Value
            }
            At::Name => self.name_byte(b)?,
            At::Value if b == b'\r' => At::ValueEnd,
            At::Value if chars::value_byte(b) => At::Value,
            At::Value => {
                return Err(Refusal::malformed(
                    "a trailer field's value contains a control character",
                ));
            }
            At::ValueEnd if b == b'\n' => At::Trailer,
            At::End if b == b'\n' => return Ok(None),
            _ => return Err(Refusal::malformed("CR without LF")),
        }))
    }

    fn name_byte(&mut self, b: u8) -> Result<At, Refusal> {
        if !chars::token_byte(b) {
            return Err(Refusal::malformed("a trailer field's name is not a token"));
        }
        if let Some(place) = self.name.get_mut(self.name_length) {
            *place = b.to_ascii_lowercase();
        }
        self.name_length += 1;
        Ok(At::Name)
    }
}

#[test]
fn forbidden_names_fit() {
    assert!(FORBIDDEN.iter().all(|name| name.len() <= LONGEST));
    assert!(FORBIDDEN.iter().all(|n| **n == *n.to_ascii_lowercase()));
}
