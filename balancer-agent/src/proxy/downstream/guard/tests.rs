//! Raw requests as tables, and the promise that splitting bytes changes nothing.

use super::*;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds {
    headers: 10,
    head_bytes: 1024,
    target_bytes: 100,
    body_bytes: 1000,
};

/// What becomes of a connection's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// Requests that are complete: how many, and how many bytes after the last one.
    Requests(usize, usize),
    /// As many requests first, then a status.
    Refused(usize, u16),
}

/// Feeds bytes in pieces, as the socket does: heads from their begin each time, bodies once.
fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut guard = Guard::default();
    let mut kept: Vec<u8> = Vec::new();
    let mut complete = 0;
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let (used, done) = match guard.in_body() {
                true => match guard.body(&kept, &BOUNDS) {
                    Ok(n) => (n, !guard.in_body()),
                    Err(refusal) => return Seen::Refused(complete, refusal.status),
                },
                false => match guard.head(&kept, &BOUNDS) {
                    Ok(None) => break,
                    Ok(Some(head)) => (head.end, !guard.in_body()),
                    Err(refusal) => return Seen::Refused(complete, refusal.status),
                },
            };
            kept.drain(..used);
            complete += usize::from(done);
            if kept.is_empty() {
                break;
            }
        }
    }
    let in_body = usize::from(guard.in_body());
    Seen::Requests(complete, kept.len() + in_body)
}

fn whole(bytes: &[u8]) -> Seen {
    feed([bytes])
}

/// A request with these fields besides `Host`.
fn with(fields: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

/// A chunked request with this body.
fn chunked(body: &str) -> Vec<u8> {
    let mut request = with("Transfer-Encoding: chunked\r\n");
    request.extend(body.as_bytes());
    request
}

/// Requests that are accepted, and how many of them there are.
fn good() -> Vec<(Vec<u8>, usize)> {
    let text = |s: &str| s.as_bytes().to_vec();
    vec![
        (text("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 1),
        (text("GET / HTTP/1.0\r\n\r\n"), 1),
        (text("GET / HTTP/1.0\r\nHost:\r\n\r\n"), 1),
        (text("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 1),
        (text("get /a?b=c HTTP/1.1\r\nhOsT:a\r\n\r\n"), 1),
        (
            text("M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1\r\nHost: a\r\n\r\n"),
            1,
        ),
        (text("OPTIONS * HTTP/1.1\r\nHost: a:80\r\n\r\n"), 1),
        (text("GET http://a/ HTTP/1.1\r\nHost: A\r\n\r\n"), 1),
        (text("GET http://a HTTP/1.1\r\nHost: a:80\r\n\r\n"), 1),
        (text("GET HTTPS://a:443/x HTTP/1.1\r\nHost: a\r\n\r\n"), 1),
        (
            text("GET http://a:8080?q HTTP/1.1\r\nHost: a:8080\r\n\r\n"),
            1,
        ),
        (text("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), 1),
        (text("GET / HTTP/1.1\r\nHost: \t a.example \t\r\n\r\n"), 1),
        (
            text("GET /%00%zz{}|[]\"^?a\\`b HTTP/1.1\r\nHost: a\r\n\r\n"),
            1,
        ),
        (with("X: \t\x7e \u{e9}\r\nY:\r\n"), 1),
        (with("Content-Length: 0\r\n"), 1),
        (with("Content-Length: 0005\r\n"), 0),
        ([with("Content-Length: 5\r\n"), text("hello")].concat(), 1),
        (
            [
                with("Content-Length: 5\r\n"),
                text("helloGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ]
            .concat(),
            2,
        ),
        (
            text(
                "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            ),
            3,
        ),
        (with("Expect: 100-CONTINUE\r\nContent-Length: 0\r\n"), 1),
        (chunked("0\r\n\r\n"), 1),
        (chunked("5\r\nhello\r\n0\r\n\r\n"), 1),
        (chunked("000005\r\nhello\r\n000\r\n\r\n"), 1),
        (
            chunked("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
            1,
        ),
        (chunked("5;a=b;c=\"d;e\"\r\nhello\r\n0;x\r\n\r\n"), 1),
        (chunked("5 \t;a\r\nhello\r\n0\r\n\r\n"), 1),
        (chunked("1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n"), 1),
        (
            chunked("0\r\nChecksum: 1\r\nX-Long-Name-That-Does-Not-Fit: \t\r\n\r\n"),
            1,
        ),
        (
            [chunked("0\r\n\r\n"), chunked("1\r\nx\r\n0\r\n\r\n")].concat(),
            2,
        ),
        (
            [with("Transfer-Encoding: CHUNKED \r\n"), text("0\r\n\r\n")].concat(),
            1,
        ),
        (with("Connection: Upgrade\r\nUpgrade: websocket\r\n"), 1),
    ]
}

/// Requests that are refused, and with what.
fn bad() -> Vec<(Vec<u8>, u16)> {
    let text = |s: &str| s.as_bytes().to_vec();
    let fields = |n: usize| with(&"A: b\r\n".repeat(n));
    vec![
        // Lines.
        (text("GET / HTTP/1.1\nHost: a\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a\r\n\n"), 400),
        (text("GET / HTTP/1.1\rHost: a\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n"), 400),
        (text("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        // Request lines.
        (text("GET /\r\n\r\n"), 400),
        (text("GET\r\n\r\n"), 400),
        (text("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /  HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET / HTTP/1.1 \r\nHost: a\r\n\r\n"), 400),
        (text(" GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("G(T / HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET / http/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET / HTTP/1.10\r\nHost: a\r\n\r\n"), 400),
        (text("GET / HTTP/x.y\r\nHost: a\r\n\r\n"), 400),
        (text("GET / HTTP/1.2\r\nHost: a\r\n\r\n"), 505),
        (text("GET / HTTP/0.9\r\nHost: a\r\n\r\n"), 505),
        (text("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505),
        (text("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"), 501),
        (
            format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(65)).into(),
            501,
        ),
        // Targets.
        (text("GET a HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"), 400),
        (text("GET * HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /?#f HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /\u{7f} HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET /<> HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"), 400),
        (text("GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET https://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (text("GET http://a#f HTTP/1.1\r\nHost: a\r\n\r\n"), 400),
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(100)).into(),
            414,
        ),
        (format!("GET /{}", "a".repeat(300)).into(), 414),
        (vec![b'a'; 300], 400),
        // Host.
        (text("GET / HTTP/1.1\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost:\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), 400),
        (text("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a:x\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: [::g]\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: :80\r\n\r\n"), 400),
        (text("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n"), 400),
        // Fields.
        (text("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), 400),
        (with("A: b\r\n c\r\n"), 400),
        (with("A: b\r\n\tc\r\n"), 400),
        (with("A : b\r\n"), 400),
        (with("A\t: b\r\n"), 400),
        (with("A b: c\r\n"), 400),
        (with(": b\r\n"), 400),
        (with("A\r\n"), 400),
        (with("A\0: b\r\n"), 400),
        (with("\u{e9}: b\r\n"), 400),
        (with("A@: b\r\n"), 400),
        (with("A: \0\r\n"), 400),
        (with("A: \u{b}\r\n"), 400),
        (with("A: \u{7f}\r\n"), 400),
        (with("Content_Length: 5\r\n"), 400),
        (with("transfer_encoding: chunked\r\n"), 400),
        (with("Expect: miracles\r\n"), 417),
        (fields(10), 431),
        (with(&format!("A: {}\r\n", "b".repeat(1024))), 431),
        (
            format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(1024)).into(),
            431,
        ),
        // Content-Length.
        (with("Content-Length: 5\r\nContent-Length: 5\r\n"), 400),
        (with("Content-Length: 5\r\nContent-Length: 6\r\n"), 400),
        (with("Content-Length: 5, 5\r\n"), 400),
        (with("Content-Length: +5\r\n"), 400),
        (with("Content-Length: -5\r\n"), 400),
        (with("Content-Length: 5 5\r\n"), 400),
        (with("Content-Length: 0x5\r\n"), 400),
        (with("Content-Length: 5.0\r\n"), 400),
        (with("Content-Length: \"5\"\r\n"), 400),
        (with("Content-Length:\r\n"), 400),
        (with("Content-Length: 99999999999999999999\r\n"), 400),
        (with("Content-Length: 18446744073709551615\r\n"), 400),
        (with("Content-Length: 1001\r\n"), 413),
        // Transfer-Encoding.
        (
            with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            400,
        ),
        (
            with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
            400,
        ),
        (
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            400,
        ),
        (with("Transfer-Encoding: chunked, chunked\r\n"), 400),
        (with("Transfer-Encoding: chunked, gzip\r\n"), 400),
        (with("Transfer-Encoding: chunked;q=1\r\n"), 400),
        (with("Transfer-Encoding: chunked,\r\n"), 400),
        (with("Transfer-Encoding: ,chunked\r\n"), 400),
        (with("Transfer-Encoding:\r\n"), 400),
        (with("Transfer-Encoding: \"chunked\"\r\n"), 400),
        (with("Transfer-Encoding: x chunked\r\n"), 400),
        (with("Transfer-Encoding: \u{b}chunked\r\n"), 400),
        (with("Transfer-Encoding: chunked\u{a0}\r\n"), 400),
        (with("Transfer-Encoding : chunked\r\n"), 400),
        (with("Transfer-Encoding: gzip, chunked\r\n"), 501),
        (with("Transfer-Encoding: gzip\r\n"), 501),
        (with("Transfer-Encoding: identity\r\n"), 501),
        (with("Transfer-Encoding: xchunked\r\n"), 501),
        (
            text("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            400,
        ),
        // Chunks.
        (chunked("\r\n"), 400),
        (chunked("g\r\n"), 400),
        (chunked("-5\r\nhello\r\n0\r\n\r\n"), 400),
        (chunked("+5\r\nhello\r\n0\r\n\r\n"), 400),
        (chunked("0x5\r\nhello\r\n0\r\n\r\n"), 400),
        (chunked(" 5\r\nhello\r\n0\r\n\r\n"), 400),
        (chunked("5 \r\nhello\r\n0\r\n\r\n"), 400),
        (chunked("5\nhello\r\n0\r\n\r\n"), 400),
        (chunked("5\rhello\r\n0\r\n\r\n"), 400),
        (chunked("5\r\nhello0\r\n\r\n"), 400),
        (chunked("5\r\nhello\n0\r\n\r\n"), 400),
        (chunked("5\r\nhello\rx0\r\n\r\n"), 400),
        (chunked("5\r\nhello!\r\n0\r\n\r\n"), 400),
        (chunked("5;a\nhello\r\n0\r\n\r\n"), 400),
        (chunked("5;a\0\r\nhello\r\n0\r\n\r\n"), 400),
        (chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"), 400),
        (chunked("0\r\n\n"), 400),
        (chunked("0\r\n\rx"), 400),
        (chunked("ffffffffffffffff\r\n"), 400),
        (chunked("10000000000000000\r\n"), 400),
        (chunked("0000000000000000005\r\n"), 400),
        (chunked("fffffffffffffff\r\n"), 413),
        (chunked("3e9\r\n"), 413),
        (
            chunked(&format!(
                "{}3e8\r\n",
                format!("1f4\r\n{}\r\n", "x".repeat(500)).repeat(2)
            )),
            413,
        ),
        (chunked(&format!("5;{}\r\n", "x".repeat(300))), 400),
        (
            chunked(&format!("1;{}\r\nx\r\n", "x".repeat(200)).repeat(30)),
            400,
        ),
        // Trailers.
        (chunked("0\r\nContent-Length: 5\r\n\r\n"), 400),
        (chunked("0\r\nTRANSFER-encoding: chunked\r\n\r\n"), 400),
        (chunked("0\r\nHost: b\r\n\r\n"), 400),
        (chunked("0\r\nAuthorization: b\r\n\r\n"), 400),
        (chunked("0\r\nA\r\n\r\n"), 400),
        (chunked("0\r\nA : b\r\n\r\n"), 400),
        (chunked("0\r\n A: b\r\n\r\n"), 400),
        (chunked("0\r\nA: b\r\n c\r\n\r\n"), 400),
        (chunked("0\r\nA: \0\r\n\r\n"), 400),
        (chunked("0\r\nA: b\n\r\n"), 400),
        (chunked("0\r\nA: b\rc\r\n\r\n"), 400),
        (chunked(&format!("0\r\n{}\r\n", "A: b\r\n".repeat(11))), 431),
        (
            chunked(&format!("0\r\nA: {}\r\n\r\n", "b".repeat(1024))),
            431,
        ),
    ]
}

#[test]
fn sound_requests_are_accepted() {
    for (bytes, requests) in good() {
        let seen = whole(&bytes);
        let rest = match requests {
            0 => 1,
            _ => 0,
        };
        assert_eq!(
            seen,
            Seen::Requests(requests, rest),
            "{}",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn unsound_requests_are_refused() {
    assert!(bad().len() >= 100);
    for (bytes, status) in bad() {
        assert_eq!(
            whole(&bytes),
            Seen::Refused(0, status),
            "{}",
            bytes.escape_ascii()
        );
    }
}

/// All of the tables, cut in two at every place, byte by byte, and after a request.
#[test]
fn where_bytes_are_split_changes_nothing() {
    let all = good().into_iter().map(|g| g.0);
    for bytes in all.chain(bad().into_iter().map(|b| b.0)) {
        let expected = whole(&bytes);
        // What is too large is refused as soon as that is sure, which may be before it is
        // seen that it is malformed as well.
        let same = |seen: Seen, how: &str| {
            assert_eq!(seen, expected, "{how}: {}", bytes.escape_ascii());
        };
        for i in 0..=bytes.len() {
            let (a, b) = bytes.split_at(i);
            same(feed([a, b]), "in two");
        }
        same(feed(bytes.chunks(1)), "by bytes");
        same(feed(bytes.chunks(7)), "by sevens");
        let before = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let after = match expected {
            Seen::Requests(n, rest) => Seen::Requests(n + 1, rest),
            Seen::Refused(n, status) => Seen::Refused(n + 1, status),
        };
        let joined = [&before[..], &bytes].concat();
        assert_eq!(whole(&joined), after, "{}", bytes.escape_ascii());
    }
}

#[test]
fn what_was_accepted_is_known() {
    let mut guard = Guard::default();
    let bytes = b"\r\nGET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 7\r\n\r\nab";
    let head = guard.head(bytes, &BOUNDS).unwrap().unwrap();
    assert_eq!((head.skip, head.end), (2, bytes.len() - 2));
    assert!(head.upgrade);
    assert_eq!(guard.sure(), Some(7));
    assert_eq!(guard.body(b"ab", &BOUNDS), Ok(2));
    assert_eq!(guard.sure(), Some(5));
    assert_eq!(guard.body(b"cdefgGET", &BOUNDS), Ok(5));
    assert!(!guard.in_body());
}

#[test]
fn a_response_is_whole() {
    let response = String::from_utf8(Refusal::CONNECTIONS.response()).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    assert!(head.contains("\r\nRetry-After: 1\r\n"));
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
    assert!(head.ends_with("\r\nConnection: close"));
}

proptest! {
    /// Chunked bodies of any shape, split anywhere, are as long as they are.
    #[test]
    fn chunks_of_any_size_split_anywhere(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..12),
        trailers in 0_usize..3,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut bytes = with("Transfer-Encoding: chunked\r\n");
        for (i, chunk) in chunks.iter().enumerate() {
            let extension = if i % 3 == 0 { ";x=y" } else { "" };
            bytes.extend(format!("{:x}{extension}\r\n", chunk.len()).bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n");
        for i in 0..trailers {
            bytes.extend(format!("X-{i}: y\r\n").bytes());
        }
        bytes.extend(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGE");
        let mut cuts: Vec<_> = cuts.iter().map(|c| c.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]);
        prop_assert_eq!(feed(pieces), Seen::Requests(2, 2));
    }

    /// Whatever comes, nothing panics, and splitting changes nothing.
    #[test]
    fn anything_split_anywhere(
        pick in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let all: Vec<Vec<u8>> = good().into_iter().map(|g| g.0)
            .chain(bad().into_iter().map(|b| b.0)).collect();
        let mut bytes = all[pick.index(all.len())].clone();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        let (a, b) = bytes.split_at(cut.index(bytes.len()));
        prop_assert_eq!(feed([a, b]), whole(&bytes));
    }
}
