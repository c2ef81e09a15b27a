//! The command line without an agent: what it prints, and its exit codes.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use tempfile::TempDir;

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn balancer(arguments: &[&str]) -> Said {
    let output = Command::cargo_bin("balancer")
        .unwrap()
        .env_remove("BALANCER_SOCKET")
        .args(arguments)
        .output()
        .unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("balancer.toml");
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const GOOD: &str = r#"
[xdp]
interfaces = ["eth0"]
[[frontend]]
name = "web"
address = "192.0.2.1:80"
pool = "web"
[[pool]]
name = "web"
[[pool.backend]]
name = "s1"
address = "198.51.100.1:80"
"#;

#[test]
fn the_examples_are_valid() {
    for example in ["example.toml", "example-http.toml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(example);
        let (dir, path) = file(&fs::read_to_string(path).unwrap());
        // Document roots have to be there.
        for site in ["mago3d-user", "mago3d-admin"] {
            fs::create_dir(dir.path().join(site)).unwrap();
        }
        let own = fs::read_to_string(&path).unwrap();
        fs::write(&path, own.replace("/var/www", text(dir.path()))).unwrap();
        let said = balancer(&["check", text(&path)]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert_eq!(said.out, "configuration is valid\n");
    }
}

#[test]
fn a_good_file_is_valid() {
    let (_dir, path) = file(GOOD);
    let said = balancer(&["check", text(&path)]);
    assert_eq!(said.code, Some(0));
    assert_eq!(said.out, "configuration is valid\n");
    assert_eq!(said.err, "");
}

#[test]
fn warnings_do_not_fail() {
    let (_dir, path) = file("[admin]\n");
    let said = balancer(&["check", text(&path)]);
    assert_eq!(said.code, Some(0));
    assert_eq!(said.out, "configuration is valid\n");
    assert!(said.err.contains("no frontend"), "{}", said.err);
}

#[test]
fn a_mistake_is_pointed_at() {
    let (_dir, path) = file(&GOOD.replace("pool = \"web\"", "pool = \"wob\""));
    let said = balancer(&["check", text(&path)]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""));
    let lines: Vec<&str> = said.err.lines().collect();
    let at = lines
        .iter()
        .position(|l| l.contains("pool = \"wob\""))
        .unwrap();
    assert_eq!(
        lines[at].find("\"wob\""),
        lines[at + 1].find('^'),
        "{}",
        said.err
    );
    assert!(said.err.contains("balancer.toml:7:8"), "{}", said.err);
    // The same for those who want to start with it.
    for arguments in [
        &["run", "--config", text(&path)][..],
        &["run", "--dry-run", "--config", text(&path)],
        &["unload", "--config", text(&path)],
    ] {
        let said = balancer(arguments);
        assert_eq!(said.code, Some(1));
        assert!(said.err.contains("balancer.toml:7:8"), "{}", said.err);
    }
}

#[test]
fn a_file_that_is_not_there_is_said() {
    let said = balancer(&["check", "/nonexistent/balancer.toml"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("/nonexistent/balancer.toml"),
        "{}",
        said.err
    );
}

#[test]
fn without_an_agent_the_socket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = dir.path().join("nobody.sock");
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    for socket in [&nobody, &dead] {
        for command in [
            &["status"][..],
            &["status", "--json"],
            &["drain", "web/s1"],
            &["drain", "web/s1", "--wait", "--timeout", "5s"],
            &["activate", "web/s1"],
            &["stop", "web/s1"],
            &["flows", "--count"],
            &["reload"],
        ] {
            let said = balancer(&[command, &["--socket", text(socket)]].concat());
            assert_eq!(said.code, Some(3), "{command:?}: {}", said.err);
            assert_eq!(said.out, "");
            assert!(said.err.contains(text(socket)), "{}", said.err);
            assert_eq!(said.err.lines().count(), 1, "{}", said.err);
        }
    }
}

#[test]
fn the_socket_comes_from_the_environment() {
    let output = Command::cargo_bin("balancer")
        .unwrap()
        .env("BALANCER_SOCKET", "/nonexistent/from-env.sock")
        .arg("status")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("/nonexistent/from-env.sock"), "{err}");
}

#[test]
fn a_wrong_command_line_is_told_apart() {
    for arguments in [
        &[][..],
        &["dance"],
        &["drain"],
        &["drain", "a", "--timeout", "1s"],
        &["drain", "a", "--wait", "--timeout", "1 fortnight"],
        &["flows", "--client", "somebody"],
        &["run"],
    ] {
        let said = balancer(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}");
        assert_eq!(said.out, "");
    }
}

#[test]
fn help_says_the_exit_codes() {
    for command in [
        "check", "run", "status", "drain", "activate", "stop", "flows", "reload", "unload",
    ] {
        let said = balancer(&[command, "--help"]);
        assert_eq!(said.code, Some(0));
        assert!(said.out.contains("Exit codes:"), "{}", said.out);
        assert!(balancer(&["--help"]).out.contains(command));
    }
}

#[test]
fn a_node_that_steers_nothing_needs_no_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let path = dir.path().join("balancer.toml");
    fs::write(&path, format!("[admin]\nsocket = {socket:?}\n")).unwrap();
    let binary = assert_cmd::cargo::cargo_bin("balancer");
    let mut agent = std::process::Command::new(binary)
        .args(["run", "--config", text(&path)])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ask = |arguments: &[&str]| balancer(&[arguments, &["--socket", text(&socket)]].concat());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let ready = loop {
        let said = ask(&["status", "--json"]);
        if said.code == Some(0) {
            break said.out;
        }
        if std::time::Instant::now() > deadline {
            let _ = agent.kill();
            panic!("not ready: {}", said.err);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    let status: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(status["node"]["program_id"], serde_json::Value::Null);

    // Steering can't begin later.
    let steering = format!("[admin]\nsocket = {socket:?}\n{GOOD}");
    fs::write(&path, steering).unwrap();
    let refused = ask(&["reload"]);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = agent.wait().unwrap();
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("restart the agent"), "{}", refused.err);
    assert_eq!(ended.code(), Some(0));
    assert!(!socket.exists());
}
