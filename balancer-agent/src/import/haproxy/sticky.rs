//! How a session is known: `cookie`, `appsession`, `stick`.

use super::Context;
use super::lex::{self, Line};
use super::sections::Proxy;
use super::server::Server;
use crate::import::draft::{self, Table};

/// Says how the pool of a backend knows a session.
pub fn sticky(pool: &mut Table, proxy: &Proxy, servers: &[Server], cx: &mut Context<'_>) {
    let file = cx.file;
    if let Some(line) = file.last(proxy, &["cookie"]) {
        cookie(pool, line, servers, cx);
        return;
    }
    if let Some(line) = file.last(proxy, &["appsession"]) {
        let table = pool.table("sticky");
        table
            .set("type", "learn", &line.place)
            .set("cookie", line.word(1), &line.place);
        let mut words = line.from(2).iter().map(String::as_str);
        while let Some(word) = words.next() {
            if word == "timeout"
                && let Some(time) = words.next().and_then(|text| lex::time(text, 1))
            {
                table.set("idle", draft::duration(time), &line.place);
            }
        }
        return;
    }
    stick(pool, proxy, cx);
}

fn cookie(pool: &mut Table, line: &Line, servers: &[Server], cx: &mut Context<'_>) {
    let words = line.from(2);
    let has = |word: &str| words.iter().any(|w| w == word);
    let table = pool.table("sticky");
    if has("prefix") {
        table
            .set("type", "route", &line.place)
            .set("cookie", line.word(1), &line.place);
        table.set("parameter", false, &line.place);
        let reason = "the server is named behind the session id (`ID.s1`), not before it; the application sees its own id. \
                      Sessions that browsers have from HAProxy begin anew";
        cx.report.note(&line.place, line.shown(), reason);
        return;
    }
    if has("rewrite") || !has("insert") {
        let reason = "a cookie whose value the application writes for each server: use `[pool.sticky] type = \"cookie\"`, or \
                      `\"learn\"` for its session cookie";
        cx.report.left(&line.place, line.shown(), reason);
        return;
    }
    table
        .set("type", "cookie", &line.place)
        .set("cookie", line.word(1), &line.place);
    table.set(
        "key_file",
        cx.options.cookie_key.display().to_string(),
        &line.place,
    );
    let key = cx.options.cookie_key.display();
    let reason = format!(
        "its value is signed with a key that has to be there, the same on all nodes: head -c 32 /dev/urandom > {key}; chmod \
         600 {key}. Cookies that browsers have from HAProxy are none here: these sessions begin anew"
    );
    cx.report.note(&line.place, line.shown(), reason);
    // HAProxy's cookie can be read by scripts unless it says otherwise, and has no SameSite.
    table.set("http_only", has("httponly"), &line.place);
    table.set("same_site", false, &line.place);
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "secure" => _ = table.set("secure", true, &line.place),
            "domain" => {
                let domain = words.next().unwrap_or_default().trim_start_matches('.');
                table.set("domain", domain, &line.place);
            }
            "attr" => {
                let attribute = words.next().unwrap_or_default();
                match attribute.to_ascii_lowercase().split_once('=') {
                    Some(("samesite", value)) if ["lax", "strict", "none"].contains(&value) => {
                        table.set("same_site", value, &line.place);
                    }
                    Some(("path", value)) => _ = table.set("path", value, &line.place),
                    _ => cx.report.left(
                        &line.place,
                        format!("cookie attr {attribute}"),
                        "there is no such attribute here",
                    ),
                }
            }
            "insert" | "indirect" | "nocache" | "httponly" => {}
            "maxidle" | "maxlife" => {
                words.next();
                let reason = "the cookie is for as long as the browser keeps it: `max_age`";
                cx.report
                    .left(&line.place, format!("cookie {word}"), reason);
            }
            word => cx.report.left(
                &line.place,
                format!("cookie {word}"),
                "there is nothing like it",
            ),
        }
    }
    for server in servers.iter().filter(|server| server.cookie.is_none()) {
        let reason = "it has no `cookie`: there it gets none, here its name stands in the cookie";
        cx.report
            .note(&server.place, format!("server {}", server.name), reason);
    }
}

fn stick(pool: &mut Table, proxy: &Proxy, cx: &mut Context<'_>) {
    let file = cx.file;
    let mut expire = None;
    let lines: Vec<&Line> = file.lines(proxy).collect();
    for line in &lines {
        if line.word(0) != "stick-table" {
            continue;
        }
        let words = line.from(1);
        let after = |word: &str| {
            let at = words.iter().position(|w| w == word)?;
            words.get(at + 1)
        };
        expire = after("expire").and_then(|text| lex::time(text, 1));
        if let Some(peers) = after("peers") {
            let reason = "nodes share sessions by a group: `[[session.group]]`, and `group` in `[pool.sticky]`";
            cx.report
                .left(&line.place, format!("stick-table peers {peers}"), reason);
        }
        if after("store").is_some() {
            let reason =
                "nothing is counted by source but limits: `[frontend.limits] requests_per_source`";
            cx.report.left(&line.place, "stick-table store", reason);
        }
    }
    for line in lines.iter().filter(|line| line.word(0) == "stick") {
        let pattern = line.from(1).iter().find(|word| {
            !["on", "match", "store-request", "store-response"].contains(&word.as_str())
        });
        let pattern = pattern.map_or("", String::as_str).to_ascii_lowercase();
        let cookie = pattern.split_once('(').and_then(|(fetch, name)| {
            let name = name.split_once(')')?.0;
            let fetches = [
                "cookie", "req.cook", "cook", "res.cook", "scook", "req_cook",
            ];
            fetches.contains(&fetch).then_some(name)
        });
        let original = line.from(1).iter().find(|word| word.contains('('));
        let name = original
            .and_then(|word| word.split_once('(')?.1.split_once(')'))
            .map(|(name, _)| name);
        let table = pool.table("sticky");
        match (pattern.as_str(), cookie) {
            ("src", _) => {
                table.set("type", "source", &line.place);
                table.set("ipv6_prefix", 128, &line.place);
                let reason = "a hash of the address, which needs no table: with a `group` it is remembered after a failure, too";
                cx.report.note(&line.place, line.shown(), reason);
            }
            (_, Some(_)) => {
                table.set("type", "learn", &line.place);
                table.set("cookie", name.unwrap_or_default(), &line.place);
                if let Some(time) = expire {
                    table.set("idle", draft::duration(time), &line.place);
                }
            }
            _ => {
                let reason = "a session is known by a cookie or by the client's address";
                cx.report.left(&line.place, line.shown(), reason);
            }
        }
    }
}
