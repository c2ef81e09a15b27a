//! What must fit together between HTTP frontends, pools, and what is steered in
//! the kernel.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use toml::Spanned;

use super::ajp;
use super::frontend::HttpDraft;
use super::route::PoolReference;
use crate::config::findings::{Findings, nearest, quote};
use crate::config::pool::PoolDraft;
use crate::config::resolve::FrontendDraft;
use crate::model::http::{HttpBalance, Sticky};
use crate::model::{CheckKind, Protocol};

/// The pools by their names.
type ByName<'a> = HashMap<&'a str, &'a PoolDraft>;

/// Every check that is about HTTP frontends or about pools for them.
pub(in crate::config) fn check(
    steered: &[FrontendDraft],
    frontends: &[HttpDraft],
    pools: &[PoolDraft],
    findings: &mut Findings,
) {
    let named: ByName<'_> = pools
        .iter()
        .filter_map(|p| Some((&**p.name.as_ref()?.get_ref(), p)))
        .collect();
    listeners(steered, frontends, &named, findings);
    loops(frontends, &named, findings);
    for pool in pools {
        routes(pool, findings);
        ajp::check(pool, findings);
        usage(pool, findings);
    }
}

/// The name in quotes, for messages.
pub(in crate::config) fn title(frontend: &HttpDraft) -> String {
    match &frontend.name {
        Some(name) => format!("frontend {}", quote(name.get_ref())),
        None => "a frontend".to_owned(),
    }
}

/// Whether both would answer some address.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let within = |ip: IpAddr, other: IpAddr| match ip {
        // A listener on it takes IPv4 as well.
        IpAddr::V6(ip) => ip.is_unspecified(),
        IpAddr::V4(ip) => ip.is_unspecified() && other.is_ipv4(),
    };
    let (left, right) = (a.ip(), b.ip());
    a.port() == b.port() && (left == right || within(left, right) || within(right, left))
}

/// Whether a steered frontend leads to one of the file's HTTP frontends, among other
/// nodes' perhaps: the kernel then leaves its share to the stack as it came, and the
/// HTTP frontend has to listen on that address as well.
fn leads_here(steered: &FrontendDraft, frontends: &[HttpDraft], pools: &ByName<'_>) -> bool {
    let name = steered.pool.as_ref();
    let Some(pool) = name.and_then(|name| pools.get(&**name.get_ref())) else {
        return false;
    };
    let mut servers = pool.backends.iter().filter_map(|b| b.address.as_ref());
    servers.any(|server| {
        let mut listeners = frontends.iter().filter_map(|f| f.address.as_ref());
        listeners.any(|l| overlap(*l.get_ref(), *server.get_ref()))
    })
}

/// No address and port is answered by two.
fn listeners(
    steered: &[FrontendDraft],
    frontends: &[HttpDraft],
    pools: &ByName<'_>,
    findings: &mut Findings,
) {
    let mut taken: Vec<(SocketAddr, String)> = steered
        .iter()
        .filter(|f| f.protocol == Protocol::Tcp && !leads_here(f, frontends, pools))
        .filter_map(|f| {
            let name = f
                .name
                .as_ref()
                .map_or(String::new(), |n| quote(n.get_ref()));
            let title = format!("frontend {name}, which is steered in the kernel");
            Some((*f.address.as_ref()?.get_ref(), title))
        })
        .collect();
    let expected = "an address and port that no other frontend has";
    for frontend in frontends {
        let Some(address) = &frontend.address else {
            continue;
        };
        let own = *address.get_ref();
        if let Some((other, title)) = taken.iter().find(|(other, _)| overlap(*other, own)) {
            let message = match *other == own {
                true => format!("{own} is already answered by {title}"),
                false => format!("{own} overlaps {other}, which is answered by {title}"),
            };
            findings.error(address.span(), message, expected);
        }
        taken.push((own, title(frontend)));
    }
}

/// No backend is the frontend whose requests it gets.
fn loops(frontends: &[HttpDraft], pools: &ByName<'_>, findings: &mut Findings) {
    let mut said = Vec::new();
    for frontend in frontends {
        let Some(address) = &frontend.address else {
            continue;
        };
        let routed = frontend.references.routed.iter();
        for pool in routed.filter_map(|r| pools.get(&**r.get_ref())) {
            for backend in &pool.backends {
                let Some(server) = &backend.address else {
                    continue;
                };
                let (own, its) = (*address.get_ref(), *server.get_ref());
                // Of an unspecified address only the loopback ones are known to be here.
                let here = own == its
                    || (own.ip().is_unspecified() && its.ip().is_loopback() && overlap(own, its));
                if here && !said.contains(&server.span()) {
                    said.push(server.span());
                    let message = format!(
                        "{} is {} itself, whose requests it gets",
                        backend.title(),
                        title(frontend)
                    );
                    let expected = "a server's address: this one leads back here";
                    findings.error(server.span(), message, expected);
                }
            }
        }
    }
}

/// A route belongs to one backend, and a `redirect` leads to another.
fn routes(pool: &PoolDraft, findings: &mut Findings) {
    // By route: the place in the pool, and whether it was written.
    let mut seen: HashMap<&str, (usize, bool)> = HashMap::new();
    for (i, backend) in pool.backends.iter().enumerate() {
        let written = backend.http.route.is_some();
        let Some(route) = backend.http.route.as_ref().or(backend.name.as_ref()) else {
            continue;
        };
        let (first, before) = *seen.entry(route.get_ref()).or_insert((i, written));
        // Two names that are the same have been noted as such.
        if first != i && (written || before) {
            let message = format!(
                "route {} of {} is also that of {}",
                quote(route.get_ref()),
                backend.title(),
                pool.backends[first].title()
            );
            let expected = "a route of its own for each backend: by default it is the name";
            findings.error(route.span(), message, expected);
        }
    }
    let known: Vec<&str> = seen.keys().copied().collect();
    for (i, backend) in pool.backends.iter().enumerate() {
        let Some(redirect) = &backend.http.redirect else {
            continue;
        };
        let name = &**redirect.get_ref();
        match seen.get(name) {
            Some((at, _)) if *at == i => {
                let message = format!("`redirect` of {} leads to itself", backend.title());
                findings.error(redirect.span(), message, "the route of another backend");
            }
            Some(_) => {}
            None => {
                let message = format!(
                    "no backend of {} has the route {}",
                    pool.title(),
                    quote(name)
                );
                let expected = match nearest(name, &known) {
                    Some(near) => format!("the route of another backend, perhaps {}", quote(near)),
                    None => "the route of another backend of this pool".to_owned(),
                };
                findings.error(redirect.span(), message, expected);
            }
        }
    }
}

/// What a pool says suits those who use it.
fn usage(pool: &PoolDraft, findings: &mut Findings) {
    let title = pool.title();
    let steered = pool.usage.steered();
    if let (true, Some(place)) = (steered, &pool.balance_place)
        && pool.http.model.balance != HttpBalance::RoundRobin
    {
        let message = format!("{title} is steered in the kernel, which can't balance so");
        let expected = "\"round-robin\", or a pool of its own for the HTTP frontends";
        findings.error(place.clone(), message, expected);
    }
    if steered && !pool.usage.http {
        let by_route = matches!(pool.http.model.sticky, Some(Sticky::Route(_)));
        for (key, span) in &pool.http.written {
            let message = match *key {
                // Checks go by it.
                "tls" if pool.check.tls => continue,
                "sticky" if by_route => {
                    format!("no HTTP frontend uses {title}: routes in session ids have no effect")
                }
                _ => format!("no HTTP frontend uses {title}: `{key}` has no effect"),
            };
            let expected = format!("a frontend with `mode = \"http\"`, or no `{key}`");
            findings.warn(span.clone(), message, expected);
        }
        for backend in &pool.backends {
            for (key, span) in &backend.http.written {
                let message = format!(
                    "no HTTP frontend uses {title}: `{key}` of {} has no effect",
                    backend.title()
                );
                let expected = format!("a frontend with `mode = \"http\"`, or no `{key}`");
                findings.warn(span.clone(), message, expected);
            }
        }
    }
    if pool.usage.http && !steered {
        for (key, span) in &pool.steering {
            let message = format!(
                "only HTTP frontends use {title}: `{key}`, which is about steering, has no effect"
            );
            let expected = format!("a frontend in xdp mode, or no `{key}`");
            findings.warn(span.clone(), message, expected);
        }
    }
    if pool.usage.http
        && pool.http.model.tls.is_some()
        && !pool.check.tls
        && let (CheckKind::Http { .. }, None) = (&pool.check.kind, pool.check.port)
    {
        let message = format!("the check of {title} speaks plain HTTP, but its backends speak TLS");
        let expected = "no `tls = false`, or the `port` of a plain listener";
        findings.warn(pool.check_place.clone(), message, expected);
    }
}

/// Notes references to pools that are not there.
pub(in crate::config) fn missing_pools<'a>(
    references: impl Iterator<Item = &'a PoolReference>,
    known: &[&str],
    findings: &mut Findings,
) {
    for reference in references {
        let name = &**reference.get_ref();
        if known.contains(&name) {
            continue;
        }
        let expected = match nearest(name, known) {
            Some(near) => format!("the name of a pool, perhaps {}", quote(near)),
            None => "the name of a `[[pool]]` in this file".to_owned(),
        };
        let message = format!("there is no pool {}", quote(name));
        findings.error(Spanned::span(reference), message, expected);
    }
}
