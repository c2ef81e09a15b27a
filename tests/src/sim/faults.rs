//! What goes wrong: crashes, partitions, false suspicions, pauses, jumps of a clock.

use balancer_agent::session::Input;

use super::membership::node_id;
use super::oracle::Broken;
use super::world::{Event, MILLI, World};

impl World {
    pub(super) fn fault(&mut self) -> Result<(), Broken> {
        let up = self.up();
        let down: Vec<usize> = (0..self.nodes.len())
            .filter(|i| !self.beliefs[*i].up)
            .collect();
        let Some(victim) = self.rng.pick(&up) else {
            let node = self.rng.below(self.nodes.len() as u64) as usize;
            return self.restart(node);
        };
        match self.rng.below(100) {
            0..35 => {
                if up.len() > 1 || self.rng.chance(15) {
                    self.crash(victim)?;
                }
                if self.rng.chance(10) {
                    // A second one at once.
                    let up = self.up();
                    if let (true, Some(other)) = (up.len() > 1, self.rng.pick(&up)) {
                        self.crash(other)?;
                    }
                }
            }
            35..55 => self.partition(victim),
            55..65 => {
                self.beliefs[victim].suspected = true;
                let life = self.beliefs[victim].incarnation;
                for node in (0..self.beliefs.len()).filter(|&node| node != victim) {
                    self.beliefs[node].down.insert(life);
                }
                self.gossip(1, 400);
                let after = self.rng.range(50, 800) * MILLI;
                self.push(after, Event::Reborn { node: victim });
            }
            65..75 => {
                let length = self.rng.range(20, 600) * MILLI;
                self.nodes[victim].paused_until = self.now + length;
                self.say(|| format!("node {victim} stands still for {} ms", length / MILLI));
            }
            75..82 => {
                let jump = self.rng.range(50, 1200);
                self.nodes[victim].clock.base += jump;
                self.say(|| format!("the clock of node {victim} jumps by {jump} ms"));
                self.storm();
            }
            82..90 => {
                let node = &mut self.nodes[victim];
                match self.rng.chance(50) {
                    true => node.slow_sender = !node.slow_sender,
                    false => node.disk.slow = !node.disk.slow,
                }
            }
            90..94 => {
                if let Some(other) = self.rng.pick(&up) {
                    let peer = node_id(other);
                    self.handle(victim, Input::Reset { peer })?;
                }
            }
            _ => {
                if let Some(node) = self.rng.pick(&down) {
                    self.restart(node)?;
                }
            }
        }
        Ok(())
    }

    /// All nodes crash at once and come back with their disks; while they are at it, again.
    pub(super) fn collapse(&mut self, again: u32) -> Result<(), Broken> {
        if self.quiet {
            return Ok(());
        }
        self.say(|| format!("the whole cluster crashes, and {again} times more"));
        for node in self.up() {
            let torn = self.rng.chance(60);
            self.go_down(node, torn, false)?;
            // The last time one may be long in coming: the others serve by then.
            let after = match again == 0 && self.rng.chance(30) {
                true => self.rng.range(500, 4_000),
                false => self.rng.range(1, 100),
            };
            self.push(after * MILLI, Event::Restart { node });
        }
        if again > 0 {
            let after = self.rng.range(50, 900) * MILLI;
            self.push(after, Event::Collapse { again: again - 1 });
        }
        Ok(())
    }

    /// A node crashes, perhaps loses its disk, and mostly comes back.
    fn crash(&mut self, index: usize) -> Result<(), Broken> {
        let torn = self.rng.chance(60);
        let disk_lost = self.rng.chance(20);
        self.go_down(index, torn, disk_lost)?;
        let away = match self.rng.below(10) {
            0 => self.rng.range(5_500, 9_000),
            1..4 => self.rng.range(10, 150), // Back before anyone noticed.
            _ => self.rng.range(150, 3_000),
        };
        if self.rng.chance(90) {
            self.push(away * MILLI, Event::Restart { node: index });
        }
        Ok(())
    }

    /// A node is no more; its next life will find what is left on its disk: of a `torn` one
    /// perhaps without the batches that were on their way.
    fn go_down(&mut self, index: usize, torn: bool, disk_lost: bool) -> Result<(), Broken> {
        let counters = self.nodes[index].store.counters();
        self.report.counts.take(&counters);
        self.beliefs[index].up = false;
        self.say(|| format!("node {index} crashes"));
        self.client.crashed(index, self.nodes[index].run);
        let node = &mut self.nodes[index];
        let on_the_way = std::mem::take(&mut node.disk.on_the_way);
        if self.persistent {
            let survive = match torn {
                true => self.rng.below(on_the_way.len() as u64 + 1) as usize,
                false => on_the_way.len(),
            };
            let node = &mut self.nodes[index];
            let kept = on_the_way.into_iter().take(survive);
            node.disk.safe.extend(kept.map(|(_, batch)| batch));
            if disk_lost {
                node.disk.safe.clear();
            }
        }
        self.new_clock(index);
        let mut store = self.fresh_store(index);
        let node = &mut self.nodes[index];
        let time = node.clock.read(self.now);
        for batch in &node.disk.safe {
            if let Err(error) = store.load(batch, time) {
                return Err(Broken(format!("the disk cannot be read: {error}")));
            }
        }
        node.store = store;
        node.run += 1;
        node.ready = false;
        node.wake = None;
        node.wipes = 0;
        self.storm();
        self.weather();
        match self.persistent && !disk_lost {
            true => self.torn(index)?,
            false => self.lost(index)?,
        }
        super::client::hide(self);
        self.gossip(200, 1200);
        Ok(())
    }

    fn partition(&mut self, victim: usize) {
        let count = self.nodes.len();
        let one_way = self.rng.chance(40);
        let side: Vec<bool> = match self.rng.chance(50) {
            true => (0..count).map(|node| node == victim).collect(),
            false => (0..count).map(|_| self.rng.chance(50)).collect(),
        };
        for a in 0..count {
            for b in 0..count {
                if side[a] && !side[b] {
                    self.cut.insert((a, b));
                    if !one_way {
                        self.cut.insert((b, a));
                    }
                }
            }
        }
        self.say(|| format!("cut: {:?}", self.cut));
        self.weather();
        self.gossip(300, 1500);
        let length = match self.rng.below(10) {
            0 => self.rng.range(5_500, 8_000),
            1..5 => self.rng.range(20, 400),
            _ => self.rng.range(400, 3_000),
        };
        self.push(length * MILLI, Event::Heal);
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
        for node in 0..self.nodes.len() {
            let after = self.rng.range(20, 500) * MILLI;
            self.push(after, Event::Reborn { node });
        }
        self.weather();
        self.gossip(100, 700);
    }
}
