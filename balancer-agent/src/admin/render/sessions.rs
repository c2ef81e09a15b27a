//! What `balancer sessions` prints, and the store's part of `balancer status`.

use super::{bytes, duration, right, table, titled};
use crate::admin::sessions::{SessionCounts, SessionList, SessionStatus, SessionsStatus};
use crate::admin::survey::Unheard;
use crate::session::database::DiskStatus;

/// Groups, and what is worth a word.
pub(super) fn status(sessions: &SessionsStatus) -> String {
    let mut table = table(&[
        "Group", "Sessions", "Memory", "Bound", "Rebound", "Ended", "Asked", "Found", "Held",
        "Let go", "Lost",
    ]);
    right(&mut table, 1..11);
    for group in &sessions.groups {
        let counts = &group.counts;
        table.add_row([
            group.name.clone(),
            group.sessions.to_string(),
            bytes(group.bytes),
            counts.bound.to_string(),
            counts.rebound.to_string(),
            counts.ended.to_string(),
            counts.asked.to_string(),
            counts.found.to_string(),
            counts.held.to_string(),
            counts.sync_timeouts.to_string(),
            (counts.overflow + counts.failed).to_string(),
        ]);
    }
    let mut out = titled("Sessions", table);
    let mut notes = Vec::new();
    if !sessions.ready {
        let left = match sessions.unsettled {
            0 => String::new(),
            parts => format!(", {parts} parts to compare"),
        };
        notes.push(format!("not ready: {}{left}", sessions.phase));
    }
    let count = [
        (sessions.expired, "expired"),
        (sessions.evicted, "ended for want of memory"),
        (sessions.mended, "copies mended"),
        (sessions.unavailable, "operations without an answer"),
    ];
    let said = count.iter().filter(|(n, _)| *n > 0);
    notes.extend(said.map(|(n, what)| format!("{n} {what}")));
    if !notes.is_empty() {
        out += &format!("{}\n", notes.join(", "));
    }
    if let Some(disk) = &sessions.disk {
        out += &on_disk(disk);
    }
    out
}

/// How the writing to disk goes.
fn on_disk(disk: &DiskStatus) -> String {
    let mut out = format!(
        "on disk: {} in {}, {} changes in {} transactions",
        bytes(disk.bytes),
        disk.file,
        disk.records,
        disk.commits
    );
    if disk.loaded > 0 {
        out += &format!(
            ", {} read at the start in {}",
            disk.loaded,
            duration(disk.loaded_in_ms)
        );
    }
    out.push('\n');
    if let Some(error) = &disk.error {
        out += &format!(
            "NOT ON DISK for {}: {error} ({} wait, {} parts to write whole); sessions are kept \
             in memory\n",
            duration(disk.failing_for_ms.unwrap_or_default()),
            bytes(disk.backlog_bytes),
            disk.behind
        );
    }
    for path in &disk.set_aside {
        out += &format!("a damaged file was set aside: {path}\n");
    }
    out
}

/// Whose sessions are missing in an answer; nothing when nobody's are.
pub fn unheard(unheard: &[Unheard]) -> String {
    let each = unheard
        .iter()
        .map(|one| format!("{}: {}", one.node, one.why));
    match unheard.is_empty() {
        true => String::new(),
        false => format!("not complete: {}", each.collect::<Vec<_>>().join("; ")),
    }
}

fn last_line(all: &[Unheard]) -> String {
    match all.is_empty() {
        true => String::new(),
        false => format!("{}\n", unheard(all)),
    }
}

/// Sessions for people.
pub fn sessions(list: &SessionList) -> String {
    let mut table = table(&["Id", "Group", "Pool", "Route", "Age", "Idle", "Ends in"]);
    right(&mut table, 4..7);
    for session in &list.sessions {
        table.add_row([
            session.id.clone(),
            session.group.clone(),
            session.pool.clone().unwrap_or_default(),
            session.route.clone(),
            duration(session.age_ms),
            duration(session.idle_ms),
            duration(session.ttl_ms.saturating_sub(session.idle_ms)),
        ]);
    }
    let more = match list.more {
        true => "and more: --limit shows them\n",
        false => "",
    };
    let disk = match &list.disk_error {
        Some(error) => format!("NOT ON DISK: {error}; sessions are kept in memory\n"),
        None => String::new(),
    };
    format!("{table}\n{more}{disk}{}", last_line(&list.unheard))
}

/// Counts for people.
pub fn session_counts(counts: &SessionCounts) -> String {
    let mut table = table(&["Group", "Route", "Sessions", "On this node", "Last ends in"]);
    right(&mut table, 2..5);
    for count in &counts.counts {
        table.add_row([
            count.group.clone(),
            count.route.clone(),
            count.sessions.to_string(),
            count.copies.to_string(),
            match count.sessions {
                0 => String::new(),
                _ => duration(count.last_ends_ms),
            },
        ]);
    }
    format!("{table}\n{}", last_line(&counts.unheard))
}

/// One session for people.
pub fn session(session: &SessionStatus) -> String {
    let rows = [
        ("id", session.id.clone()),
        ("group", session.group.clone()),
        ("pool", session.pool.clone().unwrap_or_default()),
        ("route", session.route.clone()),
        ("age", duration(session.age_ms)),
        ("idle", duration(session.idle_ms)),
        (
            "ends in",
            duration(session.ttl_ms.saturating_sub(session.idle_ms)),
        ),
        ("held by", session.holders.join(", ")),
        (
            "compared",
            match session.settled {
                Some(false) => "not yet with all nodes".into(),
                _ => "with all nodes".into(),
            },
        ),
    ];
    let lines = rows
        .iter()
        .map(|(key, value)| format!("{key:<9} {value}\n"));
    let mut copies = table(&["Node", "Role", "Copy", "Newest", "Version", "Route", "Idle"]);
    right(&mut copies, 6..7);
    for copy in &session.replicas {
        copies.add_row([
            copy.node.clone(),
            copy.role.clone(),
            copy.state.clone(),
            match (&copy.version, copy.newest) {
                (None, _) => String::new(),
                (_, true) => "yes".into(),
                (_, false) => "no".into(),
            },
            copy.version.clone().unwrap_or_default(),
            copy.route.clone().unwrap_or_default(),
            copy.idle_ms.map(duration).unwrap_or_default(),
        ]);
    }
    let lines: String = lines.collect();
    format!("{lines}{copies}\n")
}
