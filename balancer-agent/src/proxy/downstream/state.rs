//! What a connection's task, its socket and its requests share: where it is between
//! requests, what it waits for and since when.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;
use std::time::Duration;

use super::door::Door;
use super::guard::Refusal;
use super::settings::Settings;
use super::{Connection, Inform};
use crate::proxy::timer::{TICK, Timer, ticks};

/// Ticks over which the rate of a body is judged: 5 seconds of waiting for it.
pub(super) const RATE_WINDOW: u64 = 100;

/// Ticks after which an idle connection is parked; the first of them has partly passed.
pub(super) const PARK: u64 = 3;

/// State of an HTTP/1 connection.
pub(super) struct State {
    pub door: Rc<Door>,
    pub connection: Rc<Connection>,
    pub inform: Inform,
    pub timer: Timer,
    /// Heads that hyper has got.
    pub delivered: Cell<u64>,
    /// Requests that were handed to the handler.
    pub started: Cell<u64>,
    /// Requests whose response has ended.
    pub finished: Cell<u64>,
    /// hyper has flushed everything that it wrote.
    pub clean: Cell<bool>,
    /// Nothing of a request is with the guard, but perhaps the beginning of a head.
    pub quiet: Cell<bool>,
    /// Bytes of the next request have been received.
    pub partial: Cell<bool>,
    /// The next head asks for an upgrade and waits for a hyper that can do that.
    pub rebuild: Cell<bool>,
    /// The present hyper can upgrade.
    pub upgradable: Cell<bool>,
    /// Bytes after an upgrade's head: what they are depends on the response.
    pub suspended: Cell<bool>,
    /// Upgraded: bytes pass unseen.
    pub tunnel: Cell<bool>,
    /// The next request is refused; answered when those before it have been.
    pub refusal: Cell<Option<Refusal>>,
    /// The present request's body is refused.
    pub body_refusal: Cell<Option<Refusal>>,
    /// When the first byte of the present head came, or the connection became idle.
    pub since: Cell<u64>,
    /// Since when bytes of a body are waited for.
    pub body_wait: Cell<Option<u64>>,
    body_waited: Cell<u64>,
    body_bytes: Cell<u64>,
    /// Since when the client takes nothing.
    pub write_wait: Cell<Option<u64>>,
    /// Bytes that were not yet added to the counters.
    pub bytes_in: Cell<u64>,
    pub bytes_out: Cell<u64>,
    /// Who polls an upgraded connection; or waits for a suspended one.
    pub waker: RefCell<Option<Waker>>,
}

/// What the time demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// hyper has to be polled: its reading ends with an error now.
    Body,
    /// The client takes nothing.
    Abort,
    /// The connection is idle for long enough to be parked.
    Park,
}

impl State {
    pub fn new(door: &Rc<Door>, connection: Rc<Connection>) -> Rc<Self> {
        let inform = Inform::new();
        let timer = Timer::never();
        let since = Cell::new(timer.now());
        Rc::new(Self {
            door: Rc::clone(door),
            inform,
            connection,
            timer,
            since,
            delivered: Cell::new(0),
            started: Cell::new(0),
            finished: Cell::new(0),
            clean: Cell::new(true),
            quiet: Cell::new(true),
            partial: Cell::new(false),
            rebuild: Cell::new(false),
            upgradable: Cell::new(false),
            suspended: Cell::new(false),
            tunnel: Cell::new(false),
            refusal: Cell::new(None),
            body_refusal: Cell::new(None),
            body_wait: Cell::new(None),
            body_waited: Cell::new(0),
            body_bytes: Cell::new(0),
            write_wait: Cell::new(None),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            waker: RefCell::new(None),
        })
    }

    /// What the frontend's configuration is now.
    pub fn settings(&self) -> arc_swap::Guard<Arc<Settings>> {
        self.door.bound.settings.load()
    }

    /// No request is anywhere, and the last response is out.
    pub fn idle(&self) -> bool {
        self.quiet.get() && self.between()
    }

    /// hyper has no request, and the last response is out.
    pub fn between(&self) -> bool {
        self.clean.get()
            && self.finished.get() == self.started.get()
            && self.started.get() == self.delivered.get()
    }

    /// A response has ended.
    pub fn finish(&self) {
        self.finished.set(self.finished.get() + 1);
        self.clean.set(false);
        self.since.set(self.timer.now());
        self.timer.set_at_latest(self.timer.now() + PARK);
        self.count();
    }

    /// Adds up what was transferred.
    pub fn count(&self) {
        let live = self.door.live();
        for (cell, counter) in [
            (&self.bytes_in, &live.bytes_in),
            (&self.bytes_out, &live.bytes_out),
        ] {
            match cell.take() {
                0 => {}
                n => {
                    counter.fetch_add(n, Relaxed);
                }
            }
        }
    }

    /// Bytes of a body are wanted, and there are none.
    pub fn wait_for_body(&self) {
        if self.body_wait.get().is_none() {
            let now = self.timer.now();
            self.body_wait.set(Some(now));
            let idle = self.settings().frontend.timeouts.body_idle;
            self.timer.set_at_latest(now + ticks(idle).min(RATE_WINDOW));
        }
    }

    /// Bytes of a body have come.
    pub fn body_came(&self, bytes: usize) {
        self.body_bytes
            .set(self.body_bytes.get().saturating_add(bytes as u64));
        if let Some(since) = self.body_wait.take() {
            let waited = self.timer.now() - since;
            self.body_waited.set(self.body_waited.get() + waited);
        }
    }

    /// A new head: nothing was waited for yet.
    pub fn body_begins(&self) {
        self.body_wait.set(None);
        self.body_waited.set(0);
        self.body_bytes.set(0);
    }

    /// The client takes nothing at the moment.
    pub fn wait_for_write(&self) {
        if self.write_wait.get().is_none() {
            let now = self.timer.now();
            self.write_wait.set(Some(now));
            let send = self.settings().frontend.timeouts.send;
            self.timer.set_at_latest(now + ticks(send));
        }
    }

    /// Looks at everything that is waited for, and sets the timer for what is next. Called
    /// when the timer is due only.
    pub fn look(&self) -> Verdict {
        let now = self.timer.now();
        let settings = self.settings();
        let timeouts = &settings.frontend.timeouts;
        let mut next = u64::MAX;
        if let Some(since) = self.write_wait.get() {
            let deadline = since + ticks(timeouts.send);
            if deadline <= now {
                self.door.live().send_timeouts.fetch_add(1, Relaxed);
                return Verdict::Abort;
            }
            next = next.min(deadline);
        }
        if let Some(since) = self.body_wait.get() {
            let deadline = since + ticks(timeouts.body_idle);
            let waited = self.body_waited.get() + (now - since);
            let slow = slow(self.body_bytes.get(), waited, timeouts.body_rate);
            if waited >= RATE_WINDOW && !slow {
                // The next window begins; the gap itself goes on.
                self.body_waited.set(0);
                self.body_bytes.set(0);
            }
            if deadline <= now || slow {
                self.body_refusal.set(Some(Refusal::BODY_LATE));
                self.body_wait.set(None);
                self.timer.set(now + 1);
                return Verdict::Body;
            }
            next = next.min(deadline).min(now + RATE_WINDOW);
        }
        if self.idle() {
            let deadline = self.since.get() + PARK;
            if deadline <= now {
                return Verdict::Park;
            }
            next = next.min(deadline);
        }
        match next {
            u64::MAX => self.timer.clear(),
            next => self.timer.set(next),
        }
        Verdict::Fine
    }

    /// Judges the rate of a body that comes now and then.
    pub fn body_too_slow(&self) -> bool {
        let waited = self.body_waited.get();
        if waited < RATE_WINDOW {
            return false;
        }
        let rate = self.settings().frontend.timeouts.body_rate;
        self.body_waited.set(0);
        slow(self.body_bytes.take(), waited, rate)
    }

    /// How long the present request may still be waited for while nothing of hyper is
    /// there: a begun head by `headers`, the first byte by `keep_alive`.
    pub fn head_deadline(&self) -> u64 {
        let settings = self.settings();
        let timeouts = &settings.frontend.timeouts;
        let time: Duration = match self.partial.get() {
            true => timeouts.headers,
            false => timeouts.keep_alive,
        };
        self.since.get().saturating_add(ticks(time))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.count();
    }
}

/// Whether so many bytes are too few for so many ticks of waiting; not before there was a
/// whole window of it.
pub(super) fn slow(bytes: u64, waited: u64, rate: Option<u64>) -> bool {
    let Some(rate) = rate.filter(|_| waited >= RATE_WINDOW) else {
        return false;
    };
    let waited = TICK.saturating_mul(u32::try_from(waited).unwrap_or(u32::MAX));
    u128::from(bytes) < u128::from(rate) * waited.as_millis() / 1000
}
