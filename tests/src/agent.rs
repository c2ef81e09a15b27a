//! The agent under test: `balancer run` in the balancer's namespace, with a
//! configuration, a socket and a pin directory of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::{Process, sibling, wait_until};
use crate::scratch;
use crate::topology::Lab;

const BPFFS: &str = "/sys/fs/bpf";
const PREFIX: &str = "balancer-test-";

/// How long an agent may take to load its program and be ready.
pub const READY: Duration = Duration::from_secs(60);

/// A running (or killed) agent. Dropped, it is killed, and its pins are removed: with
/// them the kernel program goes.
pub struct Agent {
    ns: Netns,
    process: Option<Process>,
    binary: PathBuf,
    dir: TempDir,
    pins: PinDir,
    interfaces: Vec<String>,
    /// Further keys of `[xdp]`; nothing: no such section.
    xdp: Option<String>,
    private_mounts: bool,
}

/// Key of `[xdp]`: the mode that users get who name none.
pub const AUTO: &str = "mode = \"auto\"\n";

/// What a `balancer` command printed.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code; nothing when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Agent {
    /// Starts an agent in the lab with these frontends and pools (TOML); the sections
    /// `[xdp]` and `[admin]` are added; native mode, as on network cards. Waits until it
    /// is ready.
    #[track_caller]
    pub fn start(lab: &Lab, config: &str) -> Self {
        let mut agent = Self::prepare(&lab.balancer, lab.interfaces(), config);
        agent.run();
        agent
    }

    /// Like [`start`](Self::start), with further keys for `[xdp]`, of which `mode` may be
    /// one.
    #[track_caller]
    pub fn start_with(lab: &Lab, xdp: &str, config: &str) -> Self {
        let mut agent = Self::prepare_with(&lab.balancer, lab.interfaces(), xdp, config);
        agent.run();
        agent
    }

    /// Everything but the start: for tests that want to look at the start itself.
    #[track_caller]
    pub fn prepare(ns: &Netns, interfaces: &[String], config: &str) -> Self {
        Self::prepare_with(ns, interfaces, "", config)
    }

    /// An agent without a kernel side, for the web tier.
    #[track_caller]
    pub fn prepare_plain(ns: &Netns, config: &str) -> Self {
        Self::build(ns, &[], None, config)
    }

    /// Like [`prepare`](Self::prepare), with further keys for `[xdp]`.
    #[track_caller]
    pub fn prepare_with(ns: &Netns, interfaces: &[String], xdp: &str, config: &str) -> Self {
        Self::build(ns, interfaces, Some(xdp.to_owned()), config)
    }

    #[track_caller]
    fn build(ns: &Netns, interfaces: &[String], xdp: Option<String>, config: &str) -> Self {
        let binary =
            std::env::var_os("BALANCER_BIN").map_or_else(|| sibling("balancer"), PathBuf::from);
        let dir = scratch::dir("agent");
        let agent = Self {
            ns: ns.clone(),
            process: None,
            binary,
            dir,
            pins: PinDir::new(),
            interfaces: interfaces.to_vec(),
            xdp,
            private_mounts: false,
        };
        agent.write_config(config);
        agent
    }

    /// Starts the process (again) and waits until it is ready.
    #[track_caller]
    pub fn run(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts the process (again) without waiting.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(!self.running(), "the agent runs already");
        let mut command = if self.private_mounts {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", self.ns.name()]);
            command.arg(&self.binary);
            command
        } else {
            self.ns.command(&self.binary)
        };
        command.args(["run", "--config"]).arg(self.config_path());
        let log = self.dir.path().join("agent.log");
        self.process = Some(Process::spawn("the agent", command, &log));
    }

    /// Waits until the admin socket answers and says that everything is in place.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        wait_until("the agent to be ready", READY, || {
            assert!(self.running(), "the agent ended:\n{}", self.log());
            self.look()
                .is_some_and(|status| status["ready"] == Value::Bool(true))
        });
    }

    /// Has the next start use another build of the agent.
    pub fn upgrade(&mut self, binary: &Path) {
        self.binary = binary.to_owned();
    }

    /// The build that the next start uses.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Has the next start go by way of `ip netns exec`, which gives the process mounts
    /// of its own, with a fresh `/sys`.
    pub fn with_private_mounts(&mut self) {
        self.private_mounts = true;
    }

    /// Whether the process runs.
    pub fn running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::running)
    }

    /// Its process id; panics when it has not been started.
    #[track_caller]
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("a started agent").id()
    }

    /// `kill -9`; the kernel program goes on.
    pub fn kill9(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill9();
        }
    }

    /// SIGTERM, and waits until it has ended.
    #[track_caller]
    pub fn terminate(&mut self) -> Option<i32> {
        let process = self.process.as_mut().expect("a started agent");
        process.terminate().code()
    }

    /// Sends the process a signal.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        self.process
            .as_mut()
            .expect("a started agent")
            .signal(signal);
    }

    /// Writes a new configuration without telling the agent.
    #[track_caller]
    pub fn write_config(&self, config: &str) {
        let list: Vec<String> = self.interfaces.iter().map(|i| format!("{i:?}")).collect();
        let xdp = self.xdp.as_ref().map_or_else(String::new, |keys| {
            let mode = match keys.contains("mode = ") {
                true => String::new(),
                // Named here, the tests that leave it open can be run in the other mode.
                false => {
                    let mode = std::env::var("BALANCER_TEST_MODE");
                    format!("mode = {:?}\n", mode.as_deref().unwrap_or("native"))
                }
            };
            format!(
                "[xdp]\ninterfaces = [{}]\npin_dir = {:?}\n{mode}{keys}\n",
                list.join(", "),
                self.pin_dir(),
            )
        });
        let text = format!("{xdp}[admin]\nsocket = {:?}\n\n{config}", self.socket());
        // As an editor does: whoever reads sees the old or the new, whole.
        let aside = self.dir.path().join("config.new");
        fs::write(&aside, text).expect("write a configuration");
        fs::rename(aside, self.config_path()).expect("replace the configuration");
    }

    /// Writes a new configuration and has the agent apply it; panics when it refuses.
    #[track_caller]
    pub fn reconfigure(&self, config: &str) {
        self.write_config(config);
        self.order(&["reload"]);
    }

    /// Runs `balancer` with these arguments against this agent.
    #[track_caller]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Said {
        let output = self.output(arguments);
        Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs `balancer` with these arguments and returns what it printed; panics when
    /// it fails.
    #[track_caller]
    pub fn order(&self, arguments: &[&str]) -> String {
        let said = self.command(arguments);
        assert_eq!(
            said.code,
            Some(0),
            "balancer {}: {}{}",
            arguments.join(" "),
            said.out,
            said.err
        );
        said.out
    }

    /// `balancer status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.order(&["status", "--json"])).expect("JSON")
    }

    /// A backend's part of the status.
    #[track_caller]
    pub fn backend(&self, pool: &str, backend: &str) -> Value {
        let status = self.status();
        find_backend(&status, pool, backend)
            .unwrap_or_else(|| panic!("no backend {pool}/{backend} in {status:#}"))
            .clone()
    }

    /// Waits until a backend's health is as said (`up` or `down`).
    #[track_caller]
    pub fn wait_health(&self, pool: &str, backend: &str, health: &str) {
        wait_until(&format!("{pool}/{backend} to be {health}"), READY, || {
            let status = self.look().expect("the agent to answer");
            let found = find_backend(&status, pool, backend);
            let found =
                found.unwrap_or_else(|| panic!("no backend {pool}/{backend} in {status:#}"));
            found["health"] == health && is_followed(&status, pool, found)
        });
    }

    /// Waits until every backend of every pool is up, and the kernel's tables and the web
    /// tier say so too: whoever kills the agent next must find them whole, and a request
    /// that comes next must find a backend.
    #[track_caller]
    pub fn wait_all_up(&self) {
        wait_until("all backends to be up", READY, || {
            let status = self.look().expect("the agent to answer");
            let node = &status["node"];
            let pools = status["pools"].as_array().into_iter().flatten();
            let mut all = pools
                .flat_map(|pool| {
                    let name = pool["name"].as_str().unwrap_or_default();
                    let backends = pool["backends"].as_array().into_iter().flatten();
                    backends.map(move |backend| (name, backend))
                })
                .peekable();
            let applied = node["generation_applied"] == node["generation_desired"];
            applied
                && all.peek().is_some()
                && all.all(|(pool, backend)| {
                    backend["health"] == "up" && is_followed(&status, pool, backend)
                })
        });
    }

    /// What the process has printed, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("balancer.toml")
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// Where it pins program, links and maps.
    pub fn pin_dir(&self) -> &Path {
        &self.pins.0
    }

    /// The status, asked for without a process of its own: for those who ask again
    /// and again.
    pub fn look(&self) -> Option<Value> {
        let mut answer = self.ask(r#"{"version":1,"request":"status"}"#)?;
        Some(answer["ok"]["status"].take())
    }

    /// The answer to a request at the admin socket (`docs/admin.md`); nothing when there
    /// is none.
    pub fn ask(&self, request: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(READY)).ok()?;
        stream.write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    #[track_caller]
    fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        self.ns
            .command(&self.binary)
            .args(arguments)
            .env("BALANCER_SOCKET", self.socket())
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("run {}: {error}", self.binary.display()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Before the pins go: a living agent would write to tables without a program.
        self.process = None;
    }
}

/// Every backend of every pool in a status.
pub fn backends(status: &Value) -> impl Iterator<Item = &Value> {
    let pools = status["pools"].as_array().into_iter().flatten();
    pools.flat_map(|pool| pool["backends"].as_array().into_iter().flatten())
}

/// Whether the kernel's tables and the web tier follow the verdict that a status shows of a
/// backend: it is known a moment before they do.
fn is_followed(status: &Value, pool: &str, backend: &Value) -> bool {
    let up = backend["health"] == "up";
    let frontends = status["frontends"].as_array();
    let steered = !status["node"]["program_id"].is_null()
        && frontends.is_some_and(|all| all.iter().any(|frontend| frontend["pool"] == pool));
    // One that drains takes no new flows, healthy or not.
    let wanted = up && backend["activation"] == "active";
    let name = backend["name"].as_str().unwrap_or_default();
    let web = find_backend(&status["http"], pool, name);
    (!steered || backend["usable"] == wanted)
        && web.is_none_or(|seen| seen["health"] == backend["health"])
}

fn find_backend<'a>(status: &'a Value, pool: &str, backend: &str) -> Option<&'a Value> {
    let named = |value: &&Value, name: &str| value["name"] == name;
    let pools = status["pools"].as_array()?;
    let pool = pools.iter().find(|value| named(value, pool))?;
    let mut all = pool["backends"].as_array()?.iter();
    all.find(|value| named(value, backend))
}

/// A directory under the bpf filesystem, removed with everything in it.
struct PinDir(PathBuf);

impl PinDir {
    #[track_caller]
    fn new() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            mount_bpffs();
            sweep();
            // Nothing is pinned yet: these are of an earlier process of this number.
            remove_own();
        });
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        Self(Path::new(BPFFS).join(name))
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn mount_bpffs() {
    let mounted = statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if !mounted {
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap_or_else(|error| panic!("mount the bpf filesystem at {BPFFS}: {error}"));
    }
}

/// Removes what killed test processes have left pinned.
fn sweep() {
    for entry in fs::read_dir(BPFFS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<i32>().ok());
        let gone = |pid| kill(Pid::from_raw(pid), None::<Signal>) == Err(Errno::ESRCH);
        if maker.is_some_and(gone) {
            remove(&entry.path());
        }
    }
}

/// The pin directories that agents of this process have made and that are not yet removed.
pub fn own() -> Vec<PathBuf> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let entries = fs::read_dir(BPFFS).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Removes every pin directory of this process: for a signal handler's thread, right
/// before the process exits.
pub fn remove_own() {
    own().iter().for_each(|dir| remove(dir));
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("could not remove {}: {error}", dir.display());
    }
}
