//! Which backend a request's session belongs to, and what browser and backend have to be
//! told about it.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, response};

use super::balance::{PoolView, Wish, hash};
use crate::model::Pool;
use crate::model::http::{self as model, Sticky};

/// What stickiness reads of a request's path.
pub trait SessionPath {
    /// Value of a path parameter, as it was written.
    fn parameter(&self, name: &str) -> Option<&str>;
    /// The normalised path.
    fn decoded(&self) -> &[u8];
}

/// What a request's session says, for the choice and for what follows it.
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    wish: Wish,
}

impl Affinity {
    /// What the request asks of the pool.
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// Route (or domain) that the session names, for the log; only one that exists, so that
    /// nothing of an id gets there.
    pub fn route<'a>(&self, _view: &'a PoolView) -> Option<&'a str> {
        None
    }
}

/// What stickiness remembers about a pool's sessions.
#[derive(Debug, Default)]
pub struct Memory {}

/// What stickiness needs ready for a pool.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct Prepared {}

impl Prepared {
    /// For `pool`.
    pub fn new(_pool: &Arc<Pool>) -> Self {
        Self {}
    }
}

/// What the request's session says.
pub fn read(
    view: &PoolView,
    _headers: &HeaderMap,
    _path: &impl SessionPath,
    client: IpAddr,
) -> Affinity {
    match view.stickiness() {
        Some(Sticky::Source {
            ipv4_prefix,
            ipv6_prefix,
        }) => {
            let client = model::masked(client.to_canonical(), *ipv4_prefix, *ipv6_prefix);
            Affinity {
                wish: Wish::Key(hash::address(client)),
            }
        }
        _ => Affinity::default(),
    }
}

/// What the chosen backend is to see: changes `Cookie`, and returns the new value of the
/// path parameter, if that has to change. May be called again for another backend.
pub fn rewrite_request(
    _view: &PoolView,
    _affinity: &Affinity,
    _chosen: usize,
    _headers: &mut HeaderMap,
) -> Option<String> {
    None
}

/// What the browser is to remember: changes or adds `Set-Cookie`, and remembers what is to
/// be remembered here. For final responses of backends only.
pub fn rewrite_response(
    _view: &PoolView,
    _affinity: &Affinity,
    _chosen: usize,
    _request_secure: bool,
    _response: &mut response::Parts,
) {
}
