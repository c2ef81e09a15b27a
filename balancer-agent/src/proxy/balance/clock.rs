//! Time as a number that fits an atomic: microseconds since the process first asked.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// Now. Never 0, so that 0 can mean "never".
pub fn now() -> u64 {
    at(Instant::now())
}

/// That moment; one before the origin is the origin.
pub fn at(instant: Instant) -> u64 {
    micros(instant.saturating_duration_since(origin())).saturating_add(1)
}

/// A duration in microseconds; one that does not fit is the longest.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
