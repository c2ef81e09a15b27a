//! The access log: what it says, that it can be rotated, and what it never says.

use std::fs;
use std::path::Path;

use balancer_tests::http::web::{CHECK, NO_CHECK, Web, frontend, pool};
use balancer_tests::process::{BOUND, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

fn logged(apps: usize, format: &str, keys: &str, pool_keys: &str) -> Web {
    Web::new(apps, |dir| {
        let file = dir.join("access.log");
        let log = format!("{keys}[frontend.log]\nfile = {file:?}\nformat = \"{format}\"\n");
        frontend(&log) + &pool(apps, pool_keys)
    })
}

fn read(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits for so many lines.
fn lines(web: &Web, count: usize) -> Vec<String> {
    let path = web.dir.path().join("access.log");
    wait_until("lines in the log", BOUND, || read(&path).len() >= count);
    let lines = read(&path);
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

#[test]
fn common_and_combined_are_as_apache_writes_them() {
    for format in ["common", "combined"] {
        let web = logged(1, format, "", CHECK);
        let fields = [
            ("Referer", "http://a.example/\"x\""),
            ("User-Agent", "curl/8 \\ test"),
        ];
        web.client().get_with("/bytes/1234?q=1", &fields);
        web.client().request("POST", "/status/404", &[], b"x");
        let lines = lines(&web, 2);
        assert!(lines[0].starts_with("127.0.0.1 - - ["), "{lines:?}");
        assert!(
            lines[0].contains("] \"GET /bytes/1234?q=1 HTTP/1.1\" 200 1234"),
            "{lines:?}"
        );
        assert!(
            lines[1].contains("\"POST /status/404 HTTP/1.1\" 404 "),
            "{lines:?}"
        );
        let agent = lines[0].contains("\"http://a.example/\\\"x\\\"\" \"curl/8 \\\\ test\"");
        assert_eq!(agent, format == "combined", "{lines:?}");
        assert!(lines[0].contains("s0"), "{lines:?}");
    }
}

#[test]
fn json_says_everything() {
    let keys = format!(
        "{NO_CHECK}[pool.observe]\nenabled = false\n[pool.timeouts]\nresponse = \"300ms\"\n\
        [pool.retries]\nattempts = 1\nbudget_percent = 100\n[pool.sticky]\ntype = \"route\"\n"
    );
    let web = logged(2, "json", "request_id = \"X-Request-Id\"\n", &keys);
    let mut client = web.client();
    client.get_with(
        "/bytes/10",
        &[
            ("Cookie", "JSESSIONID=SECRETID.s1"),
            ("User-Agent", "test \"x\""),
        ],
    );
    client.request("POST", "/delay/50", &[], b"hello");
    web.client().get("/hang");
    web.client().get("/abort");
    web.client().send("NONSENSE\r\n\r\n");
    let _ = web.client().try_request("GET", "/cut/100/10", &[], b"");
    let all: Vec<Value> = lines(&web, 6)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let find = |what: &str| {
        let found = all.iter().find(|line| line.to_string().contains(what));
        found.unwrap_or_else(|| panic!("no {what} in {all:#?}"))
    };
    let first = find("/bytes/10");
    assert_eq!(
        (&first["status"], &first["method"]),
        (&200.into(), &"GET".into())
    );
    assert_eq!(first["backend"], "s1", "{first:#}");
    assert_eq!(first["route"], "s1", "{first:#}");
    assert_eq!(first["bytes_out"], 10, "{first:#}");
    assert_eq!(first["cause"], "done", "{first:#}");
    let post = find("/delay/50");
    assert_eq!(post["bytes_in"], 5, "{post:#}");
    assert!(
        find("/hang").to_string().contains("backend-timeout"),
        "{:#}",
        find("/hang")
    );
    assert!(
        find("/abort").to_string().contains("backend-aborted"),
        "{:#}",
        find("/abort")
    );
    assert!(
        find("/cut/100").to_string().contains("backend-aborted"),
        "{:#}",
        find("/cut/100")
    );
    assert!(
        all.iter()
            .any(|line| line["status"] == 400 && line["cause"] == "refused"),
        "{all:#?}"
    );
    assert!(!format!("{all:?}").contains("SECRETID"));
}

#[test]
fn no_session_id_is_written_in_full() {
    let secret = "A1B2C3D4E5F60718";
    for format in ["common", "combined", "json"] {
        let web = logged(
            1,
            format,
            "",
            &format!("{CHECK}[pool.sticky]\ntype = \"route\"\n"),
        );
        let referer = format!("http://a.example/x;jsessionid={secret}.s0?y");
        let cookie = format!("JSESSIONID={secret}.s0");
        let fields = [("Cookie", cookie.as_str()), ("Referer", referer.as_str())];
        for path in [
            format!("/a;jsessionid={secret}.s0"),
            format!("/a;jsessionid={secret}.s0/b?c=d"),
            format!("/a;JSESSIONID={secret}"),
            format!("/a;x=y;jsessionid={secret}.s0;z=1"),
            format!("/a%3Bjsessionid={secret}.s0"),
            format!("/a?jsessionid={secret}.s0"),
            format!("/a?b=c&JSESSIONID={secret}.s0"),
        ] {
            web.client().get_with(&path, &fields);
        }
        web.client()
            .send(format!("GET /a;jsessionid={secret}.s0 HTTP/9.9\r\n\r\n"));
        let text = lines(&web, 8).join("\n");
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn nothing_a_client_sends_makes_a_line_of_its_own() {
    for format in ["common", "combined", "json"] {
        let web = logged(1, format, "", CHECK);
        let mut client = web.client();
        client.send(b"GET /a%0a127.0.0.1 HTTP/1.1\r\nHost: a\r\nUser-Agent: x\t\xff\"y\\n\r\nReferer: \xe2\x80\xa8\r\n\r\n");
        client.answer();
        web.client()
            .send("GET /\x1b[31m\x07 HTTP/1.1\r\nHost: a\r\n\r\n");
        let lines = lines(&web, 2);
        for line in &lines {
            assert!(
                line.bytes()
                    .all(|byte| (0x20..0x7f).contains(&byte) || byte >= 0x80),
                "{line:?}"
            );
            if format == "json" {
                serde_json::from_str::<Value>(line).expect("JSON");
            }
        }
    }
}

#[test]
fn a_signal_or_an_order_opens_the_file_again() {
    let mut web = logged(1, "common", "", CHECK);
    let path = web.dir.path().join("access.log");
    let mut client = web.client();
    client.get("/before");
    lines(&web, 1);
    for round in 0..3 {
        let aside = web.dir.path().join(format!("access.log.{round}"));
        fs::rename(&path, &aside).expect("rename");
        if round == 1 {
            web.agent.order(&["reopen-logs"]);
        } else {
            web.agent.signal(Signal::SIGUSR1);
        }
        wait_until("the new file", BOUND, || path.exists());
        client.get("/after");
        let now = lines(&web, 1);
        assert!(now[0].contains("/after"), "{now:?}");
        assert_eq!(read(&aside).len(), 1, "nothing is written to the old one");
    }
    assert!(web.agent.running());
}

#[test]
fn a_client_that_goes_away_is_logged_so() {
    let web = logged(1, "json", "", CHECK);
    let mut client = web.client();
    client.send("GET /sse/100/50 HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head().expect("a head");
    drop(client);
    let lines = lines(&web, 1);
    assert!(lines[0].contains("client-aborted"), "{lines:?}");
}
