//! Fixed sizes of the kernel tables. The flow tables are sized by configuration
//! instead; everything here is cheap enough to be reserved once.

/// Frontend slots (64 bytes each).
pub const FRONTENDS: u32 = 8_192;
/// Backend slots (128 bytes each). A flow names its backend with 16 bits.
pub const BACKENDS: u32 = 32_768;
/// Endpoint slots: distinct backend addresses (32 bytes each).
pub const ENDPOINTS: u32 = 32_768;
/// Ring slots in one [`crate::tables::RingChunk`].
pub const RING_CHUNK_SLOTS: u32 = 16;
/// Chunks of ring slots that all rings share (64 bytes each).
pub const RING_CHUNKS: u32 = 65_536;
/// Longest ring, in slots: the sum of a pool's weights over their common divisor.
pub const RING_SLOTS_MAX: u32 = 65_536;
/// Ring slots that one new flow tries before it counts the pool as unavailable.
pub const RING_TRIES: u32 = 32;
/// Buckets of the frontend index (32 bytes each).
pub const FRONTEND_INDEX_BUCKETS: u32 = 8_192;
/// Buckets of the endpoint index (32 bytes each).
pub const ENDPOINT_INDEX_BUCKETS: u32 = 32_768;
/// Entries of one index bucket.
pub const INDEX_BUCKET_ENTRIES: usize = 8;
/// Device slots; a device's slot is its interface index modulo this number.
pub const DEVICES: u32 = 256;
/// Source addresses that `snat` can use, over all pools together.
pub const SNAT_ADDRESSES: u32 = 8;
/// Source ports of one `snat` address, shared by TCP and UDP.
pub const SNAT_PORTS: u32 = 65_536;
/// Ports that one new flow probes before the address counts as exhausted.
pub const SNAT_TRIES: u32 = 32;
/// Entries in one flow bucket.
pub const FLOW_BUCKET_ENTRIES: usize = 8;
/// Fragmented datagrams whose first fragment is remembered.
pub const FRAGMENTS: u32 = 16_384;
/// Bytes of the event ring (a power of two, at least a page).
pub const EVENT_RING_BYTES: u32 = 65_536;
