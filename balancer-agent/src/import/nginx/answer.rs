//! `return`, `rewrite` and `if`: answers that need no backend.

use super::Context;
use super::lex::Node;
use super::location::Scope;
use crate::import::draft::Table;

/// `return`, `rewrite` and `if` of the innermost block: what they do with all of it.
pub fn of_rewrites(
    scope: &Scope<'_>,
    hosts: &[String],
    tls: bool,
    cx: &mut Context<'_>,
) -> Option<Table> {
    let block = *scope.0.last()?;
    let mut redirected: Vec<String> = Vec::new();
    let mut ifs: Vec<(&Node, Table)> = Vec::new();
    for node in block.inside() {
        match node.name.as_str() {
            "return" => {
                return answer(node, hosts, tls).or_else(|| {
                    cx.report.left(
                        &node.place,
                        node.shown(),
                        "its place has parts that `{host}`, `{path}` and `{query}` can't say",
                    );
                    None
                });
            }
            "rewrite" => match rewritten(node, hosts, tls) {
                Some(mount) => return Some(mount),
                None => {
                    let reason = "paths are changed by prefix (`rewrite`), clients sent elsewhere by mounts with `redirect`";
                    cx.report.left(&node.place, node.shown(), reason);
                }
            },
            "if" => {
                let inner = scope.with(node);
                let action = match node.inside() {
                    [only] if only.name == "return" => answer(only, hosts, tls),
                    [only] if only.name == "rewrite" => rewritten(only, hosts, tls),
                    _ => None,
                };
                let words: Vec<&str> = node
                    .args
                    .iter()
                    .map(|w| w.trim_matches(['(', ')']))
                    .filter(|w| !w.is_empty())
                    .collect();
                let _ = inner;
                match (&words[..], action) {
                    (
                        ["$scheme", "!=", "https"]
                        | ["$scheme", "=", "http"]
                        | ["$https", "=", ""]
                        | ["$https", "!=", "on"],
                        Some(action),
                    ) => {
                        if !tls {
                            return Some(action);
                        }
                    }
                    (["$host" | "$http_host" | "$server_name", "=", name], Some(action)) => {
                        redirected.push((*name).to_owned());
                        ifs.push((node, action));
                    }
                    _ => {
                        let deny = node.inside().iter().any(|n| {
                            n.name == "return" && matches!(n.arg(0), "403" | "444" | "401" | "405")
                        });
                        let reason = match deny {
                            true => "ACCESS IS NOT RESTRICTED HERE: what decides is host and path",
                            false => "there are no conditions: what decides is host and path",
                        };
                        cx.report.left(&node.place, node.shown(), reason);
                    }
                }
            }
            _ => {}
        }
        let all = !hosts.is_empty() && hosts.iter().all(|host| redirected.contains(host));
        if all && let Some((_, action)) = ifs.first() {
            return Some(action.clone());
        }
    }
    for (node, _) in ifs {
        let reason = "only some of the server's names: give them a server of their own";
        cx.report.left(&node.place, node.shown(), reason);
    }
    None
}

/// `return CODE [TEXT]` or `return URL`.
fn answer(node: &Node, hosts: &[String], tls: bool) -> Option<Table> {
    let place = &node.place;
    let mut mount = Table::one_of("mount", place);
    let (code, text) = match node.arg(0).parse::<u64>() {
        Ok(code) => (code, node.args.get(1)),
        Err(_) => (302, node.args.first()),
    };
    match (code, text) {
        (301 | 302 | 303 | 307 | 308, Some(target)) => {
            let location = expand(target, hosts, tls)?;
            mount
                .table("redirect")
                .set("location", location, place)
                .set("status", code, place);
        }
        // nginx closes the connection; nothing is closer than a refusal.
        (444, _) => _ = mount.table("respond").set("status", 403, place),
        (code, text) => {
            let table = mount.table("respond");
            table.set("status", code, place);
            if let Some(text) = text {
                if text.contains('$') {
                    return None;
                }
                table.set("body", text.as_str(), place);
            }
        }
    }
    Some(mount)
}

/// `rewrite ^ URL permanent` and the like: all of it elsewhere.
fn rewritten(node: &Node, hosts: &[String], tls: bool) -> Option<Table> {
    let status = match (node.arg(2), node.arg(1)) {
        ("permanent", _) => 301,
        ("redirect", _) => 302,
        ("", target) if target.starts_with("http") => 302,
        _ => return None,
    };
    let target = match node.arg(0) {
        "^" | ".*" | "^.*$" | "^.*" => node.arg(1).to_owned(),
        "^(.*)$" | "(.*)" | "^(.*)" => node.arg(1).replace("$1", "$uri$is_args$args"),
        "^/(.*)$" | "^/(.*)" => node.arg(1).replace("/$1", "$uri$is_args$args"),
        _ => return None,
    };
    // A rewrite adds the query by itself.
    let target = match target.strip_suffix('?') {
        Some(without) => without.to_owned(),
        None if target.contains("$request_uri") || target.contains("$args") => target,
        None => format!("{target}$is_args$args"),
    };
    let mut mount = Table::one_of("mount", &node.place);
    let location = expand(&target, hosts, tls)?;
    mount
        .table("redirect")
        .set("location", location, &node.place)
        .set("status", status, &node.place);
    Some(mount)
}

/// A place with nginx's variables, in the configuration's words.
fn expand(text: &str, hosts: &[String], tls: bool) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, behind) = match after.strip_prefix('{') {
            Some(after) => after.split_once('}')?,
            None => {
                let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                after.split_at(end.unwrap_or(after.len()))
            }
        };
        let first;
        out.push_str(match name {
            "host" | "http_host" => "{host}",
            "server_name" => {
                first = hosts.first().cloned().filter(|h| !h.starts_with('*'));
                first.as_deref().unwrap_or("{host}")
            }
            "request_uri" => "{path}{query}",
            "uri" | "document_uri" => "{path}",
            "scheme" if tls => "https",
            "scheme" => "http",
            "is_args" if behind.starts_with("$args") || behind.starts_with("$query_string") => "",
            "args" | "query_string" => {
                if out.ends_with('?') {
                    out.truncate(out.len() - 1);
                }
                rest = behind;
                out.push_str("{query}");
                continue;
            }
            _ => return None,
        });
        rest = behind;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_become_placeholders() {
        let hosts = ["www.example.org".to_owned()];
        let table = [
            (
                "https://$host$request_uri",
                Some("https://{host}{path}{query}"),
            ),
            (
                "https://${server_name}$uri$is_args$args",
                Some("https://www.example.org{path}{query}"),
            ),
            ("$scheme://x/?$args", Some("http://x/{query}")),
            ("https://$http_x", None),
            ("https://${host", None),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text, &hosts, false).as_deref(), expected, "{text}");
        }
    }
}
