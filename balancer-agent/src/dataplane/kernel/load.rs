//! Loads the program against the pinned maps, and maps those into memory.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::maps::{Map, MapData, MapType};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use common::flow::{Bucket, Flow4, Flow6, Tags};
use common::tables::{
    Counters, Forwarding, FragmentKey, HANDS_IN_WORD, Header, Settings, SnatPort, names,
};
use common::{ABI_VERSION, limits};
use zerocopy::IntoBytes;

use super::error::{KernelError, chain};
use crate::dataplane::Tables;

/// Flag of maps that can be mapped into memory (linux/bpf.h).
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Reads the object and brings it together with its maps: those that are pinned
/// in `maps` are used, the others made and pinned there. The program is not yet
/// in the kernel.
///
/// # Errors
/// [`KernelError::Object`] when the object lacks what the agent needs, else
/// [`KernelError::Load`].
pub(super) fn prepare(
    object: &[u8],
    settings: Settings,
    cpus: usize,
    maps: &Path,
) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader.override_global(names::SETTINGS, settings.as_bytes(), true);
    for (name, entries) in entries(settings, cpus) {
        loader.map_max_entries(name, entries);
    }
    for name in names::PINNED {
        loader.map_pin_path(name, maps.join(name));
    }
    loader.load(object).map_err(|error| match error {
        aya::EbpfError::ParseError(error) => KernelError::Object {
            what: chain(&error),
        },
        other => KernelError::load(other),
    })
}

/// The XDP program of a loaded object.
pub(super) fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, KernelError> {
    let missing = || KernelError::Object {
        what: format!("it has no XDP program `{}`", names::PROGRAM),
    };
    ebpf.program_mut(names::PROGRAM)
        .and_then(|p| p.try_into().ok())
        .ok_or_else(missing)
}

/// The pinned maps, by name, each checked to be what this build takes it for.
pub(super) struct Maps(BTreeMap<&'static str, MapData>);

impl Maps {
    /// Opens all of them.
    ///
    /// # Errors
    /// What is missing or has another shape: memory beyond a map's end must never
    /// be touched, whatever the version in its header.
    pub fn open(maps: &Path, settings: Settings, cpus: usize) -> Result<Self, String> {
        let mut opened = BTreeMap::new();
        for (name, shape) in shapes(settings, cpus) {
            let map = MapData::from_pin(maps.join(name))
                .map_err(|e| format!("map {name} can't be opened: {}", chain(&e)))?;
            let info = map
                .info()
                .map_err(|e| format!("map {name} can't be asked: {}", chain(&e)))?;
            let found = Shape {
                kind: info.map_type().unwrap_or(MapType::Unspecified),
                key: info.key_size(),
                value: info.value_size(),
                entries: info.max_entries(),
                flags: info.map_flags() & BPF_F_MMAPABLE,
            };
            if found != shape {
                return Err(format!("map {name} is {found:?}, not {shape:?}"));
            }
            opened.insert(name, map);
        }
        Ok(Self(opened))
    }

    /// Maps the tables into memory.
    pub fn tables(&self, settings: Settings, cpus: usize) -> Result<Tables, KernelError> {
        Tables::kernel(settings, cpus, |name| Ok(self.map(name)?.fd().as_fd()))
    }

    /// Bytes of kernel memory behind the maps, as the kernel accounts for them.
    pub fn memory_bytes(&self) -> u64 {
        self.0.values().map(map_memory).sum()
    }

    /// Takes a map out, as what `open` has checked it to be.
    pub fn take(&mut self, name: &'static str) -> Result<Map, KernelError> {
        let map = self.0.remove(name).ok_or_else(|| unknown(name))?;
        Map::from_map_data(map).map_err(KernelError::load)
    }

    fn map(&self, name: &'static str) -> Result<&MapData, KernelError> {
        self.0.get(name).ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &str) -> KernelError {
    KernelError::Object {
        what: format!("there is no map {name}"),
    }
}

/// Writes the header of fresh maps. The version goes last: a header without one
/// says that the rest may be missing.
pub(super) fn write_header(tables: &Tables, settings: Settings, netns_cookie: u64) {
    let header = Header {
        abi_version: 0,
        ring_end: 0,
        settings,
        netns_cookie,
    };
    tables.header.write(0, header);
    let version = std::mem::offset_of!(Header, abi_version);
    tables.header.store_u32(0, version, ABI_VERSION);
}

/// The number of possible CPUs: each has an entry of the counters.
///
/// # Errors
/// When the kernel's list of them can't be read.
pub(super) fn cpus() -> Result<usize, KernelError> {
    aya::util::nr_cpus()
        .map_err(|(path, error)| KernelError::io(format!("cannot read {path}"))(error))
}

/// Entries of the maps that are not always of one size.
pub fn entries(settings: Settings, cpus: usize) -> [(&'static str, u32); 8] {
    [
        (names::FLOWS4, settings.flow4_mask + 1),
        (names::TAGS4, settings.flow4_mask + 1),
        (names::FLOWS6, settings.flow6_mask + 1),
        (names::TAGS6, settings.flow6_mask + 1),
        (names::HALF_OPEN, settings.half_open_mask + 1),
        (names::TAGS_HALF_OPEN, settings.half_open_mask + 1),
        (
            names::HANDS,
            (settings.half_open_mask + 1).div_ceil(HANDS_IN_WORD),
        ),
        (names::COUNTERS, cpus as u32),
    ]
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

#[derive(Debug, PartialEq)]
struct Shape {
    kind: MapType,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

fn shapes(settings: Settings, cpus: usize) -> Vec<(&'static str, Shape)> {
    fn table<T>(name: &'static str, entries: u32) -> (&'static str, Shape) {
        let shape = Shape {
            kind: MapType::Array,
            key: 4,
            value: size_of::<T>() as u32,
            entries,
            flags: BPF_F_MMAPABLE,
        };
        (name, shape)
    }
    let fragments = Shape {
        kind: MapType::LruHash,
        key: size_of::<FragmentKey>() as u32,
        value: 4,
        entries: limits::FRAGMENTS,
        flags: 0,
    };
    let events = Shape {
        kind: MapType::RingBuf,
        key: 0,
        value: 0,
        entries: limits::EVENT_RING_BYTES,
        flags: 0,
    };
    vec![
        table::<Header>(names::HEADER, 1),
        table::<Forwarding>(names::FORWARDING, 1),
        table::<SnatPort>(
            names::SNAT_PORTS,
            limits::SNAT_ADDRESSES * limits::SNAT_PORTS,
        ),
        table::<Bucket<Flow4>>(names::FLOWS4, settings.flow4_mask + 1),
        table::<Bucket<Flow6>>(names::FLOWS6, settings.flow6_mask + 1),
        table::<Bucket<Flow6>>(names::HALF_OPEN, settings.half_open_mask + 1),
        table::<Tags>(names::TAGS4, settings.flow4_mask + 1),
        table::<Tags>(names::TAGS6, settings.flow6_mask + 1),
        table::<Tags>(names::TAGS_HALF_OPEN, settings.half_open_mask + 1),
        (names::FRAGMENTS, fragments),
        table::<Counters>(names::COUNTERS, cpus as u32),
        (names::EVENTS, events),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pinned_map_has_a_shape() {
        let mut shaped: Vec<_> = shapes(Settings::default(), 2)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let mut pinned = names::PINNED.to_vec();
        shaped.sort_unstable();
        pinned.sort_unstable();
        assert_eq!(shaped, pinned);
    }

    #[test]
    fn the_kernels_account_is_read() {
        assert_eq!(
            memlock("map_type:\t2\nmemlock:\t4096\nfrozen:\t0\n"),
            Some(4096)
        );
        assert_eq!(memlock("map_type:\t2\n"), None);
    }

    #[test]
    fn the_version_completes_the_header() {
        let settings = Settings {
            seed: 5,
            flow4_mask: 1,
            flow6_mask: 3,
            half_open_mask: 1,
            reserved: 0,
        };
        let tables = Tables::heap(settings);
        tables.header.write(0, Header::default());
        write_header(&tables, settings, 77);
        let header = tables.header.read(0);
        assert_eq!(header.abi_version, ABI_VERSION);
        assert_eq!((header.settings, header.netns_cookie), (settings, 77));
    }
}
