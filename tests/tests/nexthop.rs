//! Next hops against a real kernel: three network namespaces, two links.
//!
//! ```text
//! balancer: a0 192.0.2.1/24, 2001:db8:1::1/64 ---- b0 .2, ::2 :server
//!           a1 203.0.113.1/24 ------------------- c0 .2      :other
//! ```
//!
//! Needs root; `cargo xtask test` runs it.

use anyhow::{Context, Result, ensure};
use balancer_agent::nexthop::{HopProblem, NextHopHandle, NextHops, Watcher};
use common::tables::{Hop, VLAN_KEEP};
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// No condition takes that long on a working system.
const BOUND: Duration = Duration::from_secs(60);

const A0: [u8; 6] = [2, 0, 0, 0, 0xa, 0];
const B0: [u8; 6] = [2, 0, 0, 0, 0xb, 0];
const A1: [u8; 6] = [2, 0, 0, 0, 0xa, 1];
const C0: [u8; 6] = [2, 0, 0, 0, 0xc, 0];
const NEW: [u8; 6] = [2, 0, 0, 0, 0xb, 0xff];

/// Removes its namespaces, and with them all that is in them, when it is dropped.
struct Net {
    prefix: String,
}

impl Net {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and needs root: run `cargo xtask test`"
        );
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let net = Self {
            prefix: format!("hop{}-{n}", std::process::id()),
        };
        for name in ["a", "b", "c"] {
            ip(&["netns", "add", &net.name(name)], "")?;
        }
        let (b, c) = (net.name("b"), net.name("c"));
        net.batch(
            "a",
            &format!(
                "link set lo up
                 link add a0 type veth peer name b0 netns {b}
                 link add a1 type veth peer name c0 netns {c}
                 link set a0 address {}
                 link set a1 address {}
                 addr add 192.0.2.1/24 dev a0
                 addr add 2001:db8:1::1/64 dev a0 nodad
                 addr add 203.0.113.1/24 dev a1
                 link set a0 up
                 link set a1 up",
                text(A0),
                text(A1)
            ),
        )?;
        net.batch(
            "b",
            &format!(
                "link set b0 address {}
                 addr add 192.0.2.2/24 dev b0
                 addr add 2001:db8:1::2/64 dev b0 nodad
                 link set b0 up",
                text(B0)
            ),
        )?;
        net.batch(
            "c",
            &format!(
                "link set c0 address {}
                 addr add 203.0.113.2/24 dev c0
                 link set c0 up",
                text(C0)
            ),
        )?;
        Ok(net)
    }

    fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    /// Runs `ip` commands in one of the namespaces.
    fn batch(&self, short: &str, commands: &str) -> Result<()> {
        ip(&["-n", &self.name(short), "-batch", "-"], commands)
    }

    /// Runs a test on a thread of its own in the balancer's namespace, with a
    /// watcher beside it.
    fn watch<F>(&self, test: impl FnOnce(Watch) -> F + Send) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let namespace = File::open(format!("/run/netns/{}", self.name("a")))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let (watcher, handle, hops) = Watcher::new()?;
                    ensure!(!hops.borrow().ready, "nothing has been read yet");
                    let running = tokio::spawn(watcher.run());
                    test(Watch { handle, hops }).await?;
                    // The handle is gone: the watcher ends.
                    tokio::time::timeout(BOUND, running).await???;
                    Ok(())
                })
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in ["a", "b", "c"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(name)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn ip(args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("the ip command (package iproute2)")?;
    child
        .stdin
        .take()
        .context("no pipe")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

struct Watch {
    handle: NextHopHandle,
    hops: watch::Receiver<Arc<NextHops>>,
}

impl Watch {
    fn set(&self, destinations: &[&str]) -> Result<()> {
        let parsed: Result<_, _> = destinations.iter().map(|text| text.parse()).collect();
        self.handle.set_destinations(parsed?);
        Ok(())
    }

    async fn until(&mut self, what: &str, good: impl Fn(&NextHops) -> bool) -> Result<()> {
        let wait = async { self.hops.wait_for(|hops| good(hops)).await.map(drop) };
        if let Ok(seen) = tokio::time::timeout(BOUND, wait).await {
            return seen.context("the watcher has ended");
        }
        let last = self.hops.borrow().hops.clone();
        anyhow::bail!("{what}: not within {BOUND:?}; last seen: {last:?}")
    }

    /// Waits until `destination` is reached over `device` with these addresses.
    async fn until_hop(&mut self, destination: &str, device: &str, to: [u8; 6]) -> Result<()> {
        let address: IpAddr = destination.parse()?;
        let from = if device == "a0" { A0 } else { A1 };
        self.until(destination, |hops| {
            let index = hops.links.iter().find(|(_, link)| *link.name == *device);
            let mut expected = Hop {
                ifindex: index.map_or(0, |(index, _)| *index),
                vlan_count: VLAN_KEEP,
                ..Hop::default()
            };
            expected.macs[..6].copy_from_slice(&to);
            expected.macs[6..].copy_from_slice(&from);
            hops.hops.get(&address) == Some(&Ok(expected))
        })
        .await
    }

    async fn until_problem(
        &mut self,
        destination: &str,
        good: impl Fn(&HopProblem) -> bool,
    ) -> Result<()> {
        let address: IpAddr = destination.parse()?;
        self.until(
            destination,
            |hops| matches!(hops.hops.get(&address), Some(Err(problem)) if good(problem)),
        )
        .await
    }
}

#[test]
fn neighbours_are_resolved_by_the_kernel() -> Result<()> {
    let net = Net::new()?;
    net.watch(async |mut watch| {
        // Nobody has sent a packet yet: the watcher has to have them resolved.
        watch.set(&["192.0.2.2", "2001:db8:1::2"])?;
        watch.until_hop("192.0.2.2", "a0", B0).await?;
        watch.until_hop("2001:db8:1::2", "a0", B0).await?;
        let hops = watch.hops.borrow().clone();
        let a0 = hops.links.values().find(|link| &*link.name == "a0");
        let a0 = a0.context("a0 is missing")?;
        ensure!(a0.mac == A0 && a0.up && a0.mtu == 1500, "{a0:?}");
        Ok(())
    })
}

#[test]
fn gateways_are_resolved() -> Result<()> {
    let net = Net::new()?;
    net.batch(
        "a",
        "route add 198.51.100.0/24 via 192.0.2.2
         route add 2001:db8:2::/64 via 2001:db8:1::2
         route add 100.64.1.0/24 via inet6 2001:db8:1::2 dev a0",
    )?;
    net.watch(async |mut watch| {
        watch.set(&[
            "198.51.100.1",
            "198.51.100.2",
            "2001:db8:2::1",
            "100.64.1.1",
        ])?;
        for destination in [
            "198.51.100.1",
            "198.51.100.2",
            "2001:db8:2::1",
            "100.64.1.1",
        ] {
            watch.until_hop(destination, "a0", B0).await?;
        }
        Ok(())
    })
}

#[test]
fn what_has_no_hop_says_why() -> Result<()> {
    let net = Net::new()?;
    net.batch("a", "route add blackhole 100.64.2.0/24")?;
    net.watch(async |mut watch| {
        watch.set(&[
            "192.0.2.1",
            "127.0.0.1",
            "100.64.0.1",
            "100.64.2.1",
            "2001:db8:9::1",
        ])?;
        for local in ["192.0.2.1", "127.0.0.1"] {
            watch
                .until_problem(local, |p| *p == HopProblem::Local)
                .await?;
        }
        for unrouted in ["100.64.0.1", "100.64.2.1", "2001:db8:9::1"] {
            let no_route = |p: &HopProblem| {
                matches!(
                    p,
                    HopProblem::NoRoute { .. } | HopProblem::NotUnicast { .. }
                )
            };
            watch.until_problem(unrouted, no_route).await?;
        }
        Ok(())
    })
}

#[test]
fn a_neighbour_with_a_new_address_is_seen() -> Result<()> {
    let net = Net::new()?;
    net.watch(async |mut watch| {
        watch.set(&["192.0.2.2", "2001:db8:1::2"])?;
        watch.until_hop("192.0.2.2", "a0", B0).await?;
        watch.until_hop("2001:db8:1::2", "a0", B0).await?;
        net.batch("b", "link set b0 down")?;
        let down = |p: &HopProblem| matches!(p, HopProblem::LinkDown { .. });
        watch.until_problem("192.0.2.2", down).await?;
        net.batch(
            "b",
            &format!(
                "link set b0 address {}
                 link set b0 up
                 addr add 2001:db8:1::2/64 dev b0 nodad",
                text(NEW)
            ),
        )?;
        watch.until_hop("192.0.2.2", "a0", NEW).await?;
        watch.until_hop("2001:db8:1::2", "a0", NEW).await
    })
}

#[test]
fn a_neighbour_that_does_not_answer_fails_and_recovers() -> Result<()> {
    let net = Net::new()?;
    net.watch(async |mut watch| {
        watch.set(&["192.0.2.99"])?;
        let failed = |p: &HopProblem| matches!(p, HopProblem::NeighbourFailed { .. });
        watch.until_problem("192.0.2.99", failed).await?;
        net.batch("b", "addr add 192.0.2.99/24 dev b0")?;
        watch.until_hop("192.0.2.99", "a0", B0).await
    })
}

#[test]
fn route_and_rule_changes_are_seen() -> Result<()> {
    let net = Net::new()?;
    net.batch("a", "route add 198.51.100.0/24 via 192.0.2.2")?;
    net.watch(async |mut watch| {
        watch.set(&["198.51.100.1"])?;
        watch.until_hop("198.51.100.1", "a0", B0).await?;
        net.batch("a", "route replace 198.51.100.0/24 via 203.0.113.2")?;
        watch.until_hop("198.51.100.1", "a1", C0).await?;
        net.batch("a", "route add 198.51.100.1/32 via 192.0.2.2")?;
        watch.until_hop("198.51.100.1", "a0", B0).await?;
        net.batch(
            "a",
            "route add default via 203.0.113.2 table 77
             rule add to 198.51.100.0/24 table 77",
        )?;
        watch.until_hop("198.51.100.1", "a1", C0).await?;
        net.batch("a", "link set a1 down")?;
        watch.until_hop("198.51.100.1", "a0", B0).await?;
        // A deleted neighbour is resolved anew.
        net.batch("a", "neigh flush dev a0")?;
        watch.until_hop("198.51.100.1", "a0", B0).await?;
        net.batch("a", "link del a0")?;
        let unknown = |p: &HopProblem| {
            matches!(
                p,
                HopProblem::NoRoute { .. } | HopProblem::LinkUnknown { .. }
            )
        };
        watch.until_problem("198.51.100.1", unknown).await
    })
}

#[test]
fn lost_notifications_are_made_up_for() -> Result<()> {
    let net = Net::new()?;
    net.batch("a", "route add 198.51.100.0/24 via 192.0.2.2")?;
    net.watch(async |mut watch| {
        watch.set(&["198.51.100.1"])?;
        watch.until_hop("198.51.100.1", "a0", B0).await?;
        // This thread drives the watcher too, which hears nothing meanwhile: more
        // notifications than its socket has room for.
        let mut flood = String::new();
        for n in 0..40_000u32 {
            let [_, b, c, d] = n.to_be_bytes();
            flood += &format!("route add 10.{b}.{c}.{d}/32 dev a0\n");
        }
        flood += "route replace 198.51.100.0/24 via 203.0.113.2\nlink set a0 mtu 1400\n";
        net.batch("a", &flood)?;
        // Routes are asked for now and then in any case; links are not.
        let smaller = |hops: &NextHops| hops.links.values().any(|link| link.mtu == 1400);
        watch.until("the new MTU", smaller).await?;
        watch.until_hop("198.51.100.1", "a1", C0).await
    })
}

#[test]
fn ten_thousand_destinations() -> Result<()> {
    let net = Net::new()?;
    net.batch("a", "route add 10.0.0.0/8 via 192.0.2.2")?;
    net.watch(async |mut watch| {
        let all = (0..10_000u32).map(|n| {
            let [_, b, c, d] = n.to_be_bytes();
            IpAddr::from([10, b, c, d])
        });
        watch.handle.set_destinations(all.collect());
        let good = |hops: &NextHops| {
            hops.hops.len() == 10_000 && hops.hops.values().all(|hop| hop.is_ok())
        };
        watch.until("all are resolved", good).await?;
        net.batch("a", "route replace 10.0.0.0/8 via 203.0.113.2")?;
        let moved = |hops: &NextHops| {
            let to = |hop: &Result<Hop, _>| hop.as_ref().is_ok_and(|hop| hop.macs[..6] == C0);
            hops.hops.values().all(to)
        };
        watch.until("all have moved", moved).await
    })
}
