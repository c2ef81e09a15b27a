//! `server` lines (configuration manual, 5.2).

use std::net::SocketAddr;

use super::Context;
use super::lex::Line;
use crate::import::draft::Table;
use crate::import::names::{self, Names};
use crate::import::source::Place;

/// A server as it is written.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: SocketAddr,
    /// The line.
    pub place: Place,
    pub weight: Option<String>,
    pub maxconn: Option<String>,
    pub cookie: Option<String>,
    pub backup: bool,
    pub disabled: bool,
    pub check: bool,
    pub check_ssl: bool,
    pub inter: Option<String>,
    pub fastinter: Option<String>,
    pub fall: Option<String>,
    pub rise: Option<String>,
    pub port: Option<String>,
    pub slowstart: Option<String>,
    pub proto: Option<String>,
    pub send_proxy: Option<&'static str>,
    pub tls: bool,
    pub verify: Option<String>,
    pub verifyhost: Option<String>,
    pub sni: Option<String>,
    pub authorities: Option<String>,
    pub certificate: Option<String>,
}

/// Options that have a value and no counterpart.
const VALUED: [&str; 27] = [
    "id",
    "downinter",
    "addr",
    "agent-port",
    "agent-inter",
    "agent-addr",
    "agent-send",
    "init-addr",
    "resolvers",
    "resolve-prefer",
    "resolve-net",
    "resolve-opts",
    "on-marked-down",
    "on-marked-up",
    "source",
    "track",
    "redir",
    "ciphers",
    "ciphersuites",
    "maxqueue",
    "minconn",
    "pool-max-conn",
    "pool-purge-delay",
    "pool-low-conn",
    "max-reuse",
    "socks4",
    "tcp-ut",
];

/// Reads a line; `words` are its options, those of `default-server` first.
pub fn read(line: &Line, words: &[String], cx: &mut Context<'_>) -> Option<Server> {
    let name = line.word(1).to_owned();
    let what = format!("server {name}");
    let address = match address(line.word(2), cx) {
        Ok(address) => address,
        Err(reason) => {
            cx.report.left(&line.place, what, reason);
            return None;
        }
    };
    let mut server = Server {
        name,
        address,
        place: line.place.clone(),
        weight: None,
        maxconn: None,
        cookie: None,
        backup: false,
        disabled: false,
        check: false,
        check_ssl: false,
        inter: None,
        fastinter: None,
        fall: None,
        rise: None,
        port: None,
        slowstart: None,
        proto: None,
        send_proxy: None,
        tls: false,
        verify: None,
        verifyhost: None,
        sni: None,
        authorities: None,
        certificate: None,
    };
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().map(str::to_owned);
        match word {
            "weight" => server.weight = value(),
            "maxconn" => server.maxconn = value(),
            "cookie" => server.cookie = value(),
            "backup" => server.backup = true,
            "disabled" => server.disabled = true,
            "enabled" => server.disabled = false,
            "check" => server.check = true,
            "no-check" => server.check = false,
            "check-ssl" => server.check_ssl = true,
            "inter" => server.inter = value(),
            "fastinter" => server.fastinter = value(),
            "fall" => server.fall = value(),
            "rise" => server.rise = value(),
            "port" => server.port = value(),
            "slowstart" => server.slowstart = value(),
            "send-proxy" => server.send_proxy = Some("v1"),
            "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                server.send_proxy = Some("v2")
            }
            "ssl" => server.tls = true,
            "verify" => server.verify = value(),
            "verifyhost" => server.verifyhost = value(),
            "ca-file" => server.authorities = value(),
            "crt" => server.certificate = value(),
            "proto" | "alpn" => {
                let proto = value().unwrap_or_default();
                if proto.split(',').any(|p| p == "h2") {
                    server.proto = Some("http2".to_owned());
                }
            }
            "sni" => {
                let text = value().unwrap_or_default();
                match text
                    .strip_prefix("str(")
                    .and_then(|rest| rest.strip_suffix(')'))
                {
                    Some(name) => server.sni = Some(name.to_owned()),
                    None => {
                        let reason =
                            "the name that is asked for is fixed text: `[pool.tls] server_name`";
                        cx.report
                            .left(&line.place, format!("{what} sni {text}"), reason);
                    }
                }
            }
            "check-sni" | "check-alpn" | "check-proto" => {
                value();
                // Checks ask for the name that requests ask for.
            }
            "observe" | "error-limit" | "on-error" => {
                let text = value().unwrap_or_default();
                let reason = "failures of real requests are observed in any case: `[pool.observe]`";
                cx.report
                    .left(&line.place, format!("{what} {word} {text}"), reason);
            }
            "agent-check" | "check-send-proxy" | "check-via-socks4" | "tfo" | "allow-0rtt"
            | "no-verifyhost" | "non-stick" | "no-ssl-reuse" | "no-tls-tickets" | "tls-tickets"
            | "no-sslv3" | "no-tlsv10" | "no-tlsv11" | "force-tlsv12" | "ssl-reuse"
            | "no-backup" | "no-send-proxy" | "no-ssl" => {
                cx.report.left(
                    &line.place,
                    format!("{what} {word}"),
                    "there is nothing like it, or it is always so",
                );
            }
            word if VALUED.contains(&word) => {
                let text = value().unwrap_or_default();
                let reason = match word {
                    "track" | "addr" => {
                        "a backend is checked where requests go, or at `[pool.check] port`"
                    }
                    "redir" => "clients are redirected by mounts: `redirect = { .. }`",
                    "maxqueue" | "minconn" => "the queue is the pool's: `[pool.queue] length`",
                    "resolvers" | "init-addr" | "resolve-prefer" => {
                        "names are not resolved while it runs"
                    }
                    _ => "there is nothing like it",
                };
                cx.report
                    .left(&line.place, format!("{what} {word} {text}"), reason);
            }
            word => cx.report.left(
                &line.place,
                format!("{what} {word}"),
                "there is nothing like it",
            ),
        }
    }
    Some(server)
}

fn address(text: &str, cx: &Context<'_>) -> Result<SocketAddr, String> {
    let text = ["ipv4@", "ipv6@", "tcp4@", "tcp6@", "tcp@"]
        .iter()
        .find_map(|kind| text.strip_prefix(kind))
        .unwrap_or(text);
    if text.starts_with(['/', '@']) || text.contains('@') {
        return Err("backends are addresses and ports, not Unix sockets".to_owned());
    }
    let (host, port) = names::split_port(text, true);
    let port =
        port.ok_or("it has no port: the one that the client connected to is not known before")?;
    if port.starts_with(['+', '-']) {
        return Err("its port depends on the client's: write it".to_owned());
    }
    let port = match port.parse::<u16>() {
        Ok(port @ 1..) => port,
        _ => return Err(format!("{port} is no port")),
    };
    names::server(host, port, cx.options)
}

/// The backend of a server.
pub fn backend(
    server: &Server,
    names: &mut Names,
    priority: u64,
    http: bool,
    cx: &mut Context<'_>,
) -> Table {
    let place = &server.place;
    let what = |word: &str| format!("server {} {word}", server.name);
    let mut table = Table::one_of("backend", place);
    table.set_own("name", names.unique(&server.name));
    table.set("address", server.address.to_string(), place);
    if let Some(weight) = &server.weight {
        match weight.parse::<u64>() {
            Ok(weight) => _ = table.set("weight", weight, place),
            Err(_) => cx.report.left(place, what("weight"), "is no number"),
        }
    }
    if server.disabled {
        table.set("activation", "stopped", place);
    }
    if !http {
        if server.backup {
            let reason = "of connections that are steered in the kernel, all backends get a share: it is stopped (`balancer activate`)";
            cx.report.left(place, what("backup"), reason);
            table.set("activation", "stopped", place);
        }
        if server.maxconn.is_some() {
            cx.report.left(
                place,
                what("maxconn"),
                "connections that are steered in the kernel are not limited",
            );
        }
        return table;
    }
    if let Some(cookie) = &server.cookie {
        table.set("route", cookie.as_str(), place);
    }
    if priority > 0 {
        table.set("priority", priority, place);
    }
    match server
        .maxconn
        .as_deref()
        .map(|text| (text.parse::<u64>(), text))
    {
        Some((Ok(number @ 1..), _)) => _ = table.set("max_connections", number, place),
        Some((Ok(0), _)) | None => {}
        Some((Err(_), text)) => {
            cx.report
                .left(place, what(&format!("maxconn {text}")), "is no number")
        }
    }
    table
}
