//! AJP13 to a backend: one request at a time on one connection, in binary packets.
//!
//! ```text
//!  ours                               the container's
//!  (CPING)                       ->
//!                                <-   (CPONG)
//!  FORWARD_REQUEST               ->
//!  body, at once, if its length
//!  is known and not 0            ->
//!                                <-   GET_BODY_CHUNK  as often as it likes
//!  body, or an empty packet at
//!  its end                       ->
//!                                <-   SEND_HEADERS    once
//!                                <-   SEND_BODY_CHUNK as often as it likes
//!                                <-   END_RESPONSE    and whether it keeps the connection
//! ```
//!
//! - `codes.rs`: numbers for words; `encode.rs`, `decode.rs`: packets, without a socket;
//! - `upload.rs`: the request's body, which goes out as it is asked for;
//! - `exchange.rs`: a request and its response on a connection;
//! - `send.rs`: which connection a request gets.
//!
//! The container believes what it is told: who the client is, and whether TLS was spoken.
//! What tells it is therefore never made from what clients say (CVE-2020-1938): attributes
//! are those of [`codes::Attribute`] and no others, and headers that look like one are left
//! out. What comes back is read in bounds (`decode.rs`); after the first thing that is wrong
//! the connection is closed, never read on.

mod codes;
pub mod decode;
pub mod encode;
mod exchange;
mod send;
mod upload;

pub use decode::{CPONG, Violation};
pub use encode::{CPING, Origin};
pub use exchange::AjpBody;
pub(super) use send::send;

use std::io;
use std::time::Duration;

use crate::model::http::{BackendHttp, Secret};
use crate::proxy::timer::within;
use crate::proxy::upstream::wire::Wire;
use decode::{Decoder, Piece};

/// What one backend has of its own.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Where it speaks HTTP.
    pub http_port: Option<u16>,
    /// In place of the pool's.
    pub secret: Option<Secret>,
}

impl From<&BackendHttp> for Own {
    fn from(http: &BackendHttp) -> Self {
        Self {
            http_port: http.http_port,
            secret: http.secret.clone(),
        }
    }
}

/// Asks whether the container answers on this connection.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after `time`, [`io::ErrorKind::InvalidData`] for another
/// answer; the connection is of no more use.
async fn ping(wire: &mut Wire, packet_size: usize, time: Duration) -> io::Result<()> {
    let mut decoder = Decoder::new(packet_size);
    wire.out.extend_from_slice(&CPING);
    let answer = std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(Err(error)) = wire.poll_flush(cx) {
            return std::task::Poll::Ready(Err(error));
        }
        loop {
            match decoder.next(&mut wire.read) {
                Ok(Some(Piece::Pong)) if wire.read.is_empty() && wire.out.is_empty() => {
                    return std::task::Poll::Ready(Ok(()));
                }
                Ok(Some(_)) => return std::task::Poll::Ready(Err(invalid("more than CPONG"))),
                Ok(None) => {}
                Err(violation) => return std::task::Poll::Ready(Err(invalid(violation))),
            }
            if std::task::ready!(wire.poll_fill(cx))? == 0 {
                let error = io::ErrorKind::UnexpectedEof.into();
                return std::task::Poll::Ready(Err(error));
            }
        }
    });
    let answer = within(time, answer).await;
    answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    // From here on its end is no matter of having rested.
    wire.fresh = true;
    Ok(())
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
