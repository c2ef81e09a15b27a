//! `[pool.sticky]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;

use super::raw::RawSticky;
use super::{files, value as http_value};
use crate::config::findings::{Findings, Mistake, Span};
use crate::config::raw::{Field, Value};
use crate::config::resolve::duration_or;
use crate::config::value;
use crate::model::http::{
    CookieAttributes, CookieValue, SameSite, Sticky, StickyCookie, StickyLearn, StickyRoute,
};

const MAX_AGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(400 * 86_400);
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
const IDLE_DEFAULT: Duration = Duration::from_secs(1_800);
/// Name of an inserted cookie.
const INSERTED_DEFAULT: &str = "BALANCER";
const IPV4_PREFIX_DEFAULT: u8 = 32;
/// What one subscriber usually has (RFC 6177).
const IPV6_PREFIX_DEFAULT: u8 = 64;
const KEY_FILE: &str = "\"/etc/balancer/cookie.key\"";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Route,
    Cookie,
    Learn,
    Source,
}

const TYPES: [(&str, Type); 4] = [
    ("route", Type::Route),
    ("cookie", Type::Cookie),
    ("learn", Type::Learn),
    ("source", Type::Source),
];

/// Reads the table, which stands at `span`. `None` is a mistake already noted.
pub(super) fn sticky(raw: &RawSticky, span: &Span, findings: &mut Findings) -> Option<Sticky> {
    let table = ("a pool's `sticky`", span);
    let kind = findings.required("type", &raw.r#type, table, "\"route\"", |v| {
        v.word(&TYPES, &[])
    });
    // Everything is read, so that its mistakes are found even after a wrong type.
    let force = findings.or("force", &raw.force, false, Value::boolean);
    let cookie = findings.optional("cookie", &raw.cookie, |v| {
        http_value::token(v.text("\"JSESSIONID\"")?, "JSESSIONID")
    });
    let route = StickyRoute::default();
    let parameter = findings.or("parameter", &raw.parameter, route.parameter, |v| match v {
        Value::Boolean(false) => Ok(Box::default()),
        _ => http_value::parameter(v.text("\"jsessionid\"")?),
    });
    let idle = duration_or(findings, "idle", &raw.idle, IDLE_DEFAULT, IDLE);
    let attributes = attributes(raw, findings);
    let opaque = findings.or("value", &raw.value, false, |v| {
        v.word(&[("signed", false), ("opaque", true)], &[])
    });
    let key = findings.optional("key_file", &raw.key_file, |v| {
        files::cookie_key(v.text(KEY_FILE)?)
    });
    let mut prefix =
        |key, field, default, most: u8| findings.or(key, field, default, |v| v.integer(1..=most));
    let ipv4_prefix = prefix("ipv4_prefix", &raw.ipv4_prefix, IPV4_PREFIX_DEFAULT, 32);
    let ipv6_prefix = prefix("ipv6_prefix", &raw.ipv6_prefix, IPV6_PREFIX_DEFAULT, 128);

    let kind = kind?.into_inner();
    keys_of_type(raw, kind, findings);
    let cookie = cookie.map(Spanned::into_inner);
    match kind {
        Type::Route => Some(Sticky::Route(StickyRoute {
            cookie: cookie.unwrap_or(route.cookie),
            parameter,
            force,
        })),
        Type::Cookie => {
            if raw.key_file.is_none() {
                let message = "an inserted cookie has no `key_file`";
                findings.error(
                    span.clone(),
                    message,
                    format!("one, such as `key_file = {KEY_FILE}`"),
                );
            }
            let key = key?.into_inner();
            let name = cookie.unwrap_or_else(|| INSERTED_DEFAULT.into());
            prefixes(&name, &attributes, raw, span, findings);
            Some(Sticky::Cookie(StickyCookie {
                name,
                value: match opaque {
                    true => CookieValue::Opaque(key),
                    false => CookieValue::Signed(key),
                },
                attributes,
                force,
            }))
        }
        Type::Learn => {
            if raw.cookie.is_none() {
                let message = "a learned cookie has no name";
                let expected = "the application's, such as `cookie = \"PHPSESSID\"`";
                findings.error(span.clone(), message, expected);
            }
            Some(Sticky::Learn(StickyLearn {
                cookie: cookie?,
                idle,
                force,
            }))
        }
        Type::Source => Some(Sticky::Source {
            ipv4_prefix,
            ipv6_prefix,
        }),
    }
}

/// Refuses keys that another type has.
fn keys_of_type(raw: &RawSticky, kind: Type, findings: &mut Findings) {
    use Type::{Cookie, Learn, Route, Source};
    let keys: [(&str, &Field, &[Type]); 16] = [
        ("cookie", &raw.cookie, &[Route, Cookie, Learn]),
        ("parameter", &raw.parameter, &[Route]),
        ("force", &raw.force, &[Route, Cookie, Learn]),
        ("value", &raw.value, &[Cookie]),
        ("key_file", &raw.key_file, &[Cookie]),
        ("path", &raw.path, &[Cookie]),
        ("domain", &raw.domain, &[Cookie]),
        ("max_age", &raw.max_age, &[Cookie]),
        ("secure", &raw.secure, &[Cookie]),
        ("http_only", &raw.http_only, &[Cookie]),
        ("same_site", &raw.same_site, &[Cookie]),
        ("partitioned", &raw.partitioned, &[Cookie]),
        ("idle", &raw.idle, &[Learn]),
        ("group", &raw.group, &[Route, Learn, Source]),
        ("ipv4_prefix", &raw.ipv4_prefix, &[Source]),
        ("ipv6_prefix", &raw.ipv6_prefix, &[Source]),
    ];
    let word = |kind: Type| {
        TYPES
            .iter()
            .find(|(_, k)| *k == kind)
            .map_or("", |(w, _)| w)
    };
    for (key, field, kinds) in keys {
        if let Some(field) = field
            && !kinds.contains(&kind)
        {
            let words: Vec<String> = kinds.iter().map(|k| format!("\"{}\"", word(*k))).collect();
            let message = format!(
                "`{key}` does not belong to a `sticky` of type \"{}\"",
                word(kind)
            );
            let expected = format!("`type = {}`, or no `{key}`", words.join("` or `"));
            findings.error(field.span(), message, expected);
        }
    }
}

fn attributes(raw: &RawSticky, findings: &mut Findings) -> CookieAttributes {
    let d = CookieAttributes::default();
    let path = findings.or("path", &raw.path, d.path, |v| {
        http_value::cookie_path(v.text("\"/\"")?)
    });
    let domain = findings.optional("domain", &raw.domain, |v| {
        http_value::cookie_domain(v.text("\"example.org\"")?)
    });
    let max_age = findings.optional("max_age", &raw.max_age, |v| {
        let age = value::duration(v.text("\"1h\"")?, MAX_AGE)?;
        match age.subsec_millis() {
            0 => Ok(age),
            // RFC 6265bis, 5.6.2.
            _ => Err(Mistake::value(
                "is not in whole seconds",
                "a duration such as \"1h\"",
            )),
        }
    });
    let secure = findings.or("secure", &raw.secure, d.secure, Value::boolean);
    let http_only = findings.or("http_only", &raw.http_only, d.http_only, Value::boolean);
    let same_site = findings.or("same_site", &raw.same_site, d.same_site, |v| match v {
        Value::Boolean(false) => Ok(None),
        _ => {
            let words = [
                ("lax", SameSite::Lax),
                ("strict", SameSite::Strict),
                ("none", SameSite::None),
            ];
            v.word(&words, &[]).map(Some)
        }
    });
    let partitioned = findings.or(
        "partitioned",
        &raw.partitioned,
        d.partitioned,
        Value::boolean,
    );
    if let (Some(field), Some(SameSite::None), false) = (&raw.same_site, same_site, secure) {
        let message = "`same_site = \"none\"` without `secure`: browsers refuse such a cookie";
        findings.error(field.span(), message, "`secure = true` as well");
    }
    if let (Some(field), true, false) = (&raw.partitioned, partitioned, secure) {
        let message = "`partitioned` without `secure`: browsers refuse such a cookie";
        findings.error(field.span(), message, "`secure = true` as well");
    }
    CookieAttributes {
        path,
        domain: domain.map(Spanned::into_inner),
        max_age: max_age.map(Spanned::into_inner),
        secure,
        http_only,
        same_site,
        partitioned,
    }
}

/// What a cookie's name promises (RFC 6265bis, 4.1.3); browsers hold it to that.
fn prefixes(
    name: &str,
    attributes: &CookieAttributes,
    raw: &RawSticky,
    span: &Span,
    findings: &mut Findings,
) {
    let place = raw.cookie.as_ref().map_or(span.clone(), Spanned::span);
    let lower = name.to_ascii_lowercase();
    let for_host = lower.starts_with("__host-");
    if (for_host || lower.starts_with("__secure-")) && !attributes.secure {
        let message = "a cookie with such a name has to be secure: browsers refuse it otherwise";
        findings.error(place, message, "`secure = true` as well");
    } else if for_host && (attributes.domain.is_some() || &*attributes.path != "/") {
        let message = "a `__Host-` cookie with a domain or another path: browsers refuse it";
        findings.error(place, message, "no `domain`, and the path \"/\"");
    }
}
