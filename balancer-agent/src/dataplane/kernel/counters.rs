//! The per-CPU counters, and what the maps take of memory.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use common::counters::{Reason, Traffic};
use common::tables::names;
use zerocopy::IntoBytes;

use super::error::KernelError;
use super::load::Maps;

/// [`Traffic`] as the words that it is made of.
type TrafficWords = [u64; size_of::<Traffic>() / 8];

/// What the program counts. Values only rise, except that a slot's traffic is
/// zeroed when the slot gets a new owner.
pub(super) struct Counters {
    reasons: Mutex<PerCpuArray<MapData, u64>>,
    frontends: Mutex<PerCpuArray<MapData, TrafficWords>>,
    backends: Mutex<PerCpuArray<MapData, TrafficWords>>,
}

impl Counters {
    /// Takes the maps of the counters.
    pub fn new(maps: &mut Maps) -> Result<Self, KernelError> {
        let reasons = maps.take(names::REASONS)?;
        let frontends = maps.take(names::FRONTEND_TRAFFIC)?;
        let backends = maps.take(names::BACKEND_TRAFFIC)?;
        Ok(Self {
            reasons: Mutex::new(reasons.try_into().map_err(KernelError::load)?),
            frontends: Mutex::new(frontends.try_into().map_err(KernelError::load)?),
            backends: Mutex::new(backends.try_into().map_err(KernelError::load)?),
        })
    }

    /// By [`Reason`], summed over CPUs.
    pub fn reasons(&self) -> Result<Vec<u64>, KernelError> {
        let reasons = Reason::ALL.iter();
        reasons.map(|reason| self.reason(*reason)).collect()
    }

    /// Of one [`Reason`].
    pub fn reason(&self, reason: Reason) -> Result<u64, KernelError> {
        let map = lock(&self.reasons);
        let cpus = map.get(&(reason as u32), 0).map_err(KernelError::load)?;
        Ok(cpus.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n)))
    }

    /// Of frontend slots, summed over CPUs.
    pub fn frontends(&self, slots: &[u32]) -> Result<Vec<Traffic>, KernelError> {
        traffic(&lock(&self.frontends), slots)
    }

    /// Of backend slots, summed over CPUs.
    pub fn backends(&self, slots: &[u32]) -> Result<Vec<Traffic>, KernelError> {
        traffic(&lock(&self.backends), slots)
    }

    /// Zeroes a frontend slot.
    pub fn reset_frontend(&self, slot: u32) -> Result<(), KernelError> {
        reset(&mut lock(&self.frontends), slot)
    }

    /// Zeroes a backend slot.
    pub fn reset_backend(&self, slot: u32) -> Result<(), KernelError> {
        reset(&mut lock(&self.backends), slot)
    }
}

fn traffic(
    map: &PerCpuArray<MapData, TrafficWords>,
    slots: &[u32],
) -> Result<Vec<Traffic>, KernelError> {
    slots
        .iter()
        .map(|slot| {
            let cpus = map.get(slot, 0).map_err(KernelError::load)?;
            let mut sum = Traffic::default();
            for words in cpus.iter() {
                sum.add(&words_to_traffic(words));
            }
            Ok(sum)
        })
        .collect()
}

fn reset(map: &mut PerCpuArray<MapData, TrafficWords>, slot: u32) -> Result<(), KernelError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| KernelError::io(format!("cannot read {path}"))(error))?;
    let zero = PerCpuValues::try_from(vec![TrafficWords::default(); cpus])
        .map_err(KernelError::io("cannot count the CPUs"))?;
    map.set(slot, zero, 0).map_err(KernelError::load)
}

fn words_to_traffic(words: &TrafficWords) -> Traffic {
    let mut traffic = Traffic::default();
    traffic.as_mut_bytes().copy_from_slice(words.as_bytes());
    traffic
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of kernel memory behind the maps, as the kernel accounts for them.
pub(super) fn memory_bytes(maps: &Maps) -> u64 {
    maps.iter().map(|(_, map)| map_memory(map)).sum()
}

fn map_memory(map: &MapData) -> u64 {
    let fd = map.fd().as_fd().as_raw_fd();
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))
        .ok()
        .and_then(|text| memlock(&text))
        .unwrap_or(0)
}

fn memlock(fdinfo: &str) -> Option<u64> {
    let line = fdinfo.lines().find_map(|l| l.strip_prefix("memlock:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_account_is_read() {
        assert_eq!(
            memlock("map_type:\t2\nmemlock:\t4096\nfrozen:\t0\n"),
            Some(4096)
        );
        assert_eq!(memlock("map_type:\t2\n"), None);
    }

    #[test]
    fn traffic_keeps_the_order_of_its_fields() {
        let traffic = words_to_traffic(&[1, 2, 3, 4, 5, 6, 7, 0]);
        assert_eq!((traffic.packets_in, traffic.bytes_in), (1, 2));
        assert_eq!((traffic.packets_out, traffic.refused), (3, 7));
    }
}
