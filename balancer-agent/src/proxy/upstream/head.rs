//! Heads of HTTP/1.1 messages to and from backends: written from the client's header map
//! without copying it, and read strictly.
//!
//! A response whose end two readers could see in different places (RFC 9112, 6.3) is
//! refused: the client behind us, or the next response on a kept connection, would get
//! what was not meant for it.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use smallvec::SmallVec;

use super::body::Extent;

/// Most bytes of a response's head.
pub const HEAD_BYTES: usize = 64 << 10;
/// Most fields of a response's head.
pub const FIELDS: usize = 128;

/// Names of one connection only (RFC 9110, 7.6.1); `TE` is told anew when it says
/// `trailers`, lengths and codings are told anew for each connection.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    // The length sorts out nearly everything else.
    match name.as_str().len() {
        2 => *name == header::TE,
        7 => *name == header::UPGRADE,
        10 => *name == header::CONNECTION || name == "keep-alive",
        16 => name == "proxy-connection",
        17 => *name == header::TRANSFER_ENCODING,
        18 => *name == header::PROXY_AUTHENTICATE,
        19 => *name == header::PROXY_AUTHORIZATION,
        25 => name == "proxy-authentication-info",
        14 => *name == header::CONTENT_LENGTH || name == "http2-settings",
        _ => false,
    }
}

/// Takes out of a response's fields what is of the backend's connection only, as [`read`]
/// does; for protocols that do not need that to be understood.
pub fn strip(status: StatusCode, headers: &mut HeaderMap) {
    let hops = headers.keys().filter(|name| is_hop_by_hop(name));
    let hops = hops.filter(|name| **name != header::CONTENT_LENGTH || has_no_length(status));
    // Nearly always none, which takes no memory.
    let hops: SmallVec<[HeaderName; 2]> = hops.cloned().collect();
    for name in &hops {
        headers.remove(name);
    }
}

/// Whether a response of this status has no length to tell (RFC 9110, 8.6).
fn has_no_length(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT
}

/// Fields that must never come as trailers (RFC 9110, 6.5.1): they would change what has
/// been decided by the head.
pub fn is_forbidden_trailer(name: &HeaderName) -> bool {
    is_hop_by_hop(name)
        || matches!(
            *name,
            header::HOST
                | header::TRAILER
                | header::CONTENT_ENCODING
                | header::CONTENT_TYPE
                | header::CONTENT_RANGE
                | header::AUTHORIZATION
                | header::SET_COOKIE
                | header::COOKIE
                | header::CACHE_CONTROL
                | header::EXPECT
                | header::MAX_FORWARDS
                | header::RANGE
                | header::FORWARDED
        )
}

/// The names that `Connection` fields list.
pub struct Listed(SmallVec<[HeaderName; 2]>);

impl Listed {
    /// Of these headers. Names that are no names are passed over.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut listed = SmallVec::new();
        for value in headers.get_all(header::CONNECTION) {
            for token in value.as_bytes().split(|b| *b == b',') {
                let token = token.trim_ascii();
                // By far the most frequent, and not names of fields.
                if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close")
                {
                    continue;
                }
                if let Ok(name) = HeaderName::from_bytes(token) {
                    listed.push(name);
                }
            }
        }
        Self(listed)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter()
    }

    /// Whether it is listed.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.0.contains(name)
    }
}

/// A request as a backend is to get it.
pub struct Outgoing<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// `Host`, or `:authority`.
    pub host: &'a [u8],
    /// End-to-end headers; those of the client's connection, among them those that
    /// `Connection` lists, are left out on the way.
    pub headers: &'a HeaderMap,
    /// What the client's `Connection` lists.
    pub listed: &'a Listed,
    /// Whether a field is left out for another reason: it is told anew in `lines`, or is
    /// not believed.
    pub drop: &'a dyn Fn(&HeaderName) -> bool,
    /// Beside those, whole lines, each ended by CRLF.
    pub lines: &'a [u8],
    /// `Upgrade`, when the request asks for it and that is allowed.
    pub upgrade: Option<&'a HeaderValue>,
    /// Whether the client waits for a 100.
    pub expects: bool,
    /// Whether the client takes trailers.
    pub trailers: bool,
    /// Whether the backend may keep the connection.
    pub keep: bool,
}

impl Outgoing<'_> {
    /// Whether a field of the client's goes along. `Host` and `Expect` are told anew.
    pub fn passes(&self, name: &HeaderName) -> bool {
        !is_hop_by_hop(name)
            && *name != header::HOST
            && *name != header::EXPECT
            && (self.listed.0.is_empty() || !self.listed.contains(name))
            && !(self.drop)(name)
    }

    /// Whether it asks for a WebSocket, and in a way that HTTP/2 has as well.
    pub fn is_websocket(&self, extent: Extent) -> bool {
        let asked = self
            .upgrade
            .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
        asked
            && *self.method == Method::GET
            && extent == Extent::None
            && self.headers.contains_key(header::SEC_WEBSOCKET_KEY)
    }

    /// Writes the head.
    pub fn write(&self, extent: Extent, out: &mut BytesMut) {
        let put = |out: &mut BytesMut, parts: &[&[u8]]| {
            for part in parts {
                out.extend_from_slice(part);
            }
        };
        put(
            out,
            &[
                self.method.as_str().as_bytes(),
                b" ",
                self.target.as_bytes(),
                b" HTTP/1.1\r\nhost: ",
                self.host,
                b"\r\n",
            ],
        );
        // Cookie may come in crumbs (RFC 9113, 8.2.3), which HTTP/1.1 has as one line.
        let mut crumbs = false;
        for (name, value) in self.headers {
            if !self.passes(name) {
                continue;
            }
            if *name == header::COOKIE {
                if crumbs {
                    continue;
                }
                crumbs = true;
                put(out, &[b"cookie: "]);
                for (at, crumb) in self.headers.get_all(header::COOKIE).iter().enumerate() {
                    let between: &[u8] = if at == 0 { b"" } else { b"; " };
                    put(out, &[between, crumb.as_bytes()]);
                }
                put(out, &[b"\r\n"]);
                continue;
            }
            put(
                out,
                &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"],
            );
        }
        put(out, &[self.lines]);
        if self.expects {
            put(out, &[b"expect: 100-continue\r\n"]);
        }
        match extent {
            Extent::Length(length) => {
                put(out, &[b"content-length: "]);
                write_decimal(length, out);
                put(out, &[b"\r\n"]);
            }
            Extent::Unknown => put(out, &[b"transfer-encoding: chunked\r\n"]),
            // RFC 9110, 8.6: where a body would have a meaning, its absence is told.
            Extent::None if matches!(*self.method, Method::POST | Method::PUT | Method::PATCH) => {
                put(out, &[b"content-length: 0\r\n"]);
            }
            Extent::None => {}
        }
        if self.trailers {
            put(out, &[b"te: trailers\r\n"]);
        }
        match (self.upgrade, self.trailers) {
            (Some(upgrade), _) => put(
                out,
                &[
                    b"connection: upgrade\r\nupgrade: ",
                    upgrade.as_bytes(),
                    b"\r\n",
                ],
            ),
            (None, true) if self.keep => put(out, &[b"connection: te\r\n"]),
            (None, true) => put(out, &[b"connection: te, close\r\n"]),
            (None, false) if self.keep => {}
            (None, false) => put(out, &[b"connection: close\r\n"]),
        }
        put(out, &[b"\r\n"]);
    }
}

/// Writes a number.
pub fn write_decimal(mut number: u64, out: &mut BytesMut) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What is wrong with a response. The backend's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not HTTP/1.
    #[error("not a response of HTTP/1: {0}")]
    Syntax(httparse::Error),
    /// Larger than we read.
    #[error("head larger than {HEAD_BYTES} bytes or {FIELDS} fields")]
    TooLarge,
    /// Content-Length and Transfer-Encoding.
    #[error("both Content-Length and Transfer-Encoding")]
    TwoFramings,
    /// More than one length.
    #[error("more than one Content-Length")]
    Lengths,
    /// Not a number.
    #[error("Content-Length is not a number")]
    Length,
    /// Codings that were not asked for.
    #[error("Transfer-Encoding other than chunked")]
    Coding,
    /// 101 that was not asked for.
    #[error("101 without having been asked to switch protocols")]
    Unasked,
    /// No end of informational responses.
    #[error("too many informational responses")]
    Informational,
    /// A chunk's head or end.
    #[error("malformed chunk")]
    Chunk,
    /// A trailer section.
    #[error("malformed trailers")]
    Trailers,
}

/// How a response's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// A response's head.
#[derive(Debug)]
pub struct Incoming {
    /// Status.
    pub status: StatusCode,
    /// End-to-end headers.
    pub headers: HeaderMap,
    /// Its body.
    pub framing: Framing,
    /// Whether the backend keeps the connection.
    pub keep: bool,
    /// `Upgrade`, of a 101.
    pub upgrade: Option<HeaderValue>,
}

/// Takes a head off the front of `buffer`; `None` when it is not complete.
///
/// # Errors
/// [`Malformed`]
pub fn read(buffer: &mut BytesMut, method: &Method) -> Result<Option<Incoming>, Malformed> {
    struct Range {
        name: (usize, usize),
        value: (usize, usize),
    }
    let mut ranges: SmallVec<[Range; 32]> = SmallVec::new();
    let (length, code, minor) = {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let parsed = config.parse_response_with_uninit_headers(&mut response, buffer, &mut fields);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES => length,
            Ok(httparse::Status::Partial) if buffer.len() < HEAD_BYTES => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TooLarge),
            Err(error) => return Err(Malformed::Syntax(error)),
        };
        let base = buffer.as_ptr().addr();
        for field in response.headers.iter() {
            let name = field.name.as_ptr().addr() - base;
            let value = field.value.as_ptr().addr() - base;
            ranges.push(Range {
                name: (name, name + field.name.len()),
                value: (value, value + field.value.len()),
            });
        }
        // Complete: both are there.
        (
            length,
            response.code.unwrap_or_default(),
            response.version.unwrap_or_default(),
        )
    };
    let status =
        StatusCode::from_u16(code).map_err(|_| Malformed::Syntax(httparse::Error::Status))?;
    let head: Bytes = buffer.split_to(length).freeze();

    let mut headers = HeaderMap::with_capacity(ranges.len());
    let mut content_length = None;
    let mut chunked = false;
    let mut keep = minor == 1;
    let mut upgrade = None;
    let mut listed: SmallVec<[HeaderName; 2]> = SmallVec::new();
    for Range { name, value } in &ranges {
        let name = HeaderName::from_bytes(&head[name.0..name.1])
            .map_err(|_| Malformed::Syntax(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_maybe_shared(head.slice(value.0..value.1))
            .map_err(|_| Malformed::Syntax(httparse::Error::HeaderValue))?;
        if !is_hop_by_hop(&name) {
            headers
                .try_append(name, value)
                .map_err(|_| Malformed::TooLarge)?;
        } else if name == header::CONTENT_LENGTH {
            if content_length.is_some() {
                return Err(Malformed::Lengths);
            }
            content_length = Some(number(value.as_bytes())?);
            headers.insert(name, value);
        } else if name == header::TRANSFER_ENCODING {
            if chunked || minor == 0 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Coding);
            }
            chunked = true;
        } else if name == header::CONNECTION {
            for token in value.as_bytes().split(|b| *b == b',') {
                let token = token.trim_ascii();
                if token.eq_ignore_ascii_case(b"close") {
                    keep = false;
                } else if token.eq_ignore_ascii_case(b"keep-alive") {
                    keep |= minor == 0;
                } else if let Ok(name) = HeaderName::from_bytes(token) {
                    listed.push(name);
                }
            }
        } else if name == header::UPGRADE {
            upgrade = Some(value);
        }
    }
    // `close` wins over everything else that is said.
    for name in &listed {
        if *name != header::CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    if chunked && content_length.is_some() {
        return Err(Malformed::TwoFramings);
    }
    let framing = match status.as_u16() {
        100..200 | 204 | 304 => Framing::None,
        _ if *method == Method::HEAD => Framing::None,
        _ if chunked => Framing::Chunked,
        _ => content_length.map_or(Framing::Close, Framing::Length),
    };
    if has_no_length(status) {
        headers.remove(header::CONTENT_LENGTH);
    }
    Ok(Some(Incoming {
        status,
        headers,
        framing,
        keep: keep && framing != Framing::Close,
        upgrade,
    }))
}

/// A `Content-Length`.
///
/// # Errors
/// [`Malformed::Length`]
pub fn number(text: &[u8]) -> Result<u64, Malformed> {
    // 19 digits can't overflow.
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Length);
    }
    Ok(text
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// The one `Content-Length` of a response, where there is one; the client may speak
/// HTTP/1.1, where two of them would be two messages.
///
/// # Errors
/// [`Malformed::Length`], [`Malformed::Lengths`]
pub fn length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(length), None) => number(length.as_bytes()).map(Some),
        (Some(_), Some(_)) => Err(Malformed::Lengths),
    }
}

/// The version that is spoken with backends that [`Outgoing::write`] writes to.
pub const VERSION: Version = Version::HTTP_11;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Incoming>, Malformed> {
        read(&mut BytesMut::from(text), &Method::GET)
    }

    #[test]
    fn both_protocols_leave_out_the_same_fields() {
        let names = [
            "content-length",
            "etag",
            "http2-settings",
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
            "proxy-connection",
            "set-cookie",
            "te",
            "upgrade",
        ];
        for code in [103, 200, 204, 304] {
            let mut text = format!("HTTP/1.1 {code} x\r\n");
            let mut headers = HeaderMap::new();
            for name in names {
                text += &format!("{name}: 1\r\n");
                headers.insert(name, HeaderValue::from_static("1"));
            }
            let read = parse(&(text + "\r\n")).unwrap().unwrap();
            strip(read.status, &mut headers);
            assert_eq!(read.headers, headers, "{code}");
            let length = usize::from(code == 200 || code == 304);
            assert_eq!(headers.len(), 2 + length, "{code}");
        }
    }

    #[test]
    fn framings() {
        let framing = |text: &str| parse(text).map(|head| head.unwrap().framing);
        for (text, want) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                Framing::Length(5),
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n",
                Framing::Chunked,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n", Framing::Close),
            ("HTTP/1.0 200 OK\r\n\r\n", Framing::Close),
            (
                "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
                Framing::None,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
                Framing::None,
            ),
        ] {
            assert_eq!(framing(text), Ok(want), "{text}");
        }
        for (fields, want) in [
            (
                "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                Malformed::TwoFramings,
            ),
            (
                "content-length: 5\r\ncontent-length: 5\r\n",
                Malformed::Lengths,
            ),
            ("content-length: 5, 5\r\n", Malformed::Length),
            ("content-length: +5\r\n", Malformed::Length),
            ("content-length: \r\n", Malformed::Length),
            (
                "content-length: 99999999999999999999\r\n",
                Malformed::Length,
            ),
            ("transfer-encoding: gzip, chunked\r\n", Malformed::Coding),
            (
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
                Malformed::Coding,
            ),
            ("transfer-encoding: identity\r\n", Malformed::Coding),
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            assert_eq!(framing(&text), Err(want), "{fields}");
        }
        assert_eq!(
            parse("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap_err(),
            Malformed::Coding
        );
    }

    #[test]
    fn folded_and_spaced_names_are_refused() {
        for fields in [
            "a: b\r\n c\r\n",
            "a : b\r\n",
            " a: b\r\n",
            "a\0: b\r\n",
            "a: b\0\r\n",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            assert!(
                matches!(parse(&text), Err(Malformed::Syntax(_))),
                "{fields:?}"
            );
        }
        assert!(matches!(
            parse("HTP/1.1 200 OK\r\n\r\n"),
            Err(Malformed::Syntax(_))
        ));
        assert!(parse("HTTP/1.1 200 OK\r\na: b\r\n").unwrap().is_none());
    }

    #[test]
    fn what_is_of_the_connection_stays_there() {
        let head = parse(
            "HTTP/1.1 200 OK\r\nconnection: close, x-secret\r\nx-secret: 1\r\nkeep-alive: \
             timeout=5\r\nproxy-authenticate: Basic\r\nx-kept: 2\r\ncontent-length: 0\r\n\r\n",
        );
        let head = head.unwrap().unwrap();
        assert!(!head.keep);
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-kept"]);
        let old = parse("HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 0\r\n\r\n");
        assert!(old.unwrap().unwrap().keep);
    }

    fn written(outgoing: &Outgoing<'_>, extent: Extent) -> String {
        let mut out = BytesMut::new();
        outgoing.write(extent, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn requests_are_written_without_the_clients_connection() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "client.example"),
            ("connection", "x-hop, keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("te", "gzip"),
            ("proxy-authorization", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("cookie", "a=1"),
            ("accept", "*/*"),
            ("x-dropped", "1"),
            ("cookie", "b=2"),
        ] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        let listed = Listed::of(&headers);
        let mut outgoing = Outgoing {
            method: &Method::POST,
            target: "/x?y",
            host: b"server.example",
            headers: &headers,
            listed: &listed,
            drop: &|name| name == "x-dropped",
            lines: b"x-forwarded-for: 192.0.2.1\r\n",
            upgrade: None,
            expects: false,
            trailers: false,
            keep: true,
        };
        assert_eq!(
            written(&outgoing, Extent::Length(7)),
            "POST /x?y HTTP/1.1\r\nhost: server.example\r\ncookie: a=1; b=2\r\naccept: */*\r\n\
             x-forwarded-for: 192.0.2.1\r\ncontent-length: 7\r\n\r\n"
        );
        outgoing.keep = false;
        outgoing.trailers = true;
        outgoing.lines = b"";
        let text = written(&outgoing, Extent::Unknown);
        assert!(text.ends_with(
            "transfer-encoding: chunked\r\nte: trailers\r\nconnection: te, close\r\n\r\n"
        ));
        assert!(written(&outgoing, Extent::None).contains("content-length: 0\r\n"));
    }
}
