//! Field lines: RFC 9112 section 5, and the limits of a head.

use super::Expect::{Either, Kept, Refused};
use super::{Row, get, row};

const BAD: &[u16] = &[400];
const TOO_LARGE: &[u16] = &[431];

/// A GET with further lines.
fn lines(lines: &str) -> String {
    format!("GET /f HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n")
}

/// A GET with further lines as bytes.
fn bytes(lines: &[u8]) -> Vec<u8> {
    [b"GET /f HTTP/1.1\r\nHost: a.example\r\n", lines, b"\r\n"].concat()
}

pub(super) fn rows(r: &mut Vec<Row>) {
    let kept = |name, value| Kept(vec![get("/f").has(name, value)]);
    row(r, "field-plain", lines("X-A: b\r\n"), kept("x-a", "b"));
    row(r, "field-no-blank", lines("X-A:b\r\n"), kept("x-a", "b"));
    row(
        r,
        "field-blanks-around",
        lines("X-A: \t b \t\r\n"),
        kept("x-a", "b"),
    );
    row(r, "field-empty", lines("X-A:\r\n"), kept("x-a", ""));
    row(
        r,
        "field-tab-inside",
        lines("X-A: b\tc\r\n"),
        kept("x-a", "b\tc"),
    );
    row(
        r,
        "field-high-byte",
        bytes(b"X-A: \xe9t\xe9\r\n"),
        kept("x-a", "\u{e9}t\u{e9}"),
    );
    row(
        r,
        "field-all-token-characters",
        lines("!#$%&'*+-.^`|~09aZ: b\r\n"),
        kept("!#$%&'*+-.^`|~09az", "b"),
    );
    row(
        r,
        "field-colon-in-value",
        lines("X-A: b:c: d\r\n"),
        kept("x-a", "b:c: d"),
    );
    row(
        r,
        "field-two-cookies",
        lines("Cookie: a=1\r\nCookie: b=2\r\n"),
        Kept(vec![get("/f")]),
    );
    row(
        r,
        "field-space-before-colon",
        lines("X-A : b\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-tab-before-colon",
        lines("X-A\t: b\r\n"),
        Refused(BAD),
    );
    row(r, "field-space-in-name", lines("X A: b\r\n"), Refused(BAD));
    row(r, "field-folded", lines("X-A: b\r\n c\r\n"), Refused(BAD));
    row(
        r,
        "field-folded-tab",
        lines("X-A: b\r\n\tc\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-folded-blank",
        lines("X-A: b\r\n \r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-space-before-first",
        "GET /f HTTP/1.1\r\n X-A: b\r\nHost: a.example\r\n\r\n",
        Refused(BAD),
    );
    row(
        r,
        "field-space-before-length",
        "GET /f HTTP/1.1\r\nHost: a.example\r\n Content-Length: 5\r\n\r\nhello",
        Refused(BAD),
    );
    row(r, "field-no-name", lines(": b\r\n"), Refused(BAD));
    row(r, "field-no-colon", lines("X-A\r\n"), Refused(BAD));
    row(r, "field-only-colon", lines(":\r\n"), Refused(BAD));
    row(
        r,
        "field-parenthesis-in-name",
        lines("X(A): b\r\n"),
        Refused(BAD),
    );
    row(r, "field-nul-in-name", lines("X\0A: b\r\n"), Refused(BAD));
    row(
        r,
        "field-high-byte-in-name",
        bytes(b"X\xe9A: b\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-quote-in-name",
        lines("\"X\": b\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-nul-in-value",
        lines("X-A: b\0c\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-control-in-value",
        lines("X-A: b\x01c\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-delete-in-value",
        lines("X-A: b\x7fc\r\n"),
        Refused(BAD),
    );
    row(r, "field-form-feed", lines("X-A: b\x0cc\r\n"), Refused(BAD));
    row(r, "field-bare-cr", lines("X-A: b\rc\r\n"), Refused(BAD));
    row(
        r,
        "field-bare-lf",
        lines("X-A: b\nX-B: c\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "field-bare-lf-length",
        lines("X-A: b\nContent-Length: 5\r\n") + "hello",
        Refused(BAD),
    );
    row(
        r,
        "field-bare-cr-length",
        lines("X-A: b\rContent-Length: 5\r\n") + "hello",
        Refused(BAD),
    );
    row(r, "field-lf-end", lines("X-A: b\n"), Refused(BAD));
    row(r, "field-cr-cr-lf", lines("X-A: b\r\r\n"), Refused(BAD));
    row(
        r,
        "head-lf-lf",
        "GET /f HTTP/1.1\r\nHost: a.example\n\n",
        Refused(BAD),
    );
    row(
        r,
        "head-crlf-lf",
        "GET /f HTTP/1.1\r\nHost: a.example\r\n\n",
        Refused(BAD),
    );
    row(
        r,
        "head-lf-crlf",
        "GET /f HTTP/1.1\r\nHost: a.example\n\r\n",
        Refused(BAD),
    );
    row(
        r,
        "head-cr-in-end",
        "GET /f HTTP/1.1\r\nHost: a.example\r\n\r\r\n",
        Refused(BAD),
    );
    row(
        r,
        "field-underscore-length",
        lines("Content_Length: 5\r\n"),
        Either(BAD, vec![get("/f").lacks(&["content_length"])]),
    );
    row(
        r,
        "field-underscore-coding",
        lines("Transfer_Encoding: chunked\r\n"),
        Either(BAD, vec![get("/f").lacks(&["transfer_encoding"])]),
    );
    row(
        r,
        "head-many-fields",
        lines(&"X-A: b\r\n".repeat(98)),
        Kept(vec![get("/f")]),
    );
    row(
        r,
        "head-too-many-fields",
        lines(&"X-A: b\r\n".repeat(200)),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "head-large-field",
        lines(&format!("X-A: {}\r\n", "b".repeat(16 << 10))),
        Kept(vec![get("/f")]),
    );
    row(
        r,
        "head-too-large-field",
        lines(&format!("X-A: {}\r\n", "b".repeat(40 << 10))),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "head-too-large",
        lines(&format!("X-A: {}\r\n", "b".repeat(1000)).repeat(60)),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "head-too-large-name",
        lines(&format!("{}: b\r\n", "b".repeat(40 << 10))),
        Refused(&[400, 431]),
    );
    row(
        r,
        "head-endless",
        lines(&"X-A: b\r\n".repeat(20_000)),
        Refused(TOO_LARGE),
    );
}
