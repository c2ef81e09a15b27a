//! Tests over real sockets: a frontend on a thread of its own, clients that send bytes.

mod frames;
mod framing;
mod limits;
mod memory;
mod reload;
mod secure;
mod server;
mod streams;
