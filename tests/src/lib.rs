//! The harness: namespaces, the standard lab, processes, real servers, load
//! and the agent, for the integration tests, the demo and the benchmarks.
//!
//! Harness functions panic with a message that says what was expected: a test
//! is one straight line, and what it built is taken down while it unwinds.

pub mod agent;
pub mod bed;
pub mod counters;
pub mod demo;
pub mod load;
pub mod netns;
pub mod object;
pub mod process;
pub mod server;
pub mod topology;
