//! `proxy_pass`: the pool that requests go to, and what is said of the way to it.

use super::lex::{self, Node};
use super::location::{Kind, Location, Scope, headers};
use super::{Context, upstream};
use crate::import::draft::{self, Table};
use crate::import::names::Names;
use crate::import::source::Place;

/// The mount of a location with `proxy_pass`, and whether it takes whole segments off.
pub fn to_pool(
    location: &Location<'_>,
    pass: &Node,
    text: &str,
    cx: &mut Context<'_>,
) -> Option<(Table, bool)> {
    let place = &pass.place;
    let target = pass.arg(0);
    if target.contains('$') {
        cx.report.left(
            place,
            pass.shown(),
            "a pool can't be made of the request: write one mount for each",
        );
        return None;
    }
    let (secure, rest) = match (
        target.strip_prefix("http://"),
        target.strip_prefix("https://"),
    ) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => {
            cx.report
                .left(place, pass.shown(), "a URL begins with http:// or https://");
            return None;
        }
    };
    let (authority, uri) = match rest.find('/') {
        Some(at) if !rest.starts_with("unix:") => (&rest[..at], Some(&rest[at..])),
        _ => (rest, None),
    };
    let known = cx.pools.get(authority).cloned();
    let pool = match known {
        Some(pool) => pool,
        None => match direct(pass, authority, if secure { 443 } else { 80 }, cx) {
            Ok(pool) => pool,
            Err(reason) => {
                cx.report.left(place, pass.shown(), reason);
                return None;
            }
        },
    };
    settings(&pool, &location.scope, secure, pass, cx);
    let mut mount = Table::one_of("mount", &location.node.place);
    mount.set("pool", pool, place);
    let mut segments = false;
    if let Some(uri) = uri {
        let whole = text.ends_with('/') == uri.ends_with('/') || uri == "/";
        let strip = text.trim_end_matches('/');
        let add = uri.trim_end_matches('/');
        if location.kind == Kind::Regex || location.kind == Kind::Exact {
            if uri != text {
                cx.report.left(
                    place,
                    pass.shown(),
                    "its path can't replace this one: `strip_prefix` and `add_prefix` can",
                );
            }
        } else if !whole {
            let reason = "the path in it and that of the location both end in `/`, or neither: it is taken as if they did";
            cx.report.note(place, pass.shown(), reason);
        }
        if strip != add && !matches!(location.kind, Kind::Regex | Kind::Exact) {
            segments = !strip.is_empty();
            let rewrite = mount.table("rewrite");
            if !strip.is_empty() {
                rewrite.set("strip_prefix", strip, place);
            }
            if !add.is_empty() {
                rewrite.set("add_prefix", add, place);
            }
        }
    }
    request_headers(&mut mount, &location.scope, authority, place, cx);
    headers(&mut mount, &location.scope);
    for node in location
        .scope
        .all("add_header")
        .into_iter()
        .filter(|n| n.arg(1).contains('$'))
    {
        cx.report.left(
            &node.place,
            node.shown(),
            "the value is made of the request: here it is fixed text",
        );
    }
    Some((mount, segments))
}

fn request_headers(
    mount: &mut Table,
    scope: &Scope<'_>,
    authority: &str,
    place: &Place,
    cx: &mut Context<'_>,
) {
    let mut host = None;
    for node in scope.all("proxy_set_header") {
        let (name, value) = (node.arg(0), node.arg(1));
        let lower = name.to_ascii_lowercase();
        match (lower.as_str(), value) {
            (
                "host",
                "$host" | "$http_host" | "$host:$server_port" | "$host:$port" | "$server_name",
            ) => host = Some(None),
            ("host", "$proxy_host") => {}
            ("host", value) if !value.contains('$') => {
                host = Some(Some((value.to_owned(), node.place.clone())))
            }
            // Written by the balancer itself.
            ("x-forwarded-for", "$proxy_add_x_forwarded_for" | "$remote_addr")
            | ("x-forwarded-proto", "$scheme" | "$http_x_forwarded_proto")
            | ("x-forwarded-host", "$host" | "$http_host" | "$host:$server_port")
            | ("x-forwarded-port", "$server_port")
            | ("upgrade", "$http_upgrade")
            | ("connection", _)
            | ("accept-encoding", "") => {}
            (_, "") => {
                mount.table("rewrite").add_pair(
                    "request_headers",
                    vec![("remove", name.to_owned())],
                    &node.place,
                );
            }
            (_, value) if !value.contains('$') => {
                let pair = vec![("set", name.to_owned()), ("value", value.to_owned())];
                mount
                    .table("rewrite")
                    .add_pair("request_headers", pair, &node.place);
            }
            ("x-real-ip", _) => {
                let reason =
                    "the client's address is the last one of X-Forwarded-For, which is always sent";
                cx.report.left(&node.place, node.shown(), reason);
            }
            _ => cx.report.left(
                &node.place,
                node.shown(),
                "the value is made of the request: here it is fixed text",
            ),
        }
    }
    match host {
        Some(None) => {}
        Some(Some((host, place))) => _ = mount.table("rewrite").set("host", host, &place),
        // As nginx does: the name of the upstream.
        None => _ = mount.table("rewrite").set("host", authority, place),
    }
}

/// A pool of one address.
pub fn direct(
    pass: &Node,
    authority: &str,
    port: u16,
    cx: &mut Context<'_>,
) -> Result<String, String> {
    let (backend, _) = upstream::backend(authority, port, &pass.place, &mut Names::default(), cx)?;
    let mut pool = Table::one_of("pool", &pass.place);
    let name = cx
        .pool_names
        .unique(&authority.replace([':', '[', ']'], "-"));
    pool.set_own("name", name.as_str());
    pool.push(backend);
    cx.tables.push(pool);
    cx.pools.insert(authority.to_owned(), name.clone());
    Ok(name)
}

/// What a location says about the connections to its pool. The first one that says it counts.
fn settings(pool: &str, scope: &Scope<'_>, secure: bool, pass: &Node, cx: &mut Context<'_>) {
    let Some(at) = cx
        .tables
        .iter()
        .position(|table| table.text("name") == Some(pool))
    else {
        return;
    };
    let table = &mut cx.tables[at];
    let report = &mut cx.report;
    let mut set = |table: &mut Table,
                   part: &'static str,
                   key: &'static str,
                   value: draft::Value,
                   node: &Node| {
        let other = table
            .known(part)
            .and_then(|t| t.get(key))
            .filter(|old| **old != value);
        match other {
            Some(_) => {
                let reason =
                    "it is the same for all of a pool: what another location says is taken";
                report.left(&node.place, node.shown(), reason);
            }
            None => _ = table.table(part).set(key, value, &node.place),
        }
    };
    for (name, keys) in [
        ("proxy_connect_timeout", &["connect"][..]),
        ("proxy_read_timeout", &["response", "idle"][..]),
    ] {
        if let Some(node) = scope.find(name)
            && let Some(time) = lex::time(node.arg(0)).filter(|time| *time > 0)
        {
            for key in keys {
                set(table, "timeouts", key, draft::duration(time).into(), node);
            }
        }
    }
    if let Some(node) = scope.find("proxy_next_upstream") {
        let statuses: Vec<u64> = node
            .args
            .iter()
            .filter_map(|a| a.strip_prefix("http_")?.parse().ok())
            .collect();
        let fit: Vec<u64> = statuses
            .iter()
            .copied()
            .filter(|s| (502..=504).contains(s))
            .collect();
        if !fit.is_empty() {
            set(
                table,
                "retries",
                "on_status",
                draft::Value::Integers(fit),
                node,
            );
        }
        if node.arg(0) == "off" {
            set(table, "retries", "attempts", 0.into(), node);
        }
        if node.args.iter().any(|arg| arg == "non_idempotent") {
            set(table, "retries", "non_idempotent", true.into(), node);
        }
    }
    if let Some(node) = scope.find("proxy_next_upstream_tries")
        && let Ok(tries @ 1..) = node.arg(0).parse::<u64>()
    {
        // The first attempt is one of them.
        set(table, "retries", "attempts", (tries - 1).into(), node);
    }
    let tls = table.known("tls").is_some();
    if !secure {
        if tls {
            cx.report.left(
                &pass.place,
                pass.shown(),
                "another location speaks TLS to this pool: all do",
            );
        }
        return;
    }
    let verify = scope.find("proxy_ssl_verify").filter(|n| n.arg(0) == "on");
    set(
        table,
        "tls",
        "verify",
        verify.is_some().into(),
        verify.unwrap_or(pass),
    );
    for (name, key) in [
        ("proxy_ssl_trusted_certificate", "authorities"),
        ("proxy_ssl_name", "server_name"),
        ("proxy_ssl_certificate", "certificate"),
        ("proxy_ssl_certificate_key", "key"),
    ] {
        if let Some(node) = scope.find(name).filter(|n| !n.arg(0).contains('$')) {
            set(table, "tls", key, node.arg(0).into(), node);
        }
    }
}
