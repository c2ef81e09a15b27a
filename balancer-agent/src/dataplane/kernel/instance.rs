//! One pin directory: who may use it, what state it is in, and how it goes.
//!
//! ```text
//! (absent) --create--> empty --maps pinned--> half made --header written--> ready
//!                        ^                        |                           |
//!                        +--------removed---------+       links come and go   |
//! (absent) <------------- unload, or namespace gone --------------------------+
//! ```
//!
//! `links/` holds the pinned links, `maps/` the maps; that much is the same in
//! every layout version, so that any build can take down what another one left.
//! Nothing else in the directory is ever touched. The directory itself is the
//! lock: `flock` on it ends with the process that holds it, however it ends.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::tables::{Header, names};

use super::bpffs::{self, BpfFs};
use super::error::KernelError;
use super::sys::{DIR_PREFIX, Link, LinkInfo, Netns};
use crate::dataplane::mapped::Mapped;

/// Below the bpf file system's root: one directory per network namespace.
const FOLDER: &str = "balancer";
/// Below the instance's directory: one pin per attached interface.
const LINKS: &str = "links";
/// Below the instance's directory: one pin per map, by its name.
const MAPS: &str = "maps";
/// How long to wait for an agent that is just ending.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Where an instance's pins are; it need not exist.
#[derive(Debug)]
pub(super) struct Place {
    /// A path that works in this process.
    pub dir: PathBuf,
    /// The path to show.
    pub shown: PathBuf,
    /// See [`BpfFs::private`].
    pub private: bool,
    /// The directory of all instances, when the directory was not configured.
    pub siblings: Option<PathBuf>,
    _bpffs: Option<BpfFs>,
}

impl Place {
    /// The place of a namespace's pins, on a bpf file system that is mounted when
    /// it has to be.
    ///
    /// # Errors
    /// [`KernelError::NoBpfFs`], or [`KernelError::NotBpfFs`] for a configured one.
    pub fn choose(configured: Option<&Path>, netns: Netns) -> Result<Self, KernelError> {
        match configured {
            Some(dir) => match dir.strip_prefix(bpffs::DEFAULT) {
                Ok(inside) => Ok(Self::inside(bpffs::find_or_mount()?, inside)),
                Err(_) => Self::configured(dir),
            },
            None => Ok(Self::below(bpffs::find_or_mount()?, netns)),
        }
    }

    /// The same without mounting; `None` when nothing can be pinned.
    pub fn existing(configured: Option<&Path>, netns: Netns) -> Result<Option<Self>, KernelError> {
        match configured {
            Some(dir) => match dir.strip_prefix(bpffs::DEFAULT) {
                Ok(inside) => Ok(bpffs::find().map(|fs| Self::inside(fs, inside))),
                Err(_) => Self::configured(dir).map(Some),
            },
            None => Ok(bpffs::find().map(|fs| Self::below(fs, netns))),
        }
    }

    fn configured(dir: &Path) -> Result<Self, KernelError> {
        let on_bpffs = dir
            .ancestors()
            .find(|d| d.exists())
            .is_some_and(bpffs::is_bpffs);
        if !on_bpffs {
            return Err(KernelError::NotBpfFs { path: dir.into() });
        }
        Ok(Self {
            dir: dir.into(),
            shown: dir.into(),
            private: false,
            siblings: None,
            _bpffs: None,
        })
    }

    /// A configured directory on the usual mount point, which the process may have
    /// to reach through another mount namespace.
    fn inside(fs: BpfFs, inside: &Path) -> Self {
        Self {
            dir: fs.path.join(inside),
            shown: fs.shown.join(inside),
            private: fs.private,
            siblings: None,
            _bpffs: Some(fs),
        }
    }

    fn below(fs: BpfFs, netns: Netns) -> Self {
        let siblings = fs.path.join(FOLDER);
        Self {
            dir: siblings.join(netns.dir_name()),
            shown: fs.shown.join(FOLDER).join(netns.dir_name()),
            private: fs.private,
            siblings: Some(siblings),
            _bpffs: Some(fs),
        }
    }
}

/// A pin directory that this process has to itself, unless it only looks.
#[derive(Debug)]
pub(super) struct Instance {
    place: Place,
    _lock: Option<File>,
}

/// What a pin directory holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Empty,
    /// What a first start that was cut short left: no program ever ran with it.
    HalfMade,
    /// Maps of this build's layout.
    Ready(Header),
}

impl Instance {
    /// Makes the directory if need be, and takes it.
    ///
    /// # Errors
    /// [`KernelError::InUse`] when another process has it and keeps it.
    pub fn acquire(place: Place) -> Result<Self, KernelError> {
        let shown = place.shown.display().to_string();
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let lock = fs::create_dir_all(&place.dir).and_then(|()| try_lock(&place.dir));
            match lock {
                Ok(Some(lock)) => {
                    let _lock = Some(lock);
                    return Ok(Self { place, _lock });
                }
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(None) => return Err(KernelError::InUse { path: place.shown }),
                // Somebody removed the directory or its parent while we were
                // about to use it: make it again.
                Err(e) if e.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {}
                Err(e) => return Err(KernelError::io(format!("cannot lock {shown}"))(e)),
            }
        }
    }

    /// To look at only, whoever has it.
    pub fn unlocked(place: Place) -> Self {
        Self { place, _lock: None }
    }

    /// The directory, as it is shown.
    pub fn shown(&self) -> &Path {
        &self.place.shown
    }

    /// The place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The directory of the links; made if need be.
    pub fn links_dir(&self) -> Result<PathBuf, KernelError> {
        self.folder(LINKS)
    }

    /// The directory of the maps; made if need be.
    pub fn maps_dir(&self) -> Result<PathBuf, KernelError> {
        self.folder(MAPS)
    }

    fn folder(&self, name: &str) -> Result<PathBuf, KernelError> {
        let dir = self.place.dir.join(name);
        fs::create_dir_all(&dir)
            .map_err(KernelError::io(format!("cannot make {}", dir.display())))?;
        Ok(dir)
    }

    /// Looks at what is pinned.
    ///
    /// # Errors
    /// [`KernelError::AbiMismatch`], [`KernelError::OtherNamespace`],
    /// [`KernelError::Damaged`].
    pub fn state(&self, netns: Netns) -> Result<State, KernelError> {
        let maps = self.place.dir.join(MAPS);
        let header = maps.join(names::HEADER);
        let live = live_links(&self.place.dir);
        if !header.exists() {
            if live > 0 {
                return Err(self.damaged("its header is missing while its program runs"));
            }
            return Ok(if entries(&maps).next().is_none() {
                State::Empty
            } else {
                State::HalfMade
            });
        }
        let map = aya::maps::MapData::from_pin(&header)
            .map_err(|e| self.damaged(format!("its header can't be opened: {e}")))?;
        // The version is the first word in every layout; nothing else may be
        // read before it is known.
        let word = Mapped::<u64>::kernel(map.fd().as_fd(), 1)
            .map_err(|e| self.damaged(format!("its header can't be mapped: {e}")))?;
        let version = word
            .atomic_u32(0, 0)
            .load(std::sync::atomic::Ordering::Acquire);
        match version {
            0 if live > 0 => Err(self.damaged("its header is empty while its program runs")),
            0 => Ok(State::HalfMade),
            common::ABI_VERSION => {
                let header = Mapped::<Header>::kernel(map.fd().as_fd(), 1)
                    .map_err(|e| self.damaged(format!("its header can't be mapped: {e}")))?
                    .read(0);
                if header.netns_cookie == netns.number() {
                    Ok(State::Ready(header))
                } else if live > 0 {
                    Err(KernelError::OtherNamespace {
                        path: self.place.shown.clone(),
                    })
                } else {
                    // A configured directory whose namespace is gone.
                    Ok(State::HalfMade)
                }
            }
            pinned => Err(KernelError::AbiMismatch {
                path: self.place.shown.clone(),
                pinned,
                ours: common::ABI_VERSION,
            }),
        }
    }

    /// Takes everything down: the program off every interface, all pins away. The
    /// directory itself stays, and stays ours.
    pub fn clear(&self) -> Result<Removed, KernelError> {
        clear(&self.place.dir).map_err(KernelError::io(format!(
            "cannot remove the pins in {}",
            self.place.shown.display()
        )))
    }

    /// [`Instance::clear`], and the directory too; the lock is then on nothing.
    pub fn remove(&self) -> Result<Removed, KernelError> {
        let removed = self.clear()?;
        // Neither goes while something else is in it: the pins of others in a
        // configured directory, the instances of other namespaces.
        let _ = fs::remove_dir(&self.place.dir);
        if let Some(folder) = &self.place.siblings {
            let _ = fs::remove_dir(folder);
        }
        Ok(removed)
    }

    /// Removes the directories of namespaces that are gone: no agent runs with
    /// them and none of their links has a device. Returns their names.
    pub fn remove_dead_siblings(&self) -> Vec<String> {
        let Some(folder) = &self.place.siblings else {
            return Vec::new();
        };
        let mut removed = Vec::new();
        for (name, dir) in entries(folder) {
            if !name.starts_with(DIR_PREFIX) || dir == self.place.dir {
                continue;
            }
            // The lock is held until the directory is gone, so that nobody can
            // start to use it meanwhile.
            let Ok(Some(_lock)) = try_lock(&dir) else {
                continue;
            };
            if live_links(&dir) > 0 {
                continue;
            }
            match clear(&dir).and_then(|_| fs::remove_dir(&dir)) {
                Ok(()) => removed.push(name),
                Err(error) => tracing::warn!(name, %error, "cannot remove old pins"),
            }
        }
        removed
    }

    /// The error for pins that contradict each other.
    pub fn damaged(&self, what: impl Into<String>) -> KernelError {
        KernelError::Damaged {
            path: self.place.shown.clone(),
            what: what.into(),
        }
    }
}

/// What was taken down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Links, each the program on one interface.
    pub links: usize,
    /// Maps.
    pub maps: usize,
}

/// The names of the pins in a directory of links and what each is attached to;
/// a link that can't be asked counts as attached to nothing.
pub(super) fn links_in(links: &Path) -> BTreeMap<String, (PathBuf, LinkInfo)> {
    entries(links)
        .map(|(name, path)| {
            let info = Link::open(&path)
                .and_then(|l| l.info())
                .unwrap_or(LinkInfo {
                    program_id: 0,
                    ifindex: 0,
                });
            (name, (path, info))
        })
        .collect()
}

/// Takes one pinned link down: the program off its device, then the pin.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    match Link::open(path).and_then(|link| link.detach()) {
        Ok(()) => {}
        // Without the call (before 5.9), or with the device gone, removing the
        // last reference is all there is to do.
        Err(error) => tracing::debug!(%error, path = %path.display(), "link not detached"),
    }
    fs::remove_file(path)
}

/// Opens a directory and takes its lock: `None` when somebody else has it.
fn try_lock(dir: &Path) -> io::Result<Option<File>> {
    let file = File::open(dir)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    // Whoever held it may have removed the directory: then this lock is on a
    // directory that nobody will find again.
    let (locked, now) = (file.metadata()?, fs::metadata(dir)?);
    if (locked.dev(), locked.ino()) != (now.dev(), now.ino()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(Some(file))
}

fn live_links(dir: &Path) -> usize {
    let links = links_in(&dir.join(LINKS));
    links.values().filter(|(_, i)| i.ifindex != 0).count()
}

fn clear(dir: &Path) -> io::Result<Removed> {
    let mut removed = Removed::default();
    let (links, maps) = (dir.join(LINKS), dir.join(MAPS));
    for (_, path) in entries(&links) {
        remove_link(&path)?;
        removed.links += 1;
    }
    // The header goes first: without it the rest counts as half made.
    let mut pins: Vec<_> = entries(&maps).collect();
    pins.sort_by_key(|(name, _)| name != names::HEADER);
    for (_, path) in pins {
        fs::remove_file(path)?;
        removed.maps += 1;
    }
    for folder in [links, maps] {
        if folder.exists() {
            fs::remove_dir(folder)?;
        }
    }
    Ok(removed)
}

fn entries(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Place {
        Place {
            dir: dir.into(),
            shown: dir.into(),
            private: false,
            siblings: None,
            _bpffs: None,
        }
    }

    #[test]
    fn a_directory_has_one_owner() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let first = Instance::acquire(place(&dir)).unwrap();
        assert!(matches!(
            Instance::acquire(place(&dir)),
            Err(KernelError::InUse { .. })
        ));
        drop(first);
        Instance::acquire(place(&dir)).unwrap();
    }

    #[test]
    fn the_lock_of_a_removed_directory_is_worth_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a");
        let first = Instance::acquire(place(&dir)).unwrap();
        first.remove().unwrap();
        assert!(!dir.exists());
        let second = Instance::acquire(place(&dir)).unwrap();
        assert!(second.place().dir.exists());
        assert!(try_lock(&dir).unwrap().is_none());
    }

    #[test]
    fn pins_without_a_header_are_half_made() {
        let temp = tempfile::tempdir().unwrap();
        let instance = Instance::acquire(place(temp.path())).unwrap();
        assert_eq!(instance.state(Netns::Cookie(1)).unwrap(), State::Empty);
        fs::write(instance.maps_dir().unwrap().join("RINGS"), "").unwrap();
        fs::write(temp.path().join("not_ours"), "").unwrap();
        assert_eq!(instance.state(Netns::Cookie(1)).unwrap(), State::HalfMade);
        assert_eq!(instance.clear().unwrap(), Removed { links: 0, maps: 1 });
        assert_eq!(instance.state(Netns::Cookie(1)).unwrap(), State::Empty);
        assert!(temp.path().join("not_ours").exists());
    }

    #[test]
    fn a_configured_directory_must_be_on_a_bpf_file_system() {
        let temp = tempfile::tempdir().unwrap();
        let error = Place::choose(Some(&temp.path().join("x")), Netns::Cookie(1)).unwrap_err();
        assert!(matches!(error, KernelError::NotBpfFs { .. }), "{error}");
    }
}
