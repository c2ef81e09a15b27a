//! Million packets per second over veth pairs, with live frames: one core makes the
//! frames, forwards them and counts them at the other end.
//!
//! ```text
//! source: gen0 ---- in0 :middle: out0 ---- sink0 :sink
//! ```
//! The source's frames come out of gen0 and in at in0, where the balancer runs, or a
//! program that passes them to the stack, which translates and forwards them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aya::programs::xdp::XdpLink;
use common::counters::Reason;
use nix::net::if_::if_nametoindex;

use super::clock::{self, Samples};
use super::figure::{Figure, Report, Target};
use super::frames::{self, Kind};
use super::rig::{Balancer, LruSizes, Wrappers};
use super::world::{self, Egress, OURS, ROUTER, SERVER, Side};
use crate::netns::{End, Link, Netns, veth};

const FLOW_COUNTS: [u64; 3] = [1, 1024, 65_536];
/// As many as the kernel makes at a time.
const FRAMES: u32 = 64;
/// Nothing more comes when nothing has come for this long.
const QUIET: Duration = Duration::from_millis(20);

/// Who takes the frames in at in0, and who at sink0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Dropped at in0: what the generator alone can do.
    Generator,
    /// A program that only sends them on: what the path itself can do.
    Redirect,
    /// The balancer, then a program that counts and drops.
    Balancer,
    /// The stack with nftables, then a program that counts and drops.
    Dnat,
    /// The stack with nftables, then the other stack, which drops: that spares a
    /// packet the way from the stack's form to a program's.
    DnatBare,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Generator,
        Self::Redirect,
        Self::Balancer,
        Self::Dnat,
        Self::DnatBare,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Generator => "generator alone",
            Self::Redirect => "redirected only",
            Self::Balancer => "balancer",
            Self::Dnat => "nftables DNAT",
            Self::DnatBare => "nftables DNAT, sink without XDP",
        }
    }
}

/// Measures and reports.
///
/// # Errors
/// When frames went another way than they should.
pub fn run(report: &mut Report, quick: bool) -> Result<()> {
    let (rounds, packets) = if quick { (2, 200_000) } else { (7, 1_000_000) };
    clock::pin()?;
    let mut stage = Stage::build()?;
    for flows in FLOW_COUNTS {
        let mut rates: [Samples; 5] = Default::default();
        for way in [Way::Balancer, Way::Dnat] {
            stage.warm(way, flows)?;
        }
        for round in 0..=rounds {
            for (way, rates) in Way::ALL.iter().zip(&mut rates) {
                let rate = stage.measure(*way, flows, packets)?;
                if round > 0 {
                    rates.add(rate);
                }
            }
        }
        let figures = Way::ALL.iter().zip(&rates).map(|(way, rates)| {
            let name = format!("{flows} flows: {}", way.name());
            Ok(Figure::new(name, rates.max()?, rates.median()?, "Mpps"))
        });
        let [generator, through, ours, dnat, bare]: [Figure; 5] = figures
            .collect::<Result<Vec<_>>>()?
            .try_into()
            .map_err(|_| anyhow::anyhow!("one figure for each way"))?;
        // The better of the two, and not the one that had the better moment.
        let [_, _, our_rates, dnat_rates, bare_rates] = &rates;
        let (rival, its_rates) = if dnat.median > bare.median {
            (&dnat, dnat_rates)
        } else {
            (&bare, bare_rates)
        };
        let ours = ours
            .paired(rival, our_rates, its_rates)?
            .target(Target::AtLeast(4.0));
        let figures = vec![generator, through, ours, dnat, bare];
        let title = format!("Live frames over veth, IPv4, established, {flows} flows, one core");
        report.section(&title, figures);
    }
    Ok(())
}

struct Stage {
    source: Netns,
    middle: Netns,
    sink: Netns,
    gen0: u32,
    in0: u32,
    out0: u32,
    sink0: u32,
    balancer: Balancer,
    wrappers: Wrappers,
    /// Flows that the balancer has.
    placed: u64,
    side: Side,
    /// The servers' device runs a program that passes everything, so that it takes
    /// in what the sink sends.
    _passing: XdpLink,
}

impl Stage {
    fn build() -> Result<Self> {
        let (source, middle, sink) = (Netns::new(), Netns::new(), Netns::new());
        let side = Side::of(true);
        let link = Link::default();
        let end = |ns: &Netns, device: &str, mac: &[u8; 6], addresses: &[&str]| {
            let text = mac.map(|b| format!("{b:02x}")).join(":");
            End::new(ns, device, addresses).mac(&text).without_gro()
        };
        veth(
            &end(&source, "gen0", &[2, 0, 0, 0, 0, 0x10], &[]),
            &end(&middle, "in0", &OURS, &["10.255.0.1/24"]),
            link,
        );
        // Neither far end has the address that frames are sent to: its stack then drops
        // them at the first look.
        veth(
            &end(&sink, "sink0", &[2, 0, 0, 0, 0, 0x20], &[]),
            &end(&middle, "out0", &OURS, &["192.0.2.254/24"]),
            link,
        );
        let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
        let (server, router) = (text(SERVER), text(ROUTER));
        middle.sysctl("net.ipv4.ip_forward", "1");
        middle.ip(&format!(
            "neigh replace 192.0.2.1 lladdr {server} nud permanent dev out0\n\
             neigh replace 10.255.0.2 lladdr {router} nud permanent dev in0\n\
             route add 10.0.0.0/9 via 10.255.0.2\n"
        ));
        middle.nft(
            "table ip bench {\n  chain pre {\n    type nat hook prerouting priority dstnat;\n    \
             ip daddr 203.0.113.1 tcp dport 80 dnat to 192.0.2.1:8080\n  }\n}\n",
        );
        // The frames' TCP checksums are not right, and their numbers do not advance.
        middle.sysctl("net.netfilter.nf_conntrack_checksum", "0");
        middle.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", "1");

        let index = |ns: &Netns, device: &'static str| ns.enter(move || if_nametoindex(device));
        let (gen0, sink0) = (index(&source, "gen0")?, index(&sink, "sink0")?);
        let (in0, out0) = (index(&middle, "in0")?, index(&middle, "out0")?);
        let balancer = Balancer::load()?;
        let egress = Egress {
            servers: out0,
            clients: in0,
        };
        world::install(&balancer.tables, egress);
        let mut wrappers = Wrappers::load(true, LruSizes { hit: 1, insert: 1 })?;
        let passing = middle.enter(|| wrappers.attach("pass", out0))?;
        Ok(Self {
            source,
            middle,
            sink,
            gen0,
            in0,
            out0,
            sink0,
            balancer,
            wrappers,
            placed: 0,
            side,
            _passing: passing,
        })
    }

    /// Makes the flows known to whoever forwards.
    fn warm(&mut self, way: Way, flows: u64) -> Result<()> {
        let (plan, frame) = frames::plan(&self.side, Kind::Forward, flows);
        if way == Way::Balancer {
            let tables = &self.balancer.tables;
            world::place_flows(tables, &self.side, &plan, self.in0, self.placed..flows);
            self.placed = self.placed.max(flows);
            return Ok(());
        }
        let _links = self.attach(way)?;
        self.wrappers.set_plan(plan);
        let (source, gen0) = (self.source.clone(), self.gen0);
        let wrappers = &mut self.wrappers;
        source.enter(|| wrappers.run_live("generate4", &frame, gen0, flows as u32, FRAMES))?;
        // Packets of both directions make an established flow.
        let (plan, frame) = frames::plan(&self.side, Kind::Reply, flows);
        wrappers.set_plan(plan);
        let (sink, sink0) = (self.sink.clone(), self.sink0);
        sink.enter(|| wrappers.run_live("answer4", &frame, sink0, flows as u32, FRAMES))?;
        Ok(())
    }

    /// Puts the programs of a way in place, until they are dropped.
    fn attach(&mut self, way: Way) -> Result<Vec<XdpLink>> {
        let (in0, sink0) = (self.in0, self.sink0);
        let (middle, sink) = (self.middle.clone(), self.sink.clone());
        let (wrappers, balancer) = (&mut self.wrappers, &mut self.balancer);
        let mut links = vec![middle.enter(|| match way {
            Way::Generator => wrappers.attach("sink", in0),
            Way::Redirect => wrappers.attach("through", in0),
            Way::Balancer => balancer.attach(in0),
            Way::Dnat | Way::DnatBare => wrappers.attach("pass", in0),
        })?];
        if matches!(way, Way::Redirect | Way::Balancer | Way::Dnat) {
            links.push(sink.enter(|| wrappers.attach("sink", sink0))?);
        }
        Ok(links)
    }

    /// Million packets per second that reached the other end.
    fn measure(&mut self, way: Way, flows: u64, packets: u32) -> Result<f64> {
        let links = self.attach(way)?;
        let (mut plan, frame) = frames::plan(&self.side, Kind::Forward, flows);
        plan.out = self.out0 as u16;
        self.wrappers.set_plan(plan);
        let reasons = self.balancer.tables.counters.reasons();
        let before = self.arrived(way)?;
        let strange = self.wrappers.sunk().strange;

        let begin = Instant::now();
        let (source, gen0) = (self.source.clone(), self.gen0);
        let wrappers = &mut self.wrappers;
        let end = source.enter(|| {
            wrappers.run_live("generate4", &frame, gen0, packets, FRAMES)?;
            anyhow::Ok(Instant::now())
        })?;
        let (mut arrived, mut last) = (self.arrived(way)?, end);
        while last.elapsed() < QUIET {
            let now = self.arrived(way)?;
            if now != arrived {
                (arrived, last) = (now, Instant::now());
            }
        }
        drop(links);

        let arrived = arrived - before;
        ensure!(
            arrived * 100 >= u64::from(packets) * 95 && arrived <= u64::from(packets) + 16,
            "{}: {arrived} of {packets} frames arrived",
            way.name()
        );
        if !matches!(way, Way::Generator | Way::Redirect) {
            let strange = self.wrappers.sunk().strange - strange;
            ensure!(
                strange == 0,
                "{}: {strange} frames not translated",
                way.name()
            );
        }
        // Whatever is no frame of ours (a neighbour's question) is not_balanced or not_ip.
        let now = self.balancer.tables.counters.reasons();
        for reason in Reason::ALL {
            let counted = now[*reason as usize] - reasons[*reason as usize];
            let noise = matches!(reason, Reason::NotBalanced | Reason::NotIp) && counted < 16;
            ensure!(counted == 0 || noise, "{} counted {counted}", reason.name());
        }
        Ok(arrived as f64 / (last - begin).as_secs_f64() / 1e6)
    }

    /// Frames at the end of the way so far.
    fn arrived(&self, way: Way) -> Result<u64> {
        let sunk = self.wrappers.sunk();
        match way {
            Way::Generator | Way::Redirect => Ok(sunk.strange),
            Way::Balancer | Way::Dnat => Ok(sunk.translated),
            Way::DnatBare => {
                // The thread's view: it is not in the sink's namespace.
                let text = self.sink.run("ip -s -j link show sink0");
                let links: serde_json::Value = serde_json::from_str(&text)?;
                let packets = links[0]["stats64"]["rx"]["packets"].as_u64();
                packets.ok_or_else(|| anyhow::anyhow!("ip shows no packets: {text}"))
            }
        }
    }
}
