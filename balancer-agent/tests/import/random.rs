//! Files that nobody would write: an error with a place or a configuration that loads, never
//! a panic.

use std::path::Path;

use proptest::prelude::*;

use crate::support::{haproxy, nginx, workers};

fn sample(name: &str) -> String {
    std::fs::read_to_string(Path::new("tests/import").join(name)).unwrap()
}

/// A text with some of its lines or characters changed.
fn damaged(name: &'static str) -> impl Strategy<Value = String> {
    let text = sample(name);
    let length = text.chars().count();
    let edits = proptest::collection::vec((0..length, 0..4u8, any::<prop::sample::Index>()), 1..6);
    edits.prop_map(move |edits| {
        let mut chars: Vec<char> = text.chars().collect();
        for (at, kind, other) in edits {
            let at = at.min(chars.len().saturating_sub(1));
            match kind {
                0 => _ = chars.remove(at),
                1 => chars.insert(
                    at,
                    ['"', '\'', '{', '}', ';', '#', '\\', '%', '*', '\u{fc}'][other.index(10)],
                ),
                2 => {
                    // A line is taken out.
                    let end = chars[at..]
                        .iter()
                        .position(|c| *c == '\n')
                        .map_or(chars.len(), |n| at + n);
                    chars.drain(at..end);
                }
                _ => {
                    // A piece of it stands somewhere else.
                    let end = (at + 40).min(chars.len());
                    let piece: Vec<char> = chars[at..end].to_vec();
                    let to = other.index(chars.len().max(1));
                    chars.splice(to..to, piece);
                }
            }
            if chars.is_empty() {
                break;
            }
        }
        chars.into_iter().collect()
    })
}

/// Whether an error says where. `load` in the support has seen the others.
fn said<T>(result: Result<T, balancer_agent::import::ImportError>) {
    if let Err(error) = result {
        assert!(!error.message.is_empty() && !error.expected.is_empty());
        assert!((error.line == 0) == (error.column == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn damaged_haproxy(text in damaged("haproxy/web.cfg")) {
        said(haproxy(&text));
    }

    #[test]
    fn damaged_nginx(site in damaged("nginx/conf.d/site.conf"), main in damaged("nginx/nginx.conf")) {
        said(nginx(&[("nginx.conf", &main), ("conf.d/site.conf", &site)]));
    }

    #[test]
    fn damaged_mod_jk(
        properties in damaged("mod_jk/workers.properties"),
        map in damaged("mod_jk/conf/uriworkermap.properties"),
        conf in damaged("mod_jk/httpd.conf"),
        host in damaged("mod_jk/conf.d/10-www.conf"),
    ) {
        let files = [
            ("w.properties", properties.as_str()), ("conf/uriworkermap.properties", &map),
            ("httpd.conf", &conf), ("conf.d/10-www.conf", &host),
        ];
        said(workers(&files));
    }

    #[test]
    fn anything(text in "(\\PC|\n){0,200}", words in "((frontend|backend|server|bind|listen|acl|use_backend|if|http|location|upstream|worker|x|/\\*|=|\\{|\\}|;|<|>|\"|:80|10\\.0\\.0\\.1:80)[ \n]){0,60}") {
        for text in [&text, &words] {
            said(haproxy(text));
            said(haproxy(&format!("defaults\n mode http\n{text}")));
            said(nginx(&[("nginx.conf", text)]));
            said(workers(&[("w.properties", text), ("httpd.conf", text)]));
            said(workers(&[("w.properties", "worker.list=x\n"), ("map", text)]));
        }
    }
}
