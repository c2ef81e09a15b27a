//! What operators said of backends, kept in a small file beside the admin socket so
//! that it outlives the agent: a drained server must not come back because the agent
//! was restarted.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{Activation, BackendName};

/// Version of the file.
const VERSION: u32 = 1;
/// Largest file that is read, in bytes: every possible backend fits.
const FILE_MAX: u64 = 16 << 20;

/// Operators' words by backend.
pub type Overrides = BTreeMap<BackendName, Activation>;

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    activation: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    pool: String,
    backend: String,
    activation: Activation,
}

/// Where the overrides are kept.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// Beside an admin socket: its path with `.state` at the end.
    pub fn beside(socket: &Path) -> Self {
        let mut path = socket.as_os_str().to_owned();
        path.push(".state");
        Self(path.into())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What an earlier agent saved; nothing when there is no file.
    ///
    /// # Errors
    /// The file can't be read, or is not what [`Self::save`] writes. It says nothing
    /// then, and the next save replaces it.
    pub fn load(&self) -> io::Result<Overrides> {
        let file = match fs::File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Overrides::new()),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, FILE_MAX), &mut text)?;
        let file: File = serde_json::from_str(&text)?;
        if file.version != VERSION {
            let what = format!("it has version {}, not {VERSION}", file.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let name = |e: &Entry| BackendName {
            pool: e.pool.as_str().into(),
            backend: e.backend.as_str().into(),
        };
        let entries = file.activation.iter();
        Ok(entries.map(|e| (name(e), e.activation)).collect())
    }

    /// Replaces the file, whole or not at all.
    ///
    /// # Errors
    /// What the file system says; the former file is as it was.
    pub fn save(&self, overrides: &Overrides) -> io::Result<()> {
        let file = File {
            version: VERSION,
            activation: overrides
                .iter()
                .map(|(name, activation)| Entry {
                    pool: name.pool.to_string(),
                    backend: name.backend.to_string(),
                    activation: *activation,
                })
                .collect(),
        };
        let mut aside = self.0.as_os_str().to_owned();
        aside.push(".new");
        let mut out = fs::File::create(&aside)?;
        serde_json::to_writer(&mut out, &file)?;
        out.write_all(b"\n")?;
        out.sync_all()?;
        fs::rename(aside, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(backend: &str) -> BackendName {
        BackendName {
            pool: "web".into(),
            backend: backend.into(),
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::beside(&dir.path().join("b.sock"));
        assert!(store.path().ends_with("b.sock.state"));
        assert_eq!(store.load().unwrap(), Overrides::new());
        let overrides = Overrides::from([
            (name("a"), Activation::Drain),
            (name("b"), Activation::Stopped),
        ]);
        store.save(&overrides).unwrap();
        assert_eq!(store.load().unwrap(), overrides);
        store.save(&Overrides::new()).unwrap();
        assert_eq!(store.load().unwrap(), Overrides::new());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn bad_content_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::beside(&dir.path().join("b.sock"));
        for text in [
            "",
            "{",
            "[]",
            r#"{"version":2,"activation":[]}"#,
            r#"{"version":1,"activation":[{"pool":"p"}]}"#,
        ] {
            fs::write(store.path(), text).unwrap();
            store.load().unwrap_err();
        }
    }
}
