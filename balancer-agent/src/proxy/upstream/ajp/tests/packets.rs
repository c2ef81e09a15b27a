//! The container's side, written from the protocol's description alone: what it reads of a
//! request, and packets as it sends them.

use std::collections::BTreeMap;

/// A string: length, bytes, zero.
pub fn text(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u16).to_be_bytes().to_vec();
    out.extend(text.bytes());
    out.push(0);
    out
}

/// A header with a code.
pub fn coded(code: u16, value: &str) -> Vec<u8> {
    let mut out = code.to_be_bytes().to_vec();
    out.extend(text(value));
    out
}

/// A packet of the container's with this payload.
pub fn packet(payload: &[u8]) -> Vec<u8> {
    let mut out = b"AB".to_vec();
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend(payload);
    out
}

/// SEND_HEADERS.
pub fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut payload = vec![4];
    payload.extend(status.to_be_bytes());
    payload.extend(text("OK"));
    payload.extend((headers.len() as u16).to_be_bytes());
    for (name, value) in headers {
        payload.extend(text(name));
        payload.extend(text(value));
    }
    packet(&payload)
}

/// SEND_BODY_CHUNK.
pub fn chunk(data: &[u8]) -> Vec<u8> {
    let mut payload = vec![3];
    payload.extend((data.len() as u16).to_be_bytes());
    payload.extend(data);
    payload.push(0);
    packet(&payload)
}

/// END_RESPONSE.
pub fn end(reuse: u8) -> Vec<u8> {
    packet(&[5, reuse])
}

/// GET_BODY_CHUNK.
pub fn want(bytes: u16) -> Vec<u8> {
    let [high, low] = bytes.to_be_bytes();
    packet(&[6, high, low])
}

/// What a container reads of FORWARD_REQUEST.
#[derive(Debug)]
pub struct Request {
    pub method: u8,
    pub path: String,
    pub remote_addr: String,
    pub remote_host: String,
    pub server_name: String,
    pub port: u16,
    pub secure: bool,
    pub headers: Vec<(String, String)>,
    pub attributes: Attributes,
}

#[derive(Debug, Default, PartialEq)]
pub struct Attributes {
    pub query: Option<String>,
    pub route: Option<String>,
    pub ssl_cert: Option<String>,
    pub ssl_cipher: Option<String>,
    pub ssl_key_size: Option<u16>,
    pub secret: Option<String>,
    pub stored_method: Option<String>,
    pub named: BTreeMap<String, String>,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.0.split_first().unwrap();
        self.0 = rest;
        *byte
    }

    fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn rest_of_text(&mut self, length: u16) -> String {
        let text = (0..length).map(|_| char::from(self.byte())).collect();
        assert_eq!(self.byte(), 0);
        text
    }

    fn text(&mut self) -> String {
        let length = self.number();
        assert_ne!(length, 0xFFFF);
        self.rest_of_text(length)
    }
}

impl Request {
    pub fn read(packet: &[u8]) -> Self {
        let mut reader = Reader(packet);
        assert_eq!(reader.number(), 0x1234);
        assert_eq!(usize::from(reader.number()), packet.len() - 4);
        assert_eq!(reader.byte(), 2);
        let method = reader.byte();
        assert_eq!(reader.text(), "HTTP/1.1");
        let mut request = Self {
            method,
            path: reader.text(),
            remote_addr: reader.text(),
            remote_host: reader.text(),
            server_name: reader.text(),
            port: reader.number(),
            secure: match reader.byte() {
                0 => false,
                1 => true,
                other => panic!("{other}"),
            },
            headers: Vec::new(),
            attributes: Attributes::default(),
        };
        let names = [
            "accept",
            "accept-charset",
            "accept-encoding",
            "accept-language",
            "authorization",
            "connection",
            "content-type",
            "content-length",
            "cookie",
            "cookie2",
            "host",
            "pragma",
            "referer",
            "user-agent",
        ];
        for _ in 0..reader.number() {
            let name = match reader.number() {
                code if code >> 8 == 0xA0 => names[usize::from(code & 0xFF) - 1].to_owned(),
                length => reader.rest_of_text(length),
            };
            request.headers.push((name, reader.text()));
        }
        let attributes = &mut request.attributes;
        loop {
            let place = match reader.byte() {
                0x05 => &mut attributes.query,
                0x06 => &mut attributes.route,
                0x07 => &mut attributes.ssl_cert,
                0x08 => &mut attributes.ssl_cipher,
                0x0A => {
                    let name = reader.text();
                    assert!(attributes.named.insert(name, reader.text()).is_none());
                    continue;
                }
                0x0B => {
                    assert!(attributes.ssl_key_size.replace(reader.number()).is_none());
                    continue;
                }
                0x0C => &mut attributes.secret,
                0x0D => &mut attributes.stored_method,
                0xFF => break,
                other => panic!("attribute {other}"),
            };
            assert!(place.replace(reader.text()).is_none());
        }
        assert_eq!(reader.0, b"");
        request
    }

    /// The values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let all = self.headers.iter().filter(|(known, _)| known == name);
        all.map(|(_, value)| &**value).collect()
    }
}
