//! Every mistake in a configuration file has its own message, at its own place,
//! with what would be right.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use balancer_agent::config;

#[path = "config_mistakes/cluster.rs"]
mod cluster;
#[path = "config_mistakes/http.rs"]
mod http;
#[path = "config_mistakes/named.rs"]
mod named;
#[path = "config_mistakes/session.rs"]
mod session;

/// What came of a table of mistakes.
#[derive(Default)]
struct Judged {
    /// Each is said once.
    messages: HashSet<String>,
    failures: String,
}

impl Judged {
    /// A file with one mistake, at `line` and `column`; `to` names the row. Gives the
    /// error, where that is of one problem.
    fn row(
        &mut self,
        to: &str,
        (line, column, text): (usize, usize, &str),
        message: &str,
        expected: &str,
    ) -> Option<config::ConfigError> {
        let failures = &mut self.failures;
        let error = match config::parse("b.toml", text) {
            Err(error) => error,
            Ok(_) => {
                writeln!(failures, "{to}: accepted").unwrap();
                return None;
            }
        };
        let [problem] = error.problems() else {
            writeln!(failures, "{to}: not one problem:\n{error}").unwrap();
            return None;
        };
        let right = (problem.line, problem.column) == (line, column)
            && problem.message.contains(message)
            && problem.expected.contains(expected)
            && !problem.expected.is_empty();
        if !right {
            let wanted = format!("{line}:{column} {message}; {expected}");
            writeln!(failures, "{to}: wanted {wanted}\n  {error}").unwrap();
        }
        if !self.messages.insert(problem.message.clone()) {
            writeln!(failures, "{to}: said before: {}", problem.message).unwrap();
        }
        Some(error)
    }

    #[track_caller]
    fn assert_none_failed(&self) {
        assert!(self.failures.is_empty(), "\n{}", self.failures);
    }
}

const BASE: &str = r#"[xdp]
interfaces = ["eth0", "eth1"]

[admin]
socket = "/run/b.sock"

[timeouts]
tcp_idle = "1h"

[[frontend]]
name = "web"
address = "192.0.2.10:80"
pool = "web"

[[pool]]
name = "web"
snat = ["10.0.0.1"]
snat_ports = "10000-20000"

[pool.check]
type = "http"
interval = "1s"
path = "/health"
expect = 200

[pool.passive]
unanswered = "1s"

[[pool.backend]]
name = "s1"
address = "10.0.0.2:8080"
weight = 2

[[pool.backend]]
name = "s2"
address = "10.0.0.3:8080"
"#;
/// The check of [`BASE`].
const CHECK: &str = "type = \"http\"\ninterval = \"1s\"\npath = \"/health\"\nexpect = 200";

/// What is replaced in [`BASE`], by what, line, column, part of the message,
/// part of the expectation.
type Mistake = (
    &'static str,
    &'static str,
    usize,
    usize,
    &'static str,
    &'static str,
);

#[rustfmt::skip]
const SYNTAX: &[Mistake] = &[
    ("[xdp]", "[xdp", 1, 5, "unclosed table", "`]`"),
    ("weight = 2", "weight = ", 32, 10, "a key without a value", "a value after `=`"),
    ("weight = 2", "weight = two", 32, 10, "two is not quoted", "as in \"two\""),
    ("\"10.0.0.2:8080\"", "10.0.0.2:8080", 31, 11, "10.0.0.2:8080 is not quoted", "as in \"10.0.0.2:8080\""),
    ("[\"10.0.0.1\"]", "[10.0.0.1, 2]", 17, 9, "10.0.0.1 is not quoted", "as in \"10.0.0.1\""),
    ("\"1h\"", "1h # long", 8, 12, "1h is not quoted", "as in \"1h\""),
    ("weight = 2", "weight", 32, 7, "key with no value", "`=`"),
    ("weight = 2", "weight = 2\nweight = 3", 33, 1, "twice in one table", "each key once"),
    ("weight = 2", "weight = 02", 32, 10, "leading zero", ""),
    ("name = \"s1\"", "name = \"s1", 30, 11, "basic string", "`\"`"),
];

#[rustfmt::skip]
const STRUCTURE: &[Mistake] = &[
    ("weight = 2", "wieght = 2", 32, 1, "unknown key `wieght`", "`weight`"),
    ("weight = 2", "colour = 2", 32, 1, "unknown key `colour`", "one of `name`, `address`, `weight`, `activation`, `route`, `domain`, `redirect`, `priority`, `max_connections`, `http_port` or `secret`"),
    ("[admin]\nsocket", "[admin]\nsokcet", 5, 1, "unknown key `sokcet`", "`socket`"),
    ("[timeouts]", "[timeout]", 7, 2, "unknown key `timeout`", "`timeouts`"),
    ("tcp_idle", "tcp-idle", 8, 1, "unknown key `tcp-idle`", "`tcp_idle`"),
    ("interfaces", "interface", 2, 1, "unknown key `interface`", "`interfaces`"),
    ("[pool.passive]", "[pool.passiv]", 26, 7, "unknown key `passiv`", "`passive`"),
    ("[pool.check]", "[pool.chekc]", 20, 7, "unknown key `chekc`", "`check`"),
    ("snat_ports", "fall = 3\nsnat_ports", 18, 1, "unknown key `fall`", "it in `[pool.check]`"),
    ("weight = 2", "check = { type = \"tcp\" }", 32, 1, "unknown key `check`", "it in `[pool.check]`"),
    ("[xdp]", "verbose = true\n[xdp]", 1, 1, "unknown key `verbose`", "one of `xdp`, `admin`"),
    ("[xdp]", "\"a\\nb\" = true\n[xdp]", 1, 1, "unknown key `a\\nb`", "one of `xdp`, `admin`"),
    ("[[frontend]]", "[frontend]", 10, 1, "`frontend` is a single table", "`[[frontend]]`"),
    ("[admin]", "[[admin]]", 4, 1, "`admin` is an array", "`[admin]`"),
    ("[pool.check]", "[[pool.check]]", 20, 1, "`check` is an array", "`[pool.check]`"),
    ("[timeouts]\ntcp_idle = \"1h\"", "[[timeouts]]", 7, 1, "`timeouts` is an array", "`[timeouts]`"),
    ("[admin]\nsocket = \"/run/b.sock\"", "[pools]", 4, 2, "unknown key `pools`", "one of"),
    ("tcp_idle = \"1h\"", "tcp_idle = 99999999999999999999999999999999999999999", 8, 12, "too many digits", "18 digits"),
    ("[pool.passive]\nunanswered = \"1s\"", "[[pool.passive]]", 26, 1, "`passive` is an array", "`[pool.passive]`"),
];

#[rustfmt::skip]
const TYPES: &[Mistake] = &[
    ("\"1h\"", "5", 8, 12, "`tcp_idle` is the integer 5", "a string such as \"2h\""),
    ("\"1h\"", "1979-05-27", 8, 12, "`tcp_idle` is a date or time", "a string such as"),
    ("name = \"web\"\naddress", "name = true\naddress", 11, 8, "`name` is the boolean true", "a string such as \"web\""),
    ("weight = 2", "weight = \"2\"", 32, 10, "`weight` is the string \"2\"", "an integer from 0 to 256"),
    ("weight = 2", "weight = 2.5", 32, 10, "`weight` is the number 2.5", "an integer from 0 to 256"),
    ("weight = 2", "activation = 2", 32, 14, "`activation` is the integer 2", "\"active\" or \"drain\""),
    ("[\"eth0\", \"eth1\"]", "\"eth0\"", 2, 14, "`interfaces` is the string \"eth0\"", "an array of interface names"),
    ("\"eth1\"]", "1]", 2, 23, "`interfaces` is the integer 1", "a string such as \"eth0\""),
    ("[\"10.0.0.1\"]", "\"10.0.0.1\"", 17, 8, "`snat` is the string \"10.0.0.1\"", "an array of addresses"),
    ("\"/run/b.sock\"", "[]", 5, 10, "`socket` is an array", "a string such as \"/run/balancer.sock\""),
    ("expect = 200", "expect = { from = 200 }", 24, 10, "`expect` is a table", "a status such as 200"),
    ("unanswered = \"1s\"", "unanswered = true", 27, 14, "`unanswered` is the boolean true", "or false"),
    ("unanswered = \"1s\"", "refused = \"yes\"", 27, 11, "`refused` is the string \"yes\"", "true or false"),
    ("type = \"http\"\n", "type = \"http\"\nport = \"80\"\n", 22, 8, "`port` is the string \"80\"", "from 1 to 65535"),
];

#[rustfmt::skip]
const DURATIONS: &[Mistake] = &[
    ("\"1h\"", "\"90\"", 8, 12, "\"90\" has no unit", "such as \"90s\""),
    ("\"1h\"", "\"90min\"", 8, 12, "unknown unit \"min\"", "ms, s, m, h or d"),
    ("\"1h\"", "\"-5s\"", 8, 12, "\"-5s\" is negative", "from 1s to 30d"),
    ("\"1h\"", "\"0s\"", 8, 12, "\"0s\" is zero", "from 1s to 30d"),
    ("\"1h\"", "\"\"", 8, 12, "`tcp_idle` \"\" is empty", "from 1s to 30d"),
    ("\"1h\"", "\"1.5h\"", 8, 12, "not in whole numbers", "\"1500ms\""),
    ("\"1h\"", "\"30m1h\"", 8, 12, "units in the wrong order", "\"1h30m\""),
    ("\"1h\"", "\"soon\"", 8, 12, "\"soon\" is not a duration", "\"30s\""),
    ("\"1h\"", "\"31d\"", 8, 12, "\"31d\" is too long", "from 1s to 30d"),
    ("\"1h\"", "\"99999999999999999999d\"", 8, 12, "9d\" is too long", "from 1s to 30d"),
    ("\"1h\"", "\"10ms\"", 8, 12, "\"10ms\" is too short", "from 1s to 30d"),
    ("interval = \"1s\"", "interval = \"9ms\"", 22, 12, "`interval` \"9ms\" is too short", "from 10ms to 1h"),
    ("interval = \"1s\"", "interval = \"61m\"", 22, 12, "`interval` \"61m\" is too long", "from 10ms to 1h"),
    ("interval = \"1s\"", "interval = \"1s\"\nfast_interval = \"2s\"", 23, 17, "`fast_interval` 2s is longer than `interval` 1s", "at most \"1s\""),
    ("unanswered = \"1s\"", "unanswered = \"2m\"", 27, 14, "`unanswered` \"2m\" is too long", "from 10ms to 1m"),
];

#[rustfmt::skip]
const ADDRESSES: &[Mistake] = &[
    ("192.0.2.10:80", "", 12, 11, "`address` \"\" is empty", "an address and port"),
    ("192.0.2.10:80", "192.0.2.10", 12, 11, "\"192.0.2.10\" has no port", "\"192.0.2.10:80\""),
    ("192.0.2.10:80", "[2001:db8::1]", 12, 11, "has no port after the address", "\"[2001:db8::1]:80\""),
    ("192.0.2.10:80", "192.0.2.10:0", 12, 11, "has port 0", "from 1 to 65535"),
    ("192.0.2.10:80", "192.0.2.10:65536", 12, 11, "a port above 65535", "from 1 to 65535"),
    ("192.0.2.10:80", "192.0.2.10:http", 12, 11, "no number as its port", "from 1 to 65535"),
    ("192.0.2.10:80", "192.0.2.300:80", 12, 11, "not an IPv4 address", "from 0 to 255"),
    ("192.0.2.10:80", ":80", 12, 11, "no address before the port", "192.0.2.10:80"),
    ("192.0.2.10:80", "http://192.0.2.10", 12, 11, "a URL or a network", "an address and port"),
    ("192.0.2.10:80", "[fe80::1%eth0]:80", 12, 11, "has a zone", "without `%`"),
    ("192.0.2.10:80", "[192.0.2.10]:80", 12, 11, "no IPv6 address in its brackets", "between the brackets"),
    ("192.0.2.10:80", "2001:db8::zz:80", 12, 11, "is not an address and port", "in brackets"),
    ("192.0.2.10:80", "0.0.0.0:80", 12, 11, "the unspecified address", "clients connect to"),
    ("192.0.2.10:80", "127.0.0.1:80", 12, 11, "never comes in from the network", "clients connect to"),
    ("192.0.2.10:80", "224.0.0.1:80", 12, 11, "\"224.0.0.1:80\" is a multicast address", "clients connect to"),
    ("192.0.2.10:80", "255.255.255.255:80", 12, 11, "is the broadcast address", "clients connect to"),
    ("192.0.2.10:80", "[fe80::1]:80", 12, 11, "link-local IPv6 address", "clients connect to"),
    ("192.0.2.10:80", "[::ffff:192.0.2.10]:80", 12, 11, "IPv4-mapped", "the IPv4 address itself, 192.0.2.10"),
    ("10.0.0.2:8080", "s1.example.org:8080", 31, 11, "\"s1.example.org:8080\" is a name", "names are not resolved"),
    ("10.0.0.2:8080", "127.0.0.2:8080", 31, 11, "steered packets can't reach", "the server's own address"),
    ("10.0.0.2:8080", "[ff02::1]:8080", 31, 11, "\"[ff02::1]:8080\" is a multicast address", "the server's own address"),
    ("10.0.0.2:8080", "[::]:8080", 31, 11, "\"[::]:8080\" is the unspecified address", "the server's own address"),
    ("10.0.0.2:8080", "[2001:db8::2]:8080", 31, 11, "backend \"s1\" is IPv6 in a pool of IPv4", "an IPv4 address, as frontend \"web\" has"),
    ("10.0.0.2:8080", "192.0.2.10:80", 31, 11, "backend \"s1\" has the address of frontend \"web\"", "leads back here"),
    ("10.0.0.3:8080", "10.0.0.2:8080", 36, 11, "10.0.0.2:8080 is twice in pool \"web\"", "each server once"),
    ("[\"10.0.0.1\"]", "[\"10.0.0.1:80\"]", 17, 9, "\"10.0.0.1:80\" has a port", "the address alone"),
    ("[\"10.0.0.1\"]", "[\"gateway\"]", 17, 9, "\"gateway\" is not an address", "\"10.0.0.1\""),
    ("[\"10.0.0.1\"]", "[\"2001:db8::1\"]", 17, 9, "`snat` address 2001:db8::1 is IPv6 in a pool of IPv4", "an IPv4 address"),
    ("[\"10.0.0.1\"]", "[\"10.0.0.1\", \"10.0.0.1\"]", 17, 21, "`snat` address 10.0.0.1 is twice in pool \"web\"", "each address once"),
    ("10000-20000", "20000-10000", 18, 14, "\"20000-10000\" is reversed", "\"10000-20000\""),
    ("10000-20000", "0-20000", 18, 14, "begins at port 0", "from 1 to 65535"),
    ("10000-20000", "10000-70000", 18, 14, "goes beyond port 65535", "from 1 to 65535"),
    ("10000-20000", "10000", 18, 14, "\"10000\" is not a range", "a hyphen between"),
    ("snat = [\"10.0.0.1\"]\n", "", 17, 14, "`snat_ports` without addresses", "`snat` as well"),
];

#[rustfmt::skip]
const VALUES: &[Mistake] = &[
    ("name = \"web\"\naddress", "name = \"\"\naddress", 11, 8, "`name` \"\" is empty", "1 to 64 characters"),
    ("name = \"web\"\naddress", "name = \"my web\"\naddress", 11, 8, "has the character ` `", "1 to 64 characters"),
    ("name = \"s2\"", "name = \"sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss\"", 35, 8, "has 65 characters", "1 to 64"),
    ("name = \"web\"\naddress", "address", 10, 1, "a frontend has no `name`", "`name = \"web\"`"),
    ("address = \"192.0.2.10:80\"\n", "", 10, 1, "a frontend has no `address`", "`address = \"192.0.2.10:80\"`"),
    ("pool = \"web\"\n", "", 10, 1, "a frontend has no `pool`", "`pool = \"web\"`"),
    ("name = \"s1\"\n", "", 29, 1, "a backend has no `name`", "`name = \"s1\"`"),
    ("address = \"10.0.0.2:8080\"\n", "", 29, 1, "a backend has no `address`", "`address = \"10.0.0.2:8080\"`"),
    ("pool = \"web\"", "pool = \"wep\"", 13, 8, "there is no pool \"wep\"", "perhaps \"web\""),
    ("pool = \"web\"", "pool = \"static\"", 13, 8, "there is no pool \"static\"", "a `[[pool]]` in this file"),
    ("name = \"s2\"", "name = \"s1\"", 35, 8, "backend \"s1\" is twice in pool \"web\"", "a name of its own"),
    ("weight = 2", "weight = 257", 32, 10, "`weight` 257 is out of range", "from 0 to 256"),
    ("weight = 2", "weight = -1", 32, 10, "`weight` -1 is out of range", "from 0 to 256"),
    ("weight = 2", "activation = \"down\"", 32, 14, "`activation` \"down\" is not known", "\"active\" or \"drain\" or \"stopped\""),
    ("pool = \"web\"", "mode = \"tcp\"\npool = \"web\"", 13, 8, "`mode` \"tcp\" is not known", "\"xdp\" or \"http\""),
    ("pool = \"web\"", "protocol = \"sctp\"\npool = \"web\"", 13, 12, "`protocol` \"sctp\" is not known", "\"tcp\" or \"udp\""),
    ("[[pool]]", "[[pool]]\nbalance = \"maglev\"", 16, 11, "`balance` \"maglev\" is not available", "\"source\", which this version has"),
    ("[[pool]]", "[[pool]]\nbalance = \"source\"", 16, 11, "pool \"web\" is steered in the kernel, which can't balance so", "\"round-robin\", or a pool of its own"),
    ("[[pool]]", "[[pool]]\nbalance = \"roundrobin\"", 16, 11, "`balance` \"roundrobin\" is not known", "\"round-robin\""),
    ("[[pool]]", "[[pool]]\nforward = \"dsr\"", 16, 11, "`forward` \"dsr\" is not available", "\"nat\", which this version has"),
    ("[[pool]]", "[[pool]]\nforward = \"ipip\"", 16, 11, "`forward` \"ipip\" is not available", "\"nat\""),
    ("[[pool]]", "[[pool]]\nforward = \"gue\"", 16, 11, "`forward` \"gue\" is not available", "\"nat\""),
    ("[[pool]]", "[[pool]]\nforward = \"masq\"", 16, 11, "`forward` \"masq\" is not known", "\"nat\""),
    ("[[pool]]", "[[pool]]\nunavailable = \"close\"", 16, 15, "`unavailable` \"close\" is not known", "\"reset\" or \"drop\" or \"pass\""),
    ("[xdp]", "[xdp]\nmode = \"skb\"", 2, 8, "`mode` \"skb\" is not known", "\"auto\" or \"native\" or \"generic\""),
    ("[xdp]", "[xdp]\nflows_ipv4 = 999", 2, 14, "`flows_ipv4` 999 is out of range", "from 1000 to 100000000"),
    ("[xdp]", "[xdp]\nhalf_open = 16000001", 2, 13, "`half_open` 16000001 is out of range", "from 1000 to 16000000"),
    ("[xdp]", "[xdp]\nflows_ipv6 = 18446744073709551616", 2, 14, "`flows_ipv6` 18446744073709551616 is out of range", "from 1000 to"),
    ("[xdp]", "[xdp]\npin_dir = \"bpf\"", 2, 11, "`pin_dir` \"bpf\" is a relative path", "\"/sys/fs/bpf/balancer\""),
    ("[xdp]", "[xdp]\npin_dir = \"/a\\u0000b\"", 2, 11, "zero byte", "an absolute path"),
    ("\"/run/b.sock\"", "\"b.sock\"", 5, 10, "`socket` \"b.sock\" is a relative path", "\"/run/balancer.sock\""),
    ("\"/run/b.sock\"", "\"\"", 5, 10, "`socket` \"\" is empty", "an absolute path"),
    ("\"/run/b.sock\"", "\"/run/\"", 5, 10, "`socket` \"/run/\" is a directory", "the socket itself"),
    ("interfaces = [\"eth0\", \"eth1\"]\n", "", 1, 1, "no `interfaces`", "`interfaces = [\"eth0\"]`"),
    ("[\"eth0\", \"eth1\"]", "[]", 2, 14, "`interfaces` is empty", "`interfaces = [\"eth0\"]`"),
    ("\"eth1\"", "\"eth0\"", 2, 23, "interface eth0 is listed twice", "each interface once"),
    ("\"eth1\"", "\"\"", 2, 23, "`interfaces` \"\" is empty", "1 to 15 characters"),
    ("\"eth1\"", "\"internal-uplink0\"", 2, 23, "too long for an interface", "1 to 15 characters"),
    ("\"eth1\"", "\"eth 1\"", 2, 23, "can't be the name of an interface", "1 to 15 characters"),
];

#[rustfmt::skip]
const CHECKS: &[Mistake] = &[
    ("type = \"http\"", "type = \"https\"", 21, 8, "`type` \"https\" is not known", "\"tcp\" or \"http\" or \"ajp\" or \"none\""),
    ("path = \"/health\"", "path = \"health\"", 23, 8, "\"health\" does not begin with `/`", "\"/health\""),
    ("path = \"/health\"", "path = \"/a b\"", 23, 8, "\"/a b\" has the character ` `", "percent-encoded"),
    ("path = \"/health\"", "path = \"/a\\rb\"", 23, 8, "has the character `\\r`", "percent-encoded"),
    ("path = \"/health\"", "path = \"/a#b\"", 23, 8, "\"/a#b\" has the character `#`", "no fragment"),
    ("path = \"/health\"", "path = \"/a%2\"", 23, 8, "a `%` that encodes nothing", "two hexadecimal digits"),
    ("path = \"/health\"", "host = \"a b\"", 23, 8, "the character ` `, which no host has", "a host name"),
    ("path = \"/health\"", "host = \"a\\nb\"", 23, 8, "the character `\\n`, which no host has", "a host name"),
    ("path = \"/health\"", "host = \"\"", 23, 8, "`host` \"\" is empty", "a host name"),
    ("expect = 200", "expect = 99", 24, 10, "`expect` 99 is out of range", "from 100 to 599"),
    ("expect = 200", "expect = \"200-600\"", 24, 10, "\"200-600\" is no HTTP status", "from 100 to 599"),
    ("expect = 200", "expect = \"399-200\"", 24, 10, "\"399-200\" is a reversed range", "\"200-399\""),
    ("expect = 200", "expect = \"2xx\"", 24, 10, "\"2xx\" is not a range of status codes", "\"200-399\""),
    ("expect = 200", "expect = []", 24, 10, "`expect` is an empty array", "a status such as 200"),
    ("expect = 200", "expect = [200, 600]", 24, 16, "`expect` 600 is out of range", "from 100 to 599"),
    ("expect = 200", "fall = 0", 24, 8, "`fall` 0 is out of range", "from 1 to 100"),
    ("expect = 200", "rise = 101", 24, 8, "`rise` 101 is out of range", "from 1 to 100"),
    ("expect = 200", "port = 0", 24, 8, "`port` 0 is out of range", "from 1 to 65535"),
    ("expect = 200", "port = 65536", 24, 8, "`port` 65536 is out of range", "from 1 to 65535"),
    ("expect = 200", "tls = true", 24, 7, "`tls` in a pool without `[pool.tls]`", "`verify = false` in it verifies nothing"),
    ("expect = 200", "tls = \"yes\"", 24, 7, "`tls` is the string \"yes\"", "true or false"),
    (CHECK, "type = \"tcp\"\npath = \"/\"", 22, 8, "`path` belongs to an http check, and this one's type is tcp", "`type = \"http\"`, or no `path`"),
    (CHECK, "host = \"x\"", 21, 8, "`host` belongs to an http check, and this one's type is tcp", "or no `host`"),
    (CHECK, "type = \"none\"\nexpect = 200", 22, 10, "`expect` belongs to an http check, and this one's type is none", "or no `expect`"),
    ("pool = \"web\"", "pool = \"web\"\nprotocol = \"udp\"", 22, 8, "no TCP ports", "`port` as well"),
];

/// Whole further tables, added to [`BASE`] (which has 36 lines).
#[rustfmt::skip]
const TABLES: &[Mistake] = &[
    (END, "[[frontend]]\nname = \"web\"\naddress = \"192.0.2.10:81\"\npool = \"web\"", 38, 8, "frontend \"web\" is there twice", "a name of its own"),
    (END, "[[frontend]]\nname = \"x\"\naddress = \"192.0.2.10:80\"\npool = \"web\"", 39, 11, "tcp 192.0.2.10:80 is already answered by frontend \"web\"", "that no other frontend has"),
    (END, "[[frontend]]\nname = \"x\"\naddress = \"[2001:db8::1]:80\"\npool = \"web\"", 40, 8, "frontend \"x\" is IPv6, but frontend \"web\" with the same pool is IPv4", "a pool for each address family"),
    (END, "[[pool]]\nname = \"empty\"", 37, 1, "pool \"empty\" has no backends", "`[[pool.backend]]`"),
    (END, "[[pool]]\nname = \"web\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.4:80\"", 38, 8, "pool \"web\" is there twice", "a name of its own for each pool"),
    (END, "[[pool]]\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.4:80\"", 37, 1, "a pool has no `name`", "`name = \"web\"`"),
    (END, "[[pool]]\nname = \"b\"\nsnat = [\"10.0.0.1\"]\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.4:80\"", 39, 8, "10.0.0.1 has the ports 10000-32767 here, but 10000-20000 in pool \"web\"", "one range of ports"),
    (END, "[[pool]]\nname = \"b\"\nsnat = [\"10.0.0.1\"]\nsnat_ports = \"1-2\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.4:80\"", 40, 14, "10.0.0.1 has the ports 1-2 here", "one range of ports"),
    (END, "[[pool]]\nname = \"b\"\nsnat = [\"10.1.0.1\", \"10.1.0.2\", \"10.1.0.3\", \"10.1.0.4\", \"10.1.0.5\", \"10.1.0.6\", \"10.1.0.7\", \"10.1.0.8\"]\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.4:80\"", 39, 93, "10.1.0.8 is one more `snat` address than there is room for", "at most 8"),
    (END, "[[pool]]\nname = \"b\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.4:80\"\n[[pool.backend]]\nname = \"t\"\naddress = \"[2001:db8::9]:80\"", 44, 11, "backend \"t\" is IPv6 in a pool of IPv4", "as backend \"s\" has"),
    (END, "[[backend]]\nname = \"s\"\naddress = \"10.0.0.4:80\"", 37, 3, "unknown key `backend`", "it in `[[pool.backend]]`"),
];
/// Stands for the end of [`BASE`].
const END: &str = "";

#[test]
fn every_mistake_is_said_at_its_place() {
    assert!(config::parse("base", BASE).is_ok());
    let groups = [
        SYNTAX, STRUCTURE, TYPES, DURATIONS, ADDRESSES, VALUES, CHECKS, TABLES,
    ];
    let mut judged = Judged::default();
    for (from, to, line, column, message, expected) in groups.concat() {
        assert!(BASE.contains(from), "{from}");
        let text = match from {
            END => format!("{BASE}{to}"),
            _ => BASE.replacen(from, to, 1),
        };
        let Some(error) = judged.row(to, (line, column, &text), message, expected) else {
            continue;
        };
        let report = error.report(false);
        if !report.contains(&format!("b.toml:{line}:{column}")) {
            writeln!(judged.failures, "{to}: the report has no place:\n{report}").unwrap();
        }
    }
    judged.assert_none_failed();
    assert!(judged.messages.len() >= 150, "{}", judged.messages.len());
}

#[test]
fn all_mistakes_of_a_file_come_together() {
    let text = BASE
        .replacen("tcp_idle", "tcp_idel", 1)
        .replacen("\"1h\"", "\"1x\"", 1)
        .replacen("192.0.2.10:80", "192.0.2.10:0", 1)
        .replacen("pool = \"web\"", "pool = \"wbe\"", 1)
        .replacen("weight = 2", "weight = 300\ncolour = 1", 1);
    let error = config::parse("b.toml", &text).unwrap_err();
    let places: Vec<(usize, usize)> = error
        .problems()
        .iter()
        .map(|p| (p.line, p.column))
        .collect();
    // In order, and the value of the key that was spelled wrong is checked too.
    assert_eq!(
        places,
        [(8, 1), (8, 12), (12, 11), (13, 8), (32, 10), (33, 1)],
        "{error}"
    );
    assert_eq!(error.to_string().lines().count(), 6);
    assert_eq!(
        error.to_string().lines().nth(4).unwrap(),
        "b.toml:32:10: `weight` 300 is out of range; expected an integer from 0 to 256"
    );
}

#[test]
fn several_structural_mistakes_come_together() {
    let text = "admin = 5\nxdp = [1]\ntimeouts = \"x\"\n[[pool]]\nname = \"a\"\nbackend = [1]\n";
    let error = config::parse("b.toml", text).unwrap_err();
    let said: Vec<&str> = error
        .problems()
        .iter()
        .map(|p| p.message.as_str())
        .collect();
    assert_eq!(
        said,
        [
            "`admin` is an integer",
            "`xdp` is an array",
            "`timeouts` is a string",
            "`backend` has something else than tables in its array",
        ]
    );
    // A table that only a longer header implies stands where its name does.
    let error = config::parse("b.toml", "[pool.check]\ntype = \"tcp\"\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "b.toml:1:2: `pool` is a single table; expected tables, each written as `[[pool]]`"
    );
}

#[test]
fn files_that_are_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("b.toml");
    let error = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        config::load(&file).unwrap_err().to_string()
    };
    let place = |rest: &str| format!("{}{rest}", file.display());
    assert_eq!(
        error(b"a = 1\nb = \"\xc3\xa4\xff\"\n"),
        place(":2:7: the byte 0xff is not UTF-8; expected text in UTF-8")
    );
    assert_eq!(
        error(b"\xff\xfea\0"),
        place(":1:1: the file is in UTF-16; expected UTF-8")
    );
    for empty in ["", "\n", "\u{feff}", " \n\t\n"] {
        let said = error(empty.as_bytes());
        assert!(said.contains(":1:1: the file is empty; expected"), "{said}");
    }
    let large = " ".repeat((16 << 20) + 1);
    assert!(error(large.as_bytes()).contains(": is larger than 16 MiB"));

    // A byte order mark is no mistake, and takes no column.
    std::fs::write(&file, format!("\u{feff}{BASE}")).unwrap();
    assert!(config::load(&file).is_ok());
    let said = error("\u{feff}bad = 1\n".as_bytes());
    assert!(said.contains(":1:1: unknown key `bad`"), "{said}");
}

#[test]
fn files_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("missing.toml"), folder.path().into()] {
        let error = config::load(&path).unwrap_err();
        let [problem] = error.problems() else {
            panic!("{error}");
        };
        assert_eq!((problem.line, problem.column), (0, 0));
        let start = format!("{}: can't be read: ", path.display());
        assert!(error.to_string().starts_with(&start), "{error}");
        // The picture has no excerpt to show, but names the file.
        assert!(error.report(false).contains("can't be read"));
    }
    assert!(config::load(Path::new("\0")).is_err());
}

#[test]
fn more_than_the_kernel_tables_hold() {
    const HEAD: &str = "[xdp]\ninterfaces = [\"eth0\"]\n";
    let frontend = |i: usize, pool: &str| {
        format!(
            "[[frontend]]\nname = \"f{i}\"\naddress = \"192.0.{}.{}:80\"\npool = \"{pool}\"\n",
            i >> 8,
            i & 255
        )
    };
    let backend = |i: usize, weight: usize| {
        format!(
            "[[pool.backend]]\nname = \"b{i}\"\naddress = \"10.{}.{}.{}:80\"\nweight = {weight}\n",
            i >> 16,
            i >> 8 & 255,
            i & 255
        )
    };
    let pool = |name: &str| format!("[[pool]]\nname = \"{name}\"\n");
    let only = |text: &str| {
        let error = config::parse("b.toml", text).unwrap_err();
        let [problem] = error.problems() else {
            panic!("{error}");
        };
        (
            problem.line,
            problem.message.clone(),
            problem.expected.clone(),
        )
    };

    let frontends = |n| (0..n).map(|i| frontend(i, "p")).collect::<String>();
    let rest = pool("p") + &backend(0, 1);
    let text = format!("{HEAD}{}{rest}", frontends(4_096));
    config::parse("b.toml", &text).unwrap();
    let (line, message, expected) = only(&format!("{HEAD}{}{rest}", frontends(4_097)));
    assert_eq!(line, 3 + 4 * 4_096);
    assert_eq!(message, "4097 frontends are more than there is room for");
    assert_eq!(expected, "at most 4096");

    let backends = |n| (0..n).map(|i| backend(i, 1)).collect::<String>();
    let start = format!("{HEAD}{}{}", frontend(0, "p"), pool("p"));
    config::parse("b.toml", &format!("{start}{}", backends(16_384))).unwrap();
    let (line, message, _) = only(&format!("{start}{}", backends(16_385)));
    assert_eq!(line, 7);
    assert_eq!(message, "16385 backends are more than there is room for");

    // 257 weights of 255 and one of 1 do not share a divisor; 256 of 256 do.
    let ring = |weight, last| {
        let list: String = (0..257).map(|i| backend(i, weight)).collect();
        format!("{start}{list}{}", backend(300, last))
    };
    config::parse("b.toml", &ring(256, 256)).unwrap();
    let (line, message, expected) = only(&ring(256, 1));
    assert_eq!(line, 7);
    assert_eq!(
        message,
        "the weights of pool \"p\" need a ring of 65793 slots"
    );
    assert!(expected.contains("at most 65536"), "{expected}");

    let many: String = (0..9)
        .map(|i| {
            let name = format!("p{i}");
            let list: String = (0..250).map(|b| backend(1_000 * i + b, 256)).collect();
            let last = backend(1_000 * i + 999, 1);
            frontend(i, &name) + &pool(&name) + &list + &last
        })
        .collect();
    let (_, message, expected) = only(&format!("{HEAD}{many}"));
    assert_eq!(
        message,
        "the rings of all pools take 36009 pieces of 16 slots"
    );
    assert!(expected.starts_with("at most 32768"), "{expected}");
}

#[test]
fn a_long_socket_path() {
    let path = |n: usize| BASE.replacen("/run/b.sock", &format!("/{}", "s".repeat(n - 1)), 1);
    config::parse("b.toml", &path(107)).unwrap();
    let error = config::parse("b.toml", &path(108)).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("is 108 bytes long; expected at most 107 bytes"),
        "{said}"
    );
}

#[test]
fn warnings_point_at_their_place() {
    let warnings = |text: &str| {
        let (_, warnings) = config::parse_with_warnings("b.toml", text).unwrap();
        assert_eq!(warnings.is_empty(), warnings.problems().is_empty());
        warnings.to_string()
    };
    assert_eq!(warnings(BASE), "");
    let slow = BASE.replacen("interval = \"1s\"", "timeout = \"2s\"", 1);
    let said = warnings(&slow);
    assert!(
        said.starts_with("b.toml:22:11: `timeout` 2s is longer than `interval` 1s"),
        "{said}"
    );
    let said = warnings("[admin]\n");
    assert!(
        said.starts_with("b.toml:1:1: there is no frontend"),
        "{said}"
    );
    let unused =
        "[[pool]]\nname = \"x\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.9:80\"\n";
    let said = warnings(&format!("{BASE}{unused}"));
    assert!(
        said.starts_with("b.toml:38:8: no frontend uses pool \"x\""),
        "{said}"
    );
    let idle = BASE.replacen("weight = 2", "weight = 0", 1).replacen(
        "name = \"s2\"",
        "name = \"s2\"\nactivation = \"drain\"",
        1,
    );
    let said = warnings(&idle);
    assert!(
        said.starts_with("b.toml:15:1: no backend of pool \"web\" takes new flows"),
        "{said}"
    );
    let none = BASE.replacen(CHECK, "type = \"none\"\nfall = 2", 1);
    let said = warnings(&none);
    assert!(
        said.starts_with("b.toml:22:8: `fall` has no effect without a check"),
        "{said}"
    );
    // A warning is no reason to refuse the file.
    assert!(config::parse("b.toml", &none).is_ok());
}

/// A node that steers to its own HTTP frontend, among others', listens on the steered
/// address too.
#[test]
fn a_steered_frontend_may_lead_to_the_same_node() {
    let text = r#"
        [xdp]
        interfaces = ["eth0"]
        [[frontend]]
        name = "edge"
        address = "192.0.2.10:80"
        pool = "nodes"
        [[frontend]]
        name = "web"
        mode = "http"
        address = "0.0.0.0:80"
        pool = "app"
        [[pool]]
        name = "nodes"
        [[pool.backend]]
        name = "n1"
        address = "10.0.0.1:80"
        [[pool.backend]]
        name = "n2"
        address = "10.0.0.2:80"
        [[pool]]
        name = "app"
        [[pool.backend]]
        name = "a1"
        address = "10.0.1.1:8080"
    "#;
    config::parse("nodes", text).unwrap();
    let elsewhere = text
        .replace(".1:80\"", ".1:81\"")
        .replace(".2:80\"", ".2:81\"");
    let error = config::parse("nodes", &elsewhere).unwrap_err();
    assert!(
        error.to_string().contains("overlaps 192.0.2.10:80"),
        "{error}"
    );
}
