//! Byte ranges (RFC 9110, 14): which parts of a file a request asks for.
//!
//! Ranges that would make the response larger than the file (by overlap, or by being many)
//! are disregarded, as section 14.2 allows: the client gets the whole file.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

/// Most ranges of a request.
const MAX_RANGES: usize = 16;

/// Part of a file: `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Position of the first byte.
    pub first: u64,
    /// Position of the last.
    pub last: u64,
}

impl Span {
    /// Bytes; never 0.
    pub fn len(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Never: there is no empty range.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Value of `Content-Range`.
    pub fn content_range(&self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.first, self.last)
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// All of it: no range, one that is not understood, or one that is not worth it.
    Whole,
    /// 206, with one or several parts.
    Parts(SmallVec<[Span; 1]>),
    /// 416: nothing of what is asked for is there.
    Unsatisfiable,
}

/// Reads `Range` for a file of `size` bytes.
pub fn read(headers: &HeaderMap, size: u64) -> Asked {
    let mut values = headers.get_all(RANGE).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (Some(Ok(value)), None) => parse(value, size).unwrap_or(Asked::Whole),
        _ => Asked::Whole,
    }
}

/// `None` for what is no valid set of byte ranges.
fn parse(value: &str, size: u64) -> Option<Asked> {
    let (unit, set) = value.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut spans = SmallVec::new();
    let mut count = 0;
    let mut total: u128 = 0;
    for spec in set.split(',') {
        let spec = spec.trim_matches([' ', '\t']);
        if spec.is_empty() {
            continue;
        }
        count += 1;
        if count > MAX_RANGES {
            return None;
        }
        let (first, last) = spec.split_once('-')?;
        let span = match first {
            "" => suffix(position(last)?, size),
            _ => from(position(first)?, last, size)?,
        };
        if let Some(span) = span {
            total += u128::from(span.len());
            spans.push(span);
        }
    }
    match spans.len() {
        0 if count == 0 => None,
        // An empty file has no byte to tell of; whoever wants its end gets all of it.
        0 if size == 0 => None,
        0 => Some(Asked::Unsatisfiable),
        _ if total > u128::from(size) => None,
        _ => Some(Asked::Parts(spans)),
    }
}

/// `first-last` or `first-`; `Some(None)` when it begins behind the end.
#[expect(clippy::option_option, reason = "invalid and unsatisfiable differ")]
fn from(first: u64, last: &str, size: u64) -> Option<Option<Span>> {
    let last = match last {
        "" => u64::MAX,
        last => position(last)?,
    };
    if first > last {
        return None;
    }
    Some((first < size).then(|| Span {
        first,
        last: last.min(size - 1),
    }))
}

/// `-length`.
fn suffix(length: u64, size: u64) -> Option<Span> {
    (length > 0 && size > 0).then(|| Span {
        first: size.saturating_sub(length),
        last: size - 1,
    })
}

/// Digits only; what is too large for a number is as good as the largest.
fn position(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "range_tests.rs"]
mod tests;
