//! Who a request is for: the deciding part, without waiting and without taking a place.
//!
//! Order of resort, each only when the one before finds nobody:
//! 1. whom the session names, by the rules of the reference (`redirect`, `domain`, `force`);
//! 2. those who take new sessions: best priority first; for a session, the rendezvous winner
//!    of its key, so that every node chooses alike;
//! 3. both again, with those that this request has tried;
//! 4. both again, with those that observed failures have ejected and that were not tried
//!    (the reference's "one forced retry of the members in error").

use std::cell::Cell;

use super::clock;
use super::hash;
use super::lease::NoBackend;
use super::view::{Group, PoolView};
use super::wish::{Session, Target, Wish};

/// Whom a request is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aim<'a> {
    /// This backend and no other.
    One(usize),
    /// One of the group, by the pool's policy.
    Group(&'a Group, Lenience),
}

/// What is overlooked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lenience {
    /// That the request was there already.
    pub tried: bool,
    /// That observed failures have ejected it.
    pub ejected: bool,
}

const RESORTS: [Lenience; 3] = [
    Lenience {
        tried: false,
        ejected: false,
    },
    Lenience {
        tried: true,
        ejected: false,
    },
    Lenience {
        tried: false,
        ejected: true,
    },
];

/// What is usable for one request, at one moment.
pub(super) struct Usable<'a> {
    view: &'a PoolView,
    tried: &'a [usize],
    /// The clock is read only when a backend is ejected, and once.
    now: Cell<u64>,
    panic: Cell<Option<bool>>,
}

impl<'a> Usable<'a> {
    pub fn new(view: &'a PoolView, tried: &'a [usize]) -> Self {
        Self {
            view,
            tried,
            now: Cell::new(0),
            panic: Cell::new(None),
        }
    }

    /// As [`Self::new`], at a given moment of [`clock`].
    #[cfg(test)]
    pub fn at(view: &'a PoolView, tried: &'a [usize], now: u64) -> Self {
        let usable = Self::new(view, tried);
        usable.now.set(now);
        usable
    }

    pub fn now(&self) -> u64 {
        if self.now.get() == 0 {
            self.now.set(clock::now());
        }
        self.now.get()
    }

    fn ejected(&self, index: usize) -> bool {
        let until = self.view.backends[index].live.ejected_until();
        until != 0 && self.now() < until
    }

    /// Whether so many are ejected that it must be the judge who is wrong.
    pub fn panics(&self) -> bool {
        if let Some(panic) = self.panic.get() {
            return panic;
        }
        let (mut all, mut out) = (0, 0);
        for &index in self.view.groups.iter().flat_map(|g| &*g.members) {
            all += 1;
            out += usize::from(self.ejected(index as usize));
        }
        let threshold = usize::from(self.view.pool.http.panic_threshold);
        let panic = (all - out) * 100 < threshold * all;
        self.panic.set(Some(panic));
        panic
    }

    fn admits(&self, index: usize, lenience: Lenience) -> bool {
        (lenience.tried || !self.tried.contains(&index))
            && (lenience.ejected
                || self.view.observe().is_none()
                || !self.ejected(index)
                || self.panics())
    }

    /// For a session that is bound to it.
    fn bound(&self, index: usize, lenience: Lenience) -> bool {
        self.view.backends[index].takes_bound() && self.admits(index, lenience)
    }

    /// For everybody. `index` is of a group or a domain, where only those are who take new
    /// sessions by health and activation.
    pub fn fresh(&self, index: usize, lenience: Lenience) -> bool {
        self.admits(index, lenience)
    }

    /// The best of a domain for this session.
    fn of_domain(&self, domain: u32, session: &Session, lenience: Lenience) -> Option<usize> {
        let members = &self.view.domains.get(domain as usize)?.members;
        let priority = |i: u32| self.view.backends[i as usize].http.priority;
        let mut usable = members
            .iter()
            .copied()
            .filter(|&i| self.fresh(i as usize, lenience))
            .peekable();
        let best = priority(*usable.peek()?);
        let best = usable.take_while(|&i| priority(i) == best);
        hash::rendezvous(session.key.number(), best.map(|i| self.view.competitor(i)))
    }

    /// Whom the session names, or who stands in for it.
    fn named(&self, session: &Session, lenience: Lenience) -> Option<usize> {
        // With force there is nobody else, so having tried is no reason against.
        let lenience = Lenience {
            tried: lenience.tried || (session.force && !lenience.ejected),
            ..lenience
        };
        session.targets.iter().find_map(|&target| {
            let index = match target {
                Target::Domain(domain) => return self.of_domain(domain, session, lenience),
                Target::Backend(index) => index as usize,
            };
            let backend = self.view.backends.get(index)?;
            if self.bound(index, lenience) {
                return Some(index);
            }
            if session.force {
                return None;
            }
            match (backend.redirect, backend.domain) {
                (Some(other), _) => {
                    let other = other as usize;
                    self.bound(other, lenience).then_some(other)
                }
                (None, Some(domain)) => self.of_domain(domain, session, lenience),
                (None, None) => None,
            }
        })
    }

    /// The best group with somebody usable.
    fn group(&self, lenience: Lenience) -> Option<&'a Group> {
        self.view.groups.iter().find(|group| {
            let mut members = group.members.iter();
            members.any(|&i| self.fresh(i as usize, lenience))
        })
    }

    /// Who wins a key among those of the best group.
    fn winner(&self, key: u64, lenience: Lenience) -> Option<usize> {
        let group = self.group(lenience)?;
        let usable = group.members.iter().copied();
        let usable = usable.filter(|&i| self.fresh(i as usize, lenience));
        hash::rendezvous(key, usable.map(|i| self.view.competitor(i)))
    }

    /// Whom the request is for. `source` is the client's key where the policy is `source`.
    pub fn aim(&self, wish: &Wish, source: Option<u64>) -> Result<Aim<'a>, NoBackend> {
        for lenience in RESORTS {
            let key = match wish {
                Wish::Session(session) => {
                    if let Some(index) = self.named(session, lenience) {
                        return Ok(Aim::One(index));
                    }
                    if session.force {
                        continue;
                    }
                    Some(session.key.number())
                }
                Wish::Key(key) => Some(*key),
                Wish::Any => source,
            };
            let aim = match key {
                Some(key) => self.winner(key, lenience).map(Aim::One),
                None => self.group(lenience).map(|g| Aim::Group(g, lenience)),
            };
            if let Some(aim) = aim {
                return Ok(aim);
            }
        }
        match wish {
            Wish::Session(session) if session.force => Err(NoBackend::Forced),
            _ => Err(NoBackend::NoneUsable),
        }
    }
}
