//! Configurations of other balancers, made into one of this balancer: `balancer import`.
//!
//! - `source`: foreign files, read within bounds; `names`: names, hosts and addresses;
//! - `haproxy`, `workers` (with `httpd`), `nginx`: one foreign language each, from its words
//!   to tables;
//! - `rules`: ordered rules made into mounts, whose order is their own;
//! - `draft`: the tables, and how they are printed; `finish`: has the configuration's own
//!   reader look at what was made, and takes out what it refuses.
//!
//! Nothing is dropped in silence: a directive is carried over, or it is in the list of
//! [`Imported::left_over`] with a reason. What is carried over is described in
//! `docs/import.md`.

pub mod draft;
mod finish;
mod haproxy;
mod httpd;
mod names;
mod nginx;
mod rules;
mod sites;
mod source;
mod workers;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use source::Reader;
pub use source::{ImportError, Place};

/// Most entries of [`Imported::left_over`]; more are only counted.
const LEFT_OVER_MAX: usize = 10_000;

/// What the files themselves do not say.
#[derive(Clone, Debug)]
pub struct Options {
    /// Variables that the files may use.
    pub environment: HashMap<String, String>,
    /// Look up names of servers, once, and write down their addresses.
    pub resolve: bool,
    /// Interfaces for frontends that are steered in the kernel.
    pub interfaces: Vec<String>,
    /// Where the key for inserted cookies will be.
    pub cookie_key: PathBuf,
    /// The address that stands for "all addresses" in frontends that are steered in the
    /// kernel, which need one.
    pub address: Option<std::net::IpAddr>,
}

impl Default for Options {
    /// No variables, no look-ups.
    fn default() -> Self {
        Self {
            environment: HashMap::new(),
            resolve: false,
            interfaces: Vec::new(),
            cookie_key: "/etc/balancer/cookie.key".into(),
            address: None,
        }
    }
}

/// What became of foreign files.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// A configuration that the configuration's reader takes.
    pub toml: String,
    /// What is not in it, in the order of the files.
    pub left_over: Vec<LeftOver>,
    /// What is to be done before it is used, or known.
    pub notes: Vec<LeftOver>,
}

/// A directive that was not carried over, or about which there is something to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOver {
    /// Where it is.
    pub place: Place,
    /// The directive, as far as it is needed to know it.
    pub directive: String,
    /// Why, and what to do instead.
    pub reason: String,
}

impl fmt::Display for LeftOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directive = draft::plain(&self.directive);
        write!(
            f,
            "{}: {directive}: {}",
            self.place,
            draft::plain(&self.reason)
        )
    }
}

/// Gathers what is to be said.
#[derive(Debug, Default)]
struct Report {
    left_over: Vec<LeftOver>,
    notes: Vec<LeftOver>,
}

impl Report {
    /// Something was not carried over.
    fn left(&mut self, place: &Place, directive: impl Into<String>, reason: impl Into<String>) {
        Self::push(&mut self.left_over, place, directive.into(), reason.into());
    }

    /// Something was, and there is something to know about it.
    fn note(&mut self, place: &Place, directive: impl Into<String>, reason: impl Into<String>) {
        Self::push(&mut self.notes, place, directive.into(), reason.into());
    }

    fn push(list: &mut Vec<LeftOver>, place: &Place, directive: String, reason: String) {
        const WIDTH: usize = 200;
        let directive = match directive.char_indices().nth(WIDTH) {
            Some((at, _)) => format!("{}...", &directive[..at]),
            None => directive,
        };
        let entry = LeftOver {
            place: place.clone(),
            directive,
            reason,
        };
        if list.len() < LEFT_OVER_MAX && !list.contains(&entry) {
            list.push(entry);
        }
    }
}

/// Imports an `haproxy.cfg`.
///
/// # Errors
/// It can't be read, or is no configuration of HAProxy.
pub fn haproxy(file: &Path, options: &Options) -> Result<Imported, ImportError> {
    let source = Reader::default().read(file)?;
    haproxy::import(&source, options)
}

/// Imports a `workers.properties`, with an `uriworkermap.properties` and httpd's
/// configuration, when these are named.
///
/// # Errors
/// One can't be read, or is not what it should be.
pub fn workers(
    file: &Path,
    map: Option<&Path>,
    httpd: Option<&Path>,
    options: &Options,
) -> Result<Imported, ImportError> {
    workers::import(file, map, httpd, options)
}

/// Imports an `nginx.conf`.
///
/// # Errors
/// It can't be read, or is no configuration of nginx.
pub fn nginx(file: &Path, options: &Options) -> Result<Imported, ImportError> {
    nginx::import(file, options)
}
