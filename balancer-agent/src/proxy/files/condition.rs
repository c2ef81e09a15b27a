//! Validators of a file, and the preconditions of a request (RFC 9110, 8.8 and 13).
//!
//! The entity tag is strong, made of modification time (to the nanosecond) and size; not of
//! the inode, so that nodes with copies of the same tree (`rsync -t`) tell the same tag and a
//! download goes on at another node. A precompressed variant has its coding in its tag.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, HeaderName};

/// Beyond 9999 there are no HTTP dates.
const LAST_SECOND: i64 = 253_402_300_799;

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Bytes.
    pub size: u64,
    /// Modification, seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

impl Version {
    /// Entity tag, with quotes.
    pub fn tag(&self, coding: Option<&str>) -> String {
        let Self {
            size,
            seconds,
            nanoseconds,
        } = self;
        match coding {
            None => format!("\"{seconds:x}.{nanoseconds:x}-{size:x}\""),
            Some(coding) => format!("\"{seconds:x}.{nanoseconds:x}-{size:x}-{coding}\""),
        }
    }

    /// For `Last-Modified`: none when HTTP has no words for it, or when it is in the future
    /// of `now` (RFC 9110, 8.8.2.1).
    pub fn modified(&self, now: SystemTime) -> Option<SystemTime> {
        if !(0..=LAST_SECOND).contains(&self.seconds) {
            return None;
        }
        let modified = UNIX_EPOCH + Duration::from_secs(self.seconds as u64);
        (modified <= now).then_some(modified)
    }
}

/// What a request's preconditions lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The response as if there were none.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates the preconditions of a GET or HEAD request in the order of RFC 9110, 13.2.2.
/// `tag` is the strong tag of what would be sent.
pub fn evaluate(headers: &HeaderMap, tag: &str, modified: Option<SystemTime>) -> Verdict {
    if headers.contains_key(IF_MATCH) {
        if !lists(headers, IF_MATCH, tag, false) {
            return Verdict::Failed;
        }
    } else if let (Some(date), Some(modified)) = (date(headers, &IF_UNMODIFIED_SINCE), modified)
        && modified > date
    {
        return Verdict::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        if lists(headers, IF_NONE_MATCH, tag, true) {
            return Verdict::NotModified;
        }
    } else if let (Some(date), Some(modified)) = (date(headers, &IF_MODIFIED_SINCE), modified)
        && modified <= date
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether `If-Range` lets a `Range` count (RFC 9110, 13.1.5): it is absent, or names this
/// very version. A date does only if it was at least a second old when it was told, which
/// it was if it is now.
pub fn range_counts(
    headers: &HeaderMap,
    tag: &str,
    modified: Option<SystemTime>,
    now: SystemTime,
) -> bool {
    let mut values = headers.get_all(IF_RANGE).iter();
    let Some(value) = values.next() else {
        return true;
    };
    let (Ok(value), None) = (value.to_str(), values.next()) else {
        return false;
    };
    if value.starts_with('"') || value.starts_with("W/") {
        return value == tag;
    }
    match (httpdate::parse_http_date(value), modified) {
        (Ok(date), Some(modified)) => date == modified && modified + Duration::from_secs(1) <= now,
        _ => false,
    }
}

/// A date, if there is exactly one and it is valid; others are disregarded (13.1.3, 13.1.4).
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    match values.next() {
        None => httpdate::parse_http_date(value).ok(),
        Some(_) => None,
    }
}

/// Whether a list of entity tags holds `tag` or is `*`. Weak comparison disregards `W/`;
/// in strong comparison a weak tag equals nothing. What is no list matches nothing.
fn lists(headers: &HeaderMap, name: HeaderName, tag: &str, weak: bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let mut rest = value.as_bytes().trim_ascii();
        if rest == b"*" {
            return true;
        }
        while !rest.is_empty() {
            let (is_weak, opaque) = match rest.strip_prefix(b"W/") {
                Some(opaque) => (true, opaque),
                None => (false, rest),
            };
            if opaque.first() != Some(&b'"') {
                return false;
            }
            let Some(end) = memchr::memchr(b'"', &opaque[1..]) else {
                return false;
            };
            let (entry, after) = opaque.split_at(end + 2);
            if entry == tag.as_bytes() && (weak || !is_weak) {
                return true;
            }
            rest = after.trim_ascii_start();
            match rest.first() {
                None => {}
                Some(b',') => {
                    while let Some(after) = rest.strip_prefix(b",") {
                        rest = after.trim_ascii_start();
                    }
                }
                Some(_) => return false,
            }
        }
        false
    })
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod tests;
