//! Meaning of single values: durations, addresses, ranges, names, paths. Each
//! function gives the value or says what is wrong with the text and what would
//! be right; none knows which key or place the text comes from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::findings::Mistake;

/// Units of durations, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
/// Longest path of a Unix socket: `sun_path` with its terminating zero is 108 bytes.
const SOCKET_PATH_MAX: usize = 107;
/// Longest interface name: `IFNAMSIZ` with its terminating zero is 16 bytes.
const INTERFACE_MAX: usize = 15;
/// Longest name of a frontend, pool or backend.
const NAME_MAX: usize = 64;

/// A duration such as `1h30m`, within a range.
pub(super) fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, Mistake> {
    let between = format!(
        "a duration from {} to {}",
        show_duration(*range.start()),
        show_duration(*range.end())
    );
    let millis = milliseconds(text, &between)?;
    if millis == 0 {
        return Err(Mistake::value("is zero", between));
    }
    let duration = Duration::from_millis(millis);
    if duration < *range.start() {
        return Err(Mistake::value("is too short", between));
    }
    if duration > *range.end() {
        return Err(Mistake::value("is too long", between));
    }
    Ok(duration)
}

/// Milliseconds of a duration; more than fit are as many as fit.
fn milliseconds(text: &str, between: &str) -> Result<u64, Mistake> {
    const LIST: &str = "a whole number and a unit (ms, s, m, h or d), such as";
    if text.is_empty() {
        return Err(Mistake::value("is empty", between));
    }
    if text.starts_with('-') {
        return Err(Mistake::value("is negative", between));
    }
    if text.contains(['.', ',']) {
        let what = "is not in whole numbers";
        return Err(Mistake::value(what, format!("{LIST} \"1500ms\"")));
    }
    let mut total = 0u64;
    let mut rest = text;
    // Units still allowed: each once, from the largest to the smallest.
    let mut units = &UNITS[..];
    while !rest.is_empty() {
        let digits = leading(rest, |c| c.is_ascii_digit());
        if digits.is_empty() {
            let what = "is not a duration";
            return Err(Mistake::value(what, format!("{LIST} \"30s\"")));
        }
        rest = &rest[digits.len()..];
        let unit = leading(rest, |c| !c.is_ascii_digit());
        rest = &rest[unit.len()..];
        if unit.is_empty() {
            let expected =
                format!("a unit (ms, s, m, h or d) after the number, such as \"{digits}s\"");
            return Err(Mistake::value("has no unit", expected));
        }
        let Some(at) = units.iter().position(|(name, _)| *name == unit) else {
            return Err(if UNITS.iter().any(|(name, _)| *name == unit) {
                let expected =
                    "each unit once, from the largest to the smallest, such as \"1h30m\"";
                Mistake::value("has its units in the wrong order", expected)
            } else {
                let what = format!("has the unknown unit \"{}\"", super::findings::shown(unit));
                Mistake::value(what, format!("{LIST} \"{digits}s\""))
            });
        };
        let number: u64 = digits.parse().unwrap_or(u64::MAX);
        total = total.saturating_add(number.saturating_mul(units[at].1));
        units = &units[at + 1..];
    }
    Ok(total)
}

fn leading(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    &text[..text.find(|c| !belongs(c)).unwrap_or(text.len())]
}

/// A duration in the form that the file has.
pub(super) fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut out = String::new();
    for (name, millis) in UNITS {
        if rest >= millis {
            out.push_str(&format!("{}{name}", rest / millis));
            rest %= millis;
        }
    }
    if out.is_empty() {
        out.push_str("0s");
    }
    out
}

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Answered by the balancer, in the kernel.
    Frontend,
    /// Listened on by the agent.
    Listener,
    /// A server that packets are steered to.
    Backend,
    /// A server that only the agent connects to.
    Upstream,
    /// Another node of the cluster.
    Peer,
    /// A source address to translate to.
    Snat,
}

/// An address with a port: `192.0.2.10:80`, `[2001:db8::1]:80`.
pub(super) fn socket_address(text: &str, role: Role) -> Result<SocketAddr, Mistake> {
    const EXAMPLE: &str = "an address and port such as \"192.0.2.10:80\" or \"[2001:db8::1]:80\"";
    let no_zone = |text: &str| {
        if text.contains('%') {
            Err(zone())
        } else {
            Ok(())
        }
    };
    if text.is_empty() {
        return Err(Mistake::value("is empty", EXAMPLE));
    }
    if text.contains("://") || text.contains('/') {
        return Err(Mistake::value("is a URL or a network", EXAMPLE));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let expected = format!(
            "the port as well, such as \"{}\"",
            SocketAddr::new(address, 80)
        );
        return Err(Mistake::value("has no port", expected));
    }
    let (host, port) = match text.rsplit_once(':') {
        // The last colon of "[2001:db8::1]" is inside the brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let ip: IpAddr = match bracketed {
        Some(inner) => {
            no_zone(inner)?;
            let expected = "an IPv6 address between the brackets, such as \"[2001:db8::1]:80\"";
            let wrong = |_| Mistake::value("has no IPv6 address in its brackets", expected);
            IpAddr::V6(inner.parse().map_err(wrong)?)
        }
        None if host.contains(':') || host.contains(['[', ']']) => {
            no_zone(host)?;
            let expected = "an IPv6 address in brackets and a port, such as \"[2001:db8::1]:80\"";
            return Err(Mistake::value("is not an address and port", expected));
        }
        None => IpAddr::V4(host.parse().map_err(|_| not_ipv4(host))?),
    };
    let Some(port) = port else {
        let expected = format!("the port as well, such as \"{}\"", SocketAddr::new(ip, 80));
        return Err(Mistake::value("has no port after the address", expected));
    };
    let port_expected = "a port from 1 to 65535 after the last colon";
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = match port.parse() {
        Ok(0) => return Err(Mistake::value("has port 0", port_expected)),
        Ok(port) if digits => port,
        _ if digits => return Err(Mistake::value("has a port above 65535", port_expected)),
        _ => return Err(Mistake::value("has no number as its port", port_expected)),
    };
    suitable(ip, role)?;
    Ok(SocketAddr::new(ip, port))
}

/// A multicast address with a port: `239.255.79.46:7947`.
pub(super) fn multicast_group(text: &str) -> Result<SocketAddr, Mistake> {
    const EXAMPLE: &str =
        "a multicast address and port such as \"239.255.79.46:7947\" or \"[ff12::79:46]:7947\"";
    let group: SocketAddr = match text.parse() {
        Ok(group) => group,
        Err(_) => return Err(Mistake::value("is not an address and port", EXAMPLE)),
    };
    if !group.ip().is_multicast() {
        return Err(Mistake::value("is not a multicast address", EXAMPLE));
    }
    if group.port() == 0 {
        return Err(Mistake::value("has port 0", "a port from 1 to 65535"));
    }
    Ok(group)
}

/// An address without a port.
pub(super) fn ip_address(text: &str, role: Role) -> Result<IpAddr, Mistake> {
    const EXAMPLE: &str = "an address such as \"10.0.0.1\" or \"2001:db8::1\"";
    let ip: IpAddr = match text.parse() {
        Ok(ip) => ip,
        Err(_) if text.parse::<SocketAddr>().is_ok() => {
            return Err(Mistake::value("has a port", "the address alone"));
        }
        Err(_) if text.contains('%') => return Err(zone()),
        Err(_) => return Err(Mistake::value("is not an address", EXAMPLE)),
    };
    suitable(ip, role)?;
    Ok(ip)
}

fn zone() -> Mistake {
    Mistake::value(
        "has a zone",
        "an address that is valid on every interface, without `%` and a zone",
    )
}

fn not_ipv4(host: &str) -> Mistake {
    if host.is_empty() {
        return Mistake::value(
            "has no address before the port",
            "an address and port such as \"192.0.2.10:80\"",
        );
    }
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let expected =
            "four numbers from 0 to 255 without leading zeros, such as \"192.0.2.10:80\"";
        return Mistake::value("is not an IPv4 address and port", expected);
    }
    Mistake::value(
        "is a name",
        "an address: names are not resolved, so that what is balanced never depends on DNS",
    )
}

/// Refuses addresses that a packet can't go to, or not by way of the balancer.
fn suitable(ip: IpAddr, role: Role) -> Result<(), Mistake> {
    let expected = match role {
        Role::Frontend => "the address that clients connect to",
        Role::Listener => {
            "an address of this host, 0.0.0.0 for all of IPv4, or [::] for all of both"
        }
        Role::Backend | Role::Upstream => {
            "the server's own address, as it is reached over the network"
        }
        Role::Peer => "the address that the other nodes reach it at",
        Role::Snat => "an address of this host that the servers can answer to",
    };
    let what = match ip {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            let v4 = ip.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
            let expected = format!("the IPv4 address itself, {v4}");
            return Err(Mistake::value("is an IPv4-mapped IPv6 address", expected));
        }
        _ if role == Role::Listener && ip.is_unspecified() => return Ok(()),
        _ if ip.is_unspecified() => "is the unspecified address",
        _ if ip.is_multicast() => "is a multicast address",
        _ if ip.is_loopback() => match role {
            Role::Listener | Role::Upstream | Role::Peer => return Ok(()),
            Role::Backend => "is a loopback address, which steered packets can't reach",
            _ => "is a loopback address, which never comes in from the network",
        },
        IpAddr::V4(ip) if ip.is_broadcast() => "is the broadcast address",
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            "is a link-local IPv6 address, which means nothing without a zone"
        }
        _ => return Ok(()),
    };
    Err(Mistake::value(what, expected))
}

/// A range of ports such as `10000-32767`.
pub(super) fn port_range(text: &str) -> Result<(u16, u16), Mistake> {
    const EXAMPLE: &str = "two ports with a hyphen between, such as \"10000-32767\"";
    let (first, last) =
        two_numbers(text).ok_or_else(|| Mistake::value("is not a range", EXAMPLE))?;
    if first == 0 {
        return Err(Mistake::value("begins at port 0", "ports from 1 to 65535"));
    }
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else {
        return Err(Mistake::value(
            "goes beyond port 65535",
            "ports from 1 to 65535",
        ));
    };
    if first > last {
        return Err(Mistake::value("is reversed", format!("\"{last}-{first}\"")));
    }
    Ok((first, last))
}

/// Status codes such as `200` or `200-399`, both ends included.
pub(super) fn status_codes(text: &str) -> Result<(u16, u16), Mistake> {
    const EXAMPLE: &str = "a status code or a range of them, such as \"200-399\"";
    let (first, last) = text
        .parse::<u64>()
        .ok()
        .filter(|_| !text.starts_with('+'))
        .map(|code| (code, code))
        .or_else(|| two_numbers(text))
        .ok_or_else(|| Mistake::value("is not a range of status codes", EXAMPLE))?;
    let code = |n: u64| u16::try_from(n).ok().filter(|n| (100..=599).contains(n));
    let (Some(first), Some(last)) = (code(first), code(last)) else {
        let expected = "status codes from 100 to 599";
        return Err(Mistake::value("is no HTTP status", expected));
    };
    if first > last {
        let expected = format!("the lower status first: \"{last}-{first}\"");
        return Err(Mistake::value("is a reversed range", expected));
    }
    Ok((first, last))
}

fn two_numbers(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-')?;
    // `parse` takes a plus sign as well.
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// A name of a frontend, pool or backend.
pub(super) fn name(text: &str) -> Result<(), Mistake> {
    let expected = format!("1 to {NAME_MAX} characters of A-Z, a-z, 0-9, `.`, `_` and `-`");
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() {
        Err(Mistake::value("is empty", expected))
    } else if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        let c = c.escape_debug();
        Err(Mistake::value(format!("has the character `{c}`"), expected))
    } else if text.len() > NAME_MAX {
        Err(Mistake::value(
            format!("has {} characters", text.len()),
            expected,
        ))
    } else {
        Ok(())
    }
}

/// The name of a network interface, by the kernel's rules.
pub(super) fn interface(text: &str) -> Result<String, Mistake> {
    let expected =
        format!("the name of an interface: 1 to {INTERFACE_MAX} characters, such as \"eth0\"");
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/:".contains(c);
    if text.is_empty() {
        Err(Mistake::value("is empty", expected))
    } else if text.len() > INTERFACE_MAX {
        Err(Mistake::value("is too long for an interface", expected))
    } else if text == "." || text == ".." || text.contains(bad) {
        Err(Mistake::value(
            "can't be the name of an interface",
            expected,
        ))
    } else {
        Ok(text.to_owned())
    }
}

/// An absolute path. `example` is a good one.
pub(super) fn path(text: &str, example: &str) -> Result<PathBuf, Mistake> {
    let expected = format!("an absolute path such as \"{example}\"");
    if text.is_empty() {
        Err(Mistake::value("is empty", expected))
    } else if text.contains('\0') {
        Err(Mistake::value("has a zero byte in it", expected))
    } else if !text.starts_with('/') {
        Err(Mistake::value("is a relative path", expected))
    } else {
        Ok(PathBuf::from(text))
    }
}

/// The path of a Unix socket.
pub(super) fn socket_path(text: &str, example: &str) -> Result<PathBuf, Mistake> {
    let path = path(text, example)?;
    if text.len() > SOCKET_PATH_MAX {
        let what = format!("is {} bytes long", text.len());
        let expected = format!("at most {SOCKET_PATH_MAX} bytes, the system's limit for a socket");
        return Err(Mistake::value(what, expected));
    }
    if text.ends_with('/') {
        let expected = format!("the path of the socket itself, such as \"{example}\"");
        return Err(Mistake::value("is a directory", expected));
    }
    Ok(path)
}

/// Path and query of a request, by the characters of RFC 3986.
pub(super) fn request_path(text: &str) -> Result<String, Mistake> {
    let expected = "a path such as \"/health\"";
    if !text.starts_with('/') {
        return Err(Mistake::value("does not begin with `/`", expected));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?%".contains(c);
    if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        let what = format!("has the character `{}`", c.escape_debug());
        let expected = match c {
            '#' => "no fragment: servers never see it",
            _ => "a path with such characters percent-encoded, as in \"/a%20b\"",
        };
        return Err(Mistake::value(what, expected));
    }
    let hex = |s: &str| s.len() >= 2 && s.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if text.split('%').skip(1).any(|after| !hex(after)) {
        let expected = "two hexadecimal digits after each `%`, as in \"/a%20b\"";
        return Err(Mistake::value("has a `%` that encodes nothing", expected));
    }
    Ok(text.to_owned())
}

/// A `Host` header: a name or address, with or without a port.
pub(super) fn host(text: &str) -> Result<String, Mistake> {
    let expected = "a host name such as \"www.example.org\"";
    if text.is_empty() {
        return Err(Mistake::value("is empty", expected));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~:[]".contains(c);
    if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        let what = format!(
            "has the character `{}`, which no host has",
            c.escape_debug()
        );
        return Err(Mistake::value(what, expected));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::MAX;

    fn millis(text: &str) -> Option<u128> {
        duration(text, ALL).ok().map(|d| d.as_millis())
    }

    #[test]
    fn durations_add_up() {
        assert_eq!(millis("1ms"), Some(1));
        assert_eq!(millis("90s"), Some(90_000));
        assert_eq!(millis("1m30s"), Some(90_000));
        assert_eq!(millis("1d2h3m4s5ms"), Some(93_784_005));
        for wrong in ["1", "s", "1s1", "1s1s", "1 s", "+1s", "1S", "١s", "1h30"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn durations_are_shown_as_they_are_read(n in 1..u64::MAX) {
            let text = show_duration(Duration::from_millis(n));
            prop_assert_eq!(millis(&text), Some(u128::from(n)));
        }

        #[test]
        fn requests_take_every_path_and_host(path in "/[ -~]{0,20}", name in "[ -~]{1,20}") {
            if let Ok(path) = request_path(&path) {
                prop_assert!(path.parse::<hyper::http::uri::PathAndQuery>().is_ok(), "{path}");
            }
            if let Ok(name) = host(&name) {
                prop_assert!(hyper::header::HeaderValue::from_str(&name).is_ok(), "{name}");
            }
        }

        #[test]
        fn addresses_are_shown_as_they_are_read(ip: IpAddr, port in 1..u16::MAX) {
            let address = SocketAddr::new(ip, port);
            if let Ok(read) = socket_address(&address.to_string(), Role::Backend) {
                prop_assert_eq!(read, address);
            } else {
                prop_assert!(suitable(ip, Role::Backend).is_err(), "{}", address);
            }
        }
    }
}
