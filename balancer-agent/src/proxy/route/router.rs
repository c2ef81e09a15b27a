//! Which route a request takes: site, mount, exclusion, fallback.
//!
//! Built once per HTTP frontend and snapshot; a lookup allocates nothing and locks nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::host::Hosts;
use super::path::NormalPath;
use super::pattern::Patterns;
use crate::model::http::{Action, Exclusion, HttpFrontend, Mount, Route, Site};
use crate::proxy::files::{Documents, OpenError};

/// The compiled sites of a frontend.
#[derive(Debug)]
pub struct Router {
    hosts: Hosts,
    sites: Vec<CompiledSite>,
}

#[derive(Debug)]
struct CompiledSite {
    site: Arc<Site>,
    mounts: Patterns,
    /// For each mount, in the order of the file.
    targets: Vec<Target>,
    fallback: Option<Arc<Documents>>,
    /// One per pool (or other action) that mounts name.
    exclusions: Vec<Exclusions>,
}

#[derive(Debug)]
struct Target {
    /// Place of the exclusions that hold for its pool.
    exclusions: usize,
    documents: Option<Arc<Documents>>,
}

/// Exclusions that hold for one pool.
#[derive(Debug)]
struct Exclusions {
    patterns: Patterns,
    /// Their places among the site's.
    places: Vec<usize>,
}

/// What [`Router::find`] found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found<'r> {
    /// The site that the host belongs to; without one the answer is 404 (or 421).
    pub site: Option<&'r Arc<Site>>,
    /// The mount that took the path, even if an exclusion gave it back.
    pub mount: Option<&'r Arc<Mount>>,
    /// The exclusion that gave it back.
    pub exclusion: Option<&'r Exclusion>,
    /// What is to be done: the mount's, or the site's fallback; 404 without.
    pub route: Option<&'r Arc<Route>>,
    /// The opened document root, if the route's action is [`Action::Files`] and the router
    /// was made by [`Router::open`].
    pub documents: Option<&'r Arc<Documents>>,
}

impl Router {
    /// Compiles a frontend's sites. Document roots are not opened.
    pub fn new(frontend: &HttpFrontend) -> Self {
        Self {
            hosts: Hosts::new(frontend.sites.iter().map(|site| &**site)),
            sites: frontend.sites.iter().map(CompiledSite::new).collect(),
        }
    }

    /// As [`Self::new`], with the document roots open for serving.
    ///
    /// # Errors
    /// Roots that are not there or are no directories, or for which the kernel lacks what
    /// is needed to keep requests inside: all of them.
    pub fn open(frontend: &HttpFrontend) -> Result<Self, Vec<OpenError>> {
        let mut router = Self::new(frontend);
        let mut errors = Vec::new();
        let mut open = |route: &Route| match &route.action {
            Action::Files(files) => Documents::open(files)
                .map_err(|error| errors.push(error))
                .map_or(None, |documents| Some(Arc::new(documents))),
            _ => None,
        };
        for compiled in &mut router.sites {
            for (mount, target) in compiled.site.mounts.iter().zip(&mut compiled.targets) {
                target.documents = open(&mount.route);
            }
            if let Some(route) = &compiled.site.fallback {
                compiled.fallback = open(route);
            }
        }
        match errors.is_empty() {
            true => Ok(router),
            false => Err(errors),
        }
    }

    /// Where a request goes; `host` as the `Host` header or `:authority` has it.
    pub fn find(&self, host: Option<&str>, path: &NormalPath<'_>) -> Found<'_> {
        let Some(place) = self.hosts.find(host) else {
            return Found::default();
        };
        let compiled = &self.sites[place];
        let site = &compiled.site;
        let path = path.decoded();
        let Some(place) = compiled.mounts.find(path) else {
            return Found {
                site: Some(site),
                route: site.fallback.as_ref(),
                documents: compiled.fallback.as_ref(),
                ..Found::default()
            };
        };
        let (mount, target) = (&site.mounts[place], &compiled.targets[place]);
        let exclusions = &compiled.exclusions[target.exclusions];
        match exclusions.patterns.find(path) {
            None => Found {
                site: Some(site),
                mount: Some(mount),
                exclusion: None,
                route: Some(&mount.route),
                documents: target.documents.as_ref(),
            },
            Some(place) => Found {
                site: Some(site),
                mount: Some(mount),
                exclusion: Some(&site.exclusions[exclusions.places[place]]),
                route: site.fallback.as_ref(),
                documents: compiled.fallback.as_ref(),
            },
        }
    }
}

impl CompiledSite {
    fn new(site: &Arc<Site>) -> Self {
        let mut sets: HashMap<Option<&str>, usize> = HashMap::new();
        let mut exclusions = Vec::new();
        let mut targets = Vec::new();
        for mount in &site.mounts {
            let pool = match &mount.route.action {
                Action::Pool(pool) => Some(&**pool),
                _ => None,
            };
            let set = *sets.entry(pool).or_insert_with(|| {
                exclusions.push(Exclusions::new(&site.exclusions, pool));
                exclusions.len() - 1
            });
            targets.push(Target {
                exclusions: set,
                documents: None,
            });
        }
        Self {
            site: site.clone(),
            mounts: Patterns::new(site.mounts.iter().map(|m| &*m.pattern)),
            targets,
            fallback: None,
            exclusions,
        }
    }
}

impl Exclusions {
    /// Those for `pool` and those for any.
    fn new(all: &[Exclusion], pool: Option<&str>) -> Self {
        let places: Vec<usize> = (0..all.len())
            .filter(|&place| all[place].pool.is_none() || all[place].pool.as_deref() == pool)
            .collect();
        Self {
            patterns: Patterns::new(places.iter().map(|&place| &*all[place].pattern)),
            places,
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
