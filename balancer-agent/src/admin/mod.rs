//! The operators' way in: a Unix socket, its protocol, and what the commands show.
//!
//! - `protocol.rs`: requests and answers;
//! - `server.rs`: the socket;
//! - `node.rs`, `status.rs`, `sessions.rs`: the answers; `survey.rs`: what is asked of all nodes;
//! - `views`: the statistics as other balancers' scripts read them;
//! - `client.rs`, `render.rs`: the other side of it.

pub mod client;
pub mod node;
pub mod protocol;
pub mod render;
pub mod server;
pub mod sessions;
mod status;
pub mod survey;
mod views;
