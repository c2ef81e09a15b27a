//! The membership that the simulated nodes are told: right in the end, until then late,
//! and not the same for all.
//!
//! As the real one must, it never shows a node again in a life in which anyone has
//! declared it down: such a node gets a new incarnation first.

use std::collections::BTreeSet;

use balancer_agent::session::{Member, NodeId};

/// One node as the membership sees it.
#[derive(Clone, Debug, Default)]
pub struct Believer {
    /// Whether it runs.
    pub up: bool,
    /// Its present life.
    pub incarnation: u64,
    /// What it was last told: node and incarnation.
    pub view: Vec<(usize, u64)>,
    /// Lives that it has declared down.
    pub down: BTreeSet<u64>,
    /// Somebody has declared its present life down.
    pub suspected: bool,
}

/// Who runs in which life.
pub fn truth(nodes: &[Believer]) -> Vec<(usize, u64)> {
    let up = nodes.iter().enumerate().filter(|(_, node)| node.up);
    up.map(|(index, node)| (index, node.incarnation)).collect()
}

/// Whether every node that runs has been told the truth.
pub fn agreed(nodes: &[Believer]) -> bool {
    let truth = truth(nodes);
    nodes
        .iter()
        .filter(|node| node.up)
        .all(|node| node.view == truth)
}

/// What a node believes now, given which others it can talk to. Those that it cannot talk
/// to are declared down.
pub fn refresh(nodes: &mut [Believer], who: usize, reaches: impl Fn(usize) -> bool) {
    let mut view = Vec::new();
    for (index, incarnation) in truth(nodes) {
        if index != who && !reaches(index) {
            nodes[who].down.insert(incarnation);
            nodes[index].suspected = true;
        }
        if index == who || !nodes[who].down.contains(&incarnation) {
            view.push((index, incarnation));
        }
    }
    nodes[who].view = view;
}

/// The view in the store's terms.
pub fn members(view: &[(usize, u64)]) -> Vec<Member> {
    let member = |&(index, incarnation): &(usize, u64)| Member {
        node: node_id(index),
        incarnation,
        groups: None,
    };
    view.iter().map(member).collect()
}

/// The store's name of a simulated node.
pub fn node_id(index: usize) -> NodeId {
    NodeId(101 + index as u64)
}

/// The simulated node of a name.
pub fn index_of(node: NodeId) -> usize {
    (node.0 - 101) as usize
}
