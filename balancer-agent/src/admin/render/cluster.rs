//! The cluster's part of `balancer status`.

use super::{bytes, duration, right, table, titled};
use crate::cluster::status::{ClusterStatus, CounterStatus, LinkStatus, NodeStatus};

/// The nodes, their links, and what is worth a word among the counters.
pub(super) fn status(cluster: &ClusterStatus) -> String {
    let mut table = table(&[
        "Node",
        "Address",
        "State",
        "For",
        "Life",
        "Round trip",
        "Link",
        "Waiting",
        "Sent",
        "Received",
    ]);
    right(&mut table, 5..6);
    right(&mut table, 7..10);
    for node in &cluster.nodes {
        table.add_row(row(node));
    }
    let mut out = titled("Cluster", table);
    if let Some(other) = cluster.conflict {
        out += &format!(
            "another node, at {other}, has this node's name {}: give each its own\n",
            cluster.name
        );
    }
    let lines = notes(&cluster.counters);
    if !lines.is_empty() {
        out += &format!("{}\n", lines.join(", "));
    }
    out
}

fn row(node: &NodeStatus) -> [String; 10] {
    let own = if node.own { " (this one)" } else { "" };
    let none = String::new;
    let link = node.link.as_ref();
    [
        format!("{}{own}", node.name),
        node.address.to_string(),
        node.state.to_string(),
        duration(node.for_ms),
        node.incarnation.clone(),
        node.round_trip_us.map_or_else(none, milliseconds),
        link.map_or_else(none, how),
        link.map_or_else(none, |link| match link.queue_bytes {
            0 => "0".into(),
            waiting => format!("{} of {}", bytes(waiting), bytes(link.queue_bytes_max)),
        }),
        link.map_or_else(none, |link| link.messages_out.to_string()),
        link.map_or_else(none, |link| link.messages_in.to_string()),
    ]
}

fn how(link: &LinkStatus) -> String {
    let time = duration(link.for_ms);
    match (link.up, &link.last_error) {
        (true, _) => format!("up for {time}"),
        (false, None) => format!("connecting for {time}"),
        (false, Some(error)) => format!("down for {time}: {error}"),
    }
}

/// What an operator should know of; nothing when all is well.
fn notes(counters: &CounterStatus) -> Vec<String> {
    [
        (counters.wrong_secret, "datagrams with another secret"),
        (counters.garbage, "datagrams of garbage"),
        (counters.malformed, "datagrams of another version"),
        (counters.handshakes_failed, "failed handshakes"),
        (counters.too_many, "connections too many"),
        (counters.queue_full, "messages refused by full queues"),
        (counters.no_room, "times no room for a node"),
        (counters.renewals, "new lives without a restart"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect()
}

/// Microseconds as milliseconds.
fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::State;

    #[test]
    fn nodes_links_and_troubles_are_shown() {
        let node = |name: &str, own, state, link| NodeStatus {
            name: name.into(),
            id: "0".into(),
            own,
            address: "10.0.0.1:7946".parse().unwrap(),
            incarnation: "3-0000002a".into(),
            state,
            for_ms: 61_000,
            round_trip_us: Some(1_234),
            link,
        };
        let up = LinkStatus {
            up: true,
            for_ms: 5_000,
            queue_bytes: 2048,
            queue_bytes_max: 16 << 20,
            messages_out: 77,
            ..LinkStatus::default()
        };
        let down = LinkStatus {
            last_error: Some("no answer in time".into()),
            ..LinkStatus::default()
        };
        let text = status(&ClusterStatus {
            name: "a".into(),
            conflict: Some("10.0.0.9:7946".parse().unwrap()),
            nodes: vec![
                node("a", true, State::Syncing, None),
                node("b", false, State::Alive, Some(up)),
                node("c", false, State::Suspect, Some(down)),
            ],
            counters: CounterStatus {
                wrong_secret: 5,
                ..CounterStatus::default()
            },
        });
        for wanted in [
            "a (this one)",
            "syncing",
            "1 min 1 s",
            "3-0000002a",
            "1.23 ms",
            "up for 5.0 s",
            "2.0 KiB of 16.0 MiB",
            "77",
            "down for 0.0 s: no answer in time",
            "10.0.0.9:7946, has this node's name a",
            "5 datagrams with another secret\n",
        ] {
            assert!(text.contains(wanted), "no {wanted} in\n{text}");
        }
        let quiet = status(&ClusterStatus::default());
        assert!(!quiet.contains("datagrams"), "{quiet}");
    }
}
