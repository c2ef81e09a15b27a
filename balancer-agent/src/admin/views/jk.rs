//! The list of mod_jk's status worker (`jk_status.c` of 1.2.50), as `prop`, `xml`, `txt` or
//! `html`. Attributes that nothing here is counted for are left out.

use std::time::{SystemTime, UNIX_EPOCH};

use super::PLAIN;
use crate::admin::protocol::{BackendStatus, Status};
use crate::model::http::{Action, BackendProtocol, HttpBalance, Sticky};
use crate::model::{Activation, Backend, Config, Health, Pool};
use crate::proxy::stats::{HttpBackendStatus, HttpPoolStatus, View};

/// Ways to show it.
#[derive(Clone, Copy, PartialEq)]
enum Mime {
    Html,
    Xml,
    Txt,
    Prop,
}

/// A thing with its attributes.
struct Part {
    /// What it is called in `txt`.
    title: &'static str,
    /// Its element in `xml`.
    element: &'static str,
    /// Its name in `prop`; `None` for the node itself.
    name: Option<String>,
    attributes: Vec<(&'static str, String)>,
}

impl Part {
    fn new(title: &'static str, element: &'static str, name: Option<&str>) -> Self {
        Self {
            title,
            element,
            name: name.map(str::to_owned),
            attributes: Vec::new(),
        }
    }

    fn set(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    fn prop(&self, out: &mut String) {
        for (key, value) in &self.attributes {
            // Its name stands in the name of the property.
            if *key == "name" && self.name.is_some() {
                continue;
            }
            match &self.name {
                Some(name) => out.push_str(&format!("worker.{name}.{key}={value}\n")),
                None => out.push_str(&format!("worker.{key}={value}\n")),
            }
        }
    }

    fn txt(&self, out: &mut String) {
        out.push_str(self.title);
        for (key, value) in &self.attributes {
            match matches!(
                *key,
                "route" | "redirect" | "domain" | "web_server" | "message"
            ) {
                true => out.push_str(&format!(" {key}=\"{value}\"")),
                false => out.push_str(&format!(" {key}={value}")),
            }
        }
        out.push('\n');
    }

    fn xml(&self, indent: usize, close: bool, out: &mut String) {
        let pad = " ".repeat(indent);
        out.push_str(&format!("{pad}<jk:{}\n", self.element));
        for (key, value) in &self.attributes {
            out.push_str(&format!("{pad}  {key}=\"{}\"\n", escaped(value)));
        }
        out.push_str(&format!("{pad}{}\n", if close { "/>" } else { ">" }));
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A parameter of the query. mod_jk's have names and values without escapes.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        pair.split_once('=')
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
    })
}

/// The answer to a command that would change something.
pub fn refused(query: &str) -> Option<View> {
    let command = parameter(query, "cmd").unwrap_or("list");
    if matches!(command, "list" | "show" | "version") {
        return None;
    }
    let text = "This view changes nothing: use `balancer drain`, `balancer activate` and `balancer stop`.\n";
    Some(View {
        status: 403,
        content_type: PLAIN,
        text: text.to_owned(),
    })
}

/// The list; with `w=NAME`, of that pool only.
pub fn list(status: &Status, config: &Config, query: &str, now: SystemTime) -> View {
    let mime = match parameter(query, "mime") {
        Some("xml") => Mime::Xml,
        Some("txt") => Mime::Txt,
        Some("prop") => Mime::Prop,
        _ => Mime::Html,
    };
    let head = head(now);
    let only = parameter(query, "w").filter(|_| parameter(query, "cmd") == Some("show"));
    let mut pools = Vec::new();
    if parameter(query, "cmd") != Some("version") {
        for requests in status.http.iter().flat_map(|http| &http.pools) {
            let Some(pool) = config.pool(&requests.name) else {
                continue;
            };
            if only.is_none_or(|only| *pool.name == *only) {
                pools.push(balancer(status, config, pool, requests, now));
            }
        }
    }
    let mut result = Part::new("Result:", "result", Some("result"));
    result.set("type", "OK").set("message", "Action finished");
    let (content_type, text) = match mime {
        Mime::Prop => (PLAIN, prop(&head, &pools, &result)),
        Mime::Txt => (PLAIN, txt(&head, &pools, &result)),
        Mime::Xml => ("text/xml; charset=utf-8", xml(&head, &pools, &result)),
        Mime::Html => {
            let text = escaped(&txt(&head, &pools, &result));
            let title = "JK Status";
            let page = format!(
                "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>{title}</title></head>\n<body><pre>\n{text}</pre></body></html>\n"
            );
            ("text/html; charset=utf-8", page)
        }
    };
    View {
        status: 200,
        content_type,
        text,
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Time and software.
fn head(now: SystemTime) -> [Part; 2] {
    let mut time = Part::new("Time:", "time", None);
    time.set("unix", seconds(now));
    let mut software = Part::new("Software:", "software", None);
    let version = concat!("balancer/", env!("CARGO_PKG_VERSION"));
    software
        .set("web_server", version)
        .set("jk_version", version);
    [time, software]
}

fn prop(head: &[Part; 2], pools: &[(Part, Vec<Part>)], result: &Part) -> String {
    let mut out = String::new();
    for (key, value) in &head[0].attributes {
        out.push_str(&format!("worker.time_{key}={value}\n"));
    }
    head[1].prop(&mut out);
    out.push_str(&format!("worker.lb_count={}\n", pools.len()));
    for (pool, members) in pools {
        let name = pool.name.as_deref().unwrap_or_default();
        out.push_str(&format!("worker.list={name}\n"));
        pool.prop(&mut out);
        for member in members {
            let member_name = member.name.as_deref().unwrap_or_default();
            out.push_str(&format!("worker.{name}.balance_workers={member_name}\n"));
            member.prop(&mut out);
        }
    }
    result.prop(&mut out);
    out
}

fn txt(head: &[Part; 2], pools: &[(Part, Vec<Part>)], result: &Part) -> String {
    let mut out = String::new();
    for part in head {
        part.txt(&mut out);
    }
    out.push_str(&format!("Balancer Workers: count={}\n", pools.len()));
    for (pool, members) in pools {
        pool.txt(&mut out);
        for member in members {
            member.txt(&mut out);
        }
    }
    result.txt(&mut out);
    out
}

fn xml(head: &[Part; 2], pools: &[(Part, Vec<Part>)], result: &Part) -> String {
    let mut out = "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<jk:status\n  xmlns:jk=\"http://tomcat.apache.org\">\n".to_owned();
    for part in head {
        part.xml(0, true, &mut out);
    }
    out.push_str(&format!("<jk:balancers\n  count=\"{}\"\n>\n", pools.len()));
    for (pool, members) in pools {
        pool.xml(2, false, &mut out);
        for member in members {
            member.xml(6, true, &mut out);
        }
        out.push_str("  </jk:balancer>\n");
    }
    out.push_str("</jk:balancers>\n");
    result.xml(2, true, &mut out);
    out.push_str("</jk:status>\n");
    out
}

/// As `jk_get_bool`.
fn flag(on: bool) -> &'static str {
    if on { "True" } else { "False" }
}

fn balancer(
    status: &Status,
    config: &Config,
    pool: &Pool,
    requests: &HttpPoolStatus,
    now: SystemTime,
) -> (Part, Vec<Part>) {
    let steered = status.pools.iter().find(|p| *p.name == *pool.name);
    let mut members = Vec::new();
    let (mut good, mut degraded, mut bad) = (0, 0, 0);
    let mut busy = 0;
    for backend in &pool.backends {
        let Some(counted) = requests.backends.iter().find(|b| *b.name == *backend.name) else {
            continue;
        };
        let state = state(counted);
        match (counted.activation, state.starts_with("OK")) {
            (Activation::Active, true) => good += 1,
            (Activation::Stopped, _) | (_, false) => bad += 1,
            (Activation::Drain, true) => degraded += 1,
        }
        busy += counted.in_flight;
        let steered = steered.and_then(|p| p.backends.iter().find(|b| *b.name == *backend.name));
        members.push(member(pool, backend, steered, counted, state));
    }
    let maps = config
        .http
        .frontends
        .iter()
        .flat_map(|frontend| &frontend.sites)
        .flat_map(|site| site.mounts.iter().map(|m| &m.route).chain(&site.fallback))
        .filter(|route| matches!(&route.action, Action::Pool(name) if *name == pool.name))
        .count();
    let force = match &pool.http.sticky {
        Some(Sticky::Route(route)) => route.force,
        Some(Sticky::Cookie(cookie)) => cookie.force,
        Some(Sticky::Learn(learn)) => learn.force,
        _ => false,
    };
    let uptime = status.node.uptime_ms / 1_000;
    let mut part = Part::new("Balancer Worker:", "balancer", Some(&pool.name));
    part.set("name", &pool.name)
        .set("type", "lb")
        .set("sticky_session", flag(pool.http.sticky.is_some()))
        .set("sticky_session_force", flag(force))
        .set("retries", pool.http.retries.attempts + 1);
    if let Some(observe) = &pool.http.observe {
        part.set("recover_time", observe.ejection.as_secs());
    }
    part.set("method", method(pool.http.balance))
        .set("member_count", members.len())
        .set("good", good)
        .set("degraded", degraded)
        .set("bad", bad)
        .set("busy", busy)
        .set("map_count", maps)
        .set("last_reset_at", seconds(now).saturating_sub(uptime))
        .set("last_reset_ago", uptime);
    (part, members)
}

/// In mod_jk's words, the nearest.
fn method(balance: HttpBalance) -> &'static str {
    match balance {
        HttpBalance::RoundRobin => "Request",
        HttpBalance::LeastConnections | HttpBalance::PowerOfTwo => "Busyness",
        HttpBalance::Source => "Sessions",
    }
}

fn state(backend: &HttpBackendStatus) -> &'static str {
    match (backend.health, backend.ejected_ms) {
        (Health::Down, _) => "ERR",
        (_, Some(1..)) => "ERR",
        // Its time is over: the next request tries it.
        (_, Some(0)) => "ERR/REC",
        _ if backend
            .in_flight_limit
            .is_some_and(|limit| backend.in_flight >= limit) =>
        {
            "OK/BUSY"
        }
        _ if backend.requests == 0 => "OK/IDLE",
        _ => "OK",
    }
}

fn member(
    pool: &Pool,
    backend: &Backend,
    steered: Option<&BackendStatus>,
    counted: &HttpBackendStatus,
    state: &'static str,
) -> Part {
    let mut part = Part::new("Member:", "member", Some(&backend.name));
    let kind = match pool.http.protocol {
        BackendProtocol::Ajp => "ajp13",
        _ => "http",
    };
    let activation = match counted.activation {
        Activation::Active => "ACT",
        Activation::Drain => "DIS",
        Activation::Stopped => "STP",
    };
    let recover = counted.ejected_ms.unwrap_or(0).div_ceil(1_000);
    part.set("name", &backend.name)
        .set("type", kind)
        .set("host", backend.address.ip())
        .set("port", backend.address.port())
        .set("address", backend.address)
        .set("busy_limit", counted.in_flight_limit.unwrap_or(0))
        .set("activation", activation)
        .set("lbfactor", steered.map_or(backend.weight, |s| s.weight))
        .set("route", &counted.route)
        .set(
            "redirect",
            backend.http.redirect.as_deref().unwrap_or_default(),
        )
        .set("domain", backend.http.domain.as_deref().unwrap_or_default())
        .set("distance", backend.http.priority)
        .set("state", state)
        .set("elected", counted.requests);
    if let Some(sessions) = counted.sessions {
        part.set("sessions", sessions);
    }
    part.set(
        "errors",
        counted.connect_failed + counted.broken + counted.timed_out,
    )
    .set("client_errors", counted.client_aborted)
    .set("reply_timeouts", counted.timed_out)
    .set("busy", counted.in_flight)
    .set("time_to_recover_min", recover)
    .set("time_to_recover_max", recover);
    part
}

#[cfg(test)]
#[path = "jk_tests.rs"]
mod tests;
