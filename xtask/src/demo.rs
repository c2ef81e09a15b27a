//! `demo`: the demonstration, with everything it needs.

use anyhow::{Result, bail};

use crate::ui;
use crate::{build_ebpf, place, setup};

/// Options of `demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which part (`steering`, `web`, `cluster`, `tomcat`; without: all), and options of the
    /// demonstration itself (`--help` after `--` lists them).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds it, and shows it.
pub fn run(arguments: &Arguments) -> Result<()> {
    place::need_root("demo")?;
    setup::run(&setup::Arguments::default())?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    ui::step(
        "build-demo",
        "Building balancer and the demonstration (release)",
        place::cargo()
            .args(["build", "--release"])
            .args(["--package", "balancer-agent", "--bin", "balancer"])
            .args(["--package", "balancer-tests", "--bin", "demo"])
            .args(["--bin", "testserver", "--bin", "appserver"]),
    )?;
    let status = place::cargo()
        .args(["run", "--quiet", "--release", "--package", "balancer-tests"])
        .args(["--bin", "demo", "--"])
        .args(&arguments.arguments)
        .status()?;
    if !status.success() {
        bail!("the demonstration ended with {status}");
    }
    Ok(())
}
