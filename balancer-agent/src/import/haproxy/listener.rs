//! What a frontend says of its connections: TLS, limits, times; and those in TCP mode, which
//! are nothing else.

use super::Context;
use super::bind::Bind;
use super::frontend::word;
use super::lex;
use super::sections::{Kind, Proxy};
use crate::import::draft::{self, Table};
use crate::import::names;

/// What is said of clients: TLS, limits, times.
pub fn basics(table: &mut Table, proxy: &Proxy, bind: &Bind, cx: &mut Context<'_>) {
    let file = cx.file;
    match bind.alpn.as_deref() {
        None if bind.tls => {
            // Without `alpn` HAProxy 2.6 does not offer HTTP/2.
            table.set("http2", false, &bind.place);
        }
        None => {}
        Some(alpn) => {
            let has = |name: &str| alpn.split(',').any(|word| word == name);
            if !has("h2") {
                table.set("http2", false, &bind.place);
            }
            if !has("http/1.1") && !has("h1") && !has("http/1.0") {
                table.set("http1", false, &bind.place);
            }
        }
    }
    if bind.accept_proxy {
        for net in ["0.0.0.0/0", "::/0"] {
            table.add("proxy_protocol_from", net, &bind.place);
        }
        let reason = "a PROXY header is taken from every source, as there: name those that send one in `proxy_protocol_from`";
        cx.report.note(&bind.place, "bind accept-proxy", reason);
    }
    if bind.tls {
        tls(table, bind, cx);
    }
    let limits = bind
        .maxconn
        .as_ref()
        .map(|value| (value.clone(), bind.place.clone()));
    let limits = limits.or_else(|| {
        let line = file.last(proxy, &["maxconn"])?;
        Some((line.word(1).to_owned(), line.place.clone()))
    });
    if let Some((value, place)) = limits {
        match value.parse::<u64>() {
            Ok(number @ 1..) => _ = table.table("limits").set("connections", number, &place),
            _ => cx.report.left(
                &place,
                format!("maxconn {value}"),
                "is no number of connections",
            ),
        }
    }
    let times: [(&[&str], &[&'static str]); 5] = [
        (&["timeout", "http-request"], &["headers"]),
        (&["timeout", "http-keep-alive"], &["keep_alive"]),
        (&["timeout", "client"], &["body_idle", "send"]),
        (&["clitimeout"], &["body_idle", "send"]),
        (&["timeout", "client-hs"], &["handshake"]),
    ];
    for (words, keys) in times {
        let Some(line) = file.last(proxy, words) else {
            continue;
        };
        let value = line.word(words.len());
        match lex::time(value, 1).filter(|time| *time > 0) {
            Some(time) => {
                for key in keys {
                    table
                        .table("timeouts")
                        .set(key, draft::duration(time), &line.place);
                }
            }
            None => cx
                .report
                .left(&line.place, line.shown(), "is no time: 0 would be for ever"),
        }
    }
}

fn tls(table: &mut Table, bind: &Bind, cx: &mut Context<'_>) {
    let base = cx.global_value("crt-base");
    let authorities = cx.global_value("ca-base");
    let tls = table.table("tls");
    if let Some(minimum) = bind.minimum.or(cx.tls_minimum).filter(|v| *v != "1.2") {
        tls.set("minimum", minimum, &bind.place);
    }
    if let (Some(verify), Some(file)) = (&bind.verify, &bind.authorities) {
        tls.set("client_auth", verify.as_str(), &bind.place);
        tls.set(
            "client_authorities",
            joined(authorities.as_deref(), file),
            &bind.place,
        );
    }
    for name in &bind.certificates {
        let path = joined(base.as_deref(), name);
        let found = match std::fs::read_dir(&path) {
            Ok(folder) => {
                let mut files: Vec<String> = folder
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| {
                        let ends = path.extension().and_then(|e| e.to_str());
                        path.is_file() && !matches!(ends, Some("key" | "ocsp" | "sctl" | "issuer"))
                    })
                    .map(|path| path.display().to_string())
                    .collect();
                files.sort();
                files
            }
            Err(_) => vec![path],
        };
        for path in found {
            let key = format!("{path}.key");
            let mut certificate = Table::one_of("certificate", &bind.place);
            let key = if std::path::Path::new(&key).exists() {
                key
            } else {
                path.clone()
            };
            certificate.set("certificate", path, &bind.place);
            certificate.set("key", key, &bind.place);
            tls.push(certificate);
        }
    }
}

pub(super) fn joined(base: Option<&str>, path: &str) -> String {
    match base {
        Some(base) if !path.starts_with('/') => format!("{}/{path}", base.trim_end_matches('/')),
        _ => path.to_owned(),
    }
}

/// Steered in the kernel.
pub fn tcp(proxy: &Proxy, binds: &[Bind], cx: &mut Context<'_>) {
    let what = format!("{} {}", word(proxy.kind), proxy.name);
    let pool = match proxy.kind {
        Kind::Listen => Some(proxy.name.clone()),
        _ => cx
            .file
            .last(proxy, &["default_backend"])
            .map(|line| line.word(1).to_owned()),
    };
    let Some(pool) = pool.and_then(|name| cx.pools.get(&name).cloned()) else {
        cx.report.left(
            &proxy.place,
            what,
            "it has no default_backend that was carried over",
        );
        return;
    };
    for line in proxy
        .lines
        .iter()
        .filter(|line| line.word(0) == "use_backend")
    {
        let reason = "frontends in TCP mode have one pool: what decides there is the address alone";
        cx.report.left(&line.place, line.shown(), reason);
    }
    for bind in binds {
        if bind.tls || bind.accept_proxy {
            let reason = "connections in TCP mode are steered in the kernel, which ends no TLS and reads no PROXY header";
            cx.report.left(
                &bind.place,
                format!("bind {}", names::listen(bind.ip, bind.port)),
                reason,
            );
            continue;
        }
        let ip = bind
            .ip
            .filter(|ip| !ip.is_unspecified())
            .or(cx.options.address);
        let Some(ip) = ip else {
            let reason = "frontends in TCP mode are steered in the kernel and need the very address that clients connect to: use --address";
            cx.report.left(
                &bind.place,
                format!("bind {}", names::listen(bind.ip, bind.port)),
                reason,
            );
            continue;
        };
        let reason = "TCP mode is `mode = \"xdp\"`: servers see the clients' addresses, and their way back has to lead \
                      through this host, or the pool needs `snat`; write the right `interfaces`";
        cx.report.note(&proxy.place, &what, reason);
        cx.steered = true;
        let name = cx.names.unique(&proxy.name);
        let mut table = Table::one_of("frontend", &proxy.place);
        table.set_own("name", name).set_own("mode", "xdp");
        table.set("address", names::listen(Some(ip), bind.port), &bind.place);
        table.set_own("pool", pool.clone());
        cx.root.push(table);
    }
}
