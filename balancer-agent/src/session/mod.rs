//! The session store: who holds which session, and how copies stay equal.
//!
//! [`Store`] is one node's part, and does no input or output of its own: it is told what
//! happens and the time ([`Store::handle`]), says what it wants done
//! ([`Store::poll_output`]) and when it must be called again ([`Store::poll_timeout`]). It
//! has no socket, clock, random source or task, so that a simulator can drive many of
//! them through any course of events, and do it again.
//!
//! # Driving it
//!
//! 1. [`Store::new`]; then, with a persistent group, [`Store::load`] for every batch that
//!    the disk has, in order.
//! 2. [`Input::Members`] once the membership has an opinion, and whenever it changes. Each
//!    life of a node needs an incarnation of its own, and a node that anyone has declared
//!    down needs a new one. A node that starts with sessions from its disk should be told
//!    of others before it is told that it is alone.
//! 3. Loop: an input and the time (milliseconds of a monotonic clock) into
//!    [`Store::handle`]; then [`Store::poll_output`] until it has nothing more; then wait
//!    for the next input, at the latest until [`Store::poll_timeout`] ([`Input::Tick`]).
//!    Several inputs may go in before the outputs are polled: their writes share frames.
//! 4. [`Output::Send`] goes to the peer's connection, in order; [`Input::Sent`] says that
//!    there is room for another. A lost connection is [`Input::Reset`], after which frames
//!    from before are not reported sent any more. A frame that [`Store::handle`] cannot
//!    read closes the connection. No frame may arrive later than half of
//!    [`Timing::tombstone_min`] after it was sent: close a connection that stalls.
//! 5. [`Output::Persist`] is written whole or not at all, in order, and reported as
//!    [`Input::Persisted`] once it is safe. A driver that begins a new file calls
//!    [`Store::rewrite`] and may drop the old file when [`Counters::disk_buckets`] and
//!    [`Counters::disk_backlog`] are 0 and all batches are reported.
//! 6. Every [`Input::Request`] ends in exactly one [`Output::Reply`].
//!
//! # Files
//!
//! - `types`, `config`, `counters`: the words, the bounds, the counts;
//! - `codec`, `record`, `wire`: the messages;
//! - `placement`, `table`: where a session belongs, and the sessions of one group;
//! - `store`: inputs and outputs; `view`: membership and the way to readiness; `ops`,
//!   `execute`: operations; `repair`, `pull`: comparing and fetching; `upkeep`: timers, ends,
//!   the memory bound; `disk`: persistence; `outbox`: queues to peers; `inspect`: looking in;
//!   `watch`: what has changed; `survey`: questions of operators to all nodes;
//! - `driver`, `network`, `handle`: the task that connects a store to cluster and clock, and what the
//!   rest of the agent knows of it;
//! - `database`: the file that persistent groups are in.
//!
//! The protocol, what it promises and what not, is described in `docs/sessions.md`.

pub mod codec;
mod config;
mod counters;
pub mod database;
mod disk;
pub mod driver;
mod execute;
pub mod handle;
mod inspect;
mod network;
mod ops;
mod outbox;
mod placement;
mod pull;
mod record;
mod repair;
mod store;
pub mod survey;
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
pub use watch::{Change, WATCHED_DATA};
pub use wire::DecodeError;
