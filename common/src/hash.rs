//! The seeded hash that places flows, frontends and endpoints in their buckets.
//!
//! Flows: two 64-bit address words and a port go in, 64 bits come out. It multiplies
//! and folds in the manner of the MurmurHash3 finaliser, because BPF has a 64-bit
//! multiply but no wide one. The seed is secret and random per host, so that a client
//! cannot aim at one bucket.

use crate::{Addr, Be16};

const K1: u64 = 0x9E37_79B9_7F4A_7C15;
const K2: u64 = 0xBF58_476D_1CE4_E5B9;
const K3: u64 = 0x94D0_49BB_1331_11EB;

/// Hash of a client's address and port: the same for both directions of a flow.
///
/// An IPv4 address lies in the low half before the first multiplication, as a product's
/// bits depend on no higher ones of its factors. The port comes in after that, so that
/// nobody can make up for a change of the address by one of the port.
#[inline(always)]
pub const fn client(addr: &Addr, port: Be16, seed: u64) -> u64 {
    let high = addr.0[0].wrapping_mul(K1);
    let mut h = addr.0[1].rotate_right(32) ^ high ^ (high >> 32) ^ seed;
    h ^= h >> 32;
    h = h.wrapping_mul(K2);
    h ^= h >> 29;
    h = (h ^ port.0 as u64).wrapping_mul(K3);
    h ^ (h >> 32)
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

/// Places in the order in which a flow is looked for there: its home, the one beside it
/// in the same cache line (IPv4) or in the one that comes along with it (IPv6), then the
/// neighbours of these two, in the same page. Most flows are in one of the first two, and
/// nearly all in one of the four.
pub const NEAR: usize = 4;

/// The place after `step` others, in that order.
#[inline(always)]
pub const fn near(home: usize, step: usize) -> usize {
    home ^ step
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

    /// Clients come as they like: each pattern must fit the table, as two choices of a
    /// bucket make it at half load.
    #[test]
    fn no_pattern_of_clients_overflows_both_buckets() {
        const FLOWS: u32 = 65_536;
        let mask = FLOWS * 2 / 8 - 1;
        for ports in [1, 16, 256, 4_096, 16_384] {
            for first_port in [1_024u16, 32_768, 40_000, 49_152] {
                for v4 in [true, false] {
                    let seed = u64::from(first_port).wrapping_mul(K1) ^ u64::from(ports);
                    let mut load = [0u8; FLOWS as usize / 4];
                    for n in 0..FLOWS {
                        let addr = match v4 {
                            true => Addr::from_v4_word((0x0a00_0000 + n / ports).to_be()),
                            false => Addr([0x20, u64::from(n / ports).to_be()]),
                        };
                        let port = Be16::new(first_port.wrapping_add((n % ports) as u16));
                        let h = client(&addr, port, seed);
                        let (a, b) = (first_bucket(h, mask), second_bucket(h, mask));
                        let emptier = if load[a as usize] <= load[b as usize] {
                            a
                        } else {
                            b
                        };
                        load[emptier as usize] += 1;
                    }
                    let most = load.iter().max();
                    assert!(
                        most <= Some(&8),
                        "{most:?}: {ports} ports from {first_port}, {v4}"
                    );
                }
            }
        }
    }

    #[test]
    fn seed_changes_the_place() {
        let addr = Addr::from_v4_word(1);
        assert_ne!(client(&addr, Be16(1), 1), client(&addr, Be16(1), 2));
    }
}
