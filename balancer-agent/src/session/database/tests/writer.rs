//! The thread: nothing is reported before it is safe, and a disk that fails holds up
//! nothing but itself.

use std::fs;
use std::time::{Duration, Instant};

use super::super::super::config::Limits;
use super::super::super::driver::{self, Alone, GroupSetup, Prepared, Setup};
use super::super::super::handle::{Kept, Sessions};
use super::super::DiskStatus;
use super::*;

const TTL: Duration = Duration::from_secs(3_600);

struct Running {
    sessions: Sessions,
    task: tokio::task::JoinHandle<()>,
    thread: std::thread::JoinHandle<()>,
}

fn prepare(place: &Place, replication: Replication, disk_backlog: usize) -> Prepared {
    let file = place.open();
    driver::prepare(Setup {
        node: IDENTITY.node,
        key: IDENTITY.key,
        id_key: IDENTITY.id_key,
        groups: ["user", "admin"]
            .map(|name| GroupSetup {
                name: name.into(),
                manager: Manager::Delta,
                persistent: true,
                replication,
                // No machine is so slow: what must be acknowledged is.
                sync_timeout: Duration::from_secs(60),
                ttl: TTL,
            })
            .to_vec(),
        limits: Limits {
            buckets: BUCKETS,
            disk_backlog,
            ..Limits::default()
        },
        disk: Some(file),
        alone: true,
    })
    .unwrap()
}

fn start(place: &Place, replication: Replication) -> Running {
    start_with(place, replication, 1 << 20)
}

fn start_with(place: &Place, replication: Replication, backlog: usize) -> Running {
    let mut prepared = prepare(place, replication, backlog);
    let thread = prepared.take_thread().unwrap();
    let (sessions, driver) = prepared.connect(Alone::new(IDENTITY.node, 1));
    Running {
        sessions,
        task: tokio::spawn(driver.run(())),
        thread,
    }
}

impl Running {
    async fn bind(&self, id: &str) -> bool {
        let held = self.sessions.bind(USER, id.as_bytes(), "s1", TTL);
        matches!(held.expect("sync").wait().await, Kept::All(_))
    }

    fn disk(&self) -> DiskStatus {
        self.sessions.disk().unwrap().status()
    }

    /// As the agent does when it is told to end.
    async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
        let thread = self.thread;
        tokio::task::spawn_blocking(|| thread.join().unwrap())
            .await
            .unwrap();
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "waited for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_is_on_disk() {
    let place = Place::new();
    let node = start(&place, Replication::Sync);
    for n in 0..20 {
        assert!(node.bind(&id(n)).await);
        // As it is after a crash at this moment.
        let copy = Place::new();
        fs::create_dir_all(copy.path.parent().unwrap()).unwrap();
        fs::copy(&place.path, &copy.path).unwrap();
        assert_eq!(copy.sessions().len(), n + 1);
    }
    let disk = node.disk();
    assert!(disk.commits >= 20 && disk.error.is_none(), "{disk:?}");
    // What comes together is written together.
    let many = (100..1_100).map(|n| node.sessions.bind(USER, id(n).as_bytes(), "s1", TTL));
    let many: Vec<_> = many.map(Option::unwrap).collect();
    for held in many {
        assert_eq!(held.wait().await, Kept::All(1));
    }
    let commits = node.disk().commits - disk.commits;
    println!("1,000 sessions at once in {commits} transactions");
    assert!(commits < 300, "{commits}");
    node.end().await;
    assert_eq!(place.sessions().len(), 1_020);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_end_leaves_nothing_behind() {
    let place = Place::new();
    let node = start(&place, Replication::Async);
    for n in 0..5_000 {
        assert!(
            node.sessions
                .bind(USER, id(n).as_bytes(), "s1", TTL)
                .is_none()
        );
    }
    let held = node.sessions.clone();
    until("the store to have them", || {
        held.group(USER).unwrap().counts.status().bound == 5_000
    })
    .await;
    let sessions = held.look(|store, _| store.counters().sessions).await;
    assert_eq!(sessions, Some(5_000));
    node.end().await;
    assert_eq!(place.sessions().len(), 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_async_many_writes_share_a_transaction() {
    let place = Place::new();
    let node = start(&place, Replication::Async);
    let began = Instant::now();
    for n in 0..200 {
        let _ = node.sessions.bind(USER, id(n).as_bytes(), "s1", TTL);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until("all to be on disk", || node.disk().rows >= 200).await;
    let commits = node.disk().commits;
    // One in 100 ms, and one more at either end.
    let most = began.elapsed().as_millis() as u64 / 100 + 2;
    assert!(
        commits <= most,
        "{commits} transactions in {:?}",
        began.elapsed()
    );
    node.end().await;
    assert_eq!(place.sessions().len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_taken_away_is_written_anew() {
    let place = Place::new();
    let node = start(&place, Replication::Sync);
    for n in 0..300 {
        assert!(node.bind(&id(n)).await);
    }
    let directory = place.path.parent().unwrap().to_owned();
    fs::remove_dir_all(&directory).unwrap();
    // Not acknowledged before it is on a disk again.
    let held = node.bind("after-the-loss").await;
    until("the file to be there", || place.path.exists()).await;
    until("all to be on disk", || {
        let disk = node.disk();
        disk.error.is_none() && disk.rows >= 601
    })
    .await;
    println!("acknowledged: {held}, {:?}", node.disk());
    assert!(node.disk().failures > 0);
    node.end().await;
    assert_eq!(place.sessions().len(), 301);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_is_said_and_holds_up_nobody() {
    let place = Place::new();
    let node = start_with(&place, Replication::Sync, 20_000);
    assert!(node.bind("before-the-failure").await);
    // Nothing can be opened under this name, nor made.
    let directory = place.path.parent().unwrap().to_owned();
    let aside = place.dir.path().join("aside");
    fs::rename(&directory, &aside).unwrap();
    fs::write(&directory, "in the way").unwrap();
    for n in 0..50 {
        let _ = node.sessions.bind(USER, id(n).as_bytes(), "s1", TTL);
    }
    until("the failure to be seen", || node.disk().error.is_some()).await;
    // Served from memory, not acknowledged.
    let bound = tokio::time::timeout(Duration::from_millis(500), node.bind("in-between"));
    assert!(bound.await.is_err());
    let found = node.sessions.find(USER, b"in-between", TTL).await;
    assert_eq!(&*found.unwrap().unwrap().route, "s1");
    // More than may wait: whole buckets then.
    for n in 1_000..3_000 {
        let _ = node.sessions.bind(USER, id(n).as_bytes(), "s1", TTL);
    }
    let counters = || node.sessions.look(|store, _| store.counters());
    let full = counters().await.unwrap();
    assert!(full.disk_buckets > 0 && full.disk_behind > 0, "{full:?}");
    assert!(full.disk_backlog < 40_000, "{full:?}");
    let failing = node.disk();
    assert!(failing.failing_for_ms.is_some() && failing.failures >= 1);

    fs::remove_file(&directory).unwrap();
    fs::rename(&aside, &directory).unwrap();
    until("the disk to be back", || node.disk().error.is_none()).await;
    assert!(node.bind("after-the-failure").await);
    let began = Instant::now();
    loop {
        let counters = counters().await.unwrap();
        if counters.disk_buckets == 0 && counters.disk_backlog == 0 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{counters:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.end().await;
    let found = place.sessions();
    assert_eq!(found.len(), 1 + 50 + 1 + 2_000 + 1);
    assert_eq!(names(&directory), ["sessions.redb"]);
}
