//! Time as the benchmarks take it: a pinned thread's own CPU time, several runs
//! of everything in turn, and of these the least and the middle.

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Keeps the calling thread on the last CPU that it may use: the first serves
/// most interrupts.
///
/// # Errors
/// What the kernel says.
pub fn pin() -> Result<usize> {
    let last = allowed()?.last().copied().context("no CPU is allowed")?;
    keep_on(last)
}

/// Keeps the calling thread on the `n`th of the CPUs that it may use, counted around.
///
/// # Errors
/// What the kernel says.
pub fn pin_to(n: usize) -> Result<usize> {
    let allowed = allowed()?;
    ensure!(!allowed.is_empty(), "no CPU is allowed");
    keep_on(allowed[n % allowed.len()])
}

fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPU affinity")?;
    let all = 0..CpuSet::count();
    Ok(all
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

fn keep_on(cpu: usize) -> Result<usize> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).context("cannot pin the thread")?;
    Ok(cpu)
}

/// CPU time of the calling thread, in nanoseconds.
///
/// # Errors
/// What the kernel says.
pub fn thread_time() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// The same measurement, several times.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Each sample together with the other's of the same turn.
    pub fn pair(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(a, b)| of(*a, *b))
                .collect(),
        )
    }

    /// The least: what the work takes when nothing disturbs it.
    ///
    /// # Errors
    /// Without samples.
    pub fn min(&self) -> Result<f64> {
        ensure!(!self.0.is_empty(), "nothing was measured");
        Ok(self.0.iter().copied().fold(f64::INFINITY, f64::min))
    }

    /// The greatest: what a promise is held against.
    ///
    /// # Errors
    /// Without samples.
    pub fn max(&self) -> Result<f64> {
        ensure!(!self.0.is_empty(), "nothing was measured");
        Ok(self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    }

    /// The middle one.
    ///
    /// # Errors
    /// Without samples.
    pub fn median(&self) -> Result<f64> {
        ensure!(!self.0.is_empty(), "nothing was measured");
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        Ok(sorted[sorted.len() / 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_and_middle() {
        let mut samples = Samples::default();
        assert!(samples.min().is_err());
        for value in [3.0, 1.0, 2.0, 9.0, 8.0] {
            samples.add(value);
        }
        assert_eq!(samples.min().unwrap(), 1.0);
        assert_eq!(samples.median().unwrap(), 3.0);
        assert_eq!(samples.max().unwrap(), 9.0);
    }
}
