//! `Cookie` and `Set-Cookie` as bytes: found, changed in place, taken out. Everything else
//! in a field stays byte for byte.
//!
//! Reading is as tolerant as RFC 6265, section 5, and servers are: fields are cut at every
//! `;`, blanks around names and values do not count, a value may stand in double quotes,
//! a piece without `=` is no cookie. Names are compared with case.

use std::ops::Range;

use http::header::{COOKIE, Entry, HeaderMap, HeaderValue};
use smallvec::SmallVec;

/// Cookies of one name that are looked at in one request; more are left alone. Browsers
/// send one per path and domain.
pub(super) const SAME_NAME_MAX: usize = 32;

/// A cookie of a `Cookie` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair<'a> {
    pub name: &'a [u8],
    /// Without quotes.
    pub value: &'a [u8],
    /// Where the value is in the field.
    pub at: Range<usize>,
}

/// Cookies of a field.
pub(super) fn pairs(field: &[u8]) -> impl Iterator<Item = Pair<'_>> {
    segments(field).filter_map(|at| pair(field, at))
}

/// Values of the cookies of this name in all `Cookie` fields, as they are in order; without
/// empty ones, and [`SAME_NAME_MAX`] at most.
pub(super) fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(COOKIE)
        .into_iter()
        .flat_map(|field| pairs(field.as_bytes()))
        .filter(move |pair| pair.name == name.as_bytes() && !pair.value.is_empty())
        .map(|pair| pair.value)
        .take(SAME_NAME_MAX)
}

/// Pieces between the `;`.
fn segments(field: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        let end = memchr::memchr(b';', &field[from..]).map(|at| from + at);
        start = end.map(|end| end + 1);
        Some(from..end.unwrap_or(field.len()))
    })
}

fn pair(field: &[u8], at: Range<usize>) -> Option<Pair<'_>> {
    let equals = at.start + memchr::memchr(b'=', &field[at.clone()])?;
    let name = trimmed(field, at.start..equals);
    let value = unquoted(field, trimmed(field, equals + 1..at.end));
    (!name.is_empty()).then(|| Pair {
        name: &field[name],
        value: &field[value.clone()],
        at: value,
    })
}

fn trimmed(field: &[u8], mut at: Range<usize>) -> Range<usize> {
    let blank = |byte: u8| byte == b' ' || byte == b'\t';
    while at.start < at.end && blank(field[at.start]) {
        at.start += 1;
    }
    while at.start < at.end && blank(field[at.end - 1]) {
        at.end -= 1;
    }
    at
}

fn unquoted(field: &[u8], at: Range<usize>) -> Range<usize> {
    let quoted = at.len() >= 2 && field[at.start] == b'"' && field[at.end - 1] == b'"';
    if quoted { at.start + 1..at.end - 1 } else { at }
}

/// Changes values of the cookies of this name in every `Cookie` field: `change` returns
/// what stands there instead, if anything. Leaves fields alone that need no change.
pub(super) fn change(
    headers: &mut HeaderMap,
    name: &str,
    mut change: impl FnMut(&[u8]) -> Option<Vec<u8>>,
) {
    let Entry::Occupied(mut fields) = headers.entry(COOKIE) else {
        return;
    };
    let mut left = SAME_NAME_MAX;
    for field in fields.iter_mut() {
        let bytes = field.as_bytes();
        let changes: SmallVec<[(Range<usize>, Vec<u8>); 2]> = pairs(bytes)
            .filter(|pair| pair.name == name.as_bytes() && !pair.value.is_empty())
            .take(left)
            .inspect(|_| left -= 1)
            .filter_map(|pair| Some((pair.at, change(pair.value)?)))
            .collect();
        if let Some(changed) = replaced(bytes, &changes) {
            *field = changed;
        }
    }
}

/// `field` with these pieces, which are in order, replaced. `None` when there are none, or
/// when the result could not be a field.
pub(super) fn replaced(field: &[u8], changes: &[(Range<usize>, Vec<u8>)]) -> Option<HeaderValue> {
    if changes.is_empty() {
        return None;
    }
    let more: usize = changes.iter().map(|(_, new)| new.len()).sum();
    let mut result = Vec::with_capacity(field.len() + more);
    let mut done = 0;
    for (at, new) in changes {
        result.extend_from_slice(&field[done..at.start]);
        result.extend_from_slice(new);
        done = at.end;
    }
    result.extend_from_slice(&field[done..]);
    HeaderValue::from_maybe_shared(bytes::Bytes::from(result)).ok()
}

/// Takes every cookie of this name out of the `Cookie` fields; a field that had nothing else
/// goes as a whole.
pub(super) fn remove(headers: &mut HeaderMap, name: &str) {
    let is_ours = |field: &[u8], at: Range<usize>| {
        pair(field, at).is_some_and(|pair| pair.name == name.as_bytes())
    };
    let concerned = |field: &HeaderValue| {
        let field = field.as_bytes();
        segments(field).any(|at| is_ours(field, at))
    };
    if !headers.get_all(COOKIE).iter().any(concerned) {
        return;
    }
    let Entry::Occupied(entry) = headers.entry(COOKIE) else {
        return;
    };
    // The list of fields is made anew: one out of several can't be taken out otherwise.
    let (_, fields) = entry.remove_entry_mult();
    let fields: SmallVec<[HeaderValue; 2]> = fields.collect();
    for field in fields {
        if !concerned(&field) {
            headers.append(COOKIE, field);
            continue;
        }
        let bytes = field.as_bytes();
        let mut kept = Vec::with_capacity(bytes.len());
        for at in segments(bytes).filter(|at| !is_ours(bytes, at.clone())) {
            if !kept.is_empty() {
                kept.push(b';');
            }
            let at = if kept.is_empty() {
                trimmed(bytes, at)
            } else {
                at
            };
            kept.extend_from_slice(&bytes[at]);
        }
        if let Ok(field) = HeaderValue::from_maybe_shared(bytes::Bytes::from(kept))
            && !field.is_empty()
        {
            headers.append(COOKIE, field);
        }
    }
}

/// A `Set-Cookie` field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetCookie<'a> {
    field: &'a [u8],
    /// Without quotes.
    pub value: &'a [u8],
    /// Where the value is in the field.
    pub at: Range<usize>,
    /// Where the attributes begin: at their `;`, or at the end.
    attributes: usize,
}

/// Reads a `Set-Cookie` field if it sets the cookie `name`.
pub(super) fn set_cookie<'a>(field: &'a [u8], name: &str) -> Option<SetCookie<'a>> {
    let end = memchr::memchr(b';', field).unwrap_or(field.len());
    let pair = pair(field, 0..end)?;
    (pair.name == name.as_bytes()).then_some(SetCookie {
        field,
        value: pair.value,
        at: pair.at,
        attributes: end,
    })
}

impl<'a> SetCookie<'a> {
    /// Attributes, names and values, without blanks around them.
    pub fn attributes(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let field = self.field;
        let base = (self.attributes + 1).min(field.len());
        segments(&field[base..]).filter_map(move |at| {
            let at = base + at.start..base + at.end;
            let (name, value) = match memchr::memchr(b'=', &field[at.clone()]) {
                Some(equals) => (at.start..at.start + equals, at.start + equals + 1..at.end),
                None => (at.clone(), at.end..at.end),
            };
            let (name, value) = (trimmed(field, name), trimmed(field, value));
            (!name.is_empty()).then(|| (&field[name], &field[value]))
        })
    }

    /// Whether the browser forgets the cookie by this: `Max-Age` of 0 or less, or, without
    /// one, an `Expires` that is not after `date` (the response's own `Date`; without one,
    /// not after the year 2000: those who delete name 1970).
    pub fn deletes(&self, date: Option<&HeaderValue>) -> bool {
        let mut expired = false;
        for (name, value) in self.attributes() {
            if name.eq_ignore_ascii_case(b"max-age") {
                let digits = value.strip_prefix(b"-").unwrap_or(value);
                if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
                    return value != digits || digits.iter().all(|&d| d == b'0');
                }
            } else if name.eq_ignore_ascii_case(b"expires") {
                let date = date.and_then(|d| d.to_str().ok());
                let date = date.and_then(|d| httpdate::parse_http_date(d).ok());
                let year_2000 = std::time::UNIX_EPOCH + std::time::Duration::from_secs(978_307_199);
                expired = moment(value).is_some_and(|at| at <= date.unwrap_or(year_2000));
            }
        }
        expired
    }
}

/// A date of `Expires`: as of HTTP, or with hyphens as Netscape's.
fn moment(value: &[u8]) -> Option<std::time::SystemTime> {
    let text = std::str::from_utf8(value).ok()?;
    httpdate::parse_http_date(text)
        .or_else(|_| httpdate::parse_http_date(&text.replace('-', " ")))
        .ok()
}

/// Whether all of it may stand in a cookie's value (RFC 6265, `cookie-octet`).
pub(super) fn is_plain(value: &[u8]) -> bool {
    value
        .iter()
        .all(|b| matches!(b, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(fields: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(COOKIE, HeaderValue::from_bytes(field.as_bytes()).unwrap());
        }
        headers
    }

    fn fields(headers: &HeaderMap) -> Vec<&str> {
        let all = headers.get_all(COOKIE).into_iter();
        all.map(|f| std::str::from_utf8(f.as_bytes()).unwrap())
            .collect()
    }

    #[test]
    fn values_are_found_as_written() {
        let table: &[(&[&str], &[&str])] = &[
            (&["S=1"], &["1"]),
            (&["a=b; S=1; c=d"], &["1"]),
            (&["a=b;S=1;c=d"], &["1"]),
            (&["S=1; S=2", "x=y", "S=3"], &["1", "2", "3"]),
            (&["S=\"1\""], &["1"]),
            (&["S=\"1"], &["\"1"]),
            (&["S=\""], &["\""]),
            (&["S=\"\""], &[]),
            (&["S="], &[]),
            (&["S"], &[]),
            (&["=1"], &[]),
            (&[""], &[]),
            (&[";;;"], &[]),
            (&[" ; S = 1 ;"], &["1"]),
            (&["\tS\t=\t1 2\t"], &["1 2"]),
            (&["s=1; SS=2; XS=3; S.=4"], &[]),
            (&["S=a=b=c"], &["a=b=c"]),
            (&["S=a,b"], &["a,b"]),
            (&["x=\"S=9\"; S=1"], &["1"]),
            (&["x=\"a;S=9\"; S=1"], &["9\"", "1"]),
            (&["S=\u{e9}"], &["\u{e9}"]),
        ];
        for (fields, want) in table {
            let headers = headers(fields);
            let have: Vec<_> = values(&headers, "S").collect();
            let want: Vec<_> = want.iter().map(|w| w.as_bytes()).collect();
            assert_eq!(have, want, "{fields:?}");
        }
    }

    #[test]
    fn thousands_of_one_name_are_bounded() {
        let many = "S=1; ".repeat(10_000);
        assert_eq!(values(&headers(&[&many]), "S").count(), SAME_NAME_MAX);
        let mut headers = headers(&[&many, &many]);
        let mut seen = 0;
        change(&mut headers, "S", |_| {
            seen += 1;
            Some(b"22".to_vec())
        });
        assert_eq!(seen, SAME_NAME_MAX);
        assert!(
            fields(&headers)[1].trim_end() == many.trim_end(),
            "the rest stays"
        );
    }

    #[test]
    fn others_stay_byte_for_byte() {
        let table: &[(&[&str], &[&str])] = &[
            (&["S=1"], &["S=[1]"]),
            (&["a = b ;S= 1 ;\tc"], &["a = b ;S= [1] ;\tc"]),
            (&["S=\"1\"; S=2"], &["S=\"[1]\"; S=[2]"]),
            (&["x=S; S=", "S=7"], &["x=S; S=", "S=[7]"]),
            (&["x=\u{e9}\u{fc}; S=7"], &["x=\u{e9}\u{fc}; S=[7]"]),
        ];
        for (before, after) in table {
            let mut headers = headers(before);
            change(&mut headers, "S", |value| {
                Some([b"[", value, b"]"].concat())
            });
            assert_eq!(fields(&headers), *after);
        }
    }

    #[test]
    fn removal_leaves_the_rest() {
        let table: &[(&[&str], &[&str])] = &[
            (&["S=1"], &[]),
            (&["S=1; a=b"], &["a=b"]),
            (&["a=b; S=1"], &["a=b"]),
            (&["a=b; S=1; c=d"], &["a=b; c=d"]),
            (&["a=b;S=1;c=d"], &["a=b;c=d"]),
            (&["S=1; S=2; a=b; S=\"3\""], &["a=b"]),
            (&["a=b", "S=1", "c=d; S=4"], &["a=b", "c=d"]),
            (&["a=b; Sx=1; S"], &["a=b; Sx=1; S"]),
            (&["S=; x=\u{e9}"], &["x=\u{e9}"]),
            (&["S=1;"], &[]),
        ];
        for (before, after) in table {
            let mut headers = headers(before);
            remove(&mut headers, "S");
            assert_eq!(fields(&headers), *after, "{before:?}");
        }
    }

    #[test]
    fn what_deletes_a_cookie() {
        let date = HeaderValue::from_static("Wed, 25 Nov 2026 21:00:00 GMT");
        let table = [
            ("S=1", false),
            ("S=1; Path=/; HttpOnly", false),
            ("S=1; Max-Age=0", true),
            ("S=1; max-age=-1", true),
            ("S=1; max-age=00", true),
            ("S=1; Max-Age=1", false),
            ("S=1; Max-Age=", false),
            (
                "S=1; Max-Age=x; Expires=Thu, 01 Jan 1970 00:00:10 GMT",
                true,
            ),
            (
                "S=1; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:10 GMT",
                false,
            ),
            (
                "S=1; Expires=Thu, 01 Jan 1970 00:00:10 GMT; Max-Age=60",
                false,
            ),
            ("S=1; Expires=Thu, 01-Jan-1970 00:00:00 GMT", true),
            ("S=1; Expires=Wed, 25 Nov 2026 20:59:59 GMT", true),
            ("S=1; Expires=Wed, 25 Nov 2026 21:00:01 GMT", false),
            ("S=1; Expires=soon", false),
        ];
        for (field, want) in table {
            let cookie = set_cookie(field.as_bytes(), "S").unwrap();
            assert_eq!(cookie.deletes(Some(&date)), want, "{field}");
        }
        let of_1970 = set_cookie(b"S=; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "S").unwrap();
        assert!(of_1970.deletes(None));
        let later = set_cookie(b"S=; Expires=Wed, 25 Nov 2026 21:00:01 GMT", "S").unwrap();
        assert!(!later.deletes(None));
    }

    #[test]
    fn set_cookie_is_read() {
        let cookie = set_cookie(b" S = \"a.b\" ;Path=/x ; ; HttpOnly;=;Domain = d ", "S").unwrap();
        assert_eq!(cookie.value, b"a.b");
        let attributes: Vec<_> = cookie.attributes().collect();
        let want: Vec<(&[u8], &[u8])> =
            vec![(b"Path", b"/x"), (b"HttpOnly", b""), (b"Domain", b"d")];
        assert_eq!(attributes, want);
        for other in ["s=1", "SS=1", "", ";S=1", "S", "=S"] {
            assert_eq!(set_cookie(other.as_bytes(), "S"), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_identity_changes_nothing(
            raw in prop::collection::vec(prop::sample::select(&b"S=;\" \ta.1\xff"[..]), 0..64),
        ) {
            let mut map = HeaderMap::new();
            // A field is without blanks around it, as every parser makes it.
            if let Ok(field) = HeaderValue::from_bytes(&raw) {
                map.append(COOKIE, field);
            }
            let before = map.clone();
            change(&mut map, "S", |value| Some(value.to_vec()));
            prop_assert_eq!(&map, &before);
            remove(&mut map, "S");
            prop_assert_eq!(values(&map, "S").count(), 0);
            let others = |map: &HeaderMap| -> Vec<Vec<u8>> {
                map.get_all(COOKIE).iter().flat_map(|f| pairs(f.as_bytes()).map(|p| {
                    [p.name, b"=", p.value].concat()
                }).filter(|p| !p.starts_with(b"S=")).collect::<Vec<_>>()).collect()
            };
            prop_assert_eq!(others(&map), others(&before));
            if let Some(cookie) = set_cookie(&raw, "S") {
                let _ = (cookie.deletes(None), cookie.attributes().count());
            }
        }
    }
}
