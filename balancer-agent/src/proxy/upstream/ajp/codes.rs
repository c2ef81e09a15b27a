//! The numbers that AJP13 has for frequent words, both ways.

use http::header::{self, HeaderName};

/// Codes of packets to the container.
pub mod to_container {
    /// A request's head.
    pub const FORWARD_REQUEST: u8 = 2;
    /// Asks for a sign of life.
    pub const CPING: u8 = 10;
}

/// Codes of packets from the container.
pub mod from_container {
    /// A part of the response's body.
    pub const SEND_BODY_CHUNK: u8 = 3;
    /// The response's head.
    pub const SEND_HEADERS: u8 = 4;
    /// The response's end.
    pub const END_RESPONSE: u8 = 5;
    /// More of the request's body is wanted.
    pub const GET_BODY_CHUNK: u8 = 6;
    /// The sign of life.
    pub const CPONG: u8 = 9;
}

/// Stands for a method without a code; its name comes as an attribute.
pub const STORED_METHOD: u8 = 0xFF;

/// The methods that have codes; the first one's is 1.
const METHODS: [&str; 27] = [
    "OPTIONS",
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "TRACE",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "ACL",
    "REPORT",
    "VERSION-CONTROL",
    "CHECKIN",
    "CHECKOUT",
    "UNCHECKOUT",
    "SEARCH",
    "MKWORKSPACE",
    "UPDATE",
    "LABEL",
    "MERGE",
    "BASELINE-CONTROL",
    "MKACTIVITY",
];

/// The code of a method. Case matters (RFC 9110, 9.1).
pub fn method(name: &str) -> Option<u8> {
    let place = METHODS.iter().position(|known| *known == name)?;
    u8::try_from(place + 1).ok()
}

/// First byte of a header's code. A name of that length can't be told from it.
pub const CODED: u8 = 0xA0;

/// The code of a request's header by its name in lower case.
pub fn request_header(name: &[u8]) -> Option<u16> {
    let place = match name {
        b"accept" => 0x01,
        b"accept-charset" => 0x02,
        b"accept-encoding" => 0x03,
        b"accept-language" => 0x04,
        b"authorization" => 0x05,
        b"connection" => 0x06,
        b"content-type" => 0x07,
        b"content-length" => 0x08,
        b"cookie" => 0x09,
        b"cookie2" => 0x0A,
        b"host" => 0x0B,
        b"pragma" => 0x0C,
        b"referer" => 0x0D,
        b"user-agent" => 0x0E,
        _ => return None,
    };
    Some(u16::from_be_bytes([CODED, place]))
}

/// The response headers that have codes; the first one's is 0xA001.
static RESPONSE_HEADERS: [HeaderName; 11] = [
    header::CONTENT_TYPE,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::DATE,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    HeaderName::from_static("servlet-engine"),
    HeaderName::from_static("status"),
    header::WWW_AUTHENTICATE,
];

/// The name of a response's header by its code.
pub fn response_header(code: u16) -> Option<HeaderName> {
    let [CODED, place] = code.to_be_bytes() else {
        return None;
    };
    let name = RESPONSE_HEADERS.get(usize::from(place).checked_sub(1)?)?;
    Some(name.clone())
}

/// What may be told about a request beside its head. Nothing that a client says becomes a
/// name: there are these and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// What follows the `?`.
    QueryString,
    /// The backend's route.
    Route,
    /// The client's certificate, PEM.
    SslCert,
    /// The cipher suite.
    SslCipher,
    /// Bits of the cipher's key; a number, not a string.
    SslKeySize,
    /// The word that the connector wants to see.
    Secret,
    /// A method without a code.
    StoredMethod,
    /// One of a name of its own.
    Request(Named),
}

/// Attributes with names that containers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The client's port.
    RemotePort,
    /// Where the client connected to.
    LocalAddr,
    /// Version of TLS.
    SslProtocol,
    /// `ACT`, `DIS` or `STP`: what the operator wants of the backend.
    Activation,
}

/// Begins an attribute that has a name.
pub const REQUEST_ATTRIBUTE: u8 = 0x0A;
/// Ends the attributes.
pub const END: u8 = 0xFF;

impl Attribute {
    /// Its code.
    pub const fn code(self) -> u8 {
        match self {
            Self::QueryString => 0x05,
            Self::Route => 0x06,
            Self::SslCert => 0x07,
            Self::SslCipher => 0x08,
            Self::Request(_) => REQUEST_ATTRIBUTE,
            Self::SslKeySize => 0x0B,
            Self::Secret => 0x0C,
            Self::StoredMethod => 0x0D,
        }
    }
}

impl Named {
    /// Its name, as Tomcat has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RemotePort => "AJP_REMOTE_PORT",
            Self::LocalAddr => "AJP_LOCAL_ADDR",
            Self::SslProtocol => "AJP_SSL_PROTOCOL",
            Self::Activation => "JK_LB_ACTIVATION",
        }
    }
}

/// Whether a header looks like one of the attributes: a client may not send it.
pub fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("ajp_") || name.starts_with("jk_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_protocol() {
        for (name, code) in [
            ("OPTIONS", 1),
            ("GET", 2),
            ("HEAD", 3),
            ("POST", 4),
            ("PUT", 5),
            ("DELETE", 6),
            ("TRACE", 7),
            ("SEARCH", 21),
            ("MKACTIVITY", 27),
        ] {
            assert_eq!(method(name), Some(code), "{name}");
        }
        for name in ["PATCH", "get", ""] {
            assert_eq!(method(name), None, "{name}");
        }
        for (name, code) in [
            ("accept", 0xA001),
            ("authorization", 0xA005),
            ("content-type", 0xA007),
            ("content-length", 0xA008),
            ("cookie", 0xA009),
            ("host", 0xA00B),
            ("user-agent", 0xA00E),
        ] {
            assert_eq!(request_header(name.as_bytes()), Some(code), "{name}");
        }
        assert_eq!(request_header(b"x-accept"), None);
        for (code, name) in [
            (0xA001, "content-type"),
            (0xA003, "content-length"),
            (0xA006, "location"),
            (0xA007, "set-cookie"),
            (0xA00B, "www-authenticate"),
        ] {
            assert_eq!(response_header(code).unwrap(), name);
        }
        for code in [0, 0xA000, 0xA00C, 0xA0FF, 0xA101, 0x0001] {
            assert_eq!(response_header(code), None, "{code:x}");
        }
    }

    #[test]
    fn what_looks_like_an_attribute_is_reserved() {
        for name in ["AJP_REMOTE_PORT", "ajp_x", "JK_LB_ACTIVATION", "Jk_"] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            assert!(is_reserved(&name), "{name}");
        }
        for name in ["x-ajp_a", "ajp-a", "jk", "cookie"] {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            assert!(!is_reserved(&name), "{name}");
        }
    }
}
