//! Request lines, targets and Host: RFC 9112 section 2.2 and 3, RFC 9110 section 7.2.

use super::Expect::{Answered, Either, Kept, Refused};
use super::{Row, get, row, sent};
use crate::http::rows::Framing;

const BAD: &[u16] = &[400];
const BAD_VERSION: &[u16] = &[400, 505];
const TOO_LONG: &[u16] = &[400, 414, 431];

/// A GET with this request line.
fn line(line: &str) -> String {
    format!("{line}\r\nHost: a.example\r\n\r\n")
}

/// A GET with this target.
fn target(target: &str) -> String {
    line(&format!("GET {target} HTTP/1.1"))
}

/// A GET with these lines in place of Host.
fn host(lines: &str) -> String {
    format!("GET /h HTTP/1.1\r\n{lines}\r\n")
}

pub(super) fn rows(rows: &mut Vec<Row>) {
    request_lines(rows);
    targets(rows);
    hosts(rows);
}

fn request_lines(r: &mut Vec<Row>) {
    row(
        r,
        "plain",
        line("GET /plain HTTP/1.1"),
        Kept(vec![get("/plain")]),
    );
    row(
        r,
        "method-case",
        line("get /x HTTP/1.1"),
        Either(&[400, 405, 501], vec![sent("get", "/x", "", Framing::None)]),
    );
    row(
        r,
        "method-unknown",
        line("BREW /pot HTTP/1.1"),
        Either(
            &[400, 405, 501],
            vec![sent("BREW", "/pot", "", Framing::None)],
        ),
    );
    row(
        r,
        "method-delete",
        line("DELETE /x HTTP/1.1"),
        Kept(vec![sent("DELETE", "/x", "", Framing::None)]),
    );
    row(
        r,
        "line-empty-before",
        format!("\r\n{}", line("GET /x HTTP/1.1")),
        Kept(vec![get("/x")]),
    );
    row(
        r,
        "line-two-empty-before",
        format!("\r\n\r\n{}", line("GET /x HTTP/1.1")),
        Either(BAD, vec![get("/x")]),
    );
    row(
        r,
        "line-lf-before",
        format!("\n{}", line("GET /x HTTP/1.1")),
        Either(BAD, vec![get("/x")]),
    );
    row(
        r,
        "line-cr-before",
        format!("\r{}", line("GET /x HTTP/1.1")),
        Refused(BAD),
    );
    row(
        r,
        "line-space-before",
        line(" GET /x HTTP/1.1"),
        Refused(BAD),
    );
    row(
        r,
        "line-tab-before",
        line("\tGET /x HTTP/1.1"),
        Refused(BAD),
    );
    row(
        r,
        "line-nul-before",
        line("\0GET /x HTTP/1.1"),
        Refused(BAD),
    );
    row(r, "line-two-spaces", line("GET  /x HTTP/1.1"), Refused(BAD));
    row(
        r,
        "line-two-spaces-version",
        line("GET /x  HTTP/1.1"),
        Refused(BAD),
    );
    row(r, "line-tab", line("GET\t/x HTTP/1.1"), Refused(BAD));
    row(
        r,
        "line-vertical-tab",
        line("GET\x0b/x HTTP/1.1"),
        Refused(BAD),
    );
    row(
        r,
        "line-space-after",
        line("GET /x HTTP/1.1 "),
        Refused(BAD_VERSION),
    );
    row(r, "line-no-version", "GET /x\r\n\r\n", Refused(BAD_VERSION));
    row(
        r,
        "line-no-version-fields",
        line("GET /x"),
        Refused(BAD_VERSION),
    );
    row(r, "line-only-method", line("GET"), Refused(BAD));
    row(
        r,
        "line-no-target",
        line("GET HTTP/1.1"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "line-bare-lf",
        "GET /x HTTP/1.1\nHost: a.example\n\n",
        Refused(BAD),
    );
    row(
        r,
        "line-bare-lf-first",
        "GET /x HTTP/1.1\nHost: a.example\r\n\r\n",
        Refused(BAD),
    );
    row(r, "line-bare-cr", line("GET /x\rHTTP/1.1"), Refused(BAD));
    row(
        r,
        "line-bare-cr-end",
        "GET /x HTTP/1.1\rHost: a.example\r\n\r\n",
        Refused(BAD_VERSION),
    );
    row(
        r,
        "line-cr-cr-lf",
        "GET /x HTTP/1.1\r\r\nHost: a.example\r\n\r\n",
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-1.2",
        line("GET /x HTTP/1.2"),
        Either(BAD_VERSION, vec![get("/x")]),
    );
    row(
        r,
        "version-2.0",
        line("GET /x HTTP/2.0"),
        Refused(BAD_VERSION),
    );
    row(r, "version-3", line("GET /x HTTP/3"), Refused(BAD_VERSION));
    row(
        r,
        "version-0.9",
        line("GET /x HTTP/0.9"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-1.10",
        line("GET /x HTTP/1.10"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-01.1",
        line("GET /x HTTP/01.1"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-lower-case",
        line("GET /x http/1.1"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-comma",
        line("GET /x HTTP/1,1"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-other-name",
        line("GET /x HTTPS/1.1"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-space-inside",
        line("GET /x HTTP/ 1.1"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "version-minus",
        line("GET /x HTTP/-1.1"),
        Refused(BAD_VERSION),
    );
    row(
        r,
        "method-parenthesis",
        line("GE(T /x HTTP/1.1"),
        Refused(BAD),
    );
    row(r, "method-nul", line("GE\0T /x HTTP/1.1"), Refused(BAD));
    row(r, "method-colon", line("GET: /x HTTP/1.1"), Refused(BAD));
    row(
        r,
        "not-http-tls",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        Refused(BAD),
    );
    row(
        r,
        "not-http-ssh",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        Refused(BAD),
    );
}

fn targets(r: &mut Vec<Row>) {
    row(
        r,
        "target-query",
        target("/x?a=1&b=%0d%0a"),
        Kept(vec![get("/x?a=1&b=%0d%0a")]),
    );
    row(r, "target-nul", target("/x\0y"), Refused(BAD));
    row(r, "target-space", target("/x y"), Refused(BAD_VERSION));
    row(r, "target-control", target("/x\x01y"), Refused(BAD));
    row(r, "target-delete", target("/x\x7fy"), Refused(BAD));
    row(
        r,
        "target-high-byte",
        b"GET /x\xffy HTTP/1.1\r\nHost: a.example\r\n\r\n",
        Refused(BAD),
    );
    row(r, "target-no-slash", target("x"), Refused(BAD));
    row(
        r,
        "target-fragment",
        target("/x#y"),
        Either(BAD, vec![get("/x")]),
    );
    row(r, "target-bad-percent", target("/x%zz"), Answered(BAD));
    row(r, "target-cut-percent", target("/x%4"), Answered(BAD));
    row(r, "target-encoded-nul", target("/x%00y"), Answered(BAD));
    row(r, "target-escapes-root", target("/../x"), Answered(BAD));
    row(
        r,
        "target-escapes-root-encoded",
        target("/a/%2e%2e/%2E%2e/x"),
        Answered(BAD),
    );
    row(
        r,
        "target-dot-segments",
        target("/a/./b/../c"),
        Kept(vec![get("/a/c")]),
    );
    row(
        r,
        "target-two-slashes",
        target("//a//b"),
        Kept(vec![get("/a/b")]),
    );
    row(
        r,
        "target-encoded-slash",
        target("/a%2fb"),
        Either(BAD, vec![get("")]),
    );
    row(
        r,
        "target-backslash",
        target("/a\\b"),
        Either(BAD, vec![get("")]),
    );
    row(
        r,
        "target-parameters",
        target("/a;x=1/b"),
        Either(BAD, vec![get("")]),
    );
    row(
        r,
        "target-absolute",
        target("http://a.example/x"),
        Kept(vec![get("/x").has("host", "a.example")]),
    );
    row(
        r,
        "target-absolute-other-host",
        target("http://b.example/x"),
        // RFC 9112, 3.2.2: the target's host takes precedence, and Host is replaced.
        Either(BAD, vec![get("/x").has("host", "b.example")]),
    );
    row(
        r,
        "target-absolute-no-path",
        target("http://a.example"),
        Either(BAD, vec![get("/")]),
    );
    row(
        r,
        "target-absolute-user",
        target("http://u:p@a.example/x"),
        Either(BAD, vec![get("/x")]),
    );
    row(
        r,
        "target-absolute-https",
        target("https://a.example/x"),
        Either(&[400, 421], vec![get("/x")]),
    );
    row(
        r,
        "target-absolute-ftp",
        target("ftp://a.example/x"),
        Either(&[400, 421, 501], vec![get("/x")]),
    );
    row(
        r,
        "target-absolute-bad-host",
        target("http://a b/x"),
        Refused(BAD_VERSION),
    );
    row(r, "target-authority", target("a.example:80"), Refused(BAD));
    row(r, "target-asterisk-get", target("*"), Refused(BAD));
    row(
        r,
        "target-asterisk-options",
        line("OPTIONS * HTTP/1.1"),
        Either(
            &[200, 204, 400, 404, 405, 501],
            vec![sent("OPTIONS", "*", "", Framing::None)],
        ),
    );
    row(
        r,
        "connect-authority",
        line("CONNECT a.example:443 HTTP/1.1"),
        Answered(&[400, 405, 501]),
    );
    row(
        r,
        "connect-path",
        line("CONNECT /x HTTP/1.1"),
        Answered(&[400, 405, 501]),
    );
    row(
        r,
        "trace",
        line("TRACE /x HTTP/1.1"),
        Either(
            &[400, 405, 501],
            vec![sent("TRACE", "/x", "", Framing::None)],
        ),
    );
    row(
        r,
        "target-too-long",
        target(&format!("/{}", "x".repeat(9 << 10))),
        Refused(TOO_LONG),
    );
    row(
        r,
        "target-endless",
        format!("GET /{}", "x".repeat(70 << 10)),
        Refused(TOO_LONG),
    );
}

fn hosts(r: &mut Vec<Row>) {
    row(r, "host-missing", host(""), Refused(BAD));
    row(
        r,
        "host-twice",
        host("Host: a.example\r\nHost: a.example\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "host-two",
        host("Host: a.example\r\nHost: b.example\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "host-two-cases",
        host("Host: a.example\r\nhOST: b.example\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "host-empty",
        host("Host:\r\n"),
        Either(BAD, vec![get("/h")]),
    );
    row(r, "host-space-inside", host("Host: a b\r\n"), Refused(BAD));
    row(r, "host-tab-inside", host("Host: a\tb\r\n"), Refused(BAD));
    row(r, "host-slash", host("Host: a/b\r\n"), Refused(BAD));
    row(r, "host-user", host("Host: u@a.example\r\n"), Refused(BAD));
    row(
        r,
        "host-comma",
        host("Host: a.example, b.example\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "host-bad-port",
        host("Host: a.example:xx\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "host-large-port",
        host("Host: a.example:99999\r\n"),
        Either(BAD, vec![get("/h")]),
    );
    row(
        r,
        "host-two-ports",
        host("Host: a.example:80:80\r\n"),
        Refused(BAD),
    );
    row(r, "host-query", host("Host: a.example?x\r\n"), Refused(BAD));
    row(r, "host-nul", host("Host: a.example\0\r\n"), Refused(BAD));
    row(
        r,
        "host-high-byte",
        b"GET /h HTTP/1.1\r\nHost: a\xe9\r\n\r\n",
        Refused(BAD),
    );
    row(
        r,
        "host-port",
        host("Host: a.example:8080\r\n"),
        Kept(vec![get("/h")]),
    );
    row(
        r,
        "host-ipv6",
        host("Host: [::1]:8080\r\n"),
        Kept(vec![get("/h")]),
    );
    row(r, "host-bad-ipv6", host("Host: [::1\r\n"), Refused(BAD));
    row(
        r,
        "host-blanks-around",
        host("Host: \t a.example \t\r\n"),
        Kept(vec![get("/h").has("host", "a.example")]),
    );
    row(
        r,
        "host-space-before-colon",
        host("Host : a.example\r\n"),
        Refused(BAD),
    );
    row(
        r,
        "host-folded",
        host("Host: a.example\r\n b.example\r\n"),
        Refused(BAD),
    );
}
