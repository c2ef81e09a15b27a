//! Where pins are kept: finds the bpf file system that outlives this process, or
//! mounts it.
//!
//! The usual place is `/sys/fs/bpf`. But `ip netns exec` starts a command in a
//! mount namespace of its own with a fresh `/sys`: a bpf file system mounted
//! there would vanish with the agent, and steering with it. So when our mount
//! namespace is not that of our oldest ancestor that we may look at (process 1 on
//! a host, the container's or the sandbox's first visible process elsewhere), the
//! ancestor's `/sys/fs/bpf` is used, through a directory handle that needs no path.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::KernelError;

pub(super) const DEFAULT: &str = "/sys/fs/bpf";

/// A bpf file system.
#[derive(Debug)]
pub(super) struct BpfFs {
    /// A path to its root that works in this process.
    pub path: PathBuf,
    /// The path to show.
    pub shown: PathBuf,
    /// It was mounted in a namespace that may end with this process.
    pub private: bool,
    /// Keeps `path` valid when that leads through a handle.
    _root: Option<File>,
}

impl BpfFs {
    fn local(private: bool) -> Self {
        Self {
            path: DEFAULT.into(),
            shown: DEFAULT.into(),
            private,
            _root: None,
        }
    }

    fn through(root: File) -> Self {
        Self {
            path: format!("/proc/self/fd/{}", root.as_raw_fd()).into(),
            shown: DEFAULT.into(),
            private: false,
            _root: Some(root),
        }
    }
}

/// Finds the bpf file system, and mounts it when there is none.
///
/// # Errors
/// [`KernelError::NoBpfFs`].
pub(super) fn find_or_mount() -> Result<BpfFs, KernelError> {
    let Some(outer) = outer_namespace() else {
        mount_if_missing(Path::new(DEFAULT)).map_err(no_bpffs)?;
        return Ok(BpfFs::local(false));
    };
    match open_in(outer, true) {
        Ok(root) => Ok(BpfFs::through(root)),
        Err(error) => {
            tracing::debug!(%error, "the host's bpf file system can't be reached");
            mount_if_missing(Path::new(DEFAULT)).map_err(no_bpffs)?;
            Ok(BpfFs::local(true))
        }
    }
}

/// Finds the bpf file system; `None` where none is mounted, and so nothing pinned.
pub(super) fn find() -> Option<BpfFs> {
    let inside = || is_bpffs(Path::new(DEFAULT)).then(|| BpfFs::local(false));
    match outer_namespace() {
        None => inside(),
        Some(outer) => open_in(outer, false)
            .map(BpfFs::through)
            .ok()
            .or_else(inside),
    }
}

/// Whether `path` exists and lies on a bpf file system.
pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// The mount namespace to pin in, when it is not the one that we are in.
fn outer_namespace() -> Option<File> {
    // The thread's own, because threads can have left the process' namespace.
    let ours = std::fs::read_link("/proc/thread-self/ns/mnt").ok()?;
    let oldest = ancestors()
        .into_iter()
        .rev()
        .map(|pid| PathBuf::from(format!("/proc/{pid}/ns/mnt")))
        .find(|path| std::fs::read_link(path).is_ok())?;
    if std::fs::read_link(&oldest).ok()? == ours {
        return None;
    }
    File::open(oldest).ok()
}

/// This process, its parent, and so on up to process 1.
fn ancestors() -> Vec<u32> {
    let mut pids = vec![std::process::id()];
    // The bound is against a chain that changes while it is read.
    while pids.len() < 64 {
        match pids.last().copied().and_then(parent) {
            Some(pid) if pid != 0 => pids.push(pid),
            _ => break,
        }
    }
    pids
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Opens the root of the bpf file system in another mount namespace, on a thread
/// of its own, which enters that namespace and then ends.
fn open_in(namespace: File, may_mount: bool) -> io::Result<File> {
    let enter = move || -> io::Result<File> {
        // A thread that shares its root and working directory can't change
        // mount namespaces.
        unshare(CloneFlags::CLONE_FS)?;
        setns(namespace, CloneFlags::CLONE_NEWNS)?;
        let path = Path::new(DEFAULT);
        if may_mount {
            mount_if_missing(path)?;
        } else if !is_bpffs(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        File::open(path)
    };
    std::thread::Builder::new()
        .name("bpffs".into())
        .spawn(enter)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the helper thread failed")))
}

fn mount_if_missing(path: &Path) -> io::Result<()> {
    if is_bpffs(path) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))?;
    tracing::info!(path = %path.display(), "mounted a bpf file system");
    Ok(())
}

fn no_bpffs(source: io::Error) -> KernelError {
    KernelError::NoBpfFs {
        path: DEFAULT.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_ancestors_begin_with_us_and_end_at_the_first() {
        let pids = ancestors();
        assert_eq!(pids[0], std::process::id());
        assert_eq!(pids[1], std::os::unix::process::parent_id());
        assert!(pids.len() < 64);
    }

    #[test]
    fn other_file_systems_are_told_apart() {
        assert!(!is_bpffs(Path::new("/proc")));
        assert!(!is_bpffs(Path::new("/nowhere/at/all")));
    }
}
