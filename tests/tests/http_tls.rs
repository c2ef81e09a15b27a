//! TLS towards clients and towards servers.

use std::sync::Arc;

use balancer_tests::http::apps::{App, Setup};
use balancer_tests::http::certs::{Authority, Pair, serial};
use balancer_tests::http::raw::Raw;
use balancer_tests::http::web::{
    CHECK, HTTP, HTTPS, NO_CHECK, Web, app_address, frontend, pool, scene_dir,
};
use balancer_tests::netns::Netns;
use rustls::ClientConfig;

fn certificate(pair: &Pair) -> String {
    format!(
        "[[frontend.tls.certificate]]\ncertificate = {:?}\nkey = {:?}\n",
        pair.certificate, pair.key
    )
}

/// A frontend with TLS; further keys, then keys of its `[frontend.tls]`.
fn secure(keys: &str, tls: &str, certificates: &[&Pair]) -> String {
    let all: String = certificates.iter().map(|pair| certificate(pair)).collect();
    format!(
        "[[frontend]]\nname = \"secure\"\nmode = \"http\"\naddress = \"{HTTPS}\"\npool = \"app\"\n\
         {keys}\n[frontend.tls]\n{tls}\n{all}\n"
    )
}

struct Scene {
    web: Web,
    authority: Authority,
    pairs: Vec<Pair>,
}

fn scene(keys: &str, tls: impl Fn(&Authority) -> String) -> Scene {
    let (ns, dir) = (Netns::new(), scene_dir());
    let authority = Authority::new(dir.path(), "ca");
    let pairs = vec![
        authority.sign("first", &["first.example"], 1),
        authority.sign("second", &["second.example", "*.second.example"], 2),
    ];
    let config =
        secure(keys, &tls(&authority), &pairs.iter().collect::<Vec<_>>()) + &pool(1, CHECK);
    let apps = vec![App::at(&ns, "s0", app_address(0))];
    Scene {
        web: Web::around(ns, dir, apps, &config),
        authority,
        pairs,
    }
}

impl Scene {
    fn shake(&self, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Raw> {
        Raw::tls(&self.web.ns, HTTPS, config, name)
    }

    /// The serial number of the certificate that a name gets; names that the certificate
    /// is not for are an error.
    fn serial(&self, name: &str) -> Option<u64> {
        let client = self.authority.client(&["http/1.1"]);
        let raw = self.shake(&client, name).ok()?;
        serial(&raw.certificate.expect("a certificate"))
    }
}

#[test]
fn the_name_chooses_the_certificate() {
    let scene = scene("", |_| String::new());
    assert_eq!(scene.serial("first.example"), Some(1));
    assert_eq!(scene.serial("second.example"), Some(2));
    assert_eq!(scene.serial("a.second.example"), Some(2));
    assert_eq!(scene.serial("SECOND.example"), Some(2));
    // The first one is for everybody else, who will not like it.
    assert_eq!(scene.serial("third.example"), None);
    let said = scene.web.curl(&["--insecure", "https://127.0.0.1:8443/"]);
    assert_eq!(said.status, 200, "{said:?}");
    let mut raw = scene
        .shake(&scene.authority.client(&[]), "first.example")
        .expect("TLS");
    assert_eq!(raw.get("/").status, 200);
    let seen = scene.web.log().pop().expect("a request");
    assert_eq!(seen.one("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.one("x-forwarded-port"), Some("8443"));
}

#[test]
fn new_certificates_come_without_a_restart() {
    let scene = scene("", |_| String::new());
    let client = scene.authority.client(&["http/1.1"]);
    let mut old = scene.shake(&client, "first.example").expect("TLS");
    assert_eq!(old.get("/").status, 200);
    for round in 0..5 {
        let number = 100 + round;
        scene.authority.sign("first", &["first.example"], number);
        scene.web.agent.order(&["reload"]);
        assert_eq!(scene.serial("first.example"), Some(number));
        assert_eq!(scene.serial("second.example"), Some(2));
        assert_eq!(old.get("/").status, 200, "connections that are open go on");
    }
    // What can't be read changes nothing, and the message says which file.
    std::fs::write(&scene.pairs[0].key, "-----BEGIN nonsense").expect("write");
    let said = scene.web.agent.command(&["reload"]);
    assert_ne!(said.code, Some(0));
    assert!(said.err.contains("first.key"), "{said:?}");
    assert_eq!(scene.serial("first.example"), Some(104));
    // A key of another certificate is a mistake, too.
    std::fs::copy(&scene.pairs[1].key, &scene.pairs[0].key).expect("copy");
    let said = scene.web.agent.command(&["reload"]);
    assert_ne!(said.code, Some(0), "{said:?}");
    assert_eq!(scene.serial("first.example"), Some(104));
}

#[test]
fn the_oldest_version_can_be_set() {
    let version = |scene: &Scene, maximum: &str| {
        let said = scene.web.curl(&[
            "--insecure",
            "--tls-max",
            maximum,
            "https://127.0.0.1:8443/",
        ]);
        said.status
    };
    let usual = scene("", |_| String::new());
    assert_eq!(
        (
            version(&usual, "1.3"),
            version(&usual, "1.2"),
            version(&usual, "1.1")
        ),
        (200, 200, 0)
    );
    let strict = scene("", |_| "minimum = \"1.3\"\n".into());
    assert_eq!((version(&strict, "1.3"), version(&strict, "1.2")), (200, 0));
}

#[test]
fn alpn_chooses_the_protocol() {
    let scene = scene("", |_| String::new());
    let agreed = |offer: &[&str]| {
        let client = scene.authority.client(offer);
        scene.shake(&client, "first.example").map(|raw| raw.alpn)
    };
    assert_eq!(agreed(&["h2", "http/1.1"]).expect("TLS"), Some("h2".into()));
    assert_eq!(agreed(&["http/1.1"]).expect("TLS"), Some("http/1.1".into()));
    assert_eq!(agreed(&[]).expect("TLS"), None);
    let said = scene
        .web
        .curl(&["--insecure", "--http2", "https://127.0.0.1:8443/echo"]);
    assert_eq!((said.status, said.version.as_str()), (200, "2"), "{said:?}");
    let said = scene
        .web
        .curl(&["--insecure", "--http1.1", "https://127.0.0.1:8443/echo"]);
    assert_eq!(
        (said.status, said.version.as_str()),
        (200, "1.1"),
        "{said:?}"
    );
}

#[test]
fn clients_show_certificates_where_they_must() {
    for mode in ["required", "optional"] {
        let scene = scene("", |_| String::new());
        let people = Authority::new(scene.web.dir.path(), "people");
        let strangers = Authority::new(scene.web.dir.path(), "strangers");
        let tls = format!(
            "client_auth = \"{mode}\"\nclient_authorities = {:?}\n",
            scene.web.dir.path().join("people.pem")
        );
        let pairs: Vec<&Pair> = scene.pairs.iter().collect();
        scene
            .web
            .agent
            .reconfigure(&(secure("", &tls, &pairs) + &pool(1, CHECK)));
        let ask = |config: &Arc<ClientConfig>| {
            let mut raw = scene.shake(config, "first.example").ok()?;
            // With TLS 1.3 the refusal comes after the handshake.
            raw.try_request("GET", "/", &[], b"")
                .ok()
                .map(|answer| answer.status)
        };
        let good = people.sign("alice", &["alice"], 5);
        let bad = strangers.sign("mallory", &["mallory"], 6);
        assert_eq!(
            ask(&scene.authority.client_with(&good)),
            Some(200),
            "{mode}"
        );
        assert_eq!(ask(&scene.authority.client_with(&bad)), None, "{mode}");
        let none = ask(&scene.authority.client(&[]));
        assert_eq!(
            none,
            if mode == "required" { None } else { Some(200) },
            "{mode}"
        );
    }
}

#[test]
fn strict_transport_and_redirect() {
    let scene = scene("hsts = \"max-age=31536000; includeSubDomains\"\n", |_| {
        String::new()
    });
    let mut raw = scene
        .shake(&scene.authority.client(&[]), "first.example")
        .expect("TLS");
    let answer = raw.get("/");
    assert_eq!(
        answer.one("strict-transport-security"),
        Some("max-age=31536000; includeSubDomains")
    );
    let pairs: Vec<&Pair> = scene.pairs.iter().collect();
    let config = format!(
        "[[frontend]]\nname = \"plain\"\nmode = \"http\"\naddress = \"{HTTP}\"\nredirect_https = 8443\n"
    ) + &secure("", "", &pairs)
        + &pool(1, CHECK);
    scene.web.agent.reconfigure(&config);
    let answer = scene
        .web
        .client()
        .get_with("/a%20b?c=d", &[("Host", "first.example:8080")]);
    assert!(matches!(answer.status, 301 | 307 | 308), "{answer:?}");
    assert_eq!(
        answer.one("location"),
        Some("https://first.example:8443/a%20b?c=d")
    );
    assert_eq!(answer.one("strict-transport-security"), None);
}

#[test]
fn plain_http_on_a_tls_port_and_the_other_way_round() {
    let scene = scene("", |_| String::new());
    let mut raw = Raw::connect(&scene.web.ns, HTTPS);
    raw.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(raw.closes(balancer_tests::process::BOUND));
    assert!(!raw.rest().starts_with(b"HTTP/1.1 200"));
    assert_eq!(scene.serial("first.example"), Some(1));
}

#[test]
fn http2_by_prior_knowledge() {
    let web = Web::new(1, |_| frontend("") + &pool(1, CHECK));
    let url = format!("http://{HTTP}/echo");
    let said = web.curl(&["--http2-prior-knowledge", &url]);
    assert_eq!((said.status, said.version.as_str()), (200, "2"));
    // The upgrade from HTTP/1.1 is not spoken: the request is one of HTTP/1.1.
    let said = web.curl(&["--http2", &url]);
    assert_eq!((said.status, said.version.as_str()), (200, "1.1"));
    let web = Web::new(1, |_| frontend("http2 = false\n") + &pool(1, CHECK));
    assert_eq!(web.curl(&["--http2-prior-knowledge", &url]).status, 0);
    assert_eq!(web.curl(&["--http1.1", &url]).status, 200);
    let web = Web::new(1, |_| frontend("http1 = false\n") + &pool(1, CHECK));
    assert_eq!(web.curl(&["--http2-prior-knowledge", &url]).status, 200);
    assert_ne!(web.curl(&["--http1.1", &url]).status, 200);
}

/// One server with TLS, its certificate signed for `server.example`.
fn backend(
    options: impl Fn(&Authority) -> Vec<String>,
    tls: &str,
    protocol: &str,
) -> (Web, Authority) {
    let (ns, dir) = (Netns::new(), scene_dir());
    let authority = Authority::new(dir.path(), "backends");
    let other = Authority::new(dir.path(), "others");
    let pair = authority.sign("server", &["server.example"], 7);
    authority.sign("balancer", &["balancer.example"], 8);
    other.sign("stranger", &["stranger.example"], 9);
    let mut all = vec![
        "--certificate".to_owned(),
        pair.certificate.display().to_string(),
        "--key".to_owned(),
        pair.key.display().to_string(),
    ];
    all.extend(
        options(&authority)
            .iter()
            .map(|o| o.replace("DIR", &dir.path().display().to_string())),
    );
    let setup = Setup {
        name: "s0".into(),
        listen: vec![app_address(0)],
        options: all,
        ..Setup::default()
    };
    let apps = vec![App::start(&ns, setup)];
    let tls = tls.replace("DIR", &dir.path().display().to_string());
    let keys = format!("protocol = \"{protocol}\"\n{NO_CHECK}[pool.tls]\n{tls}\n");
    let config = frontend("") + &pool(1, &keys);
    (Web::around(ns, dir, apps, &config), authority)
}

#[test]
fn servers_are_verified() {
    let trusting = "authorities = \"DIR/backends.pem\"\n";
    let wrong = "authorities = \"DIR/others.pem\"\n";
    let named = |base: &str, name: &str| format!("{base}server_name = \"{name}\"\n");
    for protocol in ["http1", "http2"] {
        for (tls, status) in [
            (named(trusting, "server.example"), 200),
            (named(trusting, "other.example"), 502),
            (trusting.to_owned(), 502),
            (named(wrong, "server.example"), 502),
            ("verify = false\n".to_owned(), 200),
        ] {
            let (web, _) = backend(|_| Vec::new(), &tls, protocol);
            let answer = web.client().get("/");
            assert_eq!(answer.status, status, "{protocol} {tls}: {answer:?}");
            if status == 200 {
                let seen = web.apps[0].log().pop().expect("a request");
                let version = if protocol == "http1" {
                    "HTTP/1.1"
                } else {
                    "HTTP/2"
                };
                assert_eq!(seen.version, version);
                if tls.contains("server_name") {
                    assert_eq!(seen.server_name.as_deref(), Some("server.example"));
                }
            } else {
                assert!(web.apps[0].log().is_empty(), "{tls}");
            }
        }
    }
}

#[test]
fn the_balancer_shows_its_certificate_to_servers() {
    let asks = |_: &Authority| vec!["--client-ca".to_owned(), "DIR/backends.pem".to_owned()];
    let base = "authorities = \"DIR/backends.pem\"\nserver_name = \"server.example\"\n";
    let with =
        |name: &str| format!("{base}certificate = \"DIR/{name}.pem\"\nkey = \"DIR/{name}.key\"\n");
    let (web, _) = backend(asks, &with("balancer"), "http1");
    assert_eq!(web.client().get("/").status, 200);
    let (web, _) = backend(asks, base, "http1");
    assert_eq!(web.client().get("/").status, 502);
    let (web, _) = backend(asks, &with("stranger"), "http1");
    assert_eq!(web.client().get("/").status, 502);
}
