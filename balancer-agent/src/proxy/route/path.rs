//! The one path of a request: what mounts and files match, and what backends are sent.
//!
//! Matching one form of a path and forwarding another is where path traversal bugs of
//! such connectors came from (CVE-2018-11759: `/jkstatus;`). So a target is read once:
//!
//! - its first character is `/`;
//! - percent escapes are decoded, once;
//! - `;parameters` are taken out of every segment ([`NormalPath::parameter`] reads them);
//! - empty segments (`//`) go away, `.` and `..` are resolved, those that were written as
//!   escapes (`%2e`) or before a parameter (`..;x`) too; a `..` above the root is refused;
//! - refused are also: broken escapes, control characters and spaces (escaped: controls
//!   only), and slash and backslash as escapes, backslash in the clear too, as Tomcat
//!   refuses them: servers disagree about whether these separate segments.
//!
//! What is forwarded is that path, written anew: a byte that may stand in a path (RFC 3986,
//! pchar) as itself and any other as `%XX`. A reserved character that came as an escape
//! (`%2B`, `%3B`) stays one (RFC 3986, 6.2.2.2), since `;` in the clear would start a
//! parameter and some servers read `+` as a space. Parameters follow at the end, so that
//! everything before the first `;` is exactly the path that was matched; of parameters with
//! the same name only the first goes on, because servers disagree on which one counts.
//!
//! Bytes that are not UTF-8 are kept as they are: mounts compare bytes.

use std::borrow::Cow;

use bytes::Bytes;
use http::Uri;
use http::uri::PathAndQuery;

use crate::model::http::Rewrite;

/// Most path parameters of a target. Tomcat's applications use one.
const MAX_PARAMETERS: usize = 64;

/// A normalised path. Borrows from the raw one where that was normal already, which is the
/// usual case and costs one pass over its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    encoded: Cow<'a, str>,
    /// `None` when it reads as `encoded` does.
    decoded: Option<Box<[u8]>>,
    /// `;name=value;name`, or nothing.
    parameters: Cow<'a, str>,
    /// The raw path was what would be written now.
    verbatim: bool,
}

/// Why a path is refused; the answer is 400. Positions are bytes of the raw path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Empty, `*`, or a name.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// `%` and no two hexadecimal digits.
    #[error("`%` at byte {0} of the path is not followed by two hexadecimal digits")]
    BadEscape(usize),
    /// A control character, or a space in the clear.
    #[error("control character or space at byte {0} of the path")]
    Control(usize),
    /// `%2F`.
    #[error("escaped slash at byte {0} of the path")]
    EncodedSlash(usize),
    /// `\` or `%5C`.
    #[error("backslash at byte {0} of the path")]
    Backslash(usize),
    /// A `..` too many.
    #[error("the path leads above the root")]
    AboveRoot,
    /// More than 64.
    #[error("the path has more than 64 parameters")]
    TooManyParameters,
    /// What would be sent is longer than a URI can be (64 KiB).
    #[error("the path is too long after rewriting")]
    TooLong,
}

/// What a byte of a raw path means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stands for itself, in a segment and in what is forwarded.
    Plain,
    Slash,
    Semicolon,
    Percent,
    Backslash,
    /// Controls and space.
    Control,
    /// Anything else: goes on as an escape.
    Escape,
}

const CLASS: [Class; 256] = {
    let mut class = [Class::Escape; 256];
    let mut b = 0;
    while b < 256 {
        class[b] = match b as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => Class::Plain,
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' => Class::Plain,
            b'*' | b'+' | b',' | b'=' | b':' | b'@' => Class::Plain,
            b'/' => Class::Slash,
            b';' => Class::Semicolon,
            b'%' => Class::Percent,
            b'\\' => Class::Backslash,
            0..=0x20 | 0x7f => Class::Control,
            _ => Class::Escape,
        };
        b += 1;
    }
    class
};

impl<'a> NormalPath<'a> {
    /// Reads the path of a request's target, without its query.
    ///
    /// # Errors
    /// The path is to be answered with 400. `*` (of `OPTIONS *`) is no path either.
    pub fn parse(raw: &'a str) -> Result<Self, PathError> {
        let bytes = raw.as_bytes();
        if bytes.first() != Some(&b'/') {
            return Err(PathError::NotAbsolute);
        }
        let normal = normal_until(bytes);
        if normal == bytes.len() {
            return Ok(Self {
                encoded: Cow::Borrowed(raw),
                decoded: None,
                parameters: Cow::Borrowed(""),
                verbatim: true,
            });
        }
        // One plain parameter at the end: a browser without cookies sends it every time.
        if bytes[normal] == b';'
            && bytes.len() > normal + 1
            && bytes[normal + 1..]
                .iter()
                .all(|&b| CLASS[usize::from(b)] == Class::Plain)
        {
            return Ok(Self {
                encoded: Cow::Borrowed(&raw[..normal]),
                decoded: None,
                parameters: Cow::Borrowed(&raw[normal..]),
                verbatim: true,
            });
        }
        Normaliser::default().run(bytes)
    }

    /// What mounts and files match: bytes, usually UTF-8. Begins with `/`; holds no NUL, no
    /// control character, no backslash, and no segment that is empty, `.` or `..`.
    pub fn decoded(&self) -> &[u8] {
        match &self.decoded {
            Some(decoded) => decoded,
            None => self.encoded.as_bytes(),
        }
    }

    /// [`Self::decoded`] as it is written in a URI: ASCII, without parameters.
    pub fn encoded(&self) -> &str {
        &self.encoded
    }

    /// Value of the path parameter of that name, as it was written (like Tomcat, without
    /// decoding escapes). The first, whichever segment it belonged to; an empty value is
    /// none, as for mod_jk.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.each_parameter()
            .filter_map(|p| p.split_once('='))
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
    }

    /// All parameters as they are forwarded: `;name=value;name`, or nothing.
    pub fn parameters(&self) -> &str {
        &self.parameters
    }

    fn each_parameter(&self) -> impl Iterator<Item = &str> {
        self.parameters.split(';').skip(1)
    }

    /// The path to send: prefix taken off and put on, then the parameters. `replace` is the
    /// new value of one of them, in case it is there; it is not added.
    pub fn forwarded(&self, replace: Option<(&str, &str)>, rewrite: &Rewrite) -> Cow<'_, str> {
        let rest = self.without_prefix(rewrite);
        let add = rewrite.add_prefix.as_deref().unwrap_or("");
        if add.is_empty() && self.parameters.is_empty() {
            return match rest {
                "" => Cow::Borrowed("/"),
                rest => Cow::Borrowed(rest),
            };
        }
        let mut out = String::with_capacity(add.len() + rest.len() + self.parameters.len() + 32);
        self.write_path(&mut out, rest, add);
        self.write_parameters(&mut out, replace);
        Cow::Owned(out)
    }

    /// Path and query to send for `uri`, the one that [`Self::parse`] read the path of: its
    /// own, shared, when nothing has to change.
    ///
    /// # Errors
    /// [`PathError::TooLong`].
    pub fn target(
        &self,
        uri: &Uri,
        replace: Option<(&str, &str)>,
        rewrite: &Rewrite,
    ) -> Result<PathAndQuery, PathError> {
        let same = self.verbatim
            && rewrite.strip_prefix.is_none()
            && rewrite.add_prefix.is_none()
            && (replace.is_none() || self.parameters.is_empty());
        if same && let Some(target) = uri.path_and_query() {
            return Ok(target.clone());
        }
        let mut target = self.forwarded(replace, rewrite).into_owned();
        if let Some(query) = uri.query() {
            target.push('?');
            target.push_str(query);
        }
        PathAndQuery::from_maybe_shared(Bytes::from(target)).map_err(|_| PathError::TooLong)
    }

    /// [`Self::decoded`] with the prefix taken off and put on: what files are looked for by.
    pub fn local(&self, rewrite: &Rewrite) -> Cow<'_, [u8]> {
        let rest = match &rewrite.strip_prefix {
            Some(prefix) => strip(self.decoded(), prefix),
            None => self.decoded(),
        };
        match rewrite.add_prefix.as_deref().unwrap_or("") {
            "" if rest.is_empty() => Cow::Borrowed(b"/"),
            "" => Cow::Borrowed(rest),
            add => Cow::Owned([add.as_bytes(), rest].concat()),
        }
    }

    /// The encoded path after the prefix: empty, or beginning with `/`.
    fn without_prefix(&self, rewrite: &Rewrite) -> &str {
        let Some(prefix) = &rewrite.strip_prefix else {
            return &self.encoded;
        };
        let decoded = self.decoded();
        let stripped = decoded.len() - strip(decoded, prefix).len();
        if self.decoded.is_none() {
            return &self.encoded[stripped..];
        }
        // Each escape stands for one decoded byte.
        let bytes = self.encoded.as_bytes();
        let mut at = 0;
        for _ in 0..stripped {
            at += if bytes[at] == b'%' { 3 } else { 1 };
        }
        &self.encoded[at..]
    }

    fn write_path(&self, out: &mut String, rest: &str, add: &str) {
        for &b in add.as_bytes() {
            match CLASS[usize::from(b)] {
                Class::Plain | Class::Slash => out.push(char::from(b)),
                _ => push_escape(out, b),
            }
        }
        match rest {
            "" if add.is_empty() => out.push('/'),
            rest => out.push_str(rest),
        }
    }

    fn write_parameters(&self, out: &mut String, replace: Option<(&str, &str)>) {
        let Some((name, value)) = replace else {
            out.push_str(&self.parameters);
            return;
        };
        for parameter in self.each_parameter() {
            out.push(';');
            match parameter.split_once('=') {
                Some((n, _)) if n == name => {
                    out.push_str(name);
                    out.push('=');
                    for &b in value.as_bytes() {
                        match CLASS[usize::from(b)] {
                            Class::Plain | Class::Percent => out.push(char::from(b)),
                            _ => push_escape(out, b),
                        }
                    }
                }
                _ => out.push_str(parameter),
            }
        }
    }
}

/// `path` without `prefix`, if that stands there as whole segments. Empty when it is all.
fn strip<'p>(path: &'p [u8], prefix: &str) -> &'p [u8] {
    match path.strip_prefix(prefix.trim_end_matches('/').as_bytes()) {
        Some(rest) if rest.is_empty() || rest[0] == b'/' => rest,
        _ => path,
    }
}

/// How many leading bytes of a path need no change and are no part of anything that does.
fn normal_until(raw: &[u8]) -> usize {
    for (at, &b) in raw.iter().enumerate() {
        match CLASS[usize::from(b)] {
            Class::Plain => {}
            Class::Slash => match raw.get(at + 1) {
                Some(b'/') => return at,
                Some(b'.') if dot_segment(&raw[at + 1..]) => return at,
                _ => {}
            },
            _ => return at,
        }
    }
    raw.len()
}

/// Whether a path from here on begins with a `.` or `..` segment.
fn dot_segment(rest: &[u8]) -> bool {
    let dots = rest.iter().take(2).take_while(|&&b| b == b'.').count();
    matches!(rest.get(dots), None | Some(b'/' | b';'))
}

fn push_escape(out: &mut String, b: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(b >> 4)]));
    out.push(char::from(HEX[usize::from(b & 15)]));
}

/// Reads a path that is not normal.
#[derive(Default)]
struct Normaliser {
    encoded: String,
    decoded: Vec<u8>,
    parameters: String,
    count: usize,
}

impl Normaliser {
    fn run(mut self, raw: &[u8]) -> Result<NormalPath<'static>, PathError> {
        self.encoded.reserve(raw.len() + 16);
        self.decoded.reserve(raw.len());
        let mut directory = false;
        let mut at = 1;
        for segment in raw[1..].split(|&b| b == b'/') {
            directory = self.segment(segment, at)?;
            at += segment.len() + 1;
        }
        if directory {
            self.encoded.push('/');
            self.decoded.push(b'/');
        }
        let plain = self.encoded.as_bytes() == self.decoded;
        Ok(NormalPath {
            encoded: Cow::Owned(self.encoded),
            decoded: (!plain).then(|| self.decoded.into_boxed_slice()),
            parameters: Cow::Owned(self.parameters),
            verbatim: false,
        })
    }

    /// Takes one segment; whether the path, if it ended here, would end in `/`.
    fn segment(&mut self, segment: &[u8], at: usize) -> Result<bool, PathError> {
        let end = memchr::memchr(b';', segment).unwrap_or(segment.len());
        let (encoded, decoded) = (self.encoded.len(), self.decoded.len());
        self.encoded.push('/');
        self.decoded.push(b'/');
        for (b, how, _) in Bytewise::new(&segment[..end], at) {
            match how? {
                How::Clear => self.encoded.push(char::from(b)),
                How::Escaped => push_escape(&mut self.encoded, b),
            }
            self.decoded.push(b);
        }
        if end < segment.len() {
            self.read_parameters(&segment[end + 1..], at + end + 1)?;
        }
        match &self.decoded[decoded + 1..] {
            b"" | b"." => {
                self.encoded.truncate(encoded);
                self.decoded.truncate(decoded);
                Ok(true)
            }
            b".." => {
                self.encoded.truncate(encoded);
                self.decoded.truncate(decoded);
                // No segment holds a slash, so the last one begins the last segment.
                let up = self.encoded.rfind('/').ok_or(PathError::AboveRoot)?;
                self.encoded.truncate(up);
                let up = memchr::memrchr(b'/', &self.decoded).ok_or(PathError::AboveRoot)?;
                self.decoded.truncate(up);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Takes the parameters of a segment, without the first `;`.
    fn read_parameters(&mut self, raw: &[u8], mut at: usize) -> Result<(), PathError> {
        for parameter in raw.split(|&b| b == b';') {
            let start = self.parameters.len();
            self.parameters.push(';');
            for (b, how, raw_escape) in Bytewise::new(parameter, at) {
                match how? {
                    // An escape that was not needed stays too: names are compared as written.
                    How::Clear if !raw_escape => self.parameters.push(char::from(b)),
                    _ => push_escape(&mut self.parameters, b),
                }
            }
            at += parameter.len() + 1;
            if self.parameters.len() == start + 1 {
                self.parameters.truncate(start);
                continue;
            }
            // Before the search, which is what needs the bound.
            self.count += 1;
            if self.count > MAX_PARAMETERS {
                return Err(PathError::TooManyParameters);
            }
            if self.is_repeated(start) {
                self.parameters.truncate(start);
            }
        }
        Ok(())
    }

    /// Whether the parameter that begins at `start` has the name of an earlier one.
    fn is_repeated(&self, start: usize) -> bool {
        fn name(parameter: &str) -> &str {
            parameter
                .split_once('=')
                .map_or(parameter, |(name, _)| name)
        }
        let (earlier, new) = self.parameters.split_at(start);
        earlier
            .split(';')
            .skip(1)
            .any(|p| name(p) == name(&new[1..]))
    }
}

/// How a byte is written.
enum How {
    Clear,
    Escaped,
}

/// Decoded bytes of a segment or parameter, how each is to be written, and whether it came
/// as an escape.
struct Bytewise<'r> {
    raw: &'r [u8],
    next: usize,
    /// Position of `raw` in the whole path.
    base: usize,
}

impl<'r> Bytewise<'r> {
    fn new(raw: &'r [u8], base: usize) -> Self {
        Self { raw, next: 0, base }
    }

    fn escape(&self) -> Option<u8> {
        let digit = |at: usize| {
            let b = *self.raw.get(self.next + at)?;
            char::from(b).to_digit(16).map(|d| d as u8)
        };
        Some(digit(1)? << 4 | digit(2)?)
    }
}

impl Iterator for Bytewise<'_> {
    type Item = (u8, Result<How, PathError>, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let raw = *self.raw.get(self.next)?;
        let at = self.base + self.next;
        let (b, escaped, width) = match raw {
            b'%' => match self.escape() {
                Some(b) => (b, true, 3),
                None => (raw, true, 1),
            },
            _ => (raw, false, 1),
        };
        self.next += width;
        let how = match CLASS[usize::from(b)] {
            _ if raw == b'%' && width == 1 => Err(PathError::BadEscape(at)),
            Class::Plain if !escaped || is_unreserved(b) => Ok(How::Clear),
            Class::Plain | Class::Semicolon | Class::Percent | Class::Escape => Ok(How::Escaped),
            Class::Control if escaped && b == b' ' => Ok(How::Escaped),
            Class::Control => Err(PathError::Control(at)),
            Class::Slash => Err(PathError::EncodedSlash(at)),
            Class::Backslash => Err(PathError::Backslash(at)),
        };
        Some((b, how, escaped))
    }
}

/// RFC 3986, 2.3.
fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
