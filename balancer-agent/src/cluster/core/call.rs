//! Calls to those who should be there and are not: seeds, members that are down, and
//! whoever listens to the multicast group.

use std::net::SocketAddr;

use rand::seq::SliceRandom as _;
use rand::{Rng as _, RngCore as _};

use super::{Core, Output};
use crate::cluster::id::NodeId;
use crate::cluster::message::{Kind, Message, Standing};

/// Down members that are called in one round.
const CALLED: usize = 3;

impl Core {
    /// Calls who should be there and is not.
    pub(super) fn call(&mut self) {
        let interval = self.settings.timing.probe_interval;
        let alone = !self.members.iter().any(|(_, m)| m.live());
        let mut down: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, m)| m.record.standing == Standing::Down)
            .map(|(id, _)| id)
            .collect();
        let period = match alone || !down.is_empty() {
            true => 2 * interval,
            false => 8 * interval,
        };
        // Nodes that were started together should not call together for ever.
        self.next_call = self.now + period.mul_f64(self.rng.random_range(1.0..1.25));
        let live: Vec<SocketAddr> = self
            .members
            .iter()
            .filter(|(_, m)| m.live())
            .map(|(_, m)| m.record.address)
            .collect();
        self.seed_calls.clear();
        for seed in self.settings.seeds.clone() {
            if seed == self.own.address || self.own_seeds.contains(&seed) || live.contains(&seed) {
                continue;
            }
            let seq = self.rng.next_u64();
            self.seed_calls.push((seq, seed));
            self.send(seed, None, Kind::Ping { seq, to: None }, None);
        }
        down.shuffle(&mut self.rng);
        for id in down.into_iter().take(CALLED) {
            let seq = self.rng.next_u64();
            self.send_to(id, Kind::Ping { seq, to: Some(id) }, Some(id));
        }
        if self.settings.multicast {
            let message = self.compose(Kind::Announce, None);
            self.outputs.push_back(Output::Multicast(message));
        }
    }

    /// A datagram of this process came back to it: a call to a seed that is this node.
    pub(super) fn heard_own(&mut self, message: &Message) {
        let Kind::Ping { seq, .. } = message.kind else {
            return;
        };
        if let Some((_, seed)) = self.seed_calls.iter().find(|(call, _)| *call == seq) {
            self.own_seeds.push(*seed);
            self.seed_calls.retain(|(call, _)| *call != seq);
        }
    }
}
