//! What is noted of a request from its head to its last byte, and what becomes of that:
//! counters and a line in the access log, whatever way it ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, Uri, request};

use crate::proxy::types::{Cause, Connection, Record, Timings};
use crate::proxy::world::FrontendWorld;

/// Notes of one request. Dropped before it was ended, it says that the client went away.
pub struct Journal {
    frontend: Arc<FrontendWorld>,
    began: Instant,
    /// Only when there is a log.
    record: Option<Box<Record>>,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    timings: Timings,
    retries: u32,
    /// A response without body, whatever its head says: nobody takes it to its end.
    bodyless: bool,
    ended: bool,
}

impl Journal {
    /// At the request's head.
    pub fn begin(
        frontend: &Arc<FrontendWorld>,
        parts: &request::Parts,
        uri: &Uri,
        host: Option<&str>,
        client: IpAddr,
        connection: &Connection,
    ) -> Self {
        let record = frontend.log.as_ref().map(|_| {
            let text = |name| {
                let value = parts.headers.get(name)?;
                Some(String::from_utf8_lossy(value.as_bytes()).into())
            };
            Box::new(Record {
                client,
                method: parts.method.clone(),
                target: target_of(uri),
                version: parts.version,
                host: host.map(Into::into),
                referer: text(http::header::REFERER),
                user_agent: text(http::header::USER_AGENT),
                ..blank(frontend, connection)
            })
        });
        Self {
            frontend: Arc::clone(frontend),
            began: Instant::now(),
            record,
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            timings: Timings::default(),
            retries: 0,
            bodyless: parts.method == Method::HEAD,
            ended: false,
        }
    }

    /// Whether times are wanted.
    pub fn is_timed(&self) -> bool {
        self.record.is_some()
    }

    /// When the head had come.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The request's id.
    pub fn request_id(&mut self, id: &str) {
        if let Some(record) = &mut self.record {
            record.request_id = Some(id.into());
        }
    }

    /// Pool, and the route that the request's session names.
    pub fn pool(&mut self, pool: &Arc<str>, route: Option<&str>) {
        if let Some(record) = &mut self.record {
            record.pool = Some(Arc::clone(pool));
            record.route = route.map(Into::into);
        }
    }

    /// Another attempt, at this backend.
    pub fn attempt(&mut self, backend: &Arc<str>, retries: u32, queued: Option<Duration>) {
        self.retries = retries;
        if let Some(queued) = queued {
            let sum = self.timings.queue.unwrap_or_default() + queued;
            self.timings.queue = Some(sum);
        }
        if let Some(record) = &mut self.record {
            record.backend = Some(Arc::clone(backend));
        }
    }

    /// How long connecting took, and from there to the response's head or to the attempt's
    /// end without one; `None` without a connection.
    pub fn answered(&mut self, times: Option<(Duration, Duration)>) {
        self.timings.connect = times.map(|(connect, _)| connect);
        self.timings.response = times.map(|(_, response)| response);
    }

    /// Status of the response.
    pub fn status(&mut self, status: u16) {
        self.status = status;
    }

    /// Bytes of the request's body.
    pub fn bytes_in(&mut self, bytes: u64) {
        self.bytes_in = bytes;
    }

    /// More bytes of the response's body.
    pub fn sent(&mut self, bytes: usize) {
        if !self.bodyless {
            self.bytes_out += bytes as u64;
        }
    }

    /// Bytes of a tunnel, on top of those of bodies.
    pub fn tunnelled(&mut self, from_client: u64, to_client: u64) {
        self.bytes_in += from_client;
        self.bytes_out += to_client;
    }

    /// How it ended. Only the first word counts.
    pub fn end(&mut self, cause: Cause) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let counts = &self.frontend.counts;
        counts.request(self.status, cause, self.bytes_in, self.bytes_out);
        if let (Some(mut record), Some(log)) = (self.record.take(), &self.frontend.log) {
            self.timings.total = self.began.elapsed();
            record.status = self.status;
            record.bytes_in = self.bytes_in;
            record.bytes_out = self.bytes_out;
            record.timings = self.timings;
            record.retries = self.retries;
            record.cause = cause;
            log.write(&record);
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end(match self.bodyless && self.status != 0 {
            true => Cause::Done,
            false => Cause::ClientAborted,
        });
    }
}

/// As it was received, as far as hyper leaves it.
fn target_of(uri: &Uri) -> Box<str> {
    match uri.path_and_query() {
        Some(target) => target.as_str().into(),
        None => uri.to_string().into(),
    }
}

/// Notes a request that never got to be one.
pub fn refused(
    frontend: &FrontendWorld,
    connection: &Connection,
    head: &[u8],
    status: u16,
    cause: Cause,
) {
    frontend.counts.request(status, cause, 0, 0);
    let Some(log) = &frontend.log else {
        return;
    };
    let line = head.split(|b| matches!(b, b'\r' | b'\n')).next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or("-");
    let version = match words.next() {
        Some("HTTP/1.0") => http::Version::HTTP_10,
        Some("HTTP/2.0") => http::Version::HTTP_2,
        _ => http::Version::HTTP_11,
    };
    log.write(&Record {
        // A method of our own making stands for one that can't be read.
        method: Method::from_bytes(method.as_bytes())
            .or_else(|_| Method::from_bytes(b"-"))
            .unwrap_or_default(),
        target: target.into(),
        version,
        status,
        cause,
        ..blank(frontend, connection)
    });
}

/// A record that begins now, of a request of which nothing is known but where it came in.
fn blank(frontend: &FrontendWorld, connection: &Connection) -> Record {
    Record {
        time: wall_clock(),
        client: connection.client.ip(),
        frontend: Arc::clone(&frontend.model.name),
        method: Method::GET,
        // Empty, it takes no memory: who knows the target puts it here.
        target: Box::default(),
        version: http::Version::HTTP_11,
        host: None,
        referer: None,
        user_agent: None,
        status: 0,
        bytes_in: 0,
        bytes_out: 0,
        pool: None,
        backend: None,
        route: None,
        retries: 0,
        request_id: None,
        tls: connection.tls.as_ref().map(|tls| tls.version),
        timings: Timings::default(),
        cause: Cause::Done,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the access log tells people the time of day; nothing else depends on it"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
