//! The messages between nodes, and their form on the wire.
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

use super::types::{MAX_DATA, MAX_ID, MAX_ROUTE, MAX_TTL, MIN_ID, NodeId, Version};
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

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// A copy of a write. `op` other than 0 asks for an acknowledgement.
    Write {
        /// The writer's number for it.
        op: u64,
        /// What was written.
        entry: EntryRef<'a>,
    },
    /// The receiver holds the write `op`.
    Ack {
        /// The writer's number for it.
        op: u64,
    },
    /// A session was accessed.
    Touch {
        /// Key of the group.
        group: u32,
        /// The session.
        id: &'a [u8],
        /// Epoch in which it was accessed.
        epoch: u64,
        /// Number of the access.
        seq: u32,
        /// Milliseconds since then.
        idle: u64,
    },
    /// Asks for the receiver's copy.
    Ask {
        /// The asker's number.
        req: u64,
        /// Key of the group.
        group: u32,
        /// The session.
        id: &'a [u8],
    },
    /// The copy, tombstones included.
    Answer {
        /// The asker's number.
        req: u64,
        /// Its copy.
        entry: Option<EntryRef<'a>>,
    },
    /// An operation for the receiver to do.
    Forward {
        /// The sender's number.
        req: u64,
        /// Key of the group.
        group: u32,
        /// Lamport clock at which the operation was issued.
        issued: u64,
        /// The session.
        id: &'a [u8],
        /// What to do.
        op: OpRef<'a>,
    },
    /// The end of a forwarded operation.
    Outcome {
        /// The sender's number.
        req: u64,
        /// How it ended.
        result: ResultRef<'a>,
    },
    /// State of a node.
    Status {
        /// Counts the reports of this life: an older one that comes late is not news.
        round: u64,
        /// Its view.
        view: u64,
        /// See [`Flags`].
        flags: Flags,
        /// Nodes that it has known, and the milliseconds since each was last seen.
        known: Vec<(NodeId, u64)>,
    },
    /// A node with sessions from an earlier life asks whether it may keep them.
    Join,
    /// The answer.
    JoinReply {
        /// Whether the answering node serves.
        ready: bool,
        /// Whether it has seen the asker within the longest allowed absence.
        known: bool,
        /// Members of the last view in which the answering node served; 0: never.
        weight: u32,
    },
    /// Digests of buckets, to be compared.
    Digests {
        /// View of the sender.
        view: u64,
        /// Key of the group.
        group: u32,
        /// The sender's number.
        nonce: u64,
        /// Bucket and digest.
        items: Vec<(u16, u64)>,
    },
    /// The result of the comparison.
    Differ {
        /// View of the answering node.
        view: u64,
        /// Number of the sender of the digests.
        nonce: u64,
        /// Whether what the answering node has may be used.
        admitted: bool,
        /// Count of view changes of the answering node.
        generation: u64,
        /// The buckets that differ; `true` where the answering node has nothing.
        items: Vec<(u16, bool)>,
    },
    /// Asks for what the sender lacks of a bucket.
    Pull {
        /// The sender's number.
        nonce: u64,
        /// Key of the group.
        group: u32,
        /// The bucket.
        bucket: u16,
        /// First hash of the range.
        from: u64,
        /// Last hash of the range.
        to: u64,
        /// What the sender has there: hash and fingerprint, sorted.
        items: Vec<(u64, u64)>,
    },
    /// A part of a bucket.
    Part {
        /// Number of the sender of the pull.
        nonce: u64,
        /// View of the answering node.
        view: u64,
        /// Count of view changes of the answering node.
        generation: u64,
        /// Digest of the whole bucket.
        digest: u64,
        /// Last hash that this part covers.
        to: u64,
        /// Copies that the asker lacks or has in another version.
        entries: Vec<EntryRef<'a>>,
        /// Hashes of which the answering node has no copy.
        wants: Vec<u64>,
    },
    /// The sender holds buckets that it should not, and offers them.
    Offer {
        /// Key of the group.
        group: u32,
        /// The buckets.
        buckets: Vec<u16>,
    },
    /// The sender wants a bucket and holds all that the receiver has of it.
    Confirm {
        /// Key of the group.
        group: u32,
        /// The bucket.
        bucket: u16,
        /// The receiver's count of view changes that this answers.
        generation: u64,
        /// The receiver's digest that this answers.
        digest: u64,
    },
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

fn put_version(out: &mut Vec<u8>, version: Version) {
    out.push(u8::from(version.deleted));
    put_varint(out, version.epoch);
    put_varint(out, version.stamp);
    out.extend_from_slice(&version.writer.to_le_bytes());
}

fn version(reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
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
    fn encode(&self, out: &mut Vec<u8>) {
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

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
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
    fn encode(&self, out: &mut Vec<u8>) {
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

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
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

fn put_list<T>(out: &mut Vec<u8>, items: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    put_varint(out, items.len() as u64);
    items.iter().for_each(|item| put(out, item));
}

/// A list whose items take at least `least` bytes each: the memory it takes is bounded by
/// what the sender really sent.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    least: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.varint_to(MAX_LIST as u64)? as usize;
    if reader.left() < count * least {
        return Err(DecodeError::Short);
    }
    (0..count).map(|_| item(reader)).collect()
}

impl<'a> Record<'a> {
    /// Appends the record to a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Write { op, entry } => {
                out.push(1);
                put_varint(out, *op);
                entry.encode(out);
            }
            Self::Ack { op } => {
                out.push(2);
                put_varint(out, *op);
            }
            Self::Touch {
                group,
                id,
                epoch,
                seq,
                idle,
            } => {
                out.push(3);
                out.extend_from_slice(&group.to_le_bytes());
                put_short(out, id);
                put_varint(out, *epoch);
                put_varint(out, u64::from(*seq));
                put_varint(out, *idle);
            }
            Self::Ask { req, group, id } => {
                out.push(4);
                put_varint(out, *req);
                out.extend_from_slice(&group.to_le_bytes());
                put_short(out, id);
            }
            Self::Answer { req, entry } => {
                out.push(5);
                put_varint(out, *req);
                out.push(u8::from(entry.is_some()));
                if let Some(entry) = entry {
                    entry.encode(out);
                }
            }
            Self::Forward {
                req,
                group,
                issued,
                id,
                op,
            } => {
                out.push(6);
                put_varint(out, *req);
                out.extend_from_slice(&group.to_le_bytes());
                put_varint(out, *issued);
                put_short(out, id);
                op.encode(out);
            }
            Self::Outcome { req, result } => {
                out.push(7);
                put_varint(out, *req);
                result.encode(out);
            }
            Self::Status {
                round,
                view,
                flags,
                known,
            } => {
                out.push(8);
                put_varint(out, *round);
                out.extend_from_slice(&view.to_le_bytes());
                out.push(
                    u8::from(flags.admitted)
                        | u8::from(flags.ready) << 1
                        | u8::from(flags.clean) << 2,
                );
                put_list(out, known, |out, (node, age)| {
                    out.extend_from_slice(&node.0.to_le_bytes());
                    put_varint(out, *age);
                });
            }
            Self::Join => out.push(9),
            Self::JoinReply {
                ready,
                known,
                weight,
            } => {
                out.extend_from_slice(&[10, u8::from(*ready), u8::from(*known)]);
                put_varint(out, u64::from(*weight));
            }
            _ => self.encode_repair(out),
        }
    }

    fn encode_repair(&self, out: &mut Vec<u8>) {
        match self {
            Self::Digests {
                view,
                group,
                nonce,
                items,
            } => {
                out.push(11);
                out.extend_from_slice(&view.to_le_bytes());
                out.extend_from_slice(&group.to_le_bytes());
                put_varint(out, *nonce);
                put_list(out, items, |out, (bucket, digest)| {
                    put_varint(out, u64::from(*bucket));
                    out.extend_from_slice(&digest.to_le_bytes());
                });
            }
            Self::Differ {
                view,
                nonce,
                admitted,
                generation,
                items,
            } => {
                out.push(12);
                out.extend_from_slice(&view.to_le_bytes());
                put_varint(out, *nonce);
                out.push(u8::from(*admitted));
                put_varint(out, *generation);
                put_list(out, items, |out, (bucket, empty)| {
                    put_varint(out, u64::from(*bucket));
                    out.push(u8::from(*empty));
                });
            }
            Self::Pull {
                nonce,
                group,
                bucket,
                from,
                to,
                items,
            } => {
                out.push(13);
                put_varint(out, *nonce);
                out.extend_from_slice(&group.to_le_bytes());
                put_varint(out, u64::from(*bucket));
                out.extend_from_slice(&from.to_le_bytes());
                out.extend_from_slice(&to.to_le_bytes());
                put_list(out, items, |out, (hash, print)| {
                    out.extend_from_slice(&hash.to_le_bytes());
                    out.extend_from_slice(&print.to_le_bytes());
                });
            }
            Self::Part {
                nonce,
                view,
                generation,
                digest,
                to,
                entries,
                wants,
            } => {
                out.push(14);
                put_varint(out, *nonce);
                out.extend_from_slice(&view.to_le_bytes());
                put_varint(out, *generation);
                out.extend_from_slice(&digest.to_le_bytes());
                out.extend_from_slice(&to.to_le_bytes());
                put_list(out, entries, |out, entry| entry.encode(out));
                put_list(out, wants, |out, hash| {
                    out.extend_from_slice(&hash.to_le_bytes());
                });
            }
            Self::Offer { group, buckets } => {
                out.push(15);
                out.extend_from_slice(&group.to_le_bytes());
                put_list(out, buckets, |out, bucket| {
                    put_varint(out, u64::from(*bucket));
                });
            }
            Self::Confirm {
                group,
                bucket,
                generation,
                digest,
            } => {
                out.push(16);
                out.extend_from_slice(&group.to_le_bytes());
                put_varint(out, u64::from(*bucket));
                put_varint(out, *generation);
                out.extend_from_slice(&digest.to_le_bytes());
            }
            _ => unreachable!("encoded by the caller"),
        }
    }

    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match reader.byte()? {
            1 => Self::Write {
                op: reader.varint()?,
                entry: EntryRef::decode(reader)?,
            },
            2 => Self::Ack {
                op: reader.varint()?,
            },
            3 => Self::Touch {
                group: reader.u32()?,
                id: reader.short(MIN_ID, MAX_ID)?,
                epoch: reader.varint_to(MAX_STAMP)?,
                seq: reader.varint_to(u64::from(u32::MAX))? as u32,
                idle: reader.varint()?,
            },
            4 => Self::Ask {
                req: reader.varint()?,
                group: reader.u32()?,
                id: reader.short(MIN_ID, MAX_ID)?,
            },
            5 => Self::Answer {
                req: reader.varint()?,
                entry: match reader.flag()? {
                    true => Some(EntryRef::decode(reader)?),
                    false => None,
                },
            },
            6 => Self::Forward {
                req: reader.varint()?,
                group: reader.u32()?,
                issued: reader.varint_to(MAX_STAMP)?,
                id: reader.short(MIN_ID, MAX_ID)?,
                op: OpRef::decode(reader)?,
            },
            7 => Self::Outcome {
                req: reader.varint()?,
                result: ResultRef::decode(reader)?,
            },
            8 => Self::Status {
                round: reader.varint()?,
                view: reader.u64()?,
                flags: match reader.byte()? {
                    bits @ 0..=7 => Flags {
                        admitted: bits & 1 != 0,
                        ready: bits & 2 != 0,
                        clean: bits & 4 != 0,
                    },
                    _ => return Err(DecodeError::Tag("state of a node")),
                },
                known: list(reader, 9, |reader| {
                    Ok((NodeId(reader.u64()?), reader.varint()?))
                })?,
            },
            9 => Self::Join,
            10 => Self::JoinReply {
                ready: reader.flag()?,
                known: reader.flag()?,
                weight: reader.varint_to(u64::from(u32::MAX))? as u32,
            },
            tag => Self::decode_repair(tag, reader)?,
        })
    }

    fn decode_repair(tag: u8, reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match tag {
            11 => Self::Digests {
                view: reader.u64()?,
                group: reader.u32()?,
                nonce: reader.varint()?,
                items: list(reader, 9, |reader| Ok((reader.bucket()?, reader.u64()?)))?,
            },
            12 => Self::Differ {
                view: reader.u64()?,
                nonce: reader.varint()?,
                admitted: reader.flag()?,
                generation: reader.varint()?,
                items: list(reader, 2, |reader| Ok((reader.bucket()?, reader.flag()?)))?,
            },
            13 => Self::Pull {
                nonce: reader.varint()?,
                group: reader.u32()?,
                bucket: reader.bucket()?,
                from: reader.u64()?,
                to: reader.u64()?,
                items: list(reader, 16, |reader| Ok((reader.u64()?, reader.u64()?)))?,
            },
            14 => Self::Part {
                nonce: reader.varint()?,
                view: reader.u64()?,
                generation: reader.varint()?,
                digest: reader.u64()?,
                to: reader.u64()?,
                entries: list(reader, 24, EntryRef::decode)?,
                wants: list(reader, 8, Reader::u64)?,
            },
            15 => Self::Offer {
                group: reader.u32()?,
                buckets: list(reader, 1, Reader::bucket)?,
            },
            16 => Self::Confirm {
                group: reader.u32()?,
                bucket: reader.bucket()?,
                generation: reader.varint()?,
                digest: reader.u64()?,
            },
            _ => return Err(DecodeError::Tag("record")),
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
