//! What is done with a request, and what is changed on the way: the part that
//! mounts and fallbacks have in common.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use ipnet::{IpNet, Ipv4Net};
use toml::Spanned;

use super::raw::{
    RawFiles, RawHeaderChange, RawRedirect, RawRespond, RawRewrite, RawRoute, RawStats, Tables,
};
use super::{files, value as http_value};
use crate::config::findings::{Findings, Mistake, Span};
use crate::config::raw::{Field, Section, Value};
use crate::config::value;
use crate::model::Named;
use crate::model::http::{
    Action, Compress, Files, HeaderChange, Rewrite, Route, Stats, StatsFormat,
};

/// Name of a pool where something refers to it.
pub(in crate::config) type PoolReference = Spanned<Arc<str>>;

const INDEX_DEFAULT: &str = "index.html";
const REDIRECT_DEFAULT: StatusCode = StatusCode::FOUND;
const COMPRESS_MIN: std::ops::RangeInclusive<u64> = 1..=1 << 30;
const BODY_MAX: usize = 1 << 20;
/// RFC 1122, 3.2.1.3.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// Reads a route. `what` is the table in words, and `span` where it stands.
/// Pools that it goes to are added to `pools`. `None` is a mistake already noted.
pub(super) fn route(
    raw: &RawRoute,
    what: &str,
    span: &Span,
    pools: &mut Vec<PoolReference>,
    findings: &mut Findings,
) -> Option<Arc<Route>> {
    // Everything is read, so that the mistakes of all of it are found.
    let pool = reference("pool", &raw.pool, findings);
    let files = raw
        .files
        .as_ref()
        .map(|t| files_of(t.get_ref(), &t.span(), findings));
    let redirect = raw
        .redirect
        .as_ref()
        .map(|t| redirect_of(t.get_ref(), &t.span(), findings));
    let respond = raw.respond.as_ref().map(|t| {
        let defaults = (StatusCode::OK, "text/plain; charset=utf-8");
        respond_of(t.get_ref(), &t.span(), "a response", defaults, findings)
    });
    let stats = raw
        .stats
        .as_ref()
        .map(|t| stats_of(t.get_ref(), &t.span(), findings));
    let written: Vec<(&str, Span)> = [
        ("pool", raw.pool.as_ref().map(Spanned::span)),
        ("files", raw.files.as_ref().map(Spanned::span)),
        ("redirect", raw.redirect.as_ref().map(Spanned::span)),
        ("respond", raw.respond.as_ref().map(Spanned::span)),
        ("stats", raw.stats.as_ref().map(Spanned::span)),
    ]
    .into_iter()
    .filter_map(|(key, span)| Some((key, span?)))
    .collect();
    let expected = "one of `pool`, `files`, `redirect`, `respond` and `stats`";
    match &written[..] {
        [] => findings.error(span.clone(), format!("{what} does nothing"), expected),
        [_] => {}
        [(first, _), (second, at), ..] => {
            let message = format!("{what} has both `{first}` and `{second}`");
            findings.error(at.clone(), message, expected);
        }
    }
    let action = match written.first()?.0 {
        "pool" => {
            let pool = pool?;
            pools.push(pool.clone());
            Some(Action::Pool(pool.into_inner()))
        }
        "files" => files?.map(Action::Files),
        "redirect" => redirect?,
        "stats" => stats?.map(Action::Stats),
        _ => respond?.map(|(status, content_type, body)| Action::Respond {
            status,
            content_type,
            body,
        }),
    };
    let rewrite = match &raw.rewrite {
        Some(table) => {
            without_effect(table.get_ref(), written[0].0, findings);
            rewrite(table.get_ref(), findings)
        }
        None => Rewrite::default(),
    };
    let compress = findings.or("compress", &raw.compress, None, |v| match v {
        Value::Boolean(on) => Ok(on.then(Compress::default)),
        Value::Integer(_) => v
            .integer(COMPRESS_MIN)
            .map(|min_bytes| Some(Compress { min_bytes })),
        _ => Err(Mistake::wrong_type(
            "true, false or the smallest body in bytes",
        )),
    });
    Some(Arc::new(Route {
        action: action?,
        rewrite,
        compress,
    }))
}

/// The name of a pool; whether it exists is looked at later.
pub(in crate::config) fn reference(
    key: &str,
    field: &Field,
    findings: &mut Findings,
) -> Option<PoolReference> {
    findings.optional(key, field, |v| Ok(Arc::from(v.text("\"web\"")?)))
}

fn files_of(raw: &RawFiles, span: &Span, findings: &mut Findings) -> Option<Files> {
    let root = "\"/var/www/site\"";
    let root = findings.required("root", &raw.root, ("a table of files", span), root, |v| {
        value::path(v.text(root)?, "/var/www/site")
    });
    if let Some(root) = &root {
        note_root(root, findings);
    }
    let names = "an array of file names such as [\"index.html\"]";
    let index = match &raw.index {
        None => vec![INDEX_DEFAULT.into()],
        Some(_) => findings
            .list("index", &raw.index, names, |v| {
                let name = v.text("\"index.html\"")?;
                let expected = "the name of a file in the directory, such as \"index.html\"";
                match name {
                    "" => Err(Mistake::value("is empty", expected)),
                    "." | ".." => Err(Mistake::value("is no file", expected)),
                    _ if name.contains(['/', '\0']) => {
                        Err(Mistake::value("is no name but a path", expected))
                    }
                    _ => Ok(Box::from(name)),
                }
            })
            .into_iter()
            .map(Spanned::into_inner)
            .collect(),
    };
    let precompressed = findings.or("precompressed", &raw.precompressed, true, Value::boolean);
    let cache_control = header(
        "cache_control",
        &raw.cache_control,
        "\"max-age=3600\"",
        findings,
    );
    Some(Files {
        root: root?.into_inner(),
        index,
        precompressed,
        cache_control,
    })
}

/// Notes where a document root is named; whether it can be served is seen when it is
/// opened.
pub(super) fn note_root(root: &Spanned<std::path::PathBuf>, findings: &mut Findings) {
    let named = Named::Root(root.get_ref().clone());
    findings.places.add(named, root.span());
}

/// Files of a document root with nothing said about them.
pub(super) fn plain_files(root: std::path::PathBuf) -> Arc<Route> {
    Arc::new(Route {
        action: Action::Files(Files {
            root,
            index: vec![INDEX_DEFAULT.into()],
            precompressed: true,
            cache_control: None,
        }),
        rewrite: Rewrite::default(),
        compress: None,
    })
}

/// A pool with nothing said about the way to it.
pub(super) fn plain_pool(pool: Arc<str>) -> Arc<Route> {
    Arc::new(Route {
        action: Action::Pool(pool),
        rewrite: Rewrite::default(),
        compress: None,
    })
}

fn redirect_of(raw: &RawRedirect, span: &Span, findings: &mut Findings) -> Option<Action> {
    let example = "\"https://{host}{path}{query}\"";
    let table = ("a redirect", span);
    let location = findings.required("location", &raw.location, table, example, |v| {
        http_value::location(v.text(example)?)
    });
    let status = findings.or("status", &raw.status, REDIRECT_DEFAULT, |v| {
        let expected = "301, 302, 303, 307 or 308";
        match v {
            Value::Integer(301 | 302 | 303 | 307 | 308) => status(v),
            Value::Integer(_) => Err(Mistake::value("is no status of a redirect", expected)),
            _ => Err(Mistake::wrong_type(expected)),
        }
    });
    Some(Action::Redirect {
        status,
        location: location?.into_inner(),
    })
}

fn stats_of(raw: &RawStats, span: &Span, findings: &mut Findings) -> Option<Stats> {
    let formats = [
        ("haproxy-csv", StatsFormat::HaproxyCsv),
        ("jk-status", StatsFormat::JkStatus),
    ];
    let table = ("a table of statistics", span);
    let format = findings.required("format", &raw.format, table, "\"haproxy-csv\"", |v| {
        v.word(&formats, &[])
    });
    let allow = match &raw.allow {
        // Nobody but the host itself.
        None => vec![
            IpNet::V4(LOOPBACK),
            IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ],
        Some(_) => findings
            .list("allow", &raw.allow, "\"10.0.0.0/8\"", |v| {
                http_value::network(v.text("\"10.0.0.0/8\"")?)
            })
            .into_iter()
            .map(Spanned::into_inner)
            .collect(),
    };
    Some(Stats {
        format: format?.into_inner(),
        allow,
    })
}

fn status(value: &Value) -> Result<StatusCode, Mistake> {
    let code = value.integer(200..=599u16)?;
    StatusCode::from_u16(code).map_err(|_| Mistake::value("is no HTTP status", "200 to 599"))
}

/// A fixed response: of a mount, or the page for maintenance.
pub(super) fn respond_of(
    raw: &RawRespond,
    span: &Span,
    what: &str,
    (default, default_type): (StatusCode, &'static str),
    findings: &mut Findings,
) -> Option<(StatusCode, HeaderValue, Bytes)> {
    let code = findings.or("status", &raw.status, default, status);
    let content_type = findings.or(
        "content_type",
        &raw.content_type,
        HeaderValue::from_static(default_type),
        |v| http_value::content_type(v.text("\"text/html; charset=utf-8\"")?),
    );
    let body = findings.optional("body", &raw.body, |v| {
        let text = v.text("\"Back soon.\"")?;
        match text.len() > BODY_MAX {
            true => Err(Mistake::value(
                "is too large",
                format!("at most {BODY_MAX} bytes"),
            )),
            false => Ok(Bytes::copy_from_slice(text.as_bytes())),
        }
    });
    let from_file = findings.optional("body_file", &raw.body_file, |v| {
        files::body(v.text("\"/etc/balancer/page.html\"")?)
    });
    if let (Some(_), Some(field)) = (&raw.body, &raw.body_file) {
        let message = format!("{what} has both `body` and `body_file`");
        findings.error(field.span(), message, "one of them");
    }
    if default == StatusCode::SERVICE_UNAVAILABLE && raw.body.is_none() && raw.body_file.is_none() {
        let message = format!("{what} has neither `body` nor `body_file`");
        findings.error(
            span.clone(),
            message,
            "one, such as `body = \"Back soon.\"`",
        );
    }
    let body = body
        .or(from_file)
        .map(Spanned::into_inner)
        .unwrap_or_default();
    // RFC 9110, 15.3.5, 15.3.6 and 15.4.5.
    if matches!(code.as_u16(), 204 | 205 | 304) && !body.is_empty() {
        let place = raw.body.as_ref().or(raw.body_file.as_ref());
        let message = format!("a response with status {} has no body", code.as_u16());
        let expected = "no body, or another `status`";
        findings.error(place.map_or(span.clone(), Spanned::span), message, expected);
    }
    Some((code, content_type, body))
}

/// Warns about rewriting that what is done with the request does not see.
fn without_effect(raw: &Section<RawRewrite>, action: &str, findings: &mut Findings) {
    let request = action != "pool";
    let path = matches!(action, "redirect" | "respond" | "stats");
    let keys = [
        (
            "strip_prefix",
            raw.strip_prefix.as_ref().map(Spanned::span),
            path,
        ),
        (
            "add_prefix",
            raw.add_prefix.as_ref().map(Spanned::span),
            path,
        ),
        ("host", raw.host.as_ref().map(Spanned::span), request),
        (
            "request_headers",
            raw.request_headers.first().map(Spanned::span),
            request,
        ),
    ];
    for (key, span, unseen) in keys {
        if let (Some(span), true) = (span, unseen) {
            let message = format!("`{key}` has no effect on `{action}`");
            findings.warn(span, message, format!("a `pool`, or no `{key}`"));
        }
    }
}

fn rewrite(raw: &RawRewrite, findings: &mut Findings) -> Rewrite {
    let mut prefix = |key, field| {
        findings
            .optional(key, field, |v| http_value::prefix(v.text("\"/app\"")?))
            .map(Spanned::into_inner)
    };
    let strip_prefix = prefix("strip_prefix", &raw.strip_prefix);
    let add_prefix = prefix("add_prefix", &raw.add_prefix);
    let host = findings.optional("host", &raw.host, |v| {
        let text = value::host(v.text("\"app.example.org\"")?)?;
        http_value::header_value(&text)
    });
    Rewrite {
        strip_prefix,
        add_prefix,
        host: host.map(Spanned::into_inner),
        request_headers: changes("request_headers", &raw.request_headers, findings),
        response_headers: changes("response_headers", &raw.response_headers, findings),
    }
}

fn changes(key: &str, raw: &Tables<RawHeaderChange>, findings: &mut Findings) -> Vec<HeaderChange> {
    raw.iter()
        .filter_map(|table| change(key, table.get_ref(), &table.span(), findings))
        .collect()
}

fn change(
    key: &str,
    raw: &RawHeaderChange,
    span: &Span,
    findings: &mut Findings,
) -> Option<HeaderChange> {
    let verbs = [
        ("set", &raw.set),
        ("add", &raw.add),
        ("remove", &raw.remove),
    ];
    let mut written = verbs.into_iter().filter(|(_, field)| field.is_some());
    let expected = "one of `set`, `add` and `remove` with the name of a header";
    let Some((verb, field)) = written.next() else {
        findings.error(
            span.clone(),
            format!("a change in `{key}` has no header"),
            expected,
        );
        return None;
    };
    if let Some((second, Some(field))) = written.next() {
        let message = format!("a change in `{key}` has both `{verb}` and `{second}`");
        findings.error(field.span(), message, expected);
    }
    let name = findings.optional(verb, field, |v| {
        let name = http_value::header_name(v.text("\"X-Frontend\"")?)?;
        match name == http::header::HOST && key == "request_headers" {
            true => Err(Mistake::value(
                "has a key of its own",
                "`host` in the rewrite itself",
            )),
            false => Ok(name),
        }
    });
    let value = header("value", &raw.value, "\"text\"", findings);
    match (verb, &raw.value) {
        ("remove", Some(field)) => {
            let message = "`value` beside `remove` has no effect";
            findings.error(
                field.span(),
                message,
                "no `value`: all of that name are removed",
            );
        }
        ("set" | "add", None) => {
            let message = format!("`{verb}` has no `value`");
            findings.error(span.clone(), message, "one, such as `value = \"text\"`");
        }
        _ => {}
    }
    let name = name?.into_inner();
    Some(match verb {
        "remove" => HeaderChange::Remove(name),
        "set" => HeaderChange::Set(name, value?),
        _ => HeaderChange::Add(name, value?),
    })
}

fn header(key: &str, field: &Field, example: &str, findings: &mut Findings) -> Option<HeaderValue> {
    findings
        .optional(key, field, |v| http_value::header_value(v.text(example)?))
        .map(Spanned::into_inner)
}
