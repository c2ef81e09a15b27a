//! Where `cargo xtask build-ebpf` puts the kernel programs.

use std::path::{Path, PathBuf};

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
