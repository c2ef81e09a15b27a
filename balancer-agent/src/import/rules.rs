//! Rules of which the first that matches wins, as mounts: there, the pattern with most `/`
//! wins, then the longest, then the first.
//!
//! Where that order would choose another rule than the first, the paths that both match get
//! a mount of their own; where they can't be described by one pattern, it is reported.

use super::Report;
use super::draft::Table;
use super::source::Place;

/// Patterns that are compared with each other; with more, the order of rules that overlap is
/// not looked at, and that is reported.
const COMPARED_MAX: usize = 500;
/// Patterns of a site, with those of paths that two rules match.
const TAKEN_MAX: usize = 4_000;
/// Patterns that one regular expression may become.
const EXPANDED_MAX: usize = 64;
/// Longest pattern that is worked on.
const PATTERN_MAX: usize = 1_024;

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Patterns as the configuration has them; one of them has to match.
    pub patterns: Vec<String>,
    /// What is done: a mount without `pattern`.
    pub action: Table,
    /// Where it is written.
    pub place: Place,
}

/// Mounts that do what the rules do.
pub fn mounts(rules: &[Rule], report: &mut Report) -> Vec<Table> {
    // Patterns in order; each with its rule.
    let mut taken: Vec<(String, usize)> = Vec::new();
    let total: usize = rules.iter().map(|rule| rule.patterns.len()).sum();
    let compared = total <= COMPARED_MAX;
    if let (false, Some(rule)) = (compared, rules.first()) {
        let reason = format!(
            "more than {COMPARED_MAX} patterns: whether their order matters was not looked at"
        );
        report.note(&rule.place, "paths", reason);
    }
    for (at, rule) in rules.iter().enumerate() {
        for pattern in &rule.patterns {
            let before = match compared {
                true => taken.iter().find(|(earlier, _)| covers(earlier, pattern)),
                false => taken.iter().find(|(earlier, _)| earlier == pattern),
            };
            if let Some((earlier, of)) = before {
                if *of != at {
                    let first = &rules[*of].place;
                    let reason = format!("never reached: {earlier} at {first} takes all of it");
                    report.left(&rule.place, pattern, reason);
                }
                continue;
            }
            if compared {
                let mut between = Vec::new();
                for (earlier, of) in &taken {
                    if *of == at || !wins(pattern, earlier) || !overlap(earlier, pattern) {
                        continue;
                    }
                    let room = taken.len() + between.len() < TAKEN_MAX;
                    match both(earlier, pattern).filter(|_| room) {
                        Some(both) => between.push((both, *of)),
                        None => {
                            let first = &rules[*of].place;
                            let reason = format!(
                                "paths that also match {earlier} at {first} go here, not there: the \
                                 pattern with most slashes wins, then the longest"
                            );
                            report.note(&rule.place, pattern, reason);
                        }
                    }
                }
                for (both, of) in between {
                    if !taken.iter().any(|(earlier, _)| *earlier == both) {
                        taken.push((both, of));
                    }
                }
            }
            taken.push((pattern.clone(), at));
        }
    }
    let mut out: Vec<Table> = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let own: Vec<&String> = taken
            .iter()
            .filter(|(_, of)| *of == at)
            .map(|(p, _)| p)
            .collect();
        if own.is_empty() {
            continue;
        }
        let mut mount = Table::one_of("mount", &rule.place);
        for pattern in own {
            mount.add("pattern", pattern, &rule.place);
        }
        mount.take_over(&rule.action);
        out.push(mount);
    }
    out
}

/// Mounts of rules whose order is that of mounts already. One of `"/*"` comes last, where it
/// can be written shorter; no other pattern is chosen after it.
pub fn as_they_are(rules: Vec<Rule>) -> Vec<Table> {
    let all = |rule: &Rule| rule.patterns.iter().all(|pattern| pattern == "/*");
    // Of two that are alike in slashes and length, the first is chosen: these stay.
    let alike = |rule: &Rule| {
        rule.patterns
            .iter()
            .any(|p| !wins(p, "/*") && !wins("/*", p))
    };
    let stays = rules
        .iter()
        .skip_while(|rule| !all(rule))
        .any(|rule| !all(rule) && alike(rule));
    let (last, first): (Vec<Rule>, Vec<Rule>) =
        rules.into_iter().partition(|rule| !stays && all(rule));
    let mut mounts = Vec::new();
    for rule in first.into_iter().chain(last) {
        let mut mount = Table::one_of("mount", &rule.place);
        for pattern in &rule.patterns {
            mount.add("pattern", pattern, &rule.place);
        }
        mount.take_over(&rule.action);
        mounts.push(mount);
    }
    mounts
}

/// Whether the first pattern is chosen where both match.
fn wins(a: &str, b: &str) -> bool {
    let rank = |p: &str| (p.bytes().filter(|b| *b == b'/').count(), p.len());
    rank(a) > rank(b)
}

/// Whether everything that `inner` matches is matched by `outer`. Sometimes `false` where it
/// is so; never `true` where it is not.
fn covers(outer: &str, inner: &str) -> bool {
    let outer: Vec<char> = outer.chars().collect();
    let inner: Vec<char> = inner.chars().collect();
    let (mut o, mut i, mut back) = (0, 0, None);
    while i < inner.len() {
        match outer.get(o) {
            Some('*') => {
                back = Some((o, i));
                o += 1;
            }
            Some('?') if inner[i] != '*' => (o, i) = (o + 1, i + 1),
            Some(c) if *c == inner[i] && !matches!(c, '*') => (o, i) = (o + 1, i + 1),
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (o, i) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    outer[o..].iter().all(|c| *c == '*')
}

/// Whether a path exists that both match.
fn overlap(a: &str, b: &str) -> bool {
    let a: Vec<char> = a.chars().take(PATTERN_MAX).collect();
    let b: Vec<char> = b.chars().take(PATTERN_MAX).collect();
    // What of `b` can be reached when all of `a` so far is used up.
    let mut row = vec![false; b.len() + 1];
    row[0] = true;
    for j in 0..b.len() {
        row[j + 1] = row[j] && b[j] == '*';
    }
    for c in &a {
        let mut next = vec![false; b.len() + 1];
        next[0] = row[0] && *c == '*';
        for j in 0..b.len() {
            // A star takes nothing, or one character (or star) more of the other.
            next[j + 1] = match *c == '*' || b[j] == '*' {
                true => row[j] || row[j + 1] || next[j],
                false => row[j] && (*c == b[j] || *c == '?' || b[j] == '?'),
            };
        }
        row = next;
    }
    row[b.len()]
}

/// The pattern of what both match, where one is a prefix and the other a suffix.
fn both(a: &str, b: &str) -> Option<String> {
    let parts = |p: &str| -> Option<(String, String)> {
        let (before, after) = p.split_once('*')?;
        (!after.contains(['*', '?']) && !before.contains('?'))
            .then(|| (before.to_owned(), after.to_owned()))
    };
    let ((a_before, a_after), (b_before, b_after)) = (parts(a)?, parts(b)?);
    let longer = |x: String, y: String, fits: fn(&str, &str) -> bool| match x.len() >= y.len() {
        true => fits(&x, &y).then_some(x),
        false => fits(&y, &x).then_some(y),
    };
    let before = longer(a_before, b_before, |long, short| long.starts_with(short))?;
    let after = longer(a_after, b_after, |long, short| long.ends_with(short))?;
    Some(format!("{before}*{after}"))
}

/// The pattern of what both match; `None` when nothing does.
///
/// # Errors
/// One pattern can't say it.
pub fn common(a: &str, b: &str) -> Result<Option<String>, ()> {
    if covers(a, b) {
        return Ok(Some(b.to_owned()));
    }
    if covers(b, a) {
        return Ok(Some(a.to_owned()));
    }
    match overlap(a, b) {
        true => both(a, b).map(Some).ok_or(()),
        false => Ok(None),
    }
}

/// Patterns that match what a regular expression matches, for simple ones: literals, `.*`,
/// alternatives in groups, `^` and `$`.
pub fn from_regex(regex: &str) -> Option<Vec<String>> {
    let mut rest = regex;
    let mut found = vec![String::new()];
    let anchored = rest.strip_prefix('^').is_some_and(|after| {
        rest = after;
        true
    });
    if !anchored {
        found = vec!["*".to_owned()];
    }
    let mut ended = false;
    while !rest.is_empty() {
        if rest == "$" {
            ended = true;
            break;
        }
        if let Some(after) = rest
            .strip_prefix("(.*)")
            .or_else(|| rest.strip_prefix(".*"))
        {
            append(&mut found, &["*".to_owned()])?;
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix('(') {
            let (inside, after) = after.split_once(')')?;
            let inside = inside.strip_prefix("?:").unwrap_or(inside);
            let choices: Option<Vec<String>> = inside.split('|').map(literal).collect();
            append(&mut found, &choices?)?;
            rest = match after.strip_prefix('?') {
                Some(_) => return None,
                None => after,
            };
            continue;
        }
        let end = rest.find(['(', '$', '|', ')']).unwrap_or(rest.len());
        // An escaped character may be one of these.
        let end = match rest[..end].ends_with('\\') {
            true => end + rest[end..].chars().next().map_or(0, char::len_utf8),
            false => end,
        };
        let (run, after) = match rest[..end].find(".*") {
            Some(0) | None => (&rest[..end], &rest[end..]),
            Some(at) if rest[..at].ends_with('\\') => (&rest[..end], &rest[end..]),
            Some(at) => rest.split_at(at),
        };
        if run.is_empty() {
            return None;
        }
        append(&mut found, &[literal(run)?])?;
        rest = after;
    }
    if !ended {
        append(&mut found, &["*".to_owned()])?;
    }
    let found = found.into_iter().map(|pattern| {
        let mut pattern = pattern.replace("**", "*");
        while pattern.contains("**") {
            pattern = pattern.replace("**", "*");
        }
        // Every path begins with a slash.
        match pattern.strip_prefix('*') {
            Some(_) => format!("/{pattern}"),
            None => pattern,
        }
    });
    let found: Vec<String> = found.collect();
    found
        .iter()
        .all(|p| p.starts_with('/') && p.len() <= PATTERN_MAX)
        .then_some(found)
}

fn append(found: &mut Vec<String>, choices: &[String]) -> Option<()> {
    if found.len() * choices.len() > EXPANDED_MAX {
        return None;
    }
    *found = found
        .iter()
        .flat_map(|begin| choices.iter().map(move |choice| format!("{begin}{choice}")))
        .collect();
    Some(())
}

/// Characters that stand for themselves.
fn literal(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c if c.is_ascii_punctuation() && !"*?".contains(c) => out.push(c),
                _ => return None,
            },
            '.' => out.push('?'),
            '^' | '$' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

/// Text that stands for itself in a pattern. `*` and `?` can't.
pub fn plain(text: &str) -> Option<&str> {
    (!text.contains(['*', '?'])).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(line: u32) -> Place {
        Place {
            file: "f".into(),
            line,
        }
    }

    fn rule(line: u32, patterns: &[&str], pool: &str) -> Rule {
        let mut action = Table::one_of("mount", &place(line));
        action.set_own("pool", pool);
        Rule {
            patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
            action,
            place: place(line),
        }
    }

    fn glob(pattern: &[char], path: &[char]) -> bool {
        match pattern.split_first() {
            None => path.is_empty(),
            Some(('*', rest)) => (0..=path.len()).any(|n| glob(rest, &path[n..])),
            Some(('?', rest)) => !path.is_empty() && glob(rest, &path[1..]),
            Some((c, rest)) => path.first() == Some(c) && glob(rest, &path[1..]),
        }
    }

    fn matching(pattern: &str, path: &str) -> bool {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        glob(&chars(pattern), &chars(path))
    }

    /// The pool that the mounts choose, as the router does.
    fn chosen(mounts: &[Table], path: &str) -> Option<String> {
        let mut best: Option<(&str, &Table)> = None;
        for mount in mounts {
            let Some(super::super::draft::Value::Texts(patterns)) = mount.get("pattern") else {
                panic!("no patterns");
            };
            for pattern in patterns.iter().map(|item| item.text.as_str()) {
                if matching(pattern, path) && best.is_none_or(|(b, _)| wins(pattern, b)) {
                    best = Some((pattern, mount));
                }
            }
        }
        best.and_then(|(_, mount)| mount.text("pool"))
            .map(str::to_owned)
    }

    #[test]
    fn the_first_rule_wins_where_patterns_overlap() {
        let rules = [
            rule(1, &["/*.jpg"], "images"),
            rule(2, &["/static/*"], "static"),
            rule(3, &["/static/old/*"], "never"),
            rule(4, &["/*"], "app"),
        ];
        let mut report = Report::default();
        let mounts = mounts(&rules, &mut report);
        let pool = |path| chosen(&mounts, path).unwrap();
        assert_eq!(pool("/static/a.jpg"), "images");
        assert_eq!(pool("/static/a.css"), "static");
        assert_eq!(pool("/static/old/x"), "static");
        assert_eq!(pool("/x"), "app");
        assert_eq!(report.left_over.len(), 1);
        assert_eq!(
            report.left_over[0].to_string(),
            "f:3: /static/old/*: never reached: /static/* at f:2 takes all of it"
        );
        assert!(report.notes.is_empty());
    }

    #[test]
    fn simple_regular_expressions_become_patterns() {
        let patterns = |regex: &str| from_regex(regex).map(|found| found.join(" "));
        assert_eq!(patterns(r"\.php$").as_deref(), Some("/*.php"));
        assert_eq!(patterns(r"\.(jpg|png)$").as_deref(), Some("/*.jpg /*.png"));
        assert_eq!(patterns("^/a/(b|c)/").as_deref(), Some("/a/b/* /a/c/*"));
        assert_eq!(patterns("^/$").as_deref(), Some("/"));
        assert_eq!(patterns("^/a.*z$").as_deref(), Some("/a*z"));
        assert_eq!(patterns("^/(.*)$").as_deref(), Some("/*"));
        assert_eq!(patterns("^/a.c").as_deref(), Some("/a?c*"));
        for no in [
            "^/[0-9]+", "a|b", "^a", "(a", "a{2}", r"\d", "^/a+", "^/(a)?b",
        ] {
            assert_eq!(patterns(no), None, "{no}");
        }
    }

    proptest! {
        /// Where nothing is reported, mounts choose what the first rule that matches says.
        #[test]
        fn mounts_do_what_rules_do(
            rules in proptest::collection::vec(
                proptest::collection::vec("/[ab]?/?[ab]?\\*?[ab]?", 1..3), 1..5),
            path in "/[ab/]{0,5}",
        ) {
            let rules: Vec<Rule> = rules.iter().zip(1..).map(|(patterns, line)| {
                let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
                rule(line, &patterns, &line.to_string())
            }).collect();
            let mut report = Report::default();
            let mounts = mounts(&rules, &mut report);
            let first = rules.iter()
                .find(|rule| rule.patterns.iter().any(|p| matching(p, &path)))
                .map(|rule| rule.place.line.to_string());
            let own = chosen(&mounts, &path);
            prop_assert_eq!(own.is_some(), first.is_some());
            // Short paths in which a prefix and a suffix share characters are not worth a
            // pattern of their own.
            if report.notes.is_empty() && path.len() > 4 {
                prop_assert_eq!(own, first);
            }
        }

        #[test]
        fn covering_and_overlapping_are_what_they_say(
            a in "/[ab]?\\*?[ab]?\\??", b in "/[ab]?\\*?[ab]?\\??", path in "/[ab]{0,4}",
        ) {
            let (a_has, b_has) = (matching(&a, &path), matching(&b, &path));
            if covers(&a, &b) && b_has {
                prop_assert!(a_has);
            }
            if a_has && b_has {
                prop_assert!(overlap(&a, &b), "{a} {b} {path}");
            }
        }

        #[test]
        fn regular_expressions_never_panic(regex in ".{0,40}") {
            let _ = from_regex(&regex);
        }
    }
}
