//! What is remembered of a pool's sessions beyond one request. All of it is bounded and
//! shared between threads; none of it holds a session id.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use super::cookies::SetCookie;
use super::table::{Fingerprints, Table};

/// Different sets of attributes that are kept; an application has one per context path.
const SCOPES_MAX: usize = 32;
/// Longest set of attributes, in bytes.
const SCOPE_BYTES_MAX: usize = 512;

/// What stickiness remembers about a pool's sessions.
#[derive(Debug, Default)]
pub struct Memory {
    /// Makes the tables' keys.
    pub(super) prints: Fingerprints,
    /// `learn`, and `source` with a group: the backend that a cookie's value, or a client's
    /// address, belongs to.
    pub bindings: Table<Bound>,
    /// What the store was asked for and did not know, and when (seconds of the agent's
    /// clock).
    pub(super) unknown: Table<u32>,
    /// `route`: what follows an id where its backend issued it, for those whose browser
    /// knows another suffix. By the id up to its first `.`.
    pub ids: Table<Issued>,
    /// Attributes that backends gave the session cookie. Places do not change.
    scopes: ArcSwap<Vec<Scope>>,
    /// Whether any backend was ever seen to issue ids without route: only then its
    /// [`Style`] needs to be looked at.
    pub(super) any_bare: AtomicBool,
    /// Cookies of the balancer's own that were forged, damaged, or made with another key.
    pub invalid: AtomicU64,
    /// Sessions that went to another backend than theirs.
    pub rebound: AtomicU64,
}

/// Where a session belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Stable hash of the backend's route.
    pub backend: u64,
    /// When the store was last told of an access, or told of one itself; in seconds of the
    /// agent's clock.
    pub told: u32,
}

/// What a backend put after an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issued {
    /// Nothing.
    Bare,
    /// `.` and this.
    Suffix(Arc<[u8]>),
}

/// How a backend was seen to issue ids.
#[derive(Debug, Default)]
pub struct Style(AtomicU8);

impl Style {
    const BARE: u8 = 1;
    const ROUTED: u8 = 2;

    /// An id without route. Does not count any more once one with a route was seen: a
    /// single odd response must not change how all sessions are read.
    pub(super) fn saw_bare(&self) {
        let _ = self.0.compare_exchange(0, Self::BARE, Relaxed, Relaxed);
    }

    /// An id with the backend's own route.
    pub(super) fn saw_routed(&self) {
        if self.0.load(Relaxed) != Self::ROUTED {
            self.0.store(Self::ROUTED, Relaxed);
        }
    }

    /// Only ids without route were seen.
    pub fn is_bare(&self) -> bool {
        self.0.load(Relaxed) == Self::BARE
    }
}

/// Attributes of the session cookie, as a backend set it last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    /// `Path`; empty when there was none.
    path: Arc<[u8]>,
    /// All but `Expires`, each with `; ` before it.
    text: Arc<[u8]>,
}

impl Memory {
    /// Remembers the attributes of a session cookie.
    pub(super) fn learn_scope(&self, cookie: &SetCookie<'_>) {
        let mut text: SmallVec<[u8; 128]> = SmallVec::new();
        let mut path: &[u8] = b"";
        for (name, value) in cookie.attributes() {
            if name.eq_ignore_ascii_case(b"expires") {
                // A moment, which will have passed when it is used.
                continue;
            }
            if name.eq_ignore_ascii_case(b"path") {
                path = value;
            }
            text.extend_from_slice(b"; ");
            text.extend_from_slice(name);
            if !value.is_empty() {
                text.push(b'=');
                text.extend_from_slice(value);
            }
        }
        if text.len() > SCOPE_BYTES_MAX {
            return;
        }
        let known = |scopes: &Vec<Scope>| scopes.iter().position(|s| *s.path == *path);
        let now = self.scopes.load();
        if known(&now).is_some_and(|at| *now[at].text == *text) {
            return;
        }
        self.scopes.rcu(|scopes| {
            let mut scopes = Vec::clone(scopes);
            let scope = Scope {
                path: path.into(),
                text: text[..].into(),
            };
            match known(&scopes) {
                Some(at) => scopes[at] = scope,
                None if scopes.len() < SCOPES_MAX => scopes.push(scope),
                // Full: the last place is for whatever came last.
                None => scopes[SCOPES_MAX - 1] = scope,
            }
            scopes
        });
    }

    /// Place of the attributes of a session cookie that a browser sends for this path: of
    /// those that match by RFC 6265, 5.1.4, the longest.
    pub(super) fn scope_for(&self, path: &[u8]) -> Option<u8> {
        let scopes = self.scopes.load();
        let matching = scopes.iter().enumerate();
        let matching = matching.filter(|(_, scope)| path_matches(path, &scope.path));
        let best = matching.max_by_key(|(_, scope)| scope.path.len());
        best.map(|(at, _)| at as u8)
    }

    /// The attributes at that place.
    pub(super) fn scope(&self, at: u8) -> Option<Arc<[u8]>> {
        let scopes = self.scopes.load();
        scopes.get(usize::from(at)).map(|s| Arc::clone(&s.text))
    }
}

fn path_matches(path: &[u8], scope: &[u8]) -> bool {
    if scope.first() != Some(&b'/') {
        // None, or none that counts: the browser took the directory of the request.
        return true;
    }
    path.strip_prefix(scope)
        .is_some_and(|rest| rest.is_empty() || scope.ends_with(b"/") || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    use super::super::cookies::set_cookie;
    use super::*;

    fn learn(memory: &Memory, field: &str) {
        memory.learn_scope(&set_cookie(field.as_bytes(), "S").unwrap());
    }

    fn scope(memory: &Memory, path: &str) -> Option<String> {
        let text = memory.scope(memory.scope_for(path.as_bytes())?)?;
        Some(String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn attributes_follow_the_path() {
        let memory = Memory::default();
        assert_eq!(scope(&memory, "/"), None);
        learn(&memory, "S=1; Path=/app; HttpOnly");
        assert_eq!(scope(&memory, "/other"), None);
        assert_eq!(scope(&memory, "/application"), None);
        let app = "; Path=/app; HttpOnly";
        for path in ["/app", "/app/", "/app/x/y"] {
            assert_eq!(scope(&memory, path).as_deref(), Some(app));
        }
        learn(
            &memory,
            "S=2; path=/; Secure; Expires=Thu, 01 Jan 2099 00:00:00 GMT",
        );
        assert_eq!(
            scope(&memory, "/other").as_deref(),
            Some("; path=/; Secure")
        );
        assert_eq!(scope(&memory, "/app/x").as_deref(), Some(app));
        learn(&memory, "S=3; Path=/app; SameSite=Lax; Max-Age=600");
        assert_eq!(
            scope(&memory, "/app").as_deref(),
            Some("; Path=/app; SameSite=Lax; Max-Age=600")
        );
        learn(&memory, "S=4");
        assert_eq!(scope(&memory, "/z").as_deref(), Some("; path=/; Secure"));
    }

    #[test]
    fn attributes_are_bounded() {
        let memory = Memory::default();
        for i in 0..1000 {
            learn(&memory, &format!("S=1; Path=/{i}"));
        }
        assert_eq!(memory.scopes.load().len(), SCOPES_MAX);
        assert_eq!(scope(&memory, "/999").as_deref(), Some("; Path=/999"));
        learn(&memory, &format!("S=1; Path=/{}", "x".repeat(600)));
        assert_eq!(scope(&memory, "/999").as_deref(), Some("; Path=/999"));
    }

    #[test]
    fn one_odd_id_does_not_change_the_style() {
        let style = Style::default();
        assert!(!style.is_bare());
        style.saw_bare();
        assert!(style.is_bare());
        style.saw_routed();
        style.saw_bare();
        assert!(!style.is_bare());
    }
}
