//! What all tests of the reconciler share: small configurations, the kernel's way of
//! looking things up, and what must hold after every single step.

mod problems;
mod random;
mod refresh;
mod restarts;
mod rounds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::tables::{
    Backend, Frontend, Hop, RingRef, Settings, Unavailable, frontend_flags, index_entry, state,
};
use common::{Addr, hash};

use super::desired::{BackendWanted, Desired, Seen};
use super::observed::{BackendKey, Service, region};
use super::plan::{backend_key, frontend_bits, service};
use super::step::{Index, Step};
use super::{Reconciler, Report, apply, state_of};
use crate::dataplane::Tables;
use crate::dataplane::flows::{FlowCounts, count_by_backend};
use crate::model;
use crate::model::{BackendName, Config, FlowTimeouts, Health, Protocol};

pub fn backend(name: &str, address: &str, weight: u16) -> model::Backend {
    model::Backend {
        http: Default::default(),
        name: name.into(),
        address: address.parse().unwrap(),
        weight,
        activation: model::Activation::Active,
    }
}

pub fn pool(name: &str, backends: Vec<model::Backend>) -> model::Pool {
    model::Pool {
        http: Default::default(),
        name: name.into(),
        balance: model::Balance::RoundRobin,
        forward: model::Forward::Nat,
        snat: Vec::new(),
        snat_ports: (1024, 65_535),
        unavailable: Unavailable::Reset,
        check: model::Check {
            kind: model::CheckKind::None,
            interval: Duration::from_secs(1),
            fast_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            fall: 3,
            rise: 2,
            port: None,
            tls: false,
            as_requests: true,
        },
        passive: model::Passive {
            refused: true,
            unanswered: None,
        },
        backends,
    }
}

pub fn frontend(name: &str, address: &str, protocol: Protocol, pool: &str) -> model::Frontend {
    model::Frontend {
        name: name.into(),
        address: address.parse().unwrap(),
        protocol,
        pool: pool.into(),
    }
}

pub const TIMEOUTS: FlowTimeouts = FlowTimeouts {
    tcp_idle: Duration::from_secs(3600),
    udp_idle: Duration::from_secs(3600),
    half_open: Duration::from_secs(60),
    closed: Duration::from_secs(10),
    removed: Duration::from_secs(5),
};

pub fn config(frontends: Vec<model::Frontend>, pools: Vec<model::Pool>) -> Config {
    Config {
        cluster: None,
        sessions: None,
        http: Default::default(),
        xdp: model::Xdp {
            interfaces: Vec::new(),
            mode: model::XdpMode::Auto,
            flows_ipv4: 16,
            flows_ipv6: 16,
            half_open: 16,
            pin_dir: None::<PathBuf>,
        },
        admin: model::Admin {
            socket: PathBuf::new(),
        },
        timeouts: TIMEOUTS,
        frontends,
        pools: pools.into_iter().map(Arc::new).collect(),
    }
}

pub fn hop(last: u8) -> Hop {
    Hop {
        ifindex: 3,
        macs: [2, 0, 0, 0, 0, last, 2, 0, 0, 0, 0, 1],
        ..Hop::default()
    }
}

/// Everything up, with a hop.
pub fn up(config: &Config) -> Seen {
    let mut seen = Seen::default();
    for pool in &config.pools {
        for backend in &pool.backends {
            let name = name(&pool.name, &backend.name);
            seen.health.insert(name, Health::Up);
            seen.hops.insert(backend.address.ip(), hop(1));
        }
    }
    seen
}

pub fn name(pool: &str, backend: &str) -> BackendName {
    BackendName {
        pool: pool.into(),
        backend: backend.into(),
    }
}

pub fn tables() -> Tables {
    Tables::heap(Settings {
        seed: 0x1234_5678_9abc_def0,
        flow4_mask: 1,
        flow6_mask: 1,
        half_open_mask: 1,
        reserved: 0,
    })
}

pub fn no_flows() -> FlowCounts {
    FlowCounts::default()
}

pub fn counted(tables: &Tables) -> impl Fn() -> FlowCounts + '_ {
    || count_by_backend(tables, &TIMEOUTS, 0)
}

pub fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// One round that must have no problem.
pub fn round(r: &mut Reconciler, desired: &Desired, tables: &Tables, now: Duration) -> Report {
    r.reconcile(desired.clone(), tables, &no_flows, now)
        .unwrap()
}

/// Rounds until nothing is left to wait for.
pub fn settle(r: &mut Reconciler, desired: &Desired, tables: &Tables, now: &mut Duration) {
    for _ in 0..20 {
        let report = r.reconcile(desired.clone(), tables, &counted(tables), *now);
        match report.unwrap().next_wakeup {
            None => return,
            Some(wait) => *now += wait,
        }
    }
    panic!("still something to do after 20 rounds");
}

/// Finds an address as the kernel program does.
pub fn lookup(tables: &Tables, index: Index, wanted: Service) -> Option<u16> {
    let table = match index {
        Index::Frontends => &tables.frontend_index,
        Index::Endpoints => &tables.endpoint_index,
    };
    let hash = hash::service(&wanted.0, wanted.1, wanted.2, tables.settings().seed);
    let (bucket, tag) = hash::index_slot(hash, table.len());
    for entry in table.read(bucket).0 {
        if entry == 0 {
            return None;
        }
        let slot = (entry & 0xffff) as u16 - 1;
        let found = match index {
            Index::Frontends => {
                let f = tables.frontends.read(u32::from(slot));
                (f.addr, f.port, f.proto)
            }
            Index::Endpoints => {
                let e = tables.endpoints.read(u32::from(slot));
                (e.addr, e.port, e.proto)
            }
        };
        if entry == index_entry(tag, slot) && found == wanted {
            return Some(slot);
        }
    }
    None
}

/// How many slots the checks look at after each step; tests use no more.
const SLOTS: u16 = 48;

pub fn present_backends(tables: &Tables) -> Vec<(u16, Backend)> {
    (0..SLOTS)
        .map(|slot| (slot, tables.backends.read(u32::from(slot))))
        .filter(|(_, b)| b.state & state::PRESENT != 0)
        .collect()
}

pub fn present_frontends(tables: &Tables) -> Vec<(u16, Frontend)> {
    (0..SLOTS)
        .map(|slot| (slot, tables.frontends.read(u32::from(slot))))
        .filter(|(_, f)| f.flags & frontend_flags::PRESENT != 0)
        .collect()
}

pub fn slots_by_key(tables: &Tables) -> BTreeMap<(SocketAddr, u8, u64), u16> {
    present_backends(tables)
        .into_iter()
        .map(|(slot, b)| {
            let address = SocketAddr::new(IpAddr::from(b.addr), b.port.host());
            ((address, b.proto, b.id), slot)
        })
        .collect()
}

pub fn turns(tables: &Tables, ring: u64) -> Vec<u32> {
    let ring = RingRef::from_word(ring);
    region(ring)
        .flat_map(|chunk| tables.rings.read(chunk).0)
        .take(ring.len as usize)
        .collect()
}

/// What must hold after every step.
pub fn check(tables: &Tables, universe: &BTreeSet<(SocketAddr, u8)>) {
    let mut regions: Vec<Range<u32>> = Vec::new();
    for (slot, f) in present_frontends(tables) {
        for turn in turns(tables, f.ring) {
            let word = state_of(tables, turn as u16);
            assert!(
                word & state::PRESENT != 0,
                "frontend {slot}: its ring has backend {turn}, which is not present"
            );
        }
        if f.flags & frontend_flags::CLOSING == 0 {
            for &snat in &f.snat[..f.snat_count as usize] {
                let address = tables.snat_addresses.read(u32::from(snat));
                assert_ne!(
                    address.addr,
                    Addr::UNSPECIFIED,
                    "frontend {slot}: snat {snat}"
                );
            }
        }
        regions.push(region(RingRef::from_word(f.ring)));
    }
    regions.retain(|range| !range.is_empty());
    regions.sort_by_key(|range| (range.start, range.end));
    regions.dedup();
    for pair in regions.windows(2) {
        assert!(pair[0].end <= pair[1].start, "rings overlap: {pair:?}");
    }
    for (slot, b) in present_backends(tables) {
        let endpoint = tables.endpoints.read(u32::from(b.endpoint));
        let service = (b.addr, b.port, b.proto);
        assert_eq!((endpoint.addr, endpoint.port, endpoint.proto), service);
        assert_eq!(
            lookup(tables, Index::Endpoints, service),
            Some(b.endpoint),
            "backend {slot}: its endpoint is not found"
        );
    }
    for &(address, proto) in universe {
        check_bucket(tables, Index::Frontends, service(address, proto));
        check_bucket(tables, Index::Endpoints, service(address, proto));
    }
}

/// No gaps, and every entry names something that is there.
fn check_bucket(tables: &Tables, index: Index, (addr, port, proto): Service) {
    let table = match index {
        Index::Frontends => &tables.frontend_index,
        Index::Endpoints => &tables.endpoint_index,
    };
    let hash = hash::service(&addr, port, proto, tables.settings().seed);
    let (bucket, _) = hash::index_slot(hash, table.len());
    let entries = table.read(bucket).0;
    let used = entries.iter().take_while(|&&e| e != 0).count();
    assert!(entries[used..].iter().all(|&e| e == 0), "gap: {entries:x?}");
    for &entry in &entries[..used] {
        let slot = entry & 0xffff;
        assert!(slot > 0);
        let slot = slot - 1;
        let (is_there, service) = match index {
            Index::Frontends => {
                let f = tables.frontends.read(slot);
                let there = f.flags & frontend_flags::PRESENT != 0;
                (there, (f.addr, f.port, f.proto))
            }
            Index::Endpoints => {
                let e = tables.endpoints.read(slot);
                (e.proto != 0, (e.addr, e.port, e.proto))
            }
        };
        assert!(is_there, "{index} names free slot {slot}");
        let hash = hash::service(&service.0, service.1, service.2, tables.settings().seed);
        let (home, tag) = hash::index_slot(hash, table.len());
        assert_eq!((home, index_entry(tag, slot as u16)), (bucket, entry));
    }
}

/// Whether the tables do what is desired. With `settled`, nothing else is left, and
/// every hop is in place.
pub fn check_desired(tables: &Tables, desired: &Desired, settled: bool) {
    let backends = present_backends(tables);
    let find = |wanted: &BackendWanted| {
        let key = backend_key(wanted);
        let mut found = backends.iter().filter(|(_, b)| {
            key == BackendKey {
                service: (b.addr, b.port, b.proto),
                id: b.id,
            }
        });
        let (slot, entry) = found.next().expect("a backend that is desired is present");
        assert!(found.next().is_none(), "one slot for each backend");
        (*slot, *entry)
    };
    let mut slots = Vec::new();
    for wanted in &desired.backends {
        let (slot, entry) = find(wanted);
        slots.push(u32::from(slot));
        let has = |bit| entry.state & bit != 0;
        assert_eq!(has(state::USABLE), wanted.usable, "{}", wanted.name);
        assert_eq!(has(state::STOPPED), wanted.stopped, "{}", wanted.name);
        assert_eq!(has(state::WATCHED), wanted.watched, "{}", wanted.name);
        assert_eq!(has(state::LOCAL), wanted.local, "{}", wanted.name);
        let which = usize::from(has(state::HOP_SLOT));
        let hop = has(state::HOP_VALID).then(|| entry.hops[which]);
        if settled || hop.is_some() {
            assert_eq!(hop, wanted.hop, "{}", wanted.name);
        }
    }
    for wanted in &desired.frontends {
        let slot = lookup(
            tables,
            Index::Frontends,
            service(wanted.address, wanted.proto),
        );
        let entry = tables.frontends.read(u32::from(slot.expect("indexed")));
        assert_eq!(entry.flags, frontend_bits(wanted));
        assert_eq!(entry.unavailable, wanted.unavailable as u8);
        assert_eq!(entry.id, wanted.id);
        let order: Vec<u32> = match wanted.ring {
            None => Vec::new(),
            Some(ring) => {
                let turns = desired.rings[ring as usize].turns.as_ref().unwrap();
                turns.iter().map(|&i| slots[i as usize]).collect()
            }
        };
        assert_eq!(turns(tables, entry.ring), order, "{}", wanted.address);
        let snat: Vec<IpAddr> = entry.snat[..entry.snat_count as usize]
            .iter()
            .map(|&slot| tables.snat_addresses.read(u32::from(slot)).addr.into())
            .collect();
        assert_eq!(snat, wanted.snat);
    }
    let open = present_frontends(tables)
        .iter()
        .filter(|(_, f)| f.flags & frontend_flags::CLOSING == 0)
        .count();
    assert_eq!(open, desired.frontends.len());
    if settled {
        assert_eq!(backends.len(), desired.backends.len());
        assert_eq!(present_frontends(tables).len(), desired.frontends.len());
        let services: BTreeSet<_> = desired
            .backends
            .iter()
            .map(|b| (b.address, b.protocol))
            .collect();
        let endpoints = (0..u32::from(SLOTS)).filter(|&s| tables.endpoints.read(s).proto != 0);
        assert_eq!(endpoints.count(), services.len());
        let snat = (0..8).filter(|&s| tables.snat_addresses.read(s).addr != Addr::UNSPECIFIED);
        assert_eq!(snat.count(), desired.snat.len());
    }
}

/// Carries out a plan with a check after each step; at most `limit` steps.
pub fn apply_checked(
    tables: &Tables,
    steps: &[Step],
    limit: usize,
    universe: &BTreeSet<(SocketAddr, u8)>,
) {
    for step in steps.iter().take(limit) {
        if let Step::Ring { region: ring, .. } = step {
            let new = region(*ring);
            for (slot, f) in present_frontends(tables) {
                let used = region(RingRef::from_word(f.ring));
                let apart = new.end <= used.start || used.end <= new.start;
                assert!(apart || used.is_empty(), "frontend {slot}'s ring: {step}");
            }
        }
        apply(step, tables);
        check(tables, universe);
    }
}
