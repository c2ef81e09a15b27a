//! Values of inserted cookies: made and read.
//!
//! A cookie says two things: the backend, and a random key of the session. The key is what
//! the failover target is computed from; with the backend alone, all sessions of one that
//! died would go to the same other one.
//!
//! - signed: `route.key.tag`. The route is readable, with what may not stand in a cookie as
//!   `%XX`; key (8 bytes) and tag (the first 16 bytes of HMAC-SHA256, as RFC 2104 section 5
//!   allows) in base64url. The tag is over the context and what stands before it.
//! - opaque: base64url of nonce (12), encrypted stable hash of the route and key (16), tag
//!   (16): AES-256-GCM-SIV (RFC 8452), so that a nonce that comes twice gives nothing away
//!   but that the same was said. The context is authenticated with it. Its key is derived
//!   from the configured one by HMAC-SHA256.
//!
//! The context is the pool and the cookie's name: a cookie of one pool says nothing in
//! another, even with the same key.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use smallvec::SmallVec;

use super::super::balance::hash;
use crate::model::http::CookieValue;

/// Bytes of a signed cookie's tag.
const TAG: usize = 16;
/// Bytes of an opaque cookie: nonce, hash and key, tag.
const OPAQUE: usize = NONCE_LEN + 16 + 16;
/// What may not stand in a cookie's value, and what would be read as an escape.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b',')
    .add(b';')
    .add(b'\\')
    .add(b'%');

/// Makes and reads values.
pub(super) struct Sealer {
    key: Key,
    context: Vec<u8>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "one for each pool, not for each request"
)]
enum Key {
    Signed(hmac::Key),
    Opaque(LessSafeKey),
}

/// What a cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Stable hash of the backend's route.
    pub backend: u64,
    /// The session's.
    pub key: u64,
}

impl std::fmt::Debug for Sealer {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// `None` when the cryptographic library refuses the key, which it has no reason to.
    pub fn new(value: &CookieValue, pool: &str, cookie: &str) -> Option<Self> {
        let key = match value {
            CookieValue::Signed(key) => Key::Signed(hmac::Key::new(hmac::HMAC_SHA256, key)),
            CookieValue::Opaque(key) => {
                let master = hmac::Key::new(hmac::HMAC_SHA256, key);
                let derived = hmac::sign(&master, b"balancer sticky cookie, opaque, 1");
                let key = UnboundKey::new(&AES_256_GCM_SIV, derived.as_ref()).ok()?;
                Key::Opaque(LessSafeKey::new(key))
            }
        };
        let context = format!("balancer sticky cookie 1\0{pool}\0{cookie}\0");
        Some(Self {
            key,
            context: context.into_bytes(),
        })
    }

    /// A value for the backend of this route. `None` when no randomness is to be had.
    pub fn seal(&self, route: &str, key: u64) -> Option<String> {
        match &self.key {
            Key::Signed(mac) => {
                let mut value = utf8_percent_encode(route, ESCAPED).to_string();
                value.push('.');
                URL_SAFE_NO_PAD.encode_string(key.to_be_bytes(), &mut value);
                let tag = self.tag(mac, value.as_bytes());
                value.push('.');
                URL_SAFE_NO_PAD.encode_string(tag, &mut value);
                Some(value)
            }
            Key::Opaque(aead) => {
                let mut nonce = [0; NONCE_LEN];
                aws_lc_rs::rand::fill(&mut nonce).ok()?;
                let mut said = [0; 16];
                said[..8].copy_from_slice(&hash::text(route.as_bytes()).to_be_bytes());
                said[8..].copy_from_slice(&key.to_be_bytes());
                let tag = aead
                    .seal_in_place_separate_tag(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(&self.context),
                        &mut said,
                    )
                    .ok()?;
                let mut whole = [0; OPAQUE];
                whole[..NONCE_LEN].copy_from_slice(&nonce);
                whole[NONCE_LEN..NONCE_LEN + 16].copy_from_slice(&said);
                whole[NONCE_LEN + 16..].copy_from_slice(tag.as_ref());
                Some(URL_SAFE_NO_PAD.encode(whole))
            }
        }
    }

    /// What a value says, if it was made with this key for this pool and cookie.
    pub fn open(&self, value: &[u8]) -> Option<Said> {
        match &self.key {
            Key::Signed(mac) => {
                let end = memchr::memrchr(b'.', value)?;
                let tag: [u8; TAG] = decoded(&value[end + 1..])?;
                let own = self.tag(mac, &value[..end]);
                constant_time::verify_slices_are_equal(&own, &tag).ok()?;
                // From here on it is what this balancer wrote.
                let dot = memchr::memrchr(b'.', &value[..end])?;
                let key: [u8; 8] = decoded(&value[dot + 1..end])?;
                let route = &value[..dot];
                let backend = match memchr::memchr(b'%', route) {
                    None => hash::text(route),
                    Some(_) => {
                        let route: SmallVec<[u8; 64]> = percent_decode(route).collect();
                        hash::text(&route)
                    }
                };
                Some(Said {
                    backend,
                    key: u64::from_be_bytes(key),
                })
            }
            Key::Opaque(aead) => {
                let whole: [u8; OPAQUE] = decoded(value)?;
                let mut whole = whole;
                let (nonce, rest) = whole.split_first_chunk_mut::<NONCE_LEN>()?;
                let said = aead
                    .open_in_place(
                        Nonce::assume_unique_for_key(*nonce),
                        Aad::from(&self.context),
                        rest,
                    )
                    .ok()?;
                let (backend, key) = said.split_first_chunk::<8>()?;
                Some(Said {
                    backend: u64::from_be_bytes(*backend),
                    key: u64::from_be_bytes(*key.first_chunk()?),
                })
            }
        }
    }

    fn tag(&self, key: &hmac::Key, text: &[u8]) -> [u8; TAG] {
        let mut context = hmac::Context::with_key(key);
        context.update(&self.context);
        context.update(text);
        let mut tag = [0; TAG];
        tag.copy_from_slice(&context.sign().as_ref()[..TAG]);
        tag
    }
}

/// Exactly `N` bytes in base64url, without padding.
fn decoded<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != (N * 4).div_ceil(3) {
        return None;
    }
    // The decoder asks for room for whole groups of three.
    let mut room = [0; OPAQUE + 3];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut room).ok()?;
    room[..length].try_into().ok()
}
