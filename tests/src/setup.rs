//! A small world: frontends, backends, rings, hops, devices and snat addresses,
//! described plainly and written into the tables by hand.
//!
//! The reference model reads the same description, so whatever a test changes
//! here and writes into the tables holds for both sides.

use std::collections::HashMap;
use std::mem::offset_of;
use std::net::IpAddr;

use balancer_agent::dataplane::Tables;
use common::tables::{
    Backend, Device, Endpoint, Frontend, Hop, IndexBucket, RingChunk, RingRef, SnatAddress,
    Unavailable, frontend_flags, index_entry, state,
};
use common::{Addr, Be16, checksum, hash, limits};

use crate::packets::{ICMP, TCP, UDP};

/// Interface index of the device towards the clients.
pub const CLIENTS: u32 = 10;
/// Interface index of the device towards the servers.
pub const SERVERS: u32 = 11;
/// Interface index of a device that is not in the device table.
pub const STRANGER: u32 = 12;
/// Hardware address of the device towards the clients.
pub const CLIENTS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc0];
/// Hardware address of the device towards the servers.
pub const SERVERS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x50];
/// Hardware address of the clients' router.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0x0c, 1];

/// Slots of the standard world's frontends.
pub mod frontend {
    /// IPv4 TCP, refused by reset; backends 0, 1, 2.
    pub const TCP4: u16 = 0;
    /// IPv6 TCP, refused by reset; backends 3, 4, 5.
    pub const TCP6: u16 = 1;
    /// IPv4 UDP, refused by reset; backends 6, 7.
    pub const UDP4: u16 = 2;
    /// IPv6 UDP, refused by reset; backends 8, 9.
    pub const UDP6: u16 = 3;
    /// IPv4 TCP with snat; backends 10, 11.
    pub const SNAT_TCP4: u16 = 4;
    /// IPv6 TCP with snat; backends 12, 13.
    pub const SNAT_TCP6: u16 = 5;
    /// IPv4 UDP with snat; backends 14, 15.
    pub const SNAT_UDP4: u16 = 6;
    /// IPv6 UDP with snat; backends 16, 17.
    pub const SNAT_UDP6: u16 = 7;
    /// IPv4 TCP, refused in silence; backend 18.
    pub const DROP4: u16 = 8;
    /// IPv4 TCP, refused by passing; backend 18.
    pub const PASS4: u16 = 9;
    /// IPv6 TCP, refused in silence; backend 19.
    pub const DROP6: u16 = 10;
    /// IPv6 TCP, refused by passing; backend 19.
    pub const PASS6: u16 = 11;
    /// IPv4 TCP over the servers of `TCP4`: backends 20, 21, 22.
    pub const TWIN4: u16 = 12;
    /// IPv6 TCP over the servers of `TCP6`: backends 23, 24, 25.
    pub const TWIN6: u16 = 13;
}

/// One frontend.
#[derive(Clone, Debug)]
pub struct FrontendSpec {
    /// Address that clients connect to.
    pub addr: IpAddr,
    /// Port, 0 for echo.
    pub port: u16,
    /// IP protocol number; 1 for echo.
    pub proto: u8,
    /// What happens without a backend.
    pub unavailable: Unavailable,
    /// Slots of backends, in the order of the round robin.
    pub ring: Vec<u16>,
    /// Slots of snat addresses.
    pub snat: Vec<u8>,
    /// No new flows.
    pub closing: bool,
    /// A backend may be the host itself.
    pub local: bool,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct BackendSpec {
    /// Address of the server.
    pub addr: IpAddr,
    /// Port of the server.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// The slot is in use.
    pub present: bool,
    /// New flows are welcome.
    pub usable: bool,
    /// Flows are cut.
    pub stopped: bool,
    /// Passive signs are told.
    pub watched: bool,
    /// The host itself.
    pub local: bool,
    /// The slot's generation.
    pub generation: u8,
    /// How frames reach it.
    pub hop: Option<Hop>,
}

/// One source address for snat.
#[derive(Clone, Debug)]
pub struct SnatSpec {
    /// The address.
    pub addr: IpAddr,
    /// First port.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
}

/// Everything that the tables say.
#[derive(Clone, Debug)]
pub struct World {
    /// By slot.
    pub frontends: Vec<FrontendSpec>,
    /// By slot.
    pub backends: Vec<BackendSpec>,
    /// By slot.
    pub snat: Vec<SnatSpec>,
    /// Interface index and hardware address.
    pub devices: Vec<(u32, [u8; 6])>,
}

/// An address from its text.
///
/// # Panics
/// When it is none.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The hardware address of server `n`.
pub fn server_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0x5e, n]
}

/// A hop to server `n` by the servers' device that leaves VLAN tags alone.
pub fn hop_keep(n: u8) -> Hop {
    hop(n, common::tables::VLAN_KEEP, false, [0, 0])
}

/// A hop to server `n` by the servers' device.
pub fn hop(n: u8, vlan_count: u8, outer_ad: bool, tci: [u16; 2]) -> Hop {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&server_mac(n));
    macs[6..].copy_from_slice(&SERVERS_MAC);
    Hop {
        ifindex: SERVERS,
        vlan_count,
        vlan_outer_ad: outer_ad.into(),
        reserved: 0,
        tci: tci.map(Be16::new),
        macs,
    }
}

impl World {
    /// See [`frontend`]. Every backend is usable; servers are 10.1.0.n and
    /// fd00:1::n.
    pub fn standard() -> Self {
        let mut world = Self {
            frontends: Vec::new(),
            backends: Vec::new(),
            snat: Vec::new(),
            devices: vec![(CLIENTS, CLIENTS_MAC), (SERVERS, SERVERS_MAC)],
        };
        let (v4, v6) = ("203.0.113.", "2001:db8:f::");
        let plain = Unavailable::Reset;
        world.frontend(v4, 1, 80, TCP, plain, &[], &[1, 2, 3]);
        world.frontend(v6, 1, 80, TCP, plain, &[], &[1, 2, 3]);
        world.frontend(v4, 1, 53, UDP, plain, &[], &[1, 2]);
        world.frontend(v6, 1, 53, UDP, plain, &[], &[1, 2]);
        world.frontend(v4, 2, 80, TCP, plain, &[0], &[4, 5]);
        world.frontend(v6, 2, 80, TCP, plain, &[1], &[4, 5]);
        world.frontend(v4, 2, 53, UDP, plain, &[0], &[4, 5]);
        world.frontend(v6, 2, 53, UDP, plain, &[1], &[4, 5]);
        world.frontend(v4, 3, 80, TCP, Unavailable::Drop, &[], &[6]);
        world.frontend(v4, 3, 81, TCP, Unavailable::Pass, &[], &[6]);
        world.frontend(v6, 3, 80, TCP, Unavailable::Drop, &[], &[6]);
        world.frontend(v6, 3, 81, TCP, Unavailable::Pass, &[], &[6]);
        world.frontend(v4, 4, 80, TCP, plain, &[], &[1, 2, 3]);
        world.frontend(v6, 4, 80, TCP, plain, &[], &[1, 2, 3]);
        // The two policies of one address family share their server's backend.
        world.frontends[usize::from(frontend::PASS4)].ring = vec![18];
        world.frontends[usize::from(frontend::DROP6)].ring = vec![19];
        world.frontends[usize::from(frontend::PASS6)].ring = vec![19];
        for net in [v4, v6] {
            for n in 1..=4 {
                world.frontend(net, n, 0, ICMP, plain, &[], &[]);
            }
        }
        world.snat = vec![
            SnatSpec {
                addr: ip("10.1.0.250"),
                first_port: 40_000,
                last_port: 40_999,
            },
            SnatSpec {
                addr: ip("fd00:1::250"),
                first_port: 40_000,
                last_port: 40_999,
            },
        ];
        world
    }

    #[allow(clippy::too_many_arguments, reason = "one call per line of a table")]
    fn frontend(
        &mut self,
        net: &str,
        n: u8,
        port: u16,
        proto: u8,
        unavailable: Unavailable,
        snat: &[u8],
        servers: &[u8],
    ) {
        let addr = ip(&format!("{net}{n}"));
        let shared = matches!((net.contains(':'), n, port), (_, 3, 81));
        let mut ring = Vec::new();
        for server in servers.iter().filter(|_| !shared) {
            ring.push(self.backends.len() as u16);
            self.backends.push(BackendSpec {
                addr: if addr.is_ipv4() {
                    ip(&format!("10.1.0.{server}"))
                } else {
                    ip(&format!("fd00:1::{server}"))
                },
                port: if proto == UDP { 5353 } else { 8080 },
                proto,
                present: true,
                usable: true,
                stopped: false,
                watched: false,
                local: false,
                generation: 1,
                hop: Some(hop_keep(*server)),
            });
        }
        self.frontends.push(FrontendSpec {
            addr,
            port,
            proto,
            unavailable,
            ring,
            snat: snat.to_vec(),
            closing: false,
            local: false,
        });
    }

    /// Address and port of a frontend.
    pub fn service(&self, frontend: u16) -> (IpAddr, u16) {
        let f = &self.frontends[usize::from(frontend)];
        (f.addr, f.port)
    }

    /// Address and port of a backend.
    pub fn server(&self, backend: u16) -> (IpAddr, u16) {
        let b = &self.backends[usize::from(backend)];
        (b.addr, b.port)
    }

    /// Hardware addresses of a backend's hop: destination, source.
    ///
    /// # Panics
    /// When it has none.
    pub fn hop_macs(&self, backend: u16) -> ([u8; 6], [u8; 6]) {
        let macs = self.backends[usize::from(backend)].hop.expect("a hop").macs;
        let (dst, src) = macs.split_at(6);
        (dst.try_into().expect("6"), src.try_into().expect("6"))
    }

    /// Slot of the endpoint of each backend: equal for equal address, port and
    /// protocol, in the order of first use.
    pub fn endpoints(&self) -> Vec<u16> {
        let mut slots = HashMap::new();
        self.backends
            .iter()
            .map(|b| {
                let next = slots.len() as u16;
                *slots.entry((b.addr, b.port, b.proto)).or_insert(next)
            })
            .collect()
    }

    /// Writes everything.
    pub fn install(&self, tables: &Tables) {
        let seed = tables.settings().seed;
        for slot in 0..self.frontends.len() as u16 {
            self.write_ring(tables, slot);
            self.write_frontend(tables, slot);
        }
        let endpoints = self.endpoints();
        let mut written = HashMap::new();
        for (slot, backend) in self.backends.iter().enumerate() {
            self.write_backend(tables, slot as u16);
            written.entry(endpoints[slot]).or_insert(backend);
        }
        for (slot, backend) in &written {
            let (addr, port) = (Addr::from(backend.addr), Be16::new(backend.port));
            tables.endpoints.write(
                u32::from(*slot),
                Endpoint {
                    addr,
                    port,
                    proto: backend.proto,
                    sum_endpoint: checksum::sum_endpoint(&addr, port),
                    sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                    ..Endpoint::default()
                },
            );
        }
        let endpoints = written
            .iter()
            .map(|(slot, b)| (*slot, (b.addr, b.port, b.proto)));
        write_index(&tables.endpoint_index, seed, endpoints);
        let frontends = self.frontends.iter().enumerate();
        let frontends = frontends.map(|(slot, f)| (slot as u16, (f.addr, f.port, f.proto)));
        write_index(&tables.frontend_index, seed, frontends);
        for (ifindex, mac) in &self.devices {
            tables.devices.write(
                ifindex % limits::DEVICES,
                Device {
                    ifindex: *ifindex,
                    mac: *mac,
                    no_tx: 0,
                    reserved: [0; 5],
                },
            );
        }
        for (slot, snat) in self.snat.iter().enumerate() {
            let addr = Addr::from(snat.addr);
            tables.snat_addresses.write(
                slot as u32,
                SnatAddress {
                    addr,
                    first_port: snat.first_port,
                    last_port: snat.last_port,
                    sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                    reserved: 0,
                    cursor: 0,
                },
            );
        }
    }

    /// Writes a frontend's entry again, after a change of this description.
    pub fn write_frontend(&self, tables: &Tables, slot: u16) {
        let spec = &self.frontends[usize::from(slot)];
        let (addr, port) = (Addr::from(spec.addr), Be16::new(spec.port));
        let mut snat = [0; 8];
        snat[..spec.snat.len()].copy_from_slice(&spec.snat);
        let mut flags = frontend_flags::PRESENT;
        if spec.closing {
            flags |= frontend_flags::CLOSING;
        }
        if spec.local {
            flags |= frontend_flags::LOCAL;
        }
        tables.frontends.write(
            u32::from(slot),
            Frontend {
                addr,
                port,
                proto: spec.proto,
                unavailable: spec.unavailable as u8,
                flags,
                ring: ring_ref(slot, spec).to_word(),
                sum_endpoint: checksum::sum_endpoint(&addr, port),
                sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                snat_count: spec.snat.len() as u32,
                snat,
                id: u64::from(slot) + 1000,
                reserved: 0,
            },
        );
    }

    /// Writes a frontend's ring and the word that names it.
    ///
    /// # Panics
    /// When it has more than 128 slots.
    pub fn write_ring(&self, tables: &Tables, slot: u16) {
        let spec = &self.frontends[usize::from(slot)];
        let ring = ring_ref(slot, spec);
        assert!(ring.len <= 128);
        let per_chunk = limits::RING_CHUNK_SLOTS as usize;
        for (i, part) in spec.ring.chunks(per_chunk).enumerate() {
            let mut chunk = RingChunk::default();
            for (to, from) in chunk.0.iter_mut().zip(part) {
                *to = u32::from(*from);
            }
            tables.rings.write(ring.chunk + i as u32, chunk);
        }
        tables
            .frontends
            .store_u64(u32::from(slot), offset_of!(Frontend, ring), ring.to_word());
    }

    /// Writes a backend's entry again, after a change of this description.
    pub fn write_backend(&self, tables: &Tables, slot: u16) {
        let spec = &self.backends[usize::from(slot)];
        let (addr, port) = (Addr::from(spec.addr), Be16::new(spec.port));
        let mut word = u32::from(spec.generation) << state::GENERATION_SHIFT;
        for (set, bit) in [
            (spec.present, state::PRESENT),
            (spec.usable, state::USABLE),
            (spec.stopped, state::STOPPED),
            (spec.watched, state::WATCHED),
            (spec.local, state::LOCAL),
            (true, spec.hop.as_ref().map_or(0, Hop::bits)),
            (slot % 2 == 1, state::HOP_SLOT),
        ] {
            if set {
                word |= bit;
            }
        }
        // The hop that does not hold names a device that does not exist.
        let mut hops = [Hop {
            ifindex: 0xdead,
            ..Hop::default()
        }; 2];
        hops[usize::from(slot % 2)] = spec.hop.unwrap_or_default();
        tables.backends.write(
            u32::from(slot),
            Backend {
                addr,
                port,
                proto: spec.proto,
                state: word,
                sum_endpoint: checksum::sum_endpoint(&addr, port),
                sum_addr: checksum::fold(checksum::sum_addr(&addr)),
                endpoint: self.endpoints()[usize::from(slot)],
                id: u64::from(slot) + 2000,
                hops,
                ..Backend::default()
            },
        );
    }
}

fn ring_ref(slot: u16, spec: &FrontendSpec) -> RingRef {
    RingRef {
        chunk: u32::from(slot) * 8,
        len: spec.ring.len() as u32,
    }
}

fn write_index(
    index: &balancer_agent::dataplane::index::ServiceIndex,
    seed: u64,
    entries: impl Iterator<Item = (u16, (IpAddr, u16, u8))>,
) {
    let mut buckets: HashMap<u32, IndexBucket> = HashMap::new();
    for (slot, (addr, port, proto)) in entries {
        let h = hash::service(&Addr::from(addr), Be16::new(port), proto, seed);
        let (bucket, tag) = hash::index_slot(h, index.len());
        let bucket = buckets.entry(bucket).or_default();
        let free = bucket.0.iter_mut().find(|e| **e == 0).expect("room");
        *free = index_entry(tag, slot);
    }
    for (at, bucket) in buckets {
        index.write(at, bucket);
    }
}
