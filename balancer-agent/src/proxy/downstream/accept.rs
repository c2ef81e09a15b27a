//! One thread's part: it takes its socket of each frontend, accepts, and lets frontends go.

use std::cell::Cell;
use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::{SockAddr, SockRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::door::{Door, Ticket};
use super::guard::Refusal;
use super::listeners::Bound;
use super::live::Refused;
use super::spread::Accepted;
use super::{Handler, Listeners, connection};
use crate::proxy::timer::{self, TICK, Timer, ticks};

/// Connections that are accepted before others of the thread have their turn.
const AT_ONCE: usize = 16;
/// How long accepting rests when descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the tasks of cut connections may take to notice it.
const NOTICE: Duration = Duration::from_secs(2);
/// Refused connections of a frontend and thread that are let down gently at once.
const REFUSING: usize = 256;
/// How long that takes at most.
const GENTLE: Duration = Duration::from_secs(1);

/// A frontend that is accepted on.
struct Open {
    door: Rc<Door>,
    stop: Rc<Notify>,
    accepting: JoinHandle<()>,
}

/// A frontend that goes.
struct Leaving {
    door: Rc<Door>,
    accepting: JoinHandle<()>,
    /// When its connections are cut; when they are waited for no longer.
    cut: u64,
    end: u64,
}

/// See [`Listeners::serve`].
pub(super) async fn serve<H, F>(listeners: &Listeners, thread: usize, handler: F)
where
    H: Handler,
    F: Fn(&Arc<str>) -> Rc<H>,
{
    let timer = Timer::never();
    let mut watch = listeners.watch();
    let mut open: Vec<Open> = Vec::new();
    let mut leaving: Vec<Leaving> = Vec::new();
    loop {
        let set = watch.borrow_and_update().clone();
        let stays =
            |bound: &Arc<Bound>| !set.draining && set.bound.iter().any(|b| Arc::ptr_eq(b, bound));
        for gone in open.extract_if(.., |open| !stays(&open.door.bound)) {
            gone.stop.notify_one();
            let time = gone.door.bound.settings.load().drain;
            let cut = timer::now().saturating_add(ticks(time));
            leaving.push(Leaving {
                door: gone.door,
                accepting: gone.accepting,
                cut,
                end: cut.saturating_add(ticks(NOTICE)),
            });
        }
        for bound in set.bound.iter().filter(|b| stays(b)) {
            if open.iter().any(|o| Arc::ptr_eq(&o.door.bound, bound)) {
                continue;
            }
            if let Some(opened) = start(listeners, bound, thread, &handler) {
                open.push(opened);
            }
        }
        leaving.retain(|leaving| {
            let door = &leaving.door;
            if !leaving.accepting.is_finished() {
                return true;
            }
            let left = door.connections.get();
            if timer::now() >= leaving.cut && !door.cut.replace(true) && left > 0 {
                door.live().drain_cut.fetch_add(left as u64, Relaxed);
                tracing::warn!(
                    frontend = %door.bound.name(),
                    connections = left,
                    "the time to drain is over: connections are cut"
                );
                timer::wake_all();
            }
            left > 0 && timer::now() < leaving.end
        });
        if set.draining && leaving.is_empty() {
            break;
        }
        match leaving.is_empty() {
            // An error means that the listeners are gone, which they are not: we hold them.
            true => drop(watch.changed().await),
            false => {
                tokio::select! {
                    _ = watch.changed() => {}
                    () = timer.sleep(TICK) => {}
                }
            }
        }
    }
}

/// Opens a frontend on this thread.
fn start<H, F>(
    listeners: &Listeners,
    bound: &Arc<Bound>,
    thread: usize,
    handler: &F,
) -> Option<Open>
where
    H: Handler,
    F: Fn(&Arc<str>) -> Rc<H>,
{
    let inbox = bound.spread.inbox(thread)?;
    // SAFETY: a listener keeps its descriptor, open and the same, for as long as it lives.
    let watched = |listener| unsafe {
        AsyncFd::register_with_interest(listener, Interest::READABLE).map_err(io::Error::from)
    };
    let listener = match bound.socket(thread)?.and_then(watched) {
        Ok(listener) => listener,
        Err(error) => {
            // The other threads go on.
            tracing::error!(frontend = %bound.name(), thread, %error, "can't listen");
            return None;
        }
    };
    let handler = handler(&bound.name());
    let door = Rc::new(Door {
        bound: Arc::clone(bound),
        overall: Arc::clone(listeners.overall()),
        thread,
        refusals: Rc::clone(&handler) as Rc<dyn super::door::Refusals>,
        closing: Cell::new(false),
        cut: Cell::new(false),
        connections: Cell::new(0),
        lingering: Cell::new(0),
    });
    let stop = Rc::new(Notify::new());
    let accepting = tokio::task::spawn_local(accept(
        listener,
        inbox,
        Rc::clone(&door),
        handler,
        Rc::clone(&stop),
    ));
    Some(Open {
        door,
        stop,
        accepting,
    })
}

/// Accepts until it is stopped; then what the kernel has accepted already, so that nobody is
/// reset, and closes the socket.
async fn accept<H: Handler>(
    listener: AsyncFd<StdListener>,
    mut inbox: UnboundedReceiver<Accepted>,
    door: Rc<Door>,
    handler: Rc<H>,
    stop: Rc<Notify>,
) {
    let timer = Timer::never();
    let stopped = stop.notified();
    tokio::pin!(stopped);
    loop {
        let ready = tokio::select! {
            biased;
            () = &mut stopped => break,
            Some(accepted) = inbox.recv() => {
                begin(accepted, &door, &handler);
                continue;
            }
            ready = listener.readable() => ready,
        };
        let Ok(mut ready) = ready else {
            break;
        };
        let mut accepted = Ok(());
        // Several at once, but others of the thread are to have their turn.
        for _ in 0..AT_ONCE {
            match ready.try_io(|listener| accept_one(listener.get_ref())) {
                Ok(Ok(one)) => dispatch(one, &door, &handler),
                Ok(Err(error)) if passing(&error) => {}
                Ok(Err(error)) => {
                    accepted = Err(error);
                    break;
                }
                // None is there; the next look waits.
                Err(_) => break,
            }
        }
        drop(ready);
        if let Err(error) = accepted {
            door.live().accept_pauses.fetch_add(1, Relaxed);
            tracing::warn!(
                frontend = %door.bound.name(),
                %error,
                "accepting pauses"
            );
            tokio::select! {
                biased;
                () = &mut stopped => break,
                () = timer.sleep(PAUSE) => {}
            }
        }
    }
    let listener = listener.into_inner();
    while let Ok(accepted) = accept_one(&listener) {
        dispatch(accepted, &door, &handler);
    }
    // What others have handed over before they heard of it.
    inbox.close();
    while let Ok(accepted) = inbox.try_recv() {
        begin(accepted, &door, &handler);
    }
    door.closing.set(true);
    timer::wake_all();
}

/// Accepts one connection. By hand, as the library's way would register it with this thread
/// at once, and make it non-blocking by a call of its own.
fn accept_one(listener: &StdListener) -> io::Result<Accepted> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the kernel writes an address into the storage, and its length.
    let (socket, peer) = unsafe {
        SockAddr::try_init(|storage, length| {
            match libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) {
                -1 => Err(io::Error::last_os_error()),
                // SAFETY: just made, and nobody else's.
                fd => Ok(std::net::TcpStream::from_raw_fd(fd)),
            }
        })?
    };
    let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok(Accepted { socket, peer })
}

/// To the thread that is to serve it.
fn dispatch<H: Handler>(accepted: Accepted, door: &Rc<Door>, handler: &Rc<H>) {
    if let Some(ours) = door.bound.spread.place(door.thread, accepted) {
        begin(ours, door, handler);
    }
}

/// Whether an error of accept is about that one connection only (accept(2)).
fn passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}

/// Serves it on this thread.
fn begin<H: Handler>(accepted: Accepted, door: &Rc<Door>, handler: &Rc<H>) {
    let Accepted { socket, peer } = accepted;
    let ticket = Ticket::take(door);
    match (TcpStream::from_std(socket), ticket) {
        (Ok(stream), Ok(ticket)) => {
            connection::begin(stream, peer, ticket, Rc::clone(door), Rc::clone(handler));
        }
        (Ok(stream), Err(cause)) => refuse(stream, door, cause),
        // Out of memory, or out of watches: the client sees the end.
        (Err(error), _) => tracing::warn!(%error, "a connection can't be watched"),
    }
}

/// Turns a connection away: in plain HTTP/1 if it is not to be encrypted, silently otherwise
/// (a handshake would cost more than what is being refused).
pub(super) fn refuse(stream: TcpStream, door: &Rc<Door>, cause: Refused) {
    door.live().refuse(cause);
    turn_away(stream, door);
}

/// As [`refuse`], for what is counted elsewhere.
pub(super) fn turn_away(stream: TcpStream, door: &Rc<Door>) {
    let settings = door.bound.settings.load();
    if settings.tls.is_some() || !settings.frontend.versions.http1 {
        return;
    }
    // The socket's buffer is empty: it takes all of it.
    let socket = SockRef::from(&stream);
    let told = socket.send(&Refusal::CONNECTIONS.response()).is_ok();
    let closed = socket.shutdown(std::net::Shutdown::Write).is_ok();
    if !told || !closed || door.lingering.get() >= REFUSING {
        return;
    }
    // The request that is on its way must not meet a closed socket: the reset would
    // overtake the response.
    door.lingering.set(door.lingering.get() + 1);
    let door = Rc::clone(door);
    tokio::task::spawn_local(async move {
        let timer = Timer::never();
        let mut place = [0; 1024];
        let mut left = 64;
        let read = async {
            while left > 0 && stream.readable().await.is_ok() {
                left -= 1;
                match stream.try_read(&mut place) {
                    Ok(0) => break,
                    Err(e) if e.kind() != io::ErrorKind::WouldBlock => break,
                    Ok(_) | Err(_) => {}
                }
            }
        };
        tokio::select! {
            () = read => {}
            () = timer.sleep(GENTLE) => {}
        }
        door.lingering.set(door.lingering.get() - 1);
    });
}
