//! Whole nodes in one process, over loopback.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::model::cluster::{Multicast, Secret, Timing};

const BOUND: Duration = Duration::from_secs(20);

struct Host {
    cluster: Cluster,
    events: Events,
    task: JoinHandle<()>,
    config: Arc<config::Cluster>,
    _dir: TempDir,
}

impl Host {
    fn start(name: &str, seeds: &[SocketAddr], secret: u8) -> Self {
        let dir = TempDir::new().unwrap();
        let listen = free();
        let config = config::Cluster {
            name: name.into(),
            listen,
            advertise: listen,
            seeds: seeds.to_vec(),
            secret: Secret::new(&[secret; 32]),
            state_dir: dir.path().into(),
            multicast: None,
            timing: Timing {
                probe_interval: Duration::from_millis(200),
                probe_timeout: Duration::from_millis(80),
                suspect_timeout: Duration::from_millis(600),
            },
            queue_bytes: 8 << 20,
            queue_messages: 100_000,
        };
        Self::with(config, dir)
    }

    fn with(config: config::Cluster, dir: TempDir) -> Self {
        let config = Arc::new(config);
        let (cluster, events, driver) = Cluster::bind(&config, Initial::default()).unwrap();
        Self {
            cluster,
            events,
            task: tokio::spawn(driver.run()),
            config,
            _dir: dir,
        }
    }

    fn at(&self) -> SocketAddr {
        self.config.advertise
    }

    fn id(&self) -> NodeId {
        self.cluster.id()
    }

    fn state(&self, of: NodeId) -> Option<State> {
        let nodes = self.cluster.members();
        let nodes = nodes.borrow();
        nodes.iter().find(|n| n.id == of).map(|n| n.state)
    }

    async fn next(&mut self) -> Event {
        let event = timeout(BOUND, self.events.recv()).await;
        event.expect("an event").expect("a cluster")
    }

    async fn next_up(&mut self) -> NodeId {
        match self.next().await {
            Event::LinkUp { node, .. } => node,
            other => panic!("{other:?} instead of a link"),
        }
    }
}

/// An address that is free for TCP and UDP.
fn free() -> SocketAddr {
    for _ in 0..100 {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port")
}

async fn wait(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(BOUND, waiting).await.is_ok(), "in vain for {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_meet_and_talk() {
    let mut a = Host::start("a", &[], 1);
    let mut b = Host::start("b", &[a.at()], 1);
    assert_eq!(a.next_up().await, b.id());
    assert_eq!(b.next_up().await, a.id());
    assert_eq!(a.cluster.send(a.id(), b"x"), Err(SendError::Unknown));
    let long = vec![7; MESSAGE_MAX];
    a.cluster.send(b.id(), b"hello").unwrap();
    a.cluster.send(b.id(), b"").unwrap();
    a.cluster.send(b.id(), &long).unwrap();
    for wanted in [&b"hello"[..], b"", &long] {
        let Event::Message { node, content, .. } = b.next().await else {
            panic!("not a message");
        };
        assert_eq!((node, &content[..]), (a.id(), wanted));
    }
    b.cluster.send(a.id(), b"and back").unwrap();
    assert!(
        matches!(a.next().await, Event::Message { content, .. } if &content[..] == b"and back")
    );

    a.cluster.set_syncing(true).await;
    wait("syncing", || b.state(a.id()) == Some(State::Syncing)).await;

    // A clean end is told, and the links go.
    a.cluster.leave().await;
    a.task.await.unwrap();
    assert!(matches!(b.next().await, Event::LinkDown { node, .. } if node == NodeId::of("a")));
    wait("the goodbye", || {
        b.state(NodeId::of("a")) == Some(State::Left)
    })
    .await;
    assert_eq!(
        b.cluster.send(NodeId::of("a"), b"x"),
        Err(SendError::Unknown)
    );
    let status = b.cluster.status();
    assert_eq!(status.nodes.len(), 2);
    assert_eq!(status.nodes[0].link, None);
    b.cluster.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_seen_and_a_return_too() {
    let mut a = Host::start("a", &[], 1);
    let b = Host::start("b", &[a.at()], 1);
    a.next_up().await;
    let first = a
        .cluster
        .members()
        .borrow()
        .iter()
        .find(|n| !n.own)
        .unwrap()
        .incarnation;
    // No goodbye: the task just ends, and its sockets with it.
    b.task.abort();
    assert!(matches!(a.next().await, Event::LinkDown { .. }));
    wait("down", || a.state(NodeId::of("b")) == Some(State::Down)).await;
    let config = config::Cluster::clone(&b.config);
    let _ = b.task.await;
    let b = Host::with(config, b._dir);
    let Event::LinkUp { node, incarnation } = a.next().await else {
        panic!("no link");
    };
    assert_eq!(node, b.id());
    assert!(incarnation > first);
    assert_eq!(incarnation.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_understood_loses_its_link() {
    use crate::session::driver::{GroupSetup, Peers, Setup, start};
    use crate::session::{Limits, Manager, NodeId as Of, Replication};

    let a = Host::start("a", &[], 1);
    let mut b = Host::start("b", &[a.at()], 1);
    let mut c = Host::start("c", &[a.at()], 1);
    let setup = Setup {
        node: Of(a.id().0),
        key: [1, 2],
        id_key: [3, 4],
        groups: vec![GroupSetup {
            name: "user".into(),
            manager: Manager::Delta,
            persistent: false,
            replication: Replication::Async,
            sync_timeout: Duration::from_secs(1),
            ttl: Duration::from_secs(60),
        }],
        limits: Limits::default(),
        disk: None,
        alone: false,
    };
    let peers = Peers::new(a.cluster.clone(), a.events);
    let (_sessions, driver) = start(setup, peers).unwrap();
    let store = tokio::spawn(driver.run(()));
    let is_up = |b: &Host| b.cluster.send(a.cluster.id(), b"\x07 garbage").is_ok();
    wait("links", || is_up(&c)).await;
    while !is_up(&b) {
        b.next().await;
    }
    // Each time it is up again, and sends what can't be read, it goes down again.
    for host in [&mut b, &mut c] {
        loop {
            if let Event::LinkDown { node, .. } = host.next().await {
                assert_eq!(node, a.cluster.id());
                break;
            }
        }
        while !matches!(host.next().await, Event::LinkUp { node, .. } if node == a.cluster.id()) {}
    }
    let status = a.cluster.status();
    assert!(status.counters.refused >= 2, "{:?}", status.counters);
    for node in status.nodes.iter().filter(|node| !node.own) {
        let link = node.link.as_ref().expect("a link");
        let why = link.last_error.as_deref().unwrap_or_default();
        assert!(why.contains("format 7 is not known here"), "{why}");
        // It is a member all the same.
        assert_eq!(node.state, State::Alive);
    }
    store.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_garbage_change_nothing() {
    let mut a = Host::start("a", &[], 1);
    let mut b = Host::start("b", &[a.at()], 1);
    a.next_up().await;
    b.next_up().await;
    let stranger = Host::start("c", &[a.at(), b.at()], 2);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for size in [0, 1, 24, 25, 57, 100, 1200, 1500, 9000] {
        for first in [0, 1, 0xff] {
            let mut garbage = vec![first; size];
            garbage
                .iter_mut()
                .skip(1)
                .enumerate()
                .for_each(|(i, b)| *b = i as u8);
            udp.send_to(&garbage, a.at()).unwrap();
        }
    }
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"",
        &[0x16, 3, 1, 0xff, 0xff],
        &[0; 100],
    ] {
        let mut tcp = TcpStream::connect(a.at()).unwrap();
        // The agent may have closed it already.
        let _ = tcp.write_all(garbage);
    }
    let counted = || a.cluster.status().counters;
    wait("the counters", || {
        let counted = counted();
        counted.garbage >= 20 && counted.wrong_secret >= 4 && counted.handshakes_failed >= 4
    })
    .await;
    wait("the stranger's own counter", || {
        stranger.cluster.status().counters.wrong_secret == 0
            && stranger.cluster.status().counters.datagrams_out >= 4
    })
    .await;
    assert_eq!(stranger.cluster.members().borrow().len(), 1);
    for host in [&a, &b] {
        assert_eq!(host.cluster.members().borrow().len(), 2);
    }
    assert!(a.events.try_recv().is_none());
    a.cluster.send(b.id(), b"still here").unwrap();
    assert!(matches!(b.next().await, Event::Message { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_so_and_recovers() {
    let mut a = Host::start("a", &[], 1);
    let mut b = Host::start("b", &[a.at()], 1);
    a.next_up().await;
    b.next_up().await;
    // Nobody reads at b: everything fills up, and no memory is taken beyond the bounds.
    let message = vec![1; 10_000];
    let mut sent = 0u32;
    let full = async {
        loop {
            match a.cluster.send(b.id(), &message) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => {
                    let before = a.cluster.status().nodes[1].link.clone().unwrap().bytes_out;
                    sleep(Duration::from_millis(200)).await;
                    let after = a.cluster.status().nodes[1].link.clone().unwrap().bytes_out;
                    if before == after {
                        return;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(BOUND, full).await.unwrap();
    let link = a.cluster.status().nodes[1].link.clone().unwrap();
    assert!(link.up && link.queue_bytes <= 8 << 20, "{link:?}");
    assert!(a.cluster.status().counters.queue_full > 0);
    let mut received = 0;
    while received < sent {
        match b.next().await {
            Event::Message { content, .. } => {
                assert_eq!(content.len(), message.len());
                received += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    a.cluster.send(b.id(), b"room again").unwrap();
    assert!(matches!(b.next().await, Event::Message { content, .. } if content.len() == 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_messages_keep_their_order_and_share_writes() {
    const COUNT: u32 = 200_000;
    let mut a = Host::start("a", &[], 1);
    let mut b = Host::start("b", &[a.at()], 1);
    a.next_up().await;
    b.next_up().await;
    let began = Instant::now();
    let (sender, to) = (a.cluster.clone(), b.id());
    let sending = tokio::spawn(async move {
        let mut message = [0; 64];
        for n in 0..COUNT {
            message[..4].copy_from_slice(&n.to_be_bytes());
            while sender.send(to, &message) == Err(SendError::Full) {
                tokio::task::yield_now().await;
            }
        }
    });
    for n in 0..COUNT {
        let Event::Message { content, .. } = b.next().await else {
            panic!("not a message");
        };
        assert_eq!(content[..4], n.to_be_bytes());
    }
    sending.await.unwrap();
    let took = began.elapsed();
    let link = a.cluster.status().nodes[1].link.clone().unwrap();
    let rate = f64::from(COUNT) / took.as_secs_f64();
    println!("{rate:.0} messages/s, {} writes", link.writes);
    assert!(link.writes < u64::from(COUNT) / 10, "{link:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_does_not_wait_for_others() {
    const COUNT: usize = 2_000;
    let mut a = Host::start("a", &[], 1);
    let mut b = Host::start("b", &[a.at()], 1);
    a.next_up().await;
    b.next_up().await;
    let (echo, to) = (b.cluster.clone(), a.id());
    let echoing = tokio::spawn(async move {
        for _ in 0..COUNT {
            let Event::Message { content, .. } = b.next().await else {
                panic!("not a message");
            };
            echo.send(to, &content).unwrap();
        }
    });
    let mut took = Vec::new();
    for _ in 0..COUNT {
        let began = Instant::now();
        a.cluster.send(NodeId::of("b"), &[1; 100]).unwrap();
        assert!(matches!(a.next().await, Event::Message { .. }));
        took.push(began.elapsed());
    }
    echoing.await.unwrap();
    took.sort_unstable();
    let at = |share: f64| took[(COUNT as f64 * share) as usize];
    println!("there and back: median {:?}, p99 {:?}", at(0.5), at(0.99));
    // Whoever holds messages back to send more at once, or waits for acknowledgements (40
    // ms), is far from this, whatever else the machine does.
    assert!(at(0.5) < Duration::from_millis(10), "{:?}", at(0.5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_seeds_are_followed() {
    let a = Host::start("a", &[], 1);
    let b = Host::start("b", &[], 1);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(a.cluster.members().borrow().len(), 1);
    let mut config = config::Cluster::clone(&a.config);
    assert!(differences(Some(&a.config), Some(&config)).is_empty());
    config.seeds = vec![a.at(), b.at()];
    assert!(differences(Some(&a.config), Some(&config)).is_empty());
    a.cluster.configure(Arc::new(config)).await;
    wait("each other", || {
        a.state(b.id()) == Some(State::Alive) && b.state(a.id()) == Some(State::Alive)
    })
    .await;
}

#[test]
fn what_cannot_be_followed_is_named() {
    let config = |name: &str| config::Cluster {
        name: name.into(),
        listen: "127.0.0.1:1".parse().unwrap(),
        advertise: "127.0.0.1:1".parse().unwrap(),
        seeds: Vec::new(),
        secret: Secret::new(&[1; 32]),
        state_dir: "/x".into(),
        multicast: None,
        timing: Timing::default(),
        queue_bytes: 1,
        queue_messages: 1,
    };
    let (old, mut new) = (config("a"), config("b"));
    new.secret = Secret::new(&[2; 32]);
    new.multicast = Some(Multicast {
        group: "239.0.0.1:1".parse().unwrap(),
        interface: "eth0".into(),
    });
    let differ = differences(Some(&old), Some(&new)).join(", ");
    for key in ["name", "secret_file", "multicast"] {
        assert!(differ.contains(key), "{differ}");
    }
    assert!(!differ.contains("listen"), "{differ}");
    assert_eq!(differences(None, Some(&new)).len(), 1);
    assert!(differences(None, None).is_empty());
    // A secret is not shown, whoever prints a configuration.
    assert!(!format!("{:?}", old.secret).contains('1'));
}
