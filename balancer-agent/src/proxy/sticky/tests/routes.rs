//! mod_jk's rules as a table: which backend an id leads to.

use super::*;

/// Who gets the request: a backend, `*` for anybody usable, `503` when force forbids.
fn who(spec: &str, force: bool, path: &str, sent: &[&str]) -> String {
    let view = Spec(spec).view(route(force));
    let affinity = read_at(&view, path, &cookies(sent));
    // A session's choice is its own; without one it goes round.
    let all: std::collections::BTreeSet<String> = (0..8)
        .map(|_| match lease(&view, &affinity) {
            Ok(lease) => lease.backend().name.to_string(),
            Err(NoBackend::Forced) => "503".to_owned(),
            Err(error) => error.to_string(),
        })
        .collect();
    match all.len() {
        1 => all.into_iter().next().unwrap(),
        _ => "*".to_owned(),
    }
}

#[test]
fn the_table() {
    const C: &str = "JSESSIONID=";
    let c = |id: &str| format!("{C}{id}");
    // Pool, path, cookie fields, who, who with force.
    #[rustfmt::skip]
    let table: Vec<(&str, &str, Vec<String>, &str, &str)> = vec![
        // Where the id is.
        ("s1 s2 s3", "/", vec![], "*", "*"),
        ("s1 s2 s3", "/", vec![c("A.s1")], "s1", "s1"),
        ("s1 s2 s3", "/", vec![c("A.s2")], "s2", "s2"),
        ("s1 s2 s3", "/", vec!["x=1; JSESSIONID=A.s3; y=2".into()], "s3", "s3"),
        ("s1 s2 s3", "/", vec!["x=1".into(), c("A.s3")], "s3", "s3"),
        ("s1 s2 s3", "/", vec![c("\"A.s3\"")], "s3", "s3"),
        ("s1 s2 s3", "/", vec!["JSESSIONID = A.s3 ".into()], "s3", "s3"),
        ("s1 s2 s3", "/", vec!["jsessionid=A.s3".into()], "*", "*"),
        ("s1 s2 s3", "/", vec!["XJSESSIONID=A.s3; JSESSIONIDX=A.s2".into()], "*", "*"),
        ("s1 s2 s3", "/", vec![c("")], "*", "*"),
        ("s1 s2 s3", "/", vec!["JSESSIONID".into()], "*", "*"),
        ("s1 s2 s3", "/x;jsessionid=A.s2", vec![], "s2", "s2"),
        ("s1 s2 s3", "/x;jsessionid=A.s2/y", vec![], "s2", "s2"),
        ("s1 s2 s3", "/x;a=b;jsessionid=A.s2;c=d", vec![], "s2", "s2"),
        ("s1 s2 s3", "/x;JSESSIONID=A.s2", vec![], "*", "*"),
        ("s1 s2 s3", "/x;jsessionid=", vec![], "*", "*"),
        ("s1 s2 s3", "/jsessionid=A.s2", vec![], "*", "*"),
        // The parameter goes first, the cookies after it in their order.
        ("s1 s2 s3", "/x;jsessionid=A.s2", vec![c("A.s1")], "s2", "s2"),
        ("s1 s2:down s3", "/x;jsessionid=A.s2", vec![c("A.s1")], "s1", "s1"),
        ("s1 s2 s3", "/x;jsessionid=A", vec![c("A.s1")], "s1", "s1"),
        ("s1 s2 s3", "/x;jsessionid=A.zz", vec![c("A.s1")], "s1", "s1"),
        ("s1 s2 s3", "/", vec![c("A.s3"), c("B.s1")], "s3", "s3"),
        ("s1 s2 s3", "/", vec!["JSESSIONID=A.s3; JSESSIONID=B.s1".into()], "s3", "s3"),
        ("s1 s2 s3", "/", vec!["JSESSIONID=A; JSESSIONID=B.s1".into()], "s1", "s1"),
        ("s1 s2 s3:down", "/", vec!["JSESSIONID=A.s3; JSESSIONID=B.s1".into()], "s1", "s1"),
        ("s1:down s2 s3:down", "/", vec!["JSESSIONID=A.s3; JSESSIONID=B.s1; JSESSIONID=C.s2".into()], "s2", "s2"),
        // The first dot.
        ("s1 s2 s3", "/", vec![c("A.B.s1")], "?", "503"),
        ("s1 s2 s1.x", "/", vec![c("A.s1.x")], "s1.x", "s1.x"),
        ("s1 s2 s3", "/", vec![c(".s2")], "s2", "s2"),
        ("s1 s2 s3", "/", vec![c("A..s2")], "?", "503"),
        ("s1 s2 s3", "/", vec![c("A.")], "?", "503"),
        ("s1 s2 s3", "/", vec![c("A.S1")], "?", "503"),
        ("s1 s2 s3", "/", vec![c("A.s")], "?", "503"),
        ("s1 s2 s3", "/", vec![c("A.s11")], "?", "503"),
        ("s1 s2 s3", "/", vec![c("A")], "?", "503"),
        ("a:route=x b:route=a", "/", vec![c("A.a")], "b", "b"),
        // Health and activation.
        ("s1:drain s2 s3", "/", vec![c("A.s1")], "s1", "s1"),
        ("s1:w=0 s2 s3", "/", vec![c("A.s1")], "s1", "s1"),
        ("s1:p=5 s2 s3", "/", vec![c("A.s1")], "s1", "s1"),
        ("s1:stopped s2:down s3", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:down s2:down s3", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:down s2:drain s3", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:drain,down s2:drain s3", "/", vec![c("A.s1")], "s3", "503"),
        // Distance.
        ("s1:down s2:p=1 s3", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:down s2:p=1 s3:p=2", "/", vec![c("A.s1")], "s2", "503"),
        // Redirect.
        ("s1:down,redirect=s2 s2 s3", "/", vec![c("A.s1")], "s2", "503"),
        ("s1:down,redirect=s2 s2:drain s3", "/", vec![c("A.s1")], "s2", "503"),
        ("s1:stopped,redirect=s2 s2 s3", "/", vec![c("A.s1")], "s2", "503"),
        ("s1:down,redirect=s2 s2:stopped s3", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:redirect=s2 s2 s3", "/", vec![c("A.s1")], "s1", "s1"),
        ("s1:drain,redirect=s2 s2 s3", "/", vec![c("A.s1")], "s1", "s1"),
        ("s1:down,redirect=s2 s2:down,redirect=s3 s3 s4:p=1", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:down,redirect=s2 s2 s3", "/", vec![c("A.s1"), c("B.s3")], "s2", "s3"),
        // Domains.
        ("s1:down,domain=d s2 s3:domain=d", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:down,domain=d s2 s3:domain=d,drain s4:down", "/", vec![c("A.s1")], "s2", "503"),
        ("s1:down,domain=d s2 s3:domain=d,p=1 s4:domain=d,p=2", "/", vec![c("A.s1")], "s3", "503"),
        ("s1:domain=d s2:domain=e", "/", vec![c("A.d")], "s1", "s1"),
        ("s1:domain=d s2:domain=e", "/", vec![c("A.e.s9")], "s2", "s2"),
        ("s1:domain=d s2:domain=e", "/", vec![c("A.d.e")], "s1", "s1"),
        ("s1:domain=d s2", "/", vec![c("A.dd")], "?", "503"),
        ("s1:domain=dd s2", "/", vec![c("A.d")], "?", "503"),
        ("s1:domain=d,down s2", "/", vec![c("A.d.s1")], "s2", "503"),
        ("s1:domain=d,drain s2", "/", vec![c("A.d.s1")], "s2", "503"),
        ("d:domain=x s2:domain=d", "/", vec![c("A.d")], "d", "d"),
        ("s1:domain=d,redirect=s3,down s2:domain=d s3", "/", vec![c("A.s1")], "s3", "503"),
        // Nothing is left.
        ("s1:down s2:drain", "/", vec![c("A.s1")], "no backend of the pool is usable", "503"),
        ("s1:down s2:drain", "/", vec![c("A.s2")], "s2", "s2"),
    ];
    assert!(table.len() >= 60);
    for (spec, path, sent, plain, forced) in table {
        let sent: Vec<&str> = sent.iter().map(|s| &**s).collect();
        let told = format!("{spec} {path} {sent:?}");
        let have = who(spec, false, path, &sent);
        match plain {
            // One of the usable ones, always the same: the session's key decides.
            "?" => assert!(
                have != "*" && Spec(spec).0.contains(&have),
                "{told}: {have}"
            ),
            want => assert_eq!(have, want, "{told}"),
        }
        assert_eq!(who(spec, true, path, &sent), forced, "{told}, forced");
    }
}

#[test]
fn no_parameter_is_looked_for_without_a_name() {
    let view = Spec("s1 s2").view(with(Sticky::Route(StickyRoute {
        cookie: "S".into(),
        parameter: "".into(),
        force: false,
    })));
    let affinity = read_at(&view, "/x;jsessionid=A.s1;=A.s1", &HeaderMap::new());
    assert_eq!(affinity.wish(), &Wish::Any);
}

#[test]
fn the_log_gets_routes_that_exist_and_nothing_of_an_id() {
    let view = Spec("s1 s2:domain=d").view(route(false));
    let told = |id: &str| {
        let affinity = read_at(&view, "/", &cookies(&[&format!("JSESSIONID={id}")]));
        affinity.route(&view).map(str::to_owned)
    };
    assert_eq!(told("SECRET.s1").as_deref(), Some("s1"));
    assert_eq!(told("SECRET.d.s9").as_deref(), Some("d"));
    assert_eq!(told("header.SECRET.signature"), None);
    assert_eq!(told("SECRET"), None);
    assert_eq!(explain(&view, "x.s2").as_deref(), Some("s2"));
    assert_eq!(explain(&view, "x.s2x"), None);
}

#[test]
fn many_cookies_are_read_up_to_a_bound() {
    let view = Spec("s1 s2").view(route(false));
    let before = "JSESSIONID=A.zz; ".repeat(cookies::SAME_NAME_MAX - 1);
    let near = format!("{before}JSESSIONID=B.s2");
    assert_eq!(
        read_at(&view, "/", &super::cookies(&[&near])).route(&view),
        Some("s2")
    );
    let far = format!("{before}JSESSIONID=A.zz; JSESSIONID=B.s2");
    assert_eq!(
        read_at(&view, "/", &super::cookies(&[&far])).route(&view),
        None
    );
}

#[test]
fn failover_is_alike_on_every_node_and_spread() {
    let one = Spec("s1:down s2 s3 s4").view(route(false));
    let other = Spec("s4 s3 s1:down s2").view(route(false));
    let mut had = std::collections::BTreeMap::new();
    for i in 0..300 {
        let sent = format!("JSESSIONID={i:08X}.s1");
        let of = |view: &std::sync::Arc<crate::proxy::balance::PoolView>| {
            let affinity = read_at(view, "/", &cookies(&[&sent]));
            lease(view, &affinity).unwrap().backend().name.to_string()
        };
        assert_eq!(of(&one), of(&other));
        *had.entry(of(&one)).or_insert(0) += 1;
    }
    assert!(had.len() == 3 && had.values().all(|&n| n > 60), "{had:?}");
}
