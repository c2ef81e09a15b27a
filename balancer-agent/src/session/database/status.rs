//! What operators see of the sessions on disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::file::{Loaded, Opened, Written};

/// How often a failure that lasts is said again in the log.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// How the writing goes. Shared between the thread that writes and those who ask.
#[derive(Debug)]
pub struct DiskState {
    path: PathBuf,
    loaded: Loaded,
    loading: Duration,
    size: AtomicU64,
    commits: AtomicU64,
    records: AtomicU64,
    rows: AtomicU64,
    failures: AtomicU64,
    changing: Mutex<Changing>,
}

#[derive(Debug, Default)]
struct Changing {
    failing: Option<Failing>,
    aside: Vec<PathBuf>,
}

#[derive(Debug)]
struct Failing {
    why: String,
    since: Instant,
    said: Instant,
}

/// The sessions on disk, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskStatus {
    /// The file.
    pub file: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Why nothing can be written now; null: all is well.
    pub error: Option<String>,
    /// For how long, in milliseconds.
    pub failing_for_ms: Option<u64>,
    /// Tries that failed, since the start.
    pub failures: u64,
    /// Bytes that wait for the disk.
    pub backlog_bytes: u64,
    /// Parts of groups that are to be written whole, because too much waited.
    pub behind: u64,
    /// Changes that were not written one by one for that reason, since the start.
    pub skipped: u64,
    /// Acknowledgements not given because too many waited for the disk, since the start.
    pub waits_full: u64,
    /// Transactions, each confirmed by the disk, since the start.
    pub commits: u64,
    /// Changes of sessions in them.
    pub records: u64,
    /// Rows in them: several changes of a session that wait together are one.
    pub rows: u64,
    /// Sessions, and remembered ends of sessions, that were read at the start.
    pub loaded: u64,
    /// How long that took, in milliseconds.
    pub loaded_in_ms: u64,
    /// Damaged files that this process has set aside.
    pub set_aside: Vec<String>,
}

impl DiskState {
    /// Of a file that was loaded.
    pub(super) fn new(file: &Opened, loaded: Loaded, loading: Duration) -> Self {
        Self {
            path: file.path().to_owned(),
            loaded,
            loading,
            size: file.size().into(),
            commits: 0.into(),
            records: 0.into(),
            rows: 0.into(),
            failures: 0.into(),
            changing: Mutex::new(Changing {
                failing: None,
                aside: file.aside().to_vec(),
            }),
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As it is now, as far as it is known here: what waits is known to the store.
    pub fn status(&self) -> DiskStatus {
        let changing = self.changing();
        let failing = changing.failing.as_ref();
        DiskStatus {
            file: self.path.display().to_string(),
            bytes: self.size.load(Relaxed),
            error: failing.map(|failing| failing.why.clone()),
            failing_for_ms: failing.map(|failing| millis(failing.since.elapsed())),
            failures: self.failures.load(Relaxed),
            commits: self.commits.load(Relaxed),
            records: self.records.load(Relaxed),
            rows: self.rows.load(Relaxed),
            loaded: self.loaded.rows,
            loaded_in_ms: millis(self.loading),
            set_aside: changing.aside.iter().map(|path| show(path)).collect(),
            ..DiskStatus::default()
        }
    }

    /// Why nothing can be written now, if so.
    pub fn error(&self) -> Option<String> {
        let changing = self.changing();
        changing.failing.as_ref().map(|failing| failing.why.clone())
    }

    pub(super) fn wrote(&self, file: &Opened, written: Written) {
        self.size.store(file.size(), Relaxed);
        self.commits.fetch_add(1, Relaxed);
        self.records.fetch_add(written.records, Relaxed);
        self.rows.fetch_add(written.rows, Relaxed);
        let failed = self.changing().failing.take();
        if let Some(failed) = failed {
            tracing::info!(
                file = %self.path.display(),
                failed_for_s = failed.since.elapsed().as_secs(),
                "sessions are written to disk again",
            );
        }
    }

    pub(super) fn failed(&self, why: String) {
        self.failures.fetch_add(1, Relaxed);
        let now = Instant::now();
        let mut changing = self.changing();
        let (since, said) = match &changing.failing {
            Some(before) => (before.since, Some(before.said)),
            None => (now, None),
        };
        let say = said.is_none_or(|said| now - said >= SAY_AGAIN);
        if say {
            tracing::error!(
                file = %self.path.display(),
                error = %why,
                "sessions can't be written to disk: they are kept in memory, and written as \
                 soon as they can be",
            );
        }
        changing.failing = Some(Failing {
            why,
            since,
            said: if say { now } else { said.unwrap_or(now) },
        });
    }

    pub(super) fn began_new_file(&self, file: &Opened) {
        self.changing().aside = file.aside().to_vec();
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, Changing> {
        // Every change is one assignment: there is nothing half done to see.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
