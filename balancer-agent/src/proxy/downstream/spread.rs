//! Which thread serves a connection.
//!
//! The kernel deals connections out to the threads' sockets by a hash of their addresses: 64
//! of them may well be 40 on one thread and 24 on the other, and the clients of the first
//! wait longest. So a thread that has clearly more than another hands a connection over,
//! before anything of it is registered or read; afterwards it stays where it is.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A connection that no thread serves yet; does not block.
#[derive(Debug)]
pub(super) struct Accepted {
    /// Its socket.
    pub socket: TcpStream,
    /// As the kernel tells it.
    pub peer: SocketAddr,
}

/// The threads of one frontend, and what each has.
pub(super) struct Spread(Box<[Thread]>);

struct Thread {
    /// Connections, those included that are on their way to it.
    connections: AtomicUsize,
    /// Bounded by the frontend's connections: whatever is sent is counted there.
    sender: UnboundedSender<Accepted>,
    receiver: Mutex<Option<UnboundedReceiver<Accepted>>>,
}

impl Spread {
    /// Over so many threads.
    pub fn new(threads: usize) -> Self {
        let thread = |_| {
            let (sender, receiver) = unbounded_channel();
            Thread {
                connections: AtomicUsize::new(0),
                sender,
                receiver: Mutex::new(Some(receiver)),
            }
        };
        Self((0..threads.max(1)).map(thread).collect())
    }

    /// What is handed to a thread. `None` when it was asked for before.
    pub fn inbox(&self, thread: usize) -> Option<UnboundedReceiver<Accepted>> {
        let receiver = &self.0.get(thread)?.receiver;
        receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Counts a connection for the thread that is to serve it: given back when that is the
    /// one that asks, else on its way.
    pub fn place(&self, here: usize, accepted: Accepted) -> Option<Accepted> {
        let mine = self.0[here].connections.load(Relaxed);
        let least = self.0.iter().min_by_key(|t| t.connections.load(Relaxed));
        let accepted = match least {
            Some(least) if is_clearly_less(least.connections.load(Relaxed), mine) => {
                least.connections.fetch_add(1, Relaxed);
                match least.sender.send(accepted) {
                    Ok(()) => return None,
                    // It accepts no more: this frontend is being removed.
                    Err(back) => {
                        least.connections.fetch_sub(1, Relaxed);
                        back.0
                    }
                }
            }
            _ => accepted,
        };
        self.0[here].connections.fetch_add(1, Relaxed);
        Some(accepted)
    }

    /// A connection of a thread has ended.
    pub fn leave(&self, thread: usize) {
        self.0[thread].connections.fetch_sub(1, Relaxed);
    }
}

/// Whether handing over pays: it wakes another thread. Short connections make numbers that
/// differ by a few all the time.
fn is_clearly_less(least: usize, mine: usize) -> bool {
    mine > least + 1 + least / 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(listener: &std::net::TcpListener) -> Accepted {
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        Accepted { socket, peer }
    }

    #[test]
    fn the_busier_thread_hands_over() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let spread = Spread::new(2);
        let mut inbox = spread.inbox(1).unwrap();
        assert!(spread.inbox(1).is_none());
        let mut here = 0;
        for _ in 0..40 {
            here += usize::from(spread.place(0, accepted(&listener)).is_some());
        }
        let count = |thread: usize| spread.0[thread].connections.load(Relaxed);
        assert_eq!(here, count(0));
        assert_eq!(count(0) + count(1), 40);
        assert!(count(0) - count(1) <= 3, "{} and {}", count(0), count(1));
        let handed = std::iter::from_fn(|| inbox.try_recv().ok()).count();
        assert_eq!(handed, count(1));
        for _ in 0..handed {
            spread.leave(1);
        }
        // One that accepts no more gets none, and none is lost.
        inbox.close();
        let mine = count(0);
        assert!(spread.place(0, accepted(&listener)).is_some());
        assert_eq!((count(0), count(1)), (mine + 1, 0));
    }
}
