//! `build-ebpf`: the kernel programs, compiled for the BPF target with `core` from
//! source, and put where the agent's build and the tests look for them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::place;
use crate::toolchain::{self, LINKER_VERSION, Source};
use crate::ui;

/// Options of `build-ebpf`.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Which compiler; without it Debian's if it is there, else a nightly.
    #[arg(long, value_enum)]
    toolchain: Option<Source>,
}

const TARGET: &str = "bpfel-unknown-none";
/// The programs, each an object of its own.
const BINS: [&str; 2] = ["balancer", "bench"];

const RUSTFLAGS: [&str; 6] = [
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    // 32-bit arithmetic and all comparisons: Linux 5.1. The program asks for more.
    "-Ctarget-cpu=v3",
    // The agent reads types and line numbers from BTF, which is made from this.
    "-Cdebuginfo=2",
    "-Cpanic=abort",
    "-Ccodegen-units=1",
];

/// Builds all programs, and replaces the objects that have changed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Some(toolchain) = toolchain::find(arguments.toolchain) else {
        match arguments.toolchain {
            Some(Source::Nightly) => bail!(
                "there is no rustup nightly with rust-src and LLVM's development files: run \
                 `rustup toolchain install nightly --component rust-src`"
            ),
            _ => bail!("there is no compiler for the kernel programs: run `cargo xtask setup`"),
        }
    };
    let llvm = toolchain.llvm;
    if toolchain::linker(llvm).is_none() {
        bail!(
            "there is no bpf-linker {LINKER_VERSION} for LLVM {llvm}: run `cargo xtask setup`, or \
             put one in the path"
        );
    }
    println!("build-ebpf: with {toolchain}");
    let build = place::target().join("bpf-build");
    ui::step(
        "build-ebpf",
        "Building the kernel programs",
        toolchain::cargo(&toolchain)
            .args([
                "build",
                "--locked",
                "--release",
                "--package",
                "balancer-ebpf",
            ])
            .args(["--bins", "--features", "kernel"])
            .args(["--target", TARGET, "-Zbuild-std=core"])
            .arg("--target-dir")
            .arg(&build)
            .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    )?;
    let into = place::target().join("bpf");
    fs::create_dir_all(&into).with_context(|| format!("create {}", into.display()))?;
    for bin in BINS {
        publish(
            &build.join(TARGET).join("release").join(bin),
            &into.join(format!("{bin}.o")),
        )?;
    }
    println!();
    Ok(())
}

/// Puts an object in place whole, and only when it differs, so that nothing that
/// depends on it is built again for nothing.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    let same = fs::read(to).is_ok_and(|have| have == bytes);
    if !same {
        let aside = to.with_extension("new");
        fs::write(&aside, &bytes).with_context(|| format!("write {}", aside.display()))?;
        fs::rename(&aside, to).with_context(|| format!("replace {}", to.display()))?;
    }
    println!(
        "build-ebpf: {} ({} KiB, {})",
        to.strip_prefix(place::root()).unwrap_or(to).display(),
        bytes.len().div_ceil(1024),
        if same { "unchanged" } else { "new" }
    );
    Ok(())
}
