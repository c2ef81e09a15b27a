//! Puts the status together from everything that knows a part of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::offset_of;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::counters::{Reason, Traffic};
use common::tables::{Backend as Entry, state};

use super::node::Node;
use super::protocol::{
    BackendStatus, FrontendStatus, LingeringStatus, NodeStatus, PoolStatus, ReasonCount, Status,
    TrafficStatus,
};
use crate::dataplane::Tables;
use crate::dataplane::flows::{FlowCount, FlowCounts, FlowView};
use crate::model::{Activation, Backend, BackendName, FlowTimeouts, Health, Pool, Protocol};
use crate::nexthop::NextHops;
use crate::prober::ProbeStatus;
use crate::reconcile::{LingeringKind, LingeringSlot};
use crate::steering::Look;

/// Everything, with flows that were counted after `since`.
pub(super) fn status(node: &Node, look: &Look, since: Instant) -> Status {
    let sources = Sources::new(node, look, since);
    let pools = look.config.pools.iter();
    let total = sources.counts.total();
    let kernel = node.kernel.as_deref();
    let error = look.last_error.as_ref();
    Status {
        ready: look.ready,
        node: NodeStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: milliseconds(node.started.elapsed()),
            program_id: kernel.map(|k| k.program_id()),
            pin_dir: kernel.map(|k| k.pin_dir().display().to_string()),
            interfaces: kernel.map(|k| k.attached()).unwrap_or_default(),
            not_attached: kernel.map_or_else(Vec::new, |k| {
                k.failed().iter().map(ToString::to_string).collect()
            }),
            generation_desired: look.desired,
            generation_applied: look.applied,
            last_error: error.map(ToString::to_string),
            memory_bytes: kernel.map_or(0, |k| k.memory_bytes()),
            flows: total.established,
            half_open: total.half_open,
        },
        frontends: sources.frontends(),
        pools: pools.map(|pool| sources.pool(pool)).collect(),
        lingering: look
            .lingering
            .iter()
            .map(|l| sources.lingering(l))
            .collect(),
        reasons: sources.reasons(),
        http: node.web.as_ref().map(|web| Box::new(web.status())),
        cluster: node.cluster.as_ref().map(|c| Box::new(c.status())),
        // The store is asked apart: it answers when it comes to it.
        sessions: None,
    }
}

/// One backend, likewise.
pub(super) fn backend(
    node: &Node,
    look: &Look,
    name: &BackendName,
    since: Instant,
) -> Option<BackendStatus> {
    let pool = look.config.pool(&name.pool)?;
    let backend = pool.backends.iter().find(|b| b.name == name.backend)?;
    Some(Sources::new(node, look, since).backend(pool, backend))
}

/// The generation of every backend slot that is present.
pub(super) fn generations(tables: &Tables) -> Vec<Option<u8>> {
    (0..tables.backends.len())
        .map(|slot| {
            let word = word(tables, slot);
            (word & state::PRESENT != 0).then_some((word >> state::GENERATION_SHIFT) as u8)
        })
        .collect()
}

fn word(tables: &Tables, slot: u32) -> u32 {
    let offset = offset_of!(Entry, state);
    let word = tables.backends.atomic_u32(slot, offset);
    word.load(Ordering::Acquire)
}

/// Whether a flow is only in the table because nobody has come by yet to remove it.
/// As exact as a flow's idle time.
pub(super) fn timed_out(flow: &FlowView, timeouts: &FlowTimeouts) -> bool {
    let limit = match (flow.protocol, flow.half_open) {
        (Protocol::Udp, _) => timeouts.udp_idle,
        (Protocol::Tcp, true) => timeouts.half_open,
        (Protocol::Tcp, false) => timeouts.tcp_idle,
    };
    flow.idle > limit + Duration::from_secs(2)
}

/// Who knows what.
struct Sources<'a> {
    node: &'a Node,
    look: &'a Look,
    probes: BTreeMap<BackendName, ProbeStatus>,
    counts: Arc<FlowCounts>,
    hops: Arc<NextHops>,
    /// Slots of what is configured, not of what lingers under the same name.
    backends: HashMap<&'a BackendName, Vec<u16>>,
    frontends: HashMap<&'a str, u16>,
}

impl<'a> Sources<'a> {
    fn new(node: &'a Node, look: &'a Look, since: Instant) -> Self {
        let mut gone_backends = HashSet::new();
        let mut gone_frontends = HashSet::new();
        for lingering in &look.lingering {
            match lingering.what {
                LingeringKind::Backend(_) => _ = gone_backends.insert(lingering.slot),
                LingeringKind::Frontend(_) => _ = gone_frontends.insert(lingering.slot),
                LingeringKind::Snat => {}
            }
        }
        let mut backends: HashMap<&BackendName, Vec<u16>> = HashMap::new();
        for (slot, name, _) in &look.backends {
            if !gone_backends.contains(slot) {
                backends.entry(name).or_default().push(*slot);
            }
        }
        let frontends = look.frontends.iter();
        let frontends = frontends
            .filter(|(slot, _)| !gone_frontends.contains(slot))
            .map(|(slot, name)| (&**name, *slot))
            .collect();
        Self {
            node,
            look,
            probes: node.prober.snapshot(),
            counts: node.counts(&look.config, since),
            hops: Arc::clone(&node.hops.borrow()),
            backends,
            frontends,
        }
    }

    fn frontends(&self) -> Vec<FrontendStatus> {
        let frontends = self.look.config.frontends.iter();
        frontends
            .map(|frontend| {
                let slot = self.frontends.get(&*frontend.name).copied();
                let count = slot.map(|s| self.counts.frontend(s)).unwrap_or_default();
                let traffic = match (&self.node.kernel, slot) {
                    (Some(kernel), Some(slot)) => {
                        kernel.tables().counters.frontend(u32::from(slot))
                    }
                    _ => Traffic::default(),
                };
                FrontendStatus {
                    name: frontend.name.to_string(),
                    address: frontend.address,
                    protocol: frontend.protocol.to_string(),
                    pool: frontend.pool.to_string(),
                    flows: count.established,
                    half_open: count.half_open,
                    connections_total: traffic.flows,
                    established_total: traffic.established,
                    refused: traffic.refused,
                    traffic: shown(&traffic),
                }
            })
            .collect()
    }

    fn pool(&self, pool: &Pool) -> PoolStatus {
        let backends = pool.backends.iter();
        PoolStatus {
            name: pool.name.to_string(),
            backends: backends
                .map(|backend| self.backend(pool, backend))
                .collect(),
        }
    }

    fn backend(&self, pool: &Pool, backend: &Backend) -> BackendStatus {
        let name = BackendName {
            pool: Arc::clone(&pool.name),
            backend: Arc::clone(&backend.name),
        };
        let slots = self.backends.get(&name).map_or(&[][..], |slots| &slots[..]);
        let mut count = FlowCount::default();
        for slot in slots {
            let of = self.counts.backend(*slot);
            count.established += of.established;
            count.half_open += of.half_open;
        }
        let (traffic, usable) = match &self.node.kernel {
            Some(kernel) => {
                let slots: Vec<u32> = slots.iter().map(|slot| u32::from(*slot)).collect();
                let usable = |slot: &u32| word(kernel.tables(), *slot) & state::USABLE != 0;
                let mut traffic = Traffic::default();
                for slot in &slots {
                    traffic.add(&kernel.tables().counters.backend(*slot));
                }
                (traffic, slots.iter().any(usable))
            }
            None => (Traffic::default(), false),
        };
        let probe = self.probes.get(&name);
        let word = self.look.overrides.get(&name).copied();
        let last = probe.and_then(|p| p.last.as_ref());
        BackendStatus {
            name: backend.name.to_string(),
            address: backend.address,
            health: probe.map_or(Health::Down, |p| p.health),
            health_reason: probe.map_or_else(|| "not checked yet".into(), |p| p.reason.to_string()),
            health_for_ms: probe.map_or(0, |p| milliseconds(p.since.elapsed())),
            last_check: last.map(ToString::to_string),
            checks: probe.map_or(0, |p| p.checks),
            checks_failed: probe.map_or(0, |p| p.failed_checks),
            activation: word.unwrap_or(backend.activation),
            overridden: word.is_some_and(|word: Activation| word != backend.activation),
            weight: backend.weight,
            usable,
            hop_problem: self.hop_problem(backend.address),
            flows: count.established,
            half_open: count.half_open,
            connections_total: traffic.flows,
            established_total: traffic.established,
            refused: traffic.refused,
            requests_in_flight: self.node.web.as_ref().map_or(0, |web| web.in_flight(&name)),
            // Asked of the store apart.
            sessions: None,
            last_session_ends_ms: None,
            sessions_unheard: Vec::new(),
            traffic: shown(&traffic),
        }
    }

    fn hop_problem(&self, server: SocketAddr) -> Option<String> {
        let hop = self.hops.hops.get(&server.ip())?;
        hop.as_ref().err().map(ToString::to_string)
    }

    fn lingering(&self, slot: &LingeringSlot) -> LingeringStatus {
        let (kind, name, flows) = match &slot.what {
            LingeringKind::Backend(name) => (
                "backend",
                name.as_ref().map(|(name, _)| name.to_string()),
                self.counts.backend(slot.slot).live(),
            ),
            LingeringKind::Frontend(name) => (
                "frontend",
                name.as_ref().map(ToString::to_string),
                self.counts.frontend(slot.slot).live(),
            ),
            LingeringKind::Snat => ("snat", None, self.counts.snat(slot.slot as u8)),
        };
        LingeringStatus {
            kind: kind.into(),
            name,
            for_ms: milliseconds(self.look.now.saturating_sub(slot.since)),
            flows,
        }
    }

    fn reasons(&self) -> Vec<ReasonCount> {
        let Some(kernel) = &self.node.kernel else {
            return Vec::new();
        };
        let counts = kernel.tables().counters.reasons();
        Reason::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| ReasonCount {
                reason: reason.name().into(),
                count,
            })
            .collect()
    }
}

fn shown(traffic: &Traffic) -> TrafficStatus {
    TrafficStatus {
        packets_in: traffic.packets_in,
        bytes_in: traffic.bytes_in,
        packets_out: traffic.packets_out,
        bytes_out: traffic.bytes_out,
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
