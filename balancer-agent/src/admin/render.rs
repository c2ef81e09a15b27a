//! The tables that `balancer status` and `balancer flows` print.

mod cluster;
mod http;
mod sessions;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table, TableComponent};

pub use sessions::{session, session_counts, sessions, unheard};

use super::protocol::{BackendStatus, FlowList, Status, TrafficStatus};
use crate::model::Health;

/// The whole status for people.
pub fn status(status: &Status) -> String {
    let mut out = node(status);
    if !status.frontends.is_empty() {
        out += &titled("Frontends", frontends(status));
    }
    if let Some(web) = &status.http {
        out += &http::status(status, web);
    }
    for pool in &status.pools {
        if http::covers(status, &pool.name) {
            continue;
        }
        out += &titled(&format!("Pool {}", pool.name), backends(&pool.backends));
    }
    if let Some(cluster) = &status.cluster {
        out += &cluster::status(cluster);
    }
    if let Some(sessions) = &status.sessions {
        out += &sessions::status(sessions);
    }
    if !status.lingering.is_empty() {
        out += &titled(
            "Removed from the configuration, kept for their flows",
            lingering(status),
        );
    }
    if !status.reasons.is_empty() {
        out += &titled("What the kernel program counted", reasons(status));
    }
    out
}

/// Flows for people.
pub fn flows(list: &FlowList) -> String {
    let mut table = table(&["Protocol", "Client", "Frontend", "Backend", "State", "Idle"]);
    for flow in &list.flows {
        let removed = || "(removed)".to_owned();
        table.add_row([
            flow.protocol.clone(),
            flow.client.to_string(),
            flow.frontend.clone().unwrap_or_else(removed),
            flow.backend.clone().unwrap_or_else(removed),
            flow.state.clone(),
            duration(flow.idle_ms),
        ]);
    }
    let mut out = format!("{table}\n");
    let more = list.total - list.flows.len() as u64;
    if more > 0 {
        out += &format!("and {more} more: --limit shows them\n");
    }
    out
}

/// A message behind its heading; one of several lines, such as an excerpt of a file,
/// on lines of its own.
pub fn headed(heading: &str, message: &str) -> String {
    let message = message.trim_end();
    match message.contains('\n') {
        true => format!("{heading}:\n{message}"),
        false => format!("{heading}: {message}"),
    }
}

fn node(status: &Status) -> String {
    let node = &status.node;
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row(
        "balancer",
        format!(
            "{}, process {}, up for {}{}",
            node.version,
            node.pid,
            duration(node.uptime_ms),
            if status.ready { "" } else { ", not ready yet" }
        ),
    );
    match node.program_id {
        Some(id) => row("program", id.to_string()),
        None => row("program", "none: nothing is steered in the kernel".into()),
    }
    if let Some(dir) = &node.pin_dir {
        row("pinned in", dir.clone());
    }
    for attached in &node.interfaces {
        let reason = attached.reason.as_ref();
        let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
        let text = format!("{}: {}{reason}", attached.interface, attached.mode);
        row("interface", text);
    }
    for problem in &node.not_attached {
        row("not attached", problem.clone());
    }
    row(
        "generation",
        match node.generation_applied == node.generation_desired {
            true => format!("{}, applied", node.generation_desired),
            false => format!(
                "{} wanted, {} applied",
                node.generation_desired, node.generation_applied
            ),
        },
    );
    if let Some(error) = &node.last_error {
        row("last error", error.clone());
    }
    if node.program_id.is_some() {
        row("tables", format!("{} of memory", bytes(node.memory_bytes)));
        row("flows", flow_count(node.flows, node.half_open));
    }
    format!("{table}\n")
}

fn frontends(status: &Status) -> Table {
    let mut table = counting(&["Name", "Address", "Protocol", "Pool"]);
    for f in &status.frontends {
        let what = [
            f.name.clone(),
            f.address.to_string(),
            f.protocol.clone(),
            f.pool.clone(),
        ];
        let flows = flow_count(f.flows, f.half_open);
        let counts = counts(flows, f.connections_total, &f.traffic, f.refused);
        table.add_row(what.into_iter().chain(counts));
    }
    table
}

fn backends(backends: &[BackendStatus]) -> Table {
    let mut table = counting(&[
        "Name",
        "Address",
        "Activation",
        "Health",
        "For",
        "Because",
        "Weight",
    ]);
    right(&mut table, 6..7);
    for b in backends {
        let [address, activation, health, since, mut because] = backend_state(b);
        if let (Health::Up, Some(problem)) = (b.health, &b.hop_problem) {
            because += &format!("; routed by the kernel: {problem}");
        }
        let what = [
            b.name.clone(),
            address,
            activation,
            health,
            since,
            because,
            b.weight.to_string(),
        ];
        let flows = flow_count(b.flows, b.half_open);
        let counts = counts(flows, b.connections_total, &b.traffic, b.refused);
        table.add_row(what.into_iter().chain(counts));
    }
    table
}

/// A backend's address, activation, health, for how long, and why.
fn backend_state(b: &BackendStatus) -> [String; 5] {
    // Of one that never passed a check, its last one says more.
    let because = match &b.last_check {
        Some(last) if b.health == Health::Down && b.checks == b.checks_failed => last.clone(),
        _ => b.health_reason.clone(),
    };
    let operator = if b.overridden { " (operator)" } else { "" };
    [
        b.address.to_string(),
        format!("{}{operator}", b.activation),
        b.health.to_string(),
        duration(b.health_for_ms),
        because,
    ]
}

/// A table of things that packets go through: what they are, and behind it the columns
/// of [`counts`].
fn counting(what: &[&str]) -> Table {
    const COUNTS: [&str; 7] = [
        "Flows now",
        "Total",
        "Packets in",
        "out",
        "Bytes in",
        "out",
        "Refused",
    ];
    let mut table = table(&[what, &COUNTS].concat());
    right(&mut table, what.len()..what.len() + COUNTS.len());
    table
}

fn counts(flows: String, total: u64, traffic: &TrafficStatus, refused: u64) -> [String; 7] {
    [
        flows,
        total.to_string(),
        traffic.packets_in.to_string(),
        traffic.packets_out.to_string(),
        bytes(traffic.bytes_in),
        bytes(traffic.bytes_out),
        refused.to_string(),
    ]
}

fn lingering(status: &Status) -> Table {
    let mut table = table(&["What", "Name", "For", "Flows left"]);
    right(&mut table, 3..4);
    for l in &status.lingering {
        let unnamed = || "(removed before the agent's start)".to_owned();
        table.add_row([
            l.kind.clone(),
            l.name.clone().unwrap_or_else(unnamed),
            duration(l.for_ms),
            l.flows.to_string(),
        ]);
    }
    table
}

fn reasons(status: &Status) -> Table {
    let mut table = table(&["Reason", "Packets"]);
    right(&mut table, 1..2);
    for r in &status.reasons {
        table.add_row([r.reason.clone(), r.count.to_string()]);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_HORIZONTAL_ONLY)
        .remove_style(TableComponent::HorizontalLines)
        .remove_style(TableComponent::MiddleIntersections)
        .set_header(header);
    table
}

fn right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn titled(title: &str, table: Table) -> String {
    format!("\n{title}\n{table}\n")
}

fn flow_count(established: u32, half_open: u32) -> String {
    match half_open {
        0 => established.to_string(),
        n => format!("{established} + {n} half open"),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The two largest units of a time.
fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) if seconds < 10 => format!("{}.{} s", s, milliseconds % 1000 / 100),
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) => format!("{m} min {s} s"),
        (0, _, _) => format!("{h} h {m} min"),
        _ => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(duration(950), "0.9 s");
        assert_eq!(duration(61_000), "1 min 1 s");
        assert_eq!(duration(90_000_000), "1 d 1 h");
        assert_eq!(flow_count(3, 0), "3");
        assert_eq!(flow_count(3, 2), "3 + 2 half open");
    }

    #[test]
    fn excerpts_begin_on_a_line_of_their_own() {
        assert_eq!(headed("balancer", "no"), "balancer: no");
        assert_eq!(headed("balancer", "  x a\n  b\n"), "balancer:\n  x a\n  b");
    }

    #[test]
    fn rows_follow_each_other() {
        let mut table = table(&["A", "B"]);
        table.add_row(["1", "2"]).add_row(["3", "4"]);
        let lines: Vec<_> = titled("T", table).lines().map(str::to_owned).collect();
        // Nothing, the title, and the headings between two rules.
        assert_eq!(lines.len(), 8, "{lines:#?}");
        assert_eq!(lines[5].trim(), "1   2");
        assert_eq!(lines[6].trim(), "3   4");
    }

    #[test]
    fn an_empty_node_says_that_nothing_is_steered() {
        let text = status(&Status::default());
        assert!(text.contains("nothing is steered"), "{text}");
        assert!(text.contains("not ready yet"), "{text}");
    }
}
