//! The harness of the integration tests.
//!
//! Packet tests: [`packets`] describes frames, [`setup`] a small world for the
//! kernel's tables, [`xdp`] runs the real program, [`model`] says what it must do,
//! [`case`] and [`generator`] bring them together, [`decode`] explains failures.

pub mod case;
pub mod decode;
pub mod generator;
pub mod model;
pub mod packets;
pub mod setup;
pub mod xdp;
