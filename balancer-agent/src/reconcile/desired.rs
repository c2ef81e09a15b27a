//! What the kernel tables should say: a pure function of configuration, health,
//! operators' overrides and next hops.
//!
//! Everything is in sorted vectors and refers to other things by position, so that
//! a round over ten thousand backends compares numbers, not names, and the same
//! input always gives the same plan.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use common::tables::{Hop, Unavailable};

use super::ring;
use crate::model::{Activation, BackendName, Config, Health, Pool, Protocol};

/// Protocol number of the frontends that only say that echo is answered.
pub const ECHO: u8 = 1;

/// What is known beside the configuration.
pub trait View {
    /// What the checks found.
    fn health(&self, backend: &BackendName) -> Health;
    /// What an operator said instead of the configuration, if anything.
    fn activation(&self, backend: &BackendName) -> Option<Activation>;
    /// How a frame reaches that server; `None` while it is not known.
    fn hop(&self, server: IpAddr) -> Option<Hop>;
    /// Whether that server is this host itself.
    fn local(&self, server: IpAddr) -> bool;
    /// The devices that the program is attached to.
    fn devices(&self) -> Vec<DeviceWanted>;
}

/// A [`View`] that was collected beforehand.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Backends that are up; all others are down.
    pub health: HashMap<BackendName, Health>,
    /// Operators' overrides.
    pub activation: HashMap<BackendName, Activation>,
    /// Next hops that are resolved.
    pub hops: HashMap<IpAddr, Hop>,
    /// Addresses of this host itself.
    pub local: HashSet<IpAddr>,
    /// Attached devices.
    pub devices: Vec<DeviceWanted>,
}

impl View for Seen {
    fn health(&self, backend: &BackendName) -> Health {
        self.health.get(backend).copied().unwrap_or_default()
    }
    fn activation(&self, backend: &BackendName) -> Option<Activation> {
        self.activation.get(backend).copied()
    }
    fn hop(&self, server: IpAddr) -> Option<Hop> {
        self.hops.get(&server).copied()
    }
    fn local(&self, server: IpAddr) -> bool {
        self.local.contains(&server)
    }
    fn devices(&self) -> Vec<DeviceWanted> {
        self.devices.clone()
    }
}

/// The whole of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// By name and protocol.
    pub backends: Vec<BackendWanted>,
    /// By pool and protocol.
    pub rings: Vec<RingWanted>,
    /// By address, port and protocol.
    pub frontends: Vec<FrontendWanted>,
    /// By address: first and last port.
    pub snat: BTreeMap<IpAddr, (u16, u16)>,
    /// Addresses that two pools want with different ports. The first pool's hold.
    pub snat_conflicts: Vec<IpAddr>,
    /// By interface index.
    pub devices: Vec<DeviceWanted>,
    /// How long flows of something removed may go on.
    pub removed: Duration,
}

/// One backend with one protocol: one slot in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendWanted {
    /// Pool and backend.
    pub name: BackendName,
    /// Of the frontends that use the pool.
    pub protocol: Protocol,
    /// The server.
    pub address: SocketAddr,
    /// [`backend_id`] of the name.
    pub id: u64,
    /// Takes new flows: up, active and of a weight above 0.
    pub usable: bool,
    /// Its flows are cut.
    pub stopped: bool,
    /// Passive signs are wanted.
    pub watched: bool,
    /// How frames reach it, if that is known.
    pub hop: Option<Hop>,
    /// It is this host itself.
    pub local: bool,
}

/// The order of a pool's usable backends for one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingWanted {
    /// The pool.
    pub pool: Arc<str>,
    /// Of the frontends that use it.
    pub protocol: Protocol,
    /// Positions in [`Desired::backends`], one cycle; or, when that would be
    /// longer than [`common::limits::RING_SLOTS_MAX`], how many slots it had.
    pub turns: Result<Vec<u32>, u64>,
}

/// One frontend, or an address whose echo requests are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendWanted {
    /// Of the frontend; `None` for an echo entry.
    pub name: Option<Arc<str>>,
    /// Address and port; port 0 for an echo entry.
    pub address: SocketAddr,
    /// IP protocol number, or [`ECHO`].
    pub proto: u8,
    /// [`frontend_id`] of the name; 0 for an echo entry.
    pub id: u64,
    /// Position in [`Desired::rings`].
    pub ring: Option<u32>,
    /// When no backend is usable.
    pub unavailable: Unavailable,
    /// Source addresses to translate to, of the frontend's family.
    pub snat: Vec<IpAddr>,
    /// One of its backends is this host itself.
    pub local: bool,
}

/// An attached device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceWanted {
    /// Interface index.
    pub ifindex: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Frames go back out of it by a redirect, not by XDP_TX.
    pub no_tx: bool,
}

impl Desired {
    /// Resolves a configuration against what is known.
    pub fn new(config: &Config, view: &dyn View) -> Self {
        let mut desired = Self {
            removed: config.timeouts.removed,
            devices: view.devices(),
            ..Self::default()
        };
        desired.devices.sort();
        desired.devices.dedup();
        desired.add_pools(config, view);
        desired.add_frontends(config, view);
        desired
    }

    /// Looks again at one pool, of which nothing but health, activation and hops has
    /// changed since [`Self::new`]: the same result at a fraction of the cost.
    pub fn refresh(&mut self, pool: &Arc<Pool>, view: &dyn View) {
        let name = &pool.name;
        let rings = self.rings.partition_point(|r| r.pool < *name)
            ..self.rings.partition_point(|r| r.pool <= *name);
        let backends = self.backends.partition_point(|b| b.name.pool < *name)
            ..self.backends.partition_point(|b| b.name.pool <= *name);
        if rings.is_empty() {
            return;
        }
        let mut part = Self::default();
        let protocols = self.rings[rings.clone()].iter().map(|r| r.protocol);
        part.add_pool(pool, protocols, view);
        for turn in part.rings.iter_mut().flat_map(|r| &mut r.turns).flatten() {
            *turn += backends.start as u32;
        }
        // What comes later is known by its position.
        assert_eq!(
            (part.rings.len(), part.backends.len()),
            (rings.len(), backends.len()),
            "pool {name} has other backends than before"
        );
        self.rings.splice(rings, part.rings);
        self.backends.splice(backends, part.backends);
    }

    /// Position of a backend in [`Self::backends`].
    pub fn backend(&self, name: &BackendName, protocol: Protocol) -> Option<usize> {
        self.backends
            .binary_search_by(|b| b.name.cmp(name).then(b.protocol.cmp(&protocol)))
            .ok()
    }

    /// Backends and rings of every pool, once for each protocol that it is used with.
    fn add_pools(&mut self, config: &Config, view: &dyn View) {
        let pools: HashMap<&str, &Arc<Pool>> = config.pools.iter().map(|p| (&*p.name, p)).collect();
        let mut used: Vec<(&Arc<Pool>, Protocol)> = config
            .frontends
            .iter()
            .filter_map(|f| Some((*pools.get(&*f.pool)?, f.protocol)))
            .collect();
        used.sort_by(|a, b| a.0.name.cmp(&b.0.name).then(a.1.cmp(&b.1)));
        used.dedup_by(|a, b| a.0.name == b.0.name && a.1 == b.1);
        self.backends
            .reserve(used.iter().map(|(pool, _)| pool.backends.len()).sum());
        for both in used.chunk_by(|a, b| a.0.name == b.0.name) {
            self.add_pool(both[0].0, both.iter().map(|u| u.1), view);
        }
    }

    fn add_pool(
        &mut self,
        pool: &Arc<Pool>,
        protocols: impl ExactSizeIterator<Item = Protocol> + Clone,
        view: &dyn View,
    ) {
        let first = self.backends.len();
        let stride = protocols.len();
        // The turns keep the order of the file, the list that of the names.
        let mut order: Vec<usize> = (0..pool.backends.len()).collect();
        order.sort_by(|&a, &b| pool.backends[a].name.cmp(&pool.backends[b].name));
        let mut place = vec![0; order.len()];
        let mut weights = vec![0; order.len()];
        for (at, &i) in order.iter().enumerate() {
            let backend = &pool.backends[i];
            let name = BackendName {
                pool: Arc::clone(&pool.name),
                backend: Arc::clone(&backend.name),
            };
            let activation = view.activation(&name).unwrap_or(backend.activation);
            let usable = backend.weight > 0
                && activation == Activation::Active
                && view.health(&name) == Health::Up;
            let hop = view.hop(backend.address.ip());
            let local = view.local(backend.address.ip());
            let id = backend_id(&name);
            place[i] = first + at * stride;
            weights[i] = if usable { backend.weight } else { 0 };
            for protocol in protocols.clone() {
                let passive = &pool.passive;
                self.backends.push(BackendWanted {
                    name: name.clone(),
                    protocol,
                    address: backend.address,
                    id,
                    usable,
                    stopped: activation == Activation::Stopped,
                    watched: protocol == Protocol::Tcp
                        && (passive.refused || passive.unanswered.is_some()),
                    hop,
                    // Nothing of the agent's answers datagrams.
                    local: local && protocol == Protocol::Tcp,
                });
            }
        }
        let turns = ring::sequence(&weights).ok_or_else(|| ring::len(&weights));
        for (offset, protocol) in protocols.enumerate() {
            let turns = turns.as_ref().map_err(|&slots| slots);
            self.rings.push(RingWanted {
                pool: Arc::clone(&pool.name),
                protocol,
                turns: turns.map(|turns| {
                    let position = |&i: &u32| (place[i as usize] + offset) as u32;
                    turns.iter().map(position).collect()
                }),
            });
        }
    }

    /// Every frontend, an echo entry for each of their addresses, and the source
    /// addresses that they use.
    fn add_frontends(&mut self, config: &Config, view: &dyn View) {
        let pools: HashMap<&str, &Arc<Pool>> = config.pools.iter().map(|p| (&*p.name, p)).collect();
        for frontend in &config.frontends {
            let Some(pool) = pools.get(&*frontend.pool) else {
                continue;
            };
            let key = (&*pool.name, frontend.protocol);
            let ring = self
                .rings
                .binary_search_by(|r| (&*r.pool, r.protocol).cmp(&key));
            let mut snat = Vec::new();
            for &ip in &pool.snat {
                if ip.is_ipv4() == frontend.address.is_ipv4() && !snat.contains(&ip) {
                    snat.push(ip);
                    let ports = *self.snat.entry(ip).or_insert(pool.snat_ports);
                    if ports != pool.snat_ports && !self.snat_conflicts.contains(&ip) {
                        self.snat_conflicts.push(ip);
                    }
                }
            }
            self.frontends.push(FrontendWanted {
                name: Some(Arc::clone(&frontend.name)),
                address: frontend.address,
                proto: frontend.protocol.number(),
                id: frontend_id(&frontend.name),
                ring: ring.ok().map(|r| r as u32),
                unavailable: pool.unavailable,
                snat,
                local: frontend.protocol == Protocol::Tcp
                    && pool.backends.iter().any(|b| view.local(b.address.ip())),
            });
            self.frontends.push(FrontendWanted {
                name: None,
                address: SocketAddr::new(frontend.address.ip(), 0),
                proto: ECHO,
                id: 0,
                ring: None,
                unavailable: Unavailable::Pass,
                snat: Vec::new(),
                local: false,
            });
        }
        let key = |f: &FrontendWanted| (f.address.ip(), f.address.port(), f.proto);
        self.frontends.sort_by_key(key);
        // Addresses repeat among the echo entries only: the model has each address,
        // port and protocol once.
        self.frontends.dedup_by_key(|f| key(f));
    }
}

/// The agent's identity of a backend: the same in every run and build, as slots are
/// recognised by it after a restart. FNV-1a with 64 bits over the pool's name, a
/// byte that no name contains, and the backend's.
pub fn backend_id(name: &BackendName) -> u64 {
    let bytes = name.pool.bytes().chain([0xff]).chain(name.backend.bytes());
    fnv1a(bytes)
}

/// The agent's identity of a frontend, likewise.
pub fn frontend_id(name: &str) -> u64 {
    fnv1a(name.bytes())
}

/// Fowler, Noll, Vo: the FNV non-cryptographic hash, RFC 9923.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{backend, config, frontend, pool, up};
    use super::*;

    #[test]
    fn ids_are_fnv1a() {
        assert_eq!(frontend_id(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(frontend_id("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(frontend_id("foobar"), 0x8594_4171_f739_67e8);
        let name = |pool: &str, backend: &str| BackendName {
            pool: pool.into(),
            backend: backend.into(),
        };
        assert_ne!(backend_id(&name("ab", "c")), backend_id(&name("a", "bc")));
    }

    #[test]
    fn a_pool_of_two_protocols_has_each_backend_twice() {
        let p = pool(
            "p",
            vec![
                backend("b", "10.0.0.2:53", 1),
                backend("a", "10.0.0.1:53", 2),
            ],
        );
        let mut config = config(
            vec![
                frontend("t", "192.0.2.1:53", Protocol::Tcp, "p"),
                frontend("u", "192.0.2.1:53", Protocol::Udp, "p"),
            ],
            vec![p, pool("unused", vec![backend("x", "10.0.0.9:1", 1)])],
        );
        let seen = up(&config);
        let d = Desired::new(&config, &seen);
        let names: Vec<_> = d
            .backends
            .iter()
            .map(|b| format!("{} {}", b.name, b.protocol))
            .collect();
        assert_eq!(names, ["p/a tcp", "p/a udp", "p/b tcp", "p/b udp"]);
        // In the order of the file: b, a, with weights 1 and 2.
        assert_eq!(d.rings[0].turns, Ok(vec![0, 2, 0]));
        assert_eq!(d.rings[1].turns, Ok(vec![1, 3, 1]));
        let fronts: Vec<_> = d
            .frontends
            .iter()
            .map(|f| (f.address.port(), f.proto))
            .collect();
        assert_eq!(fronts, [(0, 1), (53, 6), (53, 17)]);
        assert!(d.backends[0].usable && d.backends[0].hop.is_some());

        Arc::make_mut(&mut config.pools[0]).backends[1].weight = 0;
        let d = Desired::new(&config, &seen);
        assert!(!d.backends[0].usable && d.backends[2].usable);
        assert_eq!(d.rings[0].turns, Ok(vec![2]));
    }

    #[test]
    fn overrides_win_and_down_is_the_default() {
        let config = config(
            vec![frontend("t", "192.0.2.1:80", Protocol::Tcp, "p")],
            vec![pool("p", vec![backend("a", "10.0.0.1:80", 1)])],
        );
        let mut seen = up(&config);
        let name = Desired::new(&config, &seen).backends[0].name.clone();
        seen.activation.insert(name.clone(), Activation::Stopped);
        let d = Desired::new(&config, &seen);
        assert!(d.backends[0].stopped && !d.backends[0].usable);
        assert_eq!(d.rings[0].turns, Ok(vec![]));
        seen.activation.clear();
        seen.health.clear();
        let d = Desired::new(&config, &seen);
        assert!(!d.backends[0].stopped && !d.backends[0].usable);
    }

    #[test]
    fn snat_of_two_pools_that_differ_is_a_conflict() {
        let mut a = pool("a", vec![]);
        a.snat = vec!["10.1.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let mut b = a.clone();
        b.name = "b".into();
        b.snat_ports = (1, 2);
        let config = config(
            vec![
                frontend("1", "192.0.2.1:80", Protocol::Tcp, "a"),
                frontend("2", "192.0.2.2:80", Protocol::Tcp, "b"),
            ],
            vec![a.clone(), b],
        );
        let d = Desired::new(&config, &Seen::default());
        assert_eq!(d.snat_conflicts, [a.snat[0]]);
        assert_eq!(d.snat.get(&a.snat[0]), Some(&a.snat_ports));
        assert_eq!(d.snat.get(&a.snat[1]), None, "no IPv6 frontend uses it");
    }
}
