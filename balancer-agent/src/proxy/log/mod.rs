//! The access log: one line per request, written by one thread per file.
//!
//! ```text
//! request threads                                   writer thread of the file
//!   record -> line, in this thread's buffer  --->   takes the full buffers, gives
//!             (bounded; full: dropped, counted)     empty ones, writes, waits a little
//! ```
//!
//! A request thread formats its line straight into a buffer of its own; what it shares
//! with the writer is a lock that the writer holds just long enough to exchange two
//! pointers. That costs less, over both threads, than to hand the record over: no
//! allocation, nothing to free on another thread, and a wake-up only when the writer
//! sleeps (`timing` in `tests.rs` measures both). Nothing here ever waits for the disk.
//!
//! - `format.rs`: records to lines; `escape.rs`: so that a line stays one;
//! - `mask.rs`: session ids are taken out;
//! - `clock.rs`: times as text, made once per second;
//! - `writer.rs`: buffers, the thread, the file.

mod clock;
mod escape;
mod format;
mod mask;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::stats::{LogStatus, Reopened};
use super::types::Record;
use crate::model::http::{self as model, LogFormat};
use crate::model::{Misfit, Named};

pub use mask::Masks;
use writer::Writer;

/// How long those who ask for a file to be opened again wait for its writer.
const PATIENCE: Duration = Duration::from_secs(5);

/// All access logs of the process: frontends that name the same file share its writer,
/// over reloads too.
#[derive(Debug)]
pub struct LogFiles {
    threads: usize,
    writers: Mutex<BTreeMap<PathBuf, Weak<Writer>>>,
}

impl LogFiles {
    /// For so many threads that write records.
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            writers: Mutex::default(),
        }
    }

    /// Opens a log, and makes its file if there is none (mode 0640).
    ///
    /// # Errors
    /// The file can't be opened, or a thread can't be started; the message names the file.
    pub fn open(&self, log: &model::AccessLog, masks: &Arc<Masks>) -> io::Result<AccessLog> {
        let path = canonical(&log.file);
        let mut writers = self.lock();
        writers.retain(|_, writer| writer.strong_count() > 0);
        let writer = match writers.get(&path).and_then(Weak::upgrade) {
            Some(writer) => writer,
            None => {
                let writer = Writer::start(&path, self.threads)
                    .map_err(|error| named(error, "open the access log", &log.file))?;
                writers.insert(path, Arc::downgrade(&writer));
                writer
            }
        };
        Ok(AccessLog {
            writer,
            format: log.format,
            details: log.details,
            masks: Arc::clone(masks),
        })
    }

    /// Has every writer open its file again, after it wrote what there is into the old
    /// one. Waits for them, 5 seconds at most; blocks.
    pub fn reopen(&self) -> Vec<Reopened> {
        let writers = self.writers();
        let deadline = Instant::now() + PATIENCE;
        let asked: Vec<_> = writers.iter().map(|w| (w, w.reopen())).collect();
        let done = asked.into_iter().map(|(writer, answer)| {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match answer.recv_timeout(left) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("the thread that writes it is held up by the file".into()),
            };
            Reopened {
                file: writer.path().display().to_string(),
                error,
            }
        });
        done.collect()
    }

    /// As [`Self::reopen`], without waiting; failures are said in the agent's own log.
    pub fn request_reopen(&self) {
        for writer in self.writers() {
            drop(writer.reopen());
        }
    }

    /// Waits until everything that was logged before is in its file; blocks. False when
    /// that took too long, or a file can't be written.
    pub fn flush(&self, longest: Duration) -> bool {
        let deadline = Instant::now() + longest;
        let asked: Vec<_> = self.writers().iter().map(|w| w.flush()).collect();
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut done = asked.into_iter().map(|a| a.recv_timeout(left()));
        done.all(|answer| answer.is_ok())
    }

    /// Of all files, in the order of their names.
    pub fn status(&self) -> Vec<LogStatus> {
        self.writers().iter().map(|w| w.status()).collect()
    }

    fn writers(&self) -> Vec<Arc<Writer>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Weak<Writer>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks whether a log can have its file, without making it.
///
/// # Errors
/// There is no directory for it.
pub fn look(log: &model::AccessLog) -> Result<(), Misfit> {
    let directory = match log.file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => return Ok(()),
    };
    let why = match directory.metadata() {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => io::Error::from(io::ErrorKind::NotADirectory),
        Err(error) => error,
    };
    let what = format!("can't be made: {}: {why}", directory.display());
    let expected = "a file in a directory that is there: only the file itself is made";
    Err(Misfit::new(Named::Log(log.file.clone()), what, expected))
}

/// One frontend's access log. When the last one that writes to a file is dropped, what was
/// logged is written and the file is closed, by its writer's thread.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: Arc<Writer>,
    format: LogFormat,
    details: bool,
    masks: Arc<Masks>,
}

impl AccessLog {
    /// Opens a log on its own: for a process with one frontend, and tests. See
    /// [`LogFiles::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(log: &model::AccessLog) -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, Into::into);
        LogFiles::new(threads).open(log, &Arc::default())
    }

    /// Logs a request. Never waits: a line for which there is no room is dropped, and
    /// counted.
    pub fn write(&self, record: &Record) {
        self.writer.push(|line, clock| match self.format {
            LogFormat::Json => format::json(record, &self.masks, clock, line),
            LogFormat::Combined => {
                format::apache(record, &self.masks, clock, true, self.details, line);
            }
            LogFormat::Common => {
                format::apache(record, &self.masks, clock, false, self.details, line);
            }
        });
    }

    /// Has the file opened again; does not wait for it.
    pub fn reopen(&self) {
        drop(self.writer.reopen());
    }

    /// Counters of the file.
    pub fn status(&self) -> LogStatus {
        self.writer.status()
    }
}

/// One name for a file, however its directory is written. The file itself may be a link
/// that is changed between rotations.
fn canonical(path: &Path) -> PathBuf {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        // Opening it will say what is wrong.
        _ => path.into(),
    }
}

fn named(error: io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot {what} {}: {error}", path.display()),
    )
}
