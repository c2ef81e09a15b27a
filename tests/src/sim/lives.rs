//! The lives of the nodes: starts and losses, and what each is told of the members.

use balancer_agent::session::Input;

use super::membership::{agreed, members, refresh, truth};
use super::oracle::Broken;
use super::rng::Rng;
use super::world::{Event, MILLI, World};

impl World {
    pub(super) fn up(&self) -> Vec<usize> {
        truth(&self.beliefs)
            .iter()
            .map(|&(index, _)| index)
            .collect()
    }

    pub(super) fn restart(&mut self, index: usize) -> Result<(), Broken> {
        if self.beliefs[index].up {
            return Ok(());
        }
        self.beliefs[index].up = true;
        self.beliefs[index].down.clear();
        self.new_incarnation(index);
        let node = &mut self.nodes[index];
        node.clock.started = self.now;
        node.paused_until = 0;
        self.tell(index)?;
        self.gossip(1, 500);
        Ok(())
    }

    /// A node that was declared down comes back in a new life, with what it has.
    pub(super) fn reborn(&mut self, index: usize) -> Result<(), Broken> {
        if !self.beliefs[index].up || !self.beliefs[index].suspected {
            return Ok(());
        }
        if self.cut.iter().any(|&(a, b)| a == index || b == index) {
            let after = self.rng.range(100, 400) * MILLI;
            self.push(after, Event::Reborn { node: index });
            return Ok(());
        }
        self.new_incarnation(index);
        self.tell(index)?;
        self.gossip(1, 500);
        Ok(())
    }

    pub(super) fn new_incarnation(&mut self, index: usize) {
        self.incarnations += 1;
        // Far apart, and not in the order of time: nothing may depend on it.
        let mut scatter = Rng::new(self.incarnations);
        self.beliefs[index].incarnation = scatter.word();
        self.beliefs[index].suspected = false;
    }

    /// A node has lost what it held.
    pub(super) fn lost(&mut self, index: usize) -> Result<(), Broken> {
        self.report.lost_nodes += 1;
        self.client.node_lost(index);
        for number in 0..self.client.sessions.len() {
            let best = self.best(&self.client.sessions[number].id, false);
            self.client.sessions[number].node_lost(index, best)?;
        }
        Ok(())
    }

    /// A node kept its disk, and lost what was not on it yet.
    pub(super) fn torn(&mut self, index: usize) -> Result<(), Broken> {
        self.client.node_torn(index);
        for number in 0..self.client.sessions.len() {
            let best = self.best(&self.client.sessions[number].id, false);
            self.client.sessions[number].node_torn(index, best)?;
        }
        Ok(())
    }

    pub(super) fn tell(&mut self, index: usize) -> Result<(), Broken> {
        let (cut, strict) = (&self.cut, self.strict);
        refresh(&mut self.beliefs, index, |other| {
            let out = cut.contains(&(index, other));
            let back = cut.contains(&(other, index));
            !(out && back || strict && (out || back))
        });
        let view = members(&self.beliefs[index].view);
        let incarnation = self.beliefs[index].incarnation;
        self.weather();
        self.say(|| {
            let view = &self.beliefs[index].view;
            format!("node {index} sees {view:x?}, calm: {}", self.calm)
        });
        self.handle(
            index,
            Input::Members {
                incarnation,
                members: &view,
            },
        )
    }

    /// Everyone hears of a change, each at its own time.
    pub(super) fn gossip(&mut self, least: u64, most: u64) {
        for node in 0..self.beliefs.len() {
            let after = self.rng.range(least, most) * MILLI;
            self.push(after, Event::View { node });
        }
    }

    /// Membership or network have changed.
    pub(super) fn weather(&mut self) {
        let calm = self.cut.is_empty() && agreed(&self.beliefs);
        if !calm && self.calm {
            self.storm();
        }
        self.calm = calm;
    }

    pub(super) fn storm(&mut self) {
        self.storms += 1;
        for session in &mut self.client.sessions {
            session.gone = None;
        }
    }
}
