//! What the store promises, and whether a run kept it.
//!
//! For each session the oracle keeps the greatest version that was acknowledged, with the
//! number of nodes that were said to hold it. From then on
//!
//! - the version may be gone from all nodes only if at least as many nodes have lost what
//!   they held since the write began;
//! - a read that begins later finds it or a greater one, as long as all nodes have agreed
//!   on the true membership since before the read, and some node that is up holds it. A
//!   greater version after a deletion is a new epoch, so nothing deleted returns;
//! - when all is quiet again, exactly the holders have it, and all the same.
//!
//! A session that has ended is forgotten in its time, and what comes after it under the same
//! id need not be greater: a node that begins anew with nothing, and can talk to nobody,
//! counts its versions from the beginning. So a lesser version is allowed where the
//! acknowledged one is known to have ended, its end is nowhere any more, and the session
//! that is there was begun after the acknowledgement. A copy from before may not return.

use std::collections::BTreeSet;

use balancer_agent::session::Version;

/// How sessions of the workload live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Never deleted, and never comes to its end during a run.
    Lasting,
    /// Deleted and created again.
    Deleted,
    /// Ends by itself after a short time.
    Brief,
}

/// The greatest acknowledged version of a session.
#[derive(Clone, Debug)]
pub struct Floor {
    /// The version.
    pub version: Version,
    /// Nodes that were said to hold it, the coordinator too.
    pub holders: usize,
    /// Whether all that hold it have it on disk, if they have disks.
    pub durable: bool,
    /// Nodes that have lost what they held since the write began.
    pub lost: BTreeSet<usize>,
}

/// One session of the workload.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Its id.
    pub id: Vec<u8>,
    /// How it lives.
    pub class: Class,
    /// What must be there.
    pub floor: Option<Floor>,
    /// The greatest version that all wanted copies have acknowledged: reads must find it.
    pub fresh: Option<Version>,
    /// When it was last asked for in a way that keeps it alive, in true microseconds.
    pub used: u64,
    /// A calm read on this node found nothing: up to this epoch, nothing may come back there
    /// while it stays calm.
    pub gone: Option<(usize, u64)>,
    /// Every version that any node has ever held; of lasting sessions none.
    held: BTreeSet<Version>,
    /// The epochs that began since `floor` was acknowledged.
    begun: BTreeSet<u64>,
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken(pub String);

impl Tracked {
    /// A session that nobody has written yet.
    pub fn new(number: usize, class: Class) -> Self {
        Self {
            id: format!("session-{number:04}").into_bytes(),
            class,
            floor: None,
            fresh: None,
            used: 0,
            gone: None,
            held: BTreeSet::new(),
            begun: BTreeSet::new(),
        }
    }

    /// Some node holds this version.
    pub fn met(&mut self, version: Version) {
        if !self.held.insert(version) || version.deleted {
            return;
        }
        // Two nodes that do not know of each other can use the same number for an epoch: it
        // is the write that makes a session that tells them apart.
        let made = version.stamp == version.epoch;
        let of_epoch = |other: &&Version| other.epoch == version.epoch;
        if made || self.held.iter().filter(of_epoch).count() == 1 {
            self.begun.insert(version.epoch);
        }
    }

    /// Lets go of what was acknowledged if it has ended, its end has been forgotten, and
    /// `best`, the greatest version that any node still has, is of a session that was made
    /// since.
    pub fn outlived(&mut self, best: Option<Version>) {
        let (Some(floor), Some(best)) = (&self.floor, best) else {
            return;
        };
        let ended = |held: &Version| held.deleted && *held >= floor.version;
        if best < floor.version && self.begun.contains(&best.epoch) && self.held.iter().any(ended) {
            self.floor = None;
            self.fresh = None;
            self.begun.clear();
        }
    }

    /// A write was acknowledged; `lost` are the nodes that lost what they held since it
    /// began.
    pub fn acknowledged(
        &mut self,
        version: Version,
        holders: usize,
        (durable, degraded): (bool, bool),
        lost: BTreeSet<usize>,
    ) {
        if !degraded {
            self.fresh = self.fresh.max(Some(version));
        }
        if self
            .floor
            .as_ref()
            .is_none_or(|floor| floor.version < version)
        {
            self.floor = Some(Floor {
                version,
                holders,
                durable,
                lost,
            });
            self.begun.clear();
        }
    }

    /// A node lost what it held. `best` is the greatest version that any node still has,
    /// on a disk that will come back too.
    pub fn node_lost(&mut self, node: usize, best: Option<Version>) -> Result<(), Broken> {
        let Some(floor) = &mut self.floor else {
            return Ok(());
        };
        floor.lost.insert(node);
        self.still_held(best)
    }

    /// A node lost what was not on its disk yet.
    pub fn node_torn(&mut self, node: usize, best: Option<Version>) -> Result<(), Broken> {
        if let Some(floor) = &mut self.floor
            && !floor.durable
        {
            floor.lost.insert(node);
        }
        self.still_held(best)
    }

    /// Checks that the acknowledged version, or a greater one, is somewhere.
    pub fn still_held(&mut self, best: Option<Version>) -> Result<(), Broken> {
        self.outlived(best);
        let Some(floor) = &self.floor else {
            return Ok(());
        };
        if best.is_some_and(|best| best >= floor.version) {
            return Ok(());
        }
        let excused = floor.lost.len() >= floor.holders;
        if best.is_none() && self.class != Class::Lasting && !excused {
            // It has come to its end, or a deletion without an answer was done after all,
            // and the tombstone is forgotten.
            return Ok(());
        }
        if floor.version.deleted && !excused {
            // A deletion may be forgotten everywhere in time. That what it ended does not
            // return is checked by what is found.
            return Ok(());
        }
        if !excused {
            return Err(Broken(format!(
                "acknowledged write lost: session {} was acknowledged in {:?} by {} nodes, only \
                 {:?} have lost what they held since, and the greatest version left is {best:?}",
                self.name(),
                floor.version,
                floor.holders,
                floor.lost,
            )));
        }
        self.floor = None;
        self.fresh = None;
        self.begun.clear();
        Ok(())
    }

    /// A read found this (or nothing), and `due` was acknowledged before it began.
    pub fn read(&self, due: Version, found: Option<Version>) -> Result<(), Broken> {
        let kept = match found {
            Some(version) => version >= due,
            // Only a session that is never deleted must be there.
            None => due.deleted || self.class != Class::Lasting,
        };
        match kept {
            true => Ok(()),
            false if due.deleted => Err(Broken(format!(
                "deleted session returned: {} was deleted in {:?} before the read that found \
                 {found:?} began",
                self.name(),
                due,
            ))),
            false => Err(Broken(format!(
                "stale read: session {} was acknowledged in {:?} before the read that found \
                 {found:?} began",
                self.name(),
                due,
            ))),
        }
    }

    /// The id as text.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.id).into_owned()
    }
}
