//! The kernel tables as the agent sees them.
//!
//! [`Tables`] is plain shared memory: of the kernel's maps in production
//! (`kernel.rs`, the only file that names aya), of the heap in unit tests. What
//! is not plain memory (attaching, pinning, events) is the kernel side's alone.

pub mod counters;
pub mod flows;
pub mod index;
pub mod kernel;
pub mod mapped;
pub mod object;

use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::flow::{Bucket, Flow4, Flow6, Tags};
use common::limits;
use common::tables::{
    self, Backend, Cursor, Device, Endpoint, Forwarding, Frontend, Header, RingChunk, Settings,
    SnatAddress, SnatPort, names,
};
use counters::Counters;
use index::ServiceIndex;
use mapped::{Mapped, Memory};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Every table that the agent reads or writes through memory.
#[derive(Debug)]
pub struct Tables {
    /// Describes the rest.
    pub header: Mapped<Header>,
    /// By slot.
    pub frontends: Mapped<Frontend>,
    /// See [`common::tables::index_entry`].
    pub frontend_index: ServiceIndex,
    /// By frontend slot.
    pub cursors: Mapped<Cursor>,
    /// All rings.
    pub rings: Mapped<RingChunk>,
    /// By slot.
    pub backends: Mapped<Backend>,
    /// By slot.
    pub endpoints: Mapped<Endpoint>,
    /// See [`common::tables::index_entry`].
    pub endpoint_index: ServiceIndex,
    /// By interface index modulo the table's length.
    pub devices: Mapped<Device>,
    /// By slot.
    pub snat_addresses: Mapped<SnatAddress>,
    /// By address slot times [`limits::SNAT_PORTS`] plus port.
    pub snat_ports: Mapped<SnatPort>,
    /// Established IPv4 flows.
    pub flows4: FlowTable<Flow4>,
    /// Established IPv6 flows.
    pub flows6: FlowTable<Flow6>,
    /// Half-open flows.
    pub half_open: FlowTable<Flow6>,
    /// What the program has counted.
    pub counters: Counters,
}

/// A table of flows.
#[derive(Debug)]
pub struct FlowTable<E: Copy> {
    /// Its entries.
    pub buckets: Mapped<Bucket<E>>,
    /// Beside each bucket, what its entries' flows are known by.
    pub tags: Mapped<Tags>,
}

impl<E: Copy + FromBytes + IntoBytes + Immutable> FlowTable<E>
where
    Bucket<E>: FromBytes + IntoBytes + Immutable,
{
    /// Bytes of memory behind the table.
    pub fn bytes(&self) -> usize {
        self.buckets.bytes() + self.tags.bytes()
    }
}

/// A map that could not be mapped into memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {name} into memory: {error}")]
pub struct MapFailure {
    /// The map's name.
    pub name: &'static str,
    /// What `mmap` said.
    pub error: std::io::Error,
}

/// Bytes of the counters of `cpus` CPUs.
fn counters_bytes(cpus: usize) -> usize {
    cpus * size_of::<tables::Counters>()
}

impl Tables {
    /// The tables in the kernel's maps, which `open` gives by name. `cpus` is the
    /// number of possible CPUs.
    ///
    /// # Errors
    /// What `mmap` says, with the map's name, or what `open` says.
    pub fn kernel<'a, E>(
        settings: Settings,
        cpus: usize,
        open: impl Fn(&'static str) -> Result<BorrowedFd<'a>, E>,
    ) -> Result<Self, E>
    where
        E: From<MapFailure>,
    {
        Self::make(settings, cpus, |name, bytes| {
            Memory::kernel(open(name)?, bytes).map_err(|error| MapFailure { name, error }.into())
        })
    }

    /// Tables on the heap: the fake for unit tests.
    pub fn heap(settings: Settings) -> Self {
        let made = Self::make(settings, 2, |_, bytes| {
            Ok::<_, std::convert::Infallible>(Memory::heap(bytes))
        });
        let tables = match made {
            Ok(tables) => tables,
            Err(never) => match never {},
        };
        tables.write_header(settings);
        tables
    }

    fn make<E>(
        settings: Settings,
        cpus: usize,
        memory: impl Fn(&'static str, usize) -> Result<Memory, E>,
    ) -> Result<Self, E> {
        let forwarding = Arc::new(memory(names::FORWARDING, size_of::<Forwarding>())?);
        let counters = Arc::new(memory(names::COUNTERS, counters_bytes(cpus))?);
        macro_rules! part {
            ($field:ident, $len:expr) => {
                Mapped::part(&forwarding, offset_of!(Forwarding, $field), $len)
            };
        }
        macro_rules! index {
            ($buckets:ident, $used:ident, $len:expr) => {
                ServiceIndex::new(part!($buckets, $len), part!($used, $len / 64))
            };
        }
        macro_rules! whole {
            ($name:expr, $entry:ty, $len:expr) => {
                Mapped::part(
                    &Arc::new(memory($name, size_of::<$entry>() * $len as usize)?),
                    0,
                    $len,
                )
            };
        }
        macro_rules! flows {
            ($name:expr, $tags:expr, $entry:ty, $mask:expr) => {
                FlowTable {
                    buckets: whole!($name, Bucket<$entry>, $mask + 1),
                    tags: whole!($tags, Tags, $mask + 1),
                }
            };
        }
        let ports = limits::SNAT_ADDRESSES * limits::SNAT_PORTS;
        Ok(Self {
            header: whole!(names::HEADER, Header, 1),
            frontends: part!(frontends, limits::FRONTENDS),
            frontend_index: index!(
                frontend_index,
                frontend_used,
                limits::FRONTEND_INDEX_BUCKETS
            ),
            cursors: part!(cursors, limits::FRONTENDS),
            rings: part!(rings, limits::RING_CHUNKS),
            backends: part!(backends, limits::BACKENDS),
            endpoints: part!(endpoints, limits::ENDPOINTS),
            endpoint_index: index!(
                endpoint_index,
                endpoint_used,
                limits::ENDPOINT_INDEX_BUCKETS
            ),
            devices: part!(devices, limits::DEVICES),
            snat_addresses: part!(snat_addresses, limits::SNAT_ADDRESSES),
            snat_ports: whole!(names::SNAT_PORTS, SnatPort, ports),
            flows4: flows!(names::FLOWS4, names::TAGS4, Flow4, settings.flow4_mask),
            flows6: flows!(names::FLOWS6, names::TAGS6, Flow6, settings.flow6_mask),
            half_open: flows!(
                names::HALF_OPEN,
                names::TAGS_HALF_OPEN,
                Flow6,
                settings.half_open_mask
            ),
            counters: Counters::new(&counters, cpus),
        })
    }

    /// Says that the tables are of this version, and how they were sized.
    pub fn write_header(&self, settings: Settings) {
        self.header.write(
            0,
            Header {
                abi_version: common::ABI_VERSION,
                settings,
                ..Header::default()
            },
        );
    }

    /// One more than the highest chunk that a ring was ever written to, as far as
    /// [`Self::raise_ring_end`] was told.
    pub fn ring_end(&self) -> u32 {
        self.ring_end_word().load(Ordering::Acquire)
    }

    /// Remembers that the chunks below `end` may have been used, across restarts of the
    /// agent. It never goes down.
    pub fn raise_ring_end(&self, end: u32) {
        self.ring_end_word().fetch_max(end, Ordering::Release);
    }

    fn ring_end_word(&self) -> &AtomicU32 {
        self.header.atomic_u32(0, offset_of!(Header, ring_end))
    }

    /// The settings that the tables were made with.
    pub fn settings(&self) -> Settings {
        self.header.read(0).settings
    }
}
