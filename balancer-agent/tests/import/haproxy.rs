//! HAProxy's configuration, part by part.

use balancer_agent::import::Options;
use balancer_agent::model::http::{CookieValue, HttpBalance, SameSite, Sticky, TlsVersion, Verify};
use balancer_agent::model::{Activation, CheckKind};

use crate::support::{haproxy, haproxy_with, sites};

/// A frontend `f` with these lines, and backends a, b and c.
fn web(lines: &str) -> String {
    let mut text = format!("defaults\n mode http\nfrontend f\n bind 10.0.0.1:80\n{lines}\n");
    for (i, name) in ["a", "b", "c"].iter().enumerate() {
        text += &format!("backend {name}\n server s 10.0.1.{i}:80\n");
    }
    text
}

#[test]
fn rules_become_mounts() {
    #[rustfmt::skip]
    let table: &[(&str, &[&str])] = &[
        (" default_backend a", &["any: /* -> a"]),
        (" use_backend b if { path_beg /x }\n default_backend a", &["any: /x* -> b, /* -> a"]),
        // The first rule wins, wherever mounts would have it otherwise.
        (" use_backend b if { path_end .js }\n use_backend c if { path_beg /x/ }\n default_backend a",
            &["any: /*.js -> b, /x/*.js -> b, /x/* -> c, /* -> a"]),
        (" acl h hdr(host) -i W.example:80\n acl p path /p /q\n use_backend b if h p\n use_backend c if h\n default_backend a",
            &["w.example: /p -> b, /q -> b, /* -> c", "any: /* -> a"]),
        (" use_backend b if { hdr_end(host) .example.org }\n use_backend c if { hdr(host) www.example.org }",
            &["*.example.org: /* -> b", "www.example.org: /* -> b"]),
        (" http-request deny if { path_beg /private }\n default_backend a", &["any: /private* -> 403, /* -> a"]),
        (" http-request redirect location /new/ code 301 if { path /old }\n default_backend a", &["any: /old -> 301 /new/, /* -> a"]),
        (" redirect prefix https://w.example code 308 if { hdr(host) w.example }\n default_backend a",
            &["w.example: /* -> 308 https://w.example{path}{query}", "any: /* -> a"]),
        (" http-request set-header X-A b\n http-request set-header Host i.example\n default_backend a", &["any: /* -> a host=i.example"]),
        (" use_backend b if { path_beg /x } or { path_beg /y }\n default_backend a", &["any: /x* -> b, /y* -> b, /* -> a"]),
    ];
    for (lines, expected) in table {
        let made = haproxy(&web(lines)).unwrap();
        assert_eq!(
            sites(made.frontend("f")),
            *expected,
            "{lines}\n{}",
            made.toml
        );
    }
}

#[test]
fn conditions_that_are_not_understood_are_left_over() {
    let made = haproxy(&web(
        " acl office src 10.0.0.0/8\n http-request deny if { path_beg /admin } !office\n use_backend b if { method POST }\n use_backend d if TRUE\n default_backend a",
    ))
    .unwrap();
    assert_eq!(sites(made.frontend("f")), ["any: /* -> a"]);
    made.is_left("h.cfg:6", "ACCESS IS NOT RESTRICTED HERE");
    made.is_left("h.cfg:7", "what decides is host and path, not `method`");
    made.is_left("h.cfg:8", "there is no backend d");
}

#[test]
fn listeners_have_rules_of_their_own() {
    let made = haproxy(
        "defaults\n mode http\n timeout client 20s\nfrontend f\n bind :80\n bind :::443,:::8443 ssl crt /x/a.pem crt /x/b.pem alpn h2 ssl-min-ver TLSv1.3 verify optional ca-file /x/ca.pem\n \
         redirect scheme https if !{ ssl_fc }\n http-response set-header Strict-Transport-Security max-age=1\n default_backend a\nbackend a\n server s 10.0.0.1:80\n",
    )
    .unwrap();
    let plain = made.frontend("f");
    assert_eq!((plain.redirect_https, plain.sites.len()), (Some(443), 0));
    let secure = made.frontend("f-2");
    assert_eq!(secure.address.to_string(), "[::]:443");
    assert_eq!(made.frontend("f-3").address.port(), 8443);
    assert_eq!(
        (secure.versions.http1, secure.versions.http2),
        (false, true)
    );
    let tls = secure.tls.as_ref().unwrap();
    assert_eq!((tls.certificates.len(), tls.minimum), (2, TlsVersion::V1_3));
    assert!(made.toml.contains("client_auth = \"optional\""));
    assert_eq!(sites(secure), ["any: /* -> a"]);
    assert_eq!(secure.timeouts.send.as_secs(), 20);
}

#[test]
fn both_families_are_one_frontend() {
    let made =
        haproxy("defaults\n mode http\nlisten f\n bind *:80\n bind :::80\n server s 10.0.0.1:80\n")
            .unwrap();
    assert_eq!(made.config.http.frontends.len(), 1);
    assert_eq!(made.frontend("f").address.to_string(), "[::]:80");
}

#[test]
fn servers_become_backends() {
    let made = haproxy(
        "defaults\n mode http\n timeout connect 2s\n timeout server 3m\nfrontend f\n bind :80\n default_backend b\nbackend b\n balance leastconn\n \
         option httpchk GET /up HTTP/1.1\\r\\nHost:\\ www.example.org\n http-check expect status 200-204\n default-server inter 5s fastinter 1s fall 4 rise 5\n \
         server one 10.0.0.1:80 weight 7 maxconn 9 check\n server two 10.0.0.2:80 backup check\n server three 10.0.0.3:80 backup disabled check\n \
         server name db.internal:80\n server local localhost:81 check\n server bad 10.0.0.9\n",
    )
    .unwrap();
    let pool = made.pool("b");
    assert_eq!(pool.http.balance, HttpBalance::LeastConnections);
    let shown: Vec<String> = pool
        .backends
        .iter()
        .map(|b| {
            format!(
                "{} {} {} {:?} {} {:?}",
                b.name, b.address, b.weight, b.activation, b.http.priority, b.http.max_connections
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "one 10.0.0.1:80 7 Active 0 Some(9)",
            "two 10.0.0.2:80 1 Active 1 None",
            "three 10.0.0.3:80 1 Stopped 2 None",
            "local 127.0.0.1:81 1 Active 0 None",
        ]
    );
    let CheckKind::Http { path, host, expect } = &pool.check.kind else {
        panic!("{:?}", pool.check.kind);
    };
    assert_eq!(
        (path.as_str(), host.as_deref(), &expect[..]),
        ("/up", Some("www.example.org"), &[(200, 204)][..])
    );
    assert_eq!(
        (
            pool.check.fall,
            pool.check.rise,
            pool.check.interval.as_secs(),
            pool.check.fast_interval.as_secs()
        ),
        (4, 5, 5, 1)
    );
    assert_eq!(
        (
            pool.http.timeouts.connect.as_secs(),
            pool.http.timeouts.response.as_secs()
        ),
        (2, 180)
    );
    made.is_left("h.cfg:16", "use --resolve");
    made.is_left("h.cfg:18", "it has no port");
}

#[test]
fn sessions_are_known_as_before() {
    let pool = |lines: &str| {
        let text = format!(
            "defaults\n mode http\nlisten l\n bind :80\n{lines}\n server a 10.0.0.1:80 cookie ca\n server b 10.0.0.2:80 cookie cb\n"
        );
        haproxy(&text).unwrap()
    };
    let made =
        pool(" cookie SRV insert indirect nocache secure attr SameSite=None domain .example.org");
    let Some(Sticky::Cookie(cookie)) = &made.pool("l").http.sticky else {
        panic!("{}", made.toml);
    };
    assert_eq!(&*cookie.name, "SRV");
    assert!(matches!(cookie.value, CookieValue::Signed(_)));
    assert_eq!(cookie.attributes.same_site, Some(SameSite::None));
    assert_eq!(cookie.attributes.domain.as_deref(), Some("example.org"));
    assert!(cookie.attributes.secure && !cookie.attributes.http_only);
    assert_eq!(&*made.pool("l").backends[0].http.route, "ca");
    assert!(
        made.notes
            .iter()
            .any(|note| note.contains("head -c 32 /dev/urandom")),
        "{:?}",
        made.notes
    );
    let made = pool(" cookie JSESSIONID prefix");
    assert!(
        matches!(&made.pool("l").http.sticky, Some(Sticky::Route(route)) if &*route.cookie == "JSESSIONID")
    );
    let made = pool(" appsession PHPSESSID len 52 timeout 3h");
    assert!(
        matches!(&made.pool("l").http.sticky, Some(Sticky::Learn(learn)) if &*learn.cookie == "PHPSESSID" && learn.idle.as_secs() == 10_800)
    );
    let made = pool(" stick-table type ip size 200k expire 30m\n stick on src");
    assert!(matches!(
        &made.pool("l").http.sticky,
        Some(Sticky::Source {
            ipv4_prefix: 32,
            ..
        })
    ));
    let made = pool(
        " stick-table type string len 32 size 1m expire 2h\n stick store-response res.cook(SID)\n stick match req.cook(SID)",
    );
    assert!(
        matches!(&made.pool("l").http.sticky, Some(Sticky::Learn(learn)) if &*learn.cookie == "SID" && learn.idle.as_secs() == 7_200)
    );
    let made = pool(" cookie SRV rewrite");
    assert_eq!(made.pool("l").http.sticky, None);
    made.is_left("h.cfg:5", "a cookie whose value the application writes");
}

#[test]
fn tls_to_servers_is_the_pools() {
    let made = haproxy(
        "defaults\n mode http\nlisten l\n bind :80\n server a 10.0.0.1:443 ssl verify none alpn h2\n server b 10.0.0.2:443 ssl verify none alpn h2\n server c 10.0.0.3:80\n",
    )
    .unwrap();
    let pool = made.pool("l");
    assert_eq!(pool.http.tls.as_ref().unwrap().verify, Verify::Off);
    assert_eq!(
        pool.http.protocol,
        balancer_agent::model::http::BackendProtocol::Http2
    );
    made.is_left("h.cfg:7", "TLS is for a whole pool");
}

#[test]
fn tcp_is_steered_in_the_kernel() {
    let text = "listen db\n bind *:3306\n balance source\n server a 10.0.0.1:3306 check\n server b 10.0.0.2:3306 check backup\n\
                frontend web\n mode http\n bind :80\n default_backend w\nbackend w\n mode http\n server s 10.0.0.3:80\n";
    let made = haproxy(text).unwrap();
    assert!(made.config.frontends.is_empty());
    made.is_left("h.cfg:2", "use --address");
    let options = Options {
        interfaces: vec!["eth1".into()],
        address: Some("192.0.2.1".parse().unwrap()),
        ..Options::default()
    };
    let made = haproxy_with(text, &options).unwrap();
    let front = &made.config.frontends[0];
    assert_eq!(
        (front.address.to_string().as_str(), &*front.pool),
        ("192.0.2.1:3306", "db")
    );
    assert_eq!(made.config.xdp.interfaces, ["eth1"]);
    assert_eq!(made.pool("db").backends[1].activation, Activation::Stopped);
    made.is_left("h.cfg:3", "round-robin instead");
    made.is_left("h.cfg:5", "all backends get a share");
    // Without `mode http` it is TCP there, too.
    assert_eq!(made.config.http.frontends.len(), 1);
}

#[test]
fn defaults_hold_for_what_follows() {
    let made = haproxy(
        "defaults one\n mode http\n retries 1\ndefaults two from one\n retries 5\nlisten a from one\n bind :81\n server s 10.0.0.1:80\nlisten b\n bind :82\n server s 10.0.0.1:80\n",
    )
    .unwrap();
    assert_eq!(made.pool("a").http.retries.attempts, 1);
    assert_eq!(made.pool("b").http.retries.attempts, 5);
}

#[test]
fn variables_quotes_and_line_ends() {
    let mut options = Options::default();
    options.environment.insert("PORT".into(), "8080".into());
    let text = "\u{feff}defaults\r\n mode http\r\nlisten \"l\"\r\n bind \":${PORT}\" # here\r\n http-request set-header X-A 'b # c'\r\n server s \"10.0.0.1:$PORT\"\r\n";
    let made = haproxy_with(text, &options).unwrap();
    assert_eq!(made.frontend("l").address.port(), 8080);
    assert!(made.toml.contains("value = \"b # c\""), "{}", made.toml);
}

#[test]
fn an_error_page_is_the_pools() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("503.http");
    std::fs::write(
        &page,
        "HTTP/1.0 503 Gone\r\nContent-Type: text/html\r\n\r\n<p>Back \"soon\"</p>\n",
    )
    .unwrap();
    let text = format!(
        "defaults\n mode http\nlisten l\n bind :80\n errorfile 503 {}\n errorfile 500 /x\n server s 10.0.0.1:80\n",
        page.display()
    );
    let made = haproxy(&text).unwrap();
    let maintenance = made.pool("l").http.maintenance.clone().unwrap();
    assert_eq!(&maintenance.body[..], b"<p>Back \"soon\"</p>\n");
    assert_eq!(maintenance.content_type, "text/html");
    made.is_left("h.cfg:6", "of error pages there is one");
}

#[test]
fn what_the_configuration_refuses_is_left_over_with_its_reason() {
    let made = haproxy(
        "global\n maxconn 99999999999\ndefaults\n mode http\nlisten l\n bind :80\n server a 10.0.0.1:80 weight 300\n server b 10.0.0.1:80\n server c 10.0.0.3:80\n",
    )
    .unwrap();
    made.is_left("h.cfg:2", "`max_connections` 99999999999");
    made.is_left("h.cfg:7", "`weight` 300");
    made.is_left("h.cfg:8", "10.0.0.1:80");
    assert_eq!(made.pool("l").backends.len(), 2);
}

#[test]
fn what_is_no_haproxy_cfg_is_refused_with_a_place() {
    #[rustfmt::skip]
    let table = [
        ("", "has no proxy in it"),
        ("# nothing\n", "has no proxy in it"),
        ("worker.list=a\n", ":1:1: `worker.list=a` stands before the first section"),
        ("frontend\n", ":1:1: `frontend` has no name"),
        ("listen l\n bind 'x\n", ":2:7: the quote ' is not closed"),
        ("listen l from x\n", ":1:1: there is no `defaults x`"),
        ("frontend f\n bind :80\n", "has nothing in it that could be carried over"),
        (".if 1\nlisten l\n", ":1:1: `.if` is not closed"),
    ];
    for (text, expected) in table {
        let error = haproxy(text)
            .err()
            .unwrap_or_else(|| panic!("{text}"))
            .to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
