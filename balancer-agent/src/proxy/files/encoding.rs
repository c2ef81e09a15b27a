//! Content codings: what a client accepts (RFC 9110, 12.5.3), and what is best for it.

use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, HeaderValue, VARY};

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    /// All, the smallest results first.
    pub const ALL: [Self; 3] = [Self::Brotli, Self::Zstd, Self::Gzip];

    /// As `Content-Encoding` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// Ending of file names.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Brotli => ".br",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }

    /// Value of `Content-Encoding`.
    pub const fn value(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }
}

/// The codings that a client accepts, each with its weight in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    weights: [u16; 3],
    /// `None`: not spoken of, hence acceptable and less welcome than any coding.
    identity: Option<u16>,
}

impl Accepted {
    /// Reads `Accept-Encoding`. Without one a client is sent no coding, though all would be
    /// allowed.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut named = [None; 3];
        let mut identity = None;
        let mut any = None;
        let values = headers.get_all(ACCEPT_ENCODING).iter();
        for entry in values
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
        {
            let (name, parameters) = entry.split_once(';').unwrap_or((entry, ""));
            let Some(weight) = weight(parameters) else {
                continue;
            };
            let is = |coding: &str| name.trim().eq_ignore_ascii_case(coding);
            let slot = match () {
                () if is("br") => &mut named[0],
                () if is("zstd") => &mut named[1],
                () if is("gzip") || is("x-gzip") => &mut named[2],
                () if is("identity") => &mut identity,
                () if is("*") => &mut any,
                () => continue,
            };
            *slot = Some(weight);
        }
        Self {
            weights: named.map(|weight| weight.or(any).unwrap_or(0)),
            identity: identity.or(any),
        }
    }

    /// Whether this coding may be sent and is as welcome as none.
    pub fn accepts(&self, coding: Coding) -> bool {
        let weight = self.weights[coding as usize];
        weight > 0 && weight >= self.identity.unwrap_or(0)
    }

    /// Those of `available` that may be sent, the most welcome first; among equals in the
    /// order given.
    pub fn ranked(&self, available: &[Coding]) -> impl Iterator<Item = Coding> + use<> {
        let mut ranked: smallvec::SmallVec<[Coding; 3]> = available
            .iter()
            .copied()
            .filter(|coding| self.accepts(*coding))
            .collect();
        ranked.sort_by_key(|coding| std::cmp::Reverse(self.weights[*coding as usize]));
        ranked.into_iter()
    }
}

/// Weight in thousandths; 1000 without one, `None` when it is none.
fn weight(parameters: &str) -> Option<u16> {
    let parameters = parameters.trim();
    if parameters.is_empty() {
        return Some(1000);
    }
    let value = parameters
        .strip_prefix(['q', 'Q'])?
        .trim_start()
        .strip_prefix('=')?
        .trim();
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(3);
    let thousandths = digits.fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// Says that the response depends on `Accept-Encoding`, unless it says so already.
pub fn vary(headers: &mut HeaderMap) {
    let said = headers.get_all(VARY).iter().any(|value| {
        let mut names = value
            .as_bytes()
            .split(|&b| b == b',')
            .map(<[u8]>::trim_ascii);
        names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    });
    if !said {
        // A response has room for 32,768 fields; one that is full stays as it is.
        let _ = headers.try_append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

#[cfg(test)]
#[path = "encoding_tests.rs"]
mod tests;
