//! A pool as one snapshot sees it: backends with health and activation, who may take what,
//! and the order of turns. Immutable; a change of health makes a new one, which takes over
//! what is alive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock;
use super::hash::{self, Competitor};
use super::live::{BackendLive, PoolLive};
use crate::model::http::{BackendHttp, Observe, Sticky};
use crate::model::{Activation, Health, Pool};
use crate::proxy::sticky::{Prepared, Shared};
use crate::reconcile::ring;

/// A pool within a snapshot.
#[derive(Debug)]
pub struct PoolView {
    /// What the configuration says.
    pub pool: Arc<Pool>,
    /// In the order of the configuration; their places are what `index` means everywhere.
    pub backends: Vec<BackendView>,
    /// What threads and views share.
    pub live: Arc<PoolLive>,
    /// Bindings and translated ids that are remembered at most (`[http] learned_max`).
    pub learned_max: usize,
    /// What stickiness needs ready: keys, texts.
    pub(in crate::proxy) sticky: Prepared,
    /// Where its bindings are shared with other nodes.
    pub(in crate::proxy) shared: Option<Arc<Shared>>,
    /// Backends that take new sessions, by priority, best first; none is empty.
    pub(super) groups: Vec<Group>,
    /// Places of backends, by their routes.
    by_route: Vec<u32>,
    /// Domains.
    pub(super) domains: Vec<Domain>,
    /// Until when some backend's share grows.
    pub(super) warm_at: Option<Instant>,
}

/// A backend within a snapshot.
#[derive(Debug)]
pub struct BackendView {
    /// Unique in the pool.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// What the configuration says for HTTP.
    pub http: BackendHttp,
    /// 0 to 256; 0 gets no new sessions.
    pub weight: u16,
    /// What the checks found.
    pub health: Health,
    /// What the operator wants.
    pub activation: Activation,
    /// When it came up; `None` when it always was.
    pub up_since: Option<Instant>,
    /// What threads share.
    pub live: Arc<BackendLive>,
    /// Stable hash of its route.
    pub hash: u64,
    /// Place of the one that takes over.
    pub(super) redirect: Option<u32>,
    /// Its domain's place.
    pub(super) domain: Option<u32>,
}

/// Backends of one priority that take new sessions.
#[derive(Debug)]
pub(super) struct Group {
    /// Places, rising.
    pub members: Box<[u32]>,
    /// One cycle of turns, as places.
    pub ring: Box<[u32]>,
}

/// Backends that stand in for each other.
#[derive(Debug)]
pub(super) struct Domain {
    name: Arc<str>,
    /// Those that take new sessions, best priority first.
    pub members: Vec<u32>,
}

impl BackendView {
    /// Healthy and active, with a weight: for everybody.
    pub fn takes_new(&self) -> bool {
        self.takes_bound() && self.activation == Activation::Active && self.weight > 0
    }

    /// Healthy and not stopped: for sessions that are bound to it.
    pub fn takes_bound(&self) -> bool {
        self.health == Health::Up && self.activation != Activation::Stopped
    }
}

impl PoolView {
    /// Whether a request may be repeated because its backend went away before it answered;
    /// takes its price from the budget unless it only moves load.
    pub fn may_move(&self) -> bool {
        let backends = self.backends.iter();
        let in_flight = backends.map(|b| u64::from(b.live.in_flight())).sum();
        self.live.budget.moves(clock::now(), in_flight) || self.live.may_retry()
    }

    /// A view of `pool`. What is alive of `previous` is taken over: the pool's state, and of
    /// every backend with the same name and address its counters, ejection and start.
    ///
    /// Changes nothing that `previous` shows, so it may be made and thrown away.
    pub fn new(
        pool: &Arc<Pool>,
        previous: Option<&Self>,
        learned_max: usize,
        state: &dyn Fn(&str) -> (Health, Activation),
        now: Instant,
    ) -> Self {
        let before = |name: &str, address| {
            let mut all = previous.iter().flat_map(|p| &p.backends);
            all.find(|b| *b.name == *name && b.address == address)
        };
        let mut domains: Vec<Domain> = Vec::new();
        let mut backends: Vec<BackendView> = Vec::with_capacity(pool.backends.len());
        for backend in &pool.backends {
            let (health, activation) = state(&backend.name);
            let known = before(&backend.name, backend.address);
            let up_since = match known {
                Some(known) if known.health == Health::Up => known.up_since,
                // At the very start all are as they are; nobody has to be spared.
                None if previous.is_none() => None,
                _ => (health == Health::Up).then_some(now),
            };
            let domain = backend.http.domain.as_ref().map(|name| {
                let known = domains.iter().position(|d| d.name == *name);
                known.unwrap_or_else(|| {
                    domains.push(Domain {
                        name: Arc::clone(name),
                        members: Vec::new(),
                    });
                    domains.len() - 1
                }) as u32
            });
            let live = match known {
                Some(known) => Arc::clone(&known.live),
                None => Arc::new(BackendLive::new(Arc::clone(&backend.name), backend.address)),
            };
            backends.push(BackendView {
                name: Arc::clone(&backend.name),
                address: backend.address,
                http: backend.http.clone(),
                weight: backend.weight,
                health,
                activation,
                up_since,
                live,
                hash: hash::text(backend.http.route.as_bytes()),
                redirect: None,
                domain,
            });
        }
        let mut by_route: Vec<u32> = (0..backends.len() as u32).collect();
        by_route.sort_by(|&a, &b| {
            let route = |i: u32| &backends[i as usize].http.route;
            route(a).cmp(route(b))
        });
        for i in 0..backends.len() {
            let redirect = backends[i].http.redirect.clone();
            backends[i].redirect =
                redirect.and_then(|route| find_route(&backends, &by_route, route.as_bytes()));
        }
        let mut open: Vec<u32> = (0..backends.len() as u32)
            .filter(|&i| backends[i as usize].takes_new())
            .collect();
        open.sort_by_key(|&i| (backends[i as usize].http.priority, i));
        for &i in &open {
            if let Some(domain) = backends[i as usize].domain {
                domains[domain as usize].members.push(i);
            }
        }
        let groups = open
            .chunk_by(|&a, &b| {
                backends[a as usize].http.priority == backends[b as usize].http.priority
            })
            .map(|members| Group::new(members, &backends))
            .collect();
        let warm_at = match pool.http.slow_start {
            Duration::ZERO => None,
            time => {
                let since = backends.iter().filter_map(|b| b.up_since).max();
                since.map(|since| since + time).filter(|&at| at > now)
            }
        };
        let sticky = match previous {
            Some(p) if Arc::ptr_eq(&p.pool, pool) => p.sticky.clone(),
            _ => Prepared::new(pool),
        };
        Self {
            pool: Arc::clone(pool),
            live: previous.map_or_else(Arc::default, |p| Arc::clone(&p.live)),
            learned_max,
            sticky,
            shared: None,
            backends,
            groups,
            by_route,
            domains,
            warm_at,
        }
    }

    /// The same, with bindings that are shared.
    #[must_use]
    pub(in crate::proxy) fn sharing(mut self, shared: Option<Arc<Shared>>) -> Self {
        self.shared = shared;
        self
    }

    /// The backend with exactly this route.
    pub fn by_route(&self, route: &[u8]) -> Option<usize> {
        find_route(&self.backends, &self.by_route, route).map(|i| i as usize)
    }

    /// The backend whose route has this stable hash.
    pub fn by_hash(&self, hash: u64) -> Option<usize> {
        self.backends.iter().position(|b| b.hash == hash)
    }

    /// The domain of this name.
    pub(in crate::proxy) fn domain(&self, name: &[u8]) -> Option<u32> {
        let found = self.domains.iter().position(|d| d.name.as_bytes() == name);
        found.map(|i| i as u32)
    }

    /// Name of a domain.
    pub(in crate::proxy) fn domain_name(&self, domain: u32) -> Option<&str> {
        self.domains.get(domain as usize).map(|d| &*d.name)
    }

    /// The pool's stickiness.
    pub fn stickiness(&self) -> Option<&Sticky> {
        self.pool.http.sticky.as_ref()
    }

    /// Whether any backend could take a new session now, observed failures aside.
    pub fn is_usable(&self) -> bool {
        !self.groups.is_empty()
    }

    pub(super) fn observe(&self) -> Option<&Observe> {
        self.pool.http.observe.as_ref()
    }

    /// A backend as a competitor for keys.
    pub(super) fn competitor(&self, index: u32) -> Competitor {
        let backend = &self.backends[index as usize];
        Competitor {
            index: index as usize,
            hash: backend.hash,
            weight: backend.weight,
        }
    }

    /// What slow start leaves of a backend's share at `now`, of 1024; at least 1.
    pub(super) fn share(&self, index: usize, now: Instant) -> u32 {
        let whole = self.pool.http.slow_start;
        let Some(since) = self.backends[index].up_since else {
            return 1024;
        };
        let gone = now.saturating_duration_since(since);
        if gone >= whole {
            return 1024;
        }
        // Below 1024, as `gone` is less than `whole`; which is not zero then.
        ((gone.as_nanos() * 1024 / whole.as_nanos()) as u32).max(1)
    }
}

fn find_route(backends: &[BackendView], by_route: &[u32], route: &[u8]) -> Option<u32> {
    let found = by_route.binary_search_by(|&i| {
        let own: &[u8] = backends[i as usize].http.route.as_bytes();
        own.cmp(route)
    });
    found.ok().map(|at| by_route[at])
}

impl Group {
    /// `members` is not empty, and all have a weight.
    fn new(members: &[u32], backends: &[BackendView]) -> Self {
        let weights: Vec<u16> = members
            .iter()
            .map(|&i| backends[i as usize].weight)
            .collect();
        let turns = turns(weights);
        Self {
            members: members.into(),
            ring: turns.into_iter().map(|at| members[at as usize]).collect(),
        }
    }
}

/// One cycle of turns. Weights whose cycle would be too long are halved until it is not;
/// nobody falls below 1.
fn turns(mut weights: Vec<u16>) -> Vec<u32> {
    loop {
        if let Some(turns) = ring::sequence(&weights) {
            return turns;
        }
        if weights.iter().all(|&w| w <= 1) {
            // More backends than a ring has slots: in order.
            return (0..weights.len() as u32).collect();
        }
        for weight in &mut weights {
            *weight = (*weight / 2).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::turns;

    #[test]
    fn a_cycle_that_is_too_long_keeps_its_proportions() {
        let mut weights = vec![256; 300];
        weights[0] = 128;
        weights[1] = 255;
        let ring = turns(weights);
        assert!(ring.len() <= 65_536);
        let count = |i| ring.iter().filter(|&&x| x == i).count();
        assert_eq!(count(0) * 2, count(2));
        assert!(count(1).abs_diff(count(2)) <= 1);
    }
}
