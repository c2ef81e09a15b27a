//! Host names: which site one belongs to, and what of a `Host` header is the name.
//!
//! Names are compared without case, port and trailing dot. A site with exactly that name is
//! first, then the one with the longest `*.suffix`, then the one that names no host.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::model::http::{HostPattern, Site};

/// Longest name in DNS, in text (RFC 1035, 2.3.4). No longer one is in a table.
const MAX_NAME: usize = 253;

/// Sites of a frontend by host.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    exact: HashMap<Box<[u8]>, u32, BuildHasherDefault<Fnv>>,
    /// With their leading dot.
    suffix: HashMap<Box<[u8]>, u32, BuildHasherDefault<Fnv>>,
    default: Option<u32>,
}

/// FNV-1a. Only names of the configuration are ever inserted, so that no one can make
/// them collide.
#[derive(Clone, Copy, Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Lengths add nothing to one name per key.
    fn write_usize(&mut self, _: usize) {}
}

impl Hosts {
    /// Of sites in the order of the file: the first that claims a name has it.
    pub fn new<'s>(sites: impl IntoIterator<Item = &'s Site>) -> Self {
        let mut hosts = Self::default();
        for (place, site) in sites.into_iter().enumerate() {
            let place = place as u32;
            if site.hosts.is_empty() {
                hosts.default.get_or_insert(place);
            }
            for host in &site.hosts {
                let (table, name) = match host {
                    HostPattern::Exact(name) => (&mut hosts.exact, name),
                    HostPattern::Suffix(name) => (&mut hosts.suffix, name),
                };
                let name = name.to_ascii_lowercase().into_bytes().into_boxed_slice();
                table.entry(name).or_insert(place);
            }
        }
        hosts
    }

    /// Place of the site that a host belongs to, as a `Host` header or `:authority` gives it.
    pub fn find(&self, host: Option<&str>) -> Option<usize> {
        let named = host.and_then(|host| self.named(name(host).as_bytes()));
        named.or(self.default).map(|place| place as usize)
    }

    fn named(&self, name: &[u8]) -> Option<u32> {
        if name.is_empty() || name.len() > MAX_NAME {
            return None;
        }
        let mut lower = [0; MAX_NAME];
        let lower = &mut lower[..name.len()];
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        if let Some(&place) = self.exact.get(&*lower) {
            return Some(place);
        }
        if self.suffix.is_empty() {
            return None;
        }
        // From the left, so that the longest comes first; `*` is at least one character.
        memchr::memchr_iter(b'.', lower)
            .filter(|&dot| dot > 0)
            .find_map(|dot| self.suffix.get(&lower[dot..]).copied())
    }
}

/// The name in a `Host` header: without port and trailing dot. An IPv6 address keeps its
/// brackets.
pub fn name(host: &str) -> &str {
    let end = match host.as_bytes().first() {
        Some(b'[') => host.find(']').map_or(host.len(), |at| at + 1),
        _ => host.find(':').unwrap_or(host.len()),
    };
    let name = &host[..end];
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether a host name can be put into a location without becoming something else there:
/// a registered name (RFC 3986, 3.2.2, without escapes and sub-delimiters) or an address.
pub fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    match name.strip_prefix('[').map(|n| n.strip_suffix(']')) {
        Some(Some(address)) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        Some(None) => false,
        None => !name.is_empty() && name.bytes().all(plain),
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
