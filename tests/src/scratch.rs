//! Directories for what the harness' processes read and write, removed when their handle
//! goes.
//!
//! A name is `bal-<pid>-<what>-<random>`: what a killed process left behind is recognised by
//! its dead pid and removed when the next one makes a directory.

use std::fs;
use std::path::PathBuf;
use std::sync::Once;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::process;

const PREFIX: &str = "bal-";

/// Makes one; the name says what it is for.
#[track_caller]
pub fn dir(what: &str) -> TempDir {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    let _open = process::gate();
    let prefix = format!("{PREFIX}{}-{what}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir();
    made.unwrap_or_else(|error| panic!("make a directory for {what}: {error}"))
}

/// Those that this process has made and not yet removed.
pub fn own() -> Vec<PathBuf> {
    let me = std::process::id().cast_signed();
    all()
        .filter(|(maker, _)| *maker == me)
        .map(|(_, path)| path)
        .collect()
}

/// Removes everything this process has made: for a signal handler's thread, right before
/// the process exits.
pub fn remove_own() {
    own().iter().for_each(remove);
}

fn sweep() {
    let gone = |pid| kill(Pid::from_raw(pid), None::<Signal>) == Err(Errno::ESRCH);
    for (maker, path) in all() {
        if gone(maker) {
            remove(&path);
        }
    }
    // Nothing has been made yet: these are of an earlier process of this number.
    remove_own();
}

/// Makers and paths.
fn all() -> impl Iterator<Item = (i32, PathBuf)> {
    let entries = fs::read_dir(std::env::temp_dir());
    entries.into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        let (maker, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
        Some((maker.parse().ok()?, entry.path()))
    })
}

fn remove(path: &PathBuf) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("could not remove {}: {error}", path.display());
    }
}
