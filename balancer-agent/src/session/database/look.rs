//! Whether sessions can be kept in a directory, as far as that can be said without changing
//! anything.

use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::facts::inspect;
use super::{Identity, Place, Refusal};

/// Looks at the directory and at what is in it. Returns what is odd: a damaged file, which
/// will be set aside.
///
/// # Errors
/// What an agent that starts now would be refused for.
pub fn look(place: &Place, identity: &Identity, buckets: u16) -> Result<Option<String>, Refusal> {
    let directory = &place.directory;
    let mut at = directory.as_path();
    let found = loop {
        match at.metadata() {
            Ok(found) => break found,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(unusable(directory, at, error)),
        }
        // The root is always there.
        at = at.parent().unwrap_or(Path::new("/"));
    };
    if !found.is_dir() {
        let what = std::io::Error::from(std::io::ErrorKind::NotADirectory);
        return Err(unusable(directory, at, what));
    }
    let wanted = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    if let Err(errno) = faccessat(AT_FDCWD, at, wanted, AtFlags::AT_EACCESS) {
        return Err(unusable(directory, at, errno.into()));
    }
    let path = place.path();
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let damaged = inspect(&path, identity, buckets).map_err(|refusal| Refusal {
        what: format!("can't be used: {}", refusal.what),
        ..refusal
    })?;
    Ok(damaged.map(|why| {
        let path = path.display();
        format!("has a damaged file: {path}: {why}; it will be set aside at the start")
    }))
}

fn unusable(directory: &Path, at: &Path, error: std::io::Error) -> Refusal {
    let what = match directory == at {
        true => format!("can't be used: {error}"),
        false => format!("can't be made: {}: {error}", at.display()),
    };
    let expected = "a directory that the agent may read and write, or may make";
    Refusal::new(what, expected)
}
