//! Packet tests: the real program in the kernel, one frame at a time, against
//! what the cases say and against the reference model.
//!
//! They need root and the built object; `cargo xtask test` provides both.

mod forward;
mod icmp;
mod live;
mod parse;
mod random;
mod refuse;
mod state;
mod tables;
