//! The stable hash and the weighted rendezvous choice built on it.
//!
//! Every node of a cluster, whatever its version, architecture or start time, must send
//! the same session to the same backend when it fails over at the same moment. So nothing
//! here has a seed, and nothing depends on the platform's mathematics library.
//!
//! - [`text`]: FNV-1a with 64 bits over the bytes, then [`mix`];
//! - [`mix`]: the finalizer of MurmurHash3 (`fmix64`);
//! - [`pair`]: `mix(mix(key) + backend)`, where `backend` is [`text`] of the backend's route;
//! - score of a backend: `weight / -ln(u)`, `u = (pair + 1/2) / 2^64` (Schindelhauer and
//!   Schomaker 2005); the largest wins, of equals the one with the smaller hash. Removing a
//!   backend moves its own keys only; a change of weight moves keys only to or from it.
//!
//! The hash is no secret and no authenticator: who may choose a session id may choose where
//! it fails over to, as who may write a route may choose the backend anyway.

use std::net::IpAddr;

/// Hash of a name or a session id.
pub fn text(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// Hash of an address; one that is IPv4 inside of IPv6 is taken as IPv4.
pub fn address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => text(&v4.octets()),
        IpAddr::V6(v6) => text(&v6.octets()),
    }
}

/// Spreads every bit over all.
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// Hash of a key together with a backend.
pub const fn pair(key: u64, backend: u64) -> u64 {
    mix(mix(key).wrapping_add(backend))
}

/// What competes for a key.
#[derive(Clone, Copy, Debug)]
pub struct Competitor {
    /// What the caller knows it by.
    pub index: usize,
    /// [`text`] of its route.
    pub hash: u64,
    /// Its share; one of 0 never wins.
    pub weight: u16,
}

/// The winner of `key`, as [`Competitor::index`]. `None` without a competitor of weight.
pub fn rendezvous(key: u64, competitors: impl Iterator<Item = Competitor>) -> Option<usize> {
    let mut best: Option<(f64, Competitor)> = None;
    for one in competitors.filter(|c| c.weight > 0) {
        let score = f64::from(one.weight) / minus_ln(pair(key, one.hash));
        let wins = best
            .is_none_or(|(most, other)| score > most || (score == most && one.hash < other.hash));
        if wins {
            best = Some((score, one));
        }
    }
    best.map(|(_, winner)| winner.index)
}

/// `-ln((x + 1/2) / 2^64)`, positive.
///
/// Only operations that IEEE 754 defines to the last bit, hence the same everywhere:
/// `x + 1/2 = m * 2^e` with `1 <= m < 2`, and `ln m = 2 artanh((m - 1) / (m + 1))` by its
/// series; the error is below 1e-11.
fn minus_ln(x: u64) -> f64 {
    const LN_2: f64 = std::f64::consts::LN_2;
    // 53 bits are what a double holds; the half keeps it off 0 and off 1.
    let value = (x >> 12) as f64 + 0.5;
    let bits = value.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let square = t * t;
    let mut sum = 0.0;
    let mut odd = 21.0;
    while odd >= 1.0 {
        sum = sum * square + 1.0 / odd;
        odd -= 2.0;
    }
    (52 - exponent) as f64 * LN_2 - 2.0 * t * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(weights: &[u16]) -> Vec<Competitor> {
        weights
            .iter()
            .enumerate()
            .map(|(index, &weight)| Competitor {
                index,
                hash: text(format!("s{index}").as_bytes()),
                weight,
            })
            .collect()
    }

    /// Written down once: a change of any of these breaks failover between versions.
    #[test]
    fn values_are_fixed_for_ever() {
        assert_eq!(text(b""), 0xefd0_1f60_ba99_2926);
        assert_eq!(text(b"s1"), 0x62c2_baa2_1b25_43e9);
        assert_eq!(mix(0), 0);
        assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c);
        assert_eq!(pair(1, 2), 0x4e0f_cd71_6234_2871);
        let winners: Vec<_> = (0..12)
            .map(|key| rendezvous(key, pool(&[1, 2, 3, 0]).into_iter()).unwrap())
            .collect();
        assert_eq!(winners, [0, 2, 1, 2, 0, 1, 2, 1, 2, 0, 1, 1]);
        assert_eq!(
            address("::ffff:192.0.2.7".parse().unwrap()),
            address("192.0.2.7".parse().unwrap())
        );
    }

    #[test]
    fn logarithm_is_right() {
        for x in [
            0,
            1,
            4095,
            4096,
            1 << 20,
            1 << 40,
            u64::MAX / 3,
            1 << 63,
            u64::MAX,
        ] {
            let want = -(((x >> 12) as f64 + 0.5) / (1u64 << 52) as f64).ln();
            let have = minus_ln(x);
            assert!(have > 0.0, "{x}");
            assert!((have - want).abs() < 1e-11, "{x}: {have} {want}");
        }
    }

    #[test]
    fn shares_follow_weights() {
        let weights = [1, 2, 3, 0, 10];
        let mut had = [0u32; 5];
        for key in 0..160_000 {
            had[rendezvous(mix(key), pool(&weights).into_iter()).unwrap()] += 1;
        }
        assert_eq!(had[3], 0);
        for (i, &w) in weights.iter().enumerate() {
            let want = f64::from(w) * 10_000.0;
            assert!((f64::from(had[i]) - want).abs() <= want * 0.05, "{had:?}");
        }
    }

    #[test]
    fn nobody_wins_nothing() {
        assert_eq!(rendezvous(7, std::iter::empty()), None);
        assert_eq!(rendezvous(7, pool(&[0, 0]).into_iter()), None);
    }

    proptest! {
        /// Taking one away moves only what it had; so does adding it.
        #[test]
        fn removal_moves_own_keys_only(
            weights in prop::collection::vec(0u16..=256, 2..12), gone in any::<prop::sample::Index>(),
            keys in prop::collection::vec(any::<u64>(), 64),
        ) {
            let all = pool(&weights);
            let gone = gone.index(all.len());
            for key in keys {
                let before = rendezvous(key, all.iter().copied());
                let after = rendezvous(key, all.iter().copied().filter(|c| c.index != gone));
                if before != Some(gone) {
                    prop_assert_eq!(before, after);
                } else {
                    prop_assert_ne!(after, Some(gone));
                }
            }
        }

        #[test]
        fn order_does_not_matter(weights in prop::collection::vec(0u16..=256, 1..12), key: u64) {
            let all = pool(&weights);
            prop_assert_eq!(
                rendezvous(key, all.iter().copied()),
                rendezvous(key, all.iter().rev().copied())
            );
        }

        #[test]
        fn more_weight_attracts_only(
            weights in prop::collection::vec(1u16..200, 2..8), key: u64, which in any::<prop::sample::Index>(),
        ) {
            let before = rendezvous(key, pool(&weights).into_iter()).unwrap();
            let which = which.index(weights.len());
            let mut heavier = weights.clone();
            heavier[which] += 50;
            let after = rendezvous(key, pool(&heavier).into_iter()).unwrap();
            prop_assert!(after == before || after == which);
        }
    }
}
