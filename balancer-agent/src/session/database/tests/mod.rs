//! What comes back from disk, whatever happened to it.

mod file;
mod measure;
mod members;
mod power;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::config::{Config, GroupConfig};
use super::super::store::{Input, Output, Store};
use super::super::types::{
    Expect, GroupId, Manager, Member, NodeId, Op, Outcome, Replication, Time, Token,
};
use super::file::{Opened, open};
use super::{Identity, Refusal};

const BUCKETS: u16 = 16;
const USER: GroupId = GroupId(0);
const ADMIN: GroupId = GroupId(1);
const HOUR: u64 = 3_600_000;

const IDENTITY: Identity = Identity {
    node: NodeId(7),
    key: [1, 2],
    id_key: [3, 4],
    own_keys: false,
};

/// A directory, and the file that is to be in it.
struct Place {
    dir: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/sessions.redb");
        Self { dir, path }
    }

    fn open(&self) -> Opened {
        open(&self.path, IDENTITY, BUCKETS).unwrap()
    }

    fn refusal(&self) -> Refusal {
        open(&self.path, IDENTITY, BUCKETS).expect_err("a refusal")
    }

    /// What an agent that starts now has.
    fn sessions(&self) -> BTreeMap<String, String> {
        let mut file = self.open();
        assert!(file.aside().is_empty(), "set aside: {:?}", file.aside());
        let mut node = Node::empty();
        assert!(node.load(&mut file), "it could not be read");
        node.sessions(USER)
    }
}

fn config() -> Config {
    let group = |name: &str| GroupConfig {
        name: name.into(),
        manager: Manager::Delta,
        replication: Replication::Sync,
        persistent: true,
    };
    let mut config = Config::new(
        IDENTITY.node,
        IDENTITY.key,
        vec![group("user"), group("admin")],
    );
    config.limits.buckets = BUCKETS;
    config.timing.alone = 0;
    config
}

fn keys() -> Vec<u32> {
    let groups = config().groups;
    let keys = groups
        .iter()
        .map(|g| super::super::config::group_key(&g.name));
    keys.collect()
}

/// A store of its own, and the batches that it wants written.
struct Node {
    store: Store,
    now: Time,
    batches: Vec<(u64, Vec<u8>)>,
    done: u64,
}

impl Node {
    fn empty() -> Self {
        Self {
            store: Store::new(config()).unwrap(),
            now: Time(0),
            batches: Vec::new(),
            done: 0,
        }
    }

    fn ready() -> Self {
        let mut node = Self::empty();
        node.serve();
        node
    }

    fn serve(&mut self) {
        let member = Member {
            node: IDENTITY.node,
            incarnation: 1,
            groups: None,
        };
        self.handle(Input::Members {
            incarnation: 1,
            members: &[member],
        });
        assert!(self.store.ready());
    }

    /// `false`: the file was set aside, and nothing counts.
    fn load(&mut self, file: &mut Opened) -> bool {
        let (store, now) = (&mut self.store, self.now);
        let (_, whole) = file.read(&keys(), |batch| store.load(batch, now)).unwrap();
        whole
    }

    fn handle(&mut self, input: Input<'_>) {
        self.store.handle(input, self.now).unwrap();
    }

    fn op(&mut self, group: GroupId, id: &str, op: Op) -> Option<Outcome> {
        self.handle(Input::Request {
            token: Token(1),
            group,
            id: id.as_bytes(),
            op,
        });
        self.poll()
    }

    fn poll(&mut self) -> Option<Outcome> {
        let mut last = None;
        while let Some(output) = self.store.poll_output() {
            match output {
                Output::Persist { seq, batch } => self.batches.push((seq, batch)),
                Output::Reply { outcome, .. } => last = Some(outcome),
                _ => {}
            }
        }
        last
    }

    fn put(&mut self, id: &str, route: &str) -> Option<Outcome> {
        self.op(
            USER,
            id,
            Op::Put {
                route: route.into(),
                ttl: HOUR,
                data: None,
                expect: Expect::Any,
            },
        )
    }

    /// Writes what waits, and all that follows from it.
    fn write(&mut self, file: &mut Opened) {
        while let Some((seq, batch)) = self.next() {
            file.write([&batch[..]].into_iter()).unwrap();
            self.written(seq);
        }
    }

    fn next(&mut self) -> Option<(u64, Vec<u8>)> {
        (!self.batches.is_empty()).then(|| self.batches.remove(0))
    }

    fn written(&mut self, seq: u64) {
        self.done = seq;
        self.handle(Input::Persisted { seq });
        self.poll();
    }

    fn sessions(&self, group: GroupId) -> BTreeMap<String, String> {
        let all = self.store.list(group, 0, usize::MAX, self.now);
        let text = |id: &[u8]| String::from_utf8(id.to_vec()).unwrap();
        all.iter()
            .map(|listed| (text(&listed.id), listed.session.route.to_string()))
            .collect()
    }
}

fn id(n: usize) -> String {
    format!("session-{n:06}")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
