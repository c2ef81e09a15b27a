//! Packets, byte for byte as the protocol's description has them.

mod decoding;
mod encoding;
mod fuzz;
mod packets;
