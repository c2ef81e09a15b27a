//! The web tier: HTTP frontends that the agent answers itself.
//!
//! ```text
//! client -- downstream: accept, PROXY header, TLS, framing guard, HTTP/1.1 or HTTP/2
//!               |            (one current-thread runtime per core, SO_REUSEPORT)
//!           service: one request = one snapshot (world) for its whole life
//!               |
//!           route: site, normalised path, mount, exclusion -> action
//!               |-- files, redirect, fixed response
//!               |
//!           sticky: which backend does the request ask for?
//!           balance: which backend gets it? (limits, queue, slow start, ejection)
//!               |
//!           upstream: connection of this core's pool, send, retry where that is safe
//!               |
//!           sticky: what has the browser to remember?   log, stats: what happened
//! ```
//!
//! - `types.rs`: what travels between these: bodies, connections, records;
//! - `timer.rs`: deadlines, on one wheel per thread;
//! - `chunk_limits.rs`: how much of the chunked coding is taken;
//! - `websocket.rs`: its handshake between HTTP/1.1 and HTTP/2; `h2_tunnel.rs`: a stream of
//!   HTTP/2 that carries one;
//! - `log/`: the access log; `stats.rs`: counters, and what the status shows of them;
//! - `service.rs`: one request;
//! - `world.rs`: the immutable snapshot that a request reads, and what publishes it;
//! - `materials.rs`: what a configuration names, read before anything is changed; `pem.rs`:
//!   certificates and keys;
//! - `server.rs`: threads, listeners, reload, drain; `status.rs`: what operators see of it.

pub mod balance;
mod chunk_limits;
pub mod downstream;
pub mod files;
mod h2_tunnel;
pub mod log;
pub mod materials;
mod pem;
pub mod route;
pub mod server;
pub mod service;
pub mod stats;
mod status;
pub mod sticky;
#[cfg(test)]
mod testing;
pub mod timer;
pub mod types;
pub mod upstream;
mod websocket;
pub mod world;
