//! Sessions on disk: whatever dies, at once or again and again, what was acknowledged is
//! there afterwards, and what has ended stays ended.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use balancer_tests::agent::Agent;
use balancer_tests::http::raw::Raw;
use balancer_tests::process::{BOUND, wait_until};
use balancer_tests::sessions::{Site, frontend};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tempfile::TempDir;

/// A response is held until the session is on every disk that it should be on; so long
/// that a slow machine never lets one go before.
const SYNC: &str = "replication = \"sync\"\nsync_timeout = \"60s\"\n";

fn disks() -> TempDir {
    let dir = tempfile::Builder::new().prefix("disks-").tempdir();
    dir.expect("a directory")
}

fn disk(agent: &Agent) -> Value {
    agent.status()["sessions"]["disk"].clone()
}

#[track_caller]
fn gone(agent: &Agent, session: &str) {
    let shown = agent.command(&["sessions", "show", session]);
    assert_eq!(shown.code, Some(1), "{shown:?}");
    assert!(shown.err.contains("no such session"), "{shown:?}");
}

#[test]
fn sessions_outlive_all_their_agents_at_once() {
    let dir = disks();
    let mut site = Site::on_disk(3, dir.path(), SYNC);
    let mut bound = site.bind_many(24);
    for agent in 1..3 {
        for i in 0..4 {
            let session = format!("secret-of-{agent}-{i}");
            bound.insert(session.clone(), site.bind(agent, &session));
        }
    }
    let copies: u64 = (0..3).map(|agent| site.held(agent)).sum();
    assert_eq!(copies, 2 * 32, "a primary and a copy of each");
    assert_eq!(site.group(0)["sync_timeouts"], 0);
    let ended = ["secret-session-3", "secret-session-17", "secret-of-1-2"];
    for session in ended {
        site.agents[2].order(&["sessions", "expire", session]);
        bound.remove(session);
    }

    site.agents.iter_mut().for_each(Agent::kill9);
    site.agents.iter_mut().for_each(Agent::launch);
    site.agents.iter_mut().for_each(Agent::wait_ready);
    site.agents.iter().for_each(Agent::wait_all_up);
    // Clients come before the agents have found each other, and are not sent elsewhere.
    for agent in 0..3 {
        site.all_at(agent, &bound);
    }
    site.wait_ready(&[0, 1, 2]);
    for agent in &site.agents {
        ended.iter().for_each(|session| gone(agent, session));
        assert!(disk(agent)["loaded"].as_u64() > Some(0));
        let log = agent.log();
        assert!(!log.contains("secret-session"), "an id in the log:\n{log}");
    }
    let copies: u64 = (0..3).map(|agent| site.held(agent)).sum();
    assert_eq!(copies, 2 * 29);
    // And once more, with one that stays away.
    site.agents.iter_mut().for_each(Agent::kill9);
    for agent in [0, 2] {
        site.agents[agent].launch();
    }
    for agent in [0, 2] {
        site.agents[agent].wait_ready();
        site.agents[agent].wait_all_up();
    }
    site.wait_ready(&[0, 2]);
    site.all_at(0, &bound);
    site.all_at(2, &bound);
    ended
        .iter()
        .for_each(|session| gone(&site.agents[2], session));
}

/// Makes sessions at an agent until it is told to stop; those that were acknowledged, with
/// their servers.
fn make(
    site: &Site,
    round: usize,
    made: &AtomicUsize,
    stop: &AtomicBool,
) -> BTreeMap<String, String> {
    let mut bound = BTreeMap::new();
    for n in 0.. {
        if stop.load(SeqCst) {
            break;
        }
        let from = "10.7.0.101".parse().expect("an address");
        let Ok(mut client) = Raw::connect_from(&site.clients, from, frontend(0)) else {
            break;
        };
        let session = format!("session-{round}-{n}");
        let path = format!("/cookie?SID={session}");
        let Ok(answer) = client.try_request("GET", &path, &[], b"") else {
            break;
        };
        if answer.status != 200 {
            break;
        }
        bound.insert(session, answer.server().to_owned());
        made.fetch_add(1, SeqCst);
    }
    bound
}

#[test]
fn nothing_acknowledged_is_lost_however_often_an_agent_dies() {
    let dir = disks();
    let mut site = Site::on_disk(1, dir.path(), SYNC);
    let mut bound = BTreeMap::new();
    for round in 0..8 {
        let (made, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut agent = site.agents.remove(0);
        let new = thread::scope(|scope| {
            let site = &site;
            let makers: Vec<_> = (0..3)
                .map(|k| {
                    let (made, stop) = (&made, &stop);
                    scope.spawn(move || make(site, 10 * round + k, made, stop))
                })
                .collect();
            // In the middle of whatever it is at then.
            wait_until("sessions to be made", BOUND, || {
                made.load(SeqCst) >= 30 + 17 * round
            });
            agent.kill9();
            stop.store(true, SeqCst);
            let made = makers
                .into_iter()
                .map(|maker| maker.join().expect("a maker"));
            made.flatten().collect::<BTreeMap<_, _>>()
        });
        assert!(new.len() >= 30);
        bound.extend(new);
        agent.run();
        agent.wait_all_up();
        site.agents.push(agent);
        site.all_at(0, &bound);
        assert!(site.held(0) >= bound.len() as u64);
        assert_eq!(disk(&site.agents[0])["set_aside"], Value::Array(vec![]));
    }
    println!("{} sessions", bound.len());
}

#[test]
fn a_node_of_its_own_has_its_sessions_again() {
    let dir = disks();
    let mut site = Site::on_disk(1, dir.path(), "");
    let mut bound = site.bind_many(12);
    site.agents[0].order(&["sessions", "expire", "secret-session-5"]);
    bound.remove("secret-session-5");
    // Nothing waits for the disk: it has them a moment later.
    wait_until("the disk to have them", BOUND, || {
        let disk = disk(&site.agents[0]);
        disk["rows"].as_u64() >= Some(12) && disk["backlog_bytes"] == 0
    });
    let list = |site: &Site| -> Value {
        let list = site.agents[0].order(&["sessions", "--json"]);
        serde_json::from_str(&list).expect("JSON")
    };
    assert_eq!(list(&site)["sessions"].as_array().map(Vec::len), Some(11));

    // In good order nothing is left to chance.
    site.bind(0, "secret-last");
    let last = site.ask(0, "secret-last");
    assert_eq!(site.agents[0].terminate(), Some(0));
    bound.insert("secret-last".into(), last);
    site.agents[0].run();
    site.agents[0].wait_all_up();
    site.all_at(0, &bound);
    gone(&site.agents[0], "secret-session-5");

    site.agents[0].kill9();
    site.agents[0].run();
    site.agents[0].wait_all_up();
    site.all_at(0, &bound);
    assert_eq!(list(&site)["sessions"].as_array().map(Vec::len), Some(12));
    let file = site.disk(0).join("sessions.redb");
    let mode = |path: &Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode(&site.disk(0)), mode(&file)), (0o700, 0o600));
    let shown = site.agents[0].order(&["status"]);
    assert!(shown.contains("on disk: "), "{shown}");
    assert!(shown.contains("sessions.redb"), "{shown}");
    assert!(shown.contains("read at the start in"), "{shown}");

    // Another agent keeps its hands off.
    let config = site.agents[0].config_path();
    let text = fs::read_to_string(&config).expect("a configuration");
    let socket = site.agents[0].socket();
    let other = dir.path().join("other.toml");
    let text = text.replace(
        &format!("{socket:?}"),
        &format!("{:?}", dir.path().join("other.sock")),
    );
    fs::write(&other, text.replace(":8080", ":8081")).expect("a configuration");
    let said = site.agents[0].command(&["run", "--config", &other.display().to_string()]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("in use by another process"), "{said:?}");
    site.all_at(0, &bound);
}

#[test]
fn a_damaged_file_is_set_aside_and_said() {
    let dir = disks();
    let mut site = Site::on_disk(1, dir.path(), SYNC);
    site.bind_many(10);
    site.agents[0].kill9();
    let path = site.disk(0).join("sessions.redb");
    let file = File::options().write(true).open(&path).expect("the file");
    let length = file.metadata().expect("its length").len();
    for at in (0..length).step_by(512) {
        file.write_all_at(&[0xa5; 100], at).expect("damage");
    }
    let damaged = fs::read(&path).expect("the file");

    let config = site.agents[0].config_path().display().to_string();
    let checked = site.agents[0].command(&["check", &config]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.err.contains("damaged file"), "{checked:?}");
    site.agents[0].run();
    site.agents[0].wait_all_up();
    let aside = site.disk(0).join("sessions.redb.damaged");
    assert_eq!(fs::read(&aside).expect("it is kept"), damaged);
    let log = site.agents[0].log();
    assert!(log.contains("is damaged and was set aside"), "{log}");
    assert!(log.contains(&aside.display().to_string()), "{log}");
    let shown = site.agents[0].order(&["status"]);
    let said = format!("a damaged file was set aside: {}", aside.display());
    assert!(shown.contains(&said), "{shown}");
    gone(&site.agents[0], "secret-session-3");
    // It goes on with a new one.
    let bound = site.bind_many(10);
    site.agents[0].kill9();
    site.agents[0].run();
    site.agents[0].wait_all_up();
    site.all_at(0, &bound);
    assert_eq!(disk(&site.agents[0])["set_aside"], Value::Array(vec![]));
}

#[test]
fn what_does_not_fit_is_refused_by_check_and_by_run() {
    let dir = disks();
    let mut site = Site::on_disk(1, dir.path(), SYNC);
    site.bind_many(3);
    site.agents[0].kill9();
    let directory = site.disk(0);
    let config = site.agents[0].config_path();
    let refused = |site: &Site, what: &str, expected: &str| {
        let config = config.display().to_string();
        let line = fs::read_to_string(&config).expect("a configuration");
        let line = line.lines().position(|line| line.starts_with("directory"));
        let place = format!("balancer.toml:{}:", line.expect("the key") + 1);
        for command in [&["check", &config][..], &["run", "--config", &config][..]] {
            let said = site.agents[0].command(command);
            assert_eq!(said.code, Some(1), "{command:?}: {said:?}");
            // As one line, however it was broken.
            let words = said.err.split_whitespace().filter(|word| *word != "|");
            let text = words.collect::<Vec<_>>().join(" ");
            for part in [what, expected, &place] {
                assert!(text.contains(part), "{command:?}: {part}: {said:?}");
            }
        }
    };
    let aside = dir.path().join("aside");
    fs::rename(&directory, &aside).expect("out of the way");
    fs::write(&directory, "").expect("a file");
    refused(&site, "not a directory", "a directory that the agent may");
    fs::remove_file(&directory).expect("the file goes");
    let file = directory.join("sessions.redb");
    fs::create_dir_all(&file).expect("a directory");
    refused(&site, "is not a regular file", "another `directory`");
    fs::remove_dir(&file).expect("the directory goes");
    fs::remove_dir(&directory).expect("the directory goes");
    fs::rename(&aside, &directory).expect("back again");
    site.agents[0].run();
    site.wait_held(&[0], 3);
}

/// A file system of this thread's own, and of what it starts.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: usize) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        let none = None::<&str>;
        mount(none, "/", none, private, none).expect("private mounts");
        let size = format!("size={bytes}");
        let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(kind, at, kind, flags, Some(&*size)).expect("a tmpfs");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It goes with the thread in any case; the directory under it should go too.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_holds_up_nobody_and_gets_everything_later() {
    let dir = disks();
    let _small = SmallDisk::mount(dir.path(), 1 << 20);
    let mut site = Site::on_disk(
        1,
        dir.path(),
        "replication = \"sync\"\nsync_timeout = \"200ms\"\n",
    );
    let mut bound = site.bind_many(5);
    let filler = dir.path().join("filler");
    let mut file = File::create(&filler).expect("a file");
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);

    // What the file has free takes a while to fill.
    let mut n = 0;
    wait_until("the disk to be full", 3 * BOUND, || {
        let session = format!("in-need-{n}");
        n += 1;
        bound.insert(session.clone(), site.bind(0, &session));
        disk(&site.agents[0])["error"].is_string()
    });
    println!("full after {n} sessions");
    for n in 0..10 {
        let session = format!("in-memory-{n}");
        bound.insert(session.clone(), site.bind(0, &session));
    }
    site.all_at(0, &bound);
    let status = disk(&site.agents[0]);
    let error = status["error"].as_str().expect("it lasts");
    assert!(error.contains("No space left"), "{status}");
    assert!(status["failing_for_ms"].is_u64(), "{status}");
    assert!(site.group(0)["sync_timeouts"].as_u64() >= Some(10));
    for command in [&["status"][..], &["sessions"]] {
        let shown = site.agents[0].order(command);
        assert!(shown.contains("NOT ON DISK"), "{shown}");
        assert!(shown.contains("No space left"), "{shown}");
    }
    let log = site.agents[0].log();
    assert!(log.contains("can't be written to disk"), "{log}");

    fs::remove_file(&filler).expect("room");
    wait_until("the disk to have all", 3 * BOUND, || {
        let disk = disk(&site.agents[0]);
        disk["error"].is_null() && disk["backlog_bytes"] == 0 && disk["behind"] == 0
    });
    let log = site.agents[0].log();
    assert!(log.contains("written to disk again"), "{log}");
    // Acknowledged again, and with it all that came before.
    bound.insert("afterwards".into(), site.bind(0, "afterwards"));
    site.agents[0].kill9();
    site.agents[0].run();
    site.agents[0].wait_all_up();
    site.all_at(0, &bound);
    assert_eq!(site.held(0), bound.len() as u64);
}
