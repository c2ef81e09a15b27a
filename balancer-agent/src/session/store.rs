//! The replica itself: what goes in, what comes out, and when it wants to be woken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::codec::{Frame, Record};
use super::config::{Config, ConfigError, group_key};
use super::counters::Counters;
use super::disk::Log;
use super::ops::Pending;
use super::outbox::Peer;
use super::repair::Repair;
use super::table::Group;
use super::types::{GroupId, Manager, Member, NodeId, Op, Outcome, Time, Token};
use super::view::{JoinReply, Phase, View, writer_of};
use super::wire::DecodeError;

/// What the world tells a store.
#[derive(Debug)]
pub enum Input<'a> {
    /// Nothing but the time: for [`Store::poll_timeout`].
    Tick,
    /// The membership has changed. Sorted or not; this node among them or not.
    Members {
        /// Incarnation of this node.
        incarnation: u64,
        /// The nodes that are believed alive.
        members: &'a [Member],
    },
    /// A caller on this node wants something; every request gets one [`Output::Reply`].
    Request {
        /// The caller's number.
        token: Token,
        /// The group.
        group: GroupId,
        /// The session.
        id: &'a [u8],
        /// What to do.
        op: Op,
    },
    /// A request that could not be done when it was asked for, once more (or for the first
    /// time). It does not undo the end of a session that came after it was asked for.
    Again {
        /// The caller's number.
        token: Token,
        /// The group.
        group: GroupId,
        /// The session.
        id: &'a [u8],
        /// What to do.
        op: Op,
        /// When it was asked for.
        asked: Time,
    },
    /// A frame from a peer that has proved who it is.
    Frame {
        /// The peer.
        from: NodeId,
        /// The frame.
        bytes: &'a [u8],
    },
    /// An [`Output::Send`] has been given to the network: another may follow.
    Sent {
        /// The peer.
        to: NodeId,
    },
    /// The connection to a peer was lost or made anew: frames may be missing.
    Reset {
        /// The peer.
        peer: NodeId,
    },
    /// All [`Output::Persist`] up to this number are safely on disk.
    Persisted {
        /// The number.
        seq: u64,
    },
    /// The end of an [`Output::External`].
    External {
        /// Its number.
        token: Token,
        /// How it ended.
        outcome: Outcome,
    },
}

/// What a store wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send a frame, and report [`Input::Sent`].
    Send {
        /// The peer.
        to: NodeId,
        /// The frame.
        frame: Vec<u8>,
    },
    /// The end of a request.
    Reply {
        /// The caller's number.
        token: Token,
        /// How it ended.
        outcome: Outcome,
    },
    /// Write a batch to disk, whole or not at all, and report [`Input::Persisted`].
    Persist {
        /// Number of the batch.
        seq: u64,
        /// The batch, for [`Store::load`].
        batch: Vec<u8>,
    },
    /// Do a request of an external group and report [`Input::External`].
    External {
        /// The number to report.
        token: Token,
        /// The group.
        group: GroupId,
        /// The session.
        id: Box<[u8]>,
        /// What to do.
        op: Op,
    },
    /// Whether this node serves has changed.
    Ready(bool),
}

/// One node's part of the session store. See the module's documentation.
#[derive(Debug)]
pub struct Store {
    pub(super) config: Config,
    pub(super) now: Time,
    pub(super) lamport: u64,
    /// Tells this life of this node from all others, in versions.
    pub(super) writer: u64,
    pub(super) groups: Vec<Group>,
    pub(super) by_key: BTreeMap<u32, u16>,
    pub(super) view: View,
    pub(super) phase: Phase,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// Nodes that were members, and when each was last seen as one.
    pub(super) known: BTreeMap<NodeId, i64>,
    /// Since when this node has known who was a member, by itself or from others that told
    /// it; nothing before its first life.
    pub(super) memory: Option<i64>,
    /// Reports of this node's state so far.
    pub(super) reports: u64,
    /// Members of the last view in which this node served.
    pub(super) weight: u32,
    /// Since when every node known has been here and clean.
    pub(super) clean_since: Option<i64>,
    pub(super) ops: BTreeMap<u64, Pending>,
    pub(super) timers: BTreeSet<(Time, u64)>,
    pub(super) next_op: u64,
    /// Operations at work for other nodes, by the node's incarnation and its number.
    pub(super) remote: BTreeMap<(u64, u64), u64>,
    /// Requests that something outside is doing, and until when.
    pub(super) external: BTreeMap<Token, Time>,
    pub(super) repair: Repair,
    pub(super) log: Log,
    pub(super) outputs: VecDeque<Output>,
    /// Whether anybody wants to know of changes; those not fetched yet.
    pub(super) watched: bool,
    pub(super) changed: VecDeque<(usize, u64, Box<[u8]>)>,
    pub(super) counters: Counters,
    pub(super) next_status: Time,
    pub(super) next_round: Time,
    pub(super) next_sweep: Time,
    pub(super) sweep_at: u32,
}

impl Store {
    /// A store without sessions and without members. It serves once
    /// [`Input::Members`] has come and it has caught up.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let groups: Vec<Group> = config
            .groups
            .iter()
            .map(|group| {
                Group::new(
                    group,
                    group_key(&group.name),
                    config.key,
                    config.limits.buckets,
                    config.timing.tombstone_max,
                )
            })
            .collect();
        let by_key = (0_u16..).zip(&groups).map(|(i, g)| (g.key, i)).collect();
        Ok(Self {
            config,
            now: Time(0),
            lamport: 0,
            writer: 0,
            groups,
            by_key,
            view: View::default(),
            phase: Phase::Waiting,
            peers: BTreeMap::new(),
            known: BTreeMap::new(),
            memory: None,
            reports: 0,
            weight: 0,
            clean_since: None,
            ops: BTreeMap::new(),
            timers: BTreeSet::new(),
            next_op: 1,
            remote: BTreeMap::new(),
            external: BTreeMap::new(),
            repair: Repair::default(),
            log: Log::default(),
            outputs: VecDeque::new(),
            watched: false,
            changed: VecDeque::new(),
            counters: Counters::default(),
            next_status: Time(0),
            next_round: Time(0),
            next_sweep: Time(0),
            sweep_at: 0,
        })
    }

    /// Takes one input. `now` never goes back; if it does, the time stands still.
    ///
    /// # Errors
    /// A frame that cannot be read: what came before the error has been taken in. The
    /// connection it came from should be closed.
    pub fn handle(&mut self, input: Input<'_>, now: Time) -> Result<(), DecodeError> {
        self.now = self.now.max(now);
        let result = match input {
            Input::Tick => Ok(()),
            Input::Members {
                incarnation,
                members,
            } => {
                self.change_view(incarnation, members);
                Ok(())
            }
            Input::Request {
                token,
                group,
                id,
                op,
            } => {
                self.request(token, group, id, op, now);
                Ok(())
            }
            Input::Again {
                token,
                group,
                id,
                op,
                asked,
            } => {
                self.request(token, group, id, op, asked);
                Ok(())
            }
            Input::Frame { from, bytes } => self.frame(from, bytes),
            Input::Sent { to } => {
                if let Some(peer) = self.peers.get_mut(&to) {
                    peer.sent();
                    if peer.missed && peer.waiting() < self.config.limits.outbox / 2 {
                        peer.missed = false;
                        self.offer_shared(to);
                    }
                }
                Ok(())
            }
            Input::Reset { peer } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.reset();
                    self.compare_with(peer);
                }
                Ok(())
            }
            Input::Persisted { seq } => {
                self.persisted(seq);
                Ok(())
            }
            Input::External { token, outcome } => {
                if self.external.remove(&token).is_some() {
                    self.outputs.push_back(Output::Reply { token, outcome });
                }
                Ok(())
            }
        };
        self.run_timers();
        self.run_repair();
        result
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if let Some((seq, batch)) = self.next_batch() {
            return Some(Output::Persist { seq, batch });
        }
        let credit = self.config.limits.credit;
        for (&to, peer) in &mut self.peers {
            if let Some(frame) = peer.pop(self.view.incarnation, self.lamport, credit) {
                self.counters.frames_sent += 1;
                self.counters.bytes_sent += frame.len() as u64;
                return Some(Output::Send { to, frame });
            }
        }
        None
    }

    /// When to call [`Store::handle`] at the latest. `None`: not before the next input.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.phase == Phase::Waiting {
            return self.external.values().min().copied();
        }
        let fixed = self
            .next_status
            .min(self.next_sweep)
            .min(self.next_round)
            .min(match self.repair.wake {
                Some(wake) if self.admitted() => wake,
                _ => Time(u64::MAX),
            });
        let op = self.timers.first().map_or(fixed, |&(time, _)| time);
        let outside = self.external.values().min().copied();
        let join = self.join_wake();
        let rest = outside.into_iter().chain(join).min();
        Some(fixed.min(op).min(rest.unwrap_or(fixed)))
    }

    /// Whether this node serves.
    pub fn ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// What has happened so far, and how much of each bounded thing is in use.
    pub fn counters(&self) -> Counters {
        Counters {
            sessions: self.groups.iter().map(|g| g.live as u64).sum(),
            tombstones: self.groups.iter().map(|g| g.tombstones as u64).sum(),
            bytes: self.groups.iter().map(|g| g.bytes as u64).sum(),
            pending: self.ops.len() as u64 + self.external.len() as u64,
            outbox: self
                .peers
                .values()
                .map(|p| p.waiting() as u64)
                .max()
                .unwrap_or(0),
            unsettled: self.repair.unsettled as u64,
            strays: self.strays().count() as u64,
            disk_backlog: self.log.backlog() as u64,
            disk_buckets: self.log.dirty() as u64,
            ..self.counters
        }
    }

    /// Appends a record for a peer.
    pub(super) fn send(&mut self, to: NodeId, record: &Record<'_>) -> bool {
        push(
            &mut self.peers,
            &self.config,
            &mut self.counters,
            to,
            record,
        )
    }

    fn frame(&mut self, from: NodeId, bytes: &[u8]) -> Result<(), DecodeError> {
        let frame = Frame::open(bytes).inspect_err(|_| self.counters.malformed += 1)?;
        let header = frame.header;
        let right = self.peers.get(&from).map(|peer| peer.incarnation);
        if right != Some(header.incarnation) || header.to != self.view.incarnation {
            // A life that is over, here or there, or one that this view does not have yet.
            self.counters.frames_fenced += 1;
            return Ok(());
        }
        self.counters.frames_received += 1;
        self.lamport = self.lamport.max(header.lamport);
        for record in frame {
            let record = record.inspect_err(|_| self.counters.malformed += 1)?;
            self.record(from, record);
        }
        Ok(())
    }

    fn record(&mut self, from: NodeId, record: Record<'_>) {
        match record {
            Record::Write { op, entry } => self.take_write(from, op, &entry),
            Record::Ack { op } => self.take_ack(from, op),
            Record::Touch {
                group,
                id,
                epoch,
                seq,
                idle,
            } => self.take_touch(group, id, epoch, seq, idle),
            Record::Ask { req, group, id } => self.take_ask(from, req, group, id),
            Record::Answer { req, entry } => self.take_answer(from, req, entry.as_ref()),
            Record::Forward {
                req,
                group,
                issued,
                age,
                id,
                op,
            } => self.take_forward((from, req), group, (issued, age), id, op),
            Record::Outcome { req, result } => self.take_outcome(from, req, result),
            Record::Status {
                round,
                view,
                flags,
                memory,
                known,
            } => self.take_status(from, round, (view, flags), memory, &known),
            Record::Join => self.take_join(from),
            Record::JoinReply {
                ready,
                known,
                sure,
                weight,
            } => {
                let reply = JoinReply {
                    ready,
                    known,
                    sure,
                    weight,
                };
                self.take_join_reply(from, reply);
            }
            repair => self.take_repair(from, repair),
        }
    }

    /// The group of a key from the wire. Groups that are not held here are none of ours.
    pub(super) fn group_of(&mut self, key: u32) -> Option<usize> {
        match self.by_key.get(&key) {
            Some(&index) if self.groups[usize::from(index)].manager != Manager::External => {
                Some(usize::from(index))
            }
            _ => {
                self.counters.strange_group += 1;
                None
            }
        }
    }

    /// A new stamp for a write of this node.
    pub(super) fn stamp(&mut self) -> u64 {
        self.lamport += 1;
        self.lamport
    }

    pub(super) fn set_writer(&mut self) {
        self.writer = writer_of(self.config.node, self.view.incarnation);
    }

    pub(super) fn reply(&mut self, token: Token, outcome: Outcome) {
        self.outputs.push_back(Output::Reply { token, outcome });
    }
}

/// [`push`] for several peers; of this node itself, which is none, nothing comes.
pub(super) fn push_all(
    peers: &mut BTreeMap<NodeId, Peer>,
    config: &Config,
    counters: &mut Counters,
    nodes: impl IntoIterator<Item = NodeId>,
    record: &Record<'_>,
) {
    for node in nodes {
        push(peers, config, counters, node, record);
    }
}

/// Appends a record for a peer; a function over parts of the store, so that the record
/// may borrow from the tables.
pub(super) fn push(
    peers: &mut BTreeMap<NodeId, Peer>,
    config: &Config,
    counters: &mut Counters,
    to: NodeId,
    record: &Record<'_>,
) -> bool {
    let Some(peer) = peers.get_mut(&to) else {
        return false;
    };
    let taken = peer.push(record, &config.limits);
    if taken {
        counters.records_sent += 1;
    } else {
        counters.outbox_full += 1;
        peer.missed = true;
    }
    taken
}
