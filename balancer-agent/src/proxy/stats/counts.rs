//! Counters that requests add to: one padded block per thread, so that no two threads
//! ever write to the same cache line, summed up when somebody asks.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::super::types::Cause;

/// Blocks of a set of counters at most; threads beyond share them.
pub const THREADS_MAX: usize = 64;

thread_local! {
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Says which of the proxy's threads this is, counted from 0. Threads that never say so
/// are numbered as they come.
pub fn enter(thread: usize) {
    SLOT.set(Some(thread));
}

/// Number of this thread: which block of counters, which buffer of a log is its own.
pub fn slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SLOT.get().unwrap_or_else(|| {
        let slot = NEXT.fetch_add(1, Ordering::Relaxed);
        SLOT.set(Some(slot));
        slot
    })
}

/// Classes of statuses: none, 1xx to 5xx.
const CLASSES: usize = 6;
/// Causes there are.
const CAUSES: usize = Cause::ALL.len();

/// What the requests of one frontend came to. Kept by the frontend's name, over reloads.
#[derive(Debug)]
pub struct FrontendCounts {
    blocks: Box<[Block]>,
}

/// Two lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Block {
    statuses: [AtomicU64; CLASSES],
    causes: [AtomicU64; CAUSES],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl FrontendCounts {
    /// For so many threads.
    pub fn new(threads: usize) -> Self {
        let blocks = (0..threads.clamp(1, THREADS_MAX)).map(|_| Block::default());
        Self {
            blocks: blocks.collect(),
        }
    }

    /// Counts a request that has ended. `status` is 0 when the client got none; the bytes
    /// are those of the bodies.
    pub fn request(&self, status: u16, cause: Cause, bytes_in: u64, bytes_out: u64) {
        let block = &self.blocks[slot() % self.blocks.len()];
        let add = |counter: &AtomicU64, n: u64| {
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        };
        add(&block.statuses[class(status)], 1);
        // What ended well is what is left: one store less per request.
        add(
            &block.causes[cause.index()],
            u64::from(cause != Cause::Done),
        );
        add(&block.bytes_in, bytes_in);
        add(&block.bytes_out, bytes_out);
    }

    /// Over all threads.
    pub fn total(&self) -> Sums {
        let mut total = Sums::default();
        for block in &self.blocks {
            total.add(&block.sums());
        }
        total
    }

    /// By thread.
    pub fn threads(&self) -> impl Iterator<Item = Sums> + '_ {
        self.blocks.iter().map(Block::sums)
    }
}

impl Block {
    fn sums(&self) -> Sums {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Sums {
            statuses: std::array::from_fn(|i| read(&self.statuses[i])),
            causes: std::array::from_fn(|i| read(&self.causes[i])),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
        }
    }
}

fn class(status: u16) -> usize {
    match status / 100 {
        class @ 1..=5 => usize::from(class),
        _ => 0,
    }
}

/// Counters, read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// By the status's hundreds; 0 is for requests that got none.
    pub statuses: [u64; CLASSES],
    /// By [`Cause::index`], without [`Cause::Done`].
    pub causes: [u64; CAUSES],
    /// Bytes of requests' bodies.
    pub bytes_in: u64,
    /// Bytes of responses' bodies.
    pub bytes_out: u64,
}

impl Sums {
    /// Requests that have ended.
    pub fn requests(&self) -> u64 {
        self.statuses.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        for (sum, n) in self.statuses.iter_mut().zip(other.statuses) {
            *sum += n;
        }
        for (sum, n) in self.causes.iter_mut().zip(other.causes) {
            *sum += n;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_count_apart_and_sum_up() {
        let counts = FrontendCounts::new(3);
        std::thread::scope(|scope| {
            for thread in 0..3_u16 {
                let counts = &counts;
                scope.spawn(move || {
                    enter(usize::from(thread));
                    for _ in 0..1000 {
                        counts.request(200 + 100 * thread, Cause::Done, 1, 10);
                    }
                    counts.request(0, Cause::ClientAborted, 0, 0);
                });
            }
        });
        let total = counts.total();
        assert_eq!(total.requests(), 3003);
        assert_eq!(total.statuses, [3, 0, 1000, 1000, 1000, 0]);
        assert_eq!(total.causes[Cause::ClientAborted.index()], 3);
        assert_eq!(total.causes[Cause::Done.index()], 0);
        assert_eq!((total.bytes_in, total.bytes_out), (3000, 30_000));
        let threads: Vec<u64> = counts.threads().map(|sums| sums.requests()).collect();
        assert_eq!(threads, [1001, 1001, 1001]);
    }

    #[test]
    fn odd_statuses_and_threads_have_a_place() {
        let counts = FrontendCounts::new(0);
        for status in [0, 99, 100, 599, 600, u16::MAX] {
            counts.request(status, Cause::Done, 0, 0);
        }
        assert_eq!(counts.total().statuses, [4, 1, 0, 0, 0, 1]);
    }
}
