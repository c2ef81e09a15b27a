//! The session store of a configuration, and the way to its peers.

use anyhow::Context;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
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

/// A node that keeps sessions and does nothing else: cluster, links and store of an agent,
/// without its web tier and kernel side. For benchmarks, which put load on the store itself.
pub struct SessionNode {
    /// The store.
    pub sessions: Sessions,
    /// The links.
    pub cluster: Cluster,
    tasks: JoinSet<()>,
}

impl SessionNode {
    /// Starts one by an agent's configuration, on the runtime that it is called on: see
    /// [`super::runtime`].
    ///
    /// # Errors
    /// There is no `[cluster]` or no group, or an agent would not start with it either.
    pub fn start(config: &Config, watch: impl Watch + Sync) -> anyhow::Result<Self> {
        let of = config.cluster.as_ref().context("there is no [cluster]")?;
        let model = config.sessions.as_ref().context("there is no [session]")?;
        let (cluster, events, driver) = Cluster::bind(of, initial(config))?;
        let (sessions, task) = open(config, model, Some((cluster.clone(), events)))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run());
        tasks.spawn(task.run(watch));
        Ok(Self {
            sessions,
            cluster,
            tasks,
        })
    }

    /// Says goodbye to the others, and ends.
    pub async fn end(mut self) {
        self.cluster.leave().await;
        self.tasks.shutdown().await;
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
