//! Sessions stay where they are, whatever the kind of stickiness; and when their server
//! goes, browser and servers see what they would of one server that stays.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use balancer_tests::http::raw::{Answer, Raw};
use balancer_tests::http::web::{CHECK, HTTP, Web, frontend, pool, pool_with, write};

const ROUTE: &str = "[pool.sticky]\ntype = \"route\"\n";

fn route_pool(apps: usize) -> String {
    frontend("") + &pool(apps, &format!("{CHECK}{ROUTE}"))
}

/// A session at a server: cookie value and server's name.
fn new_session(web: &Web) -> (String, String) {
    let answer = web.client().get("/session");
    let id = answer
        .cookie("JSESSIONID")
        .expect("a new session")
        .to_owned();
    (id, answer.server().to_owned())
}

/// A session at this server.
fn session_at(web: &Web, server: &str) -> String {
    for _ in 0..20 {
        let (id, at) = new_session(web);
        if at == server {
            return id;
        }
    }
    panic!("no session at {server} in 20 attempts");
}

fn with_cookie(web: &Web, cookie: &str) -> Answer {
    web.client().get_with("/session", &[("Cookie", cookie)])
}

fn kill(web: &mut Web, server: &str) {
    web.app(server).kill9();
    web.wait_health(server, "down");
}

#[test]
fn route_in_the_cookie_leads_to_its_server() {
    let web = Web::new(3, |_| route_pool(3));
    let mut servers = BTreeSet::new();
    for _ in 0..6 {
        let (id, server) = new_session(&web);
        assert!(id.ends_with(&format!(".{server}")), "{id} at {server}");
        for visit in 2..6 {
            let answer = with_cookie(&web, &format!("theme=dark; JSESSIONID={id}; lang=en"));
            assert_eq!(answer.server(), server);
            assert_eq!(answer.one("x-visits"), Some(visit.to_string().as_str()));
            assert_eq!(answer.cookie("JSESSIONID"), None, "nothing has changed");
        }
        servers.insert(server);
    }
    assert_eq!(servers.len(), 3, "{servers:?}");
}

#[test]
fn route_in_the_path_comes_before_the_cookie() {
    let web = Web::new(3, |_| route_pool(3));
    let client = || web.client();
    for server in ["s0", "s1", "s2"] {
        for _ in 0..3 {
            let path = format!("/session;jsessionid=ABC.{server}");
            let answer = client().get_with(&path, &[("Cookie", "JSESSIONID=X.s0")]);
            assert_eq!(answer.server(), server, "{path}");
            assert_eq!(
                answer.one("x-session"),
                Some(format!("ABC.{server}").as_str())
            );
        }
        let path = format!("/session;jsessionid=ABC.{server}?a=b");
        assert_eq!(client().get(&path).server(), server, "{path}");
    }
    let seen = web.log();
    assert!(
        seen.iter()
            .all(|seen| seen.target.contains(";jsessionid=ABC.")),
        "{seen:?}"
    );
}

#[test]
fn every_cookie_of_the_name_is_tried() {
    let web = Web::new(3, |_| route_pool(3));
    for _ in 0..4 {
        let answer = with_cookie(&web, "JSESSIONID=A.unknown; JSESSIONID=B; JSESSIONID=C.s2");
        assert_eq!(answer.server(), "s2");
    }
    // The route is what follows the FIRST dot.
    for _ in 0..4 {
        assert_eq!(with_cookie(&web, "JSESSIONID=A.s1").server(), "s1");
    }
    let mut servers = BTreeSet::new();
    for _ in 0..6 {
        servers.insert(with_cookie(&web, "JSESSIONID=A.nobody").server().to_owned());
        servers.insert(with_cookie(&web, "XJSESSIONID=A.s1").server().to_owned());
    }
    assert_eq!(
        servers.len(),
        3,
        "an unknown route binds nobody: {servers:?}"
    );
}

#[test]
fn failover_renames_the_session_for_the_browser_and_not_for_the_servers() {
    let mut web = Web::new(3, |_| route_pool(3));
    let issued = session_at(&web, "s1");
    assert_eq!(
        with_cookie(&web, &format!("JSESSIONID={issued}")).server(),
        "s1"
    );
    kill(&mut web, "s1");
    web.apps
        .iter()
        .filter(|app| app.name() != "s1")
        .for_each(|app| app.clear());

    let moved = with_cookie(&web, &format!("JSESSIONID={issued}"));
    let server = moved.server().to_owned();
    assert_ne!(server, "s1");
    let id = issued.split('.').next().expect("an id");
    let renamed = format!("{id}.{server}");
    assert_eq!(
        moved.cookie("JSESSIONID"),
        Some(renamed.as_str()),
        "{moved:?}"
    );
    // The server saw the id as it was issued: its store knows no other.
    assert_eq!(moved.one("x-session"), Some(issued.as_str()));

    // From now on the browser comes with the new name, and stays.
    for visit in 2..5 {
        let answer = with_cookie(&web, &format!("JSESSIONID={renamed}"));
        assert_eq!(answer.server(), server);
        assert_eq!(answer.one("x-session"), Some(issued.as_str()), "{answer:?}");
        assert_eq!(answer.one("x-visits"), Some(visit.to_string().as_str()));
    }
    // Its old server comes back: the session stays where it is.
    web.app("s1").restart();
    web.wait_health("s1", "up");
    let answer = with_cookie(&web, &format!("JSESSIONID={renamed}"));
    assert_eq!(answer.server(), server);
    // The same in the path.
    let path = format!("/session;jsessionid={renamed}");
    let answer = web.client().get(&path);
    assert_eq!(answer.server(), server);
    assert_eq!(answer.one("x-session"), Some(issued.as_str()));
}

#[test]
fn failover_of_one_session_leads_to_one_server_and_of_many_to_all() {
    let mut web = Web::new(4, |_| route_pool(4));
    kill(&mut web, "s0");
    let mut servers = BTreeSet::new();
    for session in 0..24 {
        let cookie = format!("JSESSIONID={session:04}ABC.s0");
        let first = with_cookie(&web, &cookie).server().to_owned();
        for _ in 0..3 {
            // Another tab, which has not seen the new name yet.
            assert_eq!(with_cookie(&web, &cookie).server(), first, "{cookie}");
        }
        servers.insert(first);
    }
    assert_eq!(servers.len(), 3, "{servers:?}");
}

#[test]
fn a_server_that_answers_with_a_session_of_its_own_wins() {
    let mut web = Web::new(2, |_| route_pool(2));
    kill(&mut web, "s0");
    let answer = web.client().get_with(
        "/cookie?JSESSIONID=NEW.s1",
        &[("Cookie", "JSESSIONID=OLD.s0")],
    );
    let all: Vec<&str> = answer.cookies().iter().map(|c| c.1).collect();
    assert_eq!(all, ["NEW.s1"], "{answer:?}");
    let next = with_cookie(&web, "JSESSIONID=NEW.s1");
    assert_eq!(next.one("x-session"), Some("NEW.s1"));
}

#[test]
fn force_refuses_instead_of_moving() {
    let mut web = Web::new(2, |_| {
        frontend("") + &pool(2, &format!("{CHECK}{ROUTE}force = true\n"))
    });
    kill(&mut web, "s0");
    let answer = with_cookie(&web, "JSESSIONID=A.s0");
    assert_eq!(answer.status, 503);
    assert_eq!(with_cookie(&web, "JSESSIONID=A.s1").status, 200);
    assert_eq!(web.client().get("/session").server(), "s1");
}

#[test]
fn domain_and_redirect_say_who_stands_in() {
    let keys = |i: usize| match i {
        0 | 1 => "domain = \"east\"\n".to_owned() + &format!("route = \"east.s{i}\"\n"),
        2 => "route = \"west.s2\"\ndomain = \"west\"\nredirect = \"spare\"\n".to_owned(),
        _ => "route = \"spare\"\nactivation = \"drain\"\n".to_owned(),
    };
    let mut web = Web::new(4, |_| {
        frontend("") + &pool_with(4, &format!("{CHECK}{ROUTE}"), keys)
    });
    assert_eq!(with_cookie(&web, "JSESSIONID=A.east.s0").server(), "s0");
    kill(&mut web, "s0");
    for session in 0..8 {
        let answer = with_cookie(&web, &format!("JSESSIONID={session}A.east.s0"));
        assert_eq!(answer.server(), "s1", "its domain's other member");
        let renamed = format!("{session}A.east.s1");
        assert_eq!(answer.cookie("JSESSIONID"), Some(renamed.as_str()));
    }
    kill(&mut web, "s2");
    for session in 0..4 {
        // A hot standby that gets nothing else.
        let answer = with_cookie(&web, &format!("JSESSIONID={session}A.west.s2"));
        assert_eq!(answer.server(), "s3");
    }
    for _ in 0..6 {
        assert_eq!(web.client().get("/session").server(), "s1");
    }
}

#[test]
fn activation_holds_for_sessions_as_mod_jk_says() {
    let web = Web::new(3, |_| route_pool(3));
    web.agent.order(&["drain", "app/s1"]);
    for _ in 0..4 {
        assert_eq!(
            with_cookie(&web, "JSESSIONID=A.s1").server(),
            "s1",
            "a drain keeps sessions"
        );
    }
    for _ in 0..9 {
        assert_ne!(
            web.client().get("/session").server(),
            "s1",
            "and takes no new ones"
        );
    }
    web.agent.order(&["stop", "app/s1"]);
    for _ in 0..4 {
        assert_ne!(with_cookie(&web, "JSESSIONID=A.s1").server(), "s1");
    }
    web.agent.order(&["activate", "app/s1"]);
    assert_eq!(with_cookie(&web, "JSESSIONID=B.s1").server(), "s1");
}

fn cookie_pool(dir: &Path, more: &str) -> String {
    let key = write(dir, "cookie.key", [7u8; 48]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("permissions");
    let sticky = format!(
        "[pool.sticky]\ntype = \"cookie\"\nkey_file = \"{}\"\n{more}",
        key.display()
    );
    frontend("") + &pool(3, &format!("{CHECK}{sticky}"))
}

#[test]
fn an_inserted_cookie_binds_and_moves_with_its_server() {
    for kind in ["signed", "opaque"] {
        let mut web = Web::new(3, |dir| {
            cookie_pool(dir, &format!("cookie = \"LB\"\nvalue = \"{kind}\"\n"))
        });
        let first = web.client().get("/");
        let (server, value) = (
            first.server().to_owned(),
            first.cookie("LB").expect("a cookie"),
        );
        // With the dot: two letters alone are in a sealed value by chance now and then.
        let readable = value.starts_with(&format!("{server}."));
        assert_eq!(readable, kind == "signed", "{kind}: {value}");
        let cookie = format!("a=b; LB={value}; c=d");
        for _ in 0..5 {
            let answer = web.client().get_with("/", &[("Cookie", &cookie)]);
            assert_eq!(answer.server(), server);
            assert_eq!(answer.cookie("LB"), None, "it has the cookie already");
        }
        // It is the balancer's: servers see only their own.
        let seen = web.log();
        let cookies: Vec<_> = seen.iter().filter_map(|seen| seen.one("cookie")).collect();
        assert!(
            !cookies.is_empty() && cookies.iter().all(|c| *c == "a=b; c=d"),
            "{cookies:?}"
        );
        // A reload changes nothing for those who have it.
        web.agent.order(&["reload"]);
        assert_eq!(
            web.client().get_with("/", &[("Cookie", &cookie)]).server(),
            server
        );

        kill(&mut web, &server);
        let moved = web.client().get_with("/", &[("Cookie", &cookie)]);
        assert_ne!(moved.server(), server);
        let renewed = moved.cookie("LB").expect("a new cookie").to_owned();
        assert_ne!(renewed, value);
        let cookie = format!("LB={renewed}");
        for _ in 0..4 {
            let answer = web.client().get_with("/", &[("Cookie", &cookie)]);
            assert_eq!(answer.server(), moved.server());
        }
    }
}

#[test]
fn a_forged_cookie_binds_nobody() {
    let web = Web::new(3, |dir| {
        cookie_pool(dir, "cookie = \"LB\"\nvalue = \"signed\"\n")
    });
    let real = web
        .client()
        .get("/")
        .cookie("LB")
        .expect("a cookie")
        .to_owned();
    let mut flipped = real.clone().into_bytes();
    let last = flipped.len() - 1;
    flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
    let other = ["s0", "s1", "s2"].map(|s| real.replacen("s0", s, 1).replacen("s1", s, 1));
    let mut forged = vec![
        String::from_utf8(flipped).expect("text"),
        "s1".into(),
        "s1.".into(),
        String::new(),
        "%00".into(),
        "A".repeat(4000),
    ];
    forged.extend(other.into_iter().filter(|value| *value != real));
    for value in forged {
        let mut servers = BTreeSet::new();
        for _ in 0..3 {
            let answer = web
                .client()
                .get_with("/", &[("Cookie", &format!("LB={value}"))]);
            assert!(
                answer.cookie("LB").is_some(),
                "{value:.40} was believed: {answer:?}"
            );
            servers.insert(answer.server().to_owned());
        }
        assert_eq!(servers.len(), 3, "{value:.40}");
    }
}

#[test]
fn an_inserted_cookie_has_its_attributes() {
    let web = Web::new(3, |dir| {
        cookie_pool(
            dir,
            "cookie = \"LB\"\npath = \"/app\"\ndomain = \"example.org\"\nmax_age = \"1h\"\n\
             secure = true\nhttp_only = true\nsame_site = \"strict\"\n",
        )
    });
    let answer = web.client().get("/");
    let cookies = answer.cookies();
    let attributes: BTreeSet<String> = cookies[0]
        .2
        .split(';')
        .map(|attribute| attribute.trim().to_ascii_lowercase())
        .collect();
    for wanted in [
        "path=/app",
        "domain=example.org",
        "max-age=3600",
        "secure",
        "httponly",
        "samesite=strict",
    ] {
        assert!(attributes.contains(wanted), "{wanted} in {attributes:?}");
    }
}

#[test]
fn a_learned_cookie_binds_from_the_moment_it_is_set() {
    let mut web = Web::new(3, |_| {
        let sticky = "[pool.sticky]\ntype = \"learn\"\ncookie = \"SID\"\nidle = \"10m\"\n";
        frontend("") + &pool(3, &format!("{CHECK}{sticky}"))
    });
    let mut bound = Vec::new();
    for session in 0..6 {
        let answer = web.client().get(&format!("/cookie?SID=secret{session}"));
        assert_eq!(
            answer.cookie("SID"),
            Some(format!("secret{session}").as_str())
        );
        bound.push((session, answer.server().to_owned()));
    }
    let ask = |web: &Web, session: i32| {
        let cookie = format!("SID=secret{session}");
        web.client()
            .get_with("/", &[("Cookie", &cookie)])
            .server()
            .to_owned()
    };
    for (session, server) in bound.iter().cycle().take(24) {
        assert_eq!(ask(&web, *session), *server);
    }
    let mut servers = BTreeSet::new();
    for unknown in 100..130 {
        servers.insert(ask(&web, unknown));
    }
    assert_eq!(servers.len(), 3, "nobody has set these: {servers:?}");
    // A reload forgets nothing.
    web.agent.order(&["reload"]);
    for (session, server) in &bound {
        assert_eq!(ask(&web, *session), *server, "after a reload");
    }
    let (session, server) = bound[0].clone();
    kill(&mut web, &server);
    let moved = ask(&web, session);
    assert_ne!(moved, server);
    for _ in 0..5 {
        assert_eq!(ask(&web, session), moved);
    }
}

#[test]
fn a_source_stays_with_its_server() {
    let mut web = Web::new(3, |_| {
        frontend("") + &pool(3, &format!("{CHECK}[pool.sticky]\ntype = \"source\"\n"))
    });
    let ask = |web: &Web, host: u8| {
        let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
        let mut client = Raw::connect_from(&web.ns, from, HTTP).expect("a connection");
        client.get("/").server().to_owned()
    };
    let before: Vec<String> = (2..32).map(|host| ask(&web, host)).collect();
    let servers: BTreeSet<&String> = before.iter().collect();
    assert_eq!(servers.len(), 3, "{before:?}");
    let again: Vec<String> = (2..32).map(|host| ask(&web, host)).collect();
    assert_eq!(before, again);
    kill(&mut web, "s1");
    let during: Vec<String> = (2..32).map(|host| ask(&web, host)).collect();
    for (old, new) in before.iter().zip(&during) {
        // Only those of the dead server move.
        assert!(
            if old == "s1" { new != "s1" } else { new == old },
            "{before:?} {during:?}"
        );
    }
    web.app("s1").restart();
    web.wait_health("s1", "up");
    let after: Vec<String> = (2..32).map(|host| ask(&web, host)).collect();
    assert_eq!(before, after);
}
