//! Frames, and what the messages in them are made of. The messages themselves: `record`.
//!
//! A frame is a header and records until its end: a node appends records to the open
//! frame of a peer, so that many writes travel in one frame and encoding a record is one
//! pass over it without an allocation. Decoding borrows from the frame. The form is
//! written by hand because a batch must be appendable and readable in place, which a
//! serialized list is not.
//!
//! Header: format (1 byte), incarnation of the sender (8) and of the receiver (8), Lamport
//! clock of the sender (8). The incarnations fence off what was meant for an earlier life. Numbers
//! of fixed length are little-endian, others are LEB128. Every length is bounded; what
//! breaks a bound is an error, and the frame is dropped from there on.

pub use super::record::Record;
use super::types::{MAX_DATA, MAX_ID, MAX_ROUTE, MAX_TTL, MIN_ID, Version};
use super::wire::{DecodeError, Reader, put_short, put_varint};

/// The format that this code speaks.
pub const FORMAT: u8 = 1;
/// Length of the header of a frame.
pub const HEADER: usize = 25;
/// Longest frame that is taken from a peer: one session with the most data, and change.
pub const MAX_FRAME: usize = (1 << 20) + MAX_DATA + 4096;
/// Most items in one list of a record.
pub const MAX_LIST: usize = 4096;
/// Greatest stamp that is taken from a peer, so that the clock cannot be made to overflow.
pub const MAX_STAMP: u64 = 1 << 62;

/// Start of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Incarnation of the sender.
    pub incarnation: u64,
    /// Incarnation of the receiver.
    pub to: u64,
    /// Lamport clock of the sender when the frame was closed.
    pub lamport: u64,
}

impl Header {
    /// Writes the header over the first [`HEADER`] bytes of a frame.
    pub fn write(self, frame: &mut [u8]) {
        frame[0] = FORMAT;
        frame[1..9].copy_from_slice(&self.incarnation.to_le_bytes());
        frame[9..17].copy_from_slice(&self.to.to_le_bytes());
        frame[17..HEADER].copy_from_slice(&self.lamport.to_le_bytes());
    }
}

/// A session or a tombstone on its way between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryRef<'a> {
    /// Key of the group.
    pub group: u32,
    /// The session's id.
    pub id: &'a [u8],
    /// Version of the content.
    pub version: Version,
    /// Number of the last access that was told to others.
    pub seq: u32,
    /// Milliseconds since that access; of a tombstone, since the deletion.
    pub idle: u64,
    /// Milliseconds since the creation; 0 of a tombstone.
    pub age: u64,
    /// Time to live in milliseconds; 0 of a tombstone.
    pub ttl: u64,
    /// The backend.
    pub route: &'a str,
    /// The application's data.
    pub data: Option<&'a [u8]>,
}

/// A forwarded operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpRef<'a> {
    /// [`super::Op::Get`]
    Get(bool),
    /// [`super::Op::Put`]
    Put {
        /// The backend.
        route: &'a str,
        /// Time to live in milliseconds.
        ttl: u64,
        /// The application's data.
        data: Option<&'a [u8]>,
        /// [`super::Expect`]: nothing, absence, or this version.
        expect: Option<Option<Version>>,
    },
    /// [`super::Op::Bind`]
    Bind(&'a str),
    /// [`super::Op::Touch`]
    Touch,
    /// [`super::Op::Delete`]
    Delete,
}

/// How a forwarded operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResultRef<'a> {
    /// The session.
    Found(EntryRef<'a>),
    /// The write is done: version, copies, degraded.
    Done(Version, u8, bool),
    /// The access is counted.
    Touched,
    /// No such session.
    NotFound,
    /// The condition was not met.
    Conflict(Option<Version>),
    /// The node has not caught up.
    NotReady,
    /// The node could not ask all that it had to.
    Unavailable,
    /// The node has too much to do, or the request breaks its limits.
    Busy,
    /// The node does not hold the bucket.
    NotMine,
    /// The session has been written since the operation was issued.
    Stale,
    /// The operation came before and is at work.
    Working,
}

/// What a node says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// What it holds may be used by others.
    pub admitted: bool,
    /// It serves.
    pub ready: bool,
    /// It has compared its buckets with every member and holds no strays.
    pub clean: bool,
}

pub(super) fn put_version(out: &mut Vec<u8>, version: Version) {
    out.push(u8::from(version.deleted));
    put_varint(out, version.epoch);
    put_varint(out, version.stamp);
    out.extend_from_slice(&version.writer.to_le_bytes());
}

pub(super) fn version(reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let deleted = reader.flag()?;
    let epoch = reader.varint_to(MAX_STAMP)?;
    let stamp = reader.varint_to(MAX_STAMP)?;
    let writer = reader.u64()?;
    if epoch > stamp {
        return Err(DecodeError::Bound("a stamp before its epoch"));
    }
    Ok(Version {
        epoch,
        deleted,
        stamp,
        writer,
    })
}

impl<'a> EntryRef<'a> {
    /// Appends the entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.group.to_le_bytes());
        put_short(out, self.id);
        put_version(out, self.version);
        put_varint(out, u64::from(self.seq));
        put_varint(out, self.idle);
        if self.version.deleted {
            return;
        }
        put_varint(out, self.age);
        put_varint(out, self.ttl);
        put_short(out, self.route.as_bytes());
        put_data(out, self.data);
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let group = reader.u32()?;
        let id = reader.short(MIN_ID, MAX_ID)?;
        let version = version(reader)?;
        let seq = reader.varint_to(u64::from(u32::MAX))? as u32;
        let idle = reader.varint()?;
        let mut entry = Self {
            group,
            id,
            version,
            seq,
            idle,
            age: 0,
            ttl: 0,
            route: "",
            data: None,
        };
        if !version.deleted {
            entry.age = reader.varint()?;
            entry.ttl = reader.varint_to(MAX_TTL)?;
            entry.route = reader.text(MAX_ROUTE)?;
            entry.data = data(reader)?;
        }
        Ok(entry)
    }
}

fn put_data(out: &mut Vec<u8>, data: Option<&[u8]>) {
    match data {
        None => put_varint(out, 0),
        Some(data) => {
            put_varint(out, data.len() as u64 + 1);
            out.extend_from_slice(data);
        }
    }
}

fn data<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, DecodeError> {
    match reader.varint_to(MAX_DATA as u64 + 1)? {
        0 => Ok(None),
        length => Ok(Some(reader.take(length as usize - 1)?)),
    }
}

impl<'a> OpRef<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Get(touch) => out.extend_from_slice(&[0, u8::from(touch)]),
            Self::Put {
                route,
                ttl,
                data,
                expect,
            } => {
                out.push(1);
                put_short(out, route.as_bytes());
                put_varint(out, ttl);
                put_data(out, data);
                match expect {
                    None => out.push(0),
                    Some(None) => out.push(1),
                    Some(Some(version)) => {
                        out.push(2);
                        put_version(out, version);
                    }
                }
            }
            Self::Bind(route) => {
                out.push(2);
                put_short(out, route.as_bytes());
            }
            Self::Touch => out.push(3),
            Self::Delete => out.push(4),
        }
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match reader.byte()? {
            0 => Self::Get(reader.flag()?),
            1 => Self::Put {
                route: reader.text(MAX_ROUTE)?,
                ttl: reader.varint_to(MAX_TTL)?,
                data: data(reader)?,
                expect: match reader.byte()? {
                    0 => None,
                    1 => Some(None),
                    2 => Some(Some(version(reader)?)),
                    _ => return Err(DecodeError::Tag("condition of a put")),
                },
            },
            2 => Self::Bind(reader.text(MAX_ROUTE)?),
            3 => Self::Touch,
            4 => Self::Delete,
            _ => return Err(DecodeError::Tag("operation")),
        })
    }
}

impl<'a> ResultRef<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Found(entry) => {
                out.push(0);
                entry.encode(out);
            }
            Self::Done(version, copies, degraded) => {
                out.push(1);
                put_version(out, version);
                out.extend_from_slice(&[copies, u8::from(degraded)]);
            }
            Self::Touched => out.push(2),
            Self::NotFound => out.push(3),
            Self::Conflict(None) => out.push(4),
            Self::Conflict(Some(version)) => {
                out.push(5);
                put_version(out, version);
            }
            Self::NotReady => out.push(6),
            Self::Unavailable => out.push(7),
            Self::Busy => out.push(8),
            Self::NotMine => out.push(9),
            Self::Stale => out.push(10),
            Self::Working => out.push(11),
        }
    }

    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match reader.byte()? {
            0 => {
                let entry = EntryRef::decode(reader)?;
                if entry.version.deleted {
                    return Err(DecodeError::Bound("a tombstone where a session is due"));
                }
                Self::Found(entry)
            }
            1 => Self::Done(version(reader)?, reader.byte()?, reader.flag()?),
            2 => Self::Touched,
            3 => Self::NotFound,
            4 => Self::Conflict(None),
            5 => Self::Conflict(Some(version(reader)?)),
            6 => Self::NotReady,
            7 => Self::Unavailable,
            8 => Self::Busy,
            9 => Self::NotMine,
            10 => Self::Stale,
            11 => Self::Working,
            _ => return Err(DecodeError::Tag("result")),
        })
    }
}

/// The records of a frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    reader: Reader<'a>,
}

impl<'a> Frame<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// The frame is too long or too short, or of another format.
    pub fn open(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_FRAME {
            return Err(DecodeError::Bound("a frame longer than allowed"));
        }
        let mut reader = Reader::new(bytes);
        if reader.byte()? != FORMAT {
            return Err(DecodeError::Format(bytes[0]));
        }
        let header = Header {
            incarnation: reader.u64()?,
            to: reader.u64()?,
            lamport: reader.u64()?,
        };
        if header.lamport > MAX_STAMP {
            return Err(DecodeError::Bound("a Lamport clock beyond its range"));
        }
        Ok(Self { header, reader })
    }
}

impl<'a> Iterator for Frame<'a> {
    type Item = Result<Record<'a>, DecodeError>;

    /// The next record; after an error, nothing.
    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.left() == 0 {
            return None;
        }
        let record = Record::decode(&mut self.reader);
        if record.is_err() {
            self.reader = Reader::new(&[]);
        }
        Some(record)
    }
}
