//! The web tier as a whole: prepared, started, changed, drained.
//!
//! ```text
//! gather materials, prepare (anything may fail, nothing has changed)
//!                          |
//!                          +--> start / apply (nothing can fail)
//!                                 |
//!          threads http-0 .. http-n: one runtime, one LocalSet, one Thread each
//! ```

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::downstream::{self, Listeners, PreparedListeners};
use super::log::{LogFiles, Masks};
use super::materials::Materials;
use super::service::{Service, Thread};
use super::stats::{self, FrontendCounts, HttpStatus, Reopened, SessionId, Web};
use super::sticky;
use super::world::{FrontendWorld, Parts, Publisher};
use crate::model::{Activation, BackendName, Config, Health};
use crate::placement;
use crate::prober::Verdict;
use crate::session::driver::Watch;
use crate::session::handle::Sessions;
use crate::session::{Change, group_key};

/// How long an agent that has come (back) to its cluster may be at fetching the others'
/// sessions before it accepts connections all the same; they wait meanwhile.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How often threads let go of connections to backends that have ended.
const SWEEP: Duration = Duration::from_secs(1);

/// Why a configuration's web tier can't be had. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A frontend's address.
    #[error(transparent)]
    Listen(#[from] downstream::PrepareError),
    /// An access log.
    #[error("frontend {frontend:?}: {source}")]
    Log {
        /// Its name.
        frontend: Arc<str>,
        /// Why.
        source: std::io::Error,
    },
}

/// A configuration's web tier, ready to be started or applied.
pub struct Prepared {
    listeners: PreparedListeners,
    logs: Arc<LogFiles>,
    parts: Parts,
}

/// The running web tier; clones are the same.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

struct Inner {
    publisher: Arc<Publisher>,
    listeners: Listeners,
    logs: Arc<LogFiles>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Proxy {
    /// Binds addresses and opens logs. `materials` are those of this configuration, gathered
    /// with the same `previous`.
    ///
    /// # Errors
    /// [`PrepareError`]; nothing has changed then, nor has it before [`Self::apply`].
    pub fn prepare(
        config: &Arc<Config>,
        materials: Materials,
        previous: Option<&Self>,
    ) -> Result<Prepared, PrepareError> {
        let running = previous.map(|p| &p.0.listeners);
        let listeners = Listeners::prepare(&config.http, materials.tls, running)?;
        let logs = match previous {
            Some(previous) => Arc::clone(&previous.0.logs),
            None => Arc::new(LogFiles::new(config.http.threads)),
        };
        let masks = Arc::new(Masks::new(config));
        let known = previous.map(|p| p.0.publisher.world().load_full());
        let mut frontends = Vec::with_capacity(config.http.frontends.len());
        for (model, router) in config.http.frontends.iter().zip(materials.routers) {
            let name = &model.name;
            let log = model.log.as_ref().map(|log| logs.open(log, &masks));
            let log = log.transpose().map_err(|source| PrepareError::Log {
                frontend: Arc::clone(name),
                source,
            })?;
            let known = known.as_ref().and_then(|world| {
                let at = world.frontend(name)?;
                Some(Arc::clone(&world.frontends[at].counts))
            });
            let counts =
                known.unwrap_or_else(|| Arc::new(FrontendCounts::new(config.http.threads)));
            frontends.push(Arc::new(FrontendWorld {
                model: Arc::clone(model),
                router,
                log,
                counts,
            }));
        }
        Ok(Prepared {
            listeners,
            logs,
            parts: Parts {
                config: Arc::clone(config),
                frontends,
                speeches: materials.speeches,
            },
        })
    }

    /// Starts to serve, with what is known of backends, and with the session store of the
    /// groups that pools name.
    ///
    /// # Errors
    /// A thread or a runtime can't be had.
    pub fn start(
        prepared: Prepared,
        health: &HashMap<BackendName, Health>,
        words: &HashMap<BackendName, Activation>,
        sessions: Option<Sessions>,
    ) -> std::io::Result<Self> {
        let publisher = Publisher::new(prepared.parts, health, words, sessions.clone());
        let proxy = Self(Arc::new(Inner {
            publisher: Arc::new(publisher),
            listeners: Listeners::new(prepared.listeners),
            logs: prepared.logs,
            threads: Mutex::default(),
        }));
        proxy.run_threads(sessions.as_ref())?;
        Ok(proxy)
    }

    /// Goes over to another configuration. Requests that run keep the old one.
    pub fn apply(&self, prepared: Prepared) {
        // Frontends must know their routes before they are listened on.
        self.0.publisher.apply(prepared.parts);
        self.0.listeners.apply(prepared.listeners);
    }

    /// Notes what checks have found.
    pub fn verdicts(&self, verdicts: &[Verdict]) {
        let verdicts = verdicts
            .iter()
            .map(|verdict| (&verdict.name, verdict.health));
        self.0.publisher.verdicts(verdicts);
    }

    /// Has all access logs open their files again; does not wait for it.
    pub fn reopen_logs(&self) {
        self.0.logs.request_reopen();
    }

    /// Names who renders statistics for mounts; the first word holds.
    pub fn set_views(&self, views: std::sync::Weak<dyn stats::Views>) {
        self.0.publisher.set_views(views);
    }

    /// Ends: accepts nothing more, lets running requests end within `drain_timeout`, and
    /// waits for that.
    pub async fn drain(&self) {
        self.0.listeners.drain();
        let threads = std::mem::take(&mut *self.threads());
        let logs = Arc::clone(&self.0.logs);
        let ended = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // One that failed has said so itself.
                let _ = thread.join();
            }
            logs.flush(SWEEP);
        });
        let _ = ended.await;
    }

    /// Where it listens.
    pub(super) fn listeners(&self) -> &Listeners {
        &self.0.listeners
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn run_threads(&self, sessions: Option<&Sessions>) -> std::io::Result<()> {
        let mut threads = self.threads();
        let count = self.0.listeners.threads();
        let pinned = self.0.publisher.world().load().config.http.pin_threads;
        // With more or fewer of them than cores there is no place of its own for each.
        let cores = Some(placement::cores()).filter(|cores| pinned && cores.len() == count);
        let cores = cores.unwrap_or_default();
        for number in 0..self.0.listeners.threads() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let listeners = self.0.listeners.clone();
            let publisher = Arc::clone(&self.0.publisher);
            let core = cores.get(number).copied();
            let sessions = sessions.cloned();
            let thread = std::thread::Builder::new().name(format!("http-{number}"));
            threads.push(thread.spawn(move || {
                if let Some(core) = core {
                    placement::stay_on(core);
                }
                placement::be_prompt();
                stats::enter(number);
                let thread = Rc::new(Thread::new(&publisher));
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, async {
                    tokio::task::spawn_local(sweep(Rc::clone(&thread)));
                    let service = |name: &Arc<str>| Rc::new(Service::new(&thread, name));
                    if let Some(sessions) = &sessions {
                        let caught_up = tokio::time::timeout(CATCH_UP, sessions.caught_up()).await;
                        if caught_up.is_err() && number == 0 {
                            tracing::warn!(
                                "serving, though the other nodes' sessions are not all here yet"
                            );
                        }
                    }
                    listeners.serve(number, service).await;
                });
            })?);
        }
        Ok(())
    }
}

async fn sweep(thread: Rc<Thread>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        thread.refresh();
        thread.upstreams.sweep();
        give_memory_back();
    }
}

/// A thread's heap looks for pages that a burst has left when it is asked for memory only: a
/// quiet thread would keep them.
fn give_memory_back() {
    // SAFETY: works on the calling thread's heap, and locks what it shares; does nothing
    // where another allocator serves the process.
    unsafe { libmimalloc_sys::mi_collect(false) };
}

impl Watch for Proxy {
    fn changed(&self, change: &Change) {
        let world = self.0.publisher.world().load();
        for pool in &world.pools {
            sticky::apply(&pool.view, change);
        }
    }
}

impl Web for Proxy {
    fn status(&self) -> HttpStatus {
        super::status::status(
            &self.0.publisher.world().load(),
            &self.0.listeners,
            &self.0.logs,
        )
    }

    fn in_flight(&self, backend: &BackendName) -> u64 {
        let world = self.0.publisher.world().load();
        let pool = world.pool(&backend.pool).map(|at| &world.pools[at].view);
        let mut backends = pool.into_iter().flat_map(|view| &view.backends);
        backends
            .find(|b| b.name == backend.backend)
            .map_or(0, |b| b.live.in_flight().into())
    }

    fn activation(&self, backend: &BackendName, activation: Activation) {
        self.0.publisher.activation(backend, activation);
    }

    fn session_ids(&self, said: &str) -> Vec<SessionId> {
        let world = self.0.publisher.world().load();
        let pools = world.pools.iter().filter_map(|pool| {
            let (shared, sticky) = (pool.view.shared.as_ref()?, pool.view.stickiness()?);
            let (group, id) = shared.id_of(sticky, said)?;
            Some(SessionId {
                pool: Arc::clone(&pool.view.pool.name),
                group,
                id,
            })
        });
        pools.collect()
    }

    fn pool_of_session(&self, id: &[u8]) -> Option<Arc<str>> {
        let key = sticky::pool_of(id)?;
        let world = self.0.publisher.world().load();
        let mut names = world.pools.iter().map(|pool| &pool.view.pool.name);
        names.find(|name| group_key(name) == key).cloned()
    }

    fn reopen_logs(&self) -> Vec<Reopened> {
        self.0.logs.reopen()
    }
}
