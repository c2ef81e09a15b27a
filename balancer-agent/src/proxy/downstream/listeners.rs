//! The sockets that frontends listen on, and their hand-over between configurations.
//!
//! Preparing a configuration binds all sockets of new frontends (one per thread, with
//! SO_REUSEPORT), so that nothing can fail once it is applied. A frontend whose name and
//! address are unchanged keeps its sockets and connections.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use super::live::FrontendLive;
use super::settings::Settings;
use super::source::Sources;
use super::spread::Spread;
use super::tls::TlsStore;
use crate::model::http::{Http, HttpFrontend};

/// Connections that the kernel may keep for each socket before they are accepted; it cuts
/// this to `net.core.somaxconn`.
const BACKLOG: i32 = 8192;

/// Why a configuration can't be applied. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A frontend's address can't be listened on.
    #[error(
        "frontend {frontend:?}: can't listen on {address}: {source}{}",
        hint(source)
    )]
    Bind {
        /// Its name.
        frontend: Arc<str>,
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another program listens there)",
        io::ErrorKind::AddrNotAvailable => " (no interface has this address)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}

/// A frontend while it is listened on: what outlives a reload.
pub(super) struct Bound {
    /// What it was bound for.
    pub address: SocketAddr,
    /// What new requests go by.
    pub settings: ArcSwap<Settings>,
    /// Counters.
    pub live: Arc<FrontendLive>,
    /// Connections and requests by source.
    pub sources: Sources,
    /// Connections by thread.
    pub spread: Spread,
    /// One per thread; threads listen on duplicates. Empty once it is removed, so that the
    /// threads' are the last ones.
    sockets: Mutex<Vec<std::net::TcpListener>>,
}

impl Bound {
    /// The socket of a thread; `None` when it has been removed meanwhile.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn socket(&self, thread: usize) -> Option<io::Result<std::net::TcpListener>> {
        Some(self.sockets().get(thread)?.try_clone())
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<std::net::TcpListener>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.settings.load().frontend.name)
    }

    /// Whether it goes on as this frontend.
    fn is_of(&self, frontend: &HttpFrontend) -> bool {
        self.address == frontend.address && self.name() == frontend.name
    }
}

/// What threads serve.
#[derive(Clone, Default)]
pub(super) struct Set {
    /// Frontends in the order of the file.
    pub bound: Vec<Arc<Bound>>,
    /// Everything is to end.
    pub draining: bool,
}

/// Connections of all frontends together.
#[derive(Default)]
pub(super) struct Overall {
    /// Now.
    pub connections: AtomicUsize,
    /// At most.
    pub most: AtomicUsize,
}

struct Inner {
    set: watch::Sender<Set>,
    overall: Arc<Overall>,
    threads: usize,
}

/// Handle on all listeners; clones are the same.
#[derive(Clone)]
pub struct Listeners(Arc<Inner>);

struct Planned {
    settings: Settings,
    /// `None`: the sockets of the running frontend are kept.
    sockets: Option<Vec<std::net::TcpListener>>,
}

/// Sockets that are bound, but not yet in use. Dropping it closes the sockets and changes
/// nothing else.
pub struct PreparedListeners {
    planned: Vec<Planned>,
    max_connections: usize,
    threads: usize,
}

impl Listeners {
    /// Binds what `http` asks for beyond what `previous` already has. The number of threads
    /// is that of `previous`, if there is one. `tls` has the certificates of each frontend,
    /// in the order of the file.
    ///
    /// # Errors
    /// An address that can't be listened on.
    pub fn prepare(
        http: &Http,
        tls: Vec<Option<Arc<TlsStore>>>,
        previous: Option<&Self>,
    ) -> Result<PreparedListeners, PrepareError> {
        debug_assert_eq!(tls.len(), http.frontends.len());
        let threads = previous.map_or(http.threads.max(1), |p| p.0.threads);
        let running = previous.map(|p| p.0.set.borrow().bound.clone());
        let mut planned = Vec::with_capacity(http.frontends.len());
        for (frontend, tls) in http.frontends.iter().zip(tls) {
            let kept = running.iter().flatten().find(|b| b.is_of(frontend));
            let sockets = match kept {
                Some(_) => None,
                None => Some(
                    sockets(frontend.address, threads, running.as_deref()).map_err(|source| {
                        PrepareError::Bind {
                            frontend: Arc::clone(&frontend.name),
                            address: frontend.address,
                            source,
                        }
                    })?,
                ),
            };
            planned.push(Planned {
                settings: Settings {
                    frontend: Arc::clone(frontend),
                    tls,
                    drain: http.drain_timeout,
                },
                sockets,
            });
        }
        Ok(PreparedListeners {
            planned,
            max_connections: http.max_connections,
            threads,
        })
    }

    /// The first listeners of a process. They begin to accept with [`Self::serve`].
    pub fn new(prepared: PreparedListeners) -> Self {
        let listeners = Self(Arc::new(Inner {
            set: watch::Sender::new(Set::default()),
            overall: Arc::default(),
            threads: prepared.threads,
        }));
        listeners.apply(prepared);
        listeners
    }

    /// Goes over to another configuration: new frontends are accepted on, removed ones
    /// drain, the connections of others take the new settings with their next request.
    ///
    /// `prepared` was made with these listeners as its `previous`, and nothing was applied
    /// in between; a frontend that it takes for running but that is not is left out.
    pub fn apply(&self, prepared: PreparedListeners) {
        let overall = &self.0.overall;
        overall.most.store(prepared.max_connections, Relaxed);
        self.0.set.send_modify(|set| {
            let old = std::mem::take(&mut set.bound);
            for planned in prepared.planned {
                let settings = Arc::new(planned.settings);
                let frontend = &settings.frontend;
                match planned.sockets {
                    None => {
                        let kept = old.iter().find(|bound| bound.is_of(frontend));
                        if let Some(bound) = kept {
                            bound.settings.store(settings);
                            set.bound.push(Arc::clone(bound));
                        }
                    }
                    Some(sockets) => set.bound.push(Arc::new(Bound {
                        address: frontend.address,
                        settings: ArcSwap::new(settings),
                        live: Arc::default(),
                        sources: Sources::default(),
                        spread: Spread::new(self.0.threads),
                        sockets: Mutex::new(sockets),
                    })),
                }
            }
            let stays = |bound: &Arc<Bound>| set.bound.iter().any(|b| Arc::ptr_eq(b, bound));
            for gone in old.iter().filter(|bound| !stays(bound)) {
                gone.sockets().clear();
            }
        });
    }

    /// The certificates that a frontend shows now, if it goes on under its name and address.
    pub fn tls(&self, frontend: &HttpFrontend) -> Option<Arc<TlsStore>> {
        let set = self.0.set.borrow();
        let bound = set.bound.iter().find(|bound| bound.is_of(frontend))?;
        bound.settings.load().tls.clone()
    }

    /// Threads that [`Self::serve`] has to be run on, numbered from 0.
    pub fn threads(&self) -> usize {
        self.0.threads
    }

    /// Begins the end: nothing is accepted any more, idle connections are closed, running
    /// requests are the last of their connections. [`Self::serve`] returns on each thread
    /// once its connections are gone, or have been cut after `drain_timeout`.
    pub fn drain(&self) {
        self.0.set.send_modify(|set| {
            set.draining = true;
            for bound in &set.bound {
                bound.sockets().clear();
            }
        });
    }

    /// Connections now, over all frontends; those of removed frontends and upgraded ones
    /// included.
    pub fn connections(&self) -> usize {
        self.0.overall.connections.load(Relaxed)
    }

    /// Counters by frontend, in the order of the file.
    pub fn live(&self) -> Vec<(Arc<str>, Arc<FrontendLive>)> {
        let set = self.0.set.borrow();
        let bound = set.bound.iter();
        bound.map(|b| (b.name(), Arc::clone(&b.live))).collect()
    }

    /// What threads serve, and news of it.
    pub(super) fn watch(&self) -> watch::Receiver<Set> {
        self.0.set.subscribe()
    }

    /// Shared limits.
    pub(super) fn overall(&self) -> &Arc<Overall> {
        &self.0.overall
    }
}

/// Sockets for a new frontend. When another one, which is to go, has its address, its
/// sockets are shared: with sockets of our own, the kernel would give them connections at
/// once, which are lost if the configuration is not applied after all.
fn sockets(
    address: SocketAddr,
    threads: usize,
    running: Option<&[Arc<Bound>]>,
) -> io::Result<Vec<std::net::TcpListener>> {
    match running.into_iter().flatten().find(|b| b.address == address) {
        Some(bound) => bound.sockets().iter().map(|s| s.try_clone()).collect(),
        None => (0..threads).map(|_| listen(address)).collect(),
    }
}

/// A listening socket for one thread.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // "[::]" is every address, IPv4 too.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restart must not wait for connections of its predecessor in TIME-WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Inherited by accepted sockets, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listeners {
    /// Serves on this thread, within a [`tokio::task::LocalSet`] of a current-thread runtime:
    /// accepts on this thread's socket of every frontend, and follows
    /// [`Self::apply`] and [`Self::drain`]. `handler` makes the handler of a frontend by its
    /// name, once per frontend and thread. Returns when a drain is over.
    pub async fn serve<H, F>(&self, thread: usize, handler: F)
    where
        H: super::Handler,
        F: Fn(&Arc<str>) -> std::rc::Rc<H>,
    {
        super::accept::serve(self, thread, handler).await;
    }
}
