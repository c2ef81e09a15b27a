//! A file, the thread that writes it, and the buffers between it and those who log.
//!
//! The thread sleeps until it is woken by the first line, and then lingers, so that under
//! load it runs some twenty times a second and writes large pieces:
//!
//! ```text
//!            first line                    nothing came
//! asleep --------------> write, linger  --------------> asleep
//!                          ^       |
//!                          +-------+  lines came; a buffer is full enough: at once
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::clock::Clock;
use crate::proxy::stats::{LogStatus, THREADS_MAX, slot};

/// Bytes that wait in one buffer at most.
pub(super) const BUFFER_MAX: usize = 4 << 20;
/// Bytes in one buffer that have the thread write at once.
const BUFFER_FULL: usize = 128 << 10;
/// A buffer that grew beyond this gives its memory back: fresh memory is dear.
const BUFFER_KEPT: usize = 512 << 10;
/// How long the thread gathers lines before it writes them.
const LINGER: Duration = Duration::from_millis(50);
/// Pause before something that can't be written is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Pause between two messages about dropped lines.
const SAY: Duration = Duration::from_secs(10);

/// Whoever logs, and the thread, share it.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    shards: Box<[Shard]>,
    /// The thread sleeps until it is woken.
    asleep: AtomicBool,
    /// A buffer has [`BUFFER_FULL`], and the thread has been told.
    urged: AtomicBool,
    /// Nobody is left who logs.
    ended: AtomicBool,
    dropped: AtomicU64,
    written: AtomicU64,
    orders: Mutex<Vec<Order>>,
    failing: Mutex<Option<String>>,
}

/// One thread's buffer; two cache lines, so that threads do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Buffer>);

#[derive(Debug, Default)]
struct Buffer {
    lines: Vec<u8>,
    clock: Clock,
}

#[derive(Debug)]
enum Order {
    Reopen(Sender<io::Result<()>>),
    Flush(Sender<()>),
}

/// The side of those who log. The thread ends after the last one is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Writer {
    /// Opens a file and starts its thread.
    pub fn start(path: &Path, threads: usize) -> io::Result<Arc<Self>> {
        let file = open(path)?;
        // One more than can be locked at a time (the writer has one), so that a thread
        // that finds its own taken finds another one free.
        let shards = threads.clamp(1, THREADS_MAX) + 1;
        let shared = Arc::new(Shared {
            path: path.into(),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            asleep: AtomicBool::new(false),
            urged: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            written: AtomicU64::new(0),
            orders: Mutex::default(),
            failing: Mutex::default(),
        });
        let run = Run::new(Arc::clone(&shared), file);
        let thread = thread::Builder::new().name("access-log".into());
        let thread = thread.spawn(move || run.run())?.thread().clone();
        Ok(Arc::new(Self { shared, thread }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Adds a line that `format` appends to a buffer.
    pub fn push(&self, format: impl FnOnce(&mut Vec<u8>, &mut Clock)) {
        let shared = &*self.shared;
        let Some(mut buffer) = shared.buffer() else {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Buffer { lines, clock } = &mut *buffer;
        if lines.len() >= BUFFER_MAX {
            drop(buffer);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        format(lines, clock);
        let filled = lines.len();
        drop(buffer);
        // The buffer's lock orders this after the thread's last look into it: either the
        // thread has seen this line, or this sees that the thread is about to sleep.
        let wake = shared.asleep.load(Ordering::Relaxed)
            && shared.asleep.swap(false, Ordering::AcqRel)
            || filled > BUFFER_FULL && !shared.urged.swap(true, Ordering::AcqRel);
        if wake {
            self.thread.unpark();
        }
    }

    /// Has the file opened again; the answer comes when it was.
    pub fn reopen(&self) -> Receiver<io::Result<()>> {
        let (done, answer) = mpsc::channel();
        self.order(Order::Reopen(done));
        answer
    }

    /// Answers when all that was logged before is written.
    pub fn flush(&self) -> Receiver<()> {
        let (done, answer) = mpsc::channel();
        self.order(Order::Flush(done));
        answer
    }

    fn order(&self, order: Order) {
        lock(&self.shared.orders).push(order);
        self.thread.unpark();
    }

    /// Whether the thread sleeps until it is woken.
    #[cfg(test)]
    pub fn is_asleep(&self) -> bool {
        self.shared.asleep.load(Ordering::Acquire)
    }

    /// Counters.
    pub fn status(&self) -> LogStatus {
        let shared = &*self.shared;
        let waiting = shared.shards.iter().map(|s| lock(&s.0).lines.len() as u64);
        LogStatus {
            file: shared.path.display().to_string(),
            bytes: shared.written.load(Ordering::Relaxed),
            waiting: waiting.sum(),
            waiting_limit: (shared.shards.len() * BUFFER_MAX) as u64,
            dropped: shared.dropped.load(Ordering::Relaxed),
            error: lock(&shared.failing).clone(),
        }
    }
}

impl Shared {
    /// This thread's buffer; if that is just being emptied, another one. Never waits.
    fn buffer(&self) -> Option<MutexGuard<'_, Buffer>> {
        let own = slot() % self.shards.len();
        // Twice, for the case that what was free is taken in the meantime.
        let order = (own..self.shards.len()).chain(0..own);
        order.clone().chain(order).find_map(|shard| {
            let shard = &self.shards[shard].0;
            match shard.try_lock() {
                Ok(buffer) => Some(buffer),
                Err(TryLockError::Poisoned(buffer)) => Some(buffer.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The side of the thread.
struct Run {
    shared: Arc<Shared>,
    file: File,
    /// Being written; bytes before `done` are.
    batch: Vec<u8>,
    done: usize,
    /// What was dropped when it was last said, and when that was.
    said: (u64, Option<Instant>),
}

/// How an attempt to write everything went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Nothing,
    Lines,
    Failed,
}

impl Run {
    fn new(shared: Arc<Shared>, file: File) -> Self {
        Self {
            shared,
            file,
            batch: Vec::new(),
            done: 0,
            said: (0, None),
        }
    }

    fn run(mut self) {
        loop {
            // Before the buffers are looked at: what is pushed before the last drop, or
            // before an order was given, is in them.
            let ended = self.shared.ended.load(Ordering::Acquire);
            let orders = std::mem::take(&mut *lock(&self.shared.orders));
            self.shared.urged.store(false, Ordering::Release);
            let wrote = self.write_all();
            self.obey(orders);
            self.say_dropped(ended);
            if ended {
                return;
            }
            match wrote {
                Wrote::Lines => thread::park_timeout(LINGER),
                Wrote::Failed => thread::park_timeout(AGAIN),
                Wrote::Nothing => self.sleep(),
            }
        }
    }

    /// Until a line or an order comes.
    fn sleep(&self) {
        let shared = &*self.shared;
        shared.asleep.store(true, Ordering::Release);
        let empty = |shard: &Shard| lock(&shard.0).lines.is_empty();
        let nothing = shared.shards.iter().all(empty)
            && lock(&shared.orders).is_empty()
            && !shared.ended.load(Ordering::Acquire);
        if nothing {
            // Whoever changes one of these unparks afterwards; a wake-up for no reason
            // only looks once more.
            match shared.dropped.load(Ordering::Relaxed) == self.said.0 {
                true => thread::park(),
                // Some still have to be told.
                false => thread::park_timeout(SAY),
            }
        }
        shared.asleep.store(false, Ordering::Release);
    }

    /// Writes what is left of the last batch, and then every buffer.
    fn write_all(&mut self) -> Wrote {
        let mut wrote = Wrote::Nothing;
        if self.done < self.batch.len() && !self.write_batch() {
            return Wrote::Failed;
        }
        for shard in 0..self.shared.shards.len() {
            {
                let mut buffer = lock(&self.shared.shards[shard].0);
                if buffer.lines.is_empty() {
                    continue;
                }
                std::mem::swap(&mut buffer.lines, &mut self.batch);
            }
            wrote = Wrote::Lines;
            if !self.write_batch() {
                return Wrote::Failed;
            }
        }
        wrote
    }

    /// Writes the batch, and makes room for the next; false when that is to be tried again.
    fn write_batch(&mut self) -> bool {
        while self.done < self.batch.len() {
            match self.file.write(&self.batch[self.done..]) {
                Ok(0) => return self.failed(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    self.done += bytes;
                    let written = &self.shared.written;
                    written.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed(error),
            }
        }
        let path = self.shared.path.display();
        if lock(&self.shared.failing).take().is_some() {
            tracing::info!(file = %path, "the access log is written again");
        }
        self.done = 0;
        self.batch.clear();
        self.batch.shrink_to(BUFFER_KEPT);
        true
    }

    fn failed(&self, error: io::Error) -> bool {
        let mut failing = lock(&self.shared.failing);
        let text = match error.kind() {
            // A pipe that nobody reads as fast.
            io::ErrorKind::WouldBlock => "its reader is too slow".into(),
            _ => error.to_string(),
        };
        if failing.as_ref() != Some(&text) {
            let file = self.shared.path.display();
            tracing::error!(%file, error = text, "the access log can't be written; trying again");
            *failing = Some(text);
        }
        false
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Reopen(done) => {
                    let result = self.reopen();
                    let _ = done.send(result);
                }
                Order::Flush(done) => match self.done < self.batch.len() {
                    // Again after the next attempt; whoever waits has a limit.
                    true => lock(&self.shared.orders).push(Order::Flush(done)),
                    false => _ = done.send(()),
                },
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = self.shared.path.display();
        match open(&self.shared.path) {
            Ok(opened) => {
                self.file = opened;
                // The beginning of a line that was cut is in the old file.
                if self.done > 0 && self.batch.get(self.done - 1) != Some(&b'\n') {
                    let rest = &self.batch[self.done..];
                    let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
                    self.done += line;
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
                tracing::info!(%file, "access log opened again");
                Ok(())
            }
            Err(error) => {
                tracing::error!(%file, %error, "cannot open the access log again; the old file is written on");
                Err(error)
            }
        }
    }

    /// Says how many lines were dropped, but not too often.
    fn say_dropped(&mut self, ended: bool) {
        if ended {
            // What could not be written at the end is lost.
            let rest = &self.batch[self.done..];
            let mut lost = lines(rest);
            for shard in &self.shared.shards {
                lost += lines(&lock(&shard.0).lines);
            }
            self.shared.dropped.fetch_add(lost, Ordering::Relaxed);
        }
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        let new = dropped - self.said.0;
        let soon = self.said.1.is_some_and(|said| said.elapsed() < SAY);
        if new == 0 || soon && !ended {
            return;
        }
        let file = self.shared.path.display();
        tracing::warn!(%file, dropped = new, "lines of the access log were dropped");
        self.said = (dropped, Some(Instant::now()));
    }
}

fn lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// For appending, so that several writers and a truncation do no harm. Not blocking: a
/// pipe without a reader is an error, and one that is full is tried again.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
}
