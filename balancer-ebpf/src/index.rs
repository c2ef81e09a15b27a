//! Whose packet is it: frontends and endpoints by address, port and protocol.

use crate::maps::Tables;
use common::limits::{ENDPOINT_INDEX_BUCKETS, FRONTEND_INDEX_BUCKETS, INDEX_BUCKET_ENTRIES};
use common::tables::{Frontend, IndexBucket};
use common::{Addr, Be16, hash};

/// The frontend at an address, port and protocol: slot and entry.
#[inline(always)]
pub fn frontend(
    tables: Tables,
    addr: &Addr,
    port: Be16,
    proto: u8,
    seed: u64,
) -> Option<(u32, &'static Frontend)> {
    let hash = hash::service(addr, port, proto, seed);
    let (bucket, tag) = hash::index_slot(hash, FRONTEND_INDEX_BUCKETS);
    if !used(tables.frontend_used(bucket), bucket) {
        return None;
    }
    let bucket = tables.frontend_bucket(bucket);
    // Most buckets have one entry: that is worth a way of its own.
    let slot = first(bucket, tag);
    let entry = tables.frontend(slot);
    if slot != NONE && is(&entry.addr, entry.port, entry.proto, addr, port, proto) {
        return Some((slot, entry));
    }
    let mut at = 0;
    while at < INDEX_BUCKET_ENTRIES {
        let slot = next(bucket, tag, &mut at)?;
        let entry = tables.frontend(slot);
        if is(&entry.addr, entry.port, entry.proto, addr, port, proto) {
            return Some((slot, entry));
        }
    }
    None
}

/// The endpoint at an address, port and protocol: its slot.
#[inline(always)]
pub fn endpoint(tables: Tables, addr: &Addr, port: Be16, proto: u8, seed: u64) -> Option<u32> {
    let hash = hash::service(addr, port, proto, seed);
    let (bucket, tag) = hash::index_slot(hash, ENDPOINT_INDEX_BUCKETS);
    if !used(tables.endpoint_used(bucket), bucket) {
        return None;
    }
    let bucket = tables.endpoint_bucket(bucket);
    let slot = first(bucket, tag);
    let entry = tables.endpoint(slot);
    if slot != NONE && is(&entry.addr, entry.port, entry.proto, addr, port, proto) {
        return Some(slot);
    }
    let mut at = 0;
    while at < INDEX_BUCKET_ENTRIES {
        let slot = next(bucket, tag, &mut at)?;
        let entry = tables.endpoint(slot);
        if is(&entry.addr, entry.port, entry.proto, addr, port, proto) {
            return Some(slot);
        }
    }
    None
}

/// One number and one comparison, for the sake of a short path.
#[inline(always)]
fn is(have: &Addr, have_port: Be16, have_proto: u8, addr: &Addr, port: Be16, proto: u8) -> bool {
    let other = (have.0[0] ^ addr.0[0])
        | (have.0[1] ^ addr.0[1])
        | (have_port.0 ^ port.0) as u64
        | (have_proto ^ proto) as u64;
    other == 0
}

/// Whether the word of bits says that the bucket has entries.
#[inline(always)]
fn used(word: *const u64, bucket: u32) -> bool {
    // SAFETY: in the map's value.
    unsafe { word.read_volatile() >> (bucket & 63) & 1 != 0 }
}

const NONE: u32 = u32::MAX;

/// The slot of a bucket's first entry if it has this tag, else [`NONE`].
#[inline(always)]
fn first(bucket: *const IndexBucket, tag: u16) -> u32 {
    // SAFETY: in the map's value.
    let entry = unsafe { (&raw const (*bucket).0[0]).read_volatile() };
    if (entry >> 16) as u16 == tag {
        (entry & 0xffff).wrapping_sub(1)
    } else {
        NONE
    }
}

/// The slot of the next entry with this tag; `None` at the first free one.
#[inline(always)]
fn next(bucket: *const IndexBucket, tag: u16, at: &mut usize) -> Option<u32> {
    while *at < INDEX_BUCKET_ENTRIES {
        // SAFETY: `at` is below INDEX_BUCKET_ENTRIES.
        let entry = unsafe { (&raw const (*bucket).0[*at]).read_volatile() };
        *at += 1;
        if entry == 0 {
            return None;
        }
        if (entry >> 16) as u16 == tag {
            return Some((entry & 0xffff).wrapping_sub(1));
        }
    }
    None
}
