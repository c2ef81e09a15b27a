//! Whatever the file holds, checking it ends with a configuration or with
//! problems that have a place in it; and what is written is what is read.

use std::net::IpAddr;
use std::time::Duration;

use balancer_agent::config::{self, ConfigError};
use balancer_agent::model::*;
use common::tables::Unavailable;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

#[path = "config_properties/files.rs"]
mod files;
#[path = "config_properties/guide.rs"]
mod guide;
#[path = "config_properties/http.rs"]
mod http;
#[path = "config_properties/print.rs"]
mod print;
#[path = "config_properties/print_http.rs"]
mod print_http;
#[path = "config_properties/steered.rs"]
mod steered;

const GUIDE: &str = include_str!("../../docs/configuration.md");
const EXAMPLE: &str = include_str!("../../docs/example.toml");
const HTTP_EXAMPLE: &str = include_str!("../../docs/example-http.toml");

/// The examples of the documentation; the first has every table for packets,
/// the last every table for HTTP.
fn guide_examples() -> Vec<&'static str> {
    let blocks = GUIDE.split("```toml\n").skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

fn guide_example() -> &'static str {
    guide_examples()[0]
}

/// The last example of the documentation, with files that are there.
fn http_example() -> String {
    files::fill(guide_examples().last().unwrap())
}

#[test]
fn the_documented_examples_are_good() {
    for text in guide_examples().into_iter().chain([EXAMPLE, HTTP_EXAMPLE]) {
        let text = files::fill(text);
        let (config, warnings) =
            config::parse_with_warnings("example.toml", &text).unwrap_or_else(|e| panic!("{e}"));
        assert!(warnings.is_empty(), "{warnings}");
        assert!(!config.frontends.is_empty() || !config.http.frontends.is_empty());
    }
}

#[test]
fn the_example_does_what_httpd_and_mod_jk_did() {
    use balancer_agent::model::http::{Action, Sticky, StickyRoute};
    let config = config::parse("example.toml", HTTP_EXAMPLE).unwrap();
    let ports = [("user", 80, 8081), ("admin", 9090, 9090)];
    for (frontend, (name, port, servers)) in config.http.frontends.iter().zip(ports) {
        assert_eq!(frontend.address.to_string(), format!("0.0.0.0:{port}"));
        let [site] = &frontend.sites[..] else {
            panic!("{frontend:?}");
        };
        let [mount] = &site.mounts[..] else {
            panic!("{site:?}");
        };
        assert_eq!(&*mount.pattern, "/*");
        assert_eq!(mount.route.action, Action::Pool(name.into()));
        let excluded: Vec<&str> = site.exclusions.iter().map(|e| &*e.pattern).collect();
        let wanted = ["/images/*", "/js/*", "/css/*", "/externlib/*", "/sample/*"];
        assert_eq!(excluded, wanted);
        assert!(
            site.exclusions
                .iter()
                .all(|e| e.pool.as_deref() == Some(name))
        );
        let Action::Files(files) = &site.fallback.as_ref().unwrap().action else {
            panic!("{site:?}");
        };
        assert_eq!(
            files.root.to_str(),
            Some(format!("/var/www/mago3d-{name}").as_str())
        );
        let pool = config.pool(name).unwrap();
        assert_eq!(
            pool.http.sticky,
            Some(Sticky::Route(StickyRoute::default()))
        );
        assert_eq!((pool.check.fall, pool.check.rise), (3, 2));
        let backends: Vec<String> = pool
            .backends
            .iter()
            .map(|b| format!("{} {} {}", b.http.route, b.address, b.weight))
            .collect();
        let wanted = [
            format!("{name}1 172.18.0.12:{servers} 1"),
            format!("{name}2 172.18.0.13:{servers} 1"),
        ];
        assert_eq!(backends, wanted);
    }
    assert_eq!(config.http.frontends.len(), 2);
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
    fn changed_examples_end_well(changes in vec(change(), 1..5), http: bool) {
        let mut text = match http {
            true => http_example(),
            false => guide_example().to_owned(),
        };
        for change in &changes {
            text = change.apply(&text);
        }
        if let Err(error) = config::parse("changed", &text) {
            in_the_file(&error, &text)?;
        }
    }

    #[test]
    fn what_is_written_is_read(config in steered::config(), explicit: bool) {
        let text = print::print(&config, explicit);
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
    "[http]\n",
    "[frontend.tls]\n",
    "[[frontend.tls.certificate]]\n",
    "[frontend.limits]\n",
    "[[frontend.site]]\n",
    "[[frontend.site.mount]]\n",
    "[frontend.site.mount]\n",
    "[frontend.site.fallback]\n",
    "[pool.sticky]\n",
    "[pool.maintenance]\n",
    "mode = \"http\"\n",
    "type = \"cookie\"\n",
    "hosts",
    "pattern",
    "redirect",
    "rewrite",
    "request_headers",
    "body_file",
    "compress",
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
