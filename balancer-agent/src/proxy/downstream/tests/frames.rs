//! What HTTP/2 clients are sent, by the frame.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;

use super::server::*;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// A frame with its head.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Method by HPACK's static table (2 is GET, 3 POST), path, authority a.
fn request(method: u8, path: &str) -> Vec<u8> {
    let mut block = vec![0x80 | method, 0x86, 4, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x01a");
    block
}

/// Preface, settings and these frames in one piece.
fn open(server: &Server, frames: &[Vec<u8>]) -> TcpStream {
    let mut stream = server.connect();
    let all = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat();
    stream.write_all(&all).unwrap();
    stream
}

/// The next frame of a stream, or GOAWAY: kind, flags, stream, payload.
fn next(stream: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if id > 0 || head[3] == GOAWAY {
            return (head[3], head[4], id, payload);
        }
    }
}

#[test]
fn a_small_answer_is_two_frames() {
    let server = Server::start(|_| {});
    let asks = [1, 3].map(|id| frame(HEADERS, 5, id, &request(2, "/x")));
    let mut stream = open(&server, &asks);
    let mut seen = [Vec::new(), Vec::new()];
    for _ in 0..4 {
        let (kind, flags, id, payload) = next(&mut stream);
        seen[id as usize / 2].push((kind, flags & END_STREAM));
        if kind == DATA {
            assert_eq!(payload, b"you asked for /x");
        }
    }
    for seen in seen {
        assert_eq!(seen, [(HEADERS, 0), (DATA, END_STREAM)]);
    }
}

#[test]
fn head_is_answered_without_content_whoever_answers() {
    let server = Server::start(|f| f.limits.target_bytes = 20);
    let long = format!("/{}", "a".repeat(30));
    // `:method: HEAD` is not in the static table: a literal for its name.
    let head = |path: &str| [b"\x02\x04HEAD".as_slice(), &request(2, path)[1..]].concat();
    let asks = [
        frame(HEADERS, 5, 1, &head("/x")),
        frame(HEADERS, 5, 3, &head(&long)),
    ];
    let mut stream = open(&server, &asks);
    for _ in 0..2 {
        let (kind, flags, ..) = next(&mut stream);
        assert_eq!((kind, flags & END_STREAM), (HEADERS, END_STREAM));
    }
}

#[test]
fn hints_come_before_the_answer_of_their_stream() {
    let server = Server::start(|_| {});
    let asks = [
        frame(HEADERS, 5, 1, &request(2, "/hints")),
        frame(HEADERS, 5, 3, &request(2, "/x")),
    ];
    let mut stream = open(&server, &asks);
    let mut seen = [Vec::new(), Vec::new()];
    while !seen
        .iter()
        .all(|frames| frames.last() == Some(&(DATA, END_STREAM)))
    {
        let (kind, flags, id, _) = next(&mut stream);
        seen[id as usize / 2].push((kind, flags & END_STREAM));
    }
    assert_eq!(seen[0], [(HEADERS, 0), (HEADERS, 0), (DATA, END_STREAM)]);
    assert_eq!(seen[1], [(HEADERS, 0), (DATA, END_STREAM)]);
}

#[test]
fn who_waits_for_a_100_gets_it_when_the_body_is_wanted() {
    let server = Server::start(|_| {});
    let expect = b"\x00\x06expect\x0c100-continue";
    let ask = |path| frame(HEADERS, 4, 1, &[&request(3, path)[..], expect].concat());
    let mut stream = open(&server, &[ask("/echo")]);
    // `:status: 100` is not in the static table.
    let (kind, flags, id, block) = next(&mut stream);
    assert_eq!((kind, flags & END_STREAM, id), (HEADERS, 0, 1));
    assert!(block.len() < 10, "{block:?}");
    stream.write_all(&frame(DATA, 1, 1, b"hello")).unwrap();
    assert_eq!(next(&mut stream).0, HEADERS);
    assert_eq!(next(&mut stream).3, b"hello");
    // Not when it is there already, and not when nobody wants it.
    for (path, data, answer) in [
        ("/echo", Some(frame(DATA, 1, 1, b"hello")), &b"hello"[..]),
        ("/ignore", None, b"ignored"),
    ] {
        let mut frames = vec![ask(path)];
        frames.extend(data);
        let mut stream = open(&server, &frames);
        assert_eq!(next(&mut stream).0, HEADERS);
        let (kind, _, _, data) = next(&mut stream);
        assert_eq!((kind, &data[..]), (DATA, answer));
    }
}

#[test]
fn the_first_words_do_not_wait_for_a_slow_answer() {
    let server = Server::start(|_| {});
    let mut stream = open(&server, &[frame(HEADERS, 5, 1, &request(2, "/never"))]);
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], SETTINGS);
}

#[test]
fn a_body_that_nobody_takes_stays_with_the_client() {
    let server = Server::start(|_| {});
    let live = server.live();
    let mut stream = open(&server, &[frame(HEADERS, 4, 1, &request(3, "/never"))]);
    until("asked", || live.requests.load(Relaxed) == 1);
    // The windows that we say hold once they are known.
    stream.write_all(&frame(SETTINGS, 1, 0, &[])).unwrap();
    // As much as the stream's window says, and nothing is given back for it.
    let piece = vec![0; 16 << 10];
    for _ in 0..16 {
        stream.write_all(&frame(DATA, 0, 1, &piece)).unwrap();
    }
    stream.write_all(&frame(DATA, 0, 1, b"more")).unwrap();
    let (kind, _, id, reason) = next(&mut stream);
    // FLOW_CONTROL_ERROR, of the stream or of all.
    match kind {
        RESET => assert_eq!((id, &reason[..]), (1, &[0, 0, 0, 3][..])),
        kind => assert_eq!((kind, &reason[4..8]), (GOAWAY, &[0, 0, 0, 3][..])),
    }
}
