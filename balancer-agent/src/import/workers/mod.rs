//! mod_jk: `workers.properties`, `uriworkermap.properties`, and httpd's configuration with
//! its mounts.
//!
//! - `properties`: mod_jk's properties; `attributes`, `worker`: pools; `map`: mounts.

mod attributes;
pub mod map;
mod properties;
mod worker;

use std::collections::HashMap;
use std::path::Path;

use super::draft::Table;
use super::names::Names;
use super::rules::Rule;
use super::source::{ImportError, Place, Reader};
use super::{Imported, Options, Report, finish, httpd, rules, sites};
use map::Mounts;
use properties::Properties;
use worker::{Kind, Workers};

/// What a worker has become.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A pool of this name.
    Pool(String),
    /// The view of statistics.
    Status,
}

/// Workers by name.
pub type Targets = HashMap<String, Target>;

/// Imports the files.
pub fn import(
    file: &Path,
    map: Option<&Path>,
    conf: Option<&Path>,
    options: &Options,
) -> Result<Imported, ImportError> {
    let mut reader = Reader::default();
    let mut report = Report::default();
    let source = reader.read(file)?;
    let mut properties = Properties::default();
    properties.read(&source, options)?;
    let server = match conf {
        Some(conf) => Some(httpd::read(conf, &mut reader, options, &mut report)?),
        None => None,
    };
    for (place, line) in server.iter().flat_map(|server| &server.worker_properties) {
        properties.line(place, line, options)?;
    }
    properties.inherit()?;
    let mut own = Mounts::default();
    if let Some(map) = map {
        own.file(&reader.read(map)?, &mut report)?;
    }
    let workers = Workers::new(&properties, options);
    let mut named = workers.listed();
    if named.is_empty() && properties.names().next().is_none() {
        let expected = "workers, such as `worker.list=app`: is this a workers.properties?";
        return Err(ImportError::whole(
            &source.name,
            "has no worker in it",
            expected,
        ));
    }
    // mod_jk would not take them, but what is meant is plain.
    let mounted = own
        .rules
        .iter()
        .chain(server.iter().flat_map(|server| server.rules()));
    let mounted = mounted.filter(|rule| workers.place(&rule.worker).is_some());
    named.extend(mounted.map(|rule| (rule.worker.clone(), rule.place.clone())));
    let mut targets = Targets::new();
    let mut pools = Vec::new();
    let mut names = Names::default();
    for (worker, place) in &named {
        if targets.contains_key(worker) {
            continue;
        }
        match workers.kind(worker) {
            Kind::Status => _ = targets.insert(worker.clone(), Target::Status),
            Kind::Other => {
                let kind = workers.get(worker, "type");
                let place = kind.map_or(place, |p| &p.place);
                let what = format!(
                    "worker.{worker}.type={}",
                    kind.map_or("", |p| p.value.as_str())
                );
                report.left(
                    place,
                    what,
                    "there are workers of types ajp13, lb and status",
                );
            }
            Kind::Ajp | Kind::Balancer => {
                if let Some(pool) = workers.pool(worker, place, &mut names, &mut report) {
                    let name = pool.text("name").unwrap_or_default().to_owned();
                    targets.insert(worker.clone(), Target::Pool(name));
                    pools.push(pool);
                }
            }
        }
    }
    workers.left_over(&mut report);
    let mut root = Table::default();
    match (&server, own.rules.is_empty()) {
        (Some(server), _) => {
            if let Some(rule) = own.rules.first() {
                let reason = "added to the rules of the main server";
                report.note(&rule.place, "uriworkermap", reason);
            }
            httpd::frontends(server, &own, &targets, &mut root, &mut report);
        }
        (None, false) => {
            let place = own.rules[0].place.clone();
            let reason = "without httpd's configuration it is not known where it listens: write the right `address`";
            report.note(&place, "uriworkermap", reason);
            let mut frontend = Table::one_of("frontend", &place);
            frontend
                .set_own("name", "www")
                .set_own("mode", "http")
                .set_own("address", "0.0.0.0:80");
            let (mounts, excluded) = mounts(&own, &targets, &mut report);
            sites::add(&mut frontend, &[], &place, mounts, |site| {
                for exclusion in excluded {
                    site.push(exclusion);
                }
            });
            root.push(frontend);
        }
        (None, true) => {
            let place = Place {
                file: source.name.clone(),
                line: 1,
            };
            let reason = "only pools: without --httpd or --map it is not known what goes to them";
            report.note(&place, "workers", reason);
        }
    }
    for pool in pools {
        root.push(pool);
    }
    let mut from = source.name.to_string();
    for other in [map, conf].into_iter().flatten() {
        from.push_str(&format!(", {}", other.display()));
    }
    let head = format!("Made of {from} by `balancer import workers`; see docs/import.md.");
    finish::finish(root, &source.name, &head, report)
}

/// The mounts and exclusions of a server, in the order of their rules.
pub fn mounts(mounts: &Mounts, targets: &Targets, report: &mut Report) -> (Vec<Table>, Vec<Table>) {
    let mut rules: Vec<Rule> = Vec::new();
    let mut excluded: Vec<Table> = Vec::new();
    for rule in &mounts.rules {
        let target = targets.get(&rule.worker);
        let word = if rule.excluded {
            "JkUnMount"
        } else {
            "JkMount"
        };
        let what = format!("{word} {} {}", rule.pattern, rule.worker);
        if rule.excluded {
            let pool = match (target, rule.worker.as_str()) {
                (_, "*") => None,
                (Some(Target::Pool(pool)), _) => Some(pool.clone()),
                _ => {
                    report.left(
                        &rule.place,
                        what,
                        "there is no such worker that was carried over",
                    );
                    continue;
                }
            };
            // Exclusions for one pool that follow each other are one table.
            let same = excluded
                .last_mut()
                .filter(|last| last.text("pool") == pool.as_deref());
            match same {
                Some(last) => last.add("pattern", rule.pattern.as_str(), &rule.place),
                None => {
                    let mut table = Table::one_of("exclude", &rule.place);
                    table.add("pattern", rule.pattern.as_str(), &rule.place);
                    if let Some(pool) = pool {
                        table.set("pool", pool, &rule.place);
                    }
                    excluded.push(table);
                }
            }
            continue;
        }
        let mut action = Table::one_of("mount", &rule.place);
        match target {
            Some(Target::Pool(pool)) => _ = action.set("pool", pool.as_str(), &rule.place),
            Some(Target::Status) => {
                action
                    .table("stats")
                    .set("format", "jk-status", &rule.place);
                let reason = "the status can be read by clients on this host: add networks to its `allow`; it changes nothing";
                report.note(&rule.place, &what, reason);
            }
            None => {
                report.left(
                    &rule.place,
                    what,
                    "there is no such worker that was carried over",
                );
                continue;
            }
        }
        rules.push(Rule {
            patterns: vec![rule.pattern.clone()],
            action,
            place: rule.place.clone(),
        });
    }
    // Their order is mod_jk's already: most slashes, then the longest, then the first.
    let mut tables: Vec<Table> = Vec::new();
    for rule in rules::as_they_are(rules) {
        tables.push(rule);
    }
    (tables, excluded)
}
