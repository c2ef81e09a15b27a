//! The harness: namespaces, the standard lab, processes, real servers, load
//! and the agent, for the integration tests, the demo and the benchmarks.
//!
//! Harness functions panic with a message that says what was expected: a test
//! is one straight line, and what it built is taken down while it unwinds.
//!
//! The web tier has a module of its own, [`http`]: application servers, raw and lax
//! readers of HTTP, and scenes of one namespace with a balancer on loopback.
//!
//! Packet tests need less: [`packets`] describes frames, [`setup`] a small world
//! for the kernel's tables, [`xdp`] runs the real program on one frame, [`model`]
//! says what it must do, [`case`] and [`generator`] bring them together, and
//! [`decode`] explains failures.

pub mod agent;
pub mod bed;
pub mod bench;
pub mod case;
pub mod counters;
pub mod decode;
pub mod demo;
pub mod faults;
pub mod generator;
pub mod http;
pub mod icmp;
pub mod load;
pub mod model;
pub mod netns;
pub mod object;
pub mod packets;
pub mod process;
pub mod scratch;
pub mod server;
pub mod sessions;
pub mod setup;
pub mod sim;
pub mod topology;
pub mod xdp;
