//! Sites: their hosts, mounts, exclusions and fallback.

use std::collections::HashSet;
use std::sync::Arc;

use toml::Spanned;

use super::raw::{RawExclusion, RawRoute, RawSite, Tables};
use super::route::{self, PoolReference, plain_files, plain_pool};
use super::value as http_value;
use crate::config::cross;
use crate::config::findings::{Findings, Mistake, Span, quote};
use crate::config::raw::{Field, Section, Value};
use crate::config::value;
use crate::model::http::{Action, Exclusion, HostPattern, Mount, Site};

/// The pattern of the short forms: everything.
const ALL: &str = "/*";

/// Pools that something refers to.
#[derive(Default)]
pub(in crate::config) struct References {
    /// Requests go there.
    pub(in crate::config) routed: Vec<PoolReference>,
    /// Only named.
    pub(in crate::config) excluded: Vec<PoolReference>,
}

/// Reads the sites of a frontend. `pool` is its short form.
pub(super) fn sites(
    raw: &Tables<RawSite>,
    pool: Option<PoolReference>,
    references: &mut References,
    findings: &mut Findings,
) -> Vec<Arc<Site>> {
    let mut sites = Vec::new();
    let mut hosts: HashSet<HostPattern> = HashSet::new();
    let mut for_all = false;
    for table in raw {
        let (names, written) = hosts_of(table.get_ref(), findings);
        cross::unique(&names, findings, |host| {
            let message = format!("host {} is twice in a site", quote(&show(host)));
            (message, "each host once".into())
        });
        let mut own = HashSet::new();
        for host in &names {
            if own.insert(host.get_ref().clone()) && hosts.contains(host.get_ref()) {
                let message = format!("host {} already has a site", quote(&show(host.get_ref())));
                let expected = "one site for a host: what is mounted there stands together";
                findings.error(host.span(), message, expected);
            }
        }
        hosts.extend(own);
        if !written {
            if for_all {
                let message = "this site is never reached: one before it is for every host as well";
                findings.error(table.span(), message, "`hosts`, or one site for every host");
            }
            for_all = true;
        }
        let names = names.into_iter().map(Spanned::into_inner).collect();
        sites.push(Arc::new(site(
            table.get_ref(),
            &table.span(),
            names,
            references,
            findings,
        )));
    }
    if let Some(pool) = pool {
        if for_all {
            let message =
                "the frontend's `pool` gets nothing: a site without `hosts` is for every host";
            findings.error(
                pool.span(),
                message,
                "`pool` in that site, or no `pool` here",
            );
        }
        sites.push(Arc::new(Site {
            hosts: Vec::new(),
            mounts: vec![everything(pool.get_ref())],
            exclusions: Vec::new(),
            fallback: None,
        }));
        references.routed.push(pool);
    }
    sites
}

fn everything(pool: &Arc<str>) -> Arc<Mount> {
    Arc::new(Mount {
        pattern: ALL.into(),
        route: plain_pool(Arc::clone(pool)),
    })
}

/// The hosts, and whether any are written: a wrong one is no host, but the site
/// is not for every host either.
fn hosts_of(raw: &RawSite, findings: &mut Findings) -> (Vec<Spanned<HostPattern>>, bool) {
    let expected = "an array of host names such as [\"www.example.org\"]";
    if let Some(field) = &raw.hosts
        && matches!(field.get_ref(), Value::Array(items) if items.is_empty())
    {
        let expected = "host names, or no `hosts` for a site that is for every host";
        findings.error(field.span(), "`hosts` is an empty array", expected);
    }
    let hosts = findings.list("hosts", &raw.hosts, expected, |v| {
        http_value::host_pattern(v.text("\"www.example.org\"")?)
    });
    (hosts, raw.hosts.is_some())
}

fn show(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Suffix(suffix) => format!("*{suffix}"),
    }
}

fn site(
    raw: &Section<RawSite>,
    span: &Span,
    hosts: Vec<HostPattern>,
    references: &mut References,
    findings: &mut Findings,
) -> Site {
    let routed_before = references.routed.len();
    let mut mounts = Vec::new();
    let mut patterns = HashSet::new();
    for table in &raw.mount {
        mount(table, &mut patterns, &mut mounts, references, findings);
    }
    if let Some(pool) = route::reference("pool", &raw.pool, findings) {
        if patterns.contains(ALL) {
            let message = "the site's `pool` gets nothing: a mount has the pattern \"/*\"";
            findings.error(
                pool.span(),
                message,
                "`pool` in that mount, or no `pool` here",
            );
        }
        mounts.push(everything(pool.get_ref()));
        references.routed.push(pool);
    }
    let fallback = raw.fallback.as_ref().and_then(|table| {
        if let Some(field) = &table.get_ref().pattern {
            let message = "a fallback has no pattern: it takes what no mount does";
            findings.error(
                field.span(),
                message,
                "no `pattern`, or a `[[frontend.site.mount]]`",
            );
        }
        let pools = &mut references.routed;
        route::route(
            table.get_ref(),
            "a fallback",
            &table.span(),
            pools,
            findings,
        )
    });
    let root = findings.optional("root", &raw.root, |v| {
        value::path(v.text("\"/var/www/site\"")?, "/var/www/site")
    });
    if let (Some(field), Some(_)) = (&raw.root, &raw.fallback) {
        let message = "the site has both `root` and a fallback";
        let expected = "one of them: `root` is the short form of a fallback with `files`";
        findings.error(field.span(), message, expected);
    }
    if let Some(root) = &root {
        route::note_root(root, findings);
    }
    let pooled: HashSet<&str> = mounts
        .iter()
        .filter_map(|mount: &Arc<Mount>| match &mount.route.action {
            Action::Pool(pool) => Some(&**pool),
            _ => None,
        })
        .collect();
    // After a mistake in a mount its pool may be missing here.
    let certain = references.routed.len() - routed_before >= raw.mount.len();
    let mut exclusions = Vec::new();
    for table in &raw.exclude {
        exclusion(
            table,
            &pooled,
            certain,
            &mut exclusions,
            references,
            findings,
        );
    }
    let nothing =
        raw.mount.is_empty() && raw.pool.is_none() && raw.root.is_none() && raw.fallback.is_none();
    if nothing {
        let expected =
            "`pool`, `root`, a `[[frontend.site.mount]]` or a `[frontend.site.fallback]`";
        findings.error(span.clone(), "a site has nothing in it", expected);
    }
    Site {
        hosts,
        mounts,
        exclusions,
        fallback: fallback.or_else(|| root.map(|root| plain_files(root.into_inner()))),
    }
}

fn mount(
    table: &Spanned<Section<RawRoute>>,
    seen: &mut HashSet<Box<str>>,
    mounts: &mut Vec<Arc<Mount>>,
    references: &mut References,
    findings: &mut Findings,
) {
    let raw = table.get_ref();
    let patterns = patterns(&raw.pattern, "a mount", &table.span(), findings);
    for pattern in &patterns {
        if !seen.insert(pattern.get_ref().clone()) {
            let message = format!(
                "{} is already mounted in this site",
                quote(pattern.get_ref())
            );
            findings.error(
                pattern.span(),
                message,
                "each pattern once: the first would take all",
            );
        }
    }
    let pools = &mut references.routed;
    let Some(route) = route::route(raw, "a mount", &table.span(), pools, findings) else {
        return;
    };
    mounts.extend(patterns.into_iter().map(|pattern| {
        Arc::new(Mount {
            pattern: pattern.into_inner(),
            route: Arc::clone(&route),
        })
    }));
}

fn exclusion(
    table: &Spanned<Section<RawExclusion>>,
    pooled: &HashSet<&str>,
    certain: bool,
    exclusions: &mut Vec<Exclusion>,
    references: &mut References,
    findings: &mut Findings,
) {
    let raw = table.get_ref();
    let patterns = patterns(&raw.pattern, "an exclusion", &table.span(), findings);
    let pool = route::reference("pool", &raw.pool, findings);
    if let (Some(pool), true) = (&pool, certain)
        && !pooled.contains(&**pool.get_ref())
    {
        let name = quote(pool.get_ref());
        let message = format!("nothing of this site goes to pool {name}: nothing is excluded");
        findings.warn(pool.span(), message, "a pool that a mount of this site has");
    }
    for pattern in patterns {
        let exclusion = Exclusion {
            pattern: pattern.get_ref().clone(),
            pool: pool.as_ref().map(|pool| Arc::clone(pool.get_ref())),
        };
        if exclusions.contains(&exclusion) {
            let message = format!("{} is already excluded", quote(pattern.get_ref()));
            findings.error(pattern.span(), message, "each exclusion once");
        }
        exclusions.push(exclusion);
    }
    if let Some(pool) = pool {
        references.excluded.push(pool);
    }
}

/// A pattern, or an array of them.
fn patterns(
    field: &Field,
    what: &str,
    span: &Span,
    findings: &mut Findings,
) -> Vec<Spanned<Box<str>>> {
    let example = "\"/images/*\"";
    let read = |v: &Value| match v {
        Value::Text(text) => http_value::pattern(text),
        _ => Err(Mistake::wrong_type(
            "a pattern such as \"/images/*\", or an array of them",
        )),
    };
    match field.as_ref().map(Spanned::get_ref) {
        Some(Value::Array(items)) if items.is_empty() => {
            let place = field.as_ref().map_or(span.clone(), Spanned::span);
            findings.error(
                place,
                "`pattern` is an empty array",
                "patterns such as \"/images/*\"",
            );
            Vec::new()
        }
        Some(Value::Array(_)) => findings.list("pattern", field, example, read),
        _ => findings
            .required("pattern", field, (what, span), example, read)
            .into_iter()
            .collect(),
    }
}
