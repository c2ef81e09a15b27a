//! Embeds the kernel program's object into the agent, where there is one.
//!
//! The object is built by `cargo xtask build-ebpf`, which needs a BPF toolchain;
//! this build must work without, so a missing object is only a warning and the
//! agent then says at run time that it carries no kernel program.

use std::env;
use std::path::{Path, PathBuf};

/// Names the object instead of `<target directory>/bpf/balancer.o`.
const OBJECT_VARIABLE: &str = "BALANCER_EBPF_OBJECT";

fn main() {
    println!("cargo:rustc-check-cfg=cfg(ebpf_object)");
    println!("cargo:rerun-if-env-changed={OBJECT_VARIABLE}");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo:rerun-if-changed=build.rs");

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = object_path(&out);
    if !object.is_file() {
        watch_missing(&object);
        println!(
            "cargo:warning=this build carries no kernel program: {} does not exist; \
             `cargo xtask build-ebpf` makes it",
            object.display()
        );
        return;
    }
    println!("cargo:rerun-if-changed={}", object.display());
    if let Err(error) = std::fs::copy(&object, out.join("balancer.o")) {
        panic!("cannot copy {}: {error}", object.display());
    }
    println!("cargo:rustc-cfg=ebpf_object");
}

fn object_path(out: &Path) -> PathBuf {
    match env::var_os(OBJECT_VARIABLE) {
        Some(path) if !path.is_empty() => workspace().join(path),
        _ => target_dir(out).join("bpf").join("balancer.o"),
    }
}

/// Cargo runs a build script again whenever a watched file is missing, and with
/// it compiles the whole crate. Watching the folder that the object will appear
/// in avoids that.
fn watch_missing(object: &Path) {
    let folder = object.parent().unwrap_or(object);
    let watched = match std::fs::create_dir_all(folder) {
        Ok(()) => folder,
        Err(_) => object,
    };
    println!("cargo:rerun-if-changed={}", watched.display());
}

fn target_dir(out: &Path) -> PathBuf {
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR") {
        return workspace().join(dir);
    }
    // OUT_DIR is a few levels below the target directory: how many depends on
    // whether a target triple was named.
    out.ancestors()
        .find(|dir| {
            ["CACHEDIR.TAG", ".rustc_info.json"]
                .iter()
                .any(|mark| dir.join(mark).exists())
        })
        .map_or_else(|| workspace().join("target"), Path::to_path_buf)
}

fn workspace() -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}
