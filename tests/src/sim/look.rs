//! Looking at a run from outside: who has what, and what is printed of it.

use balancer_agent::session::{Input, Time, Version};

use super::client::GROUP;
use super::membership::index_of;
use super::oracle::Broken;
use super::world::{MILLI, World};

impl World {
    /// What a node has of the session that is traced.
    pub(super) fn traced(&self, index: usize) -> Option<Version> {
        let id = &self.client.sessions.get(self.session?)?.id;
        self.nodes[index].store.version_of(GROUP, id)
    }

    /// An input in a few words, for a run that traces a session.
    pub(super) fn cause(&self, input: &Input<'_>) -> String {
        match input {
            _ if self.session.is_none() => String::new(),
            Input::Tick => "itself".into(),
            Input::Members { .. } => "a change of the members".into(),
            Input::Frame { from, .. } => format!("word of node {}", index_of(*from)),
            Input::Request { token, op, .. } | Input::Again { token, op, .. } => {
                format!("request {} ({op:?})", token.0)
            }
            other => format!("{other:?}"),
        }
    }

    /// Prints a line of the course of events, if that is wanted.
    pub fn say(&self, line: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>9.3} ms  {}", self.now as f64 / 1e3, line());
        }
    }

    pub(super) fn note(&mut self, what: u64) {
        let mixed = (self.report.trace ^ what ^ self.now).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.report.trace = mixed ^ (mixed >> 29);
    }

    /// The greatest version of a session on any node, on disks that will come back too;
    /// or only on nodes that serve.
    pub fn best(&self, id: &[u8], serving: bool) -> Option<Version> {
        let nodes = self.nodes.iter().zip(&self.beliefs);
        let nodes = nodes.filter(|(node, belief)| belief.up && node.ready || !serving);
        nodes
            .filter_map(|(node, _)| node.store.version_of(GROUP, id))
            .max()
    }

    /// What each node has of a session, for the report of a broken promise.
    pub fn who_has(&self, id: &[u8]) -> String {
        let mut text = String::new();
        for (index, (node, belief)) in self.nodes.iter().zip(&self.beliefs).enumerate() {
            let version = node.store.version_of(GROUP, id);
            let stamp = version.map(|version| (version.stamp, version.deleted));
            let holders = node.store.holders(GROUP, id);
            text += &format!(
                "node {index} (up {}, ready {}) has {stamp:?} and sees the holders {holders:?}; ",
                belief.up, node.ready
            );
        }
        text
    }

    /// A node that was seen by all that are up, within the longest allowed absence, has no
    /// reason to forget.
    pub(super) fn may_forget(&self, index: usize) -> Result<(), Broken> {
        // Clocks differ by a tenth and jump, and what was sent is not what was heard.
        let lately = self.config.timing.absence * MILLI / 10 * 4;
        let others = self.up().into_iter().filter(|&other| other != index);
        let seen = |other| {
            let met = self.met.get(&(index, other));
            met.is_some_and(|&at| self.now - at < lately)
        };
        match others.clone().count() > 0 && others.clone().all(seen) {
            false => Ok(()),
            true => Err(Broken(format!(
                "node {index} forgets everything, though {:?} have all seen it lately",
                others.collect::<Vec<_>>()
            ))),
        }
    }

    pub(super) fn local_time(&self, index: usize) -> Time {
        self.nodes[index].clock.read(self.now)
    }
}

/// A version in a few words.
pub(super) fn brief(version: Version) -> String {
    let Version {
        epoch,
        deleted,
        stamp,
        writer,
    } = version;
    let what = if deleted { "end" } else { "write" };
    format!("{what} {epoch}/{stamp} of {writer:x}")
}
