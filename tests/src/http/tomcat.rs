//! A real Tomcat of a test: Debian's, with a directory and a small application of its own,
//! an AJP connector with a secret and an HTTP connector beside it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::raw;
use crate::netns::Netns;
use crate::process::{Process, wait_until};
use crate::scratch;

/// Debian's package `tomcat10-common`.
const HOME: &str = "/usr/share/tomcat10";
/// Tomcat itself depends on this compiler, for JSP.
const COMPILER: &str = "/usr/share/java/eclipse-jdt-core.jar";
/// Java begins slowly, and more slowly on a busy machine.
pub const START: Duration = Duration::from_secs(90);
/// Java's options for one that is quick to start, rather than quick in the long run.
pub const QUICK: [&str; 3] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"];
/// For one that is measured: its memory never grows, and is seldom collected.
const LONG_RUN: [&str; 4] = ["-XX:+UseSerialGC", "-Xms512m", "-Xmx512m", "-Xmn384m"];
/// What the AJP connector wants to see.
pub const SECRET: &str = "open sesame, <b>\"please\"</b> & thanks";

/// How one is started.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Suffix of its sessions' ids.
    pub route: &'static str,
    /// Port of its AJP connector, on 127.0.0.1.
    pub ajp: u16,
    /// Port of its HTTP connector, on 127.0.0.1.
    pub http: u16,
    /// Of the AJP connector.
    pub packet_size: usize,
    /// For measurements: compiled for the long run, with memory and threads to spare.
    /// Otherwise it is quick to start and small.
    pub long_run: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            route: "s0",
            ajp: 8009,
            http: 8081,
            packet_size: 8192,
            long_run: false,
        }
    }
}

/// A running one. Dropped, it is killed.
pub struct Tomcat {
    process: Process,
    _dir: TempDir,
}

impl Tomcat {
    /// Starts one, and waits until both of its connectors listen.
    #[track_caller]
    pub fn start(ns: &Netns, setup: Setup) -> Self {
        let dir = Self::base();
        let base = dir.path();
        let application = base.join("webapps/ROOT/WEB-INF");
        fs::create_dir_all(application.join("classes")).expect("a directory");
        let escaped = (SECRET.replace('&', "&amp;").replace('"', "&quot;")).replace('<', "&lt;");
        let server = include_str!("tomcat/server.xml")
            .replace("ADDRESS", "127.0.0.1")
            .replace("\"HTTP\"", &format!("\"{}\"", setup.http))
            .replace("\"AJP\"", &format!("\"{}\"", setup.ajp))
            .replace("\"SIZE\"", &format!("\"{}\"", setup.packet_size))
            .replace(
                "\"THREADS\"",
                if setup.long_run { "\"200\"" } else { "\"60\"" },
            )
            .replace("\"SECRET\"", &format!("\"{escaped}\""))
            .replace("\"ROUTE\"", &format!("\"{}\"", setup.route));
        let write = |name: &str, text: &str| {
            fs::write(base.join(name), text).expect("write a file");
        };
        write("conf/server.xml", &server);
        write(
            "webapps/ROOT/WEB-INF/web.xml",
            include_str!("tomcat/web.xml"),
        );
        for (name, class) in classes() {
            fs::write(application.join("classes").join(name), class).expect("write a class");
        }
        let ports = [setup.http, setup.ajp].map(|port| (Ipv4Addr::LOCALHOST, port).into());
        let options: &[&str] = match setup.long_run {
            true => &LONG_RUN,
            false => &QUICK,
        };
        Self::launch(ns, dir, options, &ports)
    }

    /// A `CATALINA_BASE` that has all but its server.xml and applications.
    #[track_caller]
    pub fn base() -> TempDir {
        assert!(
            Path::new(HOME).exists(),
            "there is no {HOME}: `cargo xtask setup` installs tomcat10-common"
        );
        let dir = scratch::dir("tomcat");
        for part in ["conf", "temp", "logs", "work", "lib"] {
            fs::create_dir_all(dir.path().join(part)).expect("a directory");
        }
        // Nothing that every application would have.
        fs::write(dir.path().join("conf/web.xml"), "<web-app/>").expect("write a file");
        // Debian's package does not have it where Tomcat looks.
        let compiler = dir.path().join("lib/compiler.jar");
        std::os::unix::fs::symlink(COMPILER, compiler).expect("a link");
        dir
    }

    /// Starts one with this base and these options of Java, and waits until it listens at all of these.
    #[track_caller]
    pub fn launch(ns: &Netns, dir: TempDir, options: &[&str], at: &[SocketAddr]) -> Self {
        let base = dir.path();
        let mut command = ns.command("java");
        command
            .args(options)
            .arg(format!("-Dcatalina.home={HOME}"))
            .arg(format!("-Dcatalina.base={}", base.display()))
            .arg(format!("-Djava.io.tmpdir={}", base.join("temp").display()))
            // Session ids need no entropy here.
            .arg("-Djava.security.egd=file:/dev/urandom")
            .arg("-cp")
            .arg(format!(
                "{HOME}/bin/bootstrap.jar:{HOME}/bin/tomcat-juli.jar"
            ))
            .args(["org.apache.catalina.startup.Bootstrap", "start"])
            .current_dir(base)
            .env_remove("JAVA_TOOL_OPTIONS")
            .process_group(0);
        let process = Process::spawn("Tomcat", command, &base.join("tomcat.log"));
        let mut tomcat = Self { process, _dir: dir };
        for &address in at {
            let process = &mut tomcat.process;
            wait_until("Tomcat to listen", START, || {
                assert!(process.running(), "it ended: {}", process.log());
                raw::tcp(ns, None, address).is_ok()
            });
        }
        tomcat
    }

    /// Waits until all of it has started: connectors listen before that.
    #[track_caller]
    pub fn wait_started(&mut self) {
        let process = &mut self.process;
        wait_until("Tomcat to have started", START, || {
            assert!(process.running(), "it ended: {}", process.log());
            process.log().contains("Server startup in")
        });
    }

    /// Everything that it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Stops the process without ending it.
    #[track_caller]
    pub fn pause(&mut self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    #[track_caller]
    pub fn resume(&mut self) {
        self.process.signal(Signal::SIGCONT);
    }
}

/// The application's classes, compiled once for all tests of a process: names and bytes.
fn classes() -> &'static [(String, Vec<u8>)] {
    static CLASSES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    CLASSES.get_or_init(|| {
        let dir = scratch::dir("classes");
        let sources = [
            ("Probe.java", include_str!("tomcat/Probe.java")),
            ("Mirror.java", include_str!("tomcat/Mirror.java")),
            ("Page.java", include_str!("tomcat/Page.java")),
        ];
        for (name, text) in sources {
            fs::write(dir.path().join(name), text).expect("write a source");
        }
        let out = dir.path().join("out");
        let apis = ["servlet-api", "websocket-api", "websocket-client-api"];
        let apis = apis.map(|api| format!("{HOME}/lib/{api}.jar"));
        let compiled = Command::new("java")
            .args(["-cp", COMPILER])
            .arg("org.eclipse.jdt.internal.compiler.batch.Main")
            .args(["-proc:none", "-nowarn", "-source", "11", "-target", "11"])
            .arg("-cp")
            .arg(apis.join(":"))
            .arg("-d")
            .arg(&out)
            .args(sources.map(|(name, _)| name))
            .current_dir(dir.path())
            .output()
            .expect("run java");
        assert!(
            compiled.status.success(),
            "{}{}",
            String::from_utf8_lossy(&compiled.stdout),
            String::from_utf8_lossy(&compiled.stderr)
        );
        fs::read_dir(&out)
            .expect("classes")
            .map(|entry| {
                let entry = entry.expect("an entry");
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, fs::read(entry.path()).expect("a class"))
            })
            .collect()
    })
}
