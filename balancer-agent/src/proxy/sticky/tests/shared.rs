//! Bindings that several nodes share: here two views of one pool, each with its own table,
//! and one store between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::shared::{Shared, apply, ask};
use super::*;
use crate::model::http::StickyLearn;
use crate::model::session::PoolSessions;
use crate::proxy::testing::local;
use crate::session::driver::{Alone, GroupSetup, Setup, Watch, start};
use crate::session::handle::Sessions;
use crate::session::{Change, GroupId, Limits, Manager, NodeId, Replication};

const SPEC: Spec<'static> = Spec("s1 s2 s3");

fn http(sticky: Sticky) -> PoolHttp {
    PoolHttp {
        sessions: Some(PoolSessions {
            group: "user".into(),
            ttl: Duration::from_secs(600),
        }),
        sticky: Some(sticky),
        ..PoolHttp::default()
    }
}

fn learn() -> Sticky {
    Sticky::Learn(StickyLearn {
        cookie: "SID".into(),
        idle: Duration::from_secs(600),
        force: false,
    })
}

/// Two nodes' views.
struct Two {
    views: [Arc<PoolView>; 2],
    sessions: Sessions,
}

struct Told(Vec<Arc<PoolView>>);

impl Watch for Told {
    fn changed(&self, change: &Change) {
        self.0.iter().for_each(|view| apply(view, change));
    }
}

/// `told` of the views hear of changes.
fn two(sticky: Sticky, replication: Replication, told: usize) -> Two {
    let setup = Setup {
        node: NodeId(1),
        key: [1, 2],
        id_key: [3, 4],
        groups: vec![GroupSetup {
            name: "user".into(),
            manager: Manager::Delta,
            persistent: false,
            replication,
            sync_timeout: Duration::from_secs(1),
            ttl: Duration::from_secs(600),
        }],
        limits: Limits::default(),
        disk: None,
        alone: true,
    };
    let (sessions, driver) = start(setup, Alone::new(NodeId(1), 7)).unwrap();
    let view = || share(&SPEC, &sticky, &sessions, None);
    let views = [view(), view()];
    tokio::spawn(driver.run(Told(views[..told].to_vec())));
    Two { views, sessions }
}

fn share(
    spec: &Spec<'_>,
    sticky: &Sticky,
    sessions: &Sessions,
    before: Option<&PoolView>,
) -> Arc<PoolView> {
    let view = spec.view_after(http(sticky.clone()), before, Instant::now());
    let view = Arc::into_inner(view).unwrap();
    let shared = Shared::new(Some(sessions), &view.pool);
    Arc::new(view.sharing(shared.map(Arc::new)))
}

impl Two {
    /// Waits until the store has done what it was told.
    async fn settled(&self) {
        assert!(self.sessions.look(|_, _| ()).await.is_some());
        // Outcomes and changes are told before the next look is taken.
        assert!(self.sessions.look(|_, _| ()).await.is_some());
    }

    async fn ready(&self) {
        while !self.sessions.ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn held(&self) -> usize {
        self.views[1].live.sticky.bindings.len()
    }
}

fn named(view: &Arc<PoolView>, affinity: &Affinity) -> Option<String> {
    affinity.route(view).map(str::to_owned)
}

#[test]
fn what_one_learns_the_other_knows_and_what_ends_ends_for_both() {
    local(async {
        let two = two(learn(), Replication::Async, 2);
        two.ready().await;
        for i in 0..20 {
            let (sent, set) = (format!("SID=v{i}"), format!("SID=v{i}; Path=/"));
            let made = exchange(&two.views[0], "/", &[], &[("set-cookie", &set)]).backend;
            two.settled().await;
            let other = read_at(&two.views[1], "/", &cookies(&[&sent]));
            assert_eq!(named(&two.views[1], &other), Some(made), "{sent}");
            assert!(!other.asks(&two.views[1]));
        }
        assert_eq!(two.held(), 20);
        // Setting the same again is no news.
        let before = two.sessions.group(GroupId(0)).unwrap().counts.status();
        let again = exchange(&two.views[1], "/", &["SID=v3"], &[("set-cookie", "SID=v3")]);
        assert_eq!(again.set(), ["SID=v3"]);
        let counts = two.sessions.group(GroupId(0)).unwrap().counts.status();
        assert_eq!((counts.bound, before.bound), (20, 20));
        let end = [("set-cookie", "SID=; Max-Age=0")];
        let _ = exchange(&two.views[1], "/", &["SID=v3"], &end);
        two.settled().await;
        let gone = read_at(&two.views[0], "/", &cookies(&["SID=v3"]));
        assert_eq!(named(&two.views[0], &gone), None);
        assert_eq!(two.held(), 19);
    });
}

#[test]
fn a_session_that_nobody_told_of_is_asked_for_once() {
    local(async {
        let two = two(learn(), Replication::Async, 1);
        two.ready().await;
        let made = exchange(&two.views[0], "/", &[], &[("set-cookie", "SID=abc")]).backend;
        let view = &two.views[1];
        let mut affinity = read_at(view, "/", &cookies(&["SID=abc"]));
        assert!(affinity.asks(view) && named(view, &affinity).is_none());
        ask(view, &mut affinity).await;
        assert_eq!(named(view, &affinity), Some(made.clone()));
        assert!(!affinity.asks(view));
        // From then on it is known here.
        let affinity = read_at(view, "/", &cookies(&["SID=abc"]));
        assert_eq!(named(view, &affinity), Some(made));
        // What nobody knows is asked for once in a while, however often it is sent.
        for _ in 0..50 {
            let mut affinity = read_at(view, "/", &cookies(&["SID=guess"]));
            ask(view, &mut affinity).await;
            assert_eq!(named(view, &affinity), None);
        }
        let counts = two.sessions.group(GroupId(0)).unwrap().counts.status();
        assert_eq!((counts.asked, counts.found), (2, 1));
    });
}

#[test]
fn a_failover_binds_for_both() {
    local(async {
        let two = two(learn(), Replication::Async, 2);
        two.ready().await;
        let made = exchange(&two.views[0], "/", &[], &[("set-cookie", "SID=abc")]).backend;
        two.settled().await;
        let without: String = ["s1", "s2", "s3"]
            .map(|name| match name == made {
                true => format!("{name}:down "),
                false => format!("{name} "),
            })
            .concat();
        let (sessions, old) = (&two.sessions, &two.views);
        let down = share(&Spec(&without), &learn(), sessions, Some(&old[1]));
        let moved = exchange(&down, "/", &["SID=abc"], &[]).backend;
        assert_ne!(moved, made);
        two.settled().await;
        // The first, where the old one is up (again).
        let affinity = read_at(&old[0], "/", &cookies(&["SID=abc"]));
        assert_eq!(named(&old[0], &affinity), Some(moved));
    });
}

#[test]
fn a_clients_address_is_bound_and_held_with_sync() {
    local(async {
        let source = Sticky::Source {
            ipv4_prefix: 24,
            ipv6_prefix: 64,
        };
        let two = two(source, Replication::Sync, 2);
        two.ready().await;
        let view = &two.views[0];
        let affinity = read_at(view, "/", &cookies(&[]));
        let lease = lease(view, &affinity).unwrap();
        let mut response = head(&[]);
        let held = rewrite_response(view, &affinity, lease.index(), false, &mut response);
        assert!(
            held.expect("a new binding").wait().await,
            "nobody else is there"
        );
        let other = &two.views[1];
        let affinity = read_at(other, "/", &cookies(&[]));
        assert_eq!(
            named(other, &affinity),
            Some(lease.backend().name.to_string())
        );
        let held = rewrite_response(other, &affinity, lease.index(), false, &mut response);
        assert!(held.is_none(), "nothing is new");
    });
}
