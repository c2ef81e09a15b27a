//! The demonstration's program: options, signals and the exit code.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use balancer_tests::demo::{self, Options};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

/// A signal has come: what fails from now on fails because of it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let options = Options::parse();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("the demo needs root: it makes network namespaces and loads a kernel program");
        return ExitCode::FAILURE;
    }
    clean_up_on_signals();
    std::panic::set_hook(Box::new(|panic| {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return;
        }
        let message = panic.payload_as_str().unwrap_or("for an unknown reason");
        let place = panic
            .location()
            .map_or(String::new(), |at| format!(" ({at})"));
        eprintln!("\nthe demo could not go on: {message}{place}");
    }));
    let result = catch_unwind(|| demo::run(&options));
    while INTERRUPTED.load(Ordering::Relaxed) {
        // Whoever cleans up ends the process.
        std::thread::park();
    }
    match result {
        Ok(true) => ExitCode::SUCCESS,
        // What was broken has been printed.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Namespaces and pinned programs outlive a process: a signal must not leave them.
fn clean_up_on_signals() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("a signal handler");
            let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
        eprintln!("\ninterrupted: cleaning up");
        demo::clean_up();
        #[expect(clippy::disallowed_methods, reason = "everything has been taken down")]
        std::process::exit(130);
    });
}
