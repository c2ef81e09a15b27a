//! The maps. `common::tables` says what is in them; the agent sizes the flow
//! tables when it loads the program.
//!
//! All arrays can be mapped into the agent's memory. A lookup in an array costs
//! no helper call: the verifier replaces it by a bounds check and an addition.

use crate::parse::Packet;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, RingBuf};
use common::counters::Reason;
use common::flow::{Bucket, Flow4, Flow6, Tags};
use common::limits;
use common::tables::{
    Backend, Counters, Cursor, Device, Endpoint, Forwarding, FragmentKey, Frontend, Header,
    IndexBucket, RingChunk, Settings, SnatAddress, SnatPort,
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

/// One of the settings: a constant to the verifier. Field by field, since a load of
/// the whole would be a load of each.
macro_rules! setting {
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> $type {
            let settings = (&raw const SETTINGS).cast::<Settings>();
            // SAFETY: a Global is the value that it was made of.
            unsafe { (&raw const (*settings).$name).read_volatile() }
        }
    };
}

setting!(
    /// Secret seed of every hash.
    seed: u64
);
setting!(
    /// Buckets of the established IPv4 flows less one.
    flow4_mask: u32
);
setting!(
    /// Buckets of the established IPv6 flows less one.
    flow6_mask: u32
);
setting!(
    /// Buckets of the half-open flows less one.
    half_open_mask: u32
);

/// What the clock showed at a tick of the kernel's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reading {
    /// The tick; zero before the first reading, when no clock stands there.
    pub tick: u64,
    /// Nanoseconds of the coarse monotonic clock.
    pub ns: u64,
}

/// The packet at hand, for everything beyond the fast path. On the stack the
/// verifier would know each field by value and walk that code again for every
/// combination; from here all values are alike to it. No packet overtakes another
/// on one CPU.
#[map]
pub static SCRATCH: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);
/// Eight bytes to pass a number through that the verifier should forget.
#[map]
pub static CELL: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The clock as this CPU read it last.
#[map]
pub static CLOCK: PerCpuArray<Reading> = PerCpuArray::with_max_entries(1, 0);
/// The reason to report of the packet at hand, plus one.
#[map]
pub static NOTED: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// When each reason was last reported, by CPU.
#[map]
pub static REPORTED: PerCpuArray<u32> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);
#[map]
pub static HEADER: Array<Header> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FORWARDING: Array<Forwarding> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static COUNTERS: Array<Counters> = Array::with_max_entries(1, BPF_F_MMAPABLE);
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
pub static TAGS4: Array<Tags> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static TAGS6: Array<Tags> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static TAGS_HALF_OPEN: Array<Tags> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
pub static HANDS: Array<u64> = Array::with_max_entries(2, 0);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32> =
    LruHashMap::with_max_entries(limits::FRAGMENTS, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(limits::EVENT_RING_BYTES, 0);

/// The fixed tables. A slot is cut to the table's size, which the verifier takes for
/// a bound: whoever wrote it wrote one below that.
#[derive(Clone, Copy)]
pub struct Tables(*mut Forwarding);

macro_rules! entry {
    ($tables:expr, $field:ident, $entry:ty, $len:expr, $slot:expr) => {{
        // SAFETY: the field lies in the map's value, and the slot in the field.
        unsafe {
            (&raw mut (*$tables.0).$field)
                .cast::<$entry>()
                .wrapping_add(($slot & ($len - 1)) as usize)
        }
    }};
}

impl Tables {
    /// Looks them up: always there.
    #[inline(always)]
    pub fn new() -> Option<Self> {
        FORWARDING.get_ptr_mut(0).map(Self)
    }

    /// The frontend at a slot.
    #[inline(always)]
    pub fn frontend(self, slot: u32) -> &'static Frontend {
        let entry = entry!(self, frontends, Frontend, limits::FRONTENDS, slot);
        // SAFETY: the entry of a map; the agent writes what is not a single word
        // only while nothing names the slot.
        unsafe { &*entry }
    }

    /// The backend at a slot.
    #[inline(always)]
    pub fn backend(self, slot: u32) -> *const Backend {
        entry!(self, backends, Backend, limits::BACKENDS, slot)
    }

    /// The endpoint at a slot.
    #[inline(always)]
    pub fn endpoint(self, slot: u32) -> &'static Endpoint {
        let entry = entry!(self, endpoints, Endpoint, limits::ENDPOINTS, slot);
        // SAFETY: as for `frontend`.
        unsafe { &*entry }
    }

    /// The bits of the frontends' index that a bucket's is among.
    #[inline(always)]
    pub fn frontend_used(self, bucket: u32) -> *const u64 {
        let len = limits::FRONTEND_INDEX_BUCKETS / 64;
        entry!(self, frontend_used, u64, len, bucket / 64)
    }

    /// The bits of the endpoints' index that a bucket's is among.
    #[inline(always)]
    pub fn endpoint_used(self, bucket: u32) -> *const u64 {
        let len = limits::ENDPOINT_INDEX_BUCKETS / 64;
        entry!(self, endpoint_used, u64, len, bucket / 64)
    }

    /// A bucket of the frontends' index.
    #[inline(always)]
    pub fn frontend_bucket(self, bucket: u32) -> *const IndexBucket {
        let len = limits::FRONTEND_INDEX_BUCKETS;
        entry!(self, frontend_index, IndexBucket, len, bucket)
    }

    /// A bucket of the endpoints' index.
    #[inline(always)]
    pub fn endpoint_bucket(self, bucket: u32) -> *const IndexBucket {
        let len = limits::ENDPOINT_INDEX_BUCKETS;
        entry!(self, endpoint_index, IndexBucket, len, bucket)
    }

    /// The round-robin position of a frontend.
    #[inline(always)]
    pub fn cursor(self, slot: u32) -> *mut Cursor {
        entry!(self, cursors, Cursor, limits::FRONTENDS, slot)
    }

    /// A piece of a ring.
    #[inline(always)]
    pub fn chunk(self, chunk: u32) -> *const RingChunk {
        entry!(self, rings, RingChunk, limits::RING_CHUNKS, chunk)
    }

    /// The device with an interface index, or another of the same slot.
    #[inline(always)]
    pub fn device(self, slot: u32) -> &'static Device {
        let entry = entry!(self, devices, Device, limits::DEVICES, slot);
        // SAFETY: as for `frontend`.
        unsafe { &*entry }
    }

    /// A source address.
    #[inline(always)]
    pub fn snat(self, slot: u32) -> *mut SnatAddress {
        let len = limits::SNAT_ADDRESSES;
        entry!(self, snat_addresses, SnatAddress, len, slot)
    }
}

/// This CPU's counters. XDP programs do not preempt each other.
#[inline(always)]
pub fn counters() -> Option<*mut Counters> {
    // SAFETY: no arguments.
    COUNTERS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() } as u32)
}
