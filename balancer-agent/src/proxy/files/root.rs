//! A document root: opened once, and every file below it opened so that the kernel itself
//! refuses to leave (`openat2` with `RESOLVE_BENEATH`: no `..`, no symbolic link and no
//! rename at the wrong moment leads out; no link of /proc is followed).
//!
//! Symbolic links that stay inside are followed. The kernel refuses absolute ones even then;
//! for these the name is resolved by hand, and the result opened by the same rule.
//!
//! Only regular files are served. Opening is not to wait: `O_NONBLOCK` for FIFOs, and names
//! are first looked up in the kernel's cache alone (`RESOLVE_CACHED`); only one that needs
//! the disk goes to a thread that may block.
//!
//! Since the root stays open, one that is replaced as a whole (renamed, or a link to the
//! newest release) is taken up by the next reload.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::condition::Version;
use crate::model::http::Files;
use crate::model::{Misfit, Named};

/// `RESOLVE_CACHED` (Linux 5.12), which nix does not name.
const RESOLVE_CACHED: ResolveFlag = ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);

/// Times that an opening is repeated which the kernel gave up because of a rename.
const RENAMES: usize = 16;

/// An opened document root.
#[derive(Debug)]
pub struct Documents {
    pub(super) files: Files,
    root: Arc<Root>,
}

#[derive(Debug)]
struct Root {
    handle: OwnedFd,
    /// Without symbolic links.
    path: PathBuf,
    /// The kernel knows `RESOLVE_CACHED`.
    cached: bool,
}

/// Why a document root can't be served. The configuration's fault, or the kernel's.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not there, no directory, or not allowed.
    #[error("can't open the document root {}: {source}", path.display())]
    Root {
        /// From the configuration.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No `openat2`.
    #[error("can't serve files of {}: the system refuses openat2 ({source})", path.display())]
    Unsupported {
        /// From the configuration.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<OpenError> for Misfit {
    fn from(error: OpenError) -> Self {
        let (path, what, expected) = match error {
            OpenError::Root { path, source } => (
                path,
                format!("can't be opened: {source}"),
                "a directory that the agent may read",
            ),
            OpenError::Unsupported { path, source } => (
                path,
                format!("can't be served: the system refuses openat2: {source}"),
                "Linux 5.6 or newer, and a container's seccomp profile that allows the call",
            ),
        };
        Self::new(Named::Root(path), what, expected)
    }
}

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Opened {
    File(Arc<File>, Version),
    Directory,
}

/// Why there is nothing to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not there, outside of the root, or neither file nor directory: 404.
    Absent,
    /// The agent may not read it: 403.
    Forbidden,
    /// Out of descriptors or memory: 503.
    Busy,
    /// The file system fails: 500.
    Broken,
}

impl Documents {
    /// Opens a root.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(files: &Files) -> Result<Self, OpenError> {
        let failed = |source: io::Error| OpenError::Root {
            path: files.root.clone(),
            source,
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let handle = open(&files.root, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let path = files.root.canonicalize().map_err(failed)?;
        let mut root = Root {
            handle,
            path,
            cached: true,
        };
        // Asks for what will be asked for: the root itself, and that it may be searched.
        let probe = |root: &Root| root.open_beneath(b".", root.cached).map(drop);
        match probe(&root) {
            Err(Errno::EINVAL) => {
                root.cached = false;
                probe(&root)
            }
            Err(Errno::EAGAIN) => root.open_beneath(b".", false).map(drop),
            other => other,
        }
        .map_err(|errno| match errno {
            Errno::ENOSYS | Errno::EPERM => OpenError::Unsupported {
                path: files.root.clone(),
                source: errno.into(),
            },
            _ => failed(errno.into()),
        })?;
        Ok(Self {
            files: files.clone(),
            root: Arc::new(root),
        })
    }

    /// Opens a name below the root: relative, without `.` and `..`.
    pub(super) async fn find(&self, name: &[u8]) -> Result<Opened, Refused> {
        if self.root.cached {
            match self.root.open_beneath(name, true) {
                Ok(fd) => return inspect(fd),
                Err(Errno::EAGAIN | Errno::EXDEV) => {}
                Err(errno) => return Err(Refused::from(errno)),
            }
        }
        let root = Arc::clone(&self.root);
        let name = name.to_vec();
        match tokio::task::spawn_blocking(move || root.open_patiently(&name)).await {
            Ok(opened) => opened,
            Err(_) => Err(Refused::Broken),
        }
    }
}

impl Root {
    fn open_beneath(&self, name: &[u8], cached: bool) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let mut resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        if cached {
            resolve |= RESOLVE_CACHED;
        }
        let how = OpenHow::new().flags(flags).resolve(resolve);
        openat2(&self.handle, name, how)
    }

    /// May wait for the disk.
    fn open_patiently(&self, name: &[u8]) -> Result<Opened, Refused> {
        let beneath = |name: &[u8]| {
            let mut last = Errno::EAGAIN;
            for _ in 0..RENAMES {
                match self.open_beneath(name, false) {
                    Err(Errno::EAGAIN) => {}
                    Err(Errno::EINTR) => last = Errno::EINTR,
                    other => return other,
                }
            }
            Err(last)
        };
        match beneath(name) {
            Ok(fd) => inspect(fd),
            Err(Errno::EXDEV) => {
                // An absolute link, or one that leads outside. Segment by segment, so that
                // no way out and back in again tells what is outside.
                let mut real = self.path.clone();
                for segment in name.split(|&b| b == b'/') {
                    let next = real.join(std::ffi::OsStr::from_bytes(segment));
                    real = next.canonicalize().map_err(|_| Refused::Absent)?;
                    if !real.starts_with(&self.path) {
                        return Err(Refused::Absent);
                    }
                }
                let inside = real.strip_prefix(&self.path).map_err(|_| Refused::Absent)?;
                let inside = match inside.as_os_str().as_bytes() {
                    b"" => b".",
                    inside => inside,
                };
                beneath(inside).map_err(Refused::from).and_then(inspect)
            }
            Err(errno) => Err(Refused::from(errno)),
        }
    }
}

fn inspect(fd: OwnedFd) -> Result<Opened, Refused> {
    let file = File::from(fd);
    let metadata = file.metadata().map_err(|_| Refused::Broken)?;
    if metadata.is_dir() {
        return Ok(Opened::Directory);
    }
    if !metadata.is_file() {
        return Err(Refused::Absent);
    }
    let version = Version {
        size: metadata.size(),
        seconds: metadata.mtime(),
        nanoseconds: metadata.mtime_nsec() as u32,
    };
    Ok(Opened::File(Arc::new(file), version))
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EACCES | Errno::EPERM => Self::Forbidden,
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR => {
                Self::Busy
            }
            // Absent in one way or another: no such name, a file where a directory should
            // be, too long, a loop of links, a link out, a socket, a device without driver.
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::ENAMETOOLONG
            | Errno::ELOOP
            | Errno::EXDEV
            | Errno::ENXIO
            | Errno::ENODEV
            | Errno::EINVAL => Self::Absent,
            _ => Self::Broken,
        }
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
