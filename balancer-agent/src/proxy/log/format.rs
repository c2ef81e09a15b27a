//! Records to lines: the formats of Apache httpd, and JSON.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::Version;

use super::super::types::Record;
use super::clock::Clock;
use super::escape;
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
    address(record.client, line);
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

fn address(address: IpAddr, line: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    line.push(b'.');
                }
                number(u64::from(octet), line);
            }
        }
        // Writing to memory does not fail.
        IpAddr::V6(address) => _ = write!(line, "{address}"),
    }
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

/// One JSON object, in ASCII, with every field in every line. Keys are written as they
/// stand here: to escape them anew in each line would be half of all the work.
pub(super) fn json(record: &Record, masks: &Masks, clock: &mut Clock, line: &mut Vec<u8>) {
    line.reserve(1024);
    let mut line = Object(line);
    line.raw(b"{\"time\":\"", clock.rfc3339(record.time).as_bytes());
    line.raw(b"\",\"client\":\"", b"");
    address(record.client, line.0);
    line.raw(b"\"", b"");
    line.text(b",\"frontend\":", Some(&record.frontend));
    line.text(b",\"method\":", Some(record.method.as_str()));
    line.text(b",\"target\":", Some(&masks.address(&record.target)));
    line.text(b",\"host\":", record.host.as_deref());
    line.text(b",\"version\":", Some(version(record.version)));
    let status = (record.status != 0).then_some(u64::from(record.status));
    line.number(b",\"status\":", status);
    line.number(b",\"bytes_in\":", Some(record.bytes_in));
    line.number(b",\"bytes_out\":", Some(record.bytes_out));
    let referer = record.referer.as_deref().map(|text| masks.address(text));
    line.text(b",\"referer\":", referer.as_deref());
    line.text(b",\"user_agent\":", record.user_agent.as_deref());
    line.text(b",\"pool\":", record.pool.as_deref());
    line.text(b",\"backend\":", record.backend.as_deref());
    let route = record.route.as_deref().map(|route| masks.route(route));
    line.text(b",\"route\":", route);
    line.number(b",\"retries\":", Some(u64::from(record.retries)));
    line.text(b",\"request_id\":", record.request_id.as_deref());
    line.text(b",\"tls\":", record.tls);
    let timings = &record.timings;
    line.time(b",\"queue_ms\":", timings.queue);
    line.time(b",\"connect_ms\":", timings.connect);
    line.time(b",\"response_ms\":", timings.response);
    line.time(b",\"total_ms\":", Some(timings.total));
    line.text(b",\"cause\":", Some(record.cause.word()));
    line.raw(b"}\n", b"");
}

/// A JSON object on its way into a line. Keys come with what stands around them.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn raw(&mut self, key: &[u8], value: &[u8]) {
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, key: &[u8], value: Option<&str>) {
        self.raw(key, b"");
        match value {
            Some(value) => escape::json(value, self.0),
            None => self.raw(b"null", b""),
        }
    }

    fn number(&mut self, key: &[u8], value: Option<u64>) {
        self.raw(key, b"");
        match value {
            Some(value) => number(value, self.0),
            None => self.raw(b"null", b""),
        }
    }

    /// In milliseconds.
    fn time(&mut self, key: &[u8], value: Option<Duration>) {
        self.raw(key, b"");
        match value {
            Some(value) => milliseconds(value, self.0),
            None => self.raw(b"null", b""),
        }
    }
}
