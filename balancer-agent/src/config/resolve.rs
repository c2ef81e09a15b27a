//! Builds the model from the raw tables: defaults, ranges and the meaning of
//! each value. Drafts keep the places of the values, for the checks of what
//! fits together.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::cluster;
use super::cross;
use super::findings::{Findings, Mistake, Span};
use super::http::frontend::HttpDraft;
use super::http::{self, cross as http_cross, frontend as http_frontend};
use super::pool::{self, PoolDraft};
use super::raw::{Field, RawAdmin, RawConfig, RawFrontend, RawTimeouts, RawXdp, Value};
use super::session;
use super::value::{self, Role, show_duration};
use crate::model::{Admin, Config, FlowTimeouts, Frontend, Protocol, Xdp, XdpMode};

const FLOWS: RangeInclusive<u32> = 1_000..=100_000_000;
const FLOWS_DEFAULT: u32 = 1_000_000;
const HALF_OPEN: RangeInclusive<u32> = 1_000..=16_000_000;
const HALF_OPEN_DEFAULT: u32 = 262_144;
const SOCKET_DEFAULT: &str = "/run/balancer.sock";
const PIN_DIR_EXAMPLE: &str = "/sys/fs/bpf/balancer";
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// A frontend with the places of its values. `None` is a mistake already noted.
pub(super) struct FrontendDraft {
    pub(super) span: Span,
    pub(super) name: Option<Spanned<Arc<str>>>,
    pub(super) address: Option<Spanned<SocketAddr>>,
    pub(super) protocol: Protocol,
    pub(super) pool: Option<Spanned<Arc<str>>>,
}

impl FrontendDraft {
    fn finish(self) -> Option<Frontend> {
        Some(Frontend {
            name: self.name?.into_inner(),
            address: self.address?.into_inner(),
            protocol: self.protocol,
            pool: self.pool?.into_inner(),
        })
    }
}

/// Which frontends use a pool: of which protocols those that are steered in the
/// kernel are, and whether HTTP frontends do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) tcp: bool,
    pub(super) udp: bool,
    pub(super) http: bool,
}

impl Usage {
    /// Only UDP frontends use it.
    pub(super) fn udp_only(self) -> bool {
        self.udp && !self.tcp && !self.http
    }

    /// Whether any frontend uses it.
    pub(super) fn any(self) -> bool {
        self.steered() || self.http
    }

    /// Frontends that are steered in the kernel use it.
    pub(super) fn steered(self) -> bool {
        self.protocols() > 0
    }

    /// It must be fit to be steered: it is, or nobody uses it yet.
    pub(super) fn steerable(self) -> bool {
        self.steered() || !self.http
    }

    /// For how many protocols it is steered in the kernel.
    pub(super) fn protocols(self) -> usize {
        usize::from(self.tcp) + usize::from(self.udp)
    }
}

/// Builds the model. `None` when something needed is missing or wrong; it has
/// then been noted, but a value alone does not mean that nothing was.
pub(super) fn resolve(raw: &RawConfig, findings: &mut Findings) -> Option<Config> {
    let default = RawXdp::default();
    let xdp_table = raw.xdp.as_ref();
    let raw_xdp = xdp_table.map_or(&default, |table| &**table.get_ref());
    let xdp = xdp(raw_xdp, findings);
    let admin = admin(&raw.admin, findings);
    let timeouts = timeouts(&raw.timeouts, findings);
    let mut http = http::http(&raw.http, findings);
    let cluster = raw.cluster.as_ref();
    let cluster = cluster.and_then(|t| cluster::cluster(t.get_ref(), t.span(), findings));
    let mut frontends = Vec::new();
    let mut answered = Vec::new();
    for table in &raw.frontend {
        match mode(table.get_ref(), findings) {
            Mode::Xdp => frontends.push(frontend(table.get_ref(), table.span(), findings)),
            Mode::Http => {
                answered.push(http_frontend::frontend(
                    table.get_ref(),
                    table.span(),
                    findings,
                ));
            }
        }
    }
    let usage = usage(&frontends, &answered);
    let mut pools: Vec<PoolDraft> = raw
        .pool
        .iter()
        .map(|table| pool::pool(table.get_ref(), table.span(), &usage, findings))
        .collect();

    let session = raw.session.as_ref();
    let sessions = session
        .and_then(|t| session::sessions(t.get_ref(), t.span(), raw.cluster.is_some(), findings));
    let raw_sessions = session.map(|t| &**t.get_ref());
    session::of_pools(&mut pools, raw_sessions, sessions.as_ref(), findings);

    // Interfaces that are there and wrong have been noted already.
    let none = match raw_xdp.interfaces.as_ref().map(Spanned::get_ref) {
        None => true,
        Some(value) => matches!(value, Value::Array(names) if names.is_empty()),
    };
    if none {
        let written = raw_xdp.interfaces.as_ref().map(Spanned::span);
        let table = xdp_table.map(Spanned::span);
        cross::no_interfaces(written, table, &frontends, findings);
    }
    cross::check(&frontends, &answered, &pools, findings);
    http_cross::check(&frontends, &answered, &pools, findings);
    http.frontends = answered
        .into_iter()
        .map(|draft| draft.finish().map(Arc::new))
        .collect::<Option<_>>()?;

    Some(Config {
        xdp,
        admin,
        timeouts,
        http,
        // One that is wrong has been noted.
        cluster,
        sessions,
        frontends: frontends
            .into_iter()
            .map(FrontendDraft::finish)
            .collect::<Option<_>>()?,
        pools: pools
            .into_iter()
            .map(|draft| draft.finish().map(Arc::new))
            .collect::<Option<_>>()?,
    })
}

fn xdp(raw: &RawXdp, findings: &mut Findings) -> Xdp {
    let names = "an array of interface names such as [\"eth0\"]";
    let interfaces = findings.list("interfaces", &raw.interfaces, names, |v| {
        value::interface(v.text("\"eth0\"")?)
    });
    cross::unique(&interfaces, findings, |name| {
        let expected = "each interface once";
        (format!("interface {name} is listed twice"), expected.into())
    });
    let modes = [
        ("auto", XdpMode::Auto),
        ("native", XdpMode::Native),
        ("generic", XdpMode::Generic),
    ];
    let mut size = |key, field, default, range: &RangeInclusive<u32>| {
        findings.or(key, field, default, |v| v.integer(range.clone()))
    };
    let flows_ipv4 = size("flows_ipv4", &raw.flows_ipv4, FLOWS_DEFAULT, &FLOWS);
    let flows_ipv6 = size("flows_ipv6", &raw.flows_ipv6, FLOWS_DEFAULT, &FLOWS);
    let half_open = size("half_open", &raw.half_open, HALF_OPEN_DEFAULT, &HALF_OPEN);
    Xdp {
        interfaces: interfaces.into_iter().map(Spanned::into_inner).collect(),
        mode: findings.or("mode", &raw.mode, XdpMode::default(), |v| {
            v.word(&modes, &[])
        }),
        flows_ipv4,
        flows_ipv6,
        half_open,
        pin_dir: findings
            .optional("pin_dir", &raw.pin_dir, |v| {
                let text = v.text(&format!("\"{PIN_DIR_EXAMPLE}\""))?;
                value::path(text, PIN_DIR_EXAMPLE)
            })
            .map(Spanned::into_inner),
    }
}

fn admin(raw: &RawAdmin, findings: &mut Findings) -> Admin {
    Admin {
        socket: findings.or("socket", &raw.socket, SOCKET_DEFAULT.into(), |v| {
            let text = v.text(&format!("\"{SOCKET_DEFAULT}\""))?;
            value::socket_path(text, SOCKET_DEFAULT)
        }),
    }
}

fn timeouts(raw: &RawTimeouts, findings: &mut Findings) -> FlowTimeouts {
    // The kernel notes when a flow was last seen in units of about a second,
    // and the count comes round after 208 days.
    let mut time = |key, field, default: Duration, most: Duration| {
        duration_or(findings, key, field, default, SECOND..=most)
    };
    FlowTimeouts {
        tcp_idle: time("tcp_idle", &raw.tcp_idle, 2 * HOUR, 30 * DAY),
        udp_idle: time("udp_idle", &raw.udp_idle, 60 * SECOND, 30 * DAY),
        half_open: time("half_open", &raw.half_open, 60 * SECOND, HOUR),
        closed: time("closed", &raw.closed, 10 * SECOND, HOUR),
        removed: time("removed", &raw.removed, 600 * SECOND, 30 * DAY),
    }
}

/// Who answers a frontend.
#[derive(Clone, Copy)]
enum Mode {
    Xdp,
    Http,
}

fn mode(raw: &RawFrontend, findings: &mut Findings) -> Mode {
    let words = [("xdp", Mode::Xdp), ("http", Mode::Http)];
    // After a wrong word the keys tell what was probably meant.
    let likely = match (&raw.mode, http_keys(raw).is_empty()) {
        (None, _) | (Some(_), true) => Mode::Xdp,
        (Some(_), false) => Mode::Http,
    };
    findings.or("mode", &raw.mode, likely, |v| v.word(&words, &[]))
}

/// Keys that only HTTP frontends have, where they are written.
fn http_keys(raw: &RawFrontend) -> Vec<(&'static str, Span)> {
    let place = |field: &Field| field.as_ref().map(Spanned::span);
    [
        ("http1", place(&raw.http1)),
        ("http2", place(&raw.http2)),
        ("proxy_protocol_from", place(&raw.proxy_protocol_from)),
        ("trusted_proxies", place(&raw.trusted_proxies)),
        ("x_forwarded", place(&raw.x_forwarded)),
        ("forwarded", place(&raw.forwarded)),
        ("via", place(&raw.via)),
        ("request_id", place(&raw.request_id)),
        ("hsts", place(&raw.hsts)),
        ("redirect_https", place(&raw.redirect_https)),
        ("tls", raw.tls.as_ref().map(Spanned::span)),
        ("limits", raw.limits.as_ref().map(Spanned::span)),
        ("timeouts", raw.timeouts.as_ref().map(Spanned::span)),
        ("log", raw.log.as_ref().map(Spanned::span)),
        ("site", raw.site.first().map(Spanned::span)),
    ]
    .into_iter()
    .filter_map(|(key, span)| Some((key, span?)))
    .collect()
}

fn frontend(raw: &RawFrontend, span: Span, findings: &mut Findings) -> FrontendDraft {
    let table = ("a frontend", &span);
    let address = "\"192.0.2.10:80\"";
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    for (key, span) in http_keys(raw) {
        let message = format!("`{key}` belongs to an http frontend, and this one's mode is xdp");
        let expected = format!("`mode = \"http\"`, or no `{key}`");
        findings.error(span, message, expected);
    }
    FrontendDraft {
        name: findings.required("name", &raw.name, table, "\"web\"", |v| name(v, "\"web\"")),
        address: findings.required("address", &raw.address, table, address, |v| {
            value::socket_address(v.text(address)?, Role::Frontend)
        }),
        protocol: findings.or("protocol", &raw.protocol, Protocol::Tcp, |v| {
            v.word(&protocols, &[])
        }),
        pool: findings.required("pool", &raw.pool, table, "\"web\"", |v| {
            Ok(Arc::from(v.text("\"web\"")?))
        }),
        span,
    }
}

/// The name of something, for messages and for use.
pub(super) fn name(value: &Value, example: &str) -> Result<Arc<str>, Mistake> {
    let text = value.text(example)?;
    value::name(text)?;
    Ok(Arc::from(text))
}

/// A duration that has a default.
pub(super) fn duration_or(
    findings: &mut Findings,
    key: &str,
    field: &Field,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Duration {
    findings.or(key, field, default, |v| {
        let example = format!("\"{}\"", show_duration(default));
        value::duration(v.text(&example)?, range)
    })
}

fn usage(frontends: &[FrontendDraft], answered: &[HttpDraft]) -> HashMap<Arc<str>, Usage> {
    let mut usage: HashMap<Arc<str>, Usage> = HashMap::new();
    for frontend in frontends {
        let Some(pool) = &frontend.pool else { continue };
        let entry = usage.entry(Arc::clone(pool.get_ref())).or_default();
        match frontend.protocol {
            Protocol::Tcp => entry.tcp = true,
            Protocol::Udp => entry.udp = true,
        }
    }
    for pool in answered.iter().flat_map(|f| &f.references.routed) {
        usage.entry(Arc::clone(pool.get_ref())).or_default().http = true;
    }
    usage
}
