//! What processes use: processor time and memory, from /proc.

use std::fs;

/// Clock ticks per second of /proc/PID/stat; fixed in Linux' ABI.
const TICKS: f64 = 100.0;

/// A process and all that descend from it.
pub fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let path = format!("/proc/{0}/task", all[at]);
        for thread in fs::read_dir(path).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        at += 1;
    }
    all
}

/// Seconds of processor time that these processes have used, in the kernel too.
/// Children that have ended and were waited for count with their parents.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks: u64 = pids
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .filter_map(|text| {
            // After the name, which may have blanks in it: state is field 3.
            let rest = text.rsplit_once(')')?.1.to_owned();
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
            Some(field(14)? + field(15)?)
        })
        .sum();
    ticks as f64 / TICKS
}

/// Finer than [`cpu_seconds`]: nanoseconds on a processor, by the scheduler's count of
/// every thread.
pub fn run_seconds(pids: &[u32]) -> f64 {
    let mut nanoseconds = 0u64;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let first = text.split_whitespace().next();
            nanoseconds += first.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    nanoseconds as f64 / 1e9
}

/// Resident memory of these processes in bytes; pages that they share count for each.
pub fn resident(pids: &[u32]) -> u64 {
    let of = |pid: &u32| status(*pid, "VmRSS:").unwrap_or(0);
    pids.iter().map(of).sum()
}

/// The most resident memory that a process ever had, in bytes.
pub fn resident_most(pid: u32) -> u64 {
    status(pid, "VmHWM:").unwrap_or(0)
}

/// Proportional memory of these processes in bytes: a page that several share counts once.
pub fn proportional(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        kilobytes(&text, "Pss:").unwrap_or(0)
    };
    pids.iter().map(of).sum()
}

/// Open files of a process.
pub fn files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn status(pid: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    kilobytes(&text, name)
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number << 10)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::process::{BOUND, wait_until};

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        assert!(family(pid).contains(&pid));
        assert!(resident(&[pid]) > 1 << 20);
        assert!(resident_most(pid) >= 1 << 20);
        assert!(proportional(&[pid]) > 1 << 18);
        assert!(files(pid) >= 3);
        // Others may have the core, and threads of other tests take theirs along when they
        // end: it has to grow at some time.
        wait_until("the process to have run", BOUND, || {
            let before = run_seconds(&[pid]);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(30) {}
            run_seconds(&[pid]) - before > 0.01
        });
    }
}
