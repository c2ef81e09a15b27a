//! The session store of a configuration, and the way to its peers.

use anyhow::Context;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

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
