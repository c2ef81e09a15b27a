//! Changes of headers, and what log formats in them mean.

use super::Context;
use super::lex::Line;
use super::sections::Proxy;
use crate::import::draft::Table;

/// Headers that the balancer writes by itself (`x_forwarded`).
const OWN: [&str; 4] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
];

/// Adds the changes that these proxies make to a mount with a pool.
pub fn add(mount: &mut Table, proxies: &[&Proxy], cx: &mut Context<'_>) {
    let file = cx.file;
    let Some(place) = mount.place.clone() else {
        return;
    };
    let mut compress = None;
    let mut seen: Vec<&Line> = Vec::new();
    for proxy in proxies {
        for line in file.lines(proxy) {
            // Of a section of defaults that holds for both.
            if seen
                .iter()
                .any(|known| known.place == line.place && known.words == line.words)
            {
                continue;
            }
            seen.push(line);
            match (line.word(0), line.word(1)) {
                (
                    "http-request" | "http-response" | "http-after-response",
                    "set-header" | "add-header" | "del-header",
                ) => {
                    change(mount, line, cx);
                }
                ("reqadd" | "reqidel" | "reqdel" | "rspadd" | "rspdel" | "rspidel", _) => {
                    let reason = "write it as `http-request set-header` or `http-response set-header`, or as `rewrite` here";
                    cx.report.left(&line.place, line.shown(), reason);
                }
                ("compression", "algo") => compress = Some(line.place.clone()),
                _ => {}
            }
        }
    }
    if let Some(compress) = compress {
        let same = compress == place;
        mount.set("compress", true, if same { &place } else { &compress });
    }
}

fn change(mount: &mut Table, line: &Line, cx: &mut Context<'_>) {
    let response = line.word(0) != "http-request";
    let name = line.word(2);
    let (words, condition) = super::frontend::split_condition(line.from(2));
    let own = OWN.contains(&name.to_ascii_lowercase().as_str());
    if own && !response {
        let reason =
            "not needed: the balancer writes X-Forwarded-For, -Proto, -Host and -Port by itself";
        cx.report.left(&line.place, line.shown(), reason);
        return;
    }
    if !condition.is_empty() {
        let reason = "headers are changed for all requests of a mount, without conditions";
        cx.report.left(&line.place, line.shown(), reason);
        return;
    }
    let key = if response {
        "response_headers"
    } else {
        "request_headers"
    };
    let verb = line.word(1);
    if verb == "del-header" {
        if words.len() > 1 {
            cx.report.left(
                &line.place,
                line.shown(),
                "headers are removed by their whole name",
            );
            return;
        }
        if name.eq_ignore_ascii_case("host") {
            cx.report
                .left(&line.place, line.shown(), "requests have a host");
            return;
        }
        mount
            .table("rewrite")
            .add_pair(key, vec![("remove", name.to_owned())], &line.place);
        return;
    }
    let value = line.word(3);
    let Some(value) = literal(value) else {
        let reason = "the value is made of the request: here it is fixed text";
        cx.report.left(&line.place, line.shown(), reason);
        return;
    };
    if name.eq_ignore_ascii_case("host") && !response {
        mount.table("rewrite").set("host", value, &line.place);
        return;
    }
    let verb = if verb == "set-header" { "set" } else { "add" };
    let pair = vec![(verb, name.to_owned()), ("value", value)];
    mount.table("rewrite").add_pair(key, pair, &line.place);
}

/// A log format without anything of the request in it.
fn literal(text: &str) -> Option<String> {
    let text = text.replace("%%", "\u{0}");
    (!text.contains('%')).then(|| text.replace('\u{0}', "%"))
}

/// A log format as the place of a redirect, with `{host}`, `{path}` and `{query}`.
pub fn expand(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let Some((inside, after)) = after
            .strip_prefix('[')
            .and_then(|after| after.split_once(']'))
        else {
            // An encoded character, which is no format.
            let hex = after.as_bytes().get(..2)?;
            if !hex.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            out.push('%');
            rest = after;
            continue;
        };
        let word = match inside.to_ascii_lowercase().as_str() {
            "hdr(host)"
            | "req.hdr(host)"
            | "req.hdr(host),lower"
            | "hdr(host),lower"
            | "req.hdr(host),field(1,:)" => "{host}",
            "path" => "{path}",
            "url" | "capture.req.uri" | "pathq" => "{path}{query}",
            "query" => {
                // `?%[query]`: the placeholder brings its own question mark.
                if out.pop() != Some('?') {
                    return None;
                }
                "{query}"
            }
            _ => return None,
        };
        out.push_str(word);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_formats_become_places() {
        let table = [
            (
                "https://%[hdr(host)]%[capture.req.uri]",
                Some("https://{host}{path}{query}"),
            ),
            ("/new%[path]?%[query]", Some("/new{path}{query}")),
            ("/a%20b%%", Some("/a%20b%")),
            ("/%[src]", None),
            ("/%ci", None),
            ("/%", None),
            ("/%[path", None),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text).as_deref(), expected, "{text}");
        }
        assert_eq!(
            literal("max-age=1 100%%").as_deref(),
            Some("max-age=1 100%")
        );
        assert_eq!(literal("%[src]"), None);
    }
}
