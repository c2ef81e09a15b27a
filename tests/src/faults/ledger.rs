//! What the client was told of each session, what that promises, and what breaks it.
//!
//! - A write that a response names so many nodes for may be gone only if as many nodes have
//!   lost what they held since the write began; whether the response said `degraded` or not.
//! - A session whose end was acknowledged so must be nowhere, with the same excuse.
//! - Of several writes to one session the last must have won, where it surely came after
//!   the others: every node had them when it began. Else one of them has.
//! - All that should hold a session do, and hold the same.
//!
//! What was not acknowledged may have happened or not. A check settles what it finds: from
//! then on its holders have it, whatever was said when it was written.

use std::collections::HashMap;
use std::fmt;

use super::NODES;
use super::site::Kind;
use crate::sim::rng::Rng;

/// How often each node has lost all that it held.
pub type Lives = [u32; NODES];

/// What a response said of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// So many nodes have it, and all that should (or not: `degraded`).
    Nodes {
        /// That many.
        nodes: u8,
        /// All that should.
        all: bool,
    },
    /// There was nothing to write to.
    Absent,
}

impl Kept {
    /// From the header's text.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "absent" {
            return Some(Self::Absent);
        }
        let rest = text.strip_prefix("nodes=")?;
        let (nodes, all) = match rest.split_once(", ") {
            Some((nodes, "degraded")) => (nodes, false),
            Some(_) => return None,
            None => (rest, true),
        };
        Some(Self::Nodes {
            nodes: nodes.parse().ok()?,
            all,
        })
    }
}

/// What is asked of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The application makes it.
    Make,
    /// A visit; if its server is gone, it moves to another.
    Visit,
    /// The application ends it.
    End,
}

/// Something to do; goes back by [`Ledger::done`].
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The session's number.
    pub session: u32,
    /// What to do with it.
    pub act: Act,
    lives: Lives,
    weather: u64,
}

/// What the client saw.
#[derive(Clone, Copy, Debug)]
pub enum Seen {
    /// No answer, or one that says that nothing was done.
    Failed,
    /// 200 from this server.
    Answered {
        /// Its number.
        server: u8,
        /// What the response said of the write, if it made one.
        kept: Option<Kept>,
    },
}

/// So many nodes have something, and what had been lost when it began.
#[derive(Clone, Copy, Debug)]
struct Floor {
    nodes: u8,
    /// All that should have it, by the view of who wrote it.
    all: bool,
    lives: Lives,
}

impl Floor {
    /// As many nodes have lost what they held since.
    fn excused(&self, now: &Lives) -> bool {
        let lost = now.iter().zip(&self.lives).filter(|(now, then)| now > then);
        lost.count() >= usize::from(self.nodes)
    }
}

#[derive(Clone, Copy, Debug)]
struct Write {
    route: u8,
    /// Nothing: it may not have happened.
    floor: Option<Floor>,
    /// Whatever begins later, on whichever node, is later for all nodes.
    everywhere: bool,
}

#[derive(Debug, Default)]
struct Session {
    /// Since the last check, and what that found.
    writes: Vec<Write>,
    ended: Option<Floor>,
    /// It may have ended, or may yet: nobody said.
    doubt: bool,
    /// May be used.
    idle: bool,
    /// The round of the last write.
    round: u32,
}

/// Counts of what the client was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes acknowledged by all nodes that should have them.
    pub acknowledged: u64,
    /// Writes acknowledged by fewer.
    pub degraded: u64,
    /// Answered writes that nobody is known to have.
    pub unknown: u64,
    /// Requests for a write without a good answer.
    pub failed: u64,
    /// Of the acknowledged and degraded: sessions made.
    pub made: u64,
    /// Likewise: sessions moved to another server.
    pub moved: u64,
    /// Likewise: sessions ended.
    pub ended: u64,
    /// Visits that wrote nothing.
    pub visits: u64,
    /// Answers without a word about a write that they must have made.
    pub unmarked: u64,
}

impl Counts {
    /// Requests for writes.
    pub fn asked(&self) -> u64 {
        self.writes() + self.unknown + self.failed + self.unmarked
    }

    /// Writes that at least one node has acknowledged.
    pub fn writes(&self) -> u64 {
        self.acknowledged + self.degraded
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// An acknowledged write is gone.
    Lost(String),
    /// A session whose end was acknowledged is there.
    Returned(String),
    /// Nodes that should hold the same do not.
    Differs(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(what) => write!(f, "LOST: {what}"),
            Self::Returned(what) => write!(f, "RETURNED: {what}"),
            Self::Differs(what) => write!(f, "DIFFERS: {what}"),
        }
    }
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Broken promises.
    pub broken: Vec<Broken>,
    /// Acknowledged writes that are gone, with all nodes that had them.
    pub excused: u64,
    /// Sessions that are there.
    pub live: u64,
}

/// What the client knows.
#[derive(Debug)]
pub struct Ledger {
    kind: Kind,
    /// Sessions at a time, about.
    target: usize,
    sessions: Vec<Session>,
    by_id: HashMap<String, u32>,
    /// Those that nobody uses just now, and that may be used.
    idle: Vec<u32>,
    busy: usize,
    lives: Lives,
    /// Odd while something is wrong.
    weather: u64,
    /// A server is down: sessions move when they are visited.
    moving: bool,
    round: u32,
    /// What the client was told.
    pub counts: Counts,
}

impl Ledger {
    /// Of nothing yet.
    pub fn new(kind: Kind, target: usize) -> Self {
        Self {
            kind,
            target,
            sessions: Vec::new(),
            by_id: HashMap::new(),
            idle: Vec::new(),
            busy: 0,
            lives: Lives::default(),
            weather: 0,
            moving: false,
            round: 0,
            counts: Counts::default(),
        }
    }

    /// The cookie of a session.
    pub fn cookie(session: u32) -> String {
        format!("session-{session:08}")
    }

    /// A node has lost what it held.
    pub fn killed(&mut self, node: usize) {
        self.lives[node] += 1;
    }

    /// Something goes wrong from now on, or all is well again.
    pub fn weather(&mut self, bad: bool) {
        if bad != (self.weather % 2 == 1) {
            self.weather += 1;
        }
    }

    /// Whether a server is down.
    pub fn moving(&mut self, moving: bool) {
        self.moving = moving;
    }

    /// The next thing to do. `store_id` is what the store has a cookie under.
    pub fn next(&mut self, rng: &mut Rng, store_id: impl FnOnce(&str) -> String) -> Job {
        let used = self.idle.len() + self.busy;
        let visits = if self.moving { 20 } else { 4 };
        let act = match self.idle.is_empty() {
            true => Act::Make,
            false if rng.chance(visits) => Act::Visit,
            // Around the target as many end as are made.
            false if rng.below(2 * self.target as u64) >= used as u64 => Act::Make,
            false => Act::End,
        };
        let session = match act {
            Act::Make => {
                let session = self.sessions.len() as u32;
                self.sessions.push(Session::default());
                self.by_id.insert(store_id(&Self::cookie(session)), session);
                session
            }
            Act::Visit | Act::End => {
                let at = rng.below(self.idle.len() as u64) as usize;
                let session = self.idle.swap_remove(at);
                self.sessions[session as usize].idle = false;
                session
            }
        };
        self.busy += 1;
        Job {
            session,
            act,
            lives: self.lives,
            weather: self.weather,
        }
    }

    /// How it went.
    pub fn done(&mut self, job: Job, seen: Seen) {
        self.busy -= 1;
        let calm = self.weather == job.weather && job.weather.is_multiple_of(2);
        let everyone = |nodes: u8, all: bool| match self.kind {
            Kind::Delta => all && usize::from(nodes) == NODES,
            // The primary puts writes in order, while all agree on who that is.
            Kind::Backup(_) => all && calm,
        };
        let counts = &mut self.counts;
        let session = &mut self.sessions[job.session as usize];
        session.round = self.round;
        let (server, kept) = match seen {
            Seen::Failed => (None, None),
            Seen::Answered { server, kept } => (Some(server), kept),
        };
        let floor = match kept {
            Some(Kept::Nodes { nodes, all }) if nodes > 0 => {
                let count = match all {
                    true => &mut counts.acknowledged,
                    false => &mut counts.degraded,
                };
                *count += 1;
                let floor = Floor {
                    nodes,
                    all,
                    lives: job.lives,
                };
                Some((floor, everyone(nodes, all)))
            }
            _ => None,
        };
        match (server, kept) {
            (None, _) => counts.failed += 1,
            (Some(_), Some(_)) if floor.is_none() => counts.unknown += 1,
            (Some(_), None) if job.act == Act::Visit => counts.visits += 1,
            (Some(_), None) => counts.unmarked += 1,
            _ => {}
        }
        let mut again = true;
        match (job.act, floor) {
            (Act::Make | Act::Visit, Some((floor, everywhere))) => {
                match job.act {
                    Act::Make => counts.made += 1,
                    _ => counts.moved += 1,
                }
                session.writes.push(Write {
                    route: server.unwrap_or_default(),
                    floor: Some(floor),
                    everywhere,
                });
            }
            (Act::Visit, None) if server.is_some() && kept.is_none() => {}
            (Act::Make | Act::Visit, None) => {
                // To whatever server it may have gone, it may have been bound there.
                let all = 0..super::SERVERS as u8;
                let routes = server.map_or(all, |server| server..server + 1);
                session.writes.extend(routes.map(|route| Write {
                    route,
                    floor: None,
                    everywhere: false,
                }));
                // One that may not exist is of no more use.
                again = job.act == Act::Visit;
            }
            (Act::End, Some((floor, _))) => {
                counts.ended += 1;
                session.ended = Some(floor);
                again = false;
            }
            (Act::End, None) => {
                session.doubt = true;
                again = false;
            }
        }
        if again {
            session.idle = true;
            self.idle.push(job.session);
        }
    }

    /// Number and state of the session with this id in the store.
    pub fn number(&self, id: &str) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// How often a node was killed.
    pub fn kills(&self) -> u32 {
        self.lives.iter().sum()
    }

    /// Jobs that are not done.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Sessions that must be, with their server: some of those that were not written in
    /// this round.
    pub fn some_live(&self, rng: &mut Rng, count: usize) -> Vec<(u32, u8)> {
        let mut some = Vec::new();
        for _ in 0..count.min(self.idle.len()) {
            let number = self.idle[rng.below(self.idle.len() as u64) as usize];
            let session = &self.sessions[number as usize];
            // With `backup`, who does not hold a session may hear a little late of a move.
            let settled = session.round < self.round || self.kind == Kind::Delta;
            if let ([write], true, false) = (&session.writes[..], settled, session.doubt)
                // One that has gone with all nodes that had it need not be there.
                && write.floor.is_some_and(|floor| floor.all && !floor.excused(&self.lives))
            {
                some.push((number, write.route));
            }
        }
        some
    }

    /// Sessions that have ended before this round, the youngest of them.
    pub fn some_ended(&self, count: usize) -> Vec<u32> {
        let numbers = (0..self.sessions.len() as u32).rev();
        let ended = numbers.filter(|&number| {
            let session = &self.sessions[number as usize];
            session.ended.is_some() && session.round < self.round
        });
        ended.take(count).collect()
    }

    /// What is not as it has to be from the moment on when all nodes are together: what all
    /// that should had acknowledged is there, and what has ended is not.
    pub fn at_once(&self, held: &[HashMap<u32, u8>]) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (number, session) in (0u32..).zip(&self.sessions) {
            let kept = |floor: Floor| floor.all && !floor.excused(&self.lives);
            let copies = held
                .iter()
                .filter(|held| held.contains_key(&number))
                .count();
            let say = || format!("{copies} copies at once of {number} {session:?}");
            if let Some(ended) = session.ended {
                if copies > 0 && kept(ended) {
                    broken.push(Broken::Returned(say()));
                }
            } else if copies < self.kind.holders()
                && !session.doubt
                && session.writes.iter().filter_map(|w| w.floor).any(kept)
            {
                broken.push(Broken::Lost(say()));
            }
        }
        broken
    }

    /// Judges what the nodes hold now that all is calm: by node, sessions and where they
    /// are. Then settles what was found, and begins a new round.
    pub fn judge(&mut self, held: &[HashMap<u32, u8>]) -> Verdict {
        let mut verdict = Verdict::default();
        let (lives, round) = (self.lives, self.round);
        let wanted = self.kind.holders();
        for (number, session) in (0u32..).zip(&mut self.sessions) {
            let copies: Vec<(usize, u8)> = held
                .iter()
                .enumerate()
                .filter_map(|(node, held)| Some((node, *held.get(&number)?)))
                .collect();
            let found = copies.first().map(|(_, route)| *route);
            if found.is_none() && session.writes.is_empty() {
                continue;
            }
            let say = |session: &Session| {
                let cookie = Self::cookie(number);
                format!(
                    "{cookie} is held as {copies:?} in round {round}: {session:?}; lost {lives:?}"
                )
            };
            if let Some(ended) = session.ended {
                let excused = ended.excused(&lives);
                match (found, excused) {
                    (Some(_), false) => verdict.broken.push(Broken::Returned(say(session))),
                    (Some(_), true) => {
                        // Nobody is left who knew of its end: it goes on, and is counted once.
                        verdict.excused += 1;
                        session.ended = None;
                    }
                    (None, _) => session.writes = Vec::new(),
                }
                if found.is_none() {
                    // Its end is with all who should know of it now.
                    session.ended = Some(Floor {
                        nodes: wanted as u8,
                        all: true,
                        lives,
                    });
                }
                if session.ended.is_some() {
                    continue;
                }
            }
            let Some(found) = found else {
                let floors: Vec<Floor> = session.writes.iter().filter_map(|w| w.floor).collect();
                let must = floors.iter().any(|floor| !floor.excused(&lives));
                match (session.doubt, must) {
                    (false, true) => verdict.broken.push(Broken::Lost(say(session))),
                    (false, false) if !floors.is_empty() => verdict.excused += 1,
                    _ => {}
                }
                if !floors.is_empty() {
                    // Not again in the next round.
                    session.writes.clear();
                    session.doubt = true;
                }
                continue;
            };
            verdict.live += 1;
            let same = copies.iter().all(|(_, route)| *route == found);
            if !same || copies.len() != wanted {
                verdict.broken.push(Broken::Differs(say(session)));
                continue;
            }
            if !session.may_be_at(found, &lives) {
                verdict.broken.push(Broken::Lost(say(session)));
            }
            // A write that nobody acknowledged may be done late, as long as it is tried.
            let late = session.round == round && session.writes.iter().any(|w| w.floor.is_none());
            let base = Write {
                route: found,
                floor: Some(Floor {
                    nodes: wanted as u8,
                    all: true,
                    lives,
                }),
                everywhere: true,
            };
            session.writes.retain(|write| late && write.floor.is_none());
            session.writes.insert(0, base);
            if !session.idle {
                // Nobody knew whether it is there.
                session.idle = true;
                self.idle.push(number);
            }
        }
        self.round += 1;
        // What is not there is of no more use.
        let sessions = &self.sessions;
        self.idle
            .retain(|&number| !sessions[number as usize].writes.is_empty());
        verdict
    }
}

impl Session {
    /// Whether this may be the outcome of all writes.
    fn may_be_at(&self, route: u8, lives: &Lives) -> bool {
        for (at, write) in self.writes.iter().enumerate().rev() {
            if write.route == route {
                return true;
            }
            let kept = write.floor.is_some_and(|floor| !floor.excused(lives));
            if kept && self.writes[..at].iter().all(|before| before.everywhere) {
                return false;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
