//! What operators see of the session store, and may do to it.

use serde::{Deserialize, Serialize};

use super::protocol::{Fault, Refusal};
use crate::cluster::{self, Cluster};
use crate::model::Pool;
use crate::proxy::stats::{SessionId, Web};
use crate::proxy::sticky;
use crate::session::database::{DiskState, DiskStatus};
use crate::session::handle::{CountsStatus, Sessions};
use crate::session::{GroupId, Listed, NodeId, Op, Outcome, Session, Store, Time, group_key};

/// Most sessions in one answer.
const SESSIONS_MAX: usize = 100_000;
/// Sessions that are taken from the store in one go, so that it is not held up.
const PAGE: usize = 2_000;
/// Fewer characters of an id are not searched for.
const PREFIX_MIN: usize = 8;

/// Which sessions are asked for; all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionFilter {
    /// Of this group.
    pub group: Option<String>,
    /// Bound to the backend with this route.
    pub route: Option<String>,
    /// At most so many are listed.
    pub limit: u32,
}

/// One session, as an operator names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionName {
    /// An id from a list; or what a client has: the cookie's value, or its address.
    pub id: String,
    /// Of this group only.
    pub group: Option<String>,
}

/// Sessions of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionList {
    /// As many as were asked for.
    pub sessions: Vec<SessionStatus>,
    /// There are more.
    pub more: bool,
    /// Why sessions can't be written to disk now; absent when they can, or need not.
    pub disk_error: Option<String>,
}

/// One session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionStatus {
    /// Its group.
    pub group: String,
    /// Its id in the store: a keyed hash that opens nothing.
    pub id: String,
    /// The pool; absent when the configuration has it no more.
    pub pool: Option<String>,
    /// Route of the backend that it is bound to.
    pub route: String,
    /// Since it was made, in milliseconds.
    pub age_ms: u64,
    /// Since the last access that this node knows of, in milliseconds.
    pub idle_ms: u64,
    /// Life after the last access, in milliseconds.
    pub ttl_ms: u64,
    /// The nodes that should hold it, the primary first. Only when one session is asked for.
    pub holders: Vec<String>,
    /// Whether this node has compared its copies with all of them. Likewise.
    pub settled: Option<bool>,
}

/// Sessions of one group at one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteCount {
    /// The group.
    pub group: String,
    /// Route of the backend.
    pub route: String,
    /// Copies on this node.
    pub copies: u64,
    /// Sessions of which this node is the primary: counted over all nodes, each is once.
    pub primary: u64,
    /// When the last of these ends, in milliseconds, if nobody comes back to it.
    pub last_ends_ms: u64,
}

/// The session store of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionsStatus {
    /// It has caught up with the others, and serves.
    pub ready: bool,
    /// `waiting`, `joining`, `syncing` or `ready`.
    pub phase: String,
    /// In the order of the file.
    pub groups: Vec<GroupStatus>,
    /// Operations that wait.
    pub pending: u64,
    /// Parts of groups that are still to be compared with every other node.
    pub unsettled: u64,
    /// Bytes that wait for the slowest peer.
    pub outbox_bytes: u64,
    /// Bytes sent to peers since the start.
    pub bytes_sent: u64,
    /// Writes that this node coordinated.
    pub writes: u64,
    /// Copies taken from peers.
    pub copies: u64,
    /// Sessions whose life has ended.
    pub expired: u64,
    /// Sessions ended to stay inside the memory bound.
    pub evicted: u64,
    /// Copies that were missing or old here, found by comparison, and mended.
    pub mended: u64,
    /// Operations that got no answer from the nodes they need.
    pub unavailable: u64,
    /// The sessions on disk; null without persistent groups.
    pub disk: Option<DiskStatus>,
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Sessions that this node holds.
    pub sessions: u64,
    /// Sessions that have ended and whose end is remembered.
    pub tombstones: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// What was asked of it on this node.
    #[serde(flatten)]
    pub counts: CountsStatus,
}

/// Who knows names.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub web: Option<&'a dyn Web>,
    pub cluster: Option<&'a Cluster>,
}

impl Names<'_> {
    fn node(&self, node: NodeId) -> String {
        match self.cluster {
            Some(cluster) => cluster.name_of(cluster::NodeId(node.0)),
            None => "this node".into(),
        }
    }

    fn session(&self, group: &str, id: &[u8], session: &Session) -> SessionStatus {
        let pool = self.web.and_then(|web| web.pool_of_session(id));
        SessionStatus {
            group: group.to_owned(),
            id: hex(id),
            pool: pool.map(|name| name.to_string()),
            route: session.route.to_string(),
            age_ms: session.age,
            idle_ms: session.idle,
            ttl_ms: session.ttl,
            ..SessionStatus::default()
        }
    }
}

fn hex(id: &[u8]) -> String {
    use std::fmt::Write as _;
    id.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.is_empty() || !text.len().is_multiple_of(2) || !hex {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

fn busy() -> Refusal {
    Refusal::new(
        Fault::Agent,
        "the session store has too much to do to answer now: try again",
    )
}

fn groups_named<'a>(
    sessions: &'a Sessions,
    named: Option<&str>,
) -> Result<Vec<(GroupId, &'a str)>, Refusal> {
    let all = sessions.groups().map(|(id, group)| (id, &*group.name));
    let Some(named) = named else {
        return Ok(all.collect());
    };
    let found: Vec<_> = all.clone().filter(|(_, name)| *name == named).collect();
    if found.is_empty() {
        let names: Vec<&str> = all.map(|(_, name)| name).collect();
        let message = format!("no group {named}; there is {}", names.join(", "));
        return Err(Refusal::new(Fault::Request, message));
    }
    Ok(found)
}

/// What the store says of itself; nothing when it has too much to do.
pub(super) async fn status(sessions: &Sessions) -> Option<SessionsStatus> {
    let ids: Vec<GroupId> = sessions.groups().map(|(id, _)| id).collect();
    let look = move |store: &Store, _| {
        let sizes: Vec<_> = ids.into_iter().map(|id| store.size_of(id)).collect();
        (store.standing().phase, store.counters(), sizes)
    };
    let (phase, counters, sizes) = sessions.look(look).await?;
    let groups = sessions.groups().zip(sizes);
    Some(SessionsStatus {
        ready: sessions.ready(),
        phase: phase.into(),
        groups: groups
            .map(|((_, group), (live, tombstones, bytes))| GroupStatus {
                name: group.name.to_string(),
                sessions: live as u64,
                tombstones: tombstones as u64,
                bytes: bytes as u64,
                counts: group.counts.status(),
            })
            .collect(),
        pending: counters.pending,
        unsettled: counters.unsettled,
        outbox_bytes: counters.outbox,
        bytes_sent: counters.bytes_sent,
        writes: counters.writes,
        copies: counters.copies,
        expired: counters.expired,
        evicted: counters.evicted,
        mended: counters.mended,
        unavailable: counters.unavailable,
        disk: sessions.disk().map(|disk| DiskStatus {
            backlog_bytes: counters.disk_backlog,
            behind: counters.disk_buckets,
            skipped: counters.disk_behind,
            waits_full: counters.disk_waits_full,
            ..disk.status()
        }),
    })
}

/// Sessions of a pool at one of its backends that this node holds, and when the last of
/// them ends, in milliseconds. `None`: the pool has no group, or the store has too much to
/// do.
pub(super) async fn at_backend(
    sessions: &Sessions,
    pool: &Pool,
    backend: &str,
) -> Option<(u64, u64)> {
    let group = sessions.by_name(&pool.http.sessions.as_ref()?.group)?;
    let backend = pool.backends.iter().find(|known| *known.name == *backend)?;
    let (route, key) = (backend.http.route.clone(), group_key(&pool.name));
    let look = move |store: &Store, now| {
        let of_pool = |id: &[u8]| sticky::pool_of(id) == Some(key);
        store.count_at(group, &route, of_pool, now)
    };
    sessions.look(look).await
}

/// Goes through the sessions that this node holds of a group, until `show` has enough.
async fn each(
    sessions: &Sessions,
    group: GroupId,
    mut show: impl FnMut(Listed) -> bool,
) -> Result<(), Refusal> {
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let look = move |store: &Store, now: Time| store.list(group, from, PAGE, now);
        let page = sessions.look(look).await.ok_or_else(busy)?;
        cursor = match page.last() {
            Some(last) if page.len() >= PAGE => last.cursor.checked_add(1),
            _ => None,
        };
        for listed in page {
            if !show(listed) {
                return Ok(());
            }
        }
    }
    Ok(())
}

pub(super) async fn list(
    sessions: &Sessions,
    names: Names<'_>,
    filter: SessionFilter,
) -> Result<SessionList, Refusal> {
    let limit = (filter.limit as usize).min(SESSIONS_MAX);
    let mut list = SessionList {
        disk_error: sessions.disk().and_then(DiskState::error),
        ..SessionList::default()
    };
    for (id, group) in groups_named(sessions, filter.group.as_deref())? {
        each(sessions, id, |listed| {
            let route = filter.route.as_deref();
            if route.is_some_and(|route| *listed.session.route != *route) {
                return true;
            }
            if list.sessions.len() >= limit {
                list.more = true;
                return false;
            }
            let status = names.session(group, &listed.id, &listed.session);
            list.sessions.push(status);
            true
        })
        .await?;
    }
    Ok(list)
}

pub(super) async fn counts(
    sessions: &Sessions,
    group: Option<&str>,
) -> Result<Vec<RouteCount>, Refusal> {
    let mut counts = Vec::new();
    for (id, name) in groups_named(sessions, group)? {
        let look = move |store: &Store, now| (store.routes(id), store.count_by_route(id, now));
        let (routes, primaries) = sessions.look(look).await.ok_or_else(busy)?;
        let mut of_group: Vec<RouteCount> = routes
            .into_iter()
            .filter(|(_, copies)| *copies > 0)
            .map(|(route, copies)| {
                let (primary, last) = primaries.get(&*route).copied().unwrap_or_default();
                RouteCount {
                    group: name.to_owned(),
                    route,
                    copies: copies as u64,
                    primary: primary as u64,
                    last_ends_ms: last,
                }
            })
            .collect();
        of_group.sort_by(|a, b| a.route.cmp(&b.route));
        counts.extend(of_group);
    }
    Ok(counts)
}

/// What an operator's name may mean: an id as lists show it, the beginning of one that this
/// node holds, or what a client has.
async fn meant(
    sessions: &Sessions,
    names: Names<'_>,
    name: &SessionName,
) -> Result<Vec<(GroupId, Vec<u8>)>, Refusal> {
    let groups = groups_named(sessions, name.group.as_deref())?;
    let said = name.id.trim();
    let ids = names
        .web
        .map(|web| web.session_ids(said))
        .unwrap_or_default();
    let mut found: Vec<(GroupId, Vec<u8>)> = ids
        .into_iter()
        .map(|SessionId { group, id, .. }| (group, id))
        .filter(|(group, _)| groups.iter().any(|(known, _)| known == group))
        .collect();
    if let Some(id) = unhex(said) {
        found.extend(groups.iter().map(|(group, _)| (*group, id.clone())));
    }
    let is_prefix = said.len() >= PREFIX_MIN && said.bytes().all(|b| b.is_ascii_hexdigit());
    if is_prefix {
        let said = said.to_ascii_lowercase();
        for (group, _) in &groups {
            each(sessions, *group, |listed| {
                if hex(&listed.id).starts_with(&said) {
                    found.push((*group, listed.id.into()));
                }
                found.len() < SESSIONS_MAX
            })
            .await?;
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The one session that is meant.
async fn find(
    sessions: &Sessions,
    names: Names<'_>,
    name: &SessionName,
) -> Result<(GroupId, Vec<u8>, Session), Refusal> {
    let mut found = Vec::new();
    for (group, id) in meant(sessions, names, name).await? {
        match sessions.request(group, &id, Op::Get { touch: false }).await {
            Outcome::Found(session) => found.push((group, id, *session)),
            Outcome::NotFound | Outcome::Invalid(_) => {}
            other => return Err(undone(&other)),
        }
        if found.len() > 1 {
            let what = "several sessions begin so: say more of the id, or the group";
            return Err(Refusal::new(Fault::Request, what));
        }
    }
    found.pop().ok_or_else(|| {
        let what = "no such session: it has ended, or never was (an id from `balancer sessions`, \
                    a cookie's value, or a client's address can be given)";
        Refusal::new(Fault::Request, what)
    })
}

fn undone(outcome: &Outcome) -> Refusal {
    let what = match outcome {
        Outcome::NotReady => "this node has not caught up with the others' sessions yet",
        Outcome::Busy => "the session store has too much to do: try again",
        _ => "the nodes that hold the session do not answer: try again",
    };
    Refusal::new(Fault::Agent, what)
}

pub(super) async fn show(
    sessions: &Sessions,
    names: Names<'_>,
    name: SessionName,
) -> Result<SessionStatus, Refusal> {
    let (group, id, session) = find(sessions, names, &name).await?;
    let of = sessions.group(group).map_or("", |group| &group.name);
    let status = names.session(of, &id, &session);
    let look = move |store: &Store, _| store.holders(group, &id);
    let holders = sessions.look(look).await.ok_or_else(busy)?;
    let (holders, settled) = holders.map_or((Vec::new(), None), |(nodes, settled)| {
        let nodes = nodes.into_iter().map(|node| names.node(node));
        (nodes.collect(), Some(settled))
    });
    Ok(SessionStatus {
        holders,
        settled,
        ..status
    })
}

/// Ends a session; its group, and its id as lists show it.
pub(super) async fn expire(
    sessions: &Sessions,
    names: Names<'_>,
    name: SessionName,
) -> Result<(String, String), Refusal> {
    let (group, id, _) = find(sessions, names, &name).await?;
    match sessions.request(group, &id, Op::Delete).await {
        Outcome::Done { .. } | Outcome::NotFound => {
            let of = sessions.group(group).map_or("", |group| &group.name);
            Ok((of.to_owned(), hex(&id)))
        }
        other => Err(undone(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shown_and_read() {
        assert_eq!(hex(&[0, 0xab, 0x10]), "00ab10");
        assert_eq!(unhex("00Ab10"), Some(vec![0, 0xab, 0x10]));
        for wrong in ["", "0", "0g", "ä0", "+1"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
