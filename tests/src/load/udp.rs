//! UDP flows: each a socket of its own that sends numbered datagrams and waits for
//! the answer to each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::block_on;
use crate::netns::Netns;

/// Ports of our own, below those that the kernel hands out. Each is used once, as far as
/// they go: one that came round would go on with an earlier flow, whose entry outlives its
/// socket.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 20_000;
static PORT: AtomicU16 = AtomicU16::new(0);

/// One flow's story.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The client's address.
    pub local: SocketAddr,
    /// Who answered each datagram; nothing where no answer came.
    pub answers: Vec<Option<String>>,
}

impl Flow {
    /// The server, if every datagram was answered and by the same one.
    pub fn server(&self) -> Option<&str> {
        let first = self.answers.first()?.as_deref()?;
        let same = |answer: &Option<String>| answer.as_deref() == Some(first);
        self.answers.iter().all(same).then_some(first)
    }
}

/// Opens `flows` sockets, one after the other, and exchanges `datagrams` datagrams on
/// each; waits at most `patience` for an answer.
pub fn flows(
    ns: &Netns,
    target: SocketAddr,
    flows: usize,
    datagrams: usize,
    patience: Duration,
) -> Vec<Flow> {
    ns.enter(|| {
        block_on(async {
            let mut all = Vec::new();
            let mut sockets = Vec::new();
            for number in 0..flows {
                let (flow, socket) = flow(target, number, datagrams, patience).await;
                all.push(flow);
                sockets.push(socket);
            }
            all
        })
    })
}

/// How many flows each server has answered whole.
pub fn distribution(flows: &[Flow]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for server in flows.iter().filter_map(Flow::server) {
        *counts.entry(server.to_owned()).or_default() += 1;
    }
    counts
}

async fn flow(
    target: SocketAddr,
    number: usize,
    datagrams: usize,
    patience: Duration,
) -> (Flow, UdpSocket) {
    let socket = loop {
        let port = FIRST_PORT + PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => ([0, 0, 0, 0], port).into(),
            SocketAddr::V6(_) => ([0u16; 8], port).into(),
        };
        match UdpSocket::bind(any).await {
            Ok(socket) => break socket,
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => panic!("a UDP socket: {error}"),
        }
    };
    socket.connect(target).await.expect("a route");
    let mut answers = Vec::new();
    for sequence in 0..datagrams {
        let question = format!("flow {number}, datagram {sequence}");
        answers.push(ask(&socket, &question, patience).await);
    }
    let local = socket.local_addr().expect("an address");
    (Flow { local, answers }, socket)
}

async fn ask(socket: &UdpSocket, question: &str, patience: Duration) -> Option<String> {
    // An ICMP error of an earlier datagram shows here: as good as no answer.
    socket.send(question.as_bytes()).await.ok()?;
    let mut buffer = [0; 2048];
    let answer = async {
        loop {
            let n = socket.recv(&mut buffer).await.ok()?;
            let text = std::str::from_utf8(&buffer[..n]).ok()?;
            // A late answer to an earlier question is not the one.
            if let Some((name, echoed)) = text.split_once(':')
                && echoed == question
            {
                return Some(name.to_owned());
            }
        }
    };
    timeout(patience, answer).await.ok().flatten()
}
