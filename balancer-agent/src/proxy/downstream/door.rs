//! What the connections of one frontend on one thread have in common, and the account that
//! is kept of each.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::guard::Refusal;
use super::listeners::{Bound, Overall};
use super::live::{FrontendLive, Refused};
use super::source::Allowed;
use super::{Cause, Connection, Handler};

/// The part of [`Handler`] that needs no generics.
pub(super) trait Refusals {
    /// See [`Handler::refused`].
    fn refused(&self, connection: &Connection, head: &[u8], status: u16, cause: Cause);
}

impl<H: Handler> Refusals for H {
    fn refused(&self, connection: &Connection, head: &[u8], status: u16, cause: Cause) {
        Handler::refused(self, connection, head, status, cause);
    }
}

/// A frontend on this thread.
pub(super) struct Door {
    /// The frontend over all threads.
    pub bound: Arc<Bound>,
    /// All frontends.
    pub overall: Arc<Overall>,
    /// Number of this thread.
    pub thread: usize,
    /// Who is told of refusals.
    pub refusals: Rc<dyn Refusals>,
    /// Requests that run are the last of their connections.
    pub closing: Cell<bool>,
    /// The time for that is over.
    pub cut: Cell<bool>,
    /// Connections of this frontend on this thread, upgraded ones included.
    pub connections: Cell<usize>,
    /// Closed connections that are still read from, so that their last words arrive.
    pub lingering: Cell<usize>,
}

impl Door {
    /// Counters.
    pub fn live(&self) -> &FrontendLive {
        &self.bound.live
    }

    /// Counts a refusal and tells the handler.
    pub fn refuse(&self, connection: &Connection, head: &[u8], refusal: &Refusal) {
        self.live().refuse(refusal.cause);
        let cause = refusal.cause.cause();
        self.refusals
            .refused(connection, head, refusal.status, cause);
    }
}

/// A connection's place in all counts; given back when it is dropped.
pub(super) struct Ticket {
    door: Rc<Door>,
    source: Option<IpAddr>,
}

impl Ticket {
    /// For a connection that was just accepted, and is counted in [`super::spread`] already.
    ///
    /// # Errors
    /// Over the limit of the frontend or of all of them.
    pub fn take(door: &Rc<Door>) -> Result<Self, Refused> {
        let live = door.live();
        live.connections_total.fetch_add(1, Relaxed);
        let most = door.bound.settings.load().frontend.limits.connections;
        let here = live.connections.fetch_add(1, Relaxed);
        let overall = door.overall.connections.fetch_add(1, Relaxed);
        door.connections.set(door.connections.get() + 1);
        // Gives all of it back when it is dropped below.
        let ticket = Self {
            door: Rc::clone(door),
            source: None,
        };
        if here >= most || overall >= door.overall.most.load(Relaxed) {
            return Err(Refused::Connections);
        }
        live.connections_most.fetch_max(here + 1, Relaxed);
        Ok(ticket)
    }

    /// Counts the connection for its source, once that is known.
    ///
    /// # Errors
    /// Over the limit of the source.
    pub fn source(&mut self, source: IpAddr) -> Result<(), Refused> {
        let settings = self.door.bound.settings.load();
        let Some(most) = settings.frontend.limits.connections_per_source else {
            return Ok(());
        };
        match self.door.bound.sources.connect(source, most) {
            Allowed::Yes => self.source = Some(source),
            Allowed::No => return Err(Refused::SourceConnections),
            Allowed::Untracked => {
                self.door.live().sources_untracked.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let door = &self.door;
        if let Some(source) = self.source {
            door.bound.sources.disconnect(source);
        }
        door.connections.set(door.connections.get() - 1);
        door.bound.spread.leave(door.thread);
        door.live().connections.fetch_sub(1, Relaxed);
        door.overall.connections.fetch_sub(1, Relaxed);
    }
}
