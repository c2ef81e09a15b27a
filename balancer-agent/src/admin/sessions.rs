//! What operators see of the session store, and may do to it.

use serde::{Deserialize, Serialize};

use super::protocol::{Fault, Refusal};
use super::survey::{Survey, Unheard};
use crate::cluster::{self, Cluster};
use crate::model::Pool;
use crate::proxy::stats::{SessionId, Web};
use crate::session::database::{DiskState, DiskStatus};
use crate::session::handle::{CountsStatus, Sessions};
use crate::session::survey::{Answer, Listed, Replica, hex, unhex};
use crate::session::{GroupId, NodeId, Op, Outcome, Session, Store, group_key};

/// Most sessions in one answer.
const SESSIONS_MAX: usize = 100_000;
/// Sessions of a group that a beginning of an id may mean: more than one is one too many.
const MEANT_MAX: usize = 2;
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
    /// The copies that this node holds, in place of the cluster's sessions.
    pub held: bool,
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

/// Sessions of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionList {
    /// As many as were asked for.
    pub sessions: Vec<SessionStatus>,
    /// There are more.
    pub more: bool,
    /// Nodes whose sessions are missing here.
    pub unheard: Vec<Unheard>,
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
    /// What each node of the group has of it. Likewise.
    pub replicas: Vec<ReplicaStatus>,
}

/// One node's copy of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaStatus {
    /// The node.
    pub node: String,
    /// `primary`, `copy`, or `none`: it is not one of those that should hold it.
    pub role: String,
    /// `held`, `missing`, `ended` (its end is remembered), or `no answer`.
    pub state: String,
    /// Stamps of the creation and of the last write, and who wrote; absent without a copy.
    pub version: Option<String>,
    /// Whether that is the newest version that any node has.
    pub newest: bool,
    /// Route of the backend that it names.
    pub route: Option<String>,
    /// Since the last access that the node knows of, in milliseconds.
    pub idle_ms: Option<u64>,
}

/// Sessions of one group at one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteCount {
    /// The group.
    pub group: String,
    /// Route of the backend.
    pub route: String,
    /// Sessions, over the cluster.
    pub sessions: u64,
    /// Copies on this node.
    pub copies: u64,
    /// When the last session ends, in milliseconds, if nobody comes back to it.
    pub last_ends_ms: u64,
}

/// Sessions by group and route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionCounts {
    /// In the order of the groups in the file, and of the routes' names.
    pub counts: Vec<RouteCount>,
    /// Nodes whose sessions are missing here.
    pub unheard: Vec<Unheard>,
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
    pub(super) fn node(&self, node: NodeId) -> String {
        match self.cluster {
            Some(cluster) => cluster.name_of(cluster::NodeId(node.0)),
            None => "this node".into(),
        }
    }

    fn listed(&self, group: &str, listed: Listed) -> SessionStatus {
        let id = unhex(&listed.id);
        let pool = (id.as_deref()).and_then(|id| self.web.and_then(|web| web.pool_of_session(id)));
        SessionStatus {
            group: group.to_owned(),
            id: listed.id,
            pool: pool.map(|name| name.to_string()),
            route: listed.route,
            age_ms: listed.age,
            idle_ms: listed.idle,
            ttl_ms: listed.ttl,
            ..SessionStatus::default()
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

pub(super) fn busy() -> Refusal {
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

/// Sessions of a pool at one of its backends, over the cluster. `None`: the pool has no
/// group, or the store has too much to do.
pub(super) async fn at_backend(
    sessions: &Sessions,
    names: Names<'_>,
    pool: &Pool,
    backend: &str,
) -> Option<SessionsAt> {
    let group = sessions.by_name(&pool.http.sessions.as_ref()?.group)?;
    let backend = pool.backends.iter().find(|known| *known.name == *backend)?;
    let of_pool = hex(&group_key(&pool.name).to_be_bytes());
    let mut survey = Survey::new(sessions, names);
    let counts = survey.count(group, Some(&backend.http.route), Some(&of_pool));
    let counts = counts.await.ok()?;
    Some(SessionsAt {
        count: counts.values().map(|count| count.sessions).sum(),
        last_ends_ms: counts.values().map(|count| count.last_ends).max(),
        unheard: survey.unheard(),
    })
}

/// What is known of a backend's sessions.
pub(super) struct SessionsAt {
    /// How many there are.
    pub count: u64,
    /// Until the last of them ends if nobody comes back, in milliseconds.
    pub last_ends_ms: Option<u64>,
    /// Nodes whose sessions are missing in it.
    pub unheard: Vec<Unheard>,
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
    let mut survey = Survey::new(sessions, names);
    for (id, group) in groups_named(sessions, filter.group.as_deref())? {
        let route = filter.route.as_deref();
        survey
            .each(id, filter.held, (route, None), |listed| {
                if list.sessions.len() >= limit {
                    list.more = true;
                    return false;
                }
                list.sessions.push(names.listed(group, listed));
                true
            })
            .await?;
    }
    list.unheard = survey.unheard();
    Ok(list)
}

pub(super) async fn counts(
    sessions: &Sessions,
    names: Names<'_>,
    group: Option<&str>,
) -> Result<SessionCounts, Refusal> {
    let mut counts = Vec::new();
    let mut survey = Survey::new(sessions, names);
    for (id, name) in groups_named(sessions, group)? {
        let by_route = survey.count(id, None, None).await?;
        counts.extend(by_route.into_iter().map(|(route, count)| RouteCount {
            group: name.to_owned(),
            route,
            sessions: count.sessions,
            copies: count.copies,
            last_ends_ms: count.last_ends,
        }));
    }
    Ok(SessionCounts {
        counts,
        unheard: survey.unheard(),
    })
}

/// What an operator's name may mean: an id as lists show it, the beginning of one, or what a
/// client has.
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
        let mut survey = Survey::new(sessions, names);
        for (group, _) in &groups {
            let most = found.len() + MEANT_MAX;
            survey
                .each(*group, false, (None, Some(said)), |listed| {
                    found.extend(unhex(&listed.id).map(|id| (*group, id)));
                    found.len() < most
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
    let text = hex(&id);
    let look = move |store: &Store, _| store.holders(group, &id);
    let holders = sessions.look(look).await.ok_or_else(busy)?;
    let (holders, settled) = match holders {
        Some((holders, settled)) => (holders, Some(settled)),
        None => (Vec::new(), None),
    };
    let mut survey = Survey::new(sessions, names);
    let copies = survey.copies(group, &text).await?;
    Ok(SessionStatus {
        replicas: replicas(names, &holders, &copies, survey.silent()),
        holders: holders.into_iter().map(|node| names.node(node)).collect(),
        settled,
        ..status
    })
}

/// What each node has of a session, the holders first; nodes that neither should have a copy
/// nor do are left out.
fn replicas(
    names: Names<'_>,
    holders: &[NodeId],
    copies: &[(NodeId, Answer)],
    silent: &[NodeId],
) -> Vec<ReplicaStatus> {
    let newest = copies.iter().filter_map(|(_, answer)| answer.copy.as_ref());
    let newest = newest.map(Replica::version).max();
    let others = copies.iter().filter(|(_, answer)| answer.copy.is_some());
    let others = others.map(|(node, _)| *node);
    let mut nodes = holders.to_vec();
    nodes.extend(others.filter(|node| !holders.contains(node)));
    let one = |node: NodeId| {
        let role = match holders.iter().position(|holder| *holder == node) {
            Some(0) => "primary",
            Some(_) => "copy",
            None => "none",
        };
        let answer = copies.iter().find(|(from, _)| *from == node);
        let copy = answer.and_then(|(_, answer)| answer.copy.as_ref());
        let state = match copy {
            Some(copy) if copy.deleted => "ended",
            Some(_) => "held",
            None if answer.is_none() || silent.contains(&node) => "no answer",
            None => "missing",
        };
        let live = copy.filter(|copy| !copy.deleted);
        ReplicaStatus {
            node: names.node(node),
            role: role.into(),
            state: state.into(),
            version: copy.map(|c| format!("{}.{}-{:016x}", c.epoch, c.stamp, c.writer)),
            newest: copy.is_some_and(|copy| Some(copy.version()) == newest),
            route: live.map(|copy| copy.route.clone()),
            idle_ms: live.map(|copy| copy.idle),
        }
    };
    nodes.into_iter().map(one).collect()
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
