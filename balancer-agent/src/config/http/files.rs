//! Files that the configuration names: those whose contents belong to the
//! model, and those that others will open and that had better be there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use toml::Spanned;

use crate::config::findings::{Findings, Mistake};
use crate::config::value;
use crate::model::Named;
use crate::model::http::CertificateFiles;

/// Largest body that is kept in memory, in bytes.
const BODY_MAX: usize = 1 << 20;
/// Sizes of a cookie key, in bytes.
const KEY_MIN: usize = 32;
const KEY_MAX: usize = 4096;
/// Permissions that no key file has: others', and the group's to write.
const TOO_OPEN: u32 = 0o027;

/// The contents of a body.
pub(super) fn body(text: &str) -> Result<Bytes, Mistake> {
    let path = value::path(text, "/etc/balancer/page.html")?;
    let file = open(&path)?;
    let bytes = read(file, BODY_MAX)?;
    Ok(bytes.into())
}

/// The key for cookies.
pub(super) fn cookie_key(text: &str) -> Result<Arc<[u8]>, Mistake> {
    let path = value::path(text, "/etc/balancer/cookie.key")?;
    let file = open(&path)?;
    closed_to_others(&file)?;
    let bytes = read(file, KEY_MAX)?;
    if bytes.len() < KEY_MIN {
        let what = format!("has only {} bytes", bytes.len());
        let expected =
            format!("at least {KEY_MIN} random bytes, as from `head -c {KEY_MIN} /dev/urandom`");
        return Err(Mistake::value(what, expected));
    }
    Ok(bytes.into())
}

/// The contents of a secret of at most `most` bytes.
pub(in crate::config) fn secret(path: &Path, most: usize) -> Result<Vec<u8>, Mistake> {
    let file = open(path)?;
    closed_to_others(&file)?;
    read(file, most)
}

/// The path of a PEM file that is there.
pub(super) fn pem(text: &str, example: &str) -> Result<PathBuf, Mistake> {
    let path = value::path(text, example)?;
    open(&path)?;
    Ok(path)
}

/// The path of a PEM file with a private key, that is there and not for all to read.
pub(super) fn private_key(text: &str, example: &str) -> Result<PathBuf, Mistake> {
    let path = value::path(text, example)?;
    closed_to_others(&open(&path)?)?;
    Ok(path)
}

/// A certificate and its key; where they are named is noted.
pub(super) fn pair(
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    findings: &mut Findings,
) -> CertificateFiles {
    let (places, spans) = (&mut findings.places, (certificate.span(), key.span()));
    let files = CertificateFiles {
        certificate: certificate.into_inner(),
        key: key.into_inner(),
    };
    places.add(Named::Certificate(files.clone()), spans.0);
    places.add(Named::Key(files.clone()), spans.1);
    files
}

/// Opens a regular file. Anything else (a pipe, a device) could hold up or fill
/// the agent.
fn open(path: &Path) -> Result<File, Mistake> {
    let expected = "a file that can be read";
    let cannot = |error: io::Error| Mistake::value(format!("can't be read: {error}"), expected);
    let file = OpenOptions::new()
        .read(true)
        // Opening a pipe would otherwise wait for its other end.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(cannot)?;
    let kind = file.metadata().map_err(cannot)?;
    if kind.is_dir() {
        return Err(Mistake::value("is a directory", expected));
    }
    if !kind.is_file() {
        return Err(Mistake::value("is not a regular file", expected));
    }
    Ok(file)
}

fn read(file: File, most: usize) -> Result<Vec<u8>, Mistake> {
    let mut bytes = Vec::new();
    file.take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Mistake::value(format!("can't be read: {e}"), "a file that can be read"))?;
    if bytes.len() > most {
        let expected = format!("at most {most} bytes");
        return Err(Mistake::value("is too large", expected));
    }
    Ok(bytes)
}

fn closed_to_others(file: &File) -> Result<(), Mistake> {
    // A file that was opened has its metadata; no answer is no permission.
    let mode = file.metadata().map_or(0o777, |m| m.permissions().mode()) & 0o777;
    if mode & TOO_OPEN != 0 {
        let what = format!("is a secret that others can get at: its mode is {mode:04o}");
        let expected =
            "a file that its owner alone can change, and others can't read: 0600 or 0640";
        return Err(Mistake::value(what, expected));
    }
    Ok(())
}
