//! What a reconciler remembers from round to round: what lingers because flows may
//! still use it, what rests because a packet on its way may still read it, and which
//! slots the names have.
//!
//! Nothing of this need outlive the agent: [`Memory::adopt`] assumes the worst of
//! what it finds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use common::Addr;
use common::tables::{RingRef, frontend_flags, state};

use super::apply::state_of;
use super::desired::Desired;
use super::observed::{Observed, region};
use crate::model::{BackendName, Protocol};

/// How long freed things are left alone. A packet is through the kernel program in
/// microseconds, even where its CPU is taken away for a while.
pub const REST: Duration = Duration::from_secs(1);

/// Removed from the configuration, and kept for its flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lingering<N> {
    /// When it was first found to be removed.
    pub since: Duration,
    /// As it was called, unless that was before the agent's start.
    pub name: Option<N>,
}

/// Which slot each wanted thing has.
#[derive(Clone, Debug, Default)]
pub(super) struct Assigned {
    pub desired: Desired,
    /// By position in `desired.backends`.
    pub backends: Vec<Option<u16>>,
    /// By position in `desired.frontends`.
    pub frontends: Vec<Option<u16>>,
    /// By backend slot: position, or [`NOBODY`].
    pub backend_owners: Vec<u32>,
    /// By frontend slot: position, or [`NOBODY`].
    pub frontend_owners: Vec<u32>,
}

/// The owner of a slot that nothing desired has.
pub(super) const NOBODY: u32 = u32::MAX;

impl Assigned {
    pub fn backend_at(&self, slot: u16) -> Option<(&BackendName, Protocol)> {
        let owner = *self.backend_owners.get(usize::from(slot))?;
        let backend = self.desired.backends.get(owner as usize)?;
        Some((&backend.name, backend.protocol))
    }

    pub fn frontend_at(&self, slot: u16) -> Option<&Arc<str>> {
        let owner = *self.frontend_owners.get(usize::from(slot))?;
        self.desired.frontends.get(owner as usize)?.name.as_ref()
    }
}

/// See the module's description. Times are the caller's clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub assigned: Arc<Assigned>,
    pub lingering_backends: BTreeMap<u16, Lingering<(BackendName, Protocol)>>,
    pub lingering_frontends: BTreeMap<u16, Lingering<Arc<str>>>,
    pub lingering_snat: BTreeMap<u8, Duration>,
    /// Until when slots rest.
    pub resting_backends: BTreeMap<u16, Duration>,
    pub resting_frontends: BTreeMap<u16, Duration>,
    pub resting_endpoints: BTreeMap<u16, Duration>,
    pub resting_snat: BTreeMap<u8, Duration>,
    pub resting_regions: Vec<(Range<u32>, Duration)>,
    /// Until when the hop that a backend does not use may still be read.
    pub resting_hops: BTreeMap<u16, Duration>,
    /// Endpoints may be left without backends.
    pub collect_endpoints: bool,
}

impl Memory {
    /// What an agent that starts must assume: that everything which is free but was
    /// used has been freed just now.
    pub fn adopt(&mut self, have: &Observed, now: Duration) {
        let until = now + REST;
        for slot in 0..have.backend_end as u16 {
            let word = state_of(&have.image, slot);
            if word != 0 && word & state::PRESENT == 0 {
                self.resting_backends.insert(slot, until);
            }
        }
        for slot in 0..have.frontend_end as u16 {
            let frontend = have.frontend(slot);
            if frontend != Default::default() && frontend.flags & frontend_flags::PRESENT == 0 {
                self.resting_frontends.insert(slot, until);
            }
        }
        for slot in 0..have.endpoint_end as u16 {
            let endpoint = have.image.endpoints.read(u32::from(slot));
            if endpoint != Default::default() && endpoint.proto == 0 {
                self.resting_endpoints.insert(slot, until);
            }
        }
        for (slot, _) in have.present_backends() {
            // They are the same until the first switch from one to the other.
            let [a, b] = have.backend(slot).hops;
            if a != b {
                self.resting_hops.insert(slot, until);
            }
        }
        for slot in 0..have.image.snat_addresses.len() {
            let address = have.image.snat_addresses.read(slot);
            // Its cursor alone stays when it is freed, and moves with the first flow.
            if address.addr == Addr::UNSPECIFIED && address.cursor != 0 {
                self.resting_snat.insert(slot as u8, until);
            }
        }
        let end = have.image.ring_end().min(have.image.rings.len());
        let free = Regions::new(referenced(have), end).free;
        self.resting_regions
            .extend(free.into_iter().map(|range| (range, until)));
        self.collect_endpoints = true;
    }

    /// Forgets rests that are over.
    pub fn wake(&mut self, now: Duration) {
        self.resting_backends.retain(|_, until| *until > now);
        self.resting_frontends.retain(|_, until| *until > now);
        self.resting_endpoints.retain(|_, until| *until > now);
        self.resting_snat.retain(|_, until| *until > now);
        self.resting_regions.retain(|(_, until)| *until > now);
        self.resting_hops.retain(|_, until| *until > now);
    }
}

/// The chunks that frontends' rings take, each once, rising.
pub(super) fn referenced(have: &Observed) -> Vec<Range<u32>> {
    let mut regions: Vec<_> = have
        .present_frontends()
        .map(|(_, f)| region(RingRef::from_word(f.ring)))
        .filter(|range| !range.is_empty())
        .collect();
    regions.sort_by_key(|range| (range.start, range.end));
    regions.dedup();
    regions
}

/// The free chunks of the ring table: first fit.
#[derive(Debug)]
pub(super) struct Regions {
    /// Rising, apart from each other.
    free: Vec<Range<u32>>,
}

impl Regions {
    /// All of `0..end` that none of `taken` covers.
    pub fn new(mut taken: Vec<Range<u32>>, end: u32) -> Self {
        taken.sort_by_key(|range| range.start);
        let mut free = Vec::new();
        let mut at = 0;
        for range in taken {
            let gap = at..range.start.min(end);
            if !gap.is_empty() {
                free.push(gap);
            }
            at = at.max(range.end);
        }
        if at < end {
            free.push(at..end);
        }
        Self { free }
    }

    /// Takes the first region that is large enough.
    pub fn take(&mut self, chunks: u32) -> Option<u32> {
        let fit = self
            .free
            .iter()
            .position(|range| range.len() >= chunks as usize)?;
        let range = &mut self.free[fit];
        let chunk = range.start;
        range.start += chunks;
        if range.start == range.end {
            self.free.remove(fit);
        }
        Some(chunk)
    }

    /// Free chunks, and the most of them that lie side by side.
    pub fn room(&self) -> (u32, u32) {
        let sizes = self.free.iter().map(|range| range.end - range.start);
        (sizes.clone().sum(), sizes.max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_fit_over_the_gaps() {
        let mut regions = Regions::new(vec![4..6, 0..1, 5..8, 12..13], 16);
        assert_eq!(regions.room(), (10, 4));
        assert_eq!(regions.take(4), Some(8));
        assert_eq!(regions.take(4), None);
        assert_eq!(regions.take(2), Some(1));
        assert_eq!(regions.take(1), Some(3));
        assert_eq!(regions.take(3), Some(13));
        assert_eq!(regions.room(), (0, 0));
        assert_eq!(regions.take(1), None);
    }

    #[test]
    fn what_lies_beyond_the_end_is_not_free() {
        assert_eq!(Regions::new(vec![20..30, 40..41], 16).room(), (16, 16));
        assert_eq!(Regions::new(vec![10..30, 40..41], 16).room(), (10, 10));
    }
}
