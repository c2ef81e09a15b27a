//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept in host order over words as loaded from the packet: the
//! checksum is independent of byte order as long as all words are loaded alike
//! (RFC 1071 section 2, part B).

use crate::{Addr, Be16};

/// Folds a sum of 16-bit words to 16 bits with end-around carry.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let mut s = (sum & 0xffff_ffff) + (sum >> 32);
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    s as u16
}

/// Sum of a 64-bit word's four 16-bit words, not folded.
#[inline(always)]
pub const fn sum64(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// Sum over an address as a pseudo-header counts it: for an IPv4-mapped address
/// only its four bytes.
#[inline(always)]
pub const fn sum_addr(addr: &Addr) -> u64 {
    if addr.is_v4() {
        addr.v4_word() as u64
    } else {
        sum64(addr.0[0]) + sum64(addr.0[1])
    }
}

/// The folded sum over an address and a port: what a frontend or backend
/// contributes to a TCP or UDP checksum.
#[inline(always)]
pub const fn sum_endpoint(addr: &Addr, port: Be16) -> u16 {
    fold(sum_addr(addr) + port.0 as u64)
}

/// The checksum field after words that sum to `old` were replaced by words that
/// sum to `new` (RFC 1624, equation 3). `old` and `new` must be folded.
#[inline(always)]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    update_wide(check, old as u32, new as u32)
}

/// [`update`] for sums of a few words that were not folded: below 15 * 65,535.
#[inline(always)]
pub const fn update_wide(check: u16, old: u32, new: u32) -> u16 {
    // Equation 3 adds the complement of `old`; in ones' complement arithmetic any
    // multiple of ffff less `old` is that, and this one cannot go below zero.
    let mut sum = (!check) as u32 + (0xffff * 16 - old) + new;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Sum over bytes in memory, as an odd or even run of 16-bit words from its
/// start (RFC 1071); for the host side and for tests.
pub fn sum_bytes(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    let mut words = bytes.chunks_exact(2);
    for w in &mut words {
        sum += u16::from_ne_bytes([w[0], w[1]]) as u64;
    }
    if let [last] = words.remainder() {
        sum += u16::from_ne_bytes([*last, 0]) as u64;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 3 gives these bytes and the sum ddf2.
    #[test]
    fn rfc_1071_example() {
        let sum = sum_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(fold(sum).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn update_equals_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..60),
            new in any::<[u8; 4]>(),
        ) {
            if bytes.len() % 2 == 1 { bytes.pop(); }
            let before = !fold(sum_bytes(&bytes));
            let old = fold(sum_bytes(&bytes[4..8]));
            bytes[4..8].copy_from_slice(&new);
            let after = !fold(sum_bytes(&bytes));
            let updated = update(before, old, fold(sum_bytes(&new)));
            // 0 and ffff are the same number in ones' complement.
            prop_assert!(updated == after || (updated ^ after) == 0xffff);
        }
    }
}
