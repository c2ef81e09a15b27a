//! Sessions on disk: a file of an embedded database, and the thread that writes it.
//!
//! ```text
//! Store -- Persist --> driver -- bounded queue --> writer thread --> one transaction, fsync
//!   ^                    ^                             |
//!   +---- Persisted -----+------- latest number -------+
//!
//! start:  look (changes nothing) -> open -> load every session -> the thread begins
//! ```
//!
//! The file has the latest copy of each session under group, bucket and id, so that it is
//! as large as what it holds and a bucket can be replaced. What waits is written in one
//! transaction; it is reported safe after the disk has confirmed it, never before.
//!
//! - `file`: the database itself: made, opened, set aside, read, written;
//! - `facts`: what a file says of itself, and whether it is this node's;
//! - `fault`: what can go wrong, and whose fault that is;
//! - `pending`: what waits, as changes of rows;
//! - `writer`: the thread, and what it does when the disk fails;
//! - `look`: what `balancer check` can say without touching anything;
//! - `status`: what operators see.
//!
//! # When something is wrong with the file
//! Damage (a file that is not whole, or contradicts its checksums) is nobody's mistake: the
//! file is set aside under another name, and the node starts without it. What only does not
//! fit (another version's, node's or cluster's file, a directory that can't be written) is
//! a mistake that can be mended, and what the file holds is still worth something: the
//! agent refuses to start. Nothing is ever overwritten or removed.

mod facts;
mod fault;
mod file;
mod look;
mod pending;
mod status;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};

use super::types::NodeId;

pub use file::{Loaded, Opened, open};
pub use look::look;
pub use status::{DiskState, DiskStatus};
pub use writer::{Link, Pace, Report, start};

/// The file of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is; made when it is not there.
    pub directory: PathBuf,
    /// The node's name in its cluster: nodes of several names may share the directory.
    pub node: Option<String>,
}

impl Place {
    /// The file's path.
    pub fn path(&self) -> PathBuf {
        self.directory.join(match &self.node {
            Some(name) => format!("sessions-{name}.redb"),
            None => "sessions.redb".to_owned(),
        })
    }
}

/// Whose sessions a file has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Key that places sessions.
    pub key: [u64; 2],
    /// Key for hashes of ids.
    pub id_key: [u64; 2],
    /// The keys are this node's own: a new file keeps them, and with a file that is there
    /// its keys are taken instead. Otherwise they are the cluster's, and have to be the same.
    pub own_keys: bool,
}

impl fmt::Debug for Identity {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("own_keys", &self.own_keys)
            .finish_non_exhaustive()
    }
}

/// Why sessions can't be kept in a directory, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}")]
pub struct Refusal {
    /// What is wrong, with the path.
    pub what: String,
    /// What would be right, or what to do.
    pub expected: String,
}

impl Refusal {
    fn new(what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            expected: expected.into(),
        }
    }

    fn of(path: &Path, what: impl fmt::Display, expected: impl Into<String>) -> Self {
        Self::new(format!("{} {what}", path.display()), expected)
    }
}
