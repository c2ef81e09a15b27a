//! All wiring: what a running agent is made of, in which order it starts, and how it
//! ends. Nothing else starts a task or a thread that lives as long as the agent.
//!
//! ```text
//! netlink --> next hops --+                          +--> kernel tables
//! checks --> verdicts ----+                          |
//! file, SIGHUP, reload ---+--> worker (one thread) --+
//! operators --------------+                          |
//! events, half-open flows +                          +--> signs --> checks
//!
//! verdicts, file, operators --> web tier (a thread per core)
//! other nodes <--> cluster <--> session store (one thread, with the links) <--> web tier
//!                                     +--> disk (a thread)
//! ```
//!
//! Start: socket, addresses and files of the web tier, sessions from disk, the cluster's
//! addresses, kernel side, next hops, checks, web tier, then the worker's first round, and only then is the socket
//! served. End: running requests, goodbye to the cluster, the socket, then the threads; the
//! kernel program steers on.

mod hops;
mod ready;
mod reload;
pub mod sessions;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::admin::node::{CachedCounts, Node};
use crate::admin::server::Listener;
use crate::cluster::{Cluster, Event, Events};
use crate::dataplane::Tables;
use crate::dataplane::kernel::{self, Kernel, KernelOptions, Start};
use crate::dataplane::object;
use crate::model::Config;
use crate::nexthop::NextHops;
use crate::prober::{Limits, Prober};
use crate::proxy::server::Proxy;
use crate::proxy::stats::{Views, Web};
use crate::reconcile::{Desired, Reconciler};
use crate::session::driver::Prepared;
use crate::steering::flowkeeper::{FlowKeeper, Watched};
use crate::steering::overrides::{Overrides, Store};
use crate::steering::view::{World, health_in, hops_in};
use crate::steering::{Input, Setup, SteeringError, SteeringHandle, Worker};
use hops::{first_hops, follow_hops, watch_hops};
use ready::Ready;
use reload::Reloader;
use sessions::LinkThread;

pub use ready::check;

/// Threads for checks, netlink, membership and operators; the rest has threads of its own.
const RUNTIME_THREADS: usize = 2;
/// How long what still runs at the end may take.
const END: Duration = Duration::from_secs(1);
/// Events that are told together at most.
const EVENTS: usize = 1024;

/// Runs the agent until it is told to end.
///
/// # Errors
/// What keeps it from starting, or made it end.
pub fn run(path: &Path) -> anyhow::Result<()> {
    raise_file_limit();
    let ready = Ready::read(path, None)?;
    if !ready.warnings.is_empty() {
        tracing::warn!("{}", ready.warnings);
    }
    check_rights(&ready.config)?;
    let runtime = runtime()?;
    let result = runtime.block_on(serve(path, ready));
    runtime.shutdown_timeout(END);
    result
}

/// The runtime of an agent, for all but the web tier.
///
/// # Errors
/// The system has no threads for it.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

async fn serve(path: &Path, ready: Ready) -> anyhow::Result<()> {
    let started = Instant::now();
    // First, so that no signal ends the process half way.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut reopen = signal(SignalKind::user_defined1())?;

    let targets = ready.targets();
    let config = ready.config;
    let listener = Listener::bind(&config.admin.socket)?;
    let store = Store::beside(&config.admin.socket);
    let overrides = load_overrides(&store, &config);
    // Before the kernel side: an address that is taken must not leave anything behind.
    let web = Proxy::prepare(&config, ready.materials, None)?;
    // Before the cluster, whose messages would wait meanwhile.
    let mut session_store = sessions::prepare(&config)?;
    let mut threads = Threads::default();
    let disk = session_store.as_mut().and_then(Prepared::take_thread);
    threads.running.extend(disk);
    let cluster = config.cluster.as_ref();
    let cluster = cluster.map(|of| Cluster::bind(of, sessions::initial(&config)));
    let cluster = cluster.transpose()?;
    let kernel = open_kernel(&config)?;

    let mut tasks = JoinSet::new();
    let link_thread = LinkThread::start(&config)?;
    let on_links = link_thread
        .as_ref()
        .map_or_else(Handle::current, |thread| thread.handle().clone());
    let (cluster, links) = match cluster {
        Some((cluster, events, driver)) => {
            tasks.spawn(driver.links_on(&on_links).run());
            (Some(cluster.clone()), Some((cluster, events)))
        }
        None => (None, None),
    };
    let (session_store, store_task) = match (session_store, links) {
        (Some(prepared), links) => {
            let (sessions, task) = sessions::connect(prepared, links)?;
            (Some(sessions), Some(task))
        }
        (None, Some((cluster, events))) => {
            tasks.spawn(follow_links(cluster, events));
            (None, None)
        }
        (None, None) => (None, None),
    };
    let (destinations, wanted) = watch::channel(servers(&config));
    let (hops, seen_hops) = watch::channel(Arc::new(NextHops::default()));
    tasks.spawn(watch_hops(wanted, hops));

    let (prober, prober_handle, mut verdicts) = Prober::new(Limits::default());
    let tables = kernel.as_ref().map(|kernel| Arc::clone(kernel.tables()));
    let (seeds, old_hops) = match &tables {
        Some(tables) => (health_in(tables, &config, &overrides), hops_in(tables)),
        None => Default::default(),
    };
    // Before the targets: a backend that was up must not be down for a moment.
    for (name, health) in &seeds {
        prober_handle.seed(name, *health);
    }
    prober_handle.configure(targets);
    tasks.spawn(async move {
        prober.run().await;
    });

    let words = overrides.clone().into_iter().collect();
    let proxy = Proxy::start(web, &seeds, &words, session_store.clone())
        .context("cannot start the threads of the web tier")?;
    if let Some(task) = store_task {
        tasks.spawn_on(task.run(proxy.clone()), &on_links);
    }
    let mut world = World::new(Arc::clone(&config), overrides, &seeds, old_hops);
    world.set_hops(first_hops(seen_hops.clone()).await);
    world.set_attached(attached(kernel.as_deref()));

    let (steering, inputs) = SteeringHandle::new();
    let watched = Arc::new(ArcSwap::from_pointee(Watched::default()));
    let worker = Worker::new(Setup {
        world,
        tables,
        counters: kernel.clone(),
        prober: prober_handle.clone(),
        store,
        watched: Arc::clone(&watched),
    });
    let (ended, mut worker_ended) = oneshot::channel();
    threads.spawn("reconcile", move || {
        // Dropped when the worker ends, in whatever way.
        let _ended: oneshot::Sender<()> = ended;
        worker.run(&inputs);
    })?;

    let steering_of_verdicts = steering.clone();
    let proxy_of_verdicts = proxy.clone();
    tasks.spawn(async move {
        loop {
            let news = verdicts.recv().await;
            proxy_of_verdicts.verdicts(&news);
            if steering_of_verdicts.tell(Input::Verdicts(news)).is_err() {
                return;
            }
        }
    });
    tasks.spawn(follow_hops(
        seen_hops.clone(),
        kernel.clone(),
        steering.clone(),
    ));
    if let Some(kernel) = &kernel {
        start_kernel_side(kernel, &steering, watched, &mut tasks, &mut threads)?;
    }

    let (reload, requests) = mpsc::channel(16);
    let reloader = Reloader {
        path: path.into(),
        kernel: kernel.clone(),
        steering: steering.clone(),
        prober: prober_handle.clone(),
        proxy: proxy.clone(),
        cluster: cluster.clone(),
        destinations,
        current: config,
    };
    tasks.spawn(reloader.run(requests));
    let node = Arc::new(Node {
        steering: steering.clone(),
        prober: prober_handle,
        kernel: kernel.clone(),
        hops: seen_hops,
        reload: reload.clone(),
        web: Some(Arc::new(proxy.clone()) as Arc<dyn Web>),
        cluster: cluster.clone(),
        sessions: session_store,
        started,
        counts: CachedCounts::default(),
    });
    let views: Arc<dyn Views> = node.clone();
    proxy.set_views(Arc::downgrade(&views));
    drop(views);
    // Waits for the first round.
    steering.look().await?;
    tracing::info!(pid = std::process::id(), "ready");

    tasks.spawn(async move {
        let answer = move |request| Arc::clone(&node).answer(request);
        listener.serve(answer).await;
    });
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => {
                tasks.spawn(reload::by_signal(reload.clone()));
            }
            _ = reopen.recv() => proxy.reopen_logs(),
            _ = &mut worker_ended => break Err(anyhow::anyhow!("the reconcile thread has failed")),
            Some(done) = tasks.join_next() => if let Err(error) = done {
                break Err(error.into());
            },
        }
    };
    // Checks, verdicts and operators go on while running requests end. A second signal is
    // for those who can't wait.
    tokio::select! {
        () = proxy.drain() => {}
        _ = terminate.recv() => tracing::warn!("ending at once: requests are cut"),
        _ = interrupt.recv() => tracing::warn!("ending at once: requests are cut"),
    }
    if let Some(cluster) = &cluster {
        cluster.leave().await;
    }
    // The socket goes with its task.
    tasks.shutdown().await;
    if let Some(thread) = link_thread {
        thread.end();
    }
    let _ = steering.tell(Input::Stop);
    threads.join();
    match kernel {
        Some(kernel) => tracing::info!(
            pin_dir = %kernel.pin_dir().display(),
            "ending; the kernel program steers on, without checks (`balancer unload` takes it away)"
        ),
        None => tracing::info!("ending"),
    }
    result
}

/// Says what an agent that is started now would change, step by step.
///
/// # Errors
/// What keeps an agent from starting; also when something wanted cannot be had.
pub fn dry_run(path: &Path) -> anyhow::Result<String> {
    raise_file_limit();
    let config = Ready::read(path, None)?.config;
    let store = Store::beside(&config.admin.socket);
    let overrides = load_overrides(&store, &config);
    let tables = match kernel::pinned(config.xdp.pin_dir.as_deref())? {
        Some(tables) => tables,
        None => Tables::heap(Default::default()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let hops = runtime.block_on(async {
        let (_destinations, wanted) = watch::channel(servers(&config));
        let (hops, seen_hops) = watch::channel(Arc::new(NextHops::default()));
        tokio::select! {
            () = watch_hops(wanted, hops) => Arc::default(),
            hops = first_hops(seen_hops) => hops,
        }
    });
    let seeds = health_in(&tables, &config, &overrides);
    let old_hops = hops_in(&tables);
    let mut world = World::new(Arc::clone(&config), overrides, &seeds, old_hops);
    let interfaces = config.xdp.interfaces.iter();
    let indexes = interfaces.filter_map(|name| nix::net::if_::if_nametoindex(&**name).ok());
    world.set_attached(indexes.collect());
    world.set_hops(hops);
    let counts = || {
        let now = crate::steering::flowkeeper::monotonic();
        crate::dataplane::flows::count_by_backend(&tables, &config.timeouts, now)
    };
    let desired = Desired::new(&config, &world);
    let plan = Reconciler::new().dry_run(desired, &tables, &counts, Duration::ZERO);
    if !plan.problems.is_empty() {
        bail!("{plan}");
    }
    Ok(match plan.steps.is_empty() {
        true => "nothing to do\n".into(),
        false => plan.to_string(),
    })
}

/// Takes the program off the interfaces and forgets all flows. Says what was done.
///
/// # Errors
/// An agent runs, or the pins can't be removed.
pub fn unload(pin_dir: Option<&Path>) -> anyhow::Result<String> {
    Ok(match kernel::unload(pin_dir)? {
        Some(removed) => format!(
            "unloaded: the program was on {} interfaces, with {} tables",
            removed.links, removed.maps
        ),
        None => "nothing was loaded".into(),
    })
}

/// The threads of the agent.
#[derive(Default)]
struct Threads {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name(name.into());
        let thread = thread.spawn(work).context("cannot start a thread")?;
        self.running.push(thread);
        Ok(())
    }

    /// Waits for all of them; one that failed has said so itself.
    fn join(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.running {
            let _ = thread.join();
        }
    }
}

/// What steers in the kernel needs root; better to say so than to fail in the middle.
fn check_rights(config: &Config) -> anyhow::Result<()> {
    if !steers(config) {
        return Ok(());
    }
    if object::OBJECT.is_none() {
        bail!("{}", object::MISSING);
    }
    // linux/capability.h
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Without an answer the kernel will say it.
    let Some(mask) = mask else { return Ok(()) };
    let has = |capability: u32| mask & 1 << capability != 0;
    if has(NET_ADMIN) && (has(SYS_ADMIN) || has(BPF) && has(PERFMON)) {
        return Ok(());
    }
    bail!(
        "steering in the kernel needs root, or the capabilities CAP_NET_ADMIN, CAP_BPF and \
         CAP_PERFMON"
    )
}

/// Each check takes a descriptor, as do document roots.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn load_overrides(store: &Store, config: &Config) -> Overrides {
    let mut overrides = store.load().unwrap_or_else(|error| {
        let path = store.path().display();
        tracing::warn!(%path, %error, "operators' words can't be read, and are forgotten");
        Overrides::new()
    });
    overrides.retain(|name, activation| {
        let known = config
            .pool(&name.pool)
            .is_some_and(|pool| pool.backends.iter().any(|b| b.name == name.backend));
        if known {
            tracing::info!(backend = %name, %activation, "an operator's word still holds");
        }
        known
    });
    overrides
}

fn steers(config: &Config) -> bool {
    !config.xdp.interfaces.is_empty() || !config.frontends.is_empty()
}

fn open_kernel(config: &Config) -> anyhow::Result<Option<Arc<Kernel>>> {
    if !steers(config) {
        tracing::info!("no interfaces are configured: nothing is steered in the kernel");
        return Ok(None);
    }
    let object = object::OBJECT.context(object::MISSING)?;
    let (kernel, opened) = Kernel::open(&KernelOptions::new(object, &config.xdp))?;
    for warning in opened.warnings() {
        tracing::warn!("{warning}");
    }
    let how = match opened.start {
        Start::Fresh => "made",
        Start::Recovered => "made, after removing what a start cut short had left",
        Start::Adopted => "taken over from an earlier agent, with their flows",
    };
    tracing::info!(
        pin_dir = %opened.pin_dir.display(),
        program_id = kernel.program_id(),
        memory_mib = kernel.memory_bytes() >> 20,
        "tables {how}"
    );
    for attached in kernel.attached() {
        let reason = attached.reason.as_deref();
        tracing::info!(interface = attached.interface, mode = %attached.mode, reason, "attached");
    }
    Ok(Some(Arc::new(kernel)))
}

fn start_kernel_side(
    kernel: &Arc<Kernel>,
    steering: &SteeringHandle,
    watched: Arc<ArcSwap<Watched>>,
    tasks: &mut JoinSet<()>,
    threads: &mut Threads,
) -> anyhow::Result<()> {
    let keeper = FlowKeeper::new(
        Arc::clone(kernel),
        steering.clone(),
        watched,
        Arc::clone(&threads.stop),
    );
    threads.spawn("flows", || keeper.run())?;
    if let Some(log) = kernel.log() {
        tasks.spawn(async move {
            if let Err(error) = log.run().await {
                tracing::warn!(%error, "the kernel program's log can't be read any more");
            }
        });
    }
    if let Some(mut events) = kernel.events()? {
        let steering = steering.clone();
        tasks.spawn(async move {
            let mut told = Vec::new();
            loop {
                match events.next().await {
                    Ok(event) => told.push(event),
                    Err(error) => {
                        tracing::warn!(%error, "the kernel program's events can't be read any more");
                        return;
                    }
                }
                // More that are there already go along.
                while told.len() < EVENTS {
                    let next = tokio::time::timeout(Duration::ZERO, events.next());
                    let Ok(Ok(event)) = next.await else { break };
                    told.push(event);
                }
                if steering.tell(Input::Events(std::mem::take(&mut told))).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Says which links come and go. Messages are nobody's yet: a node of another build may
/// send some, and must not be held up.
async fn follow_links(cluster: Cluster, mut events: Events) {
    while let Some(event) = events.recv().await {
        let (what, node) = match event {
            Event::LinkUp { node, .. } => ("up", node),
            Event::LinkDown { node, .. } => ("down", node),
            Event::Message { .. } => continue,
        };
        tracing::info!(node = %cluster.name_of(node), "link {what}");
    }
}

fn tell_attached(kernel: &Kernel, steering: &SteeringHandle) -> Result<(), SteeringError> {
    steering.tell(Input::Attached(attached(Some(kernel))))
}

fn attached(kernel: Option<&Kernel>) -> Vec<u32> {
    let attached = kernel.map(Kernel::attached).unwrap_or_default();
    attached.iter().map(|a| a.ifindex).collect()
}

fn servers(config: &Config) -> Vec<IpAddr> {
    let backends = config.pools.iter().flat_map(|pool| &pool.backends);
    let mut servers: Vec<IpAddr> = backends.map(|b| b.address.ip()).collect();
    servers.sort();
    servers.dedup();
    servers
}
