//! The session store: who holds which session, and how copies stay equal.
//!
//! [`Store`] is one node's part, and does no input or output of its own: it is told what
//! happens and the time ([`Store::handle`]), says what it wants done
//! ([`Store::poll_output`]) and when it must be called again ([`Store::poll_timeout`]). It
//! has no socket, clock, random source or task, so that a simulator can drive many of
//! them through any course of events, and do it again.
//!
//! - `types`, `config`, `counters`: the words, the bounds, the counts;
//! - `codec`, `wire`: the messages;
//! - `placement`, `table`: where a session belongs, and the sessions of one group;
//! - `store`: inputs and outputs; `view`: membership and the way to readiness; `ops`:
//!   operations; `repair`: comparing and fetching; `upkeep`: timers, ends, the memory
//!   bound; `disk`: persistence; `outbox`: queues to peers; `inspect`: looking in; `watch`:
//!   what has changed;
//! - `driver`, `handle`: the task that connects a store to cluster and clock, and what the
//!   rest of the agent knows of it.
//!
//! The protocol, what it promises and what not, is described in `docs/sessions.md`.

pub mod codec;
mod config;
mod counters;
mod disk;
pub mod driver;
#[cfg(test)]
mod driver_tests;
pub mod handle;
mod inspect;
mod ops;
mod outbox;
mod placement;
mod repair;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod upkeep;
mod view;
mod watch;
mod wire;

#[doc(hidden)]
pub use config::Sabotage;
pub use config::{Config, ConfigError, GroupConfig, Limits, Timing, group_key};
pub use counters::Counters;
pub use inspect::{Listed, Standing};
pub use store::{Input, Output, Store};
pub use types::{
    Expect, GroupId, MAX_DATA, MAX_ID, MAX_NODES, MAX_ROUTE, MAX_TTL, MIN_ID, Manager, Member,
    NodeId, Op, Outcome, Replication, Session, Time, Token, Version,
};
pub use watch::Change;
pub use wire::DecodeError;
