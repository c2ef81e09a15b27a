//! Reads the counters of frontends and pools into what the status shows.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::counts::{FrontendCounts, Sums};
use super::{HttpBackendStatus, HttpFrontendStatus, HttpPoolStatus, TableStatus, ThreadStatus};
use crate::model::http::{HttpFrontend, Sticky};
use crate::proxy::balance::{BackendView, PoolView, clock};
use crate::proxy::downstream::{FrontendLive, Refused};
use crate::proxy::types::Cause;

/// Names of the classes of statuses, by their hundreds.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// A frontend's counters: of its connections (`live`) and of its requests (`counts`).
pub fn frontend_status(
    frontend: &HttpFrontend,
    live: &FrontendLive,
    counts: &FrontendCounts,
) -> HttpFrontendStatus {
    let total = counts.total();
    let causes = Cause::ALL.iter().filter(|cause| **cause != Cause::Done);
    HttpFrontendStatus {
        name: frontend.name.to_string(),
        address: Some(frontend.address),
        tls: frontend.tls.is_some(),
        connections: now(&live.connections),
        parked: now(&live.parked),
        http2: now(&live.http2),
        connections_most: now(&live.connections_most),
        connections_limit: frontend.limits.connections as u64,
        connections_total: read(&live.connections_total),
        tls_handshakes: read(&live.tls_handshakes),
        tls_resumed: read(&live.tls_resumed),
        in_flight: now(&live.in_flight),
        requests: total.requests(),
        statuses: classes(total.statuses),
        causes: named(causes.map(|cause| (cause.word(), total.causes[cause.index()]))),
        refused: named(Refused::ALL.map(|cause| (cause.word(), live.refused(cause)))),
        bytes_in: total.bytes_in,
        bytes_out: total.bytes_out,
        send_timeouts: read(&live.send_timeouts),
        accept_pauses: read(&live.accept_pauses),
    }
}

/// What each thread did, over all frontends.
pub fn threads_status<'a>(
    frontends: impl IntoIterator<Item = &'a FrontendCounts>,
) -> Vec<ThreadStatus> {
    let mut threads: Vec<ThreadStatus> = Vec::new();
    for frontend in frontends {
        for (thread, sums) in frontend.threads().enumerate() {
            if thread == threads.len() {
                threads.push(ThreadStatus::default());
            }
            let Sums {
                bytes_in,
                bytes_out,
                ..
            } = sums;
            let status = &mut threads[thread];
            status.requests += sums.requests();
            status.bytes_in += bytes_in;
            status.bytes_out += bytes_out;
        }
    }
    threads
}

/// A pool's counters.
pub fn pool_status(view: &PoolView) -> HttpPoolStatus {
    let live = &view.live;
    let queue = &live.queue;
    let now = clock::now();
    let sessions = sessions(view);
    let backends = view.backends.iter();
    let backends: Vec<_> = backends
        .map(|b| backend(b, now, sessions.as_ref()))
        .collect();
    HttpPoolStatus {
        name: view.pool.name.to_string(),
        queue: queue.len() as u64,
        queue_most: read(&queue.most),
        queue_limit: view.pool.http.queue.length as u64,
        queue_refused: read(&queue.full),
        queue_timeouts: read(&queue.timeouts),
        none_usable: read(&live.none_usable),
        forced: read(&live.forced),
        retries: backends.iter().map(|b| b.retries).sum(),
        retries_refused: read(&live.retries_refused),
        rebound: read(&live.sticky.rebound),
        invalid_cookies: read(&live.sticky.invalid),
        tables: tables(view),
        backends,
    }
}

/// What the pool's stickiness remembers.
fn tables(view: &PoolView) -> Vec<TableStatus> {
    let memory = &view.live.sticky;
    let table = |kind: &str, entries: usize, evicted| TableStatus {
        kind: kind.into(),
        entries: entries as u64,
        limit: view.learned_max as u64,
        evicted: read(evicted),
    };
    let bindings = |kind| table(kind, memory.bindings.len(), &memory.bindings.evicted);
    let mut tables = Vec::new();
    match &view.pool.http.sticky {
        Some(Sticky::Learn(_)) => tables.push(bindings("learned")),
        Some(Sticky::Route(_)) => {
            tables.push(table("translated", memory.ids.len(), &memory.ids.evicted));
            if view.pool.http.sessions.is_some() {
                tables.push(bindings("bound"));
            }
        }
        Some(Sticky::Source { .. }) if view.pool.http.sessions.is_some() => {
            tables.push(bindings("bound"));
        }
        Some(Sticky::Cookie(_) | Sticky::Source { .. }) | None => {}
    }
    tables
}

/// Bindings by the stable hash of the backend's route; other kinds of stickiness keep none.
fn sessions(view: &PoolView) -> Option<HashMap<u64, u64>> {
    match &view.pool.http.sticky {
        Some(Sticky::Learn(_)) => {}
        Some(Sticky::Source { .. } | Sticky::Route(_)) if view.pool.http.sessions.is_some() => {}
        _ => return None,
    }
    let mut counts = HashMap::new();
    let bindings = &view.live.sticky.bindings;
    bindings.for_each(|bound| *counts.entry(bound.backend).or_default() += 1);
    Some(counts)
}

fn backend(
    view: &BackendView,
    now: u64,
    sessions: Option<&HashMap<u64, u64>>,
) -> HttpBackendStatus {
    let live = &view.live;
    let until = live.ejected_until();
    HttpBackendStatus {
        name: view.name.to_string(),
        route: view.http.route.to_string(),
        health: view.health,
        activation: view.activation,
        in_flight: u64::from(live.in_flight()),
        in_flight_limit: view.http.max_connections.map(u64::from),
        requests: read(&live.requests),
        retries: read(&live.retries),
        statuses: classes(std::array::from_fn(|class| read(&live.statuses[class]))),
        connect_failed: read(&live.connect_failures),
        broken: read(&live.broken),
        timed_out: read(&live.timeouts),
        client_aborted: read(&live.aborted),
        ejected_ms: (until != 0).then(|| until.saturating_sub(now) / 1000),
        ejections: read(&live.ejections),
        sessions: sessions.map(|counts| counts.get(&view.hash).copied().unwrap_or(0)),
    }
}

fn classes(counts: [u64; 6]) -> BTreeMap<String, u64> {
    named(CLASSES.into_iter().zip(counts))
}

fn named(counts: impl IntoIterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    counts
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

fn now(counter: &AtomicUsize) -> u64 {
    counter.load(Relaxed) as u64
}

#[cfg(test)]
mod tests {
    use super::super::enter;
    use super::*;

    fn config() -> crate::model::Config {
        let text = r#"
            [[frontend]]
            name = "www"
            mode = "http"
            address = "127.0.0.1:8080"
            [[frontend.site]]
            [[frontend.site.mount]]
            pattern = "/*"
            pool = "app"
            [[pool]]
            name = "app"
            [[pool.backend]]
            name = "s1"
            address = "127.0.0.1:8081"
            max_connections = 7
        "#;
        crate::config::parse("test", text).unwrap()
    }

    #[test]
    fn a_frontends_counters_have_their_places() {
        let config = config();
        let (live, counts) = (FrontendLive::default(), FrontendCounts::new(2));
        live.connections.store(3, Relaxed);
        live.connections_most.store(5, Relaxed);
        live.parked.store(2, Relaxed);
        enter(1);
        counts.request(200, Cause::Done, 1, 2);
        counts.request(503, Cause::QueueFull, 3, 4);
        let status = frontend_status(&config.http.frontends[0], &live, &counts);
        assert_eq!((status.name.as_str(), status.tls), ("www", false));
        assert_eq!(status.address, Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!((status.connections, status.connections_most), (3, 5));
        assert_eq!((status.parked, status.requests), (2, 2));
        assert_eq!((status.bytes_in, status.bytes_out), (4, 6));
        let one = |name: &str| BTreeMap::from([(name.to_owned(), 1)]);
        assert_eq!(status.causes, one("queue-full"));
        assert_eq!(status.statuses.len(), 2);
        assert_eq!((status.statuses["2xx"], status.statuses["5xx"]), (1, 1));
        let threads = threads_status([&counts, &counts]);
        let requests: Vec<u64> = threads.iter().map(|t| t.requests).collect();
        assert_eq!(requests, [0, 4]);
    }

    #[test]
    fn a_pools_counters_have_their_places() {
        let config = config();
        let state = |_: &str| (crate::model::Health::Up, crate::model::Activation::Drain);
        let now = std::time::Instant::now();
        let view = PoolView::new(&config.pools[0], None, 100, &state, now);
        let live = &view.backends[0].live;
        live.requests.store(9, Relaxed);
        live.statuses[2].store(6, Relaxed);
        live.timeouts.store(1, Relaxed);
        view.live.queue.timeouts.store(4, Relaxed);
        let status = pool_status(&view);
        assert_eq!((status.name.as_str(), status.queue_timeouts), ("app", 4));
        assert_eq!(status.queue_limit, view.pool.http.queue.length as u64);
        let [backend] = &status.backends[..] else {
            panic!("{status:?}");
        };
        assert_eq!(
            (backend.name.as_str(), backend.route.as_str()),
            ("s1", "s1")
        );
        assert_eq!(backend.in_flight_limit, Some(7));
        assert_eq!((backend.requests, backend.timed_out), (9, 1));
        assert_eq!(backend.statuses, BTreeMap::from([("2xx".to_owned(), 6)]));
        assert_eq!((backend.ejected_ms, backend.sessions), (None, None));
        assert_eq!(backend.activation, crate::model::Activation::Drain);
    }
}
