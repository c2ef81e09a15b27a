//! Patterns: a table, and random ones against mod_jk's rules written as plainly as can be.

use proptest::prelude::*;

use super::*;

/// Pattern, paths that it takes, paths that it does not.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    ("/a", &["/a"], &["/", "/a/", "/ab", "/A", "/b/a", ""]),
    ("/*", &["/", "/a", "/a/b"], &[""]),
    (
        "/images/*",
        &["/images/", "/images/a", "/images/a/b.png"],
        &["/images", "/imagesx", "/x/images/"],
    ),
    (
        "/images*",
        &["/images", "/images/", "/imagesx/y"],
        &["/image"],
    ),
    (
        "/*.jsp",
        &["/a.jsp", "/b/c.jsp", "/.jsp"],
        &["/a.jspx", "/a.jsp/", "/a.JSP", ".jsp", "/jsp"],
    ),
    (
        "/app/*.do",
        &["/app/x.do", "/app/y/x.do", "/app/.do"],
        &["/app.do", "/apps/x.do", "/app/.d"],
    ),
    (
        "/a?c",
        &["/abc", "/a/c", "/a?c", "/a*c"],
        &["/ac", "/abbc", "/abcd"],
    ),
    ("/?", &["/a", "//"], &["/", "/ab"]),
    ("/a/??/c", &["/a/bb/c"], &["/a/b/c", "/a/bbb/c"]),
    (
        "/a*b*c",
        &["/abc", "/axbyc", "/abbcc", "/a/b/c"],
        &["/acb", "/ab", "/xabc"],
    ),
    ("/a*a", &["/aa", "/aba", "/aaa"], &["/a"]),
    ("/*aab", &["/aab", "/aaab", "/aaaab"], &["/aaba"]),
    (
        "/*a?b*",
        &["/axb", "/xxaab", "/ayb/c", "/aaxb"],
        &["/ab", "/axxb"],
    ),
    ("/**", &["/", "/a/b"], &[""]),
    ("/a**b", &["/ab", "/axb"], &["/a"]),
    ("/*?", &["/a", "/ab"], &["/"]),
    ("/a*?*b", &["/axb", "/axxb"], &["/ab"]),
    ("*", &["", "/", "/a"], &[]),
    ("/a.b", &["/a.b"], &["/axb"]),
    ("/[a]+$", &["/[a]+$"], &["/a"]),
    ("/é*", &["/é", "/éa"], &["/e"]),
];

#[test]
fn patterns_take_what_the_table_says() {
    for (pattern, takes, leaves) in TABLE {
        let set = Patterns::new([*pattern]);
        for path in *takes {
            assert!(set.matches(path.as_bytes()), "{pattern} should take {path}");
            assert!(
                model_match(pattern.as_bytes(), path.as_bytes()),
                "model: {pattern} {path}"
            );
        }
        for path in *leaves {
            assert!(
                !set.matches(path.as_bytes()),
                "{pattern} should leave {path}"
            );
            assert!(
                !model_match(pattern.as_bytes(), path.as_bytes()),
                "model: {pattern} {path}"
            );
        }
    }
}

#[test]
fn more_slashes_then_length_then_order_decide() {
    let find = |patterns: &[&str], path: &str| {
        let place = Patterns::new(patterns.iter().copied()).find(path.as_bytes());
        place.map(|place| patterns[place].to_owned())
    };
    let some = |pattern: &str| Some(pattern.to_owned());
    // More slashes win over length, even where the longer one is more exact.
    assert_eq!(find(&["/abcdefgh*", "/*/"], "/abcdefgh/"), some("/*/"));
    assert_eq!(find(&["/*", "/a/*", "/a/b/*"], "/a/b/c"), some("/a/b/*"));
    assert_eq!(find(&["/*", "/a/*", "/a/b/*"], "/a/c"), some("/a/*"));
    assert_eq!(find(&["/*", "/a/*", "/a/b/*"], "/b"), some("/*"));
    // Then the longer one: a star counts.
    assert_eq!(find(&["/a", "/a*"], "/a"), some("/a*"));
    assert_eq!(find(&["/*.jsp", "/*"], "/x.jsp"), some("/*.jsp"));
    assert_eq!(find(&["/*.jsp", "/app*"], "/app.jsp"), some("/*.jsp"));
    assert_eq!(find(&["/*.do", "/app/*"], "/app/x.do"), some("/app/*"));
    // Then the order of the file.
    assert_eq!(Patterns::new(["/a*", "/?b", "/ab"]).find(b"/ab"), Some(0));
    assert_eq!(Patterns::new(["/?b", "/a*", "/ab"]).find(b"/ab"), Some(0));
    assert_eq!(Patterns::new(["/ab", "/?b", "/a*"]).find(b"/ab"), Some(0));
    assert_eq!(Patterns::new(["/a", "/a"]).find(b"/a"), Some(0));
}

#[test]
fn no_patterns_take_nothing() {
    assert_eq!(Patterns::new([]).find(b"/"), None);
    assert_eq!(Patterns::default().find(b""), None);
}

/// Wildcards by recursion over both texts, by a table so that it ends in time.
fn model_match(pattern: &[u8], path: &[u8]) -> bool {
    let mut row = vec![false; path.len() + 1];
    row[0] = true;
    for &p in pattern {
        let mut next = vec![false; path.len() + 1];
        for at in 0..=path.len() {
            next[at] = match p {
                b'*' => row[at] || (at > 0 && next[at - 1]),
                b'?' => at > 0 && row[at - 1],
                p => at > 0 && row[at - 1] && path[at - 1] == p,
            };
        }
        row = next;
    }
    row[path.len()]
}

/// mod_jk's choice: of all that match, the best by its order.
fn model_find(patterns: &[String], path: &[u8]) -> Option<usize> {
    (0..patterns.len())
        .filter(|&place| model_match(patterns[place].as_bytes(), path))
        .min_by_key(|&place| {
            let pattern = &patterns[place];
            let slashes = pattern.matches('/').count();
            (usize::MAX - slashes, usize::MAX - pattern.len(), place)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_set_of_patterns_chooses_as_mod_jk(
        patterns in prop::collection::vec("/[ab/*?]{0,7}", 0..20),
        paths in prop::collection::vec("/[ab/]{0,9}", 1..20),
    ) {
        let set = Patterns::new(patterns.iter().map(String::as_str));
        for path in &paths {
            let path = path.as_bytes();
            prop_assert_eq!(set.find(path), model_find(&patterns, path), "{:?}", path);
        }
    }

    #[test]
    fn many_plain_patterns_choose_as_mod_jk(
        patterns in prop::collection::vec("(/(a|ab|abc|b|ba)){1,4}(/\\*|\\*|)", 0..60),
        paths in prop::collection::vec("(/(a|ab|abc|b|ba|c)){1,5}/?", 1..20),
    ) {
        let set = Patterns::new(patterns.iter().map(String::as_str));
        for path in &paths {
            let path = path.as_bytes();
            prop_assert_eq!(set.find(path), model_find(&patterns, path), "{:?}", path);
        }
    }
}

/// A long path and a pattern made to be slow: a matcher that goes back over every star would
/// not come to an end.
#[test]
fn many_stars_stay_linear() {
    let pattern = format!("/{}b", "a*".repeat(200));
    let path = format!("/{}", "a".repeat(60_000));
    assert!(!Patterns::new([&*pattern]).matches(path.as_bytes()));
    assert!(Patterns::new([&*pattern]).matches(format!("{path}b").as_bytes()));
}
