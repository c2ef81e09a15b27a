//! Whatever the file holds, checking it ends with a configuration or with
//! problems that have a place in it; and what is written is what is read.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use balancer_agent::config::{self, ConfigError};
use balancer_agent::model::*;
use common::tables::Unavailable;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const GUIDE: &str = include_str!("../../docs/configuration.md");
const EXAMPLE: &str = include_str!("../../docs/example.toml");
const DAYS_30: u64 = 30 * 86_400;

/// The example of the documentation, with every key.
fn guide_example() -> &'static str {
    let start = GUIDE.find("```toml\n").unwrap() + "```toml\n".len();
    let length = GUIDE[start..].find("```").unwrap();
    &GUIDE[start..start + length]
}

#[test]
fn the_documented_examples_are_good() {
    for text in [guide_example(), EXAMPLE] {
        let (config, warnings) =
            config::parse_with_warnings("example.toml", text).unwrap_or_else(|e| panic!("{e}"));
        assert!(warnings.is_empty(), "{warnings}");
        assert!(!config.frontends.is_empty());
    }
}

#[test]
fn the_documented_defaults_hold() {
    let config = config::parse("example.toml", EXAMPLE).unwrap();
    let guide = config::parse("guide.toml", guide_example()).unwrap();
    // The guide's example writes the defaults of these tables out.
    let pin_dir = Some("/sys/fs/bpf/balancer".into());
    assert_eq!(
        guide.xdp,
        Xdp {
            interfaces: vec!["eth0".into(), "eth1".into()],
            pin_dir,
            ..config.xdp.clone()
        }
    );
    assert_eq!(guide.admin, config.admin);
    assert_eq!(guide.timeouts, config.timeouts);
    assert_eq!(config.timeouts.tcp_idle, Duration::from_secs(7_200));
    let pool = &config.pools[0];
    assert_eq!(pool.snat, [] as [IpAddr; 0]);
    assert_eq!(pool.snat_ports, (10_000, 32_767));
    assert_eq!(pool.unavailable, Unavailable::Reset);
    assert_eq!(pool.check.interval, Duration::from_secs(1));
    assert_eq!(pool.check.fast_interval, Duration::from_millis(200));
    assert_eq!(pool.check.timeout, Duration::from_millis(500));
    assert_eq!((pool.check.fall, pool.check.rise), (3, 2));
    assert_eq!(
        pool.check.kind,
        CheckKind::Http {
            path: "/health".into(),
            host: None,
            expect: vec![(200, 399)],
        }
    );
    assert!(pool.passive.refused);
    assert_eq!(pool.passive.unanswered, Some(Duration::from_secs(1)));
    assert_eq!(pool.backends[0].weight, 1);
    // A pool without a check is checked by TCP as soon as a TCP frontend uses it.
    assert_eq!(guide.pool("web6").unwrap().check.kind, CheckKind::Tcp);
    let udp = EXAMPLE
        .replace("pool = \"web\"", "pool = \"web\"\nprotocol = \"udp\"")
        .replace("[pool.check]\ntype = \"http\"\npath = \"/health\"\n", "");
    let udp = config::parse("udp.toml", &udp).unwrap();
    assert_eq!(udp.pools[0].check.kind, CheckKind::None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_end_well(bytes in vec(any::<u8>(), 0..300)) {
        if let Err(error) = config::parse_bytes("any", &bytes) {
            prop_assert!(!error.problems().is_empty());
            error.report(true);
        }
    }

    #[test]
    fn any_text_of_the_grammar_ends_well(parts in vec(select(PARTS), 0..40)) {
        let text = parts.concat();
        if let Err(error) = config::parse("parts", &text) {
            in_the_file(&error, &text)?;
        }
    }

    #[test]
    fn changed_examples_end_well(changes in vec(change(), 1..5)) {
        let mut text = guide_example().to_owned();
        for change in &changes {
            text = change.apply(&text);
        }
        if let Err(error) = config::parse("changed", &text) {
            in_the_file(&error, &text)?;
        }
    }

    #[test]
    fn what_is_written_is_read(config in config(), explicit: bool) {
        let text = print(&config, explicit);
        match config::parse("printed", &text) {
            Ok(read) => prop_assert_eq!(read, config, "{}", text),
            Err(error) => prop_assert!(false, "{}\n{}", error, text),
        }
    }
}

/// Every problem has a place in the text, and one line of its own.
fn in_the_file(error: &ConfigError, text: &str) -> Result<(), TestCaseError> {
    prop_assert!(!error.problems().is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    let mut last = 0;
    for p in error.problems() {
        prop_assert!((1..=lines.len()).contains(&p.line), "{p:?}\n{text}");
        let width = lines[p.line - 1].chars().count();
        prop_assert!((1..=width + 1).contains(&p.column), "{p:?}\n{text}");
        prop_assert!(p.span.end <= text.len(), "{p:?}");
        prop_assert!(last <= p.span.start, "not in order: {p:?}");
        prop_assert!(!p.message.is_empty() && !p.expected.is_empty(), "{p:?}");
        last = p.span.start;
    }
    let shown = error.to_string();
    prop_assert_eq!(shown.lines().count(), error.problems().len(), "{}", shown);
    for color in [false, true] {
        prop_assert!(!error.report(color).contains("Failed to read"), "{}", shown);
    }
    Ok(())
}

const PARTS: &[&str] = &[
    "[xdp]\n",
    "[pool]\n",
    "[[pool]]\n",
    "[[frontend]]\n",
    "[pool.check]\n",
    "[[pool.backend]]\n",
    "[[pool.check]]\n",
    "[admin]\n",
    "name",
    "address",
    "pool",
    "snat",
    "expect",
    "interfaces",
    "x",
    " = ",
    "=",
    ".",
    "\n",
    "[",
    "]",
    "{",
    "}",
    ",",
    "\"",
    "'",
    "\"a\"",
    "\"10.0.0.1:80\"",
    "5",
    "-1",
    "2.5",
    "true",
    "1979-05-27",
    "\"1s\"",
    "#",
    "\u{e4}",
    "\r\n",
    "\t",
    "\"\"\"",
];

/// A change that a slip of the hand could make.
#[derive(Clone, Debug)]
enum Change {
    Delete(usize),
    Insert(usize, char),
    Replace(usize, char),
    DeleteLine(usize),
    DoubleLine(usize),
    Cut(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>();
    let c = prop_oneof![
        select(
            &[
                '"', '[', ']', '{', '}', '=', '.', '\n', '0', '-', ':', 'a', '\u{e4}', '\0'
            ][..]
        ),
        any::<char>(),
    ];
    prop_oneof![
        at.prop_map(Change::Delete),
        (at, c.clone()).prop_map(|(at, c)| Change::Insert(at, c)),
        (at, c).prop_map(|(at, c)| Change::Replace(at, c)),
        at.prop_map(Change::DeleteLine),
        at.prop_map(Change::DoubleLine),
        at.prop_map(Change::Cut),
    ]
}

impl Change {
    fn apply(&self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        if chars.is_empty() {
            return String::new();
        }
        match *self {
            Self::Delete(at) => {
                chars.remove(at % chars.len());
            }
            Self::Insert(at, c) => chars.insert(at % (chars.len() + 1), c),
            Self::Replace(at, c) => {
                let at = at % chars.len();
                chars[at] = c;
            }
            Self::DeleteLine(at) => {
                lines.remove(at % lines.len());
                return lines.concat();
            }
            Self::DoubleLine(at) => {
                let at = at % lines.len();
                lines.insert(at, lines[at]);
                return lines.concat();
            }
            Self::Cut(at) => chars.truncate(at % (chars.len() + 1)),
        }
        chars.into_iter().collect()
    }
}

fn config() -> impl Strategy<Value = Config> {
    let time = |most: u64| (1_000..=most * 1_000).prop_map(Duration::from_millis);
    let timeouts = (
        time(DAYS_30),
        time(DAYS_30),
        time(3_600),
        time(3_600),
        time(DAYS_30),
    );
    let sizes = (
        1_000..=100_000_000u32,
        1_000..=100_000_000u32,
        1_000..=16_000_000u32,
    );
    let mode = select(vec![XdpMode::Auto, XdpMode::Native, XdpMode::Generic]);
    let pin_dir = option::of("/[ -~]{0,20}".prop_map(Into::into));
    let socket = "/[ -~]{0,20}[a-z]".prop_map(Into::into);
    let pools = vec(pool(), 0..5);
    (timeouts, sizes, mode, pin_dir, socket, pools).prop_map(
        |(times, (flows_ipv4, flows_ipv6, half_open), mode, pin_dir, socket, drafts)| {
            let mut frontends = Vec::new();
            let mut pools = Vec::new();
            for (i, (v6, protocols, mut pool)) in drafts.into_iter().enumerate() {
                pool.name = format!("pool-{i}").into();
                for (j, b) in pool.backends.iter_mut().enumerate() {
                    b.name = format!("b{j}").into();
                    b.address = SocketAddr::new(ip(v6, 1, i, j), 8_000 + j as u16);
                }
                let count = pool.snat.len();
                pool.snat = (0..count).map(|j| ip(v6, 2, i, j)).collect();
                if count == 0 {
                    pool.snat_ports = (10_000, 32_767);
                }
                if !protocols.is_empty()
                    && protocols.iter().all(|p| *p == Protocol::Udp)
                    && pool.check.kind != CheckKind::None
                {
                    pool.check.port.get_or_insert(53);
                }
                for (j, protocol) in protocols.into_iter().enumerate() {
                    frontends.push(Frontend {
                        name: format!("front.{i}_{j}").into(),
                        mode: Mode::Xdp,
                        address: SocketAddr::new(ip(v6, 3, i, j), 80),
                        protocol,
                        pool: Arc::clone(&pool.name),
                    });
                }
                pools.push(Arc::new(pool));
            }
            Config {
                xdp: Xdp {
                    interfaces: vec!["eth0".into(), "br-lan.7".into()],
                    mode,
                    flows_ipv4,
                    flows_ipv6,
                    half_open,
                    pin_dir,
                },
                admin: Admin { socket },
                timeouts: FlowTimeouts {
                    tcp_idle: times.0,
                    udp_idle: times.1,
                    half_open: times.2,
                    closed: times.3,
                    removed: times.4,
                },
                frontends,
                pools,
            }
        },
    )
}

fn ip(v6: bool, net: u8, pool: usize, host: usize) -> IpAddr {
    let host = host as u8 + 1;
    match v6 {
        false => Ipv4Addr::new(10, net, pool as u8, host).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, net.into(), pool as u16, 0, 0, 0, host.into()).into(),
    }
}

/// A pool without names and addresses, its family and its frontends' protocols.
fn pool() -> impl Strategy<Value = (bool, Vec<Protocol>, Pool)> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
    let unavailable = select(vec![
        Unavailable::Reset,
        Unavailable::Drop,
        Unavailable::Pass,
    ]);
    let ports = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let passive = (any::<bool>(), option::of(10..=60_000u64));
    let activation = select(vec![
        Activation::Active,
        Activation::Drain,
        Activation::Stopped,
    ]);
    let backend = (0..=256u16, activation).prop_map(|(weight, activation)| Backend {
        name: "".into(),
        address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        weight,
        activation,
    });
    let family_and_use = (any::<bool>(), vec(protocol, 0..3));
    let backends = vec(backend, 1..5);
    // Two addresses for each of at most four pools are as many as there can be.
    (
        family_and_use,
        0..=2usize,
        ports,
        unavailable,
        check(),
        passive,
        backends,
    )
        .prop_map(
            |((v6, protocols), snat, snat_ports, unavailable, check, passive, backends)| {
                let pool = Pool {
                    name: "".into(),
                    balance: Balance::RoundRobin,
                    forward: Forward::Nat,
                    snat: vec![Ipv4Addr::UNSPECIFIED.into(); snat],
                    snat_ports,
                    unavailable,
                    check,
                    passive: Passive {
                        refused: passive.0,
                        unanswered: passive.1.map(Duration::from_millis),
                    },
                    backends,
                };
                (v6, protocols, pool)
            },
        )
}

fn check() -> impl Strategy<Value = Check> {
    let range = (100..=599u16, 100..=599u16).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let http = (
        "/[a-z0-9/?=&._~-]{0,20}",
        option::of("[a-z][a-z0-9.:-]{0,20}"),
        vec(range, 1..4),
    )
        .prop_map(|(path, host, expect)| CheckKind::Http { path, host, expect });
    let kind = prop_oneof![Just(CheckKind::None), Just(CheckKind::Tcp), http];
    let times = (10..=3_600_000u64, 0..=1_000u64, 1..=3_600_000u64);
    let rows = (1..=100u32, 1..=100u32);
    (kind, times, rows, option::of(1..=u16::MAX), any::<bool>()).prop_map(
        |(kind, (interval, fast, timeout), (fall, rise), port, default)| {
            let fast = (interval * fast / 1_000).max(10);
            let (fast, timeout) = match default {
                true => default_times(interval),
                false => (fast, timeout),
            };
            Check {
                kind,
                interval: Duration::from_millis(interval),
                fast_interval: Duration::from_millis(fast),
                timeout: Duration::from_millis(timeout),
                fall,
                rise,
                port,
            }
        },
    )
}

/// `fast_interval` and `timeout` as documented, all in milliseconds.
fn default_times(interval: u64) -> (u64, u64) {
    ((interval / 5).max(50).min(interval), interval.min(500))
}

/// The configuration as a file. Unless `explicit`, keys with a default value are
/// left out.
fn print(config: &Config, explicit: bool) -> String {
    let mut out = String::new();
    let Xdp {
        interfaces,
        mode,
        flows_ipv4,
        flows_ipv6,
        half_open,
        pin_dir,
    } = &config.xdp;
    let mode = format!("{mode:?}").to_lowercase();
    writeln!(out, "[xdp]\ninterfaces = {interfaces:?}").unwrap();
    let mut key = |name: &str, value: String, default: &str| {
        if explicit || value != default {
            writeln!(out, "{name} = {value}").unwrap();
        }
    };
    key("mode", quote(&mode), "\"auto\"");
    key("flows_ipv4", flows_ipv4.to_string(), "1000000");
    key("flows_ipv6", flows_ipv6.to_string(), "1000000");
    key("half_open", half_open.to_string(), "262144");
    if let Some(dir) = pin_dir {
        key("pin_dir", quote(dir.to_str().unwrap()), "");
    }
    let socket = config.admin.socket.to_str().unwrap();
    writeln!(out, "[admin]\nsocket = {}\n[timeouts]", quote(socket)).unwrap();
    let t = &config.timeouts;
    for (name, time) in [
        ("tcp_idle", t.tcp_idle),
        ("udp_idle", t.udp_idle),
        ("half_open", t.half_open),
        ("closed", t.closed),
        ("removed", t.removed),
    ] {
        writeln!(out, "{name} = {}", ms(time)).unwrap();
    }
    for f in &config.frontends {
        let (name, address, pool) = (&f.name, f.address, &f.pool);
        writeln!(
            out,
            "[[frontend]]\nname = \"{name}\"\naddress = \"{address}\""
        )
        .unwrap();
        writeln!(out, "pool = \"{pool}\"").unwrap();
        if explicit || f.protocol == Protocol::Udp {
            writeln!(out, "mode = \"xdp\"\nprotocol = \"{}\"", f.protocol).unwrap();
        }
    }
    for pool in &config.pools {
        print_pool(&mut out, config, pool, explicit);
    }
    out
}

fn print_pool(out: &mut String, config: &Config, pool: &Pool, explicit: bool) {
    let mut users = config.frontends.iter().filter(|f| f.pool == pool.name);
    let udp_only = users.clone().count() > 0 && users.all(|f| f.protocol == Protocol::Udp);
    let mut line = |text: String| writeln!(out, "{text}").unwrap();
    line(format!("[[pool]]\nname = \"{}\"", pool.name));
    if explicit {
        line("balance = \"round-robin\"\nforward = \"nat\"".into());
    }
    if !pool.snat.is_empty() {
        let list: Vec<String> = pool.snat.iter().map(|ip| quote(&ip.to_string())).collect();
        line(format!("snat = [{}]", list.join(", ")));
        if explicit || pool.snat_ports != (10_000, 32_767) {
            line(format!(
                "snat_ports = \"{}-{}\"",
                pool.snat_ports.0, pool.snat_ports.1
            ));
        }
    }
    if explicit || pool.unavailable != Unavailable::Reset {
        let word = format!("{:?}", pool.unavailable).to_lowercase();
        line(format!("unavailable = \"{word}\""));
    }
    let check = &pool.check;
    line("[pool.check]".into());
    let (kind, default) = match &check.kind {
        CheckKind::None => ("none", udp_only),
        CheckKind::Tcp => ("tcp", !udp_only),
        CheckKind::Http { .. } => ("http", false),
    };
    if explicit || !default {
        line(format!("type = \"{kind}\""));
    }
    line(format!("interval = {}", ms(check.interval)));
    let times = (
        check.fast_interval.as_millis() as u64,
        check.timeout.as_millis() as u64,
    );
    if explicit || times != default_times(check.interval.as_millis() as u64) {
        line(format!("fast_interval = {}", ms(check.fast_interval)));
        line(format!("timeout = {}", ms(check.timeout)));
    }
    line(format!("fall = {}\nrise = {}", check.fall, check.rise));
    if let Some(port) = check.port {
        line(format!("port = {port}"));
    }
    if let CheckKind::Http { path, host, expect } = &check.kind {
        if explicit || path != "/" {
            line(format!("path = {}", quote(path)));
        }
        if let Some(host) = host {
            line(format!("host = {}", quote(host)));
        }
        let list: Vec<String> = expect
            .iter()
            .map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("\"{first}-{last}\""),
            })
            .collect();
        match &list[..] {
            [one] if !explicit => line(format!("expect = {one}")),
            _ => line(format!("expect = [{}]", list.join(", "))),
        }
    }
    line("[pool.passive]".into());
    if explicit || !pool.passive.refused {
        line(format!("refused = {}", pool.passive.refused));
    }
    line(match pool.passive.unanswered {
        Some(time) => format!("unanswered = {}", ms(time)),
        None => "unanswered = false".into(),
    });
    for b in &pool.backends {
        line(format!(
            "[[pool.backend]]\nname = \"{}\"\naddress = \"{}\"",
            b.name, b.address
        ));
        if explicit || b.weight != 1 {
            line(format!("weight = {}", b.weight));
        }
        if explicit || b.activation != Activation::Active {
            line(format!("activation = \"{}\"", b.activation));
        }
    }
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn ms(duration: Duration) -> String {
    format!("\"{}ms\"", duration.as_millis())
}
