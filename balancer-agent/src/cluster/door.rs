//! The door before the handshake: whoever connects proves that it has the secret, before
//! it gets to see a certificate or costs a signature.
//!
//! ```text
//! accepting:  challenge (16 random bytes)  -->
//!             <--  HMAC-SHA256(door key, challenge | node | incarnation)  :connecting
//! ```
//! Node and incarnation are those of the accepting side. TLS authenticates both sides
//! afterwards; this only keeps strangers out of it.

use std::io;

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::ClusterError;
use super::id::{Incarnation, NodeId};
use super::keys::Keys;

const CHALLENGE: usize = 16;
const PROOF: usize = 32;

/// What opens the doors of the cluster's nodes.
pub(super) struct Door(Key);

impl Door {
    pub(super) fn new(keys: &Keys) -> Result<Self, ClusterError> {
        Ok(Self(Key::new(HMAC_SHA256, &keys.door()?)))
    }

    /// Lets the other side in, or not: the accepting side.
    pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        own: NodeId,
        incarnation: Incarnation,
    ) -> io::Result<()> {
        let mut challenge = [0; CHALLENGE];
        SystemRandom::new()
            .fill(&mut challenge)
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        stream.write_all(&challenge).await?;
        let mut proof = [0; PROOF];
        stream.read_exact(&mut proof).await?;
        let said = said(&challenge, own, incarnation);
        hmac::verify(&self.0, &said, &proof).map_err(|_| {
            let what = "the other side does not have the secret, or means another node";
            io::Error::new(io::ErrorKind::PermissionDenied, what)
        })
    }

    /// Proves to have the secret: the connecting side.
    pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        to: NodeId,
        incarnation: Incarnation,
    ) -> io::Result<()> {
        let mut challenge = [0; CHALLENGE];
        stream.read_exact(&mut challenge).await?;
        let proof = hmac::sign(&self.0, &said(&challenge, to, incarnation));
        stream.write_all(proof.as_ref()).await
    }
}

fn said(challenge: &[u8], node: NodeId, incarnation: Incarnation) -> Vec<u8> {
    let (node, incarnation) = (node.0.to_be_bytes(), incarnation.0.to_be_bytes());
    [challenge, &node, &incarnation].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cluster::Secret;

    async fn opens(asking: u8, answering: u8, own: u64, meant: u64) -> bool {
        let door = |secret| Door::new(&Keys::new(&Secret::new(&[secret; 32]))).unwrap();
        let (a, b) = (door(asking), door(answering));
        let (mut here, mut there) = tokio::io::duplex(100);
        let (own, meant) = (NodeId(own), NodeId(meant));
        let asked = a.ask(&mut here, own, Incarnation(1));
        let answered = b.answer(&mut there, meant, Incarnation(1));
        let (asked, answered) = tokio::join!(asked, answered);
        answered.unwrap();
        asked.is_ok()
    }

    #[tokio::test]
    async fn only_the_secret_and_the_right_node_open() {
        assert!(opens(1, 1, 7, 7).await);
        assert!(!opens(1, 2, 7, 7).await);
        assert!(!opens(1, 1, 7, 8).await);
    }

    #[tokio::test]
    async fn a_recorded_answer_is_of_no_use() {
        let door = Door::new(&Keys::new(&Secret::new(&[1; 32]))).unwrap();
        let recorded = hmac::sign(&door.0, &said(&[5; CHALLENGE], NodeId(7), Incarnation(1)));
        let (mut here, mut there) = tokio::io::duplex(100);
        there.write_all(recorded.as_ref()).await.unwrap();
        let asked = door.ask(&mut here, NodeId(7), Incarnation(1)).await;
        assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
