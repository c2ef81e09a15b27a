use std::collections::HashMap;

use super::*;
use crate::admin::protocol::{PoolStatus, TrafficStatus};
use crate::config;
use crate::proxy::stats::HttpStatus;

const CONFIG: &str = r#"
[xdp]
interfaces = ["eth0"]
[[frontend]]
name = "www"
mode = "http"
address = "127.0.0.1:80"
pool = "app"
[[frontend]]
name = "db"
address = "192.0.2.1:3306"
pool = "db"
[[pool]]
name = "app"
balance = "least-connections"
[pool.sticky]
type = "route"
[[pool.backend]]
name = "s1"
address = "10.0.0.1:80"
[[pool.backend]]
name = "s2"
address = "10.0.0.2:80"
priority = 1
[[pool]]
name = "db"
[pool.check]
type = "none"
[[pool.backend]]
name = "d1"
address = "10.0.0.3:3306"
"#;

fn steered(name: &str, health: Health, flows: u32) -> BackendStatus {
    BackendStatus {
        name: name.into(),
        address: "10.0.0.1:80".parse().unwrap(),
        health,
        health_reason: "3 checks failed, \"refused\"".into(),
        health_for_ms: 61_000,
        last_check: Some("refused".into()),
        checks: 9,
        checks_failed: 3,
        activation: Activation::Active,
        overridden: false,
        weight: 4,
        usable: health == Health::Up,
        hop_problem: None,
        flows,
        half_open: 0,
        connections_total: u64::from(flows) * 2,
        established_total: 0,
        refused: 1,
        requests_in_flight: 0,
        sessions: None,
        last_session_ends_ms: None,
        sessions_unheard: Vec::new(),
        traffic: TrafficStatus {
            packets_in: u64::from(flows),
            bytes_in: 100,
            packets_out: 0,
            bytes_out: 200,
        },
    }
}

fn requests(name: &str, route: &str) -> HttpBackendStatus {
    HttpBackendStatus {
        name: name.into(),
        route: route.into(),
        health: Health::Up,
        in_flight: 2,
        in_flight_limit: Some(50),
        requests: 30,
        retries: 1,
        statuses: BTreeMap::from([("2xx".into(), 20), ("5xx".into(), 7)]),
        connect_failed: 4,
        broken: 2,
        timed_out: 1,
        client_aborted: 5,
        ejections: 6,
        ..HttpBackendStatus::default()
    }
}

/// Rows by their two names, as maps from column to value.
pub fn rows(csv: &str) -> HashMap<(String, String), HashMap<String, String>> {
    let mut lines = csv.lines();
    let columns: Vec<&str> = lines
        .next()
        .unwrap()
        .strip_prefix("# ")
        .unwrap()
        .split(',')
        .collect();
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
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields.last_mut().unwrap().push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
    }
    fields
}

#[test]
fn every_row_says_what_was_counted() {
    let config = config::parse("t", CONFIG).unwrap();
    let status = Status {
        frontends: vec![FrontendStatus {
            name: "db".into(),
            address: "192.0.2.1:3306".parse().unwrap(),
            protocol: "tcp".into(),
            pool: "db".into(),
            flows: 3,
            half_open: 1,
            connections_total: 17,
            established_total: 16,
            refused: 2,
            traffic: TrafficStatus {
                bytes_in: 5,
                bytes_out: 6,
                ..TrafficStatus::default()
            },
        }],
        pools: vec![
            PoolStatus {
                name: "app".into(),
                backends: vec![steered("s1", Health::Down, 0), steered("s2", Health::Up, 0)],
            },
            PoolStatus {
                name: "db".into(),
                backends: vec![steered("d1", Health::Up, 3)],
            },
        ],
        http: Some(Box::new(HttpStatus {
            frontends: vec![HttpFrontendStatus {
                name: "www".into(),
                connections: 1,
                connections_most: 2,
                connections_limit: 3,
                connections_total: 4,
                requests: 5,
                statuses: BTreeMap::from([("2xx".into(), 4), ("none".into(), 1)]),
                causes: BTreeMap::from([("refused".into(), 8), ("client-aborted".into(), 9)]),
                refused: BTreeMap::from([
                    ("tls-handshake".into(), 10),
                    ("frontend-limit".into(), 11),
                ]),
                bytes_in: 12,
                bytes_out: 13,
                ..HttpFrontendStatus::default()
            }],
            pools: vec![HttpPoolStatus {
                name: "app".into(),
                queue: 1,
                queue_most: 2,
                queue_limit: 1024,
                retries: 3,
                rebound: 4,
                backends: vec![requests("s1", "r1"), requests("s2", "r2")],
                ..HttpPoolStatus::default()
            }],
            ..HttpStatus::default()
        })),
        ..Status::default()
    };
    let text = csv(&status, &config);
    assert!(text.starts_with("# pxname,svname,qcur,qmax,"), "{text}");
    assert_eq!(text.lines().count(), 1 + 2 + 3 + 2, "{text}");
    let rows = rows(&text);
    let at = |proxy: &str, service: &str, columns: &str| {
        let row = &rows[&(proxy.to_owned(), service.to_owned())];
        columns
            .split(' ')
            .map(|column| row[column].as_str())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        at(
            "www",
            "FRONTEND",
            "scur smax slim stot req_tot bin bout status type mode"
        ),
        "1 2 3 4 5 12 13 OPEN 0 http"
    );
    assert_eq!(
        at(
            "www",
            "FRONTEND",
            "hrsp_2xx hrsp_other dreq cli_abrt dcon ssl_failed_handshake"
        ),
        "4 1 8 9 11 10"
    );
    assert_eq!(
        at("db", "FRONTEND", "scur stot bin bout dcon mode"),
        "4 17 5 6 2 tcp"
    );
    assert_eq!(
        at(
            "app",
            "s1",
            "status weight act bck chkfail lastchg scur slim stot econ eresp"
        ),
        "DOWN 4 1 0 3 61 2 50 30 5 3"
    );
    assert_eq!(
        at(
            "app",
            "s1",
            "cookie hrsp_2xx hrsp_5xx check_rise check_fall sid"
        ),
        "r1 20 7 2 3 1"
    );
    assert_eq!(
        rows[&("app".into(), "s1".into())]["check_desc"],
        "3 checks failed, \"refused\""
    );
    assert_eq!(at("app", "s2", "status act bck"), "UP 0 1");
    assert_eq!(
        at(
            "app",
            "BACKEND",
            "status act bck weight qcur qmax stot wretr wredis algo cookie"
        ),
        "UP 0 1 4 1 2 60 3 4 leastconn JSESSIONID"
    );
    assert_eq!(
        at("db", "d1", "status scur stot bin bout mode"),
        "no check 3 6 100 200 tcp"
    );
    // What is not counted is empty, not 0.
    assert_eq!(rows[&("app".into(), "s1".into())]["qtime"], "");
    assert_eq!(rows[&("db".into(), "d1".into())]["hrsp_2xx"], "");
}
