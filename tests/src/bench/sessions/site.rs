//! Nodes in namespaces of their own, on one segment: real processes over veth.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::words::{ASYNC, Load, Loaded, Order, SYNC, Status, Sums};
use crate::netns::{End, Link, Netns, veth};
use crate::process::sibling;

/// For nodes to find each other and to compare what they have.
const PATIENCE: Duration = Duration::from_secs(30);

/// Some nodes; dropped before the hosts that they run on.
pub struct Site {
    nodes: Vec<Node>,
    hosts: Vec<Netns>,
    _segment: Netns,
    dir: TempDir,
}

/// A node's process, killed when dropped.
pub struct Node {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Node {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    fn start(ns: &Netns, config: &Path) -> Result<Self> {
        let mut command = ns.command(sibling("sessionnode"));
        command.arg("--config").arg(config);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start sessionnode")?;
        let orders = child.stdin.take().context("a pipe")?;
        let answers = child.stdout.take().context("a pipe")?;
        Ok(Self {
            child,
            orders,
            answers: BufReader::new(answers),
        })
    }

    fn tell(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        Ok(self.orders.write_all(line.as_bytes())?)
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a node has ended; see above");
        Ok(serde_json::from_str(&line)?)
    }

    /// Does an order and waits for its end.
    ///
    /// # Errors
    /// The node has ended, or said something else.
    pub fn ask<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T> {
        self.tell(order)?;
        self.hear()
    }

    /// Where it stands.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn status(&mut self) -> Result<Status> {
        self.ask(&Order::Status)
    }
}

impl Site {
    /// Hosts for so many nodes, none of which runs.
    ///
    /// # Errors
    /// What files can't be written.
    pub fn new(count: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sessions-").tempdir()?;
        let secret = dir.path().join("secret");
        fs::write(&secret, "0123456789abcdefghijklmnopqrstuvwxyz0123")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        let segment = Netns::new();
        segment.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n");
        let hosts = (0..count).map(|i| {
            let ns = Netns::new();
            let port = format!("node{i}");
            veth(
                &End::new(&ns, "eth0", &[&format!("10.7.0.{}/24", i + 1)]),
                &End::new(&segment, &port, &[]),
                Link::default(),
            );
            segment.ip(&format!("link set {port} master br0"));
            ns
        });
        Ok(Self {
            nodes: Vec::new(),
            hosts: hosts.collect(),
            _segment: segment,
            dir,
        })
    }

    /// So many nodes that are together.
    ///
    /// # Errors
    /// They don't come together.
    pub fn together(count: usize) -> Result<Self> {
        let mut site = Self::new(count)?;
        for _ in 0..count {
            site.start()?;
        }
        site.wait_together()?;
        Ok(site)
    }

    /// Starts the next node.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(&mut self) -> Result<()> {
        let i = self.nodes.len();
        let host = self.hosts.get(i).context("no host is left")?;
        let path = self.dir.path().join(format!("node{i}.toml"));
        fs::write(&path, self.config(i))?;
        self.nodes.push(Node::start(host, &path)?);
        Ok(())
    }

    fn config(&self, node: usize) -> String {
        // Times are long: on a machine that is kept busy on purpose, nobody shall be
        // taken for dead.
        format!(
            "[cluster]\nname = \"n{node}\"\nlisten = \"10.7.0.{}:7946\"\n\
             seeds = [\"10.7.0.1:7946\"]\nsecret_file = {:?}\nstate_dir = {:?}\n\
             probe_interval = \"1s\"\nsuspect_timeout = \"20s\"\n\
             [[session.group]]\nname = \"{ASYNC}\"\nmanager = \"backup\"\ncopies = 1\n\
             [[session.group]]\nname = \"{SYNC}\"\nmanager = \"backup\"\ncopies = 1\n\
             replication = \"sync\"\nsync_timeout = \"5s\"\n",
            node + 1,
            self.dir.path().join("secret"),
            self.dir.path().join(format!("state{node}")),
        )
    }

    /// A node.
    ///
    /// # Panics
    /// When it has not been started.
    pub fn node(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node]
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Waits until all that run are ready, know of all others that they are, and have
    /// compared what they have; how long it took.
    ///
    /// # Errors
    /// It takes too long.
    pub fn wait_together(&mut self) -> Result<Duration> {
        let (count, begin) = (self.count(), Instant::now());
        loop {
            let mut together = true;
            for node in &mut self.nodes {
                let status = node.status()?;
                together &= status.ready && status.peers == count - 1 && status.unsettled == 0;
            }
            if together {
                return Ok(begin.elapsed());
            }
            ensure!(begin.elapsed() < PATIENCE, "the nodes do not come together");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What all nodes have used so far.
    ///
    /// # Errors
    /// One has ended.
    pub fn sums(&mut self) -> Result<Sums> {
        let mut sums = Sums::default();
        for node in &mut self.nodes {
            sums = sums.plus(node.status()?.sums);
        }
        Ok(sums)
    }

    /// Puts load on the first nodes, one for each, on all at once. Returns what became of
    /// it, and what all nodes used for it.
    ///
    /// # Errors
    /// One could not do it.
    pub fn load(&mut self, loads: &[Load]) -> Result<(Vec<Loaded>, Sums)> {
        for (node, load) in self.nodes.iter_mut().zip(loads) {
            node.tell(&Order::Prepare(load.clone()))?;
        }
        for (node, _) in self.nodes.iter_mut().zip(loads) {
            node.hear::<usize>()?;
        }
        let before = self.sums()?;
        for (node, _) in self.nodes.iter_mut().zip(loads) {
            node.tell(&Order::Go)?;
        }
        let nodes = self.nodes.iter_mut().zip(loads);
        let done: Result<Vec<Loaded>> = nodes.map(|(node, _)| node.hear()).collect();
        Ok((done?, self.sums()?.since(before)))
    }
}
