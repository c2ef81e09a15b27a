//! Hosts: which site, and which name.

use proptest::prelude::*;

use super::*;

fn site(hosts: &[&str]) -> Site {
    let pattern = |host: &&str| match host.strip_prefix('*') {
        Some(suffix) => HostPattern::Suffix(suffix.into()),
        None => HostPattern::Exact((*host).into()),
    };
    Site {
        hosts: hosts.iter().map(pattern).collect(),
        mounts: Vec::new(),
        exclusions: Vec::new(),
        fallback: None,
    }
}

#[test]
fn the_most_exact_host_decides() {
    let sites = [
        site(&["*.example.org"]),
        site(&["www.example.org", "example.org"]),
        site(&["*.b.example.org"]),
        site(&[]),
        site(&["[::1]", "192.0.2.1"]),
        site(&[]),
        site(&["www.example.org", "*.example.org"]),
    ];
    let hosts = Hosts::new(&sites);
    for (host, expected) in [
        ("www.example.org", 1),
        ("WWW.Example.ORG", 1),
        ("www.example.org:8080", 1),
        ("www.example.org.", 1),
        ("www.example.org.:8080", 1),
        ("example.org", 1),
        ("a.example.org", 0),
        ("A.EXAMPLE.ORG:1", 0),
        ("a.b.example.org", 2),
        ("x.a.b.example.org", 2),
        ("b.example.org", 0),
        ("xexample.org", 3),
        (".example.org", 3),
        ("example.org.evil.test", 3),
        ("www.example.org.evil.test", 3),
        ("org", 3),
        ("", 3),
        (":80", 3),
        ("[::1]", 4),
        ("[::1]:443", 4),
        ("[::2]", 3),
        ("[::1", 3),
        ("192.0.2.1", 4),
        ("192.0.2.1:80", 4),
        ("other.test", 3),
    ] {
        assert_eq!(hosts.find(Some(host)), Some(expected), "{host:?}");
    }
    assert_eq!(hosts.find(None), Some(3));
    let long = format!("{}.example.org", "a".repeat(300));
    assert_eq!(hosts.find(Some(&long)), Some(3));
    let longest = format!("{}.example.org", "a.".repeat(120));
    assert_eq!(hosts.find(Some(&longest)), Some(0));
}

#[test]
fn without_a_default_a_stranger_has_no_site() {
    let hosts = Hosts::new(&[site(&["a.test"])]);
    assert_eq!(hosts.find(Some("a.test")), Some(0));
    assert_eq!(hosts.find(Some("b.test")), None);
    assert_eq!(hosts.find(None), None);
    assert_eq!(Hosts::new(&[]).find(Some("a.test")), None);
}

#[test]
fn plain_names_are_names_and_nothing_else() {
    for yes in [
        "a",
        "a.b-c_d",
        "192.0.2.1",
        "[::1]",
        "[2001:db8::1]",
        "XN--P1AI",
    ] {
        assert!(is_plain(yes), "{yes}");
    }
    for no in [
        "", "a/b", "a@b", "a:80", "a b", "a\r\n", "a?b", "a#b", "a\\b", "a%41", "[::1", "[x]",
        "[]", "ä.test", "a,b", "::1",
    ] {
        assert!(!is_plain(no), "{no}");
    }
}

proptest! {
    /// Against the rules as plainly as can be.
    #[test]
    fn any_host_belongs_where_the_model_says(
        patterns in prop::collection::vec(prop::collection::vec("(\\*\\.)?[ab](\\.[ab]){0,2}", 0..3), 0..6),
        host in "[abAB](\\.[abAB]){0,3}(\\.)?(:80)?",
    ) {
        let sites: Vec<Site> = patterns
            .iter()
            .map(|p| site(&p.iter().map(String::as_str).collect::<Vec<_>>()))
            .collect();
        let name = host.trim_end_matches(":80").trim_end_matches('.').to_ascii_lowercase();
        let claims = |fits: &dyn Fn(&str) -> Option<usize>| {
            let fitting = patterns.iter().enumerate().flat_map(|(place, p)| {
                p.iter().filter_map(move |p| fits(p).map(|score| (score, place)))
            });
            // The highest score; among equals the first.
            fitting.max_by_key(|(score, place)| (*score, usize::MAX - place)).map(|(_, place)| place)
        };
        let expected = claims(&|p| (p == name).then_some(0))
            .or_else(|| claims(&|p| {
                let suffix = p.strip_prefix('*')?;
                (name.ends_with(suffix) && name.len() > suffix.len()).then_some(suffix.len())
            }))
            .or_else(|| patterns.iter().position(Vec::is_empty));
        prop_assert_eq!(Hosts::new(&sites).find(Some(&host)), expected);
    }
}
