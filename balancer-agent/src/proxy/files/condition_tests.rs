//! Preconditions: a table after RFC 9110, 13.2.2; tags and dates.

use super::*;

/// 784111777, the date of RFC 9110's examples.
const WRITTEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
const TAG: &str = "\"a-1\"";

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in list {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

#[test]
fn preconditions_are_evaluated_in_their_order() {
    use Verdict::{Failed, NotModified, Proceed};
    let rows: &[(&[(&str, &str)], Verdict)] = &[
        (&[], Proceed),
        // If-Match: strong comparison.
        (&[("if-match", TAG)], Proceed),
        (&[("if-match", "*")], Proceed),
        (&[("if-match", "\"x\", \"a-1\"")], Proceed),
        (&[("if-match", "\"x\""), ("if-match", "\"a-1\"")], Proceed),
        (&[("if-match", "\"x\"")], Failed),
        (&[("if-match", "W/\"a-1\"")], Failed),
        (&[("if-match", "a-1")], Failed),
        (&[("if-match", "")], Failed),
        // If-Unmodified-Since, unless there is If-Match.
        (&[("if-unmodified-since", WRITTEN)], Proceed),
        (&[("if-unmodified-since", AFTER)], Proceed),
        (&[("if-unmodified-since", BEFORE)], Failed),
        (&[("if-unmodified-since", "yesterday")], Proceed),
        (
            &[("if-match", TAG), ("if-unmodified-since", BEFORE)],
            Proceed,
        ),
        (
            &[("if-match", "\"x\""), ("if-unmodified-since", AFTER)],
            Failed,
        ),
        // If-None-Match: weak comparison.
        (&[("if-none-match", TAG)], NotModified),
        (&[("if-none-match", "W/\"a-1\"")], NotModified),
        (&[("if-none-match", "*")], NotModified),
        (&[("if-none-match", "\"x\" , W/\"a-1\"")], NotModified),
        (&[("if-none-match", "\"x\",,\"a-1\",")], NotModified),
        (&[("if-none-match", "\"a,b\",\"a-1\"")], NotModified),
        (&[("if-none-match", "\"x\"")], Proceed),
        (&[("if-none-match", "\"a-1")], Proceed),
        (&[("if-none-match", "\"a-1\" \"x\"")], NotModified),
        (&[("if-none-match", "\"x\" \"a-1\"")], Proceed),
        (&[("if-none-match", "w/\"a-1\"")], Proceed),
        // If-Modified-Since, unless there is If-None-Match.
        (&[("if-modified-since", WRITTEN)], NotModified),
        (&[("if-modified-since", AFTER)], NotModified),
        (&[("if-modified-since", BEFORE)], Proceed),
        (
            &[("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT")],
            NotModified,
        ),
        (
            &[("if-modified-since", "Sun Nov  6 08:49:37 1994")],
            NotModified,
        ),
        (&[("if-modified-since", "never")], Proceed),
        (
            &[
                ("if-modified-since", WRITTEN),
                ("if-modified-since", WRITTEN),
            ],
            Proceed,
        ),
        (
            &[("if-none-match", "\"x\""), ("if-modified-since", AFTER)],
            Proceed,
        ),
        (
            &[("if-none-match", TAG), ("if-modified-since", BEFORE)],
            NotModified,
        ),
        // Both kinds: the first that fails decides.
        (&[("if-match", "\"x\""), ("if-none-match", TAG)], Failed),
        (&[("if-match", TAG), ("if-none-match", TAG)], NotModified),
        (
            &[
                ("if-unmodified-since", BEFORE),
                ("if-modified-since", AFTER),
            ],
            Failed,
        ),
        (
            &[("if-unmodified-since", AFTER), ("if-modified-since", AFTER)],
            NotModified,
        ),
    ];
    let modified = httpdate::parse_http_date(WRITTEN).unwrap();
    for (list, expected) in rows {
        assert_eq!(
            evaluate(&headers(list), TAG, Some(modified)),
            *expected,
            "{list:?}"
        );
    }
    // Without a date of its own a file has nothing to compare dates with.
    for name in ["if-modified-since", "if-unmodified-since"] {
        for date in [BEFORE, AFTER] {
            assert_eq!(evaluate(&headers(&[(name, date)]), TAG, None), Proceed);
        }
    }
}

#[test]
fn a_range_counts_for_the_same_version_only() {
    let modified = httpdate::parse_http_date(WRITTEN).unwrap();
    let later = modified + Duration::from_secs(10);
    let counts = |list: &[(&'static str, &str)], modified, now| {
        range_counts(&headers(list), TAG, modified, now)
    };
    for (list, expected) in [
        (&[][..], true),
        (&[("if-range", TAG)], true),
        (&[("if-range", "\"x\"")], false),
        (&[("if-range", "W/\"a-1\"")], false),
        (&[("if-range", "\"a-1\", \"x\"")], false),
        (&[("if-range", WRITTEN)], true),
        (&[("if-range", BEFORE)], false),
        (&[("if-range", AFTER)], false),
        (&[("if-range", "a-1")], false),
        (&[("if-range", TAG), ("if-range", TAG)], false),
    ] {
        assert_eq!(counts(list, Some(modified), later), expected, "{list:?}");
    }
    assert!(!counts(&[("if-range", WRITTEN)], Some(modified), modified));
    assert!(!counts(&[("if-range", WRITTEN)], None, later));
}

#[test]
fn versions_differ_in_their_tags() {
    let version = |size, seconds, nanoseconds| Version {
        size,
        seconds,
        nanoseconds,
    };
    let tag = version(255, 784_111_777, 16).tag(None);
    assert_eq!(tag, "\"2ebc98a1.10-ff\"");
    assert_eq!(
        version(255, 784_111_777, 16).tag(Some("br")),
        "\"2ebc98a1.10-ff-br\""
    );
    for other in [
        version(254, 784_111_777, 16),
        version(255, 784_111_778, 16),
        version(255, 784_111_777, 17),
        version(255, -1, 0),
    ] {
        assert_ne!(other.tag(None), tag);
    }
}

#[test]
fn only_dates_that_http_can_tell_are_told() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let modified = |seconds| {
        let version = Version {
            size: 0,
            seconds,
            nanoseconds: 5,
        };
        version.modified(now)
    };
    assert_eq!(modified(1_000_000), Some(now));
    assert_eq!(modified(0), Some(UNIX_EPOCH));
    assert_eq!(modified(1_000_001), None);
    assert_eq!(modified(-1), None);
    assert_eq!(modified(i64::MAX), None);
    assert_eq!(modified(i64::MIN), None);
}
