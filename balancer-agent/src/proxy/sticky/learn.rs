//! `learn`: a cookie of the application, remembered when a backend sets it.
//!
//! Only what a backend set is remembered: what browsers send can't fill the table. A value
//! that is not known (this node was restarted, or another node saw it being set) goes where
//! the rendezvous of its stable hash points, so its requests stay together everywhere.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::header::{DATE, HeaderMap, SET_COOKIE};
use smallvec::SmallVec;

use super::super::balance::{PoolView, Session, SessionKey, Target, Wish, hash};
use super::table::{Bounds, Fingerprint};
use super::{Affinity, Kind, cookies, seconds};
use crate::model::http::StickyLearn;

/// Which value of the cookie a request's binding is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Learned {
    print: Fingerprint,
    /// It was known; its backend may be gone.
    known: bool,
}

fn bounds(view: &PoolView, config: &StickyLearn) -> Bounds {
    Bounds {
        entries: view.learned_max,
        idle: Some(
            u32::try_from(config.idle.max(Duration::from_secs(1)).as_secs()).unwrap_or(u32::MAX),
        ),
    }
}

pub(super) fn read(view: &PoolView, config: &StickyLearn, headers: &HeaderMap) -> Affinity {
    let memory = &view.live.sticky;
    let mut first = None;
    let mut found = None;
    for value in cookies::values(headers, &config.cookie) {
        let print = memory.prints.of(value);
        let backend = memory.bindings.get(print, bounds(view, config), seconds());
        if let Some(backend) = backend {
            found = Some((value, print, Some(backend)));
            break;
        }
        first.get_or_insert((value, print, None));
    }
    let Some((value, print, backend)) = found.or(first) else {
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
        kind: Kind::Learn(Learned {
            print,
            known: backend.is_some(),
        }),
    }
}

pub(super) fn rewrite_response(
    view: &PoolView,
    config: &StickyLearn,
    affinity: &Affinity,
    chosen: usize,
    headers: &HeaderMap,
) {
    let memory = &view.live.sticky;
    let backend = view.backends[chosen].hash;
    let asked = match affinity.kind {
        Kind::Learn(learned) => Some(learned),
        _ => None,
    };
    let mut set = false;
    for field in headers.get_all(SET_COOKIE) {
        let Some(cookie) = cookies::set_cookie(field.as_bytes(), &config.cookie) else {
            continue;
        };
        set = true;
        let print = memory.prints.of(cookie.value);
        if cookie.value.is_empty() || cookie.deletes(headers.get(DATE)) {
            memory.bindings.remove(print);
            if let Some(asked) = asked {
                memory.bindings.remove(asked.print);
            }
            continue;
        }
        memory
            .bindings
            .put(print, backend, bounds(view, config), seconds());
    }
    if let Some(asked) = asked.filter(|a| a.known && !set)
        && !affinity.names(chosen)
    {
        memory.rebound.fetch_add(1, Relaxed);
        memory
            .bindings
            .put(asked.print, backend, bounds(view, config), seconds());
    }
}
