//! The deterministic simulator of the session store.
//!
//! A handful of nodes, each with a real [`Store`](balancer_agent::session::Store), in a
//! world made of one queue of events: a network that loses, doubles, delays, reorders and
//! cuts one way; clocks that run at different rates and jump; disks that are slow, torn or
//! lost; a membership that is right in the end and until then late and of several
//! opinions; crashes, pauses, joins and leaves. Every message passes the codec. Chance
//! comes from one seed, so a run can be had again.
//!
//! - `world`: the queue of events, network and disks; `setup`: what a run begins with; `node`:
//!   a store with its clock and disk; `look`: who has what, and what is printed;
//! - `lives`: starts, losses, and what nodes are told; `membership`: who believes whom alive;
//!   `faults`: what goes wrong;
//! - `client`: the random workload; `quiet`: the end of a run; `oracle`: what was promised, and whether it was kept.
//!
//! ```text
//! SIM_SEED=42 SIM_MANAGER=backup cargo test -p balancer-tests --test sim -- one_seed --ignored
//! SIM_SEEDS=2000 SIM_STEPS=5000 cargo test --release -p balancer-tests --test sim -- large_sweep --ignored
//! ```

pub mod client;
mod faults;
mod lives;
mod look;
pub mod membership;
mod node;
pub mod oracle;
mod quiet;
pub mod report;
pub mod rng;
mod setup;
pub mod world;

pub use report::{Counts, Options, Report};
pub use world::run;
