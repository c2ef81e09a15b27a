//! Meaning of single values of the web tier: host and path patterns, names and
//! values of headers, cookies, networks. As in [`crate::config::value`].

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::config::findings::{Mistake, shown};
use crate::model::http::HostPattern;

/// Longest pattern, location or prefix, in bytes.
const PATH_MAX: usize = 1024;
/// Longest name of a cookie, path parameter or route, in bytes.
const TOKEN_MAX: usize = 64;
/// Longest value of a header, in bytes.
const HEADER_MAX: usize = 4096;
/// RFC 1035, 2.3.4: without the root's dot.
const HOST_MAX: usize = 253;

/// Header fields that belong to one connection (RFC 9110, 7.6.1) or to the
/// framing of a message, which the proxy alone decides.
const CONNECTION_HEADERS: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A host of a site, as in `www.example.org` or `*.example.org`.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, Mistake> {
    let expected = "a host name such as \"www.example.org\" or \"*.example.org\"";
    let wrong = |what: String| Err(Mistake::value(what, expected));
    if text.is_empty() {
        return wrong("is empty".into());
    }
    if text == "*" {
        let expected = "no `hosts` at all: a site without them is for every host";
        return Err(Mistake::value("is every host", expected));
    }
    if text.contains("://") || text.contains('/') {
        return wrong("is a URL".into());
    }
    // IPv6 addresses are in brackets in a Host header, and have no wildcards.
    if let Some(inner) = text.strip_prefix('[') {
        let address = inner
            .strip_suffix(']')
            .map(str::parse::<std::net::Ipv6Addr>);
        return match address {
            Some(Ok(ip)) => Ok(HostPattern::Exact(format!("[{ip}]").into())),
            _ => {
                let expected =
                    "an IPv6 address in brackets, without a port, such as \"[2001:db8::1]\"";
                Err(Mistake::value(
                    "has no IPv6 address in its brackets",
                    expected,
                ))
            }
        };
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        let expected = format!("the address in brackets, as browsers send it: \"[{text}]\"");
        return Err(Mistake::value("has no brackets", expected));
    }
    if let Some((host, _)) = text.split_once(':') {
        let expected = format!(
            "the name alone, \"{}\": the port is the frontend's",
            shown(host)
        );
        return Err(Mistake::value("has a port", expected));
    }
    let (name, wildcard) = match text.strip_prefix("*.") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    if name.contains('*') {
        let expected = "a wildcard only as the whole first label, as in \"*.example.org\"";
        return Err(Mistake::value("has a `*` within it", expected));
    }
    host_name(name, expected)?;
    let name = name.to_ascii_lowercase();
    Ok(match wildcard {
        true => HostPattern::Suffix(format!(".{name}").into()),
        false => HostPattern::Exact(name.into()),
    })
}

/// A name in the DNS, or an IPv4 address.
fn host_name(name: &str, expected: &str) -> Result<(), Mistake> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if let Some(c) = name.chars().find(|c| !allowed(*c)) {
        let what = format!(
            "has the character `{}`, which no host has",
            c.escape_debug()
        );
        let expected = match c.is_ascii() {
            true => expected,
            false => "the name as the DNS has it, in ASCII, such as \"xn--bcher-kva.example\"",
        };
        return Err(Mistake::value(what, expected));
    }
    if name.split('.').any(str::is_empty) {
        return Err(Mistake::value("has an empty label", expected));
    }
    if name.len() > HOST_MAX || name.split('.').any(|label| label.len() > 63) {
        return Err(Mistake::value("is longer than a name can be", expected));
    }
    Ok(())
}

/// The name that a certificate has to have: a DNS name or an address.
pub(super) fn server_name(text: &str) -> Result<Box<str>, Mistake> {
    let expected = "a name such as \"app.example.org\", or an address";
    if text.is_empty() {
        return Err(Mistake::value("is empty", expected));
    }
    if text.parse::<IpAddr>().is_err() {
        host_name(text, expected)?;
        if rustls_pki_types::DnsName::try_from(text).is_err() {
            return Err(Mistake::value("can't be in a certificate", expected));
        }
    }
    Ok(text.into())
}

/// A pattern of a mount or an exclusion. It is compared with decoded, normalised
/// paths, so that one which no such path can match is a mistake.
pub(super) fn pattern(text: &str) -> Result<Box<str>, Mistake> {
    let expected = "a path that begins with `/`, in which `*` is any characters and `?` is one, such as \"/images/*\"";
    if text.is_empty() {
        return Err(Mistake::value("is empty", expected));
    }
    if !text.starts_with('/') {
        return Err(Mistake::value("does not begin with `/`", expected));
    }
    if text.len() > PATH_MAX {
        let expected = format!("at most {PATH_MAX} bytes");
        return Err(Mistake::value("is too long", expected));
    }
    if text.chars().any(char::is_control) {
        return Err(Mistake::value("has a control character", expected));
    }
    let never = |what: &str, expected: &str| {
        Err(Mistake::value(format!("matches nothing: {what}"), expected))
    };
    if text.contains(';') {
        return never(
            "path parameters are taken off before paths are compared",
            "the path without `;` and what follows it",
        );
    }
    if text.contains("//") {
        return never("paths are compared with `//` as one `/`", "single slashes");
    }
    if text
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        return never(
            "`.` and `..` are resolved before paths are compared",
            "the path that is meant",
        );
    }
    if encoded(text) {
        return never(
            "paths are compared decoded",
            "the characters themselves instead of `%` and digits",
        );
    }
    Ok(text.into())
}

/// Whether a `%` with two hexadecimal digits is in it.
fn encoded(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes
        .windows(3)
        .any(|w| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit())
}

/// A prefix of paths that is taken off or put on: whole segments.
pub(super) fn prefix(text: &str) -> Result<Box<str>, Mistake> {
    let expected = "a path that begins with `/` and does not end with it, such as \"/app\"";
    if !text.starts_with('/') {
        return Err(Mistake::value("does not begin with `/`", expected));
    }
    if text == "/" {
        return Err(Mistake::value("changes nothing", expected));
    }
    if text.ends_with('/') {
        return Err(Mistake::value("ends with `/`", expected));
    }
    if text.len() > PATH_MAX {
        return Err(Mistake::value(
            "is too long",
            format!("at most {PATH_MAX} bytes"),
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,=:@/".contains(c);
    if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        let what = format!("has the character `{}`", c.escape_debug());
        let expected = "letters, digits and -._~!$&'()*+,=:@, which stand for themselves in a path";
        return Err(Mistake::value(what, expected));
    }
    if text
        .split('/')
        .skip(1)
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return Err(Mistake::value(
            "is not normalised",
            "a path without `//`, `.` and `..`",
        ));
    }
    Ok(text.into())
}

/// Where a redirect leads.
pub(super) fn location(text: &str) -> Result<Box<str>, Mistake> {
    let expected = "a URL or a path, such as \"https://{host}{path}{query}\" or \"/new/\"";
    if text.is_empty() {
        return Err(Mistake::value("is empty", expected));
    }
    if text.len() > PATH_MAX {
        return Err(Mistake::value(
            "is too long",
            format!("at most {PATH_MAX} bytes"),
        ));
    }
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, behind)) = after.split_once('}') else {
            return Err(Mistake::value("has a `{` that is not closed", expected));
        };
        if !["host", "path", "query"].contains(&name) {
            let what = format!("has the unknown `{{{}}}`", shown(name));
            return Err(Mistake::value(what, "`{host}`, `{path}` or `{query}`"));
        }
        plain.push_str(before);
        // What could stand there, for the looks at the whole.
        plain.push_str(match name {
            "host" => "host",
            "path" => "/path",
            _ => "",
        });
        rest = behind;
    }
    plain.push_str(rest);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?%#[]".contains(c);
    if let Some(c) = plain.chars().find(|c| !allowed(*c)) {
        let what = format!("has the character `{}`", c.escape_debug());
        let expected = "a URL with such characters percent-encoded, as in \"/a%20b\"";
        return Err(Mistake::value(what, expected));
    }
    if plain.starts_with("//") {
        let expected = "a single `/`, or \"https://\" and a host before it";
        return Err(Mistake::value(
            "begins with `//`, which browsers take for a host",
            expected,
        ));
    }
    let absolute = ["http://", "https://"]
        .iter()
        .find_map(|scheme| plain.strip_prefix(scheme));
    match absolute {
        Some(rest) if rest.is_empty() || rest.starts_with(['/', '?', '#']) => {
            Err(Mistake::value("has no host", expected))
        }
        Some(_) => Ok(text.into()),
        None if plain.starts_with('/') => Ok(text.into()),
        None => Err(Mistake::value("is neither a URL nor a path", expected)),
    }
}

/// The name of a header that may be changed or set.
pub(in crate::config) fn header_name(text: &str) -> Result<HeaderName, Mistake> {
    let expected = "the name of a header such as \"X-Frontend\"";
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| Mistake::value("is no name of a header", expected))?;
    if CONNECTION_HEADERS.contains(&name.as_str()) {
        let expected = "a header of the message: those of the connection are the proxy's own";
        return Err(Mistake::value("belongs to a single connection", expected));
    }
    if name == http::header::CONTENT_LENGTH {
        let expected = "another header: the length of a message is what it is";
        return Err(Mistake::value("frames the message", expected));
    }
    Ok(name)
}

/// The value of a header.
pub(super) fn header_value(text: &str) -> Result<HeaderValue, Mistake> {
    let expected = "visible ASCII characters, with spaces only between them";
    if text.len() > HEADER_MAX {
        return Err(Mistake::value(
            "is too long",
            format!("at most {HEADER_MAX} bytes"),
        ));
    }
    if text.trim() != text {
        return Err(Mistake::value("begins or ends with a space", expected));
    }
    if let Some(c) = text.chars().find(|c| !matches!(c, ' '..='~' | '\t')) {
        let what = format!("has the character `{}`", c.escape_debug());
        return Err(Mistake::value(what, expected));
    }
    HeaderValue::from_str(text).map_err(|_| Mistake::value("is no value of a header", expected))
}

/// A media type for `Content-Type`.
pub(super) fn content_type(text: &str) -> Result<HeaderValue, Mistake> {
    let expected = "a media type such as \"text/html; charset=utf-8\"";
    let value = header_value(text)?;
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    match essence.split_once('/') {
        Some((main, sub)) if is_token(main) && is_token(sub) => Ok(value),
        _ => Err(Mistake::value("is no media type", expected)),
    }
}

/// The value of `Strict-Transport-Security` (RFC 6797, 6.1).
pub(super) fn hsts(text: &str) -> Result<HeaderValue, Mistake> {
    let expected = "the header's value, such as \"max-age=31536000; includeSubDomains\"";
    let mut age = None;
    for part in text.split(';').map(str::trim) {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
            None => (part, None),
        };
        match (name.to_ascii_lowercase().as_str(), value) {
            ("max-age", Some(digits)) if age.is_none() => {
                let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                age = digits.parse::<u64>().ok().filter(|_| number);
                if age.is_none() {
                    return Err(Mistake::value(
                        "has no number of seconds as `max-age`",
                        expected,
                    ));
                }
            }
            ("max-age", Some(_)) => return Err(Mistake::value("has two `max-age`", expected)),
            ("includesubdomains" | "preload", None) => {}
            _ => {
                let what = format!("has the unknown directive `{}`", shown(part));
                return Err(Mistake::value(what, expected));
            }
        }
    }
    if age.is_none() {
        return Err(Mistake::value("has no `max-age`", expected));
    }
    header_value(text)
}

/// A name by RFC 9110's `token`: a cookie's, a path parameter's, a pseudonym.
pub(super) fn token(text: &str, example: &str) -> Result<Box<str>, Mistake> {
    let expected =
        format!("1 to {TOKEN_MAX} letters, digits and !#$%&'*+-.^_`|~, such as \"{example}\"");
    word(text, expected, is_token_char)?;
    Ok(text.into())
}

/// 1 to [`TOKEN_MAX`] characters of those that are allowed.
fn word(text: &str, expected: String, allowed: impl Fn(char) -> bool) -> Result<(), Mistake> {
    if text.is_empty() {
        return Err(Mistake::value("is empty", expected));
    }
    if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        let what = format!("has the character `{}`", c.escape_debug());
        return Err(Mistake::value(what, expected));
    }
    if text.len() > TOKEN_MAX {
        return Err(Mistake::value(
            format!("has {} characters", text.len()),
            expected,
        ));
    }
    Ok(())
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_token_char)
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// The name of a path parameter, as it stands in a path.
pub(super) fn parameter(text: &str) -> Result<Box<str>, Mistake> {
    let expected =
        format!("1 to {TOKEN_MAX} letters, digits and -._~, such as \"jsessionid\", or false");
    if text.starts_with(';') || text.ends_with('=') {
        return Err(Mistake::value("has more than the name in it", expected));
    }
    word(text, expected, |c| {
        c.is_ascii_alphanumeric() || "-._~".contains(c)
    })?;
    Ok(text.into())
}

/// A route or domain: it stands in cookies and paths as it is.
pub(super) fn route(text: &str, dots: bool) -> Result<(), Mistake> {
    let dot = if dots { "." } else { "" };
    let expected = format!("1 to {TOKEN_MAX} letters, digits and -_~{dot}");
    word(text, expected, |c| {
        c.is_ascii_alphanumeric() || "-_~".contains(c) || dot.contains(c)
    })
}

/// `Path` of a cookie.
pub(super) fn cookie_path(text: &str) -> Result<Box<str>, Mistake> {
    let expected = "a path such as \"/\"";
    if !text.starts_with('/') {
        return Err(Mistake::value("does not begin with `/`", expected));
    }
    if let Some(c) = text.chars().find(|c| !matches!(c, '!'..='~') || *c == ';') {
        let what = format!("has the character `{}`", c.escape_debug());
        return Err(Mistake::value(what, expected));
    }
    if text.len() > PATH_MAX {
        return Err(Mistake::value(
            "is too long",
            format!("at most {PATH_MAX} bytes"),
        ));
    }
    Ok(text.into())
}

/// `Domain` of a cookie.
pub(super) fn cookie_domain(text: &str) -> Result<Box<str>, Mistake> {
    let expected = "a domain such as \"example.org\"";
    if text.starts_with('.') {
        return Err(Mistake::value(
            "begins with a dot",
            "the domain alone: it always includes the hosts in it",
        ));
    }
    if text.is_empty() {
        return Err(Mistake::value("is empty", expected));
    }
    host_name(text, expected)?;
    Ok(text.to_ascii_lowercase().into())
}

/// A network, or an address as a network of its own.
pub(super) fn network(text: &str) -> Result<IpNet, Mistake> {
    let expected = "a network such as \"10.0.0.0/8\", or an address";
    if let Ok(ip) = text.parse::<IpAddr>() {
        mapped(ip)?;
        return Ok(IpNet::from(ip));
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| Mistake::value("is no network", expected))?;
    mapped(net.addr())?;
    if net.trunc() != net {
        let expected = format!("the network itself, \"{}\"", net.trunc());
        return Err(Mistake::value("has bits behind its prefix", expected));
    }
    Ok(net)
}

fn mapped(ip: IpAddr) -> Result<(), Mistake> {
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            let expected = "the IPv4 addresses themselves: clients' addresses are compared as such";
            Err(Mistake::value("is of IPv4-mapped IPv6 addresses", expected))
        }
        _ => Ok(()),
    }
}
