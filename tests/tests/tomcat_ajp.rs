//! AJP13 with real Tomcats: what arrives is what arrives by HTTP, what comes back is what
//! comes back by HTTP, large and unsized bodies, sessions, drains, pauses, WebSockets.
//!
//! `BALANCER_AJP_REQUESTS` (1,000) and `BALANCER_AJP_MIB` (128) make the long ones longer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use balancer_tests::agent::Agent;
use balancer_tests::http::certs::Authority;
use balancer_tests::http::raw::{Answer, Raw, Trouble};
use balancer_tests::http::tomcat::{SECRET, Setup, Tomcat};
use balancer_tests::http::web::{HTTP, HTTPS, frontend, frontend_with_sites, scene_dir};
use balancer_tests::netns::Netns;
use balancer_tests::process::wait_until;

#[path = "tomcat_ajp/long.rs"]
mod long;

/// Where the client is that is not the balancer.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
/// Patient with a Tomcat that is warming up on a busy machine.
const CHECK: &str =
    "[pool.check]\ninterval = \"200ms\"\nfast_interval = \"50ms\"\ntimeout = \"5s\"\n";

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect(name))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\\""))
}

/// The pool `ajp` of one Tomcat, with further keys for the pool and the backend.
fn pool(keys: &str, backend: &str) -> String {
    format!(
        "[[pool]]\nname = \"ajp\"\nprotocol = \"ajp\"\n{keys}{CHECK}\
         [[pool.backend]]\nname = \"s0\"\naddress = \"127.0.0.1:8009\"\n{backend}"
    )
}

/// The same Tomcat below `/a` by AJP13 and below `/h` by HTTP.
fn both() -> String {
    let mount = |prefix: &str, pool: &str| {
        format!(
            "[[frontend.site.mount]]\npattern = \"{prefix}/*\"\npool = \"{pool}\"\n\
             rewrite = {{ strip_prefix = \"{prefix}\" }}\n"
        )
    };
    let sites = format!(
        "[frontend.limits]\nbody_bytes = 4_294_967_296\n[frontend.timeouts]\nbody_rate = 1\n[[frontend.site]]\n{}{}",
        mount("/a", "ajp"),
        mount("/h", "http")
    );
    let secret = format!("secret = {}\n", quoted(SECRET));
    let http = "[[pool]]\nname = \"http\"\n[[pool.backend]]\nname = \"s0\"\n\
                address = \"127.0.0.1:8081\"\n";
    frontend_with_sites(&sites) + &pool(&secret, "http_port = 8081\n") + http
}

struct Scene {
    agent: Agent,
    tomcat: Tomcat,
    ns: Netns,
}

impl Scene {
    #[track_caller]
    fn new(config: &str) -> Self {
        let ns = Netns::new();
        let tomcat = Tomcat::start(&ns, Setup::default());
        let mut agent = Agent::prepare_plain(&ns, config);
        agent.run();
        agent.wait_all_up();
        Self { agent, tomcat, ns }
    }

    fn client(&self) -> Raw {
        let raw = Raw::connect_from(&self.ns, CLIENT, HTTP).expect("a connection");
        raw.patience(Duration::from_secs(60));
        raw
    }
}

/// What the application has said of a request; `header` is all of them.
fn said(answer: &Answer) -> BTreeMap<String, Vec<String>> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in answer.text().lines() {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        all.entry(name.to_owned())
            .or_default()
            .push(value.to_owned());
    }
    all
}

/// The same without what is bound to be another by AJP13.
fn comparable(answer: &Answer) -> BTreeMap<String, Vec<String>> {
    let mut all = said(answer);
    for name in [
        "remote_addr",
        "remote_host",
        "remote_port",
        "local_addr",
        "activation",
    ] {
        all.remove(name);
    }
    // Without a body its length is told, as the protocol wants it.
    let headers = all.entry("header".into()).or_default();
    headers.retain(|header| header != "content-length=0");
    // Each says it in its own way that none was told.
    headers.retain(|header| header != "transfer-encoding=chunked");
    all
}

#[track_caller]
fn one(all: &BTreeMap<String, Vec<String>>, name: &str) -> String {
    match all.get(name).map(Vec::as_slice) {
        Some([one]) => one.clone(),
        other => panic!("{name}: {other:?}"),
    }
}

type Fields<'a> = Vec<(&'a str, String)>;

/// Sends a request, its body in chunks of these sizes if there are any.
fn ask(
    client: &mut Raw,
    (method, path): (&str, &str),
    fields: &Fields<'_>,
    body: &[u8],
    chunks: &[usize],
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test.example:8080\r\n");
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    let mut bytes = if chunks.is_empty() {
        if !body.is_empty() || method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        [head.as_bytes(), b"\r\n", body].concat()
    } else {
        head += "Transfer-Encoding: chunked\r\n\r\n";
        head.into_bytes()
    };
    if !chunks.is_empty() {
        let mut rest = body;
        for n in chunks.iter().cycle() {
            let (part, more) = rest.split_at((*n).min(rest.len()));
            bytes.extend(format!("{:x}\r\n", part.len()).bytes());
            bytes.extend(part);
            bytes.extend(b"\r\n");
            rest = more;
            if part.is_empty() {
                break;
            }
        }
    }
    client.send(&bytes);
    let answer = client.try_answer(method == "HEAD");
    answer.unwrap_or_else(|trouble| panic!("{method} {path}: {trouble}"))
}

#[test]
fn requests_arrive_as_by_http() {
    let scene = Scene::new(&both());
    let mut client = scene.client();
    let port = client.socket().local_addr().expect("an address").port();
    for method in [
        "GET",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "PROPFIND",
        "MKACTIVITY",
        "QUERY",
    ] {
        for path in [
            "/x",
            "/",
            "/x/a%20b/%C3%A9;v=1",
            "/x?",
            "/x?a=b&c=%2F?d",
            "/y//z/./../x",
        ] {
            let fields = vec![
                ("Accept", "text/*;q=0.5, */*".to_owned()),
                ("Cookie", "a=1; b=\"2\"".to_owned()),
                ("X-Twice", "1".to_owned()),
                ("X-Twice", "2".to_owned()),
                ("X-Empty", String::new()),
                ("AJP_REMOTE_PORT", "1".to_owned()),
                ("Content-Type", "application/octet-stream".to_owned()),
            ];
            let body: &[u8] = if matches!(method, "POST" | "PUT" | "PATCH") {
                b"body"
            } else {
                b""
            };
            let http = ask(
                &mut client,
                (method, &format!("/h{path}")),
                &fields,
                body,
                &[],
            );
            let ajp = ask(
                &mut client,
                (method, &format!("/a{path}")),
                &fields,
                body,
                &[],
            );
            let mut want = comparable(&http);
            want.get_mut("header")
                .expect("headers")
                .retain(|h| !h.starts_with("ajp_"));
            assert_eq!(comparable(&ajp), want, "{method} {path}");
            let all = said(&ajp);
            for (name, value) in [
                ("method", method),
                ("protocol", "HTTP/1.1"),
                ("server_name", "test.example"),
                ("server_port", "8080"),
                // Not the balancer's, as by HTTP.
                ("remote_addr", "127.0.0.9"),
                ("remote_host", "127.0.0.9"),
                ("remote_port", &port.to_string()),
                ("local_addr", "127.0.0.1"),
                ("activation", "ACT"),
                ("secure", "false"),
            ] {
                assert_eq!(one(&all, name), value, "{method} {path}: {name}");
            }
        }
    }
    // HEAD, and responses without a body; the connection serves the next.
    for path in [
        "/x",
        "/source?bytes=100000",
        "/source?bytes=100000&unknown=1",
    ] {
        let http = ask(
            &mut client,
            ("HEAD", &format!("/h{path}")),
            &vec![],
            b"",
            &[],
        );
        let ajp = ask(
            &mut client,
            ("HEAD", &format!("/a{path}")),
            &vec![],
            b"",
            &[],
        );
        assert_eq!(ajp.status, 200);
        assert_eq!(
            ajp.one("content-length").is_some(),
            http.one("content-length").is_some()
        );
    }
    for status in [204, 304, 200, 500] {
        let answer = client.get(&format!("/a/empty?status={status}"));
        assert_eq!((answer.status, answer.body.len()), (status, 0));
    }
    // Of unknown length, with and without somebody who reads it.
    let body: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
    for chunks in [
        vec![1000],
        vec![8186],
        vec![8187, 1],
        vec![100_000],
        vec![65_536],
    ] {
        let http = ask(&mut client, ("POST", "/h/x"), &vec![], &body, &chunks);
        let ajp = ask(&mut client, ("POST", "/a/x"), &vec![], &body, &chunks);
        assert_eq!(one(&said(&ajp), "body"), "100000");
        assert_eq!(comparable(&ajp), comparable(&http));
        let back = ask(&mut client, ("PUT", "/a/through"), &vec![], &body, &chunks);
        assert!(back.body == body, "{} bytes came back", back.body.len());
    }
    let ajp = ask(&mut client, ("POST", "/a/x"), &vec![], b"", &[5]);
    assert_eq!(one(&said(&ajp), "body"), "0");
    for chunks in [vec![], vec![1000]] {
        let mut client = scene.client();
        let answer = ask(&mut client, ("POST", "/a/refuse"), &vec![], &body, &chunks);
        assert_eq!(answer.status, 413, "{answer:?}");
    }
    // A client that waits for leave gets it.
    let mut client = scene.client();
    client
        .send("POST /a/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let (_, status, _) = client.head().expect("an interim response");
    assert_eq!(status, 100);
    client.send("hello");
    let all = said(&client.answer());
    assert_eq!(one(&all, "body"), "5");
    assert!(
        !all["header"]
            .iter()
            .any(|header| header.starts_with("expect"))
    );
}

#[test]
fn http2_and_old_http_arrive_as_such() {
    let scene = Scene::new(&both());
    let curl = |arguments: &[&str]| {
        let mut command = scene.ns.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "60"]);
        let output = command.args(arguments).output().expect("run curl");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        let line = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
            lines
                .next()
                .unwrap_or_else(|| panic!("no {name} in {text}"))
                .trim()
                .to_owned()
        };
        (line("protocol"), line("body"), line("server_name"))
    };
    let url = "http://127.0.0.1:8080/a/x";
    let name = "127.0.0.1".to_owned();
    for (version, protocol) in [
        ("--http2-prior-knowledge", "HTTP/2.0"),
        ("--http1.1", "HTTP/1.1"),
        ("--http1.0", "HTTP/1.0"),
    ] {
        let want = (protocol.to_owned(), "4".to_owned(), name.clone());
        assert_eq!(curl(&[version, "--data", "body", url]), want);
    }
    // Without any host, the address that the client has reached.
    let want = ("HTTP/1.0".to_owned(), "0".to_owned(), name.clone());
    assert_eq!(curl(&["--http1.0", "--header", "Host:", url]), want);
}

#[test]
fn sessions_stay_and_a_drain_is_told() {
    let ns = Netns::new();
    let second = Setup {
        route: "s1",
        ajp: 8010,
        http: 8082,
        packet_size: 65_536,
        ..Setup::default()
    };
    let _first = Tomcat::start(&ns, Setup::default());
    let other = Tomcat::start(&ns, second);
    let keys = format!(
        "secret = \"wrong\"\n[pool.sticky]\ntype = \"route\"\n{CHECK}\
         [[pool.backend]]\nname = \"s0\"\naddress = \"127.0.0.1:8009\"\nsecret = {0}\n\
         [[pool.backend]]\nname = \"s1\"\naddress = \"127.0.0.1:8010\"\nsecret = {0}\n",
        quoted(SECRET)
    );
    let config = frontend("").replace("\"app\"", "\"ajp\"")
        + &format!("[[pool]]\nname = \"ajp\"\nprotocol = \"ajp\"\n{keys}");
    let mut agent = Agent::prepare_plain(&ns, &config);
    agent.run();
    agent.wait_all_up();
    let mut client = Raw::connect(&ns, HTTP);
    let mut sessions: Vec<String> = Vec::new();
    for _ in 0..6 {
        let answer = client.get("/session");
        sessions.push(answer.cookie("JSESSIONID").expect("a session").to_owned());
    }
    let on = |route: &str| sessions.iter().filter(|id| id.ends_with(route)).count();
    assert_eq!((on(".s0"), on(".s1")), (3, 3), "{sessions:?}");
    let mut visit =
        |id: &str, path: &str| client.get_with(path, &[("Cookie", &format!("JSESSIONID={id}"))]);
    for count in 2..6 {
        for id in &sessions {
            assert_eq!(visit(id, "/session").text(), format!("{id} {count}\n"));
        }
    }
    // The application sees that its node is being emptied; new sessions go elsewhere.
    agent.order(&["drain", "ajp/s0"]);
    for id in &sessions {
        let route = &id[id.len() - 2..];
        let answer = said(&visit(id, "/x"));
        let activation = if route == "s0" { "DIS" } else { "ACT" };
        assert_eq!(one(&answer, "activation"), activation, "{id}");
        assert_eq!(visit(id, "/session").text(), format!("{id} 6\n"));
    }
    for _ in 0..4 {
        let answer = visit("none", "/session");
        assert!(
            answer
                .cookie("JSESSIONID")
                .expect("a session")
                .ends_with(".s1")
        );
    }
    agent.order(&["activate", "ajp/s0"]);
    // A Tomcat that dies takes its sessions along, but no browser.
    drop(other);
    let id = sessions.iter().find(|id| id.ends_with(".s1")).expect("one");
    let answer = visit(id, "/session");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        answer
            .cookie("JSESSIONID")
            .expect("a session")
            .ends_with(".s0")
    );
}

#[test]
fn a_tomcat_that_is_paused_is_down() {
    let secret = format!("secret = {}\n", quoted(SECRET));
    let ping = "[pool.ping]\ntimeout = \"300ms\"\n";
    let config = frontend("").replace("\"app\"", "\"ajp\"") + &pool(&(secret + ping), "");
    let config = config.replace("timeout = \"5s\"", "timeout = \"1s\"");
    let mut scene = Scene::new(&config);
    let mut client = scene.client();
    assert_eq!(client.get("/x").status, 200);
    let last = &scene.agent.backend("ajp", "s0")["last_check"];
    assert!(last.to_string().contains("answers CPING"), "{last}");
    scene.tomcat.pause();
    // The kept connection is asked first, then a fresh one; the client hears of it.
    let answer = client.get("/x");
    assert!(matches!(answer.status, 502 | 503), "{answer:?}");
    scene.agent.wait_health("ajp", "s0", "down");
    let last = &scene.agent.backend("ajp", "s0")["last_check"];
    assert!(last.to_string().contains("timeout"), "{last}");
    scene.tomcat.resume();
    scene.agent.wait_health("ajp", "s0", "up");
    wait_until("requests to be answered", Duration::from_secs(20), || {
        client.get("/x").status == 200
    });
}

#[test]
fn the_secret_is_needed() {
    let ns = Netns::new();
    let _tomcat = Tomcat::start(&ns, Setup::default());
    for (keys, status) in [
        (String::new(), 403),
        ("secret = \"guess\"\n".to_owned(), 403),
        (format!("secret = {}\n", quoted(SECRET)), 200),
    ] {
        let config = frontend("").replace("\"app\"", "\"ajp\"") + &pool(&keys, "");
        let mut agent = Agent::prepare_plain(&ns, &config);
        agent.run();
        agent.wait_all_up();
        let mut client = Raw::connect(&ns, HTTP);
        for _ in 0..3 {
            assert_eq!(client.get("/x").status, status, "{keys}");
        }
    }
}

#[test]
fn tls_of_the_client_is_told() {
    let (ns, dir) = (Netns::new(), scene_dir());
    let authority = Authority::new(dir.path(), "all");
    let pair = authority.sign("server", &["test.example"], 7);
    let own = authority.sign("client", &["client.example"], 4711);
    let _tomcat = Tomcat::start(&ns, Setup::default());
    let config = format!(
        "[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"{HTTPS}\"\npool = \"ajp\"\n\
         [frontend.tls]\nclient_auth = \"optional\"\nclient_authorities = {:?}\n\
         [[frontend.tls.certificate]]\ncertificate = {:?}\nkey = {:?}\n",
        dir.path().join("all.pem"),
        pair.certificate,
        pair.key
    ) + &pool(&format!("secret = {}\n", quoted(SECRET)), "");
    let mut agent = Agent::prepare_plain(&ns, &config);
    agent.run();
    agent.wait_all_up();
    for shown in [true, false] {
        let config = match shown {
            true => authority.client_with(&own),
            false => authority.client(&[]),
        };
        let mut client = Raw::tls(&ns, HTTPS, &config, "test.example").expect("TLS");
        let all = said(&client.get("/x"));
        for (name, value) in [
            ("secure", "true"),
            ("scheme", "https"),
            ("server_port", "443"),
            ("url", "https://test.example/x"),
            ("tls", "TLSv1.3"),
        ] {
            assert_eq!(one(&all, name), value, "{name}");
        }
        let cipher = one(&all, "cipher");
        let bits = if cipher.contains("128") { "128" } else { "256" };
        assert!(cipher.starts_with("TLS_"), "{cipher}");
        assert_eq!(one(&all, "key_size"), bits);
        let certificate = all.get("certificate").map(|all| all.join(","));
        assert_eq!(certificate.as_deref(), shown.then_some("4711"));
    }
}

#[test]
fn websockets_go_to_the_http_connector() {
    let scene = Scene::new(&both());
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let mut client = scene.client();
    let answer = client.get_with("/a/mirror", &upgrade);
    assert_eq!(answer.status, 101, "{answer:?}");
    let accept = answer.one("sec-websocket-accept");
    assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    for text in ["hello", "again"] {
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.bytes());
        client.send(frame);
        let got = client.exactly(2 + text.len(), 0).expect("a frame");
        assert_eq!(got, [&[0x81, text.len() as u8], text.as_bytes()].concat());
    }
    // One that is none is answered as it is.
    assert_eq!(scene.client().get_with("/a/x", &upgrade).status, 200);
    // Without such a port there is no way.
    scene
        .agent
        .reconfigure(&both().replace("http_port = 8081\n", ""));
    let mut client = scene.client();
    let answer = client.get_with("/a/mirror", &upgrade);
    assert_eq!(answer.status, 501, "{answer:?}");
    let log = scene.agent.log();
    assert!(
        log.contains("a WebSocket was refused with 501") && log.contains("http_port"),
        "{log}"
    );
    // Other upgrades are passed over.
    let other = [("Connection", "Upgrade"), ("Upgrade", "other/1")];
    let result: Result<Answer, Trouble> = client.try_request("GET", "/a/x", &other, b"");
    let all = said(&result.expect("an answer"));
    assert!(
        !all["header"]
            .iter()
            .any(|h| h.starts_with("upgrade") || h.starts_with("connection"))
    );
}
