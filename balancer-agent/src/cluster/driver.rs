//! Connects the core to sockets, clock and disk, and keeps the task of each peer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::core::{Core, Initial, Input, Node, Output, Settings, State};
use super::door::Door;
use super::id::{Incarnation, NodeId};
use super::keys::Keys;
use super::life::Lives;
use super::link::{Accepted, Context, HANDSHAKE, Links, Peer, Stats, Target};
use super::message::Message;
use super::seal::{DATAGRAM_MAX, Life, Opener, Rejected, Sealer};
use super::socket::Sockets;
use super::status::Counters;
use super::tls::{self, Identity};
use super::{Cluster, ClusterError, Command, EVENTS, Events, Shared};
use crate::model::cluster as config;

/// Connections in their handshake, from where members are and from elsewhere: strangers
/// who hold theirs up must not keep members out.
const HANDSHAKES: usize = 64;
const HANDSHAKES_ELSEWHERE: usize = 16;
/// Datagrams that are taken in one go, so that nothing else starves.
const BURST: usize = 64;
/// Pause after the system could not accept a connection; it ends with the next probe.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The same warning comes once in so much time.
const WARN: Duration = Duration::from_secs(60);
/// For the links to be closed at the end.
const CLOSE: Duration = Duration::from_millis(300);

/// Does the work of a cluster node until it leaves.
pub struct Driver {
    core: Core,
    own: NodeId,
    life: Life,
    sealer: Sealer,
    opener: Opener,
    keys: Keys,
    lives: Arc<Lives>,
    sockets: Sockets,
    started: Instant,
    nodes: watch::Sender<Arc<Vec<Node>>>,
    counters: Arc<Counters>,
    identity: watch::Sender<Arc<Identity>>,
    context: Context,
    peers: BTreeMap<NodeId, Slot>,
    tasks: JoinSet<()>,
    /// Where links and their handshakes run.
    links_on: Handle,
    handshakes: Arc<Semaphore>,
    handshakes_elsewhere: Arc<Semaphore>,
    proven: mpsc::Sender<Proven>,
    proven_in: mpsc::Receiver<Proven>,
    lost_in: mpsc::Receiver<NodeId>,
    commands: mpsc::Receiver<Command>,
    /// No connection is accepted before.
    accept_from: Instant,
    warned_secret: Option<Instant>,
    warned_conflict: Option<Instant>,
}

/// A peer's task.
struct Slot {
    target: watch::Sender<Option<Target>>,
    accepted: mpsc::Sender<Accepted>,
    stats: Arc<Stats>,
}

/// Somebody with the secret has connected.
struct Proven {
    node: NodeId,
    accepted: Accepted,
}

pub(super) fn bind(
    config: &Arc<config::Cluster>,
    start: Initial,
) -> Result<(Cluster, Events, Driver), ClusterError> {
    let started = Instant::now();
    let keys = Keys::new(&config.secret);
    let own = NodeId::of(&config.name);
    let lives = Arc::new(Lives::in_dir(&config.state_dir, &config.name));
    let incarnation = Incarnation::new(count(&lives), u64::from_ne_bytes(random()?));
    let life = Life(random()?);
    let sealer = Sealer::new(&keys, life)?;
    let identity = Arc::new(Identity::new(&keys, own, incarnation)?);
    let sockets = Sockets::bind(config)?;
    let core = Core::new(
        &config.name,
        config.advertise,
        incarnation,
        start,
        settings(config),
        u64::from_ne_bytes(random()?),
        Duration::ZERO,
    );
    let (nodes, seen) = watch::channel(Arc::new(core.nodes()));
    let (identity, identities) = watch::channel(identity);
    let (arrivals, arrived) = mpsc::channel(EVENTS);
    let (commands, commands_in) = mpsc::channel(16);
    let (lost, lost_in) = mpsc::channel(64);
    let (proven, proven_in) = mpsc::channel(HANDSHAKES);
    let links = Arc::new(Links::new(config.queue_bytes, config.queue_messages));
    let counters = Arc::new(Counters::default());
    let shared = Shared {
        id: own,
        name: Arc::clone(&config.name),
        started,
        nodes: seen,
        links: Arc::clone(&links),
        counters: Arc::clone(&counters),
        commands,
    };
    let events = Events {
        arrivals: arrived,
        batch: None,
    };
    let context = Context {
        own,
        started,
        identity: identities,
        door: Arc::new(Door::new(&keys)?),
        links,
        arrivals,
        lost,
    };
    tracing::info!(
        node = %config.name,
        %incarnation,
        listen = %config.listen,
        advertise = %config.advertise,
        "part of a cluster"
    );
    let driver = Driver {
        core,
        own,
        life,
        sealer,
        opener: Opener::new(keys.clone(), life),
        keys,
        lives,
        sockets,
        started,
        nodes,
        counters,
        identity,
        context,
        peers: BTreeMap::new(),
        tasks: JoinSet::new(),
        links_on: Handle::current(),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        handshakes_elsewhere: Arc::new(Semaphore::new(HANDSHAKES_ELSEWHERE)),
        proven,
        proven_in,
        lost_in,
        commands: commands_in,
        accept_from: started,
        warned_secret: None,
        warned_conflict: None,
    };
    Ok((Cluster(Arc::new(shared)), events, driver))
}

/// The number of the life that begins now. Without a disk it is the first: peers know
/// better, and tell.
fn count(lives: &Lives) -> u32 {
    let path = lives.path().display();
    let last = lives.load().unwrap_or_else(|error| {
        tracing::warn!(%path, %error, "the number of this node's lives can't be read; counting anew");
        0
    });
    let count = last.saturating_add(1);
    if let Err(error) = lives.save(count) {
        tracing::warn!(%path, %error, "the number of this node's lives can't be kept");
    }
    count
}

fn random<const N: usize>() -> Result<[u8; N], ClusterError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ClusterError::Crypto("the system has no random numbers"))?;
    Ok(bytes)
}

fn settings(config: &config::Cluster) -> Settings {
    Settings {
        seeds: config.seeds.clone(),
        multicast: config.multicast.is_some(),
        timing: config.timing,
    }
}

impl Driver {
    /// Has the links run on another runtime than the one that [`Cluster::bind`] was called
    /// on: on that of those who talk over them, best.
    #[must_use]
    pub fn links_on(mut self, runtime: &Handle) -> Self {
        self.links_on = runtime.clone();
        self
    }

    /// Until the node leaves.
    pub async fn run(mut self) {
        loop {
            self.perform();
            let due = self.core.poll_timeout().unwrap_or_default();
            let due = tokio::time::Instant::from_std(self.started + due);
            tokio::select! {
                _ = self.sockets.udp.readable() => self.receive(false),
                () = readable(self.sockets.multicast.as_ref()) => self.receive(true),
                () = sleep_until(due) => self.timeout(),
                accepted = self.sockets.tcp.accept(), if Instant::now() >= self.accept_from => match accepted {
                    Ok((stream, from)) => self.handshake(stream, from),
                    Err(error) => {
                        // Most likely no descriptors: trying at once would not help.
                        tracing::debug!(%error, "a connection can't be accepted");
                        self.accept_from = Instant::now() + ACCEPT_PAUSE;
                    }
                },
                Some(proven) = self.proven_in.recv() => self.admit(proven),
                Some(node) = self.lost_in.recv() => self.handle(Input::LinkLost(node)),
                Some(command) = self.commands.recv() => match command {
                    Command::Configure(config) => self.configure(&config),
                    Command::Syncing(syncing) => self.handle(Input::Syncing(syncing)),
                    Command::About(about) => self.handle(Input::About(about)),
                    Command::Leave(done) => return self.leave(done).await,
                },
                Some(done) = self.tasks.join_next() => if let Err(error) = done {
                    tracing::error!(%error, "a task of the cluster has failed");
                },
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.core.handle(input, self.started.elapsed());
    }

    fn timeout(&mut self) {
        self.handle(Input::Timeout);
        let round_trips = self.core.members();
        let round_trips = round_trips.filter_map(|(id, m)| Some((id, m.round_trip?)));
        let shown = self.counters.round_trips.lock();
        *shown.unwrap_or_else(PoisonError::into_inner) = round_trips.collect();
    }

    fn configure(&mut self, config: &config::Cluster) {
        let links = &self.context.links;
        links.queue_bytes.store(config.queue_bytes, Relaxed);
        links.queue_messages.store(config.queue_messages, Relaxed);
        self.handle(Input::Configure(settings(config)));
    }

    /// Takes the datagrams that are there.
    fn receive(&mut self, multicast: bool) {
        // One byte more tells a datagram that is too long from one that just fits.
        let mut buffer = [0; DATAGRAM_MAX + 1];
        for _ in 0..BURST {
            let socket = match (&self.sockets.multicast, multicast) {
                (Some((socket, _)), true) => socket,
                _ => &self.sockets.udp,
            };
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => self.datagram(&mut buffer[..length], from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Such as a peer that refused an earlier one.
                Err(_) => {}
            }
        }
    }

    fn datagram(&mut self, datagram: &mut [u8], from: SocketAddr) {
        let counters = Arc::clone(&self.counters);
        Counters::add(&counters.datagrams_in);
        let opened = match self.opener.open(datagram) {
            Ok(opened) => opened,
            Err(rejected) => {
                Counters::add(match rejected {
                    Rejected::Size | Rejected::Version => &counters.garbage,
                    Rejected::Secret => &counters.wrong_secret,
                    Rejected::Repeated => &counters.repeated,
                });
                if rejected == Rejected::Secret && due(&mut self.warned_secret) {
                    tracing::warn!(
                        %from,
                        "datagrams come in that were not made with this cluster's secret, \
                         and are dropped"
                    );
                }
                return;
            }
        };
        let Ok(message) = Message::decode(opened.message) else {
            return Counters::add(&counters.malformed);
        };
        let (life, fresh) = (opened.life, opened.fresh);
        if life == self.life {
            return self.handle(Input::Own(message));
        }
        if !fresh {
            Counters::add(&counters.unproven);
        }
        self.handle(Input::Message {
            life,
            fresh,
            message,
        });
    }

    /// Does what the core wants.
    fn perform(&mut self) {
        let mut changed = false;
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, echo, message } => self.send(to, echo, &message),
                Output::Multicast(message) => {
                    if let Some((_, group)) = &self.sockets.multicast {
                        self.send(*group, None, &message);
                    }
                }
                Output::Renewed(incarnation) => self.renew(incarnation),
                Output::Changed => changed = true,
                Output::Conflict(address) => self.conflict(address),
                Output::Full => Counters::add(&self.counters.no_room),
            }
        }
        if changed {
            self.publish();
        }
    }

    fn send(&mut self, to: SocketAddr, echo: Option<Life>, message: &Message) {
        let Ok(message) = message.encode() else {
            return Counters::add(&self.counters.unsent);
        };
        let sent = self
            .sealer
            .seal(echo, &message)
            .is_ok_and(|datagram| self.sockets.udp.try_send_to(&datagram, to).is_ok());
        // What does not go out is as good as lost on the way; SWIM lives with that.
        Counters::add(match sent {
            true => &self.counters.datagrams_out,
            false => &self.counters.unsent,
        });
    }

    fn renew(&mut self, incarnation: Incarnation) {
        Counters::add(&self.counters.renewals);
        tracing::warn!(
            %incarnation,
            "the others had given this node up, or knew a later life of it: it begins a new one"
        );
        let lives = Arc::clone(&self.lives);
        // A disk may be slow, and the network must not wait for it.
        self.tasks.spawn_blocking(move || {
            let path = lives.path().display();
            if let Err(error) = lives.save(incarnation.count()) {
                tracing::warn!(%path, %error, "the number of this node's lives can't be kept");
            }
        });
        match Identity::new(&self.keys, self.own, incarnation) {
            Ok(identity) => _ = self.identity.send_replace(Arc::new(identity)),
            Err(error) => tracing::error!(%error, "links can't be made any more"),
        }
    }

    fn conflict(&mut self, address: SocketAddr) {
        let conflict = self.counters.conflict.lock();
        *conflict.unwrap_or_else(PoisonError::into_inner) = Some((address, Instant::now()));
        if due(&mut self.warned_conflict) {
            let name = &self.core.own().name;
            tracing::error!(
                %name,
                other = %address,
                "another node has the same name: give each its own `name` in [cluster]"
            );
        }
    }

    /// Tells of the members, and has a task for each that is there.
    fn publish(&mut self) {
        let nodes = Arc::new(self.core.nodes());
        let before = Arc::clone(&self.nodes.borrow());
        if before == nodes {
            return;
        }
        log_changes(&before, &nodes);
        let links = Arc::clone(&self.context.links);
        let mut shown = links.stats.lock().unwrap_or_else(PoisonError::into_inner);
        // The task of a node that is down waits for its return: so what it has to tell of
        // an old link always comes before what it tells of the next.
        self.peers.retain(|id, slot| {
            let known = nodes.iter().any(|node| node.id == *id);
            if !known {
                slot.target.send_replace(None);
                shown.remove(id);
            }
            known
        });
        for node in nodes.iter().filter(|node| !node.own) {
            let there = !matches!(node.state, State::Down | State::Left);
            let target = there.then_some(Target {
                incarnation: node.incarnation,
                address: node.address,
            });
            if !there {
                shown.remove(&node.id);
            }
            if there && !self.peers.contains_key(&node.id) {
                let slot = self.start_peer(node);
                self.peers.insert(node.id, slot);
            }
            let Some(slot) = self.peers.get(&node.id) else {
                continue;
            };
            if there {
                shown
                    .entry(node.id)
                    .or_insert_with(|| Arc::clone(&slot.stats));
            }
            slot.target.send_if_modified(|now| {
                let differs = *now != target;
                *now = target;
                differs
            });
        }
        drop(shown);
        self.nodes.send_replace(nodes);
    }

    fn start_peer(&mut self, node: &Node) -> Slot {
        let (target, target_in) = watch::channel(None);
        let (accepted, accepted_in) = mpsc::channel(1);
        let stats = Arc::new(Stats::default());
        let now = self.started.elapsed().as_millis() as u64;
        stats.since.store(now, Relaxed);
        let peer = Peer {
            context: self.context.clone(),
            node: node.id,
            name: Arc::clone(&node.name),
            target: target_in,
            accepted: accepted_in,
            stats: Arc::clone(&stats),
        };
        self.tasks.spawn_on(peer.run(), &self.links_on);
        Slot {
            target,
            accepted,
            stats,
        }
    }

    /// Somebody connects: finds out who it is.
    fn handshake(&mut self, stream: TcpStream, from: SocketAddr) {
        Counters::add(&self.counters.connections);
        let from = from.ip().to_canonical();
        let of_member = self
            .core
            .members()
            .any(|(_, m)| m.live() && m.record.address.ip() == from);
        let room = match of_member {
            true => &self.handshakes,
            false => &self.handshakes_elsewhere,
        };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            return Counters::add(&self.counters.too_many);
        };
        let door = Arc::clone(&self.context.door);
        let own = self.own;
        let identity = Arc::clone(&self.identity.borrow());
        let counters = Arc::clone(&self.counters);
        let proven = self.proven.clone();
        let task = async move {
            let _permit = permit;
            let meeting = async {
                // From now on it is this runtime's.
                let mut stream = TcpStream::from_std(stream.into_std()?)?;
                stream.set_nodelay(true)?;
                door.ask(&mut stream, own, identity.incarnation).await?;
                identity.acceptor.accept(stream).await
            };
            let met = timeout(HANDSHAKE, meeting).await;
            let stream = match met.map_err(io::Error::from).flatten() {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%from, %error, "a handshake has failed");
                    return Counters::add(&counters.handshakes_failed);
                }
            };
            let named = tls::named(stream.get_ref().1.peer_certificates());
            let Some((node, incarnation)) = named else {
                return Counters::add(&counters.handshakes_failed);
            };
            let accepted = Accepted {
                incarnation,
                stream: stream.into(),
            };
            // It fails at the end only.
            let _ = proven.send(Proven { node, accepted }).await;
        };
        self.tasks.spawn_on(task, &self.links_on);
    }

    /// Gives a connection to the task of its peer, if it is one that should connect.
    fn admit(&mut self, Proven { node, accepted }: Proven) {
        let slot = self.peers.get(&node).filter(|slot| {
            let target = *slot.target.borrow();
            let life = target.map(|target| target.incarnation);
            node < self.own && life == Some(accepted.incarnation)
        });
        // One that is refused is closed, and comes again when it is still wanted.
        let taken = slot.is_some_and(|slot| slot.accepted.try_send(accepted).is_ok());
        if !taken {
            Counters::add(&self.counters.strangers);
        }
    }

    async fn leave(mut self, done: oneshot::Sender<()>) {
        self.handle(Input::Leave);
        self.perform();
        for slot in std::mem::take(&mut self.peers).into_values() {
            slot.target.send_replace(None);
        }
        let tasks = &mut self.tasks;
        // A task that can't tell its last events is not waited for.
        let closing = async { while tasks.join_next().await.is_some() {} };
        let _ = timeout(CLOSE, closing).await;
        let _ = done.send(());
    }
}

/// For ever, without a multicast socket.
async fn readable(multicast: Option<&(UdpSocket, SocketAddr)>) {
    match multicast {
        // An error shows again when it is read.
        Some((socket, _)) => _ = socket.readable().await,
        None => std::future::pending().await,
    }
}

/// Whether a warning may be given (again).
fn due(last: &mut Option<Instant>) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= WARN);
    if due {
        *last = Some(Instant::now());
    }
    due
}

fn log_changes(before: &[Node], after: &[Node]) {
    for node in after.iter().filter(|node| !node.own) {
        let known = before.iter().find(|known| known.id == node.id);
        let same = known.is_some_and(|known| {
            (known.state, known.incarnation) == (node.state, node.incarnation)
        });
        if same {
            continue;
        }
        let (name, address, incarnation, state) =
            (&node.name, node.address, node.incarnation, node.state);
        match state {
            State::Suspect | State::Down => {
                tracing::warn!(node = %name, %address, %incarnation, "the node is {state}");
            }
            _ => tracing::info!(node = %name, %address, %incarnation, "the node is {state}"),
        }
    }
}
