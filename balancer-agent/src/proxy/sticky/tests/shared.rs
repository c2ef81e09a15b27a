//! Bindings that several nodes share: here two views of one pool, each with its own table,
//! and one store between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::shared::{Shared, apply, ask};
use super::*;
use crate::model::http::{StickyLearn, StickyRoute};
use crate::model::session::PoolSessions;
use crate::proxy::testing::local;
use crate::session::driver::{Alone, GroupSetup, Setup, Watch, start};
use crate::session::handle::{Kept, Sessions};
use crate::session::{Change, GroupId, Limits, Manager, NodeId, Replication};

const SPEC: Spec<'static> = Spec("s1 s2 s3");

fn http(sticky: Sticky) -> PoolHttp {
    PoolHttp {
        sessions: Some(PoolSessions {
            group: "user".into(),
            ttl: Duration::from_secs(600),
            sync_header: None,
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

fn by_route() -> Sticky {
    Sticky::Route(StickyRoute {
        cookie: "JSESSIONID".into(),
        parameter: "jsessionid".into(),
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
        let kept = held.expect("a new binding").wait().await;
        assert_eq!(kept, Kept::All(1), "nobody else is there");
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

#[test]
fn with_sync_the_response_that_ends_a_session_is_held() {
    local(async {
        let two = two(learn(), Replication::Sync, 2);
        two.ready().await;
        let _ = exchange(&two.views[0], "/", &[], &[("set-cookie", "SID=abc")]);
        two.settled().await;
        let end = async |view: &Arc<PoolView>| {
            let affinity = read_at(view, "/", &cookies(&["SID=abc"]));
            let lease = lease(view, &affinity).unwrap();
            let mut response = head(&[("set-cookie", "SID=; Max-Age=0")]);
            let held = rewrite_response(view, &affinity, lease.index(), false, &mut response);
            held.expect("an end").wait().await
        };
        assert_eq!(end(&two.views[1]).await, Kept::All(1));
        assert_eq!(two.held(), 0);
        assert_eq!(end(&two.views[0]).await, Kept::Absent, "it has ended");
    });
}

/// A browser at a view, and what became of its request.
fn ask_with(view: &Arc<PoolView>, cookie: &str) -> (String, Vec<String>, Vec<String>) {
    let done = exchange(view, "/", &[&format!("JSESSIONID={cookie}")], &[]);
    let set = done.set();
    (done.backend, done.cookies, set)
}

fn text(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn a_route_that_failed_over_is_followed_and_translated_at_both() {
    local(async {
        let both = two(by_route(), Replication::Async, 2);
        both.ready().await;
        let [one, other] = &both.views;
        let issue = [("set-cookie", "JSESSIONID=ABC.s1; Path=/")];
        let busy = share(
            &Spec("s1 s2:drain s3:drain"),
            &by_route(),
            &both.sessions,
            Some(one),
        );
        assert_eq!(exchange(&busy, "/", &[], &issue).backend, "s1");
        both.settled().await;
        assert_eq!(both.held(), 1, "the other knows it");
        assert!(
            other.live.sticky.ids.is_empty(),
            "there is nothing to translate"
        );
        let counts = || both.sessions.group(GroupId(0)).unwrap().counts.status();
        // Saying it again is no news.
        let _ = exchange(&busy, "/", &["JSESSIONID=ABC.s1"], &issue);
        assert_eq!(counts().bound, 1);

        let dead = share(
            &Spec("s1:down s2 s3:drain"),
            &by_route(),
            &both.sessions,
            Some(one),
        );
        let (backend, cookies, set) = ask_with(&dead, "ABC.s1");
        assert_eq!((&*backend, cookies), ("s2", text(&["JSESSIONID=ABC.s1"])));
        assert_eq!(set.len(), 1);
        assert!(set[0].starts_with("JSESSIONID=ABC.s2;"), "{set:?}");
        both.settled().await;
        assert_eq!((counts().bound, counts().rebound), (1, 1));

        // The other has seen none of it, and all its backends are up.
        let (backend, cookies, set) = ask_with(other, "ABC.s2");
        assert_eq!(
            (&*backend, cookies, set.len()),
            ("s2", text(&["JSESSIONID=ABC.s1"]), 0)
        );
        // A browser that has not heard of the failover: id and table differ.
        let mut old = read_at(other, "/", &cookies_of("ABC.s1"));
        assert!(old.asks(other));
        ask(other, &mut old).await;
        assert_eq!(named(other, &old).as_deref(), Some("s2"));
        let done = answered(other, &old, "ABC.s1");
        assert_eq!(done.0, "s2");
        assert_eq!(done.1, ["JSESSIONID=ABC.s1"], "as its backend issued it");
        assert!(done.2[0].starts_with("JSESSIONID=ABC.s2;"), "{:?}", done.2);
        assert_eq!(counts().rebound, 1, "it was there before");
        assert_eq!(
            other
                .live
                .sticky
                .rebound
                .load(std::sync::atomic::Ordering::Relaxed),
            0
        );

        // One that is newer than the store: it is followed, and the store is set right.
        let mut newer = read_at(other, "/", &cookies_of("ABC.s3"));
        assert!(newer.asks(other));
        ask(other, &mut newer).await;
        let done = answered(other, &newer, "ABC.s3");
        assert_eq!((&*done.0, done.2.len()), ("s3", 0));
        assert_eq!(done.1, ["JSESSIONID=ABC.s1"]);
        both.settled().await;
        assert_eq!(counts().rebound, 2);
        let known = read_at(one, "/", &cookies_of("ABC.s3"));
        assert!(!known.asks(one));

        // Its end is everybody's.
        let end = [("set-cookie", "JSESSIONID=; Max-Age=0")];
        let _ = exchange(other, "/", &["JSESSIONID=ABC.s3"], &end);
        both.settled().await;
        assert_eq!(
            both.views.each_ref().map(|v| v.live.sticky.bindings.len()),
            [0, 0]
        );
        assert_eq!(counts().ended, 1);
    });
}

fn cookies_of(id: &str) -> HeaderMap {
    cookies(&[&format!("JSESSIONID={id}")])
}

/// What follows when the request was asked for.
fn answered(
    view: &Arc<PoolView>,
    affinity: &Affinity,
    id: &str,
) -> (String, Vec<String>, Vec<String>) {
    let mut headers = cookies_of(id);
    let lease = lease(view, affinity).unwrap();
    let _ = rewrite_request(view, affinity, lease.index(), &mut headers);
    let mut response = head(&[]);
    let _ = rewrite_response(view, affinity, lease.index(), false, &mut response);
    let seen = texts(&headers, COOKIE);
    (
        lease.backend().name.to_string(),
        seen,
        texts(&response.headers, SET_COOKIE),
    )
}

#[test]
fn ids_without_suffix_are_known_to_both() {
    local(async {
        let both = two(by_route(), Replication::Sync, 2);
        both.ready().await;
        let [one, other] = &both.views;
        let busy = share(
            &Spec("s1 s2:drain s3:drain"),
            &by_route(),
            &both.sessions,
            Some(one),
        );
        let made = exchange(&busy, "/", &[], &[("set-cookie", "JSESSIONID=ABC; Path=/")]);
        assert_eq!(made.set(), ["JSESSIONID=ABC.s1; Path=/"]);
        both.settled().await;
        // The other never saw such a backend issue an id.
        let (backend, cookies, _) = ask_with(other, "ABC.s1");
        assert_eq!((&*backend, cookies), ("s1", text(&["JSESSIONID=ABC"])));
        let dead = share(
            &Spec("s1:down s2 s3:drain"),
            &by_route(),
            &both.sessions,
            Some(one),
        );
        let (backend, cookies, _) = ask_with(&dead, "ABC.s1");
        assert_eq!((&*backend, cookies), ("s2", text(&["JSESSIONID=ABC"])));
        both.settled().await;
        let (backend, cookies, _) = ask_with(other, "ABC.s2");
        assert_eq!((&*backend, cookies), ("s2", text(&["JSESSIONID=ABC"])));
        let mut old = read_at(other, "/", &cookies_of("ABC.s1"));
        ask(other, &mut old).await;
        let done = answered(other, &old, "ABC.s1");
        assert_eq!((&*done.0, done.1), ("s2", text(&["JSESSIONID=ABC"])));
    });
}

#[test]
fn what_only_a_browser_says_makes_no_session() {
    local(async {
        let both = two(by_route(), Replication::Async, 2);
        both.ready().await;
        let [one, other] = &both.views;
        for i in 0..50 {
            // The backend repeats it in an address, here and elsewhere.
            let id = format!("/x;jsessionid=EVIL{i}.s1");
            let there = format!("https://other.example{id}");
            let back = [("location", &*id), ("link", &*there)];
            let mut affinity = read_at(one, &id, &HeaderMap::new());
            assert!(affinity.asks(one));
            ask(one, &mut affinity).await;
            let lease = lease(one, &affinity).unwrap();
            let mut response = head(&back);
            let held = rewrite_response(one, &affinity, lease.index(), false, &mut response);
            assert!(held.is_none());
        }
        both.settled().await;
        let counts = both.sessions.group(GroupId(0)).unwrap().counts.status();
        assert_eq!((counts.bound, counts.found, counts.asked), (0, 0, 50));
        assert_eq!(
            one.live.sticky.bindings.len() + other.live.sticky.bindings.len(),
            0
        );
        // A failover has to be known to all, whoever made the id.
        let dead = share(
            &Spec("s1:down s2 s3:drain"),
            &by_route(),
            &both.sessions,
            Some(one),
        );
        assert_eq!(ask_with(&dead, "OLD.s1").0, "s2");
        both.settled().await;
        assert_eq!(ask_with(other, "OLD.s2").1, ["JSESSIONID=OLD.s1"]);
    });
}
