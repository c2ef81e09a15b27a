//! One node of the benchmark of sessions; see [`balancer_tests::bench::sessions`]. Not for
//! users: an agent is `balancer run`.

use std::path::PathBuf;

use balancer_tests::bench::sessions::{memory::Counting, node};
use clap::Parser;
use mimalloc::MiMalloc;

/// As the agent's, which it counts for the measure of memory.
#[global_allocator]
static ALLOCATOR: Counting = Counting(MiMalloc);

/// Keeps sessions with others, and does what it is told on standard input.
#[derive(Parser)]
struct Arguments {
    /// An agent's configuration, with `[cluster]` and `[session]`.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    node::run(&Arguments::parse().config)
}
