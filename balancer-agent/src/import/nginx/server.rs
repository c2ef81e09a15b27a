//! `server` blocks made into frontends and sites.

use std::net::{IpAddr, Ipv6Addr};

use super::lex::{self, Node};
use super::location::{self, Scope};
use super::{Context, pass, reasons};
use crate::import::draft::{self, Table};
use crate::import::rules;
use crate::import::source::Place;
use crate::import::{Report, names, sites};

/// `listen`.
#[derive(Clone, Debug)]
struct Listen {
    ip: Option<IpAddr>,
    port: u16,
    tls: bool,
    http2: bool,
    proxy: bool,
    default: bool,
    place: Place,
}

fn listen(node: &Node, report: &mut Report) -> Option<Listen> {
    let text = node.arg(0);
    let mut left = |reason: &str| {
        report.left(&node.place, node.shown(), reason);
        None
    };
    if text.starts_with("unix:") {
        return left("frontends listen on addresses and ports");
    }
    let (host, port) = match text.parse::<u16>() {
        Ok(port) => ("*", Some(port)),
        Err(_) => {
            let (host, port) = names::split_port(text, false);
            (host, port.map_or(Some(80), |port| port.parse().ok()))
        }
    };
    let Some(port) = port.filter(|port| *port > 0) else {
        return left("is no port");
    };
    let ip = match host {
        "*" | "0.0.0.0" => None,
        "localhost" => Some(std::net::Ipv4Addr::LOCALHOST.into()),
        host => match host.parse::<IpAddr>() {
            Ok(ip) => Some(ip),
            Err(_) => return left("is no address: names are not resolved"),
        },
    };
    let has = |word: &str| node.args.iter().any(|arg| arg == word);
    if has("quic") {
        return left("HTTP/3 is not spoken: clients use HTTP/2 without it");
    }
    Some(Listen {
        ip,
        port,
        tls: has("ssl"),
        http2: has("http2"),
        proxy: has("proxy_protocol"),
        default: has("default_server") || has("default"),
        place: node.place.clone(),
    })
}

/// A server and where it listens.
struct Server<'a> {
    node: &'a Node,
    listens: Vec<Listen>,
}

/// Makes the frontends of `http`.
pub fn frontends(http: &Node, root: &mut Table, cx: &mut Context<'_>) {
    let mut servers = Vec::new();
    for node in http.inside().iter().filter(|node| node.name == "server") {
        let lines = node.inside().iter().filter(|n| n.name == "listen");
        let mut listens: Vec<Listen> = lines
            .filter_map(|line| listen(line, &mut cx.report))
            .collect();
        if !node.inside().iter().any(|n| n.name == "listen") {
            listens.push(Listen {
                ip: None,
                port: 80,
                tls: false,
                http2: false,
                proxy: false,
                default: false,
                place: node.place.clone(),
            });
        }
        for inner in node.inside() {
            reasons::left(inner, &mut cx.report);
        }
        servers.push(Server { node, listens });
    }
    let mut sockets: Vec<(Option<IpAddr>, u16)> = Vec::new();
    for listen in servers.iter().flat_map(|server| &server.listens) {
        if !sockets.contains(&(listen.ip, listen.port)) {
            sockets.push((listen.ip, listen.port));
        }
    }
    // `[::]` takes IPv4 as well: where both are listened on, it is one frontend.
    let six = |port| (Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), port);
    let both: Vec<u16> = sockets
        .iter()
        .filter(|(ip, port)| ip.is_none() && sockets.contains(&six(*port)))
        .map(|(_, port)| *port)
        .collect();
    for (ip, port) in &sockets {
        if both.contains(port) && *ip == six(*port).0 {
            continue;
        }
        let here = |listen: &Listen| {
            let other = both.contains(port) && listen.ip == six(*port).0;
            listen.port == *port && (listen.ip == *ip || (ip.is_none() && other))
        };
        let found: Vec<(&Server<'_>, &Listen)> = servers
            .iter()
            .filter_map(|server| Some((server, server.listens.iter().find(|listen| here(listen))?)))
            .collect();
        let ip = if both.contains(port) {
            six(*port).0
        } else {
            *ip
        };
        let table = frontend(http, (ip, *port), &found, cx);
        root.push(table);
    }
}

fn frontend(
    http: &Node,
    (ip, port): (Option<IpAddr>, u16),
    servers: &[(&Server<'_>, &Listen)],
    cx: &mut Context<'_>,
) -> Table {
    let default = servers
        .iter()
        .position(|(_, listen)| listen.default)
        .unwrap_or(0);
    let (first, listen) = servers[default];
    let mut table = Table::one_of("frontend", &first.node.place);
    let own = hosts(first.node, &mut Report::default());
    let name = own.first().map_or_else(
        || format!("port-{port}"),
        |(host, _)| host.trim_start_matches("*.").to_owned(),
    );
    table
        .set_own("name", cx.names.unique(&name))
        .set_own("mode", "http");
    table.set("address", names::listen(ip, port), &listen.place);
    let tls = servers.iter().any(|(_, listen)| listen.tls);
    if tls {
        let http2 = servers.iter().any(|(server, listen)| {
            listen.http2
                || server
                    .node
                    .inside()
                    .iter()
                    .any(|n| n.name == "http2" && n.arg(0) == "on")
        });
        if !http2 {
            table.set("http2", false, &listen.place);
        }
        certificates(&mut table, http, servers, default, cx);
    }
    let trusted = Scope(vec![http, first.node]).all("set_real_ip_from");
    if servers.iter().any(|(_, listen)| listen.proxy) {
        let place = &listen.place;
        for node in &trusted {
            table.add("proxy_protocol_from", node.arg(0), &node.place);
        }
        if trusted.is_empty() {
            for net in ["0.0.0.0/0", "::/0"] {
                table.add("proxy_protocol_from", net, place);
            }
            let reason = "a PROXY header is taken from every source: name those that send one in `proxy_protocol_from`";
            cx.report.note(place, "listen proxy_protocol", reason);
        }
    } else {
        for node in trusted {
            table.add("trusted_proxies", node.arg(0), &node.place);
        }
    }
    limits(&mut table, http, servers, default, cx);
    let mut taken: Vec<String> = Vec::new();
    let mut order: Vec<usize> = (0..servers.len()).collect();
    order.retain(|at| *at != default);
    order.push(default);
    for at in order {
        let (server, _) = servers[at];
        let mut hosts = hosts(server.node, &mut cx.report);
        hosts.retain(|(host, place)| {
            let twice = taken.contains(host);
            if twice {
                cx.report
                    .left(place, host, "another server of this address has this name");
            }
            !twice
        });
        taken.extend(hosts.iter().map(|(host, _)| host.clone()));
        if at == default {
            // Its names need a site of their own where another one's wildcard takes them.
            let own = hosts.iter().any(|(host, _)| {
                taken.iter().any(|wild| {
                    wild != host
                        && wild
                            .strip_prefix('*')
                            .is_some_and(|suffix| host.ends_with(suffix))
                })
            });
            if own {
                site(&mut table, http, server.node, hosts.clone(), tls, cx);
            }
            hosts.clear();
        } else if hosts.is_empty() {
            let reason = "it has no name of its own, and another server is the default here";
            cx.report.left(&server.node.place, "server", reason);
            continue;
        }
        site(&mut table, http, server.node, hosts, tls, cx);
    }
    shorten(&mut table, tls);
    table
}

/// `redirect_https`, where nothing else is done.
fn shorten(table: &mut Table, tls: bool) {
    let [site] = &table.all("site").collect::<Vec<_>>()[..] else {
        return;
    };
    let mounts: Vec<&Table> = site.all("mount").collect();
    let [mount] = &mounts[..] else { return };
    let Some(redirect) = mount.known("redirect") else {
        return;
    };
    let https = redirect.text("location") == Some("https://{host}{path}{query}");
    let all = matches!(mount.get("pattern"), Some(draft::Value::Texts(items)) if matches!(&items[..], [i] if i.text == "/*"));
    let status = matches!(
        redirect.get("status"),
        Some(draft::Value::Integer(301 | 308))
    );
    let any = site.get("hosts").is_none();
    if !tls
        && https
        && all
        && status
        && any
        && let Some(place) = mount.place.clone()
    {
        table.drop_all("site");
        table.set("redirect_https", 443, &place);
    }
}

/// The hosts of a server.
fn hosts(server: &Node, report: &mut Report) -> Vec<(String, Place)> {
    let mut hosts: Vec<(String, Place)> = Vec::new();
    for node in server
        .inside()
        .iter()
        .filter(|node| node.name == "server_name")
    {
        for name in &node.args {
            // What nobody can ask for is how the default is written.
            if matches!(
                name.as_str(),
                "_" | "" | "*" | "--" | "localhost.localdomain" | "$hostname"
            ) {
                continue;
            }
            let both: Vec<String> = match name.strip_prefix('.') {
                Some(rest) => vec![rest.to_owned(), format!("*.{rest}")],
                None => vec![name.clone()],
            };
            for name in both {
                match names::host(&name) {
                    Some(host) if hosts.iter().any(|(own, _)| *own == host) => {}
                    Some(host) => hosts.push((host, node.place.clone())),
                    None => report.left(
                        &node.place,
                        name,
                        "a host is a whole name, or `*.` and the end of one",
                    ),
                }
            }
        }
    }
    hosts
}

fn site(
    table: &mut Table,
    http: &Node,
    server: &Node,
    hosts: Vec<(String, Place)>,
    tls: bool,
    cx: &mut Context<'_>,
) {
    let scope = Scope(vec![http, server]);
    let all: Vec<String> = self::hosts(server, &mut Report::default())
        .into_iter()
        .map(|(host, _)| host)
        .collect();
    let rules = location::rules(&scope, &all, tls, cx);
    let mounts = rules::mounts(&rules, &mut cx.report);
    let everything = rules
        .iter()
        .any(|rule| rule.patterns.iter().any(|p| p == "/*"));
    let root = scope.find("root");
    sites::add(table, &hosts, &server.place, mounts, |site| {
        if let (Some(root), false) = (root, everything) {
            let files = location::files(&scope, root.arg(0), &root.place, None);
            if let Some(files) = files {
                site.push_as("fallback", false, files);
            }
        }
    });
}

fn certificates(
    table: &mut Table,
    http: &Node,
    servers: &[(&Server<'_>, &Listen)],
    default: usize,
    cx: &mut Context<'_>,
) {
    let tls = table.table("tls");
    let first = Scope(vec![http, servers[default].0.node]);
    if let Some(node) = first.find("ssl_protocols") {
        let old = node
            .args
            .iter()
            .any(|arg| matches!(arg.as_str(), "TLSv1" | "TLSv1.1" | "TLSv1.2" | "SSLv3"));
        if !old && node.args.iter().any(|arg| arg == "TLSv1.3") {
            tls.set("minimum", "1.3", &node.place);
        }
    }
    if let (Some(verify), Some(file)) = (
        first.find("ssl_verify_client"),
        first.find("ssl_client_certificate"),
    ) {
        let value = match verify.arg(0) {
            "on" => Some("required"),
            "optional" => Some("optional"),
            "off" => None,
            _ => {
                cx.report.left(
                    &verify.place,
                    verify.shown(),
                    "clients' certificates are verified, or not asked for",
                );
                None
            }
        };
        if let Some(value) = value {
            tls.set("client_auth", value, &verify.place);
            tls.set("client_authorities", file.arg(0), &file.place);
        }
    }
    let order = std::iter::once(default).chain((0..servers.len()).filter(|at| *at != default));
    let mut seen: Vec<String> = Vec::new();
    for at in order {
        let scope = Scope(vec![http, servers[at].0.node]);
        let keys = scope.all("ssl_certificate_key");
        for (i, node) in scope.all("ssl_certificate").iter().enumerate() {
            if seen.iter().any(|file| file == node.arg(0)) {
                continue;
            }
            seen.push(node.arg(0).to_owned());
            let mut certificate = Table::one_of("certificate", &node.place);
            certificate.set("certificate", node.arg(0), &node.place);
            match keys.get(i) {
                Some(key) => _ = certificate.set("key", key.arg(0), &key.place),
                None => _ = certificate.set("key", node.arg(0), &node.place),
            }
            tls.push(certificate);
        }
    }
}

fn limits(
    table: &mut Table,
    http: &Node,
    servers: &[(&Server<'_>, &Listen)],
    default: usize,
    cx: &mut Context<'_>,
) {
    let first = Scope(vec![http, servers[default].0.node]);
    let times = [
        ("client_header_timeout", "headers"),
        ("client_body_timeout", "body_idle"),
        ("keepalive_timeout", "keep_alive"),
        ("send_timeout", "send"),
    ];
    for (name, key) in times {
        let Some(node) = first.find(name) else {
            continue;
        };
        match lex::time(node.arg(0)).filter(|time| *time > 0) {
            Some(time) => {
                _ = table
                    .table("timeouts")
                    .set(key, draft::duration(time), &node.place)
            }
            None => cx.report.left(
                &node.place,
                node.shown(),
                "is no time: 0 has no counterpart",
            ),
        }
    }
    let Some(node) = first.find("client_max_body_size") else {
        return;
    };
    match lex::size(node.arg(0)) {
        Some(0) => _ = table.table("limits").set("body_bytes", false, &node.place),
        Some(bytes) => _ = table.table("limits").set("body_bytes", bytes, &node.place),
        None => cx.report.left(&node.place, node.shown(), "is no size"),
    }
    for (server, _) in servers {
        let others = server.node.inside().iter().flat_map(|n| {
            let inner = n.inside().iter();
            inner
                .chain(std::iter::once(n))
                .filter(|n| n.name == "client_max_body_size" && n.place != node.place)
        });
        for other in others {
            let reason = "it is the same for a whole frontend: that of its default server is taken";
            cx.report.left(&other.place, other.shown(), reason);
        }
    }
}

/// A server of `stream`.
pub fn steered(server: &Node, root: &mut Table, cx: &mut Context<'_>) {
    let Some(pass) = server.inside().iter().find(|n| n.name == "proxy_pass") else {
        cx.report
            .left(&server.place, "server", "it has no proxy_pass");
        return;
    };
    for node in server.inside() {
        if !matches!(node.name.as_str(), "listen" | "proxy_pass") {
            let reason = "connections are steered in the kernel: nothing looks into them";
            cx.report.left(&node.place, node.shown(), reason);
        }
    }
    let pool = match cx.pools.get(pass.arg(0)) {
        Some(pool) => pool.clone(),
        None => match pass::direct(pass, pass.arg(0), 0, cx) {
            Ok(pool) => pool,
            Err(reason) => {
                cx.report.left(&pass.place, pass.shown(), reason);
                return;
            }
        },
    };
    for line in server.inside().iter().filter(|n| n.name == "listen") {
        let Some(listen) = listen(line, &mut cx.report) else {
            continue;
        };
        if listen.tls || listen.proxy {
            let reason = "connections are steered in the kernel, which ends no TLS and reads no PROXY header";
            cx.report.left(&line.place, line.shown(), reason);
            continue;
        }
        let Some(ip) = listen
            .ip
            .filter(|ip| !ip.is_unspecified())
            .or(cx.options.address)
        else {
            let reason = "connections are steered in the kernel, which needs the very address that clients connect to: use --address";
            cx.report.left(&line.place, line.shown(), reason);
            continue;
        };
        let reason = "it is `mode = \"xdp\"`: servers see the clients' addresses, and their way back has to lead through this \
                      host, or the pool needs `snat`; write the right `interfaces`";
        cx.report.note(&line.place, line.shown(), reason);
        cx.steered = true;
        let mut table = Table::one_of("frontend", &server.place);
        table
            .set_own("name", cx.names.unique(&format!("port-{}", listen.port)))
            .set_own("mode", "xdp");
        table.set("address", names::listen(Some(ip), listen.port), &line.place);
        if line.args.iter().any(|arg| arg == "udp") {
            table.set("protocol", "udp", &line.place);
        }
        table.set("pool", pool.as_str(), &pass.place);
        root.push(table);
    }
}
