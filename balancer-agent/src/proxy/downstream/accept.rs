//! One thread's part: it takes its socket of each frontend, accepts, and lets frontends go.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::door::{Door, Ticket};
use super::guard::Refusal;
use super::listeners::Bound;
use super::live::Refused;
use super::{Handler, Listeners, connection};
use crate::proxy::timer::{self, TICK, Timer, ticks};

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
    let listener = match bound.socket(thread)?.and_then(TcpListener::from_std) {
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
        refusals: Rc::clone(&handler) as Rc<dyn super::door::Refusals>,
        closing: Cell::new(false),
        cut: Cell::new(false),
        connections: Cell::new(0),
        lingering: Cell::new(0),
    });
    let stop = Rc::new(Notify::new());
    let accepting = tokio::task::spawn_local(accept(
        listener,
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
    listener: TcpListener,
    door: Rc<Door>,
    handler: Rc<H>,
    stop: Rc<Notify>,
) {
    let timer = Timer::never();
    let stopped = stop.notified();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => begin(stream, peer, &door, &handler),
            Err(error) if passing(&error) => {}
            Err(error) => {
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
    }
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                begin(stream, peer, &door, &handler);
            }
        }
    }
    door.closing.set(true);
    timer::wake_all();
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

fn begin<H: Handler>(stream: TcpStream, peer: SocketAddr, door: &Rc<Door>, handler: &Rc<H>) {
    match Ticket::take(door) {
        Ok(ticket) => {
            connection::begin(stream, peer, ticket, Rc::clone(door), Rc::clone(handler));
        }
        Err(cause) => refuse(stream, door, cause),
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
