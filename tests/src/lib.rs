//! The harness.

pub mod case;
pub mod decode;
pub mod generator;
pub mod model;
pub mod packets;
pub mod setup;
pub mod xdp;
