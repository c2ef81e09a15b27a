//! The web tier's part of a configuration: `[http]`, HTTP frontends, and what
//! pools and backends say for requests.
//!
//! - `raw`: the tables as written; `value`: single values; `files`: files that
//!   the configuration names;
//! - `frontend`, `site`, `route`: frontends and what becomes of requests;
//! - `pool`, `sticky`, `ajp`: pools and backends;
//! - `cross`: what has to fit together over frontends and pools.

pub(super) mod ajp;
pub(super) mod cross;
pub(super) mod files;
pub(super) mod frontend;
pub(super) mod pool;
pub(super) mod raw;
mod route;
mod site;
mod sticky;
pub(super) mod value;

use std::time::Duration;

use super::findings::Findings;
use super::resolve::duration_or;
use crate::model::http::Http;
use raw::RawHttp;

/// Builds `[http]`; the frontends are added later.
pub(super) fn http(raw: &RawHttp, findings: &mut Findings) -> Http {
    let d = Http::default();
    let mut number = |key, field, default, least: u64, most| {
        let value = findings.or(key, field, default as u64, |v| v.integer(least..=most));
        // Ranges end far below what a usize holds.
        usize::try_from(value).unwrap_or(default)
    };
    let threads = number("threads", &raw.threads, d.threads, 1, 1_024);
    let learned_max = number(
        "learned_max",
        &raw.learned_max,
        d.learned_max,
        1_000,
        100_000_000,
    );
    let max_connections = number(
        "max_connections",
        &raw.max_connections,
        d.max_connections,
        1,
        10_000_000,
    );
    let pin_threads = findings.or("pin_threads", &raw.pin_threads, d.pin_threads, |value| {
        value.boolean()
    });
    let range = Duration::from_millis(100)..=Duration::from_secs(86_400);
    let drain_timeout = duration_or(
        findings,
        "drain_timeout",
        &raw.drain_timeout,
        d.drain_timeout,
        range,
    );
    Http {
        threads,
        pin_threads,
        learned_max,
        max_connections,
        drain_timeout,
        frontends: Vec::new(),
    }
}
