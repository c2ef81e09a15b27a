//! Statistics as scripts for other balancers read them: HAProxy's CSV and mod_jk's status,
//! compared with the traffic that was made.

use std::collections::HashMap;
use std::net::IpAddr;

use balancer_tests::bed::{
    Bed, NOT_PASSIVE, QUICK_CHECK, backends4, frontend as steered, pool as steered_pool, vip4,
};
use balancer_tests::http::raw::{Answer, Raw};
use balancer_tests::http::web::{CHECK, HTTP, Web, frontend_with_sites, pool_with, write};
use balancer_tests::load::{Ask, sequential};
use balancer_tests::process::{BOUND, wait_until};
use balancer_tests::server::ECHO;

/// A pool with sessions at `/app`, files at `/files`, and both views.
fn scene() -> Web {
    Web::new(2, |dir| {
        write(dir, "files/a.txt", "twelve bytes");
        let files = dir.join("files").display().to_string();
        frontend_with_sites(&format!(
            "[[frontend.site]]\npool = \"app\"\n\
             [[frontend.site.mount]]\npattern = \"/haproxy\"\nstats = {{ format = \"haproxy-csv\" }}\n\
             [[frontend.site.mount]]\npattern = \"/near\"\nstats = {{ format = \"haproxy-csv\", allow = [\"127.0.0.1\"] }}\n\
             [[frontend.site.mount]]\npattern = \"/jkstatus\"\nstats = {{ format = \"jk-status\" }}\n\
             [[frontend.site.mount]]\npattern = \"/files/*\"\nfiles = {{ root = \"{files}\" }}\nrewrite = {{ strip_prefix = \"/files\" }}\n"
        )) + &pool_with(
            2,
            &format!("{CHECK}[pool.sticky]\ntype = \"route\"\n"),
            |i| format!("weight = {}\nroute = \"r{i}\"\npriority = {i}\n", 3 - i),
        )
    })
}

/// Rows of a CSV by their two names, as maps from column to value.
fn rows(csv: &str) -> HashMap<(String, String), HashMap<String, String>> {
    let mut lines = csv.lines();
    let head = lines
        .next()
        .and_then(|line| line.strip_prefix("# "))
        .expect("a head");
    let columns: Vec<&str> = head.split(',').collect();
    lines
        .map(|line| {
            let fields = split(line);
            assert_eq!(fields.len(), columns.len(), "{line}");
            let row: HashMap<String, String> = columns
                .iter()
                .map(|c| (*c).to_owned())
                .zip(fields)
                .collect();
            ((row["pxname"].clone(), row["svname"].clone()), row)
        })
        .collect()
}

fn split(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().expect("a field").push(c),
        }
    }
    fields
}

#[track_caller]
fn value(csv: &str, proxy: &str, service: &str, column: &str) -> String {
    let rows = rows(csv);
    let row = rows.get(&(proxy.to_owned(), service.to_owned()));
    row.unwrap_or_else(|| panic!("no row {proxy}/{service} in\n{csv}"))[column].clone()
}

#[track_caller]
fn number(csv: &str, proxy: &str, service: &str, column: &str) -> u64 {
    let value = value(csv, proxy, service, column);
    value
        .parse()
        .unwrap_or_else(|_| panic!("{column} is {value:?}"))
}

fn properties(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

#[test]
fn the_csv_has_what_was_counted() {
    let web = scene();
    for _ in 0..7 {
        assert_eq!(web.client().get("/app").status, 200);
    }
    for _ in 0..2 {
        assert_eq!(web.client().get("/files/none").status, 404);
    }
    web.wait_idle();
    // A request is counted behind its response.
    let get = || web.client().get("/haproxy?stats;csv").text();
    wait_until("all requests to be counted", BOUND, || {
        number(&get(), "web", "FRONTEND", "hrsp_4xx") == 2
            && number(&get(), "app", "s0", "hrsp_2xx") == 7
    });
    let answer = web.client().get("/haproxy?stats;csv");
    assert_eq!(
        answer.one("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(answer.one("cache-control"), Some("no-cache"));
    let csv = answer.text();
    let all = |service: &str, columns: &str| {
        let values = columns
            .split(' ')
            .map(|column| value(&csv, "app", service, column));
        values.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        all(
            "s0",
            "status act bck weight stot lbtot hrsp_2xx econ cookie"
        ),
        "UP 1 0 3 7 7 7 0 r0"
    );
    assert_eq!(
        all("s1", "status act bck weight stot lbtot"),
        "UP 0 1 2 0 0"
    );
    assert_eq!(
        all(
            "BACKEND",
            "status act bck weight stot hrsp_2xx qcur algo mode"
        ),
        "UP 1 1 5 7 7 0 roundrobin http"
    );
    assert_eq!(value(&csv, "web", "FRONTEND", "status"), "OPEN");
    // This one's own connection, at least.
    assert!(number(&csv, "web", "FRONTEND", "scur") >= 1);
    let total = number(&csv, "web", "FRONTEND", "stot");
    assert!(total >= 10, "{total}");
    assert!(number(&csv, "web", "FRONTEND", "bout") > 0);
    let seen = |text: &str| number(text, "web", "FRONTEND", "req_tot");
    let before = seen(&csv);
    wait_until("the request for it to be counted", BOUND, || {
        seen(&get()) > before
    });
}

#[test]
fn states_follow_operators_and_checks() {
    let mut web = scene();
    let status = |web: &Web, server: &str| {
        value(
            &web.client().get("/haproxy;csv").text(),
            "app",
            server,
            "status",
        )
    };
    web.agent.order(&["drain", "app/s0"]);
    assert_eq!(status(&web, "s0"), "DRAIN");
    web.agent.order(&["stop", "app/s0"]);
    assert_eq!(status(&web, "s0"), "MAINT");
    web.agent.order(&["activate", "app/s0"]);
    web.app("s1").kill9();
    web.wait_health("s1", "down");
    wait_until("the web tier to know it", BOUND, || {
        let csv = web.client().get("/haproxy").text();
        value(&csv, "app", "s1", "status") == "DOWN" && number(&csv, "app", "s1", "chkfail") >= 3
    });
    wait_until("mod_jk's view to know it", BOUND, || {
        let text = web.client().get("/jkstatus?cmd=list&mime=prop").text();
        properties(&text).get("worker.s1.state") == Some(&"ERR")
    });
}

#[test]
fn mod_jks_status_has_what_was_counted() {
    let web = scene();
    let ask = |query: &str| -> Answer { web.client().get(&format!("/jkstatus{query}")) };
    let text = ask("?cmd=list&mime=prop").text();
    assert_eq!(properties(&text)["worker.s0.state"], "OK/IDLE", "{text}");
    for _ in 0..5 {
        assert_eq!(web.client().get("/app").status, 200);
    }
    web.wait_idle();
    let text = ask("?cmd=list&mime=prop").text();
    let own = properties(&text);
    for (name, value) in [
        ("worker.list", "app"),
        ("worker.lb_count", "1"),
        ("worker.app.type", "lb"),
        ("worker.app.sticky_session", "True"),
        ("worker.app.member_count", "2"),
        ("worker.app.good", "2"),
        ("worker.s0.state", "OK"),
        ("worker.s0.activation", "ACT"),
        ("worker.s0.lbfactor", "3"),
        ("worker.s0.route", "r0"),
        ("worker.s0.elected", "5"),
        ("worker.s0.host", "127.0.0.1"),
        ("worker.s1.state", "OK/IDLE"),
        ("worker.s1.distance", "1"),
        ("worker.result.type", "OK"),
    ] {
        assert_eq!(own.get(name), Some(&value), "{name} in\n{text}");
    }
    web.agent.order(&["drain", "app/s1"]);
    assert_eq!(
        properties(&ask("?mime=prop").text())["worker.s1.activation"],
        "DIS"
    );
    let xml = ask("?mime=xml");
    assert_eq!(xml.one("content-type"), Some("text/xml; charset=utf-8"));
    assert!(xml.text().contains("<jk:balancer\n"), "{}", xml.text());
    assert!(
        ask("?mime=txt")
            .text()
            .contains("\nMember: name=s0 type=http ")
    );
    assert!(ask("").text().starts_with("<!DOCTYPE html>"));
}

#[test]
fn nothing_is_changed_and_only_those_allowed_see_it() {
    let web = scene();
    let refused = web
        .client()
        .get("/jkstatus?cmd=update&mime=txt&w=app&sw=s0&vwa=2");
    assert_eq!(refused.status, 403);
    assert!(
        refused.text().contains("balancer stop"),
        "{}",
        refused.text()
    );
    let activation = web.agent.backend("app", "s0")["activation"].clone();
    assert_eq!(activation, "active");
    let from = |address: &str, path: &str| {
        let address: IpAddr = address.parse().expect("an address");
        Raw::connect_from(&web.ns, address, HTTP)
            .expect("a connection")
            .get(path)
    };
    // All of 127.0.0.0/8 without a word.
    assert_eq!(from("127.0.0.2", "/haproxy").status, 200);
    assert_eq!(from("127.0.0.1", "/near").status, 200);
    let denied = from("127.0.0.2", "/near");
    assert_eq!(denied.status, 403);
    assert!(!denied.text().contains("pxname"));
    // What a client says of itself is not believed.
    let pretended = web
        .client()
        .get_with("/near", &[("X-Forwarded-For", "192.0.2.1")]);
    assert_eq!(pretended.status, 200);
}

#[test]
fn the_command_prints_both() {
    let web = scene();
    assert_eq!(web.client().get("/app").status, 200);
    let csv = web.agent.order(&["status", "--csv"]);
    assert_eq!(value(&csv, "web", "FRONTEND", "status"), "OPEN");
    let text = web.agent.order(&["status", "--jk", "--mime", "prop"]);
    assert_eq!(properties(&text)["worker.app.member_count"], "2");
    assert!(
        web.agent
            .order(&["status", "--jk"])
            .starts_with("Time: unix=")
    );
}

#[test]
fn frontends_in_the_kernel_are_in_the_csv() {
    let bed = Bed::new(2, |lab| {
        let keys = format!("{QUICK_CHECK}{NOT_PASSIVE}");
        steered("echo", vip4(lab, 1, 7), "tcp", "echo")
            + &steered_pool("echo", &keys, &backends4(lab, ECHO, &[1, 1]))
    });
    let report = sequential(&bed.lab.client, vip4(&bed.lab, 1, 7), &Ask::Name, 20);
    assert_eq!(report.failed(), 0, "{:?}", report.failures());
    let csv = bed.agent.order(&["status", "--csv"]);
    assert_eq!(value(&csv, "echo", "FRONTEND", "mode"), "tcp");
    assert_eq!(number(&csv, "echo", "FRONTEND", "stot"), 20);
    assert!(number(&csv, "echo", "FRONTEND", "bin") > 0);
    for server in ["s0", "s1"] {
        assert_eq!(number(&csv, "echo", server, "stot"), 10);
        assert_eq!(value(&csv, "echo", server, "status"), "UP");
        assert!(number(&csv, "echo", server, "bin") > 0);
    }
    assert_eq!(number(&csv, "echo", "BACKEND", "stot"), 20);
    assert_eq!(number(&csv, "echo", "BACKEND", "act"), 2);
}
