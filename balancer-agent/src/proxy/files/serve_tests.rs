//! Files by request: real trees, whole responses.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use http_body_util::BodyExt;

use super::*;
use crate::model::http::Files;

/// A tree with files of every kind that matters here, and its opened root.
struct Tree {
    directory: tempfile::TempDir,
    documents: Documents,
}

/// A response, collected.
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

impl Tree {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(784_111_777))
                .unwrap();
        };
        write("index.html", b"<p>start");
        write("page.html", b"0123456789");
        write("page.html.br", b"brotli");
        write("page.html.gz", b"gzip");
        write("only.css", b"css");
        write("only.css.zst", b"zstd");
        write("empty.txt", b"");
        write("sub/default.htm", b"second index");
        write("bare/file.bin", b"\0\x01");
        write(".htpasswd", b"secret");
        write(".git/config", b"secret");
        write(".well-known/security.txt", b"known");
        write("sub/.env", b"secret");
        write("caf\u{e9} +%.txt", "coffee".as_bytes());
        write("large.bin", &large());
        let documents = Documents::open(&Files {
            root: directory.path().to_owned(),
            index: vec!["index.html".into(), "default.htm".into()],
            precompressed: true,
            cache_control: Some(HeaderValue::from_static("max-age=60")),
        });
        Self {
            directory,
            documents: documents.unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn ask(&self, method: Method, target: &str, headers: &[(&'static str, &str)]) -> Got {
        self.ask_rewritten(method, target, headers, &Rewrite::default())
            .await
    }

    async fn get(&self, target: &str, headers: &[(&'static str, &str)]) -> Got {
        self.ask(Method::GET, target, headers).await
    }

    async fn ask_rewritten(
        &self,
        method: Method,
        target: &str,
        list: &[(&'static str, &str)],
        rewrite: &Rewrite,
    ) -> Got {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        let (raw, query) = match target.split_once('?') {
            Some((raw, query)) => (raw, Some(query)),
            None => (target, None),
        };
        let path = NormalPath::parse(raw).unwrap();
        let request = FileRequest {
            method: &method,
            headers: &headers,
            path: &path,
            query,
            rewrite,
        };
        let response = serve(&self.documents, &request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        if let Some(length) = parts.headers.get(CONTENT_LENGTH)
            && method == Method::GET
        {
            assert_eq!(length.to_str().unwrap(), body.len().to_string());
        }
        Got {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_vec(),
        }
    }
}

/// More than is read at once.
fn large() -> Vec<u8> {
    (0..3 * CHUNK + 5).map(|i| (i / 253) as u8).collect()
}

#[tokio::test]
async fn a_file_comes_with_all_that_is_said_of_it() {
    let tree = Tree::new();
    let got = tree.get("/page.html", &[]).await;
    assert_eq!((got.status, got.text()), (200, "0123456789"));
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "10"),
        ("last-modified", DATE),
        ("etag", "\"2ebc98a1.0-a\""),
        ("cache-control", "max-age=60"),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
        ("vary", "Accept-Encoding"),
        ("content-encoding", ""),
    ] {
        assert_eq!(got.header(name), value, "{name}");
    }
    let head = tree.ask(Method::HEAD, "/page.html", &[]).await;
    assert_eq!((head.status, &head.body[..]), (200, &b""[..]));
    assert_eq!(head.headers, got.headers);

    let got = tree.get("/large.bin", &[]).await;
    assert_eq!(got.header("content-type"), "application/octet-stream");
    assert!(got.body == large());
    let got = tree.get("/empty.txt", &[]).await;
    assert_eq!((got.status, got.header("content-length")), (200, "0"));
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let tree = Tree::new();
    for method in [
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::TRACE,
    ] {
        let got = tree.ask(method, "/page.html", &[]).await;
        assert_eq!((got.status, got.header("allow")), (405, "GET, HEAD"));
    }
}

#[tokio::test]
async fn names_lead_to_files_indexes_and_redirects() {
    let tree = Tree::new();
    for (target, status, what) in [
        ("/", 200, "<p>start"),
        ("/index.html", 200, "<p>start"),
        ("/sub/", 200, "second index"),
        ("/sub", 301, "/sub/"),
        ("/sub?a=b&c", 301, "/sub/?a=b&c"),
        ("//sub", 301, "/sub/"),
        ("/sub;s=1?a", 301, "/sub/;s=1?a"),
        ("/bare", 301, "/bare/"),
        ("/bare/", 404, ""),
        ("/missing", 404, ""),
        ("/missing/", 404, ""),
        ("/page.html/", 404, ""),
        ("/page.html/x", 404, ""),
        ("/PAGE.HTML", 404, ""),
        ("/page.html;s=1", 200, "0123456789"),
        ("/x/../page%2ehtml", 200, "0123456789"),
        ("/caf%C3%A9%20+%25.txt", 200, "coffee"),
        // Names that begin with a dot.
        ("/.htpasswd", 404, ""),
        ("/.git/config", 404, ""),
        ("/.git", 404, ""),
        ("/%2egit/config", 404, ""),
        ("/sub/.env", 404, ""),
        ("/.well-known/security.txt", 200, "known"),
        ("/.well-known", 301, "/.well-known/"),
    ] {
        let got = tree.get(target, &[]).await;
        assert_eq!(got.status, status, "{target}");
        match status {
            200 => assert_eq!(got.text(), what, "{target}"),
            301 => assert_eq!(got.header("location"), what, "{target}"),
            _ => assert!(!got.text().contains("secret")),
        }
    }
}

#[tokio::test]
async fn prefixes_come_off_before_a_file_is_looked_for() {
    let tree = Tree::new();
    let rewrite = Rewrite {
        strip_prefix: Some("/static".into()),
        ..Rewrite::default()
    };
    for (target, status, what) in [
        ("/static/page.html", 200, "0123456789"),
        ("/static/", 200, "<p>start"),
        ("/static", 301, "/static/"),
        ("/static/sub", 301, "/static/sub/"),
        ("/page.html", 200, "0123456789"),
    ] {
        let got = tree.ask_rewritten(Method::GET, target, &[], &rewrite).await;
        assert_eq!(got.status, status, "{target}");
        match status {
            200 => assert_eq!(got.text(), what),
            _ => assert_eq!(got.header("location"), what),
        }
    }
    let rewrite = Rewrite {
        add_prefix: Some("/sub".into()),
        ..Rewrite::default()
    };
    let got = tree
        .ask_rewritten(Method::GET, "/default.htm", &[], &rewrite)
        .await;
    assert_eq!(got.text(), "second index");
}

#[tokio::test]
async fn precompressed_variants_are_sent_to_those_who_accept() {
    let tree = Tree::new();
    for (target, accept, coding, text) in [
        ("/page.html", "gzip, br", "br", "brotli"),
        ("/page.html", "gzip", "gzip", "gzip"),
        ("/page.html", "br;q=0.5, gzip", "gzip", "gzip"),
        ("/page.html", "zstd", "", "0123456789"),
        ("/page.html", "zstd, gzip;q=0.1", "gzip", "gzip"),
        ("/page.html", "identity, br;q=0.5", "", "0123456789"),
        ("/page.html", "br;q=0", "", "0123456789"),
        ("/only.css", "gzip, br, zstd", "zstd", "zstd"),
        ("/only.css", "gzip, br", "", "css"),
        ("/", "br", "", "<p>start"),
    ] {
        let got = tree.get(target, &[("accept-encoding", accept)]).await;
        assert_eq!((got.status, got.text()), (200, text), "{target} {accept}");
        assert_eq!(got.header("content-encoding"), coding);
        assert_eq!(got.header("vary"), "Accept-Encoding");
        assert!(got.header("content-type").starts_with("text/"));
        assert_eq!(
            got.header("etag").ends_with(&format!("-{coding}\"")),
            !coding.is_empty()
        );
    }
    // The tag is the variant's, and so are its ranges.
    let accept = ("accept-encoding", "br");
    let tag = tree
        .get("/page.html", &[accept])
        .await
        .header("etag")
        .to_owned();
    let got = tree
        .get("/page.html", &[accept, ("if-none-match", &tag)])
        .await;
    assert_eq!(got.status, 304);
    let got = tree.get("/page.html", &[("if-none-match", &tag)]).await;
    assert_eq!(got.status, 200);
    let got = tree
        .get("/page.html", &[accept, ("range", "bytes=2-3")])
        .await;
    assert_eq!((got.status, got.text()), (206, "ot"));
    assert_eq!(got.header("content-range"), "bytes 2-3/6");
    assert_eq!(got.header("content-encoding"), "br");
}

#[tokio::test]
async fn conditions_and_ranges_answer_as_rfc_9110_says() {
    let tree = Tree::new();
    let tag = "\"2ebc98a1.0-a\"";
    let before = "Sun, 06 Nov 1994 08:49:36 GMT";
    type Case<'c> = (&'c [(&'static str, &'c str)], u16, &'c str, &'c str);
    let cases: &[Case<'_>] = &[
        (&[("if-none-match", tag)], 304, "", ""),
        (&[("if-none-match", "*")], 304, "", ""),
        (&[("if-none-match", "\"x\"")], 200, "0123456789", ""),
        (&[("if-modified-since", DATE)], 304, "", ""),
        (&[("if-modified-since", before)], 200, "0123456789", ""),
        (&[("if-match", tag)], 200, "0123456789", ""),
        (
            &[("if-match", "\"x\"")],
            412,
            "412 Precondition Failed\n",
            "",
        ),
        (
            &[("if-unmodified-since", before)],
            412,
            "412 Precondition Failed\n",
            "",
        ),
        (
            &[("if-none-match", tag), ("range", "bytes=0-1")],
            304,
            "",
            "",
        ),
        (
            &[("if-match", "\"x\""), ("range", "bytes=0-1")],
            412,
            "412 Precondition Failed\n",
            "",
        ),
        (&[("range", "bytes=0-1")], 206, "01", "bytes 0-1/10"),
        (&[("range", "bytes=8-")], 206, "89", "bytes 8-9/10"),
        (&[("range", "bytes=-1")], 206, "9", "bytes 9-9/10"),
        (
            &[("range", "bytes=10-")],
            416,
            "416 Range Not Satisfiable\n",
            "bytes */10",
        ),
        (&[("range", "bytes=x")], 200, "0123456789", ""),
        (&[("range", "bytes=0-,0-")], 200, "0123456789", ""),
        (
            &[("range", "bytes=0-1"), ("if-range", tag)],
            206,
            "01",
            "bytes 0-1/10",
        ),
        (
            &[("range", "bytes=0-1"), ("if-range", DATE)],
            206,
            "01",
            "bytes 0-1/10",
        ),
        (
            &[("range", "bytes=0-1"), ("if-range", before)],
            200,
            "0123456789",
            "",
        ),
        (
            &[("range", "bytes=0-1"), ("if-range", "\"x\"")],
            200,
            "0123456789",
            "",
        ),
        (
            &[("range", "bytes=99-"), ("if-range", "\"x\"")],
            200,
            "0123456789",
            "",
        ),
    ];
    for (headers, status, text, range) in cases {
        let got = tree.get("/page.html", headers).await;
        assert_eq!((got.status, got.text()), (*status, *text), "{headers:?}");
        assert_eq!(got.header("content-range"), *range, "{headers:?}");
        if *status == 304 {
            for name in ["etag", "last-modified", "cache-control", "vary"] {
                assert!(got.headers.contains_key(name), "{name}");
            }
            assert!(!got.headers.contains_key("content-length"));
            assert!(!got.headers.contains_key("content-type"));
        }
    }
    let head = tree
        .ask(Method::HEAD, "/page.html", &[("range", "bytes=0-1")])
        .await;
    assert_eq!((head.status, head.header("content-length")), (200, "10"));
    let got = tree
        .get("/large.bin", &[("range", "bytes=10-150000")])
        .await;
    assert_eq!(got.status, 206);
    assert!(got.body == large()[10..=150_000]);
}

#[tokio::test]
async fn several_ranges_come_as_parts() {
    let tree = Tree::new();
    let got = tree
        .get("/page.html", &[("range", "bytes=0-1, 4-5, -1")])
        .await;
    assert_eq!(got.status, 206);
    assert!(!got.headers.contains_key("content-range"));
    let kind = got.header("content-type");
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    assert_eq!(boundary.len(), 32);
    let part = |range: &str, text: &str| {
        format!(
            "--{boundary}\r\nContent-Type: text/html; charset=utf-8\r\n\
             Content-Range: bytes {range}/10\r\n\r\n{text}\r\n"
        )
    };
    let expected = [part("0-1", "01"), part("4-5", "45"), part("9-9", "9")].concat();
    assert_eq!(got.text(), format!("{expected}--{boundary}--\r\n"));

    let got = tree
        .get("/large.bin", &[("range", "bytes=0-99999, 100001-180000")])
        .await;
    assert_eq!(got.status, 206);
    let large = large();
    for part in [&large[..100_000], &large[100_001..=180_000]] {
        assert!(memchr::memmem::find(&got.body, part).is_some());
    }
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_sent_breaks_its_body() {
    let tree = Tree::new();
    let path = NormalPath::parse("/large.bin").unwrap();
    let request = FileRequest {
        method: &Method::GET,
        headers: &HeaderMap::new(),
        path: &path,
        query: None,
        rewrite: &Rewrite::default(),
    };
    let response = serve(&tree.documents, &request).await;
    assert_eq!(response.status(), 200);
    fs::File::options()
        .write(true)
        .open(tree.path("large.bin"))
        .unwrap()
        .set_len(10)
        .unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_changed_file_has_another_tag() {
    let tree = Tree::new();
    let before = tree.get("/index.html", &[]).await.header("etag").to_owned();
    fs::write(tree.path("index.html"), "<p>START").unwrap();
    let got = tree.get("/index.html", &[("if-none-match", &before)]).await;
    assert_eq!((got.status, got.text()), (200, "<p>START"));
    assert_ne!(got.header("etag"), before);
}
