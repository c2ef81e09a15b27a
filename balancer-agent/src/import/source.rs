//! Foreign files as text: read within bounds, and every line of them has a place.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes of one import, over all files that are included.
const BYTES_MAX: u64 = 16 << 20;
/// Most files of one import.
const FILES_MAX: usize = 1_000;
/// Deepest nesting of includes.
pub const DEPTH_MAX: usize = 16;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A line of a foreign file. Shown as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why nothing could be made of a file. `Display` is
/// `file:line:column: message; expected ...`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ImportError {
    /// The file.
    pub file: Arc<str>,
    /// Line from 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// Column in characters, from 1; 0 with the line.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub expected: String,
}

impl ImportError {
    /// About a whole file.
    pub fn whole(file: &str, message: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
            message: message.into(),
            expected: expected.into(),
        }
    }

    /// At a column of a line; 0 is the first.
    pub fn at(
        place: &Place,
        column: usize,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            file: Arc::clone(&place.file),
            line: place.line,
            column: u32::try_from(column.saturating_add(1)).unwrap_or(u32::MAX),
            message: message.into(),
            expected: expected.into(),
        }
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}; expected {}", self.message, self.expected)
    }
}

/// A file that was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it was named.
    pub name: Arc<str>,
    /// Its text, without a byte order mark.
    pub text: String,
}

impl Source {
    /// For text that is there already.
    ///
    /// # Errors
    /// The bytes are not UTF-8.
    pub fn new(path: &Path, bytes: &[u8]) -> Result<Self, ImportError> {
        let name: Arc<str> = path.display().to_string().into();
        let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return Err(ImportError::whole(&name, "is in UTF-16", "text in UTF-8"));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let (good, rest) = bytes.split_at(error.valid_up_to());
            let good = String::from_utf8_lossy(good);
            let line = good.bytes().filter(|b| *b == b'\n').count() + 1;
            let column = good.rsplit('\n').next().unwrap_or("").chars().count();
            let place = Place {
                file: Arc::clone(&name),
                line: u32::try_from(line).unwrap_or(u32::MAX),
            };
            let byte = rest.first().copied().unwrap_or_default();
            let message = format!("the byte {byte:#04x} is not UTF-8");
            ImportError::at(&place, column, message, "text in UTF-8")
        })?;
        if let Some(at) = text.find('\0') {
            let line = text[..at].bytes().filter(|b| *b == b'\n').count() + 1;
            let column = text[..at].rsplit('\n').next().unwrap_or("").chars().count();
            let place = Place {
                file: Arc::clone(&name),
                line: u32::try_from(line).unwrap_or(u32::MAX),
            };
            let expected = "a text file";
            return Err(ImportError::at(&place, column, "a null byte", expected));
        }
        Ok(Self {
            name,
            text: text.to_owned(),
        })
    }

    /// Its lines with their places, without line ends (`\n` or `\r\n`).
    pub fn lines(&self) -> impl Iterator<Item = (Place, &str)> {
        self.text.split('\n').zip(1..).map(|(line, number)| {
            let place = Place {
                file: Arc::clone(&self.name),
                line: number,
            };
            (place, line.strip_suffix('\r').unwrap_or(line))
        })
    }
}

/// Reads files, all together within bounds.
#[derive(Debug)]
pub struct Reader {
    bytes: u64,
    files: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            bytes: BYTES_MAX,
            files: FILES_MAX,
        }
    }
}

impl Reader {
    /// Reads a file.
    ///
    /// # Errors
    /// It can't be read, is not text, or the bounds are exceeded.
    pub fn read(&mut self, path: &Path) -> Result<Source, ImportError> {
        let name = path.display().to_string();
        if self.files == 0 {
            let message = "is one file too many";
            let expected = format!("at most {FILES_MAX} files that include each other");
            return Err(ImportError::whole(&name, message, expected));
        }
        self.files -= 1;
        let cannot = |error: std::io::Error| {
            ImportError::whole(&name, format!("can't be read: {error}"), "a readable file")
        };
        let file = File::options()
            .read(true)
            // Opening a pipe would otherwise wait for its other end.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(cannot)?;
        if !file.metadata().map_err(cannot)?.is_file() {
            return Err(ImportError::whole(
                &name,
                "is no regular file",
                "a text file",
            ));
        }
        let mut bytes = Vec::new();
        file.take(self.bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(cannot)?;
        let Some(left) = self.bytes.checked_sub(bytes.len() as u64) else {
            let message = "is too large";
            let expected = format!("at most {} MiB, over all files", BYTES_MAX >> 20);
            return Err(ImportError::whole(&name, message, expected));
        };
        self.bytes = left;
        Source::new(path, &bytes)
    }
}

/// The files that a path with `*`, `?` and `[..]` in its last part names, sorted. Wildcards
/// in directories are not followed: `None`.
pub fn glob(pattern: &Path) -> Option<Vec<PathBuf>> {
    let wild = |text: &str| text.contains(['*', '?', '[']);
    let name = pattern.file_name()?.to_str()?;
    let folder = pattern.parent()?;
    if wild(folder.to_str()?) {
        return None;
    }
    if !wild(name) {
        return Some(
            pattern
                .exists()
                .then(|| pattern.to_owned())
                .into_iter()
                .collect(),
        );
    }
    let name: Vec<char> = name.chars().collect();
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let entry = entry.file_name();
            let Some(entry) = entry.to_str() else {
                return false;
            };
            let hidden = entry.starts_with('.') && name.first() != Some(&'.');
            !hidden && matches(&name, &entry.chars().collect::<Vec<_>>())
        })
        .map(|entry| entry.path())
        // More are refused by the reader anyway.
        .take(FILES_MAX + 1)
        .collect();
    found.sort();
    Some(found)
}

/// Shell wildcards on one name. Names are at most 255 bytes, so that recursion on `*` is
/// bounded by the usual two-pointer walk.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n, mut back) = (0, 0, None);
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                back = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => Some(p + 1),
            Some('[') => class(&pattern[p..], name[n]).map(|length| p + length),
            Some(c) if *c == name[n] => Some(p + 1),
            _ => None,
        };
        match (step, back) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((star, from))) => {
                back = Some((star, from + 1));
                (p, n) = (star + 1, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// The length of a class `[a-z]` at the beginning of `pattern`, when `c` is in it.
fn class(pattern: &[char], c: char) -> Option<usize> {
    let end = 2 + pattern.get(2..)?.iter().position(|c| *c == ']')?;
    let inside = &pattern[1..end];
    let (negated, inside) = match inside.split_first() {
        Some(('!' | '^', rest)) => (true, rest),
        _ => (false, inside),
    };
    let mut found = false;
    let mut at = 0;
    while at < inside.len() {
        match inside[at..] {
            [from, '-', to, ..] => {
                found |= (from..=to).contains(&c);
                at += 3;
            }
            _ => {
                found |= inside[at] == c;
                at += 1;
            }
        }
    }
    (found != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(pattern: &str, name: &str) -> bool {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        matches(&chars(pattern), &chars(name))
    }

    #[test]
    fn names_match_as_in_a_shell() {
        assert!(matching("*.conf", "a.conf"));
        assert!(matching("[0-9]*.conf", "10-x.conf"));
        assert!(matching("a?c*", "abc"));
        assert!(matching("[!a]*", "b"));
        assert!(!matching("*.conf", "a.conf.bak"));
        assert!(!matching("[0-9]*.conf", "x.conf"));
        assert!(!matching("[", "a"));
    }

    #[test]
    fn all_files_together_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        std::fs::write(&path, vec![b'\n'; BYTES_MAX as usize - 1]).unwrap();
        let mut reader = Reader::default();
        assert!(reader.read(&path).is_ok());
        let error = reader.read(&path).unwrap_err().to_string();
        assert!(
            error.contains("is too large; expected at most 16 MiB"),
            "{error}"
        );
        let mut reader = Reader::default();
        std::fs::write(&path, "x").unwrap();
        for _ in 0..FILES_MAX {
            reader.read(&path).unwrap();
        }
        let error = reader.read(&path).unwrap_err().to_string();
        assert!(error.contains("is one file too many"), "{error}");
        let error = Reader::default().read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is no regular file"), "{error}");
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_place() {
        let error = |bytes: &[u8]| Source::new(Path::new("f"), bytes).unwrap_err().to_string();
        assert!(error(b"a\nb\xff").starts_with("f:2:2: the byte 0xff is not UTF-8"));
        assert!(error(b"a\n\0").starts_with("f:2:1: a null byte"));
        let source = Source::new(Path::new("f"), b"\xef\xbb\xbfa\r\nb").unwrap();
        let lines: Vec<_> = source
            .lines()
            .map(|(place, text)| (place.line, text))
            .collect();
        assert_eq!(lines, [(1, "a"), (2, "b")]);
    }
}
