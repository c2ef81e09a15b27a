//! Records to lines: the formats of Apache httpd, and JSON.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::Version;
use serde::Serialize;

use super::super::types::Record;
use super::clock::Clock;
use super::escape::{self, AsciiJson, bounded};
use super::mask::Masks;

/// The Common Log Format (`%h %l %u %t "%r" %>s %b`), or with Referer and User-Agent the
/// combined one; behind it the details that only a balancer knows.
pub(super) fn apache(
    record: &Record,
    masks: &Masks,
    clock: &mut Clock,
    combined: bool,
    details: bool,
    line: &mut Vec<u8>,
) {
    // More than most lines have: to grow is to copy what is there.
    line.reserve(512);
    match record.client {
        IpAddr::V4(client) => {
            for (place, octet) in client.octets().into_iter().enumerate() {
                if place > 0 {
                    line.push(b'.');
                }
                number(u64::from(octet), line);
            }
        }
        // Writing to memory does not fail.
        IpAddr::V6(client) => _ = write!(line, "{client}"),
    }
    line.extend_from_slice(b" - - [");
    line.extend_from_slice(clock.apache(record.time));
    line.extend_from_slice(b"] \"");
    request_line(record, masks, line);
    line.extend_from_slice(b"\" ");
    number_or_dash(u64::from(record.status), line);
    line.push(b' ');
    number_or_dash(record.bytes_out, line);
    if combined {
        let referer = record.referer.as_deref().map(|text| masks.address(text));
        quoted(referer.as_deref(), line);
        quoted(record.user_agent.as_deref(), line);
    }
    if details {
        self::details(record, masks, line);
    }
    line.push(b'\n');
}

fn request_line(record: &Record, masks: &Masks, line: &mut Vec<u8>) {
    let method = record.method.as_str();
    escape::apache(method.as_bytes(), line);
    if method == "-" && record.target.is_empty() {
        return;
    }
    line.push(b' ');
    escape::apache(masks.address(&record.target).as_bytes(), line);
    line.push(b' ');
    line.extend_from_slice(version(record.version).as_bytes());
}

fn quoted(text: Option<&str>, line: &mut Vec<u8>) {
    line.extend_from_slice(b" \"");
    match text {
        Some(text) => escape::apache(text.as_bytes(), line),
        None => line.push(b'-'),
    }
    line.push(b'"');
}

/// ` backend=web/s1 route=s1 retries=0 queue=- connect=0.213 response=12.310 total=12.900
/// cause=done`; times are milliseconds.
fn details(record: &Record, masks: &Masks, line: &mut Vec<u8>) {
    let or_dash = |text: Option<&str>, line: &mut Vec<u8>| {
        line.extend_from_slice(text.unwrap_or("-").as_bytes());
    };
    // Names and routes come from the configuration, which lets nothing odd pass.
    line.extend_from_slice(b" backend=");
    match (&record.pool, &record.backend) {
        (Some(pool), Some(backend)) => {
            line.extend_from_slice(pool.as_bytes());
            line.push(b'/');
            line.extend_from_slice(backend.as_bytes());
        }
        (pool, backend) => or_dash(pool.as_deref().or(backend.as_deref()), line),
    }
    line.extend_from_slice(b" route=");
    or_dash(
        record.route.as_deref().map(|route| masks.route(route)),
        line,
    );
    line.extend_from_slice(b" retries=");
    number(u64::from(record.retries), line);
    let timings = &record.timings;
    for (name, time) in [
        (&b" queue="[..], timings.queue),
        (b" connect=", timings.connect),
        (b" response=", timings.response),
        (b" total=", Some(timings.total)),
    ] {
        line.extend_from_slice(name);
        match time {
            Some(time) => milliseconds(time, line),
            None => line.push(b'-'),
        }
    }
    line.extend_from_slice(b" cause=");
    line.extend_from_slice(record.cause.word().as_bytes());
}

fn number_or_dash(value: u64, line: &mut Vec<u8>) {
    match value {
        0 => line.push(b'-'),
        value => number(value, line),
    }
}

fn number(mut value: u64, line: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    line.extend_from_slice(&digits[at..]);
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn milliseconds(time: Duration, line: &mut Vec<u8>) {
    let time = microseconds(time);
    number(time / 1000, line);
    let rest = (time % 1000) as u16;
    let digit = |n: u16| b'0' + (n % 10) as u8;
    line.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
}

/// As Apache and nginx write it.
fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// A record as JSON; every line has every field.
#[derive(Serialize)]
struct Json<'a> {
    time: &'a str,
    client: IpAddr,
    frontend: &'a str,
    method: &'a str,
    target: &'a str,
    host: Option<&'a str>,
    version: &'static str,
    /// Null when the client got none.
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    referer: Option<&'a str>,
    user_agent: Option<&'a str>,
    pool: Option<&'a str>,
    backend: Option<&'a str>,
    route: Option<&'a str>,
    retries: u32,
    request_id: Option<&'a str>,
    tls: Option<&'a str>,
    queue_ms: Option<f64>,
    connect_ms: Option<f64>,
    response_ms: Option<f64>,
    total_ms: f64,
    cause: &'static str,
}

/// One JSON object, in ASCII.
pub(super) fn json(record: &Record, masks: &Masks, clock: &mut Clock, line: &mut Vec<u8>) {
    let target = masks.address(&record.target);
    let referer = record.referer.as_deref().map(|text| masks.address(text));
    let referer = referer.as_deref().map(bounded);
    let host = record.host.as_deref().map(bounded);
    let user_agent = record.user_agent.as_deref().map(bounded);
    let request_id = record.request_id.as_deref().map(bounded);
    let ms = |time: Duration| microseconds(time) as f64 / 1000.0;
    let json = Json {
        time: clock.rfc3339(record.time),
        client: record.client,
        frontend: &record.frontend,
        method: record.method.as_str(),
        target: &bounded(&target),
        host: host.as_deref(),
        version: version(record.version),
        status: (record.status != 0).then_some(record.status),
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
        referer: referer.as_deref(),
        user_agent: user_agent.as_deref(),
        pool: record.pool.as_deref(),
        backend: record.backend.as_deref(),
        route: record.route.as_deref().map(|route| masks.route(route)),
        retries: record.retries,
        request_id: request_id.as_deref(),
        tls: record.tls,
        queue_ms: record.timings.queue.map(ms),
        connect_ms: record.timings.connect.map(ms),
        response_ms: record.timings.response.map(ms),
        total_ms: ms(record.timings.total),
        cause: record.cause.word(),
    };
    let start = line.len();
    let mut out = serde_json::Serializer::with_formatter(&mut *line, AsciiJson);
    if json.serialize(&mut out).is_err() {
        // Nothing in it can fail; half an object would be worse than none.
        line.truncate(start);
        return;
    }
    line.push(b'\n');
}
