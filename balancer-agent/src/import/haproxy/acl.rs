//! ACLs and conditions (configuration manual, 7): as far as they are about host and path,
//! or the same for all connections of a listener.

use std::collections::HashMap;

use super::lex::Line;
use crate::import::{names, rules};

/// Most ways in which a condition may be true.
const WAYS_MAX: usize = 256;

/// One way in which a condition is true: all of it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Way {
    /// One of these hosts; `None` is any.
    pub hosts: Option<Vec<String>>,
    /// One of these patterns of paths; `None` is any.
    pub paths: Option<Vec<String>>,
}

/// What one ACL, or one test in braces, looks at.
#[derive(Clone, Debug, PartialEq)]
enum Test {
    /// The same for all requests of a listener.
    Always(bool),
    /// Whether the connection is TLS.
    Tls,
    /// The listener's port.
    Port(Vec<u16>),
    Hosts(Vec<String>),
    Paths(Vec<String>),
    /// Something else.
    Unknown(String),
}

/// The ACLs of a proxy.
#[derive(Debug, Default)]
pub struct Acls(HashMap<String, Vec<Test>>);

/// What is known of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its port.
    pub port: u16,
}

impl Acls {
    /// Those of a proxy's lines, defaults included.
    pub fn of<'a>(lines: impl Iterator<Item = &'a Line>) -> Self {
        let mut acls: HashMap<String, Vec<Test>> = HashMap::new();
        for line in lines.filter(|line| line.word(0) == "acl") {
            let tests = acls.entry(line.word(1).to_owned()).or_default();
            tests.push(test(line.from(2)));
        }
        Self(acls)
    }

    /// The ways in which the condition behind `if` or `unless` is true for requests of a
    /// listener; empty when it never is. Without `if` and `unless` it always is.
    ///
    /// # Errors
    /// Why it can't be said so.
    pub fn ways(&self, words: &[String], listener: Listener) -> Result<Vec<Way>, String> {
        let (negated, words) = match words.split_first() {
            None => return Ok(vec![Way::default()]),
            Some((word, rest)) if word == "if" => (false, rest),
            Some((word, rest)) if word == "unless" => (true, rest),
            Some((word, _)) => return Err(format!("`{word}` is not understood here")),
        };
        let mut ways = Vec::new();
        let mut now: Vec<Way> = vec![Way::default()];
        let mut at = 0;
        while let Some(word) = words.get(at) {
            at += 1;
            if word == "or" || word == "||" {
                ways.append(&mut now);
                now = vec![Way::default()];
                continue;
            }
            let (not, name) = match word.strip_prefix('!') {
                Some("") => {
                    at += 1;
                    (true, words.get(at - 1).map_or("", String::as_str))
                }
                Some(name) => (true, name),
                None => (false, word.as_str()),
            };
            let anonymous;
            let tests = match name {
                "{" => {
                    let rest = &words[at..];
                    let end = rest.iter().position(|word| word == "}");
                    let end = end.ok_or("a `{` is not closed")?;
                    anonymous = [test(&rest[..end])];
                    at += end + 1;
                    &anonymous[..]
                }
                name => match self.0.get(name) {
                    Some(tests) => &tests[..],
                    None => {
                        anonymous = [predefined(name)];
                        &anonymous[..]
                    }
                },
            };
            now = and(&now, &alternatives(tests, not, listener)?)?;
        }
        ways.append(&mut now);
        if !negated {
            return Ok(ways);
        }
        match (ways.is_empty(), ways.contains(&Way::default())) {
            (true, _) => Ok(vec![Way::default()]),
            (_, true) => Ok(Vec::new()),
            _ => Err("mounts can't say which hosts and paths are not meant".to_owned()),
        }
    }
}

fn predefined(name: &str) -> Test {
    match name {
        "TRUE" => Test::Always(true),
        "FALSE" => Test::Always(false),
        // What is not HTTP is refused before.
        "HTTP" => Test::Always(true),
        name => Test::Unknown(format!("`{name}` is not understood")),
    }
}

/// The ways in which one of the tests is true (or, negated, none is).
fn alternatives(tests: &[Test], not: bool, listener: Listener) -> Result<Vec<Way>, String> {
    let mut ways = Vec::new();
    for test in tests {
        let constant = match test {
            Test::Always(on) => *on,
            Test::Tls => listener.tls,
            Test::Port(ports) => ports.contains(&listener.port),
            Test::Unknown(reason) => return Err(reason.clone()),
            Test::Hosts(_) | Test::Paths(_) if not => {
                return Err("mounts can't say which hosts and paths are not meant".to_owned());
            }
            Test::Hosts(hosts) => {
                ways.push(Way {
                    hosts: Some(hosts.clone()),
                    paths: None,
                });
                continue;
            }
            Test::Paths(paths) => {
                ways.push(Way {
                    hosts: None,
                    paths: Some(paths.clone()),
                });
                continue;
            }
        };
        match (constant, not) {
            (true, true) => return Ok(Vec::new()),
            (true, false) => ways.push(Way::default()),
            (false, _) => {}
        }
    }
    // Negated, and none of them is true.
    Ok(if not { vec![Way::default()] } else { ways })
}

fn and(left: &[Way], right: &[Way]) -> Result<Vec<Way>, String> {
    let mut out = Vec::new();
    for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))) {
        let hosts = match (&a.hosts, &b.hosts) {
            (Some(a), Some(b)) => Some(common_hosts(a, b)),
            (some, None) | (None, some) => some.clone(),
        };
        let paths = match (&a.paths, &b.paths) {
            (Some(a), Some(b)) => Some(common_paths(a, b)?),
            (some, None) | (None, some) => some.clone(),
        };
        let never =
            hosts.as_ref().is_some_and(Vec::is_empty) || paths.as_ref().is_some_and(Vec::is_empty);
        if !never {
            out.push(Way { hosts, paths });
        }
        if out.len() > WAYS_MAX {
            return Err("the condition has too many parts".to_owned());
        }
    }
    Ok(out)
}

fn common_hosts(a: &[String], b: &[String]) -> Vec<String> {
    let of = |x: &[String], y: &[String]| {
        let inside = x.iter().filter(|x| y.iter().any(|y| host_covers(y, x)));
        inside.cloned().collect::<Vec<_>>()
    };
    let mut hosts = of(a, b);
    hosts.extend(of(b, a));
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Whether a host or wildcard covers another one.
pub fn host_covers(outer: &str, inner: &str) -> bool {
    outer == inner
        || outer
            .strip_prefix('*')
            .is_some_and(|suffix| inner.ends_with(suffix) && inner.len() > suffix.len())
}

fn common_paths(a: &[String], b: &[String]) -> Result<Vec<String>, String> {
    if a.len() * b.len() > WAYS_MAX {
        return Err("the condition has too many parts".to_owned());
    }
    let mut out: Vec<String> = Vec::new();
    for (x, y) in a.iter().flat_map(|x| b.iter().map(move |y| (x, y))) {
        let common = rules::common(x, y).map_err(|()| {
            format!("the paths that match both {x} and {y} are not those of one pattern")
        })?;
        out.extend(common.filter(|c| !out.contains(c)));
    }
    Ok(out)
}

/// How a pattern is compared.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Exact,
    Begin,
    End,
    Within,
    Folder,
    Domain,
    Regex,
}

fn test(words: &[String]) -> Test {
    let Some((criterion, rest)) = words.split_first() else {
        return Test::Unknown("an ACL without a test".to_owned());
    };
    let lower = criterion.to_ascii_lowercase();
    let (fetch, converters) = match lower.split_once(',') {
        Some((fetch, converters)) => (fetch, converters),
        None => (lower.as_str(), ""),
    };
    match fetch {
        "ssl_fc" => return Test::Tls,
        "always_true" => return Test::Always(true),
        "always_false" => return Test::Always(false),
        _ => {}
    }
    let (base, mut how) = match fetch.split_once('(') {
        Some((name, argument)) => {
            let (name, how) = suffix(name);
            (format!("{name}({argument}"), how)
        }
        None => {
            let (name, how) = suffix(fetch);
            (name.to_owned(), how)
        }
    };
    let mut patterns: Vec<&str> = Vec::new();
    let mut words = rest.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            // Hosts have no case; of paths, docs/import.md says that case counts.
            "-i" | "-n" => {}
            "--" => {
                patterns.extend(words.by_ref());
            }
            "-f" | "-M" => {
                return Test::Unknown("patterns are in another file: write them here".to_owned());
            }
            "-m" => {
                how = match words.next().unwrap_or_default() {
                    "str" => How::Exact,
                    "beg" => How::Begin,
                    "end" => How::End,
                    "sub" => How::Within,
                    "dir" => How::Folder,
                    "dom" => How::Domain,
                    "reg" => How::Regex,
                    other => return Test::Unknown(format!("`-m {other}` has no counterpart")),
                }
            }
            word => patterns.push(word),
        }
    }
    let other = |what: &str| Test::Unknown(format!("what decides is host and path, not `{what}`"));
    match base.as_str() {
        "dst_port" | "fc_dst_port" => {
            let ports: Option<Vec<u16>> = patterns.iter().map(|p| p.parse().ok()).collect();
            ports.map_or_else(|| other(criterion), Test::Port)
        }
        "path" | "url" | "capture.req.uri" if ["", "lower", "url_dec"].contains(&converters) => {
            paths(&patterns, how)
        }
        "hdr(host)" | "req.hdr(host)" | "req.fhdr(host)" | "ssl_fc_sni" | "req.hdr(host,-1)"
            if [
                "",
                "lower",
                "field(1,:)",
                "host_only",
                "lower,field(1,:)",
                "field(1,:),lower",
            ]
            .contains(&converters) =>
        {
            hosts(&patterns, how)
        }
        _ => other(criterion),
    }
}

fn suffix(name: &str) -> (&str, How) {
    let kinds = [
        ("_beg", How::Begin),
        ("_end", How::End),
        ("_sub", How::Within),
        ("_dir", How::Folder),
        ("_dom", How::Domain),
        ("_reg", How::Regex),
    ];
    for (suffix, how) in kinds {
        if let Some(name) = name.strip_suffix(suffix) {
            return (name, how);
        }
    }
    (name, How::Exact)
}

fn paths(patterns: &[&str], how: How) -> Test {
    let mut out = Vec::new();
    for pattern in patterns {
        if how == How::Regex {
            match rules::from_regex(pattern) {
                Some(found) => out.extend(found),
                None => {
                    return Test::Unknown(format!(
                        "`{pattern}` is a regular expression: mounts have `*` and `?`"
                    ));
                }
            }
            continue;
        }
        let Some(text) = rules::plain(pattern) else {
            return Test::Unknown(format!(
                "`{pattern}` has a `*` or `?` in it, which mounts can't have"
            ));
        };
        let inner = text.trim_matches('/');
        match how {
            How::Exact => out.push(text.to_owned()),
            How::Begin => out.push(format!("{text}*")),
            How::End if text.starts_with('/') => {
                out.extend([text.to_owned(), format!("/*{text}")]);
            }
            How::End => out.push(format!("/*{text}")),
            How::Within => out.push(match text.strip_prefix('/') {
                Some(_) => format!("*{text}*"),
                None => format!("/*{text}*"),
            }),
            How::Folder => out.extend([
                format!("/{inner}"),
                format!("/{inner}/*"),
                format!("/*/{inner}"),
                format!("/*/{inner}/*"),
            ]),
            How::Domain | How::Regex => {
                return Test::Unknown("paths have no domains".to_owned());
            }
        }
    }
    // `*/x*`: the path itself may begin so.
    let out = out
        .into_iter()
        .flat_map(|pattern| match pattern.strip_prefix('*') {
            Some(rest) => vec![rest.to_owned(), format!("/{pattern}")],
            None => vec![pattern],
        });
    Test::Paths(out.collect())
}

fn hosts(patterns: &[&str], how: How) -> Test {
    let mut out = Vec::new();
    for pattern in patterns {
        let name = names::without_port(pattern);
        let text = match how {
            How::Exact => name.to_owned(),
            How::End if name.starts_with('.') => format!("*{name}"),
            How::Domain => {
                let name = name.trim_start_matches('.');
                out.extend(names::host(name));
                format!("*.{name}")
            }
            _ => {
                return Test::Unknown(format!(
                    "hosts are whole names or end in one (`*.example.org`), `{pattern}` is neither"
                ));
            }
        };
        match names::host(&text) {
            Some(host) => out.push(host),
            None => return Test::Unknown(format!("`{pattern}` is no host")),
        }
    }
    Test::Hosts(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::source::Place;

    fn line(text: &str) -> Line {
        Line {
            place: Place {
                file: "f".into(),
                line: 1,
            },
            words: text.split(' ').map(str::to_owned).collect(),
        }
    }

    fn ways(acls: &[&str], condition: &str, tls: bool) -> Result<Vec<Way>, String> {
        let lines: Vec<Line> = acls.iter().map(|text| line(text)).collect();
        let words: Vec<String> = condition.split(' ').map(str::to_owned).collect();
        let listener = Listener { tls, port: 80 };
        Acls::of(lines.iter()).ways(&words, listener)
    }

    fn shown(ways: &[Way]) -> String {
        let list = |list: &Option<Vec<String>>| match list {
            Some(list) => list.join(","),
            None => "any".to_owned(),
        };
        let ways = ways
            .iter()
            .map(|way| format!("{} {}", list(&way.hosts), list(&way.paths)));
        ways.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn conditions_become_hosts_and_paths() {
        let acls = [
            "acl api path_beg /api /v1",
            "acl www hdr(host) -i WWW.example.org:80",
            "acl shop hdr_dom(host) example.com",
            "acl img path_end .png",
            "acl img path_dir images",
            "acl both path -m beg -i /x",
        ];
        let table = [
            ("if api", "any /api*,/v1*"),
            ("if www api", "www.example.org /api*,/v1*"),
            ("if www or api", "www.example.org any; any /api*,/v1*"),
            ("if shop", "example.com,*.example.com any"),
            (
                "if img",
                "any /*.png; any /images,/images/*,/*/images,/*/images/*",
            ),
            ("if { path /a } || { path_reg ^/b$ }", "any /a; any /b"),
            ("if both", "any /x*"),
            ("if api !{ ssl_fc }", "any /api*,/v1*"),
            ("unless { ssl_fc }", "any any"),
            ("if { ssl_fc }", ""),
            ("if { dst_port 80 } TRUE", "any any"),
            ("if api { path_end .js }", "any /api*.js,/v1*.js"),
        ];
        for (condition, expected) in table {
            assert_eq!(
                shown(&ways(&acls, condition, false).unwrap()),
                expected,
                "{condition}"
            );
        }
        assert!(ways(&acls, "unless { ssl_fc }", true).unwrap().is_empty());
        for no in [
            "if !api",
            "unless api",
            "if { src 10.0.0.0/8 }",
            "if METH_POST",
            "if {",
            "if { path_reg ^/[0-9] }",
        ] {
            assert!(ways(&acls, no, false).is_err(), "{no}");
        }
    }
}
