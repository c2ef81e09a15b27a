//! The benchmarks' program. Its exit code says whether everything could be
//! measured, not whether targets were met: times depend on the machine.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use balancer_tests::bench::figure::Report;
use balancer_tests::bench::{flows, scale, xdp};
use clap::{Parser, Subcommand};

/// Measures the balancer.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Also write the figures to this file, as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Few runs: to see that everything works.
    #[arg(long, global = true)]
    quick: bool,
}

#[derive(Subcommand)]
enum What {
    /// Nanoseconds per packet of the kernel program, next to floors.
    Xdp,
    /// A million flows at once: memory, evictions, time to count them.
    Flows,
    /// A thousand frontends and ten thousand backends: time until a verdict holds.
    Scale,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmarks need root: they load kernel programs"
    );
    let mut report = Report::default();
    match arguments.what {
        What::Xdp => xdp::run(&mut report, xdp::Effort::new(arguments.quick))?,
        What::Flows => flows::run(&mut report)?,
        What::Scale => scale::run(&mut report)?,
    }
    let missed = report.missed();
    if !missed.is_empty() {
        println!("\ntargets missed: {}", missed.len());
        for name in missed {
            println!("  {name}");
        }
    }
    if let Some(path) = &arguments.json {
        report.write(path)?;
    }
    Ok(())
}
