//! The decoder against bytes of which a part is right: for some seconds, from a seed that
//! is printed and can be given again in `BALANCER_FUZZ_SEED`.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::packets::{chunk, end, head, packet, want};
use crate::proxy::upstream::ajp::decode::{Decoder, Piece, Violation};

/// How long; `BALANCER_FUZZ_SECONDS` says otherwise.
const TIME: Duration = Duration::from_secs(4);

/// Numbers at which lengths and codes turn.
const EDGES: [u8; 16] = [
    0, 1, 2, 3, 4, 5, 6, 9, 10, 0x1F, 0x7F, 0x80, 0xA0, 0xFE, 0xFF, b'A',
];

/// Packets, mostly right.
fn packets(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(0..8) {
        let length = random.random_range(0..64);
        let text: String = (0..length)
            .map(|_| char::from(random.random_range(b' '..=b'~')))
            .collect();
        bytes.extend(match random.random_range(0..7) {
            0 => head(
                random.random_range(0..1200),
                &[("set-cookie", &text), (&text, "a")],
            ),
            1 => head(200, &[("x-a", &text), ("content-length", "5")]),
            2 => {
                let length = random.random_range(0..9_000);
                chunk(&vec![random.random(); length])
            }
            3 => chunk(text.as_bytes()),
            4 => end(random.random()),
            5 => want(random.random()),
            _ => packet(text.as_bytes()),
        });
    }
    bytes
}

/// Changes some bytes.
fn change(bytes: &mut Vec<u8>, random: &mut StdRng) {
    for _ in 0..random.random_range(0..6) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = EDGES[random.random_range(0..EDGES.len())],
            2 => bytes.truncate(at),
            3 => {
                bytes.remove(at);
            }
            4 => bytes.insert(at, EDGES[random.random_range(0..EDGES.len())]),
            _ => {
                let to = random
                    .random_range(at..bytes.len().min(at + 40) + 1)
                    .min(bytes.len());
                let part = bytes[at..to].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

/// What can be told apart about a piece, whatever way its bytes came.
type Told = (Vec<String>, Vec<u8>, Option<Violation>);

/// Reads in steps; checks the bounds that hold for every input.
fn read(bytes: &[u8], size: usize, mut step: impl FnMut() -> usize) -> Told {
    let mut decoder = Decoder::new(size);
    let mut buffer = BytesMut::new();
    let (mut told, mut body, mut rest) = (Vec::new(), Vec::new(), bytes);
    loop {
        loop {
            let before = buffer.len();
            match decoder.next(&mut buffer) {
                Ok(Some(Piece::Data(data))) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Ok(Some(piece)) => told.push(format!("{piece:?} after {}", body.len())),
                Ok(None) => break,
                Err(violation) => return (told, body, Some(violation)),
            }
            // Every piece takes bytes: there is an end.
            assert!(buffer.len() < before);
        }
        assert!(buffer.len() < size, "{} bytes wait", buffer.len());
        if rest.is_empty() {
            return (told, body, None);
        }
        let n = step().clamp(1, rest.len());
        buffer.extend_from_slice(&rest[..n]);
        rest = &rest[n..];
    }
}

#[test]
fn any_bytes_end_well_however_they_come() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("BALANCER_FUZZ_SEED").unwrap_or_else(|| rand::rng().random());
    let time = number("BALANCER_FUZZ_SECONDS").map_or(TIME, Duration::from_secs);
    println!("BALANCER_FUZZ_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let began = Instant::now();
    let (mut rounds, mut good) = (0u64, 0u64);
    // A few in any case: the machine may be busy.
    while rounds < 200 || began.elapsed() < time {
        let mut bytes = match random.random_range(0..10) {
            0 => (0..random.random_range(0..300))
                .map(|_| random.random())
                .collect(),
            _ => packets(&mut random),
        };
        change(&mut bytes, &mut random);
        let size = [8192, 9000, 65_536][random.random_range(0..3)];
        let whole = read(&bytes, size, || usize::MAX);
        let most = [1, 7, 100, 5_000][random.random_range(0..4)];
        let parts = read(&bytes, size, || random.random_range(1..=most));
        assert_eq!(whole, parts, "seed {seed}, round {rounds}: {bytes:?}");
        rounds += 1;
        good += u64::from(whole.2.is_none());
    }
    println!("{rounds} inputs, {good} of them without a mistake");
    // It is about both.
    assert!(good > rounds / 50 && good < rounds - rounds / 50);
}
