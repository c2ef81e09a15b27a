//! Builds a pool: its policies, check, passive signs and backends.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use common::tables::Unavailable;
use toml::Spanned;

use super::findings::{Findings, Mistake, Span, quote};
use super::http::ajp;
use super::http::pool as http_pool;
use super::http::pool::{HttpBackend, HttpPool};
use super::raw::{Field, RawBackend, RawCheck, RawPassive, RawPool, Section, Value};
use super::resolve::{Usage, duration_or, name};
use super::value::{self, Role, show_duration};
use crate::model::http::HttpBalance;
use crate::model::{Activation, Backend, Balance, Check, CheckKind, Forward, Passive, Pool};

const SNAT_PORTS_DEFAULT: (u16, u16) = (10_000, 32_767);
const WEIGHT_MAX: u16 = 256;
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3_600);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
const FAST_INTERVAL_LEAST: Duration = Duration::from_millis(50);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3_600);
const TIMEOUT_DEFAULT: Duration = Duration::from_millis(500);
const FALL_DEFAULT: u32 = 3;
const RISE_DEFAULT: u32 = 2;
const IN_A_ROW: RangeInclusive<u32> = 1..=100;
const EXPECT_DEFAULT: (u16, u16) = (200, 399);
const UNANSWERED: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const UNANSWERED_DEFAULT: Duration = Duration::from_secs(1);

/// A pool with the places of its values. `None` is a mistake already noted.
pub(super) struct PoolDraft {
    pub(super) span: Span,
    pub(super) name: Option<Spanned<Arc<str>>>,
    pub(super) snat: Vec<Spanned<IpAddr>>,
    /// With the place of the range, or of `snat` when the range is the default.
    pub(super) snat_ports: Spanned<(u16, u16)>,
    pub(super) usage: Usage,
    pub(super) backends: Vec<BackendDraft>,
    pub(super) http: HttpPool,
    pub(super) balance_place: Option<Span>,
    /// Keys that are about steering in the kernel only, where they are written.
    pub(super) steering: Vec<(&'static str, Span)>,
    pub(super) check: Check,
    pub(super) check_place: Span,
    forward: Forward,
    unavailable: Unavailable,
    passive: Passive,
}

impl PoolDraft {
    /// The name in quotes, for messages.
    pub(super) fn title(&self) -> String {
        title("pool", self.name.as_ref())
    }

    /// The pool, when nothing needed is missing.
    pub(super) fn finish(self) -> Option<Pool> {
        Some(Pool {
            name: self.name?.into_inner(),
            balance: Balance::RoundRobin,
            forward: self.forward,
            snat: self.snat.into_iter().map(Spanned::into_inner).collect(),
            snat_ports: self.snat_ports.into_inner(),
            unavailable: self.unavailable,
            check: self.check,
            passive: self.passive,
            http: Arc::new(self.http.model),
            backends: self
                .backends
                .into_iter()
                .map(BackendDraft::finish)
                .collect::<Option<_>>()?,
        })
    }
}

/// A backend with the places of its values. `None` is a mistake already noted.
pub(super) struct BackendDraft {
    pub(super) name: Option<Spanned<Arc<str>>>,
    pub(super) address: Option<Spanned<SocketAddr>>,
    pub(super) weight: u16,
    pub(super) activation: Activation,
    pub(super) http: HttpBackend,
}

impl BackendDraft {
    /// The name in quotes, for messages.
    pub(super) fn title(&self) -> String {
        title("backend", self.name.as_ref())
    }

    fn finish(self) -> Option<Backend> {
        let name = self.name?.into_inner();
        Some(Backend {
            http: self.http.finish(&name),
            name,
            address: self.address?.into_inner(),
            weight: self.weight,
            activation: self.activation,
        })
    }
}

fn title(kind: &str, name: Option<&Spanned<Arc<str>>>) -> String {
    match name {
        Some(name) => format!("{kind} {}", quote(name.get_ref())),
        None => format!("a {kind}"),
    }
}

/// Builds a pool from its table, which stands at `span`.
pub(super) fn pool(
    raw: &RawPool,
    span: Span,
    usage: &HashMap<Arc<str>, Usage>,
    findings: &mut Findings,
) -> PoolDraft {
    let name = findings.required("name", &raw.name, ("a pool", &span), "\"web\"", |v| {
        name(v, "\"web\"")
    });
    let usage = name
        .as_ref()
        .and_then(|name| usage.get(name.get_ref()).copied())
        .unwrap_or_default();
    // The kernel has the first one only; see `http::cross`.
    let balance = findings.or("balance", &raw.balance, HttpBalance::default(), |v| {
        let words = [
            ("round-robin", HttpBalance::RoundRobin),
            ("least-connections", HttpBalance::LeastConnections),
            ("power-of-two", HttpBalance::PowerOfTwo),
            ("source", HttpBalance::Source),
        ];
        v.word(&words, &["maglev"])
    });
    let forward = findings.or("forward", &raw.forward, Forward::default(), |v| {
        v.word(&[("nat", Forward::Nat)], &["dsr", "ipip", "gue", "local"])
    });
    let (snat, snat_ports) = snat(raw, &span, findings);
    let unavailable = findings.or("unavailable", &raw.unavailable, Unavailable::Reset, |v| {
        let words = [
            ("reset", Unavailable::Reset),
            ("drop", Unavailable::Drop),
            ("pass", Unavailable::Pass),
        ];
        v.word(&words, &[])
    });
    let role = match usage.protocols() {
        0 => Role::Upstream,
        _ => Role::Backend,
    };
    let spoken = Spoken {
        usage,
        tls: raw.tls.is_some(),
        ajp: ajp::is_spoken(raw),
    };
    let check = match &raw.check {
        Some(table) => check(table.get_ref(), &table.span(), spoken, findings),
        None => check(&RawCheck::default(), &span, spoken, findings),
    };
    PoolDraft {
        name,
        snat,
        snat_ports,
        usage,
        forward,
        unavailable,
        check,
        check_place: raw.check.as_ref().map_or(span.clone(), Spanned::span),
        passive: match &raw.passive {
            Some(table) => passive(table.get_ref(), findings),
            None => passive(&RawPassive::default(), findings),
        },
        http: http_pool::pool(raw, balance, findings),
        balance_place: raw.balance.as_ref().map(Spanned::span),
        steering: steering(raw),
        backends: raw
            .backend
            .iter()
            .map(|table| backend(table.get_ref(), &table.span(), role, findings))
            .collect(),
        span,
    }
}

/// The keys that are about steering only.
fn steering(raw: &RawPool) -> Vec<(&'static str, Span)> {
    [
        ("forward", raw.forward.as_ref().map(Spanned::span)),
        ("snat", raw.snat.as_ref().map(Spanned::span)),
        ("snat_ports", raw.snat_ports.as_ref().map(Spanned::span)),
        ("unavailable", raw.unavailable.as_ref().map(Spanned::span)),
        ("passive", raw.passive.as_ref().map(Spanned::span)),
    ]
    .into_iter()
    .filter_map(|(key, span)| Some((key, span?)))
    .collect()
}

fn snat(
    raw: &RawPool,
    span: &Span,
    findings: &mut Findings,
) -> (Vec<Spanned<IpAddr>>, Spanned<(u16, u16)>) {
    let addresses = "an array of addresses such as [\"10.0.0.1\"]";
    let snat = findings.list("snat", &raw.snat, addresses, |v| {
        value::ip_address(v.text("\"10.0.0.1\"")?, Role::Snat)
    });
    let example = "\"10000-32767\"";
    let ports = findings.optional("snat_ports", &raw.snat_ports, |v| {
        value::port_range(v.text(example)?)
    });
    let empty = match raw.snat.as_ref().map(Spanned::get_ref) {
        None => true,
        Some(Value::Array(items)) => items.is_empty(),
        // Noted as a wrong type.
        Some(_) => false,
    };
    if let (true, Some(field)) = (empty, &raw.snat_ports) {
        let message = "`snat_ports` without addresses in `snat` has no effect";
        findings.error(field.span(), message, "`snat` as well, or neither");
    }
    let place = raw.snat.as_ref().map_or(span.clone(), Spanned::span);
    (
        snat,
        ports.unwrap_or(Spanned::new(place, SNAT_PORTS_DEFAULT)),
    )
}

/// The types of checks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    None,
    Tcp,
    Http,
    Ajp,
}

/// What a check has to know of its pool.
#[derive(Clone, Copy)]
struct Spoken {
    /// Who uses it.
    usage: Usage,
    /// It has a `[pool.tls]`.
    tls: bool,
    /// Requests go by AJP13.
    ajp: bool,
}

fn check(raw: &RawCheck, span: &Span, spoken: Spoken, findings: &mut Findings) -> Check {
    let Spoken {
        usage,
        tls: tls_table,
        ..
    } = spoken;
    let as_requests = raw.port.is_none() && (usage.http || !usage.steered());
    let default = match usage.udp_only() {
        true => Type::None,
        false if spoken.ajp && as_requests => Type::Ajp,
        false => Type::Tcp,
    };
    let types = [
        ("tcp", Type::Tcp),
        ("http", Type::Http),
        ("ajp", Type::Ajp),
        ("none", Type::None),
    ];
    let written = findings.optional("type", &raw.r#type, |v| v.word(&types, &[]));
    let kind = written.as_ref().map_or(default, |t| *t.get_ref());
    // After a wrong type nothing can be said about which keys belong to it.
    let certain = written.is_some() || raw.r#type.is_none();
    if certain {
        keys_of_type(raw, kind, findings);
    }
    let interval = duration_or(
        findings,
        "interval",
        &raw.interval,
        INTERVAL_DEFAULT,
        INTERVAL,
    );
    // In whole milliseconds, like every duration of a file.
    let fifth = Duration::from_millis(u64::try_from(interval.as_millis() / 5).unwrap_or(u64::MAX));
    let fast = fifth.max(FAST_INTERVAL_LEAST).min(interval);
    let fast_interval = duration_or(
        findings,
        "fast_interval",
        &raw.fast_interval,
        fast,
        INTERVAL,
    );
    if let (Some(field), true) = (&raw.fast_interval, fast_interval > interval) {
        let (fast, interval) = (show_duration(fast_interval), show_duration(interval));
        let message = format!("`fast_interval` {fast} is longer than `interval` {interval}");
        findings.error(field.span(), message, format!("at most \"{interval}\""));
    }
    let least = TIMEOUT_DEFAULT.min(interval);
    let timeout = duration_or(findings, "timeout", &raw.timeout, least, TIMEOUT);
    if let (Some(field), true) = (&raw.timeout, timeout > interval) {
        let (timeout, interval) = (show_duration(timeout), show_duration(interval));
        let message = format!(
            "`timeout` {timeout} is longer than `interval` {interval}: a check that hangs delays the next"
        );
        findings.warn(field.span(), message, format!("at most \"{interval}\""));
    }
    let mut in_a_row =
        |key, field, default| findings.or(key, field, default, |v| v.integer(IN_A_ROW));
    let fall = in_a_row("fall", &raw.fall, FALL_DEFAULT);
    let rise = in_a_row("rise", &raw.rise, RISE_DEFAULT);
    let port = findings.optional("port", &raw.port, |v| v.integer(1..=u16::MAX));
    if certain && kind != Type::None && usage.udp_only() && raw.port.is_none() {
        let place = written.as_ref().map_or(span.clone(), Spanned::span);
        let message = "only UDP frontends use this pool, so its backends' ports are no TCP ports";
        findings.error(place, message, "`port` as well: the TCP port to check");
    }
    let default = tls_table && as_requests;
    let tls = findings.or("tls", &raw.tls, default, Value::boolean);
    if let (Some(field), true, false) = (&raw.tls, tls, tls_table)
        && kind != Type::Ajp
    {
        let message = "`tls` in a pool without `[pool.tls]`: nothing says how to verify backends";
        let expected = "a `[pool.tls]` (`verify = false` in it verifies nothing), or no `tls`";
        findings.error(field.span(), message, expected);
    }
    // Read in any case, so that their mistakes are found.
    let path = findings.or("path", &raw.path, "/".to_owned(), |v| {
        value::request_path(v.text("\"/health\"")?)
    });
    let host = findings.optional("host", &raw.host, |v| {
        value::host(v.text("\"www.example.org\"")?)
    });
    let expect = expect(&raw.expect, findings);
    Check {
        kind: match kind {
            Type::None => CheckKind::None,
            Type::Tcp => CheckKind::Tcp,
            Type::Http => CheckKind::Http {
                path,
                host: host.map(Spanned::into_inner),
                expect,
            },
            Type::Ajp => CheckKind::Ajp,
        },
        interval,
        fast_interval,
        timeout,
        fall,
        rise,
        port: port.map(Spanned::into_inner),
        tls: tls && !matches!(kind, Type::None | Type::Ajp),
        as_requests,
    }
}

/// Refuses keys that another type of check has, and points out those that have
/// no effect when there is no check at all.
fn keys_of_type(raw: &RawCheck, kind: Type, findings: &mut Findings) {
    let shown = match kind {
        Type::Http => return,
        Type::Tcp => "tcp",
        Type::None => "none",
        Type::Ajp => "ajp",
    };
    let http = [
        ("path", &raw.path),
        ("host", &raw.host),
        ("expect", &raw.expect),
    ];
    for (key, field) in http {
        if let Some(field) = field {
            let message =
                format!("`{key}` belongs to an http check, and this one's type is {shown}");
            findings.error(
                field.span(),
                message,
                format!("`type = \"http\"`, or no `{key}`"),
            );
        }
    }
    if let (Type::Ajp, Some(field)) = (kind, &raw.tls)
        && *field.get_ref() == Value::Boolean(true)
    {
        let message = "`tls` in a check of type ajp: AJP13 has none";
        findings.error(field.span(), message, "another `type`, or no `tls`");
    }
    if kind == Type::None {
        let timing = [
            ("interval", &raw.interval),
            ("fast_interval", &raw.fast_interval),
            ("timeout", &raw.timeout),
            ("fall", &raw.fall),
            ("rise", &raw.rise),
            ("port", &raw.port),
            ("tls", &raw.tls),
        ];
        for (key, field) in timing {
            if let Some(field) = field {
                let message = format!("`{key}` has no effect without a check");
                findings.warn(
                    field.span(),
                    message,
                    format!("a `type` of check, or no `{key}`"),
                );
            }
        }
    }
}

/// `200`, `"200-399"` or an array of both.
fn expect(field: &Field, findings: &mut Findings) -> Vec<(u16, u16)> {
    let expected = "a status such as 200, a range such as \"200-399\", or an array of them";
    let read = |value: &Value| match value {
        Value::Integer(_) => value.integer(100..=599u16).map(|code| (code, code)),
        Value::Text(text) => value::status_codes(text),
        _ => Err(Mistake::wrong_type(expected)),
    };
    let Some(spanned) = field else {
        return vec![EXPECT_DEFAULT];
    };
    match spanned.get_ref() {
        Value::Array(items) if items.is_empty() => {
            findings.error(spanned.span(), "`expect` is an empty array", expected);
            Vec::new()
        }
        Value::Array(_) => findings
            .list("expect", field, expected, read)
            .into_iter()
            .map(Spanned::into_inner)
            .collect(),
        _ => vec![findings.or("expect", field, EXPECT_DEFAULT, read)],
    }
}

fn passive(raw: &RawPassive, findings: &mut Findings) -> Passive {
    let refused = findings.or("refused", &raw.refused, true, Value::boolean);
    let expected = "a duration in a string such as \"1s\", or false";
    let unanswered = findings.or(
        "unanswered",
        &raw.unanswered,
        Some(UNANSWERED_DEFAULT),
        |v| match v {
            Value::Boolean(false) => Ok(None),
            Value::Text(text) => value::duration(text, UNANSWERED).map(Some),
            _ => Err(Mistake::wrong_type(expected)),
        },
    );
    Passive {
        refused,
        unanswered,
    }
}

fn backend(
    raw: &Section<RawBackend>,
    span: &Span,
    role: Role,
    findings: &mut Findings,
) -> BackendDraft {
    let table = ("a backend", span);
    let address = "\"10.0.0.2:8080\"";
    BackendDraft {
        name: findings.required("name", &raw.name, table, "\"s1\"", |v| name(v, "\"s1\"")),
        address: findings.required("address", &raw.address, table, address, |v| {
            value::socket_address(v.text(address)?, role)
        }),
        weight: findings.or("weight", &raw.weight, 1, |v| v.integer(0..=WEIGHT_MAX)),
        activation: findings.or("activation", &raw.activation, Activation::Active, |v| {
            let words = [
                ("active", Activation::Active),
                ("drain", Activation::Drain),
                ("stopped", Activation::Stopped),
            ];
            v.word(&words, &[])
        }),
        http: http_pool::backend(raw, findings),
    }
}
