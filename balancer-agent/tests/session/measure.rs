//! What the store costs: CPU, frames and bytes per write, a transfer; printed on request,
//! in release. (Memory per session has a test of its own.)
//!
//! ```text
//! cargo test --release -p balancer-agent --test session -- measure --ignored --nocapture
//! ```

use std::time::Instant;

use balancer_agent::session::{Input, Manager, NodeId, Op, Replication, Token};

use crate::net::{GROUP, HOUR, Net, config, put};

fn fill(net: &mut Net, count: u64, op: &dyn Fn(u64) -> Op) {
    for n in 0..count {
        // As long as the ids of Tomcat, with a route.
        let id = format!("{n:032X}.tomcat-a");
        net.input(
            NodeId(1),
            Input::Request {
                token: Token(1 << 40 | n),
                group: GROUP,
                id: id.as_bytes(),
                op: op(n),
            },
        );
        net.replies.clear();
        if n % 64 == 63 {
            net.run();
        }
    }
    net.run();
}

#[test]
#[ignore = "prints figures; in release"]
fn measure() {
    for (name, manager, nodes) in [
        ("delta", Manager::Delta, 2),
        ("delta", Manager::Delta, 5),
        ("backup", Manager::Backup { copies: 1 }, 2),
        ("backup", Manager::Backup { copies: 1 }, 4),
        ("backup", Manager::Backup { copies: 1 }, 8),
        ("backup", Manager::Backup { copies: 1 }, 16),
    ] {
        for replication in [Replication::Async, Replication::Sync] {
            let mut net = Net::new(nodes, &config(manager, replication, false));
            let (frames, bytes) = (net.frames, net.bytes);
            let began = Instant::now();
            let count = 400_000;
            fill(&mut net, count, &|_| put("tomcat-a", HOUR));
            println!(
                "{name:<7} {nodes:>2} nodes {replication:?}: {:>6.0} ns per write on all nodes \
                 together, {:.3} frames, {:.0} bytes",
                began.elapsed().as_nanos() as f64 / count as f64,
                (net.frames - frames) as f64 / count as f64,
                (net.bytes - bytes) as f64 / count as f64,
            );
        }
    }
    let config = config(Manager::Delta, Replication::Async, false);
    let mut net = Net::new(1, &config);
    fill(&mut net, 1_000_000, &|_| put("tomcat-a", HOUR));
    net.add(NodeId(2), &config);
    let (bytes, began) = (net.bytes, Instant::now());
    net.tell();
    while !net.all_ready() {
        net.pass(10);
    }
    println!(
        "1,000,000 sessions to a joining node: {:.2} s on one core for both, {} MB",
        began.elapsed().as_secs_f64(),
        (net.bytes - bytes) / 1_000_000
    );
    assert_eq!(net.store(2).counters().sessions, 1_000_000);
}
