//! The maps. `common::tables` says what is in them; the agent sizes the flow
//! tables when it loads the program.
//!
//! All arrays can be mapped into the agent's memory. A lookup in an array costs
//! no helper call: the verifier replaces it by a bounds check and an addition.

use crate::parse::Packet;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};
use common::counters::{Reason, Traffic};
use common::flow::{Bucket, Flow4, Flow6};
use common::limits;
use common::tables::{
    Backend, Cursor, Device, Endpoint, FragmentKey, Frontend, Header, IndexBucket, RingChunk,
    Settings, SnatAddress, SnatPort,
};

/// Constants of this load; the agent patches them.
#[unsafe(no_mangle)]
pub static SETTINGS: Global<Settings> = Global::new(Settings {
    seed: 0,
    flow4_mask: 1,
    flow6_mask: 1,
    half_open_mask: 1,
    reserved: 0,
});

/// The packet at hand, for everything beyond the fast path. On the stack the
/// verifier would know each field by value and walk that code again for every
/// combination; from here all values are alike to it. No packet overtakes another
/// on one CPU.
#[map]
pub static SCRATCH: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);
/// Eight bytes to pass a number through that the verifier should forget.
#[map]
pub static CELL: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The reason to report of the packet at hand, plus one.
#[map]
pub static NOTED: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// When each reason was last reported, by CPU.
#[map]
pub static REPORTED: PerCpuArray<u32> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);
#[map]
pub static HEADER: Array<Header> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static FRONTENDS: Array<Frontend> = Array::with_max_entries(limits::FRONTENDS, BPF_F_MMAPABLE);
#[map]
pub static FRONTEND_INDEX: Array<IndexBucket> =
    Array::with_max_entries(limits::FRONTEND_INDEX_BUCKETS, BPF_F_MMAPABLE);
#[map]
pub static CURSORS: Array<Cursor> = Array::with_max_entries(limits::FRONTENDS, BPF_F_MMAPABLE);
#[map]
pub static RINGS: Array<RingChunk> = Array::with_max_entries(limits::RING_CHUNKS, BPF_F_MMAPABLE);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(limits::BACKENDS, BPF_F_MMAPABLE);
#[map]
pub static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(limits::ENDPOINTS, BPF_F_MMAPABLE);
#[map]
pub static ENDPOINT_INDEX: Array<IndexBucket> =
    Array::with_max_entries(limits::ENDPOINT_INDEX_BUCKETS, BPF_F_MMAPABLE);
#[map]
pub static DEVICES: Array<Device> = Array::with_max_entries(limits::DEVICES, BPF_F_MMAPABLE);
#[map]
pub static SNAT_ADDRESSES: Array<SnatAddress> =
    Array::with_max_entries(limits::SNAT_ADDRESSES, BPF_F_MMAPABLE);
#[map]
pub static SNAT_PORTS: Array<SnatPort> =
    Array::with_max_entries(limits::SNAT_ADDRESSES * limits::SNAT_PORTS, BPF_F_MMAPABLE);
#[map]
pub static FLOWS4: Array<Bucket<Flow4>> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static FLOWS6: Array<Bucket<Flow6>> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static HALF_OPEN: Array<Bucket<Flow6>> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32> =
    LruHashMap::with_max_entries(limits::FRAGMENTS, 0);
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);
#[map]
pub static FRONTEND_TRAFFIC: PerCpuArray<Traffic> =
    PerCpuArray::with_max_entries(limits::FRONTENDS, 0);
#[map]
pub static BACKEND_TRAFFIC: PerCpuArray<Traffic> =
    PerCpuArray::with_max_entries(limits::BACKENDS, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(limits::EVENT_RING_BYTES, 0);
