//! The messages between nodes, and their form on the wire.

use super::codec::{EntryRef, Flags, MAX_LIST, MAX_STAMP, OpRef, ResultRef};
use super::types::{MAX_ID, MIN_ID, NodeId};
use super::wire::{DecodeError, Reader, put_short, put_varint};

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
        /// Lamport clock at which the operation was issued; of a write, the stamp that the
        /// sender gives it, the same wherever and however often it is done.
        issued: u64,
        /// Since it was asked for, in milliseconds.
        age: u64,
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
        /// For how many milliseconds it has known who was a member, by itself or from others
        /// that told it.
        memory: u64,
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
        /// Whether it would know the asker if that had been a member within the longest
        /// allowed absence: it has been there, or was told, for as long.
        sure: bool,
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
                age,
                id,
                op,
            } => {
                out.push(6);
                put_varint(out, *req);
                out.extend_from_slice(&group.to_le_bytes());
                put_varint(out, *issued);
                put_varint(out, *age);
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
                memory,
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
                put_varint(out, *memory);
                put_list(out, known, |out, (node, age)| {
                    out.extend_from_slice(&node.0.to_le_bytes());
                    put_varint(out, *age);
                });
            }
            Self::Join => out.push(9),
            Self::JoinReply {
                ready,
                known,
                sure,
                weight,
            } => {
                out.push(10);
                out.extend([*ready, *known, *sure].map(u8::from));
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

    pub(super) fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
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
                age: reader.varint()?,
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
                memory: reader.varint()?,
                known: list(reader, 9, |reader| {
                    Ok((NodeId(reader.u64()?), reader.varint()?))
                })?,
            },
            9 => Self::Join,
            10 => Self::JoinReply {
                ready: reader.flag()?,
                known: reader.flag()?,
                sure: reader.flag()?,
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
