//! Prints what writing to disk costs, and what it takes to start with what is there. On
//! request, in release:
//!
//! ```text
//! cargo test --release -p balancer-agent --lib session::database -- measure --ignored --nocapture
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::super::super::driver::tests::{Node as Peer, Wires};
use super::super::super::handle::Kept;
use super::*;

const TTL: Duration = Duration::from_secs(3_600);
const MILLION: usize = 1_000_000;

/// As long as those of the web tier.
fn web_id(n: u64) -> [u8; 20] {
    let mut id = [7; 20];
    id[4..12].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    id[12..].copy_from_slice(&n.wrapping_mul(0xc2b2_ae3d_27d4_eb4f).to_le_bytes());
    id
}

fn identity(node: u64) -> Identity {
    Identity {
        node: NodeId(node),
        ..IDENTITY
    }
}

/// As it is in an agent.
const WEB_BUCKETS: u16 = 1024;

#[test]
#[ignore = "prints figures; in release"]
fn measure_loading() {
    let place = Place::new();
    let mut config = config();
    config.limits.buckets = WEB_BUCKETS;
    let fresh = || Node {
        store: Store::new(config.clone()).unwrap(),
        ..Node::empty()
    };
    let mut file = open(&place.path, IDENTITY, WEB_BUCKETS).unwrap();
    let mut node = fresh();
    node.serve();
    let began = Instant::now();
    for n in 0..MILLION as u64 {
        node.handle(Input::Request {
            token: Token(n),
            group: USER,
            id: &web_id(n),
            op: Op::Put {
                route: "tomcat-a".into(),
                ttl: HOUR,
                data: None,
                expect: Expect::Any,
            },
        });
        if n % 20_000 == 0 {
            node.poll();
            node.write(&mut file);
        }
    }
    node.poll();
    node.write(&mut file);
    let size = file.size();
    println!(
        "{MILLION} sessions written, 20,000 in a transaction: {:.2} s; {} MB, {} bytes per session",
        began.elapsed().as_secs_f64(),
        size / 1_000_000,
        size / MILLION as u64
    );
    drop(file);
    let began = Instant::now();
    let mut file = open(&place.path, IDENTITY, WEB_BUCKETS).unwrap();
    let checked = began.elapsed();
    let mut again = fresh();
    assert!(again.load(&mut file));
    println!(
        "{MILLION} sessions read: {:.2} s, of these {:.2} s for the check of the file",
        began.elapsed().as_secs_f64(),
        checked.as_secs_f64()
    );
    assert_eq!(again.store.counters().sessions, MILLION as u64);
}

/// A primary and its backup, each with a disk of its own: so many clients, each of whom
/// waits until its session is safe, and then makes the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures; in release"]
async fn measure_writes() {
    for clients in [1_u64, 32, 512, 8_192] {
        let places = [Place::new(), Place::new()];
        let wires = Wires::default();
        let peers: Vec<Peer> = (1..)
            .zip(&places)
            .map(|(id, place)| {
                let file = open(&place.path, identity(id), BUCKETS).unwrap();
                let manager = Manager::Backup { copies: 1 };
                Peer::start_on(&wires, id, manager, Replication::Sync, Some(file))
            })
            .collect();
        wires.announce();
        while !peers.iter().all(|peer| peer.sessions.ready()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (made, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let began = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                let sessions = peers[0].sessions.clone();
                let (made, stop) = (Arc::clone(&made), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut late = 0_u64;
                    for n in 0.. {
                        if stop.load(Relaxed) {
                            break;
                        }
                        let id = web_id(client << 32 | n);
                        let held = sessions.bind(USER, &id, "tomcat-a", TTL);
                        match held.expect("sync").wait().await {
                            Kept::All(_) => drop(made.fetch_add(1, Relaxed)),
                            _ => late += 1,
                        }
                    }
                    late
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.store(true, Relaxed);
        let (made, took) = (made.load(Relaxed), began.elapsed());
        let mut late = 0;
        for task in tasks {
            late += task.await.unwrap();
        }
        let disk = peers[0].sessions.disk().unwrap().status();
        println!(
            "{clients:>5} clients: {:>7.0} safe writes/s on two disks, {:>6.1} transactions/s \
             with {:.0} changes each on the first, {late} late",
            made as f64 / took.as_secs_f64(),
            disk.commits as f64 / took.as_secs_f64(),
            disk.records as f64 / disk.commits.max(1) as f64,
        );
        assert!(made > 0);
    }
}
