//! Which backend a request gets: views of pools, policies, limits with a queue, slow start,
//! observed failures, the retry budget.
//!
//! ```text
//! sticky::read -> Wish -> acquire -- choose (whom?) -- policy (who of them?) -- Lease
//!                            |                              |
//!                            +------- queue (all full) -----+
//! Lease::report(Outcome): counters, ejection and return      drop: the place goes on
//! ```
//!
//! - [`PoolView`] is immutable and belongs to a snapshot; [`PoolLive`] and [`BackendLive`]
//!   are atomics that outlive it;
//! - a request without contention takes no lock, makes no allocation and no system call:
//!   one step of a shared counter, one place in flight;
//! - `choose.rs` decides and touches nothing; `lease.rs` and `queue.rs` take and give back.

mod budget;
mod choose;
pub mod clock;
pub mod hash;
mod lease;
mod live;
mod policy;
mod queue;
#[cfg(test)]
pub(in crate::proxy) mod testing;
#[cfg(test)]
mod tests;
mod view;
mod wish;

pub use lease::{Lease, NoBackend, acquire};
pub use live::{BackendLive, Change, Outcome, PoolLive};
pub use queue::Queue;
pub use view::{BackendView, PoolView};
pub use wish::{Session, SessionKey, Target, Wish};
