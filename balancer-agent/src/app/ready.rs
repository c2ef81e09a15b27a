//! A configuration with all that it names, as far as that can be had without changing
//! anything: what `balancer check` looks at, and what a start and a reload begin with.

use std::path::Path;
use std::sync::Arc;

use crate::config::{self, ConfigError, Warnings};
use crate::model::Config;
use crate::proxy::materials::Materials;
use crate::proxy::server::Proxy;

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
        let materials = Materials::gather(&loaded.config, previous)
            .map_err(|misfits| loaded.refuse(&misfits))?;
        let warnings = loaded.warnings(materials.odd());
        Ok(Self {
            config: Arc::new(loaded.config),
            materials,
            warnings,
        })
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
