//! Datagrams that only nodes with the secret can make or read.
//!
//! ```text
//! version (1) | salt (16) | counter (8) | sealed: echo (16), message | tag (16)
//! ```
//! - Each process chooses a random salt at its start. It is sealed with AES-256-GCM under
//!   a key that is derived from the secret and the salt, and the counter is the nonce: no
//!   nonce is used twice under one key, whatever becomes of clocks and disks.
//! - The counter also tells repeated datagrams, by a window per salt.
//! - The echo is the receiver's salt as the sender last heard it. With the right echo, a
//!   datagram was made in the present life of the receiver, so the window has seen all of
//!   its kind: it is *fresh*. Only fresh datagrams may change anything. What was recorded
//!   before a restart of either side is of no use to anyone.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::ClusterError;
use super::keys::Keys;
use super::message::MESSAGE_MAX;

const VERSION: u8 = 1;
const SALT: usize = 16;
const HEADER: usize = 1 + SALT + 8;
const TAG: usize = 16;
/// Longest datagram, in bytes.
pub const DATAGRAM_MAX: usize = HEADER + SALT + MESSAGE_MAX + TAG;
/// How far behind the newest a datagram may come in.
const WINDOW: u64 = 128;
/// Salts that are remembered. A cluster has fewer nodes by far; only who has the secret
/// can bring in others.
const SALTS_MAX: usize = 256;

/// A process, by the salt of its datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life(pub [u8; SALT]);

/// Why a datagram was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Too short or too long.
    Size,
    /// Of another version, or nothing of ours.
    Version,
    /// Made without the secret, or changed on its way.
    Secret,
    /// Taken before, or too old to tell.
    Repeated,
}

/// A datagram that was made with the secret.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Who sealed it; may be this process.
    pub life: Life,
    /// Made in the present life of the receiver.
    pub fresh: bool,
    /// What was sealed.
    pub message: &'a [u8],
}

/// Makes datagrams of one process.
pub struct Sealer {
    life: Life,
    key: LessSafeKey,
    counter: u64,
}

impl Sealer {
    /// For a process with that salt, which no other process ever has.
    pub(super) fn new(keys: &Keys, life: Life) -> Result<Self, ClusterError> {
        Ok(Self {
            life,
            key: key(keys, &life)?,
            counter: 0,
        })
    }

    /// The datagram with this message, for whom the echo says.
    ///
    /// # Errors
    /// The message is too long.
    pub fn seal(&mut self, echo: Option<Life>, message: &[u8]) -> Result<Vec<u8>, ClusterError> {
        if message.len() > MESSAGE_MAX {
            return Err(ClusterError::Crypto("a message is too long to be sealed"));
        }
        self.counter += 1;
        let mut out = Vec::with_capacity(HEADER + SALT + message.len() + TAG);
        out.push(VERSION);
        out.extend_from_slice(&self.life.0);
        out.extend_from_slice(&self.counter.to_be_bytes());
        out.extend_from_slice(&echo.map_or([0; SALT], |life| life.0));
        out.extend_from_slice(message);
        let (header, text) = out.split_at_mut(HEADER);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.counter), Aad::from(&*header), text)
            .map_err(|_| ClusterError::Crypto("a datagram can't be sealed"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }
}

/// Takes datagrams of others.
pub struct Opener {
    keys: Keys,
    own: Life,
    known: Vec<Known>,
    clock: u64,
}

/// A salt that was met, with what came of it.
struct Known {
    life: Life,
    key: LessSafeKey,
    newest: u64,
    /// Bit n: the datagram n before the newest has come.
    seen: u128,
    used: u64,
}

impl Opener {
    /// For the process with that salt.
    pub(super) fn new(keys: Keys, own: Life) -> Self {
        Self {
            keys,
            own,
            known: Vec::new(),
            clock: 0,
        }
    }

    /// Checks a datagram and uncovers its message in place.
    ///
    /// # Errors
    /// Why it has to be dropped; it has changed nothing.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        if !(HEADER + SALT + TAG..=DATAGRAM_MAX).contains(&datagram.len()) {
            return Err(Rejected::Size);
        }
        let (header, sealed) = datagram.split_at_mut(HEADER);
        if header[0] != VERSION {
            return Err(Rejected::Version);
        }
        let mut salt = [0; SALT];
        salt.copy_from_slice(&header[1..=SALT]);
        let mut counter = [0; 8];
        counter.copy_from_slice(&header[1 + SALT..]);
        let (life, counter) = (Life(salt), u64::from_be_bytes(counter));
        let at = self.known.iter().position(|known| known.life == life);
        let mut unknown = None;
        let key = match at {
            Some(at) => &self.known[at].key,
            // Kept only when the datagram turns out to be good: garbage leaves nothing.
            None => unknown.insert(key(&self.keys, &life).map_err(|_| Rejected::Secret)?),
        };
        let aad = Aad::from(&*header);
        let text = key
            .open_in_place(nonce(counter), aad, sealed)
            .map_err(|_| Rejected::Secret)?;
        if life == self.own {
            // Of no interest but to find out which of the seeds this node is.
            return Ok(Opened {
                life,
                fresh: false,
                message: &text[SALT..],
            });
        }
        self.clock += 1;
        let clock = self.clock;
        let known = match (at, unknown) {
            (None, Some(key)) => self.remember(Known {
                life,
                key,
                newest: 0,
                seen: 0,
                used: 0,
            }),
            (at, _) => &mut self.known[at.unwrap_or_default()],
        };
        known.used = clock;
        if !known.first_time(counter) {
            return Err(Rejected::Repeated);
        }
        let (echo, message) = text.split_at(SALT);
        Ok(Opened {
            life,
            fresh: echo == self.own.0,
            message,
        })
    }

    /// Puts it in the place of the least recently used when there are too many.
    fn remember(&mut self, known: Known) -> &mut Known {
        let oldest = self.known.iter().enumerate().min_by_key(|(_, k)| k.used);
        match oldest.map(|(at, _)| at) {
            Some(at) if self.known.len() >= SALTS_MAX => {
                self.known[at] = known;
                &mut self.known[at]
            }
            _ => {
                self.known.push(known);
                let last = self.known.len() - 1;
                &mut self.known[last]
            }
        }
    }
}

impl Known {
    /// Notes a counter; false when it has been noted, or is too old to tell (RFC 4303,
    /// 3.4.3).
    fn first_time(&mut self, counter: u64) -> bool {
        if counter > self.newest {
            let ahead = counter - self.newest;
            self.seen = match ahead < WINDOW {
                true => self.seen << ahead | 1,
                false => 1,
            };
            self.newest = counter;
            return true;
        }
        let behind = self.newest - counter;
        if behind >= WINDOW || self.seen & 1 << behind != 0 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

fn key(keys: &Keys, life: &Life) -> Result<LessSafeKey, ClusterError> {
    let bytes = keys.datagrams(&life.0)?;
    let key = UnboundKey::new(&AES_256_GCM, &bytes)
        .map_err(|_| ClusterError::Crypto("a key has the wrong length"))?;
    Ok(LessSafeKey::new(key))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cluster::Secret;

    fn keys(secret: u8) -> Keys {
        Keys::new(&Secret::new(&[secret; 32]))
    }

    fn sealer(secret: u8, life: u8) -> Sealer {
        Sealer::new(&keys(secret), Life([life; 16])).unwrap()
    }

    fn opener(secret: u8, own: u8) -> Opener {
        Opener::new(keys(secret), Life([own; 16]))
    }

    fn verdict(opener: &mut Opener, datagram: &[u8]) -> Result<bool, Rejected> {
        let mut datagram = datagram.to_vec();
        opener.open(&mut datagram).map(|opened| opened.fresh)
    }

    #[test]
    fn what_is_sealed_is_opened() {
        let (mut a, mut b) = (sealer(1, 10), opener(1, 20));
        for (echo, fresh) in [(None, false), (Some(20), true), (Some(21), false)] {
            let mut datagram = a.seal(echo.map(|b| Life([b; 16])), b"hello").unwrap();
            let opened = b.open(&mut datagram).unwrap();
            let wanted = Opened {
                life: Life([10; 16]),
                fresh,
                message: b"hello",
            };
            assert_eq!(opened, wanted);
        }
    }

    #[test]
    fn another_secret_opens_nothing_and_leaves_nothing() {
        let mut a = sealer(2, 10);
        let mut b = opener(1, 20);
        for _ in 0..1000 {
            let datagram = a.seal(Some(Life([20; 16])), b"hello").unwrap();
            assert_eq!(verdict(&mut b, &datagram), Err(Rejected::Secret));
        }
        assert!(b.known.is_empty());
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let mut a = sealer(1, 10);
        let mut b = opener(1, 20);
        let good = a.seal(None, b"hello").unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            verdict(&mut b, &bad).unwrap_err();
            verdict(&mut b, &good[..at]).unwrap_err();
        }
        verdict(&mut b, &good).unwrap();
    }

    #[test]
    fn repeated_and_own_datagrams_are_refused() {
        let mut a = sealer(1, 10);
        let mut b = opener(1, 20);
        let all: Vec<_> = (0..300).map(|_| a.seal(None, b"x").unwrap()).collect();
        // Out of order is fine within the window.
        for i in [0, 3, 1, 2, 130, 3 + 1, 129] {
            assert_eq!(verdict(&mut b, &all[i]), Ok(false), "{i}");
            assert_eq!(verdict(&mut b, &all[i]), Err(Rejected::Repeated), "{i}");
        }
        // 200 takes the window along, and what is behind it can't be told any more.
        assert_eq!(verdict(&mut b, &all[200]), Ok(false));
        assert_eq!(verdict(&mut b, &all[5]), Err(Rejected::Repeated));
        assert_eq!(verdict(&mut b, &all[73]), Ok(false));
        assert_eq!(verdict(&mut b, &all[72]), Err(Rejected::Repeated));
        let mut own = opener(1, 10);
        let mut datagram = all[0].clone();
        assert_eq!(own.open(&mut datagram).unwrap().life, a.life);
        assert!(own.known.is_empty());
    }

    #[test]
    fn garbage_is_told_apart() {
        let mut b = opener(1, 20);
        assert_eq!(verdict(&mut b, &[]), Err(Rejected::Size));
        assert_eq!(verdict(&mut b, &[1; 30]), Err(Rejected::Size));
        assert_eq!(verdict(&mut b, &[1; DATAGRAM_MAX + 1]), Err(Rejected::Size));
        assert_eq!(verdict(&mut b, &[9; 100]), Err(Rejected::Version));
        assert_eq!(verdict(&mut b, &[1; 100]), Err(Rejected::Secret));
    }

    #[test]
    fn salts_are_bounded() {
        let mut b = opener(1, 255);
        let mut first = sealer(1, 0);
        for i in 0..2 * SALTS_MAX {
            let mut life = [0; 16];
            life[..8].copy_from_slice(&(i as u64 + 1).to_be_bytes());
            let mut other = Sealer::new(&keys(1), Life(life)).unwrap();
            verdict(&mut b, &other.seal(None, b"x").unwrap()).unwrap();
            // One that is in use stays.
            verdict(&mut b, &first.seal(None, b"x").unwrap()).unwrap();
        }
        assert_eq!(b.known.len(), SALTS_MAX);
        assert_eq!(b.known.iter().filter(|k| k.life == first.life).count(), 1);
    }
}
