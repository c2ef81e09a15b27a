//! The kernel tables as the agent sees them.
//!
//! [`Tables`] is plain shared memory: of the kernel's maps in production
//! (`kernel.rs`, the only file that names aya), of the heap in unit tests. What
//! is not plain memory (per-CPU counters, attaching, pinning, events) is the
//! kernel side's alone.

pub mod flows;
pub mod kernel;
pub mod mapped;
pub mod object;

use common::flow::{Bucket, Flow4, Flow6};
use common::limits;
use common::tables::{
    Backend, Cursor, Device, Endpoint, Frontend, Header, IndexBucket, RingChunk, Settings,
    SnatAddress, SnatPort,
};
use mapped::Mapped;

/// Every table that the agent reads or writes through memory.
#[derive(Debug)]
pub struct Tables {
    /// Describes the rest.
    pub header: Mapped<Header>,
    /// By slot.
    pub frontends: Mapped<Frontend>,
    /// See [`common::tables::index_entry`].
    pub frontend_index: Mapped<IndexBucket>,
    /// By frontend slot.
    pub cursors: Mapped<Cursor>,
    /// All rings.
    pub rings: Mapped<RingChunk>,
    /// By slot.
    pub backends: Mapped<Backend>,
    /// By slot.
    pub endpoints: Mapped<Endpoint>,
    /// See [`common::tables::index_entry`].
    pub endpoint_index: Mapped<IndexBucket>,
    /// By interface index modulo the table's length.
    pub devices: Mapped<Device>,
    /// By slot.
    pub snat_addresses: Mapped<SnatAddress>,
    /// By address slot times [`limits::SNAT_PORTS`] plus port.
    pub snat_ports: Mapped<SnatPort>,
    /// Established IPv4 flows.
    pub flows4: Mapped<Bucket<Flow4>>,
    /// Established IPv6 flows.
    pub flows6: Mapped<Bucket<Flow6>>,
    /// Half-open flows.
    pub half_open: Mapped<Bucket<Flow6>>,
}

impl Tables {
    /// Tables on the heap: the fake for unit tests.
    pub fn heap(settings: Settings) -> Self {
        let tables = Self {
            header: Mapped::heap(1),
            frontends: Mapped::heap(limits::FRONTENDS),
            frontend_index: Mapped::heap(limits::FRONTEND_INDEX_BUCKETS),
            cursors: Mapped::heap(limits::FRONTENDS),
            rings: Mapped::heap(limits::RING_CHUNKS),
            backends: Mapped::heap(limits::BACKENDS),
            endpoints: Mapped::heap(limits::ENDPOINTS),
            endpoint_index: Mapped::heap(limits::ENDPOINT_INDEX_BUCKETS),
            devices: Mapped::heap(limits::DEVICES),
            snat_addresses: Mapped::heap(limits::SNAT_ADDRESSES),
            snat_ports: Mapped::heap(limits::SNAT_ADDRESSES * limits::SNAT_PORTS),
            flows4: Mapped::heap(settings.flow4_mask + 1),
            flows6: Mapped::heap(settings.flow6_mask + 1),
            half_open: Mapped::heap(settings.half_open_mask + 1),
        };
        tables.header.write(
            0,
            Header {
                abi_version: common::ABI_VERSION,
                settings,
                ..Header::default()
            },
        );
        tables
    }

    /// The settings that the tables were made with.
    pub fn settings(&self) -> Settings {
        self.header.read(0).settings
    }
}
