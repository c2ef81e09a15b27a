//! Keys, derived from the cluster's secret by HKDF (RFC 5869) with SHA-256: one for each
//! purpose, so that none tells anything about another.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use super::ClusterError;
use crate::model::cluster::Secret;

/// Changed when what is derived changes.
const SALT: &[u8] = b"balancer cluster 1";

/// What all keys come from.
#[derive(Clone)]
pub(super) struct Keys(Prk);

impl Keys {
    pub(super) fn new(secret: &Secret) -> Self {
        Self(Salt::new(HKDF_SHA256, SALT).extract(secret.bytes()))
    }

    /// The key for datagrams of one process.
    pub(super) fn datagrams(&self, salt: &[u8; 16]) -> Result<[u8; 32], ClusterError> {
        self.derive(&[b"datagrams", salt])
    }

    /// The seed of the authority's Ed25519 key.
    pub(super) fn authority(&self) -> Result<[u8; 32], ClusterError> {
        self.derive(&[b"authority"])
    }

    /// The key for proofs before a handshake.
    pub(super) fn door(&self) -> Result<[u8; 32], ClusterError> {
        self.derive(&[b"door"])
    }

    /// The keys of the session store: where sessions are placed, and hashes of their ids.
    pub(super) fn sessions(&self) -> Result<([u64; 2], [u64; 2]), ClusterError> {
        let bytes = self.derive(&[b"sessions"])?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Ok(([word(0), word(8)], [word(16), word(24)]))
    }

    fn derive(&self, info: &[&[u8]]) -> Result<[u8; 32], ClusterError> {
        struct Bytes32;
        impl KeyType for Bytes32 {
            fn len(&self) -> usize {
                32
            }
        }
        let mut key = [0; 32];
        self.0
            .expand(info, Bytes32)
            .and_then(|okm| okm.fill(&mut key))
            .map_err(|_| ClusterError::Crypto("a key can't be derived"))?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_secret_purpose_and_salt() {
        let a = Keys::new(&Secret::new(&[1; 32]));
        let b = Keys::new(&Secret::new(&[2; 32]));
        let all = [
            a.datagrams(&[0; 16]).unwrap(),
            a.datagrams(&[1; 16]).unwrap(),
            a.authority().unwrap(),
            a.door().unwrap(),
            b.datagrams(&[0; 16]).unwrap(),
            b.authority().unwrap(),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other != one));
        }
        assert_eq!(a.authority().unwrap(), a.authority().unwrap());
    }
}
