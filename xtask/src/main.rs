//! `cargo xtask`: everything that is done with this repository, one file per task.

mod bench;
mod build_ebpf;
mod demo;
mod place;
mod setup;
mod test;
mod toolchain;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What is done with this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find what building and testing need, and install what is missing.
    Setup(setup::Arguments),
    /// Build the kernel programs into target/bpf.
    BuildEbpf(build_ebpf::Arguments),
    /// Run the tests: checks, unit tests, then those that need root.
    Test(test::Arguments),
    /// Run a benchmark (needs root).
    Bench(bench::Arguments),
    /// Show it all: clients, balancers and servers in namespaces (needs root).
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup(arguments) => setup::run(&arguments).map(|()| true),
        Task::BuildEbpf(arguments) => build_ebpf::run(&arguments).map(|()| true),
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments).map(|()| true),
        Task::Demo(arguments) => demo::run(&arguments).map(|()| true),
    };
    place::give_back();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        // It has said what is wrong.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
