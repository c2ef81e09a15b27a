//! Ranges: a table, and the bounds on any.

use proptest::prelude::*;

use super::*;

fn asked(value: &str, size: u64) -> Asked {
    let mut headers = HeaderMap::new();
    headers.insert(RANGE, value.parse().unwrap());
    read(&headers, size)
}

fn parts(spans: &[(u64, u64)]) -> Asked {
    Asked::Parts(
        spans
            .iter()
            .map(|&(first, last)| Span { first, last })
            .collect(),
    )
}

#[test]
fn ranges_are_read_as_the_table_says() {
    let whole = || Asked::Whole;
    let none = || Asked::Unsatisfiable;
    for (value, size, expected) in [
        ("bytes=0-0", 10, parts(&[(0, 0)])),
        ("bytes=0-9", 10, parts(&[(0, 9)])),
        ("bytes=2-5", 10, parts(&[(2, 5)])),
        ("bytes=5-", 10, parts(&[(5, 9)])),
        ("bytes=0-", 10, parts(&[(0, 9)])),
        ("bytes=5-100", 10, parts(&[(5, 9)])),
        ("bytes=-3", 10, parts(&[(7, 9)])),
        ("bytes=-10", 10, parts(&[(0, 9)])),
        ("bytes=-100", 10, parts(&[(0, 9)])),
        ("Bytes=1-2", 10, parts(&[(1, 2)])),
        ("bytes= 1-2 ", 10, parts(&[(1, 2)])),
        ("bytes=5-99999999999999999999999", 10, parts(&[(5, 9)])),
        ("bytes=-99999999999999999999999", 10, parts(&[(0, 9)])),
        // Several.
        ("bytes=0-1,4-5", 10, parts(&[(0, 1), (4, 5)])),
        ("bytes=0-1, 4-5\t,,-2", 10, parts(&[(0, 1), (4, 5), (8, 9)])),
        ("bytes=4-5,0-1", 10, parts(&[(4, 5), (0, 1)])),
        ("bytes=0-1,20-30", 10, parts(&[(0, 1)])),
        ("bytes=0-5,3-6", 10, parts(&[(0, 5), (3, 6)])),
        // Not worth it.
        ("bytes=0-9,0-9", 10, whole()),
        ("bytes=0-,0-,0-", 10, whole()),
        (
            "bytes=0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0",
            100,
            whole(),
        ),
        // Nothing there.
        ("bytes=10-", 10, none()),
        ("bytes=10-20,30-", 10, none()),
        ("bytes=99999999999999999999999-", 10, none()),
        ("bytes=-0", 10, none()),
        // Invalid, hence disregarded.
        ("bytes=", 10, whole()),
        ("bytes=,", 10, whole()),
        ("bytes=-", 10, whole()),
        ("bytes=a-b", 10, whole()),
        ("bytes=5-2", 10, whole()),
        ("bytes=20-10", 10, whole()),
        ("bytes=1", 10, whole()),
        ("bytes=+1-2", 10, whole()),
        ("bytes=1-+2", 10, whole()),
        ("bytes=1--2", 10, whole()),
        ("bytes=--2", 10, whole()),
        ("bytes=1 - 2", 10, whole()),
        ("bytes=0-1,x", 10, whole()),
        ("bytes 0-1", 10, whole()),
        ("bytes", 10, whole()),
        ("items=0-1", 10, whole()),
        ("", 10, whole()),
        // An empty file.
        ("bytes=0-", 0, whole()),
        ("bytes=-5", 0, whole()),
        ("bytes=0-0", 0, whole()),
        // The largest.
        (
            "bytes=18446744073709551614-",
            u64::MAX,
            parts(&[(u64::MAX - 1, u64::MAX - 1)]),
        ),
        ("bytes=0-,0-", u64::MAX, whole()),
    ] {
        assert_eq!(asked(value, size), expected, "{value:?} of {size}");
    }
}

#[test]
fn none_and_several_fields_are_no_range() {
    assert_eq!(read(&HeaderMap::new(), 10), Asked::Whole);
    let mut headers = HeaderMap::new();
    headers.append(RANGE, HeaderValue::from_static("bytes=0-1"));
    headers.append(RANGE, HeaderValue::from_static("bytes=0-1"));
    assert_eq!(read(&headers, 10), Asked::Whole);
    let mut headers = HeaderMap::new();
    headers.insert(RANGE, HeaderValue::from_bytes(b"bytes=\xff").unwrap());
    assert_eq!(read(&headers, 10), Asked::Whole);
}

#[test]
fn a_span_tells_its_place() {
    let span = Span { first: 2, last: 5 };
    assert_eq!(span.len(), 4);
    assert_eq!(span.content_range(10), "bytes 2-5/10");
}

proptest! {
    #[test]
    fn parts_are_inside_and_no_more_than_the_file(
        value in "bytes=[0-9,-]{0,30}",
        size in 0..200_u64,
    ) {
        if let Asked::Parts(spans) = asked(&value, size) {
            prop_assert!(!spans.is_empty() && spans.len() <= MAX_RANGES);
            prop_assert!(spans.iter().all(|s| s.first <= s.last && s.last < size));
            prop_assert!(spans.iter().map(Span::len).sum::<u64>() <= size);
        }
    }
}
