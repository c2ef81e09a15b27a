//! `cookie`: a cookie of the balancer's own, which backends never see.
//!
//! It is set only when the browser has none that is valid for the backend that answered.
//! The response then also says `Cache-Control: private`, unless it forbids shared caches
//! to keep it already: a cache that gave one browser's binding to all others would send
//! them all to one backend. (HAProxy does so with `nocache`.)
//!
//! A backend's cookie of the same name can't work and is taken out of its responses.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, SET_COOKIE};
use rand::Rng;

use super::super::balance::{PoolView, Session, SessionKey, Target, Wish};
use super::seal::Sealer;
use super::{Affinity, Kind, cookies};
use crate::model::Pool;
use crate::model::http::{CookieAttributes, SameSite, StickyCookie};

/// Values of the cookie's name that are tried: a check costs half a microsecond, and
/// browsers have one.
const TRIED_MAX: usize = 4;

/// What is ready for a pool.
#[derive(Debug)]
pub(super) struct Inserted {
    sealer: Option<Sealer>,
    /// `; Path=/; ...`
    attributes: String,
}

impl Inserted {
    pub fn new(pool: &Pool, cookie: &StickyCookie) -> Self {
        let sealer = Sealer::new(&cookie.value, &pool.name, &cookie.name);
        if sealer.is_none() {
            tracing::error!(pool = %pool.name, "the key of the sticky cookie is not usable; the pool works without stickiness");
        }
        Self {
            sealer,
            attributes: attributes(&cookie.attributes),
        }
    }
}

fn attributes(from: &CookieAttributes) -> String {
    let mut text = format!("; Path={}", from.path);
    if let Some(domain) = &from.domain {
        let _ = write!(text, "; Domain={domain}");
    }
    if let Some(age) = from.max_age {
        let _ = write!(text, "; Max-Age={}", age.as_secs());
    }
    if from.secure {
        text.push_str("; Secure");
    }
    if from.http_only {
        text.push_str("; HttpOnly");
    }
    match from.same_site {
        Some(SameSite::Lax) => text.push_str("; SameSite=Lax"),
        Some(SameSite::Strict) => text.push_str("; SameSite=Strict"),
        Some(SameSite::None) => text.push_str("; SameSite=None"),
        None => {}
    }
    if from.partitioned {
        text.push_str("; Partitioned");
    }
    text
}

pub(super) fn read(
    view: &PoolView,
    config: &StickyCookie,
    ready: &Inserted,
    headers: &HeaderMap,
) -> Affinity {
    let mut seen = false;
    let said = cookies::values(headers, &config.name)
        .inspect(|_| seen = true)
        .take(TRIED_MAX)
        .find_map(|value| ready.sealer.as_ref()?.open(value));
    if seen && said.is_none() {
        view.live.sticky.invalid.fetch_add(1, Relaxed);
    }
    let wish = said.map_or(Wish::Any, |said| {
        let backend = view.by_hash(said.backend);
        Wish::Session(Session {
            targets: backend
                .map(|i| Target::Backend(i as u32))
                .into_iter()
                .collect(),
            key: SessionKey::Number(said.key),
            // A backend that was taken out of the configuration never comes back; its
            // browsers would be locked out for as long as they keep the cookie.
            force: config.force && backend.is_some(),
        })
    });
    Affinity {
        wish,
        kind: Kind::Cookie { seen },
    }
}

pub(super) fn rewrite_request(config: &StickyCookie, headers: &mut HeaderMap) {
    cookies::remove(headers, &config.name);
}

pub(super) fn rewrite_response(
    view: &PoolView,
    config: &StickyCookie,
    ready: &Inserted,
    affinity: &Affinity,
    chosen: usize,
    headers: &mut HeaderMap,
) {
    remove_backends_own(headers, &config.name);
    let session = match &affinity.wish {
        Wish::Session(session) => Some(session),
        _ => None,
    };
    if affinity.names(chosen) {
        return;
    }
    let key = match session.map(|s| &s.key) {
        Some(key) => {
            view.live.sticky.rebound.fetch_add(1, Relaxed);
            key.number()
        }
        None => rand::rng().random(),
    };
    let route = &view.backends[chosen].http.route;
    let Some(value) = ready.sealer.as_ref().and_then(|s| s.seal(route, key)) else {
        return;
    };
    let field = format!("{}={value}{}", config.name, ready.attributes);
    if let Ok(field) = HeaderValue::from_maybe_shared(bytes::Bytes::from(field)) {
        headers.append(SET_COOKIE, field);
        keep_private(headers);
    }
}

fn remove_backends_own(headers: &mut HeaderMap, name: &str) {
    let is_ours = |field: &HeaderValue| cookies::set_cookie(field.as_bytes(), name).is_some();
    if !headers.get_all(SET_COOKIE).iter().any(is_ours) {
        return;
    }
    if let http::header::Entry::Occupied(entry) = headers.entry(SET_COOKIE) {
        let (_, fields) = entry.remove_entry_mult();
        let kept: Vec<HeaderValue> = fields.filter(|field| !is_ours(field)).collect();
        for field in kept {
            headers.append(SET_COOKIE, field);
        }
    }
}

/// Says that shared caches must not keep this, unless that was said.
pub(super) fn keep_private(headers: &mut HeaderMap) {
    let forbidden = headers.get_all(CACHE_CONTROL).iter().any(|field| {
        field.as_bytes().split(|&b| b == b',').any(|directive| {
            // `private="set-cookie"` forbids to keep that field only, which is enough.
            let name = directive.split(|&b| b == b'=').next().unwrap_or_default();
            let name = name.trim_ascii();
            name.eq_ignore_ascii_case(b"private") || name.eq_ignore_ascii_case(b"no-store")
        })
    });
    if !forbidden {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}
