use super::*;
use crate::config;
use crate::dataplane::mapped::Mapped;
use crate::prober::{Limits, Prober};
use crate::steering::SteeringHandle;
use crate::steering::overrides::Overrides;
use common::tables::{Backend, RingRef, Settings};

fn file(backends: &str) -> Arc<Config> {
    let text = format!(
        r#"
        [xdp]
        interfaces = ["lo"]
        [[frontend]]
        name = "web"
        address = "192.0.2.1:80"
        pool = "web"
        [[pool]]
        name = "web"
        {backends}
        "#
    );
    Arc::new(config::parse("test", &text).unwrap())
}

fn backend(n: u8) -> String {
    format!("[[pool.backend]]\nname = \"s{n}\"\naddress = \"198.51.100.{n}:80\"\n")
}

fn name(backend: &str) -> BackendName {
    BackendName {
        pool: "web".into(),
        backend: backend.into(),
    }
}

fn verdict(backend: &str, health: Health) -> Verdict {
    Verdict {
        name: name(backend),
        health,
        reason: "said so".into(),
        at: Instant::now(),
    }
}

fn present(table: &Mapped<Backend>) -> Vec<Backend> {
    let all = (0..table.len()).map(|slot| table.read(slot));
    all.filter(|b| b.state & state::PRESENT != 0).collect()
}

struct Running {
    tables: Arc<Tables>,
    steering: SteeringHandle,
    store: Store,
    thread: std::thread::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

fn worker(config: Arc<Config>, store: Store) -> Worker {
    let (_, prober, _) = Prober::new(Limits { running: 1 });
    Worker::new(Setup {
        world: World::new(config, Overrides::new(), &HashMap::new(), HashMap::new()),
        tables: Some(Arc::new(Tables::heap(Settings::default()))),
        counters: None,
        prober,
        store,
        watched: Arc::default(),
    })
}

fn start(config: Arc<Config>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::beside(&dir.path().join("s"));
    let worker = worker(config, store.clone());
    let tables = worker.tables.clone().unwrap();
    let (steering, inputs) = SteeringHandle::new();
    Running {
        tables,
        steering,
        store,
        thread: std::thread::spawn(move || worker.run(&inputs)),
        _dir: dir,
    }
}

fn usable(tables: &Tables) -> usize {
    let all = present(&tables.backends);
    all.iter().filter(|b| b.state & state::USABLE != 0).count()
}

fn ring(tables: &Tables) -> u32 {
    let frontends = (0..tables.frontends.len()).map(|i| tables.frontends.read(i));
    let web = frontends.into_iter().find(|f| f.port.host() == 80).unwrap();
    RingRef::from_word(web.ring).len
}

impl Running {
    fn usable(&self) -> usize {
        usable(&self.tables)
    }

    fn ring(&self) -> u32 {
        ring(&self.tables)
    }

    async fn say(&self, verdicts: Vec<Verdict>) {
        self.steering.tell(Input::Verdicts(verdicts)).unwrap();
        // Answered after the round of all that was told before.
        self.steering.look().await.unwrap();
    }

    fn end(self) {
        self.steering.tell(Input::Stop).unwrap();
        self.thread.join().unwrap();
    }
}

#[tokio::test]
async fn verdicts_reach_the_tables() {
    let running = start(file(&format!("{}{}", backend(1), backend(2))));
    let up = ["s1", "s2"].map(|b| verdict(b, Health::Up)).to_vec();
    running.say(up).await;
    assert_eq!((running.usable(), running.ring()), (2, 2));
    running
        .say(vec![verdict("s2", Health::Down), verdict("x", Health::Up)])
        .await;
    assert_eq!((running.usable(), running.ring()), (1, 1));
    let look = running.steering.look().await.unwrap();
    assert!(look.ready && look.desired == look.applied);
    assert_eq!(look.backends.len(), 2);
    assert_eq!(look.frontends.len(), 1);
    running.end();
}

#[tokio::test]
async fn operators_words_hold_and_are_kept() {
    let running = start(file(&format!("{}{}", backend(1), backend(2))));
    let up = ["s1", "s2"].map(|b| verdict(b, Health::Up)).to_vec();
    running.say(up).await;
    let set = |n: &str, a| running.steering.set_activation(name(n), a);
    set("s1", Activation::Drain).await.unwrap();
    assert_eq!((running.usable(), running.ring()), (1, 1));
    set("s2", Activation::Stopped).await.unwrap();
    let stopped = present(&running.tables.backends);
    let stopped = stopped.iter().filter(|b| b.state & state::STOPPED != 0);
    assert_eq!(
        (running.usable(), running.ring(), stopped.count()),
        (0, 0, 1)
    );
    assert_eq!(running.store.load().unwrap().len(), 2);
    assert_eq!(
        set("s9", Activation::Drain).await,
        Err(SteeringError::NoBackend(name("s9")))
    );
    set("s1", Activation::Active).await.unwrap();
    assert_eq!((running.usable(), running.ring()), (1, 1));
    assert_eq!(
        running.store.load().unwrap(),
        Overrides::from([(name("s2"), Activation::Stopped)])
    );
    // A word on what is removed goes with it.
    let less = file(&backend(1));
    running.steering.set_config(less).await.unwrap();
    assert_eq!(running.store.load().unwrap(), Overrides::new());
    running.end();
}

#[tokio::test]
async fn health_stays_with_the_server_not_with_the_name() {
    let running = start(file(&format!("{}{}", backend(1), backend(2))));
    let up = ["s1", "s2"].map(|b| verdict(b, Health::Up)).to_vec();
    running.say(up).await;
    let moved = backend(2).replace("198.51.100.2", "198.51.100.3");
    let config = file(&format!("{}{moved}", backend(1)));
    running.steering.set_config(config).await.unwrap();
    assert_eq!((running.usable(), running.ring()), (1, 1));
    let look = running.steering.look().await.unwrap();
    assert_eq!(look.lingering.len(), 1);
    running.end();
}

#[test]
fn verdicts_hold_before_the_tables_are_read() {
    let config = file(&format!("{}{}", backend(1), backend(2)));
    let dir = tempfile::tempdir().unwrap();
    let mut worker = worker(config, Store::beside(&dir.path().join("s")));
    let tables = worker.tables.clone().unwrap();
    let (steering, inputs) = SteeringHandle::new();
    let tell = |name: &str, health| {
        let verdicts = vec![verdict(name, health)];
        steering.tell(Input::Verdicts(verdicts)).unwrap();
    };
    tell("s1", Health::Up);
    tell("s2", Health::Up);
    worker.read(&inputs);
    worker.round();
    assert_eq!((usable(&tables), ring(&tables)), (2, 2));
    // Nothing has to be read, and so nothing is taken ahead of its time.
    tell("s2", Health::Down);
    worker.read(&inputs);
    assert_eq!(usable(&tables), 2);
    worker.reconciler.resync();
    worker.read(&inputs);
    assert_eq!((usable(&tables), ring(&tables)), (1, 2));
    worker.round();
    assert_eq!((usable(&tables), ring(&tables)), (1, 1));
    assert!(inputs.try_recv().is_err());
}
