//! What is there when all is calm: what every node holds, and where it sends those who come
//! with a session.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::ledger::{Broken, Ledger, Seen, Verdict};
use super::load::{Connection, exchange};
use super::site::{Kind, Site};
use super::{NODES, SERVERS};
use crate::sim::rng::Rng;

/// Sessions that are visited through every agent, alive and ended.
const VISITED: usize = 200;
/// With `backup`, a node that does not hold a session may not know for 5 s of visits that it
/// has moved or ended (`docs/http.md`).
const LATE: Duration = Duration::from_secs(8);
/// What was not acknowledged reaches those who should have it within a round or two of
/// comparison (every 10 s).
const AGREED: Duration = Duration::from_secs(40);

/// What a check found.
#[derive(Debug, Default)]
pub struct Found {
    /// What is held.
    pub verdict: Verdict,
    /// How long after readiness all held the same.
    pub agreed: Duration,
}

/// Checks everything. All agents are together, and nothing is sent. Returns `None` when they
/// did not stay together: nothing was judged then.
#[track_caller]
pub fn check(site: &mut Site, kind: Kind, ledger: &mut Ledger, rng: &mut Rng) -> Option<Found> {
    let all: Vec<usize> = (0..NODES).collect();
    let begin = Instant::now();
    // What was acknowledged has to be there at once. What was not may take a while.
    let mut strange = Vec::new();
    let first = held(site, ledger, &mut strange);
    let mut broken = ledger.at_once(&first);
    let mut last = first;
    let mut agreed = begin.elapsed();
    while !alike(kind, &last) && begin.elapsed() < AGREED {
        std::thread::sleep(Duration::from_millis(200));
        last = held(site, ledger, &mut strange);
        agreed = begin.elapsed();
    }
    let (live, ended) = (ledger.some_live(rng, VISITED), ledger.some_ended(VISITED));
    let patience = match kind {
        Kind::Delta => Duration::ZERO,
        Kind::Backup(_) => LATE,
    };
    let routed = routed(site, live, ended, patience);
    if site.wait_together(&all) > Duration::from_millis(500) {
        // They were apart meanwhile, by their own doing: a busy machine.
        return None;
    }
    let mut verdict = ledger.judge(&last);
    let cookie = |number: u32| Ledger::cookie(number);
    for id in strange {
        broken.push(Broken::Returned(format!("{id}, which nobody has made")));
    }
    for (number, route, at) in routed.live {
        let what = format!(
            "{} is bound to s{route}, and goes to {at:?}",
            cookie(number)
        );
        broken.push(Broken::Lost(what));
    }
    for (number, at) in routed.ended {
        let what = format!("{} has ended, and goes to {at:?}", cookie(number));
        broken.push(Broken::Returned(what));
    }
    verdict.broken.append(&mut broken);
    Some(Found { verdict, agreed })
}

/// By node, the numbers of what it holds, and the servers.
#[track_caller]
fn held(site: &Site, ledger: &Ledger, strange: &mut Vec<String>) -> Vec<HashMap<u32, u8>> {
    (0..NODES)
        .map(|node| {
            let list = site.held(node).into_iter();
            list.filter_map(|(id, route)| {
                let server = route.strip_prefix('s').and_then(|n| n.parse::<u8>().ok());
                let server = server.filter(|server| usize::from(*server) < SERVERS);
                match (ledger.number(&id), server) {
                    (Some(number), Some(server)) => Some((number, server)),
                    _ => {
                        strange.push(format!("{id} at {route:?}"));
                        None
                    }
                }
            })
            .collect()
        })
        .collect()
}

/// Whether all that should hold a session do, and the same.
fn alike(kind: Kind, held: &[HashMap<u32, u8>]) -> bool {
    if kind == Kind::Delta {
        return held.iter().all(|node| *node == held[0]);
    }
    let mut copies: HashMap<u32, (usize, u8)> = HashMap::new();
    for (&number, &route) in held.iter().flatten() {
        let (count, at) = copies.entry(number).or_insert((0, route));
        if *at != route {
            return false;
        }
        *count += 1;
    }
    copies.values().all(|(count, _)| *count == kind.holders())
}

struct Routed {
    /// Went elsewhere than where they are bound, by some agent.
    live: Vec<(u32, u8, Vec<Option<u8>>)>,
    /// Were not sent where all send those without a binding.
    ended: Vec<(u32, Vec<Option<u8>>)>,
}

/// Visits these through every agent; those that went wrong again, until `patience` has
/// passed.
fn routed(
    site: &Site,
    mut live: Vec<(u32, u8)>,
    mut ended: Vec<u32>,
    patience: Duration,
) -> Routed {
    let begin = Instant::now();
    loop {
        let routed = visit(site, &live, &ended);
        let wrong = routed.live.len() + routed.ended.len();
        if wrong == 0 || begin.elapsed() >= patience {
            return routed;
        }
        live = routed
            .live
            .iter()
            .map(|(n, route, _)| (*n, *route))
            .collect();
        ended = routed.ended.iter().map(|(number, _)| *number).collect();
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Visits these through every agent.
fn visit(site: &Site, live: &[(u32, u8)], ended: &[u32]) -> Routed {
    site.clients.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let mut connections: [Option<Connection>; NODES] = Default::default();
            let mut at = async |number: u32| {
                let mut servers = Vec::new();
                for (agent, connection) in connections.iter_mut().enumerate() {
                    let cookie = Ledger::cookie(number);
                    let seen = exchange(connection, agent, "/status/200", Some(&cookie)).await;
                    servers.push(match seen {
                        Ok(Seen::Answered { server, .. }) => Some(server),
                        _ => None,
                    });
                }
                servers
            };
            let mut routed = Routed {
                live: Vec::new(),
                ended: Vec::new(),
            };
            for &(number, route) in live {
                let servers = at(number).await;
                if servers.iter().any(|server| *server != Some(route)) {
                    routed.live.push((number, route, servers));
                }
            }
            for &number in ended {
                let servers = at(number).await;
                let first = servers[0];
                if first.is_none() || servers.iter().any(|server| *server != first) {
                    routed.ended.push((number, servers));
                }
            }
            routed
        })
    })
}
