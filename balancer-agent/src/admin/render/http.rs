//! The web tier's part of `balancer status`.

use std::collections::BTreeMap;

use comfy_table::Table;

use super::{backend_state, bytes, duration, right, table, titled};
use crate::admin::protocol::{BackendStatus, Status};
use crate::proxy::stats::{HttpBackendStatus, HttpFrontendStatus, HttpPoolStatus, HttpStatus};

/// Classes of statuses, as they are shown.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// Everything about it.
pub(super) fn status(status: &Status, http: &HttpStatus) -> String {
    let mut out = String::new();
    if !http.frontends.is_empty() {
        out += &titled("HTTP frontends", frontends(&http.frontends));
        out += &troubles(&http.frontends);
        out += &line(
            "connections",
            &of(http.connections, Some(http.connections_limit)),
        );
        if http.threads.len() > 1 {
            let each = http.threads.iter().map(|t| t.requests.to_string());
            let each: Vec<String> = each.collect();
            out += &line("requests by thread", &each.join(", "));
        }
    }
    for pool in &http.pools {
        let known = status.pools.iter().find(|p| p.name == pool.name);
        let known = known.map_or(&[][..], |pool| &pool.backends);
        let title = format!("Pool {}, for HTTP", pool.name);
        out += &titled(&title, backends(&pool.backends, known));
        out += &waits(pool);
    }
    if !http.logs.is_empty() {
        out += &titled("Access logs", logs(http));
    }
    out
}

/// Whether a pool's table for HTTP says all there is: nothing is steered to it.
pub(super) fn covers(status: &Status, pool: &str) -> bool {
    let web = status.http.iter().flat_map(|http| &http.pools);
    let kernel = status.frontends.iter();
    web.into_iter().any(|p| p.name == pool) && !kernel.into_iter().any(|f| f.pool == pool)
}

fn frontends(frontends: &[HttpFrontendStatus]) -> Table {
    const COUNTS: [&str; 13] = [
        "Connections",
        "Parked",
        "Most",
        "Total",
        "In flight",
        "Requests",
        "2xx",
        "3xx",
        "4xx",
        "5xx",
        "Bytes in",
        "out",
        "Refused",
    ];
    let what = ["Name", "Address", "TLS"];
    let mut table = table(&[&what[..], &COUNTS].concat());
    right(&mut table, what.len()..what.len() + COUNTS.len());
    for f in frontends {
        let address = f.address.map_or("-".into(), |a| a.to_string());
        let class = |name| f.statuses.get(name).copied().unwrap_or(0).to_string();
        let refused: u64 = f.refused.values().sum();
        table.add_row([
            f.name.clone(),
            address,
            if f.tls { "yes" } else { "no" }.into(),
            of(f.connections, Some(f.connections_limit)),
            f.parked.to_string(),
            f.connections_most.to_string(),
            f.connections_total.to_string(),
            f.in_flight.to_string(),
            f.requests.to_string(),
            class("2xx"),
            class("3xx"),
            class("4xx"),
            class("5xx"),
            bytes(f.bytes_in),
            bytes(f.bytes_out),
            refused.to_string(),
        ]);
    }
    table
}

/// What did not end well, in a line per frontend that has some.
fn troubles(frontends: &[HttpFrontendStatus]) -> String {
    let mut out = String::new();
    for f in frontends {
        if !f.causes.is_empty() {
            out += &line(&format!("{}: ended by", f.name), &listed(&f.causes));
        }
        if !f.refused.is_empty() {
            out += &line(&format!("{}: refused for", f.name), &listed(&f.refused));
        }
        if f.send_timeouts > 0 {
            let text = f.send_timeouts.to_string();
            out += &line(&format!("{}: cut for taking nothing", f.name), &text);
        }
        if f.accept_pauses > 0 {
            let text = format!("{}, for want of descriptors or memory", f.accept_pauses);
            out += &line(&format!("{}: accepting paused", f.name), &text);
        }
    }
    out
}

fn backends(backends: &[HttpBackendStatus], known: &[BackendStatus]) -> Table {
    let mut counts = vec![
        "In flight",
        "Requests",
        "Of these again",
        "Answers",
        "Failed",
        "Client gone",
    ];
    let counted = backends.iter().any(|b| b.sessions.is_some());
    if counted {
        counts.push("Sessions");
    }
    let what = [
        "Name",
        "Route",
        "Address",
        "Activation",
        "Health",
        "For",
        "Because",
    ];
    let mut table = table(&[&what[..], &counts].concat());
    right(&mut table, what.len()..what.len() + counts.len());
    for b in backends {
        let row = match known.iter().find(|known| known.name == b.name) {
            Some(known) => {
                let [address, activation, health, since, because] = backend_state(known);
                [
                    b.name.clone(),
                    b.route.clone(),
                    address,
                    activation,
                    health,
                    since,
                    because,
                ]
            }
            // Just added or removed by a reload.
            None => [
                b.name.clone(),
                b.route.clone(),
                "-".into(),
                b.activation.to_string(),
                b.health.to_string(),
                "-".into(),
                "-".into(),
            ],
        };
        let mut row = Vec::from(row);
        if let Some(left) = b.ejected_ms {
            let why = match left {
                0 => "ejected, waits for a trial".into(),
                left => format!("ejected for {}", duration(left)),
            };
            row[4] = format!("{} ({why})", row[4]);
        }
        let failed = [
            ("connect", b.connect_failed),
            ("broken", b.broken),
            ("late", b.timed_out),
        ];
        let failed = failed.iter().filter(|(_, n)| *n > 0);
        let failed: Vec<String> = failed.map(|(what, n)| format!("{n} {what}")).collect();
        row.extend([
            of(b.in_flight, b.in_flight_limit),
            b.requests.to_string(),
            b.retries.to_string(),
            match b.statuses.is_empty() {
                true => "0".into(),
                false => listed(&b.statuses),
            },
            match failed.is_empty() {
                true => "0".into(),
                false => failed.join(", "),
            },
            b.client_aborted.to_string(),
        ]);
        if counted {
            row.push(b.sessions.map_or("-".into(), |n| n.to_string()));
        }
        table.add_row(row);
    }
    table
}

/// Queue, retries and tables of a pool.
fn waits(pool: &HttpPoolStatus) -> String {
    let mut queue = of(pool.queue, Some(pool.queue_limit));
    if pool.queue_most > 0 {
        queue += &format!(", {} at most", pool.queue_most);
    }
    for (n, what) in [
        (pool.queue_refused, "found it full"),
        (pool.queue_timeouts, "waited too long"),
        (pool.none_usable, "found no usable backend"),
        (
            pool.forced,
            "were refused another backend than their session's",
        ),
    ] {
        if n > 0 {
            queue += &format!("; {n} {what}");
        }
    }
    let mut out = line("queue", &queue);
    if pool.retries + pool.retries_refused > 0 {
        let refused = pool.retries_refused;
        let text = format!("{}; {refused} more were over the budget", pool.retries);
        out += &line("retries", &text);
    }
    if pool.rebound + pool.invalid_cookies > 0 {
        let mut text = format!("{} went to another backend than theirs", pool.rebound);
        if pool.invalid_cookies > 0 {
            text += &format!("; {} cookies were not genuine", pool.invalid_cookies);
        }
        out += &line("sessions", &text);
    }
    for t in &pool.tables {
        let mut text = of(t.entries, Some(t.limit));
        if t.evicted > 0 {
            text += &format!("; {} gave way to newer ones", t.evicted);
        }
        out += &line(&format!("sessions {}", t.kind), &text);
    }
    out
}

fn logs(http: &HttpStatus) -> Table {
    let mut table = table(&["File", "Written", "Waiting", "Dropped lines", "Trouble"]);
    right(&mut table, 1..4);
    for l in &http.logs {
        table.add_row([
            l.file.clone(),
            bytes(l.bytes),
            format!("{} of {}", bytes(l.waiting), bytes(l.waiting_limit)),
            l.dropped.to_string(),
            l.error.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    table
}

/// A number and its bound.
fn of(n: u64, limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("{n} of {limit}"),
        None => n.to_string(),
    }
}

/// `12 2xx, 3 5xx`.
fn listed(counts: &BTreeMap<String, u64>) -> String {
    // Classes in their own order, anything else by its name.
    let place = |name: &str| CLASSES.iter().position(|class| *class == name);
    let mut counts: Vec<(&String, &u64)> = counts.iter().filter(|(_, n)| **n > 0).collect();
    counts.sort_by_key(|(name, _)| (place(name), *name));
    let texts: Vec<String> = counts
        .iter()
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    texts.join(", ")
}

fn line(name: &str, text: &str) -> String {
    format!("  {name}: {text}\n")
}

#[cfg(test)]
mod tests {
    use super::super::status as whole;
    use super::*;
    use crate::admin::protocol::{FrontendStatus, PoolStatus};
    use crate::model::{Activation, Health};
    use crate::proxy::stats::{LogStatus, TableStatus, ThreadStatus};

    fn backend(name: &str) -> BackendStatus {
        BackendStatus {
            name: name.into(),
            address: "10.0.0.1:80".parse().unwrap(),
            health: Health::Down,
            health_reason: "connection refused".into(),
            health_for_ms: 61_000,
            last_check: None,
            checks: 5,
            checks_failed: 2,
            activation: Activation::Drain,
            overridden: true,
            weight: 1,
            usable: false,
            hop_problem: None,
            flows: 0,
            half_open: 0,
            connections_total: 0,
            established_total: 0,
            refused: 0,
            requests_in_flight: 3,
            sessions: None,
            last_session_ends_ms: None,
            sessions_unheard: Vec::new(),
            traffic: Default::default(),
        }
    }

    fn full() -> Status {
        let counts = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(name, n)| ((*name).into(), *n)).collect()
        };
        let http = HttpStatus {
            connections: 17,
            connections_limit: 100_000,
            threads: [40, 2]
                .map(|requests| ThreadStatus {
                    requests,
                    ..Default::default()
                })
                .into(),
            frontends: vec![HttpFrontendStatus {
                name: "www".into(),
                address: Some("[::]:443".parse().unwrap()),
                tls: true,
                connections: 17,
                connections_limit: 90_000,
                requests: 42,
                statuses: counts(&[("2xx", 40), ("5xx", 2)]),
                causes: counts(&[("backend-aborted", 2)]),
                refused: counts(&[("tls-handshake", 9)]),
                ..Default::default()
            }],
            pools: vec![HttpPoolStatus {
                name: "app".into(),
                queue: 1,
                queue_most: 8,
                queue_limit: 1024,
                queue_timeouts: 4,
                retries: 6,
                retries_refused: 7,
                rebound: 13,
                tables: vec![TableStatus {
                    kind: "learned".into(),
                    entries: 12,
                    limit: 50_000,
                    evicted: 0,
                }],
                backends: vec![HttpBackendStatus {
                    name: "s1".into(),
                    route: "r1".into(),
                    in_flight: 3,
                    in_flight_limit: Some(20),
                    requests: 40,
                    statuses: counts(&[("none", 1), ("5xx", 2), ("2xx", 30)]),
                    connect_failed: 5,
                    ejected_ms: Some(2500),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            logs: vec![LogStatus {
                file: "/var/log/balancer/www.log".into(),
                bytes: 2048,
                waiting_limit: 3 << 20,
                dropped: 11,
                error: Some("No space left on device".into()),
                ..Default::default()
            }],
        };
        Status {
            pools: vec![PoolStatus {
                name: "app".into(),
                backends: vec![backend("s1")],
            }],
            http: Some(Box::new(http)),
            ..Default::default()
        }
    }

    #[test]
    fn everything_is_shown() {
        let text = whole(&full());
        for expected in [
            "HTTP frontends",
            "[::]:443",
            "17 of 90000",
            "connections: 17 of 100000",
            "www: ended by: 2 backend-aborted",
            "www: refused for: 9 tls-handshake",
            "requests by thread: 40, 2",
            "Pool app, for HTTP",
            "drain (operator)",
            "down (ejected for 2.5 s)",
            "1 min 1 s",
            "connection refused",
            "3 of 20",
            "30 2xx, 2 5xx, 1 none",
            "5 connect",
            "queue: 1 of 1024, 8 at most; 4 waited too long",
            "retries: 6; 7 more were over the budget",
            "sessions: 13 went to another backend than theirs",
            "sessions learned: 12 of 50000",
            "/var/log/balancer/www.log",
            "0 B of 3.0 MiB",
            "No space left on device",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert_eq!(text.matches("Pool app").count(), 1, "{text}");
    }

    #[test]
    fn a_pool_that_is_steered_to_as_well_has_both_tables() {
        let mut both = full();
        both.frontends.push(FrontendStatus {
            name: "tcp".into(),
            address: "192.0.2.1:80".parse().unwrap(),
            protocol: "tcp".into(),
            pool: "app".into(),
            flows: 0,
            half_open: 0,
            connections_total: 0,
            established_total: 0,
            refused: 0,
            traffic: Default::default(),
        });
        let text = whole(&both);
        assert!(text.contains("\nPool app\n"), "{text}");
        assert!(text.contains("\nPool app, for HTTP\n"), "{text}");
    }

    #[test]
    fn an_idle_tier_is_short() {
        let status = Status {
            http: Some(Box::default()),
            ..Default::default()
        };
        assert!(!whole(&status).contains("HTTP"), "{}", whole(&status));
    }
}
