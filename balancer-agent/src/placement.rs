//! Where and when threads run that somebody waits for.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// What a thread asks to run for at a time, in nanoseconds; the least that Linux takes.
const SLICE: u64 = 100_000;

/// The cores that this process may use.
pub fn cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap_or(false))
        .collect()
}

/// Keeps the calling thread on a core. Left to the scheduler, two threads share one for a
/// while now and then, and the clients of both wait twice as long.
pub fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    let pinned = set
        .set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!(core, %error, "a thread can't be kept on its core");
    }
}

/// Asks the scheduler for short slices: the calling thread gets no more of its core than
/// others, but sooner, which is what a client's longest wait is made of when the core is
/// shared. Linux heeds it from 6.12 on (the slice of EEVDF, sched(7)); earlier ones take it
/// without effect.
pub fn be_prompt() {
    if let Err(error) = set_slice() {
        tracing::debug!(%error, "the scheduler takes no slice");
    }
}

/// Bytes of the structure that calls and kernel agree on.
const SIZE: u32 = size_of::<libc::sched_attr>() as u32;

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How the calling thread is scheduled.
fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: all fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let at = &raw mut attributes;
    // SAFETY: thread 0 is the calling one; the kernel writes at most `SIZE` bytes.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, at, SIZE, 0) })?;
    Ok(attributes)
}

fn set_slice() -> io::Result<()> {
    // What else there is, nice above all, stays as it is.
    let mut attributes = attributes()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        // Somebody has chosen for the whole process.
        return Ok(());
    }
    attributes.size = SIZE;
    attributes.sched_runtime = SLICE;
    let at = &raw const attributes;
    // SAFETY: thread 0 is the calling one; the kernel only reads.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, at, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_short_and_nice_stays() {
        let thread = std::thread::spawn(|| {
            // SAFETY: a plain call; thread 0 is the calling one.
            let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 3) };
            assert_eq!(nice, 0);
            set_slice().expect("the scheduler to take a slice");
            attributes().expect("the scheduler to tell")
        });
        let attributes = thread.join().expect("the thread to end");
        assert_eq!(attributes.sched_nice, 3);
        assert_eq!(attributes.sched_policy, libc::SCHED_OTHER as u32);
        // Before 6.12 there are no slices to be asked for.
        assert!([SLICE, 0].contains(&attributes.sched_runtime));
    }
}
