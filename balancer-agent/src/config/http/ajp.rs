//! What pools and backends of AJP13 say beside the others.

use std::time::Duration;

use toml::Spanned;

use super::raw::RawPing;
use crate::config::findings::{Findings, Mistake, Span};
use crate::config::pool::PoolDraft;
use crate::config::raw::{Field, RawPool, Value};
use crate::config::resolve::duration_or;
use crate::config::value;
use crate::model::http::{Ajp, BackendProtocol, PACKET_LEAST, PACKET_MOST, Ping, Secret};
use crate::model::{Check, CheckKind};

/// Longest secret, in characters.
const SECRET_MAX: usize = 256;
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// The word for the protocol.
pub(in crate::config) const WORD: &str = "ajp";

/// Whether a pool's `protocol` is AJP13, for those who have to know it before it is read.
pub(in crate::config) fn is_spoken(raw: &RawPool) -> bool {
    let protocol = raw.protocol.as_ref().map(Spanned::get_ref);
    matches!(protocol, Some(Value::Text(word)) if word == WORD)
}

/// Reads what a pool says of AJP13.
pub(super) fn ajp(
    raw: &RawPool,
    protocol: BackendProtocol,
    d: Ajp,
    findings: &mut Findings,
) -> Ajp {
    let place = |field: &Field| field.as_ref().map(Spanned::span);
    let ping_place = raw.ping.as_ref().map(Spanned::span);
    if protocol == BackendProtocol::Ajp {
        let needless = [
            ("tls", raw.tls.as_ref().map(Spanned::span)),
            ("send_proxy", place(&raw.send_proxy)),
        ];
        for (key, span) in needless {
            if let Some(span) = span {
                let message = format!("`{key}` beside `protocol = \"ajp\"`: AJP13 has none");
                let expected = format!("no `{key}`, or a protocol of HTTP");
                findings.error(span, message, expected);
            }
        }
    } else {
        let only_here = [
            ("secret", place(&raw.secret)),
            ("packet_size", place(&raw.packet_size)),
            ("ping", ping_place),
        ];
        for (key, span) in only_here {
            not_here("a pool", key, span, findings);
        }
    }
    let packet_size = findings.or("packet_size", &raw.packet_size, d.packet_size as u32, |v| {
        v.integer(PACKET_LEAST as u32..=PACKET_MOST as u32)
    });
    Ajp {
        secret: secret(&raw.secret, findings).or(d.secret),
        packet_size: packet_size as usize,
        ping: raw
            .ping
            .as_ref()
            .map_or(d.ping, |table| ping(table.get_ref(), d.ping, findings)),
    }
}

fn not_here(of: &str, key: &str, span: Option<Span>, findings: &mut Findings) {
    if let Some(span) = span {
        let message = format!("`{key}` of {of} belongs to AJP13, which is not spoken here");
        let expected = format!("`protocol = \"{WORD}\"` in the pool, or no `{key}`");
        findings.error(span, message, expected);
    }
}

/// A secret. Messages do not repeat it.
pub(super) fn secret(field: &Field, findings: &mut Findings) -> Option<Secret> {
    let expected = format!("1 to {SECRET_MAX} printable characters of ASCII, in quotes");
    let field = field.as_ref()?;
    let Value::Text(text) = field.get_ref() else {
        findings.error(field.span(), "`secret` is not a string", expected);
        return None;
    };
    let what = if text.is_empty() {
        "`secret` is empty".to_owned()
    } else if text.len() > SECRET_MAX {
        format!("`secret` has {} bytes", text.len())
    } else if !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        "`secret` has a character that is not printable ASCII".to_owned()
    } else {
        return Some(Secret(text.as_str().into()));
    };
    findings.error(field.span(), what, expected);
    None
}

fn ping(raw: &RawPing, d: Ping, findings: &mut Findings) -> Ping {
    let reuse = |v: &Value| match v {
        Value::Boolean(true) => Ok(Some(Duration::ZERO)),
        Value::Boolean(false) => Ok(None),
        Value::Text(text) => value::duration(text, MILLISECOND..=DAY).map(Some),
        _ => Err(Mistake::wrong_type(
            "true, false, or a duration in a string such as \"1s\"",
        )),
    };
    let connect = findings.or("connect", &raw.connect, d.connect, Value::boolean);
    let reuse = findings.or("reuse", &raw.reuse, d.reuse, reuse);
    let range = MILLISECOND..=MINUTE;
    let timeout = duration_or(findings, "timeout", &raw.timeout, d.timeout, range);
    if let (Some(field), false, None) = (&raw.timeout, connect, reuse) {
        let message = "`timeout` has no effect without `connect` and `reuse`";
        findings.warn(field.span(), message, "one of them, or no `timeout`");
    }
    Ping {
        connect,
        reuse,
        timeout,
    }
}

/// What has to fit together in a pool, and what is odd.
pub(super) fn check(pool: &PoolDraft, findings: &mut Findings) {
    let ajp = pool.http.model.protocol == BackendProtocol::Ajp;
    for backend in &pool.backends {
        let own = &backend.http;
        let title = backend.title();
        if !ajp {
            let places = [
                ("secret", &own.secret_place),
                ("http_port", &own.http_place),
            ];
            for (key, place) in places {
                not_here(&title, key, place.clone(), findings);
            }
        } else if let (Some(port), Some(address)) = (own.http_port, &backend.address)
            && address.get_ref().port() == port
            && let Some(place) = &own.http_place
        {
            let message = format!("`http_port` {port} of {title} is where it speaks AJP13");
            let expected = "the port of its HTTP connector";
            findings.error(place.clone(), message, expected);
        }
    }
    if ajp && pool.usage.http && pool.http.model.ajp.secret.is_none() {
        // One is enough to say it; the others are alike.
        let open = pool.backends.iter().find_map(|backend| {
            let address = backend.address.as_ref()?;
            let open = !address.get_ref().ip().is_loopback() && !backend.http.has_secret();
            open.then_some((backend, address))
        });
        if let Some((backend, address)) = open {
            let message = format!(
                "{} of {} speaks AJP13 without a `secret`: whoever reaches that port can speak for \
                 any client",
                backend.title(),
                pool.title()
            );
            let expected = "a `secret` in the pool, the same as in the backends' AJP connectors";
            findings.warn(address.span(), message, expected);
        }
    }
    if pool.usage.http {
        checks(pool, ajp, findings);
    }
}

/// Checks that go where requests go speak what requests speak.
fn checks(pool: &PoolDraft, ajp: bool, findings: &mut Findings) {
    let Check { kind, port, .. } = &pool.check;
    let (spoken, expected) = match (kind, ajp, port) {
        (CheckKind::Http { .. }, true, None) => (
            "HTTP, but its backends speak AJP13",
            "`type = \"ajp\"`, or the `port` of an HTTP connector",
        ),
        (CheckKind::Ajp, false, None) => (
            "AJP13, but its backends speak HTTP",
            "another `type`, or the `port` of an AJP connector",
        ),
        _ => return,
    };
    let message = format!("the check of {} speaks {spoken}", pool.title());
    findings.warn(pool.check_place.clone(), message, expected);
}
