//! `route`, with a group: its sessions are known to all nodes, with what their backend put
//! after the id when it issued it.
//!
//! The browser's id names a backend itself, so a session that stays where it began needs
//! nobody's word. What other nodes have to know is what a failover changes: the backend, and
//! the id as that backend is to see it. A session is made in the store when a backend issues
//! its id, or when it fails over, and its data are these few bytes:
//!
//! | first byte | the rest |
//! |---|---|
//! | 0 | the id was issued without suffix, by the backend with this route |
//! | 1 | the id was issued with this suffix |
//!
//! Where id and table name different backends, one of them is old, and the store is asked.
//! The id is old when it names the backend that issued it: its browser has not heard of the
//! failover, as the response that told it was lost, or it asked at the same moment. Otherwise
//! the id is newer than the store, which is set right when the backend has answered.

use smallvec::SmallVec;

use super::super::balance::{PoolView, SessionKey, Target, Wish, hash};
use super::memory::Issued;
use super::route::{ID_MAX, split, target};
use super::shared::{self, Digest};
use super::{Affinity, Kind, seconds};
use crate::session::Session;

const BARE: u8 = 0;
const SUFFIX: u8 = 1;
/// Longest suffix that other nodes are told, in bytes. The store's watchers are given data
/// up to [`crate::session::WATCHED_DATA`].
const SUFFIX_MAX: usize = 255;
const _: () = assert!(SUFFIX_MAX < crate::session::WATCHED_DATA);

/// What is known of a request's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Together {
    pub digest: Digest,
    /// There is such a session, and nobody needs to be asked for it.
    pub known: bool,
    /// Stable hash of the route that it is bound to.
    pub bound: Option<u64>,
    /// The backend that it is bound to, where the browser's ids name none or another one.
    pub followed: Option<u32>,
}

/// What the table knows of the session that leads; its backend is put before the others that
/// the request's ids name, where they are silent about it.
pub(super) fn read(
    view: &PoolView,
    lead: &[u8],
    targets: &mut SmallVec<[Target; 4]>,
) -> Option<Together> {
    let shared = view.shared.as_deref()?;
    let (base, suffix) = split(lead);
    if base.is_empty() || lead.len() > ID_MAX {
        return None;
    }
    let digest = shared.digest(base);
    let bound = shared::known(view, digest, shared.bounds(view));
    let mut together = Together {
        digest,
        known: bound.is_some(),
        bound,
        followed: None,
    };
    let place = bound.and_then(|hash| view.by_hash(hash));
    let place = place.map(|place| place as u32);
    match suffix.and_then(|suffix| target(view, suffix)) {
        // The store decides which of them is old.
        Some(Target::Backend(named)) => together.known &= place.is_none_or(|bound| bound == named),
        _ => together.followed = follow(targets, place),
    }
    Some(together)
}

/// Takes in what the store said of the session of a request.
pub(super) fn heard(view: &PoolView, affinity: &mut Affinity, session: &Session) {
    let (Wish::Session(wish), Kind::Route(found)) = (&mut affinity.wish, &mut affinity.kind) else {
        return;
    };
    let (Some(together), SessionKey::Text(lead)) = (&mut found.together, &wish.key) else {
        return;
    };
    learn(view, together.digest, session);
    let bound = hash::text(session.route.as_bytes());
    together.known = true;
    together.bound = Some(bound);
    let place = view.by_hash(bound).map(|place| place as u32);
    let suffix = split(lead).1;
    let old = match suffix.and_then(|suffix| target(view, suffix)) {
        Some(Target::Backend(named)) => {
            let issued = session.data.as_deref().and_then(decode);
            place != Some(named) && issued.is_some_and(|(_, home)| Some(home) == suffix)
        }
        _ => true,
    };
    if old {
        together.followed = follow(&mut wish.targets, place);
    }
}

/// Puts a backend before the others; which it is, if it was not among them.
fn follow(targets: &mut SmallVec<[Target; 4]>, place: Option<u32>) -> Option<u32> {
    let bound = Target::Backend(place?);
    let among = targets.iter().position(|target| *target == bound);
    if let Some(at) = among {
        targets.remove(at);
    }
    targets.insert(0, bound);
    if among.is_some() { None } else { place }
}

/// Remembers what follows the id where its backend issued it, as the store has it.
pub(super) fn learn(view: &PoolView, digest: Digest, session: &Session) {
    let Some((issued, _)) = session.data.as_deref().and_then(decode) else {
        return;
    };
    let ids = &view.live.sticky.ids;
    match &issued {
        Issued::Suffix(suffix) if **suffix == *session.route.as_bytes() => ids.remove(digest.print),
        _ => ids.put(digest.print, issued, shared::forever(view), seconds()),
    }
}

/// A session's data. `home` is the route of the backend that issued its id; nothing where
/// that can't be told.
pub(super) fn encode(issued: &Issued, home: &[u8]) -> Option<Box<[u8]>> {
    let (kind, rest) = match issued {
        Issued::Bare => (BARE, home),
        Issued::Suffix(suffix) => (SUFFIX, &**suffix),
    };
    (rest.len() <= SUFFIX_MAX).then(|| [&[kind], rest].concat().into())
}

/// What follows the id, and the suffix that its browser had first.
fn decode(data: &[u8]) -> Option<(Issued, &[u8])> {
    let (kind, rest) = data.split_first()?;
    match *kind {
        BARE => Some((Issued::Bare, rest)),
        SUFFIX => Some((Issued::Suffix(rest.into()), rest)),
        // A later build's: it is no worse than nothing.
        _ => None,
    }
}
