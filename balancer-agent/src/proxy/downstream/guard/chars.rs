//! Classes of bytes (RFC 9110, 5.6; RFC 3986).

/// Characters of tokens.
const TOKEN: u8 = 1;
/// Characters of a target's path, and more that browsers send.
const PATH: u8 = 2;
/// Characters of a target's query, and more that browsers send.
const QUERY: u8 = 4;
/// Characters of a registered name or address in `Host`, without the brackets of IPv6.
const HOST: u8 = 8;

const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        let alnum = b.is_ascii_alphanumeric();
        let mut class = 0;
        if alnum || in_list(b, b"!#$%&'*+-.^_`|~") {
            class |= TOKEN;
        }
        if alnum || in_list(b, b"-._~!$&'()*+,;=:@/?%\"[]^{}|") {
            class |= PATH | QUERY;
        }
        if in_list(b, b"\\`") {
            class |= QUERY;
        }
        // A comma is in the grammar, but only what was joined from two fields has it.
        if alnum || in_list(b, b"-._~!$&'()*+;=%") {
            class |= HOST;
        }
        classes[i] = class;
        i += 1;
    }
    classes
};

const fn in_list(b: u8, list: &[u8]) -> bool {
    let mut i = 0;
    while i < list.len() {
        if list[i] == b {
            return true;
        }
        i += 1;
    }
    false
}

const fn all(bytes: &[u8], class: u8) -> bool {
    let mut i = 0;
    while i < bytes.len() {
        if CLASSES[bytes[i] as usize] & class == 0 {
            return false;
        }
        i += 1;
    }
    true
}

/// Whether this can be part of a token.
pub(super) const fn token_byte(b: u8) -> bool {
    CLASSES[b as usize] & TOKEN != 0
}

/// Whether this is a token.
pub(super) const fn token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// Whether this can be part of a field's value: no control characters but the tab.
pub(super) const fn value_byte(b: u8) -> bool {
    (b >= 0x20 && b != 0x7f) || b == b'\t'
}

/// Whether this can be a field's value.
pub(super) fn value(bytes: &[u8]) -> bool {
    // Without early exit, so that it is done many bytes at a time.
    let bad = |bad: bool, &b: &u8| bad | ((b < 0x20) & (b != b'\t')) | (b == 0x7f);
    !bytes.iter().fold(false, bad)
}

/// Whether this can be a path and query.
pub(super) fn path_and_query(bytes: &[u8]) -> bool {
    match memchr::memchr(b'?', bytes) {
        None => all(bytes, PATH),
        Some(i) => all(&bytes[..i], PATH) && all(&bytes[i..], QUERY),
    }
}

/// Without the whitespace around it.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Whether this is `host [":" port]` with a host (RFC 9110, 7.2), without user information.
pub(super) fn authority(bytes: &[u8]) -> bool {
    let (host, rest) = match bytes {
        [b'[', inner @ ..] => match memchr::memchr(b']', inner) {
            None => return false,
            Some(i) => {
                let (address, rest) = (&inner[..i], &inner[i + 1..]);
                let fits = std::str::from_utf8(address)
                    .is_ok_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok());
                if !fits {
                    return false;
                }
                (&b"6"[..], rest)
            }
        },
        _ => match memchr::memchr(b':', bytes) {
            None => (bytes, &b""[..]),
            Some(i) => bytes.split_at(i),
        },
    };
    !host.is_empty()
        && all(host, HOST)
        && match rest {
            [] => true,
            [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}
