//! The agent: configuration in, kernel maps out, and everything between.
//!
//! `config -> model -> reconcile -> dataplane`, never backwards. The binary is
//! `main.rs`; the wiring is `app.rs`; tests and benchmarks use this library.

pub mod admin;
pub mod app;
pub mod cluster;
pub mod config;
pub mod dataplane;
pub mod import;
pub mod model;
pub mod nexthop;
mod placement;
pub mod prober;
pub mod proxy;
pub mod reconcile;
pub mod session;
pub mod steering;
