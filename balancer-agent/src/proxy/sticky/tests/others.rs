//! Inserted cookies, learned cookies, the client's address.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::header::CACHE_CONTROL;

use super::*;
use crate::model::http::{CookieAttributes, CookieValue, SameSite, StickyCookie, StickyLearn};

fn key(byte: u8) -> Arc<[u8]> {
    [byte; 32][..].into()
}

fn inserted(value: CookieValue, force: bool) -> PoolHttp {
    with(Sticky::Cookie(StickyCookie {
        name: "lb".into(),
        value,
        attributes: CookieAttributes {
            path: "/".into(),
            domain: None,
            max_age: None,
            secure: false,
            http_only: true,
            same_site: Some(SameSite::Lax),
            partitioned: false,
        },
        force,
    }))
}

fn both() -> [CookieValue; 2] {
    [CookieValue::Signed(key(1)), CookieValue::Opaque(key(1))]
}

/// `lb=...` of the browser's jar after an exchange.
fn jar(done: &Exchange) -> String {
    let set = done
        .set()
        .into_iter()
        .find(|f| f.starts_with("lb="))
        .unwrap();
    set.split(';').next().unwrap().to_owned()
}

#[test]
fn an_inserted_cookie_is_set_once_and_never_shown() {
    for value in both() {
        let view = Spec("s1 s2 s3").view(inserted(value, false));
        let first = exchange(&view, "/", &["a=b"], &[]);
        let set = first.set();
        assert_eq!(set.len(), 1);
        assert!(
            set[0].ends_with("; Path=/; HttpOnly; SameSite=Lax"),
            "{set:?}"
        );
        assert_eq!(texts(&first.headers, CACHE_CONTROL), ["private"]);
        let own = jar(&first);
        for _ in 0..5 {
            let next = exchange(&view, "/", &[&format!("a=b; {own}; c=d")], &[]);
            assert_eq!(next.backend, first.backend);
            assert_eq!(next.cookies, ["a=b; c=d"]);
            assert!(next.headers.is_empty(), "{:?}", next.headers);
        }
        let alone = exchange(&view, "/", &[&own], &[]);
        assert!(alone.cookies.is_empty());
    }
}

#[test]
fn what_is_readable_of_it() {
    let view = Spec("s1:route=a.b;%c").view(inserted(CookieValue::Signed(key(1)), false));
    let own = jar(&exchange(&view, "/", &[], &[]));
    assert!(own.starts_with("lb=a.b%3B%25c."), "{own}");
    assert_eq!(
        exchange(&view, "/", &[&own], &[]).set().len(),
        0,
        "and it is read again"
    );
    let view = Spec("a-telling-name").view(inserted(CookieValue::Opaque(key(1)), false));
    let (one, two) = (
        exchange(&view, "/", &[], &[]),
        exchange(&view, "/", &[], &[]),
    );
    assert_ne!(jar(&one), jar(&two), "not even that it is the same one");
    assert_eq!(jar(&one).len(), jar(&two).len());
}

#[test]
fn failover_sets_it_anew_and_keeps_the_sessions_key() {
    for value in both() {
        let one = Spec("s1 s2:drain s3:drain").view(inserted(value.clone(), false));
        let own = jar(&exchange(&one, "/", &[], &[]));
        let instant = std::time::Instant::now();
        let two =
            Spec("s1:down s2 s3").view_after(inserted(value.clone(), false), Some(&one), instant);
        // Another node with the same key, and its backends in another order.
        let node = Spec("s3 s2 s1:down").view(inserted(value, false));
        let (moved, there) = (
            exchange(&two, "/", &[&own], &[]),
            exchange(&node, "/", &[&own], &[]),
        );
        assert_eq!(moved.backend, there.backend);
        let new = jar(&moved);
        assert_ne!(new, own);
        let stays = exchange(&node, "/", &[&new], &[]);
        assert_eq!((&stays.backend, stays.set().len()), (&moved.backend, 0));
        // s1 is back; the session stays where it is.
        let three =
            Spec("s1 s2 s3").view_after(one.pool.http.as_ref().clone(), Some(&two), instant);
        assert_eq!(exchange(&three, "/", &[&new], &[]).backend, moved.backend);
    }
}

#[test]
fn forged_damaged_and_foreign_ones_are_no_cookie() {
    for value in both() {
        let view = Spec("s1 s2:drain").view(inserted(value.clone(), false));
        let own = jar(&exchange(&view, "/", &[], &[]));
        let mut bad: Vec<String> = [
            "lb=s2",
            "lb=s2.AAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAA",
            "lb=.",
            "lb=..",
            "lb=\u{e9}",
        ]
        .map(String::from)
        .into();
        bad.push(format!("{own}A"));
        bad.push(own[..own.len() - 1].to_owned());
        bad.push(own.replacen("lb=", "lb=x", 1));
        bad.push(own.replace("s1", "s2") + " ");
        // One character changed, anywhere.
        for at in 3..own.len() {
            let mut bytes = own.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            bad.push(String::from_utf8(bytes).unwrap());
        }
        // Another key, another pool, another name.
        let other_key = match &value {
            CookieValue::Signed(_) => CookieValue::Signed(key(2)),
            CookieValue::Opaque(_) => CookieValue::Opaque(key(2)),
        };
        let strange = Spec("s1").view(inserted(other_key, false));
        bad.push(jar(&exchange(&strange, "/", &[], &[])));
        for (pool, cookie) in [("other", "lb"), ("app", "lb2")] {
            let sealer = seal::Sealer::new(&value, pool, cookie).unwrap();
            bad.push(format!("lb={}", sealer.seal("s1", 1).unwrap()));
        }
        let mut counted = 0;
        for sent in &bad {
            let done = exchange(&view, "/", &[&format!("a=b; {sent}")], &[]);
            let valid = sent.trim_end() == own;
            counted += u64::from(!valid);
            assert_eq!(done.backend, "s1");
            assert_eq!(done.set().len(), usize::from(!valid), "{sent}");
            assert_eq!(done.cookies, ["a=b"], "not shown either");
        }
        assert_eq!(view.live.sticky.invalid.load(Relaxed), counted);
        // A good one beside bad ones counts; too many are not tried.
        let beside = format!("{}; {}; {own}", bad[0], bad[1]);
        assert_eq!(exchange(&view, "/", &[&beside], &[]).set().len(), 0);
        let late = format!("{}{own}", "lb=x; ".repeat(10));
        assert_eq!(exchange(&view, "/", &[&late], &[]).set().len(), 1);
    }
}

#[test]
fn force_and_a_backend_that_is_gone() {
    let value = CookieValue::Signed(key(1));
    let view = Spec("s1").view(inserted(value.clone(), true));
    let own = jar(&exchange(&view, "/", &[], &[]));
    let down = Spec("s1:down s2").view(inserted(value.clone(), true));
    let affinity = read_at(&down, "/", &cookies(&[&own]));
    assert_eq!(affinity.route(&down), Some("s1"));
    assert_eq!(lease(&down, &affinity).unwrap_err(), NoBackend::Forced);
    let gone = Spec("s2").view(inserted(value, true));
    assert_eq!(exchange(&gone, "/", &[&own], &[]).set().len(), 1);
}

#[test]
fn caching_and_a_cookie_of_the_same_name() {
    let view = Spec("s1").view(inserted(CookieValue::Signed(key(1)), false));
    for (before, added) in [
        (None, true),
        (Some("public, max-age=60"), true),
        (Some("no-cache"), true),
        (Some("private"), false),
        (Some("max-age=0,  PRIVATE "), false),
        (Some("no-store"), false),
        (Some("private=\"set-cookie\""), false),
    ] {
        let answer: Vec<_> = before.map(|b| ("cache-control", b)).into_iter().collect();
        let done = exchange(&view, "/", &[], &answer);
        let fields = texts(&done.headers, CACHE_CONTROL);
        assert_eq!(
            fields.len(),
            usize::from(before.is_some()) + usize::from(added),
            "{before:?}"
        );
    }
    let done = exchange(
        &view,
        "/",
        &[],
        &[("set-cookie", "lb=theirs"), ("set-cookie", "x=1")],
    );
    let set = done.set();
    assert!(
        set.len() == 2 && set[0] == "x=1" && set[1].starts_with("lb=s1."),
        "{set:?}"
    );
}

#[test]
fn all_attributes() {
    let http = with(Sticky::Cookie(StickyCookie {
        name: "__Host-lb".into(),
        value: CookieValue::Signed(key(1)),
        attributes: CookieAttributes {
            path: "/app".into(),
            domain: Some("example.org".into()),
            max_age: Some(Duration::from_secs(3600)),
            secure: true,
            http_only: true,
            same_site: Some(SameSite::None),
            partitioned: true,
        },
        force: false,
    }));
    let set = exchange(&Spec("s1").view(http), "/", &[], &[]).set();
    let attributes = set[0].split_once(';').unwrap().1;
    assert_eq!(
        attributes,
        " Path=/app; Domain=example.org; Max-Age=3600; Secure; HttpOnly; SameSite=None; Partitioned"
    );
}

fn learn(force: bool) -> PoolHttp {
    with(Sticky::Learn(StickyLearn {
        cookie: "SID".into(),
        idle: Duration::from_secs(600),
        force,
    }))
}

#[test]
fn a_learned_cookie_binds_moves_and_ends() {
    let instant = std::time::Instant::now();
    let view = Spec("s1 s2:drain s3:drain").view(learn(false));
    let set = "SID=abc; Path=/";
    let first = exchange(&view, "/", &[], &[("set-cookie", set)]);
    assert_eq!((&*first.backend, first.set()), ("s1", vec![set.to_owned()]));
    // Bound, also when others would take it, also by another place of the backend.
    let view = Spec("s3 s2 s1").view_after(learn(false), Some(&view), instant);
    for _ in 0..4 {
        let next = exchange(&view, "/", &["SID=abc"], &[]);
        assert_eq!((&*next.backend, &*next.cookies[0]), ("s1", "SID=abc"));
    }
    let affinity = read_at(&view, "/", &cookies(&["SID=abc"]));
    assert_eq!(affinity.route(&view), Some("s1"));
    // Of several the first that is known.
    assert_eq!(
        exchange(&view, "/", &["SID=zzz; SID=abc"], &[]).backend,
        "s1"
    );
    // Failover binds anew.
    let down = Spec("s3 s2 s1:down").view_after(learn(false), Some(&view), instant);
    let moved = exchange(&down, "/", &["SID=abc"], &[]).backend;
    assert_ne!(moved, "s1");
    let back = Spec("s3 s2 s1").view_after(learn(false), Some(&down), instant);
    assert_eq!(exchange(&back, "/", &["SID=abc"], &[]).backend, moved);
    // The end.
    let _ = exchange(
        &back,
        "/",
        &["SID=abc"],
        &[("set-cookie", "SID=; Max-Age=0")],
    );
    assert!(back.live.sticky.bindings.is_empty());
}

#[test]
fn what_only_a_browser_says_is_not_learned_but_stays_together() {
    let view = Spec("s1 s2 s3").view(learn(true));
    let other = Spec("s3 s1 s2").view(learn(true));
    for i in 0..50 {
        let sent = format!("SID={i}");
        let one = exchange(&view, "/", &[&sent], &[]).backend;
        assert_eq!(exchange(&view, "/", &[&sent], &[]).backend, one);
        assert_eq!(exchange(&other, "/", &[&sent], &[]).backend, one);
    }
    assert!(view.live.sticky.bindings.is_empty());
}

#[test]
fn learned_with_force() {
    let view = Spec("s1 s2:drain").view(learn(true));
    let _ = exchange(&view, "/", &[], &[("set-cookie", "SID=abc")]);
    let instant = std::time::Instant::now();
    let down = Spec("s1:down s2").view_after(learn(true), Some(&view), instant);
    let affinity = read_at(&down, "/", &cookies(&["SID=abc"]));
    assert_eq!(lease(&down, &affinity).unwrap_err(), NoBackend::Forced);
}

#[test]
fn the_clients_network_stays_together() {
    let view = Spec("s1 s2 s3").view(with(Sticky::Source {
        ipv4_prefix: 24,
        ipv6_prefix: 64,
    }));
    let of = |address: &str| {
        let path = NormalPath::parse("/").unwrap();
        let affinity = read(&view, &HeaderMap::new(), &path, address.parse().unwrap());
        assert_eq!(affinity.route(&view), None);
        lease(&view, &affinity).unwrap().backend().name.to_string()
    };
    for i in 0..40 {
        let one = of(&format!("10.0.{i}.1"));
        assert_eq!(of(&format!("10.0.{i}.255")), one);
        assert_eq!(of(&format!("::ffff:10.0.{i}.7")), one);
        assert_eq!(
            of(&format!("2001:db8:0:{i}::1")),
            of(&format!("2001:db8:0:{i}:ffff::2"))
        );
    }
    let all: std::collections::BTreeSet<_> = (0..40).map(|i| of(&format!("10.0.{i}.1"))).collect();
    assert_eq!(all.len(), 3);
}

#[test]
fn without_stickiness_nothing_is_touched() {
    let view = Spec("s1 s2").view(PoolHttp::default());
    let sent = "lb=x; SID=y; JSESSIONID=z.s2";
    let done = exchange(
        &view,
        "/;jsessionid=z.s2",
        &[sent],
        &[("set-cookie", "JSESSIONID=a")],
    );
    assert_eq!(
        (done.cookies, done.parameter),
        (vec![sent.to_owned()], None)
    );
    assert_eq!(texts(&done.headers, SET_COOKIE), ["JSESSIONID=a"]);
}
