//! `location` blocks and what is done in them.

use super::lex::{self, Node};
use super::{Context, answer, pass, reasons};
use crate::import::draft::Table;
use crate::import::rules::{self, Rule};
use crate::import::source::Place;

/// The blocks around a directive, the innermost last.
#[derive(Clone)]
pub struct Scope<'a>(pub Vec<&'a Node>);

impl<'a> Scope<'a> {
    /// The innermost directive of this name.
    pub fn find(&self, name: &str) -> Option<&'a Node> {
        self.0
            .iter()
            .rev()
            .find_map(|block| block.inside().iter().rev().find(|n| n.name == name))
    }

    /// Directives of this name of the innermost block that has one: inner ones replace all.
    pub fn all(&self, name: &str) -> Vec<&'a Node> {
        let of = |block: &&'a Node| -> Vec<&'a Node> {
            block.inside().iter().filter(|n| n.name == name).collect()
        };
        self.0
            .iter()
            .rev()
            .map(of)
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }

    pub(super) fn with(&self, node: &'a Node) -> Self {
        let mut inner = self.clone();
        inner.0.push(node);
        inner
    }

    /// Those that stand in the innermost block itself.
    fn own(&self, name: &str) -> Option<&'a Node> {
        self.0.last()?.inside().iter().find(|n| n.name == name)
    }
}

/// A location with the blocks around it.
pub(super) struct Location<'a> {
    pub(super) scope: Scope<'a>,
    pub(super) node: &'a Node,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Exact,
    /// `^~`.
    First,
    Prefix,
    Regex,
}

/// The rules of a server, in the order in which nginx looks at them.
pub fn rules(server: &Scope<'_>, hosts: &[String], tls: bool, cx: &mut Context<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    let Some(node) = server.0.last() else {
        return rules;
    };
    if let Some(mut action) = answer::of_rewrites(server, hosts, tls, cx) {
        action.remove("pattern");
        let place = action.place.clone().unwrap_or_else(|| node.place.clone());
        rules.push(Rule {
            patterns: vec!["/*".to_owned()],
            action,
            place,
        });
        // Nothing else is reached.
        return rules;
    }
    let mut locations = Vec::new();
    gather(server, node, &mut locations, cx);
    let text = |location: &Location<'_>| match location.kind {
        Kind::Prefix => location
            .node
            .arg(if location.node.args.len() > 1 { 1 } else { 0 })
            .to_owned(),
        _ => location.node.arg(1).to_owned(),
    };
    let longest = |kinds: &[Kind]| {
        let mut found: Vec<&Location<'_>> = locations
            .iter()
            .filter(|l| kinds.contains(&l.kind))
            .collect();
        found.sort_by_key(|l| std::cmp::Reverse(text(l).len()));
        found
    };
    let firsts = longest(&[Kind::First]);
    let mut ordered: Vec<&Location<'_>> = longest(&[Kind::Exact]);
    for location in longest(&[Kind::First, Kind::Prefix]) {
        let inside = firsts
            .iter()
            .any(|first| text(location).starts_with(&text(first)));
        if inside {
            if location.kind == Kind::Prefix && locations.iter().any(|l| l.kind == Kind::Regex) {
                let reason = "it is within a `^~` location: here it is looked at before regular expressions, too";
                cx.report
                    .note(&location.node.place, location.node.shown(), reason);
            }
            ordered.push(location);
        }
    }
    ordered.extend(locations.iter().filter(|l| l.kind == Kind::Regex));
    let rest = longest(&[Kind::Prefix]);
    let rest: Vec<&&Location<'_>> = rest
        .iter()
        .filter(|l| !ordered.iter().any(|known| std::ptr::eq(known.node, l.node)))
        .collect();
    ordered.extend(rest.into_iter().copied());
    let exact: Vec<String> = locations
        .iter()
        .filter(|l| l.kind == Kind::Exact)
        .map(text)
        .collect();
    for location in ordered {
        let text = text(location);
        let place = &location.node.place;
        let patterns = match location.kind {
            Kind::Regex => match rules::from_regex(&text) {
                Some(patterns) => {
                    if location.node.arg(0) == "~*" {
                        let reason = "paths are compared with case: written as it stands here";
                        cx.report.note(place, location.node.shown(), reason);
                    }
                    patterns
                }
                None => {
                    let reason = "this regular expression is more than `*` and `?` can say: write the mounts that are meant";
                    cx.report.left(place, location.node.shown(), reason);
                    continue;
                }
            },
            kind => {
                if rules::plain(&text).is_none() || !text.starts_with('/') {
                    cx.report.left(
                        place,
                        location.node.shown(),
                        "a pattern begins with `/` and has no `*` and `?` of its own",
                    );
                    continue;
                }
                match kind {
                    Kind::Exact => vec![text.clone()],
                    _ => vec![format!("{text}*")],
                }
            }
        };
        let Some((action, segments)) = action(location, &text, hosts, tls, cx) else {
            continue;
        };
        // What is taken off a path is whole segments: so is what matches.
        let patterns = match segments && !text.ends_with('/') && location.kind != Kind::Exact {
            true => vec![text.clone(), format!("{text}/*")],
            false => patterns,
        };
        let slash = text.strip_suffix('/').filter(|short| {
            let missing = !short.is_empty() && !exact.iter().any(|e| e == short);
            missing
                && matches!(location.kind, Kind::Prefix | Kind::First)
                && action.get("pool").is_some()
        });
        if let Some(short) = slash {
            let mut redirect = Table::one_of("mount", place);
            let table = redirect.table("redirect");
            table
                .set("location", format!("{text}{{query}}"), place)
                .set("status", 301, place);
            rules.push(Rule {
                patterns: vec![short.to_owned()],
                action: redirect,
                place: place.clone(),
            });
        }
        rules.push(Rule {
            patterns,
            action,
            place: place.clone(),
        });
    }
    rules
}

fn gather<'a>(
    scope: &Scope<'a>,
    block: &'a Node,
    out: &mut Vec<Location<'a>>,
    cx: &mut Context<'_>,
) {
    for node in block.inside().iter().filter(|n| n.name == "location") {
        let kind = match (node.arg(0), node.args.len()) {
            ("=", 2) => Kind::Exact,
            ("^~", 2) => Kind::First,
            ("~" | "~*", 2) => Kind::Regex,
            (text, 1) if text.starts_with('@') => continue,
            (text, 1) if text.starts_with('=') || text.starts_with('~') => {
                cx.report.left(
                    &node.place,
                    node.shown(),
                    "write a space behind the `=` or `~`",
                );
                continue;
            }
            (_, 1) => Kind::Prefix,
            _ => {
                cx.report.left(&node.place, node.shown(), "is no location");
                continue;
            }
        };
        let inner = scope.with(node);
        for line in node.inside() {
            reasons::left(line, &mut cx.report);
            if line.name == "limit_except" {
                let reason = "ACCESS IS NOT RESTRICTED HERE: methods are not what decides";
                cx.report.left(&line.place, line.shown(), reason);
            }
        }
        gather(&inner, node, out, cx);
        out.push(Location {
            scope: inner,
            node,
            kind,
        });
    }
}

/// What is done: a mount without pattern, and whether it takes whole segments off.
fn action(
    location: &Location<'_>,
    text: &str,
    hosts: &[String],
    tls: bool,
    cx: &mut Context<'_>,
) -> Option<(Table, bool)> {
    let scope = &location.scope;
    let node = location.node;
    if let Some(action) = answer::of_rewrites(scope, hosts, tls, cx) {
        return Some((action, false));
    }
    if let Some(deny) = scope.own("deny") {
        if deny.arg(0) == "all" && scope.own("allow").is_none() {
            let mut mount = Table::one_of("mount", &node.place);
            mount.table("respond").set("status", 403, &deny.place);
            return Some((mount, false));
        }
        let reason = "ACCESS IS NOT RESTRICTED HERE: addresses are not what decides";
        cx.report.left(&deny.place, deny.shown(), reason);
    }
    if let Some(status) = scope.own("stub_status") {
        let mut mount = Table::one_of("mount", &node.place);
        mount
            .table("stats")
            .set("format", "haproxy-csv", &status.place);
        let reason = "the counters are there as HAProxy's CSV, for clients on this host: add networks to its `allow`";
        cx.report.note(&status.place, status.shown(), reason);
        return Some((mount, false));
    }
    if let Some(pass) = scope.own("proxy_pass") {
        return pass::to_pool(location, pass, text, cx);
    }
    let other = node
        .inside()
        .iter()
        .find(|n| n.name.ends_with("_pass") && n.name != "proxy_pass");
    if let Some(other) = other {
        // Reported by its name already.
        let reason = format!("nothing is done there: `{}` has no counterpart", other.name);
        cx.report.left(&node.place, node.shown(), reason);
        return None;
    }
    if let Some(tries) = scope.find("try_files") {
        let last = tries.args.last().map_or("", String::as_str);
        let plain = tries
            .args
            .iter()
            .rev()
            .skip(1)
            .all(|arg| matches!(arg.as_str(), "$uri" | "$uri/"));
        match last {
            "=404" if plain => {}
            name if name.starts_with('@') => {
                let named = scope.0.get(1).and_then(|server| {
                    let mut inside = server.inside().iter();
                    inside.find(|n| n.name == "location" && n.arg(0) == name)
                });
                let pass = named
                    .and_then(|n| Some((n, n.inside().iter().find(|n| n.name == "proxy_pass")?)));
                if let Some((named, pass)) = pass {
                    let reason = "whether a file exists does not decide: all of it goes to the pool; name the paths of files \
                                  in a `[[frontend.site.exclude]]`";
                    cx.report.left(&tries.place, tries.shown(), reason);
                    let inner = Location {
                        scope: scope.with(named),
                        node: named,
                        kind: location.kind,
                    };
                    return pass::to_pool(&inner, pass, text, cx);
                }
                cx.report.left(
                    &tries.place,
                    tries.shown(),
                    "there is no such location with a proxy_pass",
                );
            }
            _ => {
                let reason = "files are served, or 404: another file can't stand in for those that are not there";
                cx.report.left(&tries.place, tries.shown(), reason);
            }
        }
    }
    let (root, strip) = match (scope.own("alias"), scope.find("root")) {
        (Some(alias), _) => (alias, Some(text.trim_end_matches('/'))),
        (None, Some(root)) => (root, None),
        (None, None) => {
            cx.report.left(
                &node.place,
                node.shown(),
                "it has neither proxy_pass nor root",
            );
            return None;
        }
    };
    match files(scope, root.arg(0), &root.place, strip) {
        Some(mut files) => {
            files.place = Some(node.place.clone());
            Some((files, strip.is_some()))
        }
        None => {
            cx.report.left(
                &root.place,
                root.shown(),
                "write the whole path of the folder, without variables",
            );
            None
        }
    }
}

/// Files of a root, as a mount.
pub fn files(scope: &Scope<'_>, root: &str, place: &Place, strip: Option<&str>) -> Option<Table> {
    if !root.starts_with('/') || root.contains('$') {
        return None;
    }
    let mut mount = Table::one_of("mount", place);
    let root = match root.trim_end_matches('/') {
        "" => "/",
        root => root,
    };
    let table = mount.table("files");
    table.set("root", root, place);
    if let Some(index) = scope.find("index") {
        for name in index.args.iter().filter(|name| !name.contains(['/', '$'])) {
            table.add("index", name.as_str(), &index.place);
        }
    }
    if let Some(expires) = scope.find("expires") {
        let value = match expires.arg(0) {
            "max" => Some("max-age=315360000".to_owned()),
            "epoch" | "-1" => Some("no-cache".to_owned()),
            "off" => None,
            text => lex::time(text).map(|ms| format!("max-age={}", ms / 1_000)),
        };
        if let Some(value) = value {
            table.set("cache_control", value, &expires.place);
        }
    }
    if let Some(strip) = strip.filter(|s| !s.is_empty()) {
        mount.table("rewrite").set("strip_prefix", strip, place);
    }
    headers(&mut mount, scope);
    Some(mount)
}

/// `add_header` and `gzip`.
pub(super) fn headers(mount: &mut Table, scope: &Scope<'_>) {
    for node in scope.all("add_header") {
        let value = node.arg(1);
        if value.is_empty() || value.contains('$') {
            continue;
        }
        let pair = vec![("set", node.arg(0).to_owned()), ("value", value.to_owned())];
        mount
            .table("rewrite")
            .add_pair("response_headers", pair, &node.place);
    }
    for node in scope.all("proxy_hide_header") {
        let pair = vec![("remove", node.arg(0).to_owned())];
        mount
            .table("rewrite")
            .add_pair("response_headers", pair, &node.place);
    }
    if let Some(gzip) = scope.find("gzip").filter(|n| n.arg(0) == "on") {
        mount.set("compress", true, &gzip.place);
    }
}
