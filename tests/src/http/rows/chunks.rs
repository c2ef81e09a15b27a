//! Chunked bodies: RFC 9112 section 7.1, sizes, extensions, ends and trailers.

use super::Expect::{Broken, Either, Kept};
use super::{Row, chunked, get, row};

const BAD: &[u16] = &[400];
const LARGE: &[u16] = &[400, 413, 431];

/// A POST with this chunked body.
fn body(body: &str) -> String {
    format!("POST /c HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

pub(super) fn rows(r: &mut Vec<Row>) {
    let hello = || Kept(vec![chunked("/c", "hello")]);
    row(
        r,
        "chunks-two",
        body("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
        Kept(vec![chunked("/c", "hello world")]),
    );
    row(
        r,
        "chunks-none",
        body("0\r\n\r\n"),
        Kept(vec![chunked("/c", "")]),
    );
    row(
        r,
        "chunks-hex",
        body("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n"),
        Kept(vec![chunked("/c", "01234567890123456789")]),
    );
    row(
        r,
        "chunks-leading-zeros",
        body("0005\r\nhello\r\n0\r\n\r\n"),
        Either(BAD, vec![chunked("/c", "hello")]),
    );
    row(
        r,
        "chunks-last-zeros",
        body("5\r\nhello\r\n000\r\n\r\n"),
        Either(BAD, vec![chunked("/c", "hello")]),
    );
    row(
        r,
        "chunks-extension",
        body("5;a=b\r\nhello\r\n0\r\n\r\n"),
        Either(BAD, vec![chunked("/c", "hello")]),
    );
    row(
        r,
        "chunks-extension-quoted",
        body("5;a=\"b c\"\r\nhello\r\n0;x\r\n\r\n"),
        Either(BAD, vec![chunked("/c", "hello")]),
    );
    row(
        r,
        "chunks-extension-bare",
        body("5;\r\nhello\r\n0\r\n\r\n"),
        Either(BAD, vec![chunked("/c", "hello")]),
    );
    row(
        r,
        "chunks-pipelined",
        body("5\r\nhello\r\n0\r\n\r\n")
            + &body("5\r\nhello\r\n0\r\n\r\n")
            + "GET /n HTTP/1.1\r\nHost: a.example\r\n\r\n",
        Kept(vec![
            chunked("/c", "hello"),
            chunked("/c", "hello"),
            get("/n"),
        ]),
    );
    row(
        r,
        "chunks-request-inside",
        body("1c\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n"),
        Kept(vec![chunked("/c", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")]),
    );
    row(
        r,
        "trailer",
        body("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
        hello(),
    );
    row(
        r,
        "trailer-two",
        body("5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n"),
        hello(),
    );
    // Blanks before an extension's semicolon are allowed, if bad.
    row(
        r,
        "chunks-extension-space",
        body("5 ;a=b\r\nhello\r\n0\r\n\r\n"),
        Either(BAD, vec![chunked("/c", "hello")]),
    );
    for (name, chunks) in [
        ("chunks-space-after-size", "5 \r\nhello\r\n0\r\n\r\n"),
        ("chunks-tab-after-size", "5\t\r\nhello\r\n0\r\n\r\n"),
    ] {
        // Bad blanks, which a recipient may pass over (RFC 9110, 5.6.3).
        row(r, name, body(chunks), Broken(BAD));
    }
    for (name, chunks) in [
        ("chunks-space-before-size", " 5\r\nhello\r\n0\r\n\r\n"),
        ("chunks-hex-prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("chunks-plus", "+5\r\nhello\r\n0\r\n\r\n"),
        ("chunks-minus", "-5\r\nhello\r\n0\r\n\r\n"),
        ("chunks-letter", "5g\r\nhello\r\n0\r\n\r\n"),
        ("chunks-size-empty", "\r\nhello\r\n0\r\n\r\n"),
        ("chunks-size-only-extension", ";a=b\r\nhello\r\n0\r\n\r\n"),
        ("chunks-size-nul", "5\0\r\nhello\r\n0\r\n\r\n"),
        ("chunks-size-lf", "5\nhello\r\n0\r\n\r\n"),
        ("chunks-size-cr", "5\rhello\r\n0\r\n\r\n"),
        ("chunks-size-cr-cr-lf", "5\r\r\nhello\r\n0\r\n\r\n"),
        ("chunks-data-lf", "5\r\nhello\n0\r\n\r\n"),
        ("chunks-data-cr", "5\r\nhello\r0\r\n\r\n"),
        ("chunks-data-long", "5\r\nhello!\r\n0\r\n\r\n"),
        ("chunks-data-short", "6\r\nhello\r\n0\r\n\r\n"),
        ("chunks-data-no-end", "5\r\nhello0\r\n\r\n"),
        ("chunks-extension-lf", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("chunks-extension-cr", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("chunks-extension-nul", "5;a\0b\r\nhello\r\n0\r\n\r\n"),
        (
            "chunks-extension-lf-smuggle",
            "2;\nxx\r\n4c\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("chunks-last-lf", "5\r\nhello\r\n0\n\n"),
        ("chunks-last-lf-after", "5\r\nhello\r\n0\r\n\n"),
        ("trailer-folded", "0\r\nX-Sum: 1\r\n 2\r\n\r\n"),
        ("trailer-no-colon", "0\r\nX-Sum\r\n\r\n"),
        ("trailer-space-before-colon", "0\r\nX-Sum : 1\r\n\r\n"),
        ("trailer-nul", "0\r\nX-Sum: 1\0\r\n\r\n"),
        ("trailer-bare-lf", "0\r\nX-Sum: 1\nX-B: 2\r\n\r\n"),
        ("trailer-bare-cr", "0\r\nX-Sum: 1\rX-B: 2\r\n\r\n"),
        (
            "trailer-is-a-request",
            "0\r\nGET /evil HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ),
    ] {
        row(r, name, body(chunks), Broken(BAD));
    }
    for (name, size) in [
        ("chunks-overflow-64", "10000000000000005"),
        ("chunks-max-64", "ffffffffffffffff"),
        ("chunks-minus-one-63", "8000000000000000"),
        ("chunks-overflow-32", "100000005"),
        (
            "chunks-overflow-long",
            "fffffffffffffffffffffffffffffffffffffff5",
        ),
    ] {
        row(
            r,
            name,
            body(&format!("{size}\r\nhello\r\n0\r\n\r\n")),
            Broken(LARGE),
        );
    }
    row(
        r,
        "chunks-zeros-endless",
        body(&format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(70 << 10))),
        Broken(LARGE),
    );
    row(
        r,
        "chunks-extension-endless",
        body(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(70 << 10))),
        Broken(LARGE),
    );
    row(
        r,
        "trailer-too-large",
        body(&format!("0\r\nX-A: {}\r\n\r\n", "b".repeat(70 << 10))),
        Broken(LARGE),
    );
    row(
        r,
        "trailer-too-many",
        body(&format!("0\r\n{}\r\n", "X-A: b\r\n".repeat(500))),
        Broken(LARGE),
    );
    for (name, field) in [
        ("trailer-length", "Content-Length: 5"),
        ("trailer-coding", "Transfer-Encoding: chunked"),
        ("trailer-host", "Host: b.example"),
        ("trailer-authorization", "Authorization: Basic eA=="),
        ("trailer-connection", "Connection: close"),
    ] {
        // RFC 9110, 6.5.1: not for trailers. Refused, or left out on the way.
        let text = body(&format!("5\r\nhello\r\n0\r\n{field}\r\n\r\n"));
        row(r, name, text, Either(BAD, vec![chunked("/c", "hello")]));
    }
}
