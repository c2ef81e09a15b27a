//! The random workload, and the checks of its answers.

use std::collections::{BTreeMap, BTreeSet};

use balancer_agent::session::{
    Config, Expect, GroupId, Input, Op, Outcome, Replication, Store, Token, Version,
};

use super::membership::node_id;
use super::oracle::{Broken, Class, Tracked};
use super::rng::Rng;
use super::world::World;

/// The one group of a run.
pub const GROUP: GroupId = GroupId(0);
const LONG: u64 = 3_600_000;
const BRIEF: u64 = 1_500;
const ROUTES: [&str; 4] = ["tomcat-a", "tomcat-b", "tomcat-c", ""];

/// A request without an answer yet.
#[derive(Clone, Debug)]
struct Asked {
    node: usize,
    run: u64,
    session: usize,
    kind: Kind,
    /// What was acknowledged when it began.
    due: Option<Version>,
    /// Nodes that lost what they held since it began.
    lost: BTreeSet<usize>,
    /// Nodes that lost what was not on their disks since then.
    torn: BTreeSet<usize>,
    /// The storm count if it was calm when it began.
    calm: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Put,
    Other,
}

/// All callers together.
pub struct Client {
    /// The sessions that they use.
    pub sessions: Vec<Tracked>,
    /// Mean time between two requests, in microseconds.
    pub pause: u64,
    sync: bool,
    evicting: bool,
    sweep: u64,
    asked: BTreeMap<Token, Asked>,
    tokens: u64,
    seen: BTreeMap<usize, Version>,
}

impl Client {
    /// A workload; with `evicting`, the memory bound ends sessions.
    pub fn new(rng: &mut Rng, evicting: bool, config: &Config) -> Self {
        let count = rng.range(4, 24) as usize;
        let class = |rng: &mut Rng| match rng.below(10) {
            0..5 => Class::Lasting,
            5..8 => Class::Deleted,
            _ => Class::Brief,
        };
        Self {
            sessions: (0..count).map(|n| Tracked::new(n, class(rng))).collect(),
            pause: rng.range(4_000, 25_000),
            sync: config.groups[0].replication == Replication::Sync,
            evicting,
            sweep: config.timing.sweep,
            asked: BTreeMap::new(),
            tokens: 0,
            seen: BTreeMap::new(),
        }
    }

    /// How long after the last access no brief session may be left, in milliseconds.
    pub fn brief_end(&self) -> u64 {
        // Time to live, slack, the sweep, slow clocks, and the way.
        (BRIEF + BRIEF / 8 + self.sweep) * 11 / 10 + 1_000
    }

    /// Notes what a node holds now of the sessions that come to an end.
    pub(super) fn look(&mut self, store: &Store) {
        for tracked in &mut self.sessions {
            if tracked.class != Class::Lasting
                && let Some(version) = store.version_of(GROUP, &tracked.id)
            {
                tracked.met(version);
            }
        }
    }

    pub(super) fn node_lost(&mut self, index: usize) {
        for asked in self.asked.values_mut() {
            asked.lost.insert(index);
        }
    }

    pub(super) fn node_torn(&mut self, index: usize) {
        for asked in self.asked.values_mut() {
            asked.torn.insert(index);
        }
    }

    /// Requests on a node that crashed are never answered; their writes may be done.
    pub(super) fn crashed(&mut self, index: usize, run: u64) {
        self.asked
            .retain(|_, asked| asked.node != index || asked.run != run);
    }
}

/// One random request on one random node.
pub(super) fn act(world: &mut World) -> Result<(), Broken> {
    let up = world.up();
    let Some(node) = world.rng.pick(&up) else {
        return Ok(());
    };
    if world.nodes[node].paused_until > world.now {
        return Ok(());
    }
    let session = world.rng.below(world.client.sessions.len() as u64) as usize;
    let class = world.client.sessions[session].class;
    let rng = &mut world.rng;
    let route = ROUTES[rng.below(4) as usize];
    let ttl = if class == Class::Brief { BRIEF } else { LONG };
    let put = |expect, rng: &mut Rng| Op::Put {
        route: route.into(),
        ttl,
        data: rng
            .chance(40)
            .then(|| vec![rng.word() as u8; rng.below(200) as usize].into()),
        expect,
    };
    let op = match rng.below(100) {
        0..32 => put(Expect::Any, rng),
        32..36 => put(Expect::Absent, rng),
        36..42 => match world.client.seen.get(&session) {
            Some(&version) => put(Expect::Version(version), rng),
            None => put(Expect::Any, rng),
        },
        42..50 => Op::Bind {
            route: route.into(),
        },
        50..55 => Op::Touch,
        55..67 if class == Class::Deleted => Op::Delete,
        _ => Op::Get {
            touch: rng.chance(20),
        },
    };
    let kind = match op {
        Op::Get { .. } => Kind::Read,
        Op::Put { .. } => Kind::Put,
        _ => Kind::Other,
    };
    let client = &mut world.client;
    client.tokens += 1;
    let token = Token(client.tokens);
    let tracked = &mut client.sessions[session];
    let asked = Asked {
        node,
        run: world.nodes[node].run,
        session,
        kind,
        due: tracked.fresh,
        lost: BTreeSet::new(),
        torn: BTreeSet::new(),
        calm: world.calm.then_some(world.storms),
    };
    if !matches!(op, Op::Get { touch: false }) {
        tracked.used = world.now;
    }
    client.asked.insert(token, asked);
    let id = tracked.id.clone();
    world.handle(
        node,
        Input::Request {
            token,
            group: GROUP,
            id: &id,
            op,
        },
    )
}

/// An answer has come.
pub(super) fn answered(
    world: &mut World,
    node: usize,
    token: Token,
    outcome: &Outcome,
) -> Result<(), Broken> {
    let Some(asked) = world.client.asked.remove(&token) else {
        return Err(Broken(format!("{token:?} was answered twice: {outcome:?}")));
    };
    if world.session.is_none_or(|traced| traced == asked.session) {
        world.say(|| {
            let name = world.client.sessions[asked.session].name();
            format!("node {node} {name} {:?}: {outcome:?}", asked.kind)
        });
    }
    let serves = !matches!(
        outcome,
        Outcome::NotReady | Outcome::Unavailable | Outcome::Busy
    );
    if serves && !world.nodes[node].ready {
        return Err(Broken(format!(
            "node {node} served before it had caught up: {outcome:?}"
        )));
    }
    let calm = world.calm && asked.calm == Some(world.storms);
    let best = world.best(&world.client.sessions[asked.session].id, false);
    world.client.sessions[asked.session].outlived(best);
    let found = match outcome {
        Outcome::Found(session) => Some(session.version),
        Outcome::NotFound => None,
        Outcome::Done {
            version,
            copies,
            degraded,
        } => {
            world.report.acknowledged += 1;
            let durable = world.client.sync && !degraded;
            let mut lost = asked.lost;
            if !durable {
                lost.extend(asked.torn);
            }
            let holders = (1 + usize::from(*copies)).min(world.copies);
            world.client.seen.insert(asked.session, *version);
            if world.client.evicting {
                // The memory bound ends sessions, and forgets tombstones: no promise but
                // that the bound holds and all nodes agree.
                return Ok(());
            }
            let tracked = &mut world.client.sessions[asked.session];
            tracked.acknowledged(*version, holders, (durable, *degraded), lost);
            // Who did it may have stopped serving before the answer came.
            hide(world);
            // It must be there now, if anything.
            return world.client.sessions[asked.session].still_held(best);
        }
        _ => return Ok(()),
    };
    let tracked = &world.client.sessions[asked.session];
    if asked.kind == Kind::Read
        && calm
        && world.client.sync
        && let Some(due) = asked.due
        && tracked.fresh >= Some(due)
    {
        world.report.checked_reads += 1;
        tracked
            .read(due, found)
            .map_err(|Broken(text)| Broken(format!("{text}; {}", world.who_has(&tracked.id))))?;
    }
    let ended = world
        .best(&tracked.id, true)
        .filter(|version| version.deleted);
    let tracked = &mut world.client.sessions[asked.session];
    if let Some(version) = found {
        world.client.seen.insert(asked.session, version);
        if let Some((where_, epoch)) = tracked.gone
            && calm
            && !world.client.evicting
            && where_ == node
            && version.epoch <= epoch
        {
            return Err(Broken(format!(
                "expired session returned: {} was gone up to epoch {epoch} and is found in \
                 {version:?}",
                tracked.name()
            )));
        }
    } else if tracked.class == Class::Brief && calm && world.now - tracked.used > BRIEF * 900 {
        tracked.gone = ended.map(|version| (node, version.epoch));
    }
    Ok(())
}

/// A node has stopped serving. If it was the last that served with some version, others
/// have it at most on their disks, or have not caught up: until they have, no read can know
/// of it.
pub(super) fn hide(world: &mut World) {
    for number in 0..world.client.sessions.len() {
        let tracked = &world.client.sessions[number];
        let serving = world.best(&tracked.id, true);
        if tracked
            .fresh
            .is_some_and(|fresh| serving < Some(fresh) && !gone(world, tracked, fresh))
        {
            world.client.sessions[number].fresh = None;
        }
    }
}

/// Whether a deletion has been forgotten everywhere, in its time.
fn gone(world: &World, tracked: &Tracked, fresh: Version) -> bool {
    fresh.deleted && world.best(&tracked.id, false) < Some(fresh)
}

/// The first difference between what the nodes hold and what they should.
pub(super) fn differing(world: &World) -> Option<String> {
    let up = world.up();
    for tracked in world
        .client
        .sessions
        .iter()
        .filter(|t| t.class != Class::Brief)
    {
        let held = |index: usize| {
            let store = &world.nodes[index].store;
            let version = store.version_of(GROUP, &tracked.id);
            // Tombstones go at their own time.
            let version = version.filter(|version| !version.deleted);
            let session = store.peek(GROUP, &tracked.id, world.local_time(index));
            let content = session.map(|session| (session.route, session.ttl, session.data));
            (version, version.and(content))
        };
        let (holders, _) = world.nodes[*up.first()?]
            .store
            .holders(GROUP, &tracked.id)?;
        let first = up.iter().find(|&&index| node_id(index) == holders[0])?;
        for &index in &up {
            let (version, content) = held(index);
            let should = holders.contains(&node_id(index));
            if should && (version, &content) != (held(*first).0, &held(*first).1) {
                return Some(format!(
                    "session {}: node {index} has {version:?}, its primary {first} has {:?}",
                    tracked.name(),
                    held(*first).0
                ));
            }
            if !should && version.is_some() {
                return Some(format!(
                    "session {}: node {index} has it and should not",
                    tracked.name()
                ));
            }
        }
    }
    None
}

/// All is quiet: what was acknowledged is there.
pub(super) fn final_check(world: &mut World) -> Result<(), Broken> {
    if let Some((token, asked)) = world.client.asked.first_key_value() {
        return Err(Broken(format!("{token:?} was never answered: {asked:?}")));
    }
    for number in 0..world.client.sessions.len() {
        let best = world.best(&world.client.sessions[number].id, false);
        world.client.sessions[number].outlived(best);
        let tracked = &world.client.sessions[number];
        let Some(floor) = &tracked.floor else {
            continue;
        };
        let best = world
            .best(&tracked.id, true)
            .filter(|version| !version.deleted);
        if best.is_none() && tracked.class == Class::Deleted {
            continue;
        }
        // Nodes that are still away may hold it: they are not asked.
        let everywhere = world.best(&tracked.id, false);
        if !floor.version.deleted && best < Some(floor.version) && everywhere != best {
            continue;
        }
        tracked.read(floor.version, best)?;
    }
    Ok(())
}

/// Long after the last access: no brief session is left.
pub(super) fn brief_check(world: &World) -> Result<(), Broken> {
    for tracked in world
        .client
        .sessions
        .iter()
        .filter(|t| t.class == Class::Brief)
    {
        let best = world
            .best(&tracked.id, true)
            .filter(|version| !version.deleted);
        if let Some(version) = best {
            return Err(Broken(format!(
                "session {} is still there in {version:?} long after its life",
                tracked.name()
            )));
        }
    }
    Ok(())
}
