//! Connections: persistence and pipelining (RFC 9112 section 9), hop-by-hop fields,
//! Expect and Upgrade (RFC 9110 sections 7.6, 7.8 and 10.1.1).

use super::Expect::{Closed, Either, Kept, ThenRefused};
use super::{Framing, Row, get, post, row, sent};

const BAD: &[u16] = &[400];

/// A GET with further lines.
fn request(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n")
}

pub(super) fn rows(rows: &mut Vec<Row>) {
    persistence(rows);
    hop_by_hop(rows);
    expectations(rows);
}

fn persistence(r: &mut Vec<Row>) {
    let plain = |target: &str| request(target, "");
    row(
        r,
        "close",
        request("/1", "Connection: close\r\n"),
        Closed(vec![get("/1")]),
    );
    row(
        r,
        "close-case",
        request("/1", "connection: Close\r\n"),
        Closed(vec![get("/1")]),
    );
    row(
        r,
        "close-in-list",
        request("/1", "Connection: foo, close\r\n"),
        Closed(vec![get("/1")]),
    );
    row(
        r,
        "close-second-line",
        request("/1", "Connection: keep-alive\r\nConnection: close\r\n"),
        Closed(vec![get("/1")]),
    );
    row(
        r,
        "close-ignores-the-rest",
        request("/1", "Connection: close\r\n") + &plain("/2"),
        Closed(vec![get("/1")]),
    );
    row(
        r,
        "old-version",
        "GET /1 HTTP/1.0\r\nHost: a.example\r\n\r\n",
        Closed(vec![get("/1").lacks(&["transfer-encoding"])]),
    );
    row(
        r,
        "old-version-no-host",
        "GET /1 HTTP/1.0\r\n\r\n",
        Either(BAD, vec![get("/1")]),
    );
    row(
        r,
        "old-version-keep-alive",
        "GET /1 HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n",
        Kept(vec![get("/1")]),
    );
    row(
        r,
        "old-version-length",
        "POST /1 HTTP/1.0\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello",
        Closed(vec![post("/1", "hello")]),
    );
    row(
        r,
        "pipeline",
        plain("/1") + &plain("/2") + &plain("/3"),
        Kept(vec![get("/1"), get("/2"), get("/3")]),
    );
    row(
        r,
        "pipeline-after-body",
        format!(
            "POST /1 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello{}",
            plain("/2")
        ),
        Kept(vec![post("/1", "hello"), get("/2")]),
    );
    row(
        r,
        "pipeline-head",
        format!("HEAD /1 HTTP/1.1\r\nHost: a.example\r\n\r\n{}", plain("/2")),
        Kept(vec![sent("HEAD", "/1", "", Framing::None), get("/2")]),
    );
    row(
        r,
        "pipeline-bad-second",
        plain("/1") + "GET /2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + &plain("/3"),
        ThenRefused(vec![get("/1")], BAD),
    );
    row(
        r,
        "pipeline-crlf-between",
        plain("/1") + "\r\n" + &plain("/2"),
        Kept(vec![get("/1"), get("/2")]),
    );
    row(r, "head", "HEAD /1 HTTP/1.1\r\nHost: a.example\r\n\r\n", {
        Kept(vec![sent("HEAD", "/1", "", Framing::None)])
    });
    let text = request("/slow", "X-A: b\r\n");
    r.push(Row {
        name: "byte-by-byte",
        pieces: text.bytes().map(|byte| vec![byte]).collect(),
        expect: Kept(vec![get("/slow").has("x-a", "b")]),
    });
    let text = "POST /slow HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\n\r\n";
    r.push(Row {
        name: "byte-by-byte-chunked",
        pieces: text.bytes().map(|byte| vec![byte]).collect(),
        expect: Kept(vec![sent("POST", "/slow", "hello", Framing::Any)]),
    });
    let cut = |at: usize| vec![text[..at].into(), text[at..].into()];
    for (name, at) in [
        ("cut-in-line-end", text.find("\r\n").unwrap_or(0) + 1),
        ("cut-in-head-end", text.find("\r\n\r\n").unwrap_or(0) + 3),
        ("cut-in-chunk-size", text.find("5\r\n").unwrap_or(0) + 2),
    ] {
        r.push(Row {
            name,
            pieces: cut(at),
            expect: Kept(vec![sent("POST", "/slow", "hello", Framing::Any)]),
        });
    }
}

fn hop_by_hop(r: &mut Vec<Row>) {
    let lacks = |names: &[&'static str]| Kept(vec![get("/1").lacks(names)]);
    row(
        r,
        "connection-names-a-field",
        request("/1", "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"),
        lacks(&["x-hop"]),
    );
    row(
        r,
        "connection-names-later-field",
        request(
            "/1",
            "X-Hop: 1\r\nConnection: x-hop\r\nConnection: x-other\r\nX-Other: 1\r\n",
        ),
        lacks(&["x-hop", "x-other"]),
    );
    row(
        r,
        "connection-names-host",
        request("/1", "Connection: host\r\n"),
        Either(BAD, vec![get("/1").has("host", "a.example")]),
    );
    row(
        r,
        "connection-names-forwarded",
        request("/1", "Connection: x-forwarded-for\r\n"),
        Either(BAD, vec![get("/1").has("x-forwarded-for", "127.0.0.1")]),
    );
    row(
        r,
        "connection-empty",
        request("/1", "Connection:\r\n"),
        Kept(vec![get("/1")]),
    );
    row(
        r,
        "keep-alive-field",
        request("/1", "Keep-Alive: timeout=5\r\n"),
        lacks(&["keep-alive"]),
    );
    row(
        r,
        "proxy-connection",
        request("/1", "Proxy-Connection: keep-alive\r\n"),
        lacks(&["proxy-connection"]),
    );
    row(
        r,
        "te-gzip",
        request("/1", "TE: gzip\r\nConnection: TE\r\n"),
        lacks(&["te"]),
    );
    row(
        r,
        "upgrade-without-connection",
        request("/1", "Upgrade: websocket\r\n"),
        lacks(&["upgrade"]),
    );
    row(
        r,
        "upgrade-h2c",
        // Smuggling by way of a backend that switches to HTTP/2.
        request(
            "/1",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        ),
        Either(BAD, vec![get("/1").lacks(&["upgrade", "http2-settings"])]),
    );
    row(
        r,
        "upgrade-h2c-no-settings-named",
        request(
            "/1",
            "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        ),
        Either(BAD, vec![get("/1").lacks(&["upgrade", "http2-settings"])]),
    );
    row(
        r,
        "upgrade-declined",
        request("/1", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        Kept(vec![get("/1")]),
    );
    row(
        r,
        "forwarded-spoofed",
        request(
            "/1",
            "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n",
        ),
        Kept(vec![
            get("/1")
                .has("x-forwarded-for", "127.0.0.1")
                .lacks(&["forwarded"]),
        ]),
    );
    row(
        r,
        "forwarded-spoofed-twice",
        request(
            "/1",
            "X-Forwarded-For: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8\r\nX-Forwarded-Proto: https\r\n",
        ),
        Kept(vec![
            get("/1")
                .has("x-forwarded-for", "127.0.0.1")
                .has("x-forwarded-proto", "http"),
        ]),
    );
}

fn expectations(r: &mut Vec<Row>) {
    let expect = |lines: &str, body: &str| {
        format!("POST /e HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n{body}")
    };
    row(
        r,
        "expect-continue",
        expect("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"),
        Kept(vec![post("/e", "hello")]),
    );
    row(
        r,
        "expect-continue-case",
        expect("Expect: 100-Continue\r\nContent-Length: 5\r\n", "hello"),
        Kept(vec![post("/e", "hello")]),
    );
    row(
        r,
        "expect-continue-no-body",
        request("/e", "Expect: 100-continue\r\n"),
        Kept(vec![get("/e")]),
    );
    row(
        r,
        "expect-other",
        expect("Expect: tea\r\nContent-Length: 5\r\n", "hello"),
        Either(&[400, 417], vec![post("/e", "hello")]),
    );
    row(
        r,
        "expect-old-version",
        expect("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello")
            .replace("HTTP/1.1", "HTTP/1.0"),
        Closed(vec![post("/e", "hello")]),
    );
}
