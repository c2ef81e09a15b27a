//! A few stores, joined by a network that loses nothing and takes no time, with a clock
//! that the test moves.

use std::collections::{BTreeMap, VecDeque};

use balancer_agent::session::{
    Config, GroupConfig, GroupId, Input, Manager, Member, NodeId, Op, Outcome, Output, Replication,
    Session, Store, Time, Token,
};

pub const GROUP: GroupId = GroupId(0);
pub const HOUR: u64 = 3_600_000;

/// Several nodes.
pub struct Net {
    pub nodes: BTreeMap<NodeId, Store>,
    pub now: Time,
    pub replies: BTreeMap<Token, Outcome>,
    /// What each node has asked to be written, and what was done for it outside.
    pub disks: BTreeMap<NodeId, Vec<Vec<u8>>>,
    pub external: Vec<(NodeId, Token)>,
    /// Frames to these nodes are lost, and their disks do not answer.
    pub deaf: Vec<NodeId>,
    /// Frames to this node are kept for it, until [`Net::release`].
    pub stopped: Option<NodeId>,
    kept: Vec<(NodeId, NodeId, Vec<u8>)>,
    pub frames: u64,
    pub bytes: u64,
    queue: VecDeque<(NodeId, NodeId, Vec<u8>)>,
    incarnations: BTreeMap<NodeId, u64>,
    lives: u64,
    tokens: u64,
}

pub fn config(manager: Manager, replication: Replication, persistent: bool) -> Config {
    let group = GroupConfig {
        name: "users".into(),
        manager,
        replication,
        persistent,
    };
    Config::new(NodeId(0), [11, 12], vec![group])
}

pub fn put(route: &str, ttl: u64) -> Op {
    Op::Put {
        route: route.into(),
        ttl,
        data: None,
        expect: balancer_agent::session::Expect::Any,
    }
}

impl Net {
    /// Nodes 1 to `count`, which know each other and are ready.
    pub fn new(count: u64, config: &Config) -> Self {
        let mut net = Self {
            nodes: BTreeMap::new(),
            now: Time(1_000_000),
            replies: BTreeMap::new(),
            disks: BTreeMap::new(),
            external: Vec::new(),
            deaf: Vec::new(),
            stopped: None,
            kept: Vec::new(),
            frames: 0,
            bytes: 0,
            queue: VecDeque::new(),
            incarnations: BTreeMap::new(),
            lives: 0,
            tokens: 0,
        };
        for node in 1..=count {
            net.add(NodeId(node), config);
        }
        net.tell();
        net
    }

    /// Adds a node that knows nobody yet.
    pub fn add(&mut self, node: NodeId, config: &Config) {
        let mut config = config.clone();
        config.node = node;
        self.lives += 1;
        self.incarnations.insert(node, self.lives * 1_000);
        self.nodes.insert(node, Store::new(config).unwrap());
    }

    /// Takes a node away, with what it held.
    pub fn remove(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.incarnations.remove(&node);
    }

    /// Tells all nodes of all nodes.
    pub fn tell(&mut self) {
        let everyone: Vec<NodeId> = self.nodes.keys().copied().collect();
        for &node in &everyone {
            self.tell_one(node, &everyone);
        }
        self.run();
    }

    /// Tells one node of some.
    pub fn tell_one(&mut self, node: NodeId, others: &[NodeId]) {
        let member = |&node: &NodeId| Member {
            node,
            incarnation: self.incarnations[&node],
            groups: None,
        };
        let members: Vec<Member> = others.iter().map(member).collect();
        let incarnation = self.incarnations[&node];
        self.input(
            node,
            Input::Members {
                incarnation,
                members: &members,
            },
        );
    }

    pub fn input(&mut self, node: NodeId, input: Input<'_>) {
        let Some(store) = self.nodes.get_mut(&node) else {
            return;
        };
        store.handle(input, self.now).unwrap();
        self.drain(node);
    }

    fn drain(&mut self, node: NodeId) {
        while let Some(output) = self.nodes.get_mut(&node).and_then(Store::poll_output) {
            match output {
                Output::Send { to, frame } => {
                    self.frames += 1;
                    self.bytes += frame.len() as u64;
                    self.queue.push_back((node, to, frame));
                }
                Output::Reply { token, outcome } => {
                    assert!(self.replies.insert(token, outcome).is_none());
                }
                Output::Persist { seq, batch } => {
                    self.disks.entry(node).or_default().push(batch);
                    if !self.deaf.contains(&node) {
                        self.input(node, Input::Persisted { seq });
                    }
                }
                Output::External { token, .. } => self.external.push((node, token)),
                Output::Ready(_) => {}
            }
        }
    }

    /// Delivers everything that is on its way.
    pub fn run(&mut self) {
        for _ in 0..2_000_000 {
            let Some((from, to, bytes)) = self.queue.pop_front() else {
                return;
            };
            if self.stopped == Some(to) {
                self.kept.push((from, to, bytes));
            } else if !self.deaf.contains(&to) {
                let bytes = &bytes;
                self.input(to, Input::Frame { from, bytes });
            }
            self.input(from, Input::Sent { to });
        }
        panic!("the nodes never stop talking");
    }

    /// Lets the stopped node go on with what came for it.
    pub fn release(&mut self) {
        self.stopped = None;
        self.queue.extend(self.kept.drain(..));
        self.run();
    }

    /// Gives a node a new life, as the membership does when others have given it up.
    pub fn reborn(&mut self, node: NodeId) {
        self.lives += 1;
        self.incarnations.insert(node, self.lives * 1_000);
    }

    /// Moves the clock on, and wakes whoever wants to be woken on the way.
    pub fn pass(&mut self, millis: u64) {
        let end = self.now.plus(millis);
        for _ in 0..2_000_000 {
            let going = self.nodes.iter();
            let going = going.filter(|(node, _)| self.stopped != Some(**node));
            let next = going.filter_map(|(_, store)| store.poll_timeout()).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
            for node in nodes {
                if self.stopped == Some(node) {
                    continue;
                }
                if self.nodes[&node]
                    .poll_timeout()
                    .is_some_and(|time| time <= self.now)
                {
                    self.input(node, Input::Tick);
                }
            }
            self.run();
        }
        panic!("the nodes never sleep");
    }

    /// Begins an operation.
    pub fn ask(&mut self, node: u64, id: &str, op: Op) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.input(
            NodeId(node),
            Input::Request {
                token,
                group: GROUP,
                id: id.as_bytes(),
                op,
            },
        );
        token
    }

    /// Does an operation to its end.
    pub fn op(&mut self, node: u64, id: &str, op: Op) -> Outcome {
        let token = self.ask(node, id, op);
        self.run();
        for _ in 0..100 {
            if let Some(outcome) = self.replies.remove(&token) {
                return outcome;
            }
            self.pass(100);
        }
        panic!("no answer in ten seconds");
    }

    pub fn get(&mut self, node: u64, id: &str) -> Option<Session> {
        match self.op(node, id, Op::Get { touch: false }) {
            Outcome::Found(session) => Some(*session),
            Outcome::NotFound => None,
            other => panic!("a read ended with {other:?}"),
        }
    }

    pub fn store(&self, node: u64) -> &Store {
        &self.nodes[&NodeId(node)]
    }

    /// Sum of one count over all nodes.
    pub fn sum(&self, count: impl Fn(&balancer_agent::session::Counters) -> u64) -> u64 {
        self.nodes
            .values()
            .map(|store| count(&store.counters()))
            .sum()
    }

    pub fn all_ready(&self) -> bool {
        self.nodes.values().all(Store::ready)
    }
}
