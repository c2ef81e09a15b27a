//! The snapshot that a request reads, once: frontends with their routes, pools with the
//! health and activation of every backend. A change makes a new one; nothing in it moves.
//!
//! ```text
//! configuration (prepared) --+
//! verdicts of checks --------+--> Books (one lock) --> World --> ArcSwap --> threads
//! words of operators --------+
//! the session store ---------+ (whether bindings are shared; they themselves are in tables)
//! ```

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use http::StatusCode;

use super::balance::PoolView;
use super::log::AccessLog;
use super::route::{Router, reply};
use super::service::forwarded;
use super::stats::{FrontendCounts, Views};
use super::sticky::Shared;
use super::types::Body;
use super::upstream::endpoint::Speech;
use crate::model::http::{HttpFrontend, Stats};
use crate::model::{Activation, BackendName, CheckKind, Config, Health, Pool};
use crate::session::handle::Sessions;

/// A frontend within a snapshot.
pub struct FrontendWorld {
    /// What the configuration says.
    pub model: Arc<HttpFrontend>,
    /// Where requests go.
    pub router: Router,
    /// Access log.
    pub log: Option<AccessLog>,
    /// Counters, over reloads.
    pub counts: Arc<FrontendCounts>,
}

/// A pool within a snapshot.
#[derive(Clone)]
pub struct PoolWorld {
    /// Its backends.
    pub view: Arc<PoolView>,
    /// How they are spoken to.
    pub speech: Arc<Speech>,
}

/// The snapshot.
pub struct World {
    /// The configuration that it is of.
    pub config: Arc<Config>,
    /// HTTP frontends, in the order of the file.
    pub frontends: Arc<[Arc<FrontendWorld>]>,
    /// Pools, in the order of the file.
    pub pools: Vec<PoolWorld>,
    names: Arc<HashMap<Arc<str>, usize>>,
}

impl World {
    /// Place of a pool.
    pub fn pool(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Place of a frontend.
    pub fn frontend(&self, name: &str) -> Option<usize> {
        self.frontends.iter().position(|f| *f.model.name == *name)
    }
}

/// What a prepared configuration brings along.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Frontends, in the order of the file.
    pub frontends: Vec<Arc<FrontendWorld>>,
    /// One for each pool, in the order of the file.
    pub speeches: Vec<Arc<Speech>>,
}

/// Publishes snapshots.
pub struct Publisher {
    world: ArcSwap<World>,
    books: Mutex<Books>,
    /// Who renders statistics; nobody before the agent is ready, and in tests.
    views: OnceLock<Weak<dyn Views>>,
}

/// What is known of backends beside the configuration.
#[derive(Default)]
struct Books {
    health: HashMap<BackendName, (SocketAddr, Health)>,
    words: HashMap<BackendName, Activation>,
    sessions: Option<Sessions>,
}

impl Publisher {
    /// The first snapshot, with what was known at the start.
    pub fn new(
        parts: Parts,
        health: &HashMap<BackendName, Health>,
        words: &HashMap<BackendName, Activation>,
        sessions: Option<Sessions>,
    ) -> Self {
        let mut books = Books {
            health: HashMap::new(),
            words: words.clone(),
            sessions,
        };
        books.follow(&parts.config, |name| health.get(name).copied());
        let world = books.world(parts, None, Instant::now());
        Self {
            world: ArcSwap::from_pointee(world),
            books: Mutex::new(books),
            views: OnceLock::new(),
        }
    }

    /// Names who renders statistics; the first word holds.
    pub fn set_views(&self, views: Weak<dyn Views>) {
        let _ = self.views.set(views);
    }

    /// A view of the statistics for a client.
    pub async fn view(
        &self,
        stats: &Stats,
        client: IpAddr,
        query: Option<&str>,
    ) -> http::Response<Body> {
        if !forwarded::within(&stats.allow, client) {
            return reply::status_page(StatusCode::FORBIDDEN);
        }
        match self.views.get().and_then(Weak::upgrade) {
            Some(views) => reply::view(
                views
                    .view(stats.format, query.unwrap_or("").to_owned())
                    .await,
            ),
            None => reply::status_page(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// The snapshot.
    pub fn world(&self) -> &ArcSwap<World> {
        &self.world
    }

    /// Goes over to another configuration. Health stays with backends whose address has
    /// not changed, words stay with backends that are still there.
    pub fn apply(&self, parts: Parts) {
        let mut books = self.lock();
        books.follow(&parts.config, |_| None);
        let world = books.world(parts, Some(&self.world.load()), Instant::now());
        self.world.store(Arc::new(world));
    }

    /// Notes verdicts; those on backends that are not in the configuration are no news.
    pub fn verdicts<'v>(&self, verdicts: impl IntoIterator<Item = (&'v BackendName, Health)>) {
        let mut books = self.lock();
        let mut changed = Vec::new();
        for (name, health) in verdicts {
            if let Some(known) = books.health.get_mut(name)
                && known.1 != health
            {
                known.1 = health;
                changed.push(&name.pool);
            }
        }
        self.refresh(&books, &changed);
    }

    /// Notes an operator's word.
    pub fn activation(&self, name: &BackendName, activation: Activation) {
        let mut books = self.lock();
        books.words.insert(name.clone(), activation);
        self.refresh(&books, &[&name.pool]);
    }

    fn refresh(&self, books: &Books, changed: &[&Arc<str>]) {
        if changed.is_empty() {
            return;
        }
        let old = self.world.load();
        let now = Instant::now();
        let pools = old.pools.iter().map(|known| {
            let pool = &known.view.pool;
            match changed.iter().any(|name| **name == pool.name) {
                false => known.clone(),
                true => PoolWorld {
                    view: books.view(pool, Some(&known.view), &old.config, now),
                    speech: Arc::clone(&known.speech),
                },
            }
        });
        let world = World {
            config: Arc::clone(&old.config),
            frontends: Arc::clone(&old.frontends),
            pools: pools.collect(),
            names: Arc::clone(&old.names),
        };
        self.world.store(Arc::new(world));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Knows the backends of this configuration and no others.
    fn follow(&mut self, config: &Config, seed: impl Fn(&BackendName) -> Option<Health>) {
        let before = std::mem::take(&mut self.health);
        for pool in &config.pools {
            let unproved = match pool.check.kind {
                CheckKind::None => Health::Up,
                _ => Health::Down,
            };
            for backend in &pool.backends {
                let name = BackendName {
                    pool: Arc::clone(&pool.name),
                    backend: Arc::clone(&backend.name),
                };
                let known = before
                    .get(&name)
                    .filter(|(address, _)| *address == backend.address)
                    .map(|(_, health)| *health);
                let health = known.or_else(|| seed(&name)).unwrap_or(unproved);
                self.health.insert(name, (backend.address, health));
            }
        }
        let health = &self.health;
        self.words.retain(|name, _| health.contains_key(name));
    }

    fn world(&self, parts: Parts, old: Option<&World>, now: Instant) -> World {
        let config = &parts.config;
        let pools = config.pools.iter().zip(parts.speeches);
        let pools = pools.map(|(pool, speech)| {
            let known = old.and_then(|old| Some(&old.pools[old.pool(&pool.name)?].view));
            PoolWorld {
                view: self.view(pool, known.map(|v| &**v), config, now),
                speech,
            }
        });
        let names = config.pools.iter().enumerate();
        World {
            pools: pools.collect(),
            names: Arc::new(names.map(|(at, p)| (Arc::clone(&p.name), at)).collect()),
            frontends: parts.frontends.into(),
            config: parts.config,
        }
    }

    fn view(
        &self,
        pool: &Arc<Pool>,
        known: Option<&PoolView>,
        config: &Config,
        now: Instant,
    ) -> Arc<PoolView> {
        let state = |backend: &str| {
            let configured = pool.backends.iter().find(|b| *b.name == *backend);
            let Some(configured) = configured else {
                return Default::default();
            };
            let name = BackendName {
                pool: Arc::clone(&pool.name),
                backend: Arc::clone(&configured.name),
            };
            let health = self.health.get(&name).map_or(Health::Down, |known| known.1);
            let word = self.words.get(&name).copied();
            (health, word.unwrap_or(configured.activation))
        };
        let shared = match known {
            Some(known) if Arc::ptr_eq(&known.pool, pool) => known.shared.clone(),
            _ => Shared::new(self.sessions.as_ref(), pool).map(Arc::new),
        };
        let view = PoolView::new(pool, known, config.http.learned_max, &state, now);
        Arc::new(view.sharing(shared))
    }
}
