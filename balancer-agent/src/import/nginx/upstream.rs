//! `upstream` blocks made into pools.

use super::Context;
use super::lex::{self, Node};
use crate::import::draft::{self, Table};
use crate::import::names::{self, Names};
use crate::import::source::Place;

/// Makes a pool; `None` when no server could be carried over.
pub fn pool(node: &Node, cx: &mut Context<'_>) -> Option<Table> {
    let mut pool = Table::one_of("pool", &node.place);
    pool.set_own("name", cx.pool_names.unique(node.arg(0)));
    let mut own = Names::default();
    let mut backends = Vec::new();
    for line in node.inside() {
        match line.name.as_str() {
            "server" => backends.extend(server(line, 80, &mut own, &mut pool, cx)),
            "ip_hash" => {
                let sticky = pool.table("sticky");
                sticky.set("type", "source", &line.place);
                // Of IPv4 the first three bytes count there.
                sticky
                    .set("ipv4_prefix", 24, &line.place)
                    .set("ipv6_prefix", 128, &line.place);
            }
            "hash" if line.arg(0) == "$remote_addr" || line.arg(0) == "$binary_remote_addr" => {
                let sticky = pool.table("sticky");
                sticky
                    .set("type", "source", &line.place)
                    .set("ipv6_prefix", 128, &line.place);
            }
            "least_conn" | "least_time" => {
                _ = pool.set("balance", "least-connections", &line.place)
            }
            "random" => _ = pool.set("balance", "power-of-two", &line.place),
            "keepalive" => match line.arg(0).parse::<u64>() {
                Ok(number) => _ = pool.set("keep_alive_connections", number, &line.place),
                Err(_) => cx.report.left(&line.place, line.shown(), "is no number"),
            },
            "keepalive_timeout" => match lex::time(line.arg(0)).filter(|t| *t > 0) {
                Some(time) => {
                    _ = pool
                        .table("timeouts")
                        .set("keep_alive", draft::duration(time), &line.place)
                }
                None => cx.report.left(&line.place, line.shown(), "is no time"),
            },
            "queue" => {
                match line.arg(0).parse::<u64>() {
                    Ok(number) => _ = pool.table("queue").set("length", number, &line.place),
                    Err(_) => cx.report.left(&line.place, line.shown(), "is no number"),
                }
                if let Some(time) = line.arg(1).strip_prefix("timeout=").and_then(lex::time) {
                    pool.table("queue")
                        .set("timeout", draft::duration(time), &line.place);
                }
            }
            "sticky" if line.arg(0) == "cookie" => sticky(&mut pool, line, cx),
            "zone" | "keepalive_requests" | "keepalive_time" | "state" => {
                cx.report.left(&line.place, line.shown(), "not needed here");
            }
            "hash" => {
                let reason =
                    "sessions are known by a cookie or by the client's address: `[pool.sticky]`";
                cx.report.left(&line.place, line.shown(), reason);
            }
            _ => cx
                .report
                .left(&line.place, line.shown(), "there is nothing like it"),
        }
    }
    if backends.is_empty() {
        cx.report.left(
            &node.place,
            node.shown(),
            "it has no server that could be carried over",
        );
        return None;
    }
    for backend in backends {
        pool.push(backend);
    }
    Some(pool)
}

fn server(
    line: &Node,
    default: u16,
    own: &mut Names,
    pool: &mut Table,
    cx: &mut Context<'_>,
) -> Option<Table> {
    let place = &line.place;
    let (table, address) = match backend(line.arg(0), default, place, own, cx) {
        Ok(table) => table,
        Err(reason) => {
            cx.report.left(place, line.shown(), reason);
            return None;
        }
    };
    let _ = address;
    let mut table = table;
    for option in line.args.iter().skip(1) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let number = value.parse::<u64>();
        match (name, number) {
            ("weight", Ok(number)) => _ = table.set("weight", number, place),
            ("max_conns", Ok(0)) => {}
            ("max_conns", Ok(number)) => _ = table.set("max_connections", number, place),
            ("max_fails", Ok(0)) => _ = pool.table("observe").set("enabled", false, place),
            ("max_fails", Ok(number)) => _ = pool.table("observe").set("failures", number, place),
            ("fail_timeout", _) if lex::time(value).is_some_and(|t| t > 0) => {
                let time = draft::duration(lex::time(value).unwrap_or(1));
                let observe = pool.table("observe");
                observe
                    .set("ejection", time.clone(), place)
                    .set("max_ejection", time, place);
            }
            ("slow_start", _) if lex::time(value).is_some_and(|t| t > 0) => {
                pool.set(
                    "slow_start",
                    draft::duration(lex::time(value).unwrap_or(1)),
                    place,
                );
            }
            ("backup", _) => _ = table.set("priority", 1, place),
            ("down", _) => _ = table.set("activation", "stopped", place),
            ("drain", _) => _ = table.set("activation", "drain", place),
            ("route", _) => _ = table.set("route", value, place),
            ("resolve" | "service", _) => {
                cx.report.left(
                    place,
                    format!("server {option}"),
                    "names are not resolved while it runs",
                );
            }
            _ => cx.report.left(
                place,
                format!("server {option}"),
                "there is nothing like it",
            ),
        }
    }
    Some(table)
}

/// A backend of an address, and that address as it was written.
pub fn backend<'t>(
    text: &'t str,
    default: u16,
    place: &Place,
    own: &mut Names,
    cx: &Context<'_>,
) -> Result<(Table, &'t str), String> {
    if text.starts_with("unix:") {
        return Err("backends are addresses and ports, not Unix sockets".to_owned());
    }
    let (host, port) = names::split_port(text, false);
    let port = match port {
        None => default,
        Some(port) => port
            .parse::<u16>()
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| format!("{port} is no port"))?,
    };
    let address = names::server(host, port, cx.options)?;
    let mut table = Table::one_of("backend", place);
    table.set_own("name", own.unique(&text.replace([':', '[', ']'], "-")));
    table.set("address", address.to_string(), place);
    Ok((table, text))
}

fn sticky(pool: &mut Table, line: &Node, cx: &mut Context<'_>) {
    let place = &line.place;
    let key = cx.options.cookie_key.display().to_string();
    let table = pool.table("sticky");
    table
        .set("type", "cookie", place)
        .set("cookie", line.arg(1), place);
    table.set("key_file", key.as_str(), place);
    table
        .set("http_only", false, place)
        .set("same_site", false, place);
    for option in line.args.iter().skip(2) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "expires" => match lex::time(value) {
                Some(time) => _ = table.set("max_age", draft::duration(time), place),
                // `max` is for ever.
                None => _ = table.set("max_age", "400d", place),
            },
            "domain" => _ = table.set("domain", value.trim_start_matches('.'), place),
            "path" => _ = table.set("path", value, place),
            "httponly" => _ = table.set("http_only", true, place),
            "secure" => _ = table.set("secure", true, place),
            "samesite" => _ = table.set("same_site", value.to_ascii_lowercase(), place),
            _ => cx.report.left(
                place,
                format!("sticky cookie {option}"),
                "there is nothing like it",
            ),
        }
    }
    let reason = format!(
        "its value is signed with a key that has to be there, the same on all nodes: head -c 32 /dev/urandom > {key}; chmod \
         600 {key}. Cookies that browsers have from nginx are none here: these sessions begin anew"
    );
    cx.report.note(place, line.shown(), reason);
}
