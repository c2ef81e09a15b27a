//! The mistakes of `[cluster]`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use balancer_agent::config;
use balancer_agent::model::cluster::Timing;

use super::Judged;
use super::http::marked;

/// `@` stands for a directory with the files that [`Folder::new`] makes.
const BASE: &str = r#"[admin]
socket = "/run/b.sock"

[cluster]
name = "node1"
listen = "10.0.0.1:7946"
seeds = ["10.0.0.1:7946", "10.0.0.2:7946"]
secret_file = "@/secret"
probe_interval = "500ms"
"#;

/// What is replaced in [`BASE`], by what, part of the message, part of the
/// expectation. In the replacement, `^` is where the problem has to be.
type Row = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const MISTAKES: &[Row] = &[
    ("[cluster]", "[^clustre]", "unknown key `clustre`", "`cluster`"),
    ("[cluster]", "^[[cluster]]", "`cluster` is an array", "`[cluster]`"),
    ("seeds", "^seed", "unknown key `seed`", "`seeds`"),
    ("socket = ", "^secret_file = \"/x\"\nsocket = ", "unknown key `secret_file`", "it in `[cluster]`"),
    ("\"node1\"", "^\"node 1\"", "`name` \"node 1\" has the character ` `", "1 to 64 characters"),
    ("\"node1\"", "^1", "`name` is the integer 1", "\"node1\""),
    ("listen = \"10.0.0.1:7946\"\n", "", "", ""),
    ("listen = \"10.0.0.1:7946\"", "listen = ^\"10.0.0.1\"", "`listen` \"10.0.0.1\" has no port", "the port as well"),
    ("listen = \"10.0.0.1:7946\"", "listen = ^\"224.0.0.1:7946\"", "`listen` \"224.0.0.1:7946\" is a multicast address", "of this host"),
    ("listen = \"10.0.0.1:7946\"", "listen = ^\"0.0.0.0:7946\"", "`listen` 0.0.0.0:7946 is every address", "`advertise = \"10.0.0.1:7946\"` as well"),
    ("listen = \"10.0.0.1:7946\"", "listen = \"0.0.0.0:7946\"\nadvertise = ^\"0.0.0.0:7946\"", "`advertise` \"0.0.0.0:7946\" is the unspecified address", "other nodes reach it at"),
    ("listen = \"10.0.0.1:7946\"", "listen = \"0.0.0.0:7946\"\nadvertise = ^\"[2001:db8::1]:7946\"", "`advertise` [2001:db8::1]:7946 is not of the family of `listen` 0.0.0.0:7946", "an IPv4 address"),
    ("\"10.0.0.2:7946\"", "^\"10.0.0.1:7946\"", "seed 10.0.0.1:7946 is listed twice", "each seed once"),
    ("\"10.0.0.2:7946\"", "^\"node2:7946\"", "`seeds` \"node2:7946\" is a name", "names are not resolved"),
    ("\"10.0.0.2:7946\"", "^\"[2001:db8::2]:7946\"", "seed [2001:db8::2]:7946 is not of the family of this node's address 10.0.0.1:7946", "one family"),
    ("[\"10.0.0.1:7946\", \"10.0.0.2:7946\"]", "^\"10.0.0.2:7946\"", "`seeds` is the string \"10.0.0.2:7946\"", "an array of addresses"),
    ("secret_file = \"@/secret\"", "secret_file = ^\"secret\"", "`secret_file` \"secret\" is a relative path", "/etc/balancer/cluster.secret"),
    ("secret_file = \"@/secret\"", "secret_file = ^\"@/none\"", "@/none\" can't be read: No such file", "a file that can be read"),
    ("secret_file = \"@/secret\"", "secret_file = ^\"@/open\"", "is a secret that others can get at: its mode is 0644", "0600 or 0640"),
    ("secret_file = \"@/secret\"", "secret_file = ^\"@/short\"", "has only 31 bytes, and 32 are needed", "base64"),
    ("secret_file = \"@/secret\"", "secret_file = ^\"@/dull\"", "has only 2 different bytes", "a random secret"),
    ("secret_file = \"@/secret\"", "secret_file = ^\"@/large\"", "is too large", "at most 4096 bytes"),
    ("secret_file = \"@/secret\"", "secret_file = ^\"@/empty\"", "has only 0 bytes", "a random secret"),
    ("seeds", "state_dir = ^\"lib\"\nseeds", "`state_dir` \"lib\" is a relative path", "\"/var/lib/balancer\""),
    ("seeds", "multicast = ^\"10.0.0.9:7947\"\ninterface = \"eth0\"\nseeds", "`multicast` \"10.0.0.9:7947\" is not a multicast address", "239.255.79.46"),
    ("seeds", "multicast = ^\"239.1.1.1\"\ninterface = \"eth0\"\nseeds", "`multicast` \"239.1.1.1\" is not an address and port", "239.255.79.46"),
    ("seeds", "multicast = ^\"239.1.1.1:0\"\ninterface = \"eth0\"\nseeds", "has port 0", "from 1 to 65535"),
    ("seeds", "multicast = ^\"239.1.1.1:7946\"\ninterface = \"eth0\"\nseeds", "has the port 7946 of `listen`", "a port of its own"),
    ("seeds", "multicast = ^\"[ff12::1]:7947\"\ninterface = \"eth0\"\nseeds", "`multicast` [ff12::1]:7947 is not of the family", "an IPv4 group"),
    ("seeds", "multicast = ^\"239.1.1.1:7947\"\nseeds", "`multicast` has no `interface`", "`interface = \"eth0\"`"),
    ("seeds", "interface = ^\"eth0\"\nseeds", "`interface` is for `multicast`", "or no `interface`"),
    ("\"500ms\"", "^\"50ms\"", "`probe_interval` \"50ms\" is too short", "from 100ms to 1m"),
    ("\"500ms\"", "\"500ms\"\nprobe_timeout = ^\"500ms\"", "`probe_timeout` 500ms is not shorter than `probe_interval` 500ms", "answers of others"),
    ("\"500ms\"", "\"500ms\"\nsuspect_timeout = ^\"400ms\"", "`suspect_timeout` 400ms is shorter than `probe_interval` 500ms", "several intervals"),
    ("seeds", "queue_bytes = ^1000\nseeds", "`queue_bytes` 1000 is out of range", "from 4194304 to 1073741824"),
    ("seeds", "queue_messages = ^0\nseeds", "`queue_messages` 0 is out of range", "from 1000 to 10000000"),
];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8], mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let good = b"0123456789abcdefghijklmnopqrstuv";
        file("secret", good, 0o600);
        file("open", good, 0o644);
        // What ends the line does not count.
        file("short", b"0123456789abcdefghijklmnopqrstu\n", 0o600);
        file("newline", b"0123456789abcdefghijklmnopqrstuv\r\n", 0o640);
        file("dull", &b"ab".repeat(20), 0o600);
        file("large", &vec![b'x'; 4097], 0o600);
        file("empty", b"", 0o600);
        Self(folder)
    }

    fn fill(&self, text: &str) -> String {
        text.replace('@', self.0.path().to_str().unwrap())
    }
}

#[test]
fn every_mistake_is_said_at_its_place() {
    let folder = Folder::new();
    config::parse("base", &folder.fill(BASE)).unwrap();
    let mut judged = Judged::default();
    for (from, to, message, expected) in MISTAKES {
        assert!(BASE.contains(from), "{from}");
        let (to, message, expected) = match message.is_empty() {
            // What is missing is missed where the table begins.
            true => (
                *to,
                "the cluster has no `listen`",
                "`listen = \"10.0.0.1:7946\"`",
            ),
            false => (*to, *message, *expected),
        };
        let text = BASE.replacen(from, to, 1);
        let text = match text.contains('^') {
            true => text,
            false => text.replacen("[cluster]", "^[cluster]", 1),
        };
        let (line, column, text) = marked(&folder.fill(&text));
        let message = folder.fill(message);
        judged.row(to, (line, column, &text), &message, expected);
    }
    judged.assert_none_failed();
}

#[test]
fn what_is_left_out_has_a_meaning() {
    let folder = Folder::new();
    let config = |text: &str| {
        let config = config::parse("b.toml", &folder.fill(text));
        config.unwrap_or_else(|e| panic!("{e}")).cluster.unwrap()
    };
    let base = config(BASE);
    assert_eq!(base.advertise, base.listen);
    assert_eq!(base.timing, Timing::default());
    assert_eq!(base.state_dir.to_str(), Some("/var/lib/balancer"));
    assert_eq!(base.multicast, None);
    // The same secret with and without the end of its line.
    let newline = config(&BASE.replace("@/secret", "@/newline"));
    assert_eq!(newline.secret, base.secret);
    // A longer interval takes the other times along.
    let slow = config(&BASE.replace("\"500ms\"", "\"2s\"")).timing;
    assert_eq!(slow.suspect_timeout.as_millis(), 8_000);
    let fast = config(&BASE.replace("\"500ms\"", "\"100ms\"")).timing;
    assert_eq!(fast.probe_timeout.as_millis(), 40);
    // The host's name is a name, here and nearly everywhere.
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let unnamed = config::parse(
        "b.toml",
        &folder.fill(&BASE.replace("name = \"node1\"\n", "")),
    );
    match unnamed {
        Ok(config) => assert_eq!(&*config.cluster.unwrap().name, host.trim()),
        Err(error) => assert!(error.to_string().contains("the host's name"), "{error}"),
    }
    // Nothing of a secret is shown, wherever a configuration is.
    let shown = format!("{base:?}");
    assert!(
        shown.contains("Secret(..)") && !shown.contains("0123"),
        "{shown}"
    );
}

#[test]
fn a_node_that_only_waits_is_odd() {
    let folder = Folder::new();
    let alone = BASE.replace("seeds = [\"10.0.0.1:7946\", \"10.0.0.2:7946\"]\n", "");
    let (_, warnings) = config::parse_with_warnings("b.toml", &folder.fill(&alone)).unwrap();
    let warnings = warnings.to_string();
    assert!(
        warnings.contains("b.toml:6:10: the cluster has neither `seeds` nor"),
        "{warnings}"
    );
}

#[test]
fn the_example_of_the_guide_is_good() {
    let guide = include_str!("../../../docs/cluster.md");
    let example = guide.split("```toml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let folder = Folder::new();
    let secret = folder.fill("@/secret");
    let text = example.replace("/etc/balancer/cluster.secret", &secret);
    let (config, _) = config::parse_with_warnings("cluster.md", &text).unwrap();
    assert!(config.cluster.is_some());
}
