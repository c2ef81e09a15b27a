//! The kernel programs that `cargo xtask build-ebpf` makes, and the balancer's one
//! loaded with tables of its own.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::Map;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use balancer_agent::dataplane::{Tables, kernel};
use common::tables::{Settings, names};
use zerocopy::IntoBytes as _;

/// Loads the balancer's program, with empty tables.
///
/// # Errors
/// Says what is missing or what the kernel refused.
pub fn load(object: &[u8], settings: Settings) -> Result<(Ebpf, Tables)> {
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
    let mut loader = EbpfLoader::new();
    loader.override_global(names::SETTINGS, settings.as_bytes(), true);
    for (name, entries) in kernel::entries(settings, cpus) {
        loader.map_max_entries(name, entries);
    }
    let mut ebpf = loader
        .load(object)
        .context("the kernel refused the object")?;
    let program: &mut Xdp = ebpf
        .program_mut(names::PROGRAM)
        .context("the object has no program of that name")?
        .try_into()?;
    program.load().context("the verifier refused the program")?;
    let tables = Tables::kernel(settings, cpus, |name| match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data.fd().as_fd()),
        other => bail!("there is no array {name}: {other:?}"),
    })?;
    tables.write_header(settings);
    Ok((ebpf, tables))
}

/// The balancer's kernel program.
#[track_caller]
pub fn balancer() -> PathBuf {
    named("balancer")
}

/// The wrapper programs that measure it.
#[track_caller]
pub fn bench() -> PathBuf {
    named("bench")
}

#[track_caller]
fn named(name: &str) -> PathBuf {
    let path = target().join("bpf").join(format!("{name}.o"));
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask build-ebpf`",
        path.display()
    );
    path
}

/// The workspace's target directory.
pub fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
