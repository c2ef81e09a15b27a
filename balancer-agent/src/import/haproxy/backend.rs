//! Backends: a pool with its servers, check, session and times.

use super::Context;
use super::lex::{self, Line};
use super::sections::Proxy;
use super::server::{self, Server};
use super::sticky;
use crate::import::draft::{self, Table};
use crate::import::names::Names;

/// Makes the pool of a proxy with servers.
pub fn pool(proxy: &Proxy, cx: &mut Context<'_>) -> Option<Table> {
    let file = cx.file;
    let mut default = Vec::new();
    let mut servers = Vec::new();
    for line in file.lines(proxy) {
        match line.word(0) {
            // Later lines see what earlier ones said.
            "default-server" => default.extend(line.from(1).iter().cloned()),
            "server" => {
                let mut words = default.clone();
                words.extend(line.from(3).iter().cloned());
                servers.extend(server::read(line, &words, cx));
            }
            _ => {}
        }
    }
    let name = format!("backend {}", proxy.name);
    if servers.is_empty() {
        cx.report.left(
            &proxy.place,
            name,
            "it has no server that could be carried over",
        );
        return None;
    }
    let http = file.is_http(proxy);
    let mut pool = Table::one_of("pool", &proxy.place);
    pool.set_own("name", cx.pool_names.unique(&proxy.name));
    balance(&mut pool, proxy, http, cx);
    if http {
        connections(&mut pool, proxy, &servers, cx);
    }
    check(&mut pool, proxy, &servers, http, cx);
    if http {
        sticky::sticky(&mut pool, proxy, &servers, cx);
        rest(&mut pool, proxy, cx);
        tls(&mut pool, &servers, cx);
    }
    let all_backups = file.last(proxy, &["option", "allbackups"]).is_some();
    let mut names = Names::default();
    let mut backups = 0;
    for server in &servers {
        if server.backup && !all_backups {
            backups += 1;
        }
        let priority = match (server.backup, all_backups) {
            (false, _) => 0,
            (true, true) => 1,
            // Without `option allbackups` only the first usable one is used.
            (true, false) => backups,
        };
        let table = server::backend(server, &mut names, priority, http, cx);
        pool.push(table);
    }
    Some(pool)
}

fn balance(pool: &mut Table, proxy: &Proxy, http: bool, cx: &mut Context<'_>) {
    let Some(line) = cx.file.last(proxy, &["balance"]) else {
        return;
    };
    let word = line.word(1);
    let value = match word.split('(').next().unwrap_or(word) {
        "roundrobin" | "static-rr" => "round-robin",
        "leastconn" if http => "least-connections",
        "source" if http => "source",
        "random" if http => "power-of-two",
        _ => {
            let reason = match http {
                true => {
                    "round-robin instead: there are also least-connections, power-of-two and source"
                }
                false => {
                    "round-robin instead: it is the only one for connections that are steered in the kernel"
                }
            };
            cx.report.left(&line.place, line.shown(), reason);
            return;
        }
    };
    pool.set("balance", value, &line.place);
}

/// What all servers of a pool have in common here, and each for itself there.
fn connections(pool: &mut Table, proxy: &Proxy, servers: &[Server], cx: &mut Context<'_>) {
    let alike =
        |what: &str, of: fn(&Server) -> Option<&str>, cx: &mut Context<'_>| -> Option<String> {
            let first = servers.first()?;
            let value = of(first);
            for other in servers.iter().filter(|other| of(other) != value) {
                let reason = format!(
                    "it is the same for all servers of a pool: that of {} is taken",
                    first.name
                );
                cx.report.left(
                    &other.place,
                    format!("server {} {what}", other.name),
                    reason,
                );
            }
            value.map(str::to_owned)
        };
    let place = &servers[0].place;
    if let Some(proto) = alike("proto", |s| s.proto.as_deref(), cx) {
        pool.set("protocol", proto, place);
    }
    if let Some(version) = alike("send-proxy", |s| s.send_proxy, cx) {
        pool.set("send_proxy", version, place);
    }
    if let Some(time) = alike("slowstart", |s| s.slowstart.as_deref(), cx) {
        match lex::time(&time, 1).filter(|t| *t > 0) {
            Some(time) => _ = pool.set("slow_start", draft::duration(time), place),
            None => cx
                .report
                .left(place, format!("slowstart {time}"), "is no time"),
        }
    }
    let times: [(&[&str], &[&'static str]); 6] = [
        (&["timeout", "connect"], &["connect"]),
        (&["contimeout"], &["connect"]),
        (&["timeout", "server"], &["response", "idle"]),
        (&["srvtimeout"], &["response", "idle"]),
        (&["timeout", "tunnel"], &["tunnel"]),
        (&["timeout", "queue"], &["timeout"]),
    ];
    for (words, keys) in times {
        let Some(line) = cx.file.last(proxy, words) else {
            continue;
        };
        match lex::time(line.word(words.len()), 1).filter(|time| *time > 0) {
            Some(time) => {
                let table = match words.get(1) {
                    Some(&"queue") => "queue",
                    _ => "timeouts",
                };
                for key in keys {
                    pool.table(table)
                        .set(key, draft::duration(time), &line.place);
                }
            }
            None => cx
                .report
                .left(&line.place, line.shown(), "is no time: 0 would be for ever"),
        }
    }
}

fn check(pool: &mut Table, proxy: &Proxy, servers: &[Server], http: bool, cx: &mut Context<'_>) {
    let file = cx.file;
    let Some(first) = servers.iter().find(|server| server.check) else {
        pool.table("check").set("type", "none", &proxy.place);
        let line = file.last(proxy, &["option", "httpchk"]);
        if let Some(line) = line {
            cx.report
                .left(&line.place, line.shown(), "no server has `check`");
        }
        return;
    };
    for other in servers.iter().filter(|server| !server.check) {
        let reason = "a check is for a whole pool: this server is checked as well";
        cx.report
            .note(&other.place, format!("server {}", other.name), reason);
    }
    let place = &first.place;
    let interval = first
        .inter
        .as_deref()
        .map_or(Some(2_000), |text| lex::time(text, 1));
    let interval = interval.unwrap_or_else(|| {
        cx.report.left(place, "inter", "is no time");
        2_000
    });
    let table = pool.table("check");
    let httpchk = file.last(proxy, &["option", "httpchk"]);
    match httpchk {
        Some(line) => {
            table.set("type", "http", &line.place);
            request(table, line, cx);
            http_check(table, proxy, cx);
        }
        None => _ = table.set("type", "tcp", place),
    }
    table.set("interval", draft::duration(interval), place);
    if let Some(fast) = first
        .fastinter
        .as_deref()
        .and_then(|text| lex::time(text, 1))
    {
        table.set("fast_interval", draft::duration(fast.min(interval)), place);
    }
    let limit = file.last(proxy, &["timeout", "check"]);
    match limit.map(|line| (lex::time(line.word(2), 1), line)) {
        Some((Some(time), line)) if time > 0 => {
            table.set("timeout", draft::duration(time), &line.place);
        }
        Some((_, line)) => cx.report.left(&line.place, line.shown(), "is no time"),
        // As there: a check may last until the next one.
        None => _ = table.set("timeout", draft::duration(interval), place),
    }
    for (key, value) in [
        ("fall", &first.fall),
        ("rise", &first.rise),
        ("port", &first.port),
    ] {
        if let Some(number) = value.as_deref().and_then(|text| text.parse::<u64>().ok()) {
            table.set(key, number, place);
        }
    }
    if first.check_ssl && !first.tls {
        let reason = "checks go over TLS where requests do (`[pool.tls]`)";
        cx.report.left(place, "check-ssl", reason);
    }
    if !http && httpchk.is_none() {
        // A TCP check of its own is what there is.
    }
    for other in servers.iter().filter(|s| s.check && s.place != *place) {
        let same = (&other.inter, &other.fall, &other.rise, &other.port)
            == (&first.inter, &first.fall, &first.rise, &first.port);
        if !same {
            let reason = format!(
                "a check is for a whole pool: that of {} is taken",
                first.name
            );
            cx.report
                .left(&other.place, format!("server {} check", other.name), reason);
        }
    }
}

/// `option httpchk [METHOD] [URI] [VERSION]`.
fn request(table: &mut Table, line: &Line, cx: &mut Context<'_>) {
    let words = line.from(2);
    let (method, uri, version) = match words {
        [] => ("OPTIONS", "/", ""),
        [uri] => ("OPTIONS", uri.as_str(), ""),
        [method, uri] => (method.as_str(), uri.as_str(), ""),
        [method, uri, version, ..] => (method.as_str(), uri.as_str(), version.as_str()),
    };
    table.set("path", uri, &line.place);
    if !method.eq_ignore_ascii_case("GET") && !words.is_empty() {
        let reason = "checks are GET requests";
        cx.report
            .note(&line.place, format!("option httpchk {method}"), reason);
    }
    // Headers were written behind the version: `HTTP/1.1\r\nHost: www`.
    let mut rest = Vec::new();
    for part in version
        .split("\r\n")
        .skip(1)
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        match part.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("host") => {
                table.set("host", value.trim(), &line.place);
            }
            _ => rest.push(part),
        }
    }
    for header in rest {
        cx.report
            .left(&line.place, header, "checks have a Host header, no others");
    }
}

fn http_check(table: &mut Table, proxy: &Proxy, cx: &mut Context<'_>) {
    let file = cx.file;
    for line in file
        .lines(proxy)
        .filter(|line| line.word(0) == "http-check")
    {
        match line.word(1) {
            "send" => {
                let mut words = line.from(2).iter().map(String::as_str);
                while let Some(word) = words.next() {
                    match word {
                        "meth" => {
                            let method = words.next().unwrap_or_default();
                            if method != "GET" {
                                cx.report.note(
                                    &line.place,
                                    format!("meth {method}"),
                                    "checks are GET requests",
                                );
                            }
                        }
                        "uri" | "uri-lf" => {
                            _ = table.set("path", words.next().unwrap_or("/"), &line.place)
                        }
                        "ver" => _ = words.next(),
                        "hdr" => {
                            let name = words.next().unwrap_or_default();
                            let value = words.next().unwrap_or_default();
                            match name.eq_ignore_ascii_case("host") {
                                true => _ = table.set("host", value, &line.place),
                                false => {
                                    let reason = "checks have a Host header, no others";
                                    cx.report.left(&line.place, format!("hdr {name}"), reason);
                                }
                            }
                        }
                        word => {
                            words.next();
                            cx.report.left(
                                &line.place,
                                format!("http-check send {word}"),
                                "checks have no body",
                            );
                        }
                    }
                }
            }
            "expect" => {
                let words = line.from(2);
                let words: Vec<&String> = words
                    .iter()
                    .filter(|w| !w.starts_with("min-recv"))
                    .collect();
                match words[..] {
                    [kind, value] if kind == "status" => {
                        for range in value.split(',') {
                            table.add("expect", range, &line.place);
                        }
                    }
                    [kind, value] if kind == "rstatus" && simple_class(value).is_some() => {
                        table.add(
                            "expect",
                            simple_class(value).unwrap_or_default(),
                            &line.place,
                        );
                    }
                    _ => {
                        let reason = "a check looks at the status alone: `expect`";
                        cx.report.left(&line.place, line.shown(), reason);
                    }
                }
            }
            "connect" | "comment" | "disable-on-404" | "send-state" | "set-var" | "unset-var" => {
                cx.report.left(
                    &line.place,
                    line.shown(),
                    "a check is one request whose status counts",
                );
            }
            _ => cx
                .report
                .left(&line.place, line.shown(), "there is nothing like it"),
        }
    }
}

/// `^2` or `(2|3)[0-9][0-9]` as ranges.
fn simple_class(text: &str) -> Option<String> {
    match text {
        "^2" | "^2.." | "2.." | "^20" | "^2[0-9][0-9]" | "2[0-9][0-9]" => {
            Some("200-299".to_owned())
        }
        "^[23]" | "(2|3)[0-9][0-9]" | "^(2|3)" | "[23].." | "^[23].." | "^[23][0-9][0-9]" => {
            Some("200-399".to_owned())
        }
        _ => None,
    }
}

fn rest(pool: &mut Table, proxy: &Proxy, cx: &mut Context<'_>) {
    let file = cx.file;
    if let Some(line) = file.last(proxy, &["retries"]) {
        match line.word(1).parse::<u64>() {
            Ok(number) => _ = pool.table("retries").set("attempts", number, &line.place),
            Err(_) => cx.report.left(&line.place, line.shown(), "is no number"),
        }
    }
    if let Some(line) = file.last(proxy, &["retry-on"]) {
        let mut statuses = Vec::new();
        for word in line.from(1) {
            match word.as_str() {
                "502" | "503" | "504" => statuses.push(word.clone()),
                "conn-failure" | "empty-response" | "junk-response" | "response-timeout"
                | "0rtt-rejected" | "none" => {}
                "all-retryable-errors" => statuses.extend(["502", "503", "504"].map(str::to_owned)),
                word => cx.report.left(
                    &line.place,
                    format!("retry-on {word}"),
                    "502, 503 and 504 can be repeated",
                ),
            }
        }
        if !statuses.is_empty() {
            let table = pool.table("retries");
            table.set_numbers("on_status", &statuses, &line.place);
        }
    }
    if let Some(line) = file.last(proxy, &["fullconn"]) {
        cx.report.left(
            &line.place,
            line.shown(),
            "each backend has its own `max_connections`",
        );
    }
    for line in file.lines(proxy).filter(|line| line.word(0) == "errorfile") {
        let reason = "of error pages there is one, for 503: `[pool.maintenance]`";
        if line.word(1) != "503" {
            cx.report.left(&line.place, line.shown(), reason);
            continue;
        }
        match page(line.word(2)) {
            Ok((kind, body)) => {
                let table = pool.table("maintenance");
                if let Some(kind) = kind {
                    table.set("content_type", kind, &line.place);
                }
                table.set("body", body, &line.place);
            }
            Err(reason) => cx.report.left(&line.place, line.shown(), reason),
        }
    }
}

/// The type and body of a file with a whole HTTP response.
fn page(path: &str) -> Result<(Option<String>, String), String> {
    let hint = "write its text as `[pool.maintenance] body`";
    let source = crate::import::source::Reader::default().read(std::path::Path::new(path));
    let text = source
        .map_err(|error| format!("{}: {hint}", error.message))?
        .text;
    let split = text
        .split_once("\r\n\r\n")
        .or_else(|| text.split_once("\n\n"));
    let (head, body) = split.ok_or_else(|| format!("the file is no HTTP response: {hint}"))?;
    let kind = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-type")
            .then(|| value.trim().to_owned())
    });
    match body.is_empty() {
        true => Err(format!("the file has no body: {hint}")),
        false => Ok((kind, body.to_owned())),
    }
}

fn tls(pool: &mut Table, servers: &[Server], cx: &mut Context<'_>) {
    let Some(first) = servers.iter().find(|server| server.tls) else {
        return;
    };
    let place = &first.place;
    let authorities = cx.global_value("ca-base");
    let base = cx.global_value("crt-base");
    let table = pool.table("tls");
    match (first.verify.as_deref(), &first.authorities) {
        (Some("none"), _) => _ = table.set("verify", false, place),
        (_, Some(file)) if file != "@system-ca" => {
            table.set(
                "authorities",
                super::listener::joined(authorities.as_deref(), file),
                place,
            );
        }
        _ => _ = table.set("verify", true, place),
    }
    if let Some(name) = first.verifyhost.as_ref().or(first.sni.as_ref()) {
        table.set("server_name", name.as_str(), place);
    }
    if let Some(file) = &first.certificate {
        let path = super::listener::joined(base.as_deref(), file);
        table
            .set("certificate", path.as_str(), place)
            .set("key", path, place);
    }
    for other in servers {
        let same = (
            other.tls,
            &other.verify,
            &other.authorities,
            &other.sni,
            &other.certificate,
        ) == (
            first.tls,
            &first.verify,
            &first.authorities,
            &first.sni,
            &first.certificate,
        );
        if !same {
            let reason = format!(
                "TLS is for a whole pool: that of {} is taken; give it a pool of its own",
                first.name
            );
            cx.report
                .left(&other.place, format!("server {} ssl", other.name), reason);
        }
    }
}
