//! Frames on their way to the links.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::super::store::Input;
use super::super::types::NodeId;
use super::{Driver, Network, Refused};

/// Pause before a frame that found the queue to a peer full is offered again.
const FULL_PAUSE: Duration = Duration::from_millis(5);

impl<N: Network> Driver<N> {
    pub(super) fn send(&mut self, to: NodeId, frame: Vec<u8>) {
        // Frames of one peer stay in order.
        if let Some(stuck) = self.stuck.get_mut(&to) {
            stuck.push_back(frame);
            return;
        }
        match self.network.send(to, &frame) {
            Ok(()) => self.handle(Input::Sent { to }),
            Err(Refused::Full) => {
                self.stuck.insert(to, VecDeque::from([frame]));
                self.stuck_until = Some(Instant::now() + FULL_PAUSE);
            }
            // Lost. The store gives no more than its credit until the link is made, and
            // compares then.
            Err(Refused::NoLink) => {}
        }
    }

    pub(super) fn unstick(&mut self) {
        let mut sent = Vec::new();
        self.stuck.retain(|to, frames| {
            while let Some(frame) = frames.front() {
                match self.network.send(*to, frame) {
                    Ok(()) => sent.push(*to),
                    Err(Refused::Full) => return true,
                    Err(Refused::NoLink) => {}
                }
                frames.pop_front();
            }
            false
        });
        if !self.stuck.is_empty() {
            self.stuck_until = Some(Instant::now() + FULL_PAUSE);
        }
        for to in sent {
            self.handle(Input::Sent { to });
        }
    }
}
