//! The database file: made, opened, judged, set aside, read and written.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::Instant;

use redb::backends::FileBackend;
use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, StorageBackend,
    Table, TableDefinition, WriteTransaction,
};

use super::super::codec::FORMAT;
use super::super::disk::{Change, Remembered, changes, put_cluster};
use super::super::wire::DecodeError;
use super::facts::{ABOUT, LAYOUT, check_of, facts, judge, not_regular};
use super::fault::{Fault, fault, guarded, odd, unusable};
use super::pending::{PREFIX, Pending};
use super::status::DiskState;
use super::{Identity, Refusal};

/// Group, bucket, id -> the record as it stands in a batch.
const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");

/// Memory for pages of the file. What does not fit is in the system's cache.
const CACHE: usize = 32 << 20;
/// A batch that is given to the store at the start.
const LOAD_BATCH: usize = 256 << 10;
/// Damaged files that are kept under other names.
const ASIDE: u32 = 8;
/// A file beyond this size, of which sessions take less than an eighth, is made smaller at
/// the start.
const COMPACT: u64 = 16 << 20;

/// A file that is open.
#[derive(Debug)]
pub struct Opened {
    /// Nothing after a failure, until it is opened again.
    db: Option<Database>,
    path: PathBuf,
    identity: Identity,
    buckets: u16,
    /// Device and number: a file of the same name may be another one.
    inode: (u64, u64),
    stamp: u64,
    aside: Vec<PathBuf>,
}

/// What was read at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Sessions, and ended ones whose end is remembered.
    pub rows: u64,
    /// Rows of groups that are not persistent any more; they are dropped.
    pub foreign: u64,
}

/// What one write was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub records: u64,
    pub rows: u64,
}

/// Opens a node's file, or makes one. A damaged file is set aside. `buckets` are those of a
/// group.
///
/// # Errors
/// The directory or the file can't be used, or has something that would be lost.
pub fn open(path: &Path, identity: Identity, buckets: u16) -> Result<Opened, Refusal> {
    make_directory(path)?;
    let mut opened = Opened {
        db: None,
        path: path.to_owned(),
        identity,
        buckets,
        inode: (0, 0),
        stamp: 0,
        aside: Vec::new(),
    };
    let refuse = |fault| unusable(path, fault);
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            opened.create().map_err(refuse)?;
        }
        Err(error) => return Err(refuse(error.into())),
        Ok(_) => match opened.connect() {
            Ok(()) => {}
            Err(Fault::Damaged(why)) => opened.replace(&why).map_err(refuse)?,
            Err(other) => return Err(refuse(other)),
        },
    }
    Ok(opened)
}

fn make_directory(path: &Path) -> Result<(), Refusal> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(|error| {
        Refusal::of(
            directory,
            format_args!("can't be made: {error}"),
            "a directory that the agent may make and write",
        )
    })
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    // Every start reads the whole file anyway: what was altered has to be found then.
    builder.set_check_integrity_on_open(true);
    builder
}

#[cfg(test)]
impl Opened {
    /// A file that is there, by way of another backend.
    pub(super) fn by_way_of(
        path: &Path,
        identity: Identity,
        buckets: u16,
        backend: impl StorageBackend,
    ) -> Self {
        let found = path.metadata().unwrap();
        let mut opened = Self {
            db: None,
            path: path.to_owned(),
            identity,
            buckets,
            inode: (found.dev(), found.ino()),
            stamp: 0,
            aside: Vec::new(),
        };
        opened.db = Some(opened.database_in(backend).unwrap());
        opened
    }
}

impl Opened {
    /// The node and the keys, which may be the file's.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Damaged files that were set aside by this process.
    pub fn aside(&self) -> &[PathBuf] {
        &self.aside
    }

    /// Length of the file in bytes; 0 when that can't be said.
    pub fn size(&self) -> u64 {
        self.path.metadata().map_or(0, |found| found.len())
    }

    fn db(&self) -> Result<&Database, Fault> {
        let closed = || Fault::Io("it is not open".into());
        self.db.as_ref().ok_or_else(closed)
    }

    /// Opens a file that is there, and looks whether it is this node's.
    fn connect(&mut self) -> Result<(), Fault> {
        let mut options = OpenOptions::new();
        // Never waits, whatever the name leads to.
        options.read(true).write(true);
        options.custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC);
        let file = options.open(&self.path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(Fault::Refused(not_regular(&self.path)));
        }
        if found.len() == 0 {
            // The database would begin a new one in it.
            return Err(Fault::Damaged("it is empty".into()));
        }
        if found.mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        let db = self.database(file)?;
        let facts = facts(&self.path, db.begin_read())?;
        judge(&self.path, &facts, &self.identity, self.buckets).map_err(Fault::Refused)?;
        if let (true, Some((key, id_key))) = (self.identity.own_keys, facts.own_keys) {
            (self.identity.key, self.identity.id_key) = (key, id_key);
        }
        self.inode = (found.dev(), found.ino());
        self.db = Some(db);
        Ok(())
    }

    fn database(&self, file: File) -> Result<Database, Fault> {
        guarded(|| {
            let backend = FileBackend::new(file).map_err(|error| fault(&self.path, error))?;
            self.database_in(backend)
        })
    }

    fn database_in(&self, backend: impl StorageBackend) -> Result<Database, Fault> {
        let made = builder().create_with_backend(backend);
        made.map_err(|error| fault(&self.path, error))
    }

    /// Begins a new file. It gets its name when it is whole.
    fn create(&mut self) -> Result<(), Fault> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.mode(0o600).open(&new)?;
        let found = file.metadata()?;
        let db = self.database(file)?;
        guarded(|| self.begin(&db))?;
        fs::rename(&new, &self.path)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        self.inode = (found.dev(), found.ino());
        self.db = Some(db);
        Ok(())
    }

    /// Writes what a new file says of itself.
    fn begin(&self, db: &Database) -> Result<(), Fault> {
        let path = &self.path;
        let write = db.begin_write().map_err(|error| fault(path, error))?;
        {
            let table = write.open_table(ABOUT);
            let mut about = table.map_err(|error| fault(path, error))?;
            let mut say = |key: &str, value: &[u8]| {
                let said = about.insert(key, value);
                said.map(drop).map_err(|error| fault(path, error))
            };
            say("layout", &LAYOUT.to_le_bytes())?;
            say("format", &[FORMAT])?;
            say("buckets", &self.buckets.to_le_bytes())?;
            say("node", &self.identity.node.0.to_le_bytes())?;
            say("check", &check_of(&self.identity))?;
            if self.identity.own_keys {
                let keys = self.identity.key.iter().chain(&self.identity.id_key);
                let keys: Vec<u8> = keys.flat_map(|word| word.to_le_bytes()).collect();
                say("keys", &keys)?;
            }
            let table = write.open_table(SESSIONS);
            table.map_err(|error| fault(path, error))?;
        }
        write.commit().map_err(|error| fault(path, error))
    }

    /// Sets the file aside and begins a new one.
    ///
    /// # Errors
    /// That can't be done.
    pub(super) fn replace(&mut self, why: &str) -> Result<(), Fault> {
        self.close();
        let aside = self.set_aside()?;
        tracing::error!(
            file = %self.path.display(),
            kept_as = %aside.display(),
            why,
            "the file with the sessions is damaged and was set aside; a new one begins",
        );
        self.aside.push(aside);
        self.create()
    }

    fn set_aside(&self) -> Result<PathBuf, Fault> {
        for number in 1..=ASIDE {
            let mut name = self.path.clone().into_os_string();
            match number {
                1 => name.push(".damaged"),
                _ => name.push(format!(".damaged-{number}")),
            }
            let to = PathBuf::from(name);
            if to.symlink_metadata().is_err() {
                fs::rename(&self.path, &to)?;
                return Ok(to);
            }
        }
        Err(Fault::Refused(Refusal::of(
            &self.path,
            format_args!("is damaged, and {ASIDE} damaged files are kept beside it"),
            "them moved away: none of them is removed by itself",
        )))
    }

    pub(super) fn close(&mut self) {
        let db = self.db.take();
        // What it could not write is in the batches that are written again.
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
    }

    /// After a failure: goes on with the file, or with a new one where it was damaged, has
    /// gone or was replaced. `true`: it is a new one, and has nothing yet.
    ///
    /// # Errors
    /// It can't be opened yet.
    pub(super) fn reopen(&mut self) -> Result<bool, Fault> {
        self.close();
        match self.path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(directory) = self.path.parent() {
                    let mut builder = fs::DirBuilder::new();
                    builder.recursive(true).mode(0o700).create(directory)?;
                }
                self.create()?;
                Ok(true)
            }
            Err(error) => Err(error.into()),
            Ok(found) if (found.dev(), found.ino()) != self.inode => {
                self.replace("it is another file than the one that was in use")?;
                Ok(true)
            }
            Ok(_) => match self.connect() {
                Ok(()) => Ok(false),
                Err(Fault::Damaged(why)) => {
                    self.replace(&why)?;
                    Ok(true)
                }
                Err(other) => Err(other),
            },
        }
    }

    /// [`Self::load`] at the start: a file that turns out to be damaged is set aside, and
    /// `false` says that nothing of what was taken counts.
    ///
    /// # Errors
    /// The file can't be read, or not be set aside.
    pub fn read(
        &mut self,
        groups: &[u32],
        take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<(DiskState, bool), Refusal> {
        let began = Instant::now();
        let loaded = match self.load(groups, take) {
            Err(Fault::Damaged(why)) => self.replace(&why).map(|()| None),
            other => other.map(Some),
        };
        let loaded = loaded.map_err(|fault| unusable(&self.path, fault))?;
        if let Some(loaded) = loaded.filter(|loaded| loaded.foreign > 0) {
            tracing::warn!(
                file = %self.path.display(),
                sessions = loaded.foreign,
                "sessions of groups that are not persistent any more are dropped from disk",
            );
        }
        let state = DiskState::new(self, loaded.unwrap_or_default(), began.elapsed());
        Ok((state, loaded.is_some()))
    }

    /// Gives all that the file has of these groups to `take`, in batches for
    /// [`super::super::Store::load`]; drops what it has of others.
    ///
    /// # Errors
    /// The file can't be read, or `take` refuses something.
    pub(super) fn load(
        &mut self,
        groups: &[u32],
        mut take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<Loaded, Fault> {
        let damaged = |error: DecodeError| Fault::Damaged(format!("a session in it: {error}"));
        let mut loaded = Loaded::default();
        let mut content = 0_u64;
        let read = self.db()?.begin_read();
        let read = read.map_err(|error| fault(&self.path, error))?;
        let cluster = guarded(|| self.cluster(&read))?;
        take(&cluster).map_err(damaged)?;
        guarded(|| {
            let failed = |error: redb::StorageError| fault(&self.path, error);
            let table = read.open_table(SESSIONS);
            let table = table.map_err(|error| fault(&self.path, error))?;
            let mut batch = vec![FORMAT];
            for row in table.iter().map_err(failed)? {
                let (key, record) = row.map_err(failed)?;
                let (key, record) = (key.value(), record.value());
                content += (key.len() + record.len()) as u64;
                if !is_of(key, groups)? {
                    loaded.foreign += 1;
                    continue;
                }
                loaded.rows += 1;
                batch.extend_from_slice(record);
                if batch.len() >= LOAD_BATCH {
                    take(&batch).map_err(damaged)?;
                    batch.truncate(1);
                }
            }
            take(&batch).map_err(damaged)
        })?;
        drop(read);
        if loaded.foreign > 0 {
            guarded(|| self.drop_foreign(groups))?;
        }
        let size = self.size();
        if size > COMPACT && size / 8 > content {
            self.compact()?;
        }
        Ok(loaded)
    }

    /// What the node knew of the cluster, with a clock that is not behind anything that was
    /// ever written: also what is gone again counts.
    fn cluster(&mut self, read: &ReadTransaction) -> Result<Vec<u8>, Fault> {
        let path = self.path.clone();
        let about = read
            .open_table(ABOUT)
            .map_err(|error| fault(&path, error))?;
        let value = |key: &str| {
            let found = about.get(key).map_err(|error| fault(&path, error))?;
            Ok::<_, Fault>(found.map(|value| value.value().to_vec()))
        };
        let stamp = match value("stamp")? {
            Some(stamp) => u64::from_le_bytes(stamp.try_into().map_err(|_| odd("stamp"))?),
            None => 0,
        };
        self.stamp = stamp;
        let mut batch = vec![FORMAT];
        let Some(record) = value("cluster")? else {
            let cluster = Remembered {
                lamport: stamp,
                ..Remembered::default()
            };
            put_cluster(&mut batch, cluster, [].into_iter());
            return Ok(batch);
        };
        let whole = [&[FORMAT], &*record].concat();
        let first = changes(&whole).ok().and_then(|mut all| all.next());
        let Some(Ok(Change::Cluster {
            mut cluster, known, ..
        })) = first
        else {
            return Err(odd("cluster"));
        };
        cluster.lamport = cluster.lamport.max(stamp);
        put_cluster(&mut batch, cluster, known.into_iter());
        Ok(batch)
    }

    fn drop_foreign(&self, groups: &[u32]) -> Result<(), Fault> {
        let path = &self.path;
        let write = self.db()?.begin_write();
        let write = write.map_err(|error| fault(path, error))?;
        {
            let table = write.open_table(SESSIONS);
            let mut table = table.map_err(|error| fault(path, error))?;
            let keep = |key: &[u8], _: &[u8]| is_of(key, groups).unwrap_or(false);
            table.retain(keep).map_err(|error| fault(path, error))?;
        }
        write.commit().map_err(|error| fault(path, error))
    }

    fn compact(&mut self) -> Result<(), Fault> {
        let path = self.path.clone();
        let before = self.size();
        if let Some(db) = &mut self.db {
            guarded(|| db.compact().map(drop).map_err(|error| fault(&path, error)))?;
        }
        let after = self.size();
        tracing::info!(file = %path.display(), before, after, "the file was made smaller");
        Ok(())
    }

    /// Writes batches in one transaction, and has the disk confirm it.
    ///
    /// # Errors
    /// None of it may be on disk, or all; [`Self::reopen`] comes before the next try.
    pub(super) fn write<'a>(
        &mut self,
        batches: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Written, Fault> {
        let found = self.path.symlink_metadata();
        if found.map_or(true, |found| (found.dev(), found.ino()) != self.inode) {
            return Err(Fault::Io("the file was removed or replaced".into()));
        }
        let mut pending = Pending::new(self.identity.key, self.buckets);
        for batch in batches {
            pending.add(batch)?;
        }
        let stamp = self.stamp.max(pending.stamp);
        guarded(|| {
            let write = self.db()?.begin_write();
            let write = write.map_err(|error| fault(&self.path, error))?;
            apply(&self.path, &write, &pending, stamp)?;
            write.commit().map_err(|error| fault(&self.path, error))
        })?;
        self.stamp = stamp;
        Ok(Written {
            records: pending.records,
            rows: pending.rows.len() as u64,
        })
    }
}

fn apply(
    path: &Path,
    write: &WriteTransaction,
    pending: &Pending<'_>,
    stamp: u64,
) -> Result<(), Fault> {
    let failed = |error: redb::StorageError| fault(path, error);
    let open = || write.open_table(SESSIONS);
    if pending.wipe {
        let gone = write.delete_table(SESSIONS);
        gone.map_err(|error| fault(path, error))?;
    }
    let mut sessions: Table<'_, &[u8], &[u8]> = open().map_err(|error| fault(path, error))?;
    for prefix in &pending.cleared {
        let mut end = *prefix;
        // A bucket's number is far below what two bytes hold.
        let bucket = u16::from_be_bytes([prefix[4], prefix[5]]).saturating_add(1);
        end[4..].copy_from_slice(&bucket.to_be_bytes());
        let range = &prefix[..]..&end[..];
        sessions.retain_in(range, |_, _| false).map_err(failed)?;
    }
    for (key, record) in &pending.rows {
        match record {
            Some(record) => drop(sessions.insert(&key[..], *record).map_err(failed)?),
            None => drop(sessions.remove(&key[..]).map_err(failed)?),
        }
    }
    let about = write.open_table(ABOUT);
    let mut about = about.map_err(|error| fault(path, error))?;
    let stamp = stamp.to_le_bytes();
    about.insert("stamp", &stamp[..]).map_err(failed)?;
    if let Some(cluster) = pending.cluster {
        about.insert("cluster", cluster).map_err(failed)?;
    }
    Ok(())
}

/// Whether a row is of one of these groups.
fn is_of(key: &[u8], groups: &[u32]) -> Result<bool, Fault> {
    let group = key.first_chunk::<4>().filter(|_| key.len() > PREFIX);
    let group = group.ok_or_else(|| odd("a row"))?;
    Ok(groups.contains(&u32::from_be_bytes(*group)))
}
