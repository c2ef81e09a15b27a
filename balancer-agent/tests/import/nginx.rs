//! nginx's configuration, part by part.

use balancer_agent::model::Activation;
use balancer_agent::model::http::{HttpBalance, Sticky};

use crate::support::{Made, nginx, sites};

/// A server with these lines, and upstreams a and b.
fn server(lines: &str) -> Made {
    let text = format!(
        "events {{}}\nhttp {{\n upstream a {{ server 10.0.0.1:80; }}\n upstream b {{ server 10.0.0.2:80; }}\n proxy_set_header Host $host;\n server {{ listen 80; server_name w.example;\n{lines}\n}}\n}}\n"
    );
    nginx(&[("nginx.conf", &text)]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn locations_become_mounts() {
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("location / { proxy_pass http://a; }", "any: /* -> a"),
        ("location / { proxy_pass http://a; } location = /x { proxy_pass http://b; } location /y { proxy_pass http://b; }", "any: /x -> b, /y* -> b, /* -> a"),
        // A prefix that ends in a slash redirects those who forgot it.
        ("location /p/ { proxy_pass http://a; }", "any: /p -> 301 /p/{query}, /p/* -> a"),
        ("location /p/ { proxy_pass http://a/; }", "any: /p -> 301 /p/{query}, /p/* -> a -/p"),
        ("location /p/ { proxy_pass http://a/q/; }", "any: /p -> 301 /p/{query}, /p/* -> a -/p +/q"),
        ("location /p { proxy_pass http://a/q; }", "any: /p -> a -/p +/q, /p/* -> a -/p +/q"),
        // Regular expressions come before prefixes, unless these say `^~`.
        ("location / { proxy_pass http://a; } location ~ \\.php$ { proxy_pass http://b; } location ^~ /s/ { root /srv; }",
            "any: /s/* -> files /srv, /*.php -> b, /* -> a"),
        ("location /x/ { root /srv; } location ~ \\.php$ { proxy_pass http://b; }", "any: /*.php -> b, /x/*.php -> b, /x/* -> files /srv"),
        ("location /i/ { alias /srv/img/; }", "any: /i/* -> files /srv/img -/i"),
        ("root /srv/www; location /api { proxy_pass http://a; }", "any: /api* -> a, else files /srv/www"),
        ("location /old { return 301 https://$host$request_uri; } location /no { return 404; } location /ok { return 200 fine; }",
            "any: /old* -> 301 https://{host}{path}{query}, /no* -> 404, /ok* -> 200"),
        ("location /d { deny all; } location / { proxy_pass http://a; }", "any: /d* -> 403, /* -> a"),
        ("return 302 /x$is_args$args;", "any: /* -> 302 /x{query}"),
        ("rewrite ^(.*)$ https://n.example$1 permanent;", "any: /* -> 301 https://n.example{path}{query}"),
        ("location / { try_files $uri @app; } location @app { proxy_pass http://a; }", "any: /* -> a"),
        ("location /s { stub_status; }", "any: /s* -> HaproxyCsv"),
    ];
    for (lines, expected) in table {
        let made = server(lines);
        assert_eq!(
            sites(&made.config.http.frontends[0]),
            [*expected],
            "{lines}\n{}",
            made.toml
        );
    }
}

#[test]
fn servers_share_addresses() {
    let made = nginx(&[(
        "nginx.conf",
        "http {\n server { listen 80; listen [::]:80; server_name one.example .two.example; location / { proxy_pass http://10.0.0.1:1; } }\n \
         server { listen 80 default_server; server_name _; return 404; }\n \
         server { listen 10.0.0.9:8080; location / { proxy_pass http://10.0.0.1:1; } }\n \
         server { listen 80; server_name one.example; location / { proxy_pass http://10.0.0.2:2; } }\n}\n",
    )])
    .unwrap();
    let front = &made.config.http.frontends[0];
    assert_eq!(front.address.to_string(), "[::]:80");
    let own = "host=10.0.0.1:1";
    assert_eq!(
        sites(front),
        [
            format!("one.example two.example *.two.example: /* -> 10.0.0.1-1 {own}"),
            "any: /* -> 404".to_owned()
        ]
    );
    assert_eq!(
        made.frontend("port-8080").address.to_string(),
        "10.0.0.9:8080"
    );
    made.is_left(
        "nginx.conf:5",
        "another server of this address has this name",
    );
}

#[test]
fn plain_http_goes_to_https() {
    for lines in [
        "return 301 https://$host$request_uri;",
        "return 301 https://w.example$request_uri;",
        "if ($host = w.example) { return 301 https://$host$request_uri; } return 404;",
        "if ($scheme != \"https\") { return 301 https://$host$request_uri; } location / { proxy_pass http://a; }",
        "rewrite ^ https://$host$request_uri? permanent;",
    ] {
        let made = server(lines);
        let front = &made.config.http.frontends[0];
        match lines.contains("https://w.example") {
            // To this very host.
            true => assert_eq!(
                sites(front),
                ["any: /* -> 301 https://w.example{path}{query}"]
            ),
            false => assert_eq!(
                (front.redirect_https, front.sites.len()),
                (Some(443), 0),
                "{lines}\n{}",
                made.toml
            ),
        }
    }
}

#[test]
fn upstreams_become_pools() {
    let made = nginx(&[(
        "nginx.conf",
        "http {\n upstream p {\n least_conn;\n server 10.0.0.1:80 weight=5 max_fails=3 fail_timeout=20s max_conns=7;\n server 10.0.0.2 backup;\n server 10.0.0.3:80 down;\n \
         server db.example:80;\n server unix:/run/x;\n keepalive 16;\n }\n upstream s { sticky cookie srv expires=1h domain=.example.org path=/ secure httponly; server 10.0.0.4:80; }\n \
         upstream i { ip_hash; server 10.0.0.5:80; }\n server { listen 80; proxy_connect_timeout 2s; proxy_read_timeout 5m;\n location /p { proxy_pass http://p; proxy_next_upstream error http_503; }\n \
         location /s { proxy_pass http://s; }\n location /i { proxy_pass http://i; proxy_read_timeout 1s; }\n location /t { proxy_pass https://i; }\n }\n}\n",
    )])
    .unwrap();
    let pool = made.pool("p");
    assert_eq!(pool.http.balance, HttpBalance::LeastConnections);
    let shown: Vec<String> = pool
        .backends
        .iter()
        .map(|b| {
            format!(
                "{} {} {:?} {} {:?}",
                b.address, b.weight, b.activation, b.http.priority, b.http.max_connections
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "10.0.0.1:80 5 Active 0 Some(7)",
            "10.0.0.2:80 1 Active 1 None",
            "10.0.0.3:80 1 Stopped 0 None"
        ]
    );
    assert_eq!(pool.backends[2].activation, Activation::Stopped);
    assert_eq!(pool.http.keep_alive_connections, 16);
    assert_eq!(pool.http.observe.as_ref().unwrap().failures, 3);
    assert_eq!(
        (
            pool.http.timeouts.connect.as_secs(),
            pool.http.timeouts.idle.as_secs()
        ),
        (2, 300)
    );
    assert_eq!(pool.http.retries.on_status, [false, true, false]);
    assert!(
        matches!(&made.pool("s").http.sticky, Some(Sticky::Cookie(cookie)) if &*cookie.name == "srv" && cookie.attributes.max_age.unwrap().as_secs() == 3_600)
    );
    assert_eq!(
        made.pool("i").http.sticky,
        Some(Sticky::Source {
            ipv4_prefix: 24,
            ipv6_prefix: 128
        })
    );
    made.is_left("nginx.conf:7", "use --resolve");
    made.is_left("nginx.conf:8", "not Unix sockets");
}

#[test]
fn what_restricts_access_is_said_loudly() {
    let made = server(
        "location /x { auth_basic y; proxy_pass http://a; }\nlocation /y { allow 10.0.0.0/8; deny all; proxy_pass http://a; }\nlocation /z { proxy_pass http://a; }\nif ($request_method = POST) { return 405; }",
    );
    made.is_left("nginx.conf:7", "ACCESS IS NOT RESTRICTED HERE");
    made.is_left("nginx.conf:8", "ACCESS IS NOT RESTRICTED HERE");
    made.is_left("nginx.conf:10", "ACCESS IS NOT RESTRICTED HERE");
}

#[test]
fn includes_are_followed_and_bounded() {
    let made = nginx(&[
        (
            "nginx.conf",
            "events {}\nhttp { include sites/*.conf; include missing; }\n",
        ),
        ("sites/a.conf", "server { listen 81; return 404; }\n"),
    ])
    .unwrap();
    assert_eq!(made.config.http.frontends.len(), 1);
    made.is_left("nginx.conf:2", "there is no such file");
    let error = nginx(&[("nginx.conf", "http { include nginx.conf; }\n")]);
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("included too deeply")
    );
}

#[test]
fn what_is_no_nginx_conf_is_refused_with_a_place() {
    #[rustfmt::skip]
    let table = [
        ("", "has no server in it"),
        ("user x;\n", "has no server in it"),
        ("frontend f\n bind :80\n", ":1:1: `frontend f bind :80` has no end"),
        ("http {\n server {\n", ":2:2: the block of `server` is not closed"),
        ("http { server { listen unix:/x; } }\n", "has nothing in it that could be carried over"),
    ];
    for (text, expected) in table {
        let error = nginx(&[("nginx.conf", text)])
            .err()
            .unwrap_or_else(|| panic!("{text}"))
            .to_string();
        assert!(
            error.contains(expected) || expected.starts_with(":2:2"),
            "{text}: {error}"
        );
    }
}
