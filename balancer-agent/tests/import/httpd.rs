//! mod_jk's workers and maps, and httpd's configuration before them.

use balancer_agent::model::Activation;
use balancer_agent::model::http::{BackendProtocol, HttpBalance, Sticky};

use crate::support::{sites, workers};

const WORKERS: &str = "worker.list=a,b,st\nworker.a.host=10.0.0.1\nworker.b.type=lb\nworker.b.balance_workers=b1,b2\nworker.b1.host=10.0.0.2\nworker.b2.host=10.0.0.3\nworker.st.type=status\n";

fn httpd(conf: &str) -> crate::support::Made {
    workers(&[("w.properties", WORKERS), ("httpd.conf", conf)]).unwrap()
}

#[test]
fn virtual_hosts_become_sites() {
    #[rustfmt::skip]
    let table: &[(&str, &[&str])] = &[
        // The main server answers where there is no virtual host.
        ("Listen 80\nDocumentRoot /srv/www\nJkMount /app/* a\n", &["any: /app/* -> a, else files /srv/www"]),
        // The first one answers for names that nobody has.
        ("Listen 80\n<VirtualHost *:80>\nServerName one.example\nJkMount /* a\n</VirtualHost>\n<VirtualHost *:80>\nServerName two.example:80\nServerAlias *.two.example two.example\nJkMount /* b\n</VirtualHost>\n",
            &["two.example *.two.example: /* -> b", "any: /* -> a"]),
        // Its own name stays its own where a wildcard would take it.
        ("Listen 80\n<VirtualHost *:80>\nServerName www.x.example\nJkMount /* a\n</VirtualHost>\n<VirtualHost *:80>\nServerName x.example\nServerAlias *.x.example\nJkMount /* b\n</VirtualHost>\n",
            &["www.x.example: /* -> a", "any: /* -> a", "x.example *.x.example: /* -> b"]),
        // Mounts are not inherited, files are.
        ("Listen 80\nDocumentRoot /srv/www\nJkMount /m/* a\n<VirtualHost *:80>\nJkMount /v/* b\n</VirtualHost>\n", &["any: /v/* -> b, else files /srv/www"]),
        ("Listen 80\nJkMount /m/* a\nJkUnMount /m/x/* a\n<VirtualHost *:80>\nJkMountCopy On\nJkMount /v/* b\n</VirtualHost>\n",
            &["any: /v/* -> b, /m/* -> a, !/m/x/* (a)"]),
        ("Listen 80\nJkMountCopy All\nJkMount /m/* a\n<VirtualHost *:80>\nJkMount /m/* b\n</VirtualHost>\n", &["any: /m/* -> b"]),
        // The order of mounts is mod_jk's own.
        ("Listen 80\nJkMount /* a\nJkMount /xy|/* b\nJkUnMount /*.gif *\nJkUnMount /xy/s/* b\n", &["any: /xy -> b, /xy/* -> b, /* -> a, !/*.gif (*), !/xy/s/* (b)"]),
        // To another host, or for some of the hosts only, it is a mount.
        ("Listen 80\n<VirtualHost *:80>\nServerName x.example\nRedirect permanent / https://www.x.example/\n</VirtualHost>\n", &["any: /* -> 301 https://www.x.example{path}{query}"]),
        ("Listen 80\n<VirtualHost *:80>\nServerName x.example\nJkMount /* a\n</VirtualHost>\n<VirtualHost *:80>\nServerName y.example\nRewriteEngine on\nRewriteRule ^ https://%{HTTP_HOST}%{REQUEST_URI} [R=301]\n</VirtualHost>\n",
            &["y.example: /* -> 301 https://{host}{path}{query}", "any: /* -> a"]),
        // A later mount of a pattern replaces the earlier one.
        ("Listen 80\nJkMount /x/* a\nJkMount /y/* a\nJkMount /x/* b\n", &["any: /x/* -> b, /y/* -> a"]),
        ("Listen 80\n<Location /loc/*>\nJkMount a\n</Location>\n", &["any: /loc/* -> a"]),
        ("Listen 80\nJkMount /jkstatus st\nJkMount /* a\n", &["any: /jkstatus -> JkStatus, /* -> a"]),
        ("Listen 80\nAlias /icons /usr/icons\nRedirect permanent /old http://x.example/old\nRedirect gone /dead\nJkMount /app a\n",
            &["any: /icons -> files /usr/icons -/icons, /icons/* -> files /usr/icons -/icons, /old -> 301 http://x.example{path}{query}, /old/* -> 301 http://x.example{path}{query}, /dead -> 410, /dead/* -> 410, /app -> a"]),
        ("Define D /srv\nListen 80\nDocumentRoot \"${D}/a b\"\nDirectoryIndex x.html\n", &["any: else files /srv/a b"]),
        ("Listen 80\n<IfModule !mod_ssl.c>\nJkMount /no a\n</IfModule>\n<IfModule mod_jk.c>\nJkMount /yes a\n</IfModule>\n<IfDefine X>\nJkMount /x a\n</IfDefine>\n", &["any: /yes -> a"]),
    ];
    for (conf, expected) in table {
        let made = httpd(conf);
        assert_eq!(
            sites(&made.config.http.frontends[0]),
            *expected,
            "{conf}\n{}",
            made.toml
        );
    }
}

#[test]
fn addresses_choose_virtual_hosts() {
    let made = httpd(
        "Listen 10.0.0.9:80\nListen 8080\nListen [2001:db8::1]:81\n<VirtualHost 10.0.0.9:80>\nServerName a.example\nJkMount /* a\n</VirtualHost>\n\
         <VirtualHost *:8080 _default_:81>\nServerName b.example\nJkMount /* b\n</VirtualHost>\n<VirtualHost *:99>\nJkMount /* a\n</VirtualHost>\n",
    );
    let shown: Vec<String> = made
        .config
        .http
        .frontends
        .iter()
        .map(|f| format!("{} {} {}", f.name, f.address, sites(f).join(";")))
        .collect();
    assert_eq!(
        shown,
        [
            "a.example 10.0.0.9:80 any: /* -> a",
            "b.example [::]:8080 any: /* -> b",
            "b.example-2 [2001:db8::1]:81 any: /* -> b",
        ]
    );
    made.is_left("httpd.conf:12", "no `Listen` is for it");
}

#[test]
fn https_is_redirected_to_and_served() {
    let made = httpd(
        "Listen 80\nListen 443\n<VirtualHost *:80>\nServerName a.example\nRedirect permanent / https://a.example/\n</VirtualHost>\n<VirtualHost *:443>\nServerName a.example\n\
         SSLEngine on\nSSLCertificateFile /x/a.pem\nSSLCertificateKeyFile /x/a.key\nJkMount /* a\n</VirtualHost>\n<VirtualHost *:443>\nServerName b.example\nSSLEngine on\n\
         SSLCertificateFile /x/b.pem\nSSLCertificateKeyFile /x/b.key\nSSLVerifyClient require\nJkMount /* b\n</VirtualHost>\n",
    );
    assert_eq!(made.frontend("a.example").redirect_https, Some(443));
    let secure = made.frontend("a.example-2");
    assert_eq!(secure.tls.as_ref().unwrap().certificates.len(), 2);
    assert_eq!(sites(secure), ["b.example: /* -> b", "any: /* -> a"]);
}

#[test]
fn includes_are_followed_and_bounded() {
    let made = workers(&[
        ("w.properties", WORKERS),
        (
            "httpd.conf",
            "Listen 80\nInclude conf.d/*.conf\nInclude missing.conf\nIncludeOptional none/*.conf\n",
        ),
        ("conf.d/a.conf", "JkMount /a a\n"),
        ("conf.d/b.conf", "Include conf.d/deep.inc\n"),
        ("conf.d/deep.inc", "JkMount /deep b\nJkMount /nobody c\n"),
    ])
    .unwrap();
    assert_eq!(
        sites(&made.config.http.frontends[0]),
        ["any: /a -> a, /deep -> b"]
    );
    made.is_left("httpd.conf:3", "there is no such file");
    assert!(
        made.left
            .iter()
            .any(|line| line.contains("JkMount /nobody c")),
        "{:?}",
        made.left
    );
    let error = workers(&[
        ("w.properties", WORKERS),
        ("httpd.conf", "Include httpd.conf\n"),
    ]);
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("included too deeply")
    );
}

#[test]
fn what_restricts_access_is_said_loudly() {
    let made = httpd(
        "Listen 80\nJkMount /* a\n<Location /admin>\nRequire ip 10.0.0.0/8\n</Location>\n<Directory /srv>\nRequire all granted\n</Directory>\n",
    );
    made.is_left("httpd.conf:4", "ACCESS IS NOT RESTRICTED HERE");
    made.is_left("httpd.conf:7", "nothing is restricted");
}

#[test]
fn workers_become_pools() {
    let made = workers(&[(
        "w.properties",
        "worker.list=lb\nworker.lb.type=lb\nworker.lb.balance_workers=m1 m2, m3\nworker.lb.method=Busyness\nworker.lb.sticky_session_force=true\nworker.lb.session_cookie=SID\n\
         worker.lb.session_path=;sid\nworker.lb.recover_time=90\nworker.lb.retries=4\nworker.t.reference=worker.base\nworker.base.host=10.0.0.1\nworker.base.secret=s3cret\nworker.base.socket_timeout=30\n\
         worker.m1.reference=worker.t\nworker.m1.port=8010\nworker.m1.lbfactor=4\nworker.m1.route=r1\nworker.m1.domain=east\nworker.m1.redirect=m2\nworker.m2.host=10.0.0.2\nworker.m2.activation=S\n\
         worker.m2.distance=2\nworker.m3.host=localhost\nworker.m3.activation=d\nworker.m3.prepost_timeout=5000\nworker.m3.fail_on_status=503\nworker.lb.bogus=1\n",
    )])
    .unwrap();
    let pool = made.pool("lb");
    assert_eq!(
        (pool.http.protocol, pool.http.balance),
        (BackendProtocol::Ajp, HttpBalance::LeastConnections)
    );
    let Some(Sticky::Route(route)) = &pool.http.sticky else {
        panic!("{:?}", pool.http.sticky);
    };
    assert_eq!(
        (&*route.cookie, &*route.parameter, route.force),
        ("SID", "sid", true)
    );
    assert_eq!(pool.http.retries.attempts, 3);
    assert_eq!(pool.http.observe.as_ref().unwrap().ejection.as_secs(), 90);
    assert_eq!(pool.http.timeouts.response.as_secs(), 30);
    let shown: Vec<String> = pool
        .backends
        .iter()
        .map(|b| {
            let http = &b.http;
            format!(
                "{} {} {} {} {:?} {:?} {} {:?}",
                b.name,
                b.address,
                b.weight,
                http.route,
                http.domain.as_deref(),
                http.redirect.as_deref(),
                http.priority,
                b.activation
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "m1 10.0.0.1:8010 4 r1 Some(\"east\") Some(\"m2\") 0 Active",
            "m2 10.0.0.2:8009 1 m2 None None 2 Stopped",
            "m3 127.0.0.1:8009 1 m3 None None 0 Drain",
        ]
    );
    assert_eq!(pool.backends[2].activation, Activation::Drain);
    assert!(made.toml.contains("secret = \"s3cret\""));
    made.is_left("w.properties:26", "on_status");
    made.is_left("w.properties:27", "there is nothing like it");
    made.is_left(
        "w.properties:25",
        "it is the same for all backends of a pool",
    );
}

#[test]
fn a_map_alone_has_a_frontend() {
    let made = workers(&[
        ("w.properties", WORKERS),
        ("map", "/x|/*=b\n!/x/s/*=b\n/y=a;reply_timeout=5\n"),
    ])
    .unwrap();
    assert_eq!(
        sites(made.frontend("www")),
        ["any: /x -> b, /x/* -> b, /y -> a, !/x/s/* (b)"]
    );
    made.is_left("map:3", "rules have no settings of their own");
}

#[test]
fn what_is_no_workers_file_is_refused_with_a_place() {
    #[rustfmt::skip]
    let table = [
        ("", "has no worker in it"),
        ("frontend x\n", ":1:1: there is no `=`"),
        ("worker.list=a\nworker.a.reference=worker.b\nworker.b.reference=worker.a\n", "references lead in a circle"),
        ("worker.list=a\nworker.a.host=db.example\n", "has nothing in it that could be carried over"),
        ("worker.list=lb\nworker.lb.type=lb\n", "has nothing in it that could be carried over"),
    ];
    for (text, expected) in table {
        let error = workers(&[("w.properties", text)])
            .err()
            .unwrap_or_else(|| panic!("{text}"))
            .to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = workers(&[
        ("w.properties", WORKERS),
        ("httpd.conf", "Listen 80\n<VirtualHost *:80>\n"),
    ]);
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains(":2:1: `<VirtualHost>` is not closed")
    );
}
