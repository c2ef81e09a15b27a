//! What can go wrong with a file, and whose fault that is.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::super::wire::DecodeError;
use super::Refusal;

/// What went wrong with a file.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is not whole, or contradicts itself.
    Damaged(String),
    /// It does not fit, and somebody can mend that.
    Refused(Refusal),
    /// The system refuses to read or write: no room, a broken disk, no right.
    Io(String),
    /// What was to be written can't be read.
    Unreadable(DecodeError),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(why) => write!(f, "the file is damaged: {why}"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Io(why) => f.write_str(why),
            Self::Unreadable(error) => write!(f, "a batch can't be read: {error}"),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::Unreadable(error)
    }
}

/// What the database says of itself, as a fault.
pub(super) fn fault(path: &Path, error: impl Into<redb::Error>) -> Fault {
    use redb::Error;
    let error = error.into();
    match error {
        Error::Corrupted(why) => Fault::Damaged(why),
        // The first is a file that does not begin like one, the other one that was cut.
        Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Fault::Damaged(error.to_string())
        }
        Error::Io(error) => Fault::Io(error.to_string()),
        Error::DatabaseAlreadyOpen | Error::LockProtocolMismatch => Fault::Refused(Refusal::of(
            path,
            "is in use by another process",
            "a `directory` of its own for each agent of this host",
        )),
        Error::UpgradeRequired(format) => Fault::Refused(Refusal::of(
            path,
            format_args!("was written by an older database (format {format})"),
            "the version of balancer that wrote it, or the file moved away to start without \
             its sessions",
        )),
        error => Fault::Io(error.to_string()),
    }
}

/// Does something with the database that may stumble over damage.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Fault::Damaged("the database stumbled over it".into())))
}

pub(super) fn unusable(path: &Path, fault: Fault) -> Refusal {
    match fault {
        Fault::Refused(refusal) => refusal,
        other => Refusal::of(
            path,
            format_args!("can't be used for sessions: {other}"),
            "a directory with room that the agent may read and write",
        ),
    }
}

pub(super) fn odd(what: &str) -> Fault {
    Fault::Damaged(format!("`{what}` is not what it should be"))
}
