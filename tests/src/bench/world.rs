//! The world that is measured: a frontend of each IP version with sixteen
//! backends, and flows written straight into the tables.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use balancer_agent::dataplane::index::ServiceIndex;
use balancer_agent::dataplane::{FlowTable, Tables};
use balancer_ebpf::plan::Plan;
use common::flow::{
    Bucket, Entry, Flow4, Flow6, Lanes, Meta, ROOMY, ReturnPath, flags, key4, key6,
};
use common::limits::{
    DEVICES, ENDPOINT_INDEX_BUCKETS, FRONTEND_INDEX_BUCKETS, INDEX_BUCKET_ENTRIES,
};
use common::tables::{
    Backend, Device, Endpoint, Frontend, Hop, RingChunk, RingRef, frontend_flags, index_entry,
    state,
};
use common::{Addr, Be16, checksum, hash};

/// Backends of each frontend: one chunk of a ring.
pub const BACKENDS: u16 = 16;
/// IP protocol number of TCP.
const TCP: u8 = 6;
/// The device that packets come in by under a test run: loopback.
pub const INGRESS: u32 = 1;
/// Hardware address of the balancer.
pub const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Hardware address that all clients' frames come from.
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Hardware address that all backends are reached by.
pub const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// One IP version's part of the world.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Whether it is IPv4.
    pub v4: bool,
    /// Slot of its frontend.
    pub frontend: u16,
    /// Slot of its first backend, and of that one's endpoint.
    pub backend: u16,
    /// Address of the first client.
    pub client: Addr,
    /// What clients connect to.
    pub service: (Addr, Be16),
    /// An address that nobody balances.
    pub stranger: (Addr, Be16),
    first_server: Addr,
}

fn addr(text: &str) -> Addr {
    let ip: IpAddr = text.parse().expect("an address");
    Addr::from(ip)
}

impl Side {
    /// The IPv4 or the IPv6 side.
    pub fn of(v4: bool) -> Self {
        let pick = |a, b| addr(if v4 { a } else { b });
        Self {
            v4,
            frontend: if v4 { 0 } else { 1 },
            backend: if v4 { 0 } else { BACKENDS },
            client: pick("10.0.0.0", "2001:db8:c::"),
            service: (pick("203.0.113.1", "2001:db8:f::1"), Be16::new(80)),
            stranger: (pick("198.51.100.1", "2001:db8:99::1"), Be16::new(80)),
            first_server: pick("192.0.2.1", "2001:db8:5::1"),
        }
    }

    /// Where the backend at that place in the ring serves.
    pub fn server(&self, n: u16) -> (Addr, Be16) {
        let mut octets = self.first_server.octets();
        octets[15] += n as u8;
        (Addr::from_octets(octets), Be16::new(8080))
    }
}

/// How the frames of the tables' next hops leave.
#[derive(Clone, Copy, Debug)]
pub struct Egress {
    /// Device towards the backends.
    pub servers: u32,
    /// Device that the clients' packets come in by.
    pub clients: u32,
}

/// Writes frontends, backends, rings, indexes and devices.
pub fn install(tables: &Tables, egress: Egress) {
    let seed = tables.settings().seed;
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&SERVER);
    macs[6..].copy_from_slice(&OURS);
    let hop = Hop {
        ifindex: egress.servers,
        macs,
        ..Hop::default()
    };
    for ifindex in [egress.servers, egress.clients] {
        let device = Device {
            ifindex,
            mac: OURS,
            no_tx: 0,
            reserved: [0; 5],
        };
        tables.devices.write(ifindex % DEVICES, device);
    }
    for side in [Side::of(true), Side::of(false)] {
        let (addr, port) = side.service;
        let mut ring = RingChunk::default();
        for n in 0..BACKENDS {
            let slot = side.backend + n;
            ring.0[usize::from(n)] = u32::from(slot);
            install_backend(tables, slot, side.server(n), hop, seed);
        }
        let chunk = u32::from(side.frontend);
        tables.rings.write(chunk, ring);
        let ring = RingRef {
            chunk,
            len: u32::from(BACKENDS),
        };
        tables.frontends.write(
            u32::from(side.frontend),
            Frontend {
                addr,
                port,
                proto: TCP,
                flags: frontend_flags::PRESENT,
                ring: ring.to_word(),
                sum_endpoint: checksum::sum_endpoint(&addr, port),
                sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                id: u64::from(side.frontend) + 1,
                ..Frontend::default()
            },
        );
        let hash = hash::service(&addr, port, TCP, seed);
        let (bucket, tag) = hash::index_slot(hash, FRONTEND_INDEX_BUCKETS);
        insert(&tables.frontend_index, bucket, tag, side.frontend);
    }
}

fn install_backend(tables: &Tables, slot: u16, server: (Addr, Be16), hop: Hop, seed: u64) {
    let (addr, port) = server;
    let sum_endpoint = checksum::sum_endpoint(&addr, port);
    let sum_addr = checksum::fold(checksum::sum_addr(&addr));
    tables.backends.write(
        u32::from(slot),
        Backend {
            addr,
            port,
            proto: TCP,
            state: state::PRESENT
                | state::USABLE
                | hop.bits()
                | u32::from(GENERATION) << state::GENERATION_SHIFT,
            sum_endpoint,
            sum_addr,
            endpoint: slot,
            id: u64::from(slot) + 1,
            hops: [hop, Hop::default()],
            ..Backend::default()
        },
    );
    tables.endpoints.write(
        u32::from(slot),
        Endpoint {
            addr,
            port,
            proto: TCP,
            sum_endpoint,
            sum_addr,
            ..Endpoint::default()
        },
    );
    let hash = hash::service(&addr, port, TCP, seed);
    let (bucket, tag) = hash::index_slot(hash, ENDPOINT_INDEX_BUCKETS);
    insert(&tables.endpoint_index, bucket, tag, slot);
}

const GENERATION: u8 = 1;

fn insert(index: &ServiceIndex, bucket: u32, tag: u16, slot: u16) {
    let mut entries = index.read(bucket);
    let free = entries.0.iter().position(|e| *e == 0);
    entries.0[free.expect("a free entry among INDEX_BUCKET_ENTRIES")] = index_entry(tag, slot);
    index.write(bucket, entries);
    const { assert!(INDEX_BUCKET_ENTRIES == 8) }
}

/// Writes the flows of a range of the plan's numbers into the established table,
/// all with the side's first backend and from clients behind the device `ingress`,
/// where the program itself would put them.
pub fn place_flows(
    tables: &Tables,
    side: &Side,
    plan: &Plan,
    ingress: u32,
    flows: std::ops::Range<u64>,
) {
    let path = ReturnPath {
        mac: ROUTER,
        device: (ingress % DEVICES) as u16,
        ..ReturnPath::default()
    };
    let meta = Meta::new(side.backend, GENERATION, flags::VALID | flags::ANSWERED, 0);
    let settings = tables.settings();
    for flow in flows {
        let (addr, port) = plan.client_of(flow);
        let hash = hash::client(&addr, port, settings.seed);
        if side.v4 {
            let entry = Flow4 {
                key: key4(addr.v4_word(), port, side.frontend),
                meta,
                path,
                endpoint: side.backend,
                ..Flow4::default()
            };
            place(&tables.flows4, hash, settings.flow4_mask, entry);
        } else {
            let entry = Flow6 {
                key: key6(port, side.frontend),
                meta,
                addr,
                path,
                endpoint: side.backend,
                ..Flow6::default()
            };
            place(&tables.flows6, hash, settings.flow6_mask, entry);
        }
    }
}

fn place<E: Entry>(table: &FlowTable<E>, hash: u64, mask: u32, entry: E)
where
    Bucket<E>: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
{
    let first = hash::first_bucket(hash, mask);
    let second = hash::second_bucket(hash, mask);
    let free = |bucket| Lanes::free(zerocopy::transmute!(table.tags.read(bucket).0));
    let (mut at, mut lanes) = (first, free(first));
    if lanes.count() < ROOMY && free(second).count() > lanes.count() {
        (at, lanes) = (second, free(second));
    }
    assert!(
        !lanes.is_empty(),
        "the table has twice as many entries as flows"
    );
    let position = lanes.nearest(hash::home(hash));
    let mut bucket = table.buckets.read(at);
    bucket.0[position] = entry;
    table.buckets.write(at, bucket);
    let tag = table.tags.atomic_u16(at, position * 2);
    tag.store(hash::tag(hash), Ordering::Relaxed);
}
