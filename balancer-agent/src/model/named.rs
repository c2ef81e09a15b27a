//! What a configuration names outside of its file, and what is wrong with that.
//!
//! The file's text is checked in [`crate::config`]; what it names is opened and read where
//! it is used. This is how those who read it say which value they speak of, without
//! knowing where it is written.

use std::path::PathBuf;
use std::sync::Arc;

use super::http::CertificateFiles;

/// A value that names something outside of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Named {
    /// `certificate` of this pair.
    Certificate(CertificateFiles),
    /// `key` of this pair.
    Key(CertificateFiles),
    /// `client_authorities` of a frontend.
    ClientAuthorities(PathBuf),
    /// `authorities` of a pool.
    BackendAuthorities(PathBuf),
    /// `[pool.tls]` of this pool, where no single value is to blame.
    BackendTls(Arc<str>),
    /// `root` of a site or of `files`.
    Root(PathBuf),
    /// `file` of an access log.
    Log(PathBuf),
    /// `directory` of `[session]`.
    SessionDirectory(PathBuf),
}

/// Something named that can't be used, or is odd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Misfit {
    /// The value that names it.
    pub named: Named,
    /// Continues "`key` value ...".
    pub what: String,
    /// What would be right.
    pub expected: String,
}

impl Misfit {
    /// Of a value, what is wrong with it, and what would be right.
    pub fn new(named: Named, what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            named,
            what: what.into(),
            expected: expected.into(),
        }
    }
}
