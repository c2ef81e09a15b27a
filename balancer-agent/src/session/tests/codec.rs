//! The messages: every one comes back as it was, and nothing makes the reader panic.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::session::codec::{
    EntryRef, Flags, Frame, HEADER, Header, MAX_STAMP, OpRef, Record, ResultRef,
};
use crate::session::types::{MAX_TTL, NodeId, Version};
use crate::session::wire::{DecodeError, Reader, put_varint};

fn version() -> impl Strategy<Value = Version> {
    (0..=MAX_STAMP, 0..=MAX_STAMP, any::<bool>(), any::<u64>()).prop_map(
        |(a, b, deleted, writer)| Version {
            epoch: a.min(b),
            deleted,
            stamp: a.max(b),
            writer,
        },
    )
}

/// What an entry borrows from.
#[derive(Clone, Debug)]
struct Parts {
    id: Vec<u8>,
    route: String,
    data: Option<Vec<u8>>,
    version: Version,
    numbers: (u32, u32, u64, u64, u64),
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        vec(any::<u8>(), 8..=128),
        "[a-z0-9-]{0,64}",
        option::of(vec(any::<u8>(), 0..300)),
        version(),
        (
            any::<u32>(),
            any::<u32>(),
            any::<u64>(),
            any::<u64>(),
            0..=MAX_TTL,
        ),
    )
        .prop_map(|(id, route, data, version, numbers)| Parts {
            id,
            route,
            data,
            version,
            numbers,
        })
}

impl Parts {
    fn entry(&self) -> EntryRef<'_> {
        let (group, seq, idle, age, ttl) = self.numbers;
        let live = !self.version.deleted;
        EntryRef {
            group,
            id: &self.id,
            version: self.version,
            seq,
            idle,
            age: if live { age } else { 0 },
            ttl: if live { ttl } else { 0 },
            route: if live { &self.route } else { "" },
            data: self.data.as_deref().filter(|_| live),
        }
    }

    /// One record of every kind, made of these parts.
    fn records(&self, other: &Self) -> Vec<Record<'_>> {
        let (group, seq, idle, req, _) = self.numbers;
        let bucket = (seq % 16_384) as u16;
        let (id, route) = (&self.id[..], &self.route[..]);
        let entry = self.entry();
        let epoch = self.version.epoch;
        let forward = |op| Record::Forward {
            req,
            group,
            issued: epoch,
            age: idle,
            id,
            op,
        };
        let put = |expect| OpRef::Put {
            route,
            ttl: idle % MAX_TTL,
            data: self.data.as_deref(),
            expect,
        };
        let mut records = vec![
            Record::Write { op: req, entry },
            Record::Ack { op: req },
            Record::Touch {
                group,
                id,
                epoch,
                seq,
                idle,
            },
            Record::Ask { req, group, id },
            Record::Answer { req, entry: None },
            Record::Answer {
                req,
                entry: Some(entry),
            },
            forward(OpRef::Get(seq % 2 == 0)),
            forward(put(None)),
            forward(put(Some(None))),
            forward(put(Some(Some(self.version)))),
            forward(OpRef::Bind(route)),
            forward(OpRef::Touch),
            forward(OpRef::Delete),
            Record::Status {
                round: req,
                view: idle,
                flags: Flags {
                    admitted: seq % 2 == 0,
                    ready: seq % 3 == 0,
                    clean: seq % 5 == 0,
                },
                memory: req,
                known: vec![(NodeId(req), idle), (NodeId(idle), req)],
            },
            Record::Join,
            Record::JoinReply {
                ready: seq % 2 == 0,
                known: seq % 3 == 0,
                sure: seq % 5 == 0,
                weight: group,
            },
            Record::Digests {
                view: idle,
                group,
                nonce: req,
                items: vec![(bucket, req), (0, idle)],
            },
            Record::Differ {
                view: idle,
                nonce: req,
                admitted: seq % 2 == 0,
                generation: idle,
                items: vec![(bucket, true), (1, false)],
            },
            Record::Pull {
                nonce: req,
                group,
                bucket,
                from: idle,
                to: req,
                items: vec![(req, idle), (idle, req)],
            },
            Record::Part {
                nonce: req,
                view: idle,
                generation: req,
                digest: idle,
                to: req,
                entries: vec![entry, entry],
                wants: vec![req, idle],
            },
            Record::Offer {
                group,
                buckets: vec![bucket, 0],
            },
            Record::Confirm {
                group,
                bucket,
                generation: idle,
                digest: req,
            },
        ];
        let live = [self, other]
            .into_iter()
            .find(|parts| !parts.version.deleted);
        let results = [
            ResultRef::Done(self.version, seq as u8, seq % 2 == 0),
            ResultRef::Touched,
            ResultRef::NotFound,
            ResultRef::Conflict(None),
            ResultRef::Conflict(Some(self.version)),
            ResultRef::NotReady,
            ResultRef::Unavailable,
            ResultRef::Busy,
            ResultRef::NotMine,
            ResultRef::Stale,
            ResultRef::Working,
        ];
        let found = live.filter(|parts| std::ptr::eq(*parts, self));
        let found = found.map(|_| ResultRef::Found(entry));
        let results = results.into_iter().chain(found);
        records.extend(results.map(|result| Record::Outcome { req, result }));
        records
    }
}

fn frame(records: &[Record<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let header = Header {
        incarnation: 7,
        to: 8,
        lamport: 9,
    };
    header.write(&mut bytes);
    records.iter().for_each(|record| record.encode(&mut bytes));
    bytes
}

proptest! {
    #[test]
    fn every_record_comes_back(one in parts(), two in parts()) {
        let records = one.records(&two);
        let bytes = frame(&records);
        let frame = Frame::open(&bytes).unwrap();
        prop_assert_eq!(frame.header.lamport, 9);
        let read: Result<Vec<_>, _> = frame.collect();
        prop_assert_eq!(read.unwrap(), records);
    }

    #[test]
    fn a_cut_frame_is_an_error_or_ends_between_records(one in parts(), cut in any::<u16>()) {
        let records = one.records(&one);
        let bytes = frame(&records);
        let cut = usize::from(cut) % bytes.len();
        let Ok(frame) = Frame::open(&bytes[..cut]) else {
            prop_assert!(cut < HEADER);
            return Ok(());
        };
        let mut read = 0;
        for record in frame {
            match record {
                Ok(record) => {
                    prop_assert_eq!(&record, &records[read]);
                    read += 1;
                }
                Err(error) => prop_assert_eq!(error, DecodeError::Short),
            }
        }
        prop_assert!(read < records.len());
    }

    #[test]
    fn noise_never_panics(noise in vec(any::<u8>(), 0..400), one in parts(), at in any::<u16>()) {
        if let Ok(frame) = Frame::open(&noise) {
            frame.for_each(drop);
        }
        // A good frame with one byte changed goes deeper.
        let mut bytes = frame(&one.records(&one));
        let at = HEADER + usize::from(at) % (bytes.len() - HEADER);
        bytes[at] ^= noise.first().copied().unwrap_or(0xff);
        Frame::open(&bytes).unwrap().for_each(drop);
    }

    #[test]
    fn numbers_come_back(value in any::<u64>()) {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        prop_assert_eq!(Reader::new(&bytes).varint(), Ok(value));
    }
}

#[test]
fn what_breaks_a_bound_is_refused() {
    // A number of 70 bits; an id that is too short; a list longer than its bytes.
    let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
    assert!(matches!(
        Reader::new(&long).varint(),
        Err(DecodeError::Bound(_))
    ));
    let ask = [4, 1, 0, 0, 0, 0, 3, b'a', b'b', b'c'];
    let bytes = [frame(&[]), ask.to_vec()].concat();
    let read: Vec<_> = Frame::open(&bytes).unwrap().collect();
    assert!(matches!(read[..], [Err(DecodeError::Bound(_))]), "{read:?}");
    let mut offer = vec![15, 0, 0, 0, 0];
    put_varint(&mut offer, 4000);
    let bytes = [frame(&[]), offer].concat();
    let read: Vec<_> = Frame::open(&bytes).unwrap().collect();
    assert!(matches!(read[..], [Err(DecodeError::Short)]), "{read:?}");
}

#[test]
fn another_format_is_named() {
    let mut bytes = frame(&[]);
    bytes[0] = 9;
    assert_eq!(Frame::open(&bytes).unwrap_err(), DecodeError::Format(9));
    assert_eq!(
        DecodeError::Format(9).to_string(),
        "format 9 is not known here: expected 1"
    );
}
