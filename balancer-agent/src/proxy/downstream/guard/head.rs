//! A request's head, line by line as it comes.

use super::body::{Chunked, Framed};
use super::chars;
use super::{Bounds, Refusal};

/// Longest method; there is none that is near.
const METHOD: usize = 64;

/// A head that is complete and clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Head {
    /// Bytes before it that are to be left out: an empty line.
    pub skip: usize,
    /// Where it ends, its empty line included.
    pub end: usize,
    /// The client asks for an upgrade.
    pub upgrade: bool,
    /// The body that follows.
    pub(super) framed: Framed,
}

/// How far a head has been looked at. Everything before `line` is clean.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    /// Begin of the first line that is not complete.
    line: usize,
    /// Where the search for its end goes on.
    seen: usize,
    /// Leading bytes that are left out.
    skip: usize,
    started: bool,
    fields: usize,
    version_1_1: bool,
    /// Where the authority of an absolute-form target is.
    authority: Option<(usize, usize)>,
    default_port: &'static [u8],
    host: Option<(usize, usize)>,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Scan {
    /// Looks at what is new in `bytes`, which begins where it began the last time.
    pub fn advance(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Option<Head>, Refusal> {
        while let Some(i) = memchr::memchr(b'\n', bytes.get(self.seen..).unwrap_or_default()) {
            let end = self.seen + i + 1;
            let line = match bytes[self.line..end - 1].strip_suffix(b"\r") {
                Some(line) => line,
                None => return Err(Refusal::malformed("a line ends without CR")),
            };
            let start = self.line;
            (self.line, self.seen) = (end, end);
            if end - self.skip > bounds.head_bytes {
                return Err(match self.started {
                    true => Refusal::large(431, "the request's head is too large"),
                    false => super::TARGET_LONG,
                });
            }
            match (self.started, line.is_empty()) {
                // RFC 9112, 2.2: an empty line before the request line is skipped; one.
                (false, true) if start == 0 => self.skip = end,
                (false, _) => {
                    self.request_line(line, start, bounds)?;
                    self.started = true;
                }
                (true, false) => self.field(line, start, bounds)?,
                (true, true) => return self.complete(bytes, end, bounds).map(Some),
            }
        }
        let new = self.seen.saturating_sub(1).max(self.line);
        self.seen = bytes.len();
        self.incomplete(bytes, new, bounds)?;
        Ok(None)
    }

    /// Refuses early what can't become right; bytes from `new` on were not looked at.
    fn incomplete(&self, bytes: &[u8], new: usize, bounds: &Bounds) -> Result<(), Refusal> {
        let line = &bytes[self.line..];
        if !self.started && line.len() > bounds.target_bytes.saturating_add(METHOD + 16) {
            return Err(match memchr::memchr(b' ', &line[..METHOD + 1]) {
                Some(_) => super::TARGET_LONG,
                None => Refusal::malformed("this is not a request line"),
            });
        }
        if bytes.len() - self.skip > bounds.head_bytes {
            return Err(Refusal::large(431, "the request's head is too large"));
        }
        // A CR that is not the last byte can't be followed by LF any more: no LF is here.
        match memchr::memchr(b'\r', &bytes[new..]) {
            Some(i) if new + i + 1 < bytes.len() => Err(Refusal::malformed("CR without LF")),
            _ => Ok(()),
        }
    }

    fn request_line(&mut self, line: &[u8], start: usize, bounds: &Bounds) -> Result<(), Refusal> {
        const NOT: Refusal = Refusal::malformed("this is not a request line");
        let first = memchr::memchr(b' ', line).ok_or(NOT)?;
        let last = memchr::memrchr(b' ', line).ok_or(NOT)?;
        if first == last {
            return Err(NOT);
        }
        let (method, target, version) = (&line[..first], &line[first + 1..last], &line[last + 1..]);
        if !chars::token(method) {
            return Err(Refusal::malformed("the method is not a token"));
        }
        match version {
            b"HTTP/1.1" => self.version_1_1 = true,
            b"HTTP/1.0" => {}
            [b'H', b'T', b'T', b'P', b'/', a, b'.', b]
                if a.is_ascii_digit() && b.is_ascii_digit() =>
            {
                return Err(Refusal::VERSION);
            }
            _ => return Err(Refusal::malformed("the version is malformed")),
        }
        if method.len() > METHOD {
            return Err(Refusal::unsupported(501, "this method is not known"));
        }
        if method == b"CONNECT" {
            return Err(super::CONNECT);
        }
        if target.len() > bounds.target_bytes {
            return Err(super::TARGET_LONG);
        }
        self.target(method, target, start + first + 1)
    }

    fn target(&mut self, method: &[u8], target: &[u8], start: usize) -> Result<(), Refusal> {
        const CHARACTERS: Refusal =
            Refusal::malformed("the target contains a character that it may not");
        match target {
            [b'/', ..] if chars::path_and_query(target) => Ok(()),
            [b'/', ..] => Err(CHARACTERS),
            b"*" if method == b"OPTIONS" => Ok(()),
            b"*" => Err(Refusal::malformed("the target * is for OPTIONS only")),
            _ => {
                let (scheme, port) = match target {
                    t if has_prefix(t, b"http://") => (7, &b":80"[..]),
                    t if has_prefix(t, b"https://") => (8, &b":443"[..]),
                    _ => return Err(Refusal::malformed("the target is malformed")),
                };
                let rest = &target[scheme..];
                let end = rest
                    .iter()
                    .position(|b| matches!(b, b'/' | b'?'))
                    .unwrap_or(rest.len());
                if !chars::authority(&rest[..end]) {
                    return Err(Refusal::malformed("the target's authority is malformed"));
                }
                if !chars::path_and_query(&rest[end..]) {
                    return Err(CHARACTERS);
                }
                self.authority = Some((start + scheme, start + scheme + end));
                self.default_port = port;
                Ok(())
            }
        }
    }

    fn field(&mut self, line: &[u8], start: usize, bounds: &Bounds) -> Result<(), Refusal> {
        self.fields += 1;
        if self.fields > bounds.headers {
            return Err(super::FIELDS);
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(Refusal::malformed("a field's line is folded"));
        }
        let colon = memchr::memchr(b':', line).ok_or(Refusal::malformed("a field has no colon"))?;
        let (name, raw) = (&line[..colon], &line[colon + 1..]);
        if !chars::token(name) {
            return Err(Refusal::malformed("a field's name is not a token"));
        }
        if !chars::value(raw) {
            return Err(Refusal::malformed(
                "a field's value contains a control character",
            ));
        }
        let value = chars::trim(raw);
        // By length first: most fields are none of these.
        match name.len() {
            4 if is(name, b"host") => {
                if self.host.is_some() {
                    return Err(super::HOSTS);
                }
                let offset = start + colon + 1 + (value.as_ptr() as usize - raw.as_ptr() as usize);
                self.host = Some((offset, offset + value.len()));
            }
            6 if is(name, b"expect") && !is(value, b"100-continue") => {
                return Err(Refusal::unsupported(417, "this expectation can't be met"));
            }
            7 if is(name, b"upgrade") => self.upgrade = true,
            14 if is(name, b"content-length") => {
                if self.length.is_some() {
                    return Err(Refusal::malformed("there is more than one Content-Length"));
                }
                self.length = Some(length(value)?);
            }
            17 if is(name, b"transfer-encoding") => {
                if self.chunked {
                    return Err(Refusal::malformed(
                        "there is more than one Transfer-Encoding",
                    ));
                }
                if !self.version_1_1 {
                    return Err(Refusal::malformed("HTTP/1.0 has no Transfer-Encoding"));
                }
                codings(value)?;
                self.chunked = true;
            }
            14 if is(name, b"content_length") => return Err(DISGUISED),
            17 if is(name, b"transfer_encoding") => return Err(DISGUISED),
            _ => {}
        }
        Ok(())
    }

    fn complete(&self, bytes: &[u8], end: usize, bounds: &Bounds) -> Result<Head, Refusal> {
        match self.host {
            None if self.version_1_1 => return Err(Refusal::malformed("there is no Host")),
            None => {}
            Some((from, to)) => {
                let host = &bytes[from..to];
                let empty = host.is_empty() && !self.version_1_1;
                if !empty && !chars::authority(host) {
                    return Err(Refusal::malformed("Host is malformed"));
                }
                if let Some((from, to)) = self.authority {
                    let without = |a| strip_port(a, self.default_port);
                    if !is(without(host), without(&bytes[from..to])) {
                        return Err(Refusal::malformed(
                            "Host is not the authority of the target",
                        ));
                    }
                }
            }
        }
        let framed = match (self.chunked, self.length) {
            (true, Some(_)) => {
                return Err(Refusal::malformed(
                    "there are both Content-Length and Transfer-Encoding",
                ));
            }
            (true, None) => Framed::Chunked(Chunked::default()),
            (false, Some(n)) if n > bounds.body_bytes => return Err(Refusal::BODY),
            (false, Some(0) | None) => Framed::None,
            (false, Some(n)) => Framed::Length(n),
        };
        Ok(Head {
            skip: self.skip,
            end,
            upgrade: self.upgrade && self.version_1_1,
            framed,
        })
    }
}

const DISGUISED: Refusal =
    Refusal::malformed("a field's name is a framing field's with an underscore");

fn is(bytes: &[u8], name: &[u8]) -> bool {
    bytes.eq_ignore_ascii_case(name)
}

fn has_prefix(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|b| is(b, prefix))
}

/// Without the default port; an empty port is the default one too (RFC 3986, 3.2.3).
fn strip_port<'a>(authority: &'a [u8], port: &[u8]) -> &'a [u8] {
    authority
        .strip_suffix(port)
        .or_else(|| authority.strip_suffix(b":"))
        .unwrap_or(authority)
}

/// `1*DIGIT`, and nothing else.
fn length(value: &[u8]) -> Result<u64, Refusal> {
    const NOT: Refusal = Refusal::malformed("Content-Length is not a number");
    if value.is_empty() {
        return Err(NOT);
    }
    value.iter().try_fold(0_u64, |n, b| {
        let digit = match b {
            b'0'..=b'9' => u64::from(b - b'0'),
            _ => return Err(NOT),
        };
        // hyper has an end below the largest number; none of them is meant seriously.
        n.checked_mul(10)
            .and_then(|n| n.checked_add(digit))
            .filter(|&n| n < u64::MAX - 2)
            .ok_or(Refusal::malformed("Content-Length is too large a number"))
    })
}

/// Accepts `chunked` alone (RFC 9112, 6.1 and 7).
fn codings(value: &[u8]) -> Result<(), Refusal> {
    const NOT: Refusal = Refusal::malformed("Transfer-Encoding is malformed");
    if is(value, b"chunked") {
        return Ok(());
    }
    let mut chunked = false;
    for coding in value.split(|&b| b == b',') {
        if chunked {
            return Err(Refusal::malformed("chunked is not the last coding"));
        }
        let coding = chars::trim(coding);
        let name = coding.split(|&b| b == b';').next().unwrap_or_default();
        if !chars::token(chars::trim(name)) {
            return Err(NOT);
        }
        chunked = is(chars::trim(name), b"chunked");
        if chunked && name.len() != coding.len() {
            return Err(NOT);
        }
    }
    Err(Refusal::unsupported(
        501,
        "transfer codings other than chunked are not known",
    ))
}
