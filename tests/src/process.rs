//! Child processes: started, signalled by their own id, killed when dropped, and
//! heard (their log is printed when the test that owns them fails).

use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the harness waits for what should take milliseconds.
pub const BOUND: Duration = Duration::from_secs(10);

/// Read by whoever makes what outlives this process, while it does so.
static GATE: RwLock<()> = RwLock::new(());

/// Keeps [`close`] waiting as long as it is held: for whoever makes what it removes.
pub(crate) fn gate() -> RwLockReadGuard<'static, ()> {
    GATE.read().unwrap_or_else(PoisonError::into_inner)
}

/// From now on no thread makes processes, namespaces or directories: one that tries waits
/// until this process exits. For a signal handler's thread, before it removes all of them.
pub fn close() {
    std::mem::forget(GATE.write());
}

/// A child process that is killed when it goes out of scope.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a child whose output is appended to the file `log`.
    #[track_caller]
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Self {
        let _open = gate();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|error| panic!("open {}: {error}", log.display()));
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("duplicate a file"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name} ({command:?}): {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or(String::new(), |bytes| {
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }

    /// Whether it has not ended yet.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.running(), "{} has ended: {}", self.name, self.log());
        kill(Pid::from_raw(self.child.id() as i32), signal)
            .unwrap_or_else(|error| panic!("send {signal} to {}: {error}", self.name));
        if signal == Signal::SIGSTOP {
            self.wait_stopped();
        }
    }

    /// Waits until every thread stands still: the signal's sender does not.
    #[track_caller]
    fn wait_stopped(&self) {
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_until(&format!("{} to stand still", self.name), BOUND, || {
            let tasks = fs::read_dir(&tasks).into_iter().flatten().flatten();
            tasks
                .filter_map(|task| fs::read_to_string(task.path().join("stat")).ok())
                .all(|stat| {
                    // The name before it may have any characters.
                    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
                    state.is_some_and(|rest| rest.starts_with('T'))
                })
        });
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end (SIGTERM) and waits, at most [`BOUND`].
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(BOUND)
    }

    /// Waits until it has ended; panics when that takes longer than `bound`.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let mut status = None;
        wait_until(&format!("{} to end", self.name), bound, || {
            status = self.child.try_wait().expect("wait for a child");
            status.is_some()
        });
        status.unwrap_or_else(|| ExitStatus::from_raw(0))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        // Closed, what fails does so because all is being taken down.
        let log = if thread::panicking() && GATE.try_read().is_ok() {
            self.log()
        } else {
            String::new()
        };
        if !log.is_empty() {
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(60);
            eprintln!("--- {} said ({} lines)", self.name, lines.len());
            for line in &lines[from..] {
                eprintln!("    {line}");
            }
        }
    }
}

/// Waits until the condition holds; panics when it does not within `bound`.
#[track_caller]
pub fn wait_until(what: &str, bound: Duration, condition: impl FnMut() -> bool) {
    assert!(
        came_true(bound, condition),
        "waited {bound:?} in vain for {what}"
    );
}

/// Waits until the condition holds, and says whether it did within `bound`.
pub fn came_true(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > bound {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Watches how steadily this machine works: how late the worst of many short sleeps
/// ended. Where that comes near TCP's shortest timeout (200 ms), segments are sent again
/// without having been lost.
pub struct Stalls {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Stalls {
    /// Starts to watch.
    pub fn watch() -> Self {
        const SHORT: Duration = Duration::from_millis(5);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut worst = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                thread::sleep(SHORT);
                worst = worst.max(begin.elapsed().saturating_sub(SHORT));
            }
            worst
        });
        Self { stop, thread }
    }

    /// The worst so far; ends the watch.
    pub fn worst(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// The path of a binary that was built next to the running one.
#[track_caller]
pub fn sibling(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the path of this binary");
    let mut dir = me.parent().expect("a directory");
    // Test binaries lie in `deps/`, one below.
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir = dir.parent().expect("a directory");
    }
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is missing: build it in the same profile",
        path.display()
    );
    path
}
