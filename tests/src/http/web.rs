//! Scenes for the web tier: one namespace, everything on its loopback device, ports
//! always the same. Nothing of one scene can meet another's, so they run side by side.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::apps::{App, Setup};
use super::raw::Raw;
use crate::agent::Agent;
use crate::netns::Netns;
use crate::process::{BOUND, wait_until};
use crate::scratch;

/// Where plain frontends listen.
pub const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Where frontends with TLS listen.
pub const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// Where the i-th application server listens.
pub fn app_address(i: usize) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9000 + i as u16)
}

/// Dropped in this order: the agent before what it balances.
pub struct Web {
    /// The agent.
    pub agent: Agent,
    /// The application servers `s0`, `s1` and so on.
    pub apps: Vec<App>,
    /// Where all of it is.
    pub ns: Netns,
    /// Files of the scene.
    pub dir: TempDir,
}

impl Web {
    /// Runs a client in the scene.
    #[track_caller]
    pub fn inside(&self, client: impl Future<Output = ()> + Send) {
        self.ns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let limited = runtime.block_on(async { tokio::time::timeout(2 * BOUND, client).await });
            limited.expect("the client is in time");
        });
    }

    /// As many application servers, and an agent with this configuration.
    #[track_caller]
    pub fn new(apps: usize, config: impl FnOnce(&Path) -> String) -> Self {
        Self::with(apps, &[], config)
    }

    /// The same, with further options for the servers; `DIR` in them is the scene's
    /// directory.
    #[track_caller]
    pub fn with(apps: usize, options: &[&str], config: impl FnOnce(&Path) -> String) -> Self {
        let (ns, dir) = (Netns::new(), scene_dir());
        let config = config(dir.path());
        let place = dir.path().display().to_string();
        let apps = (0..apps)
            .map(|i| {
                let setup = Setup {
                    name: format!("s{i}"),
                    listen: vec![app_address(i)],
                    options: options.iter().map(|o| o.replace("DIR", &place)).collect(),
                    ..Setup::default()
                };
                App::start(&ns, setup)
            })
            .collect();
        Self::around(ns, dir, apps, &config)
    }

    /// Servers that are there already.
    #[track_caller]
    pub fn around(ns: Netns, dir: TempDir, apps: Vec<App>, config: &str) -> Self {
        let mut agent = Agent::prepare_plain(&ns, config);
        agent.run();
        agent.wait_all_up();
        Self {
            agent,
            apps,
            ns,
            dir,
        }
    }

    /// A connection to the plain frontend.
    #[track_caller]
    pub fn client(&self) -> Raw {
        Raw::connect(&self.ns, HTTP)
    }

    /// Everything that all servers have seen.
    pub fn log(&self) -> Vec<super::app::Seen> {
        self.apps.iter().flat_map(App::log).collect()
    }

    /// Forgets what the servers have seen.
    pub fn clear(&self) {
        self.apps.iter().for_each(App::clear);
    }

    /// The server of a name.
    #[track_caller]
    pub fn app(&mut self, name: &str) -> &mut App {
        let app = self.apps.iter_mut().find(|app| app.name() == name);
        app.unwrap_or_else(|| panic!("no server {name}"))
    }

    /// Runs curl in the scene; what it printed.
    #[track_caller]
    pub fn curl(&self, arguments: &[&str]) -> Curl {
        let output = self
            .ns
            .command("curl")
            .args(["--silent", "--show-error", "--max-time", "20"])
            .args([
                "--write-out",
                "\n%{http_code} %{http_version} %{num_connects}",
            ])
            .args(arguments)
            .output()
            .expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, last) = text.rsplit_once('\n').unwrap_or(("", &text));
        let words: Vec<&str> = last.split(' ').collect();
        Curl {
            code: output.status.code().unwrap_or(-1),
            status: words.first().and_then(|s| s.parse().ok()).unwrap_or(0),
            version: words.get(1).unwrap_or(&"").to_string(),
            body: body.to_owned(),
            error: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Waits until a backend's health is as said.
    #[track_caller]
    pub fn wait_health(&self, backend: &str, health: &str) {
        self.agent.wait_health("app", backend, health);
    }

    /// Waits until nothing is in flight at any server.
    #[track_caller]
    pub fn wait_idle(&self) {
        wait_until("the servers to be idle", BOUND, || {
            self.apps.iter().all(|app| app.stats().running == 0)
        });
    }
}

/// What curl said.
#[derive(Clone, Debug)]
pub struct Curl {
    /// Exit code; 0 is good.
    pub code: i32,
    /// Of HTTP.
    pub status: u16,
    /// `1.1`, `2`.
    pub version: String,
    /// The body (with the head before it under `--include`).
    pub body: String,
    /// What it complained about.
    pub error: String,
}

impl Curl {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A directory for a scene, that daemons of other users could read.
pub fn scene_dir() -> TempDir {
    scratch::dir("web")
}

/// A plain frontend for the pool `app`, with further keys and tables.
pub fn frontend(keys: &str) -> String {
    format!(
        "[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"{HTTP}\"\npool = \"app\"\n{keys}\n"
    )
}

/// A plain frontend whose sites follow.
pub fn frontend_with_sites(sites: &str) -> String {
    format!("[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"{HTTP}\"\n{sites}\n")
}

/// Checks that are quick, and patient with a busy machine.
pub const CHECK: &str = "[pool.check]\ntype = \"http\"\npath = \"/health\"\ninterval = \"100ms\"\n\
     fast_interval = \"50ms\"\ntimeout = \"2s\"\nfall = 3\nrise = 2\n";

/// No checks: backends are up whatever becomes of them.
pub const NO_CHECK: &str = "[pool.check]\ntype = \"none\"\n";

/// The pool `app` of so many servers; further keys and tables go before the backends.
pub fn pool(apps: usize, keys: &str) -> String {
    pool_with(apps, keys, |_| String::new())
}

/// The same; further keys for each backend by its number.
pub fn pool_with(apps: usize, keys: &str, backend: impl Fn(usize) -> String) -> String {
    let mut text = format!("[[pool]]\nname = \"app\"\n{keys}");
    for i in 0..apps {
        let _ = write!(
            text,
            "[[pool.backend]]\nname = \"s{i}\"\naddress = \"{}\"\n{}",
            app_address(i),
            backend(i)
        );
    }
    text
}

/// Writes a file of the scene; its path.
pub fn write(dir: &Path, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).expect("a directory");
    }
    std::fs::write(&path, contents).expect("write a file");
    path
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output();
    found.is_ok_and(|output| output.status.success())
}
