//! What becomes of paths: a table, and properties of any path.

use proptest::prelude::*;

use super::*;

/// Raw path; decoded, encoded and parameters, or why it is refused.
type Row = (
    &'static str,
    Result<(&'static [u8], &'static str, &'static str), PathError>,
);

/// A row whose decoded path is written as the encoded one.
const fn same(raw: &'static str, path: &'static str, parameters: &'static str) -> Row {
    (raw, Ok((path.as_bytes(), path, parameters)))
}

const fn refused(raw: &'static str, error: PathError) -> Row {
    (raw, Err(error))
}

const TABLE: &[Row] = &[
    // Normal already.
    same("/", "/", ""),
    same("/a", "/a", ""),
    same("/a/b/c.html", "/a/b/c.html", ""),
    same("/a/", "/a/", ""),
    same(
        "/a-b_c~d!e$f&g'h(i)j*k+l,m=n:o@p",
        "/a-b_c~d!e$f&g'h(i)j*k+l,m=n:o@p",
        "",
    ),
    same("/.well-known/acme", "/.well-known/acme", ""),
    same("/.hidden/..b/...", "/.hidden/..b/...", ""),
    same("/a./b..", "/a./b..", ""),
    // Empty segments.
    same("//", "/", ""),
    same("///", "/", ""),
    same("//a", "/a", ""),
    same("/a//b", "/a/b", ""),
    same("/a///b////", "/a/b/", ""),
    same("//evil.example/x", "/evil.example/x", ""),
    // Dot segments.
    same("/.", "/", ""),
    same("/./", "/", ""),
    same("/./a", "/a", ""),
    same("/a/.", "/a/", ""),
    same("/a/./b", "/a/b", ""),
    same("/a/..", "/", ""),
    same("/a/../", "/", ""),
    same("/a/../b", "/b", ""),
    same("/a/b/../../c", "/c", ""),
    same("/a/b/c/../..", "/a/", ""),
    same("/a//../b", "/b", ""),
    same("/a/./../b/.", "/b/", ""),
    refused("/..", PathError::AboveRoot),
    refused("/../", PathError::AboveRoot),
    refused("/../etc/passwd", PathError::AboveRoot),
    refused("/a/../../b", PathError::AboveRoot),
    refused("//..", PathError::AboveRoot),
    refused("/./..", PathError::AboveRoot),
    // Escapes.
    same("/%61", "/a", ""),
    same("/%41%5A%7E%2d", "/AZ~-", ""),
    ("/a%20b", Ok((b"/a b", "/a%20b", ""))),
    ("/caf%c3%a9", Ok(("/café".as_bytes(), "/caf%C3%A9", ""))),
    ("/café", Ok(("/café".as_bytes(), "/caf%C3%A9", ""))),
    ("/caf%e9", Ok((b"/caf\xe9", "/caf%E9", ""))),
    ("/%ff%fe/x", Ok((b"/\xff\xfe/x", "/%FF%FE/x", ""))),
    ("/100%25", Ok((b"/100%", "/100%25", ""))),
    ("/a%2Bb+c", Ok((b"/a+b+c", "/a%2Bb+c", ""))),
    ("/a%3fb%23c", Ok((b"/a?b#c", "/a%3Fb%23c", ""))),
    (
        "/a\"<>^`{|}",
        Ok((b"/a\"<>^`{|}", "/a%22%3C%3E%5E%60%7B%7C%7D", "")),
    ),
    ("/[a]", Ok((b"/[a]", "/%5Ba%5D", ""))),
    // Decoded once, not twice.
    ("/%252e%252e/a", Ok((b"/%2e%2e/a", "/%252e%252e/a", ""))),
    ("/a%252fb", Ok((b"/a%2fb", "/a%252fb", ""))),
    ("/%25%32%66", Ok((b"/%2f", "/%252f", ""))),
    refused("/%", PathError::BadEscape(1)),
    refused("/a%", PathError::BadEscape(2)),
    refused("/a%2", PathError::BadEscape(2)),
    refused("/a%/2", PathError::BadEscape(2)),
    refused("/a%zz", PathError::BadEscape(2)),
    refused("/a/%u0041", PathError::BadEscape(3)),
    refused("/x/%%41", PathError::BadEscape(3)),
    // Dot segments that were hidden.
    same("/%2e", "/", ""),
    same("/a/%2e%2e/b", "/b", ""),
    same("/a/.%2E/b", "/b", ""),
    same("/a/%2e./", "/", ""),
    refused("/%2e%2e", PathError::AboveRoot),
    refused("/%2e%2e/etc", PathError::AboveRoot),
    // Slashes, backslashes, controls.
    refused("/a%2fb", PathError::EncodedSlash(2)),
    refused("/a/..%2F..%2Fb", PathError::EncodedSlash(5)),
    refused("/a%5cb", PathError::Backslash(2)),
    refused("/a\\b", PathError::Backslash(2)),
    refused("/..\\..", PathError::Backslash(3)),
    refused("/a%00.jsp", PathError::Control(2)),
    refused("/a%0d%0aSet-Cookie:x", PathError::Control(2)),
    refused("/a%7F", PathError::Control(2)),
    refused("/a b", PathError::Control(2)),
    refused("/a\tb", PathError::Control(2)),
    refused("/a\x7f", PathError::Control(2)),
    // Not a path.
    refused("", PathError::NotAbsolute),
    refused("*", PathError::NotAbsolute),
    refused("a/b", PathError::NotAbsolute),
    refused("http://name/", PathError::NotAbsolute),
    // Parameters.
    same("/a;jsessionid=1.s1", "/a", ";jsessionid=1.s1"),
    same("/a/;jsessionid=1", "/a/", ";jsessionid=1"),
    same("/;jsessionid=1", "/", ";jsessionid=1"),
    same("/a;x/b", "/a/b", ";x"),
    same("/a;x=1/b;y=2/c", "/a/b/c", ";x=1;y=2"),
    same("/a;", "/a", ""),
    same("/a;;;", "/a", ""),
    same("/a;;x;;y;", "/a", ";x;y"),
    same("/a;jsessionid=1;jsessionid=2", "/a", ";jsessionid=1"),
    same(
        "/a;jsessionid=1/b;jsessionid=2;z",
        "/a/b",
        ";jsessionid=1;z",
    ),
    same("/a;x=%41%3b", "/a", ";x=%41%3B"),
    same("/a;x=caf\u{e9}", "/a", ";x=caf%C3%A9"),
    ("/a%3Bx=1", Ok((b"/a;x=1", "/a%3Bx=1", ""))),
    ("/a%20b;x", Ok((b"/a b", "/a%20b", ";x"))),
    refused("/a;x=%2f..%2fb", PathError::EncodedSlash(5)),
    refused("/a;x=%5c", PathError::Backslash(5)),
    refused("/a;x=%0a", PathError::Control(5)),
    refused("/a;x=%1", PathError::BadEscape(5)),
    // CVE-2018-11759 and its relatives: parameters that hide what is asked for.
    same("/jkstatus;", "/jkstatus", ""),
    same("/jkstatus;cmd=dump", "/jkstatus", ";cmd=dump"),
    same("/jkstatus;/", "/jkstatus/", ""),
    same("/;/jkstatus", "/jkstatus", ""),
    same("/;a=b/jkstatus", "/jkstatus", ";a=b"),
    same("//;/;/jkstatus;", "/jkstatus", ""),
    same("/open/..;/jkstatus", "/jkstatus", ""),
    same("/open/..;x=1/jkstatus", "/jkstatus", ";x=1"),
    same("/open/%2e%2e;/jkstatus", "/jkstatus", ""),
    same("/open/.;/../jkstatus", "/jkstatus", ""),
    same("/open/;/../jkstatus", "/jkstatus", ""),
    same("/jk%73tatus;%41", "/jkstatus", ";%41"),
    refused("/..;/jkstatus", PathError::AboveRoot),
    refused("/open/..;/..;/manager/html", PathError::AboveRoot),
    ("/jkstatus%3b", Ok((b"/jkstatus;", "/jkstatus%3B", ""))),
];

#[test]
fn paths_become_what_the_table_says() {
    assert!(TABLE.len() >= 60);
    for (raw, expected) in TABLE {
        let found = NormalPath::parse(raw);
        let found = found
            .as_ref()
            .map(|p| (p.decoded(), p.encoded(), p.parameters()));
        assert_eq!(found, expected.as_ref().map(|e| *e), "{raw:?}");
    }
}

#[test]
fn parameters_are_bounded_and_repeated_ones_count() {
    let many = |n: usize| (0..n).map(|i| format!(";p{i}")).collect::<String>();
    let raw = format!("/a{}", many(64));
    assert_eq!(NormalPath::parse(&raw).unwrap().parameters(), many(64));
    let raw = format!("/a{}", many(65));
    assert_eq!(NormalPath::parse(&raw), Err(PathError::TooManyParameters));
    let raw = format!("/a{}", ";p".repeat(65));
    assert_eq!(NormalPath::parse(&raw), Err(PathError::TooManyParameters));
    let raw = format!("/a{}", ";".repeat(10_000));
    assert_eq!(NormalPath::parse(&raw).unwrap().parameters(), "");
}

#[test]
fn a_parameter_is_found_by_its_whole_name() {
    let find = |raw: &str, name: &str| {
        let path = NormalPath::parse(raw).unwrap();
        path.parameter(name).map(str::to_owned)
    };
    let some = |value: &str| Some(value.to_owned());
    assert_eq!(find("/a;jsessionid=1.s2", "jsessionid"), some("1.s2"));
    assert_eq!(find("/a;jsessionid=1.s2/b;c", "jsessionid"), some("1.s2"));
    assert_eq!(find("/a;v=1;jsessionid=x=y", "jsessionid"), some("x=y"));
    assert_eq!(find("/a;JSESSIONID=1", "jsessionid"), None);
    assert_eq!(find("/a;xjsessionid=1", "jsessionid"), None);
    assert_eq!(find("/a;jsessionid", "jsessionid"), None);
    assert_eq!(find("/a;jsessionid=", "jsessionid"), None);
    assert_eq!(find("/a%3Bjsessionid=1", "jsessionid"), None);
    assert_eq!(find("/a", "jsessionid"), None);
}

fn rewrite(strip: Option<&str>, add: Option<&str>) -> Rewrite {
    Rewrite {
        strip_prefix: strip.map(Into::into),
        add_prefix: add.map(Into::into),
        ..Rewrite::default()
    }
}

#[test]
fn prefixes_come_off_and_on_as_whole_segments() {
    // Raw path, prefix off, prefix on; what is forwarded, what files are looked for by.
    type Row<'r> = (&'r str, Option<&'r str>, Option<&'r str>, &'r str, &'r [u8]);
    let rows: &[Row<'_>] = &[
        ("/app/x", None, None, "/app/x", b"/app/x"),
        ("/app/x", Some("/app"), None, "/x", b"/x"),
        ("/app/x", Some("/app/"), None, "/x", b"/x"),
        ("/app", Some("/app"), None, "/", b"/"),
        ("/app/", Some("/app"), None, "/", b"/"),
        ("/apple", Some("/app"), None, "/apple", b"/apple"),
        ("/ap", Some("/app"), None, "/ap", b"/ap"),
        ("/x", Some("/"), None, "/x", b"/x"),
        ("/x", Some(""), None, "/x", b"/x"),
        ("/x", None, Some("/v1"), "/v1/x", b"/v1/x"),
        ("/", None, Some("/v1"), "/v1/", b"/v1/"),
        ("/app/x", Some("/app"), Some("/v1/y"), "/v1/y/x", b"/v1/y/x"),
        ("/app", Some("/app"), Some("/v1"), "/v1", b"/v1"),
        ("/app/", Some("/app"), Some("/v1"), "/v1/", b"/v1/"),
        ("/caf%C3%A9/x%20y", Some("/café"), None, "/x%20y", b"/x y"),
        (
            "/caf%C3%A9x/y",
            Some("/café"),
            None,
            "/caf%C3%A9x/y",
            "/caféx/y".as_bytes(),
        ),
        (
            "/a%2Bb/%41",
            Some("/a+b"),
            Some("/ü ;"),
            "/%C3%BC%20%3B/A",
            "/ü ;/A".as_bytes(),
        ),
        ("/app/x;s=1", Some("/app"), None, "/x;s=1", b"/x"),
        ("/app;s=1", Some("/app"), None, "/;s=1", b"/"),
        ("/app;s=1", Some("/app"), Some("/v1"), "/v1;s=1", b"/v1"),
    ];
    for (raw, strip, add, forwarded, local) in rows {
        let path = NormalPath::parse(raw).unwrap();
        let rewrite = rewrite(*strip, *add);
        assert_eq!(
            path.forwarded(None, &rewrite),
            *forwarded,
            "{raw} {strip:?} {add:?}"
        );
        assert_eq!(&*path.local(&rewrite), *local, "{raw} {strip:?} {add:?}");
    }
}

#[test]
fn a_parameter_is_replaced_only_where_it_is() {
    let none = Rewrite::default();
    let replace = |raw: &str, value: &str| {
        let path = NormalPath::parse(raw).unwrap();
        path.forwarded(Some(("s", value)), &none).into_owned()
    };
    assert_eq!(replace("/a;s=1.x", "1.y"), "/a;s=1.y");
    assert_eq!(replace("/a;v=1;s=1.x;w/b", "1.y"), "/a/b;v=1;s=1.y;w");
    assert_eq!(replace("/a;ss=1", "1.y"), "/a;ss=1");
    assert_eq!(replace("/a;s", "1.y"), "/a;s");
    assert_eq!(replace("/a", "1.y"), "/a");
    // Nothing that a value holds can change what stands around it.
    assert_eq!(
        replace("/a;s=1", "x/../b;t?u#v w\r\n"),
        "/a;s=x%2F..%2Fb%3Bt%3Fu%23v%20w%0D%0A"
    );
}

#[test]
fn a_target_is_shared_when_nothing_changes() {
    let none = Rewrite::default();
    let target = |uri: &str, replace, rewrite: &Rewrite| {
        let uri: Uri = uri.parse().unwrap();
        let path = NormalPath::parse(uri.path()).unwrap();
        path.target(&uri, replace, rewrite).map(|t| t.to_string())
    };
    for uri in ["/a?b=c", "/a;s=1?b", "/?", "/a;s=1", "http://name/a?b"] {
        let parsed: Uri = uri.parse().unwrap();
        assert_eq!(
            target(uri, None, &none).unwrap(),
            parsed.path_and_query().unwrap().as_str()
        );
    }
    assert_eq!(
        target("/x/../a%2e?b=%2e//..", None, &none).unwrap(),
        "/a.?b=%2e//.."
    );
    assert_eq!(
        target("/a;s=1?b", Some(("s", "2")), &none).unwrap(),
        "/a;s=2?b"
    );
    assert_eq!(target("/a?b", Some(("s", "2")), &none).unwrap(), "/a?b");
    assert_eq!(
        target("/p/a?b", None, &rewrite(Some("/p"), Some("/q"))).unwrap(),
        "/q/a?b"
    );
    let long = format!("/{}", "a".repeat(65_000));
    let add = format!("/{}", "b".repeat(1000));
    let result = target(&long, None, &rewrite(None, Some(&add)));
    assert_eq!(result, Err(PathError::TooLong));
}

/// Paths made of what matters.
fn raw_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => Just("/".to_owned()),
        2 => "[a-c]{1,3}",
        1 => Just(".".to_owned()),
        1 => Just("..".to_owned()),
        1 => Just(";".to_owned()),
        1 => Just("=".to_owned()),
        1 => "%[0-9a-fA-F]{2}",
        1 => prop::sample::select(vec!["%2e", "%2E", "%3b", "%25", "%20", "+", "%2b", "é", "[", "%"])
            .prop_map(str::to_owned),
        1 => "[ -~]",
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// The rules once more, as plainly as they can be written: segments, one by one.
fn model(raw: &str) -> Option<Vec<u8>> {
    fn decode(text: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&b, after)) = rest.split_first() {
            let (b, after) = match b {
                b'%' => {
                    let digits = after.get(..2)?;
                    if !digits.iter().all(u8::is_ascii_hexdigit) {
                        return None;
                    }
                    let digits = std::str::from_utf8(digits).unwrap();
                    let b = u8::from_str_radix(digits, 16).unwrap();
                    if b == b'/' || b == b'\\' || (b.is_ascii_control()) {
                        return None;
                    }
                    (b, &after[2..])
                }
                b if b.is_ascii_control() || b == b'\\' || b == b' ' => return None,
                b => (b, after),
            };
            out.push(b);
            rest = after;
        }
        Some(out)
    }
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let mut ends_in_slash = false;
    for segment in raw[1..].split('/') {
        let mut parts = segment.split(';');
        let name = decode(parts.next().unwrap())?;
        for parameter in parts {
            decode(parameter)?;
        }
        ends_in_slash = matches!(&name[..], b"" | b"." | b"..");
        match &name[..] {
            b"" | b"." => {}
            b".." => drop(segments.pop()?),
            _ => segments.push(name),
        }
    }
    let mut path: Vec<u8> = segments
        .iter()
        .flat_map(|s| [b"/", &s[..]].concat())
        .collect();
    if ends_in_slash || path.is_empty() {
        path.push(b'/');
    }
    Some(path)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_path_is_what_the_model_says(raw in raw_path()) {
        let found = NormalPath::parse(&raw);
        prop_assert_eq!(found.ok().map(|p| p.decoded().to_vec()), model(&raw));
    }

    /// What is forwarded reads as what was matched, and would be forwarded unchanged by the
    /// next one who does the same.
    #[test]
    fn a_forwarded_path_is_read_as_it_was_matched(raw in raw_path()) {
        let Ok(path) = NormalPath::parse(&raw) else { return Ok(()) };
        let forwarded = path.forwarded(None, &Rewrite::default());
        prop_assert!(forwarded.bytes().all(|b| b.is_ascii_graphic()));
        prop_assert!(!forwarded.contains("//"));
        prop_assert_eq!(forwarded.split(';').next().unwrap(), path.encoded());
        let again = NormalPath::parse(&forwarded).unwrap();
        prop_assert_eq!(again.decoded(), path.decoded());
        prop_assert_eq!(again.encoded(), path.encoded());
        prop_assert_eq!(again.parameters(), path.parameters());
        let decoded: Vec<u8> = percent_encoding::percent_decode_str(path.encoded()).collect();
        prop_assert_eq!(&decoded[..], path.decoded());
        for segment in path.decoded()[1..].split(|&b| b == b'/') {
            prop_assert!(!matches!(segment, b"." | b".."));
        }
    }

    /// The short cut for normal paths and the long way agree.
    #[test]
    fn the_short_way_is_the_long_way(raw in raw_path()) {
        let (Ok(short), long) = (NormalPath::parse(&raw), Normaliser::default().run(raw.as_bytes()))
        else { return Ok(()) };
        let long = long.unwrap();
        prop_assert_eq!(short.decoded(), long.decoded());
        prop_assert_eq!(short.encoded(), long.encoded());
        prop_assert_eq!(short.parameters(), long.parameters());
        if short.verbatim {
            prop_assert_eq!(format!("{}{}", short.encoded(), short.parameters()), raw);
        }
    }

    #[test]
    fn no_text_makes_it_panic(raw in "\\PC{0,40}") {
        let _ = NormalPath::parse(&raw);
        let _ = NormalPath::parse(&format!("/{raw}"));
    }
}
