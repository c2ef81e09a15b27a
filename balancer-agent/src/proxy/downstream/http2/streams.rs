//! What the streams of a connection, its socket and its task have in common.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use super::super::state::State;
use crate::proxy::timer::ticks;

/// See above.
pub(in super::super) struct Streams {
    pub(super) state: Rc<State>,
    /// Requests that are handled or answered, and tunnels.
    pub(super) active: Cell<usize>,
    /// Requests that the client has taken back before they were answered.
    pub(super) resets: Cell<usize>,
    /// Responses of which the client has to take something before more is made.
    pub(super) held: Cell<usize>,
    /// When one of them was last taken from.
    pub(super) progress: Cell<u64>,
    /// When something was last read.
    pub(super) heard: Cell<u64>,
    /// Nothing was written yet: the first words may wait for the first answer.
    pub(super) opening: Cell<bool>,
}

impl Streams {
    /// Of a connection that begins.
    pub(super) fn new(state: Rc<State>) -> Rc<Self> {
        let now = state.timer.now();
        Rc::new(Self {
            state,
            active: Cell::new(0),
            resets: Cell::new(0),
            held: Cell::new(0),
            progress: Cell::new(now),
            heard: Cell::new(now),
            opening: Cell::new(true),
        })
    }

    /// A response waits for the client to take something.
    pub(super) fn hold(&self) {
        if self.held.replace(self.held.get() + 1) == 0 {
            self.progress.set(self.state.timer.now());
        }
        let send = self.state.settings().frontend.timeouts.send;
        let timer = &self.state.timer;
        timer.set_at_latest(timer.now() + ticks(send));
    }

    /// The client has taken something, or the response has ended.
    pub(super) fn release(&self) {
        self.progress.set(self.state.timer.now());
        self.held.set(self.held.get() - 1);
    }
}

/// Counts a running request; dropped at its end.
pub(in super::super) struct Running(Rc<Streams>);

impl Running {
    /// On this connection.
    pub fn new(streams: &Rc<Streams>) -> Self {
        streams.state.door.live().in_flight.fetch_add(1, Relaxed);
        streams.active.set(streams.active.get() + 1);
        Self(Rc::clone(streams))
    }

    /// The connection.
    pub(super) fn streams(&self) -> &Rc<Streams> {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let state = &self.0.state;
        state.door.live().in_flight.fetch_sub(1, Relaxed);
        self.0.active.set(self.0.active.get() - 1);
        state.finish();
    }
}
