//! `[session]`: the groups whose sessions are kept by several nodes together.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::cross;
use super::findings::{Findings, Span, quote};
use super::http::value::header_name;
use super::pool::PoolDraft;
use super::raw::{RawSession, RawSessionGroup, Value};
use super::resolve::{duration_or, name};
use super::value;
use crate::model::Named;
use crate::model::http::Sticky;
use crate::model::session::{PoolSessions, SessionGroup, SessionManager, Sessions};
use crate::session::group_key;

/// A node tells the others its groups with every message.
const GROUPS_MAX: usize = 16;
const COPIES: RangeInclusive<u8> = 1..=7;
const COPIES_DEFAULT: u8 = 1;
const SYNC_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const SYNC_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
const TTL_DEFAULT: Duration = Duration::from_secs(1_800);
const SESSIONS: RangeInclusive<u32> = 1_000..=100_000_000;
const SESSIONS_DEFAULT: u32 = 4_000_000;
const BYTES: RangeInclusive<u64> = 1_048_576..=1_099_511_627_776;
const BYTES_DEFAULT: u64 = 2_147_483_648;
const DIRECTORY: &str = "/var/lib/balancer/sessions";
const NAME: &str = "\"user\"";

/// Builds the model. `None`: there is no group, or something is wrong and noted.
pub(super) fn sessions(
    raw: &RawSession,
    span: Span,
    clustered: bool,
    findings: &mut Findings,
) -> Option<Sessions> {
    let sessions_max = findings.or("sessions_max", &raw.sessions_max, SESSIONS_DEFAULT, |v| {
        v.integer(SESSIONS)
    });
    let bytes_max = findings.or("bytes_max", &raw.bytes_max, BYTES_DEFAULT, |v| {
        v.integer(BYTES)
    });
    let directory = findings.or("directory", &raw.directory, DIRECTORY.into(), |v| {
        value::path(v.text(&format!("\"{DIRECTORY}\""))?, DIRECTORY)
    });
    if raw.group.is_empty() {
        let message = "`[session]` has no group: no session is kept";
        findings.warn(span, message, "a `[[session.group]]`");
        return None;
    }
    if let Some(more) = raw.group.get(GROUPS_MAX) {
        let message = format!("there are {} groups of sessions", raw.group.len());
        findings.error(more.span(), message, format!("at most {GROUPS_MAX}"));
    }
    let mut names: Vec<Spanned<Arc<str>>> = Vec::new();
    let mut groups = Vec::new();
    for table in &raw.group {
        let (name, group) = group(table.get_ref(), table.span(), clustered, findings);
        if let (Some(name), Some(group)) = (name, group) {
            same_key(&name, &names, findings);
            names.push(name);
            groups.push(group);
        }
    }
    cross::unique(&names, findings, |name| {
        let message = format!("there are two groups {}", quote(name));
        (message, "a name of its own for each group".into())
    });
    let persistent = raw.group.iter().find_map(|table| {
        let field = table.get_ref().manager.as_ref()?;
        matches!(field.get_ref(), Value::Text(text) if *text == "persistent").then_some(field)
    });
    match (&raw.directory, persistent) {
        (Some(field), None) => {
            let message = "`directory` does not belong to a `[session]` without a group with \
                           the manager \"persistent\", where nothing is on disk";
            let expected = "`manager = \"persistent\"` in a group, or no `directory`";
            findings.error(field.span(), message, expected);
        }
        (field, Some(manager)) => {
            // One that is not written has its place where it became needed.
            let span = field.as_ref().unwrap_or(manager).span();
            let named = Named::SessionDirectory(directory.clone());
            findings.places.add(named, span);
        }
        (None, None) => {}
    }
    Some(Sessions {
        groups,
        sessions_max: sessions_max as usize,
        bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
        directory,
    })
}

/// What a group's `manager` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Delta,
    Backup,
    Persistent,
}

/// Peers tell groups apart by a hash of their names.
fn same_key(name: &Spanned<Arc<str>>, before: &[Spanned<Arc<str>>], findings: &mut Findings) {
    let (key, text) = (group_key(name.get_ref()), name.get_ref());
    let same =
        |other: &&Spanned<Arc<str>>| other.get_ref() != text && group_key(other.get_ref()) == key;
    if let Some(other) = before.iter().find(same) {
        let other = quote(other.get_ref());
        let message = format!(
            "nodes can't tell the groups {} and {other} apart",
            quote(text)
        );
        findings.error(name.span(), message, "another name for one of them");
    }
}

fn group(
    raw: &RawSessionGroup,
    span: Span,
    clustered: bool,
    findings: &mut Findings,
) -> (Option<Spanned<Arc<str>>>, Option<SessionGroup>) {
    let table = ("a group of sessions", &span);
    let name = findings.required("name", &raw.name, table, NAME, |v| name(v, NAME));
    let manager = findings.or("manager", &raw.manager, Manager::Delta, |v| {
        v.word(
            &[
                ("delta", Manager::Delta),
                ("backup", Manager::Backup),
                ("persistent", Manager::Persistent),
            ],
            &["redis"],
        )
    });
    let copies = findings.or("copies", &raw.copies, COPIES_DEFAULT, |v| v.integer(COPIES));
    let sync = findings.or("replication", &raw.replication, false, |v| {
        v.word(&[("async", false), ("sync", true)], &[])
    });
    let sync_timeout = duration_or(
        findings,
        "sync_timeout",
        &raw.sync_timeout,
        SYNC_TIMEOUT_DEFAULT,
        SYNC_TIMEOUT,
    );
    let sync_header = findings.optional("sync_header", &raw.sync_header, |v| {
        header_name(v.text("\"X-Session-Kept\"")?)
    });
    let ttl = duration_or(findings, "ttl", &raw.ttl, TTL_DEFAULT, TTL);
    if let (Some(field), Manager::Delta) = (&raw.copies, manager) {
        let message = "`copies` does not belong to a group with the manager \"delta\", \
                       where every node has one";
        let expected = "`manager = \"backup\"` or `\"persistent\"`, or no `copies`";
        findings.error(field.span(), message, expected);
    }
    for (key, field) in [
        ("sync_timeout", &raw.sync_timeout),
        ("sync_header", &raw.sync_header),
    ] {
        if let (Some(field), false) = (field, sync) {
            let message = format!(
                "`{key}` does not belong to a group with the replication \"async\", where \
                 nothing waits"
            );
            let expected = format!("`replication = \"sync\"`, or no `{key}`");
            findings.error(field.span(), message, expected);
        }
    }
    let asked = match manager {
        // A disk is worth having, and waiting for, without other nodes.
        Manager::Persistent => [raw.copies.as_ref(), None],
        _ => [
            raw.manager.as_ref().filter(|_| manager == Manager::Backup),
            raw.replication.as_ref().filter(|_| sync),
        ],
    };
    if let (Some(field), false) = (asked.into_iter().flatten().next(), clustered) {
        let message = "copies on other nodes, and there is no `[cluster]`";
        findings.warn(
            field.span(),
            message,
            "a `[cluster]`; sessions stay on this node",
        );
    }
    let group = name.as_ref().map(|name| SessionGroup {
        name: Arc::clone(name.get_ref()),
        manager: match manager {
            Manager::Delta => SessionManager::Delta,
            Manager::Backup => SessionManager::Backup(copies),
            Manager::Persistent => SessionManager::Persistent(copies),
        },
        sync_timeout: sync.then_some(sync_timeout),
        sync_header: sync_header.map(Spanned::into_inner),
        ttl,
    });
    (name, group)
}

/// Connects pools with their groups.
pub(super) fn of_pools(
    pools: &mut [PoolDraft],
    raw: Option<&RawSession>,
    sessions: Option<&Sessions>,
    findings: &mut Findings,
) {
    let groups = sessions.map_or(&[][..], |sessions| &sessions.groups);
    let mut used = Vec::new();
    for pool in pools {
        let Some(wanted) = &pool.http.group else {
            continue;
        };
        let found = groups.iter().find(|group| group.name == *wanted.get_ref());
        let Some(group) = found else {
            // It may be one whose name is wrong, which has been noted.
            if groups.len() < raw.map_or(0, |raw| raw.group.len()) {
                continue;
            }
            let message = format!("there is no group {} of sessions", quote(wanted.get_ref()));
            let known: Vec<String> = groups.iter().map(|group| quote(&group.name)).collect();
            let expected = match known.is_empty() {
                true => format!(
                    "a `[[session.group]]` with `name = {}`",
                    quote(wanted.get_ref())
                ),
                false => format!("one of {}", known.join(", ")),
            };
            findings.error(wanted.span(), message, expected);
            continue;
        };
        used.push(Arc::clone(&group.name));
        let ttl = match &mut pool.http.model.sticky {
            Some(Sticky::Learn(learn)) => {
                if !pool.http.idle_written {
                    learn.idle = group.ttl;
                }
                learn.idle
            }
            _ => group.ttl,
        };
        pool.http.model.sessions = Some(PoolSessions {
            group: Arc::clone(&group.name),
            ttl,
            sync_header: group.sync_header.clone(),
        });
    }
    for table in raw.map_or(&[][..], |raw| &raw.group) {
        let Some(field) = &table.get_ref().name else {
            continue;
        };
        let known = groups
            .iter()
            .find(|group| matches!(field.get_ref(), Value::Text(text) if **text == *group.name));
        if known.is_some_and(|group| !used.contains(&group.name)) {
            let message = "no pool has its sessions in this group";
            let expected = "`group` in the `[pool.sticky]` of one";
            findings.warn(field.span(), message, expected);
        }
    }
}
