//! What is known of every backend beside the configuration, by its place there.
//!
//! A round asks for each of ten thousand backends. Names are therefore found by the
//! addresses of their texts, which a configuration never moves, and not by the texts.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use common::Addr;
use common::tables::{Hop, state};

use super::overrides::Overrides;
use crate::dataplane::Tables;
use crate::model::{Activation, BackendName, CheckKind, Config, Health};
use crate::nexthop::{HopProblem, NextHops};
use crate::reconcile::{DeviceWanted, View, backend_id};

/// Where the texts of a backend's name lie.
type Place = (usize, usize);

/// The configuration in force and everything that is known of its backends.
#[derive(Debug)]
pub struct World {
    config: Arc<Config>,
    places: HashMap<Place, u32, BuildHasherDefault<PlaceHasher>>,
    names: HashMap<BackendName, u32>,
    health: Vec<Health>,
    activation: Vec<Option<Activation>>,
    overrides: Overrides,
    hops: HashMap<IpAddr, Hop>,
    links: Arc<NextHops>,
    /// Servers that are this host itself, of [`Self::links`].
    local: HashSet<IpAddr>,
    attached: Vec<u32>,
}

impl World {
    /// At a start: with the health and the next hops that the tables show, where an
    /// earlier agent has left some.
    pub fn new(
        config: Arc<Config>,
        overrides: Overrides,
        seeds: &HashMap<BackendName, Health>,
        hops: HashMap<IpAddr, Hop>,
    ) -> Self {
        let mut world = Self {
            config: Arc::clone(&config),
            places: HashMap::default(),
            names: HashMap::new(),
            health: Vec::new(),
            activation: Vec::new(),
            overrides,
            hops,
            links: Arc::default(),
            local: HashSet::new(),
            attached: Vec::new(),
        };
        world.index(config, |name, _| seeds.get(name).copied());
        world
    }

    /// Takes another configuration. Health stays with backends whose address has not
    /// changed; words of operators stay with backends that are still there. Returns
    /// whether all of these are.
    pub fn set_config(&mut self, config: Arc<Config>) -> bool {
        let mut known = HashMap::new();
        for (name, address, _) in backends(&self.config) {
            if let Some(&at) = self.names.get(&name) {
                known.insert(name, (address, self.health[at as usize]));
            }
        }
        self.index(config, |name, address| {
            let (before, health) = known.get(name)?;
            (*before == address).then_some(*health)
        });
        let before = self.overrides.len();
        let names = &self.names;
        self.overrides.retain(|name, _| names.contains_key(name));
        self.overrides.len() == before
    }

    fn index(
        &mut self,
        config: Arc<Config>,
        health: impl Fn(&BackendName, SocketAddr) -> Option<Health>,
    ) {
        self.places.clear();
        self.names.clear();
        self.health.clear();
        self.activation.clear();
        for (at, (name, address, unproved)) in (0..).zip(backends(&config)) {
            self.health.push(health(&name, address).unwrap_or(unproved));
            self.activation.push(self.overrides.get(&name).copied());
            self.places.insert(place(&name), at);
            self.names.insert(name, at);
        }
        self.config = config;
    }

    /// The configuration in force.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Operators' words.
    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// Notes a verdict; returns whether it is news. One on a backend that is not in
    /// the configuration (any more) is not.
    pub fn set_health(&mut self, name: &BackendName, health: Health) -> bool {
        let Some(&at) = self.names.get(name) else {
            return false;
        };
        std::mem::replace(&mut self.health[at as usize], health) != health
    }

    /// Notes an operator's word, or with `None` that the file's holds again.
    pub fn set_activation(&mut self, name: &BackendName, word: Option<Activation>) {
        if let Some(&at) = self.names.get(name) {
            self.activation[at as usize] = word;
            match word {
                Some(word) => _ = self.overrides.insert(name.clone(), word),
                None => _ = self.overrides.remove(name),
            }
        }
    }

    /// Takes new next hops. A hop from before holds while the kernel is still
    /// looking for the neighbour, or has not been asked.
    pub fn set_hops(&mut self, hops: Arc<NextHops>) {
        let mut before = std::mem::take(&mut self.hops);
        if hops.ready {
            for (ip, hop) in &hops.hops {
                match hop {
                    Ok(hop) => _ = before.insert(*ip, *hop),
                    Err(HopProblem::Resolving { .. }) => {}
                    Err(_) => _ = before.remove(ip),
                }
            }
            let servers: HashSet<IpAddr> = backends(&self.config)
                .map(|(_, address, _)| address.ip())
                .collect();
            before.retain(|ip, _| servers.contains(ip));
        }
        self.hops = before;
        let local = hops.hops.iter();
        self.local = local
            .filter(|(_, hop)| matches!(hop, Err(HopProblem::Local)))
            .map(|(ip, _)| *ip)
            .collect();
        self.links = hops;
    }

    /// The interfaces that the program is attached to, by index.
    pub fn set_attached(&mut self, attached: Vec<u32>) {
        self.attached = attached;
    }
}

impl View for World {
    fn health(&self, backend: &BackendName) -> Health {
        let at = self.places.get(&place(backend));
        at.map_or(Health::Down, |&at| self.health[at as usize])
    }

    fn activation(&self, backend: &BackendName) -> Option<Activation> {
        let at = *self.places.get(&place(backend))?;
        self.activation[at as usize]
    }

    fn hop(&self, server: IpAddr) -> Option<Hop> {
        self.hops.get(&server).copied()
    }

    fn local(&self, server: IpAddr) -> bool {
        self.local.contains(&server)
    }

    fn devices(&self) -> Vec<DeviceWanted> {
        let device = |&ifindex: &u32| {
            let link = self.links.links.get(&ifindex)?;
            Some(DeviceWanted {
                ifindex,
                mac: link.mac,
                no_tx: link.veth,
            })
        };
        self.attached.iter().filter_map(device).collect()
    }
}

/// Every backend's name, address, and health before anything is known of it.
fn backends(config: &Config) -> impl Iterator<Item = (BackendName, SocketAddr, Health)> + '_ {
    config.pools.iter().flat_map(|pool| {
        let unproved = match pool.check.kind {
            CheckKind::None => Health::Up,
            _ => Health::Down,
        };
        pool.backends.iter().map(move |backend| {
            let name = BackendName {
                pool: Arc::clone(&pool.name),
                backend: Arc::clone(&backend.name),
            };
            (name, backend.address, unproved)
        })
    })
}

fn place(name: &BackendName) -> Place {
    (name.pool.as_ptr().addr(), name.backend.as_ptr().addr())
}

/// What the tables show of the health of configured backends: one that takes new
/// flows was up, and one that could but does not was down. Of those that an operator
/// or the file keeps out, the tables say nothing.
pub fn health_in(
    tables: &Tables,
    config: &Config,
    overrides: &Overrides,
) -> HashMap<BackendName, Health> {
    let mut present: HashMap<(u64, Addr, u16), bool> = HashMap::new();
    for slot in 0..tables.backends.len() {
        let entry = tables.backends.read(slot);
        if entry.state & state::PRESENT != 0 {
            let key = (entry.id, entry.addr, entry.port.host());
            *present.entry(key).or_default() |= entry.state & state::USABLE != 0;
        }
    }
    let mut seeds = HashMap::new();
    for pool in config.pools.iter() {
        for backend in &pool.backends {
            let name = BackendName {
                pool: Arc::clone(&pool.name),
                backend: Arc::clone(&backend.name),
            };
            let address = backend.address;
            let key = (backend_id(&name), Addr::from(address.ip()), address.port());
            let activation = overrides.get(&name).copied().unwrap_or(backend.activation);
            match present.get(&key) {
                Some(true) => _ = seeds.insert(name, Health::Up),
                Some(false) if activation == Activation::Active && backend.weight > 0 => {
                    seeds.insert(name, Health::Down);
                }
                _ => {}
            }
        }
    }
    seeds
}

/// The next hops that the tables have in use.
pub fn hops_in(tables: &Tables) -> HashMap<IpAddr, Hop> {
    (0..tables.backends.len())
        .map(|slot| tables.backends.read(slot))
        .filter(|entry| {
            let wanted = state::PRESENT | state::HOP_VALID;
            entry.state & wanted == wanted
        })
        .map(|entry| {
            let which = usize::from(entry.state & state::HOP_SLOT != 0);
            (IpAddr::from(entry.addr), entry.hops[which])
        })
        .collect()
}

/// For keys that are addresses of memory: they differ enough by themselves.
#[derive(Debug, Default)]
struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, value: usize) {
        // The high bits choose among equals, the low ones the bucket: both must mix.
        let mixed = (self.0 ^ value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}
