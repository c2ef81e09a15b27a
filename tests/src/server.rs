//! The real servers of a test: `testserver` processes in their namespaces, and the
//! handle that steers them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::{BOUND, Process, sibling, wait_until};
use crate::scratch;
use crate::topology::Place;

/// The port of TCP echo and UDP echo in [`Server::at`].
pub const ECHO: u16 = 7000;
/// The port of HTTP in [`Server::at`].
pub const HTTP: u16 = 8000;

/// Where a server listens.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// TCP echo: the name first, then what the client sends.
    pub tcp: Vec<SocketAddr>,
    /// HTTP/1.1: `/health`, and the name in the header `x-server`.
    pub http: Vec<SocketAddr>,
    /// UDP echo: the name, a colon, the datagram.
    pub udp: Vec<SocketAddr>,
}

/// What a server does with those who come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answers.
    Normal,
    /// Accepts, and never says a word.
    Hang,
    /// Has no listening TCP sockets, and leaves datagrams unanswered.
    Refuse,
}

/// What a server has counted.
#[derive(Clone, Debug, Deserialize)]
pub struct Stats {
    /// TCP echo connections accepted.
    pub tcp: u64,
    /// HTTP connections accepted.
    pub http: u64,
    /// Datagrams received.
    pub udp: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections accepted, by their source address.
    pub sources: BTreeMap<IpAddr, u64>,
}

/// A server process. Dropped, it is killed.
pub struct Server {
    name: String,
    ns: Netns,
    ports: Ports,
    process: Process,
    dir: TempDir,
}

impl Server {
    /// Starts a server with echo (TCP and UDP) on port [`ECHO`] and HTTP on port
    /// [`HTTP`] of the place's addresses; waits until it listens.
    #[track_caller]
    pub fn at(place: &Place, name: &str) -> Self {
        let both = |port| vec![place.at4(port), place.at6(port)];
        let ports = Ports {
            tcp: both(ECHO),
            http: both(HTTP),
            udp: both(ECHO),
        };
        Self::start(&place.ns, name, ports)
    }

    /// Starts a server in a namespace; waits until it listens.
    #[track_caller]
    pub fn start(ns: &Netns, name: &str, ports: Ports) -> Self {
        let dir = scratch::dir("testserver");
        let process = launch(ns, name, &ports, &dir);
        let server = Self {
            name: name.to_owned(),
            ns: ns.clone(),
            ports,
            process,
            dir,
        };
        server.ready()
    }

    /// The name that it answers with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace it runs in.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// `kill -9`: its kernel answers RST from now on.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again after [`kill9`](Self::kill9), with fresh counters.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.kill9();
        // A killed server leaves its control socket's name behind.
        let _ = std::fs::remove_file(self.socket());
        self.process = launch(&self.ns, &self.name, &self.ports, &self.dir);
        let socket = self.socket();
        wait_ready(&mut self.process, &socket);
    }

    /// Stops the process without ending it: its kernel still accepts, nobody answers.
    #[track_caller]
    pub fn pause(&mut self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets a paused process go on.
    #[track_caller]
    pub fn resume(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Changes what it does with those who come from now on.
    #[track_caller]
    pub fn mode(&self, mode: Mode) {
        let word = match mode {
            Mode::Normal => "normal",
            Mode::Hang => "hang",
            Mode::Refuse => "refuse",
        };
        self.order(&format!("mode {word}"));
    }

    /// Sets the status that `/health` answers with.
    #[track_caller]
    pub fn health(&self, status: u16) {
        self.order(&format!("health {status}"));
    }

    /// Sets the size of HTTP bodies, in bytes.
    #[track_caller]
    pub fn body(&self, bytes: usize) {
        self.order(&format!("body {bytes}"));
    }

    /// Closes every open connection.
    #[track_caller]
    pub fn close_connections(&self) {
        self.order("close");
    }

    /// What it has counted.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        serde_json::from_str(&self.ask("stats")).expect("statistics")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    fn ready(mut self) -> Self {
        let socket = self.socket();
        wait_ready(&mut self.process, &socket);
        self
    }

    #[track_caller]
    fn order(&self, line: &str) {
        let answer = self.ask(line);
        assert_eq!(answer, "ok", "{}: {line}", self.name);
    }

    #[track_caller]
    fn ask(&self, line: &str) -> String {
        let mut stream = UnixStream::connect(self.socket())
            .unwrap_or_else(|error| panic!("control {}: {error}", self.name));
        stream.set_read_timeout(Some(BOUND)).expect("a timeout");
        stream
            .write_all(format!("{line}\n").as_bytes())
            .expect("send an order");
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .unwrap_or_else(|error| panic!("{} does not answer `{line}`: {error}", self.name));
        answer.trim_end().to_owned()
    }
}

fn launch(ns: &Netns, name: &str, ports: &Ports, dir: &TempDir) -> Process {
    let mut command = ns.command(sibling("testserver"));
    command
        .args(["--name", name, "--control"])
        .arg(dir.path().join("control"));
    for (option, addresses) in [
        ("--tcp", &ports.tcp),
        ("--http", &ports.http),
        ("--udp", &ports.udp),
    ] {
        for address in addresses {
            command.args([option, &address.to_string()]);
        }
    }
    Process::spawn(
        &format!("server {name}"),
        command,
        &dir.path().join("server.log"),
    )
}

#[track_caller]
fn wait_ready(process: &mut Process, socket: &PathBuf) {
    wait_until("a test server to listen", BOUND, || {
        assert!(process.running(), "a test server ended: {}", process.log());
        UnixStream::connect(socket).is_ok()
    });
}
