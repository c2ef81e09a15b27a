//! The end of a run: faults and load stop, and all must become equal.

use super::oracle::Broken;
use super::world::{Event, MILLI, World};

impl World {
    /// Faults and load end; in bounded time all must be equal.
    pub(super) fn settle(&mut self) -> Result<(), Broken> {
        self.quiet = true;
        self.loss = 0;
        self.stray_delay = 0;
        for node in &mut self.nodes {
            node.slow_sender = false;
            node.disk.slow = false;
        }
        self.heal();
        for node in 0..self.nodes.len() {
            if !self.beliefs[node].up && (self.rng.chance(70) || self.persistent) {
                let after = self.rng.range(1, 300) * MILLI;
                self.push(after, Event::Restart { node });
            }
        }
        let bound = self.now + 40_000 * MILLI;
        let mut next = self.now + 1_500 * MILLI;
        let mut trouble = String::from("nobody has looked yet");
        while self.now < bound {
            self.step()?;
            if self.now >= next {
                next = self.now + 300 * MILLI;
                match self.trouble() {
                    None => {
                        trouble.clear();
                        break;
                    }
                    Some(found) => trouble = found,
                }
            }
        }
        if !trouble.is_empty() {
            return Err(Broken(format!(
                "not settled after 40 s of quiet: {trouble}"
            )));
        }
        super::client::final_check(self)?;
        let end = self.now + self.client.brief_end() * MILLI;
        while self.now < end {
            self.step()?;
        }
        super::client::brief_check(self)?;
        for index in 0..self.nodes.len() {
            let counters = self.nodes[index].store.counters();
            self.report.counts.take(&counters);
        }
        Ok(())
    }

    /// What is not yet as it should be.
    fn trouble(&self) -> Option<String> {
        if !self.calm {
            return Some("the membership is not agreed".into());
        }
        for index in self.up() {
            let node = &self.nodes[index];
            let counters = node.store.counters();
            if !node.ready || counters.unsettled + counters.strays + counters.pending > 0 {
                return Some(format!(
                    "node {index}: {:?}, strays {}, pending {}",
                    node.store.standing(),
                    counters.strays,
                    counters.pending
                ));
            }
        }
        super::client::differing(self)
    }
}
