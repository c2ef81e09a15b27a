//! Who of a connection has something to do: the wakers of its streams and of h2's side of
//! it, all of one task.
//!
//! ```text
//! a stream's waker --> its mark --+--> the task is woken, unless it runs:
//! h2's waker --------> its mark --+    it looks at all marks before it waits
//! ```
//!
//! So one connection is one task, whatever number of streams it has, but only those streams
//! are polled for which something has come. Most wakes come from within the task: h2 wakes
//! itself when a stream has said something, and a stream when a frame has come for it. These
//! are a mark each, not another turn of the task.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// Streams of a group: bits of its marks.
const GROUP: usize = 64;

/// The marks of a connection.
pub(super) struct Board {
    shared: Arc<Shared>,
    /// The marks of streams, [`GROUP`] in each; as many as streams have run side by side.
    groups: Vec<Arc<Group>>,
    /// h2's.
    side: Waker,
    /// The task's, as `shared` has it: compared without a lock.
    task: Option<Waker>,
}

struct Shared {
    /// h2's mark.
    side: AtomicBool,
    /// The task runs.
    running: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Shared {
    fn wake(&self) {
        // Whoever marks first and looks at this then is seen by who says that it does not
        // run and looks at the marks then.
        if !self.running.load(SeqCst) {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(task) = &*task {
                task.wake_by_ref();
            }
        }
    }
}

struct Group {
    marks: AtomicU64,
    shared: Arc<Shared>,
}

/// Marks h2's side.
struct Side(Arc<Shared>);

impl Wake for Side {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.0.side.swap(true, SeqCst) {
            self.0.wake();
        }
    }
}

/// Marks a stream.
struct Part {
    mark: u64,
    group: Arc<Group>,
}

impl Wake for Part {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.group.marks.fetch_or(self.mark, SeqCst) & self.mark == 0 {
            self.group.shared.wake();
        }
    }
}

impl Board {
    /// With h2's side marked.
    pub fn new() -> Self {
        let shared = Arc::new(Shared {
            side: AtomicBool::new(true),
            running: AtomicBool::new(false),
            task: Mutex::new(None),
        });
        Self {
            side: Waker::from(Arc::new(Side(Arc::clone(&shared)))),
            shared,
            groups: Vec::new(),
            task: None,
        }
    }

    /// The task begins to run.
    pub fn enter(&mut self, task: &Waker) {
        if !self
            .task
            .as_ref()
            .is_some_and(|known| known.will_wake(task))
        {
            let shared = &self.shared.task;
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            *shared = Some(task.clone());
            self.task = Some(task.clone());
        }
        self.shared.running.store(true, SeqCst);
    }

    /// Whether the task may wait: nothing is marked. Otherwise it goes on running.
    pub fn leave(&self) -> bool {
        self.shared.running.store(false, SeqCst);
        let marked =
            self.shared.side.load(SeqCst) || self.groups.iter().any(|g| g.marks.load(SeqCst) != 0);
        if marked {
            self.shared.running.store(true, SeqCst);
        }
        !marked
    }

    /// The task lets others run, and comes back.
    pub fn pause(&self) {
        self.shared.running.store(false, SeqCst);
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// h2's waker.
    pub fn side(&self) -> &Waker {
        &self.side
    }

    /// Marks h2's side.
    pub fn mark_side(&self) {
        self.shared.side.store(true, SeqCst);
    }

    /// Takes the mark of h2's side.
    pub fn take_side(&self) -> bool {
        self.shared.side.load(SeqCst) && self.shared.side.swap(false, SeqCst)
    }

    /// A waker for the stream of this number.
    pub fn waker(&mut self, number: usize) -> Waker {
        let group = number / GROUP;
        while self.groups.len() <= group {
            self.groups.push(Arc::new(Group {
                marks: AtomicU64::new(0),
                shared: Arc::clone(&self.shared),
            }));
        }
        Waker::from(Arc::new(Part {
            mark: 1 << (number % GROUP),
            group: Arc::clone(&self.groups[group]),
        }))
    }

    /// How many groups of marks there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Takes the marks of a group.
    pub fn take(&self, group: usize) -> Marks {
        let marks = &self.groups[group].marks;
        let marks = match marks.load(SeqCst) {
            0 => 0,
            _ => marks.swap(0, SeqCst),
        };
        Marks {
            first: group * GROUP,
            marks,
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Wakers may be left with sockets of others: they are to keep nothing.
        let mut task = (self.shared.task.lock()).unwrap_or_else(PoisonError::into_inner);
        *task = None;
    }
}

/// The numbers of marked streams.
pub(super) struct Marks {
    first: usize,
    marks: u64,
}

impl Iterator for Marks {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.marks == 0 {
            return None;
        }
        let bit = self.marks.trailing_zeros() as usize;
        self.marks &= self.marks - 1;
        Some(self.first + bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn marks_wake_the_task_while_it_waits_only() {
        let woken = Arc::new(Woken::default());
        let times = || woken.0.load(SeqCst);
        let task = Waker::from(Arc::clone(&woken));
        let mut board = Board::new();
        board.enter(&task);
        assert!(board.take_side());
        assert!(!board.take_side());
        let (one, other) = (board.waker(3), board.waker(70));
        assert_eq!(board.groups(), 2);
        assert!(board.leave());
        one.wake_by_ref();
        one.wake_by_ref();
        assert_eq!(times(), 1);
        board.enter(&task);
        other.wake_by_ref();
        board.side().wake_by_ref();
        assert_eq!(times(), 1);
        assert!(!board.leave());
        assert_eq!(board.take(0).collect::<Vec<_>>(), [3]);
        assert_eq!(board.take(1).collect::<Vec<_>>(), [70]);
        assert_eq!(board.take(1).count(), 0);
        assert!(!board.leave());
        assert!(board.take_side());
        assert!(board.leave());
        board.pause();
        assert_eq!(times(), 2);
        drop(board);
        one.wake_by_ref();
        assert_eq!(times(), 2);
        assert_eq!(Arc::strong_count(&woken), 2);
    }
}
