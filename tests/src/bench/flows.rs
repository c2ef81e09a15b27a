//! A million flows at once in each established table, opened by handshakes that the
//! real program follows packet by packet.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balancer_agent::dataplane::flows::count_by_backend;
use balancer_agent::model::FlowTimeouts;
use common::counters::Reason;
use nix::time::{ClockId, clock_gettime};

use super::clock::{self, Samples};
use super::figure::{Figure, Report};
use super::frames::{self, Kind};
use super::rig::{Balancer, LruSizes, Wrappers};
use super::world::{self, BACKENDS, Egress, INGRESS, Side};

const FLOWS: u64 = 1_000_000;
/// Handshakes under way at the same time: well within the half-open table.
const BATCH: u64 = 100_000;
const TIMEOUTS: FlowTimeouts = FlowTimeouts {
    tcp_idle: Duration::from_secs(7200),
    udp_idle: Duration::from_secs(60),
    half_open: Duration::from_secs(60),
    closed: Duration::from_secs(10),
    removed: Duration::from_secs(600),
};
const COUNTS: usize = 5;

/// Opens the flows, counts them and reports.
///
/// # Errors
/// When a flow was lost, evicted or went another way.
pub fn run(report: &mut Report) -> Result<()> {
    clock::pin()?;
    let balancer = Balancer::load()?;
    let egress = Egress {
        servers: INGRESS,
        clients: INGRESS,
    };
    world::install(&balancer.tables, egress);
    let mut figures = Vec::new();
    for v4 in [true, false] {
        let taken = open(&balancer, &Side::of(v4))?;
        let per_flow = taken / FLOWS as f64;
        let name = format!(
            "open {} flows by three packets each: per flow",
            if v4 { "IPv4" } else { "IPv6" }
        );
        figures.push(Figure::new(name, per_flow, per_flow, "ns"));
    }

    let mut times = Samples::default();
    for _ in 0..COUNTS {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let now = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        let begin = Instant::now();
        let counts = count_by_backend(&balancer.tables, &TIMEOUTS, now);
        times.add(begin.elapsed().as_secs_f64() * 1e3);
        let total = counts.total();
        ensure!(
            u64::from(total.established) == 2 * FLOWS && total.half_open == 0,
            "of {} flows {total:?} are in the tables",
            2 * FLOWS
        );
        for slot in 0..2 * BACKENDS {
            let have = counts.backend(slot).established;
            let share = FLOWS / u64::from(BACKENDS);
            ensure!(
                u64::from(have) == share,
                "backend {slot} has {have} flows, not {share}"
            );
        }
    }
    let reasons = balancer.tables.counters.reasons();
    let evicted = reasons[Reason::FlowEvicted as usize] + reasons[Reason::HalfOpenEvicted as usize];
    ensure!(evicted == 0, "{evicted} flows were evicted");

    let tables = &balancer.tables;
    let single = |name: &str, value: f64, unit| Figure::new(name, value, value, unit);
    let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
    figures.extend([
        single("flows in the tables at once", 2.0 * FLOWS as f64, "flows"),
        single("evicted", evicted as f64, "flows"),
        Figure::new(
            "count all flows by backend",
            times.min()?,
            times.median()?,
            "ms",
        ),
        single("memory: IPv4 flows", mib(tables.flows4.bytes()), "MiB"),
        single("memory: IPv6 flows", mib(tables.flows6.bytes()), "MiB"),
        single(
            "memory: half-open flows",
            mib(tables.half_open.bytes()),
            "MiB",
        ),
        single(
            "memory: all maps, by the kernel's account",
            mib(balancer.memory_bytes()? as usize),
            "MiB",
        ),
    ]);
    report.section("A million flows of each IP version", figures);
    Ok(())
}

/// SYN, SYN+ACK and ACK of every flow; the CPU time that all of it took, in ns.
fn open(balancer: &Balancer, side: &Side) -> Result<f64> {
    let mut wrappers = Wrappers::load(side.v4, LruSizes { hit: 1, insert: 1 })?;
    wrappers.aim(&balancer.fd()?)?;
    let before = balancer.tables.counters.reasons();
    let mut taken = 0.0;
    let mut send = |kind: Kind, first: u64, step: u64, server: u16, packets: u64| -> Result<()> {
        let (mut plan, frame) = frames::plan(side, kind, 1 << 31);
        plan.next = first;
        plan.step = step;
        if kind == Kind::SynAck {
            (plan.peer, plan.port) = side.server(server);
        }
        wrappers.set_plan(plan);
        let run = wrappers.run_bare(kind.wrapper(side.v4), &frame, packets as u32)?;
        taken += run.per_packet * packets as f64;
        Ok(())
    };
    let backends = u64::from(BACKENDS);
    for first in (0..FLOWS).step_by(BATCH as usize) {
        send(Kind::Syn, first, 1, 0, BATCH)?;
        // Round robin from the first flow on: every sixteenth has the same backend.
        for server in 0..BACKENDS {
            let at = first + (u64::from(server) + backends - first % backends) % backends;
            let packets = (first + BATCH - at).div_ceil(backends);
            send(Kind::SynAck, at, backends, server, packets)?;
        }
        send(Kind::Forward, first, 1, 0, BATCH)?;
    }
    let after = balancer.tables.counters.reasons();
    for reason in Reason::ALL {
        let counted = after[*reason as usize] - before[*reason as usize];
        let expected = match reason {
            Reason::FlowNew | Reason::FlowEstablished => FLOWS,
            _ => 0,
        };
        ensure!(
            counted == expected,
            "{} was counted {counted} times, not {expected}",
            reason.name()
        );
    }
    Ok(taken)
}
