//! `bind` lines (configuration manual, 5.1): where a frontend listens.

use std::net::{IpAddr, Ipv6Addr};

use super::lex::Line;
use crate::import::source::Place;
use crate::import::{Report, names};

/// Ports that one range may have.
const RANGE_MAX: u16 = 64;

/// One address that is listened on.
#[derive(Clone, Debug)]
pub struct Bind {
    /// `None` is every IPv4 address.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// PEM files with certificates and keys.
    pub certificates: Vec<String>,
    /// Protocols that ALPN agrees on.
    pub alpn: Option<String>,
    /// A PROXY header has to come first.
    pub accept_proxy: bool,
    /// `optional` or `required`, and the authorities.
    pub verify: Option<String>,
    /// Authorities of clients.
    pub authorities: Option<String>,
    /// Most connections.
    pub maxconn: Option<String>,
    /// Oldest version of TLS: `1.2` or `1.3`.
    pub minimum: Option<&'static str>,
    /// The line.
    pub place: Place,
}

/// Reads a line; what can't be listened on is reported.
pub fn read(line: &Line, report: &mut Report) -> Vec<Bind> {
    let mut bind = Bind {
        ip: None,
        port: 0,
        tls: false,
        certificates: Vec::new(),
        alpn: None,
        accept_proxy: false,
        verify: None,
        authorities: None,
        maxconn: None,
        minimum: None,
        place: line.place.clone(),
    };
    options(line, &mut bind, report);
    let mut binds = Vec::new();
    for address in line.word(1).split(',') {
        match addresses(address) {
            Ok(found) => binds.extend(found.into_iter().map(|(ip, port)| Bind {
                ip,
                port,
                ..bind.clone()
            })),
            Err(reason) => report.left(&line.place, format!("bind {address}"), reason),
        }
    }
    binds
}

fn addresses(text: &str) -> Result<Vec<(Option<IpAddr>, u16)>, String> {
    let not_network = [
        "unix@",
        "abns@",
        "abnsz@",
        "fd@",
        "sockpair@",
        "uxst@",
        "uxdg@",
        "rhttp@",
    ];
    if text.starts_with('/') || not_network.iter().any(|kind| text.starts_with(kind)) {
        return Err(
            "frontends listen on addresses and ports, not on Unix sockets or descriptors"
                .to_owned(),
        );
    }
    let quic = ["quic4@", "quic6@"];
    if quic.iter().any(|kind| text.starts_with(kind)) {
        return Err("HTTP/3 is not spoken: clients use HTTP/2 without it".to_owned());
    }
    let mut six = false;
    let mut rest = text;
    for (kind, is_six) in [
        ("ipv4@", false),
        ("ipv6@", true),
        ("tcp4@", false),
        ("tcp6@", true),
        ("tcp@", false),
    ] {
        if let Some(after) = text.strip_prefix(kind) {
            (rest, six) = (after, is_six);
        }
    }
    let (host, ports) = names::split_port(rest, true);
    let ports = ports
        .filter(|ports| !ports.is_empty())
        .ok_or("there is no port: write one behind `:`")?;
    let ip = match host {
        "" | "*" | "0.0.0.0" => six.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        "localhost" => Some(std::net::Ipv4Addr::LOCALHOST.into()),
        host => {
            let ip = host.parse::<IpAddr>();
            Some(ip.map_err(|_| format!("{host} is no address: names are not resolved"))?)
        }
    };
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("{text} is no port")),
    };
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(ports)?, number(ports)?),
    };
    if first > last || last - first >= RANGE_MAX {
        return Err(format!(
            "{ports} is not a range of at most {RANGE_MAX} ports: a frontend has one port"
        ));
    }
    Ok((first..=last).map(|port| (ip, port)).collect())
}

fn options(line: &Line, bind: &mut Bind, report: &mut Report) {
    let mut words = line.from(2).iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut left =
            |what: String, reason: &str| report.left(&line.place, format!("bind {what}"), reason);
        match word {
            "ssl" => bind.tls = true,
            "crt" => bind.certificates.extend(words.next().map(str::to_owned)),
            "alpn" => bind.alpn = words.next().map(str::to_owned),
            "accept-proxy" => bind.accept_proxy = true,
            "verify" => bind.verify = words.next().filter(|w| *w != "none").map(str::to_owned),
            "ca-file" | "ca-verify-file" => bind.authorities = words.next().map(str::to_owned),
            "maxconn" => bind.maxconn = words.next().map(str::to_owned),
            "ssl-min-ver" => bind.minimum = version(words.next().unwrap_or_default()),
            "no-tlsv12" => bind.minimum = Some("1.3"),
            "no-sslv3" | "no-tlsv10" | "no-tlsv11" => {
                // TLS 1.2 is the oldest that is spoken.
            }
            "crt-list" => {
                let list = words.next().unwrap_or_default();
                left(
                    format!("crt-list {list}"),
                    "name its certificates as `[[frontend.tls.certificate]]`",
                );
            }
            "ciphers" | "ciphersuites" | "curves" | "ecdhe" | "ssl-max-ver" | "sigalgs" => {
                let value = words.next().unwrap_or_default();
                left(
                    format!("{word} {value}"),
                    "TLS 1.2 and 1.3 with strong suites only, which are not chosen one by one",
                );
            }
            "no-tlsv13" | "force-tlsv12" | "force-tlsv13" | "force-tlsv10" | "force-tlsv11"
            | "force-sslv3" => {
                left(
                    word.to_owned(),
                    "the oldest version can be chosen (`[frontend.tls] minimum`), not the newest",
                );
            }
            "strict-sni" => left(
                word.to_owned(),
                "clients that ask for an unknown name get the first certificate",
            ),
            "interface" => {
                let name = words.next().unwrap_or_default();
                left(
                    format!("{word} {name}"),
                    "it listens on addresses: name that of the interface",
                );
            }
            "v6only" | "v4v6" => match (word, bind.ip) {
                ("v4v6", _) => {}
                _ => left(
                    word.to_owned(),
                    "`[::]` takes IPv4 as well: name the IPv6 addresses",
                ),
            },
            "proto" => {
                let proto = words.next().unwrap_or_default();
                bind.alpn = Some(proto.to_owned());
            }
            "name" | "id" | "level" | "mode" | "user" | "group" | "uid" | "gid" | "process"
            | "thread" | "backlog" | "nice" | "shards" | "guid-prefix" => {
                let value = words.next().unwrap_or_default();
                left(format!("{word} {value}"), "not needed here");
            }
            "mss"
            | "tcp-ut"
            | "namespace"
            | "tls-ticket-keys"
            | "severity-output"
            | "expose-fd"
            | "ca-ignore-err"
            | "crt-ignore-err"
            | "crl-file"
            | "accept-netscaler-cip" => {
                let value = words.next().unwrap_or_default();
                left(format!("{word} {value}"), "there is nothing like it");
            }
            word => left(word.to_owned(), "there is nothing like it"),
        }
    }
}

/// The oldest version of TLS in the configuration's words.
pub fn version(text: &str) -> Option<&'static str> {
    match text {
        "TLSv1.3" => Some("1.3"),
        // Older ones are not spoken.
        _ => Some("1.2"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_many_forms() {
        let shown = |text: &str| {
            let found = addresses(text)?;
            let found = found.into_iter().map(|(ip, port)| names::listen(ip, port));
            Ok::<_, String>(found.collect::<Vec<_>>().join(" "))
        };
        let table = [
            ("*:80", "0.0.0.0:80"),
            (":80", "0.0.0.0:80"),
            ("10.0.0.1:80-82", "10.0.0.1:80 10.0.0.1:81 10.0.0.1:82"),
            (":::80", "[::]:80"),
            ("[::]:80", "[::]:80"),
            ("ipv6@:80", "[::]:80"),
            ("2001:db8::1:443", "[2001:db8::1]:443"),
            ("ipv4@10.0.0.1:443", "10.0.0.1:443"),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text).unwrap(), expected, "{text}");
        }
        for no in [
            "/run/x.sock",
            "abns@x",
            "*",
            "*:0",
            "*:70000",
            "name:80",
            "*:90-80",
            "*:1-65535",
            "fd@3",
        ] {
            assert!(shown(no).is_err(), "{no}");
        }
    }
}
