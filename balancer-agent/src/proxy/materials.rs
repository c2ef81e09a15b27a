//! What the web tier needs of all that a configuration names: certificates, keys and
//! authorities are read, document roots are opened, the places of logs are looked at.
//!
//! Nothing is bound, made or changed, and no privilege is needed beyond that of reading the
//! files: `balancer check` does it as `balancer run` and a reload do, and all of them say
//! the same about what can't be used.

use std::sync::Arc;

use super::downstream::TlsStore;
use super::log;
use super::route::Router;
use super::server::Proxy;
use super::upstream::endpoint::Speech;
use crate::model::{Config, Misfit};

/// All of it, for one configuration.
pub struct Materials {
    /// Certificates towards clients, one for each HTTP frontend in the order of the file.
    pub(super) tls: Vec<Option<Arc<TlsStore>>>,
    /// One for each HTTP frontend.
    pub(super) routers: Vec<Router>,
    /// One for each pool in the order of the file.
    pub(super) speeches: Vec<Arc<Speech>>,
    odd: Vec<Misfit>,
}

impl Materials {
    /// Reads and opens. Tickets that frontends of `previous` gave out stay valid.
    ///
    /// # Errors
    /// All that can't be used.
    pub fn gather(config: &Config, previous: Option<&Proxy>) -> Result<Self, Vec<Misfit>> {
        let (mut odd, mut misfits) = (Vec::new(), Vec::new());
        let mut all = Self {
            tls: Vec::new(),
            routers: Vec::new(),
            speeches: Vec::new(),
            odd: Vec::new(),
        };
        for frontend in &config.http.frontends {
            let store = frontend.tls.as_ref().map(|tls| {
                let old = previous.and_then(|previous| previous.listeners().tls(frontend));
                TlsStore::load(tls, frontend.versions, old.as_deref())
            });
            match store.transpose() {
                Ok(store) => {
                    odd.extend(store.iter().flat_map(|store| store.odd()).cloned());
                    all.tls.push(store.map(Arc::new));
                }
                Err(found) => misfits.extend(found),
            }
            match Router::open(frontend) {
                Ok(router) => all.routers.push(router),
                Err(errors) => misfits.extend(errors.into_iter().map(Misfit::from)),
            }
            if let Some(log) = &frontend.log {
                misfits.extend(log::look(log).err());
            }
        }
        for pool in &config.pools {
            match Speech::prepare(pool, &mut odd) {
                Ok(speech) => all.speeches.push(Arc::new(speech)),
                Err(found) => misfits.extend(found),
            }
        }
        all.odd = odd;
        match misfits.is_empty() {
            true => Ok(all),
            false => Err(misfits),
        }
    }

    /// What is odd but usable: expired certificates and the like.
    pub fn odd(&self) -> &[Misfit] {
        &self.odd
    }

    /// How the backends of each pool are spoken to, in the order of the file.
    pub fn speeches(&self) -> &[Arc<Speech>] {
        &self.speeches
    }
}
