//! A pool's bindings as sessions of a group: every node that has the pool knows them.
//!
//! The pool's own table stays what requests look at. A binding that is made or moved here
//! goes to the store, and what the store tells comes into the table. Only a request whose
//! session the table does not know waits for the store, for a bounded time.
//!
//! No session id leaves the node that saw it: the store has keyed hashes, which are the
//! same on every node of the cluster and tell nobody else anything.

use std::hash::Hasher as _;
use std::net::IpAddr;
use std::time::Duration;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::super::balance::{PoolView, Session, SessionKey, Target, Wish, hash};
use super::memory::Bound;
use super::table::{Bounds, Fingerprint};
use super::{Affinity, Kind, route, seconds, together};
use crate::model::Pool;
use crate::model::http::Sticky;
use crate::session::handle::{Held, Sessions};
use crate::session::{Change, GroupId, group_key};

/// How long a request waits for the store to find its session. A healthy store answers
/// within a round trip to a peer; when the node that is asked first has just died, the next
/// is asked after 200 ms.
const LOOKUP: Duration = Duration::from_millis(400);
/// An access is told to the store when the last is as long ago, in seconds; and so long a
/// node that does not hold a session may not know that it has moved or ended.
const TOLD: u32 = 5;
/// Values that are remembered as unknown to the store, and for how long in seconds: what
/// only browsers say must not ask other nodes with every request.
const UNKNOWN: Bounds = Bounds {
    entries: 4_096,
    idle: None,
};
const UNKNOWN_FOR: u32 = 5;
/// Length of an id in the store: the pool's key, and the digest.
const ID: usize = 4 + 16;

/// What a pool needs to have its bindings in the store.
#[derive(Debug)]
pub(in crate::proxy) struct Shared {
    sessions: Sessions,
    group: GroupId,
    pool: u32,
    ttl: Duration,
}

/// A keyed hash of what a binding is under, the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    /// What this node's table has it under.
    pub print: Fingerprint,
    rest: u64,
}

/// What the store has the value of a pool's cookie under. `key` is the cluster's.
pub fn id_of_value(key: [u64; 2], pool: &str, value: &[u8]) -> [u8; ID] {
    let pool = group_key(pool);
    Digest::of(key, pool, value).id(pool)
}

impl Digest {
    fn of([low, high]: [u64; 2], pool: u32, value: &[u8]) -> Self {
        let mut hasher = SipHasher13::new_with_keys(low, high ^ u64::from(pool));
        hasher.write(value);
        let hash = hasher.finish128();
        Self {
            print: Fingerprint::of_hash(hash.h1),
            rest: hash.h2,
        }
    }

    fn id(self, pool: u32) -> [u8; ID] {
        let mut id = [0; ID];
        id[..4].copy_from_slice(&pool.to_be_bytes());
        id[4..12].copy_from_slice(&self.print.hash().to_be_bytes());
        id[12..].copy_from_slice(&self.rest.to_be_bytes());
        id
    }

    /// Of a pool whose bindings are this node's alone.
    pub fn own(print: Fingerprint) -> Self {
        Self { print, rest: 0 }
    }
}

impl Shared {
    /// For a pool whose bindings are sessions of a group.
    pub fn new(sessions: Option<&Sessions>, pool: &Pool) -> Option<Self> {
        let (sessions, config) = (sessions?, pool.http.sessions.as_ref()?);
        Some(Self {
            sessions: sessions.clone(),
            group: sessions.by_name(&config.group)?,
            pool: group_key(&pool.name),
            ttl: config.ttl,
        })
    }

    /// Of a cookie's value, or a client's address.
    pub(super) fn digest(&self, value: &[u8]) -> Digest {
        Digest::of(self.sessions.id_key(), self.pool, value)
    }

    fn id(&self, digest: Digest) -> [u8; ID] {
        digest.id(self.pool)
    }

    /// The group, and what the store has a client's cookie value or address under.
    pub fn id_of(&self, config: &Sticky, said: &str) -> Option<(GroupId, Vec<u8>)> {
        let digest = match config {
            Sticky::Source {
                ipv4_prefix,
                ipv6_prefix,
            } => self.digest_of(said.parse().ok()?, *ipv4_prefix, *ipv6_prefix),
            Sticky::Route(_) => self.digest(route::split(said.as_bytes()).0),
            _ => self.digest(said.as_bytes()),
        };
        Some((self.group, self.id(digest).to_vec()))
    }

    fn digest_of(&self, client: IpAddr, ipv4_prefix: u8, ipv6_prefix: u8) -> Digest {
        let masked = crate::model::http::masked(client.to_canonical(), ipv4_prefix, ipv6_prefix);
        match masked.to_canonical() {
            IpAddr::V4(v4) => self.digest(&v4.octets()),
            IpAddr::V6(v6) => self.digest(&v6.octets()),
        }
    }

    pub(super) fn bounds(&self, view: &PoolView) -> Bounds {
        Bounds {
            entries: view.learned_max,
            idle: Some(u32::try_from(self.ttl.as_secs().max(1)).unwrap_or(u32::MAX)),
        }
    }

    /// Whether a change is about this pool.
    pub fn is_of(&self, change: &Change) -> bool {
        change.group == self.group
            && change.id.len() == ID
            && change.id[..4] == self.pool.to_be_bytes()
    }
}

/// The pool that a session's id is of, by [`group_key`]; nothing for ids of other makers.
pub fn pool_of(id: &[u8]) -> Option<u32> {
    let id: &[u8; ID] = id.try_into().ok()?;
    Some(u32::from_be_bytes([id[0], id[1], id[2], id[3]]))
}

/// What the table knows. Says so to the store now and then, which mends what is old here.
pub(super) fn known(view: &PoolView, digest: Digest, bounds: Bounds) -> Option<u64> {
    let now = seconds();
    let bindings = &view.live.sticky.bindings;
    let shared = view.shared.as_deref();
    let (backend, due) = bindings.visit(digest.print, bounds, now, |bound| {
        let due = shared.is_some_and(|shared| {
            let ttl = u32::try_from(shared.ttl.as_secs() / 8).unwrap_or(u32::MAX);
            now.saturating_sub(bound.told) >= ttl.clamp(1, TOLD)
        });
        if due {
            bound.told = now;
        }
        (bound.backend, due)
    })?;
    if let (true, Some(shared)) = (due, shared) {
        shared.sessions.touch(shared.group, &shared.id(digest));
    }
    Some(backend)
}

/// Remembers a binding, and has the store do so if it is news.
pub(super) fn bind(view: &PoolView, digest: Digest, chosen: usize, bounds: Bounds) -> Option<Held> {
    let now = seconds();
    let backend = view.backends[chosen].hash;
    let bindings = &view.live.sticky.bindings;
    let Some(shared) = view.shared.as_deref() else {
        bindings.put(digest.print, Bound { backend, told: now }, bounds, now);
        return None;
    };
    let before = bindings.visit(digest.print, bounds, now, |bound| {
        std::mem::replace(&mut bound.backend, backend)
    });
    if before == Some(backend) {
        return None;
    }
    let (id, route) = (shared.id(digest), &view.backends[chosen].http.route);
    if before.is_some() {
        return shared.sessions.rebind(shared.group, &id, route);
    }
    bindings.put(digest.print, Bound { backend, told: now }, bounds, now);
    shared.sessions.bind(shared.group, &id, route, shared.ttl)
}

/// Notes who has a session that a backend issued, or issued `anew`, with its data.
pub(super) fn issue(
    view: &PoolView,
    digest: Digest,
    chosen: usize,
    data: Option<Box<[u8]>>,
    anew: bool,
) -> Option<Held> {
    let shared = view.shared.as_deref()?;
    if set_backend(view, shared, digest, chosen) && !anew {
        return None;
    }
    let (id, route) = (shared.id(digest), &view.backends[chosen].http.route);
    let sessions = &shared.sessions;
    sessions.put(shared.group, &id, route, shared.ttl, Some(data?))
}

/// Notes who has a session now that another backend, or this one, had before. `data` are
/// those of one that the store does not know.
pub(super) fn move_to(
    view: &PoolView,
    digest: Digest,
    chosen: usize,
    known: bool,
    data: impl FnOnce() -> Option<Box<[u8]>>,
) -> Option<Held> {
    let shared = view.shared.as_deref()?;
    if set_backend(view, shared, digest, chosen) {
        return None;
    }
    let (id, route) = (shared.id(digest), &view.backends[chosen].http.route);
    let (sessions, group) = (&shared.sessions, shared.group);
    match known {
        true => sessions.rebind(group, &id, route),
        false => sessions.put(group, &id, route, shared.ttl, Some(data()?)),
    }
}

/// Has the table name a backend; whether it did before.
fn set_backend(view: &PoolView, shared: &Shared, digest: Digest, chosen: usize) -> bool {
    let (now, bounds) = (seconds(), shared.bounds(view));
    let backend = view.backends[chosen].hash;
    let bindings = &view.live.sticky.bindings;
    let before = bindings.visit(digest.print, bounds, now, |bound| {
        std::mem::replace(&mut bound.backend, backend)
    });
    if before.is_none() {
        bindings.put(digest.print, Bound { backend, told: now }, bounds, now);
    }
    before == Some(backend)
}

/// What a value is remembered under.
pub(super) fn digest(view: &PoolView, value: &[u8]) -> Digest {
    match view.shared.as_deref() {
        Some(shared) => shared.digest(value),
        None => Digest::own(view.live.sticky.prints.of(value)),
    }
}

/// Bounds of what has no time to live.
pub(super) fn forever(view: &PoolView) -> Bounds {
    Bounds {
        entries: view.learned_max,
        idle: None,
    }
}

/// Forgets a binding, everywhere.
pub(super) fn forget(view: &PoolView, digest: Digest) -> Option<Held> {
    view.live.sticky.bindings.remove(digest.print);
    let shared = view.shared.as_deref()?;
    shared.sessions.delete(shared.group, &shared.id(digest))
}

impl Affinity {
    /// Whether the store may know of a session that this node does not know.
    pub fn asks(&self, view: &PoolView) -> bool {
        view.shared.is_some() && self.unknown().is_some()
    }

    fn unknown(&self) -> Option<Digest> {
        match self.kind {
            Kind::Learn(bound) | Kind::Source(bound) if !bound.known => Some(bound.digest),
            Kind::Route(ref found) => {
                let together = found.together.as_ref().filter(|found| !found.known);
                together.map(|found| found.digest)
            }
            _ => None,
        }
    }
}

/// Asks the store for the session of a request that [`Affinity::asks`].
pub async fn ask(view: &PoolView, affinity: &mut Affinity) {
    let (Some(shared), Some(digest)) = (view.shared.as_deref(), affinity.unknown()) else {
        return;
    };
    let memory = &view.live.sticky;
    let asked = memory.unknown.get(digest.print, UNKNOWN, seconds());
    if asked.is_some_and(|asked| seconds().saturating_sub(asked) < UNKNOWN_FOR) {
        return;
    }
    let id = shared.id(digest);
    let found = shared.sessions.find(shared.group, &id, LOOKUP);
    let found = match found.await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let now = seconds();
            memory.unknown.put(digest.print, now, UNKNOWN, now);
            // What the table may have had was old.
            memory.bindings.remove(digest.print);
            return;
        }
        // Another request may be luckier.
        Err(_) => return,
    };
    let backend = hash::text(found.route.as_bytes());
    let bound = Bound {
        backend,
        told: seconds(),
    };
    let bounds = shared.bounds(view);
    memory.bindings.put(digest.print, bound, bounds, seconds());
    match &mut affinity.kind {
        Kind::Learn(bound) | Kind::Source(bound) => bound.known = true,
        Kind::Route(_) => return together::heard(view, affinity, &found),
        Kind::None | Kind::Cookie { .. } => return,
    }
    affinity.wish = bound_to(view, Some(backend), &affinity.wish);
}

/// What a request with a binding wishes for, that was `before` without one.
fn bound_to(view: &PoolView, backend: Option<u64>, before: &Wish) -> Wish {
    let key = match before {
        Wish::Session(session) => session.key.clone(),
        Wish::Key(key) => SessionKey::Number(*key),
        Wish::Any => return Wish::Any,
    };
    let targets: smallvec::SmallVec<[Target; 4]> = backend
        .and_then(|hash| view.by_hash(hash))
        .map(|i| Target::Backend(i as u32))
        .into_iter()
        .collect();
    let force = matches!(view.stickiness(), Some(Sticky::Learn(learn)) if learn.force);
    Wish::Session(Session {
        force: force && !targets.is_empty(),
        targets,
        key,
    })
}

/// `source`, of a pool with a group.
pub(super) fn read_source(
    view: &PoolView,
    shared: &Shared,
    client: IpAddr,
    (ipv4_prefix, ipv6_prefix): (u8, u8),
    wish: Wish,
) -> Affinity {
    let digest = shared.digest_of(client, ipv4_prefix, ipv6_prefix);
    let backend = known(view, digest, shared.bounds(view));
    Affinity {
        wish: match backend {
            Some(_) => bound_to(view, backend, &wish),
            None => wish,
        },
        kind: Kind::Source(super::Binding {
            digest,
            known: backend.is_some(),
        }),
    }
}

/// What follows a response to a request of `source`: whoever answered has the client now.
pub(super) fn answered_source(view: &PoolView, affinity: &Affinity, chosen: usize) -> Option<Held> {
    let (Some(shared), Kind::Source(bound)) = (view.shared.as_deref(), &affinity.kind) else {
        return None;
    };
    if bound.known && affinity.names(chosen) {
        return None;
    }
    if bound.known {
        let rebound = &view.live.sticky.rebound;
        rebound.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    bind(view, bound.digest, chosen, shared.bounds(view))
}

/// Takes in what the store tells of a session of this pool.
pub(in crate::proxy) fn apply(view: &PoolView, change: &Change) {
    let Some(shared) = view.shared.as_deref().filter(|s| s.is_of(change)) else {
        return;
    };
    let part = |from: usize| {
        let mut part = [0; 8];
        part.copy_from_slice(&change.id[from..from + 8]);
        u64::from_be_bytes(part)
    };
    let digest = Digest {
        print: Fingerprint::of_hash(part(4)),
        rest: part(12),
    };
    let print = digest.print;
    let bindings = &view.live.sticky.bindings;
    let Some(session) = &change.session else {
        bindings.remove(print);
        return;
    };
    let now = seconds();
    let idle = u32::try_from(session.idle / 1_000).unwrap_or(u32::MAX);
    let bound = Bound {
        backend: hash::text(session.route.as_bytes()),
        told: now,
    };
    bindings.put(print, bound, shared.bounds(view), now.saturating_sub(idle));
    if let Some(Sticky::Route(_)) = view.stickiness() {
        together::learn(view, digest, session);
    }
}
