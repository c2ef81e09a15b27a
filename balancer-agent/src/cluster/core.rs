//! Membership: SWIM (Das, Gupta, Motivala 2002) without input and output.
//!
//! - Each interval one node is probed, in a shuffled order that comes round. When it does
//!   not answer in time, three others are asked to probe it. When they hear nothing
//!   either, it is *suspected*, and *down* when it has not objected in time.
//! - A node objects by telling a later version of itself. One that is already down for
//!   others can't: it begins a new life, with a larger incarnation.
//! - Every message carries records: news first, then the rest of the table in turn, so
//!   that tables that differ become equal without anything to ask for.
//! - Seeds that are not members, and members that are down, are called again and again:
//!   so nodes come together at first, and again after a partition.
//!
//! After Lifeguard (Dadgar, Phillips, Currey 2018): a suspect is told so at once, and a
//! process that slept (it was stopped, or its host was) gives everybody the time back,
//! instead of finding them all dead.

mod call;
mod own;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngCore as _, SeedableRng as _};

use super::id::{Incarnation, NodeId};
use super::members::{Heard, Member, Members};
use super::message::{ABOUT_MAX, Kind, MESSAGE_MAX, Message, Record, Standing, base_size};
use super::seal::Life;
use crate::model::cluster::Timing;
use own::RENEW_PAUSE;

pub use view::{Node, State};

/// Nodes that are asked to probe for this one.
const RELAYS: usize = 3;
/// Requests of others that are being served.
const RELAYED_MAX: usize = 256;
/// A process that wakes up later than this after its time slept.
const SLEPT: Duration = Duration::from_millis(100);

/// What the core is told when it is made, and when it is configured anew.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Nodes to call.
    pub seeds: Vec<SocketAddr>,
    /// Whether to announce to a multicast group.
    pub multicast: bool,
    /// How fast to notice.
    pub timing: Timing,
}

/// What a node tells of itself from its first message on.
#[derive(Clone, Debug, Default)]
pub struct Initial {
    /// It has not caught up with the others' sessions.
    pub syncing: bool,
    /// What its user wants the others' users to know: at most [`ABOUT_MAX`] bytes.
    pub about: Vec<u8>,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A datagram with the cluster's secret came in.
    Message {
        /// Its sender's process.
        life: Life,
        /// Made in this process' life: see [`seal`](super::seal).
        fresh: bool,
        /// What it says.
        message: Message,
    },
    /// A datagram of this very process came back to it.
    Own(Message),
    /// Time has come to [`Core::poll_timeout`].
    Timeout,
    /// The connection to a node broke: worth a look.
    LinkLost(NodeId),
    /// This node has (not) caught up with the others' sessions.
    Syncing(bool),
    /// What this node's user tells of it, at most [`ABOUT_MAX`] bytes.
    About(Vec<u8>),
    /// The configuration has changed.
    Configure(Settings),
    /// This node is about to end.
    Leave,
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Send a message.
    Send {
        /// Where to.
        to: SocketAddr,
        /// The process it is for, as far as known.
        echo: Option<Life>,
        /// What to say.
        message: Message,
    },
    /// Send a message to the multicast group.
    Multicast(Message),
    /// This node has begun a new life.
    Renewed(Incarnation),
    /// Members, or what is told of them, changed.
    Changed,
    /// Another node seems to have this one's name.
    Conflict(SocketAddr),
    /// There is no room for one more node.
    Full,
}

/// A probe on its way.
struct Probe {
    seq: u64,
    sent: Duration,
    /// When to ask others; nothing once they were.
    ask: Option<Duration>,
    fail: Duration,
}

/// A probe for somebody else.
struct Relayed {
    asker: NodeId,
    seq: u64,
    target: NodeId,
    until: Duration,
}

/// The state of one node's membership.
pub struct Core {
    id: NodeId,
    own: Record,
    settings: Settings,
    members: Members,
    rng: StdRng,
    /// The latest time that was told.
    now: Duration,
    next_probe: Duration,
    next_call: Duration,
    /// Who is probed next, last first.
    order: Vec<NodeId>,
    probes: BTreeMap<NodeId, Probe>,
    relayed: BTreeMap<u64, Relayed>,
    /// Seeds that turned out to be this node.
    own_seeds: Vec<SocketAddr>,
    /// The sequence numbers of the last calls to seeds.
    seed_calls: Vec<(u64, SocketAddr)>,
    renewed: Option<Duration>,
    renew_pause: Duration,
    /// The count that a new life has to surpass.
    renew_beyond: Option<u32>,
    left: bool,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A node that knows nobody. The same seed and inputs give the same outputs.
    pub fn new(
        name: &str,
        address: SocketAddr,
        incarnation: Incarnation,
        start: Initial,
        settings: Settings,
        seed: u64,
        now: Duration,
    ) -> Self {
        Self {
            id: NodeId::of(name),
            own: Record {
                name: name.to_owned(),
                incarnation,
                version: 0,
                standing: Standing::Alive,
                syncing: start.syncing,
                about: start.about,
                address,
            },
            settings,
            members: Members::default(),
            rng: StdRng::seed_from_u64(seed),
            now,
            next_probe: now,
            next_call: now,
            order: Vec::new(),
            probes: BTreeMap::new(),
            relayed: BTreeMap::new(),
            own_seeds: Vec::new(),
            seed_calls: Vec::new(),
            renewed: None,
            renew_pause: RENEW_PAUSE,
            renew_beyond: None,
            left: false,
            outputs: VecDeque::new(),
        }
    }

    /// This node, as it is told.
    pub fn own(&self) -> &Record {
        &self.own
    }

    /// All other nodes that are remembered, by id.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter()
    }

    /// Takes in what happened. `now` never goes back.
    pub fn handle(&mut self, input: Input, now: Duration) {
        if self.left {
            return;
        }
        self.now = self.now.max(now);
        match input {
            Input::Message {
                life,
                fresh,
                message,
            } => self.message(life, fresh, &message),
            Input::Own(message) => self.heard_own(&message),
            Input::Timeout => self.timeout(),
            Input::LinkLost(id) => {
                if self.members.get(id).is_some_and(Member::live) {
                    // The answer to an earlier probe may be of before the break.
                    self.probes.remove(&id);
                    self.probe(id);
                }
            }
            Input::Syncing(syncing) => {
                if self.own.syncing != syncing {
                    self.own.syncing = syncing;
                    self.said();
                }
            }
            Input::About(about) => {
                if self.own.about != about && about.len() <= ABOUT_MAX {
                    self.own.about = about;
                    self.said();
                }
            }
            Input::Configure(settings) => {
                self.settings = settings;
                self.own_seeds.clear();
                // New seeds are called at once.
                self.next_call = self.now;
                let soon = self.now + self.settings.timing.probe_interval;
                self.next_probe = self.next_probe.min(soon);
            }
            Input::Leave => {
                self.own.standing = Standing::Left;
                // Nobody would ask again for one that gets lost.
                self.gossip();
                self.gossip();
                self.left = true;
            }
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due; nothing after leaving.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.left {
            return None;
        }
        let probes = self.probes.values();
        let probes = probes.map(|probe| probe.ask.unwrap_or(probe.fail));
        let suspects = self.members.iter().filter_map(|(_, m)| m.suspected_until);
        let renewal = self.renew_beyond.and(self.renewed);
        let renewal = renewal.map(|renewed| renewed + self.renew_pause);
        let relayed = self.relayed.values().map(|relayed| relayed.until);
        let all = probes.chain(suspects).chain(renewal).chain(relayed);
        all.chain([self.next_probe, self.next_call]).min()
    }

    fn message(&mut self, life: Life, fresh: bool, message: &Message) {
        let from = message.from.id();
        if from == self.id && message.from.incarnation == self.own.incarnation {
            return;
        }
        if !fresh {
            // It may be of long ago: it gets this process' salt, with which it can prove
            // that it is not, and changes nothing.
            let to = message.from.address;
            match message.kind {
                Kind::Ping { seq, to: wanted } if self.is_meant(wanted) => {
                    self.send(to, Some(life), Kind::Ack { seq }, Some(from));
                }
                Kind::Announce => {
                    let seq = self.rng.next_u64();
                    let ping = Kind::Ping { seq, to: None };
                    self.send(to, Some(life), ping, Some(from));
                }
                _ => {}
            }
            return;
        }
        let known = self.members.get(from);
        if known.is_some_and(|m| m.record.incarnation > message.from.incarnation) {
            // It does not know how far it was: its disk is lost. What it says would be
            // taken for its former self's.
            let to = message.from.address;
            return self.send(to, Some(life), Kind::Gossip, Some(from));
        }
        self.hear(&message.from);
        for record in &message.records {
            self.hear(record);
        }
        if let Some(member) = self.members.get_mut(from) {
            member.life = Some(life);
        }
        let to = message.from.address;
        match message.kind {
            Kind::Ping { seq, to: wanted } if self.is_meant(wanted) => {
                self.send(to, Some(life), Kind::Ack { seq }, Some(from));
            }
            Kind::Ping { .. } | Kind::Announce | Kind::Gossip => {}
            Kind::Ack { seq } => self.ack(from, seq, true),
            Kind::RelayedAck { seq, target } => self.ack(target, seq, false),
            Kind::PingRequest { seq, target } => self.relay(from, seq, target),
        }
    }

    fn is_meant(&self, wanted: Option<NodeId>) -> bool {
        wanted.is_none_or(|id| id == self.id)
    }

    /// A record of somebody came in.
    fn hear(&mut self, record: &Record) {
        if record.id() == self.id {
            self.hear_of_self(record);
            return;
        }
        let heard = self.members.hear(record, self.now);
        let id = record.id();
        match heard {
            Heard::Nothing => return,
            Heard::Full => {
                self.outputs.push_back(Output::Full);
                return;
            }
            Heard::Changed => {}
            Heard::Appeared => {
                self.probes.remove(&id);
                // It should know of this node as soon as this one knows of it.
                self.probe(id);
            }
            Heard::Suspected => self.suspect(id),
        }
        if !self.members.get(id).is_some_and(Member::live) {
            self.probes.remove(&id);
        }
        self.outputs.push_back(Output::Changed);
    }

    fn timeout(&mut self) {
        let now = self.now;
        // Whoever slept can't tell whether others did: nobody is blamed for that time.
        let late = self.poll_timeout().map(|due| now.saturating_sub(due));
        if let Some(late) = late.filter(|late| *late > SLEPT) {
            for probe in self.probes.values_mut() {
                probe.ask = probe.ask.map(|at| at + late);
                probe.fail += late;
            }
            for (_, member) in self.members.iter_mut() {
                member.suspected_until = member.suspected_until.map(|at| at + late);
            }
        }
        self.renew();
        self.relayed.retain(|_, relayed| relayed.until > now);
        self.ask_others();
        self.fail_probes();
        self.give_up();
        if now >= self.next_probe {
            self.next_probe = now + self.settings.timing.probe_interval;
            self.probe_next();
            if self.members.forget(now) {
                self.outputs.push_back(Output::Changed);
            }
        }
        if now >= self.next_call {
            self.call();
        }
    }

    /// Probes without an answer: others may have a better way.
    fn ask_others(&mut self) {
        let now = self.now;
        let due: Vec<(NodeId, u64)> = self
            .probes
            .iter_mut()
            .filter(|(_, probe)| probe.ask.is_some_and(|at| at <= now))
            .map(|(id, probe)| {
                probe.ask = None;
                (*id, probe.seq)
            })
            .collect();
        for (target, seq) in due {
            let mut others: Vec<NodeId> = self
                .members
                .iter()
                .filter(|(id, m)| *id != target && m.record.standing == Standing::Alive)
                .map(|(id, _)| id)
                .collect();
            others.shuffle(&mut self.rng);
            for other in others.into_iter().take(RELAYS) {
                self.send_to(other, Kind::PingRequest { seq, target }, Some(target));
            }
        }
    }

    fn fail_probes(&mut self) {
        let now = self.now;
        let failed: Vec<NodeId> = self
            .probes
            .iter()
            .filter(|(_, probe)| probe.fail <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in failed {
            self.probes.remove(&id);
            let Some(member) = self.members.get(id) else {
                continue;
            };
            if member.record.standing == Standing::Alive {
                let mut record = member.record.clone();
                record.standing = Standing::Suspect;
                self.hear(&record);
            } else if member.record.standing == Standing::Suspect {
                // It may have missed that it is suspected.
                self.probe(id);
            }
        }
    }

    /// Starts the time of a suspect, and tells it.
    fn suspect(&mut self, id: NodeId) {
        let until = self.now + self.settings.timing.suspect_timeout;
        if let Some(member) = self.members.get_mut(id) {
            member.suspected_until.get_or_insert(until);
        }
        self.probes.remove(&id);
        self.probe(id);
    }

    /// Suspects whose time is over.
    fn give_up(&mut self) {
        let now = self.now;
        let over: Vec<Record> = self
            .members
            .iter()
            .filter(|(_, m)| m.suspected_until.is_some_and(|at| at <= now))
            .map(|(_, m)| m.record.clone())
            .collect();
        for mut record in over {
            record.standing = Standing::Down;
            self.hear(&record);
        }
    }

    fn probe_next(&mut self) {
        if self.order.is_empty() {
            let live = self.members.iter().filter(|(_, m)| m.live());
            self.order = live.map(|(id, _)| id).collect();
            self.order.shuffle(&mut self.rng);
        }
        while let Some(id) = self.order.pop() {
            if self.members.get(id).is_some_and(Member::live) {
                self.probe(id);
                return;
            }
        }
    }

    /// Probes a member, unless that is being done.
    fn probe(&mut self, id: NodeId) {
        if self.probes.contains_key(&id) {
            return;
        }
        let seq = self.rng.next_u64();
        let timing = self.settings.timing;
        let probe = Probe {
            seq,
            sent: self.now,
            ask: Some(self.now + timing.probe_timeout),
            fail: self.now + timing.probe_interval,
        };
        self.probes.insert(id, probe);
        self.send_to(id, Kind::Ping { seq, to: Some(id) }, Some(id));
    }

    /// A member has answered, to this node or to another.
    fn ack(&mut self, id: NodeId, seq: u64, direct: bool) {
        self.seed_calls.retain(|(call, _)| *call != seq);
        if direct && let Some(relayed) = self.relayed.remove(&seq) {
            if relayed.target == id {
                let kind = Kind::RelayedAck {
                    seq: relayed.seq,
                    target: id,
                };
                self.send_to(relayed.asker, kind, Some(id));
            }
            return;
        }
        let Some(probe) = self.probes.get(&id).filter(|probe| probe.seq == seq) else {
            return;
        };
        let took = self.now.saturating_sub(probe.sent);
        // An answer after others were asked may have been slow, or may be theirs.
        let timed = direct && probe.ask.is_some();
        self.probes.remove(&id);
        if let Some(member) = self.members.get_mut(id)
            && timed
        {
            // As TCP smooths its own (RFC 6298).
            let smoothed = member.round_trip.map(|old| (old * 7 + took) / 8);
            member.round_trip = Some(smoothed.unwrap_or(took));
        }
    }

    /// Another node asks for a probe.
    fn relay(&mut self, asker: NodeId, seq: u64, target: NodeId) {
        let known = self.members.get(target).is_some();
        if !known || target == asker || self.relayed.len() >= RELAYED_MAX {
            return;
        }
        let own = self.rng.next_u64();
        let relayed = Relayed {
            asker,
            seq,
            target,
            until: self.now + self.settings.timing.probe_interval,
        };
        self.relayed.insert(own, relayed);
        let ping = Kind::Ping {
            seq: own,
            to: Some(target),
        };
        self.send_to(target, ping, Some(target));
    }

    /// This node says something new of itself.
    fn said(&mut self) {
        self.own.version = self.own.version.saturating_add(1);
        self.gossip();
        self.outputs.push_back(Output::Changed);
    }

    /// Tells everybody at once. Clusters are small, and this is rare.
    fn gossip(&mut self) {
        let live = self.members.iter().filter(|(_, m)| m.live());
        let live: Vec<NodeId> = live.map(|(id, _)| id).collect();
        for id in live {
            self.send_to(id, Kind::Gossip, None);
        }
    }

    fn send_to(&mut self, id: NodeId, kind: Kind, first: Option<NodeId>) {
        if let Some(member) = self.members.get(id) {
            let (to, echo) = (member.record.address, member.life);
            self.send(to, echo, kind, first);
        }
    }

    fn send(&mut self, to: SocketAddr, echo: Option<Life>, kind: Kind, first: Option<NodeId>) {
        let message = self.compose(kind, first);
        self.outputs.push_back(Output::Send { to, echo, message });
    }

    fn compose(&mut self, kind: Kind, first: Option<NodeId>) -> Message {
        let room = MESSAGE_MAX.saturating_sub(base_size(&self.own));
        Message {
            from: self.own.clone(),
            kind,
            records: self.members.tell(first, room),
        }
    }
}
