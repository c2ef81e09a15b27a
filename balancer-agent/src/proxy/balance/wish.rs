//! What a request asks of a pool, as [`super::super::sticky::read`] found it.

use smallvec::SmallVec;

use super::hash;

/// What a request wishes for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Any backend, by the pool's policy.
    #[default]
    Any,
    /// The backend of its session.
    Session(Session),
    /// The backend that wins this key (`source`).
    Key(u64),
}

/// A session that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whom its ids name, in the order in which they are tried; none twice.
    pub targets: SmallVec<[Target; 4]>,
    /// What its failover target is computed from.
    pub key: SessionKey,
    /// Nobody but those of [`Self::targets`] will do.
    pub force: bool,
}

/// Whom a session id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A backend, by its place in the view.
    Backend(u32),
    /// A domain, by its place in the view.
    Domain(u32),
}

/// What is the same in a session's ids on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionKey {
    /// The id up to its first `.`. Hashed only when it is needed.
    Text(SmallVec<[u8; 64]>),
    /// Ready.
    Number(u64),
}

impl SessionKey {
    /// The key for [`hash::rendezvous`].
    pub fn number(&self) -> u64 {
        match self {
            Self::Text(id) => hash::text(id.split(|&b| b == b'.').next().unwrap_or_default()),
            Self::Number(number) => *number,
        }
    }
}
