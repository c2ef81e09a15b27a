//! Random requests and responses: nothing panics, nobody unusable is chosen, and what was
//! rewritten comes back as it was issued.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::http::{CookieAttributes, CookieValue, StickyCookie, StickyLearn};

fn kinds() -> Vec<PoolHttp> {
    let key: Arc<[u8]> = [9u8; 32][..].into();
    let cookie = |value| {
        with(Sticky::Cookie(StickyCookie {
            name: "JSESSIONID".into(),
            value,
            attributes: CookieAttributes {
                path: "/".into(),
                domain: None,
                max_age: None,
                secure: false,
                http_only: false,
                same_site: None,
                partitioned: false,
            },
            force: false,
        }))
    };
    vec![
        route(false),
        route(true),
        cookie(CookieValue::Signed(Arc::clone(&key))),
        cookie(CookieValue::Opaque(key)),
        with(Sticky::Learn(StickyLearn {
            cookie: "JSESSIONID".into(),
            idle: Duration::from_secs(1),
            force: false,
        })),
    ]
}

/// Bits of cookies, in any order.
fn field() -> impl Strategy<Value = Vec<u8>> {
    let bits: Vec<&[u8]> = vec![
        b"JSESSIONID",
        b"=",
        b";",
        b"; ",
        b"\"",
        b".",
        b"s1",
        b"s2",
        b"d",
        b"A",
        b" ",
        b",",
        b"\xff",
        b"x=y",
        b"Max-Age=0",
        b"Path=/",
        b"Expires=",
        b";jsessionid=",
        b"//",
        b"%2e",
    ];
    prop::collection::vec(prop::sample::select(bits), 0..24).prop_map(|bits| bits.concat())
}

fn map(name: HeaderName, fields: &[Vec<u8>]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for field in fields {
        if let Ok(field) = HeaderValue::from_bytes(field) {
            headers.append(&name, field);
        }
    }
    headers
}

proptest! {
    #[test]
    fn nothing_panics(
        exchanges in prop::collection::vec(
            (prop::collection::vec(field(), 0..3), prop::collection::vec(field(), 0..3), field()), 1..6),
        kind in 0usize..5,
        path in prop::sample::select(vec!["/", "/;jsessionid=A.s1", "/;jsessionid=A.d", "/;jsessionid=."]),
    ) {
        let view = Spec("s1:domain=d s2:down,redirect=s1 s3:drain").view(kinds().swap_remove(kind));
        for (sent, set, address) in exchanges {
            let mut headers = map(COOKIE, &sent);
            let affinity = read_at(&view, path, &headers);
            let _ = affinity.route(&view);
            let Ok(lease) = lease(&view, &affinity) else { continue };
            let named = affinity.names(lease.index());
            prop_assert!(lease.index() == 0 || (lease.index() == 2 && named));
            let _ = rewrite_request(&view, &affinity, lease.index(), &mut headers);
            let mut response = head(&[]);
            response.headers = map(SET_COOKIE, &set);
            if let Ok(address) = HeaderValue::from_bytes(&address) {
                response.headers.insert(http::header::LOCATION, address);
            }
            rewrite_response(&view, &affinity, lease.index(), false, &mut response);
        }
    }

    /// Whatever a backend issues and however often it fails over: each backend sees the id
    /// as it was issued, and the browser's id leads to who serves it.
    #[test]
    fn ids_come_back_as_they_were_issued(
        base in "[A-Za-z0-9_-]{1,40}", bare: bool, quoted: bool,
        downs in prop::collection::vec(0usize..4, 0..8),
        noise in "[a-z]{1,5}=[a-zA-Z0-9 ]{0,5}x",
    ) {
        let spec = |down: Option<usize>| {
            (0..4).map(|i| format!("s{i}{}", if down == Some(i) { ":down" } else { "" }))
                .collect::<Vec<_>>().join(" ")
        };
        let mut view = Spec(&spec(None)).view(route(false));
        let affinity = Affinity::default();
        let first = lease(&view, &affinity).unwrap().index();
        let issued = if bare { base.clone() } else { format!("{base}.s{first}") };
        let quote = if quoted { "\"" } else { "" };
        let set = format!("JSESSIONID={quote}{issued}{quote}; Path=/");
        let mut response = head(&[("set-cookie", &set)]);
        rewrite_response(&view, &affinity, first, false, &mut response);
        let kept = |headers: &HeaderMap| texts(headers, SET_COOKIE).last().map(|set| {
            set.split(';').next().unwrap().to_owned()
        });
        let mut jar = kept(&response.headers).unwrap();
        for down in downs {
            view = Spec(&spec(Some(down)))
                .view_after(route(false), Some(&view), std::time::Instant::now());
            let done = exchange(&view, "/x", &[&format!("{noise}; {jar}; {noise}")], &[]);
            let shown = jar.find('"').map_or("", |_| "\"");
            prop_assert_eq!(
                done.cookies.join("|"), format!("{noise}; JSESSIONID={shown}{issued}{shown}; {noise}"));
            if let Some(new) = kept(&done.headers) {
                jar = new;
            }
            let ends = format!(".{}", done.backend);
            prop_assert!(jar.trim_end_matches('"').ends_with(&ends), "{} on {}", jar, ends);
        }
    }
}
