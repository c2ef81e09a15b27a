//! The guide's tables have the keys that there are, and the defaults that hold.

use std::collections::BTreeSet;

use balancer_agent::config;
use balancer_agent::model::Config;

use super::{GUIDE, files};

/// A frontend, a site, a mount and a pool with a backend, to which keys are added.
const PLACES: [(&str, &str); 5] = [
    (
        "frontend",
        "[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"127.0.0.1:80\"\n",
    ),
    ("site", "[[frontend.site]]\n"),
    ("mount", "[[frontend.site.mount]]\npattern = \"/x\"\n"),
    ("pool", "[[pool]]\nname = \"web\"\n"),
    (
        "backend",
        "[[pool.backend]]\nname = \"s1\"\naddress = \"127.0.0.1:8080\"\n",
    ),
];

/// A table of the guide: its heading, the place it comes after, how it begins in a
/// file (`{}` is where its keys go), and keys that it needs.
type Table = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const TABLES: &[Table] = &[
    ("## `[http]`", "backend", "[http]\n{}", ""),
    ("### `[frontend.limits]`", "frontend", "[frontend.limits]\n{}", ""),
    ("### `[frontend.timeouts]`", "frontend", "[frontend.timeouts]\n{}", ""),
    ("### `[frontend.tls]`", "frontend", "[frontend.tls]\n{}\n[[frontend.tls.certificate]]\ncertificate = \"/etc/balancer/0.pem\"\nkey = \"/etc/balancer/0.key\"", ""),
    ("### `[[frontend.tls.certificate]]`", "frontend", "[frontend.tls]\n[[frontend.tls.certificate]]\n{}", "certificate = \"/etc/balancer/0.pem\"\nkey = \"/etc/balancer/0.key\"\n"),
    ("### `[frontend.log]`", "frontend", "[frontend.log]\n{}", "file = \"/var/log/a\"\n"),
    ("### `[[frontend.site]]`", "mount", "[[frontend.site]]\n{}", "hosts = [\"a.example\"]\npool = \"web\"\n"),
    ("### `[[frontend.site.mount]]`", "mount", "[[frontend.site.mount]]\n{}", "pattern = \"/y\"\npool = \"web\"\n"),
    ("### `files`", "mount", "[[frontend.site.mount]]\npattern = \"/y\"\n[frontend.site.mount.files]\n{}", "root = \"/var/www/site\"\n"),
    ("### `redirect`", "mount", "[[frontend.site.mount]]\npattern = \"/y\"\n[frontend.site.mount.redirect]\n{}", "location = \"/a\"\n"),
    ("### `respond`", "mount", "[[frontend.site.mount]]\npattern = \"/y\"\n[frontend.site.mount.respond]\n{}", ""),
    ("### `stats`", "mount", "[[frontend.site.mount]]\npattern = \"/y\"\n[frontend.site.mount.stats]\n{}", "format = \"jk-status\"\n"),
    ("### `rewrite`", "mount", "[frontend.site.mount.rewrite]\n{}", ""),
    ("### A change of a header", "mount", "[[frontend.site.mount.rewrite.request_headers]]\n{}", "remove = \"a\"\n"),
    ("### `[[frontend.site.exclude]]`", "mount", "[[frontend.site.exclude]]\n{}", "pattern = \"/y\"\n"),
    ("### `[pool.sticky]`", "pool", "[pool.sticky]\n{}", "type = \"route\"\n"),
    ("### `[pool.queue]`", "pool", "[pool.queue]\n{}", ""),
    ("### `[pool.retries]`", "pool", "[pool.retries]\n{}", ""),
    ("### `[pool.observe]`", "pool", "[pool.observe]\n{}", ""),
    ("### `[pool.timeouts]`", "pool", "[pool.timeouts]\n{}", ""),
    ("### `[pool.ping]`", "pool", "protocol = \"ajp\"\n[pool.ping]\n{}", ""),
    ("### `[pool.tls]`", "pool", "[pool.tls]\n{}", ""),
    ("### `[pool.maintenance]`", "pool", "[pool.maintenance]\n{}", "body = \"x\"\n"),
    ("### `[[pool.backend]]`", "backend", "[[pool.backend]]\n{}", "name = \"s2\"\naddress = \"127.0.0.2:8080\"\n"),
    ("### `[pool.check]`", "pool", "[pool.check]\n{}", ""),
    ("### `[pool.passive]`", "pool", "[pool.passive]\n{}", ""),
    ("## `[xdp]`", "backend", "[xdp]\n{}", ""),
    ("## `[admin]`", "backend", "[admin]\n{}", ""),
    ("## `[cluster]`", "backend", "[cluster]\n{}", "name = \"n\"\nlisten = \"10.0.0.1:7946\"\nsecret_file = \"/etc/balancer/cluster.secret\"\n"),
    ("## `[timeouts]`", "backend", "[timeouts]\n{}", ""),
];

/// A file with `addition` after that place.
fn file(after: &str, addition: &str) -> String {
    let mut out = String::new();
    for (place, text) in PLACES {
        out += text;
        match place {
            "mount" => out += "pool = \"web\"\n",
            "site" if after == "none" => out += "pool = \"web\"\n",
            _ => {}
        }
        if place == after {
            out += addition;
            out += "\n";
        }
    }
    files::fill(&out)
}

/// Rows below a heading that begins so: key and default.
fn rows(heading: &str) -> Vec<(&'static str, &'static str)> {
    let start = GUIDE.find(&format!("\n{heading}")).expect(heading) + 1;
    let section = &GUIDE[start..];
    let end = section[3..]
        .find("\n#")
        .map_or(section.len(), |end| end + 3);
    section[..end]
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(key, rest)| (key, rest.split(" | ").next().unwrap()))
        .collect()
}

/// The keys that a table can have, as the message about an unknown one lists them.
fn known(text: &str) -> BTreeSet<String> {
    let error = config::parse("known", text).unwrap_err();
    let problem = error
        .problems()
        .iter()
        .find(|p| p.message == "unknown key `unheard_of`")
        .unwrap_or_else(|| panic!("{error}\n{text}"));
    problem
        .expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn parse(text: &str) -> Config {
    config::parse("guide", text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn every_key_is_in_the_guide() {
    for (heading, after, table, _) in TABLES {
        let keys: BTreeSet<String> = rows(heading).iter().map(|(k, _)| k.to_string()).collect();
        let text = file(after, &table.replace("{}", "unheard_of = 1"));
        assert_eq!(keys, known(&text), "{heading}");
    }
    // These two have several tables each in the guide.
    let all = |headings: &[&str]| -> BTreeSet<String> {
        let rows = headings.iter().flat_map(|heading| rows(heading));
        rows.map(|(key, _)| key.to_owned()).collect()
    };
    let mut frontend = all(&[
        "## `[[frontend]]`",
        "### With `mode = \"xdp\"`",
        "### With `mode = \"http\"`",
    ]);
    frontend.extend(["tls", "limits", "timeouts", "log", "site"].map(String::from));
    assert_eq!(frontend, known(&file("frontend", "unheard_of = 1")));
    let mut pool = all(&[
        "## `[[pool]]`",
        "### For frontends in `xdp` mode",
        "### For `http` frontends",
    ]);
    let tables = [
        "check",
        "passive",
        "sticky",
        "queue",
        "retries",
        "observe",
        "timeouts",
        "ping",
        "tls",
        "maintenance",
        "backend",
    ];
    pool.extend(tables.map(String::from));
    assert_eq!(pool, known(&file("pool", "unheard_of = 1")));
}

#[test]
fn the_defaults_of_the_guide_hold() {
    let mut tried = 0;
    let http = [
        ("### With `mode = \"http\"`", "frontend", "{}", ""),
        ("### For `http` frontends", "pool", "{}", ""),
        ("## `[[pool]]`", "pool", "{}", ""),
        ("### For frontends in `xdp` mode", "pool", "{}", ""),
    ];
    for (heading, after, table, needed) in http.iter().chain(TABLES) {
        for (key, default) in rows(heading) {
            // Such as "`8192`, at most `head_bytes`".
            let Some(value) = default.strip_prefix('`').and_then(|d| d.split('`').next()) else {
                continue;
            };
            // These belong to other types than the one here, or to other modes.
            let kind = match (*heading, key) {
                (_, "snat_ports") => continue,
                ("### `[pool.sticky]`", "idle") => "type = \"learn\"\ncookie = \"c\"\n",
                ("### `[pool.sticky]`", "ipv4_prefix" | "ipv6_prefix") => "type = \"source\"\n",
                ("### `[pool.sticky]`", "cookie" | "parameter" | "force") => needed,
                ("### `[pool.sticky]`", _) => {
                    "type = \"cookie\"\nkey_file = \"/etc/balancer/cookie.key\"\n"
                }
                ("### For `http` frontends", "packet_size") => "protocol = \"ajp\"\n",
                ("### `[pool.check]`", "path" | "expect") => "type = \"http\"\n",
                ("### `respond`", "body") | ("### `[pool.check]`", _) => "",
                _ => needed,
            };
            let without = file(after, &table.replace("{}", kind));
            let with = file(
                after,
                &table.replace("{}", &format!("{kind}{key} = {value}")),
            );
            assert_eq!(parse(&with), parse(&without), "{heading} {key}");
            tried += 1;
        }
    }
    assert!(tried > 70, "{tried}");
}
