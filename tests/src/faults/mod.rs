//! Sessions under faults, with real processes: five agents in namespaces of their own, a
//! client that makes, moves and ends sessions through them by HTTP, chance that kills,
//! stops and parts them, and a ledger that knows what was promised
//! (`docs/sessions.md`, "Promised") and judges what is there when all is calm again.
//!
//! ```text
//! load --HTTP--> agents (n0..n4) --HTTP--> application servers (s0..s2)
//!   |              ^        ^
//!   v              |        | what each holds, where each routes
//! ledger <------- weather, check (between the rounds)
//! ```
//!
//! - `site`: the namespaces, agents and servers; `weather`: what goes wrong;
//! - `load`: the client; `ledger`: what it was told, and what that promises;
//! - `check`: what every node holds and where it routes; `play`: rounds of all that;
//! - `window`: what `async` loses when the agent dies that took the writes.
//!
//! Chance comes from one seed (`FAULTS_SEED`), which is printed. The same seed gives the
//! same faults at the same moments; what the processes make of them is theirs.

pub mod check;
pub mod ledger;
pub mod load;
pub mod play;
pub mod site;
pub mod weather;
pub mod window;

/// Agents.
pub const NODES: usize = 5;
/// Application servers.
pub const SERVERS: usize = 3;
