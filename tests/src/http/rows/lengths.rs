//! Content-Length and Transfer-Encoding: RFC 9112 section 6, and request smuggling by
//! way of them.

use super::Expect::{Broken, Either, Kept, Refused, ThenRefused};
use super::{Framing, Row, chunked, get, post, row, sent};

const BAD: &[u16] = &[400];
const BAD_CODING: &[u16] = &[400, 501];
const TOO_LARGE: &[u16] = &[400, 413];

/// A POST with these field lines and this body.
fn request(lines: &str, body: &str) -> String {
    format!("POST /b HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n{body}")
}

/// A POST with this length and five bytes.
fn length(value: &str) -> String {
    request(&format!("Content-Length:{value}\r\n"), "hello")
}

/// A POST with these codings and one chunk.
fn coding(lines: &str) -> String {
    request(lines, "5\r\nhello\r\n0\r\n\r\n")
}

pub(super) fn rows(rows: &mut Vec<Row>) {
    lengths(rows);
    codings(rows);
    both(rows);
}

fn lengths(r: &mut Vec<Row>) {
    let kept = || Kept(vec![post("/b", "hello")]);
    row(r, "length", length(" 5"), kept());
    row(r, "length-no-blank", length("5"), kept());
    row(r, "length-blanks-around", length(" \t5\t "), kept());
    row(
        r,
        "length-name-case",
        request("cOnTeNt-LeNgTh: 5\r\n", "hello"),
        kept(),
    );
    row(
        r,
        "length-zero",
        request("Content-Length: 0\r\n", ""),
        Kept(vec![sent("POST", "/b", "", Framing::None)]),
    );
    row(
        r,
        "length-none",
        request("", ""),
        Kept(vec![sent("POST", "/b", "", Framing::None)]),
    );
    row(
        r,
        "length-leading-zeros",
        length(" 0005"),
        Either(BAD, vec![post("/b", "hello")]),
    );
    row(
        r,
        "length-octal",
        request("Content-Length: 012\r\n", "0123456789ab"),
        {
            // Ten octal, twelve decimal.
            Either(BAD, vec![post("/b", "0123456789ab")])
        },
    );
    row(
        r,
        "length-twice",
        request("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        Refused(BAD),
    );
    row(
        r,
        "length-two",
        request("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
        Refused(BAD),
    );
    row(
        r,
        "length-two-first-zero",
        request("Content-Length: 0\r\nContent-Length: 5\r\n", "hello"),
        Refused(BAD),
    );
    row(r, "length-list", length(" 5, 5"), Refused(BAD));
    row(r, "length-list-two", length(" 5, 6"), Refused(BAD));
    row(r, "length-list-empty", length(" 5,"), Refused(BAD));
    for (name, value) in [
        ("length-plus", " +5"),
        ("length-minus", " -5"),
        ("length-minus-zero", " -0"),
        ("length-fraction", " 5.0"),
        ("length-exponent", " 5e0"),
        ("length-hex", " 0x5"),
        ("length-two-numbers", " 5 5"),
        ("length-tab-inside", " 5\t5"),
        ("length-empty", ""),
        ("length-blank", " "),
        ("length-word", " five"),
        ("length-quoted", " \"5\""),
        ("length-semicolon", " 5;a=b"),
        ("length-underscore", " 5_0"),
        ("length-fullwidth", " \u{ff15}"),
        ("length-nul", " 5\0"),
        ("length-vertical-tab", " \x0b5"),
        ("length-folded", "\r\n 5"),
    ] {
        row(r, name, length(value), Refused(BAD));
    }
    row(
        r,
        "length-name-nul",
        request("Content-Length\0: 5\r\n", "hello"),
        Refused(BAD),
    );
    row(
        r,
        "length-name-space",
        request("Content-Length : 5\r\n", "hello"),
        Refused(BAD),
    );
    row(
        r,
        "length-name-tab",
        request("Content-Length\t: 5\r\n", "hello"),
        Refused(BAD),
    );
    row(
        r,
        "length-overflow-64",
        length(" 18446744073709551621"),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "length-overflow-long",
        length(&format!(" {}5", "9".repeat(40))),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "length-max-64",
        length(" 18446744073709551615"),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "length-max-63",
        length(" 9223372036854775808"),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "length-overflow-32",
        length(" 4294967301"),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "length-over-limit",
        length(" 1000000000"),
        Refused(TOO_LARGE),
    );
    row(
        r,
        "length-get",
        "GET /b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
        Either(BAD, vec![sent("GET", "/b", "hello", Framing::Length)]),
    );
    row(
        r,
        "length-body-is-a-request",
        request(
            "Content-Length: 45\r\n",
            "GET /evil HTTP/1.1\r\nHost: a.example\r\nX: 1\r\n\r\n",
        )
        .as_str(),
        Kept(vec![post(
            "/b",
            "GET /evil HTTP/1.1\r\nHost: a.example\r\nX: 1\r\n\r\n",
        )]),
    );
    row(
        r,
        "length-garbage-after",
        request("Content-Length: 3\r\n", "hello\r\n\r\n"),
        ThenRefused(vec![post("/b", "hel")], BAD),
    );
    row(
        r,
        "length-crlf-after",
        request("Content-Length: 5\r\n", "hello\r\n"),
        Kept(vec![post("/b", "hello")]),
    );
}

fn codings(r: &mut Vec<Row>) {
    let kept = || Kept(vec![chunked("/b", "hello")]);
    row(
        r,
        "coding",
        coding("Transfer-Encoding: chunked\r\n"),
        kept(),
    );
    row(
        r,
        "coding-upper-case",
        coding("Transfer-Encoding: CHUNKED\r\n"),
        kept(),
    );
    row(
        r,
        "coding-name-case",
        coding("tRANSFER-eNCODING: Chunked\r\n"),
        kept(),
    );
    row(
        r,
        "coding-tab",
        coding("Transfer-Encoding:\tchunked\r\n"),
        kept(),
    );
    row(
        r,
        "coding-blanks-after",
        coding("Transfer-Encoding: chunked \t\r\n"),
        kept(),
    );
    for (name, lines) in [
        ("coding-x", "Transfer-Encoding: xchunked\r\n"),
        ("coding-suffix", "Transfer-Encoding: chunkedx\r\n"),
        ("coding-identity", "Transfer-Encoding: identity\r\n"),
        ("coding-gzip", "Transfer-Encoding: gzip\r\n"),
        (
            "coding-gzip-chunked",
            "Transfer-Encoding: gzip, chunked\r\n",
        ),
        (
            "coding-chunked-identity",
            "Transfer-Encoding: chunked, identity\r\n",
        ),
        (
            "coding-identity-chunked",
            "Transfer-Encoding: identity, chunked\r\n",
        ),
        (
            "coding-chunked-gzip",
            "Transfer-Encoding: chunked, gzip\r\n",
        ),
        ("coding-twice", "Transfer-Encoding: chunked, chunked\r\n"),
        (
            "coding-two-lines",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "coding-two-lines-other",
            "Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n",
        ),
        (
            "coding-two-lines-other-first",
            "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("coding-parameter", "Transfer-Encoding: chunked;q=1\r\n"),
        ("coding-quoted", "Transfer-Encoding: \"chunked\"\r\n"),
        ("coding-empty", "Transfer-Encoding:\r\n"),
        ("coding-comma-before", "Transfer-Encoding: ,chunked\r\n"),
        ("coding-comma-after", "Transfer-Encoding: chunked,\r\n"),
        ("coding-spaced", "Transfer-Encoding: chun ked\r\n"),
    ] {
        row(r, name, coding(lines), Refused(BAD_CODING));
    }
    for (name, lines) in [
        ("coding-name-space", "Transfer-Encoding : chunked\r\n"),
        ("coding-name-tab", "Transfer-Encoding\t: chunked\r\n"),
        ("coding-vertical-tab", "Transfer-Encoding:\x0bchunked\r\n"),
        ("coding-nul", "Transfer-Encoding: chunked\0\r\n"),
        ("coding-folded", "Transfer-Encoding:\r\n chunked\r\n"),
        ("coding-bare-lf", "X: X\nTransfer-Encoding: chunked\r\n"),
        ("coding-bare-cr", "X: X\rTransfer-Encoding: chunked\r\n"),
        ("coding-cr-name", "X: X\r\n\rTransfer-Encoding: chunked\r\n"),
        ("coding-space-before", " Transfer-Encoding: chunked\r\n"),
        (
            "coding-folded-after",
            "X: X\r\n Transfer-Encoding: chunked\r\n",
        ),
    ] {
        row(r, name, coding(lines), Refused(BAD_CODING));
    }
    row(
        r,
        "coding-old-version",
        coding("Transfer-Encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0"),
        Refused(BAD_CODING),
    );
    row(
        r,
        "coding-get",
        coding("Transfer-Encoding: chunked\r\n").replace("POST", "GET"),
        Either(BAD, vec![sent("GET", "/b", "hello", Framing::Any)]),
    );
    row(
        r,
        "coding-then-request",
        coding("Transfer-Encoding: chunked\r\n") + "GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n",
        Kept(vec![chunked("/b", "hello"), get("/next")]),
    );
    row(
        r,
        "coding-garbage-after",
        coding("Transfer-Encoding: chunked\r\n") + "garbage\r\n\r\n",
        ThenRefused(vec![chunked("/b", "hello")], BAD),
    );
}

fn both(r: &mut Vec<Row>) {
    let te = "Transfer-Encoding: chunked\r\n";
    row(
        r,
        "both",
        request(&format!("Content-Length: 5\r\n{te}"), "0\r\n\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "both-coding-first",
        request(&format!("{te}Content-Length: 5\r\n"), "0\r\n\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "both-length-then-coding",
        request(&format!("Content-Length: 6\r\n{te}"), "0\r\n\r\nG"),
        Refused(BAD),
    );
    row(
        r,
        "both-coding-then-length",
        request(
            &format!("Content-Length: 3\r\n{te}"),
            "1b\r\nGET /evil HTTP/1.1\r\nX: abcde\r\n0\r\n\r\n",
        ),
        Refused(BAD),
    );
    row(
        r,
        "both-two-codings",
        request(
            &format!("Content-Length: 4\r\n{te}Transfer-encoding: x\r\n"),
            "5c\r\n",
        ),
        Refused(BAD_CODING),
    );
    row(
        r,
        "both-length-zero",
        request(&format!("Content-Length: 0\r\n{te}"), "0\r\n\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "both-coding-identity",
        request(
            "Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
            "hello",
        ),
        Refused(BAD_CODING),
    );
    row(
        r,
        "both-bad-length",
        request(&format!("Content-Length: x\r\n{te}"), "0\r\n\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "both-in-connection",
        // The next hop must not lose the framing by what Connection names.
        request(
            "Connection: close, content-length\r\nContent-Length: 5\r\n",
            "hello",
        ),
        Either(BAD, vec![post("/b", "hello")]),
    );
    row(
        r,
        "body-short",
        request("Content-Length: 10\r\n", "hello"),
        Broken(&[400, 408]),
    );
}
