//! Counts the node's lives on disk.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// More is no number.
const FILE_MAX: u64 = 64;

/// The file with the number of the last life of a node.
pub(super) struct Lives(PathBuf);

impl Lives {
    /// In that directory; nodes of several names may share it.
    pub(super) fn in_dir(dir: &Path, node: &str) -> Self {
        Self(dir.join(format!("cluster-{node}.lives")))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The number of the last life; zero before the first.
    ///
    /// # Errors
    /// What the file system says, or that the content is no number.
    pub(super) fn load(&self) -> io::Result<u32> {
        let file = match fs::File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(FILE_MAX).read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| {
            let what = "its content is not the number of a life";
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }

    /// Keeps the number, whole or not at all.
    ///
    /// # Errors
    /// What the file system says; the former number is then still there.
    pub(super) fn save(&self, count: u32) -> io::Result<()> {
        if let Some(dir) = self.0.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
        }
        let aside = self.0.with_extension("lives.new");
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)?;
        writeln!(out, "{count}")?;
        out.sync_all()?;
        fs::rename(aside, &self.0)?;
        // The name, too, has to outlive a loss of power.
        if let Some(dir) = self.0.parent() {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_counted_over_starts() {
        let dir = tempfile::tempdir().unwrap();
        let lives = Lives::in_dir(&dir.path().join("new/dir"), "a");
        assert_eq!(lives.load().unwrap(), 0);
        lives.save(1).unwrap();
        lives.save(4_000_000_000).unwrap();
        assert_eq!(lives.load().unwrap(), 4_000_000_000);
        let other = Lives::in_dir(&dir.path().join("new/dir"), "b");
        assert_eq!(other.load().unwrap(), 0);
        for torn in ["", "12x", "-1", "4294967296"] {
            fs::write(lives.path(), torn).unwrap();
            lives.load().unwrap_err();
        }
    }
}
