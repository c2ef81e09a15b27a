//! Nanoseconds per packet: the balancer and its floors, in turn, through the same
//! wrapper.

use anyhow::{Result, ensure};
use aya::programs::ProgramFd;
use common::counters::Reason;

use super::clock::{self, Samples};
use super::figure::{Figure, Report, Target};
use super::frames::{self, Kind};
use super::rig::{Balancer, FLOWS, HALF_OPEN, LruSizes, Wrappers};
use super::world::{self, Egress, INGRESS, Side};

/// Numbers of flows that established packets are measured at.
const FLOW_COUNTS: [u64; 3] = [1, 65_536, FLOWS as u64];
/// Flows that SYNs go through before one comes again.
const NEW_FLOWS: u64 = 1 << 31;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// How often, and how long at a time. Short runs in quick succession meet the machine
/// in the same mood; but each goes once over all flows.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    packets: u32,
}

impl Effort {
    /// Few runs, to see that it works, or enough for figures.
    fn new(quick: bool, flows: u64) -> Self {
        let (rounds, packets) = match flows {
            0..=65_536 => (100, 65_536),
            _ => (20, flows.min(1_048_576) as u32),
        };
        let rounds = if quick { rounds / 10 } else { rounds };
        Self { rounds, packets }
    }
}

/// Which packets to measure.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum Part {
    /// Those of established flows.
    Established,
    /// Those that begin a flow.
    New,
    /// Those that are not balanced.
    Others,
}

/// Measures and reports everything, or a part.
///
/// # Errors
/// When a program can't be loaded, or packets did not go the way that a figure
/// is about.
pub fn run(report: &mut Report, quick: bool, part: Option<Part>) -> Result<()> {
    let wanted = |one| part.is_none_or(|part| part == one);
    let cpu = clock::pin()?;
    println!("nanoseconds of CPU time per packet, on CPU {cpu}: least and median of many runs");
    let balancer = Balancer::load()?;
    let egress = Egress {
        servers: INGRESS,
        clients: INGRESS,
    };
    world::install(&balancer.tables, egress);
    for v4 in [true, false] {
        let mut bench = Bench {
            side: Side::of(v4),
            balancer: &balancer,
            quick,
            placed: 0,
        };
        if wanted(Part::Established) {
            for kind in [Kind::Forward, Kind::Reply] {
                bench.established(report, kind)?;
            }
        }
        if wanted(Part::New) {
            bench.new_flows(report)?;
        }
        if wanted(Part::Others) {
            bench.not_balanced(report)?;
        }
    }
    Ok(())
}

struct Bench<'a> {
    side: Side,
    balancer: &'a Balancer,
    quick: bool,
    /// Flows in the established table.
    placed: u64,
}

/// One program that takes part, and its runs.
struct Runner {
    name: &'static str,
    target: ProgramFd,
    samples: Samples,
}

impl Runner {
    fn new(name: &'static str, target: ProgramFd) -> Self {
        Self {
            name,
            target,
            samples: Samples::default(),
        }
    }

    fn figure(&self, what: &str) -> Result<Figure> {
        let name = format!("{what}: {}", self.name);
        Ok(Figure::new(
            name,
            self.samples.min()?,
            self.samples.median()?,
            "ns",
        ))
    }

    /// Compared with the floor that it took turns with.
    fn against(&self, what: &str, floor: &Self) -> Result<Figure> {
        let reference = floor.figure(what)?;
        self.figure(what)?
            .paired(&reference, &self.samples, &floor.samples)
    }
}

const OURS: &str = "balancer";

impl Bench<'_> {
    fn family(&self) -> &'static str {
        if self.side.v4 { "IPv4" } else { "IPv6" }
    }

    /// The name of this IP version's variant of a floor.
    fn floor(&self, name: &str) -> String {
        format!("{name}{}", if self.side.v4 { 4 } else { 6 })
    }

    fn established(&mut self, report: &mut Report, kind: Kind) -> Result<()> {
        let direction = if kind == Kind::Forward {
            "client to backend"
        } else {
            "backend to client"
        };
        let mut figures = Vec::new();
        let sizes = LruSizes {
            hit: FLOWS * 2,
            insert: 1,
        };
        let mut wrappers = Wrappers::load(self.side.v4, sizes)?;
        let (_, frame) = frames::plan(&self.side, kind, 1);
        figures.push(self.bare(&mut wrappers, &frame, "pass")?);
        figures.push(self.bare(&mut wrappers, &frame, "mac_swap")?);
        for flows in FLOW_COUNTS {
            let (plan, frame) = frames::plan(&self.side, kind, flows);
            let tables = &self.balancer.tables;
            world::place_flows(tables, &self.side, &plan, INGRESS, self.placed..flows);
            self.placed = self.placed.max(flows);
            let fill = wrappers.fd(&self.floor("lru_fill"))?;
            wrappers.set_plan(frames::another_order(plan));
            wrappers.run(kind.wrapper(self.side.v4), &fill, &frame, flows as u32)?;
            wrappers.set_plan(plan);

            let mut runners = [
                Runner::new("pass, wrapped", wrappers.fd("pass")?),
                Runner::new("MAC swap, wrapped", wrappers.fd("mac_swap")?),
                Runner::new("LRU hit", wrappers.fd(&self.floor("lru_hit"))?),
                Runner::new(OURS, self.balancer.fd()?),
            ];
            self.measure(&mut wrappers, &mut runners, kind, flows, &frame)?;
            let what = format!("{flows} flows");
            let [pass, swap, hit, ours] = &runners;
            let mut ours = ours.against(&what, hit)?;
            match flows {
                1 => ours = ours.target(Target::AtMost(1.5)),
                1_048_576 => ours = ours.target(Target::AtMost(0.8)),
                _ => {}
            }
            figures.extend([
                pass.figure(&what)?,
                swap.figure(&what)?,
                hit.figure(&what)?,
                ours,
            ]);
        }
        let title = format!("Established, {}, {direction}", self.family());
        report.section(&title, figures);
        Ok(())
    }

    fn new_flows(&mut self, report: &mut Report) -> Result<()> {
        let sizes = LruSizes {
            hit: 1,
            insert: HALF_OPEN,
        };
        let mut wrappers = Wrappers::load(self.side.v4, sizes)?;
        let (plan, frame) = frames::plan(&self.side, Kind::Syn, NEW_FLOWS);
        wrappers.set_plan(plan);
        let mut runners = [
            Runner::new("LRU insert", wrappers.fd(&self.floor("lru_insert"))?),
            Runner::new(OURS, self.balancer.fd()?),
        ];
        // Until both tables are full, so that each new flow takes an old one's place.
        for runner in &runners {
            let wrapper = Kind::Syn.wrapper(self.side.v4);
            wrappers.run(wrapper, &runner.target, &frame, HALF_OPEN * 4)?;
        }
        self.measure(&mut wrappers, &mut runners, Kind::Syn, NEW_FLOWS, &frame)?;
        let [insert, ours] = &runners;
        let floor = insert.figure("new connection")?;
        let ours = ours
            .against("new connection", insert)?
            .target(Target::AtMost(0.5));
        let title = format!("New connections (SYN), {}, tables full", self.family());
        report.section(&title, vec![floor, ours]);
        Ok(())
    }

    fn not_balanced(&mut self, report: &mut Report) -> Result<()> {
        let sizes = LruSizes { hit: 1, insert: 1 };
        let mut wrappers = Wrappers::load(self.side.v4, sizes)?;
        let flows = FLOW_COUNTS[1];
        let (plan, frame) = frames::plan(&self.side, Kind::Stranger, flows);
        wrappers.set_plan(plan);
        let mut runners = [
            Runner::new("pass, wrapped", wrappers.fd("pass")?),
            Runner::new(OURS, self.balancer.fd()?),
        ];
        self.measure(&mut wrappers, &mut runners, Kind::Stranger, flows, &frame)?;
        let [pass, ours] = &runners;
        let floor = pass.figure("not balanced")?;
        let ours = ours
            .against("not balanced", pass)?
            .target(Target::Within(60.0));
        let title = format!("Not balanced, {}", self.family());
        report.section(&title, vec![floor, ours]);
        Ok(())
    }

    /// A floor without the wrapper.
    fn bare(&self, wrappers: &mut Wrappers, frame: &[u8], name: &'static str) -> Result<Figure> {
        let mut samples = Samples::default();
        let effort = Effort::new(self.quick, 1);
        for _ in 0..effort.rounds {
            let run = wrappers.run_bare(name, frame, effort.packets)?;
            samples.add(run.per_packet);
        }
        let name = format!("{}, bare", name.replace("mac_swap", "MAC swap"));
        Ok(Figure::new(name, samples.min()?, samples.median()?, "ns"))
    }

    /// Runs all in turn, several times; the first time only warms up.
    fn measure(
        &self,
        wrappers: &mut Wrappers,
        runners: &mut [Runner],
        kind: Kind,
        flows: u64,
        frame: &[u8],
    ) -> Result<()> {
        let Effort { rounds, packets } = match kind {
            // Each is new, whatever their number; the tables are what matters.
            Kind::Syn => Effort::new(self.quick, 1),
            _ => Effort::new(self.quick, flows),
        };
        let wrapper = kind.wrapper(self.side.v4);
        for round in 0..=rounds {
            for runner in &mut *runners {
                let before = Seen::now(self.balancer, &self.side)?;
                let run = wrappers.run(wrapper, &runner.target, frame, packets)?;
                let after = Seen::now(self.balancer, &self.side)?;
                if runner.name == OURS {
                    check(kind, u64::from(packets), &before, &after, run.action)?;
                }
                if round > 0 {
                    runner.samples.add(run.per_packet);
                }
            }
        }
        Ok(())
    }
}

/// What the balancer has counted.
struct Seen {
    reasons: Vec<u64>,
    packets_in: u64,
    packets_out: u64,
}

impl Seen {
    fn now(balancer: &Balancer, side: &Side) -> Result<Self> {
        let traffic = balancer.tables.counters.frontend(u32::from(side.frontend));
        Ok(Self {
            reasons: balancer.tables.counters.reasons(),
            packets_in: traffic.packets_in,
            packets_out: traffic.packets_out,
        })
    }
}

/// Every packet must have gone the way that is being measured, and no other.
fn check(kind: Kind, packets: u64, before: &Seen, after: &Seen, action: u32) -> Result<()> {
    let packets_in = after.packets_in - before.packets_in;
    let packets_out = after.packets_out - before.packets_out;
    let (expect_in, expect_out, reason, expect_action) = match kind {
        Kind::Forward => (packets, 0, None, XDP_TX),
        Kind::Reply => (0, packets, None, XDP_TX),
        Kind::Syn => (packets, 0, Some(Reason::FlowNew), XDP_TX),
        Kind::SynAck => (0, packets, None, XDP_TX),
        Kind::Stranger => (0, 0, Some(Reason::NotBalanced), XDP_PASS),
    };
    let mut strange = Vec::new();
    for known in Reason::ALL {
        let at = *known as usize;
        let counted = after.reasons[at] - before.reasons[at];
        // A full table evicts; the last few SYNs may still have found room.
        let evicted = kind == Kind::Syn && *known == Reason::HalfOpenEvicted && counted <= packets;
        let expected = if Some(*known) == reason { packets } else { 0 };
        if counted != expected && !evicted {
            strange.push(format!("{} {counted}", known.name()));
        }
    }
    ensure!(
        strange.is_empty()
            && action == expect_action
            && (packets_in, packets_out) == (expect_in, expect_out),
        "{kind:?}: of {packets} packets {packets_in} went in and {packets_out} out, the last with \
         action {action}; counted besides: [{}]",
        strange.join(", ")
    );
    Ok(())
}
