//! `learn`: a cookie of the application, remembered when a backend sets it.
//!
//! Only what a backend set is remembered: what browsers send can't fill the table. A value
//! that is not known (this node was restarted, or another node saw it being set and the pool
//! has no group) goes where the rendezvous of its stable hash points, so its requests stay
//! together everywhere.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::header::{DATE, HeaderMap, SET_COOKIE};
use smallvec::SmallVec;

use super::super::balance::{PoolView, Session, SessionKey, Target, Wish, hash};
use super::shared::{self, digest};
use super::table::Bounds;
use super::{Affinity, Binding, Kind, cookies};
use crate::model::http::StickyLearn;
use crate::session::handle::Held;

fn bounds(view: &PoolView, config: &StickyLearn) -> Bounds {
    Bounds {
        entries: view.learned_max,
        idle: Some(
            u32::try_from(config.idle.max(Duration::from_secs(1)).as_secs()).unwrap_or(u32::MAX),
        ),
    }
}

pub(super) fn read(view: &PoolView, config: &StickyLearn, headers: &HeaderMap) -> Affinity {
    let mut first = None;
    let mut found = None;
    for value in cookies::values(headers, &config.cookie) {
        let digest = digest(view, value);
        if let Some(backend) = shared::known(view, digest, bounds(view, config)) {
            found = Some((value, digest, Some(backend)));
            break;
        }
        first.get_or_insert((value, digest, None));
    }
    let Some((value, digest, backend)) = found.or(first) else {
        return Affinity::default();
    };
    let targets: SmallVec<[Target; 4]> = backend
        .and_then(|hash| view.by_hash(hash))
        .map(|i| Target::Backend(i as u32))
        .into_iter()
        .collect();
    Affinity {
        wish: Wish::Session(Session {
            force: config.force && !targets.is_empty(),
            targets,
            key: SessionKey::Number(hash::text(value)),
        }),
        kind: Kind::Learn(Binding {
            digest,
            known: backend.is_some(),
        }),
    }
}

/// What a response waits for that waits for both.
fn both(one: Option<Held>, other: Option<Held>) -> Option<Held> {
    match one {
        Some(held) => Some(held.with(other)),
        None => other,
    }
}

pub(super) fn rewrite_response(
    view: &PoolView,
    config: &StickyLearn,
    affinity: &Affinity,
    chosen: usize,
    headers: &HeaderMap,
) -> Option<Held> {
    let bounds = bounds(view, config);
    let asked = match affinity.kind {
        Kind::Learn(learned) => Some(learned),
        _ => None,
    };
    let mut held = None;
    let mut set = false;
    for field in headers.get_all(SET_COOKIE) {
        let Some(cookie) = cookies::set_cookie(field.as_bytes(), &config.cookie) else {
            continue;
        };
        set = true;
        if cookie.value.is_empty() || cookie.deletes(headers.get(DATE)) {
            let named = (!cookie.value.is_empty()).then(|| digest(view, cookie.value));
            let asked = asked.map(|asked| asked.digest);
            for gone in named.into_iter().chain(asked.filter(|a| Some(*a) != named)) {
                held = both(shared::forget(view, gone), held);
            }
            continue;
        }
        held = both(
            shared::bind(view, digest(view, cookie.value), chosen, bounds),
            held,
        );
    }
    if let Some(asked) = asked.filter(|a| a.known && !set)
        && !affinity.names(chosen)
    {
        view.live.sticky.rebound.fetch_add(1, Relaxed);
        held = shared::bind(view, asked.digest, chosen, bounds);
    }
    held
}
