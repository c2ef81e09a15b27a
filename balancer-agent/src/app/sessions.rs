//! The session store of a configuration, and the way to its peers.

use std::thread::JoinHandle;

use anyhow::Context;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::cluster::{self, Cluster, Events, Initial};
use crate::model::session::{SessionGroup, SessionManager, Sessions as Model};
use crate::model::{Config, Misfit, Named};
use crate::placement;
use crate::session::database::{self, Identity, Place, Refusal};
use crate::session::driver::{self, Alone, Driver, GroupSetup, Peers, Prepared, Setup, Watch};
use crate::session::handle::Sessions;
use crate::session::{Limits, Manager, NodeId, Replication};

/// How long a write of an `async` group may be worked on; nobody waits for it.
const ASYNC: std::time::Duration = std::time::Duration::from_secs(1);
/// A node without a cluster.
const ALONE: NodeId = NodeId(1);
/// Bytes of changes that wait for the disk; twice as much is on its way to it.
const DISK_BACKLOG: usize = 16 << 20;

/// What this node tells the others of its groups from the first message on.
pub(super) fn initial(config: &Config) -> Initial {
    match &config.sessions {
        None => Initial::default(),
        Some(sessions) => Initial {
            syncing: true,
            about: driver::about(sessions.groups.iter().map(|group| &*group.name)),
        },
    }
}

/// One thread for the links to other nodes and the session store. Whatever a message sets
/// going happens there, one thing after the other: no other thread has to be woken for it,
/// and what comes from several nodes at once is answered together. Membership runs
/// elsewhere: an operator's look at every session must not look like a death.
pub(super) struct LinkThread {
    handle: Handle,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl LinkThread {
    /// Starts it, if there is a use for it.
    pub fn start(config: &Config) -> anyhow::Result<Option<Self>> {
        if config.cluster.is_none() && config.sessions.is_none() {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime of links and sessions")?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("sessions".into());
        let thread = thread.spawn(move || {
            // Responses are held until what happens here has happened.
            placement::be_prompt();
            // Also when the other end is dropped, in whatever way.
            let _ = runtime.block_on(stopped);
        });
        Ok(Some(Self {
            handle,
            stop,
            thread: thread.context("cannot start the thread of links and sessions")?,
        }))
    }

    /// For tasks that shall run there.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends what still runs there.
    pub fn end(self) {
        drop(self.stop);
        // A task that failed has said so itself.
        let _ = self.thread.join();
    }
}

/// A node that keeps sessions and does nothing else: cluster, links and store of an agent,
/// without its web tier and kernel side. For benchmarks, which put load on the store itself.
pub struct SessionNode {
    /// The store.
    pub sessions: Sessions,
    /// The links.
    pub cluster: Cluster,
    tasks: JoinSet<()>,
    thread: LinkThread,
    disk: Option<JoinHandle<()>>,
}

impl SessionNode {
    /// Starts one by an agent's configuration, on the runtime that it is called on (see
    /// [`super::runtime`]) and a thread of its own.
    ///
    /// # Errors
    /// There is no `[cluster]` or no group, or an agent would not start with it either.
    pub fn start(config: &Config, watch: impl Watch + Sync) -> anyhow::Result<Self> {
        let of = config.cluster.as_ref().context("there is no [cluster]")?;
        let mut store = prepare(config)?.context("there is no [session]")?;
        let disk = store.take_thread();
        let (cluster, events, driver) = Cluster::bind(of, initial(config))?;
        let (sessions, task) = connect(store, Some((cluster.clone(), events)))?;
        let thread = LinkThread::start(config)?.context("there is nothing to do")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.links_on(thread.handle()).run());
        tasks.spawn_on(task.run(watch), thread.handle());
        Ok(Self {
            sessions,
            cluster,
            tasks,
            thread,
            disk,
        })
    }

    /// Says goodbye to the others, writes what is left to disk, and ends.
    pub async fn end(mut self) {
        self.cluster.leave().await;
        self.tasks.shutdown().await;
        self.thread.end();
        if let Some(disk) = self.disk {
            // A thread that failed has said so itself.
            let _ = disk.join();
        }
    }
}

/// A store's task, alone or among others.
pub(super) enum StoreTask {
    Alone(Driver<Alone>),
    Among(Driver<Peers>),
}

impl StoreTask {
    /// Works for ever.
    pub async fn run(self, watch: impl Watch) {
        match self {
            Self::Alone(driver) => driver.run(watch).await,
            Self::Among(driver) => driver.run(watch).await,
        }
    }
}

/// Makes the store with all that is on disk; nothing happens before its task runs. Blocks
/// while it reads.
pub(super) fn prepare(config: &Config) -> anyhow::Result<Option<Prepared>> {
    let Some(model) = &config.sessions else {
        return Ok(None);
    };
    let mut identity = identity(config)?;
    let limits = limits(model);
    let disk = match model.persistent() {
        true => {
            let path = place(config, model).path();
            let opened = database::open(&path, identity, limits.buckets)?;
            identity = opened.identity();
            Some(opened)
        }
        false => None,
    };
    let prepared = driver::prepare(Setup {
        node: identity.node,
        key: identity.key,
        id_key: identity.id_key,
        groups: model.groups.iter().map(group).collect(),
        limits,
        disk,
        alone: config.cluster.is_none(),
    })?;
    Ok(Some(prepared))
}

/// Connects a store to the nodes of the cluster, or to none.
pub(super) fn connect(
    prepared: Prepared,
    cluster: Option<(Cluster, Events)>,
) -> anyhow::Result<(Sessions, StoreTask)> {
    Ok(match cluster {
        Some((cluster, events)) => {
            let (sessions, task) = prepared.connect(Peers::new(cluster, events));
            (sessions, StoreTask::Among(task))
        }
        None => {
            let (sessions, task) = prepared.connect(Alone::new(ALONE, random()?));
            (sessions, StoreTask::Alone(task))
        }
    })
}

/// What can't be used of the directory for sessions, or is odd about it; changes nothing.
///
/// # Errors
/// What a start would be refused for.
pub(super) fn look(config: &Config) -> Result<Option<Misfit>, Misfit> {
    let model = config.sessions.as_ref().filter(|model| model.persistent());
    let Some(model) = model else {
        return Ok(None);
    };
    let misfit = |what: String, expected: String| {
        Misfit::new(
            Named::SessionDirectory(model.directory.clone()),
            what,
            expected,
        )
    };
    // Without keys there is a worse problem than the directory.
    let Ok(identity) = identity(config) else {
        return Ok(None);
    };
    match database::look(&place(config, model), &identity, limits(model).buckets) {
        Ok(odd) => Ok(odd.map(|what| misfit(what, "a whole file, or none".into()))),
        Err(Refusal { what, expected }) => Err(misfit(what, expected)),
    }
}

fn place(config: &Config, model: &Model) -> Place {
    Place {
        directory: model.directory.clone(),
        node: config.cluster.as_ref().map(|of| of.name.to_string()),
    }
}

/// This node, and the keys of its sessions: the cluster's, or new ones.
fn identity(config: &Config) -> anyhow::Result<Identity> {
    let (node, (key, id_key)) = match &config.cluster {
        Some(of) => {
            let node = cluster::NodeId::of(&of.name);
            (NodeId(node.0), cluster::session_keys(&of.secret)?)
        }
        None => (ALONE, ([random()?, random()?], [random()?, random()?])),
    };
    Ok(Identity {
        node,
        key,
        id_key,
        own_keys: config.cluster.is_none(),
    })
}

fn limits(model: &Model) -> Limits {
    Limits {
        sessions: model.sessions_max,
        tombstones: model.sessions_max,
        bytes: model.bytes_max,
        disk_backlog: DISK_BACKLOG,
        ..Limits::default()
    }
}

fn group(model: &SessionGroup) -> GroupSetup {
    GroupSetup {
        name: model.name.clone(),
        manager: match model.manager {
            SessionManager::Delta => Manager::Delta,
            SessionManager::Backup(copies) | SessionManager::Persistent(copies) => {
                Manager::Backup { copies }
            }
        },
        persistent: matches!(model.manager, SessionManager::Persistent(_)),
        replication: match model.sync_timeout {
            Some(_) => Replication::Sync,
            None => Replication::Async,
        },
        sync_timeout: model.sync_timeout.unwrap_or(ASYNC),
        ttl: model.ttl,
    }
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.ok().context("the system has no random numbers")?;
    Ok(u64::from_ne_bytes(bytes))
}
