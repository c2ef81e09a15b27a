//! From the text of a configuration file to a checked [`model::Config`](crate::model::Config).
//!
//! `raw` knows the file's structure, `value` what a single value means,
//! `resolve` and `pool` build the model, `cross` looks at what fits together, `places`
//! remembers where things outside of the file are named;
//! `http` does all of it for the web tier.
//! All of them add what they find to one list, so that a file's mistakes are
//! shown together. The format is described in `docs/configuration.md`.

mod cluster;
mod cross;
mod error;
mod findings;
mod http;
mod places;
mod pool;
mod raw;
mod resolve;
mod session;
mod value;

use std::io::Read;
use std::path::Path;

use crate::model::{Config, Misfit};

pub use error::{ConfigError, Problem, Warnings};
use error::{Finding, Listing};
use findings::Findings;
use places::Places;

/// Largest file that is read, in bytes. The largest configuration that the
/// kernel tables have room for takes less than a quarter of it.
const FILE_MAX: usize = 16 << 20;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Reads and checks a file.
///
/// # Errors
/// The file can't be read, or has mistakes: all of them.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    load_with_warnings(path).map(|(config, _)| config)
}

/// [`load`], with what is odd in the file.
///
/// # Errors
/// As [`load`].
pub fn load_with_warnings(path: &Path) -> Result<(Config, Warnings), ConfigError> {
    read(path).map(Loaded::into_parts)
}

/// Reads and checks a file, and remembers where things are in it. What the file names
/// outside of itself is not looked into.
///
/// # Errors
/// As [`load`].
pub fn read(path: &Path) -> Result<Loaded, ConfigError> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    // A little more than allowed tells a file that is too large from one that
    // just fits.
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            let message = format!("can't be read: {error}");
            ConfigError::new(Listing::unreadable(
                &name,
                message,
                "a file that can be read",
            ))
        })?;
    read_bytes(&name, &bytes)
}

/// Checks a text. `name` stands for the file in messages.
///
/// # Errors
/// The text has mistakes: all of them.
pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
    parse_with_warnings(name, text).map(|(config, _)| config)
}

/// [`parse`], with what is odd in the text.
///
/// # Errors
/// As [`parse`].
pub fn parse_with_warnings(name: &str, text: &str) -> Result<(Config, Warnings), ConfigError> {
    parse_bytes(name, text.as_bytes())
}

/// [`parse_with_warnings`] for bytes that may not even be text.
///
/// # Errors
/// As [`parse`]; also when the bytes are not UTF-8.
pub fn parse_bytes(name: &str, bytes: &[u8]) -> Result<(Config, Warnings), ConfigError> {
    read_bytes(name, bytes).map(Loaded::into_parts)
}

/// [`read`] for bytes; `name` stands for the file in messages.
///
/// # Errors
/// As [`parse_bytes`].
pub fn read_bytes(name: &str, bytes: &[u8]) -> Result<Loaded, ConfigError> {
    if bytes.len() > FILE_MAX {
        let message = format!("is larger than {} MiB", FILE_MAX >> 20);
        let expected = "a configuration of balancer";
        return Err(ConfigError::new(Listing::unreadable(
            name, message, expected,
        )));
    }
    let text = decode(name, bytes)?;
    let mut findings = Findings::default();
    let config =
        raw::read(text, &mut findings).and_then(|raw| resolve::resolve(&raw, &mut findings));
    match config {
        Some(config) if findings.errors.is_empty() => Ok(Loaded {
            config,
            name: name.to_owned(),
            text: text.to_owned(),
            places: findings.places,
            warnings: findings.warnings,
        }),
        _ => Err(ConfigError::new(Listing::new(name, text, findings.errors))),
    }
}

/// A checked configuration together with its text, for those who look at what it names.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    name: String,
    text: String,
    places: Places,
    warnings: Vec<Finding>,
}

impl Loaded {
    /// Says what can't be used at every place that names it.
    pub fn refuse(&self, misfits: &[Misfit]) -> ConfigError {
        ConfigError::new(self.listing(self.places.findings(misfits)))
    }

    /// What is odd in the file, and in what it names.
    pub fn warnings(&self, odd: &[Misfit]) -> Warnings {
        let mut findings = self.warnings.clone();
        findings.extend(self.places.findings(odd));
        Warnings::new(self.listing(findings))
    }

    fn listing(&self, findings: Vec<Finding>) -> Listing {
        Listing::new(&self.name, &self.text, findings)
    }

    fn into_parts(self) -> (Config, Warnings) {
        let warnings = self.warnings(&[]);
        (self.config, warnings)
    }
}

/// The text without a byte order mark.
fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, ConfigError> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let message = "the file is in UTF-16".to_owned();
        return Err(ConfigError::new(at(name, "", message, "UTF-8")));
    }
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let (good, rest) = bytes.split_at(error.valid_up_to());
        let good = String::from_utf8_lossy(good);
        let byte = rest.first().copied().unwrap_or_default();
        let message = format!("the byte {byte:#04x} is not UTF-8");
        ConfigError::new(at(name, &good, message, "text in UTF-8"))
    })?;
    if text.trim().is_empty() {
        // A file cut short while it was written must not switch everything off.
        let message = "the file is empty".to_owned();
        let expected = "a configuration; one without frontends still has a table such as `[admin]`";
        return Err(ConfigError::new(at(name, text, message, expected)));
    }
    Ok(text)
}

/// One problem at the end of `text`, which is as far as reading came.
fn at(name: &str, text: &str, message: String, expected: &str) -> Listing {
    let end = if text.trim().is_empty() {
        0
    } else {
        text.len()
    };
    let finding = Finding {
        span: end..end,
        message,
        expected: expected.to_owned(),
    };
    Listing::new(name, text, vec![finding])
}
