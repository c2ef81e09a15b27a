//! What the application server does, by path. The first segment that names a behaviour
//! decides, so that an application may be mounted anywhere:
//!
//! | segments | does |
//! |---|---|
//! | `health` | the status that `health` set |
//! | `session` | keeps or makes a session: cookie `JSESSIONID=<id>.<route>`, counts visits |
//! | `cookie` | sets the cookie that the query names: `?SID=abc` |
//! | `status/N` | that status |
//! | `fail/N/S` | status S for the first N times that this nonce comes, then 200 |
//! | `delay/MS` | answers after so many milliseconds |
//! | `bytes/N` | a body of N bytes, by length |
//! | `chunked/N/SIZE` | N chunks |
//! | `sse/N/MS` | N events, one every so many milliseconds |
//! | `trailers` | a chunked body with trailers, announced |
//! | `early` | 103 with a Link first |
//! | `ws` | WebSocket echo (RFC 6455) |
//! | `cut/N/SENT` | announces N bytes, sends SENT and closes |
//! | `cutchunk` | a chunk, then closes without the last one |
//! | `abort` | closes without an answer |
//! | `hang` | never answers |
//! | `noread/MS` | leaves the body unread for so long, then reads it |
//! | `answerfirst` | answers 200 without reading the body, and closes |
//! | `close` | answers with `Connection: close` |
//! | `text/N` | compressible text of N bytes |
//! | `hop` | hop-by-hop fields in the answer that must not get through |
//! | `raw/NAME` | bytes of [`RAW`], then closes |
//! | anything else | the request as JSON |

use std::collections::BTreeMap;
use std::time::Duration;

use super::{NONCE, Seen, State};

/// Answers that a strict reader refuses, or that two readers could read differently.
pub const RAW: &[(&str, &str)] = &[
    (
        "two-lengths",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    ),
    (
        "length-and-chunked",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "bad-length",
        "HTTP/1.1 200 OK\r\ncontent-length: 5x\r\n\r\nhello",
    ),
    (
        "negative-length",
        "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    ),
    (
        "bad-chunk",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZ\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "huge-chunk",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    ("no-http", "SSH-2.0-OpenSSH_9.2p1\r\n"),
    (
        "space-before-colon",
        "HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello",
    ),
    (
        "nul",
        "HTTP/1.1 200 OK\r\nx-a: b\0c\r\ncontent-length: 5\r\n\r\nhello",
    ),
    (
        "bad-status",
        "HTTP/1.1 2x0 OK\r\ncontent-length: 5\r\n\r\nhello",
    ),
    (
        "until-close",
        "HTTP/1.1 200 OK\r\nx-server: raw\r\n\r\nuntil the end",
    ),
    (
        "old",
        "HTTP/1.0 200 OK\r\nx-server: raw\r\n\r\nuntil the end",
    ),
    (
        "no-reason",
        "HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello",
    ),
    (
        "not-modified",
        "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 5\r\n\r\n",
    ),
    (
        "no-content",
        "HTTP/1.1 204 No Content\r\nx-server: raw\r\n\r\n",
    ),
    (
        "extra-bytes",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    ),
    (
        "switching-unasked",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\nbytes",
    ),
];

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Reply,
    Early,
    WebSocket,
    Cut { announced: usize, sent: usize },
    CutChunk,
    Abort,
    Hang,
    NoRead(Duration),
    AnswerFirst,
    Raw(&'static str),
}

/// What is answered, where nothing strange is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Payload,
    pub(super) close: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Payload {
    Whole(Vec<u8>),
    /// Pieces with a pause after each, and trailers.
    Pieces {
        piece: Vec<u8>,
        count: usize,
        pause: Duration,
        trailers: Vec<(String, String)>,
    },
    /// A body of a length that need not be in memory.
    Length(u64),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Whole(Vec::new())
    }
}

struct Words<'a> {
    name: &'a str,
    first: Option<u64>,
    second: Option<u64>,
    text: Option<&'a str>,
}

const NAMES: &[&str] = &[
    "health",
    "session",
    "cookie",
    "status",
    "fail",
    "delay",
    "bytes",
    "chunked",
    "sse",
    "trailers",
    "early",
    "ws",
    "cut",
    "cutchunk",
    "abort",
    "hang",
    "noread",
    "answerfirst",
    "close",
    "text",
    "hop",
    "raw",
];

fn words(target: &str) -> Words<'_> {
    let path = target.split('?').next().unwrap_or_default();
    let mut segments = path
        .split('/')
        .map(|s| s.split(';').next().unwrap_or_default());
    let name = segments.find(|segment| NAMES.contains(segment));
    let (first, second) = (segments.next(), segments.next());
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    Words {
        name: name.unwrap_or_default(),
        first: number(first),
        second: number(second),
        text: first,
    }
}

/// What the target asks for.
pub(super) fn act(target: &str) -> Act {
    let words = words(target);
    let first = words.first.unwrap_or(0);
    match words.name {
        "early" => Act::Early,
        "ws" => Act::WebSocket,
        "cut" => Act::Cut {
            announced: first as usize,
            sent: words.second.unwrap_or(0) as usize,
        },
        "cutchunk" => Act::CutChunk,
        "abort" => Act::Abort,
        "hang" => Act::Hang,
        "noread" => Act::NoRead(Duration::from_millis(first)),
        "answerfirst" => Act::AnswerFirst,
        "raw" => {
            let known = RAW.iter().find(|(name, _)| Some(*name) == words.text);
            known.map_or(Act::Reply, |(_, bytes)| Act::Raw(bytes))
        }
        _ => Act::Reply,
    }
}

/// The answer to a request that has been read whole.
pub(super) async fn reply(state: &State, seen: &Seen) -> Reply {
    let words = words(&seen.target);
    let first = words.first.unwrap_or(0);
    let mut reply = Reply {
        status: 200,
        headers: vec![("x-server".into(), state.name.clone())],
        ..Reply::default()
    };
    if let Some(nonce) = seen.one(NONCE) {
        reply.headers.push((NONCE.into(), nonce.to_owned()));
    }
    if state.hang.get() {
        std::future::pending::<()>().await;
    }
    let mut add = |name: &str, value: String| reply.headers.push((name.into(), value));
    match words.name {
        "health" => reply.status = state.health.get(),
        "session" => {
            let (id, new) = session(state, seen);
            let visits = *state
                .visits
                .borrow_mut()
                .entry(id.clone())
                .and_modify(|n| *n += 1)
                .or_insert(1);
            if new {
                add("set-cookie", format!("JSESSIONID={id}; Path=/; HttpOnly"));
            }
            add("x-session", id);
            add("x-visits", visits.to_string());
        }
        "cookie" => {
            let query = seen.target.split_once('?').map_or("", |(_, query)| query);
            add("set-cookie", format!("{query}; Path=/"));
        }
        "status" => {
            reply.status = first as u16;
            let bodiless = matches!(reply.status, 204 | 304);
            if !bodiless {
                reply.body = Payload::Whole(format!("status {first}\n").into_bytes());
            }
        }
        "fail" => {
            let nonce = seen.one(NONCE).unwrap_or_default().to_owned();
            let mut attempts = state.attempts.borrow_mut();
            let attempt = attempts.entry(nonce).or_insert(0);
            *attempt += 1;
            if *attempt <= first {
                reply.status = words.second.unwrap_or(503) as u16;
            }
        }
        "delay" => tokio::time::sleep(Duration::from_millis(first)).await,
        "bytes" => reply.body = Payload::Length(first),
        "chunked" => {
            let size = words.second.unwrap_or(1) as usize;
            reply.body = pieces(vec![b'x'; size], first, Duration::ZERO);
        }
        "sse" => {
            add("content-type", "text/event-stream".into());
            let pause = Duration::from_millis(words.second.unwrap_or(0));
            reply.body = pieces(b"data: tick\n\n".to_vec(), first, pause);
        }
        "trailers" => {
            add("trailer", "x-checksum".into());
            reply.body = Payload::Pieces {
                piece: b"hello".to_vec(),
                count: 2,
                pause: Duration::ZERO,
                trailers: vec![("x-checksum".into(), "abc123".into())],
            };
        }
        "close" => reply.close = true,
        "text" => {
            add("content-type", "text/html; charset=utf-8".into());
            let line = b"<p>the quick brown fox jumps over the lazy dog</p>\n";
            let body = line.iter().copied().cycle().take(first as usize);
            reply.body = Payload::Whole(body.collect());
        }
        "hop" => {
            add("connection", "x-secret".into());
            add("x-secret", "only for the next hop".into());
            add("keep-alive", "timeout=5".into());
            add("proxy-authenticate", "Basic".into());
            add("x-open", "yes".into());
        }
        _ => {
            add("content-type", "application/json".into());
            let text = serde_json::to_vec(seen).unwrap_or_default();
            reply.body = Payload::Whole(text);
        }
    }
    reply
}

fn pieces(piece: Vec<u8>, count: u64, pause: Duration) -> Payload {
    Payload::Pieces {
        piece,
        count: count as usize,
        pause,
        trailers: Vec::new(),
    }
}

/// The session that the request names, by path parameter or cookie, or a new one. An
/// application whose servers share sessions takes any id, as this one does.
fn session(state: &State, seen: &Seen) -> (String, bool) {
    let path = seen.target.split('?').next().unwrap_or_default();
    if let Some((_, rest)) = path.split_once(";jsessionid=") {
        let id = rest.split(['/', ';']).next().unwrap_or_default();
        return (id.to_owned(), false);
    }
    let cookies: BTreeMap<String, String> = seen
        .all("cookie")
        .iter()
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(id) = cookies.get("JSESSIONID") {
        return (id.clone(), false);
    }
    let number = state.sessions.get() + 1;
    state.sessions.set(number);
    let id = format!("{:08X}{number:08X}", rand::random::<u32>());
    match state.route.is_empty() {
        true => (id, true),
        false => (format!("{id}.{}", state.route), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_segment_decides() {
        let cut = Act::Cut {
            announced: 10,
            sent: 3,
        };
        assert_eq!(act("/app/cut/10/3?x=/hang"), cut);
        assert_eq!(act("/"), Act::Reply);
        assert_eq!(act("/app/ws;jsessionid=1"), Act::WebSocket);
        assert!(matches!(act("/raw/no-http"), Act::Raw(bytes) if bytes.starts_with("SSH")));
    }
}
