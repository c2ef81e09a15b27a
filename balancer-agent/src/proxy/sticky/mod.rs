//! Which backend a request's session belongs to, and what browser and backend have to be
//! told about it.
//!
//! ```text
//! request -> read -> Affinity -> balance::acquire -> rewrite_request -> backend
//!                        |                                                 |
//! browser <- rewrite_response <--------------------------------------------+
//! ```
//!
//! - `route.rs`: mod_jk's route in the session id, with the rewriting at a failover;
//! - `inserted.rs`, `seal.rs`: a cookie of the balancer's own, signed or opaque;
//! - `learn.rs`: a cookie of the application's, remembered;
//! - the client's address needs no file: it is a key for the rendezvous;
//! - `shared.rs`: what other nodes have to know of it, and ask for; `together.rs`: of `route`;
//! - `memory.rs`, `table.rs`: what is remembered, bounded and shared between threads;
//! - `cookies.rs`: the header fields as bytes.
//!
//! Nothing that a client sends names a backend but by the rules of `route`: other bindings
//! are authenticated, or were set by a backend.

mod cookies;
mod inserted;
mod learn;
mod memory;
mod route;
mod seal;
mod shared;
mod table;
#[cfg(test)]
mod tests;
mod together;

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, response};

pub use self::memory::{Bound, Issued, Memory, Style};
pub use self::route::explain;
pub use self::shared::ask;
pub(in crate::proxy) use self::shared::{Shared, apply};
pub use self::shared::{id_of_value, pool_of};
pub use self::table::{Bounds, Fingerprint, Fingerprints, Table};
use super::balance::{PoolView, Target, Wish, clock, hash};
use super::route::NormalPath;
use crate::model::Pool;
use crate::model::http::{self as model, Sticky};
use crate::session::handle::Held;

/// What a request's session says, for the choice and for what follows it.
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    wish: Wish,
    kind: Kind,
}

/// What has to be known again when the response comes.
#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    None,
    Route(route::Found),
    Cookie {
        /// The browser sent one, valid or not: backends must not see it.
        seen: bool,
    },
    Learn(Binding),
    Source(Binding),
}

/// What a request's binding is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Binding {
    digest: shared::Digest,
    /// It was known; its backend may be gone.
    known: bool,
}

impl Affinity {
    /// What the request asks of the pool.
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// Route (or domain) that the session names, for the log; only one that exists, so that
    /// nothing of an id gets there.
    pub fn route<'a>(&self, view: &'a PoolView) -> Option<&'a str> {
        let Wish::Session(session) = &self.wish else {
            return None;
        };
        match *session.targets.first()? {
            Target::Backend(index) => view
                .backends
                .get(index as usize)
                .map(|backend| &*backend.http.route),
            Target::Domain(domain) => view.domain_name(domain),
        }
    }

    /// One with this wish, that was read from nothing.
    #[cfg(test)]
    pub(in crate::proxy) fn of(wish: Wish) -> Self {
        Self {
            wish,
            kind: Kind::None,
        }
    }

    /// Whether the session names exactly this backend.
    fn names(&self, backend: usize) -> bool {
        match &self.wish {
            Wish::Session(session) => session.targets.contains(&Target::Backend(backend as u32)),
            _ => false,
        }
    }
}

/// What stickiness needs ready for a pool.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct Prepared(Option<Arc<inserted::Inserted>>);

impl Prepared {
    /// For `pool`.
    pub fn new(pool: &Pool) -> Self {
        Self(match &pool.http.sticky {
            Some(Sticky::Cookie(cookie)) => Some(Arc::new(inserted::Inserted::new(pool, cookie))),
            _ => None,
        })
    }
}

/// Seconds of the agent's clock.
fn seconds() -> u32 {
    u32::try_from(clock::now() / 1_000_000).unwrap_or(u32::MAX)
}

/// What the request's session says. `headers` and `path` are the client's; `client` its
/// address, as trusted proxies tell it.
pub fn read(
    view: &PoolView,
    headers: &HeaderMap,
    path: &NormalPath<'_>,
    client: IpAddr,
) -> Affinity {
    match view.stickiness() {
        None => Affinity::default(),
        Some(Sticky::Route(config)) => route::read(view, config, headers, path),
        Some(Sticky::Cookie(config)) => match &view.sticky.0 {
            Some(ready) => inserted::read(view, config, ready, headers),
            None => Affinity::default(),
        },
        Some(Sticky::Learn(config)) => learn::read(view, config, headers),
        Some(Sticky::Source {
            ipv4_prefix,
            ipv6_prefix,
        }) => {
            let masked = model::masked(client.to_canonical(), *ipv4_prefix, *ipv6_prefix);
            let wish = Wish::Key(hash::address(masked));
            match &view.shared {
                Some(shared) => {
                    let prefixes = (*ipv4_prefix, *ipv6_prefix);
                    shared::read_source(view, shared, client, prefixes, wish)
                }
                None => Affinity {
                    wish,
                    kind: Kind::None,
                },
            }
        }
    }
}

/// What the chosen backend is to see: changes `Cookie`, and returns the new value of the
/// path parameter [`model::StickyRoute::parameter`], if that has to change. May be called
/// again for another backend, on the client's headers or on those that it changed.
pub fn rewrite_request(
    view: &PoolView,
    affinity: &Affinity,
    chosen: usize,
    headers: &mut HeaderMap,
) -> Option<String> {
    match view.stickiness()? {
        Sticky::Route(config) => route::rewrite_request(view, config, affinity, chosen, headers),
        Sticky::Cookie(config) => {
            if matches!(affinity.kind, Kind::Cookie { seen: true }) {
                inserted::rewrite_request(config, headers);
            }
            None
        }
        Sticky::Learn(_) | Sticky::Source { .. } => None,
    }
}

/// What the browser is to remember: changes or adds `Set-Cookie`, and remembers what is to
/// be remembered here and by other nodes. For final responses of backends only.
/// `request_secure` is whether the browser spoke TLS. A response that has to wait for other
/// nodes is [`Held`].
pub fn rewrite_response(
    view: &PoolView,
    affinity: &Affinity,
    chosen: usize,
    request_secure: bool,
    response: &mut response::Parts,
) -> Option<Held> {
    match view.stickiness() {
        Some(Sticky::Route(config)) => {
            return route::rewrite_response(
                view,
                config,
                affinity,
                chosen,
                request_secure,
                response,
            );
        }
        Some(Sticky::Cookie(config)) => {
            if let Some(ready) = &view.sticky.0 {
                let headers = &mut response.headers;
                inserted::rewrite_response(view, config, ready, affinity, chosen, headers);
            }
        }
        Some(Sticky::Learn(config)) => {
            return learn::rewrite_response(view, config, affinity, chosen, &response.headers);
        }
        Some(Sticky::Source { .. }) => return shared::answered_source(view, affinity, chosen),
        None => {}
    }
    None
}
