//! Bytes in and out: bounded reads that borrow, and appending writes.

/// Why a message cannot be read. The sender is at fault, and sending it again is no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends inside a value.
    #[error("the message ends early")]
    Short,
    /// Another version of the protocol.
    #[error("format {0} is not known here: expected {expected}", expected = super::codec::FORMAT)]
    Format(u8),
    /// A kind that does not exist.
    #[error("unknown {0}")]
    Tag(&'static str),
    /// A value beyond its bound.
    #[error("not allowed: {0}")]
    Bound(&'static str),
}

/// Reads values from the front of a slice.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// All that has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Bound("a flag other than 0 and 1")),
        }
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Bound("a number of more than 64 bits"))
    }

    pub fn varint_to(&mut self, most: u64) -> Result<u64, DecodeError> {
        match self.varint()? {
            value if value <= most => Ok(value),
            _ => Err(DecodeError::Bound("a number or length beyond its limit")),
        }
    }

    pub fn bucket(&mut self) -> Result<u16, DecodeError> {
        self.varint_to(16_383).map(|bucket| bucket as u16)
    }

    /// Bytes with a length of one byte.
    pub fn short(&mut self, least: usize, most: usize) -> Result<&'a [u8], DecodeError> {
        let length = usize::from(self.byte()?);
        if !(least..=most).contains(&length) {
            return Err(DecodeError::Bound("the length of an id or a name"));
        }
        self.take(length)
    }

    pub fn text(&mut self, most: usize) -> Result<&'a str, DecodeError> {
        let bytes = self.short(0, most)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Bound("a name that is not UTF-8"))
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes with a length of one byte. Callers check the length before; what is too long is
/// cut, and refused by the reader rather than misread.
pub(super) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(255)];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}
