//! Health checks over TLS and HTTP/2, and `balancer check`, which refuses what a start
//! would refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use balancer_tests::agent::Agent;
use balancer_tests::http::apps::{App, Setup};
use balancer_tests::http::certs::{Authority, Pair};
use balancer_tests::http::raw::Raw;
use balancer_tests::http::web::{CHECK, HTTP, app_address, frontend, pool, scene_dir};
use balancer_tests::netns::Netns;
use balancer_tests::process::{BOUND, wait_until};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// A connection is enough, over TLS or not.
const TCP: &str = "[pool.check]\ntype = \"tcp\"\ninterval = \"100ms\"\nfast_interval = \"50ms\"\n\
     timeout = \"2s\"\n";

/// Servers with TLS and an agent whose backends may be down. Dropped in this order.
struct Scene {
    agent: Agent,
    apps: Vec<App>,
    ns: Netns,
    dir: TempDir,
}

/// A server with that certificate and further options; without, in the clear.
fn app(ns: &Netns, number: usize, pair: Option<&Pair>, options: &[String]) -> App {
    let mut all = options.to_vec();
    if let Some(pair) = pair {
        let text = |path: &Path| path.display().to_string();
        all.extend(["--certificate".to_owned(), text(&pair.certificate)]);
        all.extend(["--key".to_owned(), text(&pair.key)]);
    }
    let setup = Setup {
        name: format!("s{number}"),
        listen: vec![app_address(number)],
        options: all,
        ..Setup::default()
    };
    App::start(ns, setup)
}

/// Keys of a pool with `[pool.tls]`; `DIR` is the scene's directory.
fn keys(dir: &TempDir, protocol: &str, check: &str, tls: &str) -> String {
    let text = format!("protocol = \"{protocol}\"\n{check}[pool.tls]\n{tls}\n");
    text.replace("DIR", &dir.path().display().to_string())
}

const TRUSTING: &str = "authorities = \"DIR/backends.pem\"\nserver_name = \"server.example\"\n";

impl Scene {
    fn start(ns: Netns, dir: TempDir, apps: Vec<App>, keys: &str) -> Self {
        let config = frontend("") + &pool(apps.len(), keys);
        let mut agent = Agent::prepare_plain(&ns, &config);
        agent.run();
        Self {
            agent,
            apps,
            ns,
            dir,
        }
    }

    /// Waits until the last check of a backend said something that begins so, and the
    /// backend is up or down accordingly; its status then.
    #[track_caller]
    fn wait_said(&self, backend: &str, health: &str, said: &str) -> serde_json::Value {
        let mut last = serde_json::Value::Null;
        let wanted = format!("{backend} to be {health}: {said}");
        let what = || {
            last = self.agent.backend("app", backend);
            let text = last["last_check"].as_str().unwrap_or_default();
            last["health"] == health && text.starts_with(said)
        };
        wait_until(&wanted, BOUND, what);
        self.agent.wait_health("app", backend, health);
        last
    }

    fn get(&self, path: &str) -> u16 {
        Raw::connect(&self.ns, HTTP).get(path).status
    }
}

/// The certificates of [`Scene`]s: of the authority that is trusted and of another.
fn authorities(dir: &TempDir) -> (Authority, Authority) {
    let trusted = Authority::new(dir.path(), "backends");
    (trusted, Authority::new(dir.path(), "others"))
}

#[test]
fn certificates_decide_about_health() {
    for (protocol, check, good) in [
        ("http1", CHECK, "status 200"),
        ("http2", CHECK, "status 200"),
        ("http1", TCP, "TLS handshake done"),
    ] {
        let (ns, dir) = (Netns::new(), scene_dir());
        let (authority, other) = authorities(&dir);
        let names = ["server.example"];
        let pairs = [
            authority.sign("good", &names, 1),
            authority.sign("wrong", &["shop.example"], 2),
            authority.sign_expired("late", &names, 3),
            other.sign("strange", &names, 4),
        ];
        let servers = pairs.iter().enumerate();
        let mut apps: Vec<App> = servers
            .map(|(i, pair)| app(&ns, i, Some(pair), &[]))
            .collect();
        apps.push(app(&ns, 4, None, &[]));
        let keys = keys(&dir, protocol, check, TRUSTING);
        let mut scene = Scene::start(ns, dir, apps, &keys);
        scene.wait_said("s0", "up", good);
        for (backend, said) in [
            (
                "s1",
                "TLS: certificate for shop.example, not for server.example",
            ),
            ("s2", "TLS: certificate expired on Tue, 01 Jan 2002"),
            ("s3", "TLS: certificate of an unknown issuer"),
            (
                "s4",
                "timeout after 2000ms while waiting for the TLS handshake",
            ),
        ] {
            let status = scene.wait_said(backend, "down", said);
            let reason = status["health_reason"].as_str().expect("a reason");
            assert!(reason.starts_with(said), "{reason}");
            let table = scene.agent.order(&["status"]);
            assert!(table.contains(said), "{table}");
        }
        for _ in 0..5 {
            assert_eq!(scene.get("/"), 200);
        }
        let seen: Vec<usize> = scene.apps.iter().map(|app| app.log().len()).collect();
        assert_eq!(seen, [5, 0, 0, 0, 0]);
        // What was wrong is put right, and what was right goes wrong.
        authority.sign("wrong", &names, 5);
        scene.apps[1].restart();
        scene.wait_said("s1", "up", good);
        authority.sign_expired("good", &names, 6);
        scene.apps[0].restart();
        scene.wait_said("s0", "down", "TLS: certificate expired");
        assert_eq!(scene.get("/"), 200);
    }
}

#[test]
fn a_reload_brings_new_authorities_to_the_checks() {
    let (ns, dir) = (Netns::new(), scene_dir());
    let (authority, other) = authorities(&dir);
    let names = ["server.example"];
    let pairs = [
        authority.sign("ours", &names, 1),
        other.sign("theirs", &names, 2),
    ];
    let apps = pairs.iter().enumerate();
    let apps = apps.map(|(i, pair)| app(&ns, i, Some(pair), &[])).collect();
    let keys = keys(&dir, "http1", CHECK, TRUSTING);
    let mut scene = Scene::start(ns, dir, apps, &keys);
    let unknown = "TLS: certificate of an unknown issuer";
    scene.wait_said("s0", "up", "status 200");
    scene.wait_said("s1", "down", unknown);
    let file = |name: &str| scene.dir.path().join(name);
    let ours = fs::read_to_string(file("backends.pem")).expect("read");
    let theirs = fs::read_to_string(file("others.pem")).expect("read");
    let trusted = file("backends.pem");

    // The configuration stays as it is: only a file that it names is another.
    fs::write(&trusted, theirs).expect("write");
    scene.agent.order(&["reload"]);
    scene.wait_said("s1", "up", "status 200");
    scene.wait_said("s0", "down", unknown);
    fs::write(&trusted, &ours).expect("write");
    scene.agent.signal(Signal::SIGHUP);
    scene.wait_said("s0", "up", "status 200");
    scene.wait_said("s1", "down", unknown);

    // One that can't be used changes nothing, and is said with its place.
    fs::write(&trusted, "nonsense").expect("write");
    let said = scene.agent.command(&["reload"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    let what = "holds no certificate in PEM form";
    let text = said.err.replace('\n', " ");
    assert!(
        text.contains("backends.pem") && text.contains(what),
        "{text}"
    );
    scene.agent.signal(Signal::SIGHUP);
    wait_until("the refusal in the log", BOUND, || {
        scene
            .agent
            .log()
            .matches("configuration not reloaded")
            .count()
            == 2
    });
    let checks = |backend: &str| scene.agent.backend("app", backend)["checks"].clone();
    let before = checks("s0").as_u64().expect("a number");
    wait_until("more checks", BOUND, || {
        checks("s0").as_u64().is_some_and(|now| now > before + 3)
    });
    scene.wait_said("s0", "up", "status 200");
    assert_eq!(scene.get("/"), 200);
}

#[test]
fn checks_show_the_balancers_certificate() {
    let (ns, dir) = (Netns::new(), scene_dir());
    let (authority, _) = authorities(&dir);
    let pair = authority.sign("server", &["server.example"], 1);
    authority.sign("balancer", &["balancer.example"], 2);
    let trusted = dir.path().join("backends.pem").display().to_string();
    let apps = vec![app(
        &ns,
        0,
        Some(&pair),
        &["--client-ca".to_owned(), trusted],
    )];
    let without = keys(&dir, "http1", CHECK, TRUSTING);
    let own = format!("{TRUSTING}certificate = \"DIR/balancer.pem\"\nkey = \"DIR/balancer.key\"\n");
    let with = keys(&dir, "http1", CHECK, &own);
    let scene = Scene::start(ns, dir, apps, &without);
    scene.wait_said("s0", "down", "TLS: the server refuses: CertificateRequired");
    scene.agent.reconfigure(&(frontend("") + &pool(1, &with)));
    scene.wait_said("s0", "up", "status 200");
    assert_eq!(scene.get("/"), 200);
}

#[test]
fn a_check_with_a_port_of_its_own_goes_its_own_way() {
    let (ns, dir) = (Netns::new(), scene_dir());
    let (authority, _) = authorities(&dir);
    let expired = authority.sign_expired("late", &["server.example"], 1);
    let good = authority.sign("good", &["server.example"], 2);
    let apps = vec![
        app(&ns, 0, Some(&expired), &[]),
        app(&ns, 1, None, &[]),
        app(&ns, 2, Some(&good), &[]),
    ];
    let with = |more: &str| {
        let check = format!("{CHECK}{more}");
        frontend("") + &pool(1, &keys(&dir, "http1", &check, TRUSTING))
    };
    let config = |port: u16, more: &str| with(&format!("port = {port}\n{more}"));
    let (plain, secure) = (app_address(1).port(), app_address(2).port());
    let mut agent = Agent::prepare_plain(&ns, &with(""));
    agent.run();
    let scene = Scene {
        agent,
        apps,
        ns: ns.clone(),
        dir: scene_dir(),
    };
    scene.wait_said("s0", "down", "TLS: certificate expired");
    scene.agent.reconfigure(&config(plain, ""));
    scene.wait_said("s0", "up", "status 200");
    scene.agent.reconfigure(&config(secure, ""));
    scene.wait_said("s0", "down", "");
    scene.agent.reconfigure(&config(secure, "tls = true\n"));
    scene.wait_said("s0", "up", "status 200");
    // And without TLS on the port of requests: a connection is all that is looked at.
    let tcp = format!("{TCP}tls = false\n");
    let tcp = frontend("") + &pool(1, &keys(&dir, "http1", &tcp, TRUSTING));
    scene.agent.reconfigure(&tcp);
    scene.wait_said("s0", "up", "connected");
    assert_eq!(scene.apps.len(), 3);
}

#[test]
fn checks_speak_http2_where_requests_do() {
    let check = CHECK.replace("/health", "/probe");
    for (protocol, version) in [("http2", "HTTP/2"), ("http1", "HTTP/1.1")] {
        let (ns, dir) = (Netns::new(), scene_dir());
        let apps = vec![app(&ns, 0, None, &[])];
        let keys = format!("protocol = \"{protocol}\"\n{check}");
        let scene = Scene::start(ns, dir, apps, &keys);
        scene.wait_said("s0", "up", "status 200");
        let seen = scene.apps[0].log();
        let probe = seen.iter().find(|seen| seen.target.ends_with("/probe"));
        assert_eq!(probe.expect("a check").version, version);
    }
}

#[test]
fn checks_begin_with_the_pools_proxy_header() {
    for version in ["v1", "v2"] {
        for check in [CHECK, TCP] {
            let (ns, dir) = (Netns::new(), scene_dir());
            let (authority, _) = authorities(&dir);
            let pair = authority.sign("server", &["server.example"], 1);
            let apps = vec![app(&ns, 0, Some(&pair), &["--proxy-protocol".to_owned()])];
            let keys = keys(&dir, "http1", check, TRUSTING);
            let keys = format!("send_proxy = \"{version}\"\n{keys}");
            let scene = Scene::start(ns, dir, apps, &keys);
            scene.wait_said("s0", "up", "");
            assert_eq!(scene.get("/"), 200);
        }
    }
}

/// A configuration with everything that names files; `@` is the scene's directory.
const NAMING: &str = r#"
[[frontend]]
name = "secure"
mode = "http"
address = "127.0.0.1:8443"

[frontend.tls]
client_auth = "optional"
client_authorities = "@/backends.pem"

[[frontend.tls.certificate]]
certificate = "@/server.pem"
key = "@/server.key"

[frontend.log]
file = "@/logs/access.log"

[[frontend.site]]
pool = "app"
root = "@/www"

[[pool]]
name = "app"

[pool.tls]
authorities = "@/backends.pem"
certificate = "@/balancer.pem"
key = "@/balancer.key"

[[pool.backend]]
name = "s0"
address = "127.0.0.1:9000"
"#;

/// What is replaced in [`NAMING`], by what (`^` is where the mistake has to be), and what
/// is said.
#[rustfmt::skip]
const MISTAKES: &[(&str, &str, &str)] = &[
    ("\"@/server.pem\"", "^\"@/junk.pem\"", "`certificate` \"@/junk.pem\" holds no certificate in PEM form"),
    ("\"@/server.key\"", "^\"@/junk.key\"", "`key` \"@/junk.key\" holds no private key in PEM form"),
    ("\"@/server.key\"", "^\"@/balancer.key\"", "`key` \"@/balancer.key\" is not the key of the certificate in @/server.pem"),
    ("client_authorities = \"@/backends.pem\"", "client_authorities = ^\"@/junk.pem\"", "`client_authorities` \"@/junk.pem\" holds no certificate"),
    ("\nauthorities = \"@/backends.pem\"", "\nauthorities = ^\"@/junk.pem\"", "`authorities` \"@/junk.pem\" holds no certificate"),
    ("\"@/balancer.pem\"", "^\"@/junk.pem\"", "`certificate` \"@/junk.pem\" holds no certificate in PEM form"),
    ("\"@/balancer.key\"", "^\"@/server.key\"", "`key` \"@/server.key\" is not the key of the certificate in @/balancer.pem"),
    ("\"@/www\"", "^\"@/nowhere\"", "`root` \"@/nowhere\" can't be opened: No such file or directory"),
    ("\"@/www\"", "^\"@/junk.pem\"", "`root` \"@/junk.pem\" can't be opened: Not a directory"),
    ("\"@/logs/access.log\"", "^\"@/nowhere/access.log\"", "`file` \"@/nowhere/access.log\" can't be made: @/nowhere: No such file or directory"),
];

/// A text without what reports break lines with.
fn flat(text: &str) -> String {
    let breaks = |c: &char| !c.is_whitespace() && *c != '|';
    text.chars().filter(breaks).collect()
}

#[test]
fn check_refuses_what_a_start_and_a_reload_refuse() {
    let (ns, dir) = (Netns::new(), scene_dir());
    let (authority, _) = authorities(&dir);
    let place = dir.path().display().to_string();
    let server = authority.sign("server", &["server.example"], 1);
    authority.sign("balancer", &["balancer.example"], 2);
    for name in ["junk.pem", "junk.key"] {
        let path = dir.path().join(name);
        fs::write(&path, "nothing of the kind").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    }
    for name in ["www", "logs"] {
        fs::create_dir(dir.path().join(name)).expect("a directory");
    }
    let mut agent = Agent::prepare_plain(&ns, &NAMING.replace('@', &place));
    let file = agent.config_path();
    let check = ["check".as_ref(), file.as_os_str()];
    let said = agent.command(&check);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    assert!(
        !dir.path().join("logs/access.log").exists(),
        "it only looks"
    );

    for running in [false, true] {
        for (from, to, message) in MISTAKES {
            assert!(NAMING.contains(from), "{from}");
            let text = NAMING.replacen(from, to, 1).replace('@', &place);
            agent.write_config(&text.replace('^', ""));
            let written = fs::read_to_string(&file).expect("a configuration");
            // Where the mark is, in the file as the agent has it.
            let head = written.len() - (text.len() - 1);
            let at = head + text.find('^').expect("a mark");
            let line = written[..at].matches('\n').count() + 1;
            let column = at - written[..at].rfind('\n').map_or(0, |end| end + 1) + 1;
            let said = agent.command(&check);
            let where_it_is = format!("{}:{line}:{column}", file.display());
            let wanted = [flat(&message.replace('@', &place)), where_it_is];
            assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:?}");
            let report = flat(&said.err);
            assert!(
                wanted.iter().all(|part| report.contains(part)),
                "{wanted:?}: {}",
                said.err
            );
            if !running {
                let start = ["run".as_ref(), "--config".as_ref(), file.as_os_str()];
                let start = agent.command(&start);
                assert_eq!((start.code, &start.err), (Some(1), &said.err));
                continue;
            }
            let reload = agent.command(&["reload"]);
            assert_eq!(reload.code, Some(1), "{reload:?}");
            assert!(
                flat(&reload.err).contains(&report),
                "{}\nnot in\n{}",
                said.err,
                reload.err
            );
        }
        if !running {
            agent.write_config(&NAMING.replace('@', &place));
            agent.run();
        }
    }
    // Nothing has changed for those who come.
    let client = authority.client(&["http/1.1"]);
    let address = "127.0.0.1:8443".parse().expect("an address");
    let raw = Raw::tls(&ns, address, &client, "server.example").expect("TLS");
    let shown = raw.certificate.expect("a certificate");
    assert_eq!(balancer_tests::http::certs::serial(&shown), Some(1));
    drop(server);
}
