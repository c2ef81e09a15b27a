//! `[[frontend]]` with `mode = "http"`, its TLS, limits, timeouts and log.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::raw::{RawCertificate, RawClientTimeouts, RawLimits, RawLog, RawTls};
use super::site::{self, References};
use super::{files, route, value as http_value};
use crate::config::findings::{Findings, Mistake, Span};
use crate::config::raw::{Field, RawFrontend, Section, Value};
use crate::config::resolve::{duration_or, name};
use crate::config::value::{self, Role};
use crate::model::Named;
use crate::model::http::{
    AccessLog, CertificateFiles, ClientAuth, ClientTimeouts, Forwarded, HttpFrontend, Limits,
    LogFormat, Tls, TlsVersion, Versions,
};

const CLIENT_TIME: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(86_400);
const CERTIFICATE: &str = "/etc/balancer/site.pem";
const KEY: &str = "/etc/balancer/site.key";
const AUTHORITIES: &str = "/etc/balancer/clients.pem";
const LOG: &str = "/var/log/balancer/access.log";

/// An HTTP frontend with the places of its values. `None` is a mistake already
/// noted.
pub(in crate::config) struct HttpDraft {
    pub(in crate::config) span: Span,
    pub(in crate::config) name: Option<Spanned<Arc<str>>>,
    pub(in crate::config) address: Option<Spanned<SocketAddr>>,
    pub(in crate::config) references: References,
    rest: HttpFrontend,
}

impl HttpDraft {
    /// The frontend, when nothing needed is missing.
    pub(in crate::config) fn finish(self) -> Option<HttpFrontend> {
        Some(HttpFrontend {
            name: self.name?.into_inner(),
            address: self.address?.into_inner(),
            ..self.rest
        })
    }
}

/// Builds a frontend from its table, which stands at `span`.
pub(in crate::config) fn frontend(
    raw: &RawFrontend,
    span: Span,
    findings: &mut Findings,
) -> HttpDraft {
    let table = ("a frontend", &span);
    let example = "\"0.0.0.0:80\"";
    let name = findings.required("name", &raw.name, table, "\"web\"", |v| name(v, "\"web\""));
    let address = findings.required("address", &raw.address, table, example, |v| {
        value::socket_address(v.text(example)?, Role::Listener)
    });
    if let Some(field) = &raw.protocol {
        let message = "`protocol` belongs to a frontend in xdp mode, and this one's mode is http";
        findings.error(field.span(), message, "no `protocol`: HTTP goes over TCP");
    }
    let tls = raw
        .tls
        .as_ref()
        .map(|table| tls(table.get_ref(), &table.span(), findings));
    let versions = versions(raw, tls.is_some(), findings);
    let proxy_protocol_from = networks("proxy_protocol_from", &raw.proxy_protocol_from, findings);
    if let Some(field) = &raw.proxy_protocol_from
        && matches!(field.get_ref(), Value::Array(items) if items.is_empty())
    {
        let message = "`proxy_protocol_from` is an empty array";
        let expected =
            "the networks of the proxies in front, or no such key: then no header is expected";
        findings.error(field.span(), message, expected);
    }
    let trusted_proxies = networks("trusted_proxies", &raw.trusted_proxies, findings);
    everyone("trusted_proxies", &trusted_proxies, findings);
    let default = Forwarded::default();
    let forwarded = Forwarded {
        x_forwarded: findings.or(
            "x_forwarded",
            &raw.x_forwarded,
            default.x_forwarded,
            Value::boolean,
        ),
        rfc7239: findings.or("forwarded", &raw.forwarded, default.rfc7239, Value::boolean),
    };
    let via = findings.optional("via", &raw.via, |v| {
        http_value::token(v.text("\"balancer\"")?, "balancer").map(Arc::from)
    });
    let request_id = findings.optional("request_id", &raw.request_id, |v| {
        http_value::header_name(v.text("\"X-Request-Id\"")?)
    });
    let hsts = findings.optional("hsts", &raw.hsts, |v| {
        http_value::hsts(v.text("\"max-age=31536000\"")?)
    });
    if let (Some(field), None) = (&raw.hsts, &raw.tls) {
        let message = "`hsts` on a frontend without TLS: browsers ignore it there (RFC 6797, 8.1)";
        findings.error(field.span(), message, "a `[frontend.tls]`, or no `hsts`");
    }
    let redirect_https = findings.optional("redirect_https", &raw.redirect_https, |v| {
        v.integer(1..=u16::MAX)
    });
    if let (Some(field), Some(_)) = (&raw.redirect_https, &raw.tls) {
        let message = "`redirect_https` on a frontend with TLS: its requests are HTTPS already";
        let expected = "it on the plain frontend, whose clients are to come here";
        findings.error(field.span(), message, expected);
    }
    let pool = route::reference("pool", &raw.pool, findings);
    let mut references = References::default();
    let sites = site::sites(&raw.site, pool, &mut references, findings);
    destinations(raw, &span, findings);
    let rest = HttpFrontend {
        // These two are put in at the end.
        name: Arc::default(),
        address: ([0, 0, 0, 0], 0).into(),
        tls,
        versions,
        proxy_protocol_from: plain(proxy_protocol_from),
        trusted_proxies: plain(trusted_proxies),
        forwarded,
        via: via.map(Spanned::into_inner),
        request_id: request_id.map(Spanned::into_inner),
        hsts: hsts.map(Spanned::into_inner),
        redirect_https: redirect_https.map(Spanned::into_inner),
        limits: raw
            .limits
            .as_ref()
            .map_or_else(Limits::default, |table| limits(table.get_ref(), findings)),
        timeouts: raw
            .timeouts
            .as_ref()
            .map_or_else(ClientTimeouts::default, |table| {
                timeouts(table.get_ref(), findings)
            }),
        log: raw
            .log
            .as_ref()
            .and_then(|table| log(table.get_ref(), &table.span(), findings)),
        sites,
    };
    HttpDraft {
        span,
        name,
        address,
        references,
        rest,
    }
}

/// Requests have to lead somewhere, and not to two places.
fn destinations(raw: &RawFrontend, span: &Span, findings: &mut Findings) {
    let sites = raw.site.first().map(Spanned::span);
    let pool = raw.pool.as_ref().map(Spanned::span);
    match (&raw.redirect_https, pool.or(sites)) {
        (None, None) => {
            let message = "a frontend has neither `pool` nor sites";
            let expected = "one, such as `pool = \"web\"`, or a `[[frontend.site]]` after it";
            findings.error(span.clone(), message, expected);
        }
        // With TLS the redirect itself is the mistake.
        (Some(_), Some(place)) if raw.tls.is_none() => {
            let message = "nothing comes here: `redirect_https` answers every request";
            let expected =
                "`pool` and sites on the frontend with TLS alone, or no `redirect_https`";
            findings.error(place, message, expected);
        }
        _ => {}
    }
}

fn versions(raw: &RawFrontend, tls: bool, findings: &mut Findings) -> Versions {
    let default = Versions::default();
    let versions = Versions {
        http1: findings.or("http1", &raw.http1, default.http1, Value::boolean),
        http2: findings.or("http2", &raw.http2, default.http2, Value::boolean),
    };
    if let (Some(field), false) = (&raw.http1, versions.http1) {
        if !versions.http2 {
            let message = "neither `http1` nor `http2` is on";
            findings.error(field.span(), message, "at least one of them");
        } else if !tls {
            let message = "HTTP/2 only, and no TLS: clients have to know beforehand (prior knowledge), which no browser does";
            findings.warn(
                field.span(),
                message,
                "a `[frontend.tls]`, or `http1` as well",
            );
        }
    }
    versions
}

/// An array of networks.
fn networks(key: &str, field: &Field, findings: &mut Findings) -> Vec<Spanned<IpNet>> {
    let example = "\"10.0.0.0/8\"";
    let expected = "an array of networks such as [\"10.0.0.0/8\"]";
    let networks = findings.list(key, field, expected, |v| {
        http_value::network(v.text(example)?)
    });
    crate::config::cross::unique(&networks, findings, |net| {
        (
            format!("network {net} is twice in `{key}`"),
            "each network once".into(),
        )
    });
    networks
}

fn everyone(key: &str, networks: &[Spanned<IpNet>], findings: &mut Findings) {
    for network in networks.iter().filter(|n| n.get_ref().prefix_len() == 0) {
        let message = format!(
            "`{key}` has everyone in it: what any client says about its address is believed"
        );
        findings.warn(
            network.span(),
            message,
            "the networks of the proxies in front",
        );
    }
}

fn plain<T>(values: Vec<Spanned<T>>) -> Vec<T> {
    values.into_iter().map(Spanned::into_inner).collect()
}

fn tls(raw: &Section<RawTls>, span: &Span, findings: &mut Findings) -> Tls {
    if raw.certificate.is_empty() {
        let expected = "at least one `[[frontend.tls.certificate]]` with `certificate` and `key`";
        findings.error(span.clone(), "TLS without a certificate", expected);
    }
    let certificates: Vec<CertificateFiles> = raw
        .certificate
        .iter()
        .filter_map(|table| certificate(table, findings))
        .collect();
    for (i, pair) in certificates.iter().enumerate() {
        if certificates.len() == raw.certificate.len() && certificates[..i].contains(pair) {
            let message = format!("certificate {} is there twice", pair.certificate.display());
            findings.error(raw.certificate[i].span(), message, "each certificate once");
        }
    }
    let minimum = findings.or("minimum", &raw.minimum, TlsVersion::default(), |v| {
        let old = ["1.0", "1.1"];
        let words = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
        match v {
            Value::Text(text) if old.contains(&text.as_str()) => Err(Mistake::value(
                "is not safe any more (RFC 8996)",
                "\"1.2\" or \"1.3\"",
            )),
            _ => v.word(&words, &[]),
        }
    });
    Tls {
        certificates,
        minimum,
        client_auth: client_auth(raw, findings),
    }
}

fn certificate(
    table: &Spanned<Section<RawCertificate>>,
    findings: &mut Findings,
) -> Option<CertificateFiles> {
    let (raw, span) = (table.get_ref(), table.span());
    let place = ("a certificate", &span);
    let (chain, key) = (format!("\"{CERTIFICATE}\""), format!("\"{KEY}\""));
    let certificate = findings.required("certificate", &raw.certificate, place, &chain, |v| {
        files::pem(v.text(&chain)?, CERTIFICATE)
    });
    let key = findings.required("key", &raw.key, place, &key, |v| {
        files::private_key(v.text(&key)?, KEY)
    });
    Some(files::pair(certificate?, key?, findings))
}

fn client_auth(raw: &RawTls, findings: &mut Findings) -> ClientAuth {
    type Make = fn(PathBuf) -> ClientAuth;
    let words: [(&str, Option<Make>); 3] = [
        ("off", None),
        ("optional", Some(ClientAuth::Optional)),
        ("required", Some(ClientAuth::Required)),
    ];
    let written = findings.optional("client_auth", &raw.client_auth, |v| v.word(&words, &[]));
    let example = format!("\"{AUTHORITIES}\"");
    let authorities = findings.optional("client_authorities", &raw.client_authorities, |v| {
        files::pem(v.text(&example)?, AUTHORITIES)
    });
    if let Some(path) = &authorities {
        let named = Named::ClientAuthorities(path.get_ref().clone());
        findings.places.add(named, path.span());
    }
    // After a wrong word nothing can be said about the other key.
    let certain = written.is_some() || raw.client_auth.is_none();
    let make = written.as_ref().and_then(|w| *w.get_ref());
    match (make, &raw.client_authorities) {
        (Some(_), None) => {
            let place = written.as_ref().map_or(0..0, Spanned::span);
            let message = "`client_auth` without `client_authorities`";
            let expected =
                format!("who vouches for clients, such as `client_authorities = {example}`");
            findings.error(place, message, expected);
        }
        (None, Some(field)) if certain => {
            let message = "`client_authorities` has no effect without `client_auth`";
            let expected = "`client_auth = \"required\"` or \"optional\"";
            findings.error(field.span(), message, expected);
        }
        _ => {}
    }
    match (make, authorities) {
        (Some(make), Some(path)) => make(path.into_inner()),
        _ => ClientAuth::Off,
    }
}

fn limits(raw: &RawLimits, findings: &mut Findings) -> Limits {
    let d = Limits::default();
    let mut number = |key, field, default, range: RangeInclusive<u64>| {
        let value = findings.or(key, field, default as u64, |v| v.integer(range));
        // Ranges end far below what a usize holds.
        usize::try_from(value).unwrap_or(default)
    };
    let headers = number("headers", &raw.headers, d.headers, 1..=10_000);
    let head_bytes = number("head_bytes", &raw.head_bytes, d.head_bytes, 1024..=1 << 20);
    let target = d.target_bytes.min(head_bytes);
    let target_bytes = number("target_bytes", &raw.target_bytes, target, 256..=1 << 20);
    let connections = number(
        "connections",
        &raw.connections,
        d.connections,
        1..=10_000_000,
    );
    let h2_resets = number("h2_resets", &raw.h2_resets, d.h2_resets, 1..=1_000_000);
    if let (Some(field), true) = (&raw.target_bytes, target_bytes > head_bytes) {
        let message = format!(
            "`target_bytes` {target_bytes} is more than `head_bytes` {head_bytes}, which it is a part of"
        );
        findings.error(field.span(), message, format!("at most {head_bytes}"));
    }
    let mut per = |key, field, default| {
        findings.or(key, field, default, |v| {
            v.unless_off(|v| v.integer(1..=1_000_000_000u32))
        })
    };
    let connections_per_source = per(
        "connections_per_source",
        &raw.connections_per_source,
        d.connections_per_source,
    );
    let requests_per_source = per(
        "requests_per_source",
        &raw.requests_per_source,
        d.requests_per_source,
    );
    let mut large = |key, field, default| {
        findings.or(key, field, default, |v| {
            v.unless_off(|v| v.integer(1..=1u64 << 60))
        })
    };
    let body_bytes = large("body_bytes", &raw.body_bytes, d.body_bytes);
    let requests_per_connection = large(
        "requests_per_connection",
        &raw.requests_per_connection,
        d.requests_per_connection,
    );
    Limits {
        headers,
        head_bytes,
        target_bytes,
        body_bytes,
        connections,
        connections_per_source,
        requests_per_source,
        requests_per_connection,
        h2_streams: findings.or("h2_streams", &raw.h2_streams, d.h2_streams, |v| {
            v.integer(1..=10_000)
        }),
        h2_resets,
    }
}

fn timeouts(raw: &RawClientTimeouts, findings: &mut Findings) -> ClientTimeouts {
    let d = ClientTimeouts::default();
    let mut time = |key, field, default| duration_or(findings, key, field, default, CLIENT_TIME);
    ClientTimeouts {
        handshake: time("handshake", &raw.handshake, d.handshake),
        headers: time("headers", &raw.headers, d.headers),
        keep_alive: time("keep_alive", &raw.keep_alive, d.keep_alive),
        body_idle: time("body_idle", &raw.body_idle, d.body_idle),
        send: time("send", &raw.send, d.send),
        body_rate: findings.or("body_rate", &raw.body_rate, d.body_rate, |v| {
            v.unless_off(|v| v.integer(1..=1u64 << 30))
        }),
    }
}

fn log(raw: &RawLog, span: &Span, findings: &mut Findings) -> Option<AccessLog> {
    let example = format!("\"{LOG}\"");
    let file = findings.required("file", &raw.file, ("a log", span), &example, |v| {
        let path = value::path(v.text(&example)?, LOG)?;
        match path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir() {
            true => Err(Mistake::value(
                "is a directory",
                format!("the path of the file itself, such as {example}"),
            )),
            false => Ok(path),
        }
    });
    if let Some(path) = &file {
        let named = Named::Log(path.get_ref().clone());
        findings.places.add(named, path.span());
    }
    let formats = [
        ("combined", LogFormat::Combined),
        ("common", LogFormat::Common),
        ("json", LogFormat::Json),
    ];
    let format = findings.or("format", &raw.format, LogFormat::default(), |v| {
        v.word(&formats, &[])
    });
    let details = findings.or("details", &raw.details, true, Value::boolean);
    if let (Some(field), LogFormat::Json) = (&raw.details, format) {
        let message = "`details` has no effect on `format = \"json\"`, which always has them";
        findings.warn(field.span(), message, "no `details`");
    }
    Some(AccessLog {
        file: file?.into_inner(),
        format,
        details,
    })
}
