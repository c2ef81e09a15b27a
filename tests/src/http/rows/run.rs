//! Sends a row and judges what became of it.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::{Expect, Forwarded, Framing, Row};
use crate::http::lax::{self, Request};
use crate::http::raw::{Answer, Raw, Trouble};
use crate::http::recorder::Recorder;
use crate::netns::Netns;

/// How long the balancer has to close what it refused.
const CLOSE: Duration = Duration::from_secs(3);
/// How long a broken body has to be noticed: the client waits for no more.
const BROKEN: Duration = Duration::from_secs(5);
/// Between pieces: long enough to be read apart.
const PAUSE: Duration = Duration::from_millis(1);
const PROBE: &str = "/probe-of-the-test";

/// What rows are sent to.
pub struct Target<'a> {
    /// Where clients are.
    pub ns: &'a Netns,
    /// The balancer's frontend.
    pub frontend: SocketAddr,
    /// Its only backend.
    pub recorder: &'a Recorder,
}

/// How the sending of a row went.
struct Seen {
    answers: Vec<Answer>,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Kept,
    Closed,
    /// Neither closed nor in a state to answer the next request.
    Stuck(Trouble),
}

/// Sends a row; says what was not as expected.
///
/// # Errors
/// Every difference, in words.
pub fn check(target: &Target<'_>, row: &Row) -> Result<(), String> {
    target.recorder.take();
    let seen = send(target, row);
    // What the backend was sent late has come when an answer to a later request has.
    let mut probe = Raw::connect(target.ns, target.frontend);
    let after = probe.try_request("GET", PROBE, &[], b"");
    if let Err(trouble) = after {
        return Err(format!("the balancer does not serve afterwards: {trouble}"));
    }
    let mut requests = Vec::new();
    let mut unfinished = 0;
    for stream in target.recorder.take() {
        requests.extend(lax::agree(&stream.bytes)?);
        unfinished += usize::from(lax::read(&stream.bytes, &lax::STRICT).1 > 0);
    }
    requests.retain(|request| request.target != PROBE);
    judge(row, &seen, &requests, unfinished)
}

fn send(target: &Target<'_>, row: &Row) -> Seen {
    let mut raw = Raw::connect(target.ns, target.frontend);
    let (first, rest) = row.pieces.split_first().expect("a piece");
    raw.send(first);
    for piece in rest {
        thread::sleep(PAUSE);
        raw.send(piece);
    }
    let to_head = first.starts_with(b"HEAD");
    let wanted = match &row.expect {
        Expect::Kept(all) | Expect::Closed(all) => all.len(),
        Expect::ThenRefused(all, _) => all.len() + 1,
        Expect::Either(_, all) => all.len().max(1),
        Expect::Refused(_) | Expect::Answered(_) => 1,
        Expect::Broken(_) => {
            raw.patience(BROKEN);
            // Only for the balancer to say more: the client has said everything.
            if row.name == "body-short" {
                raw.finish();
            }
            1
        }
    };
    let mut answers = Vec::new();
    while answers.len() < wanted {
        match raw.try_answer(to_head && answers.is_empty()) {
            Ok(answer) => {
                let last = answer.until_close;
                let refused = answer.status >= 400;
                answers.push(answer);
                if last {
                    return Seen {
                        answers,
                        end: End::Closed,
                    };
                }
                if refused {
                    break;
                }
            }
            Err(Trouble::Closed | Trouble::Cut(_)) => {
                return Seen {
                    answers,
                    end: End::Closed,
                };
            }
            Err(trouble) => {
                return Seen {
                    answers,
                    end: End::Stuck(trouble),
                };
            }
        }
    }
    let says_close = answers.last().is_some_and(|answer| {
        let all = answer.all("connection").join(",").to_ascii_lowercase();
        all.contains("close") || answer.version == "HTTP/1.0" && !all.contains("keep-alive")
    });
    let closed = says_close
        || matches!(
            row.expect,
            Expect::Refused(_) | Expect::Broken(_) | Expect::ThenRefused(..)
        );
    if closed {
        let end = match raw.closes(CLOSE) {
            true if raw.rest().is_empty() => End::Closed,
            true => End::Stuck(Trouble::Nonsense(
                String::from_utf8_lossy(raw.rest()).into(),
            )),
            false => End::Stuck(Trouble::Silent),
        };
        return Seen { answers, end };
    }
    let end = match raw.try_request("GET", PROBE, &[], b"") {
        Ok(_) => End::Kept,
        Err(Trouble::Closed) => End::Closed,
        Err(trouble) => End::Stuck(trouble),
    };
    Seen { answers, end }
}

fn judge(row: &Row, seen: &Seen, requests: &[Request], unfinished: usize) -> Result<(), String> {
    let statuses: Vec<u16> = seen.answers.iter().map(|answer| answer.status).collect();
    let (first, end) = (statuses.first().copied(), &seen.end);
    let nothing = || match requests.len() {
        0 => Ok(()),
        n => Err(format!("{n} requests reached the backend: {requests:?}")),
    };
    let whole = || match unfinished {
        0 => Ok(()),
        n => Err(format!("{n} unfinished requests reached the backend")),
    };
    let ended = |wanted: End| match *end == wanted {
        true => Ok(()),
        false => Err(format!(
            "the connection should be {wanted:?}, and is {end:?} (answers {statuses:?})"
        )),
    };
    let served = |all: &[Forwarded], more: usize| {
        let good = statuses.iter().filter(|&&status| status == 200).count();
        match good == all.len() && statuses.len() == good + more {
            true => compare(all, requests),
            false => Err(format!("answers {statuses:?}, wanted {} of 200", all.len())),
        }
    };
    let refused = |with: &[u16], status: Option<u16>| match status {
        Some(status) if with.contains(&status) => Ok(()),
        other => Err(format!("answered {other:?}, wanted one of {with:?}")),
    };
    match &row.expect {
        Expect::Kept(all) => served(all, 0)
            .and_then(|()| ended(End::Kept))
            .and_then(|()| whole()),
        Expect::Closed(all) => served(all, 0)
            .and_then(|()| ended(End::Closed))
            .and_then(|()| whole()),
        Expect::Refused(with) => refused(with, first)
            .and_then(|()| nothing())
            .and_then(|()| whole())
            .and_then(|()| ended(End::Closed)),
        Expect::Answered(with) => refused(with, first)
            .and_then(|()| nothing())
            .and_then(|()| whole()),
        Expect::ThenRefused(all, with) => {
            let last = statuses.last().copied();
            served(all, 1)
                .and_then(|()| refused(with, last))
                .and_then(|()| whole())
                .and_then(|()| ended(End::Closed))
        }
        Expect::Either(with, all) => match first {
            Some(200) if requests.len() == all.len() => served(all, 0)
                .and_then(|()| whole())
                .and_then(|()| match end {
                    End::Stuck(trouble) => Err(format!("the connection is stuck: {trouble}")),
                    _ => Ok(()),
                }),
            status => refused(with, status)
                .and_then(|()| nothing())
                .and_then(|()| whole()),
        },
        Expect::Broken(with) => {
            let status = match first {
                None => Ok(()),
                some => refused(with, some),
            };
            status
                .and_then(|()| nothing())
                .and_then(|()| ended(End::Closed))
        }
    }
}

fn compare(wanted: &[Forwarded], requests: &[Request]) -> Result<(), String> {
    if wanted.len() != requests.len() {
        let seen: Vec<_> = requests.iter().map(|r| (&r.method, &r.target)).collect();
        return Err(format!(
            "the backend saw {seen:?}, wanted {} requests",
            wanted.len()
        ));
    }
    for (want, have) in wanted.iter().zip(requests) {
        let target = want.target.is_empty() || want.target == have.target;
        if want.method != have.method || !target || want.body.as_bytes() != have.body {
            return Err(format!("the backend saw {have:?}, wanted {want:?}"));
        }
        let framing = match want.framing {
            Framing::None => !have.chunked && have.body.is_empty(),
            Framing::Length => have.length && !have.chunked,
            Framing::Chunked => have.chunked && !have.length,
            Framing::Any => have.chunked != have.length,
        };
        if !framing {
            return Err(format!(
                "framed otherwise than {:?}: {have:?}",
                want.framing
            ));
        }
        let values = |name: &str| -> Vec<&str> {
            let named = have
                .fields
                .iter()
                .filter(|(have, _)| have.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.as_str()).collect()
        };
        for (name, value) in &want.has {
            let values = values(name);
            if values != [*value] {
                return Err(format!(
                    "{name} is {values:?} at the backend, wanted {value:?}"
                ));
            }
        }
        for name in &want.lacks {
            if !values(name).is_empty() {
                return Err(format!("{name} reached the backend: {:?}", values(name)));
            }
        }
    }
    Ok(())
}
