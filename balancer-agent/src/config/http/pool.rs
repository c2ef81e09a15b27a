//! What a pool and its backends say for requests.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use toml::Spanned;

use super::raw::{RawBackendTimeouts, RawBackendTls, RawObserve, RawQueue, RawRetries};
use super::{ajp, files, route, sticky, value as http_value};
use crate::config::cross;
use crate::config::findings::{Findings, Mistake, Span};
use crate::config::raw::{Field, RawBackend, RawPool, Value};
use crate::config::resolve::duration_or;
use crate::config::value;
use crate::model::Named;
use crate::model::http::{
    BackendHttp, BackendProtocol, BackendTimeouts, BackendTls, HttpBalance, MaintenancePage,
    Observe, PoolHttp, ProxyVersion, Queue, RETRY_STATUS, Retries, Secret, Sticky, Verify,
};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);
const CERTIFICATE: &str = "/etc/balancer/client.pem";
const KEY: &str = "/etc/balancer/client.key";
const AUTHORITIES: &str = "/etc/balancer/backends.pem";

/// What a pool says for HTTP, with places.
pub(in crate::config) struct HttpPool {
    pub(in crate::config) model: PoolHttp,
    /// The group of its sessions.
    pub(in crate::config) group: Option<Spanned<Arc<str>>>,
    /// Whether its stickiness says how long a binding lives.
    pub(in crate::config) idle_written: bool,
    /// Keys that only HTTP frontends look at, where they are written.
    pub(in crate::config) written: Vec<(&'static str, Span)>,
}

/// Reads a pool's keys for HTTP. `balance` was read with the others.
pub(in crate::config) fn pool(
    raw: &RawPool,
    balance: HttpBalance,
    findings: &mut Findings,
) -> HttpPool {
    let d = PoolHttp::default();
    let sticky = raw
        .sticky
        .as_ref()
        .and_then(|table| sticky::sticky(table.get_ref(), &table.span(), findings));
    let raw_sticky = raw.sticky.as_ref().map(|table| &**table.get_ref());
    // One that does not belong there has been refused.
    let keeps = raw_sticky.filter(|_| !matches!(sticky, Some(Sticky::Cookie(_))));
    let group = keeps.and_then(|sticky| {
        findings.optional("group", &sticky.group, |v| {
            Ok(Arc::from(v.text("\"user\"")?))
        })
    });
    let queue = raw
        .queue
        .as_ref()
        .map_or(d.queue, |t| queue(t.get_ref(), d.queue, findings));
    let retries = raw
        .retries
        .as_ref()
        .map_or(d.retries, |t| retries(t.get_ref(), d.retries, findings));
    let observe = match (&raw.observe, d.observe) {
        (Some(table), Some(default)) => observe(table.get_ref(), default, findings),
        (_, default) => default,
    };
    let timeouts = raw
        .timeouts
        .as_ref()
        .map_or(d.timeouts, |t| timeouts(t.get_ref(), d.timeouts, findings));
    let maintenance = raw.maintenance.as_ref().and_then(|t| {
        let defaults = (StatusCode::SERVICE_UNAVAILABLE, "text/html; charset=utf-8");
        let page = route::respond_of(
            t.get_ref(),
            &t.span(),
            "a maintenance page",
            defaults,
            findings,
        );
        page.map(|(status, content_type, body)| MaintenancePage {
            status,
            content_type,
            body,
        })
    });
    let panic_threshold = findings.or(
        "panic_threshold",
        &raw.panic_threshold,
        d.panic_threshold,
        |v| v.integer(0..=100u8),
    );
    let slow_start = findings.or("slow_start", &raw.slow_start, d.slow_start, |v| {
        let time = v.unless_off(|v| value::duration(v.text("\"30s\"")?, MILLISECOND..=HOUR))?;
        Ok(time.unwrap_or_default())
    });
    let protocol = findings.or("protocol", &raw.protocol, d.protocol, |v| {
        let words = [
            ("http1", BackendProtocol::Http1),
            ("http2", BackendProtocol::Http2),
            (ajp::WORD, BackendProtocol::Ajp),
        ];
        v.word(&words, &[])
    });
    let ajp = ajp::ajp(raw, protocol, d.ajp, findings);
    let tls = raw.tls.as_ref().map(|t| tls(t.get_ref(), findings));
    if let (Some(table), Some(Value::Text(name))) =
        (&raw.tls, raw.name.as_ref().map(Spanned::get_ref))
    {
        let named = Named::BackendTls(name.as_str().into());
        findings.places.add(named, table.span());
    }
    let send_proxy = findings.optional("send_proxy", &raw.send_proxy, |v| {
        v.word(&[("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)], &[])
    });
    let kept = findings.or(
        "keep_alive_connections",
        &raw.keep_alive_connections,
        d.keep_alive_connections as u32,
        |v| v.integer(0..=65_536u32),
    );
    HttpPool {
        written: written(raw),
        group,
        idle_written: raw_sticky.is_some_and(|sticky| sticky.idle.is_some()),
        model: PoolHttp {
            balance,
            sticky,
            sessions: None,
            queue,
            retries,
            observe,
            panic_threshold,
            slow_start,
            protocol,
            ajp,
            tls,
            send_proxy: send_proxy.map(Spanned::into_inner),
            timeouts,
            keep_alive_connections: kept as usize,
            maintenance,
        },
    }
}

/// The keys that only HTTP frontends look at.
fn written(raw: &RawPool) -> Vec<(&'static str, Span)> {
    let place = |field: &Field| field.as_ref().map(Spanned::span);
    [
        ("sticky", raw.sticky.as_ref().map(Spanned::span)),
        ("queue", raw.queue.as_ref().map(Spanned::span)),
        ("retries", raw.retries.as_ref().map(Spanned::span)),
        ("observe", raw.observe.as_ref().map(Spanned::span)),
        ("panic_threshold", place(&raw.panic_threshold)),
        ("slow_start", place(&raw.slow_start)),
        ("protocol", place(&raw.protocol)),
        ("secret", place(&raw.secret)),
        ("packet_size", place(&raw.packet_size)),
        ("ping", raw.ping.as_ref().map(Spanned::span)),
        ("tls", raw.tls.as_ref().map(Spanned::span)),
        ("send_proxy", place(&raw.send_proxy)),
        ("timeouts", raw.timeouts.as_ref().map(Spanned::span)),
        ("keep_alive_connections", place(&raw.keep_alive_connections)),
        ("maintenance", raw.maintenance.as_ref().map(Spanned::span)),
    ]
    .into_iter()
    .filter_map(|(key, span)| Some((key, span?)))
    .collect()
}

fn queue(raw: &RawQueue, d: Queue, findings: &mut Findings) -> Queue {
    let length = findings.or("length", &raw.length, d.length as u32, |v| {
        v.integer(0..=1_000_000u32)
    });
    Queue {
        length: length as usize,
        timeout: duration_or(
            findings,
            "timeout",
            &raw.timeout,
            d.timeout,
            MILLISECOND..=HOUR,
        ),
    }
}

fn retries(raw: &RawRetries, d: Retries, findings: &mut Findings) -> Retries {
    let attempts = findings.or("attempts", &raw.attempts, d.attempts, |v| {
        v.integer(0..=10u32)
    });
    let budget_percent = findings.or(
        "budget_percent",
        &raw.budget_percent,
        d.budget_percent,
        |v| v.integer(0..=100u32),
    );
    let non_idempotent = findings.or(
        "non_idempotent",
        &raw.non_idempotent,
        d.non_idempotent,
        Value::boolean,
    );
    if let (Some(field), true) = (&raw.non_idempotent, non_idempotent) {
        let message = "`non_idempotent` repeats requests that a backend may have acted on: an order may be placed twice";
        findings.warn(
            field.span(),
            message,
            "false, unless the application can tell a repetition",
        );
    }
    let expected = "an array of 502, 503 and 504";
    let statuses = findings.list("on_status", &raw.on_status, expected, |v| match v {
        Value::Integer(n) => u16::try_from(*n)
            .ok()
            .filter(|n| RETRY_STATUS.contains(n))
            .ok_or_else(|| Mistake::value("is no status to retry on", "502, 503 or 504")),
        _ => Err(Mistake::wrong_type("502, 503 or 504")),
    });
    cross::unique(&statuses, findings, |status| {
        (
            format!("{status} is twice in `on_status`"),
            "each status once".into(),
        )
    });
    let on_status = match raw.on_status {
        None => d.on_status,
        Some(_) => RETRY_STATUS.map(|status| statuses.iter().any(|s| *s.get_ref() == status)),
    };
    if let (Some(field), 0) = (&raw.attempts, attempts)
        && raw.on_status.is_some()
    {
        let message = "`on_status` has no effect without `attempts`";
        findings.warn(field.span(), message, "at least 1, or no `on_status`");
    }
    Retries {
        attempts,
        budget_percent,
        non_idempotent,
        on_status,
    }
}

fn observe(raw: &RawObserve, d: Observe, findings: &mut Findings) -> Option<Observe> {
    let enabled = findings.or("enabled", &raw.enabled, true, Value::boolean);
    let failures = findings.or("failures", &raw.failures, d.failures, |v| {
        v.integer(1..=1_000u32)
    });
    let status = findings.or("status", &raw.status, d.status, Value::boolean);
    let range = || Duration::from_millis(10)..=DAY;
    let ejection = duration_or(findings, "ejection", &raw.ejection, d.ejection, range());
    let longest = d.max_ejection.max(ejection);
    let max_ejection = duration_or(
        findings,
        "max_ejection",
        &raw.max_ejection,
        longest,
        range(),
    );
    if let (Some(field), true) = (&raw.max_ejection, max_ejection < ejection) {
        let (most, first) = (
            value::show_duration(max_ejection),
            value::show_duration(ejection),
        );
        let message = format!("`max_ejection` {most} is shorter than `ejection` {first}");
        findings.error(field.span(), message, format!("at least \"{first}\""));
    }
    if !enabled {
        let others = [
            ("failures", &raw.failures),
            ("status", &raw.status),
            ("ejection", &raw.ejection),
            ("max_ejection", &raw.max_ejection),
        ];
        for (key, field) in others {
            if let Some(field) = field {
                let message = format!("`{key}` has no effect beside `enabled = false`");
                findings.warn(
                    field.span(),
                    message,
                    format!("`enabled = true`, or no `{key}`"),
                );
            }
        }
        return None;
    }
    Some(Observe {
        failures,
        status,
        ejection,
        max_ejection,
    })
}

fn timeouts(
    raw: &RawBackendTimeouts,
    d: BackendTimeouts,
    findings: &mut Findings,
) -> BackendTimeouts {
    let mut time = |key, field, default, range: RangeInclusive<Duration>| {
        duration_or(findings, key, field, default, range)
    };
    BackendTimeouts {
        connect: time("connect", &raw.connect, d.connect, MILLISECOND..=HOUR),
        response: time("response", &raw.response, d.response, MILLISECOND..=DAY),
        idle: time("idle", &raw.idle, d.idle, MILLISECOND..=DAY),
        tunnel: time(
            "tunnel",
            &raw.tunnel,
            d.tunnel,
            Duration::from_secs(1)..=30 * DAY,
        ),
        keep_alive: time(
            "keep_alive",
            &raw.keep_alive,
            d.keep_alive,
            MILLISECOND..=DAY,
        ),
        request: findings.or("request", &raw.request, d.request, |v| {
            v.unless_off(|v| value::duration(v.text("\"5m\"")?, MILLISECOND..=DAY))
        }),
    }
}

fn tls(raw: &RawBackendTls, findings: &mut Findings) -> BackendTls {
    let verify = findings.or("verify", &raw.verify, true, Value::boolean);
    let authorities = findings.optional("authorities", &raw.authorities, |v| {
        files::pem(v.text(&format!("\"{AUTHORITIES}\""))?, AUTHORITIES)
    });
    if let (Some(field), false) = (&raw.authorities, verify) {
        let message = "`authorities` has no effect beside `verify = false`";
        findings.error(
            field.span(),
            message,
            "`verify = true`, or no `authorities`",
        );
    }
    let server_name = findings.optional("server_name", &raw.server_name, |v| {
        http_value::server_name(v.text("\"app.example.org\"")?)
    });
    let certificate = findings.optional("certificate", &raw.certificate, |v| {
        files::pem(v.text(&format!("\"{CERTIFICATE}\""))?, CERTIFICATE)
    });
    let key = findings.optional("key", &raw.key, |v| {
        files::private_key(v.text(&format!("\"{KEY}\""))?, KEY)
    });
    let expected = "both `certificate` and `key`, or neither";
    match (&raw.certificate, &raw.key) {
        (Some(field), None) => {
            findings.error(field.span(), "`certificate` without `key`", expected)
        }
        (None, Some(field)) => {
            findings.error(field.span(), "`key` without `certificate`", expected)
        }
        _ => {}
    }
    let pair = certificate
        .zip(key)
        .map(|(certificate, key)| files::pair(certificate, key, findings));
    if let Some(path) = &authorities {
        let named = Named::BackendAuthorities(path.get_ref().clone());
        findings.places.add(named, path.span());
    }
    BackendTls {
        verify: match (verify, authorities) {
            (false, _) => Verify::Off,
            (true, Some(path)) => Verify::Authorities(path.into_inner()),
            (true, None) => Verify::System,
        },
        server_name: server_name.map(Spanned::into_inner),
        certificate: pair,
    }
}

/// What a backend says for HTTP, with places.
pub(in crate::config) struct HttpBackend {
    pub(in crate::config) route: Option<Spanned<Arc<str>>>,
    pub(in crate::config) redirect: Option<Spanned<Arc<str>>>,
    domain: Option<Arc<str>>,
    priority: u8,
    max_connections: Option<u32>,
    pub(in crate::config) http_port: Option<u16>,
    pub(in crate::config) http_place: Option<Span>,
    pub(in crate::config) secret_place: Option<Span>,
    secret: Option<Secret>,
    /// As [`HttpPool::written`].
    pub(in crate::config) written: Vec<(&'static str, Span)>,
}

impl HttpBackend {
    /// For a backend of that name.
    pub(in crate::config) fn finish(self, name: &Arc<str>) -> BackendHttp {
        BackendHttp {
            route: self
                .route
                .map_or_else(|| Arc::clone(name), Spanned::into_inner),
            domain: self.domain,
            redirect: self.redirect.map(Spanned::into_inner),
            priority: self.priority,
            max_connections: self.max_connections,
            http_port: self.http_port,
            secret: self.secret,
        }
    }

    /// Whether it has a secret of its own.
    pub(in crate::config) fn has_secret(&self) -> bool {
        self.secret_place.is_some()
    }
}

/// Reads a backend's keys for HTTP.
pub(in crate::config) fn backend(raw: &RawBackend, findings: &mut Findings) -> HttpBackend {
    let mut route = |key, field, dots| {
        findings.optional(key, field, |v| {
            let text = v.text("\"s1\"")?;
            http_value::route(text, dots)?;
            Ok(Arc::<str>::from(text))
        })
    };
    let own = route("route", &raw.route, true);
    let redirect = route("redirect", &raw.redirect, true);
    // The text before the first dot of a route is looked for among the domains.
    let domain = route("domain", &raw.domain, false);
    let max_connections = findings.or("max_connections", &raw.max_connections, None, |v| {
        v.unless_off(|v| v.integer(1..=1_000_000u32))
    });
    let written = [
        ("route", &raw.route),
        ("domain", &raw.domain),
        ("redirect", &raw.redirect),
        ("priority", &raw.priority),
        ("max_connections", &raw.max_connections),
        ("http_port", &raw.http_port),
        ("secret", &raw.secret),
    ];
    let http_port = findings.optional("http_port", &raw.http_port, |v| v.integer(1..=u16::MAX));
    HttpBackend {
        route: own,
        redirect,
        domain: domain.map(Spanned::into_inner),
        priority: findings.or("priority", &raw.priority, 0, |v| v.integer(0..=255u8)),
        max_connections,
        http_port: http_port.map(Spanned::into_inner),
        http_place: raw.http_port.as_ref().map(Spanned::span),
        secret_place: raw.secret.as_ref().map(Spanned::span),
        secret: ajp::secret(&raw.secret, findings),
        written: written
            .into_iter()
            .filter_map(|(key, field)| Some((key, field.as_ref()?.span())))
            .collect(),
    }
}
