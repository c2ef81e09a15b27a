//! A running agent, its access logs and its status: real requests, real rotation, the
//! command line. Needs no privileges.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(30);

fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An agent with one frontend that answers by itself and sends `/app/*` to a server that
/// is not there.
struct Agent {
    dir: TempDir,
    process: Child,
    address: SocketAddr,
    _silence: TcpListener,
}

impl Agent {
    fn start(format: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Freed again at once; another process is not likely to take it in between, and the
        // agent would say so.
        let free = || {
            TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
        };
        let (address, nobody) = (free(), free());
        // Takes connections, and never says anything.
        let silence = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = silence.local_addr().unwrap();
        let here = dir.path().display();
        let text = format!(
            r#"
            [admin]
            socket = "{here}/socket"
            [http]
            threads = 2
            [[frontend]]
            name = "www"
            mode = "http"
            address = "{address}"
            [frontend.limits]
            body_bytes = 1000
            [frontend.timeouts]
            body_idle = "300ms"
            [frontend.log]
            file = "{here}/access.log"
            format = "{format}"
            [[frontend.site]]
            [[frontend.site.mount]]
            pattern = "/*"
            respond = {{ body = "hello" }}
            [[frontend.site.mount]]
            pattern = "/app/*"
            pool = "app"
            [[frontend.site.mount]]
            pattern = "/taken/*"
            pool = "taken"
            [[pool]]
            name = "app"
            [pool.check]
            type = "none"
            [pool.sticky]
            type = "route"
            [[pool.backend]]
            name = "s1"
            address = "{nobody}"
            [[pool]]
            name = "taken"
            [pool.check]
            type = "none"
            [[pool.backend]]
            name = "silent"
            address = "{silent}"
            "#
        );
        let config = dir.path().join("balancer.toml");
        fs::write(&config, text).unwrap();
        let process = balancer()
            .args(["run", "--config"])
            .arg(&config)
            .stderr(fs::File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut agent = Self {
            dir,
            process,
            address,
            _silence: silence,
        };
        wait("the agent to listen", || {
            if let Some(status) = agent.process.try_wait().unwrap() {
                panic!("the agent ended: {status}\n{}", agent.said());
            }
            TcpStream::connect(address).is_ok()
        });
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// Sends a request's head and reads until the connection is closed.
    fn ask(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A refused connection may be reset after its answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, target: &str) -> String {
        self.ask(&format!(
            "GET {target} HTTP/1.1\r\nHost: www.example.org\r\nConnection: close\r\n\r\n"
        ))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = balancer();
        command.args(arguments);
        command.arg("--socket").arg(self.path("socket"));
        command.output().unwrap()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn balancer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_balancer"));
    command.env_remove("BALANCER_SOCKET").stdin(Stdio::null());
    command
}

#[test]
fn requests_are_logged_without_their_session_ids() {
    let agent = Agent::start("combined");
    let hello = agent.ask(
        "GET /a;jsessionid=A1B2C3D4E5F60718.s1?x=1 HTTP/1.1\r\nHost: h\r\n\
         Referer: http://h/?jsessionid=A1B2C3D4E5F60718\r\nUser-Agent: a\"b\r\n\
         Connection: close\r\n\r\n",
    );
    assert!(hello.ends_with("hello"), "{hello}");
    let nobody = agent.get("/app/x;jsessionid=A1B2C3D4E5F60718.s1");
    assert!(nobody.starts_with("HTTP/1.1 50"), "{nobody}");
    let head = agent.ask("HEAD /head HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(head.contains("content-length: 5"), "{head}");
    let bad = agent.ask("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n");
    assert!(bad.starts_with("HTTP/1.1 400 "), "{bad}");
    wait("all lines", || agent.lines("access.log").len() >= 4);

    let lines = agent.lines("access.log");
    let line = |with: &str| {
        let found = lines.iter().find(|line| line.contains(with));
        found.unwrap_or_else(|| panic!("no {with} in {lines:#?}"))
    };
    let first = line("\"GET /a;");
    assert!(first.starts_with("127.0.0.1 - - ["), "{first}");
    assert!(
        first.contains(
            r#"] "GET /a;jsessionid=A1B2***.s1?x=1 HTTP/1.1" 200 5 "http://h/?jsessionid=A1B2***" "a\"b" backend=- route=- "#
        ),
        "{first}"
    );
    assert!(first.ends_with(" cause=done"), "{first}");
    let second = line("\"GET /app/x;");
    assert!(second.contains(" backend=app/s1 route=s1 "), "{second}");
    assert!(second.ends_with(" cause=connect-failed"), "{second}");
    let head = line("\"HEAD /head");
    assert!(
        head.contains("\" 200 - ") && head.ends_with(" cause=done"),
        "{head}"
    );
    assert!(line("\" 400 ").ends_with(" cause=refused"));
    assert!(!lines.concat().contains("C3D4E5"), "{lines:#?}");
}

#[test]
fn a_rotated_log_is_opened_again_by_command_and_by_signal() {
    let agent = Agent::start("json");
    agent.get("/1");
    wait("a line", || agent.lines("access.log").len() == 1);
    fs::rename(agent.path("access.log"), agent.path("access.log.1")).unwrap();
    let said = agent.run(&["reopen-logs"]);
    assert!(said.status.success(), "{said:?}");
    let path = agent.path("access.log").display().to_string();
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        format!("{path}: opened again\n")
    );
    agent.get("/2");
    wait("a line", || agent.lines("access.log").len() == 1);

    fs::rename(agent.path("access.log"), agent.path("access.log.2")).unwrap();
    agent.signal(Signal::SIGUSR1);
    wait("a new file", || agent.path("access.log").exists());
    agent.get("/3");
    wait("a line", || agent.lines("access.log").len() == 1);
    for (file, target) in [
        ("access.log.1", "/1"),
        ("access.log.2", "/2"),
        ("access.log", "/3"),
    ] {
        let lines = agent.lines(file);
        let [line] = &lines[..] else {
            panic!("{file}: {lines:#?}");
        };
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["target"], target);
        assert_eq!(line["cause"], "done");
    }

    // Where it can't be opened, the command fails and says why, and the old file goes on.
    fs::rename(agent.path("access.log"), agent.path("access.log.3")).unwrap();
    fs::create_dir(agent.path("access.log")).unwrap();
    let said = agent.run(&["reopen-logs"]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        error.contains(&path) && error.contains("directory"),
        "{error}"
    );
    agent.get("/4");
    wait("a line", || agent.lines("access.log.3").len() == 2);
}

/// What the framing guard refuses in the middle of a body is in the log as the client saw it.
#[test]
fn a_body_that_is_refused_half_way_is_logged_as_it_was_answered() {
    let agent = Agent::start("json");
    let post = |target: &str, body: &str| {
        agent.ask(&format!(
            "POST /taken/{target} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        ))
    };
    let large = format!("800\r\n{}\r\n", "x".repeat(0x800));
    for (target, body, status, cause) in [
        ("large", &*large, 413, "refused"),
        ("slow", "1\r\n", 408, "client-timeout"),
    ] {
        let answer = post(target, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{target}: {answer}"
        );
        let mut line = None;
        wait("the line", || {
            let lines = agent.lines("access.log");
            line = lines.into_iter().find(|line| line.contains(target));
            line.is_some()
        });
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(line["status"], status, "{line:#}");
        assert_eq!(line["cause"], cause, "{line:#}");
    }
}

#[test]
fn what_was_logged_is_there_after_the_end() {
    let mut agent = Agent::start("json");
    for n in 0..50 {
        agent.get(&format!("/{n}"));
    }
    agent.signal(Signal::SIGTERM);
    wait("the end", || agent.process.try_wait().unwrap().is_some());
    assert_eq!(agent.lines("access.log").len(), 50, "{}", agent.said());
}

#[test]
fn the_status_tells_of_requests_limits_and_logs() {
    let agent = Agent::start("json");
    for _ in 0..3 {
        agent.get("/");
    }
    agent.get("/app/");
    agent.ask("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n");
    wait("the log", || agent.lines("access.log").len() >= 5);
    let said = agent.run(&["status", "--json"]);
    assert!(said.status.success(), "{said:?}");
    let status: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let http = &status["http"];
    assert_eq!(http["threads"].as_array().unwrap().len(), 2, "{http:#}");
    let front = &http["frontends"][0];
    assert_eq!(front["name"], "www");
    assert_eq!(front["address"], agent.address.to_string());
    assert_eq!(front["statuses"]["2xx"], 3, "{front:#}");
    assert_eq!(front["statuses"]["4xx"], 1, "{front:#}");
    assert_eq!(front["statuses"]["5xx"], 1, "{front:#}");
    assert_eq!(front["refused"]["malformed"], 1, "{front:#}");
    assert_eq!(front["causes"]["refused"], 1, "{front:#}");
    assert!(front["bytes_out"].as_u64().unwrap() >= 15, "{front:#}");
    assert!(front["connections_limit"].as_u64().unwrap() > 0);
    let pool = &http["pools"][0];
    assert_eq!(pool["name"], "app");
    assert_eq!(pool["backends"][0]["route"], "s1");
    assert!(
        pool["backends"][0]["connect_failed"].as_u64().unwrap() >= 1,
        "{pool:#}"
    );
    let log = &http["logs"][0];
    assert_eq!(log["file"], agent.path("access.log").display().to_string());
    assert_eq!(log["dropped"], 0);

    let table = agent.run(&["status"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for expected in [
        "HTTP frontends",
        "www",
        "Pool app, for HTTP",
        "Access logs",
        "1 malformed",
    ] {
        assert!(table.contains(expected), "no {expected:?} in\n{table}");
    }
}
