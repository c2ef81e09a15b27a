//! What a failover changes, in both directions, and what it leaves alone.

use http::header::{CACHE_CONTROL, LOCATION};

use super::*;

const NOTHING: &[(&str, &str)] = &[];

/// A pool whose `dead` backends are down after they have worked: what was learned stays.
fn after(before: &Arc<PoolView>, spec: &str) -> Arc<PoolView> {
    Spec(spec).view_after(route(false), Some(before), std::time::Instant::now())
}

#[test]
fn nothing_to_do_changes_nothing() {
    let view = Spec("s1 s2").view(route(false));
    let done = exchange(
        &view,
        "/x;jsessionid=A.s1",
        &["a=b;  JSESSIONID=A.s1"],
        &[
            ("set-cookie", "theme=dark; Path=/"),
            ("location", "/y;jsessionid=A.s1"),
        ],
    );
    assert_eq!(done.cookies, ["a=b;  JSESSIONID=A.s1"]);
    assert_eq!(done.parameter, None);
    assert_eq!(done.set(), ["theme=dark; Path=/"]);
    assert_eq!(texts(&done.headers, LOCATION), ["/y;jsessionid=A.s1"]);
    assert!(!done.headers.contains_key(CACHE_CONTROL));
}

/// The whole life of a session on servers that share sessions and know them by the id that
/// was issued first.
#[test]
fn a_session_moves_and_its_backend_sees_what_was_issued() {
    let one = Spec("s1 s2:drain s3:drain").view(route(false));
    let issued = exchange(
        &one,
        "/app/login",
        &[],
        &[(
            "set-cookie",
            "JSESSIONID=ABC.s1; Path=/app; HttpOnly; SameSite=Lax",
        )],
    );
    assert_eq!(issued.backend, "s1");
    assert_eq!(
        issued.set(),
        ["JSESSIONID=ABC.s1; Path=/app; HttpOnly; SameSite=Lax"]
    );

    let two = after(&one, "s1:down s2 s3:drain");
    let moved = exchange(&two, "/app/x", &["t=1; JSESSIONID=ABC.s1; u=2"], NOTHING);
    assert_eq!(moved.backend, "s2");
    assert_eq!(moved.cookies, ["t=1; JSESSIONID=ABC.s1; u=2"]);
    assert_eq!(
        moved.set(),
        ["JSESSIONID=ABC.s2; Path=/app; HttpOnly; SameSite=Lax"]
    );
    assert_eq!(texts(&moved.headers, CACHE_CONTROL), ["private"]);

    // From now on by its new name, and told nothing any more.
    let later = exchange(&two, "/app/x", &["t=1; JSESSIONID=ABC.s2; u=2"], NOTHING);
    assert_eq!(later.cookies, ["t=1; JSESSIONID=ABC.s1; u=2"]);
    assert!(later.set().is_empty());
    // s1 is back: the session stays, or it would meet an older copy.
    let three = after(&two, "s1 s2 s3");
    let stays = exchange(&three, "/app/x", &["JSESSIONID=ABC.s2"], NOTHING);
    assert_eq!(
        (&*stays.backend, &*stays.cookies[0]),
        ("s2", "JSESSIONID=ABC.s1")
    );
    // Once more, to the third.
    let four = after(&three, "s1:drain s2:down s3");
    let again = exchange(&four, "/app/x", &["JSESSIONID=ABC.s2"], NOTHING);
    assert_eq!(
        (&*again.backend, &*again.cookies[0]),
        ("s3", "JSESSIONID=ABC.s1")
    );
    assert_eq!(
        again.set(),
        ["JSESSIONID=ABC.s3; Path=/app; HttpOnly; SameSite=Lax"]
    );
    assert_eq!(
        four.live
            .sticky
            .rebound
            .load(std::sync::atomic::Ordering::Relaxed),
        2
    );
}

#[test]
fn the_backends_own_new_cookie_wins() {
    let view = Spec("s1:down s2 s3:drain").view(route(false));
    // As JvmRouteBinderValve: the same session under the new route.
    let valve = exchange(
        &view,
        "/",
        &["JSESSIONID=ABC.s1"],
        &[("set-cookie", "JSESSIONID=ABC.s2; Path=/")],
    );
    assert_eq!(valve.set(), ["JSESSIONID=ABC.s2; Path=/"]);
    let later = exchange(&view, "/", &["JSESSIONID=ABC.s2"], NOTHING);
    assert_eq!(later.cookies, ["JSESSIONID=ABC.s2"], "it knows it by that");
    // A new session, as the old one is not known there.
    let new = exchange(
        &view,
        "/",
        &["JSESSIONID=DEF.s1"],
        &[("set-cookie", "JSESSIONID=XYZ.s2")],
    );
    assert_eq!(new.set(), ["JSESSIONID=XYZ.s2"]);
    // One that moved before and is renamed now.
    let _ = exchange(&view, "/", &["JSESSIONID=GHI.s1"], NOTHING);
    let renamed = exchange(
        &view,
        "/",
        &["JSESSIONID=GHI.s2"],
        &[("set-cookie", "JSESSIONID=GHI.s2")],
    );
    assert_eq!(renamed.cookies, ["JSESSIONID=GHI.s1"]);
    assert_eq!(renamed.set(), ["JSESSIONID=GHI.s2"]);
    let after = exchange(&view, "/", &["JSESSIONID=GHI.s2"], NOTHING);
    assert_eq!(after.cookies, ["JSESSIONID=GHI.s2"]);
}

#[test]
fn what_was_shown_and_is_set_again_gets_the_new_route() {
    let view = Spec("s1:down s2").view(route(false));
    let again = ("set-cookie", "JSESSIONID=\"ABC.s1\"; Path=/; Secure");
    let first = exchange(&view, "/", &["JSESSIONID=ABC.s1"], &[again]);
    assert_eq!(first.set(), ["JSESSIONID=\"ABC.s2\"; Path=/; Secure"]);
    let second = exchange(&view, "/", &["JSESSIONID=ABC.s2"], &[again]);
    assert_eq!(second.cookies, ["JSESSIONID=ABC.s1"]);
    assert_eq!(second.set(), ["JSESSIONID=\"ABC.s2\"; Path=/; Secure"]);
}

#[test]
fn other_suffixes_are_the_applications_business() {
    let view = Spec("s1 s2:drain").view(route(false));
    for id in [
        "ABC.s2",
        "ABC.unknown",
        "head.body.tail",
        "ABC.",
        "ABC.s1.x",
    ] {
        let field = format!("JSESSIONID={id}; Path=/");
        let done = exchange(&view, "/", &[], &[("set-cookie", &field)]);
        assert_eq!(done.set(), [field]);
    }
    assert!(view.live.sticky.ids.is_empty());
}

#[test]
fn deletion_is_left_alone_and_ends_what_was_remembered() {
    let view = Spec("s1:down s2").view(route(false));
    let _ = exchange(&view, "/", &["JSESSIONID=ABC.s1"], NOTHING);
    assert_eq!(view.live.sticky.ids.len(), 1);
    let end = "JSESSIONID=; Max-Age=0; Path=/";
    let logout = exchange(&view, "/", &["JSESSIONID=ABC.s2"], &[("set-cookie", end)]);
    assert_eq!(logout.set(), [end]);
    assert!(view.live.sticky.ids.is_empty());
    // In the very response of a failover as well.
    let end = "JSESSIONID=deleted; Expires=Thu, 01 Jan 1970 00:00:00 GMT";
    let logout = exchange(&view, "/", &["JSESSIONID=DEF.s1"], &[("set-cookie", end)]);
    assert_eq!(logout.set(), [end]);
    assert!(view.live.sticky.ids.is_empty());
}

#[test]
fn servers_without_routes_become_sticky() {
    let view = Spec("s1 s2").view(route(false));
    let first = exchange(&view, "/", &[], &[("set-cookie", "JSESSIONID=ABC; Path=/")]);
    let route = first.backend.clone();
    assert_eq!(first.set(), [format!("JSESSIONID=ABC.{route}; Path=/")]);
    let sent = format!("a=b; JSESSIONID=ABC.{route}");
    for _ in 0..4 {
        let next = exchange(&view, "/", &[&sent], NOTHING);
        assert_eq!(
            (&next.backend, &*next.cookies[0]),
            (&route, "a=b; JSESSIONID=ABC")
        );
        assert!(next.set().is_empty());
    }
    // Failover: still without a route for the backend.
    let (dead, other) = match &*route {
        "s1" => ("s1:down s2", "s2"),
        _ => ("s1 s2:down", "s1"),
    };
    let view = after(&view, dead);
    let moved = exchange(&view, "/", &[&sent], NOTHING);
    assert_eq!(
        (&*moved.backend, &*moved.cookies[0]),
        (other, "a=b; JSESSIONID=ABC")
    );
    assert_eq!(moved.set(), [format!("JSESSIONID=ABC.{other}; Path=/")]);
    let later = exchange(&view, "/", &[&format!("JSESSIONID=ABC.{other}")], NOTHING);
    assert_eq!(later.cookies, ["JSESSIONID=ABC"]);
    // An id that the table has forgotten, or never knew: by how its backend issues them.
    let known = exchange(&view, "/", &[&format!("JSESSIONID=OLD.{route}")], NOTHING);
    assert_eq!(known.cookies, ["JSESSIONID=OLD"]);
}

#[test]
fn one_odd_id_leaves_the_others_their_routes() {
    let view = Spec("s1 s2:drain").view(route(false));
    let _ = exchange(&view, "/", &[], &[("set-cookie", "JSESSIONID=ABC.s1")]);
    let odd = exchange(&view, "/", &[], &[("set-cookie", "JSESSIONID=odd")]);
    assert_eq!(odd.set(), ["JSESSIONID=odd.s1"]);
    let others = exchange(&view, "/", &["JSESSIONID=ABC.s1"], NOTHING);
    assert_eq!(others.cookies, ["JSESSIONID=ABC.s1"]);
    let own = exchange(&view, "/", &["JSESSIONID=odd.s1"], NOTHING);
    assert_eq!(own.cookies, ["JSESSIONID=odd"]);
}

#[test]
fn the_path_parameter_and_addresses_follow() {
    let view = Spec("s1:down s2").view(route(false));
    let moved = exchange(
        &view,
        "/x;jsessionid=ABC.s1",
        &[],
        &[
            ("location", "/y;jsessionid=ABC.s1?q=1#f"),
            (
                "content-location",
                "http://other.example/z;jsessionid=ABC.s1/t",
            ),
            ("refresh", "5; url=/r;jsessionid=ABC.s1"),
            (
                "link",
                "</a;jsessionid=ABC.s1>; rel=next, </b;jsessionid=QQQ.s1>; rel=prev",
            ),
        ],
    );
    assert_eq!((&*moved.backend, moved.parameter.as_deref()), ("s2", None));
    assert!(
        moved.set().is_empty(),
        "the browser has no cookie, so it gets none"
    );
    let field = |name: &'static str| texts(&moved.headers, HeaderName::from_static(name)).join("|");
    assert_eq!(field("location"), "/y;jsessionid=ABC.s2?q=1#f");
    assert_eq!(
        field("content-location"),
        "http://other.example/z;jsessionid=ABC.s2/t"
    );
    assert_eq!(field("refresh"), "5; url=/r;jsessionid=ABC.s2");
    assert_eq!(
        field("link"),
        "</a;jsessionid=ABC.s2>; rel=next, </b;jsessionid=QQQ.s1>; rel=prev"
    );
    let later = exchange(
        &view,
        "/y;jsessionid=ABC.s2",
        &["JSESSIONID=ABC.s2"],
        NOTHING,
    );
    assert_eq!(later.parameter.as_deref(), Some("ABC.s1"));
    assert_eq!(later.cookies, ["JSESSIONID=ABC.s1"]);
    // With the same id in a cookie as well, the cookie follows too.
    let both = exchange(
        &view,
        "/;jsessionid=DEF.s1",
        &["JSESSIONID=DEF.s1"],
        NOTHING,
    );
    assert_eq!(both.set(), ["JSESSIONID=DEF.s2; Path=/; HttpOnly"]);
    // A parameter beside the cookie that leads.
    let beside = exchange(
        &view,
        "/;jsessionid=ABC.zz",
        &["JSESSIONID=ABC.s2"],
        NOTHING,
    );
    assert_eq!(beside.parameter.as_deref(), Some("ABC.s1"));
}

#[test]
fn addresses_of_servers_without_routes() {
    let view = Spec("s1 s2:drain").view(route(false));
    let done = exchange(
        &view,
        "/",
        &[],
        &[
            ("set-cookie", "JSESSIONID=ABC"),
            ("location", "http://here.example/;jsessionid=ABC"),
            ("link", "<//elsewhere.example/;jsessionid=FOREIGN>"),
            ("refresh", "1;url=/;jsessionid=DEF"),
        ],
    );
    let field = |name: &'static str| texts(&done.headers, HeaderName::from_static(name)).join("|");
    assert_eq!(field("location"), "http://here.example/;jsessionid=ABC.s1");
    assert_eq!(field("link"), "<//elsewhere.example/;jsessionid=FOREIGN>");
    assert_eq!(field("refresh"), "1;url=/;jsessionid=DEF.s1");
    let next = exchange(&view, "/;jsessionid=DEF.s1", &[], NOTHING);
    assert_eq!(next.parameter.as_deref(), Some("DEF"));
}

#[test]
fn attributes_are_those_of_the_application() {
    let before = Spec("s1 s2:drain").view(route(false));
    for (path, field) in [
        (
            "/a",
            "JSESSIONID=1.s1; Path=/a; HttpOnly; Expires=Thu, 01 Jan 2099 00:00:00 GMT",
        ),
        (
            "/b",
            "JSESSIONID=2.s1; Path=/b; Secure; Domain=example.org; Max-Age=600; Partitioned",
        ),
    ] {
        let _ = exchange(&before, path, &[], &[("set-cookie", field)]);
    }
    let view = after(&before, "s1:down s2");
    let set = |path: &str| {
        exchange(&view, path, &["JSESSIONID=3.s1"], NOTHING)
            .set()
            .join("|")
    };
    assert_eq!(set("/a/x"), "JSESSIONID=3.s2; Path=/a; HttpOnly");
    assert_eq!(
        set("/b"),
        "JSESSIONID=3.s2; Path=/b; Secure; Domain=example.org; Max-Age=600; Partitioned"
    );
    assert_eq!(set("/c"), "JSESSIONID=3.s2; Path=/; HttpOnly");
    // Never seen, over TLS.
    let affinity = read_at(&view, "/c", &cookies(&["JSESSIONID=4.s1"]));
    let mut response = head(&[]);
    rewrite_response(&view, &affinity, at(&view, "s2"), true, &mut response);
    let told = texts(&response.headers, SET_COOKIE);
    assert_eq!(told, ["JSESSIONID=4.s2; Path=/; Secure; HttpOnly"]);
}

#[test]
fn of_several_cookies_only_the_session_that_moves_is_told() {
    let view = Spec("s1:down s2 s3").view(route(false));
    // The second names who serves it: nothing has moved.
    let stays = exchange(&view, "/", &["JSESSIONID=A.s1; JSESSIONID=B.s2"], NOTHING);
    assert_eq!((&*stays.backend, stays.set().len()), ("s2", 0));
    assert_eq!(stays.cookies, ["JSESSIONID=A.s1; JSESSIONID=B.s2"]);
    // The first that names a backend leads, not the first of all.
    let moved = exchange(&view, "/", &["JSESSIONID=A.zz; JSESSIONID=B.s1"], NOTHING);
    assert_eq!(
        moved.set(),
        [format!("JSESSIONID=B.{}; Path=/; HttpOnly", moved.backend)]
    );
}

#[test]
fn what_may_not_stand_in_a_cookie_is_not_told() {
    let view = Spec("s1:down s2").view(route(false));
    let long = format!("JSESSIONID={}.s1", "x".repeat(2000));
    for sent in [
        "JSESSIONID=a b.s1",
        "JSESSIONID=a,b.s1",
        "JSESSIONID=a\u{e9}.s1",
        "JSESSIONID=.s1",
        &long,
    ] {
        let done = exchange(&view, "/", &[sent], NOTHING);
        assert_eq!((&*done.backend, done.set().len()), ("s2", 0), "{sent}");
        assert_eq!(done.cookies, [sent]);
    }
    assert!(view.live.sticky.ids.is_empty());
}

#[test]
fn rewriting_a_request_twice_is_rewriting_it_once() {
    let view = Spec("s1:down s2").view(route(false));
    let _ = exchange(&view, "/", &["JSESSIONID=ABC.s1"], NOTHING);
    let mut headers = cookies(&["JSESSIONID=ABC.s2"]);
    let affinity = read_at(&view, "/", &headers);
    for _ in 0..2 {
        rewrite_request(&view, &affinity, 1, &mut headers);
        assert_eq!(texts(&headers, COOKIE), ["JSESSIONID=ABC.s1"]);
    }
}
