//! Several stores with their drivers in one process, connected by channels.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::database::Opened;
use super::super::handle::{Kept, Sessions};
use super::super::survey::{Question, What, hex};
use super::super::types::{GroupId, Manager, Member, NodeId, Op, Outcome, Replication};
use super::super::watch::Change;
use super::super::{Limits, group_key};
use super::{Event, GroupSetup, Network, Refused, Setup, Watch, about, start};

const GROUP: GroupId = GroupId(0);
const TTL: Duration = Duration::from_secs(600);

/// The wires between all nodes.
#[derive(Clone, Default)]
pub(in super::super) struct Wires(Arc<Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<Event>>>>);

impl Wires {
    /// Tells everybody who is there.
    pub fn announce(&self) {
        let ends = self.0.lock().unwrap();
        let members: Vec<Member> = ends
            .keys()
            .map(|&node| Member {
                node,
                incarnation: node.0 + 100,
                groups: Some([group_key("user")].into()),
            })
            .collect();
        for (node, end) in ends.iter() {
            let _ = end.send(Event::Members {
                incarnation: node.0 + 100,
                members: members.clone(),
            });
        }
    }
}

struct End {
    own: NodeId,
    wires: Wires,
    events: mpsc::UnboundedReceiver<Event>,
    /// Frames that are refused as if the queue were full.
    refuse: Arc<AtomicUsize>,
    cut: Arc<AtomicBool>,
    refusals: Refusals,
}

/// Whose links were closed, and why.
type Refusals = Arc<Mutex<Vec<(NodeId, String)>>>;

impl Network for End {
    fn send(&self, to: NodeId, frame: &[u8]) -> Result<(), Refused> {
        if self.cut.load(Relaxed) {
            return Err(Refused::NoLink);
        }
        let refused = self
            .refuse
            .fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        if refused.is_ok() {
            return Err(Refused::Full);
        }
        let ends = self.wires.0.lock().unwrap();
        let end = ends.get(&to).ok_or(Refused::NoLink)?;
        let event = Event::Frame {
            from: self.own,
            bytes: bytes::Bytes::copy_from_slice(frame),
        };
        end.send(event).map_err(|_| Refused::NoLink)
    }

    async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    fn try_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    fn refuse(&mut self, node: NodeId, error: &str) {
        self.refusals.lock().unwrap().push((node, error.into()));
    }

    async fn ready(&mut self, _: bool) {}
}

/// The routes that a node was told of.
#[derive(Clone, Default)]
struct Cache(Arc<Mutex<BTreeMap<Vec<u8>, String>>>);

impl Watch for Cache {
    fn changed(&self, change: &Change) {
        let mut cache = self.0.lock().unwrap();
        match &change.session {
            Some(session) => cache.insert(change.id.to_vec(), session.route.to_string()),
            None => cache.remove(&*change.id),
        };
    }
}

impl Cache {
    fn get(&self, id: &[u8]) -> Option<String> {
        self.0.lock().unwrap().get(id).cloned()
    }
}

pub(in super::super) struct Node {
    id: NodeId,
    pub sessions: Sessions,
    cache: Cache,
    refuse: Arc<AtomicUsize>,
    cut: Arc<AtomicBool>,
    refusals: Refusals,
    task: JoinHandle<()>,
}

impl Node {
    fn start(wires: &Wires, id: u64, manager: Manager, replication: Replication) -> Self {
        Self::start_on(wires, id, manager, replication, None)
    }

    /// One that has its sessions in a file, too.
    pub fn start_on(
        wires: &Wires,
        id: u64,
        manager: Manager,
        replication: Replication,
        disk: Option<Opened>,
    ) -> Self {
        let id = NodeId(id);
        let (end, events) = mpsc::unbounded_channel();
        wires.0.lock().unwrap().insert(id, end);
        let (refuse, cut) = <(Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        let refusals = Refusals::default();
        let network = End {
            own: id,
            wires: wires.clone(),
            events,
            refuse: Arc::clone(&refuse),
            cut: Arc::clone(&cut),
            refusals: Arc::clone(&refusals),
        };
        let setup = Setup {
            node: id,
            key: [1, 2],
            id_key: [3, 4],
            groups: vec![GroupSetup {
                name: "user".into(),
                manager,
                persistent: disk.is_some(),
                replication,
                sync_timeout: Duration::from_millis(700),
                ttl: TTL,
            }],
            limits: Limits {
                buckets: 16,
                ..Limits::default()
            },
            disk,
            alone: false,
        };
        let (sessions, driver) = start(setup, network).unwrap();
        let cache = Cache::default();
        Self {
            id,
            sessions,
            task: tokio::spawn(driver.run(cache.clone())),
            cache,
            refuse,
            cut,
            refusals,
        }
    }

    fn kill(&self, wires: &Wires) {
        self.task.abort();
        wires.0.lock().unwrap().remove(&self.id);
        wires.announce();
    }

    async fn find(&self, id: &[u8]) -> Option<String> {
        let found = self.sessions.find(GROUP, id, Duration::from_secs(5)).await;
        let found = found.expect("an answer");
        found.map(|session| session.route.to_string())
    }
}

async fn three(manager: Manager, replication: Replication) -> (Wires, Vec<Node>) {
    let wires = Wires::default();
    let nodes: Vec<Node> = (1..=3)
        .map(|id| Node::start(&wires, id, manager, replication))
        .collect();
    wires.announce();
    until("all to be ready", || {
        nodes.iter().all(|node| node.sessions.ready())
    })
    .await;
    (wires, nodes)
}

#[track_caller]
fn timed_out(what: &str) -> ! {
    panic!("waited in vain for {what}")
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let bound = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        if tokio::time::Instant::now() > bound {
            timed_out(what);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_binding_reaches_every_cache_and_ends_everywhere() {
    let (_wires, nodes) = three(Manager::Delta, Replication::Async).await;
    let id = b"session-one";
    assert!(
        nodes[0].sessions.bind(GROUP, id, "s1", TTL).is_none(),
        "async"
    );
    let everywhere =
        |route: Option<&str>| nodes.iter().all(|n| n.cache.get(id).as_deref() == route);
    until("the binding", || everywhere(Some("s1"))).await;
    assert!(nodes[2].sessions.rebind(GROUP, id, "s2").is_none());
    until("the other binding", || everywhere(Some("s2"))).await;
    assert_eq!(nodes[1].find(id).await.as_deref(), Some("s2"));
    assert!(nodes[1].sessions.delete(GROUP, id).is_none(), "async");
    until("the end", || everywhere(None)).await;
    // It does not come back by a binding that came too late.
    let _ = nodes[0].sessions.rebind(GROUP, id, "s1");
    assert_eq!(nodes[0].find(id).await, None);
    assert!(everywhere(None));
    let counts = nodes[2].sessions.group(GROUP).unwrap().counts.status();
    assert_eq!((counts.rebound, counts.overflow, counts.failed), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn with_sync_a_response_waits_for_the_copies() {
    let (_wires, nodes) = three(Manager::Delta, Replication::Sync).await;
    let held = nodes[0].sessions.bind(GROUP, b"acknowledged", "s1", TTL);
    assert_eq!(held.expect("sync").wait().await, Kept::All(3));
    // Acknowledged is: the others have it now, not soon.
    for node in &nodes {
        assert_eq!(node.cache.get(b"acknowledged").as_deref(), Some("s1"));
    }
    // Nobody can be reached: the response is let go at the bound, and counted.
    nodes[0].cut.store(true, Relaxed);
    let began = tokio::time::Instant::now();
    let held = nodes[0].sessions.bind(GROUP, b"unacknowledged", "s1", TTL);
    assert_eq!(held.expect("sync").wait().await, Kept::Some(1));
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(650), "{waited:?}");
    assert!(waited <= Duration::from_millis(1_000), "{waited:?}");
    let counts = nodes[0].sessions.group(GROUP).unwrap().counts.status();
    assert_eq!((counts.held, counts.sync_timeouts), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn any_node_finds_what_two_hold_and_one_may_die() {
    let (wires, nodes) = three(Manager::Backup { copies: 1 }, Replication::Sync).await;
    let ids: Vec<Vec<u8>> = (0..60)
        .map(|i| format!("session-{i:04}").into_bytes())
        .collect();
    for id in &ids {
        let held = nodes[0].sessions.bind(GROUP, id, "s1", TTL);
        assert_eq!(held.expect("sync").wait().await, Kept::All(2));
    }
    let mut copies = 0;
    for node in &nodes {
        for id in &ids {
            assert_eq!(node.find(id).await.as_deref(), Some("s1"));
        }
        let counters = node
            .sessions
            .look(|store, _| store.counters())
            .await
            .unwrap();
        copies += counters.sessions;
    }
    assert_eq!(copies, 2 * ids.len() as u64, "each is held twice, no more");
    nodes[0].kill(&wires);
    for node in &nodes[1..] {
        for id in &ids {
            assert_eq!(node.find(id).await.as_deref(), Some("s1"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_to_a_peer_delays_and_loses_nothing() {
    let (_wires, nodes) = three(Manager::Delta, Replication::Async).await;
    nodes[0].refuse.store(40, Relaxed);
    for i in 0..500_u32 {
        let id = format!("session-{i:04}");
        let _ = nodes[0].sessions.bind(GROUP, id.as_bytes(), "s1", TTL);
    }
    until("all bindings", || {
        nodes
            .iter()
            .all(|node| node.cache.0.lock().unwrap().len() == 500)
    })
    .await;
    assert_eq!(nodes[0].refuse.load(Relaxed), 0, "it was full");
}

#[tokio::test(start_paused = true)]
async fn a_link_that_comes_back_is_compared() {
    let (wires, nodes) = three(Manager::Delta, Replication::Async).await;
    nodes[0].cut.store(true, Relaxed);
    let _ = nodes[0].sessions.bind(GROUP, b"made while away", "s1", TTL);
    until("its own cache", || {
        nodes[0].cache.get(b"made while away").is_some()
    })
    .await;
    assert_eq!(nodes[1].cache.get(b"made while away"), None);
    nodes[0].cut.store(false, Relaxed);
    {
        let ends = wires.0.lock().unwrap();
        for node in [NodeId(2), NodeId(3)] {
            ends[&NodeId(1)].send(Event::Link { node }).unwrap();
            ends[&node].send(Event::Link { node: NodeId(1) }).unwrap();
        }
    }
    until("the others", || {
        nodes
            .iter()
            .all(|n| n.cache.get(b"made while away").is_some())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_closes_that_link_and_no_other() {
    let (wires, nodes) = three(Manager::Delta, Replication::Async).await;
    let frame = |from: u64, bytes: &'static [u8]| {
        let ends = wires.0.lock().unwrap();
        let from = NodeId(from);
        let bytes = bytes::Bytes::from_static(bytes);
        ends[&NodeId(1)].send(Event::Frame { from, bytes }).unwrap();
    };
    let refusals = || nodes[0].refusals.lock().unwrap().clone();
    // Another format, a frame that is cut off, a question without end, and an answer to
    // nothing, which is late at worst.
    frame(2, b"\x07 what a later build says");
    until("the refusal", || refusals().len() == 1).await;
    let (node, why) = refusals().remove(0);
    assert_eq!(node, NodeId(2));
    assert!(why.contains("format 7"), "{why}");
    // What was on its way over the link that is being closed is not looked at.
    frame(2, b"\x01");
    frame(3, b"!\0\0\0\0\0\0\0\0{}");
    frame(3, b"?\0\0\0\0\0\0\0\0{");
    until("the other's refusal", || refusals().len() == 2).await;
    let (node, why) = refusals().remove(1);
    assert_eq!(node, NodeId(3));
    assert!(
        why.contains("a question or an answer that can't be read"),
        "{why}"
    );
    // Over a new link everything is taken, and compared.
    for node in [NodeId(2), NodeId(3)] {
        let ends = wires.0.lock().unwrap();
        ends[&NodeId(1)].send(Event::Link { node }).unwrap();
        ends[&node].send(Event::Link { node: NodeId(1) }).unwrap();
    }
    let _ = nodes[1].sessions.bind(GROUP, b"made afterwards", "s1", TTL);
    until("the binding", || {
        nodes[0].cache.get(b"made afterwards").is_some()
    })
    .await;
    frame(2, b"\x01");
    until("a third refusal", || refusals().len() == 3).await;
    assert!(nodes[1].refusals.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_question_reaches_every_node_and_silence_is_said() {
    let (_wires, nodes) = three(Manager::Backup { copies: 1 }, Replication::Sync).await;
    for i in 0..60 {
        let (id, route) = (format!("session-{i:04}"), ["s1", "s2", "s2"][i % 3]);
        let held = nodes[0].sessions.bind(GROUP, id.as_bytes(), route, TTL);
        assert_eq!(held.expect("sync").wait().await, Kept::All(2));
    }
    let question = |what| Question {
        group: group_key("user"),
        route: None,
        prefix: None,
        what,
    };
    let count = async |node: &Node| {
        let (mut sums, mut silent, mut from) = (BTreeMap::new(), Vec::new(), Some(0));
        while let Some(at) = from {
            let asked = question(What::Count { from: at });
            let bound = Duration::from_secs(1);
            let heard = node.sessions.survey(asked, &silent, bound).await.unwrap();
            silent.extend(heard.silent);
            from = heard.answers[0].1.next.map(|next| next as u16);
            for (_, answer) in heard.answers {
                assert!(answer.ready && answer.known);
                for (route, count) in answer.counts {
                    *sums.entry(route).or_insert(0) += count.sessions;
                }
            }
        }
        (sums, silent)
    };
    let all = BTreeMap::from([("s1".to_owned(), 20), ("s2".to_owned(), 40)]);
    for node in &nodes {
        assert_eq!(count(node).await, (all.clone(), vec![]));
    }
    // One that is reached, and does not answer.
    nodes[2].cut.store(true, Relaxed);
    let (sums, silent) = count(&nodes[0]).await;
    assert_eq!(silent, [NodeId(3)]);
    assert!(sums.values().sum::<u64>() < 60, "{sums:?}");
    // One that can't be reached is not waited for.
    nodes[2].cut.store(false, Relaxed);
    nodes[0].cut.store(true, Relaxed);
    let began = tokio::time::Instant::now();
    let (_, silent) = count(&nodes[0]).await;
    assert_eq!(silent, [NodeId(2), NodeId(3)]);
    assert!(began.elapsed() < Duration::from_millis(500));
    // Every copy is found, also where there should be none.
    nodes[0].cut.store(false, Relaxed);
    let copy = Question {
        prefix: Some(hex(b"session-0007")),
        ..question(What::Copy)
    };
    let bound = Duration::from_secs(1);
    let heard = nodes[1].sessions.survey(copy, &[], bound).await.unwrap();
    let copies = heard.answers.iter().filter_map(|(_, a)| a.copy.as_ref());
    let copies: Vec<_> = copies.map(|copy| (copy.version(), &*copy.route)).collect();
    assert_eq!((heard.answers.len(), copies.len()), (3, 2));
    assert_eq!((copies[0], copies[0].1), (copies[1], "s2"));
}

#[tokio::test(start_paused = true)]
async fn writes_before_the_store_serves_are_done_when_it_does() {
    let wires = Wires::default();
    let node = Node::start(&wires, 1, Manager::Delta, Replication::Async);
    let _ = node.sessions.bind(GROUP, b"early-one", "s1", TTL);
    let _ = node.sessions.bind(GROUP, b"early-two", "s1", TTL);
    let _ = node.sessions.delete(GROUP, b"early-two");
    assert!(!node.sessions.ready());
    wires.announce();
    until("the early one", || node.cache.get(b"early-one").is_some()).await;
    assert_eq!(node.find(b"early-two").await, None);
    assert_eq!(node.cache.get(b"early-two"), None);
}

#[tokio::test(start_paused = true)]
async fn a_touch_mends_a_cache_that_is_wrong() {
    let wires = Wires::default();
    let node = Node::start(&wires, 1, Manager::Delta, Replication::Async);
    wires.announce();
    let _ = node.sessions.bind(GROUP, b"session-one", "s1", TTL);
    until("the binding", || node.cache.get(b"session-one").is_some()).await;
    let wrong = |id: &[u8]| node.cache.0.lock().unwrap().insert(id.into(), "old".into());
    wrong(b"session-one");
    wrong(b"never-there");
    node.sessions.touch(GROUP, b"session-one");
    node.sessions.touch(GROUP, b"never-there");
    until("the cache to be mended", || {
        let known = |id: &[u8]| node.cache.get(id);
        known(b"session-one").as_deref() == Some("s1") && known(b"never-there").is_none()
    })
    .await;
}

/// A request that ends a session also counts as a visit, which is told to the store first:
/// what that found must not come into the cache after the end.
#[tokio::test(start_paused = true)]
async fn a_visit_does_not_bring_back_what_ended_right_after_it() {
    for holds in [true, false] {
        let manager = match holds {
            true => Manager::Delta,
            false => Manager::Backup { copies: 1 },
        };
        let (_wires, nodes) = three(manager, Replication::Async).await;
        for i in 0..40 {
            let id = format!("session-{i:04}").into_bytes();
            let _ = nodes[0].sessions.bind(GROUP, &id, "s1", TTL);
            let node = &nodes[i % 3];
            until("the binding to be found", || {
                nodes.iter().any(|node| node.cache.get(&id).is_some())
            })
            .await;
            assert_eq!(node.find(&id).await.as_deref(), Some("s1"));
            // Both wait for the driver: they are taken in one go.
            node.sessions.touch(GROUP, &id);
            let _ = node.sessions.delete(GROUP, &id);
            let mut left = 100;
            while node.find(&id).await.is_some() && left > 0 {
                // Its own copy, until the primary has ended it.
                left -= 1;
            }
            assert_eq!(node.cache.get(&id), None, "{i}, by {manager:?}");
        }
    }
}

#[tokio::test]
async fn a_full_handle_counts_and_never_blocks() {
    let wires = Wires::default();
    let node = Node::start(&wires, 1, Manager::Delta, Replication::Sync);
    // The task has not run yet: this thread is the only one.
    for _ in 0..super::super::handle::QUEUE {
        node.sessions.touch(GROUP, b"session-one");
    }
    let held = node.sessions.bind(GROUP, b"session-one", "s1", TTL);
    assert_eq!(
        node.sessions
            .request(GROUP, b"session-one", Op::Delete)
            .await,
        Outcome::Busy
    );
    let kept = held.expect("sync").wait().await;
    assert_eq!(kept, Kept::Some(0), "nobody will acknowledge it");
    let counts = node.sessions.group(GROUP).unwrap().counts.status();
    assert_eq!((counts.overflow, counts.sync_timeouts), (2, 1));
}

#[test]
fn a_node_tells_its_groups() {
    let told = about(["user", "admin"].into_iter());
    assert_eq!(told.len(), 9);
    let mut keys = [group_key("user"), group_key("admin")];
    keys.sort_unstable();
    assert_eq!(*super::super::network::groups_of(&told), keys);
    assert!(super::super::network::groups_of(b"").is_empty());
    assert!(super::super::network::groups_of(b"\x02abcd").is_empty());
}
