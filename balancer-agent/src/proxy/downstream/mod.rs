//! Everything between a client's socket and the handler of its requests.
//!
//! ```text
//! listeners   sockets of all threads, bound when a configuration is prepared; hand-over
//!    |        from one configuration to the next
//! accept      per thread: accept, limits (overall, per frontend, per source), drain
//!    |
//! proxy_header, tls      who is it really? is it encrypted?
//!    |
//! http1 -- guard         heads and body framing are checked before hyper sees a byte;
//!    |                   idle connections are parked: hyper and all buffers are dropped
//! http2                  h2; all streams of a connection on its task
//!    |
//! Handler     one call per request; `refused` for what never became one
//! ```
//!
//! All of a connection stays on the thread that accepted it. Time is kept in ticks of
//! [`super::timer::TICK`], by one wheel per thread: no clock is read per request.

mod accept;
mod body;
mod connection;
mod date;
mod door;
mod extended;
mod guard;
mod http1;
mod http2;
mod inform;
mod io;
mod listeners;
mod live;
mod own_thread;
mod proxy_header;
mod settings;
mod source;
mod spread;
mod state;
mod stream;
mod tls;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::rc::Rc;

use http::{Request, Response};

use super::types::{Body, Cause, Connection};

pub use body::Ended;
pub use extended::OverHttp2;
pub use inform::Inform;
pub use listeners::{Listeners, PrepareError, PreparedListeners};
pub use live::{FrontendLive, Refused};
pub use tls::TlsStore;

/// What becomes of requests.
///
/// One value per frontend and thread. Requests of one connection come one after the other
/// with HTTP/1, side by side with HTTP/2. A future that is dropped before it is ready means
/// that the client went away (or that the drain ran out of time).
pub trait Handler: 'static {
    /// Answers a request.
    ///
    /// The request's body ends with an error when the client cuts it, breaks its framing,
    /// is too slow (`body_idle`, `body_rate`) or sends more than `body_bytes`; what the
    /// client gets then is decided here, not by the handler, as long as the head of the
    /// response was not returned. `inform` sends interim responses before that.
    /// [`hyper::upgrade::OnUpgrade`] is among the request's extensions when the client asks
    /// for an upgrade; a response with status 101 grants it. A WebSocket over HTTP/2 comes as
    /// the GET of HTTP/1.1, with [`OverHttp2`] in place of that.
    fn handle(
        self: Rc<Self>,
        request: Request<Body>,
        connection: Rc<Connection>,
        inform: Inform,
    ) -> impl Future<Output = Response<Body>> + 'static;

    /// A request was answered with `status` without having been handled. `head` is as much
    /// of its head as was received (bytes as they came with HTTP/1; a request line and a
    /// `host` field made from the fields with HTTP/2); it may be empty or not valid.
    fn refused(&self, connection: &Connection, head: &[u8], status: u16, cause: Cause);
}
