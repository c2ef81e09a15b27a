//! Redirects that lead where they should and nowhere else; pages.

use http_body::Body as _;
use proptest::prelude::*;

use super::*;

fn location(response: &Response<Body>) -> &str {
    response.headers()[LOCATION].to_str().unwrap()
}

#[test]
fn a_location_takes_host_path_and_query() {
    let rows: &[(&str, &str, Option<&str>, &str)] = &[
        (
            "https://new.example{path}{query}",
            "/a",
            None,
            "https://new.example/a",
        ),
        (
            "https://new.example{path}{query}",
            "/a",
            Some("b=c"),
            "https://new.example/a?b=c",
        ),
        (
            "https://{host}:8443{path}",
            "/a",
            None,
            "https://shop.example:8443/a",
        ),
        ("/new{path}", "/a", None, "/new/a"),
        ("/new", "/a", Some("b"), "/new"),
        ("/{path}", "/evil.example/x", None, "/evil.example/x"),
        ("/{query}", "/a", Some("//x"), "/?//x"),
        ("/x/{unknown}{", "/a", None, "/x/{unknown}{"),
        ("/{{path}}", "/a", None, "/{/a}"),
        (
            "/q{query}",
            "/a",
            Some("a\"<b>\\ é"),
            "/q?a%22%3Cb%3E%5C%20%C3%A9",
        ),
        (
            "/q{query}",
            "/a",
            Some("a\r\nSet-Cookie: b"),
            "/q?a%0D%0ASet-Cookie:%20b",
        ),
        ("/p{path}", "/caf%c3%a9;s=secret", None, "/p/caf%C3%A9"),
        ("//cdn.example{path}", "/a", None, "//cdn.example/a"),
    ];
    for (template, raw, query, expected) in rows {
        let path = NormalPath::parse(raw).unwrap();
        let host = Some("shop.example:80");
        let response = redirect(StatusCode::FOUND, template, host, &path, *query);
        assert_eq!(response.status(), 302);
        assert_eq!(location(&response), *expected, "{template} {raw}");
        assert_eq!(response.body().size_hint().exact(), Some(0));
    }
}

#[test]
fn a_host_that_is_none_is_refused_where_it_is_needed() {
    let path = NormalPath::parse("/a").unwrap();
    for host in [
        None,
        Some(""),
        Some("a/b"),
        Some("user@evil"),
        Some("a\\b"),
        Some("[x]:1"),
    ] {
        let response = redirect(StatusCode::FOUND, "https://{host}/", host, &path, None);
        assert_eq!(response.status(), 400, "{host:?}");
        let response = to_https(&Method::GET, host, 443, &path, None);
        assert_eq!(response.status(), 400, "{host:?}");
        let response = redirect(StatusCode::FOUND, "/x", host, &path, None);
        assert_eq!(location(&response), "/x");
    }
}

#[test]
fn plain_http_is_sent_to_https() {
    let path = NormalPath::parse("/a//b;jsessionid=1").unwrap();
    let to = |method: Method, host, port| to_https(&method, Some(host), port, &path, Some("q=1"));
    let response = to(Method::GET, "Shop.example:80", 443);
    assert_eq!(response.status(), 301);
    assert_eq!(
        location(&response),
        "https://Shop.example/a/b;jsessionid=1?q=1"
    );
    let response = to(Method::POST, "[::1]:8080", 8443);
    assert_eq!(response.status(), 308);
    assert_eq!(
        location(&response),
        "https://[::1]:8443/a/b;jsessionid=1?q=1"
    );
}

proptest! {
    /// A location that begins with `/` stays on this host, whatever is asked for.
    #[test]
    fn no_open_redirect(
        raw in "[/.a@:;%\\[]{0,10}(%2[0-9a-f]|é)?",
        query in prop::option::of("\\PC{0,10}"),
        template in "/(x|/)?(\\{path\\}|\\{query\\}|\\{host\\}|y){0,3}",
    ) {
        let raw = format!("/{raw}");
        let Ok(path) = NormalPath::parse(&raw) else { return Ok(()) };
        let response = redirect(StatusCode::FOUND, &template, Some("h"), &path, query.as_deref());
        let location = location(&response);
        prop_assert!(location.bytes().all(|b| b.is_ascii_graphic()));
        if !template.starts_with("//") {
            prop_assert!(location.starts_with('/') && !location.starts_with("//"), "{}", location);
        }
    }
}

#[test]
fn fixed_responses_and_pages() {
    let json = HeaderValue::from_static("application/json");
    let response = respond(StatusCode::OK, &json, &bytes::Bytes::from_static(b"{}"));
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    assert_eq!(response.body().size_hint().exact(), Some(2));

    let page = MaintenancePage {
        status: StatusCode::SERVICE_UNAVAILABLE,
        content_type: HeaderValue::from_static("text/html"),
        body: bytes::Bytes::from_static(b"<h1>soon</h1>"),
    };
    let response = maintenance(Some(&page), Duration::from_secs(30));
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()[RETRY_AFTER], "30");
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    assert_eq!(response.body().size_hint().exact(), Some(13));

    let response = maintenance(None, Duration::from_millis(10));
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()[RETRY_AFTER], "1");
    assert!(response.body().size_hint().exact().unwrap() > 0);

    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        let response = status_page(status);
        assert_eq!(response.body().size_hint().exact(), Some(0));
        assert!(!response.headers().contains_key(CONTENT_TYPE));
    }
    let response = status_page(StatusCode::NOT_FOUND);
    assert_eq!(
        response.body().size_hint().exact(),
        Some("404 Not Found\n".len() as u64)
    );
}
