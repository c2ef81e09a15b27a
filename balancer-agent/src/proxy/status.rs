//! The web tier's status: counters gathered from where they are counted.

use std::sync::Arc;

use super::downstream::Listeners;
use super::log::LogFiles;
use super::stats::{HttpStatus, build};
use super::world::World;
use crate::model::http::Action;

/// Gathers it.
pub fn status(world: &World, listeners: &Listeners, logs: &LogFiles) -> HttpStatus {
    let live = listeners.live();
    let frontends = world.frontends.iter().map(|frontend| {
        let model = &frontend.model;
        let live = live.iter().find(|(name, _)| *name == model.name);
        // Between two configurations a frontend may not be listened on for a moment.
        let live = live.map(|(_, live)| Arc::clone(live)).unwrap_or_default();
        build::frontend_status(model, &live, &frontend.counts)
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
        threads: build::threads_status(world.frontends.iter().map(|f| &*f.counts)),
        frontends: frontends.collect(),
        pools: pools.map(|view| build::pool_status(view)).collect(),
        logs: logs.status(),
    }
}
