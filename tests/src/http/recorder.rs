//! A backend that records every byte it gets, per connection, and answers each request
//! as soon as a strict reader sees it whole.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::lax::{self, STRICT};
use crate::netns::Netns;

/// The answer to everything.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nx-server: recorder\r\ncontent-length: 2\r\n\r\nok";

/// What came on one connection.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Number of the connection.
    pub connection: usize,
    /// Bytes, in order.
    pub bytes: Vec<u8>,
    /// The other side has closed.
    pub closed: bool,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    streams: Mutex<Vec<Stream>>,
}

/// The recording backend. Dropped, it ends.
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Listens on an address of a namespace.
    #[track_caller]
    pub fn start(ns: &Netns, at: SocketAddr) -> Self {
        let listener = ns.enter(|| TcpListener::bind(at));
        let listener = listener.unwrap_or_else(|error| panic!("listen on {at}: {error}"));
        listener.set_nonblocking(true).expect("a listener");
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let thread = std::thread::spawn(move || accept(&listener, &ours));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// What has come since the last call, by connection. Bytes of a request that is not
    /// whole are given once, too: what follows them is a stream of its own.
    pub fn take(&self) -> Vec<Stream> {
        let mut streams = self.shared.streams.lock().expect("a lock");
        let taken = streams.iter().filter(|stream| !stream.bytes.is_empty());
        let taken = taken.cloned().collect();
        for stream in streams.iter_mut() {
            stream.bytes.clear();
        }
        taken
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would be the second one.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let connection = {
                    let mut streams = shared.streams.lock().expect("a lock");
                    let connection = streams.len();
                    streams.push(Stream {
                        connection,
                        ..Stream::default()
                    });
                    connection
                };
                let shared = Arc::clone(shared);
                threads.push(std::thread::spawn(move || {
                    talk(stream, connection, &shared);
                }));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn talk(mut stream: TcpStream, connection: usize, shared: &Shared) {
    stream.set_nonblocking(false).expect("a socket");
    stream.set_nodelay(true).expect("a socket");
    let tick = Duration::from_millis(20);
    stream.set_read_timeout(Some(tick)).expect("a timeout");
    // Of the request that is being read.
    let mut pending = Vec::new();
    let mut promised = false;
    let mut bytes = [0; 16 * 1024];
    while !shared.stop.load(Ordering::Relaxed) {
        let n = match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        pending.extend_from_slice(&bytes[..n]);
        shared.streams.lock().expect("a lock")[connection]
            .bytes
            .extend_from_slice(&bytes[..n]);
        loop {
            let (request, used) = lax::first(&pending, &STRICT);
            let Some(request) = request else {
                if !promised && lax::expects_continue(&pending) {
                    promised = true;
                    let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                break;
            };
            promised = false;
            pending.drain(..used);
            let answer = match request.method == "HEAD" {
                true => &ANSWER[..ANSWER.len() - 2],
                false => ANSWER,
            };
            let _ = stream.write_all(answer);
        }
    }
    shared.streams.lock().expect("a lock")[connection].closed = true;
}
