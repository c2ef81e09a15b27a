//! Application server processes of a test, and the handle that steers them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::app::{Seen, Stats};
use crate::netns::Netns;
use crate::process::{BOUND, Process, sibling, wait_until};
use crate::scratch;

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its name, and the suffix of its sessions' ids.
    pub name: String,
    /// Leaves its sessions without a suffix.
    pub plain_sessions: bool,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Where requests with a nonce are noted.
    pub journal: Option<PathBuf>,
    /// Further options of the program.
    pub options: Vec<String>,
}

/// A running (or killed) application server. Dropped, it is killed.
pub struct App {
    setup: Setup,
    ns: Netns,
    process: Process,
    dir: TempDir,
}

impl App {
    /// Starts one on an address; waits until it listens.
    #[track_caller]
    pub fn at(ns: &Netns, name: &str, address: SocketAddr) -> Self {
        Self::start(
            ns,
            Setup {
                name: name.to_owned(),
                listen: vec![address],
                ..Setup::default()
            },
        )
    }

    /// Starts one; waits until it listens.
    #[track_caller]
    pub fn start(ns: &Netns, setup: Setup) -> Self {
        let dir = scratch::dir("appserver");
        let process = launch(ns, &setup, &dir);
        let mut app = Self {
            setup,
            ns: ns.clone(),
            process,
            dir,
        };
        app.wait_ready();
        app
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// The first address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.setup.listen[0]
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again after [`kill9`](Self::kill9), with fresh counters.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.kill9();
        // A killed server leaves its control socket's name behind.
        let _ = fs::remove_file(self.socket());
        self.process = launch(&self.ns, &self.setup, &self.dir);
        self.wait_ready();
    }

    /// Stops the process without ending it: its kernel accepts, nobody answers.
    #[track_caller]
    pub fn pause(&mut self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets a paused process go on.
    #[track_caller]
    pub fn resume(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Sets the status of `/health`.
    #[track_caller]
    pub fn health(&self, status: u16) {
        self.order(&format!("health {status}"));
    }

    /// Leaves requests that it has read unanswered from now on, or no longer.
    #[track_caller]
    pub fn hang(&self, on: bool) {
        self.order(if on { "hang on" } else { "hang off" });
    }

    /// Closes every open connection.
    #[track_caller]
    pub fn close_connections(&self) {
        self.order("close");
        // The order is heard at once, and obeyed by each connection in its turn.
        wait_until("connections to be closed", BOUND, || self.stats().open == 0);
    }

    /// Forgets log and counters.
    #[track_caller]
    pub fn clear(&self) {
        self.order("clear");
    }

    /// What it has seen since [`clear`](Self::clear); health checks left out.
    #[track_caller]
    pub fn log(&self) -> Vec<Seen> {
        let log: Vec<Seen> = serde_json::from_str(&self.ask("log")).expect("a log");
        let real = log.into_iter().filter(|seen| seen.target != "/health");
        real.collect()
    }

    /// The only request that it has seen.
    #[track_caller]
    pub fn only(&self) -> Seen {
        let mut log = self.log();
        assert_eq!(log.len(), 1, "{}: {log:#?}", self.name());
        log.remove(0)
    }

    /// What it has counted.
    #[track_caller]
    pub fn stats(&self) -> Stats {
        serde_json::from_str(&self.ask("stats")).expect("statistics")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let socket = self.socket();
        let process = &mut self.process;
        wait_until("an application server to listen", BOUND, || {
            assert!(process.running(), "it ended: {}", process.log());
            UnixStream::connect(&socket).is_ok()
        });
    }

    #[track_caller]
    fn order(&self, line: &str) {
        let answer = self.ask(line);
        assert_eq!(answer, "ok", "{}: {line}", self.name());
    }

    #[track_caller]
    fn ask(&self, line: &str) -> String {
        let mut stream = UnixStream::connect(self.socket())
            .unwrap_or_else(|error| panic!("control {}: {error}", self.name()));
        stream.set_read_timeout(Some(BOUND)).expect("a timeout");
        stream
            .write_all(format!("{line}\n").as_bytes())
            .expect("send an order");
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .unwrap_or_else(|error| panic!("{} does not answer `{line}`: {error}", self.name()));
        answer.trim_end().to_owned()
    }
}

fn launch(ns: &Netns, setup: &Setup, dir: &TempDir) -> Process {
    let mut command = ns.command(sibling("appserver"));
    command
        .args(["--name", &setup.name, "--control"])
        .arg(dir.path().join("control"));
    if !setup.plain_sessions {
        command.args(["--route", &setup.name]);
    }
    for address in &setup.listen {
        command.args(["--listen", &address.to_string()]);
    }
    if let Some(journal) = &setup.journal {
        command.arg("--journal").arg(journal);
    }
    command.args(&setup.options);
    let log = dir.path().join("server.log");
    Process::spawn(&format!("application server {}", setup.name), command, &log)
}

/// Nonces in a journal, with the servers that had them, in order.
#[track_caller]
pub fn journal(path: &Path) -> BTreeMap<String, Vec<(String, String)>> {
    let text = fs::read_to_string(path).expect("a journal");
    let mut seen: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [nonce, method, server] = words[..] else {
            panic!("a line of the journal: {line:?}");
        };
        let entry = (method.to_owned(), server.to_owned());
        seen.entry(nonce.to_owned()).or_default().push(entry);
    }
    seen
}
