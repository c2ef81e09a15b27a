//! Which requests go to which worker: `JkMount`, `JkUnMount` and `uriworkermap.properties`.

use crate::import::Report;
use crate::import::source::{ImportError, Place, Source};

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    /// The pattern, with `/` first.
    pub pattern: String,
    /// The worker; `*` in an exclusion is every one.
    pub worker: String,
    /// `JkUnMount`.
    pub excluded: bool,
    /// Where it is.
    pub place: Place,
}

/// The rules of a server.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    /// In their order.
    pub rules: Vec<Mount>,
}

impl Mounts {
    /// Adds a rule. A pattern that is there already gets the new worker, in its place.
    /// `a|b` are two patterns: `a` and `ab`.
    pub fn add(
        &mut self,
        pattern: &str,
        worker: &str,
        excluded: bool,
        place: &Place,
        report: &mut Report,
    ) {
        if let Some((first, rest)) = pattern.split_once('|') {
            self.add_one(first, worker, excluded, place, report);
            self.add_one(&format!("{first}{rest}"), worker, excluded, place, report);
        } else {
            self.add_one(pattern, worker, excluded, place, report);
        }
    }

    fn add_one(
        &mut self,
        pattern: &str,
        worker: &str,
        excluded: bool,
        place: &Place,
        report: &mut Report,
    ) {
        if !pattern.starts_with('/') {
            let reason = "a pattern begins with `/`; mod_jk does not take it either";
            report.left(place, format!("{pattern} {worker}"), reason);
            return;
        }
        let rule = Mount {
            pattern: pattern.to_owned(),
            worker: worker.to_owned(),
            excluded,
            place: place.clone(),
        };
        let same = self
            .rules
            .iter_mut()
            .find(|old| old.pattern == pattern && old.excluded == excluded);
        match same {
            // Exclusions of one pattern for several workers stand beside each other here.
            Some(old) if !excluded => *old = rule,
            Some(old) if old.worker == worker => *old = rule,
            _ => self.rules.push(rule),
        }
    }

    /// Adds the rules of an `uriworkermap.properties`.
    ///
    /// # Errors
    /// A line that is no rule.
    pub fn file(&mut self, source: &Source, report: &mut Report) -> Result<(), ImportError> {
        for (place, line) in source.lines() {
            let text = line.split('#').next().unwrap_or_default().trim();
            if text.is_empty() {
                continue;
            }
            let Some((pattern, target)) = text.split_once('=') else {
                let expected = "a rule such as `/app/*=worker`";
                return Err(ImportError::at(&place, 0, "there is no `=`", expected));
            };
            let (mut pattern, target) = (pattern.trim(), target.trim());
            if let Some(rest) = pattern.strip_prefix('-') {
                let reason = format!("this rule is disabled: it takes back {rest}");
                let excluded = rest.starts_with('!');
                let name = rest.trim_start_matches('!');
                let before = self.rules.len();
                self.rules
                    .retain(|rule| !(rule.pattern == name && rule.excluded == excluded));
                if before == self.rules.len() {
                    report.left(&place, text, reason);
                }
                continue;
            }
            let excluded = pattern
                .strip_prefix('!')
                .map(|rest| pattern = rest)
                .is_some();
            let mut parts = target.split(';');
            let worker = parts.next().unwrap_or_default().trim();
            for extension in parts {
                let reason = "rules have no settings of their own: they are the pool's (`[pool.timeouts]`, `[pool.sticky]`, \
                              activations); give it a pool of its own";
                report.left(&place, extension.trim(), reason);
            }
            if worker.is_empty() {
                return Err(ImportError::at(
                    &place,
                    0,
                    "there is no worker",
                    "a name behind `=`",
                ));
            }
            self.add(pattern, worker, excluded, &place, report);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn rules_are_read_in_order() {
        let text =
            "# map\n/app|/*=a\n!/app/img/*=a;x=1\n/b/*=b\n/b/*=c\n-/app=a\n*.jsp=a\n!/b/img/*=*\n";
        let source = Source::new(Path::new("m"), text.as_bytes()).unwrap();
        let mut report = Report::default();
        let mut mounts = Mounts::default();
        mounts.file(&source, &mut report).unwrap();
        let shown: Vec<String> = mounts
            .rules
            .iter()
            .map(|m| {
                format!(
                    "{}{}={}",
                    if m.excluded { "!" } else { "" },
                    m.pattern,
                    m.worker
                )
            })
            .collect();
        assert_eq!(
            shown,
            ["/app/*=a", "!/app/img/*=a", "/b/*=c", "!/b/img/*=*"]
        );
        let left: Vec<String> = report.left_over.iter().map(ToString::to_string).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left[0].starts_with("m:3: x=1: "), "{left:?}");
        assert!(left[1].starts_with("m:7: *.jsp a: "), "{left:?}");
    }

    #[test]
    fn lines_that_are_no_rules_are_refused() {
        let source = Source::new(Path::new("m"), b"/a\n").unwrap();
        let error = Mounts::default()
            .file(&source, &mut Report::default())
            .unwrap_err();
        assert!(error.to_string().starts_with("m:1:1: there is no `=`"));
    }
}
