//! Memory per session. A test of its own, because it measures its whole process.

use balancer_agent::session::{
    Config, Expect, GroupConfig, GroupId, Input, Manager, NodeId, Op, Replication, Store, Time,
    Token,
};

/// Bytes that this process has in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn store() -> Store {
    let group = GroupConfig {
        name: "users".into(),
        manager: Manager::Delta,
        replication: Replication::Async,
        persistent: false,
    };
    let mut store = Store::new(Config::new(NodeId(1), [1, 2], vec![group])).unwrap();
    let alone = Input::Members {
        incarnation: 1,
        members: &[],
    };
    store.handle(alone, Time(0)).unwrap();
    store
}

#[test]
fn a_session_without_data_takes_less_than_400_bytes() {
    // Tables double: the worst numbers lie just above a doubling, the best just below.
    let count: u64 = std::env::var("SESSIONS").map_or(130_000, |text| text.parse().unwrap());
    let mut store = store();
    let before = resident();
    for n in 0..count {
        // As long as the ids of Tomcat, with a route.
        let id = format!("{n:032X}.tomcat-a");
        let request = Input::Request {
            token: Token(n),
            group: GroupId(0),
            id: id.as_bytes(),
            op: Op::Put {
                route: "tomcat-a".into(),
                ttl: 3_600_000,
                data: None,
                expect: Expect::Any,
            },
        };
        store.handle(request, Time(n / 100)).unwrap();
        while store.poll_output().is_some() {}
    }
    assert_eq!(store.counters().sessions, count);
    let each = (resident() - before) / count as usize;
    println!("{each} bytes per session");
    assert!((100..400).contains(&each), "{each} bytes per session");
}
