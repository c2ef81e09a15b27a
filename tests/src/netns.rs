//! Network namespaces: made with unique names, entered by threads and child
//! processes, removed when the last handle goes (also while a test panics).
//!
//! A name is `bal-<pid>-<n>`: what a killed process left behind is recognised by
//! its dead pid and removed by [`sweep`] when the next one makes a namespace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process;

const RUN: &str = "/run/netns";
const PREFIX: &str = "bal-";

/// A handle to a network namespace. Clones share it; the last one removes it.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace with its loopback device up, duplicate address detection
    /// and router solicitation off, and reverse path filters off.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "network namespaces need root: run `sudo -E env PATH=$PATH cargo xtask test`"
        );
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| {
            sweep();
            // Nothing has been made yet: these are of an earlier process of this number.
            remove_own();
        });

        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let ns = {
            let _open = process::gate();
            check(Command::new("ip").args(["netns", "add", &name]));
            let path = Path::new(RUN).join(&name);
            let file = File::open(&path)
                .unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
            Self(Arc::new(Inner { name, file }))
        };
        ns.enter(|| {
            for conf in ["default", "all"] {
                write_sysctl(&format!("net.ipv4.conf.{conf}.rp_filter"), "0");
                write_sysctl(&format!("net.ipv6.conf.{conf}.accept_dad"), "0");
                write_sysctl(&format!("net.ipv6.conf.{conf}.accept_ra"), "0");
                write_sysctl(&format!("net.ipv6.conf.{conf}.router_solicitations"), "0");
                write_sysctl(&format!("net.ipv6.conf.{conf}.disable_ipv6"), "0");
            }
        });
        ns.ip("link set lo up");
        ns
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs a closure in a fresh thread inside the namespace and returns its value;
    /// a panic in it goes on in the caller.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.join_thread();
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a closure in a background thread inside the namespace.
    pub fn spawn<R: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> JoinHandle<R> {
        let ns = self.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                ns.join_thread();
                work()
            })
            .expect("start a thread")
    }

    /// A command whose child runs inside the namespace. The mounts stay the host's,
    /// so that the child sees the same `/sys/fs/bpf`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let ns = self.clone();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call on a file
        // that it owns; it neither allocates nor locks.
        unsafe {
            command.pre_exec(move || Ok(setns(&ns.0.file, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// Runs a command line (split at spaces) inside the namespace and returns its
    /// standard output; panics when it fails.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        match self.try_run(line) {
            Ok(output) => output,
            Err(message) => panic!("in {}: {message}", self.name()),
        }
    }

    /// Like [`run`](Self::run), for commands that may fail.
    ///
    /// # Errors
    /// What the command printed on standard error, with its exit status.
    pub fn try_run(&self, line: &str) -> Result<String, String> {
        let mut words = line.split_whitespace();
        let program = words.next().ok_or("an empty command line")?;
        let output = self
            .command(program)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("`{line}`: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`{line}`: {}: {}", output.status, said.trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` once for all lines, each an `ip` command without the word `ip`.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.feed("ip -batch -", lines);
    }

    /// Loads an nftables ruleset inside the namespace.
    #[track_caller]
    pub fn nft(&self, ruleset: &str) {
        self.feed("nft -f -", ruleset);
    }

    /// Writes a sysctl of the namespace, by its dotted name.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        self.enter(|| write_sysctl(name, value));
    }

    /// Whether two handles mean the same namespace.
    pub fn same(&self, other: &Netns) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    #[track_caller]
    fn feed(&self, line: &str, input: &str) {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program");
        let mut child = self
            .command(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start `{line}`: {error}"));
        // A program that stops reading says why on standard error.
        let _ = child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(input.as_bytes());
        let output = child.wait_with_output().expect("wait for a child");
        assert!(
            output.status.success(),
            "in {}: `{line}`: {}\n{}\ninput was:\n{input}",
            self.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
        );
    }

    fn join_thread(&self) {
        setns(&self.0.file, CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("enter {}: {error}", self.name()));
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// One end of a veth pair.
#[derive(Clone)]
pub struct End {
    /// Where the device lives.
    pub ns: Netns,
    /// The device's name there.
    pub device: String,
    /// Addresses with prefix length, IPv4 or IPv6.
    pub addresses: Vec<String>,
    /// A hardware address instead of a random one.
    pub mac: Option<String>,
    /// Whether the end takes in frames that XDP sends from the other end (it then
    /// runs NAPI, by way of GRO). An end that gets an XDP program does so anyway.
    pub gro: bool,
}

impl End {
    /// An end with addresses, which takes in XDP frames.
    pub fn new(ns: &Netns, device: &str, addresses: &[&str]) -> Self {
        Self {
            ns: ns.clone(),
            device: device.to_owned(),
            addresses: addresses.iter().map(|&a| a.to_owned()).collect(),
            mac: None,
            gro: true,
        }
    }

    /// Gives the end a hardware address.
    #[must_use]
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// Leaves GRO off: for the end that will carry an XDP program.
    #[must_use]
    pub fn without_gro(mut self) -> Self {
        self.gro = false;
        self
    }
}

/// What both ends of a veth pair share.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Receive and transmit queues of each end; XDP needs as many receive queues as
    /// the peer has transmit queues, so both are the same.
    pub queues: u32,
    /// In bytes.
    pub mtu: u32,
}

impl Default for Link {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self {
            queues: cores.min(8),
            mtu: 1500,
        }
    }
}

/// Makes a veth pair, both ends up and addressed. Checksums are computed by the
/// sender: a packet that XDP rewrites must carry a whole one.
#[track_caller]
pub fn veth(a: &End, b: &End, link: Link) {
    let Link { queues, mtu } = link;
    let mac = |end: &End| {
        end.mac
            .as_ref()
            .map_or(String::new(), |mac| format!(" address {mac}"))
    };
    a.ns.ip(&format!(
        "link add name {} mtu {mtu}{} numtxqueues {queues} numrxqueues {queues} type veth \
         peer name {} mtu {mtu}{} numtxqueues {queues} numrxqueues {queues} netns {}",
        a.device,
        mac(a),
        b.device,
        mac(b),
        b.ns.name(),
    ));
    for end in [a, b] {
        let gro = if end.gro { "on" } else { "off" };
        end.ns
            .run(&format!("ethtool -K {} tx off gro {gro}", end.device));
        let mut lines = format!("link set {} up\n", end.device);
        for address in &end.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lines += &format!("address add {address} dev {}{nodad}\n", end.device);
        }
        end.ns.ip(&lines);
    }
    for end in [a, b] {
        // The first end had no carrier when it came up; until the kernel has noticed the
        // second one, it drops what is sent. To ask makes it notice.
        let state = end.ns.run(&format!("ethtool {}", end.device));
        assert!(state.contains("Link detected: yes"), "{state}");
    }
}

/// The hardware address of a device, as six bytes.
#[track_caller]
pub fn mac_of(ns: &Netns, device: &str) -> [u8; 6] {
    let output = ns.run(&format!("ip -j link show {device}"));
    let json: serde_json::Value = serde_json::from_str(&output).expect("ip prints JSON");
    let text = json[0]["address"].as_str().expect("a hardware address");
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).expect("hexadecimal digits");
    }
    mac
}

/// Removes the namespaces (and kills what runs in them) whose maker is dead.
pub fn sweep() {
    for name in names() {
        let gone = |pid| kill(Pid::from_raw(pid), None::<Signal>) == Err(Errno::ESRCH);
        if maker(&name).is_some_and(gone) {
            remove(&name);
        }
    }
}

fn maker(name: &str) -> Option<i32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

/// The harness' namespaces that this process has made and not yet removed.
pub fn own() -> Vec<String> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    names().filter(|name| name.starts_with(&prefix)).collect()
}

/// Removes everything this process has made: for a signal handler's thread, right
/// before the process exits.
pub fn remove_own() {
    own().iter().for_each(|name| remove(name));
}

fn names() -> impl Iterator<Item = String> {
    fs::read_dir(RUN)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
}

fn remove(name: &str) {
    let path = Path::new(RUN).join(name);
    kill_inside(&path);
    let removed = Command::new("ip").args(["netns", "delete", name]).output();
    match removed {
        Ok(output) if output.status.success() => {}
        // While unwinding, a second panic would hide the first.
        // A signal's thread may have been faster.
        _ if !path.exists() => {}
        other => eprintln!("could not remove namespace {name}: {other:?}"),
    }
}

/// A process that outlives its namespace's name would keep the devices alive.
fn kill_inside(namespace: &PathBuf) {
    let Ok(wanted) = fs::metadata(namespace) else {
        return;
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let inside = fs::metadata(entry.path().join("ns/net"))
            .is_ok_and(|have| (have.dev(), have.ino()) == (wanted.dev(), wanted.ino()));
        if inside && pid != std::process::id() as i32 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[track_caller]
fn write_sysctl(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::write(&path, value).unwrap_or_else(|error| panic!("sysctl {name}={value}: {error}"));
}

#[track_caller]
fn check(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error} (is iproute2 installed?)"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}
