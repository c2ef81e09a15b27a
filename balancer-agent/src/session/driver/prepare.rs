//! From a configuration to a store that has what the disk had, ready to be connected.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::RandomState;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::config::{Config, ConfigError, GroupConfig, Limits, Timing, group_key};
use super::super::database::{self, DiskState, Link, Opened, Pace, Refusal};
use super::super::handle::{Command, Counts, Group, QUEUE, Sessions, Shared};
use super::super::store::Store;
use super::super::survey::Surveys;
use super::super::types::{Manager, NodeId, Replication, Time};
use super::{Driver, Network};

/// How long before the bound of a held response the store gives up waiting for copies, in
/// milliseconds at most.
const SAID_BEFORE: u64 = 50;
/// Between two transactions of a disk for whose confirmation nobody waits: so old may what
/// is on disk be, and as long as a transaction takes.
const DISK_PAUSE: Duration = Duration::from_millis(100);

/// What a store's driver is made of.
pub struct Setup {
    /// This node.
    pub node: NodeId,
    /// Key that places sessions; the same on every node.
    pub key: [u64; 2],
    /// Key for hashes of ids; the same on every node.
    pub id_key: [u64; 2],
    /// The groups.
    pub groups: Vec<GroupSetup>,
    /// Memory bounds.
    pub limits: Limits,
    /// The file of the persistent groups; needed with one of these.
    pub disk: Option<Opened>,
    /// There will never be another node: none is waited for.
    pub alone: bool,
}

/// Why a store can't be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The groups contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file can't be read.
    #[error(transparent)]
    Disk(#[from] Refusal),
    /// There is no thread for the disk.
    #[error("cannot start the thread that writes sessions to disk: {0}")]
    Thread(#[from] std::io::Error),
}

/// One group.
#[derive(Clone, Debug)]
pub struct GroupSetup {
    /// Its name.
    pub name: Arc<str>,
    /// Who holds its sessions.
    pub manager: Manager,
    /// Whether its sessions are on disk too.
    pub persistent: bool,
    /// When writers are answered.
    pub replication: Replication,
    /// Bound of that, with `sync`.
    pub sync_timeout: Duration,
    /// Life of sessions after the last access.
    pub ttl: Duration,
}

/// A store with all that the disk had, not yet connected to anything.
pub struct Prepared {
    store: Store,
    sessions: Sessions,
    commands: mpsc::Receiver<Command>,
    started: Instant,
    disk: Option<Link>,
    thread: Option<JoinHandle<()>>,
}

/// [`prepare`], connected at once.
///
/// # Errors
/// As there.
pub fn start<N: Network>(setup: Setup, network: N) -> Result<(Sessions, Driver<N>), StartError> {
    Ok(prepare(setup)?.connect(network))
}

/// Makes a store, and reads its sessions from disk. Nothing else happens before
/// [`Driver::run`].
///
/// # Errors
/// [`StartError`].
pub fn prepare(setup: Setup) -> Result<Prepared, StartError> {
    let groups = setup.groups.iter();
    let config = groups.clone().map(|group| GroupConfig {
        name: group.name.to_string(),
        manager: group.manager,
        replication: group.replication,
        persistent: group.persistent && setup.disk.is_some(),
    });
    let mut config = Config::new(setup.node, setup.key, config.collect());
    let holds = groups
        .clone()
        .filter(|group| group.replication == Replication::Sync)
        .map(|group| group.sync_timeout);
    // The store has one bound for all groups; each response has its own. Just before that,
    // the store says how far it has come.
    let early = |bound: u64| bound - (bound / 20).min(SAID_BEFORE);
    let sync = holds.max().map(|bound| early(bound.as_millis() as u64));
    config.timing = Timing {
        sync: sync.unwrap_or(config.timing.sync).max(1),
        alone: match setup.alone {
            true => 0,
            false => config.timing.alone,
        },
        ..config.timing
    };
    config.limits = setup.limits;
    let started = Instant::now();
    let mut store = Store::new(config.clone())?;
    let (mut disk, mut thread) = (None, None);
    if let Some(mut file) = setup.disk {
        let state = load(&mut file, &mut store, &config, started)?;
        let state = Arc::new(state);
        let waited = config.groups.iter().any(|group| {
            // Somebody waits until it is safe.
            group.persistent && group.replication == Replication::Sync
        });
        let pace = match waited {
            true => Pace::Fast,
            false => Pace::Slow(DISK_PAUSE),
        };
        let (link, running) = database::start(file, state, pace)?;
        (disk, thread) = (Some(link), Some(running));
    }
    store.watch();
    let (commands, queue) = mpsc::channel(QUEUE);
    let sessions = Sessions::new(Shared {
        commands,
        groups: groups
            .map(|group| Group {
                name: Arc::clone(&group.name),
                ttl: group.ttl,
                hold: (group.replication == Replication::Sync).then_some(group.sync_timeout),
                counts: Counts::default(),
            })
            .collect(),
        ready: watch::Sender::new(false),
        patience: Sessions::patience(),
        disk: disk.as_ref().map(|link| Arc::clone(link.state())),
        id_key: setup.id_key,
    });
    Ok(Prepared {
        store,
        sessions,
        commands: queue,
        started,
        disk,
        thread,
    })
}

/// Reads the file into the store. A file that turns out to be damaged is set aside, and the
/// store stays empty.
fn load(
    file: &mut Opened,
    store: &mut Store,
    config: &Config,
    started: Instant,
) -> Result<DiskState, StartError> {
    let persistent = config.groups.iter().filter(|group| group.persistent);
    let keys: Vec<u32> = persistent.map(|group| group_key(&group.name)).collect();
    let began = Instant::now();
    let now = || Time(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    let (state, whole) = file.read(&keys, |batch| store.load(batch, now()))?;
    if !whole {
        *store = Store::new(config.clone())?;
    }
    tracing::info!(
        file = %state.path().display(),
        sessions = store.counters().sessions,
        ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "sessions read from disk",
    );
    Ok(state)
}

impl Prepared {
    /// The thread that writes to disk: it ends after the driver has, when it has written
    /// what was left.
    pub fn take_thread(&mut self) -> Option<JoinHandle<()>> {
        self.thread.take()
    }

    /// Connects the store to a network.
    pub fn connect<N: Network>(self, network: N) -> (Sessions, Driver<N>) {
        let driver = Driver {
            store: self.store,
            network,
            sessions: self.sessions.clone(),
            commands: self.commands,
            waiting: HashMap::new(),
            next_token: 0,
            last: HashMap::new(),
            hashes: RandomState::new(),
            next_number: 0,
            parked: VecDeque::new(),
            parked_until: None,
            stuck: BTreeMap::new(),
            stuck_until: None,
            started: self.started,
            refused: BTreeSet::new(),
            surveys: Surveys::default(),
            disk: self.disk,
            begun: 0,
        };
        (self.sessions, driver)
    }
}
