//! The benchmarks' program. Its exit code says whether everything could be
//! measured, not whether targets were met: times depend on the machine.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use balancer_tests::bench::figure::Report;
use balancer_tests::bench::{
    ajp, chaos, flows, http, idle, scale, session_faults, sessions, tcp, veth, xdp,
};
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
    /// Nanoseconds per packet of the kernel program next to floors, then `veth`, then
    /// `tcp`.
    Xdp {
        /// Only this part of the nanoseconds, and nothing after them.
        #[arg(long, value_enum)]
        part: Option<xdp::Part>,
    },
    /// Packets per second over veth, next to nftables DNAT.
    Veth,
    /// Whole TCP connections per second, next to routing and nftables DNAT.
    Tcp,
    /// A million flows at once: memory, evictions, time to count them.
    Flows,
    /// The web tier beside HAProxy and nginx.
    Http {
        /// Only this part.
        #[arg(long, value_enum)]
        part: Option<http::Part>,
    },
    /// The web tier before a Tomcat by AJP13, beside Apache httpd with mod_jk.
    Ajp,
    /// A minute of load on the web tier while servers are killed and restarted.
    HttpChaos,
    /// Ten thousand idle connections and a thousand slow clients of the web tier.
    HttpIdle,
    /// Ten minutes of writes of sessions while agents are killed, stopped and parted at
    /// random; and what `async` loses. `FAULTS_SEED` repeats the faults of a run.
    SessionFaults {
        /// So many seconds instead.
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Sessions that nodes keep together: writes, their cost from 2 to 16 nodes, how late
    /// they are seen, memory, and a million to a node that joins.
    Sessions {
        /// Only this part.
        #[arg(long, value_enum)]
        part: Option<sessions::Part>,
        /// Numbers of nodes whose cost per write is measured.
        #[arg(long, value_delimiter = ',', default_values_t = sessions::NODES)]
        nodes: Vec<usize>,
    },
    /// A thousand frontends and ten thousand backends: time until a verdict holds.
    Scale,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmarks need root: they load kernel programs"
    );
    let (mut report, quick) = (Report::default(), arguments.quick);
    match arguments.what {
        What::Xdp { part } => {
            on_a_thread(|| xdp::run(&mut report, quick, part))?;
            if part.is_none() {
                on_a_thread(|| veth::run(&mut report, quick))?;
                tcp::run(&mut report, quick)?;
            }
        }
        What::Veth => veth::run(&mut report, quick)?,
        What::Tcp => tcp::run(&mut report, quick)?,
        What::Http { part } => http::run(&mut report, quick, part)?,
        What::Ajp => ajp::run(&mut report, quick)?,
        What::HttpChaos => chaos::run(&mut report, quick)?,
        What::HttpIdle => idle::run(&mut report, quick)?,
        What::SessionFaults { seconds } => session_faults::run(&mut report, quick, seconds)?,
        What::Flows => flows::run(&mut report)?,
        What::Sessions { part, nodes } => sessions::run(&mut report, quick, part, &nodes)?,
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

/// Runs a measurement that pins its thread on a thread of its own.
fn on_a_thread(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
