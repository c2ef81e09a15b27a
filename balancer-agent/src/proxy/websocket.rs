//! The handshake of WebSocket (RFC 6455, 4), as far as it has to be made up where one side
//! speaks HTTP/1.1 and the other HTTP/2, which has no keys (RFC 8441, 5).

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use rand::Rng;

/// What a server adds to the key (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The name of the protocol.
pub const NAME: &str = "websocket";

/// `Sec-WebSocket-Key`: 16 random bytes.
pub fn key() -> HeaderValue {
    value(&STANDARD.encode(rand::rng().random::<[u8; 16]>()))
}

/// `Sec-WebSocket-Accept`, the server's answer to a key.
pub fn accept(key: &[u8]) -> HeaderValue {
    let mut sum = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    sum.update(key);
    sum.update(GUID);
    value(&STANDARD.encode(sum.finish()))
}

/// Whether a response's fields answer a request's key.
pub fn answers(response: &HeaderMap, request: &HeaderMap) -> bool {
    let key = request.get(header::SEC_WEBSOCKET_KEY);
    let told = response.get(header::SEC_WEBSOCKET_ACCEPT);
    key.is_some_and(|key| told == Some(&accept(key.as_bytes())))
}

fn value(base64: &str) -> HeaderValue {
    // Base64 has no character that a field may not have.
    HeaderValue::from_str(base64).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_answered_as_in_the_rfc() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        assert_eq!(accept(key.as_bytes()), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut request = HeaderMap::new();
        let mut response = HeaderMap::new();
        assert!(!answers(&response, &request));
        request.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static(key));
        assert!(!answers(&response, &request));
        response.insert(header::SEC_WEBSOCKET_ACCEPT, accept(b"other"));
        assert!(!answers(&response, &request));
        response.insert(header::SEC_WEBSOCKET_ACCEPT, accept(key.as_bytes()));
        assert!(answers(&response, &request));
    }

    #[test]
    fn keys_are_16_bytes_and_differ() {
        let (one, two) = (key(), key());
        assert_ne!(one, two);
        assert_eq!(STANDARD.decode(one.as_bytes()).unwrap().len(), 16);
    }
}
