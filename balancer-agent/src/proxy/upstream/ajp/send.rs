//! Which connection a request gets: one that rested and answers, or a fresh one that
//! answers; a WebSocket one of HTTP.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::encode::{self, Unfit};
use super::exchange::{Request, exchange};
use super::ping;
use crate::model::http::BackendProtocol;
use crate::proxy::timer::Timer;
use crate::proxy::upstream::body::RequestBody;
use crate::proxy::upstream::connect::{Parties, connect};
use crate::proxy::upstream::endpoint::Speech;
use crate::proxy::upstream::h1::{self, Answer};
use crate::proxy::upstream::head::Outgoing;
use crate::proxy::upstream::pool::{Connections, Handed, Sent, Terms, Tunnel};
use crate::proxy::upstream::wire::Wire;
use crate::proxy::upstream::{Deadlines, Failure, ResponseBody, SendError};

/// Why there are no WebSockets.
const NO_HTTP: &str = "it speaks AJP13 and has no `http_port`";

/// Sends a request; a kept connection that turns out to be closed is replaced by a fresh
/// one where that is safe.
///
/// # Errors
/// With the body, for another attempt.
pub async fn send(
    connections: &Rc<Connections>,
    speech: &Speech,
    request: &mut Outgoing<'_>,
    mut body: RequestBody,
    terms: &mut Terms<'_>,
) -> Result<Sent, Failure> {
    let unsent = |error, body| Failure {
        error,
        sent: false,
        body,
    };
    let extent = body.extent();
    if request.is_websocket(extent) {
        return Box::pin(upgrade(connections, speech, request, body, terms)).await;
    }
    let size = speech.ajp.packet_size;
    let own = connections.own();
    let secret = own.secret.as_ref().or(speech.ajp.secret.as_ref());
    let mut fresh = false;
    loop {
        // Of a body that is sent again more may be known.
        let extent = body.extent();
        // First of all: what does not fit needs no connection.
        let mut head = connections.scratch();
        let written = encode::forward(request, extent, &terms.origin, secret, size, &mut head);
        if let Err(unfit) = written {
            connections.give_scratch(head);
            let error = match unfit {
                Unfit::TooLarge => SendError::TooLarge,
                Unfit::Byte => SendError::Client("the request can't be put into AJP13".into()),
            };
            return Err(unsent(error, body));
        }
        let kept = match fresh {
            true => None,
            false => kept(connections, speech, !terms.idempotent).await,
        };
        let mut wire = match kept {
            Some((wire, took)) => {
                *terms.handed = Handed::now(took, terms.timed);
                wire
            }
            None => {
                let began = Instant::now();
                // Boxed: it is rare, and would have a place in every request otherwise.
                match Box::pin(open(connections.address(), speech, terms.parties)).await {
                    Ok(wire) => {
                        *terms.handed = Handed::now(began.elapsed(), terms.timed);
                        wire
                    }
                    Err(error) => return Err(unsent(error, body)),
                }
            }
        };
        // Nothing waits in it.
        std::mem::swap(&mut wire.out, &mut head);
        connections.give_scratch(head);
        let home = (speech.keep_alive > 0).then(|| Rc::clone(connections));
        let sending = Request {
            method: request.method,
            body,
            extent,
            packet_size: size,
        };
        let deadlines = Deadlines {
            response: speech.timeouts.response,
            idle: speech.timeouts.idle,
            total: Timer::at(terms.until),
        };
        match exchange(wire, home, sending, deadlines).await {
            Ok((head, body)) => return Ok(Sent::Response(head, ResponseBody::Ajp(body))),
            Err(failure)
                if matches!(failure.error, SendError::Stale)
                    && (terms.idempotent || !failure.sent) =>
            {
                body = failure.body;
                if !body.rewind() {
                    return Err(Failure { body, ..failure });
                }
                fresh = true;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// A connection that has rested and still answers, and how long that took.
async fn kept(
    connections: &Rc<Connections>,
    speech: &Speech,
    asked: bool,
) -> Option<(Box<Wire>, Duration)> {
    let rule = speech.ajp.ping;
    // Looked at only when something takes time.
    let mut began = None;
    loop {
        let (mut wire, rested) = connections.take(asked, speech.timeouts.keep_alive)?;
        if rule.reuse.is_none_or(|least| rested < least) {
            let took = began.map_or(Duration::ZERO, |began: Instant| began.elapsed());
            return Some((wire, took));
        }
        let began = *began.get_or_insert_with(Instant::now);
        match ping(&mut wire, speech.ajp.packet_size, rule.timeout).await {
            Ok(()) => return Some((wire, began.elapsed())),
            // The others would keep us waiting one after the other.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                tracing::debug!(address = %connections.address(), "CPING on a kept connection was not answered");
                connections.forget_idle();
                return None;
            }
            Err(error) => {
                tracing::debug!(address = %connections.address(), %error, "CPING on a kept connection");
            }
        }
    }
}

/// A fresh connection that answers.
async fn open(
    address: SocketAddr,
    speech: &Speech,
    parties: Parties,
) -> Result<Box<Wire>, SendError> {
    let connected = connect(address, speech, parties).await?;
    let mut wire = Box::new(Wire::new(connected.stream));
    let rule = speech.ajp.ping;
    if rule.connect {
        ping(&mut wire, speech.ajp.packet_size, rule.timeout)
            .await
            .map_err(SendError::NoPong)?;
    }
    Ok(wire)
}

/// AJP13 has no upgrades: a WebSocket goes to where the backend speaks HTTP, on a
/// connection for it alone.
async fn upgrade(
    connections: &Rc<Connections>,
    speech: &Speech,
    request: &mut Outgoing<'_>,
    body: RequestBody,
    terms: &mut Terms<'_>,
) -> Result<Sent, Failure> {
    let unsent = |error, body| Failure {
        error,
        sent: false,
        body,
    };
    let Some(port) = connections.own().http_port else {
        return Err(unsent(SendError::NoUpgrade(NO_HTTP), body));
    };
    let address = SocketAddr::new(connections.address().ip(), port);
    let mut http = speech.clone();
    http.protocol = BackendProtocol::Http1;
    let began = Instant::now();
    let stream = match connect(address, &http, terms.parties).await {
        Ok(connected) => connected.stream,
        Err(error) => return Err(unsent(error, body)),
    };
    *terms.handed = Handed::now(began.elapsed(), terms.timed);
    request.keep = false;
    let deadlines = Deadlines {
        response: speech.timeouts.response,
        idle: speech.timeouts.idle,
        total: Timer::at(terms.until),
    };
    let wire = Box::new(Wire::new(stream));
    let answer = h1::exchange(wire, None, request, body, deadlines, terms.inform).await?;
    Ok(match answer {
        Answer::Response(head, body) => Sent::Response(head, ResponseBody::Http1(body)),
        Answer::Switched(head, wire) => Sent::Switched(head, Tunnel::Http1(wire)),
    })
}
