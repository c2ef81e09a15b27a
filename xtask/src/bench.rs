//! `bench`: a benchmark, in a release build.

use anyhow::{Result, bail};

use crate::ui;
use crate::{build_ebpf, place, setup};

/// Options of `bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which benchmark (such as `xdp`), then its options (such as `--json FILE`).
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds what is measured, and measures.
pub fn run(arguments: &Arguments) -> Result<()> {
    place::need_root("bench")?;
    setup::run(&setup::Arguments::default())?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    let packages = ["--package", "balancer-agent", "--package", "balancer-tests"];
    ui::step(
        "build-bench",
        "Building balancer and its benchmarks (release)",
        place::cargo()
            .args(["build", "--release", "--bins"])
            .args(packages),
    )?;
    let status = place::cargo()
        .args(["run", "--quiet", "--release", "--package", "balancer-tests"])
        .arg("--manifest-path")
        .arg(place::root().join("Cargo.toml"))
        .args(["--bin", "bench", "--"])
        .args(&arguments.arguments)
        // Where the user gave the command: file names are meant from there.
        .current_dir(std::env::current_dir()?)
        .status()?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
