//! Time: idle connections, clients that take nothing or are gone, and the end.

use std::task::{Context, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};

use super::super::io::LAST_CALL;
use super::super::state::State;
use super::{Speaking, Streams};
use crate::proxy::timer::ticks;

/// How long a ping may go unanswered; and the least silence before one.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may take to close after GOAWAY when nothing runs any more.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the first words wait for the first answer, in ticks; the first has partly passed.
const OPENING: u64 = 2;

/// What is known of a connection's times beside its [`State`].
#[derive(Default)]
pub(super) struct Watch {
    /// When it was told that there is no more.
    told: Option<u64>,
    pings: Option<PingPong>,
    /// When it was asked for a sign of life, unless one came.
    asked: Option<u64>,
}

/// What the time demands.
pub(super) enum Look {
    Fine,
    /// h2 has something to say.
    Speak,
    /// No further requests.
    Goodbye,
    /// The end.
    Over,
}

impl Watch {
    /// Whether the client has not been told the end, and has had the time to ask for
    /// something: to be turned away before that is a failure to it.
    pub fn may_say_goodbye(&self, state: &State, streams: &Streams) -> bool {
        if self.told.is_some() {
            return false;
        }
        let deadline = state.since.get() + ticks(LAST_CALL);
        if streams.active.get() > 0 || state.finished.get() > 0 || deadline <= state.timer.now() {
            return true;
        }
        state.timer.set_at_latest(deadline);
        false
    }

    /// The client is told the end.
    pub fn said_goodbye(&mut self, state: &State) {
        let now = state.timer.now();
        self.told = Some(now);
        state.timer.set_at_latest(now + ticks(FAREWELL));
    }

    /// Looks at everything that is waited for, and sets the timer for what is next.
    pub fn look(&mut self, state: &State, streams: &Streams, speaking: &mut Speaking) -> Look {
        let now = state.timer.now();
        let settings = state.settings();
        let timeouts = &settings.frontend.timeouts;
        let send = ticks(timeouts.send);
        let mut next = now + send;
        let mut stuck = state.write_wait.get();
        if streams.held.get() > 0 {
            let since = streams.progress.get();
            stuck = Some(stuck.map_or(since, |s| s.min(since)));
        }
        if let Some(since) = stuck {
            if since + send <= now {
                let sent = &state.door.live().send_timeouts;
                sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                return Look::Over;
            }
            next = since + send;
        }
        let mut speak = false;
        if streams.opening.get() {
            let deadline = state.since.get() + OPENING;
            speak = deadline <= now;
            streams.opening.set(!speak);
            next = next.min(deadline.max(now + 1));
        }
        if streams.active.get() == 0 {
            let deadline = match self.told {
                Some(since) => since + ticks(FAREWELL),
                None => state.since.get() + ticks(timeouts.keep_alive),
            };
            match (deadline <= now, self.told) {
                (true, Some(_)) => return Look::Over,
                (true, None) => {
                    state.timer.set(next);
                    return Look::Goodbye;
                }
                (false, _) => next = next.min(deadline),
            }
        }
        let silence = (timeouts.keep_alive / 2).max(PING_TIMEOUT);
        match self.life(now, ticks(silence), streams, speaking) {
            Life::Heard(until) => next = next.min(until),
            Life::Asked(until) => {
                speak = true;
                next = next.min(until);
            }
            Life::Gone => return Look::Over,
        }
        state.timer.set(next);
        match speak {
            true => Look::Speak,
            false => Look::Fine,
        }
    }

    /// Whether the client is there: it has said something lately, or answers a ping.
    fn life(&mut self, now: u64, silence: u64, streams: &Streams, speaking: &mut Speaking) -> Life {
        let heard = streams.heard.get();
        if let Some(asked) = self.asked {
            let deadline = asked + ticks(PING_TIMEOUT);
            if heard < asked {
                return match deadline <= now {
                    true => Life::Gone,
                    false => Life::Heard(deadline),
                };
            }
            self.asked = None;
        }
        if now < heard + silence {
            return Life::Heard(heard + silence);
        }
        let Speaking::Open(h2) = speaking else {
            // The idle time runs.
            return Life::Heard(now + silence);
        };
        if self.pings.is_none() {
            self.pings = h2.ping_pong();
        }
        let asked = self.pings.as_mut().map(|pings| {
            // Takes the answer to the last one, so that h2 lets us ask again.
            let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
            pings.send_ping(Ping::opaque())
        });
        if !matches!(asked, Some(Ok(()))) {
            // The answer to the last one is still to come, although other things came.
            return Life::Heard(now + silence);
        }
        self.asked = Some(now);
        Life::Asked(now + ticks(PING_TIMEOUT))
    }
}

enum Life {
    /// No need to look before this.
    Heard(u64),
    /// It was asked, and has time until this.
    Asked(u64),
    Gone,
}
