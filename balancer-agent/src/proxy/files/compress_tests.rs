//! Compression: what is compressed, that it reads as it was, and that nothing is held back.

use std::sync::Mutex;
use std::task::Waker;

use async_compression::tokio::write::{BrotliDecoder, GzipDecoder};
use futures::channel::mpsc;
use futures::{FutureExt, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncWriteExt;

use super::*;

/// Encoders are counted for the whole process: tests that have some run one by one.
static TURN: Mutex<()> = Mutex::new(());

const SETTINGS: Compress = Compress { min_bytes: 100 };

fn turn() -> std::sync::MutexGuard<'static, ()> {
    TURN.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn map(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in list {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

fn response(status: u16, headers: &[(&'static str, &str)], body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = map(headers);
    response
}

fn text() -> Vec<u8> {
    let line = |i: u32| format!("<li>line {i} of a page that says much the same in each</li>\n");
    (0..2000).map(line).collect::<String>().into_bytes()
}

async fn decode(coding: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "gzip" => {
            let mut decoder = GzipDecoder::new(&mut out);
            decoder.write_all(data).await.unwrap();
            decoder.shutdown().await.unwrap();
        }
        "br" => {
            let mut decoder = BrotliDecoder::new(&mut out);
            decoder.write_all(data).await.unwrap();
            decoder.shutdown().await.unwrap();
        }
        other => panic!("not a coding that is made here: {other}"),
    }
    out
}

#[test]
fn what_is_compressed_and_what_is_not() {
    let _turn = turn();
    let html = ("content-type", "text/html");
    let all = "gzip, br";
    let body = || Body::full(vec![b'a'; 200]);
    // Method, status, headers of the response, what is accepted; coding, and whether Vary is told.
    type Case<'c> = (
        Method,
        u16,
        &'c [(&'static str, &'c str)],
        &'c str,
        Option<&'c str>,
        bool,
    );
    let cases: &[Case<'_>] = &[
        (Method::GET, 200, &[html], all, Some("br"), true),
        (Method::POST, 200, &[html], all, Some("br"), true),
        (Method::GET, 404, &[html], all, Some("br"), true),
        (Method::GET, 200, &[html], "gzip", Some("gzip"), true),
        (
            Method::GET,
            200,
            &[html],
            "gzip, br;q=0.1",
            Some("gzip"),
            true,
        ),
        (
            Method::GET,
            200,
            &[("content-type", "application/json")],
            all,
            Some("br"),
            true,
        ),
        (
            Method::GET,
            200,
            &[html, ("content-length", "200")],
            all,
            Some("br"),
            true,
        ),
        (
            Method::GET,
            200,
            &[html, ("cache-control", "max-age=1")],
            all,
            Some("br"),
            true,
        ),
        // Not accepted.
        (Method::GET, 200, &[html], "", None, true),
        (Method::GET, 200, &[html], "zstd, deflate", None, true),
        (Method::GET, 200, &[html], "br;q=0", None, true),
        // HEAD tells that it depends.
        (
            Method::HEAD,
            200,
            &[html, ("content-length", "200")],
            all,
            None,
            true,
        ),
        (
            Method::HEAD,
            200,
            &[html, ("content-length", "20")],
            all,
            None,
            false,
        ),
        // Neither worth it nor allowed.
        (
            Method::GET,
            200,
            &[("content-type", "image/png")],
            all,
            None,
            false,
        ),
        (Method::GET, 200, &[], all, None, false),
        (
            Method::GET,
            200,
            &[html, ("content-encoding", "gzip")],
            all,
            None,
            false,
        ),
        (
            Method::GET,
            200,
            &[html, ("content-encoding", "identity")],
            all,
            None,
            false,
        ),
        (
            Method::GET,
            200,
            &[html, ("cache-control", "a, No-Transform")],
            all,
            None,
            false,
        ),
        (
            Method::GET,
            206,
            &[html, ("content-range", "bytes 0-199/500")],
            all,
            None,
            false,
        ),
        (
            Method::GET,
            416,
            &[html, ("content-range", "bytes */500")],
            all,
            None,
            false,
        ),
        (Method::GET, 204, &[html], all, None, false),
        (Method::GET, 304, &[html], all, None, false),
        (Method::GET, 101, &[html], all, None, false),
        (Method::CONNECT, 200, &[html], all, None, false),
    ];
    for (method, status, headers, accept, coding, vary) in cases {
        let request = map(&[("accept-encoding", accept)]);
        let response = compress(
            &SETTINGS,
            method,
            &request,
            response(*status, headers, body()),
        );
        let told = response.headers();
        let case = format!("{method} {status} {headers:?} {accept}");
        match coding {
            Some(coding) => {
                assert_eq!(told[CONTENT_ENCODING], *coding, "{case}");
                assert!(!told.contains_key(CONTENT_LENGTH), "{case}");
            }
            None => {
                let before = map(headers);
                assert_eq!(
                    told.get(CONTENT_ENCODING),
                    before.get(CONTENT_ENCODING),
                    "{case}"
                );
                assert_eq!(
                    told.get(CONTENT_LENGTH),
                    before.get(CONTENT_LENGTH),
                    "{case}"
                );
                assert_eq!(response.body().size_hint().exact(), Some(200), "{case}");
            }
        }
        assert_eq!(told.contains_key("vary"), *vary, "{case}");
    }
}

#[test]
fn small_bodies_are_left_alone() {
    let _turn = turn();
    let request = map(&[("accept-encoding", "gzip")]);
    for (length, coded) in [(0, false), (99, false), (100, true)] {
        let body = Body::full(vec![b'a'; length]);
        let response = response(200, &[("content-type", "text/plain")], body);
        let response = compress(&SETTINGS, &Method::GET, &request, response);
        assert_eq!(
            response.headers().contains_key(CONTENT_ENCODING),
            coded,
            "{length}"
        );
    }
    // Nothing is smaller than nothing.
    let settings = Compress { min_bytes: 0 };
    let empty = response(200, &[("content-type", "text/plain")], Body::Empty);
    let response = compress(&settings, &Method::GET, &request, empty);
    assert!(!response.headers().contains_key(CONTENT_ENCODING));
}

#[test]
fn validators_and_digests_are_told_anew() {
    let _turn = turn();
    let request = map(&[("accept-encoding", "gzip")]);
    for (tag, expected) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\""), ("a", "a")] {
        let headers = [
            ("content-type", "text/plain"),
            ("etag", tag),
            ("accept-ranges", "bytes"),
            ("content-md5", "x"),
            ("content-digest", "x"),
            ("repr-digest", "x"),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ];
        let response = response(200, &headers, Body::full(vec![b'a'; 200]));
        let response = compress(&SETTINGS, &Method::GET, &request, response);
        let told = response.headers();
        assert_eq!(told[ETAG], expected);
        for gone in [
            "accept-ranges",
            "content-md5",
            "content-digest",
            "repr-digest",
        ] {
            assert!(!told.contains_key(gone), "{gone}");
        }
        assert!(told.contains_key("last-modified"));
    }
}

#[tokio::test]
async fn a_compressed_body_reads_as_it_was() {
    let text = text();
    for coding in ["gzip", "br"] {
        let turn = turn();
        let request = map(&[("accept-encoding", coding)]);
        let pieces: Vec<_> = text.chunks(7777).map(Bytes::copy_from_slice).collect();
        let frames = pieces
            .into_iter()
            .map(|p| Ok::<_, BodyError>(Frame::data(p)));
        let trailers = map(&[("x-checksum", "1")]);
        let frames = frames.chain([Ok(Frame::trailers(trailers.clone()))]);
        let body = Body::boxed(StreamBody::new(futures::stream::iter(frames)));
        let response = response(200, &[("content-type", "text/html")], body);
        let response = compress(&SETTINGS, &Method::GET, &request, response);
        drop(turn);
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        let data = collected.to_bytes();
        assert!(
            data.len() < text.len() / 5,
            "{coding}: {} bytes",
            data.len()
        );
        assert!(decode(coding, &data).await == text);
    }
}

#[tokio::test]
async fn what_waits_for_more_is_sent_at_once() {
    for coding in ["gzip", "br"] {
        let (sender, receiver) = mpsc::unbounded::<Bytes>();
        let turn = turn();
        let frames = receiver.map(|data| Ok::<_, BodyError>(Frame::data(data)));
        let body = Body::boxed(StreamBody::new(frames));
        let response = response(200, &[("content-type", "text/event-stream")], body);
        let request = map(&[("accept-encoding", coding)]);
        let mut body = compress(&SETTINGS, &Method::GET, &request, response).into_body();
        drop(turn);
        let mut all = Vec::new();
        assert!(body.frame().now_or_never().is_none());
        for event in ["data: one\n\n", "data: two\n\n", "data: three\n\n"] {
            sender.unbounded_send(Bytes::from(event)).unwrap();
            // Everything that the event needs comes without another byte of input.
            while let Some(frame) = body.frame().now_or_never() {
                all.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
            }
            let so_far = decode_open(coding, &all).await;
            assert!(
                so_far.ends_with(event.as_bytes()),
                "{coding} {event:?} {so_far:?}"
            );
        }
        drop(sender);
        while let Some(frame) = body.frame().await {
            all.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert_eq!(
            decode(coding, &all).await,
            b"data: one\n\ndata: two\n\ndata: three\n\n"
        );
    }
}

/// Decodes a stream that has not ended.
async fn decode_open(coding: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "gzip" => {
            let mut decoder = GzipDecoder::new(&mut out);
            decoder.write_all(data).await.unwrap();
            decoder.flush().await.unwrap();
        }
        _ => {
            let mut decoder = BrotliDecoder::new(&mut out);
            decoder.write_all(data).await.unwrap();
            decoder.flush().await.unwrap();
        }
    }
    out
}

#[tokio::test]
async fn a_body_that_breaks_stays_broken() {
    let turn = turn();
    let frames = [
        Ok(Frame::data(Bytes::from(text()))),
        Err(BodyError::from("cut")),
    ];
    let body = Body::boxed(StreamBody::new(futures::stream::iter(frames)));
    let response = response(200, &[("content-type", "text/html")], body);
    let request = map(&[("accept-encoding", "gzip")]);
    let response = compress(&SETTINGS, &Method::GET, &request, response);
    drop(turn);
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(error.to_string(), "cut");
}

#[test]
fn there_are_only_so_many_encoders() {
    let _turn = turn();
    let request = map(&[("accept-encoding", "gzip")]);
    let one = || {
        let response = response(200, &[("content-type", "text/html")], Body::full(text()));
        compress(&SETTINGS, &Method::GET, &request, response)
    };
    let is_coded = |response: &Response<Body>| response.headers().contains_key(CONTENT_ENCODING);
    // Tests beside this one may still hold some, and give them back at any moment; they
    // can't take any, as it is not their turn.
    let mut taken: Vec<Permit> = Vec::new();
    let plain = loop {
        taken.extend(std::iter::from_fn(Permit::take));
        assert!(taken.len() <= MAX_ENCODERS);
        let response = one();
        if !is_coded(&response) {
            break response;
        }
    };
    assert!(taken.len() > MAX_ENCODERS - 100);
    assert_eq!(plain.headers()["vary"], "Accept-Encoding");
    drop(taken);
    let coded = one();
    assert!(is_coded(&coded));
    // What an encoder had is given back with its body, even one that was never read.
    let before = ENCODERS.load(Ordering::Relaxed);
    drop(coded);
    assert!(ENCODERS.load(Ordering::Relaxed) < before);
}

#[test]
fn memory_of_a_compressed_body_is_what_is_read() {
    // A body that is always ready, as large as can be: what comes out of one poll stays small.
    let _turn = turn();
    let mut state = 1_u32;
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let piece = Bytes::from((0..65_536).map(|_| noise()).collect::<Vec<u8>>());
    let frames =
        futures::stream::repeat_with(move || Ok::<_, BodyError>(Frame::data(piece.clone())));
    for coding in ["gzip", "br"] {
        let request = map(&[("accept-encoding", coding)]);
        let body = Body::boxed(StreamBody::new(frames.clone().take(40)));
        let response = response(200, &[("content-type", "text/html")], body);
        let mut body = compress(&SETTINGS, &Method::GET, &request, response).into_body();
        let mut cx = Context::from_waker(Waker::noop());
        let mut largest = 0;
        while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut cx) {
            largest = largest.max(frame.unwrap().into_data().unwrap().len());
        }
        assert!(largest < 1 << 20, "{coding}: {largest}");
    }
}

/// Run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn what_an_encoder_costs() {
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }
    let text = text();
    let mut cx = Context::from_waker(Waker::noop());
    for coding in CODINGS {
        let before = resident();
        let encoders: Vec<Encoder> = (0..200)
            .map(|_| {
                let mut encoder = Encoder::new(coding);
                assert!(encoder.poll_write_all(&mut cx, &text).is_ready());
                assert!(encoder.writer().poll_flush(&mut cx).is_ready());
                drop(encoder.take());
                encoder
            })
            .collect();
        let each = (resident() - before) / encoders.len();
        let start = std::time::Instant::now();
        let mut small = 0;
        for _ in 0..20 {
            let mut encoder = Encoder::new(coding);
            assert!(encoder.poll_write_all(&mut cx, &text).is_ready());
            assert!(encoder.writer().poll_shutdown(&mut cx).is_ready());
            small = encoder.take().len();
        }
        let time = start.elapsed() / 20;
        let name = coding.name();
        println!(
            "{name}: {} KiB each; {} -> {small} bytes in {time:?}",
            each >> 10,
            text.len()
        );
        let start = std::time::Instant::now();
        for _ in 0..20 {
            let mut encoder = Encoder::new(coding);
            assert!(encoder.poll_write_all(&mut cx, &text[..2000]).is_ready());
            assert!(encoder.writer().poll_shutdown(&mut cx).is_ready());
            small = encoder.take().len();
        }
        let time = start.elapsed() / 20;
        println!("{name}: 2000 -> {small} bytes in {time:?}");
    }
}
