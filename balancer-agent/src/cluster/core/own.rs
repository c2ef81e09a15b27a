//! What others say of this node, and what comes of it: an objection, or a new life.

use std::time::Duration;

use rand::Rng as _;

use super::{Core, Output};
use crate::cluster::id::Incarnation;
use crate::cluster::message::{Record, Standing};

/// Least time between two new lives; doubles while they follow each other.
pub(super) const RENEW_PAUSE: Duration = Duration::from_secs(1);
const RENEW_PAUSE_MAX: Duration = Duration::from_secs(64);

impl Core {
    /// Somebody tells something of this node, and may be wrong.
    pub(super) fn hear_of_self(&mut self, record: &Record) {
        let own = &mut self.own;
        if record.incarnation < own.incarnation {
            return;
        }
        let ended = record.standing >= Standing::Down;
        if record.incarnation == own.incarnation && !ended {
            if record.standing == Standing::Suspect && record.version >= own.version {
                own.version = record.version.saturating_add(1);
                self.gossip();
            }
            return;
        }
        if record.incarnation > own.incarnation && !ended && record.address != own.address {
            self.outputs.push_back(Output::Conflict(record.address));
        }
        let count = record.incarnation.count();
        self.renew_beyond = self.renew_beyond.max(Some(count));
        self.renew();
    }

    /// Begins a new life, or waits for the time to do so.
    pub(super) fn renew(&mut self) {
        let Some(beyond) = self.renew_beyond else {
            return;
        };
        if let Some(renewed) = self.renewed {
            let ago = self.now.saturating_sub(renewed);
            if ago < self.renew_pause {
                return;
            }
            // Two nodes of one name outbid each other for ever: ever more slowly.
            self.renew_pause = match ago < 4 * self.renew_pause {
                true => (self.renew_pause * 2).min(RENEW_PAUSE_MAX),
                false => RENEW_PAUSE,
            };
        }
        self.renew_beyond = None;
        self.renewed = Some(self.now);
        let count = beyond.max(self.own.incarnation.count()).saturating_add(1);
        self.own.incarnation = Incarnation::new(count, self.rng.random());
        self.own.version = 0;
        self.outputs
            .push_back(Output::Renewed(self.own.incarnation));
        self.gossip();
        self.outputs.push_back(Output::Changed);
    }
}
