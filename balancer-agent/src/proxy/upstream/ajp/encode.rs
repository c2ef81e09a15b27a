//! What goes to the container: a request's head, parts of its body, CPING.
//!
//! A string is its length (two bytes), its bytes and a zero that is not counted. What does
//! not fit into one packet is not sent: there is no way to split a head.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header;

use super::codes::{self, Attribute, Named, to_container};
use crate::model::Activation;
use crate::model::http::Secret;
use crate::proxy::types::TlsInfo;
use crate::proxy::upstream::body::Extent;
use crate::proxy::upstream::head::Outgoing;

/// How a packet to the container begins.
pub const MAGIC: [u8; 2] = [0x12, 0x34];
/// Bytes of a packet's own head.
pub const HEAD: usize = 4;
/// Bytes before the data in a packet of a request's body.
pub const BODY_HEAD: usize = 6;
/// The end of a request's body.
pub const BODY_END: [u8; HEAD] = [MAGIC[0], MAGIC[1], 0, 0];
/// Asks whether the container answers.
pub const CPING: [u8; 5] = [MAGIC[0], MAGIC[1], 0, 1, to_container::CPING];
/// Room for a usual head.
const USUAL: usize = 512;

/// What is known of a request beside its head.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// `HTTP/1.1`: what the client speaks.
    pub protocol: &'static str,
    /// The client. Port 0 when only a trusted proxy knows it.
    pub client: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
    /// The client speaks TLS, to us or to a trusted proxy.
    pub secure: bool,
    /// What TLS agreed on, with us.
    pub tls: Option<&'a TlsInfo>,
    /// The backend's route.
    pub route: &'a str,
    /// What the operator wants of the backend.
    pub activation: Activation,
}

/// Why a request can't be put into AJP13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Larger than a packet.
    TooLarge,
    /// A byte that could end a string or a line.
    Byte,
}

/// Writes a request's head.
///
/// # Errors
/// [`Unfit`]; then nothing has been written.
pub fn forward(
    request: &Outgoing<'_>,
    extent: Extent,
    origin: &Origin<'_>,
    secret: Option<&Secret>,
    packet_size: usize,
    out: &mut BytesMut,
) -> Result<(), Unfit> {
    let begin = out.len();
    out.reserve(USUAL.min(packet_size));
    let mut packet = Packet {
        out,
        begin,
        most: packet_size,
        unfit: None,
    };
    packet.forward(request, extent, origin, secret);
    match packet.finish() {
        Ok(()) => Ok(()),
        Err(unfit) => {
            out.truncate(begin);
            Err(unfit)
        }
    }
}

/// A packet that is being written.
struct Packet<'a> {
    out: &'a mut BytesMut,
    begin: usize,
    most: usize,
    unfit: Option<Unfit>,
}

impl Packet<'_> {
    fn forward(
        &mut self,
        request: &Outgoing<'_>,
        extent: Extent,
        origin: &Origin<'_>,
        secret: Option<&Secret>,
    ) {
        self.out.extend_from_slice(&[MAGIC[0], MAGIC[1], 0, 0]);
        self.out.put_u8(to_container::FORWARD_REQUEST);
        let method = request.method.as_str();
        let code = codes::method(method);
        self.out.put_u8(code.unwrap_or(codes::STORED_METHOD));
        self.known(origin.protocol.as_bytes());
        let (path, query) = match request.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (request.target, None),
        };
        self.string(path.as_bytes());
        // Both are addresses: names are not looked up.
        let client = Text::address(origin.client.ip());
        self.known(client.bytes());
        self.known(client.bytes());
        let (name, port) = host_and_port(request.host);
        self.string(name);
        let default = if origin.secure { 443 } else { 80 };
        self.out.put_u16(port.unwrap_or(default));
        self.out.put_u8(origin.secure.into());

        let count = self.out.len();
        self.out.put_u16(0);
        let headers = self.headers(request, extent);
        // More than that do not fit anyway.
        let headers = u16::try_from(headers).unwrap_or(u16::MAX);
        self.out[count..count + 2].copy_from_slice(&headers.to_be_bytes());

        if let Some(query) = query {
            self.attribute(Attribute::QueryString, query.as_bytes());
        }
        if !origin.route.is_empty() {
            self.attribute(Attribute::Route, origin.route.as_bytes());
        }
        if let Some(tls) = origin.tls {
            if let Some(certificate) = &tls.client_certificate {
                self.attribute(Attribute::SslCert, pem(certificate).as_bytes());
            }
            self.attribute(Attribute::SslCipher, tls.cipher.as_bytes());
            if let Some(bits) = key_size(tls.cipher) {
                self.out.put_u8(Attribute::SslKeySize.code());
                self.out.put_u16(bits);
            }
            let name = Attribute::Request(Named::SslProtocol);
            self.attribute(name, tls.version.as_bytes());
        }
        if let Some(Secret(secret)) = secret {
            self.attribute(Attribute::Secret, secret.as_bytes());
        }
        if code.is_none() {
            self.attribute(Attribute::StoredMethod, method.as_bytes());
        }
        let port = Attribute::Request(Named::RemotePort);
        self.attribute(port, Text::number(origin.client.port().into()).bytes());
        let local = Attribute::Request(Named::LocalAddr);
        self.attribute(local, Text::address(origin.local.ip()).bytes());
        let activation = match origin.activation {
            Activation::Active => b"ACT",
            Activation::Drain => b"DIS",
            Activation::Stopped => b"STP",
        };
        self.attribute(Attribute::Request(Named::Activation), activation);
        self.out.put_u8(codes::END);
    }

    /// Returns how many there are.
    fn headers(&mut self, request: &Outgoing<'_>, extent: Extent) -> usize {
        let mut count = 1;
        self.header(b"host", request.host);
        // Cookie may come in crumbs (RFC 9113, 8.2.3); containers want one line.
        let mut crumbs = false;
        for (name, value) in request.headers {
            if !request.passes(name) || codes::is_reserved(name) {
                continue;
            }
            if *name == header::COOKIE {
                if std::mem::replace(&mut crumbs, true) {
                    continue;
                }
                let mut all = request.headers.get_all(header::COOKIE).iter();
                match (all.next(), all.next()) {
                    (Some(_), Some(_)) => {
                        let all = request.headers.get_all(header::COOKIE).iter();
                        let all: Vec<&[u8]> = all.map(|crumb| crumb.as_bytes()).collect();
                        self.header(b"cookie", &all.join(&b"; "[..]));
                    }
                    _ => self.header(b"cookie", value.as_bytes()),
                }
            } else {
                self.header(name.as_str().as_bytes(), value.as_bytes());
            }
            count += 1;
        }
        let mut lines = request.lines;
        while let Some(end) = memchr::memchr(b'\n', lines) {
            let (line, rest) = lines.split_at(end + 1);
            lines = rest;
            if let Some(colon) = memchr::memchr(b':', line) {
                self.header(&line[..colon], line[colon + 1..].trim_ascii());
                count += 1;
            }
        }
        // Without a length a body of unknown length is meant; none at all is 0.
        let length = match extent {
            Extent::None => 0,
            Extent::Length(length) => length,
            Extent::Unknown => return count,
        };
        self.header(b"content-length", Text::number(length).bytes());
        count + 1
    }

    /// `name` is in lower case.
    fn header(&mut self, name: &[u8], value: &[u8]) {
        match codes::request_header(name) {
            Some(code) => self.out.put_u16(code),
            // It would be read as a code.
            None if name.len() >= usize::from(codes::CODED) << 8 => {
                self.unfit = Some(Unfit::TooLarge);
                return;
            }
            None => self.string(name),
        }
        self.string(value);
    }

    fn attribute(&mut self, attribute: Attribute, value: &[u8]) {
        self.out.put_u8(attribute.code());
        if let Attribute::Request(named) = attribute {
            self.known(named.name().as_bytes());
        }
        self.string(value);
    }

    fn string(&mut self, bytes: &[u8]) {
        // The parsers before us have let none of these through. PEM has lines.
        match memchr::memchr(0, bytes) {
            None => self.known(bytes),
            Some(_) => self.unfit = Some(Unfit::Byte),
        }
    }

    /// A string that has no zero in it: not of the client's words, nor of the operator's.
    fn known(&mut self, bytes: &[u8]) {
        // The last length stands for a string that is not there.
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        if length == u16::MAX || self.out.len() - self.begin + bytes.len() > self.most {
            self.unfit = Some(Unfit::TooLarge);
            return;
        }
        self.out.put_u16(length);
        self.out.extend_from_slice(bytes);
        self.out.put_u8(0);
    }

    fn finish(self) -> Result<(), Unfit> {
        if let Some(unfit) = self.unfit {
            return Err(unfit);
        }
        let length = self.out.len() - self.begin;
        let payload = u16::try_from(length - HEAD).map_err(|_| Unfit::TooLarge)?;
        if length > self.most {
            return Err(Unfit::TooLarge);
        }
        let place = self.begin + MAGIC.len()..self.begin + HEAD;
        self.out[place].copy_from_slice(&payload.to_be_bytes());
        Ok(())
    }
}

/// A number or an address as text, in no memory of its own.
struct Text {
    bytes: [u8; Self::ROOM],
    length: usize,
}

impl Text {
    /// Digits of an IPv6 address with an IPv4 address in it, which is longer than any number.
    const ROOM: usize = 45;

    const fn new() -> Self {
        Self {
            bytes: [0; Self::ROOM],
            length: 0,
        }
    }

    /// IPv4 where it is that within IPv6.
    fn address(ip: IpAddr) -> Self {
        let mut text = Self::new();
        match ip.to_canonical() {
            // By hand: every request has two of them.
            IpAddr::V4(ip) => {
                for (at, octet) in ip.octets().into_iter().enumerate() {
                    if at > 0 {
                        text.push(b".");
                    }
                    text.push(Self::number(octet.into()).bytes());
                }
            }
            IpAddr::V6(ip) => {
                // There is room.
                let _ = write!(text, "{ip}");
            }
        }
        text
    }

    fn number(mut number: u64) -> Self {
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
        let mut text = Self::new();
        text.push(&digits[at..]);
        text
    }

    fn push(&mut self, bytes: &[u8]) -> bool {
        let room = self.bytes.get_mut(self.length..self.length + bytes.len());
        let fits = room.map(|room| room.copy_from_slice(bytes)).is_some();
        if fits {
            self.length += bytes.len();
        }
        fits
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes()).then_some(()).ok_or(fmt::Error)
    }
}

/// Name and port of a `Host`; an IPv6 address keeps its brackets, as Tomcat has it.
fn host_and_port(host: &[u8]) -> (&[u8], Option<u16>) {
    let end = match host.first() {
        Some(b'[') => memchr::memchr(b']', host).map_or(host.len(), |at| at + 1),
        _ => memchr::memrchr(b':', host).unwrap_or(host.len()),
    };
    let (name, rest) = host.split_at(end);
    let port = rest.strip_prefix(b":").unwrap_or_default();
    let port = std::str::from_utf8(port).ok().and_then(|p| p.parse().ok());
    (name, port)
}

/// A certificate as Tomcat reads it.
fn pem(certificate: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Bits of a cipher suite's key.
fn key_size(cipher: &str) -> Option<u16> {
    match cipher {
        _ if cipher.contains("AES_128") => Some(128),
        _ if cipher.contains("AES_256") || cipher.contains("CHACHA20") => Some(256),
        _ => None,
    }
}

/// Writes a packet of a request's body: as much of `parts`, in order, as there is in `most`
/// bytes of data. Without data nothing is written: an empty packet would be the end.
#[derive(Debug)]
pub struct BodyPacket {
    begin: usize,
    most: usize,
}

impl BodyPacket {
    /// With at most so many bytes of data; at least 1.
    pub fn begin(wanted: usize, packet_size: usize, out: &mut BytesMut) -> Self {
        let begin = out.len();
        out.extend_from_slice(&[MAGIC[0], MAGIC[1], 0, 0, 0, 0]);
        // The length of the data and its own are of two bytes.
        let most = packet_size.min(usize::from(u16::MAX) + HEAD) - BODY_HEAD;
        Self {
            begin,
            most: wanted.clamp(1, most),
        }
    }

    fn length(&self, out: &BytesMut) -> usize {
        out.len() - self.begin - BODY_HEAD
    }

    /// Bytes that still go in.
    pub fn room(&self, out: &BytesMut) -> usize {
        self.most - self.length(out)
    }

    /// Takes off `data` what goes in.
    pub fn put(&self, data: &mut Bytes, out: &mut BytesMut) {
        let n = data.len().min(self.room(out));
        out.extend_from_slice(&data.split_to(n));
    }

    /// Completes it. `false` when there was no data.
    pub fn end(self, out: &mut BytesMut) -> bool {
        let length = self.length(out);
        if length == 0 {
            out.truncate(self.begin);
            return false;
        }
        // `most` keeps both within two bytes.
        let data = (length as u16).to_be_bytes();
        let payload = (length as u16 + 2).to_be_bytes();
        let head = &mut out[self.begin + MAGIC.len()..self.begin + BODY_HEAD];
        head.copy_from_slice(&[payload[0], payload[1], data[0], data[1]]);
        true
    }
}
