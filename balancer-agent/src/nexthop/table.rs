//! What the kernel knows of links, neighbours and routes, and the next hops that
//! follow from it. No socket, no clock: the driver feeds messages in.

use super::wire::{Message, Prefix};
use super::{HopProblem, Link, NextHops};
use common::Be16;
use common::tables::{Hop, VLAN_KEEP};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Names a neighbour: interface and address.
pub(super) type NeighbourKey = (u32, IpAddr);

/// States of a neighbour whose hardware address can be used; see linux/neighbour.h.
const USABLE: u16 = libc::NUD_REACHABLE
    | libc::NUD_STALE
    | libc::NUD_DELAY
    | libc::NUD_PROBE
    | libc::NUD_PERMANENT
    | libc::NUD_NOARP;
/// States that need no confirmation.
const CONFIRMED: u16 = libc::NUD_REACHABLE | libc::NUD_PERMANENT | libc::NUD_NOARP;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkEntry {
    pub ifindex: u32,
    pub name: Arc<str>,
    /// Only of Ethernet-like devices.
    pub mac: Option<[u8; 6]>,
    pub up: bool,
    pub mtu: u32,
    pub vlan: Option<Vlan>,
    /// One end of a veth pair.
    pub veth: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vlan {
    /// 0 when it is not in this namespace.
    pub parent: u32,
    pub id: u16,
    /// 802.1ad.
    pub service: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub ifindex: u32,
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    /// Zero once the entry is gone.
    state: u16,
    /// The last that was good; none after a failure.
    mac: Option<[u8; 6]>,
    failed: bool,
}

/// What a neighbour needs from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    /// It can be used, but nobody has confirmed it lately.
    Confirm,
    /// It is missing, gone or failed.
    Resolve,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    links: BTreeMap<u32, LinkEntry>,
    neighbours: HashMap<NeighbourKey, Neighbour>,
    routes: BTreeMap<IpAddr, Option<Result<Route, HopProblem>>>,
    /// Neighbours that routes lead to, with the number of these routes.
    wanted: HashMap<NeighbourKey, u32>,
    /// Destinations whose route must be asked for.
    unresolved: BTreeSet<IpAddr>,
    changed: bool,
}

impl Table {
    /// Makes these the destinations; new ones become unresolved.
    pub fn set_destinations(&mut self, destinations: &[IpAddr]) {
        let wanted: BTreeSet<_> = destinations.iter().copied().collect();
        let gone: Vec<_> = self
            .routes
            .keys()
            .filter(|ip| !wanted.contains(ip))
            .copied()
            .collect();
        for ip in gone {
            self.set_route(ip, None);
            self.routes.remove(&ip);
            self.unresolved.remove(&ip);
            self.changed = true;
        }
        for ip in wanted {
            if let Entry::Vacant(entry) = self.routes.entry(ip) {
                entry.insert(None);
                self.unresolved.insert(ip);
            }
        }
    }

    pub fn apply(&mut self, message: Message) {
        match message {
            Message::Link(entry) => {
                let old = self.links.insert(entry.ifindex, entry.clone());
                if old.as_ref() == Some(&entry) {
                    return;
                }
                self.changed = true;
                // IPv4 routes over a link that goes down leave without a word.
                if old.is_none_or(|old| old.up != entry.up) {
                    self.ask_all();
                }
            }
            Message::LinkGone(ifindex) => {
                self.links.remove(&ifindex);
                // The index may come back for another link.
                self.neighbours.retain(|key, _| key.0 != ifindex);
                self.changed = true;
                self.ask_all();
            }
            Message::Neighbour { key, state, mac } => self.neighbour(key, state, mac),
            Message::NeighbourGone(key) => self.neighbour_gone(key),
            Message::RouteChanged(prefix) => self.ask(prefix),
            Message::RoutingChanged => self.ask_all(),
            Message::Other => {}
        }
    }

    /// Takes a full read of links and neighbours: what is not in it is gone.
    pub fn replace(&mut self, messages: Vec<Message>) {
        let mut links = HashSet::new();
        let mut neighbours = HashSet::new();
        for message in messages {
            match &message {
                Message::Link(entry) => _ = links.insert(entry.ifindex),
                Message::Neighbour { key, .. } => _ = neighbours.insert(*key),
                _ => {}
            }
            self.apply(message);
        }
        let gone_links: Vec<_> = self
            .links
            .keys()
            .filter(|i| !links.contains(i))
            .copied()
            .collect();
        for ifindex in gone_links {
            self.apply(Message::LinkGone(ifindex));
        }
        let gone: Vec<_> = self
            .neighbours
            .keys()
            .filter(|key| !neighbours.contains(key))
            .copied()
            .collect();
        for key in gone {
            self.neighbour_gone(key);
        }
        self.ask_all();
        self.changed = true;
    }

    /// Takes the destinations whose route must be asked for.
    pub fn take_unresolved(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.unresolved).into_iter().collect()
    }

    /// Whether a route must be asked for, or hops may have changed.
    pub fn pending(&self) -> bool {
        self.changed || !self.unresolved.is_empty()
    }

    /// The kernel's answer for one destination.
    pub fn answer(&mut self, destination: IpAddr, route: Result<Route, HopProblem>) {
        if self.routes.contains_key(&destination) {
            self.set_route(destination, Some(route));
        }
    }

    /// Whether hops may have changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Destinations in order.
    pub fn destinations(&self) -> impl Iterator<Item = IpAddr> {
        self.routes.keys().copied()
    }

    /// The neighbours that routes lead to.
    pub fn wanted(&self) -> impl Iterator<Item = NeighbourKey> {
        self.wanted.keys().copied()
    }

    /// What a neighbour needs; nothing while its link is down or has no addresses.
    pub fn need(&self, key: NeighbourKey) -> Need {
        let link = self.links.get(&key.0);
        if !self.wanted.contains_key(&key) || !link.is_some_and(|l| l.up && l.mac.is_some()) {
            return Need::Nothing;
        }
        match self.neighbours.get(&key) {
            Some(n) if n.state & CONFIRMED != 0 => Need::Nothing,
            Some(n) if n.state & USABLE != 0 && n.mac.is_some() => Need::Confirm,
            _ => Need::Resolve,
        }
    }

    /// Everything that follows from what is known; destinations that have not been
    /// asked for yet are left out.
    pub fn next_hops(&self) -> NextHops {
        let tagged: HashSet<u32> = self
            .links
            .values()
            .filter_map(|l| Some(l.vlan?.parent))
            .collect();
        NextHops {
            ready: true,
            hops: self
                .routes
                .iter()
                .filter_map(|(ip, route)| {
                    let hop = match route.as_ref()? {
                        Ok(route) => self.hop(*ip, *route, &tagged),
                        Err(problem) => Err(problem.clone()),
                    };
                    Some((*ip, hop))
                })
                .collect(),
            links: self
                .links
                .iter()
                .map(|(ifindex, entry)| {
                    let link = Link {
                        name: Arc::clone(&entry.name),
                        mac: entry.mac.unwrap_or_default(),
                        up: entry.up,
                        mtu: entry.mtu,
                        veth: entry.veth,
                    };
                    (*ifindex, link)
                })
                .collect(),
        }
    }

    fn hop(&self, ip: IpAddr, route: Route, tagged: &HashSet<u32>) -> Result<Hop, HopProblem> {
        let link = self.link_up(route.ifindex)?;
        let source = link.mac.ok_or_else(|| HopProblem::NotEthernet {
            link: Arc::clone(&link.name),
        })?;
        let (ifindex, tags) = self.untag(link)?;
        let neighbour = route.gateway.unwrap_or(ip);
        let destination = match self.neighbours.get(&(route.ifindex, neighbour)) {
            Some(Neighbour { mac: Some(mac), .. }) => *mac,
            Some(Neighbour { failed: true, .. }) => {
                return Err(HopProblem::NeighbourFailed {
                    neighbour,
                    link: Arc::clone(&link.name),
                });
            }
            _ => {
                return Err(HopProblem::Resolving {
                    neighbour,
                    link: Arc::clone(&link.name),
                });
            }
        };
        let mut hop = Hop {
            ifindex,
            vlan_count: match tags.len() {
                0 if !tagged.contains(&ifindex) => VLAN_KEEP,
                n => n as u8,
            },
            ..Hop::default()
        };
        for (tci, tag) in hop.tci.iter_mut().zip(&tags) {
            *tci = Be16::new(tag.id);
        }
        hop.vlan_outer_ad = match tags[..] {
            [] | [Vlan { service: false, .. }] => 0,
            [outer, Vlan { service: false, .. }] => u8::from(outer.service),
            _ => {
                return Err(HopProblem::UnsupportedTags {
                    link: Arc::clone(&link.name),
                });
            }
        };
        hop.macs[..6].copy_from_slice(&destination);
        hop.macs[6..].copy_from_slice(&source);
        Ok(hop)
    }

    /// The device under the VLAN devices, and the tags, outer first.
    fn untag(&self, link: &LinkEntry) -> Result<(u32, Vec<Vlan>), HopProblem> {
        let mut tags = Vec::new();
        let mut below = link;
        while let Some(vlan) = below.vlan {
            if tags.len() == 2 {
                return Err(HopProblem::UnsupportedTags {
                    link: Arc::clone(&link.name),
                });
            }
            tags.insert(0, vlan);
            below = self.link_up(vlan.parent)?;
        }
        Ok((below.ifindex, tags))
    }

    fn link_up(&self, ifindex: u32) -> Result<&LinkEntry, HopProblem> {
        match self.links.get(&ifindex) {
            None => Err(HopProblem::LinkUnknown { ifindex }),
            Some(link) if !link.up => Err(HopProblem::LinkDown {
                link: Arc::clone(&link.name),
            }),
            Some(link) => Ok(link),
        }
    }

    fn neighbour(&mut self, key: NeighbourKey, state: u16, mac: Option<[u8; 6]>) {
        let entry = self.neighbours.entry(key).or_insert(Neighbour {
            state: 0,
            mac: None,
            failed: false,
        });
        let before = *entry;
        entry.state = state;
        if state & USABLE != 0 && mac.is_some() {
            entry.mac = mac;
            entry.failed = false;
        } else if state & libc::NUD_FAILED != 0 {
            entry.mac = None;
            entry.failed = true;
        }
        // Otherwise it is being resolved: what was good until now stays, and what
        // had failed has not recovered yet.
        let same = entry.mac == before.mac && entry.failed == before.failed;
        // A failed entry that fails again has to be tried again.
        let fails = state & libc::NUD_FAILED != 0 && state != before.state;
        if self.wanted.contains_key(&key) && (!same || fails) {
            self.changed = true;
        }
    }

    /// The kernel throws out entries that the host itself has not used for a while:
    /// that says nothing against the hardware address.
    fn neighbour_gone(&mut self, key: NeighbourKey) {
        if !self.wanted.contains_key(&key) {
            self.neighbours.remove(&key);
        } else if let Some(entry) = self.neighbours.get_mut(&key)
            && entry.state != 0
        {
            entry.state = 0;
            self.changed = true;
        }
    }

    fn set_route(&mut self, destination: IpAddr, route: Option<Result<Route, HopProblem>>) {
        let key = |route: &Option<Result<Route, HopProblem>>| {
            let route = route.as_ref()?.as_ref().ok()?;
            Some((route.ifindex, route.gateway.unwrap_or(destination)))
        };
        let Some(slot) = self.routes.get_mut(&destination) else {
            return;
        };
        if *slot == route {
            return;
        }
        let (old, new) = (key(slot), key(&route));
        *slot = route;
        self.changed = true;
        if let Some(key) = new {
            *self.wanted.entry(key).or_default() += 1;
        }
        if let Some(key) = old
            && let Some(count) = self.wanted.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.wanted.remove(&key);
                if self.neighbours.get(&key).is_some_and(|n| n.state == 0) {
                    self.neighbours.remove(&key);
                }
            }
        }
    }

    fn ask(&mut self, prefix: Prefix) {
        let (first, last) = prefix.bounds();
        let inside = self.routes.range(first..=last).map(|(ip, _)| *ip);
        self.unresolved.extend(inside);
    }

    fn ask_all(&mut self) {
        self.unresolved.extend(self.routes.keys());
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
