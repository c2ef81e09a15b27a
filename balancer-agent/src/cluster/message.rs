//! What nodes tell each other in datagrams.
//!
//! A message is a [postcard](https://postcard.jamesmunns.com/wire-format) value. It is
//! only decoded after it was authenticated, and checked all the same: a peer of another
//! build must not be able to bring in what can't be right.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::id::{Incarnation, NodeId};

/// Longest name of a node, in bytes; the configuration allows no more.
pub const NAME_MAX: usize = 64;
/// Most bytes that a node can tell of itself with its record.
pub const ABOUT_MAX: usize = 128;
/// Most bytes of an encoded message: with its seal and UDP over IPv6 it fits the least
/// MTU that IPv6 has (1280).
pub const MESSAGE_MAX: usize = 1_150;

/// How a node stands, as told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Standing {
    /// It answers.
    Alive,
    /// It did not answer, and may object.
    Suspect,
    /// It did not object in time. Holds for the rest of this life.
    Down,
    /// It said goodbye. Holds for the rest of this life.
    Left,
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Which of its lives.
    pub incarnation: Incarnation,
    /// Counts what the node has said of itself in this life.
    pub version: u32,
    /// How it stands.
    pub standing: Standing,
    /// It has not caught up with the others' sessions.
    pub syncing: bool,
    /// What its user wants the others' users to know, as that says it.
    pub about: Vec<u8>,
    /// Where it is reached.
    pub address: SocketAddr,
}

impl Record {
    /// The node.
    pub fn id(&self) -> NodeId {
        NodeId::of(&self.name)
    }

    /// Whether this is news to somebody who knows `other`. The order is total, so that
    /// all nodes end with the same record whatever the order they hear in: a later life,
    /// then the end of a life, then what the node itself has said later, then suspicion.
    pub fn supersedes(&self, other: &Self) -> bool {
        let rank = |record: &Self| {
            let end = match record.standing {
                Standing::Alive | Standing::Suspect => 0,
                Standing::Down => 1,
                Standing::Left => 2,
            };
            (
                record.incarnation,
                end,
                record.version,
                record.standing == Standing::Suspect,
            )
        };
        rank(self) > rank(other)
    }

    fn valid(&self) -> bool {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !self.name.is_empty()
            && self.name.len() <= NAME_MAX
            && self.name.bytes().all(good)
            && self.about.len() <= ABOUT_MAX
            && self.address.port() != 0
            && !self.address.ip().is_unspecified()
            && !self.address.ip().is_multicast()
    }
}

/// What a message is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Asks for an [`Kind::Ack`].
    Ping {
        /// Comes back.
        seq: u64,
        /// Who should answer; nobody else does. `None`: whoever is there.
        to: Option<NodeId>,
    },
    /// The answer.
    Ack {
        /// Of the ping.
        seq: u64,
    },
    /// Asks to ping another node, and to pass on its answer.
    PingRequest {
        /// Comes back.
        seq: u64,
        /// The other node.
        target: NodeId,
    },
    /// Another node has answered.
    RelayedAck {
        /// Of the request.
        seq: u64,
        /// The other node.
        target: NodeId,
    },
    /// "I am here", to a multicast group.
    Announce,
    /// Nothing but the records.
    Gossip,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The sender, as it knows itself.
    pub from: Record,
    /// What it is for.
    pub kind: Kind,
    /// What else the sender knows.
    pub records: Vec<Record>,
}

/// Not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this version")]
pub struct Malformed;

impl Message {
    /// The bytes.
    ///
    /// # Errors
    /// A name that is too long; not for messages made of checked records.
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        postcard::to_allocvec(self).map_err(|_| Malformed)
    }

    /// From authenticated bytes.
    ///
    /// # Errors
    /// Bytes that [`encode`](Self::encode) does not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MESSAGE_MAX {
            return Err(Malformed);
        }
        let (message, rest) = postcard::take_from_bytes::<Self>(bytes).map_err(|_| Malformed)?;
        let valid =
            rest.is_empty() && message.from.valid() && message.records.iter().all(Record::valid);
        valid.then_some(message).ok_or(Malformed)
    }
}

/// Bytes that a record takes in a message, at most.
pub(super) fn record_size(record: &Record) -> usize {
    // Lengths and integers in groups of seven bits; an IPv6 address with its port.
    let address = if record.address.is_ipv4() { 8 } else { 20 };
    1 + record.name.len() + 10 + 5 + 2 + 2 + record.about.len() + address
}

/// Bytes that everything but the records takes, at most.
pub(super) fn base_size(from: &Record) -> usize {
    record_size(from) + 24
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let standing = prop::sample::select(vec![
            Standing::Alive,
            Standing::Suspect,
            Standing::Down,
            Standing::Left,
        ]);
        let address = prop_oneof![
            Just("192.0.2.1:65535".parse::<SocketAddr>().unwrap()),
            Just("[2001:db8::1]:7946".parse::<SocketAddr>().unwrap()),
        ];
        let name = prop_oneof!["[a-z]", "[a-zA-Z0-9._-]{64}"];
        let told = (
            any::<bool>(),
            prop::collection::vec(any::<u8>(), 0..=ABOUT_MAX),
        );
        // Few values: equal ones are to be met.
        let number = prop_oneof![Just(0u64), Just(1), Just(u64::MAX)];
        (name, number.clone(), number, standing, told, address).prop_map(
            |(name, incarnation, version, standing, (syncing, about), address)| Record {
                name,
                incarnation: Incarnation(incarnation),
                version: version as u32,
                standing,
                syncing,
                about,
                address,
            },
        )
    }

    fn kind() -> impl Strategy<Value = Kind> {
        let node = any::<u64>().prop_map(NodeId);
        prop_oneof![
            (any::<u64>(), prop::option::of(node.clone()))
                .prop_map(|(seq, to)| Kind::Ping { seq, to }),
            any::<u64>().prop_map(|seq| Kind::Ack { seq }),
            (any::<u64>(), node.clone())
                .prop_map(|(seq, target)| Kind::PingRequest { seq, target }),
            (any::<u64>(), node).prop_map(|(seq, target)| Kind::RelayedAck { seq, target }),
            Just(Kind::Announce),
            Just(Kind::Gossip),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back(
            from in record(),
            kind in kind(),
            records in prop::collection::vec(record(), 0..8),
        ) {
            let message = Message { from, kind, records };
            let bytes = message.encode().unwrap();
            let sizes: usize = message.records.iter().map(record_size).sum();
            prop_assert!(bytes.len() <= base_size(&message.from) + sizes);
            match bytes.len() <= MESSAGE_MAX {
                true => prop_assert_eq!(Message::decode(&bytes), Ok(message)),
                false => prop_assert_eq!(Message::decode(&bytes), Err(Malformed)),
            }
        }

        #[test]
        fn other_bytes_end_well(bytes in prop::collection::vec(any::<u8>(), 0..1_300)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn changed_and_cut_messages_end_well(
            from in record(),
            kind in kind(),
            records in prop::collection::vec(record(), 0..8),
            at: prop::sample::Index,
            with: u8,
            cut: bool,
        ) {
            let mut bytes = Message { from, kind, records }.encode().unwrap();
            let at = at.index(bytes.len());
            match cut {
                true => {
                    bytes.truncate(at);
                    prop_assert_eq!(Message::decode(&bytes), Err(Malformed));
                }
                false => {
                    bytes[at] = with;
                    let _ = Message::decode(&bytes);
                }
            }
        }

        #[test]
        fn records_have_an_order(a in record(), b in record(), c in record()) {
            prop_assert!(!a.supersedes(&a));
            prop_assert!(!(a.supersedes(&b) && b.supersedes(&a)));
            prop_assert!(!(a.supersedes(&b) && b.supersedes(&c)) || a.supersedes(&c));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = Record {
            name: "a".into(),
            incarnation: Incarnation(1),
            version: 0,
            standing: Standing::Alive,
            syncing: false,
            about: vec![1; ABOUT_MAX],
            address: "192.0.2.1:1".parse().unwrap(),
        };
        let with = |change: &dyn Fn(&mut Record)| {
            let mut record = good.clone();
            change(&mut record);
            let message = Message {
                from: good.clone(),
                kind: Kind::Gossip,
                records: vec![record],
            };
            Message::decode(&message.encode().unwrap())
        };
        with(&|_| ()).unwrap();
        with(&|r| r.name.clear()).unwrap_err();
        with(&|r| r.name = "a b".into()).unwrap_err();
        with(&|r| r.name = "x".repeat(65)).unwrap_err();
        with(&|r| r.about.push(1)).unwrap_err();
        with(&|r| r.address.set_port(0)).unwrap_err();
        with(&|r| r.address = "0.0.0.0:1".parse().unwrap()).unwrap_err();
        with(&|r| r.address = "224.0.0.1:1".parse().unwrap()).unwrap_err();
    }
}
