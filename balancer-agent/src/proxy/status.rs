//! The web tier's status: counters gathered from where they are counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::balance::{BackendView, PoolView, clock};
use super::downstream::{FrontendLive, Listeners, Refused};
use super::log::LogFiles;
use super::stats::{
    HttpBackendStatus, HttpFrontendStatus, HttpPoolStatus, HttpStatus, Sums, ThreadStatus,
};
use super::types::Cause;
use super::world::{FrontendWorld, World};
use crate::model::http::Action;

/// Gathers it.
pub fn status(world: &World, listeners: &Listeners, logs: &LogFiles) -> HttpStatus {
    let live = listeners.live();
    let frontends = world.frontends.iter().map(|frontend| {
        let live = live.iter().find(|(name, _)| *name == frontend.model.name);
        frontend_status(frontend, live.map(|(_, live)| live))
    });
    let named: Vec<&Arc<str>> = world
        .frontends
        .iter()
        .flat_map(|frontend| &frontend.model.sites)
        .flat_map(|site| site.mounts.iter().map(|m| &m.route).chain(&site.fallback))
        .filter_map(|route| match &route.action {
            Action::Pool(pool) => Some(pool),
            _ => None,
        })
        .collect();
    let pools = world.pools.iter().map(|pool| &pool.view);
    let pools = pools.filter(|view| named.contains(&&view.pool.name));
    HttpStatus {
        connections: listeners.connections() as u64,
        connections_limit: world.config.http.max_connections as u64,
        threads: threads(world, listeners.threads()),
        frontends: frontends.collect(),
        pools: pools.map(|view| pool_status(view)).collect(),
        logs: logs.status(),
    }
}

fn threads(world: &World, number: usize) -> Vec<ThreadStatus> {
    let mut threads = vec![ThreadStatus::default(); number];
    for frontend in world.frontends.iter() {
        for (thread, sums) in threads.iter_mut().zip(frontend.counts.threads()) {
            thread.requests += sums.requests();
            thread.bytes_in += sums.bytes_in;
            thread.bytes_out += sums.bytes_out;
        }
    }
    threads
}

fn frontend_status(
    frontend: &FrontendWorld,
    live: Option<&Arc<FrontendLive>>,
) -> HttpFrontendStatus {
    let Sums {
        statuses,
        causes,
        bytes_in,
        bytes_out,
    } = frontend.counts.total();
    let counted = |(name, n): (&str, u64)| (n > 0).then(|| (name.to_owned(), n));
    let mut status = HttpFrontendStatus {
        name: frontend.model.name.to_string(),
        address: Some(frontend.model.address),
        tls: frontend.model.tls.is_some(),
        connections_limit: frontend.model.limits.connections as u64,
        requests: statuses.iter().sum(),
        statuses: classes(statuses),
        causes: Cause::ALL
            .iter()
            .map(|cause| (cause.word(), causes[cause.index()]))
            .filter_map(counted)
            .collect(),
        bytes_in,
        bytes_out,
        ..HttpFrontendStatus::default()
    };
    if let Some(live) = live {
        status.connections = live.connections.load(Relaxed) as u64;
        status.parked = live.parked.load(Relaxed) as u64;
        status.http2 = live.http2.load(Relaxed) as u64;
        status.connections_total = live.connections_total.load(Relaxed);
        status.tls_handshakes = live.tls_handshakes.load(Relaxed);
        status.tls_resumed = live.tls_resumed.load(Relaxed);
        status.in_flight = live.in_flight.load(Relaxed) as u64;
        status.send_timeouts = live.send_timeouts.load(Relaxed);
        status.accept_pauses = live.accept_pauses.load(Relaxed);
        status.refused = Refused::ALL
            .iter()
            .map(|cause| (cause.word(), live.refused(*cause)))
            .filter_map(counted)
            .collect();
    }
    status
}

/// By class of status.
fn classes(counted: impl IntoIterator<Item = u64>) -> BTreeMap<String, u64> {
    let names = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter();
    let all = names.zip(counted).filter(|(_, n)| *n > 0);
    all.map(|(name, n)| (name.to_owned(), n)).collect()
}

fn pool_status(view: &PoolView) -> HttpPoolStatus {
    let live = &view.live;
    HttpPoolStatus {
        name: view.pool.name.to_string(),
        queue: live.queue.len() as u64,
        queue_refused: live.queue.full.load(Relaxed),
        queue_timeouts: live.queue.timeouts.load(Relaxed),
        none_usable: live.none_usable.load(Relaxed),
        forced: live.forced.load(Relaxed),
        queue_limit: view.pool.http.queue.length as u64,
        retries: view.backends.iter().map(|b| b.live.retries.load(Relaxed)).sum(),
        retries_refused: live.retries_refused.load(Relaxed),
        backends: view.backends.iter().map(backend_status).collect(),
        ..HttpPoolStatus::default()
    }
}

fn backend_status(backend: &BackendView) -> HttpBackendStatus {
    let live = &backend.live;
    let until = live.ejected_until();
    let now = clock::now();
    HttpBackendStatus {
        name: backend.name.to_string(),
        route: backend.http.route.to_string(),
        health: backend.health,
        activation: backend.activation,
        in_flight: live.in_flight().into(),
        in_flight_limit: backend.http.max_connections.map(Into::into),
        requests: live.requests.load(Relaxed),
        connect_failed: live.connect_failures.load(Relaxed),
        broken: live.broken.load(Relaxed),
        timed_out: live.timeouts.load(Relaxed),
        retries: live.retries.load(Relaxed),
        statuses: classes(live.statuses.iter().map(|n| n.load(Relaxed))),
        client_aborted: live.aborted.load(Relaxed),
        ejected_ms: (until > now).then(|| (until - now) / 1000),
        ejections: live.ejections.load(Relaxed),
        sessions: None,
    }
}
