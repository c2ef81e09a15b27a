//! The seeded hash that places flows, frontends and endpoints in their buckets.
//!
//! One keyed function for everything: two 64-bit address words and 32 bits of
//! port and protocol go in, 64 bits come out. It multiplies and folds in the
//! manner of the MurmurHash3 finaliser, because BPF has a 64-bit multiply but no
//! wide one. The seed is secret and random per host, so that a client cannot aim
//! at one bucket.

use crate::{Addr, Be16};

const K1: u64 = 0x9E37_79B9_7F4A_7C15;
const K2: u64 = 0xBF58_476D_1CE4_E5B9;
const K3: u64 = 0x94D0_49BB_1331_11EB;

/// Hash of an address and 32 bits more.
#[inline(always)]
pub const fn mix(addr: &Addr, extra: u32, seed: u64) -> u64 {
    let mut h = (addr.0[0] ^ seed).wrapping_mul(K1);
    h ^= h >> 32;
    h = (h ^ addr.0[1]).wrapping_mul(K2);
    h ^= h >> 29;
    h = (h ^ extra as u64).wrapping_mul(K3);
    h ^ (h >> 32)
}

/// Hash of a client's address and port: the same for both directions of a flow.
#[inline(always)]
pub const fn client(addr: &Addr, port: Be16, seed: u64) -> u64 {
    mix(addr, port.0 as u32, seed)
}

/// Hash of an address, port and protocol that the balancer answers or serves from.
/// Cheaper than [`client`]: every packet of the host pays it twice, and what is in these
/// indexes the operator chose, not a stranger. Multiply-shift (Dietzfelbinger): only the
/// high bits of a product depend on all of its input.
#[inline(always)]
pub const fn service(addr: &Addr, port: Be16, proto: u8, seed: u64) -> u64 {
    let extra = port.0 as u64 | (proto as u64) << 16;
    let low = (addr.0[1] ^ addr.0[0].wrapping_mul(K2)).wrapping_mul(seed | 1);
    low.wrapping_add(extra.wrapping_mul(K1))
}

/// The first of a flow's two buckets; `mask` is the number of buckets less one.
#[inline(always)]
pub const fn first_bucket(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

/// The second bucket, never the first while there is more than one.
#[inline(always)]
pub const fn second_bucket(hash: u64, mask: u32) -> u32 {
    let first = hash as u32 & mask;
    let second = (hash >> 32) as u32 & mask;
    if second == first {
        (first ^ 1) & mask
    } else {
        second
    }
}

/// Where in its buckets a flow is looked for first: its home.
#[inline(always)]
pub const fn home(hash: u64) -> usize {
    (hash >> 61) as usize
}

/// Where it is looked for next: in the same cache line (IPv4), or in the one that comes
/// along with it (IPv6). Most flows are in one of the two.
#[inline(always)]
pub const fn beside(home: usize) -> usize {
    home ^ 1
}

/// The tag of a flow beside its bucket: bits that do not choose the bucket, and the
/// high one, so that it is never zero.
#[inline(always)]
pub const fn tag(hash: u64) -> u16 {
    (hash >> 46) as u16 | 0x8000
}

/// The bucket of an index, by the highest bits, and the tag of its entry, by those that
/// follow.
#[inline(always)]
pub const fn index_slot(hash: u64, buckets: u32) -> (u32, u16) {
    let bucket = (hash >> 40) as u32 >> (24 - buckets.trailing_zeros());
    (bucket & (buckets - 1), (hash >> 32) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_differ_and_spread() {
        let mask = 1023;
        let mut load = [0u32; 1024];
        for i in 0..65_536u32 {
            let addr = Addr::from_v4_word((0x0a00_0000 + i / 256).to_be());
            let h = client(&addr, Be16::new(1024 + (i % 256) as u16), 7);
            let (a, b) = (first_bucket(h, mask), second_bucket(h, mask));
            assert_ne!(a, b);
            load[a as usize] += 1;
        }
        // Mean 64; six standard deviations are 48.
        assert!(
            load.iter().all(|n| (16..=112).contains(n)),
            "uneven: {load:?}"
        );
    }

    #[test]
    fn seed_changes_the_place() {
        let addr = Addr::from_v4_word(1);
        assert_ne!(client(&addr, Be16(1), 1), client(&addr, Be16(1), 2));
    }
}
