//! What must fit together: names and addresses that may stand only once, what
//! refers to what, address families, and the room in the kernel's tables.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use common::limits;
use common::tables::RingRef;
use toml::Spanned;

use super::findings::{Findings, Span, quote};
use super::http::cross::missing_pools;
use super::http::frontend::HttpDraft;
use super::pool::PoolDraft;
use super::resolve::FrontendDraft;
use crate::model::{Activation, Protocol};

/// Half of a table's slots: the other half is for what a reload adds before the
/// old flows of what it removes have ended.
const FRONTENDS_MAX: usize = limits::FRONTENDS as usize / 2;
const BACKENDS_MAX: usize = limits::BACKENDS as usize / 2;
const RING_CHUNKS_MAX: u64 = limits::RING_CHUNKS as u64 / 2;

/// Every check between frontends and pools.
pub(super) fn check(
    frontends: &[FrontendDraft],
    http: &[HttpDraft],
    pools: &[PoolDraft],
    findings: &mut Findings,
) {
    if frontends.is_empty() && http.is_empty() {
        let message = "there is no frontend: nothing is balanced";
        findings.warn(0..0, message, "at least one `[[frontend]]`");
    }
    // In the order of the file, so that the later one is the one that is too many.
    let mut all: Vec<_> = frontends
        .iter()
        .map(|f| (f.span.start, &f.name))
        .chain(http.iter().map(|f| (f.span.start, &f.name)))
        .collect();
    all.sort_by_key(|(start, _)| *start);
    unique(
        names(all.into_iter().map(|(_, name)| name)),
        findings,
        |name| {
            let message = format!("frontend {} is there twice", quote(name));
            (message, "a name of its own for each frontend".into())
        },
    );
    unique(names(pools.iter().map(|p| &p.name)), findings, |name| {
        let message = format!("pool {} is there twice", quote(name));
        (message, "a name of its own for each pool".into())
    });
    services(frontends, findings);
    references(frontends, http, pools, findings);
    families(frontends, pools, findings);
    let addresses: HashMap<SocketAddr, &FrontendDraft> = frontends
        .iter()
        .filter_map(|f| Some((*f.address.as_ref()?.get_ref(), f)))
        .collect();
    for pool in pools {
        backends(pool, &addresses, findings);
    }
    snat(pools, findings);
    room(frontends, pools, findings);
}

/// Frontends that are steered in the kernel need interfaces, and there are
/// none. `written` is where they are an empty array, `table` where `[xdp]` is.
pub(super) fn no_interfaces(
    written: Option<Span>,
    table: Option<Span>,
    frontends: &[FrontendDraft],
    findings: &mut Findings,
) {
    let Some(first) = frontends.first() else {
        return;
    };
    let message = match written {
        None => "no `interfaces` for frontends that are steered in the kernel",
        Some(_) => "`interfaces` is empty, and there are frontends that are steered in the kernel",
    };
    let place = written.or(table).unwrap_or(first.span.clone());
    let expected =
        "the clients' and the servers' side in `[xdp]`, such as `interfaces = [\"eth0\"]`";
    findings.error(place, message, expected);
}

/// Notes every value that was there before, with what `message` says of it:
/// what is wrong and what is expected.
pub(super) fn unique<'a, T: Eq + Hash + 'a>(
    values: impl IntoIterator<Item = &'a Spanned<T>>,
    findings: &mut Findings,
    message: impl Fn(&T) -> (String, String),
) {
    let mut seen = HashSet::new();
    for value in values {
        if !seen.insert(value.get_ref()) {
            let (message, expected) = message(value.get_ref());
            findings.error(value.span(), message, expected);
        }
    }
}

fn names<'a>(
    names: impl Iterator<Item = &'a Option<Spanned<Arc<str>>>>,
) -> impl Iterator<Item = &'a Spanned<Arc<str>>> {
    names.filter_map(Option::as_ref)
}

/// One frontend for each address, port and protocol.
fn services(frontends: &[FrontendDraft], findings: &mut Findings) {
    let mut seen: HashMap<(SocketAddr, Protocol), &FrontendDraft> = HashMap::new();
    for frontend in frontends {
        let Some(address) = &frontend.address else {
            continue;
        };
        let key = (*address.get_ref(), frontend.protocol);
        if let Some(other) = seen.insert(key, frontend) {
            let message = format!(
                "{} {} is already answered by {}",
                key.1,
                key.0,
                title(other)
            );
            let expected = "an address, port and protocol that no other frontend has";
            findings.error(address.span(), message, expected);
        }
    }
}

/// Frontends name pools that exist, and pools are used.
fn references(
    frontends: &[FrontendDraft],
    http: &[HttpDraft],
    pools: &[PoolDraft],
    findings: &mut Findings,
) {
    let known: Vec<&str> = names(pools.iter().map(|p| &p.name))
        .map(|name| &**name.get_ref())
        .collect();
    let steered = frontends.iter().filter_map(|f| f.pool.as_ref());
    let answered = http.iter().flat_map(|f| {
        let references = &f.references;
        references.routed.iter().chain(&references.excluded)
    });
    missing_pools(steered.chain(answered), &known, findings);
    for pool in pools {
        if let (Some(name), false) = (&pool.name, pool.usage.any()) {
            let message = format!("no frontend uses {}", pool.title());
            findings.warn(name.span(), message, "a frontend with this pool");
        }
    }
}

/// A pool's frontends, backends and `snat` addresses are of one family.
fn families(frontends: &[FrontendDraft], pools: &[PoolDraft], findings: &mut Findings) {
    // The first frontend of each pool sets the family.
    let mut first: HashMap<&str, (SocketAddr, String)> = HashMap::new();
    for frontend in frontends {
        let (Some(address), Some(pool)) = (&frontend.address, &frontend.pool) else {
            continue;
        };
        let address = *address.get_ref();
        let (leader, by) = first
            .entry(pool.get_ref())
            .or_insert_with(|| (address, title(frontend)));
        if leader.is_ipv4() != address.is_ipv4() {
            let message = format!(
                "{} is {}, but {by} with the same pool is {}",
                title(frontend),
                family(address.ip()),
                family(leader.ip())
            );
            findings.error(pool.span(), message, "a pool for each address family");
        }
    }
    // The agent connects to backends of HTTP frontends, from whatever family it has.
    for pool in pools.iter().filter(|p| p.usage.steerable()) {
        let by_frontend = pool
            .name
            .as_ref()
            .and_then(|name| first.get(&**name.get_ref()));
        let leader = match by_frontend {
            Some((address, by)) => Some((*address, by.clone())),
            None => pool
                .backends
                .iter()
                .find_map(|b| Some((*b.address.as_ref()?.get_ref(), b.title()))),
        };
        let Some((leader, by)) = leader else { continue };
        let expected = format!("an {} address, as {by} has", family(leader.ip()));
        let mut same = |what: String, ip: IpAddr, span: Span| {
            if ip.is_ipv4() != leader.is_ipv4() {
                let message = format!(
                    "{what} is {} in a pool of {}",
                    family(ip),
                    family(leader.ip())
                );
                findings.error(span, message, expected.clone());
            }
        };
        for backend in &pool.backends {
            if let Some(address) = &backend.address {
                same(backend.title(), address.get_ref().ip(), address.span());
            }
        }
        for address in &pool.snat {
            let what = format!("`snat` address {}", address.get_ref());
            same(what, *address.get_ref(), address.span());
        }
    }
}

/// A pool's backends are there, differ, and are not the balancer itself.
fn backends(
    pool: &PoolDraft,
    frontends: &HashMap<SocketAddr, &FrontendDraft>,
    findings: &mut Findings,
) {
    let title_of_pool = pool.title();
    if pool.backends.is_empty() {
        let message = format!("{title_of_pool} has no backends");
        findings.error(
            pool.span.clone(),
            message,
            "at least one `[[pool.backend]]` after it",
        );
        return;
    }
    unique(
        names(pool.backends.iter().map(|b| &b.name)),
        findings,
        |name| {
            let message = format!("backend {} is twice in {title_of_pool}", quote(name));
            (
                message,
                "a name of its own for each backend of a pool".into(),
            )
        },
    );
    let addresses = pool.backends.iter().filter_map(|b| b.address.as_ref());
    unique(addresses, findings, |address| {
        let message = format!("{address} is twice in {title_of_pool}");
        (
            message,
            "each server once; `weight` gives it a larger share".into(),
        )
    });
    for backend in &pool.backends {
        let Some(address) = &backend.address else {
            continue;
        };
        if let Some(frontend) = frontends.get(address.get_ref()) {
            let what = format!("{} has the address of {}", backend.title(), title(frontend));
            findings.error(
                address.span(),
                what,
                "a server's address: this one leads back here",
            );
        }
    }
    if pool
        .backends
        .iter()
        .all(|b| b.weight == 0 || b.activation != Activation::Active)
    {
        let message = format!("no backend of {title_of_pool} takes new flows");
        let expected = "at least one that is active and has a weight above 0";
        findings.warn(pool.span.clone(), message, expected);
    }
    let slots = ring_slots(pool);
    if pool.usage.steerable() && slots > u64::from(limits::RING_SLOTS_MAX) {
        let message = format!("the weights of {title_of_pool} need a ring of {slots} slots");
        let expected = format!(
            "weights whose sum, divided by what divides them all, is at most {}",
            limits::RING_SLOTS_MAX
        );
        findings.error(pool.span.clone(), message, expected);
    }
}

/// The sum of a pool's weights over their greatest common divisor.
fn ring_slots(pool: &PoolDraft) -> u64 {
    let weights = || pool.backends.iter().map(|b| u64::from(b.weight));
    let divisor = weights().fold(0, |mut a, mut b| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    });
    weights().sum::<u64>() / divisor.max(1)
}

/// `snat` addresses stand once in a pool, have one range of ports everywhere,
/// and are not too many.
fn snat(pools: &[PoolDraft], findings: &mut Findings) {
    let mut ranges: HashMap<IpAddr, ((u16, u16), String)> = HashMap::new();
    for pool in pools {
        unique(&pool.snat, findings, |address| {
            let message = format!("`snat` address {address} is twice in {}", pool.title());
            (message, "each address once".into())
        });
        let range = *pool.snat_ports.get_ref();
        // One message for each pool is enough.
        let mut differs = false;
        for address in &pool.snat {
            let ip = *address.get_ref();
            let count = ranges.len();
            let (other, by) = ranges.entry(ip).or_insert_with(|| {
                if count == limits::SNAT_ADDRESSES as usize {
                    let message = format!("{ip} is one more `snat` address than there is room for");
                    let expected = format!("at most {count} addresses over all pools");
                    findings.error(address.span(), message, expected);
                }
                (range, pool.title())
            });
            if *other != range && !differs {
                differs = true;
                let message = format!(
                    "{ip} has the ports {}-{} here, but {}-{} in {by}",
                    range.0, range.1, other.0, other.1
                );
                let expected = "one range of ports for an address in all pools";
                findings.error(pool.snat_ports.span(), message, expected);
            }
        }
    }
}

/// The kernel's tables have room.
fn room(frontends: &[FrontendDraft], pools: &[PoolDraft], findings: &mut Findings) {
    if let Some(frontend) = frontends.get(FRONTENDS_MAX) {
        let message = format!(
            "{} frontends are more than there is room for",
            frontends.len()
        );
        findings.error(frontend.span.clone(), message, at_most(FRONTENDS_MAX));
    }
    // A backend has a slot, and a pool a ring, for each protocol.
    let count = |pool: &PoolDraft| pool.backends.len() * pool.usage.protocols();
    let total: usize = pools.iter().map(count).sum();
    if let Some(pool) = overflow(pools, BACKENDS_MAX, count) {
        let message = format!("{total} backends are more than there is room for");
        let expected = format!(
            "{}, a pool with TCP and UDP frontends counted twice",
            at_most(BACKENDS_MAX)
        );
        findings.error(pool.span.clone(), message, expected);
    }
    let chunks = |pool: &PoolDraft| {
        let slots = u32::try_from(ring_slots(pool)).unwrap_or(u32::MAX);
        u64::from(RingRef::chunks(slots)) * pool.usage.protocols() as u64
    };
    let total: u64 = pools.iter().map(chunks).sum();
    if let Some(pool) = overflow(pools, RING_CHUNKS_MAX, chunks) {
        let slots = limits::RING_CHUNK_SLOTS;
        let message = format!("the rings of all pools take {total} pieces of {slots} slots");
        let expected = format!(
            "{}: fewer different weights, or smaller ones",
            at_most(RING_CHUNKS_MAX)
        );
        findings.error(pool.span.clone(), message, expected);
    }
}

/// The pool at which a sum goes beyond `most`.
fn overflow<N>(pools: &[PoolDraft], most: N, count: impl Fn(&PoolDraft) -> N) -> Option<&PoolDraft>
where
    N: Copy + Default + PartialOrd + std::ops::AddAssign,
{
    let mut sum = N::default();
    pools.iter().find(|pool| {
        sum += count(pool);
        sum > most
    })
}

fn at_most(number: impl Display) -> String {
    format!("at most {number}")
}

fn title(frontend: &FrontendDraft) -> String {
    match &frontend.name {
        Some(name) => format!("frontend {}", quote(name.get_ref())),
        None => "a frontend".to_owned(),
    }
}

fn family(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}
