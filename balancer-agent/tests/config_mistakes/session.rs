//! The mistakes of `[session]`, and of pools that name its groups.

use std::time::Duration;

use balancer_agent::config;
use balancer_agent::model::http::Sticky;
use balancer_agent::model::session::SessionManager;

use super::Judged;
use super::http::marked;

const BASE: &str = r#"[session]
sessions_max = 50000

[[session.group]]
name = "user"
ttl = "1h"

[[frontend]]
name = "web"
mode = "http"
address = "192.0.2.10:80"
pool = "web"

[[pool]]
name = "web"

[pool.sticky]
type = "learn"
cookie = "SID"
group = "user"

[[pool.backend]]
name = "s1"
address = "10.0.0.2:8080"
"#;

/// As for the cluster's: what is replaced in [`BASE`], by what, part of the message, part
/// of the expectation; `^` is where the problem has to be.
type Row = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const MISTAKES: &[Row] = &[
    ("[[session.group]]", "^[session.group]", "`group` is a single table", "`[[session.group]]`"),
    ("ttl", "^tll", "unknown key `tll`", "`ttl`"),
    ("sessions_max", "^manager", "unknown key `manager`", "it in `[[session.group]]`"),
    ("name = \"user\"\n", "^ttl_max = \"1h\"\nname = \"user\"\n", "unknown key `ttl_max`", "one of `name`"),
    ("\"user\"\nttl", "^\"us er\"\nttl", "`name` \"us er\" has the character ` `", "1 to 64 characters"),
    ("\"user\"\nttl", "\"user\"\nmanager = ^\"redis\"\nttl", "`manager` \"redis\" is not available in this version", "\"delta\" or \"backup\" or \"persistent\""),
    ("\"user\"\nttl", "\"user\"\nmanager = ^\"all\"\nttl", "`manager` \"all\" is not known", "\"delta\" or \"backup\" or \"persistent\""),
    ("\"user\"\nttl", "\"user\"\nmanager = \"backup\"\ncopies = ^0\nttl", "`copies` 0 is out of range", "from 1 to 7"),
    ("\"user\"\nttl", "\"user\"\nmanager = \"persistent\"\ncopies = ^8\nttl", "`copies` 8 is out of range", "from 1 to 7"),
    ("\"user\"\nttl", "\"user\"\ncopies = ^2\nttl", "`copies` does not belong to a group with the manager \"delta\"", "`manager = \"backup\"` or `\"persistent\"`"),
    ("50000", "50000\ndirectory = ^\"/var/lib/b\"", "`directory` does not belong to a `[session]` without a group with the manager \"persistent\"", "`manager = \"persistent\"` in a group"),
    ("50000\n\n[[session.group]]\nname = \"user\"", "50000\ndirectory = ^\"sessions\"\n\n[[session.group]]\nname = \"user\"\nmanager = \"persistent\"", "`directory` \"sessions\" is a relative path", "an absolute path such as \"/var/lib/balancer/sessions\""),
    ("50000\n\n[[session.group]]\nname = \"user\"", "50000\ndirectory = ^true\n\n[[session.group]]\nname = \"user\"\nmanager = \"persistent\"", "`directory` is the boolean true", "\"/var/lib/balancer/sessions\""),
    ("\"user\"\nttl", "\"user\"\n^directory = \"/var/lib/b\"\nttl", "unknown key `directory`", "it in `[session]`"),
    ("\"user\"\nttl", "\"user\"\nreplication = ^true\nttl", "`replication` is the boolean true", "\"async\" or \"sync\""),
    ("\"user\"\nttl", "\"user\"\nsync_timeout = ^\"1s\"\nttl", "`sync_timeout` does not belong to a group with the replication \"async\"", "`replication = \"sync\"`"),
    ("\"user\"\nttl", "\"user\"\nreplication = \"sync\"\nsync_timeout = ^\"2h\"\nttl", "`sync_timeout` \"2h\" is too long", "from 10ms to 1m"),
    ("\"user\"\nttl", "\"user\"\nsync_header = ^\"X-Kept\"\nttl", "`sync_header` does not belong to a group with the replication \"async\"", "`replication = \"sync\"`"),
    ("\"user\"\nttl", "\"user\"\nreplication = \"sync\"\nsync_header = ^\"X Kept\"\nttl", "`sync_header` \"X Kept\" is no name of a header", "such as"),
    ("\"1h\"", "^\"10ms\"", "`ttl` \"10ms\" is too short", "from 1s to 30d"),
    ("50000", "^10", "`sessions_max` 10 is out of range", "from 1000 to 100000000"),
    ("50000", "50000\nbytes_max = ^\"1G\"", "`bytes_max` is the string \"1G\"", "an integer from 1048576"),
    ("[[session.group]]", "[[session.group]]\nname = \"user\"\n[[session.group]]", "there are two groups \"user\"", "a name of its own"),
    ("group = \"user\"\n", "group = ^\"usr\"\n", "there is no group \"usr\" of sessions", "one of \"user\""),
    ("name = \"web\"\n\n[pool.sticky]", "name = \"web\"\n^sync_timeout = \"1s\"\n[pool.sticky]", "unknown key `sync_timeout`", "it in `[[session.group]]`"),
];

#[test]
fn every_mistake_is_said_at_its_place() {
    config::parse("base", BASE).unwrap();
    let mut judged = Judged::default();
    for (from, to, message, expected) in MISTAKES {
        assert!(BASE.contains(from), "{from}");
        let mut text = BASE.replacen(from, to, 1);
        if !text.contains('^') {
            // The second of two.
            text = text.replacen("name = \"user\"\nttl", "name = ^\"user\"\nttl", 1);
        }
        let (line, column, text) = marked(&text);
        judged.row(to, (line, column, &text), message, expected);
    }
    judged.assert_none_failed();
}

#[test]
fn a_group_without_anybody_is_missed() {
    let text = BASE.replacen("[[session.group]]\nname = \"user\"\nttl = \"1h\"\n", "", 1);
    let error = config::parse("b.toml", &text).unwrap_err();
    let [problem] = error.problems() else {
        panic!("{error}")
    };
    assert!(
        problem
            .expected
            .contains("`[[session.group]]` with `name = \"user\"`")
    );
}

#[test]
fn defaults_and_lives() {
    let of = |text: &str| config::parse("b.toml", text).unwrap();
    let config = of(BASE);
    let sessions = config.sessions.unwrap();
    assert_eq!(
        (sessions.sessions_max, sessions.bytes_max),
        (50_000, 2 << 30)
    );
    let group = &sessions.groups[0];
    assert_eq!(
        (group.manager, group.sync_timeout),
        (SessionManager::Delta, None)
    );
    let life = |text: &str| {
        let config = of(text);
        let http = &config.pools[0].http;
        let Some(Sticky::Learn(learn)) = &http.sticky else {
            panic!("{http:?}")
        };
        let sessions = http.sessions.as_ref().unwrap();
        assert_eq!(learn.idle, sessions.ttl);
        sessions.ttl
    };
    assert_eq!(life(BASE), Duration::from_secs(3_600), "the group's");
    let own = BASE.replacen("cookie = ", "idle = \"5m\"\ncookie = ", 1);
    assert_eq!(life(&own), Duration::from_secs(300), "the pool's own");
    let sync = BASE.replacen(
        "ttl = ",
        "manager = \"backup\"\nreplication = \"sync\"\nttl = ",
        1,
    );
    let group = of(&sync).sessions.unwrap().groups[0].clone();
    assert_eq!(group.manager, SessionManager::Backup(1));
    assert_eq!(group.sync_timeout, Some(Duration::from_secs(1)));
    assert!(!of(BASE).sessions.unwrap().persistent());
    let disk = BASE.replacen("ttl = ", "manager = \"persistent\"\nttl = ", 1);
    let sessions = of(&disk).sessions.unwrap();
    assert_eq!(sessions.groups[0].manager, SessionManager::Persistent(1));
    assert_eq!(
        sessions.directory.to_str(),
        Some("/var/lib/balancer/sessions")
    );
    assert!(sessions.persistent());
    let disk = disk.replacen("50000", "50000\ndirectory = \"/srv/sessions\"", 1);
    let disk = disk.replacen("ttl = ", "copies = 3\nttl = ", 1);
    let sessions = of(&disk).sessions.unwrap();
    assert_eq!(sessions.groups[0].manager, SessionManager::Persistent(3));
    assert_eq!(sessions.directory.to_str(), Some("/srv/sessions"));
}

#[test]
fn what_is_odd_is_said() {
    let odd = |text: &str| {
        let (_, warnings) = config::parse_with_warnings("b.toml", text).unwrap();
        warnings.report(false)
    };
    assert!(!odd(BASE).contains("session"), "{}", odd(BASE));
    let sync = BASE.replacen("ttl = ", "replication = \"sync\"\nttl = ", 1);
    assert!(
        odd(&sync).contains("there is no `[cluster]`"),
        "{}",
        odd(&sync)
    );
    // A disk is worth waiting for without other nodes.
    let disk = "manager = \"persistent\"\nreplication = \"sync\"\nttl = ";
    let disk = BASE.replacen("ttl = ", disk, 1);
    assert!(!odd(&disk).contains("cluster"), "{}", odd(&disk));
    let copies = disk.replacen("ttl = ", "copies = 2\nttl = ", 1);
    assert!(
        odd(&copies).contains("there is no `[cluster]`"),
        "{}",
        odd(&copies)
    );
    let unused = BASE.replacen("group = \"user\"\n", "", 1);
    assert!(odd(&unused).contains("no pool has its sessions in this group"));
    let empty = "[session]\n[admin]\nsocket = \"/run/b.sock\"\n";
    assert!(odd(empty).contains("`[session]` has no group"));
}
