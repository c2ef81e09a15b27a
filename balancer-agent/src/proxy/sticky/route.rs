//! `route`: mod_jk's stickiness, and what a failover changes in both directions.
//!
//! Reading is the reference's: the path parameter first, then every cookie of the name; of
//! each id the text after the FIRST `.` is a route, or, when no backend has it, the text
//! before the next `.` a domain. Which of them is followed is decided in
//! [`super::super::balance`].
//!
//! Three things are kept apart: the BASE of an id (up to the first `.`), the SUFFIX that the
//! backend issued, and the ROUTE that the browser's id ends in.
//!
//! | the backend issues | the browser gets | later the backend sees |
//! |---|---|---|
//! | `ABC.s2`, its own route | the same; what was remembered of `ABC` is forgotten | the same |
//! | `ABC`, without suffix, as servers without jvmRoute | `ABC.s2` | `ABC` |
//! | what it was shown of a session that failed over to it (`ABC.s1`) | `ABC.s2` | `ABC.s1` |
//! | anything else (another backend's route, an id with dots) | the same | the same |
//! | a cookie's end (`Max-Age=0`) | the same; what was remembered is forgotten | |
//! | nothing, for a session that failed over to it | `ABC.s2`, with the attributes that were last seen | what its backend issued |
//!
//! What was issued is remembered by a keyed hash of the base, within `learned_max`. For ids
//! without suffix there is a second way to know: a backend that never issued another kind
//! gets the suffix taken off that names it, also when the table has forgotten.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::header::{
    CONTENT_LOCATION, DATE, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, REFRESH, SET_COOKIE,
};
use http::response;
use smallvec::SmallVec;

use super::super::balance::{PoolView, Session, SessionKey, Target, Wish};
use super::inserted::keep_private;
use super::memory::Issued;
use super::together::{self, Together};
use super::{Affinity, Kind, cookies, seconds, shared};
use crate::model::http::StickyRoute;
use crate::proxy::route::NormalPath;
use crate::session::handle::Held;

/// Longest id that is rewritten or remembered, in bytes.
pub(super) const ID_MAX: usize = 1024;

/// Fields of responses that name addresses.
const ADDRESSES: [HeaderName; 4] = [LOCATION, CONTENT_LOCATION, REFRESH, LINK];

/// Where a request's session id was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    parameter: Parameter,
    /// The id is (also) in a cookie.
    in_cookie: bool,
    /// Place of the attributes that its cookie has.
    scope: Option<u8>,
    /// What all nodes know of it, in a pool with a group.
    pub(super) together: Option<Together>,
}

/// The path parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Parameter {
    #[default]
    Absent,
    /// It is what the session's key was read from.
    Lead,
    /// An id beside the one that leads.
    Other(Box<[u8]>),
}

/// Base and suffix of an id; the suffix is without its `.`.
pub(super) fn split(id: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'.', id) {
        Some(dot) => (&id[..dot], Some(&id[dot + 1..])),
        None => (id, None),
    }
}

/// Whom a suffix names.
pub(super) fn target(view: &PoolView, suffix: &[u8]) -> Option<Target> {
    if let Some(index) = view.by_route(suffix) {
        return Some(Target::Backend(index as u32));
    }
    view.domain(split(suffix).0).map(Target::Domain)
}

pub(super) fn read(
    view: &PoolView,
    config: &StickyRoute,
    headers: &HeaderMap,
    path: &NormalPath<'_>,
) -> Affinity {
    let parameter = match &*config.parameter {
        "" => None,
        name => path.parameter(name).map(str::as_bytes),
    };
    let mut targets = SmallVec::new();
    // The id that fails over when none of the targets will do: the first that names one of
    // them, else the first.
    let mut lead: Option<(&[u8], bool)> = None;
    let in_cookies = cookies::values(headers, &config.cookie).map(|id| (id, true));
    let ids = parameter
        .map(|id| (id, false))
        .into_iter()
        .chain(in_cookies);
    for (id, in_cookie) in ids {
        let named = split(id).1.and_then(|suffix| target(view, suffix));
        if lead.is_none() || (named.is_some() && targets.is_empty()) {
            lead = Some((id, in_cookie));
        } else if let Some((first, in_any)) = &mut lead
            && in_cookie
            && split(first).0 == split(id).0
        {
            *in_any = true;
        }
        if let Some(named) = named
            && !targets.contains(&named)
        {
            targets.push(named);
        }
    }
    let Some((id, in_cookie)) = lead else {
        return Affinity::default();
    };
    let scope = in_cookie
        .then(|| view.live.sticky.scope_for(path.decoded()))
        .flatten();
    let together = together::read(view, id, &mut targets);
    let parameter = match parameter {
        None => Parameter::Absent,
        Some(own) if own == id => Parameter::Lead,
        Some(other) => Parameter::Other(other.into()),
    };
    Affinity {
        wish: Wish::Session(Session {
            targets,
            key: SessionKey::Text(id.into()),
            force: config.force,
        }),
        kind: Kind::Route(Found {
            parameter,
            in_cookie,
            scope,
            together,
        }),
    }
}

/// Where a backend sent an id.
#[derive(Clone, Copy)]
enum Sent<'a> {
    /// As the session's cookie.
    Set,
    /// In an address.
    Address,
    /// In an address that may be another site's: only ids that are known to be this one's
    /// are changed, and the one that was just set.
    Foreign { fresh: &'a [u8] },
}

/// One request's or response's ids, translated.
struct Translator<'a> {
    view: &'a PoolView,
    chosen: usize,
    /// The id that failed over: base, and what its backend put after it.
    moved: Option<(&'a [u8], Issued)>,
    /// What its browser's id ended in.
    moved_from: Option<&'a [u8]>,
    /// What all nodes know of the request's session.
    together: Option<&'a Together>,
    /// The last write that the response has to wait for.
    held: RefCell<Option<Held>>,
}

impl<'a> Translator<'a> {
    fn new(view: &'a PoolView, affinity: &'a Affinity, chosen: usize) -> Self {
        Self {
            view,
            chosen,
            moved: None,
            moved_from: None,
            together: match &affinity.kind {
                Kind::Route(found) => found.together.as_ref(),
                _ => None,
            },
            held: RefCell::default(),
        }
    }

    fn remembered(&self, base: &[u8]) -> Option<Issued> {
        let memory = &self.view.live.sticky;
        if memory.ids.is_empty() {
            return None;
        }
        let get = |print| memory.ids.get(print, shared::forever(self.view), seconds());
        let known = get(shared::digest(self.view, base).print);
        match self.view.shared {
            // From before the pool got its group.
            Some(_) => known.or_else(|| get(memory.prints.of(base))),
            None => known,
        }
    }

    /// Notes that the backend issued an id. What is set as a cookie all nodes have to know;
    /// an address may only repeat what the browser said.
    fn issue(&self, base: &[u8], issued: Issued, sent: Sent<'_>) {
        let (view, route) = (self.view, &self.view.backends[self.chosen].http.route);
        let ids = &view.live.sticky.ids;
        let before = self.remembered(base);
        let own = matches!(&issued, Issued::Suffix(suffix) if **suffix == *route.as_bytes());
        let anew = match own {
            true => before.is_some(),
            false => before.as_ref() != Some(&issued),
        };
        let tell = matches!(sent, Sent::Set) && view.shared.is_some();
        if !tell && own && !anew {
            return;
        }
        let digest = shared::digest(view, base);
        if tell {
            let data = together::encode(&issued, route.as_bytes());
            self.hold(shared::issue(view, digest, self.chosen, data, anew));
        }
        match own {
            true => ids.remove(digest.print),
            false => ids.put(digest.print, issued, shared::forever(view), seconds()),
        }
    }

    /// Notes that the backend has the session that moved to it.
    fn settle(&self, base: &[u8], issued: Issued) {
        let view = self.view;
        let digest = shared::digest(view, base);
        let known = self.together.is_some_and(|together| together.known);
        // An id without suffix got the browser's from here: it names who issued it.
        let home = self.moved_from.unwrap_or_default();
        let data = || together::encode(&issued, home);
        self.hold(shared::move_to(view, digest, self.chosen, known, data));
        let ids = &view.live.sticky.ids;
        ids.put(digest.print, issued, shared::forever(view), seconds());
    }

    fn hold(&self, held: Option<Held>) {
        if held.is_some() {
            *self.held.borrow_mut() = held;
        }
    }

    /// Notes that the backend ended a session.
    fn forget(&self, base: &[u8]) {
        if base.is_empty() {
            return;
        }
        let digest = shared::digest(self.view, base);
        self.view.live.sticky.ids.remove(digest.print);
        if self.view.shared.is_some() {
            shared::forget(self.view, digest);
        }
    }

    /// What the backend put after `base`, when the browser's id goes on with `suffix`; `None`
    /// when that is the same.
    fn issued(&self, base: &[u8], suffix: &[u8]) -> Option<Issued> {
        match self.remembered(base) {
            Some(Issued::Suffix(issued)) if *issued == *suffix => return None,
            Some(issued) => return Some(issued),
            None => {}
        }
        if !self.view.live.sticky.any_bare.load(Relaxed) {
            return None;
        }
        let issuer = self.view.by_route(suffix)?;
        let style = &self.view.backends[issuer].live.style;
        style.is_bare().then_some(Issued::Bare)
    }

    /// What the backend is to see instead of the browser's `id`.
    fn inward(&self, id: &[u8]) -> Option<Vec<u8>> {
        let (base, suffix) = split(id);
        if id.len() > ID_MAX {
            return None;
        }
        Some(match self.issued(base, suffix?)? {
            Issued::Bare => base.to_vec(),
            Issued::Suffix(issued) => [base, b".", &issued].concat(),
        })
    }

    /// What the browser is to see instead of the `id` that a backend sent.
    fn outward(&self, id: &[u8], sent: Sent<'_>) -> Option<Vec<u8>> {
        let backend = &self.view.backends[self.chosen];
        let route = backend.http.route.as_bytes();
        let (base, suffix) = split(id);
        if base.is_empty() || id.len() > ID_MAX {
            return None;
        }
        let moved = self.moved.as_ref().filter(|(own, _)| *own == base);
        let whole = || [base, b".", route].concat();
        match suffix {
            None => {
                let own = match sent {
                    Sent::Set | Sent::Address => true,
                    Sent::Foreign { fresh } => {
                        moved.is_some() || fresh == base || self.remembered(base).is_some()
                    }
                };
                if !own {
                    return None;
                }
                self.view.live.sticky.any_bare.store(true, Relaxed);
                backend.live.style.saw_bare();
                self.issue(base, Issued::Bare, sent);
                Some(whole())
            }
            Some(suffix) if suffix == route => {
                backend.live.style.saw_routed();
                self.issue(base, Issued::Suffix(suffix.into()), sent);
                None
            }
            Some(suffix) => {
                let same = |issued: &Issued| matches!(issued, Issued::Suffix(s) if **s == *suffix);
                if moved.is_some_and(|(_, issued)| same(issued)) {
                    self.settle(base, Issued::Suffix(suffix.into()));
                } else if !self.remembered(base).is_some_and(|issued| same(&issued)) {
                    return None;
                }
                Some(whole())
            }
        }
    }
}

pub(super) fn rewrite_request(
    view: &PoolView,
    config: &StickyRoute,
    affinity: &Affinity,
    chosen: usize,
    headers: &mut HeaderMap,
) -> Option<String> {
    let memory = &view.live.sticky;
    if memory.ids.is_empty() && !memory.any_bare.load(Relaxed) {
        return None;
    }
    let (Kind::Route(found), Some(lead)) = (&affinity.kind, lead(affinity)) else {
        return None;
    };
    let translator = Translator::new(view, affinity, chosen);
    cookies::change(headers, &config.cookie, |id| translator.inward(id));
    let id = match &found.parameter {
        Parameter::Absent => return None,
        Parameter::Lead => translator.inward(lead)?,
        Parameter::Other(id) => translator.inward(id)?,
    };
    // It goes into a path as it is.
    let fits = |b: &u8| b.is_ascii_graphic() && !b";/?#%\"<>\\^`{|}".contains(b);
    id.iter().all(fits).then(|| String::from_utf8(id).ok())?
}

pub(super) fn rewrite_response(
    view: &PoolView,
    config: &StickyRoute,
    affinity: &Affinity,
    chosen: usize,
    request_secure: bool,
    response: &mut response::Parts,
) -> Option<Held> {
    let headers = &mut response.headers;
    let has_addresses =
        !config.parameter.is_empty() && ADDRESSES.iter().any(|name| headers.contains_key(name));
    let moved = moved(affinity, chosen);
    let mut translator = Translator::new(view, affinity, chosen);
    // The browser knows better than the store.
    let mend = (translator.together)
        .filter(|together| together.known && together.bound != Some(view.backends[chosen].hash));
    if moved.is_none() && mend.is_none() && !has_addresses && !headers.contains_key(SET_COOKIE) {
        return None;
    }
    if let Some((base, suffix)) = moved {
        let issued = suffix.and_then(|suffix| translator.issued(base, suffix));
        let issued = issued.unwrap_or_else(|| match suffix {
            Some(suffix) => Issued::Suffix(suffix.into()),
            None => Issued::Bare,
        });
        translator.moved = Some((base, issued));
        translator.moved_from = suffix;
    }
    let (spoke, fresh) = set_cookies(&translator, config, affinity, headers);
    if has_addresses {
        addresses(&translator, &config.parameter, &fresh, headers);
    }
    if spoke {
        return translator.held.into_inner();
    }
    if let (Some((base, issued)), Kind::Route(found)) = (&translator.moved, &affinity.kind) {
        let followed = (translator.together).and_then(|together| together.followed);
        if followed != Some(chosen as u32) {
            view.live.sticky.rebound.fetch_add(1, Relaxed);
        }
        translator.settle(base, issued.clone());
        if found.in_cookie {
            let scope = found.scope.and_then(|at| view.live.sticky.scope(at));
            let scope = match (&scope, request_secure) {
                (Some(scope), _) => Cow::Borrowed(&**scope),
                (None, true) => Cow::Borrowed(&b"; Path=/; Secure; HttpOnly"[..]),
                (None, false) => Cow::Borrowed(&b"; Path=/; HttpOnly"[..]),
            };
            let route = view.backends[chosen].http.route.as_bytes();
            let field = [config.cookie.as_bytes(), b"=", base, b".", route, &scope].concat();
            if let Ok(field) = HeaderValue::from_maybe_shared(bytes::Bytes::from(field)) {
                headers.append(SET_COOKIE, field);
                keep_private(headers);
            }
        }
    } else if let Some(together) = mend {
        let digest = together.digest;
        translator.hold(shared::move_to(view, digest, chosen, true, || None));
    }
    translator.held.into_inner()
}

/// The id that the session's key is.
fn lead(affinity: &Affinity) -> Option<&[u8]> {
    match &affinity.wish {
        Wish::Session(Session {
            key: SessionKey::Text(id),
            ..
        }) => Some(id),
        _ => None,
    }
}

/// Base and suffix of the session that `chosen` serves although its id names another. Only
/// one that can be told to the browser again.
fn moved(affinity: &Affinity, chosen: usize) -> Option<(&[u8], Option<&[u8]>)> {
    let id = lead(affinity)?;
    let (base, suffix) = split(id);
    let can = !base.is_empty() && id.len() <= ID_MAX && cookies::is_plain(base);
    let followed = match &affinity.kind {
        Kind::Route(found) => found.together.as_ref().and_then(|t| t.followed),
        _ => None,
    };
    let elsewhere = !affinity.names(chosen) || followed == Some(chosen as u32);
    (can && elsewhere).then_some((base, suffix))
}

/// Translates what the backend sets. Whether it set or ended the cookie, and the base of
/// the last that it set.
fn set_cookies(
    translator: &Translator<'_>,
    config: &StickyRoute,
    affinity: &Affinity,
    headers: &mut HeaderMap,
) -> (bool, SmallVec<[u8; 64]>) {
    let date = headers.get(DATE).cloned();
    let mut spoke = false;
    let mut fresh = SmallVec::new();
    let http::header::Entry::Occupied(mut fields) = headers.entry(SET_COOKIE) else {
        return (spoke, fresh);
    };
    for field in fields.iter_mut() {
        let Some(cookie) = cookies::set_cookie(field.as_bytes(), &config.cookie) else {
            continue;
        };
        spoke = true;
        if cookie.value.is_empty() || cookie.deletes(date.as_ref()) {
            if let Some(id) = lead(affinity) {
                translator.forget(split(id).0);
            }
            translator.forget(split(cookie.value).0);
            continue;
        }
        translator.view.live.sticky.learn_scope(&cookie);
        fresh = split(cookie.value).0.into();
        if let Some(id) = translator.outward(cookie.value, Sent::Set)
            && let Some(changed) = cookies::replaced(field.as_bytes(), &[(cookie.at, id)])
        {
            *field = changed;
        }
    }
    (spoke, fresh)
}

/// Translates the path parameter in fields that name addresses.
fn addresses(translator: &Translator<'_>, parameter: &str, fresh: &[u8], headers: &mut HeaderMap) {
    let mark = [b";", parameter.as_bytes(), b"="].concat();
    for name in ADDRESSES {
        let http::header::Entry::Occupied(mut fields) = headers.entry(name) else {
            continue;
        };
        for field in fields.iter_mut() {
            let bytes = field.as_bytes();
            // A name of a host, which may be another site's.
            let sent = match memchr::memmem::find(bytes, b"//") {
                Some(_) => Sent::Foreign { fresh },
                None => Sent::Address,
            };
            let changes: SmallVec<[_; 2]> = memchr::memmem::find_iter(bytes, &mark)
                .filter_map(|at| {
                    let from = at + mark.len();
                    let end = bytes[from..]
                        .iter()
                        .position(|b| b";/?#\"'<>, ".contains(b))
                        .map_or(bytes.len(), |length| from + length);
                    let id = translator.outward(&bytes[from..end], sent)?;
                    Some((from..end, id))
                })
                .collect();
            if let Some(changed) = cookies::replaced(bytes, &changes) {
                *field = changed;
            }
        }
    }
}

/// For tests and for who explains a decision: what an id names in this pool.
pub fn explain(view: &PoolView, id: &str) -> Option<Arc<str>> {
    match target(view, split(id.as_bytes()).1?)? {
        Target::Backend(index) => Some(Arc::clone(&view.backends[index as usize].http.route)),
        Target::Domain(domain) => view.domain_name(domain).map(Arc::from),
    }
}
