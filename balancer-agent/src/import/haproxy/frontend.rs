//! Frontends: what becomes of `bind`, of the rules in their order, and of the rest.

use std::collections::HashSet;

use super::Context;
use super::acl::{Acls, Listener, Way, host_covers};
use super::bind::{self, Bind};
use super::lex::Line;
use super::listener;
use super::sections::{Kind, Proxy};
use crate::import::draft::{self, Table};
use crate::import::rules::{self, Rule};
use crate::import::source::Place;
use crate::import::{LeftOver, Report, names, sites};

/// One of HAProxy's rules: an action under a condition.
struct HttpRule<'a> {
    line: &'a Line,
    /// Words of the condition, `if` or `unless` first.
    condition: &'a [String],
    action: Action,
}

/// What was said of rules already, over all listeners of a frontend.
#[derive(Default)]
struct Spoken {
    /// Rules that are not understood.
    refused: Vec<Place>,
    /// Patterns that are never reached, in one site at least.
    dead: Vec<LeftOver>,
    /// Patterns of rules that are reached.
    alive: HashSet<(Place, String)>,
}

enum Action {
    /// A mount without its pattern.
    Mount(Table),
    /// To HTTPS; where it is unconditional on a plain listener, for all of it.
    Https,
}

/// Makes the frontends of a proxy.
pub fn frontends<'a>(proxy: &'a Proxy, cx: &mut Context<'a>) {
    let file = cx.file;
    let mut binds: Vec<Bind> = Vec::new();
    for line in proxy.lines.iter().filter(|line| line.word(0) == "bind") {
        binds.extend(bind::read(line, &mut cx.report));
    }
    if binds.is_empty() {
        let reason = "it listens nowhere that can be carried over";
        cx.report.left(
            &proxy.place,
            format!("{} {}", word(proxy.kind), proxy.name),
            reason,
        );
        return;
    }
    // `[::]` takes IPv4 as well.
    let all: Vec<u16> = binds
        .iter()
        .filter(|bind| {
            bind.ip
                .is_some_and(|ip| ip.is_ipv6() && ip.is_unspecified())
        })
        .map(|bind| bind.port)
        .collect();
    binds.retain(|bind| !(bind.ip.is_none() && all.contains(&bind.port)));
    if !file.is_http(proxy) {
        listener::tcp(proxy, &binds, cx);
        return;
    }
    let acls = Acls::of(file.lines(proxy));
    note_case(proxy, cx);
    let rules = rules_of(proxy, cx);
    let mut spoken = Spoken::default();
    for bind in &binds {
        let table = http(proxy, bind, &acls, &rules, &mut spoken, cx);
        cx.root.push(table);
    }
    for entry in spoken.dead {
        // Of a rule for several sites and listeners, one that has it is enough.
        let reached = (entry.place.clone(), entry.directive.clone());
        if !spoken.alive.contains(&reached) {
            cx.report.left(&entry.place, entry.directive, entry.reason);
        }
    }
}

pub(super) fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Frontend => "frontend",
        Kind::Backend => "backend",
        Kind::Listen => "listen",
    }
}

/// The rules in the order in which they are looked at.
fn rules_of<'a>(proxy: &'a Proxy, cx: &mut Context<'a>) -> Vec<HttpRule<'a>> {
    let file = cx.file;
    let lines: Vec<&Line> = file.lines(proxy).collect();
    let mut rules = Vec::new();
    for line in &lines {
        if line.words[0] == "monitor-uri" {
            let mut mount = Table::one_of("mount", &line.place);
            mount.set(
                "pattern",
                rules::plain(line.word(1)).unwrap_or("/"),
                &line.place,
            );
            mount.table("respond").set("body", "ok", &line.place);
            rules.push(HttpRule {
                line,
                condition: &[],
                action: Action::Mount(mount),
            });
        }
    }
    if let Some(mount) = stats(proxy, cx) {
        let line = mount.1;
        rules.push(HttpRule {
            line,
            condition: &[],
            action: Action::Mount(mount.0),
        });
    }
    for line in &lines {
        if line.words[0] == "http-request" {
            rules.extend(http_request(line, cx));
        }
    }
    for line in &lines {
        if line.words[0] == "redirect" {
            rules.extend(redirect(line, line.from(1), cx));
        }
        if line.words[0] == "block" {
            let (_, condition) = split_condition(line.from(1));
            let mut mount = Table::one_of("mount", &line.place);
            mount.table("respond").set("status", 403, &line.place);
            rules.push(HttpRule {
                line,
                condition,
                action: Action::Mount(mount),
            });
        }
    }
    for line in &lines {
        if line.words[0] == "use_backend" {
            let (_, condition) = split_condition(line.from(2));
            if let Some(mount) = to_pool(line, proxy, cx) {
                rules.push(HttpRule {
                    line,
                    condition,
                    action: Action::Mount(mount),
                });
            }
        }
    }
    let default = match proxy.kind {
        Kind::Listen => None,
        _ => file.last(proxy, &["default_backend"]),
    };
    match (default, proxy.kind) {
        (Some(line), _) => {
            if let Some(mount) = to_pool(line, proxy, cx) {
                rules.push(HttpRule {
                    line,
                    condition: &[],
                    action: Action::Mount(mount),
                });
            }
        }
        (None, Kind::Listen) => {
            if let (Some(pool), Some(line)) =
                (cx.pools.get(&proxy.name).cloned(), proxy.lines.first())
            {
                let mut mount = Table::one_of("mount", &proxy.place);
                mount.set("pool", pool, &proxy.place);
                super::headers::add(&mut mount, &[proxy], cx);
                rules.push(HttpRule {
                    line,
                    condition: &[],
                    action: Action::Mount(mount),
                });
            }
        }
        (None, _) => {}
    }
    rules
}

/// The view of statistics, where one is asked for.
fn stats<'a>(proxy: &Proxy, cx: &mut Context<'a>) -> Option<(Table, &'a Line)> {
    let file: &'a super::sections::File = cx.file;
    let own = file
        .proxies
        .iter()
        .find(|other| other.name == proxy.name && other.kind == proxy.kind)?;
    let uri = file.last(own, &["stats", "uri"]);
    let enabled = uri.or_else(|| file.last(own, &["stats", "enable"]))?;
    let uri = uri.map_or("/haproxy?stats", |line| line.word(2));
    let path = uri.split(['?', ';']).next().unwrap_or(uri);
    // It begins what is asked for: there, `/` is everything.
    let path = if matches!(path, "" | "/") { "/*" } else { path };
    let mut mount = Table::one_of("mount", &enabled.place);
    mount.add("pattern", path, &enabled.place);
    mount
        .table("stats")
        .set("format", "haproxy-csv", &enabled.place);
    let reason = "the statistics as CSV are there, for clients on this host: add networks to its `allow`; the page for \
                  people is `balancer status`";
    cx.report.note(&enabled.place, enabled.shown(), reason);
    Some((mount, enabled))
}

fn to_pool(line: &Line, proxy: &Proxy, cx: &mut Context<'_>) -> Option<Table> {
    let name = line.word(1);
    let Some(pool) = cx.pools.get(name).cloned() else {
        let reason = match name.contains('%') {
            true => {
                "a backend's name can't be made of the request: write one mount for each".to_owned()
            }
            false => format!("there is no backend {name} that was carried over"),
        };
        cx.report.left(&line.place, line.shown(), reason);
        return None;
    };
    let mut mount = Table::one_of("mount", &line.place);
    mount.set("pool", pool, &line.place);
    let file = cx.file;
    let backend = file
        .proxies
        .iter()
        .find(|p| p.name == name && p.kind != Kind::Frontend);
    let proxies: Vec<&Proxy> = std::iter::once(proxy)
        .chain(backend.filter(|b| b.place != proxy.place))
        .collect();
    super::headers::add(&mut mount, &proxies, cx);
    Some(mount)
}

/// The words before `if` or `unless`, and the condition.
pub fn split_condition(words: &[String]) -> (&[String], &[String]) {
    let at = words
        .iter()
        .position(|word| word == "if" || word == "unless");
    words.split_at(at.unwrap_or(words.len()))
}

fn http_request<'a>(line: &'a Line, cx: &mut Context<'_>) -> Option<HttpRule<'a>> {
    let (words, condition) = split_condition(line.from(2));
    match line.word(1) {
        "deny" | "return" | "reject" | "silent-drop" | "tarpit" => {
            let mut mount = Table::one_of("mount", &line.place);
            let respond = mount.table("respond");
            let default = if line.word(1) == "return" { 200 } else { 403 };
            respond.set("status", default, &line.place);
            let mut words = words.iter().map(String::as_str);
            while let Some(word) = words.next() {
                match (word, words.next()) {
                    ("deny_status" | "status", Some(status)) if status.parse::<u64>().is_ok() => {
                        respond.set(
                            "status",
                            status.parse::<u64>().unwrap_or(default),
                            &line.place,
                        );
                    }
                    ("content-type", Some(value)) => {
                        respond.set("content_type", value, &line.place);
                    }
                    ("string" | "lf-string", Some(value))
                        if word == "string" || !value.contains('%') =>
                    {
                        respond.set("body", value, &line.place);
                    }
                    (word, _) => {
                        let reason =
                            "of a fixed response, status, content type and text are carried over";
                        cx.report
                            .left(&line.place, format!("{} {word}", line.word(1)), reason);
                    }
                }
            }
            if matches!(line.word(1), "reject" | "silent-drop" | "tarpit") {
                let reason = "such requests are answered with 403 at once";
                cx.report.note(&line.place, line.shown(), reason);
            }
            Some(HttpRule {
                line,
                condition,
                action: Action::Mount(mount),
            })
        }
        "redirect" => redirect(line, line.from(2), cx),
        // Looked at with the pools that the requests go to.
        "set-header" | "add-header" | "del-header" => None,
        other => {
            let reason = super::reasons::http_request(other);
            cx.report.left(&line.place, line.shown(), reason);
            None
        }
    }
}

fn redirect<'a>(line: &'a Line, words: &'a [String], cx: &mut Context<'_>) -> Option<HttpRule<'a>> {
    let (words, condition) = split_condition(words);
    let mut kind = None;
    let mut status = None;
    let mut with_query = true;
    let mut rest = words.iter().map(String::as_str);
    while let Some(word) = rest.next() {
        match word {
            "location" | "prefix" | "scheme" => kind = rest.next().map(|value| (word, value)),
            "code" => status = rest.next().and_then(|code| code.parse::<u64>().ok()),
            "drop-query" => with_query = false,
            word => {
                let reason = "a redirect has a place and a status, nothing else";
                cx.report
                    .left(&line.place, format!("redirect {word}"), reason);
                if !matches!(word, "ignore-empty" | "append-slash") {
                    rest.next();
                }
            }
        }
    }
    let mut left = |reason: &str| {
        cx.report.left(&line.place, line.shown(), reason);
        None
    };
    let query = if with_query { "{query}" } else { "" };
    let location = match kind {
        Some(("scheme", "https")) => {
            return Some(HttpRule {
                line,
                condition,
                action: Action::Https,
            });
        }
        Some(("scheme", scheme)) => format!("{scheme}://{{host}}{{path}}{query}"),
        Some(("prefix", prefix)) => match super::headers::expand(prefix) {
            Some(prefix) => format!("{}{{path}}{query}", prefix.trim_end_matches('/')),
            None => {
                return left("its place has parts that `{host}`, `{path}` and `{query}` can't say");
            }
        },
        Some((_, location)) => match super::headers::expand(location) {
            Some(location) => location,
            None => {
                return left("its place has parts that `{host}`, `{path}` and `{query}` can't say");
            }
        },
        None => return left("a redirect without a place"),
    };
    let mut mount = Table::one_of("mount", &line.place);
    let redirect = mount.table("redirect");
    redirect.set("location", location, &line.place);
    redirect.set("status", status.unwrap_or(302), &line.place);
    Some(HttpRule {
        line,
        condition,
        action: Action::Mount(mount),
    })
}

fn http(
    proxy: &Proxy,
    bind: &Bind,
    acls: &Acls,
    rules: &[HttpRule<'_>],
    spoken: &mut Spoken,
    cx: &mut Context<'_>,
) -> Table {
    let mut table = Table::one_of("frontend", &proxy.place);
    table.set_own("name", cx.names.unique(&proxy.name));
    table.set_own("mode", "http");
    table.set("address", names::listen(bind.ip, bind.port), &bind.place);
    let listener = Listener {
        tls: bind.tls,
        port: bind.port,
    };
    let mut https = None;
    let mut last = false;
    let mut meant: Vec<(Way, &HttpRule<'_>, Table)> = Vec::new();
    for rule in rules {
        let ways = match acls.ways(rule.condition, listener) {
            Ok(ways) => ways,
            Err(reason) => {
                // A deny that is gone lets through what it kept out.
                let denied = matches!(
                    rule.line.word(1),
                    "deny" | "reject" | "silent-drop" | "tarpit"
                ) || rule.line.word(0) == "block";
                let reason = match denied {
                    true => format!("ACCESS IS NOT RESTRICTED HERE: {reason}"),
                    false => reason,
                };
                if !spoken.refused.contains(&rule.line.place) {
                    spoken.refused.push(rule.line.place.clone());
                    cx.report.left(&rule.line.place, rule.line.shown(), reason);
                }
                continue;
            }
        };
        for way in ways {
            let mount = match &rule.action {
                Action::Mount(mount) => mount.clone(),
                Action::Https if way == Way::default() && !bind.tls && meant.is_empty() => {
                    https.get_or_insert(rule.line.place.clone());
                    continue;
                }
                Action::Https => {
                    let mut mount = Table::one_of("mount", &rule.line.place);
                    let redirect = mount.table("redirect");
                    redirect.set("location", "https://{host}{path}{query}", &rule.line.place);
                    redirect.set("status", 301, &rule.line.place);
                    mount
                }
            };
            // For this listener it is for all requests, though not for those of others: what
            // follows is for them.
            last |= !rule.condition.is_empty()
                && way == Way::default()
                && mount.get("pattern").is_none();
            meant.push((way, rule, mount));
        }
        if https.is_some() || last {
            break;
        }
    }
    listener::basics(&mut table, proxy, bind, cx);
    if let Some(place) = https {
        table.set("redirect_https", 443, &place);
        return table;
    }
    sites(&mut table, &meant, proxy, spoken, cx);
    table
}

/// Sites by the hosts that rules name; each has the rules that can hold for it, in order.
fn sites(
    table: &mut Table,
    meant: &[(Way, &HttpRule<'_>, Table)],
    proxy: &Proxy,
    spoken: &mut Spoken,
    cx: &mut Context<'_>,
) {
    let mut hosts: Vec<&str> = Vec::new();
    for host in meant
        .iter()
        .filter_map(|(way, ..)| way.hosts.as_ref())
        .flatten()
    {
        if !hosts.contains(&host.as_str()) {
            hosts.push(host);
        }
    }
    let all: Vec<Option<&str>> = hosts.iter().map(|host| Some(*host)).chain([None]).collect();
    for site_host in all {
        let holds = |way: &Way| match (&way.hosts, site_host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(hosts), Some(own)) => hosts.iter().any(|host| host_covers(host, own)),
        };
        let rules: Vec<Rule> = meant
            .iter()
            .filter(|(way, ..)| holds(way))
            .map(|(way, rule, mount)| {
                let own = mount.get("pattern").cloned();
                let patterns = match (own, &way.paths) {
                    (Some(draft::Value::Text(text)), _) => vec![text],
                    (Some(draft::Value::Texts(items)), _) => {
                        items.into_iter().map(|i| i.text).collect()
                    }
                    (_, Some(paths)) => paths.clone(),
                    (_, None) => vec!["/*".to_owned()],
                };
                let mut action = mount.clone();
                action.remove("pattern");
                Rule {
                    patterns,
                    action,
                    place: mount
                        .place
                        .clone()
                        .unwrap_or_else(|| rule.line.place.clone()),
                }
            })
            .collect();
        if rules.is_empty() {
            continue;
        }
        let place = match site_host {
            Some(own) => meant
                .iter()
                .find(|(way, ..)| {
                    way.hosts
                        .as_ref()
                        .is_some_and(|hosts| hosts.iter().any(|h| h == own))
                })
                .map_or(&proxy.place, |(_, rule, _)| &rule.line.place),
            None => &proxy.place,
        };
        let mut said = Report::default();
        let mounts = rules::mounts(&rules, &mut said);
        spoken.dead.append(&mut said.left_over);
        cx.report.notes.append(&mut said.notes);
        for mount in &mounts {
            if let (Some(draft::Value::Texts(items)), Some(place)) =
                (mount.get("pattern"), &mount.place)
            {
                let reached = items.iter().map(|item| (place.clone(), item.text.clone()));
                spoken.alive.extend(reached);
            }
        }
        let hosts: Vec<(String, Place)> = site_host
            .into_iter()
            .map(|host| (host.to_owned(), place.clone()))
            .collect();
        sites::add(table, &hosts, place, mounts, |_| {});
    }
}

fn note_case(proxy: &Proxy, cx: &mut Context<'_>) {
    let file = cx.file;
    let words = file.lines(proxy).filter(|line| line.word(0) == "acl");
    let cased: Vec<&Line> = words
        .filter(|line| {
            let lower = line.word(2).to_ascii_lowercase();
            let path = ["path", "url", "base"]
                .iter()
                .any(|name| lower.starts_with(name));
            path && (lower.contains(",lower") || line.from(3).iter().any(|word| word == "-i"))
        })
        .collect();
    for line in cased {
        let reason = "paths are compared with case: written as they stand here";
        cx.report.note(&line.place, line.shown(), reason);
    }
}

/// Reports a line of a frontend that nothing was made of.
pub(super) fn rest(line: &Line, report: &mut Report) {
    if let Some(reason) = super::reasons::of(line) {
        // Passwords are nobody's business.
        let what = match (line.word(0), line.word(1)) {
            ("stats", "auth") => "stats auth".to_owned(),
            _ => line.shown(),
        };
        report.left(&line.place, what, reason);
    }
}
