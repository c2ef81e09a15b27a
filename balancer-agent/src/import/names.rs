//! Names, hosts and addresses of foreign files as this configuration writes them.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use super::Options;

/// Longest name that the configuration takes.
const NAME_MAX: usize = 64;

/// Names that are given away already.
#[derive(Debug, Default)]
pub struct Names(HashSet<String>);

impl Names {
    /// A name like this one that nobody has.
    pub fn unique(&mut self, wanted: &str) -> String {
        let base = fit(wanted);
        let mut name = base.clone();
        let mut number = 2;
        while !self.0.insert(name.clone()) {
            let suffix = format!("-{number}");
            let most = NAME_MAX - suffix.len();
            name = format!("{}{suffix}", &base[..base.len().min(most)]);
            number += 1;
        }
        name
    }
}

/// The name with `-` for what may not be in it; ASCII.
pub fn fit(name: &str) -> String {
    let fit = name.chars().map(|c| match c {
        c if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
        _ => '-',
    });
    let fit: String = fit.take(NAME_MAX).collect();
    match fit.is_empty() {
        true => "unnamed".to_owned(),
        false => fit,
    }
}

/// A host of a site; `None` when it can't be one. Lower case, without port and final dot.
pub fn host(text: &str) -> Option<String> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let name = text.strip_prefix("*.").unwrap_or(&text);
    if name.starts_with('[') {
        let ip = name.strip_prefix('[')?.strip_suffix(']')?;
        ip.parse::<Ipv6Addr>().ok()?;
        return (name.len() == text.len()).then_some(text);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let labels = name.split('.').all(|label| (1..64).contains(&label.len()));
    (name.len() <= 253 && labels && name.chars().all(allowed)).then_some(text)
}

/// A host with its port, without the port.
pub fn without_port(text: &str) -> &str {
    match text.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => text,
    }
}

/// `host:port`, `[ipv6]:port`, or a host alone; bare IPv6 addresses with a port as HAProxy
/// writes them only with `bare`.
pub fn split_port(text: &str, bare: bool) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix('[') {
        if let Some((host, rest)) = rest.split_once(']') {
            return (host, rest.strip_prefix(':'));
        }
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) if bare || !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

/// The address of a server, looked up where the options say so.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn server(host: &str, port: u16, options: &Options) -> Result<SocketAddr, String> {
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = plain.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    if !options.resolve {
        return Err(format!(
            "{host} is a name, and backends have addresses: write its address into the file, or use --resolve"
        ));
    }
    let found = (host, port).to_socket_addrs();
    let mut found = found.map_err(|error| format!("{host} can't be looked up: {error}"))?;
    found.next().ok_or_else(|| format!("{host} has no address"))
}

/// An address and port as the configuration writes it, where `None` is every IPv4 address.
pub fn listen(ip: Option<IpAddr>, port: u16) -> String {
    SocketAddr::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let mut names = Names::default();
        assert_eq!(names.unique("a b"), "a-b");
        assert_eq!(names.unique("a:b"), "a-b-2");
        assert_eq!(names.unique("\u{fc}"), "-");
        assert_eq!(names.unique(""), "unnamed");
        let long = names.unique(&"x".repeat(100));
        assert_eq!(long.len(), 64);
        assert_eq!(names.unique(&"x".repeat(100)).len(), 64);
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        assert_eq!(host("WWW.Example.ORG.").as_deref(), Some("www.example.org"));
        assert_eq!(host("*.example.org").as_deref(), Some("*.example.org"));
        assert_eq!(host("www.*"), None);
        assert_eq!(host("*"), None);
        assert_eq!(without_port("a:80"), "a");
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(split_port("[::1]:80", false), ("::1", Some("80")));
        assert_eq!(split_port("::1:80", true), ("::1", Some("80")));
        assert_eq!(split_port("::1", false), ("::1", None));
        assert_eq!(split_port("a:80", false), ("a", Some("80")));
    }
}
