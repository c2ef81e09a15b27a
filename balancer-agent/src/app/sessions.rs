//! The session store of a configuration, and the way to its peers.

use std::thread::JoinHandle;

use anyhow::Context;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::cluster::{self, Cluster, Events, Initial};
use crate::model::Config;
use crate::model::session::{SessionGroup, SessionManager, Sessions as Model};
use crate::session::driver::{self, Alone, Driver, GroupSetup, Peers, Setup, Watch};
use crate::session::handle::Sessions;
use crate::session::{Limits, Manager, NodeId, Replication};

/// How long a write of an `async` group may be worked on; nobody waits for it.
const ASYNC: std::time::Duration = std::time::Duration::from_secs(1);

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
}

impl SessionNode {
    /// Starts one by an agent's configuration, on the runtime that it is called on (see
    /// [`super::runtime`]) and a thread of its own.
    ///
    /// # Errors
    /// There is no `[cluster]` or no group, or an agent would not start with it either.
    pub fn start(config: &Config, watch: impl Watch + Sync) -> anyhow::Result<Self> {
        let of = config.cluster.as_ref().context("there is no [cluster]")?;
        let model = config.sessions.as_ref().context("there is no [session]")?;
        let (cluster, events, driver) = Cluster::bind(of, initial(config))?;
        let (sessions, task) = open(config, model, Some((cluster.clone(), events)))?;
        let thread = LinkThread::start(config)?.context("there is nothing to do")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.links_on(thread.handle()).run());
        tasks.spawn_on(task.run(watch), thread.handle());
        Ok(Self {
            sessions,
            cluster,
            tasks,
            thread,
        })
    }

    /// Says goodbye to the others, and ends.
    pub async fn end(mut self) {
        self.cluster.leave().await;
        self.tasks.shutdown().await;
        self.thread.end();
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

/// Makes the store; nothing happens before its task runs.
pub(super) fn open(
    config: &Config,
    model: &Model,
    cluster: Option<(Cluster, Events)>,
) -> anyhow::Result<(Sessions, StoreTask)> {
    let groups: Vec<GroupSetup> = model.groups.iter().map(group).collect();
    let limits = Limits {
        sessions: model.sessions_max,
        tombstones: model.sessions_max,
        bytes: model.bytes_max,
        ..Limits::default()
    };
    let setup = |node, (key, id_key)| Setup {
        node,
        key,
        id_key,
        groups,
        limits,
    };
    match (cluster, &config.cluster) {
        (Some((cluster, events)), Some(of)) => {
            let keys = cluster::session_keys(&of.secret)?;
            let setup = setup(NodeId(cluster.id().0), keys);
            let (sessions, task) = driver::start(setup, Peers::new(cluster, events))?;
            Ok((sessions, StoreTask::Among(task)))
        }
        _ => {
            let node = NodeId(1);
            let keys = ([random()?, random()?], [random()?, random()?]);
            let (sessions, task) = driver::start(setup(node, keys), Alone::new(node, random()?))?;
            Ok((sessions, StoreTask::Alone(task)))
        }
    }
}

fn group(model: &SessionGroup) -> GroupSetup {
    GroupSetup {
        name: model.name.clone(),
        manager: match model.manager {
            SessionManager::Delta => Manager::Delta,
            SessionManager::Backup(copies) => Manager::Backup { copies },
        },
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
