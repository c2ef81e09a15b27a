//! What comes in.

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;

use super::packets::{chunk, coded, end, head, packet, text, want};
use crate::proxy::upstream::ajp::decode::{Decoder, Piece, Violation};

const SIZE: usize = 8192;

/// All pieces of these bytes, and what was wrong; parts of the body in one.
fn read(bytes: &[u8], size: usize, steps: &[usize]) -> (Vec<Piece>, Option<Violation>) {
    let mut decoder = Decoder::new(size);
    let mut buffer = BytesMut::new();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut rest = bytes;
    let mut steps = steps.iter().cycle();
    loop {
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(Piece::Data(data))) => {
                    assert!(!data.is_empty());
                    if let Some(Piece::Data(last)) = pieces.last_mut() {
                        *last = [&last[..], &data[..]].concat().into();
                    } else {
                        pieces.push(Piece::Data(data));
                    }
                }
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => break,
                Err(violation) => return (pieces, Some(violation)),
            }
            assert!(pieces.len() <= bytes.len());
        }
        // What waits for more is never longer than a packet.
        assert!(buffer.len() < size);
        if rest.is_empty() {
            return (pieces, None);
        }
        let step = (*steps.next().unwrap()).clamp(1, rest.len());
        buffer.extend_from_slice(&rest[..step]);
        rest = &rest[step..];
    }
}

fn wrong(bytes: &[u8]) -> Violation {
    let all = read(bytes, SIZE, &[bytes.len()]).1;
    // However it comes.
    assert_eq!(read(bytes, SIZE, &[1]).1, all);
    all.unwrap_or_else(|| panic!("{bytes:?} is taken"))
}

#[test]
fn a_response_is_read_as_the_protocol_says() {
    let bytes = [
        packet(&[6, 0x1F, 0xFA]),
        // Content-Type by its code, a header by its name, a message that is not there.
        packet(
            &[
                &[4, 0, 200, 0xFF, 0xFF, 0, 2][..],
                &coded(0xA001, "text/html"),
                &text("X-A"),
                &text(" b\u{e9} "),
            ]
            .concat(),
        ),
        packet(b"\x03\0\x05hello\0"),
        packet(b"\x03\0\0\0"),
        packet(b"\x03\0\x01!\0"),
        packet(&[5, 1]),
        packet(&[9]),
        packet(&[5, 0]),
    ]
    .concat();
    for steps in [vec![bytes.len()], vec![1], vec![3, 1, 7]] {
        let (pieces, wrong) = read(&bytes, SIZE, &steps);
        assert_eq!(wrong, None);
        let [
            Piece::Wanted(8186),
            Piece::Head(head),
            Piece::Data(data),
            Piece::End { reuse: true },
            Piece::Pong,
            Piece::End { reuse: false },
        ] = &pieces[..]
        else {
            panic!("{pieces:?}");
        };
        assert_eq!(head.status, 200);
        assert_eq!(head.headers.len(), 2);
        assert_eq!(head.headers["content-type"], "text/html");
        assert_eq!(head.headers["x-a"].as_bytes(), "b\u{e9}".as_bytes());
        assert_eq!(&data[..], b"hello!");
    }
}

#[test]
fn what_is_wrong_is_seen_at_once() {
    for (bytes, violation) in [
        (&b"HTTP/1.1 400"[..], Violation::Magic),
        (b"AC", Violation::Magic),
        (b"\x12\x34\0\x01\x0A", Violation::Magic),
        (b"AB\0\0", Violation::Empty),
        (b"AB\x1F\xFD", Violation::TooLarge(8193)),
        (b"AB\xFF\xFF", Violation::TooLarge(65_539)),
        (b"AB\0\x01\x00", Violation::Kind(0)),
        (b"AB\0\x01\x02", Violation::Kind(2)),
        (b"AB\0\x02\x0A", Violation::Kind(10)),
        // A part of a body whose own length is another than the packet's.
        (b"AB\0\x01\x03", Violation::Length(3)),
        (b"AB\0\x03\x03", Violation::Length(3)),
        (b"AB\0\x08\x03\0\x05", Violation::Length(3)),
        (b"AB\0\x09\x03\0\x04", Violation::Length(3)),
        (b"AB\0\x09\x03\xFF\xFF", Violation::Length(3)),
        (b"AB\0\x05\x03\0\x01a\x01", Violation::Unended),
        (b"AB\0\x04\x03\0\0\x01", Violation::Unended),
        (b"AB\0\x01\x05", Violation::Length(5)),
        (b"AB\0\x03\x05", Violation::Length(5)),
        (b"AB\0\x02\x06", Violation::Length(6)),
        (b"AB\0\x04\x06", Violation::Length(6)),
        (b"AB\0\x02\x09", Violation::Length(9)),
        // Heads that end too early, in every part.
        (b"AB\0\x01\x04", Violation::Length(4)),
        (b"AB\0\x02\x04\0", Violation::Length(4)),
        (b"AB\0\x03\x04\0\xC8", Violation::Length(4)),
        (b"AB\0\x05\x04\0\xC8\0\0", Violation::Length(4)),
        (b"AB\0\x06\x04\0\xC8\0\0\0", Violation::Length(4)),
        (b"AB\0\x06\x04\0\xC8\0\0\x01", Violation::Unended),
        (b"AB\0\x08\x04\0\xC8\xFF\xFE\0\0\0", Violation::Length(4)),
        (b"AB\0\x07\x04\0\xC8\xFF\xFF\0\x01", Violation::Length(4)),
        (
            b"AB\0\x09\x04\0\xC8\xFF\xFF\0\x01\xA0\x01",
            Violation::Length(4),
        ),
        (
            b"AB\0\x0A\x04\0\xC8\xFF\xFF\0\x01\xA0\x01\0",
            Violation::Length(4),
        ),
        // Bytes behind the last header.
        (b"AB\0\x08\x04\0\xC8\xFF\xFF\0\0\0", Violation::Length(4)),
        // Codes and names that are none; values that are not there.
        (
            b"AB\0\x0C\x04\0\xC8\xFF\xFF\0\x01\xA0\x0C\0\0\0",
            Violation::Header,
        ),
        (
            b"AB\0\x0C\x04\0\xC8\xFF\xFF\0\x01\xA0\0\0\0\0",
            Violation::Header,
        ),
        (
            b"AB\0\x0C\x04\0\xC8\xFF\xFF\0\x01\xFF\xFF\0\0\0",
            Violation::Header,
        ),
        (
            b"AB\0\x0D\x04\0\xC8\xFF\xFF\0\x01\0\0\0\0\0\0",
            Violation::Header,
        ),
        (
            b"AB\0\x0B\x04\0\xC8\xFF\xFF\0\x01\xA0\x01\xFF\xFF",
            Violation::Header,
        ),
        // No end of headers.
        (
            b"AB\0\x07\x04\0\xC8\xFF\xFF\0\x81",
            Violation::TooManyHeaders,
        ),
        (
            b"AB\0\x07\x04\0\xC8\xFF\xFF\xFF\xFF",
            Violation::TooManyHeaders,
        ),
    ] {
        assert_eq!(wrong(bytes), violation, "{bytes:x?}");
    }
    for status in [0, 99, 100, 101, 103, 199, 1000, 65_535] {
        assert_eq!(wrong(&head(status, &[])), Violation::Status(status));
    }
    for (name, value) in [
        ("a b", "c"),
        ("a:", "c"),
        ("a\r\nb", "c"),
        ("a", "b\r\nc: d"),
        ("a", "\0"),
    ] {
        assert_eq!(wrong(&head(200, &[(name, value)])), Violation::Header);
    }
}

#[test]
fn the_largest_packets_are_taken() {
    for size in [SIZE, 65_536] {
        let data = vec![b'x'; size - 8];
        let bytes = [chunk(&data), end(1)].concat();
        let (pieces, wrong) = read(&bytes, size, &[usize::MAX]);
        assert_eq!(wrong, None);
        assert_eq!(
            pieces,
            [Piece::Data(data.into()), Piece::End { reuse: true }]
        );
        let value = "v".repeat(size - head(200, &[("x", "")]).len());
        let bytes = head(200, &[("x", &value)]);
        assert_eq!(bytes.len(), size);
        assert_eq!(read(&bytes, size, &[usize::MAX]).1, None);
        assert_eq!(
            read(&bytes, size - 1, &[1]).1,
            Some(Violation::TooLarge(size))
        );
    }
}

#[test]
fn an_end_that_came_along_is_taken() {
    let take = |bytes: &[u8]| {
        let mut decoder = Decoder::new(SIZE);
        let mut buffer = BytesMut::from(&chunk(b"ab")[..]);
        buffer.truncate(buffer.len() - 1);
        assert!(matches!(
            decoder.next(&mut buffer),
            Ok(Some(Piece::Data(_)))
        ));
        buffer.extend_from_slice(bytes);
        (decoder.take_end(&mut buffer), buffer.len())
    };
    assert_eq!(take(b""), (None, 0));
    assert_eq!(take(b"\0"), (None, 1));
    assert_eq!(take(b"\0AB\0\x02\x05"), (None, 6));
    assert_eq!(take(b"\0AB\0\x02\x05\x01"), (Some(true), 0));
    assert_eq!(take(b"\0AB\0\x02\x05\0"), (Some(false), 0));
    assert_eq!(take(b"\0AB\0\x02\x05\x01x"), (Some(true), 1));
    assert_eq!(take(b"\x01AB\0\x02\x05\x01"), (None, 7));
    assert_eq!(take(b"\0AB\0\x03\x06\x01\0"), (None, 8));
    // Within data there is none.
    let mut decoder = Decoder::new(SIZE);
    let mut buffer = BytesMut::from(&chunk(b"ab")[..8]);
    assert!(matches!(
        decoder.next(&mut buffer),
        Ok(Some(Piece::Data(_)))
    ));
    buffer.extend_from_slice(&end(1));
    assert_eq!(decoder.take_end(&mut buffer), None);
}

/// What a container may say.
#[derive(Clone, Debug)]
enum Say {
    Head(u16, Vec<(String, String)>),
    Chunk(Vec<u8>),
    Want(u16),
    End(bool),
    Pong,
}

fn say() -> impl Strategy<Value = Say> {
    let name = prop_oneof![
        Just("Set-Cookie".to_owned()),
        Just("status".to_owned()),
        "[a-z][a-z0-9_-]{0,20}"
    ];
    let fields = vec((name, "([!-~]([ -~]{0,40}[!-~])?)?"), 0..20);
    prop_oneof![
        (200..=999u16, fields).prop_map(|(status, fields)| Say::Head(status, fields)),
        vec(any::<u8>(), 0..3_000).prop_map(Say::Chunk),
        any::<u16>().prop_map(Say::Want),
        any::<bool>().prop_map(Say::End),
        Just(Say::Pong),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_said_is_heard(said in vec(say(), 0..20), steps in vec(1..5_000usize, 1..20)) {
        let mut bytes = Vec::new();
        // Parts of a body that follow each other are one; empty ones are none.
        let mut want_data: Vec<Option<Vec<u8>>> = Vec::new();
        for say in &said {
            match say {
                Say::Head(status, fields) => {
                    let fields: Vec<_> = fields.iter().map(|(n, v)| (&**n, &**v)).collect();
                    bytes.extend(head(*status, &fields));
                    want_data.push(None);
                }
                Say::Chunk(data) => {
                    bytes.extend(chunk(data));
                    match want_data.last_mut() {
                        _ if data.is_empty() => {}
                        Some(Some(last)) => last.extend(data),
                        _ => want_data.push(Some(data.clone())),
                    }
                }
                Say::Want(n) => {
                    bytes.extend(want(*n));
                    want_data.push(None);
                }
                Say::End(reuse) => {
                    bytes.extend(end(u8::from(*reuse)));
                    want_data.push(None);
                }
                Say::Pong => {
                    bytes.extend(packet(&[9]));
                    want_data.push(None);
                }
            }
        }
        let (pieces, wrong) = read(&bytes, SIZE, &steps);
        prop_assert_eq!(wrong, None);
        prop_assert_eq!(pieces.len(), want_data.len());
        let mut others = said.iter().filter(|say| !matches!(say, Say::Chunk(_)));
        for (piece, data) in pieces.iter().zip(want_data) {
            if let Some(data) = data {
                prop_assert_eq!(piece, &Piece::Data(data.into()));
                continue;
            }
            match (others.next().unwrap(), piece) {
                (Say::Want(n), Piece::Wanted(m)) => prop_assert_eq!(n, m),
                (Say::End(said), Piece::End { reuse }) => prop_assert_eq!(said, reuse),
                (Say::Pong, Piece::Pong) => {}
                (Say::Head(status, fields), Piece::Head(head)) => {
                    prop_assert_eq!(head.status.as_u16(), *status);
                    prop_assert_eq!(head.headers.len(), fields.len());
                    let mut want: Vec<(String, String)> = fields
                        .iter()
                        .map(|(name, value)| (name.to_lowercase(), value.clone()))
                        .collect();
                    let mut got: Vec<(String, String)> = head
                        .headers
                        .iter()
                        .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()))
                        .collect();
                    want.sort();
                    got.sort();
                    prop_assert_eq!(got, want);
                }
                (say, piece) => prop_assert!(false, "{say:?} was read as {piece:?}"),
            }
        }
    }
}
