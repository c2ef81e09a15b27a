//! Who the client is, and what backends are told about it: `X-Forwarded-*`, `Forwarded`,
//! `Via`, the request id.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;
use rand::Rng;

use crate::model::http::HttpFrontend;
use crate::proxy::types::Connection;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Whether an address is in one of these networks.
pub fn within(nets: &[IpNet], address: IpAddr) -> bool {
    // The usual case, without a look at the address.
    !nets.is_empty() && {
        let address = address.to_canonical();
        nets.iter().any(|net| net.contains(&address))
    }
}

/// The client that a trusted proxy speaks for: of the addresses in `X-Forwarded-For` (or in
/// `Forwarded` without that) the last one that is not a trusted proxy itself.
pub fn client(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let mut client = peer;
    let mut told = headers.get_all(FOR).iter().rev().peekable();
    if told.peek().is_some() {
        for value in told {
            for address in value.as_bytes().rsplit(|b| *b == b',') {
                let Some(address) = address_of(address) else {
                    return client;
                };
                client = address;
                if !within(trusted, client) {
                    return client;
                }
            }
        }
        return client;
    }
    for value in headers.get_all(header::FORWARDED).iter().rev() {
        for element in value.as_bytes().rsplit(|b| *b == b',') {
            let mut pairs = element.split(|b| *b == b';').map(<[u8]>::trim_ascii);
            let node = pairs.find_map(|pair| {
                let (name, value) = pair.split_at_checked(4)?;
                name.eq_ignore_ascii_case(b"for=").then_some(value)
            });
            let Some(address) = node.and_then(address_of) else {
                return client;
            };
            client = address;
            if !within(trusted, client) {
                return client;
            }
        }
    }
    client
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`, quoted or not.
fn address_of(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim().trim_matches('"');
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0.parse().ok(),
        None => text.rsplit_once(':')?.0.parse().ok(),
    }
}

/// What is told to a backend about a request.
pub struct About<'a> {
    /// The frontend.
    pub frontend: &'a HttpFrontend,
    /// The client's connection.
    pub connection: &'a Connection,
    /// Whether what the request says of its client is believed.
    pub trusted: bool,
    /// The host that the client asked for.
    pub host: Option<&'a str>,
    /// Version of the client's HTTP, as `Via` has it.
    pub version: &'static str,
    /// The request id.
    pub request_id: Option<&'a str>,
}

impl About<'_> {
    /// Whether a field of the client's is replaced, or not believed.
    pub fn replaces(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        if let Some(rest) = text.strip_prefix("x-forwarded-") {
            return match self.trusted {
                false => true,
                true => {
                    self.frontend.forwarded.x_forwarded
                        && matches!(rest, "for" | "proto" | "host" | "port")
                }
            };
        }
        if *name == header::FORWARDED {
            return !self.trusted || self.frontend.forwarded.rfc7239;
        }
        self.frontend.request_id.as_ref() == Some(name)
    }

    /// Writes the lines, each ended by CRLF.
    pub fn write(&self, headers: &HeaderMap, out: &mut Vec<u8>) {
        let secure = self.connection.tls.is_some();
        let proto = if secure { "https" } else { "http" };
        let client = self.connection.client.ip().to_canonical();
        // Writing into memory does not fail.
        if self.frontend.forwarded.x_forwarded {
            out.extend_from_slice(b"x-forwarded-for: ");
            if self.trusted {
                for value in headers.get_all(FOR) {
                    out.extend_from_slice(value.as_bytes());
                    out.extend_from_slice(b", ");
                }
            }
            let _ = write!(out, "{client}\r\n");
            let mut keep_or = |name: HeaderName, make: &dyn Fn(&mut Vec<u8>)| {
                let known = headers.get(&name).filter(|_| self.trusted);
                out.extend_from_slice(name.as_str().as_bytes());
                out.extend_from_slice(b": ");
                match known {
                    Some(value) => out.extend_from_slice(value.as_bytes()),
                    None => make(out),
                }
                out.extend_from_slice(b"\r\n");
            };
            keep_or(PROTO, &|out| out.extend_from_slice(proto.as_bytes()));
            if let Some(host) = self.host {
                keep_or(HOST, &|out| out.extend_from_slice(host.as_bytes()));
            }
            keep_or(PORT, &|out| {
                let _ = write!(out, "{}", self.connection.local.port());
            });
        }
        if self.frontend.forwarded.rfc7239 {
            out.extend_from_slice(b"forwarded: ");
            if self.trusted {
                for value in headers.get_all(header::FORWARDED) {
                    out.extend_from_slice(value.as_bytes());
                    out.extend_from_slice(b", ");
                }
            }
            let _ = match client {
                IpAddr::V4(client) => write!(out, "for={client}"),
                IpAddr::V6(client) => write!(out, "for=\"[{client}]\""),
            };
            if let Some(host) = self.host {
                // A host with a port is no token (RFC 7239, 4).
                let _ = write!(out, ";host=\"{}\"", host.replace(['"', '\\'], ""));
            }
            let _ = write!(out, ";proto={proto}\r\n");
        }
        if let Some(via) = &self.frontend.via {
            let _ = write!(out, "via: {} {via}\r\n", self.version);
        }
        if let (Some(name), Some(id)) = (&self.frontend.request_id, self.request_id) {
            let _ = write!(out, "{name}: {id}\r\n");
        }
    }

    /// Puts the same into the headers, for routes that change headers after it.
    pub fn put(&self, headers: &mut HeaderMap) {
        let mut lines = Vec::with_capacity(256);
        self.write(headers, &mut lines);
        let replaced: Vec<HeaderName> = headers
            .keys()
            .filter(|name| self.replaces(name))
            .cloned()
            .collect();
        for name in &replaced {
            headers.remove(name);
        }
        for line in lines.split(|b| *b == b'\n') {
            let line = line.trim_ascii();
            if let Some(colon) = memchr::memchr(b':', line)
                && let Ok(name) = HeaderName::from_bytes(&line[..colon])
                && let Ok(value) = HeaderValue::from_bytes(line[colon + 1..].trim_ascii())
            {
                headers.append(name, value);
            }
        }
    }
}

/// The request's id: a trusted proxy's, or a new one of 128 random bits.
pub fn request_id(name: &HeaderName, headers: &HeaderMap, trusted: bool) -> String {
    let known = headers.get(name).filter(|_| trusted);
    if let Some(known) = known.and_then(|value| value.to_str().ok())
        && !known.is_empty()
        && known.len() <= 128
    {
        return known.to_owned();
    }
    let mut id = String::with_capacity(32);
    let _ = write!(id, "{:032x}", rand::rng().random::<u128>());
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_client_is_the_last_who_is_not_trusted() {
        let trusted = nets(&["10.0.0.0/8", "2001:db8::/32"]);
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        for (name, value, want) in [
            ("x-forwarded-for", "192.0.2.1", "192.0.2.1"),
            (
                "x-forwarded-for",
                "192.0.2.9, 192.0.2.1, 10.1.1.1",
                "192.0.2.1",
            ),
            ("x-forwarded-for", "192.0.2.1, junk, 10.1.1.1", "10.1.1.1"),
            ("x-forwarded-for", "10.2.2.2, 10.1.1.1", "10.2.2.2"),
            ("x-forwarded-for", "[2001:db9::1]:4711", "2001:db9::1"),
            ("x-forwarded-for", "192.0.2.1:99", "192.0.2.1"),
            (
                "forwarded",
                "for=192.0.2.1;proto=http, For=\"10.1.1.1:8\"",
                "192.0.2.1",
            ),
            ("forwarded", "for=\"[2001:db9::1]:80\"", "2001:db9::1"),
            ("forwarded", "for=_hidden", "10.0.0.1"),
            ("x-other", "192.0.2.1", "10.0.0.1"),
        ] {
            let found = client(&trusted, peer, &headers(&[(name, value)]));
            assert_eq!(found, want.parse::<IpAddr>().unwrap(), "{name}: {value}");
        }
        assert!(within(&trusted, "::ffff:10.1.1.1".parse().unwrap()));
    }
}
