//! The reference model: what `docs/kernel.md` says, in plain and slow Rust.
//!
//! It knows the [`World`] that the tables were written from and keeps its own
//! flows in ordinary maps, which are never full: tests that compare against it
//! use tables with room to spare. It shares nothing with the kernel program but
//! the names and numbers of `common`. Time stands still in it.

mod edit;
mod icmp;
mod parse;
mod refuse;
mod steer;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use self::parse::Ports;
use crate::packets::Tag;
use crate::setup::World;
use crate::xdp::{Reasons, Run};

/// A client's address and port, and the frontend's slot.
type Key = (IpAddr, u16, u16);

/// One flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Slot of the backend.
    pub backend: u16,
    /// That slot's generation when the flow was made.
    pub generation: u8,
    /// Slot of the backend's endpoint.
    pub endpoint: u16,
    /// Snat address slot and port.
    pub snat: Option<(u8, u16)>,
    /// The way back to the client.
    pub path: Path,
    /// The backend has answered.
    pub answered: bool,
    /// FIN from the client.
    pub client_fin: bool,
    /// FIN from the backend.
    pub server_fin: bool,
    /// RST from either side.
    pub reset: bool,
    /// What the client's first ACK must acknowledge.
    pub expected_ack: Option<u32>,
}

impl Flow {
    fn closed(&self) -> bool {
        self.reset || (self.client_fin && self.server_fin)
    }
}

/// The way back to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Hardware address of the client or its router.
    pub mac: [u8; 6],
    /// Device that the client's frames come on.
    pub ifindex: u32,
    /// VLAN tags of the client's frames.
    pub tags: Vec<Tag>,
}

/// What must become of a frame.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Action and frame.
    pub run: Run,
    /// What is counted.
    pub reasons: Reasons,
    /// Events: kind, backend slot, generation.
    pub events: Vec<(u32, u16, u8)>,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the tables say; tests change it together with them.
    pub world: World,
    /// Established flows.
    pub established: HashMap<Key, Flow>,
    /// Half-open flows.
    pub half_open: HashMap<Key, Flow>,
    cursors: Vec<u64>,
    fragments: HashMap<(IpAddr, IpAddr, u32, u8), Ports>,
    endpoints: Vec<u16>,
}

/// A frame on its way through the model.
struct Step<'a> {
    model: &'a mut Model,
    frame: &'a [u8],
    ifindex: u32,
    observed: Option<&'a [u8]>,
    reasons: Reasons,
    events: Vec<(u32, u16, u8)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Established,
    HalfOpen,
}

impl Model {
    /// With no flows.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            established: HashMap::new(),
            half_open: HashMap::new(),
            cursors: vec![0; world.frontends.len()],
            fragments: HashMap::new(),
            endpoints: world.endpoints(),
        }
    }

    /// What must become of `frame` when it comes in on `ifindex`.
    ///
    /// Which source port a new flow with snat gets is the program's choice: it is
    /// read from `observed`, the frame that the program sent, and accepted when it
    /// is in range and nobody else's.
    pub fn step(&mut self, frame: &[u8], ifindex: u32, observed: Option<&[u8]>) -> Verdict {
        let mut step = Step {
            model: self,
            frame,
            ifindex,
            observed,
            reasons: BTreeMap::new(),
            events: Vec::new(),
        };
        let run = step.decide();
        Verdict {
            run,
            reasons: step.reasons,
            events: step.events,
        }
    }

    /// The same world with no flow but one.
    pub fn alone(&self, key: (IpAddr, u16, u16)) -> Self {
        let mut model = Self::new(&self.world);
        for (from, to) in [
            (&self.established, &mut model.established),
            (&self.half_open, &mut model.half_open),
        ] {
            if let Some(flow) = from.get(&key) {
                to.insert(key, flow.clone());
            }
        }
        model
    }

    fn frontend(&self, addr: IpAddr, port: u16, proto: u8) -> Option<u16> {
        let found = self
            .world
            .frontends
            .iter()
            .position(|f| (f.addr, f.port, f.proto) == (addr, port, proto))?;
        Some(found as u16)
    }

    fn endpoint(&self, addr: IpAddr, port: u16, proto: u8) -> Option<u16> {
        let found = self
            .world
            .backends
            .iter()
            .position(|b| (b.addr, b.port, b.proto) == (addr, port, proto))?;
        Some(self.endpoints[found])
    }

    fn table(&mut self, table: Table) -> &mut HashMap<Key, Flow> {
        match table {
            Table::Established => &mut self.established,
            Table::HalfOpen => &mut self.half_open,
        }
    }

    fn find(&self, key: Key) -> Option<(Table, Flow)> {
        let established = self.established.get(&key).map(|f| (Table::Established, f));
        let half_open = || self.half_open.get(&key).map(|f| (Table::HalfOpen, f));
        let (table, flow) = established.or_else(half_open)?;
        Some((table, flow.clone()))
    }

    /// The flow that a packet from an endpoint to `dst` belongs to.
    fn find_reply(&self, dst: (IpAddr, u16), endpoint: u16) -> Option<(Table, Key, Flow)> {
        let fits = |key: &Key, flow: &Flow| {
            flow.endpoint == endpoint
                && match flow.snat {
                    None => (key.0, key.1) == dst,
                    Some((slot, port)) => (self.world.snat[usize::from(slot)].addr, port) == dst,
                }
        };
        let search = |table: Table, flows: &HashMap<Key, Flow>| {
            let (key, flow) = flows.iter().find(|(k, f)| fits(k, f))?;
            Some((table, *key, flow.clone()))
        };
        search(Table::Established, &self.established)
            .or_else(|| search(Table::HalfOpen, &self.half_open))
    }
}
