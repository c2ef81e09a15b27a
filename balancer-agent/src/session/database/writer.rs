//! The thread that writes, and its two ends of the queue.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::super::disk::IN_FLIGHT;
use super::fault::Fault;
use super::file::Opened;
use super::status::DiskState;

/// First pause before a write that failed is tried again; it doubles each time.
const RETRY: Duration = Duration::from_millis(250);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// The pause is at least so many times what it takes to open the file, which is read whole.
const RETRY_SHARE: u32 = 10;

/// Between the beginnings of two transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the disk: somebody waits.
    Fast,
    /// At least so long: nobody waits, and what comes meanwhile shares one.
    Slow(Duration),
}

/// What the thread says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The last batch that is safe, and all before it.
    pub done: u64,
    /// Files that were begun since the start: each has nothing but what came since.
    pub begun: u64,
}

struct Batch {
    seq: u64,
    bytes: Vec<u8>,
}

/// The driver's end of the queue. Dropped, it lets the thread write what waits, once, and
/// end.
pub struct Link {
    batches: SyncSender<Batch>,
    reports: watch::Receiver<Report>,
    last: Arc<Mutex<Vec<Batch>>>,
    state: Arc<DiskState>,
}

impl Link {
    /// Takes a batch; never waits.
    pub fn write(&self, seq: u64, bytes: Vec<u8>) {
        // The store has no more than the queue holds on their way, and a thread that has
        // ended will not say that it is safe.
        if let Err(TrySendError::Full(batch)) = self.batches.try_send(Batch { seq, bytes }) {
            self.last().push(batch);
        }
    }

    /// Takes a batch that is written when this end is dropped.
    pub fn leave(&self, seq: u64, bytes: Vec<u8>) {
        self.last().push(Batch { seq, bytes });
    }

    /// The next report. Loses nothing when it is dropped half way.
    pub async fn report(&mut self) -> Report {
        if self.reports.changed().await.is_err() {
            // The thread has failed, and says nothing more.
            std::future::pending::<()>().await;
        }
        *self.reports.borrow_and_update()
    }

    /// How the writing goes.
    pub fn state(&self) -> &Arc<DiskState> {
        &self.state
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Vec<Batch>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread of a file that has been loaded.
///
/// # Errors
/// The system has no thread.
pub fn start(
    file: Opened,
    state: Arc<DiskState>,
    pace: Pace,
) -> std::io::Result<(Link, JoinHandle<()>)> {
    let (batches, queue) = sync_channel(IN_FLIGHT as usize);
    let (reports, seen) = watch::channel(Report::default());
    let last = Arc::<Mutex<Vec<Batch>>>::default();
    let link = Link {
        batches,
        reports: seen,
        last: Arc::clone(&last),
        state: Arc::clone(&state),
    };
    let writer = Writer {
        file,
        state,
        queue,
        reports,
        last,
        pace,
        waiting: Vec::new(),
        ending: false,
    };
    let thread = thread::Builder::new().name("sessions-disk".into());
    let thread = thread.spawn(move || writer.run())?;
    Ok((link, thread))
}

struct Writer {
    file: Opened,
    state: Arc<DiskState>,
    queue: Receiver<Batch>,
    reports: watch::Sender<Report>,
    last: Arc<Mutex<Vec<Batch>>>,
    pace: Pace,
    /// As many as the store has on their way, at most.
    waiting: Vec<Batch>,
    ending: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let began = Instant::now();
            self.fetch();
            if !self.waiting.is_empty() && !self.write() && self.ending {
                tracing::error!(
                    file = %self.file.path().display(),
                    "the last changes of sessions are not on disk",
                );
                break;
            }
            if self.ending {
                break;
            }
            if let Pace::Slow(pause) = self.pace {
                self.pause(pause.saturating_sub(began.elapsed()));
            }
        }
        self.file.close();
    }

    /// Waits for something to write, and takes all there is.
    fn fetch(&mut self) {
        if self.waiting.is_empty() && !self.ending {
            match self.queue.recv() {
                Ok(batch) => self.waiting.push(batch),
                Err(_) => self.ending = true,
            }
        }
        self.waiting.extend(self.queue.try_iter());
        if self.ending {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            self.waiting.append(&mut last);
            self.waiting.sort_by_key(|batch| batch.seq);
        }
    }

    /// Waits, but not longer than there is somebody to work for.
    fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.ending {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.queue.recv_timeout(left) {
                Ok(batch) => self.waiting.push(batch),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.ending = true,
            }
        }
    }

    /// Writes what waits, however long the disk takes to take it. `false`: it could not be
    /// written, and nobody is left to wait.
    fn write(&mut self) -> bool {
        let mut pause = RETRY;
        loop {
            let batches = self.waiting.iter().map(|batch| &batch.bytes[..]);
            let fault = match self.file.write(batches) {
                Ok(written) => {
                    self.state.wrote(&self.file, written);
                    self.done(false);
                    return true;
                }
                Err(Fault::Unreadable(error)) => {
                    // Only a mistake of this program could do it. What the batches said is
                    // in memory, and is written anew from there.
                    tracing::error!(%error, "a batch of sessions can't be read; all are written anew");
                    self.done(true);
                    return true;
                }
                Err(fault) => fault,
            };
            self.state.failed(fault.to_string());
            if self.ending {
                return false;
            }
            self.pause(pause);
            self.fetch();
            let began = Instant::now();
            match self.file.reopen() {
                Ok(false) => {}
                Ok(true) => {
                    self.state.began_new_file(&self.file);
                    self.reports.send_modify(|report| report.begun += 1);
                }
                // Said at the next try to write, which fails for want of a file.
                Err(fault) => self.state.failed(fault.to_string()),
            }
            let opening = began.elapsed() * RETRY_SHARE;
            pause = (pause * 2).min(RETRY_MAX).max(opening);
        }
    }

    /// All that waited is safe, or (`anew`) the store has to write it again.
    fn done(&mut self, anew: bool) {
        let last = self.waiting.iter().map(|batch| batch.seq).max();
        self.reports.send_modify(|report| {
            report.done = report.done.max(last.unwrap_or_default());
            report.begun += u64::from(anew);
        });
        self.waiting.clear();
    }
}
