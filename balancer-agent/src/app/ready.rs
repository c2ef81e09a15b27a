//! A configuration with all that it names, as far as that can be had without changing
//! anything: what `balancer check` looks at, and what a start and a reload begin with.

use std::path::Path;
use std::sync::Arc;

use crate::config::{self, ConfigError, Warnings};
use crate::model::http::BackendProtocol;
use crate::model::{BackendName, Check, Config, Pool};
use crate::prober::{CheckTls, Target, Wire};
use crate::proxy::materials::Materials;
use crate::proxy::server::Proxy;
use crate::proxy::upstream::endpoint::Speech;

/// A configuration that an agent can go over to, as far as files tell.
pub(super) struct Ready {
    pub config: Arc<Config>,
    pub materials: Materials,
    /// What is odd in the file and in what it names.
    pub warnings: Warnings,
}

impl Ready {
    /// Reads a file and what it names; blocks. `previous` is the web tier that runs.
    ///
    /// # Errors
    /// All mistakes in the file; without one, all that it names and that can't be used.
    pub fn read(path: &Path, previous: Option<&Proxy>) -> Result<Self, ConfigError> {
        let loaded = config::read(path)?;
        let directory = super::sessions::look(&loaded.config);
        let materials = Materials::gather(&loaded.config, previous);
        let (materials, directory) = match (materials, directory) {
            (Ok(materials), Ok(directory)) => (materials, directory),
            (materials, directory) => {
                let mut misfits = materials.err().unwrap_or_default();
                misfits.extend(directory.err());
                return Err(loaded.refuse(&misfits));
            }
        };
        let odd = materials.odd().iter().cloned().chain(directory);
        let warnings = loaded.warnings(&odd.collect::<Vec<_>>());
        Ok(Self {
            config: Arc::new(loaded.config),
            materials,
            warnings,
        })
    }

    /// What the prober has to watch.
    pub fn targets(&self) -> Vec<Target> {
        let pools = self.config.pools.iter().zip(self.materials.speeches());
        pools
            .flat_map(|(pool, speech)| {
                let wire = wire(pool, speech);
                pool.backends.iter().map(move |backend| Target {
                    name: BackendName {
                        pool: Arc::clone(&pool.name),
                        backend: Arc::clone(&backend.name),
                    },
                    address: backend.address,
                    check: pool.check.clone(),
                    passive: pool.passive,
                    wire: wire.clone(),
                })
            })
            .collect()
    }
}

/// Says whether a file and what it names are right; changes nothing. Returns what is odd.
///
/// # Errors
/// What a start with this file would be refused for, addresses and the kernel aside.
pub fn check(path: &Path) -> Result<Warnings, ConfigError> {
    super::raise_file_limit();
    Ready::read(path, None).map(|ready| ready.warnings)
}

/// What the checks of a pool are spoken over: what its requests are, as far as they go to
/// the same port.
fn wire(pool: &Pool, speech: &Speech) -> Wire {
    let Check {
        tls, as_requests, ..
    } = pool.check;
    let tls = speech.tls.as_ref().filter(|_| tls);
    Wire {
        proxy: speech.send_proxy.filter(|_| as_requests),
        tls: tls.map(|tls| CheckTls::new(&tls.config, tls.server_name.clone())),
        http2: as_requests && speech.protocol == BackendProtocol::Http2,
    }
}
