//! What goes out.

use bytes::{Bytes, BytesMut};
use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::packets::{Attributes, Request, coded, text};
use crate::model::Activation;
use crate::model::http::Secret;
use crate::proxy::types::TlsInfo;
use crate::proxy::upstream::ajp::encode::{BodyPacket, Origin, Unfit, forward};
use crate::proxy::upstream::body::Extent;
use crate::proxy::upstream::head::{Listed, Outgoing};

const SIZE: usize = 8192;

fn origin() -> Origin<'static> {
    Origin {
        protocol: "HTTP/1.1",
        client: "192.0.2.7:40000".parse().unwrap(),
        local: "198.51.100.1:80".parse().unwrap(),
        secure: false,
        tls: None,
        route: "",
        activation: Activation::Active,
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    headers
}

/// Writes a request and hands out the packet.
fn packet(
    (method, target, host): (&Method, &str, &str),
    (headers, lines): (&HeaderMap, &[u8]),
    extent: Extent,
    origin: &Origin<'_>,
    secret: Option<&str>,
    size: usize,
) -> Result<Vec<u8>, Unfit> {
    let listed = Listed::of(headers);
    let outgoing = Outgoing {
        method,
        target,
        host: host.as_bytes(),
        headers,
        listed: &listed,
        drop: &|name| name == "x-dropped",
        lines,
        upgrade: None,
        expects: false,
        trailers: false,
        keep: true,
    };
    let secret = secret.map(|secret| Secret(secret.into()));
    let mut out = BytesMut::from("before");
    let written = forward(&outgoing, extent, origin, secret.as_ref(), size, &mut out);
    assert_eq!(&out[..6], b"before");
    match written {
        Ok(()) => Ok(out[6..].to_vec()),
        Err(unfit) => {
            assert_eq!(out.len(), 6, "something was left behind");
            Err(unfit)
        }
    }
}

fn get(target: &str, host: &str, map: &HeaderMap, origin: &Origin<'_>) -> Request {
    let request = (&Method::GET, target, host);
    let packet = packet(request, (map, b""), Extent::None, origin, None, SIZE);
    Request::read(&packet.unwrap())
}

#[test]
fn a_request_is_written_as_the_protocol_says() {
    let map = headers(&[("accept", "*/*"), ("x-a", "b")]);
    let request = (&Method::GET, "/x?y=1", "www.example.org:8080");
    let origin = Origin {
        route: "s1",
        ..origin()
    };
    let packet = packet(
        request,
        (&map, b""),
        Extent::None,
        &origin,
        Some("word"),
        SIZE,
    );
    let mut want = vec![0x12, 0x34, 0, 0, 0x02, 0x02];
    want.extend(text("HTTP/1.1"));
    want.extend(text("/x"));
    want.extend(text("192.0.2.7"));
    want.extend(text("192.0.2.7"));
    want.extend(text("www.example.org"));
    want.extend([0x1F, 0x90, 0]);
    want.extend([0, 4]);
    want.extend(coded(0xA00B, "www.example.org:8080"));
    want.extend(coded(0xA001, "*/*"));
    want.extend(text("x-a"));
    want.extend(text("b"));
    want.extend(coded(0xA008, "0"));
    want.push(0x05);
    want.extend(text("y=1"));
    want.push(0x06);
    want.extend(text("s1"));
    want.push(0x0C);
    want.extend(text("word"));
    for (name, value) in [
        ("AJP_REMOTE_PORT", "40000"),
        ("AJP_LOCAL_ADDR", "198.51.100.1"),
        ("JK_LB_ACTIVATION", "ACT"),
    ] {
        want.push(0x0A);
        want.extend(text(name));
        want.extend(text(value));
    }
    want.push(0xFF);
    let length = (want.len() as u16 - 4).to_be_bytes();
    want[2..4].copy_from_slice(&length);
    assert_eq!(packet.unwrap(), want);
}

#[test]
fn methods_without_a_code_are_stored() {
    for (method, code) in [("PROPFIND", 8), ("PATCH", 0xFF), ("M-SEARCH", 0xFF)] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = (&method, "/", "a");
        let map = HeaderMap::new();
        let packet = packet(request, (&map, b""), Extent::None, &origin(), None, SIZE);
        let read = Request::read(&packet.unwrap());
        assert_eq!(read.method, code);
        let stored = (code == 0xFF).then(|| method.to_string());
        assert_eq!(read.attributes.stored_method, stored);
    }
}

#[test]
fn hosts_and_ports() {
    let map = HeaderMap::new();
    for (host, secure, name, port) in [
        ("www.example.org", false, "www.example.org", 80),
        ("www.example.org", true, "www.example.org", 443),
        ("www.example.org:8443", true, "www.example.org", 8443),
        ("192.0.2.1:81", false, "192.0.2.1", 81),
        ("[2001:db8::1]", false, "[2001:db8::1]", 80),
        ("[2001:db8::1]:8080", true, "[2001:db8::1]", 8080),
        ("a:", false, "a", 80),
        ("a:99999", false, "a", 80),
        ("[::1", false, "[::1", 80),
        ("", true, "", 443),
    ] {
        let origin = Origin { secure, ..origin() };
        let read = get("/", host, &map, &origin);
        assert_eq!((&*read.server_name, read.port), (name, port), "{host}");
        assert_eq!(read.secure, secure);
        assert_eq!(read.header("host"), [host]);
    }
}

#[test]
fn clients_addresses() {
    let map = HeaderMap::new();
    for (client, address, port) in [
        ("192.0.2.7:1", "192.0.2.7", "1"),
        ("[::ffff:192.0.2.7]:65535", "192.0.2.7", "65535"),
        ("[2001:db8::7]:0", "2001:db8::7", "0"),
    ] {
        let origin = Origin {
            client: client.parse().unwrap(),
            local: "[::ffff:10.0.0.1]:80".parse().unwrap(),
            ..origin()
        };
        let read = get("/", "a", &map, &origin);
        assert_eq!((&*read.remote_addr, &*read.remote_host), (address, address));
        assert_eq!(read.attributes.named["AJP_REMOTE_PORT"], port);
        assert_eq!(read.attributes.named["AJP_LOCAL_ADDR"], "10.0.0.1");
    }
}

#[test]
fn nothing_of_the_client_becomes_an_attribute() {
    let map = headers(&[
        ("AJP_REMOTE_PORT", "1"),
        ("ajp_local_addr", "1"),
        ("JK_LB_ACTIVATION", "DIS"),
        ("jk_anything", "1"),
        ("connection", "x-hop, keep-alive"),
        ("x-hop", "1"),
        ("upgrade", "x"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("content-length", "77"),
        ("expect", "100-continue"),
        ("host", "other"),
        ("x-dropped", "1"),
        ("secret", "guess"),
        ("x-ajp_kept", "1"),
    ]);
    let mut read = get("/a", "a", &map, &origin());
    read.headers.sort();
    let want = [
        ("content-length", "0"),
        ("host", "a"),
        ("secret", "guess"),
        ("x-ajp_kept", "1"),
    ];
    assert_eq!(
        read.headers,
        want.map(|(n, v)| (n.to_owned(), v.to_owned()))
    );
    let names: Vec<&str> = read.attributes.named.keys().map(|name| &**name).collect();
    assert_eq!(
        names,
        ["AJP_LOCAL_ADDR", "AJP_REMOTE_PORT", "JK_LB_ACTIVATION"]
    );
    assert_eq!(read.attributes.named["JK_LB_ACTIVATION"], "ACT");
    let others = Attributes {
        named: Default::default(),
        ..read.attributes
    };
    assert_eq!(others, Attributes::default());
}

#[test]
fn queries_cookies_lengths_and_lines() {
    let map = headers(&[("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2")]);
    let lines = b"x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: http\r\n";
    for (target, path, query) in [
        ("/x", "/x", None),
        ("/x?", "/x", Some("")),
        ("/x;a=b?c=d?e", "/x;a=b", Some("c=d?e")),
    ] {
        for (extent, length) in [
            (Extent::None, Some("0")),
            (Extent::Length(12_345_678_901), Some("12345678901")),
            (Extent::Unknown, None),
        ] {
            let request = (&Method::POST, target, "a");
            let packet = packet(request, (&map, lines), extent, &origin(), None, SIZE);
            let read = Request::read(&packet.unwrap());
            assert_eq!(read.path, path);
            assert_eq!(read.attributes.query.as_deref(), query);
            assert_eq!(read.header("cookie"), ["a=1; b=2"]);
            assert_eq!(read.header("content-length"), Vec::from_iter(length));
            assert_eq!(read.header("x-forwarded-for"), ["192.0.2.7"]);
            assert_eq!(read.header("x-forwarded-proto"), ["http"]);
        }
    }
}

#[test]
fn tls_is_told() {
    let map = HeaderMap::new();
    let certificate: Vec<u8> = (0..100).collect();
    for (cipher, bits) in [
        ("TLS_AES_128_GCM_SHA256", Some(128)),
        ("TLS_AES_256_GCM_SHA384", Some(256)),
        ("TLS_CHACHA20_POLY1305_SHA256", Some(256)),
        ("-", None),
    ] {
        for shown in [None, Some(&certificate)] {
            let tls = TlsInfo {
                version: "TLSv1.3",
                cipher,
                server_name: None,
                client_certificate: shown.map(|bytes| bytes.as_slice().into()),
            };
            let origin = Origin {
                secure: true,
                tls: Some(&tls),
                activation: Activation::Drain,
                ..origin()
            };
            let read = get("/", "a", &map, &origin).attributes;
            assert_eq!(read.ssl_cipher.as_deref(), Some(cipher));
            assert_eq!(read.ssl_key_size, bits);
            assert_eq!(read.named["AJP_SSL_PROTOCOL"], "TLSv1.3");
            assert_eq!(read.named["JK_LB_ACTIVATION"], "DIS");
            let pem = "-----BEGIN CERTIFICATE-----\n\
                 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4v\n\
                 MDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZHSElKS0xNTk9QUVJTVFVWV1hZWltcXV5f\n\
                 YGFiYw==\n\
                 -----END CERTIFICATE-----\n";
            assert_eq!(read.ssl_cert.as_deref(), shown.map(|_| pem));
        }
    }
}

#[test]
fn what_does_not_fit_is_not_sent() {
    let origin = origin();
    let sized = |value: usize, size: usize| {
        let map = headers(&[("x-long", &"v".repeat(value))]);
        let request = (&Method::GET, "/", "a");
        packet(request, (&map, b""), Extent::None, &origin, Some("s"), size)
    };
    for size in [SIZE, 20_000, 65_536] {
        let empty = sized(0, size).unwrap().len();
        // To the byte.
        let full = sized(size - empty, size).unwrap();
        assert_eq!(full.len(), size);
        assert_eq!(
            usize::from(u16::from_be_bytes([full[2], full[3]])),
            size - 4
        );
        assert_eq!(sized(size - empty + 1, size), Err(Unfit::TooLarge));
    }
    assert_eq!(sized(100_000, 65_536), Err(Unfit::TooLarge));
    // A name of such a length would be read as a code, and its bytes as other headers.
    let named = |length: usize| {
        let map = headers(&[(&"n".repeat(length), "")]);
        let request = (&Method::GET, "/", "a");
        packet(request, (&map, b""), Extent::None, &origin, None, 65_536)
    };
    assert!(named(0x9FFF).is_ok());
    assert_eq!(named(0xA000), Err(Unfit::TooLarge));
    assert_eq!(named(0xA00B), Err(Unfit::TooLarge));
    // Bytes that none of the parsers before lets through.
    let request = (&Method::GET, "/a\0b", "a");
    let map = HeaderMap::new();
    let written = packet(request, (&map, b""), Extent::None, &origin, None, SIZE);
    assert_eq!(written, Err(Unfit::Byte));
}

#[test]
fn packets_of_a_body() {
    let mut out = BytesMut::from("x");
    let packet = BodyPacket::begin(5, SIZE, &mut out);
    let mut data = Bytes::from_static(b"abc");
    packet.put(&mut data, &mut out);
    let mut data = Bytes::from_static(b"defg");
    packet.put(&mut data, &mut out);
    assert_eq!((packet.room(&out), &data[..]), (0, &b"fg"[..]));
    assert!(packet.end(&mut out));
    assert_eq!(&out[..], b"x\x12\x34\0\x07\0\x05abcde");
    // Without data there is no packet.
    let mut out = BytesMut::from("x");
    let packet = BodyPacket::begin(5, SIZE, &mut out);
    assert!(!packet.end(&mut out));
    assert_eq!(&out[..], b"x");
    // As much as fits, whatever was asked for.
    for size in [SIZE, 65_536] {
        let mut out = BytesMut::new();
        let packet = BodyPacket::begin(usize::from(u16::MAX), size, &mut out);
        let mut data = Bytes::from(vec![7; 100_000]);
        packet.put(&mut data, &mut out);
        assert!(packet.end(&mut out));
        assert_eq!(out.len(), size);
        assert_eq!(usize::from(u16::from_be_bytes([out[2], out[3]])), size - 4);
        assert_eq!(usize::from(u16::from_be_bytes([out[4], out[5]])), size - 6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_by_a_container(
        method in "[A-Z-]{1,20}",
        path in "/[a-z0-9/;=%._~-]{0,200}",
        query in proptest::option::of("[!-~]{0,200}"),
        host in "[a-z0-9.-]{1,30}(:[1-9][0-9]{0,3})?",
        fields in proptest::collection::vec(("x-[a-z0-9_!#$%&'*+.^`|~-]{1,30}", "([!-~\u{a0}-\u{ff}]([ -~\u{a0}-\u{ff}]{0,100}[!-~])?)?"), 0..40),
        length in proptest::option::of(0..u64::MAX),
        secret in proptest::option::of("[ -~]{1,30}"),
        route in "[a-z0-9]{0,8}",
        size in 8192..=65_536usize,
    ) {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let target = match &query {
            Some(query) => format!("{path}?{query}"),
            None => path.clone(),
        };
        let mut map = HeaderMap::new();
        for (name, value) in &fields {
            // As Latin-1, as Tomcat reads it.
            let value: Vec<u8> = value.chars().map(|c| c as u8).collect();
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(&value).unwrap(),
            );
        }
        let origin = Origin { route: &route, ..origin() };
        let extent = length.map_or(Extent::Unknown, Extent::Length);
        let written = packet(
            (&method, &target, &host), (&map, b""), extent, &origin, secret.as_deref(), size,
        );
        let read = match written {
            Ok(packet) => {
                prop_assert!(packet.len() <= size);
                Request::read(&packet)
            }
            Err(unfit) => {
                prop_assert_eq!(unfit, Unfit::TooLarge);
                let bytes: usize = fields.iter().map(|(n, v)| n.len() + 2 * v.len() + 6).sum();
                prop_assert!(bytes > size - 1500, "{} of {}", bytes, size);
                return Ok(());
            }
        };
        prop_assert_eq!(read.path, path);
        prop_assert_eq!(read.attributes.query, query);
        prop_assert_eq!(read.attributes.secret, secret);
        prop_assert_eq!(read.attributes.route, (!route.is_empty()).then_some(route));
        let name = host.split(':').next().unwrap();
        prop_assert_eq!(&*read.server_name, name);
        let mut want: Vec<(String, String)> = map
            .iter()
            .map(|(n, v)| (n.to_string(), v.as_bytes().iter().map(|b| char::from(*b)).collect()))
            .collect();
        want.push(("host".into(), host));
        want.extend(length.map(|length| ("content-length".into(), length.to_string())));
        want.sort();
        let mut headers = read.headers;
        headers.sort();
        prop_assert_eq!(headers, want);
    }
}
